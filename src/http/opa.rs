//! What OPA asks for and reports: `/opa/bundles/…` and `/opa/status…`, and what people are shown of both.
//!
//! Invariant: the policy goes to whoever has shown the token or the certificate, and a report counts from nobody else;
//! who waits for a change holds a bundle that is shared, and no more than so many wait.
//! <https://www.openpolicyagent.org/docs/management-bundles#http-long-polling>

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::body::Body;
use axum::extract::{Extension, Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, timeout, timeout_at};

use super::api::{Answer, answer, close, problem, read};
use super::jwt::Need;
use super::peer::PeerName;
use super::problem::Problem;
use super::server::{Parts, as_json};
use crate::config::SecretFile;
use crate::metrics::{BundleAnswer, OpaMetrics, OpaReport, OpaState, Probe};
use crate::policy::bundle::Bundle;
use crate::policy::proof::{Proof, Proved, Standing};
use crate::policy::status::Report;
use crate::timestamp;

/// Longest that a request waits for a change, whatever it asks for; it is answered with 304 and comes again.
pub(super) const WAIT: Duration = Duration::from_secs(100);
/// Requests that wait at the same time; connections are bounded, too, and other paths need some.
const POLLERS: usize = 1500;
/// Reports that are read at the same time, and the longest of them, in bytes.
const REPORTS: usize = 16;
const REPORT_LIMIT: usize = 1 << 20;
/// How long a report waits for its turn.
const ROOM_TIMEOUT: Duration = Duration::from_secs(1);
/// On a 200 this tells OPA that it may wait for changes.
const CONTENT_TYPE: &str = "application/vnd.openpolicyagent.bundles";

/// A bundle service that is on; the same handles through all reloads.
#[derive(Clone)]
pub struct OpaView {
    pub served: watch::Receiver<Served>,
    pub proof: ProofBook,
    pub token: Option<SecretFile>,
    /// Common names of client certificates that count.
    pub certificates: Arc<[String]>,
}

/// The books of what is enforced, shared between those who write them.
#[derive(Clone, Debug)]
pub struct ProofBook {
    /// std Mutex: never held across an await.
    proof: Arc<Mutex<Proof>>,
    metrics: OpaMetrics,
}

/// What is served, and how it stands.
#[derive(Clone, Debug, Default)]
pub struct Served {
    pub bundle: Option<Arc<Bundle>>,
    /// Of the policy document that the bundle was made of; `None`: it is the one that was kept.
    pub document: Option<Box<str>>,
    pub since: Option<SystemTime>,
    /// Why the document that is in force gives no bundle.
    pub fault: Option<BundleFault>,
    /// In the order of the configuration.
    pub probes: Vec<ProbeResult>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BundleFault {
    pub message: Box<str>,
    pub since: SystemTime,
}

/// What one OPA answered when it was asked for a masked column.
#[derive(Clone, Copy, Debug)]
pub struct ProbeResult {
    pub outcome: Probe,
    pub at: SystemTime,
}

impl ProofBook {
    pub fn new(proof: Proof, metrics: OpaMetrics) -> Self {
        Self { proof: Arc::new(Mutex::new(proof)), metrics }
    }

    fn lock(&self) -> MutexGuard<'_, Proof> {
        self.proof.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes something into the books, and tells what it proves.
    pub fn write<E>(
        &self,
        now: SystemTime,
        write: impl FnOnce(&mut Proof) -> Result<Vec<Duration>, E>,
    ) -> Result<(), E> {
        let mut proof = self.lock();
        let lags = write(&mut proof)?;
        let counts = proof.counts(now);
        self.metrics.instances(OpaState::Current, counts.current);
        self.metrics.instances(OpaState::Lagging, counts.lagging);
        self.metrics.instances(OpaState::Failing, counts.failing);
        self.metrics.instances(OpaState::Silent, counts.silent);
        self.metrics.waiting(proof.waiting_since());
        drop(proof);
        for lag in &lags {
            self.metrics.enforced(*lag);
        }
        if let Some(lag) = lags.first() {
            tracing::info!(?lag, opas = counts.current, "every OPA enforces the policy");
        }
        Ok(())
    }

