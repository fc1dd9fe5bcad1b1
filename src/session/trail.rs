//! What sessions tell the audit journal: refusals, and admitted reads where they are asked for.
//!
//! Invariant: a note holds no literal of a statement, and telling never waits. Without an audit trail nothing here
//! exists, and without reads nothing is done for an admitted statement.

use std::collections::VecDeque;
use std::sync::Arc;

use quick_cache::sync::Cache;

use crate::audit::journal::{Journal, Note, Ruling};
use crate::guard::{FoundKind, found};
use crate::ids::{EndUser, RefusalClass, StatementClass};
use crate::sql::Limits;
use crate::sql::fingerprint::fingerprint;
use crate::sqlstate::SqlState;

/// Statements whose tables are remembered.
const KNOWN: usize = 4096;
/// Tables of one statement, and bytes of one name.
const TABLES: usize = 64;
const NAME: usize = 200;
/// Longest text whose tables are looked for on the thread that relays, in bytes.
const LONGEST: usize = 64 << 10;

/// What all sessions share of the audit trail.
pub struct Trail {
    journal: Journal,
    reads: bool,
    /// The tables of statements by their fingerprint, which is the same whatever the literals.
    tables: Cache<[u8; 16], Arc<[Arc<str>]>>,
}

/// Who a session's statements are told of as.
#[derive(Clone)]
pub(super) struct Voice {
    pub(super) trail: Arc<Trail>,
    pub(super) source: Arc<str>,
    pub(super) client_user: Arc<str>,
}

/// An admitted statement that is told of when it has run.
#[derive(Debug)]
pub(super) struct Reading {
    end_user: Option<Arc<str>>,
    query: Option<Arc<str>>,
    fingerprint: [u8; 16],
    tables: Arc<[Arc<str>]>,
}

impl Trail {
    /// With `reads`, admitted reads are told of, too.
    pub fn new(journal: Journal, reads: bool) -> Arc<Self> {
        Arc::new(Self { journal, reads, tables: Cache::new(KNOWN) })
    }

    fn tables(&self, fingerprint: [u8; 16], sql: &[u8], limits: &Limits) -> Arc<[Arc<str>]> {
        if let Some(tables) = self.tables.get(&fingerprint) {
            return tables;
        }
        let mut tables: Vec<Arc<str>> = Vec::new();
        if sql.len() <= LONGEST {
            for name in found(sql, limits).names {
                let spelled = name.name.join(".");
                if name.kind == FoundKind::Relation
                    && tables.len() < TABLES
                    && spelled.len() <= NAME
                    && !tables.iter().any(|known| **known == *spelled)
                {
                    tables.push(spelled.into());
                }
            }
        }
        let tables: Arc<[Arc<str>]> = tables.into();
        self.tables.insert(fingerprint, Arc::clone(&tables));
        tables
    }
}

impl Voice {
    /// Whether admitted reads are told of.
    pub(super) fn reads(&self) -> bool {
        self.trail.reads
    }

    /// Tells of a refusal.
    pub(super) fn refused(
        &self,
        sql: &[u8],
        class: RefusalClass,
        sqlstate: SqlState,
        end_user: Option<&EndUser>,
    ) {
        let (end_user, query) = names(end_user);
        self.trail.journal.note(Note {
            source: Arc::clone(&self.source),
            client_user: Arc::clone(&self.client_user),
            end_user,
            query,
            ruling: Ruling::Refused { class: class.as_str(), sqlstate },
            fingerprint: fingerprint(sql).0,
            tables: Arc::from([]),
            rows: None,
        });
    }

    /// What will be told of an admitted read.
    pub(super) fn reading(&self, sql: &[u8], end_user: Option<&EndUser>, limits: &Limits) -> Arc<Reading> {
        let fingerprint = fingerprint(sql).0;
        let tables = self.trail.tables(fingerprint, sql, limits);
        let (end_user, query) = names(end_user);
        Arc::new(Reading { end_user, query, fingerprint, tables })
    }

    /// Tells of a read that has run.
    pub(super) fn read(&self, reading: &Reading, rows: Option<u64>) {
        self.trail.journal.note(Note {
            source: Arc::clone(&self.source),
            client_user: Arc::clone(&self.client_user),
            end_user: reading.end_user.clone(),
            query: reading.query.clone(),
            ruling: Ruling::Admitted { class: StatementClass::Read.as_str() },
            fingerprint: reading.fingerprint,
            tables: Arc::clone(&reading.tables),
            rows,
        });
    }
}

fn names(end_user: Option<&EndUser>) -> (Option<Arc<str>>, Option<Arc<str>>) {
    let query = end_user.map(|end_user| &*end_user.query).filter(|query| !query.is_empty());
    (end_user.map(|end_user| Arc::from(&*end_user.user)), query.map(Arc::from))
}

/// The reads that a relay has sent and that were not answered yet, with a place for each statement that is no read.
pub(super) struct Readings {
    voice: Voice,
    /// Of the statement that is sent next.
    next: Option<Sent>,
    sent: VecDeque<Option<Sent>>,
}

struct Sent {
    reading: Arc<Reading>,
    rows: Option<u64>,
    /// The most rows that an Execute asked for; zero: all.
    most: u32,
}

