//! Every document that was published, so that any of them can be had back.
//!
//! Invariant: a revision is a file that is there whole or not at all, and its number is never given twice. What is
//! about to be published is on the disk before it is, as `pending`; the two newest revisions are never forgotten.
//!
//! The calls block on the disk.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::disk;
use super::planner::safety::MissingSince;
use super::publisher::Version;
use crate::document::{AutoMasks, ColumnName, DOCUMENT_LIMIT, Document, DocumentError};

/// Lines of a revision's summary; the document itself says the rest.
const SUMMARY: usize = 200;
/// Longest file: a document and what is said of it.
const FILE_LIMIT: u64 = DOCUMENT_LIMIT as u64 + (4 << 20);
const STATE: &str = "state.json";

/// Where a revision stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Written down before it was published; whether it was is not known yet.
    Pending,
    Published,
    /// It never came into force.
    Discarded,
}

/// Why a revision came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reason {
    Sync,
    Rollback,
    /// It was in force, and none of ours: people's, or another gateway's.
    Found,
}

/// What is known of a revision beside its document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    pub number: u64,
    pub state: State,
    pub reason: Reason,
    /// When it was written down.
    #[serde(with = "rfc3339")]
    pub at: SystemTime,
    /// Who asked for it.
    pub actor: Arc<str>,
    /// The run that made it, as the audit trail calls it.
    pub run: Option<Arc<str>>,
    /// Of the document's text.
    pub content: Arc<str>,
    /// Of the loop's entries in it.
    pub masks: Arc<str>,
    /// The content that it took the place of.
    pub parent: Option<Arc<str>>,
    /// The changes as people read them; the first [`SUMMARY`] of them.
    pub summary: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Stored<'d> {
    revision: Revision,
    #[serde(borrow)]
    document: &'d RawValue,
}

/// Only what is said of it, for whoever does not need the document.
#[derive(Deserialize)]
struct Head {
    revision: Revision,
}

/// What the loop has to remember beside the revisions.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub missing_since: MissingSince,
    /// Set by a rollback, until an admin's run.
    pub rolled_back_to: Option<u64>,
}

#[derive(Serialize, Deserialize)]
struct StoredMemory {
    rolled_back_to: Option<u64>,
    missing_since: Vec<StoredMissing>,
}

#[derive(Serialize, Deserialize)]
struct StoredMissing {
    subject: Arc<str>,
    catalog: Arc<str>,
    schema: Arc<str>,
    table: Arc<str>,
    column: Arc<str>,
    #[serde(with = "rfc3339")]
    since: SystemTime,
}

/// Why the history cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("the policy history in {folder} cannot be {doing}: {error}")]
    Io { folder: String, doing: &'static str, error: io::Error },
    #[error("the policy history holds a file that cannot be read: {file}: {error}; move it away")]
    File { file: String, error: String },
    #[error("there is no revision {0} in the policy history")]
    NoRevision(u64),
    #[error("revision {number} cannot be used: {error}")]
    Document { number: u64, error: DocumentError },
}

type Result<T> = std::result::Result<T, HistoryError>;

/// A folder of revisions. Cheap to clone; readers and the loop share it.
#[derive(Clone, Debug)]
pub struct History(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    folder: PathBuf,
    limit: usize,
    // Never held across an await, nor while the disk is waited for by a reader.
    known: Mutex<BTreeMap<u64, Revision>>,
}

/// What a revision is made of.
#[derive(Debug)]
pub struct New<'d> {
    pub reason: Reason,
    pub at: SystemTime,
    pub actor: Arc<str>,
    pub run: Option<Arc<str>>,
    pub parent: Option<Arc<str>>,
    pub summary: Vec<String>,
    pub document: &'d Document,
}

