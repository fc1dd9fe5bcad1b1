//! Cases of the guard as tables: `tests/guard/*.yaml`, each a list of `note / sql / want / class`.
//!
//! Invariant: a case says what a reader must know: what was sent, whether it may pass, and why not.

use std::path::Path;

use fedgate::guard::{Context, Mode, Step, Verdict, judge};
use fedgate::ids::{RefusalClass, SourceName, StatementClass};
use fedgate::sql::Limits;
use fedgate::sql::catalogue::{
    Builder, Catalogue, FunctionKind, FunctionRow, OperatorRow, RelationRow, TypeRow, Volatility,
};

/// One line of a table.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    #[serde(default)]
    note: String,
    /// The command of the reference that it is a case of; `commands.yaml` alone says so.
    #[serde(default)]
    command: Option<String>,
    sql: String,
    want: Want,
    /// Of the last step: a refusal's class, or an admitted statement's.
    #[serde(default)]
    class: Option<String>,
    /// Of the refusal; a part of it suffices.
    #[serde(default)]
    message: Option<String>,
    #[serde(default)]
    mode: WantMode,
    /// Major version of the stock catalogue; 15 unless said.
    #[serde(default)]
    pg: Option<u32>,
    /// Why it is refused although PostgreSQL reads it, and it reads only.
    #[serde(default)]
    although: Option<String>,
    /// Steps that are admitted before the last one.
    #[serde(default)]
    steps: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
enum Want {
    Admit,
    Refuse,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
enum WantMode {
    #[default]
    ReadOnly,
    ReadWrite,
}

/// A stock server with what a customer may have added: see the comment of each row.
fn customer(version: u32) -> Catalogue {
    let mut builder: Builder = Catalogue::stock_rows(version).unwrap();
    let function = |name: &str, kind, volatility, one_argument| FunctionRow {
        schema: "public".to_owned(),
        name: name.to_owned(),
        kind,
        volatility,
        one_argument,
    };
    use FunctionKind::{Aggregate, Function, Procedure};
    use Volatility::{Immutable, Stable, Volatile};
    for (name, kind, volatility, one_argument) in [
        // harmless: PostGIS, pgvector and somebody's own
        ("st_asbinary", Function, Immutable, true),
        ("st_geomfromwkb", Function, Immutable, true),
        ("risk_of", Function, Stable, true),
        // harmful
        ("log_visit", Function, Volatile, true),
        ("touch", Function, Volatile, false),
        ("relevé", Function, Volatile, true),
        ("archive", Procedure, Volatile, true),
        ("tally", Aggregate, Volatile, true),
        ("crosstab", Function, Stable, true),
        ("dblink", Function, Volatile, true),
        ("dblink_exec", Function, Volatile, true),
        // one harmless and one harmful of the same name
        ("score", Function, Immutable, true),
        ("score", Function, Volatile, false),
        ("pg_an_identifier_of_more_than_sixty_three_bytes_that_is_cut_here", Function, Volatile, true),
    ] {
        builder.function(function(name.get(..name.len().min(63)).unwrap(), kind, volatility, one_argument));
    }
    for (symbol, name, volatility) in [
        ("<->", "distance", Immutable),
        ("<=>", "cosine_distance", Immutable),
        ("===>", "log_visit", Volatile),
    ] {
        builder.operator(OperatorRow {
            symbol: symbol.to_owned(),
            function_schema: "public".to_owned(),
            function: name.to_owned(),
            volatility,
        });
    }
    for (schema, name) in [("public", "noisy_view"), ("pg_temp_7", "noisy_temp")] {
        builder.relation(RelationRow {
            schema: schema.to_owned(),
            name: name.to_owned(),
            why: Some(
                "It may run the function public.log_visit: it is volatile, so it may write.".to_owned(),
            ),
            domain: None,
            carries: 0,
        });
    }
    for (oid, name, parts, volatile_function, check) in [
        (20_001, "mood", vec![], None, None),
        (20_002, "geometry", vec![], None, None),
        (20_003, "customers", vec![20_005], None, None),
        (20_004, "email", vec![], None, Some("CHECK ((VALUE ~ '@'::text))")),
        (20_005, "audited", vec![], None, Some("CHECK (public.log_visit(VALUE))")),
        (20_006, "_audited", vec![20_005], None, None),
        (20_007, "noisy", vec![], Some("noisy_in"), None),
        // a table that is called as a function is
        (20_008, "log_visit", vec![], None, None),
    ] {
        builder.r#type(TypeRow {
            oid,
            schema: "public".to_owned(),
            name: name.to_owned(),
            parts,
            volatile_function: volatile_function.map(str::to_owned),
            checks: check.map(str::to_owned).into_iter().collect(),
        });
    }
    builder.build()
}

