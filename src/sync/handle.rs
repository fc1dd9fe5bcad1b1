//! What the rest of the process may do with the loop: look at it, and ask it for something.
//!
//! Invariant: whoever holds a handle can neither block the loop nor be blocked by it for longer than a run
//! takes; a request that finds the queue full is told so at once.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use super::catalog::{Hint, Picture};
use super::planner::safety::Held;
use super::planner::{Change, Plan};
use crate::audit::event::Actor;
use crate::metrics::{Label, SyncFailure};
use crate::timestamp;

/// Requests that wait for the loop; triggers that are alike become one run anyway.
pub const QUEUE: usize = 64;

/// What is asked of the loop.
#[derive(Debug)]
pub enum Request {
    /// The catalog says that something has changed. Gathered, then one run for all of them.
    Push(Hint),
    /// SIGUSR1.
    Signal,
    /// An admin wants a run, and its report. It may end what holds the loop back.
    Run { ask: Ask, reply: oneshot::Sender<Result<Report, RunError>> },
    /// An admin wants the masks of an earlier revision back.
    Rollback { revision: u64, actor: Actor, reply: oneshot::Sender<Result<Report, RunError>> },
}

/// A run as an admin asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub actor: Actor,
    /// Plan and change nothing.
    pub dry_run: bool,
    /// Carry out what waits for an admin's word, unmaskings over `max_removal`, if the plan is still this one
    /// ([`Report::plan_id`]).
    pub approve: Option<Arc<str>>,
}

/// What one run did, or would do.
#[derive(Clone, Debug)]
pub struct Report {
    pub dry_run: bool,
    pub began: SystemTime,
    pub duration: Duration,
    pub tables_processed: u64,
    pub subjects_affected: u64,
    pub publish_failures: u64,
    /// Names this plan: the same changes have the same.
    pub plan_id: Arc<str>,
    /// What was planned, with what waits left in it.
    pub plan: Arc<Plan>,
    /// Changes that were not carried out: they wait for an admin's word, with the reason.
    pub waiting: Vec<Change>,
    /// Changes that wait for `removal_delay`.
    pub held: Vec<Held>,
    /// The revision that was published; `None`: there was nothing to publish.
    pub revision: Option<u64>,
    /// What was published.
    pub published: Option<PublishedDocument>,
}

/// A document that the loop published, for whoever follows it to where it is enforced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedDocument {
    /// As the history and [`crate::document::Snapshot::version`] call it.
    pub content: Arc<str>,
    /// When the catalog last changed one of the tables whose masks changed, by the catalog's clock; `None`: it did not
    /// say, or nothing of its led to it.
    pub changed_at: Option<SystemTime>,
}

/// Why a run did not do what it should: the causes that people can do something about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The catalog does not accept the bot's token (401).
    JwtExpired,
    /// The catalog does not answer, or not with a whole picture.
    CatalogUnreachable,
    /// Somebody else kept changing the document.
    Conflict,
    /// The map of tags names a mask that the library does not have.
    MissingMask,
    /// The document cannot be read, is none, or cannot be written.
    Document,
    /// Nothing can be recorded, so nothing may be unmasked.
    Audit,
    /// What was asked for cannot be done: the plan has changed, there is no such revision.
    Refused,
    /// A bug: the run panicked.
    Internal,
}

/// A run that failed; the masks in force stay.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct RunError {
    pub cause: Cause,
    /// What happened, to what, and what to do; without secrets.
    pub message: Arc<str>,
}

/// How the loop stands; shown by the API under the first seed's names.
#[derive(Clone, Debug, Default, Serialize)]
pub struct SyncStatus {
    pub enabled: bool,
    /// The last run that ended, whatever its outcome; `null` before the first.
    #[serde(serialize_with = "timestamp::maybe_millis")]
    pub last_run: Option<SystemTime>,
    /// Of the last run, in seconds.
    pub duration: Option<f64>,
    pub tables_processed: u64,
    pub subjects_affected: u64,
    /// Of the last run.
    pub publish_failures: u64,
    /// When the timer fires next; `null` while a run is under way, or when the loop is off.
    #[serde(serialize_with = "timestamp::maybe_millis")]
    pub next_run: Option<SystemTime>,
    pub running: bool,
    /// Why the last run failed; `null` when it did not.
    pub cause: Option<Cause>,
    pub message: Option<Arc<str>>,
    /// Failed runs in a row.
    pub failures_in_a_row: u64,
    /// Unmaskings that wait for an admin's word, and the plan to name with it.
    pub waiting: u64,
    pub plan_id: Option<Arc<str>>,
    /// Unmaskings that wait for `removal_delay`.
    pub held: u64,
    /// Set by a rollback: only what an admin asks for is published until then.
    pub rolled_back_to: Option<u64>,
    /// The newest revision in the history.
    pub revision: Option<u64>,
    /// What the last run published that published anything; shown with its enforcement.
    #[serde(skip)]
    pub published: Option<PublishedDocument>,
    /// What the catalog said last, for whoever decides by it.
    #[serde(skip)]
    pub picture: Option<Arc<Picture>>,
}

