//! The tap of a source: open, or paused by an operator.
//!
//! Invariant: while it is paused nobody begins anything at the source; whoever has begun is on the count until
//! that has ended, so that a count of zero means that nothing is under way; and every wait has an end.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout_at};

use super::cancel::Asked;
use crate::ids::SourceName;
use crate::metrics::{GateMetrics, Waiting};
use crate::sqlstate::SqlState;
use crate::wire::ClientError;

/// The gates of the sources that are configured.
pub type Gates = Arc<BTreeMap<SourceName, Gate>>;

/// One source's; cheap to clone. Like PgBouncer's PAUSE and RESUME: what is under way ends as it would,
/// transactions included, and what is new waits.
#[derive(Clone, Debug)]
pub struct Gate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    source: SourceName,
    /// As `word` says, for those who look before each statement.
    paused: AtomicBool,
    /// Since when it is paused.
    word: watch::Sender<Option<SystemTime>>,
    under_way: AtomicUsize,
    /// Somebody may have been the last one.
    quiet: Notify,
    metrics: GateMetrics,
}

/// Leave to begin something; on the count until it is dropped.
#[derive(Debug)]
pub struct Pass(Gate);

impl Drop for Pass {
    fn drop(&mut self) {
        let inner = &self.0.0;
        let last = inner.under_way.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && inner.paused.load(Ordering::SeqCst) {
            inner.quiet.notify_waiters();
        }
    }
}

/// The wait was over before the pause was.
#[derive(Debug, PartialEq, Eq)]
pub struct Overdue;

/// How a gate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Since when it is paused; `None`: it is open.
    pub paused: Option<SystemTime>,
    /// Transactions and sessions being opened that have begun and not ended.
    pub under_way: usize,
    /// Clients that wait for it to open.
    pub waiting: u64,
}

impl Gate {
    /// An open one.
    pub fn new(source: SourceName, metrics: GateMetrics) -> Self {
        metrics.paused(false);
        Self(Arc::new(Inner {
            source,
            paused: AtomicBool::new(false),
            word: watch::Sender::new(None),
            under_way: AtomicUsize::new(0),
            quiet: Notify::new(),
            metrics,
        }))
    }

    /// From here on nothing new begins. Pausing twice is pausing once.
    pub fn pause(&self) {
        // Under the lock of `word`, so that both say the same.
        self.0.word.send_modify(|since| {
            since.get_or_insert_with(SystemTime::now);
            // With the count's order: who has not seen this is seen on the count.
            self.0.paused.store(true, Ordering::SeqCst);
            self.0.metrics.paused(true);
        });
    }

    /// Lets in whoever waits.
    pub fn resume(&self) {
        self.0.word.send_modify(|since| {
            *since = None;
            self.0.paused.store(false, Ordering::SeqCst);
            self.0.metrics.paused(false);
        });
        self.0.quiet.notify_waiters();
    }

    pub fn is_paused(&self) -> bool {
        self.0.paused.load(Ordering::SeqCst)
    }

    pub fn standing(&self) -> Standing {
        Standing {
            paused: *self.0.word.borrow(),
            under_way: self.0.under_way.load(Ordering::SeqCst),
            waiting: self.0.metrics.waiting(),
        }
    }

    /// Waits until nothing is under way any more or the gate is open again, and not longer than `at_most`;
    /// says what is under way then.
    pub async fn quiet(&self, at_most: Duration) -> usize {
        let wait = async {
            loop {
                let mut quiet = std::pin::pin!(self.0.quiet.notified());
                // Before it is looked at: who ends in between is heard.
                quiet.as_mut().enable();
                if self.0.under_way.load(Ordering::SeqCst) == 0 || !self.is_paused() {
                    return;
                }
                quiet.await;
            }
        };
        let _ = tokio::time::timeout(at_most, wait).await;
        self.0.under_way.load(Ordering::SeqCst)
    }

    /// Ends when the gate is open; at once when it is.
    pub async fn opened(&self) {
        let mut word = self.0.word.subscribe();
        // The sender is ours, so it is there.
        let _ = word.wait_for(Option::is_none).await;
    }

