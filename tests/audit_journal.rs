//! The journal: what sessions and the loop tell it, and what the spool then holds.
//!
//! Invariant: every statement that is told of is in an event or in a count, once.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fedgate::audit::event::{Actor, Event, Lost, Outcome, PolicyRun, Statements, Verdict, What};
use fedgate::audit::journal::{Journal, Note, Owner, Ruling, Settings};
use fedgate::audit::spool::{Bounds, SpoolError};
use fedgate::metrics::Metrics;
use fedgate::sqlstate::SqlState;

const LIMIT: Duration = Duration::from_secs(60);

fn start(folder: &tempfile::TempDir, bounds: Bounds, window: Duration) -> (Journal, Owner, Metrics) {
    let metrics = Metrics::new().unwrap();
    let settings = Settings { folder: folder.path().join("spool"), bounds, window };
    let (journal, owner) = Journal::start(settings, metrics.audit.clone()).unwrap();
    (journal, owner, metrics)
}

const ROOMY: Bounds = Bounds { limit: 1 << 20, reserve: 1 << 16 };
const LONG: Duration = Duration::from_secs(3600);

fn run(id: &str, outcome: Outcome) -> Event {
    Event {
        id: id.into(),
        at: SystemTime::now(),
        what: What::PolicyRun(PolicyRun {
            actor: Actor::System,
            outcome,
            duration: Duration::from_millis(42),
            tables_processed: 12,
            subjects_affected: 1,
            publish_failures: 0,
            before: Some("r1".into()),
            after: Some("r2".into()),
            subjects: vec!["analyst".into()],
        }),
    }
}

fn note(fingerprint: u8) -> Note {
    Note {
        source: "climscore".into(),
        client_user: "trino".into(),
        end_user: Some("alice".into()),
        query: Some("q1".into()),
        ruling: Ruling::Refused { class: "write", sqlstate: SqlState::READ_ONLY_SQL_TRANSACTION },
        fingerprint: [fingerprint; 16],
        tables: Arc::from([]),
        rows: None,
    }
}

fn read(rows: u64) -> Note {
    Note {
        ruling: Ruling::Admitted { class: "read" },
        rows: Some(rows),
        tables: Arc::from([Arc::from("public.customers")]),
        ..note(7)
    }
}

async fn statements(journal: &Journal) -> Vec<Statements> {
    let waiting = journal.oldest(usize::MAX, usize::MAX).await.unwrap();
    let statements = waiting.into_iter().filter_map(|waiting| match waiting.event.what {
        What::Statements(statements) => Some(statements),
        What::PolicyRun(_) | What::Change(_) | What::Lost(_) => None,
    });
    statements.collect()
}

async fn lost(journal: &Journal) -> Lost {
    let mut sum = Lost::default();
    for waiting in journal.oldest(usize::MAX, usize::MAX).await.unwrap() {
        if let What::Lost(lost) = waiting.event.what {
            sum.refusals += lost.refusals;
            sum.reads += lost.reads;
        }
    }
    sum
}

#[tokio::test]
async fn an_intent_outlives_its_process_and_is_completed_by_the_next_one() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, owner, _metrics) = start(&folder, ROOMY, LONG);
    let first = journal.intend(run("a", Outcome::Success)).await.unwrap();
    let second = journal.intend(run("b", Outcome::Success)).await.unwrap();
    journal.complete(first, run("a", Outcome::Success)).await.unwrap();
    journal.record(run("c", Outcome::Success)).await.unwrap();
    assert!(owner.end(LIMIT).await);
    assert!(matches!(journal.intents().await, Err(SpoolError::Ended)));

    let (journal, owner, _metrics) = start(&folder, ROOMY, LONG);
    let [left] = journal.intents().await.unwrap().try_into().unwrap();
    assert_eq!((left.number, &*left.event.id), (second, "b"));
    journal.complete(left.number, run("b", Outcome::Interrupted { published: true })).await.unwrap();
    assert!(matches!(
        journal.complete(left.number, run("b", Outcome::Success)).await,
        Err(SpoolError::NoIntent(_))
    ));
    let ids: Vec<String> = journal
        .oldest(9, usize::MAX)
        .await
        .unwrap()
        .iter()
        .map(|waiting| waiting.event.id.to_string())
        .collect();
    assert_eq!(ids, ["a", "b", "c"]);
    let state = journal.state().borrow().clone();
    assert_eq!((state.fill.events, state.limit), (3, ROOMY.limit));
    assert!(state.fill.oldest.is_some());
    assert!(owner.end(LIMIT).await);
}

#[tokio::test]
async fn another_process_that_has_the_spool_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (_journal, owner, metrics) = start(&folder, ROOMY, LONG);
    let settings = Settings { folder: folder.path().join("spool"), bounds: ROOMY, window: LONG };
    let Err(error) = Journal::start(settings, metrics.audit.clone()) else { panic!("two owners") };
    assert!(matches!(error, SpoolError::InUse { .. }));
    assert!(error.to_string().contains("in use by another process"), "{error}");
    assert!(owner.end(LIMIT).await);
    let (_journal, owner, _metrics) = start(&folder, ROOMY, LONG);
    assert!(owner.end(LIMIT).await, "the end frees it");
}

