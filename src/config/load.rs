//! From a text to a [`Config`], with everything that is wrong with it said at once.
//!
//! Invariant: a `Config` comes out only of a text without a single problem; a key of a later
//! version is a problem, never ignored.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use toml::de::DeTable;
use tracing::level_filters::LevelFilter;

use crate::config::raw::{Found, Problem, Reader, Section, quoted};
use crate::config::users::{Users, check_user_name};
use crate::config::{
    AccessRule, Auth, Config, Engine, Gateway, GatewayTls, Host, Http, Limits, LogFormat, Scheduler,
    SecretFile, Source, SourceLogin, SourceTls, TlsMode,
};
use crate::ids::{ClientUser, SourceName};

/// Longest configuration file, in bytes.
const FILE_LIMIT: u64 = 4 << 20;
/// Longest certificate or key file, in bytes.
const PEM_LIMIT: u64 = 1 << 20;
/// PostgreSQL's own bound on a name (NAMEDATALEN - 1).
const NAME_LIMIT: usize = 63;
/// The longest path that a socket's address holds (`sun_path` less its NUL).
const SOCKET_PATH_LIMIT: usize = 107;
const POSTGRES_PORT: u16 = 5432;

const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Why a configuration cannot be used: everything that is wrong with it.
#[derive(Debug)]
pub struct ConfigError {
    /// Absent for a text that came from no file.
    pub file: Option<PathBuf>,
    /// In the order of the text; never empty.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    /// A line for each problem: `file:line: key: what is wrong`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match (&self.file, problem.line) {
                (Some(file), Some(line)) => write!(f, "{}:{line}: ", file.display())?,
                (Some(file), None) => write!(f, "{}: ", file.display())?,
                (None, Some(line)) => write!(f, "line {line}: ")?,
                (None, None) => {}
            }
            if !problem.key.is_empty() {
                write!(f, "{}: ", problem.key)?;
            }
            f.write_str(&problem.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl ConfigError {
    fn whole(message: String) -> Self {
        Self { file: None, problems: vec![Problem { key: String::new(), line: None, message }] }
    }
}

impl Config {
    /// Reads a file; relative paths in it are taken from its folder.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let named = |mut error: ConfigError| {
            error.file = Some(path.to_owned());
            error
        };
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(FILE_LIMIT + 1).read_to_end(&mut bytes))
            .map_err(|error| named(ConfigError::whole(format!("cannot be read: {error}"))))?;
        if bytes.len() as u64 > FILE_LIMIT {
            return Err(named(ConfigError::whole(format!("is longer than {FILE_LIMIT} bytes"))));
        }
        let text = String::from_utf8(bytes)
            .map_err(|_| named(ConfigError::whole("is not UTF-8 text".to_owned())))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, folder).map_err(named)
    }

    /// Reads a text; relative paths in it are taken from `base`. The files that it names (users,
    /// secrets, certificates) are looked at, and nothing else is.
    pub fn parse(text: &str, base: &Path) -> Result<Self, ConfigError> {
        let reader = Reader::new(text);
        let (document, errors) = DeTable::parse_recoverable(text);
        if !errors.is_empty() {
            let problems = errors
                .iter()
                .map(|error| Problem {
                    key: String::new(),
                    line: error.span().map(|span| reader.line(span.start)),
                    message: error.message().lines().collect::<Vec<_>>().join("; "),
                })
                .collect();
            return Err(ConfigError { file: None, problems });
        }
        let config = Loader { base, host_network: false }.config(Section::root(&reader, document.get_ref()));
        let failed = reader.failed();
        match config {
            Some(config) if !failed => Ok(config),
            _ => {
                let problems = reader.into_problems();
                if problems.is_empty() {
                    return Err(ConfigError::whole("cannot be used".to_owned()));
                }
                Err(ConfigError { file: None, problems })
            }
        }
    }
}

