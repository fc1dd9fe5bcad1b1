//! The texts of policies, compiled together and asked what they decide.
//!
//! Invariant: an evaluation ends: its steps are counted, it has a deadline, and there are bounds on what built-ins make
//! and on what it answers; and what was compiled never changes, so that any number of threads may ask at once.
//!
//! regorus has two ways to run a policy. Its machine counts steps and is faster, and lets `x := input.missing` succeed
//! (0.14.1), which OPA does not; so its interpreter runs policies, and the machine's compiler only looks over them, since
//! it finds unknown functions and unbound variables that the interpreter would meet while it evaluates.

use std::collections::BTreeSet;
use std::num::{NonZeroU32, NonZeroUsize};
use std::sync::Arc;
use std::time::Duration;

use regorus::languages::rego::compiler::Compiler;
use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, PolicyLengthConfig, Value};
use serde_json::{Map, Number, Value as Json};

use super::budget::{self, Allowance, Spent};
use super::rewrite::{self, Collected, Declarations, EntryPoint};
use super::{Error, Origin, Problem};

/// Most bytes of one file.
const FILE_BYTES: usize = 1 << 20;
/// Most bytes of all files together.
const ALL_BYTES: usize = 64 << 20;
/// Longest line, in bytes, of a text with what is written in.
const LINE_BYTES: u32 = 1 << 20;
/// Stack for reading and compiling, in bytes; a page that is not used costs nothing.
const COMPILE_STACK: usize = 256 << 20;
/// Stack for one rule that calls another, in bytes.
const RULE_STACK: usize = 64 << 10;
const EVALUATION_STACK: usize = 512 << 10;
/// A rule that asks a rule that asks a rule …
const RULES_DEEP: usize = 2_000;

/// A `*.rego` file, read by the caller.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// As messages shall name it.
    pub name: Arc<str>,
    pub text: String,
}

/// What one evaluation may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// By the clock on the wall, over everything that is asked. A busy machine makes a policy late, so steps are what ends
    /// one that loops.
    pub deadline: Duration,
    /// Of the interpreter, over everything that is asked; the same on every machine.
    pub steps: u64,
    /// What built-ins make, in bytes, together.
    pub bytes: u64,
    /// Decisions and strategies together.
    pub entries: usize,
    /// Values (texts, numbers, lists, …) in all answers together.
    pub values: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            deadline: Duration::from_secs(1),
            steps: 2_000_000,
            bytes: 64 << 20,
            entries: 100_000,
            values: 2_000_000,
        }
    }
}

/// What a rule answered.
#[derive(Clone, Debug, PartialEq)]
pub struct RawEntry {
    pub value: Json,
    pub at: Origin,
}

/// The answers of `config` and `optimize`, each value once, in the order of the declarations.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Raw {
    pub config: Vec<RawEntry>,
    pub optimize: Vec<RawEntry>,
}

/// A set of policies, ready to be asked.
pub struct Policies {
    declarations: Declarations,
    parts: Vec<EntryPoint>,
    /// Prepared; each evaluation takes a copy, which shares what was compiled.
    engine: Engine,
    /// In bytes.
    stack: usize,
}

impl std::fmt::Debug for Policies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Policies({} declarations)", self.declarations.list.len())
    }
}

impl Policies {
    /// Compiles all files together. A file is of Rego v0, or of v1 when it imports `rego.v1`.
    ///
    /// # Errors
    /// [`Error::Compile`] with each file that is wrong, or [`Error::Shape`] for a `config` that is no set.
    pub fn compile(files: &[SourceFile]) -> Result<Self, Error> {
        stacker::grow(COMPILE_STACK, || Self::compile_here(files))
    }

    /// How many `config` and `optimize` rules there are.
    pub fn len(&self) -> usize {
        self.declarations.list.len()
    }

    pub fn is_empty(&self) -> bool {
        self.declarations.list.is_empty()
    }

