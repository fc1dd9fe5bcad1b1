//! The sources: their function catalogues kept fresh, their snapshots published.
//!
//! Invariant: a snapshot is replaced whole and only by a newer one; a catalogue that cannot be loaded
//! leaves the last good one in force, and a source without one lets nobody in.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tokio::runtime::Builder;
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::{AbortHandle, spawn_blocking};
use tokio::time::{Instant, sleep_until, timeout};

use crate::config;
use crate::ids::SourceName;
use crate::metrics::{Metrics, SourceMetrics};
use crate::session::{self, Gate, Gates, OpenSource, Restraints, Snapshot, Watch};
use crate::sql;
use crate::sql::catalogue::Catalogue;
use crate::sql::catalogue::graph::{self, Rows};
use crate::sql::comment::CommentFormat;
use crate::status::{Fault, SourceReporter, Status};
use crate::upstream::catalogue::{LoadError, Loader};
use crate::upstream::{Pool, Source, SourceError};

/// A catalogue is not asked for more often than this, however many unknown functions are named.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// Nor for longer than one part in so many, however long it takes.
const IDLE: u32 = 4;
/// After a failure the pause doubles up to this.
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);
/// For one load of a catalogue, from dial to the last row.
const LOAD_LIMIT: Duration = Duration::from_secs(60);

type Published = Arc<watch::Sender<Option<Arc<Snapshot>>>>;

/// A source and the task that keeps its snapshot.
struct Kept {
    open: OpenSource,
    config: Arc<config::Source>,
    published: Published,
    failures: Arc<watch::Sender<Option<Fault>>>,
    keeper: AbortHandle,
    /// Absent once the pool is a successor's.
    pool_keeper: Option<AbortHandle>,
    /// What its limits need to run.
    _watch: Watch,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.keeper.abort();
        if let Some(pool_keeper) = &self.pool_keeper {
            pool_keeper.abort();
            self.open.pool.close();
        }
    }
}

pub struct Sources {
    metrics: Arc<Metrics>,
    status: Status,
    /// Never twice the same number, so that no verdict of an older snapshot is taken for a newer one's.
    generations: Arc<AtomicU64>,
    kept: HashMap<SourceName, Kept>,
    gates: watch::Sender<Gates>,
}

impl Sources {
    pub fn new(metrics: Arc<Metrics>, status: Status) -> Self {
        let gates = watch::Sender::default();
        Self { metrics, status, generations: Arc::default(), kept: HashMap::new(), gates }
    }

    /// The gates of the sources that are configured.
    pub fn gates(&self) -> watch::Receiver<Gates> {
        self.gates.subscribe()
    }

    /// Takes up a configuration: new sources begin, changed ones get a new snapshot, missing ones end.
    ///
    /// # Errors
    /// A source that cannot be set up; then nothing has changed.
    pub fn configure(
        &mut self,
        configs: &[Arc<config::Source>],
        limits: &config::Limits,
    ) -> Result<HashMap<SourceName, OpenSource>, SourceError> {
        let mut built = Vec::new();
        for config in configs {
            built.push((Arc::clone(config), Arc::new(Source::new(Arc::clone(config))?)));
        }
        let limits = judged_within(limits);
        let mut previous = std::mem::take(&mut self.kept);
        for (config, source) in built {
            let before = previous.remove(&config.name);
            // Whoever pauses a source to move it wants it paused behind the move.
            let gate = before.as_ref().map(|before| before.open.gate.clone());
            // The functions of another server say nothing about this one, and its sessions end.
            let before = before.filter(|before| same_server(&before.config, &config));
            let kept = self.keep(config, source, before, gate, limits);
            self.kept.insert(kept.config.name.clone(), kept);
        }
        for name in previous.keys() {
            self.status.forget(name);
            self.metrics.forget(name);
        }
        let gates: BTreeMap<_, _> =
            self.kept.iter().map(|(name, kept)| (name.clone(), kept.open.gate.clone())).collect();
        self.gates.send_replace(Arc::new(gates));
        Ok(self.kept.iter().map(|(name, kept)| (name.clone(), kept.open.clone())).collect())
    }

