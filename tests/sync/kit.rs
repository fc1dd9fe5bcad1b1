//! A loop over stand-ins that a test can steer: a catalog that is a text, a trail in memory, a document on a real
//! disk, and a clock that goes with tokio's.
//!
//! Invariant: each stand-in keeps to its trait's contract; what it is told to do wrong, the real part can do, too.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use fedgate::audit::event::{Actor, Event, Outcome, PolicyRun, What};
use fedgate::audit::spool::{SpoolError, Waiting};
use fedgate::document::Document;
use fedgate::metrics::Metrics;
use fedgate::sync::catalog::{Catalog, CatalogError, Hint, Picture, file};
use fedgate::sync::handle::{Ask, AskError, Report, SyncHandle, SyncStatus};
use fedgate::sync::history::History;
use fedgate::sync::lease::Standing;
use fedgate::sync::planner::Rules;
use fedgate::sync::publisher::{FilePublisher, PublishError, Published, Publisher, Version};
use fedgate::sync::{Loop, Parts, Schedule, Trail};
use rand::SeedableRng;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

pub const INTERVAL: Duration = Duration::from_secs(1800);

/// A catalog as a text of the file catalog.
#[derive(Clone)]
pub struct Shelf(Arc<Mutex<ShelfState>>);

struct ShelfState {
    yaml: String,
    errors: Vec<CatalogError>,
    panics: bool,
    whole: usize,
    hints: Vec<Hint>,
    gate: Option<Arc<Semaphore>>,
}

impl Shelf {
    pub fn new(yaml: &str) -> Self {
        Self(Arc::new(Mutex::new(ShelfState {
            yaml: yaml.to_owned(),
            errors: Vec::new(),
            panics: false,
            whole: 0,
            hints: Vec::new(),
            gate: None,
        })))
    }

    pub fn set(&self, yaml: &str) {
        self.0.lock().unwrap().yaml = yaml.to_owned();
    }

    /// The next reading ends with this.
    pub fn fail(&self, error: CatalogError) {
        self.0.lock().unwrap().errors.push(error);
    }

    pub fn panic_once(&self) {
        self.0.lock().unwrap().panics = true;
    }

    /// Readings wait until the test lets them go, one a permit.
    pub fn gate(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        self.0.lock().unwrap().gate = Some(Arc::clone(&gate));
        gate
    }

    pub fn whole_readings(&self) -> usize {
        self.0.lock().unwrap().whole
    }

    pub fn hints(&self) -> Vec<Hint> {
        self.0.lock().unwrap().hints.clone()
    }

    async fn answer(&self) -> Result<Picture, CatalogError> {
        let gate = self.0.lock().unwrap().gate.clone();
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        let mut state = self.0.lock().unwrap();
        if std::mem::take(&mut state.panics) {
            drop(state);
            panic!("a defect, for a test");
        }
        match state.errors.pop() {
            Some(error) => Err(error),
            None => Ok(file::parse(&state.yaml).unwrap()),
        }
    }
}

impl Catalog for Shelf {
    async fn read(&self, before: usize) -> Result<Picture, CatalogError> {
        self.0.lock().unwrap().whole += 1;
        let picture = self.answer().await?;
        if picture.tables.is_empty() && before > 0 {
            return Err(CatalogError::NotWhole(format!("no table at all where there were {before}")));
        }
        Ok(picture)
    }

    async fn refresh(&self, _: &Picture, hint: &Hint) -> Result<Picture, CatalogError> {
        self.0.lock().unwrap().hints.push(hint.clone());
        self.answer().await
    }
}

/// A trail in memory.
#[derive(Clone, Default)]
pub struct Book(Arc<Mutex<BookState>>);

#[derive(Default)]
struct BookState {
    next: u64,
    intents: BTreeMap<u64, Event>,
    events: Vec<Event>,
    full: bool,
}

impl Book {
    /// From now on there is no room.
    pub fn fill_up(&self) {
        self.0.lock().unwrap().full = true;
    }

    pub fn runs(&self) -> Vec<PolicyRun> {
        let state = self.0.lock().unwrap();
        let run = |event: &Event| match &event.what {
            What::PolicyRun(run) => Some(run.clone()),
            _ => None,
        };
        state.events.iter().filter_map(run).collect()
    }

    pub fn open_intents(&self) -> usize {
        self.0.lock().unwrap().intents.len()
    }
}

