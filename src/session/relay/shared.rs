//! Sessions at the source that clients share: taken when there is something to send, brought into the state that the
//! client left, given back when its transaction has ended.
//!
//! Invariant: what a client has set, prepared or called itself is its own, whichever session it has; a session goes
//! back only when PostgreSQL itself has said what the client left in it, or when it cannot have left anything.

use super::*;
use crate::config::PoolMode;
use crate::ids::ClientUser;
use crate::session::cancel::{CancelAt, Landing, Muted, Registration, Released};
use crate::session::prepared::Meaning;
use crate::upstream::Backend;
use crate::upstream::pool::statements::{Has, KEPT, PREFIX, Text, name};
use crate::upstream::pool::{Pool, PoolError, Settings, UNNAMED};

/// Statements of one session at the source, at most, however long a client keeps from Sync.
const MOST_STATEMENTS: usize = 4 * KEPT;

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
    pool: Arc<Pool>,
    mode: PoolMode,
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
    unnamed_here: bool,
    /// Statements that the session has under the client's own names as well, for SQL that speaks of them. They are
    /// closed before the session goes.
    aliases: Vec<Alias>,
}

/// A client's own name that the session may have.
#[derive(Debug)]
struct Alias {
    name: Box<[u8]>,
    /// Of the text that it was given last; `None`: it goes, or nobody knows what it is.
    number: Option<u64>,
    /// In which stretch that was sent, until it is answered.
    sent_in: Option<u64>,
    /// It may be there even if what was sent is passed over.
    stood: bool,
}

/// Whether there is a session to send to.
pub(super) enum Leased {
    Yes,
    Wait,
    No(ClientError),
}

/// Why SQL that speaks of a prepared statement does not go on.
pub(super) enum NotNow {
    Wait,
    Never(ClientError),
}

/// Whether the session that the client has now has a statement of it.
pub(super) enum Named {
    /// Under this name.
    Is(Vec<u8>, Option<Arc<Text>>),
    Wait,
    Refused(ClientError),
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

    /// The text that all clients have of this one; where it names a statement of the client's, its own.
    pub(super) fn text_of(&self, permit: &Permit, types: &[u8], effect: &Effect) -> Option<Arc<Text>> {
        let shared = self.shared.as_ref().filter(|shared| shared.mode == PoolMode::Transaction)?;
        Some(match effect {
            Effect::None => shared.pool.texts.of(permit, types),
            _ => shared.pool.texts.own(permit, types),
        })
    }

    /// The source has no plan for a text any more under the name that it has.
    pub(super) fn outlived(&self, text: &Text) {
        if let Some(shared) = &self.shared {
            shared.pool.texts.renew(text);
        }
    }

    pub(super) fn unnamed_is_here(&mut self, here: bool) {
        if let Some(shared) = &mut self.shared {
            shared.unnamed_here = here;
        }
    }

    /// The name that the source knows a client's statement by, which is prepared in this session if it was not.
    pub(super) fn named(&mut self, statement: &[u8]) -> Named {
        if std::str::from_utf8(statement).is_err() {
            return Named::Refused(no_utf8());
        }
        if self.is_dropping(statement) {
            return Named::Wait;
        }
        let prepared = match self.meaning(statement) {
            Meaning::Known(prepared) => prepared,
            Meaning::Unsettled => return Named::Wait,
            Meaning::Missing => return Named::Refused(does_not_exist(statement)),
        };
        match self.alias(&prepared.effect) {
            Ok(_) => {}
            Err(NotNow::Wait) => return Named::Wait,
            Err(NotNow::Never(error)) => return Named::Refused(error),
        }
        self.leaves(prepared.leaves_nothing);
        let Some(text) = &prepared.text else {
            // Of a SQL PREPARE, which keeps the session.
            return Named::Is(statement.to_owned(), None);
        };
        if statement.is_empty() {
            if self.shared.as_ref().is_some_and(|shared| !shared.unnamed_here) {
                self.lease.outbound.parse(b"", text.permit(), text.types());
                self.expect_extended(Expect::QuietUnnamed);
                self.unnamed_is_here(true);
            }
            return Named::Is(Vec::new(), None);
        }
        match self.ensure(text) {
            Some(name) => Named::Is(name, Some(Arc::clone(text))),
            None => Named::Wait,
        }
    }

