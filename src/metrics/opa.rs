//! The numbers of the bundle and of the OPAs that enforce it.
//!
//! Invariant: they stand on the page from the start, with or without `[opa]`, and are all zero without it.

use std::time::{Duration, SystemTime};

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use super::{ByLabel, Label, register};

label! {
    /// What came of making a bundle.
    Build {
        /// There is a new one.
        Ok = "ok",
        /// It is the one that there was.
        Unchanged = "unchanged",
        /// The document cannot be enforced; the bundle of before stays.
        Failed = "failed",
    }
}

label! {
    /// How a request for the bundle was answered.
    BundleAnswer {
        Sent = "sent",
        /// The asker has it.
        NotModified = "not_modified",
        /// There is none yet.
        None = "none",
        /// Too many wait for a change at the same time.
        Busy = "busy",
        /// No token and no certificate that counts.
        Refused = "refused",
    }
}

label! {
    /// What became of a status report of OPA.
    OpaReport {
        Taken = "taken",
        /// No token and no certificate that counts.
        Refused = "refused",
        /// It is none, too long, or not about our bundle.
        Shape = "shape",
        /// Too many OPAs report, or too many reports come at once.
        Busy = "busy",
    }
}

label! {
    /// How an OPA stands.
    OpaState {
        /// It enforces the newest bundle.
        Current = "current",
        Lagging = "lagging",
        /// It says that it cannot load bundles.
        Failing = "failing",
        /// It has not reported for long.
        Silent = "silent",
    }
}

label! {
    /// What an OPA answered that was asked for a masked column.
    Probe {
        Masked = "masked",
        /// Another mask than the document's.
        Differs = "differs",
        /// No mask at all.
        Clear = "clear",
        Unreachable = "unreachable",
    }
}

/// Seconds, from what a person does not notice to half an hour.
const LAG_BUCKETS: [f64; 14] =
    [0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0, 1800.0];
/// Seconds.
const BUILD_BUCKETS: [f64; 9] = [1e-3, 5e-3, 2.5e-2, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0];

/// The handles; cheap to clone.
#[derive(Clone)]
pub struct OpaMetrics {
    /// `fedgate_bundle_fault`
    pub fault: IntGauge,
    /// `fedgate_bundle_bytes`
    pub bytes: IntGauge,
    /// `fedgate_bundle_pollers`
    pub pollers: IntGauge,
    /// `fedgate_opa_probes_failing`
    pub probes_failing: IntGauge,
    build_seconds: Histogram,
    lag: Histogram,
    waiting_since: Gauge,
    builds: ByLabel<Build, IntCounter>,
    answers: ByLabel<BundleAnswer, IntCounter>,
    reports: ByLabel<OpaReport, IntCounter>,
    probes: ByLabel<Probe, IntCounter>,
    instances: ByLabel<OpaState, IntGauge>,
}

impl OpaMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str| {
            register(registry, IntCounterVec::new(Opts::new(name, help), &["outcome"]))
        };
        let gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help));
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            register(registry, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec())))
        };
        let builds = counters("fedgate_bundle_builds_total", "Bundles made of the policy document.")?;
        let answers = counters("fedgate_bundle_requests_total", "Requests for the bundle.")?;
        let reports = counters("fedgate_opa_reports_total", "Status reports of OPA.")?;
        let probes = counters("fedgate_opa_probes_total", "Questions to OPA for a column that is masked.")?;
        let instances = register(
            registry,
            IntGaugeVec::new(
                Opts::new(
                    "fedgate_opa_instances",
                    "OPAs that report, by whether they enforce the newest bundle.",
                ),
                &["state"],
            ),
        )?;
        Ok(Self {
            fault: gauge(
                "fedgate_bundle_fault",
                "1 when no bundle can be made of the policy document; the last good one is served.",
            )?,
            bytes: gauge("fedgate_bundle_bytes", "Size of the bundle that is served.")?,
            pollers: gauge("fedgate_bundle_pollers", "Requests that wait for another bundle.")?,
            probes_failing: gauge(
                "fedgate_opa_probes_failing",
                "OPAs that did not show the mask of the document when they were last asked.",
            )?,
            build_seconds: histogram("fedgate_bundle_build_seconds", "Making a bundle.", &BUILD_BUCKETS)?,
            lag: histogram(
                "fedgate_policy_lag_seconds",
                "From a change in the catalog, or of the document, until the last OPA reports that it enforces it.",
                &LAG_BUCKETS,
            )?,
            waiting_since: register(
                registry,
                Gauge::new(
                    "fedgate_policy_unenforced_since_timestamp_seconds",
                    "When the oldest change was made that not every OPA enforces yet, in Unix time; 0: there is none.",
                ),
            )?,
            builds: ByLabel::new(|outcome| builds.with_label_values(&[outcome])),
            answers: ByLabel::new(|outcome| answers.with_label_values(&[outcome])),
            reports: ByLabel::new(|outcome| reports.with_label_values(&[outcome])),
            probes: ByLabel::new(|outcome| probes.with_label_values(&[outcome])),
            instances: ByLabel::new(|state| instances.with_label_values(&[state])),
        })
    }

    pub fn built(&self, outcome: Build, took: Duration) {
        self.builds.inc(outcome);
        self.build_seconds.observe(took.as_secs_f64());
        self.fault.set(i64::from(outcome == Build::Failed));
    }

    pub fn answered(&self, answer: BundleAnswer) {
        self.answers.inc(answer);
    }

    pub fn reported(&self, outcome: OpaReport) {
        self.reports.inc(outcome);
    }

    pub fn probed(&self, outcome: Probe) {
        self.probes.inc(outcome);
    }

    /// A change is enforced by all.
    pub fn enforced(&self, lag: Duration) {
        self.lag.observe(lag.as_secs_f64());
    }

    pub fn waiting(&self, since: Option<SystemTime>) {
        let since = since.and_then(|since| since.duration_since(std::time::UNIX_EPOCH).ok());
        self.waiting_since.set(since.unwrap_or_default().as_secs_f64());
    }

    pub fn instances(&self, state: OpaState, count: usize) {
        if let Some(gauge) = self.instances.get(state) {
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

impl std::fmt::Debug for OpaMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("OpaMetrics")
    }
}
