//! Where events go in the end.
//!
//! Invariant: a sink calls delivered only what it knows to be there; whatever it does not know stays in the spool, and
//! may so arrive twice, under the same `metadata.uid`.

mod file;
mod victorialogs;

use std::time::Duration;

pub use file::FileSink;
pub use victorialogs::{SinkError, Token, VictoriaLogs, VictoriaLogsSettings};

use super::spool::Waiting;
use crate::metrics::AuditFailure;

/// Takes events as lines of OCSF.
pub trait Sink: Send {
    /// Delivers events, oldest first. The answer names those that are there for certain, which may be fewer.
    ///
    /// # Errors
    /// None of them is there for certain.
    fn deliver(&mut self, events: &[Waiting]) -> impl Future<Output = Result<Vec<u64>, Fault>> + Send;

    /// Whether the sink can be used, without giving it an event.
    ///
    /// # Errors
    /// Why not.
    fn probe(&mut self) -> impl Future<Output = Result<(), Fault>> + Send;
}

/// Why nothing was delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    pub reason: AuditFailure,
    /// For logs; without secrets.
    pub message: String,
    /// How long the sink asks to be left alone.
    pub wait: Option<Duration>,
}

impl Fault {
    pub(super) fn new(reason: AuditFailure, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), wait: None }
    }
}

/// The sink of a configuration.
pub enum AnySink {
    File(FileSink),
    VictoriaLogs(Box<VictoriaLogs>),
}

impl Sink for AnySink {
    async fn deliver(&mut self, events: &[Waiting]) -> Result<Vec<u64>, Fault> {
        match self {
            AnySink::File(file) => file.deliver(events).await,
            AnySink::VictoriaLogs(logs) => logs.deliver(events).await,
        }
    }

    async fn probe(&mut self) -> Result<(), Fault> {
        match self {
            AnySink::File(file) => file.probe().await,
            AnySink::VictoriaLogs(logs) => logs.probe().await,
        }
    }
}
