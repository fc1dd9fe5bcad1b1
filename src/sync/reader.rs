//! The `[document]` reader: what stands in the document's place comes into force here, with the loop on or off.
//!
//! Invariant: what is in force was valid as a whole when it was read, and stays in force whatever becomes of its place,
//! until another valid document is there. A fault is told once for each change of it, and its end is told, too.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::publisher::{AnyPublisher, Fetched, PublishError, Version};
use crate::document::{Document, OneLine, Snapshot};
use crate::metrics::{DocumentMetrics, DocumentRead};
use crate::timestamp;

/// Longest text of a fault, in characters.
const MESSAGE_LIMIT: usize = 500;

/// The document in force; none before the first valid one.
pub type InForce = Option<Arc<Snapshot>>;

/// Where the document stands, for whoever operates the gateway: messages name places and what is written there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DocumentStatus {
    /// [`Snapshot::version`] of what is in force.
    pub version: Option<Box<str>>,
    /// When it came into force.
    #[serde(serialize_with = "timestamp::maybe_seconds")]
    pub since: Option<SystemTime>,
    /// When its place was last found in order.
    #[serde(serialize_with = "timestamp::maybe_seconds")]
    pub last_success: Option<SystemTime>,
    /// What is the matter with it, if anything; what is in force stays.
    pub fault: Option<DocumentFault>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DocumentFault {
    pub kind: FaultKind,
    pub message: Box<str>,
    #[serde(serialize_with = "timestamp::seconds")]
    pub since: SystemTime,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Its place can be read, and what stands there is no policy document.
    Broken,
    /// Its place cannot be read.
    Unreadable,
}

/// What the rest of the process has of the reader; cheap to clone. It outlives a change of the place.
#[derive(Clone, Debug)]
pub struct DocumentHandle {
    nudge: Arc<Notify>,
    in_force: watch::Receiver<InForce>,
    status: watch::Receiver<DocumentStatus>,
}

impl DocumentHandle {
    /// Has the document read at once, such as after publishing one. Never waits; several are one.
    pub fn nudge(&self) {
        self.nudge.notify_one();
    }

    pub fn in_force(&self) -> watch::Receiver<InForce> {
        self.in_force.clone()
    }

    pub fn status(&self) -> watch::Receiver<DocumentStatus> {
        self.status.clone()
    }
}

/// A document on its way into force: it waits for whoever has to have taken it in before that. Dropped: it may go on.
#[derive(Debug)]
pub struct Coming {
    pub snapshot: Arc<Snapshot>,
    /// Its end is what the reader waits for.
    _seen: oneshot::Sender<()>,
}

/// Where readers put what they read; one after the other may have it.
#[derive(Clone, Debug)]
pub struct Outlet {
    gate: Option<mpsc::Sender<Coming>>,
    nudge: Arc<Notify>,
    in_force: watch::Sender<InForce>,
    status: watch::Sender<DocumentStatus>,
}

impl Default for Outlet {
    fn default() -> Self {
        Self {
            gate: None,
            nudge: Arc::default(),
            in_force: watch::Sender::new(None),
            status: watch::Sender::default(),
        }
    }
}

impl Outlet {
    /// One whose documents come into force when whoever has the other end has let go of them.
    pub fn gated() -> (Self, mpsc::Receiver<Coming>) {
        let (gate, coming) = mpsc::channel(1);
        (Self { gate: Some(gate), ..Self::default() }, coming)
    }

    /// Nobody at the gate any more: nobody has to see it.
    async fn pass(&self, snapshot: &Arc<Snapshot>) {
        let Some(gate) = &self.gate else { return };
        let (tell, seen) = oneshot::channel();
        if gate.send(Coming { snapshot: Arc::clone(snapshot), _seen: tell }).await.is_ok() {
            let _ = seen.await;
        }
    }

    pub fn handle(&self) -> DocumentHandle {
        DocumentHandle {
            nudge: Arc::clone(&self.nudge),
            in_force: self.in_force.subscribe(),
            status: self.status.subscribe(),
        }
    }

    /// No document is configured any longer.
    pub fn clear(&self) {
        self.in_force.send_replace(None);
        self.status.send_replace(DocumentStatus::default());
    }
}

/// Reads one place until it is told to stop.
#[derive(Debug)]
pub struct Reader {
    place: AnyPublisher,
    look_every: Duration,
    outlet: Outlet,
    metrics: DocumentMetrics,
    stop: CancellationToken,
    /// The writing that was looked into last, and what is wrong with it.
    seen: Option<(Version, Option<Box<str>>)>,
}

