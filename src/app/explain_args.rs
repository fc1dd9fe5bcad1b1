//! The arguments of `fedgate explain`, and what it judges by.
//!
//! Invariant: offline unless a source is named; then it asks that source for its functions and nothing
//! of the statement is sent there.

use std::io::{BufRead, Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use super::explain::{self, Answer, ExplainError};
use super::sources::load_catalogue;
use crate::config::{self, Config, ConfigError};
use crate::guard::{Context, Mode};
use crate::ids::{ClientUser, SourceName};
use crate::sql::Limits;
use crate::sql::catalogue::{Catalogue, StockError};
use crate::upstream::{Source, SourceError};

/// Longest text that is read from standard input, in bytes; the guard's own bound is far below.
const LONGEST_TEXT: u64 = 64 << 20;

#[derive(Debug, Args)]
#[command(
    after_help = "Exit codes: 0 every statement would be sent on, 1 one would be refused, 2 it could not be \
                        said.\n\nExamples:\n  fedgate explain \"SELECT lower(name) FROM t\"\n  fedgate explain \
                        --config fedgate.toml --source climscore - <query.sql\n  fedgate explain --jsonl \
                        <statements.jsonl   lines {\"id\":1,\"sql\":\"…\"}"
)]
pub struct ExplainArgs {
    /// Judge by a source of this configuration: its functions, its writers.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Which source of the configuration; may be left out when there is one.
    #[arg(long, value_name = "NAME", requires = "config")]
    source: Option<String>,
    /// Whom to judge for: a client user.
    #[arg(long, value_name = "USER", requires = "config")]
    subject: Option<String>,
    /// Without a configuration: judge by the functions of a stock PostgreSQL of this version (14 to 18).
    #[arg(long, value_name = "N", default_value_t = 17, conflicts_with = "config")]
    pg_version: u32,
    /// Answer lines of JSON with lines of JSON.
    #[arg(long, conflicts_with_all = ["json", "sql"])]
    jsonl: bool,
    /// Answer with one JSON object.
    #[arg(long)]
    json: bool,
    /// The statement; `-` or nothing reads standard input.
    #[arg(value_name = "SQL")]
    sql: Option<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Stock(#[from] StockError),
    #[error(transparent)]
    Explain(#[from] ExplainError),
    #[error("cannot read or write: {0}")]
    Io(#[from] std::io::Error),
    #[error("--source: the configuration has no source of this name; it has {0}")]
    NoSuchSource(String),
    #[error("--source: the configuration has several sources; name one of {0}")]
    WhichSource(String),
    #[error("the functions of the source cannot be loaded: {0}")]
    Catalogue(String),
}

impl Answer {
    pub fn exit_code(self) -> u8 {
        match self {
            Answer::Yes => 0,
            Answer::No => 1,
            Answer::Unknown => 2,
        }
    }
}

/// Answers what the arguments ask.
///
/// # Errors
/// Why it cannot be said.
pub fn run(args: &ExplainArgs, mut input: impl BufRead, mut output: impl Write) -> Result<Answer, RunError> {
    let (catalogue, source) = match &args.config {
        None => (Catalogue::stock(args.pg_version)?, None),
        Some(path) => {
            let config = Config::load(path)?;
            let source = choose(&config, args.source.as_deref())?;
            (ask(&source)?, Some(source))
        }
    };
    let writes = |source: &Arc<config::Source>| {
        args.subject.as_ref().is_some_and(|subject| source.is_writer(&ClientUser::new(subject.as_str())))
    };
    let context = Context {
        catalogue: &catalogue,
        mode: if source.as_ref().is_some_and(writes) { Mode::ReadWrite } else { Mode::ReadOnly },
        limits: &Limits::default(),
        source: &source.as_ref().map_or_else(|| SourceName::new("stock"), |source| source.name.clone()),
    };
    if args.jsonl {
        return Ok(explain::jsonl(input, output, &context)?);
    }
    let mut text = String::new();
    let sql = match args.sql.as_deref() {
        Some(sql) if sql != "-" => sql,
        _ => {
            input.by_ref().take(LONGEST_TEXT).read_to_string(&mut text)?;
            &text
        }
    };
    let answer = if args.json {
        explain::json(sql, &mut output, &context)?
    } else {
        explain::text(sql, &mut output, &context)?
    };
    output.flush()?;
    Ok(answer)
}

fn choose(config: &Config, name: Option<&str>) -> Result<Arc<config::Source>, RunError> {
    let names = || {
        let names: Vec<&str> = config.sources.iter().map(|source| source.name.as_str()).collect();
        names.join(", ")
    };
    match (name, config.sources.as_slice()) {
        (Some(name), _) => config.source(name).cloned().ok_or_else(|| RunError::NoSuchSource(names())),
        (None, [only]) => Ok(Arc::clone(only)),
        (None, _) => Err(RunError::WhichSource(names())),
    }
}

fn ask(config: &Arc<config::Source>) -> Result<Catalogue, RunError> {
    let source = Source::new(Arc::clone(config))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (_, catalogue) =
        runtime.block_on(load_catalogue(&source)).map_err(|(_, detail)| RunError::Catalogue(detail))?;
    Ok(catalogue)
}
