//! The events there are.
//!
//! Invariant: nothing here is unbounded but the subjects that a run touched.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

/// One event, as the spool keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Unique; a reader drops what it has under this id already.
    pub id: Arc<str>,
    pub at: SystemTime,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    PolicyRun(PolicyRun),
    Statements(Statements),
    Lost(Lost),
    Change(Change),
}

/// Something that changed: by itself, or by an admin's hand on the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub kind: ChangeKind,
    /// Who changed it; absent in what older versions have left.
    #[serde(default = "Actor::system")]
    pub actor: Actor,
    /// The source that a deployment is of, the bundle that is enforced, the user whose sessions were ended.
    pub target: Arc<str>,
    /// For people.
    pub message: Arc<str>,
    /// Reads are deployed, the bundle is enforced, or what was asked for was done.
    pub good: bool,
    /// What else is worth finding again, by name; few and short.
    pub facts: BTreeMap<Arc<str>, Arc<str>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeKind {
    /// What the configuration policies deploy for a workload on a source.
    Deployment,
    /// Every OPA enforces a bundle.
    Enforcement,
    /// A source was paused or resumed.
    Tap,
    /// Sessions were ended.
    Sessions,
}

/// One run of the loop, from its trigger to its outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRun {
    pub actor: Actor,
    pub outcome: Outcome,
    pub duration: Duration,
    pub tables_processed: u64,
    pub subjects_affected: u64,
    pub publish_failures: u64,
    /// Revisions of the policy document before and after.
    pub before: Option<Arc<str>>,
    pub after: Option<Arc<str>>,
    /// Every subject whose masks were touched, sorted.
    pub subjects: Vec<Arc<str>>,
}

/// What events call the gateway itself; nobody else may go by it.
pub const SYSTEM: &str = "system:policy-sync";

/// Who started a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Actor {
    /// Timer, webhook or signal.
    System,
    /// An admin: `preferred_username` and `sub` of their token.
    Admin { name: Arc<str>, subject: Arc<str> },
}

impl Actor {
    fn system() -> Self {
        Actor::System
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Success,
    /// One word, such as `jwt_expired`, and the sentence for people.
    Failure {
        cause: Arc<str>,
        message: Arc<str>,
    },
    /// The process ended between intent and outcome; whether it was published was found out afterwards.
    Interrupted {
        published: bool,
    },
}

/// Refused or admitted statements of one kind: several that are alike are one event with a count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statements {
    pub source: Arc<str>,
    pub client_user: Arc<str>,
    /// As the engine's comment names them: evidence, not authentication.
    pub end_user: Option<Arc<str>>,
    /// The engine's id of the query; the last one's where there are several.
    pub query: Option<Arc<str>>,
    pub verdict: Verdict,
    /// Of the statement with its literals left out.
    pub fingerprint: Arc<str>,
    pub tables: Vec<Arc<str>>,
    /// Rows that an admitted read gave.
    pub rows: Option<u64>,
    /// How many statements this stands for; at least one.
    pub count: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    Admitted { class: Arc<str> },
    Refused { class: Arc<str>, sqlstate: Arc<str> },
}

/// Statements that were counted and not kept, because there was no room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    pub refusals: u64,
    pub reads: u64,
}

impl Event {
    /// A name for an event that nobody else gives: 128 random bits.
    pub fn new_id() -> Arc<str> {
        format!("{:032x}", rand::random::<u128>()).into()
    }

    /// Does this event tell of a policy, so that it may use the reserve?
    pub fn is_policy(&self) -> bool {
        matches!(self.what, What::PolicyRun(_) | What::Change(_))
    }
}
