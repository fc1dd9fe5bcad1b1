//! The routes, and the loop that serves them.
//!
//! Invariant: a connection that is slow, silent or greedy is bounded in time, memory and number,
//! and touches nobody else's.
//!
//! The accept loop is own code: axum::serve sets no time-out for headers and no bound on
//! connections, and both are what keeps a health check answering while somebody plays with it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::http::api::{self, RUN_PATIENCE};
use crate::http::brisk::Brisk;
use crate::http::deployments::{self, DeploymentView, DeploymentsView};
use crate::http::jwt::{Door, Need};
use crate::http::loop_view::SyncView;
use crate::http::masks;
use crate::http::opa::{self, OpaView};
use crate::http::peer::{self, PeerName};
use crate::http::problem::{Problem, json};
use crate::http::readiness::Readiness;
use crate::http::tap::{self, GateView, TapView};
use crate::metrics::Metrics;
use crate::status::{CatalogueStatus, Fault, GatewayStatus, Phase, Reach, SourceStatus};
use crate::sync::reader::DocumentHandle;

/// Connections served at once; more wait in the kernel's queue. Most of them may be of OPAs that wait for a change.
const CONNECTIONS: usize = 2048;
/// From a connection's first byte to the end of its header, for each request anew.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// From then on a connection takes no further request.
const CONNECTION_AGE: Duration = Duration::from_secs(60);
/// A connection as a whole: one that begins to wait for a run at the last moment may wait to the end.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(180);
/// From a whole request to its answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// The whole header of a request, in bytes.
const HEADER_BYTES: usize = 16 * 1024;
/// After an accept that failed (too many open files, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long requests under way may finish when the side is shut down.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(5);

/// All that this room may see.
#[derive(Clone)]
pub struct Parts {
    pub metrics: Arc<Metrics>,
    pub status: watch::Receiver<GatewayStatus>,
    /// Who calls.
    pub door: Arc<Door>,
    /// The policy document.
    pub document: DocumentHandle,
    /// The loop, while it is on.
    pub sync: watch::Receiver<Option<SyncView>>,
    /// The bundle service, while it is on.
    pub opa: watch::Receiver<Option<OpaView>>,
    /// What the configuration policies decide.
    pub deployments: watch::Receiver<DeploymentsView>,
    /// The sources' gates and the sessions' roll.
    pub tap: TapView,
}

/// Every path that is served.
pub fn router(parts: Parts) -> Router {
    Router::new()
        .route("/healthz", get(healthz))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route("/api/v1/sources", get(sources))
        .route("/api/v1/sources/{name}/pause", post(tap::pause))
        .route("/api/v1/sources/{name}/resume", post(tap::resume))
        .route("/api/v1/clients", get(tap::clients).delete(tap::end))
        .route("/api/v1/status", get(api::status))
        .route("/api/v1/config", get(api::config))
        .route("/api/v1/masks", get(masks::masks))
        .route("/api/v1/sync", post(api::sync))
        .route("/api/v1/sync/plan", get(api::plan))
        .route("/api/v1/sync/history", get(api::history))
        .route("/api/v1/sync/rollback", post(api::rollback))
        .route("/api/v1/openapi.json", get(api::openapi))
        .route("/hooks/openmetadata", post(api::openmetadata).layer(Extension(Arc::<api::Hook>::default())))
        .route("/api/v1/enforcement", get(opa::enforcement))
        .route(
            "/api/v1/policy/eval",
            post(deployments::eval).layer(Extension(Arc::<deployments::Room>::default())),
        )
        .route("/opa/bundles/fedgate.tar.gz", get(opa::bundle))
        .route("/opa/status", post(opa::status))
        .route("/opa/status/{partition}", post(opa::status))
        .layer(Extension(Arc::<opa::Room>::default()))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(middleware::from_fn(bounded))
        .with_state(parts)
}

/// Serves until `stop` ends, then lets requests under way finish. With `tls` nothing but TLS is spoken, each connection
/// by what was sent last when it came.
pub async fn serve(
    listener: TcpListener,
    tls: Option<watch::Receiver<TlsAcceptor>>,
    parts: Parts,
    stop: impl Future<Output = ()>,
) {
    serve_router(listener, tls, router(parts), stop).await;
}