    fn compile_here(files: &[SourceFile]) -> Result<Self, Error> {
        let mut problems = Vec::new();
        if files.iter().map(|file| file.text.len()).sum::<usize>() > ALL_BYTES {
            let at = Origin { file: files.first().map_or("".into(), |file| file.name.clone()), line: 1 };
            let message = format!("and the others are longer than {ALL_BYTES} bytes together");
            return Err(Error::Compile(vec![Problem { at, message }]));
        }
        let mut declarations = Declarations::of(files.len());
        let mut texts: Vec<(Arc<str>, String)> = Vec::new();
        let mut reads = false;
        for file in files {
            match prepare(file, &mut declarations, &mut reads) {
                Ok(text) => texts.push((file.name.clone(), text)),
                Err(Error::Compile(more)) => problems.extend(more),
                Err(other) => return Err(other),
            }
        }
        if !problems.is_empty() {
            return Err(Error::Compile(problems));
        }
        if reads {
            texts.push(("(config and optimize)".into(), rewrite::readers(&declarations)));
        }
        let mut engine = new_engine();
        for (name, text) in &texts {
            add(&mut engine, name, text.clone())?;
        }
        let modules = engine.get_modules().clone();
        let deepest = rewrite::check_circles(modules.iter().map(AsRef::as_ref))
            .map_err(|problem| Error::Compile(vec![problem]))?;
        if deepest > RULES_DEEP {
            let at = Origin { file: files.first().map_or("".into(), |file| file.name.clone()), line: 1 };
            let message =
                format!("and the others hold rules that ask each other more than {RULES_DEEP} deep");
            return Err(Error::Compile(vec![Problem { at, message }]));
        }
        let fallback = Origin { file: files.first().map_or("".into(), |file| file.name.clone()), line: 1 };
        let parts = declarations.entry_points();
        budget::install(&mut engine)
            .map_err(|error| Error::Compile(vec![located(&error.to_string(), &fallback)]))?;
        if let Some(first) = parts.first() {
            let compiled = engine
                .compile_with_entrypoint(&Arc::from(first.path.as_str()))
                .map_err(|error| Error::Compile(vec![located(&error.to_string(), &fallback)]))?;
            for part in &parts {
                let checked = Compiler::compile_from_policy(&compiled, &[&part.path]);
                if let Err(error) = checked.map_err(|error| error.to_string())
                    && is_the_policys_fault(&error)
                {
                    problems.push(located(&error, &fallback));
                }
            }
        }
        if !problems.is_empty() {
            problems.dedup();
            return Err(Error::Compile(problems));
        }
        let stack = EVALUATION_STACK.max(deepest.saturating_mul(RULE_STACK));
        Ok(Self { declarations, parts, engine, stack })
    }

    /// What the policies say about an input at a time.
    ///
    /// # Errors
    /// [`Error::Evaluation`], [`Error::Limit`], or [`Error::Shape`] for an answer that JSON cannot say.
    pub fn evaluate(&self, input: &Json, now_ns: i64, limits: &Limits) -> Result<Raw, Error> {
        stacker::maybe_grow(self.stack, self.stack, || self.evaluate_here(input, now_ns, limits))
    }

    fn evaluate_here(&self, input: &Json, now_ns: i64, limits: &Limits) -> Result<Raw, Error> {
        let mut engine = self.engine.clone();
        let allowance = Allowance::new(limits, now_ns);
        engine.set_input(from_json(input));
        // The allowance counts at each look, and says when there is nothing left.
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit: Duration::ZERO,
            check_interval: NonZeroU32::MIN,
        });
        let mut found: Vec<(usize, Value)> = Vec::new();
        for part in &self.parts {
            let value = engine.eval_rule(part.path.clone());
            // Where errors make undefined, a limit may have been one; what is missing then must not pass for a decision.
            if let Some(spent) = allowance.spent() {
                let at = value.err().and_then(|error| place(&error.to_string()));
                return Err(too_much(spent, at, part, limits));
            }
            let value = value.map_err(|error| evaluation_error(&error.to_string()))?;
            self.collect(value, part.rule, limits, &mut found)?;
        }
        found.sort_by_key(|(index, _)| *index);
        self.answers(&found, limits)
    }

    /// The pairs of declaration and value that a rule answered with.
    fn collect(
        &self,
        value: Value,
        rule: Collected,
        limits: &Limits,
        found: &mut Vec<(usize, Value)>,
    ) -> Result<(), Error> {
        if value == Value::Undefined {
            return Ok(());
        }
        let strange = || Error::Evaluation {
            at: None,
            message: format!("rule {} answered with what it did not declare", rule.as_str()),
        };
        let set = value.as_set().map_err(|_| strange())?;
        if found.len().saturating_add(set.len()) > limits.entries {
            return Err(answers_too_much(format!(
                "the policies answer with more than {} decisions",
                limits.entries
            )));
        }
        for pair in set.iter() {
            let mut parts = pair.as_array().map_err(|_| strange())?.iter();
            let (Some(Value::Number(index)), Some(value)) = (parts.next(), parts.next()) else {
                return Err(strange());
            };
            let index = index.as_u64().and_then(|index| usize::try_from(index).ok()).ok_or_else(strange)?;
            found.push((index, value.clone()));
        }
        Ok(())
    }

    fn answers(&self, found: &[(usize, Value)], limits: &Limits) -> Result<Raw, Error> {
        let mut raw = Raw::default();
        let mut seen: BTreeSet<(bool, String)> = BTreeSet::new();
        let mut values = limits.values;
        for (index, value) in found {
            let Some(declared) = self.declarations.list.get(*index) else { continue };
            // As JSON, whose size is bounded: to compare values of regorus may take without end.
            let value = to_json(value, &mut values, 0).map_err(|reason| match reason {
                Unfit::TooMuch => {
                    answers_too_much(format!("the policies answer with more than {} values", limits.values))
                }
                Unfit::Shape(message) => Error::Shape {
                    at: declared.at.clone(),
                    rule: declared.rule.as_str(),
                    message: message.to_owned(),
                },
            })?;
            if !seen.insert((declared.rule == Collected::Config, value.to_string())) {
                continue;
            }
            let list = match declared.rule {
                Collected::Config => &mut raw.config,
                Collected::Optimize => &mut raw.optimize,
            };
            list.push(RawEntry { value, at: declared.at.clone() });
        }
        Ok(raw)
    }
}

