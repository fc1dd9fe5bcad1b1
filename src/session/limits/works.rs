//! The limits as one session meets them: what it has at work, what it was given of each answer, what it waits for.
//!
//! Invariant: the queue here has a place for each Query and Execute that was sent and not answered, so that a row is
//! counted for the statement that it belongs to; whatever ends the session gives everything back.

use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::estimate::{Outcome, Question};
use super::ledger::{Given, Passed, User};
use super::refusal::{Limited, NoEstimate, Words};
use super::text::{self, Key, Touch};
use super::{AtWork, Restraints};
use crate::config::{self, Amount, quiet_until};
use crate::guard::{Effect, Permit};
use crate::ids::{ClientUser, EndUser};
use crate::metrics::EstimateOutcome;

/// Rows and bytes after which the day's books are looked at again.
const AT_ONCE: Amount = Amount { rows: Some(4096), bytes: Some(1 << 20) };
/// Portals and cursors whose portions are added up.
const MOST_CURSORS: usize = 4096;
/// PostgreSQL keeps portals by the first bytes of their names (`NAMEDATALEN`).
const LONGEST_NAME: usize = 63;
/// Settings of search_path that a session may be under at the same time.
const MOST_PATHS: usize = 8;

/// What one session has to do with the limits of its source.
pub struct Works {
    restraints: Arc<Restraints>,
    login: User,
    settings: Arc<[(String, String)]>,
    settings_key: [u8; 32],
    next: Entry,
    sent: VecDeque<Entry>,
    /// How many of them are at work.
    counted: usize,
    held: Option<AtWork>,
    portions: HashMap<Box<[u8]>, Portions>,
    paths: Paths,
    asking: Option<Asking>,
    /// What the statements of the message under way would cost.
    told: Vec<(Key, Outcome)>,
}

type Asking = (Key, Pin<Box<dyn Future<Output = Outcome> + Send>>);

/// What was fetched of a portal or cursor so far.
#[derive(Clone, Copy, Debug, Default)]
struct Portions {
    given: Given,
    /// WITH HOLD: it outlives its transaction.
    hold: bool,
}

/// A statement that is about to be sent.
pub(in crate::session) struct Statement<'a> {
    pub(in crate::session) config: &'a Arc<config::Source>,
    pub(in crate::session) end_user: Option<&'a EndUser>,
    /// Absent where nobody knows it.
    pub(in crate::session) permit: Option<&'a Permit>,
    pub(in crate::session) effect: Option<&'a Effect>,
    /// Of an Execute.
    pub(in crate::session) portal: Option<&'a [u8]>,
}

/// A Query or Execute that was sent and not answered.
#[derive(Default)]
enum Entry {
    /// Nothing here hangs on it.
    #[default]
    Other,
    Work(Box<Sent>),
    /// DECLARE: when it succeeds there is a new cursor, WITH HOLD or not.
    Declares(Box<[u8]>, bool),
    /// CLOSE of one, or of all.
    Closes(Option<Box<[u8]>>),
}

/// A statement under way.
struct Sent {
    config: Arc<config::Source>,
    user: User,
    permit: Option<Permit>,
    fetches: Fetches,
    /// Of this answer, portions of before included; not known before all that was sent before it has its answer.
    given: Option<Given>,
    /// What the day's books do not know yet.
    unsettled: Given,
    /// What may be given before they have to be looked at.
    left: Amount,
}

/// What the answer is a part of.
enum Fetches {
    Nothing,
    /// A portal: done when its Execute completes.
    Portal(Box<[u8]>),
    /// A cursor: a FETCH never says that it was the last.
    Cursor(Box<[u8]>),
}

/// What there is to say about a statement's cost.
pub(in crate::session) enum Cost {
    Fine,
    /// [`Works::poll`] says when it is known.
    Wait,
    TooMuch(Limited),
}

fn name(name: &[u8]) -> &[u8] {
    name.get(..LONGEST_NAME).unwrap_or(name)
}

