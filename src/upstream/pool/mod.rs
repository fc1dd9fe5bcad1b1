//! The sessions of one source that clients share: opened, kept warm, handed out in turn, taken back.
//!
//! Invariant: there are never more sessions than `size`, those being opened among them, and one has one client at a
//! time; every wait in here has an end, and a source that does not answer is asked by one at a time.

mod backend;
mod queue;
pub mod statements;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rand::Rng;
use thiserror::Error;
use tokio::runtime;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

pub use backend::{Backend, Settings};
use queue::{Queue, Ticket};
use statements::Texts;

use crate::config::{self, PoolMode, PoolSection};
use crate::guard::Mode;
use crate::ids::ClientUser;
use crate::metrics::SourceMetrics;
use crate::sqlstate::SqlState;
use crate::upstream::{OpenError, Opening, Source};
use crate::wire::ClientError;

/// What a shared session calls itself at the source while no client has it. No client's name is: those begin with
/// `fedgate/`.
pub const UNNAMED: &str = "fedgate";

/// After so long without a client a session is asked whether it still stands before it is handed out.
const ASKED_AFTER: Duration = Duration::from_secs(30);
/// How long its answer may take.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// After a failure the source is left alone for so long, twice as long after the next one.
const FIRST_BACK_OFF: Duration = Duration::from_millis(50);
const LONGEST_BACK_OFF: Duration = Duration::from_secs(2);
/// How often is looked for sessions to open or to close.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Kinds of sessions (by their startup settings) whose parameters are remembered.
const KINDS: usize = 64;

/// Why there is no session.
#[derive(Debug, Error)]
pub enum PoolError {
    #[error("no session of {size} became free within {waited:?}")]
    Wait { size: usize, waited: Duration },
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It failed for another a moment ago.
    #[error("{}", .0.message)]
    Failing(ClientError),
    #[error("the source is no longer configured")]
    Closed,
}

impl PoolError {
    /// Not one that is about what this client asked for, which no session that others have would heal.
    fn may_be_a_full_source(&self) -> bool {
        match self {
            PoolError::Open(error) => error.is_full(),
            PoolError::Failing(_) => true,
            PoolError::Wait { .. } | PoolError::Closed => false,
        }
    }

    /// What a client may know.
    pub fn client_error(&self) -> ClientError {
        match self {
            PoolError::Wait { size, waited } => ClientError::fatal(
                SqlState::TOO_MANY_CONNECTIONS,
                "no session at the source became free in time",
            )
            .detail(format!("All {size} were in use for {waited:?}."))
            .hint("Try again later, or ask the gateway's operator for a larger pool.size."),
            PoolError::Open(error) => error.client_error(),
            PoolError::Failing(error) => error.clone(),
            PoolError::Closed => {
                ClientError::fatal(SqlState::ADMIN_SHUTDOWN, "the source is no longer configured in this way")
                    .hint("Connect again.")
            }
        }
    }
}

/// The sessions of one source.
#[derive(Debug)]
pub struct Pool {
    mode: PoolMode,
    metrics: PoolMetrics,
    /// What clients have prepared at this source.
    pub texts: Texts,
    // std Mutex: held for a look, never across an await, and never while a session or a slot is dropped.
    inner: Mutex<Inner>,
    /// That there is something to open.
    wanted: Notify,
}

#[derive(Clone)]
struct PoolMetrics(SourceMetrics);

impl std::fmt::Debug for PoolMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PoolMetrics")
    }
}

#[derive(Debug)]
struct Inner {
    source: Arc<Source>,
    config: PoolSection,
    /// Sessions that are open or being opened.
    live: usize,
    /// Those of them that are open and shared.
    standing: usize,
    /// The last one that was given back at the end.
    // Boxed, so that handing one on moves a pointer.
    #[expect(clippy::vec_box, reason = "clients get them boxed; what is idle is not unpacked in between")]
    idle: Vec<Box<Backend>>,
    waiting: Queue<ClientUser, runtime::Id, Waiter>,
    failing: Option<Failing>,
    /// What sessions of a kind report of themselves; the kind asked for last at the end.
    kinds: Vec<(Arc<Settings>, Arc<Settings>)>,
    closed: bool,
}