    /// Leave to begin something, unless it is paused.
    pub fn try_pass(&self) -> Option<Pass> {
        if self.is_paused() {
            return None;
        }
        self.0.under_way.fetch_add(1, Ordering::SeqCst);
        let pass = Pass(self.clone());
        // Whoever paused it meanwhile may have looked before we were on the count.
        (!self.is_paused()).then_some(pass)
    }

    /// As `try_pass`, as soon as it is open.
    ///
    /// # Errors
    /// It was not within `at_most`.
    pub async fn pass(&self, at_most: Duration) -> Result<Pass, Overdue> {
        if let Some(pass) = self.try_pass() {
            return Ok(pass);
        }
        let deadline = Instant::now() + at_most;
        let _waiting: Waiting = self.0.metrics.wait();
        let passed = timeout_at(deadline, async {
            loop {
                self.opened().await;
                if let Some(pass) = self.try_pass() {
                    return pass;
                }
            }
        });
        passed.await.map_err(|_| {
            self.0.metrics.overdue();
            Overdue
        })
    }

    /// What a client is told that waited in vain.
    pub fn overdue(&self) -> ClientError {
        let message = format!("source \"{}\" is paused", self.0.source);
        ClientError::error(SqlState::CANNOT_CONNECT_NOW, message)
            .detail("An administrator of the gateway has paused it, and it was not resumed in time.")
            .hint("Try again later; fedgate source resume opens it.")
    }
}

/// Whether a message may begin something at the source.
#[derive(Debug)]
pub(super) enum Entry {
    Yes,
    /// The session is polled when that changes.
    NotYet,
    /// The client is told so, and its session goes on.
    No(ClientError),
}

type Wait = Pin<Box<dyn Future<Output = Result<Pass, Overdue>> + Send>>;

/// The gate as one session sees it.
pub(super) struct Doorway {
    gate: Gate,
    at_most: Duration,
    asked: Arc<Asked>,
    pass: Option<Pass>,
    /// Made only when there is something to wait for.
    wait: Option<Wait>,
    refused: Option<ClientError>,
}

impl Doorway {
    pub(super) fn new(gate: Gate, at_most: Duration, asked: Arc<Asked>) -> Self {
        Self { gate, at_most, asked, pass: None, wait: None, refused: None }
    }

    pub(super) fn is_paused(&self) -> bool {
        self.gate.is_paused()
    }

    /// Before a message of a session that has nothing under way.
    pub(super) fn enter(&mut self) -> Entry {
        if self.pass.is_some() {
            return Entry::Yes;
        }
        if let Some(error) = self.refused.take() {
            return Entry::No(error);
        }
        if self.wait.is_some() {
            return Entry::NotYet;
        }
        self.pass = self.gate.try_pass();
        if self.pass.is_some() {
            return Entry::Yes;
        }
        let (gate, at_most) = (self.gate.clone(), self.at_most);
        self.asked.listen(true);
        self.wait = Some(Box::pin(async move { gate.pass(at_most).await }));
        Entry::NotYet
    }

