//! The paths of the PII loop: its status, its runs, its history, and the catalog's pushes.
//!
//! Invariant: nothing is changed for somebody who is not an admin, no body is read beyond its bound, and a client that
//! goes away ends nothing but its own waiting.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Extension, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::deployments::PolicyStatus;
use super::jwt::Need;
use super::loop_view::{DocumentView, ReportView, RevisionView, StatusView, SyncView};
use super::problem::Problem;
use super::server::{Parts, as_json};
use crate::audit::event::Actor;
use crate::metrics::Push;
use crate::sync::catalog::openmetadata::event;
use crate::sync::handle::{Ask, AskError, Cause, NotTaken, Report, RunError, SyncStatus};

/// How long a request waits for the run that it asked for; the run goes on after that.
pub(super) const RUN_PATIENCE: Duration = Duration::from_secs(90);
/// Longest body of a request that has one, in bytes; a push has its own bound.
pub(super) const BODY_LIMIT: usize = 64 << 10;
/// How long a body may take to come.
const BODY_TIMEOUT: Duration = Duration::from_secs(8);
/// Bodies of pushes that are held at once: with 1 MiB each, what strangers can make the gateway hold.
const PUSHES: usize = 16;
/// How long a push waits for its turn.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);
/// How often it is said again that pushes cannot be verified.
const SAY_AGAIN: Duration = Duration::from_secs(60);
/// Revisions of one answer, unless fewer are asked for.
const REVISIONS: usize = 100;

pub(super) type Answer = Result<Response, Box<Response>>;

pub(super) fn answer(answer: Answer) -> Response {
    answer.unwrap_or_else(|response| *response)
}

pub(super) fn problem(status: StatusCode, detail: &str) -> Box<Response> {
    Box::new(Problem::detail(status, detail).into_response())
}

fn view(parts: &Parts) -> Result<SyncView, Box<Response>> {
    let view = parts.sync.borrow().clone();
    view.ok_or_else(|| {
        problem(StatusCode::NOT_FOUND, "the sync loop is off; [sync] enabled = true turns it on")
    })
}

pub(super) async fn status(State(parts): State<Parts>, headers: HeaderMap) -> Response {
    answer(
        async {
            parts.door.enter(&headers, Need::Read, &parts.metrics.http).await?;
            let sync = match &*parts.sync.borrow() {
                Some(view) => view.handle.status().borrow().clone(),
                None => SyncStatus::default(),
            };
            let document = DocumentView::of(&parts.document.status().borrow());
            let policy = PolicyStatus::of(&parts.deployments.borrow());
            let sources_paused = parts.tap.paused();
            Ok(as_json(&StatusView { sync, document, policy, sources_paused }))
        }
        .await,
    )
}

pub(super) async fn config(State(parts): State<Parts>, headers: HeaderMap) -> Response {
    answer(
        async {
            parts.door.enter(&headers, Need::Read, &parts.metrics.http).await?;
            let config = parts.sync.borrow().as_ref().map(|view| view.config.clone());
            Ok(as_json(&config.unwrap_or_else(|| json!({"enabled": false}))))
        }
        .await,
    )
}

/// The query of `POST /api/v1/sync`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SyncQuery {
    #[serde(default)]
    dry_run: bool,
    approve: Option<String>,
}

pub(super) async fn sync(
    State(parts): State<Parts>,
    headers: HeaderMap,
    query: Result<Query<SyncQuery>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let asked = async {
        let actor = parts.door.enter(&headers, Need::Admin, &parts.metrics.http).await?;
        let Query(query) = query.map_err(|_| {
            problem(StatusCode::BAD_REQUEST, "the query may hold dry_run=true or false, and approve=PLAN_ID")
        })?;
        let approve = query.approve.map(Into::into);
        run(&parts, Ask { actor, dry_run: query.dry_run, approve }).await
    };
    answer(asked.await)
}

pub(super) async fn plan(State(parts): State<Parts>, headers: HeaderMap) -> Response {
    let asked = async {
        // It makes the gateway read the whole catalog, which is not for everybody.
        let actor = parts.door.enter(&headers, Need::Admin, &parts.metrics.http).await?;
        run(&parts, Ask { actor, dry_run: true, approve: None }).await
    };
    answer(asked.await)
}