#[derive(Debug)]
struct Waiter {
    /// Absent: it wants room for a session of its own.
    key: Option<Arc<Settings>>,
    grant: oneshot::Sender<Grant>,
}

#[derive(Debug)]
enum Grant {
    Backend(Box<Backend>),
    Slot(Slot),
}

#[derive(Debug)]
struct Failing {
    times: u32,
    until: Instant,
    /// Somebody is finding out whether it still fails.
    asked: bool,
    told: ClientError,
    /// It answers, and takes no more.
    full: bool,
}

/// Room for one session, until it is dropped.
#[derive(Debug)]
pub struct Slot {
    pool: Option<Arc<Pool>>,
    /// A session that clients share stands in it.
    stands: bool,
}

impl Slot {
    fn new(pool: &Arc<Pool>) -> Self {
        Self { pool: Some(Arc::clone(pool)), stands: false }
    }

    /// `stands` is whether a session is there from now on.
    fn with(mut self, stands: bool) -> Self {
        if let Some(pool) = &self.pool
            && self.stands != stands
        {
            let standing = &mut pool.lock().standing;
            *standing = if stands { *standing + 1 } else { standing.saturating_sub(1) };
        }
        self.stands = stands;
        self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            pool.freed(self.stands);
        }
    }
}

/// A place in the queue, until it is dropped. What was granted and not taken is given back.
struct Waiting<'p> {
    pool: &'p Arc<Pool>,
    user: ClientUser,
    ticket: Ticket,
    granted: oneshot::Receiver<Grant>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pool.metrics.0.pool_waiting.dec();
        self.pool.lock().waiting.remove(&self.user, self.ticket);
        self.granted.close();
        match self.granted.try_recv() {
            Ok(Grant::Backend(backend)) => self.pool.give_back(backend),
            Ok(Grant::Slot(_)) | Err(_) => {}
        }
    }
}

/// That one is finding out whether the source still fails, until it is known.
struct Asking<'p>(&'p Pool);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(failing) = &mut self.0.lock().failing {
            failing.asked = false;
        }
    }
}

enum Next<'p> {
    Backend(Box<Backend>),
    Slot(Slot),
    Wait(Waiting<'p>),
}

