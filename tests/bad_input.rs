//! Bad input of every kind: each is a clear error to the one concerned and a line in the log.
//!
//! Invariant: no panic, no hang, nothing that belongs to the source in what a client receives, and a
//! client that behaves goes on working the whole time.

#[path = "startup/door.rs"]
mod door;
#[path = "startup/house.rs"]
mod house;
#[path = "startup/raw.rs"]
mod raw;
mod support;

use std::net::Ipv4Addr;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use door::{Behind, Door};
use house::{House, ends_well, no_leak};
use raw::{
    Binding, PATIENCE, Raw, V3_0, cancel_request, client_tls, frame, gss_request, opening, query,
    ssl_request, startup,
};
use support::{Authority, Gateway};

const VISITOR: [(&str, &str); 2] = [("user", "visitor"), ("database", "climscore")];
const USERS: [(&str, &str); 1] = [("visitor", "open sesame")];

fn knock(gateway: &Gateway) -> Raw {
    let mut raw = Raw::connect(gateway.address());
    raw.send(&startup(V3_0, &VISITOR));
    raw
}

/// A client that behaves, connected all the while.
struct Bystander(Raw);

impl Bystander {
    /// At a gateway that asks nobody.
    fn new(gateway: &Gateway) -> Self {
        let mut raw = knock(gateway);
        raw.ready();
        Self(raw)
    }

    fn with_password(gateway: &Gateway) -> Self {
        let mut raw = knock(gateway);
        raw.scram(USERS[0].1, Binding::Unsupported).unwrap();
        Self(raw)
    }

    fn works(&mut self) {
        assert_eq!(self.0.ask("SELECT 40 + 2"), Ok(vec!["42".to_owned()]));
        no_leak(&self.0);
    }
}

