//! The audit trail of a whole gateway before a real PostgreSQL, in a file.
//!
//! Invariant: what a client did is in the file as an event that says who, what kind and how often, and never a literal.

mod support;

use serde_json::Value;
use support::{Gateway, Options, Postgres, Setup};

fn setup(source: &Postgres, audit: &str) -> Setup {
    let mut base = support::trusting(source);
    let toml = base.toml.replace(
        "access = [",
        "engine = { users = [\"trino\"], comment = \"fedgate query=$QUERY_ID user=$USER\" }\naccess = [",
    );
    let audit = format!(
        "\n[audit]\nkind = \"file\"\npath = \"{{dir}}/audit.jsonl\"\nspool = \"{{dir}}/spool\"\n{audit}\n"
    );
    base.toml = toml + &audit;
    base
}

fn events(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Stops the gateway and gives what its audit file then holds.
fn stopped(gateway: Gateway) -> Vec<Value> {
    // The folder goes with the gateway: the file has a second name outside of it.
    let kept = tempfile::tempdir_in(gateway.folder().parent().unwrap()).unwrap();
    let kept_file = kept.path().join("audit.jsonl");
    let file = gateway.folder().join("audit.jsonl");
    if !file.exists() {
        std::fs::write(&file, "").unwrap();
    }
    std::fs::hard_link(&file, &kept_file).unwrap();
    let log = gateway.stop();
    assert!(!log.contains("wait in the spool"), "{log}");
    events(&std::fs::read_to_string(&kept_file).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_arrives_with_its_end_user_and_without_its_literals() {
    let source = Postgres::climscore(Options::default());
    let gateway = Gateway::start(setup(&source, "window = \"1h\""));
    let client = gateway.connect("trino", "", "climscore").await.unwrap();
    for number in 0..3 {
        let sql = format!(
            "UPDATE customers SET email = 'topsecret{number}@example.com' WHERE id = 4711{number} /*fedgate query=20261128_{number} user=alice*/"
        );
        assert!(client.simple_query(&sql).await.is_err());
    }
    assert!(client.prepare("DELETE FROM customers WHERE id = $1").await.is_err());
    // A read: nothing is told of it unless it is asked for.
    client.simple_query("SELECT count(*) FROM customers").await.unwrap();
    let visitor = gateway.connect("visitor", "", "climscore").await.unwrap();
    assert!(visitor.simple_query("SELECT pg_sleep(0) /*fedgate query=q user=root*/").await.is_err());
    drop((client, visitor));
    let events = stopped(gateway);
    let text = format!("{events:?}");
    assert!(!text.contains("topsecret") && !text.contains("4711"), "{text}");
    assert_eq!(events.len(), 3, "{text}");
    let update = &events[0];
    assert_eq!(update["actor"]["user"]["name"], "alice");
    assert_eq!(update["actor"]["user"]["account"]["name"], "trino");
    assert_eq!((&update["count"], &update["status_code"]), (&3.into(), &"25006".into()));
    assert_eq!(update["unmapped"]["class"], "write");
    assert_eq!(update["unmapped"]["query_id"], "20261128_2");
    assert_eq!(update["unmapped"]["fingerprint"].as_str().unwrap().len(), 32);
    assert_eq!(update["database"]["name"], "climscore");
    assert_eq!(events[1]["actor"]["user"]["name"], "trino");
    assert_ne!(update["unmapped"]["fingerprint"], events[1]["unmapped"]["fingerprint"]);
    let denied = events.iter().find(|event| event["unmapped"]["class"] == "function").unwrap();
    // Only an engine's word counts.
    assert_eq!(denied["actor"]["user"], serde_json::json!({"name": "visitor"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_arrive_with_their_tables_and_rows_where_they_are_asked_for() {
    let source = Postgres::climscore(Options::default());
    let gateway = Gateway::start(setup(&source, "window = \"1h\"\nreads = true"));
    let mut client = gateway.connect("trino", "", "climscore").await.unwrap();
    let read = "SELECT name FROM public.communes WHERE code < 'secret' LIMIT 7 /*fedgate query=q1 user=bob*/";
    client.simple_query(read).await.unwrap();
    let rows = client.query("SELECT id FROM customers WHERE id > $1", &[&0]).await.unwrap();
    assert!(rows.len() > 100);
    // In portions, as Trino fetches, and not to the end.
    let transaction = client.transaction().await.unwrap();
    let portal = transaction.bind("SELECT score FROM scores", &[]).await.unwrap();
    assert_eq!(transaction.query_portal(&portal, 10).await.unwrap().len(), 10);
    assert_eq!(transaction.query_portal(&portal, 10).await.unwrap().len(), 10);
    drop((portal, transaction));
    client.simple_query("SELECT 1; SELECT code FROM communes LIMIT 2").await.unwrap();
    drop(client);
    let events = stopped(gateway);
    let of = |table: &str, rows: u64| {
        let found = events.iter().find(|event| {
            event["unmapped"]["tables"] == serde_json::json!([table]) && event["unmapped"]["rows"] == rows
        });
        found.unwrap_or_else(|| panic!("{table} {rows}: {events:#?}"))
    };
    let limited = of("public.communes", 7);
    assert_eq!((&limited["actor"]["user"]["name"], &limited["disposition_id"]), (&"bob".into(), &1.into()));
    assert_eq!(limited["unmapped"]["query_id"], "q1");
    of("customers", rows.len() as u64);
    assert_eq!(of("scores", 20)["count"], 2);
    of("communes", 2);
    assert!(!format!("{events:?}").contains("secret"));
}

#[test]
fn a_spool_that_another_gateway_has_is_a_clear_error() {
    let source = Postgres::climscore(Options::default());
    let first = Gateway::start(setup(&source, ""));
    let mut second = setup(&source, "");
    let spool = first.folder().join("spool").display().to_string();
    second.toml = second.toml.replace("{dir}/spool", &spool);
    let Err(log) = Gateway::try_start(second) else { panic!("two gateways, one spool") };
    assert!(log.contains("in use by another process"), "{log}");
    first.stop();
}