impl Works {
    pub fn new(restraints: Arc<Restraints>, login: &ClientUser, settings: Arc<[(String, String)]>) -> Self {
        let mut hash = Sha256::new();
        for (name, value) in &*settings {
            for part in [name, value] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part.as_bytes());
            }
        }
        let planner = settings.iter().any(|(name, _)| text::is_of_the_costs(&name.to_ascii_lowercase()));
        Self {
            restraints,
            login: User::login(login.shared()),
            settings,
            settings_key: hash.finalize().into(),
            next: Entry::Other,
            sent: VecDeque::new(),
            counted: 0,
            held: None,
            portions: HashMap::new(),
            paths: Paths { planner, ..Paths::default() },
            asking: None,
            told: Vec::new(),
        }
    }

    fn user(&self, end_user: Option<&EndUser>) -> User {
        end_user.map_or_else(|| self.login.clone(), |end_user| User::end(&end_user.user))
    }

    // ---- before a statement is sent -----------------------------------------------------------

    /// Whether a statement may go to work now; if so, the session has its place.
    pub(in crate::session) fn admit(
        &mut self,
        config: &Arc<config::Source>,
        end_user: Option<&EndUser>,
    ) -> Result<(), Limited> {
        let limits = &config.limits;
        let words = Words { source: &config.name, limits };
        if !limits.quiet_hours.is_empty()
            && let Some(until) = quiet_until(&limits.quiet_hours, self.restraints.now())
        {
            return Err(words.quiet(until));
        }
        let user = self.user(end_user);
        if limits.day != Amount::default() {
            let now = self.restraints.now();
            if let Some(passed) = self.restraints.ledger.given(&user, now).used_up(&limits.day) {
                return Err(words.day(passed, &user, now));
            }
        }
        let counts =
            limits.statements.is_some() || limits.statements_by_user.is_some() || limits.breaker.is_some();
        if counts && self.held.is_none() {
            // A session works at one statement at a time, however many it has sent.
            let held = self.restraints.take(&user, limits);
            self.held = Some(held.map_err(|(full, above)| words.full(full, &user, above.as_ref()))?);
        }
        Ok(())
    }

    /// Whether the planner's estimate of an admitted text is below the ceiling. `types`: of a Parse.
    pub(in crate::session) fn cost(
        &mut self,
        config: &Arc<config::Source>,
        permit: &Permit,
        types: Option<&[u8]>,
        generation: u64,
    ) -> Cost {
        let Some(limit) = &config.limits.cost else { return Cost::Fine };
        if self.asking.is_some() {
            return Cost::Wait;
        }
        if !text::may_be_asked(permit.text()) {
            return Cost::Fine;
        }
        let words = Words { source: &config.name, limits: &config.limits };
        if self.paths.planner {
            return Cost::TooMuch(words.no_estimate(&NoEstimate::Planner));
        }
        if self.paths.lost || self.paths.lost_for_good {
            return Cost::TooMuch(words.no_estimate(&NoEstimate::Unsure));
        }
        for path in self.paths.may() {
            let key = text::key(
                permit.text(),
                types.unwrap_or_default(),
                path.as_ref().map(Permit::text),
                &self.settings_key,
                generation,
            );
            let outcome = match self.told.iter().find(|(known, _)| *known == key) {
                Some((_, outcome)) => outcome.clone(),
                None => match self.restraints.costs.known(&key, limit.remember) {
                    Some(estimate) => {
                        self.restraints.metrics.estimated(EstimateOutcome::Remembered);
                        Outcome::Cost(estimate)
                    }
                    None => {
                        let question = Question {
                            key,
                            permit: permit.clone(),
                            types: types.map(Bytes::copy_from_slice),
                            settings: Arc::clone(&self.settings),
                            path,
                            unsure: self.paths.unsure,
                        };
                        let asked = self.restraints.costs.ask(question, limit.timeout);
                        self.asking = Some((key, Box::pin(asked)));
                        return Cost::Wait;
                    }
                },
            };
            match outcome {
                Outcome::Cost(estimate) if estimate.cost > limit.most => {
                    return Cost::TooMuch(words.cost(&estimate, limit.most));
                }
                Outcome::Cost(_) | Outcome::GoesOn => {}
                Outcome::None(why) => return Cost::TooMuch(words.no_estimate(&why)),
            }
        }
        Cost::Fine
    }

    /// Whether names may be looked up elsewhere than at the session's start.
    pub(in crate::session) fn path_is_changed(&self) -> bool {
        !self.paths.may.is_empty()
            || !self.paths.by_call.is_empty()
            || self.paths.lost_for_good
            || self.paths.planner
    }

    /// What is said of a statement of which nobody knows what it is.
    pub(in crate::session) fn unsure(&self, config: &config::Source) -> Cost {
        let words = Words { source: &config.name, limits: &config.limits };
        Cost::TooMuch(words.no_estimate(&NoEstimate::Unsure))
    }

    /// True: [`Self::cost`] has something else to say now. Otherwise the task is woken when it has.
    pub(in crate::session) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let Some((key, asked)) = &mut self.asking else { return false };
        let Poll::Ready(outcome) = asked.as_mut().poll(cx) else { return false };
        self.told.push((*key, outcome));
        self.asking = None;
        true
    }

    /// The message under way was dealt with: what it waited for and did not use is given back.
    pub(in crate::session) fn dealt_with(&mut self) {
        self.asking = None;
        self.told.clear();
        self.next = Entry::Other;
        if self.counted == 0 {
            self.held = None;
        }
    }

    /// The statement that is sent next counts.
    pub(in crate::session) fn next(&mut self, statement: &Statement<'_>) {
        let limits = &statement.config.limits;
        let user = self.user(statement.end_user);
        let fetches = match (statement.effect, statement.portal) {
            (Some(Effect::Fetch { name: cursor }), _) => Fetches::Cursor(name(cursor.as_bytes()).into()),
            (_, Some(portal)) => Fetches::Portal(name(portal).into()),
            (_, None) => Fetches::Nothing,
        };
        let left = match limits.day == Amount::default() {
            true => Amount::default(),
            false => {
                let today = self.restraints.ledger.given(&user, self.restraints.now());
                left(&limits.day, today)
            }
        };
        self.next = Entry::Work(Box::new(Sent {
            config: Arc::clone(statement.config),
            user,
            permit: statement.permit.cloned(),
            fetches,
            given: None,
            unsettled: Given::default(),
            left,
        }));
    }

    /// A Query or an Execute was sent.
    pub(in crate::session) fn sent(&mut self) {
        let next = std::mem::take(&mut self.next);
        self.counted += usize::from(matches!(next, Entry::Work(_)));
        self.sent.push_back(next);
        self.paths.executed = self.paths.executed.saturating_add(1);
    }

    /// A portal of this name is made anew, or gone.
    pub(in crate::session) fn anew(&mut self, portal: &[u8]) {
        if !self.portions.is_empty() {
            self.portions.remove(name(portal));
        }
    }

    /// A statement that is no work itself is sent, or may be from now on.
    pub(in crate::session) fn touches(&mut self, permit: &Permit, effect: &Effect, sent: bool) {
        match effect {
            Effect::Declare { name: cursor, hold } if sent => {
                self.next = Entry::Declares(name(cursor.as_bytes()).into(), *hold);
            }
            Effect::Close { name: cursor } if sent => {
                self.next = Entry::Closes(cursor.as_ref().map(|cursor| name(cursor.as_bytes()).into()));
            }
            _ => {}
        }
        match text::touch(permit.text()) {
            Touch::Nothing | Touch::Transaction => {}
            Touch::Setting => self.paths.unsure = true,
            Touch::Planner => self.paths.planner = true,
            Touch::PathLost => self.paths.lost_for_good = true,
            Touch::PathByCall => self.paths.call(permit),
            Touch::Path { local } => self.paths.set(Some(permit.clone()), sent && !local),
            Touch::ResetPath => self.paths.set(None, sent),
        }
    }

    // ---- while it is answered -----------------------------------------------------------------

    /// A row of so many bytes comes, of the statement that is answered first. It must not be passed on when this says
    /// which limit it passes.
    pub(in crate::session) fn row(&mut self, bytes: usize) -> Option<(Limited, Option<Permit>)> {
        let Some(Entry::Work(sent)) = self.sent.front_mut() else { return None };
        let one = Given { rows: 1, bytes: bytes as u64 };
        let limits = &sent.config.limits;
        let words = Words { source: &sent.config.name, limits };
        let before = match sent.given {
            Some(given) => given,
            None => fetched(&self.portions, &sent.fetches),
        };
        // Also when this row is the first that is too much.
        sent.given = Some(before);
        let with = before.plus(one);
        if let Some(passed) = with.beyond(&limits.answer) {
            return Some((words.answer(passed), sent.permit.clone()));
        }
        sent.given = Some(with);
        if limits.day == Amount::default() {
            return None;
        }
        let unsettled = sent.unsettled.plus(one);
        if unsettled.beyond(&sent.left).is_some() || unsettled.beyond(&AT_ONCE).is_some() {
            let now = self.restraints.now();
            let today = self.restraints.ledger.give(&sent.user, std::mem::take(&mut sent.unsettled), now);
            if let Some(passed) = today.plus(one).beyond(&limits.day) {
                let passed = match passed {
                    Passed::Rows { most, .. } => Passed::Rows { given: today.rows, most },
                    Passed::Bytes { most, .. } => Passed::Bytes { given: today.bytes, most },
                };
                return Some((words.day(passed, &sent.user, now), sent.permit.clone()));
            }
            sent.left = left(&limits.day, today);
        }
        sent.unsettled = sent.unsettled.plus(one);
        None
    }

    /// The first Query or Execute has its answer, or a portion of it (`suspended`), or never will.
    pub(in crate::session) fn answered(&mut self, suspended: bool, succeeded: bool) {
        let sent = match self.sent.pop_front() {
            None | Some(Entry::Other) => return,
            Some(Entry::Work(sent)) => sent,
            Some(Entry::Declares(name, hold)) => {
                if succeeded {
                    self.portions.remove(&name);
                    if hold && self.portions.len() < MOST_CURSORS {
                        self.portions.insert(name, Portions { hold: true, ..Portions::default() });
                    }
                }
                return;
            }
            Some(Entry::Closes(cursor)) => {
                match cursor {
                    Some(name) if succeeded => drop(self.portions.remove(&name)),
                    None if succeeded => self.portions.clear(),
                    Some(_) | None => {}
                }
                return;
            }
        };
        self.counted = self.counted.saturating_sub(1);
        if self.counted == 0 {
            self.held = None;
        }
        self.settle(&sent);
        let given = sent.given.unwrap_or_else(|| fetched(&self.portions, &sent.fetches));
        match sent.fetches {
            Fetches::Portal(name) if suspended || !succeeded => self.add(name, given),
            Fetches::Portal(name) => drop(self.portions.remove(&name)),
            Fetches::Cursor(name) => self.add(name, given),
            Fetches::Nothing => {}
        }
    }

    fn add(&mut self, name: Box<[u8]>, given: Given) {
        // Where there is no room for a name of its own, all that have none share one.
        let full = self.portions.len() >= MOST_CURSORS && !self.portions.contains_key(&name);
        let name = if full { Box::default() } else { name };
        self.portions.entry(name).or_default().given = given;
    }

    fn settle(&self, sent: &Sent) {
        if sent.unsettled != Given::default() {
            self.restraints.ledger.give(&sent.user, sent.unsettled, self.restraints.now());
        }
    }

    /// ReadyForQuery: `idle`, outside of a transaction; `settled`, nothing is under way any more.
    pub(in crate::session) fn ready(&mut self, idle: bool, failed: bool, settled: bool) {
        self.paths.ready(idle, failed, settled);
        if idle && settled && !self.portions.is_empty() {
            self.portions.retain(|_, portions| portions.hold);
        }
    }

    pub(in crate::session) fn refused(&self, limited: &Limited) {
        self.restraints.metrics.refused(limited.kind);
    }
}

