"""psql: its describe commands, \\copy, \\gdesc, \\watch, cursors, savepoints; then every write."""

import os
import pty
import re
import select
import subprocess
import time

from transcript import MARK, WRITES, read, refused, wants

PSQL = os.environ.get("FEDGATE_PSQL", "psql")


class ServerError(Exception):
    """An error that psql printed with its SQLSTATE."""

    def __init__(self, sqlstate, message):
        super().__init__(message)
        self.sqlstate = sqlstate


def psql(script, *options, patience=60):
    """Standard output of psql over `script`; errors come with their code, as text."""
    run = subprocess.run(
        [PSQL, "-X", "-q", "-v", "VERBOSITY=verbose", "-v", "SHOW_CONTEXT=never", *options, "-f", "-"],
        input=script, capture_output=True, text=True, timeout=patience, env={**os.environ, "PGOPTIONS": "", "PAGER": "cat"})
    errors = re.findall(r"(?:ERROR|FATAL): +([0-9A-Z]{5}): (.*)", run.stderr)
    if not errors and run.returncode not in (0, 3):
        raise RuntimeError(f"psql ended with {run.returncode}: {run.stderr}")
    return run.stdout, errors


def output(script, *options):
    """What psql printed, then the errors."""
    out, errors = psql(script, *options)
    return {"out": out.splitlines(), "errors": errors}


def must_fail(script):
    out, errors = psql(script)
    if errors:
        raise ServerError(*errors[0])
    return out


DESCRIBE = [
    r"\d", r"\d+", r"\dt", r"\dt+ survey.*", r"\dt *.*", r"\dv", r"\dv+ survey.*", r"\dm survey.*", r"\dm+ survey.*", r"\di survey.*",
    r"\di+ survey.*", r"\ds survey.*", r"\dE survey.*", r"\df survey.*", r"\df+ survey.*", r"\dfa survey.*", r"\dfp survey.*",
    r"\dft survey.*", r"\df pg_catalog.lower text", r"\dn", r"\dn+", r"\du", r"\du+", r"\dg", r"\l", r"\l climscore", r"\dT", r"\dT+ survey.*",
    r"\dD", r"\dD+ survey.*", r"\dx", r"\dx+", r"\dp survey.*", r"\z survey.visit", r"\db", r"\dRp", r"\dRp+", r"\dRs", r"\da survey.*",
    r"\dA", r"\dAc btree", r"\dAf gin", r"\dAo hash", r"\dAp brin", r"\dC", r"\dc", r"\dO survey.*", r"\do survey.*", r"\dF survey.*",
    r"\dF+ survey.*", r"\dFd", r"\dFp", r"\dFt", r"\des", r"\des+", r"\det survey.*", r"\det+ survey.*", r"\dew", r"\dew+", r"\deu",
    r"\dL", r"\dL+", r"\dl", r"\lo_list", r"\dd survey.*", r"\ddp", r"\dy", r"\dP survey.*", r"\dPt+ survey.*", r"\dPi survey.*",
    r"\dX survey.*", r"\drds survey_reader", r"\dconfig work_mem", r"\dconfig+ server_version",
    r"\d+ survey.building", r"\d+ survey.district", r"\d+ survey.visit", r"\d+ survey.visit_2024", r"\d+ survey.tall", r"\d+ survey.per_district",
    r"\d+ survey.tower", r"\d+ survey.archive", r"\d+ survey.distant", r"\d survey.building_tags", r"\d survey.ticket", r"\d+ survey.place",
    r"\d survey.building_id_seq", r"\dS+ pg_catalog.pg_class", r"\d no_such_table", r"\dt survey.b*|district",
    r"\d+ survey.visit_2025", r"\d+ survey.building_tags", r"\d+ survey.visit_state", r"\d+ survey.ticket", r"\d+ survey.period", r"\d+ survey.reading",
    r"\d+ survey.scratch", r"\d+ survey.per_district_key", r"\d+ survey.*", r"\dS", r"\dtS pg_catalog.pg_d*", r"\dvS information_schema.t*",
    r"\dtvms survey.*", r"\dtvmsEiP+ survey.*", r"\dis+ survey.*", r"\dm", r"\ds", r"\ds+ survey.*", r"\di", r"\dE+ survey.*", r"\dv *.tall",
    r"\df", r"\df+", r"\dfn survey.*", r"\dfn+ survey.*", r"\dfw+ pg_catalog.rank", r"\dfS+ pg_catalog.abs int", r"\dfa+ survey.product", r"\dft+ survey.touch",
    r"\df survey.full_name survey.building", r"\df *.*_ticket", r"\daS pg_catalog.sum", r"\da+ survey.*", r"\dn+ survey", r"\dnS", r"\dnS+ pg_*",
    r"\du+ survey_reader", r"\duS", r"\dg+ survey*", r"\drds survey_reader climscore", r"\l+ climscore", r"\list", r"\dTS pg_catalog.int*",
    r"\dT+ survey.state", r"\dT survey.grade", r"\dTS+ pg_catalog.numrange", r"\dD survey.grade", r"\dDS information_schema.*", r"\dp", r"\dpS pg_catalog.pg_authid",
    r"\zS survey.district", r"\ddp survey", r"\db+", r"\dRp changes", r"\dRp+ changes", r"\dRs+", r"\dA+", r"\dA+ heap", r"\dAc+ btree int4", r"\dAf+ gin",
    r"\dAo+ hash text", r"\dAp+ brin int4_minmax_ops", r"\dC+ int4", r"\dcS+ utf8*", r"\dO+ survey.*", r"\dOS pg_catalog.C", r"\do+ survey.===", r"\doS pg_catalog.@> anyarray",
    r"\do pg_catalog.+ int4 int4", r"\dF+ pg_catalog.simple", r"\dFd+ simple", r"\dFp+", r"\dFt+ simple", r"\det+", r"\deu+", r"\dLS", r"\dL+ plpgsql", r"\dl+",
    r"\dd", r"\ddS pg_catalog.int4*", r"\dy+", r"\dP", r"\dP+", r"\dPn survey.*", r"\dPitn+ survey.*", r"\dX", r"\dX+ survey.*", r"\dx+ plpgsql", r"\dconfig *_mem", r"\dconfig+ *lock_t*",
    r"\sf survey.next_ticket()", r"\sf+ survey.touch", r"\sf survey.no_such_function", r"\sf survey.clear_scratch", r"\sv survey.no_such_view", r"\sf pg_catalog.lower(text)",
    r"\d survey.no*", r'\d survey."Label"', r'\d survey.building "x', r"\lo_list+", r"\dt+ (building|visit)", r"\d survey.visi?", r"\dt survey.b*|d*t",
    r"\sf survey.full_name", r"\sf+ survey.store(text)", r"\sv survey.tall", r"\sv+ survey.tall", r"\encoding",
]