/// A handle on the loop.
#[derive(Clone, Debug)]
pub struct SyncHandle {
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<SyncStatus>,
}

/// Why a request was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    #[error("too many requests wait for the loop; ask again when one of them is done")]
    Full,
    #[error("the loop has ended")]
    Ended,
}

/// What an admin's request ends with.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AskError {
    #[error(transparent)]
    NotTaken(#[from] NotTaken),
    #[error(transparent)]
    Run(#[from] RunError),
}

impl Cause {
    /// The word for metrics, events and status.
    pub fn as_str(self) -> &'static str {
        self.metric().as_str()
    }

    pub fn metric(self) -> SyncFailure {
        match self {
            Cause::JwtExpired => SyncFailure::JwtExpired,
            Cause::CatalogUnreachable => SyncFailure::CatalogUnreachable,
            Cause::Conflict => SyncFailure::Conflict,
            Cause::MissingMask => SyncFailure::MissingMask,
            Cause::Document => SyncFailure::Document,
            Cause::Audit => SyncFailure::Audit,
            Cause::Refused => SyncFailure::Refused,
            Cause::Internal => SyncFailure::Internal,
        }
    }
}

impl RunError {
    pub fn new(cause: Cause, message: impl Into<Arc<str>>) -> Self {
        Self { cause, message: message.into() }
    }
}

impl SyncHandle {
    /// A handle, and the ends that the loop itself keeps.
    pub fn new(enabled: bool) -> (Self, mpsc::Receiver<Request>, watch::Sender<SyncStatus>) {
        let (requests, received) = mpsc::channel(QUEUE);
        let status = watch::Sender::new(SyncStatus { enabled, ..SyncStatus::default() });
        (Self { requests, status: status.subscribe() }, received, status)
    }

    pub fn status(&self) -> watch::Receiver<SyncStatus> {
        self.status.clone()
    }

    /// A run that begins after this call; it waits for a run that is under way.
    ///
    /// # Errors
    /// The queue is full, the loop has ended, or the run failed.
    pub async fn run(&self, ask: Ask) -> Result<Report, AskError> {
        self.ask(|reply| Request::Run { ask, reply }).await
    }

    /// The loop's masks as they were at a revision, as a new revision.
    ///
    /// # Errors
    /// As [`SyncHandle::run`]; also when there is no such revision.
    pub async fn rollback(&self, revision: u64, actor: Actor) -> Result<Report, AskError> {
        self.ask(|reply| Request::Rollback { revision, actor, reply }).await
    }

    /// Tells the loop that the catalog has news. Never waits.
    ///
    /// # Errors
    /// The queue is full or the loop has ended; the timer's run will see what was missed.
    pub fn push(&self, hint: Hint) -> Result<(), NotTaken> {
        self.send(Request::Push(hint))
    }

    /// As SIGUSR1 does. Never waits.
    ///
    /// # Errors
    /// As [`SyncHandle::push`].
    pub fn signal(&self) -> Result<(), NotTaken> {
        self.send(Request::Signal)
    }

    async fn ask(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<Report, RunError>>) -> Request,
    ) -> Result<Report, AskError> {
        let (reply, answer) = oneshot::channel();
        self.send(request(reply))?;
        Ok(answer.await.map_err(|_| NotTaken::Ended)??)
    }

    fn send(&self, request: Request) -> Result<(), NotTaken> {
        self.requests.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NotTaken::Full,
            mpsc::error::TrySendError::Closed(_) => NotTaken::Ended,
        })
    }
}
