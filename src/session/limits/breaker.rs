//! The arithmetic of the breaker: how a source does, and how many statements it is given then.
//!
//! Invariant: nothing here performs I/O or looks at a clock; the ceiling is never below `least`, halves with each
//! sample that is above a limit, grows by one with each that is not, and goes away where it began.

use std::time::Duration;

use crate::config::BreakerLimits;

/// One look at a source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reading {
    /// Of a probe; `None`: it had no answer in time.
    pub(super) latency: Option<Duration>,
    pub(super) active_sessions: Option<u32>,
    /// Of a standby.
    pub(super) replication_lag: Option<Duration>,
}

/// What of a source stands above its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Above {
    Silent { timeout: Duration },
    Latency { found: Duration, most: Duration },
    ActiveSessions { found: u32, most: u32 },
    ReplicationLag { found: Duration, most: Duration },
}

/// The first limit that a reading stands above.
pub(super) fn above(reading: &Reading, limits: &BreakerLimits) -> Option<Above> {
    let Some(latency) = reading.latency else {
        return Some(Above::Silent { timeout: limits.timeout });
    };
    if let Some(most) = limits.latency.filter(|most| latency > *most) {
        return Some(Above::Latency { found: latency, most });
    }
    if let (Some(found), Some(most)) = (reading.active_sessions, limits.active_sessions)
        && found > most
    {
        return Some(Above::ActiveSessions { found, most });
    }
    if let (Some(found), Some(most)) = (reading.replication_lag, limits.replication_lag)
        && found > most
    {
        return Some(Above::ReplicationLag { found, most });
    }
    None
}

/// How many statements may be at work while the source suffers; nothing as long as it does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ceiling {
    now: Option<u32>,
    /// Where it goes away again.
    whole: u32,
}

impl Ceiling {
    pub(super) fn now(&self) -> Option<u32> {
        self.now
    }

    /// Takes one sample in. `peak`: how many were at work; `most`: how many may be at the best of times.
    pub(super) fn sampled(&mut self, above: bool, peak: u32, most: Option<u32>, least: u32) {
        match self.now {
            None if above => {
                // Half of what is there, not of what there may be.
                self.whole = most.unwrap_or(u32::MAX).min(peak).max(1);
                self.now = Some((self.whole / 2).max(least));
            }
            None => {}
            Some(now) if above => self.now = Some((now / 2).max(least)),
            Some(now) => self.now = Some(now.saturating_add(1)).filter(|now| *now < self.whole),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn limits() -> BreakerLimits {
        BreakerLimits {
            latency: Some(100 * MS),
            active_sessions: Some(10),
            replication_lag: Some(1000 * MS),
            every: 1000 * MS,
            timeout: 2000 * MS,
            least: 1,
        }
    }

    #[test]
    fn each_limit_is_looked_at() {
        let well =
            Reading { latency: Some(100 * MS), active_sessions: Some(10), replication_lag: Some(1000 * MS) };
        let cases = [
            (well, None),
            (Reading { latency: None, ..well }, Some(Above::Silent { timeout: 2000 * MS })),
            (
                Reading { latency: Some(101 * MS), ..well },
                Some(Above::Latency { found: 101 * MS, most: 100 * MS }),
            ),
            (
                Reading { active_sessions: Some(11), ..well },
                Some(Above::ActiveSessions { found: 11, most: 10 }),
            ),
            (
                Reading { replication_lag: Some(1001 * MS), ..well },
                Some(Above::ReplicationLag { found: 1001 * MS, most: 1000 * MS }),
            ),
            // A primary lags behind nobody.
            (Reading { active_sessions: None, replication_lag: None, ..well }, None),
        ];
        for (reading, wanted) in cases {
            assert_eq!(above(&reading, &limits()), wanted, "{reading:?}");
        }
        let none = BreakerLimits { latency: None, active_sessions: None, replication_lag: None, ..limits() };
        let bad = Reading {
            latency: Some(1900 * MS),
            active_sessions: Some(1000),
            replication_lag: Some(90_000 * MS),
        };
        assert_eq!(above(&bad, &none), None);
    }

    #[test]
    fn it_halves_and_grows_by_one() {
        let mut ceiling = Ceiling::default();
        let mut walk = |samples: &str, peak| -> Vec<Option<u32>> {
            samples
                .chars()
                .map(|sample| {
                    ceiling.sampled(sample == '!', peak, Some(64), 1);
                    ceiling.now()
                })
                .collect()
        };
        assert_eq!(walk("..", 20), [None, None]);
        assert_eq!(walk("!!!!!!", 20), [10, 5, 2, 1, 1, 1].map(Some));
        assert_eq!(walk("..!.", 20), [2, 3, 1, 2].map(Some));
        assert_eq!(
            walk("................", 2)[..],
            [&[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18].map(Some)[..]].concat()
        );
        assert_eq!(walk("..", 2), [Some(19), None]);
    }

    proptest! {
        #[test]
        fn it_stays_within_its_bounds_and_goes_away(
            samples in proptest::collection::vec((any::<bool>(), 0u32..500), 0..100),
            most in proptest::option::of(1u32..300),
            least in 1u32..20,
        ) {
            let mut ceiling = Ceiling::default();
            let mut before = None;
            for (above, peak) in samples {
                ceiling.sampled(above, peak, most, least);
                let now = ceiling.now();
                if let Some(now) = now {
                    prop_assert!(now >= least);
                    prop_assert!(now <= most.unwrap_or(500).max(least));
                }
                prop_assert!(!above || now.is_some());
                if let (Some(before), Some(now), false) = (before, now, above) {
                    prop_assert_eq!(now, before + 1);
                }
                before = now;
            }
            for _ in 0..500 {
                ceiling.sampled(false, 0, most, least);
            }
            prop_assert_eq!(ceiling.now(), None);
        }
    }
}
