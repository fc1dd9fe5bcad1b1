//! What a session has prepared, so that a statement runs under the policy of now and not of then.
//!
//! Invariant: a name stands for every text that it may mean at the source, whichever of the messages
//! under way succeed; when the policy has changed since, all of them must be admitted again.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::judge::{Era, Judge};
use super::trail::Reading;
use crate::config::Limits;
use crate::guard::{Effect, Permit};
use crate::sqlstate::SqlState;
use crate::upstream::pool::statements::Text;
use crate::wire::ClientError;

/// Texts that one name may mean at the same time; more than two take a client that errs on purpose.
const MEANINGS: usize = 8;
/// Bytes of prepared texts that one session may make the gateway keep, in longest statements.
const LONGEST_STATEMENTS: usize = 16;
/// PostgreSQL keeps statements and portals by the first bytes of their names (`NAMEDATALEN`), also of those that
/// the protocol gives it: longer names that begin alike are one.
const LONGEST_NAME: usize = 63;

/// An admitted text, and when it was admitted.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) permit: Permit,
    pub(super) era: Era,
    pub(super) effect: Effect,
    /// Of a Parse: its parameter types as they lie, judged as the text was.
    pub(super) types: Box<[u8]>,
    /// What is told when it has run; only where reads are.
    pub(super) reading: Option<Arc<Reading>>,
    /// Whether nothing of it is left at the source once its transaction has ended.
    pub(super) leaves_nothing: bool,
    /// Of a Parse, where clients share sessions: the text as all of them have it.
    pub(super) text: Option<Arc<Text>>,
}

/// What a name means, where a session may not have what its client has prepared.
pub(super) enum Meaning {
    Known(Arc<Prepared>),
    Missing,
    /// That hangs on an answer to an earlier stretch.
    Unsettled,
}

/// Messages about one name that have no answer yet, all of one stretch.
#[derive(Debug)]
struct UnderWay {
    messages: usize,
    segment: u64,
    /// The last of them was a Close.
    closes: bool,
}

/// A text that was given to a name, until the source has answered whether it took it.
pub(super) type Ticket = Box<(Box<[u8]>, u64)>;

/// There is no room for what a message asks for.
#[derive(Debug)]
pub(super) enum Full {
    /// There may be when what is under way was answered.
    Now,
    Always(ClientError),
}

/// What one name may mean.
#[derive(Debug, Default)]
struct Slot {
    meanings: Vec<(u64, Arc<Prepared>)>,
    /// When a text was given to this name that there was no room to keep.
    unknown: Option<u64>,
}

impl Slot {
    fn retain(&mut self, keep: impl Fn(u64) -> bool) -> usize {
        let mut bytes = 0;
        self.meanings.retain(|(given, prepared)| {
            let keep = keep(*given);
            bytes += if keep { 0 } else { size(prepared) };
            keep
        });
        self.unknown = self.unknown.filter(|given| keep(*given));
        bytes
    }

    fn is_empty(&self) -> bool {
        self.meanings.is_empty() && self.unknown.is_none()
    }
}

fn key(name: &[u8]) -> &[u8] {
    name.get(..LONGEST_NAME).unwrap_or(name)
}

/// What names of one kind may mean.
#[derive(Debug, Default)]
struct Slots {
    slots: HashMap<Box<[u8]>, Slot>,
    bytes: usize,
}

impl Slots {
    fn get(&self, name: &[u8]) -> Option<&Slot> {
        self.slots.get(key(name))
    }

    /// One more text that the name may mean.
    fn give(&mut self, name: &[u8], given: u64, prepared: Arc<Prepared>) {
        self.bytes += size(&prepared);
        self.slots.entry(key(name).into()).or_default().meanings.push((given, prepared));
    }

    fn retain(&mut self, name: &[u8], keep: impl Fn(u64) -> bool) {
        if let Some(slot) = self.slots.get_mut(key(name)) {
            self.bytes = self.bytes.saturating_sub(slot.retain(keep));
            if slot.is_empty() {
                self.slots.remove(key(name));
            }
        }
    }

