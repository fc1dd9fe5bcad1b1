//! Delivery to VictoriaLogs, and everything that it and the way there may do to events.
//!
//! Invariant: whatever goes wrong, in the end each event is there, or stands in the file of what was set aside.

#[path = "support/victorialogs.rs"]
#[allow(dead_code, reason = "not every test crate uses all of it")]
mod victorialogs;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fedgate::audit::deliver::{Deliverer, Delivery, Pace};
use fedgate::audit::event::{Actor, Event, Outcome, PolicyRun, What};
use fedgate::audit::journal::{Journal, Owner, Settings};
use fedgate::audit::ocsf::{RunClass, Style};
use fedgate::audit::sink::{Sink, Token, VictoriaLogs as Client, VictoriaLogsSettings};
use fedgate::audit::spool::Bounds;
use fedgate::metrics::{AuditFailure, Metrics};
use tokio::sync::{oneshot, watch};
use victorialogs::{Fault, LINE, QueryFault, VictoriaLogs};

const STYLE: Style = Style { run_class: RunClass::DataAccessManagement };
const LIMIT: Duration = Duration::from_secs(60);

fn event(id: &str) -> Event {
    run(id, &["analyst"])
}

fn run(id: &str, subjects: &[&str]) -> Event {
    Event {
        id: id.into(),
        at: SystemTime::now(),
        what: What::PolicyRun(PolicyRun {
            actor: Actor::System,
            outcome: Outcome::Success,
            duration: Duration::from_millis(42),
            tables_processed: 12,
            subjects_affected: subjects.len() as u64,
            publish_failures: 0,
            before: None,
            after: Some("r2".into()),
            subjects: subjects.iter().map(|subject| Arc::from(*subject)).collect(),
        }),
    }
}

fn client(logs: &VictoriaLogs) -> VictoriaLogsSettings {
    VictoriaLogsSettings {
        url: logs.url(),
        account_id: 0,
        project_id: 0,
        token: None,
        ca: None,
        timeout: Duration::from_secs(1),
    }
}

struct Trail {
    journal: Journal,
    owner: Owner,
    delivery: watch::Receiver<Delivery>,
    stop: oneshot::Sender<()>,
    task: tokio::task::JoinHandle<()>,
    metrics: Metrics,
    folder: tempfile::TempDir,
}

impl Trail {
    async fn start(settings: VictoriaLogsSettings, events: &[Event]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let metrics = Metrics::new().unwrap();
        let spool = Settings {
            folder: folder.path().to_owned(),
            bounds: Bounds { limit: 64 << 20, reserve: 1 << 20 },
            window: Duration::from_secs(3600),
        };
        let (journal, owner) = Journal::start(spool, metrics.audit.clone()).unwrap();
        for event in events {
            journal.record(event.clone()).await.unwrap();
        }
        let pace = Pace { first: Duration::from_millis(10), longest: Duration::from_millis(50) };
        let sink = Client::new(settings, STYLE).unwrap();
        let (deliverer, delivery) =
            Deliverer::new(journal.clone(), sink, STYLE, folder.path(), pace, metrics.audit.clone());
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(deliverer.run(async move {
            let _ = stopped.await;
        }));
        Self { journal, owner, delivery, stop, task, metrics, folder }
    }

    /// Until nothing waits any more.
    async fn empty(&self) {
        let mut state = self.journal.state();
        let empty =
            tokio::time::timeout(Duration::from_secs(15), state.wait_for(|state| state.fill.events == 0))
                .await
                .is_ok();
        assert!(empty, "left: {:?}, {:?}", state.borrow(), self.delivery.borrow());
    }

    fn set_aside(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("set-aside.jsonl")).unwrap_or_default();
        text.lines().map(|line| victorialogs::uid(&serde_json::from_str(line).unwrap())).collect()
    }

    fn failures(&self, reason: &str) -> u64 {
        let start = format!("fedgate_audit_delivery_failures_total{{reason=\"{reason}\"}} ");
        let page = self.metrics.render();
        page.lines().find_map(|line| line.strip_prefix(&start)).unwrap().parse().unwrap()
    }

    async fn end(self) {
        let _ = self.stop.send(());
        self.task.await.unwrap();
        assert!(self.owner.end(LIMIT).await);
    }
}

fn ids(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("event-{number:04}")).collect()
}

fn events(ids: &[String]) -> Vec<Event> {
    ids.iter().map(|id| event(id)).collect()
}