impl Trail for Book {
    async fn intend(&self, event: Event) -> Result<u64, SpoolError> {
        let mut state = self.0.lock().unwrap();
        if state.full {
            return Err(SpoolError::Full { used: 1, limit: 1 });
        }
        state.next += 1;
        let number = state.next;
        state.intents.insert(number, event);
        Ok(number)
    }

    async fn complete(&self, intent: u64, event: Event) -> Result<(), SpoolError> {
        let mut state = self.0.lock().unwrap();
        state.intents.remove(&intent).ok_or(SpoolError::NoIntent(intent))?;
        state.events.push(event);
        Ok(())
    }

    async fn record(&self, event: Event) -> Result<(), SpoolError> {
        let mut state = self.0.lock().unwrap();
        if state.full {
            return Err(SpoolError::Full { used: 1, limit: 1 });
        }
        state.events.push(event);
        Ok(())
    }

    async fn intents(&self) -> Result<Vec<Waiting>, SpoolError> {
        let state = self.0.lock().unwrap();
        let waiting = |(number, event): (&u64, &Event)| Waiting { number: *number, event: event.clone() };
        Ok(state.intents.iter().map(waiting).collect())
    }
}

/// The file publisher, and others who write to the same file at the worst moment.
#[derive(Clone)]
pub struct Crowded {
    pub file: FilePublisher,
    path: PathBuf,
    /// How many more publishes somebody else comes before.
    others: Arc<AtomicUsize>,
    publishes: Arc<AtomicUsize>,
}

impl Publisher for Crowded {
    async fn read(&self) -> Result<Published, PublishError> {
        self.file.read().await
    }

    async fn publish(&self, expected: &Version, document: &Document) -> Result<Version, PublishError> {
        self.publishes.fetch_add(1, Ordering::Relaxed);
        let left = self.others.load(Ordering::Relaxed);
        if left > 0 {
            self.others.store(left - 1, Ordering::Relaxed);
            let mut json: Value =
                serde_json::from_str(&std::fs::read_to_string(&self.path).unwrap()).unwrap();
            json["edited"] = left.into();
            std::fs::write(&self.path, format!("{json:#}\n")).unwrap();
        }
        self.file.publish(expected, document).await
    }
}

/// Everything of one loop.
pub struct Bench {
    pub folder: tempfile::TempDir,
    pub shelf: Shelf,
    pub book: Book,
    pub rules: Rules,
    pub max_removal: f64,
    pub removal_delay: Duration,
    pub history_limit: usize,
    pub metrics: Metrics,
    publisher: Crowded,
    /// Where tokio's clock stood when the bench was made.
    began: (tokio::time::Instant, SystemTime),
}

pub fn library() -> Value {
    json!({
        "null": {"strength": 100}, "redact": {"strength": 80}, "sha256": {"strength": 60}, "md5": {"strength": 50},
        "partial_last4": {"strength": 20}, "identity": {"strength": 0},
    })
}

pub fn analyst() -> Value {
    json!({"kind": "role", "scopes": [{"catalog": "climscore", "schema": "public", "table": "*"}]})
}

/// `customers` with these columns, each with its tag.
pub fn customers(columns: &[(&str, &str)]) -> String {
    let columns: String = columns.iter().map(|(name, tag)| format!("        {name}: {tag}\n")).collect();
    format!("catalogs:\n  climscore:\n    public:\n      customers:\n{columns}")
}

