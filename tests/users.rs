//! `fedgate users` and the exit codes of `fedgate check`, by the program itself.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use fedgate::config::{Users, Verifier};

fn fedgate(folder: &Path, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fedgate"))
        .args(arguments)
        .current_dir(folder)
        .env_remove("RUST_LOG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that wants no input may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    str::from_utf8(bytes).unwrap()
}

/// The verifier is the one of this password: its own salt and rounds lead to the same keys.
fn proves(verifier: &Verifier, password: &str) -> bool {
    Verifier::derive(password, &verifier.salt, verifier.iterations) == *verifier
}

#[test]
fn a_verifier_is_printed_for_the_first_line_of_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let output = fedgate(folder.path(), &["users", "verifier", "o\"brien"], "pässword\nmore\n".as_bytes());
    assert!(output.status.success(), "{}", text(&output.stderr));
    let users = Users::parse(text(&output.stdout)).unwrap();
    let verifier = users.get("o\"brien").unwrap();
    assert_eq!((verifier.iterations, verifier.salt.len()), (4096, 16));
    assert!(proves(verifier, "pässword") && !proves(verifier, "password"));
    let again = fedgate(folder.path(), &["users", "verifier", "o\"brien"], "pässword\n".as_bytes());
    assert_ne!(again.stdout, output.stdout, "each verifier has a salt of its own");
}

#[test]
fn rounds_are_for_whoever_adds_a_user_to_choose() {
    let folder = tempfile::tempdir().unwrap();
    for (flag, rounds) in [("--rounds", 1), ("--rounds", 100), ("--iterations", 5000)] {
        let rounds: u32 = rounds;
        let arguments = ["users", "verifier", "a", flag, &rounds.to_string()];
        let output = fedgate(folder.path(), &arguments, b"secret\n");
        let users = Users::parse(text(&output.stdout)).unwrap();
        let verifier = users.get("a").unwrap();
        assert!(verifier.iterations == rounds && proves(verifier, "secret"));
    }
    assert_eq!(
        fedgate(folder.path(), &["users", "verifier", "a", "--rounds", "0"], b"secret\n").status.code(),
        Some(2)
    );
}

#[test]
fn users_are_added_to_a_file_that_check_then_takes() {
    let folder = tempfile::tempdir().unwrap();
    for (name, password) in [("analyst", "one\n"), ("trino", "two\n"), ("analyst", "three\n")] {
        let output =
            fedgate(folder.path(), &["users", "add", name, "--file", "users.txt"], password.as_bytes());
        assert!(output.status.success() && output.stdout.is_empty(), "{}", text(&output.stderr));
    }
    let users = Users::load(&folder.path().join("users.txt")).unwrap();
    assert_eq!(users.len(), 2);
    assert!(proves(users.get("analyst").unwrap(), "three") && proves(users.get("trino").unwrap(), "two"));

    fs::write(folder.path().join("climscore.password"), "x").unwrap();
    fs::write(folder.path().join("fedgate.toml"), include_str!("../config/fedgate.toml")).unwrap();
    let output = fedgate(folder.path(), &["check", "--config", "fedgate.toml"], b"");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("authentication: scram, 2 users"), "{}", text(&output.stdout));

    fs::remove_file(folder.path().join("climscore.password")).unwrap();
    let output = fedgate(folder.path(), &["check", "--config", "fedgate.toml"], b"");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0));
    assert!(text(&output.stderr).contains("source[0].password_file"), "{}", text(&output.stderr));
}

#[test]
fn what_cannot_be_a_user_or_a_password_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for (arguments, input) in [
        (&["users", "verifier", ""][..], "x\n"),
        (&["users", "verifier", "a\nb"], "x\n"),
        (&["users", "verifier", "a"], ""),
        (&["users", "verifier", "a", "--iterations", "0"], "x\n"),
        (&["users", "verifier", "a", "--password", "x"], "x\n"),
        (&["users", "add", "a", "--file", "nowhere/users.txt"], "x\n"),
    ] {
        let output = fedgate(folder.path(), arguments, input.as_bytes());
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
}
