//! One client's life: startup, TLS, authentication, the lease, the relay, cancel.
//!
//! Invariant: a client reaches a source only after it is known, allowed and has a judge; every wait on
//! it has an end; and whatever one session meets, no other one does.

mod aside;
mod cancel;
mod clock;
mod drain;
mod gate;
mod judge;
mod limits;
mod prepared;
mod relay;
mod roll;
mod ruling;
mod scram;
mod startup;
mod throttle;
mod tls;
mod trail;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

pub use aside::{Aside, AsideMetrics};
pub use cancel::{Asked, CancelAt, Cancels, Landing, Muted, Registration, Released};
pub use drain::Drain;
pub use gate::{Gate, Gates, Overdue, Pass, Standing};
pub use judge::{Judge, Snapshot, Who};
pub use limits::{Restraints, Watch, Works};
pub use relay::{End, Parts, Relay, SharedParts, Timeouts};
pub use roll::{Full, Member, Most, Roll, Seat, Whose};
pub use ruling::{Ruling, Rulings, Why};
pub use startup::ClientStream;
pub use throttle::Throttle;
pub use tls::Tls;
pub use trail::Trail;

use crate::config::{self, Auth, Look, PoolMode, Users, UsersFile};
use crate::guard::{Mode, Refusal, VerdictCache, settings};
use crate::ids::{ClientUser, SourceName};
use crate::metrics::{Metrics, SourceMetrics, StartupFailure, UpstreamState};
use crate::sqlstate::SqlState;
use crate::status::{Fault, SessionCounted, SourceReporter};
use crate::tls::common_name;
use crate::upstream::{Backend, Lease, OpenError, Opening, Pool, PoolError, Settings, Source};
use crate::wire::startup::Startup;
use crate::wire::{BufferPool, ClientError, backend};
use clock::Patience;
use gate::Doorway;
use startup::{Greeted, Passwords, Relayed, StartupEnd, greet, negotiation};

/// How long a session waits for the function catalogue of a source that was not asked yet.
const CATALOGUE_WAIT: Duration = Duration::from_secs(10);
/// How long it takes at most from the end of a source's pool until the configuration that ended it is in force.
const RECONFIGURED_WITHIN: Duration = Duration::from_secs(5);
/// How long a client that is turned away may take to hear why.
const FAREWELL: Duration = Duration::from_secs(2);

/// What all sessions share; replaced whole on a reload.
pub struct Shared {
    pub gateway: config::Gateway,
    pub tls: Option<Tls>,
    /// With `method = "scram"`: who may log in.
    pub users: Option<UsersFile>,
    pub sources: HashMap<SourceName, OpenSource>,
}

/// What outlives a reload.
pub struct Keepsakes {
    /// What is configured now; a session begins with what was so when it came.
    pub newest: watch::Receiver<Arc<Shared>>,
    pub cancels: Arc<Cancels>,
    pub roll: Arc<Roll>,
    pub throttle: Throttle,
    pub metrics: Arc<Metrics>,
    pub verdicts: Arc<VerdictCache>,
    /// Where long texts are judged.
    pub aside: Arc<Aside>,
    pub drain: watch::Receiver<Drain>,
    /// What the configuration policies have decided.
    pub rulings: watch::Receiver<Arc<Rulings>>,
    /// Where refusals are told of; absent without an audit trail.
    pub trail: Option<Arc<Trail>>,
}

/// A source as sessions see it.
#[derive(Clone)]
pub struct OpenSource {
    pub source: Arc<Source>,
    /// The sessions there that clients share.
    pub pool: Arc<Pool>,
    /// `None` until the function catalogue was loaded.
    pub snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    /// Why the last load of the catalogue that failed did.
    pub failures: watch::Receiver<Option<Fault>>,
    /// Asks for the catalogue to be loaded anew.
    pub stale: Arc<Notify>,
    /// Whether anything may begin there.
    pub gate: Gate,
    pub metrics: SourceMetrics,
    pub reporter: SourceReporter,
    /// What the limits of the source count.
    pub restraints: Arc<Restraints>,
}

/// Read buffers of the thread that a session runs on.
#[derive(Clone)]
pub struct Buffers {
    pub client: BufferPool,
    pub source: BufferPool,
}

impl Buffers {
    /// For the sessions of one thread.
    pub fn new() -> Self {
        Self { client: BufferPool::new(16 * 1024, 64), source: BufferPool::new(64 * 1024, 64) }
    }
}

impl Default for Buffers {
    fn default() -> Self {
        Self::new()
    }
}

