//! The bundle service of the built gateway, with real OPAs: delivery, long polling, proof, and what may not happen.
//!
//! Invariant: what an OPA enforces is asked of that OPA, never of the gateway.

mod support;

#[path = "enforcement/opa.rs"]
mod opa;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use opa::Opa;
use serde_json::{Value, json};
use support::certificates::Authority;
use support::{Gateway, Setup, http_request};

const TOKEN: &str = "the token of OPA";
const BUNDLE: &str = "/opa/bundles/fedgate.tar.gz";
const BEARER: (&str, &str) = ("Authorization", "Bearer the token of OPA");

fn toml(opa: &str, more: &str) -> String {
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
look_every = "100ms"
{more}
[opa]
token_file = "{{dir}}/opa.token"
store = "{{dir}}/kept.tar.gz"
{opa}
"#
    )
}

/// `email` is masked for the analyst in this way, or not at all.
fn document(mask: Option<&str>) -> String {
    let place = json!({"catalog": "climscore", "schema": "public", "table": "customers"});
    let mut entry = place.clone();
    entry["column"] = json!("email");
    entry["mask"] = json!(mask);
    let masks = if mask.is_some() { json!([entry]) } else { json!([]) };
    let json = json!({
        "version": 1,
        "mask_library": {
            "sha256": {"strength": 60},
            "redact": {"strength": 80},
            "broken": {"strength": 90, "trino": "concat({column}, (SELECT 1))"},
        },
        "sources": {"climscore": {"catalog": "climscore"}},
        "subjects": {
            "analyst": {"kind": "user", "scopes": [place], "masks": masks},
            "akko-admin": {"kind": "role", "scopes": [{"catalog": "*", "schema": "*", "table": "*"}]},
        },
    });
    json.to_string()
}

/// As above, without what cannot be enforced.
fn good(mask: Option<&str>) -> String {
    let mut json: Value = serde_json::from_str(&document(mask)).unwrap();
    json["mask_library"].as_object_mut().unwrap().remove("broken");
    json.to_string()
}

struct Watched {
    gateway: Gateway,
}

impl Watched {
    fn start(document: &str, opa: &str, more: &str) -> Self {
        let setup = Setup::new(toml(opa, more)).file("policy.json", document).file("opa.token", TOKEN);
        Self { gateway: Gateway::start(setup) }
    }

    /// As a person with an editor does: whole, and under another name first.
    fn write(&self, document: &str) {
        let folder = self.gateway.folder();
        std::fs::write(folder.join("new.json"), document).unwrap();
        std::fs::rename(folder.join("new.json"), folder.join("policy.json")).unwrap();
    }

    fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        http_request(self.gateway.http(), method, path, headers, body).unwrap()
    }

    fn enforcement(&self) -> Value {
        let (status, body) = self.gateway.get("/api/v1/enforcement");
        assert_eq!(status, 200, "{body}");
        let body = serde_json::from_str(&body).unwrap();
        described(&body);
        body
    }

    /// Asks until it holds.
    fn until(&self, what: &str, mut holds: impl FnMut(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let now = self.enforcement();
            if holds(&now) {
                return now;
            }
            assert!(
                began.elapsed() < Duration::from_secs(40),
                "never: {what}\n{now:#}\n{}",
                self.gateway.log()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn metric(&self, name: &str) -> f64 {
        let (_, metrics) = self.gateway.get("/metrics");
        let line =
            metrics.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("no {name}")).rsplit(' ').next().unwrap().parse().unwrap()
    }

    fn opa(&self, name: &str) -> Opa {
        Opa::start(&self.gateway.folder().join("opa.token"), &self.gateway.http().to_string(), name, "")
    }
}

#[test]
fn a_change_of_the_document_is_enforced_and_proved() {
    let audit = "[audit]\nkind = \"file\"\npath = \"{dir}/audit.jsonl\"\nspool = \"{dir}/spool\"\n";
    let watched = Watched::start(&good(None), "instances = 2", audit);
    let (one, two) = (watched.opa("one"), watched.opa("two"));
    watched.until("enforced by both", |now| now["enforced"] == true);
    assert_eq!(one.mask("analyst"), None);
    assert_eq!(one.mask("stranger"), None);

    watched.write(&good(Some("sha256")));
    let now = watched.until("masked and proved", |now| {
        now["enforced"] == true && now["publications"].as_array().unwrap().len() == 2
    });
    for opa in [&one, &two] {
        let mask = opa.mask("analyst").unwrap();
        assert_eq!(mask, r#"CAST(to_hex(sha256(to_utf8("email"))) AS varchar)"#);
    }
    let newest = &now["publications"][0];
    assert_eq!(newest["revision"], now["bundle"]["revision"]);
    assert!(newest["lag_seconds"].as_f64().unwrap() < 20.0, "{newest}");
    let instances = now["instances"].as_array().unwrap();
    assert_eq!(instances.len(), 2);
    for instance in instances {
        assert_eq!(
            (&instance["state"], &instance["revision"]),
            (&json!("current"), &now["bundle"]["revision"])
        );
        assert!(!instance["activated_at"].is_null() && !instance["since"].is_null(), "{instance}");
    }
    assert_eq!(watched.metric("fedgate_opa_instances{state=\"current\"}"), 2.0);
    assert!(watched.metric("fedgate_policy_lag_seconds_count") >= 1.0);
    assert_eq!(watched.metric("fedgate_policy_unenforced_since_timestamp_seconds"), 0.0);

    // The auditor can read it later.
    let trail = watched.gateway.folder().join("audit.jsonl");
    let revision = newest["revision"].as_str().unwrap();
    until(|| {
        let text = std::fs::read_to_string(&trail).unwrap_or_default();
        let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        events.filter(|event| event["class_uid"] == 3004).any(|event| {
            event["unmapped"]["revision"] == revision
                && event["entity"]["name"] == revision
                && event["status_id"] == 1
        })
    });

    // A document that means the same to Trino is no other bundle.
    let pollers = watched.metric("fedgate_bundle_requests_total{outcome=\"sent\"}");
    let mut same: Value = serde_json::from_str(&good(Some("sha256"))).unwrap();
    same["comment"] = json!("by a person");
    watched.write(&same.to_string());
    watched.until("the other document", |other| other["bundle"]["document"] != now["bundle"]["document"]);
    assert_eq!(watched.enforcement()["bundle"]["revision"], now["bundle"]["revision"]);
    assert_eq!(
        watched.metric("fedgate_bundle_requests_total{outcome=\"sent\"}"),
        pollers,
        "nobody was woken"
    );

    // It reports after each poll, so that silence means something.
    let told = |now: &Value| now["instances"][0]["last_report"].clone();
    let before = told(&watched.enforcement());
    watched.until("another report of the same", |now| told(now) != before);

    // One that is frozen lags; the other one enforces, and that is no proof.
    two.stop();
    watched.write(&good(Some("redact")));
    let now = watched.until("enforced by one", |now| {
        let states: Vec<_> =
            now["instances"].as_array().unwrap().iter().map(|one| one["state"].clone()).collect();
        states.contains(&json!("current")) && states.contains(&json!("lagging"))
    });
    assert_eq!((&now["enforced"], &now["publications"][0]["enforced_at"]), (&json!(false), &Value::Null));
    assert!(one.mask("analyst").unwrap().contains("'****'"));
    assert!(watched.metric("fedgate_policy_unenforced_since_timestamp_seconds") > 0.0);
    two.go_on();
    watched.until("enforced by both again", |now| now["enforced"] == true);
    assert!(two.mask("analyst").unwrap().contains("'****'"));
    watched.gateway.stop();
}

#[test]
fn a_document_that_cannot_be_enforced_changes_nothing() {
    let watched = Watched::start(&good(Some("sha256")), "", "");
    let opa = watched.opa("one");
    let before = watched.until("enforced", |now| now["enforced"] == true);
    watched.write(&document(None));
    let now = watched.until("the fault", |now| !now["fault"].is_null());
    let message = now["fault"]["message"].as_str().unwrap();
    assert!(message.contains("mask_library.broken.trino"), "{message}");
    assert_eq!(now["bundle"]["revision"], before["bundle"]["revision"]);
    assert!(opa.mask("analyst").unwrap().contains("sha256"));
    assert_eq!(watched.metric("fedgate_bundle_fault"), 1.0);
    // Neither does one that is none at all.
    watched.write("{\"version\": 1, \"subj");
    watched.gateway.wait_for_line("the policy document cannot be taken");
    assert!(opa.mask("analyst").unwrap().contains("sha256"));
    watched.write(&good(None));
    watched.until("unmasked by a good one", |_| opa.mask("analyst").is_none());
    watched.until("no fault", |now| now["fault"].is_null());
    assert_eq!(watched.metric("fedgate_bundle_fault"), 0.0);
    watched.gateway.stop();
}

#[test]
fn the_last_good_bundle_is_served_after_a_restart() {
    let watched = Watched::start(&good(Some("sha256")), "", "");
    let before = watched.until("a bundle", |now| !now["bundle"].is_null());
    let (_, headers, bytes) = fetch(&watched, &[BEARER]);
    let kept = watched.gateway.folder().join("kept.tar.gz");
    until(|| std::fs::read(&kept).is_ok_and(|kept| kept == bytes));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&kept).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    watched.gateway.stop();

    // The document is broken while nobody watches.
    let next = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(next.path(), &bytes).unwrap();
    let with_store = |store: &Path| {
        let toml = toml("", "").replace("{dir}/kept.tar.gz", &store.display().to_string());
        Setup::new(toml).file("policy.json", "no document").file("opa.token", TOKEN)
    };
    let watched = Watched { gateway: Gateway::start(with_store(next.path())) };
    let now = watched.until("the kept bundle", |now| !now["bundle"].is_null());
    assert_eq!(now["bundle"]["revision"], before["bundle"]["revision"]);
    let (status, again, same) = fetch(&watched, &[BEARER]);
    assert_eq!((status, same == bytes), (200, true));
    assert_eq!(etag(&again), etag(&headers));
    let opa = watched.opa("one");
    watched.until("enforced", |now| now["enforced"] == true);
    assert!(opa.mask("analyst").unwrap().contains("sha256"));
    watched.write(&good(None));
    watched.until("another one", |_| opa.mask("analyst").is_none());
    watched.gateway.stop();

    // Where there is a document, what was kept is not served before it: an OPA may have something newer.
    std::fs::write(next.path(), &bytes).unwrap();
    let setup = with_store(next.path()).file("policy.json", good(Some("redact")));
    let watched = Watched { gateway: Gateway::start(setup) };
    let now = watched.until("the document's", |now| !now["publications"].as_array().unwrap().is_empty());
    assert_ne!(now["bundle"]["revision"], before["bundle"]["revision"]);
    assert_eq!(now["publications"].as_array().unwrap().len(), 1, "{now:#}");
    watched.gateway.stop();

    // One that was tampered with is not served.
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    std::fs::write(next.path(), &damaged).unwrap();
    let watched = Watched { gateway: Gateway::start(with_store(next.path())) };
    watched.gateway.wait_for_line("the kept bundle is not served");
    assert_eq!(fetch(&watched, &[BEARER]).0, 503);
    watched.gateway.stop();
}

#[test]
fn who_shows_no_token_gets_nothing_and_proves_nothing() {
    let watched = Watched::start(&good(Some("sha256")), "", "");
    let now = watched.until("a bundle", |now| !now["bundle"].is_null());
    let revision = now["bundle"]["revision"].as_str().unwrap();
    let forged = json!({"labels": {"id": "forged"}, "bundles": {"fedgate": {"active_revision": revision}}})
        .to_string();
    let wrong: &[&[(&str, &str)]] = &[
        &[],
        &[("Authorization", "Bearer another")],
        &[("Authorization", "Bearer ")],
        &[("Authorization", "the token of OPA")],
        &[("Authorization", "Basic the token of OPA")],
        &[BEARER, BEARER],
    ];
    for headers in wrong {
        let (status, answer, _) = fetch(&watched, headers);
        assert_eq!(status, 401, "{headers:?}");
        assert!(answer.to_lowercase().contains("www-authenticate: bearer"), "{answer}");
        for path in ["/opa/status", "/opa/status/one"] {
            let (status, _) = watched.request("POST", path, headers, &forged);
            assert_eq!(status, 401, "{headers:?}");
        }
    }
    assert_eq!(watched.enforcement()["instances"], json!([]));
    assert_eq!(watched.metric("fedgate_bundle_requests_total{outcome=\"refused\"}"), wrong.len() as f64);
    assert_eq!(watched.metric("fedgate_opa_reports_total{outcome=\"refused\"}"), 2.0 * wrong.len() as f64);
    // Nonsense from somebody with the token.
    let long = "x".repeat(2 << 20);
    let cases = [("", 400), ("{}", 400), ("null", 400), ("{\"labels\":{\"id\":\"1\"}}", 400), (&*long, 413)];
    for (body, want) in cases {
        assert_eq!(watched.request("POST", "/opa/status", &[BEARER], body).0, want, "{:.20}", body);
    }
    assert_eq!(watched.enforcement()["instances"], json!([]));
    // The token is read anew.
    std::fs::write(watched.gateway.folder().join("opa.token"), "another\n").unwrap();
    assert_eq!(fetch(&watched, &[BEARER]).0, 401);
    assert_eq!(fetch(&watched, &[("Authorization", "Bearer another")]).0, 200);
    assert_eq!(
        watched.request("POST", "/opa/status/a", &[("Authorization", "Bearer another")], &forged).0,
        200
    );
    assert_eq!(watched.enforcement()["enforced"], true);
    // More OPAs than anybody has.
    let mut last = 0;
    for number in 0..300 {
        let body = forged.replace("forged", &number.to_string());
        last = watched.request("POST", "/opa/status", &[("Authorization", "Bearer another")], &body).0;
    }
    assert_eq!(last, 429);
    assert_eq!(watched.request("GET", "/opa/status", &[], "").0, 405);
    watched.gateway.stop();
}

#[test]
fn a_poll_is_answered_when_something_changes_or_its_time_is_over() {
    let watched = Watched::start(&good(None), "", "");
    watched.until("a bundle", |now| !now["bundle"].is_null());
    let (status, head, bytes) = fetch(&watched, &[BEARER]);
    assert_eq!(status, 200);
    assert!(head.contains("application/vnd.openpolicyagent.bundles"), "{head}");
    assert!(bytes.starts_with(&[0x1f, 0x8b]));
    let etag = etag(&head);
    let known = ("If-None-Match", etag.as_str());
    assert_eq!(fetch(&watched, &[BEARER, known]).0, 304);
    let began = Instant::now();
    assert_eq!(fetch(&watched, &[BEARER, known, ("Prefer", "modes=snapshot,delta;wait=1")]).0, 304);
    assert!(began.elapsed() >= Duration::from_secs(1));
    let mut poll = Poll::send(&watched, &[BEARER, known, ("Prefer", "modes=snapshot,delta;wait=60")]);
    until(|| watched.metric("fedgate_bundle_pollers") == 1.0);
    watched.write(&good(Some("sha256")));
    assert_eq!(poll.status(), 200);
    // A gateway that ends lets nobody wait.
    let (_, head, _) = fetch(&watched, &[BEARER]);
    let etag = self::etag(&head);
    let mut poll = Poll::send(&watched, &[BEARER, ("If-None-Match", &etag), ("Prefer", "wait=60")]);
    until(|| watched.metric("fedgate_bundle_pollers") == 1.0);
    let began = Instant::now();
    watched.gateway.stop();
    assert_eq!(poll.status(), 304);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

#[test]
fn a_thousand_pollers_wake_at_once_and_one_that_does_not_read_holds_nobody_up() {
    const POLLERS: usize = 1000;
    let watched = Watched::start(&good(None), "", "");
    watched.until("a bundle", |now| !now["bundle"].is_null());
    let etag = etag(&fetch(&watched, &[BEARER]).1);
    let headers = [BEARER, ("If-None-Match", etag.as_str()), ("Prefer", "modes=snapshot,delta;wait=90")];
    let mut polls: Vec<Poll> = (0..POLLERS).map(|_| Poll::send(&watched, &headers)).collect();
    until(|| watched.metric("fedgate_bundle_pollers") == POLLERS as f64);
    // It waits like the others, and never reads a byte.
    let silent = Poll::send(&watched, &headers);
    until(|| watched.metric("fedgate_bundle_pollers") == POLLERS as f64 + 1.0);
    assert_eq!(watched.gateway.get("/healthz").0, 200, "others are served meanwhile");
    watched.write(&good(Some("sha256")));
    assert_eq!(polls[0].status(), 200);
    let began = Instant::now();
    for poll in &mut polls[1..] {
        assert_eq!(poll.status(), 200);
    }
    let took = began.elapsed();
    eprintln!("enforcement: {POLLERS} pollers were awake {took:?} after the first");
    // The figure is for docs; here only that it is no queue of time-outs.
    assert!(took < Duration::from_secs(20), "{took:?}");
    drop(silent);
    // More than there is room for are told to come later.
    let etag = self::etag(&fetch(&watched, &[BEARER]).1);
    let headers = [BEARER, ("If-None-Match", etag.as_str()), ("Prefer", "wait=90")];
    drop(polls);
    until(|| watched.metric("fedgate_bundle_pollers") == 0.0);
    let mut polls: Vec<Poll> = (0..1501).map(|_| Poll::send(&watched, &headers)).collect();
    until(|| watched.metric("fedgate_bundle_requests_total{outcome=\"busy\"}") == 1.0);
    assert_eq!(watched.gateway.get("/healthz").0, 200);
    polls.clear();
    watched.gateway.stop();
}

#[test]
fn pollers_do_not_take_the_files_that_clients_need() {
    let watched = Watched::start(&good(None), "", "");
    // Another one, started as many systems start services.
    let mut other = std::process::Command::new("sh")
        .args(["-c", "ulimit -S -n 256 && exec \"$0\" run --config \"$1\""])
        .arg(support::fedgate())
        .arg(watched.gateway.config_file())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let limits = format!("/proc/{}/limits", other.id());
    let name = format!("/proc/{}/comm", other.id());
    until(|| {
        if std::fs::read_to_string(&name).unwrap().trim() != "fedgate" {
            return false;
        }
        let text = std::fs::read_to_string(&limits).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        let words: Vec<&str> = line.split_whitespace().collect();
        words[0] == words[1] && words[0] != "256"
    });
    other.kill().unwrap();
    other.wait().unwrap();
    watched.gateway.stop();
}

#[test]
fn a_signed_bundle_is_taken_and_a_forged_one_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let (private, public) = (folder.path().join("sign.key"), key.public_key_pem());
    std::fs::write(&private, key.serialize_pem()).unwrap();
    let opa = format!(
        "signing = {{ algorithm = \"ES256\", key_file = \"{}\", key_id = \"fedgate\" }}",
        private.display()
    );
    let mut odd: Value = serde_json::from_str(&good(Some("sha256"))).unwrap();
    // Whatever a name holds has one hash here and there.
    odd["subjects"]["odd <\u{2028}\u{8}\u{c}\u{7f}\u{1F600}&>"] = odd["subjects"]["analyst"].clone();
    let watched = Watched::start(&odd.to_string(), &opa, "");
    watched.until("a bundle", |now| !now["bundle"].is_null());
    let token = watched.gateway.folder().join("opa.token");
    let http = watched.gateway.http().to_string();
    let indented: String = public.lines().map(|line| format!("      {line}\n")).collect();
    let verified = format!("keys:\n  fedgate:\n    algorithm: ES256\n    key: |\n{indented}");
    let good_one = Opa::start(&token, &http, "good", &verified);
    watched.until("enforced", |now| now["enforced"] == true);
    assert!(good_one.mask("analyst").unwrap().contains("sha256"));
    // Another key than the one that signed.
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap().public_key_pem();
    let indented: String = other.lines().map(|line| format!("      {line}\n")).collect();
    let wrong = format!("keys:\n  fedgate:\n    algorithm: ES256\n    key: |\n{indented}");
    let _bad_one = Opa::start(&token, &http, "bad", &wrong);
    let now = watched.until("told", |now| {
        now["instances"].as_array().unwrap().iter().any(|one| one["state"] == "failing")
    });
    assert_eq!(now["enforced"], false);
    watched.gateway.stop();
}

#[test]
fn an_opa_with_a_certificate_needs_no_token() {
    let authority = Authority::new("the platform's");
    let (server, opa) = (authority.server(&["127.0.0.1"]), authority.client("opa"));
    let http = "listen = \"127.0.0.1:0\"\n\n[http.tls]\ncertificate = \"{dir}/http.crt\"\nprivate_key = \"{dir}/http.key\"\n\
                client_ca = \"{dir}/ca.crt\"\n\n[document]";
    let toml = toml("", "")
        .replace("listen = \"127.0.0.1:0\"\n\n[document]", http)
        .replace("token_file = \"{dir}/opa.token\"", "certificates = [\"opa\"]");
    let setup = Setup::new(toml)
        .file("policy.json", good(Some("sha256")))
        .file("http.crt", server.certificate)
        .file("http.key", server.private_key)
        .file("ca.crt", authority.certificate())
        .file("opa.crt", opa.certificate)
        .file("opa.key", opa.private_key);
    let gateway = Gateway::start(setup);
    // The lines that the command writes, and where things are here.
    let address = format!("https://{}", gateway.http());
    let made = std::process::Command::new(support::fedgate())
        .args(["policy", "bundle", "--url", &address, "--config"])
        .arg(gateway.config_file())
        .output()
        .unwrap();
    let folder = gateway.folder().display().to_string();
    let lines = String::from_utf8(made.stdout)
        .unwrap()
        .replace("/run/secrets/", &format!("{folder}/"))
        .replace("/var/lib/opa", &format!("{folder}/persisted"))
        .replace("    credentials:", &format!("    tls:\n      ca_cert: {folder}/ca.crt\n    credentials:"));
    let opa = Opa::configured(&lines);
    gateway.wait_for_line("every OPA enforces the policy");
    assert!(opa.mask("analyst").unwrap().contains("sha256"));
    gateway.stop();
}

#[test]
fn opas_are_asked_whether_they_mask() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let probe = format!("probe = {{ urls = [\"http://{address}\"], every = \"1s\" }}");
    let watched = Watched::start(&good(Some("sha256")), &probe, "");
    let outcome = |now: &Value| now["probes"][0]["outcome"].as_str().unwrap_or_default().to_owned();
    watched.until("nobody is there", |now| outcome(now) == "unreachable");
    assert_eq!(watched.metric("fedgate_opa_probes_failing"), 1.0);
    let token = watched.gateway.folder().join("opa.token");
    let opa = Opa::listening(&token, &watched.gateway.http().to_string(), "one", "", &address.to_string());
    watched.until("it masks", |now| outcome(now) == "masked");
    assert_eq!(watched.metric("fedgate_opa_probes_failing"), 0.0);
    // An OPA of somebody else at that address, which answers and masks nothing.
    drop(opa);
    let _other = Opa::without_bundle(&address.to_string());
    watched.until("it shows all", |now| outcome(now) == "clear");
    watched.gateway.stop();
}

