//! CancelRequest: from the key that the gateway gave to the session that holds it now.
//!
//! Invariant: a key reaches the upstream session that its client has leased at that moment and no other; whoever
//! gives a lease back learns whether a cancel for it is still on its way; keys are the gateway's own, and the
//! source's never leave it.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::task::AtomicWaker;
use rand::Rng;
use subtle::ConstantTimeEq;
use tokio::sync::oneshot;

use crate::metrics::{CancelOutcome, Metrics};
use crate::upstream::{CancelTarget, Source};
use crate::wire::startup::{CancelRequest, Version};

/// Cancels of one lease that are on their way at the same time: each is a connection to the source.
const FLIGHTS: usize = 4;

/// The keys of all sessions.
#[derive(Default)]
pub struct Cancels {
    // std Mutex: never held across an await.
    sessions: Mutex<HashMap<u32, Arc<Slot>>>,
}

/// What a key stands for.
struct Slot {
    secret: Vec<u8>,
    asked: Arc<Asked>,
    // std Mutex: never held across an await. Its own, so that leases do not queue for that of all keys.
    leased: Mutex<Option<Leased>>,
}

/// A session at a source, and where it can be cancelled. Made once for each; leases share it.
pub struct CancelAt {
    pub source: Arc<Source>,
    pub target: CancelTarget,
}

struct Leased {
    at: Arc<CancelAt>,
    muted: Muted,
    /// Made by the first cancel.
    flights: Option<Arc<Flights>>,
}

/// Whether requests pass a lease by: what runs there is the gateway's own, not the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Muted {
    Yes,
    No,
}

/// Cancels of one lease.
#[derive(Default)]
struct Flights {
    // std Mutex: never held across an await.
    state: Mutex<InFlight>,
}

#[derive(Default)]
struct InFlight {
    count: usize,
    /// One of them was given up: nobody knows whether and when it arrives.
    spoilt: bool,
    /// Who wants to mute the lease.
    waker: Option<Waker>,
    /// Whoever gave the lease back.
    tell: Option<oneshot::Sender<bool>>,
}

/// What is known of a lease that was given back.
#[derive(Debug)]
pub enum Released {
    /// No cancel is on its way to it.
    Clean,
    /// A cancel may still arrive, nobody knows when: the session must not go to anybody else.
    Spoilt,
    /// A cancel is on its way: nobody else may have the session before that is known.
    Wait(Landing),
}

/// The end of cancels that are on their way; the requests' own time-outs bound it.
#[derive(Debug)]
pub struct Landing(oneshot::Receiver<bool>);

impl Landing {
    /// True: the source has dealt with all of them. False: as [`Released::Spoilt`].
    pub async fn clean(self) -> bool {
        self.0.await.unwrap_or(false)
    }
}

/// One cancel on its way; the lease is spoilt when it is dropped without having landed.
struct Flight {
    flights: Arc<Flights>,
    landed: bool,
}

impl Flights {
    fn lock(&self) -> MutexGuard<'_, InFlight> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more, if there are not too many.
    fn take_off(self: &Arc<Self>) -> Option<Flight> {
        let mut state = self.lock();
        if state.count >= FLIGHTS {
            return None;
        }
        state.count += 1;
        Some(Flight { flights: Arc::clone(self), landed: false })
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let mut state = self.flights.lock();
        state.count -= 1;
        state.spoilt |= !self.landed;
        if state.count == 0
            && let Some(waker) = state.waker.take()
        {
            waker.wake();
        }
        if state.count == 0
            && let Some(tell) = state.tell.take()
        {
            // It may have been closed without waiting.
            let _ = tell.send(!state.spoilt);
        }
    }
}

/// How a session that waits at the gateway hears that its client has asked for a cancel.
#[derive(Debug, Default)]
pub struct Asked {
    listens: AtomicBool,
    asked: AtomicBool,
    waker: AtomicWaker,
}

impl Asked {
    /// From now on a cancel is meant for the wait, or no longer. What was asked before is forgotten.
    pub(super) fn listen(&self, listens: bool) {
        self.asked.store(false, Ordering::Release);
        self.listens.store(listens, Ordering::Release);
    }

    /// Whether a cancel was asked for since; wakes when one is.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> bool {
        self.waker.register(cx.waker());
        self.asked.swap(false, Ordering::AcqRel)
    }

    /// Ends the wait; false when there is none.
    pub(super) fn ask(&self) -> bool {
        let listens = self.listens.load(Ordering::Acquire);
        if listens {
            self.asked.store(true, Ordering::Release);
            self.waker.wake();
        }
        listens
    }
}

/// A session's key, until it is dropped.
pub struct Registration {
    cancels: Arc<Cancels>,
    slot: Arc<Slot>,
    pub pid: u32,
}

