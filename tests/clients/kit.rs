//! Runs a client program twice, directly and through the gateway, and holds what it saw against each other.
//!
//! Invariant: the source behind the gateway is reached as its superuser, and its log and fingerprint are looked at after
//! every run, so a statement that slipped through is seen whatever it did.

// Each test crate uses its own part of this.
#![allow(dead_code, reason = "each test crate uses its own part of this")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

use crate::support::{Gateway, Logged, Options, Postgres, SUPERUSER, SUPERUSER_PASSWORD, Setup};

/// Every statement of a client that must be refused holds this; `transcript.py` and `PgJdbc.java` say the same.
pub const MARK: &str = "fedgate_trace_marker";
/// Sent by the gateway in the place of a refused statement, so that PostgreSQL itself keeps block and pipeline.
pub const STAND_IN: &str = "SELECT NULL::pg_catalog.\"fedgate refused a statement\"";
/// Steps whose message may name another command than PostgreSQL's: it finds the write inside a DO block or a procedure only
/// when it runs, which the gateway does not do; of a statement with a data-modifying WITH it names the statement.
const COMMAND_MAY_DIFFER: &[&str] = &[
    "do block",
    "call",
    ": do",
    "data-modifying with",
    "explain analyze insert",
    "fetch count with a write",
];
/// Longest run of one client program, in seconds.
const PATIENCE: u32 = 420;
pub const USER: &str = "analyst";
pub const PASSWORD: &str = "the analyst's password";

/// What a client program printed, step by step.
#[derive(Debug)]
pub struct Transcript(pub Vec<Step>);

#[derive(Debug, Clone)]
pub struct Step {
    pub name: String,
    /// It must be refused: with this code, or with any when there is none.
    pub want: Option<Option<String>>,
    /// A read-only transaction of PostgreSQL would let it pass, so it is tried at the gateway alone.
    pub guarded: bool,
    /// All that was printed.
    pub record: Value,
}

impl Step {
    fn parse(line: &str) -> Self {
        let record: Value = serde_json::from_str(line)
            .unwrap_or_else(|e| panic!("a transcript line is not JSON ({e}): {line}"));
        let text = |key: &str| record.get(key).and_then(Value::as_str).map(str::to_owned);
        Self {
            name: text("step").unwrap_or_else(|| panic!("a transcript line names no step: {line}")),
            want: record.get("want").map(|want| want.as_str().map(str::to_owned)),
            guarded: record.get("guarded").and_then(Value::as_bool).unwrap_or(false),
            record,
        }
    }

    pub fn text(&self, key: &str) -> &str {
        self.record.get(key).and_then(Value::as_str).unwrap_or_default()
    }

    /// Code and message of a refusal, or the result of a read, in comparable form.
    fn outcome(&self) -> String {
        let keys: &[&str] =
            if self.want.is_some() { &["error", "message"] } else { &["value", "error", "message"] };
        let picked: BTreeMap<&str, &Value> =
            keys.iter().filter_map(|key| Some((*key, self.record.get(*key)?))).collect();
        let text = serde_json::to_string(&picked).unwrap_or_default();
        if COMMAND_MAY_DIFFER.iter().any(|name| self.name.contains(name)) {
            return without_command(&text);
        }
        text
    }
}

/// `cannot execute X in a read-only transaction` without X.
fn without_command(text: &str) -> String {
    let (before, after) = ("cannot execute ", " in a read-only transaction");
    let mut out = String::new();
    let mut rest = text;
    while let Some((head, tail)) = rest.split_once(before) {
        out.push_str(head);
        out.push_str(before);
        match tail.split_once(after) {
            Some((command, tail)) if command.len() < 40 => {
                out.push('…');
                out.push_str(after);
                rest = tail;
            }
            _ => rest = tail,
        }
    }
    out + rest
}

