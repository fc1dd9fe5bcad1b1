//! The gateway obeys the configuration policies, over real connections: what is withdrawn, what expires by the clock, where
//! masks are made.
//!
//! Invariant: a session is judged by what a client sees of it.

mod support;

use std::pin::pin;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use serde_json::{Value, json};
use support::{Gateway, Options, Postgres, Setup, blocking, trusting};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

const READ: &str = include_str!("deployments/read.rego");

/// The engine masks, or the gateway would.
fn transform(module: &str) -> String {
    format!(
        r#"package adminconfig

import rego.v1

config contains {{"capability": "read", "decision": {{
	"policy": {{"ID": "masks-at-{module}", "description": "", "version": "0.1"}},
	"restrictions": {{"modules": [{{"property": "name", "values": ["{module}"]}}]}},
}}}} if true
"#
    )
}

fn until_then(seconds: u64) -> String {
    let end = std::time::SystemTime::now() + Duration::from_secs(seconds);
    READ.replace(
        "\tinput.request.usage",
        &format!(
            "\ttime.now_ns() < time.parse_rfc3339_ns(\"{}\")\n\tinput.request.usage",
            humantime::format_rfc3339_seconds(end)
        ),
    )
}

fn document(masked: bool) -> String {
    let place = json!({"catalog": "climscore", "schema": "public", "table": "customers"});
    let mut entry = place.clone();
    entry["column"] = json!("email");
    entry["mask"] = json!("sha256");
    let masks = if masked { json!([entry]) } else { json!([]) };
    json!({
        "version": 1,
        "mask_library": {"sha256": {"strength": 60}},
        "sources": {"climscore": {"catalog": "climscore"}},
        "subjects": {
            "alice": {"kind": "user", "scopes": [place], "masks": masks},
            "akko-admin": {"kind": "user", "scopes": [{"catalog": "*", "schema": "*", "table": "*"}]},
        },
    })
    .to_string()
}

struct House {
    gateway: Gateway,
    source: Postgres,
}

impl House {
    fn start(policy: &str, masked: bool) -> Self {
        let source = Postgres::climscore(Options::default());
        let mut setup: Setup = trusting(&source);
        let toml = "\n[document]\nkind = \"file\"\npath = \"{dir}/policy.json\"\nlook_every = \"100ms\"\n\n[audit]\nkind = \"file\"\n\
                    path = \"{dir}/audit.jsonl\"\nspool = \"{dir}/spool\"\n\n[policy]\nfolders = [\"{dir}/policies\"]\n\
                    modules = [\"{dir}/modules.yaml\"]\nclusters = [\"{dir}/clusters.yaml\"]\n\n[[workload]]\nusers = [\"visitor\"]\n\
                    cluster = \"cluster-north\"\n\n[[workload]]\nusers = [\"trino\"]\ncluster = \"cluster-north\"\n\n[[workload]]\nusers = [\"flyer\"]\n\
                    cluster = \"cluster-north\"\ninterface = \"fybrik-arrow-flight:arrow\"\n";
        let engine =
            "engine = { users = [\"trino\"], comment = \"fedgate query=$QUERY_ID user=$USER\" }\n\n[http]";
        setup.toml = setup.toml.replace("\n[http]", engine) + toml;
        let setup = setup
            .file("policy.json", document(masked))
            .file("modules.yaml", include_str!("deployments/modules.yaml"))
            .file("clusters.yaml", "name: cluster-north\nmetadata: {region: north}\n")
            .file("policies/read.rego", policy);
        Self { gateway: Gateway::start(setup), source }
    }

    /// As a person with an editor does: whole, and under another name first.
    fn write(&self, name: &str, text: &str) {
        let folder = self.gateway.folder();
        std::fs::write(folder.join("new"), text).unwrap();
        std::fs::rename(folder.join("new"), folder.join(name)).unwrap();
    }

