//! The client's side: encryption, protocol versions, startup keys, who is let in, and cancel.
//!
//! Invariant: everything here was said over a socket to the built gateway before a real PostgreSQL.

#[path = "startup/house.rs"]
mod house;
#[path = "startup/raw.rs"]
mod raw;
mod support;

use house::{House, ends_well, no_leak};
use raw::{
    Raw, V3_0, V3_2, cancel_request, client_tls, frame, gss_request, opening, query, ssl_request, startup,
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
        ("client_encoding", "LATIN1", "22023"),
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
    let _ = cancel_request;
    ends_well(gateway);
}
