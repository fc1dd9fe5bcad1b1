//! HTTP over TLS: who is answered, what a renewed certificate does, and what clients get that do not play along.
//!
//! Invariant: everything here was said over a socket, but for one test to the built gateway.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use fedgate::config::ServerTls;
use fedgate::http::{Door, Parts, acceptor, no_bundle, no_loop, no_policies, serve};
use fedgate::metrics::Metrics;
use fedgate::status::Status;
use fedgate::sync::reader::Outlet;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use support::certificates::client_tls;
use support::{Authority, Gateway, Pair, Setup};
use tokio::sync::{oneshot, watch};

/// No answer takes that long, and a test that waits for ever is worse than one that fails.
const PATIENCE: Duration = Duration::from_secs(30);

/// A gateway whose source is away: HTTP needs none.
const GATEWAY: &str = r#"
[gateway]
listen = ["127.0.0.1:0"]
drain_timeout = "1s"

[gateway.auth]
method = "trust"

[[source]]
name = "climscore"
hosts = ["127.0.0.1:1"]
database = "climscore"
user = "akko_readonly"
access = [{ users = ["analyst"] }]

[http]
listen = "127.0.0.1:0"
"#;

const TLS: &str = r#"
[http.tls]
certificate = "server.crt"
private_key = "server.key"
"#;

const CLIENT_CA: &str = "client_ca = \"clients.crt\"\n";

const DEBUG: &str = "[log]\nlevel = \"debug\"\n";

fn server(authority: &Authority) -> Pair {
    authority.server(&["localhost", "127.0.0.1"])
}

fn start(toml: String, authority: &Authority) -> Gateway {
    let pair = server(authority);
    let setup = Setup::new(toml)
        .file("server.crt", pair.certificate)
        .file("server.key", pair.private_key)
        .file("clients.crt", authority.certificate());
    Gateway::start(setup)
}

fn client(authority: &Authority, identity: Option<&Pair>) -> Arc<ClientConfig> {
    client_tls(authority.certificate(), &["http/1.1"], identity)
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

struct Answer {
    status: u16,
    /// What the server showed of itself.
    certificate: Vec<u8>,
}

/// One GET on a connection of its own, or why there is no answer.
fn get(
    address: SocketAddr,
    config: &Arc<ClientConfig>,
    path: &str,
    header: &str,
) -> Result<Answer, std::io::Error> {
    let name = ServerName::try_from("localhost").unwrap();
    let tls = ClientConnection::new(Arc::clone(config), name).unwrap();
    let mut stream = StreamOwned::new(tls, connect(address));
    let head = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n{header}\r\n");
    stream.write_all(head.as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let certificate = stream.conn.peer_certificates().unwrap()[0].to_vec();
    Ok(Answer { status: status.unwrap_or_else(|| panic!("{answer}")), certificate })
}

fn health(address: SocketAddr, config: &Arc<ClientConfig>) -> Answer {
    let answer = get(address, config, "/healthz", "").unwrap();
    assert_eq!(answer.status, 200);
    answer
}

#[tokio::test]
async fn whoever_trusts_the_authority_is_answered() {
    let (authority, stranger) = (Authority::new("private"), Authority::new("strange"));
    let gateway = start(format!("{GATEWAY}{TLS}"), &authority);
    let folder = tempfile::tempdir().unwrap();
    let ca = |name: &str, authority: &Authority| {
        let path = folder.path().join(name);
        std::fs::write(&path, authority.certificate()).unwrap();
        path
    };
    let url = format!("https://{}", gateway.http());
    let client = fedgate::client::http(&url, Some(&ca("private", &authority)), PATIENCE).unwrap();
    for path in ["/healthz", "/metrics", "/api/v1/sources"] {
        let answer = client.get(format!("{url}{path}")).send().await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.version()), (200, reqwest::Version::HTTP_11), "{path}");
    }
    let doubtful = fedgate::client::http(&url, Some(&ca("strange", &stranger)), PATIENCE).unwrap();
    assert!(doubtful.get(format!("{url}/healthz")).send().await.unwrap_err().is_connect());

    // A page of its own is one that came over TLS.
    for (scheme, status) in [("https", 200), ("http", 403)] {
        let origin = format!("{scheme}://{}", gateway.http());
        let request = client.get(format!("{url}/api/v1/sources")).header("Origin", origin);
        assert_eq!(request.send().await.unwrap().status().as_u16(), status, "{scheme}");
    }
    let log = gateway.stop();
    assert!(!log.contains("did not come together"), "{log}");
}