/// What the parts need to know of the whole.
struct Loader<'b> {
    base: &'b Path,
    /// Loopback is then the node's, which others share.
    host_network: bool,
}

/// What a source has to know of the gateway.
#[derive(Clone, Copy)]
struct Context {
    client_certificates: bool,
}

impl Loader<'_> {
    /// None only after a problem was noted.
    fn config(mut self, mut root: Section<'_, '_>) -> Option<Config> {
        self.host_network = root.boolean_or("fedgate_host_network", false);
        let mut context = Context { client_certificates: false };
        let gateway = match root.section("gateway") {
            Some(section) => self.gateway(section, &mut context),
            None => {
                if !root.has("gateway") {
                    root.missing("gateway", "write a [gateway] section with listen and auth");
                }
                None
            }
        };
        let sources = self.sources(&mut root, context);
        let http = root.section("http").and_then(|section| self.http(section));
        let (log, log_level) = log(&mut root);

        root.unsupported("document");
        root.unsupported("audit");
        root.unsupported("policy");
        root.unsupported("workload");
        sync(&mut root);
        root.finish();

        Some(Config { gateway: gateway?, sources, http, log, log_level })
    }

    fn gateway(&self, mut section: Section<'_, '_>, context: &mut Context) -> Option<Gateway> {
        let listen = self.listen(&mut section);
        let max_clients = section.count("max_clients", 10_000, 1, 1_000_000);
        let drain_timeout = section.duration("drain_timeout", Duration::from_secs(30), Duration::ZERO, DAY);
        let startup_timeout = section.duration(
            "startup_timeout",
            Duration::from_secs(10),
            SECOND / 10,
            Duration::from_secs(600),
        );
        let write_timeout = section.duration("write_timeout", Duration::from_secs(600), SECOND / 10, DAY);
        let had_tls = section.has("tls");
        let tls = section.section("tls").and_then(|tls| self.gateway_tls(tls));
        // A section that is wrong in itself is reported once, not again by each rule that needs it.
        context.client_certificates = tls.as_ref().map_or(had_tls, |tls| tls.client_ca.is_some());
        let auth = match section.section("auth") {
            Some(auth) => self.auth(auth, &listen),
            None => {
                if !section.has("auth") {
                    section.missing("auth", "write [gateway.auth] with method = \"scram\" and users_file");
                }
                None
            }
        };
        let limits = section.section("limits").map(limits).unwrap_or_default();
        let scheduler = section
            .word(
                "scheduler",
                &[("per-core", Scheduler::PerCore), ("work-stealing", Scheduler::WorkStealing)],
            )
            .map_or(Scheduler::PerCore, |found| found.value);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let worker_threads = section.count("worker_threads", cores, 1, 1024);
        section.finish();
        Some(Gateway {
            listen: listen.into_iter().map(|found| found.value).collect(),
            max_clients,
            drain_timeout,
            startup_timeout,
            write_timeout,
            tls,
            auth: auth?,
            limits,
            scheduler,
            worker_threads,
        })
    }

    fn listen(&self, section: &mut Section<'_, '_>) -> Vec<Found<SocketAddr>> {
        if !section.has("listen") {
            section.missing("listen", "write listen = [\"127.0.0.1:15432\"]");
        }
        let Some(texts) = section.texts("listen") else { return Vec::new() };
        if texts.value.is_empty() {
            section.problem("listen", "must name at least one address");
        }
        let mut seen = HashSet::new();
        texts
            .value
            .into_iter()
            .filter_map(|text| {
                let address = socket_address(section.reader, &text)?;
                // Port 0 asks for any free one, and may be asked for twice.
                if address.port() != 0 && !seen.insert(address) {
                    section.reader.problem(&text.place, "is listed twice");
                }
                Some(Found { value: address, place: text.place })
            })
            .collect()
    }

    fn gateway_tls(&self, mut section: Section<'_, '_>) -> Option<GatewayTls> {
        let mut file = |key, what| {
            if !section.has(key) {
                section.missing(key, what);
            }
            section.path_of_file(key, self.base)
        };
        let certificate = file("certificate", "the PEM file of the certificate and its chain");
        let private_key = file("private_key", "the PEM file of the certificate's key");
        let chain = certificate.as_ref().and_then(|found| certificates(section.reader, found));
        let key = private_key.as_ref().and_then(|found| private_key_of(section.reader, found));
        if let (Some(chain), Some(key), Some(found)) = (chain, key, &private_key)
            && let Err(reason) = matching(chain, key)
        {
            section.reader.problem(&found.place, reason);
        }
        let client_ca = section.path_of_file("client_ca", self.base);
        if let Some(found) = &client_ca {
            certificates(section.reader, found);
        }
        let required = section.boolean_or("required", false);
        section.finish();
        Some(GatewayTls {
            certificate: certificate?.value,
            private_key: private_key?.value,
            client_ca: client_ca.map(|found| found.value),
            required,
        })
    }

    fn auth(&self, mut section: Section<'_, '_>, listen: &[Found<SocketAddr>]) -> Option<Auth> {
        #[derive(Clone, Copy)]
        enum Method {
            Scram,
            Relay,
            Trust,
        }
        for key in ["jwks_file", "jwks_url", "issuer", "audience"] {
            section.unsupported(key);
        }
        if !section.has("method") {
            section.missing("method", "one of scram, relay, trust");
        }
        let method = section
            .word("method", &[("scram", Method::Scram), ("relay", Method::Relay), ("trust", Method::Trust)]);
        let users_file = section.path_of_file("users_file", self.base);
        let auth = match method.map(|found| found.value) {
            None => None,
            Some(Method::Scram) => match users_file {
                Some(found) => {
                    if let Err(error) = Users::load(&found.value) {
                        section.reader.problem(&found.place, format!("cannot be used: {error}"));
                    }
                    Some(Auth::Scram { users_file: found.value })
                }
                None => {
                    if !section.has("users_file") {
                        section.missing("users_file", "scram needs the file with the users' verifiers");
                    }
                    None
                }
            },
            Some(method @ (Method::Relay | Method::Trust)) => {
                if users_file.is_some() {
                    section.problem("users_file", "is only read with method = \"scram\"");
                }
                if matches!(method, Method::Trust) {
                    self.loopback_only("trust", listen, &section);
                    Some(Auth::Trust)
                } else {
                    Some(Auth::Relay)
                }
            }
        };
        section.finish();
        auth
    }

    /// Without authentication, only whoever is on this machine may come near.
    fn loopback_only(&self, what: &str, listen: &[Found<SocketAddr>], section: &Section<'_, '_>) {
        if self.host_network {
            section.problem(
                "method",
                format!("{what} lets everybody in, and with fedgate_host_network = true the node's loopback is not only ours"),
            );
        }
        for address in listen {
            if !address.value.ip().to_canonical().is_loopback() {
                section.reader.problem(
                    &address.place,
                    format!("{} is not a loopback address, and gateway.auth.method = \"{what}\" lets everybody in", address.value),
                );
            }
        }
    }

    fn http(&self, mut section: Section<'_, '_>) -> Option<Http> {
        if !section.has("listen") {
            section.missing("listen", "write listen = \"127.0.0.1:8080\"");
        }
        let text = section.text("listen");
        let listen = text.as_ref().and_then(|text| socket_address(section.reader, text));
        if section.has("auth") {
            // A table is how tokens will be configured; the only word is "none".
            if section.is_table("auth") {
                section.problem("auth", "is not supported by this version");
            } else {
                section.word("auth", &[("none", ())]);
            }
        }
        if let (Some(address), Some(text)) = (listen, &text) {
            if !address.ip().to_canonical().is_loopback() {
                section.reader.problem(
                    &text.place,
                    format!("{address} is not a loopback address, and this version asks nobody who they are on HTTP"),
                );
            }
            if self.host_network {
                section.reader.problem(
                    &text.place,
                    "HTTP asks nobody who they are, and with fedgate_host_network = true the node's loopback is not only ours",
                );
            }
        }
        section.finish();
        Some(Http { listen: listen? })
    }

    fn sources(&self, root: &mut Section<'_, '_>, context: Context) -> Vec<Arc<Source>> {
        if !root.has("source") {
            root.missing("source", "write a [[source]] for each database that clients may read");
        }
        let (mut names, mut catalogs) = (HashSet::new(), HashSet::new());
        let mut sources = Vec::new();
        for section in root.sections("source") {
            let (name_place, catalog_place) = (section.place_of("name"), section.place_of("trino_catalog"));
            let reader = section.reader;
            let Some(source) = self.source(section, context) else { continue };
            if !names.insert(source.name.clone()) {
                reader.problem(&name_place, format!("{} names two sources", quoted(source.name.as_str())));
            } else if !catalogs.insert(source.trino_catalog.clone()) {
                reader.problem(
                    &catalog_place,
                    format!("{} is the Trino catalog of two sources", quoted(&source.trino_catalog)),
                );
            }
            sources.push(Arc::new(source));
        }
        sources
    }

    fn source(&self, mut section: Section<'_, '_>, context: Context) -> Option<Source> {
        let name = required_name(&mut section, "name", "what clients ask for as their database");
        let hosts = hosts(&mut section);
        let database = required_name(&mut section, "database", "the database's name at the source");
        let user = required_name(&mut section, "user", "the gateway's login at the source");
        let password = section.path_of_file("password_file", self.base).map(|found| {
            let file = SecretFile::new(found.value);
            match file.read() {
                Ok(secret) if secret.expose().is_empty() => {
                    section.reader.problem(&found.place, format!("{} is empty", file.path().display()));
                }
                Ok(secret) if secret.expose().contains(['\0', '\n']) => section
                    .reader
                    .problem(&found.place, format!("{} holds more than one line", file.path().display())),
                Ok(_) => {}
                Err(error) => section
                    .reader
                    .problem(&found.place, format!("{} cannot be read: {error}", file.path().display())),
            }
            file
        });
        if section.has("password") {
            section.problem("password", "secrets do not stand in this file; write password_file");
        }
        let mode = section
            .word(
                "tls",
                &[
                    ("disable", TlsMode::Disable),
                    ("prefer", TlsMode::Prefer),
                    ("require", TlsMode::Require),
                    ("verify-ca", TlsMode::VerifyCa),
                    ("verify-full", TlsMode::VerifyFull),
                ],
            )
            .map_or(TlsMode::Prefer, |found| found.value);
        let ca = section.path_of_file("tls_ca", self.base);
        if let Some(found) = &ca {
            certificates(section.reader, found);
            if matches!(mode, TlsMode::Disable | TlsMode::Prefer) {
                section.problem("tls_ca", "is only looked at with tls = \"require\" or \"verify-…\"");
            }
        }
        let read_only = section.boolean_or("read_only", true);
        let writers = users(&mut section, "writers", 0);
        if read_only && !writers.is_empty() {
            section.problem("writers", "nobody can write to a source with read_only = true");
        }
        let trino_catalog = match section.has("trino_catalog") {
            true => required_name(&mut section, "trino_catalog", "what Trino calls the source"),
            false => name.clone(),
        };
        let access: Vec<_> =
            section.sections("access").into_iter().map(|rule| access(rule, context)).collect();
        let engine = section.section("engine").map(|engine| engine_section(engine, &access));
        pool(&mut section);
        section.word("on_drift", &[("alarm", true), ("refuse", false)]).into_iter().for_each(|found| {
            if !found.value {
                section.reader.problem(&found.place, "\"refuse\" is not supported by this version");
            }
        });
        let limit = Duration::from_millis(i32::MAX as u64);
        let statement_timeout =
            section.duration("statement_timeout", Duration::from_secs(600), Duration::ZERO, limit);
        let idle_in_transaction_timeout =
            section.duration("idle_in_transaction_timeout", Duration::ZERO, Duration::ZERO, limit);
        let connect_timeout = section.duration(
            "connect_timeout",
            Duration::from_secs(5),
            SECOND / 10,
            Duration::from_secs(600),
        );
        let catalogue_refresh = section.duration("catalogue_refresh", Duration::from_secs(60), SECOND, DAY);
        section.finish();
        Some(Source {
            name: SourceName::new(name?),
            hosts,
            database: database?,
            login: SourceLogin { user: user?, password },
            tls: SourceTls { mode, ca: ca.map(|found| found.value) },
            read_only,
            writers,
            trino_catalog: trino_catalog?,
            access: access.into_iter().map(|rule| rule.value).collect(),
            engine: match engine {
                Some(engine) => Some(engine?),
                None => None,
            },
            statement_timeout,
            idle_in_transaction_timeout,
            connect_timeout,
            catalogue_refresh,
        })
    }
}

