//! Prepared statements, portals and cursors of clients that share sessions.

use super::*;

/// What one client sends at once, with a Sync or a Query at its end; another one, which has its own `S_1`, comes between.
const SCRIPTS: &[(&str, &[&str])] = &[
    (
        "as PgJDBC does",
        &[
            "P S_1 \"SELECT id, name FROM probe WHERE id = $1\" [23] / B \"\" S_1 [\"7\"] / D P \"\" / E \"\" 0 / S",
            "B \"\" S_1 [\"8\"] / E \"\" 0 / S",
            "D S S_1 / S",
            "C S S_1 / S",
            "B \"\" S_1 [\"8\"] / E \"\" 0 / S",
            "P S_1 \"SELECT 'another'\" / D S S_1 / B \"\" S_1 / E \"\" 0 / S",
        ],
    ),
    (
        "the unnamed one outlives its session",
        &[
            "P \"\" \"SELECT $1::int + 1\" / S",
            "D S \"\" / S",
            "B \"\" \"\" [\"41\"] / E \"\" 0 / S",
            "B \"\" \"\" [\"1\"] / E \"\" 0 / S",
        ],
    ),
    (
        "the unnamed one is lost with a Query",
        &["P \"\" \"SELECT 1\" / S", "Q \"SELECT 2\"", "B \"\" \"\" / E \"\" 0 / S"],
    ),
    (
        "the unnamed one is lost with a text that fails",
        &["P \"\" \"SELECT 1\" / S", "P \"\" \"SELECT nothing\" / S", "B \"\" \"\" / E \"\" 0 / S"],
    ),
    (
        "a name is taken",
        &[
            "P a \"SELECT 1\" / S",
            "P a \"SELECT 2\" / S",
            "B \"\" a / E \"\" 0 / S",
            "P a \"SELECT nothing\" / S",
        ],
    ),
    (
        "a name in a failed pipeline is not taken",
        &[
            "P a \"SELECT 1/0\" / B \"\" a / E \"\" 0 / P b \"SELECT 1\" / S",
            "B \"\" a / S",
            "B \"\" b / S",
            "P b \"SELECT 3\" / B \"\" b / E \"\" 0 / S",
        ],
    ),
    (
        "SQL speaks of it",
        &[
            "P a \"SELECT $1::int\" / S",
            "Q \"EXECUTE a(5)\"",
            "Q \"EXPLAIN (COSTS OFF) EXECUTE a(5)\"",
            "Q \"DEALLOCATE a\"",
            "Q \"EXECUTE a(5)\"",
            "B \"\" a [\"1\"] / S",
            "P a \"SELECT 'new'\" / B \"\" a / E \"\" 0 / S",
        ],
    ),
    (
        "SQL speaks of it in a failed block",
        &[
            "P a \"SELECT 1\" / S",
            "Q \"BEGIN\"",
            "Q \"SELECT 1/0\"",
            "Q \"EXECUTE a\"",
            "Q \"DEALLOCATE a\"",
            "Q \"ROLLBACK\"",
            "B \"\" a / E \"\" 0 / S",
            "Q \"EXECUTE a\"",
        ],
    ),
    (
        "SQL speaks of it by the extended protocol in a failed block",
        &[
            "P a \"SELECT 1\" / P b \"EXECUTE a\" / S",
            "Q \"BEGIN\"",
            "Q \"SELECT 1/0\"",
            "B \"\" b / E \"\" 0 / S",
            "P \"\" \"EXECUTE a\" / S",
            "Q \"ROLLBACK\"",
            "B \"\" b / E \"\" 0 / S",
            "Q \"EXECUTE a\"",
        ],
    ),
    (
        "DEALLOCATE ALL is of its own only",
        &[
            "P a \"SELECT 1\" / P b \"SELECT 2\" / S",
            "Q \"DEALLOCATE ALL\"",
            "B \"\" a / S",
            "P a \"SELECT 3\" / B \"\" a / E \"\" 0 / S",
        ],
    ),
    (
        "DISCARD ALL is of its own only",
        &[
            "P a \"SELECT 1\" / P \"\" \"SELECT 2\" / S",
            "Q \"DISCARD ALL\"",
            "B \"\" a / S",
            "B \"\" \"\" / S",
            "P a \"SELECT 3\" / B \"\" a / E \"\" 0 / S",
        ],
    ),
    (
        "DEALLOCATE by the extended protocol, and on in the same pipeline",
        &[
            "P a \"SELECT 1\" / S",
            "P d \"DEALLOCATE a\" / B \"\" d / E \"\" 0 / P a \"SELECT 2\" / B \"\" a / E \"\" 0 / S",
            "B \"\" a / E \"\" 0 / S",
        ],
    ),
    (
        "portals end with their transaction",
        &[
            "Q \"BEGIN\"",
            "P a \"SELECT id FROM probe ORDER BY id\" / B p a / E p 2 / S",
            "E p 2 / S",
            "Q \"COMMIT\"",
            "E p 2 / S",
            "D P p / S",
        ],
    ),
    (
        "a cursor in a block",
        &[
            "Q \"BEGIN\"",
            "Q \"DECLARE c CURSOR FOR SELECT id FROM probe ORDER BY id\"",
            "Q \"FETCH 2 c\"",
            "Q \"COMMIT\"",
            "Q \"FETCH 2 c\"",
        ],
    ),
    (
        "a statement that cannot be planned",
        &[
            "P a \"SELECT * FROM probe WHERE id = 'x'::int\" / S",
            "P a \"SELECT no FROM probe\" / S",
            "B \"\" a / E \"\" 0 / S",
        ],
    ),
    (
        "several parameter types of one text",
        &[
            "P a \"SELECT $1\" [23] / P b \"SELECT $1\" [25] / P c \"SELECT $1\" / D S a / D S b / D S c / S",
            "B \"\" a [\"1\"] / D P \"\" / E \"\" 0 / S",
            "B \"\" b [\"1\"] / D P \"\" / E \"\" 0 / S",
        ],
    ),
    (
        "names of all kinds",
        &[
            "P \"a b\\\"c\" \"SELECT 1\" / B \"\" \"a b\\\"c\" / E \"\" 0 / S",
            "P fedgate_1 \"SELECT 'mine'\" / B \"\" fedgate_1 / E \"\" 0 / S",
            "B \"\" fedgate_1 / E \"\" 0 / S",
            "C S fedgate_1 / S",
            "B \"\" fedgate_1 / S",
        ],
    ),
];

