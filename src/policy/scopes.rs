//! Scopes of one subject as the data hold them: by pattern, for look-ups instead of scans.
//!
//! Invariant: this and `trino/subject.rego` fold names and answer alike. Names are folded to lower case, as Trino folds
//! them before it asks; PostgreSQL's own schemas (`pg_…`) are opened by a pattern that begins so and by no other.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::document::{Pattern, Scope};

/// Tells that a key is there; OPA looks keys up faster in objects than in lists.
pub(super) type Keys = BTreeMap<String, bool>;

#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Scopes {
    /// Catalog, schema, table: patterns, a `*` at the end where there was one.
    scopes: BTreeMap<String, BTreeMap<String, Keys>>,
    schemas: BTreeMap<String, Keys>,
    catalogs: Keys,
    stars: Stars,
}

/// What stands before the stars, at each level.
#[derive(Clone, Debug, Default, Serialize)]
struct Stars {
    catalog: BTreeSet<String>,
    schema: BTreeSet<String>,
    table: BTreeSet<String>,
}

impl Scopes {
    pub(super) fn new(scopes: &[Scope]) -> Self {
        let mut built = Self::default();
        for scope in scopes {
            let catalog = key(&scope.catalog, &mut built.stars.catalog);
            let schema = key(&scope.schema, &mut built.stars.schema);
            let table = key(&scope.table, &mut built.stars.table);
            built.catalogs.insert(catalog.clone(), true);
            built.schemas.entry(catalog.clone()).or_default().insert(schema.clone(), true);
            let schemas = built.scopes.entry(catalog).or_default();
            schemas.entry(schema).or_default().insert(table, true);
        }
        built
    }

    pub(super) fn opens_catalog(&self, catalog: &str) -> bool {
        fitting(&self.stars.catalog, catalog).any(|first| self.catalogs.contains_key(&first))
    }

    /// Of folded names.
    pub(super) fn opens_table(&self, catalog: &str, schema: &str, table: &str) -> bool {
        let own = schema.starts_with("pg_");
        let first = fitting(&self.stars.catalog, catalog).filter_map(|key| self.scopes.get(&key));
        let second = first.flat_map(|level| {
            fitting(&self.stars.schema, schema)
                .filter(move |key| !own || key.starts_with("pg_"))
                .filter_map(|key| level.get(&key))
        });
        second
            .into_iter()
            .any(|level| fitting(&self.stars.table, table).any(|third| level.contains_key(&third)))
    }
}

/// In lower case, with one form of what Java, Rust and Go do not fold alike: a sigma at a word's end, an I with a dot.
pub(super) fn folded(name: &str) -> String {
    name.to_lowercase().replace('ς', "σ").replace("i\u{307}", "i")
}

fn key(pattern: &Pattern, stars: &mut BTreeSet<String>) -> String {
    match pattern {
        Pattern::Name(name) => folded(name),
        Pattern::Prefix(start) => {
            let start = folded(start);
            let key = format!("{start}*");
            stars.insert(start);
            key
        }
    }
}

fn fitting<'s>(stars: &'s BTreeSet<String>, name: &'s str) -> impl Iterator<Item = String> + 's {
    let starting = stars.iter().filter(|start| name.starts_with(start.as_str()));
    std::iter::once(name.to_owned()).chain(starting.map(|start| format!("{start}*")))
}
