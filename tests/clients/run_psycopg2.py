"""psycopg2: client-side binding over the simple protocol, named cursors, COPY, savepoints, cancel; then every write."""

import io
import threading

import psycopg2
import psycopg2.extensions
import psycopg2.extras

from transcript import MARK, WRITES, primary, read, refused, wants


def connect():
    return psycopg2.connect("connect_timeout=20")


def rows(db, sql, arguments=None):
    with db.cursor() as cursor:
        cursor.execute(sql, arguments)
        return [list(row) for row in cursor.fetchall()] if cursor.description else cursor.statusmessage


def copied(db, sql):
    out = io.StringIO()
    with db.cursor() as cursor:
        cursor.copy_expert(sql, out)
    return out.getvalue()


def named(db):
    with db.cursor("n") as cursor:
        cursor.itersize = 400
        cursor.execute("SELECT id FROM survey.reading WHERE id <= 2500 ORDER BY id")
        return sum(row[0] for row in cursor)


def scroll(db):
    with db.cursor("s", scrollable=True, withhold=True) as cursor:
        cursor.execute("SELECT id FROM survey.building ORDER BY id")
        cursor.scroll(20)
        got = [cursor.fetchone()]
        cursor.scroll(-5)
        return got + [cursor.fetchmany(2)]


def cancel(db):
    timer = threading.Timer(0.3, db.cancel)
    timer.start()
    try:
        return rows(db, "SELECT count(*) FROM survey.reading a, survey.reading b WHERE a.value + b.value > 3 AND a.remark <> b.remark")
    finally:
        timer.join()


def session(db):
    db.rollback()
    db.set_session(isolation_level="SERIALIZABLE", readonly=True, deferrable=True)
    got = rows(db, "SELECT current_setting('transaction_isolation'), current_setting('transaction_read_only')")
    db.rollback()
    db.set_session(isolation_level="DEFAULT", readonly="DEFAULT", deferrable="DEFAULT")
    return got


def statuses(db):
    db.rollback()
    got = [db.get_transaction_status()]
    rows(db, "SELECT 1")
    got.append(db.get_transaction_status())
    for sql in ("SELECT no_such_column", "SELECT 1"):
        try:
            rows(db, sql)
        except psycopg2.Error as error:
            got.append([error.pgcode, db.get_transaction_status()])
    db.rollback()
    return got + [db.get_transaction_status()]


def reads():
    db = connect()
    db.set_client_encoding("UTF8")
    read("query", lambda: rows(db, "SELECT * FROM survey.building WHERE id = %s", (5,)))
    read("in", lambda: rows(db, "SELECT id FROM survey.building WHERE id IN %s ORDER BY id", ((1, 2, 3),)))
    read("quoting", lambda: rows(db, "SELECT %s, %s, %s", ("a'b\\c", None, [1, 2])))
    read("bytes", lambda: [bytes(v[0]).hex() for v in rows(db, "SELECT %s", (psycopg2.Binary(b"\x00\xff'\\"),))])
    read("several statements", lambda: rows(db, "SELECT 1; SELECT 2"))
    read("copy", lambda: copied(db, "COPY (SELECT id, code FROM survey.district ORDER BY id) TO STDOUT WITH CSV HEADER"))
    read("copy_to", lambda: copied(db, "COPY survey.district TO STDOUT"))
    read("named cursor", lambda: named(db))
    read("scrollable cursor", lambda: scroll(db))
    read("statuses", lambda: statuses(db))
    read("session", lambda: session(db))
    read("dict", lambda: [dict(r) for r in dict_rows(db)])
    read("enum and composite oids", lambda: psycopg2.extras.register_composite("survey.place", db).attnames)
    db.rollback()
    read("cancel", lambda: cancel(db))
    db.rollback()
    read("after cancel", lambda: rows(db, "SELECT 1"))
    read("reset", lambda: [db.reset(), rows(db, "SELECT 2")][1])
    db.close()
    db = connect()
    db.autocommit = True
    read("autocommit", lambda: [rows(db, "SELECT 1"), db.get_transaction_status()])
    read("hstore look-up", lambda: psycopg2.extras.HstoreAdapter.get_oids(db))
    db.close()


def dict_rows(db):
    with db.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
        cursor.execute("SELECT id, code FROM survey.district ORDER BY id LIMIT 3")
        return cursor.fetchall()


def in_transaction(db):
    db.rollback()
    got = [rows(db, "SELECT 1")]
    for sql in (WRITES[0][1], "SELECT 2"):
        try:
            got.append(rows(db, sql))
        except psycopg2.Error as error:
            got.append([error.pgcode, primary(error), db.get_transaction_status()])
    db.rollback()
    return got + [rows(db, "SELECT 3"), db.get_transaction_status()]


def writes():
    db = connect()
    db.autocommit = True
    for name, sql, want, guarded in WRITES:
        refused(name, want, lambda s=sql: rows(db, s.replace("%", "%%")), guarded)
    refused("execute_values", "25006", lambda: values(db))
    refused("execute_batch", "25006", lambda: batch(db))
    refused("copy from", "25006", lambda: copy_in(db))
    read("after all that", lambda: [rows(db, "SELECT 1"), db.get_transaction_status()])
    refused("read write session", "25006", lambda: [db.set_session(readonly=False), rows(db, f"SELECT '{MARK}'")], True)
    db.close()
    db = connect()
    read("refused in a transaction", lambda: in_transaction(db))
    db.close()


def values(db):
    with db.cursor() as cursor:
        psycopg2.extras.execute_values(cursor, "INSERT INTO survey.scratch VALUES %s", [(n, MARK) for n in range(5)])


def batch(db):
    with db.cursor() as cursor:
        psycopg2.extras.execute_batch(cursor, "INSERT INTO survey.scratch VALUES (%s, %s)", [(n, MARK) for n in range(5)])


def copy_in(db):
    with db.cursor() as cursor:
        cursor.copy_expert("COPY survey.scratch FROM STDIN", io.StringIO(f"1\t{MARK}\n"))


if wants("reads"):
    reads()
if wants("writes"):
    writes()
