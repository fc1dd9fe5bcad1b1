//! What a source takes of its clients at most: statements at work, rows and bytes, cost, hours, and less while it
//! suffers.
//!
//! Invariant: everything here was said over a socket to the built gateway before a real PostgreSQL.

#[path = "startup/door.rs"]
#[allow(dead_code, reason = "each test crate uses its own part of this")]
mod door;
#[path = "startup/house.rs"]
mod house;
#[path = "startup/raw.rs"]
#[allow(unused_imports, reason = "nobody here speaks TLS")]
mod raw;
mod support;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use door::{Behind, Door};
use house::{House, UPSTREAM_DATABASE, UPSTREAM_USER, ends_well, no_leak, source};
use raw::{Message, Raw, V3_0, frame, query, startup};
use support::{Gateway, Postgres, Setup};

/// How long something may take to show on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The tables that the tests read.
fn filled() -> &'static Postgres {
    static FILLED: OnceLock<()> = OnceLock::new();
    let source = source();
    FILLED.get_or_init(|| {
        source.execute(
            UPSTREAM_DATABASE,
            &format!(
                "CREATE TABLE small (id int); INSERT INTO small SELECT generate_series(1, 10);
                 CREATE TABLE big (id int); INSERT INTO big SELECT generate_series(1, 20000);
                 CREATE SCHEMA one; CREATE TABLE one.t AS TABLE small;
                 CREATE SCHEMA two; CREATE TABLE two.t AS SELECT a.id FROM big a, generate_series(1, 10);
                 CREATE SCHEMA three; CREATE TABLE three.solo AS TABLE two.t;
                 ANALYZE;
                 GRANT USAGE ON SCHEMA one, two, three TO {UPSTREAM_USER};
                 GRANT SELECT ON ALL TABLES IN SCHEMA public, one, two, three TO {UPSTREAM_USER};
                 GRANT pg_monitor TO {UPSTREAM_USER}"
            ),
        );
    });
    source
}

/// A gateway with these limits, for `visitor`, `other` and `third`.
fn limited(limits: &str) -> Gateway {
    house(limits).start()
}

fn house(limits: &str) -> House {
    filled();
    House::trusting()
        .access("[{ users = [\"visitor\", \"other\", \"third\"], cidr = [\"127.0.0.0/8\"] }]")
        .source("catalogue_refresh = \"1h\"")
        .more(&format!("[source.limits]\ncontact = \"the database team\"\n{limits}\n"))
}

fn client(gateway: &Gateway, user: &str) -> Raw {
    let mut raw = Raw::connect(gateway.address());
    raw.send(&startup(V3_0, &[("user", user), ("database", "climscore")]));
    raw.ready();
    raw
}

/// Type bytes of all messages up to ReadyForQuery, its status, and the error if there is one.
struct Answer {
    kinds: String,
    status: u8,
    error: Option<Message>,
    bytes: usize,
}

impl Answer {
    fn rows(&self) -> usize {
        self.kinds.matches(['D', 'd']).count()
    }

    fn sqlstate(&self) -> String {
        self.error.as_ref().and_then(|error| error.field(b'C')).unwrap_or_default()
    }

    /// The error says all of these, and whom to ask.
    fn says(&self, sqlstate: &str, parts: &[&str]) {
        let error = self.error.as_ref().unwrap_or_else(|| panic!("no error: {}", self.kinds));
        let field = |kind| error.field(kind).unwrap_or_default();
        let all = format!("{} {} {}", field(b'M'), field(b'D'), field(b'H'));
        assert_eq!(field(b'C'), sqlstate, "{all}");
        for part in parts {
            assert!(all.contains(part), "{part:?} in {all}");
        }
        assert!(field(b'H').contains("ask the database team"), "{all}");
        assert_eq!(field(b'S'), "ERROR");
    }
}

fn answer(raw: &mut Raw) -> Answer {
    let mut answer = Answer { kinds: String::new(), status: 0, error: None, bytes: 0 };
    loop {
        let message = raw.message().unwrap_or_else(|| panic!("the session ended after {}", answer.kinds));
        if !matches!(message.kind, b'N' | b'S') {
            answer.kinds.push(message.kind.into());
        }
        match message.kind {
            b'E' => {
                assert!(answer.error.is_none(), "two errors for one answer");
                answer.error = Some(message);
            }
            b'D' | b'd' => answer.bytes += message.body.len() + 5,
            b'Z' => {
                answer.status = message.body[0];
                return answer;
            }
            _ => {}
        }
    }
}

fn ask(raw: &mut Raw, sql: &str) -> Answer {
    raw.send(&query(sql));
    answer(raw)
}

fn parse(name: &str, sql: &str, types: &[u32]) -> Vec<u8> {
    let mut body = format!("{name}\0{sql}\0").into_bytes();
    body.extend_from_slice(&(types.len() as u16).to_be_bytes());
    types.iter().for_each(|oid| body.extend_from_slice(&oid.to_be_bytes()));
    frame(b'P', &body)
}

fn bind(portal: &str, name: &str, values: &[&str]) -> Vec<u8> {
    let mut body = format!("{portal}\0{name}\0\0\0").into_bytes();
    body.extend_from_slice(&(values.len() as u16).to_be_bytes());
    for value in values {
        body.extend_from_slice(&(value.len() as u32).to_be_bytes());
        body.extend_from_slice(value.as_bytes());
    }
    body.extend_from_slice(&[0, 0]);
    frame(b'B', &body)
}

fn execute(portal: &str, most: u32) -> Vec<u8> {
    frame(b'E', &[format!("{portal}\0").as_bytes(), &most.to_be_bytes()].concat())
}

fn sync() -> Vec<u8> {
    frame(b'S', b"")
}

fn prepared(raw: &mut Raw, sql: &str, types: &[u32], values: &[&str]) -> Answer {
    raw.send(&[parse("", sql, types), bind("", "", values), execute("", 0), sync()].concat());
    answer(raw)
}

