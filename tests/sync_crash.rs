//! `kill -9` at every step of a cycle, and at any moment of one.
//!
//! Invariant: afterwards the document is the old one or the new one, whole; the next start knows which of the two it
//! is, and says so in one event for the run that was killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use fedgate::audit::event::{Actor, Event, Outcome, What};
use fedgate::audit::journal::{Journal, Settings};
use fedgate::audit::spool::{Bounds, Spool, SpoolError, Waiting};
use fedgate::document::Document;
use fedgate::metrics::Metrics;
use fedgate::sync::catalog::file::FileCatalog;
use fedgate::sync::catalog::{Catalog, CatalogError, Hint, Picture};
use fedgate::sync::handle::{Ask, Request, SyncHandle};
use fedgate::sync::history::{History, State};
use fedgate::sync::planner::Rules;
use fedgate::sync::publisher::{FilePublisher, PublishError, Published, Publisher, Version};
use fedgate::sync::{Loop, Parts, Schedule, Trail};
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const BOUNDS: Bounds = Bounds { limit: 4 << 20, reserve: 1 << 20 };

/// Counts the steps of a cycle, and stops for good at one of them.
#[derive(Clone)]
struct Steps {
    taken: Arc<AtomicUsize>,
    last: usize,
}

impl Steps {
    fn step(&self, what: &str) {
        let number = self.taken.fetch_add(1, Ordering::Relaxed) + 1;
        if number == self.last {
            println!("reached {what}");
            // Until it is killed.
            let mut line = String::new();
            let _ = std::io::stdin().read_line(&mut line);
            std::process::exit(3);
        }
    }
}

struct Stepped<T>(T, Steps);

impl<C: Catalog + Sync> Catalog for Stepped<C> {
    async fn read(&self, before: usize) -> Result<Picture, CatalogError> {
        self.1.step("before the catalog is read");
        self.0.read(before).await
    }

    async fn refresh(&self, last: &Picture, hint: &Hint) -> Result<Picture, CatalogError> {
        self.0.refresh(last, hint).await
    }
}

impl<P: Publisher + Sync> Publisher for Stepped<P> {
    async fn read(&self) -> Result<Published, PublishError> {
        self.1.step("before the document is read");
        let read = self.0.read().await;
        self.1.step("after the document was read");
        read
    }

    async fn publish(&self, expected: &Version, document: &Document) -> Result<Version, PublishError> {
        self.1.step("before it is published");
        let published = self.0.publish(expected, document).await;
        self.1.step("after it was published");
        published
    }
}

impl<T: Trail + Sync> Trail for Stepped<T> {
    async fn intend(&self, event: Event) -> Result<u64, SpoolError> {
        self.1.step("before the intent");
        let intent = self.0.intend(event).await;
        self.1.step("after the intent");
        intent
    }

    async fn complete(&self, intent: u64, event: Event) -> Result<(), SpoolError> {
        self.1.step("before the event");
        let completed = self.0.complete(intent, event).await;
        self.1.step("after the event");
        completed
    }

    async fn record(&self, event: Event) -> Result<(), SpoolError> {
        self.0.record(event).await
    }

    async fn intents(&self) -> Result<Vec<Waiting>, SpoolError> {
        self.0.intents().await
    }
}

fn catalog(columns: &[&str]) -> String {
    let columns: String = columns.iter().map(|name| format!("        {name}: PII.Sensitive\n")).collect();
    format!("catalogs:\n  c:\n    s:\n      t:\n        id:\n{columns}")
}

fn document() -> Value {
    let by_hand = json!({"catalog": "c", "schema": "s", "table": "t", "column": "phone", "mask": "null"});
    json!({
        "version": 1,
        "mask_library": {"sha256": {"strength": 60}, "null": {"strength": 100}},
        "subjects": {"analyst": {"kind": "role", "scopes": [{"catalog": "c", "schema": "s", "table": "*"}],
            "masks": [by_hand]}},
    })
}

/// One run over files, as the process that is killed does it and as the next one does.
async fn run(folder: &Path, last_step: usize) {
    let steps = Steps { taken: Arc::default(), last: last_step };
    let settings = Settings { folder: folder.join("spool"), bounds: BOUNDS, window: Duration::from_secs(1) };
    let metrics = Metrics::new().unwrap();
    let (journal, owner) = Journal::start(settings, metrics.audit.clone()).unwrap();
    let parts = Parts {
        catalog: Stepped(FileCatalog::new(folder.join("catalog.yaml")), steps.clone()),
        publisher: Stepped(FilePublisher::new(folder.join("policy.json")), steps.clone()),
        trail: Stepped(journal, steps.clone()),
        history: History::open(&folder.join("history"), 100).unwrap(),
        rules: Rules { tag_to_mask: [("PII.Sensitive".into(), "sha256".into())].into(), ..Rules::default() },
        max_removal: 1.0,
        removal_delay: Duration::ZERO,
        clock: Arc::new(SystemTime::now),
        random: Box::new(rand::rngs::StdRng::seed_from_u64(1)),
    };
    let (_handle, requests, status) = SyncHandle::new(true);
    let schedule = Schedule { interval: Duration::from_secs(1800), debounce: Duration::ZERO };
    let stop = CancellationToken::new();
    let mut it = Loop::new(parts, schedule, requests, status, metrics.sync.clone(), stop).unwrap();
    let actor = Actor::Admin { name: "steward".into(), subject: "s".into() };
    let (reply, _answer) = tokio::sync::oneshot::channel();
    let ask = Ask { actor, dry_run: false, approve: None };
    it.once(Request::Run { ask, reply }).await.unwrap();
    drop(it);
    assert!(owner.end(Duration::from_secs(10)).await);
    println!("done after {} steps", steps.taken.load(Ordering::Relaxed));
}

