//! The guard's idea of PostgreSQL held against a real one.
//!
//! Invariant: what is compared here is decided by the server, never by a second copy of the rule.

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use fedgate::guard::{Context, Mode, Step, judge};
use fedgate::ids::SourceName;
use fedgate::sql::Limits;
use fedgate::sql::catalogue::Catalogue;
use fedgate::sql::lexer::{self, Item, Kind, Lexer};
use fedgate::upstream::catalogue;
use support::{Options, Postgres};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

/// What a client sends when it is told to write; `clients/transcript.py` says the same.
const MARK: &str = "fedgate_trace_marker";
const PATIENCE: Duration = Duration::from_secs(120);

async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("the server answers in time")
}

#[derive(serde::Deserialize)]
struct Case {
    sql: String,
    want: String,
    #[serde(default)]
    class: Option<String>,
    #[serde(default)]
    although: Option<String>,
    #[serde(default)]
    pg: Option<u32>,
}

fn cases() -> Vec<(String, Case)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guard");
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let table: Vec<Case> = serde_yaml_ng::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let file = path.file_name().unwrap().to_string_lossy().into_owned();
        cases.extend(table.into_iter().map(|case| (file.clone(), case)));
    }
    cases.retain(|(file, case)| case.pg.is_none() && file != "writers.yaml");
    cases
}

/// The first column's name and value of the one row that `sql` draws.
async fn first(client: &Client, sql: &str) -> Result<(String, Option<String>), tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    let row = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => {
            Some((row.columns()[0].name().to_owned(), row.get(0).map(str::to_owned)))
        }
        _ => None,
    });
    Ok(row.expect("a row"))
}

/// The tokens of a text, or `None` where the lexer refuses it.
fn tokens(sql: &str) -> Option<Vec<(Kind, String)>> {
    let tokens = lexer::tokens(sql, &Limits::default()).ok()?;
    Some(tokens.into_iter().map(|token| (token.kind, token.text.into_owned())).collect())
}

