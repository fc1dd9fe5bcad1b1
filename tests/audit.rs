//! The spool on a real disk, and events as the lines that readers get.
//!
//! Invariant: what a test calls delivered once was delivered once, and what it calls kept survives a new opening.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fedgate::audit::event::{Actor, Event, Lost, Outcome, PolicyRun, Statements, Verdict, What};
use fedgate::audit::ocsf::{LINE_LIMIT, RunClass, Style, lines};
use fedgate::audit::spool::{Bounds, Fill, Spool, SpoolError};
use proptest::prelude::*;
use serde_json::{Value, json};

const STYLE: Style = Style { run_class: RunClass::DataAccessManagement };

fn at() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(1_764_000_000_123)
}

fn run(id: &str, subjects: &[&str]) -> Event {
    Event {
        id: id.into(),
        at: at(),
        what: What::PolicyRun(PolicyRun {
            actor: Actor::System,
            outcome: Outcome::Success,
            duration: Duration::from_millis(42),
            tables_processed: 12,
            subjects_affected: subjects.len() as u64,
            publish_failures: 0,
            before: Some("r1".into()),
            after: Some("r2".into()),
            subjects: subjects.iter().map(|subject| Arc::from(*subject)).collect(),
        }),
    }
}

fn refusal(id: &str, count: u64) -> Event {
    Event {
        id: id.into(),
        at: at(),
        what: What::Statements(Statements {
            source: "climscore".into(),
            client_user: "trino".into(),
            end_user: Some("alice".into()),
            query: Some("20261123_101010_00001_abcde".into()),
            verdict: Verdict::Refused { class: "write".into(), sqlstate: "25006".into() },
            fingerprint: "9f86d081884c7d65".into(),
            tables: vec!["public.customers".into()],
            rows: None,
            count,
        }),
    }
}

#[test]
fn a_run_is_the_event_that_its_readers_query() {
    let [line] = lines(&run("e1", &["analyst", "été\n"]), STYLE).try_into().unwrap();
    assert!(line.ends_with("}\n") && line.matches('\n').count() == 1);
    let event: Value = serde_json::from_str(&line).unwrap();
    let want = json!({
        "_time": "2025-11-24T16:00:00.123Z", "_msg": "policy sync: done",
        "time": 1_764_000_000_123_u64, "message": "policy sync: done",
        "category_uid": 3, "category_name": "Identity & Access Management",
        "class_uid": 3007, "class_name": "Data Access Management",
        "activity_id": 99, "activity_name": "policy-sync run", "type_uid": 300_799, "severity_id": 1,
        "metadata": {"version": "1.3.0", "uid": "e1", "correlation_uid": "e1", "sequence": 0,
                     "product": {"name": "akko-policy-sync", "vendor_name": "fedgate", "version": env!("CARGO_PKG_VERSION")}},
        "status_id": 1, "status_detail": null, "duration": 42,
        "actor": {"user": {"name": "system:policy-sync", "type_id": 3}},
        "unmapped": {"target": "service:policy-sync", "tables_processed": 12, "subjects_affected": 2, "publish_failures": 0,
                     "revision_before": "r1", "revision_after": "r2"},
        "resources": [{"name": "analyst", "type": "subject"}, {"name": "été\n", "type": "subject"}],
    });
    assert_eq!(event, want);
}

#[test]
fn a_manual_run_carries_its_admin_and_its_failure() {
    let mut event = run("e2", &[]);
    let What::PolicyRun(run) = &mut event.what else { unreachable!() };
    run.actor = Actor::Admin { name: "alice".into(), subject: "0b1c".into() };
    run.outcome =
        Outcome::Failure { cause: "conflict".into(), message: "a second writer edits the document".into() };
    let line = lines(&event, Style { run_class: RunClass::EntityManagement }).concat();
    let json: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(json["actor"]["user"], json!({"name": "alice", "uid": "0b1c", "type_id": 2}));
    assert_eq!(
        (&json["class_uid"], &json["activity_id"], &json["type_uid"]),
        (&json!(3004), &json!(3), &json!(300_403))
    );
    assert_eq!((&json["status_id"], &json["status_detail"]), (&json!(2), &json!("conflict")));
    assert_eq!(json["message"], "policy sync: a second writer edits the document");
}