async fn serve_router(
    listener: TcpListener,
    tls: Option<watch::Receiver<TlsAcceptor>>,
    service: Router,
    stop: impl Future<Output = ()>,
) {
    tokio::pin!(stop);
    // For the connections: the flag goes up, or this function is dropped.
    let (stopping, shutdown) = watch::channel(false);
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // The permit first: who waits for one waits unaccepted.
        let accept = async {
            let permit = permits.clone().acquire_owned().await;
            (listener.accept().await, permit)
        };
        let (accepted, permit) = tokio::select! {
            biased;
            () = &mut stop => break,
            Some(_) = connections.join_next() => continue,
            accepted = accept => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "an HTTP connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let acceptor = tls.as_ref().map(|tls| tls.borrow().clone());
        let connection = connection(stream, address, acceptor, service.clone(), shutdown.clone());
        connections.spawn(async move {
            // A client that breaks off or dawdles is its own business.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
            drop(permit);
        });
    }
    drop(listener);
    stopping.send_replace(true);
    // Whoever is not done by then is cut off when the set is dropped.
    let _ =
        tokio::time::timeout(SHUTDOWN_TIMEOUT, async { while connections.join_next().await.is_some() {} })
            .await;
}

/// One connection from its first byte to its last.
async fn connection(
    stream: TcpStream,
    address: SocketAddr,
    acceptor: Option<TlsAcceptor>,
    service: Router,
    mut shutdown: watch::Receiver<bool>,
) {
    let Some(acceptor) = acceptor else {
        return answer(stream, PeerName::default(), service, shutdown).await;
    };
    // A handshake ends in a small packet of ours, whose acknowledgement the first answer would wait for.
    let _ = stream.set_nodelay(true);
    let agreed = tokio::select! {
        agreed = peer::handshake(&acceptor, stream) => agreed,
        () = aged_or_stopped(&mut shutdown) => return,
    };
    match agreed {
        Ok((stream, peer)) => {
            tracing::debug!(%address, peer = ?peer.0, "an HTTP client has come over TLS");
            answer(stream, peer, service, shutdown).await;
        }
        // Whoever can reach the port could fill the log with it.
        Err(error) => tracing::debug!(%address, %error, "an HTTP client and TLS did not come together"),
    }
}

