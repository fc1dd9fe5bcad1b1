//! The HTTP side over a loop of stand-ins, an issuer's keys, and requests as bytes.
//!
//! Invariant: what a test sends goes over a real socket.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fedgate::config::{DocumentPlace, JwksPlace, JwtAuth, SecretFile};
use fedgate::http::{Door, Issuer, Keys, Parts, SyncView, serve};
use fedgate::metrics::Metrics;
use fedgate::status::{Phase, Status};
use fedgate::sync::publisher::AnyPublisher;
use fedgate::sync::reader::{DocumentHandle, DocumentStatus, Outlet, Reader};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::kit::{Bench, Running, analyst, customers};

pub const ISSUER: &str = "https://id.example/realms/data";
pub const AUDIENCE: &str = "fedgate";
pub const HOOK_KEY: &str = "the key of the pushes";

/// A key of the issuer, and what it publishes of it.
pub struct Key {
    pub kid: String,
    pub algorithm: Algorithm,
    pub encoding: EncodingKey,
    pub jwk: Jwk,
}

impl Key {
    pub fn new(kid: &str, algorithm: Algorithm) -> Self {
        let encoding = match algorithm {
            Algorithm::ES256 => {
                let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
                EncodingKey::from_ec_der(&pair.serialize_der())
            }
            Algorithm::EdDSA => {
                EncodingKey::from_ed_der(&openssl(&["genpkey", "-algorithm", "ed25519", "-outform", "PEM"]))
            }
            _ => EncodingKey::from_rsa_der(&openssl(&["genrsa", "-traditional", "2048"])),
        };
        let mut jwk = Jwk::from_encoding_key(&encoding, algorithm).unwrap();
        jwk.common.key_id = Some(kid.to_owned());
        Self { kid: kid.to_owned(), algorithm, encoding, jwk }
    }

    pub fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.kid.clone());
        encode(&header, claims, &self.encoding).unwrap()
    }
}

/// What openssl writes as PEM, as DER.
pub fn openssl(arguments: &[&str]) -> Vec<u8> {
    let made = Command::new("openssl").args(arguments).output();
    let pem = String::from_utf8(made.expect("openssl, which scripts/setup wants").stdout).unwrap();
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(body).unwrap()
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Claims of a good admin's token.
pub fn claims() -> Value {
    json!({"iss": ISSUER, "aud": [AUDIENCE, "other"], "sub": "5f2b", "exp": now() + 300, "nbf": now() - 5,
           "preferred_username": "steward", "realm_access": {"roles": ["akko-admin"]}})
}

pub fn with(key: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[key] = value;
    claims
}

pub fn without(key: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(key);
    claims
}

/// The HTTP side over a loop of stand-ins.
pub struct Side {
    pub address: SocketAddr,
    pub bench: Bench,
    pub running: Running,
    pub metrics: Arc<Metrics>,
    pub document: DocumentHandle,
    _shutdown: oneshot::Sender<()>,
    _view: watch::Sender<Option<SyncView>>,
}

pub fn publish(path: &Path, keys: &[&Key]) {
    let set = JwkSet { keys: keys.iter().map(|key| key.jwk.clone()).collect() };
    // Another length each time, so that a change within one tick of the clock is seen.
    let padding = " ".repeat(usize::try_from(now() % 97).unwrap() + keys.len());
    let text = format!("{}{padding}", serde_json::to_string(&set).unwrap());
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(&beside, path).unwrap();
}

pub async fn start(door: Door) -> Side {
    let bench = Bench::new(json!({"analyst": analyst()}), &customers(&[("email", "PII.Sensitive")]));
    std::fs::write(bench.folder.path().join("hook"), HOOK_KEY).unwrap();
    let gate = bench.shelf.gate();
    let running = bench.start();
    gate.add_permits(1000);
    running.ended(|status| status.last_run.is_some()).await;
    let view = SyncView {
        handle: running.handle.clone(),
        history: bench.history(),
        config: json!({"enabled": true, "tag_to_mask": {"PII.Sensitive": "sha256"}}),
        webhook_secret: Some(SecretFile::new(bench.folder.path().join("hook"))),
    };
    let (view, seen) = watch::channel(Some(view));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (shutdown, stop) = oneshot::channel::<()>();
    let outlet = Outlet::default();
    let document = outlet.handle();
    let reader = Reader::new(
        AnyPublisher::new(&DocumentPlace::File { path: bench.path() }),
        Duration::from_millis(20),
        outlet,
        Metrics::new().unwrap().document,
        CancellationToken::new(),
    );
    tokio::spawn(reader.run());
    let (status, metrics) = (Status::new(), Arc::new(Metrics::new().unwrap()));
    status.set_phase(Phase::Ready);
    let parts = Parts {
        metrics: metrics.clone(),
        status: status.subscribe(),
        door: Arc::new(door),
        document: document.clone(),
        sync: seen,
        opa: fedgate::http::no_bundle(),
        deployments: fedgate::http::no_policies(),
        tap: fedgate::http::no_tap(),
    };
    tokio::spawn(serve(listener, None, parts, async {
        let _ = stop.await;
        drop(status);
    }));
    Side { address, bench, running, metrics, document, _shutdown: shutdown, _view: view }
}

pub fn door(path: &Path) -> Door {
    let auth = JwtAuth {
        keys: JwksPlace::File(path.to_owned()),
        issuer: ISSUER.to_owned(),
        audience: AUDIENCE.to_owned(),
        admin_role: "akko-admin".to_owned(),
    };
    let keys = Keys::new(&auth.keys).unwrap();
    Door::Jwt(Box::new(Issuer { auth, keys }))
}

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

impl Side {
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        if method == "POST" {
            request.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        let mut bytes = format!("{request}\r\n").into_bytes();
        bytes.extend_from_slice(body);
        self.raw(bytes).await
    }

    pub async fn raw(&self, bytes: Vec<u8>) -> Answer {
        raw(self.address, bytes).await
    }

    pub async fn bearer(&self, method: &str, path: &str, token: &str) -> Answer {
        self.send(method, path, &[("Authorization", &format!("Bearer {token}"))], b"").await
    }

    /// Waits until the document that is in force, or what is the matter with it, is as `wanted`.
    pub async fn document(&self, wanted: impl Fn(&DocumentStatus) -> bool) {
        self.document.nudge();
        let mut status = self.document.status();
        let seen = tokio::time::timeout(Duration::from_secs(20), status.wait_for(wanted)).await;
        seen.expect("the document is read within the time").unwrap();
    }

    pub async fn push(&self, body: &[u8], signature: &str) -> Answer {
        self.send("POST", "/hooks/openmetadata", &[("X-OM-Signature", signature)], body).await
    }

    pub fn metric(&self, line: &str) -> f64 {
        let page = self.metrics.render();
        page.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok()).unwrap()
    }
}

/// Sends these bytes and reads to the end of the connection.
pub async fn raw(address: SocketAddr, bytes: Vec<u8>) -> Answer {
    let answer = tokio::task::spawn_blocking(move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // Who answers before it has read all may close before all is written.
        let _ = stream.write_all(&bytes);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8(answer).unwrap()
    });
    let answer = answer.await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Answer { status, head: head.to_lowercase(), body: body.to_owned() }
}
