//! Deep and long texts: neither the stack nor the clock may give way.
//!
//! Invariant: every text here is answered on a 2 MiB stack within seconds, whatever the answer.

use std::time::{Duration, Instant};

use fedgate::guard::{Context, Mode, Step, judge};
use fedgate::ids::{RefusalClass, SourceName};
use fedgate::sql::Limits;
use fedgate::sql::catalogue::Catalogue;

/// Of the build with debug assertions on a busy machine; doubling work would take days.
const PATIENCE: Duration = Duration::from_secs(20);

/// Judges on a thread of the size that tokio's workers have; the class of the refusal, if it is one.
fn judged(name: &str, sql: String) -> Option<RefusalClass> {
    let start = Instant::now();
    let thread = std::thread::Builder::new().stack_size(2 << 20).spawn(move || {
        let catalogue = Catalogue::stock(15).unwrap();
        let (limits, source) = (Limits::default(), SourceName::new("s"));
        let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
        let verdict = judge(sql.as_bytes(), &ctx);
        verdict.steps.iter().find_map(|step| match step {
            Step::Refuse(refusal) => Some(refusal.class),
            Step::Admit(_) => None,
        })
    });
    let class = thread.unwrap().join().unwrap_or_else(|_| panic!("{name}: the thread died"));
    assert!(start.elapsed() < PATIENCE, "{name}: {:?}", start.elapsed());
    class
}

fn nested(open: &str, middle: &str, close: &str, times: usize) -> String {
    format!("{}{middle}{}", open.repeat(times), close.repeat(times))
}

#[test]
fn nestings_of_every_kind() {
    for times in [10, 30, 60, 99, 500, 20_000] {
        for (name, sql) in [
            ("brackets", format!("SELECT {}", nested("(", "1", ")", times))),
            ("calls", format!("SELECT {}", nested("lower(", "'a'", ")", times))),
            ("calls with two arguments", format!("SELECT {}", nested("coalesce(1, ", "2", ")", times))),
            ("calls in FROM", format!("SELECT * FROM {}", nested("lower(", "'a'", ")", times))),
            ("subqueries", nested("SELECT (", "SELECT 1", ")", times)),
            ("derived tables", nested("SELECT * FROM (", "SELECT 1", ") x", times)),
            ("brackets in FROM", format!("SELECT * FROM {}", nested("(", "a", ")", times))),
            ("joins in brackets", format!("SELECT * FROM {}", nested("(", "a", " CROSS JOIN b)", times))),
            ("brackets round a query", nested("(", "SELECT 1", ")", times)),
            ("EXISTS", format!("SELECT {}", nested("EXISTS (SELECT ", "1", ")", times))),
            ("IN", format!("SELECT 1 WHERE {}", nested("1 IN (SELECT 1 WHERE ", "true", ")", times))),
            ("CASE", format!("SELECT {}", nested("CASE WHEN ", "true", " THEN 1 END", times))),
            ("ELSE", format!("SELECT {}", nested("CASE WHEN true THEN 1 ELSE ", "2", " END", times))),
            ("NOT", format!("SELECT {} true", "NOT ".repeat(times))),
            ("minus", format!("SELECT {} 1", "- ".repeat(times))),
            ("plus", format!("SELECT {} 1", "+ ".repeat(times))),
            ("tilde", format!("SELECT {} 1", "~ ".repeat(times))),
            ("arrays", format!("SELECT {}", nested("ARRAY[", "1", "]", times))),
            ("inner arrays", format!("SELECT ARRAY{}", nested("[", "1", "]", times))),
            ("subscripts inside", format!("SELECT a{}", nested("[a", "[1]", "]", times))),
            ("casts", format!("SELECT {}", nested("CAST(", "1", " AS int)", times))),
            ("WITH", format!("{}SELECT 1{}", "WITH a AS (".repeat(times), ") SELECT 1".repeat(times))),
            ("EXTRACT", format!("SELECT {}", nested("extract(year FROM ", "now()", ")", times))),
            ("ROW", format!("SELECT {}", nested("ROW(", "1", ")", times))),
            ("intervals", format!("SELECT {} 1", "interval ".repeat(times))),
            ("LATERAL", nested("SELECT * FROM t, LATERAL (", "SELECT 1", ") x", times)),
            ("open brackets", format!("SELECT {}", "(".repeat(times))),
            ("open calls", format!("SELECT {}", "f(".repeat(times))),
            ("open subscripts", format!("SELECT a{}", "[".repeat(times))),
            ("open subqueries", "SELECT * FROM (".repeat(times)),
            ("comments", format!("SELECT {}", nested("/*", "", "*/ 1", times))),
            ("EXPLAIN", format!("{}SELECT 1", "EXPLAIN ".repeat(times))),
            ("PREPARE", format!("{}SELECT 1", "PREPARE p AS ".repeat(times))),
            ("COPY", format!("{}SELECT 1{}", "COPY (".repeat(times), ") TO STDOUT".repeat(times))),
            ("OVER", format!("SELECT {}", nested("count(*) OVER (ORDER BY ", "1", ")", times))),
            ("FILTER", format!("SELECT {}", nested("count(*) FILTER (WHERE ", "true", ")", times))),
            ("BETWEEN", format!("SELECT {} 1", "1 BETWEEN 2 AND ".repeat(times))),
        ] {
            judged(&format!("{name} × {times}"), sql);
        }
    }
}