/// Tells a client that there is no room for it, in the words of its protocol and with TLS if it asks for it.
///
/// A cancel request is heard all the same: it may be what makes room.
pub async fn turn_away<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    address: SocketAddr,
    shared: &Shared,
    kept: &Keepsakes,
    draining: bool,
) {
    let mut slot = Some(ClientStream::Plain(stream));
    if let Ok(Ok(Greeted::Cancel(request))) = timeout(FAREWELL, greet(&mut slot, shared.tls.as_ref())).await {
        let forward = kept.cancels.forward(&request, address, &kept.metrics);
        let _ = timeout(shared.gateway.startup_timeout, forward).await;
        return;
    }
    let (reason, error) = no_room(draining);
    kept.metrics.startup_failed(reason);
    tracing::info!(%address, reason = error.message, "startup failed");
    if let Some(stream) = &mut slot {
        let _ = timeout(FAREWELL, stream.refuse(&error)).await;
    }
}

/// As [`turn_away`], without waiting for anything: for clients beyond those that are turned away with time to listen.
///
/// What lies there of its startup is taken first, since closing with bytes unread could cost it the error. Who asked for
/// TLS is told in the clear, as by a PostgreSQL that cannot start a process for it.
pub fn wave_away(mut stream: impl io::Read + io::Write, metrics: &Metrics, draining: bool) {
    let (reason, error) = no_room(draining);
    metrics.startup_failed(reason);
    let mut out = BytesMut::with_capacity(256);
    error.encode(&mut out);
    // Whoever has gone, or takes nothing, is told nothing.
    let _ = stream.read(&mut [0; 1024]);
    let _ = stream.write(&out);
}

fn no_room(draining: bool) -> (StartupFailure, ClientError) {
    if draining {
        return (StartupFailure::Shutdown, shutting_down());
    }
    let error = ClientError::fatal(SqlState::TOO_MANY_CONNECTIONS, "sorry, too many clients already")
        .hint("The gateway's max_clients is reached; try again later.");
    (StartupFailure::TooManyClients, error)
}

fn shutting_down() -> ClientError {
    ClientError::fatal(SqlState::ADMIN_SHUTDOWN, "the gateway is shutting down")
}

