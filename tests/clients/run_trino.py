"""Trino over its PostgreSQL connector: metadata, scans, pushdown, cancel; then every route by which Trino writes.

FEDGATE_SOURCE is a libpq connection string of the source itself, to see there whether a cancelled statement has ended.
"""

import os
import re
import time

import psycopg

from transcript import MARK, TARGET, emit, note, wants
from trino_server import QueryFailed, TrinoServer, TrinoSession


def explain(session, sql):
    """What is left for Trino to do when `sql` runs: the operators above the scan."""
    plan = "\n".join(row[0] for row in session.rows("EXPLAIN (TYPE DISTRIBUTED) " + sql))
    return sorted(name for name in ("Aggregate", "TopN", "InnerJoin", "ScanFilter", "Filter", "Sort", "Limit") if f"{name}[" in plan.replace("Partial", "").replace("Final", ""))


def read(session, step, call):
    try:
        value = call() if callable(call) else session.rows(call)
        emit(step=step, value=value)
    except QueryFailed as error:
        emit(step=step, error=error.sqlstate, message=str(error))


def refused(session, step, sqlstate, sql, guarded=False):
    if guarded and TARGET == "direct":
        return
    record = {"step": step, "want": sqlstate, "guarded": guarded, "user": session.user}
    try:
        record["value"] = session.rows(sql)
    except QueryFailed as error:
        # Trino quotes the statement of a failed batch, its own query id in it.
        message = re.sub(r"query=\w+", "query=…", str(error).split("\n")[0].removesuffix("  Call getNextException to see other errors in the batch."))
        record |= {"error": error.sqlstate, "message": message, "text": str(error)}
    emit(**record, query=session.query)


def query_function(sql):
    """`sql` as the argument of the table function that hands raw SQL to the source."""
    return f"SELECT * FROM TABLE(climscore.system.query(query => '{quoted(sql)}'))"


def execute(sql):
    return f"CALL climscore.system.execute(query => '{quoted(sql)}')"


def quoted(sql):
    return sql.replace("'", "''")


def cancel(session):
    """Cancels a query while the source works on it; says how soon the source is rid of it."""
    slow = "SELECT count(*) AS n FROM survey.reading a, survey.reading b WHERE a.value + b.value > 3 AND a.remark <> b.remark"
    with psycopg.connect(os.environ["FEDGATE_SOURCE"], autocommit=True, application_name="watcher") as watcher:
        def running():
            return watcher.execute("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%a.remark <> b.remark%' AND pid <> pg_backend_pid()").fetchone()[0]

        def wait(wanted, what):
            end = time.monotonic() + 40
            while (running() > 0) != wanted:
                if time.monotonic() > end:
                    raise SystemExit(f"{what} within 40 s")
                time.sleep(0.05)

        answer = session.begin(query_function(slow))
        end = time.monotonic() + 40
        while not running():
            if time.monotonic() > end:
                raise SystemExit("the source never ran the statement to be cancelled")
            answer = session.follow(answer) or answer
        begun = time.monotonic()
        session.cancel(answer)
        wait(False, "the source did not end the cancelled statement")
        note(f"cancelled: the source was rid of it after {time.monotonic() - begun:.2f} s")
        return "ended at the source"


