//! The numbers of the policy document's reader.
//!
//! Invariant: they stand on the page from the start, with or without a document, and are all zero without one.

use std::time::SystemTime;

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::{ByLabel, Label, register};

label! {
    /// What one look at the document's place showed.
    DocumentRead {
        Ok = "ok",
        /// Something stands there, and it is no policy document.
        Broken = "broken",
        /// The place cannot be read.
        Unreadable = "unreadable",
    }
}

/// The handles of the reader; cheap to clone.
#[derive(Clone)]
pub struct DocumentMetrics {
    /// `fedgate_document_changes_total`
    pub changes: IntCounter,
    /// `fedgate_document_fault`
    pub fault: IntGauge,
    last_success: Gauge,
    reads: ByLabel<DocumentRead, IntCounter>,
}

impl DocumentMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let reads = register(
            registry,
            IntCounterVec::new(
                Opts::new("fedgate_document_reads_total", "Looks at the place of the policy document."),
                &["outcome"],
            ),
        )?;
        Ok(Self {
            changes: register(
                registry,
                IntCounter::new(
                    "fedgate_document_changes_total",
                    "Policy documents that came into force, the first one included.",
                ),
            )?,
            fault: register(
                registry,
                IntGauge::new(
                    "fedgate_document_fault",
                    "1 when the policy document cannot be taken as it is now; the last good one stays in force.",
                ),
            )?,
            last_success: register(
                registry,
                Gauge::new(
                    "fedgate_document_last_success_timestamp_seconds",
                    "When the policy document was last found in order, in Unix time; 0 before the first time.",
                ),
            )?,
            reads: ByLabel::new(|outcome| reads.with_label_values(&[outcome])),
        })
    }

    pub fn read(&self, outcome: DocumentRead) {
        self.reads.inc(outcome);
    }

    pub fn succeeded(&self, at: SystemTime) {
        self.last_success.set(at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    }
}

impl std::fmt::Debug for DocumentMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DocumentMetrics")
    }
}
