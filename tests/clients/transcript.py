"""What one client saw, as JSON lines: the same directly and through the gateway.

A client program runs twice, once against PostgreSQL itself (every transaction read-only by default) and once through the
gateway. The environment carries libpq's variables and
  FEDGATE_TARGET  direct | gateway
  FEDGATE_PART    reads | writes | all

Invariant: every statement that must be refused carries MARK, so that a log without MARK proves that none arrived.
"""

import json
import os
import sys

MARK = "fedgate_trace_marker"
TARGET = os.environ.get("FEDGATE_TARGET", "direct")
PART = os.environ.get("FEDGATE_PART", "all")


def wants(part):
    """Whether this run is to do `part`, which is reads or writes."""
    return PART in (part, "all")


def _sqlstate(error):
    for name in ("sqlstate", "pgcode"):
        if getattr(error, name, None):
            return getattr(error, name)
    inner = getattr(error, "orig", None) or getattr(error, "__cause__", None)
    return _sqlstate(inner) if inner is not None else None


def primary(error):
    """The server's primary message, without what the driver puts around it."""
    inner = getattr(error, "orig", None)
    if inner is not None:
        return primary(inner)
    diagnostics = getattr(error, "diag", None)
    if diagnostics is not None and diagnostics.message_primary:
        return diagnostics.message_primary
    if getattr(error, "__cause__", None) is not None and getattr(error.__cause__, "diag", None) is not None:
        return primary(error.__cause__)
    return str(error).split("\n")[0]


def _plain(value):
    return bytes(value).hex() if isinstance(value, (bytes, bytearray, memoryview)) else str(value)


def emit(**record):
    print(json.dumps(record, default=_plain, ensure_ascii=False, sort_keys=True), flush=True)


def note(text):
    """For the human who looks at a failure; not compared."""
    print(text, file=sys.stderr, flush=True)


def read(step, call):
    """A step that must give the same both ways. An error is a result too."""
    try:
        emit(step=step, value=call())
    except Exception as error:  # whatever the driver raises is what its user would see
        emit(step=step, error=_sqlstate(error) or type(error).__name__, message=primary(error))


def refused(step, sqlstate, call, guarded=False):
    """A step that must be refused with `sqlstate`.

    `guarded`: a read-only transaction of PostgreSQL would let it pass, so it is tried at the gateway only.
    """
    if guarded and TARGET == "direct":
        return
    record = {"step": step, "want": sqlstate, "guarded": guarded}
    try:
        record["value"] = call()
    except Exception as error:
        record["error"] = _sqlstate(error) or type(error).__name__
        record["message"] = primary(error)
    emit(**record)


# What every client tries: name, statement, SQLSTATE, guarded.
WRITES = [
    ("insert", f"INSERT INTO survey.scratch VALUES (1, '{MARK}')", "25006", False),
    ("update", f"UPDATE survey.building SET \"Label\" = '{MARK}' WHERE id = 1", "25006", False),
    ("delete", f"DELETE FROM survey.scratch WHERE body <> '{MARK}'", "25006", False),
    ("merge", f"MERGE INTO survey.scratch s USING survey.district d ON s.id = d.id WHEN NOT MATCHED THEN INSERT VALUES (d.id, '{MARK}')",
     "25006", False),
    ("truncate", f"TRUNCATE survey.scratch /* {MARK} */", "25006", False),
    ("create table", f"CREATE TABLE survey.{MARK} (id integer)", "25006", False),
    ("create table as", f"CREATE TABLE survey.{MARK} AS SELECT 1 AS id", "25006", False),
    ("select into", f"SELECT 1 AS id INTO survey.{MARK}", "25006", False),
    ("create temporary table", f"CREATE TEMP TABLE {MARK} (id integer)", "25006", True),
    ("create view", f"CREATE VIEW survey.{MARK} AS SELECT 1", "25006", False),
    ("create index", f"CREATE INDEX {MARK} ON survey.scratch (id)", "25006", False),
    ("create role", f"CREATE ROLE {MARK}", "25006", False),
    ("alter table", f"ALTER TABLE survey.scratch ADD COLUMN {MARK} integer", "25006", False),
    ("drop table", f"DROP TABLE survey.scratch /* {MARK} */", "25006", False),
    ("comment", f"COMMENT ON TABLE survey.scratch IS '{MARK}'", "25006", False),
    ("grant", f"GRANT SELECT ON survey.scratch TO survey_reader /* {MARK} */", "25006", False),
    ("refresh", f"REFRESH MATERIALIZED VIEW survey.per_district /* {MARK} */", "25006", False),
    ("vacuum", f"VACUUM survey.scratch /* {MARK} */", "25006", True),
    ("analyze", f"ANALYZE survey.scratch /* {MARK} */", "25006", True),
    ("checkpoint", f"CHECKPOINT /* {MARK} */", "25006", True),
    ("notify", f"NOTIFY {MARK}", "25006", True),
    ("do block", f"DO $$ BEGIN INSERT INTO survey.scratch VALUES (1, '{MARK}'); END $$", "25006", False),
    ("call", f"CALL survey.clear_scratch() /* {MARK} */", "25006", False),
    ("data-modifying with", f"WITH w AS (INSERT INTO survey.scratch VALUES (1, '{MARK}') RETURNING id) SELECT * FROM w", "25006", False),
    ("row lock", f"SELECT id FROM survey.building WHERE id = 1 FOR UPDATE /* {MARK} */", "25006", False),
    ("explain analyze insert", f"EXPLAIN ANALYZE INSERT INTO survey.scratch VALUES (1, '{MARK}')", "25006", False),
    ("explain analyze create", f"EXPLAIN (ANALYZE) CREATE TABLE survey.{MARK} AS SELECT 1", "25006", True),
    ("copy from", f"COPY survey.scratch FROM '/nonexistent/{MARK}'", "25006", False),
    ("copy to program", f"COPY (SELECT 1) TO PROGRAM 'echo {MARK}'", "25006", True),
    ("lock table", f"LOCK TABLE survey.scratch IN EXCLUSIVE MODE /* {MARK} */", "25006", True),
    ("nextval", f"SELECT nextval('survey.ticket') /* {MARK} */", "42501", True),
    ("volatile function", f"SELECT survey.store('{MARK}')", "42501", True),
    ("advisory lock", f"SELECT pg_advisory_lock(1) /* {MARK} */", "42501", True),
    ("sql in a string", f"SELECT query_to_xml('SELECT ''{MARK}''', true, true, '')", "42501", True),
    ("leave read-only", f"SET default_transaction_read_only = off /* {MARK} */", "25006", True),
    ("begin read write", f"BEGIN READ WRITE /* {MARK} */", "25006", True),
    ("set config", f"SELECT set_config('transaction_read_only', 'off', false) /* {MARK} */", "25006", True),
    ("set role", f"SET ROLE survey_reader /* {MARK} */", "42501", True),
    ("alter system", f"ALTER SYSTEM SET work_mem = '1MB' /* {MARK} */", "25006", True),
]
