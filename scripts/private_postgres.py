"""A private PostgreSQL for scripts: own folder, loopback, a port the kernel picked.

Invariant: nothing is left behind, neither a process nor a folder, however the caller ends.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time


class Missing(SystemExit):
    """A part that has to be installed first; the text says which."""


def program(name):
    """The path of one of PostgreSQL's own programs."""
    for folder in _folders():
        path = os.path.join(folder, name)
        if os.access(path, os.X_OK):
            return path
    raise Missing(f"{name} was not found: install PostgreSQL's server and client, or put them on PATH")


def provide():
    """Lets scripts/setup-postgres find the server's programs, or get them."""
    script = os.path.join(os.path.dirname(os.path.abspath(__file__)), "setup-postgres")
    run = subprocess.run([script], stdout=subprocess.PIPE, text=True)
    if run.returncode:
        raise Missing(run.returncode)
    os.environ["FEDGATE_PG_BIN"] = run.stdout.strip().removeprefix("FEDGATE_PG_BIN=")


def _folders():
    if os.environ.get("FEDGATE_PG_BIN"):
        yield os.environ["FEDGATE_PG_BIN"]
    # Debian keeps the server's programs off PATH; pg_config and the real psql lie beside them.
    root = "/usr/lib/postgresql"
    if os.path.isdir(root):
        for version in sorted(os.listdir(root), key=lambda v: [int(p) for p in v.split(".") if p.isdigit()], reverse=True):
            yield os.path.join(root, version, "bin")
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        yield subprocess.check_output(["pg_config", "--bindir"], text=True, stderr=subprocess.DEVNULL).strip()
    yield from os.environ.get("PATH", "").split(os.pathsep)


def free_port():
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def unprivileged():
    """Who runs the server, and others that refuse to run as root; None when we are not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise Missing("running as root, and there is no user postgres or nobody to run the server as")


def stop(process, how=signal.SIGTERM, patience=10.0):
    """Ends a process that we started, by its own id."""
    if process.poll() is not None:
        return
    process.send_signal(how)
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def until(ready, patience, what):
    """Polls `ready` until it is true."""
    end = time.monotonic() + patience
    while not ready():
        if time.monotonic() > end:
            raise SystemExit(f"{what} did not come up within {patience:.0f} s")
        time.sleep(0.02)


def answers(port):
    """Whether somebody listens on the port."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class PrivatePostgres:
    """`with PrivatePostgres() as pg`: `pg.port`, superuser `postgres`, authentication `trust`."""

    user = "postgres"

    def __init__(self, settings=(), hba=()):
        self.settings = dict(settings)
        self.hba = list(hba)
        self.folder = None
        self.process = None
        self.port = None

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if self.process:
            if self.process.poll() is None:
                # It may have been frozen.
                self.signal(signal.SIGCONT)
            stop(self.process, signal.SIGINT)
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self):
        owner = unprivileged()
        self.folder = tempfile.mkdtemp(prefix="fedgate-pg-")
        become = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}
        if owner:
            os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        data = os.path.join(self.folder, "data")
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "HOME": self.folder}
        common = {"cwd": self.folder, "env": environment, **become}
        made = subprocess.run(
            [program("initdb"), "-D", data, "-U", self.user, "-A", "trust", "-E", "UTF8", "--no-sync"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **common)
        if made.returncode:
            raise SystemExit(f"initdb failed:\n{made.stdout}")
        with open(os.path.join(data, "pg_hba.conf"), "r+", encoding="utf-8") as file:
            usual = file.read()
            file.seek(0)
            file.write("".join(line + "\n" for line in self.hba) + usual)
        self.port = free_port()
        settings = {"fsync": "off", "listen_addresses": "127.0.0.1", "port": self.port,
                    "unix_socket_directories": "", "autovacuum": "off", **self.settings}
        self._command = ([program("postgres"), "-D", data, *(part for k, v in settings.items() for part in ("-c", f"{k}={v}"))], common)
        self.launch()

    def launch(self):
        """Starts the server's process, the first time or after `crash`, and waits until it takes clients."""
        command, common = self._command
        with open(os.path.join(self.folder, "log"), "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, **common)
        until(self._ready, 60, "the private PostgreSQL")

    def family(self):
        """Process ids of the server and of its children, which lead sessions of their own."""
        found = [self.process.pid]
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                with open(f"/proc/{int(entry)}/stat", encoding="utf-8") as stat:
                    if int(stat.read().rpartition(")")[2].split()[1]) == self.process.pid:
                        found.append(int(entry))
        return found

    def signal(self, how):
        """Sends a signal to the server and all its children; the server first, so that it starts no more of them."""
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)

    def crash(self):
        """kill -9 for all of it; `launch` brings it back on the same port with the same data."""
        self.signal(signal.SIGSTOP)
        self.signal(signal.SIGKILL)
        self.process.wait()

    def _ready(self):
        if self.process.poll() is not None:
            raise SystemExit("the private PostgreSQL ended:\n" + self.log())
        return subprocess.run([program("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]).returncode == 0

    def log(self):
        """All that the server has logged."""
        with open(os.path.join(self.folder, "log"), encoding="utf-8", errors="replace") as log:
            return log.read()

    def environment(self, database="postgres"):
        """libpq's variables for a client of this server."""
        return {"PGHOST": "127.0.0.1", "PGPORT": str(self.port), "PGUSER": self.user, "PGDATABASE": database,
                "PGPASSWORD": ""}

    def sql(self, *texts, database="postgres"):
        """Runs statements or, after `@`, files; gives what psql prints, unaligned."""
        parts = []
        for text in texts:
            parts += ["-f", text[1:]] if text.startswith("@") else ["-c", text]
        run = subprocess.run([program("psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", *parts],
                             env={**os.environ, **self.environment(database)}, text=True, capture_output=True)
        if run.returncode:
            raise SystemExit(f"psql failed: {run.stderr}")
        return run.stdout
