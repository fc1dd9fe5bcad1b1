//! The policy document laid out for OPA: everything is found by key, and what is equal is there once.
//!
//! Invariant: pure and deterministic; the same document and settings give the same data whatever the order of
//! entries. A number of a mask is greater when the mask is stronger. Nothing is left out that would mask more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use serde::Serialize;

use super::probe::Question;
use super::scopes::{Keys, Scopes, folded};
use super::{Settings, library};
use crate::document::{Mask, MaskEntry, Policy, Subject, SubjectKind};

/// `data.fedgate.policy`.
#[derive(Clone, Debug, Serialize)]
pub struct Data {
    version: u32,
    settings: Options,
    /// Sources by the name that Trino has for them.
    catalogs: BTreeMap<String, Catalog>,
    /// All catalogs that the document says anything about.
    known: Keys,
    /// Weakest first.
    masks: Vec<MaskData>,
    filters: Vec<String>,
    /// What is said about a column, once for all columns about which the same is said.
    shapes: Vec<Shape>,
    tables: Tables,
    subjects: BTreeMap<Arc<str>, SubjectData>,
}

#[derive(Clone, Debug, Serialize)]
struct Options {
    other_catalogs: &'static str,
    system_session_properties: Keys,
}

#[derive(Clone, Debug, Serialize)]
struct Catalog {
    sources: Vec<String>,
    read_only: bool,
    write_allow_list: Keys,
}

#[derive(Clone, Debug, Serialize)]
struct MaskData {
    name: String,
    trino: String,
    /// The column stays as it is.
    shows: bool,
    strength: u32,
}

/// Numbers of masks: of subjects that have an entry of their own, of the tag, and the strongest of all.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
struct Shape {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    own: BTreeMap<Arc<str>, usize>,
    /// `own` is not empty.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    personal: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    tagged: Option<usize>,
    any: usize,
}

type Tables = BTreeMap<String, BTreeMap<String, BTreeMap<String, TableData>>>;

#[derive(Clone, Debug, Default, Serialize)]
struct TableData {
    columns: BTreeMap<String, usize>,
    #[serde(skip_serializing_if = "Filters::is_empty")]
    filters: Filters,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Filters {
    own: BTreeMap<Arc<str>, BTreeSet<usize>>,
    all: BTreeSet<usize>,
}

impl Filters {
    fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

#[derive(Clone, Debug, Serialize)]
struct SubjectData {
    kind: &'static str,
    admin: bool,
    /// It has no entry at all, neither mask nor row filter.
    bare: bool,
    #[serde(flatten)]
    scopes: Scopes,
    /// Catalogs in which something is masked or filtered for it: by an entry of its `own`, or by `default`.
    veiled: BTreeMap<String, &'static str>,
}

impl Data {
    /// At most `count` masked columns, spread over the document, with what a `varchar` among them looks like to
    /// whoever is nobody.
    pub fn questions(&self, count: usize) -> Vec<Question> {
        let masked = || {
            self.tables.iter().flat_map(|(catalog, schemas)| {
                schemas.iter().flat_map(move |(schema, tables)| {
                    tables.iter().flat_map(move |(table, data)| {
                        data.columns.iter().filter_map(move |(column, shape)| {
                            let mask = self.masks.get(self.shapes.get(*shape)?.any)?;
                            (!mask.shows).then_some((catalog, schema, table, column, mask))
                        })
                    })
                })
            })
        };
        let step = masked().count().div_ceil(count.max(1)).max(1);
        masked()
            .step_by(step)
            .map(|(catalog, schema, table, column, mask)| Question {
                catalog: catalog.clone(),
                schema: schema.clone(),
                table: table.clone(),
                column: column.clone(),
                want: varchar(&mask.trino, column),
            })
            .collect()
    }
}

/// A mask over a column of type `varchar`.
fn varchar(mask: &str, column: &str) -> String {
    let quoted = format!("\"{}\"", column.replace('"', "\"\""));
    let mut text = String::with_capacity(mask.len() + quoted.len());
    let mut rest = mask;
    // In one pass: a column may be called {type}.
    while let Some((before, placeholder)) = rest.find('{').map(|at| rest.split_at(at)) {
        text.push_str(before);
        rest = if let Some(rest) = placeholder.strip_prefix(COLUMN) {
            text.push_str(&quoted);
            rest
        } else if let Some(rest) = placeholder.strip_prefix("{type}") {
            text.push_str("varchar");
            rest
        } else {
            text.push('{');
            placeholder.strip_prefix('{').unwrap_or_default()
        };
    }
    text.push_str(rest);
    text
}

/// What entries say about one column while they are gathered.
#[derive(Default)]
struct Gathered<'p> {
    own: BTreeMap<&'p Arc<str>, Own>,
    tagged: Option<usize>,
    any: usize,
}

/// What one subject's entries say about one column; several only where names fold together.
#[derive(Clone, Copy, Default)]
struct Own {
    by_hand: Option<usize>,
    automatic: Option<usize>,
}

impl Own {
    fn number(self) -> Option<usize> {
        self.by_hand.or(self.automatic)
    }
}

type Columns<'p> = HashMap<[String; 3], BTreeMap<String, Gathered<'p>>>;

/// Lays out a document.
pub fn data(policy: &Policy, settings: &Settings) -> Data {
    let masks = masks(policy, settings);
    let numbers: HashMap<&str, usize> =
        masks.iter().enumerate().map(|(number, mask)| (mask.name.as_str(), number)).collect();
    let mut catalogs = catalogs(policy);
    let mut known: Keys = catalogs.keys().map(|name| (name.clone(), true)).collect();
    let mut subjects = subjects(policy, settings);

    let mut tables = Tables::new();
    let filters = filters(policy, &mut tables);
    let columns = gather(policy, &numbers);
    for [catalog, ..] in columns.keys() {
        known.entry(catalog.clone()).or_insert(true);
    }
    for catalog in tables.keys() {
        known.entry(catalog.clone()).or_insert(true);
    }
    veil(&mut subjects, &columns, &tables, &known, &masks);

    let shapes = shapes(columns, &mut tables, &subjects);
    for catalog in catalogs.values_mut() {
        catalog.sources.sort();
    }
    Data {
        version: 1,
        settings: Options {
            other_catalogs: settings.other_catalogs.as_str(),
            system_session_properties: keys(&settings.system_session_properties),
        },
        catalogs,
        known,
        masks,
        filters,
        shapes,
        tables,
        subjects,
    }
}

fn keys<'s>(names: impl IntoIterator<Item = &'s String>) -> Keys {
    names.into_iter().map(|name| (name.clone(), true)).collect()
}