    /// What was proved since this was asked last.
    pub fn take_proved(&self) -> Vec<Proved> {
        self.lock().take_proved()
    }

    pub fn standing(&self, now: SystemTime) -> Standing {
        self.lock().standing(now)
    }
}

/// Is it an OPA of ours?
async fn enter(view: &OpaView, headers: &HeaderMap, peer: Option<&PeerName>) -> Result<(), Box<Response>> {
    let certificate = peer.and_then(|peer| peer.0.as_deref());
    if certificate.is_some_and(|name| view.certificates.iter().any(|known| known == name)) {
        return Ok(());
    }
    if let (Some(token), Some(shown)) = (&view.token, bearer(headers)) {
        let token = token.clone();
        let token = tokio::task::spawn_blocking(move || token.read()).await;
        match token.map_err(std::io::Error::other).and_then(|read| read) {
            Ok(token) if token.expose().is_empty() => return Err(no_token("it is empty")),
            // Of hashes, which are as long as each other.
            Ok(token) if Sha256::digest(token.expose()).ct_eq(&Sha256::digest(shown)).into() => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(no_token(&error.to_string())),
        }
    }
    let mut refusal = Problem::detail(
        StatusCode::UNAUTHORIZED,
        "this is for OPA, which shows the token of opa.token_file (Authorization: Bearer …), or a client certificate",
    )
    .into_response();
    refusal.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    Err(Box::new(refusal))
}

fn no_token(why: &str) -> Box<Response> {
    tracing::error!(why, "OPA cannot be told from others without the token in opa.token_file");
    problem(
        StatusCode::SERVICE_UNAVAILABLE,
        "nobody can be believed at the moment; the gateway's log says why",
    )
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (Some(value), None) = (given.next(), given.next()) else { return None };
    let (scheme, token) = value.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

fn view(parts: &Parts) -> Result<OpaView, Box<Response>> {
    let view = parts.opa.borrow().clone();
    view.ok_or_else(|| problem(StatusCode::NOT_FOUND, "no bundle is served; [opa] turns it on"))
}

/// What the paths for OPA share.
pub(super) struct Room {
    pollers: Semaphore,
    reports: Semaphore,
}

impl Default for Room {
    fn default() -> Self {
        Self { pollers: Semaphore::new(POLLERS), reports: Semaphore::new(REPORTS) }
    }
}

/// One more request that waits, until it is dropped.
struct Polling<'m>(&'m OpaMetrics);

impl<'m> Polling<'m> {
    fn new(metrics: &'m OpaMetrics) -> Self {
        metrics.pollers.inc();
        Self(metrics)
    }
}

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.0.pollers.dec();
    }
}

/// `GET /opa/bundles/fedgate.tar.gz`
pub(super) async fn bundle(
    State(parts): State<Parts>,
    Extension(room): Extension<Arc<Room>>,
    peer: Option<Extension<PeerName>>,
    headers: HeaderMap,
) -> Response {
    let metrics = &parts.metrics.opa;
    let asked = async {
        let view = view(&parts)?;
        if let Err(refusal) = enter(&view, &headers, peer.as_deref()).await {
            metrics.answered(BundleAnswer::Refused);
            return Err(refusal);
        }
        let mut served = view.served;
        let until = Instant::now() + wait(&headers);
        let mut waiting = None;
        loop {
            let bundle = served.borrow_and_update().bundle.clone();
            if let Some(bundle) = &bundle
                && !has(&headers, &bundle.etag)
            {
                metrics.answered(BundleAnswer::Sent);
                return Ok(whole(bundle));
            }
            if Instant::now() < until && waiting.is_none() {
                let Ok(place) = room.pollers.try_acquire() else {
                    metrics.answered(BundleAnswer::Busy);
                    return Err(problem(
                        StatusCode::SERVICE_UNAVAILABLE,
                        "too many wait for a change; ask again later",
                    ));
                };
                waiting = Some((place, Polling::new(metrics)));
            }
            // Over as well when the gateway ends, and when there was another one and it was taken back: the report that
            // comes with the next request says that this asker never had it.
            let changed = matches!(timeout_at(until, served.changed()).await, Ok(Ok(())));
            let taken_back = || bundle.is_some() && served.borrow().bundle == bundle;
            if !changed || taken_back() {
                return match bundle {
                    Some(bundle) => {
                        metrics.answered(BundleAnswer::NotModified);
                        Ok((StatusCode::NOT_MODIFIED, head(&bundle)).into_response())
                    }
                    None => {
                        metrics.answered(BundleAnswer::None);
                        Err(problem(
                            StatusCode::SERVICE_UNAVAILABLE,
                            "there is no bundle yet: no policy document was ever in force",
                        ))
                    }
                };
            }
        }
    };
    answer(asked.await)
}

