//! The planner on tables of cases (`tests/planner/*.yaml`), and what holds for any input.
//!
//! Invariant: a case shows the whole plan as people read it, so that a change of the planner is a change of
//! these texts.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use fedgate::document::{AUTO, Document};
use fedgate::sync::catalog::{Column, Label, LabelState, Picture, Table, file};
use fedgate::sync::planner::{Plan, Rules, apply, plan};
use proptest::prelude::*;
use serde_json::{Value, json};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    note: String,
    /// `subjects` of the document.
    subjects: Value,
    /// A file of the file catalog.
    catalog: serde_yaml_ng::Value,
    #[serde(default)]
    tag_to_mask: Option<BTreeMap<Arc<str>, Arc<str>>>,
    #[serde(default)]
    admin_subjects: BTreeSet<Arc<str>>,
    #[serde(default)]
    enforce_suggested: bool,
    plan: String,
}

fn library() -> Value {
    json!({
        "null": {"strength": 100}, "redact": {"strength": 80}, "sha256": {"strength": 60}, "md5": {"strength": 50},
        "other50": {"strength": 50}, "partial_last4": {"strength": 20}, "identity": {"strength": 0},
    })
}

fn tag_to_mask() -> BTreeMap<Arc<str>, Arc<str>> {
    let map = [("PII.Sensitive", "sha256"), ("PII.NonSensitive", "identity"), ("PCI.PAN", "partial_last4")];
    map.map(|(tag, mask)| (tag.into(), mask.into())).into()
}

fn document(subjects: &Value) -> Document {
    let json = json!({"version": 1, "mask_library": library(), "subjects": subjects, "x-owner": {"n": 1.50}});
    Document::parse(json.to_string().as_bytes()).unwrap()
}

/// Carried out, a plan leaves nothing to plan, and nothing of people's has changed.
fn holds(before: &Document, picture: &Picture, rules: &Rules, plan: &Plan) {
    let after = apply(before, plan);
    let again = fedgate::sync::planner::plan(picture, after.policy(), rules);
    assert_eq!(again.changes, vec![], "a second run plans nothing");
    assert_eq!(again.before, plan.after, "the plan knows how many entries it leaves");
    assert_eq!(again.shadowed, plan.shadowed);
    assert_eq!(by_hand(&after), by_hand(before), "what people wrote has changed");
    // What was made is a document.
    let text = after.to_text();
    assert_eq!(Document::parse(text.as_bytes()).unwrap().to_text(), text);
}

/// A document without the loop's entries, as text: the order and the spelling of numbers count.
fn by_hand(document: &Document) -> String {
    let mut json: Value = serde_json::from_str(&document.to_text()).unwrap();
    for subject in json["subjects"].as_object_mut().unwrap().values_mut() {
        if let Some(masks) = subject.get_mut("masks").and_then(Value::as_array_mut) {
            masks.retain(|entry| entry["source"] != AUTO);
            if masks.is_empty() {
                subject.as_object_mut().unwrap().shift_remove("masks");
            }
        }
    }
    json.to_string()
}

#[test]
fn cases() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/planner");
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let (mut count, mut wrong) = (0, Vec::new());
    for path in files {
        let text = std::fs::read_to_string(&path).unwrap();
        let cases: Vec<Case> =
            serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for case in cases {
            count += 1;
            let catalog = serde_yaml_ng::to_string(&case.catalog).unwrap();
            let picture = file::parse(&catalog).unwrap_or_else(|error| panic!("{}: {error}", case.note));
            let rules = Rules {
                tag_to_mask: case.tag_to_mask.unwrap_or_else(tag_to_mask),
                admin_subjects: case.admin_subjects,
                enforce_suggested: case.enforce_suggested,
            };
            let document = document(&case.subjects);
            let plan = plan(&picture, document.policy(), &rules);
            if plan.to_string() != case.plan {
                wrong.push(format!("{}: the plan is now\n{plan}", case.note));
            }
            holds(&document, &picture, &rules, &plan);
        }
    }
    assert!(count >= 20, "only {count} cases were found");
    assert!(wrong.is_empty(), "{} of {count} cases:\n{}", wrong.len(), wrong.join("\n"));
}

/// Few names, so that they meet; some that have to be quoted.
const NAMES: [&str; 5] = ["a", "ab", "B", "a.b", "\"q\"\u{e9}"];
const TAGS: [&str; 6] = ["T.null", "T.sha", "T.md5", "T.other", "T.identity", "T.missing"];

fn rules() -> Rules {
    let masks = ["null", "sha256", "md5", "other50", "identity", "nowhere"];
    Rules {
        tag_to_mask: TAGS.iter().zip(masks).map(|(tag, mask)| ((*tag).into(), mask.into())).collect(),
        admin_subjects: BTreeSet::from(["root".into()]),
        enforce_suggested: false,
    }
}

fn name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&NAMES[..])
}

fn column() -> impl Strategy<Value = Column> {
    let label =
        (prop::sample::select(&TAGS[..]), prop::bool::weighted(0.2)).prop_map(|(tag, suggested)| Label {
            tag: tag.into(),
            state: if suggested { LabelState::Suggested } else { LabelState::Confirmed },
        });
    let leaf = (name(), prop::collection::vec(label, 0..3)).prop_map(|(name, labels)| Column {
        name: name.into(),
        labels,
        children: Vec::new(),
    });
    leaf.prop_recursive(3, 8, 2, |inner| {
        (inner.clone(), prop::collection::vec(inner, 0..2)).prop_map(|(mut column, children)| {
            column.children = children;
            column
        })
    })
}

