//! From the policy document in force to a bundle that OPA fetches, and to the books of who enforces it.
//!
//! Invariant: a bundle is replaced by a whole new one or not at all. A document that gives none leaves the one before in
//! place, and so does a document that is gone; what was served last is served again after a restart.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rand::Rng;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, timeout};
use tokio_util::sync::CancellationToken;

use super::policy_loop::stand_back;
use crate::audit::event::{Actor, Change, ChangeKind, Event, What};
use crate::audit::journal::Journal;
use crate::client;
use crate::config::{
    Config, OpaSection, OtherCatalogs, ProbeSection, Secret, SecretFile, SigningAlgorithm, SigningSection,
};
use crate::document::{OneLine, Snapshot};
use crate::http::{BundleFault, OpaView, ProbeResult, ProofBook, Served, SyncView};
use crate::metrics::{Build, OpaMetrics, Probe};
use crate::policy::bundle::{Bundle, BundleError, Packing};
use crate::policy::probe::{self, Answer};
use crate::policy::proof::{Proof, Proved, Publication, Rules};
use crate::policy::sign::{KeyError, Signer, Signing};
use crate::policy::{self, MaskKey, Settings};
use crate::sync::disk;
use crate::sync::reader::InForce;

/// How long is waited for the run that published a document to say what it came from; the bundle is served meanwhile.
const ORIGIN: Duration = Duration::from_secs(5);
/// How long the first document is waited for before the bundle of before the start is served.
const FIRST_READ: Duration = Duration::from_secs(2);
/// How often it is looked whether OPAs have fallen silent.
const TICK: Duration = Duration::from_secs(1);
/// Longest kept bundle that is read, in bytes.
const KEPT_LIMIT: u64 = 256 << 20;
/// Longest answer of an OPA that is asked, in bytes.
const PROBE_ANSWER: usize = 1 << 20;
/// For one question.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest text of a fault, in characters.
const MESSAGE_LIMIT: usize = 1000;

/// Why a document gives no bundle.
#[derive(Debug, thiserror::Error)]
pub(super) enum MakeError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("{key} = {} cannot be read: {error}", file.display())]
    Secret { key: &'static str, file: PathBuf, error: std::io::Error },
    #[error("opa.signing.key_file {0}")]
    Key(#[from] KeyError),
    #[error("a defect of fedgate: making the bundle panicked; please report it with the document")]
    Panicked,
}

/// What a bundle is made by, beside the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Recipe {
    pub opa: OpaSection,
    admin_subjects: Vec<String>,
    mask_key: Option<SecretFile>,
}

impl Recipe {
    /// `None`: no bundle is configured.
    pub fn of(config: &Config) -> Option<Self> {
        Some(Self {
            opa: config.opa.clone()?,
            admin_subjects: config.sync.admin_subjects.clone(),
            mask_key: config.document.as_ref().and_then(|document| document.mask_key.clone()),
        })
    }

    /// Reads the secrets as they are now, and makes the bundle of a document.
    ///
    /// # Errors
    /// A secret cannot be read, or the document cannot be enforced.
    pub fn make(&self, policy: &crate::document::Policy) -> Result<Bundle, MakeError> {
        let mask_key =
            self.mask_key.as_ref().map(|file| secret("document.mask_key_file", file)).transpose()?;
        let settings = Settings {
            admin_subjects: self.admin_subjects.iter().map(|name| name.as_str().into()).collect(),
            other_catalogs: match self.opa.other_catalogs {
                OtherCatalogs::Deny => policy::OtherCatalogs::Deny,
                OtherCatalogs::Read => policy::OtherCatalogs::Read,
                OtherCatalogs::Allow => policy::OtherCatalogs::Allow,
            },
            system_session_properties: self.opa.system_session_properties.iter().cloned().collect(),
            mask_key: mask_key.map(|key| MaskKey::new(key.expose().as_bytes())),
        };
        let signer = self.opa.signing.as_ref().map(signer).transpose()?;
        let packing = Packing { thin: self.opa.package_trino, signer: signer.as_ref() };
        Ok(Bundle::build(policy, &settings, packing)?)
    }

