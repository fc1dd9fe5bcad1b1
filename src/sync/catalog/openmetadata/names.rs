//! Names of a catalog: each kept once, and short where people read them.
//!
//! Invariant: what is said of a name is one line of bounded length, whatever the name holds.

use std::collections::HashSet;
use std::sync::Arc;

use crate::document::OneLine;

/// Characters of somebody else's text that are passed on.
const SHOWN: usize = 200;
/// Most names that are looked for again; those beyond it are kept as often as they come.
const SHARED: usize = 200_000;

/// Names of a reading. Columns have few names and many places.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: HashSet<Arc<str>>,
    /// Columns and labels so far.
    pub kept: usize,
}

impl Names {
    /// The name, in memory once.
    pub fn shared(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.known.get(name) {
            return Arc::clone(known);
        }
        let name: Arc<str> = name.into();
        if self.known.len() < SHARED {
            self.known.insert(Arc::clone(&name));
        }
        name
    }
}

/// Somebody else's text on one line and short.
pub(super) fn short(text: &str) -> String {
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

    #[test]
    fn a_name_is_kept_once() {
        let mut names = Names::default();
        let (one, two) = (names.shared("email"), names.shared("email"));
        assert!(Arc::ptr_eq(&one, &two));
    }
}
