//! Clients that leave in the middle of something, and cancels.

use std::sync::atomic::{AtomicBool, AtomicUsize};

use super::*;

/// What a client has under way when it leaves; what it reads of the answer before: up to a message of this kind.
const LEFT: &[(&str, &[&str], u8)] = &[
    ("an open transaction", &["Q \"BEGIN\"", "Q \"SELECT 1\""], b'Z'),
    ("a failed transaction", &["Q \"BEGIN\"", "Q \"SELECT 1/0\""], b'Z'),
    (
        "as PgJDBC without autocommit",
        &["P \"\" \"BEGIN\" / B \"\" \"\" / E \"\" 0 / P S_1 \"SELECT 1\" / B \"\" S_1 / E \"\" 0 / S"],
        b'Z',
    ),
    (
        "settings in a transaction",
        &["Q \"BEGIN\"", "Q \"SET TimeZone = 'Asia/Tokyo'; SET hnsw.ef_search = 200\""],
        b'Z',
    ),
    (
        "settings",
        &["Q \"SET TimeZone = 'Asia/Tokyo'; SET hnsw.ef_search = 200; SET statement_timeout = '1h'\""],
        b'Z',
    ),
    ("a name", &["Q \"SET application_name = 'left'\""], b'Z'),
    ("a cursor", &["Q \"BEGIN; DECLARE c CURSOR FOR SELECT * FROM probe; FETCH 5 c\""], b'Z'),
    ("a cursor WITH HOLD", &["Q \"DECLARE c CURSOR WITH HOLD FOR SELECT * FROM probe\""], b'Z'),
    ("PREPARE", &["Q \"PREPARE left_over AS SELECT 1\""], b'Z'),
    ("a statement", &["P left_over \"SELECT 1\" / S"], b'Z'),
    ("a portal with rows left", &["Q \"BEGIN\"", "P a \"SELECT * FROM probe\" / B p a / E p 5 / S"], b'Z'),
    ("a pipeline without its end", &["P a \"SELECT 'x'\" / B \"\" a / E \"\" 0 / H"], b'C'),
    ("a failed pipeline without its end", &["P a \"SELECT 1/0\" / B \"\" a / E \"\" 0 / H"], b'E'),
    (
        "a pipeline in a transaction without its end",
        &["Q \"BEGIN\"", "P a \"SELECT 'x'\" / B \"\" a / E \"\" 0 / H"],
        b'C',
    ),
    (
        "the middle of a long result",
        &["Q \"SELECT repeat('x', 1000) FROM generate_series(1, 10000000)\""],
        b'D',
    ),
    (
        "the middle of a long result in a block",
        &["Q \"BEGIN\"", "Q \"SELECT repeat('x', 1000) FROM generate_series(1, 10000000)\""],
        b'D',
    ),
    ("the middle of a short result", &["Q \"SELECT repeat('x', 1000) FROM generate_series(1, 1000)\""], b'D'),
    (
        "the middle of COPY",
        &["Q \"COPY (SELECT repeat('x', 1000) FROM generate_series(1, 10000000)) TO STDOUT\""],
        b'd',
    ),
    (
        "the middle of COPY by the extended protocol",
        &[
            "P \"\" \"COPY (SELECT repeat('x', 1000) FROM generate_series(1, 10000000)) TO STDOUT\" / B \"\" \"\" / E \"\" 0 / S",
        ],
        b'd',
    ),
    ("half a message", &["Q \"SELECT 1\"", "raw \"Q\\0\\0\\x10\\0SELECT\""], 0),
    ("half a message in a block", &["Q \"BEGIN\"", "raw \"P\\0\\0\\0\\x40s\\0SEL\""], 0),
    ("nonsense", &["Q \"BEGIN\"", "raw \"?\\0\\0\\0\\x04\""], b'E'),
    (
        "a long statement",
        &["Q \"SELECT count(*) FROM generate_series(1, 100000) AS a, generate_series(1, 100000) AS b\""],
        0,
    ),
    (
        "a long statement and more behind it",
        &[
            "Q \"SELECT count(*) FROM generate_series(1, 100000) AS a, generate_series(1, 100000) AS b\"",
            "P a \"SELECT 'shared'\" / S",
            "Q \"SELECT 2\"",
            "Q \"BEGIN\"",
        ],
        0,
    ),
];

#[test]
fn whoever_leaves_leaves_a_clean_session_that_is_used_again() {
    for mode in ["transaction", "session"] {
        let stand = Stand::new(&format!("mode = \"{mode}\", size = 1, min_idle = 1"));
        let mut first = stand.visitor();
        let mut own = pid(&mut first);
        let clean = "SELECT (SELECT count(*) FROM pg_cursors WHERE name <> ''), \
                     (SELECT count(*) FROM pg_prepared_statements WHERE name NOT LIKE 'fedgate\\_%'), \
                     current_setting('TimeZone'), current_setting('statement_timeout'), \
                     coalesce(nullif(current_setting('hnsw.ef_search', true), ''), 'unset'), \
                     (SELECT xact_start = query_start FROM pg_stat_activity WHERE pid = pg_backend_pid())";
        let wanted = first.query(clean);
        drop(first);
        for (note, left, kind) in LEFT {
            for how in ["close", "terminate", "reset"] {
                let mut raw = stand.visitor();
                for (at, step) in left.iter().enumerate() {
                    send(&mut raw, step);
                    let last = at + 1 == left.len();
                    match (last, *kind) {
                        (true, 0) => {}
                        (true, kind) => drop(raw.read_until(&[kind], 1)),
                        (false, 0) if !step.starts_with("Q \"BEGIN") => {}
                        (false, _) => drop(raw.read_until(b"Z", 1)),
                    }
                }
                if note.contains("long statement") {
                    eventually("it runs", || {
                        stand.pids("state = 'active' AND query LIKE '%generate_series%'").len() == 1
                    });
                }
                match how {
                    "terminate" => {
                        raw.write(&message("X"));
                        drop(raw);
                    }
                    "reset" => reset(raw),
                    _ => drop(raw),
                }
                let mut next = stand.visitor();
                let now = pid(&mut next);
                assert_eq!(now, own, "{mode}: {note}, by {how}: the session is used again");
                own = now;
                assert_eq!(next.query(clean), wanted, "{mode}: {note}, by {how}");
                let answer = ask(&mut next, "P s \"SELECT 'shared'\" / B \"\" s / E \"\" 0 / S");
                assert_eq!(answer, ["1", "2", "D shared", "C SELECT 1", "Z I"], "{mode}: {note}, by {how}");
                drop(next);
            }
        }
        assert!(stand.pids("state = 'active'").is_empty(), "nothing is left running");
        stand.end();
    }
}

