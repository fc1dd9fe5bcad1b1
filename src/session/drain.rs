//! The word to drain, as a session hears it.
//!
//! Invariant: each word wakes the session; in between, a poll costs one atomic load.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Waker};

use tokio::sync::watch;

/// How far the end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Drain {
    /// Not at all.
    Not,
    /// Sessions end when nothing runs and no transaction is open.
    AtRest,
    /// Sessions end.
    Now,
}

pub(super) struct Listener {
    word: watch::Receiver<Drain>,
    heard: Drain,
    wait: Pin<Box<dyn Future<Output = ()> + Send>>,
    /// Whom `wait` wakes; it is polled again only for somebody else.
    woken: Option<Waker>,
}

impl Listener {
    pub(super) fn new(mut word: watch::Receiver<Drain>) -> Self {
        let heard = *word.borrow_and_update();
        let wait = change(word.clone());
        Self { word, heard, wait, woken: None }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Drain {
        loop {
            if self.word.has_changed().unwrap_or(false) {
                self.heard = *self.word.borrow_and_update();
                self.wait = change(self.word.clone());
                self.woken = None;
            }
            if self.woken.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                return self.heard;
            }
            self.woken = Some(cx.waker().clone());
            if self.wait.as_mut().poll(cx).is_pending() {
                return self.heard;
            }
        }
    }
}

fn change(mut word: watch::Receiver<Drain>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        if word.changed().await.is_err() {
            // Nobody is left who could say it.
            std::future::pending::<()>().await;
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn each_word_wakes_and_is_heard() {
        let (say, word) = watch::channel(Drain::Not);
        let mut listener = Listener::new(word);
        let count = Arc::new(Count(AtomicUsize::new(0)));
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        assert_eq!(listener.poll(&mut cx), Drain::Not);
        assert_eq!(listener.poll(&mut cx), Drain::Not);
        say.send_replace(Drain::AtRest);
        assert_eq!(count.0.load(Ordering::Relaxed), 1);
        assert_eq!(listener.poll(&mut cx), Drain::AtRest);
        say.send_replace(Drain::Now);
        assert_eq!(count.0.load(Ordering::Relaxed), 2);
        assert_eq!(listener.poll(&mut cx), Drain::Now);
        drop(say);
        assert_eq!(listener.poll(&mut cx), Drain::Now);
    }
}
