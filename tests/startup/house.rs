//! What the tests of the client's side are run against: one source for all of them, and gateways before it.
//!
//! Invariant: what must not leak has a value that stands nowhere else, so that it can be looked for.

// Each test program uses its own part of this.
#![allow(dead_code, reason = "each test crate uses its own part of this")]

use std::sync::OnceLock;

use crate::raw::Raw;
use crate::support::{Gateway, Options, Postgres, Setup};

/// The gateway's login at the source.
pub const UPSTREAM_USER: &str = "upstream_login_q7";
pub const UPSTREAM_PASSWORD: &str = "upstream-secret-Zk41";
/// The database there; clients know it as `climscore`.
pub const UPSTREAM_DATABASE: &str = "upstream_database_v3";

/// One server for all tests of this program; it goes when the program does.
pub fn source() -> &'static Postgres {
    static SOURCE: OnceLock<Postgres> = OnceLock::new();
    SOURCE.get_or_init(|| {
        let source = Postgres::start(Options::default());
        source.execute(
            "postgres",
            &format!("CREATE ROLE {UPSTREAM_USER} LOGIN PASSWORD '{UPSTREAM_PASSWORD}'"),
        );
        source.execute("postgres", &format!("CREATE DATABASE {UPSTREAM_DATABASE}"));
        source
    })
}

/// A configuration, part by part.
pub struct House {
    pub gateway: String,
    pub tls: String,
    pub auth: String,
    pub hosts: String,
    pub access: String,
    pub source: String,
    pub more: String,
}

impl House {
    /// Asks nobody; `visitor` may use `climscore`.
    pub fn trusting() -> Self {
        Self {
            gateway: String::new(),
            tls: String::new(),
            auth: "method = \"trust\"".to_owned(),
            hosts: String::new(),
            access: "[{ users = [\"visitor\"] }]".to_owned(),
            source: String::new(),
            more: String::new(),
        }
    }

    /// SCRAM against `users.txt`.
    pub fn scram() -> Self {
        Self { auth: "method = \"scram\"\nusers_file = \"{dir}/users.txt\"".to_owned(), ..Self::trusting() }
    }

    pub fn gateway(mut self, line: &str) -> Self {
        self.gateway.push_str(line);
        self.gateway.push('\n');
        self
    }

    /// Certificate and key are `server.crt` and `server.key`; these are further lines of the section.
    pub fn tls(mut self, lines: &str) -> Self {
        self.tls = format!(
            "[gateway.tls]\ncertificate = \"{{dir}}/server.crt\"\nprivate_key = \"{{dir}}/server.key\"\n{lines}\n"
        );
        self
    }

    pub fn access(mut self, rules: &str) -> Self {
        self.access = rules.to_owned();
        self
    }

    pub fn hosts(mut self, hosts: &str) -> Self {
        self.hosts = hosts.to_owned();
        self
    }

    /// Further lines of the source.
    pub fn source(mut self, line: &str) -> Self {
        self.source.push_str(line);
        self.source.push('\n');
        self
    }

    /// Further sections.
    pub fn more(mut self, text: &str) -> Self {
        self.more.push_str(text);
        self
    }

    pub fn toml(&self) -> String {
        let hosts = if self.hosts.is_empty() { source().address() } else { self.hosts.clone() };
        let tls =
            if self.source.lines().any(|line| line.starts_with("tls ")) { "" } else { "tls = \"disable\"" };
        format!(
            r#"
[gateway]
listen = ["127.0.0.1:0"]
{gateway}
{gateway_tls}
[gateway.auth]
{auth}

[[source]]
name = "climscore"
hosts = ["{hosts}"]
database = "{UPSTREAM_DATABASE}"
user = "{UPSTREAM_USER}"
password_file = "{{dir}}/source-password"
access = {access}
{tls}
{source}
{more}
[http]
listen = "127.0.0.1:0"
"#,
            gateway = self.gateway,
            gateway_tls = self.tls,
            auth = self.auth,
            access = self.access,
            source = self.source,
            more = self.more,
        )
    }

    pub fn setup(&self) -> Setup {
        Setup::new(self.toml()).file("source-password", UPSTREAM_PASSWORD)
    }

    pub fn start(&self) -> Gateway {
        Gateway::start(self.setup())
    }
}

/// Nothing that belongs to the source stands in what a client received, but for the parameter
/// `session_authorization`, which is the truth and which any client may ask the source for.
pub fn no_leak(raw: &Raw) {
    let text = String::from_utf8_lossy(&raw.received)
        .replace(&format!("session_authorization\0{UPSTREAM_USER}"), "");
    for secret in [UPSTREAM_USER, UPSTREAM_PASSWORD, UPSTREAM_DATABASE, &source().port().to_string()] {
        assert!(!text.contains(secret), "{secret} in what a client received: {text}");
    }
}

/// Ends the gateway in order and looks at its log: nothing panicked, and no secret stands in it.
pub fn ends_well(gateway: Gateway) -> String {
    let (status, metrics) = gateway.get("/metrics");
    assert_eq!(status, 200);
    let panics: Vec<&str> = metrics.lines().filter(|line| line.starts_with("fedgate_panics_total")).collect();
    assert_eq!(panics, ["fedgate_panics_total 0"]);
    let log = gateway.stop();
    assert!(!log.contains("panicked"), "{log}");
    assert!(!log.contains(UPSTREAM_PASSWORD), "{log}");
    log
}
