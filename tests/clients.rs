//! Real clients through the gateway: each reads as it does directly, is refused as a read-only PostgreSQL would, and leaves
//! no trace of a write at the source.
//!
//! Invariant: a client that cannot be had fails its test; nothing is skipped.

mod support;

#[path = "clients/kit.rs"]
mod kit;

use kit::{Program, check};
use support::{Authority, Gateway};

const ANY_PORT: &str = "127.0.0.1:0";

#[test]
fn psql() {
    check(&Program::Python("run_psql.py"), ANY_PORT);
}

#[test]
fn pg_dump() {
    check(&Program::Python("run_pg_dump.py"), ANY_PORT);
}

#[test]
fn pgjdbc() {
    check(&Program::Java("42_7_8", "PgJdbc.java"), ANY_PORT);
}

#[test]
fn pgjdbc_of_2024() {
    check(&Program::Java("42_5_5", "PgJdbc.java"), ANY_PORT);
}

#[test]
fn psycopg3() {
    check(&Program::Python("run_psycopg3.py"), ANY_PORT);
}

#[test]
fn psycopg2() {
    check(&Program::Python("run_psycopg2.py"), ANY_PORT);
}

#[test]
fn asyncpg() {
    check(&Program::Python("run_asyncpg.py"), ANY_PORT);
}

#[test]
fn sqlalchemy() {
    check(&Program::Python("run_sqlalchemy.py"), ANY_PORT);
}

#[test]
fn django() {
    check(&Program::Python("run_django.py"), ANY_PORT);
}

/// Every way in which drivers ask for TLS, with a certificate that they verify.
#[test]
fn tls() {
    let source = kit::source();
    let authority = Authority::new("authority of the gateway");
    let pair = authority.server(&["localhost"]);
    let tls = r#"
[gateway.tls]
certificate = "{dir}/server.crt"
private_key = "{dir}/server.key"
"#;
    let setup = kit::setup(&source, ANY_PORT, tls)
        .file("server.crt", pair.certificate)
        .file("server.key", pair.private_key)
        .file("ca.crt", authority.certificate());
    let gateway = Gateway::start(setup);
    let ca = gateway.folder().join("ca.crt").display().to_string();
    let libpq = kit::run(
        &Program::Python("run_tls.py"),
        "gateway",
        kit::behind(&gateway),
        &[("FEDGATE_CA", ca.clone())],
    );
    let expected = [
        ("verified", "[true,30000,600]"),
        ("channel binding", "[true,30000,600]"),
        ("channel binding off", "[true,30000,600]"),
        ("direct", "[true,30000,600]"),
        ("protocol 3.2", "[true,30002,600]"),
        ("protocol 3.2 asked for", "[false,30002,600]"),
        ("plain", "[false,30000,600]"),
        ("cancel", r#"["57014",1]"#),
        ("cancel over direct TLS", r#"["57014",1]"#),
        ("cancel with a long key", r#"["57014",1]"#),
        ("another authority", "true"),
        ("another name", "true"),
        ("asyncpg", r#"[600,"UTF8"]"#),
        ("asyncpg, direct", r#"[600,"UTF8"]"#),
    ];
    assert_eq!(libpq.0.len(), expected.len());
    for (step, (name, value)) in libpq.0.iter().zip(expected) {
        assert_eq!(
            (step.name.as_str(), step.record["value"].to_string().as_str()),
            (name, value),
            "{}",
            step.record
        );
    }
    // 42.5.5 knows neither channel binding nor direct TLS, and ignores both.
    for version in ["42_7_8", "42_5_5"] {
        let jdbc = kit::run(
            &Program::Java(version, "PgJdbc.java"),
            "gateway",
            // PgJDBC verifies the name that it connects to.
            kit::Endpoint { host: "localhost", ..kit::behind(&gateway) },
            &[("FEDGATE_CA", ca.clone()), ("FEDGATE_PART", "tls".to_owned())],
        );
        assert_eq!(jdbc.0.len(), 4);
        for step in &jdbc.0 {
            let canceled = r#"[[["600"]],["57014","canceling statement due to user request"]]"#;
            assert_eq!(
                step.record["value"].to_string(),
                canceled,
                "{version} {}: {}",
                step.name,
                step.record
            );
        }
    }
}
