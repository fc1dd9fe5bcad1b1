//! The whole loop in the built gateway: from a tag in the catalog to the document on the disk, and the event of it.
//!
//! Invariant: what is asserted is read from the document, the audit file and the API, never from the gateway's memory.

mod support;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::openmetadata::{Fault, OpenMetadata};
use support::{Gateway, Setup, http_request};

const CUSTOMERS: &str = "pg_lab.shop.public.customers";
const SECRET: &str = "the key of the pushes";

/// A gateway without a source: the loop needs none.
fn toml(sync: &str) -> String {
    format!(
        r#"
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
access = [{{ users = ["analyst"] }}]

[http]
listen = "127.0.0.1:0"

[document]
kind = "file"
path = "{{dir}}/policy.json"

[audit]
kind = "file"
path = "{{dir}}/audit.jsonl"
spool = "{{dir}}/spool"

[sync]
webhook_secret_file = "{{dir}}/webhook.secret"
history = "{{dir}}/history"
{sync}

[sync.tag_to_mask]
"PII.Sensitive" = "sha256"
"#
    )
}

fn document() -> String {
    let scope = json!([{"catalog": "climscore", "schema": "public", "table": "*"}]);
    let by_hand = json!({"catalog": "climscore", "schema": "public", "table": "customers", "column": "phone",
        "mask": "partial_last4"});
    let json = json!({
        "version": 1,
        "mask_library": {"sha256": {"strength": 60}, "partial_last4": {"strength": 50}},
        "subjects": {"analyst": {"kind": "role", "scopes": scope, "masks": [by_hand]}, "akko-admin": {"kind": "role", "scopes": scope}},
    });
    format!("{json:#}\n")
}

fn with_openmetadata(server: &OpenMetadata, sync: &str) -> Setup {
    let catalog = format!(
        "\n[sync.catalog]\nkind = \"openmetadata\"\nbase_url = \"{}\"\ntoken_file = \"{{dir}}/bot.jwt\"\nservices = {{ pg_lab = \"climscore\" }}\nretries = 0\n",
        server.url()
    );
    Setup::new(toml(&format!("enabled = true\n{sync}")) + &catalog)
        .file("policy.json", document())
        .file("webhook.secret", SECRET)
        .file("bot.jwt", server.token())
}

fn catalog() -> OpenMetadata {
    let server = OpenMetadata::start();
    server.put(CUSTOMERS, &["id", "email", "phone"]);
    server
}

struct Watched {
    gateway: Gateway,
    document: PathBuf,
    audit: PathBuf,
}

impl Watched {
    fn start(setup: Setup) -> Self {
        let gateway = Gateway::start(setup);
        let (document, audit) = (gateway.folder().join("policy.json"), gateway.folder().join("audit.jsonl"));
        Self { gateway, document, audit }
    }

    fn masks(&self) -> Vec<String> {
        let json: Value = serde_json::from_str(&std::fs::read_to_string(&self.document).unwrap()).unwrap();
        let entries = json["subjects"]["analyst"]["masks"].as_array().cloned().unwrap_or_default();
        entries
            .iter()
            .map(|entry| format!("{} {}", entry["column"].as_str().unwrap(), entry["mask"].as_str().unwrap()))
            .collect()
    }

    /// How long it takes until this holds.
    fn until(&self, what: &str, mut holds: impl FnMut(&Self) -> bool) -> Duration {
        let began = Instant::now();
        while !holds(self) {
            assert!(began.elapsed() < Duration::from_secs(40), "never: {what}\n{}", self.gateway.log());
            std::thread::sleep(Duration::from_millis(2));
        }
        began.elapsed()
    }

    fn masked(&self) -> bool {
        self.masks().contains(&"email sha256".to_owned())
    }

    fn status(&self) -> Value {
        serde_json::from_str(&self.gateway.get("/api/v1/status").1).unwrap()
    }

    fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.audit).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn push(&self, server: &OpenMetadata, table: &str) -> u16 {
        let (signature, body) = server.event(table, SECRET);
        let headers = [("X-OM-Signature", signature.as_str()), ("Content-Type", "application/json")];
        support::http_request(self.gateway.http(), "POST", "/hooks/openmetadata", &headers, &body).unwrap().0
    }
}

