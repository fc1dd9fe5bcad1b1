//! A source, a network and a gateway, and what is counted of them.
//!
//! Invariant: a house stands still again after a fault exactly as it stood before it: sessions at the source, open files
//! of the gateway and its own gauges.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use crate::load::{Door, Habits, Load, PATIENCE};
use crate::support::{FaultProxy, Gateway, Options, Postgres, Setup, http_get};

pub const USER: &str = "reader";
pub const PASSWORD: &str = "a password of a client";
const ROLE_PASSWORD: &str = "a password of the gateway";
/// What clients name as their database.
pub const SOURCE: &str = "rows";

/// Sessions of a pool that clients share, unless a plan says otherwise: enough for every load here.
const POOL: usize = 20;
/// Of the plans that say otherwise.
const MOST: usize = 80;

/// Pool modes that every case runs in. A mode that is built is added here, and nowhere else.
pub const MODES: &[&str] = &["session", "transaction"];

/// What a case wants of its house.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Lines for `[gateway]`.
    pub gateway: &'static str,
    /// Lines for the source.
    pub source: &'static str,
    /// Whole sections.
    pub sections: &'static str,
    /// Keys of `pool` beside its mode.
    pub pool: &'static str,
}

impl Plan {
    pub const PLAIN: Self = Self { gateway: "", source: "", sections: "", pool: "" };
}

/// What must be as before once nobody is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gauges {
    sessions: usize,
    /// But for the sockets of sessions that wait at the source for the next client.
    files: usize,
    metrics: Vec<String>,
}

pub struct House {
    /// `None` where it is shared with other houses.
    pub own: Option<Postgres>,
    shared: Option<Arc<Postgres>>,
    pub proxy: FaultProxy,
    pub gateway: Gateway,
    /// The gateway's login at the source, this house's alone.
    pub role: String,
    pub mode: &'static str,
    pub door: Door,
    pub before: Gauges,
}

/// The server of all cases that leave it alone; it goes with the last of them.
pub fn shared() -> Arc<Postgres> {
    static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(server());
        *shared = Arc::downgrade(&server);
        server
    })
}

