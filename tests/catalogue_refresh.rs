//! The source changes, and the gateway notices: by itself within `catalogue_refresh`, and at once when an
//! unknown function is named.
//!
//! Invariant: nothing here waits for a fixed time; every change is awaited by asking, with a bound.

mod support;

use std::time::{Duration, Instant};

use support::{Gateway, Options, Postgres, Setup};
use tokio_postgres::Client;

/// How long a change may take to be noticed: `catalogue_refresh` is 1 s, and the machine may be slow.
const BOUND: Duration = Duration::from_secs(60);

fn setup(source: &Postgres, refresh: &str) -> Setup {
    let mut setup = support::trusting(source);
    setup.toml = setup
        .toml
        .replace("tls = \"disable\"", &format!("tls = \"disable\"\ncatalogue_refresh = \"{refresh}\""));
    setup
}

/// Changes the source, waits for the next catalogue, and asks whether `sql` is admitted with it.
async fn after(source: &Postgres, gateway: &Gateway, client: &Client, change: &str, sql: &str) -> bool {
    let mark = gateway.log_mark();
    source.execute("climscore", change);
    let began = Instant::now();
    gateway.wait_for_line_after(mark, "function catalogue in force");
    assert!(began.elapsed() < BOUND, "{change}");
    println!("{:?} after {change}", began.elapsed());
    client.simple_query(sql).await.is_ok()
}

#[tokio::test]
async fn what_changes_at_the_source_is_noticed() {
    let source = Postgres::climscore(Options::default());
    source.execute(
        "climscore",
        "CREATE TABLE seen (id int); CREATE VIEW v AS SELECT id FROM seen;
         CREATE FUNCTION f() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1';
         CREATE FUNCTION g(text) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN true; END';",
    );
    let gateway = Gateway::start(setup(&source, "1s"));
    let client = gateway.connect("visitor", "", "climscore").await.unwrap();
    client.simple_query("SELECT f()").await.unwrap();
    client.simple_query("SELECT * FROM v").await.unwrap();

    for (change, sql, admitted) in [
        ("ALTER FUNCTION f() VOLATILE", "SELECT f()", false),
        ("ALTER FUNCTION f() IMMUTABLE", "SELECT f()", true),
        ("CREATE OR REPLACE VIEW v AS SELECT id FROM seen WHERE g('x')", "SELECT * FROM v", false),
        ("CREATE OR REPLACE VIEW v AS SELECT id FROM seen", "SELECT * FROM v", true),
        (
            "ALTER TABLE seen ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON seen USING (g('x'))",
            "TABLE v",
            false,
        ),
        ("ALTER TABLE seen DISABLE ROW LEVEL SECURITY", "TABLE v", true),
        ("CREATE TYPE fresh AS ENUM ('a')", "SELECT 'a'::fresh", true),
    ] {
        assert_eq!(after(&source, &gateway, &client, change, sql).await, admitted, "{change}: {sql}");
    }
    drop(client);
    gateway.stop();
}

#[tokio::test]
async fn a_new_function_can_be_called_soon_and_a_failure_keeps_the_last_catalogue() {
    let source = Postgres::climscore(Options::default());
    source.execute("climscore", "CREATE FUNCTION f() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'");
    let gateway = Gateway::start(setup(&source, "1h"));
    let client = gateway.connect("visitor", "", "climscore").await.unwrap();
    let mark = gateway.log_mark();
    source.execute("climscore", "CREATE FUNCTION fresh() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'");
    // Nothing but its name asks for a new catalogue.
    client.simple_query("SELECT fresh()").await.unwrap_err();
    gateway.wait_for_line_after(mark, "function catalogue in force");
    client.simple_query("SELECT fresh()").await.unwrap();

    // No new connection, and so no new catalogue; what is open goes on.
    source.execute("postgres", "ALTER DATABASE climscore ALLOW_CONNECTIONS false");
    let mark = gateway.log_mark();
    client.simple_query("SELECT unknown()").await.unwrap_err();
    gateway.wait_for_line_after(mark, "the function catalogue could not be loaded");
    client.simple_query("SELECT fresh()").await.unwrap();
    let (_, metrics) = gateway.get("/metrics");
    let failed = metrics.lines().any(|line| {
        line.starts_with("fedgate_catalogue_refreshes_total")
            && line.contains("failed")
            && !line.ends_with(" 0")
    });
    assert!(failed, "{metrics}");
    drop(client);
    gateway.stop();
}

#[tokio::test]
async fn a_load_that_waits_holds_nobody_up() {
    let source = Postgres::climscore(Options::default());
    source.execute("climscore", "CREATE FUNCTION f() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'");
    let gateway = Gateway::start(setup(&source, "1h"));
    let client = gateway.connect("visitor", "", "climscore").await.unwrap();
    client.simple_query("SELECT f()").await.unwrap();

    // The loader reads policies; statements over tables without any do not.
    let admin = source.superuser_client("climscore").await;
    admin.batch_execute("BEGIN; LOCK TABLE pg_catalog.pg_policy IN ACCESS EXCLUSIVE MODE").await.unwrap();
    source.execute("climscore", "CREATE FUNCTION fresh() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'");
    client.simple_query("SELECT fresh()").await.unwrap_err();
    let waits = "SELECT count(*) FROM pg_catalog.pg_locks
                  WHERE NOT granted AND relation = 'pg_catalog.pg_policy'::regclass";
    let began = Instant::now();
    while admin.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        assert!(began.elapsed() < BOUND, "nothing loads the catalogue");
        tokio::task::yield_now().await;
    }
    // While it waits, old texts and new ones are judged by the last catalogue, also those of a text's first time.
    for number in 0..200 {
        client.simple_query(&format!("SELECT f() + {number} AS n{number}")).await.unwrap();
    }
    client.simple_query("SELECT fresh()").await.unwrap_err();
    let still: i64 = admin.query_one(waits, &[]).await.unwrap().get(0);
    assert_eq!(still, 1, "the load did not wait as long as that");

    let mark = gateway.log_mark();
    admin.batch_execute("ROLLBACK").await.unwrap();
    gateway.wait_for_line_after(mark, "function catalogue in force");
    client.simple_query("SELECT fresh()").await.unwrap();
    drop(client);
    gateway.stop();
}
