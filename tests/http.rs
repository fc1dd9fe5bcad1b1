//! The HTTP side over real sockets: what it answers, and what it does to clients that misbehave.

use std::sync::Arc;
use std::time::Duration;

use fedgate::http::{Parts, no_loop, open_door, serve};
use fedgate::ids::SourceName;
use fedgate::metrics::Metrics;
use fedgate::status::{Fault, Phase, Status};
use fedgate::sync::reader::Outlet;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// No answer takes that long, and a test that waits for ever is worse than one that fails.
const PATIENCE: Duration = Duration::from_secs(30);

struct Side {
    address: std::net::SocketAddr,
    status: Status,
    metrics: Arc<Metrics>,
    shutdown: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

async fn start() -> Side {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, stop) = oneshot::channel();
    let (status, metrics) = (Status::new(), Arc::new(Metrics::new().unwrap()));
    let parts = Parts {
        metrics: metrics.clone(),
        status: status.subscribe(),
        door: open_door(),
        document: Outlet::default().handle(),
        sync: no_loop(),
        opa: fedgate::http::no_bundle(),
        deployments: fedgate::http::no_policies(),
        tap: fedgate::http::no_tap(),
    };
    let task = tokio::spawn(serve(listener, None, parts, async {
        // Ends with its sender too.
        let _ = stop.await;
    }));
    Side { address, status, metrics, shutdown, task }
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

impl Side {
    /// Sends `request` as it is and reads until the other side closes.
    async fn exchange(&self, request: &[u8]) -> String {
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await.unwrap();
            stream.write_all(request).await.unwrap();
            let mut answer = Vec::new();
            // A reset after the answer is still an answer.
            let _ = stream.read_to_end(&mut answer).await;
            String::from_utf8(answer).unwrap()
        };
        tokio::time::timeout(PATIENCE, exchange).await.expect("an answer within the time")
    }

    async fn send(&self, method: &str, path: &str, rest: &str) -> Answer {
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{rest}\r\n");
        let answer = self.exchange(request.as_bytes()).await;
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_lowercase(), body: body.to_owned() }
    }

    async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "").await
    }
}

#[tokio::test]
async fn health_and_readiness_are_different_questions() {
    let side = start().await;
    assert_eq!(side.get("/healthz").await.status, 200);
    let starting = side.get("/readyz").await;
    assert_eq!(starting.status, 503);
    assert!(starting.head.contains("content-type: application/problem+json"), "{}", starting.head);
    assert_eq!(starting.json()["status"], 503);
    assert_eq!(starting.json()["detail"], "the gateway is starting");

    side.status.set_phase(Phase::Ready);
    let reporter = side.status.source(&SourceName::new("climscore"), true);
    assert_eq!(side.get("/readyz").await.status, 200);
    reporter.down(Fault::Unreachable, "10.0.0.9:5432 as akko_readonly: refused");
    let down = side.get("/readyz").await;
    assert_eq!(down.status, 503);
    assert_eq!(down.json()["detail"], "source climscore cannot be reached");
    assert_eq!(down.json()["reasons"][0]["source"], "climscore");
    assert!(!down.body.contains("10.0.0.9"));

    reporter.up("17.2");
    side.status.set_phase(Phase::Draining);
    assert_eq!(side.get("/readyz").await.json()["detail"], "the gateway is draining");
    assert_eq!(side.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn sources_show_what_is_open_and_never_where_it_is() {
    let side = start().await;
    let open = side.status.source(&SourceName::new("open"), false);
    let down = side.status.source(&SourceName::new("down"), true);
    open.up("17.2");
    open.catalogue(3, 3142);
    let _session = open.session();
    down.down(Fault::Authentication, "10.0.0.9:5432 as akko_readonly: password authentication failed");
    let answer = side.get("/api/v1/sources").await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("content-type: application/json"));
    let json = answer.json();
    let (one, two) = (&json["sources"][0], &json["sources"][1]);
    assert_eq!((&one["name"], &one["badge"]["colour"]), (&"open".into(), &"red".into()));
    assert_eq!((&one["sessions"], &one["reach"]["state"]), (&1.into(), &"up".into()));
    assert_eq!((&one["catalogue"]["functions"], &one["catalogue"]["generation"]), (&3142.into(), &3.into()));
    assert_eq!((&two["read_only"], &two["badge"]["text"]), (&true.into(), &"read-only".into()));
    assert_eq!(two["reach"]["fault"], "does not accept the gateway's login");
    assert!(!answer.body.contains("akko") && !answer.body.contains("10.0.0.9"));
}

#[tokio::test]
async fn metrics_come_in_the_text_format() {
    let side = start().await;
    side.metrics.established();
    let answer = side.get("/metrics").await;
    assert!(answer.head.contains("content-type: text/plain; version=0.0.4"));
    assert!(answer.body.contains("fedgate_client_connections_total{outcome=\"established\"} 1"));
}

#[tokio::test]
async fn what_is_not_there_is_a_problem() {
    let side = start().await;
    for (method, path, rest, status) in [
        ("GET", "/", "", 404),
        ("GET", "/api/v1/sources/", "", 404),
        ("GET", "/api/v1/sources/%00%ff", "", 404),
        ("POST", "/metrics", "", 405),
        ("DELETE", "/api/v1/sources", "", 405),
        ("POST", "/healthz", "Content-Length: 9999999999\r\n", 413),
        ("GET", "/healthz", "Transfer-Encoding: chunked\r\n", 413),
    ] {
        let answer = side.send(method, path, rest).await;
        assert_eq!(answer.status, status, "{method} {path}");
        assert!(answer.head.contains("content-type: application/problem+json"), "{method} {path}");
        assert_eq!(answer.json()["status"], status);
        assert_eq!(answer.head.contains("allow: get, head"), status == 405);
    }
    let head = side.send("HEAD", "/healthz", "").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn garbage_and_silence_touch_nobody_else() {
    let side = start().await;
    let long = [b"GET /".as_slice(), &vec![b'a'; 100_000]].concat();
    for garbage in [b"\x00\x00\x00\x08\x04\xd2\x16\x2f".as_slice(), b"GET\r\n\r\n", &long] {
        let answer = side.exchange(garbage).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    // One says nothing, one stops in the middle of its header: both are sent away by themselves.
    let begun = side.exchange(b"GET /healthz HTTP/1.1\r\nHos");
    let silent = side.exchange(b"");
    let other = async {
        for _ in 0..20 {
            assert_eq!(side.get("/healthz").await.status, 200);
        }
    };
    let (begun, silent, ()) = tokio::join!(begun, silent, other);
    assert!(!begun.contains("200") && !silent.contains("200"));
}

#[tokio::test]
async fn more_connections_than_are_served_wait_and_are_not_lost() {
    let side = start().await;
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(side.address).await.unwrap());
    }
    // The silent ones run into the header's time-out and make room.
    assert_eq!(side.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn a_shutdown_closes_idle_connections_and_ends() {
    let side = start().await;
    let mut idle = TcpStream::connect(side.address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    side.shutdown.send(()).unwrap();
    tokio::time::timeout(PATIENCE, side.task).await.expect("it ends within the time").unwrap();
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).await.unwrap();
    assert!(TcpStream::connect(side.address).await.is_err());
}
