//! What OpenMetadata answers, as a picture.
//!
//! Invariant: pure. Bytes of its answers in, a whole [`Picture`] or an error out; what was not asked for,
//! not answered or cut off is never read as "no tags".

mod client;
pub mod event;
mod fqn;
mod names;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};

use self::names::Names;
use super::{Column, Label, LabelState, Picture, Table, short};

pub use client::{ClientError, OpenMetadata};
pub use fqn::{FqnError, split};

/// Longest cursor of a page, in bytes; it holds one name, and comes back in an address.
const CURSOR_LIMIT: usize = 32 << 10;
/// Most columns and labels of a picture; beyond that it is nobody's catalog, and memory is the relay's, too.
const KEPT_LIMIT: usize = 20_000_000;

/// How the operator wants a catalog of many services to be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// `service` or `service.database` (quoted as OpenMetadata does) to the document's catalog; the longer one
    /// counts first. What is in none of them is left out.
    pub catalogs: BTreeMap<String, Arc<str>>,
    /// Do the terms of glossaries count as tags, too?
    pub glossaries: bool,
}

/// Why answers are no picture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PictureError {
    #[error("OpenMetadata's answer is not what it should be: {0}")]
    Json(String),
    #[error("OpenMetadata's answer has no columns or tags for {0}: were fields=columns,tags asked for?")]
    NotAsked(String),
    #[error("OpenMetadata reports {0} errors within its answer, so it is not whole")]
    Errors(usize),
    #[error("the table {name} has a name that cannot be read: {error}")]
    Name { name: String, error: FqnError },
    #[error("OpenMetadata gave the same page twice")]
    SamePage,
    #[error("OpenMetadata gave {0} twice, so it may have left another table out")]
    Twice(String),
    #[error("OpenMetadata gave {read} tables and speaks of {total}: they changed while they were read")]
    Count { read: u64, total: u64 },
    #[error("OpenMetadata speaks of {now} tables and spoke of {before}: they changed while they were read")]
    Changed { before: u64, now: u64 },
    #[error("OpenMetadata's cursor is longer than {CURSOR_LIMIT} bytes")]
    Cursor,
    #[error("OpenMetadata gave a page with nothing on it and speaks of more")]
    NothingOnPage,
    #[error("OpenMetadata's tables have more than {KEPT_LIMIT} columns and labels")]
    TooMuch,
    #[error("OpenMetadata gave no table at all where there were {before}")]
    Empty { before: usize },
    #[error(
        "none of OpenMetadata's {unmapped} tables is of a service that [sync.catalog] services names, and there were {before} that were"
    )]
    NoneOfOurs { unmapped: u64, before: usize },
}

impl PictureError {
    /// May the same answers be whole when they are asked for again? They are not when somebody wrote meanwhile.
    fn is_of_the_moment(&self) -> bool {
        matches!(self, Self::SamePage | Self::Twice(_) | Self::Count { .. } | Self::Changed { .. })
    }
}

#[derive(Deserialize)]
struct Envelope<T> {
    data: Vec<T>,
    paging: Paging,
    #[serde(default)]
    errors: Option<Vec<IgnoredAny>>,
}

#[derive(Deserialize)]
struct Paging {
    total: u64,
    #[serde(default)]
    after: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TableAnswer {
    fully_qualified_name: String,
    #[serde(default)]
    deleted: bool,
    columns: Option<Vec<ColumnAnswer>>,
    /// Milliseconds since 1970.
    #[serde(default)]
    updated_at: Option<u64>,
}

#[derive(Deserialize)]
struct ColumnAnswer {
    name: String,
    tags: Option<Vec<LabelAnswer>>,
    #[serde(default)]
    children: Option<Vec<ColumnAnswer>>,
}

/// Lenient where versions differ: an unknown kind of label counts, an unknown state does, too.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LabelAnswer {
    #[serde(rename = "tagFQN")]
    tag: String,
    #[serde(default)]
    source: Option<String>,
    #[serde(default)]
    state: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ClassificationAnswer {
    name: String,
    #[serde(default)]
    disabled: bool,
    #[serde(default)]
    deleted: bool,
}

/// Puts pages together.
#[derive(Debug)]
pub struct Assembly<'r> {
    reading: &'r Reading,
    picture: Picture,
    names: Names,
    /// Each list's own: two lists may call their pages the same.
    cursors: HashSet<(&'static str, String)>,
    /// All tables so far, whosever they are, by a digest of their names.
    seen: HashSet<[u8; 16]>,
    read: u64,
    total: Option<u64>,
    /// Tables of services that no catalog stands for.
    unmapped: u64,
}

impl<'r> Assembly<'r> {
    pub fn new(reading: &'r Reading) -> Self {
        Self {
            reading,
            picture: Picture::default(),
            names: Names::default(),
            cursors: HashSet::new(),
            seen: HashSet::new(),
            read: 0,
            total: None,
            unmapped: 0,
        }
    }

