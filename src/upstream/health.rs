//! Which hosts of a source failed lately.
//!
//! Invariant: one small record for each configured host and no more; it decides the order in which
//! hosts are tried, never whether one is tried.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Health {
    // std Mutex: never held across an await.
    hosts: Mutex<Vec<HostHealth>>,
}

#[derive(Clone, Debug, Default)]
struct HostHealth {
    failures: u32,
    /// Tried after the healthy ones until then.
    until: Option<Instant>,
}

impl Health {
    pub(super) fn new(hosts: usize) -> Self {
        Self { hosts: Mutex::new(vec![HostHealth::default(); hosts]) }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<HostHealth>> {
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hosts by their place in the configuration: healthy ones in that order, then those that
    /// failed lately, the one whose back-off ends first before the others.
    pub(super) fn order(&self, now: Instant) -> Vec<usize> {
        let hosts = self.lock();
        let mut order: Vec<(Option<Instant>, usize)> = hosts
            .iter()
            .enumerate()
            .map(|(at, host)| (host.until.filter(|until| *until > now), at))
            .collect();
        order.sort();
        order.into_iter().map(|(_, at)| at).collect()
    }

    pub(super) fn succeeded(&self, at: usize) {
        if let Some(host) = self.lock().get_mut(at) {
            *host = HostHealth::default();
        }
    }

    pub(super) fn failed(&self, at: usize, now: Instant) {
        if let Some(host) = self.lock().get_mut(at) {
            let back_off = FIRST_BACK_OFF.saturating_mul(1 << host.failures.min(5)).min(LONGEST_BACK_OFF);
            host.failures = host.failures.saturating_add(1);
            host.until = Some(now + back_off);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_host_that_failed_lately_is_tried_last() {
        let health = Health::new(3);
        assert_eq!(health.order(Instant::now()), [0, 1, 2]);
        health.failed(0, Instant::now());
        assert_eq!(health.order(Instant::now()), [1, 2, 0]);
        tokio::time::advance(Duration::from_millis(500)).await;
        health.failed(1, Instant::now());
        assert_eq!(health.order(Instant::now()), [2, 0, 1]);
        tokio::time::advance(Duration::from_millis(501)).await;
        assert_eq!(health.order(Instant::now()), [0, 2, 1]);
        health.succeeded(1);
        assert_eq!(health.order(Instant::now()), [0, 1, 2]);
        for _ in 0..100 {
            health.failed(2, Instant::now());
        }
        tokio::time::advance(LONGEST_BACK_OFF).await;
        assert_eq!(health.order(Instant::now()), [0, 1, 2]);
    }
}
