//! From the spool to the sink: one task that goes on until it is told to stop.
//!
//! Invariant: an event leaves the spool only when the sink has it for certain, or when the sink never took it alone
//! while it took others: then it stands in a file beside the spool. A sink that takes nothing loses nothing.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::Rng;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::journal::Journal;
use super::ocsf::{self, Style};
use super::sink::{Fault, Sink};
use super::spool::{SpoolError, Waiting};
use crate::metrics::{AuditFailure, AuditMetrics};

/// Events of one delivery, and bytes of them as the spool holds them.
const MOST: usize = 1000;
const BYTES: usize = 1 << 20;
/// Longest pause between two attempts, whatever the sink asks for.
const LONGEST: Duration = Duration::from_secs(300);
/// Events that were not taken alone and are passed over at a time.
const SUSPECTS: usize = 64;
/// How often an event is tried alone before it is set aside.
const ALONE: u32 = 3;
/// Size of the file of what was set aside before it is moved to `….1`, in bytes.
const ASIDE: u64 = 8 << 20;

/// How deliveries are tried again.
#[derive(Clone, Debug)]
pub struct Pace {
    /// The first pause after a failure; each later one is twice as long, up to `longest`.
    pub first: Duration,
    pub longest: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self { first: Duration::from_millis(500), longest: Duration::from_secs(60) }
    }
}

/// What became of deliveries so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivery {
    pub delivered: u64,
    pub failures: u64,
    pub set_aside: u64,
    pub last_success: Option<SystemTime>,
    /// Why the last attempt did not come to its end; absent after one that did.
    pub fault: Option<Arc<str>>,
}

/// Delivers; [`Deliverer::run`] is the task.
pub struct Deliverer<S> {
    journal: Journal,
    sink: S,
    style: Style,
    aside: PathBuf,
    pace: Pace,
    metrics: AuditMetrics,
    status: watch::Sender<Delivery>,
    /// Events of the next delivery.
    size: usize,
    /// Pauses without a success between them.
    failed: u32,
    /// Events that were not taken alone, without a success between them.
    dry: u32,
    /// The oldest are not taken: whether the newest are is tried.
    newest: bool,
    /// The last delivery was of a suspect.
    tried_suspect: bool,
    /// Deliveries that were confirmed: that the sink works for others.
    proofs: u64,
    suspects: HashMap<u64, Suspect>,
    /// Events that were missing while others of the same delivery were there.
    left_out: HashSet<u64>,
}

/// An event that was not taken alone.
struct Suspect {
    alone: u32,
    /// [`Deliverer::proofs`] when it was suspected first.
    proofs: u64,
    due: Instant,
}

impl<S: Sink> Deliverer<S> {
    /// `folder` is the spool's: what the sink never takes stands there in `set-aside.jsonl`.
    pub fn new(
        journal: Journal,
        sink: S,
        style: Style,
        folder: &Path,
        pace: Pace,
        metrics: AuditMetrics,
    ) -> (Self, watch::Receiver<Delivery>) {
        let (status, watched) = watch::channel(Delivery::default());
        let aside = folder.join("set-aside.jsonl");
        let deliverer = Self {
            journal,
            sink,
            style,
            aside,
            pace,
            metrics,
            status,
            size: MOST,
            failed: 0,
            dry: 0,
            newest: false,
            tried_suspect: false,
            proofs: 0,
            suspects: HashMap::new(),
            left_out: HashSet::new(),
        };
        (deliverer, watched)
    }

