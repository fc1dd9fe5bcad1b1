//! One run: from the catalog's picture to the document in force, and what is told of it.
//!
//! Invariant: what is about to change the document is on the disk, as an intent and as a revision, before it does;
//! whatever fails on the way leaves the document that was in force. The plan decides, and nothing here does.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rand::RngCore;

use super::catalog::{Catalog, CatalogError, Hint, Picture};
use super::decide::{Decided, backwards, flaw, masked_columns, masked_tables, plan_id, subjects};
use super::handle::{Cause, PublishedDocument, Report, RunError};
use super::history::{self, History, Memory, New, Reason, Revision, State};
use super::planner::safety::{Unmasking, hold_back};
use super::planner::{Change, Plan, Rules, apply, plan};
use super::publisher::{PublishError, Published, Publisher};
use super::trail::Trail;
use crate::audit::event::{Actor, Event, Outcome, PolicyRun, SYSTEM, What};
use crate::audit::spool::SpoolError;
use crate::document::Document;
use crate::policy::expression::{self, Finding};

/// How often a document that somebody else changed meanwhile is planned anew.
const ATTEMPTS: u32 = 6;
/// The first pause before that; it doubles, give or take a half.
const CONFLICT_PAUSE: Duration = Duration::from_millis(20);

/// What time it is, by the caller's clock.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// What a loop works with.
pub struct Parts<C, P, T> {
    pub catalog: C,
    pub publisher: P,
    pub trail: T,
    pub history: History,
    pub rules: Rules,
    /// The share of masked columns that a run may unmask without an admin's word.
    pub max_removal: f64,
    pub removal_delay: Duration,
    pub clock: Clock,
    /// For jitter alone.
    pub random: Box<dyn RngCore + Send>,
}

/// What a run reads.
#[derive(Clone, Debug)]
pub(super) enum Reading {
    Whole,
    Again(Hint),
}

/// What a run may do.
#[derive(Clone, Debug)]
pub(super) struct Word {
    pub actor: Actor,
    pub dry_run: bool,
    /// An admin asked for it: what a rollback holds may go.
    pub admin: bool,
    pub approve: Option<Arc<str>>,
}

/// What came of a run, for status, metrics and whoever asked.
pub(super) struct Done {
    pub report: Report,
    /// What went wrong although the rest of the run was carried out.
    pub flaw: Option<RunError>,
}

/// The state of a loop between runs.
pub(super) struct Cycle<C, P, T> {
    parts: Parts<C, P, T>,
    memory: Memory,
    picture: Option<Arc<Picture>>,
}

/// Where the changes of a run come from.
enum Goal {
    Picture(Arc<Picture>),
    /// The loop's entries of an earlier revision.
    Revision(u64, Box<Document>),
}

/// The steps of one attempt to bring a plan into force.
enum Attempt {
    Published(u64, PublishedDocument),
    /// Nothing to publish.
    Nothing,
    Conflict,
}

impl<C: Catalog, P: Publisher, T: Trail> Cycle<C, P, T> {
    /// # Errors
    /// The history's memory cannot be read.
    pub fn new(parts: Parts<C, P, T>) -> Result<Self, RunError> {
        let memory = parts.history.memory().map_err(document)?;
        Ok(Self { parts, memory, picture: None })
    }

    /// What the catalog said last.
    pub fn picture(&self) -> Option<Arc<Picture>> {
        self.picture.clone()
    }

    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    pub fn history(&self) -> &History {
        &self.parts.history
    }

    pub fn now(&self) -> SystemTime {
        (self.parts.clock)()
    }

    /// Give or take `part`, one of so many parts.
    pub fn jittered(&mut self, time: Duration, part: u32) -> Duration {
        let reach = time / part.max(1);
        // Within ±reach, evenly, in millionths.
        let at = self.parts.random.next_u32() % 2_000_001;
        (time + reach * at / 1_000_000).saturating_sub(reach)
    }

