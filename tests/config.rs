//! Configurations, good and bad, against what `Config` makes of them.
//!
//! `tests/config/*.yaml` hold the cases: `note`, `toml`, and what is wrong (`errors`, each a part of
//! one line of the report, in order) or what is remarked (`findings`). In `toml`, `@base` stands for
//! a configuration that is good by itself and `@gateway` for one without a source.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use fedgate::config::{Auth, Config, Host, TlsMode, Verifier, users_line};
use fedgate::ids::ClientUser;
use serde::Deserialize;

const GATEWAY: &str = r#"
[gateway]
listen = ["127.0.0.1:0"]
[gateway.auth]
method = "scram"
users_file = "users.txt"
"#;

const SOURCE: &str = r#"
[[source]]
name = "climscore"
hosts = ["127.0.0.1:5432"]
database = "climscore"
user = "akko_readonly"
password_file = "password"
access = [{ users = ["analyst"] }]
"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    note: String,
    toml: String,
    #[serde(default)]
    errors: Vec<String>,
    findings: Option<Vec<String>>,
}

/// A folder with the files that configurations speak of.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    };
    let verifier = Verifier::derive("secret", b"salt", 1);
    let users: Vec<String> = ["analyst", "trino", "writer"].map(|name| users_line(name, &verifier)).into();
    write("users.txt", &users.join("\n"));
    write("password", "hunter2\n");
    write("climscore.password", "hunter2\n");
    write("open", "hunter2\n");
    fs::set_permissions(folder.path().join("open"), fs::Permissions::from_mode(0o644)).unwrap();
    write("plain-users.txt", "\"analyst\" \"hunter2\"\n");
    write("empty", "\n");
    write("two-lines", "hunter2\nhunter3\n");
    write("not.pem", "-----BEGIN PRIVATE KEY-----\nhunter2!\n-----END PRIVATE KEY-----\n");
    let pair = || rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (one, other) = (pair(), pair());
    write("server.crt", &one.cert.pem());
    write("server.key", &one.signing_key.serialize_pem());
    write("other.key", &other.signing_key.serialize_pem());
    folder
}

fn parse(text: &str, base: &Path) -> Result<Config, Vec<String>> {
    let text = text.replace("@base", &format!("{GATEWAY}{SOURCE}")).replace("@gateway", GATEWAY);
    Config::parse(&text, base).map_err(|error| error.to_string().lines().map(str::to_owned).collect())
}

#[test]
fn cases() {
    let folder = folder();
    let mut files: Vec<_> = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/config"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    let (mut count, mut failures) = (0, Vec::new());
    for file in files {
        let cases: Vec<Case> = serde_yaml_ng::from_str(&fs::read_to_string(&file).unwrap())
            .unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        for case in cases {
            count += 1;
            let mut fail = |message: String| failures.push(format!("{}: {message}", case.note));
            let (lines, want, config) = match parse(&case.toml, folder.path()) {
                Ok(config) if case.errors.is_empty() => {
                    let lines: Vec<String> = config
                        .findings()
                        .iter()
                        .map(|finding| {
                            let place = finding.source.as_deref().unwrap_or("gateway");
                            format!("{:?} {place} {}: {}", finding.severity, finding.key, finding.message)
                        })
                        .collect();
                    (lines, case.findings.unwrap_or_default(), Some(config))
                }
                Ok(_) => {
                    fail(format!("accepted, want {:?}", case.errors));
                    continue;
                }
                Err(lines) => (lines, case.errors, None),
            };
            if lines.len() != want.len() || !lines.iter().zip(&want).all(|(line, part)| line.contains(part)) {
                fail(format!("\n  got  {lines:#?}\n  want {want:#?}"));
            }
            let shown = format!("{lines:?}{config:?}");
            if shown.contains("hunter") || shown.contains("BEGIN") {
                fail(format!("a secret is shown: {shown}"));
            }
        }
    }
    assert!(count > 60, "only {count} cases were found");
    assert!(failures.is_empty(), "{} of {count}:\n{}", failures.len(), failures.join("\n"));
}

/// The example is complete: it loads, and with every default written out it says the same.
#[test]
fn the_example_loads_and_its_defaults_are_the_defaults() {
    let folder = folder();
    let text = include_str!("../config/fedgate.toml");
    let config = parse(text, folder.path()).unwrap();
    let written_out: String = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(rest) if !rest.is_empty() && !rest.starts_with(' ') => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert_ne!(text, written_out);
    let spelled = parse(&written_out, folder.path()).unwrap();
    assert_eq!(format!("{config:#?}"), format!("{spelled:#?}"));

    let source = config.source("climscore").unwrap();
    let trino = ClientUser::new("trino");
    assert!(source.allows(&trino, "127.0.0.1".parse().unwrap(), false));
    assert!(source.allows(&trino, "::ffff:127.0.0.1".parse().unwrap(), false));
    assert!(!source.allows(&trino, "10.0.0.1".parse().unwrap(), false));
    assert!(!source.allows(&ClientUser::new("nobody"), "127.0.0.1".parse().unwrap(), true));
    assert!(source.is_engine(&trino) && !source.is_writer(&trino));
}

/// The example's optional keys, shown behind `# `, are real.
#[test]
fn the_keys_that_the_example_only_shows_are_known() {
    let folder = folder();
    let config = parse(
        &format!(
            r#"{}
[gateway.tls]
certificate = "server.crt"
private_key = "server.key"
client_ca = "server.crt"
required = true
[http]
listen = "127.0.0.1:8080"
[http.tls]
certificate = "server.crt"
private_key = "server.key"
client_ca = "server.crt"
{}
tls = "verify-full"
tls_ca = "server.crt"
"#,
            GATEWAY.replace("[gateway.auth]", "worker_threads = 2\n[gateway.auth]"),
            SOURCE.replace("127.0.0.1:5432\"", "/run/postgresql\", \"db.example:6432\""),
        ),
        folder.path(),
    )
    .unwrap();
    assert_eq!(config.gateway.worker_threads, 2);
    let tls = config.gateway.tls.as_ref().unwrap();
    assert!(tls.required);
    assert_eq!(config.http.as_ref().unwrap().tls.as_ref(), Some(&tls.files));
    let source = config.source("climscore").unwrap();
    assert_eq!(source.tls.mode, TlsMode::VerifyFull);
    assert_eq!(source.tls.ca, Some(folder.path().join("server.crt")));
    assert_eq!(
        source.hosts,
        [
            Host::Unix { path: "/run/postgresql/.s.PGSQL.5432".into() },
            Host::Tcp { host: "db.example".into(), port: 6432 }
        ]
    );
    assert_eq!(config.gateway.auth, Auth::Scram { users_file: folder.path().join("users.txt") });
}

#[test]
fn a_file_is_named_in_its_errors_and_paths_are_relative_to_it() {
    let folder = folder();
    let path = folder.path().join("fedgate.toml");
    fs::write(&path, format!("{GATEWAY}{SOURCE}")).unwrap();
    assert!(Config::load(&path).is_ok());
    fs::write(&path, format!("{GATEWAY}{SOURCE}\nreadonly = true\n")).unwrap();
    let error = Config::load(&path).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{}:16: source[0].readonly: is not a known key; did you mean read_only?", path.display())
    );
    let missing = folder.path().join("missing.toml");
    let error = Config::load(&missing).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: cannot be read", missing.display())), "{error}");
}
