//! The words of each limit: which one it is, by how much it is passed, and whom to ask.
//!
//! Invariant: pure; nothing of the source's hosts or logins is in them.

use std::time::{Duration, SystemTime};

use super::breaker::Above;
use super::ledger::{Full, Passed, User, end_of_day};
use super::plan::{Estimate, figure};
use crate::config::{SourceLimits, Until};
use crate::ids::SourceName;
use crate::metrics::LimitKind;
use crate::sqlstate::SqlState;
use crate::wire::ClientError;

/// A statement that a limit keeps from going on.
#[derive(Clone, Debug)]
pub(crate) struct Limited {
    pub(crate) kind: LimitKind,
    pub(crate) error: ClientError,
}

/// Why there is no estimate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoEstimate {
    Timeout(Duration),
    Busy,
    /// There is no connection of the gateway's own.
    Unreachable,
    /// What it answered is no plan.
    Unreadable,
    /// It could not be asked as the client would: the client has changed its search_path too often.
    Unsure,
    /// The client has changed what plans hang on.
    Planner,
    /// What the source said of the question, in one line.
    Said(String),
}

/// Speaks for one source.
pub(super) struct Words<'a> {
    pub(super) source: &'a SourceName,
    pub(super) limits: &'a SourceLimits,
}

impl Words<'_> {
    fn whom(&self) -> String {
        match &self.limits.contact {
            Some(contact) => format!("ask {contact}"),
            None => "ask whoever runs this gateway".to_owned(),
        }
    }

    pub(super) fn full(&self, full: Full, user: &User, above: Option<&Above>) -> Limited {
        let source = self.source;
        let message = format!("too many statements are at work at source \"{source}\"");
        let error = ClientError::error(SqlState::CONFIGURATION_LIMIT_EXCEEDED, message);
        let (kind, detail) = match full {
            Full::User { at_work, most } => (
                LimitKind::StatementsByUser,
                format!(
                    "{at_work} statements of user \"{}\" are at work and {most} may be: this one would be {} too many (limits.statements_by_user).",
                    user.name(),
                    at_work.saturating_add(1).saturating_sub(most)
                ),
            ),
            Full::InAll { at_work, most } => (
                LimitKind::Statements,
                format!(
                    "{at_work} statements are at work and {most} may be: this one would be {} too many (limits.statements).",
                    at_work.saturating_add(1).saturating_sub(most)
                ),
            ),
            Full::Breaker { at_work, most } => (
                LimitKind::Breaker,
                format!(
                    "{at_work} statements are at work and {most} may be as long as the source suffers: {}.",
                    above.map_or_else(|| "it recovers from a limit of limits.breaker".to_owned(), suffers)
                ),
            ),
        };
        let hint = format!("Try again when one of them has ended, or {}.", self.whom());
        Limited { kind, error: error.detail(detail).hint(hint) }
    }

    pub(super) fn quiet(&self, until: Until) -> Limited {
        let message = format!("source \"{}\" takes no statements in its quiet hours", self.source);
        let hours: Vec<String> = self.limits.quiet_hours.iter().map(|hours| format!("\"{hours}\"")).collect();
        let until = match until {
            Until::At(end) => format!("They last until {}", time(end)),
            Until::Never => "They have no end".to_owned(),
        };
        let error = ClientError::error(SqlState::CONFIGURATION_LIMIT_EXCEEDED, message)
            .detail(format!("{until} (limits.quiet_hours = [{}], in UTC).", hours.join(", ")))
            .hint(format!("Try again then, or {}.", self.whom()));
        Limited { kind: LimitKind::QuietHours, error }
    }

    pub(super) fn answer(&self, passed: Passed) -> Limited {
        let (kind, detail) = match passed {
            Passed::Rows { given, most } => (
                LimitKind::AnswerRows,
                format!(
                    "It has more than {most} rows (limits.answer_rows): row {given} was not passed on, nor was anything behind it."
                ),
            ),
            Passed::Bytes { given, most } => (
                LimitKind::AnswerBytes,
                format!(
                    "It has more than {most} bytes (limits.answer_bytes): the row with which it came to {given}, {} more, was not passed on, nor was anything behind it.",
                    given.saturating_sub(most)
                ),
            ),
        };
        let message = format!("the answer is larger than source \"{}\" gives", self.source);
        let error = ClientError::error(SqlState::PROGRAM_LIMIT_EXCEEDED, message)
            .detail(detail)
            .hint(format!("Ask for less, such as with LIMIT or a condition, or {}.", self.whom()));
        Limited { kind, error }
    }

    pub(super) fn day(&self, passed: Passed, user: &User, now: SystemTime) -> Limited {
        let (kind, given, most, what, key) = match passed {
            Passed::Rows { given, most } => (LimitKind::DayRows, given, most, "rows", "day_rows"),
            Passed::Bytes { given, most } => (LimitKind::DayBytes, given, most, "bytes", "day_bytes"),
        };
        let message =
            format!("user \"{}\" was given all that source \"{}\" gives in a day", user.name(), self.source);
        let error = ClientError::error(SqlState::PROGRAM_LIMIT_EXCEEDED, message)
            .detail(format!(
                "{given} {what} were given since midnight UTC and {most} may be, {} fewer (limits.{key}).",
                given.saturating_sub(most)
            ))
            .hint(format!("Try again after {}, or {}.", time(end_of_day(now)), self.whom()));
        Limited { kind, error }
    }

    pub(super) fn cost(&self, estimate: &Estimate, most: f64) -> Limited {
        let message = format!("the statement would cost source \"{}\" too much", self.source);
        let error = ClientError::error(SqlState::PROGRAM_LIMIT_EXCEEDED, message)
            .detail(format!(
                "Its planner estimates a cost of {}, and {} is the most (limits.cost), {}. The costliest node is {}.",
                figure(estimate.cost),
                figure(most),
                times(estimate.cost, most),
                estimate.costliest
            ))
            .hint(format!("EXPLAIN shows the plan. Ask for less, or {}.", self.whom()));
        Limited { kind: LimitKind::Cost, error }
    }

    pub(super) fn no_estimate(&self, why: &NoEstimate) -> Limited {
        let why = match why {
            NoEstimate::Timeout(limit) => {
                format!(
                    "The source did not say what it would cost within {} (limits.cost_timeout).",
                    duration(*limit)
                )
            }
            NoEstimate::Busy => "Too many statements wait for their estimates.".to_owned(),
            NoEstimate::Unreachable => "The gateway has no connection of its own to ask on.".to_owned(),
            NoEstimate::Unreadable => "The source's answer to EXPLAIN cannot be read.".to_owned(),
            NoEstimate::Unsure => {
                "The session has set search_path so often that it is not certain where names are looked up."
                    .to_owned()
            }
            NoEstimate::Planner => {
                "The session has changed settings of the planner, so that what is estimated is not what would run."
                    .to_owned()
            }
            NoEstimate::Said(said) => format!("The source said to EXPLAIN: {said}"),
        };
        let message =
            format!("the cost of the statement at source \"{}\" could not be estimated", self.source);
        let error = ClientError::error(SqlState::INSUFFICIENT_RESOURCES, message)
            .detail(format!("{why} Statements whose cost is not known are not sent on (limits.cost)."))
            .hint(format!("Try again, reconnect, or {}.", self.whom()));
        Limited { kind: LimitKind::NoEstimate, error }
    }
}

