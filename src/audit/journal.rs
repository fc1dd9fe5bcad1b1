//! The audit trail as the rest of the process sees it: a handle, and one thread that owns the spool.
//!
//! Invariant: what a call has answered is on the disk. A note never makes its sender wait: what finds no room in the
//! queue or the spool is counted, and the counts are told once there is room. The owner ends with its last word on
//! the disk, or with the process.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until, timeout};

use super::event::{Event, Lost, Statements, Verdict, What};
use super::spool::{Bounds, Fill, Spool, SpoolError, Waiting};
use crate::metrics::AuditMetrics;
use crate::sqlstate::SqlState;

/// Calls that wait for the owner; who finds no place waits for one.
const CALLS: usize = 64;
/// Notes that wait for the owner; who finds no place is counted.
const NOTES: usize = 4096;
/// Notes that the owner takes at a time.
const NOTES_AT_ONCE: usize = 256;
/// Kinds of statements that are counted apart within a window; one more ends the window early.
const KINDS: usize = 1024;
/// Tables that an event names.
const TABLES: usize = 64;
/// How often the age of the oldest event is looked at, and a disk that failed is tried again.
const LOOK_EVERY: Duration = Duration::from_secs(1);

type Result<T> = std::result::Result<T, SpoolError>;

/// How a journal keeps what it is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The spool's folder.
    pub folder: PathBuf,
    pub bounds: Bounds,
    /// Statements that are alike within this time are one event with a count.
    pub window: Duration,
}

/// One refused or admitted statement, as a session tells of it. Whatever is in it is shared or short.
#[derive(Clone, Debug)]
pub struct Note {
    pub source: Arc<str>,
    pub client_user: Arc<str>,
    pub end_user: Option<Arc<str>>,
    pub query: Option<Arc<str>>,
    pub ruling: Ruling,
    /// Of the statement without its literals.
    pub fingerprint: [u8; 16],
    /// Cut to the first [`TABLES`].
    pub tables: Arc<[Arc<str>]>,
    pub rows: Option<u64>,
}

/// What became of a statement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ruling {
    Admitted { class: &'static str },
    Refused { class: &'static str, sqlstate: SqlState },
}

/// What the journal last saw of its spool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub fill: Fill,
    /// What the spool may hold, in bytes.
    pub limit: u64,
    /// Why the disk cannot be used now.
    pub fault: Option<Arc<str>>,
}

/// The handle; cheap to clone.
#[derive(Clone)]
pub struct Journal {
    calls: mpsc::Sender<Call>,
    notes: mpsc::Sender<Note>,
    unheard: Arc<Unheard>,
    state: watch::Receiver<State>,
    metrics: AuditMetrics,
}

/// The thread that owns the spool.
pub struct Owner {
    calls: mpsc::Sender<Call>,
    thread: std::thread::JoinHandle<()>,
}

/// Counts of notes for which the queue had no place.
#[derive(Debug, Default)]
struct Unheard {
    refusals: AtomicU64,
    reads: AtomicU64,
}

impl Unheard {
    fn take(&self) -> Lost {
        Lost {
            refusals: self.refusals.swap(0, Ordering::Relaxed),
            reads: self.reads.swap(0, Ordering::Relaxed),
        }
    }

    fn give_back(&self, lost: Lost) {
        self.refusals.fetch_add(lost.refusals, Ordering::Relaxed);
        self.reads.fetch_add(lost.reads, Ordering::Relaxed);
    }
}

enum From {
    Oldest,
    Newest,
}

enum Call {
    Intend(Box<Event>, oneshot::Sender<Result<u64>>),
    Complete(u64, Box<Event>, oneshot::Sender<Result<()>>),
    Record(Box<Event>, oneshot::Sender<Result<()>>),
    Intents(oneshot::Sender<Result<Vec<Waiting>>>),
    Some {
        from: From,
        count: usize,
        bytes: usize,
        answer: oneshot::Sender<Result<Vec<Waiting>>>,
    },
    Delivered(Vec<u64>, oneshot::Sender<Result<()>>),
    /// Writes down what was noted so far.
    Flush(oneshot::Sender<Result<()>>),
    /// The same, closes the spool and ends.
    End(oneshot::Sender<Result<()>>),
}

