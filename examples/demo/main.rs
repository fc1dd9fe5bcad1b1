//! The walk behind `make demo`: a private PostgreSQL, the gateway before it, reads that pass, writes that
//! do not, and the source's own log as the witness.
//!
//! Invariant: exit code 0 means that every step went as promised, and however the walk ends, nothing stays
//! behind: no process, no folder.

mod cases;
mod pii;
mod screen;
#[path = "../../tests/support/mod.rs"]
mod support;

use std::io::Write as _;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::error::DbError;
use tokio_postgres::{Client, SimpleQueryMessage};

use cases::How;
use screen::Screen;
use support::{Gateway, Options, Postgres, Setup};

/// The visitor's login at the gateway.
const USER: &str = "visitor";
const PASSWORD: &str = "demo";
/// The source as in production, logged in to as `akko_readonly`.
const READER: &str = "climscore";
/// The same database, logged in to as its superuser.
const ADMIN: &str = "climscore_admin";
/// Reads are long and their answers short.
const READ_SHARE: usize = 79;
/// Writes and refusals share the line.
const WRITE_SHARE: usize = 53;
/// Longer than any statement of the walk takes when it is answered at all.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> ExitCode {
    let keep = std::env::args().any(|argument| argument == "--keep");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("demo: {error}");
            return ExitCode::from(2);
        }
    };
    runtime.block_on(async {
        let finished = Arc::new(AtomicBool::new(false));
        let mut walk = tokio::spawn(walk(keep, Arc::clone(&finished)));
        let ended = tokio::select! {
            ended = &mut walk => Some(ended),
            () = interrupted() => None,
        };
        match ended {
            Some(Ok(Ok(0))) => ExitCode::SUCCESS,
            Some(Ok(Ok(_))) => ExitCode::FAILURE,
            Some(Ok(Err(error))) => {
                eprintln!("demo: {error}");
                ExitCode::from(2)
            }
            Some(Err(panic)) => {
                eprintln!("demo: {panic}");
                ExitCode::from(2)
            }
            None => {
                println!("\nStopping; gateway, database and their folders are removed.");
                walk.abort();
                // What the walk held goes with it: its servers stop before this returns.
                let _ = walk.await;
                if finished.load(Ordering::Relaxed) { ExitCode::SUCCESS } else { ExitCode::from(130) }
            }
        }
    })
}

async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let wait = |kind| async move {
        match signal(kind) {
            Ok(mut stream) => {
                stream.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        () = wait(SignalKind::interrupt()) => {}
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::hangup()) => {}
    }
}

/// What went as promised, and what did not.
struct Walk {
    screen: Screen,
    kept: usize,
    broken: Vec<String>,
}

impl Walk {
    fn row(&mut self, kept: bool, left: &str, right: &str) {
        self.row_at(kept, 42, left, right);
    }

    fn row_at(&mut self, kept: bool, share: usize, left: &str, right: &str) {
        self.screen.row(kept, share, left, right);
        if kept {
            self.kept += 1;
        } else {
            self.broken.push(format!("{left}: {right}"));
        }
    }
}

