//! The configuration policies of a running gateway: read again when they change, decided again and again, and obeyed.
//!
//! Invariant: with `[policy]` nobody reads what no policy deploys, from the first moment on. A set that cannot be
//! understood, or that gives no answer, leaves the last good one in force; a rule that expires counts within [`EVERY`]
//! and [`PASS`]; and a document comes into force when sessions already obey what is decided about its masks.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

use super::adminconfig::{EvalError, Material};
use super::enforcement::apart;
use crate::audit::event::{Actor, Change, ChangeKind, Event, What};
use crate::audit::journal::Journal;
use crate::config::{Config, PolicySection, Source, Workload};
use crate::document::OneLine;
use crate::http::{Asker, DeploymentView, DeploymentsView, PolicyFault, SyncView};
use crate::metrics::{Outcome, PolicyMetrics};
use crate::policy::adminconfig::{Error, Interface, Limits};
use crate::policy::deploy::{self, Dataset, Deployment, Place, Rules, Veil};
use crate::session::{Ruling, Rulings, Why};
use crate::sync::catalog::{LabelState, Picture};
use crate::sync::reader::{Coming, InForce};

/// How often everything is decided again, and the files are looked at: what expires by the clock alone counts then.
pub(super) const EVERY: Duration = Duration::from_secs(2);
/// The modules of the descriptions that stand for the gateway and for the engine.
const GATEWAY: &str = "fedgate";
const ENGINE: &str = "trino";
/// What all workloads on all sources may take together: whoever is not decided by then is refused.
const PASS: Duration = Duration::from_secs(3);
/// When a decision that has not come is given up, and everybody is refused. One step of an evaluation that does not end is
/// the one thing that no limit ends.
const GIVE_UP: Duration = Duration::from_secs(10);
/// When files that are not read yet are told of.
const READ_WITHIN: Duration = Duration::from_secs(60);
/// Decisions that were given up and still run; beyond that nothing is tried any more. The last place is for the set in
/// force.
const LEFT_RUNNING: usize = 4;
/// Whose labels say where a source is: `Geography.north`.
const GEOGRAPHY: &str = "Geography.";
/// Longest text of a fault, in characters.
const MESSAGE_LIMIT: usize = 2000;

/// What decisions depend on in the configuration.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    policy: PolicySection,
    workloads: Vec<Workload>,
    sources: Vec<Arc<Source>>,
    admins: BTreeSet<String>,
    /// A document is configured: until it is in force nobody knows who sees masks.
    has_document: bool,
}

impl Wanted {
    /// `None`: there are no policies.
    pub fn of(config: &Config) -> Option<Self> {
        Some(Self {
            policy: config.policy.clone()?,
            workloads: config.workloads.clone(),
            sources: config.sources.clone(),
            admins: config.sync.admin_subjects.iter().cloned().collect(),
            has_document: config.document.is_some(),
        })
    }
}

/// What sessions go by until something is decided.
pub(super) fn at_first(wanted: Option<&Wanted>) -> Rulings {
    match wanted {
        None => Rulings::default(),
        Some(_) => Rulings::undecided("the configuration policies have not been read yet"),
    }
}

