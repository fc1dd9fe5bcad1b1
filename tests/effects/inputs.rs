//! What the oracle is fed with: every case, every wire sequence, every function and relation of the server,
//! what is planted in every place, and mutations of all of them.
//!
//! Invariant: texts come from a seed alone, so that a run can be repeated.

use std::path::Path;

use tokio_postgres::Client;

use crate::raw::message;
use crate::support::hostile::{HARMFUL, PLACES, Random, respell};

#[derive(serde::Deserialize)]
struct Case {
    sql: String,
}

fn tables<T: serde::de::DeserializeOwned>(folder: &str) -> Vec<T> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    paths
        .iter()
        .flat_map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            serde_yaml_ng::from_str::<Vec<T>>(&text)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        })
        .collect()
}

/// The texts of `tests/guard/*.yaml`, refused ones too: on another server they may be admitted.
pub fn cases() -> Vec<String> {
    tables::<Case>("guard").into_iter().map(|case| case.sql).collect()
}

/// All strings of a table, wherever they stand.
fn strings(value: &serde_yaml_ng::Value, found: &mut Vec<String>) {
    use serde_yaml_ng::Value;
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Sequence(items) => items.iter().for_each(|item| strings(item, found)),
        Value::Mapping(items) => items.values().for_each(|item| strings(item, found)),
        Value::Tagged(tagged) => strings(&tagged.value, found),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The texts in the Query and Parse messages of `tests/wire/*.yaml`.
pub fn wire() -> Vec<String> {
    let mut notations = Vec::new();
    tables::<serde_yaml_ng::Value>("wire").iter().for_each(|sequence| strings(sequence, &mut notations));
    let mut texts = Vec::new();
    for notation in notations {
        let is_text = notation.starts_with("Q \"") || notation.starts_with("P ") && notation.contains('"');
        if !is_text || notation.contains("[{") {
            continue;
        }
        let bytes = message(&notation.replace("{i}", "1"));
        let mut parts = bytes[5..].split(|byte| *byte == 0);
        if bytes[0] == b'P' {
            parts.next();
        }
        texts.extend(parts.next().and_then(|text| String::from_utf8(text.to_vec()).ok()));
    }
    texts
}

/// What is planted, in every place.
pub fn planted(expressions: &[&str]) -> Vec<String> {
    PLACES.iter().flat_map(|place| expressions.iter().map(|harmful| place.replace("{}", harmful))).collect()
}

/// A function of the server and what it takes.
pub struct Callable {
    name: String,
    arguments: Vec<String>,
}

/// Every function that can be called from SQL.
pub async fn functions(client: &Client) -> Vec<Callable> {
    let sql = "SELECT quote_ident(n.nspname) || '.' || quote_ident(p.proname), \
        ARRAY(SELECT format_type(a, NULL) FROM unnest(p.proargtypes) WITH ORDINALITY AS t(a, o) ORDER BY o) \
        FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace \
        WHERE p.prokind <> 'p' AND NOT EXISTS (SELECT FROM unnest(p.proargtypes) AS a WHERE a = 'internal'::regtype) \
        ORDER BY p.oid";
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| Callable { name: row.get(0), arguments: row.get(1) }).collect()
}

