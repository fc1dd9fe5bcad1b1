//! `make fuzz`: compares the guard with PostgreSQL's parser on generated and changed SQL.
//!
//! Invariant: the seed that is printed first makes the same texts again.
//!
//! FUZZ_SECONDS bounds it (else it runs until Ctrl-C), FUZZ_SEED repeats a run, FUZZ_LOOSE names a file for
//! admitted texts that are no SQL. Ends with 1 when something was found.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fedgate_oracle::differential::{Report, Run};
use fedgate_oracle::judge;

/// Seconds between two lines of progress.
const LINE: u64 = 10;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn main() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let seed = number("FUZZ_SEED").unwrap_or(now);
    let seconds = number("FUZZ_SECONDS").unwrap_or(u64::MAX);
    println!("seed {seed} (FUZZ_SEED={seed} repeats it)");
    // A panic of the guard is a finding, which is printed with its text.
    std::panic::set_hook(Box::new(|_| {}));
    let findings = judge::with_stack(|| run(seed, seconds));
    std::process::exit(i32::from(findings > 0));
}

fn run(seed: u64, seconds: u64) -> u64 {
    let mut run = Run::new(seed, 18);
    let begun = Instant::now();
    let show = |report: Report| println!("\n# found in {:?}\n{}", report.original, report.case());
    run.start(show);
    while begun.elapsed().as_secs() < seconds {
        run.go(Duration::from_secs(LINE.min(seconds)), show);
        let counts = run.counts;
        println!(
            "{:6} s: {} texts, {} admitted ({} statements), {} admitted that are no SQL, {} findings",
            begun.elapsed().as_secs(),
            counts.texts,
            counts.admitted,
            counts.statements,
            counts.allowed,
            counts.findings
        );
    }
    if let Some(path) = std::env::var_os("FUZZ_LOOSE") {
        let lines: String = run.loosely_read().values().map(|line| format!("{line}\n")).collect();
        if let Err(error) = std::fs::write(&path, lines) {
            println!("cannot write {}: {error}", path.display());
        }
    }
    run.counts.findings
}
