//! Statements, portals and cursors over a change of policy: `time.yaml`.
//!
//! Invariant: each case is open before the change and goes on after it; what the change forbids is heard of by
//! nobody at the source, whose functions tell when they run.

use std::collections::HashSet;

use serde::Deserialize;

use crate::raw::{Message, Raw, Whom};
use crate::support::{Gateway, Postgres, Setup};
use crate::{Do, Step, plan, setup, source, transcript};

/// What changes while the sessions are open.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
enum Change {
    /// `turns` is replaced by a volatile function that tells when it runs, and a volatile `public.upper(text)` appears.
    Function,
    /// The domain `checked` gets a CHECK that tells when it runs.
    Domain,
    /// The operator `@@@` is made anew over a volatile function, and so is the cast to `mood`.
    Operator,
    /// A function that nobody has named is added.
    Unrelated,
    /// The source, open for `writer`, is closed.
    Writers,
    /// `visitor` may not use the source any more.
    Access,
}

impl Change {
    const ALL: [Self; 6] =
        [Self::Function, Self::Domain, Self::Operator, Self::Unrelated, Self::Writers, Self::Access];

    fn at_the_source(self) -> Option<&'static str> {
        match self {
            Self::Function => Some(
                "CREATE OR REPLACE FUNCTION turns(int) RETURNS int LANGUAGE plpgsql VOLATILE
                     AS 'BEGIN RAISE LOG ''it ran''; RETURN $1; END';
                 CREATE FUNCTION upper(text) RETURNS text LANGUAGE plpgsql VOLATILE
                     AS 'BEGIN RAISE LOG ''it ran''; RETURN $1; END'",
            ),
            Self::Domain => Some("ALTER DOMAIN checked ADD CHECK (noisy(VALUE)) NOT VALID"),
            Self::Operator => Some(
                "DROP OPERATOR @@@ (int, int);
                 CREATE OPERATOR @@@ (LEFTARG = int, RIGHTARG = int, FUNCTION = noisy_sum);
                 CREATE CAST (int AS mood) WITH FUNCTION noisy_mood(int)",
            ),
            Self::Unrelated => Some("CREATE FUNCTION unrelated() RETURNS int LANGUAGE sql AS 'SELECT 1'"),
            Self::Writers | Self::Access => None,
        }
    }

    /// In the gateway's configuration, what stands in it and what then does.
    fn at_the_gateway(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Writers => Some(("read_only = false\nwriters = [\"writer\"]", "read_only = true")),
            Self::Access => Some(("\"visitor\", \"writer\"", "\"writer\"")),
            Self::Function | Self::Domain | Self::Operator | Self::Unrelated => None,
        }
    }

    fn make(self, source: &Postgres, gateway: &Gateway) {
        let mark = gateway.log_mark();
        if let Some(sql) = self.at_the_source() {
            source.execute("wire", sql);
            // A function that nobody knows makes the gateway look at the source again.
            let (mut raw, _) = Whom::new(gateway.address(), "writer", "", "wire").connect();
            assert_eq!(raw.query("SELECT nobody_knows(1)"), ["E 42501", "Z I"]);
            gateway.wait_for_line_after(mark, "function catalogue in force");
        }
        if let Some((before, after)) = self.at_the_gateway() {
            let config = std::fs::read_to_string(gateway.config_file()).unwrap();
            let changed = config.replace(before, after);
            assert_ne!(config, changed);
            std::fs::write(gateway.config_file(), changed).unwrap();
            gateway.signal("HUP");
            gateway.wait_for_line_after(mark, "configuration reloaded");
        }
    }
}

/// One session over one change.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    note: String,
    change: Change,
    /// Up to the change; all of it succeeds.
    before: Vec<String>,
    after: Vec<String>,
    /// Every answer to `after`.
    gateway: Vec<String>,
}