fn class_of_refusal(name: &str) -> Option<RefusalClass> {
    RefusalClass::ALL.into_iter().find(|class| class.as_str() == name)
}

fn class_of_statement(name: &str) -> Option<StatementClass> {
    use StatementClass::{Empty, Read, Session, Transaction, Write};
    [Read, Transaction, Session, Write, Empty].into_iter().find(|class| class.as_str() == name)
}

/// What is wrong with the verdict, if anything.
fn disagreement(case: &Case, verdict: &Verdict) -> Option<String> {
    let last = verdict.steps.last();
    match (case.want, last) {
        (Want::Admit, Some(Step::Refuse(refusal))) => {
            return Some(format!("refused: {} ({})", refusal.message, refusal.class.as_str()));
        }
        (Want::Refuse, None | Some(Step::Admit(_))) => return Some("admitted".to_owned()),
        (Want::Admit, None) if case.class.as_deref() != Some("empty") => {
            return Some("no statement".to_owned());
        }
        _ => {}
    }
    match last {
        Some(Step::Refuse(refusal)) => {
            let Some(class) = case.class.as_deref() else {
                return Some("the case names no class".to_owned());
            };
            // A harmful thing in a form that the parser may learn to read is either.
            if !class.split('|').any(|class| class_of_refusal(class) == Some(refusal.class)) {
                return Some(format!("class {} ({})", refusal.class.as_str(), refusal.message));
            }
            if let Some(message) = &case.message
                && !refusal.message.contains(message.as_str())
            {
                return Some(format!("message: {}", refusal.message));
            }
        }
        Some(Step::Admit(admitted)) => {
            if let Some(class) = case.class.as_deref()
                && class_of_statement(class) != Some(admitted.class)
            {
                return Some(format!("class {}", admitted.class.as_str()));
            }
        }
        None => {}
    }
    match case.steps {
        Some(steps) if verdict.steps.len() != steps => Some(format!("{} steps", verdict.steps.len())),
        _ => None,
    }
}

fn tables() -> Vec<(String, Vec<Case>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guard");
    let mut tables: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .map(|path| {
            let text = std::fs::read_to_string(&path).unwrap();
            let cases =
                serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path.file_name().unwrap().to_string_lossy().into_owned(), cases)
        })
        .collect();
    tables.sort_by(|left, right| left.0.cmp(&right.0));
    tables
}

