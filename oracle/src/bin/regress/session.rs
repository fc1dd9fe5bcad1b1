//! A scratch server with the suite's database, and a session that does what psql would do for a script.
//!
//! Invariant: what a script does happens in its order and in its own session; asking whether a statement is a read
//! leaves nothing behind.

use std::path::Path;
use std::time::Duration;

use fedgate::sql::catalogue::{Catalogue, graph};
use fedgate::sql::known::Known;
use fedgate::upstream::catalogue::Loader;
use fedgate_oracle::judge::{Kind, Seen};
use fedgate_oracle::script::{Script, Statement};
use futures_util::{SinkExt, StreamExt};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::calls::{self, Impure, Trees};
use crate::support::postgres::{Options, Postgres, SUPERUSER};

/// No statement of the suite takes longer on a machine that works.
const STATEMENT: Duration = Duration::from_secs(60);
/// Nor does loading a catalogue, unless the script holds a lock on one of its tables.
const LOAD: Duration = Duration::from_secs(5);
const DATABASE: &str = "regression";

/// The server, and the suite's files where it can read them.
pub struct Suite {
    server: Postgres,
    folder: tempfile::TempDir,
}

impl Suite {
    /// Starts a server as `pg_regress` would.
    ///
    /// # Panics
    /// When there is none to start.
    pub fn start(folder: &Path, library: Option<&Path>) -> Self {
        // The server's user may not look into the folder that the suite lies in.
        let copy = tempfile::Builder::new().prefix("fedgate-regress").tempdir().expect("a folder is made");
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(copy.path(), readable).expect("the folder is opened");
        for (from, to) in [(Some(folder.join("data")), "data"), (library.map(Path::to_owned), "lib")] {
            let to = copy.path().join(to);
            std::fs::create_dir(&to).expect("a folder is made");
            for file in from.and_then(|from| std::fs::read_dir(from).ok()).into_iter().flatten().flatten() {
                let _ = std::fs::copy(file.path(), to.join(file.file_name()));
            }
        }
        let results = copy.path().join("results");
        std::fs::create_dir(&results).expect("a folder is made");
        let writable = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(&results, writable).expect("the folder is opened");
        let server = Postgres::start(
            Options::default()
                .setting("log_statement", "none")
                .setting("log_min_duration_statement", "-1")
                // The trees that are asked for go to the client.
                .setting("log_min_messages", "fatal")
                .setting("max_prepared_transactions", "2"),
        );
        server.execute("postgres", &format!("CREATE DATABASE {DATABASE} TEMPLATE template0"));
        for setting in ["lc_messages TO 'C'", "bytea_output TO 'hex'", "timezone_abbreviations TO 'Default'"]
        {
            server.execute("postgres", &format!("ALTER DATABASE {DATABASE} SET {setting}"));
        }
        Self { server, folder: copy }
    }

    pub async fn session(&self) -> Session<'_> {
        let (client, trees) =
            connect(&self.server, SUPERUSER, DATABASE).await.expect("the suite's database is there");
        let (watcher, _) =
            connect(&self.server, SUPERUSER, DATABASE).await.expect("the suite's database is there");
        let mut session = Session {
            suite: self,
            client,
            trees,
            watcher,
            loader: Loader::default(),
            catalogue: Catalogue::default(),
            stale: true,
            changed: false,
            in_transaction: false,
            known: Known::embedded(),
        };
        session.refresh().await;
        session
    }
}

async fn connect(
    server: &Postgres,
    user: &str,
    database: &str,
) -> Result<(Client, Trees), tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::Config::new()
        .host_path(server.socket_dir())
        .port(server.port())
        .user(user)
        .dbname(database)
        .application_name("pg_regress")
        .options("-c statement_timeout=60s -c intervalstyle=postgres_verbose -c datestyle=Postgres,MDY -c timezone=PST8PDT")
        .connect(NoTls)
        .await?;
    Ok((client, Trees::listen(connection)))
}