fn ended() -> ClientError {
    ClientError::fatal(SqlState::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
}

/// Ends with the word to drain.
async fn told_to_drain(mut drain: watch::Receiver<Drain>) {
    if drain.wait_for(|word| *word != Drain::Not).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Passes the word to drain on to one session, and says it to that session alone when a reload has
/// taken its source, or its access to it, or a policy its reads, or an administrator wants it gone. Never
/// ends by itself.
async fn watch_over(
    word: watch::Sender<Drain>,
    mut drain: watch::Receiver<Drain>,
    mut snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    mut rulings: watch::Receiver<Arc<Rulings>>,
    mut go: oneshot::Receiver<()>,
    source: SourceName,
    who: Who,
) {
    loop {
        let said = *drain.borrow_and_update();
        let ruling = rulings.borrow_and_update().of(&source, &who.user);
        let allowed = snapshots.borrow_and_update().as_ref().is_none_or(|snapshot| {
            snapshot.config.allows(&who.user, who.address.ip().to_canonical(), who.certified)
                && !ruling.ends(snapshot.config.is_engine(&who.user))
        });
        let said = if allowed { said } else { Drain::Now };
        word.send_if_modified(|heard| std::mem::replace(heard, said) != said);
        let kept = tokio::select! {
            heard = drain.changed() => heard,
            heard = snapshots.changed() => heard,
            heard = rulings.changed() => heard,
            gone = &mut go => match gone {
                Ok(()) => {
                    word.send_replace(Drain::Now);
                    std::future::pending().await
                }
                // The session has left the roll: it is ending by itself.
                Err(_) => std::future::pending().await,
            },
        };
        if kept.is_err() {
            // Nobody keeps this source any more.
            word.send_replace(Drain::Now);
            std::future::pending::<()>().await;
        }
    }
}

/// One client, from its first byte to its last.
pub async fn serve<S>(
    stream: S,
    address: SocketAddr,
    shared: Arc<Shared>,
    kept: Arc<Keepsakes>,
    buffers: Buffers,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let began = Instant::now();
    // What a start needs is gone behind it: an idle client is to cost little.
    let started = Box::pin(start(stream, address, began, Arc::clone(&shared), kept, buffers)).await;
    // A session under way does not keep an older configuration alive.
    drop(shared);
    let Some(Started { relay, session }) = started else { return };
    let end = relay.run().await;
    session.end(&end);
}

/// A session that relays from now on, and what it holds meanwhile.
struct Started<S> {
    relay: Box<Relay<ClientStream<S>>>,
    session: Session,
}

/// What a session holds, and what is told when it ends.
struct Session {
    began: Instant,
    config: Arc<config::Source>,
    user: ClientUser,
    address: SocketAddr,
    registration: Option<Registration>,
    seat: Seat,
    _counted: SessionCounted,
    _watched: AbortOnDropHandle<()>,
}

impl Session {
    fn end(self, end: &End) {
        let Self { began, config, user, address, registration, seat, .. } = self;
        // Before anybody can read that the session ended, its key is nobody's, and its place is free.
        drop(registration);
        drop(seat);
        match end {
            End::Client | End::ClientGone => {
                tracing::info!(source = %config.name, %user, %address, lasted = ?began.elapsed(), ?end, "session ended");
            }
            End::SourceGone(why) => {
                tracing::warn!(source = %config.name, %user, %address, lasted = ?began.elapsed(), why, "session ended by the source");
            }
            End::Fatal(error) => {
                tracing::warn!(
                    source = %config.name, %user, %address, lasted = ?began.elapsed(),
                    sqlstate = error.sqlstate.as_str(), reason = error.message, "session ended by the gateway"
                );
            }
        }
    }
}

/// From a client's first byte to a session; nothing where it gets none, and has been told so.
async fn start<S>(
    stream: S,
    address: SocketAddr,
    began: Instant,
    shared: Arc<Shared>,
    kept: Arc<Keepsakes>,
    buffers: Buffers,
) -> Option<Started<S>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut slot = Some(ClientStream::Plain(stream));
    let mut waiting = None;
    let patience = Patience::new(shared.gateway.startup_timeout);
    let (told_to_go, mut go) = oneshot::channel();
    let begun = tokio::select! {
        biased;
        begun = begin(&mut slot, &mut waiting, address, &shared, &kept, &patience, told_to_go) => Some(begun),
        () = patience.over() => None,
        Ok(()) = &mut go => Some(Err(StartupEnd::Refused(StartupFailure::Ended, ended()))),
        () = told_to_drain(kept.drain.clone()) => {
            Some(Err(StartupEnd::Refused(StartupFailure::Shutdown, shutting_down())))
        }
    };
    let begun = match begun.unwrap_or_else(|| Err(too_long(waiting))) {
        Ok(begun) => begun?,
        Err(end) => {
            let reason = match &end {
                StartupEnd::Refused(reason, _) | StartupEnd::Broken(reason, _) => *reason,
            };
            kept.metrics.startup_failed(reason);
            tracing::info!(%address, reason = %end, "startup failed");
            if let (StartupEnd::Refused(_, error), Some(stream)) = (&end, &mut slot) {
                let _ = timeout(FAREWELL, stream.refuse(error)).await;
            }
            return None;
        }
    };
    Some(establish(slot?, begun, go, began, &shared, &kept, buffers))
}

/// Puts together what relays for a client that has its session or its place.
fn establish<S>(
    stream: ClientStream<S>,
    begun: Begun,
    go: oneshot::Receiver<()>,
    began: Instant,
    shared: &Shared,
    kept: &Keepsakes,
    buffers: Buffers,
) -> Started<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    kept.metrics.established();
    let Begun {
        open,
        backend,
        shared: shares,
        who,
        snapshot,
        name_prefix,
        registration,
        settings,
        seat,
        early,
    } = begun;
    let asked = match (&registration, &shares) {
        (Some(registration), _) => registration.asked(),
        (None, Some(shares)) => shares.registration.asked(),
        (None, None) => Arc::default(),
    };
    let config = Arc::clone(&snapshot.config);
    let (user, address) = (who.user.clone(), who.address);
    tracing::info!(source = %config.name, %user, %address, took = ?began.elapsed(), "session began");
    let (word, drain) = watch::channel(*kept.drain.borrow());
    let (snapshots, rulings) = (open.snapshots.clone(), kept.rulings.clone());
    let watch_over =
        watch_over(word, kept.drain.clone(), snapshots, rulings, go, config.name.clone(), who.clone());
    let watched = AbortOnDropHandle::new(tokio::spawn(watch_over));
    let voice = kept.trail.as_ref().map(|trail| trail::Voice {
        trail: Arc::clone(trail),
        source: config.name.shared(),
        client_user: user.shared(),
    });
    // Sessions are moved about as they begin; what is rarely looked at lies apart.
    let works = Box::new(limits::Works::new(Arc::clone(&open.restraints), &user, settings.into()));
    let judge = Judge::new(
        who,
        open.snapshots.clone(),
        snapshot,
        Arc::clone(&kept.verdicts),
        open.metrics.clone(),
        Arc::clone(&open.stale),
        Arc::clone(&kept.aside),
    )
    .with_voice(voice)
    .with_rulings(kept.rulings.clone());
    let counted = open.reporter.session();
    let relay = Box::new(Relay::new(Parts {
        client: stream,
        early,
        client_buffers: buffers.client,
        lease: Lease::new(buffers.source),
        backend,
        shared: shares,
        source: Arc::clone(&open.source),
        judge,
        works,
        limits: shared.gateway.limits.clone(),
        drain,
        doorway: Doorway::new(open.gate.clone(), config.pool.wait, asked),
        timeouts: Timeouts {
            statement: config.statement_timeout,
            idle_in_transaction: config.idle_in_transaction_timeout,
            write: shared.gateway.write_timeout,
        },
        name_prefix,
        metrics: open.metrics.clone(),
    }));
    let session =
        Session { began, config, user, address, registration, seat, _counted: counted, _watched: watched };
    Started { relay, session }
}

