//! What is known of functions beyond their volatility, each with its reason: `known.toml`, read.
//!
//! Invariant: "harmless" is said of functions in pg_catalog and of an extension's own in C only, where
//! nobody but a superuser can put another in their place; a list that cannot be read denies everything.

use std::collections::HashMap;

use serde::Deserialize;

const TEXT: &str = include_str!("known.toml");

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    harmless: Vec<Entry>,
    denied: Vec<Entry>,
    explained: Vec<Entry>,
}

/// Functions that share a reason.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// A name that ends in `*` stands for all that begin so.
    pub names: Vec<String>,
    pub reason: String,
    /// Whose members they are; pg_catalog's own without one.
    #[serde(default)]
    pub extension: Option<String>,
}

/// One list, for looking up.
#[derive(Debug, Default)]
struct List {
    exact: HashMap<String, Vec<(Option<String>, String)>>,
    prefixes: Vec<(String, Option<String>, String)>,
}

impl List {
    fn new(entries: Vec<Entry>) -> Self {
        let mut list = Self::default();
        for entry in entries {
            for name in entry.names {
                match name.strip_suffix('*') {
                    Some(prefix) => {
                        list.prefixes.push((
                            prefix.to_owned(),
                            entry.extension.clone(),
                            entry.reason.clone(),
                        ));
                    }
                    None => {
                        let reasons = list.exact.entry(name).or_default();
                        reasons.push((entry.extension.clone(), entry.reason.clone()));
                    }
                }
            }
        }
        list
    }

    fn all(&self, name: &str) -> impl Iterator<Item = (Option<&str>, &str)> {
        let exact = self.exact.get(name).into_iter().flatten();
        let exact = exact.map(|(extension, reason)| (extension.as_deref(), reason.as_str()));
        let prefixes = self.prefixes.iter().filter(move |(prefix, _, _)| name.starts_with(prefix));
        exact.chain(prefixes.map(|(_, extension, reason)| (extension.as_deref(), reason.as_str())))
    }
}

/// The lists of `known.toml`.
#[derive(Debug, Default)]
pub struct Known {
    harmless: List,
    denied: List,
    explained: List,
    unreadable: bool,
}

impl Known {
    /// The lists as they are in the binary. Should they not read, which a test rules out, everything is denied.
    pub fn embedded() -> Self {
        match toml::from_str::<Raw>(TEXT) {
            Ok(raw) => Self {
                harmless: List::new(raw.harmless),
                denied: List::new(raw.denied),
                explained: List::new(raw.explained),
                unreadable: false,
            },
            Err(_) => Self { unreadable: true, ..Self::default() },
        }
    }

    /// Why a volatile function is harmless all the same. `extension` is whose member in C it is.
    pub fn harmless(&self, schema: &str, name: &str, extension: Option<&str>) -> Option<&str> {
        self.harmless
            .all(name)
            .find(|(of, _)| match of {
                Some(of) => extension == Some(of),
                None => schema == "pg_catalog",
            })
            .map(|(_, reason)| reason)
    }

    /// Why a function of this name is refused whatever its volatility and schema.
    pub fn denied(&self, name: &str) -> Option<&str> {
        if self.unreadable {
            return Some("the list of known functions cannot be read");
        }
        self.denied.all(name).next().map(|(_, reason)| reason)
    }

    /// Why a volatile function of this name is never called, in other words than that.
    pub fn explained(&self, name: &str) -> Option<&str> {
        self.explained.all(name).next().map(|(_, reason)| reason)
    }
}

/// The entries of `known.toml` by list, for holding them against servers.
///
/// # Errors
/// What does not read.
pub fn entries() -> Result<[(&'static str, Vec<Entry>); 3], String> {
    let raw: Raw = toml::from_str(TEXT).map_err(|error| error.to_string())?;
    Ok([("harmless", raw.harmless), ("denied", raw.denied), ("explained", raw.explained)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_read_and_nothing_is_on_two() {
        let known = Known::embedded();
        let mut names = std::collections::HashSet::new();
        for (_, entries) in entries().unwrap() {
            for entry in entries {
                assert!(!entry.reason.is_empty() && !entry.names.is_empty());
                for name in entry.names {
                    assert!(names.insert((name.clone(), entry.extension.clone())), "{name}");
                }
            }
        }
        assert!(known.harmless("pg_catalog", "random", None).is_some());
        assert!(known.harmless("public", "random", None).is_none());
        assert!(known.harmless("public", "gen_salt", None).is_none());
        assert!(known.harmless("public", "gen_salt", Some("pgcrypto")).is_some());
        assert!(known.denied("txid_current").is_some() && known.denied("lower").is_none());
    }
}
