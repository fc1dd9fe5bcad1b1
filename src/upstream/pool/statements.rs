//! Statements that clients have prepared, under one name at the source for one text.
//!
//! Invariant: a name at the source means one text with one list of parameter types for ever; a text whose plan
//! cannot be used any more gets another name. A session is never asked for a name that it may not have.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::guard::Permit;

/// Statements that one session at the source keeps when no client needs it to.
pub const KEPT: usize = 256;
/// The least number of texts that is looked through for those that nobody has any more.
const FEWEST: usize = 64;

/// A text with its parameter types, as many clients may have prepared it.
#[derive(Debug)]
pub struct Text {
    permit: Permit,
    /// Count and OIDs as they lie in a Parse.
    types: Box<[u8]>,
    number: AtomicU64,
}

impl Text {
    pub fn permit(&self) -> &Permit {
        &self.permit
    }

    pub fn types(&self) -> &[u8] {
        &self.types
    }

    /// The number in its name at the source.
    pub fn number(&self) -> u64 {
        self.number.load(Ordering::Relaxed)
    }
}

/// What the names begin with that the gateway gives.
pub const PREFIX: &str = "fedgate_";

/// The name at the source of the statement with this number.
pub fn name(number: u64) -> String {
    format!("{PREFIX}{number}")
}

type Key = (Box<[u8]>, Box<[u8]>);

/// All texts that somebody has, of one source.
///
/// Not a cache: it holds a text for exactly as long as a client or a session at the source does, which both are
/// bounded.
#[derive(Debug, Default)]
pub struct Texts {
    // std Mutex: held for a look, never across an await.
    known: Mutex<Known>,
    numbers: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    texts: HashMap<Key, Weak<Text>>,
    /// At this many it is looked through.
    full: usize,
}

impl Texts {
    /// The one [`Text`] for this text and these types.
    pub fn of(&self, permit: &Permit, types: &[u8]) -> Arc<Text> {
        let key = (permit.text().into(), types.into());
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = known.texts.get(&key).and_then(Weak::upgrade) {
            return text;
        }
        if known.texts.len() >= known.full.max(FEWEST) {
            known.texts.retain(|_, text| text.strong_count() > 0);
            known.full = known.texts.len() * 2;
        }
        let number = AtomicU64::new(self.next());
        let text = Arc::new(Text { permit: permit.clone(), types: types.into(), number });
        known.texts.insert(key, Arc::downgrade(&text));
        text
    }

    /// A [`Text`] that nobody else has.
    pub fn own(&self, permit: &Permit, types: &[u8]) -> Arc<Text> {
        let number = AtomicU64::new(self.next());
        Arc::new(Text { permit: permit.clone(), types: types.into(), number })
    }

    /// Gives a text another name: the source's plan for it does not fit any more, and no session can mend that.
    pub fn renew(&self, text: &Text) {
        text.number.store(self.next(), Ordering::Relaxed);
    }

    fn next(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// What one session at the source has.
#[derive(Debug, Default)]
pub struct Had {
    statements: HashMap<u64, Statement>,
    clock: u64,
}

#[derive(Debug)]
struct Statement {
    used: u64,
    /// Not answered yet: in which stretch between two Syncs it was sent.
    sent_in: Option<u64>,
}

/// Whether a session has a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Has {
    Yes,
    No,
    /// That was sent in an earlier stretch and has no answer yet.
    Unknown,
}

impl Had {
    /// Asked before a message of the stretch `segment` names the statement.
    pub fn has(&mut self, number: u64, segment: u64) -> Has {
        self.clock += 1;
        match self.statements.get_mut(&number) {
            None => Has::No,
            // Both run or neither does.
            Some(statement) if statement.sent_in.is_none_or(|sent| sent == segment) => {
                statement.used = self.clock;
                Has::Yes
            }
            Some(_) => Has::Unknown,
        }
    }

    /// A Parse of it is sent; the answer goes to [`Self::answered`].
    pub fn sent(&mut self, number: u64, segment: u64) {
        self.clock += 1;
        self.statements.insert(number, Statement { used: self.clock, sent_in: Some(segment) });
    }

    pub fn answered(&mut self, number: u64, taken: bool) {
        if !taken {
            self.statements.remove(&number);
        } else if let Some(statement) = self.statements.get_mut(&number) {
            statement.sent_in = None;
        }
    }

    /// It is gone at the source.
    pub fn dropped(&mut self, number: u64) {
        self.statements.remove(&number);
    }

    /// All are gone at the source.
    pub fn clear(&mut self) {
        self.statements.clear();
    }

    /// Whether of any is not known yet if it is there.
    pub fn awaits_answers(&self) -> bool {
        self.statements.values().any(|statement| statement.sent_in.is_some())
    }

    pub fn len(&self) -> usize {
        self.statements.len()
    }

    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }

    /// Takes those out that were used longest ago and are more than `most`; they are to be closed.
    pub fn surplus(&mut self, most: usize) -> Vec<u64> {
        let Some(surplus) = self.statements.len().checked_sub(most).filter(|surplus| *surplus > 0) else {
            return Vec::new();
        };
        let mut by_use: Vec<(u64, u64)> =
            self.statements.iter().map(|(number, statement)| (statement.used, *number)).collect();
        by_use.sort_unstable();
        let surplus: Vec<u64> = by_use.into_iter().take(surplus).map(|(_, number)| number).collect();
        for number in &surplus {
            self.statements.remove(number);
        }
        surplus
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_text_has_one_number_until_nobody_has_it() {
        let texts = Texts::default();
        let permit = |text: &str| Permit::application_name(text, "");
        let one = texts.of(&permit("a"), &[0, 0]);
        assert!(Arc::ptr_eq(&one, &texts.of(&permit("a"), &[0, 0])));
        assert_ne!(one.number(), texts.of(&permit("a"), &[0, 1, 0, 0, 0, 23]).number());
        assert_ne!(one.number(), texts.of(&permit("b"), &[0, 0]).number());
        let before = one.number();
        texts.renew(&one);
        assert_ne!(before, texts.of(&permit("a"), &[0, 0]).number(), "whoever has it sees its new name");
        for number in 0..10_000 {
            texts.of(&permit(&number.to_string()), &[0, 0]);
        }
        assert!(texts.known.lock().unwrap().texts.len() <= 2 * FEWEST, "what nobody has is forgotten");
        assert!(Arc::ptr_eq(&one, &texts.of(&permit("a"), &[0, 0])));
    }

    #[test]
    fn a_statement_is_there_when_that_is_certain() {
        let mut had = Had::default();
        assert_eq!(had.has(1, 1), Has::No);
        had.sent(1, 1);
        assert!(had.awaits_answers());
        assert_eq!((had.has(1, 1), had.has(1, 2)), (Has::Yes, Has::Unknown));
        had.answered(1, true);
        assert_eq!(had.has(1, 2), Has::Yes);
        assert!(!had.awaits_answers());
        had.sent(2, 2);
        had.answered(2, false);
        assert_eq!(had.has(2, 3), Has::No);
    }

    #[test]
    fn what_was_used_longest_ago_goes_first() {
        let mut had = Had::default();
        for number in 0..10 {
            had.sent(number, 1);
            had.answered(number, true);
        }
        had.has(0, 2);
        assert_eq!(had.surplus(10), [0_u64; 0]);
        assert_eq!(had.surplus(7), [1, 2, 3]);
        assert_eq!((had.len(), had.has(0, 2), had.has(1, 2)), (7, Has::Yes, Has::No));
    }
}