/// A session that may begin to relay.
struct Begun {
    open: OpenSource,
    /// Where the client has one now.
    backend: Option<Box<Backend>>,
    shared: Option<SharedParts>,
    who: Who,
    snapshot: Arc<Snapshot>,
    name_prefix: String,
    /// Of a session that is not shared.
    registration: Option<Registration>,
    /// The session's own settings at its start, but for application_name.
    settings: Settings,
    seat: Seat,
    /// What the client has said before it was asked.
    early: BytesMut,
}

/// A client that is known and may use a source.
struct Known {
    startup: Startup,
    open: OpenSource,
    settings: Settings,
    who: Who,
    snapshot: Arc<Snapshot>,
    seat: Option<Seat>,
    /// Where it has no seat yet: what tells it to go.
    go: Option<oneshot::Sender<()>>,
    early: BytesMut,
    /// Opening a session counts as something under way.
    pass: Pass,
}

/// `startup_timeout` is over; `waiting`: for that source, not for the client.
fn too_long(waiting: Option<OpenSource>) -> StartupEnd {
    let Some(open) = waiting else {
        let error = ClientError::fatal(SqlState::PROTOCOL_VIOLATION, "startup took too long")
            .hint("The gateway's startup_timeout is over.");
        return StartupEnd::Refused(StartupFailure::Timeout, error);
    };
    open.metrics.up(false);
    open.reporter.down(Fault::Timeout, "no session within startup_timeout");
    let error = unavailable(&open, "The gateway could not open a session there: timed out.");
    StartupEnd::Refused(StartupFailure::SourceDown, error)
}

fn unavailable(open: &OpenSource, detail: &str) -> ClientError {
    let message = format!("source \"{}\" is not available", open.source.name());
    ClientError::fatal(SqlState::CANNOT_CONNECT_NOW, message).detail(detail)
}

/// `waiting` is set while it is the source that is waited for.
async fn begin<S: AsyncRead + AsyncWrite + Unpin + Send>(
    slot: &mut Option<ClientStream<S>>,
    waiting: &mut Option<OpenSource>,
    address: SocketAddr,
    shared: &Shared,
    kept: &Keepsakes,
    patience: &Patience,
    go: oneshot::Sender<()>,
) -> Result<Option<Begun>, StartupEnd> {
    let Some(known) = introduce(slot, waiting, address, shared, kept, patience, go).await? else {
        return Ok(None);
    };
    let Some(stream) = slot else {
        return Err(StartupEnd::Broken(StartupFailure::Internal, "no stream".to_owned()));
    };
    open_session(stream, waiting, known, shared, kept, patience).await
}