    /// Finds out what became of runs that a crash has ended, and says so.
    ///
    /// # Errors
    /// The trail or the document cannot be read; nothing is settled then.
    pub async fn reconcile(&mut self) -> Result<(), RunError> {
        let intents = self.parts.trail.intents().await.map_err(audit)?;
        let known = self.parts.history.list(usize::MAX);
        let pending = self.parts.history.pending();
        if intents.is_empty() && pending.is_empty() {
            return Ok(());
        }
        let published = self.parts.publisher.read().await.map_err(publishing)?;
        let in_force = history::content(&published.document.to_text());
        let masks = history::masks(&published.document);
        let came_into_force = |revision: &Revision| {
            // By the loop's entries, too: people may have changed the document since.
            revision.content == in_force || revision.masks == masks
        };
        for intent in intents {
            let mut event = intent.event;
            let mine = |revision: &&Revision| revision.run.as_ref() == Some(&event.id);
            let published = known.iter().filter(mine).any(|revision| match revision.state {
                State::Published => true,
                State::Pending => came_into_force(revision),
                State::Discarded => false,
            });
            if let What::PolicyRun(run) = &mut event.what {
                run.outcome = Outcome::Interrupted { published };
                if !published {
                    run.after = None;
                }
            }
            tracing::warn!(run = %event.id, published, "a run of the loop was interrupted; what became of it is recorded now");
            self.parts.trail.complete(intent.number, event).await.map_err(audit)?;
        }
        for revision in pending {
            let state = if came_into_force(&revision) { State::Published } else { State::Discarded };
            self.parts.history.settle(revision.number, state).map_err(document)?;
        }
        Ok(())
    }

    /// One run of the loop.
    ///
    /// # Errors
    /// What kept it from its end; the document in force stays.
    pub async fn run(&mut self, reading: Reading, word: Word) -> Result<Done, RunError> {
        let began = (self.now(), Instant::now());
        let run = Event::new_id();
        let result = match self.read(reading).await {
            Ok(picture) => self.reach(&Goal::Picture(picture), &word, &run, began).await,
            Err(error) => Err(self.failed(error, &word, &run, began).await),
        };
        if word.admin && !word.dry_run && result.is_ok() && self.memory.rolled_back_to.take().is_some() {
            self.remember()?;
        }
        result
    }

    /// The loop's masks as they were in a revision.
    ///
    /// # Errors
    /// There is no such revision, its masks are no longer in the library, or what keeps a run from its end.
    pub async fn rollback(&mut self, number: u64, actor: Actor) -> Result<Done, RunError> {
        let began = (self.now(), Instant::now());
        let run = Event::new_id();
        let word = Word { actor, dry_run: false, admin: true, approve: None };
        let document = match self.parts.history.document(number) {
            Ok(document) => document,
            Err(error) => {
                let error = RunError::new(Cause::Refused, error.to_string());
                return Err(self.failed(error, &word, &run, began).await);
            }
        };
        let done = self.reach(&Goal::Revision(number, Box::new(document)), &word, &run, began).await?;
        self.memory.rolled_back_to = Some(number);
        self.memory.missing_since.clear();
        self.remember()?;
        Ok(done)
    }

    async fn read(&mut self, reading: Reading) -> Result<Arc<Picture>, RunError> {
        let before = match &self.picture {
            Some(last) => last.tables.len(),
            // After a restart the document knows that there were tables; one that cannot be read now might be read
            // when the catalog has answered, and then nobody would know.
            None => {
                let published = self.parts.publisher.read().await.map_err(publishing)?;
                masked_tables(&published.document)
            }
        };
        let catalog = &self.parts.catalog;
        let picture = match (reading, &self.picture) {
            (Reading::Again(hint), Some(last)) => catalog.refresh(last, &hint).await,
            _ => catalog.read(before).await,
        };
        let picture = Arc::new(picture.map_err(unreadable)?);
        self.picture = Some(Arc::clone(&picture));
        Ok(picture)
    }

    fn remember(&self) -> Result<(), RunError> {
        self.parts.history.remember(&self.memory).map_err(document)
    }

