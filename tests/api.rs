//! The API of the loop over real sockets: who is believed, what is answered, and what bad input does.
//!
//! Invariant: each answer has the shape that the description of the API promises, and nothing changes for somebody who
//! is not an admin.

#[allow(dead_code, reason = "tests/sync.rs uses the rest")]
#[path = "sync/kit.rs"]
mod kit;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fedgate::config::{JwksPlace, JwtAuth, SecretFile};
use fedgate::http::{Door, Issuer, Keys, Parts, SyncView, description, serve};
use fedgate::metrics::Metrics;
use fedgate::status::{Phase, Status};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use kit::{Bench, Running, analyst, customers};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

const ISSUER: &str = "https://id.example/realms/data";
const AUDIENCE: &str = "fedgate";
const HOOK_KEY: &str = "the key of the pushes";

/// A key of the issuer, and what it publishes of it.
struct Key {
    kid: String,
    algorithm: Algorithm,
    encoding: EncodingKey,
    jwk: Jwk,
}

impl Key {
    fn new(kid: &str, algorithm: Algorithm) -> Self {
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

    fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.kid.clone());
        encode(&header, claims, &self.encoding).unwrap()
    }
}

/// What openssl writes as PEM, as DER.
fn openssl(arguments: &[&str]) -> Vec<u8> {
    let made = Command::new("openssl").args(arguments).output();
    let pem = String::from_utf8(made.expect("openssl, which scripts/setup wants").stdout).unwrap();
    let body: String = pem.lines().filter(|line| !line.starts_with("-----")).collect();
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(body).unwrap()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Claims of a good admin's token.
fn claims() -> Value {
    json!({"iss": ISSUER, "aud": [AUDIENCE, "other"], "sub": "5f2b", "exp": now() + 300, "nbf": now() - 5,
           "preferred_username": "steward", "realm_access": {"roles": ["akko-admin"]}})
}

fn with(key: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[key] = value;
    claims
}

fn without(key: &str) -> Value {
    let mut claims = claims();
    claims.as_object_mut().unwrap().remove(key);
    claims
}

/// The HTTP side over a loop of stand-ins.
struct Side {
    address: SocketAddr,
    bench: Bench,
    running: Running,
    metrics: Arc<Metrics>,
    _shutdown: oneshot::Sender<()>,
    _view: watch::Sender<Option<SyncView>>,
}

fn publish(path: &Path, keys: &[&Key]) {
    let set = JwkSet { keys: keys.iter().map(|key| key.jwk.clone()).collect() };
    // Another length each time, so that a change within one tick of the clock is seen.
    let padding = " ".repeat(usize::try_from(now() % 97).unwrap() + keys.len());
    let text = format!("{}{padding}", serde_json::to_string(&set).unwrap());
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).unwrap();
    std::fs::rename(&beside, path).unwrap();
}

async fn start(door: Door) -> Side {
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
    let (status, metrics) = (Status::new(), Arc::new(Metrics::new().unwrap()));
    status.set_phase(Phase::Ready);
    let parts =
        Parts { metrics: metrics.clone(), status: status.subscribe(), door: Arc::new(door), sync: seen };
    tokio::spawn(serve(listener, parts, async {
        let _ = stop.await;
        drop(status);
    }));
    Side { address, bench, running, metrics, _shutdown: shutdown, _view: view }
}

fn door(path: &Path) -> Door {
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
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }
}

impl Side {
    async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
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

    async fn raw(&self, bytes: Vec<u8>) -> Answer {
        let address = self.address;
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

    async fn bearer(&self, method: &str, path: &str, token: &str) -> Answer {
        self.send(method, path, &[("Authorization", &format!("Bearer {token}"))], b"").await
    }

    async fn push(&self, body: &[u8], signature: &str) -> Answer {
        self.send("POST", "/hooks/openmetadata", &[("X-OM-Signature", signature)], body).await
    }

    fn metric(&self, line: &str) -> f64 {
        let page = self.metrics.render();
        page.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok()).unwrap()
    }
}

