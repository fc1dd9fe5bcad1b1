//! What the loop asks of the audit trail.
//!
//! Invariant: a call that has returned without an error is on the disk.

use std::future::Future;

use crate::audit::event::Event;
use crate::audit::journal::Journal;
use crate::audit::spool::{SpoolError, Waiting};

/// Keeps events until they are delivered, and what is about to be done until its outcome is known.
pub trait Trail {
    /// Notes what is about to be done; its number.
    ///
    /// # Errors
    /// There is no room, or no disk.
    fn intend(&self, event: Event) -> impl Future<Output = Result<u64, SpoolError>> + Send;

    /// Makes an intent an event, with its outcome.
    ///
    /// # Errors
    /// There is no such intent, or no disk.
    fn complete(&self, intent: u64, event: Event) -> impl Future<Output = Result<(), SpoolError>> + Send;

    /// An event of something that changed nothing.
    ///
    /// # Errors
    /// As [`Trail::intend`].
    fn record(&self, event: Event) -> impl Future<Output = Result<(), SpoolError>> + Send;

    /// What was intended and has no outcome.
    ///
    /// # Errors
    /// The disk's.
    fn intents(&self) -> impl Future<Output = Result<Vec<Waiting>, SpoolError>> + Send;
}

impl Trail for Journal {
    async fn intend(&self, event: Event) -> Result<u64, SpoolError> {
        Journal::intend(self, event).await
    }

    async fn complete(&self, intent: u64, event: Event) -> Result<(), SpoolError> {
        Journal::complete(self, intent, event).await
    }

    async fn record(&self, event: Event) -> Result<(), SpoolError> {
        Journal::record(self, event).await
    }

    async fn intents(&self) -> Result<Vec<Waiting>, SpoolError> {
        Journal::intents(self).await
    }
}
