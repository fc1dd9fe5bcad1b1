//! Asks the guard and PostgreSQL's parser of the same text, and tells where they differ.
//!
//! Invariant: a text that the guard admits is looked at by PostgreSQL's parser, and each difference that is
//! not in [`ALLOWED`] with a reason is a finding.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use fedgate::guard::{self, Admitted, Context, Form, FoundKind, Mode, Step};
use fedgate::ids::SourceName;
use fedgate::sql::Limits;
use fedgate::sql::catalogue::{Catalogue, Harm};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use crate::generate::{Grammar, POSTGRES};
use crate::judge::{self, Kind, Seen};
use crate::{mutate, source};

/// How the two differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Difference {
    /// What is admitted is anything but a read to PostgreSQL.
    WriteAdmitted,
    /// A function, type, operator or setting in what is admitted is harmful.
    HarmAdmitted,
    /// What is admitted is no SQL, or not of the version that the oracle parses.
    NotParsed,
    /// Another number of statements.
    Count,
    /// A statement begins or ends elsewhere.
    Boundary,
    /// A name that PostgreSQL sees and the guard does not.
    NameUnseen,
    Panic,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    pub difference: Difference,
    pub what: String,
}

/// What came of one text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Refused,
    /// That many statements were admitted, and PostgreSQL sees them likewise.
    Agreed(usize),
    /// Admitted and not parsed, for this listed reason.
    Allowed {
        reason: &'static str,
        message: String,
    },
    Found(Finding),
}

/// Admitted texts that the oracle's parser does not take, by its message, and why that does no harm. They are
/// counted apart, and told by `make fuzz`, since a guard that is exact has none.
///
/// It stands on this: the server parses a text before it runs any of it, and what the oracle's version (18)
/// does not parse, 14 to 17 do not either. From 14 to 18 the grammar of queries only grew, but for letters
/// directly behind a number or a parameter (an alias to 14), which the guard's own lexer refuses.
pub const ALLOWED: &[(&str, &str)] = &[
    ("syntax error at", "no version parses it, so none runs it"),
    // Said by the actions of the grammar, in all versions alike, and for the whole text.
    ("frame end", "a check of the grammar's own"),
    ("frame start", "a check of the grammar's own"),
    ("WITH TIES cannot be specified", "a check of the grammar's own"),
    ("improper qualified name", "a check of the grammar's own"),
    ("clauses not allowed", "a check of the grammar's own"),
    ("improper use of \"*\"", "a check of the grammar's own"),
    ("only string constants are supported in JSON_TABLE", "a check of the grammar's own"),
    ("precision for type float must be", "a check of the grammar's own"),
    ("interval precision specified twice", "a check of the grammar's own"),
    ("unrecognized JSON encoding", "a check of the grammar's own"),
    ("side of OVERLAPS expression", "a check of the grammar's own"),
    ("type modifier cannot have", "a check of the grammar's own"),
    ("with WITHIN GROUP", "a check of the grammar's own"),
    ("multiple limit options not allowed", "a check of the grammar's own"),
    ("SKIP LOCKED and WITH TIES options cannot be used together", "a check of the grammar's own"),
    ("UNIQUE predicate is not yet implemented", "a check of the grammar's own"),
    ("value is allowed", "a check of the grammar's own, of a column's options in XMLTABLE"),
    ("unrecognized column option", "a check of the grammar's own, of a column's options in XMLTABLE"),
];

/// What both are asked with.
pub struct Oracle {
    catalogue: Catalogue,
    limits: Limits,
    source: SourceName,
}

impl Oracle {
    #[must_use]
    pub fn new(version: u32) -> Self {
        Self {
            catalogue: source::catalogue(version),
            limits: Limits::default(),
            source: SourceName::new("source"),
        }
    }

    /// Asks both. Deep texts take a deep stack: see [`judge::with_stack`].
    #[must_use]
    pub fn compare(&self, text: &str) -> Outcome {
        let ctx = Context {
            catalogue: &self.catalogue,
            mode: Mode::ReadOnly,
            limits: &self.limits,
            source: &self.source,
        };
        let Ok(verdict) = catch_unwind(AssertUnwindSafe(|| guard::judge(text.as_bytes(), &ctx))) else {
            return found(Difference::Panic, "the guard panicked");
        };
        let mut admitted = Vec::new();
        let mut refused = false;
        for step in &verdict.steps {
            match step {
                Step::Admit(one) => admitted.push(one),
                Step::Refuse(_) => refused = true,
            }
        }
        if refused && admitted.is_empty() {
            return Outcome::Refused;
        }
        if verdict.form == Form::Whole && admitted.len() > 1 {
            return found(Difference::Count, "several statements would go as one Query");
        }
        for one in &admitted {
            match self.statement(one) {
                Outcome::Agreed(_) => {}
                other => return other,
            }
        }
        // What is sent apart need not be read as a whole by the server; where it is, it has the same parts.
        match judge::read(text) {
            Ok(seen) if seen.len() < admitted.len() || (!refused && seen.len() != admitted.len()) => found(
                Difference::Count,
                format!("{} statements, PostgreSQL sees {}", admitted.len(), seen.len()),
            ),
            Ok(seen) => {
                let differs =
                    admitted.iter().zip(&seen).find_map(|(ours, theirs)| boundary(text, ours, theirs));
                match differs {
                    Some(what) => found(Difference::Boundary, what),
                    None => Outcome::Agreed(admitted.len()),
                }
            }
            Err(error) if refused => {
                let _ = error;
                Outcome::Agreed(admitted.len())
            }
            Err(error) => not_parsed(error),
        }
    }

