"""A PostgreSQL client that costs next to nothing, so that the path is measured and not the client.

Invariant: an answer counts only when its end is what the protocol says it must be; nothing is read of rows but their number
of bytes.
"""

import base64
import hashlib
import hmac
import os
import socket
import struct

# What an answer ends with: ReadyForQuery, at rest or in a transaction.
IDLE, INSIDE = b"Z\0\0\0\x05I", b"Z\0\0\0\x05T"


# One for all connections: 10,000 of them wait at a time, and one reads.
_BUFFER = memoryview(bytearray(256 * 1024))


class Refused(Exception):
    """An ErrorResponse, or the end of the connection, where an answer was due."""

    def __init__(self, text, sqlstate=None):
        super().__init__(f"{sqlstate}: {text}" if sqlstate else text)
        self.sqlstate = sqlstate


def verifier(password, rounds):
    """A SCRAM verifier as PostgreSQL, PgBouncer and fedgate read it."""
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, rounds)
    stored = hashlib.sha256(_mac(salted, b"Client Key")).digest()
    parts = [base64.b64encode(part).decode() for part in (salt, stored, _mac(salted, b"Server Key"))]
    return f"SCRAM-SHA-256${rounds}:{parts[0]}${parts[1]}:{parts[2]}"


def _mac(key, text):
    return hmac.digest(key, text, "sha256")


def message(kind, body=b""):
    """One message of the protocol."""
    return kind + struct.pack("!I", len(body) + 4) + body


class Connection:
    """One client that has logged in, by SCRAM, md5 or trust; no TLS."""

    def __init__(self, port, user, password, database, timeout=60):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            body = struct.pack("!I", 196608) + f"user\0{user}\0database\0{database}\0\0".encode()
            self.socket.sendall(struct.pack("!I", len(body) + 4) + body)
            self._log_in(user, password)
        except BaseException:
            self.close()
            raise

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _exactly(self, count):
        received = b""
        while len(received) < count:
            chunk = self.socket.recv(count - len(received))
            if not chunk:
                raise Refused("the connection was closed")
            received += chunk
        return received

    def read(self):
        """The next message: its kind and body."""
        head = self._exactly(5)
        body = self._exactly(struct.unpack("!I", head[1:])[0] - 4)
        if head[:1] == b"E":
            fields = {part[:1]: part[1:].decode(errors="replace") for part in body.split(b"\0") if part}
            raise Refused(fields.get(b"M", ""), fields.get(b"C"))
        return head[:1], body

    def _log_in(self, user, password):
        nonce, signature = base64.b64encode(os.urandom(18)), None
        while True:
            kind, body = self.read()
            if kind == b"Z":
                return
            if kind != b"R":
                continue
            method, rest = struct.unpack("!I", body[:4])[0], body[4:]
            if method == 5:
                inner = hashlib.md5((password + user).encode()).hexdigest()
                self.socket.sendall(message(b"p", b"md5" + hashlib.md5(inner.encode() + rest).hexdigest().encode() + b"\0"))
            elif method == 10:
                first = b"n=,r=" + nonce
                self.socket.sendall(message(b"p", b"SCRAM-SHA-256\0" + struct.pack("!I", len(first) + 3) + b"n,," + first))
            elif method == 11:
                field = dict(part.split(b"=", 1) for part in rest.split(b","))
                salted = hashlib.pbkdf2_hmac("sha256", password.encode(), base64.b64decode(field[b"s"]), int(field[b"i"]))
                last = b"c=biws,r=" + field[b"r"]
                both = b",".join((b"n=,r=" + nonce, rest, last))
                key = _mac(salted, b"Client Key")
                proof = bytes(a ^ b for a, b in zip(key, _mac(hashlib.sha256(key).digest(), both), strict=True))
                signature = base64.b64encode(_mac(_mac(salted, b"Server Key"), both))
                self.socket.sendall(message(b"p", last + b",p=" + base64.b64encode(proof)))
            elif method == 12:
                if rest.split(b",")[0] != b"v=" + signature:
                    raise Refused("the server does not know the password")
            elif method != 0:
                raise Refused(f"unknown kind of authentication {method}")

    def answer(self, *messages):
        """Sends messages and gives all that comes until ReadyForQuery."""
        self.socket.sendall(b"".join(messages))
        found = []
        while True:
            found.append(self.read())
            if found[-1][0] == b"Z":
                return found

    def drain(self, ends):
        """Reads on until the answer ends with one of `ends`; gives the number of bytes and which end it was."""
        size, tail, keep = 0, b"", max(map(len, ends))
        while True:
            count = self.socket.recv_into(_BUFFER)
            if not count:
                raise Refused("the connection was closed")
            if size == 0 and _BUFFER[0] == ord("E"):
                raise Refused(bytes(_BUFFER[5:min(count, 300)]).replace(b"\0", b" ").decode(errors="replace"))
            size += count
            tail = (tail + bytes(_BUFFER[max(0, count - keep):count]))[-keep:]
            for end in ends:
                if tail.endswith(end):
                    return size, end

    def query(self, sql, ends=(IDLE,)):
        """A simple Query; bytes of its answer and which end it had."""
        self.socket.sendall(message(b"Q", sql.encode() + b"\0"))
        return self.drain(ends)

    def copy_out(self, table, rows):
        """COPY … TO STDOUT of a table that has so many rows; bytes of the answer."""
        end = message(b"c") + message(b"C", f"COPY {rows}\0".encode()) + IDLE
        return self.query(f"COPY {table} TO STDOUT", (end,))[0]

    def fetch(self, sql, rows, at_once):
        """All rows of a SELECT through a portal, so many in one Execute; bytes of the answers."""
        total = self.query("BEGIN", (INSIDE,))[0]
        execute = message(b"E", b"portal\0" + struct.pack("!I", at_once)) + message(b"S")
        more = message(b"s") + INSIDE
        # The last Execute tells how many rows it had itself.
        done = message(b"C", f"SELECT {rows % at_once}\0".encode()) + INSIDE
        self.socket.sendall(message(b"P", b"\0" + sql.encode() + b"\0\0\0") + message(b"B", b"portal\0\0" + bytes(6)) + execute)
        portions = 0
        while True:
            size, end = self.drain((more, done))
            total += size
            if end == done:
                break
            portions += 1
            self.socket.sendall(execute)
        if portions != rows // at_once:
            raise Refused(f"{portions} portions of {at_once} rows and {rows % at_once} more are not {rows}")
        return total + self.query("COMMIT")[0]