/// The requests of a connection, each with `peer` among its extensions.
async fn answer(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: PeerName,
    service: Router,
    mut shutdown: watch::Receiver<bool>,
) {
    let service = TowerToHyperService::new(service);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        service.call(request)
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(HEADER_BYTES);
    let connection = http.serve_connection(TokioIo::new(Brisk::new(stream)), service);
    tokio::pin!(connection);
    tokio::select! {
        _ = connection.as_mut() => {}
        () = aged_or_stopped(&mut shutdown) => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

/// Ends when the connection is old, the flag is up, or nobody is left to raise it.
async fn aged_or_stopped(shutdown: &mut watch::Receiver<bool>) {
    let _ = tokio::time::timeout(CONNECTION_AGE, shutdown.wait_for(|stop| *stop)).await;
}

/// The paths that take a body, and those that wait for a run of the loop.
const WITH_BODY: &[&str] = &["/api/v1/policy/eval", "/api/v1/sync/rollback", "/hooks/openmetadata"];
const POSTED: &[&str] =
    &["/api/v1/policy/eval", "/api/v1/sync", "/api/v1/sync/rollback", "/hooks/openmetadata"];
const WITH_RUN: &[&str] = &["/api/v1/sync", "/api/v1/sync/plan", "/api/v1/sync/rollback"];

/// A hand on the tap of a source.
fn is_tap(path: &str) -> bool {
    path.strip_prefix("/api/v1/sources/").is_some_and(|rest| rest.contains('/'))
}

/// OPA's, with or without a partition.
fn is_report(path: &str) -> bool {
    path.strip_prefix("/opa/status").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Few paths take a body, and none takes long.
async fn bounded(request: Request, next: Next) -> Result<Response, Infallible> {
    let headers = request.headers();
    let empty = headers.get(header::CONTENT_LENGTH).is_none_or(|length| length.as_bytes() == b"0")
        && !headers.contains_key(header::TRANSFER_ENCODING);
    let path = request.uri().path();
    if !empty && !WITH_BODY.contains(&path) && !is_report(path) {
        // The body is never read, so the connection cannot go on.
        let mut refusal =
            Problem::detail(StatusCode::PAYLOAD_TOO_LARGE, "this path takes no body").into_response();
        refusal.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        return Ok(refusal);
    }
    let patience = if WITH_RUN.contains(&path) || is_tap(path) {
        RUN_PATIENCE + REQUEST_TIMEOUT
    } else if path.starts_with("/opa/bundles/") {
        opa::WAIT + REQUEST_TIMEOUT
    } else {
        REQUEST_TIMEOUT
    };
    let answer = tokio::time::timeout(patience, next.run(request));
    Ok(answer.await.unwrap_or_else(|_| Problem::new(StatusCode::SERVICE_UNAVAILABLE).into_response()))
}

/// RFC 9110, section 15.5.6: a 405 names what is allowed.
async fn method_not_allowed(request: Request) -> Response {
    let path = request.uri().path();
    let changes = POSTED.contains(&path) || is_report(path) || is_tap(path);
    let allowed = match path {
        "/api/v1/clients" => "GET, HEAD, DELETE",
        _ if changes => "POST",
        _ => "GET, HEAD",
    };
    let mut answer = Problem::new(StatusCode::METHOD_NOT_ALLOWED).into_response();
    answer.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allowed));
    answer
}

/// The process lives and answers; it says nothing of the sources, which a restart would not mend.
async fn healthz() -> &'static str {
    "ok\n"
}

async fn readyz(State(parts): State<Parts>) -> Response {
    let readiness = Readiness::of(&parts.status.borrow());
    if readiness.ready {
        return as_json(&readiness);
    }
    let mut words: Vec<String> = Vec::new();
    for reason in &readiness.reasons {
        words.push(match &reason.source {
            Some(source) => format!("source {source} {}", reason.reason),
            None => format!("the gateway is {}", reason.reason),
        });
    }
    Problem::with(StatusCode::SERVICE_UNAVAILABLE, Some(words.join("; ")), Some(readiness)).into_response()
}

async fn metrics(State(parts): State<Parts>) -> Response {
    ([json("text/plain; version=0.0.4; charset=utf-8")], parts.metrics.render()).into_response()
}

#[derive(Serialize)]
struct Sources<'s> {
    phase: Phase,
    sources: Vec<SourceView<'s>>,
}

/// What of a source's status is shown; each field is named here, so that a new one is not shown by accident.
#[derive(Serialize)]
struct SourceView<'s> {
    name: &'s str,
    read_only: bool,
    badge: Badge,
    reach: &'s Reach,
    server_version: Option<&'s str>,
    catalogue: Option<&'s CatalogueStatus>,
    catalogue_fault: Option<Fault>,
    sessions: usize,
    /// Whether an administrator has paused it.
    #[serde(flatten)]
    gate: GateView,
    /// What the configuration policies decide, for each workload; `null` without policies.
    deployments: Option<Vec<DeploymentView>>,
}

#[derive(Serialize)]
struct Badge {
    text: &'static str,
    colour: &'static str,
}

impl<'s> SourceView<'s> {
    fn new(source: &'s SourceStatus, deployments: &DeploymentsView, tap: &TapView) -> Self {
        Self {
            name: &source.name,
            read_only: source.read_only,
            badge: match source.read_only {
                true => Badge { text: "read-only", colour: "green" },
                false => Badge { text: "open for writes", colour: "red" },
            },
            reach: &source.reach,
            server_version: source.server_version.as_deref(),
            catalogue: source.catalogue.as_ref(),
            catalogue_fault: source.catalogue_fault,
            sessions: source.sessions.get(),
            gate: tap.of(&source.name),
            deployments: deployments
                .enabled
                .then(|| deployments.sources.get(&source.name).cloned().unwrap_or_default()),
        }
    }
}

