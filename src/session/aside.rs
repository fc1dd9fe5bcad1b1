//! Threads for verdicts on long texts, so that the threads which relay never spend long on one client.
//!
//! Invariant: at most [`ROOM`] texts are copied and wait at the same time, each session has at most one
//! of them, who waits for room waits in the order of asking, and a panic ends the one it was for.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus::{IntCounter, IntGauge};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Texts of this length and more are judged here: the worst of those below take about four milliseconds
/// (docs/performance.md).
pub const LONG: usize = 8 << 10;
/// Texts that are copied for a verdict at the same time.
const ROOM: usize = 8;
/// How long a session waits for room before its statement is refused.
const PATIENCE: Duration = Duration::from_secs(30);

type Job = Box<dyn FnOnce() + Send>;

/// What is counted here.
#[derive(Clone)]
pub struct AsideMetrics {
    /// `fedgate_verdicts_aside_total`
    pub judged: IntCounter,
    /// `fedgate_verdicts_waiting`
    pub waiting: IntGauge,
    /// `fedgate_panics_total`
    pub panics: IntCounter,
}

/// The threads, and the room before them.
pub struct Aside {
    jobs: SyncSender<Job>,
    room: Arc<Semaphore>,
    metrics: AsideMetrics,
}

/// Room for one text.
pub struct Room {
    _permit: OwnedSemaphorePermit,
}

/// One that waits, counted until it is dropped.
struct Waiting(IntGauge);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl Aside {
    /// Half as many threads as there are cores: they share the cores with those that relay.
    pub fn start(metrics: AsideMetrics) -> std::io::Result<Arc<Self>> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self::with_threads(cores.div_ceil(2), metrics)
    }

    fn with_threads(threads: usize, metrics: AsideMetrics) -> std::io::Result<Arc<Self>> {
        let (jobs, queue) = sync_channel::<Job>(ROOM);
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..threads {
            let queue = Arc::clone(&queue);
            // They end when the last session has gone and nobody can ask any more.
            std::thread::Builder::new().name(format!("verdict-{number}")).spawn(move || work(&queue))?;
        }
        Ok(Arc::new(Self { jobs, room: Arc::new(Semaphore::new(ROOM)), metrics }))
    }

    /// Waits for room; `None`: it took too long.
    pub fn room(&self) -> impl Future<Output = Option<Room>> + Send + use<> {
        let room = Arc::clone(&self.room);
        self.metrics.waiting.inc();
        let waiting = Waiting(self.metrics.waiting.clone());
        async move {
            let _waiting = waiting;
            let permit = tokio::time::timeout(PATIENCE, room.acquire_owned()).await.ok()?;
            permit.ok().map(|permit| Room { _permit: permit })
        }
    }

    /// Runs `work` on one of the threads, unless nobody waits for it by then. A panic there drops the
    /// sender: the receiver's error says so.
    pub fn run<T: Send + 'static>(
        &self,
        room: Room,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> oneshot::Receiver<T> {
        let (answer, receiver) = oneshot::channel();
        let panics = self.metrics.panics.clone();
        self.metrics.judged.inc();
        let job: Job = Box::new(move || {
            let _room = room;
            if answer.is_closed() {
                return;
            }
            match catch_unwind(AssertUnwindSafe(work)) {
                Ok(result) => {
                    let _ = answer.send(result);
                }
                Err(_) => {
                    panics.inc();
                    tracing::error!(
                        "a verdict panicked; the session that asked is closed and no other is touched"
                    );
                }
            }
        });
        // There is room in the queue for as many as there is room for.
        let _ = self.jobs.try_send(job);
        receiver
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        // std Mutex: held while waiting for a job, by the one thread that waits.
        let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use futures_util::FutureExt;

    use super::*;

    fn metrics() -> AsideMetrics {
        AsideMetrics {
            judged: IntCounter::new("judged", "judged").unwrap(),
            waiting: IntGauge::new("waiting", "waiting").unwrap(),
            panics: IntCounter::new("panics", "panics").unwrap(),
        }
    }

    #[tokio::test]
    async fn a_panic_ends_the_one_that_asked_and_the_thread_goes_on() {
        let metrics = metrics();
        let aside = Aside::with_threads(1, metrics.clone()).unwrap();
        let room = aside.room().await.unwrap();
        assert!(aside.run::<()>(room, || panic!("a defect")).await.is_err());
        assert_eq!(metrics.panics.get(), 1);
        let room = aside.room().await.unwrap();
        assert_eq!(aside.run(room, || 7).await, Ok(7));
        assert_eq!((metrics.panics.get(), metrics.judged.get(), metrics.waiting.get()), (1, 2, 0));
    }

    #[tokio::test]
    async fn room_is_bounded_fair_and_given_back_by_those_who_leave() {
        let metrics = metrics();
        let aside = Aside::with_threads(1, metrics.clone()).unwrap();
        let (go, gone) = channel::<()>();
        let room = aside.room().await.unwrap();
        let first = aside.run(room, move || gone.recv().is_ok());
        // The thread is busy; the rest of the room is taken, by some who leave.
        let mut left = Vec::new();
        for _ in 1..ROOM {
            let room = aside.room().await.unwrap();
            left.push(aside.run(room, || panic!("nobody waits for this")));
        }
        drop(left);
        let mut next = Box::pin(aside.room());
        assert!(next.as_mut().now_or_never().is_none(), "more room than there is");
        assert_eq!(metrics.waiting.get(), 1);
        go.send(()).unwrap();
        assert_eq!(first.await, Ok(true));
        let room = next.await.unwrap();
        assert_eq!(aside.run(room, || 1).await, Ok(1));
        assert_eq!((metrics.panics.get(), metrics.waiting.get()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_too_long_is_told() {
        let aside = Aside::with_threads(1, metrics()).unwrap();
        let mut taken = Vec::new();
        for _ in 0..ROOM {
            taken.push(aside.room().await.unwrap());
        }
        assert!(aside.room().await.is_none());
    }
}
