//! Real clients through the gateway: each reads as it does directly, is refused as a read-only PostgreSQL would, and leaves
//! no trace of a write at the source.
//!
//! Invariant: a client that cannot be had fails its test; nothing is skipped.

mod support;

#[path = "clients/kit.rs"]
mod kit;

use kit::{Program, check};

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
