//! One configured source: its hosts, its TLS, and the sessions opened there.
//!
//! Invariant: every session that leaves this file is authenticated, idle and pinned; one that is
//! not was closed before.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::NoTls;
use tokio_postgres::tls::NoTlsStream;

use crate::config::{self, Host, TargetSession, TlsMode};
use crate::guard::Mode;
use crate::ids::SourceName;
use crate::upstream::attrs::{Roles, fits, is_standby};
use crate::upstream::auth::{Conversation, Login, Nobody};
use crate::upstream::client::Replayed;
use crate::upstream::dial::{Dialled, Peer, Target, Wish, dial, dial_peer};
use crate::upstream::error::{Failure, HostFailure, OpenError, SourceError, Stage};
use crate::upstream::health::Health;
use crate::upstream::pin::{Opening, startup_message};
use crate::upstream::session::{Established, establish};
use crate::upstream::stream::Stream;
use crate::upstream::tls;

/// Who the gateway's own queries come from, in `pg_stat_activity`.
const OWN_NAME: &str = "fedgate own queries";
/// `CancelRequest` (protocol chapter 54.7).
const CANCEL_REQUEST: i32 = 80_877_102;
/// What a server may say before it closes after a CancelRequest.
const MAX_CANCEL_ANSWER: usize = 8 * 1024;

/// One configured source.
#[derive(Debug)]
pub struct Source {
    config: Arc<config::Source>,
    /// In the order of the configuration; never empty.
    targets: Vec<Target>,
    /// Nothing with `tls = "disable"`.
    tls: Option<Arc<ClientConfig>>,
    health: Health,
    roles: Roles,
}

/// A session at a source: authenticated, idle, pinned.
#[derive(Debug)]
pub struct Opened {
    pub stream: Stream,
    /// Every ParameterStatus of the start, as the source reported it.
    pub parameters: Vec<(String, String)>,
    pub cancel: CancelTarget,
    /// Bytes read past ReadyForQuery; normally none.
    pub leftover: BytesMut,
    /// NoticeResponse messages of the start, each with type byte and length word.
    pub notices: Vec<Bytes>,
    /// What holds for the whole life of the session.
    pub pins: crate::upstream::Pins,
}

impl Opened {
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Where and with what key a session can be cancelled.
#[derive(Clone, PartialEq, Eq)]
pub struct CancelTarget {
    peer: Peer,
    tls: bool,
    process: i32,
    key: Bytes,
}

impl CancelTarget {
    /// The session's process at the source.
    pub fn process_id(&self) -> i32 {
        self.process
    }
}

impl fmt::Debug for CancelTarget {
    /// Without the key: whoever knows it can cancel.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelTarget").field("peer", &self.peer).field("process", &self.process).finish()
    }
}

/// Drives a [`tokio_postgres::Client`]; ends when the client is dropped or the connection breaks.
pub type ClientConnection = tokio_postgres::Connection<Replayed, NoTlsStream>;

impl Source {
    /// Reads the certificates that the source's TLS mode needs.
    ///
    /// # Errors
    /// A [`SourceError`] names the key and the file that cannot be used.
    pub fn new(config: Arc<config::Source>) -> Result<Self, SourceError> {
        let tls = tls::client_config(&config.name, &config.tls)?;
        let mut targets = Vec::with_capacity(config.hosts.len());
        for host in &config.hosts {
            let server_name = match host {
                Host::Tcp { host, .. } if tls.is_some() => {
                    let name = ServerName::try_from(host.clone()).map_err(|_| SourceError::ServerName {
                        name: config.name.clone(),
                        host: host.clone(),
                    })?;
                    Some(name)
                }
                Host::Tcp { .. } | Host::Unix { .. } => None,
            };
            targets.push(Target { host: host.clone(), server_name });
        }
        let health = Health::new(targets.len());
        let roles = Roles::new(targets.len());
        Ok(Self { config, targets, tls, health, roles })
    }

    pub fn name(&self) -> &SourceName {
        &self.config.name
    }

    pub fn config(&self) -> &config::Source {
        &self.config
    }

