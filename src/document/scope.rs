//! Scopes: which tables a subject may read.
//!
//! Invariant: a pattern is a name, or a beginning of names with one `*` at its end; a `*` elsewhere is
//! refused when the document is read, so that nobody believes in a pattern that matches nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;

use serde::{Deserialize, Deserializer};

use super::named;

/// `name`, `beginning*` or `*`. Case counts, as it does in the source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    Name(Box<str>),
    /// Empty: every name.
    Prefix(Box<str>),
}

/// Tables by catalog, schema and name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Scope {
    pub catalog: Pattern,
    pub schema: Pattern,
    pub table: Pattern,
}

impl Pattern {
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Pattern::Name(known) => **known == *name,
            Pattern::Prefix(start) => name.starts_with(&**start),
        }
    }

    /// The entries of an ordered map whose names match, found without looking at the others.
    pub fn select<'p: 'm, 'm, K, V>(&'p self, map: &'m BTreeMap<K, V>) -> impl Iterator<Item = (&'m K, &'m V)>
    where
        K: std::borrow::Borrow<str> + Ord,
    {
        let (start, exact) = match self {
            Pattern::Name(name) => (name, true),
            Pattern::Prefix(start) => (start, false),
        };
        map.range::<str, _>((Bound::Included(&**start), Bound::Unbounded))
            .take_while(move |(name, _)| name.borrow().starts_with(&**start))
            .take_while(move |(name, _)| !exact || name.borrow().len() == start.len())
    }
}

impl Scope {
    pub fn covers(&self, catalog: &str, schema: &str, table: &str) -> bool {
        self.catalog.matches(catalog) && self.schema.matches(schema) && self.table.matches(table)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pattern::Name(name) => f.write_str(name),
            Pattern::Prefix(start) => write!(f, "{start}*"),
        }
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let text = String::deserialize(deserializer)?;
        named(&text).map_err(D::Error::custom)?;
        let pattern = match text.strip_suffix('*') {
            Some(start) => Pattern::Prefix(start.into()),
            None => Pattern::Name(text.into()),
        };
        let (Pattern::Name(text) | Pattern::Prefix(text)) = &pattern;
        if text.contains('*') {
            return Err(D::Error::custom("a `*` may stand at the end of a pattern only"));
        }
        Ok(pattern)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let cases: &[(&str, &str, bool)] = &[
            ("customers", "customers", true),
            ("customers", "customers2", false),
            ("customers", "Customers", false),
            ("cust*", "customers", true),
            ("cust*", "cust", true),
            ("cust*", "cus", false),
            ("*", "anything at all", true),
            ("é*", "été", true),
            ("é*", "étage", true),
        ];
        for (pattern, name, want) in cases {
            let read: Pattern = serde_json::from_value((*pattern).into()).unwrap();
            assert_eq!(read.to_string(), *pattern);
            assert_eq!(read.matches(name), *want, "{pattern} {name}");
            let map = BTreeMap::from([("a", ()), (*name, ()), ("zzz", ())]);
            let found = read.select(&map).any(|(found, ())| found == name);
            assert_eq!(found, *want, "{pattern} selects {name}");
        }
        for bad in ["", "a*b", "**", "*a"] {
            assert!(serde_json::from_value::<Pattern>(bad.into()).is_err(), "{bad}");
        }
    }
}
