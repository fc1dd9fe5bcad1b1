//! The built `fedgate` binary, run as an operator would run it.
//!
//! Invariant: the process goes when the handle goes, and also when the process that holds it is killed.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long the gateway may take to listen on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to go; longer than the drain time-outs that tests configure.
const STOP_TIMEOUT: Duration = Duration::from_secs(60);

/// A configuration and the files it speaks of.
#[derive(Clone, Debug, Default)]
pub struct Setup {
    pub toml: String,
    files: Vec<(String, String)>,
    env: Vec<(String, String)>,
    log_file: bool,
}

impl Setup {
    /// `{dir}` in `toml` becomes the folder in which the files lie.
    pub fn new(toml: impl Into<String>) -> Self {
        Self { toml: toml.into(), ..Self::default() }
    }

    /// A file beside the configuration, readable by its owner alone.
    pub fn file(mut self, name: &str, text: impl Into<String>) -> Self {
        self.files.push((name.to_owned(), text.into()));
        self
    }

    /// `users.txt` with a SCRAM verifier for each user.
    pub fn users(self, users: &[(&str, &str)]) -> Self {
        let mut text = String::new();
        for (user, password) in users {
            text.push_str(&format!("\"{user}\" \"{}\"\n", scram_verifier(password)));
        }
        self.file("users.txt", text)
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Standard error is the file `{dir}/log`, and a write beyond a limit of file sizes fails, as on a full disk, in place
    /// of ending the process.
    pub fn log_file(mut self) -> Self {
        self.log_file = true;
        self
    }
}

impl<T: Into<String>> From<T> for Setup {
    fn from(toml: T) -> Self {
        Self::new(toml)
    }
}

/// A verifier as `pg_authid` and `users_file` hold it.
pub fn scram_verifier(password: &str) -> String {
    postgres_protocol::password::scram_sha_256(password.as_bytes())
}

/// A running gateway.
pub struct Gateway {
    child: Child,
    watch: Child,
    output: Arc<Output>,
    readers: Vec<std::thread::JoinHandle<()>>,
    /// The process has ended: what follows a file may stop at its end.
    ended: Arc<AtomicBool>,
    folder: PathBuf,
    addresses: Vec<SocketAddr>,
    http: Option<SocketAddr>,
    status: Option<ExitStatus>,
}

#[derive(Default)]
struct Output {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    /// Standard error has ended.
    closed: bool,
}

impl Output {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Gateway {
    /// Starts `binary run --config …` and waits until it listens (on HTTP too when `[http]` is
    /// configured). Panics with its log when it does not.
    pub fn launch(binary: &Path, setup: impl Into<Setup>) -> Self {
        match Self::try_launch(binary, setup) {
            Ok(gateway) => gateway,
            Err(error) => panic!("{error}"),
        }
    }

    /// As `launch`, with the log as the error: for configurations that must be rejected.
    pub fn try_launch(binary: &Path, setup: impl Into<Setup>) -> Result<Self, String> {
        let setup = setup.into();
        let folder = fresh_folder()?;
        let place = folder.display().to_string();
        let toml = setup.toml.replace("{dir}", &place);
        for (name, _) in &setup.files {
            // A name may lie in a folder of its own.
            let made = folder.join(name).parent().map_or(Ok(()), std::fs::create_dir_all);
            made.map_err(|e| format!("cannot make a folder for {name}: {e}"))?;
        }
        for (name, text) in setup.files.iter().chain([&("fedgate.toml".to_owned(), toml.clone())]) {
            write_private(&folder.join(name), &text.replace("{dir}", &place))?;
        }
        let mut command = Command::new(if setup.log_file { Path::new("sh") } else { binary });
        if setup.log_file {
            command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(binary);
        }
        command
            .arg("run")
            .arg("--config")
            .arg(folder.join("fedgate.toml"))
            .current_dir(&folder)
            .envs(setup.env.iter().map(|(name, value)| (name.as_str(), value.as_str())))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let log = folder.join("log");
        if setup.log_file {
            let file = std::fs::File::create(&log).map_err(|e| format!("cannot make a log: {e}"))?;
            command.stderr(file);
        }
        let mut child = command.spawn().map_err(|e| format!("cannot run {}: {e}", binary.display()))?;
        let watch = Command::new("sh")
            .args(["-c", "read -r line; kill -KILL \"$1\" 2>/dev/null; rm -rf \"$2\"", "watch"])
            .arg(child.id().to_string())
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(|e| format!("cannot start a shell: {e}"))?;

        let output = Arc::new(Output::default());
        let mut readers = Vec::new();
        let ended = Arc::new(AtomicBool::new(false));
        if let Some(stream) = child.stderr.take() {
            readers.push(follow(stream, Arc::clone(&output), true));
        } else {
            let file = std::fs::File::open(&log).map_err(|e| format!("cannot read the log: {e}"))?;
            readers.push(follow(Growing { file, ended: Arc::clone(&ended) }, Arc::clone(&output), true));
        }
        if let Some(stream) = child.stdout.take() {
            readers.push(follow(stream, Arc::clone(&output), false));
        }
        let wants_http = toml.lines().any(|line| line.trim() == "[http]");
        let wants = listeners(&toml);
        let mut gateway = Self {
            child,
            watch,
            output,
            readers,
            ended,
            folder,
            addresses: Vec::new(),
            http: None,
            status: None,
        };
        let ready = gateway.wait_for(START_TIMEOUT, |lines| {
            let (addresses, http) = listening(lines);
            addresses.len() >= wants && (http.is_some() || !wants_http)
        });
        let (addresses, http) = listening(&gateway.output.lock().lines);
        gateway.addresses = addresses;
        gateway.http = http;
        if ready { Ok(gateway) } else { Err(format!("fedgate does not listen:\n{}", gateway.log())) }
    }