impl Drop for Works {
    /// Whoever goes amid an answer was given what came of it.
    fn drop(&mut self) {
        for sent in std::mem::take(&mut self.sent) {
            if let Entry::Work(sent) = sent {
                self.settle(&sent);
            }
        }
    }
}

/// What was fetched before of what an answer is a part of.
fn fetched(portions: &HashMap<Box<[u8]>, Portions>, fetches: &Fetches) -> Given {
    match fetches {
        Fetches::Nothing => Given::default(),
        Fetches::Portal(name) | Fetches::Cursor(name) => {
            let portions = portions.get(name).or_else(|| {
                // It may have found no room for a name of its own.
                portions.get(&[][..]).filter(|_| portions.len() >= MOST_CURSORS)
            });
            portions.map(|portions| portions.given).unwrap_or_default()
        }
    }
}

fn left(most: &Amount, given: Given) -> Amount {
    Amount {
        rows: most.rows.map(|most| most.saturating_sub(given.rows)),
        bytes: most.bytes.map(|most| most.saturating_sub(given.bytes)),
    }
}

/// Where names may be looked up, as far as it is known: what is under way may fail or be undone.
#[derive(Default)]
struct Paths {
    /// `None` is the path of the session's start. Empty: that one alone.
    may: Vec<Option<Permit>>,
    /// There were more than can be kept.
    lost: bool,
    /// Calls of `set_config`, which may have been prepared and may come again at any time.
    by_call: Vec<Permit>,
    /// There were more of them, or some that cannot be made on another connection.
    lost_for_good: bool,
    /// What plans hang on was changed, or what they are weighed by.
    planner: bool,
    /// Set by what was sent last.
    pending: Option<Option<Permit>>,
    /// Statements since nothing was under way.
    executed: u32,
    /// In a transaction block, at the last ReadyForQuery.
    block: bool,
    /// Another setting was changed.
    unsure: bool,
}