/// The SQL commands of PostgreSQL 18's reference, by the names of its pages.
const COMMANDS: &[&str] = &[
    "ABORT",
    "ALTER AGGREGATE",
    "ALTER COLLATION",
    "ALTER CONVERSION",
    "ALTER DATABASE",
    "ALTER DEFAULT PRIVILEGES",
    "ALTER DOMAIN",
    "ALTER EVENT TRIGGER",
    "ALTER EXTENSION",
    "ALTER FOREIGN DATA WRAPPER",
    "ALTER FOREIGN TABLE",
    "ALTER FUNCTION",
    "ALTER GROUP",
    "ALTER INDEX",
    "ALTER LANGUAGE",
    "ALTER LARGE OBJECT",
    "ALTER MATERIALIZED VIEW",
    "ALTER OPERATOR",
    "ALTER OPERATOR CLASS",
    "ALTER OPERATOR FAMILY",
    "ALTER POLICY",
    "ALTER PROCEDURE",
    "ALTER PUBLICATION",
    "ALTER ROLE",
    "ALTER ROUTINE",
    "ALTER RULE",
    "ALTER SCHEMA",
    "ALTER SEQUENCE",
    "ALTER SERVER",
    "ALTER STATISTICS",
    "ALTER SUBSCRIPTION",
    "ALTER SYSTEM",
    "ALTER TABLE",
    "ALTER TABLESPACE",
    "ALTER TEXT SEARCH CONFIGURATION",
    "ALTER TEXT SEARCH DICTIONARY",
    "ALTER TEXT SEARCH PARSER",
    "ALTER TEXT SEARCH TEMPLATE",
    "ALTER TRIGGER",
    "ALTER TYPE",
    "ALTER USER",
    "ALTER USER MAPPING",
    "ALTER VIEW",
    "ANALYZE",
    "BEGIN",
    "CALL",
    "CHECKPOINT",
    "CLOSE",
    "CLUSTER",
    "COMMENT",
    "COMMIT",
    "COMMIT PREPARED",
    "COPY",
    "CREATE ACCESS METHOD",
    "CREATE AGGREGATE",
    "CREATE CAST",
    "CREATE COLLATION",
    "CREATE CONVERSION",
    "CREATE DATABASE",
    "CREATE DOMAIN",
    "CREATE EVENT TRIGGER",
    "CREATE EXTENSION",
    "CREATE FOREIGN DATA WRAPPER",
    "CREATE FOREIGN TABLE",
    "CREATE FUNCTION",
    "CREATE GROUP",
    "CREATE INDEX",
    "CREATE LANGUAGE",
    "CREATE MATERIALIZED VIEW",
    "CREATE OPERATOR",
    "CREATE OPERATOR CLASS",
    "CREATE OPERATOR FAMILY",
    "CREATE POLICY",
    "CREATE PROCEDURE",
    "CREATE PUBLICATION",
    "CREATE ROLE",
    "CREATE RULE",
    "CREATE SCHEMA",
    "CREATE SEQUENCE",
    "CREATE SERVER",
    "CREATE STATISTICS",
    "CREATE SUBSCRIPTION",
    "CREATE TABLE",
    "CREATE TABLE AS",
    "CREATE TABLESPACE",
    "CREATE TEXT SEARCH CONFIGURATION",
    "CREATE TEXT SEARCH DICTIONARY",
    "CREATE TEXT SEARCH PARSER",
    "CREATE TEXT SEARCH TEMPLATE",
    "CREATE TRANSFORM",
    "CREATE TRIGGER",
    "CREATE TYPE",
    "CREATE USER",
    "CREATE USER MAPPING",
    "CREATE VIEW",
    "DEALLOCATE",
    "DECLARE",
    "DELETE",
    "DISCARD",
    "DO",
    "DROP ACCESS METHOD",
    "DROP AGGREGATE",
    "DROP CAST",
    "DROP COLLATION",
    "DROP CONVERSION",
    "DROP DATABASE",
    "DROP DOMAIN",
    "DROP EVENT TRIGGER",
    "DROP EXTENSION",
    "DROP FOREIGN DATA WRAPPER",
    "DROP FOREIGN TABLE",
    "DROP FUNCTION",
    "DROP GROUP",
    "DROP INDEX",
    "DROP LANGUAGE",
    "DROP MATERIALIZED VIEW",
    "DROP OPERATOR",
    "DROP OPERATOR CLASS",
    "DROP OPERATOR FAMILY",
    "DROP OWNED",
    "DROP POLICY",
    "DROP PROCEDURE",
    "DROP PUBLICATION",
    "DROP ROLE",
    "DROP ROUTINE",
    "DROP RULE",
    "DROP SCHEMA",
    "DROP SEQUENCE",
    "DROP SERVER",
    "DROP STATISTICS",
    "DROP SUBSCRIPTION",
    "DROP TABLE",
    "DROP TABLESPACE",
    "DROP TEXT SEARCH CONFIGURATION",
    "DROP TEXT SEARCH DICTIONARY",
    "DROP TEXT SEARCH PARSER",
    "DROP TEXT SEARCH TEMPLATE",
    "DROP TRANSFORM",
    "DROP TRIGGER",
    "DROP TYPE",
    "DROP USER",
    "DROP USER MAPPING",
    "DROP VIEW",
    "END",
    "EXECUTE",
    "EXPLAIN",
    "FETCH",
    "GRANT",
    "IMPORT FOREIGN SCHEMA",
    "INSERT",
    "LISTEN",
    "LOAD",
    "LOCK",
    "MERGE",
    "MOVE",
    "NOTIFY",
    "PREPARE",
    "PREPARE TRANSACTION",
    "REASSIGN OWNED",
    "REFRESH MATERIALIZED VIEW",
    "REINDEX",
    "RELEASE SAVEPOINT",
    "RESET",
    "REVOKE",
    "ROLLBACK",
    "ROLLBACK PREPARED",
    "ROLLBACK TO SAVEPOINT",
    "SAVEPOINT",
    "SECURITY LABEL",
    "SELECT",
    "SELECT INTO",
    "SET",
    "SET CONSTRAINTS",
    "SET ROLE",
    "SET SESSION AUTHORIZATION",
    "SET TRANSACTION",
    "SHOW",
    "START TRANSACTION",
    "TRUNCATE",
    "UNLISTEN",
    "UPDATE",
    "VACUUM",
    "VALUES",
];