/// Who it is, and what it may use.
async fn introduce<S: AsyncRead + AsyncWrite + Unpin + Send>(
    slot: &mut Option<ClientStream<S>>,
    waiting: &mut Option<OpenSource>,
    address: SocketAddr,
    shared: &Shared,
    kept: &Keepsakes,
    patience: &Patience,
    go: oneshot::Sender<()>,
) -> Result<Option<Known>, StartupEnd> {
    let startup = match greet(slot, shared.tls.as_ref()).await? {
        Greeted::Startup(startup) => startup,
        Greeted::Cancel(request) => {
            kept.cancels.forward(&request, address, &kept.metrics).await;
            return Ok(None);
        }
    };
    let Some(stream) = slot else {
        return Err(StartupEnd::Broken(StartupFailure::Internal, "no stream".to_owned()));
    };
    let user = match startup.get("user") {
        Some(user) if !user.is_empty() => ClientUser::new(user),
        _ => {
            let error = ClientError::fatal(
                SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                "no PostgreSQL user name specified in startup packet",
            );
            return Err(StartupEnd::Refused(StartupFailure::Protocol, error));
        }
    };
    let mut out = BytesMut::new();
    negotiation(&startup, &mut out);
    stream.write_all(&out).await?;
    out.clear();

    let certified = stream.certificate().and_then(common_name).is_some_and(|name| name == user.as_str());
    match &shared.gateway.auth {
        Auth::Trust | Auth::Relay => {}
        Auth::Scram { .. } if certified => {}
        Auth::Scram { .. } => {
            let users = users(shared);
            let end_point = if stream.is_tls() {
                shared.tls.as_ref().and_then(|tls| tls.end_point.clone())
            } else {
                None
            };
            Passwords { users: &users, throttle: &kept.throttle }
                .authenticate(stream, user.as_str(), address.ip(), end_point)
                .await?;
        }
    }

    let database = match startup.get("database") {
        Some(database) if !database.is_empty() => database,
        _ => user.as_str(),
    };
    let mut open = find(shared, database, &user, address.ip(), certified)?;
    let newest;
    let settings = startup_settings(&startup)?;
    // Whose login the source judges is not known yet: strangers would take the places of those they name.
    let relayed = matches!(shared.gateway.auth, Auth::Relay);
    let (mut go, mut seat) = (Some(go), None);
    if !relayed && let Some(go) = go.take() {
        seat = Some(sit(kept, shared, open, &user, address, go)?);
    }
    let mut early = BytesMut::new();
    // Until the client has its session, opening it counts as something under way.
    let pass = match open.gate.try_pass() {
        Some(pass) => pass,
        None => {
            let _stopped = patience.stop();
            let passed = tokio::select! {
                passed = open.gate.pass(open.source.config().pool.wait) => passed,
                end = stream.gone(&mut early), if !relayed => return Err(end),
            };
            let pass = passed.map_err(|Overdue| {
                let told = ClientError { severity: crate::wire::Severity::Fatal, ..open.gate.overdue() };
                StartupEnd::Refused(StartupFailure::Paused, told)
            })?;
            // Paused may have been so that the source could be moved.
            newest = Arc::clone(&kept.newest.borrow());
            open = find(&newest, database, &user, address.ip(), certified)?;
            pass
        }
    };
    *waiting = Some(open.clone());
    let snapshot = snapshot(open).await?;
    *waiting = None;
    let ruling = kept.rulings.borrow().of(open.source.name(), &user);
    if let Some(error) = ruling.at_start(open.source.name(), snapshot.config.is_engine(&user)) {
        return Err(StartupEnd::Refused(StartupFailure::Policy, error));
    }
    let open = open.clone();
    let who = Who { user, address, certified };
    Ok(Some(Known { startup, open, settings, who, snapshot, seat, go, early, pass }))
}

