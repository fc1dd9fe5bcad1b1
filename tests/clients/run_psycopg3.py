"""psycopg 3: cursors of all kinds, pipelines, COPY, prepared statements, transactions, cancel; then every write."""

import threading
import time

import psycopg
from psycopg import sql as composed
from psycopg.rows import dict_row
from psycopg.types import TypeInfo
from psycopg.types.composite import CompositeInfo
from psycopg.types.enum import EnumInfo
from psycopg.types.range import RangeInfo

from transcript import MARK, WRITES, primary, read, refused, wants


def connect(**options):
    return psycopg.connect(connect_timeout=20, **options)


def reads():
    with connect(autocommit=True) as db:
        def all_of(sql, *arguments, **options):
            return [list(row) for row in db.execute(sql, *arguments, **options).fetchall()]

        read("parameters", lambda: all_of("SELECT id, \"Label\", height, built FROM survey.building WHERE id = ANY(%s) ORDER BY id", ([1, 2, 3],)))
        read("types", lambda: all_of("SELECT * FROM survey.building WHERE id = %s", (9,)))
        read("null and text", lambda: all_of("SELECT %s::text, %s, %s::int", (None, "ü'\"\\", 3)))
        read("prepared", lambda: [all_of("SELECT name FROM survey.district WHERE id = %s", (n,), prepare=True) for n in range(1, 9)])
        read("prepared by count", lambda: [all_of("SELECT code FROM survey.district WHERE id = %s", (n,)) for n in range(1, 12)])
        read("binary", lambda: [list(row) for row in db.cursor(binary=True).execute("SELECT id, height, uid, seen FROM survey.building WHERE id < 4 ORDER BY id")])
        read("client cursor", lambda: psycopg.ClientCursor(db).execute("SELECT %s, %s", (1, "x'y")).fetchall())
        read("raw cursor", lambda: psycopg.RawCursor(db).execute("SELECT $1::int + $2::int", (1, 2)).fetchall())
        read("dict rows", lambda: db.cursor(row_factory=dict_row).execute("SELECT id, code FROM survey.district ORDER BY id LIMIT 2").fetchall())
        read("description", lambda: [[c.name, c.type_code] for c in db.execute("SELECT * FROM survey.reading LIMIT 0").description])
        read("executemany of reads", lambda: many(db))
        read("no result", lambda: db.execute("SET TIME ZONE 'UTC'").statusmessage)
        read("error and on", lambda: all_of("SELECT 1 / 0"))
        read("after the error", lambda: all_of("SELECT 1"))
        read("type information", lambda: types(db))
        read("compose", lambda: all_of(composed.SQL("SELECT count(*) FROM {}").format(composed.Identifier("survey", "building"))))
        read("copy to", lambda: copy(db, "COPY (SELECT id, code, name FROM survey.district ORDER BY id) TO STDOUT"))
        read("copy to binary", lambda: copy(db, "COPY survey.district TO STDOUT (FORMAT binary)"))
        read("copy, left early", lambda: copy_left(db))
        read("stream", lambda: sum(1 for _ in db.cursor().stream("SELECT id FROM survey.reading WHERE id <= 3000")))
        read("pipelines with errors", lambda: pipeline_error(db))
        read("cancel", lambda: cancel(db))
        read("after cancel", lambda: all_of("SELECT 'on'"))
        read("server cursor with hold", lambda: held(db))
        read("parameters of the connection", lambda: [db.info.parameter_status(n) for n in ("server_encoding", "client_encoding", "integer_datetimes", "server_version", "standard_conforming_strings", "TimeZone", "DateStyle")])

    with connect() as db:
        read("named cursor", lambda: named(db))
        read("scrollable cursor", lambda: scroll(db))
        db.rollback()
        read("transaction status", lambda: statuses(db))
        db.rollback()
        read("nested transactions", lambda: nested(db))
        db.rollback()
        read("pipeline", lambda: pipeline(db))
        db.rollback()
        read("read only and isolation", lambda: modes(db))


def many(db):
    cursor = db.cursor()
    cursor.executemany("SELECT code FROM survey.district WHERE id = %s", [(1,), (2,), (3,)], returning=True)
    got = []
    while True:
        got += cursor.fetchall()
        if not cursor.nextset():
            return got


