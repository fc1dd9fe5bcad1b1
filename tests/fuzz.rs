//! The fuzz targets' entry points on a stable compiler: every seed, seeds with bytes changed, and
//! random bytes.
//!
//! Invariant: the same entry points as in `fuzz/`, where libFuzzer looks for more.

#[path = "../fuzz/entry.rs"]
mod entry;
#[path = "../fuzz/seeds.rs"]
mod seeds;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// Changed seeds a target; `FEDGATE_FUZZ_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("FEDGATE_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(1500)
}

/// One change of a text.
#[derive(Clone, Debug)]
enum Change {
    Set(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Double(prop::sample::Index, usize),
    Cut(prop::sample::Index),
}

/// What is put into texts: signs that mean something to a lexer, and any byte.
fn piece() -> impl Strategy<Value = Vec<u8>> {
    const SIGNS: &[&str] = &[
        "'",
        "\"",
        "$$",
        "$a$",
        "/*",
        "*/",
        "--",
        "\n",
        "\\",
        ";",
        "(",
        ")",
        "[",
        "]",
        "U&'",
        "E'",
        "::",
        "..",
        " UESCAPE '!'",
        "\0",
        "\u{7f}",
        "é",
        "0x",
        "1e",
        "$1",
        " INTO ",
        " FOR UPDATE",
        "set_config(",
        " nextval('s') ",
        "pg_sleep(9)",
        " UNION ALL ",
        ",",
        ".",
        "*",
        "=>",
        ":=",
        "user=",
        "fedgate query=",
    ];
    prop_oneof![
        3 => prop::sample::select(SIGNS).prop_map(|sign| sign.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..6),
    ]
}

fn change() -> impl Strategy<Value = Change> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (at(), piece()).prop_map(|(at, piece)| Change::Insert(at, piece)),
        (at(), 1usize..20).prop_map(|(at, count)| Change::Remove(at, count)),
        (at(), 1usize..40).prop_map(|(at, count)| Change::Double(at, count)),
        at().prop_map(Change::Cut),
    ]
}

fn changed(mut text: Vec<u8>, changes: &[Change]) -> Vec<u8> {
    for change in changes {
        let length = text.len() + 1;
        match change {
            Change::Set(at, byte) if !text.is_empty() => {
                let at = at.index(text.len());
                text[at] = *byte;
            }
            Change::Set(..) => {}
            Change::Insert(at, piece) => {
                let at = at.index(length);
                text.splice(at..at, piece.iter().copied());
            }
            Change::Remove(at, count) => {
                let at = at.index(length);
                text.drain(at..(at + count).min(text.len()));
            }
            Change::Double(at, count) => {
                let at = at.index(length);
                let part = text[at..(at + count).min(text.len())].to_vec();
                text.splice(at..at, part);
            }
            Change::Cut(at) => text.truncate(at.index(length)),
        }
    }
    text
}

fn run(target: &str) {
    let (_, entry) = entry::ENTRIES.into_iter().find(|(name, _)| *name == target).unwrap();
    let seeds = seeds::of(target);
    assert!(!seeds.is_empty());
    for seed in &seeds {
        entry(seed);
    }
    let mut runner =
        TestRunner::new(Config { cases: cases(), failure_persistence: None, ..Config::default() });
    let texts = (prop::sample::select(seeds), prop::collection::vec(change(), 1..5));
    runner
        .run(&texts, |(seed, changes)| {
            entry(&changed(seed, &changes));
            Ok(())
        })
        .unwrap();
    runner
        .run(&prop::collection::vec(any::<u8>(), 0..400), |bytes| {
            entry(&bytes);
            Ok(())
        })
        .unwrap();
}

#[test]
fn frames() {
    run("frames");
}

#[test]
fn answers() {
    run("answers");
}

#[test]
fn startup() {
    run("startup");
}

#[test]
fn guard() {
    run("guard");
}

#[test]
fn comment() {
    run("comment");
}

#[test]
fn explain() {
    run("explain");
}

#[test]
fn catalog() {
    run("catalog");
}
