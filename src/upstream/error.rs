//! Why a source could not be reached: in full for the log, in general words for the client.
//!
//! Invariant: what [`OpenError::client_error`] gives names the source as the client named it, and
//! never a host, a user, a file or a secret. No error here ever holds a password.

use std::fmt;
use std::io;
use std::path::PathBuf;

use bytes::Bytes;

use crate::ids::SourceName;
use crate::sqlstate::SqlState;
use crate::wire::ClientError;

/// A source that cannot be built from its settings.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("source \"{name}\": tls_ca: cannot read {}: {error}", path.display())]
    CaUnreadable { name: SourceName, path: PathBuf, error: String },
    #[error("source \"{name}\": tls_ca: {} holds no certificate in PEM form", path.display())]
    CaEmpty { name: SourceName, path: PathBuf },
    #[error("source \"{name}\": tls_ca: {} holds a certificate that cannot be a root: {error}", path.display())]
    CaInvalid { name: SourceName, path: PathBuf, error: rustls::Error },
    #[error(
        "source \"{name}\": tls: the system has no trusted root certificates ({error}); name a file in tls_ca"
    )]
    NoSystemRoots { name: SourceName, error: String },
    #[error("source \"{name}\": hosts: \"{host}\" is neither a host name nor an address that TLS can check")]
    ServerName { name: SourceName, host: String },
    #[error("source \"{name}\": tls: {error}")]
    Tls { name: SourceName, error: rustls::Error },
}

/// No session at the source: what each host that was tried said.
#[derive(Debug)]
pub struct OpenError {
    pub(super) name: SourceName,
    pub(super) failures: Vec<HostFailure>,
}

/// What went wrong at one host.
#[derive(Debug, thiserror::Error)]
#[error("{host}: {failure}")]
pub struct HostFailure {
    /// As configured, `host:port` or the socket's path.
    pub host: String,
    pub failure: Failure,
}

/// What went wrong, from dialling to a pinned session.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("its name cannot be resolved: {0}")]
    Resolve(io::Error),
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("timed out while {0}")]
    TimedOut(Stage),
    #[error("TLS failed: {0}")]
    Tls(io::Error),
    #[error("TLS is asked for and the server declines it")]
    TlsDeclined,
    #[error("the server closed the connection while {0}")]
    Closed(Stage),
    #[error("the connection broke while {0}: {1}")]
    Broken(Stage, io::Error),
    #[error("the server does not speak PostgreSQL's protocol: {0}")]
    Nonsense(&'static str),
    #[error("the server asks for {0}, which is not supported")]
    UnsupportedAuthentication(&'static str),
    #[error(
        "the server asks for the password in clear text over an unencrypted connection; use TLS or another method"
    )]
    ClearText,
    #[error("the server asks for a password and none is configured (password_file)")]
    NoPassword,
    #[error("password_file: cannot read {}: {error}", path.display())]
    PasswordFile { path: PathBuf, error: io::Error },
    #[error("SCRAM authentication failed: {0}")]
    Scram(io::Error),
    #[error("the server refused: {0}")]
    Server(ServerError),
    #[error(
        "the session cannot be pinned: {setting} is {} instead of \"{wanted}\"",
        found.as_ref().map_or("not reported".to_owned(), |value| format!("{value:?}"))
    )]
    Pin { setting: &'static str, wanted: &'static str, found: Option<String> },
    #[error("it is a {0}, and target_session_attrs wants another")]
    Unwanted(&'static str),
    #[error("startup setting {0:?} cannot be sent")]
    Setting(String),
    #[error("the client's part of the authentication failed: {0}")]
    Conversation(io::Error),
}

/// What was being waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Resolving,
    Connecting,
    Tls,
    Authentication,
    Starting,
    Cancelling,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Stage::Resolving => "resolving its name",
            Stage::Connecting => "connecting",
            Stage::Tls => "negotiating TLS",
            Stage::Authentication => "authenticating",
            Stage::Starting => "starting the session",
            Stage::Cancelling => "cancelling",
        })
    }
}

/// An ErrorResponse of the source (protocol chapter 54.8).
#[derive(Clone, Debug)]
pub struct ServerError {
    pub sqlstate: String,
    /// One line, bounded.
    pub message: String,
    pub(super) stage: Stage,
    /// Whether the server had already asked for proof.
    pub(super) asked: bool,
    /// The message as it came.
    pub(super) frame: Bytes,
    /// In an authentication that the client itself holds.
    pub(super) relayed: bool,
    /// The source complains about a setting that the client sent.
    pub(super) about_setting: Option<SqlState>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.sqlstate)
    }
}