/// A program of `tests/clients` and what runs it.
#[derive(Clone, Debug)]
pub enum Program {
    Python(&'static str),
    /// PgJDBC's version, with underscores.
    Java(&'static str, &'static str),
}

impl Program {
    fn command(&self) -> Vec<OsString> {
        match self {
            Program::Python(name) => {
                vec![part("python", "FEDGATE_PYTHON").into(), "-B".into(), folder().join(name).into()]
            }
            Program::Java(version, name) => {
                let jdk = PathBuf::from(part("jdbc", "FEDGATE_JDK"));
                let jar = part("jdbc", &format!("FEDGATE_PGJDBC_{version}"));
                vec![jdk.join("bin/java").into(), "-cp".into(), jar.into(), folder().join(name).into()]
            }
        }
    }
}

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// One value that `scripts/setup-clients` prints; it fetches what is missing.
pub fn part(kind: &'static str, key: &str) -> String {
    static PYTHON: OnceLock<BTreeMap<String, String>> = OnceLock::new();
    static JDBC: OnceLock<BTreeMap<String, String>> = OnceLock::new();
    static TRINO: OnceLock<BTreeMap<String, String>> = OnceLock::new();
    let known = match kind {
        "python" => &PYTHON,
        "jdbc" => &JDBC,
        _ => &TRINO,
    };
    let values = known.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/setup-clients");
        let run = Command::new(&script)
            .arg(kind)
            .stderr(Stdio::inherit())
            .output()
            .unwrap_or_else(|e| panic!("cannot run {}: {e}", script.display()));
        assert!(run.status.success(), "scripts/setup-clients {kind} failed; what it said stands above");
        let printed = String::from_utf8_lossy(&run.stdout);
        printed
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    });
    values.get(key).unwrap_or_else(|| panic!("scripts/setup-clients {kind} does not print {key}")).clone()
}

/// Where a client connects.
#[derive(Clone, Copy, Debug)]
pub struct Endpoint<'a> {
    pub host: &'a str,
    pub port: u16,
    pub user: &'a str,
    pub password: &'a str,
}

/// The program as it is run, but for what a whole run needs besides.
pub fn command(program: &Program, endpoint: Endpoint<'_>) -> Command {
    let mut command = Command::new("timeout");
    command
        .args(["-k", "15", &PATIENCE.to_string()])
        .args(program.command())
        .env("PGHOST", endpoint.host)
        .env("PGPORT", endpoint.port.to_string())
        .env("PGUSER", endpoint.user)
        .env("PGPASSWORD", endpoint.password)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null());
    command
}

/// Runs the program to its end and gives what it printed.
pub fn run(program: &Program, target: &str, endpoint: Endpoint<'_>, more: &[(&str, String)]) -> Transcript {
    let scratch = tempfile::tempdir().expect("a folder is made");
    let mut command = Command::new("timeout");
    command
        .args(["-k", "15", &PATIENCE.to_string()])
        .args(program.command())
        .current_dir(scratch.path())
        .env("PGHOST", endpoint.host)
        .env("PGPORT", endpoint.port.to_string())
        .env("PGUSER", endpoint.user)
        .env("PGPASSWORD", endpoint.password)
        .env("PGDATABASE", "climscore")
        .env("FEDGATE_TARGET", target)
        .env("FEDGATE_PART", "all")
        .env("FEDGATE_TEMP", scratch.path())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .envs(more.iter().map(|(key, value)| (key, value)))
        .stdin(Stdio::null());
    let run = command.output().unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    let printed = String::from_utf8_lossy(&run.stdout);
    let complaints = String::from_utf8_lossy(&run.stderr);
    assert!(
        run.status.success(),
        "{program:?} against {target} ended with {}:\n{}\n{complaints}",
        run.status,
        tail(&printed, 2000)
    );
    eprint!("{complaints}");
    Transcript(printed.lines().map(Step::parse).collect())
}

fn tail(text: &str, bytes: usize) -> &str {
    let mut from = text.len().saturating_sub(bytes);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

/// A source with climscore and one object of every kind.
pub fn source() -> Postgres {
    let source = Postgres::climscore(Options::default());
    let objects = std::fs::read_to_string(folder().join("objects.sql")).expect("objects.sql is there");
    source.execute("climscore", &objects);
    source
}

/// Where a client of [`gateway`] connects.
pub fn behind(gateway: &Gateway) -> Endpoint<'static> {
    Endpoint { host: "127.0.0.1", port: gateway.port(), user: USER, password: PASSWORD }
}

