//! `fedgate check`: whether a configuration can be used, and what is worth knowing about it.
//!
//! Invariant: it changes nothing, anywhere; it shows hosts and logins, as its reader wrote them,
//! and never a secret.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde::Serialize;

use crate::app::adminconfig;
use crate::app::audit;
use crate::app::behind;
use crate::app::grants::{self, Grants};
use crate::config::{self, Auth, Config, DocumentPlace, DocumentSection, Finding, Severity, TlsMode, Users};
use crate::policy::expression;
use crate::sync::publisher::{AnyPublisher, PublishError, Publisher};
use crate::upstream::{self, RelayFit, relay_works};

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The configuration.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Also log in to every source and audit what the gateway's role can do there.
    #[arg(long)]
    live: bool,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// What `check` answers; the exit code of the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// 0: it can be used.
    Yes,
    /// 1: something in it cannot work, or a role that should only read can write.
    No,
    /// 2: it cannot be read, or a source cannot be reached.
    Unknown,
}

impl Answer {
    pub fn exit_code(self) -> u8 {
        match self {
            Answer::Yes => 0,
            Answer::No => 1,
            Answer::Unknown => 2,
        }
    }
}

/// A configuration that could be read, looked at.
#[derive(Debug, Serialize)]
struct Report {
    file: PathBuf,
    answer: Answer,
    /// Of the gateway itself.
    gateway: Vec<String>,
    findings: Vec<Finding>,
    sources: Vec<SourceReport>,
    /// Why the policy document cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    document: Option<String>,
    /// Why the audit sink does not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    audit: Option<String>,
}

#[derive(Debug, Serialize)]
struct SourceReport {
    name: String,
    read_only: bool,
    facts: Vec<String>,
    findings: Vec<Finding>,
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<Live>,
}

/// What logging in to a source showed.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Live {
    Grants(Grants),
    Failed(String),
}

/// Every remark on a configuration, those included that take more than its text to know.
pub fn findings(config: &Config) -> Vec<Finding> {
    let mut findings = config.findings();
    for source in &config.sources {
        let mut add = |severity, key: &str, message: String| {
            let source = Some(source.name.as_str().to_owned());
            findings.push(Finding { severity, source, key: key.to_owned(), message });
        };
        if config.gateway.auth == Auth::Relay {
            relay(config, source, &mut add);
        }
        if let Err(error) = upstream::Source::new(source.clone()) {
            add(Severity::Problem, "tls", error.to_string());
        }
    }
    if let Some(section) = &config.audit
        && let Err(error) = audit::check(section)
    {
        let (source, key) = (None, "audit".to_owned());
        findings.push(Finding { severity: Severity::Problem, source, key, message: error.to_string() });
    }
    findings.extend(adminconfig::findings(config));
    findings
}

fn relay(config: &Config, source: &config::Source, add: &mut impl FnMut(Severity, &str, String)) {
    let required = config.gateway.tls.as_ref().is_some_and(|tls| tls.required);
    let why = "a SCRAM exchange can be relayed with TLS on at most one of the two legs";
    match relay_works(config.gateway.tls.is_some(), source) {
        RelayFit::Works => {}
        RelayFit::UnlessSourceOffersTls => {
            add(
                Severity::Warning,
                "tls",
                format!("relay cannot work for clients with TLS if the source offers TLS: {why}"),
            );
        }
        RelayFit::OnlyWithoutChannelBinding if required => add(
            Severity::Problem,
            "tls",
            format!(
                "relay cannot work here: {why}; use gateway.auth.method = \"scram\", or leave TLS off on one leg"
            ),
        ),
        RelayFit::OnlyWithoutChannelBinding => {
            add(Severity::Warning, "tls", format!("relay cannot work for clients with TLS: {why}"));
        }
    }
}

/// Looks, and prints what was seen to `out`; what could not be looked at goes to `err`.
pub async fn run(
    args: &CheckArgs,
    out: &mut impl std::io::Write,
    err: &mut impl std::io::Write,
) -> std::io::Result<Answer> {
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(error) => {
            if args.json {
                let problems = serde_json::json!({
                    "file": args.config, "answer": Answer::Unknown, "problems": error.problems,
                });
                writeln!(out, "{problems:#}")?;
            }
            writeln!(err, "{error}")?;
            return Ok(Answer::Unknown);
        }
    };
    let mut report = report(&args.config, &config);
    if let Some(section) = &config.document {
        report.look_at(section, args.live).await;
    }
    if args.live {
        for (entry, source) in report.sources.iter_mut().zip(&config.sources) {
            entry.live = Some(live(source.clone()).await);
        }
        if let Some(section) = &config.audit
            && let Err(error) = audit::dial(section).await
        {
            report.audit = Some(error.to_string());
        }
    }
    report.answer = report.judge();
    if args.json {
        writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
    } else {
        write!(out, "{}", report.text())?;
    }
    Ok(report.answer)
}