/// The library from the weakest to the strongest; of two that are as strong, one that hides is stronger than one that
/// shows, and then the name decides.
fn masks(policy: &Policy, settings: &Settings) -> Vec<MaskData> {
    let mut masks: Vec<MaskData> = policy
        .mask_library
        .iter()
        .map(|(name, mask)| {
            let trino = template(name, mask, settings);
            MaskData { name: name.clone(), shows: trino == COLUMN, trino, strength: mask.strength }
        })
        .collect();
    masks.sort_by(|a, b| (a.strength, !a.shows, &a.name).cmp(&(b.strength, !b.shows, &b.name)));
    masks
}

const COLUMN: &str = "{column}";
const NOTHING: &str = "CAST(NULL AS {type})";

/// The text for Trino: the document's, else the shipped one, else NULL; always of the column's own type.
fn template(name: &str, mask: &Mask, settings: &Settings) -> String {
    let text = mask.trino.as_deref().or_else(|| library::shipped(name).map(|shipped| shipped.trino));
    let Some(text) = text.map(str::trim) else { return NOTHING.to_owned() };
    let text = match (&settings.mask_key, text.contains("{key}")) {
        (_, false) => text.to_owned(),
        (Some(key), true) => text.replace("{key}", key.hex()),
        (None, true) => return NOTHING.to_owned(),
    };
    if text == COLUMN || text.contains("{type}") { text } else { format!("CAST({text} AS {{type}})") }
}

/// Two sources with one catalog: the stricter of each.
fn catalogs(policy: &Policy) -> BTreeMap<String, Catalog> {
    let mut catalogs: BTreeMap<String, Catalog> = BTreeMap::new();
    for (name, source) in &policy.sources {
        let listed = keys(&source.write_allow_list);
        catalogs
            .entry(folded(&source.catalog))
            .and_modify(|catalog| {
                catalog.sources.push(name.clone());
                catalog.read_only |= source.read_only;
                catalog.write_allow_list.retain(|user, _| listed.contains_key(user));
            })
            .or_insert_with(|| Catalog {
                sources: vec![name.clone()],
                read_only: source.read_only,
                write_allow_list: listed.clone(),
            });
    }
    catalogs
}

fn subjects(policy: &Policy, settings: &Settings) -> BTreeMap<Arc<str>, SubjectData> {
    let data = |(name, subject): (&Arc<str>, &Subject)| {
        let data = SubjectData {
            kind: match subject.kind {
                SubjectKind::User => "user",
                SubjectKind::Role => "role",
                SubjectKind::Group => "group",
            },
            admin: settings.admin_subjects.contains(name),
            bare: subject.masks.is_empty() && subject.row_filters.is_empty(),
            scopes: Scopes::new(&subject.scopes),
            veiled: BTreeMap::new(),
        };
        (Arc::clone(name), data)
    };
    policy.subjects.iter().map(data).collect()
}

fn filters(policy: &Policy, tables: &mut Tables) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    let mut indices: HashMap<String, usize> = HashMap::new();
    for (name, subject) in &policy.subjects {
        for filter in &subject.row_filters {
            // A condition that only another engine can tell holds for no row here.
            let text = filter.expression.trino.as_deref().map_or("false", str::trim);
            let index = *indices.entry(text.to_owned()).or_insert_with(|| {
                texts.push(text.to_owned());
                texts.len() - 1
            });
            let table = tables
                .entry(folded(&filter.catalog))
                .or_default()
                .entry(folded(&filter.schema))
                .or_default()
                .entry(folded(&filter.table))
                .or_default();
            table.filters.all.insert(index);
            table.filters.own.entry(Arc::clone(name)).or_default().insert(index);
        }
    }
    texts
}

