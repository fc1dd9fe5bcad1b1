"""Clients that know what each answer must be, and what came of them.

Invariant: whatever arrives without an error is compared with what this client alone can have asked for: its name, its own
counter and every row in order stand in the text of each question.
"""

import collections
import hashlib
import random
import re
import socket
import struct
import threading
import time

import psycopg

from bench_parts import wire

PASSWORD, DATABASE = "a password for the soak", "soak"
# Codes that stand for a refused write; any other error of a write is an error of the connection.
REFUSALS = {"25006", "0A000", "42501"}
STORED = 20_000


class Wrong(Exception):
    """An answer that is not what it must be."""


class Tally:
    """What all clients have seen."""

    def __init__(self):
        self._lock = threading.Lock()
        self.answers, self.rows, self.gone = collections.Counter(), 0, 0
        self.errors, self.wrong = collections.Counter(), []

    def answer(self, kind, rows):
        with self._lock:
            self.answers[kind] += 1
            self.rows += rows

    def vanished(self, *_):
        with self._lock:
            self.gone += 1

    def error(self, code):
        with self._lock:
            self.errors[code] += 1

    def mistake(self, text):
        with self._lock:
            self.wrong.append(text)

    def total(self):
        return sum(self.answers.values())


def stored(number):
    """The body of a row of the table, as the server was filled with it."""
    return hashlib.md5(f"stored {number}".encode()).hexdigest() * 3


def code_of(error):
    """A SQLSTATE, or in words what there was instead of one."""
    state = getattr(error, "sqlstate", None)
    if state:
        return state
    if isinstance(error, (TimeoutError, psycopg.errors.ConnectionTimeout)):
        return "no answer in time"
    # libpq keeps no code of what it was told at login.
    told = re.search(r"FATAL: +([^\n]{1,70})", str(error))
    return f"at login: {told.group(1)}" if told else "connection closed"