fn metric(gateway: &Gateway, name: &str) -> f64 {
    let (_, metrics) = gateway.get("/metrics");
    let line = metrics.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')));
    line.unwrap_or_else(|| panic!("no {name} in {metrics}")).rsplit(' ').next().unwrap().parse().unwrap()
}

fn refusals(gateway: &Gateway, limit: &str) -> f64 {
    metric(gateway, &format!("fedgate_limit_refusals_total{{limit=\"{limit}\",source=\"climscore\"}}"))
}

#[allow(clippy::disallowed_methods, reason = "servers send no event when they have done something")]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn until_at_work(gateway: &Gateway, wanted: f64) {
    until(&format!("{wanted} at work"), || {
        metric(gateway, "fedgate_limit_statements_at_work{source=\"climscore\"}") == wanted
    });
}

/// A table that nobody can read as long as this lives.
struct Locked {
    raw: Raw,
    table: String,
}

impl Locked {
    fn new(table: &str) -> Self {
        let source = filled();
        source.execute(
            UPSTREAM_DATABASE,
            &format!(
                "CREATE TABLE IF NOT EXISTS {table} (a int); GRANT SELECT ON {table} TO {UPSTREAM_USER}"
            ),
        );
        let mut raw = superuser();
        assert_eq!(raw.ask("BEGIN"), Ok(vec![]));
        let locked = raw.ask(&format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"));
        assert_eq!(locked, Ok(vec![]));
        Self { raw, table: table.to_owned() }
    }

    fn query(&self) -> Vec<u8> {
        query(&format!("SELECT * FROM {}", self.table))
    }

    fn unlock(mut self) {
        assert_eq!(self.raw.ask("ROLLBACK"), Ok(vec![]));
    }
}

/// Straight to the source.
fn superuser() -> Raw {
    let mut raw = Raw::connect(source().address().parse().unwrap());
    raw.send(&startup(V3_0, &[("user", support::SUPERUSER), ("database", UPSTREAM_DATABASE)]));
    raw.scram(support::SUPERUSER_PASSWORD, raw::Binding::Unsupported).unwrap();
    raw
}

#[test]
fn statements_at_work_are_counted_by_user_and_in_all() {
    let gateway = limited("statements = 2\nstatements_by_user = 1");
    let locked = Locked::new("locked_at_work");
    let [mut one, mut two, mut three] = ["visitor", "other", "third"].map(|user| client(&gateway, user));
    let mut again = client(&gateway, "visitor");
    one.send(&locked.query());
    until_at_work(&gateway, 1.0);

    ask(&mut again, "SELECT 1")
        .says("53400", &["1 statements of user \"visitor\"", "1 too many", "statements_by_user"]);
    prepared(&mut again, "SELECT 1", &[], &[]).says("53400", &["statements_by_user"]);
    // What moves a transaction always gets through, and a refusal fails the block.
    assert_eq!(ask(&mut again, "BEGIN").status, b'T');
    assert_eq!(ask(&mut again, "SET application_name = 'x'").error, None);
    let refused = ask(&mut again, "SELECT 1");
    refused.says("53400", &["statements_by_user"]);
    assert_eq!(refused.status, b'E');
    assert_eq!(ask(&mut again, "SELECT 1").sqlstate(), "25P02");
    assert_eq!(prepared(&mut again, "ROLLBACK", &[], &[]).status, b'I');

    two.send(&locked.query());
    until_at_work(&gateway, 2.0);
    ask(&mut three, "SELECT 1").says("53400", &["2 statements are at work", "limits.statements)"]);
    // A client that goes gives its place back.
    drop(one);
    until_at_work(&gateway, 1.0);
    assert_eq!(ask(&mut three, "SELECT 1").error, None);
    assert_eq!(ask(&mut again, "SELECT 1").error, None);
    // A session is at work once, however much it has sent.
    let many =
        [parse("", "SELECT 1", &[]), bind("", "", &[]), execute("", 0), bind("", "", &[]), execute("", 0)];
    three.send(&[&many.concat()[..], &sync()[..], &query("SELECT 2"), &query("SELECT 3; SELECT 4")].concat());
    for rows in [2, 1, 2] {
        let answer = answer(&mut three);
        assert_eq!((answer.error, answer.kinds.matches('D').count()), (None, rows));
    }
    // One that fails gives it back too, also in a pipeline.
    three.send(&[&many[0][..], &bind("", "", &["7"]), &execute("", 0), &sync()[..]].concat());
    assert_eq!(answer(&mut three).sqlstate(), "08P01");
    assert_eq!(ask(&mut three, "SELECT 1/(id - 1) FROM small").sqlstate(), "22012");
    locked.unlock();
    assert_eq!(answer(&mut two).error, None);
    until_at_work(&gateway, 0.0);
    assert_eq!((refusals(&gateway, "statements"), refusals(&gateway, "statements_by_user")), (1.0, 4.0));
    for raw in [&two, &three, &again] {
        no_leak(raw);
    }
    let log = ends_well(gateway);
    assert!(log.contains("class=\"limit\"") && log.contains("sqlstate=\"53400\""), "{log}");
}

#[test]
fn an_engines_end_users_are_counted_apart() {
    filled();
    let house = house("statements_by_user = 1")
        .source("engine = { users = [\"other\"], comment = \"fedgate query=$QUERY_ID user=$USER\" }");
    let gateway = house.start();
    let locked = Locked::new("locked_by_end_user");
    let mut one = client(&gateway, "other");
    let mut two = client(&gateway, "other");
    one.send(&query(&format!("SELECT * FROM {} /*fedgate query=q1 user=alice*/", locked.table)));
    until_at_work(&gateway, 1.0);
    let statement = |user: &str| format!("SELECT 1 /*fedgate query=q2 user={user}*/");
    ask(&mut two, &statement("alice")).says("53400", &["user \"alice\""]);
    prepared(&mut two, &statement("alice"), &[], &[]).says("53400", &["user \"alice\""]);
    assert_eq!(ask(&mut two, &statement("bob")).error, None);
    assert_eq!(prepared(&mut two, &statement("bob"), &[], &[]).error, None);
    assert_eq!(ask(&mut two, "SELECT 1").error, None);
    locked.unlock();
    assert_eq!(answer(&mut one).error, None);
    ends_well(gateway);
}

#[test]
fn an_answer_that_is_too_large_is_cut_and_the_source_told_to_stop() {
    let gateway = limited("answer_rows = 10\nanswer_bytes = \"4KiB\"");
    let mut raw = client(&gateway, "visitor");
    // Rows come as they are made.
    let rows = |count: u64| format!("SELECT pg_catalog.generate_series(1, {count})");
    assert_eq!(ask(&mut raw, &rows(10)).kinds, "TDDDDDDDDDDCZ");
    for count in [11, 12, 10_000_000_000] {
        let cut = ask(&mut raw, &rows(count));
        cut.says("54000", &["more than 10 rows", "row 11", "limits.answer_rows"]);
        assert_eq!((cut.kinds.as_str(), cut.status), ("TDDDDDDDDDDEZ", b'I'), "{count}");
        assert_eq!(ask(&mut raw, "SELECT 7").kinds, "TDCZ");
        let cut = prepared(&mut raw, &rows(count), &[], &[]);
        cut.says("54000", &["answer_rows"]);
        assert_eq!(cut.kinds, "12DDDDDDDDDDEZ", "{count}");
    }
    // By bytes: three rows of 1500.
    let wide = "SELECT pg_catalog.repeat('x', 1500) FROM pg_catalog.generate_series(1, 5)";
    let cut = ask(&mut raw, wide);
    cut.says("54000", &["more than 4096 bytes", "limits.answer_bytes"]);
    assert_eq!(cut.kinds, "TDDEZ");
    assert!(cut.bytes <= 4096);
    // A row that is larger than anything that is held here.
    let cut = ask(&mut raw, "SELECT pg_catalog.repeat('x', 3000000)");
    assert_eq!((cut.kinds.as_str(), cut.sqlstate().as_str()), ("TEZ", "54000"));
    // Each statement has its own answer.
    let two = format!("{}; {}", rows(8), rows(9));
    assert_eq!(ask(&mut raw, &two).rows(), 17);
    let two = format!("{}; {}; SELECT 1", rows(8), rows(12));
    let cut = ask(&mut raw, &two);
    assert_eq!((cut.kinds.as_str(), cut.sqlstate().as_str()), ("TDDDDDDDDCTDDDDDDDDDDEZ", "54000"));
    // COPY.
    let cut = ask(&mut raw, &format!("COPY ({}) TO STDOUT", rows(10_000_000)));
    assert_eq!((cut.kinds.as_str(), cut.sqlstate().as_str()), ("HddddddddddEZ", "54000"));
    // Without a Sync the client is not heard until it sends one.
    let flush = frame(b'H', b"");
    raw.send(&[parse("", &rows(1_000_000), &[]), bind("", "", &[]), execute("", 0), flush].concat());
    let mut kinds = String::new();
    while !kinds.ends_with('E') {
        kinds.push(raw.message().unwrap().kind.into());
    }
    assert_eq!(kinds, "12DDDDDDDDDDE");
    raw.send(
        &[parse("", "SELECT 1", &[]), bind("", "", &[]), execute("", 0), sync(), query("SELECT 2")].concat(),
    );
    assert_eq!(answer(&mut raw).kinds, "Z");
    assert_eq!(answer(&mut raw).kinds, "TDCZ");
    // What was sent behind it is answered in its own place, or was hit by the same cancel.
    for _ in 0..20 {
        raw.send(&[query(&rows(100_000)), query("SELECT 7"), query("SELECT 8")].concat());
        assert_eq!(answer(&mut raw).kinds, "TDDDDDDDDDDEZ");
        for _ in 0..2 {
            let behind = answer(&mut raw);
            assert!(behind.error.is_none() || behind.sqlstate() == "54000", "{}", behind.kinds);
            assert_eq!(behind.status, b'I');
        }
        assert_eq!(raw.ask("SELECT 9"), Ok(vec!["9".to_owned()]));
    }
    // In a block a statement that the source was still at fails it.
    ask(&mut raw, "BEGIN");
    let cut = ask(&mut raw, &rows(10_000_000_000));
    assert_eq!((cut.sqlstate().as_str(), cut.status), ("54000", b'E'));
    assert_eq!(ask(&mut raw, "ROLLBACK").kinds, "CZ");
    // Nothing of it goes on at the source.
    until("the source is idle", || {
        source().value(
            "postgres",
            &format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{UPSTREAM_USER}' AND state = 'active' AND query LIKE '%10000000000%'"),
        ) == Some("0".to_owned())
    });
    assert!(refusals(&gateway, "answer_rows") >= 30.0 && refusals(&gateway, "answer_bytes") == 2.0);
    no_leak(&raw);
    ends_well(gateway);
}

#[test]
fn portions_of_a_portal_or_cursor_are_one_answer() {
    let gateway = limited("answer_rows = 10");
    let mut raw = client(&gateway, "visitor");
    let rows = "SELECT g FROM pg_catalog.generate_series(1, 100) AS g";
    let fetch = |portal| [execute(portal, 4), sync()].concat();
    ask(&mut raw, "BEGIN");
    raw.send(&[parse("s", rows, &[]), bind("p", "s", &[]), execute("p", 4), sync()].concat());
    assert_eq!(answer(&mut raw).kinds, "12DDDDsZ");
    raw.send(&fetch("p"));
    assert_eq!(answer(&mut raw).kinds, "DDDDsZ");
    raw.send(&fetch("p"));
    let cut = answer(&mut raw);
    cut.says("54000", &["answer_rows"]);
    assert_eq!(cut.kinds, "DDEZ");
    ask(&mut raw, "ROLLBACK");
    // A portal that is made anew begins anew, also under the same name; and each has its own account.
    ask(&mut raw, "BEGIN");
    for _ in 0..4 {
        raw.send(&[bind("", "s", &[]), execute("", 4), execute("", 4), sync()].concat());
        assert_eq!(answer(&mut raw).kinds, "2DDDDsDDDDsZ");
    }
    ask(&mut raw, "COMMIT");

    let held = "DECLARE h CURSOR WITH HOLD FOR SELECT g FROM pg_catalog.generate_series(1, 100) AS g";
    for begin in ["BEGIN; DECLARE h CURSOR FOR SELECT g FROM pg_catalog.generate_series(1, 100) AS g", held] {
        assert_eq!(ask(&mut raw, begin).error, None);
        assert_eq!(ask(&mut raw, "FETCH 6 FROM h").rows(), 6);
        let cut = ask(&mut raw, "FETCH 6 FROM h");
        assert_eq!((cut.rows(), cut.sqlstate().as_str()), (4, "54000"), "{begin}");
        let cut = prepared(&mut raw, "FETCH 1 FROM h", &[], &[]);
        assert!(cut.rows() == 0 && ["54000", "25P02"].contains(&&*cut.sqlstate()), "{}", cut.sqlstate());
        ask(&mut raw, "ROLLBACK");
    }
    // What fails makes nothing anew.
    ask(&mut raw, "BEGIN; DECLARE c CURSOR FOR SELECT g FROM pg_catalog.generate_series(1, 100) AS g");
    assert_eq!(ask(&mut raw, "FETCH 6 FROM c").rows(), 6);
    ask(&mut raw, "SAVEPOINT a");
    assert_eq!(ask(&mut raw, "DECLARE c CURSOR FOR SELECT 1").sqlstate(), "42P03");
    ask(&mut raw, "ROLLBACK TO a");
    raw.send(&[parse("", "CLOSE c", &[]), sync()].concat());
    assert_eq!(answer(&mut raw).kinds, "1Z");
    assert_eq!(ask(&mut raw, "FETCH 6 FROM c").rows(), 4);
    ask(&mut raw, "ROLLBACK");
    ask(&mut raw, "BEGIN");
    let savepoint = [parse("x", "SAVEPOINT a", &[]), bind("x", "x", &[]), execute("x", 0), sync()].concat();
    raw.send(&[bind("", "s", &[]), execute("", 6), sync(), savepoint].concat());
    assert_eq!((answer(&mut raw).kinds, answer(&mut raw).kinds), ("2DDDDDDsZ".to_owned(), "12CZ".to_owned()));
    raw.send(&[parse("y", "ROLLBACK TO a", &[]), sync()].concat());
    assert_eq!(answer(&mut raw).kinds, "1Z");
    raw.send(&[bind("", "s", &["too many"]), sync(), bind("y", "y", &[]), execute("y", 0), sync()].concat());
    assert_eq!((answer(&mut raw).sqlstate(), answer(&mut raw).kinds), ("08P01".to_owned(), "2CZ".to_owned()));
    raw.send(&[execute("", 6), sync()].concat());
    assert!(answer(&mut raw).rows() <= 4);
    ask(&mut raw, "ROLLBACK");

    assert_eq!(ask(&mut raw, "CLOSE h").error, None);
    assert_eq!(ask(&mut raw, held).error, None);
    assert_eq!(ask(&mut raw, "FETCH 6 FROM h").rows(), 6);
    ends_well(gateway);
}

#[test]
fn a_users_day_ends_when_it_is_used_up() {
    let gateway = limited("day_rows = 25");
    let (mut raw, mut other) = (client(&gateway, "visitor"), client(&gateway, "other"));
    let mut second = client(&gateway, "visitor");
    for raw in [&mut raw, &mut second] {
        assert_eq!(ask(raw, "SELECT * FROM small").rows(), 10);
    }
    let cut = prepared(&mut raw, "SELECT * FROM small", &[], &[]);
    assert_eq!(cut.rows(), 5);
    cut.says("54000", &["25 rows were given", "25 may be", "limits.day_rows", "T00:00:00Z"]);
    for raw in [&mut raw, &mut second] {
        let refused = ask(raw, "SELECT 1");
        refused.says("54000", &["user \"visitor\"", "limits.day_rows"]);
        assert_eq!(refused.kinds, "EZ");
    }
    assert_eq!(ask(&mut other, "SELECT * FROM small").rows(), 10);
    // A session that goes amid its answer was given what came of it.
    let gateway = limited("day_bytes = \"1MiB\"");
    let mut raw = client(&gateway, "visitor");
    raw.send(&query("SELECT pg_catalog.repeat('x', 1000), pg_catalog.generate_series(1, 1000000000)"));
    for _ in 0..50 {
        raw.message().unwrap();
    }
    drop(raw);
    let mut raw = client(&gateway, "visitor");
    let cut = ask(&mut raw, "SELECT pg_catalog.repeat('x', 1000) FROM pg_catalog.generate_series(1, 1200)");
    assert_eq!(cut.sqlstate(), "54000");
    assert!(cut.bytes < 1 << 20, "{}", cut.bytes);
    ends_well(gateway);
}

const CROSS: &str = "SELECT * FROM big a, big b";

#[test]
fn what_would_cost_too_much_is_refused_with_the_planners_own_words() {
    let gateway = limited("cost = 10000");
    let mut raw = client(&gateway, "visitor");
    let mark = source().log_mark();
    let refused = ask(&mut raw, CROSS);
    refused
        .says("54000", &["10000 is the most", "limits.cost", "costliest node is Nested Loop", "times less"]);
    assert_eq!(refused.kinds, "EZ");
    assert_eq!(ask(&mut raw, "SELECT * FROM small a, small b").rows(), 100);
    // It is remembered, whatever stands in a comment.
    let asked = |outcome: &str| {
        metric(
            &gateway,
            &format!("fedgate_limit_estimates_total{{outcome=\"{outcome}\",source=\"climscore\"}}"),
        )
    };
    assert_eq!((asked("asked"), asked("remembered")), (2.0, 0.0));
    ask(&mut raw, &format!("{CROSS} -- once more")).says("54000", &["limits.cost"]);
    assert_eq!((asked("asked"), asked("remembered")), (2.0, 1.0));
    // With parameters, prepared by name or not, and in a pipeline.
    let with = "SELECT * FROM big a, big b WHERE a.id > $1";
    let refused = prepared(&mut raw, with, &[], &["1"]);
    refused.says("54000", &["Nested Loop"]);
    assert_eq!(refused.kinds, "EZ");
    prepared(&mut raw, with, &[20], &["1"]).says("54000", &["Nested Loop"]);
    assert_eq!(prepared(&mut raw, "SELECT * FROM small WHERE id = $1", &[23], &["7"]).rows(), 1);
    assert_eq!(
        prepared(&mut raw, "SELECT id + $2 FROM small WHERE id = $1", &[0, 20], &["7", "1"]).rows(),
        1
    );
    raw.send(
        &[
            parse("", "SELECT 1", &[]),
            bind("", "", &[]),
            execute("", 0),
            parse("x", CROSS, &[]),
            bind("", "x", &[]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    );
    let refused = answer(&mut raw);
    assert_eq!((refused.kinds.as_str(), refused.sqlstate().as_str()), ("12DCEZ", "54000"));
    // Every other way to run it.
    for sql in [
        format!("PREPARE p AS {CROSS}"),
        "PREPARE p (int) AS SELECT * FROM big a, big b WHERE a.id <> $1".to_owned(),
        format!("EXPLAIN ANALYZE {CROSS}"),
        format!("COPY ({CROSS}) TO STDOUT"),
        format!("SELECT 1; {CROSS}"),
        format!("WITH x AS (SELECT 1) {CROSS}"),
    ] {
        assert_eq!(ask(&mut raw, &sql).sqlstate(), "54000", "{sql}");
        if !sql.starts_with("SELECT 1;") {
            assert_eq!(prepared(&mut raw, &sql, &[], &[]).sqlstate(), "54000", "{sql}");
        }
    }
    ask(&mut raw, "BEGIN");
    let refused = ask(&mut raw, &format!("DECLARE c CURSOR FOR {CROSS}"));
    assert_eq!((refused.sqlstate().as_str(), refused.status), ("54000", b'E'));
    ask(&mut raw, "ROLLBACK");
    assert_eq!(ask(&mut raw, &format!("EXPLAIN {CROSS}")).error, None);
    assert_eq!(ask(&mut raw, "PREPARE s0 AS SELECT $1::int; EXECUTE s0(3)").rows(), 1);
    assert_eq!(ask(&mut raw, "EXPLAIN ANALYZE EXECUTE s0(3)").error, None);
    assert_eq!(ask(&mut raw, "COPY small TO STDOUT").rows(), 10);
    assert_eq!(ask(&mut raw, "SHOW search_path").rows(), 1);
    // What the source would not do anyhow it says itself.
    for (sql, sqlstate) in [
        ("SELECT * FROM nowhere", "42P01"),
        ("SELECT nothing FROM small", "42703"),
        ("SELECT 1/0", "22012"),
        ("SELECT 'x'::int", "22P02"),
        ("SELECT $1", "42P02"),
    ] {
        let refused = ask(&mut raw, sql);
        assert_eq!(refused.sqlstate(), sqlstate, "{sql}");
        assert!(!refused.error.unwrap().field(b'M').unwrap().contains("estimated"));
    }
    // The source has run none of it: there is no statement with two big tables in its log but as EXPLAIN.
    for logged in source().statements_since(mark) {
        let text = format!("{logged:?}");
        if text.contains("big a, big b") && !text.contains("EXPLAIN") {
            assert!(text.contains("PREPARE") && text.contains("fedgate estimate"), "{text}");
        }
    }
    no_leak(&raw);
    ends_well(gateway);
}

#[test]
fn the_planner_is_asked_as_the_client_would_ask() {
    let gateway = limited("cost = 10000");
    let cross = "SELECT * FROM t a, t b";
    let only = "SELECT * FROM solo a, solo b";
    let mut raw = client(&gateway, "visitor");
    assert_eq!(ask(&mut raw, only).sqlstate(), "42P01", "on the path of the start there is no such table");
    ask(&mut raw, "SET search_path = one");
    assert_eq!(ask(&mut raw, cross).rows(), 100);
    ask(&mut raw, "SET search_path = two");
    assert_eq!(ask(&mut raw, cross).sqlstate(), "54000");
    // By what was prepared before, too: the source plans it anew on the new path.
    ask(&mut raw, "SET search_path = one");
    raw.send(&[parse("s", cross, &[]), sync()].concat());
    assert_eq!(answer(&mut raw).kinds, "1Z");
    assert_eq!(ask(&mut raw, &format!("PREPARE q AS {cross}")).error, None);
    assert_eq!(ask(&mut raw, "EXECUTE q").rows(), 100);
    assert_eq!(prepared(&mut raw, "SET search_path TO two", &[], &[]).error, None);
    raw.send(&[bind("", "s", &[]), execute("", 0), sync()].concat());
    assert_eq!(answer(&mut raw).sqlstate(), "54000");
    assert_eq!(ask(&mut raw, "EXECUTE q").sqlstate(), "54000");
    assert_eq!(prepared(&mut raw, "EXECUTE q", &[], &[]).sqlstate(), "54000");
    // In a block it is not known which of two counts in the end.
    ask(&mut raw, "SET search_path = one");
    ask(&mut raw, "BEGIN");
    ask(&mut raw, "SET LOCAL search_path = two");
    assert_eq!(ask(&mut raw, cross).sqlstate(), "54000");
    ask(&mut raw, "ROLLBACK");
    ask(&mut raw, "BEGIN; SET search_path = three; COMMIT");
    assert_eq!(ask(&mut raw, only).sqlstate(), "54000");
    // Alone and outside of a block it is, so that a session may change it for ever.
    for number in 0..20 {
        ask(&mut raw, &format!("SET search_path = one, s{number}"));
        assert_eq!(ask(&mut raw, cross).rows(), 100, "{number}");
        assert_eq!(prepared(&mut raw, &format!("SET search_path = s{number}, one"), &[], &[]).error, None);
        assert_eq!(prepared(&mut raw, cross, &[], &[]).rows(), 100, "{number}");
    }
    for number in 0..20 {
        assert_eq!(prepared(&mut raw, &format!("SET search_path = one, t{number}"), &[], &[]).error, None);
        assert_eq!(prepared(&mut raw, cross, &[], &[]).rows(), 100, "{number}");
    }
    // In one text, or in one pipeline, it counts for what stands behind it.
    assert_eq!(ask(&mut raw, &format!("SET search_path = two; {cross}")).sqlstate(), "54000");
    ask(&mut raw, "SET search_path = one");
    raw.send(
        &[
            parse("", "SET search_path = two", &[]),
            bind("", "", &[]),
            execute("", 0),
            parse("", cross, &[]),
            bind("", "", &[]),
            execute("", 0),
            sync(),
        ]
        .concat(),
    );
    assert_eq!(answer(&mut raw).sqlstate(), "54000");
    ask(&mut raw, "SET search_path = one");
    ask(&mut raw, "BEGIN");
    for number in 0..20 {
        ask(&mut raw, &format!("SET search_path = one, s{number}"));
    }
    ask(&mut raw, cross).says("53000", &["search_path so often"]);
    ask(&mut raw, "ROLLBACK");
    ask(&mut raw, "RESET search_path");
    assert_eq!(ask(&mut raw, cross).sqlstate(), "42P01");
    // By a startup setting.
    let mut raw = Raw::connect(gateway.address());
    let options = [("user", "visitor"), ("database", "climscore"), ("options", "-c search_path=two")];
    raw.send(&startup(V3_0, &options));
    raw.ready();
    assert_eq!(ask(&mut raw, cross).sqlstate(), "54000");
    // What a constant means hangs on settings: an error of the gateway's own connection proves nothing then.
    let dated = format!("{cross} WHERE '31.12.2020'::date > '2020-01-01'");
    assert_eq!(ask(&mut raw, &dated).sqlstate(), "22008");
    ask(&mut raw, "SET DateStyle = German");
    ask(&mut raw, &dated).says("53000", &["could not be estimated", "22008"]);
    ends_well(gateway);
}

/// What the planner of the client's session makes of a text, and that of the gateway's own connection does not.
#[test]
fn nobody_is_let_through_by_what_only_the_clients_session_knows() {
    let gateway = limited("cost = 10000");
    let mut wrong = Vec::new();
    // What begins as pg_dump does goes on.
    let mut raw = client(&gateway, "visitor");
    ask(&mut raw, "SELECT pg_catalog.set_config('search_path', '', false)");
    assert_eq!(ask(&mut raw, "SELECT * FROM public.small").rows(), 10);
    let cross = "SELECT count(*) FROM t a, t b";
    // Runs for hours if it runs.
    let hashed = "SELECT count(*) FROM big a JOIN big b USING (id)";
    let slow = "SELECT count(*) FROM big WHERE id NOT IN (SELECT id FROM big)";
    let by_name = "SELECT count(*) FROM big a, big b WHERE a.id < \
         1 / (CASE WHEN current_setting('application_name') = 'fedgate own queries' THEN 0 ELSE 1 END)";
    let by_cast = "SELECT count(*) FROM big a, big b WHERE a.id < (CASE WHEN \
         current_setting('application_name') = 'fedgate own queries' THEN 'x' ELSE '1' END)::text::int";
    for (note, options, before, sql) in [
        ("set_config", "", &["SELECT set_config('search_path', 'two', false)"][..], cross),
        ("set_config of two", "", &["SELECT 1, pg_catalog.set_config('Search_Path', 'two', false)"], cross),
        ("set_config in a block", "", &["BEGIN", "SELECT set_config('search_path', 'two', true)"], cross),
        (
            "set_config in one text",
            "",
            &[],
            "SELECT set_config('search_path', 'two', false); SELECT count(*) FROM t a, t b",
        ),
        ("an error of the estimate alone", "", &[], by_name),
        ("a bad value in the estimate alone", "", &[], by_cast),
        (
            "costs that are nothing",
            "-c cpu_tuple_cost=0 -c cpu_operator_cost=0 -c seq_page_cost=0",
            &[],
            CROSS,
        ),
        (
            "set_config once more",
            "-c search_path=two",
            &[
                "SET search_path = one",
                "PREPARE p AS SELECT set_config('search_path', 'two', false)",
                "EXECUTE p",
            ],
            cross,
        ),
        (
            "prepared before",
            "",
            &[
                "PREPARE p AS SELECT count(*) FROM big a JOIN big b USING (id)",
                "SET enable_hashjoin = off; SET enable_mergejoin = off",
            ],
            "EXECUTE p",
        ),
        ("another join", "", &["SET enable_hashjoin = off; SET enable_mergejoin = off"], hashed),
        (
            "another join by set_config",
            "",
            &[
                "SELECT set_config(a, b, false) FROM (VALUES ('x', 'y')) AS v (a, b)",
                "SELECT set_config('enable_hashjoin', 'off', false), set_config('enable_mergejoin', 'off', false)",
            ],
            hashed,
        ),
        ("no room for a hash", "", &["SET work_mem = '64kB'"], slow),
    ] {
        let mut raw = Raw::connect(gateway.address());
        let options = format!("-c statement_timeout=2s {options}");
        raw.send(&startup(V3_0, &[("user", "visitor"), ("database", "climscore"), ("options", &options)]));
        raw.ready();
        for sql in before {
            ask(&mut raw, sql);
        }
        let said = ask(&mut raw, sql);
        if !matches!(said.sqlstate().as_str(), "54000" | "53000") {
            wrong.push(format!("{note}: {} {}", said.kinds, said.sqlstate()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    ends_well(gateway);
}

#[test]
fn a_cost_that_cannot_be_had_is_no_pass() {
    let gateway = limited("cost = 10000\ncost_timeout = \"300ms\"\ncost_connections = 1");
    let locked = Locked::new("locked_for_the_planner");
    let mut raw = client(&gateway, "visitor");
    let refused = ask(&mut raw, &format!("SELECT * FROM {}", locked.table));
    refused.says("53000", &["could not be estimated", "300ms", "limits.cost_timeout"]);
    prepared(&mut raw, &format!("SELECT * FROM {} WHERE a = $1", locked.table), &[], &["1"])
        .says("53000", &["limits.cost_timeout"]);
    // Others do not wait for it longer than they would.
    let mut other = client(&gateway, "other");
    until("the planner answers again", || ask(&mut other, "SELECT 1").error.is_none());
    let table = locked.table.clone();
    locked.unlock();
    until("the planner answers", || ask(&mut raw, &format!("SELECT * FROM {table}")).error.is_none());
    // Its connection is cut: another one is made.
    source().execute(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fedgate own queries' AND query LIKE '%EXPLAIN%'",
    );
    assert_eq!(ask(&mut raw, "SELECT 2").error, None);
    assert_eq!(
        refusals(&gateway, "no_estimate"),
        metric(&gateway, "fedgate_limit_estimates_total{outcome=\"failed\",source=\"climscore\"}")
    );
    ends_well(gateway);
}

#[test]
fn quiet_hours_begin_and_end_with_a_reload() {
    let quiet = house("quiet_hours = [\"00:00-24:00\"]");
    let gateway = quiet.start();
    let mut raw = client(&gateway, "visitor");
    let refused = ask(&mut raw, "SELECT 1");
    refused.says("53400", &["quiet hours", "00:00-24:00", "have no end"]);
    assert_eq!(refused.kinds, "EZ");
    prepared(&mut raw, "SELECT 1", &[], &[]).says("53400", &["quiet hours"]);
    assert_eq!(ask(&mut raw, "BEGIN").status, b'T');
    assert_eq!(ask(&mut raw, "ROLLBACK").status, b'I');
    assert_eq!(prepared(&mut raw, "COMMIT", &[], &[]).error, None);
    assert_eq!(refusals(&gateway, "quiet_hours"), 2.0);

    let change = |limits: &str| {
        let toml = house(limits).toml().replace("{dir}", &gateway.folder().display().to_string());
        let mark = gateway.log_mark();
        std::fs::write(gateway.config_file(), toml).unwrap();
        gateway.signal("HUP");
        gateway.wait_for_line_after(mark, "configuration reloaded");
    };
    change("");
    assert_eq!(ask(&mut raw, "SELECT 1").error, None);
    change("answer_rows = 3");
    assert_eq!(ask(&mut raw, "SELECT * FROM small").rows(), 3);
    change("cost = 1");
    assert_eq!(ask(&mut raw, CROSS).sqlstate(), "54000");
    ends_well(gateway);
}

#[test]
fn the_breaker_lets_fewer_through_while_the_source_suffers() {
    let gateway = limited("breaker = { active_sessions = 4, every = \"100ms\" }");
    let locked = Locked::new("locked_for_the_breaker");
    let ceiling = || metric(&gateway, "fedgate_limit_breaker_ceiling{source=\"climscore\"}");
    let mut sessions: Vec<Raw> = (0..8).map(|_| client(&gateway, "visitor")).collect();
    for raw in &mut sessions {
        raw.send(&locked.query());
    }
    until("it holds back", || ceiling() > 0.0);
    let mut raw = client(&gateway, "other");
    let refused = ask(&mut raw, "SELECT 1");
    refused.says(
        "53400",
        &["8 statements are at work", "sessions are active there", "limits.breaker.active_sessions"],
    );
    until("it goes down to one", || ceiling() == 1.0);
    gateway.wait_for_line("the source suffers");
    locked.unlock();
    for raw in &mut sessions {
        assert_eq!(answer(raw).error, None);
    }
    until("it lets everything through again", || ceiling() == 0.0);
    gateway.wait_for_line("the source has recovered");
    assert_eq!(ask(&mut raw, "SELECT 1").error, None);
    assert!(metric(&gateway, "fedgate_limit_source_latency_seconds{source=\"climscore\"}") > 0.0);
    ends_well(gateway);
}

#[test]
fn a_limit_leaves_one_event_one_line_and_one_count_for_each_refusal() {
    let audit = "[audit]\nkind = \"file\"\npath = \"{dir}/audit.jsonl\"\nspool = \"{dir}/spool\"\nwindow = \"100ms\"\n";
    let gateway = house("answer_rows = 3\ncost = 10000").more(audit).start();
    let mut raw = client(&gateway, "visitor");
    assert_eq!(ask(&mut raw, "SELECT * FROM small WHERE id > 1").sqlstate(), "54000");
    assert_eq!(ask(&mut raw, CROSS).sqlstate(), "54000");
    // Behind messages that may fail yet, it is refused when they have not.
    raw.send(&[parse("", "SELECT 1", &[]), bind("", "", &[]), execute("", 0), query(CROSS)].concat());
    assert_eq!(answer(&mut raw).kinds, "12DCEZ");
    raw.send(
        &[parse("", "SELECT 1/0", &[]), bind("", "", &[]), execute("", 0), query(CROSS), sync()].concat(),
    );
    assert_eq!(answer(&mut raw).sqlstate(), "22012");
    assert_eq!((refusals(&gateway, "answer_rows"), refusals(&gateway, "cost")), (1.0, 2.0));
    assert_eq!(metric(&gateway, "fedgate_refusals_total{class=\"limit\",source=\"climscore\"}"), 3.0);
    let path = gateway.folder().join("audit.jsonl");
    let events = || -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    };
    let counted = || -> u64 { events().iter().filter_map(|event| event["count"].as_u64()).sum() };
    until("the events arrive", || counted() == 3);
    for event in events() {
        assert_eq!((&event["unmapped"]["class"], &event["status_code"]), (&"limit".into(), &"54000".into()));
        assert_eq!(event["actor"]["user"]["name"], "visitor");
    }
    let log = ends_well(gateway);
    assert_eq!(
        log.lines().filter(|line| line.contains("refused") && line.contains("54000")).count(),
        3,
        "{log}"
    );
}

#[test]
fn a_source_that_does_not_answer_suffers() {
    let server = filled().address().parse().unwrap();
    let door = Door::open(Behind::Server(server));
    let limits = "breaker = { latency = \"400ms\", timeout = \"400ms\", every = \"100ms\", least = 1 }";
    let gateway = house(limits).hosts(&door.address()).start();
    let ceiling = || metric(&gateway, "fedgate_limit_breaker_ceiling{source=\"climscore\"}");
    let samples = |outcome: &str| {
        metric(
            &gateway,
            &format!("fedgate_limit_samples_total{{outcome=\"{outcome}\",source=\"climscore\"}}"),
        )
    };
    until("it was looked at", || samples("ok") > 0.0);
    let locked = Locked::new("locked_in_silence");
    let (mut one, mut two) = (client(&gateway, "visitor"), client(&gateway, "other"));
    one.send(&locked.query());
    until_at_work(&gateway, 1.0);
    // Sessions that are open go on; nobody new gets an answer, the next probe's connection among them.
    door.set(Behind::Silence(Vec::new()));
    source().execute(
        "postgres",
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'fedgate own queries' AND query = 'SELECT 1'",
    );
    until("it holds back", || ceiling() == 1.0 && samples("failed") > 0.0);
    ask(&mut two, "SELECT 1")
        .says("53400", &["did not answer a probe within 400ms", "limits.breaker.timeout"]);
    door.set(Behind::Server(server));
    until("it lets everything through again", || ceiling() == 0.0);
    assert_eq!(ask(&mut two, "SELECT 1").error, None);
    locked.unlock();
    assert_eq!(answer(&mut one).error, None);
    ends_well(gateway);
}

#[test]
fn standbys_are_preferred_or_required_and_their_lag_is_seen() {
    let primary = Postgres::climscore(support::Options::default());
    let standby = Postgres::standby(&primary);
    let hosts = format!("{}\", \"{}", primary.address(), standby.address());
    let setup = |hosts: &str, more: &str| {
        let toml = support::trusting(&primary)
            .toml
            .replace(&primary.address(), hosts)
            .replace("tls = \"disable\"", &format!("tls = \"disable\"\n{more}"));
        Setup::new(toml).file("source-password", support::SUPERUSER_PASSWORD)
    };
    let asks = |gateway: &Gateway| client(gateway, "visitor").ask("SELECT pg_catalog.pg_is_in_recovery()");
    let (yes, no) = (Ok(vec!["t".to_owned()]), Ok(vec!["f".to_owned()]));
    for (wanted, found) in [
        ("any", &no),
        ("primary", &no),
        ("read-write", &no),
        ("standby", &yes),
        ("read-only", &yes),
        ("prefer-standby", &yes),
    ] {
        let gateway = Gateway::start(setup(&hosts, &format!("target_session_attrs = \"{wanted}\"")));
        for _ in 0..3 {
            assert_eq!(asks(&gateway), *found, "{wanted}");
        }
        ends_well(gateway);
    }
    let alone = primary.address();
    let gateway = Gateway::start(setup(&alone, "target_session_attrs = \"prefer-standby\""));
    assert_eq!(asks(&gateway), no);
    ends_well(gateway);
    let gateway = Gateway::start(setup(&standby.address(), "target_session_attrs = \"primary\""));
    let mut raw = Raw::connect(gateway.address());
    let refused = raw.send(&startup(V3_0, &[("user", "visitor"), ("database", "climscore")])).refused();
    assert_eq!(refused.sqlstate, "57P03");
    assert!(!refused.detail.contains("127.0.0.1"), "{refused:?}");
    ends_well(gateway);

    // A standby that does not replay any more falls behind.
    let limits = "target_session_attrs = \"standby\"\nlimits = { breaker = { replication_lag = \"200ms\", every = \"100ms\" } }";
    let gateway = Gateway::start(setup(&hosts, limits));
    let ceiling = || metric(&gateway, "fedgate_limit_breaker_ceiling{source=\"climscore\"}");
    let samples = || metric(&gateway, "fedgate_limit_samples_total{outcome=\"ok\",source=\"climscore\"}");
    until("it was looked at", || samples() >= 3.0);
    assert_eq!(ceiling(), 0.0, "a standby that has replayed everything is not behind");
    standby.execute("postgres", "SELECT pg_wal_replay_pause()");
    primary.execute("postgres", "CREATE TABLE later (a int)");
    until("it holds back", || ceiling() > 0.0);
    assert!(metric(&gateway, "fedgate_limit_source_replication_lag_seconds{source=\"climscore\"}") > 0.2);
    standby.execute("postgres", "SELECT pg_wal_replay_resume()");
    until("it lets everything through again", || ceiling() == 0.0);
    ends_well(gateway);
}