/// A session for a client that is known, or a place among those that share some.
async fn open_session<S: AsyncRead + AsyncWrite + Unpin + Send>(
    stream: &mut ClientStream<S>,
    waiting: &mut Option<OpenSource>,
    known: Known,
    shared: &Shared,
    kept: &Keepsakes,
    patience: &Patience,
) -> Result<Option<Begun>, StartupEnd> {
    let Known { startup, mut open, settings, who, mut snapshot, seat, go, mut early, pass: _pass } = known;
    let user = &who.user;
    let mode = if snapshot.config.is_writer(user) { Mode::ReadWrite } else { Mode::ReadOnly };
    let name_prefix = format!("fedgate/{user}");
    let client_name =
        settings.iter().find(|(name, _)| name == "application_name").map(|(_, value)| value.as_str());
    let application_name = match client_name {
        Some(name) if !name.is_empty() => format!("{name_prefix} {name}"),
        _ => name_prefix.clone(),
    };
    let own: Settings = settings.iter().filter(|(name, _)| name != "application_name").cloned().collect();
    let mut key = own.clone();
    *waiting = Some(open.clone());
    let asked = Instant::now();
    let shares = mode == Mode::ReadOnly && !matches!(shared.gateway.auth, Auth::Relay);
    let (backend, told, key) = if shares {
        key.sort();
        let key = Arc::new(key);
        loop {
            let transactions = open.pool.mode() == PoolMode::Transaction;
            if let Some(parameters) = open.pool.parameters(&key).filter(|_| transactions) {
                break (None, parameters, Some(key));
            }
            match leased(&open, &key, user, stream, &mut early, patience).await? {
                Ok(backend) => {
                    let parameters = Arc::clone(&backend.parameters);
                    break (Some(backend), parameters, Some(key));
                }
                Err(error) => {
                    // It may have been changed while somebody waited.
                    let newer = match error {
                        PoolError::Closed => newer(kept, &open, &who).await?,
                        PoolError::Open(_) | PoolError::Wait { .. } | PoolError::Failing(_) => None,
                    };
                    let Some(newer) = newer else { return Err(no_session(&open, stream, error).await) };
                    open = newer;
                    snapshot = self::snapshot(&open).await?;
                }
            }
        }
    } else {
        let room = match shared.gateway.auth {
            // Clients with logins of their own are as many as the gateway lets in.
            Auth::Relay => None,
            Auth::Scram { .. } | Auth::Trust => match open.pool.slot(user, || patience.stop()).await {
                Ok(slot) => Some(slot),
                Err(error) => return Err(no_session(&open, stream, error).await),
            },
        };
        let opening = Opening { mode, application_name: application_name.clone(), settings: key };
        let counted = open.metrics.upstream(UpstreamState::Opening);
        let opened = match &shared.gateway.auth {
            Auth::Relay => {
                // From here on the client is waited for too; the source's waits have their own ends.
                *waiting = None;
                let mut relayed = Relayed {
                    stream: &mut *stream,
                    throttle: &kept.throttle,
                    address: who.address.ip(),
                    user: user.as_str(),
                    answered: false,
                    refused: None,
                };
                let opened = open.source.open_relayed(&opening, user.as_str(), &mut relayed).await;
                let Relayed { answered, refused, .. } = relayed;
                if let Some(end) = refused {
                    return Err(end);
                }
                if answered && !matches!(&opened, Err(error) if error.relayed().is_some()) {
                    kept.throttle.forgive(who.address.ip(), Instant::now());
                }
                opened
            }
            Auth::Scram { .. } | Auth::Trust => open.source.open(&opening).await,
        };
        drop(counted);
        let opened = match opened {
            Ok(opened) => opened,
            Err(error) => return Err(source_failed(&open, stream, &error).await),
        };
        open.metrics.upstream_opened(asked.elapsed());
        let backend = Box::new(Backend::own(opened, application_name.clone(), &open.metrics).within(room));
        let parameters = Arc::clone(&backend.parameters);
        (Some(backend), parameters, None)
    };
    *waiting = None;
    let seat = match (seat, go) {
        (Some(seat), _) => seat,
        (None, Some(go)) => sit(kept, shared, &open, user, who.address, go)?,
        (None, None) => return Err(StartupEnd::Broken(StartupFailure::Internal, "no seat".to_owned())),
    };
    open.metrics.up(true);
    let version = told.iter().find(|(name, _)| name == "server_version");
    open.reporter.up(version.map(|(_, value)| value.as_str()).unwrap_or_default());

    let registration = kept.cancels.register(startup.version);
    let mut out = BytesMut::new();
    backend::authentication_ok(&mut out);
    for (name, value) in told.iter() {
        let value = if name == "application_name" { client_name.unwrap_or_default() } else { value };
        backend::parameter_status(name, value, &mut out);
    }
    backend::backend_key_data(registration.pid, registration.secret(), &mut out);
    for notice in backend.iter().flat_map(|backend| &backend.notices) {
        out.extend_from_slice(notice);
    }
    backend::ready_for_query(backend::Status::Idle, &mut out);
    let (backend, parts, registration) = match key {
        None => {
            if let Some(backend) = &backend {
                let target = backend.cancel.clone();
                let at = CancelAt { source: Arc::clone(&open.source), target };
                registration.lease(Arc::new(at), Muted::No);
            }
            (backend, None, Some(registration))
        }
        Some(key) => {
            let parts = SharedParts {
                pool: Arc::clone(&open.pool),
                mode: open.pool.mode(),
                key,
                user: user.clone(),
                application_name,
                told,
                registration,
            };
            (backend, Some(parts), None)
        }
    };
    stream.write_all(&out).await?;
    stream.flush().await?;
    Ok(Some(Begun {
        open,
        backend,
        shared: parts,
        who,
        snapshot,
        name_prefix,
        registration,
        settings: own,
        seat,
        early,
    }))
}