    fn retain_in_all(&mut self, keep: impl Fn(u64) -> bool) {
        let mut bytes = 0;
        self.slots.retain(|_, slot| {
            bytes += slot.retain(&keep);
            !slot.is_empty()
        });
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// One more text that the name may mean, or that nobody knows what it means when there is no room.
    fn give_or_forget(
        &mut self,
        name: &[u8],
        given: u64,
        prepared: Option<Arc<Prepared>>,
        most_bytes: usize,
    ) {
        let (bytes, slot) = (self.bytes, self.slots.entry(key(name).into()).or_default());
        let Some(prepared) = prepared else {
            slot.unknown = Some(given);
            return;
        };
        let known = slot.meanings.iter_mut().find(|(_, known)| Arc::ptr_eq(known, &prepared));
        if let Some(known) = known {
            known.0 = given;
        } else if slot.meanings.len() < MEANINGS && bytes + size(&prepared) <= most_bytes {
            self.give(name, given, prepared);
        } else {
            slot.unknown = Some(given);
        }
    }
}

/// What the unnamed statement or portal may mean: the last one that the source took, and all that
/// are under way behind it.
#[derive(Debug, Default)]
struct Unnamed {
    meanings: VecDeque<(u64, Vec<Arc<Prepared>>)>,
    under_way: usize,
    bytes: usize,
}

impl Unnamed {
    fn push(&mut self, segment: u64, meanings: Vec<Arc<Prepared>>) {
        self.bytes += meanings.iter().map(|one| size(one)).sum::<usize>();
        self.meanings.push_back((segment, meanings));
        self.under_way += 1;
    }

    fn answered(&mut self, taken: bool) {
        let Some(at) = self.meanings.len().checked_sub(self.under_way) else { return };
        self.under_way = self.under_way.saturating_sub(1);
        // What was taken replaces all before it; what was not may leave them as they are.
        let gone = if taken { 0..at } else { at..at + 1 };
        if gone.end > self.meanings.len() {
            return;
        }
        for (_, meanings) in self.meanings.drain(gone) {
            self.bytes -= meanings.iter().map(|one| size(one)).sum::<usize>();
        }
    }

    /// What it means to a message of this segment, which runs only if all before it in the segment did.
    fn meanings(&self, segment: u64) -> Vec<Arc<Prepared>> {
        match self.meanings.back() {
            Some((given, meanings)) if *given == segment => meanings.clone(),
            // One that nobody knows leaves nothing to be known about the others.
            _ if self.meanings.iter().any(|(_, meanings)| meanings.is_empty()) => Vec::new(),
            _ => self.meanings.iter().flat_map(|(_, meanings)| meanings.iter().cloned()).collect(),
        }
    }
}

fn size(prepared: &Prepared) -> usize {
    prepared.permit.text().len() + prepared.types.len() + 64
}

/// An unnamed statement at the source that PostgreSQL would have dropped: of before a refused Query, or
/// the gateway's own of a Query of several statements.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    there: bool,
    /// Counts what was sent that drops or replaces the unnamed statement.
    sent: u64,
    /// How many had been sent when it came to be.
    since: u64,
    /// The last of them that has no answer yet, and its segment.
    under_way: Option<(u64, u64)>,
}

/// What has to be done about a [`Leftover`] before the unnamed statement is named.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    None,
    Close,
    /// Whether it is gone is not known yet.
    Wait,
}

impl Leftover {
    pub(super) fn left(&mut self) {
        self.there = true;
        self.since = self.sent;
        self.under_way = None;
    }

    pub(super) fn gone(&mut self) {
        self.there = false;
        self.under_way = None;
    }

    /// A Parse or Close of the unnamed statement is sent; its number goes to [`Self::answered`].
    pub(super) fn replaced(&mut self, segment: u64) -> u64 {
        self.sent += 1;
        if self.there {
            self.under_way = Some((self.sent, segment));
        }
        self.sent
    }