#[test]
fn each_command_of_the_reference_has_a_case() {
    let mut without: Vec<&str> = COMMANDS.to_vec();
    let mut unknown = Vec::new();
    for (file, cases) in tables() {
        for case in cases {
            let Some(command) = case.command else {
                assert_ne!(file, "commands.yaml", "{}: which command?", case.sql);
                continue;
            };
            if !COMMANDS.contains(&command.as_str()) {
                unknown.push(command.clone());
            }
            without.retain(|known| *known != command);
        }
    }
    assert!(COMMANDS.len() > 180 && COMMANDS.is_sorted(), "the list is short or not in order");
    assert!(without.is_empty(), "no case for {without:?}");
    assert!(unknown.is_empty(), "no such command: {unknown:?}");
}

#[test]
fn cases() {
    let source = SourceName::new("climscore");
    let limits = Limits::default();
    let catalogues: Vec<(u32, Catalogue)> =
        [14, 15, 16, 17, 18].into_iter().map(|version| (version, customer(version))).collect();
    let (mut total, mut wrong) = (0, Vec::new());
    for (file, cases) in tables() {
        for case in cases {
            total += 1;
            let version = case.pg.unwrap_or(15);
            let (_, catalogue) = catalogues.iter().find(|(known, _)| *known == version).unwrap();
            let mode = match case.mode {
                WantMode::ReadOnly => Mode::ReadOnly,
                WantMode::ReadWrite => Mode::ReadWrite,
            };
            let ctx = Context { catalogue, mode, limits: &limits, source: &source };
            let verdict = judge(case.sql.as_bytes(), &ctx);
            assert!(case.although.is_none() || case.want == Want::Refuse, "{}: although what?", case.sql);
            if let Some(what) = disagreement(&case, &verdict) {
                wrong.push(format!("{file}: {}\n    {}\n    {what}", case.note, case.sql));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {total} cases:\n{}", wrong.len(), wrong.join("\n"));
    assert!(total >= 1_500, "only {total} cases were found");
}
