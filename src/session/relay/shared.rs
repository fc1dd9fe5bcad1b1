//! Sessions at the source that clients share: taken when there is something to send, brought into the state that the
//! client left, given back when its transaction has ended.
//!
//! Invariant: what a client has set, prepared or called itself is its own, whichever session it has; a session goes
//! back only when PostgreSQL itself has said what the client left in it, or when it cannot have left anything.

use super::mapped::Alias;
use super::*;
use crate::config::PoolMode;
use crate::ids::ClientUser;
use crate::session::cancel::{CancelAt, Landing, Muted, Registration, Released};
use crate::upstream::Backend;
use crate::upstream::pool::{Pool, PoolError, Settings, UNNAMED};

/// What a client's place among those that share sessions is made of.
pub struct SharedParts {
    pub pool: Arc<Pool>,
    pub mode: PoolMode,
    /// The client's startup settings, without `application_name`.
    pub key: Arc<Settings>,
    pub user: ClientUser,
    /// With the gateway's prefix.
    pub application_name: String,
    /// What the client was told at its start.
    pub told: Arc<Settings>,
    pub registration: Registration,
}

type Leasing = Pin<Box<dyn Future<Output = Result<Box<Backend>, PoolError>> + Send>>;

/// A client's view of its session, which outlives the sessions that it has.
pub(super) struct Shared {
    pub(super) pool: Arc<Pool>,
    pub(super) mode: PoolMode,
    key: Arc<Settings>,
    user: ClientUser,
    /// What it wants to be called, with the gateway's prefix; the second: what it began with.
    application_name: String,
    first_name: String,
    /// What it has set, but for its name.
    settings: Arc<Settings>,
    /// The parameters that it knows of.
    told: Arc<Settings>,
    registration: Registration,
    leasing: Option<Leasing>,
    /// The session goes back when what is on its way to it has arrived; until then it is nobody's.
    landing: Option<Pin<Box<dyn Future<Output = bool> + Send>>>,
    /// Why there is no session, until it has been said.
    refused: Option<ClientError>,
    /// Something ran that may outlive its transaction, and the source was not asked what since.
    dirty: bool,
    /// There is something in the session that cannot move: it stays the client's.
    pinned: bool,
    /// The source cannot be asked what a client has left.
    silent: bool,
    /// Something was prepared, in session mode.
    prepared: bool,
    /// Cancels are under way, and it is to go when they have arrived.
    parting: bool,
    /// The unnamed statement at the source is the client's.
    pub(super) unnamed_here: bool,
    /// Statements that the session has under the client's own names as well, for SQL that speaks of them. They are
    /// closed before the session goes.
    pub(super) aliases: Vec<Alias>,
}

/// Whether there is a session to send to.
pub(super) enum Leased {
    Yes,
    Wait,
    No(ClientError),
}

/// What the gateway asks a session in its own name.
#[derive(Debug)]
pub(super) enum Own {
    /// To take settings over.
    Settings,
    /// What the client has left.
    State(Settings, bool),
    /// Nothing but an end to what was sent.
    Sync,
}

impl Shared {
    pub(super) fn new(parts: SharedParts) -> Self {
        Self {
            pool: parts.pool,
            mode: parts.mode,
            key: parts.key,
            user: parts.user,
            first_name: parts.application_name.clone(),
            application_name: parts.application_name,
            settings: Arc::default(),
            told: parts.told,
            registration: parts.registration,
            leasing: None,
            landing: None,
            refused: None,
            dirty: false,
            pinned: false,
            silent: false,
            prepared: false,
            parting: false,
            unnamed_here: false,
            aliases: Vec::new(),
        }
    }

    pub(super) fn is_session_mode(&self) -> bool {
        self.mode == PoolMode::Session
    }

    pub(super) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Whether the client may have left something in the session.
    pub(super) fn leaves_something(&self) -> bool {
        !self.aliases.is_empty() || self.dirty || self.pinned || self.silent || self.prepared
    }