#[test]
fn what_is_no_tls_is_closed_without_an_answer() {
    let authority = Authority::new("private");
    let gateway = start(format!("{GATEWAY}{TLS}"), &authority);
    let address = gateway.http();
    let long = [b"GET /".as_slice(), &vec![b'a'; 100_000]].concat();
    for said in
        [b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n".as_slice(), b"\x16\x03\x01\xff\xff", &long]
    {
        let mut stream = connect(address);
        // It may be closed before all of it was sent.
        let _ = stream.write_all(said);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
        assert!(!String::from_utf8_lossy(&answer).contains("HTTP/"), "{answer:?}");
    }
    // HTTP/2 alone is not spoken.
    let config = client_tls(authority.certificate(), &["h2"], None);
    assert!(get(address, &config, "/healthz", "").is_err());
    health(address, &client(&authority, None));
}

#[test]
fn a_client_may_prove_itself_and_nobody_by_the_word_of_a_stranger() {
    let (authority, stranger) = (Authority::new("private"), Authority::new("strange"));
    let gateway = start(format!("{GATEWAY}{TLS}{CLIENT_CA}{DEBUG}"), &authority);
    let address = gateway.http();
    health(address, &client(&authority, None));
    gateway.wait_for_line("an HTTP client has come over TLS address=127.0.0.1");
    assert!(!gateway.log().contains("curator"));
    health(address, &client(&authority, Some(&authority.client("curator"))));
    let line = gateway.wait_for_line("curator");
    assert!(line.contains("DEBUG") && line.contains("has come over TLS"), "{line}");

    let mark = gateway.log_mark();
    assert!(get(address, &client(&authority, Some(&stranger.client("intruder"))), "/healthz", "").is_err());
    let line = gateway.wait_for_line_after(mark, "did not come together");
    assert!(line.contains("DEBUG"), "{line}");
    assert!(!gateway.log().contains("intruder"));
}

#[test]
fn opa_gets_the_bundle_by_its_certificate() {
    let (authority, stranger) = (Authority::new("private"), Authority::new("strange"));
    let opa = "[document]\nkind = \"file\"\npath = \"policy.json\"\n[opa]\ncertificates = [\"opa\"]\n";
    let pair = server(&authority);
    let setup = Setup::new(format!("{GATEWAY}{TLS}{CLIENT_CA}{opa}"))
        .file("server.crt", pair.certificate)
        .file("server.key", pair.private_key)
        .file("clients.crt", authority.certificate())
        .file("policy.json", r#"{"version": 1, "mask_library": {}, "subjects": {}}"#);
    let gateway = Gateway::start(setup);
    let get = |identity: Option<&Pair>| {
        // It may be that no bundle was made yet, which OPA would wait for.
        let path = "/opa/bundles/fedgate.tar.gz";
        get(gateway.http(), &client(&authority, identity), path, "Prefer: wait=30\r\n")
    };
    assert_eq!(get(Some(&authority.client("opa"))).unwrap().status, 200);
    assert_eq!(get(Some(&authority.client("curator"))).unwrap().status, 401);
    assert_eq!(get(None).unwrap().status, 401);
    assert!(get(Some(&stranger.client("opa"))).is_err());
}

#[test]
fn a_renewed_certificate_counts_and_a_bad_one_does_not() {
    let authority = Authority::new("private");
    let gateway = start(format!("{GATEWAY}{TLS}{DEBUG}"), &authority);
    let (address, config) = (gateway.http(), client(&authority, None));
    let old = health(address, &config).certificate;
    let write = |name: &str, text: &str| std::fs::write(gateway.folder().join(name), text).unwrap();

    // The key is there before its certificate.
    let new = server(&authority);
    let mark = gateway.log_mark();
    write("server.key", &new.private_key);
    let line = gateway.wait_for_line_after(mark, "the old one stays");
    assert!(line.contains("ERROR") && line.contains("http.tls.private_key"), "{line}");
    assert_eq!(health(address, &config).certificate, old);
    let mark = gateway.log_mark();
    write("server.crt", &new.certificate);
    gateway.wait_for_line_after(mark, "configuration reloaded");
    let renewed = health(address, &config).certificate;
    assert_ne!(renewed, old);

    // So does a change of the section.
    let reload = |toml: &str| {
        let mark = gateway.log_mark();
        write("fedgate.toml", toml);
        gateway.wait_for_line_after(mark, "configuration reloaded");
        gateway.log().lines().skip(mark).any(|line| line.contains("takes effect at the next start"))
    };
    let curator = client(&authority, Some(&authority.client("curator")));
    health(address, &curator);
    assert!(!reload(&format!("{GATEWAY}{TLS}{CLIENT_CA}{DEBUG}")));
    assert!(!gateway.log().contains("curator"));
    health(address, &curator);
    gateway.wait_for_line("curator");

    // But not that there is one.
    assert!(reload(&format!("{GATEWAY}{DEBUG}")));
    assert_eq!(health(address, &config).certificate, renewed);
    gateway.stop();
}

#[test]
fn a_plain_side_stays_plain_until_the_next_start() {
    let authority = Authority::new("private");
    let gateway = start(GATEWAY.to_owned(), &authority);
    let mark = gateway.log_mark();
    std::fs::write(gateway.config_file(), format!("{GATEWAY}{TLS}")).unwrap();
    gateway.wait_for_line_after(mark, "configuration reloaded");
    let log = gateway.log();
    assert!(log.contains("whether it speaks TLS, takes effect at the next start"), "{log}");
    assert_eq!(gateway.get("/healthz").0, 200);
}

#[test]
fn clients_that_stop_in_their_handshake_hold_nobody_up() {
    let authority = Authority::new("private");
    let gateway = start(format!("{GATEWAY}{TLS}"), &authority);
    let (address, config) = (gateway.http(), client(&authority, None));
    // One after the other they would take longer than anybody waits here.
    let mut silent: Vec<TcpStream> = (0..30).map(|_| connect(address)).collect();
    for stream in silent.iter_mut().skip(15) {
        // The beginning of a record that promises 512 bytes.
        stream.write_all(b"\x16\x03\x01\x02\x00\x01").unwrap();
    }
    for _ in 0..20 {
        health(address, &config);
    }
    for mut stream in silent {
        let mut answer = Vec::new();
        // The read's own time-out is an error.
        stream.read_to_end(&mut answer).unwrap();
    }
    health(address, &config);
}

#[tokio::test]
async fn a_shutdown_waits_for_no_handshake() {
    let authority = Authority::new("private");
    let folder = tempfile::tempdir().unwrap();
    let pair = server(&authority);
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let files = ServerTls {
        certificate: write("crt", &pair.certificate),
        private_key: write("key", &pair.private_key),
        client_ca: None,
    };
    let (_renew, tls) = watch::channel(acceptor(&files).unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let parts = Parts {
        metrics: Arc::new(Metrics::new().unwrap()),
        status: Status::new().subscribe(),
        door: Arc::new(Door::Open { tls: true }),
        document: Outlet::default().handle(),
        sync: no_loop(),
        opa: no_bundle(),
        deployments: no_policies(),
        tap: fedgate::http::no_tap(),
    };
    let (shutdown, stop) = oneshot::channel::<()>();
    let side = tokio::spawn(serve(listener, Some(tls), parts, async {
        let _ = stop.await;
    }));
    let mut silent = tokio::net::TcpStream::connect(address).await.unwrap();
    let config = client(&authority, None);
    // Accepted later than the silent one, so that one has begun.
    tokio::task::spawn_blocking(move || health(address, &config)).await.unwrap();
    shutdown.send(()).unwrap();
    // Less than a handshake may take, and than requests under way may.
    tokio::time::timeout(Duration::from_secs(4), side).await.expect("it ends at once").unwrap();
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, tokio::io::AsyncReadExt::read_to_end(&mut silent, &mut rest))
        .await
        .expect("it is closed within the time")
        .unwrap();
    assert!(rest.is_empty());
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}