fn gather<'p>(policy: &'p Policy, numbers: &HashMap<&str, usize>) -> Columns<'p> {
    // A document names no mask that its library does not have; if one did, the strongest would stand in.
    let strongest = numbers.len().saturating_sub(1);
    let mut columns = Columns::new();
    for (name, subject) in &policy.subjects {
        for entry in &subject.masks {
            let number = numbers.get(&*entry.mask).copied().unwrap_or(strongest);
            let MaskEntry { catalog, schema, table, column, .. } = entry;
            let table = [catalog, schema, table].map(|name| folded(name));
            let gathered = columns.entry(table).or_default().entry(folded(column)).or_default();
            gathered.any = gathered.any.max(number);
            let own = gathered.own.entry(name).or_default();
            if entry.is_auto() {
                own.automatic = own.automatic.max(Some(number));
                gathered.tagged = gathered.tagged.max(Some(number));
            } else {
                own.by_hand = own.by_hand.max(Some(number));
            }
        }
    }
    columns
}

/// Says where each subject has masks or row filters, so that nobody has to look through all tables for it.
fn veil(
    subjects: &mut BTreeMap<Arc<str>, SubjectData>,
    columns: &Columns<'_>,
    tables: &Tables,
    known: &Keys,
    masks: &[MaskData],
) {
    let hides = |number: usize| masks.get(number).is_none_or(|mask| !mask.shows);
    // By catalog: columns that a tag hides, and whether anything is hidden from anybody.
    let mut tagged: HashMap<&str, usize> = HashMap::new();
    let mut anything: BTreeSet<&str> = BTreeSet::new();
    // Of those columns, how many a subject has an entry of its own for; and who hides something by an entry.
    let mut answered: HashMap<(&str, &str), usize> = HashMap::new();
    let mut own: BTreeSet<(&str, &str)> = BTreeSet::new();
    for ([catalog, ..], columns) in columns {
        for column in columns.values() {
            let by_tag = column.tagged.is_some_and(hides);
            *tagged.entry(catalog).or_default() += usize::from(by_tag);
            if hides(column.any) {
                anything.insert(catalog);
            }
            for (subject, said) in &column.own {
                *answered.entry((subject, catalog)).or_default() += usize::from(by_tag);
                if said.number().is_some_and(hides) {
                    own.insert((subject, catalog));
                }
            }
        }
    }
    for (catalog, schemas) in tables {
        for table in schemas.values().flat_map(BTreeMap::values) {
            anything.insert(catalog);
            own.extend(table.filters.own.keys().map(|subject| (&**subject, catalog.as_str())));
        }
    }
    for (name, subject) in subjects {
        for catalog in known.keys().map(String::as_str) {
            let total = tagged.get(catalog).copied().unwrap_or_default();
            let answered = answered.get(&(&**name, catalog)).copied().unwrap_or_default();
            let how = if own.contains(&(&**name, catalog)) {
                "own"
            } else if (subject.bare && anything.contains(catalog)) || (!subject.bare && answered < total) {
                "default"
            } else {
                continue;
            };
            // What somebody neither opens nor has entries for is not looked at.
            if how == "own" || subject.scopes.opens_catalog(catalog) {
                subject.veiled.insert(catalog.to_owned(), how);
            }
        }
    }
}

/// Puts the columns into their tables, each as the number of its shape.
fn shapes(
    columns: Columns<'_>,
    tables: &mut Tables,
    subjects: &BTreeMap<Arc<str>, SubjectData>,
) -> Vec<Shape> {
    let mut shapes: Vec<Shape> = Vec::new();
    let mut indices: HashMap<Shape, usize> = HashMap::new();
    let mut columns: Vec<_> = columns.into_iter().collect();
    columns.sort_by(|(a, _), (b, _)| a.cmp(b));
    for ([catalog, schema, table], columns) in columns {
        let mut opened: HashMap<&str, bool> = HashMap::new();
        let mut built = BTreeMap::new();
        for (column, gathered) in columns {
            let mut own = BTreeMap::new();
            for (name, said) in &gathered.own {
                let Some(number) = said.number() else { continue };
                // An entry that says what the tag says to everybody who opens the table need not be there.
                let implied = said.by_hand.is_none()
                    && said.automatic == gathered.tagged
                    && subjects.get(*name).is_some_and(|subject| {
                        !subject.admin
                            && *opened
                                .entry(name)
                                .or_insert_with(|| subject.scopes.opens_table(&catalog, &schema, &table))
                    });
                if !implied {
                    own.insert(Arc::clone(name), number);
                }
            }
            let shape = Shape { personal: !own.is_empty(), own, tagged: gathered.tagged, any: gathered.any };
            let index = *indices.entry(shape).or_insert_with_key(|shape| {
                shapes.push(shape.clone());
                shapes.len() - 1
            });
            built.insert(column, index);
        }
        let place = tables.entry(catalog).or_default().entry(schema).or_default();
        place.entry(table).or_default().columns = built;
    }
    shapes
}
