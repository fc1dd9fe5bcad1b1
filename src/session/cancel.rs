//! CancelRequest: from the key that the gateway gave to the session that holds it now.
//!
//! Invariant: a key reaches the upstream session of the client it was given to and no other; keys are
//! the gateway's own, and the source's never leave it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

use rand::Rng;
use subtle::ConstantTimeEq;

use crate::metrics::{CancelOutcome, Metrics};
use crate::upstream::{CancelTarget, Source};
use crate::wire::startup::{CancelRequest, Version};

/// The keys of all sessions.
#[derive(Default)]
pub struct Cancels {
    // std Mutex: never held across an await.
    sessions: Mutex<HashMap<u32, Entry>>,
}

struct Entry {
    secret: Vec<u8>,
    source: Arc<Source>,
    /// Nothing while the client has no session at the source: then there is nothing to cancel.
    target: Option<CancelTarget>,
    /// What runs there now is not the client's.
    muted: bool,
    /// Requests that are on their way to the target.
    under_way: usize,
    /// Of one of them is not known whether it was dealt with: it may still come.
    unsure: bool,
    /// Who waits for them.
    waker: Option<Waker>,
}

/// Whether requests pass a session by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Muted {
    Yes,
    No,
}

/// A session's key, until it is dropped.
pub struct Registration {
    cancels: Arc<Cancels>,
    pub pid: u32,
    pub secret: Vec<u8>,
}

impl Cancels {
    /// A new key for a session; protocol 3.2 has room for a long one.
    pub fn register(self: &Arc<Self>, version: Version, source: Arc<Source>) -> Registration {
        let mut rng = rand::rng();
        let mut secret = vec![0; if version >= (Version { major: 3, minor: 2 }) { 32 } else { 4 }];
        rng.fill(&mut secret[..]);
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = loop {
            // Positive as a signed number: clients print it.
            let pid = rng.random_range(1..=i32::MAX as u32);
            if !sessions.contains_key(&pid) {
                break pid;
            }
        };
        let entry = Entry {
            secret: secret.clone(),
            source,
            target: None,
            muted: false,
            under_way: 0,
            unsure: false,
            waker: None,
        };
        sessions.insert(pid, entry);
        Registration { cancels: Arc::clone(self), pid, secret }
    }

    /// Asks the source of the session that a request means to cancel; a wrong key does nothing.
    pub async fn forward(&self, request: &CancelRequest, address: SocketAddr, metrics: &Metrics) {
        let outcome = match self.find(request) {
            None => {
                tracing::info!(%address, "a cancel request with a key of no session");
                CancelOutcome::Unknown
            }
            Some((_, None)) => CancelOutcome::Idle,
            Some((source, Some(target))) => {
                let mut under_way = UnderWay { cancels: self, pid: request.pid, dealt_with: false };
                match source.cancel(&target).await {
                    Ok(()) => {
                        under_way.dealt_with = true;
                        CancelOutcome::Forwarded
                    }
                    Err(error) => {
                        tracing::warn!(%address, %error, "a cancel request could not be sent on");
                        CancelOutcome::Failed
                    }
                }
            }
        };
        metrics.cancel(outcome);
    }

    /// The session that a request means; where there is something to cancel, it counts as under way.
    fn find(&self, request: &CancelRequest) -> Option<(Arc<Source>, Option<CancelTarget>)> {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = sessions.get_mut(&request.pid)?;
        if !bool::from(entry.secret.ct_eq(&request.secret)) {
            return None;
        }
        let target = entry.target.clone().filter(|_| !entry.muted);
        entry.under_way += usize::from(target.is_some());
        Some((Arc::clone(&entry.source), target))
    }
}

/// A request on its way, until the source has dealt with it.
struct UnderWay<'c> {
    cancels: &'c Cancels,
    pid: u32,
    dealt_with: bool,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut sessions = self.cancels.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = sessions.get_mut(&self.pid) {
            entry.under_way = entry.under_way.saturating_sub(1);
            entry.unsure |= !self.dealt_with;
            if let Some(waker) = entry.waker.take() {
                waker.wake();
            }
        }
    }
}

impl Registration {
    /// Requests go to this session at the source from now on, or once it is not muted any more.
    pub fn attach(&self, target: CancelTarget, muted: Muted) {
        let mut sessions = self.cancels.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = sessions.get_mut(&self.pid) {
            entry.target = Some(target);
            entry.muted = matches!(muted, Muted::Yes);
            entry.unsure = false;
        }
    }

    /// Requests go nowhere for a while: the gateway is about to ask the session something in its own name, or to part
    /// from it. Ready when none is under way any more, which would hit that; the task is woken to ask again.
    pub fn poll_mute(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut sessions = self.cancels.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = sessions.get_mut(&self.pid) else { return Poll::Ready(()) };
        // At once, so that whoever never stops asking does not keep the session.
        entry.muted = true;
        if entry.under_way > 0 {
            entry.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(())
    }

    pub fn unmute(&self) {
        let mut sessions = self.cancels.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = sessions.get_mut(&self.pid) {
            entry.muted = false;
        }
    }

    /// Requests go nowhere any more, so that the session may be another client's. Not as long as one is under way:
    /// it would hit that client. The task is woken when it may be asked again. False: one may still come, and the
    /// session must not be another's.
    pub fn poll_detach(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut sessions = self.cancels.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = sessions.get_mut(&self.pid) else { return Poll::Ready(false) };
        if entry.under_way > 0 {
            entry.waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        entry.target = None;
        Poll::Ready(!entry.unsure)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.cancels.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid);
    }
}