    /// What a name means. One that the gateway may have given is a client's only as one of the protocol: what SQL would
    /// have made of it is never there.
    fn meaning(&self, client_name: &[u8]) -> Meaning {
        match self.statements.meaning(client_name) {
            Meaning::Known(prepared)
                if prepared.text.is_none() && client_name.starts_with(PREFIX.as_bytes()) =>
            {
                Meaning::Missing
            }
            meaning => meaning,
        }
    }

    /// What is prepared at the source is about to go, or not: what is there is not known before that is answered.
    fn is_dropping(&self, statement: &[u8]) -> bool {
        self.expects.iter().any(|expect| match expect {
            Expect::Query(Change::Dropped(dropped)) | Expect::Execute(Change::Dropped(dropped)) => {
                match &dropped.0 {
                    Effect::DeallocateAll => true,
                    Effect::Deallocate { name } => name.as_bytes() == statement,
                    _ => false,
                }
            }
            _ => false,
        })
    }

    /// The name of a text in this session, where it is prepared now if it was not; nothing: whether it is, is not
    /// known yet.
    pub(super) fn ensure(&mut self, text: &Arc<Text>) -> Option<Vec<u8>> {
        let (number, segment) = (text.number(), self.statements.segment());
        let name = name(number).into_bytes();
        match self.lease.backend_mut()?.had.has(number, segment) {
            Has::Yes => {}
            Has::Unknown => return None,
            Has::No => {
                self.send_text(text, number, &name);
                self.expect_extended(Expect::Mapped(None, number));
            }
        }
        Some(name)
    }

    fn send_text(&mut self, text: &Text, number: u64, name: &[u8]) {
        let segment = self.statements.segment();
        if let Some(backend) = self.lease.backend_mut() {
            backend.had.sent(number, segment);
        }
        self.lease.outbound.parse(name, text.permit(), text.types());
    }

    /// Closes what the session has beyond what it keeps. True: something was sent for that. Nothing is under way, so
    /// that it cannot be passed over.
    fn close_surplus(&mut self) -> bool {
        let (Some(shared), Some(backend)) = (&mut self.shared, self.lease.backend_mut()) else {
            return false;
        };
        let surplus = backend.had.surplus(KEPT).into_iter().map(|number| name(number).into_bytes().into());
        let aliases = std::mem::take(&mut shared.aliases).into_iter().map(|alias| alias.name);
        let closed: Vec<Box<[u8]>> = surplus.chain(aliases).collect();
        if closed.is_empty() {
            return false;
        }
        for name in closed {
            self.lease.outbound.close(Target::Statement(&name));
            self.expect(Expect::QuietClose(0));
        }
        self.lease.outbound.sync();
        self.expect(Expect::Own(Own::Sync));
        true
    }