fn head(bundle: &Bundle) -> [(header::HeaderName, String); 3] {
    [
        (header::CONTENT_TYPE, CONTENT_TYPE.to_owned()),
        (header::ETAG, bundle.etag.clone()),
        // It may hold the key of keyed masks.
        (header::CACHE_CONTROL, "private, no-cache".to_owned()),
    ]
}

fn whole(bundle: &Bundle) -> Response {
    (head(bundle), Body::from(bundle.bytes.clone())).into_response()
}

/// Does the asker have it? RFC 9110, section 13.1.2, without weak tags: there are none here.
fn has(headers: &HeaderMap, etag: &str) -> bool {
    let given = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    given.flat_map(|value| value.split(',')).any(|tag| matches!(tag.trim(), tag if tag == etag || tag == "*"))
}

/// How long somebody wants to wait for a change (RFC 7240), up to our own bound.
fn wait(headers: &HeaderMap) -> Duration {
    let given = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut parts = given.flat_map(|value| value.split([';', ',']));
    let seconds = parts.find_map(|part| part.trim().strip_prefix("wait=")?.trim().parse().ok());
    Duration::from_secs(seconds.unwrap_or(0)).min(WAIT)
}

/// `POST /opa/status` and `/opa/status/PARTITION`
pub(super) async fn status(
    State(parts): State<Parts>,
    Extension(room): Extension<Arc<Room>>,
    peer: Option<Extension<PeerName>>,
    partition: Option<Path<String>>,
    request: Request,
) -> Response {
    let metrics = &parts.metrics.opa;
    let told = async {
        let view = view(&parts)?;
        let (head, body) = request.into_parts();
        if let Err(refusal) = enter(&view, &head.headers, peer.as_deref()).await {
            metrics.reported(OpaReport::Refused);
            return Err(Box::new(close(*refusal)));
        }
        let Ok(Ok(_room)) = timeout(ROOM_TIMEOUT, room.reports.acquire()).await else {
            metrics.reported(OpaReport::Busy);
            return Err(Box::new(close(Problem::detail(
                StatusCode::SERVICE_UNAVAILABLE,
                "too many reports come at once; send it again",
            ))));
        };
        let shape = |status: StatusCode, why: &str| {
            metrics.reported(OpaReport::Shape);
            Box::new(close(Problem::detail(status, why)))
        };
        let Ok(body) = read(body, REPORT_LIMIT).await else {
            return Err(shape(
                StatusCode::PAYLOAD_TOO_LARGE,
                "a report is at most 1 MiB long and comes whole",
            ));
        };
        let partition = partition.as_ref().map(|Path(partition)| partition.as_str());
        let report = Report::parse(partition, &body)
            .map_err(|error| shape(StatusCode::BAD_REQUEST, &error.to_string()))?;
        let now = SystemTime::now();
        view.proof.write(now, |proof| proof.reported(report, now)).map_err(|error| {
            metrics.reported(OpaReport::Busy);
            problem(StatusCode::TOO_MANY_REQUESTS, &error.to_string())
        })?;
        metrics.reported(OpaReport::Taken);
        Ok(StatusCode::OK.into_response())
    };
    let told: Answer = told.await;
    answer(told)
}