impl Failure {
    /// Whether the next host may be asked: the host is to blame, not the login or the settings.
    pub(super) fn fails_over(&self) -> bool {
        match self {
            Failure::Resolve(_)
            | Failure::Connect(_)
            | Failure::TimedOut(_)
            | Failure::Tls(_)
            | Failure::TlsDeclined
            | Failure::Closed(_)
            | Failure::Broken(..)
            | Failure::Nonsense(_)
            | Failure::Unwanted(_) => true,
            Failure::Server(error) => {
                matches!(error.sqlstate.get(..2), Some("08" | "53" | "57" | "58" | "XX"))
            }
            Failure::UnsupportedAuthentication(_)
            | Failure::ClearText
            | Failure::NoPassword
            | Failure::PasswordFile { .. }
            | Failure::Scram(_)
            | Failure::Pin { .. }
            | Failure::Setting(_)
            | Failure::Conversation(_) => false,
        }
    }

    /// Whether `prefer` tries once more without TLS, as libpq does.
    pub(super) fn retry_without_tls(&self) -> bool {
        match self {
            Failure::Tls(_) => true,
            // pg_hba.conf admits this login without TLS only.
            Failure::Server(error) => !error.asked && error.sqlstate == "28000",
            _ => false,
        }
    }

    /// In words that give away nothing about the source.
    fn general(&self) -> &'static str {
        match self {
            Failure::Resolve(_) => "its host name cannot be resolved",
            Failure::Connect(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                "connection refused"
            }
            Failure::Connect(_) => "no connection",
            Failure::TimedOut(_) => "timed out",
            Failure::Tls(_) | Failure::TlsDeclined => "TLS failed",
            Failure::Closed(_) | Failure::Broken(..) => "it closed the connection",
            Failure::Nonsense(_) => "it does not speak PostgreSQL's protocol",
            Failure::UnsupportedAuthentication(_) => {
                "it asks for an authentication method that is not supported"
            }
            Failure::ClearText => "it asks for a password in clear text over an unencrypted connection",
            Failure::NoPassword | Failure::PasswordFile { .. } => "the gateway has no password for it",
            Failure::Scram(_) => "authentication at the source failed",
            Failure::Pin { .. } => "its sessions cannot be made safe",
            Failure::Unwanted("standby") => "it is no primary",
            Failure::Unwanted(_) => "it is no standby",
            Failure::Setting(_) => "a startup setting cannot be sent",
            Failure::Conversation(_) => "the authentication was broken off",
            Failure::Server(error) => match error.sqlstate.as_str() {
                "53300" => "too many connections at the source",
                "57P03" => "it is starting up, shutting down or recovering",
                "57P01" | "57P02" => "it is shutting down",
                "3D000" => "the database does not exist there",
                code if code.starts_with("28") => "authentication at the source failed",
                _ => "it refused the session",
            },
        }
    }
}

impl OpenError {
    pub(super) fn one(name: &SourceName, host: String, failure: Failure) -> Self {
        Self { name: name.clone(), failures: vec![HostFailure { host, failure }] }
    }

    /// Every host that was tried, in the order of trying.
    pub fn failures(&self) -> &[HostFailure] {
        &self.failures
    }

    /// The source's own ErrorResponse, type byte and length included, where the client itself
    /// authenticated there: it goes to the client in place of [`OpenError::client_error`].
    pub fn relayed(&self) -> Option<&Bytes> {
        match self.failures.last() {
            Some(HostFailure { failure: Failure::Server(error), .. }) if error.relayed => Some(&error.frame),
            _ => None,
        }
    }

    /// Whether a server has said that it has as many sessions as it takes.
    pub fn is_full(&self) -> bool {
        let full = |failure: &HostFailure| match &failure.failure {
            Failure::Server(error) => error.sqlstate == SqlState::TOO_MANY_CONNECTIONS.as_str(),
            _ => false,
        };
        self.failures.iter().any(full)
    }

    /// What the client may know.
    pub fn client_error(&self) -> ClientError {
        if let Some(HostFailure { failure: Failure::Server(error), .. }) = self.failures.last()
            && let Some(sqlstate) = error.about_setting
        {
            return ClientError::fatal(sqlstate, error.message.clone());
        }
        let mut words: Vec<&'static str> = Vec::new();
        for failure in &self.failures {
            let general = failure.failure.general();
            if !words.contains(&general) {
                words.push(general);
            }
        }
        ClientError::fatal(SqlState::CANNOT_CONNECT_NOW, format!("source \"{}\" is not available", self.name))
            .detail(format!("The gateway could not open a session there: {}.", words.join("; ")))
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "source \"{}\"", self.name)?;
        for (at, failure) in self.failures.iter().enumerate() {
            write!(f, "{} {failure}", if at == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

impl std::error::Error for OpenError {}
