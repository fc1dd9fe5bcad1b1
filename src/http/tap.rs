//! A hand on the tap: a source paused and resumed, the list of sessions, and sessions ended.
//!
//! Invariant: all of it is for admins; what shuts is done whatever the audit trail says, what opens is done only when
//! the trail has it; no answer and no wait is without a bound.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::api::{RUN_PATIENCE, answer, problem};
use super::jwt::Need;
use super::server::{Parts, as_json};
use crate::audit::event::{Actor, Change, ChangeKind, Event, What};
use crate::audit::journal::Journal;
use crate::ids::{ClientUser, SourceName};
use crate::session::{Gate, Gates, Member, Roll, Whose};

/// Most sessions of one answer.
const SESSIONS: usize = 1000;

/// What of sources and sessions may be seen and shut here.
#[derive(Clone)]
pub struct TapView {
    pub gates: watch::Receiver<Gates>,
    pub roll: Arc<Roll>,
    /// Where it is told of; absent without an audit trail.
    pub journal: Option<Journal>,
}

/// An API that has no source and no session.
pub fn no_tap() -> TapView {
    TapView { gates: watch::channel(Gates::default()).1, roll: Arc::default(), journal: None }
}

/// How a gate stands, among what is shown of a source.
#[derive(Serialize)]
pub(super) struct GateView {
    /// Since when it is paused; `null`: it is not.
    paused_since: Option<String>,
    /// Transactions that have begun and not ended, and sessions that are being opened.
    under_way: usize,
    /// Clients that wait for the resume.
    waiting: u64,
}

fn text(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

impl GateView {
    fn of(gate: &Gate) -> Self {
        let standing = gate.standing();
        Self {
            paused_since: standing.paused.map(text),
            under_way: standing.under_way,
            waiting: standing.waiting,
        }
    }
}

impl TapView {
    fn gate(&self, name: &str) -> Option<Gate> {
        self.gates.borrow().get(&SourceName::new(name)).cloned()
    }

    pub(super) fn of(&self, name: &str) -> GateView {
        match self.gate(name) {
            Some(gate) => GateView::of(&gate),
            None => GateView { paused_since: None, under_way: 0, waiting: 0 },
        }
    }

    /// The names of those that are paused.
    pub(super) fn paused(&self) -> Vec<String> {
        let gates = Arc::clone(&self.gates.borrow());
        let paused = gates.iter().filter(|(_, gate)| gate.is_paused());
        paused.map(|(name, _)| name.as_str().to_owned()).collect()
    }

    async fn record(
        &self,
        kind: ChangeKind,
        actor: Actor,
        target: Arc<str>,
        message: String,
        facts: BTreeMap<Arc<str>, Arc<str>>,
    ) -> Recorded {
        let Some(journal) = &self.journal else { return Recorded::NoTrail };
        let change = Change { kind, actor, target, message: message.into(), good: true, facts };
        let event = Event { id: Event::new_id(), at: SystemTime::now(), what: What::Change(change) };
        match journal.record(event).await {
            Ok(()) => Recorded::Yes,
            Err(error) => {
                tracing::error!(%error, "the audit trail does not take what an administrator does");
                Recorded::No
            }
        }
    }

    /// Shuts, and tells of it when that is news.
    async fn shut(self, gate: Gate, name: Arc<str>, actor: Actor) -> Recorded {
        let news = !gate.is_paused();
        gate.pause();
        if !news {
            return if self.journal.is_some() { Recorded::Yes } else { Recorded::NoTrail };
        }
        let under_way = gate.standing().under_way;
        tracing::warn!(source = &*name, by = %who(&actor), under_way, "the source is paused");
        let facts = [("under_way".into(), under_way.to_string().into())].into();
        let message = format!("source {name} was paused");
        self.record(ChangeKind::Tap, actor, name, message, facts).await
    }

    /// Opens, once that is told of.
    async fn open(self, gate: Gate, name: Arc<str>, actor: Actor) -> Recorded {
        if !gate.is_paused() {
            return if self.journal.is_some() { Recorded::Yes } else { Recorded::NoTrail };
        }
        let (by, waiting) = (who(&actor), gate.standing().waiting);
        let facts = [("waiting".into(), waiting.to_string().into())].into();
        let message = format!("source {name} was resumed");
        let recorded = self.record(ChangeKind::Tap, actor, Arc::clone(&name), message, facts).await;
        if recorded != Recorded::No {
            gate.resume();
            tracing::warn!(source = &*name, %by, waiting, "the source is resumed");
        }
        recorded
    }
}

/// What was begun is done, whether or not whoever asked for it stays.
async fn done(work: impl Future<Output = Recorded> + Send + 'static) -> Recorded {
    tokio::spawn(work).await.unwrap_or(Recorded::No)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Recorded {
    Yes,
    No,
    NoTrail,
}

/// Who did it, for the log.
fn who(actor: &Actor) -> Arc<str> {
    match actor {
        Actor::System => "system".into(),
        Actor::Admin { name, .. } => Arc::clone(name),
    }
}

#[derive(Serialize)]
struct TapAnswer<'s> {
    source: &'s str,
    #[serde(flatten)]
    gate: GateView,
    /// Whether the audit trail has it.
    audited: bool,
}

/// The query of a pause.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PauseQuery {
    wait: Option<String>,
}

impl PauseQuery {
    fn wait(&self) -> Option<Duration> {
        let Some(wait) = &self.wait else { return Some(Duration::ZERO) };
        humantime::parse_duration(wait).ok().filter(|wait| *wait <= RUN_PATIENCE)
    }
}