#[test]
fn off_means_off() {
    let setup = Setup::new(toml("")).file("policy.json", document()).file("webhook.secret", SECRET);
    let watched = Watched::start(setup);
    assert_eq!(watched.status()["enabled"], false);
    assert_eq!(watched.gateway.post("/api/v1/sync", "").0, 404);
    assert_eq!(watched.push(&catalog(), CUSTOMERS), 404);
    watched.gateway.signal("USR1");
    watched.gateway.wait_for_line("the sync loop is off");
    assert!(!watched.gateway.folder().join("history").exists(), "a folder was made");
    assert_eq!(std::fs::read_to_string(&watched.document).unwrap(), document());
    let (_, metrics) = watched.gateway.get("/metrics");
    assert!(metrics.contains("akko_policy_sync_runs_total{outcome=\"success\"} 0"));
    watched.gateway.stop();
}

#[test]
fn by_webhook_under_a_second_by_hand_under_five_by_timer_under_thirty() {
    let server = catalog();
    let watched = Watched::start(with_openmetadata(&server, "interval = \"3s\""));
    watched.until("the first run", |watched| !watched.status()["last_run"].is_null());
    assert_eq!(watched.masks(), ["phone partial_last4"]);

    // By timer: nobody says anything.
    server.tag(CUSTOMERS, "email", "PII.Sensitive", "Confirmed");
    let took = watched.until("masked by the timer", Watched::masked);
    assert!(took < Duration::from_secs(30), "{took:?}");
    assert_eq!(watched.masks(), ["phone partial_last4", "email sha256"]);
    server.untag(CUSTOMERS, "email");
    let (status, answer) = watched.gateway.post("/api/v1/sync", "");
    assert_eq!(status, 200, "{answer}");
    assert_eq!(watched.masks(), ["phone partial_last4"]);
    let seen = watched.events();
    watched.gateway.stop();

    // From here on the timer is out of the way.
    let watched = Watched::start(with_openmetadata(&server, ""));
    watched.until("the first run", |watched| !watched.status()["last_run"].is_null());
    server.tag(CUSTOMERS, "email", "PII.Sensitive", "Confirmed");
    let began = Instant::now();
    assert_eq!(watched.gateway.post("/api/v1/sync", "").0, 200);
    assert!(watched.masked() && began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());

    let mut worst = Duration::ZERO;
    for round in 0..10 {
        if round % 2 == 0 {
            server.untag(CUSTOMERS, "email");
        } else {
            server.tag(CUSTOMERS, "email", "PII.Sensitive", "Confirmed");
        }
        let began = Instant::now();
        assert_eq!(watched.push(&server, CUSTOMERS), 202);
        watched.until("the push counts", |watched| watched.masked() == (round % 2 == 1));
        worst = worst.max(began.elapsed());
    }
    assert!(worst < Duration::from_secs(1), "{worst:?}");
    server.untag(CUSTOMERS, "email");
    watched.gateway.signal("USR1");
    watched.until("SIGUSR1 counts", |watched| !watched.masked());

    // One event for each run, with who asked for it.
    let runs = |events: &[Value], name: &str| {
        events.iter().filter(|event| event["actor"]["user"]["name"] == name).count()
    };
    assert!(runs(&seen, "system:policy-sync") >= 2, "{seen:#?}");
    watched.until("the events are delivered", |watched| watched.events().len() >= 13);
    let events = watched.events();
    assert_eq!((runs(&events, "anonymous"), runs(&events, "system:policy-sync")), (1, events.len() - 1));
    for event in &events {
        assert_eq!((event["class_uid"].as_u64(), event["activity_id"].as_u64()), (Some(3007), Some(99)));
        assert_eq!(event["metadata"]["product"]["name"], "akko-policy-sync");
        for counter in ["tables_processed", "subjects_affected", "publish_failures"] {
            assert!(event["unmapped"][counter].is_u64(), "{event}");
        }
    }
    let touched = events.iter().find(|event| event["unmapped"]["subjects_affected"] == 1).unwrap();
    assert!(touched["resources"].to_string().contains("analyst"), "{touched}");
    watched.gateway.stop();
}

