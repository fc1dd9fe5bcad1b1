//! The second oracle: what the guard admits is run on a server that would let it write, and the server is the
//! same afterwards.
//!
//! Invariant: the server decides. No rule of the guard's is repeated here; an effect is what [`watch`] sees.
//!
//! `EFFECTS_SECONDS` (30) says for how long texts are made, `EFFECTS_SEED` (1) which.

#[path = "effects/depths.rs"]
mod depths;
#[path = "../oracle/src/generate.rs"]
#[allow(dead_code, reason = "oracle/ uses the rest")]
mod generate;
#[path = "effects/inputs.rs"]
mod inputs;
#[path = "../oracle/src/mutate.rs"]
#[allow(dead_code, reason = "oracle/ uses the rest")]
mod mutate;
#[path = "wire/raw.rs"]
#[allow(dead_code, reason = "tests/wire.rs uses the rest")]
mod raw;
mod support;
#[path = "effects/watch.rs"]
mod watch;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use fedgate::guard::{Context, Mode, Step, judge};
use fedgate::ids::{SourceName, StatementClass};
use fedgate::sql::Limits;
use fedgate::sql::catalogue::Catalogue;
use fedgate::upstream::catalogue;
use rand::SeedableRng;
use rand::rngs::StdRng;
use raw::{Message, Raw, frame, message};
use support::hostile::{HARMFUL, PLANTED, RAN, Random};
use support::{Gateway, SUPERUSER, SUPERUSER_PASSWORD, Setup};
use watch::{Look, READER, Scratch, reader, superuser};

/// Texts between two looks at the whole server.
const BATCH: usize = 250;
/// How long one statement may take; a mutation may well join everything with everything.
const STATEMENT: &str = "2s";

