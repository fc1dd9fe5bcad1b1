//! Compares the guard with PostgreSQL's parser on generated and changed SQL, for FUZZ_SECONDS or until Ctrl-C.
use std::time::{Duration, Instant};

use fedgate_oracle::differential::Run;
use fedgate_oracle::judge;

fn main() {
    judge::with_stack(|| {
        let number = |name: &str| std::env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
        let seed = number("FUZZ_SEED").unwrap_or_else(|| {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos()
                as u64
        });
        let seconds = number("FUZZ_SECONDS").unwrap_or(u64::MAX);
        println!("seed {seed} (FUZZ_SEED={seed} repeats it)");
        std::panic::set_hook(Box::new(|_| {}));
        let mut run = Run::new(seed, 18);
        let begun = Instant::now();
        let show = |report: fedgate_oracle::differential::Report| {
            println!("\n# found in {:?}\n{}", report.original, report.case());
        };
        run.start(show);
        while begun.elapsed().as_secs() < seconds {
            run.go(Duration::from_secs(10.min(seconds)), show);
            let counts = run.counts;
            println!(
                "{:6} s: {} texts, {} admitted ({} statements), {} allowed, {} findings",
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
            std::fs::write(path, lines).expect("a file for what is no SQL");
        }
        std::process::exit(i32::from(run.counts.findings > 0));
    });
}
