//! What an operator does to a gateway under load: ends it, reloads it, renews its certificate.
//!
//! Invariant: clients hear of an end by 57P01 and of nothing else, and of a reload not at all.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::house::{self, House, MODES, Plan};
use crate::load::Habits;
use crate::raw::client_tls;
use crate::support::{Authority, Flow, Pair, Postgres, Weather};

const HABITS: Habits = Habits { clients: 9, churn: 10 };

fn in_each_mode(job: fn(&Arc<Postgres>, &'static str)) {
    let shared = house::shared();
    let shared = &shared;
    crate::all(MODES.iter().map(|mode| {
        let job: Box<dyn FnOnce() + Send> = Box::new(move || job(shared, mode));
        ((*mode).to_owned(), job)
    }));
}

/// As an editor or a secret's volume does it: the new text is there at once.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

#[test]
fn the_gateway_is_told_to_end_under_load() {
    in_each_mode(|shared, mode| {
        let plan = Plan { gateway: "drain_timeout = \"20s\"", ..Plan::PLAIN };
        let mut house = House::build(Some(shared), mode, plan, |setup| setup);
        let load = house.load(HABITS);
        load.wait_for_each(4);
        house.gateway.signal("TERM");
        let began = Instant::now();
        let ended = house.gateway.wait_exit(Duration::from_secs(20));
        let took = began.elapsed();
        assert!(ended.is_some_and(|status| status.success()), "it ended with {ended:?} after {took:?}");
        // Everybody has come again, to find nobody.
        load.wait_until("all know", |load| load.errors().get("refused").is_some_and(|count| *count >= 9));
        let errors = load.errors();
        load.end();
        // Who connects in the last moment may find a connection that nobody accepts any more, as with PostgreSQL.
        let late = errors.get("closed at the start").copied().unwrap_or_default();
        let told = errors.get("57P01").copied().unwrap_or_default();
        // The driver lets an error fall that answers what nobody waits for: the Close of a statement, a last ROLLBACK.
        let unheard = errors.get("closed").copied().unwrap_or_default();
        assert!(told > unheard && told + unheard + late >= 9, "not each client was told: {errors:?}");
        let known = ["57P01", "closed", "refused", "closed at the start"];
        assert!(errors.keys().all(|state| known.contains(&state.as_str())), "{errors:?}");
        let deadline = Instant::now() + Duration::from_secs(20);
        while house.sessions() != 0 {
            assert!(Instant::now() < deadline, "sessions are left at the source");
        }
        let log = house.gateway.log();
        assert!(!log.contains("panicked"), "{log}");
        let silent = |line: &&str| line.contains("session ended") && !line.contains("57P01");
        let drained = log.lines().skip_while(|line| !line.contains("draining"));
        let silent: Vec<&str> = drained.filter(silent).filter(|line| !line.contains("end=Client")).collect();
        assert!(silent.is_empty(), "sessions ended without a word: {silent:#?}");
        eprintln!("SIGTERM ({mode}): ended after {took:?}; clients met {errors:?}");
    });
}

/// What runs will never be answered: drain_timeout ends it, and all are told.
#[test]
fn the_gateway_is_told_to_end_while_nothing_passes() {
    in_each_mode(|shared, mode| {
        let plan = Plan {
            gateway: "drain_timeout = \"2s\"",
            source: "statement_timeout = \"50s\"\nconnect_timeout = \"1s\"",
            ..Plan::PLAIN
        };
        let mut house = House::build(Some(shared), mode, plan, |setup| setup);
        let load = house.load(Habits { churn: 0, ..HABITS });
        load.wait_for_each(4);
        house.proxy.weather(Weather::down(Flow::Stall));
        house.proxy.wait_until("all stand still", |proxy| proxy.held() >= 9);
        let waits = "fedgate_upstream_connections{source=\"rows\",state=\"leased\"}";
        // A session that is being made ready for the next client stands still, too, and is nobody's.
        house.wait_for_metric(waits, 9.0);
        house.gateway.signal("TERM");
        let began = Instant::now();
        // The last word, and a margin for a busy machine.
        let ended = house.gateway.wait_exit(Duration::from_secs(2 + 5 + 8));
        let took = began.elapsed();
        assert!(ended.is_some_and(|status| status.success()), "it ended with {ended:?} after {took:?}");
        load.wait_until("all know", |load| load.errors().get("refused").is_some_and(|count| *count >= 9));
        let errors = load.errors();
        load.end();
        // In the middle of a message nothing can be said.
        let told: u64 = ["57P01", "closed"].iter().filter_map(|state| errors.get(*state)).sum();
        // Who comes in the last moment may find a connection that nobody accepts any more.
        let known = ["57P01", "closed", "closed at the start", "refused", "57P03"];
        let odd = errors.keys().any(|state| !known.contains(&state.as_str()));
        assert!(!odd && told >= 9 && errors.contains_key("57P01"), "{errors:?}");
        eprintln!("SIGTERM while nothing passes ({mode}): ended after {took:?}; clients met {errors:?}");
    });
}

#[test]
fn the_configuration_is_reloaded_under_load() {
    in_each_mode(|shared, mode| {
        let house = House::build(Some(shared), mode, Plan::PLAIN, |setup| setup);
        let load = house.load(HABITS);
        load.wait_for_each(2);
        let file = house.gateway.config_file();
        let text = std::fs::read_to_string(&file).unwrap();
        let until = Instant::now() + crate::lengthened();
        let mut rounds = 0;
        while rounds < 6 || Instant::now() < until {
            rounds += 1;
            let mark = house.gateway.log_mark();
            let (text, line) = match rounds % 3 {
                0 => (text.replace("listen =", "what = is this"), "the old one stays"),
                1 => (
                    text.replace("drain_timeout = \"10s\"", "drain_timeout = \"11s\"\nmax_clients = 500"),
                    "configuration reloaded",
                ),
                _ => (text.clone(), "configuration reloaded"),
            };
            replace(&file, &text);
            house.gateway.signal("HUP");
            house.gateway.wait_for_line_after(mark, line);
            load.wait_for_each(1);
        }
        replace(&file, &text);
        let good = load.good_count();
        assert_eq!(load.errors(), Default::default(), "somebody noticed");
        load.end();
        house.settles();
        house.end();
        eprintln!("SIGHUP {rounds} times ({mode}): {good} good answers, no error");
    });
}

fn certificate(pair: &Pair) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap()
}

