"""A private Trino: own folder, loopback, a port the kernel picked; and a client of its HTTP protocol.

Invariant: the server and its folder are gone when the `with` block ends, however it ends.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

CATALOG = """\
connector.name=postgresql
connection-url=jdbc:postgresql://${ENV:CLIMSCORE_RO_HOST}:${ENV:CLIMSCORE_RO_PORT}/${ENV:CLIMSCORE_RO_DB}
connection-user=${ENV:CLIMSCORE_RO_USER}
connection-password=${ENV:CLIMSCORE_RO_PASS}
case-insensitive-name-matching=false
query.comment-format=fedgate query=$QUERY_ID user=$USER
"""

JVM = """\
-Xmx1500M
-XX:+UseSerialGC
-XX:+ExitOnOutOfMemoryError
--enable-native-access=ALL-UNNAMED
--sun-misc-unsafe-memory-access=allow
"""


class TrinoServer:
    """Trino with one catalog, climscore, whose connection stands in CLIMSCORE_RO_* of `environment`.

    `files` are more of its configuration, by their names below `etc` (None: no such file); `catalog` are more lines of the catalog's own.
    """

    def __init__(self, environment, patience=180, files=None, catalog=""):
        self.environment = environment
        self.files = files or {}
        self.catalog = catalog
        self.patience = patience
        self.process = None
        self.folder = tempfile.mkdtemp(prefix="fedgate-trino-", dir=os.environ.get("FEDGATE_TEMP"))
        self.log = os.path.join(self.folder, "log")

    def __enter__(self):
        try:
            # Bound and never listening, this socket keeps the kernel from handing the port to anybody's connection in the seconds
            # that Trino takes; both sides allow the address to be used again, so Trino can bind it nevertheless.
            with socket.socket() as reserved:
                reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                reserved.bind(("127.0.0.1", 0))
                self._start(reserved.getsockname()[1])
            return self
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_):
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, port):
        self.url = f"http://127.0.0.1:{port}"
        etc = os.path.join(self.folder, "etc")
        os.makedirs(os.path.join(etc, "catalog"), exist_ok=True)
        files = {
            "config.properties": f"coordinator=true\nnode-scheduler.include-coordinator=true\nhttp-server.http.port={port}\n"
                                 f"node.internal-address=127.0.0.1\ndiscovery.uri={self.url}\n",
            "node.properties": f"node.environment=test\nnode.bind-ip=127.0.0.1\nnode.data-dir={os.path.join(self.folder, 'data')}\n",
            "jvm.config": JVM,
            "log.properties": "io.trino=WARN\n",
            "catalog/climscore.properties": CATALOG + self.catalog,
            **self.files,
        }
        for name, text in files.items():
            if text is None:
                continue
            with open(os.path.join(etc, name), "w", encoding="utf-8") as out:
                out.write(text)
        jdk = os.environ["FEDGATE_TRINO_JDK"]
        home = os.environ["FEDGATE_TRINO_HOME"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [os.path.join(home, "bin", "launcher"), "run", "--etc-dir", etc], stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.folder,
                env={**os.environ, "JAVA_HOME": jdk, "PATH": os.path.join(jdk, "bin") + os.pathsep + os.environ["PATH"], **self.environment})
        end = time.monotonic() + self.patience
        while time.monotonic() < end:
            if self.process.poll() is not None:
                with open(self.log, encoding="utf-8", errors="replace") as log:
                    text = log.read()
                raise SystemExit("Trino ended while starting:\n" + text[-6000:])
            try:
                with urllib.request.urlopen(self.url + "/v1/info", timeout=2) as answer:
                    if not json.load(answer)["starting"]:
                        return
            except (OSError, ValueError):
                pass
            time.sleep(0.1)
        raise SystemExit(f"Trino did not start within {self.patience} s; its log ends:\n" + open(self.log, encoding="utf-8").read()[-3000:])


class QueryFailed(Exception):
    """What Trino says of a failed query. `query` is its id."""

    def __init__(self, error, query):
        super().__init__(error["message"])
        self.name = error.get("errorName")
        self.query = query
        # The DETAIL below the first line may speak of either.
        text = error["message"].split("\n")[0]
        self.sqlstate = "25006" if "read-only transaction" in text or "read-write mode" in text else "42501" if "permission denied" in text else self.name


class TrinoSession:
    """A client of Trino's statement protocol, as one end user."""

    def __init__(self, server, user, patience=120, **session):
        self.url = server.url
        self.user = user
        self.patience = patience
        self.session = session
        self.query = None

    def _call(self, url, data=None, method=None):
        headers = {"X-Trino-User": self.user, "X-Trino-Source": "survey", "X-Trino-Catalog": "climscore", "X-Trino-Schema": "survey", "X-Trino-Time-Zone": "UTC"}
        if self.session:
            headers["X-Trino-Session"] = ",".join(f"{k}={v}" for k, v in self.session.items())
        request = urllib.request.Request(url, data=data, headers=headers, method=method)
        while True:
            try:
                with urllib.request.urlopen(request, timeout=self.patience) as answer:
                    body = answer.read()
                    return json.loads(body) if body else None
            except urllib.error.HTTPError as error:
                if error.code not in (429, 502, 503, 504):
                    raise
                time.sleep(0.1)

    def begin(self, sql):
        """Submits `sql`; gives the first answer."""
        answer = self._call(self.url + "/v1/statement", sql.encode())
        self.query = answer["id"]
        return answer

    def rows(self, sql):
        """All rows of `sql`."""
        answer, rows, end = self.begin(sql), [], time.monotonic() + self.patience
        while True:
            if "error" in answer:
                # A server that has just started may not have found itself yet: nothing has run then.
                if answer["error"].get("errorName") == "NO_NODES_AVAILABLE" and time.monotonic() < end:
                    time.sleep(0.2)
                    answer, rows = self.begin(sql), []
                    continue
                raise QueryFailed(answer["error"], self.query)
            rows += answer.get("data", [])
            if "nextUri" not in answer:
                return rows
            if time.monotonic() > end:
                raise TimeoutError(f"{self.query} did not end within {self.patience} s")
            answer = self._call(answer["nextUri"])

    def follow(self, answer):
        """The next answer, or None at the end."""
        return self._call(answer["nextUri"]) if "nextUri" in answer else None

    def cancel(self, answer):
        """Gives the query up, as a user does who closes the connection or presses Ctrl-C."""
        self._call(answer["nextUri"], method="DELETE")