    /// A client's Parse of a name of its own, where sessions change under it.
    pub(super) fn parse_mapped(
        &mut self,
        client_name: &[u8],
        prepared: Prepared,
    ) -> Result<Handled, Box<Prepared>> {
        let Some(text) = prepared.text.clone() else { return Err(Box::new(prepared)) };
        if std::str::from_utf8(client_name).is_err() {
            return Ok(self.refuse_extended(client_name, no_utf8(), true));
        }
        match self.alias(&prepared.effect) {
            Ok(_) => {}
            Err(NotNow::Wait) => return Ok(Handled::Wait),
            // PostgreSQL, too, looks for it when it runs.
            Err(NotNow::Never(_)) => {}
        }
        let (number, segment) = (text.number(), self.statements.segment());
        match self.meaning(client_name) {
            _ if self.is_dropping(client_name) => return Ok(Handled::Wait),
            Meaning::Unsettled => return Ok(Handled::Wait),
            Meaning::Known(known) if known.text.is_none() => {
                return Ok(self.parse_under_own_name(client_name, prepared, number));
            }
            Meaning::Known(_) if client_name.starts_with(PREFIX.as_bytes()) => {
                return Ok(self.refuse_extended(client_name, already_exists(client_name), false));
            }
            // PostgreSQL looks at the text first and at the name last, so it is asked; it takes neither.
            Meaning::Known(_) => {
                if self.alias_of(client_name).is_err() {
                    return Ok(Handled::Wait);
                }
                self.lease.outbound.parse(client_name, &prepared.permit, &prepared.types);
                self.expect_extended(Expect::Doomed);
                return Ok(Handled::Done);
            }
            Meaning::Missing => {}
        }
        let Some(backend) = self.lease.backend_mut() else { return Err(Box::new(prepared)) };
        let has = backend.had.has(number, segment);
        if has == Has::Unknown {
            return Ok(Handled::Wait);
        }
        if has == Has::No && backend.had.len() >= MOST_STATEMENTS {
            if !self.expects.is_empty() {
                return Ok(Handled::Wait);
            }
            if !self.pipeline {
                self.close_surplus();
                return Ok(Handled::Wait);
            }
            let error = ClientError::error(
                SqlState::CONFIGURATION_LIMIT_EXCEEDED,
                "too many statements were prepared without a Sync",
            );
            return Ok(self.refuse_extended(client_name, error, false));
        }
        let ticket = match self.statements.parse(client_name, prepared) {
            Ok(Some(ticket)) => ticket,
            Ok(None) => return Ok(Handled::Done),
            Err(full) => return Ok(self.full(client_name, full)),
        };
        self.statements.told_about(client_name, false);
        if has == Has::Yes && self.may_have_failed() {
            // PostgreSQL takes no text in a failed block, so it is asked. The unnamed statement goes with that.
            self.lease.outbound.parse(b"", text.permit(), text.types());
            self.unnamed_is_here(false);
            self.expect_extended(Expect::Again(ticket));
        } else if has == Has::Yes {
            self.expect_extended(Expect::Here(Box::new(Expect::Parse(ticket))));
        } else {
            self.send_text(&text, number, &name(number).into_bytes());
            self.expect_extended(Expect::Mapped(Some(ticket), number));
        }
        Ok(Handled::Done)
    }

    /// A Parse of a name that SQL may have taken, in which case it fails; otherwise the session has the statement under
    /// the client's name.
    fn parse_under_own_name(&mut self, client_name: &[u8], prepared: Prepared, number: u64) -> Handled {
        let Ok(false) = self.alias_of(client_name) else { return Handled::Wait };
        let (permit, types) = (prepared.permit.clone(), prepared.types.clone());
        let ticket = match self.statements.parse(client_name, prepared) {
            Ok(Some(ticket)) => ticket,
            Ok(None) => return Handled::Done,
            Err(full) => return self.full(client_name, full),
        };
        self.statements.told_about(client_name, false);
        self.lease.outbound.parse(client_name, &permit, &types);
        self.alias_sent(client_name, number);
        self.expect_extended(Expect::UnderOwnName(ticket, number));
        Handled::Done
    }

    /// Whether the client's block may have failed by the time that the source reads what is sent now, if it reads it.
    fn may_have_failed(&self) -> bool {
        let ends = |expect: &Expect| matches!(expect, Expect::Query(_) | Expect::Sync);
        self.status == Status::Failed || self.expects.iter().any(ends)
    }

    /// A client's Close of a statement, where sessions change under it; nothing: the source has it by that name.
    pub(super) fn close_mapped(&mut self, client_name: &[u8]) -> Option<Handled> {
        if std::str::from_utf8(client_name).is_err() {
            return Some(self.refuse_extended(client_name, no_utf8(), true));
        }
        match self.meaning(client_name) {
            Meaning::Unsettled => return Some(Handled::Wait),
            Meaning::Known(prepared) if prepared.text.is_none() => return None,
            Meaning::Known(_) | Meaning::Missing => {}
        }
        let ticket = self.statements.closing(client_name);
        if client_name.is_empty() {
            self.statements.forget_unnamed();
            self.unnamed_is_here(false);
        } else if ticket.is_some() {
            self.statements.told_about(client_name, true);
        }
        self.expect_extended(Expect::Here(Box::new(Expect::Close(ticket))));
        Some(Handled::Done)
    }