/// In both modes; in transactions with fewer sessions than some clients have connections.
pub const POOLS: [&str; 2] = [
    "pool = { mode = \"session\", size = 50, min_idle = 1 }",
    "pool = { mode = \"transaction\", size = 4, min_idle = 1 }",
];

/// A gateway that asks for SCRAM and reaches the source as its superuser.
pub fn gateway(source: &Postgres, listen: &str, pool: &str) -> Gateway {
    Gateway::start(setup(source, listen, "", pool))
}

/// Its configuration; `more` stands before the sources.
pub fn setup(source: &Postgres, listen: &str, more: &str, pool: &str) -> Setup {
    let toml = format!(
        r#"
[gateway]
listen = ["{listen}"]
drain_timeout = "5s"
[gateway.auth]
method = "scram"
users_file = "{{dir}}/users.txt"
{more}

[log]
format = "json"

[[source]]
name = "climscore"
hosts = ["{}"]
database = "climscore"
user = "{SUPERUSER}"
password_file = "{{dir}}/source-password"
tls = "disable"
access = [{{ users = ["{USER}"], cidr = ["127.0.0.0/8"] }}]
engine = {{ users = ["{USER}"], comment = "fedgate query=$QUERY_ID user=$USER" }}
{pool}
"#,
        source.address()
    );
    Setup::new(toml).users(&[(USER, PASSWORD)]).file("source-password", SUPERUSER_PASSWORD)
}

/// What a run through the gateway left to look at.
pub struct Outcome {
    pub direct: Transcript,
    pub through: Transcript,
    /// What arrived at the source while the client ran behind the gateway.
    pub arrived: Vec<Logged>,
    pub gateway_log: String,
}

/// Runs the program directly and behind the gateway, in both modes of its pools, and checks everything that holds for
/// every client. What the last run left.
pub fn check(program: &Program, listen: &str) -> Outcome {
    let source = source();
    let admin = format!(
        "host=127.0.0.1 port={} user={SUPERUSER} password='{SUPERUSER_PASSWORD}' dbname=climscore",
        source.port()
    );
    let more = |kind: &str| {
        let mut more = vec![("FEDGATE_SOURCE", admin.clone())];
        if kind == "trino" {
            more.push(("FEDGATE_TRINO_HOME", part("trino", "FEDGATE_TRINO_HOME")));
            more.push(("FEDGATE_TRINO_JDK", part("trino", "FEDGATE_TRINO_JDK")));
        }
        more
    };
    let kind = match program {
        Program::Python("run_trino.py") => "trino",
        _ => "other",
    };
    // Of the role and not of the database, since a dump of the database would hold it.
    source.execute("postgres", &format!("ALTER ROLE {SUPERUSER} SET default_transaction_read_only = on"));
    let plain =
        Endpoint { host: "127.0.0.1", port: source.port(), user: SUPERUSER, password: SUPERUSER_PASSWORD };
    let direct = run(program, "direct", plain, &more(kind));
    source.execute(
        "postgres",
        &format!("BEGIN READ WRITE; ALTER ROLE {SUPERUSER} RESET default_transaction_read_only; COMMIT"),
    );

    let [first, second] = POOLS.map(|pool| through(program, listen, &source, pool, &direct, &more(kind)));
    let (through, arrived, gateway_log) = second;
    drop(first);
    Outcome { direct, through, arrived, gateway_log }
}

fn through(
    program: &Program,
    listen: &str,
    source: &Postgres,
    pool: &str,
    direct: &Transcript,
    more: &[(&str, String)],
) -> (Transcript, Vec<Logged>, String) {
    let before = source.fingerprint();
    let mark = source.log_mark();
    let gateway = gateway(source, listen, pool);
    let through = run(program, "gateway", behind(&gateway), more);
    let gateway_log = gateway.stop();
    let log = source.statement_log_since(mark);
    let arrived = source.statements_since(mark);
    let changed = source.fingerprint().difference(&before);

    let mut faults = compare(direct, &through);
    faults.extend(changed.into_iter().map(|part| format!("the source changed: {part}")));
    faults.extend(foreign(&arrived));
    for line in log.lines().filter(|line| line.contains(MARK)) {
        faults.push(format!("the source's log shows a refused statement: {line}"));
    }
    if gateway_log.contains("panicked") {
        faults.push("the gateway's log speaks of a panic".to_owned());
    }
    if !faults.is_empty() {
        panic!(
            "{program:?}, {pool}: {} faults\n{}\n--- end of the gateway's log ---\n{}",
            faults.len(),
            faults.join("\n"),
            tail(&gateway_log, 3000)
        );
    }
    (through, arrived, gateway_log)
}

