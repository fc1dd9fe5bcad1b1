//! What the policy document means, spelled out without regard for speed.
//!
//! Invariant: this knows nothing of the data's layout and of Rego; it reads the document entry by entry.

use std::collections::BTreeSet;

use fedgate::document::{Pattern, Policy, Subject, SubjectKind};

pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
}

pub struct Naive<'p> {
    pub policy: &'p Policy,
    pub admins: &'p BTreeSet<std::sync::Arc<str>>,
}

fn fits(pattern: &Pattern, name: &str) -> bool {
    match pattern {
        Pattern::Name(known) => known.to_lowercase() == name,
        Pattern::Prefix(start) => name.starts_with(&start.to_lowercase()),
    }
}

fn opens(subject: &Subject, [catalog, schema, table]: [&str; 3]) -> bool {
    subject.scopes.iter().any(|scope| {
        let of_postgres = schema.starts_with("pg_");
        let names_it = match &scope.schema {
            Pattern::Name(_) => true,
            Pattern::Prefix(start) => start.to_lowercase().starts_with("pg_"),
        };
        fits(&scope.catalog, catalog)
            && fits(&scope.schema, schema)
            && fits(&scope.table, table)
            && (!of_postgres || names_it)
    })
}

fn is_bare(subject: &Subject) -> bool {
    subject.masks.is_empty() && subject.row_filters.is_empty()
}

impl<'p> Naive<'p> {
    fn matched(&self, identity: &Identity) -> Vec<(&'p str, &'p Subject)> {
        let is_one = |name: &str, subject: &Subject| match subject.kind {
            SubjectKind::User => identity.user == name,
            SubjectKind::Role | SubjectKind::Group => identity.groups.iter().any(|group| group == name),
        };
        let subjects = self.policy.subjects.iter().map(|(name, subject)| (&**name, subject));
        subjects.filter(|(name, subject)| is_one(name, subject)).collect()
    }

    fn rank(&self, mask: &str) -> (u32, &'p str) {
        let (name, found) = self.policy.mask_library.get_key_value(mask).unwrap();
        (found.strength, name)
    }

    /// Strongest of the masks that entries of this subject name for the column.
    fn entry(&self, subject: &'p Subject, at: [&str; 4], automatic: bool) -> Option<(u32, &'p str)> {
        subject
            .masks
            .iter()
            .filter(|entry| entry.is_auto() == automatic)
            .filter(|entry| {
                [&entry.catalog, &entry.schema, &entry.table, &entry.column]
                    .into_iter()
                    .zip(at)
                    .all(|(name, at)| name.to_lowercase() == at)
            })
            .map(|entry| self.rank(&entry.mask))
            .max()
    }

    fn own(&self, subject: &'p Subject, at: [&str; 4]) -> Option<(u32, &'p str)> {
        self.entry(subject, at, false).or_else(|| self.entry(subject, at, true))
    }

    fn tagged(&self, at: [&str; 4]) -> Option<(u32, &'p str)> {
        self.policy.subjects.values().filter_map(|subject| self.entry(subject, at, true)).max()
    }

    fn any(&self, at: [&str; 4]) -> Option<(u32, &'p str)> {
        let by_hand =
            self.policy.subjects.values().filter_map(|subject| self.entry(subject, at, false)).max();
        by_hand.max(self.tagged(at))
    }

    fn for_subject(&self, subject: &'p Subject, at: [&str; 4]) -> Option<(u32, &'p str)> {
        let silent = || if is_bare(subject) { self.any(at) } else { self.tagged(at) };
        self.own(subject, at).or_else(silent)
    }

