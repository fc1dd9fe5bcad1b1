//! What is allowed and yet worth saying about a configuration.
//!
//! Invariant: a finding names keys, users and files, never what a secret holds.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde::Serialize;

use crate::config::users::Users;
use crate::config::{Auth, Config, Host, Source, TlsMode};

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It works, and somebody should know.
    Warning,
    /// It cannot work.
    Problem,
}

/// One remark on a configuration that was read without an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// The source it speaks of; absent: the gateway itself.
    pub source: Option<String>,
    /// Such as `gateway.auth.method`.
    pub key: String,
    pub message: String,
}

impl Config {
    /// Remarks, those on the gateway first, then source by source.
    pub fn findings(&self) -> Vec<Finding> {
        let mut findings = Findings { source: None, list: Vec::new() };
        findings.gateway(self);
        for source in &self.sources {
            findings.source = Some(source.name.as_str().to_owned());
            findings.source(self, source);
        }
        findings.list
    }
}

struct Findings {
    source: Option<String>,
    list: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, severity: Severity, key: &str, message: impl Into<String>) {
        let source = self.source.clone();
        self.list.push(Finding { severity, source, key: key.to_owned(), message: message.into() });
    }

    fn warn(&mut self, key: &str, message: impl Into<String>) {
        self.add(Severity::Warning, key, message);
    }

    fn gateway(&mut self, config: &Config) {
        let gateway = &config.gateway;
        if config.sources.is_empty() {
            self.warn("source", "there is no source, so nobody can be served");
        }
        if gateway.auth == Auth::Trust {
            self.warn(
                "gateway.auth.method",
                "trust: whoever is on this machine is let in under any name, unasked",
            );
        }
        let exposed = gateway.listen.iter().find(|address| !address.ip().to_canonical().is_loopback());
        match (&gateway.tls, exposed) {
            (None, Some(address)) => self.warn(
                "gateway.tls",
                format!("absent: what clients of {address} send and read is in the clear on their network"),
            ),
            (Some(tls), Some(address)) if !tls.required => self.warn(
                "gateway.tls.required",
                format!("false: clients of {address} that do not ask for TLS talk in the clear"),
            ),
            _ => {}
        }
        if let Some(tls) = &gateway.tls {
            self.open_to_others("gateway.tls.private_key", &tls.files.private_key);
        }
        if let Some(http) = &config.http {
            match &http.tls {
                Some(tls) => self.open_to_others("http.tls.private_key", &tls.private_key),
                None if !http.listen.ip().to_canonical().is_loopback() => self.warn(
                    "http.tls",
                    format!("absent: tokens that come to {} are in the clear on their network", http.listen),
                ),
                None => {}
            }
        }
        if let Auth::Scram { users_file } = &gateway.auth {
            self.open_to_others("gateway.auth.users_file", users_file);
        }
    }

    fn source(&mut self, config: &Config, source: &Source) {
        if source.access.is_empty() {
            self.warn("access", "there is no rule, so nobody may use this source");
        }
        if !source.read_only {
            let names: Vec<&str> = source.writers.iter().map(|user| user.as_str()).collect();
            self.warn(
                "read_only",
                match names.is_empty() {
                    true => "false, and writers names nobody: nobody may write".to_owned(),
                    false => format!("false: writes by {} reach this source", names.join(", ")),
                },
            );
        }
        let known = |user| source.access.iter().any(|rule| rule.users.contains(user));
        for writer in source.writers.iter().filter(|user| !known(user)) {
            self.warn("writers", format!("no access rule lets {writer} in"));
        }
        if let Auth::Scram { users_file } = &config.gateway.auth
            && let Ok(users) = Users::load(users_file)
        {
            let mut named: Vec<&str> = source
                .access
                .iter()
                .filter(|rule| !rule.certificate)
                .flat_map(|rule| rule.users.iter().map(|user| user.as_str()))
                .filter(|user| users.get(user).is_none())
                .collect();
            named.sort_unstable();
            named.dedup();
            for user in named {
                self.warn("access", format!("{user} has no verifier in {}", users_file.display()));
            }
        }
        if let Some(password) = &source.login.password {
            self.open_to_others("password_file", password.path());
        }
        self.network(source);
    }

    /// Whether what goes to the source can be read or changed on its way.
    fn network(&mut self, source: &Source) {
        let far = source.hosts.iter().find(|host| match host {
            Host::Tcp { host, .. } => {
                host != "localhost"
                    && !host
                        .parse::<std::net::IpAddr>()
                        .is_ok_and(|address| address.to_canonical().is_loopback())
            }
            Host::Unix { .. } => false,
        });
        let Some(host) = far else { return };
        match source.tls.mode {
            TlsMode::Disable => self.warn("tls", format!("disable: what goes to {host} is in the clear")),
            TlsMode::Prefer => self.warn(
                "tls",
                format!("prefer: what goes to {host} is in the clear when it has no TLS, and nobody checks who answers"),
            ),
            TlsMode::Require if source.tls.ca.is_none() => self.warn("tls", format!("require: nobody checks that it is {host} who answers")),
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => {}
        }
    }

    fn open_to_others(&mut self, key: &str, path: &Path) {
        let Ok(metadata) = std::fs::metadata(path) else { return };
        if metadata.permissions().mode() & 0o007 != 0 {
            self.warn(key, format!("{} is open to every user of this machine; chmod o= it", path.display()));
        }
    }
}
