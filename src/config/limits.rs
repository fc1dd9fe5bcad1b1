//! What a source takes of its clients at most: `[source.limits]`.
//!
//! Invariant: everything is off unless it is asked for, and plain data: what is counted lives elsewhere.

use std::time::Duration;

use super::QuietHours;

/// `[source.limits]`; what is `None` has no limit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceLimits {
    /// Whom a refusal says to ask.
    pub contact: Option<String>,
    /// Statements at work at once, of all clients together.
    pub statements: Option<u32>,
    /// Statements at work at once of one user.
    pub statements_by_user: Option<u32>,
    /// Of the answer to one statement.
    pub answer: Amount,
    /// Of all answers to one user within a day of UTC.
    pub day: Amount,
    pub cost: Option<CostLimit>,
    /// In UTC; empty: none.
    pub quiet_hours: Vec<QuietHours>,
    pub breaker: Option<BreakerLimits>,
}

impl SourceLimits {
    /// Whether there is anything that a statement could be held back by.
    pub fn hold_back(&self) -> bool {
        self.statements.is_some()
            || self.statements_by_user.is_some()
            || self.answer != Amount::default()
            || self.day != Amount::default()
            || self.cost.is_some()
            || !self.quiet_hours.is_empty()
            || self.breaker.is_some()
    }
}

/// Rows and bytes at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    pub rows: Option<u64>,
    pub bytes: Option<u64>,
}

/// The ceiling on the planner's own estimate.
#[derive(Clone, Debug, PartialEq)]
pub struct CostLimit {
    /// In the planner's units.
    pub most: f64,
    /// How long a statement waits for its estimate.
    pub timeout: Duration,
    /// Connections of the gateway's own that estimates are asked for on.
    pub connections: usize,
    /// How long an estimate counts.
    pub remember: Duration,
}

/// What of the source's own state makes the gateway send less.
#[derive(Clone, Debug, PartialEq)]
pub struct BreakerLimits {
    /// Time of a probe.
    pub latency: Option<Duration>,
    /// Client sessions at work at the source, whoever they belong to.
    pub active_sessions: Option<u32>,
    /// How far a standby is behind.
    pub replication_lag: Option<Duration>,
    pub every: Duration,
    /// For one probe.
    pub timeout: Duration,
    /// Statements that are let through however bad it is.
    pub least: u32,
}