/// Returns how many steps were not as promised; sets `finished` once none was.
async fn walk(keep: bool, finished: Arc<AtomicBool>) -> Result<usize, String> {
    let mut walk = Walk { screen: Screen::new(), kept: 0, broken: Vec::new() };
    walk.screen.headline("fedgate: reads pass, everything else is answered before the source sees it");

    let (source, gateway) = set_up(&mut walk).await?;
    let before = support::Fingerprint::take(&source).await;
    let mark = source.log_mark();

    reads(&mut walk, &gateway).await?;
    let sent = writes(&mut walk, &gateway).await?;
    transactions(&mut walk, &gateway).await?;
    what_psql_shows(&mut walk, &source, &gateway);
    evidence(&mut walk, &source, &gateway, &before, mark, sent).await?;
    tokio::task::block_in_place(|| pii::Loop::new(&gateway).walk(&mut walk))?;
    connection_lines(&walk.screen, &gateway);

    let total = walk.kept + walk.broken.len();
    if walk.broken.is_empty() {
        walk.screen.verdict(true, &format!("All {total} steps went as promised."));
    } else {
        walk.screen
            .verdict(false, &format!("{} of {total} steps did not go as promised:", walk.broken.len()));
        for step in &walk.broken {
            println!("  {step}");
        }
    }
    finished.store(walk.broken.is_empty(), Ordering::Relaxed);
    if keep && walk.broken.is_empty() {
        walk.screen.text("Database and gateway stay up until Ctrl-C.");
        std::future::pending::<()>().await;
    }
    walk.screen.text(if keep {
        "Not left up, since a promise was broken."
    } else {
        "Gateway, database and their folders are removed; `make demo KEEP=1` leaves them up."
    });
    gateway.stop();
    Ok(walk.broken.len())
}

async fn set_up(walk: &mut Walk) -> Result<(Postgres, Gateway), String> {
    walk.screen.headline("Setting up");
    let begun = Instant::now();
    let source = tokio::task::block_in_place(|| Postgres::try_start(Options::default()))?;
    let version = source.value("postgres", "SHOW server_version").unwrap_or_default();
    let version = version.split(' ').next().unwrap_or_default();
    let right = format!("on {}, every statement logged ({})", source.address(), seconds(begun));
    walk.row(true, &format!("private PostgreSQL {version}"), &right);

    let begun = Instant::now();
    tokio::task::block_in_place(|| source.fill_climscore());
    let counts = "SELECT (SELECT count(*) FROM communes) || ' communes, ' || (SELECT count(*) FROM scores) \
                  || ' scores, ' || (SELECT count(*) FROM customers) || ' customers'";
    let right = format!("{} ({})", source.value("climscore", counts).unwrap_or_default(), seconds(begun));
    walk.row(true, "database climscore", &right);

    let begun = Instant::now();
    let setup = setup(&source)?;
    let gateway = tokio::task::block_in_place(|| Gateway::try_start(setup))?;
    let right = format!("on {}, HTTP on {} ({})", gateway.address(), gateway.http(), seconds(begun));
    walk.row(true, "fedgate", &right);
    Ok((source, gateway))
}

fn setup(source: &Postgres) -> Result<Setup, String> {
    let toml = format!(
        r#"
[gateway]
listen = ["127.0.0.1:0"]
drain_timeout = "2s"

[gateway.auth]
method = "scram"
users_file = "{{dir}}/users.txt"

[[source]]
name = "{READER}"
hosts = ["{address}"]
database = "climscore"
user = "akko_readonly"
password_file = "{{dir}}/reader-password"
tls = "disable"
access = [{{ users = ["{USER}"], cidr = ["127.0.0.0/8"] }}]

[[source]]
name = "{ADMIN}"
hosts = ["{address}"]
database = "climscore"
user = "{superuser}"
password_file = "{{dir}}/admin-password"
tls = "disable"
access = [{{ users = ["{USER}"], cidr = ["127.0.0.0/8"] }}]

[http]
listen = "127.0.0.1:0"
auth = "none"
{pii}"#,
        pii = pii::TOML,
        address = source.address(),
        superuser = support::SUPERUSER,
    );
    let setup = Setup::new(toml)
        .file("users.txt", users_file()?)
        .file("reader-password", support::READER_PASSWORD)
        .file("admin-password", support::SUPERUSER_PASSWORD);
    Ok(pii::files().into_iter().fold(setup, |setup, (name, text)| setup.file(name, text)))
}

/// Asks the gateway's own command for the verifier, as an operator would.
fn users_file() -> Result<String, String> {
    let failed = |error: std::io::Error| format!("fedgate users verifier: {error}");
    let mut child = Command::new(support::fedgate())
        .args(["users", "verifier", USER])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        writeln!(stdin, "{PASSWORD}").map_err(failed)?;
    }
    let output = child.wait_with_output().map_err(failed)?;
    let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if !output.status.success() || line.is_empty() {
        return Err("fedgate users verifier gave no verifier".to_owned());
    }
    Ok(line + "\n")
}