async fn run(parts: &Parts, ask: Ask) -> Answer {
    let handle = view(parts)?.handle;
    patiently(async move { handle.run(ask).await }).await
}

/// The query of `GET /api/v1/sync/history`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HistoryQuery {
    limit: Option<usize>,
}

pub(super) async fn history(
    State(parts): State<Parts>,
    headers: HeaderMap,
    query: Result<Query<HistoryQuery>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let listed = async {
        parts.door.enter(&headers, Need::Read, &parts.metrics.http).await?;
        let Query(query) =
            query.map_err(|_| problem(StatusCode::BAD_REQUEST, "the query may hold limit=N and no more"))?;
        let limit = query.limit.unwrap_or(REVISIONS).min(REVISIONS);
        let found: Vec<RevisionView> =
            view(&parts)?.history.list(limit).into_iter().map(RevisionView::from).collect();
        Ok(as_json(&json!({ "revisions": found })))
    };
    answer(listed.await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rollback {
    revision: u64,
}

pub(super) async fn rollback(State(parts): State<Parts>, request: Request) -> Response {
    let asked = async {
        let (head, body) = request.into_parts();
        let actor: Actor = parts.door.enter(&head.headers, Need::Admin, &parts.metrics.http).await?;
        let body = read(body, BODY_LIMIT).await.map_err(|()| {
            problem(StatusCode::PAYLOAD_TOO_LARGE, "the body is longer than this path takes, or was cut off")
        })?;
        let Rollback { revision } = serde_json::from_slice(&body).map_err(|_| {
            problem(
                StatusCode::BAD_REQUEST,
                "the body has to be {\"revision\": N}, with a number of the history",
            )
        })?;
        let handle = view(&parts)?.handle;
        patiently(async move { handle.rollback(revision, actor).await }).await
    };
    answer(asked.await)
}

/// Waits for a run's report, and not for ever; whoever leaves does not end the run.
async fn patiently(asked: impl Future<Output = Result<Report, AskError>> + Send + 'static) -> Answer {
    let report = tokio::time::timeout(RUN_PATIENCE, asked).await;
    match report {
        Ok(Ok(report)) => Ok(as_json(&ReportView::from(&report))),
        Ok(Err(error)) => Err(Box::new(refused(&error))),
        Err(_) => {
            let body = json!({"running": true, "see": "/api/v1/status"}).to_string();
            Ok((StatusCode::ACCEPTED, [(header::CONTENT_TYPE, "application/json")], body).into_response())
        }
    }
}

fn refused(error: &AskError) -> Response {
    let (status, cause) = match error {
        AskError::NotTaken(NotTaken::Full) => (StatusCode::TOO_MANY_REQUESTS, None),
        AskError::NotTaken(NotTaken::Ended) => (StatusCode::SERVICE_UNAVAILABLE, None),
        AskError::Run(RunError { cause, .. }) => {
            let status = match cause {
                Cause::Conflict | Cause::Refused => StatusCode::CONFLICT,
                Cause::JwtExpired | Cause::CatalogUnreachable => StatusCode::BAD_GATEWAY,
                Cause::MissingMask | Cause::Document => StatusCode::UNPROCESSABLE_ENTITY,
                Cause::Audit => StatusCode::SERVICE_UNAVAILABLE,
                Cause::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            };
            (status, Some(*cause))
        }
    };
    Problem::with(status, Some(error.to_string()), cause.map(|cause| json!({ "cause": cause })))
        .into_response()
}

/// What pushes share.
pub(super) struct Hook {
    /// Bodies that may be held at once: whoever sends one need not be anybody, until it is there and its signature good.
    room: Semaphore,
    /// When it was last said that the secret cannot be read, which a push of anybody brings to light.
    /// std Mutex: never held across an await.
    told: Mutex<Option<Instant>>,
}

impl Default for Hook {
    fn default() -> Self {
        Self { room: Semaphore::new(PUSHES), told: Mutex::default() }
    }
}

impl Hook {
    fn no_secret(&self, why: &str) -> Response {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= SAY_AGAIN) {
            *told = Some(Instant::now());
            tracing::error!(why, "no push can be verified without the secret in sync.webhook_secret_file");
        }
        Problem::detail(StatusCode::SERVICE_UNAVAILABLE, "pushes cannot be verified at the moment")
            .into_response()
    }
}

/// `POST /hooks/openmetadata`: a push of the catalog, known by its signature alone.
pub(super) async fn openmetadata(
    State(parts): State<Parts>,
    Extension(hook): Extension<Arc<Hook>>,
    request: Request,
) -> Response {
    let metrics = &parts.metrics.http;
    let Some((handle, secret)) = parts
        .sync
        .borrow()
        .as_ref()
        .and_then(|view| Some((view.handle.clone(), view.webhook_secret.clone()?)))
    else {
        return Problem::detail(StatusCode::NOT_FOUND, "pushes are not taken; see sync.webhook_secret_file")
            .into_response();
    };
    let (head, body) = request.into_parts();
    let Ok(Ok(_room)) = tokio::time::timeout(ROOM_TIMEOUT, hook.room.acquire()).await else {
        metrics.pushed(Push::Busy);
        return close(Problem::detail(
            StatusCode::SERVICE_UNAVAILABLE,
            "too many pushes come at once; send it again",
        ));
    };
    let Ok(body) = read(body, event::BODY_LIMIT).await else {
        metrics.pushed(Push::TooLong);
        return close(Problem::detail(
            StatusCode::PAYLOAD_TOO_LARGE,
            "a push is at most 1 MiB long and comes whole",
        ));
    };
    let secret = tokio::task::spawn_blocking(move || secret.read()).await;
    let secret = match secret.map_err(std::io::Error::other).and_then(|read| read) {
        // Everybody knows the signature under an empty key.
        Ok(secret) if secret.expose().is_empty() => return hook.no_secret("it is empty"),
        Ok(secret) => secret,
        Err(error) => return hook.no_secret(&error.to_string()),
    };
    let signature = head.headers.get("x-om-signature").map_or(&b""[..], |value| value.as_bytes());
    if !event::verify(secret.expose().as_bytes(), signature, &body) {
        metrics.pushed(Push::Signature);
        return Problem::detail(StatusCode::UNAUTHORIZED, "X-OM-Signature is not the signature of this body")
            .into_response();
    }
    let outcome = match event::hint(&body) {
        Err(error) => {
            metrics.pushed(Push::Shape);
            return Problem::detail(StatusCode::BAD_REQUEST, &error.to_string()).into_response();
        }
        Ok(hint) if hint.tables.is_empty() && !hint.whole => Push::Irrelevant,
        Ok(hint) => match handle.push(hint) {
            Ok(()) => Push::Taken,
            // It is a hint, and the timer's run is the net: nobody has to send it again.
            Err(_) => Push::Missed,
        },
    };
    metrics.pushed(outcome);
    StatusCode::ACCEPTED.into_response()
}

/// A body, at most `limit` bytes of it. One that says that it is longer is not read at all.
pub(super) async fn read(body: Body, limit: usize) -> Result<Bytes, ()> {
    let read = tokio::time::timeout(BODY_TIMEOUT, axum::body::to_bytes(body, limit)).await;
    read.map_err(drop)?.map_err(drop)
}

/// An answer to somebody whose body was not read, so that the connection cannot go on.
pub(super) fn close(refusal: impl IntoResponse) -> Response {
    let mut answer = refusal.into_response();
    answer.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
    answer
}

/// `GET /api/v1/openapi.json`
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}

/// The API's description as a value, for tests and tools.
pub fn description() -> Value {
    serde_json::from_str(include_str!("openapi.json")).unwrap_or_default()
}

/// An API that nobody asked to have a loop.
pub fn no_loop() -> tokio::sync::watch::Receiver<Option<SyncView>> {
    tokio::sync::watch::channel(None).1
}

/// An API that serves no bundle.
pub fn no_bundle() -> tokio::sync::watch::Receiver<Option<super::OpaView>> {
    tokio::sync::watch::channel(None).1
}

/// An API that believes everybody.
pub fn open_door() -> Arc<super::Door> {
    Arc::new(super::Door::Open { tls: false })
}