/// Every relation that can be read.
pub async fn relations(client: &Client) -> Vec<String> {
    let sql = "SELECT format('TABLE %I.%I', n.nspname, c.relname) FROM pg_class AS c \
        JOIN pg_namespace AS n ON n.oid = c.relnamespace \
        WHERE c.relkind IN ('r', 'v', 'm', 'S', 'p') AND n.nspname !~ '^pg_toast' ORDER BY c.oid";
    client.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

/// A value of a type, as a constant; wrong now and then.
fn value(of: &str, random: &mut Random) -> &'static str {
    let values: &[&str] = match of {
        "smallint" | "integer" | "bigint" | "numeric" | "real" | "double precision" | "int4" => {
            &["0", "1", "-1", "2", "7", "16384", "100000", "NULL"]
        }
        "oid" | "xid" | "xid8" | "cid" => &["0", "'1'", "'16384'", "1259", "'2'", "NULL"],
        "boolean" => &["true", "false"],
        "regclass" | "regtype" | "regproc" | "regprocedure" | "regnamespace" | "regrole" => {
            &["'t'", "'counter'", "'s'", "'pg_class'", "'pg_catalog.int4'", "'postgres'", "0"]
        }
        "bytea" => &["'\\x00'", "'abc'", "''"],
        "date" | "timestamp without time zone" | "timestamp with time zone" => {
            &["'2024-02-29'", "now()", "'infinity'", "'epoch'"]
        }
        "time without time zone" | "time with time zone" => &["'10:00'", "'23:59:60'"],
        "interval" => &["'1 day'", "'1s'", "'-1 month'"],
        "json" | "jsonb" => {
            &["'{\"a\": [1, {\"b\": null}]}'", "'[1,2]'", "'null'", "'{\"d\":\"x\",\"id\":1}'"]
        }
        "jsonpath" => &["'$'", "'$.a[*]'", "'$.** ? (@ > 1)'"],
        "xml" => &["'<a><b>1</b></a>'"],
        "pg_lsn" => &["'0/0'", "'0/1000000'", "pg_current_wal_lsn()"],
        "name" => &["'t'", "'public'", "'s'", "'counter'", "'planted'", "'utf8'"],
        "record" => &["ROW(1, 'x')", "t"],
        "tid" => &["'(0,1)'"],
        "uuid" => &["'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'"],
        "inet" | "cidr" => &["'10.0.0.0/8'"],
        "\"char\"" | "character" => &["'x'", "'r'"],
        "tsvector" => &["'a:1 b:2'", "to_tsvector('a b')"],
        "tsquery" => &["'a & b'", "to_tsquery('a')"],
        "refcursor" => &["'c'"],
        "anyelement" | "anycompatible" | "anynonarray" | "\"any\"" => {
            &["1", "'x'::text", "now()", "t", "NULL::int"]
        }
        "anyarray" | "anycompatiblearray" => &["ARRAY[1,2]", "ARRAY['a']", "'{1,2}'::int[]"],
        "anyrange" => &["int4range(1, 5)"],
        "anymultirange" => &["'{[1,2]}'::int4multirange"],
        "hstore" => &["'a=>1'"],
        _ if of.ends_with("[]") => &["'{1,2}'", "'{a,b}'", "'{}'", "ARRAY[1]"],
        _ => &[
            "'x'",
            "'1'",
            "'t'",
            "''",
            "'counter'",
            "'select 1'",
            "'public'",
            "'a'",
            "'{out}/effect'",
            "'test'",
        ],
    };
    random.one(values)
}

/// A call of any function.
pub fn call(functions: &[Callable], random: &mut Random) -> String {
    let function = &functions[random.below(functions.len())];
    let typed = random.below(2) == 0;
    let arguments: Vec<String> = function
        .arguments
        .iter()
        .map(|of| {
            let value = value(of, random);
            match typed
                && !of.starts_with("any")
                && !of.starts_with("\"any")
                && of != "record"
                && of != "cstring"
            {
                true => format!("({value})::{of}"),
                false => value.to_owned(),
            }
        })
        .collect();
    let name = match random.below(3) {
        0 => function.name.rsplit('.').next().unwrap_or(&function.name),
        _ => &function.name,
    };
    let call = format!("{name}({})", arguments.join(", "));
    match random.below(8) {
        0 => format!("SELECT * FROM {call} AS x"),
        1 => format!("SELECT {call} OVER (ORDER BY id) FROM t"),
        2 => format!("SELECT ({call}).*"),
        3 => random.one(PLACES).replace("{}", &call),
        _ => format!("SELECT {call} FROM t"),
    }
}

/// Words, constants and signs of a text, spaces with what follows.
fn pieces(text: &str) -> Vec<String> {
    let mut pieces: Vec<String> = Vec::new();
    let mut letters = text.chars().peekable();
    let mut piece = String::new();
    while let Some(letter) = letters.next() {
        piece.push(letter);
        if letter == '\'' || letter == '"' {
            for other in letters.by_ref() {
                piece.push(other);
                if other == letter {
                    break;
                }
            }
        } else if letter.is_alphanumeric() || letter == '_' {
            while let Some(other) = letters.next_if(|other| other.is_alphanumeric() || *other == '_') {
                piece.push(other);
            }
        } else if letter.is_whitespace() {
            continue;
        } else if "<>=!|&~^@#?*+-/%:".contains(letter) {
            while let Some(other) = letters.next_if(|other| "<>=!|&~^@#?*+-/%:".contains(*other)) {
                piece.push(other);
            }
        }
        pieces.push(std::mem::take(&mut piece));
    }
    pieces
}