#[tokio::test]
async fn events_arrive_once_in_order_under_their_tenant_and_are_forgotten() {
    let logs = VictoriaLogs::start().await;
    logs.stand().token = Some("let me in".to_owned());
    logs.stand().delay = Duration::from_millis(300);
    let ids = ids(1300);
    let token = Token::new(|| Ok("let me in\n".to_owned()));
    let settings = VictoriaLogsSettings {
        account_id: 7,
        project_id: 9,
        token: Some(token),
        timeout: Duration::from_secs(30),
        url: format!("{}/", logs.url()),
        ..client(&logs)
    };
    let trail = Trail::start(settings, &events(&ids)).await;
    trail.empty().await;
    let lines = logs.lines_of((7, 9));
    let arrived: Vec<String> = lines.iter().map(victorialogs::uid).collect();
    assert_eq!(arrived, ids);
    assert_eq!(lines[0]["class_uid"], 3007);
    let mut watched = trail.delivery.clone();
    let delivery = watched.wait_for(|delivery| delivery.delivered >= 1300).await.unwrap().clone();
    assert_eq!((delivery.delivered, delivery.failures, delivery.fault), (1300, 0, None));
    assert_eq!(trail.metrics.audit.delivered.get(), 1300);
    assert_eq!(logs.stand().encoded, 0, "nothing is compressed");
    // What comes later goes at once.
    trail.journal.record(event("later")).await.unwrap();
    trail.empty().await;
    assert_eq!(logs.lines_of((7, 9)).len(), 1301);
    trail.end().await;
}

#[tokio::test]
async fn no_answer_and_no_room_lose_nothing() {
    let logs = VictoriaLogs::start().await;
    logs.stand().insert_faults.extend([
        Fault::Status(429, Some(1)),
        Fault::Status(503, None),
        Fault::Status(500, None),
        Fault::Slow(Duration::from_secs(3)),
        Fault::Status(302, None),
    ]);
    let ids = ids(5);
    let trail = Trail::start(client(&logs), &events(&ids)).await;
    trail.empty().await;
    assert_eq!(logs.uids(), ids);
    let failures = ["busy", "server", "unreachable", "rejected"].map(|reason| trail.failures(reason));
    assert_eq!(failures[..2], [1, 2]);
    assert!(failures[2] >= 1 && failures[3] >= 1, "{failures:?}");
    assert_eq!(trail.set_aside(), Vec::<String>::new());
    trail.end().await;
}

#[tokio::test]
async fn what_was_taken_before_the_answer_was_cut_off_is_not_sent_again() {
    let logs = VictoriaLogs::start().await;
    logs.stand().insert_faults.push_back(Fault::CutOff);
    let ids = ids(20);
    let trail = Trail::start(client(&logs), &events(&ids)).await;
    trail.empty().await;
    assert_eq!(logs.lines().len(), 20, "found by their ids");
    assert_eq!((logs.stand().inserts, trail.failures("unreachable")), (1, 1));
    trail.end().await;
}

#[tokio::test]
async fn a_200_that_lost_them_all_is_not_believed() {
    let logs = VictoriaLogs::start().await;
    logs.stand().insert_faults.extend([Fault::Lose, Fault::Lose]);
    let ids = ids(3);
    let trail = Trail::start(client(&logs), &events(&ids)).await;
    trail.empty().await;
    let mut uids = logs.uids();
    uids.sort();
    assert_eq!(uids, ids);
    assert_eq!(trail.failures("missing"), 2);
    trail.end().await;
}

#[tokio::test]
async fn an_answer_to_a_query_that_lies_is_cut_off_or_is_no_json_loses_nothing() {
    let logs = VictoriaLogs::start().await;
    logs.stand().query_faults.extend([
        QueryFault::Noise,
        QueryFault::CutOff,
        QueryFault::Deny,
        QueryFault::Status(503),
        QueryFault::Status(400),
    ]);
    logs.stand().delay = Duration::from_millis(400);
    let ids = ids(40);
    let trail = Trail::start(client(&logs), &events(&ids)).await;
    trail.empty().await;
    assert_eq!(logs.uids(), ids);
    trail.end().await;
}