#[test]
fn a_bot_s_token_that_expired_is_named_and_a_new_one_counts_without_a_restart() {
    let server = catalog();
    let watched = Watched::start(with_openmetadata(&server, ""));
    watched.until("the first run", |watched| !watched.status()["last_run"].is_null());
    server.tag(CUSTOMERS, "email", "PII.Sensitive", "Confirmed");
    server.accept("a.new.token");
    let (status, body) = watched.gateway.post("/api/v1/sync", "");
    let problem: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, problem["cause"].as_str()), (502, Some("jwt_expired")), "{body}");
    assert!(problem["detail"].as_str().unwrap().contains("replace its file"), "{body}");
    assert_eq!(watched.status()["cause"], "jwt_expired");
    assert_eq!(watched.masks(), ["phone partial_last4"]);
    let (_, metrics) = watched.gateway.get("/metrics");
    assert!(metrics.contains("fedgate_sync_failures_total{cause=\"jwt_expired\"} 1"));
    assert!(metrics.contains("akko_policy_sync_publish_failures_total 1"));
    std::fs::write(watched.gateway.folder().join("bot.jwt"), "a.new.token").unwrap();
    assert_eq!(watched.gateway.post("/api/v1/sync", "").0, 200);
    assert!(watched.masked());
    // Faults of the server are its own cause, and change nothing.
    server.untag(CUSTOMERS, "email");
    for fault in [Fault::Status(503, None), Fault::Cut, Fault::Empty, Fault::Html, Fault::LyingTotal] {
        server.always(fault.clone());
        let (status, body) = watched.gateway.post("/api/v1/sync", "");
        assert_eq!(status, 502, "{fault:?}: {body}");
        assert!(body.contains("catalog_unreachable"), "{fault:?}: {body}");
        assert!(watched.masked(), "{fault:?}");
    }
    server.no_faults();
    let log = watched.gateway.stop();
    assert!(!log.contains("a.new.token") && !log.contains("good.bot.token"), "a token is in the log");
}

#[test]
fn a_reload_turns_the_loop_on_and_changes_its_map() {
    let folder_catalog =
        "catalogs: {climscore: {public: {customers: {email: PII.Sensitive, iban: PCI.PAN}}}}\n";
    let off = toml("") + "\n[sync.catalog]\nkind = \"file\"\npath = \"{dir}/classifications.yaml\"\n";
    let setup = Setup::new(off)
        .file("policy.json", document())
        .file("webhook.secret", SECRET)
        .file("classifications.yaml", folder_catalog);
    let watched = Watched::start(setup);
    let config = watched.gateway.config_file();
    let text = std::fs::read_to_string(&config).unwrap();
    let on = text.replace("[sync]\n", "[sync]\nenabled = true\n");
    std::fs::write(&config, &on).unwrap();
    watched.gateway.signal("HUP");
    watched.until("the loop was turned on", Watched::masked);
    let more = on.replace(
        "\"PII.Sensitive\" = \"sha256\"",
        "\"PII.Sensitive\" = \"sha256\"\n\"PCI.PAN\" = \"partial_last4\"",
    );
    std::fs::write(&config, &more).unwrap();
    watched.gateway.signal("HUP");
    watched.until("the map has grown", |watched| watched.masks().contains(&"iban partial_last4".to_owned()));
    std::fs::write(&config, &text).unwrap();
    watched.gateway.signal("HUP");
    watched.until("the loop was turned off", |watched| watched.status()["enabled"] == false);
    assert_eq!(watched.masks().len(), 3, "what is in force stays");
    watched.gateway.stop();
}