fn answers_too_much(message: String) -> Error {
    Error::Limit { at: None, message }
}

fn too_much(spent: Spent, at: Option<Origin>, part: &EntryPoint, limits: &Limits) -> Error {
    let what = match spent {
        Spent::Time => format!("the policies take longer than {} ms", limits.deadline.as_millis()),
        Spent::Steps => format!("the policies take more than {} steps", limits.steps),
        Spent::Bytes(name) => format!("{name} takes what built-ins make above {} bytes", limits.bytes),
    };
    let message = match (&at, part.alone) {
        (Some(_), _) => what,
        (None, true) => format!("{what}; spent at last by {} of {}", part.rule.as_str(), part.first),
        (None, false) => {
            format!(
                "{what}; spent at last by {} of {} or one that follows it",
                part.rule.as_str(),
                part.first
            )
        }
    };
    Error::Limit { at, message }
}

/// The line that a message of regorus is about.
fn place(text: &str) -> Option<Origin> {
    let nowhere = Origin { file: "".into(), line: 0 };
    let problem = located(text, &nowhere);
    (problem.at != nowhere).then_some(problem.at)
}

fn evaluation_error(text: &str) -> Error {
    let nowhere = Origin { file: "".into(), line: 0 };
    let problem = located(text, &nowhere);
    let at = if problem.at == nowhere { None } else { Some(problem.at) };
    Error::Evaluation { at, message: problem.message }
}

/// Whether a message of the machine's compiler is about the policy, and not about what the machine cannot do.
fn is_the_policys_fault(message: &str) -> bool {
    // These are there, and are ours.
    if message.contains("net.cidr_") {
        return false;
    }
    ["Unknown function", "Undefined variable", "Not a builtin", "Unknown builtin", "unsafe", "arguments"]
        .iter()
        .any(|fault| message.contains(fault))
}

fn new_engine() -> Engine {
    let mut engine = Engine::new();
    // A file that imports rego.v1 is read as v1 all the same.
    engine.set_rego_v0(true);
    // As OPA does: a built-in that fails makes its own rule undefined, and nothing else.
    engine.set_strict_builtin_errors(false);
    // Kept until the copy of the evaluation is dropped, instead of written to standard error.
    engine.set_gather_prints(true);
    let (least, lines) = (NonZeroU32::MIN, NonZeroUsize::MIN);
    engine.set_policy_length_config(PolicyLengthConfig {
        max_col: NonZeroU32::new(LINE_BYTES).unwrap_or(least),
        max_file_bytes: NonZeroUsize::new(FILE_BYTES * 4).unwrap_or(lines),
        max_lines: NonZeroUsize::new(FILE_BYTES).unwrap_or(lines),
    });
    engine
}

fn add(engine: &mut Engine, name: &Arc<str>, text: String) -> Result<(), Error> {
    engine.add_policy(name.to_string(), text).map(drop).map_err(|error| {
        Error::Compile(vec![located(&error.to_string(), &Origin { file: name.clone(), line: 1 })])
    })
}