fn server() -> Postgres {
    Postgres::start(
        Options::default().setting("log_statement", "none").setting("log_min_duration_statement", "-1"),
    )
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// A configuration for a source behind `hosts`.
pub fn setup(hosts: &str, role: &str, mode: &str, plan: Plan) -> Setup {
    let Plan { gateway, source, sections, pool } = plan;
    let pool = if pool.is_empty() { format!(", size = {POOL}") } else { pool.to_owned() };
    let drain = if gateway.contains("drain_timeout") { "" } else { "drain_timeout = \"10s\"" };
    let toml = format!(
        r#"
[gateway]
listen = ["127.0.0.1:0"]
{drain}
{gateway}
[gateway.auth]
method = "scram"
users_file = "{{dir}}/users.txt"

[[source]]
name = "{SOURCE}"
hosts = ["{hosts}"]
database = "postgres"
user = "{role}"
password_file = "{{dir}}/source-password"
tls = "disable"
access = [{{ users = ["{USER}"] }}]
pool = {{ mode = "{mode}"{pool} }}
{source}

[http]
listen = "127.0.0.1:0"

{sections}
"#
    );
    Setup::new(toml).file("source-password", ROLE_PASSWORD).users(&[(USER, PASSWORD)])
}

impl House {
    /// With a server of its own, or at one that other houses use, too.
    pub fn build(
        shared: Option<&Arc<Postgres>>,
        mode: &'static str,
        plan: Plan,
        more: impl FnOnce(Setup) -> Setup,
    ) -> Self {
        Self::build_with(shared, mode, plan, None, more)
    }

    /// As `build`; clients come with TLS.
    pub fn build_with(
        shared: Option<&Arc<Postgres>>,
        mode: &'static str,
        plan: Plan,
        tls: Option<Arc<ClientConfig>>,
        more: impl FnOnce(Setup) -> Setup,
    ) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let own = shared.is_none().then(server);
        let shared = shared.cloned();
        let source = own.as_ref().or(shared.as_deref()).expect("one of them");
        let role = format!("gateway_{}", NEXT.fetch_add(1, Ordering::Relaxed));
        source.execute("postgres", &format!("CREATE ROLE {role} LOGIN PASSWORD '{ROLE_PASSWORD}'"));
        let proxy = FaultProxy::start(loopback(source.port()));
        let gateway = Gateway::start(more(setup(&proxy.address(), &role, mode, plan)));
        let door = Door { address: gateway.address(), user: USER, password: PASSWORD, database: SOURCE, tls };
        let before = Gauges { sessions: 0, files: 0, metrics: Vec::new() };
        let mut house = Self { own, shared, proxy, gateway, role, mode, door, before };
        // Whatever is made once, by the first who comes, is made before anybody counts.
        for _ in 0..2 {
            house.read_one(PATIENCE);
        }
        house.count_anew();
        house
    }

    pub fn source(&self) -> &Postgres {
        self.own.as_ref().or(self.shared.as_deref()).expect("one of them")
    }

    /// The server, where it may be killed.
    pub fn own(&mut self) -> &mut Postgres {
        self.own.as_mut().expect("the case asks for a server of its own")
    }

    /// After the server was started again.
    pub fn found_again(&self) {
        self.proxy.target(loopback(self.source().port()));
    }

    pub fn load(&self, habits: Habits) -> Load {
        Load::start(&self.door, habits)
    }

    /// Waits until a new client's read succeeds.
    pub fn read_one(&self, within: Duration) {
        let deadline = Instant::now() + within;
        crate::support::blocking(async {
            loop {
                let last = match self.door.open().await {
                    Ok(session) => match session.client.simple_query("SELECT 1").await {
                        Ok(_) => return session.end().await,
                        Err(error) => format!("{error:?}"),
                    },
                    Err(trouble) => format!("{trouble:?}"),
                };
                assert!(Instant::now() < deadline, "no read within {within:?}: {last}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    /// Sessions that the gateway has for clients at the source.
    pub fn sessions(&self) -> usize {
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = '{}' AND application_name LIKE 'fedgate/%'",
            self.role
        );
        self.source().value("postgres", &sql).and_then(|count| count.parse().ok()).expect("a count")
    }

    /// Sessions that may wait at the source for the next client: none where each client has its own.
    fn kept(&self) -> usize {
        if self.mode == "session" { 0 } else { MOST }
    }

    /// The value of one metric; labels as they stand in the text.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = http_get(self.gateway.http(), "/metrics").expect("metrics");
        let line =
            text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or_default()
    }

    /// Until a metric has this value.
    pub fn wait_for_metric(&self, name: &str, value: f64) {
        self.wait_until_metric(name, |now| now == value);
    }

    pub fn wait_until_metric(&self, name: &str, reached: impl Fn(f64) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !reached(self.metric(name)) {
            assert!(Instant::now() < deadline, "{name} stays at {}", self.metric(name));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// From now on this is how it was before anybody came.
    pub fn count_anew(&mut self) {
        self.before = self.calm();
    }

    fn gauges(&self) -> Gauges {
        let (_, text) = http_get(self.gateway.http(), "/metrics").expect("metrics");
        let gauges =
            ["fedgate_upstream_connections{", "fedgate_client_connections ", "fedgate_panics_total "];
        let (idle, metrics): (Vec<_>, Vec<_>) = text
            .lines()
            .filter(|line| gauges.iter().any(|gauge| line.starts_with(gauge)))
            .partition(|line| line.contains("state=\"idle\""));
        let metrics = metrics.into_iter().map(str::to_owned).collect();
        let idle =
            idle.iter().filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum::<usize>();
        assert!(idle <= MOST, "{idle} idle sessions");
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.gateway.pid())).expect("its files").count();
        let files = files.saturating_sub(idle);
        Gauges { sessions: self.sessions(), files, metrics }
    }

    /// The gauges once they stay the same: what was asked for has gone.
    fn calm(&self) -> Gauges {
        let deadline = Instant::now() + PATIENCE;
        let mut last = self.gauges();
        let mut same = 0;
        while same < 5 || last.sessions > self.kept() {
            assert!(Instant::now() < deadline, "the gateway does not come to rest: {last:?}");
            std::thread::sleep(Duration::from_millis(10));
            let now = self.gauges();
            same = if now == last { same + 1 } else { 0 };
            last = now;
        }
        last
    }

    /// Waits until everything is as it was before anybody came.
    pub fn settles(&self) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.gauges();
            let kept = now.files <= self.before.files
                && now.sessions <= self.before.sessions + self.kept()
                && now.metrics == self.before.metrics;
            if kept {
                return;
            }
            assert!(Instant::now() < deadline, "something is left:\nbefore {:?}\nnow {now:?}", self.before);
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM, exit code 0, and no defect in the log.
    pub fn end(self) {
        let log = self.gateway.stop();
        assert!(!log.contains("panicked"), "{log}");
    }
}
