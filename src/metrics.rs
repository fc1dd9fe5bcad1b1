//! Metric handles, on a registry of their own.
//!
//! Invariant: labels never carry SQL, users or anything unbounded, and no label is looked up while
//! a session runs: every handle is made when its source is. docs/metrics.md lists them all, held
//! against this file by a test.

use std::marker::PhantomData;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus::core::Collector;
use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::ids::{RefusalClass, SourceName, StatementClass};

/// The closed set of values that one label may take.
pub trait Label: Copy + PartialEq + 'static {
    const ALL: &'static [Self];
    fn as_str(self) -> &'static str;
}

macro_rules! label {
    ($(#[$doc:meta])* $type:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type {
            $($(#[$variant_doc])* $variant,)+
        }

        impl Label for $type {
            const ALL: &'static [Self] = &[$(Self::$variant,)+];

            fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}

mod audit;
mod document;
mod gate;
mod http;
mod limits;
mod opa;
mod policy;
mod sync;

pub use audit::{AuditFailure, AuditMetrics};
pub use document::{DocumentMetrics, DocumentRead};
pub use gate::{GateMetrics, Waiting};
pub use http::{HttpMetrics, HttpRefusal, Push};
pub use limits::{EstimateOutcome, LimitKind, LimitMetrics};
pub use opa::{Build, BundleAnswer, OpaMetrics, OpaReport, OpaState, Probe};
pub use policy::{DeploymentState, PolicyMetrics};
pub use sync::{RunOutcome, SyncFailure, SyncMetrics};

label! {
    /// How a client's startup ended.
    ConnectionOutcome {
        /// ReadyForQuery was sent.
        Established = "established",
        /// The connection carried a CancelRequest.
        Cancel = "cancel",
        /// It ended before ReadyForQuery; `startup_failures_total` says why.
        Failed = "failed",
    }
}

label! {
    /// Why a client never came as far as ReadyForQuery.
    StartupFailure {
        /// Bytes that are not the protocol, or a message where none may stand.
        Protocol = "protocol",
        Tls = "tls",
        /// TLS is required and the client did not ask for it.
        TlsRequired = "tls_required",
        Authentication = "authentication",
        /// Too many wrong passwords of late.
        Throttled = "throttled",
        /// Unknown database, or a source that this user may not use from there.
        Access = "access",
        /// The configuration policies deploy no reads of that source for this user.
        Policy = "policy",
        /// A startup key outside the allow list.
        Setting = "setting",
        TooManyClients = "too_many_clients",
        /// `max_clients_per_user` are connected.
        UserLimit = "user_limit",
        /// `max_clients` of the source are connected.
        SourceLimit = "source_limit",
        /// The source is paused, and was not resumed in time.
        Paused = "paused",
        /// An administrator ended the user's sessions while this one began.
        Ended = "ended",
        SourceDown = "source_down",
        /// No connection to the source became free in time.
        Pool = "pool",
        Timeout = "timeout",
        /// The client went away by itself.
        Disconnected = "disconnected",
        Shutdown = "shutdown",
        Internal = "internal",
    }
}

label! {
    /// What became of a CancelRequest.
    CancelOutcome {
        Forwarded = "forwarded",
        /// No session has this key.
        Unknown = "unknown",
        /// The source could not be told.
        Failed = "failed",
        /// The client waited at the gateway, and the wait was ended.
        Waiting = "waiting",
        /// The session had nothing at its source.
        Idle = "idle",
        /// Too many for one session were on their way already.
        Surplus = "surplus",
    }
}

label! {
    /// What a connection to a source is doing.
    UpstreamState {
        /// Dialling, TLS, authentication, pinning.
        Opening = "opening",
        /// Open, and no client has it.
        Idle = "idle",
        /// Leased to a client.
        Leased = "leased",
    }
}

label! {
    /// Whether an attempt came to its end.
    Outcome {
        Ok = "ok",
        Failed = "failed",
    }
}

label! {
    Direction {
        FromClient = "from_client",
        ToClient = "to_client",
    }
}

impl Label for RefusalClass {
    const ALL: &'static [Self] = &RefusalClass::ALL;

    fn as_str(self) -> &'static str {
        RefusalClass::as_str(self)
    }
}

impl Label for StatementClass {
    const ALL: &'static [Self] = &[
        StatementClass::Read,
        StatementClass::Transaction,
        StatementClass::Session,
        StatementClass::Write,
        StatementClass::Empty,
    ];

    fn as_str(self) -> &'static str {
        StatementClass::as_str(self)
    }
}

/// One handle for each value of a label, found by position and never by name.
#[derive(Clone)]
struct ByLabel<L: Label, M> {
    handles: Arc<[M]>,
    label: PhantomData<L>,
}

impl<L: Label, M> ByLabel<L, M> {
    fn new(make: impl Fn(&'static str) -> M) -> Self {
        Self { handles: L::ALL.iter().map(|label| make(label.as_str())).collect(), label: PhantomData }
    }

    fn get(&self, label: L) -> Option<&M> {
        let position = L::ALL.iter().position(|other| *other == label)?;
        self.handles.get(position)
    }
}

impl<L: Label> ByLabel<L, IntCounter> {
    fn inc(&self, label: L) {
        if let Some(counter) = self.get(label) {
            counter.inc();
        }
    }
}

/// Seconds, from a verdict out of the cache to one on a text of the largest size.
const VERDICT_BUCKETS: [f64; 18] = [
    1e-7, 2.5e-7, 5e-7, 1e-6, 2.5e-6, 5e-6, 1e-5, 1.5e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3,
    5e-3, 1e-2, 5e-2,
];

/// Seconds, from a socket on the same host to a dial that runs into its time-out.
const OPEN_BUCKETS: [f64; 12] = [5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 1.0, 5.0, 30.0];

/// All metrics of one gateway.
pub struct Metrics {
    registry: Registry,
    /// `fedgate_client_connections`: sockets of clients open now, whatever their state.
    pub client_connections: IntGauge,
    /// `fedgate_authentication_failures_total`: wrong passwords, unknown users, bad certificates.
    pub authentication_failures: IntCounter,
    /// `fedgate_authentication_throttled_total`: attempts turned away for too many wrong ones before.
    pub authentication_throttled: IntCounter,
    /// `fedgate_verdict_seconds`: time from text to verdict, cache included.
    pub verdict_seconds: Histogram,
    pub verdict_cache_hits: IntCounter,
    pub verdict_cache_misses: IntCounter,
    /// `fedgate_verdicts_aside_total`: of long texts, on threads of their own.
    pub verdicts_aside: IntCounter,
    /// `fedgate_verdicts_waiting`: long texts for which there is no room yet.
    pub verdicts_waiting: IntGauge,
    /// `fedgate_verdict_cache_bytes`: what the cached verdicts weigh now.
    pub verdict_cache_bytes: IntGauge,
    /// `fedgate_bytes_total{direction="from_client"}`
    pub bytes_from_client: IntCounter,
    /// `fedgate_bytes_total{direction="to_client"}`
    pub bytes_to_client: IntCounter,
    /// `fedgate_sessions_ended_total`: by an administrator's word.
    pub sessions_ended: IntCounter,
    /// `fedgate_panics_total`: defects of the gateway itself; each ended one session.
    pub panics: IntCounter,
    /// `fedgate_log_lines_lost_total`: disk full, or nobody reads them.
    pub log_lines_lost: IntCounter,
    /// `fedgate_audit_…`
    pub audit: AuditMetrics,
    /// `fedgate_document_…`
    pub document: DocumentMetrics,
    /// `fedgate_http_…` and `fedgate_catalog_…`
    pub http: HttpMetrics,
    /// `fedgate_bundle_…`, `fedgate_opa_…` and `fedgate_policy_…`
    pub opa: OpaMetrics,
    /// `fedgate_config_policies_…` and `fedgate_deployments`
    pub policy: PolicyMetrics,
    /// `akko_policy_sync_…` and `fedgate_sync_…`
    pub sync: SyncMetrics,
    connections: ByLabel<ConnectionOutcome, IntCounter>,
    startup_failures: ByLabel<StartupFailure, IntCounter>,
    cancels: ByLabel<CancelOutcome, IntCounter>,
    config_reloads: ByLabel<Outcome, IntCounter>,
    families: Families,
}

/// What takes a `source` label, to make a source's handles from.
struct Families {
    source_up: IntGaugeVec,
    source_read_only: IntGaugeVec,
    upstream_connections: IntGaugeVec,
    upstream_open_seconds: HistogramVec,
    upstream_open_failures: IntCounterVec,
    pool_size: IntGaugeVec,
    pool_waiting: IntGaugeVec,
    pool_wait_seconds: HistogramVec,
    pool_timeouts: IntCounterVec,
    statements: IntCounterVec,
    refusals: IntCounterVec,
    catalogue_refreshes: IntCounterVec,
    catalogue_loaded: GaugeVec,
    limits: limits::LimitFamilies,
    gates: gate::GateFamilies,
}

fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    made: Result<C, prometheus::Error>,
) -> Result<C, prometheus::Error> {
    let collector = made?;
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}

impl Metrics {
    /// Fails only if two metrics of this file had one name, which a test rules out.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name, help| register(&registry, IntCounter::new(name, help));
        let gauge = |name, help| register(&registry, IntGauge::new(name, help));
        let counters = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };

        let build = gauges("fedgate_build_info", "Always 1; the version is in the label.", &["version"])?;
        build.with_label_values(&[env!("CARGO_PKG_VERSION")]).set(1);

        let connections = counters(
            "fedgate_client_connections_total",
            "Connections of clients, by how their startup ended.",
            &["outcome"],
        )?;
        let startup_failures = counters(
            "fedgate_startup_failures_total",
            "Connections that ended before ReadyForQuery, by reason.",
            &["reason"],
        )?;
        let cancels = counters("fedgate_cancel_requests_total", "CancelRequests of clients.", &["outcome"])?;
        let bytes = counters(
            "fedgate_bytes_total",
            "Bytes of the protocol on the clients' side, TLS not counted.",
            &["direction"],
        )?;
        let bytes = ByLabel::<Direction, _>::new(|direction| bytes.with_label_values(&[direction]));
        let direction = |direction| {
            bytes.get(direction).cloned().ok_or_else(|| prometheus::Error::Msg("no such direction".into()))
        };
        let config_reloads =
            counters("fedgate_config_reloads_total", "Reloads of the configuration file.", &["outcome"])?;

        Ok(Self {
            client_connections: gauge("fedgate_client_connections", "Connections of clients open now.")?,
            authentication_failures: counter(
                "fedgate_authentication_failures_total",
                "Clients that could not prove who they are.",
            )?,
            authentication_throttled: counter(
                "fedgate_authentication_throttled_total",
                "Attempts to log in that were held back after too many failures.",
            )?,
            verdict_seconds: register(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "fedgate_verdict_seconds",
                        "Time to judge a text that is not in the cache.",
                    )
                    .buckets(VERDICT_BUCKETS.to_vec()),
                ),
            )?,
            verdict_cache_hits: counter(
                "fedgate_verdict_cache_hits_total",
                "Verdicts that came out of the cache.",
            )?,
            verdict_cache_misses: counter(
                "fedgate_verdict_cache_misses_total",
                "Verdicts that had to be worked out.",
            )?,
            verdicts_aside: counter(
                "fedgate_verdicts_aside_total",
                "Verdicts on long texts, worked out on threads of their own.",
            )?,
            verdicts_waiting: gauge(
                "fedgate_verdicts_waiting",
                "Sessions that wait for room to have a long text judged.",
            )?,
            verdict_cache_bytes: gauge("fedgate_verdict_cache_bytes", "Size of the verdict cache.")?,
            bytes_from_client: direction(Direction::FromClient)?,
            bytes_to_client: direction(Direction::ToClient)?,
            sessions_ended: counter(
                "fedgate_sessions_ended_total",
                "Sessions that an administrator has ended.",
            )?,
            panics: counter(
                "fedgate_panics_total",
                "Defects of the gateway that ended a session; each is worth a report.",
            )?,
            log_lines_lost: counter(
                "fedgate_log_lines_lost_total",
                "Lines of the log that could not be written.",
            )?,
            audit: AuditMetrics::new(&registry)?,
            document: DocumentMetrics::new(&registry)?,
            http: HttpMetrics::new(&registry)?,
            opa: OpaMetrics::new(&registry)?,
            policy: PolicyMetrics::new(&registry)?,
            sync: SyncMetrics::new(&registry)?,
            connections: ByLabel::new(|outcome| connections.with_label_values(&[outcome])),
            startup_failures: ByLabel::new(|reason| startup_failures.with_label_values(&[reason])),
            cancels: ByLabel::new(|outcome| cancels.with_label_values(&[outcome])),
            config_reloads: ByLabel::new(|outcome| config_reloads.with_label_values(&[outcome])),
            families: Families {
                source_up: gauges(
                    "fedgate_source_up",
                    "1 when the source answered last, 0 when it did not.",
                    &["source"],
                )?,
                source_read_only: gauges(
                    "fedgate_source_read_only",
                    "1 when nobody may write to the source, 0 when its writers may.",
                    &["source"],
                )?,
                upstream_connections: gauges(
                    "fedgate_upstream_connections",
                    "Connections to a source now.",
                    &["source", "state"],
                )?,
                upstream_open_seconds: register(
                    &registry,
                    HistogramVec::new(
                        HistogramOpts::new(
                            "fedgate_upstream_open_seconds",
                            "Time to a connection that is ready for use: dial, TLS, authentication, pinning.",
                        )
                        .buckets(OPEN_BUCKETS.to_vec()),
                        &["source"],
                    ),
                )?,
                upstream_open_failures: counters(
                    "fedgate_upstream_open_failures_total",
                    "Connections to a source that could not be made.",
                    &["source"],
                )?,
                pool_size: gauges(
                    "fedgate_pool_size",
                    "Connections that a source's pool may have.",
                    &["source"],
                )?,
                pool_waiting: gauges(
                    "fedgate_pool_waiting",
                    "Clients that wait for a connection to a source.",
                    &["source"],
                )?,
                pool_wait_seconds: register(
                    &registry,
                    HistogramVec::new(
                        HistogramOpts::new(
                            "fedgate_pool_wait_seconds",
                            "Time that clients waited for a connection to a source when none was free.",
                        )
                        .buckets(OPEN_BUCKETS.to_vec()),
                        &["source"],
                    ),
                )?,
                pool_timeouts: counters(
                    "fedgate_pool_timeouts_total",
                    "Clients that got no connection to a source within pool.wait.",
                    &["source"],
                )?,
                statements: counters(
                    "fedgate_statements_total",
                    "Statements judged.",
                    &["source", "verdict", "class"],
                )?,
                refusals: counters(
                    "fedgate_refusals_total",
                    "Statements and messages that were not sent on.",
                    &["source", "class"],
                )?,
                catalogue_refreshes: counters(
                    "fedgate_catalogue_refreshes_total",
                    "Loads of a source's function catalogue.",
                    &["source", "outcome"],
                )?,
                catalogue_loaded: register(
                    &registry,
                    GaugeVec::new(
                        Opts::new(
                            "fedgate_catalogue_loaded_timestamp_seconds",
                            "When the function catalogue in force was loaded, in Unix time.",
                        ),
                        &["source"],
                    ),
                )?,
                limits: limits::LimitFamilies::new(&registry)?,
                gates: gate::GateFamilies::new(&registry)?,
            },
            registry,
        })
    }

    /// A client reached ReadyForQuery.
    pub fn established(&self) {
        self.connections.inc(ConnectionOutcome::Established);
    }

    /// A client's connection ended before ReadyForQuery. Counts failed and throttled logins too.
    pub fn startup_failed(&self, reason: StartupFailure) {
        self.connections.inc(ConnectionOutcome::Failed);
        self.startup_failures.inc(reason);
        match reason {
            StartupFailure::Authentication => self.authentication_failures.inc(),
            StartupFailure::Throttled => self.authentication_throttled.inc(),
            _ => {}
        }
    }

    /// A connection carried a CancelRequest.
    pub fn cancel(&self, outcome: CancelOutcome) {
        self.connections.inc(ConnectionOutcome::Cancel);
        self.cancels.inc(outcome);
    }

    /// A new configuration was taken up, or was bad and the old one stays.
    pub fn config_reload(&self, outcome: Outcome) {
        self.config_reloads.inc(outcome);
    }

    /// Counts a client's connection for as long as the answer lives.
    pub fn client(&self) -> Counted {
        Counted::new(self.client_connections.clone())
    }

    /// The handles of one source; asking twice gives handles on the same numbers.
    pub fn source(&self, name: &SourceName) -> SourceMetrics {
        let name = name.as_str();
        let families = &self.families;
        SourceMetrics {
            verdicts: VerdictMetrics {
                cached: self.verdict_cache_hits.clone(),
                judged: self.verdict_cache_misses.clone(),
                seconds: self.verdict_seconds.clone(),
                bytes: self.verdict_cache_bytes.clone(),
            },
            up: families.source_up.with_label_values(&[name]),
            read_only: families.source_read_only.with_label_values(&[name]),
            upstream_open_seconds: families.upstream_open_seconds.with_label_values(&[name]),
            upstream_open_failures: families.upstream_open_failures.with_label_values(&[name]),
            pool_size: families.pool_size.with_label_values(&[name]),
            pool_waiting: families.pool_waiting.with_label_values(&[name]),
            pool_wait_seconds: families.pool_wait_seconds.with_label_values(&[name]),
            pool_timeouts: families.pool_timeouts.with_label_values(&[name]),
            bytes_from_client: self.bytes_from_client.clone(),
            bytes_to_client: self.bytes_to_client.clone(),
            upstream: ByLabel::new(|state| families.upstream_connections.with_label_values(&[name, state])),
            admitted: ByLabel::new(|class| families.statements.with_label_values(&[name, "admit", class])),
            refused: ByLabel::new(|class| families.statements.with_label_values(&[name, "refuse", class])),
            refusals: ByLabel::new(|class| families.refusals.with_label_values(&[name, class])),
            refreshes: ByLabel::new(|outcome| {
                families.catalogue_refreshes.with_label_values(&[name, outcome])
            }),
            catalogue_loaded: families.catalogue_loaded.with_label_values(&[name]),
            gate: families.gates.of(name),
        }
    }

    /// The handles of one source's limits; asking twice gives handles on the same numbers.
    pub fn limits(&self, name: &SourceName) -> LimitMetrics {
        self.families.limits.source(name.as_str())
    }

    /// Takes the numbers of a source that is no longer configured out of the page. Sessions that
    /// still run on it count on, unseen.
    pub fn forget(&self, name: &SourceName) {
        let name = name.as_str();
        let families = &self.families;
        // An error says that there was nothing under these labels, which is what is wanted.
        let _ = families.source_up.remove_label_values(&[name]);
        let _ = families.source_read_only.remove_label_values(&[name]);
        let _ = families.upstream_open_seconds.remove_label_values(&[name]);
        let _ = families.upstream_open_failures.remove_label_values(&[name]);
        let _ = families.catalogue_loaded.remove_label_values(&[name]);
        let _ = families.pool_size.remove_label_values(&[name]);
        let _ = families.pool_waiting.remove_label_values(&[name]);
        let _ = families.pool_wait_seconds.remove_label_values(&[name]);
        let _ = families.pool_timeouts.remove_label_values(&[name]);
        families.limits.forget(name);
        families.gates.forget(name);
        for state in UpstreamState::ALL {
            let _ = families.upstream_connections.remove_label_values(&[name, state.as_str()]);
        }
        for class in <StatementClass as Label>::ALL {
            let _ = families.statements.remove_label_values(&[name, "admit", class.as_str()]);
        }
        for class in &RefusalClass::ALL {
            let _ = families.statements.remove_label_values(&[name, "refuse", class.as_str()]);
            let _ = families.refusals.remove_label_values(&[name, class.as_str()]);
        }
        for outcome in Outcome::ALL {
            let _ = families.catalogue_refreshes.remove_label_values(&[name, outcome.as_str()]);
        }
    }

    /// Everything, in the Prometheus text format 0.0.4.
    pub fn render(&self) -> String {
        TextEncoder::new()
            .encode_to_string(&self.registry.gather())
            .unwrap_or_else(|error| format!("# could not be rendered: {error}\n"))
    }
}

