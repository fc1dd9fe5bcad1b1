//! How many sessions there are, whose turn it is, and what becomes of them while nobody has them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

#[test]
fn there_are_never_more_sessions_than_the_pool_allows() {
    for (mode, clients) in [("transaction", 30), ("session", 12)] {
        let stand = Stand::new(&format!("mode = \"{mode}\", size = 3, min_idle = 2, wait = \"20s\""));
        let done = AtomicBool::new(false);
        let most = std::thread::scope(|scope| {
            let watch = scope.spawn(|| {
                let mut most = (0, 0);
                while !done.load(Ordering::Relaxed) {
                    most.0 = most.0.max(stand.pids("true").len());
                    most.1 = most.1.max(stand.metric("fedgate_upstream_connections{", "wire") as usize);
                }
                most
            });
            let workers: Vec<_> = (0..clients)
                .map(|client| {
                    let stand = &stand;
                    scope.spawn(move || {
                        let mut pids = BTreeSet::new();
                        for round in 0..4 {
                            let mut raw = stand.visitor();
                            for number in 0..10 {
                                let sql = format!("SELECT {client} || '.' || {round} || '.' || {number}");
                                assert_eq!(value(&mut raw, &sql), format!("{client}.{round}.{number}"));
                            }
                            pids.insert(pid(&mut raw));
                        }
                        pids
                    })
                })
                .collect();
            let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
            done.store(true, Ordering::Relaxed);
            let pids: BTreeSet<String> = ended.into_iter().flat_map(Result::unwrap).collect();
            assert!(pids.len() <= 3, "{mode}: the same sessions all along: {pids:?}");
            watch.join().unwrap()
        });
        assert!(most.0 <= 3 && most.1 <= 3, "{mode}: {most:?}");
        eventually("all were given back", || stand.metric("fedgate_upstream_connections{", "idle") == 3.0);
        stand.end();
    }
}

#[test]
fn who_waits_too_long_hears_of_it_and_lives_on() {
    let stand = Stand::new("mode = \"transaction\", size = 1, min_idle = 1, wait = \"200ms\"");
    let (mut one, mut other) = (stand.visitor(), stand.visitor());
    one.query("BEGIN");
    let full = other.ask("Q \"SELECT 1\"");
    assert_eq!(brief(&full), ["E 53300", "Z I"]);
    assert_eq!(full[0].field(b'S'), "ERROR");
    assert_eq!(full[0].field(b'D'), "All 1 were in use for 200ms.");
    assert!(full[0].field(b'H').contains("pool.size"));
    assert_eq!(ask(&mut other, "P \"\" \"SELECT 1\" / B \"\" \"\" / E \"\" 0 / S"), ["E 53300", "Z I"]);
    assert_eq!(ask(&mut other, "P s1 \"SELECT 1\" / D S s1 / S"), ["E 53300", "Z I"]);
    assert_eq!(one.query("COMMIT"), ["C COMMIT", "Z I"]);
    assert_eq!(other.query("SELECT 1")[1], "D 1");
    assert_eq!(ask(&mut other, "B \"\" s1 / S"), ["E 26000", "Z I"], "its Parse has failed");
    assert_eq!(stand.metric("fedgate_pool_timeouts_total", "wire"), 3.0);

    // Nobody has seen PostgreSQL refuse BEGIN, so drivers count on it: such a client has to come again.
    one.query("BEGIN");
    for begin in [
        "Q \"BEGIN\"",
        "Q \"/* x */; Start Transaction; SELECT 1\"",
        "P \"\" \"begin\" / B \"\" \"\" / E \"\" 0 / S",
    ] {
        let mut visitor = stand.visitor();
        assert_eq!(ask(&mut visitor, begin), ["E FATAL 53300"], "{begin}");
    }
    one.query("COMMIT");
    stand.end();

    let stand = Stand::new("mode = \"session\", size = 1, min_idle = 1, wait = \"200ms\"");
    let one = stand.visitor();
    let error = stand.whom("visitor").try_connect().err().expect("there is no room");
    assert_eq!(error.brief(), "E FATAL 53300");
    assert_eq!(error.field(b'D'), "All 1 were in use for 200ms.");
    drop(one);
    eventually("the session is free again", || stand.whom("visitor").try_connect().is_ok());
    stand.end();
}