impl Bench {
    pub fn new(subjects: Value, catalog: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("policy.json");
        let document =
            json!({"version": 1, "mask_library": library(), "subjects": subjects, "x-owner": 1.50});
        let text = format!("{document:#}\n").replace("\"x-owner\": 1.5", "\"x-owner\": 1.50");
        std::fs::write(&path, text).unwrap();
        let map = [
            ("PII.Sensitive", "sha256"),
            ("PII.NonSensitive", "identity"),
            ("PCI.PAN", "partial_last4"),
            ("Compliance.HealthRecord", "null"),
            ("PII.Weak", "md5"),
            ("PII.Hidden", "redact"),
        ];
        let rules = Rules {
            tag_to_mask: map.map(|(tag, mask)| (tag.into(), mask.into())).into(),
            admin_subjects: ["akko-admin".into(), "AD_admin".into()].into(),
            enforce_suggested: false,
        };
        let file = FilePublisher::new(path.clone());
        Self {
            folder,
            shelf: Shelf::new(catalog),
            book: Book::default(),
            rules,
            max_removal: 1.0,
            removal_delay: Duration::ZERO,
            history_limit: 100,
            metrics: Metrics::new().unwrap(),
            publisher: Crowded { file, path, others: Arc::default(), publishes: Arc::default() },
            began: (tokio::time::Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)),
        }
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("policy.json")
    }

    pub fn history(&self) -> History {
        History::open(&self.folder.path().join("history"), self.history_limit).unwrap()
    }

    /// Before each of the next publishes somebody else changes the document.
    pub fn crowd(&self, publishes: usize) {
        self.publisher.others.store(publishes, Ordering::Relaxed);
    }

    pub fn publishes(&self) -> usize {
        self.publisher.publishes.load(Ordering::Relaxed)
    }

    pub fn parts(&self) -> Parts<Shelf, Crowded, Book> {
        let (began, wall) = self.began;
        Parts {
            catalog: self.shelf.clone(),
            publisher: self.publisher.clone(),
            trail: self.book.clone(),
            history: self.history(),
            rules: self.rules.clone(),
            max_removal: self.max_removal,
            removal_delay: self.removal_delay,
            clock: Arc::new(move || wall + began.elapsed()),
            random: Box::new(rand::rngs::StdRng::seed_from_u64(7)),
        }
    }

    /// A loop that runs until it is dropped.
    pub fn start(&self) -> Running {
        self.start_as(|it| it)
    }

    /// A loop that leaves the timer's turns to whoever holds the Lease.
    pub fn start_beside(&self, standing: watch::Receiver<Standing>) -> Running {
        self.start_as(|it| it.with_standing(standing))
    }

    fn start_as(
        &self,
        change: impl FnOnce(Loop<Shelf, Crowded, Book>) -> Loop<Shelf, Crowded, Book>,
    ) -> Running {
        let (handle, requests, status) = SyncHandle::new(true);
        let stop = CancellationToken::new();
        let schedule = Schedule { interval: INTERVAL, debounce: Duration::from_millis(100) };
        let metrics = self.metrics.sync.clone();
        let it = Loop::new(self.parts(), schedule, requests, status, metrics, stop.clone()).unwrap();
        Running { handle, stop, task: tokio::spawn(change(it).run()) }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&std::fs::read_to_string(self.path()).unwrap()).unwrap()
    }

    pub fn edit(&self, change: impl FnOnce(&mut Value)) {
        let mut json = self.json();
        change(&mut json);
        std::fs::write(self.path(), format!("{json:#}\n")).unwrap();
    }

    /// `column mask[ source]` of a subject, in the document's order.
    pub fn masks(&self, subject: &str) -> Vec<String> {
        let json = self.json();
        let entries = json["subjects"][subject]["masks"].as_array().cloned().unwrap_or_default();
        let line = |entry: &Value| {
            let source = entry.get("source").map(|source| format!(" {}", source.as_str().unwrap()));
            let (column, mask) = (entry["column"].as_str().unwrap(), entry["mask"].as_str().unwrap());
            format!("{column} {mask}{}", source.unwrap_or_default())
        };
        entries.iter().map(line).collect()
    }

    pub fn metric(&self, line: &str) -> f64 {
        let page = self.metrics.render();
        let found = page.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok());
        found.unwrap_or_else(|| panic!("{line} is not on the page:\n{page}"))
    }
}

/// A loop under way.
pub struct Running {
    pub handle: SyncHandle,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    pub async fn sync(&self) -> Result<Report, AskError> {
        self.handle.run(ask("steward")).await
    }

    /// Waits for the end of run number `count`, by what the status says.
    pub async fn ended(&self, condition: impl FnMut(&SyncStatus) -> bool) -> SyncStatus {
        self.handle.status().wait_for(condition).await.unwrap().clone()
    }

    pub async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }

    /// As a crash would end it.
    pub async fn crash(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

pub fn ask(name: &str) -> Ask {
    let actor = Actor::Admin { name: name.into(), subject: format!("sub-of-{name}").into() };
    Ask { actor, dry_run: false, approve: None }
}

pub fn dry_run() -> Ask {
    Ask { dry_run: true, ..ask("steward") }
}

pub fn cause(run: &PolicyRun) -> Option<&str> {
    match &run.outcome {
        Outcome::Failure { cause, .. } => Some(cause),
        Outcome::Success | Outcome::Interrupted { .. } => None,
    }
}
