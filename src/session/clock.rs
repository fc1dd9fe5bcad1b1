//! One timer for all deadlines of a session, and the patience with a client that begins.
//!
//! Invariant: it fires at or before the deadline it was last given, never after; arming it again for a
//! later deadline costs nothing, so a busy session does not touch the timer wheel.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, Sleep, sleep_until};

/// How long a client may take to begin, less what it spends waiting for something that is not its own doing
/// and has an end of its own.
pub(super) struct Patience(watch::Sender<Option<Instant>>);

/// The clock stands still until this is dropped.
pub(super) struct Stopped<'p> {
    patience: &'p Patience,
    left: Duration,
}

impl Patience {
    pub(super) fn new(at_most: Duration) -> Self {
        Self(watch::Sender::new(Some(Instant::now() + at_most)))
    }

    pub(super) fn stop(&self) -> Stopped<'_> {
        let deadline = self.0.send_replace(None);
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        Stopped { patience: self, left: left.unwrap_or_default() }
    }

    /// Ends when it is over.
    pub(super) async fn over(&self) {
        let mut deadline = self.0.subscribe();
        loop {
            let now = *deadline.borrow_and_update();
            tokio::select! {
                // First: a deadline that was taken back is none any more. The sender is ours, so it is there.
                biased;
                _ = deadline.changed() => {}
                () = sleep_until(now.unwrap_or_else(Instant::now)), if now.is_some() => return,
            }
        }
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.patience.0.send_replace(Some(Instant::now() + self.left));
    }
}

#[derive(Default)]
pub(super) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    armed: Option<Instant>,
}

impl Timer {
    /// True when the armed deadline has passed; the caller then looks which of its own has, and polls again.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, deadline: Option<Instant>) -> bool {
        let Some(deadline) = deadline else {
            return false;
        };
        if self.armed.is_none_or(|armed| armed > deadline) {
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(deadline),
                None => self.sleep = Some(Box::pin(sleep_until(deadline))),
            }
            self.armed = Some(deadline);
        }
        let fired = self.sleep.as_mut().is_some_and(|sleep| sleep.as_mut().poll(cx) == Poll::Ready(()));
        if fired {
            self.armed = None;
        }
        fired
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_wait_does_not_use_up_the_patience() {
        let second = Duration::from_secs(1);
        let patience = Patience::new(10 * second);
        let mut over = Box::pin(patience.over());
        advance(9 * second).await;
        assert!(over.as_mut().now_or_never().is_none());
        let stopped = patience.stop();
        advance(100 * second).await;
        assert!(over.as_mut().now_or_never().is_none());
        drop(stopped);
        advance(second / 2).await;
        assert!(over.as_mut().now_or_never().is_none());
        advance(second).await;
        assert!(over.as_mut().now_or_never().is_some());
    }
}
