//! The lists of known functions held against PostgreSQL 14 to 18 and against the extensions they name.
//!
//! Invariant: an entry that no version needs fails, and so does a volatile function of the server's own
//! that is admitted without one.

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use fedgate::guard::{Context, Mode, Step, judge};
use fedgate::ids::SourceName;
use fedgate::sql::Limits;
use fedgate::sql::catalogue::{Catalogue, STOCK_VERSIONS};
use fedgate::sql::known::{self, Entry, Known};
use fedgate::upstream::catalogue;
use support::{Options, Postgres};

const PATIENCE: Duration = Duration::from_secs(120);

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("the server answers in time")
}

fn fits(entry: &str, name: &str) -> bool {
    match entry.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => name == entry,
    }
}

/// Names of the functions in pg_catalog of all versions, with the letters of their volatility.
fn stock() -> BTreeMap<String, BTreeSet<String>> {
    let mut functions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (_, text) in STOCK_VERSIONS {
        for line in text.lines() {
            if let ["f", "pg_catalog", name, _, volatility, _] = line.split('\t').collect::<Vec<_>>()[..] {
                functions.entry(name.to_owned()).or_default().insert(volatility.to_owned());
            }
        }
    }
    functions
}

/// Is there a function that makes this name of this list necessary?
fn needed(list: &str, name: &str, functions: &BTreeMap<String, BTreeSet<String>>) -> bool {
    functions.iter().filter(|(function, _)| fits(name, function)).any(|(_, volatilities)| match list {
        // Without the entry it would be admitted.
        "denied" => volatilities.iter().any(|volatility| volatility != "v"),
        _ => volatilities.contains("v"),
    })
}

#[test]
fn every_entry_is_needed_by_some_version() {
    let functions = stock();
    assert!(functions.len() > 2500);
    for (list, entries) in known::entries().unwrap() {
        let mut idle = Vec::new();
        for entry in entries.iter().filter(|entry| entry.extension.is_none()) {
            idle.extend(entry.names.iter().filter(|name| !needed(list, name, &functions)));
        }
        idle.sort();
        assert!(idle.is_empty(), "{list}: {idle:?}");
    }
}

#[test]
fn volatile_functions_without_an_entry_are_refused() {
    let known = Known::embedded();
    let (limits, source) = (Limits::default(), SourceName::new("s"));
    let mut refused = 0;
    for (version, text) in STOCK_VERSIONS {
        let catalogue = Catalogue::stock(*version).unwrap();
        let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
        for line in text.lines() {
            let ["f", schema, name, _, "v", _] = line.split('\t').collect::<Vec<_>>()[..] else { continue };
            let harmless = known.harmless(schema, name, None).is_some();
            let sql = format!("SELECT {schema}.\"{name}\"(1)");
            let verdict = judge(sql.as_bytes(), &ctx);
            let admitted = matches!(verdict.steps.as_slice(), [Step::Admit(_)]);
            assert_eq!(admitted, harmless, "{version}: {sql}: {:?}", verdict.steps);
            refused += usize::from(!admitted);
        }
    }
    assert!(refused > 500, "{refused}");
}

/// Entries of extensions against those that this server has; without contrib there is none to hold.
#[tokio::test]
async fn entries_of_extensions_are_needed_by_them() {
    let server = Postgres::start(Options::default());
    let admin = server.superuser_client("postgres").await;
    let entries: Vec<(&str, Vec<Entry>)> = known::entries().unwrap().into();
    let extensions: BTreeSet<&str> = entries
        .iter()
        .flat_map(|(_, entries)| entries.iter().filter_map(|entry| entry.extension.as_deref()))
        .collect();
    let mut held = Vec::new();
    for extension in extensions {
        let there = "SELECT FROM pg_available_extensions WHERE name = $1";
        if within(admin.query_opt(there, &[&extension])).await.unwrap().is_none() {
            println!("{extension} is not on this machine: its entries are not held");
            continue;
        }
        within(admin.batch_execute(&format!("CREATE EXTENSION \"{extension}\""))).await.unwrap();
        held.push(extension);
        let members = "SELECT p.proname::text, p.provolatile::text, l.lanname::text
                         FROM pg_extension e JOIN pg_depend d ON d.refobjid = e.oid AND d.deptype = 'e'
                         JOIN pg_proc p ON p.oid = d.objid AND d.classid = 'pg_proc'::regclass
                         JOIN pg_language l ON l.oid = p.prolang WHERE e.extname = $1";
        let rows = within(admin.query(members, &[&extension])).await.unwrap();
        let mut functions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for row in &rows {
            let (name, volatility, language): (String, String, String) = (row.get(0), row.get(1), row.get(2));
            // What is not in C could be replaced by the extension's owner.
            if language == "c" {
                functions.entry(name).or_default().insert(volatility);
            }
        }
        for (list, entries) in &entries {
            for entry in entries.iter().filter(|entry| entry.extension.as_deref() == Some(extension)) {
                for name in &entry.names {
                    assert!(needed(list, name, &functions), "{list}: {extension}.{name}");
                }
            }
        }
    }
    let catalogue = within(catalogue::load(&admin)).await.unwrap();
    let (limits, source) = (Limits::default(), SourceName::new("s"));
    let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
    for (extension, sql, admitted) in [
        ("pg_stat_statements", "SELECT query FROM pg_stat_statements", true),
        ("pg_stat_statements", "SELECT pg_stat_statements_reset()", false),
        ("pg_buffercache", "SELECT count(*) FROM pg_buffercache", true),
        ("pgcrypto", "SELECT gen_salt('bf')", true),
        ("uuid-ossp", "SELECT uuid_generate_v4()", true),
        ("tablefunc", "SELECT * FROM crosstab('SELECT 1') AS x(a int)", false),
        ("dblink", "SELECT dblink_exec('x')", false),
        ("xml2", "SELECT * FROM xpath_table('a', 'b', 'c', 'd', 'e') AS t(a int)", false),
    ] {
        if held.contains(&extension) {
            let verdict = judge(sql.as_bytes(), &ctx);
            assert_eq!(
                matches!(verdict.steps.as_slice(), [Step::Admit(_)]),
                admitted,
                "{sql}: {:?}",
                verdict.steps
            );
        }
    }
}
