//! Real clients through the gateway: each reads as it does directly, is refused as a read-only PostgreSQL would, and leaves
//! no trace of a write at the source.
//!
//! Invariant: a client that cannot be had fails its test; nothing is skipped.

mod support;

#[path = "clients/kit.rs"]
mod kit;

use std::pin::Pin;

use kit::{Program, check};
use support::{Authority, Gateway, SUPERUSER, SUPERUSER_PASSWORD};

const ANY_PORT: &str = "127.0.0.1:0";

#[test]
fn psql() {
    check(&Program::Python("run_psql.py"), ANY_PORT);
}

#[test]
fn pg_dump() {
    check(&Program::Python("run_pg_dump.py"), ANY_PORT);
}

#[test]
fn pgjdbc() {
    check(&Program::Java("42_7_8", "PgJdbc.java"), ANY_PORT);
}

#[test]
fn pgjdbc_of_2024() {
    check(&Program::Java("42_5_5", "PgJdbc.java"), ANY_PORT);
}

#[test]
fn psycopg3() {
    check(&Program::Python("run_psycopg3.py"), ANY_PORT);
}

#[test]
fn psycopg2() {
    check(&Program::Python("run_psycopg2.py"), ANY_PORT);
}

#[test]
fn asyncpg() {
    check(&Program::Python("run_asyncpg.py"), ANY_PORT);
}

#[test]
fn sqlalchemy() {
    check(&Program::Python("run_sqlalchemy.py"), ANY_PORT);
}

#[test]
fn django() {
    check(&Program::Python("run_django.py"), ANY_PORT);
}

#[test]
fn connectorx() {
    check(&Program::Python("run_connectorx.py"), ANY_PORT);
}

#[test]
fn adbc() {
    check(&Program::Python("run_adbc.py"), ANY_PORT);
}

/// Which drivers take a user whose verifier has fewer rounds than RFC 7677 asks for. What stands in
/// docs/operations.md and in `fedgate users add --help` was seen here.
#[test]
fn few_rounds_of_scram() {
    let source = kit::source();
    for rounds in [1, 100, 4096] {
        let verifier = fedgate::config::Verifier::derive(kit::PASSWORD, b"a salt of 16 by.", rounds);
        let users = fedgate::config::users_line(kit::USER, &verifier) + "\n";
        let gateway =
            Gateway::start(kit::setup(&source, ANY_PORT, "", kit::POOLS[0]).file("users.txt", users));
        let mut said = Vec::new();
        for program in [
            Program::Python("run_rounds.py"),
            Program::Java("42_7_8", "Rounds.java"),
            Program::Java("42_5_5", "Rounds.java"),
        ] {
            let endpoint = kit::behind(&gateway);
            let run = kit::command(&program, endpoint).output().unwrap();
            assert!(run.status.success(), "{program:?}: {run:?}");
            said.extend(String::from_utf8(run.stdout).unwrap().lines().map(str::to_owned));
        }
        let refused = said.pop().unwrap();
        assert_eq!(said.len(), 7, "{said:#?}");
        assert!(said.iter().all(|line| line.ends_with(": yes")), "{said:#?}");
        // PgJDBC 42.5.5 has a bound of its own.
        let bound = refused.contains("iteration must be >= 4096");
        assert!(if rounds < 4096 { bound } else { refused.ends_with(": yes") }, "{refused}");
    }
}

/// What tokio-postgres sees of types that it has to ask for, of portals, pipelines, COPY, errors and cancels.
#[test]
fn tokio_postgres() {
    let source = kit::source();
    let gateways = kit::POOLS.map(|pool| kit::gateway(&source, ANY_PORT, pool));
    let before = source.fingerprint();
    let plain = kit::Endpoint {
        host: "127.0.0.1",
        port: source.port(),
        user: SUPERUSER,
        password: SUPERUSER_PASSWORD,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let patience = std::time::Duration::from_secs(120);
    let within = |work: Asked<'_>| {
        runtime.block_on(async { tokio::time::timeout(patience, work).await.expect("it answers in time") })
    };
    let ask = |endpoint| within(Box::pin(converse(endpoint)) as Asked);
    let direct = ask(plain);
    assert!(direct.len() > 12, "{direct:#?}");
    for gateway in gateways {
        assert_eq!(direct, ask(kit::behind(&gateway)));
        let refused = within(Box::pin(refusals(kit::behind(&gateway))) as Asked);
        assert_eq!(refused, ["25006", "25006", "42501", "25006", "25006", "1"]);
        assert!(!gateway.stop().contains("panicked"));
    }
    assert_eq!(source.fingerprint().difference(&before), Vec::<String>::new());
}

