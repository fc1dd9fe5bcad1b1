//! Many clients that connect in one moment, more than the gateway takes.
//!
//! Invariant: each gets a session or 53300 and nobody hangs or is left without a word; those who had sessions before
//! notice nothing.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Barrier;

use crate::house::{self, House, MODES, PASSWORD, Plan, SOURCE, USER};
use crate::load::{Habits, PATIENCE};
use crate::raw::{V3_0, frame, startup};

/// Sessions that the gateway takes.
const PLACES: u64 = 60;
const LOAD: Habits = Habits { clients: 4, churn: 0 };
const PLAN: Plan =
    Plan { gateway: "max_clients = 60\nstartup_timeout = \"50s\"", pool: ", size = 80", ..Plan::PLAIN };

/// How one of them ends up: `ready`, an SQLSTATE, or what else.
struct Arrived {
    how: String,
    took: Duration,
    _stream: Option<TcpStream>,
}

async fn message(stream: &mut TcpStream) -> std::io::Result<(u8, Vec<u8>)> {
    let kind = stream.read_u8().await?;
    let length = stream.read_u32().await?;
    let mut body = vec![0; length as usize - 4];
    stream.read_exact(&mut body).await?;
    Ok((kind, body))
}

async fn log_in(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(&startup(V3_0, &[("user", USER), ("database", SOURCE)])).await?;
    let mut exchange = None;
    loop {
        let (kind, body) = message(stream).await?;
        match (kind, body.get(3)) {
            (b'R', Some(10)) => {
                let begun = ScramSha256::new(PASSWORD.as_bytes(), ChannelBinding::unsupported());
                let first = begun.message();
                let answer = [b"SCRAM-SHA-256\0", &(first.len() as u32).to_be_bytes()[..], first].concat();
                stream.write_all(&frame(b'p', &answer)).await?;
                exchange = Some(begun);
            }
            (b'R', Some(11)) => {
                let begun = exchange.as_mut().expect("SCRAM has begun");
                begun.update(&body[4..])?;
                let last = begun.message().to_vec();
                stream.write_all(&frame(b'p', &last)).await?;
            }
            (b'E', _) => {
                let code = body.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(b"C"));
                return Ok(String::from_utf8_lossy(code.unwrap_or_default()).into_owned());
            }
            (b'Z', _) => return Ok("ready".to_owned()),
            _ => {}
        }
    }
}

async fn storm(house: &House, clients: usize) -> Vec<Arrived> {
    let together = Arc::new(Barrier::new(clients));
    let address = house.door.address;
    let arrivals: Vec<_> = (0..clients)
        .map(|_| {
            let together = Arc::clone(&together);
            tokio::spawn(async move {
                together.wait().await;
                let began = Instant::now();
                let arriving = async {
                    let mut stream = TcpStream::connect(address).await?;
                    let how = log_in(&mut stream).await;
                    // It holds its session until everybody has arrived.
                    std::io::Result::Ok((how?, stream))
                };
                let (how, stream) = match tokio::time::timeout(PATIENCE, arriving).await {
                    Ok(Ok((how, stream))) => (how, Some(stream)),
                    Ok(Err(error)) => (error.kind().to_string(), None),
                    Err(_) => ("hangs".to_owned(), None),
                };
                // Who is turned away goes.
                let stream = stream.filter(|_| how == "ready");
                Arrived { how, took: began.elapsed(), _stream: stream }
            })
        })
        .collect();
    let mut arrived = Vec::new();
    for arrival in arrivals {
        arrived.push(arrival.await.expect("no client panics"));
    }
    arrived
}

#[test]
fn many_clients_connect_at_once() {
    let wanted = std::env::var("FEDGATE_FAULT_CLIENTS").ok().and_then(|text| text.parse().ok());
    let clients: usize = wanted.unwrap_or(if crate::lengthened().is_zero() { 500 } else { 10_000 });
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).expect("open files may be many");
    let alone = (clients > 1000).then(|| crate::ROOM.write().unwrap_or_else(PoisonError::into_inner));
    let _among_others = alone.is_none().then(crate::among_others);
    let shared = house::shared();
    for mode in MODES {
        let house = House::build(Some(&shared), mode, PLAN, |setup| setup);
        let load = house.load(LOAD);
        load.wait_for_each(3);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let arrived = runtime.block_on(storm(&house, clients));
        let slowest = arrived.iter().map(|one| one.took).max();
        let mut ends: BTreeMap<&str, u64> = BTreeMap::new();
        for one in &arrived {
            *ends.entry(&one.how).or_default() += 1;
        }
        eprintln!("{clients} at once ({mode}): {ends:?}, the last one after {slowest:?}");
        let places = PLACES - u64::from(LOAD.clients);
        let rest = clients as u64 - places;
        assert_eq!(ends, BTreeMap::from([("53300", rest), ("ready", places)]));
        load.wait_for_each(3);
        assert_eq!(load.errors(), Default::default(), "those who were there notice");
        drop(arrived);
        load.end();
        runtime.shutdown_background();
        house.settles();
        house.end();
    }
}
