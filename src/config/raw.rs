//! A TOML text as people write it, walked key by key.
//!
//! Invariant: whatever is wrong is noted with its key and line and the walk goes on, so that one
//! run shows every error; a key that nobody asked for is an error; no value is ever quoted whole
//! into a message unless it is a word out of a fixed set or a name.

use std::cell::RefCell;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Longest value that a message quotes, in characters.
const QUOTE_LIMIT: usize = 80;

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Dotted, such as `source[0].hosts`; empty when the text is no TOML.
    pub key: String,
    /// Counted from one.
    pub line: Option<usize>,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)
    }
}

/// Where a value stands.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub key: String,
    pub line: usize,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Found<T> {
    pub value: T,
    pub place: Place,
}

impl<T> Found<T> {
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Found<U> {
        Found { value: f(self.value), place: self.place }
    }
}

/// The text, for line numbers, and what was found wrong with it.
pub(super) struct Reader<'t> {
    text: &'t str,
    problems: RefCell<Vec<Problem>>,
}

impl<'t> Reader<'t> {
    pub fn new(text: &'t str) -> Self {
        Self { text, problems: RefCell::new(Vec::new()) }
    }

    pub fn line(&self, offset: usize) -> usize {
        1 + self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
    }

    pub fn problem(&self, place: &Place, message: impl Into<String>) {
        self.problems.borrow_mut().push(Problem {
            key: place.key.clone(),
            line: Some(place.line),
            message: message.into(),
        });
    }

    pub fn failed(&self) -> bool {
        !self.problems.borrow().is_empty()
    }

    /// What is wrong, in the order of the text.
    pub fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| problem.line);
        problems
    }
}

/// One table of the text.
pub(super) struct Section<'r, 't> {
    pub reader: &'r Reader<'t>,
    pub place: Place,
    table: &'r DeTable<'t>,
    asked: Vec<&'static str>,
}

impl<'r, 't> Section<'r, 't> {
    pub fn root(reader: &'r Reader<'t>, table: &'r DeTable<'t>) -> Self {
        Self::new(reader, Place { key: String::new(), line: 1 }, table)
    }

    /// A section of this one that was left out: every default, and nothing in it.
    pub fn or_empty(&mut self, key: &'static str, empty: &'r DeTable<'t>) -> Option<Section<'r, 't>> {
        if self.has(key) {
            self.section(key)
        } else {
            Some(Self::new(self.reader, self.place_of(key), empty))
        }
    }

    fn new(reader: &'r Reader<'t>, place: Place, table: &'r DeTable<'t>) -> Self {
        Self { reader, place, table, asked: Vec::new() }
    }

    /// The place of a key, or of the section itself when the key is absent.
    pub fn place_of(&self, key: &str) -> Place {
        let line = match self.table.get_key_value(key) {
            Some((name, _)) => self.reader.line(name.span().start),
            None => self.place.line,
        };
        Place { key: self.path(key), line }
    }

    pub fn problem(&self, key: &str, message: impl Into<String>) {
        self.reader.problem(&self.place_of(key), message);
    }

    pub fn missing(&self, key: &str, message: &str) {
        self.problem(key, format!("is missing: {message}"));
    }

    pub fn has(&mut self, key: &'static str) -> bool {
        self.asked.push(key);
        self.table.contains_key(key)
    }

    fn path(&self, key: &str) -> String {
        if self.place.key.is_empty() { key.to_owned() } else { format!("{}.{key}", self.place.key) }
    }

    fn value(&mut self, key: &'static str) -> Option<(&'r Spanned<DeValue<'t>>, Place)> {
        self.asked.push(key);
        let value = self.table.get(key)?;
        Some((value, self.place_of(key)))
    }

