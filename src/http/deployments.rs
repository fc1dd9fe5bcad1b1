//! What the configuration policies decide, as the API shows it.
//!
//! Invariant: workloads are named by their users and clusters; nothing here names a host or a file's content.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::api::{BODY_LIMIT, answer, problem, read};
use super::jwt::Need;
use super::server::{Parts, as_json};
use crate::policy::deploy::Place;
use crate::timestamp;

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
    /// The set in force, to be asked about other inputs.
    pub asker: Option<Asker>,
}

type Ask = dyn Fn(&Value) -> Value + Send + Sync;

/// Answers about an input document of the policies.
#[derive(Clone)]
pub struct Asker(Arc<Ask>);

impl Asker {
    pub fn new(ask: Arc<Ask>) -> Self {
        Self(ask)
    }
}

/// Askers of one revision are alike, and the revision stands beside them.
impl PartialEq for Asker {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asker")
    }
}

/// Questions that are answered at the same time.
const QUESTIONS: usize = 2;
/// How long one waits for its turn.
const ROOM_TIMEOUT: Duration = Duration::from_secs(5);

/// When an answer that has not come is given up: every step of an evaluation is looked at, and one that does not end
/// cannot be.
const GIVE_UP: Duration = Duration::from_secs(10);

/// What questions share.
pub(super) struct Room(Arc<Semaphore>);

impl Default for Room {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(QUESTIONS)))
    }
}

/// `POST /api/v1/policy/eval`: what the policies in force decide about an input.
pub(super) async fn eval(
    State(parts): State<Parts>,
    Extension(room): Extension<Arc<Room>>,
    request: Request,
) -> Response {
    let asked = async {
        let (head, body) = request.into_parts();
        parts.door.enter(&head.headers, Need::Read, &parts.metrics.http).await?;
        let body = read(body, BODY_LIMIT).await.map_err(|()| {
            problem(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than this path takes, or was cut off")
        })?;
        let input: Map<String, Value> = serde_json::from_slice(&body).map_err(|_| {
            problem(
                StatusCode::BAD_REQUEST,
                "the body has to be an input document of the policies, a JSON object",
            )
        })?;
        let Some(asker) = parts.deployments.borrow().asker.clone() else {
            return Err(problem(
                StatusCode::NOT_FOUND,
                "no configuration policies are in force; see [policy]",
            ));
        };
        let Ok(Ok(turn)) = timeout(ROOM_TIMEOUT, Arc::clone(&room.0).acquire_owned()).await else {
            return Err(problem(StatusCode::SERVICE_UNAVAILABLE, "others ask at the moment; ask again"));
        };
        // On a thread of its own, which is left behind when it does not end; until then its turn is taken.
        let (tell, told) = oneshot::channel();
        let work = move || {
            let _turn = turn;
            let _ = tell.send((asker.0)(&Value::Object(input)));
        };
        let started = std::thread::Builder::new().name("policy-eval".to_owned()).spawn(work);
        match (started, timeout(GIVE_UP, told).await) {
            (Ok(_), Ok(Ok(answer))) => Ok(as_json(&answer)),
            (Ok(_), Err(_)) => Err(problem(
                StatusCode::INTERNAL_SERVER_ERROR,
                "a step of the policies does not end for this input",
            )),
            (Err(_), _) | (_, Ok(Err(_))) => Err(problem(
                StatusCode::INTERNAL_SERVER_ERROR,
                "a defect of fedgate; please report it with the log",
            )),
        }
    };
    answer(asked.await)
}

/// Why the files are not in force as they are now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PolicyFault {
    /// With file and line.
    pub message: Box<str>,
    #[serde(serialize_with = "timestamp::seconds")]
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
    #[serde(serialize_with = "timestamp::maybe_seconds")]
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

/// An API of a gateway without policies.
pub fn no_policies() -> tokio::sync::watch::Receiver<DeploymentsView> {
    tokio::sync::watch::channel(DeploymentsView::default()).1
}