    /// Before SQL that speaks of a prepared statement: where that is one of the protocol's, the session has it under
    /// the client's own name, too. True: something was sent for that. `Err`: not known yet.
    ///
    /// A name that the gateway may have given does not go to the source: there it is another client's.
    pub(super) fn alias(&mut self, effect: &Effect) -> Result<bool, NotNow> {
        match effect {
            Effect::Execute { name } | Effect::Deallocate { name } => {
                if self.is_mapped() && name.starts_with(PREFIX) {
                    return Err(NotNow::Never(does_not_exist(name.as_bytes())));
                }
                self.alias_of(name.as_bytes())
            }
            Effect::Prepare { name } if self.is_mapped() && name.starts_with(PREFIX) => {
                Err(NotNow::Never(reserved()))
            }
            Effect::Prepare { name } => self.alias_of(name.as_bytes()),
            Effect::None
            | Effect::DeallocateAll
            | Effect::Declare { .. }
            | Effect::Fetch { .. }
            | Effect::Close { .. }
            | Effect::ApplicationName { .. } => Ok(false),
        }
    }

    fn alias_of(&mut self, client_name: &[u8]) -> Result<bool, NotNow> {
        if !self.is_mapped() {
            return Ok(false);
        }
        if self.is_dropping(client_name) {
            return Err(NotNow::Wait);
        }
        let segment = self.statements.segment();
        let Some(shared) = &mut self.shared else { return Ok(false) };
        let known = shared.aliases.iter().position(|alias| *alias.name == *client_name);
        let full = known.is_none() && shared.aliases.len() >= KEPT;
        let alias = known.and_then(|at| shared.aliases.get_mut(at));
        if alias.as_ref().and_then(|alias| alias.sent_in).is_some_and(|sent| sent != segment) {
            return Err(NotNow::Wait);
        }
        let text = match self.statements.meaning(client_name) {
            Meaning::Unsettled => return Err(NotNow::Wait),
            Meaning::Missing => None,
            Meaning::Known(prepared) => prepared.text.clone(),
        };
        let Some(text) = text else {
            // What the client has closed is not there for SQL either.
            let Some(alias) = alias else { return Ok(false) };
            (alias.number, alias.sent_in) = (None, None);
            self.close_alias(client_name);
            return Ok(true);
        };
        let number = text.number();
        match alias {
            Some(alias) if alias.number == Some(number) => return Ok(false),
            Some(_) => {
                self.lease.outbound.close(Target::Statement(client_name));
                self.expect_extended(Expect::QuietClose(0));
            }
            None if full => {
                let settled = |alias: &&mut Alias| alias.sent_in.is_none_or(|sent| sent == segment);
                let mut going = shared.aliases.iter_mut().filter(|alias| alias.number.is_some());
                let oldest = going.find(settled).map(|alias| {
                    (alias.number, alias.sent_in) = (None, None);
                    alias.name.clone()
                });
                if let Some(oldest) = oldest {
                    self.close_alias(&oldest);
                }
            }
            None => {}
        }
        self.lease.outbound.parse(client_name, text.permit(), text.types());
        self.alias_sent(client_name, number);
        self.expect_extended(Expect::QuietAlias(Box::new((client_name.into(), number))));
        Ok(true)
    }

    fn close_alias(&mut self, client_name: &[u8]) {
        self.lease.outbound.close(Target::Statement(client_name));
        self.expect_extended(Expect::QuietAliasClose(client_name.into()));
    }

    /// A Parse of a text under the client's own name is sent; its answer goes to [`Self::alias_answered`].
    fn alias_sent(&mut self, client_name: &[u8], number: u64) {
        let sent_in = Some(self.statements.segment());
        let Some(shared) = &mut self.shared else { return };
        let known = shared.aliases.iter().position(|alias| *alias.name == *client_name);
        let mut alias = match known {
            Some(at) => shared.aliases.remove(at),
            None => Alias { name: client_name.into(), number: None, sent_in: None, stood: false },
        };
        (alias.number, alias.sent_in) = (Some(number), sent_in);
        shared.aliases.push(alias);
    }

