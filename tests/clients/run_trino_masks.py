"""Trino under OPA with the bundle of FEDGATE_BUNDLE: each mask on each type of column, row filters, and raw SQL.

FEDGATE_USERS are the users to ask as, separated by commas. Whoever runs this says what the answers ought to be.
"""

import os
import socket
import subprocess
import time
import urllib.request

from transcript import emit
from trino_server import QueryFailed, TrinoServer, TrinoSession

# Types that PostgreSQL's connector does not bring are tried as such: a mask is NULL of the type there.
TYPES = [
    "tinyint", "smallint", "integer", "bigint", "real", "double", "boolean", "date", "decimal(10,2)", "decimal(38,0)", "time(6)", "time(3) with time zone",
    "timestamp(0)", "timestamp(12)", "timestamp(6) with time zone", "uuid", "json", "varbinary", "array(varchar(10))", "array(array(integer))",
    "map(varchar, bigint)", "row(a bigint, b varchar)", "ipaddress", "HyperLogLog", "interval day to second", "interval year to month", "Geometry", "SphericalGeography",
]


class Opa:
    """OPA on a port of loopback, gone when the block ends."""

    def __enter__(self):
        with socket.socket() as reserved:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind(("127.0.0.1", 0))
            address = "127.0.0.1:%d" % reserved.getsockname()[1]
        self.url = "http://" + address
        self.process = subprocess.Popen(
            [os.environ["FEDGATE_OPA"], "run", "--server", "--disable-telemetry", "--log-level", os.environ.get("FEDGATE_OPA_LOG", "error"), "--addr", address, "--bundle", os.environ["FEDGATE_BUNDLE"]],
            stdin=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(self.url + "/health?bundles", timeout=2):
                    return self
            except OSError:
                if time.monotonic() > end or self.process.poll() is not None:
                    self.__exit__()
                    raise SystemExit("OPA did not start") from None
                time.sleep(0.05)

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def quoted(name):
    return '"' + name.replace('"', '""') + '"'


def main():
    environment = {
        "CLIMSCORE_RO_HOST": os.environ["PGHOST"], "CLIMSCORE_RO_PORT": os.environ["PGPORT"], "CLIMSCORE_RO_DB": os.environ["PGDATABASE"],
        "CLIMSCORE_RO_USER": os.environ["PGUSER"], "CLIMSCORE_RO_PASS": os.environ["PGPASSWORD"],
    }
    with Opa() as opa:
        control = f"""access-control.name=opa
opa.policy.uri={opa.url}/v1/data/trino/allow
opa.policy.batched-uri={opa.url}/v1/data/trino/batch
opa.policy.row-filters-uri={opa.url}/v1/data/trino/rowFilters
opa.policy.batch-column-masking-uri={opa.url}/v1/data/trino/batchColumnMasks
"""
        with TrinoServer(environment, files={"access-control.properties": control}, catalog="postgresql.array-mapping=AS_ARRAY\n") as trino:
            admin = TrinoSession(trino, "admin")
            columns = [row[0] for row in admin.rows("SHOW COLUMNS FROM climscore.public.kinds")]
            emit(step="columns", value=columns)
            for user in os.environ["FEDGATE_USERS"].split(","):
                session = TrinoSession(trino, user)
                try:
                    rows = session.rows(f"SELECT {', '.join(map(quoted, columns))} FROM climscore.public.kinds ORDER BY id")
                    for at, column in enumerate(columns):
                        emit(step="masked", user=user, column=column, value=[row[at] for row in rows])
                except QueryFailed:
                    # One by one, to see which it is.
                    for column in columns:
                        said = {"step": "masked", "user": user, "column": column}
                        try:
                            emit(**said, value=[row[0] for row in session.rows(f"SELECT {quoted(column)} FROM climscore.public.kinds ORDER BY id")])
                        except QueryFailed as error:
                            emit(**said, error=str(error))
            for name in TYPES:
                try:
                    emit(step="type", type=name, value=admin.rows(f"SELECT CAST(NULL AS {name})"))
                except QueryFailed as error:
                    emit(step="type", type=name, error=str(error))
            for user in ["admin", "m_sha256", "stranger"]:
                for what, sql in [
                    ("raw", "SELECT count(*) FROM TABLE(climscore.system.query(query => 'SELECT 1 AS x'))"),
                    ("tables", "SELECT table_name FROM climscore.information_schema.tables WHERE table_schema = 'public' ORDER BY 1"),
                    ("rows", "SELECT count(*) FROM climscore.public.filtered"),
                ]:
                    try:
                        emit(step=what, user=user, value=TrinoSession(trino, user).rows(sql))
                    except QueryFailed as error:
                        emit(step=what, user=user, error=error.name, text=str(error))


main()
