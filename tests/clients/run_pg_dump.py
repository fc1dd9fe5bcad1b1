"""pg_dump, whole database, plain, custom and in parallel; schema only, one table; pg_dumpall's globals are no part of it."""

import hashlib
import os
import re
import subprocess
import tempfile

from transcript import read, wants

PG_DUMP = os.environ.get("FEDGATE_PG_DUMP", "pg_dump")
PG_RESTORE = os.environ.get("FEDGATE_PG_RESTORE", "pg_restore")


def run(*command):
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PGOPTIONS": ""}, timeout=120)
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[:2000])
    return done.stdout


def stable(dump):
    """A dump without its random \\restrict key and its time."""
    lines = dump.decode("utf-8", "surrogateescape").splitlines()
    kept = [line for line in lines if not re.match(r"\\(un)?restrict |; Archive created at|;\s+Dump(ed)? ", line)]
    text = "\n".join(kept)
    return {"lines": len(kept), "sha256": hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest(),
            "creates": text.count("\nCREATE "), "copies": text.count("\nCOPY "), "inserts": text.count("\nINSERT ")}


def plain(*options):
    return stable(run(PG_DUMP, *options))


def archive(form, *options):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "dump")
        run(PG_DUMP, f"--format={form}", f"--file={path}", *options)
        return [stable(run(PG_RESTORE, "--file=-", path)), stable(run(PG_RESTORE, "--list", path))]


if wants("reads"):
    read("plain", lambda: plain())
    read("plain, no owner, clean, create", lambda: plain("--clean", "--if-exists", "--create", "--no-owner"))
    read("inserts", lambda: plain("--inserts", "--rows-per-insert=100", "--schema=survey"))
    read("column inserts of one table", lambda: plain("--column-inserts", "--table=survey.district"))
    read("schema only", lambda: plain("--schema-only"))
    read("data only", lambda: plain("--data-only", "--exclude-table=survey.reading"))
    read("custom", lambda: archive("c"))
    read("custom, with blobs", lambda: archive("c", "--blobs"))
    read("directory", lambda: archive("d"))
    read("directory, schema only", lambda: archive("d", "--schema-only"))
    read("tar", lambda: archive("t"))
    read("custom, one table", lambda: archive("c", "--table=survey.building", "--no-privileges"))
    read("data only, inserts", lambda: plain("--data-only", "--inserts", "--on-conflict-do-nothing", "--schema=survey"))
    read("data only, triggers off", lambda: plain("--data-only", "--disable-triggers", "--table=survey.district"))
    read("sections", lambda: [plain(f"--section={section}") for section in ("pre-data", "data", "post-data")])
    read("extension, quoted, no comments", lambda: plain("--extension=plpgsql", "--quote-all-identifiers", "--no-comments", "--strict-names", "--schema=survey"))
    read("exclusions", lambda: plain("--exclude-schema=public", "--exclude-table-data=survey.reading", "--no-tablespaces", "--no-toast-compression", "--no-publications"))
    read("partition root", lambda: plain("--load-via-partition-root", "--table=survey.visit*"))
    read("encoding and role", lambda: plain("--encoding=UTF8", "--lock-wait-timeout=5000", "--table=survey.district"))
    read("serializable deferrable", lambda: plain("--serializable-deferrable", "--schema=survey"))
    read("row security", lambda: plain("--enable-row-security", "--table=survey.visit"))
