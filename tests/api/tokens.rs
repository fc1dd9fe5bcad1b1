//! Who is believed: tokens, keys, and the issuer that has them.
//!
//! Invariant: nothing but a whole and good token of the issuer, made with a key that it publishes for it, opens the door.

use std::sync::Arc;
use std::time::Duration;

use fedgate::config::JwksPlace;
use fedgate::http::Keys;
use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::side::{AUDIENCE, ISSUER, Key, claims, door, now, publish, start, with, without};

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
    let (mut enc, mut ops, mut bad) = (
        Key::new("enc", Algorithm::ES256),
        Key::new("ops", Algorithm::ES256),
        Key::new("bad", Algorithm::ES256),
    );
    let second = Key::new("second", Algorithm::ES256);
    enc.jwk.common.public_key_use = Some(PublicKeyUse::Encryption);
    ops.jwk.common.key_operations = Some(vec![KeyOperations::Sign]);
    if let AlgorithmParameters::EllipticCurve(parameters) = &mut bad.jwk.algorithm {
        parameters.x = "!".to_owned();
    }
    publish(&path, &[&ec, &ed, &rsa, &enc, &ops, &bad, &second]);
    // Kinds of keys that are not known here do not spoil the others.
    let mut set: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for strange in [
        json!({"kty": "AKP", "alg": "ML-DSA-44", "kid": "pq", "pub": "AA"}),
        json!({"kty": "EC", "crv": "brainpoolP256r1", "kid": "bp", "x": "AA", "y": "AA"}),
        json!({"kid": "nothing"}),
        json!(7),
    ] {
        set["keys"].as_array_mut().unwrap().insert(0, strange);
    }
    std::fs::write(&path, set.to_string()).unwrap();
    let side = start(door(&path)).await;

    let nameless = |key: &Key| encode(&Header::new(key.algorithm), &claims(), &key.encoding).unwrap();
    let critical = {
        let mut header = Header::new(ec.algorithm);
        header.kid = Some(ec.kid.clone());
        header.crit = Some(vec!["b64".to_owned()]);
        encode(&header, &claims(), &ec.encoding).unwrap()
    };
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
        ("a list of issuers", ec.sign(&with("iss", json!([ISSUER]))), 401, 401, "cannot be read"),
        ("an audience that is a number", ec.sign(&with("aud", json!(7))), 401, 401, ""),
        ("an audience that is a text or a number", ec.sign(&with("aud", json!([AUDIENCE, 7]))), 401, 401, ""),
        ("an expiry below zero", ec.sign(&with("exp", json!(-1))), 401, 401, ""),
        ("an expiry without end", ec.sign(&with("exp", json!(u64::MAX))), 200, 200, ""),
        ("a beginning without end", ec.sign(&with("nbf", json!(u64::MAX))), 401, 401, "not valid yet"),
        ("a subject that is empty", ec.sign(&with("sub", json!(""))), 401, 401, "sub is empty"),
        ("a name that is the gateway's own", ec.sign(&with("preferred_username", json!("system:policy-sync"))), 401, 401, "the gateway itself"),
        ("a name that is a number", ec.sign(&with("preferred_username", json!(7))), 401, 401, ""),
        ("a header that is critical", critical, 401, 401, "crit"),
        ("a key for encryption", enc.sign(&claims()), 401, 401, "another algorithm"),
        ("a key for signing alone", ops.sign(&claims()), 401, 401, "another algorithm"),
        ("a key whose bytes are none", bad.sign(&claims()), 401, 401, "no such key"),
        ("no name of a key, where one key is for this algorithm", nameless(&ed), 200, 200, ""),
        ("no name of a key, where several are", nameless(&ec), 401, 401, "no such key"),
        ("1 MB of it", "A".repeat(1 << 20), 431, 431, ""),
        ("long", format!("{good}{}", "A".repeat(9000)), 401, 401, "longer than"),
    ];
    for (note, token, read, change, detail) in &cases {
        let answer = side.bearer("GET", "/api/v1/status", token).await;
        assert_eq!(answer.status, *read, "{note}: {answer:?}");
        let answer = side.bearer("POST", "/api/v1/sync", token).await;
        assert_eq!(answer.status, *change, "{note}: {answer:?}");
        for (method, path, done) in [
            ("POST", "/api/v1/sources/nobody/pause", 404),
            ("POST", "/api/v1/sources/nobody/resume", 404),
            ("GET", "/api/v1/clients", 200),
            ("DELETE", "/api/v1/clients?user=nobody", 200),
        ] {
            let status = side.bearer(method, path, token).await.status;
            assert_eq!(status, if *change == 200 { done } else { *change }, "{note}: {method} {path}");
        }
        // A header that is too long is refused before anybody reads it.
        if ![200, 431].contains(&answer.status) {
            assert!(answer.head.contains("content-type: application/problem+json"), "{note}");
            assert!(answer.head.contains("www-authenticate: bearer"), "{note}: {}", answer.head);
            assert!(answer.json()["detail"].as_str().unwrap().contains(detail), "{note}: {}", answer.body);
            assert!(token.is_empty() || !answer.body.contains(token.as_str()), "{note}: the token is quoted");
        }
    }
    let refused = cases.iter().filter(|(_, _, _, change, _)| *change == 403).count();
    assert_eq!(side.metric("fedgate_http_refusals_total{reason=\"role\"}"), (5 * refused) as f64);

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
    let found = async |kid: &str| {
        keys.find(Some(kid), Algorithm::ES256).await.map(|key| key.jwk.common.key_id.unwrap())
    };
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