/// What the cases of `tests/guard` speak of, and the extensions that PostgreSQL brings.
const PLAIN: &str = "
CREATE TABLE t (id int, a int, b text, c text, d jsonb, x int, y int, z timestamptz, name text, i int, n numeric, ts tsvector, j json, g int[]);
INSERT INTO t SELECT i, i, 'b' || i, 'c', '{\"a\": 1}', i, i, now(), 'n' || i, i, i, 'a b', '[1,2]', '{1,2}' FROM generate_series(1, 5) AS i;
CREATE TABLE a AS TABLE t; CREATE TABLE b AS TABLE t; CREATE TABLE u AS TABLE t; CREATE TABLE x AS TABLE t; CREATE TABLE y AS TABLE t;
CREATE TABLE customers AS SELECT id, name, name AS email, 1 AS risk FROM t; CREATE TABLE communes AS SELECT id, name, name AS nom, id AS population, b AS code FROM t;
CREATE TABLE canary AS SELECT 1 AS id, 'sings' AS name; CREATE TABLE probe AS SELECT i AS id, 'name ' || i AS name FROM generate_series(1, 5) AS i;
CREATE SEQUENCE s; CREATE SEQUENCE counter; CREATE SEQUENCE canary_numbers;
CREATE TABLE ran_here (what text);
CREATE FUNCTION ran(what text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE LOG 'PLANTED FUNCTION RAN: %', what; END $$;
CREATE FUNCTION log_visit(int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('log_visit'); RETURN true; END $$;
CREATE FUNCTION touch() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('touch'); RETURN 1; END $$;
CREATE FUNCTION risk_of(int) RETURNS int STABLE LANGUAGE sql AS 'SELECT $1';
SELECT lo_from_bytea(1, 'large'); SELECT lo_from_bytea(16384, 'large');
CREATE MATERIALIZED VIEW kept AS SELECT count(*) FROM t; CREATE VIEW shown AS SELECT id, name FROM t;
DO $$ DECLARE e text; BEGIN
  FOR e IN SELECT name FROM pg_available_extensions WHERE name IN ('adminpack','amcheck','autoinc','bloom','btree_gin','btree_gist','citext',
    'cube','dblink','dict_int','dict_xsyn','earthdistance','file_fdw','fuzzystrmatch','hstore','insert_username','intarray','isn','lo','ltree',
    'moddatetime','old_snapshot','pageinspect','pg_buffercache','pg_freespacemap','pg_prewarm','pg_surgery','pg_trgm','pg_visibility',
    'pg_walinspect','pg_logicalinspect','pgcrypto','pgrowlocks','pgstattuple','postgres_fdw','refint','seg','sslinfo','tablefunc','tcn',
    'tsm_system_rows','tsm_system_time','unaccent','uuid-ossp','xml2') ORDER BY name
  LOOP BEGIN EXECUTE format('CREATE EXTENSION %I CASCADE', e); EXCEPTION WHEN duplicate_object THEN NULL; END; END LOOP;
END $$;
";

/// In the planted database DDL tells, too.
const EVENTS: &str = "
CREATE FUNCTION on_ddl() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM public.ran('event trigger'); END $$;
CREATE EVENT TRIGGER tells ON ddl_command_start EXECUTE FUNCTION on_ddl();
";

const DATABASES: &[&str] = &["plain", "planted", "depths"];

/// How a batch gets to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Each statement as a Query, straight to the server, as a superuser who may write.
    Query,
    /// By Parse, Bind with made-up values, Execute.
    Extended,
    /// In a block that is looked at before it ends.
    Block,
    /// As a Query, by a role with SELECT alone, whom row security holds.
    Reader,
    /// By the gateway, logged in as the superuser.
    Gateway,
}

const WAYS: &[Way] = &[Way::Query, Way::Extended, Way::Block, Way::Reader, Way::Gateway];

/// A text, and of it what was admitted.
#[derive(Clone, Debug)]
struct Admitted {
    text: String,
    statements: Vec<(String, StatementClass)>,
}

struct Oracle {
    scratch: Scratch,
    gateway: Gateway,
    catalogues: BTreeMap<String, Catalogue>,
    before: Look,
    counts: Counts,
    findings: Vec<String>,
}

#[derive(Debug, Default)]
struct Counts {
    texts: usize,
    admitted: usize,
    statements: usize,
    succeeded: usize,
    looks: usize,
    too_long: usize,
}

fn gateway(scratch: &Scratch, databases: &[&str]) -> Gateway {
    let mut toml = "
[gateway]
listen = [\"127.0.0.1:0\"]
drain_timeout = \"5s\"
[gateway.auth]
method = \"trust\"
"
    .to_owned();
    for database in databases {
        toml.push_str(&format!(
            "
[[source]]
name = \"{database}\"
hosts = [\"{}\"]
database = \"{database}\"
user = \"{SUPERUSER}\"
password_file = \"{{dir}}/source-password\"
tls = \"disable\"
statement_timeout = \"{STATEMENT}\"
access = [{{ users = [\"visitor\"] }}]
",
            scratch.server.address()
        ));
    }
    Gateway::start(Setup::new(toml).file("source-password", SUPERUSER_PASSWORD))
}

impl Oracle {
    async fn start(schemas: &[(&str, String)]) -> Self {
        let mut scratch = Scratch::start(schemas).await;
        let databases: Vec<&str> = schemas.iter().map(|(name, _)| *name).collect();
        let gateway = gateway(&scratch, &databases);
        let mut catalogues = BTreeMap::new();
        for database in databases {
            let client = scratch.server.superuser_client(database).await;
            catalogues.insert(database.to_owned(), catalogue::load(&client).await.unwrap());
        }
        // The first look builds the caches of the sessions that look.
        scratch.look().await;
        let before = scratch.look().await;
        Self { scratch, gateway, catalogues, before, counts: Counts::default(), findings: Vec::new() }
    }

    /// What the guard admits of a text; everything up to a refusal.
    fn admitted(&mut self, database: &str, text: &str) -> Option<Admitted> {
        self.counts.texts += 1;
        let text = &text.replace("{out}", &self.scratch.out().display().to_string());
        let (limits, source) = (Limits::default(), SourceName::new(database));
        let catalogue = &self.catalogues[database];
        let ctx = Context { catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
        let statements: Vec<(String, StatementClass)> = judge(text.as_bytes(), &ctx)
            .steps
            .into_iter()
            .filter_map(|step| match step {
                Step::Admit(one) => Some((String::from_utf8(one.permit.text().to_vec()).unwrap(), one.class)),
                Step::Refuse(_) => None,
            })
            .collect();
        (!statements.is_empty()).then(|| Admitted { text: text.to_owned(), statements })
    }

    /// Runs a batch and looks; whatever is found is narrowed down to one text.
    async fn hold(&mut self, database: &str, way: Way, batch: &[Admitted]) {
        if batch.is_empty() {
            return;
        }
        self.counts.admitted += batch.len();
        let found = self.try_batch(database, way, batch).await;
        if found.is_empty() {
            return;
        }
        let (text, found) = self.narrow(database, way, batch, found).await;
        let finding = format!("{database}, {way:?}: {text}\n    {}", found.join("\n    "));
        eprintln!("FINDING {finding}");
        self.findings.push(finding);
    }

    /// By halves, each on what the other has left.
    async fn narrow(
        &mut self,
        database: &str,
        way: Way,
        batch: &[Admitted],
        found: Vec<String>,
    ) -> (String, Vec<String>) {
        let (mut batch, mut found) = (batch.to_vec(), found);
        while batch.len() > 1 {
            let second = batch.split_off(batch.len() / 2);
            let first = batch;
            let in_first = self.try_batch(database, way, &first).await;
            if !in_first.is_empty() {
                (batch, found) = (first, in_first);
                continue;
            }
            let in_second = self.try_batch(database, way, &second).await;
            if in_second.is_empty() {
                let texts: Vec<String> =
                    first.iter().chain(&second).map(|one| format!("{:?}", one.text)).collect();
                return (format!("one of these, and not a second time:\n{}", texts.join("\n")), found);
            }
            (batch, found) = (second, in_second);
        }
        (format!("{:?}", batch[0].text), found)
    }

    async fn try_batch(&mut self, database: &str, way: Way, batch: &[Admitted]) -> Vec<String> {
        let mut found = Vec::new();
        let mut session = self.session(database, way);
        for one in batch {
            let answers = match way {
                Way::Gateway => self.ask(&mut session, &query(&one.text)),
                _ => {
                    let mut answers = Vec::new();
                    for (text, class) in &one.statements {
                        self.counts.statements += 1;
                        answers.extend(match way {
                            Way::Extended => self.extended(&mut session, text),
                            Way::Block if *class != StatementClass::Transaction => {
                                let (answers, seen) = self.block(&mut session, text);
                                found.extend(seen.map(|what| format!("{what}, by {text:?}")));
                                answers
                            }
                            _ => self.ask(&mut session, &query(text)),
                        });
                    }
                    answers
                }
            };
            self.counts.succeeded +=
                usize::from(answers.iter().any(|m| m.kind == b'C') && answers.iter().all(|m| m.kind != b'E'));
            for answer in answers.iter().filter(|answer| b"NAG".contains(&answer.kind)) {
                if answer.kind != b'N' || answer.field(b'M').contains(RAN) {
                    found.push(format!("{}, by {:?}", answer.full(), one.text));
                }
            }
            if answers.last().is_none_or(|last| last.kind != b'Z') {
                self.counts.too_long += usize::from(answers.last() == Some(&Message::hangs()));
                session.shut_down(std::net::Shutdown::Both);
                session = self.session(database, way);
                continue;
            }
            self.ask(&mut session, &query("ROLLBACK; CLOSE ALL; RESET ALL; DEALLOCATE ALL"));
        }
        if way != Way::Gateway {
            let who = if way == Way::Reader { READER } else { SUPERUSER };
            let state = "SELECT concat_ws(' ', current_user, session_user, current_setting('transaction_read_only'), \
                (SELECT string_agg(c, ' ') FROM pg_listening_channels() AS c))";
            let state = self.ask(&mut session, &query(state));
            let expected = format!("{who} {who} off");
            if !state.iter().any(|one| one.kind == b'D' && one.body.ends_with(expected.as_bytes())) {
                let full: Vec<String> = state.iter().map(Message::full).collect();
                found.push(format!("the session is another one: {}", full.join(", ")));
            }
        }
        let after = self.scratch.look().await;
        self.counts.looks += 1;
        found.extend(self.scratch.differences(&self.before, &after).await);
        drop(session);
        // What was found must not be found again.
        self.before = if found.is_empty() { after } else { self.settled().await };
        found
    }

    /// The server when the sessions of the batch are gone.
    async fn settled(&mut self) -> Look {
        let deadline = Instant::now() + raw::PATIENCE;
        let left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'effects'";
        while self.scratch.server.value("postgres", left).as_deref() != Some("0") && Instant::now() < deadline
        {
        }
        self.scratch.look().await
    }

    fn session(&self, database: &str, way: Way) -> Raw {
        let whom = match way {
            Way::Gateway => raw::Whom::new(self.gateway.address(), "visitor", "", database),
            Way::Reader => reader(&self.scratch.server, database),
            Way::Query | Way::Extended | Way::Block => superuser(&self.scratch.server, database),
        };
        let whom = match way {
            Way::Gateway => whom,
            _ => {
                whom.with("options", &format!("-c client_min_messages=log -c statement_timeout={STATEMENT}"))
            }
        };
        whom.with("application_name", "effects").connect().0
    }

    /// Sends, and reads to the end; whoever is asked for data to copy in says no.
    fn ask(&self, session: &mut Raw, bytes: &[u8]) -> Vec<Message> {
        session.write(bytes);
        let mut answers = session.read_until(b"ZG", 1);
        while answers.last().is_some_and(|last| last.kind == b'G') {
            session.write(&message("f \"no\""));
            answers.extend(session.read_until(b"ZG", 1));
        }
        answers
    }

    fn extended(&self, session: &mut Raw, text: &str) -> Vec<Message> {
        let mut parse = vec![0];
        parse.extend(text.as_bytes());
        parse.extend([0, 0, 0]);
        let mut bytes = frame(b'P', &parse);
        let mut values = String::new();
        if text.contains('$') {
            bytes.extend([message("D S \"\""), message("S")].concat());
            let answers = self.ask(session, &bytes);
            let Some(parameters) = answers.iter().find(|one| one.kind == b't') else { return answers };
            let types = parameters.body.get(2..).unwrap_or_default().chunks(4);
            let values_of: Vec<&str> = types
                .map(|oid| match u32::from_be_bytes(oid.try_into().unwrap_or_default()) {
                    16 => "\"t\"",
                    20 | 21 | 23 | 26 | 700 | 701 | 1700 => "\"1\"",
                    114 | 3802 => "\"{}\"",
                    1082 | 1114 | 1184 => "\"2024-02-29\"",
                    oid if oid >= 16384 => "\"{x}\"",
                    _ => "\"x\"",
                })
                .collect();
            values = format!(" [{}]", values_of.join(", "));
            bytes.clear();
        }
        bytes.extend(message(&format!("B \"\" \"\"{values}")));
        bytes.extend([message("D P \"\""), message("E \"\" 0"), message("S")].concat());
        self.ask(session, &bytes)
    }

    /// In a block: what it holds before it ends. Two locks are left out, since PostgreSQL takes them for a read, in a
    /// read-only transaction too: of `pg_largeobject` by what reads a large object, of a sequence by what asks it for
    /// its last value.
    fn block(&self, session: &mut Raw, text: &str) -> (Vec<Message>, Option<String>) {
        let probe = "SELECT concat_ws(' ', 'holds', pg_current_xact_id_if_assigned(), (SELECT string_agg(concat_ws(' ', locktype, \
            relation::regclass, mode), ', ') FROM pg_locks WHERE pid = pg_backend_pid() AND locktype <> 'virtualxid' \
            AND mode NOT IN ('AccessShareLock', 'SIReadLock') \
            AND NOT (mode = 'RowExclusiveLock' AND EXISTS (SELECT FROM pg_class WHERE oid = relation AND (relkind = 'S' OR relname ~ '^pg_largeobject')))), \
            (SELECT string_agg(f, ' ') FROM pg_ls_dir('pg_snapshots') AS f))";
        self.ask(session, &query("BEGIN"));
        let answers = self.ask(session, &query(text));
        if answers.last().is_none_or(|last| last.kind != b'Z' || last.body != b"T") {
            return (answers, None);
        }
        let held = self.ask(session, &query(probe));
        let nothing = held.iter().any(|one| one.kind == b'D' && one.body.ends_with(b"holds"));
        let held = (!nothing).then(|| held.iter().map(Message::full).collect::<Vec<_>>().join(", "));
        (answers, held)
    }

    /// Batches of texts, each by the next way.
    async fn hold_all(&mut self, database: &str, texts: &[String], ways: &[Way]) {
        let admitted: Vec<Admitted> = texts.iter().filter_map(|text| self.admitted(database, text)).collect();
        for way in ways {
            for batch in admitted.chunks(BATCH) {
                self.hold(database, *way, batch).await;
            }
        }
    }

    fn end(self) {
        println!(
            "{:?}, {} parts in a look, {} findings",
            self.counts,
            self.before.parts(),
            self.findings.len()
        );
        assert!(self.findings.is_empty(), "{} findings:\n{}", self.findings.len(), self.findings.join("\n"));
        assert!(self.counts.succeeded > 0, "nothing was run at all");
        let log = self.gateway.stop();
        assert!(!log.contains("panicked"), "{log}");
    }
}

fn query(text: &str) -> Vec<u8> {
    let mut body = text.as_bytes().to_vec();
    body.push(0);
    frame(b'Q', &body)
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .filter(|value| !value.is_empty())
        .map_or(default, |value| value.parse().expect(name))
}

fn schemas() -> Vec<(&'static str, String)> {
    let mut depths = PLANTED.to_owned();
    // What is open is known; the rest of what hides is fair game.
    for (what, objects, _) in depths::HIDDEN {
        if !OPEN.contains(what) {
            depths.push_str(objects);
        }
    }
    vec![("plain", PLAIN.to_owned()), ("planted", format!("{PLANTED}{EVENTS}")), ("depths", depths)]
}

#[tokio::test]
async fn the_oracle_sees_each_kind_of_effect() {
    const EFFECTS: &[(&str, &str)] = &[
        ("INSERT INTO t (id) VALUES (9)", "plain: contents of t"),
        ("UPDATE t SET id = id WHERE id = 1", "next transaction id"),
        ("SELECT nextval('s')", "plain: contents of s"),
        ("SELECT setval('s', 1)", "plain: contents of s"),
        ("BEGIN; DELETE FROM t; ROLLBACK", "next transaction id"),
        ("CREATE TABLE zz ()", "plain: pg_class"),
        ("CREATE TEMP TABLE zz ()", "plain: pg_class"),
        ("SELECT * FROM t LIMIT 1 FOR UPDATE", "next transaction id"),
        ("SELECT lo_create(0)", "plain: pg_largeobject_metadata"),
        ("SELECT lo_put(1, 0, 'x')", "plain: pg_largeobject"),
        ("SELECT pg_advisory_lock(5)", "advisory locks held"),
        ("SELECT pg_notify('a', 'b')", "notifications heard"),
        ("NOTIFY chat", "notifications heard"),
        ("LISTEN chat", "the session is another one"),
        ("SET SESSION AUTHORIZATION reader", "the session is another one"),
        ("SELECT pg_logical_emit_message(false, 'a', 'b')", "WAL: "),
        ("SELECT pg_switch_wal()", "WAL: "),
        ("CHECKPOINT", "last checkpoint"),
        ("SELECT pg_current_xact_id()", "next transaction id"),
        ("SELECT pg_reload_conf()", "configuration loaded"),
        ("ALTER SYSTEM SET work_mem = '1MB'", "file postgresql.auto.conf"),
        ("ALTER ROLE reader SET work_mem = '1MB'", "settings of roles and databases"),
        ("SELECT pg_create_physical_replication_slot('z', true)", "slots"),
        ("BEGIN; PREPARE TRANSACTION 'p'", "prepared transactions"),
        (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ~ '^SELECT pg_sleep'",
            "sessions of others",
        ),
        ("SELECT pg_stat_reset()", "statistics reset"),
        ("COPY t TO '{out}/effect'", "file out/effect"),
        ("COPY t TO PROGRAM 'cat >unexpected'", "file unexpected"),
        ("COMMENT ON TABLE t IS 'x'", "plain: pg_description"),
        ("CREATE ROLE zz", "roles"),
        ("CREATE DATABASE zz TEMPLATE template0", "databases"),
        ("VACUUM t", "WAL: "),
        ("ANALYZE t", "plain: pg_statistic"),
        ("SELECT log_visit(1)", RAN),
        (
            "SELECT count(*) FROM dblink('dbname=' || current_database() || ' port=' || current_setting('port') || ' host=' || \
          split_part(current_setting('unix_socket_directories'), ',', 1), 'SELECT nextval(''counter'')') AS d(n bigint)",
            "plain: contents of counter",
        ),
    ];
    let mut oracle = Oracle::start(&[("plain", PLAIN.to_owned())]).await;
    for (text, part) in EFFECTS {
        let text = text.replace("{out}", &oracle.scratch.out().display().to_string());
        let statements = text.split("; ").map(|text| (text.to_owned(), StatementClass::Write)).collect();
        let one = Admitted { text: text.clone(), statements };
        let found = oracle.try_batch("plain", Way::Query, &[one]).await;
        assert!(found.iter().any(|what| what.contains(part)), "{text}: {found:?}");
    }
    // And what holds something for as long as its block only.
    for text in ["LOCK TABLE t", "SELECT pg_export_snapshot()", "SELECT * FROM t FOR SHARE"] {
        let one =
            Admitted { text: text.to_owned(), statements: vec![(text.to_owned(), StatementClass::Read)] };
        let found = oracle.try_batch("plain", Way::Block, &[one]).await;
        assert!(found.iter().any(|what| what.contains("holds")), "{text}: {found:?}");
    }
    // Nothing, and a read, are nothing.
    for way in WAYS {
        let text = "SELECT * FROM t ORDER BY id; SELECT count(*) FROM pg_class";
        let statements = text.split("; ").map(|text| (text.to_owned(), StatementClass::Read)).collect();
        let found = oracle.try_batch("plain", *way, &[Admitted { text: text.to_owned(), statements }]).await;
        assert_eq!(found, Vec::<String>::new());
    }
}

#[tokio::test]
async fn the_cases_have_no_effect() {
    let mut oracle = Oracle::start(&schemas()).await;
    let mut texts = inputs::cases();
    texts.extend(inputs::wire());
    assert!(texts.len() > 900, "{}", texts.len());
    for (database, ways) in [
        ("plain", WAYS),
        ("planted", &[Way::Query, Way::Reader, Way::Gateway]),
        ("depths", &[Way::Query, Way::Extended]),
    ] {
        oracle.hold_all(database, &texts, ways).await;
        let client = oracle.scratch.server.superuser_client(database).await;
        oracle.hold_all(database, &inputs::relations(&client).await, &[Way::Query, Way::Reader]).await;
    }
    oracle.hold_all("planted", &inputs::planted(HARMFUL), &[Way::Query, Way::Reader]).await;
    oracle.end();
}

#[tokio::test]
async fn generated_statements_have_no_effect() {
    let (seconds, seed) = (number("EFFECTS_SECONDS", 30), number("EFFECTS_SEED", 1));
    println!("seed {seed}, for {seconds} s");
    let mut random = Random(seed);
    let mut std_random = StdRng::seed_from_u64(seed);
    let grammar = generate::Grammar::parse(generate::POSTGRES).unwrap();
    let mut oracle = Oracle::start(&schemas()).await;
    let mut pool = inputs::cases();
    pool.extend(inputs::wire());
    pool.extend(
        depths::HIDDEN.iter().flat_map(|(.., statements)| statements.iter().map(|one| (*one).to_owned())),
    );
    // Statements that cannot grow into something short are of little use.
    pool.retain(|text| text.len() < 1500);
    let mut functions = BTreeMap::new();
    for database in DATABASES {
        let client = oracle.scratch.server.superuser_client(database).await;
        functions.insert(*database, inputs::functions(&client).await);
    }
    let (began, patience) = (Instant::now(), Duration::from_secs(seconds));
    let mut round = 0;
    while began.elapsed() < patience && oracle.findings.len() < 20 {
        let database = DATABASES[round % DATABASES.len()];
        let way = WAYS[round / DATABASES.len() % WAYS.len()];
        round += 1;
        let mut batch = Vec::new();
        while batch.len() < BATCH {
            let text = match random.below(20) {
                0..5 => inputs::call(&functions[database], &mut random),
                5..7 => inputs::hostile(&mut random),
                7..11 => grammar.text("text", &mut std_random),
                11..13 => mutate::change(&pool[random.below(pool.len())], &pool, &mut std_random),
                _ => {
                    let (one, other) = (random.below(pool.len()), random.below(pool.len()));
                    inputs::mutate(&pool[one], &pool[other], HARMFUL, &mut random)
                }
            };
            let Some(one) = oracle.admitted(database, &text) else { continue };
            // What is admitted is worth another turn.
            if random.below(20) == 0 && text.len() < 600 {
                let at = random.below(pool.len());
                pool[at] = text;
            }
            batch.push(one);
        }
        oracle.hold(database, way, &batch).await;
    }
    println!("seed {seed}, {round} batches");
    oracle.end();
}

/// What is known to be open, by the names of `depths.rs`; a line that is closed has to go.
const OPEN: &[&str] = &[];

#[tokio::test]
async fn what_hides_behind_types_and_relations_is_found() {
    let mut schema = PLANTED.to_owned();
    for (_, objects, _) in depths::HIDDEN {
        schema.push_str(objects);
    }
    let mut oracle = Oracle::start(&[("depths", schema)]).await;
    let mut wrong = Vec::new();
    for (what, _, statements) in depths::HIDDEN {
        let mut open = Vec::new();
        for text in *statements {
            let way = match *what {
                "a policy of row security" => Way::Reader,
                "a parameter that is an array of a domain by its place" => Way::Extended,
                _ => Way::Query,
            };
            let one = Admitted {
                text: (*text).to_owned(),
                statements: vec![((*text).to_owned(), StatementClass::Read)],
            };
            // A statement that the server's time-out ended on a busy machine has another try.
            let mut tries = 0;
            while oracle.try_batch("depths", way, std::slice::from_ref(&one)).await.is_empty() {
                tries += 1;
                if tries == 3 {
                    wrong.push(format!("{what}: {text} has no effect, so it proves nothing"));
                    break;
                }
            }
            if oracle.admitted("depths", text).is_some() {
                open.push(*text);
            }
        }
        match (OPEN.contains(what), open.is_empty()) {
            (false, false) => wrong.push(format!("{what} is open: {}", open.join("\n    "))),
            (true, true) => wrong.push(format!("{what} is closed now: take it off the list")),
            (true, false) => println!("{what} is open: {} of {}", open.len(), statements.len()),
            (false, true) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