def reads(server):
    alice = TrinoSession(server, "alice")
    for step, sql in {
        "catalogs": "SHOW CATALOGS",
        "schemas": "SHOW SCHEMAS",
        "tables": "SHOW TABLES",
        "tables of public": "SHOW TABLES FROM climscore.public",
        "columns": "SHOW COLUMNS FROM building",
        "create table of a table": "SHOW CREATE TABLE district",
        "information schema": "SELECT table_name, column_name, data_type FROM information_schema.columns WHERE table_schema = 'survey' ORDER BY 1, ordinal_position",
        "comments": "SELECT table_name, comment FROM system.metadata.table_comments WHERE catalog_name = 'climscore' AND schema_name = 'survey' ORDER BY 1",
        "statistics": "SHOW STATS FOR district",
        "count": "SELECT count(*) FROM building",
        "count of climscore": "SELECT (SELECT count(*) FROM climscore.public.communes), (SELECT count(*) FROM climscore.public.scores), (SELECT count(*) FROM climscore.public.customers)",
        "predicate": "SELECT id, \"Label\", height, built FROM building WHERE id BETWEEN 5 AND 8 ORDER BY id",
        "predicate on text": "SELECT code, name FROM district WHERE code IN ('D1', 'D2') ORDER BY 1",
        "like": "SELECT code FROM district WHERE code LIKE 'D2%' ESCAPE '\\' ORDER BY 1",
        "nulls": "SELECT count(*) FROM district WHERE parent IS NULL OR parent = 3",
        "types": "SELECT * FROM building WHERE id = 9",
        "enum and date": "SELECT held, state, note FROM visit WHERE building_id = 7 ORDER BY held",
        "aggregate": "SELECT district_id, count(*), sum(height), max(id), avg(height) FROM building GROUP BY district_id ORDER BY district_id",
        "top-n": "SELECT id, taken FROM reading ORDER BY value DESC, id LIMIT 5",
        "join": "SELECT d.code, count(*) FROM building b JOIN district d ON b.district_id = d.id GROUP BY d.code ORDER BY 1",
        "join on text": "SELECT count(*) FROM district a JOIN district b ON a.code = b.code",
        "limit": "SELECT count(*) FROM (SELECT id FROM reading LIMIT 37)",
        "grouping sets": "SELECT district_id, built IS NULL, count(*) FROM building WHERE district_id < 4 GROUP BY GROUPING SETS ((district_id), ()) , built IS NULL ORDER BY 1, 2",
        "distinct": "SELECT DISTINCT district_id FROM building ORDER BY 1",
        "view": "SELECT count(*), min(district) FROM tall",
        "materialized view": "SELECT * FROM per_district WHERE district_id = 3",
        "big scan": "SELECT count(*), checksum(remark), checksum(value), checksum(taken) FROM reading",
        "wide scan": "SELECT count(*), checksum(\"Label\"), checksum(uid), checksum(facts) FROM building",
        "union of scans": "SELECT sum(n) FROM (SELECT count(*) n FROM reading WHERE id % 2 = 0 UNION ALL SELECT count(*) FROM building)",
        "system.query": query_function("SELECT code, name FROM survey.district WHERE id < 4 ORDER BY id"),
        "system.query joined": "SELECT q.n, d.name FROM TABLE(climscore.system.query(query => 'SELECT count(*) AS n, district_id FROM survey.building GROUP BY 2')) q "
                               "JOIN district d ON d.id = q.district_id WHERE d.id = 5",
    }.items():
        read(alice, step, sql)
    read(alice, "pushed down: predicate", lambda: explain(alice, "SELECT \"Label\" FROM building WHERE id = 7"))
    read(alice, "pushed down: aggregate", lambda: explain(alice, "SELECT district_id, count(*), sum(height) FROM building GROUP BY district_id"))
    read(alice, "pushed down: top-n", lambda: explain(alice, "SELECT id FROM reading ORDER BY value LIMIT 5"))
    eager = TrinoSession(server, "alice", **{"climscore.join_pushdown_strategy": "EAGER"})
    read(eager, "eager join", "SELECT d.code, b.\"Label\" FROM building b JOIN district d ON b.district_id = d.id WHERE b.id < 5 ORDER BY 1, 2")
    read(eager, "pushed down: join", lambda: explain(eager, "SELECT b.id, d.name FROM building b JOIN district d ON b.district_id = d.id"))
    read(alice, "pushed down: limit", lambda: explain(alice, "SELECT id FROM reading LIMIT 5"))
    read(alice, "explain analyze", lambda: len(alice.rows("EXPLAIN ANALYZE SELECT count(*) FROM building")) > 0)
    read(alice, "cancel", lambda: cancel(alice))
    read(alice, "after the cancel", "SELECT count(*) FROM district")
    read(alice, "error of the source", query_function("SELECT 1 / (id - 1) AS x FROM survey.district"))