#[tokio::test]
async fn tokens() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("jwks.json");
    let (ec, ed, rsa) = (
        Key::new("ec", Algorithm::ES256),
        Key::new("ed", Algorithm::EdDSA),
        Key::new("rsa", Algorithm::RS256),
    );
    let stranger = Key { kid: "ec".into(), ..Key::new("x", Algorithm::ES256) };
    let unknown = Key::new("nobody's", Algorithm::ES256);
    publish(&path, &[&ec, &ed, &rsa]);
    let side = start(door(&path)).await;

    let pss = {
        let mut header = Header::new(Algorithm::PS256);
        header.kid = Some("rsa".into());
        encode(&header, &claims(), &rsa.encoding).unwrap()
    };
    // The public key's own bytes as the secret of a symmetric signature.
    let confused = {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("rsa".into());
        let secret = serde_json::to_vec(&rsa.jwk).unwrap();
        encode(&header, &claims(), &EncodingKey::from_secret(&secret)).unwrap()
    };
    let unsigned = {
        use base64::Engine;
        let part = |value: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.", part(json!({"alg": "none", "kid": "ec"})), part(claims()))
    };
    let good = ec.sign(&claims());
    let (start_of, rest) = good.split_once('.').unwrap();
    let (middle, end_of) = rest.split_once('.').unwrap();
    let changed =
        format!("{start_of}.{}.{end_of}", ec.sign(&with("sub", json!("other"))).split('.').nth(1).unwrap());
    let cut = format!("{start_of}.{middle}.");

    // Note, token, for GET status, for POST sync, a part of the detail.
    let cases: Vec<(&str, String, u16, u16, &str)> = vec![
        ("ES256", good.clone(), 200, 200, ""),
        ("EdDSA", ed.sign(&claims()), 200, 200, ""),
        ("RS256", rsa.sign(&claims()), 200, 200, ""),
        ("PS256 with a key for RS256", pss, 401, 401, "another algorithm"),
        ("the role in roles", ec.sign(&json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "s", "exp": now() + 60, "roles": "akko-admin"})), 200, 200, ""),
        ("the role in groups", ec.sign(&json!({"iss": ISSUER, "aud": AUDIENCE, "sub": "s", "exp": now() + 60, "groups": ["a", "akko-admin"]})), 200, 200, ""),
        ("no role", ec.sign(&without("realm_access")), 200, 403, "akko-admin"),
        ("a role that begins alike", ec.sign(&with("realm_access", json!({"roles": ["akko-admin2", "AKKO-ADMIN"]}))), 200, 403, ""),
        ("expired", ec.sign(&with("exp", json!(now() - 3600))), 401, 401, "expired"),
        ("expired within the leeway", ec.sign(&with("exp", json!(now() - 10))), 200, 200, ""),
        ("not valid yet", ec.sign(&with("nbf", json!(now() + 3600))), 401, 401, "not valid yet"),
        ("an expiry that is a text", ec.sign(&with("exp", json!("2099-01-01"))), 401, 401, "cannot be read"),
        ("a beginning that is a text", ec.sign(&with("nbf", json!("soon"))), 401, 401, "cannot be read"),
        ("no expiry", ec.sign(&without("exp")), 401, 401, ""),
        ("another issuer", ec.sign(&with("iss", json!("https://evil.example"))), 401, 401, "another issuer"),
        ("no issuer", ec.sign(&without("iss")), 401, 401, ""),
        ("another audience", ec.sign(&with("aud", json!(["trino"]))), 401, 401, "another audience"),
        ("no audience", ec.sign(&without("aud")), 401, 401, ""),
        ("no subject", ec.sign(&without("sub")), 401, 401, ""),
        ("roles that are none", ec.sign(&with("roles", json!({"a": 1}))), 401, 401, ""),
        ("another's key under this name", stranger.sign(&claims()), 401, 401, "not the issuer's"),
        ("a key that nobody published", unknown.sign(&claims()), 401, 401, "no such key"),
        ("a symmetric signature", confused, 401, 401, "algorithm"),
        ("no signature at all", unsigned, 401, 401, ""),
        ("a changed middle", changed, 401, 401, "not the issuer's"),
        ("cut off", cut, 401, 401, ""),
        ("no token", String::new(), 401, 401, ""),
        ("three dots", "...".into(), 401, 401, ""),
        ("letters", "a.b.c".into(), 401, 401, ""),
        ("long", format!("{good}{}", "A".repeat(9000)), 401, 401, "longer than"),
    ];
    for (note, token, read, change, detail) in &cases {
        let answer = side.bearer("GET", "/api/v1/status", token).await;
        assert_eq!(answer.status, *read, "{note}: {answer:?}");
        let answer = side.bearer("POST", "/api/v1/sync", token).await;
        assert_eq!(answer.status, *change, "{note}: {answer:?}");
        if answer.status != 200 {
            assert!(answer.head.contains("content-type: application/problem+json"), "{note}");
            assert!(answer.head.contains("www-authenticate: bearer"), "{note}: {}", answer.head);
            assert!(answer.json()["detail"].as_str().unwrap().contains(detail), "{note}: {}", answer.body);
            assert!(token.is_empty() || !answer.body.contains(token.as_str()), "{note}: the token is quoted");
        }
    }
    let refused = cases.iter().filter(|(_, _, _, change, _)| *change == 403).count();
    assert_eq!(side.metric("fedgate_http_refusals_total{reason=\"role\"}"), refused as f64);

    // Other ways to write, or not to write, the header.
    let headers: &[(&[(&str, &str)], u16)] = &[
        (&[], 401),
        (&[("Authorization", "Basic c3Rld2FyZDpwdw==")], 401),
        (&[("Authorization", &good)], 401),
        (&[("Authorization", &format!("bearer {good}"))], 200),
        (&[("Authorization", &format!("Bearer {good}")), ("Authorization", &format!("Bearer {good}"))], 401),
        (&[("Authorization", "Bearer \u{e9}")], 401),
    ];
    for (headers, want) in headers {
        assert_eq!(side.send("GET", "/api/v1/status", headers, b"").await.status, *want, "{headers:?}");
    }
    // Nobody needs a token for these.
    for path in ["/healthz", "/readyz", "/metrics", "/api/v1/openapi.json"] {
        assert_eq!(side.send("GET", path, &[], b"").await.status, 200, "{path}");
    }
    for path in ["/api/v1/status", "/api/v1/config", "/api/v1/sources", "/api/v1/sync/history"] {
        assert_eq!(side.send("GET", path, &[], b"").await.status, 401, "{path}");
        assert_eq!(side.bearer("GET", path, &good).await.status, 200, "{path}");
    }
    // The audit trail has who asked.
    let admins = side.bench.book.runs();
    let actor = fedgate::audit::event::Actor::Admin { name: "steward".into(), subject: "5f2b".into() };
    assert!(admins.iter().any(|run| run.actor == actor), "{admins:?}");

    // The issuer changes its keys: the new one counts, the old one no longer.
    publish(&path, &[&unknown]);
    assert_eq!(side.bearer("GET", "/api/v1/status", &unknown.sign(&claims())).await.status, 200);
    assert_eq!(side.bearer("GET", "/api/v1/status", &good).await.status, 401);
    // A file that is broken leaves the keys in force that were read last.
    std::fs::write(&path, "{").unwrap();
    assert_eq!(side.bearer("GET", "/api/v1/status", &unknown.sign(&claims())).await.status, 200);
    side.running.stop().await;
}

