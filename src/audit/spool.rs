//! What has happened and was not delivered yet, on disk.
//!
//! Invariant: a call that has returned is on the disk. An intent stays until it is completed, an event until
//! it is delivered, and neither is there in part. Payload never exceeds the limit, and of that the reserve
//! is for policy events alone; what finds no room is counted.
//!
//! The calls block on the disk: whoever owns the spool keeps them off the threads that serve clients.

use std::path::Path;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::event::{Event, Lost, What};

/// Undelivered events in the order in which they came.
const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
/// What was about to be done, by the number that its event will have.
const INTENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("intents");
/// [`Totals`], under its only key.
const TOTALS: TableDefinition<'_, (), &[u8]> = TableDefinition::new("totals");

/// What the database keeps in memory of its file, in bytes.
const CACHE: usize = 4 << 20;

/// How much the spool may hold, in bytes of payload. The file is larger by its pages, and is made smaller when
/// the spool is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub limit: u64,
    /// The part of `limit` that is for policy events and intents.
    pub reserve: u64,
}

/// Why something was not spooled.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    #[error("the audit spool is full: {used} of {limit} bytes wait to be delivered")]
    Full { used: u64, limit: u64 },
    #[error("the audit spool cannot be used: {0}")]
    Storage(#[from] redb::Error),
    #[error("the audit spool holds an entry that cannot be read: {0}")]
    Entry(#[from] serde_json::Error),
    #[error("there is no intent {0}")]
    NoIntent(u64),
}

type Result<T> = std::result::Result<T, SpoolError>;

macro_rules! storage_errors {
    ($($error:ident),*) => {
        $(impl From<redb::$error> for SpoolError {
            fn from(error: redb::$error) -> Self {
                SpoolError::Storage(error.into())
            }
        })*
    };
}

storage_errors!(CommitError, CompactionError, DatabaseError, StorageError, TableError, TransactionError);

#[derive(Clone, Copy, Debug, Default, serde::Serialize, serde::Deserialize)]
struct Totals {
    next: u64,
    /// Payload of events and intents, in bytes.
    used: u64,
    events: u64,
    lost: Lost,
}

/// How full the spool is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    pub events: u64,
    pub bytes: u64,
    /// Counted, not kept, and not reported yet.
    pub lost: Lost,
}

/// An event that waits, under its number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    pub number: u64,
    pub event: Event,
}

/// An open spool. One process has it open at a time.
pub struct Spool {
    database: Database,
    bounds: Bounds,
}

impl Spool {
    /// Opens or makes the spool in this file.
    ///
    /// # Errors
    /// The file cannot be used, or another process has it open.
    pub fn open(file: &Path, bounds: Bounds) -> Result<Self> {
        let mut database = Database::builder().set_cache_size(CACHE).create(file)?;
        database.compact()?;
        let spool = Self { database, bounds };
        spool.write(|_, _, _| Ok(()))?;
        Ok(spool)
    }

    /// Notes what is about to be done; its number.
    ///
    /// # Errors
    /// [`SpoolError::Full`], when even the reserve is used up, or the disk's.
    pub fn intend(&self, event: &Event) -> Result<u64> {
        let bytes = serde_json::to_vec(event)?;
        let limit = self.bounds.limit;
        self.write(|_, intents, totals| {
            totals.take(bytes.len(), limit)?;
            let number = totals.number();
            intents.insert(number, bytes.as_slice())?;
            Ok(number)
        })
    }

    /// Makes the intent an event, with its outcome. The event goes in whatever the fill: the intent has its room.
    ///
    /// # Errors
    /// There is no such intent, or the disk's.
    pub fn complete(&self, intent: u64, event: &Event) -> Result<()> {
        let bytes = serde_json::to_vec(event)?;
        self.write(|events, intents, totals| {
            let Some(before) = intents.remove(intent)?.map(|entry| entry.value().len()) else {
                return Err(SpoolError::NoIntent(intent));
            };
            totals.give(before);
            totals.used = totals.used.saturating_add(bytes.len() as u64);
            totals.events += 1;
            events.insert(intent, bytes.as_slice())?;
            Ok(())
        })
    }

