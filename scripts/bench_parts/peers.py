"""The paths that scripts/bench-suite measures, each configured as its own documentation advises for this case.

The case is one PostgreSQL on the same machine, clients that log in with SCRAM, and read; no TLS between proxy and PostgreSQL.

Invariant: a path that is not there, or that its own program refuses, is left out with a line that says why; none is replaced
by another.
"""

import os
import re
import resource
import shutil
import subprocess

from bench_parts import wire
from bench_parts.proxies import DATABASE, HERE, PASSWORD, TREE, USER, Proxy, launch
from private_postgres import free_port, program, unprivileged

# More than any load has, for whoever has such a limit.
MOST_CLIENTS = 12_000
# Sessions at the source of a pool in transaction mode, and the most that one in session mode is asked for.
POOL, SESSIONS = 20, 1_100
FEW, CERTIFIED = "bench_few", "bench_cert"
FEW_ROUNDS = 16
SESSION_POOL = f'pool = {{ mode = "session", size = {SESSIONS}, min_idle = 2 }}'
TRANSACTION_POOL = f'pool = {{ mode = "transaction", size = {POOL}, min_idle = 2, wait = "30s" }}'


class Missing(Exception):
    """A path cannot be measured here; the text says why."""


class Ground:
    """What all paths share: the server, its users and their verifiers, certificates, a folder."""

    def __init__(self, pg, folder, programs):
        self.pg, self.folder, self.programs = pg, folder, programs
        self.verifiers = {USER: wire.verifier(PASSWORD, 4096), FEW: wire.verifier(PASSWORD, FEW_ROUNDS)}
        self._made = 0

    def fill(self, scale):
        """Roles, database and accounts."""
        self.pg.sql(*(f"CREATE ROLE {name} LOGIN PASSWORD '{verifier}'" for name, verifier in self.verifiers.items()),
                    f"CREATE ROLE {CERTIFIED} LOGIN PASSWORD '{PASSWORD}'", f"GRANT pg_read_all_data TO {USER}, {FEW}, {CERTIFIED}", f"CREATE DATABASE {DATABASE}")
        subprocess.run([program("pgbench"), "-i", "-q", "-s", str(scale)], env={**os.environ, **self.pg.environment(DATABASE)},
                       check=True, capture_output=True)
        self.pg.sql("VACUUM ANALYZE", "CHECKPOINT", database=DATABASE)

    def place(self, name, owner=None):
        """A folder of its own for each process that is started."""
        self._made += 1
        place = os.path.join(self.folder, f"{self._made}-{name.replace(' ', '-')}")
        os.mkdir(place, 0o700)
        if owner:
            os.chown(place, owner.pw_uid, owner.pw_gid)
        return place

    def certificate(self, name):
        return os.path.join(self.folder, "tls", name)

    def libpq(self, kind):
        """libpq's variables for a way to log in: scram, tls, certificate, few."""
        tls = {"PGSSLMODE": "require"}
        return {"scram": {}, "tls": tls, "few": {"user": FEW},
                "certificate": {"user": CERTIFIED, **tls, "PGSSLCERT": self.certificate("client.crt"), "PGSSLKEY": self.certificate("client.key")}}[kind]


def authority(folder):
    """A certificate authority with a server's and a client's certificate, all P-256, readable for the server's user."""
    place = os.path.join(folder, "tls")
    os.mkdir(place)

    def openssl(*arguments):
        run = subprocess.run(["openssl", *arguments], cwd=place, capture_output=True, text=True)
        if run.returncode:
            raise SystemExit(f"openssl {arguments[0]} failed: {run.stderr}")

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.crt", "-days", "3", "-subj", "/CN=bench authority")
    for name, subject, more in (("server", "localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
                                ("client", CERTIFIED, "extendedKeyUsage=clientAuth")):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={subject}")
        with open(os.path.join(place, "more"), "w", encoding="utf-8") as out:
            out.write(f"basicConstraints=CA:FALSE\n{more}\n")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "3",
                "-extfile", "more", "-out", f"{name}.crt")
    # A server key must be its reader's own: one copy for the server's user, one for ours.
    shutil.copy(os.path.join(place, "server.key"), os.path.join(place, "postgres.key"))
    owner = unprivileged()
    if owner:
        os.chown(os.path.join(place, "postgres.key"), owner.pw_uid, owner.pw_gid)
    for name in os.listdir(place):
        os.chmod(os.path.join(place, name), 0o600 if name.endswith(".key") else 0o644)
    os.chmod(place, 0o755)
    os.chmod(folder, 0o711)