async fn connect(gateway: &Gateway, database: &str) -> Result<Client, String> {
    match tokio::time::timeout(PATIENCE, gateway.connect(USER, PASSWORD, database)).await {
        Ok(Ok(client)) => Ok(client),
        Ok(Err(error)) => {
            Err(format!("cannot connect to {database} through the gateway: {}", describe(&error)))
        }
        Err(_) => Err(format!("no answer from the gateway when connecting to {database}")),
    }
}

async fn reads(walk: &mut Walk, gateway: &Gateway) -> Result<(), String> {
    walk.screen.headline(&format!("Reads pass ({READER}: the gateway logs in as akko_readonly)"));
    let client = connect(gateway, READER).await?;
    for case in cases::READS {
        let (kept, right) = match first_value(&client, case.sql).await {
            Ok(value) => match case.want {
                Some(want) => (want == value, value),
                None => (true, "answered".to_owned()),
            },
            Err(error) => (false, error),
        };
        walk.row_at(kept, READ_SHARE, case.sql, &right);
    }
    let by_parameter = "SELECT name FROM communes WHERE code = $1   (prepared, $1 = 01001)";
    let found =
        timed(client.query_one("SELECT name::text FROM communes WHERE code = $1::text", &[&"01001"])).await;
    match found {
        Ok(row) => walk.row_at(true, READ_SHARE, by_parameter, &row.get::<_, String>(0)),
        Err(error) => walk.row_at(false, READ_SHARE, by_parameter, &error),
    }
    let copy = "COPY (SELECT * FROM scores) TO STDOUT";
    match timed(copied(&client, copy)).await {
        Ok(bytes) => walk.row_at(bytes > 100_000, READ_SHARE, copy, &format!("{bytes} bytes")),
        Err(error) => walk.row_at(false, READ_SHARE, copy, &error),
    }
    Ok(())
}

async fn copied(client: &Client, sql: &str) -> Result<usize, tokio_postgres::Error> {
    use futures_util::TryStreamExt;
    client.copy_out(sql).await?.try_fold(0, |sum, chunk| async move { Ok(sum + chunk.len()) }).await
}

/// Returns how many texts were sent that had to be refused; each carries a marker with its number.
async fn writes(walk: &mut Walk, gateway: &Gateway) -> Result<usize, String> {
    walk.screen.headline(&format!("Writes are refused ({ADMIN}: the gateway logs in as the superuser)"));
    walk.screen.paragraph(
        "The source would run every one of these for that login. Nothing but fedgate stands in the way.",
    );
    let client = connect(gateway, ADMIN).await?;
    let mut sent = 0;
    for (topic, cases) in cases::WRITES {
        walk.screen.text(&format!("  {topic}"));
        for case in *cases {
            sent += 1;
            let marked = format!("{} {}", case.sql, marker(sent));
            let answer = match case.how {
                How::Simple => timed(client.simple_query(&marked)).await.map(|_| ()),
                How::Prepare => timed(client.prepare(&marked)).await.map(|_| ()),
            };
            let (kept, right) = match &answer {
                Ok(()) => (false, "was not refused".to_owned()),
                Err(error) => (error.starts_with(case.sqlstate), short(error)),
            };
            walk.row_at(kept, WRITE_SHARE, case.sql, &right);
        }
    }
    let startup = "options='-c default_transaction_read_only=off'";
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(gateway.port()).user(USER).password(PASSWORD).dbname(ADMIN);
    config.options("-c default_transaction_read_only=off");
    let (kept, right) = match timed(config.connect(tokio_postgres::NoTls)).await {
        Ok(_) => (false, "was not refused".to_owned()),
        Err(error) => (error.starts_with("25006") || error.starts_with("42501"), short(&error)),
    };
    walk.row_at(kept, WRITE_SHARE, startup, &right);
    let still = "SELECT count(*) FROM communes";
    match first_value(&client, still).await {
        Ok(value) => {
            walk.row_at(value == "720", WRITE_SHARE, still, &format!("{value}; the session goes on"))
        }
        Err(error) => walk.row_at(false, WRITE_SHARE, still, &error),
    }
    Ok(sent)
}

