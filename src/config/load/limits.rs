//! `[source.limits]` and which hosts of a source are wanted.
//!
//! Invariant: what is left out has no limit, and a limit of nothing at all is an error.

use std::time::Duration;

use super::{DAY, SECOND};
use crate::config::raw::Section;
use crate::config::{Amount, BreakerLimits, CostLimit, QuietHours, SourceLimits, TargetSession};

/// Longest contact, in bytes: it stands in every refusal.
const CONTACT_LIMIT: usize = 200;
/// Up to which whole numbers are exact in JSON and floating point.
const MOST: usize = 1 << 53;

pub(super) fn target_session(section: &mut Section<'_, '_>) -> TargetSession {
    let words = [
        ("any", TargetSession::Any),
        ("read-write", TargetSession::Primary),
        ("read-only", TargetSession::Standby),
        ("primary", TargetSession::Primary),
        ("standby", TargetSession::Standby),
        ("prefer-standby", TargetSession::PreferStandby),
    ];
    section.word("target_session_attrs", &words).map_or(TargetSession::Any, |found| found.value)
}

pub(super) fn limits(section: &mut Section<'_, '_>, relayed: bool) -> SourceLimits {
    let Some(mut limits) = section.section("limits") else { return SourceLimits::default() };
    let contact = limits.text("contact").and_then(|found| {
        let text = found.value.trim();
        if text.is_empty() || text.len() > CONTACT_LIMIT || text.chars().any(char::is_control) {
            limits.reader.problem(&found.place, "must be one line of at most 200 bytes, and not empty");
            return None;
        }
        Some(text.to_owned())
    });
    let statements = count(&mut limits, "statements", 1_000_000).and_then(|count| u32::try_from(count).ok());
    let statements_by_user =
        count(&mut limits, "statements_by_user", 1_000_000).and_then(|count| u32::try_from(count).ok());
    let answer =
        Amount { rows: count(&mut limits, "answer_rows", MOST), bytes: bytes(&mut limits, "answer_bytes") };
    let day = Amount { rows: count(&mut limits, "day_rows", MOST), bytes: bytes(&mut limits, "day_bytes") };
    let cost = cost(&mut limits);
    if relayed && cost.is_some() {
        // The planner would be asked by another role than the one that runs the statement, with other rights and perhaps
        // with another search_path.
        limits.problem(
            "cost",
            "needs sessions of the gateway's own login, and method = \"relay\" has the client's",
        );
    }
    let mut quiet_hours = Vec::new();
    for text in limits.texts("quiet_hours").map(|found| found.value).unwrap_or_default() {
        match QuietHours::parse(&text.value) {
            Ok(hours) => quiet_hours.push(hours),
            Err(reason) => limits.reader.problem(&text.place, reason),
        }
    }
    let breaker = limits.section("breaker").map(breaker);
    limits.finish();
    SourceLimits { contact, statements, statements_by_user, answer, day, cost, quiet_hours, breaker }
}

fn cost(limits: &mut Section<'_, '_>) -> Option<CostLimit> {
    let most = count(limits, "cost", MOST);
    for key in ["cost_timeout", "cost_connections", "cost_remember"] {
        if most.is_none() && limits.has(key) {
            limits.problem(key, "is only looked at with cost");
        }
    }
    let timeout = limits.duration("cost_timeout", 2 * SECOND, SECOND / 100, 60 * SECOND);
    let connections = limits.count("cost_connections", 2, 1, 16);
    let remember = limits.duration("cost_remember", 10 * 60 * SECOND, SECOND, DAY);
    // Whole numbers up to 2^53 are exact.
    most.map(|most| CostLimit { most: most as f64, timeout, connections, remember })
}

fn breaker(mut section: Section<'_, '_>) -> BreakerLimits {
    let time = |section: &mut Section<'_, '_>, key| {
        section.has(key).then(|| section.duration(key, SECOND, Duration::from_millis(1), DAY))
    };
    let latency = time(&mut section, "latency");
    let active_sessions =
        count(&mut section, "active_sessions", 1_000_000).and_then(|count| u32::try_from(count).ok());
    let replication_lag = time(&mut section, "replication_lag");
    let every = section.duration("every", 5 * SECOND, SECOND / 10, 3600 * SECOND);
    let timeout = section.duration("timeout", 5 * SECOND, SECOND / 10, 60 * SECOND);
    let least = section.count("least", 1, 1, 1_000_000);
    if latency.is_none() && active_sessions.is_none() && replication_lag.is_none() {
        let place = section.place.clone();
        section.reader.problem(&place, "needs one of latency, active_sessions and replication_lag");
    }
    if latency.is_some_and(|latency| latency > timeout) {
        section.problem("latency", "must not be longer than timeout, which ends a probe");
    }
    section.finish();
    BreakerLimits {
        latency,
        active_sessions,
        replication_lag,
        every,
        timeout,
        least: u32::try_from(least).unwrap_or(1),
    }
}

fn count(section: &mut Section<'_, '_>, key: &'static str, most: usize) -> Option<u64> {
    section.has(key).then(|| section.count(key, 1, 1, most)).and_then(|count| u64::try_from(count).ok())
}

fn bytes(section: &mut Section<'_, '_>, key: &'static str) -> Option<u64> {
    section.has(key).then(|| section.size(key, 1, 1, MOST).value).and_then(|size| u64::try_from(size).ok())
}
