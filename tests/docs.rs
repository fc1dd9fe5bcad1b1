//! What the documents say must be so: commands, links, paths, configurations.
//!
//! Invariant: a reader who follows README or CONTRIBUTING word by word meets nothing that is not there.

mod support;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The pages that people read.
fn pages() -> Vec<PathBuf> {
    let mut pages: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(PathBuf::from).to_vec();
    for entry in std::fs::read_dir(root().join("docs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path.strip_prefix(root()).unwrap().to_owned());
        }
    }
    pages.sort();
    pages
}

/// What stands in single backticks, outside fenced blocks.
fn spans(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    found
}

/// The lines of fenced blocks, with the word behind the fence.
fn fenced(page: &str) -> Vec<(String, String)> {
    let mut blocks: Vec<(String, String)> = Vec::new();
    let mut inside = false;
    for line in page.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            if !inside {
                blocks.push((language.trim().to_owned(), String::new()));
            }
            inside = !inside;
        } else if inside && let Some((_, block)) = blocks.last_mut() {
            block.push_str(line);
            block.push('\n');
        }
    }
    blocks
}

fn commands(page: &str) -> Vec<String> {
    let blocks = fenced(page).into_iter().filter(|(language, _)| language == "sh" || language == "console");
    let lines = blocks.flat_map(|(_, block)| block.lines().map(str::to_owned).collect::<Vec<_>>());
    lines.map(|line| line.trim_start_matches("$ ").trim().to_owned()).chain(spans(page)).collect()
}

#[test]
fn make_targets_that_are_spoken_of_exist() {
    let makefile = text("Makefile");
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter(|line| !line.starts_with(['\t', '.', '#', ' ']) && !line.contains(":="))
        .filter_map(|line| line.split_once(':').map(|(target, _)| target))
        .collect();
    let mut spoken = BTreeSet::new();
    for page in pages() {
        for command in commands(&text(&page)) {
            if let Some(target) =
                command.strip_prefix("make ").and_then(|rest| rest.split_whitespace().next())
            {
                assert!(targets.contains(target), "{}: there is no `make {target}`", page.display());
                spoken.insert(target.to_owned());
            }
        }
    }
    for command in ["demo", "test", "e2e", "bench"] {
        assert!(spoken.contains(command), "no page speaks of `make {command}`");
    }
    let first_screen: String = text("README.md").lines().take(24).collect::<Vec<_>>().join("\n");
    assert!(
        first_screen.contains("make demo") && first_screen.contains("make test"),
        "README's first screen"
    );
}

#[test]
fn links_lead_somewhere() {
    for page in pages() {
        let text = text(&page);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            if link.contains("://") {
                continue;
            }
            let (file, anchor) =
                link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let target = match file {
                "" => root().join(&page),
                file => root().join(&page).parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link} leads nowhere", page.display());
            if let Some(anchor) = anchor {
                let headings: Vec<String> = self::text(target)
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .map(|line| slug(line.trim_start_matches('#').trim()))
                    .collect();
                assert!(
                    headings.iter().any(|heading| heading == anchor),
                    "{}: no heading #{anchor}",
                    page.display()
                );
            }
        }
    }
}

