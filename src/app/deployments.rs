//! The configuration policies of a running gateway: read again when they change, decided again and again, and obeyed.
//!
//! Invariant: with `[policy]` nobody reads what no policy deploys, from the first moment on. A set that cannot be
//! understood leaves the last good one in force; a rule that expires counts within [`EVERY`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::adminconfig::Material;
use super::enforcement::apart;
use crate::audit::event::{Actor, Change, ChangeKind, Event, What};
use crate::audit::journal::Journal;
use crate::config::{Config, PolicySection, Source, Workload};
use crate::document::OneLine;
use crate::http::{Asker, DeploymentView, DeploymentsView, PolicyFault, SyncView};
use crate::metrics::{Outcome, PolicyMetrics};
use crate::policy::adminconfig::Limits;
use crate::policy::deploy::{self, Dataset, Deployment, Place, Rules, Veil};
use crate::session::{Ruling, Rulings, Why};
use crate::sync::catalog::Picture;
use crate::sync::reader::InForce;

/// How often everything is decided again, and the files are looked at: what expires by the clock alone counts then.
pub(super) const EVERY: Duration = Duration::from_secs(2);
/// The modules of the descriptions that stand for the gateway and for the engine.
const GATEWAY: &str = "fedgate";
const ENGINE: &str = "trino";
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
        in_force: watch::Receiver<InForce>,
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
            sync,
            show,
            journal,
            metrics,
            material: None,
            looked: None,
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
    sync: watch::Receiver<Option<SyncView>>,
    show: watch::Sender<DeploymentsView>,
    journal: Option<Journal>,
    metrics: PolicyMetrics,
    material: Option<Arc<Good>>,
    /// How the files looked when they were read last, and what is wrong with them.
    looked: Option<([u8; 32], Option<PolicyFault>)>,
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
}