    pub(super) fn alias_answered(&mut self, client_name: &[u8], number: u64, taken: bool) {
        let Some(shared) = &mut self.shared else { return };
        let Some(at) = shared.aliases.iter().position(|alias| *alias.name == *client_name) else { return };
        let Some(alias) = shared.aliases.get_mut(at) else { return };
        if taken {
            alias.stood = true;
            if alias.number == Some(number) {
                alias.sent_in = None;
            }
        } else if alias.stood {
            // What was there before may have been closed, or that was passed over, too.
            (alias.number, alias.sent_in) = (None, None);
        } else {
            shared.aliases.remove(at);
        }
    }

    pub(super) fn alias_closed(&mut self, client_name: &[u8]) {
        if let Some(shared) = &mut self.shared {
            shared.aliases.retain(|alias| alias.number.is_some() || *alias.name != *client_name);
        }
    }

    /// Whether what a statement of several names hangs on an answer that is under way.
    pub(super) fn is_unsettled(&self, effect: &Effect) -> bool {
        let (Effect::Execute { name } | Effect::Deallocate { name } | Effect::Prepare { name }) = effect
        else {
            return false;
        };
        let (name, segment) = (name.as_bytes(), self.statements.segment());
        let sent = |alias: &Alias| *alias.name == *name && alias.sent_in.is_some_and(|sent| sent != segment);
        self.is_mapped()
            && (self.is_dropping(name)
                || matches!(self.statements.meaning(name), Meaning::Unsettled)
                || self.shared.as_ref().is_some_and(|shared| shared.aliases.iter().any(sent)))
    }

    /// The session does not have this one under the client's name.
    pub(super) fn no_alias(&mut self, client_name: &[u8]) {
        if let Some(shared) = &mut self.shared {
            shared.aliases.retain(|alias| *alias.name != *client_name);
        }
    }

    /// DEALLOCATE, DISCARD ALL and their like have succeeded, and the names in question are still known.
    pub(super) fn deallocated(&mut self, effect: &Effect) {
        match effect {
            Effect::DeallocateAll => {
                if let Some(shared) = &mut self.shared {
                    shared.aliases.clear();
                }
                if let Some(backend) = self.lease.backend_mut() {
                    backend.had.clear();
                }
            }
            Effect::Deallocate { name } => self.no_alias(name.as_bytes()),
            _ => {}
        }
    }

    pub(super) fn statement_answered(&mut self, number: u64, taken: bool) {
        if let Some(backend) = self.lease.backend_mut() {
            backend.had.answered(number, taken);
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

pub(super) fn does_not_exist(statement: &[u8]) -> ClientError {
    let message = match statement {
        b"" => "unnamed prepared statement does not exist".to_owned(),
        name => format!("prepared statement \"{}\" does not exist", String::from_utf8_lossy(name)),
    };
    ClientError::error(SqlState::INVALID_SQL_STATEMENT_NAME, message)
}

fn already_exists(statement: &[u8]) -> ClientError {
    let name = String::from_utf8_lossy(statement);
    ClientError::error(
        SqlState::DUPLICATE_PREPARED_STATEMENT,
        format!("prepared statement \"{name}\" already exists"),
    )
}

/// Of names that begin as the gateway's own do: at the source they are another client's.
fn reserved() -> ClientError {
    ClientError::error(
        SqlState::INVALID_SQL_STATEMENT_NAME,
        format!("names of prepared statements that begin with \"{PREFIX}\" are the gateway's own"),
    )
    .hint("Use another name with PREPARE and EXECUTE; the extended protocol takes any.")
}

/// PostgreSQL says this of a name that it reads.
fn no_utf8() -> ClientError {
    ClientError::error(SqlState::CHARACTER_NOT_IN_REPERTOIRE, "invalid byte sequence for encoding \"UTF8\"")
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
