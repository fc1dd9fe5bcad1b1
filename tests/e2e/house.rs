//! The parts of the whole loop, each of them real, and the wires between them: PostgreSQL, the gateway, OPA, Trino.
//!
//! Invariant: the parts know each other by the configuration that an operator would write, and by nothing else; a
//! cut wire is cut there.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::opa::Opa;
use super::support::{
    Gateway, Postgres, READER_PASSWORD, SUPERUSER, SUPERUSER_PASSWORD, Setup, http_request,
};
use super::trino::{Failed, Rows, Trino, access_control, catalog};

pub const TRINO_PASSWORD: &str = "the password of Trino";
/// What OPA shows the gateway.
pub const OPA_TOKEN: &str = "the token of OPA";
/// The key of the catalog's pushes.
pub const SECRET: &str = "the key of the pushes";
/// How long is waited for what has to come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A source of the gateway, of the name of its database and of its catalog in Trino.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    pub name: &'static str,
    /// The gateway logs in there as the superuser, so that no role stands in the way of a write.
    pub superuser: bool,
    /// Trino may write there, says the gateway.
    pub opened: bool,
}

/// What differs between configurations of the gateway.
#[derive(Clone, Debug, Default)]
pub struct Shape {
    pub sources: Vec<Source>,
    /// Lines of `[opa]`.
    pub opa: String,
    /// Lines of `[sync]`.
    pub sync: String,
    /// `[sync.catalog]` and its lines.
    pub catalog: String,
}

impl Shape {
    fn toml(&self, source: &Postgres) -> String {
        let mut sources = String::new();
        for Source { name, superuser, opened } in &self.sources {
            let login = if *superuser { SUPERUSER } else { "akko_readonly" };
            let opened = if *opened { "read_only = false\nwriters = [\"trino\"]\n" } else { "" };
            sources.push_str(&format!(
                "[[source]]\nname = \"{name}\"\nhosts = [\"{}\"]\ndatabase = \"{name}\"\nuser = \"{login}\"\n\
                 password_file = \"{{dir}}/{login}.password\"\ntls = \"disable\"\n\
                 access = [{{ users = [\"trino\"], cidr = [\"127.0.0.0/8\"] }}]\n\
                 engine = {{ users = [\"trino\"], comment = \"fedgate query=$QUERY_ID user=$USER\" }}\n{opened}\n",
                source.address()
            ));
        }
        let Self { opa, sync, catalog, .. } = self;
        format!(
            r#"
[gateway]
listen = ["127.0.0.1:0"]
drain_timeout = "1s"
[gateway.auth]
method = "scram"
users_file = "{{dir}}/users.txt"

{sources}
[http]
listen = "127.0.0.1:0"

[document]
kind = "file"
path = "{{dir}}/policy.json"

[audit]
kind = "file"
path = "{{dir}}/audit.jsonl"
spool = "{{dir}}/spool"

[opa]
token_file = "{{dir}}/opa.token"
store = "{{dir}}/kept.tar.gz"
{opa}

[sync]
admin_subjects = ["admin"]
webhook_secret_file = "{{dir}}/webhook.secret"
history = "{{dir}}/history"
{sync}

[sync.tag_to_mask]
"PII.Sensitive" = "sha256"

{catalog}
"#
        )
    }

    /// With these files, the policy document among them.
    pub fn setup<const N: usize>(&self, source: &Postgres, files: [(&str, String); N]) -> Setup {
        let setup = Setup::new(self.toml(source))
            .users(&[("trino", TRINO_PASSWORD)])
            .file(&format!("{SUPERUSER}.password"), SUPERUSER_PASSWORD)
            .file("akko_readonly.password", READER_PASSWORD)
            .file("opa.token", OPA_TOKEN)
            .file("webhook.secret", SECRET);
        files.into_iter().fold(setup, |setup, (name, text)| setup.file(name, text))
    }
}

/// A port of loopback that nobody else is given while this lives, and that OPA after OPA can listen on: the one that
/// holds it never listens, and both sides allow the address to be used again.
struct Reserved(socket2::Socket);

impl Reserved {
    fn new() -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        Self(socket)
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap().as_socket().unwrap()
    }
}