def server(folder):
    """Settings and pg_hba.conf lines of a PostgreSQL for all these paths."""
    tls = {f"ssl_{what}_file": os.path.join(folder, "tls", file)
           for what, file in (("cert", "server.crt"), ("key", "postgres.key"), ("ca", "ca.crt"))}
    hba = [f"hostssl all {CERTIFIED} 127.0.0.1/32 cert", f"host all {USER},{FEW},{CERTIFIED} 127.0.0.1/32 scram-sha-256"]
    return {"max_connections": 2 * SESSIONS, "shared_buffers": "512MB", "ssl": "on", **tls}, hba


def programs():
    """The peers' programs and their libraries, found or got by scripts/setup-peers."""
    run = subprocess.run([os.path.join(os.path.dirname(HERE), "setup-peers")], stdout=subprocess.PIPE, text=True, check=True)
    return dict(line.split("=", 1) for line in run.stdout.splitlines() if "=" in line)


class Path:
    """One column: its name, version, what it cannot do, and how it is started."""

    def __init__(self, name):
        self.name, self.version, self.without, self.few_sessions = name, "", {}, False

    def prepare(self, ground):
        """Finds the program and its version, or raises `Missing`."""

    def start(self, ground, stack):
        """A process of it, ready for clients."""
        raise NotImplementedError

    def _program(self, ground, found, *ask):
        if not found:
            raise Missing("it is not installed")
        self.program = found
        libraries = ground.programs.get("FEDGATE_PEER_LIBRARIES")
        self.environment = {**os.environ, **({"LD_LIBRARY_PATH": libraries} if libraries else {})}
        try:
            run = subprocess.run([found, *ask], env=self.environment, capture_output=True, text=True)
        except OSError as error:
            raise Missing(f"it does not run: {error.strerror}") from error
        version = re.search(r"\d+\.\d[\w.+-]*", run.stdout + run.stderr)
        if run.returncode or not version:
            raise Missing(f"it does not run: {(run.stdout + run.stderr).strip()[:200]}")
        self.version = version.group()


class Direct(Path):
    def start(self, ground, stack):
        return Proxy(self.name, ground.pg.port)


class Socat(Path):
    """A process for each client; Nagle off on both sides."""

    def prepare(self, ground):
        self._program(ground, ground.programs.get("FEDGATE_SOCAT"), "-V")

    def start(self, ground, stack):
        port = free_port()
        command = [self.program, f"TCP-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,backlog=1024,nodelay", f"TCP:127.0.0.1:{ground.pg.port},nodelay"]
        return launch(stack, ground.place(self.name), self.name, command, port, env=self.environment)


class Haproxy(Path):
    """TCP mode, a thread for each core."""

    def prepare(self, ground):
        self._program(ground, ground.programs.get("FEDGATE_HAPROXY"), "-v")

    def start(self, ground, stack):
        port, place = free_port(), ground.place(self.name)
        config = os.path.join(place, "haproxy.cfg")
        with open(config, "w", encoding="utf-8") as out:
            out.write(f"""\
global
    nbthread {os.cpu_count() or 1}
    maxconn {min(4000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 - 100)}
defaults
    mode tcp
    timeout connect 10s
    timeout client 1h
    timeout server 1h
listen postgres
    bind 127.0.0.1:{port} backlog 1024
    server source 127.0.0.1:{ground.pg.port}
""")
        return launch(stack, place, self.name, [self.program, "-db", "-f", config], port, env=self.environment)