impl Readings {
    pub(super) fn new(voice: Voice) -> Self {
        Self { voice, next: None, sent: VecDeque::new() }
    }

    /// The statement that is sent next is this read.
    pub(super) fn next(&mut self, reading: Option<Arc<Reading>>, most: u32) {
        self.next = reading.map(|reading| Sent { reading, rows: None, most });
    }

    /// A Query or an Execute was sent.
    pub(super) fn sent(&mut self) {
        let next = self.next.take();
        self.sent.push_back(next);
    }

    /// The first of them was answered with CommandComplete; this is its tag.
    pub(super) fn complete(&mut self, tag: &[u8]) {
        if let Some(Some(sent)) = self.sent.front_mut() {
            let word = tag.split(|byte| matches!(byte, b' ' | 0)).rfind(|word| !word.is_empty());
            let rows = word.and_then(|word| std::str::from_utf8(word).ok()?.parse::<u64>().ok());
            if let Some(rows) = rows {
                sent.rows = Some(sent.rows.unwrap_or(0).saturating_add(rows));
            }
        }
    }

    /// The first of them has its answer: as many rows as it asked for and more to come, when it was suspended.
    /// One that failed may have given rows before; how many is not known then.
    pub(super) fn answered(&mut self, suspended: bool) {
        let Some(Some(sent)) = self.sent.pop_front() else { return };
        let rows = if suspended { Some(u64::from(sent.most)) } else { sent.rows };
        self.voice.read(&sent.reading, rows);
    }
}

impl Drop for Readings {
    /// Whoever goes before the answer has ended has read some of it all the same.
    fn drop(&mut self) {
        for sent in self.sent.drain(..).flatten() {
            self.voice.read(&sent.reading, sent.rows);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::event::{Statements, What};
    use crate::audit::journal::Settings;
    use crate::audit::spool::Bounds;

    async fn told(work: impl FnOnce(&Voice)) -> Vec<Statements> {
        let folder = tempfile::tempdir().unwrap();
        let metrics = crate::metrics::Metrics::new().unwrap();
        let settings = Settings {
            folder: folder.path().to_owned(),
            bounds: Bounds { limit: 1 << 20, reserve: 1 << 16 },
            window: std::time::Duration::from_secs(3600),
        };
        let (journal, owner) = Journal::start(settings, metrics.audit.clone()).unwrap();
        let trail = Trail::new(journal.clone(), true);
        work(&Voice { trail, source: "climscore".into(), client_user: "trino".into() });
        journal.flush().await.unwrap();
        let waiting = journal.oldest(usize::MAX, usize::MAX).await.unwrap();
        assert!(owner.end(std::time::Duration::from_secs(60)).await);
        let statements = waiting.into_iter().map(|waiting| match waiting.event.what {
            What::Statements(statements) => statements,
            other => panic!("{other:?}"),
        });
        statements.collect()
    }

    #[tokio::test]
    async fn a_read_is_told_of_when_it_has_run_with_its_tables_and_rows() {
        let limits = Limits::default();
        let statements = told(|voice| {
            let sql = b"SELECT a FROM public.t JOIN \"U\" USING (x) WHERE b = 'secret'";
            let mut readings = Readings::new(voice.clone());
            // Two portions of ten and a rest of three; something that is no read; one that fails.
            for _ in 0..3 {
                readings.next(Some(voice.reading(sql, None, &limits)), 10);
                readings.sent();
            }
            readings.sent();
            readings.next(Some(voice.reading(b"SELECT 1/0", None, &limits)), 0);
            readings.sent();
            readings.answered(true);
            readings.answered(true);
            readings.complete(b"SELECT 3\0");
            readings.answered(false);
            readings.complete(b"BEGIN\0");
            readings.answered(false);
            readings.answered(false);
            // One that is under way when the client goes.
            readings.next(Some(voice.reading(b"TABLE u", None, &limits)), 0);
            readings.sent();
        })
        .await;
        let seen: Vec<_> = statements.iter().map(|one| (one.count, one.rows, one.tables.len())).collect();
        assert_eq!(seen, [(3, Some(23), 2), (1, None, 0), (1, None, 1)]);
        assert_eq!(statements[0].tables, ["public.t".into(), "U".into()]);
    }

    #[tokio::test]
    async fn a_refusal_carries_who_and_what_and_no_literal() {
        let end_user = EndUser { user: "alice".into(), query: "q7".into() };
        let refuse = |voice: &Voice, sql: &[u8]| {
            let sqlstate = SqlState::READ_ONLY_SQL_TRANSACTION;
            voice.refused(sql, RefusalClass::Write, sqlstate, Some(&end_user));
        };
        let statements = told(|voice| {
            refuse(voice, b"DELETE FROM t WHERE name = 'secret'");
            refuse(voice, b"DELETE FROM t WHERE name = 'other' /* twice */");
            refuse(voice, b"DELETE FROM u");
        })
        .await;
        assert_eq!(statements.iter().map(|one| one.count).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(statements[0].end_user.as_deref(), Some("alice"));
        assert_eq!(statements[0].query.as_deref(), Some("q7"));
        assert!(!format!("{statements:?}").contains("secret"));
    }
}