impl Service {
    async fn run(mut self) {
        let mut every = tokio::time::interval(EVERY);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                changed = self.wanted.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    // Another section may name other files.
                    self.looked = None;
                    self.seen = None;
                }
                changed = self.in_force.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                _ = every.tick() => {}
            }
            self.turn().await;
        }
    }

    async fn turn(&mut self) {
        let Some(wanted) = self.wanted.borrow_and_update().clone() else {
            self.material = None;
            self.looked = None;
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
        self.look(&wanted.policy).await;
        let Some(good) = self.material.clone() else {
            let reason = "the configuration policies cannot be understood, and none were before";
            self.put(Rulings::undecided(reason));
            self.tell(&wanted, &[]);
            return;
        };
        let snapshot = self.in_force.borrow_and_update().clone();
        let picture =
            self.sync.borrow().as_ref().and_then(|view| view.handle.status().borrow().picture.clone());
        let known =
            self.seen.take().filter(|seen| seen.is_of(&snapshot, picture.as_ref())).map(|seen| seen.datasets);
        let (asked, document, catalog) = (wanted.clone(), snapshot.clone(), picture.clone());
        let now = SystemTime::now();
        let decided = apart(move || {
            let datasets = known.unwrap_or_else(|| {
                let of =
                    |source: &Arc<Source>| dataset(source, &asked, document.as_ref(), catalog.as_deref());
                asked.sources.iter().map(of).collect()
            });
            decide(&good, &asked, datasets, now)
        })
        .await;
        let Some(Decided { rulings, deployments, datasets }) = decided else {
            // In doubt nobody reads.
            tracing::error!(
                "a defect of fedgate: the configuration policies could not be decided; please report it"
            );
            self.put(Rulings::undecided("the configuration policies could not be decided"));
            return;
        };
        self.seen = Some(Seen { snapshot, picture, datasets });
        self.put(rulings);
        self.record(&deployments, now).await;
        self.tell(&wanted, &deployments);
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

    /// Reads the files again if they look otherwise than before; a set that is wrong leaves the last good one.
    async fn look(&mut self, section: &PolicySection) {
        let asked = section.clone();
        let seen = tokio::task::spawn_blocking(move || look_of(&asked)).await.unwrap_or_default();
        if self.looked.as_ref().is_some_and(|(before, _)| *before == seen) {
            return;
        }
        let asked = section.clone();
        let read = apart(move || {
            let material = Material::read(&asked).map_err(|error| error.to_string())?;
            if let Err(error) = &material.policies {
                return Err(error.to_string());
            }
            let mut hash = Sha256::new();
            for file in &material.files {
                for part in [file.name.as_bytes(), file.text.as_bytes()] {
                    hash.update(part.len().to_be_bytes());
                    hash.update(part);
                }
            }
            let revision: String =
                hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
            Ok::<_, String>(Good { material, revision: revision.into(), since: SystemTime::now() })
        });
        let read = read.await.unwrap_or_else(|| Err("a defect of fedgate: reading them panicked".to_owned()));
        let fault = match read {
            Ok(good) => {
                self.metrics.reloaded(Outcome::Ok);
                self.metrics.fault.set(0);
                tracing::info!(revision = %good.revision, "configuration policies are in force");
                self.material = Some(Arc::new(good));
                None
            }
            Err(error) => {
                self.metrics.reloaded(Outcome::Failed);
                self.metrics.fault.set(1);
                let message: String = error
                    .lines()
                    .map(|line| OneLine(line).to_string())
                    .collect::<Vec<_>>()
                    .join("; ")
                    .chars()
                    .take(MESSAGE_LIMIT)
                    .collect();
                tracing::error!(
                    "the configuration policies cannot be taken, and what is in force stays: {message}"
                );
                Some(PolicyFault { message: message.into(), since: SystemTime::now() })
            }
        };
        self.looked = Some((seen, fault));
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
            fault: self.looked.as_ref().and_then(|(_, fault)| fault.clone()),
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

fn decide(good: &Good, wanted: &Wanted, datasets: Arc<[Dataset]>, now: SystemTime) -> Decided {
    let now_ns =
        i64::try_from(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos()).unwrap_or(i64::MAX);
    let Ok(policies) = &good.material.policies else {
        return Decided {
            rulings: Rulings::undecided("the configuration policies cannot be understood"),
            deployments: Vec::new(),
            datasets,
        };
    };
    let rules = Rules {
        policies,
        resources: &good.material.resources,
        infrastructure: &good.material.infrastructure,
        gateway: GATEWAY,
        engine: ENGINE,
        limits: Limits::default(),
    };
    let (mut rulings, mut deployments) = (Vec::new(), Vec::new());
    for (source, dataset) in wanted.sources.iter().zip(datasets.iter()) {
        for workload in &wanted.workloads {
            let facts = deploy::Workload {
                name: name(workload),
                set: workload.policy_set_id.clone(),
                cluster: workload.cluster.clone(),
                properties: workload.properties.clone().into_iter().collect(),
                interface: None,
            };
            let deployment = deploy::deploy(&rules, &facts, dataset, now_ns);
            for user in &workload.users {
                let engine = source.is_engine(user);
                rulings.push((source.name.clone(), user.clone(), ruling(&deployment, &dataset.veil, engine)));
            }
            deployments.push((source.name.to_string(), facts.name, deployment));
        }
    }
    Decided { rulings: Rulings::new(rulings), deployments, datasets }
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

/// A source as policies see it: its place from the configuration, its tags from the catalog, its masks from the document.
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
    for table in tables.iter().filter(|table| *table.catalog == **catalog) {
        for column in table.columns.iter() {
            let tags: Vec<String> = column.all_labels().map(|label| label.tag.to_string()).collect();
            if !tags.is_empty() {
                dataset.tags.extend(tags.iter().cloned());
                dataset.columns.push((format!("{}.{}.{}", table.schema, table.name, column.name), tags));
            }
        }
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