/// A refusal inside a block fails the block, as PostgreSQL's own errors do.
async fn transactions(walk: &mut Walk, gateway: &Gateway) -> Result<(), String> {
    walk.screen.headline("A refusal fails the transaction block, as PostgreSQL would");
    let client = connect(gateway, ADMIN).await?;
    for (sql, sqlstate) in [
        ("BEGIN", None),
        ("SAVEPOINT here", None),
        ("DELETE FROM scores", Some("25006")),
        ("SELECT count(*) FROM scores", Some("25P02")),
        ("ROLLBACK TO here", None),
        ("SELECT count(*) FROM scores", None),
        ("COMMIT", None),
    ] {
        // The marker tells the refused one from the constant texts around it.
        let text = if sqlstate == Some("25006") { format!("{sql} {}", marker(0)) } else { sql.to_owned() };
        let answer = timed(client.simple_query(&text)).await;
        let (kept, right) = match (&answer, sqlstate) {
            (Ok(_), None) => (true, "ok".to_owned()),
            (Ok(_), Some(_)) => (false, "was not refused".to_owned()),
            (Err(error), Some(sqlstate)) => (error.starts_with(sqlstate), error.clone()),
            (Err(error), None) => (false, error.clone()),
        };
        walk.row(kept, sql, &right);
    }
    Ok(())
}

/// One read and one write by the program that people use, when it is there.
fn what_psql_shows(walk: &mut Walk, source: &Postgres, gateway: &Gateway) {
    let statements = [
        "SELECT region, hazard, average FROM regional_risk ORDER BY average DESC LIMIT 3",
        "UPDATE customers SET email = NULL",
    ];
    let mut outputs = Vec::new();
    for sql in statements {
        let mut psql = source.psql(READER);
        psql.env("PGHOST", "127.0.0.1")
            .env("PGPORT", gateway.port().to_string())
            .env("PGUSER", USER)
            .env("PGPASSWORD", PASSWORD)
            .env("PGCONNECT_TIMEOUT", "20")
            .args(["--command", sql]);
        match psql.output() {
            Ok(output) => outputs.push((sql, output)),
            Err(_) => {
                walk.screen.text("\n(psql is not installed here, so the walk goes on without it.)");
                return;
            }
        }
    }
    walk.screen.headline("What it looks like in psql");
    let mut right = true;
    for (at, (sql, output)) in outputs.iter().enumerate() {
        walk.screen.quote(&format!("{READER}=> {sql};"));
        walk.screen.quote(&String::from_utf8_lossy(&output.stdout));
        walk.screen.quote(&String::from_utf8_lossy(&output.stderr));
        right &= output.status.success() == (at == 0);
    }
    walk.row(right, "psql", "reads, and is refused the write");
}