/// The handles of one source; cheap to clone, free to use.
#[derive(Clone)]
pub struct SourceMetrics {
    /// `fedgate_upstream_open_seconds{source}`
    pub upstream_open_seconds: Histogram,
    /// `fedgate_upstream_open_failures_total{source}`
    pub upstream_open_failures: IntCounter,
    /// `fedgate_pool_size{source}`
    pub pool_size: IntGauge,
    /// `fedgate_pool_waiting{source}`
    pub pool_waiting: IntGauge,
    /// `fedgate_pool_wait_seconds{source}`: of those that had to wait.
    pub pool_wait_seconds: Histogram,
    /// `fedgate_pool_timeouts_total{source}`
    pub pool_timeouts: IntCounter,
    /// `fedgate_bytes_total{direction="from_client"}`, of all sources together.
    pub bytes_from_client: IntCounter,
    /// `fedgate_bytes_total{direction="to_client"}`, of all sources together.
    pub bytes_to_client: IntCounter,
    /// Of all sources together.
    pub verdicts: VerdictMetrics,
    /// `fedgate_source_paused{source}` and `fedgate_pause_…`
    pub gate: GateMetrics,
    up: IntGauge,
    read_only: IntGauge,
    upstream: ByLabel<UpstreamState, IntGauge>,
    admitted: ByLabel<StatementClass, IntCounter>,
    refused: ByLabel<RefusalClass, IntCounter>,
    refusals: ByLabel<RefusalClass, IntCounter>,
    refreshes: ByLabel<Outcome, IntCounter>,
    catalogue_loaded: Gauge,
}