#[tokio::test]
async fn without_keys_nobody_is_believed_and_everybody_told_why() {
    let folder = tempfile::tempdir().unwrap();
    let side = start(door(&folder.path().join("missing.json"))).await;
    let answer = side.bearer("GET", "/api/v1/status", &Key::new("k", Algorithm::ES256).sign(&claims())).await;
    assert_eq!(answer.status, 503);
    assert!(!answer.body.contains("missing.json"), "a path of this machine is shown");
    side.running.stop().await;
}

/// Does an answer have the shape that the description promises for it?
fn described(method: &str, path: &str, answer: &Answer) {
    let all = description();
    let operation = &all["paths"][path][method.to_lowercase()];
    let response = &operation["responses"][answer.status.to_string()];
    assert!(!response.is_null(), "{method} {path} answers {}, which is not described", answer.status);
    let Some(content) = response["content"].as_object() else { return };
    let (kind, content) = content.iter().next().unwrap();
    assert!(answer.head.contains(&format!("content-type: {kind}")), "{method} {path}: {}", answer.head);
    if kind == "text/plain" {
        return;
    }
    let schema = json!({"$ref": content["schema"]["$ref"], "components": all["components"]});
    let schema = if content["schema"]["$ref"].is_null() { content["schema"].clone() } else { schema };
    let validator = jsonschema::validator_for(&schema).unwrap();
    let body = answer.json();
    if let Err(error) = validator.validate(&body) {
        panic!("{method} {path} {}: {error} in {body:#}", answer.status);
    }
}

