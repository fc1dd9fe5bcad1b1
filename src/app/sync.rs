//! `fedgate sync`: the loop by hand, where no gateway runs it, and its history.
//!
//! Invariant: `plan` and `history` change nothing; `run` and `rollback` leave the same trace as the gateway's own runs.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::json;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::audit::{Audit, AuditError};
use super::policy_loop::{LoopError, Sections, parts};
use crate::audit::event::{Actor, Event};
use crate::audit::spool::{SpoolError, Waiting};
use crate::config::{Config, ConfigError};
use crate::http::report_json;
use crate::metrics::Metrics;
use crate::sync::handle::{Ask, Report, Request, RunError, SyncHandle};
use crate::sync::history::{History, HistoryError, Revision};
use crate::sync::{Loop, Schedule, Trail};

#[derive(Args)]
pub struct SyncArgs {
    #[command(subcommand)]
    command: SyncCommand,
}

#[derive(Subcommand)]
enum SyncCommand {
    /// Show what a run would do, unmasking first; exit code 1 when there is something to do.
    Plan {
        #[command(flatten)]
        common: Common,
    },
    /// Run the loop once. A running gateway does this itself: POST /api/v1/sync.
    Run {
        #[command(flatten)]
        common: Common,
        /// Also carry out what waits for somebody's word, if the plan is still this one.
        #[arg(long, value_name = "PLAN_ID")]
        approve: Option<String>,
    },
    /// Give the loop's masks of an earlier revision back, as a new revision; people's entries stay as they are.
    Rollback {
        #[command(flatten)]
        common: Common,
        /// A number that `fedgate sync history` lists.
        #[arg(value_name = "REVISION")]
        revision: u64,
    },
    /// List the revisions that were published, the newest first.
    History {
        #[command(flatten)]
        common: Common,
        /// How many.
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
}

#[derive(Args)]
struct Common {
    /// The configuration (TOML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Answer as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum SyncError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Loop(#[from] LoopError),
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("{0}; a gateway that runs has it: ask that one, by POST /api/v1/sync or /api/v1/sync/rollback")]
    InUse(SpoolError),
    #[error(transparent)]
    Audit(AuditError),
    #[error("[sync] and [audit] are needed for this; see config/fedgate.toml")]
    NotConfigured,
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// What a command says by its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// There is something to do, or it waits for somebody's word.
    Open,
}

impl Answer {
    pub fn exit_code(self) -> u8 {
        match self {
            Answer::Done => 0,
            Answer::Open => 1,
        }
    }
}

/// Nothing is recorded by what changes nothing.
struct NoTrail;

impl Trail for NoTrail {
    async fn intend(&self, _: Event) -> Result<u64, SpoolError> {
        Err(SpoolError::Ended)
    }

    async fn complete(&self, _: u64, _: Event) -> Result<(), SpoolError> {
        Err(SpoolError::Ended)
    }

    async fn record(&self, _: Event) -> Result<(), SpoolError> {
        Err(SpoolError::Ended)
    }

    async fn intents(&self) -> Result<Vec<Waiting>, SpoolError> {
        Ok(Vec::new())
    }
}

/// Runs the command; results go to `out`.
///
/// # Errors
/// It could not be answered.
pub fn run(arguments: &SyncArgs, out: &mut impl Write) -> Result<Answer, SyncError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match &arguments.command {
            SyncCommand::Plan { common } => {
                let ask = Ask { actor: who(), dry_run: true, approve: None };
                let sections = sections(&common.config)?;
                let report = once(&sections, NoTrail, |reply| Request::Run { ask, reply }).await?;
                write_report(out, &report, common.json)?;
                Ok(if report.plan.changes.is_empty() { Answer::Done } else { Answer::Open })
            }
            SyncCommand::Run { common, approve } => {
                let approve = approve.as_deref().map(Into::into);
                let ask = Ask { actor: who(), dry_run: false, approve };
                let report = recorded(common, |reply| Request::Run { ask, reply }).await?;
                write_report(out, &report, common.json)?;
                Ok(if report.waiting.is_empty() { Answer::Done } else { Answer::Open })
            }
            SyncCommand::Rollback { common, revision } => {
                let (revision, actor) = (*revision, who());
                let report = recorded(common, |reply| Request::Rollback { revision, actor, reply }).await?;
                write_report(out, &report, common.json)?;
                Ok(Answer::Done)
            }
            SyncCommand::History { common, limit } => {
                let sections = sections(&common.config)?;
                let history = &sections.sync.history;
                let list = match history.exists() {
                    true => History::open(history, sections.sync.history_limit)?.list(*limit),
                    false => Vec::new(),
                };
                write_history(out, &list, common.json)?;
                Ok(Answer::Done)
            }
        }
    })
}