    pub(super) fn answered(&mut self, number: u64, taken: bool) {
        if taken && number > self.since {
            self.there = false;
        } else if !taken && self.under_way.is_some_and(|(last, _)| last == number) {
            self.under_way = None;
        }
    }

    pub(super) fn remedy(&self, segment: u64) -> Remedy {
        match self.under_way {
            _ if !self.there => Remedy::None,
            None => Remedy::Close,
            // Both run or neither does.
            Some((_, sent)) if sent == segment => Remedy::None,
            Some(_) => Remedy::Wait,
        }
    }
}

#[derive(Debug)]
pub(super) struct Statements {
    unnamed: Unnamed,
    named: Slots,
    unnamed_portal: Unnamed,
    /// Cursors are portals to PostgreSQL.
    portals: Slots,
    /// Cursors WITH HOLD, which outlive their transaction.
    held: Slots,
    /// Counts what was given to names, so that a late answer does not speak of a newer text.
    clock: u64,
    /// Counts the stretches between one Sync or Query and the next.
    segment: u64,
    /// A Query began this segment and took the unnamed portal away.
    queried: u64,
    /// Names of statements with messages under way. Only kept where clients share sessions.
    under_way: HashMap<Box<[u8]>, UnderWay>,
    most: usize,
    most_bytes: usize,
}

