//! Catalog picture, policy and rules in, plan out.
//!
//! Invariant: pure and deterministic. The same input gives the same plan whatever its order, a plan that
//! was carried out leaves nothing to plan, and entries of people are read and never planned for.

pub mod safety;
mod text;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use crate::document::{AutoMasks, ColumnName, Document, Mask, Policy, Subject, named};
use crate::sync::catalog::{LabelState, Picture, Table};

/// What the operator configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// Tag to name of a mask.
    pub tag_to_mask: BTreeMap<Arc<str>, Arc<str>>,
    /// Subjects that the loop never masks anything for; exactly these names.
    pub admin_subjects: BTreeSet<Arc<str>>,
    /// Enforce labels that nobody confirmed.
    pub enforce_suggested: bool,
}

/// What is to be done, and what is worth knowing beside it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// By subject, then column.
    pub changes: Vec<Change>,
    /// Columns for which an entry of people stands where the loop would have put one.
    pub shadowed: Vec<Shadowed>,
    pub unplanned: Vec<Unplanned>,
    /// Tables of the picture.
    pub tables: usize,
    /// Entries of the loop before and after.
    pub before: usize,
    pub after: usize,
}

/// One entry that comes, goes or gets another mask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub subject: Arc<str>,
    pub column: ColumnName,
    pub edit: Edit,
    pub why: Why,
    /// Does the subject see more afterwards?
    pub loosens: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Edit {
    Add { mask: Arc<str> },
    Replace { from: Arc<str>, to: Arc<str> },
    Remove { mask: Arc<str> },
}

/// Where a change comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Why {
    /// The tag whose mask this is.
    Tag(Arc<str>),
    /// The column is there and no mapped tag on it counts any longer.
    TagGone,
    ColumnGone,
    TableGone,
    OutOfScope,
    /// The subject is an admin subject now.
    Exempt,
    /// An entry of people is there now.
    Manual,
    /// An admin wants the masks of this revision back.
    Rollback(u64),
}

/// An entry of people on a tagged column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shadowed {
    pub subject: Arc<str>,
    pub column: ColumnName,
    pub tag: Arc<str>,
    /// The mask that the tag stands for, and the one that people chose.
    pub automatic: Arc<str>,
    pub manual: Arc<str>,
    /// Does the one of people show more?
    pub weaker: bool,
}

/// What a tag asks for and the plan does not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unplanned {
    /// The map names a mask that the library does not have. Entries that are there stay as strong as they are.
    MissingMask { tag: Arc<str>, mask: Arc<str>, columns: usize },
    /// Names that no document can hold: empty, longer than 1024 bytes, or with a NUL.
    Unnameable { tag: Arc<str>, columns: usize },
    /// Nobody has confirmed the label yet.
    Suggested { tag: Arc<str>, column: ColumnName },
    /// The tag's classification is disabled.
    Disabled { tag: Arc<str>, columns: usize },
}

impl Unplanned {
    pub fn tag(&self) -> &str {
        match self {
            Unplanned::MissingMask { tag, .. }
            | Unplanned::Unnameable { tag, .. }
            | Unplanned::Suggested { tag, .. }
            | Unplanned::Disabled { tag, .. } => tag,
        }
    }
}

/// What the labels of one column ask for.
struct Wanted<'p> {
    column: &'p Arc<str>,
    /// The strongest mask that the library has, its tag and strength.
    best: Option<Choice<'p>>,
    /// Does a tag ask for a mask that the library does not have?
    missing: bool,
}

#[derive(Clone, Copy)]
struct Choice<'p> {
    mask: &'p Arc<str>,
    tag: &'p Arc<str>,
    strength: u32,
}

/// Tables with a mapped tag, by catalog, schema and name.
type Tagged<'p> = BTreeMap<&'p str, BTreeMap<&'p str, BTreeMap<&'p str, TaggedTable<'p>>>>;

