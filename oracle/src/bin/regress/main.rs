//! Measures the guard over PostgreSQL's own regression suite: which of its pure reads are admitted.
//!
//! Invariant: what a pure read is, is decided without the guard: by PostgreSQL's grammar, by the server, which
//! takes it in a READ ONLY transaction, and by the volatility of the functions it calls.
//!
//!     regress SUITE [--parse-only] [--output FILE]
//!
//! SUITE is PostgreSQL's `src/test/regress`. With `--parse-only` there is no server: its `sql/*.sql` are judged for
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
mod session;

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use fedgate::guard::{Context, Mode, Refusal, Step, Verdict, judge};
use fedgate::ids::{RefusalClass, SourceName};
use fedgate::sql::catalogue::Catalogue;
use fedgate::sql::{Limits, known};
use fedgate_oracle::judge::{self, Kind, Seen};
use fedgate_oracle::report::{Refused, grouped};
use fedgate_oracle::script::{Item, Script, Statement};
use fedgate_oracle::suite;
use session::{Session, Suite};

struct Arguments {
    folder: PathBuf,
    parse_only: bool,
    output: PathBuf,
}

fn arguments() -> Result<Arguments, String> {
    let mut arguments = std::env::args().skip(1);
    let (mut folder, mut parse_only, mut output) = (None, false, PathBuf::from("target/regress-refused.txt"));
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--parse-only" => parse_only = true,
            "--output" => output = arguments.next().ok_or("--output takes a file")?.into(),
            _ => folder = Some(PathBuf::from(argument)),
        }
    }
    let folder =
        folder.ok_or("usage: regress SUITE [--parse-only] [--output FILE]; SUITE is src/test/regress")?;
    if suite::files(&folder).is_ok_and(|files| !files.is_empty()) {
        Ok(Arguments { folder, parse_only, output })
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
            offset: refusal.offset,
        });
    }

    fn finish(&self, output: &std::path::Path) -> bool {
        for (what, count) in &self.counts {
            println!("{count:8}  {what}");
        }
        if let Some(folder) = output.parent() {
            let _ = std::fs::create_dir_all(folder);
        }
        std::fs::write(output, grouped(&self.refused)).expect("the file of refused reads is written");
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
            if has_data(&seen, &statement.text) {
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

/// Why a read is no pure one, told without the guard.
fn impure(seen: &[Seen], session: &Session<'_>) -> Option<&'static str> {
    for name in seen.iter().flat_map(|seen| &seen.names.functions) {
        let (schema, last) = match name.rsplit_once('.') {
            Some((schema, last)) => (Some(schema), last),
            None => (None, name.as_str()),
        };
        if known::denied(last).is_some() {
            return Some("reads that call what is never called through the gateway");
        }
        if session.volatile(schema, last) {
            return Some("reads that call a volatile function");
        }
    }
    None
}

async fn on_server(arguments: &Arguments) -> bool {
    let mut tally = Tally::default();
    let suite = Suite::start(&arguments.folder);
    for (file, text) in texts(&arguments.folder, &mut tally) {
        eprintln!("regress: {file}");
        let mut script = Script::new(&text, HashMap::new());
        let mut session = suite.session().await;
        while let Some(item) = script.next_item() {
            match item {
                Item::Command { name, arguments, .. } => {
                    tally.count(session.command(&mut script, &name, &arguments).await);
                }
                Item::Statement(statement) => {
                    one(&mut tally, &mut session, &mut script, &file, &statement).await;
                }
            }
        }
    }
    let (admitted, refused) = (tally.get("pure reads admitted"), tally.get("pure reads refused"));
    let failed = tally.finish(&arguments.output);
    println!(
        "{admitted} of {} pure reads are admitted: {:.2} %",
        admitted + refused,
        share(admitted, admitted + refused)
    );
    failed
}

async fn one(
    tally: &mut Tally,
    session: &mut Session<'_>,
    script: &mut Script,
    file: &str,
    statement: &Statement,
) {
    let place = Place { file, statement };
    tally.count("statements");
    let seen = judge::read(&statement.text).unwrap_or_else(|_| {
        tally.count("statements that PostgreSQL does not parse");
        Vec::new()
    });
    let mut verdict = verdict(&statement.text, session.catalogue());
    tally.reverse(&place, &seen, &verdict);
    let data = has_data(&seen, &statement.text).then(|| script.data());
    let read = |seen: &Seen| matches!(seen.kind, Kind::Read | Kind::Transaction);
    if seen.is_empty() {
        // Run all the same: the server may know it by another version's grammar.
    } else if !seen.iter().all(read) {
        tally.count(match seen.iter().any(|seen| seen.kind.is_write()) {
            true => "writes",
            false => "settings of the session",
        });
    } else if let Some(why) = impure(&seen, session) {
        tally.count(why);
    } else if !session.accepts(statement, &seen).await {
        tally.count("reads that the server answers with an error");
    } else {
        if refusal(&verdict).is_some() && session.refresh().await {
            verdict = self::verdict(&statement.text, session.catalogue());
        }
        // What was made in a transaction that is still open is in nobody else's catalogue.
        match (refusal(&verdict), impure(&seen, session)) {
            (_, Some(why)) => tally.count(why),
            (None, _) => tally.count("pure reads admitted"),
            (Some(refusal), _) => {
                tally.count("pure reads refused");
                tally.refuse(&place, refusal);
            }
        }
    }
    session.run(script, statement, &seen, data).await;
}