#[tokio::test]
async fn statements_that_are_alike_are_one_event_with_a_count() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, owner, _metrics) = start(&folder, ROOMY, LONG);
    for number in 1..=5 {
        journal.note(Note { query: Some(format!("q{number}").into()), ..note(1) });
    }
    journal.note(note(2));
    journal.note(Note { end_user: Some("bob".into()), ..note(1) });
    journal.note(read(10));
    journal.note(read(32));
    assert_eq!(statements(&journal).await.len(), 0, "the window has not ended");
    journal.flush().await.unwrap();
    let statements = statements(&journal).await;
    let seen: Vec<_> = statements
        .iter()
        .map(|one| (one.count, one.end_user.as_deref().unwrap(), one.query.as_deref().unwrap(), one.rows))
        .collect();
    assert_eq!(
        seen,
        [
            (5, "alice", "q5", None),
            (1, "alice", "q1", None),
            (1, "bob", "q1", None),
            (2, "alice", "q1", Some(42))
        ]
    );
    assert_eq!(statements[0].verdict, Verdict::Refused { class: "write".into(), sqlstate: "25006".into() });
    assert_eq!(&*statements[0].fingerprint, "01".repeat(16));
    assert_eq!(statements[3].tables, [Arc::from("public.customers")]);
    assert!(owner.end(LIMIT).await);
}

#[tokio::test]
async fn a_window_ends_by_itself_and_the_end_of_the_process_ends_it_too() {
    let folder = tempfile::tempdir().unwrap();
    let (journal, owner, _metrics) = start(&folder, ROOMY, Duration::from_millis(100));
    journal.note(note(1));
    let mut state = journal.state();
    tokio::time::timeout(LIMIT, state.wait_for(|state| state.fill.events == 1)).await.unwrap().unwrap();
    assert!(owner.end(LIMIT).await);
    let (journal, owner, _metrics) = start(&folder, ROOMY, LONG);
    journal.note(note(2));
    assert!(owner.end(LIMIT).await);
    let (journal, owner, _metrics) = start(&folder, ROOMY, LONG);
    assert_eq!(statements(&journal).await.len(), 2);
    assert!(owner.end(LIMIT).await);
}

/// More than the queue holds, and of more kinds than are kept apart: no one of them is neither in an event nor in a
/// count, and whoever tells of them is never held up.
#[tokio::test]
async fn a_flood_is_counted_to_the_last_one() {
    let folder = tempfile::tempdir().unwrap();
    let bounds = Bounds { limit: 64 << 20, reserve: 1 << 20 };
    let (journal, owner, metrics) = start(&folder, bounds, LONG);
    const EACH: u64 = 20_000;
    let tellers: Vec<_> = (0..4u8)
        .map(|teller| {
            let journal = journal.clone();
            std::thread::spawn(move || {
                for number in 0..EACH {
                    let mut note = if teller == 0 { read(1) } else { note(0) };
                    note.fingerprint = u128::from(number % 3000).to_le_bytes();
                    note.client_user = format!("user{teller}").into();
                    journal.note(note);
                }
            })
        })
        .collect();
    for teller in tellers {
        teller.join().unwrap();
    }
    journal.flush().await.unwrap();
    // What the queue had no place for meanwhile is told at the latest now.
    journal.flush().await.unwrap();
    let (statements, lost) = (statements(&journal).await, lost(&journal).await);
    let kept = |admitted: bool| {
        let of = |one: &&Statements| matches!(one.verdict, Verdict::Admitted { .. }) == admitted;
        statements.iter().filter(of).map(|one| one.count).sum::<u64>()
    };
    assert_eq!(kept(false) + lost.refusals, 3 * EACH);
    assert_eq!(kept(true) + lost.reads, EACH);
    assert_eq!(metrics.audit.lost_refusals.get(), lost.refusals);
    assert_eq!(metrics.audit.lost_reads.get(), lost.reads);
    assert!(owner.end(LIMIT).await);
}

#[tokio::test]
async fn refusals_cannot_eat_the_reserve_and_their_count_is_told_later() {
    let folder = tempfile::tempdir().unwrap();
    let bounds = Bounds { limit: 8 << 10, reserve: 4 << 10 };
    let (journal, owner, metrics) = start(&folder, bounds, LONG);
    for number in 0..=255 {
        journal.note(note(number));
    }
    journal.flush().await.unwrap();
    let kept = statements(&journal).await.len() as u64;
    assert!(kept > 3 && kept < 100, "{kept}");
    assert_eq!(journal.state().borrow().fill.lost, Lost { refusals: 256 - kept, reads: 0 });
    assert_eq!(metrics.audit.lost_refusals.get(), 256 - kept);
    // The reserve takes policy events until it is used up, and then says so.
    let mut taken = 0;
    let error = loop {
        match journal.intend(run(&format!("p{taken}"), Outcome::Success)).await {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, SpoolError::Full { .. }), "{error}");
    assert!(taken >= 5, "{taken}");
    // Completed and delivered: there is room again, and the count is told.
    for intent in journal.intents().await.unwrap() {
        journal.complete(intent.number, intent.event).await.unwrap();
    }
    let numbers =
        journal.oldest(usize::MAX, usize::MAX).await.unwrap().iter().map(|one| one.number).collect();
    journal.delivered(numbers).await.unwrap();
    journal.note(note(1));
    journal.flush().await.unwrap();
    assert_eq!(lost(&journal).await, Lost { refusals: 256 - kept, reads: 0 });
    assert_eq!(statements(&journal).await.len(), 1);
    assert!(owner.end(LIMIT).await);
}
