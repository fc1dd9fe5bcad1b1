//! What the worst texts cost: each family of `tests/support/families.rs` at sizes up to the longest
//! that is judged, and at the longest that passes the caps on tokens.
//!
//! `cargo bench --bench exhaustion`; it fails when a text takes over 50 ms of the thread's own time, the least
//! of three. An argument names the families that are wanted.

use std::hint::black_box;
use std::time::Duration;

use cpu_time::ThreadTime;
use fedgate::guard::{Context, Mode, Step, judge};
use fedgate::ids::SourceName;
use fedgate::sql::Limits;
use fedgate::sql::catalogue::Catalogue;
use fedgate::sql::lexer;

#[path = "../tests/support/families.rs"]
mod families;

// The gateway's own allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LONGEST: Duration = Duration::from_millis(50);

/// About the longest of the family that the caps let through to the parser: what costs most.
fn longest(make: fn(usize) -> String, limits: &Limits) -> usize {
    let (mut fits, mut over) = (0, limits.bytes - 16);
    while over - fits > 256 {
        let middle = fits.midpoint(over);
        if lexer::tokens(&make(middle), limits).is_ok() {
            fits = middle;
        } else {
            over = middle;
        }
    }
    fits
}

fn main() {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let catalogue = Catalogue::stock(15).unwrap_or_else(|error| panic!("{error}"));
    let (limits, source) = (Limits::default(), SourceName::new("climscore"));
    let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
    let mut rows = Vec::new();
    for (name, make) in families::FAMILIES {
        if wanted.as_ref().is_some_and(|wanted| !name.contains(wanted.as_str())) {
            continue;
        }
        let mut times = Vec::new();
        let mut answer = "admit";
        let longest = longest(*make, &limits);
        for bytes in [limits.bytes / 16, limits.bytes / 8, limits.bytes / 4, limits.bytes - 16, longest] {
            let text = make(bytes);
            let least = (0..3)
                .map(|_| {
                    let start = ThreadTime::now();
                    let verdict = black_box(judge(black_box(text.as_bytes()), &ctx));
                    answer = match verdict.steps.last() {
                        Some(Step::Refuse(refusal)) => refusal.class.as_str(),
                        Some(Step::Admit(_)) => "admit",
                        None => "empty",
                    };
                    // With what it takes to drop it.
                    drop(verdict);
                    start.elapsed()
                })
                .min()
                .unwrap_or_default();
            times.push(least);
        }
        rows.push((times, *name, answer));
    }
    rows.sort_by_key(|(times, _, _)| std::cmp::Reverse(times.iter().max().copied()));
    println!(
        "{:<40} {:>10} {:>10} {:>10} {:>10} {:>10}  answer",
        "family", "64 KiB", "128 KiB", "256 KiB", "1 MiB", "longest"
    );
    for (times, name, answer) in &rows {
        print!("{name:<40}");
        for time in times {
            print!(" {:>7.2} ms", time.as_secs_f64() * 1e3);
        }
        println!("  {answer}");
    }
    let slow: Vec<_> = rows.iter().filter(|(times, _, _)| times.iter().any(|time| *time > LONGEST)).collect();
    assert!(slow.is_empty(), "{} of {} families take over {LONGEST:?}", slow.len(), rows.len());
}