struct TaggedTable<'p> {
    table: &'p Table,
    columns: BTreeMap<&'p str, Wanted<'p>>,
}

impl TaggedTable<'_> {
    fn name(&self, column: &Arc<str>) -> ColumnName {
        ColumnName {
            catalog: Arc::clone(&self.table.catalog),
            schema: Arc::clone(&self.table.schema),
            table: Arc::clone(&self.table.name),
            column: Arc::clone(column),
        }
    }
}

/// Works out what has to change so that each subject has the masks that the labels ask for.
pub fn plan(picture: &Picture, policy: &Policy, rules: &Rules) -> Plan {
    let mut plan = Plan { tables: picture.tables.len(), ..Plan::default() };
    let tagged = tagged(picture, policy, rules, &mut plan);
    let mut planner = Planner { policy, rules, tagged: &tagged, picture, known: None, plan };
    for (name, subject) in &policy.subjects {
        planner.subject(name, subject);
    }
    planner.plan
}

/// The document after a plan for it was carried out.
#[must_use]
pub fn apply(document: &Document, plan: &Plan) -> Document {
    let mut wanted: BTreeMap<Arc<str>, AutoMasks> = BTreeMap::new();
    for change in &plan.changes {
        let masks = wanted.entry(Arc::clone(&change.subject)).or_insert_with(|| {
            let subject = document.policy().subjects.get(&change.subject);
            let entries = subject.map_or(&[][..], |subject| &subject.masks);
            auto_entries(entries.iter().filter(|entry| entry.is_auto()))
        });
        match &change.edit {
            Edit::Add { mask } | Edit::Replace { to: mask, .. } => {
                masks.insert(change.column.clone(), Arc::clone(mask));
            }
            Edit::Remove { .. } => {
                masks.remove(&change.column);
            }
        }
    }
    document.with_masks(&wanted)
}

/// Of two entries for one column the first counts.
fn auto_entries<'e>(entries: impl Iterator<Item = &'e crate::document::MaskEntry>) -> AutoMasks {
    let mut masks = AutoMasks::new();
    for entry in entries {
        masks.entry(entry.column()).or_insert_with(|| Arc::clone(&entry.mask));
    }
    masks
}

