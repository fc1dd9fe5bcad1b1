//! `fedgate run`: load, build, listen, serve, drain.
//!
//! Invariant: the order of the end is fixed: new clients are turned away, running statements finish,
//! what is left is told, the audit trail is written down, threads end, and the HTTP side ends last so that it can say
//! what happens.

use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::audit::Audit;
use super::deployments::{self, Deployments, Wanted};
use super::document::DocumentReader;
use super::enforcement::{Enforcement, Recipe};
use super::log_writer::LogWriter;
use super::policy_loop::{LoopError, PolicyLoop, Sections};
use super::sources::Sources;
use super::workers::{Spawner, Workers};
use crate::audit::journal::Journal;
use crate::config::{AuditSection, Auth, Config, Http, HttpAuth, ServerTls, UsersFile};
use crate::guard::VerdictCache;
use crate::http::{Door, Issuer, Keys, SyncView, TapView};
use crate::metrics::{Metrics, Outcome};
use crate::session::{self, Cancels, Drain, Keepsakes, Roll, Shared, Throttle, Tls};
use crate::status::{Phase, Status};
use crate::sync::reader::Outlet;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 4096;
/// Bytes of verdicts that are remembered.
const VERDICT_BYTES: usize = 64 << 20;
/// How often the files of the configuration are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// After the last word, how long sessions may take to say goodbye.
const LAST_WORD: Duration = Duration::from_secs(5);
/// Clients over the limit that are told so with time to ask for TLS; more are told in passing.
const TURNED_AWAY_AT_ONCE: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Source(#[from] crate::upstream::SourceError),
    #[error(transparent)]
    Tls(#[from] crate::tls::TlsError),
    #[error(transparent)]
    Users(#[from] crate::config::UsersError),
    #[error("cannot listen on {address}: {error}")]
    Listen { address: SocketAddr, error: io::Error },
    #[error("gateway.auth.method: trust lets everybody in, and this gateway listens on {address}")]
    Trust { address: SocketAddr },
    #[error("cannot start: {0}")]
    Start(#[from] io::Error),
    #[error(transparent)]
    Audit(#[from] super::audit::AuditError),
    #[error("cannot set up metrics: {0}")]
    Metrics(#[from] prometheus::Error),
    #[error("the sync loop cannot start: {0}")]
    Loop(#[from] LoopError),
    #[error("http.auth: {0}")]
    Keys(#[from] crate::client::ClientError),
}

/// Runs the gateway until a signal ends it.
///
/// # Errors
/// What kept it from starting.
pub fn run(path: &Path, config: Config, log: &LogWriter) -> Result<(), RunError> {
    take_all_files();
    let workers = Workers::start(config.gateway.scheduler, config.gateway.worker_threads)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(Gateway::run(path, config, &workers, log));
    workers.stop();
    // A catalogue that is being judged holds nobody up.
    runtime.shutdown_background();
    outcome
}

/// Each connection is an open file, and OPAs that wait could take all of the 1024 that many systems begin with: then no
/// client of a source would be let in.
fn take_all_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        tracing::warn!(%error, "the number of open files stays as it is; see ulimit -n");
    }
}

/// SIGTERM and SIGINT drain.
struct End {
    terminate: Signal,
    interrupt: Signal,
}

impl End {
    fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

struct Gateway {
    path: PathBuf,
    sources: Sources,
    /// Where clients come in until the end, whatever a later configuration says.
    bound: Vec<SocketAddr>,
    shared: watch::Sender<Arc<Shared>>,
    metrics: Arc<Metrics>,
    files: Files,
    /// The audit trail that runs, whatever a later configuration says.
    audited: Option<AuditSection>,
    /// The HTTP side as it began, likewise, but for what it shows of itself when it speaks TLS.
    http: Option<Http>,
    http_tls: Option<watch::Sender<TlsAcceptor>>,
    journal: Option<Journal>,
    /// What the loop goes by, and what a reload wants it to go by.
    sections: Sections,
    wanted: Option<Sections>,
    policy_loop: Option<PolicyLoop>,
    view: watch::Sender<Option<SyncView>>,
    document: DocumentReader,
    enforcement: Enforcement,
    deployments: Deployments,
}

impl Gateway {
    async fn run(path: &Path, config: Config, workers: &Workers, log: &LogWriter) -> Result<(), RunError> {
        let mut end = End::new()?;
        let mut hangup = signal(SignalKind::hangup())?;
        let mut run_now = signal(SignalKind::user_defined1())?;
        let metrics = Arc::new(Metrics::new()?);
        log.count_lost(metrics.log_lines_lost.clone());
        let status = Status::new();
        let (drain, draining) = watch::channel(Drain::Not);
        let wanted = Wanted::of(&config);
        let rulings = watch::Sender::new(Arc::new(deployments::at_first(wanted.as_ref())));
        let audit = config.audit.as_ref().map(|section| Audit::start(section, &metrics.audit)).transpose()?;
        let roll = Arc::<Roll>::default();
        let mut listeners = Vec::new();
        for address in &config.gateway.listen {
            listeners.push(listen(*address)?);
        }
        let http = match &config.http {
            Some(http) => Some(listen(http.listen)?),
            None => None,
        };
        let http_tls = match config.http.as_ref().and_then(|http| http.tls.as_ref()) {
            Some(files) => Some(watch::Sender::new(crate::http::acceptor(files)?)),
            None => None,
        };
        let mut sources = Sources::new(Arc::clone(&metrics), status.clone());
        let files = Files::of(path, &config, &Files::default());
        let shared = watch::Sender::new(Arc::new(share(&config, &mut sources)?));
        let kept = Arc::new(Keepsakes {
            newest: shared.subscribe(),
            cancels: Arc::new(Cancels::default()),
            roll: Arc::clone(&roll),
            throttle: Throttle::default(),
            metrics: Arc::clone(&metrics),
            verdicts: Arc::new(VerdictCache::new(VERDICT_BYTES)),
            aside: session::Aside::start(session::AsideMetrics {
                judged: metrics.verdicts_aside.clone(),
                waiting: metrics.verdicts_waiting.clone(),
                panics: metrics.panics.clone(),
            })?,
            drain: draining.clone(),
            rulings: rulings.subscribe(),
            trail: audit.as_ref().map(Audit::trail),
        });

        let sections = Sections::of(&config);
        let journal = audit.as_ref().map(|audit| audit.journal.clone());
        let policy_loop = PolicyLoop::start(&sections, journal.clone(), &metrics.sync)?;
        let view = watch::Sender::new(policy_loop.as_ref().map(|policy_loop| policy_loop.view.clone()));

        let (outlet, coming) = Outlet::gated();
        let handle = outlet.handle();
        let mut enforcement =
            Enforcement::start(handle.in_force(), view.subscribe(), journal.clone(), metrics.opa.clone());
        enforcement.configure(Recipe::of(&config));
        let deployments = Deployments::start(
            wanted,
            rulings,
            (handle.in_force(), coming),
            view.subscribe(),
            journal.clone(),
            metrics.policy.clone(),
        );
        let mut tasks = JoinSet::new();
        if let Some(listener) = http {
            let address = listener.local_addr()?;
            let mut stop = draining.clone();
            let stop = async move {
                // Ends with the gateway at the latest.
                let _ = stop.wait_for(|drain| *drain == Drain::Now).await;
            };
            tracing::info!(%address, tls = http_tls.is_some(), "http listening");
            let door = match config.http.as_ref().map(|http| &http.auth) {
                Some(HttpAuth::Jwt(auth)) => {
                    Door::Jwt(Box::new(Issuer { auth: auth.clone(), keys: Keys::new(&auth.keys)? }))
                }
                Some(HttpAuth::None) | None => Door::Open { tls: http_tls.is_some() },
            };
            let parts = crate::http::Parts {
                metrics: Arc::clone(&metrics),
                status: status.subscribe(),
                door: Arc::new(door),
                document: handle,
                sync: view.subscribe(),
                opa: enforcement.view(),
                deployments: deployments.view(),
                tap: TapView { gates: sources.gates(), roll, journal: journal.clone() },
            };
            let tls = http_tls.as_ref().map(watch::Sender::subscribe);
            tasks.spawn(crate::http::serve(listener, tls, parts, stop));
        }
        let clients = Arc::new(AtomicUsize::new(0));
        let mut bound = Vec::new();
        for listener in listeners {
            let address = listener.local_addr()?;
            bound.push(address);
            tracing::info!(%address, "listening");
            let acceptor = Acceptor {
                listener,
                kept: Arc::clone(&kept),
                clients: Arc::clone(&clients),
                turned_away: Arc::default(),
                spawner: workers.spawner(),
            };
            // Ends when this function does; sessions are the workers' and are waited for below.
            tasks.spawn(acceptor.run());
        }
        let mut document = DocumentReader::new(outlet, metrics.document.clone());
        document.configure(config.document.as_ref());
        if let Some(policy_loop) = &policy_loop {
            document.follow(policy_loop.view.handle.status());
        }
        status.set_phase(Phase::Ready);

        let mut gateway = Self {
            path: path.to_owned(),
            sources,
            bound,
            shared,
            metrics,
            files,
            audited: config.audit,
            http: config.http,
            http_tls,
            journal,
            sections,
            wanted: None,
            policy_loop,
            view,
            document,
            enforcement,
            deployments,
        };
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = end.told() => break,
                _ = hangup.recv() => gateway.reload("SIGHUP"),
                _ = look.tick() => {
                    if gateway.files.changed() {
                        gateway.reload("a changed file");
                    }
                }
                _ = run_now.recv() => gateway.run_now(),
            }
            gateway.turn_loop().await;
        }

        let at_most = gateway.shared.borrow().gateway.drain_timeout;
        tracing::info!(?at_most, clients = clients.load(Ordering::Relaxed), "draining");
        status.set_phase(Phase::Draining);
        drain.send_replace(Drain::AtRest);
        tokio::select! {
            _ = workers.idle(at_most) => {}
            () = end.told() => tracing::warn!("told to end at once"),
        }
        drain.send_replace(Drain::Now);
        if !workers.idle(LAST_WORD).await {
            tracing::warn!(clients = clients.load(Ordering::Relaxed), "sessions left behind");
        }
        if let Some(policy_loop) = gateway.policy_loop.take() {
            policy_loop.end().await;
        }
        gateway.document.end().await;
        // OPAs that wait are answered now, and ask another gateway or come again.
        gateway.enforcement.end().await;
        gateway.deployments.end().await;
        if let Some(audit) = audit {
            // Last: sessions and whatever changes policy have told what they had to tell.
            audit.end().await;
        }
        tracing::info!("ended");
        Ok(())
    }

    /// Takes up the configuration as the file has it now; a bad one is reported and the old one stays.
    fn reload(&mut self, why: &str) {
        // Before they are read: what changes meanwhile counts as changed.
        self.files.look();
        let reloaded = Config::load(&self.path).map_err(RunError::from).and_then(|config| {
            let running = Arc::clone(&self.shared.borrow());
            if config.gateway.listen != running.gateway.listen
                || config.gateway.scheduler != running.gateway.scheduler
                || config.gateway.worker_threads != running.gateway.worker_threads
            {
                tracing::warn!("gateway.listen and the threads take effect at the next start");
            }
            if config.audit != self.audited {
                tracing::warn!("audit takes effect at the next start");
            }
            if of_the_start(config.http.as_ref()) != of_the_start(self.http.as_ref()) {
                // Whoever wants other tokens to count has to know that the old ones do until then.
                tracing::warn!(
                    "http, with whom it believes and whether it speaks TLS, takes effect at the next start"
                );
            }
            may_trust(&config.gateway.auth, &self.bound)?;
            let files = Files::of(&self.path, &config, &self.files);
            let tls = config.http.as_ref().and_then(|http| http.tls.as_ref());
            let https = match tls.filter(|_| self.http_tls.is_some()) {
                Some(tls) => Some(crate::http::acceptor(tls)?),
                None => None,
            };
            let shared = share(&config, &mut self.sources)?;
            Ok((files, shared, https, Sections::of(&config), Recipe::of(&config), Wanted::of(&config)))
        });
        match reloaded {
            Ok((files, shared, https, sections, recipe, wanted)) => {
                if let (Some(sender), Some(https)) = (&self.http_tls, https) {
                    sender.send_replace(https);
                }
                self.document.configure(sections.document.as_ref());
                self.enforcement.configure(recipe);
                self.deployments.configure(wanted);
                self.wanted = (sections != self.sections).then_some(sections);
                self.files = files;
                self.shared.send_replace(Arc::new(shared));
                self.metrics.config_reload(Outcome::Ok);
                tracing::info!(why, "configuration reloaded");
            }
            Err(error) => {
                self.metrics.config_reload(Outcome::Failed);
                tracing::error!(why, %error, "the new configuration cannot be used; the old one stays");
            }
        }
    }
}

impl Gateway {
    /// SIGUSR1.
    fn run_now(&self) {
        match &self.policy_loop {
            Some(policy_loop) => match policy_loop.view.handle.signal() {
                Ok(()) => tracing::info!("SIGUSR1: the sync loop runs"),
                Err(error) => tracing::warn!(%error, "SIGUSR1 found no place"),
            },
            None => tracing::info!("SIGUSR1: the sync loop is off"),
        }
    }

    /// After a reload: a loop whose sections have changed ends, and one by the new sections begins.
    async fn turn_loop(&mut self) {
        let Some(sections) = self.wanted.take() else { return };
        if let Some(policy_loop) = self.policy_loop.take() {
            self.view.send_replace(None);
            policy_loop.end().await;
        }
        match PolicyLoop::start(&sections, self.journal.clone(), &self.metrics.sync) {
            Ok(policy_loop) => {
                if let Some(policy_loop) = &policy_loop {
                    self.document.follow(policy_loop.view.handle.status());
                }
                self.policy_loop = policy_loop;
            }
            Err(error) => {
                self.metrics.config_reload(Outcome::Failed);
                tracing::error!(%error, "the sync loop is off until its configuration can be used");
            }
        }
        self.view.send_replace(self.policy_loop.as_ref().map(|policy_loop| policy_loop.view.clone()));
        self.sections = sections;
    }
}

/// `trust` is for loopback alone; a reload keeps the addresses of the start.
fn may_trust(auth: &Auth, bound: &[SocketAddr]) -> Result<(), RunError> {
    match bound.iter().find(|address| !address.ip().to_canonical().is_loopback()) {
        Some(address) if *auth == Auth::Trust => Err(RunError::Trust { address: *address }),
        _ => Ok(()),
    }
}

/// What counts from the start on: all but the files of a side that has TLS.
fn of_the_start(http: Option<&Http>) -> Option<(SocketAddr, &HttpAuth, bool)> {
    http.map(|http| (http.listen, &http.auth, http.tls.is_some()))
}

fn share(config: &Config, sources: &mut Sources) -> Result<Shared, RunError> {
    let tls = config.gateway.tls.as_ref().map(Tls::load).transpose()?;
    let users = match &config.gateway.auth {
        Auth::Scram { users_file } => Some(UsersFile::open(users_file.clone(), std::time::Instant::now())?),
        Auth::Relay | Auth::Trust => None,
    };
    // Last, since it is the step that changes something.
    let sources = sources.configure(&config.sources, &config.gateway.limits)?;
    Ok(Shared { gateway: config.gateway.clone(), tls, users, sources })
}

fn listen(address: SocketAddr) -> Result<TcpListener, RunError> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        // A restart does not have to wait for connections of before.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|error| RunError::Listen { address, error })
}

/// The files that a configuration hangs on, and how they looked last.
#[derive(Default)]
struct Files(Vec<(PathBuf, Option<(u64, SystemTime)>)>);

impl Files {
    /// Files that were looked at `before` keep that look.
    fn of(path: &Path, config: &Config, before: &Self) -> Self {
        let mut paths = vec![path.to_owned()];
        let gateway = config.gateway.tls.as_ref().map(|tls| &tls.files);
        let http = config.http.as_ref().and_then(|http| http.tls.as_ref());
        paths.extend(gateway.into_iter().chain(http).flat_map(ServerTls::all).cloned());
        paths.extend(config.sources.iter().filter_map(|source| source.tls.ca.clone()));
        // Of these a bundle is made.
        let mask_key = config.document.as_ref().and_then(|document| document.mask_key.as_ref());
        let signing = config.opa.as_ref().and_then(|opa| opa.signing.as_ref());
        let secrets = mask_key.into_iter().chain(signing.map(|signing| &signing.key));
        paths.extend(secrets.map(|secret| secret.path().to_owned()));
        let seen = |path: &PathBuf| match before.0.iter().find(|(known, _)| known == path) {
            Some((_, seen)) => *seen,
            None => stamp(path),
        };
        Self(paths.into_iter().map(|path| (path.clone(), seen(&path))).collect())
    }

    fn look(&mut self) {
        for (path, seen) in &mut self.0 {
            *seen = stamp(path);
        }
    }

    /// A file that is not there for a moment, while it is replaced, does not count.
    fn changed(&self) -> bool {
        self.0.iter().any(|(path, seen)| {
            let now = stamp(path);
            now.is_some() && now != *seen
        })
    }
}

fn stamp(path: &Path) -> Option<(u64, SystemTime)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

/// Accepts on one address.
struct Acceptor {
    listener: TcpListener,
    kept: Arc<Keepsakes>,
    clients: Arc<AtomicUsize>,
    turned_away: Arc<AtomicUsize>,
    spawner: Spawner,
}

/// One more of something that is counted, until it is dropped.
struct Place(Arc<AtomicUsize>);

impl Place {
    /// A place, if fewer than `most` are taken.
    fn take(count: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let place = Self(Arc::clone(count));
        (count.fetch_add(1, Ordering::Relaxed) < most).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Runs what serves one client; a panic in it ends that and nothing else.
async fn contained(session: Pin<Box<impl Future<Output = ()>>>, address: SocketAddr, metrics: &Metrics) {
    // Boxed by the caller: a future that is handed on lies in its task at each hand it goes through.
    if AssertUnwindSafe(session).catch_unwind().await.is_err() {
        panicked(address, metrics);
    }
}

fn panicked(address: SocketAddr, metrics: &Metrics) {
    metrics.panics.inc();
    tracing::error!(%address, "a session panicked; it is closed and no other is touched");
}

impl Acceptor {
    async fn run(self) {
        let mut failing = false;
        loop {
            match self.listener.accept().await {
                Ok((stream, address)) => {
                    failing = false;
                    // Whatever one connection brings, the next one is accepted.
                    match catch_unwind(AssertUnwindSafe(|| self.admit(stream, address))) {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => {
                            tracing::info!(%address, %error, "a connection was lost before it began");
                        }
                        Err(_) => panicked(address, &self.kept.metrics),
                    }
                }
                Err(error) => {
                    // Out of descriptors, most likely: it passes when sessions end.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::error!(%error, "cannot accept");
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn admit(&self, stream: TcpStream, address: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let keepalive = socket2::TcpKeepalive::new()
            .with_time(Duration::from_secs(60))
            .with_interval(Duration::from_secs(10))
            .with_retries(6);
        socket2::SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        let shared = Arc::clone(&self.kept.newest.borrow());
        let kept = Arc::clone(&self.kept);
        let draining = *kept.drain.borrow() != Drain::Not;
        let place = Place::take(&self.clients, shared.gateway.max_clients);
        let Some(place) = place.filter(|_| !draining) else {
            if let Some(place) = Place::take(&self.turned_away, TURNED_AWAY_AT_ONCE) {
                tokio::spawn(async move {
                    let _place = place;
                    let turned = Box::pin(session::turn_away(stream, address, &shared, &kept, draining));
                    contained(turned, address, &kept.metrics).await;
                });
            } else {
                session::wave_away(stream.into_std()?, &kept.metrics, draining);
            }
            return Ok(());
        };
        // It is registered anew with the runtime of its thread.
        let stream = stream.into_std()?;
        self.spawner.spawn(move |buffers| async move {
            let _place = place;
            let _counted = kept.metrics.client();
            let metrics = Arc::clone(&kept.metrics);
            let Ok(stream) = TcpStream::from_std(stream) else { return };
            let session = Box::pin(session::serve(stream, address, shared, kept, buffers));
            contained(session, address, &metrics).await;
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the acceptor puts sessions on the threads: what is held is given back, and the thread goes on.
    #[test]
    fn a_panic_ends_one_session_is_counted_and_leaves_its_thread_to_the_others() {
        for scheduler in [crate::config::Scheduler::PerCore, crate::config::Scheduler::WorkStealing] {
            let workers = Workers::start(scheduler, 1).unwrap();
            let metrics = Arc::new(Metrics::new().unwrap());
            let clients = Arc::new(AtomicUsize::new(0));
            let address = "127.0.0.1:1".parse().unwrap();
            let (told, tell) = std::sync::mpsc::channel();
            for panics in [true, true, false] {
                let place = Place::take(&clients, 10).unwrap();
                let (metrics, told) = (Arc::clone(&metrics), told.clone());
                workers.spawner().spawn(move |_| async move {
                    let session = async move {
                        let _place = place;
                        tokio::task::yield_now().await;
                        assert!(!panics, "a defect");
                    };
                    contained(Box::pin(session), address, &metrics).await;
                    told.send(()).unwrap();
                });
            }
            for _ in 0..3 {
                tell.recv_timeout(Duration::from_secs(60)).unwrap();
            }
            assert_eq!((metrics.panics.get(), clients.load(Ordering::Relaxed)), (2, 0));
            workers.stop();
        }
    }

    #[test]
    fn a_reload_does_not_open_to_the_world_what_began_with_passwords() {
        let [near, mapped, world] =
            ["127.0.0.1:1", "[::ffff:127.0.0.1]:1", "0.0.0.0:1"].map(|address| address.parse().unwrap());
        assert!(may_trust(&Auth::Trust, &[near, mapped]).is_ok());
        assert!(may_trust(&Auth::Trust, &[near, world]).is_err());
        assert!(may_trust(&Auth::Relay, &[world]).is_ok());
    }
}
