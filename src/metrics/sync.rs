//! The numbers of the PII loop.
//!
//! Invariant: they stand on the page from the start, with or without a loop, and are all zero without one.

use prometheus::{Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::{ByLabel, Label, register};

/// Runs over a file take milliseconds, runs over a large catalog a minute.
const RUN_BUCKETS: &[f64] = &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

label! {
    /// How a run ended.
    RunOutcome {
        Success = "success",
        Failure = "failure",
    }
}

label! {
    /// Why a run failed, or what of it did.
    SyncFailure {
        /// The catalog does not accept the bot's token.
        JwtExpired = "jwt_expired",
        /// The catalog does not answer, or not with a whole picture.
        CatalogUnreachable = "catalog_unreachable",
        /// Somebody else kept changing the document.
        Conflict = "conflict",
        /// The map of tags names a mask that the library does not have.
        MissingMask = "missing_mask",
        /// The document cannot be read, is none, or cannot be written.
        Document = "document",
        /// Nothing can be recorded.
        Audit = "audit",
        /// A request that cannot be carried out: a plan that has changed, a revision that is not there.
        Refused = "refused",
        /// A bug.
        Internal = "internal",
    }
}

/// The handles of the loop; cheap to clone.
#[derive(Clone)]
pub struct SyncMetrics {
    /// `akko_policy_sync_tables_processed_total`
    pub tables_processed: IntCounter,
    /// `akko_policy_sync_subjects_affected_total`
    pub subjects_affected: IntCounter,
    /// `akko_policy_sync_publish_failures_total`
    pub publish_failures: IntCounter,
    /// `akko_policy_sync_last_run_timestamp_seconds`
    pub last_run: Gauge,
    /// `fedgate_sync_run_seconds`
    pub seconds: Histogram,
    /// `fedgate_sync_failures_in_a_row`
    pub in_a_row: IntGauge,
    /// `fedgate_sync_waiting`
    pub waiting: IntGauge,
    /// `fedgate_sync_held`
    pub held: IntGauge,
    /// `fedgate_sync_rolled_back`
    pub rolled_back: IntGauge,
    /// `fedgate_sync_unrecorded_total`
    pub unrecorded: IntCounter,
    runs: ByLabel<RunOutcome, IntCounter>,
    failures: ByLabel<SyncFailure, IntCounter>,
}

impl SyncMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name, help| register(registry, IntCounter::new(name, help));
        let gauge = |name, help| register(registry, IntGauge::new(name, help));
        let counters = |name: &str, help: &str, label: &str| {
            register(registry, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let runs = counters("akko_policy_sync_runs_total", "Runs of the PII loop that ended.", "outcome")?;
        let failures = counters(
            "fedgate_sync_failures_total",
            "Runs of the PII loop that did not do what they should, by what people can do about it.",
            "cause",
        )?;
        Ok(Self {
            tables_processed: counter(
                "akko_policy_sync_tables_processed_total",
                "Tables of the catalog that runs of the loop have looked at.",
            )?,
            subjects_affected: counter(
                "akko_policy_sync_subjects_affected_total",
                "Subjects whose masks were changed, summed over runs.",
            )?,
            publish_failures: counter(
                "akko_policy_sync_publish_failures_total",
                "Runs that did not bring into force what they should have.",
            )?,
            last_run: register(
                registry,
                Gauge::new(
                    "akko_policy_sync_last_run_timestamp_seconds",
                    "When the last run ended, in Unix time; 0 before the first.",
                ),
            )?,
            seconds: register(
                registry,
                Histogram::with_opts(
                    HistogramOpts::new("fedgate_sync_run_seconds", "How long runs of the loop take.")
                        .buckets(RUN_BUCKETS.to_vec()),
                ),
            )?,
            in_a_row: gauge("fedgate_sync_failures_in_a_row", "Runs that failed since one succeeded.")?,
            waiting: gauge(
                "fedgate_sync_waiting",
                "Changes that wait for an admin's word: more would be unmasked than max_removal allows.",
            )?,
            held: gauge("fedgate_sync_held", "Masks that stay for removal_delay after their tag has gone.")?,
            rolled_back: gauge(
                "fedgate_sync_rolled_back",
                "1 after a rollback, until an admin's run: nothing is published by itself meanwhile.",
            )?,
            unrecorded: counter(
                "fedgate_sync_unrecorded_total",
                "Runs of which the audit spool could take no event; the log and the history have them.",
            )?,
            runs: ByLabel::new(|outcome| runs.with_label_values(&[outcome])),
            failures: ByLabel::new(|cause| failures.with_label_values(&[cause])),
        })
    }

    pub fn ended(&self, outcome: RunOutcome) {
        self.runs.inc(outcome);
    }

    pub fn failed(&self, cause: SyncFailure) {
        self.failures.inc(cause);
    }
}

impl std::fmt::Debug for SyncMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SyncMetrics")
    }
}