/// A file's text as regorus shall read it; its declarations are noted.
fn prepare(file: &SourceFile, declarations: &mut Declarations, reads: &mut bool) -> Result<String, Error> {
    let wrong = |line: u32, message: String| {
        Error::Compile(vec![Problem { at: Origin { file: file.name.clone(), line }, message }])
    };
    if file.text.len() > FILE_BYTES {
        return Err(wrong(1, format!("is longer than {FILE_BYTES} bytes")));
    }
    // The reader would take it for the end of the text, and leave out what follows.
    if let Some(at) = file.text.find('\0') {
        let line = file.text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
        return Err(wrong(u32::try_from(line).unwrap_or(u32::MAX), "holds a character 0".to_owned()));
    }
    rewrite::check_depth(&file.text).map_err(|(line, message)| wrong(line, message))?;
    if let Some(line) = rewrite::reserved(&file.text) {
        return Err(wrong(line, "names that begin with fedgate_ are the gateway's own".to_owned()));
    }
    let mut text = file.text.clone();
    for _ in rewrite::rounds() {
        let mut engine = new_engine();
        add(&mut engine, &file.name, text.clone())?;
        let Some(module) = engine.get_modules().first().cloned() else { continue };
        match rewrite::bodies(&text, &module) {
            Some(next) => text = next,
            None => {
                *reads |= rewrite::reads_declarations(&module);
                return rewrite::heads(&file.name, &text, &module, declarations).map_err(
                    |(rule, problem)| Error::Shape {
                        at: problem.at,
                        rule: rule.as_str(),
                        message: problem.message,
                    },
                );
            }
        }
    }
    Err(wrong(1, "nests not inside the operand of not too deep".to_owned()))
}

/// regorus' message (`--> file:line:column`, the line, `error: what`) as a problem of one line.
fn located(text: &str, fallback: &Origin) -> Problem {
    let mut at = fallback.clone();
    if let Some((place, _)) = text.split_once("--> ").and_then(|(_, rest)| rest.split_once('\n')) {
        let mut parts = place.rsplitn(3, ':');
        if let (Some(_), Some(Ok(line)), Some(file)) =
            (parts.next(), parts.next().map(str::parse::<u32>), parts.next())
        {
            at = Origin { file: file.into(), line };
        }
    }
    // A message may quote another one with a place of its own; the last is the reason.
    let message = match text.rsplit_once("error: ") {
        Some((_, message)) => message,
        None => text,
    };
    Problem { at, message: first_line(message) }
}

fn first_line(text: &str) -> String {
    text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("unknown").chars().take(500).collect()
}

fn from_json(value: &Json) -> Value {
    match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(*value),
        // As text, since a number keeps its spelling.
        Json::Number(number) => Value::from_json_str(&number.to_string()).unwrap_or(Value::Null),
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => Value::from(items.iter().map(from_json).collect::<Vec<_>>()),
        Json::Object(fields) => {
            let mut object = Value::new_object();
            if let Ok(object) = object.as_object_mut() {
                for (key, value) in fields {
                    object.insert(Value::from(key.as_str()), from_json(value));
                }
            }
            object
        }
    }
}

enum Unfit {
    TooMuch,
    Shape(&'static str),
}

fn to_json(value: &Value, budget: &mut usize, depth: usize) -> Result<Json, Unfit> {
    *budget = budget.checked_sub(1).ok_or(Unfit::TooMuch)?;
    if depth > 64 {
        return Err(Unfit::Shape("is nested more than 64 deep"));
    }
    Ok(match value {
        Value::Null | Value::Undefined => Json::Null,
        Value::Bool(value) => Json::Bool(*value),
        Value::Number(_) => {
            let number = value.to_string().parse::<Number>();
            number.map(Json::Number).map_err(|_| Unfit::Shape("holds a number that JSON cannot say"))?
        }
        Value::String(text) => Json::String(text.to_string()),
        Value::Array(items) => {
            Json::Array(items.iter().map(|item| to_json(item, budget, depth + 1)).collect::<Result<_, _>>()?)
        }
        Value::Set(items) => {
            Json::Array(items.iter().map(|item| to_json(item, budget, depth + 1)).collect::<Result<_, _>>()?)
        }
        Value::Object(fields) => {
            let mut object = Map::new();
            for (key, value) in fields.iter() {
                let Value::String(key) = key else {
                    return Err(Unfit::Shape("holds an object with a key that is no text"));
                };
                object.insert(key.to_string(), to_json(value, budget, depth + 1)?);
            }
            Json::Object(object)
        }
    })
}