/// What the server says to a statement that is tried in a READ ONLY transaction.
#[derive(Debug)]
pub enum Answer {
    /// It takes it, and nothing in it may write.
    Pure,
    Impure(Impure),
    Error(String),
}

/// One script's session, and one beside it that loads the catalogue as the gateway does.
pub struct Session<'s> {
    suite: &'s Suite,
    client: Client,
    /// What `client` prints.
    trees: Trees,
    watcher: Client,
    loader: Loader,
    catalogue: Catalogue,
    /// Something may have been made or changed since the catalogue was loaded.
    stale: bool,
    /// The same, in the transaction that is open.
    changed: bool,
    /// A transaction was open when a statement was last asked for.
    in_transaction: bool,
    known: Known,
}

impl Session<'_> {
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Is a transaction open that has changed the schema? To be asked after [`Self::ask`].
    pub fn has_open_changes(&self) -> bool {
        self.in_transaction && self.changed
    }

    /// Loads the catalogue again, if anything may have changed.
    pub async fn refresh(&mut self) {
        if !self.stale {
            return;
        }
        match tokio::time::timeout(LOAD, self.loader.rows(&self.watcher)).await {
            Ok(Ok(rows)) => {
                if let Some(rows) = rows {
                    self.catalogue = graph::judge(&rows).build();
                }
                self.stale = false;
            }
            // It waited for a lock that the script holds, say; another connection is needed, and later.
            _ => {
                let connecting = connect(&self.suite.server, SUPERUSER, DATABASE);
                if let Ok(Ok((client, _))) = tokio::time::timeout(LOAD, connecting).await {
                    self.watcher = client;
                }
            }
        }
    }

    /// Does the server take this statement here and now in a READ ONLY transaction, and what does it call?
    pub async fn ask(&mut self, statement: &Statement, seen: &[Seen]) -> Answer {
        let (ask, back) = match self.client.batch_execute("SAVEPOINT fedgate_asks").await {
            Ok(()) => (
                "SET TRANSACTION READ ONLY",
                "ROLLBACK TO SAVEPOINT fedgate_asks; RELEASE SAVEPOINT fedgate_asks",
            ),
            Err(error) if error.code() == Some(&SqlState::NO_ACTIVE_SQL_TRANSACTION) => {
                ("BEGIN READ ONLY", "ROLLBACK")
            }
            Err(error) => return Answer::Error(text(&error)),
        };
        self.in_transaction = back != "ROLLBACK";
        let asked = async {
            self.client.batch_execute(ask).await?;
            self.client.batch_execute(calls::PRINT).await?;
            self.trees.take();
            self.send(&statement.text, seen).await?;
            if let Some(query) = calls::explained(&statement.text) {
                let tree = format!("PREPARE fedgate_asks AS {query}");
                self.client.batch_execute(&tree).await?;
                self.client.batch_execute("DEALLOCATE fedgate_asks").await?;
            }
            calls::impure(&self.client, &self.trees.take(), &self.known).await
        };
        let answer = match asked.await {
            Ok(None) => Answer::Pure,
            Ok(Some(why)) => Answer::Impure(why),
            Err(error) => Answer::Error(text(&error)),
        };
        let _ = self.client.batch_execute(back).await;
        answer
    }

    /// Sends a text and waits for the end of its answer; the server's own clock bounds it.
    async fn send(&self, text: &str, seen: &[Seen]) -> Result<(), tokio_postgres::Error> {
        let copy = seen.len() == 1
            && text.trim_start().get(..4).is_some_and(|word| word.eq_ignore_ascii_case("copy"));
        if copy && seen[0].kind == Kind::Read {
            let rows = self.client.copy_out(text).await?;
            let mut rows = std::pin::pin!(rows);
            while let Some(row) = rows.next().await {
                row?;
            }
            return Ok(());
        }
        self.client.simple_query(text).await.map(drop)
    }

    /// Does what the script says.
    pub async fn run(
        &mut self,
        script: &mut Script,
        statement: &Statement,
        seen: &[Seen],
        pure: bool,
        data: Option<Option<String>>,
    ) {
        // Pure reads change neither schema nor data; what they leave in the session (a cursor) they leave now.
        let rows_only = |seen: &Seen| match &seen.kind {
            Kind::Session => true,
            Kind::Write(what) => {
                matches!(
                    what.as_str(),
                    "InsertStmt" | "UpdateStmt" | "DeleteStmt" | "COPY FROM" | "TruncateStmt"
                )
            }
            Kind::Read | Kind::Transaction => false,
        };
        if !pure && !seen.iter().all(rows_only) {
            self.stale = true;
            let text = statement.text.to_ascii_lowercase();
            let bounds = ["begin", "start", "commit", "end", "abort", "rollback"];
            if !seen.iter().all(|seen| seen.kind == Kind::Transaction) {
                self.changed = true;
            } else if bounds.iter().any(|word| text.starts_with(word)) && !text.contains(" to ") {
                self.changed = false;
            }
        }
        if let Some(data) = data {
            let Some(data) = data else {
                let _ = self.client.batch_execute("SELECT 1/0").await;
                return;
            };
            let copying = async {
                let sink = self.client.copy_in(statement.text.as_str()).await?;
                let mut sink = std::pin::pin!(sink);
                sink.send(bytes::Bytes::from(data)).await?;
                sink.as_mut().finish().await
            };
            let _ = tokio::time::timeout(STATEMENT, copying).await;
            return;
        }
        match &statement.sent_by {
            Some((sender, arguments)) if sender == "gset" || sender == "gexec" => {
                let Ok(Ok(answer)) =
                    tokio::time::timeout(2 * STATEMENT, self.client.simple_query(&statement.text)).await
                else {
                    return;
                };
                let prefix = arguments.first().map(String::as_str).unwrap_or_default();
                for message in answer {
                    let SimpleQueryMessage::Row(row) = message else { continue };
                    for (at, column) in row.columns().iter().enumerate() {
                        let Some(value) = row.get(at) else { continue };
                        if sender == "gset" {
                            script.set(&format!("{prefix}{}", column.name()), value.to_owned());
                        } else {
                            self.stale = true;
                            let _ = self.client.simple_query(value).await;
                        }
                    }
                }
            }
            _ => {
                let _ = tokio::time::timeout(2 * STATEMENT, self.send(&statement.text, seen)).await;
            }
        }
    }

    /// Does what a backslash command says, or names why not.
    pub async fn command(&mut self, script: &mut Script, name: &str, arguments: &[String]) -> &'static str {
        let argument = |at: usize| arguments.get(at).map(String::as_str).filter(|text| *text != "-");
        match name {
            "set" => {
                if let Some(variable) = argument(0) {
                    script.set(variable, arguments[1..].concat());
                }
                "psql: variables set"
            }
            "getenv" => {
                let value = match argument(1) {
                    Some("PG_ABS_SRCDIR" | "PG_ABS_BUILDDIR") => Some(self.suite.folder.path().to_owned()),
                    Some("PG_LIBDIR") => Some(self.suite.folder.path().join("lib")),
                    _ => None,
                };
                if let (Some(variable), Some(value)) = (argument(0), value) {
                    script.set(variable, value.to_string_lossy().into_owned());
                } else if let Some(variable) = argument(0) {
                    script.set(variable, ".so".to_owned());
                }
                "psql: variables set"
            }
            "c" | "connect" => {
                let user = argument(1).unwrap_or(SUPERUSER);
                if let Ok((client, trees)) =
                    connect(&self.suite.server, user, argument(0).unwrap_or(DATABASE)).await
                {
                    (self.client, self.trees) = (client, trees);
                }
                "psql: connections"
            }
            "copy" => {
                let words: Vec<String> = arguments.iter().map(|word| word.to_ascii_lowercase()).collect();
                if words.iter().any(|word| word == "from") && words.iter().any(|word| word == "stdin") {
                    script.data();
                }
                "skipped: psql's \\copy"
            }
            _ if name.starts_with('d') => "skipped: psql's \\d",
            _ => "skipped: other commands of psql",
        }
    }
}

/// The server's own words, or what became of the connection.
fn text(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}