/// In a block, so that the session stays.
const ALIASES: &[(&str, &[&str])] = &[
    (
        "one that is closed is not there for SQL either",
        &[
            "Q \"BEGIN\"",
            "P s \"SELECT 'protocol'\" / S",
            "Q \"EXECUTE s\"",
            "C S s / S",
            "Q \"PREPARE s AS SELECT 'sql'\"",
            "Q \"EXECUTE s\"",
            "Q \"DEALLOCATE s\"",
            "Q \"EXECUTE s\"",
            "Q \"ROLLBACK\"",
        ],
    ),
    (
        "one that is closed does not run",
        &[
            "Q \"BEGIN\"",
            "P s \"SELECT 'protocol'\" / S",
            "Q \"EXECUTE s\"",
            "C S s / S",
            "Q \"SAVEPOINT a\"",
            "Q \"EXECUTE s\"",
            "Q \"ROLLBACK TO a\"",
            "Q \"SELECT 1; EXECUTE s\"",
            "Q \"ROLLBACK TO a\"",
            "C S s / P \"\" \"EXECUTE s\" / B \"\" \"\" / E \"\" 0 / S",
            "Q \"ROLLBACK\"",
        ],
    ),
    (
        "what was passed over in a failed block is not there behind it",
        &[
            "P s \"SELECT 1\" / S",
            "Q \"BEGIN\" / Q \"SELECT 1/0\" / P s \"SELECT 2\" / S / Q \"ROLLBACK\" / Q \"DEALLOCATE s\"",
            "B \"\" s / S",
        ],
    ),
    (
        "what was passed over behind an error is not there behind it",
        &[
            "P s \"SELECT 1\" / S",
            "B \"\" none / P s \"SELECT 2\" / S / Q \"SELECT 1; EXECUTE s\" / Q \"EXECUTE s\" / P \"\" \"EXECUTE s\" / B \"\" \"\" / E \"\" 0 / S",
        ],
    ),
    (
        "a name means what it means now, though its change was passed over",
        &[
            "Q \"BEGIN\"",
            "P s \"SELECT 'old'\" / S",
            "Q \"EXECUTE s\"",
            "C S s / P s \"SELECT 'new'\" / S",
            "Q \"SAVEPOINT a\"",
            "P f \"SELECT 1/0\" / B \"\" f / E \"\" 0 / P s \"SELECT 'more'\" / S",
            "Q \"ROLLBACK TO a\"",
            "Q \"EXECUTE s\"",
            "Q \"COMMIT\"",
            "Q \"EXECUTE s\"",
        ],
    ),
    (
        "one of several statements speaks of what is under way",
        &[
            "P s \"SELECT 's'\" / S / Q \"SELECT 1; EXECUTE s\"",
            "Q \"DEALLOCATE s; SELECT 2; EXECUTE s\"",
            "Q \"DEALLOCATE ALL; PREPARE q AS SELECT 'q'; EXECUTE q; DEALLOCATE q\"",
            "P q \"SELECT 'protocol'\" / S / Q \"DEALLOCATE q; PREPARE q AS SELECT 'sql'; EXECUTE q\" / Q \"EXECUTE q; DEALLOCATE q\"",
            "P q \"SELECT 'protocol'\" / B \"\" q / E \"\" 0 / S",
        ],
    ),
    (
        "a PREPARE that fails does not take the name",
        &[
            "Q \"BEGIN\" / Q \"SELECT 1/0\" / Q \"PREPARE q AS SELECT 'sql'\" / Q \"ROLLBACK\" / P q \"SELECT 'protocol'\" / B \"\" q / E \"\" 0 / S",
            "Q \"EXECUTE q\"",
        ],
    ),
    (
        "a PREPARE that is not run does not take the name",
        &[
            "P e \"PREPARE q AS SELECT 'sql'\" / S",
            "B \"\" q / E \"\" 0 / S",
            "P q \"SELECT 'protocol'\" / B \"\" q / E \"\" 0 / S",
            "Q \"EXECUTE q\"",
        ],
    ),
    (
        "a PREPARE by the extended protocol takes the name",
        &[
            "Q \"BEGIN\"",
            "P e \"PREPARE q AS SELECT 'sql'\" / B \"\" e / E \"\" 0 / S",
            "Q \"SAVEPOINT a\"",
            "P q \"SELECT 'protocol'\" / S",
            "Q \"ROLLBACK TO a\"",
            "B \"\" q / E \"\" 0 / S",
            "Q \"EXECUTE q\"",
            "Q \"DEALLOCATE q\"",
            "Q \"COMMIT\"",
            "P q \"SELECT 'protocol'\" / B \"\" q / E \"\" 0 / S",
        ],
    ),
    (
        "nothing is prepared in a failed block, whoever else has the text",
        &[
            "P s \"SELECT 'everybody'\" / S",
            "C S s / S",
            "Q \"BEGIN\" / Q \"SELECT 1/0\" / P s \"SELECT 'everybody'\" / B \"\" s / S / Q \"ROLLBACK\" / B \"\" s / S",
            "P \"\" \"SELECT 'unnamed'\" / S",
            "Q \"BEGIN\"",
            "B \"\" none / S / P s \"SELECT 'everybody'\" / S",
            "P s \"SELECT 'everybody'\" / S",
            "Q \"ROLLBACK\"",
            "P \"\" \"SELECT 'unnamed'\" / S / P s \"SELECT 'everybody'\" / B \"\" s / E \"\" 0 / B \"\" \"\" / E \"\" 0 / S",
        ],
    ),
];

