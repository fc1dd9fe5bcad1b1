//! What a plan costs: 10,000 tables of 50 columns, 1,000 subjects.
//!
//! `cargo bench --bench planner`; target: under a second, be there nothing to do or everything.

use std::collections::{BTreeMap, BTreeSet};
use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use fedgate::document::Document;
use fedgate::sync::catalog::{Column, Label, LabelState, Picture, Table};
use fedgate::sync::planner::{Rules, apply, plan};
use serde_json::{Map, Value, json};

// The gateway's own allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SCHEMAS: usize = 100;
const TABLES: usize = 100;
const COLUMNS: usize = 50;
const SUBJECTS: usize = 1_000;

/// One column in 25 is tagged.
fn picture() -> Picture {
    let column = |at: usize| Column {
        name: format!("column_{at}").into(),
        labels: if at.is_multiple_of(25) {
            vec![Label { tag: "PII.Sensitive".into(), state: LabelState::Confirmed }]
        } else {
            Vec::new()
        },
        children: Vec::new(),
    };
    let table = |at: usize| Table {
        catalog: "climscore".into(),
        schema: format!("schema_{}", at / TABLES).into(),
        name: format!("table_{}", at % TABLES).into(),
        columns: (0..COLUMNS).map(column).collect(),
        changed_at: None,
    };
    Picture { tables: (0..SCHEMAS * TABLES).map(table).collect(), ..Picture::default() }
}

/// Each subject may read one schema, so that 200,000 masks are to be made.
fn document() -> Document {
    let subject = |at: usize| {
        let scope =
            json!({"catalog": "climscore", "schema": format!("schema_{}", at % SCHEMAS), "table": "*"});
        (format!("subject_{at}"), json!({"kind": "role", "scopes": [scope]}))
    };
    let subjects: Map<String, Value> = (0..SUBJECTS).map(subject).collect();
    let json = json!({"version": 1, "mask_library": {"sha256": {"strength": 60}}, "subjects": subjects});
    Document::parse(json.to_string().as_bytes()).expect("a document")
}

fn benchmarks(criterion: &mut Criterion) {
    let picture = picture();
    let empty = document();
    let rules = Rules {
        tag_to_mask: BTreeMap::from([("PII.Sensitive".into(), "sha256".into())]),
        admin_subjects: BTreeSet::new(),
        enforce_suggested: false,
    };
    let first = plan(&picture, empty.policy(), &rules);
    let full = apply(&empty, &first);
    assert_eq!(first.after, SUBJECTS * TABLES * COLUMNS / 25);
    let mut group = criterion.benchmark_group("planner");
    group.sample_size(10).warm_up_time(Duration::from_millis(500));
    group.bench_function("every mask is new", |bench| {
        bench.iter(|| plan(black_box(&picture), empty.policy(), &rules));
    });
    group.bench_function("nothing to do", |bench| {
        bench.iter(|| plan(black_box(&picture), full.policy(), &rules));
    });
    group.bench_function("apply", |bench| bench.iter(|| apply(black_box(&empty), &first)));
    group.bench_function("read the document", |bench| {
        let text = full.to_text();
        bench.iter(|| Document::parse(black_box(text.as_bytes())));
    });
    group.finish();
}

criterion_group!(benches, benchmarks);
criterion_main!(benches);