class Client(threading.Thread):
    """One client: logs in, asks until it is told to stop, logs in again whenever it has lost its connection."""

    def __init__(self, number, user, port, tally, seed):
        super().__init__(name=f"c{number}", daemon=True)
        self.user, self.port, self.tally = user, port, tally
        self.random = random.Random(seed)
        self.zone = f"Etc/GMT+{number % 12 + 1}"
        self.count, self.stopping, self.moved = 0, threading.Event(), time.monotonic()
        self.doing, self.cancelled_at = "", -10
        # The short ones more often: they are what meets in a pool.
        self.kinds = [*[self.simple, self.parameters, self.prepared, self.prepared, self.pipeline, self.settings, self.transaction] * 4, self.cursor, self.portal, self.copy, self.refused_write,
                      self.failed_transaction, self.table, self.slow_reader, self.cancel,
                      self.vanish_inside_result, self.vanish_inside_transaction]

    def run(self):
        while not self.stopping.is_set():
            try:
                with psycopg.connect(host="127.0.0.1", port=self.port, user=self.user, password=PASSWORD, dbname=DATABASE, autocommit=True,
                                     sslmode="disable", connect_timeout=30, prepare_threshold=None, application_name=self.name) as db:
                    db.execute(f"SET TIME ZONE '{self.zone}'")
                    # A connection has its own life of a few hundred questions.
                    for _ in range(self.random.randint(5, 400)):
                        if self.stopping.is_set():
                            return
                        self.ask(db)
            except Wrong as wrong:
                self.tally.mistake(f"{self.name} ({self.user}), {self.doing}: {wrong}")
            except (psycopg.Error, wire.Refused, OSError) as error:
                self.note(error)
                # Who comes back at once after each error measures nothing but logins.
                self.stopping.wait(self.random.uniform(0.02, 0.3))
            except Exception as error:  # noqa: BLE001
                # Such as a length that cannot be: bytes of somebody else.
                self.tally.mistake(f"{self.name} ({self.user}), {self.doing}: {type(error).__name__}: {error}")
            self.moved = time.monotonic()

    def note(self, error):
        """Counts an error; one that only another client's cancel can have made is wrong."""
        self.tally.error(code_of(error))
        if code_of(error) == "57014" and "user request" in str(error) and self.count - self.cancelled_at > 1:
            raise Wrong(f"cancelled, though this client has cancelled nothing: {error}")

    def ask(self, db):
        self.count += 1
        kind = self.random.choice(self.kinds)
        self.doing = f"question {self.count}, {kind.__name__}"
        try:
            rows = kind(db)
            # Who vanished has no answer to check.
            (self.tally.vanished if rows is None else self.tally.answer)(kind.__name__, rows)
        except (psycopg.Error, wire.Refused, OSError) as error:
            if db.closed or isinstance(error, psycopg.OperationalError) and not getattr(error, "sqlstate", None):
                raise
            try:
                self.note(error)
            except Wrong as wrong:
                self.tally.mistake(f"{self.name} ({self.user}), {self.doing}: {wrong}")
            if db.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                db.execute("ROLLBACK")
        self.moved = time.monotonic()

    # What is asked, and what must come.

    def key(self, extra=""):
        return f"{self.name}.{self.count}.{extra}"

    def series(self, rows, key):
        return f"SELECT '{self.name}', g, md5('{key}' || g) FROM generate_series(1, {rows}) AS g"

    def check(self, got, rows, key, first=1):
        wanted = [(self.name, g, hashlib.md5(f"{key}{g}".encode()).hexdigest()) for g in range(first, first + rows)]
        if got != wanted:
            at = next((at for at, (a, b) in enumerate(zip(got, wanted, strict=False)) if a != b), min(len(got), len(wanted)))
            raise Wrong(f"{len(got)} rows, wanted {len(wanted)}; the first difference is row {at}: "
                        f"{got[at] if at < len(got) else 'none'}, wanted {wanted[at] if at < len(wanted) else 'none'}")
        return len(got)

    def simple(self, db):
        rows, key = self.random.choice((0, 1, 3, 50, 2000)), self.key()
        return self.check(db.execute(self.series(rows, key)).fetchall(), rows, key)

    def parameters(self, db):
        rows, key = self.random.choice((1, 7, 300)), self.key()
        binary = self.random.random() < 0.5
        got = db.execute("SELECT %s::text, g, md5(%s::text || g) FROM generate_series(1, %s::int) AS g", (self.name, key, rows), binary=binary)
        return self.check(got.fetchall(), rows, key)

    def prepared(self, db):
        # Every client has statements of the same names and another order of texts.
        text = self.random.randrange(12)
        rows, key = self.random.choice((1, 20)), self.key(text)
        got = db.execute(f"SELECT %s::text, g, md5(%s::text || g) FROM generate_series(1, %s::int) AS g WHERE {text} = {text}",
                         (self.name, key, rows), prepare=True)
        return self.check(got.fetchall(), rows, key)

    def cursor(self, db):
        rows, key, got = self.random.choice((10, 1500)), self.key(), []
        with db.transaction(), db.cursor(name=f"c{self.count}") as cursor:
            cursor.execute(self.series(rows, key))
            while some := cursor.fetchmany(100):
                got += some
        return self.check(got, rows, key)

    def portal(self, db):
        """Execute with a limit of rows on a connection of its own; psycopg has no such thing."""
        rows, key = self.random.choice((95, 100, 730)), self.key()
        execute = wire.message(b"E", b"p\0" + struct.pack("!I", 100)) + wire.message(b"S")
        with wire.Connection(self.port, self.user, PASSWORD, DATABASE) as own:
            own.answer(wire.message(b"Q", b"BEGIN\0"))
            sql = self.series(rows, key).encode()
            answer = own.answer(wire.message(b"P", b"\0" + sql + b"\0\0\0"), wire.message(b"B", b"p\0\0" + bytes(6)), execute)
            got = []
            while True:
                got += [_row(body) for kind, body in answer if kind == b"D"]
                if not any(kind == b"s" for kind, _ in answer):
                    break
                answer = own.answer(execute)
            own.answer(wire.message(b"Q", b"COMMIT\0"))
            own.socket.sendall(wire.message(b"X"))
        return self.check([(name, int(g), digest) for name, g, digest in got], rows, key)

    def copy(self, db):
        rows, key, got = self.random.choice((1, 5000)), self.key(), []
        with db.cursor().copy(f"COPY ({self.series(rows, key)}) TO STDOUT") as copy:
            for name, g, digest in copy.rows():
                got.append((name, int(g), digest))
        return self.check(got, rows, key)

    def refused_write(self, db):
        write = self.random.choice(("INSERT INTO stored VALUES (-1, 'x')", "UPDATE stored SET body = 'x' WHERE id = 7", "DELETE FROM stored",
                                    "CREATE TABLE t (a int)", "SELECT 1; DROP TABLE stored", "SELECT nextval('numbers')",
                                    "WITH gone AS (DELETE FROM stored RETURNING 1) SELECT * FROM gone", "COPY stored FROM STDIN"))
        try:
            db.execute(write, prepare=self.random.random() < 0.3)
        except psycopg.Error as error:
            # The statement of "SELECT 1; …" may be refused for being two.
            if error.sqlstate in REFUSALS or error.sqlstate == "42601":
                return 0
            raise
        raise Wrong(f"admitted: {write}")

    def transaction(self, db):
        count = 0
        with db.transaction():
            first = db.execute("SELECT pg_backend_pid(), now()").fetchone()
            for part in range(self.random.randint(1, 4)):
                key = self.key(part)
                count += self.check(db.execute(self.series(9, key)).fetchall(), 9, key)
            last = db.execute("SELECT pg_backend_pid(), now()").fetchone()
        if first != last:
            raise Wrong(f"a transaction went on elsewhere: {first}, then {last}")
        return count

    def failed_transaction(self, db):
        codes = []
        db.execute("BEGIN")
        for sql in ("SELECT 1 / 0", "SELECT 1"):
            try:
                db.execute(sql)
                codes.append(None)
            except psycopg.Error as error:
                if not error.sqlstate or error.sqlstate[:2] in ("57", "08", "53"):
                    raise
                codes.append(error.sqlstate)
        db.execute("ROLLBACK")
        if codes != ["22012", "25P02"]:
            raise Wrong(f"a failed transaction answered {codes}")
        return 0

    def pipeline(self, db):
        keys = [self.key(part) for part in range(self.random.randint(2, 12))]
        with db.pipeline():
            cursors = [db.execute("SELECT %s::text, g, md5(%s::text || g) FROM generate_series(1, 5) AS g", (self.name, key)) for key in keys]
        return sum(self.check(cursor.fetchall(), 5, key) for cursor, key in zip(cursors, keys, strict=True))

    def settings(self, db):
        got = db.execute("SHOW TIME ZONE").fetchone()[0], db.execute("SHOW application_name").fetchone()[0]
        # The source is told which user of the gateway it is.
        if got[0] != self.zone or got[1] not in (self.name, f"fedgate/{self.user} {self.name}"):
            raise Wrong(f"the settings are {got}, wanted {(self.zone, self.name)}")
        return 2

    def table(self, db):
        first = self.random.randint(1, STORED - 200)
        got = db.execute("SELECT id, body FROM stored WHERE id BETWEEN %s AND %s ORDER BY id", (first, first + 199)).fetchall()
        if got != [(number, stored(number)) for number in range(first, first + 200)]:
            raise Wrong(f"rows {first} to {first + 199} of the table are others: {got[:1]} to {got[-1:]}, {len(got)} of them")
        return len(got)

    def slow_reader(self, db):
        """A client that does not read for a while, with an answer that no buffer holds."""
        rows, key, got = 40_000, self.key(), []
        pauses = {self.random.randrange(rows) for _ in range(3)}
        with db.cursor().copy(f"COPY ({self.series(rows, key)}) TO STDOUT") as copy:
            for at, (name, g, digest) in enumerate(copy.rows()):
                got.append((name, int(g), digest))
                if at in pauses:
                    time.sleep(0.2)
        return self.check(got, rows, key)

    def cancel(self, db):
        timer = threading.Timer(self.random.uniform(0.0, 0.3), self._cancel, (db,))
        self.cancelled_at = self.count
        timer.start()
        try:
            db.execute("SELECT count(*) FROM generate_series(1, 60000000)")
            ended = "whole"
        except psycopg.errors.QueryCanceled:
            ended = "cancelled"
        finally:
            timer.join()
        key = self.key(ended)
        try:
            return self.check(db.execute(self.series(3, key)).fetchall(), 3, key)
        except psycopg.errors.QueryCanceled:
            # It came too late for its own statement, as it may with PostgreSQL itself.
            return self.check(db.execute(self.series(3, key)).fetchall(), 3, key)

    @staticmethod
    def _cancel(db):
        try:
            db.cancel_safe(timeout=10)
        except (psycopg.Error, OSError):
            pass

    def vanish_inside_result(self, db):
        own = wire.Connection(self.port, self.user, PASSWORD, DATABASE)
        own.socket.sendall(wire.message(b"Q", self.series(200_000, self.key()).encode() + b"\0"))
        own.socket.recv(self.random.choice((1, 1000, 100_000)))
        self._vanish(own)

    def vanish_inside_transaction(self, db):
        own = wire.Connection(self.port, self.user, PASSWORD, DATABASE)
        own.answer(wire.message(b"Q", b"BEGIN\0"))
        own.answer(wire.message(b"Q", b"SELECT count(*) FROM stored\0"))
        own.socket.sendall(wire.message(b"P", b"x\0SELECT 'unfinished'\0\0\0"))
        self._vanish(own)

    def _vanish(self, own):
        if self.random.random() < 0.5:
            own.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        own.close()


def _row(body):
    """The text values of a DataRow."""
    found, at = [], 2
    for _ in range(struct.unpack("!H", body[:2])[0]):
        size = struct.unpack("!i", body[at:at + 4])[0]
        at += 4
        found.append(body[at:at + size].decode())
        at += size
    return found