    /// Brings the goal into force, as far as `word` goes.
    async fn reach(
        &mut self,
        goal: &Goal,
        word: &Word,
        run: &Arc<str>,
        began: (SystemTime, Instant),
    ) -> Result<Done, RunError> {
        let mut pause = CONFLICT_PAUSE;
        // One event for the run, however often it is planned.
        let mut intent = None;
        for _ in 0..ATTEMPTS {
            let attempt = self.attempt(goal, word, run, began, &mut intent).await;
            match attempt {
                Ok((decided, Attempt::Conflict)) => {
                    drop(decided);
                    let pause_now = self.jittered(pause, 2);
                    pause *= 2;
                    tokio::time::sleep(pause_now).await;
                }
                Ok((decided, Attempt::Published(revision, document))) => {
                    return self.finish(decided, Some((revision, document)), word, run, began, intent).await;
                }
                Ok((decided, Attempt::Nothing)) => {
                    return self.finish(decided, None, word, run, began, intent).await;
                }
                Err(error) => return Err(self.ended(error, word, run, began, intent).await),
            }
        }
        let error = RunError::new(
            Cause::Conflict,
            format!(
                "somebody else changed the policy document each of the {ATTEMPTS} times that a new one was about to be \
                 published; find the second writer"
            ),
        );
        Err(self.ended(error, word, run, began, intent).await)
    }

    async fn attempt(
        &mut self,
        goal: &Goal,
        word: &Word,
        run: &Arc<str>,
        began: (SystemTime, Instant),
        intent: &mut Option<u64>,
    ) -> Result<(Decided, Attempt), RunError> {
        let Published { document: before, version } =
            self.parts.publisher.read().await.map_err(publishing)?;
        let mut decided = self.decide(goal, &before, word)?;
        if word.dry_run || decided.now.changes.is_empty() {
            return Ok((decided, Attempt::Nothing));
        }
        let mut after = apply(&before, &decided.now);
        if intent.is_none() {
            let event = self.event(run, began, word, Some((&before, &after)), &decided, None);
            match self.parts.trail.intend(event).await {
                Ok(number) => *intent = Some(number),
                Err(error) => {
                    // Masks go on without; only what shows more waits.
                    tracing::error!(run = %run, %error, "the run cannot be recorded in the audit trail: its masks are added, nothing is unmasked");
                    decided.wait(|change| change.loosens);
                    if decided.now.changes.is_empty() {
                        return Err(audit(error));
                    }
                    after = apply(&before, &decided.now);
                }
            }
        }
        // What could not be read again would stop every later run.
        if let Err(error) = Document::parse(after.to_text().as_bytes()) {
            let why =
                format!("a defect of fedgate: what it was about to publish is no policy document: {error}");
            return Err(RunError::new(Cause::Internal, why));
        }
        let at = self.now();
        let parts = &mut self.parts;
        parts.history.found(&before, at).map_err(document)?;
        let new = New {
            reason: match goal {
                Goal::Picture(_) => Reason::Sync,
                Goal::Revision(..) => Reason::Rollback,
            },
            at,
            actor: name(&word.actor),
            run: Some(Arc::clone(run)),
            parent: Some(history::content(&before.to_text())),
            summary: decided.now.changes.iter().map(ToString::to_string).collect(),
            document: &after,
        };
        let number = parts.history.add(new, State::Pending).map_err(document)?;
        let landed = PublishedDocument {
            content: history::content(&after.to_text()),
            changed_at: match goal {
                Goal::Picture(picture) => changed_at(picture, &decided.now),
                Goal::Revision(..) => None,
            },
        };
        let settled = match parts.publisher.publish(&version, &after).await {
            Ok(_) => Ok((State::Published, Attempt::Published(number, landed))),
            Err(PublishError::Conflict) => Ok((State::Discarded, Attempt::Conflict)),
            // It may have come through all the same.
            Err(error) => match parts.publisher.read().await {
                Ok(now) if history::content(&now.document.to_text()) == landed.content => {
                    Ok((State::Published, Attempt::Published(number, landed)))
                }
                _ => Err(publishing(error)),
            },
        };
        let (state, attempt) = match settled {
            Ok(settled) => settled,
            Err(error) => {
                parts.history.settle(number, State::Discarded).map_err(document)?;
                return Err(error);
            }
        };
        // What is in force is in force: a history that cannot be written any more is said, and found again later.
        if let Err(error) = parts.history.settle(number, state) {
            tracing::error!(%error, revision = number, "the history could not be told what became of a revision");
        }
        Ok((decided, attempt))
    }