fn count(gateway: &Gateway, series: &str) -> u64 {
    let (_, metrics) = gateway.get("/metrics");
    let line = metrics.lines().find(|line| line.starts_with(series)).unwrap_or_else(|| panic!("no {series}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

/// Waits until a series has this value.
fn until(gateway: &Gateway, series: &str, wanted: u64) {
    let deadline = Instant::now() + PATIENCE;
    while count(gateway, series) != wanted {
        assert!(Instant::now() < deadline, "{series} is {} and never {wanted}", count(gateway, series));
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes that look like nothing, the same each time.
fn noise(mut seed: u64, length: usize) -> Vec<u8> {
    let mut next = || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn bad_bytes_before_the_startup_packet_is_over() {
    let gateway = House::trusting().gateway("startup_timeout = \"60s\"").start();
    let mut bystander = Bystander::new(&gateway);
    // Sent, then the client waits for what it is told.
    let told: Vec<(&str, Vec<u8>, &str)> = vec![
        ("no length", vec![0; 4], "08P01"),
        ("shorter than itself", vec![0, 0, 0, 7], "08P01"),
        ("negative", vec![0xff, 0xff, 0xff, 0xf0], "08P01"),
        ("oversized", 10_001u32.to_be_bytes().to_vec(), "08P01"),
        ("a gigabyte", vec![0x40, 0, 0, 0], "08P01"),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "08P01"),
        ("SSH", b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(), "08P01"),
        ("no version", opening(0, b""), "0A000"),
        ("no terminator", opening(V3_0, b"user\0visitor\0database\0climscore\0"), "08P01"),
        ("a key without a value", opening(V3_0, b"user\0"), "08P01"),
        ("only a terminator", opening(V3_0, b"\0"), "28000"),
        ("bytes behind the terminator", opening(V3_0, b"user\0visitor\0\0x"), "08P01"),
        ("not UTF-8", opening(V3_0, b"user\0vis\xffitor\0\0"), "22021"),
        ("an SSLRequest with something in it", opening(80_877_103, b"x"), "08P01"),
        ("a cancel request that is too short", opening(80_877_102, b"1234567"), "08P01"),
        ("a cancel request that is too long", opening(80_877_102, &[1; 261]), "08P01"),
        ("an empty user", startup(V3_0, &[("user", ""), ("database", "climscore")]), "28000"),
        ("a long user", startup(V3_0, &[("user", &"u".repeat(9000)), ("database", "climscore")]), "3D000"),
        (
            "a user who writes lines",
            startup(V3_0, &[("user", "eve\n2026-11-23 INFO forged\u{1b}[2K"), ("database", "x")]),
            "3D000",
        ),
        ("a message in place of a packet", query("SELECT 1"), "08P01"),
    ];
    for (note, bytes, sqlstate) in &told {
        let mark = gateway.log_mark();
        let mut raw = Raw::connect(gateway.address());
        let refused = raw.send(bytes).refused();
        assert_eq!((refused.sqlstate.as_str(), refused.severity.as_str()), (*sqlstate, "FATAL"), "{note}");
        gateway.wait_for_line_after(mark, "startup failed");
        no_leak(&raw);
        bystander.works();
    }
    // Every length of a good packet, cut off; then gone.
    let whole = startup(V3_0, &VISITOR);
    for length in 0..whole.len() {
        let mut raw = Raw::connect(gateway.address());
        raw.send(&whole[..length]);
        drop(raw);
    }
    for request in [ssl_request(), gss_request()] {
        let mut raw = Raw::connect(gateway.address());
        raw.send(&request);
        drop(raw);
        let mut raw = Raw::connect(gateway.address());
        raw.send(&request);
        assert_eq!(raw.byte(), Some(b'N'));
        assert_eq!(raw.send(&noise(7, 300)).refused().sqlstate, "08P01");
    }
    for seed in 1..200 {
        let mut raw = Raw::connect(gateway.address());
        raw.send(&noise(seed, 16 + seed as usize * 7));
        drop(raw);
    }
    bystander.works();
    until(&gateway, "fedgate_client_connections ", 1);
    let log = ends_well(gateway);
    assert!(
        !log.lines().any(|line| line.starts_with("2026-11-23 INFO forged") || line.contains('\u{1b}')),
        "{log}"
    );
}

#[test]
fn bad_bytes_while_a_password_is_asked() {
    let authority = Authority::new("test authority");
    let pair = authority.server(&["localhost"]);
    let setup = House::scram()
        .gateway("startup_timeout = \"60s\"")
        .tls("")
        .setup()
        .users(&USERS)
        .file("server.crt", pair.certificate)
        .file("server.key", pair.private_key);
    let gateway = Gateway::start(setup);
    let mut bystander = Bystander::with_password(&gateway);
    let initial = |mechanism: &str, data: &[u8]| {
        let mut body = format!("{mechanism}\0").into_bytes();
        body.extend_from_slice(&(data.len() as u32).to_be_bytes());
        body.extend_from_slice(data);
        frame(b'p', &body)
    };
    let scram = |text: &str| initial("SCRAM-SHA-256", text.as_bytes());
    let first: Vec<(&str, Vec<u8>)> = vec![
        ("a query", query("SELECT 1")),
        ("a second startup packet", startup(V3_0, &VISITOR)),
        ("a plain password", frame(b'p', b"open sesame\0")),
        ("nothing", frame(b'p', b"")),
        ("no end of the mechanism", frame(b'p', b"SCRAM-SHA-256")),
        ("no length", frame(b'p', b"SCRAM-SHA-256\0")),
        ("a length of -1", frame(b'p', b"SCRAM-SHA-256\0\xff\xff\xff\xff")),
        ("a length beyond the message", frame(b'p', b"SCRAM-SHA-256\0\0\0\0\x09n,,")),
        ("a length within the message", frame(b'p', b"SCRAM-SHA-256\0\0\0\0\x01n,,n=,r=abc")),
        (
            "a mechanism that was not offered",
            initial("SCRAM-SHA-256-PLUS", b"p=tls-server-end-point,,n=,r=abc"),
        ),
        ("another mechanism", initial("PLAIN", b"\0visitor\0open sesame")),
        ("no mechanism", initial("", b"n,,n=,r=abc")),
        ("an authorization identity", scram("n,a=postgres,n=,r=abc")),
        ("no nonce", scram("n,,n=,r=")),
        ("not SCRAM", scram("hello")),
        ("not UTF-8", initial("SCRAM-SHA-256", b"n,,n=\xff,r=abc")),
        ("long", scram(&format!("n,,n=,r={}", "a".repeat(5000)))),
        ("oversized", [&b"p"[..], &20_000u32.to_be_bytes()].concat()),
        ("negative", b"p\xff\xff\xff\xff".to_vec()),
        ("shorter than itself", b"p\0\0\0\x03".to_vec()),
        ("noise", noise(3, 100)),
    ];
    for (note, bytes) in &first {
        let mut raw = knock(&gateway);
        assert_eq!(raw.message().unwrap().kind, b'R');
        let mark = gateway.log_mark();
        let refused = raw.send(bytes).refused();
        assert_eq!((refused.sqlstate.as_str(), refused.severity.as_str()), ("08P01", "FATAL"), "{note}");
        gateway.wait_for_line_after(mark, "startup failed");
    }
    let challenged = || {
        let mut raw = knock(&gateway);
        raw.message().unwrap();
        raw.send(&scram("n,,n=,r=abc"));
        let message = raw.message().unwrap();
        assert_eq!(message.kind, b'R');
        let text = String::from_utf8(message.body[4..].to_vec()).unwrap();
        let nonce = text.split(',').next().unwrap()[2..].to_owned();
        (raw, nonce)
    };
    let proof = "A".repeat(43) + "=";
    type Made<'a> = Box<dyn Fn(&str) -> Vec<u8> + 'a>;
    let last: Vec<(&str, Made<'_>, &str)> = vec![
        ("the first message again", Box::new(|_| scram("n,,n=,r=abc")), "08P01"),
        ("nothing", Box::new(|_| frame(b'p', b"")), "08P01"),
        ("a query", Box::new(|_| query("SELECT 1")), "08P01"),
        ("no proof", Box::new(|nonce| frame(b'p', format!("c=biws,r={nonce}").as_bytes())), "08P01"),
        ("an empty proof", Box::new(|nonce| frame(b'p', format!("c=biws,r={nonce},p=").as_bytes())), "08P01"),
        (
            "a short proof",
            Box::new(|nonce| frame(b'p', format!("c=biws,r={nonce},p=AAAA").as_bytes())),
            "08P01",
        ),
        (
            "a proof of nothing",
            Box::new(|nonce| frame(b'p', format!("c=biws,r={nonce},p={proof}").as_bytes())),
            "28P01",
        ),
        (
            "another nonce",
            Box::new(|nonce| frame(b'p', format!("c=biws,r={nonce}x,p={proof}").as_bytes())),
            "08P01",
        ),
        (
            "only the client's nonce",
            Box::new(|_| frame(b'p', format!("c=biws,r=abc,p={proof}").as_bytes())),
            "08P01",
        ),
        (
            "another header",
            Box::new(|nonce| frame(b'p', format!("c=eSws,r={nonce},p={proof}").as_bytes())),
            "28000",
        ),
        ("not UTF-8", Box::new(|_| frame(b'p', b"\xff\xfe")), "08P01"),
    ];
    for (note, bytes, sqlstate) in &last {
        let (mut raw, nonce) = challenged();
        let refused = raw.send(&bytes(&nonce)).refused();
        assert_eq!((refused.sqlstate.as_str(), refused.severity.as_str()), (*sqlstate, "FATAL"), "{note}");
        no_leak(&raw);
    }
    // A login that was recorded does not open another connection.
    let (mut one, _) = challenged();
    let (two, other) = challenged();
    let refused = one.send(&frame(b'p', format!("c=biws,r={other},p={proof}").as_bytes())).refused();
    assert_eq!(refused.sqlstate, "08P01");
    drop(two);
    // Garbage and silence where a TLS handshake is due.
    for bytes in [noise(5, 500), vec![0x16, 3, 1, 0xff, 0xff], vec![0x16], startup(V3_0, &VISITOR)] {
        let mut raw = Raw::connect(gateway.address());
        raw.send(&ssl_request());
        assert_eq!(raw.byte(), Some(b'S'));
        raw.send(&bytes);
        drop(raw);
    }
    let mut raw = Raw::connect(gateway.address());
    raw.send(&[&[0x16, 3, 1, 0, 100][..], &noise(9, 100)].concat());
    while raw.byte().is_some() {}
    bystander.works();
    until(&gateway, "fedgate_client_connections ", 1);
    ends_well(gateway);
}

#[test]
fn bad_bytes_in_a_session() {
    let gateway = House::trusting().more("[gateway.limits]\nmessage_bytes = \"1MiB\"\n").start();
    let mut bystander = Bystander::new(&gateway);
    let header = |kind: u8, length: u32| [&[kind][..], &length.to_be_bytes()].concat();
    let told: Vec<(&str, Vec<u8>)> = vec![
        ("a type that is none", frame(b'z', b"")),
        ("a type that is none, with a length that never comes", header(b'z', 1 << 19)),
        ("type 0", vec![0; 5]),
        ("a server's message", frame(b'T', b"\0\0")),
        ("negative", b"Q\xff\xff\xff\xff".to_vec()),
        ("a length of 3", header(b'Q', 3)),
        ("a length of 0", header(b'Q', 0)),
        ("oversized", header(b'Q', 2 << 20)),
        ("a Sync of a megabyte", header(b'S', 1 << 20)),
        ("noise", noise(11, 1000)),
        ("much behind it", [frame(b'z', b""), noise(13, 500_000)].concat()),
    ];
    for (note, bytes) in &told {
        let mut raw = knock(&gateway);
        raw.ready();
        let mark = gateway.log_mark();
        let refused = raw.send(bytes).refused();
        assert!(
            matches!(refused.sqlstate.as_str(), "08P01" | "54000") && refused.severity == "FATAL",
            "{note}: {refused:?}"
        );
        gateway.wait_for_line_after(mark, "session ended by the gateway");
        no_leak(&raw);
        bystander.works();
    }
    // Whole messages with something wrong inside: an error, as from PostgreSQL, and the session goes on.
    let malformed: Vec<(&str, Vec<u8>)> = vec![
        ("a query without its end", frame(b'Q', b"SELECT 1")),
        ("a query with something behind its end", frame(b'Q', b"SELECT 1\0x")),
        ("an empty query message", frame(b'Q', b"")),
        ("half a Parse", frame(b'P', b"name\0SELECT 1")),
        ("a Parse with too few types", frame(b'P', b"\0SELECT 1\0\0\x05\0\0\0\x17")),
        ("a Parse with -1 types", frame(b'P', b"\0SELECT 1\0\xff\xff")),
        ("a Bind with nothing in it", frame(b'B', b"")),
        ("a Describe of nothing", frame(b'D', b"")),
        ("a Describe of another kind", frame(b'D', b"X\0")),
        ("an Execute without its count", frame(b'E', b"\0\0\0")),
        ("a Close without a name", frame(b'C', b"S")),
    ];
    let mut raw = knock(&gateway);
    raw.ready();
    for (note, bytes) in &malformed {
        raw.send(bytes);
        if bytes[0] != b'Q' {
            raw.send(&frame(b'S', b""));
        }
        assert_eq!(raw.answer(), Err("08P01".to_owned()), "{note}");
        assert_eq!(raw.ask("SELECT 7"), Ok(vec!["7".to_owned()]), "{note}");
    }
    drop(raw);
    // Parameters are the source's to read: it says what is wrong, and the session goes on.
    let mut raw = knock(&gateway);
    raw.ready();
    for parameters in
        [&b"\0\x01\xff\xff\xff\xfe\0\0"[..], b"\x7f\xff", b"\0\x01\0\0\xff\xffhi", b"\0\x01", b"\0\x02\0\0"]
    {
        raw.send(&frame(b'P', b"\0SELECT $1::text\0\0\0"));
        raw.send(&frame(b'B', &[b"\0\0\0\0", parameters].concat()));
        raw.send(&frame(b'S', b""));
        assert_eq!(raw.answer(), Err("08P01".to_owned()), "{parameters:?}");
        assert_eq!(raw.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
    }
    drop(raw);
    // Cut off anywhere, and gone.
    let whole = [
        frame(b'P', b"s\0SELECT $1::text\0\0\0"),
        frame(b'B', b"\0s\0\0\0\0\x01\0\0\0\x02hi\0\0"),
        frame(b'E', b"\0\0\0\0\0"),
        frame(b'S', b""),
        query("SELECT 7"),
    ]
    .concat();
    for length in 0..whole.len() {
        let mut raw = knock(&gateway);
        raw.ready();
        raw.send(&whole[..length]);
        drop(raw);
    }
    for seed in 1..60 {
        let mut raw = knock(&gateway);
        raw.ready();
        let kind = b"QPBDECFHSXdcfp"[seed as usize % 14];
        raw.send(&frame(kind, &noise(seed, seed as usize * 3)));
        raw.send(&noise(seed, 64));
        drop(raw);
    }
    bystander.works();
    until(&gateway, "fedgate_client_connections ", 1);
    ends_well(gateway);
}

#[test]
fn a_client_that_stalls_in_its_startup_is_told_to_go() {
    let authority = Authority::new("test authority");
    let pair = authority.server(&["localhost"]);
    let setup = House::scram()
        .gateway("startup_timeout = \"1s\"")
        .tls("")
        .setup()
        .users(&USERS)
        .file("server.crt", pair.certificate)
        .file("server.key", pair.private_key);
    let gateway = Gateway::start(setup);
    // Reading it may take longer than that on a busy machine.
    gateway.wait_for_line("function catalogue in force");
    let mut bystander = Bystander::with_password(&gateway);
    let packet = startup(V3_0, &VISITOR);
    let mut silent = Raw::connect(gateway.address());
    let mut halfway = Raw::connect(gateway.address());
    halfway.send(&packet[..11]);
    let mut declined = Raw::connect(gateway.address());
    declined.send(&gss_request());
    assert_eq!(declined.byte(), Some(b'N'));
    let mut asked = knock(&gateway);
    assert_eq!(asked.message().unwrap().kind, b'R');
    let mut drop_by_drop = Raw::connect(gateway.address());
    let mut shaking = Raw::connect(gateway.address());
    shaking.send(&ssl_request());
    assert_eq!(shaking.byte(), Some(b'S'));
    shaking.send(&[0x16, 3, 1]);
    // Bytes that keep coming do not buy time.
    for byte in &packet[..packet.len() - 1] {
        drop_by_drop.send(&[*byte]);
        std::thread::sleep(Duration::from_millis(50));
    }
    for raw in [&mut silent, &mut halfway, &mut declined, &mut asked, &mut drop_by_drop] {
        let refused = raw.refused();
        assert_eq!((refused.sqlstate.as_str(), refused.message.as_str()), ("08P01", "startup took too long"));
    }
    assert_eq!(shaking.message(), None, "inside a handshake nothing can be said");
    bystander.works();
    until(&gateway, "fedgate_startup_failures_total{reason=\"timeout\"}", 6);
    until(&gateway, "fedgate_client_connections ", 1);
    ends_well(gateway);
}

#[test]
fn a_client_that_never_reads_is_let_go_and_its_session_too() {
    let gateway = House::trusting().gateway("write_timeout = \"1s\"").start();
    let mut bystander = Bystander::new(&gateway);
    let mut raw = knock(&gateway);
    raw.ready();
    raw.send(&query("SELECT repeat('x', 100000) FROM generate_series(1, 10000)"));
    let line = gateway.wait_for_line("session ended");
    assert!(line.contains("visitor"), "{line}");
    bystander.works();
    until(&gateway, "fedgate_upstream_connections{source=\"climscore\",state=\"leased\"}", 1);
    until(&gateway, "fedgate_client_connections ", 1);
    // Nor does one that sends and never reads grow: it is held up, then let go.
    let mut raw = knock(&gateway);
    raw.ready();
    let mark = gateway.log_mark();
    raw.socket().set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    let many = query("SELECT repeat('y', 1000)").repeat(1000);
    let before = memory(&gateway);
    for _ in 0..100 {
        raw.send(&many);
        if raw.reset {
            break;
        }
    }
    assert!(memory(&gateway) < before + 64 * 1024, "{} kB after {before} kB", memory(&gateway));
    gateway.wait_for_line_after(mark, "session ended");
    bystander.works();
    ends_well(gateway);
}

/// Resident memory of the gateway, in kB.
fn memory(gateway: &Gateway) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn descriptors(gateway: &Gateway) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap().count()
}

#[test]
fn half_open_connections_leave_nothing_behind() {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let most: usize = line.split_whitespace().nth(3).unwrap().parse().unwrap_or(1 << 20);
    let crowd = 10_000.min(most.saturating_sub(400));
    let gateway =
        House::trusting().gateway("max_clients = 20000").gateway("startup_timeout = \"10min\"").start();
    let mut bystander = Bystander::new(&gateway);
    let calm = descriptors(&gateway);
    // Freed memory goes back to the system when the allocator sees fit; what counts is that a
    // crowd takes no more than the one before.
    let mut crowds = Vec::new();
    for round in 0..3u8 {
        let packet = startup(V3_0, &VISITOR);
        let crowded: Vec<Raw> = (0..crowd)
            .map(|number| {
                let mut raw = Raw::connect_from(Ipv4Addr::new(127, 0, 9, round + 1), gateway.address());
                // Most end by a reset: an orderly end would keep the port for a minute.
                if number % 10 != 0 {
                    socket2::SockRef::from(raw.socket()).set_linger(Some(Duration::ZERO)).unwrap();
                }
                raw.send(&packet[..number % packet.len()]);
                raw
            })
            .collect();
        until(&gateway, "fedgate_client_connections ", crowd as u64 + 1);
        crowds.push(memory(&gateway));
        // The allocator's own ups and downs are a fifth of it; a crowd that left its sessions behind
        // would double it.
        assert!(memory(&gateway) < crowds[0] * 3 / 2, "kB with each crowd: {crowds:?}");
        bystander.works();
        // New clients are served all the same.
        let mut raw = knock(&gateway);
        raw.ready();
        drop(raw);
        drop(crowded);
        until(&gateway, "fedgate_client_connections ", 1);
        let deadline = Instant::now() + PATIENCE;
        while descriptors(&gateway) > calm + 8 {
            assert!(Instant::now() < deadline, "{} descriptors of {calm}", descriptors(&gateway));
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    bystander.works();
    ends_well(gateway);
}

#[test]
fn max_clients_is_a_bound_with_room_again_after() {
    let authority = Authority::new("test authority");
    let pair = authority.server(&["localhost"]);
    let setup = House::trusting()
        .gateway("max_clients = 2")
        .tls("")
        .setup()
        .file("server.crt", pair.certificate)
        .file("server.key", pair.private_key);
    let gateway = Gateway::start(setup);
    let mut bystander = Bystander::new(&gateway);
    let mut second = knock(&gateway);
    let key = second.ready();
    let mut third = knock(&gateway);
    let refused = third.refused();
    assert_eq!((refused.sqlstate.as_str(), refused.severity.as_str()), ("53300", "FATAL"));
    no_leak(&third);
    gateway.wait_for_line("too many clients");
    let tls = client_tls(authority.certificate(), &["postgresql"], None);
    let mut third = Raw::connect(gateway.address()).ask_for_tls(&tls).unwrap();
    assert_eq!(third.send(&startup(V3_0, &VISITOR)).refused().sqlstate, "53300");
    // One that says nothing is told too, also when there are more than are listened to at a time.
    let mut crowd: Vec<Raw> = (0..300).map(|_| Raw::connect(gateway.address())).collect();
    bystander.works();
    let mut told = 0;
    for raw in &mut crowd {
        while let Some(message) = raw.message() {
            assert_eq!(message.field(b'C').as_deref(), Some("53300"));
            told += 1;
        }
    }
    assert_eq!(told, crowd.len());
    // A cancel request is heard.
    second.send(&query("SELECT count(*) FROM generate_series(1, 1000000000000)"));
    let deadline = Instant::now() + PATIENCE;
    while count(&gateway, "fedgate_cancel_requests_total{outcome=\"forwarded\"}") == 0 {
        let mut raw = Raw::connect(gateway.address());
        raw.send(&cancel_request(key.pid, &key.secret));
        assert_eq!(raw.message().and_then(|message| message.field(b'C')), None);
        assert!(Instant::now() < deadline);
    }
    // It may have come before the statement had begun.
    let mut raw = Raw::connect(gateway.address());
    raw.send(&cancel_request(key.pid, &key.secret));
    assert_eq!(second.answer(), Err("57014".to_owned()));
    drop(second);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut raw = knock(&gateway);
        if raw.message().unwrap().kind == b'R' {
            raw.ready();
            break;
        }
        assert!(Instant::now() < deadline, "there is never room again");
    }
    bystander.works();
    ends_well(gateway);
}

/// Waits until a client is let in.
fn let_in(gateway: &Gateway, deadline: Duration) -> Raw {
    let deadline = Instant::now() + deadline;
    loop {
        let mut raw = knock(gateway);
        match raw.message() {
            Some(message) if message.kind == b'R' => {
                raw.ready();
                return raw;
            }
            Some(message) => assert_eq!(message.field(b'C').as_deref(), Some("57P03")),
            None => {}
        }
        assert!(Instant::now() < deadline, "nobody is let in");
    }
}

#[test]
fn a_source_that_is_down_says_so_and_comes_back() {
    let door = Door::shut();
    let gateway = House::trusting().hosts(&door.address()).start();
    for _ in 0..2 {
        let began = Instant::now();
        let mut raw = knock(&gateway);
        let refused = raw.refused();
        assert_eq!(refused.sqlstate, "57P03", "{refused:?}");
        assert_eq!(refused.message, "source \"climscore\" is not available");
        assert!(refused.detail.contains("cannot be reached"), "{refused:?}");
        assert!(began.elapsed() < Duration::from_secs(9), "told before it gives up by itself");
        no_leak(&raw);
        assert!(!String::from_utf8_lossy(&raw.received).contains("127.0.0.1"));
    }
    let line = gateway.wait_for_line("the function catalogue could not be loaded");
    assert!(line.contains(&door.address()), "the log says which host: {line}");
    assert_eq!(count(&gateway, "fedgate_source_up{source=\"climscore\"}"), 0);
    door.set(Behind::Server(house::source().address().parse().unwrap()));
    door.start();
    let mut first = let_in(&gateway, Duration::from_secs(30));
    assert_eq!(first.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
    assert_eq!(count(&gateway, "fedgate_source_up{source=\"climscore\"}"), 1);
    // It goes while somebody is connected.
    door.cut();
    let mark = gateway.log_mark();
    first.send(&query("SELECT 7"));
    let end = first.end();
    assert!(end.last().is_none_or(|last| last.kind == b'E'), "{end:?}");
    no_leak(&first);
    gateway.wait_for_line_after(mark.saturating_sub(5), "session ended by the source");
    let_in(&gateway, Duration::from_secs(30));
    ends_well(gateway);
}

#[test]
fn a_source_that_speaks_nonsense_harms_nobody() {
    let server = Behind::Server(house::source().address().parse().unwrap());
    let door = Door::open(server.clone());
    // None in store: each client asks for one.
    let none_idle = "pool = { size = 50, min_idle = 0, idle_timeout = \"1ms\" }\nconnect_timeout = \"1s\"";
    let gateway = House::trusting().hosts(&door.address()).source(none_idle).start();
    let mut bystander = Bystander::new(&gateway);
    let ok = frame(b'R', &[0; 4]);
    let error = |sqlstate: &str| {
        let text = format!(
            "SFATAL\0VFATAL\0C{sqlstate}\0Mno entry for host \"10.1.2.3\", user \"{}\", database \"{}\"\0\0",
            house::UPSTREAM_USER,
            house::UPSTREAM_DATABASE
        );
        frame(b'E', text.as_bytes())
    };
    let status = frame(b'S', b"a\0b\0");
    let cases: Vec<(&str, Behind)> = vec![
        ("closes", Behind::Closes(vec![])),
        ("resets", Behind::Resets(vec![])),
        ("silence", Behind::Silence(vec![])),
        ("HTTP", Behind::Closes(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec())),
        ("noise", Behind::Closes(noise(21, 3000))),
        ("half a message", Behind::Closes(b"R\0\0\0\x08\0".to_vec())),
        ("half a message, then a reset", Behind::Resets(b"R\0\0\0\x08\0".to_vec())),
        ("half a message, then silence", Behind::Silence(b"R\0\0\0\x08\0".to_vec())),
        ("a message of two gigabytes", Behind::Silence(b"R\x7f\xff\xff\xff".to_vec())),
        ("a negative length", Behind::Silence(b"R\xff\xff\xff\xff".to_vec())),
        ("a password in clear text", Behind::Silence(frame(b'R', &[0, 0, 0, 3]))),
        ("a method from the future", Behind::Silence(frame(b'R', &[0, 0, 0, 77]))),
        ("let in, then silence", Behind::Silence(ok.clone())),
        ("let in, not read-only", Behind::Silence([&ok[..], &frame(b'Z', b"I")].concat())),
        ("let in, in a transaction", Behind::Silence([&ok[..], &frame(b'Z', b"T")].concat())),
        ("parameters without an end", Behind::Silence([&ok[..], &status.repeat(50_000)].concat())),
        ("a row", Behind::Silence([&ok[..], &frame(b'D', b"\0\0")].concat())),
        ("an error of no kind", Behind::Closes(frame(b'E', b"\0"))),
        ("starting up", Behind::Closes(error("57P03"))),
        ("full", Behind::Closes(error("53300"))),
        ("no entry", Behind::Closes(error("28000"))),
        ("wrong password", Behind::Closes(error("28P01"))),
        ("no such database", Behind::Closes(error("3D000"))),
    ];
    for (note, behind) in cases {
        door.set(behind);
        let mark = gateway.log_mark();
        let began = Instant::now();
        // A source that has failed is left alone for a moment, in which clients are told what was.
        while !gateway.log()[mark..].contains("source is not available") {
            assert!(began.elapsed() < PATIENCE, "{note}");
            let mut raw = knock(&gateway);
            let refused = raw.refused();
            assert_eq!(refused.sqlstate, "57P03", "{note}: {refused:?}");
            assert!(!refused.detail.is_empty(), "{note}");
            no_leak(&raw);
            let text = String::from_utf8_lossy(&raw.received).into_owned();
            assert!(!text.contains("10.1.2.3") && !text.contains("127.0.0.1"), "{note}: {text}");
        }
        bystander.works();
    }
    door.set(server);
    let_in(&gateway, Duration::from_secs(30));
    ends_well(gateway);
}

#[test]
fn a_slow_source_ends_at_the_startup_timeout_and_holds_nobody_up() {
    let door = Door::open(Behind::Silence(vec![]));
    let address = house::source().address();
    let second = format!(
        "[[source]]\nname = \"slow\"\nhosts = [\"{}\"]\ndatabase = \"x\"\nuser = \"{}\"\ntls = \"disable\"\n\
         connect_timeout = \"60s\"\naccess = [{{ users = [\"visitor\"] }}]\n",
        door.address(),
        house::UPSTREAM_USER
    );
    let gateway = House::trusting().hosts(&address).gateway("startup_timeout = \"1s\"").more(&second).start();
    let mut bystander = Bystander(let_in(&gateway, PATIENCE));
    let mut raw = Raw::connect(gateway.address());
    raw.send(&startup(V3_0, &[("user", "visitor"), ("database", "slow")]));
    let refused = raw.refused();
    assert_eq!(
        (refused.sqlstate.as_str(), refused.detail.contains("timed out")),
        ("57P03", true),
        "{refused:?}"
    );
    no_leak(&raw);
    bystander.works();
    ends_well(gateway);
}

#[test]
fn a_catalogue_that_cannot_be_loaded_lets_nobody_in() {
    let source = house::source();
    source.execute("postgres", "CREATE DATABASE without_functions");
    source.execute("without_functions", "REVOKE SELECT ON pg_catalog.pg_proc FROM PUBLIC");
    let second = format!(
        "[[source]]\nname = \"blind\"\nhosts = [\"{}\"]\ndatabase = \"without_functions\"\nuser = \"{}\"\ntls = \"disable\"\n\
         password_file = \"{{dir}}/source-password\"\naccess = [{{ users = [\"visitor\"] }}]\n",
        source.address(),
        house::UPSTREAM_USER
    );
    let gateway = House::trusting().more(&second).start();
    let mut bystander = Bystander::new(&gateway);
    let blind = || {
        let mut raw = Raw::connect(gateway.address());
        raw.send(&startup(V3_0, &[("user", "visitor"), ("database", "blind")]));
        raw
    };
    let mut raw = blind();
    let refused = raw.refused();
    assert_eq!(refused.sqlstate, "57P03");
    assert!(refused.detail.contains("function catalogue"), "{refused:?}");
    no_leak(&raw);
    let line = gateway.wait_for_line("the function catalogue could not be loaded");
    assert!(line.contains("blind"), "{line}");
    bystander.works();
    source.execute("without_functions", "GRANT SELECT ON pg_catalog.pg_proc TO PUBLIC");
    let deadline = Instant::now() + PATIENCE;
    while blind().message().unwrap().kind != b'R' {
        assert!(Instant::now() < deadline, "it never recovers");
    }
    ends_well(gateway);
}

/// Runs the gateway on a configuration that it should not start with: exit code and standard error.
fn rejected(toml: &str, files: &[(&str, &[u8])]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().display().to_string();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    let config = folder.path().join("fedgate.toml");
    std::fs::write(&config, toml.replace("{dir}", &place)).unwrap();
    let log = std::fs::File::create(folder.path().join("log")).unwrap();
    let mut child = Command::new(support::fedgate())
        .arg("run")
        .arg("--config")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it runs: {}", std::fs::read_to_string(folder.path().join("log")).unwrap());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!(status.signal(), None);
    (status.code(), std::fs::read_to_string(folder.path().join("log")).unwrap())
}

#[test]
fn a_configuration_that_cannot_be_used_names_key_and_line_and_ends_with_2() {
    let good = House::trusting();
    let toml = good.toml();
    let password: &[(&str, &[u8])] = &[("source-password", house::UPSTREAM_PASSWORD.as_bytes())];
    let line_of = |toml: &str, text: &str| toml.lines().position(|line| line.contains(text)).unwrap() + 1;
    let misspelt = toml.replace("password_file", "pasword_file");
    let (code, log) = rejected(&misspelt, password);
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains("pasword_file"), "{log}");
    assert!(log.contains(&line_of(&misspelt, "pasword_file").to_string()), "{log}");
    for (from, to, named) in [
        ("[gateway]", "[gateway]\nmax_clients = \"many\"", "max_clients"),
        ("[gateway]", "[gateway]\nmax_client = 3", "max_client"),
        ("[gateway]", "[gateway]\nstartup_timeout = \"soon\"", "startup_timeout"),
        ("[gateway.auth]", "[gateway.oauth]", "oauth"),
        ("\"trust\"", "\"thrust\"", "method"),
        ("listen = [\"127.0.0.1:0\"]", "listen = [\"0.0.0.0:0\"]", "listen"),
        ("name = \"climscore\"", "", "name"),
        ("tls = \"disable\"", "tls = \"disabled\"", "tls"),
        ("[[source]]", "[[source]", "unclosed"),
        ("{dir}/source-password", "{dir}/missing", "password_file"),
        ("{dir}/source-password", "{dir}", "password_file"),
    ] {
        let bad = toml.replacen(from, to, 1);
        let (code, log) = rejected(&bad, password);
        assert_eq!(code, Some(2), "{to}: {log}");
        assert!(log.contains(named) && !log.contains("panicked"), "{to}: {log}");
    }
    let scram = House::scram().toml();
    for users in [&b"\"a\" \"plain\"\n"[..], b"\xff\xfe", b"a b"] {
        let (code, log) = rejected(&scram, &[password[0], ("users.txt", users)]);
        assert_eq!(code, Some(2), "{log}");
        assert!(log.contains("users.txt") && !log.contains("plain\""), "{log}");
    }
    assert_eq!(rejected(&scram, password).0, Some(2), "no users file");
    let tls = House::trusting().tls("").toml();
    let (code, log) = rejected(&tls, password);
    assert_eq!(code, Some(2));
    assert!(log.contains("certificate"), "{log}");
    let pair = Authority::new("one").server(&["localhost"]);
    let other = Authority::new("two").server(&["localhost"]);
    let (code, log) = rejected(
        &tls,
        &[
            password[0],
            ("server.crt", pair.certificate.as_bytes()),
            ("server.key", other.private_key.as_bytes()),
        ],
    );
    assert_eq!(code, Some(2), "{log}");
    assert!(!log.contains("PRIVATE KEY") && log.contains("private_key"), "{log}");
    // Somebody else has the port.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, log) = rejected(&toml.replacen("127.0.0.1:0", &address, 1), password);
    assert_eq!(code, Some(2), "{log}");
    assert!(log.contains(&address), "{log}");
    let (code, log) = rejected("", &[]);
    assert_eq!(code, Some(2), "{log}");
}

fn rewrite(gateway: &Gateway, toml: &str) {
    let place = gateway.folder().display().to_string();
    std::fs::write(gateway.config_file(), toml.replace("{dir}", &place)).unwrap();
}

#[test]
fn a_reload_counts_when_it_is_good_and_changes_nothing_when_it_is_bad() {
    let authority = Authority::new("test authority");
    let [old, new] = [(); 2].map(|()| authority.server(&["localhost"]));
    let house = House::scram().tls("");
    let setup = house
        .setup()
        .users(&[USERS[0], ("analyst", "swordfish")])
        .file("server.crt", old.certificate)
        .file("server.key", old.private_key);
    let gateway = Gateway::start(setup);
    let log_in = |user: &str, password: &str| {
        let mut raw = Raw::connect(gateway.address());
        raw.send(&startup(V3_0, &[("user", user), ("database", "climscore")]));
        raw.scram(password, Binding::Unsupported).map(|_| raw).map_err(|(refused, _)| refused.sqlstate)
    };
    let mut bystander = Bystander::with_password(&gateway);
    assert_eq!(log_in("analyst", "swordfish").err().as_deref(), Some("3D000"));

    let both = "[{ users = [\"visitor\", \"analyst\"] }]";
    let good = House::scram().tls("").access(both).toml();
    for bad in [
        good.replace("access", "acess"),
        good.replace("users.txt", "missing.txt"),
        good.replace("server.crt", "server.key"),
        "listen = ".to_owned(),
        String::new(),
    ] {
        let mark = gateway.log_mark();
        rewrite(&gateway, &bad);
        gateway.signal("HUP");
        let line = gateway.wait_for_line_after(mark, "the old one stays");
        assert!(line.contains("ERROR"), "{line}");
        assert_eq!(log_in("analyst", "swordfish").err().as_deref(), Some("3D000"));
        log_in(USERS[0].0, USERS[0].1).unwrap();
        bystander.works();
    }
    let mark = gateway.log_mark();
    rewrite(&gateway, &good);
    gateway.signal("HUP");
    gateway.wait_for_line_after(mark, "configuration reloaded");
    let mut analyst = log_in("analyst", "swordfish").unwrap();
    bystander.works();

    // Without a signal; the one who may no longer ends, though it says nothing.
    let mark = gateway.log_mark();
    rewrite(&gateway, &house.toml());
    gateway.wait_for_line_after(mark, "configuration reloaded");
    assert_eq!(analyst.refused().sqlstate, "57P01");
    no_leak(&analyst);
    assert_eq!(log_in("analyst", "swordfish").err().as_deref(), Some("3D000"));
    bystander.works();

    // Another certificate.
    let tls = client_tls(authority.certificate(), &["postgresql"], None);
    let before = Raw::connect(gateway.address()).ask_for_tls(&tls).unwrap();
    let mark = gateway.log_mark();
    std::fs::write(gateway.folder().join("server.key"), new.private_key).unwrap();
    std::fs::write(gateway.folder().join("server.crt"), new.certificate).unwrap();
    gateway.signal("HUP");
    gateway.wait_for_line_after(mark, "configuration reloaded");
    let mut after = Raw::connect(gateway.address()).ask_for_tls(&tls).unwrap();
    assert_ne!(before.end_point(), after.end_point());
    after.send(&startup(V3_0, &VISITOR));
    after.scram(USERS[0].1, Binding::EndPoint).unwrap();
    bystander.works();

    // The source itself goes.
    let mark = gateway.log_mark();
    rewrite(&gateway, &house.toml().replace("name = \"climscore\"", "name = \"renamed\""));
    gateway.signal("HUP");
    gateway.wait_for_line_after(mark, "configuration reloaded");
    assert_eq!(bystander.0.refused().sqlstate, "57P01");
    assert_eq!(log_in("visitor", USERS[0].1).err().as_deref(), Some("3D000"));
    ends_well(gateway);
}

/// A table that a test can hold a reader up at.
async fn held(name: &str) -> tokio_postgres::Client {
    let client = house::source().superuser_client(house::UPSTREAM_DATABASE).await;
    // Committed before it is locked, or nobody would see it.
    let made = format!("CREATE TABLE {name} AS SELECT 7 AS seven; GRANT SELECT ON {name} TO PUBLIC");
    client.batch_execute(&made).await.unwrap();
    client.batch_execute(&format!("BEGIN; LOCK TABLE {name}")).await.unwrap();
    client
}

/// Waits until somebody waits for the lock on this table.
async fn waits_for(name: &str) {
    let client = house::source().superuser_client(house::UPSTREAM_DATABASE).await;
    let deadline = Instant::now() + PATIENCE;
    let sql = format!("SELECT 1 FROM pg_locks WHERE NOT granted AND relation = '{name}'::regclass");
    while client.simple_query(&sql).await.unwrap().len() < 3 {
        assert!(Instant::now() < deadline, "nobody waits for {name}");
    }
}

#[test]
fn the_word_to_end_lets_what_runs_finish_and_nothing_new_begin() {
    let gateway =
        House::trusting().gateway("drain_timeout = \"60s\"").gateway("startup_timeout = \"60s\"").start();
    let mut gateway = gateway;
    let [mut idle, mut busy, mut open] = [(); 3].map(|()| Bystander::new(&gateway).0);
    assert_eq!(open.ask("BEGIN"), Ok(vec![]));
    let mut half = Raw::connect(gateway.address());
    half.send(&startup(V3_0, &VISITOR)[..9]);
    until(&gateway, "fedgate_client_connections ", 4);
    support::blocking(async {
        let holder = held("drained").await;
        busy.send(&query("SELECT seven FROM drained"));
        waits_for("drained").await;
        gateway.signal("TERM");
        gateway.wait_for_line("draining");
        for raw in [&mut idle, &mut half, &mut knock(&gateway)] {
            let refused = raw.refused();
            assert_eq!((refused.severity.as_str(), refused.sqlstate.as_str()), ("FATAL", "57P01"));
            no_leak(raw);
        }
        // Whoever is in a transaction may end it.
        assert_eq!(open.ask("SELECT 7"), Ok(vec!["7".to_owned()]));
        assert_eq!(open.ask("COMMIT"), Ok(vec![]));
        assert_eq!(open.refused().sqlstate, "57P01");
        holder.batch_execute("COMMIT").await.unwrap();
        assert_eq!(busy.answer(), Ok(vec!["7".to_owned()]));
        assert_eq!(busy.refused().sqlstate, "57P01");
    });
    let status = gateway.wait_exit(PATIENCE).expect("it ends");
    assert_eq!(status.code(), Some(0));
    assert!(!gateway.log().contains("panicked"));
}

#[test]
fn a_second_word_to_end_waits_for_nobody() {
    let mut gateway = House::trusting().gateway("drain_timeout = \"10min\"").start();
    let [mut busy, mut open] = [(); 2].map(|()| Bystander::new(&gateway).0);
    assert_eq!(open.ask("BEGIN"), Ok(vec![]));
    support::blocking(async {
        let _holder = held("dropped").await;
        busy.send(&query("SELECT seven FROM dropped"));
        waits_for("dropped").await;
        gateway.signal("TERM");
        gateway.wait_for_line("draining");
        gateway.signal("TERM");
        for raw in [&mut busy, &mut open] {
            assert_eq!(raw.refused().sqlstate, "57P01");
        }
        let status = gateway.wait_exit(PATIENCE).expect("it ends");
        assert_eq!(status.code(), Some(0));
        // The source does not go on working for nobody.
        let watcher = house::source().superuser_client("postgres").await;
        let sql = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%FROM dropped' AND state = 'active' AND pid <> pg_backend_pid()";
        let deadline = Instant::now() + PATIENCE;
        while watcher.simple_query(sql).await.unwrap().len() > 2 {
            assert!(Instant::now() < deadline, "it runs on");
        }
    });
    assert!(!gateway.log().contains("panicked"));
}

#[test]
fn without_descriptors_who_is_connected_goes_on_and_who_comes_later_waits() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("limited");
    let fedgate = support::fedgate();
    std::fs::write(&script, format!("#!/bin/sh\nulimit -n 100\nexec '{}' \"$@\"\n", fedgate.display()))
        .unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    let gateway = Gateway::launch(&script, House::trusting().setup());
    let mut bystander = Bystander::new(&gateway);
    let crowd: Vec<Raw> = (0..150).map(|_| Raw::connect(gateway.address())).collect();
    gateway.wait_for_line("cannot accept");
    bystander.works();
    assert_eq!(gateway.log().matches("cannot accept").count(), 1, "once, not ten times a second");
    drop(crowd);
    let_in(&gateway, PATIENCE);
    bystander.works();
    ends_well(gateway);
}

#[test]
fn long_texts_are_judged_beside_the_relay_and_answered_in_their_place() {
    let gateway = House::trusting().gateway("").start();
    let mut bystander = Bystander::new(&gateway);
    let aside = "fedgate_verdicts_aside_total";
    let before = count(&gateway, aside);
    let mut raw = knock(&gateway);
    raw.ready();
    let string = "x".repeat((1 << 20) - 100);
    let deep = format!("{}'a'{}", "lower(".repeat(60), ")".repeat(60));
    let texts: [&str; 6] = [
        "SELECT 1",
        &format!("SELECT '{string}'"),
        "SELECT 2",
        &format!("SELECT nextval('s'), {}1", format!("{deep}, ").repeat(60)),
        &format!("SELECT {}3", format!("{deep} || ").repeat(60)),
        "SELECT 4",
    ];
    // All at once; each is answered where it stands.
    let all: Vec<u8> = texts.iter().flat_map(|text| query(text)).collect();
    let sender = std::thread::spawn({
        let mut socket = raw.socket().try_clone().unwrap();
        move || std::io::Write::write_all(&mut socket, &all).unwrap()
    });
    bystander.works();
    assert_eq!(raw.answer(), Ok(vec!["1".to_owned()]));
    assert_eq!(raw.answer(), Ok(vec![string.clone()]));
    assert_eq!(raw.answer(), Ok(vec!["2".to_owned()]));
    assert_eq!(raw.answer(), Err("42501".to_owned()));
    bystander.works();
    assert_eq!(raw.answer(), Ok(vec![format!("{}3", "a".repeat(60))]));
    assert_eq!(raw.answer(), Ok(vec!["4".to_owned()]));
    sender.join().unwrap();
    // Where they were judged: the long ones there, and none of anybody's short ones.
    assert_eq!(count(&gateway, aside) - before, 3);
    // As Parse, and nobody there any more when it is judged.
    let parse = frame(b'P', format!("\0SELECT '{string}'\0\0\0").as_bytes());
    raw.send(&[parse.clone(), frame(b'S', b"")].concat());
    assert_eq!(raw.answer(), Ok(vec![]));
    assert_eq!(count(&gateway, aside) - before, 4);
    raw.send(&parse);
    drop(raw);
    until(&gateway, "fedgate_client_connections ", 1);
    until(&gateway, "fedgate_verdicts_waiting", 0);
    assert_eq!(count(&gateway, "fedgate_panics_total"), 0);
    bystander.works();
}