#[test]
fn a_greedy_user_does_not_starve_another() {
    let stand = Stand::new("mode = \"transaction\", size = 1, min_idle = 1");
    let mut holder = stand.whom("greedy").connect().0;
    holder.query("BEGIN");
    let mut greedy: Vec<Raw> = (0..20).map(|_| stand.whom("greedy").connect().0).collect();
    // The one session is busy for a while with each, so that the order can be told.
    let sql = "SELECT count(*), clock_timestamp() FROM generate_series(1, 20000)";
    greedy.iter_mut().for_each(|raw| send_query(raw, sql));
    eventually("all wait", || stand.metric("fedgate_pool_waiting", "wire") == 20.0);
    let mut modest = stand.whom("modest").connect().0;
    send_query(&mut modest, sql);
    eventually("the other waits, too", || stand.metric("fedgate_pool_waiting", "wire") == 21.0);
    holder.query("COMMIT");
    let time = |raw: &mut Raw| raw.read_until(b"Z", 1)[1].brief();
    let own = time(&mut modest);
    let earlier = greedy.iter_mut().map(time).filter(|time| *time < own).count();
    assert!(earlier <= 1, "{earlier} of the greedy one's came first");
    stand.end();
}

#[test]
fn who_vanishes_while_waiting_frees_its_place() {
    let stand = Stand::new("mode = \"transaction\", size = 1, min_idle = 1");
    let mut holder = stand.visitor();
    holder.query("BEGIN");
    let mut waiting: Vec<Raw> = (0..6).map(|_| stand.visitor()).collect();
    waiting.iter_mut().for_each(|raw| send_query(raw, "SELECT 'here'"));
    eventually("all wait", || stand.metric("fedgate_pool_waiting", "wire") == 6.0);
    for (number, raw) in waiting.drain(..4).enumerate() {
        if number % 2 == 0 { reset(raw) } else { drop(raw) }
    }
    eventually("four have gone", || stand.metric("fedgate_pool_waiting", "wire") == 2.0);
    holder.query("COMMIT");
    for raw in &mut waiting {
        assert_eq!(raw.read_until(b"Z", 1)[1].brief(), "D here");
    }
    stand.end();

    let stand = Stand::new("mode = \"session\", size = 1, min_idle = 1");
    let holder = stand.visitor();
    // They say who they are and do not stay for the answer.
    let waiting: Vec<TcpStream> = (0..5)
        .map(|_| {
            let mut stream = TcpStream::connect(stand.gateway.address()).unwrap();
            let mut startup = bytes::BytesMut::new();
            let parameters = [("user", "visitor"), ("database", "wire")];
            postgres_protocol::message::frontend::startup_message(parameters, &mut startup).unwrap();
            stream.write_all(&startup).unwrap();
            stream
        })
        .collect();
    eventually("all wait", || stand.metric("fedgate_pool_waiting", "wire") == 5.0);
    drop(waiting);
    let stays = std::thread::scope(|scope| {
        let stays = scope.spawn(|| value(&mut stand.visitor(), "SELECT 'here'"));
        eventually("it waits, too", || stand.metric("fedgate_pool_waiting", "wire") >= 1.0);
        drop(holder);
        stays.join().unwrap()
    });
    assert_eq!(stays, "here");
    assert_eq!(stand.pids("true").len(), 1);
    stand.end();
}

#[test]
fn sessions_are_warm_before_anybody_comes() {
    for mode in ["transaction", "session"] {
        let stand = Stand::new(&format!("mode = \"{mode}\", size = 4, min_idle = 3"));
        eventually("three are open", || {
            stand.pids("application_name = 'fedgate' AND state = 'idle'").len() == 3
        });
        eventually("and counted", || stand.metric("fedgate_upstream_connections{", "idle") == 3.0);
        let warm = stand.pids("true");
        assert!(warm.contains(&pid(&mut stand.visitor())), "{mode}: one of them is used");
        stand.end();
    }
}