impl Reader {
    pub fn new(
        place: AnyPublisher,
        look_every: Duration,
        outlet: Outlet,
        metrics: DocumentMetrics,
        stop: CancellationToken,
    ) -> Self {
        Self { place, look_every, outlet, metrics, stop, seen: None }
    }

    /// Looks at once, then again and again, and whenever it is nudged.
    pub async fn run(mut self) {
        let stop = self.stop.clone();
        // A look that hangs does not keep the gateway from ending.
        let _ = stop.run_until_cancelled(self.look_on()).await;
    }

    async fn look_on(&mut self) {
        loop {
            self.look().await;
            let next = Instant::now() + self.look_every;
            tokio::select! {
                () = self.outlet.nudge.notified() => {}
                () = sleep_until(next) => {}
            }
        }
    }

    async fn look(&mut self) {
        match self.place.fetch().await {
            Err(error) => {
                let kind = match &error {
                    PublishError::NoKey { .. } => FaultKind::Broken,
                    _ => FaultKind::Unreadable,
                };
                self.fault(kind, shorten(&error.to_string()));
            }
            Ok(fetched) => {
                let known = self.seen.as_ref().filter(|(version, _)| *version == fetched.version);
                let broken = match known {
                    Some((_, broken)) => broken.clone(),
                    None => {
                        let version = fetched.version.clone();
                        let broken = self.take(fetched).await;
                        self.seen = Some((version, broken.clone()));
                        broken
                    }
                };
                match broken {
                    Some(message) => self.fault(FaultKind::Broken, message),
                    None => self.good(),
                }
            }
        }
    }

    /// Brings a text into force if it is a document; what is wrong with it if it is none.
    async fn take(&self, fetched: Fetched) -> Option<Box<str>> {
        // A long one takes its time, and others live on this thread.
        let parsed = tokio::task::spawn_blocking(move || {
            let document = Document::parse(&fetched.text)?;
            let version: Box<str> = Version::of_content(&document).as_str().into();
            Ok::<_, PublishError>((document, version))
        });
        let (document, version) = match parsed.await {
            Ok(Ok(parsed)) => parsed,
            Ok(Err(error)) => return Some(shorten(&error.to_string())),
            Err(_) => return Some("a defect of fedgate: it cannot be parsed; please report it".into()),
        };
        let read_at = SystemTime::now();
        // Another layout, or a label on the ConfigMap, is no other document.
        if self.outlet.in_force.borrow().as_ref().is_some_and(|snapshot| snapshot.version == version) {
            return None;
        }
        let subjects = document.policy().subjects.len();
        let masks: usize = document.policy().subjects.values().map(|subject| subject.masks.len()).sum();
        let snapshot = Arc::new(Snapshot { document, version: version.clone(), read_at });
        self.outlet.pass(&snapshot).await;
        tracing::info!(%version, subjects, masks, "a policy document is in force");
        self.metrics.changes.inc();
        self.outlet.in_force.send_replace(Some(snapshot));
        self.outlet.status.send_modify(|status| {
            status.version = Some(version);
            status.since = Some(read_at);
        });
        None
    }

    fn good(&self) {
        let now = SystemTime::now();
        self.metrics.read(DocumentRead::Ok);
        self.metrics.succeeded(now);
        self.metrics.fault.set(0);
        self.outlet.status.send_if_modified(|status| {
            status.last_success = Some(now);
            let was = status.fault.take();
            if was.is_some() {
                tracing::info!("the policy document is in order again");
            }
            // Nobody is woken by good news that is none.
            was.is_some()
        });
    }

    fn fault(&self, kind: FaultKind, message: Box<str>) {
        self.metrics.read(match kind {
            FaultKind::Broken => DocumentRead::Broken,
            FaultKind::Unreadable => DocumentRead::Unreadable,
        });
        self.metrics.fault.set(1);
        self.outlet.status.send_if_modified(|status| {
            if status.fault.as_ref().is_some_and(|fault| fault.kind == kind && fault.message == message) {
                return false;
            }
            let in_force = status.version.as_deref().unwrap_or("none");
            tracing::error!(
                in_force,
                "the policy document cannot be taken, and what is in force stays: {message}"
            );
            // A fault that changes its words dates from its beginning.
            let since = status.fault.take().map_or_else(SystemTime::now, |fault| fault.since);
            status.fault = Some(DocumentFault { kind, message, since });
            true
        });
    }
}

fn shorten(text: &str) -> Box<str> {
    OneLine(text).to_string().chars().take(MESSAGE_LIMIT).collect::<String>().into()
}
