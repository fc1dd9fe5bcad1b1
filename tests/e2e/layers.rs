//! OPA, the gateway and the role at the source: each of them alone keeps an admin of Trino from every write of
//! `writes.yaml`, while the other two let it pass.
//!
//! Invariant: where no layer stands in the way each of these writes succeeds, so that a refusal is the layer's. What
//! reached the source is read from the source's log, and what it did from its fingerprint.

use serde_json::json;

use super::house::{House, OPA_TOKEN, Shape, Source};
use super::kit::{MARK, foreign};
use super::support::{Options, Postgres, READER_PASSWORD};
use super::trino::Failed;

/// OPA alone: the gateway and the role at the source are open.
const OPA: Source = Source { name: "behind_opa", superuser: true, opened: true };
/// The gateway alone: OPA has never heard of the catalog, and other catalogs are anybody's.
const GATEWAY: Source = Source { name: "behind_gateway", superuser: true, opened: false };
/// The same, and OPA lets the admin write as the document's list says.
const LISTED: Source = Source { name: "listed", superuser: true, opened: false };
/// The role alone: it may SELECT.
const ROLE: Source = Source { name: "behind_role", superuser: false, opened: true };
/// Nothing.
const NOTHING: Source = Source { name: "unguarded", superuser: true, opened: true };

const OBJECTS: &str = "
CREATE SCHEMA public;
CREATE SCHEMA emptied;
CREATE TABLE public.kept (id integer PRIMARY KEY, body text NOT NULL);
INSERT INTO public.kept VALUES (1, 'one'), (2, 'two'), (3, 'three');
CREATE VIEW public.seen AS SELECT 1 AS id;
CREATE MATERIALIZED VIEW public.settled AS SELECT 1 AS n;
CREATE SEQUENCE public.ticket;
CREATE FUNCTION public.store(text) RETURNS integer LANGUAGE sql VOLATILE
    AS 'INSERT INTO public.kept VALUES (99, $1) RETURNING id';
CREATE PROCEDURE public.clear() LANGUAGE sql AS 'DELETE FROM public.kept';
GRANT USAGE ON SCHEMA public, emptied TO akko_readonly;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO akko_readonly;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA public TO akko_readonly;
ANALYZE;
";

/// All that a write may have left.
const CLEAR: &str = "
DO $$
DECLARE found name;
BEGIN
    FOR found IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' LOOP
        EXECUTE format('DROP SCHEMA %I CASCADE', found);
    END LOOP;
END
$$;
";

#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    operation: String,
    sql: String,
    #[serde(default)]
    raw: bool,
    #[serde(default)]
    opa: Option<String>,
    #[serde(default)]
    trino: Option<String>,
    #[serde(default)]
    source: Option<String>,
}

impl Case {
    /// Is that what happens with a layer open or not there at all, which says `otherwise` of what reaches it?
    fn passes(&self, outcome: &Outcome, otherwise: impl FnOnce(&Outcome) -> bool) -> bool {
        match (&self.trino, &self.source) {
            (Some(name), _) => outcome.named(name) && outcome.arrived.is_empty(),
            (None, Some(text)) => outcome.says(text) && !outcome.arrived.is_empty(),
            (None, None) => otherwise(outcome) && !outcome.arrived.is_empty(),
        }
    }
}

fn cases() -> Vec<Case> {
    let text = include_str!("writes.yaml");
    serde_yaml_ng::from_str(text).unwrap()
}

fn document() -> String {
    let scope = |catalog: &str| json!([{"catalog": catalog, "schema": "*", "table": "*"}]);
    let mask =
        json!({"catalog": OPA.name, "schema": "public", "table": "kept", "column": "body", "mask": "redact"});
    let json = json!({
        "version": 1,
        "mask_library": {"redact": {"strength": 80}},
        "sources": {
            OPA.name: {"catalog": OPA.name, "read_only": true},
            LISTED.name: {"catalog": LISTED.name, "read_only": true, "write_allow_list": ["admin"]},
        },
        "subjects": {
            "admin": {"kind": "user", "scopes": scope("*")},
            "analyst": {"kind": "user", "scopes": scope(OPA.name), "masks": [mask]},
        },
    });
    json.to_string()
}

/// What became of one write.
struct Outcome {
    said: Result<(), Failed>,
    /// Statements at the source that are no reads, or that carry what must not arrive.
    arrived: Vec<String>,
}

impl Outcome {
    fn of(house: &House, source: Source, user: &str, case: &Case) -> Self {
        let mark = house.source.log_mark();
        let sql = case.sql.replace("{c}", source.name).replace("{m}", MARK);
        let said = house.rows(user, &sql).map(|_| ());
        let logged = house.source.statements_since(mark);
        let mut arrived = foreign(&logged);
        arrived.extend(logged.into_iter().map(|logged| logged.text).filter(|text| text.contains(MARK)));
        Self { said, arrived }
    }

    /// Trino's name of the error, or OK.
    fn named(&self, name: &str) -> bool {
        self.said.as_ref().map_or_else(|failed| failed.name == name, |()| name == "OK")
    }

    /// A part of its message, which is not the gateway's, or OK.
    fn says(&self, text: &str) -> bool {
        let says = |failed: &Failed| failed.message.contains(text) && !failed.message.contains("fedgate");
        self.said.as_ref().map_or_else(says, |()| text == "OK")
    }