/// Every command of docs/http.md, as it stands there.
#[test]
fn the_commands_of_the_page_work() {
    let setup = Setup::new(
        toml("enabled = true") + "\n[sync.catalog]\nkind = \"file\"\npath = \"{dir}/classifications.yaml\"\n",
    )
    .file("policy.json", document())
    .file("webhook.secret", SECRET)
    .file("classifications.yaml", "catalogs: {climscore: {public: {customers: {email: PII.Sensitive}}}}\n");
    let watched = Watched::start(setup);
    watched.until("the first run", Watched::masked);
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/http.md")).unwrap();
    let commands: Vec<&str> = page.lines().filter(|line| line.starts_with("curl ")).collect();
    assert!(commands.len() >= 5, "{commands:?}");
    for command in commands {
        let run = std::process::Command::new("sh")
            .args(["-c", &command.replacen("curl -s", "curl -sS --fail-with-body --max-time 30", 1)])
            .env("GATEWAY", format!("http://{}", watched.gateway.http()))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&run.stdout).into_owned() + &String::from_utf8_lossy(&run.stderr);
        assert!(run.status.success(), "{command}: {said}");
        assert!(serde_json::from_slice::<Value>(&run.stdout).is_ok(), "{command}: {said}");
    }
    assert!(!watched.masked(), "the rollback of the page was the last");
    watched.gateway.stop();
}

/// From a token of the issuer to the admin's name in the audit trail, and nothing for anybody else.
#[test]
fn an_admin_is_known_by_a_token_and_named_in_the_audit() {
    use jsonwebtoken::jwk::{Jwk, JwkSet};
    use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};

    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let key = EncodingKey::from_ec_der(&pair.serialize_der());
    let mut jwk = Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap();
    jwk.common.key_id = Some("k".to_owned());
    let token = |roles: &[&str]| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
        let claims = json!({"iss": "https://id.example", "aud": "fedgate", "sub": "5f2b", "exp": now + 300,
            "preferred_username": "steward", "realm_access": {"roles": roles}});
        let header = Header { kid: Some("k".to_owned()), ..Header::new(Algorithm::ES256) };
        encode(&header, &claims, &key).unwrap()
    };
    let auth = "listen = \"127.0.0.1:0\"\nauth = { jwks_file = \"{dir}/jwks.json\", issuer = \"https://id.example\", audience = \"fedgate\" }\n\n[document]";
    let with_tokens = toml("enabled = true").replace("listen = \"127.0.0.1:0\"\n\n[document]", auth);
    assert!(with_tokens.contains("jwks_file"));
    let setup = Setup::new(
        with_tokens + "\n[sync.catalog]\nkind = \"file\"\npath = \"{dir}/classifications.yaml\"\n",
    )
    .file("policy.json", document())
    .file("webhook.secret", SECRET)
    .file("jwks.json", serde_json::to_string(&JwkSet { keys: vec![jwk] }).unwrap())
    .file("classifications.yaml", "catalogs: {climscore: {public: {customers: {email: PII.Sensitive}}}}\n");
    let watched = Watched::start(setup);
    watched.until("the first run", Watched::masked);
    let send = |method: &str, path: &str, token: Option<&str>| {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<(&str, &str)> =
            bearer.as_deref().map(|bearer| ("Authorization", bearer)).into_iter().collect();
        http_request(watched.gateway.http(), method, path, &headers, "").unwrap().0
    };
    let (admin, reader) = (token(&["akko-admin"]), token(&["akko-user"]));
    for (token, status, sync) in [(None, 401, 401), (Some("x.y.z"), 401, 401), (Some(&*reader), 200, 403)] {
        assert_eq!(send("GET", "/api/v1/status", token), status);
        assert_eq!(send("GET", "/api/v1/masks", token), status);
        assert_eq!(send("GET", "/api/v1/sync/plan", token), sync);
        assert_eq!(send("POST", "/api/v1/sync", token), sync);
        assert_eq!(send("GET", "/healthz", token), 200);
    }
    assert_eq!(send("POST", "/api/v1/sync", Some(&admin)), 200);
    let by_admin = |event: &Value| event["actor"]["user"]["name"] == "steward";
    watched.until("the event of the admin's run", |watched| watched.events().iter().any(by_admin));
    let events = watched.events();
    let by_admin: Vec<&Value> = events.iter().filter(|event| by_admin(event)).collect();
    assert_eq!(by_admin.len(), 1, "what was refused is no run");
    assert_eq!(by_admin[0]["actor"]["user"]["uid"], "5f2b");
    let log = watched.gateway.log();
    for secret in [&admin, &reader] {
        assert!(!log.contains(secret.as_str()), "a token stands in the log");
    }
    watched.gateway.stop();
}