def types(db):
    enum = EnumInfo.fetch(db, "survey.state")
    composite = CompositeInfo.fetch(db, "survey.place")
    ranged = RangeInfo.fetch(db, "survey.period")
    plain = TypeInfo.fetch(db, "survey.grade")
    return [enum.labels, composite.field_names, ranged.subtype_oid, plain.name]


def copy(db, sql):
    with db.cursor().copy(sql) as rows:
        return b"".join(bytes(block) for block in rows).hex()


class Enough(Exception):
    """Leaves a COPY before its end; psycopg then cancels it."""


def copy_left(db):
    try:
        with db.cursor().copy("COPY (SELECT a.* FROM survey.reading a, survey.district) TO STDOUT") as rows:
            for number, _ in enumerate(rows):
                if number > 10:
                    raise Enough
    except Enough:
        return db.execute("SELECT 1").fetchone()


def cancel(db):
    timer = threading.Timer(0.3, db.cancel_safe)
    timer.start()
    begun = time.monotonic()
    try:
        db.execute("SELECT count(*) FROM survey.reading a, survey.reading b WHERE a.value + b.value > 3 AND a.remark <> b.remark")
        return "not cancelled"
    except psycopg.errors.QueryCanceled as error:
        return [error.sqlstate, primary(error), time.monotonic() - begun < 20]
    finally:
        timer.join()


def held(db):
    with db.cursor("h", withhold=True) as cursor:
        cursor.execute("SELECT id FROM survey.district ORDER BY id")
        return [cursor.fetchmany(3), cursor.fetchone()]


def named(db):
    with db.cursor("n") as cursor:
        cursor.itersize = 700
        cursor.execute("SELECT id, remark FROM survey.reading WHERE id <= %s ORDER BY id", (5000,))
        return [sum(row[0] for row in cursor), db.info.transaction_status.name]


def scroll(db):
    with db.cursor("s", scrollable=True) as cursor:
        cursor.execute("SELECT id FROM survey.building ORDER BY id")
        first = cursor.fetchmany(3)
        cursor.scroll(-2)
        cursor.scroll(100, mode="absolute")
        return [first, cursor.fetchone()]


def statuses(db):
    got = [db.info.transaction_status.name]
    db.execute("SELECT 1")
    got.append(db.info.transaction_status.name)
    try:
        db.execute("SELECT no_such_column")
    except psycopg.Error as error:
        got.append(error.sqlstate)
    got.append(db.info.transaction_status.name)
    try:
        db.execute("SELECT 1")
    except psycopg.Error as error:
        got.append([error.sqlstate, primary(error)])
    db.rollback()
    got.append(db.info.transaction_status.name)
    return got


def nested(db):
    got = []
    with db.transaction():
        try:
            with db.transaction():
                db.execute("SELECT 1 / 0")
        except psycopg.errors.DivisionByZero:
            got.append("inner rolled back")
        got += db.execute("SELECT 1").fetchone()
    return got


def pipeline(db):
    with db.pipeline() as pipe:
        cursors = [db.execute("SELECT %s::int, code FROM survey.district WHERE id = %s", (n, n)) for n in range(1, 60)]
        pipe.sync()
        more = db.execute("SELECT 'more'")
        return [[c.fetchone() for c in cursors], more.fetchone()]


def piped(db, *stretches):
    """What libpq hands back for statements in pipeline mode, a Sync after each stretch: result by result."""
    raw = db.pgconn
    raw.enter_pipeline_mode()
    for stretch in stretches:
        for sql in stretch:
            raw.send_query_params(sql.encode(), None)
        raw.pipeline_sync()
    got, syncs = [], 0
    while syncs < len(stretches):
        result = raw.get_result()
        if result is None:
            continue
        status = psycopg.pq.ExecStatus(result.status)
        if status == psycopg.pq.ExecStatus.PIPELINE_SYNC:
            syncs += 1
            got.append("sync " + psycopg.pq.TransactionStatus(raw.transaction_status).name)
        elif status == psycopg.pq.ExecStatus.FATAL_ERROR:
            code = result.error_field(psycopg.pq.DiagnosticField.SQLSTATE)
            text = result.error_field(psycopg.pq.DiagnosticField.MESSAGE_PRIMARY)
            got.append([code.decode(), text.decode()])
        else:
            got.append([status.name, [result.get_value(r, 0) for r in range(result.ntuples)]])
    raw.exit_pipeline_mode()
    return got


