//! The numbers of the audit trail: its spool and its delivery.
//!
//! Invariant: they stand on the page from the start, with or without an audit trail, and are all zero without one.

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::{ByLabel, Label, register};

label! {
    /// Why a delivery did not come to its end.
    AuditFailure {
        /// No connection, no answer, or an answer that was cut off.
        Unreachable = "unreachable",
        /// 429: the sink takes nothing now.
        Busy = "busy",
        /// 5xx.
        Server = "server",
        /// Another 4xx.
        Rejected = "rejected",
        /// The sink said that it took events and does not have them all.
        Missing = "missing",
        /// The file cannot be written.
        Disk = "disk",
    }
}

/// The handles of the audit trail; cheap to clone.
#[derive(Clone)]
pub struct AuditMetrics {
    /// `fedgate_audit_spool_events`
    pub events: IntGauge,
    /// `fedgate_audit_spool_bytes`
    pub bytes: IntGauge,
    /// `fedgate_audit_spool_limit_bytes`
    pub limit: IntGauge,
    /// `fedgate_audit_oldest_seconds`
    pub oldest: Gauge,
    /// `fedgate_audit_lost_total{what="refusals"}`
    pub lost_refusals: IntCounter,
    /// `fedgate_audit_lost_total{what="reads"}`
    pub lost_reads: IntCounter,
    /// `fedgate_audit_spool_failures_total`
    pub spool_failures: IntCounter,
    /// `fedgate_audit_delivered_total`
    pub delivered: IntCounter,
    /// `fedgate_audit_set_aside_total`
    pub set_aside: IntCounter,
    failures: ByLabel<AuditFailure, IntCounter>,
}

impl AuditMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name, help| register(registry, IntCounter::new(name, help));
        let gauge = |name, help| register(registry, IntGauge::new(name, help));
        let counters = |name: &str, help: &str, label: &str| {
            register(registry, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let lost = counters(
            "fedgate_audit_lost_total",
            "Statements that were counted and of which no event was kept, for want of room.",
            "what",
        )?;
        let failures = counters(
            "fedgate_audit_delivery_failures_total",
            "Deliveries of audit events that did not come to their end; they are tried again.",
            "reason",
        )?;
        Ok(Self {
            events: gauge("fedgate_audit_spool_events", "Audit events that wait for delivery.")?,
            bytes: gauge("fedgate_audit_spool_bytes", "What the audit spool holds.")?,
            limit: gauge("fedgate_audit_spool_limit_bytes", "What the audit spool may hold.")?,
            oldest: register(
                registry,
                Gauge::new("fedgate_audit_oldest_seconds", "Age of the audit event that waits longest."),
            )?,
            lost_refusals: lost.with_label_values(&["refusals"]),
            lost_reads: lost.with_label_values(&["reads"]),
            spool_failures: counter(
                "fedgate_audit_spool_failures_total",
                "Accesses to the audit spool that its disk did not allow.",
            )?,
            delivered: counter("fedgate_audit_delivered_total", "Audit events that the sink has.")?,
            set_aside: counter(
                "fedgate_audit_set_aside_total",
                "Audit events that the sink never took and that stand in a file beside the spool.",
            )?,
            failures: ByLabel::new(|reason| failures.with_label_values(&[reason])),
        })
    }

    /// A delivery did not come to its end.
    pub fn failed(&self, why: AuditFailure) {
        self.failures.inc(why);
    }
}

impl std::fmt::Debug for AuditMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AuditMetrics")
    }
}
