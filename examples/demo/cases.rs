//! What the visitor is shown: reads that pass and writes that must not, as data.
//!
//! Invariant: a case says what must come back, so the walk can tell whether the promise was kept.

/// How a text is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// One Query message.
    Simple,
    /// Parse, as drivers prepare statements.
    Prepare,
}

/// A read and what it must give: the first column of the first row, or `None` for any answer.
pub struct Read {
    pub sql: &'static str,
    pub want: Option<&'static str>,
}

const fn read(sql: &'static str, want: &'static str) -> Read {
    Read { sql, want: Some(want) }
}

pub const READS: &[Read] = &[
    read("SELECT count(*) FROM communes", "720"),
    read("SELECT name FROM communes ORDER BY population DESC, code LIMIT 1", "Val-Huisne-les-Bains"),
    read("SELECT count(*) FROM customers, communes WHERE code = commune AND lat > 48", "751"),
    read("WITH worst AS (SELECT max(score) FROM scores) SELECT max > 80 FROM worst", "t"),
    read("SELECT round(max(average), 1) FROM regional_risk WHERE hazard = 'heat'", "45.8"),
    read("VALUES (risk_band(80.0)), (upper('functions that only compute pass'))", "severe"),
    read("SELECT count(*) FROM information_schema.columns WHERE table_name = 'scores'", "4"),
    Read { sql: "EXPLAIN (ANALYZE, TIMING OFF) SELECT avg(score) FROM scores", want: None },
    read("SHOW transaction_read_only", "on"),
];

/// One text that must be refused.
pub struct Write {
    pub sql: &'static str,
    pub how: How,
    pub sqlstate: &'static str,
}

const fn write(sql: &'static str) -> Write {
    Write { sql, how: How::Simple, sqlstate: "25006" }
}

const fn denied(sql: &'static str) -> Write {
    Write { sql, how: How::Simple, sqlstate: "42501" }
}

const fn prepared(sql: &'static str) -> Write {
    Write { sql, how: How::Prepare, sqlstate: "25006" }
}

/// Headline and cases.
pub const WRITES: &[(&str, &[Write])] = &[
    (
        "Rows",
        &[
            write("INSERT INTO communes VALUES ('99999', 'X', 'X', 1, 0, 0)"),
            write("UPDATE customers SET iban = 'gone'"),
            write("DELETE FROM scores"),
            write("MERGE INTO scores USING communes ON commune = code WHEN MATCHED THEN DELETE"),
            write("TRUNCATE scores"),
            write("COPY communes FROM STDIN"),
            prepared("DELETE FROM customers WHERE id = $1"),
        ],
    ),
    (
        "Schema and roles",
        &[
            write("CREATE TABLE trace (id int)"),
            write("CREATE TEMP TABLE trace AS SELECT * FROM communes"),
            write("SELECT * INTO trace FROM communes"),
            write("ALTER TABLE communes ADD COLUMN trace int"),
            write("DROP TABLE communes CASCADE"),
            write("COMMENT ON TABLE scores IS 'trace'"),
            write("REFRESH MATERIALIZED VIEW regional_risk"),
            write("GRANT ALL ON communes TO PUBLIC"),
            write("CREATE ROLE trace SUPERUSER LOGIN"),
            write("VACUUM FULL communes"),
            write("ALTER SYSTEM SET fsync = off"),
        ],
    ),
    (
        "Hidden in what looks like a read",
        &[
            write("WITH d AS (DELETE FROM scores RETURNING *) SELECT count(*) FROM d"),
            write("EXPLAIN ANALYZE CREATE TABLE trace AS SELECT 1"),
            write("SELECT * FROM communes FOR UPDATE"),
            denied("SELECT nextval('policy_numbers')"),
            denied("SELECT ('policy_numbers'::regclass).nextval"),
            denied("SELECT correct_population('01001', 1)"),
            denied("SELECT query_to_xml('SELECT nextval(''policy_numbers'')', true, true, '')"),
            denied("SELECT lo_create(0)"),
            write("PREPARE trace AS DELETE FROM scores"),
            write("DO $$ BEGIN DELETE FROM scores; END $$"),
            write("CALL refresh_risk()"),
        ],
    ),
    (
        "Leaving read-only mode",
        &[
            write("COMMIT; DROP TABLE scores CASCADE"),
            write("BEGIN READ WRITE"),
            write("SET TRANSACTION READ WRITE"),
            write("SET default_transaction_read_only = off"),
            write("SELECT set_config('default_transaction_read_only', 'off', false)"),
            denied("SET session_replication_role = replica"),
        ],
    ),
    (
        "Files, programs, other sessions",
        &[
            write("COPY customers TO PROGRAM 'cat >/dev/null'"),
            denied("SELECT pg_read_file('postgresql.conf')"),
            denied("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"),
            denied("SELECT pg_advisory_lock(1)"),
            denied("SELECT pg_sleep(3600)"),
            write("LOCK TABLE communes; SELECT 1"),
            write("NOTIFY trace"),
        ],
    ),
];
