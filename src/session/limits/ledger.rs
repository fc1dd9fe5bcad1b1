//! Who has how many statements at work at a source, and what each user was given today.
//!
//! Invariant: a place is given back when it is dropped, whatever ended the statement; memory is bounded by the
//! sessions that are at work and by [`MOST_USERS`]; and time is the caller's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::config::Amount;

/// Users whose day is kept apart; all further ones share one account, which is the stricter way.
const MOST_USERS: usize = 10_000;
/// Longer names that begin alike are one.
const LONGEST_NAME: usize = 128;
const SECONDS_OF_DAY: u64 = 24 * 3600;

/// Whom a statement is counted for. An end user of an engine is not the login of the same name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum User {
    Login(Arc<str>),
    End(Arc<str>),
}

impl User {
    pub(super) fn login(name: Arc<str>) -> Self {
        User::Login(bounded(name))
    }

    pub(super) fn end(name: &str) -> Self {
        User::End(bounded(name.into()))
    }

    pub(super) fn name(&self) -> &str {
        match self {
            User::Login(name) | User::End(name) => name,
        }
    }
}

fn bounded(name: Arc<str>) -> Arc<str> {
    if name.len() <= LONGEST_NAME {
        return name;
    }
    let mut end = LONGEST_NAME;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.get(..end).unwrap_or_default().into()
}

/// How many may be at work.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Most {
    pub(super) in_all: Option<u32>,
    pub(super) by_user: Option<u32>,
    /// What the breaker lets through now.
    pub(super) breaker: Option<u32>,
}

/// Which limit there is no room below, and how many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    InAll { at_work: u32, most: u32 },
    User { at_work: u32, most: u32 },
    Breaker { at_work: u32, most: u32 },
}

/// Rows and bytes that were given.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) rows: u64,
    pub(super) bytes: u64,
}

/// Which amount was passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    Rows { given: u64, most: u64 },
    Bytes { given: u64, most: u64 },
}

impl Given {
    pub(super) fn plus(self, other: Given) -> Given {
        Given { rows: self.rows.saturating_add(other.rows), bytes: self.bytes.saturating_add(other.bytes) }
    }

    /// Whether this is more than `most`.
    pub(super) fn beyond(self, most: &Amount) -> Option<Passed> {
        if let Some(most) = most.rows.filter(|most| self.rows > *most) {
            return Some(Passed::Rows { given: self.rows, most });
        }
        most.bytes.filter(|most| self.bytes > *most).map(|most| Passed::Bytes { given: self.bytes, most })
    }

    /// Whether nothing is left of `most`.
    pub(super) fn used_up(self, most: &Amount) -> Option<Passed> {
        if let Some(most) = most.rows.filter(|most| self.rows >= *most) {
            return Some(Passed::Rows { given: self.rows, most });
        }
        most.bytes.filter(|most| self.bytes >= *most).map(|most| Passed::Bytes { given: self.bytes, most })
    }
}

/// The books of one source.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    // std Mutex: never held across an await.
    books: Mutex<Books>,
}

#[derive(Debug, Default)]
struct Books {
    at_work: u32,
    by_user: HashMap<User, u32>,
    /// The most that were at work since somebody asked.
    peak: u32,
    /// Days since the beginning of Unix time.
    day: u64,
    given: HashMap<User, Given>,
    /// To all for whom there is no account of their own.
    others: Given,
}

impl Books {
    /// A new day begins with empty accounts. A clock that goes back does not give anything back.
    fn turn(&mut self, now: SystemTime) {
        let day = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs() / SECONDS_OF_DAY;
        if day > self.day {
            self.day = day;
            self.given.clear();
            self.others = Given::default();
        }
    }

    fn account(&mut self, user: &User) -> &mut Given {
        if !self.given.contains_key(user) && self.given.len() >= MOST_USERS {
            return &mut self.others;
        }
        self.given.entry(user.clone()).or_default()
    }
}

impl Ledger {
    fn books(&self) -> MutexGuard<'_, Books> {
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a session that goes to work, if there is one below every limit.
    pub(super) fn take(self: &Arc<Self>, user: &User, most: &Most) -> Result<Place, Full> {
        let mut books = self.books();
        let at_work = books.at_work;
        let own = books.by_user.get(user).copied().unwrap_or_default();
        if let Some(most) = most.by_user.filter(|most| own >= *most) {
            return Err(Full::User { at_work: own, most });
        }
        if let Some(most) = most.in_all.filter(|most| at_work >= *most) {
            return Err(Full::InAll { at_work, most });
        }
        if let Some(most) = most.breaker.filter(|most| at_work >= *most) {
            return Err(Full::Breaker { at_work, most });
        }
        books.at_work += 1;
        books.peak = books.peak.max(books.at_work);
        *books.by_user.entry(user.clone()).or_default() += 1;
        Ok(Place { ledger: Arc::clone(self), user: user.clone() })
    }

    #[cfg(test)]
    pub(super) fn at_work(&self) -> u32 {
        self.books().at_work
    }

    /// The most that were at work at once since this was asked last.
    pub(super) fn peak(&self) -> u32 {
        let mut books = self.books();
        let now = books.at_work;
        std::mem::replace(&mut books.peak, now)
    }

    /// Adds to what a user was given today, and says what that comes to.
    pub(super) fn give(&self, user: &User, more: Given, now: SystemTime) -> Given {
        let mut books = self.books();
        books.turn(now);
        let account = books.account(user);
        *account = account.plus(more);
        *account
    }