fn picture() -> impl Strategy<Value = Picture> {
    let table = (name(), name(), name(), prop::collection::vec(column(), 0..4)).prop_map(
        |(catalog, schema, name, columns)| Table {
            catalog: catalog.into(),
            schema: schema.into(),
            name: name.into(),
            columns: columns.into(),
            changed_at: None,
        },
    );
    prop::collection::vec(table, 0..12).prop_map(|tables| Picture { tables, ..Picture::default() })
}

fn subjects() -> impl Strategy<Value = Value> {
    let pattern = prop_oneof![
        name().prop_map(str::to_owned),
        name().prop_map(|name| format!("{name}*")),
        Just("*".to_owned())
    ];
    let scope = (pattern.clone(), pattern.clone(), pattern)
        .prop_map(|(catalog, schema, table)| json!({"catalog": catalog, "schema": schema, "table": table}));
    let mask = prop::sample::select(vec!["null", "sha256", "md5", "identity"]);
    let entry = (name(), name(), name(), name(), mask, any::<bool>()).prop_map(
        |(catalog, schema, table, column, mask, auto)| {
            let mut entry = json!({"catalog": catalog, "schema": schema, "table": table, "column": column, "mask": mask,
                                   "x-note": [1e3, null]});
            if auto {
                entry["source"] = AUTO.into();
            }
            entry
        },
    );
    let entries = prop::collection::vec(entry, 0..8).prop_map(|entries| {
        let mut seen = BTreeSet::new();
        let key = |entry: &Value| {
            ["catalog", "schema", "table", "column", "source"].map(|key| entry[key].to_string())
        };
        entries.into_iter().filter(|entry| seen.insert(key(entry))).collect::<Vec<_>>()
    });
    let subject = (prop::collection::vec(scope, 0..3), entries)
        .prop_map(|(scopes, masks)| json!({"kind": "role", "x": 1.0, "scopes": scopes, "masks": masks}));
    let names = prop::sample::select(vec!["analyst", "root", "été"]);
    prop::collection::btree_map(names, subject, 0..4).prop_map(|subjects| json!(subjects))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_plan_is_final_and_leaves_people_alone(picture in picture(), subjects in subjects()) {
        let document = document(&subjects);
        let plan = plan(&picture, document.policy(), &rules());
        holds(&document, &picture, &rules(), &plan);
    }

    #[test]
    fn order_does_not_matter(picture in picture(), subjects in subjects()) {
        let document = document(&subjects);
        let mut turned = picture.clone();
        turned.tables.reverse();
        for table in &mut turned.tables {
            let columns = Arc::make_mut(&mut table.columns);
            columns.reverse();
            for column in columns {
                column.labels.reverse();
                column.children.reverse();
            }
        }
        prop_assert_eq!(plan(&picture, document.policy(), &rules()), plan(&turned, document.policy(), &rules()));
    }

    #[test]
    fn without_tags_there_are_no_automatic_masks(picture in picture(), subjects in subjects()) {
        let document = document(&subjects);
        let with = apply(&document, &plan(&picture, document.policy(), &rules()));
        let mut bare = picture.clone();
        for column in bare.tables.iter_mut().flat_map(|table| Arc::make_mut(&mut table.columns)) {
            column.labels.clear();
            column.children.clear();
        }
        let plan = plan(&bare, with.policy(), &rules());
        prop_assert_eq!(plan.after, 0);
        let without = apply(&with, &plan);
        prop_assert!(!without.to_text().contains(AUTO));
        prop_assert_eq!(by_hand(&without), by_hand(&document));
    }

    /// The rule said anew, for one column and one subject at a time.
    #[test]
    fn each_column_has_the_mask_that_the_rule_gives(picture in picture(), subjects in subjects()) {
        let document = document(&subjects);
        let rules = rules();
        let after = apply(&document, &plan(&picture, document.policy(), &rules));
        let library = &document.policy().mask_library;
        for (name, subject) in &document.policy().subjects {
            for table in &picture.tables {
                for column in table.columns.iter() {
                    let same = |t: &Table| (&t.catalog, &t.schema, &t.name) == (&table.catalog, &table.schema, &table.name);
                    let masks: Vec<&Arc<str>> = picture.tables.iter().filter(|t| same(t))
                        .flat_map(|t| t.columns.iter()).filter(|c| c.name == column.name)
                        .flat_map(Column::all_labels)
                        .filter(|label| label.state == LabelState::Confirmed)
                        .filter_map(|label| rules.tag_to_mask.get(&label.tag)).collect();
                    let strongest = masks.iter().filter_map(|mask| library.get(&***mask)).map(|mask| mask.strength).max();
                    let entry = |subject: &fedgate::document::Subject, auto: bool| {
                        subject.masks.iter().find(|entry| entry.is_auto() == auto && entry.catalog == table.catalog
                            && entry.schema == table.schema && entry.table == table.name && entry.column == column.name)
                            .map(|entry| library[&*entry.mask].strength)
                    };
                    let covered = subject.scopes.iter().any(|s| s.covers(&table.catalog, &table.schema, &table.name));
                    let want = if &**name == "root" || !covered || entry(subject, false).is_some() || masks.is_empty() {
                        None
                    } else if masks.iter().any(|mask| !library.contains_key(&***mask)) {
                        strongest.max(entry(subject, true))
                    } else {
                        strongest
                    };
                    prop_assert_eq!(entry(&after.policy().subjects[name], true), want, "{} {:?}", name, table);
                }
            }
        }
    }
}
