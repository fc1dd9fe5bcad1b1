//! The guard as one session sees it: verdicts under the snapshot in force, counted and logged.
//!
//! Invariant: each text is judged under the newest snapshot, and every refusal leaves one line in the
//! log and one count in the metrics, with who was refused and never with what they sent.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot, watch};

use super::aside::{Aside, LONG, Room};
use super::ruling::{Ruling, Rulings, VEILED};
use super::trail::{Reading, Voice};
use crate::config;
use crate::guard::{
    Admitted, Context, Kept, Last, Mode, Refusal, Step, Verdict, VerdictCache, judge_parameter_types,
};
use crate::ids::{ClientUser, EndUser, RefusalClass, StatementClass};
use crate::metrics::SourceMetrics;
use crate::sql::catalogue::Catalogue;
use crate::sql::comment::{self, CommentFormat};
use crate::sql::lexer::{self, Item, Lexer};
use crate::sqlstate::SqlState;
use crate::wire::ClientError;

/// Longest text that is judged again, on the thread that relays, after the policy has changed: a verdict on
/// it is kept in the cache.
const LONGEST_AGAIN: usize = 64 << 10;

/// What verdicts on one source depend on; replaced whole, never edited.
pub struct Snapshot {
    pub config: Arc<config::Source>,
    pub catalogue: Arc<Catalogue>,
    pub limits: crate::sql::Limits,
    /// How the engine's comment names its end users.
    pub comment: Option<CommentFormat>,
    /// Another number for every snapshot that any verdict could differ under.
    pub generation: u64,
}

/// Under which policies something was admitted; another one for every change that any verdict could differ under.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Era {
    snapshot: u64,
    rulings: u64,
}

/// Who is judged.
#[derive(Clone, Debug)]
pub struct Who {
    pub user: ClientUser,
    pub address: SocketAddr,
    /// Proved by a certificate of this name.
    pub certified: bool,
}

pub struct Judge {
    who: Who,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    snapshot: Arc<Snapshot>,
    /// Generation of the snapshot that the session began with.
    began: u64,
    cache: Arc<VerdictCache>,
    /// The text that was judged last.
    last: Option<Box<Last>>,
    metrics: SourceMetrics,
    /// Asks for a newer catalogue, when a function was not known.
    stale: Arc<Notify>,
    /// The source, or this user's access to it, is gone.
    revoked: bool,
    aside: Arc<Aside>,
    long: Long,
    /// Absent without an audit trail.
    voice: Option<Voice>,
    rulings: Option<watch::Receiver<Arc<Rulings>>>,
    ruling: Ruling,
    /// How often the ruling has become another one since the session began.
    rulings_since: u64,
}

/// The verdict on a long text, which is worked out elsewhere.
enum Long {
    None,
    /// For room.
    Waiting(Pin<Box<dyn Future<Output = Option<Room>> + Send>>),
    Room(Room),
    Running(oneshot::Receiver<Answer>),
    Answered(Answer),
    Refused,
    Panicked,
}

struct Answer {
    text: Bytes,
    generation: u64,
    mode: Mode,
    verdict: Arc<Verdict>,
}

/// Whether [`Judge::verdict`] may be asked now.
pub enum Readiness {
    Now,
    /// [`Judge::poll_long`] says when.
    Wait,
    /// The statement is refused: too many others wait.
    Busy(ClientError),
    /// The session must end.
    Broken(ClientError),
}

impl Snapshot {
    fn context(&self, mode: Mode) -> Context<'_> {
        Context { catalogue: &self.catalogue, mode, limits: &self.limits, source: &self.config.name }
    }
}

impl Judge {
    pub fn new(
        who: Who,
        snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
        snapshot: Arc<Snapshot>,
        cache: Arc<VerdictCache>,
        metrics: SourceMetrics,
        stale: Arc<Notify>,
        aside: Arc<Aside>,
    ) -> Self {
        let began = snapshot.generation;
        Self {
            who,
            snapshots,
            snapshot,
            began,
            cache,
            last: None,
            metrics,
            stale,
            revoked: false,
            aside,
            long: Long::None,
            voice: None,
            rulings: None,
            ruling: Ruling::Open,
            rulings_since: 0,
        }
    }