    /// Takes an answer of `GET /api/v1/tables`; the cursor of the next page, if there is one.
    ///
    /// # Errors
    /// The answer is not one, or not whole; there will be no picture then.
    pub fn tables(&mut self, answer: &[u8]) -> Result<Option<String>, PictureError> {
        let page: Envelope<TableAnswer> = envelope(answer)?;
        let count = page.data.len();
        self.read += count as u64;
        let (before, now) = (*self.total.get_or_insert(page.paging.total), page.paging.total);
        if before != now {
            return Err(PictureError::Changed { before, now });
        }
        for table in page.data {
            self.table(table)?;
        }
        self.next("tables", count, page.paging)
    }

    /// Takes an answer of `GET /api/v1/classifications`; the cursor of the next page, if there is one.
    ///
    /// # Errors
    /// As [`Assembly::tables`].
    pub fn classifications(&mut self, answer: &[u8]) -> Result<Option<String>, PictureError> {
        let page: Envelope<ClassificationAnswer> = envelope(answer)?;
        let count = page.data.len();
        for classification in page.data {
            // One that is deleted cannot disable anything; its labels go with it on the server's side.
            if classification.disabled && !classification.deleted {
                self.picture.disabled.insert(classification.name.into());
            }
        }
        self.next("classifications", count, page.paging)
    }

    /// The picture, once the last page of tables was taken. `before` is how many tables the last one had.
    ///
    /// # Errors
    /// Pages are missing, or all tables are gone at once.
    pub fn finish(self, before: usize) -> Result<Picture, PictureError> {
        let total = self.total.unwrap_or_default();
        if self.read != total {
            return Err(PictureError::Count { read: self.read, total });
        }
        match self.unmapped {
            _ if before == 0 || !self.picture.tables.is_empty() => Ok(self.picture),
            0 => Err(PictureError::Empty { before }),
            unmapped => Err(PictureError::NoneOfOurs { unmapped, before }),
        }
    }

    /// Tables so far that are of no catalog, and those that are of one.
    pub fn counts(&self) -> (u64, usize) {
        (self.unmapped, self.picture.tables.len())
    }

    fn next(
        &mut self,
        list: &'static str,
        count: usize,
        paging: Paging,
    ) -> Result<Option<String>, PictureError> {
        let Some(after) = paging.after.filter(|after| !after.is_empty()) else { return Ok(None) };
        if after.len() > CURSOR_LIMIT {
            return Err(PictureError::Cursor);
        }
        // Somebody who always speaks of one more page would be read for ever.
        if count == 0 {
            return Err(PictureError::NothingOnPage);
        }
        if !self.cursors.insert((list, after.clone())) {
            return Err(PictureError::SamePage);
        }
        Ok(Some(after))
    }

    fn table(&mut self, answer: TableAnswer) -> Result<(), PictureError> {
        if !self.seen.insert(digest(&answer.fully_qualified_name)) {
            return Err(PictureError::Twice(short(&answer.fully_qualified_name)));
        }
        if answer.deleted {
            return Ok(());
        }
        match self.reading.of_answer(answer, &mut self.names)? {
            Some(table) => self.picture.tables.push(table),
            None => self.unmapped += 1,
        }
        Ok(())
    }
}

impl Reading {
    /// The table that an answer of `GET /api/v1/tables/name/…` describes; `None`: it is deleted, or of no catalog.
    ///
    /// # Errors
    /// As [`Assembly::tables`].
    fn table(&self, answer: &[u8]) -> Result<Option<Table>, PictureError> {
        let answer: TableAnswer = whole(answer)?;
        if answer.deleted { Ok(None) } else { self.of_answer(answer, &mut Names::default()) }
    }

