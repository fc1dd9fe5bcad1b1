//! Clients that try to read or to influence what is another's, to write by what was left in a session, or to make the
//! gateway hang or lose sessions.

use super::*;

/// What another client must not feel of what was tried before, on the same session.
const FEELS: &str = "SELECT current_user, session_user, current_setting('transaction_read_only'), \
     current_setting('default_transaction_read_only'), current_setting('transaction_isolation'), \
     current_setting('transaction_deferrable'), current_setting('search_path'), current_setting('role'), \
     (SELECT count(*) FROM pg_locks WHERE pid = pg_backend_pid() AND locktype = 'advisory'), \
     (SELECT count(*) FROM pg_listening_channels()), pg_my_temp_schema(), \
     (SELECT count(*) FROM pg_cursors WHERE name <> ''), \
     (SELECT count(*) FROM pg_prepared_statements WHERE from_sql), \
     current_setting('statement_timeout'), current_setting('lock_timeout'), \
     current_setting('idle_session_timeout'), current_setting('row_security'), \
     current_setting('plan_cache_mode'), current_setting('enable_seqscan'), \
     coalesce(nullif(current_setting('hnsw.ef_search', true), ''), 'unset'), \
     coalesce(nullif(current_setting('pg_trgm.similarity_threshold', true), ''), 'unset'), \
     coalesce(nullif(current_setting('my.own', true), ''), 'unset')";

const TRIES: &[&str] = &[
    "SET ROLE pg_read_all_data",
    "SET SESSION AUTHORIZATION pg_read_all_data",
    "SET LOCAL ROLE pg_read_all_data",
    "SELECT set_config('role', 'pg_read_all_data', false)",
    "SELECT set_config('session_authorization', 'pg_read_all_data', false)",
    "SELECT set_config('ROLE', 'pg_read_all_data', false)",
    "SELECT set_config('default_transaction_read_only', 'off', false)",
    "SELECT set_config(name, 'off', false) FROM pg_settings WHERE name = 'default_transaction_read_only'",
    "UPDATE pg_settings SET setting = 'off' WHERE name = 'default_transaction_read_only'",
    "SET default_transaction_read_only = off",
    "SET transaction_read_only = off",
    "BEGIN READ WRITE",
    "BEGIN; SET TRANSACTION READ WRITE; INSERT INTO written VALUES (1)",
    "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
    "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
    "SET default_transaction_isolation = 'serializable'",
    "SET default_transaction_deferrable = on",
    "SET my.own = 'x'",
    "SET hnsw.ef_search = 400",
    "SELECT set_config('hnsw.ef_search', '400', false)",
    "SET pg_trgm.similarity_threshold = 0.9",
    "SET search_path = two, pg_catalog",
    "SET search_path = pg_temp",
    "SET row_security = off",
    "SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan",
    "SET statement_timeout = '1h'",
    "SET statement_timeout = 1",
    "SET lock_timeout = '1h'",
    "SET idle_session_timeout = '100ms'",
    "SET idle_in_transaction_session_timeout = '100ms'",
    "SET client_encoding = 'LATIN1'",
    "SET NAMES 'SQL_ASCII'",
    "SET standard_conforming_strings = off",
    "LISTEN there",
    "NOTIFY there",
    "UNLISTEN *",
    "SELECT pg_notify('there', 'x')",
    "SELECT pg_advisory_lock(1)",
    "SELECT pg_try_advisory_lock_shared(1)",
    "SELECT pg_advisory_unlock_all()",
    "BEGIN; SELECT pg_advisory_xact_lock(1)",
    "CREATE TEMP TABLE mine (a int)",
    "CREATE TEMP VIEW probe AS SELECT 'no' AS name",
    "CREATE TEMP SEQUENCE mine",
    "SELECT 1 INTO TEMP mine",
    "CREATE TEMP TABLE mine AS SELECT 1",
    "EXPLAIN ANALYZE CREATE TEMP TABLE mine AS SELECT 1",
    "LOAD 'auto_explain'",
    "DO $$ BEGIN PERFORM set_config('my.own', 'x', false); END $$",
    "PREPARE q AS SELECT 1",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "BEGIN; LOCK TABLE probe IN ACCESS SHARE MODE",
    "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1",
    "DISCARD ALL",
    "DISCARD PLANS; DISCARD SEQUENCES; DISCARD TEMP",
    "RESET ALL",
    "RESET SESSION AUTHORIZATION",
    "RESET ROLE",
    "SELECT lo_create(0)",
    "SELECT pg_export_snapshot()",
    "SELECT pg_terminate_backend(pg_backend_pid())",
    "SELECT pg_cancel_backend(pg_backend_pid())",
    "SELECT 1/0",
    "BEGIN; SELECT 1/0",
    "COPY probe TO STDOUT",
    "COPY written FROM STDIN",
];

