//! The PII loop of a running gateway: its parts from the configuration, its thread, and its end.
//!
//! Invariant: it has a thread and a runtime of its own, so that nothing of it is ever in the way of a session; one
//! that is off has no thread, no folder and no file.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::SeedableRng;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::audit::journal::Journal;
use crate::config::{Config, DocumentPlace, DocumentSection, SyncSection};
use crate::http::{SyncView, config_view};
use crate::metrics::SyncMetrics;
use crate::sync::catalog::{AnyCatalog, openmetadata};
use crate::sync::handle::{RunError, SyncHandle};
use crate::sync::history::{History, HistoryError};
use crate::sync::lease::Lease;
use crate::sync::planner::Rules;
use crate::sync::publisher::AnyPublisher;
use crate::sync::{Loop, Parts, Schedule, Trail};

/// How much threads stand back that are not of sessions (`nice`).
const NICE: i32 = 15;
/// How long a loop that was told to stop is waited for: a run's own grace, and a little.
const STOP: Duration = Duration::from_secs(8);

/// Why there is no loop although one is configured.
#[derive(Debug, thiserror::Error)]
pub enum LoopError {
    #[error("the catalog cannot be used: {0}")]
    Catalog(#[from] openmetadata::ClientError),
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("[sync] is on and lacks its {0}")]
    Lacks(&'static str),
    #[error("no thread can be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// What a loop depends on in the configuration.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Sections {
    pub sync: SyncSection,
    pub document: Option<DocumentSection>,
}

impl Sections {
    pub fn of(config: &Config) -> Self {
        Self { sync: config.sync.clone(), document: config.document.clone() }
    }

    fn place(&self) -> Result<&DocumentPlace, LoopError> {
        Ok(&self.document.as_ref().ok_or(LoopError::Lacks("document"))?.place)
    }
}

/// A loop under way.
pub(super) struct PolicyLoop {
    stop: CancellationToken,
    ended: oneshot::Receiver<()>,
    pub view: SyncView,
}

impl PolicyLoop {
    /// Starts the loop, if it is on.
    ///
    /// # Errors
    /// It cannot be built from this configuration.
    pub fn start(
        sections: &Sections,
        journal: Option<Journal>,
        metrics: &SyncMetrics,
    ) -> Result<Option<Self>, LoopError> {
        if !sections.sync.enabled {
            return Ok(None);
        }
        let journal = journal.ok_or(LoopError::Lacks("audit trail"))?;
        let history = History::open(&sections.sync.history, sections.sync.history_limit)?;
        let parts = parts(sections, journal, history.clone())?;
        let schedule =
            Schedule { interval: sections.sync.interval, debounce: sections.sync.webhook_debounce };
        let (handle, requests, status) = SyncHandle::new(true);
        let stop = CancellationToken::new();
        let mut it = Loop::new(parts, schedule, requests, status, metrics.clone(), stop.clone())?;
        let lease = Lease::of(sections.place()?, &replica());
        if let Some(lease) = &lease {
            it = it.with_standing(lease.standing());
        }
        let stop_lease = stop.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new().name("sync".to_owned()).spawn(move || {
            stand_back();
            runtime.block_on(async {
                match lease {
                    Some(lease) => drop(tokio::join!(it.run(), lease.run(stop_lease))),
                    None => it.run().await,
                }
            });
            // A file that is still being read holds nobody up.
            runtime.shutdown_background();
            let _ = end.send(());
        })?;
        tracing::info!(interval = ?sections.sync.interval, history = %sections.sync.history.display(), "the sync loop begins");
        let view = SyncView {
            handle,
            history,
            config: config_view(&sections.sync, sections.document.as_ref().map(|document| &document.place)),
            webhook_secret: sections.sync.webhook_secret.clone(),
        };
        Ok(Some(Self { stop, ended, view }))
    }

    /// Tells the loop to stop and waits for it; a run under way may come to its end.
    pub async fn end(self) {
        self.stop.cancel();
        if timeout(STOP, self.ended).await.is_err() {
            tracing::warn!("the sync loop did not end in time; the next start settles what it left");
        }
    }
}

/// Lets sessions come first where cores are few: for the calling thread and those that it starts.
pub(super) fn stand_back() {
    if let Err(error) = rustix::process::setpriority_process(None, NICE) {
        tracing::debug!(%error, "a thread beside those of sessions keeps its priority");
    }
}

/// A name that no other replica has, nor this one in another life.
fn replica() -> String {
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| "fedgate".to_owned());
    let host: String = host.chars().filter(char::is_ascii_graphic).take(200).collect();
    format!("{host}_{:08x}", rand::random::<u32>())
}

/// The parts of a loop, over any trail.
///
/// # Errors
/// As [`PolicyLoop::start`].
pub(super) fn parts<T: Trail>(
    sections: &Sections,
    trail: T,
    history: History,
) -> Result<Parts<AnyCatalog, AnyPublisher, T>, LoopError> {
    let sync = &sections.sync;
    let catalog = AnyCatalog::of(sync.catalog.as_ref().ok_or(LoopError::Lacks("catalog"))?)?;
    let publisher = AnyPublisher::new(sections.place()?);
    let rules = Rules {
        tag_to_mask: sync
            .tag_to_mask
            .iter()
            .map(|(tag, mask)| (tag.as_str().into(), mask.as_str().into()))
            .collect(),
        admin_subjects: sync.admin_subjects.iter().map(|name| name.as_str().into()).collect(),
        enforce_suggested: sync.enforce_suggested,
    };
    Ok(Parts {
        catalog,
        publisher,
        trail,
        history,
        rules,
        max_removal: sync.max_removal,
        removal_delay: sync.removal_delay,
        clock: Arc::new(SystemTime::now),
        random: Box::new(rand::rngs::StdRng::from_os_rng()),
    })
}