impl Pool {
    pub fn new(source: Arc<Source>, metrics: SourceMetrics) -> Arc<Self> {
        let config = source.config().pool.clone();
        metrics.pool_size.set(i64::try_from(config.size).unwrap_or(i64::MAX));
        let mode = config.mode;
        let inner = Inner {
            source,
            config,
            live: 0,
            standing: 0,
            idle: Vec::new(),
            waiting: Queue::default(),
            failing: None,
            kinds: Vec::new(),
            closed: false,
        };
        Arc::new(Self {
            mode,
            metrics: PoolMetrics(metrics),
            texts: Texts::default(),
            inner: Mutex::new(inner),
            wanted: Notify::new(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn mode(&self) -> PoolMode {
        self.mode
    }

    /// Whether the sessions of a pool for the one configuration are as good for the other: how they are opened and
    /// what clients make of them is the same. How many there are and how long they last may differ.
    pub fn serves_both(one: &config::Source, other: &config::Source) -> bool {
        let opened = |source: &config::Source| {
            let config::Source {
                hosts,
                database,
                login,
                tls,
                read_only,
                writers,
                pool,
                statement_timeout,
                idle_in_transaction_timeout,
                connect_timeout,
                target_session,
                // About the client, or looked at anew for each statement.
                name: _,
                trino_catalog: _,
                geography: _,
                access: _,
                engine: _,
                max_clients: _,
                catalogue_refresh: _,
                limits: _,
            } = source;
            // Who becomes a writer must not go on with sessions that others have, too.
            let pinned = (*read_only, writers.clone(), *statement_timeout, *idle_in_transaction_timeout);
            let reached = (hosts.clone(), database.clone(), login.clone(), tls.clone(), *target_session);
            (reached, pinned, *connect_timeout, pool.mode)
        };
        opened(one) == opened(other)
    }

    /// Takes up a changed configuration for which [`Self::serves_both`], and the source's files read anew.
    pub fn renew(&self, source: Arc<Source>) {
        let config = source.config().pool.clone();
        self.metrics.0.pool_size.set(i64::try_from(config.size).unwrap_or(i64::MAX));
        let mut inner = self.lock();
        inner.source = source;
        inner.config = config;
        drop(inner);
        self.wanted.notify_one();
    }

    /// What a session with these startup settings reports of itself, if one was opened lately.
    pub fn parameters(&self, key: &Settings) -> Option<Arc<Settings>> {
        let inner = self.lock();
        inner
            .kinds
            .iter()
            .rev()
            .find(|(kind, _)| **kind == *key)
            .map(|(_, parameters)| Arc::clone(parameters))
    }

    /// A session with these startup settings if one is free, of all the one that has to be changed least.
    pub fn try_lease(
        self: &Arc<Self>,
        key: &Arc<Settings>,
        application_name: &str,
        settings: &Arc<Settings>,
    ) -> Option<Box<Backend>> {
        let here = runtime::Handle::current().id();
        loop {
            let backend = {
                let mut inner = self.lock();
                if !inner.waiting.is_empty() {
                    return None;
                }
                let at = inner.best(key, here, application_name, settings)?;
                // One that has to be asked first takes time.
                if inner.idle.get(at)?.rests_since.elapsed() >= ASKED_AFTER {
                    return None;
                }
                inner.idle.remove(at)
            };
            if let Some(backend) = ready(backend) {
                return Some(backend);
            }
        }
    }

    /// A session with these startup settings, in turn.
    ///
    /// # Errors
    /// None became free within `pool.wait`, or none could be opened.
    /// `wait` makes what is held while it waits in the queue.
    pub async fn lease<G>(
        self: &Arc<Self>,
        key: &Arc<Settings>,
        user: &ClientUser,
        wait: impl Fn() -> G,
    ) -> Result<Box<Backend>, PoolError> {
        let began = Instant::now();
        loop {
            let slot = match self.next(Some(key), user)? {
                Next::Backend(backend) => match self.asked(backend).await {
                    Some(backend) => return Ok(backend),
                    None => continue,
                },
                Next::Slot(slot) => slot,
                Next::Wait(waiting) => match self.granted(waiting, began, &wait).await? {
                    Grant::Backend(backend) => match ready(backend) {
                        Some(backend) => return Ok(backend),
                        None => continue,
                    },
                    Grant::Slot(slot) => slot,
                },
            };
            match self.open(slot, key).await {
                Ok(mut backend) => {
                    backend.leased();
                    return Ok(backend);
                }
                // Those that stand come back: it is better to wait for one than to be told of a full server.
                Err(error)
                    if error.may_be_a_full_source() && self.lock().is_worth_a_wait(began.elapsed()) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Room for a session that the caller opens itself and nobody else gets.
    ///
    /// # Errors
    /// There was none within `pool.wait`.
    pub async fn slot<G>(
        self: &Arc<Self>,
        user: &ClientUser,
        wait: impl Fn() -> G,
    ) -> Result<Slot, PoolError> {
        let began = Instant::now();
        match self.next(None, user)? {
            Next::Slot(slot) => Ok(slot),
            Next::Backend(_) => Err(PoolError::Closed),
            Next::Wait(waiting) => match self.granted(waiting, began, &wait).await? {
                Grant::Slot(slot) => Ok(slot),
                Grant::Backend(_) => Err(PoolError::Closed),
            },
        }
    }

    fn next(self: &Arc<Self>, key: Option<&Arc<Settings>>, user: &ClientUser) -> Result<Next<'_>, PoolError> {
        let here = runtime::Handle::current().id();
        let mut inner = self.lock();
        if inner.closed {
            return Err(PoolError::Closed);
        }
        if inner.waiting.is_empty() {
            if let Some(key) = key
                && let Some(at) = inner.best(key, here, "", &Arc::default())
            {
                return Ok(Next::Backend(inner.idle.remove(at)));
            }
            if inner.live < inner.config.size && !inner.rests_on_others() {
                inner.live += 1;
                return Ok(Next::Slot(Slot::new(self)));
            }
            // One of another kind makes room, the one that nobody has wanted for longest.
            if !inner.idle.is_empty() {
                let mut replaced = inner.idle.remove(0);
                drop(inner);
                if let Some(slot) = replaced.slot.take() {
                    return Ok(Next::Slot(slot.with(false)));
                }
                inner = self.lock();
            }
        }
        let (grant, granted) = oneshot::channel();
        let waiter = Waiter { key: key.cloned(), grant };
        let ticket = inner.waiting.push(user, here, Instant::now(), waiter);
        drop(inner);
        self.metrics.0.pool_waiting.inc();
        Ok(Next::Wait(Waiting { pool: self, user: user.clone(), ticket, granted }))
    }

    async fn granted<G>(
        &self,
        mut waiting: Waiting<'_>,
        began: Instant,
        wait: &impl Fn() -> G,
    ) -> Result<Grant, PoolError> {
        let _held = wait();
        let (size, most) = {
            let inner = self.lock();
            (inner.config.size, inner.config.wait)
        };
        let left = most.saturating_sub(began.elapsed());
        let granted = timeout(left, &mut waiting.granted).await;
        let waited = began.elapsed();
        self.metrics.0.pool_wait_seconds.observe(waited.as_secs_f64());
        match granted {
            Ok(Ok(grant)) => Ok(grant),
            Ok(Err(_)) => Err(PoolError::Closed),
            Err(_) => {
                self.metrics.0.pool_timeouts.inc();
                Err(PoolError::Wait { size, waited: most })
            }
        }
    }

    /// One that was idle, after it was asked if it has been for long.
    async fn asked(&self, backend: Box<Backend>) -> Option<Box<Backend>> {
        let long = backend.rests_since.elapsed() >= ASKED_AFTER;
        let mut backend = ready(backend)?;
        (!long || backend.answers(ANSWERED_WITHIN).await).then_some(backend)
    }

    /// Opens a session in the room that `slot` is.
    async fn open(self: &Arc<Self>, slot: Slot, key: &Arc<Settings>) -> Result<Box<Backend>, PoolError> {
        let (source, asking) = {
            let mut inner = self.lock();
            let asking = match &mut inner.failing {
                None => None,
                Some(failing) if failing.asked || Instant::now() < failing.until => {
                    let told = failing.told.clone();
                    drop(inner);
                    return Err(PoolError::Failing(told));
                }
                Some(failing) => {
                    failing.asked = true;
                    Some(Asking(self))
                }
            };
            (Arc::clone(&inner.source), asking)
        };
        let opening =
            Opening { mode: Mode::ReadOnly, application_name: UNNAMED.to_owned(), settings: (**key).clone() };
        let counted = self.metrics.0.upstream(crate::metrics::UpstreamState::Opening);
        let began = Instant::now();
        let opened = source.open(&opening).await;
        drop(asking);
        drop(counted);
        match opened {
            Ok(opened) => {
                self.metrics.0.upstream_opened(began.elapsed());
                let mut backend = Box::new(Backend::own(opened, UNNAMED.to_owned(), &self.metrics.0));
                backend.slot = Some(slot.with(true));
                backend.key = Some(Arc::clone(key));
                let mut inner = self.lock();
                inner.failing = None;
                inner.learn(key, &mut backend.parameters);
                drop(inner);
                Ok(backend)
            }
            Err(error) => {
                let told = error.client_error();
                if told.sqlstate == SqlState::CANNOT_CONNECT_NOW {
                    self.lock().failed(told, error.is_full());
                }
                Err(PoolError::Open(error))
            }
        }
    }

    /// Takes a session back that stands idle, with nothing under way, and whose state is as it says.
    pub fn give_back(self: &Arc<Self>, mut backend: Box<Backend>) {
        let now = Instant::now();
        backend.rests(now);
        if backend.key.is_none() {
            return;
        }
        loop {
            let (waiter, grant) = {
                let mut inner = self.lock();
                let lifetime = inner.config.lifetime;
                let expired = !lifetime.is_zero() && now >= backend.born + lifetime;
                // There may be more than there are to be since a reload.
                if inner.closed || expired || inner.live > inner.config.size {
                    break;
                }
                let Some(waiter) = inner.waiting.pop(backend.home) else {
                    inner.idle.push(backend);
                    return;
                };
                if waiter.key == backend.key {
                    (waiter, Grant::Backend(backend))
                } else if let Some(slot) = backend.slot.take() {
                    (waiter, Grant::Slot(slot))
                } else {
                    return;
                }
            };
            let grant = match grant {
                Grant::Slot(slot) => Grant::Slot(slot.with(false)),
                backend @ Grant::Backend(_) => backend,
            };
            match waiter.grant.send(grant) {
                Ok(()) => return,
                Err(Grant::Backend(returned)) => backend = returned,
                // It left in this moment; its room is the next one's.
                Err(Grant::Slot(_)) => return,
            }
        }
    }

    /// A session has ended: who waits gets its room.
    fn freed(self: &Arc<Self>, stood: bool) {
        let mut stood = usize::from(stood);
        loop {
            let waiter = {
                let mut inner = self.lock();
                inner.live -= 1;
                inner.standing -= std::mem::take(&mut stood);
                let enough = inner.live >= inner.config.size;
                let waiter = match inner.closed || enough || inner.rests_on_others() {
                    true => None,
                    false => {
                        let here = runtime::Handle::try_current().map(|handle| handle.id());
                        here.ok().and_then(|here| inner.waiting.pop(here))
                    }
                };
                let Some(waiter) = waiter else {
                    drop(inner);
                    self.wanted.notify_one();
                    return;
                };
                inner.live += 1;
                waiter
            };
            match waiter.grant.send(Grant::Slot(Slot::new(self))) {
                Ok(()) => return,
                Err(Grant::Slot(mut slot)) => slot.pool = None,
                Err(Grant::Backend(_)) => return,
            }
        }
    }

    /// Hands nothing out any more, and ends what nobody has; what clients have ends when they give it back.
    pub fn close(&self) {
        let (idle, waiting) = {
            let mut inner = self.lock();
            inner.closed = true;
            (std::mem::take(&mut inner.idle), inner.waiting.drain().collect::<Vec<_>>())
        };
        drop(idle);
        drop(waiting);
        self.wanted.notify_one();
    }

    /// Keeps `min_idle` sessions open, closes those that are too old or have no use. Ends when the pool is closed.
    pub async fn keep(self: Arc<Self>) {
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = look.tick() => {}
                () = self.wanted.notified() => {}
            }
            if self.lock().closed {
                return;
            }
            self.look_through();
            while let Some((key, slot)) = self.missing() {
                match self.open(slot, &key).await {
                    Ok(backend) => self.give_back(backend),
                    Err(error) => {
                        tracing::debug!(%error, "a session could not be opened in advance");
                        break;
                    }
                }
            }
        }
    }

    /// Closes idle sessions that have ended, are too old, or are more than anybody has wanted for a while.
    fn look_through(&self) {
        let now = Instant::now();
        let mut gone = Vec::new();
        let mut kept = Vec::new();
        {
            let mut inner = self.lock();
            let config = inner.config.clone();
            let mut spare = inner.idle.len().saturating_sub(config.min_idle);
            let mut too_many = inner.live.saturating_sub(config.size);
            for mut backend in std::mem::take(&mut inner.idle) {
                let old = !config.lifetime.is_zero() && now >= backend.born + config.lifetime;
                let unused =
                    !config.idle_timeout.is_zero() && now >= backend.rests_since + config.idle_timeout;
                let superfluous = unused && spare > 0;
                spare -= usize::from(superfluous);
                match old || superfluous || too_many > 0 || !backend.settle() {
                    true => {
                        too_many = too_many.saturating_sub(1);
                        gone.push(backend);
                    }
                    false => kept.push(backend),
                }
            }
            inner.idle = kept;
        }
        drop(gone);
    }

    /// Room for a session that should be there and is not, and of what kind. Somebody may wait for one, too: nobody opened
    /// any while the source took no more.
    fn missing(self: &Arc<Self>) -> Option<(Arc<Settings>, Slot)> {
        let mut inner = self.lock();
        let missed = inner.idle.len() < inner.config.min_idle || !inner.waiting.is_empty();
        let wanted = !inner.closed && missed && inner.live < inner.config.size;
        if !wanted || inner.failing.as_ref().is_some_and(|failing| Instant::now() < failing.until) {
            return None;
        }
        inner.live += 1;
        let kind = inner.kinds.last().map(|(kind, _)| Arc::clone(kind)).unwrap_or_default();
        Some((kind, Slot::new(self)))
    }
}

impl Inner {
    /// The idle session with these startup settings that has to be changed least.
    fn best(
        &self,
        key: &Arc<Settings>,
        here: runtime::Id,
        application_name: &str,
        settings: &Arc<Settings>,
    ) -> Option<usize> {
        let mut best = None;
        for (at, backend) in self.idle.iter().enumerate().rev() {
            let same = backend.key.as_ref().is_some_and(|known| Arc::ptr_eq(known, key) || known == key);
            if !same {
                continue;
            }
            let is_here = u8::from(backend.home == here);
            let is_set = u8::from(
                backend.application_name == application_name
                    && (Arc::ptr_eq(&backend.settings, settings) || backend.settings == *settings),
            );
            let score = 2 * is_here + is_set;
            if best.is_none_or(|(known, _)| score > known) {
                best = Some((score, at));
            }
            if score == 3 {
                break;
            }
        }
        best.map(|(_, at)| at)
    }

    /// Keeps what sessions of this kind report; equal ones share one copy.
    fn learn(&mut self, key: &Arc<Settings>, parameters: &mut Arc<Settings>) {
        let known = self.kinds.iter().position(|(kind, _)| kind == key).map(|at| self.kinds.remove(at));
        let kind = match known {
            Some((kind, known)) if known == *parameters => {
                *parameters = Arc::clone(&known);
                (kind, known)
            }
            _ => (Arc::clone(key), Arc::clone(parameters)),
        };
        if self.kinds.len() >= KINDS {
            self.kinds.remove(0);
        }
        self.kinds.push(kind);
    }

    /// Whether the source takes no more sessions for the moment, and some that it took are there to wait for.
    fn rests_on_others(&self) -> bool {
        let failing = self.failing.as_ref();
        let pausing = |failing: &Failing| failing.asked || Instant::now() < failing.until;
        self.standing > 0 && failing.is_some_and(|failing| failing.full && pausing(failing))
    }

    /// Those that stand come back; for somebody who has waited so long already.
    fn is_worth_a_wait(&self, waited: Duration) -> bool {
        waited < self.config.wait && self.rests_on_others()
    }

    fn failed(&mut self, told: ClientError, full: bool) {
        let times = self.failing.as_ref().map_or(0, |failing| failing.times);
        let longest = FIRST_BACK_OFF.saturating_mul(1 << times.min(10)).min(LONGEST_BACK_OFF);
        // Gateways that lost a source together do not come back together.
        let pause = longest.mul_f64(rand::rng().random_range(0.5..=1.0));
        let failing = Failing {
            times: times.saturating_add(1),
            until: Instant::now() + pause,
            asked: false,
            told,
            full,
        };
        self.failing = Some(failing);
    }
}

/// An idle session that somebody gets now; nothing, if it has ended meanwhile.
fn ready(mut backend: Box<Backend>) -> Option<Box<Backend>> {
    if !backend.settle() {
        return None;
    }
    let mut backend = backend.move_here().ok()?;
    backend.leased();
    Some(backend)
}