class Pgbouncer(Path):
    """SCRAM or a client certificate by its own pg_hba file, PostgreSQL's own verifiers in auth_file, one process.

    It logs in at the source as the client's user, with the key that it learnt from the client's own proof.
    """

    def __init__(self, mode):
        super().__init__(f"pgbouncer {mode}")
        self.mode = mode
        self.few_sessions = mode == "transaction"

    def prepare(self, ground):
        self._program(ground, ground.programs.get("FEDGATE_PGBOUNCER"), "--version")
        self.keeps_prepared = [int(part) for part in self.version.split(".")[:2]] >= [1, 21]
        if self.mode == "transaction" and not self.keeps_prepared:
            self.without["prepared"] = "PgBouncer before 1.21 knows no prepared statements in transaction mode"

    def start(self, ground, stack):
        # It refuses to run as root.
        owner = unprivileged()
        port, place = free_port(), ground.place(self.name, owner)

        def write(name, text):
            path = os.path.join(place, name)
            with open(path, "w", encoding="utf-8") as out:
                out.write(text)
            if owner:
                os.chown(path, owner.pw_uid, owner.pw_gid)
            os.chmod(path, 0o600)
            return path

        users = write("users.txt", "".join(f'"{name}" "{verifier}"\n' for name, verifier in ground.verifiers.items()) + f'"{CERTIFIED}" "{PASSWORD}"\n')
        hba = write("hba.conf", f"hostssl all {CERTIFIED} 127.0.0.1/32 cert\nhost all {USER},{FEW} 127.0.0.1/32 scram-sha-256\n")
        with open(ground.certificate("server.key"), encoding="utf-8") as file:
            key = write("server.key", file.read())
        config = write("pgbouncer.ini", f"""\
[databases]
{DATABASE} = host=127.0.0.1 port={ground.pg.port} dbname={DATABASE}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
listen_backlog = 1024
unix_socket_dir =
auth_type = hba
auth_hba_file = {hba}
auth_file = {users}
pool_mode = {self.mode}
max_client_conn = {MOST_CLIENTS}
default_pool_size = {POOL if self.mode == "transaction" else SESSIONS}
{"max_prepared_statements = 200" if self.keeps_prepared else ""}
ignore_startup_parameters = extra_float_digits,options
client_tls_sslmode = allow
client_tls_key_file = {key}
client_tls_cert_file = {ground.certificate("server.crt")}
client_tls_ca_file = {ground.certificate("ca.crt")}
server_tls_sslmode = disable
log_connections = 0
log_disconnections = 0
""")
        become = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []} if owner else {}
        return launch(stack, ground.place(self.name), self.name, [self.program, config], port, env=self.environment, cwd=place, **become)


class Pgcat(Path):
    """The query parser on, which is how it tells reads from writes; it knows md5 alone."""

    def __init__(self, mode, given):
        super().__init__(f"pgcat {mode}")
        self.mode, self.given = mode, given
        self.few_sessions = mode == "transaction"
        no = "PgCat lets clients in by md5 alone"
        self.without = {"tls": no, "certificate": no, "few": no, "scram": no}

    def prepare(self, ground):
        self._program(ground, self.given, "--version")

    def start(self, ground, stack):
        port, place = free_port(), ground.place(self.name)
        config = os.path.join(place, "pgcat.toml")
        with open(config, "w", encoding="utf-8") as out:
            out.write(f"""\
[general]
host = "127.0.0.1"
port = {port}
worker_threads = {os.cpu_count() or 1}
admin_username = "admin"
admin_password = "{os.urandom(12).hex()}"
[pools.{DATABASE}]
pool_mode = "{self.mode}"
default_role = "primary"
query_parser_enabled = true
primary_reads_enabled = true
prepared_statements_cache_size = 500
[pools.{DATABASE}.users.0]
username = "{USER}"
password = "{PASSWORD}"
pool_size = {POOL if self.mode == "transaction" else SESSIONS}
[pools.{DATABASE}.shards.0]
servers = [["127.0.0.1", {ground.pg.port}, "primary"]]
database = "{DATABASE}"
""")
        return launch(stack, place, self.name, [self.program, config], port, env={**self.environment, "RUST_LOG": "warn"})


