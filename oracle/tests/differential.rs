//! The guard and PostgreSQL's parser agree on the cases, on what clients send, and on what is made for a minute.
//!
//! Invariant: each finding is printed as an entry for `tests/guard/*.yaml`, with the seed that repeats it.

use std::time::Duration;

use fedgate_oracle::differential::{Report, Run};
use fedgate_oracle::judge;

/// What a minute brings on a busy machine, and then some room: a run that does nothing fails.
const FEWEST_TEXTS: u64 = 2000;
const FEWEST_ADMITTED: u64 = 400;

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// FUZZ_SECONDS and FUZZ_SEED are as for `make fuzz`; CI takes another seed each day.
#[test]
fn whatever_is_admitted_is_a_read_to_postgresql() {
    let day = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() / 86_400;
    let seed = environment("FUZZ_SEED").unwrap_or(day);
    let seconds = environment("FUZZ_SECONDS").unwrap_or(60);
    let mut found: Vec<String> = Vec::new();
    let (counts, seeds, loose) = judge::with_stack(|| {
        let mut run = Run::new(seed, 18);
        let mut report = |report: Report| found.push(report.case());
        run.start(&mut report);
        run.go(Duration::from_secs(seconds), &mut report);
        (run.counts, run.seeds(), run.loosely_read().len())
    });
    println!(
        "seed {seed}: {} texts, {} admitted with {} statements, {} admitted that are no SQL ({loose} shapes)",
        counts.texts, counts.admitted, counts.statements, counts.allowed
    );
    assert!(found.is_empty(), "FUZZ_SEED={seed} repeats these:\n{}", found.join("\n"));
    assert!(seeds >= 1500, "only {seeds} texts to start from");
    assert!(counts.texts >= FEWEST_TEXTS && counts.admitted >= FEWEST_ADMITTED, "{counts:?}");
}