    /// Opens a session by the source's own login.
    ///
    /// # Errors
    /// What each host that was tried said, in full; for the log.
    pub async fn open(&self, opening: &Opening) -> Result<Opened, OpenError> {
        self.open_own(opening, false).await
    }

    /// Opens a session by the client's own login, which the client and the source settle between
    /// them. The session is open when this returns: AuthenticationOk is then the caller's to send.
    ///
    /// # Errors
    /// Like [`Source::open`]; where [`OpenError::relayed`] gives something, that goes to the client.
    pub async fn open_relayed(
        &self,
        opening: &Opening,
        user: &str,
        conversation: &mut impl Conversation,
    ) -> Result<Opened, OpenError> {
        self.open_at_any(opening, false, Login::Relayed { user, conversation }).await
    }

    /// Opens a session for the gateway's own queries, read-only. The caller drives the connection.
    ///
    /// Its `cancel_token` does not work. The source ends a statement of it after a minute at most; the
    /// caller bounds the wait for a source that is gone.
    ///
    /// # Errors
    /// Like [`Source::open`].
    pub async fn client(&self) -> Result<(tokio_postgres::Client, ClientConnection), OpenError> {
        let opening =
            Opening { mode: Mode::ReadOnly, application_name: OWN_NAME.to_owned(), settings: Vec::new() };
        let opened = self.open_own(&opening, true).await?;
        let peer = opened.cancel.peer.to_string();
        let mut config = tokio_postgres::Config::new();
        config.user(&self.config.login.user).ssl_mode(tokio_postgres::config::SslMode::Disable);
        // Reads what was played back; waits for nothing.
        config.connect_raw(Replayed::new(opened), NoTls).await.map_err(|error| {
            OpenError::one(self.name(), peer, Failure::Broken(Stage::Starting, io::Error::other(error)))
        })
    }

    /// Asks the source to cancel what a session runs (protocol chapter 54.2.8), on a connection of
    /// its own, with TLS if the session has it. Returns when the server has closed that connection:
    /// the request is then dealt with, whether or not there was anything to cancel.
    ///
    /// # Errors
    /// The request could not be sent, or the server did not close within `connect_timeout`.
    pub async fn cancel(&self, target: &CancelTarget) -> Result<(), OpenError> {
        let deadline = Instant::now() + self.config.connect_timeout;
        self.cancel_until(target, deadline)
            .await
            .map_err(|failure| OpenError::one(self.name(), target.peer.to_string(), failure))
    }

    async fn cancel_until(&self, target: &CancelTarget, deadline: Instant) -> Result<(), Failure> {
        let wish = match (&self.tls, target.tls) {
            (Some(config), true) => Wish::Require(config.clone()),
            (None, true) | (_, false) => Wish::Plain,
        };
        let mut stream = dial_peer(target.peer.clone(), &wish, deadline).await?.stream;
        let mut request = BytesMut::new();
        request.put_u32(u32::try_from(12 + target.key.len()).unwrap_or(u32::MAX));
        request.put_i32(CANCEL_REQUEST);
        request.put_i32(target.process);
        request.put_slice(&target.key);
        let exchange = async {
            stream.write_all(&request).await?;
            stream.flush().await?;
            // The server answers by closing, not always tidily.
            let mut rest = [0; 512];
            let mut seen = 0;
            while seen < MAX_CANCEL_ANSWER {
                match stream.read(&mut rest).await {
                    Ok(0) | Err(_) => break,
                    Ok(length) => seen += length,
                }
            }
            Ok(())
        };
        timeout_at(deadline, exchange)
            .await
            .map_err(|_| Failure::TimedOut(Stage::Cancelling))?
            .map_err(|error| Failure::Broken(Stage::Cancelling, error))
    }

    async fn open_own(&self, opening: &Opening, own_queries: bool) -> Result<Opened, OpenError> {
        let login = &self.config.login;
        let login: Login<'_, Nobody> = Login::Own { user: &login.user, password: login.password.as_ref() };
        self.open_at_any(opening, own_queries, login).await
    }

