//! A private PostgreSQL for one test, made from the system's programs.
//!
//! Invariant: server and folder go when the handle goes, and also when the process that holds it is
//! killed: a small shell watches a pipe that only that process holds open.

use std::fs;
use std::future::Future;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::fingerprint::Fingerprint;
use super::log::{Logged, logged_statements};

/// How long initdb or the start of a server may take on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// How long the server may take to go.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);
/// Sessions of the harness itself log nothing, so the log holds what others sent and no more.
const SILENT: &str = "-c log_statement=none -c log_min_duration_statement=-1 -c log_min_messages=panic \
                      -c log_min_error_statement=panic -c log_disconnections=off";

/// The bootstrap superuser.
pub const SUPERUSER: &str = "postgres";
/// Its password.
pub const SUPERUSER_PASSWORD: &str = "a password for tests";

/// What a server is started with; `Options::default()` serves most tests.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Lines of pg_hba.conf, put before the default ones (`local` trust, loopback SCRAM).
    pub hba: Vec<String>,
    /// Server certificate, key and, optionally, the CA for client certificates, as PEM.
    pub tls: Option<ServerTls>,
    /// Further lines of postgresql.conf, `name = 'value'`.
    pub settings: Vec<String>,
    /// The folder with `initdb` and `postgres`; absent: looked for.
    pub bin: Option<PathBuf>,
}

impl Options {
    pub fn hba(mut self, line: impl Into<String>) -> Self {
        self.hba.push(line.into());
        self
    }

    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push(format!("{name} = '{}'", value.replace('\'', "''")));
        self
    }

    pub fn tls(mut self, tls: ServerTls) -> Self {
        self.tls = Some(tls);
        self
    }

    pub fn bin(mut self, folder: impl Into<PathBuf>) -> Self {
        self.bin = Some(folder.into());
        self
    }

    /// A major version, as `scripts/setup-postgres MAJOR` gets it; panics when it is not there.
    pub fn version(self, major: u32) -> Self {
        match find_version(major) {
            Ok(folder) => self.bin(folder),
            Err(error) => panic!("{error}"),
        }
    }
}

/// PEM texts for `ssl = on`.
#[derive(Clone, Debug)]
pub struct ServerTls {
    pub certificate: String,
    pub private_key: String,
    pub client_ca: Option<String>,
}

/// A running server.
pub struct Postgres {
    folder: PathBuf,
    bin: PathBuf,
    port: u16,
    server: Option<Server>,
}

/// The watching shell; closing its standard input ends the server.
struct Server {
    shell: Child,
    lifeline: Option<ChildStdin>,
}

impl Postgres {
    /// Makes a cluster and waits until it accepts connections. Panics with the server's own words when
    /// it does not.
    pub fn start(options: Options) -> Self {
        match Self::try_start(options) {
            Ok(postgres) => postgres,
            Err(error) => panic!("{error}"),
        }
    }

    /// As `start`, with the reason as text.
    pub fn try_start(options: Options) -> Result<Self, String> {
        let bin = match &options.bin {
            Some(folder) => folder.clone(),
            None => find_bin()?,
        };
        let account = Account::find()?;
        let folder = make_folder(&account)?;
        let mut postgres = Self { folder, bin, port: 0, server: None };
        postgres.initialise(&options, &account)?;
        postgres.launch_somewhere(&account)?;
        Ok(postgres)
    }

    fn launch_somewhere(&mut self, account: &Account) -> Result<(), String> {
        // Between asking the kernel for a port and using it, somebody else may take it.
        for attempt in 0.. {
            match self.launch(account) {
                Err(error) if attempt < 9 && error.contains("could not bind") => {}
                outcome => return outcome,
            }
        }
        Ok(())
    }