#[test]
fn turned_off_and_on_by_a_reload() {
    let watched = Watched::start(&good(Some("sha256")), "", "");
    let before = watched.until("a bundle", |now| !now["bundle"].is_null());
    let file = watched.gateway.config_file();
    let with = std::fs::read_to_string(&file).unwrap();
    let without = with.split("[opa]").next().unwrap().to_owned();
    std::fs::write(&file, &without).unwrap();
    watched.gateway.signal("HUP");
    watched.until("off", |now| now["enabled"] == false);
    assert_eq!(fetch(&watched, &[BEARER]).0, 404);
    assert_eq!(watched.request("POST", "/opa/status", &[BEARER], "{}").0, 404);
    std::fs::write(&file, with.replace("[opa]", "[opa]\npackage_trino = false")).unwrap();
    watched.gateway.signal("HUP");
    watched.until("on again, and made anew", |now| {
        !now["bundle"]["document"].is_null() && now["bundle"]["revision"] != before["bundle"]["revision"]
    });
    let (status, _, bytes) = fetch(&watched, &[BEARER]);
    assert_eq!(status, 200);
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(bytes.as_slice()));
    let names: Vec<PathBuf> =
        archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().into_owned()).collect();
    assert!(names.iter().all(|name| !name.starts_with("trino")), "{names:?}");
    watched.gateway.stop();
}

