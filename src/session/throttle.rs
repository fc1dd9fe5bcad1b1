//! Slows down the guessing of passwords.
//!
//! Invariant: an address from which nobody failed lately is never held up, a table of addresses has a
//! bound, and opening many connections at once does not buy more guesses. The caller gives the time.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Failures that an address has free.
const FREE: f64 = 10.0;
/// After these: one attempt a second.
const EVERY: Duration = Duration::from_secs(1);
/// An attempt that would have to wait longer is turned away unheard.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
const MOST_ADDRESSES: usize = 10_000;

#[derive(Debug, PartialEq, Eq)]
pub enum Gate {
    Open,
    After(Duration),
    Closed,
}

#[derive(Debug)]
struct Bucket {
    free: f64,
    at: Instant,
    next: Instant,
}

#[derive(Debug, Default)]
pub struct Throttle {
    // std Mutex: never held across an await.
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

/// A whole /64 belongs to one guesser.
fn key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from(u128::from(address) & !u128::from(u64::MAX))),
    }
}

impl Throttle {
    /// Before a proof is looked at.
    pub fn gate(&self, address: IpAddr, now: Instant) -> Gate {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bucket) = buckets.get_mut(&key(address)) else {
            return Gate::Open;
        };
        bucket.refill(now);
        if bucket.free >= 1.0 {
            return Gate::Open;
        }
        let slot = bucket.next.max(now);
        let wait = slot - now;
        if wait > LONGEST_WAIT {
            return Gate::Closed;
        }
        bucket.next = slot + EVERY;
        if wait.is_zero() { Gate::Open } else { Gate::After(wait) }
    }

    /// What was counted as a failure ahead of its outcome was none.
    pub fn forgive(&self, address: IpAddr, now: Instant) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(&key(address)) {
            bucket.refill(now);
            bucket.free = (bucket.free + 1.0).min(FREE);
        }
    }

    /// A proof did not fit.
    pub fn failed(&self, address: IpAddr, now: Instant) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MOST_ADDRESSES && !buckets.contains_key(&key(address)) {
            buckets.retain(|_, bucket| {
                bucket.refill(now);
                bucket.free < FREE
            });
            if buckets.len() >= MOST_ADDRESSES {
                // All of them guess: the one that has been quiet longest gives way.
                if let Some(oldest) = buckets.iter().min_by_key(|(_, b)| b.at).map(|(address, _)| *address) {
                    buckets.remove(&oldest);
                }
            }
        }
        let bucket = buckets.entry(key(address)).or_insert(Bucket { free: FREE, at: now, next: now });
        bucket.refill(now);
        bucket.free = (bucket.free - 1.0).max(0.0);
    }
}

impl Bucket {
    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        self.free = (self.free + passed.as_secs_f64() / EVERY.as_secs_f64()).min(FREE);
        self.at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUESSER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));

    #[test]
    fn after_the_free_failures_one_a_second_and_never_a_crowd() {
        let throttle = Throttle::default();
        let now = Instant::now();
        for _ in 0..10 {
            assert_eq!(throttle.gate(GUESSER, now), Gate::Open);
            throttle.failed(GUESSER, now);
        }
        let answers: Vec<Gate> = (0..8).map(|_| throttle.gate(GUESSER, now)).collect();
        let after = |seconds| Gate::After(Duration::from_secs(seconds));
        assert_eq!(answers[..6], [Gate::Open, after(1), after(2), after(3), after(4), after(5)]);
        assert_eq!(answers[6..], [Gate::Closed, Gate::Closed]);
        assert_eq!(throttle.gate(OTHER, now), Gate::Open, "others are not held up");
        throttle.forgive(GUESSER, now);
        assert_eq!(throttle.gate(GUESSER, now), Gate::Open);
        assert_eq!(throttle.gate(GUESSER, now + Duration::from_secs(60)), Gate::Open, "and it is forgiven");
    }

    #[test]
    fn a_v6_network_is_one_guesser_and_a_mapped_address_is_the_v4_one() {
        assert_eq!(key("2001:db8::1".parse().unwrap()), key("2001:db8::ffff".parse().unwrap()));
        assert_ne!(key("2001:db8::1".parse().unwrap()), key("2001:db8:0:1::1".parse().unwrap()));
        assert_eq!(key("::ffff:192.0.2.1".parse().unwrap()), GUESSER);
    }

    #[test]
    fn the_table_is_bounded() {
        let throttle = Throttle::default();
        let now = Instant::now();
        for number in 0..(MOST_ADDRESSES as u32 + 50) {
            throttle.failed(IpAddr::V4(number.into()), now);
        }
        assert!(throttle.buckets.lock().unwrap().len() <= MOST_ADDRESSES);
    }
}
