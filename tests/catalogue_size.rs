//! What a large catalogue costs: 20,000 functions and 5,000 views.
//!
//! Invariant: it is loaded and judged well within the time that a load is given.

mod support;

use std::time::{Duration, Instant};

use fedgate::sql::catalogue::graph;
use fedgate::upstream::catalogue::Loader;
use support::{Options, Postgres};

/// What a large catalogue costs.
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