#[derive(Serialize)]
struct Enforcement {
    enabled: bool,
    bundle: Option<BundleView>,
    /// Why the policy document that is in force gives no bundle; the one above stays.
    fault: Option<FaultView>,
    #[serde(flatten)]
    standing: Standing,
    probes: Vec<ProbeView>,
}

#[derive(Serialize)]
struct BundleView {
    revision: String,
    bytes: usize,
    document: Option<Box<str>>,
    #[serde(serialize_with = "timestamp::maybe_millis")]
    since: Option<SystemTime>,
}

#[derive(Serialize)]
struct FaultView {
    message: Box<str>,
    #[serde(serialize_with = "timestamp::maybe_millis")]
    since: Option<SystemTime>,
}

#[derive(Serialize)]
struct ProbeView {
    outcome: &'static str,
    #[serde(serialize_with = "timestamp::maybe_millis")]
    at: Option<SystemTime>,
}

/// `GET /api/v1/enforcement`
pub(super) async fn enforcement(State(parts): State<Parts>, headers: HeaderMap) -> Response {
    let shown = async {
        parts.door.enter(&headers, Need::Read, &parts.metrics.http).await?;
        let Some(view) = parts.opa.borrow().clone() else {
            return Ok(as_json(&json!({"enabled": false})));
        };
        let served = view.served.borrow().clone();
        let seen = Enforcement {
            enabled: true,
            bundle: served.bundle.map(|bundle| BundleView {
                revision: bundle.revision.clone(),
                bytes: bundle.bytes.len(),
                document: served.document,
                since: served.since,
            }),
            fault: served.fault.map(|fault| FaultView { message: fault.message, since: Some(fault.since) }),
            standing: view.proof.standing(SystemTime::now()),
            probes: served
                .probes
                .iter()
                .map(|probe| ProbeView {
                    outcome: crate::metrics::Label::as_str(probe.outcome),
                    at: Some(probe.at),
                })
                .collect(),
        };
        Ok(as_json(&seen))
    };
    answer(shown.await)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opa_prefers_is_read() {
        let cases: &[(&[&str], u64)] = &[
            (&[], 0),
            (&["modes=snapshot,delta"], 0),
            (&["modes=snapshot,delta;wait=30"], 30),
            (&["wait=5", "wait=7"], 5),
            (&["modes=snapshot", "wait=7"], 7),
            (&["wait=100000"], 100),
            (&["wait=-1"], 0),
            (&["wait=x;wait=3"], 3),
            (&["await=3"], 0),
        ];
        for (given, want) in cases {
            let mut headers = HeaderMap::new();
            for value in *given {
                headers.append("prefer", value.parse().unwrap());
            }
            assert_eq!(wait(&headers), Duration::from_secs(*want), "{given:?}");
        }
    }

    #[test]
    fn a_strong_tag_is_compared_whole() {
        let cases: &[(&[&str], bool)] = &[
            (&[], false),
            (&["\"a\""], true),
            (&["\"b\""], false),
            (&["\"b\", \"a\""], true),
            (&["\"b\"", "\"a\""], true),
            (&["W/\"a\""], false),
            (&["a"], false),
            (&[""], false),
            (&["*"], true),
        ];
        for (given, want) in cases {
            let mut headers = HeaderMap::new();
            for value in *given {
                headers.append(header::IF_NONE_MATCH, value.parse().unwrap());
            }
            assert_eq!(has(&headers, "\"a\""), *want, "{given:?}");
        }
    }

    #[test]
    fn a_token_is_named_by_its_scheme() {
        let cases: &[(&str, Option<&str>)] = &[
            ("Bearer abc", Some("abc")),
            ("bearer abc", Some("abc")),
            ("Basic abc", None),
            ("Bearer", None),
            ("Bearerabc", None),
        ];
        for (given, want) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, given.parse().unwrap());
            assert_eq!(bearer(&headers), want.map(str::as_bytes), "{given}");
        }
    }
}