/// The task that decides.
pub(super) struct Deployments {
    wanted: watch::Sender<Option<Wanted>>,
    view: watch::Receiver<DeploymentsView>,
    rulings: watch::Sender<Arc<Rulings>>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Deployments {
    /// `rulings` already holds [`at_first`].
    pub fn start(
        wanted: Option<Wanted>,
        rulings: watch::Sender<Arc<Rulings>>,
        (in_force, coming): (watch::Receiver<InForce>, mpsc::Receiver<Coming>),
        sync: watch::Receiver<Option<SyncView>>,
        journal: Option<Journal>,
        metrics: PolicyMetrics,
    ) -> Self {
        let wanted = watch::Sender::new(wanted);
        let (show, view) = watch::channel(DeploymentsView::default());
        let stop = CancellationToken::new();
        let service = Service {
            wanted: wanted.subscribe(),
            rulings: rulings.clone(),
            in_force,
            coming,
            next: None,
            sync,
            show,
            journal,
            metrics,
            material: None,
            candidate: None,
            reading: None,
            looked: None,
            trouble: None,
            running: Arc::default(),
            decided: BTreeMap::new(),
            seen: None,
        };
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let _ = stopped.run_until_cancelled(service.run()).await;
        });
        Self { wanted, view, rulings, stop, task }
    }

    pub fn view(&self) -> watch::Receiver<DeploymentsView> {
        self.view.clone()
    }

    /// Takes up a configuration. One that brings policies where there were none closes everything until they are read.
    pub fn configure(&self, wanted: Option<Wanted>) {
        let before = self.wanted.send_replace(wanted);
        if self.wanted.borrow().is_some() && before.is_none() {
            self.rulings.send_replace(Arc::new(at_first(self.wanted.borrow().as_ref())));
        }
    }

    pub async fn end(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

/// A set of policies that was understood.
struct Good {
    /// Its policies were understood.
    material: Material,
    revision: Arc<str>,
    since: SystemTime,
}

struct Service {
    wanted: watch::Receiver<Option<Wanted>>,
    rulings: watch::Sender<Arc<Rulings>>,
    in_force: watch::Receiver<InForce>,
    coming: mpsc::Receiver<Coming>,
    /// A document that may come into force any moment: until then what is decided holds for it, too.
    next: InForce,
    sync: watch::Receiver<Option<SyncView>>,
    show: watch::Sender<DeploymentsView>,
    journal: Option<Journal>,
    metrics: PolicyMetrics,
    material: Option<Arc<Good>>,
    /// One that was understood and is not in force: it gave no answer where the one in force gives one. It is tried again.
    candidate: Option<Arc<Good>>,
    reading: Option<Reading>,
    /// How the files looked when they were read last, and what is wrong with them.
    looked: Option<([u8; 32], Option<String>)>,
    /// What is told: of the files, or of a set that gives no answer.
    trouble: Option<PolicyFault>,
    /// Threads that decide.
    running: Arc<AtomicUsize>,
    /// By source and workload.
    decided: BTreeMap<(String, String), Deployment>,
    /// The sources as policies saw them last, and what of: a large catalog is not looked through again for nothing.
    seen: Option<Seen>,
}

/// Sources as policies see them, in the order of the configuration.
struct Seen {
    snapshot: InForce,
    picture: Option<Arc<Picture>>,
    datasets: Arc<[Dataset]>,
}

impl Seen {
    /// Are they of this document and this picture, which are never changed?
    fn is_of(&self, snapshot: &InForce, picture: Option<&Arc<Picture>>) -> bool {
        let document = match (&self.snapshot, snapshot) {
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (one, other) => one.is_none() && other.is_none(),
        };
        document
            && match (&self.picture, picture) {
                (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                (one, other) => one.is_none() && other.is_none(),
            }
    }
}

/// All that is decided in one go.
struct Decided {
    rulings: Rulings,
    deployments: Vec<(String, String, Deployment)>,
    datasets: Arc<[Dataset]>,
    /// Why these are of the set in force and not of the new one.
    rejected: Option<String>,
}

impl Service {
    async fn run(mut self) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // Files that change all the time are read once in each interval and no more often.
            let mut look = false;
            tokio::select! {
                biased;
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Another section may name other files; what is read of the old ones is dropped.
                    self.looked = None;
                    self.reading = None;
                    self.candidate = None;
                    look = true;
                    self.seen = None;
                }
                changed = self.in_force.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.next = None;
                }
                // It is let go of when this turn has ended. Without a reader nothing comes, and its channel stays open.
                Some(coming) = self.coming.recv() => {
                    self.next = Some(Arc::clone(&coming.snapshot));
                    self.turn(false).await;
                    continue;
                }
                read = until_read(&mut self.reading) => {
                    if let Some(reading) = self.reading.take() {
                        self.take(reading.seen, read);
                    }
                }
                _ = every.tick() => look = true,
            }
            self.turn(look).await;
        }
    }

    /// `look`: the files are looked at, too.
    async fn turn(&mut self, look: bool) {
        let Some(wanted) = self.wanted.borrow_and_update().clone() else {
            self.material = None;
            self.candidate = None;
            self.reading = None;
            self.next = None;
            self.looked = None;
            self.trouble = None;
            self.decided.clear();
            self.rulings.send_if_modified(|rulings| {
                let off = **rulings != Rulings::default();
                if off {
                    *rulings = Arc::default();
                }
                off
            });
            self.show.send_if_modified(|view| std::mem::take(view) != DeploymentsView::default());
            return;
        };
        if look {
            self.look(&wanted.policy).await;
        }
        let slow = self.reading.as_ref().is_some_and(|reading| reading.since.elapsed() > READ_WITHIN);
        let slow = slow.then(|| "the files take long to be read, and what is in force stays".to_owned());
        if self.material.is_none() && self.candidate.is_none() {
            let reason = match self.looked {
                Some(_) => "the configuration policies cannot be understood, and none were before",
                None => "the configuration policies have not been read yet",
            };
            self.put(Rulings::undecided(reason));
            self.told_of(self.looked.as_ref().and_then(|(_, fault)| fault.clone()).or(slow));
            self.tell(&wanted, &[]);
            return;
        }
        if self.material.is_some()
            && self.running.load(Ordering::Relaxed) + 1 >= LEFT_RUNNING
            && self.candidate.take().is_some()
            && let Some((_, fault)) = &mut self.looked
        {
            let reason =
                "too many sets of before do not end; no new one is taken until the gateway is started again";
            *fault = Some(reason.to_owned());
        }
        let snapshot = self.in_force.borrow_and_update().clone();
        let picture =
            self.sync.borrow().as_ref().and_then(|view| view.handle.status().borrow().picture.clone());
        let known =
            self.seen.take().filter(|seen| seen.is_of(&snapshot, picture.as_ref())).map(|seen| seen.datasets);
        let mut question = Question {
            good: self.material.clone(),
            candidate: self.candidate.clone(),
            wanted: wanted.clone(),
            known,
            snapshot: snapshot.clone(),
            next: self.next.clone(),
            picture: picture.clone(),
            now: SystemTime::now(),
        };
        let now = question.now;
        let mut decided = self.decide(question.clone()).await;
        if decided.is_none() && self.material.is_some() && self.candidate.take().is_some() {
            // A new set that does not end is dropped for good; what is in force still gives answers.
            let endless = "a step of the new set does not end, and what is in force stays";
            if let Some((_, fault)) = &mut self.looked {
                *fault = Some(endless.to_owned());
            }
            question.candidate = None;
            decided = self.decide(question).await;
        }
        let Some(Decided { rulings, deployments, datasets, rejected }) = decided else {
            // In doubt nobody reads.
            let reason = "the configuration policies could not be decided";
            tracing::error!("{reason}: a step of a policy does not end, or fedgate has a defect");
            self.put(Rulings::undecided(reason));
            self.told_of(Some(format!("{reason}; a step of a policy does not end, or fedgate has a defect")));
            self.tell(&wanted, &[]);
            return;
        };
        if rejected.is_none()
            && let Some(candidate) = self.candidate.take()
        {
            self.metrics.reloaded(Outcome::Ok);
            tracing::info!(revision = %candidate.revision, "configuration policies are in force");
            self.material = Some(candidate);
        }
        self.seen = Some(Seen { snapshot, picture, datasets });
        self.put(rulings);
        let of_files = self.looked.as_ref().and_then(|(_, fault)| fault.clone());
        self.told_of(of_files.or(slow).or(rejected).or_else(|| fault_of(&deployments, |_| true)));
        self.record(&deployments, now).await;
        self.tell(&wanted, &deployments);
    }

    /// `None`: there is no answer, or not in time.
    async fn decide(&self, question: Question) -> Option<Decided> {
        if self.running.load(Ordering::Relaxed) >= LEFT_RUNNING {
            return None;
        }
        self.running.fetch_add(1, Ordering::Relaxed);
        let running = Running(Arc::clone(&self.running));
        let decided = apart(move || {
            let _running = running;
            question.answer()
        });
        timeout(GIVE_UP, decided).await.ok().flatten()
    }

    /// Tells of what is wrong, once for each thing.
    fn told_of(&mut self, fault: Option<String>) {
        self.metrics.fault.set(i64::from(fault.is_some()));
        let Some(fault) = fault else {
            self.trouble = None;
            return;
        };
        let message: String = fault
            .lines()
            .map(|line| OneLine(line).to_string())
            .collect::<Vec<_>>()
            .join("; ")
            .chars()
            .take(MESSAGE_LIMIT)
            .collect();
        if self.trouble.as_ref().is_some_and(|trouble| *trouble.message == *message) {
            return;
        }
        self.metrics.reloaded(Outcome::Failed);
        tracing::error!("the configuration policies are at fault: {message}");
        self.trouble = Some(PolicyFault { message: message.into(), since: SystemTime::now() });
    }

    fn put(&self, rulings: Rulings) {
        self.rulings.send_if_modified(|before| {
            let new = **before != rulings;
            if new {
                *before = Arc::new(rulings);
            }
            new
        });
    }

    /// Has the files read again if they look otherwise than before, on another thread: what is in force is decided
    /// anew meanwhile, however long that takes.
    async fn look(&mut self, section: &PolicySection) {
        if self.reading.is_some() {
            return;
        }
        let asked = section.clone();
        let seen = tokio::task::spawn_blocking(move || look_of(&asked)).await.unwrap_or_default();
        if self.looked.as_ref().is_some_and(|(before, _)| *before == seen) {
            return;
        }
        let asked = section.clone();
        let read = tokio::spawn(apart(move || read(&asked)));
        self.reading = Some(Reading { seen, read, since: Instant::now() });
    }

    /// A set that is wrong leaves the last good one.
    fn take(&mut self, seen: [u8; 32], read: Result<Good, Unread>) {
        let fault =
            |error: String| Some(format!("the files cannot be taken, and what is in force stays: {error}"));
        self.looked = Some(match read {
            Ok(good) => {
                self.candidate = Some(Arc::new(good));
                (seen, None)
            }
            Err(Unread::Wrong(error)) => {
                self.candidate = None;
                (seen, fault(error))
            }
            // They may be readable the next time, and look the same.
            Err(Unread::Unreadable(error)) => {
                self.candidate = None;
                ([0; 32], fault(error))
            }
        });
    }

    /// An event for each outcome that is another one than before.
    async fn record(&mut self, deployments: &[(String, String, Deployment)], now: SystemTime) {
        let mut next = BTreeMap::new();
        for (source, workload, deployment) in deployments {
            let key = (source.clone(), workload.clone());
            let before = self.decided.remove(&key);
            let changed = before.as_ref().is_some_and(|before| {
                (before.read, before.transform, &before.reason)
                    != (deployment.read, deployment.transform, &deployment.reason)
            });
            next.insert(key, deployment.clone());
            if !changed {
                continue;
            }
            let message = match deployment.read {
                true => format!(
                    "reads of {source} are deployed for {workload}; masks: {}",
                    deployment.transform.as_str()
                ),
                false => format!("reads of {source} are not deployed for {workload}: {}", deployment.reason),
            };
            tracing::info!(source, workload, "{message}");
            let Some(journal) = &self.journal else { continue };
            let event = Event {
                id: Event::new_id(),
                at: now,
                what: What::Change(Change {
                    kind: ChangeKind::Deployment,
                    actor: Actor::System,
                    target: source.as_str().into(),
                    message: message.into(),
                    good: deployment.read,
                    facts: [
                        ("workload".into(), workload.as_str().into()),
                        ("transform".into(), deployment.transform.as_str().into()),
                        ("policies".into(), deployment.policies.join(", ").into()),
                        ("reason".into(), deployment.reason.as_str().into()),
                    ]
                    .into(),
                }),
            };
            if let Err(error) = journal.record(event).await {
                tracing::error!(%error, "a change of what is deployed is not in the audit trail");
            }
        }
        self.decided = next;
    }

    fn tell(&self, wanted: &Wanted, deployments: &[(String, String, Deployment)]) {
        let (mut deployed, mut refused, mut veiled) = (0, 0, 0);
        let mut by_source: BTreeMap<String, Vec<DeploymentView>> = BTreeMap::new();
        for (source, workload, deployment) in deployments {
            match (deployment.read, deployment.transform) {
                (false, _) => refused += 1,
                (true, Place::Gateway | Place::Nowhere) => veiled += 1,
                (true, Place::None | Place::Engine) => deployed += 1,
            }
            let named = wanted.workloads.iter().find(|one| name(one) == *workload);
            by_source.entry(source.clone()).or_default().push(DeploymentView {
                users: named
                    .map(|one| one.users.iter().map(ToString::to_string).collect())
                    .unwrap_or_default(),
                cluster: named.map(|one| one.cluster.clone()).unwrap_or_default(),
                read: deployment.read,
                transform: deployment.transform,
                reason: deployment.reason.clone(),
                policies: deployment.policies.clone(),
            });
        }
        self.metrics.deployed(deployed, refused, veiled);
        let view = DeploymentsView {
            enabled: true,
            revision: self.material.as_ref().map(|good| Arc::clone(&good.revision)),
            since: self.material.as_ref().map(|good| good.since),
            fault: self.trouble.clone(),
            sources: by_source,
            asker: self.material.clone().map(|good| {
                Asker::new(Arc::new(move |input: &Value| {
                    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
                    good.material.answer(input, i64::try_from(now).unwrap_or(i64::MAX))
                }))
            }),
        };
        self.show.send_if_modified(|before| {
            let new = *before != view;
            if new {
                *before = view;
            }
            new
        });
    }
}