/// Words that may change what a statement is.
const WORDS: &[&str] = &[
    "INTO",
    "FOR UPDATE",
    "FOR SHARE",
    "DELETE FROM t",
    "INSERT INTO t VALUES (1)",
    "UPDATE t SET id = 1",
    "RETURNING *",
    "TABLE",
    "ANALYZE",
    "EXPLAIN",
    "EXPLAIN ANALYZE",
    "EXPLAIN (ANALYZE)",
    "CREATE TABLE zz AS",
    "CREATE TEMP TABLE zz AS",
    "WITH x AS",
    "MATERIALIZED",
    "RECURSIVE",
    "LATERAL",
    "ONLY",
    "AS",
    "COPY",
    "TO STDOUT",
    "TO '{out}/effect'",
    "TO PROGRAM 'touch {out}/effect'",
    "FROM STDIN",
    "PREPARE",
    "EXECUTE",
    "DECLARE c CURSOR WITH HOLD FOR",
    "SET",
    "SET LOCAL",
    "RESET",
    "LISTEN a",
    "NOTIFY a",
    "UNLISTEN *",
    "VACUUM",
    "CHECKPOINT",
    "CALL",
    "DO",
    "LOCK TABLE t",
    "ORDER BY",
    "GROUP BY",
    "HAVING",
    "WINDOW w AS ()",
    "OVER ()",
    "FILTER (WHERE true)",
    "WITHIN GROUP (ORDER BY 1)",
    "LIMIT 1",
    "OFFSET 1",
    "FETCH FIRST 1 ROW ONLY",
    "UNION",
    "EXCEPT",
    "INTERSECT",
    "VALUES",
    "CAST",
    "::",
    "::regclass",
    "::text",
    "::int",
    ".",
    "(",
    ")",
    "[",
    "]",
    ",",
    ";",
    "*",
    "=",
    "<>",
    "NULL",
    "DEFAULT",
    "ROWS FROM",
    "TABLESAMPLE system (50)",
    "COLLATE \"C\"",
    "AT TIME ZONE",
    "OPERATOR(public.===)",
    "$1",
    "'x'",
    "1",
    "t",
    "nextval('s')",
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "READ WRITE",
    "ISOLATION LEVEL SERIALIZABLE",
    "/*",
    "*/",
    "--",
    "\n",
    "''",
    "E'\\''",
    "U&'\\0027'",
    "$$",
    "$a$",
];

/// Another statement made of one or two.
pub fn mutate(text: &str, other: &str, expressions: &[&str], random: &mut Random) -> String {
    let mut now = pieces(text);
    let others = pieces(other);
    for _ in 0..=random.below(3) {
        if now.is_empty() {
            break;
        }
        let at = random.below(now.len());
        match random.below(11) {
            0 => {
                now.remove(at);
            }
            1 => now.insert(at, format!(" {}", random.one(WORDS))),
            2 => now[at] = format!(" {}", random.one(WORDS)),
            3 if !expressions.is_empty() => now[at] = format!(" {}", random.one(expressions)),
            4 if !others.is_empty() => now[at] = others[random.below(others.len())].clone(),
            5 if !others.is_empty() => {
                now.truncate(at);
                now.extend_from_slice(&others[random.below(others.len())..]);
            }
            6 => {
                let with = random.below(now.len());
                now.swap(at, with);
            }
            7 => now.insert(at, now[random.below(now.len())].clone()),
            8 if !expressions.is_empty() => now[at] = format!(" ({})", random.one(expressions)),
            // A constant or a name becomes another constant.
            9 if !now[at].trim().is_empty() && !now[at].contains(['(', ')', ',', '.']) => {
                let new = random
                    .one(&[" 1", " 'x'", " t", " id", " name", " NULL", " $1", " '(1,x)'", " '{x}'", " *"]);
                now[at] = new.to_owned();
            }
            _ => {
                let wrapped = random.one(&[
                    "SELECT * FROM ({}) AS x",
                    "EXPLAIN ANALYZE {}",
                    "EXPLAIN (ANALYZE, BUFFERS, FORMAT json) {}",
                    "WITH x AS MATERIALIZED ({}) TABLE x",
                    "PREPARE p AS {}; EXECUTE p; EXPLAIN ANALYZE EXECUTE p",
                    "BEGIN; DECLARE c CURSOR WITH HOLD FOR {}; FETCH 1 FROM c; COMMIT; FETCH ALL c; CLOSE c",
                    "COPY ({}) TO STDOUT",
                    "SELECT EXISTS ({})",
                    "SELECT ARRAY({})",
                    "{} UNION ALL {}",
                    "BEGIN; SAVEPOINT a; {}; ROLLBACK TO a; {}; COMMIT",
                    "SELECT 1; {}",
                    "BEGIN ISOLATION LEVEL SERIALIZABLE; {}; COMMIT",
                ]);
                let joined = now.concat();
                now = vec![wrapped.replace("{}", joined.trim().trim_end_matches(';'))];
            }
        }
    }
    let text = now.concat();
    if random.below(4) == 0 { respell(&text, random) } else { text }
}

/// One of `HARMFUL`, in a place or in two.
pub fn hostile(random: &mut Random) -> String {
    let mut text = random.one(HARMFUL).to_owned();
    if random.below(4) == 0 {
        text = format!("({})", random.one(PLACES).replace("{}", &text));
    }
    respell(&random.one(PLACES).replace("{}", &text), random)
}
