//! The audit trail of a running gateway: the journal, the task that delivers, and their end.
//!
//! Invariant: it starts before anybody can be refused and ends after everybody who could tell of something, and its
//! end takes no longer than [`FLUSH`] and [`DELIVER`] together.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::audit::deliver::{Deliverer, Delivery, Pace};
use crate::audit::journal::{Journal, Owner, Settings};
use crate::audit::ocsf::{RunClass, Style};
use crate::audit::sink::{
    AnySink, Fault, FileSink, Sink, SinkError, Token, VictoriaLogs, VictoriaLogsSettings,
};
use crate::audit::spool::{Bounds, Spool, SpoolError};
use crate::config::{AuditSection, AuditSink};
use crate::metrics::AuditMetrics;
use crate::session::Trail;

/// At the end, how long the spool may take to have it all.
const FLUSH: Duration = Duration::from_secs(5);
/// And how long what is in the spool is still delivered; the rest goes with the next start.
const DELIVER: Duration = Duration::from_secs(3);

/// Why there is no audit trail although one is configured.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error(transparent)]
    Spool(#[from] SpoolError),
    #[error("the audit sink cannot be used: {0}")]
    Sink(#[from] SinkError),
    #[error("the audit sink cannot be used: {0}")]
    Fault(#[from] Fault),
}

/// A running audit trail.
pub struct Audit {
    /// For whoever changes policy.
    pub(super) journal: Journal,
    owner: Owner,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
    /// What became of deliveries.
    pub(super) delivery: watch::Receiver<Delivery>,
    trail: Arc<Trail>,
}

impl Audit {
    /// Opens the spool and begins to deliver. A sink that does not answer now is tried later.
    ///
    /// # Errors
    /// The spool cannot be opened, or a sink of this configuration can never work.
    pub fn start(section: &AuditSection, metrics: &AuditMetrics) -> Result<Self, AuditError> {
        let settings =
            Settings { folder: section.spool.clone(), bounds: bounds(section), window: section.window };
        // The sink first: what cannot work leaves no spool behind.
        let sink = sink(section)?;
        let (journal, owner) = Journal::start(settings, metrics.clone())?;
        let (deliverer, delivery) = Deliverer::new(
            journal.clone(),
            sink,
            style(section),
            &section.spool,
            Pace::default(),
            metrics.clone(),
        );
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(deliverer.run(async move {
            // Either the word to stop or the end of whoever would say it.
            let _ = stopped.await;
        }));
        let trail = Trail::new(journal.clone(), section.reads);
        tracing::info!(spool = %section.spool.display(), reads = section.reads, "the audit trail begins");
        Ok(Self { journal, owner, stop, task, delivery, trail })
    }

    /// For sessions.
    pub fn trail(&self) -> Arc<Trail> {
        Arc::clone(&self.trail)
    }

    /// Writes down what was told, delivers what can be delivered soon, and ends.
    pub async fn end(self) {
        let Self { journal, owner, stop, mut task, delivery, .. } = self;
        if !matches!(timeout(FLUSH, journal.flush()).await, Ok(Ok(()))) {
            tracing::error!("not all that was told to the audit trail is on the disk");
        }
        let _ = stop.send(());
        if timeout(DELIVER, &mut task).await.is_err() {
            task.abort();
        }
        let left = journal.state().borrow().fill.events;
        if left > 0 {
            let fault = delivery.borrow().fault.clone();
            tracing::warn!(
                events = left,
                fault = fault.as_deref(),
                "audit events wait in the spool for the next start"
            );
        }
        if !owner.end(FLUSH).await {
            tracing::error!("the audit spool did not close in time");
        }
    }
}

fn bounds(section: &AuditSection) -> Bounds {
    Bounds { limit: section.spool_limit, reserve: section.spool_reserve }
}

fn style(section: &AuditSection) -> Style {
    Style {
        run_class: if section.entity_management {
            RunClass::EntityManagement
        } else {
            RunClass::DataAccessManagement
        },
    }
}

fn sink(section: &AuditSection) -> Result<AnySink, SinkError> {
    Ok(match &section.sink {
        AuditSink::File { path } => AnySink::File(FileSink::new(path.clone(), style(section))),
        AuditSink::VictoriaLogs(logs) => {
            let token = logs
                .token
                .clone()
                .map(|file| Token::new(move || file.read().map(|secret| secret.expose().to_owned())));
            let settings = VictoriaLogsSettings {
                url: logs.url.clone(),
                account_id: logs.account_id,
                project_id: logs.project_id,
                token,
                ca: logs.ca.clone(),
                timeout: logs.timeout,
            };
            AnySink::VictoriaLogs(Box::new(VictoriaLogs::new(settings, style(section))?))
        }
    })
}

/// For `fedgate check`: what the section says.
pub fn fact(section: &AuditSection) -> String {
    let sink = match &section.sink {
        AuditSink::File { path } => format!("to the file {}", path.display()),
        AuditSink::VictoriaLogs(logs) => {
            format!("to VictoriaLogs at {}, tenant {}:{}", logs.url, logs.account_id, logs.project_id)
        }
    };
    let what = if section.reads {
        "refusals, changes of policy and reads"
    } else {
        "refusals and changes of policy"
    };
    format!("audit trail: {what} {sink}, spool in {}", section.spool.display())
}

/// For `fedgate check`: whether spool and sink could be used, without making or changing either.
///
/// # Errors
/// Why not.
pub fn check(section: &AuditSection) -> Result<(), AuditError> {
    sink(section)?;
    Spool::check(&section.spool)?;
    if let AuditSink::File { path } = &section.sink {
        FileSink::check(path)?;
    }
    Ok(())
}

/// For `fedgate check --live`: whether VictoriaLogs answers.
///
/// # Errors
/// Why not.
pub async fn dial(section: &AuditSection) -> Result<(), AuditError> {
    match sink(section)? {
        // What can be seen without writing was seen.
        AnySink::File(_) => Ok(()),
        mut sink @ AnySink::VictoriaLogs(_) => Ok(sink.probe().await?),
    }
}