fn suffers(above: &Above) -> String {
    match above {
        Above::Silent { timeout } => {
            format!("it did not answer a probe within {} (limits.breaker.timeout)", duration(*timeout))
        }
        Above::Latency { found, most } => format!(
            "a probe took {}, {} more than {} (limits.breaker.latency)",
            duration(*found),
            duration(found.saturating_sub(*most)),
            duration(*most)
        ),
        Above::ActiveSessions { found, most } => format!(
            "{found} sessions are active there, {} more than {most} (limits.breaker.active_sessions)",
            found.saturating_sub(*most)
        ),
        Above::ReplicationLag { found, most } => format!(
            "it is {} behind its primary, {} more than {} (limits.breaker.replication_lag)",
            duration(*found),
            duration(found.saturating_sub(*most)),
            duration(*most)
        ),
    }
}

/// In milliseconds at the finest.
fn duration(duration: Duration) -> String {
    let whole = Duration::from_millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    humantime::format_duration(whole).to_string()
}

fn time(at: SystemTime) -> String {
    // The year 9999 ends what it can write.
    let last = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_seconds(at.min(last)).to_string()
}

fn times(found: f64, most: f64) -> String {
    let ratio = found / most;
    if ratio >= 10.0 {
        format!("{} times less", figure(ratio))
    } else {
        format!("{} less", figure(found - most))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn each_refusal_says_which_limit_by_how_much_and_whom_to_ask() {
        let source = SourceName::new("climscore");
        let limits = SourceLimits {
            contact: Some("the database team, 555-0100".to_owned()),
            quiet_hours: vec![crate::config::QuietHours::parse("22:00-06:00").unwrap()],
            ..SourceLimits::default()
        };
        let words = Words { source: &source, limits: &limits };
        let ann = User::login("ann".into());
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_852_894);
        let above = Above::Latency { found: 812 * MS, most: 500 * MS };
        let estimate = Estimate { cost: 1.25e9, costliest: "Nested Loop, which alone costs 1e9".to_owned() };
        let cases = [
            (
                words.full(Full::User { at_work: 4, most: 4 }, &ann, None),
                "53400",
                vec!["4 statements", "\"ann\"", "1 too many", "statements_by_user"],
            ),
            (
                words.full(Full::InAll { at_work: 9, most: 8 }, &ann, None),
                "53400",
                vec!["9 statements", "2 too many", "limits.statements)"],
            ),
            (
                words.full(Full::Breaker { at_work: 2, most: 1 }, &ann, Some(&above)),
                "53400",
                vec!["812ms", "312ms more than 500ms", "limits.breaker.latency"],
            ),
            (words.full(Full::Breaker { at_work: 2, most: 1 }, &ann, None), "53400", vec!["recovers"]),
            (words.quiet(Until::At(now)), "53400", vec!["until 2026-11-28T08:01:34Z", "22:00-06:00"]),
            (words.quiet(Until::Never), "53400", vec!["no end"]),
            (
                words.answer(Passed::Rows { given: 11, most: 10 }),
                "54000",
                vec!["more than 10 rows", "row 11", "answer_rows"],
            ),
            (
                words.answer(Passed::Bytes { given: 1500, most: 1000 }),
                "54000",
                vec!["more than 1000 bytes", "500 more", "answer_bytes"],
            ),
            (
                words.day(Passed::Rows { given: 12, most: 10 }, &ann, now),
                "54000",
                vec!["12 rows", "10 may be, 2 fewer", "day_rows", "2026-11-29T00:00:00Z"],
            ),
            (
                words.cost(&estimate, 1e6),
                "54000",
                vec!["1250000000", "1000000 is the most", "1250 times", "Nested Loop"],
            ),
            (words.no_estimate(&NoEstimate::Timeout(2000 * MS)), "53000", vec!["within 2s", "cost_timeout"]),
            (
                words.no_estimate(&NoEstimate::Said("division by zero".to_owned())),
                "53000",
                vec!["division by zero"],
            ),
        ];
        for (limited, sqlstate, parts) in cases {
            let error = limited.error;
            assert_eq!(error.sqlstate.as_str(), sqlstate, "{error:?}");
            let detail = error.detail.clone().unwrap();
            for part in parts {
                let said = detail.contains(part)
                    || error.message.contains(part)
                    || error.hint.as_ref().is_some_and(|hint| hint.contains(part));
                assert!(said, "{part:?} in {error:?}");
            }
            assert!(error.hint.unwrap().contains("ask the database team, 555-0100"));
        }
        let limits = SourceLimits::default();
        let words = Words { source: &source, limits: &limits };
        assert!(words.quiet(Until::Never).error.hint.unwrap().contains("ask whoever runs this gateway"));
    }
}
