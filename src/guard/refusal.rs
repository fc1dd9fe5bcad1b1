//! A refusal is data: one truth for the wire, the metric and the log.
//!
//! Invariant: a refusal never carries the refused text, only names found in it.

use crate::ids::RefusalClass;
use crate::sqlstate::SqlState;

/// Why a statement was not sent on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub class: RefusalClass,
    pub sqlstate: SqlState,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// Byte offset into the text that was judged, of the token that decided.
    pub offset: Option<usize>,
}

impl Refusal {
    pub fn sqlstate(&self) -> SqlState {
        self.sqlstate
    }

    pub fn metric_label(&self) -> &'static str {
        self.class.as_str()
    }

    /// Whether PostgreSQL would answer with an error of its own to this in a failed transaction block
    /// too: what it cannot even parse. Anything else meets 25P02 there.
    pub fn stands_in_failed_block(&self) -> bool {
        match self.class {
            RefusalClass::Unverified
            | RefusalClass::Limit
            | RefusalClass::Encoding
            | RefusalClass::Protocol => true,
            RefusalClass::Write | RefusalClass::Mode | RefusalClass::Setting | RefusalClass::Function => {
                false
            }
        }
    }

    pub fn client_message(&self) -> &str {
        &self.message
    }
}