#[test]
fn sessions_end_when_they_are_old_or_unused() {
    let stand = Stand::new("mode = \"transaction\", size = 2, min_idle = 1, lifetime = \"1s\"");
    let mut raw = stand.visitor();
    let first = pid(&mut raw);
    eventually("another session", || pid(&mut raw) != first);
    // One that is old is not taken from its client.
    raw.query("BEGIN");
    let held = pid(&mut raw);
    eventually("it is old", || {
        value(
            &mut raw,
            "SELECT clock_timestamp() - backend_start > '1.5s' FROM pg_stat_activity WHERE pid = pg_backend_pid()",
        ) == "t"
    });
    assert_eq!(pid(&mut raw), held);
    raw.query("COMMIT");
    assert_ne!(pid(&mut raw), held);
    stand.end();

    let stand = Stand::new("mode = \"transaction\", size = 4, min_idle = 1, idle_timeout = \"1s\"");
    let mut all: Vec<Raw> = (0..4).map(|_| stand.visitor()).collect();
    all.iter_mut().for_each(|raw| {
        raw.query("BEGIN");
    });
    assert_eq!(stand.pids("true").len(), 4);
    all.iter_mut().for_each(|raw| {
        raw.query("COMMIT");
    });
    eventually("one is left", || stand.pids("true").len() == 1);
    assert_eq!(value(&mut all[3], "SELECT 1"), "1");
    stand.end();
}

#[test]
fn a_session_that_was_ended_while_idle_reaches_no_client() {
    for mode in ["transaction", "session"] {
        let stand = Stand::new(&format!("mode = \"{mode}\", size = 3, min_idle = 3"));
        let mut raw = (mode == "transaction").then(|| stand.visitor());
        for _ in 0..10 {
            eventually("all are warm", || stand.pids("state = 'idle'").len() == 3);
            let before = stand.pids("true");
            stand.ask("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'fedgate' OR application_name LIKE 'fedgate/%' AND datname = current_database()");
            eventually("all have ended", || stand.pids("true").is_disjoint(&before));
            let mut own;
            let raw = match &mut raw {
                Some(raw) => raw,
                None => {
                    own = stand.visitor();
                    &mut own
                }
            };
            assert!(!before.contains(&pid(raw)));
        }
        stand.end();
    }
}

/// Stands before the source and counts who connects; while it is `down`, it hangs up on everybody.
#[derive(Default)]
struct Between {
    down: AtomicBool,
    connected: AtomicUsize,
}