impl History {
    /// Opens or makes the folder, which only its owner may look into when it is made here.
    ///
    /// # Errors
    /// It cannot be made or read.
    pub fn open(folder: &Path, limit: usize) -> Result<Self> {
        let failed =
            |doing| move |error| HistoryError::Io { folder: folder.display().to_string(), doing, error };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed("made"))?;
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(folder).map_err(failed("read"))? {
            let path = entry.map_err(failed("read"))?.path();
            let Some(number) = number_of(&path) else { continue };
            let head: Head = read(&path)?;
            known.insert(number, Revision { number, ..head.revision });
        }
        Ok(Self(Arc::new(Inner { folder: folder.to_owned(), limit: limit.max(2), known: Mutex::new(known) })))
    }

    /// What is known of the newest `limit` revisions, the newest first.
    pub fn list(&self, limit: usize) -> Vec<Revision> {
        self.known().values().rev().take(limit).cloned().collect()
    }

    /// The newest revision that came into force.
    pub fn newest(&self) -> Option<u64> {
        let known = self.known();
        known.values().rev().find(|revision| revision.state == State::Published).map(|found| found.number)
    }

    /// # Errors
    /// There is no such revision, or it cannot be read.
    pub fn document(&self, number: u64) -> Result<Document> {
        if !self.known().contains_key(&number) {
            return Err(HistoryError::NoRevision(number));
        }
        let path = self.path(number);
        let text = text(&path)?;
        let stored: Stored<'_> = parse(&path, &text)?;
        let document = stored.document.get().as_bytes();
        Document::parse(document).map_err(|error| HistoryError::Document { number, error })
    }

    /// Writes down what is about to be published; its number.
    ///
    /// # Errors
    /// The disk's.
    pub fn add(&self, new: New<'_>, state: State) -> Result<u64> {
        let number = self.known().last_key_value().map_or(1, |(last, _)| last + 1);
        let text = new.document.to_text();
        let mut summary = new.summary;
        if summary.len() > SUMMARY {
            let more = summary.len() - SUMMARY;
            summary.truncate(SUMMARY);
            summary.push(format!("and {more} more"));
        }
        let revision = Revision {
            number,
            state,
            reason: new.reason,
            at: new.at,
            actor: new.actor,
            run: new.run,
            content: content(&text),
            masks: masks(new.document),
            parent: new.parent,
            summary,
        };
        self.write(&revision, &text)?;
        self.known().insert(number, revision);
        self.forget()?;
        Ok(number)
    }

    /// The document in force, if no revision is known to be it, becomes one.
    ///
    /// # Errors
    /// The disk's.
    pub fn found(&self, document: &Document, at: SystemTime) -> Result<()> {
        let content = content(&document.to_text());
        let last = self.known().values().rev().find(|known| known.state != State::Discarded).cloned();
        if last.is_some_and(|last| last.content == content) {
            return Ok(());
        }
        let new = New {
            reason: Reason::Found,
            at,
            actor: "unknown".into(),
            run: None,
            parent: None,
            summary: Vec::new(),
            document,
        };
        self.add(new, State::Published).map(drop)
    }

    /// Says what became of a revision.
    ///
    /// # Errors
    /// The disk's.
    pub fn settle(&self, number: u64, state: State) -> Result<()> {
        let Some(revision) = self.known().get(&number).cloned() else { return Ok(()) };
        let path = self.path(number);
        let text = text(&path)?;
        let stored: Stored<'_> = parse(&path, &text)?;
        let revision = Revision { state, ..revision };
        self.write(&revision, stored.document.get())?;
        self.known().insert(number, revision);
        Ok(())
    }

    /// Revisions of which nobody knows yet whether they came into force.
    pub fn pending(&self) -> Vec<Revision> {
        self.known().values().filter(|revision| revision.state == State::Pending).cloned().collect()
    }

    /// # Errors
    /// The file is there and cannot be read.
    pub fn memory(&self) -> Result<Memory> {
        let path = self.0.folder.join(STATE);
        if !path.exists() {
            return Ok(Memory::default());
        }
        let stored: StoredMemory = read(&path)?;
        let missing_since = stored.missing_since.into_iter().map(|missing| {
            let StoredMissing { subject, catalog, schema, table, column, since } = missing;
            ((subject, ColumnName { catalog, schema, table, column }), since)
        });
        Ok(Memory { missing_since: missing_since.collect(), rolled_back_to: stored.rolled_back_to })
    }

    /// # Errors
    /// The disk's.
    pub fn remember(&self, memory: &Memory) -> Result<()> {
        let missing_since = memory.missing_since.iter().map(|((subject, column), since)| StoredMissing {
            subject: Arc::clone(subject),
            catalog: Arc::clone(&column.catalog),
            schema: Arc::clone(&column.schema),
            table: Arc::clone(&column.table),
            column: Arc::clone(&column.column),
            since: *since,
        });
        let stored =
            StoredMemory { rolled_back_to: memory.rolled_back_to, missing_since: missing_since.collect() };
        self.replace(&self.0.folder.join(STATE), &serde_json::to_vec(&stored).unwrap_or_default())
    }

    fn known(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Revision>> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, number: u64) -> PathBuf {
        self.0.folder.join(format!("{number:08}.json"))
    }

    fn write(&self, revision: &Revision, document: &str) -> Result<()> {
        let path = self.path(revision.number);
        let broken = |error: serde_json::Error| HistoryError::File {
            file: path.display().to_string(),
            error: error.to_string(),
        };
        let document: &RawValue = serde_json::from_str(document.trim()).map_err(broken)?;
        let stored = Stored { revision: revision.clone(), document };
        let mut bytes = serde_json::to_vec(&stored).map_err(broken)?;
        bytes.push(b'\n');
        self.replace(&path, &bytes)
    }

    fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let beside = self.0.folder.join(".new");
        disk::replace(path, &beside, bytes, None).map_err(|error| self.failed("written", error))
    }

    /// The oldest beyond the limit go.
    fn forget(&self) -> Result<()> {
        loop {
            let oldest = {
                let known = self.known();
                if known.len() <= self.0.limit {
                    return Ok(());
                }
                known.first_key_value().map(|(number, _)| *number)
            };
            let Some(oldest) = oldest else { return Ok(()) };
            fs::remove_file(self.path(oldest)).map_err(|error| self.failed("cleared", error))?;
            self.known().remove(&oldest);
        }
    }

    fn failed(&self, doing: &'static str, error: io::Error) -> HistoryError {
        HistoryError::Io { folder: self.0.folder.display().to_string(), doing, error }
    }
}

