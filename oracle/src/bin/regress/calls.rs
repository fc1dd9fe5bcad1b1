//! What a statement calls, told by the server: the trees that it prints of a statement after rewriting and planning.
//!
//! Invariant: nothing here asks the guard or its catalogue; what a name means is what the server made of it.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};

use fedgate::sql::known::Known;
use futures_util::{StreamExt, stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::{AsyncMessage, Client, Connection, SimpleQueryMessage};

/// Settings of the transaction in which it is asked: trees come as notices, on one line.
pub const PRINT: &str = "SET LOCAL debug_pretty_print = off; SET LOCAL debug_print_rewritten = on; \
                         SET LOCAL debug_print_plan = on; SET LOCAL client_min_messages = log";
/// Ends that again, in the same transaction.
const SILENCE: &str = "SET LOCAL debug_print_rewritten = off; SET LOCAL debug_print_plan = off; \
                       SET LOCAL client_min_messages = warning";
/// Fields of nodes that hold a function's OID.
const FIELDS: &[&str] = &[":funcid", ":opfuncid", ":aggfnoid", ":winfnoid", ":tsmhandler"];

/// Why a read is no pure one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Impure {
    Volatile,
    Denied,
}

/// The trees that a connection has printed and nobody has looked at.
#[derive(Clone, Default)]
pub struct Trees(Arc<Mutex<Vec<String>>>);

impl Trees {
    /// Runs a connection and keeps the trees that come on it.
    pub fn listen<S, T>(connection: Connection<S, T>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let trees = Self::default();
        let kept = trees.clone();
        tokio::spawn(async move {
            let mut connection = connection;
            let mut messages = stream::poll_fn(move |context| connection.poll_message(context));
            while let Some(Ok(message)) = messages.next().await {
                // What a function's body runs has a context; whether that may write is told by the function's mark.
                if let AsyncMessage::Notice(notice) = message
                    && notice.where_().is_none()
                    && matches!(notice.message(), "rewritten parse tree:" | "plan:")
                    && let Some(tree) = notice.detail()
                {
                    kept.0.lock().expect("nobody panics with it").push(tree.to_owned());
                }
            }
        });
        trees
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().expect("nobody panics with it"))
    }
}

/// A number of a tree, which may be the last thing in its node.
fn oid(word: &str) -> Option<u32> {
    word.trim_end_matches(['}', ')']).parse().ok()
}

/// The OIDs of the functions in these trees.
fn functions(trees: &[String]) -> BTreeSet<u32> {
    let mut found = BTreeSet::new();
    for tree in trees {
        let mut words = tree.split_ascii_whitespace();
        while let Some(word) = words.next() {
            if FIELDS.contains(&word)
                && let Some(oid) = words.next().and_then(oid)
                && oid != 0
            {
                found.insert(oid);
            }
        }
    }
    found
}

/// The types that values are turned into in these trees; those of the server's own have no CHECKs.
fn targets(trees: &[String]) -> BTreeSet<u32> {
    let mut words = trees.iter().flat_map(|tree| tree.split_ascii_whitespace());
    let mut found = BTreeSet::new();
    while let Some(word) = words.next() {
        if word == ":resulttype" {
            found.extend(words.next().and_then(oid).filter(|oid| *oid >= 16384));
        }
    }
    found
}

fn array(oids: &BTreeSet<u32>) -> String {
    let oids: Vec<String> = oids.iter().map(u32::to_string).collect();
    format!("'{{{}}}'::pg_catalog.oid[]", oids.join(","))
}

/// What an EXPLAIN explains, if that is a query: the trees of it do not come by themselves.
pub fn explained(text: &str) -> Option<&str> {
    let word = |text: &str, word: &str| {
        text.get(..word.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(word))
            && !text[word.len()..].starts_with(|next: char| next.is_alphanumeric() || next == '_')
    };
    if !word(text, "explain") {
        return None;
    }
    let mut rest = text[7..].trim_start();
    // Options hold no brackets.
    if let Some(options) = rest.strip_prefix('(')
        && !word(options.trim_start(), "select")
    {
        rest = options.split_once(')')?.1.trim_start();
    }
    while word(rest, "analyze") || word(rest, "verbose") {
        rest = rest[7..].trim_start();
    }
    ["select", "with", "values", "table"].iter().any(|first| word(rest, first)).then_some(rest)
}