    fn deployment(&self, user: &str) -> Value {
        let (_, body) = self.gateway.get("/api/v1/sources");
        let body: Value = serde_json::from_str(&body).unwrap();
        let all = body["sources"][0]["deployments"].as_array().cloned().unwrap_or_default();
        all.into_iter().find(|one| one["users"][0] == user).unwrap_or(Value::Null)
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < Duration::from_secs(40), "never: {what}\n{}", self.gateway.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn deployed(&self, user: &str, read: bool, transform: &str) {
        self.until(&format!("{user}: {read} {transform}"), || {
            let now = self.deployment(user);
            now["read"] == read && now["transform"] == transform
        });
    }

    async fn connect(&self, user: &str) -> Result<Client, tokio_postgres::Error> {
        let (client, connection) =
            tokio_postgres::connect(&self.gateway.url(user, "", "climscore"), NoTls).await?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(client)
    }

    /// SQLSTATE and DETAIL of a connection that is refused.
    async fn refused(&self, user: &str) -> (String, String) {
        let Err(error) = self.connect(user).await else { panic!("{user} was let in") };
        let error = error.as_db_error().unwrap_or_else(|| panic!("{error}"));
        (error.code().code().to_owned(), error.detail().unwrap_or_default().to_owned())
    }
}

async fn value(client: &Client, sql: &str) -> Result<String, String> {
    match client.simple_query(sql).await {
        Ok(rows) => Ok(rows
            .iter()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })
            .unwrap_or_default()),
        Err(error) => Err(error.code().map_or_else(|| "closed".to_owned(), |code| code.code().to_owned())),
    }
}