/// The hash of a document's text.
pub fn content(text: &str) -> Arc<str> {
    Version::of_text(text.as_bytes()).as_str().into()
}

/// The hash of the loop's entries in a document: what people do beside them does not change it.
pub fn masks(document: &Document) -> Arc<str> {
    let mut text = String::new();
    for (subject, masks) in auto_masks(document) {
        for (column, mask) in masks {
            let ColumnName { catalog, schema, table, column } = column;
            // As JSON, so that no name can look like two.
            let line = serde_json::json!([&*subject, &*catalog, &*schema, &*table, &*column, &*mask]);
            text.push_str(&line.to_string());
            text.push('\n');
        }
    }
    content(&text)
}

/// The loop's entries of each subject that has any.
pub fn auto_masks(document: &Document) -> BTreeMap<Arc<str>, AutoMasks> {
    let subjects = document.policy().subjects.iter();
    let entries = subjects.map(|(name, subject)| {
        let auto = subject.masks.iter().filter(|entry| entry.is_auto());
        (Arc::clone(name), auto.map(|entry| (entry.column(), Arc::clone(&entry.mask))).collect::<AutoMasks>())
    });
    entries.filter(|(_, masks)| !masks.is_empty()).collect()
}

/// `00000007.json` is 7.
fn number_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(".json")?;
    if name.len() < 8 || !name.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    name.parse().ok()
}

fn text(path: &Path) -> Result<String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_LIMIT).read_to_string(&mut text));
    read.map_err(|error| HistoryError::File { file: path.display().to_string(), error: error.to_string() })?;
    Ok(text)
}

fn parse<'t, T: Deserialize<'t>>(path: &Path, text: &'t str) -> Result<T> {
    serde_json::from_str(text)
        .map_err(|error| HistoryError::File { file: path.display().to_string(), error: error.to_string() })
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = text(path)?;
    parse(path, &text)
}

mod rfc3339 {
    //! Times as people read them, to the nanosecond.
    //!
    //! Invariant: what was written is read back the same.

    use std::time::SystemTime;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_nanos(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        humantime::parse_rfc3339(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