READS = {
    "aligned query": "SELECT d.code, count(*) FROM survey.building b JOIN survey.district d ON d.id = b.district_id GROUP BY 1 ORDER BY 1;",
    "expanded": r"\x on" + "\nSELECT * FROM survey.building WHERE id = 7;",
    "several statements in a line": r"SELECT 1 AS a\; SELECT 2 AS b\; SELECT 3 AS c;",
    "gdesc": r"SELECT id, \"Label\", located, state FROM survey.building LEFT JOIN survey.visit ON building_id = id \gdesc".replace('\\"', '"'),
    "gset": "SELECT count(*) AS n FROM survey.building \\gset\n\\echo n is :n",
    "gexec": "SELECT format('SELECT count(*) AS %I FROM survey.%I', t, t) FROM unnest(ARRAY['district', 'building']) t \\gexec",
    "crosstabview": "SELECT state, held < '2025-01-01' AS early, count(*) FROM survey.visit GROUP BY 1, 2 ORDER BY 1, 2 \\crosstabview",
    "fetch count": "\\set FETCH_COUNT 100\nSELECT id, value FROM survey.reading WHERE id <= 1050 ORDER BY id;",
    "fetch count in a block": "\\set FETCH_COUNT 10\nBEGIN;\nSELECT id FROM survey.district ORDER BY id;\nCOMMIT;",
    "fetch count, error": "\\set FETCH_COUNT 10\nSELECT 1 / (id - 30) FROM survey.building ORDER BY id;",
    "cursor by hand": "BEGIN;\nDECLARE c SCROLL CURSOR FOR SELECT id FROM survey.building ORDER BY id;\nFETCH 3 FROM c;\nMOVE FORWARD 5 IN c;\n"
                      "FETCH BACKWARD 2 FROM c;\nFETCH LAST FROM c;\nCLOSE c;\nCOMMIT;",
    "cursor with hold": "DECLARE h CURSOR WITH HOLD FOR SELECT id FROM survey.district ORDER BY id;\nFETCH 2 FROM h;\nCLOSE h;",
    "prepare and execute": "PREPARE p(int) AS SELECT id, \"Label\" FROM survey.building WHERE id = $1;\nEXECUTE p(3);\nEXECUTE p(4);\n"
                           "SELECT name, parameter_types FROM pg_prepared_statements;\nDEALLOCATE p;\nEXECUTE p(5);",
    "on error rollback": "\\set ON_ERROR_ROLLBACK on\nBEGIN;\nSELECT 1 AS before;\nSELECT 1 / 0;\nSELECT 2 AS after;\nCOMMIT;",
    "savepoints": "BEGIN;\nSAVEPOINT a;\nSELECT no_such_column;\nSELECT 1;\nROLLBACK TO SAVEPOINT a;\nSELECT 2 AS ok;\nRELEASE a;\nEND;",
    "failed block": "BEGIN;\nSELECT 1 / 0;\nSELECT 1;\nCOMMIT;\nSELECT 'after' AS after;",
    "transaction modes": "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\nSHOW transaction_isolation;\nSHOW transaction_read_only;\nCOMMIT;\n"
                         "START TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE;\nSELECT 1;\nROLLBACK;",
    "explain": "EXPLAIN (COSTS OFF) SELECT * FROM survey.building WHERE id = 1;\nEXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) SELECT count(*) FROM survey.district;",
    "copy to stdout": "COPY (SELECT id, code, name FROM survey.district ORDER BY id) TO STDOUT WITH (FORMAT csv, HEADER);\nCOPY survey.district (id, code) TO STDOUT;",
    "settings": "SET search_path = survey;\nSELECT count(*) FROM district;\nSHOW search_path;\nRESET search_path;\nSET statement_timeout = '30s';\nSHOW statement_timeout;\n"
                "SET TIME ZONE 'Europe/Zurich';\nSELECT timestamptz '2024-01-01 00:00:00+00';",
    "statement timeout": "SET statement_timeout = 100;\nSELECT count(*) FROM survey.reading a, survey.reading b WHERE a.value + b.value = 3;\nSELECT 'still here' AS s;",
    "client encoding": "\\encoding",
    "table and values": "TABLE survey.per_district ORDER BY 1 LIMIT 2;\nVALUES (1, 'a'), (2, 'ü');",
    "notice": "SELECT 1 WHERE false;\nROLLBACK;",
    "large object": "SELECT convert_from(lo_get(54321), 'UTF8');",
    "empty": ";\n;",
}


