"""Processes in front of PostgreSQL, what they use, and the machine that they run on.

Invariant: a process that is started here ends with the stack that it was given.
"""

import contextlib
import os
import platform
import re
import subprocess
import sys
import time

from private_postgres import answers, free_port, program, stop, until

HERE = os.path.dirname(os.path.abspath(__file__))
TREE = os.path.dirname(os.path.dirname(HERE))
USER, PASSWORD, DATABASE = "bench", "a password for the bench", "bench"


class Proxy:
    """A process in front of PostgreSQL, with the processes it starts."""

    def __init__(self, name, port, process=None):
        self.name, self.port, self.process = name, port, process

    def _members(self):
        """Process ids of the process's group."""
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with contextlib.suppress(OSError):
                    if os.getpgid(int(entry)) == self.process.pid:
                        yield entry

    def memory(self):
        """KiB that the group holds, shared pages counted in part; None for the direct path."""
        if self.process is None:
            return None
        total = 0
        for entry in self._members():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/smaps_rollup", encoding="utf-8") as rollup:
                total += int(re.search(r"^Pss:\s+(\d+)", rollup.read(), re.M).group(1))
        return total

    def cpu(self):
        """Seconds of CPU that the process and its group have used so far; None for the direct path."""
        if self.process is None:
            return None
        ticks = 0
        for entry in self._members():
            with contextlib.suppress(OSError), open(f"/proc/{entry}/stat", encoding="utf-8") as stat:
                # Its own time, and that of ended children.
                ticks += sum(int(f) for f in stat.read().rpartition(")")[2].split()[11:15])
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident(self):
        """KiB that the process itself has resident."""
        with open(f"/proc/{self.process.pid}/status", encoding="utf-8") as status:
            return int(re.search(r"^VmRSS:\s+(\d+)", status.read(), re.M).group(1))

    def descriptors(self):
        """How many files and sockets the process itself has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def build():
    """A release build of this tree; its path."""
    print("building the gateway (release)", file=sys.stderr)
    subprocess.run(["cargo", "build", "--release", "--quiet", "--bin", "fedgate"], cwd=TREE, check=True)
    target = os.environ.get("CARGO_TARGET_DIR", os.path.join(TREE, "target"))
    return os.path.join(target, "release", "fedgate")


def launch(stack, folder, name, command, port, **how):
    """Starts a proxy in a process group of its own; it ends with the stack."""
    log = stack.enter_context(open(os.path.join(folder, f"{name}.log"), "wb"))
    process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, **how)
    stack.callback(stop, process)

    def ready():
        if process.poll() is not None:
            with open(os.path.join(folder, f"{name}.log"), encoding="utf-8", errors="replace") as text:
                raise SystemExit(f"{name} ended at once:\n{text.read()[-3000:]}")
        return answers(port)

    until(ready, 30, name)
    return Proxy(name, port, process)


def fedgate(stack, folder, name, binary, more, pg, auth, sections=""):
    """A gateway in front of `pg`, with lines for [gateway] and further sections."""
    port = free_port()
    place = os.path.join(folder, name)
    os.mkdir(place)

    def write(file, text):
        path = os.path.join(place, file)
        with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w", encoding="utf-8") as out:
            out.write(text)
        return path

    method = 'method = "trust"'
    if auth == "scram":
        verifier = pg.sql(f"SELECT rolpassword FROM pg_authid WHERE rolname = '{USER}'").strip()
        users = write("users.txt", f'"{USER}" "{verifier}"\n')
        method = f'method = "scram"\nusers_file = "{users}"'
    secret = write("password", PASSWORD)
    config = write("fedgate.toml", f"""\
[gateway]
listen = ["127.0.0.1:{port}"]
{more}
[gateway.auth]
{method}

[[source]]
name = "{DATABASE}"
hosts = ["127.0.0.1:{pg.port}"]
database = "{DATABASE}"
user = "{USER}"
password_file = "{secret}"
tls = "disable"
access = [{{ users = ["{USER}"], cidr = ["127.0.0.0/8"] }}]
{sections}""")
    return launch(stack, folder, name, [binary, "run", "--config", config], port)


def environment(port, user=USER, password=PASSWORD, **more):
    """libpq's variables for a client of one path; no certificate and no TLS unless `more` says so."""
    return {**os.environ, "PGHOST": "127.0.0.1", "PGPORT": str(port), "PGUSER": user, "PGPASSWORD": password, "PGDATABASE": DATABASE,
            "PGSSLMODE": "disable", "PGOPTIONS": "", "PGCONNECT_TIMEOUT": "20", **more}


def cpu_model():
    """What the machine calls its processor."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as info:
        found = re.search(r"model name\s*:\s*(.*)", info.read())
        if found:
            return found.group(1)
    return platform.machine()


def machine():
    """Cores, processor, kernel and PostgreSQL in a line."""
    version = subprocess.check_output([program("postgres"), "--version"], text=True).strip()
    return f"{os.cpu_count()} cores ({cpu_model()}), {platform.system()} {platform.release()}, {version}"


def busy_cores(seconds=1.0):
    """How many cores were busy, over a short look, before anything of ours runs."""
    def look():
        with open("/proc/stat", encoding="utf-8") as stat:
            fields = [int(f) for f in stat.readline().split()[1:9]]
        return sum(fields) - fields[3] - fields[4]

    before = look()
    time.sleep(seconds)
    return (look() - before) / os.sysconf("SC_CLK_TCK") / seconds
