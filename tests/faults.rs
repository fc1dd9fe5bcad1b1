//! Faults under load, each before a real PostgreSQL: servers that die, networks that break, clients that vanish.
//!
//! Invariant: a client gets its own rows, in order, or an error, never another's and never nothing; and after a fault
//! everything is as it was before. A fault is a line of [`CASES`], and one runner drives it in every pool mode.
//!
//! `FAULT_CASE=text` runs the cases whose name holds it. `FEDGATE_FAULT_SECONDS` repeats each fault for so long, with more
//! clients; `FEDGATE_FAULT_CLIENTS` is how many connect at once in the storm.

#[path = "faults/disk.rs"]
mod disk;
#[path = "faults/full.rs"]
mod full;
#[path = "faults/house.rs"]
mod house;
#[path = "faults/load.rs"]
mod load;
#[path = "startup/raw.rs"]
mod raw;
#[path = "faults/storm.rs"]
mod storm;
mod support;
#[path = "faults/told.rs"]
mod told;
#[path = "faults/vanish.rs"]
mod vanish;

use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::{Duration, Instant};

use house::{House, MODES, Plan};
use load::{Habits, Load};
use support::{Cut, Dial, Flow, Postgres, Weather};

/// After a fault has gone, how long new reads may take to succeed.
const RECOVERY: Duration = Duration::from_secs(20);
/// Cases that run at the same time: most of them wait most of the time.
const AT_ONCE: usize = 5;
/// Cases that one house sees.
const LANE: usize = 4;

/// One fault.
struct Case {
    name: &'static str,
    /// The fault reaches the server itself, so nobody else uses it.
    own: bool,
    plan: Plan,
    habits: Habits,
    /// SQLSTATEs that clients may meet; `closed`: the connection ended without a word.
    may: &'static [&'static str],
    /// One of these is met by somebody, or the fault was none.
    must: &'static [&'static str],
    /// Brings the fault, waits until it is felt, and takes it away.
    fault: fn(&mut House, &Load),
}

const QUICK: Plan = Plan { source: "connect_timeout = \"1s\"\nstatement_timeout = \"2s\"", ..Plan::PLAIN };
/// A statement's time is not over on a busy machine.
const PATIENT: Plan =
    Plan { source: "connect_timeout = \"10s\"\nstatement_timeout = \"50s\"", ..Plan::PLAIN };
const HABITS: Habits = Habits { clients: 9, churn: 12 };

/// While a source is gone: no session; the session's end; its end in the middle of a message.
const GONE: &[&str] = &["57P03", "08006", "closed"];

