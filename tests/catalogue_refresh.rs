//! The source changes, and the gateway notices: by itself within `catalogue_refresh`, and at once when an
//! unknown function is named.
//!
//! Invariant: nothing here waits for a fixed time; every change is awaited by asking, with a bound.

mod support;

use std::time::{Duration, Instant};

use fedgate::sql::catalogue::graph;
use fedgate::upstream::catalogue::Loader;
use support::{Gateway, Options, Postgres, Setup};
use tokio_postgres::Client;

/// How long a change may take to be noticed: `catalogue_refresh` is 1 s, and the machine may be slow.
const BOUND: Duration = Duration::from_secs(30);

fn setup(source: &Postgres, refresh: &str) -> Setup {
    let mut setup = support::trusting(source);
    setup.toml = setup
        .toml
        .replace("tls = \"disable\"", &format!("tls = \"disable\"\ncatalogue_refresh = \"{refresh}\""));
    setup
}

/// Asks until the answer is `admitted`; how long that took.
async fn until(client: &Client, sql: &str, admitted: bool) -> Duration {
    let began = Instant::now();
    loop {
        let answer = client.simple_query(sql).await;
        if answer.is_ok() == admitted {
            return began.elapsed();
        }
        assert!(began.elapsed() < BOUND, "{sql}: {answer:?}");
    }
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

    source.execute("climscore", "ALTER FUNCTION f() VOLATILE");
    println!("ALTER FUNCTION: {:?}", until(&client, "SELECT f()", false).await);
    source.execute("climscore", "ALTER FUNCTION f() IMMUTABLE");
    println!("and back: {:?}", until(&client, "SELECT f()", true).await);
    source.execute("climscore", "CREATE OR REPLACE VIEW v AS SELECT id FROM seen WHERE g('x')");
    println!("a view: {:?}", until(&client, "SELECT * FROM v", false).await);
    source.execute("climscore", "CREATE OR REPLACE VIEW v AS SELECT id FROM seen");
    until(&client, "SELECT * FROM v", true).await;
    source.execute(
        "climscore",
        "ALTER TABLE seen ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON seen USING (g('x'))",
    );
    println!("a policy: {:?}", until(&client, "SELECT * FROM v", false).await);
    source.execute("climscore", "ALTER TABLE seen DISABLE ROW LEVEL SECURITY");
    until(&client, "SELECT * FROM v", true).await;
    source.execute("climscore", "CREATE TYPE fresh AS ENUM ('a')");
    until(&client, "SELECT 'a'::fresh", true).await;
    drop(client);
    gateway.stop();
}

#[tokio::test]
async fn a_new_function_can_be_called_soon_and_a_failure_keeps_the_last_catalogue() {
    let source = Postgres::climscore(Options::default());
    source.execute("climscore", "CREATE FUNCTION f() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'");
    let gateway = Gateway::start(setup(&source, "1h"));
    let client = gateway.connect("visitor", "", "climscore").await.unwrap();
    source.execute("climscore", "CREATE FUNCTION fresh() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'");
    println!("a new function: {:?}", until(&client, "SELECT fresh()", true).await);

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

/// What a large catalogue costs; the figures are in docs/guard.md.
#[tokio::test]
async fn a_large_catalogue_loads_in_time() {
    const FUNCTIONS: usize = 20_000;
    const VIEWS: usize = 5_000;
    let source = Postgres::start(Options::default());
    source.execute(
        "postgres",
        &format!(
            "CREATE TABLE base (id int, a text, b text, c timestamptz, d numeric);
             DO $$ BEGIN
               FOR i IN 1..{FUNCTIONS} LOOP
                 EXECUTE format('CREATE FUNCTION f%s(int, text) RETURNS int STABLE LANGUAGE sql AS ''SELECT 1''', i);
               END LOOP;
               FOR i IN 1..{VIEWS} LOOP
                 EXECUTE format('CREATE VIEW v%s AS SELECT x.id, lower(x.a) AS a, count(*) AS n, max(y.c) AS c
                   FROM base x JOIN base y USING (id) WHERE x.b LIKE ''a%%%%'' AND f%s(y.id, y.b) > 1 GROUP BY 1, 2', i, i);
               END LOOP;
             END $$;"
        ),
    );
    let client = source.superuser_client("postgres").await;
    let mut loader = Loader::default();
    let began = Instant::now();
    let rows = loader.rows(&client).await.unwrap().unwrap();
    let loaded = began.elapsed();
    let catalogue = graph::judge(&rows).build();
    let judged = began.elapsed() - loaded;
    assert!(catalogue.size().0 > FUNCTIONS && catalogue.relations("v1").is_empty());
    let began = Instant::now();
    assert!(loader.rows(&client).await.unwrap().is_none(), "nothing has changed");
    let probed = began.elapsed();
    client.batch_execute("ALTER FUNCTION f1(int, text) VOLATILE").await.unwrap();
    let began = Instant::now();
    let rows = loader.rows(&client).await.unwrap().unwrap();
    let again = began.elapsed();
    let catalogue = graph::judge(&rows).build();
    assert!(catalogue.relations("v1")[0].why.is_some() && catalogue.relations("v2").is_empty());
    println!(
        "{FUNCTIONS} functions, {VIEWS} views: read {loaded:?}, judged {judged:?}; unchanged {probed:?}; one changed {again:?}"
    );
    assert!(loaded + judged < Duration::from_secs(50), "a load is given 60 s");
}
