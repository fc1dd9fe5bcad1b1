//! The numbers of `[source.limits]`.
//!
//! Invariant: they stand on the page for each source, with or without limits, and carry no user.

use prometheus::{Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::{ByLabel, Label, Outcome, register};

label! {
    /// Which limit kept a statement from going on.
    LimitKind {
        Statements = "statements",
        StatementsByUser = "statements_by_user",
        AnswerRows = "answer_rows",
        AnswerBytes = "answer_bytes",
        DayRows = "day_rows",
        DayBytes = "day_bytes",
        Cost = "cost",
        /// There is a ceiling on the cost, and the cost is not known.
        NoEstimate = "no_estimate",
        QuietHours = "quiet_hours",
        Breaker = "breaker",
    }
}

label! {
    /// What became of a question for a cost.
    EstimateOutcome {
        /// It was remembered.
        Remembered = "remembered",
        /// The source gave it.
        Asked = "asked",
        /// The source has an error for the statement itself, which goes on to meet it.
        Error = "error",
        /// There is none; the statement is refused.
        Failed = "failed",
    }
}

/// What takes a `source` label.
pub(super) struct LimitFamilies {
    refusals: IntCounterVec,
    at_work: IntGaugeVec,
    ceiling: IntGaugeVec,
    estimates: IntCounterVec,
    waiting: IntGaugeVec,
    samples: IntCounterVec,
    latency: GaugeVec,
    active_sessions: IntGaugeVec,
    replication_lag: GaugeVec,
}

/// The handles of one source; cheap to clone.
#[derive(Clone)]
pub struct LimitMetrics {
    refusals: ByLabel<LimitKind, IntCounter>,
    estimates: ByLabel<EstimateOutcome, IntCounter>,
    samples: ByLabel<Outcome, IntCounter>,
    /// `fedgate_limit_statements_at_work{source}`
    pub at_work: IntGauge,
    /// `fedgate_limit_breaker_ceiling{source}`
    pub ceiling: IntGauge,
    /// `fedgate_limit_estimates_waiting{source}`
    pub waiting: IntGauge,
    /// `fedgate_limit_source_latency_seconds{source}`
    pub latency: Gauge,
    /// `fedgate_limit_source_active_sessions{source}`
    pub active_sessions: IntGauge,
    /// `fedgate_limit_source_replication_lag_seconds{source}`
    pub replication_lag: Gauge,
}

impl LimitFamilies {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauges =
            |name: &str, help: &str| register(registry, IntGaugeVec::new(Opts::new(name, help), &["source"]));
        let seconds =
            |name: &str, help: &str| register(registry, GaugeVec::new(Opts::new(name, help), &["source"]));
        Ok(Self {
            refusals: counters(
                "fedgate_limit_refusals_total",
                "Statements that a limit of the source kept from going on, or ended.",
                &["source", "limit"],
            )?,
            at_work: gauges(
                "fedgate_limit_statements_at_work",
                "Sessions with a statement at work, where a limit counts them.",
            )?,
            ceiling: gauges(
                "fedgate_limit_breaker_ceiling",
                "Statements that the breaker lets be at work; 0: it holds nothing back.",
            )?,
            estimates: counters(
                "fedgate_limit_estimates_total",
                "Questions for what a statement would cost.",
                &["source", "outcome"],
            )?,
            waiting: gauges("fedgate_limit_estimates_waiting", "Statements that wait for their estimate.")?,
            samples: counters(
                "fedgate_limit_samples_total",
                "Looks of the breaker at the source.",
                &["source", "outcome"],
            )?,
            latency: seconds(
                "fedgate_limit_source_latency_seconds",
                "Time of the breaker's last probe that was answered.",
            )?,
            active_sessions: gauges(
                "fedgate_limit_source_active_sessions",
                "Client sessions at work at the source when the breaker last looked.",
            )?,
            replication_lag: seconds(
                "fedgate_limit_source_replication_lag_seconds",
                "How far the source was behind its primary when the breaker last looked.",
            )?,
        })
    }

    pub(super) fn source(&self, name: &str) -> LimitMetrics {
        LimitMetrics {
            refusals: ByLabel::new(|limit| self.refusals.with_label_values(&[name, limit])),
            estimates: ByLabel::new(|outcome| self.estimates.with_label_values(&[name, outcome])),
            samples: ByLabel::new(|outcome| self.samples.with_label_values(&[name, outcome])),
            at_work: self.at_work.with_label_values(&[name]),
            ceiling: self.ceiling.with_label_values(&[name]),
            waiting: self.waiting.with_label_values(&[name]),
            latency: self.latency.with_label_values(&[name]),
            active_sessions: self.active_sessions.with_label_values(&[name]),
            replication_lag: self.replication_lag.with_label_values(&[name]),
        }
    }

    pub(super) fn forget(&self, name: &str) {
        for kind in LimitKind::ALL {
            let _ = self.refusals.remove_label_values(&[name, kind.as_str()]);
        }
        for outcome in EstimateOutcome::ALL {
            let _ = self.estimates.remove_label_values(&[name, outcome.as_str()]);
        }
        for outcome in Outcome::ALL {
            let _ = self.samples.remove_label_values(&[name, outcome.as_str()]);
        }
        for gauges in [&self.at_work, &self.ceiling, &self.waiting, &self.active_sessions] {
            let _ = gauges.remove_label_values(&[name]);
        }
        for gauges in [&self.latency, &self.replication_lag] {
            let _ = gauges.remove_label_values(&[name]);
        }
    }
}

impl LimitMetrics {
    pub fn refused(&self, kind: LimitKind) {
        self.refusals.inc(kind);
    }

    pub fn estimated(&self, outcome: EstimateOutcome) {
        self.estimates.inc(outcome);
    }

    pub fn sampled(&self, outcome: Outcome) {
        self.samples.inc(outcome);
    }
}