    /// Obeys the configuration policies.
    pub(super) fn with_rulings(mut self, mut rulings: watch::Receiver<Arc<Rulings>>) -> Self {
        self.ruling = rulings.borrow_and_update().of(&self.snapshot.config.name, &self.who.user);
        self.rulings = Some(rulings);
        self
    }

    /// Tells the audit trail of what is refused, and of what is read if it asks for that.
    pub(super) fn with_voice(mut self, voice: Option<Voice>) -> Self {
        self.voice = voice;
        self
    }

    /// The voice, where admitted reads are told of.
    pub(super) fn voice_for_reads(&self) -> Option<&Voice> {
        self.voice.as_ref().filter(|voice| voice.reads())
    }

    /// What will be told of an admitted statement of `sql`; nothing unless it is a read and reads are told of.
    pub(super) fn reading(
        &self,
        sql: &[u8],
        statement: &[u8],
        class: StatementClass,
    ) -> Option<Arc<Reading>> {
        let voice = self.voice_for_reads()?;
        // Who is named is a matter of the whole text.
        (class == StatementClass::Read)
            .then(|| voice.reading(statement, self.end_user(sql).as_ref(), &self.snapshot.limits))
    }

    pub fn mode(&self) -> Mode {
        if self.snapshot.config.is_writer(&self.who.user) { Mode::ReadWrite } else { Mode::ReadOnly }
    }

    /// The source as it is configured now.
    pub(super) fn config(&self) -> &Arc<config::Source> {
        &self.snapshot.config
    }

    pub fn generation(&self) -> u64 {
        self.snapshot.generation
    }

    pub(super) fn era(&self) -> Era {
        Era { snapshot: self.snapshot.generation, rulings: self.rulings_since }
    }

    /// Whether the policy is another one than when the session began.
    pub fn has_changed(&mut self) -> bool {
        self.refresh();
        self.snapshot.generation != self.began || self.rulings_since > 0
    }

    /// Takes up what a reload has changed.
    pub(super) fn refresh(&mut self) {
        if let Some(rulings) = &mut self.rulings
            && rulings.has_changed().unwrap_or(false)
        {
            let ruling = rulings.borrow_and_update().of(&self.snapshot.config.name, &self.who.user);
            if ruling != self.ruling {
                self.ruling = ruling;
                self.rulings_since += 1;
                self.revoked |= self.ruling.ends(self.snapshot.config.is_engine(&self.who.user));
            }
        }
        match self.snapshots.has_changed() {
            Ok(false) => {}
            Ok(true) => {
                let newest = self.snapshots.borrow_and_update().clone();
                if let Some(snapshot) = newest {
                    let address = self.who.address.ip().to_canonical();
                    self.revoked |= !snapshot.config.allows(&self.who.user, address, self.who.certified);
                    let before = self.mode();
                    self.snapshot = snapshot;
                    // Its session was opened for reading, and others may have it after this client.
                    self.revoked |= before == Mode::ReadOnly && self.mode() == Mode::ReadWrite;
                }
            }
            // Nobody keeps this source any more: it is no longer configured.
            Err(_) => self.revoked = true,
        }
    }

    /// Whether a reload has taken the source, or the access to it, from this client: the session must end.
    pub fn is_revoked(&self) -> bool {
        self.revoked
    }

    /// To be asked before [`Self::verdict`]: long texts are judged on other threads, one at a time for each
    /// session, and the message that they came in stays where it is until then.
    pub fn readiness(&mut self, sql: &[u8]) -> Readiness {
        if sql.len() < LONG {
            return Readiness::Now;
        }
        self.refresh();
        let (generation, mode) = (self.snapshot.generation, self.mode());
        match &mut self.long {
            Long::Waiting(_) | Long::Running(_) => return Readiness::Wait,
            Long::Refused => {
                let error = ClientError::error(
                    SqlState::INSUFFICIENT_RESOURCES,
                    "too many long statements wait to be verified",
                );
                return Readiness::Busy(error.hint("Try again later."));
            }
            Long::Panicked => {
                let error = ClientError::fatal(SqlState::INTERNAL_ERROR, "internal error of the gateway");
                return Readiness::Broken(error);
            }
            Long::Answered(answer)
                if answer.generation == generation && answer.mode == mode && answer.text == sql =>
            {
                return Readiness::Now;
            }
            Long::Answered(_) | Long::None | Long::Room(_) => {}
        }
        if self.cache.known(sql, &self.snapshot.context(mode), generation).is_some() {
            self.long = Long::None;
            return Readiness::Now;
        }
        self.long = match std::mem::replace(&mut self.long, Long::None) {
            Long::Room(room) => {
                let text = Bytes::copy_from_slice(sql);
                let (snapshot, cache) = (Arc::clone(&self.snapshot), Arc::clone(&self.cache));
                let metrics = self.metrics.clone();
                Long::Running(self.aside.run(room, move || {
                    let began = std::time::Instant::now();
                    let verdict = cache.judge(&text, &snapshot.context(mode), generation);
                    metrics.verdicts.seconds.observe(began.elapsed().as_secs_f64());
                    Answer { text, generation, mode, verdict }
                }))
            }
            _ => Long::Waiting(Box::pin(self.aside.room())),
        };
        Readiness::Wait
    }