    fn by_gateway(&self) -> bool {
        let speaks = |text: &str| {
            text.contains("fedgate")
                && ["in a read-only transaction", "read-write mode", "permission denied for function"]
                    .iter()
                    .any(|words| text.contains(words))
        };
        matches!(&self.said, Err(failed) if speaks(&failed.message))
    }

    fn by_role(&self) -> bool {
        self.says("permission denied") || self.says("must be owner")
    }
}

#[test]
#[ignore = "starts Trino; run it with: make e2e"]
fn each_layer_alone_keeps_every_write_out() {
    let source = Postgres::start(Options::default());
    source.execute("postgres", &format!("CREATE ROLE akko_readonly LOGIN PASSWORD '{READER_PASSWORD}'"));
    let sources = vec![OPA, GATEWAY, LISTED, ROLE, NOTHING];
    for Source { name, .. } in &sources {
        source.execute("postgres", &format!("CREATE DATABASE {name}"));
        source.execute(name, CLEAR);
        source.execute(name, OBJECTS);
    }
    let shape = Shape { sources, opa: "other_catalogs = \"allow\"".to_owned(), ..Shape::default() };
    let house = House::build(source, shape, [("policy.json", document())]);
    house.start_opa(&house.gateway, OPA_TOKEN);
    house.start_trino(true, "merge.non-transactional-merge.enabled=true\n");
    let before = house.source.fingerprint();

    let cases = cases();
    let mut faults = Vec::new();
    let mut fault = |layer: Source, case: &Case, outcome: &Outcome| {
        faults
            .push(format!("{}: {}\n    {:?}\n    {:?}", layer.name, case.sql, outcome.said, outcome.arrived));
    };
    let (mut by_gateway, mut by_role) = (0, 0);
    for case in &cases {
        let user = if case.raw { "analyst" } else { "admin" };
        let outcome = Outcome::of(&house, OPA, user, case);
        if !outcome.named(case.opa.as_deref().unwrap_or("PERMISSION_DENIED")) || !outcome.arrived.is_empty() {
            fault(OPA, case, &outcome);
        }
        let outcome = Outcome::of(&house, GATEWAY, "admin", case);
        let good = case.trino.as_ref().map_or_else(|| outcome.by_gateway(), |name| outcome.named(name));
        if !good || !outcome.arrived.is_empty() {
            fault(GATEWAY, case, &outcome);
        }
        let outcome = Outcome::of(&house, LISTED, "admin", case);
        by_gateway += usize::from(outcome.by_gateway());
        if outcome.said.is_ok() || !outcome.arrived.is_empty() {
            fault(LISTED, case, &outcome);
        }
        let outcome = Outcome::of(&house, ROLE, "admin", case);
        by_role += usize::from(outcome.by_role());
        // Some it refuses before PostgreSQL gets to its own word.
        let sooner = case.trino.is_none() && outcome.by_role() && !outcome.arrived.is_empty();
        if !sooner && !case.passes(&outcome, Outcome::by_role) {
            fault(ROLE, case, &outcome);
        }
        if case.raw {
            // Not OPA's: it is for who reads the whole catalog unmasked, and OPA does not read SQL.
            let outcome = Outcome::of(&house, OPA, "admin", case);
            if !case.passes(&outcome, |outcome| outcome.said.is_ok()) {
                fault(OPA, case, &outcome);
            }
        }
    }
    let changed = house.source.fingerprint().difference(&before);
    assert!(changed.is_empty(), "the source changed: {changed:?}");

    for case in &cases {
        let outcome = Outcome::of(&house, NOTHING, "admin", case);
        if !case.passes(&outcome, |outcome| outcome.said.is_ok()) {
            fault(NOTHING, case, &outcome);
        }
        house.source.execute(NOTHING.name, CLEAR);
        house.source.execute(NOTHING.name, OBJECTS);
    }
    assert!(faults.is_empty(), "{} faults\n{}", faults.len(), faults.join("\n"));
    // Else OPA's list lets nobody pass, and the gateway was not asked.
    assert!(by_gateway > 20, "{by_gateway}");
    let changed: Vec<String> = house.source.fingerprint().difference(&before);
    let elsewhere: Vec<&String> =
        changed.iter().filter(|part| part.contains(": ") && !part.starts_with(NOTHING.name)).collect();
    assert!(elsewhere.is_empty(), "another source changed: {elsewhere:?}");
    let operations: std::collections::BTreeSet<&str> =
        cases.iter().map(|case| case.operation.as_str()).filter(|operation| *operation != "none").collect();
    let own = cases.iter().filter(|case| case.trino.is_some()).count();
    eprintln!(
        "e2e: {} statements of {} operations that write. {own} end in Trino at such a source, the other {} reach it where \
         nothing stands in the way; OPA alone keeps all of these from an admin but raw SQL, which it keeps from who is masked; the \
         gateway alone keeps all of them, and the role {by_role}. With the admin in the document's write list the gateway refuses \
         {by_gateway} and OPA the others",
        cases.len(),
        operations.len(),
        cases.len() - own
    );
    let (_, log) = house.end();
    assert!(!log.contains("panicked"), "{log}");
}