    /// A hot standby that streams from `primary`; it is there when it lets sessions in.
    pub fn standby(primary: &Postgres) -> Self {
        let account = Account::find().expect("an account");
        let folder = make_folder(&account).expect("a folder");
        let mut standby = Self { folder, bin: primary.bin.clone(), port: 0, server: None };
        let mut copy = standby.program("pg_basebackup", &account);
        copy.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "--username", SUPERUSER])
            .arg("--host")
            .arg(primary.socket_dir())
            .args(["--port", &primary.port().to_string(), "--pgdata"])
            .arg(standby.data());
        let output = copy.output().expect("pg_basebackup runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let own = format!("unix_socket_directories = '{}'\n", standby.folder.display());
        fs::OpenOptions::new()
            .append(true)
            .open(standby.data().join("postgresql.conf"))
            .and_then(|mut file| file.write_all(own.as_bytes()))
            .expect("its configuration can be written");
        for attempt in 0.. {
            match standby.launch(&account) {
                Ok(()) => break,
                Err(error) if attempt == 9 || !error.contains("could not bind") => panic!("{error}"),
                Err(_) => {}
            }
        }
        standby
    }

    /// A server with the database `climscore`, filled, and the role `akko_readonly` with [`READER_PASSWORD`].
    pub fn climscore(options: Options) -> Self {
        let postgres = Self::start(options);
        postgres.fill_climscore();
        postgres
    }

    /// Creates and fills the database `climscore` on a server that runs already.
    pub fn fill_climscore(&self) {
        self.execute("postgres", "CREATE DATABASE climscore");
        self.execute("climscore", CLIMSCORE_SQL);
        self.execute("climscore", &format!("ALTER ROLE akko_readonly PASSWORD '{READER_PASSWORD}'"));
    }

    fn initialise(&self, options: &Options, account: &Account) -> Result<(), String> {
        let password = self.folder.join("password");
        self.write("password", SUPERUSER_PASSWORD, account)?;
        let mut initdb = self.program("initdb", account);
        initdb
            .arg("--pgdata")
            .arg(self.data())
            .args(["--username", SUPERUSER, "--encoding=UTF8", "--locale=C", "--auth=trust", "--no-sync"])
            .arg("--pwfile")
            .arg(&password);
        let output = initdb.output().map_err(|e| format!("cannot run initdb: {e}"))?;
        if !output.status.success() {
            return Err(format!("initdb failed: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let mut hba = String::new();
        for line in &options.hba {
            hba.push_str(line);
            hba.push('\n');
        }
        hba.push_str("local all all trust\nlocal replication all trust\n");
        hba.push_str(
            "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n",
        );
        self.write("data/pg_hba.conf", &hba, account)?;

        let mut settings = format!("unix_socket_directories = '{}'\n", self.folder.display());
        settings.push_str(SETTINGS);
        if let Some(tls) = &options.tls {
            self.write("data/server.crt", &tls.certificate, account)?;
            self.write("data/server.key", &tls.private_key, account)?;
            settings.push_str("ssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\n");
            if let Some(ca) = &tls.client_ca {
                self.write("data/client-ca.crt", ca, account)?;
                settings.push_str("ssl_ca_file = 'client-ca.crt'\n");
            }
        }
        for line in &options.settings {
            settings.push_str(line);
            settings.push('\n');
        }
        fs::OpenOptions::new()
            .append(true)
            .open(self.data().join("postgresql.conf"))
            .and_then(|mut file| file.write_all(settings.as_bytes()))
            .map_err(|e| format!("cannot write postgresql.conf: {e}"))
    }

    fn launch(&mut self, account: &Account) -> Result<(), String> {
        let port = free_port()?;
        let mut shell = account.command("sh");
        shell
            .args(["-c", WATCH, "watch"])
            .arg(&self.folder)
            .arg(self.bin.join("postgres"))
            .arg(port.to_string())
            .env("LC_ALL", "C")
            .env_remove("PGDATA")
            .env_remove("PGPORT")
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C at the terminal is for the program that holds the handle, which then ends us.
            .process_group(0);
        let mut shell = shell.spawn().map_err(|e| format!("cannot start a shell: {e}"))?;
        let lifeline = shell.stdin.take();
        let pid_file = self.data().join("postmaster.pid");
        let exited = self.folder.join("exited");
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            // The eighth line of postmaster.pid is the server's own word on its state.
            let ready = fs::read_to_string(&pid_file).is_ok_and(|text| {
                text.lines().nth(7).is_some_and(|state| matches!(state.trim(), "ready" | "standby"))
            });
            if ready {
                self.port = port;
                self.server = Some(Server { shell, lifeline });
                return Ok(());
            }
            if exited.exists() || Instant::now() > deadline {
                let log = fs::read_to_string(self.log_path()).unwrap_or_default();
                drop(lifeline);
                let _ = shell.wait();
                let _ = fs::remove_file(&exited);
                let _ = fs::remove_file(self.folder.join("pid"));
                let _ = fs::remove_file(self.log_path());
                return Err(format!("PostgreSQL did not start:\n{log}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn write(&self, name: &str, text: &str, account: &Account) -> Result<(), String> {
        let path = self.folder.join(name);
        let done = fs::write(&path, text)
            .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o600)))
            .and_then(|()| account.give(&path));
        done.map_err(|e| format!("cannot write {}: {e}", path.display()))
    }

    fn program(&self, name: &str, account: &Account) -> Command {
        let mut command = account.command(self.bin.join(name));
        command.current_dir(&self.folder).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    /// The server's data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    fn log_path(&self) -> PathBuf {
        self.folder.join("server.log")
    }

    /// The folder of the Unix socket `.s.PGSQL.PORT`.
    pub fn socket_dir(&self) -> &Path {
        &self.folder
    }

    /// The TCP port on 127.0.0.1, which also names the Unix socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder of the server's programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    /// `host:port`, as `hosts` of a source takes it.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// libpq's URL for the superuser over TCP.
    pub fn url(&self) -> String {
        self.url_for(SUPERUSER, SUPERUSER_PASSWORD, "postgres")
    }

    /// libpq's URL for anybody over TCP.
    pub fn url_for(&self, user: &str, password: &str, database: &str) -> String {
        let password =
            password.replace('%', "%25").replace(' ', "%20").replace('@', "%40").replace('/', "%2F");
        format!("postgresql://{user}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// `psql` as the superuser over the Unix socket, its rc file off, stopping at the first error.
    /// What it sends is logged like anybody's.
    pub fn psql(&self, database: &str) -> Command {
        let own = self.bin.join("psql");
        let mut command = Command::new(if own.exists() { own } else { PathBuf::from("psql") });
        command
            .args(["--no-psqlrc", "--no-password", "--set=ON_ERROR_STOP=1"])
            .env("PGHOST", self.socket_dir())
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", SUPERUSER)
            .env("PGPASSWORD", SUPERUSER_PASSWORD)
            .env("PGDATABASE", database)
            .env("LC_ALL", "C.UTF-8")
            .stdin(Stdio::null());
        command
    }

    /// A superuser's session over the Unix socket that leaves nothing in the statement log.
    pub async fn superuser_client(&self, database: &str) -> tokio_postgres::Client {
        let connecting = tokio_postgres::Config::new()
            .host_path(self.socket_dir())
            .port(self.port)
            .user(SUPERUSER)
            .password(SUPERUSER_PASSWORD)
            .dbname(database)
            .application_name("harness")
            .options(SILENT)
            .connect(tokio_postgres::NoTls)
            .await;
        let (client, connection) = connecting.expect("the harness connects to its own server");
        tokio::spawn(connection);
        client
    }

    /// Runs `sql` as the superuser, unlogged; for tests that are not async, and in async ones too.
    pub fn execute(&self, database: &str, sql: &str) {
        blocking(async {
            let client = self.superuser_client(database).await;
            client.batch_execute(sql).await.expect("the harness's own SQL runs");
        });
    }

    /// The first column of the first row of `sql`, as text; run as the superuser, unlogged.
    pub fn value(&self, database: &str, sql: &str) -> Option<String> {
        blocking(async {
            let client = self.superuser_client(database).await;
            let messages = client.simple_query(sql).await.expect("the harness's own SQL runs");
            messages.iter().find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
                _ => None,
            })?
        })
    }

    /// The server's log as it stands. PostgreSQL writes a statement's line before it runs it, so once
    /// a client has its answer the line is here.
    pub fn statement_log(&self) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How long the log is now; for `statement_log_since`.
    pub fn log_mark(&self) -> usize {
        fs::metadata(self.log_path()).map(|meta| meta.len() as usize).unwrap_or(0)
    }

    /// What the log gained since `mark`.
    pub fn statement_log_since(&self, mark: usize) -> String {
        let bytes = fs::read(self.log_path()).unwrap_or_default();
        String::from_utf8_lossy(bytes.get(mark..).unwrap_or_default()).into_owned()
    }

    /// Every text that arrived since `mark` (0: ever), by simple or extended protocol, run or only
    /// parsed or failed; see [`logged_statements`].
    pub fn statements_since(&self, mark: usize) -> Vec<Logged> {
        logged_statements(&self.statement_log_since(mark))
    }

    /// What a write would leave: schema, contents, sequences, large objects, roles, settings, the next
    /// transaction id (which even an aborted write uses up), of every database.
    pub fn fingerprint(&self) -> Fingerprint {
        blocking(Fingerprint::take(self))
    }

    /// Stops the server at once and removes its folder; `drop` does the same.
    pub fn stop(mut self) {
        self.end();
    }

    /// The process ids of the server: the postmaster's first, then those of its children.
    fn processes(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.folder.join("pid")).expect("the server runs");
        let postmaster: u32 = text.trim().parse().expect("a process id");
        let children = fs::read_dir("/proc").expect("/proc is there").flatten().filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name, which may hold anything, stands in brackets; state and parent come next.
            let parent: u32 = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            (parent == postmaster).then_some(pid)
        });
        [postmaster].into_iter().chain(children).collect()
    }

    /// Sends all processes of the server a signal. The postmaster stands still meanwhile, so that none is new.
    fn signal_all(&self, name: &str) {
        send_signal("STOP", &self.processes()[..1]);
        let mut pids = self.processes();
        // Its children would see it die, and say goodbye.
        pids.reverse();
        send_signal(name, &pids);
    }

    /// All processes stop where they are; what the kernel does for them goes on.
    pub fn freeze(&self) {
        self.signal_all("STOP");
    }

    /// The end of [`Postgres::freeze`].
    pub fn thaw(&self) {
        self.signal_all("CONT");
    }

    /// As when the machine loses power: every process is killed with SIGKILL. Returns when they are gone.
    pub fn kill(&mut self) {
        let pids = self.processes();
        self.signal_all("KILL");
        let there = |pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
            stat.is_ok_and(|stat| !stat.contains(") Z "))
        };
        let deadline = Instant::now() + STOP_TIMEOUT;
        while !self.folder.join("exited").exists() || pids.iter().any(there) {
            assert!(Instant::now() < deadline, "the server does not die");
            std::thread::sleep(Duration::from_millis(5));
        }
        if let Some(mut server) = self.server.take() {
            server.lifeline.take();
            let _ = server.shell.wait();
        }
    }

    /// After [`Postgres::kill`]: the same data, most likely on another port.
    pub fn start_again(&mut self) {
        for left in ["exited", "pid", "data/postmaster.pid"] {
            let _ = fs::remove_file(self.folder.join(left));
        }
        let started = Account::find().and_then(|account| self.launch_somewhere(&account));
        if let Err(error) = started {
            panic!("{error}");
        }
    }

    /// Kills one process that serves a client with SIGKILL: the server then resets all others. False: there is none.
    pub fn kill_one_of(&self, role: &str) -> bool {
        let sql = format!("SELECT pid FROM pg_stat_activity WHERE usename = '{role}' LIMIT 1");
        let pid = self.value("postgres", &sql).and_then(|pid| pid.parse().ok());
        pid.is_some_and(|pid| send_signal("KILL", &[pid]))
    }

    fn end(&mut self) {
        let Some(mut server) = self.server.take() else {
            let _ = fs::remove_dir_all(&self.folder);
            return;
        };
        server.lifeline.take();
        let deadline = Instant::now() + STOP_TIMEOUT;
        while let Ok(None) = server.shell.try_wait() {
            if Instant::now() > deadline {
                eprintln!("PostgreSQL in {} does not go", self.folder.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.end();
    }
}

/// False: there is one less of them than was thought, which ended by itself.
fn send_signal(name: &str, pids: &[u32]) -> bool {
    let mut kill = Command::new("sh");
    kill.args(["-c", "kill -s \"$0\" \"$@\" 2>/dev/null", name]).args(pids.iter().map(u32::to_string));
    kill.status().is_ok_and(|status| status.success())
}

/// Starts the server and waits for the end of standard input, then stops the server without ceremony
/// (its data goes with it) and removes the folder. A server that ends by itself leaves `exited`.
const WATCH: &str = r#"
folder=$1
{
    "$2" -D "$folder/data" -p "$3" </dev/null >/dev/null 2>>"$folder/server.log" &
    echo $! >"$folder/pid"
    wait $!
    : >"$folder/exited"
} &
group=$!
read -r line
if [ ! -e "$folder/exited" ]; then
    until [ -s "$folder/pid" ]; do sleep 0.1; done
    kill -QUIT "$(cat "$folder/pid")"
    # A test may have stopped it.
    kill -CONT "$(cat "$folder/pid")"
    wait "$group"
    rm -rf "$folder"
fi
"#;

const SETTINGS: &str = "\
listen_addresses = '127.0.0.1'
max_connections = 200
shared_buffers = '32MB'
fsync = off
synchronous_commit = off
full_page_writes = off
autovacuum = off
jit = off
timezone = 'UTC'
log_timezone = 'UTC'
log_destination = 'stderr'
logging_collector = off
log_line_prefix = '%m [%p] app=%a user=%u db=%d '
log_statement = 'all'
log_min_duration_statement = 0
log_connections = on
log_disconnections = on
log_replication_commands = on
log_error_verbosity = default
";

/// Runs a future to its end on a thread and runtime of its own, so that it works inside a runtime too.
pub fn blocking<T: Send>(future: impl Future<Output = T> + Send) -> T {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime starts").block_on(future)
        });
        match worker.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Whom the server runs as: it refuses to run as root.
struct Account(Option<(u32, u32)>);

impl Account {
    fn find() -> Result<Self, String> {
        // Whoever owns a file that we make is who we are.
        let me = tempfile::tempfile()
            .and_then(|file| file.metadata())
            .map_err(|e| format!("cannot make a temporary file: {e}"))?;
        if me.uid() != 0 {
            return Ok(Self(None));
        }
        let passwd =
            fs::read_to_string("/etc/passwd").map_err(|e| format!("cannot read /etc/passwd: {e}"))?;
        for name in ["postgres", "nobody"] {
            for line in passwd.lines() {
                let fields: Vec<&str> = line.split(':').collect();
                if let [user, _, uid, gid, ..] = fields.as_slice()
                    && *user == name
                    && let (Ok(uid), Ok(gid)) = (uid.parse(), gid.parse())
                {
                    return Ok(Self(Some((uid, gid))));
                }
            }
        }
        Err("PostgreSQL does not run as root, and there is neither a user postgres nor nobody".to_owned())
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        if let Some((uid, gid)) = self.0 {
            // Supplementary groups go with it.
            command.uid(uid).gid(gid);
        }
        command
    }

    fn give(&self, path: &Path) -> std::io::Result<()> {
        match self.0 {
            Some((uid, gid)) => chown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    }
}

/// The folder of the newest PostgreSQL server on this machine: FEDGATE_PG_BIN, Debian's and Red Hat's
/// places, then PATH.
pub fn find_bin() -> Result<PathBuf, String> {
    let complete = |folder: &Path| folder.join("initdb").is_file() && folder.join("postgres").is_file();
    if let Some(folder) = std::env::var_os("FEDGATE_PG_BIN").filter(|value| !value.is_empty()) {
        let folder = PathBuf::from(folder);
        return match complete(&folder) {
            true => Ok(folder),
            false => Err(format!("FEDGATE_PG_BIN={} holds no initdb and postgres", folder.display())),
        };
    }
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        for version in versions.flatten() {
            let folder = version.path().join("bin");
            if let Ok(number) = version.file_name().to_string_lossy().parse()
                && complete(&folder)
            {
                found.push((number, folder));
            }
        }
    }
    found.sort();
    if let Some((_, folder)) = found.pop() {
        return Ok(folder);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/pgsql/bin"), PathBuf::from("/usr/local/pgsql/bin")])
        .find(|folder| complete(folder))
        .ok_or_else(|| {
            "no PostgreSQL server programs (initdb, postgres) on this machine: run scripts/setup, install the \
             package postgresql, or name their folder in FEDGATE_PG_BIN"
                .to_owned()
        })
}

/// The folder of a major version's programs: FEDGATE_PG_BIN_14 and so on, Debian's place, the cache of
/// `scripts/setup-postgres`.
pub fn find_version(major: u32) -> Result<PathBuf, String> {
    let named = std::env::var_os(format!("FEDGATE_PG_BIN_{major}")).map(PathBuf::from);
    let debian = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let caches = [
        Some(PathBuf::from("/var/cache/fedgate")),
        std::env::var_os("FEDGATE_CACHE").map(PathBuf::from),
        std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or(home).map(|cache| cache.join("fedgate")),
    ];
    let cached = caches.into_iter().flatten().filter_map(|cache| fs::read_dir(cache).ok()).flatten();
    let cached = cached.flatten().filter_map(|entry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        name.starts_with(&format!("postgres-{major}.")).then(|| entry.path().join("bin"))
    });
    named
        .into_iter()
        .chain([debian])
        .chain(cached)
        .find(|folder| folder.join("initdb").is_file() && folder.join("postgres").is_file())
        .ok_or_else(|| format!("no PostgreSQL {major} on this machine: run scripts/setup-postgres {major}"))
}

/// A fresh folder, short enough for a Unix socket and reachable by the server's user.
fn make_folder(account: &Account) -> Result<PathBuf, String> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let wanted = std::env::temp_dir();
    let reachable = wanted
        .ancestors()
        .all(|folder| fs::metadata(folder).is_ok_and(|meta| account.0.is_none() || meta.mode() & 0o001 != 0));
    let base = if reachable && wanted.as_os_str().len() < 60 { wanted } else { PathBuf::from("/tmp") };
    loop {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = base.join(format!("fedgate-pg-{}-{number}", std::process::id()));
        match fs::create_dir(&folder) {
            Ok(()) => {
                fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))
                    .and_then(|()| account.give(&folder))
                    .map_err(|e| format!("cannot hand over {}: {e}", folder.display()))?;
                return Ok(folder);
            }
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(format!("cannot make {}: {error}", folder.display())),
        }
    }
}

fn free_port() -> Result<u16, String> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|e| format!("no free port: {e}"))
}

/// Schema, rows and role of the database `climscore`.
pub const CLIMSCORE_SQL: &str = include_str!("../../deploy/climscore/climscore.sql");
/// The password that the harness gives the role `akko_readonly`.
pub const READER_PASSWORD: &str = "a reader for tests";
