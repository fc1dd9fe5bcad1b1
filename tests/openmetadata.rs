//! Answers of OpenMetadata, whole and broken, as pictures.
//!
//! Invariant: whatever an answer lacks ends the cycle; none of it is read as "no tags".

use fedgate::sync::catalog::openmetadata::{Assembly, PictureError, Reading};
use fedgate::sync::catalog::{Column, Label, LabelState, Picture};
use serde_json::{Value, json};

fn reading() -> Reading {
    let catalogs = [("pg_lab", "climscore"), ("pg_lab.other", "other"), ("\"p.g\"", "dotted")];
    Reading { catalogs: catalogs.map(|(from, to)| (from.to_owned(), to.into())).into(), glossaries: false }
}

fn page(tables: &[Value], total: u64, after: Option<&str>) -> Value {
    let mut paging = json!({"total": total});
    if let Some(after) = after {
        paging["after"] = after.into();
    }
    json!({"data": tables, "paging": paging})
}

fn table(name: &str, columns: &Value) -> Value {
    json!({"id": "6f1", "name": "ignored", "fullyQualifiedName": name, "tableType": "Regular", "columns": columns})
}

fn picture(reading: &Reading, pages: &[Value], before: usize) -> Result<Picture, PictureError> {
    let mut assembly = Assembly::new(reading);
    for page in pages {
        assembly.tables(page.to_string().as_bytes())?;
    }
    assembly.finish(before)
}

fn label(tag: &str, source: &str, state: &str) -> Value {
    json!({"tagFQN": tag, "source": source, "labelType": "Manual", "state": state, "appliedAt": 1.5})
}

#[test]
fn pages_become_a_picture() {
    let columns = json!([
        {"name": "id", "dataType": "INT", "tags": []},
        {"name": "email", "tags": [label("PII.Sensitive", "Classification", "Confirmed")]},
        {"name": "old", "tags": [label("PII.Sensitive", "Tag", "Confirmed")]},
        {"name": "maybe", "tags": [label("PII.Sensitive", "Classification", "Suggested")]},
        {"name": "term", "tags": [label("Glossary.Term", "Glossary", "Confirmed")]},
        {"name": "a__reserved__quote__b", "tags": [], "children": [
            {"name": "inner", "tags": [], "children": [
                {"name": "deep", "tags": [label("PII.Sensitive", "Classification", "Confirmed")]}]}]},
    ]);
    let pages = [
        page(&[table("pg_lab.shop.public.customers", &columns)], 4, Some("a=")),
        page(
            &[
                table("pg_lab.other.public.\"a.dotted\"", &json!([])),
                table("\"p.g\".shop.public.t", &json!([])),
                table("elsewhere.shop.public.t", &json!([])),
            ],
            4,
            None,
        ),
    ];
    let reading = reading();
    let found = picture(&reading, &pages, 100).unwrap();
    let names: Vec<_> = found
        .tables
        .iter()
        .map(|table| format!("{} {} {}", table.catalog, table.schema, table.name))
        .collect();
    assert_eq!(names, ["climscore public customers", "other public a.dotted", "dotted public t"]);
    let labels = |column: &Column| -> Vec<(String, LabelState)> {
        column.all_labels().map(|Label { tag, state }| (tag.to_string(), *state)).collect()
    };
    let sensitive = |state| vec![("PII.Sensitive".to_owned(), state)];
    let columns: Vec<_> =
        found.tables[0].columns.iter().map(|column| (&*column.name, labels(column))).collect();
    assert_eq!(
        columns,
        [
            ("id", vec![]),
            ("email", sensitive(LabelState::Confirmed)),
            ("old", sensitive(LabelState::Confirmed)),
            ("maybe", sensitive(LabelState::Suggested)),
            ("term", vec![]),
            ("a\"b", sensitive(LabelState::Confirmed)),
        ]
    );
    let with_terms = Reading { glossaries: true, ..reading };
    let found = picture(&with_terms, &pages, 0).unwrap();
    assert_eq!(labels(&found.tables[0].columns[4]), [("Glossary.Term".to_owned(), LabelState::Confirmed)]);
}

