//! A scratch server with the suite's database, and a session that does what psql would do for a script.
//!
//! Invariant: what a script does happens in its order and in its own session; asking whether a statement is a read
//! leaves nothing behind.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fedgate::sql::catalogue::Catalogue;
use fedgate::sql::known;
use fedgate_oracle::judge::{Kind, Seen};
use fedgate_oracle::script::{Script, Statement};
use futures_util::{SinkExt, StreamExt};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::support::postgres::{Options, Postgres, SUPERUSER};

/// No statement of the suite takes longer on a machine that works.
const STATEMENT: Duration = Duration::from_secs(60);
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
    pub fn start(folder: &Path) -> Self {
        // The server's user may not look into the folder that the suite lies in.
        let copy = tempfile::Builder::new().prefix("fedgate-regress").tempdir().expect("a folder is made");
        let readable = std::os::unix::fs::PermissionsExt::from_mode(0o777);
        std::fs::set_permissions(copy.path(), readable).expect("the folder is opened");
        let data = copy.path().join("data");
        std::fs::create_dir(&data).expect("a folder is made");
        for file in std::fs::read_dir(folder.join("data")).into_iter().flatten().flatten() {
            let _ = std::fs::copy(file.path(), data.join(file.file_name()));
        }
        let server = Postgres::start(
            Options::default()
                .setting("log_statement", "none")
                .setting("log_min_duration_statement", "-1")
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
        let client = connect(&self.server, SUPERUSER, DATABASE).await.expect("the suite's database is there");
        let watcher =
            connect(&self.server, SUPERUSER, DATABASE).await.expect("the suite's database is there");
        let mut session = Session {
            suite: self,
            client,
            watcher,
            catalogue: Catalogue::default(),
            volatile: HashSet::new(),
            stale: true,
        };
        session.refresh().await;
        session
    }
}

async fn connect(server: &Postgres, user: &str, database: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::Config::new()
        .host_path(server.socket_dir())
        .port(server.port())
        .user(user)
        .dbname(database)
        .application_name("pg_regress")
        .options("-c statement_timeout=60s -c intervalstyle=postgres_verbose -c datestyle=Postgres,MDY -c timezone=PST8PDT")
        .connect(NoTls)
        .await?;
    tokio::spawn(connection);
    Ok(client)
}

/// One script's session, and one beside it that loads the catalogue as the gateway does.
pub struct Session<'s> {
    suite: &'s Suite,
    client: Client,
    watcher: Client,
    catalogue: Catalogue,
    /// `schema.name` of what `pg_proc` marks volatile.
    volatile: HashSet<(String, String)>,
    /// Something was made or changed since the catalogue was loaded.
    stale: bool,
}

impl Session<'_> {
    pub fn catalogue(&self) -> &Catalogue {
        &self.catalogue
    }

    /// Loads the catalogue again, if anything changed; did it?
    pub async fn refresh(&mut self) -> bool {
        if !self.stale {
            return false;
        }
        let loading = async {
            let catalogue = fedgate::upstream::catalogue::load(&self.watcher).await?;
            let rows = self
                .watcher
                .query(
                    "SELECT n.nspname::text, p.proname::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace \
                     WHERE p.provolatile = 'v'",
                    &[],
                )
                .await?;
            Ok::<_, tokio_postgres::Error>((catalogue, rows))
        };
        if let Ok(Ok((catalogue, rows))) = tokio::time::timeout(STATEMENT, loading).await {
            self.catalogue = catalogue;
            self.volatile = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
            self.stale = false;
            return true;
        }
        // It waited for a lock that the script holds, say; another connection is needed, and later.
        if let Ok(client) = connect(&self.suite.server, SUPERUSER, DATABASE).await {
            self.watcher = client;
        }
        false
    }

    /// May a call of this name run a volatile function that is not known to be harmless?
    pub fn volatile(&self, schema: Option<&str>, name: &str) -> bool {
        self.volatile.iter().any(|(of, volatile)| {
            volatile == name
                && schema.is_none_or(|schema| schema == of)
                && known::harmless(of, name).is_none()
        })
    }

    /// Does the server take this statement here and now, in a READ ONLY transaction?
    pub async fn accepts(&self, statement: &Statement, seen: &[Seen]) -> bool {
        if seen.iter().any(|seen| seen.kind == Kind::Transaction) {
            // What begins and ends transactions cannot be tried in one; the server takes it or warns.
            return true;
        }
        match self.client.batch_execute("SAVEPOINT fedgate_asks").await {
            Ok(()) => {
                let accepted = self.client.batch_execute("SET TRANSACTION READ ONLY").await.is_ok()
                    && self.send(&statement.text, seen).await;
                let back = "ROLLBACK TO SAVEPOINT fedgate_asks; RELEASE SAVEPOINT fedgate_asks";
                let _ = self.client.batch_execute(back).await;
                accepted
            }
            Err(error) if error.code() == Some(&SqlState::NO_ACTIVE_SQL_TRANSACTION) => {
                let accepted = self.client.batch_execute("BEGIN READ ONLY").await.is_ok()
                    && self.send(&statement.text, seen).await;
                let _ = self.client.batch_execute("ROLLBACK").await;
                accepted
            }
            Err(_) => false,
        }
    }

    /// Sends a text and waits for the end of its answer; was it a success?
    async fn send(&self, text: &str, seen: &[Seen]) -> bool {
        let copy = seen.len() == 1
            && text.trim_start().get(..4).is_some_and(|word| word.eq_ignore_ascii_case("copy"));
        let answer = async {
            if copy && seen[0].kind == Kind::Read {
                let rows = self.client.copy_out(text).await?;
                let mut rows = std::pin::pin!(rows);
                while let Some(row) = rows.next().await {
                    row?;
                }
                return Ok(());
            }
            self.client.simple_query(text).await.map(drop)
        };
        matches!(tokio::time::timeout(2 * STATEMENT, answer).await, Ok(Ok(())))
    }

    /// Does what the script says.
    pub async fn run(
        &mut self,
        script: &mut Script,
        statement: &Statement,
        seen: &[Seen],
        data: Option<String>,
    ) {
        // Reads change neither schema nor data; what they leave in the session (a cursor) they leave now.
        self.stale |= !seen.iter().all(|seen| seen.kind == Kind::Read);
        if let Some(data) = data {
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
                self.send(&statement.text, seen).await;
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
                    Some("PG_LIBDIR") => Some(PathBuf::from("/nonexistent")),
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
                if let Ok(client) = connect(&self.suite.server, user, argument(0).unwrap_or(DATABASE)).await {
                    self.client = client;
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
