//! Writes down what was refused although it is a read, grouped by the refusal.
//!
//! Invariant: the same findings give the same file.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// A read that the guard refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub file: String,
    pub line: usize,
    pub text: String,
    /// Class and message of the refusal.
    pub class: String,
    pub message: String,
    pub detail: String,
    /// Byte offset of the token that decided.
    pub offset: Option<usize>,
}

/// The findings as text: the largest group first, each entry with its place and its statement.
#[must_use]
pub fn grouped(refused: &[Refused]) -> String {
    let mut groups: BTreeMap<String, Vec<&Refused>> = BTreeMap::new();
    for one in refused {
        groups.entry(format!("{}: {}", one.class, general(&one.message))).or_default().push(one);
    }
    let mut groups: Vec<_> = groups.into_iter().collect();
    groups.sort_by_key(|(message, group)| (usize::MAX - group.len(), message.clone()));
    let mut text = String::new();
    for (message, group) in &groups {
        let _ = writeln!(text, "{:6}  {message}", group.len());
    }
    for (message, group) in groups {
        let _ = writeln!(text, "\n=== {} × {message}", group.len());
        for one in group {
            let at = one.offset.filter(|at| one.text.is_char_boundary(*at)).map_or(String::new(), |at| {
                let near: String = one.text[at.min(one.text.len())..].chars().take(24).collect();
                format!("  << at: {}", near.replace(['\n', '\r'], " "))
            });
            let statement = one.text.lines().map(str::trim).collect::<Vec<_>>().join(" ");
            let _ = writeln!(
                text,
                "{}:{}: {} {}{at}\n    {statement}",
                one.file, one.line, one.message, one.detail
            );
        }
    }
    text
}

/// A message without the names in it.
fn general(message: &str) -> String {
    match message.split_once("found:") {
        Some((before, _)) => format!("{before}found: …"),
        None => message.to_owned(),
    }
}