    /// What of the goal is done now, and what waits.
    fn decide(&self, goal: &Goal, before: &Document, word: &Word) -> Result<Decided, RunError> {
        let parts = &self.parts;
        // Nothing could enforce what would be published: found out before, and told to who can mend it.
        let findings = expression::check(before.policy());
        if !findings.is_empty() {
            return Err(RunError::new(Cause::Document, unenforceable(&findings)));
        }
        let whole = match goal {
            Goal::Picture(picture) => plan(picture, before.policy(), &parts.rules),
            Goal::Revision(number, revision) => backwards(*number, revision, before)?,
        };
        let id = plan_id(&whole);
        let mut memory = self.memory.clone();
        let mut now = whole.clone();
        let (held, guarded) = match goal {
            Goal::Picture(_) => {
                let now_is = (parts.clock)();
                (hold_back(&mut now, &mut memory.missing_since, now_is, parts.removal_delay), true)
            }
            // An admin's own word.
            Goal::Revision(..) => (Vec::new(), false),
        };
        let mut decided = Decided { whole, now, waiting: Vec::new(), held, id, memory };
        if let Some(approve) = &word.approve
            && *approve != decided.id
            && !word.dry_run
        {
            return Err(RunError::new(
                Cause::Refused,
                format!(
                    "the plan has changed since it was shown: it is {} now, and {approve} was approved; look at it again",
                    decided.id
                ),
            ));
        }
        if guarded && word.approve.is_none() {
            let masked = masked_columns(before);
            if Unmasking::of(&decided.now, masked).exceeds(parts.max_removal) {
                decided.wait(|change| change.loosens);
            }
        }
        if guarded && self.memory.rolled_back_to.is_some() && !word.admin {
            decided.wait(|_| true);
        }
        Ok(decided)
    }

    /// A run that came to its end.
    async fn finish(
        &mut self,
        decided: Decided,
        published: Option<(u64, PublishedDocument)>,
        word: &Word,
        run: &Arc<str>,
        began: (SystemTime, Instant),
        intent: Option<u64>,
    ) -> Result<Done, RunError> {
        let mut flaw = flaw(&decided.whole);
        if !word.dry_run {
            let event = self.event(run, began, word, None, &decided, flaw.as_ref());
            let recorded = self.record(event, intent).await;
            if let Err(error) = recorded {
                flaw.get_or_insert(error);
            }
            if self.memory.missing_since != decided.memory.missing_since {
                self.memory.missing_since = decided.memory.missing_since.clone();
                self.remember()?;
            }
        }
        let Decided { whole, now, waiting, held, id, .. } = decided;
        let (revision, published) = published.unzip();
        let report = Report {
            dry_run: word.dry_run,
            began: began.0,
            duration: began.1.elapsed(),
            tables_processed: whole.tables as u64,
            subjects_affected: subjects(&now).len() as u64,
            publish_failures: u64::from(flaw.is_some()),
            plan_id: id,
            plan: Arc::new(whole),
            waiting,
            held,
            revision,
            published,
        };
        Ok(Done { report, flaw })
    }

    /// A run that failed before anything was planned.
    async fn failed(
        &mut self,
        error: RunError,
        word: &Word,
        run: &Arc<str>,
        began: (SystemTime, Instant),
    ) -> RunError {
        self.ended(error, word, run, began, None).await
    }

    /// Records a run that failed, and hands its error on.
    async fn ended(
        &mut self,
        error: RunError,
        word: &Word,
        run: &Arc<str>,
        began: (SystemTime, Instant),
        intent: Option<u64>,
    ) -> RunError {
        if !word.dry_run {
            let tables = self.picture.as_ref().map_or(0, |picture| picture.tables.len());
            let nothing = Decided::nothing(tables, &self.memory);
            let event = self.event(run, began, word, None, &nothing, Some(&error));
            // The run's own error is what has to be heard; this one is in the log.
            let _ = self.record(event, intent).await;
        }
        error
    }