def pipeline_error(db):
    return piped(db, ["SELECT 1", "SELECT 1 / 0", "SELECT 3"], ["SELECT 4"], ["BEGIN", "SELECT 5", "SELECT no_such_column", "SELECT 6"],
                 ["SELECT 7"], ["ROLLBACK", "SELECT 8"])


def modes(db):
    db.read_only = True
    db.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    got = list(db.execute("SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')").fetchone())
    db.commit()
    db.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
    db.deferrable = True
    got += db.execute("SHOW transaction_deferrable").fetchone()
    db.rollback()
    return got


def writes():
    with connect(autocommit=True) as db:
        for name, sql, want, guarded in WRITES:
            refused(name, want, lambda s=sql: db.execute(s).statusmessage, guarded)
            refused(f"{name}, extended protocol", want, lambda s=sql: db.execute(s, (), prepare=True).statusmessage, guarded)
        read("status after all that", lambda: [db.info.transaction_status.name, db.execute("SELECT 1").fetchone()])
        refused("insert with parameters", "25006", lambda: db.execute("INSERT INTO survey.scratch VALUES (%s, %s)", (1, MARK)))
        refused("executemany", "25006", lambda: db.cursor().executemany("INSERT INTO survey.scratch VALUES (%s, %s)", [(n, MARK) for n in range(20)]))
        refused("copy from", "25006", lambda: copy_in(db))
        read("after copy from", lambda: [db.info.transaction_status.name, db.execute("SELECT 1").fetchone()])
        refused("set config with parameters", "42501",
                lambda: db.execute("SELECT set_config(%s, %s, false)", ("default_transaction_read_only", "off")), True)
        refused("read write", "25006", lambda: read_write(db), True)
    with connect() as db:
        read("refused in a transaction", lambda: in_transaction(db))
        db.rollback()
        read("refused in a savepoint", lambda: in_savepoint(db))
        db.rollback()
        read("refused in psycopg's pipeline", autocommit_pipeline)
    with connect(autocommit=True) as db:
        read("refused in pipelines", lambda: in_pipeline(db))


def copy_in(db):
    with db.cursor().copy("COPY survey.scratch FROM STDIN") as rows:
        rows.write_row((1, MARK))


def read_write(db):
    with connect() as other:
        other.read_only = False
        return other.execute("SELECT 1").fetchone()


def in_transaction(db):
    got = [db.execute("SELECT 1").fetchone()]
    for sql in (WRITES[0][1], "SELECT 2", WRITES[1][1]):
        try:
            db.execute(sql)
            got.append("passed")
        except psycopg.Error as error:
            got.append([error.sqlstate, primary(error), db.info.transaction_status.name])
    db.rollback()
    got.append([db.info.transaction_status.name, db.execute("SELECT 3").fetchone()])
    return got


def in_savepoint(db):
    got = []
    with db.transaction():
        try:
            with db.transaction():
                db.execute(WRITES[0][1])
        except psycopg.Error as error:
            got.append(error.sqlstate)
        got.append(db.execute("SELECT 5").fetchone())
    return got


def in_pipeline(db):
    return piped(db, ["SELECT 1", WRITES[0][1], "SELECT 2"], ["SELECT 3"], [WRITES[1][1]],
                 ["BEGIN", "SELECT 4", WRITES[0][1], "SELECT 5"], ["SELECT 6", "SELECT 7"], ["ROLLBACK", "SELECT 8"],
                 ["BEGIN", "SAVEPOINT a", WRITES[0][1]], ["ROLLBACK TO a", "SELECT 9"], ["COMMIT", "SELECT 10", WRITES[0][1]], ["SELECT 11"])


def autocommit_pipeline():
    """The same by psycopg's own pipeline, a refused statement in it."""
    with connect(autocommit=True) as db:
        got = []
        try:
            with db.pipeline():
                db.execute("SELECT 'before'")
                db.execute("INSERT INTO survey.scratch VALUES (%s, %s)", (1, MARK))
                db.execute("SELECT 'skipped'")
        except psycopg.Error as error:
            got.append([type(error).__name__, error.sqlstate])
        got.append([db.info.transaction_status.name, db.execute("SELECT 'after'").fetchone()])
        return got


if wants("reads"):
    reads()
if wants("writes"):
    writes()
