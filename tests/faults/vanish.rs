//! Clients that go without a word, at every point of their life, while others go on reading.
//!
//! Invariant: nobody else notices, and nothing of them is left: no session at the source, no file, no count.

use std::io::Read;
use std::net::Shutdown;
use std::time::Duration;

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};

use crate::house::{self, House, MODES, PASSWORD, Plan, SOURCE, USER};
use crate::load::Habits;
use crate::raw::{Binding, Raw, V3_0, frame, query, ssl_request, startup};
use crate::support::{Setup, certificates};

/// How a client goes.
#[derive(Clone, Copy, Debug)]
enum Going {
    /// What was not read yet is thrown away, and the gateway's side is reset.
    Reset,
    /// The socket is closed.
    Close,
    /// It sends no more and reads to the end, as `nc` does.
    Half,
}

const GOINGS: [Going; 3] = [Going::Reset, Going::Close, Going::Half];

/// Runs for hours unless somebody stops it.
const ENDLESS: &str =
    "SELECT count(*) FROM generate_series(1, 1000000) AS a, generate_series(1, 1000000) AS b";
/// More than all buffers on the way hold.
const LONG: &str = "SELECT repeat('x', 1000) FROM generate_series(1, 50000)";

fn parameters() -> Vec<u8> {
    startup(V3_0, &[("user", USER), ("database", SOURCE)])
}

fn ready(raw: &mut Raw) {
    raw.send(&parameters());
    raw.scram(PASSWORD, Binding::Unsupported).expect("the password is right");
}

fn parse(sql: &str) -> Vec<u8> {
    frame(b'P', format!("\0{sql}\0\0\0").as_bytes())
}

fn execute(rows: u32) -> Vec<u8> {
    frame(b'E', &[&[0][..], &rows.to_be_bytes()].concat())
}

fn until(raw: &mut Raw, kind: u8) {
    while raw.message().expect("an answer").kind != kind {}
}

/// How far a client comes before it goes.
const STAGES: &[(&str, fn(&mut Raw))] = &[
    ("before its first byte", |_| {}),
    ("in the first length", |raw| {
        raw.send(&parameters()[..3]);
    }),
    ("in its startup packet", |raw| {
        raw.send(&parameters()[..20]);
    }),
    ("behind a request for TLS", |raw| {
        raw.send(&ssl_request());
        assert_eq!(raw.byte(), Some(b'S'));
    }),
    ("in a TLS handshake", |raw| {
        raw.send(&ssl_request());
        assert_eq!(raw.byte(), Some(b'S'));
        // A record that announces more than comes.
        raw.send(&[22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]);
    }),
    ("when it is asked for SCRAM", |raw| {
        raw.send(&parameters());
        until(raw, b'R');
    }),
    ("in the middle of SCRAM", |raw| {
        raw.send(&parameters());
        until(raw, b'R');
        let exchange = ScramSha256::new(PASSWORD.as_bytes(), ChannelBinding::unsupported());
        let first = exchange.message();
        let body = [b"SCRAM-SHA-256\0", &(first.len() as u32).to_be_bytes()[..], first].concat();
        raw.send(&frame(b'p', &body));
        until(raw, b'R');
    }),
    ("in the middle of its proof", |raw| {
        raw.send(&parameters());
        until(raw, b'R');
        raw.send(&[b'p', 0, 0, 1, 0, b'S', b'C']);
    }),
    ("while its session is opened", |raw| {
        raw.send(&parameters());
        let mut exchange = ScramSha256::new(PASSWORD.as_bytes(), ChannelBinding::unsupported());
        until(raw, b'R');
        let first = exchange.message();
        let body = [b"SCRAM-SHA-256\0", &(first.len() as u32).to_be_bytes()[..], first].concat();
        raw.send(&frame(b'p', &body));
        let challenge = raw.message().expect("a challenge");
        exchange.update(&challenge.body[4..]).expect("a challenge");
        let last = exchange.message().to_vec();
        raw.send(&frame(b'p', &last));
    }),
    ("at rest", ready),
    ("in a message", |raw| {
        ready(raw);
        raw.send(&query(LONG)[..20]);
    }),
    ("in the middle of a result", |raw| {
        ready(raw);
        raw.send(&query(LONG));
        until(raw, b'D');
    }),
    ("with a statement under way", |raw| {
        ready(raw);
        raw.send(&query(ENDLESS));
    }),
    ("with several under way", |raw| {
        ready(raw);
        let one = [parse(LONG), frame(b'B', &[0; 8]), execute(0), frame(b'S', b"")].concat();
        raw.send(&one.repeat(5));
        until(raw, b'D');
    }),
    ("between Parse and Sync", |raw| {
        ready(raw);
        raw.send(&[parse("SELECT 1"), frame(b'B', &[0; 8])].concat());
    }),
    ("with a portal half read", |raw| {
        ready(raw);
        raw.send(&query("BEGIN"));
        until(raw, b'Z');
        raw.send(&[parse(LONG), frame(b'B', &[0; 8]), execute(5), frame(b'S', b"")].concat());
        until(raw, b'Z');
    }),
    ("in a transaction", |raw| {
        ready(raw);
        raw.send(&query("BEGIN; SELECT 1"));
        until(raw, b'Z');
    }),
    ("in a failed transaction", |raw| {
        ready(raw);
        raw.send(&query("BEGIN; SELECT 1/0"));
        until(raw, b'Z');
    }),
    ("in a transaction with a statement under way", |raw| {
        ready(raw);
        raw.send(&query("BEGIN"));
        until(raw, b'Z');
        raw.send(&query(ENDLESS));
    }),
    ("with a cursor open", |raw| {
        ready(raw);
        raw.send(&query(&format!("BEGIN; DECLARE c CURSOR FOR {LONG}; FETCH 10 FROM c")));
        until(raw, b'Z');
    }),
    ("in a COPY", |raw| {
        ready(raw);
        raw.send(&query(&format!("COPY ({LONG}) TO STDOUT")));
        until(raw, b'd');
    }),
    ("in a COPY in a transaction", |raw| {
        ready(raw);
        raw.send(&query("BEGIN"));
        until(raw, b'Z');
        raw.send(&query(&format!("COPY ({LONG}) TO STDOUT")));
        until(raw, b'd');
    }),
    ("behind a refused write", |raw| {
        ready(raw);
        raw.send(&query("BEGIN"));
        until(raw, b'Z');
        raw.send(&[query("DROP TABLE t"), query(LONG)].concat());
        until(raw, b'E');
    }),
];