    /// What a user was given today.
    pub(super) fn given(&self, user: &User, now: SystemTime) -> Given {
        let mut books = self.books();
        books.turn(now);
        match books.given.get(user) {
            Some(given) => *given,
            None if books.given.len() >= MOST_USERS => books.others,
            None => Given::default(),
        }
    }
}

/// When the day of `now` ends, in UTC.
pub(super) fn end_of_day(now: SystemTime) -> SystemTime {
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let end = (seconds / SECONDS_OF_DAY + 1) * SECONDS_OF_DAY;
    SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(end)
}

/// One session at work, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    ledger: Arc<Ledger>,
    user: User,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut books = self.ledger.books();
        books.at_work = books.at_work.saturating_sub(1);
        if let Some(own) = books.by_user.get_mut(&self.user) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                books.by_user.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn user(name: &str) -> User {
        User::login(name.into())
    }

    fn day(day: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(day * SECONDS_OF_DAY + 5)
    }

    #[test]
    fn places_are_given_up_to_each_limit_and_come_back() {
        let ledger = Arc::new(Ledger::default());
        let most = Most { in_all: Some(3), by_user: Some(2), breaker: None };
        let (ann, bob) = (user("ann"), user("bob"));
        let first = ledger.take(&ann, &most).unwrap();
        let _second = ledger.take(&ann, &most).unwrap();
        assert_eq!(ledger.take(&ann, &most).unwrap_err(), Full::User { at_work: 2, most: 2 });
        let _third = ledger.take(&bob, &most).unwrap();
        assert_eq!(ledger.take(&bob, &most).unwrap_err(), Full::InAll { at_work: 3, most: 3 });
        drop(first);
        let _fourth = ledger.take(&bob, &most).unwrap();
        let breaker = Most { breaker: Some(1), ..Most::default() };
        assert_eq!(ledger.take(&user("eve"), &breaker).unwrap_err(), Full::Breaker { at_work: 3, most: 1 });
        // An end user is nobody's login.
        assert!(ledger.take(&User::end("ann"), &Most { by_user: Some(1), ..Most::default() }).is_ok());
        assert_eq!(ledger.peak(), 4);
        assert_eq!((ledger.peak(), ledger.at_work()), (3, 3));
    }

    #[test]
    fn a_day_ends_at_midnight_and_a_clock_that_goes_back_gives_nothing_back() {
        let ledger = Ledger::default();
        let ann = user("ann");
        let more = Given { rows: 5, bytes: 70 };
        ledger.give(&ann, more, day(100));
        assert_eq!(ledger.give(&ann, more, day(100)), Given { rows: 10, bytes: 140 });
        assert_eq!(ledger.given(&ann, day(99)), Given { rows: 10, bytes: 140 });
        assert_eq!(ledger.given(&ann, day(101)), Given::default());
        assert_eq!(end_of_day(day(100)), day(101) - Duration::from_secs(5));
    }

    #[test]
    fn more_users_than_there_are_accounts_share_one() {
        let ledger = Ledger::default();
        let more = Given { rows: 1, bytes: 1 };
        for number in 0..MOST_USERS {
            ledger.give(&User::end(&number.to_string()), more, day(1));
        }
        for number in 0..3 {
            ledger.give(&User::end(&format!("late {number}")), more, day(1));
        }
        assert_eq!(ledger.given(&User::end("later still"), day(1)).rows, 3);
        assert_eq!(ledger.given(&User::end("7"), day(1)).rows, 1);
    }

    #[test]
    fn an_amount_is_passed_by_more_and_used_up_by_as_much() {
        let most = Amount { rows: Some(10), bytes: Some(100) };
        let given = |rows, bytes| Given { rows, bytes };
        assert_eq!(given(10, 100).beyond(&most), None);
        assert_eq!(given(11, 0).beyond(&most), Some(Passed::Rows { given: 11, most: 10 }));
        assert_eq!(given(0, 101).beyond(&most), Some(Passed::Bytes { given: 101, most: 100 }));
        assert_eq!(given(9, 99).used_up(&most), None);
        assert_eq!(given(10, 0).used_up(&most), Some(Passed::Rows { given: 10, most: 10 }));
        assert_eq!(given(u64::MAX, u64::MAX).used_up(&Amount::default()), None);
    }

    proptest! {
        /// Whatever comes and goes, in whatever order, the books say what is there.
        #[test]
        fn books_and_places_agree(steps in proptest::collection::vec((0u8..4, any::<bool>()), 0..200)) {
            let ledger = Arc::new(Ledger::default());
            let most = Most { in_all: Some(6), by_user: Some(3), breaker: None };
            let mut held: Vec<(u8, Place)> = Vec::new();
            for (who, takes) in steps {
                if takes {
                    let own = held.iter().filter(|(other, _)| *other == who).count();
                    let taken = ledger.take(&user(&who.to_string()), &most);
                    prop_assert_eq!(taken.is_ok(), own < 3 && held.len() < 6);
                    held.extend(taken.ok().map(|place| (who, place)));
                } else if let Some(at) = held.iter().position(|(other, _)| *other == who) {
                    held.remove(at);
                }
                prop_assert_eq!(ledger.at_work() as usize, held.len());
            }
            held.clear();
            prop_assert!(ledger.books().by_user.is_empty());
        }
    }
}