    /// Catalog, schema and table of a name; `None`: its service is no catalog here.
    fn place(&self, name: &str) -> Result<Option<(Arc<str>, String, String)>, FqnError> {
        let [service, database, schema, table] = match split(name) {
            Ok(parts) => parts,
            // Whatever somebody else's service calls its tables is nobody's trouble here.
            Err(error) => {
                let mine = |known: &String| {
                    let rest = name.strip_prefix(known.as_str());
                    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
                };
                return if self.catalogs.keys().any(mine) { Err(error) } else { Ok(None) };
            }
        };
        let whole = format!("{}.{}", fqn::quoted(&service), fqn::quoted(&database));
        let catalog = self.catalogs.get(&whole).or_else(|| self.catalogs.get(&fqn::quoted(&service)));
        Ok(catalog.map(|catalog| (Arc::clone(catalog), schema, table)))
    }

    fn of_answer(&self, answer: TableAnswer, names: &mut Names) -> Result<Option<Table>, PictureError> {
        let TableAnswer { fully_qualified_name: full, columns, updated_at, .. } = answer;
        let place = self.place(&full).map_err(|error| PictureError::Name { name: short(&full), error })?;
        let Some((catalog, schema, name)) = place else { return Ok(None) };
        let columns = columns.ok_or_else(|| PictureError::NotAsked(short(&full)))?;
        let columns = self.columns(columns, names).map_err(|failed| match failed {
            Failed::NotAsked(column) => PictureError::NotAsked(format!("{}, column {column}", short(&full))),
            Failed::TooMuch => PictureError::TooMuch,
        })?;
        // A time that no clock shows is none.
        let changed_at =
            updated_at.and_then(|updated| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(updated)));
        Ok(Some(Table {
            catalog,
            schema: names.shared(&schema),
            name: name.into(),
            columns: columns.into(),
            changed_at,
        }))
    }

    /// As deep as the JSON reader goes.
    fn columns(&self, columns: Vec<ColumnAnswer>, names: &mut Names) -> Result<Vec<Column>, Failed> {
        // Made anew rather than in place: the answers are larger, and their room would be kept.
        let mut found = Vec::with_capacity(columns.len());
        for answer in columns {
            let Some(tags) = answer.tags else { return Err(Failed::NotAsked(short(&answer.name))) };
            let mut labels: Vec<Label> = Vec::new();
            labels.extend(tags.into_iter().filter_map(|tag| self.label(&tag, names)));
            labels.shrink_to_fit();
            names.kept += 1 + labels.len();
            if names.kept > KEPT_LIMIT {
                return Err(Failed::TooMuch);
            }
            found.push(Column {
                name: names.shared(&fqn::decoded(&answer.name)),
                labels,
                children: self.columns(answer.children.unwrap_or_default(), names)?,
            });
        }
        Ok(found)
    }

    fn label(&self, answer: &LabelAnswer, names: &mut Names) -> Option<Label> {
        if answer.source.as_deref() == Some("Glossary") && !self.glossaries {
            return None;
        }
        let state = match answer.state.as_deref() {
            Some("Suggested") => LabelState::Suggested,
            _ => LabelState::Confirmed,
        };
        Some(Label { tag: names.shared(&answer.tag), state })
    }
}

/// Why columns are none.
enum Failed {
    /// The column that came without tags.
    NotAsked(String),
    TooMuch,
}

/// Half of SHA-256: nobody finds two names with the same one.
fn digest(name: &str) -> [u8; 16] {
    let mut half = [0; 16];
    for (to, from) in half.iter_mut().zip(Sha256::digest(name)) {
        *to = from;
    }
    half
}

fn envelope<T: for<'de> Deserialize<'de>>(answer: &[u8]) -> Result<Envelope<T>, PictureError> {
    let page: Envelope<T> = whole(answer)?;
    match page.errors.as_ref().map_or(0, Vec::len) {
        0 => Ok(page),
        count => Err(PictureError::Errors(count)),
    }
}

fn whole<T: for<'de> Deserialize<'de>>(answer: &[u8]) -> Result<T, PictureError> {
    let mut reader = serde_json::Deserializer::from_slice(answer);
    let value: T = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let (path, inner) = (error.path().to_string(), error.inner().to_string());
        PictureError::Json(format!("at {}: {}", short(&path), short(&inner)))
    })?;
    reader.end().map_err(|error| PictureError::Json(short(&error.to_string())))?;
    Ok(value)
}
