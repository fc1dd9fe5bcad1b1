//! Sessions that clients share: a client cannot tell that there are others, and the source never sees more than it
//! was promised.
//!
//! Invariant: each test has a database and a gateway of its own, and waits for what it expects, by the protocol, by
//! the source's own views or by the gateway's metrics.

#[path = "pool/attack.rs"]
mod attack;
#[path = "pool/leaving.rs"]
mod leaving;
#[path = "pool/prepared.rs"]
mod prepared;
#[allow(dead_code, reason = "shared with the comparison with a server, which uses all of it")]
#[path = "wire/raw.rs"]
mod raw;
#[path = "pool/sessions.rs"]
mod sessions;
#[path = "pool/settings.rs"]
mod settings;
#[path = "pool/stress.rs"]
mod stress;
mod support;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use raw::{Message, PATIENCE, Raw, Whom, frame, message};
use support::{Gateway, Options, Postgres, SUPERUSER, SUPERUSER_PASSWORD, Setup};

/// Runs for minutes unless somebody stops it.
const SLOW: &str = "SELECT count(*) FROM generate_series(1, 100000) AS a, generate_series(1, 100000) AS b";

/// Goes with this process, as every server of the harness does.
static SOURCE: LazyLock<Postgres> =
    LazyLock::new(|| Postgres::start(Options::default().setting("max_connections", "500")));

const SCHEMA: &str = "
CREATE TABLE probe (id int PRIMARY KEY, name text);
INSERT INTO probe SELECT i, 'name ' || i FROM generate_series(1, 1000) AS i;
CREATE TABLE written (id int PRIMARY KEY, name text);
CREATE SCHEMA one;
CREATE TABLE one.here AS SELECT 'one' AS here;
CREATE SCHEMA two;
CREATE TABLE two.here AS SELECT 'two' AS here;
";

/// A database of its own with a gateway before it.
struct Stand {
    gateway: Gateway,
    database: String,
}

impl Stand {
    /// `pool` is what stands in the braces of `pool`.
    fn new(pool: &str) -> Self {
        Self::with(pool, "", |_| SOURCE.address())
    }

    /// `more` stands in the section of the source; `host` may put something before the server.
    fn with(pool: &str, more: &str, host: impl FnOnce(&str) -> String) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let database = format!("pool{}", NEXT.fetch_add(1, Ordering::Relaxed));
        SOURCE.execute("postgres", &format!("CREATE DATABASE {database}"));
        SOURCE.execute(&database, SCHEMA);
        let host = host(&database);
        let toml = format!(
            r#"
[gateway]
listen = ["127.0.0.1:0"]
drain_timeout = "20s"
max_clients = 1000
[gateway.auth]
method = "trust"

[[source]]
name = "wire"
hosts = ["{host}"]
database = "{database}"
user = "{SUPERUSER}"
password_file = "{{dir}}/source-password"
tls = "disable"
access = [{{ users = ["visitor", "greedy", "modest", "writer"] }}]
pool = {{ {pool} }}
{more}

[http]
listen = "127.0.0.1:0"
"#
        );
        let setup = Setup::new(toml).file("source-password", SUPERUSER_PASSWORD);
        Self { gateway: Gateway::start(setup), database }
    }

    fn whom(&self, user: &str) -> Whom {
        Whom::new(self.gateway.address(), user, "", "wire")
    }

    fn visitor(&self) -> Raw {
        self.whom("visitor").connect().0
    }

    /// Straight to the source, read-only as the gateway pins it.
    fn direct(&self) -> Whom {
        let address = SocketAddr::from(([127, 0, 0, 1], SOURCE.port()));
        Whom::new(address, SUPERUSER, SUPERUSER_PASSWORD, &self.database).with("client_encoding", "UTF8")
    }

    /// By the source's own view.
    fn ask(&self, sql: &str) -> String {
        SOURCE.value(&self.database, sql).unwrap_or_default()
    }

    /// The processes of the pool's sessions for which `condition` holds.
    fn pids(&self, condition: &str) -> BTreeSet<String> {
        let sql = format!(
            "SELECT string_agg(pid::text, ' ') FROM pg_stat_activity WHERE datname = current_database() \
             AND (application_name = 'fedgate' OR application_name LIKE 'fedgate/%') AND ({condition})"
        );
        self.ask(&sql).split_whitespace().map(str::to_owned).collect()
    }

    /// The sum of the samples of this metric whose labels hold this.
    fn metric(&self, name: &str, label: &str) -> f64 {
        let (_, text) = self.gateway.get("/metrics");
        let lines = text.lines().filter(|line| line.starts_with(name) && line.contains(label));
        lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
    }

    /// Rewrites the configuration and waits until it is in force.
    fn reload(&self, from: &str, to: &str) {
        let mark = self.gateway.log_mark();
        let config = std::fs::read_to_string(self.gateway.config_file()).unwrap();
        assert!(config.contains(from), "{config}");
        std::fs::write(self.gateway.config_file(), config.replace(from, to)).unwrap();
        self.gateway.signal("HUP");
        self.gateway.wait_for_line_after(mark, "configuration reloaded");
    }

    /// The gateway ends by SIGTERM in order, and never panicked.
    fn end(self) {
        let log = self.gateway.stop();
        assert!(!log.contains("panicked"), "{log}");
    }
}

/// Waits until something holds that sends no event.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
    }
}

fn brief(messages: &[Message]) -> Vec<String> {
    messages.iter().map(Message::brief).collect()
}

fn full(messages: &[Message]) -> Vec<String> {
    messages.iter().map(Message::full).collect()
}

fn send_query(raw: &mut Raw, sql: &str) {
    raw.write(&frame(b'Q', format!("{sql}\0").as_bytes()));
}

/// The first row of a query as one text.
fn value(raw: &mut Raw, sql: &str) -> String {
    let answer = raw.query(sql);
    let row = answer.iter().find_map(|line| line.strip_prefix("D "));
    row.unwrap_or_else(|| panic!("{sql}: {answer:?}")).to_owned()
}

fn pid(raw: &mut Raw) -> String {
    value(raw, "SELECT pg_backend_pid()")
}

/// Messages of the notation, ` / ` between them.
fn send(raw: &mut Raw, notation: &str) {
    let bytes: Vec<u8> = notation.split(" / ").flat_map(message).collect();
    raw.write(&bytes);
}

/// Messages of the notation with a Sync or a Query at their end, and the answer.
fn ask(raw: &mut Raw, notation: &str) -> Vec<String> {
    send(raw, notation);
    brief(&raw.read_until(b"Z", 1))
}

fn reset(raw: Raw) {
    socket2::SockRef::from(raw.stream()).set_linger(Some(Duration::ZERO)).unwrap();
    drop(raw);
}

fn cancel(gateway: SocketAddr, pid: u32, secret: &[u8]) {
    use std::io::{Read, Write};
    let Ok(mut stream) = std::net::TcpStream::connect(gateway) else { return };
    let mut request = Vec::new();
    request.extend((12 + secret.len() as u32).to_be_bytes());
    request.extend(80_877_102u32.to_be_bytes());
    request.extend(pid.to_be_bytes());
    request.extend(secret);
    let _ = stream.write_all(&request);
    let _ = stream.set_read_timeout(Some(PATIENCE));
    // The server closes when it has dealt with it.
    let _ = stream.read(&mut [0; 8]);
}
