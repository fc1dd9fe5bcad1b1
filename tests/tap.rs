//! A hand on the tap: sources paused and resumed, sessions ended, bounds on how many there may be.
//!
//! Invariant: everything here happens at the built gateway before a real PostgreSQL, and is seen there or heard by a
//! client.

#[path = "startup/house.rs"]
mod house;
#[path = "startup/raw.rs"]
mod raw;
mod support;

use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use house::{House, ends_well};
use raw::{PATIENCE, Raw, V3_0, cancel_request, client_tls_of, frame, query, startup};
use serde_json::{Value, json};
use support::{Authority, FaultProxy, Flow, Gateway, Weather, fedgate, http_request};

/// A text that runs until it is cancelled.
const LONG: &str = "SELECT count(*) FROM generate_series(1, 1000000000000)";

fn knock(gateway: &Gateway, user: &str) -> Raw {
    let mut raw = Raw::connect(gateway.address());
    raw.send(&startup(V3_0, &[("user", user), ("database", "climscore")]));
    raw
}

fn enter(gateway: &Gateway, user: &str) -> (Raw, raw::Begun) {
    let mut raw = knock(gateway, user);
    let begun = raw.ready();
    (raw, begun)
}

fn api(gateway: &Gateway, method: &str, path: &str) -> (u16, Value) {
    let (status, body) = http_request(gateway.http(), method, path, &[], "").unwrap();
    (status, serde_json::from_str(&body).unwrap_or_else(|error| panic!("{error}: {body}")))
}

fn done(gateway: &Gateway, method: &str, path: &str) -> Value {
    let (status, body) = api(gateway, method, path);
    assert_eq!(status, 200, "{body}");
    body
}

/// What `/api/v1/sources` says of the source.
fn source(gateway: &Gateway) -> Value {
    done(gateway, "GET", "/api/v1/sources")["sources"][0].take()
}

fn reach(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !reached() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::yield_now();
    }
}

fn waiting(gateway: &Gateway, wanted: u64) {
    reach(&format!("{wanted} waiting"), || source(gateway)["waiting"] == wanted);
}

/// Statements of this text, marked as this test's own, that run at the source.
fn running(mark: &str) -> String {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%{mark}%' AND pid <> pg_backend_pid()"
    );
    house::source().value("postgres", &sql).unwrap()
}

fn series(gateway: &Gateway, name: &str) -> u64 {
    let (_, page) = gateway.get("/metrics");
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
    line.unwrap_or_else(|| panic!("no {name} in {page}")).parse().unwrap()
}

