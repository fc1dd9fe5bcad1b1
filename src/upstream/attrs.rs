//! Which hosts of a source are wanted: `target_session_attrs`.
//!
//! Invariant: the source itself said what it is; what was seen of a host before only decides when it is tried.

use std::sync::{Mutex, PoisonError};

use tokio::time::Instant;

use super::error::Failure;
use super::greeting::{Greeting, first_column};
use super::session::answer_of;
use super::source::Opened;
use crate::config::TargetSession;

/// What became of each host when it was last asked.
#[derive(Debug)]
pub(super) struct Roles {
    // std Mutex: never held across an await.
    standby: Mutex<Vec<Option<bool>>>,
}

impl Roles {
    pub(super) fn new(hosts: usize) -> Self {
        Self { standby: Mutex::new(vec![None; hosts]) }
    }

    /// Hosts that were of the wanted kind, or that nobody knows, before those that were not.
    pub(super) fn order(&self, mut order: Vec<usize>, wanted: TargetSession) -> Vec<usize> {
        let standby = self.standby.lock().unwrap_or_else(PoisonError::into_inner);
        order.sort_by_key(|at| match standby.get(*at) {
            Some(Some(standby)) => !fits(wanted, *standby),
            _ => false,
        });
        order
    }

    pub(super) fn found(&self, at: usize, is_standby: bool) {
        let mut standby = self.standby.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(host) = standby.get_mut(at) {
            *host = Some(is_standby);
        }
    }
}

/// Whether a session at a host of this kind is what is wanted.
pub(super) fn fits(wanted: TargetSession, standby: bool) -> bool {
    match wanted {
        TargetSession::Any => true,
        TargetSession::Primary => !standby,
        TargetSession::Standby | TargetSession::PreferStandby => standby,
    }
}

/// Whether the session's server is a standby. Servers before PostgreSQL 14 do not report it: with `ask` they are asked,
/// else they count as primaries.
pub(super) async fn is_standby(
    opened: Opened,
    ask: bool,
    deadline: Instant,
) -> Result<(Opened, bool), Failure> {
    if let Some(reported) = opened.parameter("in_hot_standby") {
        let standby = reported == "on";
        return Ok((opened, standby));
    }
    if !ask {
        return Ok((opened, false));
    }
    let Opened { stream, mut parameters, cancel, leftover, mut notices, pins } = opened;
    let mut greeting = Greeting::resumed(stream, leftover, deadline);
    let query = "SELECT pg_catalog.pg_is_in_recovery()";
    let found = answer_of(&mut greeting, query, &mut parameters, &mut notices, first_column).await?;
    let (stream, leftover) = greeting.finish();
    let standby = found.as_deref() == Some("t");
    Ok((Opened { stream, parameters, cancel, leftover, notices, pins }, standby))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_were_not_wanted_are_tried_last() {
        let roles = Roles::new(3);
        let order = |wanted| roles.order(vec![0, 1, 2], wanted);
        assert_eq!(order(TargetSession::Standby), [0, 1, 2]);
        roles.found(0, false);
        roles.found(2, true);
        assert_eq!(order(TargetSession::Standby), [1, 2, 0]);
        assert_eq!(order(TargetSession::PreferStandby), [1, 2, 0]);
        assert_eq!(order(TargetSession::Primary), [0, 1, 2]);
        assert_eq!(order(TargetSession::Any), [0, 1, 2]);
        assert_eq!(roles.order(vec![2, 1, 0], TargetSession::Primary), [1, 0, 2]);
    }
}