fn sections(path: &Path) -> Result<Sections, SyncError> {
    Ok(Sections::of(&Config::load(path)?))
}

/// Whoever has this terminal, by the name that the system knows them by.
fn who() -> Actor {
    let name = std::env::var("USER").or_else(|_| std::env::var("LOGNAME"));
    let name = name.ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "operator".to_owned());
    Actor::Admin { subject: format!("cli:{name}").into(), name: name.into() }
}

type Reply = oneshot::Sender<Result<Report, RunError>>;

/// As a gateway would do it: with its audit trail, and delivered as far as that goes quickly.
async fn recorded(common: &Common, request: impl FnOnce(Reply) -> Request) -> Result<Report, SyncError> {
    let config = Config::load(&common.config)?;
    let section = config.audit.as_ref().ok_or(SyncError::NotConfigured)?;
    let metrics = Metrics::new()?;
    let audit = Audit::start(section, &metrics.audit).map_err(|error| match error {
        AuditError::Spool(error @ SpoolError::InUse { .. }) => SyncError::InUse(error),
        error => SyncError::Audit(error),
    })?;
    let report = once(&Sections::of(&config), audit.journal.clone(), request).await;
    audit.end().await;
    report
}

async fn once<T: Trail>(
    sections: &Sections,
    trail: T,
    request: impl FnOnce(Reply) -> Request,
) -> Result<Report, SyncError> {
    let history = History::open(&sections.sync.history, sections.sync.history_limit)?;
    let parts = parts(sections, trail, history)?;
    let metrics = Metrics::new()?;
    let (_handle, requests, status) = SyncHandle::new(true);
    let schedule = Schedule { interval: sections.sync.interval, debounce: sections.sync.webhook_debounce };
    let mut it =
        Loop::new(parts, schedule, requests, status, metrics.sync.clone(), CancellationToken::new())?;
    let (reply, answer) = oneshot::channel();
    it.once(request(reply)).await?;
    match answer.await {
        Ok(report) => Ok(report?),
        Err(_) => Err(SyncError::NotConfigured),
    }
}

fn write_report(out: &mut impl Write, report: &Report, json: bool) -> Result<(), SyncError> {
    if json {
        writeln!(out, "{}", report_json(report))?;
        return Ok(());
    }
    write!(out, "{}", report.plan)?;
    if !report.held.is_empty() {
        writeln!(out, "{} of the changes wait for removal_delay", report.held.len())?;
    }
    if !report.waiting.is_empty() {
        writeln!(
            out,
            "{} of the changes wait for a word: fedgate sync run --approve {}",
            report.waiting.len(),
            report.plan_id
        )?;
    }
    match (report.dry_run, report.revision) {
        (true, _) => writeln!(out, "nothing was changed; plan {}", report.plan_id)?,
        (false, Some(revision)) => writeln!(out, "published as revision {revision}")?,
        (false, None) => writeln!(out, "there was nothing to publish")?,
    }
    Ok(())
}

fn write_history(out: &mut impl Write, list: &[Revision], json: bool) -> Result<(), SyncError> {
    if json {
        writeln!(out, "{}", json!({ "revisions": list }))?;
        return Ok(());
    }
    if list.is_empty() {
        writeln!(out, "there is no revision yet")?;
    }
    for revision in list {
        let Revision { number, state, reason, at, actor, summary, .. } = revision;
        let (state, reason) = (format!("{state:?}").to_lowercase(), format!("{reason:?}").to_lowercase());
        let at = humantime::format_rfc3339_seconds(*at);
        writeln!(out, "{number:>6}  {at}  {reason:<8}  {state:<9}  {actor}  {} change(s)", summary.len())?;
    }
    Ok(())
}