    /// One statement as it would be sent by itself.
    fn statement(&self, admitted: &Admitted) -> Outcome {
        let Ok(text) = std::str::from_utf8(admitted.permit.text()) else {
            return found(Difference::Boundary, "a permit is not UTF-8");
        };
        let seen = match judge::read(text) {
            Ok(seen) => seen,
            Err(error) => return not_parsed(error),
        };
        let [seen] = seen.as_slice() else {
            return found(
                Difference::Count,
                format!("one permit, PostgreSQL sees {} statements", seen.len()),
            );
        };
        if let Kind::Write(what) = &seen.kind {
            return found(Difference::WriteAdmitted, what.clone());
        }
        if let Some(what) = self.harm(seen) {
            return found(Difference::HarmAdmitted, what);
        }
        match unseen(text, seen, &self.limits) {
            Some(what) => found(Difference::NameUnseen, what),
            None => Outcome::Agreed(1),
        }
    }

    /// What PostgreSQL would call and the catalogue says is harmful.
    fn harm(&self, seen: &Seen) -> Option<String> {
        for name in &seen.names.functions {
            let (schema, last) = split(name);
            if last == "set_config" {
                continue;
            }
            let mut all = self
                .catalogue
                .functions(last)
                .iter()
                .filter(|of| schema.is_none_or(|schema| schema == &*of.schema));
            if let Some(function) = all.find(|function| function.harm.is_some()) {
                return Some(format!("function {name}: {:?}", function.harm));
            }
        }
        for setting in &seen.names.set_config {
            match setting {
                Some(name) if !judge::is_pinned(name) => {}
                Some(name) => return Some(format!("set_config of {name}")),
                // The one shape that pg_dump sends.
                None if seen.names.tables.iter().all(|table| table.ends_with("pg_settings")) => {}
                None => return Some("set_config of an unknown setting".to_owned()),
            }
        }
        for name in &seen.names.attributes {
            let functions = self.catalogue.functions(name);
            if functions.iter().any(|function| {
                function.one_argument && function.harm.as_ref().is_some_and(|harm| *harm != Harm::Procedure)
            }) {
                return Some(format!("attribute {name}"));
            }
        }
        for name in &seen.names.types {
            let (schema, last) = split(name);
            let mut all = self
                .catalogue
                .types(last)
                .iter()
                .filter(|of| schema.is_none_or(|schema| schema == &*of.schema));
            if all.any(|of| {
                of.volatile_function.is_some() || of.checks.iter().any(|check| check.contains("log_visit"))
            }) {
                return Some(format!("type {name}"));
            }
        }
        for name in &seen.names.operators {
            let (schema, symbol) = split(name);
            let mut all = self.catalogue.harmful_operators(symbol).iter();
            if let Some(operator) = all.find(|of| schema.is_none_or(|schema| schema == &*of.schema)) {
                return Some(format!("operator {symbol}: {}", operator.why));
            }
        }
        None
    }
}

fn found(difference: Difference, what: impl Into<String>) -> Outcome {
    Outcome::Found(Finding { difference, what: what.into() })
}

fn not_parsed(error: String) -> Outcome {
    match ALLOWED.iter().find(|(message, _)| error.contains(message)) {
        Some((_, reason)) => Outcome::Allowed { reason, message: error },
        None => found(Difference::NotParsed, error),
    }
}

/// Schema and name; a database before them is left out.
fn split(name: &str) -> (Option<&str>, &str) {
    match name.rsplit_once('.') {
        Some((before, last)) => (before.rsplit('.').next(), last),
        None => (None, name),
    }
}