/// A statement whose preparation nobody has seen answered is still there for who has it, too.
#[test]
fn a_preparation_that_nobody_waited_for_stands_in_nobodys_way() {
    let stand = Stand::new("mode = \"transaction\", size = 1, min_idle = 1");
    let mut keeps = stand.whom("modest").connect().0;
    assert_eq!(ask(&mut keeps, "P k \"SELECT 'shared'\" / S"), ["1", "Z I"]);
    for sent in [
        "P a \"SELECT 'shared'\" / S",
        "P a \"SELECT 'shared'\" / B \"\" a / E \"\" 0 / S",
        "P a \"SELECT 'shared'\"",
    ] {
        for behind in [SLOW, "SELECT 1/0"] {
            // So that the session does not have it.
            keeps.query("DISCARD ALL");
            assert_eq!(ask(&mut keeps, "P k \"SELECT 'shared'\" / C S k / S").len(), 3);
            keeps.query("DEALLOCATE ALL");
            assert_eq!(ask(&mut keeps, "P k \"SELECT 'shared'\" / S").len(), 2);
            let mut third = stand.visitor();
            third.query("DEALLOCATE ALL");
            let mut leaves = stand.visitor();
            send_query(&mut leaves, behind);
            send(&mut leaves, sent);
            reset(leaves);
            let answer = ask(&mut keeps, "B \"\" k / E \"\" 0 / S");
            assert_eq!(answer, ["2", "D shared", "C SELECT 1", "Z I"], "{sent}, {behind}");
            let answer = ask(&mut third, "P t \"SELECT 'shared'\" / B \"\" t / E \"\" 0 / S");
            assert_eq!(answer, ["1", "2", "D shared", "C SELECT 1", "Z I"], "{sent}, {behind}");
        }
    }
    stand.end();
}

#[test]
fn a_cancel_hits_its_own_client_and_never_the_next_one_of_that_session() {
    let stand = Stand::new("mode = \"transaction\", size = 1, min_idle = 1");
    let mut victim = stand.visitor();
    let (key, secret, gateway) = (victim.pid, victim.secret.clone(), stand.gateway.address());
    let done = AtomicBool::new(false);
    let sent = AtomicUsize::new(0);
    let busy = "SELECT count(*) FROM generate_series(1, 2000)";
    // Long enough for a cancel to find it.
    let long = "SELECT count(*) FROM generate_series(1, 300000)";
    let (hit, rounds, others) = std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    cancel(gateway, key, &secret);
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let others: Vec<_> = (0..2)
            .map(|number| {
                let (stand, done) = (&stand, &done);
                scope.spawn(move || {
                    let mut raw = stand.whom("modest").connect().0;
                    let mut count = 0;
                    while !done.load(Ordering::Relaxed) {
                        raw.query(&format!("SET TimeZone = 'Etc/GMT{:+}'", (count + number) % 12));
                        let answer = raw.query(busy);
                        assert_eq!(
                            answer,
                            ["T count", "D 2000", "C SELECT 1", "Z I"],
                            "never cancelled, after {count}"
                        );
                        count += 1;
                    }
                    count
                })
            })
            .collect();
        let (mut hit, mut rounds) = (0, 0);
        let end = Instant::now() + Duration::from_secs(4);
        let mut wrong = Vec::new();
        while Instant::now() < end && wrong.is_empty() {
            for sql in [
                long,
                "SET work_mem = '1MB'",
                "SET TimeZone = 'Asia/Tokyo'",
                "SELECT 1",
                "RESET ALL",
                "BEGIN",
                "SELECT 1",
                "COMMIT",
            ] {
                let answer = victim.query(sql);
                let last = answer.last().map(String::as_str);
                if !matches!(last, Some("Z I" | "Z T" | "Z E")) {
                    wrong.push(format!("{sql}, round {rounds}: {answer:?}"));
                }
                hit += usize::from(answer.iter().any(|line| line == "E 57014"));
            }
            rounds += 1;
        }
        done.store(true, Ordering::Relaxed);
        let others: usize = others.into_iter().map(|other| other.join().unwrap()).sum();
        assert_eq!(wrong, Vec::<String>::new());
        (hit, rounds, others)
    });
    eprintln!(
        "{hit} hits in {rounds} rounds with {} cancels; {others} statements of others",
        sent.load(Ordering::Relaxed)
    );
    assert!(hit > 0 && others > 20);
    assert_eq!(value(&mut stand.visitor(), "SELECT 1"), "1");
    let idle = stand.metric("fedgate_cancel_requests_total", "idle");
    cancel(gateway, key, &secret);
    eventually("it did nothing", || stand.metric("fedgate_cancel_requests_total", "idle") == idle + 1.0);
    stand.end();
}
