//! A pool that is exhausted: more clients at work than it holds, for longer than one may wait.
//!
//! Invariant: who finds no session is told 53300 in time and hangs no longer; what is given back, and be it by a client
//! that vanishes in a transaction, serves the next one.

use std::time::{Duration, Instant};

use crate::house::{self, House, MODES, PASSWORD, Plan, SOURCE, USER};
use crate::load::{Habits, PATIENCE};
use crate::raw::{Binding, Raw, V3_0, query, startup};

const PLAN: Plan = Plan {
    pool: ", size = 3, min_idle = 0, wait = \"500ms\"",
    source: "statement_timeout = \"50s\"",
    ..Plan::PLAIN
};

/// A client that holds a session, since a transaction is open.
fn holder(house: &House) -> Raw {
    let mut raw = Raw::connect(house.door.address);
    raw.send(&startup(V3_0, &[("user", USER), ("database", SOURCE)]));
    raw.scram(PASSWORD, Binding::Unsupported).expect("there is room");
    raw.send(&query("BEGIN; SELECT 1"));
    assert!(raw.answer().is_ok());
    raw
}

/// SQLSTATE of whoever comes now: at the login, or at the first statement.
fn comes_in_vain(house: &House) -> Option<String> {
    crate::support::blocking(async {
        let code = |error: &tokio_postgres::Error| error.code().map(|code| code.code().to_owned());
        match house.door.open().await {
            Ok(session) => {
                let error = session.client.simple_query("SELECT 1").await.err()?;
                code(&error)
            }
            Err(crate::load::Trouble::Failed(error)) => code(&error),
            Err(trouble) => panic!("{trouble:?}"),
        }
    })
}

#[test]
fn the_pool_is_exhausted() {
    let shared = house::shared();
    let shared = &shared;
    crate::all(MODES.iter().map(|mode| {
        let job: Box<dyn FnOnce() + Send> = Box::new(move || {
            let house = House::build(Some(shared), mode, PLAN, |setup| setup);
            let until = Instant::now() + crate::lengthened();
            loop {
                let holders: Vec<Raw> = (0..3).map(|_| holder(&house)).collect();
                for _ in 0..3 {
                    let began = Instant::now();
                    assert_eq!(comes_in_vain(&house).as_deref(), Some("53300"));
                    assert!(began.elapsed() < PATIENCE / 2, "it waited {:?}", began.elapsed());
                }
                // Those who have a session notice nothing, and one that vanishes gives back a clean one.
                for mut holder in holders {
                    holder.send(&query("SELECT 2"));
                    assert_eq!(holder.answer(), Ok(vec!["2".to_owned()]));
                    socket2::SockRef::from(holder.socket()).set_linger(Some(Duration::ZERO)).unwrap();
                }
                house.read_one(crate::RECOVERY);
                let load = house.load(Habits { clients: 3, churn: 0 });
                load.wait_for_each(12);
                assert_eq!(load.errors(), Default::default());
                load.end();
                if Instant::now() >= until {
                    break;
                }
            }
            house.settles();
            house.end();
        });
        ((*mode).to_owned(), job)
    }));
}
