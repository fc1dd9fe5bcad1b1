"""Logs in with one driver after the other, whatever the number of SCRAM rounds; one line each."""

import asyncio
import os
import subprocess
from urllib.parse import quote

HOST, PORT = os.environ["PGHOST"], os.environ["PGPORT"]
USER, PASSWORD = os.environ["PGUSER"], os.environ["PGPASSWORD"]
URL = f"postgresql://{USER}:{quote(PASSWORD)}@{HOST}:{PORT}/climscore"


def psql():
    run = subprocess.run(["psql", "-XAtc", "SELECT 7", URL], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(run.stderr.strip())
    return int(run.stdout)


def psycopg2():
    import psycopg2

    with psycopg2.connect(URL) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 7")
        return cursor.fetchone()[0]


def psycopg3():
    import psycopg

    with psycopg.connect(URL) as connection:
        return connection.execute("SELECT 7").fetchone()[0]


def asyncpg():
    import asyncpg

    async def ask():
        connection = await asyncpg.connect(URL)
        try:
            return await connection.fetchval("SELECT 7")
        finally:
            await connection.close()

    return asyncio.run(ask())


def adbc():
    import adbc_driver_postgresql
    from adbc_driver_manager import AdbcConnection, AdbcStatement

    with adbc_driver_postgresql.connect(URL) as database, AdbcConnection(database) as connection:
        with AdbcStatement(connection) as statement:
            statement.set_sql_query("SELECT 7")
            statement.execute_query()
    return 7


def connectorx():
    import connectorx

    connectorx.read_sql(URL, "SELECT 7 AS n", return_type="arrow_stream")
    return 7


for driver in [psql, psycopg2, psycopg3, asyncpg, adbc, connectorx]:
    try:
        assert driver() == 7
        print(f"{driver.__name__}: yes")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        print(f"{driver.__name__}: {type(error).__name__}: {' '.join(str(error).split())}")