/// The house as a whole.
pub struct House {
    pub source: Postgres,
    pub gateway: Gateway,
    reserved: Reserved,
    opa: RefCell<Option<Opa>>,
    trino: RefCell<Option<Trino>>,
    shape: Shape,
    /// Lets OPAs keep their token when the gateway's changes.
    tokens: tempfile::TempDir,
}

impl House {
    /// Everything but Trino and OPA.
    pub fn build<const N: usize>(source: Postgres, shape: Shape, files: [(&str, String); N]) -> Self {
        let gateway = Gateway::start(shape.setup(&source, files));
        let tokens = tempfile::tempdir().unwrap();
        Self {
            source,
            gateway,
            reserved: Reserved::new(),
            opa: RefCell::default(),
            trino: RefCell::default(),
            shape,
            tokens,
        }
    }

    /// An OPA, in the place of the one before, that asks this gateway and shows this token.
    pub fn start_opa(&self, gateway: &Gateway, token: &str) {
        // Its port is wanted.
        self.opa.take();
        let file: PathBuf = self.tokens.path().join("opa.token");
        std::fs::write(&file, token).unwrap();
        let address = self.reserved.address().to_string();
        let opa = Opa::listening(&file, &gateway.http().to_string(), "e2e", "", &address);
        if token == OPA_TOKEN {
            self.until("OPA has the bundle", || opa.loaded());
        }
        self.opa.replace(Some(opa));
    }

    /// The mask that OPA tells of `climscore.public.customers.email`.
    pub fn opa_masks(&self, user: &str) -> Option<String> {
        self.opa.borrow().as_ref().unwrap().mask(user)
    }

    /// A Trino, in the place of the one before, with all sources as its catalogs.
    pub fn start_trino(&self, masks: bool, more: &str) {
        self.trino.take();
        let mut files = vec![access_control(&self.reserved.address(), masks)];
        for source in &self.shape.sources {
            let (name, text) = catalog(source.name, self.gateway.port(), TRINO_PASSWORD);
            files.push((name, text + more));
        }
        self.trino.replace(Some(Trino::start(files)));
    }

    pub fn rows(&self, user: &str, sql: &str) -> Result<Rows, Failed> {
        self.trino.borrow().as_ref().unwrap().rows(user, sql)
    }

    /// Has the gateway take up another configuration, and waits until its loop is as that says.
    pub fn reconfigure(&self, shape: &Shape) {
        let folder = self.gateway.folder().display().to_string();
        let text = shape.toml(&self.source).replace("{dir}", &folder);
        let mark = self.gateway.log_mark();
        // Whole, since the gateway looks at its files by itself, too.
        let beside = self.gateway.folder().join("fedgate.new");
        std::fs::write(&beside, text).unwrap();
        std::fs::rename(beside, self.gateway.config_file()).unwrap();
        self.gateway.signal("HUP");
        self.gateway.wait_for_line_after(mark, "configuration reloaded");
        if shape.sync.contains("enabled = true") {
            self.gateway.wait_for_line_after(mark, "the sync loop begins");
            self.until("the first run", || !self.status()["last_run"].is_null());
        } else {
            self.until("the loop is off", || self.status()["enabled"] == false);
        }
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.gateway.get("/api/v1/status").1).unwrap()
    }

    pub fn enforcement(&self) -> Value {
        serde_json::from_str(&self.gateway.get("/api/v1/enforcement").1).unwrap()
    }

    /// Of the gateway.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, metrics) = self.gateway.get("/metrics");
        let line =
            metrics.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("no {name}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Sends a push; the status of the answer.
    pub fn push(&self, (signature, body): &(String, String)) -> u16 {
        let headers = [("X-OM-Signature", signature.as_str()), ("Content-Type", "application/json")];
        http_request(self.gateway.http(), "POST", "/hooks/openmetadata", &headers, body).unwrap().0
    }

    /// Waits until it holds.
    pub fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < PATIENCE, "never: {what}\n{:#}", self.enforcement());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends everything but the source.
    pub fn end(self) -> (Postgres, String) {
        self.trino.take();
        self.opa.take();
        (self.source, self.gateway.stop())
    }
}