#[test]
fn a_refusal_names_end_user_and_engine_and_no_literal() {
    let line = lines(&refusal("e3", 7), STYLE).concat();
    let json: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(json["actor"]["user"], json!({"name": "alice", "account": {"name": "trino"}}));
    assert_eq!(
        (&json["type_uid"], &json["disposition_id"], &json["count"]),
        (&json!(600_504), &json!(2), &json!(7))
    );
    assert_eq!(json["status_code"], "25006");
    assert_eq!(json["unmapped"]["query_id"], "20261123_101010_00001_abcde");
}

#[test]
fn long_lists_are_several_lines_of_one_correlation() {
    let names: Vec<String> = (0..20_000).map(|at| format!("subject \"{at}\" of a long name")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let lines = lines(&run("e4", &names), STYLE);
    assert!(lines.len() > 3);
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        assert!(line.len() < LINE_LIMIT, "{} bytes", line.len());
        let json: Value = serde_json::from_str(line).unwrap();
        assert_eq!(json["metadata"]["correlation_uid"], "e4");
        assert_eq!(json["metadata"]["uid"], format!("e4-{at}"));
        let part = json["resources"].as_array().unwrap();
        found.extend(part.iter().map(|resource| resource["name"].as_str().unwrap().to_owned()));
    }
    assert_eq!(found, names);
}

const ROOMY: Bounds = Bounds { limit: 1 << 20, reserve: 1 << 16 };

fn spool(folder: &tempfile::TempDir, bounds: Bounds) -> Spool {
    Spool::open(&folder.path().join("spool.redb"), bounds).unwrap()
}

fn waiting(spool: &Spool) -> Vec<String> {
    let waiting = spool.oldest(usize::MAX, usize::MAX).unwrap();
    waiting.into_iter().map(|waiting| waiting.event.id.to_string()).collect()
}

#[test]
fn what_was_spooled_survives_and_is_delivered_once() {
    let folder = tempfile::tempdir().unwrap();
    let first = spool(&folder, ROOMY);
    first.add(&[refusal("a", 1), run("b", &[])]).unwrap();
    let intent = first.intend(&run("c", &["analyst"])).unwrap();
    first.add(&[refusal("d", 1)]).unwrap();
    drop(first);
    let second = spool(&folder, ROOMY);
    assert_eq!(waiting(&second), ["a", "b", "d"]);
    let [left] = second.intents().unwrap().try_into().unwrap();
    assert_eq!((left.number, left.event), (intent, run("c", &["analyst"])));
    // Completed, it takes its place among the others.
    second.complete(intent, &run("c2", &["analyst"])).unwrap();
    assert!(matches!(second.complete(intent, &run("c3", &[])), Err(SpoolError::NoIntent(_))));
    assert_eq!(waiting(&second), ["a", "b", "c2", "d"]);
    let two: Vec<u64> = second.oldest(2, usize::MAX).unwrap().iter().map(|waiting| waiting.number).collect();
    second.delivered(&two).unwrap();
    second.delivered(&two).unwrap();
    drop(second);
    let third = spool(&folder, ROOMY);
    assert_eq!(waiting(&third), ["c2", "d"]);
    let all: Vec<u64> = third.oldest(9, 1).unwrap().iter().map(|waiting| waiting.number).collect();
    assert_eq!(all.len(), 1, "a batch of one byte holds one event");
    let rest: Vec<u64> = third.oldest(9, 1 << 20).unwrap().iter().map(|waiting| waiting.number).collect();
    third.delivered(&rest).unwrap();
    assert_eq!(third.fill().unwrap(), Fill::default(), "nothing is left, and its room is free");
}

