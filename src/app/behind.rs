//! What stands behind names at a source and its owner should know of: functions that are not what they are
//! marked as, relations that the gateway refuses, tables whose rows come from elsewhere.
//!
//! Invariant: it reads catalogs and runs nothing of the source's; every list it gives is bounded.

use std::collections::HashMap;
use std::time::Duration;

use tokio_postgres::Client;

use crate::sql::Limits;
use crate::sql::catalogue::graph::{self, Oid};
use crate::sql::catalogue::nodes::references;
use crate::sql::catalogue::{Catalogue, queries};
use crate::sql::lexer::{self, Kind, Token};
use crate::upstream::catalogue::{LoadError, Loader};

/// For all questions together.
const TIME_LIMIT: Duration = Duration::from_secs(60);
/// How many remarks of one kind are given in full.
const MOST: usize = 20;

/// Functions that are called because they are not volatile, and whose bodies can be looked at.
const BODIES: &str = "
SELECT p.oid, pg_catalog.format('%I.%I', n.nspname, p.proname), p.provolatile::text, p.prosrc,
       p.prosqlbody::text, p.prosecdef,
       (SELECT pg_catalog.max(c.setting) FROM pg_catalog.unnest(p.proconfig) AS c (setting)
         WHERE c.setting ^@ 'search_path=')
  FROM pg_catalog.pg_proc p
  JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  JOIN pg_catalog.pg_language l ON l.oid = p.prolang
 WHERE p.oid >= 16384 AND p.provolatile <> 'v' AND p.prokind IN ('f', 'w') AND l.lanname NOT IN ('c', 'internal')
 ORDER BY 2, 1";

const FOREIGN: &str = "
SELECT pg_catalog.format('%I.%I', n.nspname, c.relname), s.srvname::text, w.fdwname::text
  FROM pg_catalog.pg_foreign_table f
  JOIN pg_catalog.pg_class c ON c.oid = f.ftrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_catalog.pg_foreign_server s ON s.oid = f.ftserver
  JOIN pg_catalog.pg_foreign_data_wrapper w ON w.oid = s.srvfdw
 ORDER BY 1";

const AT_LOGIN: &str = "
SELECT t.evtname::text, t.evtfoid::pg_catalog.regprocedure::text FROM pg_catalog.pg_event_trigger t
 WHERE t.evtevent = 'login' AND t.evtenabled <> 'D' ORDER BY 1";

/// Why it could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum BehindError {
    #[error("the source did not answer within {} seconds", TIME_LIMIT.as_secs())]
    Timeout,
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Query(#[from] tokio_postgres::Error),
}

/// Remarks on what stands behind names, as sentences.
pub async fn audit(client: &Client) -> Result<Vec<String>, BehindError> {
    tokio::time::timeout(TIME_LIMIT, ask(client)).await.map_err(|_| BehindError::Timeout)?
}

async fn ask(client: &Client) -> Result<Vec<String>, BehindError> {
    let rows = Loader::default().rows(client).await?.unwrap_or_default();
    let calls = graph::calls(&rows);
    let catalogue = graph::judge(&rows).build();
    client.batch_execute(queries::BEGIN).await?;
    let mut remarks = Vec::new();

    let mut liars = Vec::new();
    let mut definers = Vec::new();
    for row in client.query(BODIES, &[]).await? {
        let (oid, name): (Oid, String) = (row.try_get(0)?, row.try_get(1)?);
        let mark = if row.try_get::<_, &str>(2)? == "i" { "IMMUTABLE" } else { "STABLE" };
        // What is refused harms nobody.
        if calls.contains_key(&oid) {
            continue;
        }
        let found = match row.try_get::<_, Option<&str>>(4)? {
            Some(body) => stored(body, &rows, &calls),
            None => written(row.try_get(3)?, &catalogue),
        };
        if let Some(found) = found {
            liars.push(format!(
                "{name} is marked {mark}, but {found}: the gateway trusts the mark; if it writes, ALTER FUNCTION … VOLATILE"
            ));
        }
        if row.try_get(5)? {
            let path: Option<&str> = row.try_get(6)?;
            match path {
                Some(path) if path.trim_end().trim_end_matches(['"', '\'']).ends_with("pg_temp") => {}
                Some(_) => definers.push(format!(
                    "{name} is SECURITY DEFINER and its search_path does not end in pg_temp: temporary objects go first; ALTER FUNCTION … SET search_path = …, pg_temp"
                )),
                None => definers.push(format!(
                    "{name} is SECURITY DEFINER without a search_path of its own: it looks names up where its caller says; ALTER FUNCTION … SET search_path = …, pg_temp"
                )),
            }
        }
    }
    bounded(&mut remarks, liars);
    bounded(&mut remarks, definers);
    let refused = catalogue.refused_relations();
    bounded(
        &mut remarks,
        refused.map(|(name, why)| format!("{name} is refused by the gateway. {why}")).collect(),
    );
    let mut foreign = Vec::new();
    for row in client.query(FOREIGN, &[]).await? {
        let (name, server, wrapper): (String, String, String) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        foreign.push(format!(
            "{name} is a foreign table of server {server} ({wrapper}): what reading it does there is outside of the gateway's sight"
        ));
    }
    bounded(&mut remarks, foreign);
    let mut at_login = Vec::new();
    for row in client.query(AT_LOGIN, &[]).await? {
        let (name, function): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        at_login.push(format!("the event trigger {name} runs {function} at each login, those of the gateway's own sessions among them"));
    }
    bounded(&mut remarks, at_login);
    client.batch_execute("COMMIT").await?;
    Ok(remarks)
}

