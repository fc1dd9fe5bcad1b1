//! The harness itself: a test that leans on it must be able to believe it.
//!
//! Invariant: each promise of `support` that others rely on has a test here.

mod support;

use std::path::PathBuf;
use std::process::Command;

use support::{Authority, Options, Postgres, ServerTls};

#[test]
fn sample_data_is_complete_and_the_same_each_time() {
    let source = Postgres::climscore(Options::default());
    let count = |table: &str| source.value("climscore", &format!("SELECT count(*) FROM {table}")).unwrap();
    assert_eq!(count("communes"), "720");
    assert_eq!(count("scores"), "10800");
    assert_eq!(count("customers"), "1800");
    assert_eq!(count("commune_risk"), "2160");
    assert_eq!(count("regional_risk"), "180");
    let wrong = "SELECT count(*) FROM customers WHERE \
                 (substr(iban, 5) || '1527' || substr(iban, 3, 2))::numeric % 97 <> 1 OR length(iban) <> 27";
    assert_eq!(source.value("climscore", wrong).unwrap(), "0", "IBAN check digits");
    let digest = "SELECT md5(string_agg(t::text, '' ORDER BY id)) FROM customers AS t";
    let first = source.value("climscore", digest);
    let second = Postgres::climscore(Options::default());
    assert_eq!(first, second.value("climscore", digest));
}

#[test]
fn the_log_shows_every_text_that_arrived_and_none_of_the_harness() {
    let source = Postgres::start(Options::default());
    let mark = source.log_mark();
    source.execute("postgres", "SELECT 'from the harness'");
    assert_eq!(
        source.statement_log_since(mark).matches("harness").count(),
        1,
        "its connection alone is logged"
    );
    support::blocking(async {
        let config: tokio_postgres::Config = source.url().parse().unwrap();
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client.simple_query("SELECT\n  'by query'").await.unwrap();
        client.query("SELECT 'by execute'", &[]).await.unwrap();
        client.prepare("DELETE FROM pg_largeobject WHERE 'only' = 'parsed'").await.unwrap();
        client.simple_query("SELEKT 'not even SQL'").await.unwrap_err();
    });
    let texts: Vec<String> = source.statements_since(mark).into_iter().map(|logged| logged.text).collect();
    for expected in [
        "SELECT\n  'by query'",
        "SELECT 'by execute'",
        "DELETE FROM pg_largeobject WHERE 'only' = 'parsed'",
        "SELEKT 'not even SQL'",
    ] {
        assert!(texts.iter().any(|text| text == expected), "{expected} in {texts:#?}");
    }
}

#[test]
fn the_fingerprint_stays_over_reads_and_tells_each_kind_of_write() {
    let source = Postgres::climscore(Options::default());
    let mut before = source.fingerprint();
    source.execute("climscore", "SELECT * FROM communes; SELECT count(*) FROM pg_class");
    assert_eq!(source.fingerprint(), before);
    for (sql, part) in [
        (
            "UPDATE communes SET population = population + 1 WHERE code = '01001'",
            "climscore: contents of communes",
        ),
        ("SELECT nextval('policy_numbers')", "climscore: contents of policy_numbers"),
        ("SELECT lo_create(4711)", "climscore: pg_largeobject_metadata"),
        ("CREATE TABLE x ()", "climscore: pg_class"),
        ("CREATE TEMP TABLE y AS SELECT 1", "next transaction id"),
        ("BEGIN; DELETE FROM scores; ROLLBACK", "next transaction id"),
        ("CREATE ROLE somebody", "roles"),
        ("ALTER ROLE akko_readonly SET work_mem = '1MB'", "settings of roles and databases"),
        ("ALTER SYSTEM SET work_mem = '1MB'", "settings of the server"),
        ("COMMENT ON TABLE scores IS 'x'", "climscore: pg_description"),
        ("CREATE DATABASE other", "databases"),
    ] {
        source.execute("climscore", sql);
        let after = source.fingerprint();
        assert!(
            after.difference(&before).contains(&part.to_owned()),
            "{sql}: {:?}",
            after.difference(&before)
        );
        before = after;
    }
}

#[test]
fn tls_and_own_hba_lines_are_served() {
    let authority = Authority::new("test authority");
    let pair = authority.server(&["localhost", "127.0.0.1"]);
    let tls = ServerTls {
        certificate: pair.certificate,
        private_key: pair.private_key,
        client_ca: Some(authority.certificate().to_owned()),
    };
    let source = Postgres::start(
        Options::default().tls(tls).hba("hostnossl all all 127.0.0.1/32 reject").setting("work_mem", "3MB"),
    );
    assert_eq!(source.value("postgres", "SHOW ssl").unwrap(), "on");
    assert_eq!(source.value("postgres", "SHOW work_mem").unwrap(), "3MB");
    support::blocking(async {
        let config: tokio_postgres::Config = source.url().parse().unwrap();
        let refused =
            config.connect(tokio_postgres::NoTls).await.err().expect("plain connections are rejected");
        assert!(format!("{refused:?}").contains("reject"), "{refused:?}");
    });
}

#[test]
fn nothing_is_left_behind_not_even_by_a_panic() {
    let (folder, pid) = {
        let source = Postgres::start(Options::default());
        (source.socket_dir().to_owned(), server_pid(&source))
    };
    assert!(!folder.exists() && !running(pid));

    let left: std::sync::Mutex<Option<(PathBuf, u32)>> = Default::default();
    let result = std::panic::catch_unwind(|| {
        let source = Postgres::start(Options::default());
        *left.lock().unwrap() = Some((source.socket_dir().to_owned(), server_pid(&source)));
        std::panic::resume_unwind(Box::new("a test that fails"));
    });
    assert!(result.is_err());
    let (folder, pid) = left.into_inner().unwrap().unwrap();
    assert!(!folder.exists() && !running(pid));
}

fn server_pid(source: &Postgres) -> u32 {
    let file = source.socket_dir().join("data/postmaster.pid");
    std::fs::read_to_string(file).unwrap().lines().next().unwrap().parse().unwrap()
}

fn running(pid: u32) -> bool {
    Command::new("sh")
        .args(["-c", "kill -0 \"$0\" 2>/dev/null", &pid.to_string()])
        .status()
        .unwrap()
        .success()
}