    fn rules(&self) -> Rules {
        Rules {
            instances: self.opa.instances,
            silent_after: self.opa.silent_after,
            forget_after: self.opa.forget_after,
        }
    }
}

fn secret(key: &'static str, file: &SecretFile) -> Result<Secret, MakeError> {
    file.read().map_err(|error| MakeError::Secret { key, file: file.path().to_owned(), error })
}

fn signer(section: &SigningSection) -> Result<Signer, MakeError> {
    let key = secret("opa.signing.key_file", &section.key)?;
    let signing = match section.algorithm {
        SigningAlgorithm::Hs256 => Signing::Hs256,
        SigningAlgorithm::Rs256 => Signing::Rs256,
        SigningAlgorithm::Ps256 => Signing::Ps256,
        SigningAlgorithm::Es256 => Signing::Es256,
    };
    Ok(Signer::new(signing, key.expose().as_bytes(), &section.key_id)?)
}

/// The bundle service of a running gateway.
pub(super) struct Enforcement {
    recipe: watch::Sender<Option<Recipe>>,
    view: watch::Sender<Option<OpaView>>,
    served: watch::Receiver<Served>,
    proof: ProofBook,
    metrics: OpaMetrics,
    stop: CancellationToken,
    task: JoinHandle<()>,
    probing: Option<(ProbeSection, CancellationToken)>,
    /// Whom the answers to probes are told.
    results: watch::Sender<Vec<ProbeResult>>,
}

impl Enforcement {
    /// Starts it, on or off; [`Enforcement::configure`] says which.
    pub fn start(
        in_force: watch::Receiver<InForce>,
        sync: watch::Receiver<Option<SyncView>>,
        journal: Option<Journal>,
        metrics: OpaMetrics,
    ) -> Self {
        let recipe = watch::Sender::new(None);
        let (serve, served) = watch::channel(Served::default());
        let rules = Rules { instances: 1, silent_after: Duration::MAX / 4, forget_after: Duration::ZERO };
        let proof = ProofBook::new(Proof::new(rules), metrics.clone());
        let results = watch::Sender::new(Vec::new());
        let stop = CancellationToken::new();
        let service = Service {
            recipe: recipe.subscribe(),
            in_force,
            sync,
            results: results.subscribe(),
            serve,
            proof: proof.clone(),
            journal,
            metrics: metrics.clone(),
        };
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let _ = stopped.run_until_cancelled(service.run()).await;
        });
        let view = watch::Sender::new(None);
        Self { recipe, view, served, proof, metrics, stop, task, probing: None, results }
    }

    pub fn view(&self) -> watch::Receiver<Option<OpaView>> {
        self.view.subscribe()
    }

    /// Takes up a configuration.
    pub fn configure(&mut self, recipe: Option<Recipe>) {
        let probe = recipe.as_ref().and_then(|recipe| recipe.opa.probe.clone());
        if self.probing.as_ref().map(|(section, _)| section) != probe.as_ref() {
            if let Some((_, stop)) = self.probing.take() {
                stop.cancel();
            }
            self.results.send_replace(Vec::new());
            self.metrics.probes_failing.set(0);
            if let Some(section) = probe {
                let stop = self.stop.child_token();
                let prober = Prober {
                    served: self.served.clone(),
                    trino: recipe.as_ref().is_some_and(|recipe| recipe.opa.package_trino),
                    section: section.clone(),
                    results: self.results.clone(),
                    metrics: self.metrics.clone(),
                };
                let stopped = stop.clone();
                tokio::spawn(async move {
                    let _ = stopped.run_until_cancelled(prober.run()).await;
                });
                self.probing = Some((section, stop));
            }
        }
        if let Some(recipe) = &recipe {
            let now = SystemTime::now();
            let _: Result<(), std::convert::Infallible> = self.proof.write(now, |proof| {
                proof.set_rules(recipe.rules());
                Ok(proof.tick(now))
            });
        }
        self.view.send_replace(recipe.as_ref().map(|recipe| OpaView {
            served: self.served.clone(),
            proof: self.proof.clone(),
            token: recipe.opa.token.clone(),
            certificates: recipe.opa.certificates.as_slice().into(),
        }));
        // Secrets of the same files may have changed, so that an equal recipe counts, too.
        self.recipe.send_replace(recipe);
    }

    /// Whoever waits for a bundle is answered then.
    pub async fn end(self) {
        self.stop.cancel();
        let _ = self.task.await;
    }
}