async fn live(config: Arc<config::Source>) -> Live {
    let source = match upstream::Source::new(config) {
        Ok(source) => source,
        Err(error) => return Live::Failed(error.to_string()),
    };
    let (client, connection) = match source.client().await {
        Ok(pair) => pair,
        Err(error) => return Live::Failed(error.to_string()),
    };
    // One of the two ends the other: the audit is bounded, and drops the connection with it.
    let audit = async {
        let mut grants = grants::audit(&client).await.map_err(|error| error.to_string())?;
        grants.remarks = behind::audit(&client).await.map_err(|error| error.to_string())?;
        Ok(grants)
    };
    tokio::select! {
        audited = audit => match audited {
            Ok(grants) => Live::Grants(grants),
            Err(error) => Live::Failed(error),
        },
        ended = connection => Live::Failed(match ended {
            Ok(()) => "the source closed the connection".to_owned(),
            Err(error) => error.to_string(),
        }),
    }
}

fn report(file: &Path, config: &Config) -> Report {
    let findings = findings(config);
    let of = |name: Option<&str>| -> Vec<Finding> {
        findings.iter().filter(|finding| finding.source.as_deref() == name).cloned().collect()
    };
    Report {
        file: file.to_owned(),
        answer: Answer::Yes,
        gateway: gateway_facts(config),
        findings: of(None),
        document: None,
        audit: None,
        sources: config
            .sources
            .iter()
            .map(|source| SourceReport {
                name: source.name.as_str().to_owned(),
                read_only: source.read_only,
                facts: source_facts(source),
                findings: of(Some(source.name.as_str())),
                live: None,
            })
            .collect(),
    }
}

fn gateway_facts(config: &Config) -> Vec<String> {
    let gateway = &config.gateway;
    let listen: Vec<String> = gateway.listen.iter().map(ToString::to_string).collect();
    let mut facts =
        vec![format!("listens on {} for at most {} clients", listen.join(", "), gateway.max_clients)];
    facts.push(match &gateway.tls {
        None => "TLS: off".to_owned(),
        Some(tls) => format!(
            "TLS: {}{}",
            if tls.required { "required" } else { "offered" },
            if tls.files.client_ca.is_some() { ", client certificates accepted" } else { "" },
        ),
    });
    facts.push(match &gateway.auth {
        Auth::Scram { users_file } => {
            // It was readable a moment ago; if it is not any more, that is for `run` to say.
            let count = Users::load(users_file).map_or(0, |users| users.len());
            format!("authentication: scram, {count} users in {}", users_file.display())
        }
        Auth::Relay => "authentication: relay, by each source itself".to_owned(),
        Auth::Trust => "authentication: none (trust)".to_owned(),
    });
    facts.push(match &config.http {
        Some(http) => match &http.tls {
            None => format!("HTTP on {}", http.listen),
            Some(tls) => format!(
                "HTTP on {}, with TLS only{}",
                http.listen,
                if tls.client_ca.is_some() { ", client certificates accepted" } else { "" },
            ),
        },
        None => "HTTP: off".to_owned(),
    });
    facts.push(match &config.opa {
        Some(opa) => format!(
            "bundle for OPA: served to {}{}",
            match (&opa.token, opa.certificates.is_empty()) {
                (Some(_), true) => "whoever shows the token".to_owned(),
                (Some(_), false) =>
                    format!("the token, or the certificates of {}", opa.certificates.join(", ")),
                (None, _) => format!("the certificates of {}", opa.certificates.join(", ")),
            },
            if opa.signing.is_some() { ", signed" } else { "" },
        ),
        None => "bundle for OPA: off".to_owned(),
    });
    facts.extend(adminconfig::fact(config));
    facts.push(config.audit.as_ref().map_or_else(|| "audit trail: off".to_owned(), audit::fact));
    facts
}

fn source_facts(source: &config::Source) -> Vec<String> {
    let hosts: Vec<String> = source.hosts.iter().map(ToString::to_string).collect();
    let tls = match source.tls.mode {
        TlsMode::Disable => "disable",
        TlsMode::Prefer => "prefer",
        TlsMode::Require => "require",
        TlsMode::VerifyCa => "verify-ca",
        TlsMode::VerifyFull => "verify-full",
    };
    let mut facts = vec![format!(
        "database {} at {} as {}{}, tls {tls}",
        source.database,
        hosts.join(", then "),
        source.login.user,
        if source.login.password.is_some() { "" } else { " without a password" },
    )];
    for rule in &source.access {
        let users: Vec<&str> = rule.users.iter().map(|user| user.as_str()).collect();
        let networks: Vec<String> = rule.cidr.iter().map(ToString::to_string).collect();
        facts.push(format!(
            "access: {} from {}{}",
            users.join(", "),
            if networks.is_empty() { "anywhere".to_owned() } else { networks.join(", ") },
            if rule.certificate { ", by certificate" } else { "" },
        ));
    }
    if let Some(engine) = &source.engine {
        let users: Vec<&str> = engine.users.iter().map(|user| user.as_str()).collect();
        facts.push(format!(
            "engine: {} as Trino catalog {}, end users by \"{}\"",
            users.join(", "),
            source.trino_catalog,
            engine.comment
        ));
    }
    facts
}

