//! What the worst texts cost: each family of `tests/support/families.rs` at a quarter of a MiB, at half
//! of one and at the longest that is judged.
//!
//! `cargo bench --bench exhaustion`; it fails when a text of 1 MiB takes over 50 ms. An argument names
//! the families that are wanted.

use std::hint::black_box;
use std::time::{Duration, Instant};

use fedgate::guard::{Context, Mode, Step, judge};
use fedgate::ids::SourceName;
use fedgate::sql::Limits;
use fedgate::sql::catalogue::Catalogue;

#[path = "../tests/support/families.rs"]
mod families;

// The gateway's own allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LONGEST: Duration = Duration::from_millis(50);

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
        for bytes in [limits.bytes / 4, limits.bytes / 2, limits.bytes - 16] {
            let text = make(bytes);
            let least = (0..3)
                .map(|_| {
                    let start = Instant::now();
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
    rows.sort_by_key(|(times, _, _)| std::cmp::Reverse(times.last().copied()));
    println!("{:<40} {:>10} {:>10} {:>10}  answer", "family", "256 KiB", "512 KiB", "1 MiB");
    for (times, name, answer) in &rows {
        let [quarter, half, whole] = times.as_slice() else { continue };
        let milliseconds = |time: &Duration| time.as_secs_f64() * 1e3;
        println!(
            "{name:<40} {:>7.2} ms {:>7.2} ms {:>7.2} ms  {answer}",
            milliseconds(quarter),
            milliseconds(half),
            milliseconds(whole)
        );
    }
    let slow: Vec<_> = rows.iter().filter(|(times, _, _)| times.iter().any(|time| *time > LONGEST)).collect();
    assert!(slow.is_empty(), "{} of {} families take over {LONGEST:?}", slow.len(), rows.len());
}