fn log(root: &mut Section<'_, '_>) -> (LogFormat, LevelFilter) {
    let (mut format, mut level) = (LogFormat::Text, LevelFilter::INFO);
    if let Some(mut section) = root.section("log") {
        if let Some(found) = section.word("format", &[("text", LogFormat::Text), ("json", LogFormat::Json)]) {
            format = found.value;
        }
        let levels = [
            ("error", LevelFilter::ERROR),
            ("warn", LevelFilter::WARN),
            ("info", LevelFilter::INFO),
            ("debug", LevelFilter::DEBUG),
            ("trace", LevelFilter::TRACE),
        ];
        if let Some(found) = section.word("level", &levels) {
            level = found.value;
        }
        section.finish();
    }
    (format, level)
}

/// `[sync] enabled = false` by itself says what is the case; all else is of a later version.
fn sync(root: &mut Section<'_, '_>) {
    let Some(mut section) = root.section("sync") else { return };
    if section.boolean_or("enabled", false) {
        section.problem("enabled", "is not supported by this version");
    }
    for key in section.keys() {
        if key != "enabled" {
            section.problem(&key, "is not supported by this version");
        }
    }
}

fn limits(mut section: Section<'_, '_>) -> Limits {
    let default = Limits::default();
    let statement = section.size("statement_bytes", default.statement_bytes, 1 << 10, 16 << 20);
    let message = section.size("message_bytes", default.message_bytes, 64 << 10, 1 << 30);
    if statement.value > message.value {
        section.reader.problem(&statement.place, "must not be more than message_bytes");
    }
    let statement_weight = section.count("statement_weight", default.statement_weight, 1_000, 1 << 20);
    // No more than the stack is sized for.
    let statement_depth = section.count("statement_depth", default.statement_depth, 10, 100);
    let prepared_statements = section.count("prepared_statements", default.prepared_statements, 1, 1_000_000);
    let pipeline = section.count("pipeline", default.pipeline, 1, 1_000_000);
    section.finish();
    Limits {
        statement_bytes: statement.value,
        statement_weight,
        statement_depth,
        message_bytes: message.value,
        prepared_statements,
        pipeline,
    }
}

