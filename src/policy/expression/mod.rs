//! Are the document's expressions ones that Trino can read? Found out before anything is published.
//!
//! Invariant: what passes is one expression over the columns of one table, by a grammar that is smaller than
//! Trino's: no second statement, no comment, no subquery, no window. What is refused here might run in Trino;
//! what passes parses there.

mod grammar;
mod lexer;

use std::fmt;

use super::library;
use crate::document::{OneLine, Policy};

/// Longest expression, in bytes.
pub const EXPRESSION_LIMIT: usize = 16 << 10;

/// What is wrong with an expression, and where it stands in the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Such as `mask_library.sha256.trino`.
    pub place: String,
    /// Byte offset in the expression.
    pub offset: usize,
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at byte {}: {}", OneLine(&self.place), self.offset, OneLine(&self.message))
    }
}

/// Which placeholders an expression may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// `{column}`, `{type}` and `{key}`; nothing else of the row.
    Mask,
    /// None: a filter names its columns.
    Filter,
}

/// All findings of a document: in masks first, then in row filters.
pub fn check(policy: &Policy) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (name, mask) in &policy.mask_library {
        let shipped = || library::shipped(name).map(|shipped| shipped.trino);
        let Some(text) = mask.trino.as_deref().or_else(shipped) else { continue };
        let place = || format!("mask_library.{name}.trino");
        match one(text, Use::Mask) {
            Err((offset, message)) => findings.push(Finding { place: place(), offset, message }),
            // It would win over weaker masks and show everything.
            Ok(()) if text.trim() == "{column}" && mask.strength > 0 => findings.push(Finding {
                place: place(),
                offset: 0,
                message: format!(
                    "the column itself hides nothing, but strength {} would win over masks that do",
                    mask.strength
                ),
            }),
            Ok(()) => {}
        }
    }
    for (name, subject) in &policy.subjects {
        for (at, filter) in subject.row_filters.iter().enumerate() {
            let Some(text) = &filter.expression.trino else { continue };
            if let Err((offset, message)) = one(text, Use::Filter) {
                let place = format!("subjects.{name}.row_filters[{at}].expression.trino");
                findings.push(Finding { place, offset, message });
            }
        }
    }
    findings
}

/// Checks one expression.
///
/// # Errors
/// The byte at which it stops being one, and why.
pub fn one(text: &str, used_as: Use) -> Result<(), (usize, String)> {
    if text.len() > EXPRESSION_LIMIT {
        return Err((0, format!("is longer than {EXPRESSION_LIMIT} bytes")));
    }
    grammar::expression(&lexer::tokens(text)?, text.len(), used_as)
}
