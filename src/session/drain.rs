//! The word to drain, as a session hears it.
//!
//! Invariant: it wakes the session once; until then it costs one atomic load a poll.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};

use tokio::sync::watch;

pub(super) struct Drain {
    word: watch::Receiver<bool>,
    wait: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Whom `wait` wakes; it is polled again only for somebody else.
    woken: Option<Waker>,
    draining: bool,
}

impl Drain {
    pub(super) fn new(mut word: watch::Receiver<bool>) -> Self {
        word.mark_unchanged();
        let draining = *word.borrow();
        let mut waiting = word.clone();
        let wait = Box::pin(async move {
            if waiting.wait_for(|draining| *draining).await.is_err() {
                // Nobody is left who could say it.
                std::future::pending::<()>().await;
            }
        });
        Self { word, wait, woken: None, draining }
    }

    /// Whether the gateway is draining.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if self.draining {
            return true;
        }
        if self.word.has_changed().unwrap_or(false) {
            self.draining = *self.word.borrow_and_update();
        }
        if !self.draining && self.woken.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            self.woken = Some(cx.waker().clone());
            self.draining = self.wait.as_mut().poll(cx).is_ready();
        }
        self.draining
    }
}