/// The columns that carry a mapped tag, and what is to be said of their labels.
fn tagged<'p>(picture: &'p Picture, policy: &Policy, rules: &'p Rules, plan: &mut Plan) -> Tagged<'p> {
    let mut tagged = Tagged::new();
    let mut missing: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
    let mut disabled: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
    let mut unnameable: BTreeMap<&Arc<str>, usize> = BTreeMap::new();
    let mut suggested: BTreeSet<(ColumnName, &Arc<str>)> = BTreeSet::new();
    for table in &picture.tables {
        let table_named = [&table.catalog, &table.schema, &table.name].iter().all(|name| named(name).is_ok());
        for column in table.columns.iter() {
            let named = table_named && named(&column.name).is_ok();
            // A tag may be there twice, on the column and on a child of it: what is confirmed once, is.
            let mut tags: BTreeMap<&Arc<str>, (&Arc<str>, bool)> = BTreeMap::new();
            for label in column.all_labels() {
                if let Some((tag, mask)) = rules.tag_to_mask.get_key_value(&label.tag) {
                    let (_, confirmed) = tags.entry(tag).or_insert((mask, false));
                    *confirmed |= label.state == LabelState::Confirmed;
                }
            }
            for (tag, (mask, confirmed)) in tags {
                if is_disabled(tag, picture) {
                    *disabled.entry(tag).or_default() += 1;
                    continue;
                }
                if !confirmed && !rules.enforce_suggested {
                    let name = ColumnName {
                        catalog: Arc::clone(&table.catalog),
                        schema: Arc::clone(&table.schema),
                        table: Arc::clone(&table.name),
                        column: Arc::clone(&column.name),
                    };
                    suggested.insert((name, tag));
                    continue;
                }
                if !named {
                    *unnameable.entry(tag).or_default() += 1;
                    continue;
                }
                let wanted = tagged
                    .entry(&table.catalog)
                    .or_default()
                    .entry(&table.schema)
                    .or_default()
                    .entry(&table.name)
                    .or_insert_with(|| TaggedTable { table, columns: BTreeMap::new() })
                    .columns
                    .entry(&column.name)
                    .or_insert_with(|| Wanted { column: &column.name, best: None, missing: false });
                match policy.mask_library.get(&**mask) {
                    Some(Mask { strength, .. }) => {
                        let choice = Choice { mask, tag, strength: *strength };
                        // Of two equally strong ones the first by name, whatever the order of the labels.
                        let rank = |choice: &Choice<'_>| {
                            (
                                choice.strength,
                                std::cmp::Reverse((Arc::clone(choice.mask), Arc::clone(choice.tag))),
                            )
                        };
                        if wanted.best.as_ref().is_none_or(|best| rank(best) < rank(&choice)) {
                            wanted.best = Some(choice);
                        }
                    }
                    None => {
                        wanted.missing = true;
                        *missing.entry(tag).or_default() += 1;
                    }
                }
            }
        }
    }
    // A map that names a mask which is not there is wrong before any column carries its tag.
    for (tag, mask) in &rules.tag_to_mask {
        if !policy.mask_library.contains_key(&**mask) {
            let columns = missing.get(tag).copied().unwrap_or_default();
            plan.unplanned.push(Unplanned::MissingMask {
                tag: Arc::clone(tag),
                mask: Arc::clone(mask),
                columns,
            });
        }
    }
    let unnameable = unnameable.into_iter();
    plan.unplanned
        .extend(unnameable.map(|(tag, columns)| Unplanned::Unnameable { tag: Arc::clone(tag), columns }));
    let disabled = disabled.into_iter();
    plan.unplanned
        .extend(disabled.map(|(tag, columns)| Unplanned::Disabled { tag: Arc::clone(tag), columns }));
    let suggested = suggested.into_iter();
    plan.unplanned
        .extend(suggested.map(|(column, tag)| Unplanned::Suggested { tag: Arc::clone(tag), column }));
    tagged
}

fn is_disabled(tag: &str, picture: &Picture) -> bool {
    let classification = tag.split_once('.').map_or(tag, |(classification, _)| classification);
    picture.disabled.contains(classification)
}

struct Planner<'p> {
    policy: &'p Policy,
    rules: &'p Rules,
    tagged: &'p Tagged<'p>,
    picture: &'p Picture,
    /// All tables by name; made when the first removal has to be explained.
    known: Option<HashMap<(&'p str, &'p str, &'p str), Vec<&'p Table>>>,
    plan: Plan,
}

impl<'p> Planner<'p> {
    fn strength(&self, mask: &str) -> u32 {
        self.policy.mask_library.get(mask).map_or(0, |mask| mask.strength)
    }