/// How verdicts were come by.
#[derive(Clone)]
pub struct VerdictMetrics {
    /// `fedgate_verdict_cache_hits_total`
    pub cached: IntCounter,
    /// `fedgate_verdict_cache_misses_total`
    pub judged: IntCounter,
    /// `fedgate_verdict_seconds`: of those that were judged; a look into the cache is not timed.
    pub seconds: Histogram,
    /// `fedgate_verdict_cache_bytes`
    pub bytes: IntGauge,
}

impl SourceMetrics {
    /// A statement was sent on.
    pub fn admitted(&self, class: StatementClass) {
        self.admitted.inc(class);
    }

    /// A statement was answered here.
    pub fn refused(&self, class: RefusalClass) {
        self.refused.inc(class);
        self.refusals.inc(class);
    }

    /// Whether the source answered last.
    pub fn up(&self, up: bool) {
        self.up.set(i64::from(up));
    }

    /// What the configuration says of the source.
    pub fn read_only(&self, read_only: bool) {
        self.read_only.set(i64::from(read_only));
    }

    /// Counts a connection to the source in `state` for as long as the answer lives.
    pub fn upstream(&self, state: UpstreamState) -> UpstreamCounted {
        UpstreamCounted {
            gauges: self.upstream.clone(),
            _counted: self.upstream.get(state).cloned().map(Counted::new),
        }
    }