/// Only what session mode is by itself; sizes belong to the pool of a later version.
fn pool(section: &mut Section<'_, '_>) {
    let Some(mut pool) = section.section("pool") else { return };
    if let Some(found) = pool.word("mode", &[("session", true), ("transaction", false)])
        && !found.value
    {
        pool.reader.problem(&found.place, "\"transaction\" is not supported by this version");
    }
    for key in ["size", "min_idle", "wait"] {
        pool.unsupported(key);
    }
    pool.finish();
}

fn access(mut section: Section<'_, '_>, context: Context) -> Found<AccessRule> {
    if !section.has("users") {
        section.missing("users", "the client users that this rule lets in");
    }
    let users = users(&mut section, "users", 1);
    let cidr = section.texts("cidr").map(|texts| networks(section.reader, texts)).unwrap_or_default();
    let certificate = section.boolean_or("certificate", false);
    if certificate && !context.client_certificates {
        section.problem("certificate", "can never be met: [gateway.tls] names no client_ca");
    }
    let place = section.place.clone();
    section.finish();
    Found { value: AccessRule { users, cidr, certificate }, place }
}

/// None only after a problem was noted.
fn engine_section(mut section: Section<'_, '_>, access: &[Found<AccessRule>]) -> Option<Engine> {
    if !section.has("users") {
        section.missing("users", "the client users that are query engines");
    }
    let users = users(&mut section, "users", 1);
    for user in &users {
        let mut rules = access.iter().filter(|rule| rule.value.users.contains(user)).peekable();
        if rules.peek().is_none() {
            section.problem("users", format!("no access rule lets {} in", quoted(user.as_str())));
        }
        for rule in rules.filter(|rule| !is_bound(&rule.value)) {
            section.reader.problem(
                &rule.place,
                format!(
                    "{} is a query engine and can name anyone as its end user: the rule needs cidr or certificate = true",
                    quoted(user.as_str())
                ),
            );
        }
    }
    if !section.has("comment") {
        section.missing(
            "comment",
            "the engine's query.comment-format, such as \"fedgate query=$QUERY_ID user=$USER\"",
        );
    }
    let comment = section.text("comment");
    if let Some(found) = &comment
        && let Err(reason) = check_comment(&found.value)
    {
        section.reader.problem(&found.place, reason);
    }
    if let Some(found) = section.word("masks", &[("engine", true), ("gateway", false)])
        && !found.value
    {
        section.reader.problem(&found.place, "\"gateway\" is not supported by this version");
    }
    section.finish();
    Some(Engine { users, comment: comment?.value })
}