#[tokio::test]
async fn every_path_is_described_and_answers_as_described() {
    let side = start(Door::Open).await;
    let long = vec![b' '; 100 << 10];
    let requests: &[(&str, &str, &[u8], u16)] = &[
        ("GET", "/healthz", b"", 200),
        ("GET", "/readyz", b"", 200),
        ("GET", "/metrics", b"", 200),
        ("GET", "/api/v1/openapi.json", b"", 200),
        ("GET", "/api/v1/sources", b"", 200),
        ("GET", "/api/v1/status", b"", 200),
        ("GET", "/api/v1/config", b"", 200),
        ("POST", "/api/v1/sync?dry_run=true", b"", 200),
        ("POST", "/api/v1/sync?dry_run=maybe", b"", 400),
        ("POST", "/api/v1/sync?dry-run=true", b"", 400),
        ("POST", "/api/v1/sync?approve=0000", b"", 409),
        ("POST", "/api/v1/sync", b"", 200),
        ("GET", "/api/v1/sync/plan", b"", 200),
        ("GET", "/api/v1/sync/history", b"", 200),
        ("GET", "/api/v1/sync/history?limit=1", b"", 200),
        ("GET", "/api/v1/sync/history?limit=-1", b"", 400),
        ("POST", "/api/v1/sync/rollback", b"{\"revision\": 2}", 200),
        ("POST", "/api/v1/sync/rollback", b"{\"revision\": 99}", 409),
        ("POST", "/api/v1/sync/rollback", b"{\"revision\": \"2\"}", 400),
        ("POST", "/api/v1/sync/rollback", b"{\"revision\": 2, \"force\": true}", 400),
        ("POST", "/api/v1/sync/rollback", b"", 400),
        ("POST", "/api/v1/sync/rollback", &long, 413),
        ("POST", "/hooks/openmetadata", b"{}", 401),
    ];
    let mut seen: std::collections::BTreeSet<(String, String)> = std::collections::BTreeSet::new();
    for (method, path, body, want) in requests {
        let answer = side.send(method, path, &[], body).await;
        assert_eq!(answer.status, *want, "{method} {path}: {answer:?}");
        let bare = path.split('?').next().unwrap();
        described(method, bare, &answer);
        seen.insert((bare.to_owned(), method.to_lowercase()));
    }
    // What is described is there, and nothing else was asked for.
    let all = description();
    let of_path = |(path, methods): (&String, &Value)| -> Vec<(String, String)> {
        methods.as_object().unwrap().keys().map(|method| (path.clone(), method.clone())).collect()
    };
    let described: std::collections::BTreeSet<_> =
        all["paths"].as_object().unwrap().iter().flat_map(of_path).collect();
    assert_eq!(described, seen);
    for (path, method) in described {
        let other = if method == "get" { "POST" } else { "GET" };
        let answer = side.send(other, &path, &[], b"").await;
        assert_eq!(answer.status, 405, "{other} {path}");
        let allow = if method == "get" { "allow: get, head" } else { "allow: post" };
        assert!(answer.head.contains(allow), "{other} {path}: {}", answer.head);
    }
    side.running.stop().await;
}