    fn subject(&mut self, name: &Arc<str>, subject: &'p Subject) {
        let exempt = self.rules.admin_subjects.contains(name);
        let present = auto_entries(subject.masks.iter().filter(|entry| entry.is_auto()));
        let mut manual = AutoMasks::new();
        for entry in subject.masks.iter().filter(|entry| !entry.is_auto()) {
            manual.entry(entry.column()).or_insert_with(|| Arc::clone(&entry.mask));
        }
        self.plan.before += present.len();
        let mut kept: BTreeSet<ColumnName> = BTreeSet::new();
        let mut changes = Vec::new();
        let tables = if exempt { BTreeMap::new() } else { in_scope(subject, self.tagged) };
        for table in tables.into_values() {
            for wanted in table.columns.values() {
                let column = table.name(wanted.column);
                let now = present.get(&column);
                if let Some(by_hand) = manual.get(&column) {
                    if let Some(best) = wanted.best {
                        self.plan.shadowed.push(Shadowed {
                            subject: Arc::clone(name),
                            tag: Arc::clone(best.tag),
                            automatic: Arc::clone(best.mask),
                            manual: Arc::clone(by_hand),
                            weaker: self.strength(by_hand) < best.strength,
                            column,
                        });
                    }
                    continue;
                }
                let strength_now = now.map(|mask| self.strength(mask));
                // Nobody knows how strong a missing mask was meant to be.
                let at_least = if wanted.missing { strength_now } else { None };
                let edit = match (wanted.best, now) {
                    (Some(best), Some(now)) if best.mask == now || at_least > Some(best.strength) => None,
                    (None, _) => None,
                    (Some(best), Some(now)) => {
                        Some((Edit::Replace { from: Arc::clone(now), to: Arc::clone(best.mask) }, best))
                    }
                    (Some(best), None) => Some((Edit::Add { mask: Arc::clone(best.mask) }, best)),
                };
                if let Some((edit, best)) = edit {
                    changes.push(Change {
                        subject: Arc::clone(name),
                        column: column.clone(),
                        edit,
                        why: Why::Tag(Arc::clone(best.tag)),
                        loosens: strength_now > Some(best.strength),
                    });
                }
                if now.is_some() {
                    kept.insert(column);
                }
            }
        }
        for (column, mask) in &present {
            if !kept.contains(column) {
                changes.push(Change {
                    subject: Arc::clone(name),
                    column: column.clone(),
                    edit: Edit::Remove { mask: Arc::clone(mask) },
                    why: self.why_gone(exempt, &manual, subject, column),
                    loosens: manual
                        .get(column)
                        .is_none_or(|other| self.strength(other) < self.strength(mask)),
                });
            }
        }
        changes.sort_by(|a, b| a.column.cmp(&b.column));
        let count = |of: fn(&Edit) -> bool| changes.iter().filter(|change| of(&change.edit)).count();
        self.plan.after += present.len() + count(|edit| matches!(edit, Edit::Add { .. }))
            - count(|edit| matches!(edit, Edit::Remove { .. }));
        self.plan.changes.append(&mut changes);
    }

    fn why_gone(&mut self, exempt: bool, manual: &AutoMasks, subject: &Subject, column: &ColumnName) -> Why {
        if exempt {
            return Why::Exempt;
        }
        if manual.contains_key(column) {
            return Why::Manual;
        }
        let known = self.known.get_or_insert_with(|| {
            let mut known: HashMap<_, Vec<&Table>> = HashMap::new();
            for table in &self.picture.tables {
                known.entry((&*table.catalog, &*table.schema, &*table.name)).or_default().push(table);
            }
            known
        });
        let Some(tables) = known.get(&(&*column.catalog, &*column.schema, &*column.table)) else {
            return Why::TableGone;
        };
        if !tables.iter().flat_map(|table| table.columns.iter()).any(|there| there.name == column.column) {
            return Why::ColumnGone;
        }
        let covers =
            |scope: &crate::document::Scope| scope.covers(&column.catalog, &column.schema, &column.table);
        if subject.scopes.iter().any(covers) { Why::TagGone } else { Why::OutOfScope }
    }
}

/// The tagged tables that a subject's scopes cover, each once.
fn in_scope<'t, 'p>(
    subject: &'t Subject,
    tagged: &'t Tagged<'p>,
) -> BTreeMap<(&'p str, &'p str, &'p str), &'t TaggedTable<'p>> {
    let mut found = BTreeMap::new();
    for scope in &subject.scopes {
        for (catalog, schemas) in scope.catalog.select(tagged) {
            for (schema, tables) in scope.schema.select(schemas) {
                for (name, table) in scope.table.select(tables) {
                    found.insert((*catalog, *schema, *name), table);
                }
            }
        }
    }
    found
}
