//! What the guard answers: the statements of one text, each admitted or refused.
//!
//! Invariant: a verdict depends on nothing but the text and the context it was judged in.

use crate::guard::{Permit, Refusal};
use crate::ids::StatementClass;

/// May this client, on this source, write?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Everybody, on every source with `read_only = true`; and everybody but the writers elsewhere.
    ReadOnly,
    /// A writer of a source with `read_only = false`.
    ReadWrite,
}

/// In which form the text of a simple Query may go upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// No `;` except at the end of the text, however anybody lexes it: as a Query, as it is.
    Whole,
    /// Each statement by itself as Parse/Bind/Execute, where the server refuses a second statement.
    Apart,
}

/// The answer for one text, statement by statement in the order of the text.
///
/// The first refusal ends it, as the first error ends a Query in PostgreSQL: there is at most one
/// and it is the last step. No steps at all: the text holds no statement.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub form: Form,
    pub steps: Vec<Step>,
}

#[derive(Clone, Debug)]
pub enum Step {
    Admit(Admitted),
    Refuse(Refusal),
}

/// One admitted statement.
#[derive(Clone, Debug)]
pub struct Admitted {
    pub permit: Permit,
    pub class: StatementClass,
    pub effect: Effect,
    /// It calls `set_config`, which may change a setting for longer than its transaction.
    pub sets: bool,
    /// Byte offset of the permit's text in the text that was judged.
    pub offset: usize,
}

/// What an admitted statement changes in the session, as far as the relay has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    None,
    /// `PREPARE name AS …`
    Prepare {
        name: Box<str>,
    },
    /// `EXECUTE name …`, also inside EXPLAIN.
    Execute {
        name: Box<str>,
    },
    /// `DEALLOCATE name`
    Deallocate {
        name: Box<str>,
    },
    /// `DECLARE name … CURSOR`
    Declare {
        name: Box<str>,
        hold: bool,
    },
    /// `FETCH … name`, `MOVE … name`
    Fetch {
        name: Box<str>,
    },
    /// `CLOSE name`; `None`: all.
    Close {
        name: Option<Box<str>>,
    },
    /// `DEALLOCATE ALL`, `DISCARD ALL`, `DISCARD PLANS` is none of these.
    DeallocateAll,
    /// `SET application_name = '…'` (session-wide): the relay puts the gateway's own prefix before it.
    ApplicationName {
        value: Box<str>,
    },
}

impl Admitted {
    /// Whether nothing of it is left at the source once its transaction has ended.
    pub fn leaves_nothing(&self) -> bool {
        match (self.class, &self.effect) {
            (StatementClass::Transaction | StatementClass::Empty, _) => true,
            (
                StatementClass::Read,
                Effect::None | Effect::Declare { hold: false, .. } | Effect::Fetch { .. },
            ) => !self.sets,
            // What the source calls the session is told by it, in a ParameterStatus.
            (StatementClass::Session, Effect::ApplicationName { .. }) => true,
            (StatementClass::Read | StatementClass::Session | StatementClass::Write, _) => false,
        }
    }
}
