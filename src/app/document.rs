//! The reader of the policy document over the life of the gateway: started, kept or replaced at a reload, ended.
//!
//! Invariant: at most one reader puts documents into force, and a reload that leaves the section as it was leaves the
//! reader as it was.

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::config::DocumentSection;
use crate::metrics::DocumentMetrics;
use crate::sync::handle::SyncStatus;
use crate::sync::publisher::AnyPublisher;
use crate::sync::reader::{Outlet, Reader};

/// What `[document]` is at the moment.
pub struct DocumentReader {
    outlet: Outlet,
    metrics: DocumentMetrics,
    running: Option<Running>,
}

struct Running {
    section: DocumentSection,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl DocumentReader {
    /// The outlet's handles are the same through all reloads.
    pub fn new(outlet: Outlet, metrics: DocumentMetrics) -> Self {
        Self { outlet, metrics, running: None }
    }

    /// Takes up a configuration. A document of before stays in force until the new place has shown a valid one.
    pub fn configure(&mut self, section: Option<&DocumentSection>) {
        let Some(section) = section else {
            if let Some(running) = self.running.take() {
                running.stop.cancel();
                running.task.abort();
                self.outlet.clear();
                tracing::info!("no policy document is configured any longer");
            }
            return;
        };
        if self.running.as_ref().is_some_and(|running| running.section == *section) {
            return;
        }
        let before = self.running.take();
        let stop = CancellationToken::new();
        let reader = Reader::new(
            AnyPublisher::new(&section.place),
            section.look_every,
            self.outlet.clone(),
            self.metrics.clone(),
            stop.clone(),
        );
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                before.stop.cancel();
                let _ = before.task.await;
            }
            reader.run().await;
        });
        self.running = Some(Running { section: section.clone(), stop, task });
    }

    /// Has the document read whenever the loop has published one.
    pub fn follow(&self, mut loop_status: watch::Receiver<SyncStatus>) {
        let handle = self.outlet.handle();
        // Ends with the loop.
        tokio::spawn(async move {
            let mut revision = loop_status.borrow_and_update().revision;
            while loop_status.changed().await.is_ok() {
                let now = loop_status.borrow_and_update().revision;
                if std::mem::replace(&mut revision, now) != now {
                    handle.nudge();
                }
            }
        });
    }

    pub async fn end(mut self) {
        if let Some(running) = self.running.take() {
            running.stop.cancel();
            let _ = running.task.await;
        }
    }
}