/// The task that makes bundles.
struct Service {
    recipe: watch::Receiver<Option<Recipe>>,
    in_force: watch::Receiver<InForce>,
    sync: watch::Receiver<Option<SyncView>>,
    results: watch::Receiver<Vec<ProbeResult>>,
    serve: watch::Sender<Served>,
    proof: ProofBook,
    /// Where it is recorded that a change is enforced.
    journal: Option<Journal>,
    metrics: OpaMetrics,
}

impl Service {
    async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                changed = self.recipe.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.turn().await;
                }
                changed = self.in_force.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.turn().await;
                }
                Ok(()) = self.results.changed() => {
                    let results = self.results.borrow_and_update().clone();
                    // Nobody who waits for a bundle is woken by it.
                    self.serve.send_if_modified(|served| {
                        served.probes = results;
                        false
                    });
                }
                _ = tick.tick() => {
                    let now = SystemTime::now();
                    let _: Result<(), std::convert::Infallible> = self.proof.write(now, |proof| Ok(proof.tick(now)));
                    self.record(now).await;
                }
            }
        }
    }

    /// Makes the bundle of what is in force now, if it is to be made at all.
    async fn turn(&mut self) {
        let Some(recipe) = self.recipe.borrow_and_update().clone() else {
            self.serve.send_replace(Served::default());
            self.metrics.bytes.set(0);
            self.metrics.fault.set(0);
            return;
        };
        if self.serve.borrow().bundle.is_none() {
            // What was kept may be older than what OPAs have by now, and the document is mostly there in a moment.
            let _ = timeout(FIRST_READ, self.in_force.wait_for(Option::is_some)).await;
        }
        let in_force = self.in_force.borrow_and_update().clone();
        let Some(snapshot) = in_force else {
            self.restore(&recipe.opa.store).await;
            return;
        };
        let began = Instant::now();
        let (store, document) = (recipe.opa.store.clone(), Arc::clone(&snapshot));
        let made = apart(move || recipe.make(document.document.policy())).await;
        match made.unwrap_or(Err(MakeError::Panicked)) {
            Ok(bundle) => self.publish(bundle, &snapshot, store, began.elapsed()).await,
            Err(error) => {
                self.restore(&store).await;
                self.metrics.built(Build::Failed, began.elapsed());
                self.fault(&error, &snapshot.version);
            }
        }
    }

    async fn publish(&mut self, bundle: Bundle, snapshot: &Snapshot, store: PathBuf, took: Duration) {
        let bundle = Arc::new(bundle);
        let published_at = SystemTime::now();
        // First, so that nobody is believed about it who has not been able to have it.
        self.serves(&bundle);
        let mut new = false;
        self.serve.send_if_modified(|served| {
            served.document = Some(snapshot.version.clone());
            served.fault = None;
            let before = served.bundle.replace(Arc::clone(&bundle));
            new = before.is_none_or(|before| before.etag != bundle.etag);
            if new {
                served.since = Some(published_at);
            }
            new
        });
        self.metrics.built(if new { Build::Ok } else { Build::Unchanged }, took);
        self.metrics.bytes.set(i64::try_from(bundle.bytes.len()).unwrap_or(i64::MAX));
        if !new {
            return;
        }
        tracing::info!(
            revision = %bundle.revision, document = %snapshot.version, bytes = bundle.bytes.len(), ?took,
            "another bundle is served to OPA"
        );
        let changed_at = self.origin(&snapshot.version).await;
        self.book(Publication {
            revision: bundle.revision.as_str().into(),
            document: snapshot.version.as_ref().into(),
            changed_at,
            read_at: snapshot.read_at,
            published_at,
            enforced_at: None,
            lag_seconds: None,
        });
        let kept = Arc::clone(&bundle);
        let written = tokio::task::spawn_blocking(move || keep(&store, &kept.bytes)).await;
        if let Err(error) = written.map_err(std::io::Error::other).and_then(|written| written) {
            tracing::error!(%error, "the bundle cannot be kept for the next start; see opa.store");
        }
    }

    /// An event for each change that every OPA enforces now.
    async fn record(&self, now: SystemTime) {
        let proved = self.proof.take_proved();
        let Some(journal) = &self.journal else { return };
        for Proved { revision, document, lag } in proved {
            let event = Event {
                id: Event::new_id(),
                at: now,
                what: What::Change(Change {
                    kind: ChangeKind::Enforcement,
                    actor: Actor::System,
                    target: Arc::clone(&revision),
                    message: format!(
                        "every OPA enforces the policy, {:.3} s after the change",
                        lag.as_secs_f64()
                    )
                    .into(),
                    good: true,
                    facts: [
                        ("revision".into(), revision),
                        ("document".into(), document),
                        ("lag_seconds".into(), format!("{:.3}", lag.as_secs_f64()).into()),
                    ]
                    .into(),
                }),
            };
            if let Err(error) = journal.record(event).await {
                tracing::error!(%error, "that the policy is enforced is not in the audit trail");
            }
        }
    }

    fn serves(&self, bundle: &Bundle) {
        let _: Result<(), std::convert::Infallible> = self.proof.write(SystemTime::now(), |proof| {
            proof.serves(&bundle.revision.as_str().into());
            Ok(Vec::new())
        });
    }

    fn book(&self, publication: Publication) {
        let now = SystemTime::now();
        let _: Result<(), std::convert::Infallible> =
            self.proof.write(now, |proof| Ok(proof.published(publication, now)));
    }

    /// When the catalog said what led to this document, if the loop published it.
    async fn origin(&self, version: &str) -> Option<SystemTime> {
        let mut status = self.sync.borrow().as_ref()?.handle.status();
        // The run that published it tells so at its end, which may be yet to come.
        let ended = timeout(ORIGIN, status.wait_for(|status| !status.running)).await.ok()?.ok()?;
        let published = ended.published.as_ref()?;
        (&*published.content == version).then_some(published.changed_at)?
    }

    fn fault(&self, error: &MakeError, version: &str) {
        let message: Box<str> =
            OneLine(&error.to_string()).to_string().chars().take(MESSAGE_LIMIT).collect::<String>().into();
        self.serve.send_if_modified(|served| {
            if served.fault.as_ref().is_none_or(|fault| fault.message != message) {
                tracing::error!(
                    document = version,
                    "no bundle can be made of the policy document, and the one before stays: {message}"
                );
                let since = served.fault.take().map_or_else(SystemTime::now, |fault| fault.since);
                served.fault = Some(BundleFault { message, since });
            }
            false
        });
    }

    /// What was served before a restart, where nothing is served yet.
    async fn restore(&self, store: &Path) {
        if self.serve.borrow().bundle.is_some() {
            return;
        }
        let path = store.to_owned();
        let read = apart(move || {
            let metadata = match std::fs::metadata(&path) {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error.to_string()),
            };
            if !metadata.is_file() || metadata.len() > KEPT_LIMIT {
                return Err("it is no file that a bundle was kept in".to_owned());
            }
            let bytes = std::fs::read(&path).map_err(|error| error.to_string())?;
            let bundle = Bundle::kept(bytes).map_err(|error| error.to_string())?;
            Ok(Some((bundle, metadata.modified().ok())))
        });
        let (bundle, since) = match read.await {
            Some(Ok(Some(kept))) => kept,
            Some(Ok(None)) => return,
            Some(Err(error)) => {
                tracing::error!(store = %store.display(), "the kept bundle is not served: {error}");
                return;
            }
            None => return,
        };
        tracing::info!(revision = %bundle.revision, "the bundle of before the start is served until there is another");
        self.metrics.bytes.set(i64::try_from(bundle.bytes.len()).unwrap_or(i64::MAX));
        let now = SystemTime::now();
        self.book(Publication {
            revision: bundle.revision.as_str().into(),
            document: "".into(),
            changed_at: None,
            read_at: now,
            published_at: now,
            enforced_at: None,
            lag_seconds: None,
        });
        self.serve.send_modify(|served| {
            served.bundle = Some(Arc::new(bundle));
            served.since = since;
        });
    }
}

