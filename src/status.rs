//! What the gateway knows of itself and of its sources, for health checks and the API.
//!
//! Invariant: a status is a copy; reading one never blocks a session, and nothing that is
//! serialised names a host, a login or a secret.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use serde::{Serialize, Serializer};
use tokio::sync::watch;

use crate::ids::SourceName;

/// Longest text kept of an error, in characters.
const DETAIL_LIMIT: usize = 500;

/// Where the gateway stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Not listening yet.
    Starting,
    /// Clients are let in.
    Ready,
    /// New clients are turned away; running statements finish.
    Draining,
}

/// The whole picture, behind one `watch`.
#[derive(Clone, Debug, Serialize)]
pub struct GatewayStatus {
    pub phase: Phase,
    /// In the order of the configuration.
    pub sources: Vec<SourceStatus>,
}

impl GatewayStatus {
    pub fn source(&self, name: &str) -> Option<&SourceStatus> {
        self.sources.iter().find(|source| source.name == name)
    }
}

/// One source.
#[derive(Clone, Debug, Serialize)]
pub struct SourceStatus {
    pub name: String,
    /// False: its writers may write; shown as a red badge.
    pub read_only: bool,
    pub reach: Reach,
    /// The source's `server_version`, once it was asked.
    pub server_version: Option<String>,
    /// The function catalogue in force; nothing but built-in rules before the first one.
    pub catalogue: Option<CatalogueStatus>,
    /// Why the last refresh failed, when it did; the catalogue in force stays.
    pub catalogue_fault: Option<Fault>,
    /// Sessions of clients on this source now.
    pub sessions: Sessions,
}

/// Whether a source can be reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Reach {
    /// Nobody asked yet.
    Unknown,
    Up {
        #[serde(serialize_with = "rfc3339")]
        since: SystemTime,
    },
    Down {
        #[serde(serialize_with = "rfc3339")]
        since: SystemTime,
        /// What failed, in words for everybody.
        fault: Fault,
        /// What failed, with hosts and all: for logs and operators at the terminal only.
        #[serde(skip)]
        detail: String,
    },
}

/// What went wrong with a source, in words that give nothing away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Fault {
    #[serde(rename = "cannot be reached")]
    Unreachable,
    #[serde(rename = "does not answer in time")]
    Timeout,
    #[serde(rename = "TLS cannot be agreed on")]
    Tls,
    #[serde(rename = "does not accept the gateway's login")]
    Authentication,
    #[serde(rename = "has no more connections to give")]
    Full,
    #[serde(rename = "is starting up or shutting down")]
    NotReady,
    #[serde(rename = "does not speak the protocol")]
    Protocol,
    #[serde(rename = "does not accept the session's settings")]
    Pinning,
    #[serde(rename = "the function catalogue cannot be loaded")]
    Catalogue,
    #[serde(rename = "a secret or a certificate of the gateway cannot be read")]
    Secret,
}

impl Fault {
    pub fn as_str(self) -> &'static str {
        match self {
            Fault::Unreachable => "cannot be reached",
            Fault::Timeout => "does not answer in time",
            Fault::Tls => "TLS cannot be agreed on",
            Fault::Authentication => "does not accept the gateway's login",
            Fault::Full => "has no more connections to give",
            Fault::NotReady => "is starting up or shutting down",
            Fault::Protocol => "does not speak the protocol",
            Fault::Pinning => "does not accept the session's settings",
            Fault::Catalogue => "the function catalogue cannot be loaded",
            Fault::Secret => "a secret or a certificate of the gateway cannot be read",
        }
    }
}

/// The function catalogue in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CatalogueStatus {
    /// Grows by one with each catalogue that differs from the one before.
    pub generation: u64,
    pub functions: usize,
    #[serde(serialize_with = "rfc3339")]
    pub loaded: SystemTime,
}

/// A number that sessions move without anybody being woken.
#[derive(Clone, Debug, Default)]
pub struct Sessions(Arc<AtomicUsize>);

impl Sessions {
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Serialize for Sessions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.get() as u64)
    }
}

/// One session on the count of its source, until it is dropped.
#[derive(Debug)]
pub struct SessionCounted(Sessions);

impl Drop for SessionCounted {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*time))
}

/// The writing end; whoever reads gets a `watch::Receiver`.
#[derive(Clone)]
pub struct Status(Arc<watch::Sender<GatewayStatus>>);

impl Default for Status {
    fn default() -> Self {
        Self::new()
    }
}

impl Status {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new(GatewayStatus { phase: Phase::Starting, sources: Vec::new() })))
    }

    pub fn subscribe(&self) -> watch::Receiver<GatewayStatus> {
        self.0.subscribe()
    }

    /// Draining is final: nothing leads back from it.
    pub fn set_phase(&self, phase: Phase) {
        self.0.send_if_modified(|status| {
            let change = status.phase != phase && status.phase != Phase::Draining;
            if change {
                status.phase = phase;
            }
            change
        });
    }

    /// The reporter for a source, which is added when it is new; what is known of it stays.
    pub fn source(&self, name: &SourceName, read_only: bool) -> SourceReporter {
        let mut sessions = Sessions::default();
        self.0.send_modify(|status| match status.sources.iter_mut().find(|s| s.name == name.as_str()) {
            Some(known) => {
                known.read_only = read_only;
                sessions = known.sessions.clone();
            }
            None => status.sources.push(SourceStatus {
                name: name.as_str().to_owned(),
                read_only,
                reach: Reach::Unknown,
                server_version: None,
                catalogue: None,
                catalogue_fault: None,
                sessions: sessions.clone(),
            }),
        });
        SourceReporter { status: self.0.clone(), name: name.clone(), sessions }
    }

    /// Takes a source that is no longer configured out of the picture.
    pub fn forget(&self, name: &SourceName) {
        self.0.send_modify(|status| status.sources.retain(|source| source.name != name.as_str()));
    }
}