impl Journal {
    /// Opens the spool and starts its owner. Blocks on the disk.
    ///
    /// # Errors
    /// The spool cannot be used, by its disk or since another process has it; no thread could be started.
    pub fn start(settings: Settings, metrics: AuditMetrics) -> Result<(Self, Owner)> {
        let spool = Spool::in_folder(&settings.folder, settings.bounds)?;
        let fill = spool.fill()?;
        let (calls, called) = mpsc::channel(CALLS);
        let (notes, noted) = mpsc::channel(NOTES);
        let (said, state) = watch::channel(State { fill, limit: settings.bounds.limit, fault: None });
        metrics.limit.set(i64::try_from(settings.bounds.limit).unwrap_or(i64::MAX));
        let unheard = Arc::new(Unheard::default());
        let mut keeper = Keeper {
            settings,
            spool: Some(spool),
            kinds: HashMap::new(),
            due: None,
            unheard: Arc::clone(&unheard),
            said,
            metrics: metrics.clone(),
        };
        keeper.publish();
        let failed = |error: io::Error| SpoolError::Storage(redb::Error::Io(error));
        // A runtime for its clock and its queues; the disk blocks this thread and no other.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().map_err(failed)?;
        let thread = std::thread::Builder::new()
            .name("audit".to_owned())
            .spawn(move || runtime.block_on(keeper.run(called, noted)))
            .map_err(failed)?;
        let journal = Self { calls: calls.clone(), notes, unheard, state, metrics };
        Ok((journal, Owner { calls, thread }))
    }

    /// Notes what is about to be done with a policy; on the disk when this answers. Its number is for
    /// [`Journal::complete`].
    ///
    /// # Errors
    /// [`SpoolError::Full`] when even the reserve is used up, or the disk's.
    pub async fn intend(&self, event: Event) -> Result<u64> {
        self.ask(|answer| Call::Intend(Box::new(event), answer)).await
    }

    /// Makes an intent an event, with its outcome.
    ///
    /// # Errors
    /// There is no such intent, or the disk's.
    pub async fn complete(&self, intent: u64, event: Event) -> Result<()> {
        self.ask(|answer| Call::Complete(intent, Box::new(event), answer)).await
    }

    /// A policy event that needs no intent, since nothing was changed.
    ///
    /// # Errors
    /// [`SpoolError::Full`] when even the reserve is used up, or the disk's.
    pub async fn record(&self, event: Event) -> Result<()> {
        self.ask(|answer| Call::Record(Box::new(event), answer)).await
    }

    /// What was intended and has no outcome: after a crash, for whoever can find out.
    ///
    /// # Errors
    /// The disk's.
    pub async fn intents(&self) -> Result<Vec<Waiting>> {
        self.ask(Call::Intents).await
    }

    /// The oldest events: at most `count` of them and about `bytes`, but at least one if there is any.
    ///
    /// # Errors
    /// The disk's.
    pub async fn oldest(&self, count: usize, bytes: usize) -> Result<Vec<Waiting>> {
        self.ask(|answer| Call::Some { from: From::Oldest, count, bytes, answer }).await
    }

    /// The newest events, newest first, within the same bounds.
    ///
    /// # Errors
    /// The disk's.
    pub async fn newest(&self, count: usize, bytes: usize) -> Result<Vec<Waiting>> {
        self.ask(|answer| Call::Some { from: From::Newest, count, bytes, answer }).await
    }

