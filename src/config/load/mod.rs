//! From a text to a [`Config`], with everything that is wrong with it said at once.
//!
//! Invariant: a `Config` comes out only of a text without a single problem; a key of a later
//! version is a problem, never ignored.

mod audit;
mod files;
mod gateway;
mod http;
mod limits;
mod opa;
mod policy;
mod source;
mod sync;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeTable;
use tracing::level_filters::LevelFilter;

use self::policy::workloads;
use crate::config::raw::{Found, Problem, Reader, Section, quoted};
use crate::config::{Config, LogFormat};

/// Longest configuration file, in bytes.
const FILE_LIMIT: u64 = 4 << 20;

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
        // Stands for a section that was left out.
        let empty = DeTable::new();
        let root = Section::root(&reader, document.get_ref());
        let config = Loader { base, host_network: false }.config(root, &empty);
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
    /// Clients log in at the source themselves.
    relayed: bool,
}

impl Loader<'_> {
    /// None only after a problem was noted.
    fn config<'r, 't>(mut self, mut root: Section<'r, 't>, empty: &'r DeTable<'t>) -> Option<Config> {
        self.host_network = root.boolean_or("fedgate_host_network", false);
        let mut context = Context { client_certificates: false, relayed: false };
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
        let beside = opa::Beside {
            document: root.has("document"),
            http: root.has("http"),
            // A section that is wrong in itself is reported once.
            client_certificates: http
                .as_ref()
                .is_none_or(|http| http.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some())),
        };
        let document = root.section("document").and_then(|section| self.document(section));
        let opa = root.section("opa").and_then(|section| self.opa(section, beside));
        let audit = root.section("audit").and_then(|section| self.audit(section));
        let sync = self.sync(&mut root, empty);
        let (log, log_level) = log(&mut root);

        let has_policy = root.has("policy");
        let policy = root.section("policy").map(|section| self.policy(section));
        let workloads = workloads(&mut root, has_policy);
        root.finish();

        Some(Config {
            gateway: gateway?,
            sources,
            http,
            document,
            opa,
            sync: sync?,
            audit,
            policy,
            workloads,
            log,
            log_level,
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

/// The base of a service's addresses: `http://` or `https://`, a host, perhaps a path; without a slash at its end.
fn base_url(section: &mut Section<'_, '_>, key: &'static str, what: &str) -> Option<String> {
    if !section.has(key) {
        section.missing(key, what);
    }
    let found = section.text(key)?;
    let reason = match reqwest::Url::parse(&found.value) {
        Err(error) => Some(format!("is not a URL: {error}")),
        Ok(url) if !matches!(url.scheme(), "http" | "https") => {
            Some("must begin with http:// or https://".to_owned())
        }
        Ok(url) if !url.username().is_empty() || url.password().is_some() => {
            Some("must hold no user and no password; secrets stand in files".to_owned())
        }
        Ok(url) if url.query().is_some() || url.fragment().is_some() => {
            Some("must end with its path: no ? and no #".to_owned())
        }
        Ok(_) => None,
    };
    match reason {
        Some(reason) => {
            section.reader.problem(&found.place, reason);
            None
        }
        None => Some(found.value.trim_end_matches('/').to_owned()),
    }
}
