//! What a client has set is its own, whichever session it has.

use super::*;

/// Read in one row, of a client that keeps asking while another one sets things.
const MINE: &str = "SELECT current_setting('TimeZone'), current_setting('DateStyle'), current_setting('search_path'), \
                    current_setting('extra_float_digits'), current_setting('work_mem'), \
                    current_setting('application_name'), \
                    coalesce(nullif(current_setting('hnsw.ef_search', true), ''), 'unset')";

/// What one client says, statement by statement.
const SCRIPTS: &[(&str, &[&str])] = &[
    ("nothing", &["SELECT 1", "SELECT 2"]),
    ("SET and RESET", &["SET TimeZone = 'Asia/Tokyo'", "SHOW TimeZone", "RESET TimeZone", "SHOW TimeZone"]),
    ("SET to its default", &["SET work_mem = '1MB'", "SET work_mem TO DEFAULT"]),
    (
        "SET TIME ZONE",
        &["SET TIME ZONE -5", "SELECT now() - now()", "SET TIME ZONE INTERVAL '+02:30' HOUR TO MINUTE"],
    ),
    (
        "set_config",
        &[
            "SELECT set_config('DateStyle', 'SQL, DMY', false)",
            "SELECT DATE '2020-02-01'",
            "SELECT set_config('DateStyle', 'ISO', true)",
        ],
    ),
    (
        "SET LOCAL",
        &["BEGIN", "SET LOCAL TimeZone = 'Asia/Tokyo'", "SHOW TimeZone", "COMMIT", "SHOW TimeZone"],
    ),
    ("rolled back", &["BEGIN", "SET TimeZone = 'Asia/Tokyo'", "SHOW TimeZone", "ROLLBACK", "SHOW TimeZone"]),
    ("failed", &["BEGIN", "SET TimeZone = 'Asia/Tokyo'", "SELECT 1/0", "COMMIT", "SHOW TimeZone"]),
    (
        "savepoints",
        &[
            "BEGIN",
            "SET search_path = one",
            "SAVEPOINT a",
            "SET search_path = two",
            "SELECT here FROM here",
            "ROLLBACK TO a",
            "SELECT here FROM here",
            "COMMIT",
            "SELECT here FROM here",
        ],
    ),
    ("several at once", &["SET work_mem = '2MB'; SET TimeZone = 'Asia/Tokyo'; SELECT 1/0", "SHOW work_mem"]),
    ("several that stay", &["SET work_mem = '2MB'; SET TimeZone = 'Asia/Tokyo'; SELECT 1", "SHOW work_mem"]),
    ("quotes", &["SET search_path = \"it's\", 'two', \"$user\"", "SELECT here FROM here"]),
    (
        "RESET ALL",
        &["SET application_name = 'me'", "SET TimeZone = 'Asia/Tokyo'", "RESET ALL", "SHOW TimeZone"],
    ),
    (
        "DISCARD ALL",
        &["SET application_name = 'me'", "SET search_path = two", "DISCARD ALL", "SHOW search_path"],
    ),
    ("application_name", &["SET application_name = 'me'", "SELECT 1", "RESET application_name", "SELECT 1"]),
    (
        "application_name rolled back",
        &[
            "SET application_name = 'before'",
            "BEGIN",
            "SET application_name = 'within'",
            "SELECT 1",
            "ROLLBACK",
            "SELECT 1",
        ],
    ),
    ("application_name LOCAL", &["BEGIN", "SET LOCAL application_name = 'within'", "COMMIT", "SELECT 1"]),
    ("of an extension", &["SET hnsw.ef_search = 200", "SELECT 1", "RESET hnsw.ef_search"]),
    ("of an extension, rolled back", &["BEGIN", "SET hnsw.ef_search = 200", "ROLLBACK"]),
    (
        "characteristics",
        &[
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SHOW transaction_isolation",
        ],
    ),
    (
        "of the role",
        &["SHOW lock_timeout", "SET lock_timeout = '7s'", "RESET lock_timeout", "SHOW lock_timeout"],
    ),
];

/// What the two begin with: keys of their own, `options`, nothing.
const STARTS: &[&[(&str, &str)]] = &[
    &[],
    &[("application_name", "begins"), ("TimeZone", "Europe/Helsinki"), ("DateStyle", "German")],
    &[("options", "-c search_path=one -c work_mem=3MB"), ("extra_float_digits", "2")],
];

/// As the client sees it: without the gateway's prefix in its name at the source.
fn seen(messages: &[Message]) -> Vec<String> {
    full(messages)
        .into_iter()
        .map(|line| line.replace("fedgate/visitor", "").replace("  ", " ").trim_end().to_owned())
        .collect()
}