/// Askers who go away, and an issuer that takes its time: neither makes it be asked more often, or a known key wait.
#[tokio::test]
async fn whoever_goes_away_does_not_make_the_issuer_be_asked_again() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    let key = Key::new("k", Algorithm::ES256);
    let set = serde_json::to_string(&JwkSet { keys: vec![key.jwk.clone()] }).unwrap();
    let (asked, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let good = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let (counted, held, fine) = (Arc::clone(&asked), Arc::clone(&gate), Arc::clone(&good));
    let app = axum::Router::new().fallback(async move || {
        counted.fetch_add(1, Ordering::Relaxed);
        held.acquire().await.unwrap().forget();
        let status = if fine.load(Ordering::Relaxed) { 200 } else { 500 };
        (axum::http::StatusCode::from_u16(status).unwrap(), set.clone())
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/certs", listener.local_addr().unwrap());
    tokio::spawn(serve_plainly(listener, app));
    let keys = Arc::new(Keys::new(&JwksPlace::Url(url)).unwrap());
    let find = || {
        let keys = Arc::clone(&keys);
        tokio::spawn(async move { keys.find(Some("k"), Algorithm::ES256).await.map(drop) })
    };
    let until = async |count: usize| {
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while asked.load(Ordering::Relaxed) < count {
            assert!(std::time::Instant::now() < deadline);
            tokio::task::yield_now().await;
        }
    };
    // The first one asks and goes away; those behind it go away, too.
    let first = find();
    until(1).await;
    first.abort();
    let _ = first.await;
    for _ in 0..50 {
        let asker = find();
        tokio::task::yield_now().await;
        asker.abort();
        let _ = asker.await;
    }
    let last = find();
    gate.add_permits(1);
    assert_eq!(last.await.unwrap(), Ok(()));
    assert_eq!(asked.load(Ordering::Relaxed), 1, "the first asking was for all of them");

    let later = async |seconds: u64| {
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(seconds)).await;
        tokio::time::resume();
    };
    // The issuer breaks, and then hangs: one waits for it, and nobody else whose key is known.
    good.store(false, Ordering::Relaxed);
    gate.add_permits(1);
    later(301).await;
    assert_eq!(find().await.unwrap(), Ok(()));
    later(11).await;
    let waiting = find();
    until(3).await;
    for _ in 0..20 {
        assert_eq!(find().await.unwrap(), Ok(()));
    }
    assert!(!waiting.is_finished());
    gate.add_permits(1);
    assert_eq!(waiting.await.unwrap(), Ok(()));
    assert_eq!(asked.load(Ordering::Relaxed), 3);
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
