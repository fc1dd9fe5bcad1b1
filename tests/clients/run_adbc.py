"""ADBC's PostgreSQL driver: COPY-backed reads, parameters, all of its catalogue calls, transactions; then every write, ingestion included."""

import os

import pyarrow
from adbc_driver_manager import dbapi as manager
from adbc_driver_postgresql import dbapi

from transcript import MARK, WRITES, read, refused, wants


def connect(**options):
    # libpq's variables say where and who.
    return dbapi.connect("postgresql://", **options)


def fetched(db, sql, parameters=None):
    with db.cursor() as cursor:
        cursor.execute(sql, parameters)
        table = cursor.fetch_arrow_table()
        return [[str(field.type) for field in table.schema], table.column_names, [[repr(v) for v in row.values()] for row in table.to_pylist()]]


def objects(db, **options):
    return db.adbc_get_objects(**options).read_all().to_pylist()


def pruned(found):
    """Other databases of the server are nobody's business here."""
    return [catalog for catalog in found if catalog["catalog_name"] == os.environ["PGDATABASE"]]


def reads():
    with connect(autocommit=True) as db:
        read("rows", lambda: fetched(db, "SELECT id, code, name, parent FROM survey.district ORDER BY id"))
        read("types", lambda: fetched(db, "SELECT id, \"Label\", built, height, points, tags, facts, uid, raw, seen FROM survey.building WHERE id < 6 ORDER BY id"))
        read("an enum and a range", lambda: fetched(db, "SELECT state, daterange(held, held + 1) AS span FROM survey.visit ORDER BY 1, 2 LIMIT 3"))
        read("intervals and times", lambda: fetched(db, "SELECT interval '1 day 2 hours' AS i, time '12:00' AS t, timestamptz '2024-01-01 00:00Z' AS z"))
        read("many rows", lambda: len(fetched(db, "SELECT id, value FROM survey.reading WHERE id <= 20000")[2]))
        read("a parameter", lambda: fetched(db, "SELECT id, code FROM survey.district WHERE id = $1", (3,)))
        read("rows of parameters", lambda: many(db))
        read("nothing found", lambda: fetched(db, "SELECT id FROM survey.district WHERE id < 0"))
        read("without COPY", lambda: without_copy(db))
        read("batches", lambda: batches(db))
        read("an error", lambda: fetched(db, "SELECT no_such_column"))
        read("after the error", lambda: fetched(db, "SELECT 1 AS one"))
        read("SHOW and EXPLAIN", lambda: [fetched_without_copy(db, "SHOW server_encoding"), fetched_without_copy(db, "EXPLAIN (COSTS OFF) SELECT 1")])
        read("schema of a table", lambda: str(db.adbc_get_table_schema("building", db_schema_filter="survey")))
        read("schema of no table", lambda: str(db.adbc_get_table_schema("nothing", db_schema_filter="survey")))
        read("table types", lambda: sorted(db.adbc_get_table_types()))
        read("information", lambda: {str(k): str(v) for k, v in sorted(db.adbc_get_info().items()) if "version" in str(k)})
        for depth in ("catalogs", "db_schemas", "tables", "all"):
            read(f"objects: {depth}", lambda: pruned(objects(db, depth=depth, catalog_filter=os.environ["PGDATABASE"], db_schema_filter="survey")))
        read("objects of a name", lambda: pruned(objects(db, depth="all", db_schema_filter="survey", table_name_filter="build%", column_name_filter="%a%")))
        read("objects of types", lambda: pruned(objects(db, depth="tables", db_schema_filter="survey", table_types_filter=["view", "materialized_view"])))
        read("statistics", lambda: statistics(db))
        read("current names", lambda: [db.adbc_current_catalog, db.adbc_current_db_schema])
        read("prepare", lambda: prepared(db))
        read("execute schema", lambda: executed_schema(db))
        read("cancel of nothing", lambda: db.adbc_cancel())
    with connect() as db:
        read("transaction", lambda: [fetched(db, "SELECT 1 AS one"), db.commit(), fetched(db, "SELECT 2 AS two"), db.rollback()])
        read("an error in a transaction", lambda: in_transaction(db))
        read("set of the schema", lambda: with_schema(db))