type Asked<'a> = Pin<Box<dyn Future<Output = Vec<String>> + 'a>>;

async fn connect(endpoint: kit::Endpoint<'_>) -> tokio_postgres::Client {
    let mut config = tokio_postgres::Config::new();
    config.host(endpoint.host).port(endpoint.port).user(endpoint.user).password(endpoint.password);
    let (client, connection) = config.dbname("climscore").connect(tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

fn code(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned())
}

async fn converse(endpoint: kit::Endpoint<'_>) -> Vec<String> {
    use futures_util::{StreamExt, TryStreamExt};
    let mut client = connect(endpoint).await;
    let mut seen = Vec::new();
    // Each of these types makes the driver ask the catalogue, by statements of its own.
    for sql in [
        "SELECT state FROM survey.visit WHERE state = $1",
        "SELECT located FROM survey.building",
        "SELECT points, tags FROM survey.building WHERE points > $1",
        "SELECT ARRAY[state] FROM survey.visit",
        "SELECT $1::survey.period, $2::survey.place[], $3::survey.grade",
    ] {
        let statement = client.prepare(sql).await.unwrap();
        let columns: Vec<_> = statement
            .columns()
            .iter()
            .map(|column| (column.name().to_owned(), column.type_().clone()))
            .collect();
        seen.push(format!("{:?} {columns:?}", statement.params()));
    }
    let one = |id: i32| {
        let client = &client;
        async move {
            let row = client
                .query_one("SELECT code, name FROM survey.district WHERE id = $1", &[&id])
                .await
                .unwrap();
            (row.get::<_, String>(0), row.get::<_, String>(1))
        }
    };
    // Under way at once, so that they are sent as one pipeline.
    seen.push(format!("{:?}", tokio::join!(one(1), one(2), one(3), one(4), one(5), one(6), one(7), one(8))));
    let copied =
        client.copy_out("COPY (SELECT id, code FROM survey.district ORDER BY id) TO STDOUT").await.unwrap();
    let copied: Vec<_> = copied.try_collect().await.unwrap();
    seen.push(format!("{copied:?}"));
    let rows = client.query_raw("SELECT id FROM survey.reading WHERE id <= $1", [5_000]).await.unwrap();
    seen.push(format!("{} rows", rows.count().await));
    {
        let transaction = client.transaction().await.unwrap();
        let portal = transaction.bind("SELECT id FROM survey.district ORDER BY id", &[]).await.unwrap();
        for limit in [5, 7, 0] {
            let ids: Vec<i32> = transaction
                .query_portal(&portal, limit)
                .await
                .unwrap()
                .iter()
                .map(|row| row.get(0))
                .collect();
            seen.push(format!("{ids:?}"));
        }
        transaction.commit().await.unwrap();
    }
    let transaction = client.build_transaction().read_only(true).deferrable(true).start().await.unwrap();
    seen.push(code(&transaction.query("SELECT 1 / 0", &[]).await.unwrap_err()));
    seen.push(code(&transaction.query("SELECT 1", &[]).await.unwrap_err()));
    transaction.rollback().await.unwrap();
    let cancel = client.cancel_token();
    let slow = client
        .simple_query("SELECT count(*) FROM survey.reading a, survey.reading b WHERE a.value + b.value = 3");
    let watcher = connect(endpoint).await;
    let stop = async {
        let running =
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%b.value = 3'";
        while watcher.query_one(running, &[]).await.unwrap().get::<_, i64>(0) == 0 {}
        cancel.cancel_query(tokio_postgres::NoTls).await.unwrap();
        std::future::pending::<()>().await
    };
    tokio::select! {
        ended = slow => seen.push(code(&ended.unwrap_err())),
        () = stop => unreachable!("it waits for the statement to end"),
    }
    seen
}

/// SQLSTATEs of what is refused, and then one row.
async fn refusals(endpoint: kit::Endpoint<'_>) -> Vec<String> {
    let mut client = connect(endpoint).await;
    let mut seen = Vec::new();
    seen.push(code(&client.execute("INSERT INTO survey.scratch VALUES ($1, 'x')", &[&1]).await.unwrap_err()));
    seen.push(code(&client.batch_execute("SELECT 1; DROP TABLE survey.scratch").await.unwrap_err()));
    seen.push(code(&client.query("SELECT survey.store($1)", &[&"x"]).await.unwrap_err()));
    seen.push(code(
        &client.copy_in::<_, bytes::Bytes>("COPY survey.scratch FROM STDIN").await.map(drop).unwrap_err(),
    ));
    let transaction = client.build_transaction().read_only(false).start().await;
    seen.push(transaction.map(drop).map_or_else(|error| code(&error), |()| "begun".to_owned()));
    seen.push(client.query_one("SELECT 1", &[]).await.unwrap().get::<_, i32>(0).to_string());
    seen
}

/// Every way in which drivers ask for TLS, with a certificate that they verify.
#[test]
fn tls() {
    let source = kit::source();
    let authority = Authority::new("authority of the gateway");
    let pair = authority.server(&["localhost"]);
    let tls = r#"
[gateway.tls]
certificate = "{dir}/server.crt"
private_key = "{dir}/server.key"
"#;
    let setup = kit::setup(&source, ANY_PORT, tls, kit::POOLS[1])
        .file("server.crt", pair.certificate)
        .file("server.key", pair.private_key)
        .file("ca.crt", authority.certificate());
    let gateway = Gateway::start(setup);
    let ca = gateway.folder().join("ca.crt").display().to_string();
    let libpq = kit::run(
        &Program::Python("run_tls.py"),
        "gateway",
        kit::behind(&gateway),
        &[("FEDGATE_CA", ca.clone())],
    );
    let expected = [
        ("verified", "[true,30000,600]"),
        ("channel binding", "[true,30000,600]"),
        ("channel binding off", "[true,30000,600]"),
        ("direct", "[true,30000,600]"),
        ("protocol 3.2", "[true,30002,600]"),
        ("protocol 3.2 asked for", "[false,30002,600]"),
        ("plain", "[false,30000,600]"),
        ("cancel", r#"["57014",1]"#),
        ("cancel over direct TLS", r#"["57014",1]"#),
        ("cancel with a long key", r#"["57014",1]"#),
        ("another authority", "true"),
        ("another name", "true"),
        ("asyncpg", r#"[600,"UTF8"]"#),
        ("asyncpg, direct", r#"[600,"UTF8"]"#),
    ];
    assert_eq!(libpq.0.len(), expected.len());
    for (step, (name, value)) in libpq.0.iter().zip(expected) {
        assert_eq!(
            (step.name.as_str(), step.record["value"].to_string().as_str()),
            (name, value),
            "{}",
            step.record
        );
    }
    // 42.5.5 knows neither channel binding nor direct TLS, and ignores both.
    for version in ["42_7_8", "42_5_5"] {
        let jdbc = kit::run(
            &Program::Java(version, "PgJdbc.java"),
            "gateway",
            // PgJDBC verifies the name that it connects to.
            kit::Endpoint { host: "localhost", ..kit::behind(&gateway) },
            &[("FEDGATE_CA", ca.clone()), ("FEDGATE_PART", "tls".to_owned())],
        );
        assert_eq!(jdbc.0.len(), 4);
        for step in &jdbc.0 {
            let canceled = r#"[[["600"]],["57014","canceling statement due to user request"]]"#;
            assert_eq!(
                step.record["value"].to_string(),
                canceled,
                "{version} {}: {}",
                step.name,
                step.record
            );
        }
    }
}