    /// True when there is another answer to [`Self::enter`] now. Costs nothing while nobody waits.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(wait) = &mut self.wait else { return false };
        if self.asked.poll(cx) {
            let message = "canceling statement due to user request";
            self.refused = Some(ClientError::error(SqlState::QUERY_CANCELED, message));
        } else {
            match wait.as_mut().poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(pass)) => self.pass = Some(pass),
                Poll::Ready(Err(Overdue)) => self.refused = Some(self.gate.overdue()),
            }
        }
        self.wait = None;
        self.asked.listen(false);
        true
    }

    /// Whether the session is on the count of what is under way.
    pub(super) fn is_in(&self) -> bool {
        self.pass.is_some()
    }

    /// Nothing of the session is under way any more.
    pub(super) fn leave(&mut self) {
        self.pass = None;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::time::advance;

    use super::*;
    use crate::metrics::Metrics;

    const SECOND: Duration = Duration::from_secs(1);

    fn gate() -> Gate {
        let name = SourceName::new("s");
        Gate::new(name.clone(), Metrics::new().unwrap().source(&name).gate)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_ends_and_what_is_new_waits() {
        let gate = gate();
        let pass = gate.try_pass().unwrap();
        gate.pause();
        gate.pause();
        assert!(gate.try_pass().is_none());
        assert_eq!(gate.standing().under_way, 1);
        let mut waits: Vec<_> = (0..3).map(|_| Box::pin(gate.pass(30 * SECOND))).collect();
        assert!(waits.iter_mut().all(|wait| wait.now_or_never().is_none()));
        assert_eq!(gate.standing().waiting, 3);
        let mut quiet = Box::pin(gate.quiet(60 * SECOND));
        assert!(quiet.as_mut().now_or_never().is_none());
        drop(pass);
        assert_eq!(quiet.await, 0);
        gate.resume();
        for wait in waits {
            assert!(wait.await.is_ok());
        }
        let standing = gate.standing();
        assert_eq!((standing.paused, standing.under_way, standing.waiting), (None, 0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn no_wait_is_without_an_end() {
        let gate = gate();
        let pass = gate.try_pass().unwrap();
        gate.pause();
        let mut wait = Box::pin(gate.pass(30 * SECOND));
        assert!(wait.as_mut().now_or_never().is_none());
        advance(29 * SECOND).await;
        assert!(wait.as_mut().now_or_never().is_none());
        advance(2 * SECOND).await;
        assert_eq!(wait.as_mut().now_or_never().map(|passed| passed.err()), Some(Some(Overdue)));
        assert_eq!(gate.quiet(SECOND).await, 1, "said as it is when the time is over");
        // Whoever waits for quiet and for a resume hears the resume.
        let mut quiet = Box::pin(gate.quiet(60 * SECOND));
        assert!(quiet.as_mut().now_or_never().is_none());
        gate.resume();
        assert_eq!(quiet.await, 1);
        drop(pass);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_waits_is_let_in_is_told_or_cancelled() {
        let gate = gate();
        let asked = Arc::<Asked>::default();
        let mut doorway = Doorway::new(gate.clone(), 30 * SECOND, Arc::clone(&asked));
        assert!(matches!(doorway.enter(), Entry::Yes));
        assert_eq!(gate.standing().under_way, 1);
        gate.pause();
        assert!(matches!(doorway.enter(), Entry::Yes), "it is under way");
        doorway.leave();
        assert_eq!(gate.standing().under_way, 0);
        assert!(matches!(doorway.enter(), Entry::NotYet));
        assert!(std::future::poll_fn(|cx| Poll::Ready(!doorway.poll(cx))).await);
        gate.resume();
        std::future::poll_fn(|cx| if doorway.poll(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
        assert!(matches!(doorway.enter(), Entry::Yes));
        doorway.leave();
        gate.pause();
        assert!(!asked.ask(), "nobody waits");
        assert!(matches!(doorway.enter(), Entry::NotYet));
        // The clock goes on by itself when everybody waits.
        std::future::poll_fn(|cx| if doorway.poll(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
        let Entry::No(error) = doorway.enter() else { panic!("let in") };
        assert_eq!(error.sqlstate.as_str(), "57P03");
        assert!(matches!(doorway.enter(), Entry::NotYet));
        assert!(asked.ask());
        std::future::poll_fn(|cx| if doorway.poll(cx) { Poll::Ready(()) } else { Poll::Pending }).await;
        let Entry::No(error) = doorway.enter() else { panic!("let in") };
        assert_eq!(error.sqlstate.as_str(), "57014");
        drop(doorway);
        let standing = gate.standing();
        assert_eq!((standing.under_way, standing.waiting), (0, 0));
    }

    #[test]
    fn who_passes_while_it_is_paused_is_on_the_count() {
        let gate = gate();
        for _ in 0..200 {
            std::thread::scope(|scope| {
                let passer = scope.spawn(|| gate.try_pass());
                gate.pause();
                let seen = gate.standing().under_way;
                let pass = passer.join().unwrap();
                // Either it was refused, or whoever has paused sees it.
                assert!(pass.is_none() || seen == 1);
            });
            gate.resume();
        }
    }
}