/// Runs the built `fedgate`: its exit code and what it said.
fn cli(gateway: &Gateway, arguments: &[&str]) -> (Option<i32>, String) {
    let url = format!("http://{}", gateway.http());
    let output = Command::new(fedgate()).args(arguments).args(["--url", &url]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

/// An unnamed statement by the extended protocol, whole.
fn extended(sql: &str) -> Vec<u8> {
    [
        frame(b'P', format!("\0{sql}\0\0\0").as_bytes()),
        frame(b'B', b"\0\0\0\0\0\0\0\0"),
        frame(b'E', b"\0\0\0\0\0"),
        frame(b'S', b""),
    ]
    .concat()
}

fn two_users() -> House {
    House::trusting().access("[{ users = [\"visitor\", \"analyst\"] }]")
}

#[test]
fn a_paused_source_ends_what_it_runs_and_begins_nothing() {
    let gateway = two_users().start();
    let (mut long, key) = enter(&gateway, "visitor");
    let (mut block, _) = enter(&gateway, "visitor");
    let (mut simple, _) = enter(&gateway, "visitor");
    let (mut piped, _) = enter(&gateway, "visitor");
    long.send(&query(&format!("{LONG} /* paused */")));
    reach("the long one runs", || running("/* paused */") == "1");
    assert_eq!(block.ask("BEGIN"), Ok(vec![]));

    let answer = done(&gateway, "POST", "/api/v1/sources/climscore/pause");
    assert_eq!((&answer["under_way"], &answer["audited"]), (&json!(2), &json!(false)), "{answer}");
    assert!(answer["paused_since"].is_string());
    let again = done(&gateway, "POST", "/api/v1/sources/climscore/pause?wait=10ms");
    assert_eq!((&again["paused_since"], &again["under_way"]), (&answer["paused_since"], &json!(2)));
    assert_eq!(done(&gateway, "GET", "/api/v1/status")["sources_paused"], json!(["climscore"]));
    assert_eq!(series(&gateway, "fedgate_source_paused{source=\"climscore\"}"), 1);

    // What is new waits: a connection, a statement at rest, a pipeline.
    let mut late = knock(&gateway, "visitor");
    late.send(&query("SELECT 'early'"));
    simple.send(&query("SELECT 'waited' /* paused */"));
    let several: Vec<u8> = (0..500).flat_map(|n| extended(&format!("SELECT {n} /* paused */"))).collect();
    piped.send(&several);
    waiting(&gateway, 3);
    assert_eq!(series(&gateway, "fedgate_pause_waiting{source=\"climscore\"}"), 3);
    // What is under way goes on: the block to its end, and its client then waits as well.
    assert_eq!(block.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
    assert_eq!(block.ask("SELECT 8"), Ok(vec!["8".to_owned()]));
    assert_eq!(running("/* paused */"), "1", "nothing new has arrived");
    let (code, said) = cli(&gateway, &["source", "pause", "climscore", "--wait", "1ms"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.starts_with("climscore is paused; 2 under way, 3 waiting"), "{said}");
    block.send(&[query("COMMIT"), query("SELECT 9")].concat());
    assert_eq!(block.answer(), Ok(vec![]));
    waiting(&gateway, 4);
    assert_eq!(source(&gateway)["under_way"], 1);

    // The last one ends while somebody waits for that.
    let url = format!("http://{}", gateway.http());
    let waits = std::thread::spawn(move || {
        let arguments = ["source", "pause", "climscore", "--wait", "2min", "--url", &url];
        Command::new(fedgate()).args(arguments).output().unwrap()
    });
    let mut cancel = Raw::connect(gateway.address());
    cancel.send(&cancel_request(key.pid, &key.secret));
    assert_eq!(cancel.message(), None);
    assert_eq!(long.answer(), Err("57014".to_owned()));
    let waited = waits.join().unwrap();
    assert_eq!(waited.status.code(), Some(0), "{waited:?}");
    assert!(String::from_utf8_lossy(&waited.stdout).contains("0 under way"), "{waited:?}");

    // A reload does not open it, not even one that names another server.
    let mark = gateway.log_mark();
    gateway.signal("HUP");
    gateway.wait_for_line_after(mark, "configuration reloaded");
    assert!(source(&gateway)["paused_since"].is_string());
    assert_eq!(running("/* paused */"), "0");

    let (code, said) = cli(&gateway, &["source", "resume", "climscore"]);
    assert_eq!((code, said.as_str()), (Some(0), "climscore is open\n"));
    late.ready();
    assert_eq!(late.answer(), Ok(vec!["early".to_owned()]));
    assert_eq!(late.ask("SELECT 1"), Ok(vec!["1".to_owned()]));
    assert_eq!(simple.answer(), Ok(vec!["waited".to_owned()]));
    for n in 0..500 {
        assert_eq!(piped.answer(), Ok(vec![n.to_string()]));
    }
    assert_eq!(block.answer(), Ok(vec!["9".to_owned()]));
    waiting(&gateway, 0);
    reach("nothing is under way", || source(&gateway)["under_way"] == 0);
    assert_eq!(series(&gateway, "fedgate_source_paused{source=\"climscore\"}"), 0);
    assert_eq!(done(&gateway, "GET", "/api/v1/status")["sources_paused"], json!([]));
    ends_well(gateway);
}

/// A client that pipelines statement after statement is never at rest; a pause catches it all the same.
#[test]
fn a_pipeline_without_a_pause_of_its_own_is_held_between_two_statements() {
    let gateway = House::trusting().start();
    let (busy, _) = enter(&gateway, "visitor");
    let mut writer = busy.socket().try_clone().unwrap();
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let writing = std::thread::spawn(move || {
        use std::io::Write;
        let some: Vec<u8> = (0..50).flat_map(|_| query("SELECT 1")).collect();
        let mut sent = 0;
        while stopped.try_recv().is_err() && writer.write_all(&some).is_ok() {
            sent += 50;
        }
        sent
    });
    let reading = std::thread::spawn(move || {
        let mut busy = busy;
        let mut seen = 0;
        while let Some(message) = busy.message() {
            seen += usize::from(message.kind == b'Z');
            if message.kind == b'E' {
                assert_eq!(message.field(b'C').as_deref(), Some("57P01"));
            }
        }
        seen
    });
    let reads = "fedgate_statements_total{class=\"read\",source=\"climscore\",verdict=\"admit\"}";
    reach("it is under way", || series(&gateway, reads) > 1000);
    let answer = done(&gateway, "POST", "/api/v1/sources/climscore/pause?wait=20s");
    assert_eq!(answer["under_way"], 0, "{answer}");
    let held = series(&gateway, reads);
    assert_eq!(series(&gateway, reads), held, "statements of a paused source");
    done(&gateway, "POST", "/api/v1/sources/climscore/resume");
    reach("it goes on", || series(&gateway, reads) > held + 1000);
    assert_eq!(done(&gateway, "DELETE", "/api/v1/clients?user=visitor")["ended"], 1);
    assert!(reading.join().unwrap() > 0);
    let _ = stop.send(());
    assert!(writing.join().unwrap() > 0);
    ends_well(gateway);
}

/// The gateway asks things of its own, such as for the client's settings; who speaks meanwhile is on the count all the same.
#[test]
fn what_is_sent_behind_a_question_of_the_gateways_own_is_under_way() {
    let proxy = FaultProxy::start(house::source().address().parse().unwrap());
    for mode in ["session", "transaction"] {
        let pool = format!("pool = {{ mode = \"{mode}\", size = 4, min_idle = 1 }}");
        let gateway = House::trusting().hosts(&proxy.address()).source(&pool).start();
        let idle = "fedgate_upstream_connections{source=\"climscore\",state=\"idle\"}";
        // Not before the source's catalogue has been read.
        drop(enter(&gateway, "visitor"));
        reach("a session is warm", || {
            series(&gateway, idle) >= 1 && series(&gateway, "fedgate_client_connections") == 0
        });
        proxy.weather(Weather::down(Flow::Stall));
        let (mut client, _) = enter(&gateway, "visitor");
        client.send(&[query("SELECT 1"), query("SELECT 2")].concat());
        reach("it is under way", || source(&gateway)["under_way"] == 1);
        let answer = done(&gateway, "POST", "/api/v1/sources/climscore/pause?wait=1ms");
        assert_eq!(answer["under_way"], 1, "{mode}: {answer}");
        proxy.weather(Weather::FAIR);
        reach("it has ended", || source(&gateway)["under_way"] == 0);
        done(&gateway, "POST", "/api/v1/sources/climscore/resume");
        assert_eq!(client.answer(), Ok(vec!["1".to_owned()]));
        assert_eq!(client.answer(), Ok(vec!["2".to_owned()]));
        ends_well(gateway);
    }
}

/// What a source is paused for: who came meanwhile finds it where it is then.
#[test]
fn a_source_is_moved_while_it_is_paused() {
    for mode in ["session", "transaction"] {
        let from = FaultProxy::start(house::source().address().parse().unwrap());
        let to = house::source().address();
        let pool = format!("pool = {{ mode = \"{mode}\", size = 4 }}");
        let gateway = House::trusting().hosts(&from.address()).source(&pool).start();
        let (mut early, _) = enter(&gateway, "visitor");
        assert_eq!(early.ask("SELECT 1"), Ok(vec!["1".to_owned()]));
        done(&gateway, "POST", "/api/v1/sources/climscore/pause");
        let mut late = knock(&gateway, "visitor");
        waiting(&gateway, 1);
        let file = gateway.config_file();
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(&from.address(), &to)).unwrap();
        let mark = gateway.log_mark();
        gateway.signal("HUP");
        gateway.wait_for_line_after(mark, "configuration reloaded");
        done(&gateway, "POST", "/api/v1/sources/climscore/resume");
        late.ready();
        assert_eq!(late.ask("SELECT 2"), Ok(vec!["2".to_owned()]), "{mode}");
        // Sessions at the server of before are told.
        assert_eq!(&*early.refused().sqlstate, "57P01", "{mode}");
        ends_well(gateway);
    }
}

#[test]
fn a_wait_for_a_paused_source_has_an_end_and_can_be_cancelled() {
    let gateway = House::trusting().start();
    let (mut simple, _) = enter(&gateway, "visitor");
    let (mut piped, _) = enter(&gateway, "visitor");
    let (mut synced, _) = enter(&gateway, "visitor");
    let (mut impatient, key) = enter(&gateway, "visitor");
    done(&gateway, "POST", "/api/v1/sources/climscore/pause");
    simple.send(&query("SELECT 1"));
    piped.send(&[extended("SELECT 1"), extended("SELECT 2")].concat());
    synced.send(&frame(b'S', b""));
    impatient.send(&query("SELECT 1"));
    let mut late = knock(&gateway, "visitor");
    let gone = knock(&gateway, "visitor");
    waiting(&gateway, 6);
    // Who leaves is not waited for.
    drop(gone);
    let mut cancel = Raw::connect(gateway.address());
    cancel.send(&cancel_request(key.pid, &key.secret));
    assert_eq!(cancel.message(), None);
    assert_eq!(impatient.answer(), Err("57014".to_owned()));
    assert_eq!(series(&gateway, "fedgate_cancel_requests_total{outcome=\"waiting\"}"), 1);
    waiting(&gateway, 4);

    let socket = simple.socket();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let message = simple.message().unwrap();
    assert_eq!(message.field(b'S').as_deref(), Some("ERROR"));
    assert_eq!(message.field(b'C').as_deref(), Some("57P03"));
    assert_eq!(message.field(b'M').as_deref(), Some("source \"climscore\" is paused"));
    assert_eq!(simple.message().unwrap().kind, b'Z');
    // Each Sync begins anew: the second pipeline waits as long again.
    assert_eq!(piped.answer(), Err("57P03".to_owned()));
    assert_eq!(synced.answer(), Err("57P03".to_owned()));
    let refused = late.refused();
    assert_eq!((&*refused.severity, &*refused.sqlstate), ("FATAL", "57P03"));
    assert_eq!(series(&gateway, "fedgate_startup_failures_total{reason=\"paused\"}"), 1);
    assert!(series(&gateway, "fedgate_pause_overdue_total{source=\"climscore\"}") >= 4);
    done(&gateway, "POST", "/api/v1/sources/climscore/resume");
    assert_eq!(piped.answer(), Ok(vec!["2".to_owned()]));
    for raw in [&mut simple, &mut piped, &mut synced, &mut impatient] {
        assert_eq!(raw.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
    }
    ends_well(gateway);
}

#[test]
fn what_a_waiting_client_sends_is_not_held_by_the_gateway() {
    use std::io::Write;
    let gateway = House::trusting().start();
    let (raw, _) = enter(&gateway, "visitor");
    done(&gateway, "POST", "/api/v1/sources/climscore/pause");
    let before = memory(&gateway);
    let mut writer = raw.socket().try_clone().unwrap();
    writer.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let some: Vec<u8> = (0..5000).flat_map(|_| query("SELECT 1")).collect();
    let (mut sent, mut full) = (0, false);
    while sent < 256 << 20 && !full {
        match writer.write(&some) {
            Ok(count) => sent += count,
            Err(_) => full = true,
        }
    }
    assert!(full, "{sent} bytes were taken");
    let grown = memory(&gateway).saturating_sub(before);
    assert!(grown < 4 << 10, "{grown} KiB more for {sent} bytes that wait");
    assert_eq!(done(&gateway, "DELETE", "/api/v1/clients?user=visitor")["ended"], 1);
}

/// Resident memory of the gateway, in KiB.
fn memory(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn one_users_sessions_are_ended_and_nobody_elses() {
    let audit = "[audit]\nkind = \"file\"\npath = \"{dir}/audit.jsonl\"\nspool = \"{dir}/spool\"\n";
    let gateway = two_users().more(audit).start();
    let (mut rest, _) = enter(&gateway, "visitor");
    let (mut works, _) = enter(&gateway, "visitor");
    let (mut other, _) = enter(&gateway, "analyst");
    works.send(&query(&format!("{LONG} /* ended */")));
    reach("the long one runs", || running("/* ended */") == "1");

    let listed = done(&gateway, "GET", "/api/v1/clients");
    assert_eq!(listed["total"], 3);
    let users: Vec<_> =
        listed["clients"].as_array().unwrap().iter().map(|c| c["user"].as_str().unwrap()).collect();
    assert_eq!(users, ["visitor", "visitor", "analyst"]);
    let own = other.socket().local_addr().unwrap().to_string();
    assert_eq!(listed["clients"][2]["address"], own.as_str());
    let (code, said) = cli(&gateway, &["clients", "list", "--user", "analyst"]);
    assert!(code == Some(0) && said.lines().count() == 1 && said.contains(&own), "{said}");
    // A slip ends nobody.
    for query in ["", "?source=climscore", "?user=visitor&limit=1", "?name=visitor", "?id=x"] {
        assert_eq!(api(&gateway, "DELETE", &format!("/api/v1/clients{query}")).0, 400, "{query}");
    }
    assert_eq!(cli(&gateway, &["clients", "end", "--source", "climscore"]).0, Some(2));
    assert_eq!(done(&gateway, "DELETE", "/api/v1/clients?user=visitor&source=elsewhere")["ended"], 0);

    // One waits to be let in meanwhile.
    done(&gateway, "POST", "/api/v1/sources/climscore/pause");
    let mut late = knock(&gateway, "visitor");
    waiting(&gateway, 1);
    assert_eq!(
        done(&gateway, "DELETE", "/api/v1/clients?user=visitor"),
        json!({"ended": 3, "audited": true})
    );
    for raw in [&mut rest, &mut works, &mut late] {
        let refused = raw.refused();
        assert_eq!((&*refused.severity, &*refused.sqlstate), ("FATAL", "57P01"));
        assert_eq!(refused.message, "terminating connection due to administrator command");
    }
    reach("the statement is cancelled at the source", || running("/* ended */") == "0");
    done(&gateway, "POST", "/api/v1/sources/climscore/resume");
    assert_eq!(other.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
    assert_eq!(series(&gateway, "fedgate_sessions_ended_total"), 3);

    // By its number, and by hand.
    let id = done(&gateway, "GET", "/api/v1/clients?user=analyst")["clients"][0]["id"].to_string();
    let (code, said) = cli(&gateway, &["clients", "end", "--id", &id]);
    assert_eq!((code, said.as_str()), (Some(0), "1 session(s) told to end\n"));
    assert_eq!(other.refused().sqlstate, "57P01");
    assert_eq!(cli(&gateway, &["clients", "end", "--user", "analyst"]).0, Some(1));
    let (mut back, _) = enter(&gateway, "visitor");
    assert_eq!(back.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
    drop(back);

    let path = gateway.folder().join("audit.jsonl");
    reach("the trail has all of it", || {
        std::fs::read_to_string(&path).is_ok_and(|text| text.contains("1 session(s) of session"))
    });
    let text = std::fs::read_to_string(&path).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told = |message: &str| {
        events
            .iter()
            .find(|event| event["message"] == message)
            .unwrap_or_else(|| panic!("no {message:?} in {text}"))
    };
    let ended = told("3 session(s) of visitor were ended");
    assert_eq!(ended["actor"]["user"]["name"], "anonymous");
    assert_eq!((&ended["class_uid"], &ended["entity"]["type"]), (&json!(3004), &json!("Sessions")));
    assert_eq!(ended["unmapped"]["ended"], "3");
    assert_eq!(told("source climscore was paused")["entity"]["name"], "climscore");
    assert_eq!(told("source climscore was resumed")["unmapped"]["waiting"], "0");
    ends_well(gateway);
}

#[test]
fn users_and_sources_have_bounds_of_their_own() {
    let gateway = two_users().gateway("max_clients_per_user = 2").source("max_clients = 3").start();
    let full = |user: &str| knock(&gateway, user).refused();
    let held = |wanted: u64| {
        reach("places are free", || done(&gateway, "GET", "/api/v1/clients")["total"] == wanted)
    };
    for round in 0..4 {
        let (one, _) = enter(&gateway, "visitor");
        let (mut two, _) = enter(&gateway, "visitor");
        let refused = full("visitor");
        assert_eq!((&*refused.severity, &*refused.sqlstate), ("FATAL", "53300"));
        assert_eq!(refused.message, "too many connections for role \"visitor\"");
        let (three, _) = enter(&gateway, "analyst");
        let refused = full("analyst");
        assert_eq!(
            (&*refused.sqlstate, &*refused.message),
            ("53300", "too many connections for database \"climscore\"")
        );
        // However a session ends, its place is free then.
        match round {
            0 => {
                two.send(&frame(b'X', b""));
                assert_eq!(two.end(), []);
            }
            1 => {
                two.send(&query(LONG));
                socket2::SockRef::from(two.socket()).set_linger(Some(Duration::ZERO)).unwrap();
            }
            2 => {
                let id =
                    done(&gateway, "GET", "/api/v1/clients?user=visitor")["clients"][1]["id"].to_string();
                done(&gateway, "DELETE", &format!("/api/v1/clients?id={id}"));
                assert_eq!(two.refused().sqlstate, "57P01");
            }
            _ => {
                // The backend of the source is gone.
                let pid = two.ask("SELECT pg_backend_pid()").unwrap().remove(0);
                house::source().value("postgres", &format!("SELECT pg_terminate_backend({pid})"));
                assert_eq!(two.refused().sqlstate, "57P01");
            }
        }
        drop(two);
        held(2);
        let (mut again, _) = enter(&gateway, "visitor");
        assert_eq!(again.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
        drop((one, three, again));
        held(0);
    }
    assert_eq!(series(&gateway, "fedgate_startup_failures_total{reason=\"user_limit\"}"), 4);
    assert_eq!(series(&gateway, "fedgate_startup_failures_total{reason=\"source_limit\"}"), 4);
    ends_well(gateway);
}

/// Nobody takes a user's places by naming the user.
#[test]
fn who_has_not_proved_who_it_is_takes_no_place() {
    let house = House::scram().gateway("max_clients_per_user = 1");
    let gateway = Gateway::start(house.setup().users(&[("visitor", "hunter2")]));
    let mut strangers: Vec<Raw> = (0..5).map(|_| knock(&gateway, "visitor")).collect();
    assert!(strangers.iter_mut().all(|raw| raw.message().is_some_and(|message| message.kind == b'R')));
    assert!(knock(&gateway, "visitor").scram("wrong", raw::Binding::Unsupported).is_err());
    let mut known = knock(&gateway, "visitor");
    known.scram("hunter2", raw::Binding::Unsupported).ok().unwrap();
    let Err((refused, _)) = knock(&gateway, "visitor").scram("hunter2", raw::Binding::Unsupported) else {
        panic!("a second one was let in");
    };
    assert_eq!(refused.message, "too many connections for role \"visitor\"");
    assert_eq!(known.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
    drop(strangers);
    ends_well(gateway);
}

#[test]
fn beyond_max_clients_nothing_is_spent_on_a_client() {
    let gateway = House::trusting().gateway("max_clients = 10").start();
    let inside: Vec<_> = (0..10).map(|_| enter(&gateway, "visitor")).collect();
    assert_eq!(knock(&gateway, "visitor").refused().sqlstate, "53300");
    let turned = "fedgate_startup_failures_total{reason=\"too_many_clients\"}";
    let mut grown = Vec::new();
    for round in 1..4 {
        let before = memory(&gateway);
        // They say nothing, which is what holds a place for the longest.
        let outside: Vec<TcpStream> =
            (0..300).map(|_| TcpStream::connect(gateway.address()).unwrap()).collect();
        // All but those that may be told so at the same time are closed at once.
        let most = 300 * round - 64;
        reach("most are closed", || series(&gateway, turned) > most);
        assert_eq!(series(&gateway, "fedgate_client_connections"), 10);
        grown.push(memory(&gateway).saturating_sub(before));
        reach("all are closed", || series(&gateway, turned) == 300 * round + 1);
        drop(outside);
    }
    // The allocator finds the room for those that are told so in one of the rounds; clients outside add nothing to that.
    let least = grown[1..].iter().min().unwrap();
    assert!(grown.iter().sum::<u64>() < 8 << 10 && *least < 1 << 10, "KiB more: {grown:?}");
    eprintln!("KiB more for 300 clients outside: {grown:?}");
    drop(inside);
    reach("there is room", || series(&gateway, "fedgate_client_connections") == 0);
    let (mut raw, _) = enter(&gateway, "visitor");
    assert_eq!(raw.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
    drop(raw);
    ends_well(gateway);
}

/// The second handshake of a client spares both sides the certificate and its signature.
#[test]
fn tls_sessions_are_resumed_until_the_certificate_is_another_one() {
    let authority = Authority::new("test authority");
    let pair = authority.server(&["localhost", "127.0.0.1"]);
    let setup = House::trusting()
        .tls("client_ca = \"{dir}/client-ca.crt\"")
        .setup()
        .file("server.crt", pair.certificate)
        .file("server.key", pair.private_key)
        .file("client-ca.crt", authority.certificate());
    let gateway = Gateway::start(setup);
    let whole =
        |kind| matches!(kind, rustls::HandshakeKind::Full | rustls::HandshakeKind::FullWithHelloRetryRequest);
    let connect = |config: &std::sync::Arc<rustls::ClientConfig>| {
        let mut raw = Raw::connect(gateway.address()).ask_for_tls(config).unwrap();
        raw.send(&startup(V3_0, &[("user", "visitor"), ("database", "climscore")]));
        // TLS 1.3 sends tickets behind the handshake: they come with the first answer.
        raw.ready();
        assert_eq!(raw.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
        raw.handshake_kind().unwrap()
    };
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let config = client_tls_of(&[version], authority.certificate(), &["postgresql"], None);
        assert!(whole(connect(&config)), "{version:?}");
        for _ in 0..3 {
            assert_eq!(connect(&config), rustls::HandshakeKind::Resumed, "{version:?}");
        }
        let mark = gateway.log_mark();
        gateway.signal("HUP");
        gateway.wait_for_line_after(mark, "configuration reloaded");
        assert!(whole(connect(&config)), "{version:?}: tickets of before a reload");
        assert_eq!(connect(&config), rustls::HandshakeKind::Resumed, "{version:?}");
    }
    ends_well(gateway);
}
