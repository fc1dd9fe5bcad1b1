//! Families of texts that are large on purpose: each makes a text of about so many bytes.
//!
//! Invariant: a family keeps its shape as it grows, so that twice the bytes ask for twice the work and
//! not more. Depth stays under the guard's bound where the family is to be parsed at all.

/// A name and a maker of texts of about `bytes` bytes.
pub type Family = (&'static str, fn(usize) -> String);

fn fill(head: &str, unit: &str, between: &str, tail: &str, bytes: usize) -> String {
    let room = bytes.saturating_sub(head.len() + tail.len());
    let times = (room / (unit.len() + between.len())).max(1);
    let mut text = String::with_capacity(bytes + unit.len());
    text.push_str(head);
    for number in 0..times {
        if number > 0 {
            text.push_str(between);
        }
        text.push_str(unit);
    }
    text.push_str(tail);
    text
}

fn nested(open: &str, middle: &str, close: &str, times: usize) -> String {
    format!("{}{middle}{}", open.repeat(times), close.repeat(times))
}

/// Half of it opens and half of it closes.
fn nest(head: &str, open: &str, middle: &str, close: &str, tail: &str, bytes: usize) -> String {
    let times = (bytes.saturating_sub(head.len() + tail.len()) / (open.len() + close.len())).max(1);
    format!("{head}{}{tail}", nested(open, middle, close, times))
}

/// All families.
pub const FAMILIES: &[Family] = &[
    // Nested without end: refused by the bound on depth, unread from there on.
    ("nested brackets", |n| nest("SELECT ", "(", "1", ")", "", n)),
    ("nested calls", |n| nest("SELECT ", "f(", "1", ")", "", n)),
    ("nested subqueries", |n| nest("", "SELECT (", "SELECT 1", ")", "", n)),
    ("nested comments", |n| nest("SELECT ", "/*", "", "*/", "1", n)),
    ("open brackets", |n| fill("SELECT ", "(", "", "", n)),
    ("open calls", |n| fill("SELECT ", "f(", "", "", n)),
    ("nested CASE", |n| nest("SELECT ", "CASE WHEN ", "true", " THEN 1 END", "", n)),
    ("NOT without end", |n| fill("SELECT ", "NOT ", "", "true", n)),
    ("signs without end", |n| fill("SELECT ", "- ", "", "1", n)),
    ("EXPLAIN without end", |n| fill("", "EXPLAIN ", "", "SELECT 1", n)),
    // Nested as deep as allowed, side by side.
    ("brackets side by side", |n| fill("SELECT ", &nested("(", "1", ")", 60), ",", "", n)),
    ("calls side by side", |n| fill("SELECT ", &nested("lower(", "a", ")", 60), ",", "", n)),
    ("short calls side by side", |n| fill("SELECT ", "f(f(f(f(1))))", ",", "", n)),
    ("tuples side by side", |n| fill("SELECT ", &nested("(1,", "1", ")", 40), ",", "", n)),
    ("rows side by side", |n| fill("SELECT ", &nested("ROW(", "1", ",2)", 40), ",", "", n)),
    ("subqueries side by side", |n| fill("SELECT ", &nested("(SELECT ", "1", ")", 30), ",", "", n)),
    ("EXISTS side by side", |n| fill("SELECT ", &nested("EXISTS(SELECT ", "1", ")", 30), ",", "", n)),
    ("CASE side by side", |n| fill("SELECT ", &nested("CASE WHEN ", "a", " THEN 1 END", 40), ",", "", n)),
    ("ELSE side by side", |n| {
        fill("SELECT ", &nested("CASE WHEN a THEN 1 ELSE ", "2", " END", 40), ",", "", n)
    }),
    ("arrays side by side", |n| fill("SELECT ", &nested("ARRAY[", "1", "]", 40), ",", "", n)),
    ("inner arrays side by side", |n| {
        fill("SELECT ", &format!("ARRAY{}", nested("[", "1", "]", 40)), ",", "", n)
    }),
    ("casts side by side", |n| fill("SELECT ", &nested("CAST(", "1", " AS int)", 40), ",", "", n)),
    ("subscripts side by side", |n| fill("SELECT ", &nested("a[", "1", "]", 40), ",", "", n)),
    ("windows side by side", |n| fill("SELECT ", &nested("f() OVER (ORDER BY ", "1", ")", 30), ",", "", n)),
    ("derived tables side by side", |n| {
        fill("SELECT 1 FROM ", &nested("(SELECT 1 FROM ", "t", ") x", 30), ",", "", n)
    }),
    ("brackets in FROM side by side", |n| {
        fill("SELECT 1 FROM ", &nested("(", "a CROSS JOIN b", ")", 30), ",", "", n)
    }),
    ("joins in brackets side by side", |n| {
        fill("SELECT 1 FROM ", &nested("(", "a", " CROSS JOIN b)", 30), ",", "", n)
    }),
    ("IN side by side", |n| fill("SELECT ", &nested("1 IN (SELECT 1 WHERE ", "true", ")", 30), ",", "", n)),
    ("JSON_TABLE columns", |n| {
        fill(
            "SELECT * FROM JSON_TABLE('{}', '$' COLUMNS (",
            &nested("NESTED PATH '$' COLUMNS (", "a int", ")", 20),
            ",",
            ")) x",
            n,
        )
    }),
    ("XMLTABLE columns", |n| {
        fill("SELECT * FROM XMLTABLE('/a' PASSING x COLUMNS ", "a int PATH 'b'", ",", ") x", n)
    }),
    ("open brackets that break off", |n| {
        fill("SELECT ", &nested("(", "1", ")", 60), ",", ", ((((((((((((((((((((((((((((((1 1", n)
    }),
    ("values", |n| fill("VALUES ", "(1,'a',NULL)", ",", "", n)),
    ("an IN list", |n| fill("SELECT 1 WHERE a IN (", "1", ",", ")", n)),
    ("an IN list of strings", |n| fill("SELECT 1 WHERE a IN (", "'a'", ",", ")", n)),
    ("columns", |n| fill("SELECT ", "a", ",", "", n)),
    ("columns with their tables", |n| fill("SELECT ", "a.b", ",", "", n)),
    ("aliases", |n| fill("SELECT ", "a b", ",", "", n)),
    ("parameters", |n| fill("SELECT ", "$1", ",", "", n)),
    ("typed constants", |n| fill("SELECT ", "date ''", ",", "", n)),
    ("calls", |n| fill("SELECT ", "f()", ",", "", n)),
    ("known calls", |n| fill("SELECT ", "abs(1)", ",", "", n)),
    ("casts", |n| fill("SELECT ", "a::text", ",", "", n)),
    ("tables", |n| fill("SELECT 1 FROM ", "t", ",", "", n)),
    ("function tables", |n| fill("SELECT 1 FROM ", "unnest(a)", ",", "", n)),
    ("ordering", |n| fill("SELECT 1 ORDER BY ", "a DESC NULLS LAST", ",", "", n)),
    ("grouping", |n| fill("SELECT 1 GROUP BY ", "ROLLUP(a,b)", ",", "", n)),
    ("windows", |n| fill("SELECT 1 WINDOW ", "w AS (ORDER BY a)", ",", "", n)),
    ("CTEs", |n| fill("WITH ", "a AS (SELECT 1)", ",", " SELECT 1", n)),
    ("CTEs of CTEs", |n| {
        fill("WITH ", &nested("a AS (WITH ", "b AS (SELECT 1)", " SELECT 1)", 20), ",", " SELECT 1", n)
    }),
    ("statements", |n| fill("", "SELECT 1", ";", "", n)),
    ("empty statements", |n| fill("", ";", "", "", n)),
    ("settings", |n| fill("", "SET extra_float_digits = 1", ";", "", n)),
    ("names of settings", |n| fill("SET search_path = ", "a", ",", "", n)),
    ("EXPLAIN options", |n| fill("EXPLAIN (", "verbose", ",", ") SELECT 1", n)),
    ("EXECUTE arguments", |n| fill("EXECUTE p (", "1", ",", ")", n)),
    ("types of PREPARE", |n| fill("PREPARE p (", "int", ",", ") AS SELECT 1", n)),
    // Chains: what makes left-deep trees. The bound on a run refuses the longest.
    ("sums", |n| fill("SELECT 1", "+1", "", "", n)),
    ("sums as long as allowed", |n| fill("SELECT ", &format!("1{}", "+1".repeat(9_000)), ",", "", n)),
    ("ORs as long as allowed", |n| fill("SELECT ", &format!("a{}", " OR a=1".repeat(4_000)), ",", "", n)),
    ("concatenations as long as allowed", |n| {
        fill("SELECT ", &format!("a{}", "||a".repeat(9_000)), ",", "", n)
    }),
    ("custom operators as long as allowed", |n| {
        fill("SELECT ", &format!("a{}", "@#@a".repeat(9_000)), ",", "", n)
    }),
    ("casts as long as allowed", |n| fill("SELECT ", &format!("a{}", "::int".repeat(9_000)), ",", "", n)),
    ("subscripts as long as allowed", |n| fill("SELECT ", &format!("a{}", "[1]".repeat(9_000)), ",", "", n)),
    ("fields as long as allowed", |n| fill("SELECT ", &format!("(a){}", ".b".repeat(9_000)), ",", "", n)),
    ("names as long as allowed", |n| fill("SELECT ", &format!("a{}", ".b".repeat(9_000)), ",", "", n)),
    ("method calls as long as allowed", |n| {
        fill("SELECT ", &format!("(a){}", ".b()".repeat(4_000)), ",", "", n)
    }),
    ("IS NULL as long as allowed", |n| {
        fill("SELECT ", &format!("a{}", " IS NULL".repeat(9_000)), ",", "", n)
    }),
    ("LIKE as long as allowed", |n| fill("SELECT ", &format!("a{}", " LIKE a".repeat(9_000)), ",", "", n)),
    ("BETWEEN", |n| fill("SELECT ", &format!("a{}", " BETWEEN a AND a".repeat(60)), ",", "", n)),
    ("AT TIME ZONE as long as allowed", |n| {
        fill("SELECT ", &format!("a{}", " AT TIME ZONE a".repeat(4_000)), ",", "", n)
    }),
    ("COLLATE as long as allowed", |n| {
        fill("SELECT ", &format!("a{}", " COLLATE b".repeat(9_000)), ",", "", n)
    }),
    ("unions as long as allowed", |n| {
        fill("SELECT ", &format!("(SELECT 1{})", " UNION SELECT 1".repeat(4_000)), ",", "", n)
    }),
    ("intersections", |n| fill("SELECT 1", " INTERSECT SELECT 1", "", "", n)),
    ("joins as long as allowed", |n| {
        fill("SELECT ", &format!("(SELECT 1 FROM a{})", " CROSS JOIN b".repeat(4_000)), ",", "", n)
    }),
    ("joins with conditions", |n| {
        fill("SELECT ", &format!("(SELECT 1 FROM a{})", " JOIN b ON a=b".repeat(2_000)), ",", "", n)
    }),
    ("joins with late conditions", |n| {
        let deep = format!("(SELECT 1 FROM a{}{})", " JOIN b".repeat(40), " ON a".repeat(40));
        fill("SELECT ", &deep, ",", "", n)
    }),
    ("joins with very late conditions", |n| {
        let times = (n / 13).max(1);
        format!("SELECT 1 FROM a{}{}", " JOIN b".repeat(times), " ON a".repeat(times))
    }),
    ("WHEN as long as allowed", |n| {
        fill("SELECT ", &format!("CASE{} END", " WHEN a THEN 1".repeat(4_000)), ",", "", n)
    }),
    ("NOT side by side", |n| fill("SELECT ", &format!("{}a", "NOT ".repeat(80)), ",", "", n)),
    ("minus side by side", |n| fill("SELECT ", &format!("{}a", "- ".repeat(80)), ",", "", n)),
    ("intervals side by side", |n| fill("SELECT ", "interval '1' day", ",", "", n)),
    ("ANY side by side", |n| fill("SELECT ", "a=ANY(b)", ",", "", n)),
    ("named arguments", |n| fill("SELECT f(", "a=>1", ",", ")", n)),
    ("set_config", |n| fill("SELECT ", "set_config('geqo','on',false)", ",", "", n)),
    // For the lexer.
    ("one string", |n| fill("SELECT '", "x", "", "'", n)),
    ("one string of quotes", |n| fill("SELECT '", "''", "", "'", n)),
    ("one escape string", |n| fill("SELECT E'", "\\n", "", "'", n)),
    ("one unicode string", |n| fill("SELECT U&'", "\\0041", "", "'", n)),
    ("strings that go on", |n| fill("SELECT 'a'", "\n'a'", "", "", n)),
    ("strings that go on behind comments", |n| fill("SELECT 'a'", "--\n'a'", "", "", n)),
    ("a string and white space", |n| fill("SELECT 'a'", "\n", "", "", n)),
    ("strings and almost going on", |n| fill("SELECT 'a'", " -- ", "", "", n)),
    ("one dollar quote", |n| fill("SELECT $a$", "$b", "", "$a$", n)),
    ("dollar signs", |n| fill("SELECT $a", "$", "", "", n)),
    ("dollar tags", |n| fill("SELECT ", "$a$b$a$", ",", "", n)),
    ("dollar tags that never end", |n| fill("SELECT $x$", "$y$z", "", "", n)),
    ("one quoted name", |n| fill("SELECT \"", "x", "", "\"", n)),
    ("one name", |n| fill("SELECT ", "x", "", "", n)),
    ("one number", |n| fill("SELECT ", "1", "", "", n)),
    ("one operator", |n| fill("SELECT 1 ", "+", "", " 1", n)),
    ("operators with signs at their end", |n| fill("SELECT 1 ", "*+-", "", " 1", n)),
    ("operators and comments", |n| fill("SELECT 1", "*/**/", "", " 1", n)),
    ("one comment", |n| fill("/*", "x", "", "*/ SELECT 1", n)),
    ("comments", |n| fill("", "/**/", "", "SELECT 1", n)),
    ("comments to the line's end", |n| fill("", "--\n", "", "SELECT 1", n)),
    ("stars of comments", |n| fill("/*", "*", "", "*/ SELECT 1", n)),
    ("white space", |n| fill("", " ", "", "SELECT 1", n)),
    ("line ends", |n| fill("", "\r\n", "", "SELECT 1", n)),
    ("letters beyond ASCII", |n| fill("SELECT ", "é", ",", "", n)),
    ("emoji in a string", |n| fill("SELECT '", "\u{1f600}", "", "'", n)),
    // Statements that are told by their words alone.
    ("an INSERT", |n| fill("INSERT INTO t VALUES ", "(1)", ",", "", n)),
    ("a DELETE in WITH", |n| fill("WITH ", "a AS (DELETE FROM t)", ",", " SELECT 1", n)),
    ("LOCK", |n| fill("LOCK ", "t", ",", " IN ACCESS SHARE MODE", n)),
    ("COPY options", |n| fill("COPY t TO STDOUT (", "a 1", ",", ")", n)),
    ("FETCH", |n| fill("FETCH ", "forward ", "", "c", n)),
    ("transaction modes", |n| fill("BEGIN ", "read only", ",", "", n)),
    ("SET CONSTRAINTS", |n| fill("SET CONSTRAINTS ", "a", ",", " DEFERRED", n)),
    ("words", |n| fill("", "a ", "", "", n)),
    ("commas", |n| fill("SELECT ", ",", "", "", n)),
    ("dots", |n| fill("SELECT a", ".", "", "", n)),
];