/// Where the two transcripts differ, and refusals that are not as they must be.
fn compare(direct: &Transcript, through: &Transcript) -> Vec<String> {
    let mut faults = Vec::new();
    let mut expected = direct.0.iter();
    for step in &through.0 {
        if let Some(want) = &step.want {
            let got = step.record.get("error").and_then(Value::as_str);
            if got.is_none() || want.as_deref().is_some_and(|want| got != Some(want)) {
                faults.push(format!(
                    "{}: wanted {}, got {}",
                    step.name,
                    want.as_deref().unwrap_or("a refusal"),
                    clip(&step.record.to_string())
                ));
            }
        }
        if step.guarded {
            continue;
        }
        match expected.next() {
            Some(other) if other.name == step.name => {
                if other.outcome() != step.outcome() {
                    faults.push(difference(&step.name, &other.outcome(), &step.outcome()));
                }
            }
            other => {
                faults.push(format!("{} came where {:?} was expected", step.name, other.map(|s| &s.name)));
                return faults;
            }
        }
    }
    faults.extend(expected.map(|step| format!("{} never came", step.name)));
    if through.0.is_empty() {
        faults.push("the client did nothing".to_owned());
    }
    faults
}

/// The place where two outcomes part.
fn difference(name: &str, direct: &str, through: &str) -> String {
    let same = direct.bytes().zip(through.bytes()).take_while(|(a, b)| a == b).count();
    let around = |text: &str| {
        let mut from = same.saturating_sub(120).min(text.len());
        while !text.is_char_boundary(from) {
            from -= 1;
        }
        clip(&text[from..])
    };
    format!(
        "{name}:\n    directly            …{}\n    through the gateway …{}",
        around(direct),
        around(through)
    )
}

fn clip(text: &str) -> String {
    match text.char_indices().nth(400) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Statements at the source that begin like nothing that reads.
pub fn foreign(arrived: &[Logged]) -> Vec<String> {
    const READS: &[&str] = &[
        "",
        "ABORT",
        "BEGIN",
        "CLOSE",
        "COMMIT",
        "COPY",
        "DEALLOCATE",
        "DECLARE",
        "DISCARD",
        "END",
        "EXECUTE",
        "EXPLAIN",
        "FETCH",
        "LOCK",
        "MOVE",
        "PREPARE",
        "RELEASE",
        "RESET",
        "ROLLBACK",
        "SAVEPOINT",
        "SELECT",
        "SET",
        "SHOW",
        "START",
        "TABLE",
        "UNLISTEN",
        "VALUES",
        "WITH",
    ];
    let mut faults = Vec::new();
    for logged in arrived {
        let text = bare(&logged.text);
        let word: String =
            text.chars().take_while(char::is_ascii_alphabetic).collect::<String>().to_ascii_uppercase();
        let reads_large_object = ["lo_open", "loread", "lo_close"]
            .iter()
            .any(|f| text.starts_with(&format!("fastpath function call: \"{f}\"")));
        let fine = logged.text == STAND_IN
            || reads_large_object
            || (READS.contains(&word.as_str())
                && !text.contains("fedgate refused")
                && (word != "COPY" || text.to_ascii_uppercase().contains("TO STDOUT"))
                && (word != "LOCK" || text.to_ascii_uppercase().contains("ACCESS SHARE")));
        if !fine {
            faults.push(format!("arrived at the source: {}", clip(&logged.text)));
        }
    }
    faults
}

/// A statement without what may stand before its first word.
fn bare(text: &str) -> &str {
    let mut text = text.trim_start_matches(|c: char| c.is_whitespace() || c == '(' || c == ';');
    while let Some(rest) = text.strip_prefix("/*") {
        let Some((_, after)) = rest.split_once("*/") else { break };
        text = after.trim_start_matches(|c: char| c.is_whitespace() || c == '(' || c == ';');
    }
    text
}