/// The other client: its own text under the same names, after each step of the first.
struct Other(Raw);

impl Other {
    fn new(stand: &Stand) -> Self {
        let mut raw = stand.whom("modest").connect().0;
        let answer = ask(
            &mut raw,
            "P S_1 \"SELECT 'the other', $1::text\" [25] / P a \"SELECT 'the other a'\" / P \"\" \"SELECT 'the other unnamed'\" / S",
        );
        assert_eq!(answer, ["1", "1", "1", "Z I"]);
        Self(raw)
    }

    fn holds(&mut self, note: &str) {
        let answer = ask(
            &mut self.0,
            "B \"\" S_1 [\"x\"] / E \"\" 0 / B \"\" a / E \"\" 0 / B \"\" \"\" / E \"\" 0 / S",
        );
        let wanted = [
            "2",
            "D the other x",
            "C SELECT 1",
            "2",
            "D the other a",
            "C SELECT 1",
            "2",
            "D the other unnamed",
            "C SELECT 1",
            "Z I",
        ];
        assert_eq!(answer, wanted, "{note}");
    }
}

#[test]
fn statements_of_two_clients_never_meet() {
    let mut wrong = Vec::new();
    for size in [1, 2] {
        let stand =
            Stand::new(&format!("mode = \"transaction\", size = {size}, min_idle = 1, wait = \"5s\""));
        for (note, script) in SCRIPTS.iter().chain(ALIASES) {
            let mut there = stand.direct().connect().0;
            let mut here = stand.visitor();
            let mut other = Other::new(&stand);
            for step in *script {
                send(&mut there, step);
                send(&mut here, step);
                let ends =
                    step.split(" / ").filter(|message| *message == "S" || message.starts_with("Q ")).count();
                let (there, here) = (full(&there.read_until(b"Z", ends)), full(&here.read_until(b"Z", ends)));
                if there != here {
                    wrong.push(format!("{note}, {size}: {step}\n  directly {there:?}\n  gateway  {here:?}"));
                }
                match here.last().map(String::as_str) {
                    Some("Z I") => other.holds(note),
                    Some(last) if last.starts_with('Z') => {}
                    // It is out of step, or gone.
                    _ => break,
                }
            }
            let left: Option<Option<Message>> = here.try_read(Duration::from_millis(50));
            if left.is_some() {
                wrong.push(format!("{note}, {size}: more comes: {left:?}"));
            }
        }
        stand.end();
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn a_name_that_was_passed_over_is_not_left_to_the_next_client() {
    let stand = Stand::new("mode = \"transaction\", size = 1, min_idle = 1, wait = \"5s\"");
    let mut other = Other::new(&stand);
    let mut raw = stand.visitor();
    for step in [
        "Q \"BEGIN\"",
        "P a \"SELECT 'the secret'\" / S",
        "Q \"EXECUTE a\"",
        "C S a / P a \"SELECT 'new'\" / S",
        "P f \"SELECT 1/0\" / B \"\" f / E \"\" 0 / P a \"SELECT 'more'\" / S",
        "Q \"ROLLBACK\"",
    ] {
        ask(&mut raw, step);
    }
    assert_eq!(other.0.query("EXECUTE a")[1], "D the other a");
    // More names than are kept, and what was to be closed for it is passed over.
    ask(&mut raw, "Q \"DEALLOCATE ALL\"");
    ask(&mut raw, "Q \"BEGIN\"");
    for number in 0..256 {
        let name = if number == 0 { "a".to_owned() } else { format!("n{number}") };
        ask(&mut raw, &format!("P {name} \"SELECT 'the secret of {number}'\" / S"));
        ask(&mut raw, &format!("Q \"EXECUTE {name}\""));
    }
    ask(&mut raw, "P f \"SELECT 1/0\" / P more \"SELECT 2\" / S");
    ask(&mut raw, "B \"\" f / E \"\" 0 / P more \"SELECT 'more'\" / S");
    ask(&mut raw, "Q \"ROLLBACK\"");
    assert_eq!(other.0.query("EXECUTE a")[1], "D the other a");
    stand.end();
}

#[test]
fn what_keeps_the_session_gives_it_back() {
    let stand = Stand::new("mode = \"transaction\", size = 1, min_idle = 1, wait = \"150ms\"");
    let mut other = stand.whom("modest").connect().0;
    for (begin, held, end) in [
        ("PREPARE q AS SELECT 'q'", "EXECUTE q", "DEALLOCATE q"),
        ("PREPARE q AS SELECT 'q'", "EXECUTE q", "DEALLOCATE ALL"),
        ("PREPARE q AS SELECT 'q'", "EXECUTE q", "DISCARD ALL"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 'q' FROM probe", "FETCH c", "CLOSE c"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 'q' FROM probe", "FETCH c", "CLOSE ALL"),
        ("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 'q' FROM probe; COMMIT", "FETCH c", "CLOSE c"),
    ] {
        let mut raw = stand.visitor();
        let own = pid(&mut raw);
        let answer = raw.query(begin);
        assert_eq!(answer.last().map(String::as_str), Some("Z I"), "{begin}: {answer:?}");
        assert_eq!(other.query("SELECT 1"), ["E 53300", "Z I"], "{begin}");
        assert_eq!(raw.query(held)[1], "D q", "{begin}");
        assert_eq!(other.query("SELECT 1"), ["E 53300", "Z I"], "{held}");
        raw.query(end);
        eventually(end, || other.query("SELECT 1").len() == 4);
        assert_eq!(pid(&mut other), own, "{end}");
        assert!(raw.query(held)[0].starts_with("E "), "{end}");
        // Whoever leaves with it leaves nothing.
        raw.query(begin);
        drop(raw);
        eventually("it is free", || other.query("SELECT 1").len() == 4);
        assert_eq!(pid(&mut other), own);
        assert_eq!(value(&mut other, "SELECT count(*) FROM pg_prepared_statements WHERE from_sql"), "0");
        assert_eq!(value(&mut other, "SELECT count(*) FROM pg_cursors WHERE is_holdable"), "0");
    }
    stand.end();
}

#[test]
fn a_session_keeps_a_bounded_number_of_statements() {
    let stand = Stand::new("mode = \"transaction\", size = 1, min_idle = 1");
    let (mut one, mut other) = (stand.visitor(), stand.visitor());
    let count = "SELECT count(*) FROM pg_prepared_statements";
    for round in 0..3 {
        for (name, raw) in [("one", &mut one), ("other", &mut other)] {
            for number in 0..200 {
                let parse = format!("P s{number} \"SELECT '{name}', {number}\" / ");
                let parse = if round == 0 { parse.as_str() } else { "" };
                let answer = ask(raw, &format!("{parse}B \"\" s{number} / E \"\" 0 / S"));
                assert_eq!(answer[answer.len() - 3], format!("D {name} {number}"), "round {round}");
            }
        }
        let count: usize = value(&mut one, count).parse().unwrap();
        assert!((200..=257).contains(&count), "{count}");
    }
    // Many in one block, by SQL, too: each is known under two names then.
    one.query("BEGIN");
    for number in 0..200 {
        assert_eq!(one.query(&format!("EXECUTE s{number}"))[1], format!("D one {number}"));
    }
    for number in 200..600 {
        ask(&mut one, &format!("P s{number} \"SELECT 'one', {number}\" / S"));
        assert_eq!(one.query(&format!("EXECUTE s{number}"))[1], format!("D one {number}"));
    }
    one.query("COMMIT");
    assert_eq!(other.query("SELECT 1")[1], "D 1");
    let count: usize = value(&mut other, count).parse().unwrap();
    assert!(count <= 257, "{count}");
    stand.end();
}

#[test]
fn a_table_that_was_altered_is_read_anew_after_the_second_preparation() {
    let stand = Stand::new("mode = \"transaction\", size = 1, min_idle = 1");
    SOURCE.execute(&stand.database, "CREATE TABLE altered AS SELECT 1 AS a");
    let (mut one, mut other) = (stand.visitor(), stand.visitor());
    let parse = "P S_1 \"SELECT * FROM altered\" / D S S_1 / S";
    assert_eq!(ask(&mut one, parse), ["1", "t \\x00\\x00", "T a", "Z I"]);
    assert_eq!(ask(&mut other, parse), ["1", "t \\x00\\x00", "T a", "Z I"]);
    assert_eq!(ask(&mut one, "B \"\" S_1 / E \"\" 0 / S"), ["2", "D 1", "C SELECT 1", "Z I"]);
    SOURCE.execute(&stand.database, "ALTER TABLE altered ADD b int DEFAULT 2");
    assert_eq!(
        ask(&mut one, "B \"\" S_1 / E \"\" 0 / S"),
        ["E 0A000", "Z I"],
        "its description is another one"
    );
    for raw in [&mut one, &mut other] {
        assert_eq!(ask(raw, "C S S_1 / S"), ["3", "Z I"]);
        assert_eq!(ask(raw, parse), ["1", "t \\x00\\x00", "T a b", "Z I"]);
        assert_eq!(ask(raw, "B \"\" S_1 / E \"\" 0 / S"), ["2", "D 1 2", "C SELECT 1", "Z I"]);
    }
    stand.end();
}