/// What a workload is called: by its users, who are of no other one.
fn name(workload: &Workload) -> String {
    workload.users.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Files that are being read.
struct Reading {
    seen: [u8; 32],
    read: JoinHandle<Option<Result<Good, Unread>>>,
    since: Instant,
}

/// Never comes while nothing is being read.
async fn until_read(reading: &mut Option<Reading>) -> Result<Good, Unread> {
    match reading {
        Some(reading) => match (&mut reading.read).await {
            Ok(Some(read)) => read,
            Ok(None) | Err(_) => Err(Unread::Wrong("a defect of fedgate: reading them panicked".to_owned())),
        },
        None => std::future::pending().await,
    }
}

enum Unread {
    Unreadable(String),
    Wrong(String),
}

fn read(section: &PolicySection) -> Result<Good, Unread> {
    let material = Material::read(section).map_err(|error| match error {
        EvalError::Read { .. } => Unread::Unreadable(error.to_string()),
        _ => Unread::Wrong(error.to_string()),
    })?;
    if let Err(error) = &material.policies {
        return Err(Unread::Wrong(error.to_string()));
    }
    let mut hash = Sha256::new();
    for file in &material.files {
        for part in [file.name.as_bytes(), file.text.as_bytes()] {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
    }
    let revision: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    Ok(Good { material, revision: revision.into(), since: SystemTime::now() })
}

/// One thread that decides.
struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All that one turn goes by; one of the two sets is there.
#[derive(Clone)]
struct Question {
    good: Option<Arc<Good>>,
    candidate: Option<Arc<Good>>,
    wanted: Wanted,
    known: Option<Arc<[Dataset]>>,
    snapshot: InForce,
    next: InForce,
    picture: Option<Arc<Picture>>,
    now: SystemTime,
}

impl Question {
    fn answer(self) -> Decided {
        let datasets = match &self.known {
            Some(known) => Arc::clone(known),
            None => self.datasets(&self.snapshot),
        };
        let (good, mut decided) = self.choose(datasets);
        if let Some(next) = &self.next
            && !self.snapshot.as_ref().is_some_and(|snapshot| Arc::ptr_eq(snapshot, next))
        {
            let datasets = self.datasets(&self.next);
            let then = good.map(|good| decide(good, &self.wanted, datasets, self.now).rulings);
            let then = then.unwrap_or_else(|| Rulings::undecided("no configuration policies are in force"));
            decided.rulings = decided.rulings.stricter(&then);
        }
        decided
    }

    fn datasets(&self, snapshot: &InForce) -> Arc<[Dataset]> {
        let of =
            |source: &Arc<Source>| dataset(source, &self.wanted, snapshot.as_ref(), self.picture.as_deref());
        self.wanted.sources.iter().map(of).collect()
    }

    /// The set that counts, and what it decides: the new one, unless it gives no answer where the one in force does. That
    /// two policies contradict each other is an answer, of those that refuse.
    fn choose(&self, datasets: Arc<[Dataset]>) -> (Option<&Arc<Good>>, Decided) {
        let of = |good: &Good| decide(good, &self.wanted, Arc::clone(&datasets), self.now);
        let unanswered = |decided: &Decided| {
            fault_of(&decided.deployments, |error| !matches!(error, Error::Conflict { .. }))
        };
        match (&self.candidate, &self.good) {
            (Some(candidate), None) => (Some(candidate), of(candidate)),
            (None, Some(good)) => (Some(good), of(good)),
            (Some(candidate), Some(good)) => {
                let new = of(candidate);
                let Some(fault) = unanswered(&new) else { return (Some(candidate), new) };
                let mut old = of(good);
                if unanswered(&old).is_some() {
                    return (Some(candidate), new);
                }
                old.rejected =
                    Some(format!("the new set gives no answer, and what is in force stays: {fault}"));
                (Some(good), old)
            }
            (None, None) => {
                let rulings = Rulings::undecided("no configuration policies are in force");
                (None, Decided { rulings, deployments: Vec::new(), datasets, rejected: None })
            }
        }
    }
}

/// The first fault of its kind, with who meets it.
fn fault_of(deployments: &[(String, String, Deployment)], counts: impl Fn(&Error) -> bool) -> Option<String> {
    deployments.iter().find_map(|(source, workload, deployment)| {
        let fault = deployment.fault.as_ref().filter(|fault| counts(fault))?;
        Some(format!("for {workload} on {source}: {fault}"))
    })
}

fn decide(good: &Good, wanted: &Wanted, datasets: Arc<[Dataset]>, now: SystemTime) -> Decided {
    let now_ns =
        i64::try_from(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(i64::MAX);
    let Ok(policies) = &good.material.policies else {
        return Decided {
            rulings: Rulings::undecided("the configuration policies cannot be understood"),
            deployments: Vec::new(),
            datasets,
            rejected: None,
        };
    };
    let end = Instant::now() + PASS;
    let (mut rulings, mut deployments) = (Vec::new(), Vec::new());
    for (source, dataset) in wanted.sources.iter().zip(datasets.iter()) {
        for workload in &wanted.workloads {
            let left = end.saturating_duration_since(Instant::now());
            let rules = Rules {
                policies,
                resources: &good.material.resources,
                infrastructure: &good.material.infrastructure,
                gateway: GATEWAY,
                engine: ENGINE,
                // Steps end a policy that loops. A busy machine makes others late, and sessions are not to end for that.
                limits: Limits { deadline: left, ..Limits::default() },
            };
            let facts = deploy::Workload {
                name: name(workload),
                set: workload.policy_set_id.clone(),
                cluster: workload.cluster.clone(),
                properties: workload.properties.clone().into_iter().collect(),
                interface: workload
                    .interface
                    .as_ref()
                    .map(|(protocol, format)| Interface::new(protocol, format)),
            };
            let deployment = if left.is_zero() {
                deploy::undecided(&format!(
                    "the policies take longer than {} s for all workloads and sources together",
                    PASS.as_secs()
                ))
            } else {
                deploy::deploy(&rules, &facts, dataset, now_ns)
            };
            for user in &workload.users {
                let engine = source.is_engine(user);
                rulings.push((source.name.clone(), user.clone(), ruling(&deployment, &dataset.veil, engine)));
            }
            deployments.push((source.name.to_string(), facts.name, deployment));
        }
    }
    Decided { rulings: Rulings::new(rulings), deployments, datasets, rejected: None }
}

/// What a deployment means for one client user.
fn ruling(deployment: &Deployment, veil: &Veil, engine: bool) -> Ruling {
    if !deployment.read {
        return Ruling::Refused(Arc::new(Why { reason: deployment.reason.as_str().into() }));
    }
    match deployment.transform {
        Place::None => Ruling::Open,
        Place::Engine if engine => Ruling::Open,
        Place::Engine | Place::Gateway | Place::Nowhere => {
            let clear = match veil {
                Veil::AllBut { clear, .. } if engine => clear.clone(),
                Veil::AllBut { .. } | Veil::None | Veil::Unknown => BTreeSet::new(),
            };
            Ruling::Veiled { but: Arc::new(clear) }
        }
    }
}

/// A source as policies see it: its tags from the catalog, its masks from the document, and its place from the
/// configuration or, where that says none, from the one label `Geography.PLACE` that the catalog has for its columns.
fn dataset(
    source: &Source,
    wanted: &Wanted,
    snapshot: Option<&Arc<crate::document::Snapshot>>,
    picture: Option<&Picture>,
) -> Dataset {
    let catalog = &source.trino_catalog;
    let mut dataset = Dataset {
        source: source.name.to_string(),
        geography: source.geography.clone().unwrap_or_default(),
        veil: match snapshot {
            Some(snapshot) => deploy::veil(snapshot.document.policy(), &wanted.admins, catalog),
            None if wanted.has_document => Veil::Unknown,
            None => Veil::None,
        },
        ..Dataset::default()
    };
    let tables = picture.map(|picture| picture.tables.as_slice()).unwrap_or_default();
    let disabled = |tag: &str| {
        let classification = tag.split('.').next().unwrap_or_default();
        picture.is_some_and(|picture| picture.disabled.contains(classification))
    };
    let mut places: BTreeSet<&str> = BTreeSet::new();
    for table in tables.iter().filter(|table| *table.catalog == **catalog) {
        for column in table.columns.iter() {
            let tags: Vec<String> = column.all_labels().map(|label| label.tag.to_string()).collect();
            for label in column.all_labels().filter(|label| label.state == LabelState::Confirmed) {
                places.extend(label.tag.strip_prefix(GEOGRAPHY).filter(|_| !disabled(&label.tag)));
            }
            if !tags.is_empty() {
                dataset.tags.extend(tags.iter().cloned());
                dataset.columns.push((format!("{}.{}.{}", table.schema, table.name, column.name), tags));
            }
        }
    }
    // Two places are none: nobody says which of them counts.
    if let (true, 1, Some(place)) = (source.geography.is_none(), places.len(), places.first()) {
        dataset.geography = (*place).to_owned();
    }
    dataset
}

/// Everything by which a change of the files shows: what they are called, where links lead, how long they are, and when
/// they were written. A mounted ConfigMap is another folder behind the same link.
fn look_of(section: &PolicySection) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut paths: Vec<PathBuf> = Vec::new();
    for folder in &section.folders {
        walk(folder, 0, &mut paths);
    }
    let others = section.infrastructure.iter().chain(&section.taxonomy);
    let lists = section.modules.iter().chain(&section.clusters).chain(&section.storage_accounts);
    paths.extend(others.chain(lists).cloned());
    for path in paths {
        hash.update(path.as_os_str().as_encoded_bytes());
        hash.update([0]);
        if let Ok(real) = path.canonicalize() {
            hash.update(real.as_os_str().as_encoded_bytes());
        }
        if let Ok(metadata) = std::fs::metadata(&path) {
            use std::os::unix::fs::MetadataExt;
            for number in [
                metadata.len(),
                metadata.ino(),
                metadata.mtime_nsec().unsigned_abs(),
                metadata.mtime().unsigned_abs(),
            ] {
                hash.update(number.to_be_bytes());
            }
        }
    }
    hash.finalize().into()
}

/// Files of a folder and of those right below it, in order.
fn walk(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) {
    const FILES: usize = 50_000;
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut entries: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).take(FILES).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() && depth == 0 {
            walk(&path, depth + 1, paths);
        }
        paths.push(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{ClientUser, SourceName};
    use crate::metrics::Metrics;
    use crate::sync::publisher::AnyPublisher;
    use crate::sync::reader::{Outlet, Reader};
    use tokio_util::task::AbortOnDropHandle;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn config(folder: &Path) -> Config {
        let files = [
            ("p/read.rego", include_str!("../../tests/deployments/read.rego")),
            ("modules.yaml", include_str!("../../tests/deployments/modules.yaml")),
            ("clusters.yaml", "name: cluster-north\nmetadata: {region: north}\n"),
            ("policy.json", &document(false)),
            ("password", "x"),
        ];
        std::fs::create_dir(folder.join("p")).unwrap();
        for (name, text) in files {
            std::fs::write(folder.join(name), text).unwrap();
        }
        Config::parse(
            r#"
            [gateway]
            listen = ["127.0.0.1:0"]
            [gateway.auth]
            method = "trust"
            [document]
            kind = "file"
            path = "policy.json"
            [policy]
            folders = ["p"]
            modules = ["modules.yaml"]
            clusters = ["clusters.yaml"]
            [[workload]]
            users = ["visitor"]
            cluster = "cluster-north"
            [[source]]
            name = "s"
            hosts = ["127.0.0.1:1"]
            database = "s"
            user = "u"
            password_file = "password"
            access = [{ users = ["visitor"] }]
            "#,
            folder,
        )
        .unwrap()
    }

    fn document(masked: bool) -> String {
        let entry =
            serde_json::json!({"catalog": "s", "schema": "a", "table": "t", "column": "x", "mask": "sha256"});
        let masks = if masked { vec![entry] } else { Vec::new() };
        serde_json::json!({
            "version": 1,
            "mask_library": {"sha256": {"strength": 60}},
            "subjects": {"alice": {"kind": "user", "masks": masks}},
        })
        .to_string()
    }

    /// Both ends are looked at whenever either changes, on one thread: were a document in force before what is decided
    /// from it, the first look would meet that.
    #[tokio::test]
    async fn a_document_comes_into_force_behind_what_is_decided_from_it() {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let (metrics, stop) = (Metrics::new().unwrap(), CancellationToken::new());
        let wanted = Wanted::of(&config);
        let rulings = watch::Sender::new(Arc::new(at_first(wanted.as_ref())));
        let (outlet, coming) = Outlet::gated();
        let handle = outlet.handle();
        let mut obeyed = rulings.subscribe();
        let deployments = Deployments::start(
            wanted,
            rulings,
            (handle.in_force(), coming),
            watch::channel(None).1,
            None,
            metrics.policy.clone(),
        );
        let place = &config.document.as_ref().unwrap().place;
        let reader = Reader::new(
            AnyPublisher::new(place),
            Duration::from_secs(3600),
            outlet,
            metrics.document.clone(),
            stop.clone(),
        );
        let _reading = AbortOnDropHandle::new(tokio::spawn(reader.run()));
        let (source, user) = (SourceName::new("s"), ClientUser::new("visitor"));
        let masked = |snapshot: &InForce| {
            snapshot
                .as_ref()
                .is_none_or(|now| now.document.policy().subjects.values().any(|one| !one.masks.is_empty()))
        };
        let mut in_force = handle.in_force();
        for round in 0..20 {
            let wants_masks = round % 2 == 1;
            std::fs::write(folder.path().join("policy.json"), document(wants_masks)).unwrap();
            handle.nudge();
            loop {
                let ruling = obeyed.borrow_and_update().of(&source, &user);
                let now = masked(&in_force.borrow_and_update());
                assert!(!(now && ruling == Ruling::Open), "round {round}: clear text under masks");
                let settled = now == wants_masks && (ruling == Ruling::Open) != wants_masks;
                if settled {
                    break;
                }
                let next = async {
                    tokio::select! {
                        biased;
                        one = in_force.changed() => one,
                        other = obeyed.changed() => other,
                    }
                };
                timeout(PATIENCE, next).await.expect("in time").unwrap();
            }
        }
        deployments.end().await;
    }

    #[test]
    fn a_place_comes_from_the_catalogs_labels_where_the_configuration_says_none() {
        use crate::sync::catalog::file;
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path());
        let wanted = Wanted::of(&config).unwrap();
        let of = |tags: &str, own: Option<&str>| {
            let picture =
                file::parse(&format!("catalogs: {{s: {{a: {{t: {{x: {tags}, y: PII.Email}}}}}}}}")).unwrap();
            let mut source = (*config.sources[0]).clone();
            source.geography = own.map(str::to_owned);
            dataset(&source, &wanted, None, Some(&picture)).geography
        };
        assert_eq!(of("Geography.north", None), "north");
        assert_eq!(of("[Geography.north, Geography.south]", None), "");
        assert_eq!(of("{suggested: Geography.north}", None), "");
        assert_eq!(of("Geography.north", Some("south")), "south");
        assert_eq!(of("PII.Name", None), "");
    }
}