    /// The run's one event, on the disk.
    async fn record(&mut self, event: Event, intent: Option<u64>) -> Result<(), RunError> {
        let run = Arc::clone(&event.id);
        let recorded = match intent {
            Some(intent) => self.parts.trail.complete(intent, event).await,
            None => self.parts.trail.record(event).await,
        };
        recorded.map_err(|error| {
            tracing::error!(run = %run, %error, "a run of the loop is not in the audit trail; the history has what it changed");
            audit(error)
        })
    }

    fn event(
        &self,
        run: &Arc<str>,
        began: (SystemTime, Instant),
        word: &Word,
        documents: Option<(&Document, &Document)>,
        decided: &Decided,
        error: Option<&RunError>,
    ) -> Event {
        let content = |document: &Document| history::content(&document.to_text());
        let subjects: Vec<Arc<str>> = subjects(&decided.now).into_iter().collect();
        let outcome = match (documents, error) {
            // An intent: until it is completed, this is what is known of it.
            (Some(_), _) => Outcome::Interrupted { published: false },
            (None, Some(error)) => {
                Outcome::Failure { cause: error.cause.as_str().into(), message: Arc::clone(&error.message) }
            }
            (None, None) => Outcome::Success,
        };
        let newest = self.parts.history.list(1).into_iter().next();
        let of_this_run = newest.filter(|revision| revision.run.as_ref() == Some(run) && documents.is_none());
        let (before, after) = match (documents, of_this_run) {
            (Some((before, after)), _) => (Some(content(before)), Some(content(after))),
            (None, Some(revision)) if revision.state == State::Published => {
                (revision.parent, Some(revision.content))
            }
            (None, Some(revision)) => (revision.parent, None),
            (None, None) => (None, None),
        };
        Event {
            id: Arc::clone(run),
            at: began.0,
            what: What::PolicyRun(PolicyRun {
                actor: word.actor.clone(),
                outcome,
                duration: began.1.elapsed(),
                tables_processed: decided.whole.tables as u64,
                subjects_affected: subjects.len() as u64,
                publish_failures: u64::from(error.is_some()),
                before,
                after,
                subjects,
            }),
        }
    }
}

/// Expressions that Trino could not evaluate, in words; the first of many.
fn unenforceable(findings: &[Finding]) -> String {
    const SHOWN: usize = 5;
    let mut shown: Vec<String> = findings.iter().take(SHOWN).map(ToString::to_string).collect();
    if findings.len() > SHOWN {
        shown.push(format!("and {} more", findings.len() - SHOWN));
    }
    format!(
        "the policy document holds expressions that Trino could not evaluate, so nothing is published: {}; mend it by hand",
        shown.join("; ")
    )
}

/// When the catalog last changed one of the tables that a plan is about.
fn changed_at(picture: &Picture, plan: &Plan) -> Option<SystemTime> {
    let touched: HashSet<(&str, &str, &str)> = plan
        .changes
        .iter()
        .map(|Change { column, .. }| (&*column.catalog, &*column.schema, &*column.table))
        .collect();
    let of_plan = picture
        .tables
        .iter()
        .filter(|table| touched.contains(&(&*table.catalog, &*table.schema, &*table.name)));
    of_plan.filter_map(|table| table.changed_at).max()
}

/// Who asked, as the audit trail names them.
fn name(actor: &Actor) -> Arc<str> {
    match actor {
        Actor::System => SYSTEM.into(),
        Actor::Admin { name, .. } => Arc::clone(name),
    }
}

fn unreadable(error: CatalogError) -> RunError {
    let cause = match &error {
        CatalogError::Unauthorized(_) => Cause::JwtExpired,
        CatalogError::Unreachable(_) | CatalogError::NotWhole(_) => Cause::CatalogUnreachable,
    };
    RunError::new(cause, error.to_string())
}

fn publishing(error: PublishError) -> RunError {
    let cause = match &error {
        PublishError::Conflict | PublishError::Verify => Cause::Conflict,
        _ => Cause::Document,
    };
    RunError::new(cause, error.to_string())
}

fn document(error: impl std::fmt::Display) -> RunError {
    RunError::new(Cause::Document, error.to_string())
}

fn audit(error: SpoolError) -> RunError {
    RunError::new(
        Cause::Audit,
        format!("{error}; nothing is unmasked until runs can be recorded: make room, or mend the sink"),
    )
}