/// Does something on a thread of its own that stands back behind those of sessions; `None`: it panicked.
pub(super) async fn apart<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (tell, told) = oneshot::channel();
    let thread = std::thread::Builder::new().name("policy".to_owned()).spawn(move || {
        stand_back();
        let _ = tell.send(work());
    });
    match thread {
        Ok(_) => told.await.ok(),
        Err(error) => {
            tracing::error!(%error, "no thread can be started");
            None
        }
    }
}

/// Only its owner reads it: it may hold the key of keyed masks.
fn keep(store: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let mut beside = store.as_os_str().to_owned();
    beside.push(".new");
    disk::replace(store, Path::new(&beside), bytes, Some(std::fs::Permissions::from_mode(0o600)))
}

/// The task that asks OPAs what they enforce.
struct Prober {
    served: watch::Receiver<Served>,
    /// Ask where Trino asks.
    trino: bool,
    section: ProbeSection,
    results: watch::Sender<Vec<ProbeResult>>,
    metrics: OpaMetrics,
}

impl Prober {
    async fn run(self) {
        let mut clients = Vec::new();
        for url in &self.section.urls {
            match client::http(url, self.section.ca.as_deref(), PROBE_TIMEOUT) {
                Ok(client) => clients.push(client),
                Err(error) => {
                    tracing::error!(%error, "OPA cannot be asked what it enforces");
                    return;
                }
            }
        }
        let mut turn: usize = rand::rng().random_range(0..1024);
        let mut every = tokio::time::interval(self.section.every);
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            every.tick().await;
            turn = turn.wrapping_add(1);
            let bundle = self.served.borrow().bundle.clone();
            let Some(question) = bundle
                .as_ref()
                .and_then(|bundle| bundle.questions.get(turn.checked_rem(bundle.questions.len())?))
            else {
                // Nothing is masked, or it is not known yet what is.
                continue;
            };
            let input = question.input(probe::NOBODY).to_string();
            let mut results = Vec::new();
            for (url, client) in self.section.urls.iter().zip(&clients) {
                let outcome = match self.ask(url, client, input.clone()).await {
                    None => Probe::Unreachable,
                    Some(answer) => match question.judge(&answer) {
                        Answer::Masked => Probe::Masked,
                        Answer::Differs => Probe::Differs,
                        Answer::Clear => Probe::Clear,
                    },
                };
                self.metrics.probed(outcome);
                if outcome != Probe::Masked {
                    tracing::warn!(
                        url, ?outcome, catalog = %question.catalog, schema = %question.schema, table = %question.table,
                        column = %question.column, "an OPA does not show the mask that the policy document has"
                    );
                }
                results.push(ProbeResult { outcome, at: SystemTime::now() });
            }
            let failing = results.iter().filter(|result| result.outcome != Probe::Masked).count();
            self.metrics.probes_failing.set(i64::try_from(failing).unwrap_or(i64::MAX));
            self.results.send_replace(results);
        }
    }

    async fn ask(&self, url: &str, client: &reqwest::Client, body: String) -> Option<serde_json::Value> {
        let package = if self.trino { "trino" } else { "fedgate/trino" };
        let mut request = client
            .post(format!("{url}/v1/data/{package}/batchColumnMasks"))
            .header("content-type", "application/json")
            .body(body);
        if let Some(token) = self.section.token.clone() {
            let token = tokio::task::spawn_blocking(move || token.read()).await.ok()?.ok()?;
            request = request.bearer_auth(token.expose());
        }
        let response = match request.send().await {
            Ok(response) if response.status().is_success() => response,
            Ok(response) => {
                tracing::debug!(status = %response.status(), "an OPA does not answer a question");
                return None;
            }
            Err(error) => {
                tracing::debug!("an OPA cannot be asked: {}", client::told(&error));
                return None;
            }
        };
        let body = client::body(response, PROBE_ANSWER).await.ok()?;
        serde_json::from_slice(&body).ok()
    }
}