/// Where the two put a statement: what PostgreSQL takes lies in ours, and the rest of ours is no statement.
fn boundary(text: &str, ours: &Admitted, theirs: &Seen) -> Option<String> {
    let (start, end) = (ours.offset, ours.offset + ours.permit.text().len());
    let inner = text.get(theirs.start..theirs.end)?;
    let trimmed = |letter: char| matches!(letter, ' ' | '\t' | '\n' | '\r' | '\u{b}' | '\u{c}');
    let from = theirs.start + (inner.len() - inner.trim_start_matches(trimmed).len());
    let to = theirs.end - (inner.len() - inner.trim_end_matches(trimmed).len());
    let empty =
        |part: Option<&str>| part.is_none_or(|part| judge::read(part).is_ok_and(|seen| seen.is_empty()));
    let before = match from.cmp(&start) {
        std::cmp::Ordering::Less => empty(text.get(from..start)),
        _ => empty(text.get(start..from)),
    };
    let after = match to.cmp(&end) {
        std::cmp::Ordering::Less => empty(text.get(to..end)),
        _ => empty(text.get(end..to)),
    };
    (!before || !after).then(|| format!("{start}..{end}, PostgreSQL says {from}..{to}"))
}

/// A table or function that PostgreSQL sees and the guard's notes do not hold.
fn unseen(text: &str, seen: &Seen, limits: &Limits) -> Option<String> {
    let findings = guard::found(text.as_bytes(), limits);
    let noted = |kind: FoundKind| -> BTreeSet<String> {
        findings.names.iter().filter(|found| found.kind == kind).map(|found| found.name.join(".")).collect()
    };
    if !findings.complete {
        // LOCK: no walk looks at its tables, and there is nothing else in it.
        return None;
    }
    let relations = noted(FoundKind::Relation);
    if let Some(table) = seen.names.tables.iter().find(|table| !relations.contains(*table)) {
        return Some(format!("table {table}"));
    }
    let functions = noted(FoundKind::Function);
    let missing = seen.names.functions.iter().find(|name| {
        // What syntax stands for is put into pg_catalog by the parser; it was judged there as a function already.
        let implied = name.strip_prefix("pg_catalog.").is_some();
        // TABLESAMPLE's own two methods are no names to the walk.
        let method = matches!(name.as_str(), "system" | "bernoulli");
        !functions.contains(*name) && !implied && !method
    });
    missing.map(|name| format!("function {name}"))
}

/// Counts of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub texts: u64,
    /// Texts of which at least one statement was admitted, and the two agreed.
    pub admitted: u64,
    pub statements: u64,
    pub allowed: u64,
    pub findings: u64,
}

/// A text that the two differ about, as small as it gets.
#[derive(Clone, Debug)]
pub struct Report {
    pub text: String,
    pub original: String,
    pub finding: Finding,
}

impl Report {
    /// As an entry of `tests/guard/*.yaml`.
    #[must_use]
    pub fn case(&self) -> String {
        let quoted = |text: &str| serde_json::to_string(text).unwrap_or_default();
        format!(
            "- note: {}\n  sql: {}\n  want: refuse\n  class: unverified\n",
            quoted(&format!("{:?}: {}", self.finding.difference, self.finding.what)),
            quoted(&self.text),
        )
    }
}

/// Makes texts without end, asks of each, and keeps what is worth changing further.
pub struct Run {
    oracle: Oracle,
    grammar: Grammar,
    /// The cases and what clients send.
    seeds: Vec<String>,
    /// Texts that were admitted, which a small change may turn into something else.
    admitted: Vec<String>,
    random: StdRng,
    pub counts: Counts,
    /// Findings of which one was reported.
    known: BTreeSet<(Difference, String)>,
    /// Admitted texts that are no SQL, one of a shape, as small as they get.
    loose: BTreeMap<String, String>,
}

/// Shapes of [`Outcome::Allowed`] that are kept and made small.
const LOOSE: usize = 200;

/// Admitted texts that are kept.
const KEPT: usize = 4096;