    /// Forgets events that the sink has for certain.
    ///
    /// # Errors
    /// The disk's.
    pub async fn delivered(&self, numbers: Vec<u64>) -> Result<()> {
        self.ask(|answer| Call::Delivered(numbers, answer)).await
    }

    /// Tells of one statement. Never waits; what finds no place is counted.
    pub fn note(&self, note: Note) {
        let ruling = note.ruling;
        if self.notes.try_send(note).is_ok() {
            return;
        }
        let (count, metric) = match ruling {
            Ruling::Refused { .. } => (&self.unheard.refusals, &self.metrics.lost_refusals),
            Ruling::Admitted { .. } => (&self.unheard.reads, &self.metrics.lost_reads),
        };
        count.fetch_add(1, Ordering::Relaxed);
        metric.inc();
    }

    /// Writes down what was noted so far, without waiting for the window's end.
    ///
    /// # Errors
    /// The disk's; what was noted is kept.
    pub async fn flush(&self) -> Result<()> {
        self.ask(Call::Flush).await
    }

    /// What the spool looks like, as it changes.
    pub fn state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    async fn ask<T>(&self, call: impl FnOnce(oneshot::Sender<Result<T>>) -> Call) -> Result<T> {
        ask(&self.calls, call).await
    }
}

async fn ask<T>(
    calls: &mpsc::Sender<Call>,
    call: impl FnOnce(oneshot::Sender<Result<T>>) -> Call,
) -> Result<T> {
    let (answer, answered) = oneshot::channel();
    calls.send(call(answer)).await.map_err(|_| SpoolError::Ended)?;
    answered.await.map_err(|_| SpoolError::Ended)?
}

impl Owner {
    /// Writes down what was noted, closes the spool and ends the thread; false: not within this time, or the disk
    /// did not take it.
    pub async fn end(self, at_most: Duration) -> bool {
        match timeout(at_most, ask(&self.calls, Call::End)).await {
            Ok(ended) => {
                // It has closed the spool, and has nothing left to do but to end.
                let _ = self.thread.join();
                ended.is_ok()
            }
            Err(_) => false,
        }
    }
}

/// What makes statements alike.
#[derive(PartialEq, Eq, Hash)]
struct Kind {
    source: Arc<str>,
    client_user: Arc<str>,
    end_user: Option<Arc<str>>,
    ruling: Ruling,
    fingerprint: [u8; 16],
}

/// The statements of one kind since the window began.
struct Alike {
    /// The order of the first ones.
    place: usize,
    first: SystemTime,
    /// The last one's.
    query: Option<Arc<str>>,
    tables: Arc<[Arc<str>]>,
    rows: Option<u64>,
    count: u64,
}

/// The owner's own.
struct Keeper {
    settings: Settings,
    /// Absent after the disk has failed, until it is opened anew.
    spool: Option<Spool>,
    kinds: HashMap<Kind, Alike>,
    /// When the window ends; none is open without a note.
    due: Option<Instant>,
    unheard: Arc<Unheard>,
    said: watch::Sender<State>,
    metrics: AuditMetrics,
}

