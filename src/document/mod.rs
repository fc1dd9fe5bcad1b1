//! The policy document: mask library, sources, and subjects with scopes, row filters and masks.
//!
//! Invariant: what people wrote stays as they wrote it. A document is kept as the JSON that it came as,
//! fields that nobody here knows and the spelling of numbers included; only mask entries whose `source`
//! is [`AUTO`] are ever changed, and only by [`Document::with_masks`].

mod scope;
mod snapshot;
mod strict;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

pub use scope::{Pattern, Scope};
pub use snapshot::Snapshot;

/// `source` of the mask entries that belong to the sync loop.
pub const AUTO: &str = "auto-pii";

/// The only version there is.
const VERSION: u64 = 1;
/// Longest document that is read, in bytes; a ConfigMap holds 1 MiB, a file may hold more.
pub const DOCUMENT_LIMIT: usize = 64 << 20;
/// Longest name, in bytes: PostgreSQL's are shorter, other engines' are not.
const NAME_LIMIT: usize = 1024;

/// A column of a table as the document, the engine and the source name it: case and all.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ColumnName {
    pub catalog: Arc<str>,
    pub schema: Arc<str>,
    pub table: Arc<str>,
    pub column: Arc<str>,
}

impl fmt::Display for ColumnName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, part) in [&self.catalog, &self.schema, &self.table, &self.column].into_iter().enumerate()
        {
            if index > 0 {
                f.write_str(".")?;
            }
            write_name(f, part)?;
        }
        Ok(())
    }
}

/// Writes a name as SQL would have to: quoted unless it is a plain lower-case word, and on one line.
fn write_name(f: &mut fmt::Formatter<'_>, name: &str) -> fmt::Result {
    let mut letters = name.chars();
    let plain = letters.next().is_some_and(|first| first.is_ascii_lowercase() || first == '_')
        && letters.all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_');
    if plain {
        return f.write_str(name);
    }
    write!(f, "\"{}\"", OneLine(&name.replace('"', "\"\"")))
}

/// A text that somebody else chose, so that it can neither end a line nor turn it around.
#[derive(Clone, Copy, Debug)]
pub struct OneLine<'t>(pub &'t str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Separators of lines and paragraphs, and all that only steers or hides letters.
        const HIDDEN: &[std::ops::RangeInclusive<char>] = &[
            '\u{ad}'..='\u{ad}',
            '\u{61c}'..='\u{61c}',
            '\u{200b}'..='\u{200f}',
            '\u{2028}'..='\u{202e}',
            '\u{2060}'..='\u{206f}',
            '\u{feff}'..='\u{feff}',
            '\u{e0000}'..='\u{e007f}',
        ];
        self.0.chars().try_for_each(|letter| {
            if letter.is_control() || HIDDEN.iter().any(|range| range.contains(&letter)) {
                write!(f, "{}", letter.escape_unicode())
            } else {
                write!(f, "{letter}")
            }
        })
    }
}

/// One entry of the mask library.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Mask {
    /// The expression for Trino; `{column}` and `{type}` stand for the column and its type.
    #[serde(default)]
    pub trino: Option<String>,
    /// The expression for PostgreSQL.
    #[serde(default)]
    pub postgres: Option<String>,
    /// Which of several masks wins: the greater. 100 shows nothing, 0 everything.
    pub strength: u32,
}

/// One source, by the name that clients know it by.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SourceEntry {
    /// What Trino calls it.
    pub catalog: String,
    #[serde(default = "yes")]
    pub read_only: bool,
    /// Users whom OPA's write guard lets through; the gateway's own knows nobody.
    #[serde(default)]
    pub write_allow_list: Vec<String>,
}

fn yes() -> bool {
    true
}

/// Whom a subject stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SubjectKind {
    User,
    Role,
    Group,
}

/// Who sees what.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Subject {
    pub kind: SubjectKind,
    /// Tables that this subject may read.
    #[serde(default)]
    pub scopes: Vec<Scope>,
    #[serde(default)]
    pub row_filters: Vec<RowFilter>,
    #[serde(default)]
    pub masks: Vec<MaskEntry>,
}

/// Rows of one table that this subject may read.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct RowFilter {
    pub catalog: String,
    pub schema: String,
    pub table: String,
    pub expression: Expression,
}

/// One condition in each engine's SQL.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Expression {
    #[serde(default)]
    pub trino: Option<String>,
    #[serde(default)]
    pub postgres: Option<String>,
}

/// One masked column of one subject.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct MaskEntry {
    pub catalog: Arc<str>,
    pub schema: Arc<str>,
    pub table: Arc<str>,
    pub column: Arc<str>,
    /// A name of the library.
    pub mask: Arc<str>,
    /// [`AUTO`], or whatever people write.
    #[serde(default)]
    pub source: Option<String>,
}

impl MaskEntry {
    pub fn is_auto(&self) -> bool {
        self.source.as_deref() == Some(AUTO)
    }

    pub fn column(&self) -> ColumnName {
        let Self { catalog, schema, table, column, .. } = self.clone();
        ColumnName { catalog, schema, table, column }
    }
}

/// What a document says, for those who read it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Policy {
    #[serde(default)]
    pub mask_library: BTreeMap<String, Mask>,
    #[serde(default)]
    pub sources: BTreeMap<String, SourceEntry>,
    #[serde(default)]
    pub subjects: BTreeMap<Arc<str>, Subject>,
}

/// Why a text is no policy document.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    #[error("policy document is longer than {DOCUMENT_LIMIT} bytes")]
    TooLong,
    #[error("policy document is not valid JSON: {0}")]
    Json(String),
    /// Where, such as `subjects.analyst.masks[2].mask`, and what.
    #[error("policy document is not valid at {path}: {message}")]
    Shape { path: String, message: String },
}

