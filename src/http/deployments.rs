//! What the configuration policies decide, as the API shows it.
//!
//! Invariant: workloads are named by their users and clusters; nothing here names a host or a file's content.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use crate::policy::deploy::Place;

/// How the policies stand, and what they decide.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DeploymentsView {
    pub enabled: bool,
    /// Of the set in force; `None`: none could be understood yet.
    pub revision: Option<Arc<str>>,
    pub since: Option<SystemTime>,
    pub fault: Option<PolicyFault>,
    /// By source.
    pub sources: BTreeMap<String, Vec<DeploymentView>>,
}

/// Why the files are not in force as they are now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyFault {
    /// With file and line.
    pub message: Box<str>,
    #[serde(serialize_with = "known")]
    pub since: SystemTime,
}

/// What is decided for one workload on one source.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DeploymentView {
    pub users: Vec<String>,
    pub cluster: String,
    pub read: bool,
    /// Where masks are made.
    pub transform: Place,
    pub reason: String,
    pub policies: Vec<String>,
}

/// The `policy` of the status.
#[derive(Serialize)]
pub(super) struct PolicyStatus {
    revision: Option<Arc<str>>,
    #[serde(serialize_with = "rfc3339")]
    since: Option<SystemTime>,
    fault: Option<PolicyFault>,
}

impl PolicyStatus {
    /// `None`: there are no policies.
    pub fn of(view: &DeploymentsView) -> Option<Self> {
        view.enabled.then(|| Self {
            revision: view.revision.clone(),
            since: view.since,
            fault: view.fault.clone(),
        })
    }
}

fn rfc3339<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => known(time, serializer),
        None => serializer.serialize_none(),
    }
}

fn known<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*time))
}

/// An API of a gateway without policies.
pub fn no_policies() -> tokio::sync::watch::Receiver<DeploymentsView> {
    tokio::sync::watch::channel(DeploymentsView::default()).1
}
