//! Names of one reading, each kept once.
//!
//! Invariant: whatever is remembered to be found again is bounded.

use std::collections::HashSet;
use std::sync::Arc;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_kept_once() {
        let mut names = Names::default();
        let (one, two) = (names.shared("email"), names.shared("email"));
        assert!(Arc::ptr_eq(&one, &two));
    }
}
