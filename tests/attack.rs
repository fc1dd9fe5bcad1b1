//! A schema full of volatile functions behind a superuser's login: no admitted statement runs one.
//!
//! Invariant: the server decides. Every planted function writes to the server's log when it runs, and the
//! fingerprint of the whole server is the same afterwards.

mod support;

use std::time::{Duration, Instant};

use support::hostile::{HARMFUL, PLACES, PLANTED, RAN, Random, respell};
use support::{Gateway, Options, Postgres};
use tokio_postgres::Client;
use tokio_postgres::types::{Kind, Type};

/// How long the generated statements may take.
const PATIENCE: Duration = Duration::from_secs(25);

/// Whether the source saw it.
async fn admitted(client: &Client, sql: &str) -> bool {
    let answer = client.simple_query(sql).await;
    let admitted = match &answer {
        Ok(_) => true,
        Err(error) => match error.as_db_error() {
            // PostgreSQL's own errors name the place in its source.
            Some(error) => error.file().is_some(),
            // This client does not know COPY in a simple query.
            None => {
                assert!(!client.is_closed(), "{sql:?} ended the session: {error}");
                true
            }
        },
    };
    if answer.is_err() || sql.contains("BEGIN") || sql.contains("PREPARE") {
        client.simple_query("ROLLBACK; DEALLOCATE ALL").await.expect("the session goes on");
    }
    admitted
}

/// What the log says of planted functions since `mark`.
fn ran(source: &Postgres, mark: usize) -> Vec<String> {
    let log = source.statement_log_since(mark);
    let lines: Vec<&str> = log.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        if line.contains(RAN) {
            found.extend(lines.iter().take(at + 1).skip(at.saturating_sub(4)).map(|line| (*line).to_owned()));
        }
    }
    found
}

#[tokio::test]
async fn nothing_planted_runs() {
    let source = Postgres::climscore(Options::default());
    source.execute("climscore", PLANTED);
    let mark = source.log_mark();
    let direct = source.psql("climscore").args(["-c", "SELECT (1).domi"]).output().unwrap();
    assert!(direct.status.success(), "{}", String::from_utf8_lossy(&direct.stderr));
    assert!(!ran(&source, mark).is_empty(), "a planted function tells when it runs");

    let gateway = Gateway::start(support::trusting(&source));
    let client = gateway.connect("visitor", "", "climscore").await.unwrap();
    let (before, mark) = (source.fingerprint(), source.log_mark());

    let began = Instant::now();
    let (mut tried, mut passed) = (0, 0);
    let mut random = Random(1);
    for place in PLACES {
        for harmful in HARMFUL {
            tried += 1;
            passed += usize::from(admitted(&client, &place.replace("{}", harmful)).await);
        }
    }
    while began.elapsed() < PATIENCE {
        let inner = match random.below(4) {
            0 => format!("({})", random.one(PLACES).replace("{}", random.one(HARMFUL))),
            _ => random.one(HARMFUL).to_owned(),
        };
        let sql = respell(&random.one(PLACES).replace("{}", &inner), &mut random);
        tried += 1;
        passed += usize::from(admitted(&client, &sql).await);
    }
    println!("{tried} statements, {passed} of them admitted");
    let found = ran(&source, mark);
    assert!(found.is_empty(), "{}", found.join("\n"));
    let after = source.fingerprint();
    assert!(before == after, "{:?}", before.difference(&after));
    assert!(tried > PLACES.len() * HARMFUL.len());

    // The places themselves are fine.
    let mut good = 0;
    for place in PLACES {
        good += usize::from(admitted(&client, &place.replace("{}", "reads(1)")).await);
    }
    assert!(good > PLACES.len() * 3 / 4, "only {good} of {} places are admitted at all", PLACES.len());
    drop(client);
    gateway.stop();
}

#[tokio::test]
async fn parameters_of_planted_types_are_refused() {
    let source = Postgres::climscore(Options::default());
    source.execute("climscore", PLANTED);
    let gateway = Gateway::start(support::trusting(&source));
    let client = gateway.connect("visitor", "", "climscore").await.unwrap();
    let mark = source.log_mark();
    for (name, admitted) in
        [("dom", false), ("dom[]", false), ("comp", false), ("td", false), ("my", false), ("t", true)]
    {
        let oid = source.value("climscore", &format!("SELECT '{name}'::regtype::oid::bigint")).unwrap();
        let parameter = Type::new(name.to_owned(), oid.parse().unwrap(), Kind::Simple, "public".to_owned());
        let prepared = client.prepare_typed("SELECT $1 IS NULL", &[parameter]).await;
        assert_eq!(prepared.is_ok(), admitted, "{name}: {:?}", prepared.err());
    }
    let unknown = Type::new("unknown".to_owned(), 4_000_000_000, Kind::Simple, "public".to_owned());
    let error = client.prepare_typed("SELECT $1 IS NULL", &[unknown]).await.unwrap_err();
    assert!(error.to_string().contains("db error"), "{error}");
    assert!(ran(&source, mark).is_empty());
    drop(client);
    gateway.stop();
}

#[tokio::test]
async fn no_transaction_leaves_the_read_only_mode() {
    const SPELLINGS: &[&str] = &[
        "RESET transaction_read_only",
        "RESET \"transaction_read_only\"",
        "SET transaction_read_only TO DEFAULT",
        "SET LOCAL transaction_read_only = DEFAULT",
        "SET SESSION TRANSACTION_READ_ONLY TO DEFAULT",
        "SET transaction_read_only FROM CURRENT",
        "SET transaction_read_only = off",
        "SET TRANSACTION READ ONLY, READ WRITE",
        "SET TRANSACTION READ WRITE, READ ONLY",
        "SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE",
        "SET default_transaction_read_only TO DEFAULT",
        "RESET default_transaction_read_only",
        "RESET ALL",
        "SELECT set_config('transaction_read_only', NULL, true)",
        "SELECT set_config('transaction_read_only', 'off', true)",
        "START TRANSACTION READ WRITE",
        "SAVEPOINT a; RESET transaction_read_only",
        "COMMIT; BEGIN READ WRITE",
        "COMMIT AND CHAIN",
        "ROLLBACK AND CHAIN",
        "DISCARD ALL",
    ];
    let source = Postgres::climscore(Options::default());
    let gateway = Gateway::start(support::trusting(&source));
    let client = gateway.connect("visitor", "", "climscore").await.unwrap();
    for spelling in SPELLINGS {
        for text in [
            format!("BEGIN; {spelling}; SHOW transaction_read_only"),
            format!("{spelling}; SHOW transaction_read_only"),
        ] {
            if let Ok(messages) = client.simple_query(&text).await {
                let shown = messages.iter().rev().find_map(|message| match message {
                    tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                    _ => None,
                });
                assert_eq!(shown.as_deref(), Some("on"), "{text}");
            }
            client.simple_query("ROLLBACK").await.unwrap();
        }
    }
    drop(client);
    gateway.stop();
}