fn slug(heading: &str) -> String {
    let kept = heading.to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[test]
fn paths_that_are_spoken_of_exist() {
    let folders =
        ["src/", "tests/", "docs/", "config/", "deploy/", "scripts/", "examples/", "benches/", ".ci/"];
    for page in pages() {
        for span in spans(&text(&page)) {
            if !folders.iter().any(|folder| span.starts_with(folder)) || span.contains(' ') {
                continue;
            }
            let exists = match span.split_once('*') {
                Some((before, after)) => {
                    let folder = root().join(before);
                    let entries = std::fs::read_dir(&folder).into_iter().flatten().flatten();
                    entries.into_iter().any(|entry| entry.file_name().to_string_lossy().ends_with(after))
                }
                None => root().join(&span).exists(),
            };
            assert!(exists, "{}: there is no {span}", page.display());
        }
    }
}

#[test]
fn subcommands_are_those_that_readme_names() {
    let help = Command::new(support::fedgate()).arg("--help").output().unwrap();
    assert!(help.status.success());
    let help = String::from_utf8(help.stdout).unwrap();
    let offered: BTreeSet<String> = help
        .lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .filter(|command| command != "help")
        .collect();
    let readme = text("README.md");
    let named: BTreeSet<String> = commands(&readme)
        .iter()
        .filter_map(|command| command.strip_prefix("fedgate ")?.split_whitespace().next().map(str::to_owned))
        .filter(|word| !word.starts_with('-'))
        .collect();
    assert_eq!(named, offered, "README (left) and `fedgate --help` (right)");
    for command in offered {
        let output = Command::new(support::fedgate()).args([command.as_str(), "--help"]).output().unwrap();
        assert!(output.status.success(), "fedgate {command} --help");
    }
}

/// Runs `fedgate check` on a configuration whose secrets lie in a folder made for it.
fn check(name: &str, toml: &str) {
    let folder = tempfile::tempdir().unwrap();
    let mut toml = toml.replace("/secrets/", &format!("{}/", folder.path().display()));
    for line in toml.clone().lines() {
        if let Some((key, value)) = line.split_once('=')
            && key.trim_end().ends_with("_file")
            && !line.starts_with('#')
        {
            let value = value.trim().trim_matches('"');
            let file = folder.path().join(Path::new(value).file_name().unwrap());
            let text = match key.trim() {
                "users_file" => format!("\"trino\" \"{}\"\n", support::scram_verifier("secret")),
                _ => "secret\n".to_owned(),
            };
            std::fs::write(&file, text).unwrap();
            toml = toml.replace(value, &file.display().to_string());
        }
    }
    let file = folder.path().join("fedgate.toml");
    std::fs::write(&file, toml).unwrap();
    std::fs::write(folder.path().join("policy.json"), text("deploy/compose/policy.json")).unwrap();
    let output = Command::new(support::fedgate()).arg("check").arg("--config").arg(&file).output().unwrap();
    assert!(
        output.status.success(),
        "{name}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn configurations_that_are_shown_are_accepted() {
    for page in pages() {
        for (language, block) in fenced(&text(&page)) {
            // A whole configuration, not a few keys of one.
            if language == "toml" && block.contains("[gateway]") && block.contains("[[source]]") {
                check(&page.display().to_string(), &block);
            }
        }
    }
    check("docker-compose", &text("deploy/compose/fedgate.toml"));
}

#[test]
fn the_trino_catalog_is_the_one_that_the_platform_uses() {
    let properties = text("deploy/trino/climscore.properties");
    for line in [
        "connector.name=postgresql",
        "connection-url=jdbc:postgresql://${ENV:CLIMSCORE_RO_HOST}:${ENV:CLIMSCORE_RO_PORT}/${ENV:CLIMSCORE_RO_DB}",
        "connection-user=${ENV:CLIMSCORE_RO_USER}",
        "connection-password=${ENV:CLIMSCORE_RO_PASS}",
        "case-insensitive-name-matching=false",
    ] {
        assert!(properties.lines().any(|other| other == line), "{line}");
    }
    let comment = properties.lines().find_map(|line| line.strip_prefix("query.comment-format=")).unwrap();
    assert!(
        text("deploy/compose/fedgate.toml").contains(comment),
        "the gateway looks for the comment Trino writes"
    );
}

/// The names that the code registers, those among them that appear with their first source only.
fn metrics() -> BTreeSet<String> {
    let mut files = vec![root().join("src/metrics.rs")];
    files.extend(std::fs::read_dir(root().join("src/metrics")).unwrap().map(|entry| entry.unwrap().path()));
    let texts = files.iter().map(|file| std::fs::read_to_string(file).unwrap()).collect::<String>();
    let is_name = |name: &&str| {
        let own = name.starts_with("fedgate_") || name.starts_with("akko_");
        own && !name.ends_with('_') && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
    };
    texts.split('"').filter(is_name).map(str::to_owned).collect()
}

#[test]
fn each_metric_is_documented_and_no_other() {
    let page = text("docs/metrics.md");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: BTreeSet<String> = rows
        .filter(|name| name.starts_with("fedgate_") || name.starts_with("akko_"))
        .map(str::to_owned)
        .collect();
    assert_eq!(documented, metrics());
}

/// The alert rules are what Prometheus takes, fire when they should, and speak of metrics that there are.
#[test]
fn alert_rules_hold() {
    let folder = root().join("deploy/prometheus");
    for arguments in [["check", "rules", "fedgate.rules.yaml"], ["test", "rules", "fedgate.test.yaml"]] {
        let run = Command::new("promtool").args(arguments).current_dir(&folder).output();
        let run = run.expect("promtool, which scripts/setup brings (Debian: prometheus)");
        let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "promtool {arguments:?}: {said}");
    }
    let known = metrics();
    let rules = text("deploy/prometheus/fedgate.rules.yaml");
    for line in rules.lines().filter_map(|line| line.trim().strip_prefix("expr: ")) {
        let words = line.split(|letter: char| !(letter.is_ascii_alphanumeric() || letter == '_'));
        for word in words.filter(|word| word.starts_with("fedgate_") || word.starts_with("akko_")) {
            assert!(known.contains(word), "there is no metric {word}");
        }
    }
}
