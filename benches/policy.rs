//! The bundle at full size: 10,000 tables of 50 columns, 1,000 subjects, 200,000 mask entries, 1,000 row filters.
//!
//! Invariant: it prints what it measured and writes the same bundle each time; `scripts/bench-opa` asks OPA about it.

use std::path::PathBuf;
use std::time::Instant;

use fedgate::document::Document;
use fedgate::policy::bundle::{Bundle, Packing};
use fedgate::policy::{Settings, library};
use serde_json::{Map, Value, json};

const SCHEMAS: usize = 100;
const TABLES: usize = 100;
const SUBJECTS: usize = 1_000;
/// Of each subject.
const ENTRIES: usize = 200;

fn document() -> String {
    let masks = ["sha256", "redact", "partial_last4", "identity", "md5"];
    let mut subjects = Map::new();
    for subject in 0..SUBJECTS {
        // Ten schemas each; in each of them the columns of one table are masked, so that every table is masked for
        // ten subjects and ten tables are for each.
        let schemas: Vec<usize> = (0..10).map(|part| (subject + part * 10) % SCHEMAS).collect();
        let scopes: Vec<Value> = schemas
            .iter()
            .map(|schema| json!({"catalog": "big", "schema": format!("s{schema}"), "table": "*"}))
            .collect();
        let entries: Vec<Value> = (0..ENTRIES)
            .map(|entry| {
                let schema = schemas[entry % 10];
                let (table, column) = ((subject / 10) % TABLES, entry / 10);
                let mut entry = json!({
                    "catalog": "big", "schema": format!("s{schema}"), "table": format!("t{table}"),
                    "column": format!("c{column}"), "mask": masks[(subject + column) % masks.len()],
                });
                if column % 10 > 0 {
                    entry["source"] = json!("auto-pii");
                }
                entry
            })
            .collect();
        let filter = json!({
            "catalog": "big", "schema": format!("s{}", schemas[0]), "table": format!("t{}", (subject / 10) % TABLES),
            "expression": {"trino": format!("region = {subject}")},
        });
        subjects.insert(
            format!("role{subject}"),
            json!({"kind": "role", "scopes": scopes, "masks": entries, "row_filters": [filter]}),
        );
    }
    // Every table is known to the catalogue of masks: one tag in each, held by one subject.
    let all: Vec<Value> = (0..SCHEMAS * TABLES)
        .map(|table| {
            let (schema, table) = (table / TABLES, table % TABLES);
            json!({
                "catalog": "big", "schema": format!("s{schema}"), "table": format!("t{table}"), "column": "c49",
                "mask": "redact", "source": "auto-pii",
            })
        })
        .collect();
    subjects.insert("everybody".to_owned(), json!({"kind": "group", "masks": all}));
    json!({
        "version": 1, "mask_library": library::to_json(),
        "sources": {"big": {"catalog": "big", "read_only": true}}, "subjects": subjects,
    })
    .to_string()
}

fn main() {
    // `cargo test --benches` asks whether it runs; `cargo bench` for figures.
    let text = document();
    let started = Instant::now();
    let document = Document::parse(text.as_bytes()).unwrap();
    let parsed = started.elapsed();
    let settings = Settings { admin_subjects: ["role999".into()].into(), ..Settings::default() };
    let mut best = None;
    let mut bundle = None;
    for _ in 0..5 {
        let started = Instant::now();
        bundle =
            Some(Bundle::build(document.policy(), &settings, Packing { thin: true, signer: None }).unwrap());
        let took = started.elapsed();
        best = Some(best.map_or(took, |best: std::time::Duration| best.min(took)));
    }
    let bundle = bundle.unwrap();
    println!("document: {} bytes, read in {parsed:.2?}", text.len());
    println!("bundle: {} bytes, built in {:.2?} (best of 5)", bundle.bytes.len(), best.unwrap());
    if let Some(folder) = std::env::var_os("FEDGATE_BENCH_OUT").map(PathBuf::from) {
        std::fs::write(folder.join("fedgate.tar.gz"), &bundle.bytes).unwrap();
    }
}
