//! What a verdict costs, on statements that Trino and PgJDBC send.
//!
//! `cargo bench --bench verdict`; targets, in the median over the statements: 15 µs uncached for
//! Trino's and 40 µs for PgJDBC's, 0.5 µs cached, and judging takes less than parsing.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use fedgate::guard::{Context, Mode, VerdictCache, judge};
use fedgate::ids::SourceName;
use fedgate::sql::Limits;
use fedgate::sql::catalogue::Catalogue;
use fedgate::sql::{front, lexer, parse};

// The gateway's own allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(serde::Deserialize)]
struct Case {
    sql: String,
    want: String,
}

/// The admitted statements of the recorded tables.
fn recorded(client: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/guard/client_{client}.yaml"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let cases: Vec<Case> =
        serde_yaml_ng::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    cases
        .into_iter()
        .filter(|case| case.want == "admit" && !case.sql.is_empty())
        .map(|case| case.sql)
        .collect()
}

/// For each statement the least time of several rounds.
fn least(statements: &[String], mut work: impl FnMut(&str)) -> Vec<Duration> {
    let round = |sql: &str, work: &mut dyn FnMut(&str)| {
        let start = Instant::now();
        for _ in 0..10 {
            work(sql);
        }
        start.elapsed() / 10
    };
    statements.iter().map(|sql| (0..40).map(|_| round(sql, &mut work)).min().unwrap_or_default()).collect()
}

fn median(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// The median over the statements of what one takes longer than the other.
fn between(whole: &[Duration], part: &[Duration]) -> Duration {
    let more: Vec<_> = whole.iter().zip(part).map(|(whole, part)| whole.saturating_sub(*part)).collect();
    median(&more)
}

fn verdicts(criterion: &mut Criterion) {
    let catalogue = Catalogue::stock(15).unwrap_or_else(|error| panic!("{error}"));
    let (limits, source) = (Limits::default(), SourceName::new("climscore"));
    let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
    for client in ["trino", "jdbc"] {
        let statements = recorded(client);
        let uncached = least(&statements, |sql| {
            black_box(judge(sql.as_bytes(), &ctx));
        });
        let lexed = least(&statements, |sql| {
            let _ = black_box(lexer::tokens(sql, &limits));
        });
        let fronted = least(&statements, |sql| {
            if let Ok(tokens) = lexer::tokens(sql.trim_end_matches(';'), &limits) {
                let _ = black_box(front::rewrite(&tokens));
            }
        });
        let parsed = least(&statements, |sql| {
            if let Ok(tokens) = lexer::tokens(sql.trim_end_matches(';'), &limits) {
                let _ = black_box(parse::query(&tokens));
            }
        });
        let cache = VerdictCache::new(16 << 20);
        let cached = least(&statements, |sql| {
            black_box(cache.judge(sql.as_bytes(), &ctx, 1));
        });
        println!(
            "{client}: {} statements, median uncached {:?} (slowest {:?}), cached {:?}",
            statements.len(),
            median(&uncached),
            uncached.iter().max(),
            median(&cached),
        );
        println!(
            "{client}: of it lexer {:?}, front {:?}, parser {:?}, judging {:?}",
            median(&lexed),
            between(&fronted, &lexed),
            between(&parsed, &fronted),
            between(&uncached, &parsed),
        );
        criterion.bench_function(&format!("{client}/uncached"), |bencher| {
            bencher.iter(|| {
                for sql in &statements {
                    black_box(judge(black_box(sql.as_bytes()), &ctx));
                }
            });
        });
        criterion.bench_function(&format!("{client}/cached"), |bencher| {
            bencher.iter(|| {
                for sql in &statements {
                    black_box(cache.judge(black_box(sql.as_bytes()), &ctx, 1));
                }
            });
        });
    }
    let cache = VerdictCache::new(16 << 20);
    let sql = "SELECT \"nationkey\",\"name\" FROM \"tpch\".\"public\".\"nation\" WHERE \"nationkey\" >= $1";
    criterion.bench_function("scan/uncached", |bencher| {
        bencher.iter(|| black_box(judge(black_box(sql.as_bytes()), &ctx)));
    });
    criterion.bench_function("scan/cached", |bencher| {
        bencher.iter(|| black_box(cache.judge(black_box(sql.as_bytes()), &ctx, 1)));
    });
}

criterion_group!(benches, verdicts);
criterion_main!(benches);