/// Everywhere is no place.
fn is_bound(rule: &AccessRule) -> bool {
    rule.certificate || (!rule.cidr.is_empty() && rule.cidr.iter().all(|net| net.prefix_len() > 0))
}

/// A name may hold any character, so it is read up to the end of the comment and has to stand there.
fn check_comment(format: &str) -> Result<(), String> {
    if format.contains("*/") || format.contains("/*") {
        return Err("must not hold /* or */, which Trino puts around it".to_owned());
    }
    if format.chars().any(char::is_control) {
        return Err("must not hold control characters".to_owned());
    }
    let Some(rest) = format.strip_suffix("$USER") else {
        return Err("must end in $USER".to_owned());
    };
    let rest = rest.replacen("$QUERY_ID", "", 1);
    if rest.contains('$') {
        return Err("may hold $QUERY_ID once, $USER once at its end, and no other $".to_owned());
    }
    if rest.trim().is_empty() {
        return Err("must hold words of its own, to tell it from other comments".to_owned());
    }
    Ok(())
}

fn users(section: &mut Section<'_, '_>, key: &'static str, least: usize) -> Vec<ClientUser> {
    let Some(texts) = section.texts(key) else { return Vec::new() };
    if texts.value.len() < least {
        section.problem(key, "must name at least one user");
    }
    let user = |text: Found<String>| match check_user_name(&text.value) {
        Ok(()) => Some(ClientUser::new(text.value)),
        Err(reason) => {
            section.reader.problem(&text.place, reason);
            None
        }
    };
    texts.value.into_iter().filter_map(user).collect()
}