def copy_to(target):
    name = os.path.join(os.environ.get("FEDGATE_TEMP", "/tmp"), f"copied-{os.getpid()}")
    try:
        out = output(f"\\copy (SELECT * FROM survey.building ORDER BY id) to '{name}' with (format csv, header)" if target == "query"
                     else f"\\copy survey.district to '{name}'")
        with open(name, encoding="utf-8") as copied:
            return [out, copied.read().splitlines()]
    finally:
        if os.path.exists(name):
            os.unlink(name)


def watch():
    """\\watch, which psql before 16 ends only at an error."""
    version = int(re.search(r"(\d+)", subprocess.check_output([PSQL, "--version"], text=True)).group(1))
    if version >= 16:
        return output("SELECT 'seen' AS watched \\watch c=2 i=0.05")["out"].count(" seen")
    out, errors = psql("SELECT clock_timestamp() + interval '400 ms' AS until \\gset\n"
                       "SELECT CASE WHEN clock_timestamp() < :'until'::timestamptz THEN 1 ELSE 1 / (count(*) - 1) END AS watched FROM (VALUES (1)) v \\watch 0.1")
    return [sorted({line.strip() for line in out.splitlines() if line.strip() == "1"}), errors]


# What is typed before the tab key.
TYPED = [
    "SELECT * FROM sur", "SELECT * FROM survey.bu", "SELECT * FROM survey.building WHERE Lab", "SELECT * FROM survey.building WHERE district_", "TABLE survey.vi",
    "SELECT survey.fu", "\\d survey.ta", "\\df survey.st", "\\dT survey.pl", "\\dn sur", "\\du survey_", "\\sf survey.ne", "\\sv survey.t", "\\dRp ch", "\\dX survey.b",
    "\\dF survey.pl", "\\dO survey.by", "\\dew now", "\\des fa", "\\c clim", "\\dx plp", "\\dL plp", "\\encoding UTF", "\\l clim", "SET search_pa", "SET timezone TO Europe/Zu",
    "SET default_tr", "SHOW work_m", "RESET statement_t", "SELECT * FROM pg_catalog.pg_am", "COPY survey.dis", "DECLARE c CURSOR FOR SELECT 1 FROM survey.rea",
    "DROP TABLE survey.ar", "ALTER TABLE survey.dist", "ALTER TABLE survey.district ALTER COLUMN co", "ALTER TABLE survey.building DROP CONSTRAINT label",
    "DROP INDEX survey.visit_", "DROP FUNCTION survey.fu", "DROP TYPE survey.sta", "DROP TRIGGER building_t", "DROP TRIGGER building_touch ON ", "DROP POLICY rec", "DROP POLICY recent ON ",
    "DROP ROLE survey_", "GRANT SELECT ON survey.bui", "GRANT survey_", "COMMENT ON CONSTRAINT label", "REFRESH MATERIALIZED VIEW survey.pe", "INSERT INTO survey.scr",
    "UPDATE survey.bui", "UPDATE survey.building SET heig", "DELETE FROM survey.scr", "LOCK TABLE survey.arch", "VACUUM survey.sc", "ANALYZE survey.bu", "REINDEX INDEX survey.visit",
    "CLUSTER survey.bu", "NOTIFY x", "EXECUTE p", "DEALLOCATE p", "FETCH ALL FROM c", "CREATE INDEX i ON survey.bu", "CREATE TRIGGER t BEFORE INSERT ON survey.d",
    "ALTER PUBLICATION ch", "ALTER SEQUENCE survey.ti", "ALTER TYPE survey.sta", "ALTER TYPE survey.state RENAME VALUE ", "ALTER EXTENSION plp", "ALTER DOMAIN survey.gr", "ALTER SERVER fa",
    "EXPLAIN SELECT * FROM survey.tal", "SECURITY LABEL ON TABLE survey.d", "IMPORT FOREIGN SCHEMA x FROM SERVER fa", "ALTER DEFAULT PRIVILEGES IN SCHEMA sur",
]


