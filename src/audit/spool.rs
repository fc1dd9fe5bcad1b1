//! What has happened and was not delivered yet, on disk.
//!
//! Invariant: a call that has returned is on the disk. An intent stays until it is completed, an event until
//! it is delivered, and neither is there in part. Payload never exceeds the limit, and of that the reserve
//! is for policy events alone; what finds no room is counted.
//!
//! The calls block on the disk: whoever owns the spool keeps them off the threads that serve clients.

use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};

use super::event::{Event, Lost, What};

/// Undelivered events in the order in which they came.
const EVENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("events");
/// What was about to be done, by the number that its event will have.
const INTENTS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("intents");
/// [`Totals`], under its only key.
const TOTALS: TableDefinition<'_, (), &[u8]> = TableDefinition::new("totals");

/// The spool's file in its folder.
const FILE: &str = "spool.redb";

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
    #[error("the audit spool {file} is in use by another process; each gateway needs a folder of its own")]
    InUse { file: String },
    #[error("the audit spool's folder {folder} cannot be made: {error}")]
    Folder { folder: String, error: std::io::Error },
    #[error("the audit spool's file {file} cannot be used: {error}")]
    File { file: String, error: std::io::Error },
    #[error("the audit spool cannot be used: {0}")]
    Storage(#[from] redb::Error),
    #[error("the audit spool holds an entry that cannot be read: {0}")]
    Entry(#[from] serde_json::Error),
    #[error("there is no intent {0}")]
    NoIntent(u64),
    #[error("the audit journal has ended")]
    Ended,
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
    /// When the event that waits longest happened.
    pub oldest: Option<SystemTime>,
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
    /// Opens or makes the spool in this folder, which only its owner may look into when it is made here.
    ///
    /// # Errors
    /// As of [`Spool::open`]; the folder cannot be made.
    pub fn in_folder(folder: &Path, bounds: Bounds) -> Result<Self> {
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|error| SpoolError::Folder { folder: folder.display().to_string(), error })?;
        Self::open(&folder.join(FILE), bounds)
    }

    /// Whether a spool could be in this folder, as far as that can be told without making, locking or changing it.
    ///
    /// # Errors
    /// Why not.
    pub fn check(folder: &Path) -> Result<()> {
        if let Err(error) = is_folder(folder) {
            return Err(SpoolError::Folder { folder: folder.display().to_string(), error });
        }
        let file = folder.join(FILE);
        match std::fs::OpenOptions::new().read(true).write(true).open(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(SpoolError::File { file: file.display().to_string(), error })
            }
            _ => Ok(()),
        }
    }

    /// Opens or makes the spool in this file.
    ///
    /// # Errors
    /// The file cannot be used, or another process has it open.
    pub fn open(file: &Path, bounds: Bounds) -> Result<Self> {
        // A file that a crash has left half made is none, and would be an error for ever: it gets its name when it is
        // whole.
        if !file.exists() {
            let beside = file.with_extension("new");
            drop(Database::builder().set_cache_size(CACHE).create(&beside).or_else(|error| match error {
                DatabaseError::DatabaseAlreadyOpen => Err(error),
                _ => {
                    std::fs::remove_file(&beside)?;
                    Database::builder().set_cache_size(CACHE).create(&beside)
                }
            })?);
            std::fs::rename(&beside, file).map_err(|error| SpoolError::Storage(redb::Error::Io(error)))?;
        }
        let mut database =
            Database::builder().set_cache_size(CACHE).create(file).map_err(|error| match error {
                DatabaseError::DatabaseAlreadyOpen => SpoolError::InUse { file: file.display().to_string() },
                error => error.into(),
            })?;
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

    /// Adds statements, all on the disk at once, and the counts of those that never came as far as here. What finds
    /// no room is counted, too; when all found room, the counts become an event, as [`Spool::report_lost`] makes it.
    /// The answer says how many found none.
    ///
    /// # Errors
    /// The disk's: then nothing was added and nothing counted.
    pub fn add_statements(
        &self,
        added: &[Event],
        lost: Lost,
        report: (Arc<str>, SystemTime),
    ) -> Result<Lost> {
        let entries = added.iter().map(serde_json::to_vec).collect::<std::result::Result<Vec<_>, _>>()?;
        let limit = self.bounds.limit.saturating_sub(self.bounds.reserve);
        self.write(|events, _, totals| {
            let mut no_room = Lost::default();
            for (event, bytes) in added.iter().zip(&entries) {
                if totals.take(bytes.len(), limit).is_ok() {
                    totals.events += 1;
                    events.insert(totals.number(), bytes.as_slice())?;
                } else {
                    no_room.count(&event.what);
                }
            }
            for lost in [lost, no_room] {
                totals.lost.count(&What::Lost(lost));
            }
            if no_room == Lost::default() {
                totals.report(events, limit, report)?;
            }
            Ok(no_room)
        })
    }

    /// The oldest events: at most `count` of them and about `bytes`, but at least one if there is any.
    ///
    /// # Errors
    /// The disk's.
    pub fn oldest(&self, count: usize, bytes: usize) -> Result<Vec<Waiting>> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(EVENTS)?;
        some(table.iter()?, count, bytes)
    }

    /// The newest events, newest first, within the same bounds.
    ///
    /// # Errors
    /// The disk's.
    pub fn newest(&self, count: usize, bytes: usize) -> Result<Vec<Waiting>> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(EVENTS)?;
        some(table.iter()?.rev(), count, bytes)
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

    /// Turns the counts of what was lost into an event, once an eighth of the room is free.
    ///
    /// # Errors
    /// The disk's.
    pub fn report_lost(&self, id: Arc<str>, at: SystemTime) -> Result<()> {
        let Bounds { limit, reserve } = self.bounds;
        self.write(|events, _, totals| totals.report(events, limit.saturating_sub(reserve), (id, at)))
    }

    /// # Errors
    /// The disk's.
    pub fn fill(&self) -> Result<Fill> {
        let transaction = self.database.begin_read()?;
        let table = transaction.open_table(TOTALS)?;
        let totals = totals(&table)?;
        let oldest = transaction.open_table(EVENTS)?.first()?.as_ref().map(waiting).transpose()?;
        Ok(Fill {
            events: totals.events,
            bytes: totals.used,
            lost: totals.lost,
            oldest: oldest.map(|waiting| waiting.event.at),
        })
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

/// Is this a folder, or could one be made there?
pub(super) fn is_folder(path: &Path) -> std::io::Result<()> {
    for place in path.ancestors() {
        let place = if place.as_os_str().is_empty() { Path::new(".") } else { place };
        match std::fs::metadata(place) {
            Ok(there) if there.is_dir() => return Ok(()),
            Ok(_) => return Err(std::io::ErrorKind::NotADirectory.into()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Err(std::io::ErrorKind::NotFound.into())
}

type Entries<'t> = redb::Table<'t, u64, &'static [u8]>;
type Entry<'t> = (redb::AccessGuard<'t, u64>, redb::AccessGuard<'t, &'static [u8]>);

fn waiting(entry: &Entry<'_>) -> Result<Waiting> {
    Ok(Waiting { number: entry.0.value(), event: serde_json::from_slice(entry.1.value())? })
}

fn some<'t>(
    entries: impl Iterator<Item = std::result::Result<Entry<'t>, redb::StorageError>>,
    count: usize,
    bytes: usize,
) -> Result<Vec<Waiting>> {
    let mut found = Vec::new();
    let mut size = 0;
    for entry in entries.take(count) {
        let entry = entry?;
        size += entry.1.value().len();
        if size > bytes && !found.is_empty() {
            break;
        }
        found.push(waiting(&entry)?);
    }
    Ok(found)
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

    fn report(
        &mut self,
        events: &mut Entries<'_>,
        limit: u64,
        (id, at): (Arc<str>, SystemTime),
    ) -> Result<()> {
        if self.lost == Lost::default() {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&Event { id, at, what: What::Lost(self.lost) })?;
        // Not into the last corner: counts of counts would fill it.
        if self.take(bytes.len(), limit - limit / 8).is_ok() {
            self.events += 1;
            self.lost = Lost::default();
            events.insert(self.number(), bytes.as_slice())?;
        }
        Ok(())
    }
}

impl Lost {
    fn count(&mut self, what: &What) {
        match what {
            What::PolicyRun(_) | What::Change(_) => {}
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