impl Run {
    /// # Panics
    /// When the grammar is wrong or a case cannot be read, which the tests of both tell in detail.
    #[must_use]
    pub fn new(seed: u64, version: u32) -> Self {
        Self {
            oracle: Oracle::new(version),
            grammar: Grammar::parse(POSTGRES).expect("the grammar is right"),
            seeds: seeds(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests")),
            admitted: Vec::new(),
            random: StdRng::seed_from_u64(seed),
            counts: Counts::default(),
            known: BTreeSet::new(),
            loose: BTreeMap::new(),
        }
    }

    /// How many texts there are to start from.
    #[must_use]
    pub fn seeds(&self) -> usize {
        self.seeds.len()
    }

    /// Asks of the texts to start from, unchanged.
    pub fn start(&mut self, mut report: impl FnMut(Report)) {
        for text in self.seeds.clone() {
            self.ask(text, &mut report);
        }
    }

    /// Makes texts and asks of them for as long as `time`.
    pub fn go(&mut self, time: Duration, mut report: impl FnMut(Report)) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            for _ in 0..64 {
                let text = self.next();
                self.ask(text, &mut report);
            }
        }
    }

    /// Admitted texts that PostgreSQL does not parse, by shape, with its message.
    #[must_use]
    pub fn loosely_read(&self) -> &BTreeMap<String, String> {
        &self.loose
    }

    fn loose(&mut self, text: &str, message: &str) {
        // The most common are found first; making them small takes time that is wanted for others.
        if self.loose.len() >= LOOSE || !self.random.random_bool(0.02) {
            return;
        }
        let allowed = |text: &str| match self.oracle.compare(text) {
            Outcome::Allowed { message, .. } => Some(message),
            _ => None,
        };
        let small = mutate::shrink(text, |text| allowed(text).is_some());
        let message = allowed(&small).unwrap_or_else(|| message.to_owned());
        self.loose
            .entry(format!("{} {}", general(&message), shape(&small)))
            .or_insert(format!("{small}    -- {message}"));
    }

    fn next(&mut self) -> String {
        let random = &mut self.random;
        match random.random_range(0..10) {
            0..=3 => self.grammar.text("text", random),
            4 => {
                let text = self.grammar.text("text", random);
                mutate::change(&text, &self.seeds, random)
            }
            5 | 6 => {
                let text = self.seeds.choose(random).cloned().unwrap_or_default();
                mutate::change(&text, &self.seeds, random)
            }
            _ => {
                let text = self.admitted.choose(random).cloned().unwrap_or_default();
                let others = if random.random_bool(0.5) { &self.seeds } else { &self.admitted };
                mutate::change(&text, others, random)
            }
        }
    }

    fn ask(&mut self, text: String, report: &mut impl FnMut(Report)) {
        // NUL cannot be handed to the parser, and cannot occur in a message.
        if text.contains('\0') {
            return;
        }
        self.counts.texts += 1;
        match self.oracle.compare(&text) {
            Outcome::Refused => {}
            Outcome::Allowed { message, .. } => {
                self.counts.allowed += 1;
                self.loose(&text, &message);
            }
            Outcome::Agreed(statements) => {
                self.counts.admitted += 1;
                self.counts.statements += statements as u64;
                if self.admitted.len() < KEPT {
                    self.admitted.push(text);
                } else if self.random.random_bool(0.1) {
                    let at = self.random.random_range(0..KEPT);
                    self.admitted[at] = text;
                }
            }
            Outcome::Found(finding) => {
                self.counts.findings += 1;
                let small = mutate::shrink(
                    &text,
                    |text| matches!(self.oracle.compare(text), Outcome::Found(other) if other.difference == finding.difference),
                );
                let Outcome::Found(finding) = self.oracle.compare(&small) else { return };
                // One of a kind will do: by what it is about, and by the words that are left.
                let shape = match finding.difference {
                    // The names differ each time.
                    Difference::NameUnseen => shape(&small),
                    _ => format!("{} {}", general(&finding.what), shape(&small)),
                };
                if self.known.insert((finding.difference, shape)) {
                    report(Report { text: small, original: text, finding });
                }
            }
        }
    }
}

/// A message without what it quotes.
fn general(what: &str) -> String {
    what.split('"').step_by(2).collect()
}

/// The key words of a text, which tell findings apart.
fn shape(text: &str) -> String {
    let mut words: Vec<String> = mutate::pieces(text)
        .into_iter()
        .filter(|piece| piece.chars().all(|letter| letter.is_ascii_alphabetic()))
        .map(str::to_ascii_lowercase)
        .filter(|word| word.len() > 2)
        .collect();
    words.sort();
    words.dedup();
    words.truncate(6);
    words.join(" ")
}

/// The texts of the guard's cases and of what clients were recorded to send.
fn seeds(tests: &Path) -> Vec<String> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Entry {
        Text(String),
        Case { sql: String },
    }
    let mut seeds = Vec::new();
    for folder in ["guard", "recorded"] {
        let folder = tests.join(folder);
        let mut files: Vec<_> = std::fs::read_dir(&folder)
            .expect("a folder of cases")
            .map(|file| file.expect("a file").path())
            .collect();
        files.sort();
        for file in files.into_iter().filter(|file| file.extension().is_some_and(|ending| ending == "yaml")) {
            let text = std::fs::read_to_string(&file).expect("a table");
            let entries: Vec<Entry> =
                serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            seeds.extend(entries.into_iter().map(|entry| match entry {
                Entry::Text(sql) | Entry::Case { sql } => sql,
            }));
        }
    }
    seeds
}
