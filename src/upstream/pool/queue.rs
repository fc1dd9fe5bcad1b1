//! Who gets the next session that is free.
//!
//! Invariant: within one user the first to come is the first to be served, but for who would have to be woken on
//! another thread, and that by [`PREFERENCE`] at most; users take turns, so that one with many waiters does not
//! keep the others waiting.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// By how much later a waiter of the same thread may have come and still be served first. Handing a session to
/// another thread costs a wake-up and two system calls, as much as the point read that it is handed over for.
const PREFERENCE: Duration = Duration::from_millis(5);

/// Waiters of users of type `U` on threads named by `H`.
#[derive(Debug)]
pub(super) struct Queue<U, H, W> {
    /// Users in the order of their turns; none is empty.
    users: VecDeque<(U, VecDeque<Waiter<H, W>>)>,
    /// Counts those that ever waited.
    tickets: u64,
}

/// A place in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

#[derive(Debug)]
struct Waiter<H, W> {
    ticket: Ticket,
    home: H,
    since: Instant,
    waiter: W,
}

impl<U, H, W> Default for Queue<U, H, W> {
    fn default() -> Self {
        Self { users: VecDeque::new(), tickets: 0 }
    }
}

impl<U: Clone + PartialEq, H: Copy + PartialEq, W> Queue<U, H, W> {
    /// Puts a waiter behind the others of its user.
    pub(super) fn push(&mut self, user: &U, home: H, since: Instant, waiter: W) -> Ticket {
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        let waiter = Waiter { ticket, home, since, waiter };
        match self.users.iter_mut().find(|(known, _)| known == user) {
            Some((_, waiters)) => waiters.push_back(waiter),
            None => self.users.push_back((user.clone(), VecDeque::from([waiter]))),
        }
        ticket
    }

    /// The next in turn for a session that lives on `home`; the user goes behind all others.
    pub(super) fn pop(&mut self, home: H) -> Option<W> {
        let (user, mut waiters) = self.users.pop_front()?;
        let latest = waiters.front()?.since + PREFERENCE;
        let at = waiters
            .iter()
            .take_while(|waiter| waiter.since <= latest)
            .position(|waiter| waiter.home == home)
            .unwrap_or(0);
        let next = waiters.remove(at)?;
        if !waiters.is_empty() {
            self.users.push_back((user, waiters));
        }
        Some(next.waiter)
    }

    /// One does not wait any more, if it still did.
    pub(super) fn remove(&mut self, user: &U, ticket: Ticket) {
        let Some(place) = self.users.iter().position(|(known, _)| known == user) else { return };
        let Some((_, waiters)) = self.users.get_mut(place) else { return };
        // Tickets of one user are in order: they are only ever put at the end.
        if let Ok(at) = waiters.binary_search_by_key(&ticket, |waiter| waiter.ticket) {
            waiters.remove(at);
        }
        if waiters.is_empty() {
            self.users.remove(place);
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.users.is_empty()
    }

    /// All that wait.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = W> + use<U, H, W> {
        std::mem::take(&mut self.users)
            .into_iter()
            .flat_map(|(_, waiters)| waiters)
            .map(|waiter| waiter.waiter)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Waiting = Queue<&'static str, u8, u32>;

    fn pop(queue: &mut Waiting, home: u8) -> Option<u32> {
        queue.pop(home)
    }

    #[test]
    fn users_take_turns_and_each_is_served_in_order() {
        let (mut queue, now) = (Waiting::default(), Instant::now());
        for number in 0..5 {
            queue.push(&"greedy", 0, now, number);
        }
        queue.push(&"modest", 0, now, 100);
        queue.push(&"modest", 0, now, 101);
        let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue, 0)).collect();
        assert_eq!(order, [0, 100, 1, 101, 2, 3, 4]);
        assert!(queue.is_empty() && queue.users.is_empty());
    }

    #[test]
    fn a_waiter_of_the_same_thread_goes_first_for_a_moment_only() {
        let (mut queue, now) = (Waiting::default(), Instant::now());
        queue.push(&"a", 1, now, 1);
        queue.push(&"a", 0, now + PREFERENCE, 2);
        queue.push(&"a", 0, now + PREFERENCE * 2, 3);
        assert_eq!(pop(&mut queue, 0), Some(2));
        assert_eq!(pop(&mut queue, 0), Some(1), "it waits longer than the preference");
        assert_eq!(pop(&mut queue, 1), Some(3), "no session is kept back");
    }

    #[test]
    fn who_does_not_wait_any_more_is_not_served() {
        let (mut queue, now) = (Waiting::default(), Instant::now());
        let waiting = [("a", 1), ("a", 2), ("b", 3), ("c", 4)];
        let tickets = waiting.map(|(user, number)| queue.push(&user, 0, now, number));
        queue.remove(&"a", tickets[1]);
        queue.remove(&"b", tickets[2]);
        queue.remove(&"b", tickets[2]);
        assert_eq!(queue.pop(0), Some(1));
        queue.remove(&"a", tickets[0]);
        assert_eq!(queue.drain().collect::<Vec<_>>(), [4]);
        assert!(queue.is_empty());
    }

    proptest! {
        /// Nobody is lost or served twice, and while a user waits no other is served twice in a row.
        #[test]
        fn everybody_is_served_once_and_in_turn(
            waiters in prop::collection::vec((0usize..4, 0u8..2), 0..60),
            homes in prop::collection::vec(0u8..2, 60),
        ) {
            let users = ["a", "b", "c", "d"];
            let (mut queue, now) = (Waiting::default(), Instant::now());
            for (number, (user, home)) in waiters.iter().enumerate() {
                let since = now + Duration::from_millis(number as u64);
                queue.push(&users[*user], *home, since, number as u32);
            }
            let mut left: Vec<usize> = waiters.iter().map(|(user, _)| *user).collect();
            let mut served = Vec::new();
            let mut last = None;
            for home in homes {
                let Some(next) = pop(&mut queue, home) else { break };
                let user = waiters[next as usize].0;
                if last == Some(user) {
                    prop_assert!(left.iter().all(|other| *other == user));
                }
                left.remove(left.iter().position(|other| *other == user).unwrap());
                last = Some(user);
                served.push(next);
            }
            served.sort_unstable();
            prop_assert_eq!(served, (0..waiters.len() as u32).collect::<Vec<_>>());
        }
    }
}