/// Does one of these trees call what is volatile, or what the gateway never calls? Asked in the transaction in
/// which they were printed, which sees what it made itself. An aggregate is what its components are.
///
/// # Errors
/// When the server does not say.
pub async fn impure(
    client: &Client,
    trees: &[String],
    known: &Known,
) -> Result<Option<Impure>, tokio_postgres::Error> {
    client.batch_execute(SILENCE).await?;
    let mut called = functions(trees);
    let domains = targets(trees);
    if !domains.is_empty() {
        let checks = client
            .simple_query(&format!(
                "WITH RECURSIVE d (oid, base) AS ( \
                   SELECT oid, typbasetype FROM pg_catalog.pg_type WHERE oid OPERATOR(pg_catalog.=) ANY ({}) UNION \
                   SELECT t.oid, t.typbasetype FROM pg_catalog.pg_type t, d WHERE t.oid OPERATOR(pg_catalog.=) d.base) \
                 SELECT c.conbin FROM d, pg_catalog.pg_constraint c WHERE c.contypid OPERATOR(pg_catalog.=) d.oid",
                array(&domains)
            ))
            .await?;
        let checks: Vec<String> = checks
            .iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
            .collect();
        called.extend(functions(&checks));
    }
    if called.is_empty() {
        return Ok(None);
    }
    let called = array(&called);
    let rows = client
        .simple_query(&format!(
            "SELECT n.nspname, p.proname, p.provolatile, e.extname \
               FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace \
               LEFT JOIN pg_catalog.pg_depend d ON d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass \
                    AND d.objid OPERATOR(pg_catalog.=) p.oid AND d.deptype OPERATOR(pg_catalog.=) 'e' \
               LEFT JOIN pg_catalog.pg_extension e ON e.oid OPERATOR(pg_catalog.=) d.refobjid \
              WHERE p.oid OPERATOR(pg_catalog.=) ANY ({called}) OR p.oid OPERATOR(pg_catalog.=) ANY (ARRAY( \
                SELECT pg_catalog.unnest(ARRAY[aggtransfn, aggfinalfn, aggcombinefn, aggmtransfn, aggminvtransfn, aggmfinalfn]::pg_catalog.oid[]) \
                  FROM pg_catalog.pg_aggregate WHERE aggfnoid::pg_catalog.oid OPERATOR(pg_catalog.=) ANY ({called})))"
        ))
        .await?;
    let mut volatile = false;
    let mut denied = HashSet::new();
    for message in &rows {
        let SimpleQueryMessage::Row(row) = message else { continue };
        let (Some(schema), Some(name)) = (row.get(0), row.get(1)) else { continue };
        volatile |= row.get(2) == Some("v") && known.harmless(schema, name, row.get(3)).is_none();
        if known.denied(name).is_some() {
            denied.insert(name);
        }
    }
    Ok(match (volatile, denied.is_empty()) {
        (true, _) => Some(Impure::Volatile),
        (false, false) => Some(Impure::Denied),
        (false, true) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_in_a_tree_wherever_its_lines_break() {
        let tree = "{FUNCEXPR :funcid 1574\n :funcresulttype 20 :args ({OPEXPR :opno 96 :opfuncid\n 65})} :aggfnoid 0";
        assert_eq!(functions(&[tree.to_owned()]), BTreeSet::from([65, 1574]));
        let tree = "{COERCETODOMAIN :arg {CONST} :resulttype\n 16400 :x 1} {RELABELTYPE :resulttype 25}";
        assert_eq!(targets(&[tree.to_owned()]), BTreeSet::from([16400]));
    }

    #[test]
    fn what_is_explained_is_found() {
        for (text, query) in [
            ("explain (verbose, costs off) select 1", Some("select 1")),
            ("EXPLAIN ANALYZE VERBOSE WITH x AS (SELECT 1) TABLE x", Some("WITH x AS (SELECT 1) TABLE x")),
            ("explain table t", Some("table t")),
            ("explain execute p", None),
            ("explained select 1", None),
        ] {
            assert_eq!(explained(text), query, "{text}");
        }
    }
}