#[test]
fn what_is_not_whole_is_no_picture() {
    let fine = || table("pg_lab.shop.public.t", &json!([{"name": "a", "tags": []}]));
    let other = |at: u8| table(&format!("pg_lab.shop.public.t{at}"), &json!([]));
    let name = "pg_lab.shop.public.t";
    let mut without_columns = fine();
    without_columns.as_object_mut().unwrap().remove("columns");
    let mut errors = page(&[fine()], 1, None);
    errors["errors"] = json!([{"message": "one entity is broken"}]);
    let mut deep = json!([]);
    for _ in 0..200 {
        deep = json!([{"name": "a", "tags": [], "children": deep}]);
    }
    let cases: Vec<(&str, Vec<Value>, &str)> = vec![
        (
            "tags were not asked for",
            vec![page(&[table(name, &json!([{"name": "a"}]))], 1, None)],
            "has no columns or tags",
        ),
        (
            "nor in a child",
            vec![page(
                &[table(name, &json!([{"name": "a", "tags": [], "children": [{"name": "b"}]}]))],
                1,
                None,
            )],
            "column b: were fields=columns,tags asked for?",
        ),
        ("columns neither", vec![page(&[without_columns], 1, None)], "has no columns or tags"),
        ("it says itself that it is not whole", vec![errors], "reports 1 errors"),
        ("a page is missing", vec![page(&[fine()], 3, None)], "gave 1 tables and speaks of 3"),
        ("no page at all was there", vec![page(&[], 0, None)], "no table at all where there were 5"),
        (
            "a page again and again",
            vec![page(&[other(1)], 9, Some("a")), page(&[other(2)], 9, Some("a"))],
            "same page twice",
        ),
        (
            "a page in the place of another, with all numbers right",
            vec![page(&[other(1)], 2, Some("a")), page(&[other(1)], 2, None)],
            "gave pg_lab.shop.public.t1 twice",
        ),
        (
            "a table fell off the pages when one before it was deleted",
            vec![page(&[other(1), other(2)], 5, Some("a")), page(&[other(4), other(5)], 4, None)],
            "speaks of 4 tables and spoke of 5",
        ),
        (
            "a table of nobody's hides one of ours",
            vec![page(&[table("a.b.c.d", &json!([])), table("a.b.c.d", &json!([]))], 2, None)],
            "gave a.b.c.d twice",
        ),
        ("another shape", vec![json!({"responseMessage": "garbage cursor"})], "missing field `data`"),
        ("no paging", vec![json!({"data": []})], "missing field `paging`"),
        ("a name of three parts", vec![page(&[table("pg_lab.b.c", &json!([]))], 1, None)], "it has 3 parts"),
        ("nesting without end", vec![page(&[table(name, &deep)], 1, None)], "recursion limit"),
        (
            "a tag that is no text",
            vec![page(&[table(name, &json!([{"name": "a", "tags": [{"tagFQN": 1}]}]))], 1, None)],
            "data[0].columns[0].tags[0].tagFQN",
        ),
    ];
    for (note, pages, want) in cases {
        let error = picture(&reading(), &pages, 5).expect_err(note).to_string();
        assert!(error.contains(want), "{note}: said {error}");
    }
    let mut assembly_reading = reading();
    assembly_reading.catalogs.clear();
    let text = page(&[fine()], 1, None).to_string();
    for end in 0..text.len() {
        let mut assembly = Assembly::new(&assembly_reading);
        assert!(assembly.tables(&text.as_bytes()[..end]).is_err(), "cut off after {end} bytes");
    }
}

#[test]
fn disabled_classifications_are_noted() {
    let reading = reading();
    let mut assembly = Assembly::new(&reading);
    let page = json!({"data": [{"name": "PII", "disabled": true}, {"name": "PCI"}, {"name": "Old", "disabled": true, "deleted": true}],
                      "paging": {"total": 3}});
    assert_eq!(assembly.classifications(page.to_string().as_bytes()), Ok(None));
    let disabled: Vec<_> = assembly.finish(0).unwrap().disabled.into_iter().collect();
    assert_eq!(disabled, ["PII".into()]);
}