/// A policy document: the text's meaning, and what of it is known here.
#[derive(Clone, Debug)]
pub struct Document {
    json: Map<String, Value>,
    policy: Policy,
}

/// The masks that the loop wants one subject to have, by column.
pub type AutoMasks = BTreeMap<ColumnName, Arc<str>>;

impl Document {
    /// # Errors
    /// The text is too long, no JSON, says a name twice, or has another shape than the design's; the error
    /// names the place.
    pub fn parse(text: &[u8]) -> Result<Self, DocumentError> {
        if text.len() > DOCUMENT_LIMIT {
            return Err(DocumentError::TooLong);
        }
        let json = strict::object(text)?;
        let policy = Self::read(&json)?;
        Ok(Self { json, policy })
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The JSON, laid out for people.
    pub fn to_text(&self) -> String {
        // A map of JSON values has no way to fail; `#` is Display's own word for "for people".
        format!("{:#}\n", Value::Object(self.json.clone()))
    }

    fn read(json: &Map<String, Value>) -> Result<Policy, DocumentError> {
        let shape =
            |path: &str, message: &str| DocumentError::Shape { path: path.into(), message: message.into() };
        match json.get("version") {
            Some(version) if version.as_u64() == Some(VERSION) => {}
            Some(_) => return Err(shape("version", "this version of fedgate reads version 1")),
            None => return Err(shape("version", "is missing; write \"version\": 1")),
        }
        let policy: Policy =
            serde_path_to_error::deserialize(Value::Object(json.clone())).map_err(|error| {
                DocumentError::Shape { path: error.path().to_string(), message: error.inner().to_string() }
            })?;
        for (name, subject) in &policy.subjects {
            let path = || format!("subjects.{name}");
            let mut columns = HashSet::new();
            for (at, entry) in subject.masks.iter().enumerate() {
                let path = || format!("{}.masks[{at}]", path());
                let column = entry.column();
                for (key, name) in [
                    ("catalog", &column.catalog),
                    ("schema", &column.schema),
                    ("table", &column.table),
                    ("column", &column.column),
                ] {
                    named(name).map_err(|message| shape(&format!("{}.{key}", path()), message))?;
                }
                // An entry that names no mask would show what it was meant to hide.
                if !policy.mask_library.contains_key(&*entry.mask) {
                    let message = format!("there is no mask {:?} in mask_library", entry.mask);
                    return Err(shape(&format!("{}.mask", path()), &message));
                }
                // One made by hand may stand over one of the loop, and no two of a kind beside each other.
                if let Some((column, _)) = columns.replace((column, entry.is_auto())) {
                    return Err(shape(&path(), &format!("{column} is masked twice for this subject")));
                }
            }
        }
        Ok(policy)
    }

    /// The document in which the loop's entries of these subjects are these, and all else is as it was.
    ///
    /// An entry that stays keeps its place and whatever else somebody wrote into it; a new one goes to
    /// the end. Subjects that are not in the document are left out.
    #[must_use]
    pub fn with_masks(&self, wanted: &BTreeMap<Arc<str>, AutoMasks>) -> Self {
        let mut json = self.json.clone();
        for (subject, wanted) in wanted {
            let Some(entries) = json
                .get_mut("subjects")
                .and_then(|subjects| subjects.get_mut(&**subject))
                .and_then(Value::as_object_mut)
                .map(|subject| subject.entry("masks").or_insert_with(|| Value::Array(Vec::new())))
                .and_then(Value::as_array_mut)
            else {
                continue;
            };
            let mut missing: BTreeMap<&ColumnName, &Arc<str>> = wanted.iter().collect();
            entries.retain_mut(|entry| {
                let Some(column) = auto_column(entry) else { return true };
                // Taken out of what is missing: of two entries for one column the first stays.
                let Some(mask) = missing.remove(&column) else { return false };
                if let Some(entry) = entry.as_object_mut() {
                    entry.insert("mask".to_owned(), Value::String(mask.to_string()));
                }
                true
            });
            entries.extend(missing.into_iter().map(|(column, mask)| entry(column, mask)));
        }
        // The shape was checked before, and what was added is of it.
        let policy = Self::read(&json).unwrap_or_else(|_| self.policy.clone());
        Self { json, policy }
    }
}

/// The column of an entry of the loop; `None` for an entry of people.
fn auto_column(entry: &Value) -> Option<ColumnName> {
    let part = |key: &str| entry.get(key).and_then(Value::as_str).map(Arc::from);
    if entry.get("source").and_then(Value::as_str) != Some(AUTO) {
        return None;
    }
    Some(ColumnName {
        catalog: part("catalog")?,
        schema: part("schema")?,
        table: part("table")?,
        column: part("column")?,
    })
}

fn entry(column: &ColumnName, mask: &str) -> Value {
    let mut entry = Map::new();
    for (key, value) in [
        ("catalog", &*column.catalog),
        ("schema", &*column.schema),
        ("table", &*column.table),
        ("column", &*column.column),
        ("mask", mask),
        ("source", AUTO),
    ] {
        entry.insert(key.to_owned(), Value::String(value.to_owned()));
    }
    Value::Object(entry)
}

/// Can this be the name of anything?
///
/// # Errors
/// What is wrong with it.
pub fn named(name: &str) -> Result<(), &'static str> {
    match name {
        "" => Err("is empty"),
        name if name.len() > NAME_LIMIT => Err("is longer than 1024 bytes"),
        name if name.contains('\0') => Err("holds a NUL"),
        _ => Ok(()),
    }
}