def completed():
    """A psql at a terminal: what it makes of each text at the tab key, as its own history has it."""
    rules = os.path.join(os.environ.get("FEDGATE_TEMP", "/tmp"), f"inputrc-{os.getpid()}")
    with open(rules, "w", encoding="utf-8") as out:
        # Alt-# then makes a comment of the line and enters it.
        out.write("set comment-begin --\n")
    master, slave = pty.openpty()
    environment = {**os.environ, "PGOPTIONS": "", "TERM": "dumb", "INPUTRC": rules, "PSQL_HISTORY": os.devnull, "PAGER": "cat"}
    shell = subprocess.Popen([PSQL, "-X", "-q", "-v", "PROMPT1=", "-v", "PROMPT2="], stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True)
    os.close(slave)
    seen = b""

    def until(number):
        """What came up to psql's answer; the number is typed in two parts, so that no echo is taken for it."""
        nonlocal seen
        end = f"completed {number}\r\n".encode()
        deadline = time.monotonic() + 30
        while end not in seen:
            if not select.select([master], [], [], max(0, deadline - time.monotonic()))[0]:
                raise RuntimeError(f"psql does not go on: {seen[-500:]!r}")
            seen += os.read(master, 65536)
        answer, seen = seen.split(end, 1)
        return answer

    try:
        os.write(master, b"\\echo 'completed' 'begun'\n")
        until("begun")
        for number, text in enumerate(TYPED):
            os.write(master, text.encode() + b"\t\x1b#" + f"\\echo 'completed' '{number}'\n".encode())
            until(number)
        os.write(master, b"\\s\n\\echo 'completed' 'history'\n")
        history = until("history").decode().replace("\r", "")
        return re.findall(r"^--(.*)$", history, re.MULTILINE)
    finally:
        os.close(master)
        shell.wait(30)
        os.unlink(rules)


