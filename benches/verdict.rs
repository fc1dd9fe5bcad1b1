//! What a verdict costs, on statements that Trino and PgJDBC send.
//!
//! `cargo bench --bench verdict`; targets, in the median over the statements: 15 µs uncached, 0.5 µs
//! cached.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use fedgate::guard::{Context, Mode, VerdictCache, judge};
use fedgate::ids::SourceName;
use fedgate::sql::Limits;
use fedgate::sql::catalogue::Catalogue;
use fedgate::sql::{lexer, parse};

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

/// The median and the greatest over the statements of the least time of several rounds each.
fn spread(statements: &[String], mut judge: impl FnMut(&str)) -> (Duration, Duration) {
    let mut times: Vec<Duration> = statements
        .iter()
        .map(|sql| {
            (0..20)
                .map(|_| {
                    let start = Instant::now();
                    for _ in 0..10 {
                        judge(sql);
                    }
                    start.elapsed() / 10
                })
                .min()
                .unwrap_or_default()
        })
        .collect();
    times.sort_unstable();
    let at = |index: usize| times.get(index).copied().unwrap_or_default();
    (at(times.len() / 2), at(times.len().saturating_sub(1)))
}

fn verdicts(criterion: &mut Criterion) {
    let catalogue = Catalogue::stock(15).unwrap_or_else(|error| panic!("{error}"));
    let (limits, source) = (Limits::default(), SourceName::new("climscore"));
    let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
    for client in ["trino", "jdbc"] {
        let statements = recorded(client);
        let (uncached, slowest) = spread(&statements, |sql| {
            black_box(judge(sql.as_bytes(), &ctx));
        });
        let (lexed, _) = spread(&statements, |sql| {
            let _ = black_box(lexer::tokens(sql, &limits));
        });
        let (parsed, _) = spread(&statements, |sql| {
            if let Ok(tokens) = lexer::tokens(sql.trim_end_matches(';'), &limits) {
                let _ = black_box(parse::query(&tokens));
            }
        });
        let cache = VerdictCache::new(16 << 20);
        let (cached, _) = spread(&statements, |sql| {
            black_box(cache.judge(sql.as_bytes(), &ctx, 1));
        });
        println!(
            "{client}: {} statements, median uncached {uncached:?} (slowest {slowest:?}; lexed {lexed:?}, lexed and parsed {parsed:?}), cached {cached:?}",
            statements.len()
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
