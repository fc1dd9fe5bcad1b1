//! The API of the loop over real sockets: who is believed, what is answered, and what bad input does.
//!
//! Invariant: each answer has the shape that the description of the API promises, and nothing changes for somebody who
//! is not an admin.

#[allow(dead_code, reason = "tests/sync.rs uses the rest")]
#[path = "sync/kit.rs"]
mod kit;
#[path = "api/side.rs"]
mod side;
#[path = "api/tokens.rs"]
mod tokens;

use std::time::Duration;

use fedgate::http::{Door, description};
use kit::customers;
use serde_json::{Value, json};
use side::{Answer, HOOK_KEY, start};

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
