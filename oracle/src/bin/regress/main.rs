//! Measures the guard over PostgreSQL's own regression suite: which of its pure reads are admitted.
//!
//! Invariant: what a pure read is, is decided without the guard: by PostgreSQL's grammar, by the server, which
//! takes it in a READ ONLY transaction, and by the volatility of the functions that its trees call.
//!
//!     regress SUITE [--parse-only] [--lib FOLDER] [--output FILE]
//!
//! SUITE is PostgreSQL's `src/test/regress`; FOLDER holds the libraries that it loads, if they were built. What is
//! never called through the gateway however it is marked, is counted by itself. With `--parse-only` there is no server: its `sql/*.sql` are judged for
//! a stock catalogue, and what counts is whether the guard can read a query at all. Ends with 1 when a statement
//! was admitted that PostgreSQL calls anything but a read.

#[path = "../../../../tests/support"]
mod support {
    #![allow(dead_code, reason = "the tests use more of it")]
    #![allow(clippy::disallowed_methods, reason = "a server that becomes ready sends no event")]
    pub mod fingerprint;
    pub mod log;
    pub mod postgres;
}
mod calls;
mod session;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use calls::Impure;
use fedgate::guard::{Context, Mode, Refusal, Step, Verdict, judge};
use fedgate::ids::{RefusalClass, SourceName};
use fedgate::sql::Limits;
use fedgate::sql::catalogue::Catalogue;
use fedgate_oracle::judge::{self, Kind, Seen};
use fedgate_oracle::report::{Refused, grouped};
use fedgate_oracle::script::{Item, Script, Statement};
use fedgate_oracle::suite;
use session::{Answer, Session, Suite};

struct Arguments {
    folder: PathBuf,
    parse_only: bool,
    library: Option<PathBuf>,
    output: PathBuf,
}

fn arguments() -> Result<Arguments, String> {
    let mut arguments = std::env::args().skip(1);
    let (mut folder, mut parse_only, mut output) = (None, false, PathBuf::from("target/regress-refused.txt"));
    let mut library = None;
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--parse-only" => parse_only = true,
            "--lib" => library = Some(arguments.next().ok_or("--lib takes a folder")?.into()),
            "--output" => output = arguments.next().ok_or("--output takes a file")?.into(),
            _ => folder = Some(PathBuf::from(argument)),
        }
    }
    let folder = folder.ok_or(
        "usage: regress SUITE [--parse-only] [--lib FOLDER] [--output FILE]; SUITE is src/test/regress",
    )?;
    if suite::files(&folder).is_ok_and(|files| !files.is_empty()) {
        Ok(Arguments { folder, parse_only, library, output })
    } else {
        Err(format!("{} holds no SQL files of PostgreSQL's regression suite", folder.display()))
    }
}

fn main() {
    let arguments = arguments().unwrap_or_else(|error| {
        eprintln!("regress: {error}");
        std::process::exit(2)
    });
    let failed = judge::with_stack(|| match arguments.parse_only {
        true => parse_only(&arguments),
        false => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime starts").block_on(on_server(&arguments))
        }
    });
    std::process::exit(i32::from(failed));
}

/// What was counted, in the order of the report.
#[derive(Default)]
struct Tally {
    counts: BTreeMap<&'static str, usize>,
    refused: Vec<Refused>,
    /// Statements that were admitted and are no reads.
    admitted: Vec<String>,
    /// Errors of reads that are this server's and not the suite's.
    unexpected: Vec<String>,
}

impl Tally {
    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    fn get(&self, what: &str) -> usize {
        self.counts.get(what).copied().unwrap_or(0)
    }

    /// A statement that PostgreSQL calls a write may not be admitted, whatever stands around it.
    fn reverse(&mut self, place: &Place<'_>, seen: &[Seen], verdict: &Verdict) {
        for (step, seen) in verdict.steps.iter().zip(seen) {
            if let (Step::Admit(_), Kind::Write(what)) = (step, &seen.kind) {
                self.admitted.push(format!(
                    "{}:{}: {what}\n    {}",
                    place.file, place.statement.line, place.statement.text
                ));
            }
        }
    }

    fn refuse(&mut self, place: &Place<'_>, refusal: &Refusal) {
        self.refused.push(Refused {
            file: place.file.to_owned(),
            line: place.statement.line,
            text: place.statement.text.clone(),
            class: refusal.class.as_str().to_owned(),
            message: refusal.message.clone(),
            detail: refusal.detail.clone().unwrap_or_default().replace(FINE, ""),
            offset: refusal.offset,
        });
    }

