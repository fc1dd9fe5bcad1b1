//! Prepared statements of clients that share sessions: one name at the source for one text, whatever clients call it.
//!
//! Invariant: what a client's name means is its own, whichever session it has; a session is left with no name that
//! another client could give a meaning to.

use super::*;
use crate::config::PoolMode;
use crate::session::prepared::Meaning;
use crate::upstream::pool::statements::{Has, KEPT, PREFIX, Text, name};

/// Statements of one session at the source, at most, however long a client keeps from Sync.
const MOST_STATEMENTS: usize = 4 * KEPT;

/// A client's own name that the session may have.
#[derive(Debug)]
pub(super) struct Alias {
    name: Box<[u8]>,
    /// Of the text that it was given last; `None`: it goes, or nobody knows what it is.
    number: Option<u64>,
    /// In which stretch that was sent, until it is answered.
    sent_in: Option<u64>,
    /// It may be there even if what was sent is passed over.
    stood: bool,
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

impl<C: AsyncRead + AsyncWrite + Unpin> Relay<C> {
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
    pub(super) fn close_surplus(&mut self) -> bool {
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
