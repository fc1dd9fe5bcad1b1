//! The loop itself: what starts a run, one run at a time, and what is told of it.
//!
//! Invariant: whatever is asked for while a run is under way is served by a run that begins after it was asked; a run
//! that panics is counted and ends nothing but itself.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::catalog::{Catalog, Hint, Picture};
use super::cycle::{Cycle, Done, Parts, Reading, Word};
use super::handle::{Ask, Cause, QUEUE, Report, Request, RunError, SyncStatus};
use super::lease::Standing;
use super::publisher::Publisher;
use super::trail::Trail;
use crate::audit::event::Actor;
use crate::metrics::{RunOutcome, SyncMetrics};

/// The first pause after a run that failed; it doubles up to the interval.
const RETRY: Duration = Duration::from_secs(10);
/// How long a run under way may take to its end once the loop is told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Turns of the timer in a row that are left to another replica: it may hold the Lease and get nothing done.
const SPARED: u32 = 2;

/// When runs begin by themselves.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// From the end of one run to the next, give or take a tenth.
    pub interval: Duration,
    /// How long pushes are gathered.
    pub debounce: Duration,
}

/// A loop that is ready to run.
pub struct Loop<C, P, T> {
    cycle: Cycle<C, P, T>,
    schedule: Schedule,
    requests: mpsc::Receiver<Request>,
    status: watch::Sender<SyncStatus>,
    metrics: SyncMetrics,
    stop: CancellationToken,
    /// Nobody holds a handle any more.
    alone: bool,
    /// Whether another replica does what the timer asks for.
    standing: Option<watch::Receiver<Standing>>,
    /// Turns of the timer left to it since the last run.
    spared: u32,
}

type Answer = oneshot::Sender<Result<Report, RunError>>;

/// One thing to do.
enum Task {
    /// One run for all who asked for the same.
    Run {
        ask: Ask,
        answers: Vec<Answer>,
    },
    Rollback {
        revision: u64,
        actor: Actor,
        answer: Answer,
    },
}

/// What was asked for since the last run.
#[derive(Default)]
struct Batch {
    tasks: Vec<Task>,
    pushed: Option<(Hint, Instant)>,
    /// Timer or signal.
    whole: bool,
    /// The timer's turn was left to another replica.
    spared: bool,
}

/// The loop was told to stop.
struct Stopped;

impl Batch {
    fn take(&mut self, request: Request, debounce: Duration) {
        match request {
            Request::Push(hint) => {
                let due = Instant::now() + debounce;
                self.pushed.get_or_insert_with(|| (Hint::default(), due)).0.add(hint);
            }
            Request::Signal => self.whole = true,
            Request::Run { ask, reply } => {
                for task in &mut self.tasks {
                    if let Task::Run { ask: same, answers } = task
                        && *same == ask
                    {
                        answers.push(reply);
                        return;
                    }
                }
                self.tasks.push(Task::Run { ask, answers: vec![reply] });
            }
            Request::Rollback { revision, actor, reply } => {
                self.tasks.push(Task::Rollback { revision, actor, answer: reply });
            }
        }
    }

    /// Is there anything that does not wait for more?
    fn is_due(&self) -> bool {
        self.whole || !self.tasks.is_empty()
    }
}

impl<C: Catalog, P: Publisher, T: Trail> Loop<C, P, T> {
    /// # Errors
    /// The history cannot be read.
    pub fn new(
        parts: Parts<C, P, T>,
        schedule: Schedule,
        requests: mpsc::Receiver<Request>,
        status: watch::Sender<SyncStatus>,
        metrics: SyncMetrics,
        stop: CancellationToken,
    ) -> Result<Self, RunError> {
        let cycle = Cycle::new(parts)?;
        Ok(Self { cycle, schedule, requests, status, metrics, stop, alone: false, standing: None, spared: 0 })
    }

    /// Leaves the timer's runs to the replica that holds the Lease. Pushes, signals and admins reach one replica alone,
    /// which serves them whoever holds it.
    #[must_use]
    pub fn with_standing(self, standing: watch::Receiver<Standing>) -> Self {
        Self { standing: Some(standing), ..self }
    }

    /// Runs until it is told to stop; a run that is under way then may come to its end within some seconds.
    pub async fn run(mut self) {
        let Stopped = self.until_stopped().await;
        self.status.send_modify(|status| {
            status.running = false;
            status.next_run = None;
        });
    }

    /// One run, or one rollback, for a command that has no loop: as an admin would ask for it.
    ///
    /// # Errors
    /// As the run.
    pub async fn once(&mut self, request: Request) -> Result<(), RunError> {
        if !matches!(&request, Request::Run { ask, .. } if ask.dry_run) {
            self.cycle.reconcile().await?;
        }
        let mut batch = Batch::default();
        batch.take(request, Duration::ZERO);
        let _ = self.work(batch).await;
        Ok(())
    }