impl Statements {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            unnamed: Unnamed::default(),
            named: Slots::default(),
            unnamed_portal: Unnamed::default(),
            portals: Slots::default(),
            held: Slots::default(),
            clock: 0,
            segment: 1,
            queried: 1,
            under_way: HashMap::new(),
            most: limits.prepared_statements,
            most_bytes: limits.statement_bytes.saturating_mul(LONGEST_STATEMENTS),
        }
    }

    /// A Sync or Query goes to the source: what comes then runs whether or not what went before did.
    pub(super) fn new_segment(&mut self) {
        self.segment += 1;
    }

    /// A Query goes to the source, which takes the unnamed portal away.
    pub(super) fn new_query(&mut self) {
        self.segment += 1;
        self.queried = self.segment;
    }

    /// Whether there is an unnamed portal of the client's own making; `Err`: that is not known yet.
    ///
    /// A Query that fails as it runs may leave its own one behind in a failed block, and PostgreSQL 15
    /// reads freed memory when that is executed: the whole server restarts.
    pub(super) fn has_unnamed_portal(&self) -> Result<bool, Full> {
        let portals = &self.unnamed_portal;
        let taken = portals.meanings.len().saturating_sub(portals.under_way);
        let mut unknown = false;
        for (at, (segment, _)) in portals.meanings.iter().enumerate().rev() {
            if *segment < self.queried {
                continue;
            }
            if at < taken || *segment == self.segment {
                return Ok(true);
            }
            unknown = true;
        }
        if unknown { Err(Full::Now) } else { Ok(false) }
    }

    pub(super) fn segment(&self) -> u64 {
        self.segment
    }

    /// Now, for [`Self::deallocated`].
    pub(super) fn now(&self) -> u64 {
        self.clock
    }

    /// A Parse under way; its answer goes to [`Self::parsed`]. No ticket: the unnamed statement.
    pub(super) fn parse(&mut self, name: &[u8], prepared: Prepared) -> Result<Option<Ticket>, Full> {
        let size = size(&prepared);
        let prepared = Arc::new(prepared);
        if name.is_empty() {
            if self.unnamed.under_way > 0 && self.unnamed.bytes + size > self.most_bytes {
                return Err(Full::Now);
            }
            self.unnamed.push(self.segment, vec![prepared]);
            return Ok(None);
        }
        let known = self.named.get(name);
        if known.is_some_and(|slot| slot.meanings.len() >= MEANINGS) {
            return Err(Full::Now);
        }
        let full = known.is_none() && self.named.slots.len() >= self.most;
        if full || self.named.bytes + size > self.most_bytes {
            return Err(Full::Always(too_many()));
        }
        self.clock += 1;
        self.named.give(name, self.clock, prepared);
        Ok(Some(Box::new((name.into(), self.clock))))
    }

    /// The source has answered a Parse.
    pub(super) fn parsed(&mut self, ticket: Option<&Ticket>, taken: bool) {
        match ticket {
            None => self.unnamed.answered(taken),
            // There was no statement of this name when the source took one.
            Some(ticket) if taken => self.named.retain(&ticket.0, |given| given >= ticket.1),
            Some(ticket) => self.named.retain(&ticket.0, |given| given != ticket.1),
        }
    }

    /// A SQL PREPARE under way. Its ticket may be given back as one of [`Self::parse`].
    pub(super) fn prepare(&mut self, name: &[u8], prepared: Prepared) -> Option<Ticket> {
        let slot = self.named.get(name);
        let same = |(_, other): &(u64, Arc<Prepared>)| other.permit.text() == prepared.permit.text();
        if slot.is_some_and(|slot| slot.meanings.iter().any(same)) {
            return None;
        }
        match self.parse(name, prepared) {
            Ok(ticket) => ticket,
            Err(_) => {
                self.clock += 1;
                // A name that is not known at all is judged as outdated after a change of policy.
                if let Some(slot) = self.named.slots.get_mut(key(name)) {
                    slot.unknown = Some(self.clock);
                }
                None
            }
        }
    }

    /// A Close of a statement under way; the answer goes to [`Self::closed`].
    pub(super) fn closing(&self, name: &[u8]) -> Option<Ticket> {
        self.named.get(name).map(|_| Box::new((name.into(), self.clock)))
    }

    pub(super) fn closed(&mut self, ticket: &Ticket) {
        self.named.retain(&ticket.0, |given| given > ticket.1);
    }

    /// A Close of a portal under way; the answer goes to [`Self::portal_closed`].
    pub(super) fn closing_portal(&self, name: &[u8]) -> Option<Ticket> {
        let slot = self.portals.get(name).or_else(|| self.held.get(name));
        slot.map(|_| Box::new((name.into(), self.clock)))
    }

    pub(super) fn portal_closed(&mut self, ticket: &Ticket) {
        self.portals.retain(&ticket.0, |given| given > ticket.1);
        self.held.retain(&ticket.0, |given| given > ticket.1);
    }

    /// A DEALLOCATE, CLOSE or DISCARD ALL that was sent at `sent` has succeeded.
    pub(super) fn dropped(&mut self, effect: &Effect, sent: u64) {
        match effect {
            Effect::Deallocate { name } => self.named.retain(name.as_bytes(), |given| given > sent),
            Effect::DeallocateAll => self.named.retain_in_all(|given| given > sent),
            Effect::Close { name: Some(name) } => {
                self.portals.retain(name.as_bytes(), |given| given > sent);
                self.held.retain(name.as_bytes(), |given| given > sent);
            }
            Effect::Close { name: None } => {
                self.portals.retain_in_all(|given| given > sent);
                self.held.retain_in_all(|given| given > sent);
            }
            Effect::None
            | Effect::Prepare { .. }
            | Effect::Execute { .. }
            | Effect::Declare { .. }
            | Effect::Fetch { .. }
            | Effect::ApplicationName { .. } => {}
        }
    }

    /// A DECLARE is sent. A cursor that there is no room for is one that nobody knows.
    pub(super) fn declare(&mut self, name: &[u8], hold: bool, prepared: Arc<Prepared>) {
        let slots = if hold { &mut self.held } else { &mut self.portals };
        if slots.get(name).is_some() || slots.slots.len() < self.most {
            self.clock += 1;
            slots.give_or_forget(name, self.clock, Some(prepared), self.most_bytes);
        }
    }

    /// What a statement's name means to the next message; where clients share sessions, it is asked before each
    /// message that names one.
    pub(super) fn meaning(&self, name: &[u8]) -> Meaning {
        if name.is_empty() {
            return self.unnamed_meaning();
        }
        let last = self.named.get(name).and_then(|slot| slot.meanings.last());
        let known = || last.map_or(Meaning::Missing, |(_, prepared)| Meaning::Known(Arc::clone(prepared)));
        match self.under_way.get(key(name)) {
            None => known(),
            Some(under_way) if under_way.segment != self.segment => Meaning::Unsettled,
            Some(under_way) if under_way.closes => Meaning::Missing,
            Some(_) => known(),
        }
    }

    fn unnamed_meaning(&self) -> Meaning {
        match self.unnamed.meanings.back() {
            None => Meaning::Missing,
            Some((segment, _)) if self.unnamed.under_way > 0 && *segment != self.segment => {
                Meaning::Unsettled
            }
            Some((_, meanings)) => match meanings.last() {
                Some(prepared) => Meaning::Known(Arc::clone(prepared)),
                None => Meaning::Missing,
            },
        }
    }

    /// There is no unnamed statement any more; the caller knows that none is under way.
    pub(super) fn forget_unnamed(&mut self) {
        self.unnamed = Unnamed::default();
    }

    /// The source has dropped the one that it had; those under way stay.
    pub(super) fn lose_unnamed(&mut self) {
        while self.unnamed.meanings.len() > self.unnamed.under_way {
            let Some((_, gone)) = self.unnamed.meanings.pop_front() else { return };
            self.unnamed.bytes -= gone.iter().map(|one| size(one)).sum::<usize>();
        }
    }

    /// A Parse or Close of this name is sent; its answer goes to [`Self::heard_about`].
    pub(super) fn told_about(&mut self, name: &[u8], closes: bool) {
        let segment = self.segment;
        let under_way = self.under_way.entry(key(name).into());
        let under_way = under_way.or_insert(UnderWay { messages: 0, segment, closes });
        under_way.messages += 1;
        under_way.closes = closes;
    }

    pub(super) fn heard_about(&mut self, name: &[u8]) {
        if let Some(under_way) = self.under_way.get_mut(key(name)) {
            under_way.messages -= 1;
            if under_way.messages == 0 {
                self.under_way.remove(key(name));
            }
        }
    }

    /// What a statement may mean; `None`: nobody knows.
    pub(super) fn meanings(&self, statement: &[u8]) -> Option<Vec<Arc<Prepared>>> {
        if statement.is_empty() {
            return Some(self.unnamed.meanings(self.segment)).filter(|meanings| !meanings.is_empty());
        }
        let slot = self.named.get(statement).filter(|slot| slot.unknown.is_none())?;
        Some(slot.meanings.iter().map(|(_, prepared)| Arc::clone(prepared)).collect())
    }

    /// A Bind: the portal will mean whatever the statement means, as long as that is still admitted.
    /// True: it is the unnamed portal, and the answer goes to [`Self::bound`].
    pub(super) fn bind(&mut self, statement: &[u8], portal: &[u8], judge: &mut Judge) -> Result<bool, Full> {
        let meanings = self.meanings(statement);
        if judge.has_changed() {
            self.admit_again(meanings.as_deref(), judge, true).map_err(Full::Always)?;
        }
        if portal.is_empty() {
            if self.unnamed_portal.under_way > 0 && self.unnamed_portal.bytes > self.most_bytes {
                return Err(Full::Now);
            }
            self.unnamed_portal.push(self.segment, meanings.unwrap_or_default());
            return Ok(true);
        }
        if self.portals.get(portal).is_none() && self.portals.slots.len() >= self.most {
            return Err(Full::Always(too_many()));
        }
        self.clock += 1;
        // A portal of this name that is still open makes the source refuse the Bind and stays what it is.
        match meanings {
            None => self.portals.give_or_forget(portal, self.clock, None, self.most_bytes),
            Some(meanings) => {
                for meaning in meanings {
                    self.portals.give_or_forget(portal, self.clock, Some(meaning), self.most_bytes);
                }
            }
        }
        Ok(false)
    }

    /// The source has answered a Bind of the unnamed portal.
    pub(super) fn bound(&mut self, taken: bool) {
        self.unnamed_portal.answered(taken);
    }

    /// What a portal or cursor may mean; `None`: nobody knows.
    pub(super) fn portal_meanings(&self, portal: &[u8]) -> Option<Vec<Arc<Prepared>>> {
        if portal.is_empty() {
            return Some(self.unnamed_portal.meanings(self.segment)).filter(|meanings| !meanings.is_empty());
        }
        let mut all = Vec::new();
        for slot in [self.portals.get(portal), self.held.get(portal)].into_iter().flatten() {
            if slot.unknown.is_some() {
                return None;
            }
            all.extend(slot.meanings.iter().map(|(_, prepared)| Arc::clone(prepared)));
        }
        Some(all).filter(|all| !all.is_empty())
    }

    /// An Execute of a portal. What it changes in the session when it succeeds, if that is certain.
    pub(super) fn execute(
        &mut self,
        portal: &[u8],
        judge: &mut Judge,
    ) -> Result<Option<Arc<Prepared>>, ClientError> {
        let changed = judge.has_changed();
        if let Some(only) = self.only(portal)
            && !changed
            && !matches!(only.effect, Effect::Declare { .. })
        {
            return Ok(Some(only));
        }
        let meanings = self.portal_meanings(portal);
        if changed {
            self.admit_again(meanings.as_deref(), judge, true)?;
        }
        for prepared in meanings.as_deref().unwrap_or_default() {
            if let Effect::Declare { name, hold } = &prepared.effect {
                self.declare(name.as_bytes(), *hold, Arc::clone(prepared));
            }
        }
        Ok(self.only(portal))
    }

    /// What is told of an Execute of this portal: of the last that it may mean.
    pub(super) fn reading(&self, portal: &[u8]) -> Option<Arc<Reading>> {
        self.portal_meanings(portal)?.last()?.reading.clone()
    }

    /// What a portal means, if that is certain.
    fn only(&self, portal: &[u8]) -> Option<Arc<Prepared>> {
        if portal.is_empty() {
            let (given, meanings) = self.unnamed_portal.meanings.back()?;
            return match meanings.as_slice() {
                [only] if *given == self.segment => Some(Arc::clone(only)),
                _ => None,
            };
        }
        match self.portals.get(portal)?.meanings.as_slice() {
            [(_, only)] => Some(Arc::clone(only)),
            _ => None,
        }
    }

    /// A Describe of a statement, which makes the source analyse it again.
    pub(super) fn describe(&self, statement: &[u8], judge: &mut Judge) -> Result<(), ClientError> {
        // One that nobody knows was not taken or is gone.
        match self.meanings(statement) {
            Some(meanings) if judge.has_changed() => self.admit_again(Some(&meanings), judge, true),
            _ => Ok(()),
        }
    }

    /// Whether a verdict on the text alone does not settle it: it names something of before a change of policy.
    pub(super) fn hangs_on_others(&self, effect: &Effect, judge: &mut Judge) -> bool {
        matches!(effect, Effect::Execute { .. } | Effect::Fetch { .. }) && judge.has_changed()
    }

    /// Whether what a statement goes on with, a prepared statement, a cursor or a portal, may run under the
    /// policy of now.
    pub(super) fn still_admitted(&self, effect: &Effect, judge: &mut Judge) -> Result<(), ClientError> {
        if !self.hangs_on_others(effect, judge) {
            return Ok(());
        }
        let meanings = match effect {
            Effect::Execute { name } => self.meanings(name.as_bytes()),
            Effect::Fetch { name } => self.portal_meanings(name.as_bytes()),
            Effect::None
            | Effect::Prepare { .. }
            | Effect::Deallocate { .. }
            | Effect::DeallocateAll
            | Effect::Declare { .. }
            | Effect::Close { .. }
            | Effect::ApplicationName { .. } => return Ok(()),
        };
        self.admit_again(meanings.as_deref(), judge, false)
    }

    /// `None`: nobody knows what the name means; then it cannot be judged under the new policy.
    /// `follow`: what an EXECUTE or FETCH among them names is judged too.
    fn admit_again(
        &self,
        meanings: Option<&[Arc<Prepared>]>,
        judge: &mut Judge,
        follow: bool,
    ) -> Result<(), ClientError> {
        let Some(meanings) = meanings else {
            return Err(judge.outdated());
        };
        for prepared in meanings {
            if prepared.era != judge.era() {
                judge.again(prepared.permit.text(), &prepared.types)?;
            }
            if let Effect::Execute { .. } | Effect::Fetch { .. } = &prepared.effect {
                if !follow {
                    return Err(judge.outdated());
                }
                self.still_admitted(&prepared.effect, judge)?;
            }
        }
        Ok(())
    }

    /// Portals do not outlive their transaction; `settled`: no Bind is under way either.
    pub(super) fn transaction_ended(&mut self, settled: bool) {
        if settled && !self.portals.slots.is_empty() {
            self.portals = Slots::default();
        }
    }
}