    /// What was intended and has no outcome: after a crash, for whoever can find out.
    ///
    /// # Errors
    /// The disk's.
    pub fn intents(&self) -> Result<Vec<Waiting>> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(INTENTS)?;
        table.iter()?.map(|entry| waiting(&entry?)).collect()
    }

    /// Adds events, all on the disk at once. Statements that find no room are counted; policy events that find none
    /// are an error, and then nothing was added.
    ///
    /// # Errors
    /// [`SpoolError::Full`], or the disk's.
    pub fn add(&self, added: &[Event]) -> Result<()> {
        let entries = added.iter().map(serde_json::to_vec).collect::<std::result::Result<Vec<_>, _>>()?;
        let Bounds { limit, reserve } = self.bounds;
        self.write(|events, _, totals| {
            for (event, bytes) in added.iter().zip(&entries) {
                let limit = if event.is_policy() { limit } else { limit.saturating_sub(reserve) };
                match totals.take(bytes.len(), limit) {
                    Ok(()) => {
                        totals.events += 1;
                        events.insert(totals.number(), bytes.as_slice())?;
                    }
                    Err(error) if event.is_policy() => return Err(error),
                    Err(_) => totals.lost.count(&event.what),
                }
            }
            Ok(())
        })
    }

    /// The oldest events: at most `count` of them and about `bytes`, but at least one if there is any.
    ///
    /// # Errors
    /// The disk's.
    pub fn oldest(&self, count: usize, bytes: usize) -> Result<Vec<Waiting>> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(EVENTS)?;
        let mut found = Vec::new();
        let mut size = 0;
        for entry in table.iter()?.take(count) {
            let entry = entry?;
            size += entry.1.value().len();
            if size > bytes && !found.is_empty() {
                break;
            }
            found.push(waiting(&entry)?);
        }
        Ok(found)
    }

    /// Forgets events that a sink has for certain. Numbers that are not there are no error: a delivery may be told twice.
    ///
    /// # Errors
    /// The disk's.
    pub fn delivered(&self, numbers: &[u64]) -> Result<()> {
        self.write(|events, _, totals| {
            for number in numbers {
                if let Some(entry) = events.remove(number)? {
                    totals.give(entry.value().len());
                    totals.events = totals.events.saturating_sub(1);
                }
            }
            Ok(())
        })
    }

    /// Turns the counts of what was lost into an event, once there is room for it.
    ///
    /// # Errors
    /// The disk's.
    pub fn report_lost(&self, id: Arc<str>, at: std::time::SystemTime) -> Result<()> {
        let Bounds { limit, reserve } = self.bounds;
        self.write(|events, _, totals| {
            if totals.lost == Lost::default() {
                return Ok(());
            }
            let bytes = serde_json::to_vec(&Event { id, at, what: What::Lost(totals.lost) })?;
            if totals.take(bytes.len(), limit.saturating_sub(reserve)).is_ok() {
                totals.events += 1;
                totals.lost = Lost::default();
                events.insert(totals.number(), bytes.as_slice())?;
            }
            Ok(())
        })
    }

    /// # Errors
    /// The disk's.
    pub fn fill(&self) -> Result<Fill> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(TOTALS)?;
        let totals = totals(&table)?;
        Ok(Fill { events: totals.events, bytes: totals.used, lost: totals.lost })
    }

    /// One transaction: all of `work` or nothing of it.
    fn write<R>(
        &self,
        work: impl FnOnce(&mut Entries<'_>, &mut Entries<'_>, &mut Totals) -> Result<R>,
    ) -> Result<R> {
        let transaction: WriteTransaction = self.database.begin_write()?;
        let result = {
            let mut events = transaction.open_table(EVENTS)?;
            let mut intents = transaction.open_table(INTENTS)?;
            let mut table = transaction.open_table(TOTALS)?;
            let mut totals = totals(&table)?;
            let result = work(&mut events, &mut intents, &mut totals)?;
            table.insert((), serde_json::to_vec(&totals)?.as_slice())?;
            result
        };
        transaction.commit()?;
        Ok(result)
    }
}

type Entries<'t> = redb::Table<'t, u64, &'static [u8]>;
type Entry<'t> = (redb::AccessGuard<'t, u64>, redb::AccessGuard<'t, &'static [u8]>);

fn waiting(entry: &Entry<'_>) -> Result<Waiting> {
    Ok(Waiting { number: entry.0.value(), event: serde_json::from_slice(entry.1.value())? })
}

fn totals(table: &impl ReadableTable<(), &'static [u8]>) -> Result<Totals> {
    match table.get(())? {
        Some(entry) => Ok(serde_json::from_slice(entry.value())?),
        None => Ok(Totals::default()),
    }
}

impl Totals {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn take(&mut self, bytes: usize, limit: u64) -> Result<()> {
        let used = self.used.saturating_add(bytes as u64);
        if used > limit {
            return Err(SpoolError::Full { used: self.used, limit });
        }
        self.used = used;
        Ok(())
    }

    fn give(&mut self, bytes: usize) {
        self.used = self.used.saturating_sub(bytes as u64);
    }
}

impl Lost {
    fn count(&mut self, what: &What) {
        match what {
            What::PolicyRun(_) => {}
            What::Statements(statements) => {
                let of = match statements.verdict {
                    super::event::Verdict::Admitted { .. } => &mut self.reads,
                    super::event::Verdict::Refused { .. } => &mut self.refusals,
                };
                *of = of.saturating_add(statements.count);
            }
            What::Lost(lost) => {
                self.refusals = self.refusals.saturating_add(lost.refusals);
                self.reads = self.reads.saturating_add(lost.reads);
            }
        }
    }
}