def reads():
    read("tab completion", completed)
    for command in DESCRIBE:
        read(command, lambda c=command: output(c + "\n"))
    for name, script in READS.items():
        read(name, lambda s=script: output(s + "\n"))
    read("watch", watch)
    read(r"\copy query", lambda: copy_to("query"))
    read(r"\copy table", lambda: copy_to("table"))
    read("single transaction", lambda: output("SELECT 1;\nSELECT 2;\n", "-1"))
    read("on error stop", lambda: output("SELECT 1;\nSELECT 1/0;\nSELECT 2;\n", "-v", "ON_ERROR_STOP=1"))
    read("command string", lambda: subprocess.check_output([PSQL, "-XqAt", "-c", "SELECT 1; SELECT 2"], text=True))
    read("list databases", lambda: subprocess.check_output([PSQL, "-XqAt", "-l", "-d", os.environ["PGDATABASE"]], text=True).splitlines()[:1])


def writes():
    for name, sql, want, guarded in WRITES:
        refused(name, want, lambda s=sql: must_fail(s + ";\n"), guarded)
        if not guarded:
            read(f"block after {name}", lambda s=sql: output(f"BEGIN;\nSELECT 1 AS one;\n{s};\nSELECT 2;\nROLLBACK;\nSELECT 3 AS three;\n"))
    sql = WRITES[0][1]
    read("refused, rolled back to a savepoint",
         lambda: output(f"BEGIN;\nSAVEPOINT a;\n{sql};\nSELECT 1;\nROLLBACK TO a;\nSELECT 2 AS two;\nCOMMIT;\nSELECT 3 AS three;\n"))
    read("refused with on error rollback",
         lambda: output(f"\\set ON_ERROR_ROLLBACK on\nBEGIN;\n{sql};\nSELECT 2 AS two;\nCOMMIT;\n"))
    read("commit of a failed block", lambda: output(f"BEGIN;\n{sql};\nCOMMIT;\nSELECT 3 AS three;\n"))
    read("refused, then a chain", lambda: output(f"BEGIN;\n{sql};\nROLLBACK AND CHAIN;\nSELECT 4 AS four;\nCOMMIT;\n"))
    read("several statements, the second a write", lambda: output(f"SELECT 1 AS one\\; {sql}\\; SELECT 2;\nSELECT 3 AS three;\n"))
    read("several statements in a block", lambda: output(f"BEGIN\\; SELECT 1 AS one\\; {sql}\\; COMMIT;\nSELECT 3 AS three;\nROLLBACK;\n"))
    refused("copy from stdin", "25006", lambda: must_fail(f"COPY survey.scratch FROM STDIN;\n1\t{MARK}\n\\.\n"))
    refused(r"\copy from", "25006", lambda: must_fail(f"\\copy survey.scratch from stdin\n1\t{MARK}\n\\.\n"))
    refused("gexec of a write", "25006", lambda: must_fail(f"SELECT $x$INSERT INTO survey.scratch VALUES (1, 'fedgate_trace' || '_marker')$x$ \\gexec\n"))
    refused("prepare of a write", "25006", lambda: must_fail(f"PREPARE w AS {sql};\nEXECUTE w;\n"))
    refused("fetch count with a write", "25006",
            lambda: must_fail(f"\\set FETCH_COUNT 10\nWITH w AS (INSERT INTO survey.scratch VALUES (1, '{MARK}') RETURNING id) SELECT * FROM w;\n"))
    refused(r"\lo_import", "42501", lambda: must_fail(f"\\lo_import {os.path.abspath(__file__)}\n"), guarded=True)
    refused(r"\lo_unlink", "42501", lambda: must_fail("\\lo_unlink 54321\n"), guarded=True)
    refused(r"\password", "25006", lambda: must_fail(f"ALTER ROLE survey_reader PASSWORD 'SCRAM-SHA-256$4096:{MARK}'\n;"))


if wants("reads"):
    reads()
if wants("writes"):
    writes()
