//! Several documents of YAML in one text, each with its line.
//!
//! Invariant: an error names a line of the file, not one of the document.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use super::engine::SourceFile;
use super::{Origin, Problem};

/// Most bytes of a file.
const FILE_BYTES: usize = 16 << 20;

/// Most brackets, and most dashes of one line, that are open at once; the time that YAML takes grows with their square.
const OPEN: usize = 100;

/// The line of a text in YAML or JSON that nests so deep that reading it would take without end. Brackets in texts and
/// comments count, too: nobody has a hundred that are not closed.
pub fn too_deep(text: &str) -> Option<u32> {
    let mut open = 0_usize;
    for (number, line) in text.lines().enumerate() {
        for byte in line.bytes() {
            match byte {
                b'[' | b'{' => open += 1,
                b']' | b'}' => open = open.saturating_sub(1),
                _ => {}
            }
            if open > OPEN {
                return u32::try_from(number + 1).ok();
            }
        }
        let signs = line.split_ascii_whitespace().take_while(|word| matches!(*word, "-" | "?" | ":")).count();
        if signs > OPEN {
            return u32::try_from(number + 1).ok();
        }
    }
    None
}

/// One document.
pub(super) struct Document<'t> {
    pub value: Value,
    text: &'t str,
    file: Arc<str>,
    first_line: u32,
    spoken: OnceCell<Spoken<'t>>,
}

/// Which lines of a document speak of what, counted from 0; gone through once, since a file may hold very many resources.
#[derive(Default)]
struct Spoken<'t> {
    first: usize,
    lines: HashMap<(&'t str, &'t str), usize>,
}

impl<'t> Spoken<'t> {
    fn of(text: &'t str) -> Self {
        let (mut spoken, mut begun) = (Self::default(), false);
        for (number, line) in text.lines().enumerate() {
            let line = line.trim_start();
            if !begun && !line.is_empty() && !line.starts_with('#') {
                (spoken.first, begun) = (number, true);
            }
            if let Some((key, rest)) = line.trim_start_matches("- ").split_once(':') {
                let rest = rest.split(" #").next().unwrap_or(rest);
                spoken.lines.entry((key, rest.trim().trim_matches(['"', '\'']))).or_insert(number);
            }
        }
        spoken
    }
}

impl Document<'_> {
    /// The first line of it that speaks of a key with this value, or else its own first line.
    pub fn at(&self, key: &str, value: &str) -> Origin {
        let spoken = self.spoken.get_or_init(|| Spoken::of(self.text));
        let offset = spoken.lines.get(&(key, value)).copied().unwrap_or(spoken.first);
        let offset = u32::try_from(offset).unwrap_or(0);
        Origin { file: self.file.clone(), line: self.first_line.saturating_add(offset) }
    }

    pub fn problem(&self, key: &str, value: &str, message: impl Into<String>) -> Problem {
        Problem { at: self.at(key, value), message: message.into() }
    }
}

/// The documents of a file; empty ones are left out.
pub(super) fn documents<'t>(file: &'t SourceFile, problems: &mut Vec<Problem>) -> Vec<Document<'t>> {
    let mut found = Vec::new();
    if file.text.len() > FILE_BYTES {
        let at = Origin { file: file.name.clone(), line: 1 };
        problems.push(Problem { at, message: format!("is longer than {FILE_BYTES} bytes") });
        return found;
    }
    if let Some(line) = too_deep(&file.text) {
        let at = Origin { file: file.name.clone(), line };
        problems.push(Problem { at, message: format!("nests more than {OPEN} deep") });
        return found;
    }
    for (first_line, text) in split(&file.text) {
        match serde_yaml_ng::from_str::<Value>(text) {
            Ok(Value::Null) => {}
            Ok(value) => found.push(Document {
                value,
                text,
                file: file.name.clone(),
                first_line,
                spoken: OnceCell::new(),
            }),
            Err(error) => {
                let offset = error.location().map_or(0, |location| location.line().saturating_sub(1));
                let line = first_line.saturating_add(u32::try_from(offset).unwrap_or(0));
                let message = error.to_string();
                let message = message.split(" at line ").next().unwrap_or(&message);
                let at = Origin { file: file.name.clone(), line };
                problems.push(Problem { at, message: format!("is not YAML: {message}") });
            }
        }
    }
    found
}

/// Texts between lines that begin with `---`, each with its first line.
fn split(text: &str) -> Vec<(u32, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut first, mut at, mut line) = (0, 1u32, 0, 1u32);
    for whole in text.split_inclusive('\n') {
        let trimmed = whole.trim_end();
        if trimmed == "---" || trimmed.starts_with("--- ") {
            if let Some(part) = text.get(start..at) {
                parts.push((first, part));
            }
            start = at + whole.len();
            first = line.saturating_add(1);
        }
        at += whole.len();
        line = line.saturating_add(1);
    }
    if let Some(part) = text.get(start..) {
        parts.push((first, part));
    }
    parts
}