/// The process that is killed; does nothing when it is run as a test.
#[tokio::test]
async fn victim() {
    let Ok(folder) = std::env::var("FEDGATE_TEST_FOLDER") else { return };
    let last = std::env::var("FEDGATE_TEST_STEP").unwrap().parse().unwrap();
    run(Path::new(&folder), last).await;
}

fn spawn(folder: &Path, step: usize) -> (Child, BufReader<std::process::ChildStdout>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "victim", "--nocapture"])
        .env("FEDGATE_TEST_FOLDER", folder)
        .env("FEDGATE_TEST_STEP", step.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    (child, out)
}

/// What the victim says first of these; `None`: it ended without.
fn heard(out: &mut impl BufRead, words: &[&str]) -> Option<String> {
    out.lines().map_while(Result::ok).find(|line| words.iter().any(|word| line.starts_with(word)))
}

fn masks(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(folder.join("policy.json")).unwrap();
    Document::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}: {text}"));
    let json: Value = serde_json::from_str(&text).unwrap();
    let entries = json["subjects"]["analyst"]["masks"].as_array().unwrap().clone();
    let line =
        |entry: &Value| format!("{} {}", entry["column"].as_str().unwrap(), entry["mask"].as_str().unwrap());
    entries.iter().map(line).collect()
}

fn fill(folder: &Path) {
    std::fs::write(folder.join("policy.json"), format!("{:#}\n", document())).unwrap();
    std::fs::write(folder.join("catalog.yaml"), catalog(&["email"])).unwrap();
}

/// Everything that must hold once the next process has settled what the killed one left.
async fn settled(folder: &Path, note: &str) {
    let before = masks(folder);
    let was_published = before.contains(&"email sha256".to_owned());
    assert!(
        was_published || before == ["phone null"],
        "{note}: the document is neither the old one nor the new one: {before:?}"
    );
    run(folder, 0).await;
    assert_eq!(masks(folder), ["phone null", "email sha256"], "{note}");
    let spool = Spool::in_folder(&folder.join("spool"), BOUNDS).unwrap();
    assert_eq!(spool.intents().unwrap(), [], "{note}: an intent was left open");
    let outcomes: Vec<Outcome> = spool
        .oldest(100, usize::MAX)
        .unwrap()
        .into_iter()
        .map(|waiting| match waiting.event.what {
            What::PolicyRun(run) => run.outcome,
            other => panic!("{note}: {other:?}"),
        })
        .collect();
    // At most one of the killed run, which says what became of it, and one of the run after it.
    match outcomes.as_slice() {
        [Outcome::Success] => assert!(!was_published, "{note}: a change without its event"),
        [Outcome::Interrupted { published }, Outcome::Success] => {
            assert_eq!(*published, was_published, "{note}: the event says something else");
        }
        [Outcome::Success, Outcome::Success] => assert!(was_published, "{note}: {outcomes:?}"),
        other => panic!("{note}: {other:?}"),
    }
    let history = History::open(&folder.join("history"), 100).unwrap();
    let list = history.list(100);
    assert!(list.iter().all(|revision| revision.state != State::Pending), "{note}: {list:#?}");
    let newest = list.iter().find(|revision| revision.state == State::Published).unwrap();
    let in_force = std::fs::read_to_string(folder.join("policy.json")).unwrap();
    assert_eq!(history.document(newest.number).unwrap().to_text(), in_force, "{note}");
    // The one before the loop's first is kept as well.
    let first = list.last().unwrap();
    assert_eq!(history.document(first.number).unwrap().to_text(), format!("{:#}\n", document()), "{note}");
}

#[tokio::test]
async fn killed_at_every_step() {
    let mut walked = Vec::new();
    for step in 1.. {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path());
        let (mut child, mut out) = spawn(folder.path(), step);
        let said = heard(&mut out, &["reached", "done"]).expect("the victim says where it is");
        child.kill().unwrap();
        child.wait().unwrap();
        settled(folder.path(), &said).await;
        if said.starts_with("done") {
            break;
        }
        walked.push(said);
    }
    assert_eq!(
        walked,
        [
            "reached before the document is read",
            "reached after the document was read",
            "reached before the catalog is read",
            "reached before the document is read",
            "reached after the document was read",
            "reached before the intent",
            "reached after the intent",
            "reached before it is published",
            "reached after it was published",
            "reached before the event",
            "reached after the event",
        ]
    );
}

/// Between the steps, too: within the writing of a file, say.
#[tokio::test]
async fn killed_at_any_moment() {
    let mut random = rand::rngs::StdRng::from_os_rng();
    let rounds = std::env::var("CRASH_ROUNDS").map_or(25, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let folder = tempfile::tempdir().unwrap();
        fill(folder.path());
        let (mut child, mut out) = spawn(folder.path(), 0);
        // The test's own frame is there, so its work begins now.
        heard(&mut out, &["running"]);
        let moment = Duration::from_micros(random.random_range(0..60_000));
        std::thread::sleep(moment);
        child.kill().unwrap();
        child.wait().unwrap();
        settled(folder.path(), &format!("round {round}, after {moment:?}")).await;
    }
}