    fn keep(
        &self,
        config: Arc<config::Source>,
        source: Arc<Source>,
        mut before: Option<Kept>,
        gate: Option<Gate>,
        limits: sql::Limits,
    ) -> Kept {
        let reporter = self.status.source(&config.name, config.read_only);
        let metrics = self.metrics.source(&config.name);
        metrics.read_only(config.read_only);
        if !config.read_only {
            tracing::warn!(source = %config.name, writers = ?config.writers, "source is open for writes by its writers");
        }
        let gate = gate.unwrap_or_else(|| Gate::new(config.name.clone(), metrics.gate.clone()));
        let published = before
            .as_ref()
            .map_or_else(|| Arc::new(watch::Sender::new(None)), |before| Arc::clone(&before.published));
        let failures = before
            .as_ref()
            .map_or_else(|| Arc::new(watch::Sender::new(None)), |before| Arc::clone(&before.failures));
        let known = published.borrow().as_ref().map(|snapshot| Arc::clone(&snapshot.catalogue));
        let keeper = Keeper {
            source: Arc::clone(&source),
            config: Arc::clone(&config),
            limits,
            published: Arc::clone(&published),
            failures: Arc::clone(&failures),
            // Sessions of before ask by it too.
            stale: before.as_ref().map(|before| Arc::clone(&before.open.stale)).unwrap_or_default(),
            reporter: reporter.clone(),
            metrics: metrics.clone(),
            gate: gate.clone(),
            generations: Arc::clone(&self.generations),
        };
        // The rules may be other ones now, with the functions of before.
        if let Some(catalogue) = known {
            keeper.publish(catalogue);
        }
        let kept = before.as_mut().filter(|before| Pool::serves_both(&before.config, &config));
        let kept = kept.and_then(|before| Some((Arc::clone(&before.open.pool), before.pool_keeper.take()?)));
        let (pool, pool_keeper) = kept.unwrap_or_else(|| {
            let pool = Pool::new(Arc::clone(&source), metrics.clone());
            let pool_keeper = tokio::spawn(Arc::clone(&pool).keep()).abort_handle();
            (pool, pool_keeper)
        });
        pool.renew(Arc::clone(&source));
        let restraints = before.as_ref().map_or_else(
            || Restraints::new(self.metrics.limits(&config.name)),
            |before| Arc::clone(&before.open.restraints),
        );
        let watch = restraints.watch(&source);
        let open = OpenSource {
            source,
            pool,
            snapshots: published.subscribe(),
            failures: failures.subscribe(),
            stale: Arc::clone(&keeper.stale),
            gate,
            metrics,
            reporter,
            restraints,
        };
        let keeper = tokio::spawn(keeper.run()).abort_handle();
        Kept { open, config, published, failures, keeper, pool_keeper: Some(pool_keeper), _watch: watch }
    }
}

/// The bounds of one text.
pub(super) fn judged_within(limits: &config::Limits) -> sql::Limits {
    sql::Limits {
        bytes: limits.statement_bytes,
        tokens: limits.statement_weight,
        weight: limits.statement_weight,
        depth: limits.statement_depth,
        ..sql::Limits::default()
    }
}

/// Hosts of one source are one database by the operator's word, so one in common is enough.
fn same_server(one: &config::Source, other: &config::Source) -> bool {
    one.database == other.database && one.hosts.iter().any(|host| other.hosts.contains(host))
}

/// Keeps the snapshot of one source.
struct Keeper {
    source: Arc<Source>,
    config: Arc<config::Source>,
    limits: sql::Limits,
    published: Published,
    failures: Arc<watch::Sender<Option<Fault>>>,
    stale: Arc<Notify>,
    reporter: SourceReporter,
    metrics: SourceMetrics,
    gate: Gate,
    generations: Arc<AtomicU64>,
}

impl Keeper {
    fn publish(&self, catalogue: Arc<Catalogue>) -> u64 {
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        let comment =
            self.config.engine.as_ref().and_then(|engine| CommentFormat::parse(&engine.comment).ok());
        self.published.send_replace(Some(Arc::new(Snapshot {
            config: Arc::clone(&self.config),
            catalogue,
            limits: self.limits,
            comment,
            generation,
        })));
        generation
    }

    async fn run(self) {
        let mut loader = Loader::default();
        let mut backoff = SHORTEST_PAUSE;
        // The first load is nobody's doing.
        let mut first = true;
        loop {
            // The gateway leaves a paused source alone as well.
            self.gate.opened().await;
            let began = Instant::now();
            let pause = match self.load(&mut loader).await {
                Ok(()) => {
                    backoff = SHORTEST_PAUSE;
                    self.config.catalogue_refresh
                }
                Err((fault, detail)) => {
                    self.metrics.catalogue_failed();
                    self.metrics.up(false);
                    self.reporter.catalogue_failed(fault);
                    self.reporter.down(fault, &detail);
                    self.failures.send_replace(Some(fault));
                    tracing::error!(source = %self.config.name, detail, "the function catalogue could not be loaded");
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                    backoff
                }
            };
            let now = Instant::now();
            let busy = if std::mem::take(&mut first) { Duration::ZERO } else { now - began };
            tokio::select! {
                () = sleep_until(now + pause) => {}
                // Whoever names unknown functions makes the source busy for a small part of the time only.
                () = self.stale.notified() => sleep_until(now + SHORTEST_PAUSE.max(busy * IDLE)).await,
            }
        }
    }