#[tokio::test]
async fn failures_are_told_by_their_cause() {
    use fedgate::sync::catalog::CatalogError;
    let side = start(Door::Open).await;
    let cases = [
        (CatalogError::Unauthorized("Expired token!".into()), 502, "jwt_expired", "mint a new one"),
        (CatalogError::Unreachable("connection refused".into()), 502, "catalog_unreachable", "refused"),
    ];
    for (error, status, cause, detail) in cases {
        side.bench.shelf.fail(error);
        let answer = side.send("POST", "/api/v1/sync", &[], b"").await;
        let body = answer.json();
        assert_eq!((answer.status, body["cause"].as_str()), (status, Some(cause)));
        assert!(body["detail"].as_str().unwrap().contains(detail), "{body}");
        described("POST", "/api/v1/sync", &answer);
        let status = side.send("GET", "/api/v1/status", &[], b"").await.json();
        assert_eq!((status["cause"].as_str(), status["publish_failures"].as_u64()), (Some(cause), Some(1)));
    }
    std::fs::write(side.bench.path(), "broken").unwrap();
    let answer = side.send("POST", "/api/v1/sync", &[], b"").await;
    assert_eq!((answer.status, answer.json()["cause"].as_str()), (422, Some("document")));
    side.running.stop().await;
}

fn signature(body: &[u8]) -> String {
    use hmac::Mac;
    let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(HOOK_KEY.as_bytes()).unwrap();
    mac.update(body);
    let digest: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256={digest}")
}