fn go(raw: Raw, how: Going) {
    match how {
        Going::Reset => {
            socket2::SockRef::from(raw.socket()).set_linger(Some(Duration::ZERO)).unwrap();
        }
        Going::Close => {}
        Going::Half => {
            // It may be closed already.
            let _ = raw.socket().shutdown(Shutdown::Write);
            // A gateway that neither answers nor closes would be an error of its own kind.
            let mut rest = vec![0; 64 * 1024];
            loop {
                match raw.socket().read(&mut rest) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                    Err(error) => panic!("no end for a client that sends no more: {error}"),
                }
            }
        }
    }
}

fn with_tls(setup: Setup) -> Setup {
    let pair = certificates::Authority::new("test authority").server(&["localhost"]);
    setup.file("server.crt", pair.certificate).file("server.key", pair.private_key)
}

const PLAN: Plan = Plan {
    sections: "[gateway.tls]\ncertificate = \"{dir}/server.crt\"\nprivate_key = \"{dir}/server.key\"",
    source: "statement_timeout = \"50s\"",
    ..Plan::PLAIN
};

#[test]
fn clients_vanish() {
    let shared = house::shared();
    let shared = &shared;
    let jobs = MODES.iter().flat_map(|mode| GOINGS.map(|how| (*mode, how)));
    crate::all(jobs.map(|(mode, how)| {
        let job: Box<dyn FnOnce() + Send> = Box::new(move || {
            let house = House::build(Some(shared), mode, PLAN, with_tls);
            let load = house.load(Habits { clients: 5, churn: 12 });
            load.wait_for_each(2);
            let until = std::time::Instant::now() + crate::lengthened();
            let mut gone = 0;
            loop {
                for (stage, come) in STAGES.iter().filter(|(stage, _)| crate::wanted(stage)) {
                    // All are there before the first goes.
                    let mut clients: Vec<Raw> = (0..2).map(|_| Raw::connect(house.door.address)).collect();
                    clients.iter_mut().for_each(come);
                    gone += clients.len();
                    for client in clients {
                        go(client, how);
                    }
                    load.check();
                    assert!(load.errors().is_empty(), "{stage}, {how:?}: others met {:?}", load.errors());
                }
                load.wait_for_each(3);
                if std::time::Instant::now() >= until {
                    break;
                }
            }
            let good = load.good_count();
            assert_eq!(load.errors(), Default::default(), "others notice");
            load.end();
            house.settles();
            house.end();
            eprintln!("{gone} clients vanish by {how:?} ({mode}); {good} good answers of others");
        });
        (format!("{how:?} ({mode})"), job)
    }));
}
