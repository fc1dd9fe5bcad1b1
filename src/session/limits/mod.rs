//! What a source takes of its clients at most: statements at work, rows and bytes, cost, hours, and less of all while it
//! suffers.
//!
//! Invariant: a limit is looked at before anything goes upstream and refuses at once; what is counted is given back or
//! settled whatever ends a statement; and nothing here is kept longer than the process lives.

mod breaker;
mod estimate;
mod ledger;
mod plan;
mod probe;
mod refusal;
mod text;
mod works;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use prometheus::IntGauge;
use tokio_util::task::AbortOnDropHandle;

pub(super) use refusal::Limited;
pub(super) use text::works;
pub use works::Works;
pub(super) use works::{Cost, Statement};

use crate::config::{self, BreakerLimits};
use crate::ids::SourceName;
use crate::metrics::LimitMetrics;
use crate::upstream::Source;
use breaker::{Above, Ceiling, Reading, above};
use estimate::Costs;
use ledger::{Full, Ledger, Most, Place, User};

/// What all sessions at one source share of its limits; it outlives a reload.
pub struct Restraints {
    ledger: Arc<Ledger>,
    costs: Arc<Costs>,
    // std Mutex: never held across an await.
    breaker: Mutex<Breaker>,
    metrics: LimitMetrics,
    /// The clock of days and of quiet hours.
    clock: fn() -> SystemTime,
}

#[derive(Default)]
struct Breaker {
    ceiling: Ceiling,
    /// What stood above its limit when the source was last seen to suffer.
    above: Option<Above>,
}

/// The tasks of a source's limits; they end when this is dropped.
pub struct Watch {
    _tasks: Vec<AbortOnDropHandle<()>>,
}

impl Restraints {
    pub fn new(metrics: LimitMetrics) -> Arc<Self> {
        Self::with_clock(metrics, SystemTime::now)
    }

    /// By another clock than the system's.
    pub fn with_clock(metrics: LimitMetrics, clock: fn() -> SystemTime) -> Arc<Self> {
        Arc::new(Self {
            ledger: Arc::default(),
            costs: Arc::new(Costs::new(metrics.clone())),
            breaker: Mutex::default(),
            metrics,
            clock,
        })
    }

    /// Begins what the limits of a configuration need to run beside the sessions.
    pub fn watch(self: &Arc<Self>, source: &Arc<Source>) -> Watch {
        let limits = &source.config().limits;
        let mut tasks = Vec::new();
        if let Some(cost) = &limits.cost {
            for _ in 0..cost.connections {
                let work = Arc::clone(&self.costs).work(Arc::clone(source), cost.clone());
                tasks.push(AbortOnDropHandle::new(tokio::spawn(work)));
            }
        }
        match &limits.breaker {
            Some(breaker) => {
                let watch =
                    probe::watch(Arc::clone(source), Arc::clone(self), breaker.clone(), limits.statements);
                tasks.push(AbortOnDropHandle::new(tokio::spawn(watch)));
            }
            None => {
                *self.breaker() = Breaker::default();
                self.metrics.ceiling.set(0);
            }
        }
        Watch { _tasks: tasks }
    }

    fn breaker(&self) -> std::sync::MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a look at the source in.
    fn sampled(&self, source: &SourceName, reading: &Reading, limits: &BreakerLimits, most: Option<u32>) {
        let above = above(reading, limits);
        let peak = self.ledger.peak();
        let mut breaker = self.breaker();
        let before = breaker.ceiling.now();
        breaker.ceiling.sampled(above.is_some(), peak, most, limits.least);
        let now = breaker.ceiling.now();
        if above.is_some() {
            breaker.above = above;
        }
        drop(breaker);
        self.metrics.ceiling.set(now.map_or(0, i64::from));
        match (before, now) {
            (None, Some(ceiling)) => {
                tracing::warn!(%source, ceiling, ?above, at_work = peak, "the source suffers; fewer statements are let through");
            }
            (Some(_), None) => tracing::info!(%source, "the source has recovered; nothing is held back"),
            _ => {}
        }
    }

    fn now(&self) -> SystemTime {
        (self.clock)()
    }

    /// A place for one session at work.
    fn take(&self, user: &User, limits: &config::SourceLimits) -> Result<AtWork, (Full, Option<Above>)> {
        let (ceiling, above) = match limits.breaker {
            Some(_) => {
                let breaker = self.breaker();
                (breaker.ceiling.now(), breaker.above)
            }
            None => (None, None),
        };
        let most = Most { in_all: limits.statements, by_user: limits.statements_by_user, breaker: ceiling };
        let place = self.ledger.take(user, &most).map_err(|full| (full, above))?;
        self.metrics.at_work.inc();
        Ok(AtWork { _place: place, gauge: self.metrics.at_work.clone() })
    }
}

/// A session at work, until it is dropped.
struct AtWork {
    _place: Place,
    gauge: IntGauge,
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.gauge.dec();
    }
}
