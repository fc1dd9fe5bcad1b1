//! A catalog of 100,000 tables: what the picture of it takes, and that pages are not kept.
//!
//! Invariant: memory grows with what is kept and not with what was answered.

use fedgate::sync::catalog::openmetadata::{Assembly, Reading};
use serde_json::json;

#[global_allocator]
static MEMORY: peak_alloc::PeakAlloc = peak_alloc::PeakAlloc;

const TABLES: usize = 100_000;
const COLUMNS: usize = 10;
const PAGE: usize = 500;

/// As text, since making values of it would be most of the work.
fn page(from: usize, columns: &str) -> String {
    let table = |at: usize| {
        format!(
            r#"{{"id":"5f2b1c7e-0d8a-4b35-9c8f-6b1f0e6d2a11","name":"t{at}","fullyQualifiedName":"pg.shop.public.t{at}","columns":{columns}}}"#
        )
    };
    let after = if from + PAGE < TABLES { format!(r#","after":"after {from}""#) } else { String::new() };
    let tables: Vec<String> = (from..from + PAGE).map(table).collect();
    format!(r#"{{"data":[{}],"paging":{{"total":{TABLES}{after}}}}}"#, tables.join(","))
}

fn columns() -> String {
    let column = |at: usize| {
        let tags = if at == 0 {
            json!([{"tagFQN": "PII.Sensitive", "source": "Classification", "labelType": "Manual", "state": "Confirmed"}])
        } else {
            json!([])
        };
        json!({"name": format!("column_{at}"), "dataType": "VARCHAR", "dataLength": 100, "description": "x".repeat(200),
               "fullyQualifiedName": format!("pg.shop.public.t.column_{at}"), "tags": tags})
    };
    (0..COLUMNS).map(column).collect::<serde_json::Value>().to_string()
}

#[test]
fn a_hundred_thousand_tables() {
    let reading = Reading { catalogs: [("pg".to_owned(), "climscore".into())].into(), glossaries: false };
    let columns = columns();
    let mut assembly = Assembly::new(&reading);
    let (mut from, mut answered) = (0, 0);
    MEMORY.reset_peak_usage();
    let before = MEMORY.current_usage();
    loop {
        let answer = page(from, &columns);
        answered += answer.len();
        from += PAGE;
        if assembly.tables(answer.as_bytes()).unwrap().is_none() {
            break;
        }
    }
    let picture = assembly.finish(0).unwrap();
    assert_eq!((from, picture.tables.len()), (TABLES, TABLES));
    let (kept, peak) = (MEMORY.current_usage() - before, MEMORY.peak_usage() - before);
    let of_column = kept / (TABLES * COLUMNS);
    println!("{answered} bytes answered, {kept} kept ({of_column} a column), {peak} at most");
    assert!(of_column < 100, "{of_column} bytes a column");
    // A push changes one table; the picture after it shares the columns of all others.
    let (again, shared) = (picture.clone(), MEMORY.current_usage() - before - kept);
    assert!(shared < 100 * TABLES && again == picture, "{shared} bytes for a second picture");
    // A page, as text and as values, comes on top, and a list that doubles.
    assert!(peak < kept * 3 / 2 + (64 << 20), "{peak} bytes at most, {kept} kept");
    assert!(peak < answered, "{peak} of {answered}");
}