fn networks(reader: &Reader<'_>, texts: Found<Vec<Found<String>>>) -> Vec<IpNet> {
    texts
        .value
        .into_iter()
        .filter_map(|text| {
            let network = text.value.parse::<IpNet>().ok();
            let network = network.or_else(|| text.value.parse::<IpAddr>().ok().map(IpNet::from));
            if network.is_none() {
                reader.problem(
                    &text.place,
                    format!("{} is not a network; write one such as \"10.1.0.0/16\"", quoted(&text.value)),
                );
            }
            network
        })
        .collect()
}

fn socket_address(reader: &Reader<'_>, text: &Found<String>) -> Option<SocketAddr> {
    let address = text.value.parse().ok();
    if address.is_none() {
        reader.problem(
            &text.place,
            format!(
                "{} is not an address and port; write one such as \"127.0.0.1:15432\" or \"[::1]:15432\"",
                quoted(&text.value)
            ),
        );
    }
    address
}

fn required_name(section: &mut Section<'_, '_>, key: &'static str, what: &str) -> Option<String> {
    if !section.has(key) {
        section.missing(key, what);
    }
    let found = section.text(key)?;
    let reason = if found.value.is_empty() {
        "must not be empty"
    } else if found.value.len() > NAME_LIMIT {
        "must not be longer than 63 bytes"
    } else if found.value.chars().any(char::is_control) {
        "must not hold control characters"
    } else {
        return Some(found.value);
    };
    section.reader.problem(&found.place, reason);
    None
}