def many(db):
    with db.cursor() as cursor:
        got = []
        for number in (1, 2, 3):
            cursor.execute("SELECT code FROM survey.district WHERE id = $1", (number,))
            got.append(cursor.fetchone())
        return got


def without_copy(db):
    return fetched_without_copy(db, "SELECT id, code FROM survey.district ORDER BY id LIMIT 3")


def fetched_without_copy(db, sql):
    with db.cursor(adbc_stmt_kwargs={"adbc.postgresql.use_copy": "false"}) as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def batches(db):
    with db.cursor(adbc_stmt_kwargs={"adbc.postgresql.batch_size_hint_bytes": "4096"}) as cursor:
        cursor.execute("SELECT id, remark FROM survey.reading WHERE id <= 3000")
        return sum(batch.num_rows for batch in cursor.fetch_record_batch())


def statistics(db):
    found = db.adbc_get_statistics(catalog_filter=os.environ["PGDATABASE"], db_schema_filter="survey", table_name_filter="district", approximate=True)
    return len(found.read_all().to_pylist())


def prepared(db):
    with db.cursor() as cursor:
        schema = cursor.adbc_prepare("SELECT code FROM survey.district WHERE id = $1::int")
        cursor.execute("SELECT code FROM survey.district WHERE id = $1::int", (2,))
        return [str(schema), cursor.fetchall()]


def executed_schema(db):
    with db.cursor() as cursor:
        return str(cursor.adbc_execute_schema("SELECT id, code FROM survey.district"))


def in_transaction(db):
    got = []
    for sql in ("SELECT 1 AS one", "SELECT no_such_column", "SELECT 2 AS two"):
        try:
            got.append(fetched(db, sql))
        except manager.Error as error:
            got.append([error.sqlstate, type(error).__name__])
    db.rollback()
    got.append(fetched(db, "SELECT 3 AS three"))
    db.rollback()
    return got


def with_schema(db):
    db.adbc_connection.set_options(**{"adbc.connection.db_schema": "survey"})
    got = fetched(db, "SELECT count(*) AS n FROM district")
    db.rollback()
    return got


class Refused(Exception):
    """What the server said, without what the driver puts around it."""

    def __init__(self, error):
        super().__init__(str(error).split("ERROR:")[-1].strip().split("\n")[0])
        self.sqlstate = error.sqlstate


def execute(db, sql, parameters=None):
    # A query is asked for by COPY (…) TO STDOUT, which EXPLAIN cannot stand in.
    options = {"adbc.postgresql.use_copy": "false"} if sql.startswith("EXPLAIN") else {}
    try:
        with db.cursor(adbc_stmt_kwargs=options) as cursor:
            cursor.execute(sql, parameters)
            return cursor.fetchall() if cursor.description else cursor.rowcount
    except manager.Error as error:
        raise Refused(error) from None


def ingest(db, mode):
    table = pyarrow.table({"id": [1, 2], "body": [MARK, MARK]})
    with db.cursor() as cursor:
        return cursor.adbc_ingest("scratch" if mode == "append" else MARK, table, mode=mode, db_schema_name="survey")


def writes():
    with connect(autocommit=True) as db:
        for name, sql, want, guarded in WRITES:
            refused(name, want, lambda: execute(db, sql), guarded)
        refused("rows of parameters", "25006", lambda: execute(db, "INSERT INTO survey.scratch VALUES ($1, $2)", (1, MARK)))
        for mode in ("append", "create", "create_append", "replace"):
            # For the table it hands no code on.
            refused(f"ingest, {mode}", "25006" if mode == "append" else None, lambda: ingest(db, mode))
        read("after all that", lambda: fetched(db, "SELECT 1 AS one"))
    with connect() as db:
        for name, sql, want, guarded in WRITES[:4]:
            refused(f"{name} in a transaction", want, lambda: execute(db, sql), guarded)
            db.rollback()
        read("rolled back", lambda: fetched(db, "SELECT 2 AS two"))
        db.rollback()


if wants("reads"):
    reads()
if wants("writes"):
    writes()