#[tokio::test]
async fn what_is_admitted_parses_on_the_server() {
    let server = Postgres::start(Options::default());
    let client = server.superuser_client("postgres").await;
    let catalogue = Catalogue::stock(15).unwrap();
    let (limits, source) = (Limits::default(), SourceName::new("s"));
    let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
    let mut wrong = Vec::new();
    let mut parsed = 0;
    for (file, case) in cases().into_iter().filter(|(_, case)| case.want == "admit") {
        for step in judge(case.sql.as_bytes(), &ctx).steps {
            // Cases about a customer's own functions are refused on a stock catalogue.
            let Step::Admit(admitted) = step else { continue };
            let text = std::str::from_utf8(admitted.permit.text()).unwrap();
            parsed += 1;
            if let Err(error) = within(client.prepare(text)).await
                && error.code() == Some(&SqlState::SYNTAX_ERROR)
            {
                wrong.push(format!("{file}: {text}\n    {error:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {parsed}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(parsed > 300, "only {parsed} statements were tried");
}

/// Lexing and grammar; beyond that a server speaks of names and types.
async fn is_no_sql(client: &Client, text: &str) -> bool {
    let error = within(client.prepare(text)).await.err();
    let code = error.as_ref().and_then(tokio_postgres::Error::code);
    [SqlState::SYNTAX_ERROR, SqlState::FEATURE_NOT_SUPPORTED, SqlState::INVALID_ESCAPE_SEQUENCE]
        .iter()
        .any(|state| code == Some(state))
}

/// The major version of a server.
async fn major(client: &Client) -> i32 {
    let text = "SELECT current_setting('server_version_num')::int / 10000";
    within(client.query_one(text, &[])).await.unwrap().get(0)
}

/// Letters directly behind a number or a parameter: from version 15 on an error, before that a label.
fn is_junk(text: &str) -> bool {
    let catalogue = Catalogue::stock(15).unwrap();
    let (limits, source) = (Limits::default(), SourceName::new("s"));
    let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
    judge(text.as_bytes(), &ctx)
        .steps
        .iter()
        .any(|step| matches!(step, Step::Refuse(refusal) if refusal.message.contains("trailing junk after")))
}

#[tokio::test]
async fn a_read_that_is_refused_says_why() {
    let server = Postgres::start(Options::default());
    let client = server.superuser_client("postgres").await;
    let version = major(&client).await;
    let reads_junk = version < 15;
    let mut wrong = Vec::new();
    let (mut tried, mut excused) = (0, 0);
    for (file, case) in cases() {
        let unread = case.want == "refuse" && case.class.as_deref() == Some("unverified");
        // A server refuses several statements in a Parse, whatever they are.
        // What the lexer does not decode is told in docs/guard.md.
        let undecoded = case.sql.contains("UESCAPE");
        if !unread || undecoded || case.sql.contains(';') || file.starts_with("client_") {
            continue;
        }
        if reads_junk && is_junk(&case.sql) {
            continue;
        }
        tried += 1;
        match (&case.although, is_no_sql(&client, &case.sql).await) {
            (None, false) => wrong.push(format!("{file}: a server reads this: {}", case.sql)),
            (Some(_), false) => excused += 1,
            // An excuse may be of one version only: 15 is what the cases are written by.
            (Some(why), true) if version == 15 => {
                wrong.push(format!("{file}: no server reads this, although {why}: {}", case.sql))
            }
            (_, true) => {}
        }
    }
    assert!(wrong.is_empty(), "{} of {tried}, {excused} of them excused:\n{}", wrong.len(), wrong.join("\n"));
    assert!(tried > 100, "only {tried} statements were tried");
}

#[tokio::test]
async fn each_command_that_is_refused_is_one_on_the_server() {
    let server = Postgres::start(Options::default());
    let client = server.superuser_client("postgres").await;
    let no_merge = major(&client).await < 15;
    let mut wrong = Vec::new();
    let mut tried = 0;
    for (_, case) in cases().into_iter().filter(|(file, _)| file == "commands.yaml") {
        if no_merge && case.sql.contains("MERGE") {
            continue;
        }
        tried += 1;
        // A text is read before anything is looked up or done: nothing here is executed.
        if is_no_sql(&client, &case.sql).await {
            wrong.push(case.sql);
        }
    }
    assert!(wrong.is_empty(), "{} of {tried}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(tried > 200, "only {tried} commands were tried");
}

/// What clients send to read, recorded from them: `scripts/record-statements`.
fn recorded() -> Vec<(String, Vec<String>)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recorded");
    let mut recorded: Vec<(String, Vec<String>)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let texts = serde_yaml_ng::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            (path.file_name().unwrap().to_string_lossy().replace(".yaml", ""), texts)
        })
        .collect();
    recorded.sort();
    recorded
}

#[tokio::test]
async fn what_clients_send_to_read_is_admitted() {
    let server = Postgres::climscore(Options::default());
    server.execute("climscore", include_str!("clients/objects.sql"));
    let client = server.superuser_client("climscore").await;
    let loaded = within(catalogue::load(&client)).await.unwrap();
    let (limits, source) = (Limits::default(), SourceName::new("s"));
    let ctx = Context { catalogue: &loaded, mode: Mode::ReadOnly, limits: &limits, source: &source };
    let mut clients = Vec::new();
    let (mut wrong, mut judged, mut marked) = (Vec::new(), 0, 0);
    for (name, texts) in recorded() {
        let writes = name.ends_with(".writes");
        for text in &texts {
            let refused = judge(text.as_bytes(), &ctx).steps.into_iter().find_map(|step| match step {
                Step::Refuse(refusal) => Some(refusal.message),
                Step::Admit(_) => None,
            });
            match refused {
                Some(message) if !writes => wrong.push(format!("{name}: {text}\n    {message}")),
                None if writes && text.contains(MARK) => wrong.push(format!("{name}: {text}\n    admitted")),
                _ => {}
            }
            judged += usize::from(!writes);
            marked += usize::from(writes && text.contains(MARK));
        }
        if !writes {
            clients.push(name);
        }
    }
    assert!(wrong.is_empty(), "{} of {judged}:\n{}", wrong.len(), wrong.join("\n"));
    let all = [
        "adbc",
        "asyncpg",
        "connectorx",
        "django",
        "pg_dump",
        "pgjdbc",
        "psql",
        "psycopg",
        "sqlalchemy",
        "trino",
    ];
    assert_eq!(clients, all);
    assert!(judged > 1000 && marked > 150, "only {judged} reads and {marked} writes were recorded");
}

#[tokio::test]
async fn strings_mean_what_the_server_takes_them_for() {
    let server = Postgres::start(Options::default());
    let client = server.superuser_client("postgres").await;
    let bodies = [
        "'a'",
        "''",
        "''''",
        "'a\\'",
        "'a''b'",
        "'\\''",
        "'a'\n'b'",
        "'a' \t\n \n 'b'",
        "'a' -- c\n'b'",
        "'a'--\n--\n'b'",
        "'a'\r'b'",
        "'a'\x0c\n'b'",
        "'a'\n--x'b'\n'c'",
        "E'a'",
        "E'\\''",
        "E'\\\\'",
        "E'a\\nb'",
        "E'\\tb\\r\\f\\b'",
        "E'\\x41\\101\\7'",
        "E'\\xe2\\x82\\xac'",
        "E'\\u20ac\\U0001F600'",
        "E'a'\n'\\x41'",
        "E'\\q\\''''x'",
        "E'a\\\nb'",
        "e'\\141'",
        "U&'a'",
        "U&'\\0041\\+00005A'",
        "u&'a\\\\b'",
        "U&'a'\n'\\0041'",
        "U&'!0041\\' UESCAPE '!'",
        "U&'a!!b!+01F600' uescape E'\\041'",
        "U&'a'\n'~0041' UESCAPE $$~$$",
        "U&'a~0041' UESCAPE\n$x$~$x$",
        "U&'\\D83D\\DE00'",
        "U&'\\D83D\\+00DE00'",
        "U&'\\D83Dx\\DE00'",
        "U&'\\DE00'",
        "U&'\\D83D\\0041'",
        "U&'\\D83D\\\\'",
        "E'\\uD83D\\uDE00'",
        "E'\\uD83D\\U0000DE00x'",
        "E'\\uD83Dx'",
        "U&'(0041' UESCAPE '('",
        "U&'\"' UESCAPE ' '",
        "$$a$$",
        "$$$$",
        "$a$b$$c$a$",
        "$a$b$b$a$",
        "$é$x$é$",
        "$a1_$;'\"$a1_$",
        "N'a''b'",
        "n'a\\'",
        "'é€😀'",
        "E'é\\'€'",
        "'/*' /* ' */",
        "'--' -- '\n",
        "E'\\400'",
        "E'\\x4'",
        "E'\\08'",
        "E'\\xg'",
        "U&'\\00e9'",
        "'a' /* */ -- x\n",
        "$_$'$_$",
        "$A$ $a$ $A$",
    ];
    for body in bodies {
        let sql = format!("SELECT {body}");
        let expected = within(first(&client, &sql)).await;
        match (tokens(&sql), expected) {
            (Some(tokens), Ok((_, value))) => {
                let (kind, text) = tokens.last().unwrap();
                assert!(matches!(kind, Kind::String | Kind::National), "{sql}: {kind:?}");
                assert_eq!((tokens.len(), Some(text.as_str())), (2, value.as_deref()), "{sql}");
            }
            // A refusal is never wrong; a text that the server rejects harms nobody.
            (None, _) | (_, Err(_)) => {}
        }
    }
}

#[tokio::test]
async fn names_mean_what_the_server_takes_them_for() {
    let server = Postgres::start(Options::default());
    let client = server.superuser_client("postgres").await;
    let long = "x".repeat(80);
    let accents = "é".repeat(40);
    for name in [
        "a",
        "Abc",
        "\"Abc\"",
        "a$b",
        "_a1",
        "É",
        "éA",
        "\"a\"\"b\"",
        "U&\"d\\0061t\\+000061\"",
        "u&\"A\"",
        "U&\"d!0061t!+000061\" UESCAPE '!'",
        "U&\"!D83D!DE00!!\" uescape '!'",
        "a\u{a0}b",
        "\u{feff}a",
        "\"a;--/*\"",
        &long,
        &long.to_uppercase(),
        &format!("\"{long}\""),
        &accents,
        &format!("\"{accents}\""),
        &format!("a{accents}"),
    ] {
        let sql = format!("SELECT 1 AS {name}");
        let (expected, _) = within(first(&client, &sql)).await.unwrap();
        assert_eq!(tokens(&sql).unwrap().last().unwrap().1, expected, "{sql}");
    }
}

#[tokio::test]
async fn statements_are_parted_where_the_server_parts_them() {
    let server = Postgres::start(Options::default());
    let client = server.superuser_client("postgres").await;
    let catalogue = Catalogue::stock(15).unwrap();
    let (limits, source) = (Limits::default(), SourceName::new("s"));
    let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
    for sql in [
        "SELECT 1; SELECT 2",
        "SELECT ';'; SELECT 2;",
        "SELECT '\\'; SELECT 2; --'",
        "SELECT E'\\'; SELECT 2; --'",
        "SELECT $a$;$a$; SELECT 2",
        "SELECT 1 -- ;\n; SELECT 2",
        "SELECT 1 -- ;\r; SELECT 2",
        "SELECT /* /* ; */ ; */ 1; SELECT 2",
        ";; SELECT 1;;; SELECT 2;",
        "SELECT 1 AS a$b$; SELECT 2 AS a$b$",
        "SELECT \";\" FROM (SELECT 1 AS \";\") x; SELECT 2",
        "SELECT U&';'; SELECT 2",
        "SELECT 'a'\n';b'; SELECT 2",
        "SELECT 1 +-- ;\n2; SELECT 3",
        "SELECT 3 */* ; */ 4; SELECT 5",
        "SELECT 1\u{b}; SELECT 2",
        "SELECT 1\u{c}; SELECT 2",
    ] {
        let messages = within(client.simple_query(sql)).await;
        let Ok(messages) = messages else { continue };
        let done = messages
            .iter()
            .filter(|message| matches!(message, SimpleQueryMessage::CommandComplete(_)))
            .count();
        assert_eq!(judge(sql.as_bytes(), &ctx).steps.len(), done, "{sql:?}");
    }
}

/// What is harmful, by name and schema.
fn harmful(catalogue: &Catalogue, names: &[String]) -> BTreeMap<String, usize> {
    names
        .iter()
        .map(|name| {
            (
                name.clone(),
                catalogue.functions(name).iter().filter(|function| function.harm.is_some()).count(),
            )
        })
        .collect()
}

#[tokio::test]
async fn an_ordinary_role_loads_the_catalogue() {
    let server = Postgres::start(Options::default());
    let admin = server.superuser_client("postgres").await;
    within(admin.batch_execute(
        "CREATE ROLE reader;
         CREATE FUNCTION public.writes(text) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
         CREATE FUNCTION public.reads(text) RETURNS boolean LANGUAGE sql STABLE AS 'SELECT true';
         CREATE FUNCTION public.step(int, int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
         CREATE AGGREGATE public.total(int) (SFUNC = public.step, STYPE = int);
         CREATE OPERATOR public.=== (LEFTARG = text, RIGHTARG = text, FUNCTION = pg_catalog.texteq);
         CREATE FUNCTION public.same(text, text) RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
         CREATE OPERATOR public.==== (LEFTARG = text, RIGHTARG = text, FUNCTION = public.same);
         CREATE DOMAIN public.plain AS text CHECK (VALUE ~ '@' AND length(VALUE) > 2);
         CREATE DOMAIN public.noted AS text CHECK (public.writes(VALUE));
         CREATE DOMAIN public.inherited AS public.noted;
         CREATE DOMAIN public.waits AS text CHECK (pg_catalog.pg_sleep(0) IS NOT NULL);
         CREATE DOMAIN public.selfish AS text;
         CREATE FUNCTION public.selfish() RETURNS public.selfish LANGUAGE sql IMMUTABLE AS $$SELECT 'self'::public.selfish$$;
         ALTER DOMAIN public.selfish ADD CHECK (VALUE <> public.selfish());
         CREATE TABLE public.visits (id int, n public.noted);
         CREATE TYPE public.mood AS ENUM ('sad', 'ok');
         CREATE TYPE public.span AS RANGE (SUBTYPE = float8);
         CREATE FUNCTION public.to_mood(int) RETURNS public.mood LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';",
    ))
    .await
    .unwrap();
    let client = server.superuser_client("postgres").await;
    within(client.batch_execute("SET ROLE reader")).await.unwrap();
    let loaded = within(catalogue::load(&client)).await.unwrap();
    // Filling a row of `visits` from a document runs its domain's CHECK.
    let own = "SELECT DISTINCT proname::text FROM pg_proc WHERE oid < 16384 AND proname !~ 'populate_record'";
    let mut names: Vec<String> =
        within(admin.query(own, &[])).await.unwrap().iter().map(|row| row.get(0)).collect();
    let version: i32 =
        within(admin.query_one("SELECT current_setting('server_version_num')::int / 10000", &[]))
            .await
            .unwrap()
            .get(0);
    let stock = Catalogue::stock(u32::try_from(version).unwrap()).unwrap();
    // A later minor version may bring functions that the stock list does not know.
    names.retain(|name| !stock.functions(name).is_empty());
    assert!(names.len() > 2000, "{}", names.len());
    assert_eq!(harmful(&loaded, &names), harmful(&stock, &names));

    let (limits, source) = (Limits::default(), SourceName::new("s"));
    let ctx = Context { catalogue: &loaded, mode: Mode::ReadOnly, limits: &limits, source: &source };
    for (sql, admitted) in [
        ("SELECT reads('a')", true),
        ("SELECT writes('a')", false),
        ("SELECT total(1)", false),
        ("SELECT sum(1)", true),
        ("SELECT 'a' === 'b'", true),
        ("SELECT 'a' ==== 'b'", false),
        ("SELECT 'a' = 'b'", true),
        ("SELECT 'a@b'::plain", true),
        ("SELECT 'a@b'::noted", false),
        ("SELECT 'a@b'::inherited", false),
        ("SELECT 'a@b'::waits", false),
        ("SELECT '{a}'::noted[]", false),
        ("SELECT 'a'::selfish", true),
        ("SELECT '(1,a)'::visits", false),
        ("SELECT 'ok'::mood, '[1,2]'::span", true),
        ("SELECT * FROM visits", true),
        ("SELECT json_populate_record(v, '{}') FROM visits v", false),
    ] {
        let verdict = judge(sql.as_bytes(), &ctx);
        let is = matches!(verdict.steps.as_slice(), [Step::Admit(_)]);
        assert_eq!(is, admitted, "{sql}: {:?}", verdict.steps);
    }
    within(admin.batch_execute("CREATE CAST (int AS public.mood) WITH FUNCTION public.to_mood(int)"))
        .await
        .unwrap();
    let loaded = within(catalogue::load(&client)).await.unwrap();
    let ctx = Context { catalogue: &loaded, ..ctx };
    assert!(matches!(judge(b"SELECT 1::mood", &ctx).steps.as_slice(), [Step::Refuse(_)]));
}

#[test]
fn comments_and_tokens_are_told_apart() {
    let mut lexer = Lexer::new("SELECT /* a */ 1 -- b");
    let mut seen = Vec::new();
    while let Some(item) = lexer.next_item().unwrap() {
        seen.push(matches!(item, Item::Comment(_)));
    }
    assert_eq!(seen, [false, true, false, true]);
}