fn hosts(section: &mut Section<'_, '_>) -> Vec<Host> {
    if !section.has("hosts") {
        section.missing("hosts", "write hosts = [\"127.0.0.1:5432\"]");
    }
    let Some(texts) = section.texts("hosts") else { return Vec::new() };
    if texts.value.is_empty() {
        section.problem("hosts", "must name at least one host");
    }
    let mut hosts: Vec<Host> = Vec::new();
    for text in texts.value {
        match parse_host(&text.value) {
            Ok(host) if hosts.contains(&host) => section.reader.problem(&text.place, "is listed twice"),
            Ok(host) => hosts.push(host),
            Err(reason) => section.reader.problem(&text.place, reason),
        }
    }
    hosts
}

/// `name:port`, `[v6]:port`, `/folder/.s.PGSQL.5432`, `/folder:port`; the port may be left out.
fn parse_host(text: &str) -> Result<Host, String> {
    if text.starts_with('/') {
        return parse_socket(text);
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(format!("{} lacks its ]", quoted(text)))?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("{} is not an IPv6 address", quoted(host)));
            }
            match port {
                "" => (host, None),
                port => {
                    (host, Some(port.strip_prefix(':').ok_or(format!("{} is not a host", quoted(text)))?))
                }
            }
        }
        None if text.matches(':').count() > 1 => {
            return Err(format!(
                "{} has several colons; write an IPv6 address as \"[::1]:5432\"",
                quoted(text)
            ));
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || host.len() > 253 || !host.chars().all(named) {
        return Err(format!(
            "{} is not a host; write \"name:5432\", \"[::1]:5432\" or \"/folder:5432\"",
            quoted(text)
        ));
    }
    Ok(Host::Tcp { host: host.to_owned(), port: port.map_or(Ok(POSTGRES_PORT), parse_port)? })
}

fn parse_socket(text: &str) -> Result<Host, String> {
    let is_socket = text.rsplit('/').next().is_some_and(|file| file.starts_with(".s.PGSQL."));
    let path = if is_socket {
        PathBuf::from(text)
    } else {
        let (folder, port) = match text.rsplit_once(':') {
            Some((folder, port)) => (folder, parse_port(port)?),
            None => (text, POSTGRES_PORT),
        };
        Path::new(folder).join(format!(".s.PGSQL.{port}"))
    };
    if path.as_os_str().len() > SOCKET_PATH_LIMIT || text.contains('\0') {
        return Err(format!("a socket's path must not be longer than {SOCKET_PATH_LIMIT} bytes"));
    }
    Ok(Host::Unix { path })
}

fn parse_port(text: &str) -> Result<u16, String> {
    // u16's own parser takes "+5432".
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|port| digits && *port > 0)
        .ok_or(format!("{} is not a port; it is between 1 and 65535", quoted(text)))
}