#[tokio::test]
async fn a_push_with_a_good_signature_becomes_a_mask() {
    let side = start(Door::Open).await;
    let event = |name: &str| {
        format!(r#"{{"eventType":"entityUpdated","entityType":"table","entityFullyQualifiedName":"{name}"}}"#)
    };
    for (at, body) in [
        event("pg.shop.public.customers"),
        format!("[{}]", event("pg.shop.public.customers")),
        format!(r#"{{"data":[{}]}}"#, event("pg.shop.public.customers")),
    ]
    .into_iter()
    .enumerate()
    {
        let column = format!("c{at}");
        side.bench.shelf.set(&customers(&[("email", "PII.Sensitive"), (&column, "PII.Sensitive")]));
        let began = std::time::Instant::now();
        assert_eq!(side.push(body.as_bytes(), &signature(body.as_bytes())).await.status, 202);
        let want = format!("{column} sha256 auto-pii");
        side.running.ended(|_| side.bench.masks("analyst").contains(&want)).await;
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
    // What is refused reads nothing.
    let read = (side.bench.shelf.whole_readings(), side.bench.shelf.hints().len());
    let body = event("pg.shop.public.customers");
    let wrong = signature(b"something else");
    assert_eq!(side.push(body.as_bytes(), &wrong).await.status, 401);
    assert_eq!(side.push(body.as_bytes(), "").await.status, 401);
    assert_eq!(side.push(b"[]", &signature(b"[]")).await.status, 202, "nothing to look at");
    assert_eq!(side.push(b"{", &signature(b"{")).await.status, 400);
    let deep = "[".repeat(200_000);
    assert_eq!(side.push(deep.as_bytes(), &signature(deep.as_bytes())).await.status, 400);
    // A body that says that it is 100 MB long is answered without being read.
    let head = "POST /hooks/openmetadata HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 104857600\r\n\r\n{";
    assert_eq!(side.raw(head.as_bytes().to_vec()).await.status, 413);
    // So is one that does not say and goes on.
    let mut endless = b"POST /hooks/openmetadata HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for _ in 0..300 {
        endless.extend_from_slice(format!("2000\r\n{}\r\n", "x".repeat(0x2000)).as_bytes());
    }
    assert_eq!(side.raw(endless).await.status, 413);
    assert_eq!((side.bench.shelf.whole_readings(), side.bench.shelf.hints().len()), read);
    for (outcome, want) in
        [("taken", 3.0), ("signature", 2.0), ("irrelevant", 1.0), ("shape", 2.0), ("too_long", 2.0)]
    {
        let line = format!("fedgate_catalog_pushes_total{{outcome=\"{outcome}\"}}");
        assert_eq!(side.metric(&line), want, "{outcome}");
    }
    side.running.stop().await;
}

#[tokio::test]
async fn an_issuer_that_changes_its_keys_or_goes_away() {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use fedgate::http::KeyError;

    let set = |keys: &[&Key]| {
        serde_json::to_string(&JwkSet { keys: keys.iter().map(|key| key.jwk.clone()).collect() }).unwrap()
    };
    let (old, new) = (Key::new("old", Algorithm::ES256), Key::new("new", Algorithm::ES256));
    let answer = Arc::new(Mutex::new((200, set(&[&old]))));
    let asked = Arc::new(AtomicUsize::new(0));
    let (said, counted) = (Arc::clone(&answer), Arc::clone(&asked));
    let app = axum::Router::new().fallback(async move || {
        counted.fetch_add(1, Ordering::Relaxed);
        let (status, body) = said.lock().unwrap().clone();
        (axum::http::StatusCode::from_u16(status).unwrap(), body)
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/certs", listener.local_addr().unwrap());
    tokio::spawn(serve_plainly(listener, app));
    let keys = Keys::new(&JwksPlace::Url(url)).unwrap();
    let found = async |kid: &str| keys.find(Some(kid)).await.map(|key| key.common.key_id.unwrap());
    let later = async |seconds: u64| {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
    };
    assert_eq!(found("old").await, Ok("old".to_owned()));
    assert_eq!(found("old").await, Ok("old".to_owned()));
    assert_eq!(asked.load(Ordering::Relaxed), 1, "a known key asks nobody");
    // Names that nobody has do not make the gateway ask without end.
    for _ in 0..20 {
        assert_eq!(found("nobody's").await, Err(KeyError::Unknown));
    }
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    *answer.lock().unwrap() = (200, set(&[&new]));
    later(11).await;
    assert_eq!(found("new").await, Ok("new".to_owned()), "a new name is a reason to ask");
    assert_eq!(found("old").await, Err(KeyError::Unknown), "what is no longer published counts no longer");
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    // The issuer is down, then says nonsense: what was read last holds, and not for ever.
    for broken in [(500, String::new()), (200, "{".to_owned()), (200, "x".repeat(2 << 20))] {
        *answer.lock().unwrap() = broken;
        later(301).await;
        assert_eq!(found("new").await, Ok("new".to_owned()));
    }
    later(24 * 3600).await;
    assert!(matches!(found("new").await, Err(KeyError::NoKeys(_))));
}

/// `axum::serve`, without its features.
async fn serve_plainly(listener: TcpListener, app: axum::Router) {
    use hyper_util::rt::TokioIo;
    use hyper_util::service::TowerToHyperService;
    while let Ok((stream, _)) = listener.accept().await {
        let service = TowerToHyperService::new(app.clone());
        tokio::spawn(async move {
            let http = hyper::server::conn::http1::Builder::new();
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