#[test]
fn the_certificate_is_renewed_under_load() {
    in_each_mode(|shared, mode| {
        let authority = Authority::new("test authority");
        let old = authority.server(&["localhost"]);
        let plan = Plan {
            sections: "[gateway.tls]\ncertificate = \"{dir}/server.crt\"\nprivate_key = \"{dir}/server.key\"\nrequired = true",
            ..Plan::PLAIN
        };
        let trusted = client_tls(authority.certificate(), &["postgresql"], None);
        let house = House::build_with(Some(shared), mode, plan, Some(trusted), |setup| {
            setup.file("server.crt", old.certificate.clone()).file("server.key", old.private_key.clone())
        });
        let load = house.load(HABITS);
        load.wait_for_each(2);
        let first = certificate(&old);
        for round in 0..3 {
            let new = authority.server(&["localhost"]);
            let folder = house.gateway.folder().to_owned();
            let mark = house.gateway.log_mark();
            // One file after the other: between the two they do not fit, and the old pair stays.
            replace(&folder.join("server.crt"), &new.certificate);
            house.gateway.signal("HUP");
            house.gateway.wait_for_line_after(mark, "the old one stays");
            load.wait_for_each(1);
            let mark = house.gateway.log_mark();
            replace(&folder.join("server.key"), &new.private_key);
            // By a signal, and without one.
            if round < 2 {
                house.gateway.signal("HUP");
            }
            house.gateway.wait_for_line_after(mark, "configuration reloaded");
            // Those who come and go see the new one; those who stay go on with the old one.
            let new = certificate(&new);
            load.wait_until("whoever comes sees the new certificate", |load| {
                load.certificates().iter().all(|(number, seen)| number % 2 == 0 || *seen == new)
            });
            let stayed = load.certificates().into_iter().filter(|(number, _)| number % 2 == 0);
            assert!(stayed.into_iter().all(|(_, seen)| seen == first), "old sessions live on");
            load.wait_for_each(2);
        }
        let good = load.good_count();
        assert_eq!(load.errors(), Default::default(), "somebody noticed");
        load.end();
        house.settles();
        house.end();
        eprintln!("a certificate renewed three times ({mode}): {good} good answers, no error");
    });
}
