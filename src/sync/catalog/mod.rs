//! What a catalog knows: tables, their columns, and the labels that stewards gave them.
//!
//! Invariant: a [`Picture`] is whole. What could not be read to its end is no picture.

pub mod file;
pub mod openmetadata;

use std::collections::BTreeSet;
use std::sync::Arc;

/// All tables of one reading.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture {
    /// In any order; a table that is there twice counts with the labels of both.
    pub tables: Vec<Table>,
    /// Classifications whose labels count no longer, by the part of the tag before its first dot.
    pub disabled: BTreeSet<Arc<str>>,
}

/// One table, by the names that the policy document uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub catalog: Arc<str>,
    pub schema: Arc<str>,
    pub name: Arc<str>,
    pub columns: Vec<Column>,
}

/// One column; those inside of it are its children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: Arc<str>,
    pub labels: Vec<Label>,
    pub children: Vec<Column>,
}

/// One label of a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Fully qualified, such as `PII.Sensitive`.
    pub tag: Arc<str>,
    pub state: LabelState,
}

/// Has a person (or a rule that people trust) decided?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LabelState {
    Suggested,
    Confirmed,
}

impl Column {
    /// The labels of this column and of all inside it; masks cover whole columns.
    pub fn all_labels(&self) -> impl Iterator<Item = &Label> {
        // By hand rather than by recursion: nesting is the catalog's choice.
        let mut columns = vec![self];
        std::iter::from_fn(move || {
            let column = columns.pop()?;
            columns.extend(&column.children);
            Some(&column.labels)
        })
        .flatten()
    }
}
