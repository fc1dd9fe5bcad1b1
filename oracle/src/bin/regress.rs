//! Measures the guard over PostgreSQL's regression suite.
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use fedgate::guard::{Context, Mode, Step, judge};
use fedgate::ids::SourceName;
use fedgate::sql::Limits;
use fedgate::sql::catalogue::Catalogue;
use fedgate_oracle::judge::{self, Kind};
use fedgate_oracle::report::{Refused, grouped};
use fedgate_oracle::script::{Item, Script};
use fedgate_oracle::suite;

fn main() {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let folder = arguments.next().unwrap();
    let output = arguments.next().unwrap();
    judge::with_stack(|| run(&folder, &output));
}

fn run(folder: &std::path::Path, output: &std::path::Path) {
    let catalogue = Catalogue::stock(15).unwrap();
    let (source, limits) = (SourceName::new("regression"), Limits::default());
    let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut refused = Vec::new();
    for path in suite::files(folder).unwrap() {
        let bytes = std::fs::read(&path).unwrap();
        let Ok(text) = String::from_utf8(bytes) else {
            *counts.entry("file not UTF-8".into()).or_default() += 1;
            continue;
        };
        let mut script = Script::new(&text, HashMap::new());
        while let Some(item) = script.next_item() {
            let mut count = |name: &str| *counts.entry(name.into()).or_default() += 1;
            let Item::Statement(statement) = item else { continue };
            let seen = match judge::read(&statement.text) {
                Ok(seen) => seen,
                Err(_) => {
                    count("not parsed by pg_query");
                    continue;
                }
            };
            if seen.iter().any(|seen| matches!(&seen.kind, Kind::Write(what) if what == "COPY FROM"))
                && statement.text.to_ascii_lowercase().contains("stdin")
            {
                script.data();
            }
            let reads = seen.iter().all(|seen| !seen.kind.is_write());
            let select = reads && seen.len() == 1 && seen[0].kind == Kind::Read;
            let verdict = judge(statement.text.as_bytes(), &ctx);
            let refusal = verdict.steps.iter().find_map(|step| match step {
                Step::Refuse(refusal) => Some(refusal),
                Step::Admit(_) => None,
            });
            match (reads, refusal) {
                (true, None) => {
                    count("reads admitted");
                    if select {
                        count("queries");
                        count("queries parsed");
                    }
                }
                (false, None) => {
                    count("ADMITTED WRITES");
                    println!("ADMITTED {}:{} {} {:?}", path.display(), statement.line, statement.text, seen);
                }
                (true, Some(refusal)) => {
                    count(&format!("reads refused: {}", refusal.class.as_str()));
                    let unverified =
                        refusal.class.as_str() == "unverified" || refusal.class.as_str() == "write";
                    if select {
                        count("queries");
                        if !unverified {
                            count("queries parsed");
                        }
                    }
                    if unverified {
                        refused.push(Refused {
                            file: path.file_name().unwrap().to_string_lossy().into_owned(),
                            line: statement.line,
                            text: statement.text.clone(),
                            class: refusal.class.as_str().into(),
                            message: refusal.message.clone(),
                            offset: refusal.offset,
                        });
                    }
                }
                (false, Some(_)) => count("writes refused"),
            }
        }
    }
    println!("{counts:#?}");
    std::fs::write(output, grouped(&refused)).unwrap();
}
