//! The client's side: encryption, protocol versions, startup keys, who is let in, and cancel.
//!
//! Invariant: everything here was said over a socket to the built gateway before a real PostgreSQL.

#[path = "startup/house.rs"]
mod house;
#[path = "startup/raw.rs"]
mod raw;
mod support;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use house::{House, ends_well, no_leak};
use raw::{
    Binding, PATIENCE, Raw, V3_0, V3_2, cancel_request, client_tls, frame, gss_request, opening, query,
    ssl_request, startup,
};
use support::{Authority, Gateway};

const VISITOR: [(&str, &str); 2] = [("user", "visitor"), ("database", "climscore")];

fn visitor(gateway: &Gateway) -> Raw {
    let mut raw = Raw::connect(gateway.address());
    raw.send(&startup(V3_0, &VISITOR));
    raw.ready();
    raw
}

fn with_tls(house: House, authority: &Authority) -> Gateway {
    let pair = authority.server(&["localhost", "127.0.0.1"]);
    let setup = house
        .setup()
        .file("server.crt", pair.certificate)
        .file("server.key", pair.private_key)
        .file("client-ca.crt", authority.certificate());
    Gateway::start(setup)
}

#[test]
fn without_tls_each_request_for_encryption_is_declined_and_the_start_goes_on() {
    let gateway = House::trusting().start();
    let requests = [
        vec![],
        vec![ssl_request()],
        vec![gss_request()],
        vec![gss_request(), ssl_request()],
        vec![ssl_request(), gss_request()],
    ];
    for requests in requests {
        let mut raw = Raw::connect(gateway.address());
        for request in &requests {
            raw.send(request);
            assert_eq!(raw.byte(), Some(b'N'));
        }
        raw.send(&startup(V3_0, &VISITOR));
        raw.ready();
        assert_eq!(raw.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
    }
    let mut raw = Raw::connect(gateway.address());
    for _ in 0..2 {
        raw.send(&gss_request());
        assert_eq!(raw.byte(), Some(b'N'));
    }
    assert_eq!(raw.send(&gss_request()).refused().sqlstate, "08P01", "without an end");
    // Not a word of PostgreSQL can be said to a client that speaks TLS.
    let authority = Authority::new("test authority");
    let tls = client_tls(authority.certificate(), &["postgresql"], None);
    assert!(Raw::connect(gateway.address()).tls(&tls).is_err());
    gateway.wait_for_line("direct TLS, and TLS is not configured");
    ends_well(gateway);
}

#[test]
fn tls_by_request_and_directly() {
    let authority = Authority::new("test authority");
    let gateway = with_tls(House::trusting().tls(""), &authority);
    let plain = client_tls(authority.certificate(), &[], None);
    let alpn = client_tls(authority.certificate(), &["postgresql"], None);
    let other = client_tls(authority.certificate(), &["http/1.1"], None);

    for config in [&plain, &alpn] {
        let mut raw = Raw::connect(gateway.address()).ask_for_tls(config).unwrap();
        raw.send(&startup(V3_0, &VISITOR));
        raw.ready();
        assert_eq!(raw.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
        assert_eq!(raw.alpn().is_some(), std::sync::Arc::ptr_eq(config, &alpn));
    }
    assert!(Raw::connect(gateway.address()).ask_for_tls(&other).is_err(), "another protocol's client");

    // As clients of PostgreSQL 17 with sslnegotiation=direct.
    let mut raw = Raw::connect(gateway.address()).tls(&alpn).unwrap();
    assert_eq!(raw.alpn().as_deref(), Some(&b"postgresql"[..]));
    raw.send(&startup(V3_0, &VISITOR));
    raw.ready();
    assert_eq!(raw.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
    assert!(Raw::connect(gateway.address()).tls(&other).is_err());
    if let Ok(mut raw) = Raw::connect(gateway.address()).tls(&plain) {
        raw.send(&startup(V3_0, &VISITOR));
        assert_eq!(raw.message(), None, "direct TLS needs ALPN");
    }
    gateway.wait_for_line("direct TLS without ALPN");

    // GSSAPI first, as libpq with gssencmode=prefer.
    let mut raw = Raw::connect(gateway.address());
    raw.send(&gss_request());
    assert_eq!(raw.byte(), Some(b'N'));
    let mut raw = raw.ask_for_tls(&alpn).unwrap();
    raw.send(&startup(V3_0, &VISITOR));
    raw.ready();

    // No encryption inside encryption.
    let mut raw = Raw::connect(gateway.address()).ask_for_tls(&alpn).unwrap();
    assert_eq!(raw.send(&ssl_request()).refused().sqlstate, "08P01");
    // TLS stays a choice.
    visitor(&gateway);
    ends_well(gateway);
}

#[test]
fn what_was_smuggled_behind_a_request_for_encryption_is_never_read() {
    let authority = Authority::new("test authority");
    let without = House::trusting().start();
    let with = with_tls(House::trusting().tls(""), &authority);
    let smuggled = [startup(V3_0, &VISITOR), query("SELECT 'smuggled'")].concat();
    for (gateway, request) in
        [(&without, ssl_request()), (&without, gss_request()), (&with, ssl_request()), (&with, gss_request())]
    {
        let mut raw = Raw::connect(gateway.address());
        // In one segment, so that it is there when the request is read.
        raw.send(&[&request[..], &smuggled].concat());
        let refused = raw.refused();
        assert_eq!(refused.sqlstate, "08P01");
        assert!(refused.message.contains("unencrypted data"), "{refused:?}");
        assert!(!raw.received.starts_with(b"S") && !raw.received.starts_with(b"N"));
    }
    // Later, in place of the handshake.
    let mut raw = Raw::connect(with.address());
    raw.send(&ssl_request());
    assert_eq!(raw.byte(), Some(b'S'));
    raw.send(&smuggled);
    let mut rest = Vec::new();
    while let Some(byte) = raw.byte() {
        rest.push(byte);
    }
    assert!(!rest.windows(8).any(|part| part == b"smuggled"));
    let source = house::source().statement_log();
    assert!(!source.contains("smuggled"));
    ends_well(without);
    ends_well(with);
}

#[test]
fn tls_can_be_required() {
    let authority = Authority::new("test authority");
    let gateway = with_tls(House::trusting().tls("required = true"), &authority);
    let mut raw = Raw::connect(gateway.address());
    let refused = raw.send(&startup(V3_0, &VISITOR)).refused();
    assert_eq!((refused.sqlstate.as_str(), refused.message.as_str()), ("28000", "connection requires TLS"));
    let mut raw = Raw::connect(gateway.address());
    raw.send(&gss_request());
    assert_eq!(raw.byte(), Some(b'N'));
    assert_eq!(raw.send(&startup(V3_0, &VISITOR)).refused().sqlstate, "28000");
    let tls = client_tls(authority.certificate(), &["postgresql"], None);
    let mut raw = Raw::connect(gateway.address()).ask_for_tls(&tls).unwrap();
    raw.send(&startup(V3_0, &VISITOR));
    raw.ready();
    ends_well(gateway);
}

#[test]
fn protocol_versions_are_negotiated_as_by_postgresql_18() {
    let gateway = House::trusting().start();
    let start = |version: u32, more: &[(&str, &str)]| {
        let mut raw = Raw::connect(gateway.address());
        raw.send(&startup(version, &[&VISITOR, more].concat()));
        let begun = raw.ready();
        assert_eq!(raw.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
        begun
    };
    let negotiated = |version: u32, names: &[&str]| {
        let mut body = version.to_be_bytes().to_vec();
        body.extend_from_slice(&(names.len() as u32).to_be_bytes());
        for name in names {
            body.extend_from_slice(name.as_bytes());
            body.push(0);
        }
        Some(body)
    };
    let begun = start(V3_0, &[]);
    assert_eq!((begun.negotiated, begun.secret.len()), (None, 4));
    let begun = start(V3_2, &[]);
    assert_eq!((begun.negotiated, begun.secret.len()), (None, 32));
    let begun = start(V3_0 | 9999, &[]);
    assert_eq!((begun.negotiated, begun.secret.len()), (negotiated(V3_2, &[]), 32));
    let begun = start(V3_0, &[("_pq_.compression", "zstd"), ("_pq_.other", "1")]);
    assert_eq!(begun.negotiated, negotiated(V3_0, &["_pq_.compression", "_pq_.other"]));
    assert_eq!(begun.secret.len(), 4);
    assert!(begun.kinds.starts_with("vR"), "before the authentication: {}", begun.kinds);
    let begun = start(V3_0 | 9999, &[("_pq_.x", "")]);
    assert_eq!(begun.negotiated, negotiated(V3_2, &["_pq_.x"]));

    for version in [2 << 16, 4 << 16, 0, 1 << 16, (1234 << 16) | 5681] {
        let mut raw = Raw::connect(gateway.address());
        let refused = raw.send(&startup(version, &VISITOR)).refused();
        assert_eq!(refused.sqlstate, "0A000", "{refused:?}");
        assert!(refused.message.contains("unsupported frontend protocol"), "{refused:?}");
    }
    ends_well(gateway);
}

#[test]
fn startup_keys_are_judged_by_the_same_list_as_set() {
    let gateway = House::trusting().start();
    let start = |more: &[(&str, &str)]| {
        let mut raw = Raw::connect(gateway.address());
        raw.send(&startup(V3_0, &[&VISITOR, more].concat()));
        raw
    };
    // All that psql, PgJDBC, Npgsql and others send.
    let mut raw = start(&[
        ("application_name", "psql"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, DMY"),
        ("TimeZone", "Europe/Paris"),
        ("extra_float_digits", "2"),
        ("search_path", "public"),
        (
            "options",
            "-c statement_timeout=5s --lock-timeout=3s -cIntervalStyle=iso_8601 -c search_path=a,\\ b",
        ),
        ("replication", "false"),
    ]);
    let begun = raw.ready();
    for (name, value) in [
        ("application_name", "psql"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO, DMY"),
        ("TimeZone", "Europe/Paris"),
        ("IntervalStyle", "iso_8601"),
        ("server_encoding", "UTF8"),
    ] {
        assert_eq!(begun.parameter(name), Some(value), "{name}");
    }
    let real = house::source().value("postgres", "SHOW server_version");
    assert_eq!(begun.parameter("server_version"), real.as_deref());
    assert_eq!(begun.parameter("default_transaction_read_only"), Some("on"));
    for (name, value) in [("statement_timeout", "5s"), ("lock_timeout", "3s"), ("extra_float_digits", "2")] {
        assert_eq!(raw.ask(&format!("SHOW {name}")), Ok(vec![value.to_owned()]), "{name}");
    }
    // As in PostgreSQL, a key of its own counts before the same one in options.
    assert_eq!(raw.ask("SHOW search_path"), Ok(vec!["public".to_owned()]));
    no_leak(&raw);

    let refused: &[(&str, &str, &str)] = &[
        ("role", "postgres", "42501"),
        ("session_authorization", "postgres", "42501"),
        ("log_statement", "none", "42501"),
        ("default_transaction_read_only", "off", "25006"),
        ("session_preload_libraries", "x", "42501"),
        ("standard_conforming_strings", "off", "42501"),
        ("client_encoding", "LATIN1", "22021"),
        ("USER", "postgres", "42501"),
        ("Database", "postgres", "42501"),
        ("no_such_thing", "1", "42501"),
        ("options", "-c log_statement=none", "42501"),
        ("options", "-c statement_timeout=1s -c role=postgres", "42501"),
        ("options", "--session-authorization=postgres", "42501"),
        ("options", "-c default-transaction-read-only=off", "25006"),
        ("options", "-d 5", "42501"),
        ("options", "-c", "42501"),
        ("options", "-c\tRole=postgres", "42501"),
        ("options", "-c r\\ole=postgres", "42501"),
        ("replication", "true", "0A000"),
        ("replication", "database", "0A000"),
        ("replication", "1", "0A000"),
        ("replication", "on", "0A000"),
    ];
    for (name, value, sqlstate) in refused {
        let mut raw = start(&[(name, value)]);
        let refused = raw.refused();
        assert_eq!(&refused.sqlstate, sqlstate, "{name}={value}: {refused:?}");
        assert_eq!(refused.severity, "FATAL");
        no_leak(&raw);
    }
    for value in ["off", "no", "0", "FALSE"] {
        start(&[("replication", value)]).ready();
    }
    // The value that the source does not take: its own words, which are about the client's value.
    let mut raw = start(&[("TimeZone", "Nowhere/Atall")]);
    let refused = raw.refused();
    assert_eq!(refused.sqlstate, "22023", "{refused:?}");
    no_leak(&raw);
    ends_well(gateway);
}

#[test]
fn a_key_comes_once_and_a_startup_packet_too() {
    let gateway = House::trusting().access("[{ users = [\"visitor\", \"postgres\"] }]").start();
    for more in [("user", "postgres"), ("database", "postgres"), ("user", "visitor"), ("DateStyle", "ISO")] {
        let mut raw = Raw::connect(gateway.address());
        raw.send(&startup(V3_0, &[&VISITOR[..], &[("DateStyle", "ISO"), more]].concat()));
        assert_eq!(raw.refused().sqlstate, "08P01", "{more:?}");
    }
    // A second startup packet looks like a message of type 0.
    for second in [startup(V3_0, &[("user", "postgres"), ("database", "postgres")]), ssl_request()] {
        let mut raw = visitor(&gateway);
        assert_eq!(raw.send(&second).refused().sqlstate, "08P01");
        no_leak(&raw);
    }
    // Sent together with the first one.
    let mut raw = Raw::connect(gateway.address());
    raw.send(&[startup(V3_0, &VISITOR), startup(V3_0, &VISITOR)].concat());
    assert_eq!(raw.refused().sqlstate, "08P01");
    // A password message that nobody asked for.
    let mut raw = visitor(&gateway);
    assert_eq!(raw.send(&frame(b'p', b"secret\0")).refused().sqlstate, "08P01");
    // What PostgreSQL refuses too.
    let mut raw = Raw::connect(gateway.address());
    assert_eq!(raw.send(&startup(V3_0, &[("database", "climscore")])).refused().sqlstate, "28000");
    let mut raw = Raw::connect(gateway.address());
    assert_eq!(raw.send(&opening(V3_0, b"user\0visitor\0")).refused().sqlstate, "08P01");
    ends_well(gateway);
}

const USERS: [(&str, &str); 2] = [("visitor", "open sesame"), ("analyst", "swordfish ünd mehr")];

fn knocking(gateway: &Gateway, from: Ipv4Addr, user: &str) -> Raw {
    let mut raw = Raw::connect_from(from, gateway.address());
    raw.send(&startup(V3_0, &[("user", user), ("database", "climscore")]));
    raw
}

fn psql(gateway: &Gateway, user: &str, password: &str, connection: &str) -> (bool, String) {
    let address = format!("host=127.0.0.1 port={} user={user} dbname=climscore {connection}", gateway.port());
    let output = house::source()
        .psql("climscore")
        .env_remove("PGHOST")
        .env_remove("PGPORT")
        .env_remove("PGUSER")
        .env_remove("PGDATABASE")
        .env("PGPASSWORD", password)
        .env("PGCONNECT_TIMEOUT", "60")
        .args(["-Atc", "SELECT 'hello ' || 7", "-d", &address])
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
}

#[test]
fn scram_with_and_without_channel_binding() {
    let authority = Authority::new("test authority");
    let pair = authority.server(&["localhost", "127.0.0.1"]);
    let setup = House::scram()
        .tls("")
        .setup()
        .users(&USERS)
        .file("server.crt", pair.certificate)
        .file("server.key", pair.private_key)
        .file("ca.crt", authority.certificate());
    let gateway = Gateway::start(setup);
    let ca = gateway.folder().join("ca.crt");
    let verified = format!("sslmode=verify-full sslrootcert={}", ca.display());
    let (user, password) = USERS[0];

    for connection in [
        format!("{verified} channel_binding=require"),
        format!("{verified} channel_binding=disable"),
        "sslmode=require".to_owned(),
        "sslmode=disable".to_owned(),
        "sslmode=prefer gssencmode=disable".to_owned(),
    ] {
        assert_eq!(psql(&gateway, user, password, &connection), (true, "hello 7".to_owned()), "{connection}");
        let (let_in, words) = psql(&gateway, user, "wrong", &connection);
        assert!(!let_in && words.contains("password authentication failed for user \"visitor\""), "{words}");
    }
    support::blocking(async {
        let client = gateway.connect(user, password, "climscore").await.unwrap();
        assert_eq!(client.query_one("SELECT 7", &[]).await.unwrap().get::<_, i32>(0), 7);
        let error = gateway.connect(user, "wrong", "climscore").await.err().unwrap();
        assert_eq!(error.code().unwrap().code(), "28P01");
    });

    let tls = client_tls(authority.certificate(), &["postgresql"], None);
    let knock = || {
        let mut raw =
            Raw::connect_from(Ipv4Addr::new(127, 0, 0, 9), gateway.address()).ask_for_tls(&tls).unwrap();
        raw.send(&startup(V3_0, &VISITOR));
        raw
    };
    let mut raw = knock();
    raw.scram(password, Binding::EndPoint).unwrap();
    assert_eq!(raw.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
    no_leak(&raw);
    knock().scram(password, Binding::Unsupported).unwrap();
    // A man in the middle: with a certificate of his own, or having cut the offer out.
    for binding in [Binding::Wrong, Binding::Unrequested] {
        let (refused, _) = knock().scram(password, binding).unwrap_err();
        assert_eq!(refused.sqlstate, "28000", "{binding:?} {refused:?}");
    }
    let plain = || knocking(&gateway, Ipv4Addr::new(127, 0, 0, 9), user);
    plain().scram(password, Binding::Unrequested).unwrap();
    let (refused, _) = plain().scram(password, Binding::Wrong).unwrap_err();
    assert_eq!(refused.sqlstate, "08P01", "it was not offered");
    // The name is the startup packet's, a password is needed, and the case of a name counts.
    for (user, password) in [("analyst", USERS[0].1), ("Visitor", USERS[0].1), ("visitor", "")] {
        let (refused, _) = knocking(&gateway, Ipv4Addr::new(127, 0, 0, 10), user)
            .scram(password, Binding::Unsupported)
            .unwrap_err();
        assert_eq!(refused.sqlstate, "28P01");
    }
    let log = ends_well(gateway);
    for (_, password) in USERS {
        assert!(!log.contains(password));
    }
}

#[test]
fn who_is_there_cannot_be_told_by_answer_or_time() {
    let gateway = Gateway::start(House::scram().setup().users(&USERS));
    let mut host = 0;
    // Ten guesses are free for each address.
    let mut address = || {
        host += 1;
        Ipv4Addr::new(127, 0, 2, (host / 8) as u8 + 1)
    };
    let mut challenge = |user: &str| {
        let mut raw = knocking(&gateway, address(), user);
        assert_eq!(raw.message().unwrap().body, b"\0\0\0\x0aSCRAM-SHA-256\0\0");
        let mut body = b"SCRAM-SHA-256\0\0\0\0\x0bn,,n=,r=abc".to_vec();
        body.splice(14..18, 11u32.to_be_bytes());
        raw.send(&frame(b'p', &body));
        let message = raw.message().unwrap();
        assert_eq!(message.kind, b'R', "{message:?}");
        let text = String::from_utf8(message.body[4..].to_vec()).unwrap();
        let parts: Vec<String> = text.split(',').map(str::to_owned).collect();
        (parts[0].len(), parts[1].clone(), parts[2].clone())
    };
    let (known, unknown) = (challenge("visitor"), challenge("nobody"));
    assert_eq!((known.0, known.1.len(), &known.2), (unknown.0, unknown.1.len(), &unknown.2));
    assert_eq!(unknown, challenge("nobody"), "the same salt each time, as a user has");
    assert_ne!(unknown.1, challenge("somebody").1);

    let mut times = [Vec::new(), Vec::new()];
    for _ in 0..40 {
        for (user, times) in ["visitor", "nobody_"].iter().zip(&mut times) {
            let mut raw = knocking(&gateway, address(), user);
            let began = Instant::now();
            let (refused, before) = raw.scram("wrong", Binding::Unsupported).unwrap_err();
            times.push(began.elapsed());
            assert_eq!(before, 2, "AuthenticationSASL and …Continue");
            assert_eq!(
                (refused.severity.as_str(), refused.sqlstate.as_str(), refused.detail.as_str()),
                ("FATAL", "28P01", "")
            );
            assert_eq!(refused.message, format!("password authentication failed for user \"{user}\""));
            let without_name = String::from_utf8_lossy(&raw.received).replace(user, "");
            assert!(!without_name.contains("known"), "{without_name}");
        }
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    };
    let (known, unknown) = (median(&mut times[0]), median(&mut times[1]));
    // Most of it is the client's own PBKDF2. A lookup that ended early would be far outside.
    let difference = (known - unknown).abs();
    assert!(difference < 0.005 || difference < 0.5 * known, "known {known} s, unknown {unknown} s");
    ends_well(gateway);
}

#[test]
fn guessing_is_slowed_down_and_nobody_else_is() {
    let gateway = Gateway::start(House::scram().gateway("startup_timeout = \"60s\"").setup().users(&USERS));
    let guesser = Ipv4Addr::new(127, 0, 0, 5);
    let (user, password) = USERS[0];
    let began = Instant::now();
    std::thread::scope(|scope| {
        let guesses: Vec<_> = (0..60)
            .map(|number| {
                let gateway = &gateway;
                scope.spawn(move || {
                    // Changing the name does not help.
                    let name = if number % 2 == 0 { "visitor" } else { "nobody" };
                    let mut raw = knocking(gateway, guesser, name);
                    raw.scram("wrong", Binding::Unsupported).unwrap_err().0
                })
            })
            .collect();
        // Meanwhile, from elsewhere.
        for _ in 0..3 {
            let mut raw = knocking(&gateway, Ipv4Addr::new(127, 0, 0, 6), user);
            raw.scram(password, Binding::Unsupported).unwrap();
            assert_eq!(raw.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
        }
        for guess in guesses {
            let refused = guess.join().unwrap();
            assert_eq!(refused.sqlstate, "28P01", "whether it was heard or not");
        }
    });
    let took = began.elapsed().as_secs();
    let (_, metrics) = gateway.get("/metrics");
    let count = |name: &str| -> u64 {
        let line = metrics.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    let heard = count("fedgate_startup_failures_total{reason=\"authentication\"}");
    let unheard = count("fedgate_startup_failures_total{reason=\"throttled\"}");
    assert_eq!(heard + unheard, 60);
    // Ten for free, one a second, and one for each thread that runs sessions at the same moment.
    assert!(heard <= 10 + took + 2 + 8, "{heard} guesses heard in {took} s");
    // Whoever shares the guesser's address waits, and is let in.
    let deadline = Instant::now() + PATIENCE;
    while let Err((refused, _)) = knocking(&gateway, guesser, user).scram(password, Binding::Unsupported) {
        assert_eq!(refused.sqlstate, "28P01");
        assert!(Instant::now() < deadline, "never let in again");
    }
    ends_well(gateway);
}

#[test]
fn the_users_file_counts_as_it_is_now() {
    let gateway = Gateway::start(
        House::scram().access("[{ users = [\"visitor\", \"late\"] }]").setup().users(&USERS[..1]),
    );
    let knock = |user: &str, password: &str| {
        knocking(&gateway, Ipv4Addr::LOCALHOST, user).scram(password, Binding::Unsupported)
    };
    let file = gateway.folder().join("users.txt");
    let until = |user: &str, password: &str, wanted: bool| {
        let deadline = Instant::now() + PATIENCE;
        while knock(user, password).is_ok() != wanted {
            assert!(Instant::now() < deadline, "{user}: {wanted} never came");
            std::thread::yield_now();
        }
    };
    assert!(knock("late", "sesame").is_err());
    let add = |user: &str, password: &str| format!("\"{user}\" \"{}\"\n", support::scram_verifier(password));
    let both = add("visitor", USERS[0].1) + &add("late", "sesame");
    std::fs::write(&file, &both).unwrap();
    until("late", "sesame", true);
    // A broken file, and a missing one, change nothing and are reported.
    std::fs::write(&file, "\"visitor\" \"plain password\"\n").unwrap();
    let mark = gateway.log_mark();
    let deadline = Instant::now() + PATIENCE;
    while !gateway.log().contains("the users file cannot be used") {
        knock("late", "sesame").unwrap();
        assert!(Instant::now() < deadline);
    }
    let line = gateway.wait_for_line_after(mark.saturating_sub(50), "the users file cannot be used");
    assert!(line.contains("line 1") && !line.contains("plain password\""), "{line}");
    std::fs::remove_file(&file).unwrap();
    knock("late", "sesame").unwrap();
    // Another password, and one user less.
    std::fs::write(&file, add("visitor", "changed")).unwrap();
    until("visitor", "changed", true);
    assert!(knock("visitor", USERS[0].1).is_err());
    assert!(knock("late", "sesame").is_err());
    ends_well(gateway);
}

#[test]
fn a_client_certificate_stands_for_a_password_of_its_own_name_only() {
    let authority = Authority::new("test authority");
    let strangers = Authority::new("test authority");
    let house = House::scram()
        .tls("client_ca = \"{dir}/client-ca.crt\"")
        .access("[{ users = [\"visitor\"], certificate = true }, { users = [\"analyst\"] }]");
    let pair = authority.server(&["localhost", "127.0.0.1"]);
    let setup = house
        .setup()
        .users(&USERS)
        .file("server.crt", pair.certificate)
        .file("server.key", pair.private_key)
        .file("client-ca.crt", authority.certificate());
    let gateway = Gateway::start(setup);
    let knock = |identity: Option<&support::Pair>, user: &str| {
        let tls = client_tls(authority.certificate(), &["postgresql"], identity);
        let mut raw = Raw::connect(gateway.address()).ask_for_tls(&tls)?;
        raw.send(&startup(V3_0, &[("user", user), ("database", "climscore")]));
        Ok::<_, String>(raw)
    };
    let visitor = authority.client("visitor");
    let mut raw = knock(Some(&visitor), "visitor").unwrap();
    let begun = raw.ready();
    assert!(begun.kinds.starts_with("RS"), "no password is asked: {}", begun.kinds);
    assert_eq!(raw.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
    // Of somebody else: as if there were none.
    let (refused, _) =
        knock(Some(&visitor), "analyst").unwrap().scram("wrong", Binding::EndPoint).unwrap_err();
    assert_eq!(refused.sqlstate, "28P01");
    knock(Some(&visitor), "analyst").unwrap().scram(USERS[1].1, Binding::EndPoint).unwrap();
    for user in ["Visitor", "visitor ", "visitor\u{200b}"] {
        assert!(knock(Some(&visitor), user).unwrap().scram("", Binding::EndPoint).is_err(), "{user:?}");
    }
    // `certificate = true`: a password alone does not open it.
    let (refused, _) = knock(None, "visitor").unwrap().scram(USERS[0].1, Binding::EndPoint).unwrap_err();
    assert_eq!(refused.sqlstate, "3D000");
    let (refused, _) = knocking(&gateway, Ipv4Addr::LOCALHOST, "visitor")
        .scram(USERS[0].1, Binding::Unsupported)
        .unwrap_err();
    assert_eq!(refused.sqlstate, "3D000");
    // Signed by another authority of the same name: no session, whatever the name.
    let forged = strangers.client("visitor");
    let outcome = knock(Some(&forged), "visitor").map(|mut raw| raw.message());
    assert!(matches!(outcome, Err(_) | Ok(None)), "{outcome:?}");
    // A server's certificate is no client's.
    let server = authority.server(&["visitor"]);
    let outcome = knock(Some(&server), "visitor").map(|mut raw| raw.message());
    assert!(matches!(outcome, Err(_) | Ok(None)), "{outcome:?}");
    gateway.wait_for_line("TLS handshake failed");
    ends_well(gateway);
}

#[test]
fn the_database_names_the_source_and_the_rules_say_who_may_use_it() {
    let address = house::source().address();
    let second = format!(
        r#"
[[source]]
name = "second"
hosts = ["{address}"]
database = "postgres"
user = "{user}"
password_file = "{{dir}}/source-password"
tls = "disable"
access = [{{ users = ["visitor"], cidr = ["127.0.7.0/24", "2001:db8::/32"] }}, {{ users = ["visitor.db"] }}]

[[source]]
name = "closed"
hosts = ["{address}"]
database = "postgres"
user = "{user}"
tls = "disable"
"#,
        user = house::UPSTREAM_USER
    );
    let gateway = House::trusting().more(&second).start();
    let near = Ipv4Addr::LOCALHOST;
    let far = Ipv4Addr::new(127, 0, 7, 3);
    let knock = |from: Ipv4Addr, user: &str, database: Option<&str>| {
        let mut raw = Raw::connect_from(from, gateway.address());
        let database = database.map(|database| ("database", database));
        let parameters: Vec<(&str, &str)> = [Some(("user", user)), database].into_iter().flatten().collect();
        raw.send(&startup(V3_0, &parameters));
        raw
    };
    for (from, database, real) in [
        (near, "climscore", house::UPSTREAM_DATABASE),
        (far, "climscore", house::UPSTREAM_DATABASE),
        (far, "second", "postgres"),
    ] {
        let mut raw = knock(from, "visitor", Some(database));
        raw.ready();
        assert_eq!(raw.ask("SELECT current_database()"), Ok(vec![real.to_owned()]));
    }
    // Whatever is wrong, the answer is that of a database that is not there.
    let answer = |from, user: &str, database: &str| {
        let mut raw = knock(from, user, Some(database));
        let refused = raw.refused();
        assert_eq!(refused.sqlstate, "3D000", "{user} {database}");
        no_leak(&raw);
        String::from_utf8_lossy(&raw.received[5..]).replace(database, "…")
    };
    let absent = answer(near, "visitor", "absent");
    for (from, user, database) in [
        (near, "visitor", "second"),
        (Ipv4Addr::new(127, 0, 8, 1), "visitor", "second"),
        (far, "visitor", "closed"),
        (near, "stranger", "climscore"),
        (near, "VISITOR", "climscore"),
        (near, "visitor", "Climscore"),
        (near, "visitor", "climscore "),
        (near, "visitor", house::UPSTREAM_DATABASE),
        (near, "visitor", "postgres"),
    ] {
        if database == house::UPSTREAM_DATABASE {
            continue;
        }
        assert_eq!(answer(from, user, database), absent, "{user} {database}");
    }
    // Without a database it is the user's name, as in PostgreSQL.
    for database in [None, Some("")] {
        let refused = knock(near, "visitor", database).refused();
        assert_eq!(refused.message, "database \"visitor\" does not exist");
    }
    ends_well(gateway);
}

/// A text that runs until it is cancelled.
const LONG: &str = "SELECT count(*) FROM generate_series(1, 1000000000000)";

/// Waits until the source runs so many long statements.
fn running(wanted: usize) {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = '{LONG}' AND datname = '{}'",
        house::UPSTREAM_DATABASE
    );
    let deadline = Instant::now() + PATIENCE;
    while house::source().value("postgres", &sql) != Some(wanted.to_string()) {
        assert!(Instant::now() < deadline, "never {wanted} long statements");
    }
}

#[test]
fn a_cancel_request_reaches_the_session_of_its_key_and_no_other() {
    let authority = Authority::new("test authority");
    let gateway = with_tls(House::trusting().tls(""), &authority);
    let cancel = |pid: u32, secret: &[u8]| {
        let mut raw = Raw::connect(gateway.address());
        raw.send(&cancel_request(pid, secret));
        assert_eq!(raw.message(), None, "there is no answer");
        assert_eq!(raw.received, b"");
    };
    let start = |version: u32| {
        let mut raw = Raw::connect(gateway.address());
        raw.send(&startup(version, &VISITOR));
        let begun = raw.ready();
        raw.send(&query(LONG));
        (raw, begun)
    };
    let (mut one, one_key) = start(V3_0);
    let (mut two, two_key) = start(V3_2);
    let (mut other, other_key) = start(V3_0);
    running(3);
    // Wrong in any way: nothing happens.
    let long = [&one_key.secret[..], &[0; 28]].concat();
    for (pid, secret) in [
        (one_key.pid, &[0u8; 4][..]),
        (one_key.pid, &other_key.secret),
        (other_key.pid, &one_key.secret),
        (one_key.pid, &two_key.secret),
        (one_key.pid, &long),
        (two_key.pid, &two_key.secret[..4]),
        (two_key.pid, &two_key.secret[..31]),
        (0, &[0; 4]),
        (one_key.pid.wrapping_add(1), &one_key.secret),
    ] {
        cancel(pid, secret);
    }
    // The keys at the source are other ones.
    let pids = house::source().value(
        "postgres",
        &format!("SELECT string_agg(pid::text, ',') FROM pg_stat_activity WHERE query = '{LONG}'"),
    );
    for pid in pids.unwrap().split(',') {
        assert!(![one_key.pid, two_key.pid, other_key.pid].contains(&pid.parse().unwrap()));
        cancel(pid.parse().unwrap(), &one_key.secret);
    }
    running(3);
    cancel(one_key.pid, &one_key.secret);
    assert_eq!(one.answer(), Err("57014".to_owned()));
    running(2);
    assert_eq!(one.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
    // A long key, through TLS.
    let tls = client_tls(authority.certificate(), &["postgresql"], None);
    let mut raw = Raw::connect(gateway.address()).ask_for_tls(&tls).unwrap();
    raw.send(&cancel_request(two_key.pid, &two_key.secret));
    assert_eq!(raw.message(), None);
    assert_eq!(two.answer(), Err("57014".to_owned()));
    running(1);
    // A key ends with its session.
    let mark = gateway.log_mark();
    drop(one);
    gateway.wait_for_line_after(mark, "session ended");
    cancel(one_key.pid, &one_key.secret);
    running(1);
    cancel(other_key.pid, &other_key.secret);
    assert_eq!(other.answer(), Err("57014".to_owned()));
    let (_, metrics) = gateway.get("/metrics");
    assert!(metrics.contains("fedgate_cancel_requests_total{outcome=\"forwarded\"} 3"), "{metrics}");
    ends_well(gateway);
}

#[test]
fn a_login_of_the_clients_own_goes_through_to_the_source() {
    let authority = Authority::new("test authority");
    let pair = authority.server(&["localhost", "127.0.0.1"]);
    let source = support::Postgres::start(
        support::Options::default()
            .hba("local all clear password")
            .hba("host all hashed 127.0.0.1/32 md5")
            .tls(support::ServerTls {
                certificate: pair.certificate.clone(),
                private_key: pair.private_key.clone(),
                client_ca: None,
            }),
    );
    source.execute(
        "postgres",
        "CREATE ROLE upstream_login_q7 LOGIN PASSWORD 'upstream-secret-Zk41'; CREATE ROLE scrammed LOGIN PASSWORD 'one';\
         CREATE ROLE clear LOGIN PASSWORD 'two'; SET password_encryption = 'md5'; CREATE ROLE hashed LOGIN PASSWORD 'three'",
    );
    source.execute("postgres", &format!("CREATE DATABASE {}", house::UPSTREAM_DATABASE));
    let relaying = |hosts: &str, client_tls: bool, source_tls: &str| {
        let mut house = House::trusting()
            .hosts(hosts)
            .access("[{ users = [\"scrammed\", \"clear\", \"hashed\", \"absent\"] }]")
            .source(&format!("tls = \"{source_tls}\""));
        house.auth = "method = \"relay\"".to_owned();
        if client_tls {
            house = house.tls("");
        }
        let setup = house
            .setup()
            .file("server.crt", pair.certificate.clone())
            .file("server.key", pair.private_key.clone());
        Gateway::start(setup)
    };
    let tcp = source.address();
    let unix = format!("{}:{}", source.socket_dir().display(), source.port());
    let good = (true, "hello 7".to_owned());

    let plain = relaying(&tcp, false, "disable");
    assert_eq!(psql(&plain, "scrammed", "one", ""), good);
    assert_eq!(psql(&plain, "hashed", "three", ""), good);
    for (user, password) in [("scrammed", "wrong"), ("hashed", "wrong"), ("absent", "x")] {
        let (let_in, words) = psql(&plain, user, password, "");
        assert!(
            !let_in && words.contains(&format!("password authentication failed for user \"{user}\"")),
            "{words}"
        );
    }
    support::blocking(async {
        let client = plain.connect("scrammed", "one", "climscore").await.unwrap();
        let row = client
            .query_one("SELECT current_user::text, current_setting('default_transaction_read_only')", &[]);
        let row = row.await.unwrap();
        assert_eq!((row.get(0), row.get(1)), ("scrammed", "on"));
    });
    // Guesses are slowed down here too.
    std::thread::scope(|scope| {
        for _ in 0..60 {
            scope.spawn(|| {
                knocking(&plain, Ipv4Addr::new(127, 0, 0, 5), "scrammed")
                    .scram("wrong", Binding::Unsupported)
                    .unwrap_err()
            });
        }
    });
    let (_, metrics) = plain.get("/metrics");
    assert!(!metrics.contains("fedgate_startup_failures_total{reason=\"throttled\"} 0"), "{metrics}");
    assert_eq!(psql(&plain, "scrammed", "one", ""), good, "from elsewhere");
    ends_well(plain);

    // A password in clear text: only where nobody on the way to the source reads along.
    let over_unix = relaying(&unix, false, "disable");
    assert_eq!(psql(&over_unix, "clear", "two", ""), good);
    assert!(!psql(&over_unix, "clear", "one", "").0);
    ends_well(over_unix);

    // TLS on one leg, either.
    let near = relaying(&tcp, true, "disable");
    assert_eq!(psql(&near, "scrammed", "one", "sslmode=require"), good);
    assert_eq!(psql(&near, "hashed", "three", "sslmode=require"), good);
    ends_well(near);
    let far = relaying(&tcp, false, "require");
    assert_eq!(psql(&far, "scrammed", "one", ""), good);
    assert_eq!(psql(&far, "hashed", "three", ""), good);
    ends_well(far);
    // On both: a client that can bind is told, one that does not bind is let in.
    let both = relaying(&tcp, true, "require");
    let (let_in, words) = psql(&both, "scrammed", "one", "sslmode=require");
    assert!(!let_in && words.contains("channel binding"), "{words}");
    assert_eq!(psql(&both, "scrammed", "one", "sslmode=require channel_binding=disable"), good);
    assert_eq!(psql(&both, "hashed", "three", "sslmode=require"), good);
    both.wait_for_line("channel binding");
    ends_well(both);
}