impl SourceReport {
    /// Whether a role that should only read can do more.
    fn drifted(&self) -> bool {
        self.read_only && matches!(&self.live, Some(Live::Grants(grants)) if !grants.can_write.is_empty())
    }

    fn unreachable(&self) -> bool {
        matches!(self.live, Some(Live::Failed(_)))
    }
}

impl Report {
    /// Reads the policy document once; one in a ConfigMap only when others may be asked.
    async fn look_at(&mut self, section: &DocumentSection, live: bool) {
        let (place, remote) = match &section.place {
            DocumentPlace::File { path } => (path.display().to_string(), false),
            DocumentPlace::ConfigMap { namespace, name, key, .. } => {
                (format!("{key} of the ConfigMap {namespace}/{name}"), true)
            }
        };
        let mut fact = format!("policy document: {place}");
        if !remote || live {
            match AnyPublisher::new(&section.place).read().await {
                Ok(read) => {
                    let subjects = &read.document.policy().subjects;
                    let masks: usize = subjects.values().map(|subject| subject.masks.len()).sum();
                    let _ = write!(fact, ", {} subjects, {masks} masks", subjects.len());
                    for finding in expression::check(read.document.policy()) {
                        self.findings.push(Finding {
                            severity: Severity::Problem,
                            source: None,
                            key: "document".to_owned(),
                            message: format!("Trino could not evaluate {finding}"),
                        });
                    }
                }
                Err(error @ (PublishError::Document(_) | PublishError::NoKey { .. })) => {
                    self.findings.push(Finding {
                        severity: Severity::Problem,
                        source: None,
                        key: "document".to_owned(),
                        message: error.to_string(),
                    });
                }
                Err(error) => self.document = Some(error.to_string()),
            }
        }
        self.gateway.push(fact);
    }

    fn all_findings(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().chain(self.sources.iter().flat_map(|source| &source.findings))
    }

    /// What could not be answered outweighs what is no: it may hide more of it.
    fn judge(&self) -> Answer {
        if self.sources.iter().any(SourceReport::unreachable)
            || self.audit.is_some()
            || self.document.is_some()
        {
            Answer::Unknown
        } else if self.all_findings().any(|finding| finding.severity == Severity::Problem)
            || self.sources.iter().any(SourceReport::drifted)
        {
            Answer::No
        } else {
            Answer::Yes
        }
    }

    fn text(&self) -> String {
        let mut page = Page(String::new());
        page.line(0, "", &format!("{}: can be read", self.file.display()));
        page.line(0, "", "gateway");
        page.facts(&self.gateway, &self.findings);
        if let Some(error) = &self.document {
            page.line(1, "problem: ", error);
        }
        if let Some(error) = &self.audit {
            page.line(1, "problem: live: ", error);
        }
        for source in &self.sources {
            let mark = if source.read_only { "read-only" } else { "OPEN FOR WRITES" };
            page.line(0, "", &format!("source {} ({mark})", source.name));
            page.facts(&source.facts, &source.findings);
            match &source.live {
                None => {}
                Some(Live::Failed(error)) => {
                    page.line(1, "problem: ", &format!("cannot be reached: {error}"))
                }
                Some(Live::Grants(grants)) => {
                    page.line(
                        1,
                        "",
                        &format!(
                            "live: PostgreSQL {}{}, logged in as {}",
                            grants.server_version,
                            if grants.standby { " (standby)" } else { "" },
                            grants.role
                        ),
                    );
                    if grants.can_write.is_empty() {
                        page.line(1, "", "live: the role can only read");
                    }
                    let label = if source.read_only { "problem: " } else { "live: " };
                    for way in &grants.can_write {
                        page.line(1, label, &format!("{} can do more than read: {way}", grants.role));
                    }
                    for remark in &grants.remarks {
                        page.line(1, "warning: live: ", remark);
                    }
                }
            }
        }
        let remarks = |source: &SourceReport| match &source.live {
            Some(Live::Grants(grants)) => grants.remarks.len(),
            Some(Live::Failed(_)) | None => 0,
        };
        let warnings = self.all_findings().filter(|finding| finding.severity == Severity::Warning).count()
            + self.sources.iter().map(remarks).sum::<usize>();
        page.line(
            0,
            "",
            &format!(
                "sources: {}, warnings: {warnings}; it {}",
                self.sources.len(),
                match self.answer {
                    Answer::Yes => "can be used",
                    Answer::No => "should not be used as it is",
                    Answer::Unknown => "could not be looked at in full",
                }
            ),
        );
        page.0
    }
}

struct Page(String);

impl Page {
    fn line(&mut self, depth: usize, label: &str, text: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "{:indent$}{label}{text}", "", indent = 2 * depth);
    }

    fn facts(&mut self, facts: &[String], findings: &[Finding]) {
        for fact in facts {
            self.line(1, "", fact);
        }
        for finding in findings {
            let label = match finding.severity {
                Severity::Warning => "warning: ",
                Severity::Problem => "problem: ",
            };
            self.line(1, label, &format!("{}: {}", finding.key, finding.message));
        }
    }
}