#[test]
fn refusals_cannot_eat_the_reserve_and_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let one = serde_json::to_vec(&refusal("0", 1)).unwrap().len() as u64;
    let policy = serde_json::to_vec(&run("0", &[])).unwrap().len() as u64;
    let bounds = Bounds { limit: 3 * one + 2 * policy, reserve: 2 * policy };
    let spool = spool(&folder, bounds);
    let refusals: Vec<Event> = (0..9).map(|id| refusal(&id.to_string(), 2)).collect();
    spool.add(&refusals).unwrap();
    assert_eq!(waiting(&spool).len(), 3);
    assert_eq!(spool.fill().unwrap().lost, Lost { refusals: 12, reads: 0 });
    // The reserve holds an event and an intent, and no more.
    spool.add(&[run("p", &[])]).unwrap();
    let intent = spool.intend(&run("i", &[])).unwrap();
    assert!(matches!(spool.intend(&run("j", &[])), Err(SpoolError::Full { .. })));
    assert!(matches!(spool.add(&[refusal("x", 1), run("k", &[])]), Err(SpoolError::Full { .. })));
    assert_eq!(
        spool.fill().unwrap().lost,
        Lost { refusals: 12, reads: 0 },
        "what failed as a whole counted nothing"
    );
    // What was intended has its room when it comes out, and counts are kept until there is room to tell them.
    spool.complete(intent, &run("i", &["one", "more"])).unwrap();
    spool.report_lost("l".into(), at()).unwrap();
    assert_eq!(waiting(&spool).len(), 5);
    let numbers: Vec<u64> =
        spool.oldest(5, usize::MAX).unwrap().iter().map(|waiting| waiting.number).collect();
    spool.delivered(&numbers).unwrap();
    spool.report_lost("l".into(), at()).unwrap();
    let [told] = spool.oldest(9, usize::MAX).unwrap().try_into().unwrap();
    assert_eq!(told.event.what, What::Lost(Lost { refusals: 12, reads: 0 }));
    assert_eq!(spool.fill().unwrap().lost, Lost::default());
}

#[test]
fn one_process_at_a_time_and_a_broken_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let _open = spool(&folder, ROOMY);
    let file = folder.path().join("spool.redb");
    assert!(matches!(Spool::open(&file, ROOMY), Err(SpoolError::InUse { .. })));
    let other = folder.path().join("other.redb");
    std::fs::write(&other, vec![7; 8192]).unwrap();
    assert!(matches!(Spool::open(&other, ROOMY), Err(SpoolError::Storage(_))));
}

#[derive(Clone, Debug)]
enum Step {
    Add(bool),
    Intend,
    Complete,
    Deliver,
    Reopen,
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    /// Against a list in memory.
    #[test]
    fn any_life_keeps_order_and_count(steps in prop::collection::vec(prop_oneof![
        any::<bool>().prop_map(Step::Add), Just(Step::Intend), Just(Step::Complete), Just(Step::Deliver), Just(Step::Reopen),
    ], 0..24)) {
        let folder = tempfile::tempdir().unwrap();
        let mut open = Some(spool(&folder, ROOMY));
        let (mut events, mut intents): (Vec<(u64, String)>, Vec<(u64, String)>) = (Vec::new(), Vec::new());
        for (at, step) in steps.into_iter().enumerate() {
            let id = at.to_string();
            let spool = open.as_ref().unwrap();
            match step {
                Step::Add(policy) => {
                    let event = if policy { run(&id, &[]) } else { refusal(&id, 1) };
                    spool.add(&[event]).unwrap();
                    let last = events.iter().chain(&intents).map(|(number, _)| *number).max().unwrap_or(0);
                    let number = spool.oldest(99, usize::MAX).unwrap().iter().find(|w| *w.event.id == *id).unwrap().number;
                    prop_assert!(number > last);
                    events.push((number, id));
                }
                Step::Intend => {
                    let number = spool.intend(&run(&id, &[])).unwrap();
                    intents.push((number, id));
                }
                Step::Complete if !intents.is_empty() => {
                    let (number, _) = intents.remove(0);
                    spool.complete(number, &run(&id, &[])).unwrap();
                    events.push((number, id));
                    events.sort();
                }
                Step::Deliver if !events.is_empty() => {
                    let (number, _) = events.remove(0);
                    spool.delivered(&[number]).unwrap();
                }
                Step::Complete | Step::Deliver => {}
                Step::Reopen => {
                    drop(open.take());
                    open = Some(self::spool(&folder, ROOMY));
                }
            }
            let spool = open.as_ref().unwrap();
            let ids = |list: &[(u64, String)]| list.iter().map(|(_, id)| id.clone()).collect::<Vec<_>>();
            prop_assert_eq!(waiting(spool), ids(&events));
            prop_assert_eq!(spool.intents().unwrap().len(), intents.len());
            prop_assert_eq!(spool.fill().unwrap().events, events.len() as u64);
        }
    }
}
