//! The threads that sessions run on.
//!
//! Invariant: a session and its upstream never leave the runtime they began on, and every session is
//! waited for before its threads end. docs/performance.md says why one runtime a thread.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;
use tokio_util::task::TaskTracker;

use crate::config::Scheduler;
use crate::session::Buffers;

/// One runtime that sessions are put on.
struct Worker {
    handle: Handle,
    buffers: Buffers,
    load: Arc<AtomicUsize>,
}

pub struct Workers {
    spawner: Spawner,
    shared: Option<Runtime>,
    threads: Vec<(oneshot::Sender<()>, JoinHandle<()>)>,
}

/// Puts sessions on the workers.
#[derive(Clone)]
pub struct Spawner {
    workers: Arc<[Worker]>,
    tracker: TaskTracker,
}

/// One session on the load of its worker, until it is dropped.
struct Loaded(Arc<AtomicUsize>);

impl Drop for Loaded {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    pub fn start(scheduler: Scheduler, threads: usize) -> io::Result<Self> {
        let mut workers = Vec::new();
        let mut started = Vec::new();
        let mut shared = None;
        match scheduler {
            Scheduler::WorkStealing => {
                let runtime = Builder::new_multi_thread()
                    .worker_threads(threads)
                    .thread_name("session")
                    .enable_all()
                    .build()?;
                workers.push(Worker::new(runtime.handle()));
                shared = Some(runtime);
            }
            Scheduler::PerCore => {
                for number in 0..threads {
                    let runtime = Builder::new_current_thread().enable_all().build()?;
                    workers.push(Worker::new(runtime.handle()));
                    let (stop, stopped) = oneshot::channel();
                    let thread =
                        std::thread::Builder::new().name(format!("session-{number}")).spawn(move || {
                            // Either the word to stop or the end of whoever would say it.
                            let _ = runtime.block_on(stopped);
                            runtime.shutdown_background();
                        })?;
                    started.push((stop, thread));
                }
            }
        }
        let spawner = Spawner { workers: workers.into(), tracker: TaskTracker::new() };
        Ok(Self { spawner, shared, threads: started })
    }

    pub fn spawner(&self) -> Spawner {
        self.spawner.clone()
    }

    /// Waits until no session is left, at most so long; false: some are left.
    pub async fn idle(&self, at_most: Duration) -> bool {
        self.spawner.tracker.close();
        tokio::time::timeout(at_most, self.spawner.tracker.wait()).await.is_ok()
    }

    /// Ends the threads; sessions that are left end with them.
    pub fn stop(self) {
        for (stop, thread) in self.threads {
            let _ = stop.send(());
            // A panic of a session never reaches its thread.
            let _ = thread.join();
        }
        if let Some(runtime) = self.shared {
            runtime.shutdown_background();
        }
    }
}

impl Worker {
    fn new(handle: &Handle) -> Self {
        Self { handle: handle.clone(), buffers: Buffers::new(), load: Arc::default() }
    }
}

impl Spawner {
    /// Runs a session on the worker with the fewest.
    pub fn spawn<F, S>(&self, session: S)
    where
        S: FnOnce(Buffers) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(worker) = self.workers.iter().min_by_key(|worker| worker.load.load(Ordering::Relaxed))
        else {
            return;
        };
        worker.load.fetch_add(1, Ordering::Relaxed);
        let loaded = Loaded(Arc::clone(&worker.load));
        let session = session(worker.buffers.clone());
        self.tracker.spawn_on(
            async move {
                let _loaded = loaded;
                session.await;
            },
            &worker.handle,
        );
    }
}
