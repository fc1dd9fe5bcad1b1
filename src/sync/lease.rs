//! A Lease (coordination.k8s.io) that spares replicas double work.
//!
//! Invariant: it is a hint. Without it, or when it is wrong, replicas do the same work twice and the document's own
//! version keeps them right; so whatever fails here means "go on", and nobody waits for a Lease.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::kubernetes::{CallError, Cluster, Object};
use crate::config::DocumentPlace;

/// How long a Lease holds that nobody renews.
const TERM: Duration = Duration::from_secs(15);
/// Between two looks at it.
const EVERY: Duration = Duration::from_secs(5);
/// A Lease that asks for more than that is not waited for any longer.
const LONGEST_TERM: Duration = Duration::from_secs(60);
/// How long giving it back may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// What a replica knows of its turn.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "standing")]
pub enum Standing {
    /// Nobody can tell: go on.
    #[default]
    Unknown,
    Holding,
    /// Another replica does the work.
    Other {
        holder: Box<str>,
    },
}

impl Standing {
    /// Is there work that another replica does anyway?
    pub fn is_spared(&self) -> bool {
        matches!(self, Self::Other { .. })
    }
}

/// What a Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    holder: Option<Box<str>>,
    term: Duration,
    transitions: u64,
    /// Each renewal makes another one.
    version: Box<str>,
}

impl Record {
    fn read(object: &Value) -> Option<Self> {
        let version =
            object.pointer("/metadata/resourceVersion")?.as_str().filter(|text| !text.is_empty())?;
        let spec = |key: &str| object.get("spec").and_then(|spec| spec.get(key));
        let seconds = spec("leaseDurationSeconds").and_then(Value::as_u64);
        Some(Self {
            holder: spec("holderIdentity")
                .and_then(Value::as_str)
                .filter(|holder| !holder.is_empty())
                .map(Into::into),
            term: seconds.map_or(TERM, Duration::from_secs).min(LONGEST_TERM),
            transitions: spec("leaseTransitions").and_then(Value::as_u64).unwrap_or_default(),
            version: version.into(),
        })
    }
}

/// Whose turn it is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Turn {
    Mine,
    /// Nobody's, or somebody's who has gone.
    Free,
    Theirs(Box<str>),
}

/// `unchanged` is how long this process has seen this very record: clocks of other machines tell nothing.
fn turn(me: &str, record: &Record, unchanged: Duration) -> Turn {
    match &record.holder {
        None => Turn::Free,
        Some(holder) if **holder == *me => Turn::Mine,
        Some(_) if unchanged >= record.term => Turn::Free,
        Some(holder) => Turn::Theirs(holder.clone()),
    }
}

/// The merge patch that takes or renews a Lease as it was read.
fn claim(me: &str, record: &Record, now: SystemTime) -> Value {
    let now = humantime::format_rfc3339_micros(now).to_string();
    let mut spec = json!({
        "holderIdentity": me,
        "leaseDurationSeconds": TERM.as_secs(),
        "renewTime": now,
    });
    if record.holder.as_deref() != Some(me)
        && let Some(spec) = spec.as_object_mut()
    {
        spec.insert("acquireTime".to_owned(), now.into());
        // The server's field has 32 bits.
        let transitions = record.transitions.saturating_add(1).min(i32::MAX.unsigned_abs().into());
        spec.insert("leaseTransitions".to_owned(), transitions.into());
    }
    json!({ "metadata": { "resourceVersion": record.version }, "spec": spec })
}

/// A Lease that is looked at, taken when it is free, renewed, and given back.
#[derive(Debug)]
pub struct Lease {
    cluster: Cluster,
    object: Object,
    me: Box<str>,
    every: Duration,
    standing: watch::Sender<Standing>,
    seen: Option<(Record, Instant)>,
    /// The last thing that was logged.
    told: Option<String>,
}

impl Lease {
    /// `me` has to differ between replicas, and between lives of one of them. Asks nothing yet.
    pub fn new(namespace: &str, name: &str, kubeconfig: Option<PathBuf>, me: &str) -> Self {
        Self {
            cluster: Cluster::new(kubeconfig),
            object: Object::lease(namespace, name),
            me: me.into(),
            every: EVERY,
            standing: watch::Sender::default(),
            seen: None,
            told: None,
        }
    }

    /// The one that `[document]` names, if it names one.
    pub fn of(place: &DocumentPlace, me: &str) -> Option<Self> {
        match place {
            DocumentPlace::ConfigMap { namespace, kubeconfig, lease: Some(lease), .. } => {
                Some(Self::new(namespace, lease, kubeconfig.clone(), me))
            }
            DocumentPlace::ConfigMap { lease: None, .. } | DocumentPlace::File { .. } => None,
        }
    }

