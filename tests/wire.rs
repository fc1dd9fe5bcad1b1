//! Protocol truth: a client cannot tell the gateway from a PostgreSQL whose transactions are read-only.
//!
//! Invariant: each sequence of `wire/*.yaml` is sent to a real server and to the gateway, and either the
//! answers are the same message by message or the case says how they differ and why.

#[path = "wire/lives.rs"]
mod lives;
#[path = "wire/raw.rs"]
mod raw;
mod support;
#[path = "wire/time.rs"]
mod time;

use std::collections::HashSet;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::mpsc::Sender;

use raw::{Message, Raw, Whom, message};
use serde::Deserialize;
use sha2::Digest;
use support::{Gateway, Options, Postgres, SUPERUSER, SUPERUSER_PASSWORD, Setup};

/// One sequence.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    note: String,
    send: Vec<Step>,
    /// Bytes of one write; all between two waits by default.
    split: Option<usize>,
    /// Why the gateway answers otherwise. With `gateway`: its whole answer; without: what it refuses at
    /// Parse, PostgreSQL refuses at Execute, and that alone is the difference.
    differs: Option<String>,
    gateway: Option<Vec<String>>,
    /// The last major version that differs; later ones answer as the gateway does.
    until: Option<u32>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum Step {
    /// A message; or `wait` (to ReadyForQuery), `wait 3` (the third), `wait for G`, `wait end`.
    One(String),
    /// `{i}` counts from 1; `long()` has what else stands in braces.
    Repeat { times: usize, send: Vec<String> },
}

fn cases(text: &str) -> Vec<Case> {
    let cases: Vec<Case> = serde_yaml_ng::from_str(text).expect("the cases are well-formed");
    let mut notes = HashSet::new();
    for case in &cases {
        assert!(notes.insert(&case.note), "two cases are called {:?}", case.note);
        assert!(case.gateway.is_none() || case.differs.is_some(), "{}: differs why?", case.note);
    }
    cases
}

