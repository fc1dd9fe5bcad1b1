//! CancelRequest: from the key that the gateway gave to the session that holds it now.
//!
//! Invariant: a key reaches the upstream session of the client it was given to and no other; keys are
//! the gateway's own, and the source's never leave it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

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
    target: CancelTarget,
}

/// A session's key, until it is dropped.
pub struct Registration {
    cancels: Arc<Cancels>,
    pub pid: u32,
    pub secret: Vec<u8>,
}

impl Cancels {
    /// A new key for a session; protocol 3.2 has room for a long one.
    pub fn register(
        self: &Arc<Self>,
        version: Version,
        source: Arc<Source>,
        target: CancelTarget,
    ) -> Registration {
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
        sessions.insert(pid, Entry { secret: secret.clone(), source, target });
        Registration { cancels: Arc::clone(self), pid, secret }
    }

    /// Asks the source of the session that a request means to cancel; a wrong key does nothing.
    pub async fn forward(&self, request: &CancelRequest, address: SocketAddr, metrics: &Metrics) {
        let outcome = match self.find(request) {
            None => {
                tracing::info!(%address, "a cancel request with a key of no session");
                CancelOutcome::Unknown
            }
            Some((source, target)) => match source.cancel(&target).await {
                Ok(()) => CancelOutcome::Forwarded,
                Err(error) => {
                    tracing::warn!(%address, %error, "a cancel request could not be sent on");
                    CancelOutcome::Failed
                }
            },
        };
        metrics.cancel(outcome);
    }

    fn find(&self, request: &CancelRequest) -> Option<(Arc<Source>, CancelTarget)> {
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = sessions.get(&request.pid)?;
        let right = bool::from(entry.secret.ct_eq(&request.secret));
        right.then(|| (Arc::clone(&entry.source), entry.target.clone()))
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.cancels.sessions.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid);
    }
}