fn too_many() -> ClientError {
    ClientError::error(
        SqlState::CONFIGURATION_LIMIT_EXCEEDED,
        "too many prepared statements or portals in this session",
    )
    .hint("Close those that are not needed any more, or use DEALLOCATE ALL.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leftover_is_closed_until_that_is_known() {
        let mut leftover = Leftover::default();
        assert_eq!(leftover.remedy(1), Remedy::None);
        leftover.left();
        assert_eq!(leftover.remedy(1), Remedy::Close);
        let close = leftover.replaced(1);
        assert_eq!(leftover.remedy(1), Remedy::None, "both are passed over or neither");
        assert_eq!(leftover.remedy(2), Remedy::Wait);
        leftover.answered(close, false);
        assert_eq!(leftover.remedy(2), Remedy::Close, "it was passed over");
        let close = leftover.replaced(2);
        leftover.left();
        leftover.answered(close, true);
        assert_eq!(leftover.remedy(3), Remedy::Close, "the answer speaks of an older one");
        let close = leftover.replaced(3);
        leftover.answered(close, true);
        assert_eq!(leftover.remedy(4), Remedy::None);
    }

    fn prepared(text: &str) -> Prepared {
        let permit = Permit::application_name(text, "");
        Prepared {
            permit,
            era: Era::default(),
            effect: Effect::None,
            types: Box::default(),
            reading: None,
            leaves_nothing: true,
            text: None,
        }
    }

    fn texts(statements: &Statements, name: &[u8]) -> usize {
        statements.meanings(name).map_or(0, |meanings| meanings.len())
    }

    #[test]
    fn a_name_means_all_that_may_have_been_taken() {
        let mut statements = Statements::new(&Limits::default());
        assert!(statements.parse(b"", prepared("a")).unwrap().is_none());
        assert_eq!(texts(&statements, b""), 1, "in its own segment the last one runs or nothing does");
        statements.new_segment();
        statements.parse(b"", prepared("b")).unwrap();
        statements.new_segment();
        assert_eq!(texts(&statements, b""), 2);
        statements.parsed(None, true);
        statements.parsed(None, false);
        assert_eq!(texts(&statements, b""), 1);
        let first = statements.parse(b"s", prepared("a")).unwrap();
        let second = statements.parse(b"s", prepared("b")).unwrap();
        assert_eq!(texts(&statements, b"s"), 2);
        statements.parsed(first.as_ref(), true);
        statements.parsed(second.as_ref(), false);
        assert_eq!(texts(&statements, b"s"), 1);
        let closing = statements.closing(b"s").unwrap();
        statements.closed(&closing);
        assert_eq!(
            (texts(&statements, b"s"), statements.named.bytes, statements.named.slots.len()),
            (0, 0, 0)
        );
    }

    #[test]
    fn a_name_with_more_texts_than_can_be_kept_is_unknown() {
        let mut statements = Statements::new(&Limits::default());
        for number in 0..MEANINGS {
            statements.prepare(b"s", prepared(&number.to_string()));
        }
        assert_eq!(texts(&statements, b"s"), MEANINGS);
        assert!(statements.prepare(b"s", prepared("one more")).is_none());
        assert!(statements.meanings(b"s").is_none());
    }
}