/// A pipe would hang, and no PEM file is that long.
fn readable(path: &Path) -> Result<(), String> {
    let metadata = std::fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
    if !metadata.is_file() {
        return Err("is not a regular file".to_owned());
    }
    if metadata.len() > PEM_LIMIT {
        return Err("is longer than any certificate".to_owned());
    }
    Ok(())
}

fn certificates(reader: &Reader<'_>, found: &Found<PathBuf>) -> Option<Vec<CertificateDer<'static>>> {
    let read = || {
        readable(&found.value)?;
        let list = CertificateDer::pem_file_iter(&found.value)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| format!("is not a PEM file: {}", pem_reason(&error)))?;
        if list.is_empty() { Err("holds no certificate in PEM".to_owned()) } else { Ok(list) }
    };
    noted(reader, found, read())
}

fn private_key_of(reader: &Reader<'_>, found: &Found<PathBuf>) -> Option<PrivateKeyDer<'static>> {
    let read = || {
        readable(&found.value)?;
        PrivateKeyDer::from_pem_file(&found.value)
            .map_err(|error| format!("holds no private key in PEM: {}", pem_reason(&error)))
    };
    noted(reader, found, read())
}

fn noted<T>(reader: &Reader<'_>, found: &Found<PathBuf>, read: Result<T, String>) -> Option<T> {
    match read {
        Ok(value) => Some(value),
        Err(reason) => {
            reader.problem(&found.place, format!("{} {reason}", found.value.display()));
            None
        }
    }
}

/// In words that never hold a line of the file, as the error's own may.
fn pem_reason(error: &rustls_pki_types::pem::Error) -> String {
    use rustls_pki_types::pem::Error;
    match error {
        Error::Io(error) => error.to_string(),
        Error::NoItemsFound => "there is none".to_owned(),
        _ => "it is damaged".to_owned(),
    }
}

/// Whether the key is the certificate's.
fn matching(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<(), String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map(drop)
        .map_err(|error| format!("does not go with the certificate: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_in_each_form() {
        let tcp = |host: &str, port| Ok(Host::Tcp { host: host.into(), port });
        let unix = |path: &str| Ok(Host::Unix { path: path.into() });
        for (text, want) in [
            ("db.example:6432", tcp("db.example", 6432)),
            ("127.0.0.1", tcp("127.0.0.1", 5432)),
            ("[::1]:5433", tcp("::1", 5433)),
            ("[::1]", tcp("::1", 5432)),
            ("/run/postgresql", unix("/run/postgresql/.s.PGSQL.5432")),
            ("/run/postgresql:6432", unix("/run/postgresql/.s.PGSQL.6432")),
            ("/run/postgresql/.s.PGSQL.5433", unix("/run/postgresql/.s.PGSQL.5433")),
        ] {
            assert_eq!(parse_host(text), want, "{text}");
            let host = parse_host(text).unwrap();
            assert_eq!(parse_host(&host.to_string()), Ok(host));
        }
        for text in [
            "",
            ":5432",
            "db:",
            "db:0",
            "db:+5",
            "db:65536",
            "::1",
            "[::1",
            "[x]:1",
            "[::1]5432",
            "a b:1",
            "u@h:1",
            "/x:y",
        ] {
            assert!(parse_host(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_engines_comment_ends_in_the_user() {
        for good in ["fedgate query=$QUERY_ID user=$USER", "who=$USER", "q $QUERY_ID:$USER"] {
            assert_eq!(check_comment(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "$USER",
            "$QUERY_ID $USER",
            "user=$USER query=$QUERY_ID",
            "u=$USER,$USER",
            "s=$SOURCE u=$USER",
            "a */ u=$USER",
            "a\nu=$USER",
            "fedgate",
        ] {
            assert!(check_comment(bad).is_err(), "{bad}");
        }
    }
}