    async fn until_stopped(&mut self) -> Stopped {
        if let Err(stopped) = self.settle_the_past().await {
            return stopped;
        }
        // The first one at once: nobody knows what has changed since the process before ended.
        let mut due = Instant::now();
        loop {
            self.publish_next(due);
            let stop = self.stop.clone();
            let batch = tokio::select! {
                biased;
                () = stop.cancelled() => return Stopped,
                batch = self.gather(due) => batch,
            };
            match self.work(batch).await {
                Ok(Some(next)) => due = next,
                Ok(None) => {}
                Err(stopped) => return stopped,
            }
        }
    }

    /// What a crash has left open is settled before anything new is begun.
    async fn settle_the_past(&mut self) -> Result<(), Stopped> {
        let mut pause = RETRY;
        loop {
            let Err(error) = self.cycle.reconcile().await else { break };
            tracing::error!(cause = error.cause.as_str(), %error, "what the last process left open cannot be settled yet");
            self.status.send_modify(|status| {
                status.cause = Some(error.cause);
                status.message = Some(Arc::clone(&error.message));
            });
            self.metrics.failed(error.cause.metric());
            let stop = self.stop.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => return Err(Stopped),
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(self.schedule.interval.max(RETRY));
        }
        let (revision, rolled_back_to) = (self.cycle.history().newest(), self.cycle.memory().rolled_back_to);
        self.metrics.rolled_back.set(i64::from(rolled_back_to.is_some()));
        self.status.send_modify(|status| {
            status.revision = revision;
            status.rolled_back_to = rolled_back_to;
        });
        Ok(())
    }

    fn publish_next(&self, due: Instant) {
        let wait = due.saturating_duration_since(Instant::now());
        let next = self.cycle.now() + wait;
        self.status.send_modify(|status| status.next_run = Some(next));
    }

    /// What is to be done next, as soon as it is due.
    async fn gather(&mut self, due: Instant) -> Batch {
        let mut batch = Batch::default();
        while !batch.is_due() {
            let until = batch.pushed.as_ref().map_or(due, |(_, pushed)| due.min(*pushed));
            tokio::select! {
                biased;
                request = self.requests.recv(), if !self.alone => match request {
                    Some(request) => batch.take(request, self.schedule.debounce),
                    None => self.alone = true,
                },
                () = taken_over(self.standing.as_mut()) => batch.whole = true,
                () = sleep_until(until) => {
                    let turn = Instant::now() >= due;
                    let other = self.standing.as_ref().is_some_and(|standing| standing.borrow().is_spared());
                    batch.spared = turn && other && self.spared < SPARED;
                    batch.whole = turn && !batch.spared;
                    break;
                }
            }
        }
        // What waits already is served with it; bounded, however fast more comes.
        for _ in 0..QUEUE {
            let Ok(request) = self.requests.try_recv() else { break };
            batch.take(request, self.schedule.debounce);
        }
        batch
    }

    /// Does all of a batch; when the next run is due, if something was read whole.
    async fn work(&mut self, batch: Batch) -> Result<Option<Instant>, Stopped> {
        let Batch { tasks, pushed, whole, spared } = batch;
        let mut next = None;
        if spared {
            self.spared += 1;
            tracing::debug!("a turn of the timer is left to the replica that holds the Lease");
            next = Some(self.next_due(true));
        } else if whole {
            self.spared = 0;
        }
        // A run that reads everything, and publishes, serves timer, signal and pushes as well.
        let mut served = false;
        for task in tasks {
            match task {
                Task::Run { ask, answers } => {
                    served |= !ask.dry_run;
                    let Ask { actor, dry_run, approve } = ask;
                    let word = Word { actor, dry_run, admin: true, approve };
                    let result = self
                        .supervised(word.dry_run, async |cycle| cycle.run(Reading::Whole, word).await)
                        .await?;
                    if !dry_run {
                        next = Some(self.next_due(result.is_ok()));
                    }
                    for answer in answers {
                        // Who has gone away needs none.
                        let _ = answer.send(result.clone());
                    }
                }
                Task::Rollback { revision, actor, answer } => {
                    let result =
                        self.supervised(false, async |cycle| cycle.rollback(revision, actor).await).await?;
                    let _ = answer.send(result);
                }
            }
        }
        if !served && (whole || pushed.is_some()) {
            let reading = match pushed {
                Some((hint, _)) if !whole => Reading::Again(hint),
                _ => Reading::Whole,
            };
            let word = Word { actor: Actor::System, dry_run: false, admin: false, approve: None };
            let result = self.supervised(false, async |cycle| cycle.run(reading, word).await).await?;
            if whole || result.is_err() {
                next = Some(self.next_due(result.is_ok()));
            }
        }
        Ok(next)
    }

    fn next_due(&mut self, ok: bool) -> Instant {
        let interval = self.schedule.interval;
        let wait = if ok {
            interval
        } else {
            let in_a_row = self.status.borrow().failures_in_a_row.clamp(1, 16);
            // At most 2^15 times ten seconds.
            RETRY.saturating_mul(1 << (in_a_row - 1)).min(interval)
        };
        Instant::now() + self.cycle.jittered(wait, 10)
    }