pub(super) async fn pause(
    State(parts): State<Parts>,
    Path(name): Path<String>,
    headers: HeaderMap,
    query: Result<Query<PauseQuery>, QueryRejection>,
) -> Response {
    let paused = async {
        let actor = parts.door.enter(&headers, Need::Admin, &parts.metrics.http).await?;
        let wait = query.ok().and_then(|Query(query)| query.wait()).ok_or_else(|| {
            problem(StatusCode::BAD_REQUEST, "the query may hold wait=DURATION, such as 30s, up to 90s")
        })?;
        let gate = parts.tap.gate(&name).ok_or_else(|| no_source(&name))?;
        let audited =
            done(parts.tap.clone().shut(gate.clone(), (&*name).into(), actor)).await == Recorded::Yes;
        gate.quiet(wait).await;
        Ok(as_json(&TapAnswer { source: &name, gate: GateView::of(&gate), audited }))
    };
    answer(paused.await)
}

pub(super) async fn resume(
    State(parts): State<Parts>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    let resumed = async {
        let actor = parts.door.enter(&headers, Need::Admin, &parts.metrics.http).await?;
        let gate = parts.tap.gate(&name).ok_or_else(|| no_source(&name))?;
        let recorded = done(parts.tap.clone().open(gate.clone(), (&*name).into(), actor)).await;
        if recorded == Recorded::No {
            return Err(not_recorded());
        }
        let audited = recorded == Recorded::Yes;
        Ok(as_json(&TapAnswer { source: &name, gate: GateView::of(&gate), audited }))
    };
    answer(resumed.await)
}

fn no_source(name: &str) -> Box<Response> {
    let name: String = name.chars().take(63).collect();
    problem(StatusCode::NOT_FOUND, &format!("there is no source {name:?}; GET /api/v1/sources lists them"))
}

fn not_recorded() -> Box<Response> {
    problem(
        StatusCode::SERVICE_UNAVAILABLE,
        "the audit trail does not take it, so it was not done; the gateway's log says why",
    )
}

/// The query of `/api/v1/clients`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ClientsQuery {
    id: Option<u64>,
    user: Option<String>,
    source: Option<String>,
    limit: Option<usize>,
}

impl ClientsQuery {
    fn whose(&self) -> Whose {
        Whose {
            id: self.id,
            user: self.user.as_deref().map(ClientUser::new),
            source: self.source.as_deref().map(SourceName::new),
        }
    }
}

#[derive(Serialize)]
struct Clients {
    total: usize,
    clients: Vec<ClientView>,
}

#[derive(Serialize)]
struct ClientView {
    id: u64,
    user: Arc<str>,
    source: Arc<str>,
    address: String,
    since: String,
}

impl From<Member> for ClientView {
    fn from(member: Member) -> Self {
        Self {
            id: member.id,
            user: member.user.shared(),
            source: member.source.shared(),
            address: member.address.to_string(),
            since: text(member.since),
        }
    }
}

pub(super) async fn clients(
    State(parts): State<Parts>,
    headers: HeaderMap,
    query: Result<Query<ClientsQuery>, QueryRejection>,
) -> Response {
    let listed = async {
        // Who works from where is not for everybody.
        parts.door.enter(&headers, Need::Admin, &parts.metrics.http).await?;
        let Query(query) = query.map_err(|_| {
            problem(StatusCode::BAD_REQUEST, "the query may hold id=N, user=NAME, source=NAME and limit=N")
        })?;
        let most = query.limit.unwrap_or(SESSIONS).min(SESSIONS);
        let (members, total) = parts.tap.roll.list(&query.whose(), most);
        Ok(as_json(&Clients { total, clients: members.into_iter().map(ClientView::from).collect() }))
    };
    answer(listed.await)
}

#[derive(Serialize)]
struct Ended {
    /// Sessions that were told to go just now.
    ended: usize,
    audited: bool,
}

pub(super) async fn end(
    State(parts): State<Parts>,
    headers: HeaderMap,
    query: Result<Query<ClientsQuery>, QueryRejection>,
) -> Response {
    let ended = async {
        let actor = parts.door.enter(&headers, Need::Admin, &parts.metrics.http).await?;
        let query = query.ok().map(|Query(query)| query).filter(|query| query.limit.is_none());
        // A slip must not end everybody's.
        let query = query.filter(|query| query.user.is_some() || query.id.is_some()).ok_or_else(|| {
            problem(
                StatusCode::BAD_REQUEST,
                "the query has to hold user=NAME or id=N, and may hold source=NAME",
            )
        })?;
        let ended = parts.tap.roll.end(&query.whose());
        parts.metrics.sessions_ended.inc_by(ended as u64);
        let mut facts: BTreeMap<Arc<str>, Arc<str>> = BTreeMap::new();
        facts.insert("ended".into(), ended.to_string().into());
        if let Some(source) = &query.source {
            facts.insert("source".into(), short(source));
        }
        if let Some(id) = query.id {
            facts.insert("session".into(), id.to_string().into());
        }
        let target = match (&query.user, query.id) {
            (Some(user), _) => short(user),
            (None, id) => format!("session {}", id.unwrap_or_default()).into(),
        };
        tracing::warn!(by = %who(&actor), %target, source = query.source.as_deref(), ended, "sessions are ended");
        let message = format!("{ended} session(s) of {target} were ended");
        let tap = parts.tap.clone();
        let recorded =
            done(async move { tap.record(ChangeKind::Sessions, actor, target, message, facts).await }).await;
        Ok(as_json(&Ended { ended, audited: recorded == Recorded::Yes }))
    };
    answer(ended.await)
}

/// Names of a query may be as long as a header; PostgreSQL's are not.
fn short(name: &str) -> Arc<str> {
    name.chars().take(63).collect::<String>().into()
}