    /// The name of the mask for a column; `None` where nobody says anything.
    pub fn mask(&self, identity: &Identity, at: [&str; 4]) -> Option<&'p str> {
        let [catalog, schema, table, _] = at;
        let matched = self.matched(identity);
        let opening: Vec<_> =
            matched.iter().filter(|(_, subject)| opens(subject, [catalog, schema, table])).collect();
        let exempt: Vec<_> = opening.iter().filter(|(name, _)| self.admins.contains(*name)).collect();
        let found = if !exempt.is_empty() {
            exempt.iter().filter_map(|(_, subject)| self.own(subject, at)).max()
        } else {
            let own = matched.iter().filter_map(|(_, subject)| self.own(subject, at)).max();
            let here = opening.iter().filter_map(|(_, subject)| self.for_subject(subject, at)).max();
            let nobody = if opening.is_empty() { self.any(at) } else { None };
            own.max(here).max(nobody)
        };
        found.map(|(_, name)| name)
    }

    pub fn filters(&self, identity: &Identity, table: [&str; 3]) -> BTreeSet<String> {
        let of = |subject: &'p Subject| {
            let here = move |at: &[&str; 3]| {
                subject
                    .row_filters
                    .iter()
                    .filter(|filter| {
                        [&filter.catalog, &filter.schema, &filter.table]
                            .into_iter()
                            .zip(at)
                            .all(|(name, at)| name.to_lowercase() == *at)
                    })
                    .map(|filter| filter.expression.trino.clone().unwrap_or_else(|| "false".to_owned()))
                    .collect::<Vec<_>>()
            };
            here(&table)
        };
        let all = || self.policy.subjects.values().flat_map(of).collect::<BTreeSet<_>>();
        let matched = self.matched(identity);
        let opening: Vec<_> = matched.iter().filter(|(_, subject)| opens(subject, table)).collect();
        let exempt: Vec<_> = opening.iter().filter(|(name, _)| self.admins.contains(*name)).collect();
        if !exempt.is_empty() {
            return exempt.into_iter().flat_map(|(_, subject)| of(subject)).collect();
        }
        if opening.is_empty() || opening.iter().any(|(_, subject)| is_bare(subject)) {
            return all();
        }
        matched.into_iter().flat_map(|(_, subject)| of(subject)).collect()
    }

    fn source(&self, catalog: &str) -> impl Iterator<Item = &'p fedgate::document::SourceEntry> {
        self.policy.sources.values().filter(move |source| source.catalog.to_lowercase() == catalog)
    }

    pub fn reads(&self, identity: &Identity, table: [&str; 3]) -> bool {
        self.source(table[0]).next().is_some()
            && self.matched(identity).iter().any(|(_, subject)| opens(subject, table))
    }

    /// Does the write guard refuse a write to a catalog?
    pub fn guards(&self, identity: &Identity, catalog: &str) -> bool {
        let is_source = self.source(catalog).next().is_some();
        let open = self.source(catalog).all(|source| !source.read_only);
        let listed = self.source(catalog).all(|source| source.write_allow_list.contains(&identity.user));
        is_source && !open && !listed
    }

    /// Every column that any entry names, folded.
    fn columns(&self, catalog: &str) -> BTreeSet<[String; 4]> {
        let entries = self.policy.subjects.values().flat_map(|subject| &subject.masks);
        entries
            .map(|entry| {
                [&entry.catalog, &entry.schema, &entry.table, &entry.column].map(|name| name.to_lowercase())
            })
            .filter(|at| at[0] == catalog)
            .collect()
    }

    /// Is raw reading of a catalog refused by the guard?
    pub fn veils(&self, identity: &Identity, catalog: &str) -> bool {
        let entries = self.policy.subjects.values().flat_map(|subject| {
            let masks = subject.masks.iter().map(|entry| entry.catalog.to_lowercase());
            masks.chain(subject.row_filters.iter().map(|filter| filter.catalog.to_lowercase()))
        });
        if self.source(catalog).next().is_none() && !entries.into_iter().any(|name| name == catalog) {
            return false;
        }
        let columns = self.columns(catalog);
        let hides = |mask: Option<(u32, &str)>| mask.is_some_and(|(_, name)| name != "identity");
        let filtered = |subject: &Subject| {
            subject.row_filters.iter().any(|filter| filter.catalog.to_lowercase() == catalog)
        };
        let own = |subject: &'p Subject| {
            filtered(subject)
                || columns.iter().any(|at| hides(self.own(subject, at.each_ref().map(String::as_str))))
        };
        let veiled = |subject: &'p Subject| {
            own(subject)
                || columns
                    .iter()
                    .any(|at| hides(self.for_subject(subject, at.each_ref().map(String::as_str))))
                || (is_bare(subject) && self.policy.subjects.values().any(filtered))
        };
        let whole = |pattern: &Pattern| matches!(pattern, Pattern::Prefix(start) if start.is_empty());
        let matched = self.matched(identity);
        let free = matched.iter().any(|(name, subject)| {
            let all = subject
                .scopes
                .iter()
                .any(|scope| fits(&scope.catalog, catalog) && whole(&scope.schema) && whole(&scope.table));
            self.admins.contains(*name) && all && !own(subject)
        });
        let concerned: Vec<_> = matched
            .iter()
            .filter(|(_, subject)| {
                own(subject) || subject.scopes.iter().any(|scope| fits(&scope.catalog, catalog))
            })
            .collect();
        !free && (concerned.is_empty() || concerned.iter().any(|(_, subject)| veiled(subject)))
    }
}