impl Slot {
    fn leased(&self) -> MutexGuard<'_, Option<Leased>> {
        self.leased.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registration {
    pub fn secret(&self) -> &[u8] {
        &self.slot.secret
    }

    /// For the session's waits.
    pub fn asked(&self) -> Arc<Asked> {
        Arc::clone(&self.slot.asked)
    }

    /// From now on cancels go there, or once it is not muted any more. A lease that the session had before must have
    /// been given back.
    pub fn lease(&self, at: Arc<CancelAt>, muted: Muted) {
        *self.slot.leased() = Some(Leased { at, muted, flights: None });
    }

    /// Cancels go nowhere for a while: the gateway is about to ask the session something in its own name, or to part
    /// from it. Ready when none is on its way any more, which would hit that; the task is woken to ask again.
    pub fn poll_mute(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut leased = self.slot.leased();
        let Some(leased) = &mut *leased else { return Poll::Ready(()) };
        // At once, so that whoever never stops asking does not keep the session.
        leased.muted = Muted::Yes;
        if let Some(flights) = &leased.flights {
            let mut state = flights.lock();
            if state.count > 0 {
                state.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    }

    pub fn unmute(&self) {
        if let Some(leased) = &mut *self.slot.leased() {
            leased.muted = Muted::No;
        }
    }

    /// From now on no cancel of this key goes to the session at the source; says whether one does already.
    pub fn release(&self) -> Released {
        let Some(Leased { flights: Some(flights), .. }) = self.slot.leased().take() else {
            return Released::Clean;
        };
        let mut state = flights.lock();
        match (state.count, state.spoilt) {
            (0, false) => Released::Clean,
            (0, true) => Released::Spoilt,
            _ => {
                let (tell, told) = oneshot::channel();
                state.tell = Some(tell);
                Released::Wait(Landing(told))
            }
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.cancels.sessions().remove(&self.pid);
        // Whoever has found the key already comes too late as well.
        self.slot.leased().take();
    }
}

/// What a key led to.
enum Found {
    Nobody,
    /// The client waits at the gateway: it was told.
    Waits,
    /// Nothing runs anywhere.
    Idle,
    /// As many are on their way as may be.
    Surplus,
    Lease(Arc<CancelAt>, Flight),
}

impl Cancels {
    fn sessions(&self) -> MutexGuard<'_, HashMap<u32, Arc<Slot>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new key for a session, which has leased nothing yet; protocol 3.2 has room for a long one.
    pub fn register(self: &Arc<Self>, version: Version) -> Registration {
        let mut rng = rand::rng();
        let mut secret = vec![0; if version >= (Version { major: 3, minor: 2 }) { 32 } else { 4 }];
        rng.fill(&mut secret[..]);
        let slot = Arc::new(Slot { secret, asked: Arc::default(), leased: Mutex::default() });
        let mut sessions = self.sessions();
        let pid = loop {
            // Positive as a signed number: clients print it.
            let pid = rng.random_range(1..=i32::MAX as u32);
            if !sessions.contains_key(&pid) {
                break pid;
            }
        };
        sessions.insert(pid, Arc::clone(&slot));
        drop(sessions);
        Registration { cancels: Arc::clone(self), slot, pid }
    }

    /// Asks the source of the session that a request means to cancel; a wrong key does nothing.
    pub async fn forward(&self, request: &CancelRequest, address: SocketAddr, metrics: &Metrics) {
        let outcome = match self.find(request) {
            Found::Nobody => {
                tracing::info!(%address, "a cancel request with a key of no session");
                CancelOutcome::Unknown
            }
            Found::Waits => CancelOutcome::Waiting,
            Found::Idle => CancelOutcome::Idle,
            Found::Surplus => CancelOutcome::Surplus,
            Found::Lease(at, mut flight) => match at.source.cancel(&at.target).await {
                Ok(()) => {
                    flight.landed = true;
                    CancelOutcome::Forwarded
                }
                Err(error) => {
                    tracing::warn!(%address, %error, "a cancel request could not be sent on");
                    CancelOutcome::Failed
                }
            },
        };
        metrics.cancel(outcome);
    }

    fn find(&self, request: &CancelRequest) -> Found {
        let Some(slot) = self.sessions().get(&request.pid).cloned() else { return Found::Nobody };
        if !bool::from(slot.secret.ct_eq(&request.secret)) {
            return Found::Nobody;
        }
        if slot.asked.ask() {
            return Found::Waits;
        }
        // It takes off under the lock: a lease that was given back has none that nobody knows of.
        let mut leased = slot.leased();
        let Some(leased) = leased.as_mut().filter(|leased| leased.muted == Muted::No) else {
            return Found::Idle;
        };
        let flights = leased.flights.get_or_insert_default();
        match flights.take_off() {
            Some(flight) => Found::Lease(Arc::clone(&leased.at), flight),
            None => Found::Surplus,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn a_wait_hears_what_is_asked_while_it_lasts() {
        let asked = Asked::default();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(!asked.ask());
        asked.listen(true);
        assert!(!asked.poll(&mut cx));
        assert!(asked.ask());
        assert!(asked.poll(&mut cx));
        assert!(!asked.poll(&mut cx), "once");
        assert!(asked.ask());
        asked.listen(false);
        assert!(!asked.poll(&mut cx) && !asked.ask());
    }

    #[test]
    fn flights_are_bounded_and_the_last_one_tells() {
        for lands in [true, false] {
            let flights = Arc::<Flights>::default();
            let mut some: Vec<_> = std::iter::from_fn(|| flights.take_off()).take(FLIGHTS + 1).collect();
            assert_eq!(some.len(), FLIGHTS);
            let (tell, told) = oneshot::channel();
            flights.lock().tell = Some(tell);
            let mut told = Landing(told).clean().boxed();
            some[0].landed = lands;
            while let Some(mut flight) = some.pop() {
                assert!(told.as_mut().now_or_never().is_none());
                flight.landed |= !some.is_empty();
            }
            assert_eq!(told.now_or_never(), Some(lands));
            assert!(flights.take_off().is_some());
        }
    }
}
