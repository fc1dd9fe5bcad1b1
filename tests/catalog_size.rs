//! What a large catalog costs in memory: pages are dropped as they are read, names are kept once.
//!
//! Invariant: what is kept grows with the columns and nothing else. One test alone, since it measures its process;
//! `FEDGATE_CATALOG_TABLES=100000 cargo test --test catalog_size -- --nocapture` gives the figures at full size.

use std::fmt::Write;
use std::time::Instant;

use fedgate::sync::catalog::Picture;
use fedgate::sync::catalog::openmetadata::{Assembly, Reading};

const COLUMNS: usize = 50;
const PAGE: usize = 500;

/// A figure of this process, in bytes.
fn memory(of: &str) -> usize {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(of)).unwrap();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

/// A page as OpenMetadata writes it, with what nobody here wants to know.
fn page(first: usize, count: usize, total: usize, names: impl Fn(usize, usize) -> String) -> String {
    let mut text = String::from(r#"{"data":["#);
    for at in first..first + count {
        let comma = if at == first { "" } else { "," };
        write!(text, r#"{comma}{{"id":"5f2b1c7e-0d8a-4b35-9c8f-{at:012x}","name":"t{at}","fullyQualifiedName":"pg_lab.shop.public.t{at}","tableType":"Regular","updatedBy":"admin","columns":["#).unwrap();
        for column in 0..COLUMNS {
            let comma = if column == 0 { "" } else { "," };
            let name = names(at, column);
            let tags = if column == 7 {
                r#"{"tagFQN":"PII.Sensitive","source":"Classification","labelType":"Manual","state":"Confirmed"}"#
            } else {
                ""
            };
            write!(text, r#"{comma}{{"name":"{name}","dataType":"VARCHAR","dataLength":64,"dataTypeDisplay":"varchar(64)","description":"what a steward wrote of it","fullyQualifiedName":"pg_lab.shop.public.t{at}.{name}","constraint":"NULL","tags":[{tags}]}}"#).unwrap();
        }
        text.push_str("]}");
    }
    let after = if first + count < total { format!(r#","after":"{first}""#) } else { String::new() };
    write!(text, r#"],"paging":{{"total":{total}{after}}}}}"#).unwrap();
    text
}

fn read(tables: usize, names: impl Fn(usize, usize) -> String) -> (Picture, usize) {
    let reading =
        Reading { catalogs: [("pg_lab".to_owned(), "climscore".into())].into(), ..Reading::default() };
    let mut assembly = Assembly::new(&reading);
    let mut bytes = 0;
    for first in (0..tables).step_by(PAGE) {
        let text = page(first, PAGE.min(tables - first), tables, &names);
        bytes += text.len();
        assembly.tables(text.as_bytes()).unwrap();
    }
    (assembly.finish(0).unwrap(), bytes)
}

#[test]
fn memory_is_linear_in_what_is_kept() {
    let tables =
        std::env::var("FEDGATE_CATALOG_TABLES").ok().and_then(|text| text.parse().ok()).unwrap_or(5_000);
    // The allocator's own beginnings, and the room of one page.
    drop(read(PAGE, |table, column| format!("c{table}_{column}")));
    let columns = tables * COLUMNS;
    // First as it is: columns of many tables are called the same. Then at its worst.
    let few = |table: usize, column: usize| format!("column_{}", (table * 7 + column) % 5_000);
    let all = |table: usize, column: usize| format!("column_{table}_{column}");
    let mut kept = Vec::new();
    for (what, limit, distinct) in [("5,000 names", 100, false), ("all distinct", 180, true)] {
        let (before, began) = (memory("VmRSS"), Instant::now());
        let (picture, bytes) = if distinct { read(tables, all) } else { read(tables, few) };
        let (after, took) = (memory("VmRSS"), began.elapsed());
        let began = Instant::now();
        let again = picture.clone();
        let (copied, copying) = (memory("VmRSS").saturating_sub(after), began.elapsed());
        let each = after.saturating_sub(before) / columns;
        println!(
            "{tables} tables of {COLUMNS} columns, {what}: {} MB of answers in {took:.1?}; kept {} MB, {each} bytes a column; at most {} MB; a second picture {} MB in {copying:.1?}",
            bytes >> 20,
            after.saturating_sub(before) >> 20,
            memory("VmHWM") >> 20,
            copied >> 20,
        );
        assert_eq!((picture.tables.len(), again == picture), (tables, true));
        assert!(each < limit, "{what}: {each} bytes a column");
        assert!(copied < 200 * tables + (1 << 20), "pictures share their columns: {copied}");
        kept.push((picture, again));
    }
    // Pages are gone: beyond what is kept there was never more than some of them at once.
    let peak = memory("VmHWM").saturating_sub(memory("VmRSS"));
    assert!(peak < 100 << 20, "{peak} bytes more at the most than now");
}
