"""connectorx: its four protocols, partitioned queries, types, several queries at once; then every write, which connectorx wraps in
reads of its own."""

import os
from urllib.parse import quote

import connectorx

from transcript import WRITES, read, refused, wants

URL = "postgresql://{}:{}@{}:{}/{}".format(*(quote(os.environ[name], safe="") for name in ("PGUSER", "PGPASSWORD", "PGHOST", "PGPORT", "PGDATABASE")))
PROTOCOLS = ["binary", "csv", "cursor", "simple"]


def rows(query, **options):
    """The columns of an Arrow table, its rows in an order of their own."""
    table = connectorx.read_sql(URL, query, return_type="arrow", **options)
    found = sorted(zip(*(column.to_pylist() for column in table.columns)), key=repr)
    return [[str(field.type) for field in table.schema], table.column_names, [[repr(value) for value in row] for row in found]]


def state(error):
    """connectorx hands on what the Rust driver prints and no code: the message says which refusal it was."""
    text = str(error)
    for sqlstate, part in (("25006", "in a read-only transaction"), ("25006", "read-write mode"), ("42501", "permission denied")):
        if part in text:
            return sqlstate
    return type(error).__name__


class Refused(Exception):
    def __init__(self, error):
        # `db error: ERROR: …` from the driver itself; pools put their own words before it.
        super().__init__(str(error).split("ERROR: ")[-1].split("\n")[0])
        self.sqlstate = state(error)


def attempt(query, **options):
    try:
        return rows(query, **options)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # what it has not been taught it panics about, which is no Exception
        raise Refused(error) from None


def reads():
    for protocol in PROTOCOLS:
        read(f"{protocol}: integers and text", lambda: attempt("SELECT id, code, name FROM survey.district", protocol=protocol))
        read(f"{protocol}: types", lambda: attempt(
            "SELECT id, \"Label\", built, height::float8, height > 50 AS tall, uid, facts, seen, raw FROM survey.building WHERE id < 8", protocol=protocol))
        read(f"{protocol}: nulls", lambda: attempt("SELECT NULL::int AS n, NULL::text AS t, parent FROM survey.district", protocol=protocol))
        read(f"{protocol}: nothing found", lambda: attempt("SELECT id FROM survey.district WHERE id < 0", protocol=protocol))
        if protocol in ("cursor", "simple"):  # the others put a bracket behind it
            read(f"{protocol}: with a comment at its end", lambda: attempt("SELECT id FROM survey.district -- all", protocol=protocol))
        read(f"{protocol}: an aggregate", lambda: attempt("SELECT district_id, count(*) AS n FROM survey.building GROUP BY district_id", protocol=protocol))
        read(f"{protocol}: a WITH", lambda: attempt("WITH d AS (SELECT id FROM survey.district) SELECT count(*) AS n FROM d", protocol=protocol))
        read(f"{protocol}: many rows", lambda: len(attempt("SELECT id, value FROM survey.reading WHERE id <= 9000", protocol=protocol)[2]))
        read(f"{protocol}: an error", lambda: attempt("SELECT no_such_column FROM survey.district", protocol=protocol))
    read("partitions", lambda: attempt("SELECT id, \"Label\" FROM survey.building", partition_on="id", partition_num=4))
    read("partitions of a range", lambda: attempt("SELECT id, value FROM survey.reading", partition_on="id", partition_num=3, partition_range=(1, 600)))
    read("several queries", lambda: attempt(["SELECT id FROM survey.district WHERE id < 5", "SELECT id FROM survey.district WHERE id >= 5"]))
    read("arrays", lambda: attempt("SELECT tags FROM survey.building WHERE id < 4"))
    read("an enum", lambda: attempt("SELECT state::text FROM survey.visit WHERE building_id < 4"))
    read("an enum as it is", lambda: attempt("SELECT DISTINCT state FROM survey.visit"))
    read("a composite and a domain", lambda: attempt("SELECT located, points FROM survey.building WHERE id < 4"))
    read("catalogue", lambda: attempt("SELECT table_name::text FROM information_schema.tables WHERE table_schema = 'survey'"))


def writes():
    # It prepares a text and then wraps it in reads of its own, so that a server alone may answer a write by a syntax error.
    for protocol in PROTOCOLS:
        for name, sql, _, guarded in WRITES:
            if not guarded or sql.startswith("SELECT"):
                refused(f"{protocol}: {name}", None, lambda: attempt(sql, protocol=protocol), guarded=True)
    read("after all that", lambda: rows("SELECT 1 AS one"))


if wants("reads"):
    reads()
if wants("writes"):
    writes()