/// Reports on one source; cheap to clone. Reports on a forgotten source go nowhere.
#[derive(Clone)]
pub struct SourceReporter {
    status: Arc<watch::Sender<GatewayStatus>>,
    name: SourceName,
    sessions: Sessions,
}

impl SourceReporter {
    /// Readers are woken only when `change` says that it changed something.
    fn modify(&self, change: impl FnOnce(&mut SourceStatus) -> bool) {
        self.status.send_if_modified(|status| {
            match status.sources.iter_mut().find(|source| source.name == self.name.as_str()) {
                Some(source) => change(source),
                None => false,
            }
        });
    }

    /// The source answered. Cheap when that is no news.
    pub fn up(&self, server_version: &str) {
        let known = self.status.borrow().source(self.name.as_str()).is_some_and(|source| {
            matches!(source.reach, Reach::Up { .. })
                && source.server_version.as_deref() == Some(server_version)
        });
        if known {
            return;
        }
        self.modify(|source| {
            source.server_version = Some(shorten(server_version));
            if !matches!(source.reach, Reach::Up { .. }) {
                source.reach = Reach::Up { since: SystemTime::now() };
            }
            true
        });
    }

    /// The source failed. `since` stays that of the first failure in a row.
    pub fn down(&self, fault: Fault, detail: &str) {
        self.modify(|source| {
            let since = match &source.reach {
                Reach::Down { since, .. } => *since,
                Reach::Up { .. } | Reach::Unknown => SystemTime::now(),
            };
            let reach = Reach::Down { since, fault, detail: shorten(detail) };
            let news = source.reach != reach;
            source.reach = reach;
            news
        });
    }

    /// A catalogue is in force.
    pub fn catalogue(&self, generation: u64, functions: usize) {
        self.modify(|source| {
            source.catalogue = Some(CatalogueStatus { generation, functions, loaded: SystemTime::now() });
            source.catalogue_fault = None;
            true
        });
    }

    /// The catalogue in force is the one that the source has.
    pub fn catalogue_confirmed(&self) {
        self.modify(|source| source.catalogue_fault.take().is_some());
    }

    /// No new catalogue could be loaded.
    pub fn catalogue_failed(&self, fault: Fault) {
        self.modify(|source| source.catalogue_fault.replace(fault) != Some(fault));
    }

    /// Counts a session for as long as the answer lives.
    pub fn session(&self) -> SessionCounted {
        self.sessions.0.fetch_add(1, Ordering::Relaxed);
        SessionCounted(self.sessions.clone())
    }
}

fn shorten(text: &str) -> String {
    text.chars().take(DETAIL_LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_stay_out_of_what_is_serialised() {
        let status = Status::new();
        let reporter = status.source(&SourceName::new("climscore"), true);
        reporter.down(Fault::Unreachable, "10.0.0.9:5432 as akko: connection refused");
        let json = serde_json::to_value(&*status.subscribe().borrow()).unwrap();
        assert_eq!(json["phase"], "starting");
        assert_eq!(json["sources"][0]["reach"]["state"], "down");
        assert_eq!(json["sources"][0]["reach"]["fault"], "cannot be reached");
        assert!(!json.to_string().contains("akko"));
    }

    #[test]
    fn every_fault_is_serialised_in_its_own_words() {
        for fault in [
            Fault::Unreachable,
            Fault::Timeout,
            Fault::Tls,
            Fault::Authentication,
            Fault::Full,
            Fault::NotReady,
            Fault::Protocol,
            Fault::Pinning,
            Fault::Catalogue,
            Fault::Secret,
        ] {
            assert_eq!(serde_json::to_value(fault).unwrap(), fault.as_str());
        }
    }

    #[test]
    fn a_row_of_failures_dates_from_its_first_and_wakes_readers_once() {
        let status = Status::new();
        let reporter = status.source(&SourceName::new("s"), true);
        let mut reader = status.subscribe();
        reporter.down(Fault::Timeout, "");
        assert!(reader.has_changed().unwrap());
        let first = reader.borrow_and_update().sources[0].reach.clone();
        reporter.down(Fault::Timeout, "");
        assert!(!reader.has_changed().unwrap());
        assert_eq!(reader.borrow().sources[0].reach, first);
        reporter.up("17.2");
        assert!(matches!(reader.borrow_and_update().sources[0].reach, Reach::Up { .. }));
        reporter.up("17.2");
        assert!(!reader.has_changed().unwrap());
    }

    #[test]
    fn sessions_are_counted_across_a_reload_and_draining_is_final() {
        let status = Status::new();
        let name = SourceName::new("s");
        let first = status.source(&name, true).session();
        let second = status.source(&name, false).session();
        assert_eq!(status.subscribe().borrow().sources[0].sessions.get(), 2);
        assert!(!status.subscribe().borrow().sources[0].read_only);
        drop((first, second));
        assert_eq!(status.subscribe().borrow().sources[0].sessions.get(), 0);
        status.set_phase(Phase::Draining);
        status.set_phase(Phase::Ready);
        assert_eq!(status.subscribe().borrow().phase, Phase::Draining);
        status.forget(&name);
        assert!(status.subscribe().borrow().sources.is_empty());
    }
}