    async fn load(&self, loader: &mut Loader) -> Result<(), (Fault, String)> {
        let began = Instant::now();
        let source = Arc::clone(&self.source);
        let taken = std::mem::take(loader);
        // Dropped with this future, which ends the work.
        let (_wanted, unwanted) = oneshot::channel::<()>();
        // Reading and judging a large catalogue takes a processor for seconds: not one that moves bytes.
        let work = spawn_blocking(move || apart(&source, taken, unwanted));
        let (returned, loaded) = work.await.map_err(|error| (Fault::Catalogue, error.to_string()))?;
        *loader = returned;
        let (version, catalogue) = loaded?;
        self.metrics.up(true);
        self.reporter.up(&version);
        self.metrics.catalogue_loaded(SystemTime::now());
        let Some(catalogue) = catalogue else {
            self.reporter.catalogue_confirmed();
            return Ok(());
        };
        let same = self.published.borrow().as_ref().is_some_and(|snapshot| *snapshot.catalogue == catalogue);
        let (functions, _, _) = catalogue.size();
        if same {
            self.reporter.catalogue_confirmed();
        } else {
            let generation = self.publish(Arc::new(catalogue));
            let took = began.elapsed().as_millis();
            tracing::info!(source = %self.config.name, generation, functions, version, took, "function catalogue in force");
            self.reporter.catalogue(generation, functions);
        }
        Ok(())
    }
}

/// Loads and judges on this thread, until nobody wants it any more.
///
/// On a runtime of its own: another's timers panic once it shuts down, and at the end of the gateway a load
/// may be under way.
fn apart(
    source: &Source,
    mut loader: Loader,
    unwanted: oneshot::Receiver<()>,
) -> (Loader, Result<(String, Option<Catalogue>), (Fault, String)>) {
    let runtime = match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return (loader, Err((Fault::Catalogue, error.to_string()))),
    };
    let loaded = runtime.block_on(async {
        tokio::select! {
            biased;
            _ = unwanted => Err((Fault::Catalogue, "the source is not kept any more".to_owned())),
            loaded = load_rows(source, &mut loader) => loaded,
        }
    });
    // A name that is still being resolved holds nobody up.
    runtime.shutdown_background();
    let judged = loaded.map(|(version, rows)| (version, rows.map(|rows| graph::judge(&rows).build())));
    (loader, judged)
}

/// Asks a source for its version and what is in its catalogs; nothing, if that is as it was.
///
/// # Errors
/// What failed, in general words and in full; the second is for the log.
async fn load_rows(source: &Source, loader: &mut Loader) -> Result<(String, Option<Rows>), (Fault, String)> {
    let load = async {
        let (client, connection) =
            source.client().await.map_err(|error| (session::fault(&error), error.to_string()))?;
        let failed = |error: LoadError| (Fault::Catalogue, error.to_string());
        let loading = async {
            let version = client.query_one("SHOW server_version", &[]).await?.try_get::<_, String>(0)?;
            Ok((version, loader.rows(&client).await?))
        };
        tokio::pin!(connection);
        tokio::select! {
            loaded = loading => loaded.map_err(failed),
            ended = &mut connection => {
                let why = ended.err().map_or_else(|| "the connection ended".to_owned(), |error| error.to_string());
                Err((Fault::Catalogue, why))
            }
        }
    };
    timeout(LOAD_LIMIT, load)
        .await
        .map_err(|_| (Fault::Timeout, "the function catalogue took too long".to_owned()))?
}

/// Loads a source's catalogue once.
///
/// # Errors
/// As for the keeper's loads.
pub(super) async fn load_catalogue(source: &Source) -> Result<(String, Catalogue), (Fault, String)> {
    let (version, rows) = load_rows(source, &mut Loader::default()).await?;
    Ok((version, rows.map(|rows| graph::judge(&rows).build()).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::mpsc;

    use super::*;

    /// The end of the gateway while a source does not answer. Without a runtime of its own, the load panicked
    /// in some of these rounds, on a timer of the one that was gone.
    #[test]
    fn a_load_under_way_ends_without_a_panic_when_the_runtime_does() {
        let folder = tempfile::tempdir().unwrap();
        let password = folder.path().join("password");
        std::fs::write(&password, "hunter2\n").unwrap();
        std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o600)).unwrap();
        for _ in 0..50 {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let text = format!(
                "[gateway]\nlisten = [\"127.0.0.1:0\"]\n[gateway.auth]\nmethod = \"trust\"\n[[source]]\nname = \"s\"\n\
                 hosts = [\"{}\"]\ndatabase = \"s\"\nuser = \"u\"\npassword_file = \"password\"\n\
                 access = [{{ users = [\"a\"] }}]\n",
                listener.local_addr().unwrap()
            );
            let config = config::Config::parse(&text, folder.path()).unwrap();
            let source = Source::new(Arc::clone(config.sources.first().unwrap())).unwrap();
            let runtime = Builder::new_current_thread().enable_all().build().unwrap();
            let (wanted, unwanted) = oneshot::channel::<()>();
            runtime.spawn(async move {
                let _wanted = wanted;
                std::future::pending::<()>().await;
            });
            let (tell, told) = mpsc::channel();
            runtime.spawn_blocking(move || tell.send(apart(&source, Loader::default(), unwanted).1.err()));
            let under_way = listener.accept().unwrap();
            runtime.shutdown_background();
            let ended = told.recv_timeout(Duration::from_secs(60)).unwrap();
            assert_eq!(ended.map(|(fault, _)| fault), Some(Fault::Catalogue));
            drop(under_way);
        }
    }
}