#[test]
fn the_command_writes_what_the_gateway_serves_and_the_lines_that_opa_needs() {
    let watched = Watched::start(&good(Some("sha256")), "", "");
    watched.until("a bundle", |now| !now["bundle"].is_null());
    let (_, _, served) = fetch(&watched, &[BEARER]);
    let output = watched.gateway.folder().join("made.tar.gz");
    let http = format!("http://{}", watched.gateway.http());
    let run = |config: &Path| {
        std::process::Command::new(support::fedgate())
            .args(["policy", "bundle", "--url", &http, "--config"])
            .arg(config)
            .arg("--output")
            .arg(&output)
            .output()
            .unwrap()
    };
    let made = run(&watched.gateway.config_file());
    assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(std::fs::read(&output).unwrap() == served, "other bytes than are served");
    // A real OPA takes these lines as they are, but for where things are on its disk.
    let lines = String::from_utf8(made.stdout).unwrap();
    let token = watched.gateway.folder().join("opa.token");
    // So are those of the tour, and those that the page shows.
    let bare = |text: &str| {
        text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect::<String>()
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let shown = bare(&lines).replace(&http, "http://fedgate:8080");
    assert_eq!(bare(&std::fs::read_to_string(root.join("deploy/opa/opa.yaml")).unwrap()), shown);
    assert!(std::fs::read_to_string(root.join("docs/enforcement.md")).unwrap().contains(&shown), "{shown}");
    let lines = lines
        .replace("/run/secrets/fedgate-opa-token", &token.display().to_string())
        .replace("/var/lib/opa", &watched.gateway.folder().join("persisted").display().to_string());
    let opa = Opa::configured(&lines);
    watched.until("enforced", |now| now["enforced"] == true);
    assert!(opa.mask("analyst").unwrap().contains("sha256"));
    // What cannot be enforced is told, and nothing is written.
    std::fs::remove_file(&output).unwrap();
    watched.write(&document(None));
    let made = run(&watched.gateway.config_file());
    assert_eq!(made.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&made.stdout).contains("mask_library.broken.trino"));
    assert!(!output.exists());
    watched.gateway.stop();
}