    /// Runs one piece of work to its end, whatever it meets, and tells of it.
    async fn supervised(
        &mut self,
        dry_run: bool,
        work: impl AsyncFnOnce(&mut Cycle<C, P, T>) -> Result<Done, RunError>,
    ) -> Result<Result<Report, RunError>, Stopped> {
        self.status.send_modify(|status| {
            status.running = true;
            status.next_run = None;
        });
        let began = Instant::now();
        let done = {
            let mut work = std::pin::pin!(AssertUnwindSafe(work(&mut self.cycle)).catch_unwind());
            tokio::select! {
                biased;
                done = &mut work => done,
                () = self.stop.cancelled() => match timeout(GRACE, &mut work).await {
                    Ok(done) => done,
                    Err(_) => {
                        tracing::warn!("a run of the loop was ended with the gateway; the next start settles it");
                        return Err(Stopped);
                    }
                },
            }
        };
        let done = done.unwrap_or_else(|_| {
            Err(RunError::new(
                Cause::Internal,
                "a defect of fedgate ended the run; the masks in force stay; please report it with the log",
            ))
        });
        let told = Told {
            status: &self.status,
            metrics: &self.metrics,
            revision: self.cycle.history().newest(),
            rolled_back_to: self.cycle.memory().rolled_back_to,
            picture: self.cycle.picture(),
            now: self.cycle.now(),
        };
        told.tell(&done, dry_run, began.elapsed());
        Ok(done.map(|done| done.report))
    }
}

/// Waits until this replica gets the Lease that another one had: nobody knows what that one got done.
async fn taken_over(standing: Option<&mut watch::Receiver<Standing>>) {
    if let Some(standing) = standing {
        let mut other = standing.borrow_and_update().is_spared();
        while standing.changed().await.is_ok() {
            let now = standing.borrow_and_update().clone();
            if other && now == Standing::Holding {
                return;
            }
            // Between two holders nobody may be known for a while.
            other |= now.is_spared();
        }
    }
    std::future::pending().await
}

/// What status, metrics and log are told of a run.
struct Told<'t> {
    status: &'t watch::Sender<SyncStatus>,
    metrics: &'t SyncMetrics,
    revision: Option<u64>,
    rolled_back_to: Option<u64>,
    picture: Option<Arc<Picture>>,
    now: std::time::SystemTime,
}

impl Told<'_> {
    fn tell(self, done: &Result<Done, RunError>, dry_run: bool, took: Duration) {
        let error = match done {
            Ok(done) => done.flaw.as_ref(),
            Err(error) => Some(error),
        };
        if let Ok(Done { report, .. }) = done {
            tracing::info!(
                dry_run,
                ?took,
                tables = report.tables_processed,
                changes = report.plan.changes.len(),
                subjects = report.subjects_affected,
                waiting = report.waiting.len(),
                held = report.held.len(),
                revision = report.revision,
                "policy sync ran"
            );
        }
        if let Some(error) = error {
            tracing::error!(dry_run, cause = error.cause.as_str(), "policy sync failed: {error}");
        }
        if dry_run {
            self.status.send_modify(|status| status.running = false);
            return;
        }
        let metrics = self.metrics;
        metrics.ended(if error.is_none() { RunOutcome::Success } else { RunOutcome::Failure });
        metrics.seconds.observe(took.as_secs_f64());
        metrics
            .last_run
            .set(self.now.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs_f64());
        if let Some(error) = error {
            metrics.publish_failures.inc();
            metrics.failed(error.cause.metric());
            if error.cause == Cause::Audit {
                metrics.unrecorded.inc();
            }
        }
        if let Ok(Done { report, .. }) = done {
            metrics.tables_processed.inc_by(report.tables_processed);
            metrics.subjects_affected.inc_by(report.subjects_affected);
            metrics.waiting.set(i64::try_from(report.waiting.len()).unwrap_or(i64::MAX));
            metrics.held.set(i64::try_from(report.held.len()).unwrap_or(i64::MAX));
        }
        metrics.rolled_back.set(i64::from(self.rolled_back_to.is_some()));
        self.status.send_modify(|status| {
            status.running = false;
            status.last_run = Some(self.now);
            status.duration = Some(took.as_secs_f64());
            status.publish_failures = u64::from(error.is_some());
            status.cause = error.map(|error| error.cause);
            status.message = error.map(|error| Arc::clone(&error.message));
            status.failures_in_a_row = if error.is_some() { status.failures_in_a_row + 1 } else { 0 };
            metrics.in_a_row.set(i64::try_from(status.failures_in_a_row).unwrap_or(i64::MAX));
            status.revision = self.revision;
            status.rolled_back_to = self.rolled_back_to;
            status.picture = self.picture;
            match done {
                Ok(Done { report, .. }) => {
                    status.tables_processed = report.tables_processed;
                    status.subjects_affected = report.subjects_affected;
                    status.waiting = report.waiting.len() as u64;
                    status.held = report.held.len() as u64;
                    if report.published.is_some() {
                        status.published = report.published.clone();
                    }
                    status.plan_id = (!report.waiting.is_empty()).then(|| Arc::clone(&report.plan_id));
                }
                Err(_) => {
                    status.tables_processed = 0;
                    status.subjects_affected = 0;
                }
            }
        });
    }
}