impl Keeper {
    async fn run(mut self, mut calls: mpsc::Receiver<Call>, mut notes: mpsc::Receiver<Note>) {
        let mut taken = Vec::with_capacity(NOTES_AT_ONCE);
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let due = self.due;
            let window = async move {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                call = calls.recv() => match call {
                    Some(Call::End(answer)) => {
                        self.hear(&mut notes, &mut taken);
                        let written = self.write();
                        // Closed before the answer: another process may open it then.
                        self.spool = None;
                        let _ = answer.send(written);
                        return;
                    }
                    Some(call) => self.answer(call, &mut notes, &mut taken),
                    None => break,
                },
                () = window => {
                    // It is told in the state; what was noted stays for the next time.
                    let _ = self.write();
                }
                count = notes.recv_many(&mut taken, NOTES_AT_ONCE), if !notes.is_closed() || !notes.is_empty() => {
                    if count > 0 {
                        self.count(&mut taken);
                    }
                }
                _ = look.tick() => self.look(),
            }
        }
        self.hear(&mut notes, &mut taken);
        let _ = self.write();
    }

    /// All that was noted before now.
    fn hear(&mut self, notes: &mut mpsc::Receiver<Note>, taken: &mut Vec<Note>) {
        // Bounded: whoever goes on noting is heard the next time.
        for _ in 0..NOTES {
            match notes.try_recv() {
                Ok(note) => taken.push(note),
                Err(_) => break,
            }
            if taken.len() >= NOTES_AT_ONCE {
                self.count(taken);
            }
        }
        self.count(taken);
    }

    fn answer(&mut self, call: Call, notes: &mut mpsc::Receiver<Note>, taken: &mut Vec<Note>) {
        // Who has gone away meanwhile needs no answer.
        match call {
            Call::Intend(event, answer) => {
                let _ = answer.send(self.change(|spool| spool.intend(&event)));
            }
            Call::Complete(intent, event, answer) => {
                let _ = answer.send(self.change(|spool| spool.complete(intent, &event)));
            }
            Call::Record(event, answer) => {
                let _ = answer.send(self.change(|spool| spool.add(std::slice::from_ref(&event))));
            }
            Call::Delivered(numbers, answer) => {
                let _ = answer.send(self.change(|spool| spool.delivered(&numbers)));
            }
            Call::Intents(answer) => {
                let _ = answer.send(self.with(Spool::intents));
            }
            Call::Some { from, count, bytes, answer } => {
                let _ = answer.send(self.with(|spool| match from {
                    From::Oldest => spool.oldest(count, bytes),
                    From::Newest => spool.newest(count, bytes),
                }));
            }
            Call::Flush(answer) | Call::End(answer) => {
                self.hear(notes, taken);
                let _ = answer.send(self.write());
            }
        }
    }

    /// Works on the spool, and says what it looks like then before anybody is answered.
    fn change<T>(&mut self, work: impl FnOnce(&Spool) -> Result<T>) -> Result<T> {
        let done = self.with(work);
        self.publish();
        done
    }

    fn count(&mut self, taken: &mut Vec<Note>) {
        for note in taken.drain(..) {
            let kind = Kind {
                source: note.source,
                client_user: note.client_user,
                end_user: note.end_user,
                ruling: note.ruling,
                fingerprint: note.fingerprint,
            };
            if !self.kinds.contains_key(&kind) && self.kinds.len() >= KINDS && self.write().is_err() {
                // The disk does not take those that are here: there is no room for more.
                let mut lost = Lost::default();
                match kind.ruling {
                    Ruling::Refused { .. } => {
                        lost.refusals = 1;
                        self.metrics.lost_refusals.inc();
                    }
                    Ruling::Admitted { .. } => {
                        lost.reads = 1;
                        self.metrics.lost_reads.inc();
                    }
                }
                self.unheard.give_back(lost);
                continue;
            }
            let place = self.kinds.len();
            let alike = self.kinds.entry(kind).or_insert_with(|| Alike {
                place,
                first: SystemTime::now(),
                query: None,
                tables: note.tables,
                rows: None,
                count: 0,
            });
            alike.count += 1;
            alike.query = note.query;
            if let Some(rows) = note.rows {
                alike.rows = Some(alike.rows.unwrap_or(0).saturating_add(rows));
            }
            if self.due.is_none() {
                self.due = Some(Instant::now() + self.settings.window);
            }
        }
    }

    /// Ends the window: what was noted goes to the disk.
    fn write(&mut self) -> Result<()> {
        let lost = self.unheard.take();
        if self.kinds.is_empty() && lost == Lost::default() {
            self.due = None;
            return Ok(());
        }
        let mut alike: Vec<(&Kind, &Alike)> = self.kinds.iter().collect();
        alike.sort_by_key(|(_, alike)| alike.place);
        let events: Vec<Event> = alike.into_iter().map(|(kind, alike)| event(kind, alike)).collect();
        let report = (Event::new_id(), SystemTime::now());
        match self.change(|spool| spool.add_statements(&events, lost, report)) {
            Ok(no_room) => {
                self.metrics.lost_refusals.inc_by(no_room.refusals);
                self.metrics.lost_reads.inc_by(no_room.reads);
                self.kinds.clear();
                self.due = None;
                Ok(())
            }
            Err(error) => {
                self.unheard.give_back(lost);
                self.due = Some(Instant::now() + LOOK_EVERY.max(self.settings.window));
                Err(error)
            }
        }
    }

    /// Once in a while: counts that nobody has told yet, and how old the oldest event is.
    fn look(&mut self) {
        if self.kinds.is_empty() {
            // Only counts, if any.
            let _ = self.write();
        }
        let state = self.said.borrow().clone();
        if state.fault.is_some() || (state.fill.lost != Lost::default() && self.due.is_none()) {
            let _ = self.change(|spool| spool.report_lost(Event::new_id(), SystemTime::now()));
        }
        self.age();
    }

    /// Works on the spool; one that has failed is opened anew, since the database asks for it.
    fn with<T>(&mut self, work: impl FnOnce(&Spool) -> Result<T>) -> Result<T> {
        let spool = match self.spool.take() {
            Some(spool) => Ok(spool),
            None => Spool::in_folder(&self.settings.folder, self.settings.bounds),
        };
        let done = spool.and_then(|spool| {
            let done = work(&spool);
            if !matches!(done, Err(SpoolError::Storage(_))) {
                self.spool = Some(spool);
            }
            done
        });
        match &done {
            Err(error) if self.spool.is_none() => {
                self.metrics.spool_failures.inc();
                let fault: Arc<str> = error.to_string().into();
                let news = self.said.borrow().fault.is_none();
                if news {
                    tracing::error!(%error, "the audit spool has failed; statements are counted, changes of policy wait");
                }
                self.said.send_modify(|state| state.fault = Some(fault));
            }
            _ => {
                let recovered = self.said.send_if_modified(|state| state.fault.take().is_some());
                if recovered {
                    tracing::info!("the audit spool works again");
                }
            }
        }
        done
    }

    fn publish(&mut self) {
        let Some(Ok(fill)) = self.spool.as_ref().map(Spool::fill) else { return };
        self.metrics.events.set(i64::try_from(fill.events).unwrap_or(i64::MAX));
        self.metrics.bytes.set(i64::try_from(fill.bytes).unwrap_or(i64::MAX));
        self.said.send_if_modified(|state| std::mem::replace(&mut state.fill, fill) != fill);
        self.age();
    }

    fn age(&self) {
        let oldest = self.said.borrow().fill.oldest;
        let age = oldest.and_then(|oldest| SystemTime::now().duration_since(oldest).ok());
        self.metrics.oldest.set(age.unwrap_or_default().as_secs_f64());
    }
}

fn event(kind: &Kind, alike: &Alike) -> Event {
    let verdict = match kind.ruling {
        Ruling::Admitted { class } => Verdict::Admitted { class: class.into() },
        Ruling::Refused { class, sqlstate } => {
            Verdict::Refused { class: class.into(), sqlstate: sqlstate.as_str().into() }
        }
    };
    let fingerprint: String = kind.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
    Event {
        id: Event::new_id(),
        at: alike.first,
        what: What::Statements(Statements {
            source: Arc::clone(&kind.source),
            client_user: Arc::clone(&kind.client_user),
            end_user: kind.end_user.clone(),
            query: alike.query.clone(),
            verdict,
            fingerprint: fingerprint.into(),
            tables: alike.tables.iter().take(TABLES).cloned().collect(),
            rows: alike.rows,
            count: alike.count,
        }),
    }
}

#[cfg(test)]
mod tests;