fn long() -> [(&'static str, String); 3] {
    [("{thousand}", "t".repeat(1000)), ("{long}", "l".repeat(1 << 20)), ("{oids}", ["23"; 65535].join(","))]
}

enum Do {
    Send(Vec<u8>),
    Wait { kind: u8, count: usize },
}

fn plan(steps: &[Step]) -> Vec<Do> {
    let mut plan = Vec::new();
    let mut bytes = Vec::new();
    for step in steps {
        let text = match step {
            Step::Repeat { times, send } => {
                let mut send = send.clone();
                for text in &mut send {
                    for (key, value) in long() {
                        *text = text.replace(key, &value);
                    }
                }
                for i in 1..=*times {
                    for text in &send {
                        bytes.extend(message(&text.replace("{i}", &i.to_string())));
                    }
                }
                continue;
            }
            Step::One(text) => text,
        };
        let mut words = text.split(' ');
        if words.next() != Some("wait") {
            bytes.extend(message(text));
            continue;
        }
        plan.push(Do::Send(std::mem::take(&mut bytes)));
        plan.push(match (words.next(), words.next()) {
            (None, _) => Do::Wait { kind: b'Z', count: 1 },
            (Some("end"), _) => Do::Wait { kind: 0, count: 1 },
            (Some("for"), Some(kind)) => Do::Wait { kind: kind.as_bytes()[0], count: 1 },
            (Some(count), _) => Do::Wait { kind: b'Z', count: count.parse().expect(text) },
        });
    }
    plan.push(Do::Send(bytes));
    plan
}

/// All answers; and then those to the end that every case has, which shows whoever is out of step.
fn play(case: &Case, whom: &Whom) -> Vec<Message> {
    let (mut raw, _) = whom.connect();
    let split = case.split.unwrap_or(usize::MAX);
    // A thread of its own writes: a server that cannot get rid of its answers stops reading.
    let (send, sent) = std::sync::mpsc::channel::<Vec<u8>>();
    let mut writer = raw.writer();
    let writing = std::thread::spawn(move || {
        for bytes in sent {
            for bytes in bytes.chunks(split) {
                if writer.write_all(bytes).is_err() {
                    return;
                }
            }
        }
    });
    let answers = converse(case, &mut raw, &send);
    drop(send);
    raw.shut_down(std::net::Shutdown::Both);
    writing.join().unwrap();
    answers
}

fn converse(case: &Case, raw: &mut Raw, send: &Sender<Vec<u8>>) -> Vec<Message> {
    let mut answers = Vec::new();
    for step in plan(&case.send) {
        match step {
            Do::Send(bytes) => send.send(bytes).unwrap_or_default(),
            Do::Wait { kind, count } => {
                let read = raw.read_until(&[kind], count);
                let ended = read.iter().filter(|message| message.kind == kind).count() < count;
                answers.extend(read);
                if ended {
                    answers.push(Message { kind: b'.', body: b"closed".to_vec() });
                    return answers;
                }
            }
        }
    }
    let end = [message("S"), message(r#"Q "ROLLBACK""#), message(r#"Q "SELECT 'the end'""#)].concat();
    send.send(end).unwrap_or_default();
    loop {
        let read = raw.read_until(b"Z", 1);
        let ended = read.last().is_none_or(|last| last.kind != b'Z');
        let end = read.iter().any(|message| message.kind == b'D' && message.body.ends_with(b"the end"));
        answers.extend(read);
        if ended {
            answers.push(Message { kind: b'.', body: b"closed".to_vec() });
        }
        if end || ended {
            return answers;
        }
    }
}

/// Rows in a row are one line when there are many.
fn transcript(messages: &[Message], line: impl Fn(&Message) -> String) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for run in messages.chunk_by(|one, other| one.kind == b'D' && other.kind == b'D') {
        if run.len() > 50 {
            let mut hash = sha2::Sha256::new();
            run.iter().for_each(|row| hash.update(&row.body));
            let digest: String = hash.finalize().iter().take(6).map(|b| format!("{b:02x}")).collect();
            lines.push(format!("D {} rows {digest}", run.len()));
        } else {
            lines.extend(run.iter().map(&line));
        }
    }
    lines
}

/// PostgreSQL's answers without those that a Parse refused at once does not draw.
fn refused_early(messages: &[Message]) -> Vec<Message> {
    let mut kept: Vec<Message> = Vec::new();
    for message in messages {
        if message.kind == b'E' && message.field(b'C') == "25006" {
            while kept.last().is_some_and(|last| b"12ntT".contains(&last.kind)) {
                kept.pop();
            }
        }
        kept.push(message.clone());
    }
    kept
}

/// What differs, as text to read.
fn compare(case: &Case, direct: &[Message], gateway: &[Message]) -> Option<String> {
    let there = match (&case.differs, &case.gateway) {
        (Some(_), Some(_)) | (None, _) => direct.to_vec(),
        (Some(_), None) => refused_early(direct),
    };
    let (there, here) = (transcript(&there, Message::full), transcript(gateway, Message::full));
    let brief = transcript(gateway, Message::brief);
    match &case.gateway {
        None if there == here => None,
        None => Some(from_the_first_difference("PostgreSQL", &there, &here)),
        Some(_) if there == here => Some("they do not differ at all".to_owned()),
        Some(wanted) if brief.starts_with(wanted) && brief.len() <= wanted.len() + FINALE => None,
        Some(wanted) => Some(from_the_first_difference("wanted", wanted, &brief)),
    }
}

fn from_the_first_difference(other: &str, there: &[String], here: &[String]) -> String {
    let same = there.iter().zip(here).take_while(|(there, here)| there == here).count();
    let show = |lines: &[String]| {
        let shown: Vec<&str> = lines[same.saturating_sub(2)..].iter().take(12).map(String::as_str).collect();
        shown.join("\n  ")
    };
    format!("after {same} lines, {other}:\n  {}\nthe gateway:\n  {}", show(there), show(here))
}

/// The most lines that the end of every case draws: to Sync, to ROLLBACK with a warning, to the query.
const FINALE: usize = 8;

const SCHEMA: &str = "
CREATE TABLE probe (id int PRIMARY KEY, name text);
INSERT INTO probe VALUES (1, 'one'), (2, 'two'), (3, 'three'), (4, NULL), (5, 'five');
CREATE TABLE canary (id int PRIMARY KEY, name text);
INSERT INTO canary VALUES (1, 'sings');
CREATE SEQUENCE canary_numbers;
CREATE FUNCTION canary_grows() RETURNS int LANGUAGE sql AS 'INSERT INTO canary SELECT max(id) + 1 FROM canary RETURNING id';
CREATE ROLE reader LOGIN PASSWORD 'a reader for tests';
GRANT SELECT ON probe, canary TO reader;
-- So that a COPY into it is refused for the transaction, as it is for the superuser.
GRANT INSERT ON canary TO reader;
CREATE TABLE written (id int PRIMARY KEY, name text);
";

fn source() -> Postgres {
    let source = Postgres::start(Options::default());
    for database in ["wire", "written"] {
        source.execute("postgres", &format!("CREATE DATABASE {database}"));
    }
    source.execute("wire", SCHEMA);
    source
}

/// A gateway with the source `wire`; `more` stands in its section, `gateway` in `[gateway]`.
/// A session at the source for each client of a test.
const SESSIONS: &str = "pool = { mode = \"session\", size = 100, min_idle = 0 }";
/// Fewer than most tests have clients, so that they change hands.
const TRANSACTIONS: &str = "pool = { mode = \"transaction\", size = 3, min_idle = 1 }";

fn setup(source: &Postgres, gateway: &str, more: &str) -> Setup {
    setup_at(&source.address(), gateway, more)
}

fn setup_at(host: &str, gateway: &str, more: &str) -> Setup {
    setup_as((SUPERUSER, SUPERUSER_PASSWORD), host, gateway, more)
}

fn setup_as((user, password): (&str, &str), host: &str, gateway: &str, more: &str) -> Setup {
    let pool = if more.contains("pool = ") { "" } else { SESSIONS };
    let toml = format!(
        r#"
[gateway]
listen = ["127.0.0.1:0"]
drain_timeout = "20s"
{gateway}
[gateway.auth]
method = "trust"

[[source]]
name = "wire"
hosts = ["{host}"]
database = "wire"
user = "{user}"
password_file = "{{dir}}/source-password"
tls = "disable"
access = [{{ users = ["visitor", "writer"] }}]
{pool}
{more}
"#
    );
    Setup::new(toml).file("source-password", password)
}

/// Straight to the source, read-only as the gateway pins it.
fn direct(source: &Postgres) -> Whom {
    direct_as(source, (SUPERUSER, SUPERUSER_PASSWORD))
}

fn direct_as(source: &Postgres, (user, password): (&str, &str)) -> Whom {
    let address = SocketAddr::from(([127, 0, 0, 1], source.port()));
    Whom::new(address, user, password, "wire")
        .with("options", "-c default_transaction_read_only=on")
        .with("client_encoding", "UTF8")
}

fn visitor(gateway: &Gateway) -> Whom {
    Whom::new(gateway.address(), "visitor", "", "wire")
}

/// Runs all cases of a file, the gateway logged in as this role; no text that names a canary may arrive.
fn hold(text: &str, role: (&str, &str)) {
    hold_with(text, role, SESSIONS);
}

/// The same, where clients share the sessions that `pool` allows.
fn hold_with(text: &str, role: (&str, &str), pool: &str) {
    let mut cases = cases(text);
    let source = source();
    let version = source.value("wire", "SELECT current_setting('server_version_num')::int / 10000");
    let version: u32 = version.and_then(|version| version.parse().ok()).expect("a version");
    for case in &mut cases {
        if case.until.is_some_and(|until| version > until) {
            (case.differs, case.gateway) = (None, None);
        }
    }
    let there: Vec<Vec<Message>> = cases.iter().map(|case| play(case, &direct_as(&source, role))).collect();
    let gateway = Gateway::start(setup_as(role, &source.address(), "", pool));
    let before = source.fingerprint();
    let mark = source.log_mark();
    let only = std::env::var("WIRE_CASE").ok();
    let mut wrong = Vec::new();
    for (case, there) in cases.iter().zip(&there) {
        if only.as_ref().is_some_and(|only| !case.note.contains(only)) {
            continue;
        }
        let here = play(case, &visitor(&gateway));
        if std::env::var("WIRE_SHOW").is_ok() {
            eprintln!(
                "{}: {:#?}\n{:#?}",
                case.note,
                transcript(there, Message::full),
                transcript(&here, Message::full)
            );
        }
        if let Some(difference) = compare(case, there, &here) {
            wrong.push(format!("--- {}\n{difference}", case.note));
        }
    }
    let log = source.statement_log_since(mark);
    let arrived: Vec<&str> = log.lines().filter(|line| line.contains("canary")).collect();
    assert!(wrong.is_empty(), "{} of {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(arrived.is_empty(), "refused texts reached the source:\n{}", arrived.join("\n"));
    assert_eq!(source.fingerprint().difference(&before), Vec::<String>::new());
    let log = gateway.stop();
    assert!(!log.contains("panicked"), "{log}");
}

const READER: (&str, &str) = ("reader", "a reader for tests");

#[test]
fn simple_queries() {
    hold(include_str!("wire/simple.yaml"), (SUPERUSER, SUPERUSER_PASSWORD));
}

#[test]
fn the_extended_protocol() {
    hold(include_str!("wire/extended.yaml"), (SUPERUSER, SUPERUSER_PASSWORD));
}

#[test]
fn simple_queries_of_an_ordinary_role() {
    hold(include_str!("wire/simple.yaml"), READER);
}

#[test]
fn the_extended_protocol_of_an_ordinary_role() {
    hold(include_str!("wire/extended.yaml"), READER);
}

#[test]
fn prepared_statements_portals_and_cursors() {
    hold(include_str!("wire/prepared.yaml"), (SUPERUSER, SUPERUSER_PASSWORD));
}

#[test]
fn simple_queries_with_shared_sessions() {
    hold_with(include_str!("wire/simple.yaml"), (SUPERUSER, SUPERUSER_PASSWORD), TRANSACTIONS);
}

#[test]
fn the_extended_protocol_with_shared_sessions() {
    hold_with(include_str!("wire/extended.yaml"), (SUPERUSER, SUPERUSER_PASSWORD), TRANSACTIONS);
}

#[test]
fn prepared_statements_portals_and_cursors_with_shared_sessions() {
    hold_with(include_str!("wire/prepared.yaml"), (SUPERUSER, SUPERUSER_PASSWORD), TRANSACTIONS);
}

#[test]
fn there_are_enough_sequences() {
    let files = [
        include_str!("wire/simple.yaml"),
        include_str!("wire/extended.yaml"),
        include_str!("wire/prepared.yaml"),
    ];
    let counted: usize = files.iter().map(|text| cases(text).len()).sum();
    assert!(counted >= 120, "only {counted} sequences are compared with a server");
}