#[tokio::test]
async fn an_event_that_is_refused_is_found_by_halving_and_set_aside() {
    let logs = VictoriaLogs::start().await;
    let ids = ids(100);
    logs.stand().refused = Some(ids[37].clone());
    let trail = Trail::start(client(&logs), &events(&ids)).await;
    trail.empty().await;
    let mut uids = logs.uids();
    uids.sort();
    let others: Vec<String> = ids.iter().filter(|id| **id != ids[37]).cloned().collect();
    assert_eq!(uids, others);
    assert_eq!(trail.set_aside(), [ids[37].clone()]);
    assert_eq!((trail.metrics.audit.set_aside.get(), trail.delivery.borrow().set_aside), (1, 1));
    trail.end().await;
}

#[tokio::test]
async fn an_event_that_is_lost_with_all_behind_it_is_set_aside_and_they_arrive() {
    let logs = VictoriaLogs::start().await;
    let ids = ids(12);
    logs.stand().poison = Some(ids[3].clone());
    let trail = Trail::start(client(&logs), &events(&ids)).await;
    trail.empty().await;
    assert_eq!(logs.uids().len(), 11);
    assert_eq!(trail.set_aside(), [ids[3].clone()]);
    trail.end().await;
}

/// As when the sink was away for longer than it keeps what is old.
#[tokio::test]
async fn what_is_older_than_the_sink_keeps_does_not_hold_up_what_is_new() {
    let logs = VictoriaLogs::start().await;
    let ids = ids(6);
    let mut events = events(&ids);
    let day = Duration::from_secs(24 * 3600);
    for event in &mut events[..3] {
        event.at -= 30 * day;
    }
    let trail = Trail::start(client(&logs), &events).await;
    trail.empty().await;
    let mut uids = logs.uids();
    uids.sort();
    assert_eq!(uids, ids[3..]);
    let mut aside = trail.set_aside();
    aside.sort();
    assert_eq!(aside, ids[..3]);
    trail.end().await;
}

/// A sink that takes nothing at all is no reason to set anything aside.
#[tokio::test]
async fn a_sink_that_refuses_everything_loses_nothing() {
    let logs = VictoriaLogs::start().await;
    logs.stand().token = Some("another one".to_owned());
    let ids = ids(8);
    let trail = Trail::start(client(&logs), &events(&ids)).await;
    let mut delivery = trail.delivery.clone();
    let failed = delivery.wait_for(|delivery| delivery.failures > 40);
    tokio::time::timeout(LIMIT, failed).await.unwrap().unwrap();
    assert_eq!(trail.journal.state().borrow().fill.events, 8);
    assert!(trail.delivery.borrow().fault.as_ref().unwrap().contains("401"));
    logs.stand().token = None;
    trail.empty().await;
    let mut uids = logs.uids();
    uids.sort();
    assert_eq!((uids, trail.set_aside()), (ids, Vec::new()));
    assert_eq!(trail.delivery.borrow().fault, None);
    trail.end().await;
}

#[tokio::test]
async fn the_longest_event_fits() {
    let logs = VictoriaLogs::start().await;
    let names: Vec<String> =
        (0..12_000).map(|at| format!("subject \"{at}\" {}", "é\u{1}".repeat(20))).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let long = run("long", &names);
    let trail = Trail::start(VictoriaLogsSettings { timeout: LIMIT, ..client(&logs) }, &[long]).await;
    trail.empty().await;
    let lines = logs.lines();
    assert!(lines.len() > 3);
    let resources: usize = lines.iter().map(|line| line["resources"].as_array().unwrap().len()).sum();
    assert_eq!(resources, names.len());
    assert!(lines.iter().all(|line| line.to_string().len() < LINE));
    let wanting = {
        let stand = logs.stand();
        (stand.too_long, stand.too_wide)
    };
    assert_eq!(wanting, (0, 0));
    trail.end().await;
}

#[tokio::test]
async fn a_probe_says_whether_it_answers_and_leaves_nothing() {
    let logs = VictoriaLogs::start().await;
    assert_eq!(Client::new(client(&logs), STYLE).unwrap().probe().await, Ok(()));
    assert_eq!(logs.stand().inserts, 0);
    logs.stand().token = Some("x".to_owned());
    let fault = Client::new(client(&logs), STYLE).unwrap().probe().await.unwrap_err();
    assert_eq!(fault.reason, AuditFailure::Rejected);
    let settings = client(&logs);
    drop(logs);
    let fault = Client::new(settings, STYLE).unwrap().probe().await.unwrap_err();
    assert_eq!(fault.reason, AuditFailure::Unreachable);
}