#[test]
fn nothing_that_was_tried_is_felt_by_the_next_client() {
    for mode in ["transaction", "session"] {
        let stand = Stand::new(&format!("mode = \"{mode}\", size = 1, min_idle = 1"));
        let mut victim = stand.whom("modest").connect().0;
        let wanted = victim.query(FEELS);
        assert_eq!(wanted.len(), 4, "{wanted:?}");
        let mut victim = (mode == "transaction").then_some(victim);
        let mut wrong = Vec::new();
        for sql in TRIES {
            // Simple, extended, stays, goes.
            for how in ["simple", "extended", "gone"] {
                let mut raw = stand.visitor();
                match how {
                    "extended" => {
                        let mut body = b"\0".to_vec();
                        body.extend(sql.as_bytes());
                        body.extend(b"\0\0\0");
                        raw.write(&frame(b'P', &body));
                        drop(ask(&mut raw, "B \"\" \"\" / E \"\" 0 / S"));
                    }
                    _ => drop(raw.query(sql)),
                }
                // Of a client that gives its statements a millisecond, the gateway cannot ask what it has left.
                let silent = *sql == "SET statement_timeout = 1";
                let pinned =
                    silent || how == "simple" && (sql.starts_with("PREPARE") || sql.starts_with("DECLARE"));
                if how == "gone" || mode == "session" || pinned {
                    drop(raw);
                } else {
                    raw.query("ROLLBACK");
                    if sql.starts_with("PREPARE") || sql.starts_with("DECLARE") {
                        raw.query("DISCARD ALL");
                    }
                }
                let felt = match &mut victim {
                    Some(victim) => victim.query(FEELS),
                    None => stand.whom("modest").connect().0.query(FEELS),
                };
                if felt != wanted {
                    wrong.push(format!("{mode}: {sql}, {how}: {felt:?}"));
                }
            }
        }
        assert!(wrong.is_empty(), "wanted {wanted:?}\n{}", wrong.join("\n"));
        assert_eq!(stand.ask("SELECT count(*) FROM written"), "0");
        stand.end();
    }
}

