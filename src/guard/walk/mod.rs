//! The walk over a query's tree: every variant of sqlparser's types is named, and every field looked at.
//!
//! Invariant: what is not a plain PostgreSQL read is refused; there is no `_ =>` over a foreign enum
//! and no `..` over a foreign struct that could hold an expression, so that an upgrade of the parser
//! breaks the build instead of the promise.

use std::cell::Cell;

use sqlparser::ast::{Ident, ObjectName, ObjectNamePart};
use sqlparser::tokenizer::Span;

use super::names::Names;
use crate::guard::Refusal;
use crate::sql::keyword::{self, Category};

mod call;
mod expression;
mod operator;
mod query;
mod table;

type Result = std::result::Result<(), Refusal>;

pub(super) struct Walk<'c> {
    pub names: Names<'c>,
    /// Calls of `set_config` that were judged.
    pub set_config: Cell<usize>,
    /// A WITH stands somewhere in the statement: a name may be another table's than it seems.
    pub with: Cell<bool>,
}

/// Byte offset of a tree's node: the parser was handed it as a column.
pub(super) fn offset(span: Span) -> Option<usize> {
    usize::try_from(span.start.column).ok().and_then(|column| column.checked_sub(1))
}

fn foreign(what: &str) -> Result {
    Err(Refusal::unverified(&format!("{what} is not supported")))
}

/// The parts of a name, if it is made of identifiers only.
pub(super) fn parts(name: &ObjectName) -> Option<Vec<&Ident>> {
    let ObjectName(parts) = name;
    parts
        .iter()
        .map(|part| match part {
            ObjectNamePart::Identifier(ident) => Some(ident),
            ObjectNamePart::Function(_) => None,
        })
        .collect()
}

/// Words that are reserved and yet stand as an operand.
const RESERVED_VALUES: &[&str] = &[
    "current_catalog",
    "current_date",
    "current_role",
    "current_time",
    "current_timestamp",
    "current_user",
    "localtime",
    "localtimestamp",
    "session_user",
    "system_user",
    "user",
];

/// Refuses reserved words where a name is due: sqlparser takes them, and what it then makes of the rest
/// is not what PostgreSQL would.
fn name(ident: &Ident) -> Result {
    if ident.quote_style == Some('\'') {
        return foreign("a string as a name");
    }
    if ident.quote_style.is_none()
        && !RESERVED_VALUES.contains(&ident.value.as_str())
        && keyword::lookup(&ident.value).0 == Category::Reserved
    {
        let message = format!("unexpected \"{}\"", ident.value);
        return Err(Refusal::unverified(&message).at(offset(ident.span)));
    }
    Ok(())
}

/// Is it the unquoted word or quoted name `name`?
fn named(ident: &Ident, name: &str) -> bool {
    ident.value == name
}