    /// True: [`Self::readiness`] has something else to say now. Otherwise the task is woken when it has.
    pub fn poll_long(&mut self, cx: &mut task::Context<'_>) -> bool {
        let next = match &mut self.long {
            Long::Waiting(room) => match room.as_mut().poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(Some(room)) => Long::Room(room),
                Poll::Ready(None) => Long::Refused,
            },
            Long::Running(answer) => match Pin::new(answer).poll(cx) {
                Poll::Pending => return false,
                Poll::Ready(Ok(answer)) => Long::Answered(answer),
                Poll::Ready(Err(_)) => Long::Panicked,
            },
            Long::None | Long::Room(_) | Long::Answered(_) | Long::Refused | Long::Panicked => return false,
        };
        self.long = next;
        true
    }

    /// The message with the long text has been dealt with.
    pub fn forget_long(&mut self) {
        if !matches!(self.long, Long::None) {
            self.long = Long::None;
        }
    }

    pub fn verdict(&mut self, sql: &[u8]) -> Arc<Verdict> {
        let verdict = self.judged(sql);
        if self.ruling == Ruling::Open {
            return verdict;
        }
        self.ruled(sql, verdict)
    }

    /// A verdict of the guard, unless it lets somebody read for whom nothing on the way makes the masks.
    fn ruled(&self, sql: &[u8], verdict: Arc<Verdict>) -> Arc<Verdict> {
        let shows = |step: &Step| match step {
            Step::Admit(admitted) => match admitted.class {
                StatementClass::Read | StatementClass::Write => true,
                StatementClass::Transaction | StatementClass::Session | StatementClass::Empty => false,
            },
            Step::Refuse(_) => false,
        };
        let end_user = self.end_user(sql);
        let may = self.ruling.lets_read(end_user.as_ref().map(|end_user| &*end_user.user));
        if may || !verdict.steps.iter().any(shows) {
            return verdict;
        }
        let refusal = Refusal::masked(&self.snapshot.config.name, VEILED);
        Arc::new(Verdict { form: verdict.form, steps: vec![Step::Refuse(refusal)] })
    }

    /// A call of a function by its number names no end user.
    pub(super) fn may_call(&self) -> Result<(), Refusal> {
        match self.ruling.lets_read(None) {
            true => Ok(()),
            false => Err(Refusal::masked(&self.snapshot.config.name, VEILED)),
        }
    }

    fn judged(&mut self, sql: &[u8]) -> Arc<Verdict> {
        self.refresh();
        if let Long::Answered(answer) = &self.long
            && answer.generation == self.snapshot.generation
            && answer.mode == self.mode()
            && answer.text == sql
        {
            self.metrics.verdicts.judged.inc();
            return Arc::clone(&answer.verdict);
        }
        let snapshot = &self.snapshot;
        let context = snapshot.context(self.mode());
        let last = self.last.as_deref();
        if let Some(verdict) = self.cache.known_after(last, sql, &context, snapshot.generation) {
            self.metrics.verdicts.cached.inc();
            return verdict;
        }
        let began = std::time::Instant::now();
        let (verdict, kept) = self.cache.judge_new(sql, &context, snapshot.generation, &mut self.last);
        self.metrics.verdicts.judged.inc();
        self.metrics.verdicts.seconds.observe(began.elapsed().as_secs_f64());
        if kept == Kept::Yes {
            self.metrics.verdicts.bytes.set(i64::try_from(self.cache.bytes()).unwrap_or(i64::MAX));
        }
        verdict
    }

    /// Judges the parameter types of a Parse, count and OIDs as they lie.
    pub fn parameter_types(&self, types: &[u8]) -> Result<(), Refusal> {
        let snapshot = &self.snapshot;
        let context = snapshot.context(self.mode());
        judge_parameter_types(types, &context)
    }

    /// Judges a prepared text and its parameters' types again.
    pub fn again(&mut self, sql: &[u8], types: &[u8]) -> Result<(), ClientError> {
        // Nothing waits here for another thread, so what would take long is to be sent again.
        if sql.len() > LONGEST_AGAIN {
            return Err(self.outdated());
        }
        let verdict = self.verdict(sql);
        if let Some(Step::Refuse(refusal)) = verdict.steps.last() {
            return Err(self.refused(sql, refusal));
        }
        self.parameter_types(types).map_err(|refusal| self.refused(sql, &refusal))
    }

    /// Whether a writer's statement is COPY … FROM.
    pub fn is_copy_in(&self, admitted: &Admitted) -> bool {
        admitted.class == StatementClass::Write && self.begins_with(admitted, &["copy"])
    }

    fn begins_with(&self, admitted: &Admitted, words: &[&str]) -> bool {
        let Ok(text) = lexer::utf8(admitted.permit.text()) else { return true };
        let mut lexer = Lexer::new(text);
        loop {
            match lexer.next_item() {
                Ok(Some(Item::Comment(_))) => {}
                Ok(Some(Item::Token(token))) => return words.iter().any(|word| token.is(word)),
                // What cannot be told may be one.
                Ok(None) | Err(_) => return true,
            }
        }
    }

    pub fn count_admitted(&self, class: StatementClass) {
        self.metrics.admitted(class);
    }

    pub fn count_empty(&self) {
        self.metrics.admitted(StatementClass::Empty);
    }

    /// Counts and logs a refusal; what the client is told of it.
    pub fn refused(&self, sql: &[u8], refusal: &Refusal) -> ClientError {
        if refusal.class == RefusalClass::Function {
            self.stale.notify_one();
        }
        let position = refusal.offset.and_then(|offset| {
            let before = std::str::from_utf8(sql.get(..offset)?).ok()?;
            u32::try_from(before.chars().count() + 1).ok()
        });
        let error = ClientError::error(refusal.sqlstate(), refusal.client_message());
        let error = ClientError { detail: refusal.detail.clone(), hint: refusal.hint.clone(), ..error };
        let error = error.position(position);
        self.count_refusal(refusal.class, &error, sql);
        error
    }

    /// One line and one count for something that was not sent on.
    pub(super) fn count_refusal(&self, class: RefusalClass, error: &ClientError, sql: &[u8]) {
        self.metrics.refused(class);
        let end_user = self.end_user(sql);
        if let Some(voice) = &self.voice {
            voice.refused(sql, class, error.sqlstate, end_user.as_ref());
        }
        let (end_user, query) = match &end_user {
            Some(end_user) => (Some(&*end_user.user), Some(&*end_user.query)),
            None => (None, None),
        };
        tracing::warn!(
            source = %self.snapshot.config.name,
            user = %self.who.user,
            address = %self.who.address,
            end_user,
            query,
            class = class.as_str(),
            sqlstate = error.sqlstate.as_str(),
            reason = error.message,
            "refused"
        );
    }

    /// The end user whom an engine user's comment names.
    pub(super) fn end_user(&self, sql: &[u8]) -> Option<EndUser> {
        if !self.snapshot.config.is_engine(&self.who.user) {
            return None;
        }
        comment::end_user(sql, self.snapshot.comment.as_ref()?)
    }

    /// For a name of which nobody knows what it stands for, after the policy has changed.
    pub fn outdated(&self) -> ClientError {
        let error = ClientError::error(
            SqlState::INSUFFICIENT_PRIVILEGE,
            "permission denied for a statement or cursor that was prepared under an older policy",
        )
        .hint("Prepare the statement or declare the cursor again, or reconnect.");
        self.count_refusal(RefusalClass::Unverified, &error, b"");
        error
    }
}
