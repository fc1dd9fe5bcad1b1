//! What `fedgate explain` says, one statement for each kind of refusal, as people read it.
//!
//! Invariant: `tests/explain/texts.txt` holds every word of it, so that a change of a text is seen in
//! review. `FEDGATE_BLESS=1 cargo test --test explain` writes the file anew.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const STATEMENTS: &[&str] = &[
    "SELECT lower(name), count(*) FROM public.communes JOIN \"Orte\" USING (id) GROUP BY 1",
    "BEGIN; SELECT 1; COMMIT",
    "",
    "INSERT INTO public.communes (name) SELECT upper(name) FROM other",
    "WITH gone AS (DELETE FROM t RETURNING *) SELECT * FROM gone",
    "SELECT * INTO copy FROM t",
    "SELECT * FROM t FOR UPDATE",
    "CREATE TABLE t (a int)",
    "COPY t FROM STDIN",
    "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
    "BEGIN READ WRITE",
    "SET fsync = 'off'",
    "SET ROLE postgres",
    "SELECT set_config('search_path', 'x', false), set_config('role', 'postgres', false)",
    "SET client_encoding = 'SJIS'",
    "SELECT a,\n\tnextval('s')\nFROM t",
    "SELECT pg_sleep(10)",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT query_to_xml('SELECT 1', true, true, '')",
    "SELECT no_such_function(1)",
    "SELECT 1::no_such_type",
    "SELECT '日本語', nextval('s') FROM t",
    "SELECT 'a long line, which psql would cut at both of its ends', a, b, c, nextval('s'), d, e, f, g, h FROM a_table",
    "SELECT FROM WHERE",
    "SELECT 'no end",
    "SELECT ((((1)))",
    "KILL 1",
];

fn explain(sql: &str) -> String {
    let mut child = Command::new(env!("CARGO_BIN_EXE_fedgate"))
        .args(["explain", "--pg-version", "17", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(sql.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout).unwrap();
    let code = output.status.code().unwrap();
    assert_eq!(code, i32::from(said.contains("refuse (")), "{sql}: {said}");
    format!("=> {sql}\n{said}exit code {code}\n\n")
}

#[test]
fn texts() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/explain/texts.txt");
    let mut now: String = STATEMENTS.iter().map(|sql| explain(sql)).collect();
    now += &explain(&format!("SELECT {}1{}", "(".repeat(150), ")".repeat(150)))
        .replace(&"(".repeat(150), "((…((")
        .replace(&")".repeat(150), "))…))");
    now += &explain(&format!("SELECT '{}'", "x".repeat(1 << 20))).replace(&"x".repeat(1 << 20), "xx…xx");
    if std::env::var_os("FEDGATE_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &now).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap();
    for (now, expected) in now.split("\n\n").zip(expected.split("\n\n")) {
        assert_eq!(now, expected);
    }
    assert_eq!(now.len(), expected.len());
}