async fn evidence(
    walk: &mut Walk,
    source: &Postgres,
    gateway: &Gateway,
    before: &support::Fingerprint,
    mark: usize,
    sent: usize,
) -> Result<(), String> {
    walk.screen.headline("What the source itself says");
    let arrived = source.statements_since(mark);
    let right = format!("{} texts since the walk began", arrived.len());
    walk.row(!arrived.is_empty(), "its log (log_statement = all) holds", &right);
    let log = source.statement_log_since(mark);
    let refused = (0..=sent).filter(|number| log.contains(&marker(*number))).count();
    walk.row(refused == 0, "of the refused writes it holds", &format!("{refused} of {}", sent + 1));

    let after = support::Fingerprint::take(source).await;
    let right = match before.difference(&after) {
        changed if changed.is_empty() => format!("{} before and after", after.digest()),
        changed => format!("changed: {}", changed.join(", ")),
    };
    walk.row(*before == after, &format!("fingerprint over {} parts (*)", after.parts()), &right);
    let (status, metrics) = gateway.get("/metrics");
    let counted: f64 = metrics
        .lines()
        .filter(|line| line.starts_with("fedgate_refusals_total{"))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum();
    let right = format!("{counted}, at http://{}/metrics", gateway.http());
    walk.row(status == 200 && counted >= sent as f64, "refusals that the gateway counted", &right);

    // A witness is worth something only if it would have spoken.
    let (client, connection) = source
        .url_for(support::SUPERUSER, support::SUPERUSER_PASSWORD, "climscore")
        .parse::<tokio_postgres::Config>()
        .map_err(|error| error.to_string())?
        .connect(tokio_postgres::NoTls)
        .await
        .map_err(|error| describe(&error))?;
    let connection = tokio::spawn(connection);
    let direct = format!("BEGIN; UPDATE customers SET iban = 'gone' {}; ROLLBACK", marker(sent + 1));
    timed(client.batch_execute(&direct)).await?;
    drop(client);
    let _ = connection.await;
    let seen = source.statement_log_since(mark).contains(&marker(sent + 1));
    let changed = after != support::Fingerprint::take(source).await;
    let right = match (seen, changed) {
        (true, true) => "in the log, and the fingerprint changed",
        _ => "not noticed: the proof above proves nothing",
    };
    walk.row(seen && changed, "an UPDATE past the gateway, rolled back", right);
    walk.screen.paragraph(
        "(*) schema, rows, sequences, large objects, roles, settings, and the next transaction id, which even a \
         write that is rolled back uses up",
    );
    Ok(())
}

fn connection_lines(screen: &Screen, gateway: &Gateway) {
    let port = gateway.port();
    screen.headline("Connect yourself");
    screen.text(&format!("  psql   psql postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/{READER}"));
    screen.text(&format!(
        "  JDBC   jdbc:postgresql://127.0.0.1:{port}/{READER}?user={USER}&password={PASSWORD}"
    ));
    screen.text("  Trino  etc/catalog/climscore.properties holds");
    for line in include_str!("../../deploy/trino/climscore.properties").lines() {
        if !line.starts_with('#') && !line.is_empty() {
            screen.text(&format!("    {line}"));
        }
    }
    screen.text("  and Trino starts with this in its environment");
    screen
        .text(&format!("    CLIMSCORE_RO_HOST=127.0.0.1 CLIMSCORE_RO_PORT={port} CLIMSCORE_RO_DB={READER}"));
    screen.text(&format!("    CLIMSCORE_RO_USER={USER} CLIMSCORE_RO_PASS={PASSWORD}"));
}

/// A comment that is found in a log again, whatever stands around it.
fn marker(number: usize) -> String {
    format!("/* demo write {number:03} */")
}

async fn first_value(client: &Client, sql: &str) -> Result<String, String> {
    let messages = timed(client.simple_query(sql)).await?;
    let value = messages.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    value.ok_or_else(|| "no row".to_owned())
}

/// The answer, or `SQLSTATE message` as text.
async fn timed<T>(answer: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T, String> {
    match tokio::time::timeout(PATIENCE, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(describe(&error)),
        Err(_) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
    }
}

fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => said(error),
        None => {
            let cause =
                std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{error}{cause}")
        }
    }
}

fn said(error: &DbError) -> String {
    format!("{} {}", error.code().code(), error.message())
}

/// Less the words that all refusals of a write end in.
fn short(error: &str) -> String {
    match error.split_once(" in a read-only transaction") {
        Some((start, _)) => format!("{start} …"),
        None => error.replace(" inside a read-only transaction", " …"),
    }
}

fn seconds(since: Instant) -> String {
    format!("{:.1} s", since.elapsed().as_secs_f64())
}