/// A session of the pool, in turn; the wait is not the client's doing, and it may leave meanwhile.
async fn leased<S: AsyncRead + AsyncWrite + Unpin + Send>(
    open: &OpenSource,
    key: &Arc<Settings>,
    user: &ClientUser,
    stream: &mut ClientStream<S>,
    early: &mut BytesMut,
    patience: &Patience,
) -> Result<Result<Box<Backend>, PoolError>, StartupEnd> {
    tokio::select! {
        leased = open.pool.lease(key, user, || patience.stop()) => Ok(leased),
        end = stream.gone(early) => Err(end),
    }
}

/// The same source as it is configured now, if it has another pool of the same mode.
async fn newer(kept: &Keepsakes, open: &OpenSource, who: &Who) -> Result<Option<OpenSource>, StartupEnd> {
    let mut newest = kept.newest.clone();
    let name = open.source.name();
    // The pool of before is closed a moment before the new configuration is in force.
    let changed = newest.wait_for(|shared| {
        shared.sources.get(name).is_none_or(|newer| !Arc::ptr_eq(&newer.pool, &open.pool))
    });
    let Ok(Ok(shared)) = timeout(RECONFIGURED_WITHIN, changed).await else { return Ok(None) };
    let shared = Arc::clone(&shared);
    let newer = find(&shared, name.as_str(), &who.user, who.address.ip(), who.certified)?;
    Ok(Some(newer.clone()).filter(|newer| newer.pool.mode() == open.pool.mode()))
}

/// A seat among those of its user and of the source.
fn sit(
    kept: &Keepsakes,
    shared: &Shared,
    open: &OpenSource,
    user: &ClientUser,
    address: SocketAddr,
    go: oneshot::Sender<()>,
) -> Result<Seat, StartupEnd> {
    let config = open.source.config();
    let most = Most { of_user: shared.gateway.max_clients_per_user, of_source: config.max_clients };
    kept.roll.sit(user, &config.name, address, most, go).map_err(|full| {
        let reason = match full {
            Full::User(..) => StartupFailure::UserLimit,
            Full::Source(..) => StartupFailure::SourceLimit,
        };
        StartupEnd::Refused(reason, full.error())
    })
}

/// Logs why the pool gave no session, and gives what the client may know.
async fn no_session<S: AsyncRead + AsyncWrite + Unpin>(
    open: &OpenSource,
    stream: &mut ClientStream<S>,
    error: PoolError,
) -> StartupEnd {
    let reason = match &error {
        PoolError::Open(error) => return source_failed(open, stream, error).await,
        PoolError::Wait { .. } => StartupFailure::Pool,
        PoolError::Failing(_) => StartupFailure::SourceDown,
        PoolError::Closed => StartupFailure::Shutdown,
    };
    StartupEnd::Refused(reason, error.client_error())
}

/// Who may log in, as of now.
fn users(shared: &Shared) -> Arc<Users> {
    let Some(file) = &shared.users else {
        return Arc::default();
    };
    let (users, look) = file.current(std::time::Instant::now());
    match look {
        Look::Unchanged => {}
        Look::Reloaded => tracing::info!(users = users.len(), "the users file was read anew"),
        Look::Bad(error) => tracing::error!(%error, "the users file cannot be used; the last good one stays"),
    }
    users
}

/// The source of that name, if this user may use it from there; else it does not exist.
fn find<'a>(
    shared: &'a Shared,
    database: &str,
    user: &ClientUser,
    address: IpAddr,
    certified: bool,
) -> Result<&'a OpenSource, StartupEnd> {
    shared
        .sources
        .get(&SourceName::new(database))
        .filter(|open| open.source.config().allows(user, address.to_canonical(), certified))
        .ok_or_else(|| {
            let error = ClientError::fatal(
                SqlState::INVALID_CATALOG_NAME,
                format!("database \"{database}\" does not exist"),
            )
            .detail("No source of this name is open to this user from this address.")
            .hint("The name of the database is the name of a source of the gateway.");
            StartupEnd::Refused(StartupFailure::Access, error)
        })
}