#[test]
fn chains_of_every_kind() {
    for times in [100, 1_000, 4_000, 100_000] {
        for (name, sql) in [
            ("sums", format!("SELECT 1{}", " + 1".repeat(times))),
            ("ORs", format!("SELECT 1 WHERE a = 1{}", " OR a = 1".repeat(times))),
            ("concatenations", format!("SELECT ''{}", " || ''".repeat(times))),
            ("casts", format!("SELECT 1{}", "::int".repeat(times))),
            ("subscripts", format!("SELECT a{}", "[1]".repeat(times))),
            ("fields", format!("SELECT (a){}", ".b".repeat(times))),
            ("names", format!("SELECT a{}", ".b".repeat(times))),
            ("IS NULL", format!("SELECT 1{}", " IS NULL".repeat(times))),
            ("collations", format!("SELECT a{}", " COLLATE \"C\"".repeat(times))),
            ("AT TIME ZONE", format!("SELECT now(){}", " AT TIME ZONE 'UTC'".repeat(times))),
            ("unions", format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(times))),
            ("joins", format!("SELECT * FROM a{}", " CROSS JOIN b".repeat(times))),
            (
                "joins with late conditions",
                format!("SELECT * FROM a{}{}", " JOIN b".repeat(times), " ON true".repeat(times)),
            ),
            ("commas in FROM", format!("SELECT * FROM a{}", ", b".repeat(times))),
            ("lists", format!("SELECT 1 WHERE 1 IN (1{})", ", 1".repeat(times))),
            ("rows", format!("VALUES (1){}", ", (1)".repeat(times))),
            ("cases", format!("SELECT CASE{} END", " WHEN a THEN 1".repeat(times))),
            ("statements", "SELECT 1;".repeat(times)),
            ("CTEs", format!("WITH a AS (SELECT 1){} SELECT 1", ", a AS (SELECT 1)".repeat(times))),
            ("operators", format!("SELECT 1{}", " <-> 1".repeat(times))),
            ("minus signs", format!("SELECT 1{}", " - - 1".repeat(times))),
            ("LIKE", format!("SELECT 'a'{}", " LIKE 'a'".repeat(times))),
            ("strings that go on", format!("SELECT 'a'{}", "\n'a'".repeat(times))),
        ] {
            judged(&format!("{name} × {times}"), sql);
        }
    }
}

#[test]
fn long_lists_are_no_reason_to_refuse() {
    for (name, sql) in [
        ("ten thousand constants", format!("SELECT 1 WHERE 1 IN (1{})", ", 1".repeat(10_000))),
        ("a thousand conditions", format!("SELECT 1 WHERE a = 1{}", " OR a = 1".repeat(1_000))),
        ("five hundred unions", format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(500))),
        ("forty brackets", format!("SELECT {}", nested("(", "1", ")", 40))),
        ("forty calls", format!("SELECT {}", nested("lower(", "'a'", ")", 40))),
        ("twenty derived tables", nested("SELECT * FROM (", "SELECT 1", ") x", 20)),
        ("a hundred joins", format!("SELECT * FROM a{}", " JOIN b USING (i)".repeat(100))),
        ("a long string", format!("SELECT '{}'", "x".repeat(900_000))),
    ] {
        assert_eq!(judged(name, sql), None, "{name}");
    }
}

#[test]
fn what_is_too_much_is_refused_as_such() {
    for (name, sql) in [
        ("bytes", format!("SELECT '{}'", "x".repeat(1 << 20))),
        ("tokens", format!("SELECT 1{}", ", 1".repeat(1 << 17))),
        ("words", format!("SELECT a{}", ", a".repeat(1 << 15))),
        ("a row of signs", format!("SELECT {} 1", "+".repeat((1 << 20) - 20))),
        ("brackets", format!("SELECT {}", nested("(", "1", ")", 200))),
        ("a chain", format!("SELECT 1{}", " + 1".repeat(50_000))),
        ("calls", format!("SELECT {}", nested("lower(", "'a'", ")", 150))),
    ] {
        assert_eq!(judged(name, sql), Some(RefusalClass::Limit), "{name}");
    }
}