    fn answer(
        &mut self,
        place: &Place<'_>,
        verdict: &Verdict,
        (admitted, refused): (&'static str, &'static str),
    ) {
        match refusal(verdict) {
            None => self.count(admitted),
            Some(refusal) => {
                self.count(refused);
                self.refuse(place, refusal);
            }
        }
    }

    fn finish(&self, output: &std::path::Path) -> bool {
        for (what, count) in &self.counts {
            println!("{count:8}  {what}");
        }
        if let Some(folder) = output.parent() {
            let _ = std::fs::create_dir_all(folder);
        }
        let mut text = grouped(&self.refused);
        if !self.unexpected.is_empty() {
            text += "\n=== reads that failed here and not in the suite\n";
            text += &self.unexpected.join("\n");
        }
        std::fs::write(output, text).expect("the file of refused reads is written");
        println!("{} refused reads are in {}", self.refused.len(), output.display());
        for one in &self.admitted {
            println!("ADMITTED, and no read: {one}");
        }
        !self.admitted.is_empty()
    }
}

fn share(part: usize, whole: usize) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// What each refusal ends with.
const FINE: &str = " fedgate refused the statement; nothing of it reached the source \"regression\".";

struct Place<'s> {
    file: &'s str,
    statement: &'s Statement,
}

fn refusal(verdict: &Verdict) -> Option<&Refusal> {
    verdict.steps.iter().find_map(|step| match step {
        Step::Refuse(refusal) => Some(refusal),
        Step::Admit(_) => None,
    })
}

/// The guard could not read it, whoever may call what in it.
fn unread(refusal: &Refusal) -> bool {
    matches!(
        refusal.class,
        RefusalClass::Unverified | RefusalClass::Write | RefusalClass::Mode | RefusalClass::Limit
    )
}

fn verdict(text: &str, catalogue: &Catalogue) -> Verdict {
    let (source, limits) = (SourceName::new("regression"), Limits::default());
    judge(text.as_bytes(), &Context { catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source })
}

fn texts(folder: &std::path::Path, tally: &mut Tally) -> Vec<(String, String)> {
    let mut texts = Vec::new();
    for path in suite::files(folder).expect("the folder was read before") {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match std::fs::read(&path).map(String::from_utf8) {
            Ok(Ok(text)) => texts.push((name, text)),
            _ => tally.count("skipped: a file that is not UTF-8"),
        }
    }
    texts
}

/// Is this a COPY whose data stands in the script?
fn has_data(seen: &[Seen], text: &str) -> bool {
    seen.iter().any(|seen| matches!(&seen.kind, Kind::Write(what) if what == "COPY FROM"))
        && text.to_ascii_lowercase().contains("stdin")
}

fn parse_only(arguments: &Arguments) -> bool {
    let mut tally = Tally::default();
    let catalogue = Catalogue::stock(18).expect("a stock catalogue");
    for (file, text) in texts(&arguments.folder, &mut tally) {
        let mut script = Script::new(&text, HashMap::new());
        while let Some(item) = script.next_item() {
            let Item::Statement(statement) = item else {
                tally.count("psql's commands");
                continue;
            };
            let place = Place { file: &file, statement: &statement };
            let Ok(seen) = judge::read(&statement.text) else {
                tally.count("statements that PostgreSQL does not parse");
                continue;
            };
            if has_data(&seen, &statement.text) && script.has_data() {
                script.data();
            }
            let verdict = verdict(&statement.text, &catalogue);
            tally.reverse(&place, &seen, &verdict);
            if seen.iter().any(|seen| seen.kind != Kind::Read) {
                tally.count("other statements");
                continue;
            }
            tally.count("queries");
            match refusal(&verdict) {
                Some(refusal) if unread(refusal) => tally.refuse(&place, refusal),
                _ => tally.count("queries that the guard can read"),
            }
        }
    }
    let (read, all) = (tally.get("queries that the guard can read"), tally.get("queries"));
    let failed = tally.finish(&arguments.output);
    println!("{read} of {all} queries are read by the guard: {:.2} %", share(read, all));
    failed
}

/// The errors that the suite expects of a file, by its `expected/*.out`; empty if it says nothing.
fn expected(folder: &std::path::Path, file: &str) -> String {
    let stem = file.trim_end_matches(".sql");
    let mut all = String::new();
    for entry in std::fs::read_dir(folder.join("expected")).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let other = name.strip_prefix(stem).and_then(|rest| rest.strip_suffix(".out"));
        if other.is_some_and(|rest| rest.chars().all(|letter| letter == '_' || letter.is_ascii_digit())) {
            all.push_str(&std::fs::read_to_string(entry.path()).unwrap_or_default());
        }
    }
    all
}