    /// The first address on which it serves PostgreSQL clients.
    pub fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// All of them, in the order of the log.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub fn port(&self) -> u16 {
        self.address().port()
    }

    /// The address of the HTTP side.
    pub fn http(&self) -> SocketAddr {
        self.http.expect("the configuration has a section [http]")
    }

    /// The folder of configuration and files, `{dir}` in the TOML.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn config_file(&self) -> PathBuf {
        self.folder.join("fedgate.toml")
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// libpq's URL of a source behind the gateway.
    pub fn url(&self, user: &str, password: &str, database: &str) -> String {
        format!("postgresql://{user}:{password}@127.0.0.1:{}/{database}", self.port())
    }

    /// A tokio-postgres session through the gateway, without TLS.
    pub async fn connect(
        &self,
        user: &str,
        password: &str,
        database: &str,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::Config::new()
            .host("127.0.0.1")
            .port(self.port())
            .user(user)
            .password(password)
            .dbname(database)
            .connect(tokio_postgres::NoTls)
            .await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Status and body of a GET on the HTTP side.
    pub fn get(&self, path: &str) -> (u16, String) {
        http_get(self.http(), path).expect("the HTTP side answers")
    }

    /// Status and body of a request that may change something.
    pub fn post(&self, path: &str, body: &str) -> (u16, String) {
        let json = [("Content-Type", "application/json")];
        http_request(self.http(), "POST", path, &json, body).expect("the HTTP side answers")
    }

    /// What the gateway has written to standard error (its log) and standard output so far.
    pub fn log(&self) -> String {
        let mut text = self.output.lock().lines.join("\n");
        text.push('\n');
        text
    }

    /// Lines of the log so far; for `wait_for_line_after`.
    pub fn log_mark(&self) -> usize {
        self.output.lock().lines.len()
    }

    /// Waits until a line of the log holds `text` and gives that line. Panics with the log after 30 s.
    pub fn wait_for_line(&self, text: &str) -> String {
        self.wait_for_line_after(0, text)
    }

    /// As `wait_for_line`, among the lines that came after `mark`.
    pub fn wait_for_line_after(&self, mark: usize, text: &str) -> String {
        let mut found = None;
        self.wait_for(Duration::from_secs(30), |lines| {
            found = lines.iter().skip(mark).find(|line| line.contains(text)).cloned();
            found.is_some()
        });
        found.unwrap_or_else(|| panic!("the log never said {text:?}:\n{}", self.log()))
    }

    /// Waits for a state of the log; false when time or log ends before.
    fn wait_for(&self, timeout: Duration, mut reached: impl FnMut(&[String]) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let mut state = self.output.lock();
        loop {
            if reached(&state.lines) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                return false;
            }
            state = self.output.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Sends a signal by name, such as `TERM` or `HUP`.
    pub fn signal(&self, name: &str) {
        assert!(self.status.is_none(), "the gateway has ended");
        let sent =
            Command::new("sh").args(["-c", "kill -s \"$0\" \"$1\"", name, &self.pid().to_string()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "the signal could not be sent");
    }

    /// Waits until the process has ended by itself, `None` when it does not within `timeout`.
    pub fn wait_exit(&mut self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        while self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
            if self.status.is_none() {
                if Instant::now() > deadline {
                    return None;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.status
    }

    /// SIGTERM, then the exit code must be 0. Gives the whole log.
    pub fn stop(mut self) -> String {
        self.signal("TERM");
        let status = self.wait_exit(STOP_TIMEOUT);
        self.ended.store(true, Ordering::SeqCst);
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        let log = self.log();
        match status {
            Some(status) => assert!(status.success(), "fedgate ended with {status}:\n{log}"),
            None => panic!("fedgate did not end within {STOP_TIMEOUT:?} of SIGTERM:\n{log}"),
        }
        log
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // The watch goes first: while the child is not waited for, nobody else can have its pid.
        let _ = self.watch.kill();
        let _ = self.watch.wait();
        if self.status.is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        self.ended.store(true, Ordering::SeqCst);
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        if std::thread::panicking() {
            eprintln!("--- log of fedgate ---\n{}--- end of log ---", self.log());
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// A file that somebody else still writes.
struct Growing {
    file: std::fs::File,
    ended: Arc<AtomicBool>,
}

impl Read for Growing {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let ended = self.ended.load(Ordering::SeqCst);
            let count = self.file.read(buffer)?;
            if count > 0 || ended {
                return Ok(count);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn follow(
    stream: impl Read + Send + 'static,
    output: Arc<Output>,
    ends: bool,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stream);
        let mut line = Vec::new();
        while matches!(reader.read_until(b'\n', &mut line), Ok(read) if read > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            output.lock().lines.push(text);
            output.changed.notify_all();
            line.clear();
        }
        if ends {
            output.lock().closed = true;
            output.changed.notify_all();
        }
    })
}

/// How many PostgreSQL listeners a configuration asks for: the addresses in the first `listen`.
fn listeners(toml: &str) -> usize {
    let line = toml.lines().map(str::trim).find(|line| line.starts_with("listen"));
    line.map_or(1, |line| line.matches(':').count().max(1))
}

/// The bound addresses that the log speaks of: `listening … address=A` and `http listening … address=A`.
fn listening(lines: &[String]) -> (Vec<SocketAddr>, Option<SocketAddr>) {
    let mut addresses = Vec::new();
    let mut http = None;
    for line in lines.iter().filter(|line| line.contains("listening")) {
        let words = line.split(|c: char| c.is_whitespace() || "=\"',{}\u{1b}".contains(c));
        // In JSON a colon stands before the quoted address, and coloured text puts codes before it.
        let address = words.filter_map(|word| word.trim_matches(':').parse::<SocketAddr>().ok()).next();
        match address {
            Some(address) if line.contains("http listening") => http = Some(address),
            Some(address) => addresses.push(address),
            None => {}
        }
    }
    (addresses, http)
}

/// A plain HTTP/1.1 GET.
pub fn http_get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    http_request(address, "GET", path, &[], "")
}

/// One HTTP/1.1 request on a connection of its own: the status and the body of the answer.
pub fn http_request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    if method != "GET" {
        request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    write!(stream, "{request}\r\n{body}")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let bad = || std::io::Error::new(std::io::ErrorKind::InvalidData, answer.clone());
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(bad)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(bad)?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    Ok((status, if chunked { unchunk(body) } else { body.to_owned() }))
}

fn unchunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let Ok(size) = usize::from_str_radix(size.trim(), 16) else { break };
        if size == 0 || rest.len() < size {
            break;
        }
        text.push_str(&rest[..size]);
        body = rest[size..].trim_start_matches("\r\n");
    }
    text
}

fn fresh_folder() -> Result<PathBuf, String> {
    tempfile::Builder::new()
        .prefix("fedgate-run-")
        .tempdir()
        .map(tempfile::TempDir::keep)
        .map_err(|e| format!("cannot make a folder: {e}"))
}

fn write_private(path: &Path, text: &str) -> Result<(), String> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let done = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    done.map_err(|e| format!("cannot write {}: {e}", path.display()))
}
