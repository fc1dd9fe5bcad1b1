//! The numbers of a source's tap.
//!
//! Invariant: they stand on the page as long as their source is configured.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::register;

/// What takes a `source` label, to make a gate's handles from.
pub(super) struct GateFamilies {
    paused: IntGaugeVec,
    waiting: IntGaugeVec,
    overdue: IntCounterVec,
}

impl GateFamilies {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let source = &["source"];
        let gauges =
            |name: &str, help: &str| register(registry, IntGaugeVec::new(Opts::new(name, help), source));
        Ok(Self {
            paused: gauges("fedgate_source_paused", "1 while an administrator has paused the source.")?,
            waiting: gauges("fedgate_pause_waiting", "Clients that wait for a paused source.")?,
            overdue: register(
                registry,
                IntCounterVec::new(
                    Opts::new(
                        "fedgate_pause_overdue_total",
                        "Clients that waited for a paused source in vain.",
                    ),
                    source,
                ),
            )?,
        })
    }

    pub(super) fn of(&self, name: &str) -> GateMetrics {
        GateMetrics {
            paused: self.paused.with_label_values(&[name]),
            waiting: self.waiting.with_label_values(&[name]),
            overdue: self.overdue.with_label_values(&[name]),
        }
    }

    pub(super) fn forget(&self, name: &str) {
        // An error says that there was nothing under this label, which is what is wanted.
        let _ = self.paused.remove_label_values(&[name]);
        let _ = self.waiting.remove_label_values(&[name]);
        let _ = self.overdue.remove_label_values(&[name]);
    }
}

/// The handles of one gate; cheap to clone.
#[derive(Clone, Debug)]
pub struct GateMetrics {
    paused: IntGauge,
    waiting: IntGauge,
    overdue: IntCounter,
}

/// One client that waits, until it is dropped.
#[derive(Debug)]
pub struct Waiting(IntGauge);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl GateMetrics {
    /// How the gate stands.
    pub fn paused(&self, paused: bool) {
        self.paused.set(i64::from(paused));
    }

    /// A client waits for as long as the answer lives.
    pub fn wait(&self) -> Waiting {
        self.waiting.inc();
        Waiting(self.waiting.clone())
    }

    /// How many wait now.
    pub fn waiting(&self) -> u64 {
        u64::try_from(self.waiting.get()).unwrap_or(0)
    }

    /// A client waited in vain.
    pub fn overdue(&self) {
        self.overdue.inc();
    }
}