    /// `read` answers with what would have been right.
    fn read<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&DeValue<'t>) -> Result<T, String>,
    ) -> Option<Found<T>> {
        let (value, place) = self.value(key)?;
        match read(value.get_ref()) {
            Ok(value) => Some(Found { value, place }),
            Err(message) => {
                self.reader.problem(&place, message);
                None
            }
        }
    }

    pub fn text(&mut self, key: &'static str) -> Option<Found<String>> {
        self.read(key, text)
    }

    pub fn boolean(&mut self, key: &'static str) -> Option<Found<bool>> {
        self.read(key, |value| match value {
            DeValue::Boolean(value) => Ok(*value),
            other => Err(format!("must be true or false, not {}", kind(other))),
        })
    }

    pub fn boolean_or(&mut self, key: &'static str, default: bool) -> bool {
        self.boolean(key).map_or(default, |found| found.value)
    }

    /// A whole number between the two, both included.
    pub fn count(&mut self, key: &'static str, default: usize, least: usize, most: usize) -> usize {
        self.read(key, |value| {
            let DeValue::Integer(digits) = value else {
                return Err(format!("must be a whole number, not {}", kind(value)));
            };
            usize::from_str_radix(digits.as_str(), digits.radix())
                .ok()
                .filter(|count| (least..=most).contains(count))
                .ok_or_else(|| format!("must be between {least} and {most}"))
        })
        .map_or(default, |found| found.value)
    }

    /// A part of a whole, from 0 to 1.
    pub fn share(&mut self, key: &'static str, default: f64) -> f64 {
        self.read(key, |value| {
            let number = match value {
                DeValue::Float(number) => number.as_str().parse::<f64>().ok(),
                DeValue::Integer(digits) => digits.as_str().parse::<f64>().ok(),
                other => return Err(format!("must be a number from 0 to 1, not {}", kind(other))),
            };
            number
                .filter(|number| (0.0..=1.0).contains(number))
                .ok_or_else(|| "must be a number from 0 to 1".to_owned())
        })
        .map_or(default, |found| found.value)
    }

    /// A time such as `"30s"` or `"10min"`.
    pub fn duration(
        &mut self,
        key: &'static str,
        default: Duration,
        least: Duration,
        most: Duration,
    ) -> Duration {
        self.read(key, |value| {
            let DeValue::String(text) = value else {
                return Err(format!(
                    "must be a time as text, such as \"30s\" or \"10min\", not {}",
                    kind(value)
                ));
            };
            let time = humantime::parse_duration(text).map_err(|_| {
                format!(
                    "{} is not a time; write a number and a unit, such as \"500ms\", \"30s\" or \"10min\"",
                    quoted(text)
                )
            })?;
            if (least..=most).contains(&time) {
                Ok(time)
            } else {
                Err(format!(
                    "must be between {} and {}",
                    humantime::format_duration(least),
                    humantime::format_duration(most)
                ))
            }
        })
        .map_or(default, |found| found.value)
    }

    /// A size such as `"64KiB"`, in bytes.
    pub fn size(&mut self, key: &'static str, default: usize, least: usize, most: usize) -> Found<usize> {
        let place = self.place_of(key);
        self.read(key, |value| {
            let DeValue::String(text) = value else {
                return Err(format!("must be a size as text, such as \"64KiB\", not {}", kind(value)));
            };
            let size = parse_size(text).ok_or_else(|| {
                format!("{} is not a size; write a whole number and one of B, KiB, MiB, GiB", quoted(text))
            })?;
            if (least..=most).contains(&size) {
                Ok(size)
            } else {
                Err(format!("must be between {} and {}", size_text(least), size_text(most)))
            }
        })
        .unwrap_or(Found { value: default, place })
    }

    /// A path, taken relative to `base`.
    pub fn path_of_file(&mut self, key: &'static str, base: &Path) -> Option<Found<PathBuf>> {
        let found = self.read(key, |value| {
            let path = text(value)?;
            if path.is_empty() {
                return Err("must not be empty".to_owned());
            }
            if path.contains('\0') {
                return Err("must not hold a NUL character".to_owned());
            }
            Ok(path)
        })?;
        Some(found.map(|path| base.join(path)))
    }

    /// One word out of a fixed set.
    pub fn word<T: Copy>(&mut self, key: &'static str, words: &[(&str, T)]) -> Option<Found<T>> {
        self.read(key, |value| {
            let given = text(value)?;
            match words.iter().find(|(word, _)| *word == given) {
                Some((_, meaning)) => Ok(*meaning),
                None => {
                    let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
                    Err(format!(
                        "{} is not one of {}{}",
                        quoted(&given),
                        known.join(", "),
                        did_you_mean(&given, &known)
                    ))
                }
            }
        })
    }

    /// A list of texts; each with its own key (`key[2]`) and line.
    pub fn texts(&mut self, key: &'static str) -> Option<Found<Vec<Found<String>>>> {
        let (value, place) = self.value(key)?;
        let DeValue::Array(items) = value.get_ref() else {
            self.reader.problem(&place, format!("must be a list of texts, not {}", kind(value.get_ref())));
            return None;
        };
        let mut found = Vec::with_capacity(items.len());
        let mut complete = true;
        for (index, item) in items.iter().enumerate() {
            let place =
                Place { key: format!("{}[{index}]", place.key), line: self.reader.line(item.span().start) };
            match text(item.get_ref()) {
                Ok(value) => found.push(Found { value, place }),
                Err(message) => {
                    self.reader.problem(&place, message);
                    complete = false;
                }
            }
        }
        complete.then_some(Found { value: found, place })
    }

    /// A table of texts under names that are the operator's; each text with its key and line.
    pub fn texts_by_name(&mut self, key: &'static str) -> Option<Vec<(String, Found<String>)>> {
        let (value, place) = self.value(key)?;
        let DeValue::Table(table) = value.get_ref() else {
            self.reader.problem(&place, format!("must be a table of texts, not {}", kind(value.get_ref())));
            return None;
        };
        let mut found = Vec::with_capacity(table.len());
        for (name, value) in table {
            let name_text: &str = name.get_ref();
            let place = Place {
                key: format!("{}.{}", place.key, quoted(name_text)),
                line: self.reader.line(name.span().start),
            };
            match text(value.get_ref()) {
                Ok(value) => found.push((name_text.to_owned(), Found { value, place })),
                Err(message) => self.reader.problem(&place, message),
            }
        }
        Some(found)
    }

    /// A table of texts, numbers, true and false under names that are the operator's.
    pub fn scalars_by_name(&mut self, key: &'static str) -> Option<Vec<(String, Found<serde_json::Value>)>> {
        let (value, place) = self.value(key)?;
        let DeValue::Table(table) = value.get_ref() else {
            self.reader.problem(&place, format!("must be a table, not {}", kind(value.get_ref())));
            return None;
        };
        let mut found = Vec::with_capacity(table.len());
        for (name, value) in table {
            let name_text: &str = name.get_ref();
            let place = Place {
                key: format!("{}.{}", place.key, quoted(name_text)),
                line: self.reader.line(name.span().start),
            };
            match scalar(value.get_ref()) {
                Ok(value) => found.push((name_text.to_owned(), Found { value, place })),
                Err(message) => self.reader.problem(&place, message),
            }
        }
        Some(found)
    }

    /// A table below this one.
    pub fn section(&mut self, key: &'static str) -> Option<Section<'r, 't>> {
        let (value, place) = self.value(key)?;
        match value.get_ref() {
            DeValue::Table(table) => Some(Section::new(self.reader, place, table)),
            other => {
                self.reader.problem(&place, format!("must be a table, not {}", kind(other)));
                None
            }
        }
    }

    /// A list of tables, be it `[[key]]` or `key = [{ … }]`.
    pub fn sections(&mut self, key: &'static str) -> Vec<Section<'r, 't>> {
        let Some((value, place)) = self.value(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            self.reader.problem(
                &place,
                match value.get_ref() {
                    DeValue::Table(_) if self.place.key.is_empty() => {
                        format!("must be a list of tables: write [[{key}]]")
                    }
                    other => format!("must be a list of tables, not {}", kind(other)),
                },
            );
            return Vec::new();
        };
        let mut sections = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let place =
                Place { key: format!("{}[{index}]", place.key), line: self.reader.line(item.span().start) };
            match item.get_ref() {
                DeValue::Table(table) => sections.push(Section::new(self.reader, place, table)),
                other => self.reader.problem(&place, format!("must be a table, not {}", kind(other))),
            }
        }
        sections
    }

    pub fn is_table(&self, key: &str) -> bool {
        matches!(self.table.get(key).map(Spanned::get_ref), Some(DeValue::Table(_)))
    }

    /// A key that has a meaning in the design and none in this version.
    pub fn unsupported(&mut self, key: &'static str) {
        if self.has(key) {
            self.problem(key, "is not supported by this version");
        }
    }

    /// Every key that nobody asked for is an error.
    pub fn finish(self) {
        for name in self.table.keys() {
            let key: &str = name.get_ref();
            if !self.asked.contains(&key) {
                self.reader.problem(
                    &Place { key: self.path(&one_line(key)), line: self.reader.line(name.span().start) },
                    format!("is not a known key{}", did_you_mean(key, &self.asked)),
                );
            }
        }
    }
}