    /// Tries the hosts in turn, those that failed lately last; `target_session_attrs` says which will do.
    async fn open_at_any<C: Conversation>(
        &self,
        opening: &Opening,
        own_queries: bool,
        mut login: Login<'_, C>,
    ) -> Result<Opened, OpenError> {
        let startup = startup_message(&self.config, login.user(), opening, own_queries)
            .map_err(|failure| OpenError::one(self.name(), "not dialled".to_owned(), failure))?;
        let mut failures = Vec::new();
        // Whoever may write is looking for the primary; a standby is better than nothing.
        let (wanted, required) = match (opening.mode, self.config.target_session) {
            (Mode::ReadWrite, _) => (TargetSession::Primary, false),
            (Mode::ReadOnly, wanted) => (wanted, wanted != TargetSession::PreferStandby),
        };
        let mut second_best = None;
        let order = self.roles.order(self.health.order(Instant::now()), wanted);
        for at in order {
            let Some(target) = self.targets.get(at) else { continue };
            let mut asked = false;
            match self.open_at(target, &startup, opening, &mut login, &mut asked).await {
                Ok(opened) => {
                    self.health.succeeded(at);
                    if wanted == TargetSession::Any {
                        return Ok(opened);
                    }
                    let deadline = Instant::now() + self.config.connect_timeout;
                    // Boxed, or the future of each session's start would be larger by what is rarely asked.
                    let told = Box::pin(is_standby(opened, opening.mode == Mode::ReadOnly, deadline));
                    let (opened, standby) = match told.await {
                        Ok(told) => told,
                        Err(failure) => {
                            failures.push(HostFailure { host: target.to_string(), failure });
                            continue;
                        }
                    };
                    self.roles.found(at, standby);
                    if fits(wanted, standby) {
                        return Ok(opened);
                    }
                    if required {
                        let failure = Failure::Unwanted(if standby { "standby" } else { "primary" });
                        failures.push(HostFailure { host: target.to_string(), failure });
                    } else {
                        second_best.get_or_insert(opened);
                    }
                    // A client has one authentication to give.
                    if asked && matches!(login, Login::Relayed { .. }) {
                        break;
                    }
                }
                Err(failure) => {
                    let next = failure.fails_over();
                    if next {
                        self.health.failed(at, Instant::now());
                    }
                    failures.push(HostFailure { host: target.to_string(), failure });
                    if !next || (asked && matches!(login, Login::Relayed { .. })) {
                        break;
                    }
                }
            }
        }
        second_best.ok_or_else(|| OpenError { name: self.name().clone(), failures })
    }

    async fn open_at<C: Conversation>(
        &self,
        target: &Target,
        startup: &[u8],
        opening: &Opening,
        login: &mut Login<'_, C>,
        asked: &mut bool,
    ) -> Result<Opened, Failure> {
        let deadline = Instant::now() + self.config.connect_timeout.max(Duration::from_millis(1));
        let wish = match (&self.tls, self.config.tls.mode) {
            (None, _) | (_, TlsMode::Disable) => Wish::Plain,
            (Some(config), TlsMode::Prefer) => Wish::Prefer(config.clone()),
            (Some(config), TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull) => {
                Wish::Require(config.clone())
            }
        };
        match attempt(target, &wish, startup, opening, login, deadline, asked).await {
            Err(failure) if matches!(wish, Wish::Prefer(_)) && !*asked && failure.retry_without_tls() => {
                // When that fails too, the first failure says more.
                attempt(target, &Wish::Plain, startup, opening, login, deadline, asked)
                    .await
                    .map_err(|second| if second.retry_without_tls() { failure } else { second })
            }
            outcome => outcome,
        }
    }
}

async fn attempt<C: Conversation>(
    target: &Target,
    wish: &Wish,
    startup: &[u8],
    opening: &Opening,
    login: &mut Login<'_, C>,
    deadline: Instant,
    asked: &mut bool,
) -> Result<Opened, Failure> {
    let Dialled { stream, peer, transport } = dial(target, wish, deadline).await?;
    let Established { stream, parameters, process, key, notices, leftover } =
        establish(stream, &transport, startup, opening, login, deadline, asked).await?;
    Ok(Opened {
        stream,
        parameters,
        cancel: CancelTarget { peer, tls: transport.tls, process, key },
        leftover,
        notices,
        pins: crate::upstream::Pins::new(opening.mode),
    })
}