impl Paths {
    fn may(&self) -> Vec<Option<Permit>> {
        let mut all = if self.may.is_empty() { vec![None] } else { self.may.clone() };
        all.extend(self.by_call.iter().cloned().map(Some));
        all
    }

    fn call(&mut self, permit: &Permit) {
        if self.by_call.iter().any(|known| known.text() == permit.text()) {
            return;
        }
        if self.by_call.len() >= MOST_PATHS {
            self.lost_for_good = true;
        } else {
            self.by_call.push(permit.clone());
        }
    }

    fn set(&mut self, path: Option<Permit>, certain: bool) {
        if self.may.is_empty() {
            self.may.push(None);
        }
        let text = path.as_ref().map(Permit::text);
        let known = self.may.iter().any(|known| known.as_ref().map(Permit::text) == text);
        if !known && self.may.len() >= MOST_PATHS {
            self.lost = true;
        } else if !known {
            self.may.push(path.clone());
        }
        if certain {
            self.pending = Some(path);
        }
    }

    /// A SET that ran alone and outside of a block leaves no doubt.
    fn ready(&mut self, idle: bool, failed: bool, settled: bool) {
        if !settled {
            self.executed = u32::MAX;
            return;
        }
        let alone = self.executed == 1 && !self.block;
        if let Some(path) = self.pending.take()
            && alone
            && idle
            && !failed
        {
            self.may = path.map_or_else(Vec::new, |path| vec![Some(path)]);
            self.lost = false;
        }
        self.executed = 0;
        self.block = !idle;
    }
}

#[cfg(test)]
mod tests;