const CASES: &[Case] = &[
    // Those that wait for time-outs come first, so that others run meanwhile.
    Case {
        name: "the source stands still for longer than a statement may take",
        own: true,
        plan: QUICK,
        habits: HABITS,
        may: &["57P03", "57014", "08006", "closed"],
        must: &["57014"],
        fault: |house, load| {
            house.source().freeze();
            load.wait_until("statements and sessions time out", |load| {
                let errors = load.errors();
                errors.contains_key("57014") && errors.contains_key("57P03")
            });
            house.source().thaw();
        },
    },
    Case {
        name: "new connections are reset",
        own: false,
        plan: QUICK,
        habits: HABITS,
        may: &["57P03", "57014", "08006", "closed"],
        must: &["57P03"],
        fault: |house, load| {
            house.proxy.weather(Weather { dial: Dial::Reset, ..Weather::FAIR });
            house.proxy.cut(Cut::Reset);
            load.wait_until("somebody is told", |load| load.errors().contains_key("57P03"));
            house.proxy.weather(Weather::FAIR);
        },
    },
    Case {
        name: "nothing passes for longer than a statement may take",
        own: false,
        plan: QUICK,
        habits: HABITS,
        may: &["57P03", "57014", "08006", "closed"],
        must: &["57014"],
        fault: |house, load| {
            house.proxy.weather(Weather::DEAD);
            load.wait_until("statements and sessions time out", |load| {
                let errors = load.errors();
                errors.contains_key("57014") && errors.contains_key("57P03")
            });
            // As a network comes back: what was under way does not.
            house.proxy.cut(Cut::Reset);
            house.proxy.weather(Weather::FAIR);
        },
    },
    Case {
        name: "answers stop in the middle of a message until the statement's time is over",
        own: false,
        plan: QUICK,
        habits: HABITS,
        may: &["57P03", "57014", "08006", "closed"],
        must: &["57014", "closed"],
        fault: |house, load| {
            house.proxy.weather(Weather::down(Flow::After(1001)));
            felt(load, 6);
            house.proxy.cut(Cut::Reset);
            house.proxy.weather(Weather::FAIR);
        },
    },
    Case {
        name: "the source is killed and started again",
        own: true,
        plan: PATIENT,
        habits: HABITS,
        may: GONE,
        must: &["08006"],
        fault: |house, load| {
            house.own().kill();
            felt(load, 9);
            house.own().start_again();
            house.found_again();
        },
    },
    Case {
        name: "one process of the source crashes, and it resets all",
        own: true,
        plan: PATIENT,
        habits: HABITS,
        may: &["57P03", "57P02", "08006", "closed"],
        must: &["57P02", "08006"],
        fault: |house, load| {
            let (source, role) = (house.source(), &house.role);
            strike_until_felt(load, 5, || while !source.kill_one_of(role) {});
        },
    },
    Case {
        name: "the source stands still for a moment",
        own: true,
        plan: PATIENT,
        habits: HABITS,
        may: &[],
        must: &[],
        fault: |house, load| {
            house.source().freeze();
            // Nobody gets an answer any more.
            let mut last = (load.good_count(), Instant::now());
            load.wait_until("all clients wait", |load| {
                let now = load.good_count();
                if now != last.0 {
                    last = (now, Instant::now());
                }
                last.1.elapsed() > Duration::from_millis(300)
            });
            house.source().thaw();
        },
    },
    Case {
        name: "every session of the source is ended",
        own: false,
        plan: PATIENT,
        habits: HABITS,
        may: &["57P01", "08006", "closed"],
        must: &["57P01"],
        fault: |house, load| {
            let sql = format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}'",
                house.role
            );
            for _ in 0..3 {
                load.wait_for_each(1);
                strike_until_felt(load, 4, || house.source().execute("postgres", &sql));
            }
        },
    },
    Case {
        name: "the source takes no more sessions",
        own: false,
        // Who holds a session for good lets others wait to the end of their patience.
        plan: Plan { pool: ", size = 20, wait = \"2s\"", ..PATIENT },
        habits: HABITS,
        // The source's own 53300 means that the gateway has no session to give: the source is not available.
        may: &["57P03", "53300", "57P01", "08006", "closed"],
        must: &["57P03", "53300"],
        fault: |house, load| {
            let limit = |number: i32| format!("ALTER ROLE {} CONNECTION LIMIT {number}", house.role);
            house.source().execute("postgres", &limit(4));
            // The pool has sessions of before.
            let end = format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}'",
                house.role
            );
            house.source().execute("postgres", &end);
            let full =
                |load: &Load| ["57P03", "53300"].iter().any(|state| load.errors().contains_key(*state));
            load.wait_until("the source is full", full);
            house.source().execute("postgres", &limit(-1));
        },
    },
    Case {
        name: "the network is cut by resets",
        own: false,
        plan: PATIENT,
        habits: HABITS,
        may: GONE,
        must: &["08006"],
        fault: |house, load| {
            for _ in 0..3 {
                load.wait_for_each(1);
                strike_until_felt(load, 4, || house.proxy.cut(Cut::Reset));
            }
        },
    },
    Case {
        name: "the network is cut in good order",
        own: false,
        plan: PATIENT,
        habits: HABITS,
        may: GONE,
        must: &["08006"],
        fault: |house, load| {
            strike_until_felt(load, 4, || house.proxy.cut(Cut::Close));
        },
    },
    Case {
        name: "the source's side of each connection is closed",
        own: false,
        plan: PATIENT,
        habits: HABITS,
        may: GONE,
        must: &["08006"],
        fault: |house, load| {
            strike_until_felt(load, 4, || house.proxy.cut(Cut::Half));
        },
    },
    Case {
        name: "new connections are refused while old ones live",
        own: false,
        plan: PATIENT,
        habits: HABITS,
        may: &["57P03", "57P01", "08006", "closed"],
        must: &["57P03"],
        fault: |house, load| {
            house.proxy.refuse();
            // Nobody asks for a new one while there are enough.
            let one = format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}' LIMIT 1",
                house.role
            );
            strike_until(
                load,
                "somebody is told",
                || house.source().execute("postgres", &one),
                |load| load.errors().contains_key("57P03"),
            );
            house.proxy.listen();
        },
    },
    Case {
        name: "nothing passes for a moment",
        own: false,
        plan: PATIENT,
        habits: HABITS,
        may: &[],
        must: &[],
        fault: |house, load| {
            for dead in
                [Weather::DEAD, Weather::down(Flow::Stall), Weather { up: Flow::Stall, ..Weather::FAIR }]
            {
                load.wait_for_each(1);
                house.proxy.weather(dead);
                house.proxy.wait_until("all stand still", |proxy| proxy.held() >= 5);
                house.proxy.weather(Weather::FAIR);
            }
        },
    },
    Case {
        name: "answers stop in the middle of a message, and go on",
        own: false,
        plan: PATIENT,
        habits: HABITS,
        may: &[],
        must: &[],
        fault: |house, load| {
            for bytes in [1, 7, 100, 1001] {
                load.wait_for_each(1);
                house.proxy.weather(Weather::down(Flow::After(bytes)));
                house.proxy.wait_until("all stand still", |proxy| proxy.held() >= 5);
                house.proxy.weather(Weather::FAIR);
            }
        },
    },
    Case {
        name: "answers stop in the middle of a message, and never go on",
        own: false,
        plan: PATIENT,
        habits: HABITS,
        may: GONE,
        must: &["08006", "closed"],
        fault: |house, load| {
            for bytes in [3, 50, 1001] {
                load.wait_for_each(1);
                house.proxy.weather(Weather::down(Flow::After(bytes)));
                house.proxy.wait_until("all stand still", |proxy| proxy.held() >= 5);
                house.proxy.cut(Cut::Reset);
                house.proxy.weather(Weather::FAIR);
            }
        },
    },
    Case {
        name: "the network is slow and hands out crumbs",
        own: false,
        plan: PATIENT,
        habits: HABITS,
        may: &[],
        must: &[],
        fault: |house, load| {
            let slow = |bytes, millis| Flow::Slow { bytes, pause: Duration::from_millis(millis) };
            for flow in [slow(5, 1), slow(1460, 3)] {
                house.proxy.weather(Weather::both(flow));
                let before = house.proxy.passed_down();
                house.proxy.wait_until("bytes", |proxy| proxy.passed_down() > before + 20_000);
                load.check();
                house.proxy.weather(Weather::FAIR);
            }
        },
    },
];

