//! The catalog as a YAML file that people edit and commit.
//!
//! Invariant: what a reader of the file could take for a tag is one, or an error that names its place.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_yaml_ng::Value;

use super::{Catalog, CatalogError, Column, Hint, Label, LabelState, Picture, Table, short};

/// Longest file, in bytes.
const FILE_LIMIT: usize = 16 << 20;

/// Most brackets that are open at once; the time that YAML takes grows with their square.
const OPEN_LIMIT: usize = 100;

/// Why a file is no picture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileCatalogError {
    #[error("is longer than {FILE_LIMIT} bytes")]
    TooLong,
    #[error("opens more than {OPEN_LIMIT} brackets that it does not close")]
    TooDeep,
    #[error("is not valid YAML: {0}")]
    Yaml(String),
    /// Where, such as `catalogs.climscore.public.customers.email`, and what.
    #[error("is not valid at {path}: {message}")]
    Shape { path: String, message: String },
}

type Result<T> = std::result::Result<T, FileCatalogError>;

/// A catalog in a file, read anew for each run.
#[derive(Clone, Debug)]
pub struct FileCatalog {
    path: PathBuf,
}

impl FileCatalog {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }
}

impl Catalog for FileCatalog {
    async fn read(&self, before: usize) -> std::result::Result<Picture, CatalogError> {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || picture(&path, before)).await;
        read.unwrap_or_else(|_| Err(CatalogError::Unreachable("the file could not be read".to_owned())))
    }

    /// A file is read in no time, so a hint is worth a whole reading.
    async fn refresh(&self, last: &Picture, _: &Hint) -> std::result::Result<Picture, CatalogError> {
        self.read(last.tables.len()).await
    }
}

fn picture(path: &Path, before: usize) -> std::result::Result<Picture, CatalogError> {
    let shown = path.display();
    let unreachable = |error: std::io::Error| CatalogError::Unreachable(format!("{shown}: {error}"));
    let metadata = std::fs::metadata(path).map_err(unreachable)?;
    // A pipe would hang.
    if !metadata.is_file() {
        return Err(CatalogError::Unreachable(format!("{shown} is not a regular file")));
    }
    let mut text = String::new();
    let limit = FILE_LIMIT as u64 + 1;
    File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text)).map_err(unreachable)?;
    let mut picture = parse(&text).map_err(|error| CatalogError::NotWhole(format!("{shown} {error}")))?;
    if picture.tables.is_empty() && before > 0 {
        return Err(CatalogError::NotWhole(format!(
            "{shown} names no table at all where there were {before}; to take every mask away, leave the tables without tags"
        )));
    }
    // Which of its tables changed then, nobody knows.
    let changed_at = metadata.modified().ok();
    for table in &mut picture.tables {
        table.changed_at = changed_at;
    }
    Ok(picture)
}

fn wrong<T>(path: &str, message: impl Into<String>) -> Result<T> {
    Err(FileCatalogError::Shape { path: short(path), message: short(&message.into()) })
}

/// Reads `catalogs: {CATALOG: {SCHEMA: {TABLE: {COLUMN: TAGS}}}}` and `disabled: [CLASSIFICATION]`.
///
/// TAGS is one tag, a list of tags, nothing, or `{tags: …, suggested: …, columns: {…}}`.
///
/// # Errors
/// The text is too long, no YAML, or has another shape; the error names the place.
pub fn parse(text: &str) -> Result<Picture> {
    if text.len() > FILE_LIMIT {
        return Err(FileCatalogError::TooLong);
    }
    // Also those in quotes and comments: a few are nobody's nesting, and nobody has a hundred.
    let mut open = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'[' | b'{' => open += 1,
            b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        if open > OPEN_LIMIT {
            return Err(FileCatalogError::TooDeep);
        }
    }
    let yaml: Value =
        serde_yaml_ng::from_str(text).map_err(|error| FileCatalogError::Yaml(short(&error.to_string())))?;
    let mut picture = Picture::default();
    for (key, path, value) in entries(&yaml, "")? {
        match key {
            "catalogs" => {
                for (catalog, path, schemas) in entries(value, &path)? {
                    for (schema, path, tables) in entries(schemas, &path)? {
                        for (name, path, columns) in entries(tables, &path)? {
                            picture.tables.push(Table {
                                catalog: catalog.into(),
                                schema: schema.into(),
                                name: name.into(),
                                columns: self::columns(columns, &path)?.into(),
                                changed_at: None,
                            });
                        }
                    }
                }
            }
            "disabled" => picture.disabled = tags(value, &path)?.into_iter().collect(),
            _ => return wrong(&path, "is unknown; there are catalogs and disabled"),
        }
    }
    if !matches!(yaml.get("catalogs"), Some(Value::Mapping(_))) {
        return wrong("catalogs", "is missing");
    }
    Ok(picture)
}

/// The entries of a mapping, each with its path.
fn entries<'v>(value: &'v Value, path: &str) -> Result<Vec<(&'v str, String, &'v Value)>> {
    let map = match value {
        Value::Mapping(map) => map,
        Value::Null => return Ok(Vec::new()),
        _ => return wrong(path, "must be a mapping of names"),
    };
    map.iter()
        .map(|(key, value)| match key {
            Value::String(key) if !key.is_empty() => {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                Ok((key.as_str(), path, value))
            }
            _ => wrong(path, "a name must be text; write it in quotes"),
        })
        .collect()
}

fn columns(value: &Value, path: &str) -> Result<Vec<Column>> {
    entries(value, path)?.into_iter().map(|(name, path, value)| column(name, &path, value)).collect()
}

fn column(name: &str, path: &str, value: &Value) -> Result<Column> {
    let mut column = Column { name: name.into(), labels: Vec::new(), children: Vec::new() };
    let mut add = |tags: Vec<Arc<str>>, state| {
        column.labels.extend(tags.into_iter().map(|tag| Label { tag, state }));
    };
    if !matches!(value, Value::Mapping(_)) {
        add(tags(value, path)?, LabelState::Confirmed);
        return Ok(column);
    }
    for (key, path, value) in entries(value, path)? {
        match key {
            "tags" => add(tags(value, &path)?, LabelState::Confirmed),
            "suggested" => add(tags(value, &path)?, LabelState::Suggested),
            "columns" => {}
            _ => return wrong(&path, "is unknown; there are tags, suggested and columns"),
        }
    }
    if let Some(children) = value.get("columns") {
        column.children = columns(children, &format!("{path}.columns"))?;
    }
    Ok(column)
}

fn tags(value: &Value, path: &str) -> Result<Vec<Arc<str>>> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(tag) if !tag.is_empty() => Ok(vec![tag.as_str().into()]),
        Value::Sequence(items) => {
            let items = items.iter().map(|item| match item {
                Value::String(tag) if !tag.is_empty() => Ok(tag.as_str().into()),
                _ => wrong(path, "a tag must be text"),
            });
            items.collect()
        }
        _ => wrong(path, "must be a tag or a list of tags"),
    }
}