#[test]
fn two_clients_with_different_settings_on_one_session_see_their_own() {
    let stand = Stand::new("mode = \"transaction\", size = 1, min_idle = 1");
    SOURCE.execute(
        &stand.database,
        &format!("ALTER ROLE {SUPERUSER} IN DATABASE {} SET lock_timeout = '11min'", stand.database),
    );
    // Sessions that were warm before do not know of it.
    stand.ask("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'fedgate' OR application_name LIKE 'fedgate/%' AND datname = current_database()");
    eventually("fresh ones", || stand.pids("true").len() == 1);
    let mut wrong = Vec::new();
    for (number, start) in STARTS.iter().enumerate() {
        let with = |whom: Whom| start.iter().fold(whom, |whom, (name, value)| whom.with(name, value));
        for (note, script) in SCRIPTS {
            let read_only = if start.iter().any(|(name, _)| *name == "options") {
                ""
            } else {
                "-c default_transaction_read_only=on"
            };
            let direct = with(stand.direct());
            let direct = if read_only.is_empty() { direct } else { direct.with("options", read_only) };
            let (mut there, there_greeting) = direct.connect();
            let (mut here, here_greeting) = with(stand.whom("visitor")).connect();
            let sorted = |messages: &[Message]| {
                let mut lines = full(messages);
                lines
                    .retain(|line| line.starts_with("S ") && !line.contains("default_transaction_read_only"));
                lines.sort();
                lines
            };
            if sorted(&there_greeting) != sorted(&here_greeting) {
                wrong.push(format!(
                    "{note}, start {number}: greeting {:?} {:?}",
                    sorted(&there_greeting),
                    sorted(&here_greeting)
                ));
            }
            // The same kind of session, and another kind.
            let mut others = [
                with(stand.whom("visitor")).connect().0,
                stand.whom("modest").with("DateStyle", "SQL").connect().0,
            ];
            for (at, other) in others.iter_mut().enumerate() {
                for sql in [
                    "SET TimeZone = 'America/New_York'",
                    "SET search_path = two",
                    "SET extra_float_digits = -3",
                    "SET work_mem = '5MB'",
                    "SET hnsw.ef_search = 77",
                ] {
                    assert_eq!(other.query(sql).len(), 2 + usize::from(sql.contains("TimeZone")), "{sql}");
                }
                other.query(&format!("SET application_name = 'other {at}'"));
            }
            let theirs: Vec<Vec<String>> = others.iter_mut().map(|other| other.query(MINE)).collect();
            for sql in script.iter().chain([&MINE]) {
                let question = frame(b'Q', format!("{sql}\0").as_bytes());
                there.write(&question);
                here.write(&question);
                let (there, here) = (seen(&there.read_until(b"Z", 1)), seen(&here.read_until(b"Z", 1)));
                if there != here {
                    wrong.push(format!(
                        "{note}, start {number}: {sql}\n  directly {there:?}\n  gateway  {here:?}"
                    ));
                }
                if here.last().is_some_and(|last| last == "Z I") {
                    for (other, theirs) in others.iter_mut().zip(&theirs) {
                        let now = other.query(MINE);
                        if now != *theirs {
                            wrong.push(format!(
                                "{note}, start {number}: after {sql} another sees {now:?}, not {theirs:?}"
                            ));
                        }
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert_eq!(stand.pids("true").len(), 1);
    stand.end();
}

#[test]
fn the_source_sees_who_has_a_session() {
    for mode in ["transaction", "session"] {
        let stand = Stand::new(&format!("mode = \"{mode}\", size = 1, min_idle = 1"));
        let names = || {
            stand.ask("SELECT string_agg(application_name, ',') FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'fedgate%' AND application_name <> 'fedgate own queries'")
        };
        for (user, name, wanted) in [
            ("visitor", "", "fedgate/visitor"),
            ("modest", "it's me", "fedgate/modest it's me"),
            ("visitor", "psql", "fedgate/visitor psql"),
        ] {
            let mut raw = stand.whom(user).with("application_name", name).connect().0;
            raw.query("BEGIN");
            raw.query("SELECT 1");
            assert_eq!(names(), wanted, "{mode}");
            raw.query("COMMIT");
            raw.query("BEGIN; RESET ALL; SELECT 1");
            raw.query("COMMIT");
            raw.query("BEGIN");
            raw.query("SELECT 1");
            assert_eq!(names(), wanted, "{mode}: RESET ALL");
            raw.query("COMMIT");
            raw.query("DISCARD ALL");
            raw.query("BEGIN");
            raw.query("SELECT 1");
            assert_eq!(names(), wanted, "{mode}: DISCARD ALL");
            raw.query("COMMIT");
            raw.query("SET application_name = 'anew'");
            raw.query("BEGIN");
            raw.query("SELECT 1");
            assert_eq!(names(), format!("fedgate/{user} anew"), "{mode}");
            raw.write(&message("X"));
            drop(raw);
            if mode == "session" {
                eventually("nobody has it", || names() == "fedgate");
            }
        }
        stand.end();
    }
}

#[test]
fn sessions_of_session_mode_come_clean_to_the_next_client() {
    let stand = Stand::new("mode = \"session\", size = 1, min_idle = 1");
    let mut first = stand.visitor();
    let (own, clean) = (pid(&mut first), first.query(MINE));
    drop(first);
    for (note, script) in SCRIPTS {
        let mut raw = stand.visitor();
        assert_eq!((pid(&mut raw), raw.query(MINE)), (own.clone(), clean.clone()), "before {note}");
        for sql in *script {
            raw.query(sql);
        }
        ask(&mut raw, "P s1 \"SELECT 1\" / P \"\" \"SELECT 2\" / S");
        raw.query("PREPARE s2 AS SELECT 2");
        raw.query("DECLARE c CURSOR WITH HOLD FOR SELECT 1");
    }
    let mut last = stand.visitor();
    assert_eq!(
        value(
            &mut last,
            "SELECT (SELECT count(*) FROM pg_prepared_statements) + (SELECT count(*) FROM pg_cursors)"
        ),
        "0"
    );
    assert_eq!(ask(&mut last, "B \"\" \"\" / S"), ["E 26000", "Z I"]);
    stand.end();
}