    /// Delivers until `stop`, and then what is there as long as nothing fails. It may be dropped at any time:
    /// what was under way stays in the spool.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        tokio::pin!(stop);
        let mut stopping = false;
        let mut state = self.journal.state();
        loop {
            // What changes from here on is not missed.
            state.mark_unchanged();
            let pause = match self.step().await {
                Step::On => continue,
                Step::Ended => return,
                Step::Pause(until) => until,
            };
            if stopping {
                return;
            }
            let next = pause.or_else(|| self.suspects.values().map(|suspect| suspect.due).min());
            let timer = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut stop => stopping = true,
                () = timer => {}
                changed = state.changed(), if pause.is_none() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// One delivery.
    async fn step(&mut self) -> Step {
        let count = self.size.saturating_add(self.suspects.len());
        // Suspects take room, too.
        let bytes = BYTES.saturating_mul(1 + 4 * self.suspects.len());
        let waiting = match self.journal.oldest(count, bytes).await {
            Ok(waiting) if self.newest && !waiting.is_empty() => {
                self.journal.newest(count, bytes).await.map(|newest| (waiting, newest))
            }
            other => other.map(|waiting| (waiting, Vec::new())),
        };
        let (oldest, newest) = match waiting {
            Ok(waiting) => waiting,
            Err(SpoolError::Ended) => return Step::Ended,
            Err(error) => {
                self.tell(&Fault::new(AuditFailure::Disk, error.to_string()));
                return Step::Pause(Some(self.later(None)));
            }
        };
        let batch = self.batch(oldest, newest);
        if batch.is_empty() {
            return Step::Pause(None);
        }
        match self.sink.deliver(&batch).await {
            Ok(confirmed) => self.confirmed(&batch, confirmed).await,
            Err(fault) => self.failed(&batch, &fault).await,
        }
    }

    /// In turns: a suspect whose time has come, alone, and the oldest of the others, or the newest.
    fn batch(&mut self, oldest: Vec<Waiting>, newest: Vec<Waiting>) -> Vec<Waiting> {
        let now = Instant::now();
        if oldest.is_empty() {
            self.suspects.clear();
        }
        let due =
            |waiting: &&Waiting| self.suspects.get(&waiting.number).is_some_and(|suspect| suspect.due <= now);
        let due = oldest.iter().find(due).cloned();
        if !std::mem::replace(&mut self.tried_suspect, true)
            && let Some(due) = due
        {
            return vec![due];
        }
        self.tried_suspect = false;
        let from = match self.newest {
            true => newest,
            false if self.suspects.len() < SUSPECTS => oldest,
            false => Vec::new(),
        };
        let others = from.into_iter().filter(|waiting| !self.suspects.contains_key(&waiting.number));
        let others: Vec<Waiting> = others.take(self.size).collect();
        if others.is_empty() {
            self.newest = false;
            return due.into_iter().collect();
        }
        others
    }

    async fn confirmed(&mut self, batch: &[Waiting], confirmed: Vec<u64>) -> Step {
        let count = confirmed.len();
        if count > 0 {
            if self.journal.delivered(confirmed.clone()).await.is_err() {
                // It will arrive twice.
                return Step::Pause(Some(self.later(None)));
            }
            for number in &confirmed {
                self.suspects.remove(number);
            }
            self.proofs += 1;
            self.failed = 0;
            self.dry = 0;
            self.metrics.delivered.inc_by(count as u64);
            self.status.send_modify(|status| {
                status.delivered += count as u64;
                status.last_success = Some(SystemTime::now());
            });
        }
        let missing = batch.len().saturating_sub(count);
        if missing == 0 {
            self.size = self.size.saturating_mul(2).min(MOST);
            let recovered = self.status.send_if_modified(|status| status.fault.take().is_some());
            if recovered {
                tracing::info!("audit events are delivered again");
            }
            return Step::On;
        }
        let message =
            format!("the audit sink took {} event(s) and {missing} of them are not there", batch.len());
        let fault = Fault::new(AuditFailure::Missing, message);
        self.tell(&fault);
        self.newest = false;
        if let [alone] = batch {
            return self.suspect(alone, &fault).await;
        }
        if count > 0 {
            // One delivery's at a time.
            self.left_out = batch.iter().map(|waiting| waiting.number).collect();
            self.left_out.retain(|number| !confirmed.contains(number));
            self.size = (missing / 2).max(1);
            return Step::On;
        }
        self.size = (batch.len() / 2).max(1);
        Step::Pause(Some(self.later(None)))
    }

    async fn failed(&mut self, batch: &[Waiting], fault: &Fault) -> Step {
        self.tell(fault);
        self.newest = false;
        match (fault.reason, batch) {
            (AuditFailure::Rejected, [alone]) => self.suspect(alone, fault).await,
            (AuditFailure::Rejected, _) => {
                // One of them may be what is refused: smaller ones are tried, down to each alone.
                self.size = (batch.len() / 2).max(1);
                Step::On
            }
            _ => Step::Pause(Some(self.later(fault.wait))),
        }
    }

    /// An event that was not taken alone: passed over for a while, and set aside when others are taken.
    async fn suspect(&mut self, waiting: &Waiting, fault: &Fault) -> Step {
        let due =
            Instant::now() + self.pause(self.suspects.get(&waiting.number).map_or(0, |known| known.alone));
        let proofs = self.proofs;
        let before = proofs.saturating_sub(u64::from(self.left_out.contains(&waiting.number)));
        let suspect =
            self.suspects.entry(waiting.number).or_insert(Suspect { alone: 0, proofs: before, due });
        suspect.alone = suspect.alone.saturating_add(1);
        suspect.due = due;
        if suspect.alone < ALONE || proofs == suspect.proofs {
            // Others tell whether it is the event or the sink: the next ones at once, and then those at the other end.
            self.dry = self.dry.saturating_add(1);
            self.newest = self.dry > 1;
            return if self.dry <= 1 { Step::On } else { Step::Pause(Some(self.later(fault.wait))) };
        }
        let (path, style, event) = (self.aside.clone(), self.style, waiting.event.clone());
        let written = tokio::task::spawn_blocking(move || {
            let lines = ocsf::lines(&event, style);
            set_aside(&path, lines.concat().as_bytes())
        });
        let written = written.await.map_err(io::Error::other).and_then(|written| written);
        if let Err(error) = written {
            tracing::error!(%error, file = %self.aside.display(), "an audit event cannot be set aside; it stays in the spool");
            return Step::Pause(Some(due));
        }
        if self.journal.delivered(vec![waiting.number]).await.is_err() {
            return Step::Pause(Some(due));
        }
        self.suspects.remove(&waiting.number);
        self.left_out.remove(&waiting.number);
        self.metrics.set_aside.inc();
        self.status.send_modify(|status| status.set_aside += 1);
        tracing::error!(
            event = %waiting.event.id, reason = fault.message, file = %self.aside.display(),
            "the audit sink does not take this event; it was set aside"
        );
        Step::On
    }

    fn tell(&mut self, fault: &Fault) {
        self.metrics.failed(fault.reason);
        let said: Arc<str> = fault.message.as_str().into();
        let mut news = false;
        self.status.send_modify(|status| {
            status.failures += 1;
            news = status.fault.as_deref() != Some(&said);
            status.fault = Some(said);
        });
        if news {
            tracing::warn!(reason = fault.message, "audit events were not delivered; they are tried again");
        }
    }

    /// When to try again.
    fn later(&mut self, asked: Option<Duration>) -> Instant {
        let pause = self.pause(self.failed);
        self.failed = self.failed.saturating_add(1);
        Instant::now() + pause.max(asked.unwrap_or_default()).min(LONGEST)
    }

    /// Twice as long after each failure, and never the same as everybody else's.
    fn pause(&self, failures: u32) -> Duration {
        let doubled = self.pace.first.saturating_mul(1 << failures.min(16));
        doubled.min(self.pace.longest).mul_f64(rand::rng().random_range(0.5..1.0))
    }
}

enum Step {
    /// There may be more.
    On,
    /// Nothing to do before then, or before something new comes.
    Pause(Option<Instant>),
    /// There is no journal any more.
    Ended,
}

/// Appends to the file of what no sink takes; the one before is kept, and older ones are not.
fn set_aside(path: &Path, lines: &[u8]) -> io::Result<()> {
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.len() >= ASIDE) {
        std::fs::rename(path, path.with_extension("jsonl.1"))?;
    }
    let mut file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    file.write_all(lines)?;
    file.sync_all()
}