/// Waits until so many errors more have reached clients.
fn felt(load: &Load, errors: u64) {
    let before = load.error_count();
    load.wait_until("the fault is felt", |load| load.error_count() >= before + errors);
}

/// Between two strikes of one fault.
const ANEW: Duration = Duration::from_secs(1);

/// A fault of a moment meets only who works in that moment: it comes again until enough has been felt.
fn strike_until(load: &Load, what: &str, mut strike: impl FnMut(), mut enough: impl FnMut(&Load) -> bool) {
    let mut next = Instant::now();
    load.wait_until(what, |load| {
        if Instant::now() >= next {
            strike();
            next = Instant::now() + ANEW;
        }
        enough(load)
    });
}

fn strike_until_felt(load: &Load, errors: u64, strike: impl FnMut()) {
    let before = load.error_count();
    strike_until(load, "the fault is felt", strike, |load| load.error_count() >= before + errors);
}

/// What ten thousand clients do to a small machine is no fault of a gateway's: they have it to themselves.
pub static ROOM: RwLock<()> = RwLock::new(());

/// Held by whoever shares the machine with others.
pub fn among_others() -> RwLockReadGuard<'static, ()> {
    ROOM.read().unwrap_or_else(PoisonError::into_inner)
}

/// How long each fault is repeated.
pub fn lengthened() -> Duration {
    let seconds = std::env::var("FEDGATE_FAULT_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

fn wanted(name: &str) -> bool {
    std::env::var("FAULT_CASE").map_or(true, |only| name.contains(&only))
}

/// Drives one case in a house, and gives the house back as it was.
fn run(case: &Case, mut house: House) -> House {
    let began = Instant::now();
    let mut habits = case.habits;
    if !lengthened().is_zero() {
        habits.clients *= 3;
    }
    let load = house.load(habits);
    load.wait_for_each(3);
    // With a short time-out a busy machine is a fault, too.
    let before = load.errors();
    assert!(
        before.keys().all(|state| case.may.contains(&state.as_str())),
        "before there is a fault: {before:?}"
    );
    let until = Instant::now() + lengthened();
    let mut rounds = 0;
    let mut slowest = Duration::ZERO;
    loop {
        (case.fault)(&mut house, &load);
        let healed = Instant::now();
        house.read_one(RECOVERY);
        slowest = slowest.max(healed.elapsed());
        load.wait_for_each(3);
        rounds += 1;
        if Instant::now() >= until {
            break;
        }
    }
    let (errors, good) = (load.errors(), load.good_count());
    load.end();
    let odd: Vec<&String> = errors.keys().filter(|state| !case.may.contains(&state.as_str())).collect();
    assert!(odd.is_empty(), "clients met {errors:?}, of which only {:?} are to be expected", case.may);
    let met = case.must.is_empty() || case.must.iter().any(|state| errors.get(*state) > before.get(*state));
    assert!(met, "nobody felt it: {errors:?}");
    house.settles();
    eprintln!(
        "{} ({}): {rounds} times, {good} good answers, errors {errors:?}, reads again after {slowest:?}, {:?} in all",
        case.name,
        house.mode,
        began.elapsed()
    );
    house
}

/// One case after the other in one house: what one leaves behind, the next one meets.
fn run_lane(lane: &[&Case], mode: &'static str, shared: Option<&Arc<Postgres>>) {
    let mut house = None;
    let mut failed = Vec::new();
    for case in lane {
        let built = house.take();
        let run = || {
            run(
                case,
                built.unwrap_or_else(|| {
                    House::build(shared.filter(|_| !case.own), mode, case.plan, |setup| setup)
                }),
            )
        };
        match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            Ok(same) => house = Some(same),
            Err(_) => failed.push(case.name),
        }
    }
    if let Some(house) = house {
        house.end();
    }
    assert!(failed.is_empty(), "failed ({mode}): {failed:#?}");
}

/// Runs jobs, [`AT_ONCE`] at a time; all of them, whatever becomes of the others. Fails with the names of those that did.
pub fn all<'a>(jobs: impl IntoIterator<Item = (String, Box<dyn FnOnce() + Send + 'a>)>) {
    let _shared = among_others();
    let places = (Mutex::new(AT_ONCE), Condvar::new());
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for (name, job) in jobs {
            let mut free = places.1.wait_while(places.0.lock().unwrap(), |free| *free == 0).unwrap();
            *free -= 1;
            drop(free);
            let (places, failed) = (&places, &failed);
            scope.spawn(move || {
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                    failed.lock().unwrap().push(name);
                }
                *places.0.lock().unwrap() += 1;
                places.1.notify_one();
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} failed: {failed:#?}", failed.len());
}

/// Cases of one plan share houses, at most [`LANE`] of them one.
fn run_all(own: bool) {
    let cases: Vec<&Case> = CASES.iter().filter(|case| case.own == own && wanted(case.name)).collect();
    if cases.is_empty() {
        return;
    }
    let shared = (!own).then(house::shared);
    let shared = shared.as_ref();
    let mut plans: Vec<Plan> = cases.iter().map(|case| case.plan).collect();
    plans.dedup();
    let mut lanes = Vec::new();
    for plan in plans {
        let alike: Vec<&Case> = cases.iter().filter(|case| case.plan == plan).copied().collect();
        for lane in alike.chunks(LANE) {
            lanes.extend(MODES.iter().map(|mode| (lane.to_vec(), *mode)));
        }
    }
    all(lanes.into_iter().map(|(lane, mode)| {
        let names: Vec<&str> = lane.iter().map(|case| case.name).collect();
        let name = format!("one of {names:?} ({mode})");
        let job: Box<dyn FnOnce() + Send> = Box::new(move || run_lane(&lane, mode, shared));
        (name, job)
    }));
}

#[test]
fn the_source_fails() {
    run_all(true);
}

#[test]
fn the_network_fails() {
    run_all(false);
}
