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
use side::{Answer, HOOK_KEY, raw, start};

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
    let mut components = all["components"].clone();
    close(&mut components);
    let schema = json!({"$ref": content["schema"]["$ref"], "components": components});
    let schema = if content["schema"]["$ref"].is_null() { content["schema"].clone() } else { schema };
    let validator = jsonschema::validator_for(&schema).unwrap();
    let body = answer.json();
    if let Err(error) = validator.validate(&body) {
        panic!("{method} {path} {}: {error} in {body:#}", answer.status);
    }
}

/// Makes schemas say that there is nothing beside what they describe. Clients are not promised that, but whatever is
/// answered has to be described.
fn close(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("properties").is_some_and(Value::is_object) && fields.contains_key("type") {
                fields.entry("additionalProperties").or_insert(json!(false));
            }
            fields.values_mut().for_each(close);
        }
        Value::Array(values) => values.iter_mut().for_each(close),
        _ => {}
    }
}

#[tokio::test]
async fn every_path_is_described_and_answers_as_described() {
    let side = start(Door::Open { tls: false }).await;
    let (long, deep) = (vec![b' '; 100 << 10], vec![b'['; 60 << 10]);
    side.document(|status| status.version.is_some()).await;
    let requests: &[(&str, &str, &[u8], u16)] = &[
        ("GET", "/healthz", b"", 200),
        ("GET", "/readyz", b"", 200),
        ("GET", "/metrics", b"", 200),
        ("GET", "/api/v1/openapi.json", b"", 200),
        ("GET", "/api/v1/sources", b"", 200),
        ("POST", "/api/v1/sources/{name}/pause", b"", 404),
        ("POST", "/api/v1/sources/{name}/pause?wait=1ms", b"", 404),
        ("POST", "/api/v1/sources/{name}/pause?wait=91s", b"", 400),
        ("POST", "/api/v1/sources/{name}/pause?wait=-1s", b"", 400),
        ("POST", "/api/v1/sources/{name}/pause?wait=", b"", 400),
        ("POST", "/api/v1/sources/{name}/pause?now=1", b"", 400),
        ("POST", "/api/v1/sources/{name}/resume", b"", 404),
        ("GET", "/api/v1/clients", b"", 200),
        ("GET", "/api/v1/clients?user=a&source=b&id=1&limit=1", b"", 200),
        ("GET", "/api/v1/clients?limit=-1", b"", 400),
        ("GET", "/api/v1/clients?name=a", b"", 400),
        ("DELETE", "/api/v1/clients?user=a", b"", 200),
        ("DELETE", "/api/v1/clients?id=1", b"", 200),
        ("DELETE", "/api/v1/clients", b"", 400),
        ("DELETE", "/api/v1/clients?source=b", b"", 400),
        ("DELETE", "/api/v1/clients?user=a&limit=1", b"", 400),
        ("GET", "/api/v1/status", b"", 200),
        ("GET", "/api/v1/config", b"", 200),
        ("GET", "/api/v1/masks", b"", 200),
        ("GET", "/api/v1/masks?subject=analyst&limit=1&offset=0", b"", 200),
        ("GET", "/api/v1/masks?offset=18446744073709551615", b"", 200),
        ("GET", "/api/v1/masks?limit=-1", b"", 400),
        ("GET", "/api/v1/masks?table=x", b"", 400),
        ("POST", "/api/v1/sync?dry_run=true", b"", 200),
        ("POST", "/api/v1/sync?dry_run=maybe", b"", 400),
        ("POST", "/api/v1/sync?dry-run=true", b"", 400),
        ("POST", "/api/v1/sync?dry_run=true&dry_run=false", b"", 400),
        ("POST", "/api/v1/sync?dry_run=", b"", 400),
        ("POST", "/api/v1/sync?approve=", b"", 409),
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
        ("POST", "/api/v1/sync/rollback", b"{\"revision\": 1, \"revision\": 2}", 400),
        ("POST", "/api/v1/sync/rollback", b"{\"revision\": -1}", 400),
        ("POST", "/api/v1/sync/rollback", b"{\"revision\": 1e400}", 400),
        ("POST", "/api/v1/sync/rollback", b"{\"revision\": 18446744073709551615}", 409),
        ("POST", "/api/v1/sync/rollback", &deep, 400),
        ("POST", "/api/v1/sync/rollback", &long, 413),
        ("GET", "/api/v1/enforcement", b"", 200),
        ("POST", "/api/v1/policy/eval", b"{}", 404),
        ("POST", "/api/v1/policy/eval", b"[]", 400),
        ("POST", "/api/v1/policy/eval", b"", 400),
        ("POST", "/api/v1/policy/eval", &deep, 400),
        ("POST", "/api/v1/policy/eval", &long, 413),
        ("GET", "/opa/bundles/fedgate.tar.gz", b"", 404),
        ("POST", "/opa/status", b"{}", 404),
        ("POST", "/opa/status/{partition}", b"{}", 404),
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
        if path == "/api/v1/clients" {
            let answer = side.send("POST", &path, &[], b"").await;
            assert!(
                answer.status == 405 && answer.head.contains("allow: get, head, delete"),
                "{}",
                answer.head
            );
            continue;
        }
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
    let side = start(Door::Open { tls: false }).await;
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
    let side = start(Door::Open { tls: false }).await;
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
async fn masks_in_force_come_in_pages() {
    let side = start(Door::Open { tls: false }).await;
    let get = async |query: &str| {
        let answer = side.send("GET", &format!("/api/v1/masks{query}"), &[], b"").await;
        described("GET", "/api/v1/masks", &answer);
        answer.json()
    };
    side.document(|status| status.version.is_some()).await;
    let before = get("").await["version"].as_str().unwrap().to_owned();
    // Somebody writes a mask of their own onto a column that the loop has masked, and one onto another.
    side.bench.edit(|document| {
        let masks = document["subjects"]["analyst"]["masks"].as_array_mut().unwrap();
        for column in ["email", "phone"] {
            masks.push(json!({"catalog": "climscore", "schema": "public", "table": "customers", "column": column, "mask": "redact"}));
        }
    });
    side.document(|status| status.version.as_deref().is_some_and(|version| version != before)).await;
    let all = get("").await;
    let shown: Vec<String> = all["masks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|mask| {
            format!(
                "{} {} {} {} {}",
                mask["subject"], mask["column"], mask["mask"], mask["source"], mask["shadowed"]
            )
        })
        .collect();
    let shown: Vec<String> = shown.into_iter().map(|line| line.replace('"', "")).collect();
    assert_eq!(
        shown,
        [
            "analyst email sha256 auto-pii true",
            "analyst email redact null false",
            "analyst phone redact null false"
        ]
    );
    // Page by page it is the same.
    let (mut offset, mut paged) = (Some(0), Vec::new());
    while let Some(from) = offset {
        let page = get(&format!("?limit=1&offset={from}")).await;
        assert_eq!((&page["version"], &page["total"]), (&all["version"], &json!(3)));
        paged.extend(page["masks"].as_array().unwrap().clone());
        offset = page["next"].as_u64();
    }
    assert_eq!(Value::Array(paged), all["masks"]);
    let none = get("?subject=nobody").await;
    assert_eq!((&none["total"], &none["masks"], &none["next"]), (&json!(0), &json!([]), &Value::Null));
    assert_eq!(get("?limit=0").await["next"], Value::Null, "no page leads nowhere for ever");
    // A document that somebody broke: the last good one is in force, and the status says so.
    std::fs::write(side.bench.path(), "{").unwrap();
    side.document(|status| status.fault.is_some()).await;
    assert_eq!(get("").await, all);
    let answer = side.send("GET", "/api/v1/status", &[], b"").await;
    described("GET", "/api/v1/status", &answer);
    let document = &answer.json()["document"];
    assert_eq!((&document["fault"], &document["version"]), (&json!("broken"), &all["version"]));
    let folder = side.bench.folder.path().to_str().unwrap();
    assert!(!answer.body.contains(folder), "a path of this machine is shown");
    side.running.stop().await;
}

/// A browser on the gateway's own machine runs the pages of others.
#[tokio::test]
async fn where_nobody_is_asked_no_page_of_a_browser_is_answered() {
    let side = start(Door::Open { tls: false }).await;
    let runs = side.bench.book.runs().len();
    let body = "{\"revision\": 1}";
    let request = |first: &str, headers: &str| {
        let length = if first.starts_with("POST /api/v1/sync/rollback") { body } else { "" };
        format!(
            "{first} HTTP/1.1\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n{length}",
            length.len()
        )
    };
    for headers in [
        "Host: 127.0.0.1:8080\r\nOrigin: https://evil.example\r\n",
        "Host: evil.example:8080\r\n",
        "Host: 127.0.0.1:8080\r\nSec-Fetch-Site: cross-site\r\n",
    ] {
        for first in [
            "POST /api/v1/sync/rollback",
            "POST /api/v1/sync",
            "GET /api/v1/sync/plan",
            "GET /api/v1/status",
            "GET /api/v1/masks",
        ] {
            let answer = side.raw(request(first, headers).into_bytes()).await;
            assert_eq!(answer.status, 403, "{first} {headers}");
            let (method, path) = first.split_once(' ').unwrap();
            described(method, path, &answer);
            assert!(answer.json()["detail"].as_str().unwrap().contains("http.auth"));
        }
    }
    assert_eq!(side.bench.book.runs().len(), runs);
    assert_eq!(side.metric("fedgate_http_refusals_total{reason=\"origin\"}"), 15.0);
    let own = "Host: 127.0.0.1:8080\r\nOrigin: http://127.0.0.1:8080\r\nSec-Fetch-Site: same-origin\r\n";
    assert_eq!(side.raw(request("POST /api/v1/sync", own).into_bytes()).await.status, 200);
    side.running.stop().await;
}

#[tokio::test]
async fn strangers_cannot_make_the_gateway_hold_much_or_sign_with_nothing() {
    use std::io::Write;

    let side = start(Door::Open { tls: false }).await;
    // Everybody can sign under an empty key.
    std::fs::write(side.bench.folder.path().join("hook"), "\n").unwrap();
    let body = br#"{"entityType":"tag"}"#;
    let nothing = {
        use hmac::Mac;
        let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(b"").unwrap();
        mac.update(body);
        let digest: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256={digest}")
    };
    assert_eq!(side.push(body, &nothing).await.status, 503);
    std::fs::write(side.bench.folder.path().join("hook"), HOOK_KEY).unwrap();
    assert_eq!(side.push(body, &nothing).await.status, 401);

    // Bodies that do not come to their end leave no room, and as soon as they are gone there is.
    let head = "POST /hooks/openmetadata HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1048576\r\n\r\n{";
    let held: Vec<std::net::TcpStream> = (0..16)
        .map(|_| {
            let mut stream = std::net::TcpStream::connect(side.address).unwrap();
            stream.write_all(head.as_bytes()).unwrap();
            stream
        })
        .collect();
    let deadline = std::time::Instant::now() + Duration::from_secs(8);
    let until = async |status: u16| loop {
        let answer = side.push(body, &nothing).await;
        if answer.status == status {
            described("POST", "/hooks/openmetadata", &answer);
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{answer:?}");
    };
    until(503).await;
    assert!(side.metric("fedgate_catalog_pushes_total{outcome=\"busy\"}") >= 1.0);
    drop(held);
    until(401).await;
    side.running.stop().await;
}

#[tokio::test]
async fn who_goes_away_ends_no_run_and_a_crowd_makes_no_pile_of_them() {
    use fedgate::sync::handle::QUEUE;
    use tokio::task::JoinSet;

    let side = start(Door::Open { tls: false }).await;
    let gate = side.bench.shelf.gate();
    let (readings, runs) = (side.bench.shelf.whole_readings(), side.bench.book.runs().len());
    let post =
        b"POST /api/v1/sync HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    let first = tokio::net::TcpStream::connect(side.address).await.unwrap();
    first.writable().await.unwrap();
    assert_eq!(first.try_write(post).unwrap(), post.len());
    side.running.ended(|status| status.running).await;
    drop(first);
    // As many as there is room for wait; the others are told at once.
    let mut crowd = JoinSet::new();
    for _ in 0..QUEUE + 6 {
        crowd.spawn(raw(side.address, post.to_vec()));
    }
    for _ in 0..6 {
        let answer = crowd.join_next().await.unwrap().unwrap();
        assert_eq!(answer.status, 429);
        described("POST", "/api/v1/sync", &answer);
    }
    // A push that finds no room need not come again: the timer's run is the net.
    let body = br#"{"entityType":"tag"}"#;
    assert_eq!(side.push(body, &signature(body)).await.status, 202);
    assert_eq!(side.metric("fedgate_catalog_pushes_total{outcome=\"missed\"}"), 1.0);
    assert_eq!(side.send("GET", "/api/v1/status", &[], b"").await.json()["running"], true);
    gate.add_permits(100);
    while let Some(answer) = crowd.join_next().await {
        assert_eq!(answer.unwrap().status, 200);
    }
    assert_eq!(side.bench.shelf.whole_readings(), readings + 2, "one for the first, one for all the others");
    assert_eq!(side.bench.book.runs().len(), runs + 2, "the run of who went away has its event");
    side.running.stop().await;
}
