//! What a catalog knows: tables, their columns, and the labels that stewards gave them.
//!
//! Invariant: a [`Picture`] is whole. What could not be read to its end is no picture.

pub mod file;
pub mod openmetadata;

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::CatalogSection;
use crate::document::OneLine;

/// Characters of somebody else's text that are passed on.
const SHOWN: usize = 200;

/// Where classifications come from.
pub trait Catalog {
    /// Everything that the catalog knows. `before`: how many tables the last whole picture had, since none at all
    /// where there were some is no answer.
    ///
    /// # Errors
    /// It could not be read to its end.
    fn read(&self, before: usize) -> impl Future<Output = Result<Picture, CatalogError>> + Send;

    /// `last` with what the hint speaks of read again; everything, when the hint speaks of more than single tables.
    ///
    /// # Errors
    /// As [`Catalog::read`].
    fn refresh(
        &self,
        last: &Picture,
        hint: &Hint,
    ) -> impl Future<Output = Result<Picture, CatalogError>> + Send;
}

/// What may have changed: a reason to look, never a fact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    /// Fully qualified names of tables as the catalog writes them.
    pub tables: BTreeSet<Arc<str>>,
    /// Look at everything.
    pub whole: bool,
}

/// Most tables that a hint names; beyond that everything is read.
const HINT_LIMIT: usize = 100;

impl Hint {
    pub fn all() -> Self {
        Self { tables: BTreeSet::new(), whole: true }
    }

    /// Both; bounded, however many come together.
    pub fn add(&mut self, other: Self) {
        self.whole |= other.whole;
        if !self.whole {
            self.tables.extend(other.tables);
            self.whole = self.tables.len() > HINT_LIMIT;
        }
        if self.whole {
            self.tables.clear();
        }
    }
}

/// Why there is no picture.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CatalogError {
    /// 401: nothing to try again.
    #[error(
        "the catalog does not accept the bot's token: {0}; mint a new one and replace its file, which is read anew for each cycle"
    )]
    Unauthorized(String),
    /// No answer in time, 5xx, 429, a connection refused.
    #[error("the catalog cannot be reached: {0}")]
    Unreachable(String),
    /// An answer that is none, or not whole.
    #[error("{0}")]
    NotWhole(String),
}

/// The catalog that a configuration names.
#[derive(Clone, Debug)]
pub enum AnyCatalog {
    File(file::FileCatalog),
    OpenMetadata(openmetadata::OpenMetadata),
}

impl AnyCatalog {
    /// # Errors
    /// There can be no client for it.
    pub fn of(section: &CatalogSection) -> Result<Self, openmetadata::ClientError> {
        Ok(match section {
            CatalogSection::File { path } => Self::File(file::FileCatalog::new(path.clone())),
            CatalogSection::OpenMetadata(section) => {
                Self::OpenMetadata(openmetadata::OpenMetadata::new(section.clone())?)
            }
        })
    }
}

impl Catalog for AnyCatalog {
    async fn read(&self, before: usize) -> Result<Picture, CatalogError> {
        match self {
            Self::File(catalog) => catalog.read(before).await,
            Self::OpenMetadata(catalog) => catalog.read(before).await,
        }
    }

    async fn refresh(&self, last: &Picture, hint: &Hint) -> Result<Picture, CatalogError> {
        match self {
            Self::File(catalog) => catalog.refresh(last, hint).await,
            Self::OpenMetadata(catalog) => catalog.refresh(last, hint).await,
        }
    }
}

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
    /// Shared by the pictures that follow each other: a push changes one table and keeps the rest.
    pub columns: Arc<[Column]>,
    /// When it was last changed in the catalog, by the catalog's own clock, if it says so.
    pub changed_at: Option<SystemTime>,
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

/// Somebody else's text on one line and short.
fn short(text: &str) -> String {
    match text.char_indices().nth(SHOWN) {
        None => OneLine(text).to_string(),
        Some((end, _)) => format!("{}…", OneLine(text.get(..end).unwrap_or_default())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_short_and_on_one_line() {
        assert_eq!(short("pg.shop.public.t"), "pg.shop.public.t");
        assert_eq!(short("a\nb\u{202e}"), "a\\u{a}b\\u{202e}");
        let long = short(&"\u{e9}".repeat(10_000));
        assert_eq!(long.chars().count(), SHOWN + 1);
        assert!(long.ends_with('…'));
    }
}
