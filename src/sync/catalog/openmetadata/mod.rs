//! What OpenMetadata answers, as a picture.
//!
//! Invariant: pure. Bytes of its answers in, a whole [`Picture`] or an error out; what was not asked for,
//! not answered or cut off is never read as "no tags".

mod client;
pub mod event;
mod fqn;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Column, Label, LabelState, Picture, Table};

pub use client::{ClientError, OpenMetadata};
pub use fqn::{FqnError, split};

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
    #[error("OpenMetadata gave {read} tables and speaks of {total}: they changed while they were read")]
    Count { read: u64, total: u64 },
    #[error("OpenMetadata gave no table at all where there were {before}")]
    Empty { before: usize },
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
    /// Each list's own: two lists may call their pages the same.
    cursors: HashSet<(&'static str, String)>,
    read: u64,
    total: u64,
    /// Tables of services that no catalog stands for.
    unmapped: u64,
    names: Names,
}

/// Names that come again and again, each once: schemas, columns, tags.
#[derive(Debug, Default)]
struct Names(HashSet<Arc<str>>);

impl Names {
    fn once(&mut self, name: &str) -> Arc<str> {
        match self.0.get(name) {
            Some(known) => Arc::clone(known),
            None => {
                let name: Arc<str> = name.into();
                self.0.insert(Arc::clone(&name));
                name
            }
        }
    }
}

impl<'r> Assembly<'r> {
    pub fn new(reading: &'r Reading) -> Self {
        let cursors = HashSet::new();
        let (picture, names) = (Picture::default(), Names::default());
        Self { reading, picture, cursors, read: 0, total: 0, unmapped: 0, names }
    }

    /// Takes an answer of `GET /api/v1/tables`; the cursor of the next page, if there is one.
    ///
    /// # Errors
    /// The answer is not one, or not whole; there will be no picture then.
    pub fn tables(&mut self, answer: &[u8]) -> Result<Option<String>, PictureError> {
        let page: Envelope<TableAnswer> = envelope(answer)?;
        self.read += page.data.len() as u64;
        self.total = page.paging.total;
        for table in page.data {
            self.table(table)?;
        }
        self.next("tables", page.paging)
    }

    /// Takes an answer of `GET /api/v1/classifications`; the cursor of the next page, if there is one.
    ///
    /// # Errors
    /// As [`Assembly::tables`].
    pub fn classifications(&mut self, answer: &[u8]) -> Result<Option<String>, PictureError> {
        let page: Envelope<ClassificationAnswer> = envelope(answer)?;
        for classification in page.data {
            // One that is deleted cannot disable anything; its labels go with it on the server's side.
            if classification.disabled && !classification.deleted {
                self.picture.disabled.insert(classification.name.into());
            }
        }
        self.next("classifications", page.paging)
    }

    /// The picture, once the last page of tables was taken. `before` is how many tables the last one had.
    ///
    /// # Errors
    /// Pages are missing, or all tables are gone at once.
    pub fn finish(self, before: usize) -> Result<Picture, PictureError> {
        if self.read != self.total {
            return Err(PictureError::Count { read: self.read, total: self.total });
        }
        if self.picture.tables.is_empty() && before > 0 {
            return Err(PictureError::Empty { before });
        }
        Ok(self.picture)
    }

    /// Tables so far that are of no catalog.
    pub fn unmapped(&self) -> u64 {
        self.unmapped
    }

    fn next(&mut self, list: &'static str, paging: Paging) -> Result<Option<String>, PictureError> {
        let Some(after) = paging.after.filter(|after| !after.is_empty()) else { return Ok(None) };
        if !self.cursors.insert((list, after.clone())) {
            return Err(PictureError::SamePage);
        }
        Ok(Some(after))
    }

    fn table(&mut self, answer: TableAnswer) -> Result<(), PictureError> {
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
                let mine = |known: &String| name.starts_with(known.as_str());
                return if self.catalogs.keys().any(mine) { Err(error) } else { Ok(None) };
            }
        };
        let whole = format!("{}.{}", fqn::quoted(&service), fqn::quoted(&database));
        let catalog = self.catalogs.get(&whole).or_else(|| self.catalogs.get(&fqn::quoted(&service)));
        Ok(catalog.map(|catalog| (Arc::clone(catalog), schema, table)))
    }

    fn of_answer(&self, answer: TableAnswer, names: &mut Names) -> Result<Option<Table>, PictureError> {
        let TableAnswer { fully_qualified_name: full, columns, .. } = answer;
        let place = self.place(&full).map_err(|error| PictureError::Name { name: full.clone(), error })?;
        let Some((catalog, schema, name)) = place else { return Ok(None) };
        let columns = columns.ok_or_else(|| PictureError::NotAsked(full.clone()))?;
        let columns = self
            .columns(columns, names)
            .map_err(|column| PictureError::NotAsked(format!("{full}, column {column}")))?;
        Ok(Some(Table { catalog, schema: names.once(&schema), name: name.into(), columns }))
    }

    /// The name of the column that came without tags, if one did. As deep as the JSON reader goes.
    fn columns(&self, columns: Vec<ColumnAnswer>, names: &mut Names) -> Result<Vec<Column>, String> {
        // Made anew rather than in place: the answers are larger, and their room would be kept.
        let mut found = Vec::with_capacity(columns.len());
        for answer in columns {
            let Some(tags) = answer.tags else { return Err(answer.name) };
            let mut labels = Vec::new();
            labels.extend(tags.into_iter().filter_map(|tag| self.label(tag, names)));
            let children = self.columns(answer.children.unwrap_or_default(), names)?;
            found.push(Column { name: names.once(&fqn::decoded(&answer.name)), labels, children });
        }
        Ok(found)
    }

    fn label(&self, answer: LabelAnswer, names: &mut Names) -> Option<Label> {
        if answer.source.as_deref() == Some("Glossary") && !self.glossaries {
            return None;
        }
        let state = match answer.state.as_deref() {
            Some("Suggested") => LabelState::Suggested,
            _ => LabelState::Confirmed,
        };
        Some(Label { tag: names.once(&answer.tag), state })
    }
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
    let value: T = serde_path_to_error::deserialize(&mut reader)
        .map_err(|error| PictureError::Json(format!("at {}: {}", error.path(), error.inner())))?;
    reader.end().map_err(|error| PictureError::Json(error.to_string()))?;
    Ok(value)
}