    /// How often it is looked at; a third of its term unless said otherwise.
    #[must_use]
    pub fn every(self, every: Duration) -> Self {
        Self { every, ..self }
    }

    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Takes, renews and gives back, until it is told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let _ = stop
            .run_until_cancelled(async {
                loop {
                    self.look().await;
                    sleep(self.every).await;
                }
            })
            .await;
        self.give_back().await;
    }

    async fn look(&mut self) {
        let standing = match self.step().await {
            Ok(standing) => standing,
            Err(error) => {
                self.tell(format!("replicas may do the same work twice, and each goes on: {error}"));
                Standing::Unknown
            }
        };
        let told = match &standing {
            Standing::Unknown => None,
            Standing::Holding => Some("this replica plans".to_owned()),
            Standing::Other { holder } => Some(format!("another replica plans: {holder}")),
        };
        if let Some(told) = told {
            self.tell(told);
        }
        self.standing.send_if_modified(|before| {
            let news = *before != standing;
            *before = standing;
            news
        });
    }

    fn tell(&mut self, what: String) {
        if self.told.as_ref() != Some(&what) {
            tracing::info!(lease = %self.object, "{what}");
            self.told = Some(what);
        }
    }

    async fn step(&mut self) -> Result<Standing, CallError> {
        let record = self.read().await?;
        match self.turn(&record) {
            Turn::Theirs(holder) => Ok(Standing::Other { holder }),
            Turn::Mine | Turn::Free => {
                let patch = claim(&self.me, &record, SystemTime::now());
                match self.cluster.merge(&self.object, &patch).await {
                    Ok(_) => Ok(Standing::Holding),
                    // Somebody was faster; the next look says who, and until then both work.
                    Err(CallError::Conflict { .. }) => {
                        let record = self.read().await?;
                        Ok(match self.turn(&record) {
                            Turn::Theirs(holder) => Standing::Other { holder },
                            Turn::Mine | Turn::Free => Standing::Unknown,
                        })
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    async fn read(&self) -> Result<Record, CallError> {
        let object = self.cluster.get(&self.object).await?;
        Record::read(&object).ok_or_else(|| CallError::Answer("it is no Lease".into()))
    }

    fn turn(&mut self, record: &Record) -> Turn {
        let unchanged = match &self.seen {
            Some((seen, since)) if seen == record => since.elapsed(),
            _ => {
                self.seen = Some((record.clone(), Instant::now()));
                Duration::ZERO
            }
        };
        turn(&self.me, record, unchanged)
    }

    /// So that the next one need not wait for its end.
    async fn give_back(&mut self) {
        if *self.standing.borrow() != Standing::Holding {
            return;
        }
        let farewell = async {
            let record = self.read().await?;
            if record.holder.as_deref() == Some(&*self.me) {
                let patch = json!({
                    "metadata": { "resourceVersion": record.version },
                    "spec": { "holderIdentity": "" },
                });
                self.cluster.merge(&self.object, &patch).await?;
            }
            Ok::<_, CallError>(())
        };
        if !matches!(timeout(FAREWELL, farewell).await, Ok(Ok(()))) {
            tracing::info!(lease = %self.object, "it could not be given back; it ends by itself within {} s", TERM.as_secs());
        }
        self.standing.send_replace(Standing::Unknown);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holder: Option<&str>, version: &str) -> Record {
        Record { holder: holder.map(Into::into), term: TERM, transitions: 3, version: version.into() }
    }

    #[test]
    fn a_turn_ends_when_it_is_not_renewed_for_its_term() {
        let theirs = record(Some("b"), "7");
        let almost = TERM - Duration::from_nanos(1);
        assert_eq!(turn("a", &theirs, Duration::ZERO), Turn::Theirs("b".into()));
        assert_eq!(turn("a", &theirs, almost), Turn::Theirs("b".into()));
        assert_eq!(turn("a", &theirs, TERM), Turn::Free);
        assert_eq!(turn("a", &record(None, "7"), Duration::ZERO), Turn::Free);
        assert_eq!(turn("b", &theirs, Duration::ZERO), Turn::Mine);
        // One's own is one's own however long nobody looked.
        assert_eq!(turn("b", &theirs, TERM * 100), Turn::Mine);
    }

    #[test]
    fn a_lease_is_read_whatever_it_holds() {
        let read = |object: Value| Record::read(&object);
        assert_eq!(read(json!({})), None);
        assert_eq!(
            read(json!({ "metadata": { "resourceVersion": "" } })),
            None,
            "it would patch whatever is there"
        );
        let fresh = read(json!({ "metadata": { "resourceVersion": "1" } })).unwrap();
        assert_eq!((fresh.holder, fresh.term, fresh.transitions), (None, TERM, 0));
        let odd = json!({
            "metadata": { "resourceVersion": "2" },
            "spec": { "holderIdentity": "", "leaseDurationSeconds": 315_360_000_u64, "leaseTransitions": -1 },
        });
        let odd = read(odd).unwrap();
        assert_eq!((odd.holder, odd.term, odd.transitions), (None, LONGEST_TERM, 0));
        assert_eq!(read(json!({ "metadata": { "resourceVersion": 2 }, "spec": "x" })), None);
    }

    #[test]
    fn a_claim_names_the_writing_that_was_read() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_micros(1_500_000);
        let taken = claim("a", &record(Some("b"), "7"), now);
        assert_eq!(
            taken,
            json!({ "metadata": { "resourceVersion": "7" }, "spec": {
                "holderIdentity": "a", "leaseDurationSeconds": 15, "renewTime": "1970-01-01T00:00:01.500000Z",
                "acquireTime": "1970-01-01T00:00:01.500000Z", "leaseTransitions": 4 } })
        );
        let renewed = claim("a", &record(Some("a"), "8"), now);
        assert_eq!(renewed.pointer("/spec/leaseTransitions"), None);
        assert_eq!(renewed.pointer("/spec/acquireTime"), None);
    }
}
