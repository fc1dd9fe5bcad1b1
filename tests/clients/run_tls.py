"""TLS to the gateway as drivers do it: verified, direct (without SSLRequest), channel binding, protocol 3.2, encrypted cancel.

FEDGATE_CA is the file of the authority that signed the gateway's certificate.
"""

import asyncio
import os
import ssl
import threading

import asyncpg
import psycopg

from transcript import primary, read

CA = os.environ["FEDGATE_CA"]
LONG = "SELECT count(*) FROM survey.reading a, survey.reading b WHERE a.value + b.value > 3 AND a.remark <> b.remark"


def libpq(**options):
    """What a session over libpq with these options looks like."""
    with psycopg.connect(connect_timeout=20, host="localhost", hostaddr="127.0.0.1", sslrootcert=CA, autocommit=True, **options) as db:
        rows = db.execute("SELECT count(*) FROM survey.building").fetchone()
        return [bool(db.pgconn.ssl_in_use), db.pgconn.full_protocol_version, rows[0]]


def cancel(**options):
    with psycopg.connect(connect_timeout=20, host="localhost", hostaddr="127.0.0.1", sslrootcert=CA, autocommit=True, **options) as db:
        timer = threading.Timer(0.3, db.cancel_safe)
        timer.start()
        try:
            db.execute(LONG)
        except psycopg.errors.QueryCanceled as error:
            return [error.sqlstate, db.execute("SELECT 1").fetchone()[0]]
        finally:
            timer.join()


def wrong_authority():
    try:
        psycopg.connect(connect_timeout=20, host="localhost", hostaddr="127.0.0.1", sslmode="verify-full", sslrootcert="system")
    except psycopg.OperationalError as error:
        return "certificate verify failed" in str(error)


def wrong_name():
    try:
        psycopg.connect(connect_timeout=20, host="other.invalid", hostaddr="127.0.0.1", sslmode="verify-full", sslrootcert=CA)
    except psycopg.OperationalError as error:
        return "does not match host name" in str(error)


def over_asyncpg(direct):
    async def go():
        context = ssl.create_default_context(cafile=CA)
        if direct:
            context.set_alpn_protocols(["postgresql"])
        db = await asyncpg.connect(host="localhost", ssl=context, direct_tls=direct, timeout=20)
        try:
            return [await db.fetchval("SELECT count(*) FROM survey.building"), db.get_settings().server_encoding]
        finally:
            await db.close()

    return asyncio.run(go())


read("verified", lambda: libpq(sslmode="verify-full"))
read("channel binding", lambda: libpq(sslmode="verify-full", channel_binding="require"))
read("channel binding off", lambda: libpq(sslmode="require", channel_binding="disable"))
read("direct", lambda: libpq(sslmode="verify-full", sslnegotiation="direct", channel_binding="require"))
read("protocol 3.2", lambda: libpq(sslmode="verify-full", max_protocol_version="latest"))
read("protocol 3.2 asked for", lambda: libpq(sslmode="disable", min_protocol_version="3.0", max_protocol_version="3.2"))
read("plain", lambda: libpq(sslmode="disable"))
read("cancel", lambda: cancel(sslmode="verify-full"))
read("cancel over direct TLS", lambda: cancel(sslmode="verify-full", sslnegotiation="direct"))
read("cancel with a long key", lambda: cancel(sslmode="verify-full", max_protocol_version="latest"))
read("another authority", wrong_authority)
read("another name", wrong_name)
read("asyncpg", lambda: over_asyncpg(False))
read("asyncpg, direct", lambda: over_asyncpg(True))