fn bounded(remarks: &mut Vec<String>, mut more: Vec<String>) {
    let all = more.len();
    more.sort();
    more.truncate(MOST);
    remarks.append(&mut more);
    if all > MOST {
        remarks.push(format!("… and {} more of that kind", all - MOST));
    }
}

/// What the body of a function in SQL's standard form does, from its tree and so exactly.
fn stored(body: &str, rows: &graph::Rows, calls: &HashMap<Oid, String>) -> Option<String> {
    let writes = body.split(":commandType ").skip(1).any(|rest| !rest.starts_with("1 "));
    if writes {
        return Some("its body holds a statement other than a query".to_owned());
    }
    let references = references(body);
    if references.draws {
        return Some("its body draws from a sequence".to_owned());
    }
    let operators = rows.operators.iter().filter(|row| references.operators.contains(&row.oid));
    let functions = references.functions.iter().copied().chain(operators.map(|row| row.function));
    functions.into_iter().find_map(|oid| {
        let why = calls.get(&oid)?;
        let row = rows.functions.iter().find(|row| row.oid == oid)?;
        Some(format!("its body calls {}.{} ({why})", row.schema, row.name))
    })
}

/// Key words that begin a statement which is no read, where one can begin.
const COMMANDS: &[&str] = &[
    "insert", "update", "delete", "merge", "truncate", "notify", "listen", "create", "drop", "alter",
    "grant", "revoke", "copy", "call", "lock", "vacuum", "refresh", "reindex", "comment", "set", "reset",
    "execute",
];
/// What a statement can stand behind.
const BEFORE: &[&str] = &["begin", "then", "else", "loop", "do", "as", "query", "declare"];

/// What the text of a body shows: names and key words, whatever the language. A look, not a proof.
fn written(body: &str, catalogue: &Catalogue) -> Option<String> {
    let tokens = match lexer::tokens(body, &Limits::default()) {
        Ok(tokens) => tokens,
        Err(_) => return Some("its body could not be looked at".to_owned()),
    };
    let begins = |at: usize| match at.checked_sub(1).and_then(|at| tokens.get(at)) {
        None => true,
        Some(before) => {
            matches!(before.kind, Kind::Semicolon | Kind::LeftParen)
                || BEFORE.iter().any(|word| before.is(word))
        }
    };
    tokens.iter().enumerate().find_map(|(at, token)| {
        if let Some(word) = COMMANDS.iter().find(|word| token.is(word))
            && begins(at)
        {
            return Some(format!("its body has {} in it", word.to_uppercase()));
        }
        called(&tokens, at, catalogue)
    })
}

fn called(tokens: &[Token<'_>], at: usize, catalogue: &Catalogue) -> Option<String> {
    let token = tokens.get(at)?;
    if !matches!(token.kind, Kind::Word(_) | Kind::Quoted) || tokens.get(at + 1)?.kind != Kind::LeftParen {
        return None;
    }
    let behind = |back: usize| at.checked_sub(back).and_then(|at| tokens.get(at));
    let schema = behind(1).filter(|dot| dot.kind == Kind::Dot).and_then(|_| behind(2));
    let function = catalogue.functions(&token.text).iter().find(|function| {
        function.harm.is_some() && schema.is_none_or(|schema| schema.text == *function.schema)
    })?;
    let reason = function.why.as_deref().or(function.harm.as_ref().map(|harm| harm.reason()))?;
    Some(format!("its body names {}.{} ({reason})", function.schema, token.text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_shows_what_it_does() {
        let catalogue = Catalogue::stock(15).unwrap();
        for (body, shows) in [
            ("SELECT lower($1)", false),
            ("BEGIN RETURN (SELECT count(*) FROM t FOR UPDATE); END", false),
            ("INSERT INTO log VALUES (1); SELECT 1", true),
            ("BEGIN UPDATE t SET a = 1; RETURN 1; END", true),
            ("BEGIN IF a THEN DELETE FROM t; END IF; END", true),
            ("WITH x AS (DELETE FROM t RETURNING *) SELECT 1 FROM x", true),
            ("BEGIN PERFORM pg_notify('a', 'b'); END", true),
            ("SELECT nextval('s')", true),
            ("BEGIN EXECUTE 'x'; END", true),
            ("SELECT 'INSERT INTO t'", false),
            ("BEGIN /* nextval(x) */ RETURN random(); END", false),
            ("'", true),
        ] {
            assert_eq!(written(body, &catalogue).is_some(), shows, "{body}");
        }
    }
}