class Pgdog(Path):
    """SCRAM, prepared statements of the extended protocol, as its example configuration has it."""

    def __init__(self, mode, given):
        super().__init__(f"pgdog {mode}")
        self.mode, self.given = mode, given
        self.few_sessions = mode == "transaction"
        self.without = {"tls": "not set up for PgDog", "certificate": "not set up for PgDog",
                        "few": "PgDog makes its own verifiers"}

    def prepare(self, ground):
        self._program(ground, self.given, "--version")

    def start(self, ground, stack):
        port, place = free_port(), ground.place(self.name)
        config, users = os.path.join(place, "pgdog.toml"), os.path.join(place, "users.toml")
        with open(config, "w", encoding="utf-8") as out:
            out.write(f"""\
[general]
host = "127.0.0.1"
port = {port}
workers = {2 * (os.cpu_count() or 1)}
default_pool_size = {POOL if self.mode == "transaction" else SESSIONS}
pooler_mode = "{self.mode}"
auth_type = "scram"
prepared_statements = "extended"
[[databases]]
name = "{DATABASE}"
host = "127.0.0.1"
port = {ground.pg.port}
""")
        with open(users, "w", encoding="utf-8") as out:
            out.write(f'[[users]]\nname = "{USER}"\ndatabase = "{DATABASE}"\npassword = "{PASSWORD}"\n')
        return launch(stack, place, self.name, [self.program, "--config", config, "--users", users], port, env=self.environment)


class Fedgate(Path):
    """Verifiers in users_file or a client certificate; the pool as it is given."""

    def __init__(self, mode, binary, pool):
        super().__init__(f"fedgate {mode}")
        self.mode, self.binary, self.pool = mode, binary, pool
        self.few_sessions = mode == "transaction"

    def prepare(self, ground):
        run = subprocess.run([self.binary, "--version"], capture_output=True, text=True)
        if run.returncode:
            raise Missing(f"the gateway does not run: {run.stderr[:200]}")
        self.version = run.stdout.split()[-1]
        config, _ = self._configure(ground, 0)
        run = subprocess.run([self.binary, "check", "--config", config], capture_output=True, text=True)
        if run.returncode:
            said = re.sub(r"\S*/fedgate\.toml:\d+: ", "", run.stderr or run.stdout).strip().splitlines()
            raise Missing(f"this build refuses `{self.pool}`: {said[0] if said else 'without a word'}")

    def _configure(self, ground, port):
        place = ground.place(self.name)

        def write(file, text):
            path = os.path.join(place, file)
            with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w", encoding="utf-8") as out:
                out.write(text)
            return path

        users = write("users.txt", "".join(f'"{name}" "{verifier}"\n' for name, verifier in ground.verifiers.items()))
        secret = write("password", PASSWORD)
        return write("fedgate.toml", f"""\
[gateway]
listen = ["127.0.0.1:{port}"]
max_clients = {MOST_CLIENTS}
[gateway.tls]
certificate = "{ground.certificate("server.crt")}"
private_key = "{ground.certificate("server.key")}"
client_ca = "{ground.certificate("ca.crt")}"
[gateway.auth]
method = "scram"
users_file = "{users}"
[[source]]
name = "{DATABASE}"
hosts = ["127.0.0.1:{ground.pg.port}"]
database = "{DATABASE}"
user = "{USER}"
password_file = "{secret}"
tls = "disable"
access = [{{ users = ["{USER}", "{FEW}", "{CERTIFIED}"], cidr = ["127.0.0.0/8"] }}]
{self.pool}
[log]
level = "warn"
"""), place

    def start(self, ground, stack):
        port = free_port()
        config, place = self._configure(ground, port)
        return launch(stack, place, self.name, [self.binary, "run", "--config", config], port)


def all_paths(binary, session_pool=SESSION_POOL, transaction_pool=TRANSACTION_POOL, pgcat=None, pgdog=None):
    """All columns, direct first and fedgate last."""
    given = [path(mode, program) for path, program in ((Pgcat, pgcat), (Pgdog, pgdog)) if program for mode in ("session", "transaction")]
    return [Direct("direct"), Socat("socat"), Haproxy("haproxy"), Pgbouncer("session"), Pgbouncer("transaction"), *given,
            Fedgate("session", binary, session_pool), Fedgate("transaction", binary, transaction_pool)]


def revision():
    """The commit of this tree, or an empty text."""
    run = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=TREE, capture_output=True, text=True)
    return run.stdout.strip()
