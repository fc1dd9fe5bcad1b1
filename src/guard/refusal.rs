//! A refusal is data: one truth for the wire, the metric and the log.
//!
//! Invariant: a refusal never carries the refused text, only names found in it.

use crate::ids::{RefusalClass, SourceName};
use crate::sqlstate::SqlState;

/// Names longer than this are not repeated in full; PostgreSQL's own are not longer.
const NAME_BYTES: usize = 63;

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
            RefusalClass::Write
            | RefusalClass::Mode
            | RefusalClass::Setting
            | RefusalClass::Function
            | RefusalClass::Mask => false,
        }
    }

    pub fn client_message(&self) -> &str {
        &self.message
    }

    fn new(class: RefusalClass, sqlstate: SqlState, message: String) -> Self {
        Self { class, sqlstate, message, detail: None, hint: None, offset: None }
    }

    pub(super) fn at(mut self, offset: Option<usize>) -> Self {
        self.offset = offset;
        self
    }

    pub(super) fn because(mut self, reason: impl Into<String>) -> Self {
        self.detail = Some(reason.into());
        self
    }

    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds to the detail who refused it, for which source, and that nothing was sent.
    pub(super) fn for_source(mut self, source: &SourceName) -> Self {
        let end = format!(
            "fedgate refused the statement; nothing of it reached the source \"{}\".",
            short(source.as_str())
        );
        self.detail = Some(match self.detail.take() {
            Some(detail) => format!("{detail} {end}"),
            None => end,
        });
        self
    }

    /// A statement that changes something, in PostgreSQL's own words (`PreventCommandIfReadOnly`).
    pub(super) fn write(tag: &str) -> Self {
        Self::new(
            RefusalClass::Write,
            SqlState::READ_ONLY_SQL_TRANSACTION,
            format!("cannot execute {tag} in a read-only transaction"),
        )
        .because("The source is read-only.")
    }

    /// Leaving read-only mode, in PostgreSQL's own words (`check_transaction_read_only`).
    pub(super) fn mode() -> Self {
        Self::new(
            RefusalClass::Mode,
            SqlState::READ_ONLY_SQL_TRANSACTION,
            "cannot set transaction read-write mode inside a read-only transaction".to_owned(),
        )
        .because("Every transaction on the source is read-only.")
        .hint("Leave READ WRITE out.")
    }

    pub(super) fn setting(name: &str) -> Self {
        Self::new(
            RefusalClass::Setting,
            SqlState::INSUFFICIENT_PRIVILEGE,
            format!("permission denied to set parameter \"{}\"", short(name)),
        )
    }

    pub(super) fn encoding(name: &str) -> Self {
        Self::new(
            RefusalClass::Encoding,
            SqlState::CHARACTER_NOT_IN_REPERTOIRE,
            format!("client encoding \"{}\" is not supported", short(name)),
        )
        .because("Statements can be verified in UTF-8 only.")
        .hint("Leave client_encoding at UTF8.")
    }

    pub(super) fn bytes() -> Self {
        Self::new(
            RefusalClass::Encoding,
            SqlState::CHARACTER_NOT_IN_REPERTOIRE,
            "invalid byte sequence for encoding \"UTF8\"".to_owned(),
        )
    }

    pub(super) fn function(name: &str) -> Self {
        Self::denied("function", name)
    }

    /// A function by another name: an operator, a type.
    pub(super) fn denied(what: &str, name: &str) -> Self {
        Self::new(
            RefusalClass::Function,
            SqlState::INSUFFICIENT_PRIVILEGE,
            format!("permission denied for {what} {}", short(name)),
        )
    }

    /// A read by somebody for whom something would have to be masked, and nothing on the way can do it.
    pub fn masked(source: &SourceName, why: &str) -> Self {
        let name = short(source.as_str());
        Self::new(
            RefusalClass::Mask,
            SqlState::INSUFFICIENT_PRIVILEGE,
            format!("permission denied for database {name}"),
        )
        .because(format!("{why}."))
        .hint("Ask whoever keeps the configuration policies.")
        .for_source(source)
    }

    pub(super) fn unverified(why: &str) -> Self {
        Self::new(
            RefusalClass::Unverified,
            SqlState::SYNTAX_ERROR,
            format!("statement could not be verified as read-only: {why}"),
        )
    }

    pub(super) fn too_long(why: &str) -> Self {
        Self::new(RefusalClass::Limit, SqlState::PROGRAM_LIMIT_EXCEEDED, why.to_owned())
            .hint("Send it in several statements, or pass long lists as one array parameter.")
    }

    pub(super) fn too_complex(why: &str) -> Self {
        Self::new(RefusalClass::Limit, SqlState::STATEMENT_TOO_COMPLEX, why.to_owned())
            .hint("Take parts of it into WITH queries, or send it in several statements.")
    }
}

/// The first bytes of a name.
pub(super) fn short(name: &str) -> &str {
    let mut end = name.len().min(NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.get(..end).unwrap_or_default()
}