    /// Parts the client's key from the session. True: it may be another's.
    pub(super) fn release(&self) -> bool {
        self.landing.is_none() && matches!(self.registration.release(), Released::Clean)
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin> Relay<C> {
    /// Whether sessions change under the client, so that names of statements are the gateway's.
    pub(super) fn is_mapped(&self) -> bool {
        self.shared.as_ref().is_some_and(|shared| shared.mode == PoolMode::Transaction)
    }

    /// To be asked before anything is sent; the answer `Wait` comes true by [`Self::poll_lease`].
    pub(super) fn leased(&mut self) -> Leased {
        if self.lease.is_attached() {
            let parting =
                self.shared.as_ref().is_some_and(|shared| shared.parting || shared.landing.is_some());
            return if parting { Leased::Wait } else { Leased::Yes };
        }
        let Some(shared) = &mut self.shared else { return Leased::Yes };
        if let Some(error) = shared.refused.take() {
            return Leased::No(error);
        }
        if shared.leasing.is_some() {
            return Leased::Wait;
        }
        if let Some(backend) = shared.pool.try_lease(&shared.key, &shared.application_name, &shared.settings)
        {
            self.attach(backend);
            return Leased::Yes;
        }
        let (pool, key, user) = (Arc::clone(&shared.pool), Arc::clone(&shared.key), shared.user.clone());
        shared.registration.asked().listen(true);
        shared.leasing = Some(Box::pin(async move { pool.lease(&key, &user, || ()).await }));
        Leased::Wait
    }

    /// A cancel says nothing to the wait for a session.
    pub(super) fn wait_uncancelled(&self) {
        if let Some(shared) = &self.shared {
            shared.registration.asked().listen(false);
        }
    }

    /// True: [`Self::leased`] has something else to say now.
    pub(super) fn poll_lease(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(shared) = &mut self.shared else { return false };
        let Some(leasing) = &mut shared.leasing else { return false };
        let asked = shared.registration.asked();
        if asked.poll(cx) {
            asked.listen(false);
            shared.leasing = None;
            let message = "canceling statement due to user request";
            shared.refused = Some(ClientError::error(SqlState::QUERY_CANCELED, message));
            return true;
        }
        let Poll::Ready(leased) = leasing.as_mut().poll(cx) else { return false };
        shared.leasing = None;
        asked.listen(false);
        match leased {
            Ok(backend) => self.attach(backend),
            Err(error) => {
                if let PoolError::Open(error) = &error {
                    tracing::warn!(source = %self.source.name(), %error, "no session at the source");
                }
                let closed = matches!(error, PoolError::Closed);
                let error = error.client_error();
                // Where there will be none any more, the client is to go.
                let severity = if closed { error.severity } else { crate::wire::Severity::Error };
                shared.refused = Some(ClientError { severity, ..error });
            }
        }
        true
    }

    /// The session is not needed yet.
    pub(super) fn returned(&mut self, backend: Box<Backend>) {
        if let Some(shared) = &self.shared {
            shared.pool.give_back(backend);
        }
    }

    /// The session is the client's from now on.
    pub(super) fn attach(&mut self, backend: Box<Backend>) {
        if let Some(shared) = &mut self.shared {
            let (source, target) = (Arc::clone(&self.source), backend.cancel.clone());
            shared.registration.lease(Arc::new(CancelAt { source, target }), Muted::Yes);
            shared.unnamed_here = false;
        }
        self.leftover = Leftover::default();
        self.lease.attach(backend);
        if self.take_over_settings() {
            return;
        }
        self.unmute();
        self.tell_parameters();
    }

    /// A cancel may hit what the client has sent, and nothing of the gateway's own.
    fn unmute(&self) {
        if let Some(shared) = &self.shared {
            shared.registration.unmute();
        }
    }

    /// Whether the session's settings or name are not the client's.
    fn has_other_settings(&self) -> bool {
        let (Some(shared), Some(backend)) = (&self.shared, self.lease.backend()) else { return false };
        backend.application_name != shared.application_name
            || !(Arc::ptr_eq(&backend.settings, &shared.settings) || backend.settings == shared.settings)
    }

    /// Sends what makes the session's settings the client's; false: they are.
    fn take_over_settings(&mut self) -> bool {
        if !self.has_other_settings() {
            return false;
        }
        let Some(shared) = &self.shared else { return false };
        let Some(backend) = self.lease.backend_mut() else { return false };
        let rename = backend.application_name != shared.application_name;
        let value = |settings: &Settings, name: &str| {
            settings.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
        };
        let (here, wanted) = (&backend.settings, &shared.settings);
        let reset = here.iter().map(|(name, _)| name.as_str());
        let reset = reset.filter(|name| value(wanted, name).is_none());
        let set = wanted.iter().filter(|(name, wanted)| value(here, name).as_ref() != Some(wanted));
        let set = set.map(|(name, value)| (name.as_str(), value.as_str()));
        let permit = Permit::settings(reset, set, rename.then_some(shared.application_name.as_str()));
        backend.settings = Arc::clone(&shared.settings);
        backend.application_name.clone_from(&shared.application_name);
        self.lease.outbound.query(&permit);
        self.unnamed_is_here(false);
        self.expect(Expect::Own(Own::Settings));
        true
    }

    /// Tells the client of parameters that are others in this session than in those it had before.
    fn tell_parameters(&mut self) {
        let Some(shared) = &mut self.shared else { return };
        let Some(backend) = self.lease.backend() else { return };
        let now = Arc::clone(&backend.parameters);
        if Arc::ptr_eq(&now, &shared.told) {
            return;
        }
        let before = std::mem::replace(&mut shared.told, Arc::clone(&now));
        for (name, value) in now.iter() {
            let known = before.iter().find(|(known, _)| known == name);
            if known.is_none_or(|(_, known)| known != value) {
                self.edit(|out| backend::parameter_status(name, value, out));
            }
        }
    }

    /// The source has said what a parameter is now. True: the client is to hear it.
    pub(super) fn parameter_reported(&mut self, name: &str, value: &str) -> bool {
        let own = matches!(self.expects.front(), Some(Expect::Own(_)));
        let Some(shared) = &mut self.shared else { return true };
        let Some(backend) = self.lease.backend_mut() else { return true };
        if name == "application_name" {
            value.clone_into(&mut backend.application_name);
            if own {
                return false;
            }
            // RESET takes the session back to the name that all clients share; the client's first one is meant.
            let meant = if value == UNNAMED { shared.first_name.as_str() } else { value };
            let anew = meant != shared.application_name;
            meant.clone_into(&mut shared.application_name);
            return anew;
        }
        backend.reported(name, value);
        if own {
            return false;
        }
        shared.told = Arc::clone(&backend.parameters);
        true
    }

    /// What the client is told of its own name, of which the source has said `value`.
    pub(super) fn shown_name<'v>(&'v self, value: &'v str) -> &'v str {
        let value = match &self.shared {
            Some(shared) if value == UNNAMED => &shared.first_name,
            _ => value,
        };
        value.strip_prefix(self.name_prefix.as_str()).unwrap_or(value).trim_start()
    }

    /// A statement is sent of which something may be left behind its transaction.
    pub(super) fn leaves(&mut self, leaves_nothing: bool) {
        if let Some(shared) = &mut self.shared {
            shared.dirty |= !leaves_nothing;
        }
    }

    /// A Parse is sent in session mode, under the client's own name.
    pub(super) fn prepares(&mut self) {
        if let Some(shared) = &mut self.shared {
            shared.prepared = true;
        }
    }

    /// One whole message that answers what the gateway has asked in its own name.
    pub(super) fn own_answer(&mut self, kind: u8, size: usize) -> Result<(), End> {
        if kind == b'Z' {
            return self.own_answered(size);
        }
        let row = match kind {
            b'D' => columns(self.body(size)),
            b'S' => return self.parameter_changed(size),
            b'E' => return self.own_failed(size),
            _ => None,
        };
        if let Some(Expect::Own(Own::State(left, keeps))) = self.expects.front_mut()
            && let Some([what, name, value]) = row
        {
            match what.as_str() {
                "s" if name == "application_name" || name.starts_with("transaction_") => {}
                "s" => left.push((name, value)),
                _ => *keeps = true,
            }
        }
        self.hide(size);
        Ok(())
    }

    fn own_failed(&mut self, size: usize) -> Result<(), End> {
        let fatal = matches!(backend::error_field(self.body(size), b'V'), Some(b"FATAL" | b"PANIC"));
        let (Some(Expect::Own(Own::State(..))), Some(shared), false) =
            (self.expects.front(), &mut self.shared, fatal)
        else {
            if fatal {
                return self.error(size);
            }
            return Err(End::SourceGone("did not take over the client's settings"));
        };
        shared.silent = true;
        self.hide(size);
        Ok(())
    }

    fn own_answered(&mut self, size: usize) -> Result<(), End> {
        let status = self.body(size).first().copied().and_then(Status::from_byte);
        self.hide(size);
        let own = self.expects.pop_front();
        self.since = Instant::now();
        self.failed = false;
        if !self.expects.iter().any(|expect| matches!(expect, Expect::Own(_))) {
            self.unmute();
        }
        if let (Some(Expect::Own(Own::Sync)), Some(status)) = (&own, status) {
            // It may have ended what the client has sent without a Sync, before a Query: BEGIN, for one.
            self.status = status;
        }
        if status != Some(self.status) {
            return Err(End::SourceGone("is not where the client's transaction is"));
        }
        match own {
            Some(Expect::Own(Own::Settings)) => self.tell_parameters(),
            Some(Expect::Own(Own::State(mut left, keeps))) => {
                let (Some(shared), Some(backend)) = (&mut self.shared, self.lease.backend_mut()) else {
                    return Ok(());
                };
                shared.pinned = keeps || shared.silent;
                left.sort_unstable();
                if *shared.settings != left {
                    shared.settings = Arc::new(left);
                }
                backend.settings = Arc::clone(&shared.settings);
            }
            _ => {}
        }
        Ok(())
    }

    /// Nothing hangs on the session that the client has now: it is between transactions and all was answered.
    fn may_part(&self) -> bool {
        self.at_rest()
            && self.lease.outbound.is_empty()
            && self.skip == Skip::No
            && self.copy_in.is_none()
            && self.cancelling.is_none()
            && self.dropping == 0
            && self.lease.inbound.data().len() == self.approved
    }

    /// Gives the session back when the client's transaction has ended. True: something was sent for that.
    pub(super) fn poll_part(&mut self, cx: &mut Context<'_>) -> bool {
        if self.shared.is_none() || !self.lease.is_attached() || !self.may_part() {
            return false;
        }
        if self.shared.as_ref().is_some_and(|shared| shared.landing.is_some()) {
            return self.give_back(cx);
        }
        let renamed = self.has_other_settings();
        let Some(shared) = &mut self.shared else { return false };
        let asks = shared.mode == PoolMode::Transaction && shared.dirty && !shared.silent;
        let stays = shared.mode == PoolMode::Session || shared.pinned || shared.silent;
        if !renamed && !asks && stays {
            return false;
        }
        // A cancel that is under way would hit what the gateway asks now, or the next client.
        let waited = shared.parting;
        // The client's next message waits for it.
        shared.parting = shared.registration.poll_mute(cx).is_pending();
        if shared.parting {
            return false;
        }
        if renamed {
            // A RESET has taken away what the client is called.
            return self.take_over_settings();
        }
        if asks {
            shared.dirty = false;
            // A Query takes it away.
            shared.unnamed_here = false;
            self.lease.outbound.query(&Permit::state());
            self.expect(Expect::Own(Own::State(Vec::new(), false)));
            return true;
        }
        if self.close_surplus() {
            return true;
        }
        // A message may have waited for it.
        self.give_back(cx) || waited
    }

    /// True: the session has gone, and something may have waited for that.
    fn give_back(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(shared) = &mut self.shared else { return false };
        let waited = shared.landing.is_some();
        let clean = match &mut shared.landing {
            Some(landing) => match landing.as_mut().poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(clean) => clean,
            },
            None => match shared.registration.release() {
                Released::Clean => true,
                Released::Spoilt => false,
                Released::Wait(landing) => {
                    shared.landing = Some(Box::pin(Landing::clean(landing)));
                    return true;
                }
            },
        };
        shared.landing = None;
        let pool = Arc::clone(&shared.pool);
        if let Some(backend) = self.lease.detach().filter(|_| clean) {
            pool.give_back(backend);
        }
        waited
    }
}

/// The three columns of a row that [`Permit::state`] draws.
fn columns(body: &[u8]) -> Option<[String; 3]> {
    let (count, mut rest) = body.split_first_chunk::<2>()?;
    let mut next = || {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
        let (value, behind) = behind.split_at_checked(length)?;
        rest = behind;
        Some(String::from_utf8_lossy(value).into_owned())
    };
    (u16::from_be_bytes(*count) == 3).then_some(())?;
    Some([next()?, next()?, next()?])
}
