//! Names that travel through every room, and the label enums of metrics and logs.
//!
//! Invariant: nothing here holds a secret, and no value here is unbounded as a metric label.

use std::fmt;
use std::sync::Arc;

/// The name under which clients ask for a source (their database name).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceName(Arc<str>);

/// A login at the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientUser(Arc<str>);

macro_rules! name {
    ($type:ident) => {
        impl $type {
            pub fn new(name: impl Into<Arc<str>>) -> Self {
                Self(name.into())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The name itself, shared.
            pub fn shared(&self) -> Arc<str> {
                Arc::clone(&self.0)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(SourceName);
name!(ClientUser);

/// The end user behind an engine user, as the engine's trailing comment names them.
///
/// Only ever built from a comment that passed every check of `sql::comment`; whoever holds an
/// engine user's password can name anyone, so it is evidence, not authentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndUser {
    pub user: Box<str>,
    /// The engine's query id; empty when the comment carries none.
    pub query: Box<str>,
}

/// Why a statement was refused: the rows of the refusal table in the design, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefusalClass {
    /// DML, DDL and utility commands that change anything.
    Write,
    /// Leaving read-only mode.
    Mode,
    /// SET or a startup key outside the allow list.
    Setting,
    /// A function that is volatile, reads SQL from text, or is unknown.
    Function,
    /// The text cannot be verified.
    Unverified,
    /// A column would be seen that this subject may not see as it is.
    Mask,
    /// Too long, too deep.
    Limit,
    /// Bytes that are not UTF-8, or a change of client encoding.
    Encoding,
    /// A protocol message that a read-only gateway never sends on.
    Protocol,
}

impl RefusalClass {
    pub const ALL: [RefusalClass; 9] = [
        RefusalClass::Write,
        RefusalClass::Mode,
        RefusalClass::Setting,
        RefusalClass::Function,
        RefusalClass::Unverified,
        RefusalClass::Mask,
        RefusalClass::Limit,
        RefusalClass::Encoding,
        RefusalClass::Protocol,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            RefusalClass::Write => "write",
            RefusalClass::Mode => "mode",
            RefusalClass::Setting => "setting",
            RefusalClass::Function => "function",
            RefusalClass::Unverified => "unverified",
            RefusalClass::Mask => "mask",
            RefusalClass::Limit => "limit",
            RefusalClass::Encoding => "encoding",
            RefusalClass::Protocol => "protocol",
        }
    }
}

/// What an admitted statement does, as a metric label.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StatementClass {
    /// SELECT, VALUES, TABLE, SHOW, EXPLAIN, COPY … TO STDOUT, cursors.
    Read,
    /// BEGIN, COMMIT, ROLLBACK, savepoints.
    Transaction,
    /// SET, RESET, DISCARD, DEALLOCATE and their like.
    Session,
    /// A write by one of the writers of a source with `read_only = false`.
    Write,
    /// No statement at all: white space and comments.
    Empty,
}

impl StatementClass {
    pub fn as_str(self) -> &'static str {
        match self {
            StatementClass::Read => "read",
            StatementClass::Transaction => "transaction",
            StatementClass::Session => "session",
            StatementClass::Write => "write",
            StatementClass::Empty => "empty",
        }
    }
}