    /// A connection was ready for use after `took`.
    pub fn upstream_opened(&self, took: Duration) {
        self.upstream_open_seconds.observe(took.as_secs_f64());
    }

    /// A function catalogue was loaded and is in force since `at`.
    pub fn catalogue_loaded(&self, at: SystemTime) {
        self.refreshes.inc(Outcome::Ok);
        let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.catalogue_loaded.set(since_epoch.as_secs_f64());
    }

    /// A function catalogue could not be loaded; the one in force stays.
    pub fn catalogue_failed(&self) {
        self.refreshes.inc(Outcome::Failed);
    }
}

/// One more on a gauge, until it is dropped.
pub struct Counted(IntGauge);

impl Counted {
    fn new(gauge: IntGauge) -> Self {
        gauge.inc();
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// One connection to a source on the gauge of its state, until it is dropped.
pub struct UpstreamCounted {
    gauges: ByLabel<UpstreamState, IntGauge>,
    _counted: Option<Counted>,
}

impl UpstreamCounted {
    /// Moves the connection to another state.
    pub fn now(&mut self, state: UpstreamState) {
        // Out of one before it is in the other: whoever looks meanwhile sees no more connections than there are.
        self._counted = None;
        self._counted = self.gauges.get(state).cloned().map(Counted::new);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn line(page: &str, start: &str) -> String {
        page.lines()
            .find(|line| line.starts_with(start))
            .unwrap_or_else(|| panic!("{start} in {page}"))
            .into()
    }

    #[test]
    fn handles_of_one_source_share_their_numbers() {
        let metrics = Metrics::new().unwrap();
        let name = SourceName::new("climscore");
        let (one, two) = (metrics.source(&name), metrics.source(&name));
        one.refused(RefusalClass::Write);
        two.refused(RefusalClass::Write);
        two.admitted(StatementClass::Read);
        let page = metrics.render();
        assert_eq!(
            line(&page, r#"fedgate_refusals_total{class="write",source="climscore"}"#).split(' ').nth(1),
            Some("2")
        );
        assert_eq!(
            line(&page, r#"fedgate_statements_total{class="read",source="climscore",verdict="admit"}"#)
                .split(' ')
                .nth(1),
            Some("1")
        );
        assert_eq!(
            line(&page, r#"fedgate_statements_total{class="write",source="climscore",verdict="refuse"}"#)
                .split(' ')
                .nth(1),
            Some("2")
        );
    }

    #[test]
    fn a_connection_is_counted_in_one_state_and_no_longer_than_it_lives() {
        let metrics = Metrics::new().unwrap();
        let source = metrics.source(&SourceName::new("s"));
        let value = |state: &str| {
            let start = format!(r#"fedgate_upstream_connections{{source="s",state="{state}"}}"#);
            line(&metrics.render(), &start).split(' ').nth(1).map(str::to_owned).unwrap()
        };
        let mut counted = source.upstream(UpstreamState::Opening);
        assert_eq!((value("opening"), value("leased")), ("1".into(), "0".into()));
        counted.now(UpstreamState::Leased);
        assert_eq!((value("opening"), value("leased")), ("0".into(), "1".into()));
        drop(counted);
        assert_eq!((value("opening"), value("leased")), ("0".into(), "0".into()));
    }

    #[test]
    fn a_forgotten_source_leaves_the_page() {
        let metrics = Metrics::new().unwrap();
        let name = SourceName::new("gone");
        metrics.source(&name);
        assert!(metrics.render().contains("gone"));
        metrics.forget(&name);
        assert!(!metrics.render().contains("\"gone\""));
    }

    #[test]
    fn a_failed_login_counts_where_operators_look() {
        let metrics = Metrics::new().unwrap();
        metrics.startup_failed(StartupFailure::Authentication);
        metrics.startup_failed(StartupFailure::Throttled);
        let page = metrics.render();
        assert_eq!(
            line(&page, "fedgate_authentication_failures_total"),
            "fedgate_authentication_failures_total 1"
        );
        assert_eq!(
            line(&page, "fedgate_authentication_throttled_total"),
            "fedgate_authentication_throttled_total 1"
        );
        assert_eq!(
            line(&page, r#"fedgate_client_connections_total{outcome="failed"}"#).split(' ').nth(1),
            Some("2")
        );
    }

    #[test]
    fn labels_are_distinct() {
        fn check<L: Label>() {
            let texts: BTreeSet<_> = L::ALL.iter().map(|label| label.as_str()).collect();
            assert_eq!(texts.len(), L::ALL.len());
        }
        check::<StartupFailure>();
        check::<RefusalClass>();
        check::<StatementClass>();
        check::<UpstreamState>();
    }

    /// docs/metrics.md holds one row for each metric: name, kind, labels, meaning.
    #[test]
    fn the_table_in_the_documentation_is_complete() {
        let metrics = Metrics::new().unwrap();
        let source = metrics.source(&SourceName::new("s"));
        let _limits = metrics.limits(&SourceName::new("s"));
        source.up(true);
        let code: BTreeSet<(String, String, String)> = metrics
            .registry
            .gather()
            .iter()
            .map(|family| {
                let kind = format!("{:?}", family.get_field_type()).to_lowercase();
                let labels: BTreeSet<&str> = family
                    .get_metric()
                    .iter()
                    .flat_map(|metric| metric.get_label().iter().map(|label| label.name()))
                    .collect();
                (family.name().to_owned(), kind, labels.into_iter().collect::<Vec<_>>().join(", "))
            })
            .collect();
        let documented: BTreeSet<(String, String, String)> = include_str!("../docs/metrics.md")
            .lines()
            .filter(|line| line.starts_with("| `"))
            .map(|line| {
                let cells: Vec<&str> = line.split('|').map(str::trim).collect();
                let mut labels: Vec<&str> =
                    cells[3].split(',').map(|cell| cell.trim().trim_matches('`')).collect();
                labels.sort_unstable();
                (cells[1].trim_matches('`').to_owned(), cells[2].to_owned(), labels.join(", "))
            })
            .collect();
        assert_eq!(documented, code);
        assert!(
            code.iter()
                .all(|(name, _, _)| name.starts_with("fedgate_") || name.starts_with("akko_policy_sync_"))
        );
    }
}