/// The snapshot in force; waits for the first one, or until it is known why there is none.
async fn snapshot(open: &OpenSource) -> Result<Arc<Snapshot>, StartupEnd> {
    if let Some(snapshot) = open.snapshots.borrow().clone() {
        return Ok(snapshot);
    }
    let mut snapshots = open.snapshots.clone();
    let mut failures = open.failures.clone();
    failures.mark_unchanged();
    open.stale.notify_one();
    let loaded =
        async move { snapshots.wait_for(Option::is_some).await.ok().and_then(|first| first.clone()) };
    let failed = async move { failures.changed().await.ok().and_then(|()| *failures.borrow()) };
    let fault = tokio::select! {
        biased;
        loaded = loaded => match loaded {
            Some(snapshot) => return Ok(snapshot),
            None => None,
        },
        fault = failed => fault,
        () = sleep(CATALOGUE_WAIT) => None,
    };
    let detail = format!(
        "The gateway has not loaded the source's function catalogue yet, without which no statement can be judged: {}.",
        fault.unwrap_or(Fault::Timeout).as_str()
    );
    Err(StartupEnd::Refused(StartupFailure::SourceDown, unavailable(open, &detail)))
}

/// Logs what happened in full, and gives what the client may know.
async fn source_failed<S: AsyncRead + AsyncWrite + Unpin>(
    open: &OpenSource,
    stream: &mut ClientStream<S>,
    error: &OpenError,
) -> StartupEnd {
    open.metrics.upstream_open_failures.inc();
    if let Some(relayed) = error.relayed() {
        let _ = stream.write_all(relayed).await;
        let _ = stream.shutdown().await;
        return StartupEnd::Broken(StartupFailure::Authentication, error.to_string());
    }
    let told = error.client_error();
    if told.sqlstate == SqlState::CANNOT_CONNECT_NOW {
        tracing::error!(source = %open.source.name(), %error, "source is not available");
        open.metrics.up(false);
        open.reporter.down(fault(error), &error.to_string());
    }
    StartupEnd::Refused(StartupFailure::SourceDown, told)
}

/// In general words, why there is no session.
pub fn fault(error: &OpenError) -> Fault {
    use crate::upstream::Failure;
    let Some(last) = error.failures().last() else {
        return Fault::Unreachable;
    };
    match &last.failure {
        Failure::Resolve(_) | Failure::Connect(_) | Failure::Closed(_) | Failure::Broken(..) => {
            Fault::Unreachable
        }
        Failure::TimedOut(_) => Fault::Timeout,
        Failure::Tls(_) | Failure::TlsDeclined => Fault::Tls,
        Failure::Nonsense(_) => Fault::Protocol,
        Failure::UnsupportedAuthentication(_)
        | Failure::ClearText
        | Failure::Scram(_)
        | Failure::Conversation(_) => Fault::Authentication,
        Failure::NoPassword | Failure::PasswordFile { .. } => Fault::Secret,
        Failure::Pin { .. } | Failure::Setting(_) => Fault::Pinning,
        Failure::Unwanted(_) => Fault::NotReady,
        Failure::Server(error) => match error.sqlstate.as_str() {
            "53300" => Fault::Full,
            "57P01" | "57P02" | "57P03" => Fault::NotReady,
            code if code.starts_with("28") => Fault::Authentication,
            _ => Fault::Unreachable,
        },
    }
}

/// The startup settings of a client, by the same allow list as SET.
fn startup_settings(startup: &Startup) -> Result<Vec<(String, String)>, StartupEnd> {
    let denied = |refusal: Refusal| {
        let error = ClientError::fatal(refusal.sqlstate(), refusal.client_message());
        let error = ClientError { detail: refusal.detail, hint: refusal.hint, ..error };
        StartupEnd::Refused(StartupFailure::Setting, error)
    };
    // As in PostgreSQL, keys of their own count after `options`, and of two the later one.
    let mut settings: Vec<(String, String)> = Vec::new();
    let mut set = |name: String, value: String| {
        settings.retain(|(known, _)| *known != name);
        settings.push((name, value));
    };
    for (name, value) in
        settings::startup_options(startup.get("options").unwrap_or_default()).map_err(denied)?
    {
        set(name, value);
    }
    for (key, value) in &startup.parameters {
        match key.as_str() {
            "user" | "database" | "options" => {}
            "replication" => {
                if !matches!(value.to_ascii_lowercase().as_str(), "false" | "off" | "no" | "0") {
                    let error = ClientError::fatal(
                        SqlState::FEATURE_NOT_SUPPORTED,
                        "replication connections are not sent on by this gateway",
                    );
                    return Err(StartupEnd::Refused(StartupFailure::Setting, error));
                }
            }
            _ => {
                let setting = settings::judge_setting(key, value).map_err(denied)?;
                set(setting.name, setting.value);
            }
        }
    }
    Ok(settings)
}
