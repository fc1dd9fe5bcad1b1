//! `kill -9` between any two steps of an event's life.
//!
//! Invariant: after each of them the next process finds an intent, an event, or neither because it was delivered; never
//! half of one, and never none where a call had answered.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use fedgate::audit::deliver::{Deliverer, Pace};
use fedgate::audit::event::{Actor, Event, Outcome, PolicyRun, What};
use fedgate::audit::journal::{Journal, Note, Owner, Ruling, Settings};
use fedgate::audit::ocsf::{RunClass, Style};
use fedgate::audit::sink::{Fault, FileSink, Sink};
use fedgate::audit::spool::{Bounds, Waiting};
use fedgate::metrics::Metrics;
use fedgate::sqlstate::SqlState;

const LIMIT: Duration = Duration::from_secs(60);
const STYLE: Style = Style { run_class: RunClass::DataAccessManagement };

fn event(id: &str) -> Event {
    Event {
        id: id.into(),
        at: SystemTime::now(),
        what: What::PolicyRun(PolicyRun {
            actor: Actor::System,
            outcome: Outcome::Success,
            duration: Duration::from_millis(42),
            tables_processed: 12,
            subjects_affected: 1,
            publish_failures: 0,
            before: None,
            after: None,
            subjects: Vec::new(),
        }),
    }
}

fn start(folder: &Path) -> (Journal, Owner, Metrics) {
    let metrics = Metrics::new().unwrap();
    let settings = Settings {
        folder: folder.join("spool"),
        bounds: Bounds { limit: 1 << 20, reserve: 1 << 16 },
        window: Duration::from_secs(3600),
    };
    let (journal, owner) = Journal::start(settings, metrics.audit.clone()).unwrap();
    (journal, owner, metrics)
}

/// Says that a step is done, and waits to be killed.
fn dead_end(step: &str) -> ! {
    println!("reached {step}");
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
    std::process::exit(3)
}

/// Delivers, and is killed before anybody hears of it.
struct Unheard(FileSink);

impl Sink for Unheard {
    async fn deliver(&mut self, events: &[Waiting]) -> Result<Vec<u64>, Fault> {
        self.0.deliver(events).await.unwrap();
        dead_end("delivered")
    }

    async fn probe(&mut self) -> Result<(), Fault> {
        Ok(())
    }
}

/// The process that is killed; does nothing when it is run as a test.
#[tokio::test]
async fn victim() {
    let Ok(folder) = std::env::var("FEDGATE_TEST_FOLDER") else { return };
    let until = std::env::var("FEDGATE_TEST_UNTIL").unwrap();
    let folder = Path::new(&folder);
    let (journal, _owner, metrics) = start(folder);
    let step = |name: &str| {
        if name == until {
            dead_end(name);
        }
    };
    let intent = journal.intend(event("a")).await.unwrap();
    step("intended");
    journal.complete(intent, event("a")).await.unwrap();
    step("completed");
    journal.note(Note {
        source: "s".into(),
        client_user: "u".into(),
        end_user: None,
        query: None,
        ruling: Ruling::Refused { class: "write", sqlstate: SqlState::READ_ONLY_SQL_TRANSACTION },
        fingerprint: [1; 16],
        tables: [].into(),
        rows: None,
    });
    journal.flush().await.unwrap();
    step("noted");
    let file = FileSink::new(folder.join("audit.jsonl"), STYLE);
    let spool = folder.join("spool");
    if until == "delivered" {
        let (deliverer, _) =
            Deliverer::new(journal, Unheard(file), STYLE, &spool, Pace::default(), metrics.audit.clone());
        deliverer.run(std::future::pending()).await;
        return;
    }
    let (deliverer, _) = Deliverer::new(journal, file, STYLE, &spool, Pace::default(), metrics.audit.clone());
    deliverer.run(std::future::ready(())).await;
    dead_end("forgotten");
}

fn kill(folder: &Path, until: &str) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["victim", "--exact", "--nocapture"])
        .env("FEDGATE_TEST_FOLDER", folder)
        .env("FEDGATE_TEST_UNTIL", until)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let reached = lines.find(|line| line.as_ref().unwrap().contains(&format!("reached {until}")));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(reached.is_some(), "it never came as far as {until}");
}

/// Intents, events in the spool, and lines in the file before and after it is delivered by the next process.
async fn after(until: &str) -> (usize, usize, usize, usize) {
    let folder = tempfile::tempdir().unwrap();
    kill(folder.path(), until);
    let file = folder.path().join("audit.jsonl");
    let lines = || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let ids: Vec<String> = text
            .lines()
            .map(|line| {
                serde_json::from_str::<serde_json::Value>(line).unwrap()["metadata"]["uid"].to_string()
            })
            .collect();
        ids
    };
    let before = lines().len();
    let (journal, owner, metrics) = start(folder.path());
    let intents = journal.intents().await.unwrap().len();
    let events = journal.oldest(usize::MAX, usize::MAX).await.unwrap().len();
    let sink = FileSink::new(file.clone(), STYLE);
    let (deliverer, _) = Deliverer::new(
        journal,
        sink,
        STYLE,
        &folder.path().join("spool"),
        Pace::default(),
        metrics.audit.clone(),
    );
    deliverer.run(std::future::ready(())).await;
    assert!(owner.end(LIMIT).await);
    let ids = lines();
    let distinct: std::collections::BTreeSet<&String> = ids.iter().collect();
    assert_eq!(distinct.len(), events.max(before), "doubles carry the same id: {ids:?}");
    (intents, events, before, ids.len())
}

#[tokio::test]
async fn each_step_leaves_an_intent_an_event_or_a_line() {
    assert_eq!(after("intended").await, (1, 0, 0, 0));
    assert_eq!(after("completed").await, (0, 1, 0, 1));
    assert_eq!(after("noted").await, (0, 2, 0, 2));
    // At least once: twice here, under the same ids.
    assert_eq!(after("delivered").await, (0, 2, 2, 4));
    assert_eq!(after("forgotten").await, (0, 0, 2, 2));
}