#[test]
fn the_statement_of_another_can_neither_be_run_nor_dropped_by_its_name() {
    let stand = Stand::new("mode = \"transaction\", size = 1, min_idle = 1, wait = \"5s\"");
    let mut victim = stand.whom("modest").connect().0;
    for number in 0..5 {
        assert_eq!(
            ask(&mut victim, &format!("P v{number} \"SELECT 'the secret of {number}'\" / S")),
            ["1", "Z I"]
        );
    }
    let names: Vec<String> = stand_names(&mut victim);
    assert_eq!(names.len(), 5);
    let mut wrong = Vec::new();
    for name in &names {
        let number = name.strip_prefix("fedgate_").expect("the gateway's own name");
        let tries = [
            format!("Q \"EXECUTE {name}\""),
            format!("Q \"EXECUTE FedGate_{number}\""),
            format!("Q \"EXECUTE \\\"{name}\\\"\""),
            format!("Q \"EXECUTE U&\\\"\\\\0066edgate_{number}\\\"\""),
            format!("Q \"EXECUTE U&\\\"!0066edgate_{number}\\\" UESCAPE '!'\""),
            format!("Q \"EXECUTE/**/{name}\""),
            format!("Q \"EXPLAIN EXECUTE {name}\""),
            format!("Q \"EXPLAIN ANALYZE EXECUTE {name}\""),
            format!("Q \"EXPLAIN (ANALYZE, VERBOSE) EXECUTE {name}\""),
            format!("Q \"SELECT 1; EXECUTE {name}\""),
            format!("Q \"BEGIN; EXECUTE {name}; COMMIT\""),
            format!("Q \"DEALLOCATE {name}\""),
            format!("Q \"DEALLOCATE PREPARE \\\"{name}\\\"\""),
            format!("Q \"DEALLOCATE U&\\\"fed\\\\0067ate_{number}\\\"\""),
            format!("Q \"SELECT 1; DEALLOCATE {name}\""),
            format!("Q \"CREATE TEMP TABLE t AS EXECUTE {name}\""),
            format!("Q \"PREPARE p AS EXECUTE {name}\""),
            format!("Q \"PREPARE {name} AS SELECT 'evil'\" / Q \"DEALLOCATE {name}\""),
            format!("P e \"EXECUTE {name}\" / B \"\" e / E \"\" 0 / S"),
            format!("P \"\" \"DEALLOCATE {name}\" / B \"\" \"\" / E \"\" 0 / S"),
            format!("P \"\" \"EXPLAIN EXECUTE {name}\" / B \"\" \"\" / E \"\" 0 / S"),
            format!("B \"\" {name} / E \"\" 0 / S"),
            format!("D S {name} / S"),
            format!("C S {name} / S"),
            format!("P {name} \"SELECT 'evil'\" / S / Q \"DEALLOCATE {name}\""),
            format!("P {name} \"SELECT 'evil'\" / S / Q \"EXECUTE {name}\""),
            format!(
                "P {name} \"SELECT 'evil'\" / P {name} \"SELECT 'twice'\" / S / B \"\" {name} / E \"\" 0 / S / C S {name} / S"
            ),
            format!(
                "P e \"PREPARE {name} AS SELECT 'evil'\" / S / B \"\" {name} / E \"\" 0 / S / C S {name} / S"
            ),
            format!(
                "P \"\" \"PREPARE {name} AS SELECT 'evil'\" / B \"\" {name} / E \"\" 0 / S / D S {name} / S / C S {name} / S"
            ),
            format!(
                "Q \"SELECT 1; PREPARE {name} AS SELECT 'evil'\" / B \"\" {name} / E \"\" 0 / S / C S {name} / S"
            ),
            format!("P {name} \"SELECT 'evil'\" / P e \"EXECUTE {name}\" / B \"\" e / E \"\" 0 / S"),
            format!("P {name} \"SELECT 'evil'\" / P \"\" \"DEALLOCATE {name}\" / B \"\" \"\" / E \"\" 0 / S"),
            format!(
                "P {name} \"SELECT 'evil'\" / S / Q \"PREPARE {name} AS SELECT 'more'\" / Q \"EXECUTE {name}\" / Q \"DEALLOCATE {name}\""
            ),
            "Q \"DEALLOCATE ALL\"".to_owned(),
            "Q \"DISCARD ALL\"".to_owned(),
        ];
        for sent in tries {
            let mut raw = stand.visitor();
            send(&mut raw, &sent);
            send(&mut raw, "Q \"ROLLBACK\" / Q \"SELECT 'the end'\"");
            let mut answers = Vec::new();
            while !answers.iter().any(|line| line == "D the end") {
                let more = brief(&raw.read_until(b"Z", 1));
                if !more.last().is_some_and(|last| last.starts_with('Z')) {
                    wrong.push(format!("{sent}: {answers:?} {more:?}"));
                    break;
                }
                answers.extend(more);
            }
            if answers.iter().any(|line| line.contains("secret")) {
                wrong.push(format!("{sent}: {answers:?}"));
            }
            // Some keep the session.
            drop(raw);
            for number in 0..5 {
                let answer = ask(&mut victim, &format!("B \"\" v{number} / E \"\" 0 / S"));
                let secret = format!("D the secret of {number}");
                if answer != ["2", &secret, "C SELECT 1", "Z I"] {
                    wrong.push(format!("the victim after {sent}: {answer:?}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    stand.end();
}

fn stand_names(raw: &mut Raw) -> Vec<String> {
    let answer = raw.query("SELECT name FROM pg_prepared_statements ORDER BY name");
    answer.iter().filter_map(|line| line.strip_prefix("D ")).map(str::to_owned).collect()
}

/// The unnamed portal only where it was bound: one that a failed Query left makes PostgreSQL 15 crash.
const MESSAGES: &[&str] = &[
    "Q \"SELECT '{me}'\"",
    "Q \"SELECT 1; SELECT '{me}'\"",
    "Q \"SELECT 1; SELECT 1/0; SELECT 2\"",
    "Q \"DELETE FROM written\"",
    "Q \"BEGIN\"",
    "Q \"COMMIT\"",
    "Q \"ROLLBACK\"",
    "Q \"ROLLBACK\"",
    "Q \"SAVEPOINT a\"",
    "Q \"ROLLBACK TO a\"",
    "Q \"\"",
    "Q \"SELEKT\"",
    "Q \"SET TimeZone = 'Etc/GMT+{number}'\"",
    "Q \"SET LOCAL TimeZone = 'Etc/GMT+{number}'\"",
    "Q \"SHOW TimeZone\"",
    "Q \"RESET TimeZone\"",
    "Q \"SET application_name = '{me}'\"",
    "Q \"EXECUTE s1\"",
    "Q \"EXECUTE s2(5)\"",
    "Q \"EXECUTE q\"",
    "Q \"PREPARE q AS SELECT 'q of {me}'\"",
    "Q \"DEALLOCATE s1\"",
    "Q \"DEALLOCATE q\"",
    "Q \"DEALLOCATE ALL\"",
    "Q \"DISCARD ALL\"",
    "P \"\" \"SELECT '{me}'\"",
    "P \"\" \"SELECT nothing\"",
    "P s1 \"SELECT '{me}', * FROM probe WHERE id < 5 ORDER BY id\"",
    "P s1 \"SELECT 'the same for all'\"",
    "P s1 \"SELEKT\"",
    "P s2 \"SELECT $1::int\"",
    "P b \"BEGIN\"",
    "P r \"ROLLBACK\"",
    "B \"\" \"\"",
    "B \"\" s1",
    "B p1 s1",
    "B \"\" s2 [\"1\"]",
    "B \"\" s2 [\"x\"]",
    "B \"\" b",
    "D S s1",
    "D S \"\"",
    "D P p1",
    "B \"\" s1 / E \"\" 0",
    "B \"\" s1 / D P \"\" / E \"\" 1 / E \"\" 1",
    "B \"\" b / E \"\" 0",
    "B \"\" r / E \"\" 0",
    "B \"\" s2 [\"{number}\"] / E \"\" 0",
    "P \"\" \"SELECT '{me}'\" / B \"\" \"\" / E \"\" 0",
    "E p1 2",
    "C S s1",
    "C P p1",
    "C S \"\"",
    "H",
    "S",
    "S",
    "S",
    "S",
];

fn random(state: &mut u64, below: usize) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state % below as u64) as usize
}

fn pipeline(state: &mut u64, me: &str, number: usize) -> (Vec<&'static str>, Vec<u8>) {
    let sent: Vec<&str> =
        (0..4 + random(state, 30)).map(|_| MESSAGES[random(state, MESSAGES.len())]).collect();
    let text = sent.join(" / ").replace("{me}", me).replace("{number}", &number.to_string());
    (sent, text.split(" / ").flat_map(message).collect())
}

/// To the end that every one has.
fn answers(raw: &mut Raw, bytes: &[u8], split: usize) -> Vec<String> {
    bytes.chunks(split).for_each(|bytes| raw.write(bytes));
    raw.write(&[message("S"), message("Q \"ROLLBACK\""), message("Q \"SELECT 'the end'\"")].concat());
    let mut answers = Vec::new();
    loop {
        let read = raw.read_until(b"Z", 1);
        let closed = read.last().is_none_or(|last| last.kind != b'Z');
        let end = read.iter().any(|message| message.body.ends_with(b"the end"));
        answers.extend(full(&read).into_iter().map(|line| line.replace("fedgate/visitor ", "")));
        if end || closed {
            return answers;
        }
    }
}

/// Rounds of each of the clients; `POOL_ROUNDS` in the environment makes them more.
fn rounds() -> usize {
    std::env::var("POOL_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(60)
}

#[test]
fn whatever_many_clients_send_at_once_is_answered_as_to_one_alone() {
    let stand = Stand::new("mode = \"transaction\", size = 2, min_idle = 1, wait = \"60s\"");
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..5_usize)
            .map(|number| {
                let stand = &stand;
                scope.spawn(move || {
                    let me = format!("client {number}");
                    let mut state =
                        0x2545_f491_4f6c_dd1d_u64 ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let mut wrong = Vec::new();
                    for round in 0..rounds() {
                        let (sent, bytes) = pipeline(&mut state, &me, number);
                        if number == 4 {
                            // This one never stays to the end.
                            let mut raw = stand.visitor();
                            raw.write(&bytes[..random(&mut state, bytes.len())]);
                            if round % 2 == 0 {
                                reset(raw)
                            } else {
                                drop(raw)
                            }
                            continue;
                        }
                        let direct = stand.direct().with("options", "-c default_transaction_read_only=on");
                        let there = answers(&mut direct.connect().0, &bytes, usize::MAX);
                        let split = 1 + random(&mut state, if round % 2 == 0 { 60 } else { 100_000 });
                        let here = answers(&mut stand.visitor(), &bytes, split);
                        if there != here {
                            let same =
                                there.iter().zip(&here).take_while(|(there, here)| there == here).count();
                            let at = same.saturating_sub(2);
                            wrong.push(format!(
                                "round {round} of {number}: {sent:#?}\n  directly {:?}\n  gateway  {:?}",
                                &there[at..there.len().min(at + 8)],
                                &here[at..here.len().min(at + 8)]
                            ));
                            break;
                        }
                    }
                    wrong
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    // None was lost.
    eventually("all are given back", || stand.metric("fedgate_upstream_connections{", "leased") == 0.0);
    let mut both = [stand.visitor(), stand.visitor()];
    for raw in &mut both {
        raw.query("BEGIN");
        assert_eq!(raw.query("SELECT 1")[1], "D 1");
    }
    assert!(stand.pids("true").len() <= 2);
    stand.end();
}

#[test]
fn flushes_without_anything_to_flush_hold_up_nobody() {
    for mode in ["transaction", "session"] {
        let stand = Stand::new(&format!("mode = \"{mode}\", size = 2"));
        let mut raw = stand.visitor();
        raw.write(&frame(b'H', b"").repeat(20_000));
        assert_eq!(raw.query("SELECT 'there'")[1], "D there", "{mode}");
        reset(raw);
        eventually("it has gone", || stand.metric("fedgate_client_connections ", "") == 0.0);
        stand.end();
    }
}

/// PostgreSQL keeps short answers to itself until a Sync, which may stand far behind what fits into a pipeline.
#[test]
fn a_pipeline_longer_than_its_bound_is_answered() {
    for mode in ["transaction", "session"] {
        let stand = Stand::new(&format!("mode = \"{mode}\", size = 2"));
        let mut bound = "max_clients = 1000".to_owned();
        for most in [1, 3, 100, 1600] {
            let to = format!("max_clients = {}\n[gateway.limits]\npipeline = {most}", 1000 + most);
            stand.reload(&bound, &to);
            bound = to;
            let mut raw = stand.visitor();
            assert_eq!(
                ask(&mut raw, "P \"\" \"SELECT 'one'\" / B \"\" \"\" / D P \"\" / E \"\" 0 / S")[3],
                "D one"
            );
            let parses = message("P \"\" \"SELECT 1\"").repeat(3000);
            raw.write(&[parses, message("S")].concat());
            assert_eq!(raw.read_until(b"Z", 1).len(), 3001, "{mode}, at most {most}");
            assert_eq!(raw.query("SELECT 'two'")[1], "D two");
        }
        stand.end();
    }
}

#[test]
fn who_vanishes_behind_a_full_pipeline_is_missed() {
    for mode in ["transaction", "session"] {
        let stand = Stand::new(&format!("mode = \"{mode}\", size = 1"));
        let syncs = frame(b'S', b"").repeat(5000);
        let leave: [fn(Raw); 2] = [reset, drop];
        for leaves in leave {
            let mut raw = stand.visitor();
            send_query(&mut raw, SLOW);
            raw.write(&syncs);
            eventually("it runs", || !stand.pids("state = 'active' AND query LIKE '%AS a, %'").is_empty());
            leaves(raw);
            let began = Instant::now();
            assert_eq!(stand.visitor().query("SELECT 'next'")[1], "D next", "{mode}");
            assert!(began.elapsed() < PATIENCE / 2, "{mode}: after {:?}", began.elapsed());
        }
        stand.end();
    }
}