fn between() -> (Arc<Between>, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let between = Arc::new(Between::default());
    let shared = Arc::clone(&between);
    std::thread::spawn(move || {
        for near in listener.incoming() {
            let near = near.unwrap();
            shared.connected.fetch_add(1, Ordering::SeqCst);
            if shared.down.load(Ordering::SeqCst) {
                continue;
            }
            let far = TcpStream::connect(("127.0.0.1", SOURCE.port())).unwrap();
            for (mut from, mut to) in [(near.try_clone().unwrap(), far.try_clone().unwrap()), (far, near)] {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let mut buffer = vec![0; 64 * 1024];
                    while let Ok(count @ 1..) = from.read(&mut buffer) {
                        if shared.down.load(Ordering::SeqCst) || to.write_all(&buffer[..count]).is_err() {
                            break;
                        }
                    }
                    let _ = from.shutdown(Shutdown::Both);
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    (between, address)
}

#[test]
fn a_source_that_is_down_is_left_alone_and_comes_back_without_a_herd() {
    let (between, address) = between();
    let stand =
        Stand::with("mode = \"transaction\", size = 5, min_idle = 2", "catalogue_refresh = \"1h\"", |_| {
            address
        });
    let mut clients: Vec<Raw> = (0..40).map(|_| stand.visitor()).collect();
    for raw in &mut clients {
        assert_eq!(value(raw, "SELECT 1"), "1");
    }
    between.down.store(true, Ordering::SeqCst);
    stand.ask("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'fedgate' OR application_name LIKE 'fedgate/%' AND datname = current_database()");
    eventually("all have ended", || stand.pids("true").is_empty());
    let before = between.connected.load(Ordering::SeqCst);
    let began = Instant::now();
    for _ in 0..10 {
        clients.iter_mut().for_each(|raw| send_query(raw, "SELECT 1"));
        for raw in &mut clients {
            assert_eq!(brief(&raw.read_until(b"Z", 1)), ["E 57P03", "Z I"]);
        }
    }
    // Five at once at the very first, then one at a time with pauses of 25 ms and more that double.
    let attempts = between.connected.load(Ordering::SeqCst) - before;
    let most = 5 + 2 + 8 + began.elapsed().as_secs() as usize;
    assert!(
        (1..=most).contains(&attempts),
        "{attempts} attempts for 400 statements in {:?}",
        began.elapsed()
    );
    let before = between.connected.load(Ordering::SeqCst);
    between.down.store(false, Ordering::SeqCst);
    let first = &mut clients[0];
    eventually("the source is back", || first.query("SELECT 1").len() == 4);
    for raw in &mut clients {
        send_query(raw, "SELECT 1");
    }
    for raw in &mut clients {
        assert_eq!(raw.read_until(b"Z", 1)[1].brief(), "D 1");
    }
    let connected = between.connected.load(Ordering::SeqCst) - before;
    // The gateway's own look at the catalogue may be among them.
    assert!(connected <= 5 + 1, "{connected} connections to a source that came back");
    stand.end();
}

/// What the source takes less than `size` are enough for all who wait their turn.
#[test]
fn a_source_that_takes_fewer_sessions_than_the_pool_would_serves_everybody() {
    let stand = Stand::new("mode = \"transaction\", size = 20, min_idle = 1");
    SOURCE.execute(
        "postgres",
        &format!("CREATE ROLE narrow LOGIN IN ROLE pg_read_all_data PASSWORD '{SUPERUSER_PASSWORD}' CONNECTION LIMIT 3"),
    );
    stand.reload(&format!("user = \"{SUPERUSER}\""), "user = \"narrow\"");
    let first = stand.visitor().query("SELECT current_user");
    assert_eq!(first[1], "D narrow");
    let clients: Vec<Raw> = (0..30).map(|_| stand.visitor()).collect();
    std::thread::scope(|scope| {
        for mut raw in clients {
            scope.spawn(move || {
                for number in 0..20 {
                    let sql = format!("SELECT {number}, count(*) FROM generate_series(1, 20000)");
                    assert_eq!(raw.query(&sql)[1], format!("D {number} 20000"));
                }
            });
        }
    });
    stand.end();
}

#[test]
fn a_reload_keeps_the_sessions_of_a_source_that_stays_the_same() {
    for mode in ["transaction", "session"] {
        let stand = Stand::new(&format!("mode = \"{mode}\", size = 3, min_idle = 3"));
        let mut raw = stand.visitor();
        ask(&mut raw, "P s1 \"SELECT 'prepared'\" / S");
        eventually("all are warm", || stand.pids("true").len() == 3);
        let before = stand.pids("true");
        stand.reload("drain_timeout = \"20s\"", "drain_timeout = \"19s\"");
        assert_eq!(stand.pids("true"), before, "{mode}");
        assert!(before.contains(&pid(&mut raw)));
        assert_eq!(ask(&mut raw, "B \"\" s1 / E \"\" 0 / S")[1], "D prepared");
        assert!(before.contains(&pid(&mut stand.visitor())));

        // What is about something else changes no session, and of another number those that are too many end.
        stand.reload("tls = \"disable\"", "tls = \"disable\"\nmax_clients = 77\ngeography = \"EU\"");
        assert_eq!(stand.pids("true"), before, "{mode}");
        let mut busy = stand.visitor();
        busy.query("BEGIN");
        let held = pid(&mut busy);
        let from = format!("mode = \"{mode}\", size = 3, min_idle = 3");
        stand.reload(&from, &format!("mode = \"{mode}\", size = 2, min_idle = 2"));
        eventually("one has ended", || stand.pids("true").len() == 2);
        assert!(stand.pids("true").is_subset(&before), "{mode}");
        assert_eq!(pid(&mut busy), held);
        assert_eq!(ask(&mut raw, "B \"\" s1 / E \"\" 0 / S")[1], "D prepared");

        // What a session begins with: the pool is another one; what was under way comes to its end.
        stand.reload("tls = \"disable\"", "tls = \"disable\"\nstatement_timeout = \"9min\"");
        let mut new = stand.visitor();
        let fresh = pid(&mut new);
        assert!(!before.contains(&fresh), "{mode}: {fresh} of {before:?}");
        assert_eq!(pid(&mut busy), held);
        assert_eq!(busy.query("COMMIT"), ["C COMMIT", "Z I"]);
        if mode == "transaction" {
            // Whoever has no session of the old pool now is told to come again.
            let answer = raw.query("SELECT 1");
            assert_eq!(answer, ["E FATAL 57P01"], "it can never get a session again");
        }
        drop((raw, busy));
        eventually("the old ones have ended", || stand.pids("true").is_disjoint(&before));
        eventually("the new ones are two", || stand.pids("true").len() == 2);
        stand.end();
    }
}

#[test]
fn who_waits_for_a_session_waits_on_behind_a_reload() {
    for mode in ["transaction", "session"] {
        let stand = Stand::new(&format!("mode = \"{mode}\", size = 1, min_idle = 1"));
        let mut holder = stand.visitor();
        holder.query("BEGIN");
        let held = pid(&mut holder);
        let waiting =
            |count: f64| eventually("they wait", || stand.metric("fedgate_pool_waiting", "") == count);
        std::thread::scope(|scope| {
            let late = scope.spawn(|| value(&mut stand.visitor(), "SELECT pg_backend_pid()"));
            waiting(1.0);
            stand.reload("tls = \"disable\"", "tls = \"disable\"\nmax_clients = 77");
            // Room for a second one is used at once.
            stand.reload("size = 1, min_idle = 1", "size = 2, min_idle = 1");
            assert_ne!(late.join().unwrap(), held, "{mode}");
            let again = stand.visitor();
            stand.reload("size = 2, min_idle = 1", "size = 1, min_idle = 1");
            drop(again);
            eventually("one has ended", || stand.pids("true").len() == 1);

            // Another pool: who is not in yet gets a session of that.
            let late = scope.spawn(|| value(&mut stand.visitor(), "SELECT pg_backend_pid()"));
            waiting(1.0);
            stand.reload("tls = \"disable\"", "tls = \"disable\"\nstatement_timeout = \"9min\"");
            match mode {
                "session" => assert_ne!(late.join().unwrap(), held),
                // It was in already, and has what it was told from the pool of before.
                _ => assert!(late.join().is_err()),
            }
        });
        assert_eq!(holder.query("COMMIT"), ["C COMMIT", "Z I"]);
        drop(holder);
        stand.end();
    }
}

/// What a writer leaves in a session is nobody else's.
#[test]
fn who_becomes_a_writer_has_no_part_in_sessions_that_clients_share() {
    let writers = "writers = [\"writer\"]";
    let section = format!("read_only = false\n{writers}");
    for mode in ["transaction", "session"] {
        let stand = Stand::with(&format!("mode = \"{mode}\", size = 2"), &section, |_| SOURCE.address());
        let mut raw = stand.visitor();
        assert_eq!(raw.query("BEGIN"), ["C BEGIN", "Z T"]);
        assert_eq!(raw.query("SELECT 'reads'")[1], "D reads");
        stand.reload(writers, "writers = [\"writer\", \"visitor\"]");
        assert_eq!(
            raw.query("COMMIT; BEGIN READ WRITE; INSERT INTO written VALUES (1)"),
            ["E FATAL 57P01"],
            "{mode}"
        );
        assert_eq!(stand.visitor().query("INSERT INTO written VALUES (2)")[0], "C INSERT 0 1");
        assert_eq!(stand.ask("SELECT count(*) FROM written"), "1");
        stand.end();
    }
}

#[test]
fn writers_have_sessions_of_their_own_within_the_size() {
    for mode in ["transaction", "session"] {
        let pool = format!("mode = \"{mode}\", size = 2, min_idle = 1, wait = \"300ms\"");
        let stand = Stand::with(&pool, "read_only = false\nwriters = [\"writer\"]", |_| SOURCE.address());
        let mut writer = stand.whom("writer").connect().0;
        let own = pid(&mut writer);
        writer.query("CREATE TEMP TABLE mine AS SELECT 1");
        writer.query("INSERT INTO written VALUES (1, 'one')");
        let mut reader = stand.visitor();
        assert_ne!(pid(&mut reader), own);
        assert_eq!(reader.query("INSERT INTO written VALUES (2)"), ["E 25006", "Z I"]);
        assert_eq!(value(&mut reader, "SELECT current_setting('transaction_read_only')"), "on");
        reader.query("BEGIN");
        reader.query("SELECT 1");
        assert_eq!(stand.pids("true").len(), 2);
        let error = stand.whom("writer").try_connect().err().expect("there is no room");
        assert_eq!(error.brief(), "E FATAL 53300");
        drop(writer);
        eventually("the writer's session has ended", || !stand.pids("true").contains(&own));
        let mut again = stand.whom("writer").connect().0;
        assert_eq!(value(&mut again, "SELECT count(*) FROM written"), "1");
        assert_eq!(again.query("SELECT * FROM mine"), ["E 42P01", "Z I"]);
        assert!(stand.pids("true").len() <= 2);
        stand.end();
    }
}