/// As the API's description has it, and nothing more.
fn described(body: &Value) {
    let mut all = fedgate::http::description();
    let schema = &mut all["components"]["schemas"]["Enforcement"];
    schema["additionalProperties"] = json!(false);
    if let Err(error) = jsonschema::validate(schema, body) {
        panic!("{error} in {body:#}");
    }
}

fn etag(head: &str) -> String {
    let line = head.lines().find(|line| line.to_lowercase().starts_with("etag:")).expect("an ETag");
    line.split_once(':').unwrap().1.trim().to_owned()
}

fn until(mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(40), "never");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A request whose answer is read later, or never.
struct Poll(BufReader<TcpStream>);

impl Poll {
    fn send(watched: &Watched, headers: &[(&str, &str)]) -> Self {
        let mut stream = TcpStream::connect(watched.gateway.http()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        write!(stream, "GET {BUNDLE} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{headers}\r\n")
            .unwrap();
        Self(BufReader::new(stream))
    }

    fn status(&mut self) -> u16 {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {line:?}")).parse().unwrap()
    }

    fn rest(&mut self) -> (String, Vec<u8>) {
        let mut head = String::new();
        while self.0.read_line(&mut head).unwrap() > 2 {}
        let mut body = Vec::new();
        self.0.read_to_end(&mut body).unwrap();
        (head, body)
    }
}

/// Status, head and body of the bundle.
fn fetch(watched: &Watched, headers: &[(&str, &str)]) -> (u16, String, Vec<u8>) {
    let mut poll = Poll::send(watched, headers);
    let status = poll.status();
    let (head, body) = poll.rest();
    (status, head, body)
}