async fn sources(State(parts): State<Parts>, headers: HeaderMap) -> Response {
    if let Err(refusal) = parts.door.enter(&headers, Need::Read, &parts.metrics.http).await {
        return *refusal;
    }
    // A copy, so that nothing is held while it is written out.
    let status = parts.status.borrow().clone();
    let deployments = parts.deployments.borrow().clone();
    let sources =
        status.sources.iter().map(|source| SourceView::new(source, &deployments, &parts.tap)).collect();
    as_json(&Sources { phase: status.phase, sources })
}

pub(super) fn as_json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => ([json("application/json")], Body::from(body)).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR).into_response()
        }
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls::{ClientConfig, RootCertStore};
    use rustls_pki_types::{PrivateKeyDer, ServerName};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::TlsConnector;

    use super::*;
    use crate::config::ServerTls;

    /// No answer takes that long.
    const PATIENCE: Duration = Duration::from_secs(30);

    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        certificate: rcgen::Certificate,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            let certificate = params.self_signed(&key).unwrap();
            Self { issuer: Issuer::new(params, key), certificate }
        }

        /// A certificate with these common names, for a server on this machine as for a client.
        fn sign(&self, names: &[&str]) -> (rcgen::Certificate, KeyPair) {
            let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            params.distinguished_name = rcgen::DistinguishedName::new();
            for name in names {
                params.distinguished_name.push(DnType::CommonName, *name);
            }
            let key = KeyPair::generate().unwrap();
            (params.signed_by(&key, &self.issuer).unwrap(), key)
        }
    }

    /// Says the name that its request came with; 500 for a request without the extension.
    fn echo() -> Router {
        async fn name(Extension(PeerName(name)): Extension<PeerName>) -> String {
            format!("{name:?}")
        }
        Router::new().route("/", get(name))
    }

    async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
        let exchange = async {
            let request = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
            stream.write_all(request).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            let (head, body) = answer.split_once("\r\n\r\n").unwrap();
            assert!(head.starts_with("HTTP/1.1 200"), "{answer}");
            body.to_owned()
        };
        tokio::time::timeout(PATIENCE, exchange).await.expect("an answer within the time")
    }

    #[tokio::test]
    async fn each_request_carries_the_name_that_its_connection_has_proved() {
        let authority = Authority::new();
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let (certificate, key) = authority.sign(&["localhost"]);
        let files = ServerTls {
            certificate: write("crt", certificate.pem()),
            private_key: write("key", key.serialize_pem()),
            client_ca: Some(write("ca", authority.certificate.pem())),
        };
        let (_renew, tls) = watch::channel(peer::acceptor(&files).unwrap());
        let bind = || TcpListener::bind("127.0.0.1:0");
        let (plain, encrypted) = (bind().await.unwrap(), bind().await.unwrap());
        let addresses = [plain.local_addr().unwrap(), encrypted.local_addr().unwrap()];
        let mut sides = JoinSet::new();
        sides.spawn(serve_router(plain, None, echo(), std::future::pending()));
        sides.spawn(serve_router(encrypted, Some(tls), echo(), std::future::pending()));

        let stream = TcpStream::connect(addresses[0]).await.unwrap();
        assert_eq!(ask(stream).await, "None");
        let cases: &[(Option<&[&str]>, &str)] = &[
            (None, "None"),
            (Some(&["curator"]), "Some(\"curator\")"),
            (Some(&[""]), "None"),
            (Some(&[]), "None"),
        ];
        for (names, want) in cases {
            let mut roots = RootCertStore::empty();
            roots.add(authority.certificate.der().clone()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots);
            let config = match names {
                None => config.with_no_client_auth(),
                Some(names) => {
                    let (certificate, key) = authority.sign(names);
                    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
                    config.with_client_auth_cert(vec![certificate.der().clone()], key).unwrap()
                }
            };
            let stream = TcpStream::connect(addresses[1]).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
            assert_eq!(ask(stream).await, *want, "{names:?}");
        }
    }
}