/// Waits for the end of a session that does nothing; what the next statement meets.
async fn ended(client: &Client) -> String {
    let began = Instant::now();
    while !client.is_closed() {
        assert!(began.elapsed() < Duration::from_secs(40), "the session goes on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    value(client, "SELECT 1").await.unwrap_err()
}

#[test]
fn a_read_policy_that_is_withdrawn_refuses_the_next_and_ends_the_open() {
    let house = House::start(READ, false);
    blocking(async {
        house.deployed("visitor", true, "none");
        // What no module offers is not there for whoever wants it so.
        assert_eq!(house.deployment("flyer")["read"], false);
        assert!(house.deployment("flyer")["reason"].as_str().unwrap().contains("climscore"));
        let open = house.connect("visitor").await.unwrap();
        assert_eq!(value(&open, "SELECT count(*) FROM communes").await, Ok("720".to_owned()));
        // A set that cannot be understood changes nothing.
        house.write("policies/read.rego", "package adminconfig\n\nconfig[{");
        house.until("the fault", || house.gateway.get("/api/v1/status").1.contains("read.rego:"));
        assert_eq!(value(&open, "SELECT 1").await, Ok("1".to_owned()));
        house.connect("visitor").await.unwrap();
        // Other inputs can be asked about.
        let input = json!({
            "workload": {"uuid": "x", "cluster": {"name": "cluster-north", "metadata": {"region": "north"}}, "properties": {}},
            "request": {"datasetID": "climscore", "usage": "read", "dataset": {}},
        });
        let (status, answer) = house.gateway.post("/api/v1/policy/eval", &input.to_string());
        assert_eq!(status, 200, "{answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(answer["decisions"]["read"]["deploy"], "True", "{answer}");
        assert_eq!(answer["decisions"]["read"]["policies"], json!(["read-here"]));
        assert_eq!(answer["plan"]["steps"][0]["module"], "fedgate");

        house.write("policies/read.rego", "package adminconfig\n\nimport rego.v1\n");
        house.deployed("visitor", false, "none");
        assert_eq!(ended(&open).await, "closed");
        let (code, detail) = house.refused("visitor").await;
        assert_eq!(code, "42501");
        assert!(detail.contains("no policy that is in force deploys reads"), "{detail}");
        house.gateway.wait_for_line("terminating connection due to administrator command");
        // One that refuses is named with what it says.
        let refuses = READ.replace("\"deploy\": \"True\"", "\"deploy\": \"False\"");
        house.write("policies/read.rego", &refuses);
        house.until("another reason", || house.deployment("visitor").to_string().contains("read-here"));
        let (_, detail) = house.refused("visitor").await;
        assert!(detail.contains("policy \"read-here\" (Reads are deployed in the north)"), "{detail}");
        // And back.
        house.write("policies/read.rego", READ);
        house.deployed("visitor", true, "none");
        house.connect("visitor").await.unwrap();
        // Each change of an outcome is in the audit trail.
        let trail = house.gateway.folder().join("audit.jsonl");
        house.until("the events", || {
            let text = std::fs::read_to_string(&trail).unwrap_or_default();
            let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
            let of = |status: u64| {
                events.iter().any(|event| {
                    event["class_uid"] == 3004
                        && event["status_id"] == status
                        && event["entity"]["type"] == "Deployment"
                })
            };
            of(1) && of(2)
        });
    });
}

/// Amid an answer, too: rows stop, and the source no longer works on them.
#[test]
fn a_read_policy_that_is_withdrawn_ends_an_answer_that_is_on_its_way() {
    const ENDLESS: &str = "SELECT a.*, b.* FROM communes a, communes b, communes c, communes d";
    let house = House::start(READ, false);
    let working = || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%communes d'";
        house.source.value("postgres", sql).unwrap()
    };
    blocking(async {
        house.deployed("visitor", true, "none");
        // One that takes what comes, and one that has stopped to.
        let (taking, stuck) =
            (house.connect("visitor").await.unwrap(), house.connect("visitor").await.unwrap());
        let mut answer = pin!(taking.simple_query_raw(ENDLESS).await.unwrap());
        let mut held = pin!(stuck.query_raw::<_, &str, _>(ENDLESS, []).await.unwrap());
        assert!(held.next().await.unwrap().is_ok());
        let mut rows = 0;
        while rows < 10_000 {
            rows += u64::from(matches!(answer.next().await.unwrap().unwrap(), SimpleQueryMessage::Row(_)));
        }
        assert_eq!(working(), "2");
        house.write("policies/read.rego", "package adminconfig\n\nimport rego.v1\n");
        let began = Instant::now();
        let error = loop {
            match answer.next().await.expect("the answer ends well") {
                Ok(_) => rows += 1,
                Err(error) => break error,
            }
            assert!(began.elapsed() < Duration::from_secs(40), "rows go on: {rows}");
        };
        assert_eq!(error.code().map(|code| code.code()), Some("57P01"), "{error}");
        // It was ended when the outcome turned, and not long after.
        house.deployed("visitor", false, "none");
        let turned = Instant::now();
        assert_eq!(ended(&taking).await, "closed");
        house.until("the end of the work", || working() == "0");
        assert!(turned.elapsed() < Duration::from_secs(10), "{:?}", turned.elapsed());
        // It took nothing, so it may not have heard why.
        while held.next().await.expect("the answer ends well").is_ok() {}
        assert_eq!(ended(&stuck).await, "closed");
        assert_eq!(house.refused("visitor").await.0, "42501");
    });
}

#[test]
fn a_policy_that_expires_ends_sessions_with_no_reload() {
    let house = House::start(&until_then(20), false);
    blocking(async {
        house.deployed("visitor", true, "none");
        let open = house.connect("visitor").await.unwrap();
        assert_eq!(value(&open, "SELECT 1").await, Ok("1".to_owned()));
        let began = Instant::now();
        assert_eq!(ended(&open).await, "closed");
        assert!(began.elapsed() < Duration::from_secs(20 + 5 + 5), "{:?}", began.elapsed());
        assert_eq!(house.refused("visitor").await.0, "42501");
        let log = house.gateway.log();
        assert!(!log.contains("configuration reloaded"), "{log}");
    });
}

#[test]
fn where_nothing_masks_nobody_with_masks_reads() {
    let house = House::start(READ, true);
    let by = |user: &str| format!("SELECT email FROM customers LIMIT 1 /*fedgate query=q1 user={user}*/");
    blocking(async {
        house.write("policies/where.rego", &transform("trino"));
        house.deployed("trino", true, "engine");
        let engine = house.connect("trino").await.unwrap();
        assert!(value(&engine, &by("alice")).await.is_ok(), "the engine masks for its users");
        // Nobody masks for who comes by another way.
        let (code, detail) = house.refused("visitor").await;
        assert_eq!(code, "42501");
        assert!(detail.contains("this user has masks"), "{detail}");

        // The transform moves to the gateway, which cannot mask: the engine's users are told apart.
        engine
            .simple_query("PREPARE p AS SELECT email FROM customers /*fedgate query=q1 user=alice*/")
            .await
            .unwrap();
        house.write("policies/where.rego", &transform("fedgate"));
        house.deployed("trino", true, "gateway");
        assert_eq!(value(&engine, &by("alice")).await, Err("42501".to_owned()));
        assert_eq!(value(&engine, &by("nobody")).await, Err("42501".to_owned()));
        assert_eq!(value(&engine, "SELECT email FROM customers").await, Err("42501".to_owned()));
        assert_eq!(value(&engine, "EXECUTE p").await, Err("42501".to_owned()));
        assert!(value(&engine, &by("akko-admin")).await.unwrap().contains('@'), "who sees no masks reads on");
        assert!(
            engine
                .query("SELECT email FROM customers LIMIT 1 /*fedgate query=q1 user=alice*/", &[])
                .await
                .is_err()
        );
        // A statement that was prepared in the protocol, in a session that goes on, is judged again when it is bound.
        let prepared = engine.prepare(&by("akko-admin")).await.unwrap();
        engine.query(&prepared, &[]).await.unwrap();
        house.write("policies/where.rego", &transform("trino"));
        house.deployed("trino", true, "engine");
        let prepared = engine.prepare(&by("alice")).await.unwrap();
        engine.query(&prepared, &[]).await.unwrap();
        engine.batch_execute("BEGIN").await.unwrap();
        engine
            .batch_execute(&format!("DECLARE c CURSOR FOR {}", by("alice").replace("LIMIT 1", "")))
            .await
            .unwrap();
        assert!(
            value(&engine, "FETCH 1 FROM c /*fedgate query=q1 user=alice*/").await.unwrap().contains('@')
        );
        house.write("policies/where.rego", &transform("fedgate"));
        house.deployed("trino", true, "gateway");
        let fetched = value(&engine, "FETCH 1 FROM c /*fedgate query=q1 user=akko-admin*/").await;
        assert_eq!(fetched, Err("42501".to_owned()), "what alice began goes on under another name");
        engine.batch_execute("ROLLBACK").await.unwrap();
        let error = engine.query(&prepared, &[]).await.unwrap_err();
        assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{error}");
        // Nothing is masked any more: everybody reads.
        house.write("policy.json", &document(false));
        house.deployed("trino", true, "none");
        assert!(value(&engine, &by("alice")).await.unwrap().contains('@'));
        let direct = house.connect("visitor").await.unwrap();
        // A mask comes: what is open ends.
        house.write("policy.json", &document(true));
        house.deployed("visitor", true, "gateway");
        assert_eq!(ended(&direct).await, "closed");
        assert_eq!(value(&engine, &by("alice")).await, Err("42501".to_owned()));
    });
}

#[test]
fn policies_that_were_never_understood_let_nobody_in() {
    let house = House::start("package adminconfig\n\nconfig[{", false);
    blocking(async {
        house.until("the fault", || house.gateway.get("/api/v1/status").1.contains("read.rego:"));
        let (code, detail) = house.refused("visitor").await;
        assert_eq!((code.as_str(), detail.contains("cannot be understood")), ("42501", true), "{detail}");
        let status: Value = serde_json::from_str(&house.gateway.get("/api/v1/status").1).unwrap();
        assert_eq!(status["policy"]["revision"], Value::Null);
        house.write("policies/read.rego", READ);
        house.deployed("visitor", true, "none");
        house.connect("visitor").await.unwrap();
    });
}

/// A new set that gives no answer is not taken, and is when it does; two policies that contradict each other refuse.
#[test]
fn a_set_that_gives_no_answer_leaves_the_last_good_one() {
    let house = House::start(READ, false);
    let fault = |part: &str| {
        house.until(part, || {
            let status: Value = serde_json::from_str(&house.gateway.get("/api/v1/status").1).unwrap();
            status["policy"]["fault"]["message"].as_str().is_some_and(|message| message.contains(part))
        });
    };
    let whole = |rules: &str| format!("package adminconfig\n\n{rules}\n");
    blocking(async {
        house.deployed("visitor", true, "none");
        let open = house.connect("visitor").await.unwrap();
        for (rules, part) in [
            ("config[x] { x := \"a text\" }", "bad.rego:3: rule config"),
            ("config[x] { n := numbers.range(1, 3000); n[_] + n[_] * n[_] < 0; x := 1 }", "bad.rego:3"),
            ("config[x] { x := json.marshal(numbers.range(1, 9000000000)) }", "bad.rego:3: numbers.range"),
        ] {
            house.write("policies/bad.rego", &whole(rules));
            fault(part);
            assert_eq!(value(&open, "SELECT 1").await, Ok("1".to_owned()), "{part}");
            house.connect("visitor").await.unwrap();
            assert_eq!(house.deployment("visitor")["read"], true, "{part}");
        }
        // One step that would take hours: values that hold themselves twice, forty deep.
        let deep = |end: &str| format!("{}{end}{}", "d(".repeat(40), ")".repeat(40));
        let endless =
            format!("d(x) = [x, x]\nconfig[x] {{ a := {}; b := {}; a == b; x := 1 }}", deep("1"), deep("1"));
        house.write("policies/bad.rego", &whole(&endless));
        fault("a step of the new set does not end");
        assert_eq!(value(&open, "SELECT 1").await, Ok("1".to_owned()));
        std::fs::remove_file(house.gateway.folder().join("policies/bad.rego")).unwrap();
        house.until("the end of the fault", || {
            let status: Value = serde_json::from_str(&house.gateway.get("/api/v1/status").1).unwrap();
            status["policy"]["fault"].is_null()
        });
        let no =
            READ.replace("\"deploy\": \"True\"", "\"deploy\": \"False\"").replace("read-here", "not-here");
        house.write("policies/no.rego", &no);
        house.deployed("visitor", false, "none");
        fault("read-here");
        assert_eq!(ended(&open).await, "closed");
        let (_, detail) = house.refused("visitor").await;
        assert!(detail.contains("not-here") && detail.contains("contradict"), "{detail}");
    });
}

/// As the kubelet changes a mounted ConfigMap: another folder behind the same link, with files that are as old and as long.
#[test]
fn a_mounted_config_map_that_is_swapped_is_seen() {
    use std::os::unix::fs::symlink;
    let house = House::start(READ, false);
    house.deployed("visitor", true, "none");
    let folder = house.gateway.folder().join("policies");
    let version = |name: &str, text: &str| {
        std::fs::create_dir(folder.join(name)).unwrap();
        std::fs::write(folder.join(name).join("read.rego"), text).unwrap();
        let file = std::fs::File::options().write(true).open(folder.join(name).join("read.rego")).unwrap();
        file.set_modified(std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)).unwrap();
    };
    let swap = |name: &str| {
        symlink(name, folder.join("..data_tmp")).unwrap();
        std::fs::rename(folder.join("..data_tmp"), folder.join("..data")).unwrap();
    };
    version("..first", READ);
    swap("..first");
    symlink("..data/read.rego", folder.join("new")).unwrap();
    std::fs::rename(folder.join("new"), folder.join("read.rego")).unwrap();
    version("..second", &READ.replace("cluster-north", "cluster-south"));
    swap("..second");
    house.deployed("visitor", false, "none");
    swap("..first");
    house.deployed("visitor", true, "none");
}