fn text(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.clone().into_owned()),
        other => Err(format!("must be a text in quotes, not {}", kind(other))),
    }
}

fn scalar(value: &DeValue<'_>) -> Result<serde_json::Value, String> {
    match value {
        DeValue::String(text) => Ok(serde_json::Value::from(text.as_ref())),
        DeValue::Boolean(truth) => Ok(serde_json::Value::from(*truth)),
        DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix())
            .map(serde_json::Value::from)
            .map_err(|_| "must be a whole number of at most 64 bits".to_owned()),
        DeValue::Float(number) => number
            .as_str()
            .parse::<f64>()
            .ok()
            .and_then(serde_json::Number::from_f64)
            .map(serde_json::Value::Number)
            .ok_or_else(|| "must be a finite number".to_owned()),
        other => Err(format!("must be a text, a number, true or false, not {}", kind(other))),
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// Quoted for a message: on one line and of bounded length.
pub(super) fn quoted(text: &str) -> String {
    format!("\"{}\"", one_line(text))
}

fn one_line(text: &str) -> String {
    let mut short: String = text.chars().take(QUOTE_LIMIT).flat_map(char::escape_debug).collect();
    if text.chars().nth(QUOTE_LIMIT).is_some() {
        short.push('…');
    }
    short
}

fn did_you_mean(given: &str, known: &[&str]) -> String {
    // Comparing costs the product of the lengths; nobody means a known word with a page of text.
    if given.len() > 64 {
        return String::new();
    }
    let nearest = known
        .iter()
        .map(|word| (strsim::jaro_winkler(given, word), word))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|(one, _), (other, _)| one.total_cmp(other));
    match nearest {
        Some((_, word)) => format!("; did you mean {word}?"),
        None => String::new(),
    }
}

fn parse_size(text: &str) -> Option<usize> {
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: usize = match unit.trim_start() {
        "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(unit)
}

fn size_text(bytes: usize) -> String {
    for (unit, name) in [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    format!("{bytes}B")
}