const SCHEMA: &str = "
CREATE FUNCTION turns(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1';
CREATE FUNCTION noisy(int) RETURNS boolean LANGUAGE plpgsql VOLATILE AS 'BEGIN RAISE LOG ''it ran''; RETURN true; END';
CREATE FUNCTION noisy_sum(int, int) RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN RAISE LOG ''it ran''; RETURN 1; END';
CREATE DOMAIN checked AS int CHECK (VALUE > 0);
CREATE OPERATOR @@@ (LEFTARG = int, RIGHTARG = int, FUNCTION = int4pl);
CREATE TYPE mood AS (how int);
CREATE FUNCTION noisy_mood(int) RETURNS mood LANGUAGE plpgsql VOLATILE AS 'BEGIN RAISE LOG ''it ran''; RETURN ROW($1); END';
CREATE FUNCTION opens() RETURNS refcursor LANGUAGE plpgsql STABLE AS
    'DECLARE c refcursor := ''opened''; BEGIN OPEN c FOR SELECT turns(id) FROM probe ORDER BY id; RETURN c; END';
";

/// Sends `steps` and reads what they wait for.
fn go_on(raw: &mut Raw, steps: &[String], names: &[(&str, String)]) -> Vec<Message> {
    let steps: Vec<Step> = steps
        .iter()
        .map(|step| {
            let named = names.iter().fold(step.clone(), |step, (name, value)| step.replace(name, value));
            Step::One(named)
        })
        .collect();
    let mut answers = Vec::new();
    for step in plan(&steps) {
        match step {
            Do::Send(bytes) => raw.write(&bytes),
            Do::Wait { kind, count } => answers.extend(raw.read_until(&[kind], count)),
        }
    }
    answers
}

#[test]
fn a_statement_keeps_no_verdict_of_before() {
    let cases: Vec<Case> =
        serde_yaml_ng::from_str(include_str!("time.yaml")).expect("the cases are well-formed");
    let mut notes = HashSet::new();
    assert!(cases.iter().all(|case| notes.insert(case.note.as_str())), "two cases have one note");
    for change in Change::ALL {
        let cases: Vec<&Case> = cases.iter().filter(|case| case.change == change).collect();
        assert!(!cases.is_empty(), "{change:?} has no case");
        hold(change, &cases);
    }
}

fn hold(change: Change, cases: &[&Case]) {
    let source = source();
    source.execute("wire", SCHEMA);
    let setup: Setup = match change {
        Change::Writers => setup(&source, "", "read_only = false\nwriters = [\"writer\"]"),
        _ => setup(&source, "", ""),
    };
    let gateway = Gateway::start(setup);
    let user = if change == Change::Writers { "writer" } else { "visitor" };
    let oid = |name: &str| source.value("wire", &format!("SELECT '{name}'::regtype::oid")).unwrap();
    let names = [("{checked}", oid("checked")), ("{checked[]}", oid("checked[]"))];
    let mut open = Vec::new();
    for case in cases {
        let (mut raw, _) = Whom::new(gateway.address(), user, "", "wire").connect();
        let answers = transcript(&go_on(&mut raw, &case.before, &names), Message::brief);
        let failed = answers.iter().any(|line| line.starts_with("E ") || line.starts_with("N "));
        assert!(!failed, "{}, before the change: {answers:#?}", case.note);
        open.push((case, raw));
    }
    change.make(&source, &gateway);
    let before = source.fingerprint();
    let mark = source.log_mark();
    let mut wrong = Vec::new();
    for (case, raw) in &mut open {
        let answers = transcript(&go_on(raw, &case.after, &names), Message::brief);
        if answers != case.gateway {
            wrong.push(format!("--- {}\nwanted {:#?}\nthe gateway {answers:#?}", case.note, case.gateway));
        }
    }
    assert!(wrong.is_empty(), "{change:?}: {} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    let log = source.statement_log_since(mark);
    assert!(!log.contains("it ran"), "{change:?}:\n{log}");
    // Sessions that stay open hold nothing that shows.
    open.clear();
    assert_eq!(source.fingerprint().difference(&before), Vec::<String>::new());
    // Without the change all of it would have run.
    if change == Change::Function {
        let (mut raw, _) = crate::direct(&source).connect();
        raw.ask(r#"Q "SELECT turns(1)""#);
        assert!(
            source.statement_log_since(mark).contains("it ran"),
            "the function tells nobody that it runs"
        );
    }
    let log = gateway.stop();
    assert!(!log.contains("panicked"), "{change:?}:\n{log}");
}