async fn on_server(arguments: &Arguments) -> bool {
    let mut tally = Tally::default();
    let suite = Suite::start(&arguments.folder, arguments.library.as_deref());
    for (file, text) in texts(&arguments.folder, &mut tally) {
        eprintln!("regress: {file}");
        let mut script = Script::new(&text, HashMap::new());
        let mut session = suite.session().await;
        let expected = expected(&arguments.folder, &file);
        while let Some(item) = script.next_item() {
            match item {
                Item::Command { name, .. } if matches!(name.as_str(), "q" | "quit") => break,
                Item::Command { name, arguments, .. } => {
                    tally.count(session.command(&mut script, &name, &arguments).await);
                }
                Item::Statement(statement) => {
                    let place = Place { file: &file, statement: &statement };
                    one(&mut tally, &mut session, &mut script, &place, &expected).await;
                }
            }
        }
    }
    let failed = tally.finish(&arguments.output);
    for (what, admitted, refused) in [
        ("pure queries", QUERIES.0, QUERIES.1),
        ("uses of a prepared statement or cursor", BY_NAME.0, BY_NAME.1),
        ("transaction statements", TRANSACTIONS.0, TRANSACTIONS.1),
    ] {
        let (admitted, refused) = (tally.get(admitted), tally.get(refused));
        let all = admitted + refused;
        println!("{admitted} of {all} {what} are admitted: {:.2} %", share(admitted, all));
    }
    failed
}

const QUERIES: (&str, &str) = ("pure queries: admitted", "pure queries: refused");
const BY_NAME: (&str, &str) =
    ("by name of a statement or cursor: admitted", "by name of a statement or cursor: refused");
const TRANSACTIONS: (&str, &str) = ("transaction statements: admitted", "transaction statements: refused");

/// Does it only run or move what an earlier statement named?
fn by_name(text: &str) -> bool {
    let word: String = text.chars().take_while(char::is_ascii_alphabetic).collect();
    matches!(word.to_ascii_lowercase().as_str(), "execute" | "fetch" | "move" | "close")
}

/// Is it done when it was asked, since it outlives the end of the transaction?
fn leaves(text: &str) -> bool {
    let word: String = text.chars().take_while(char::is_ascii_alphabetic).collect();
    matches!(word.to_ascii_lowercase().as_str(), "prepare" | "fetch" | "move" | "close")
}

async fn one(
    tally: &mut Tally,
    session: &mut Session<'_>,
    script: &mut Script,
    place: &Place<'_>,
    expected: &str,
) {
    let statement = place.statement;
    tally.count("statements");
    let seen = judge::read(&statement.text).unwrap_or_else(|_| {
        tally.count("statements that PostgreSQL does not parse");
        Vec::new()
    });
    session.refresh().await;
    let verdict = verdict(&statement.text, session.catalogue());
    tally.reverse(place, &seen, &verdict);
    let data = has_data(&seen, &statement.text).then(|| script.has_data().then(|| script.data()));
    let all = |kinds: &[Kind]| seen.iter().all(|seen| kinds.contains(&seen.kind));
    let (mut pure, mut done) = (false, false);
    if seen.is_empty() {
        // Run all the same: the server may know it by another version's grammar.
    } else if all(&[Kind::Read]) {
        match session.ask(statement, &seen).await {
            Answer::Error(message) if message.contains("in a read-only transaction") => {
                tally.count("reads that the server refuses in a READ ONLY transaction");
            }
            Answer::Error(message) => {
                tally.count("reads that the server answers with an error");
                if !expected.is_empty() && !expected.contains(&message) {
                    tally.count("reads that the server answers with an error that the suite does not expect");
                    tally.unexpected.push(format!("{}:{}: {message}", place.file, statement.line));
                }
            }
            Answer::Impure(Impure::Volatile) => tally.count("reads that call a volatile function"),
            Answer::Impure(Impure::Denied) => {
                tally.count("reads that call what is never called through the gateway");
            }
            Answer::Pure => {
                pure = true;
                done = leaves(&statement.text);
                if session.has_open_changes() {
                    // Nothing can be made behind the gateway, and what is not committed is in nobody else's catalogue.
                    tally.count("pure reads in a transaction that has changed the schema");
                } else {
                    let counted = if by_name(&statement.text) { BY_NAME } else { QUERIES };
                    tally.answer(place, &verdict, counted);
                }
            }
        }
    } else if all(&[Kind::Read, Kind::Transaction]) {
        tally.answer(place, &verdict, TRANSACTIONS);
    } else {
        tally.count(match seen.iter().any(|seen| seen.kind.is_write()) {
            true => "writes",
            false => "settings of the session",
        });
    }
    if !done {
        session.run(script, statement, &seen, pure, data).await;
    }
}