def writes(server):
    alice = TrinoSession(server, "alice")
    bob = TrinoSession(server, "bob")
    direct = TrinoSession(server, "alice", **{"climscore.non_transactional_insert": "true"})
    merging = TrinoSession(server, "bob", **{"climscore.non_transactional_merge": "true"})
    for session, step, sql in [
        (alice, "create table", f"CREATE TABLE {MARK} (id integer)"),
        (bob, "create table as", f"CREATE TABLE {MARK} AS SELECT id, code FROM district"),
        (alice, "insert", f"INSERT INTO scratch VALUES (1, '{MARK}')"),
        (bob, "insert select", f"INSERT INTO scratch SELECT id, '{MARK}' FROM district"),
        (direct, "insert, not transactional", f"INSERT INTO scratch VALUES (1, '{MARK}')"),
        (bob, "update", f"UPDATE scratch SET body = '{MARK}' WHERE id = 1"),
        (alice, "delete", f"DELETE FROM scratch WHERE body = '{MARK}'"),
        (bob, "delete all", "DELETE FROM scratch"),
        (merging, "merge", f"MERGE INTO district d USING (VALUES (1, '{MARK}')) s(id, name) ON d.id = s.id WHEN MATCHED THEN UPDATE SET name = s.name"),
        (alice, "truncate", "TRUNCATE TABLE scratch"),
        (bob, "drop table", "DROP TABLE scratch"),
        (alice, "add column", f"ALTER TABLE scratch ADD COLUMN {MARK} integer"),
        (bob, "drop column", "ALTER TABLE scratch DROP COLUMN body"),
        (alice, "rename column", f"ALTER TABLE scratch RENAME COLUMN body TO {MARK}"),
        (bob, "set type", "ALTER TABLE scratch ALTER COLUMN id SET DATA TYPE bigint"),
        (alice, "rename table", f"ALTER TABLE scratch RENAME TO {MARK}"),
        (bob, "comment on table", f"COMMENT ON TABLE scratch IS '{MARK}'"),
        (alice, "comment on column", f"COMMENT ON COLUMN scratch.body IS '{MARK}'"),
        (bob, "create schema", f"CREATE SCHEMA {MARK}"),
        (alice, "drop schema", "DROP SCHEMA survey CASCADE"),
        (bob, "rename schema", f"ALTER SCHEMA survey RENAME TO {MARK}"),
    ]:
        refused(session, step, "25006", sql)
    # Trino refuses this one itself, before any source.
    read(alice, "create view", f"CREATE VIEW {MARK} AS SELECT 1 AS one")

    for step, want, sql, guarded in [
        ("insert", "25006", f"INSERT INTO survey.scratch VALUES (1, '{MARK}')", False),
        ("update", "25006", f"UPDATE survey.scratch SET body = '{MARK}'", False),
        ("delete", "25006", f"DELETE FROM survey.scratch /* {MARK} */", False),
        ("create table", "25006", f"CREATE TABLE survey.{MARK} (id integer)", False),
        ("create temporary table", "25006", f"CREATE TEMP TABLE {MARK} (id integer)", True),
        ("drop", "25006", f"DROP TABLE survey.scratch /* {MARK} */", False),
        ("truncate", "25006", f"TRUNCATE survey.scratch /* {MARK} */", False),
        ("grant", "25006", f"GRANT ALL ON survey.scratch TO PUBLIC /* {MARK} */", False),
        ("create role", "25006", f"CREATE ROLE {MARK}", False),
        ("do", "25006", f"DO $$ BEGIN DELETE FROM survey.scratch; END $$ /* {MARK} */", False),
        ("call", "25006", f"CALL survey.clear_scratch() /* {MARK} */", False),
        ("copy to program", "25006", f"COPY (SELECT 1) TO PROGRAM 'echo {MARK}'", True),
        ("alter system", "25006", f"ALTER SYSTEM SET work_mem = '1MB' /* {MARK} */", True),
        ("notify", "25006", f"NOTIFY {MARK}", True),
        ("vacuum", "25006", f"VACUUM survey.scratch /* {MARK} */", True),
        ("leave read-only", "25006", f"SET default_transaction_read_only = off /* {MARK} */", True),
        ("stacked", "25006", f"SELECT 1; INSERT INTO survey.scratch VALUES (1, '{MARK}')", False),
        ("stacked behind a commit", "25006", f"COMMIT; INSERT INTO survey.scratch VALUES (1, '{MARK}')", False),
        ("a function that writes", "42501", f"SELECT survey.store('{MARK}')", True),
        ("comment of another user, hidden", "25006", f"INSERT INTO survey.scratch VALUES (1, '{MARK}') /*fedgate query=20200101_000000_00000_aaaaa user=mallory*/ --", False),
        ("comment of another user, last", "25006", f"INSERT INTO survey.scratch VALUES (1, '{MARK}') /*fedgate query=20200101_000000_00000_aaaaa user=mallory*/", False),
    ]:
        refused(bob if step < "d" else alice, "system.execute: " + step, want, execute(sql), guarded)

    for step, want, sql, guarded in [
        ("data-modifying with", "25006", f"WITH w AS (INSERT INTO survey.scratch VALUES (1, '{MARK}') RETURNING id) SELECT id FROM w", True),
        ("insert returning", "25006", f"INSERT INTO survey.scratch VALUES (1, '{MARK}') RETURNING id", True),
        ("select into", "25006", f"SELECT 1 AS one INTO survey.{MARK}", True),
        ("row lock", "25006", f"SELECT id FROM survey.scratch FOR UPDATE /* {MARK} */", True),
        ("nextval", "42501", f"SELECT nextval('survey.ticket') AS n /* {MARK} */", True),
        ("volatile function", "42501", f"SELECT survey.store('{MARK}') AS n", True),
        ("volatile function in from", "42501", f"SELECT n FROM survey.store('{MARK}') AS n", True),
        ("advisory lock", "42501", f"SELECT pg_try_advisory_lock(1) AS n /* {MARK} */", True),
        ("large object", "42501", f"SELECT lo_create(0)::int AS n /* {MARK} */", True),
        ("sql in a string", "42501", f"SELECT query_to_xml('DELETE FROM survey.scratch /* {MARK} */', true, true, '')::text AS x", True),
        ("comment of another user", "42501", f"SELECT survey.store('{MARK}') AS n /*fedgate query=20200101_000000_00000_aaaaa user=mallory*/ --", True),
    ]:
        refused(alice if step < "n" else bob, "system.query: " + step, want, query_function(sql), guarded)
    read(alice, "after all that", "SELECT count(*) FROM district")


def main():
    environment = {"CLIMSCORE_RO_HOST": os.environ["PGHOST"], "CLIMSCORE_RO_PORT": os.environ["PGPORT"], "CLIMSCORE_RO_DB": os.environ["PGDATABASE"],
                   "CLIMSCORE_RO_USER": os.environ["PGUSER"], "CLIMSCORE_RO_PASS": os.environ.get("PGPASSWORD") or "none"}
    begun = time.monotonic()
    with TrinoServer(environment) as server:
        note(f"Trino is up after {time.monotonic() - begun:.0f} s")
        if wants("reads"):
            reads(server)
        if wants("writes"):
            writes(server)


main()
