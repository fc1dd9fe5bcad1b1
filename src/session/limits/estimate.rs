//! What a statement would cost, asked of the source's planner on connections of the gateway's own.
//!
//! Invariant: only what was admitted is asked about, as EXPLAIN in a transaction that is rolled back; questions,
//! connections, waits and what is remembered are bounded; and what the planner was not asked with exactly as the client
//! would ask is no estimate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use postgres_protocol::escape::{escape_identifier, escape_literal};
use quick_cache::sync::Cache;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::timeout;
use tokio_postgres::Client;
use tokio_postgres::types::{FromSql, Type};
use tokio_util::task::AbortOnDropHandle;

use super::plan::Estimate;
use super::refusal::NoEstimate;
use super::text::{Key, Subject, is_table_of_copy, may_differ, subject};
use crate::config::CostLimit;
use crate::guard::Permit;
use crate::metrics::{EstimateOutcome, LimitMetrics};
use crate::upstream::Source;

/// Questions that wait for a connection.
const QUEUE: usize = 64;
/// Estimates that are remembered for one source.
const REMEMBERED: usize = 8192;
/// A connection of the gateway's own is closed when nobody asked for so long.
const IDLE: Duration = Duration::from_secs(60);
/// Of what a source says, in characters.
const LONGEST_SAID: usize = 300;

/// A question.
pub(super) struct Job {
    pub(super) question: Question,
    pub(super) answer: oneshot::Sender<Outcome>,
}

/// All that an estimate hangs on.
#[derive(Clone)]
pub(super) struct Question {
    pub(super) key: Key,
    pub(super) permit: Permit,
    /// Of a Parse: parameter types as they lie; absent: no parameters can be named.
    pub(super) types: Option<Bytes>,
    /// The session's own startup settings.
    pub(super) settings: Arc<[(String, String)]>,
    /// A SET of search_path since.
    pub(super) path: Option<Permit>,
    /// Settings were changed since the start, so that a constant may mean something else to the client.
    pub(super) unsure: bool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(super) enum Outcome {
    Cost(Arc<Estimate>),
    /// The source has the same error for the statement itself.
    GoesOn,
    None(NoEstimate),
}

/// What is known of costs at one source, and the way to ask for more.
pub(super) struct Costs {
    known: Cache<Key, (Instant, Arc<Estimate>)>,
    ask: mpsc::Sender<Job>,
    // Held by whoever waits for the next question, one at a time.
    asked: Mutex<mpsc::Receiver<Job>>,
    metrics: LimitMetrics,
}

impl Costs {
    pub(super) fn new(metrics: LimitMetrics) -> Self {
        let (ask, asked) = mpsc::channel(QUEUE);
        Self { known: Cache::new(REMEMBERED), ask, asked: Mutex::new(asked), metrics }
    }

    /// What is remembered, if it is not too old.
    pub(super) fn known(&self, key: &Key, remember: Duration) -> Option<Arc<Estimate>> {
        let (at, estimate) = self.known.get(key)?;
        (at.elapsed() < remember).then_some(estimate)
    }

    /// Asks, and waits for no longer than `limit`.
    pub(super) fn ask(
        &self,
        question: Question,
        limit: Duration,
    ) -> impl Future<Output = Outcome> + Send + use<> {
        let (answer, answered) = oneshot::channel();
        let full = self.ask.try_send(Job { question, answer }).is_err();
        let metrics = self.metrics.clone();
        let waiting = Waiting::new(&metrics);
        async move {
            let _waiting = waiting;
            let outcome = if full {
                Outcome::None(NoEstimate::Busy)
            } else {
                match timeout(limit, answered).await {
                    Ok(Ok(outcome)) => outcome,
                    // Whoever worked on it has ended with an older configuration.
                    Ok(Err(_)) => Outcome::None(NoEstimate::Unreachable),
                    Err(_) => Outcome::None(NoEstimate::Timeout(limit)),
                }
            };
            metrics.estimated(match &outcome {
                Outcome::Cost(_) => EstimateOutcome::Asked,
                Outcome::GoesOn => EstimateOutcome::Error,
                Outcome::None(_) => EstimateOutcome::Failed,
            });
            outcome
        }
    }

    /// Answers questions on one connection, opened when it is needed, until it is aborted.
    pub(super) async fn work(self: Arc<Self>, source: Arc<Source>, limit: CostLimit) {
        let mut own: Option<Own> = None;
        loop {
            let next = async { self.asked.lock().await.recv().await };
            let job = match &own {
                None => next.await,
                Some(_) => match timeout(IDLE, next).await {
                    Ok(job) => job,
                    Err(_) => {
                        own = None;
                        continue;
                    }
                },
            };
            let Some(Job { question, answer }) = job else { return };
            if answer.is_closed() {
                continue;
            }
            let outcome = match self.known(&question.key, limit.remember) {
                Some(estimate) => Outcome::Cost(estimate),
                None => self.estimate(&source, &limit, &mut own, &question).await,
            };
            // Whoever asked may have gone.
            let _ = answer.send(outcome);
        }
    }

    async fn estimate(
        &self,
        source: &Source,
        limit: &CostLimit,
        own: &mut Option<Own>,
        question: &Question,
    ) -> Outcome {
        // A connection that has broken while it was idle is found out by its first use: so there are two tries.
        for _ in 0..2 {
            let mut working = match own.take().filter(|own| !own.client.is_closed()) {
                Some(working) => working,
                None => match Own::open(source, limit).await {
                    Some(opened) => opened,
                    None => return Outcome::None(NoEstimate::Unreachable),
                },
            };
            match timeout(limit.timeout, working.explain(question)).await {
                // The source ends the question by itself, a moment later.
                Err(_) => return Outcome::None(NoEstimate::Timeout(limit.timeout)),
                Ok(Err(Failed::Broken)) => continue,
                Ok(outcome) => {
                    *own = Some(working);
                    return match outcome {
                        Ok(Some(estimate)) => {
                            let estimate = Arc::new(estimate);
                            self.known.insert(question.key, (Instant::now(), Arc::clone(&estimate)));
                            Outcome::Cost(estimate)
                        }
                        Ok(None) => Outcome::GoesOn,
                        Err(Failed::No(why)) => Outcome::None(why),
                        Err(Failed::Broken) => Outcome::None(NoEstimate::Unreachable),
                    };
                }
            }
        }
        Outcome::None(NoEstimate::Unreachable)
    }
}

/// One that waits, counted until it is dropped.
struct Waiting(prometheus::IntGauge);

impl Waiting {
    fn new(metrics: &LimitMetrics) -> Self {
        metrics.waiting.inc();
        Self(metrics.waiting.clone())
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Why a question has no answer.
enum Failed {
    /// The connection is of no use any more.
    Broken,
    No(NoEstimate),
}

/// A connection of the gateway's own.
struct Own {
    client: Client,
    _driven: AbortOnDropHandle<()>,
    /// Counts what was prepared, so that no name comes twice.
    prepared: u64,
    limit: Duration,
}

impl Own {
    async fn open(source: &Source, limit: &CostLimit) -> Option<Self> {
        let (client, connection) = match source.client().await {
            Ok(opened) => opened,
            Err(error) => {
                tracing::warn!(source = %source.name(), %error, "no connection to ask for costs on");
                return None;
            }
        };
        let driven = AbortOnDropHandle::new(tokio::spawn(async move {
            // What ended it shows in the next question.
            let _ = connection.await;
        }));
        let milliseconds = limit.timeout.as_millis().max(1);
        let bound = format!("SET statement_timeout = {milliseconds}");
        timeout(limit.timeout, client.batch_execute(&bound)).await.ok()?.ok()?;
        Some(Self { client, _driven: driven, prepared: 0, limit: limit.timeout })
    }

    /// Nothing: the source has an error for the statement itself.
    async fn explain(&mut self, question: &Question) -> Result<Option<Estimate>, Failed> {
        let text = question.permit.text();
        let asked = match subject(text) {
            Subject::Nothing => return Ok(None),
            Subject::Prepare(range) => Asked::Prepare(part(text, range)?),
            // In a Query there are no parameters, and the source says so.
            Subject::Query(query) if query.parameters && question.types.is_none() => return Ok(None),
            Subject::Query(query) if query.parameters => Asked::Parameters(part(text, query.range)?),
            Subject::Query(query) if is_table_of_copy(text) => {
                Asked::Plain(format!("TABLE {}", part(text, query.range)?))
            }
            Subject::Query(query) => Asked::Plain(part(text, query.range)?.to_owned()),
        };
        self.begin(question).await.map_err(|error| self.failed(&error))?;
        let answered = self.ask(&asked, question).await;
        let rolled_back = self.client.batch_execute("ROLLBACK").await;
        if rolled_back.is_err() {
            return Err(Failed::Broken);
        }
        if let Some(name) = answered.prepared {
            // It outlives its transaction.
            let gone = self.client.batch_execute(&format!("DEALLOCATE {name}")).await;
            gone.map_err(|_| Failed::Broken)?;
        }
        match answered.json {
            Ok(json) => match Estimate::read(&json) {
                Some(estimate) => Ok(Some(estimate)),
                None => Err(Failed::No(NoEstimate::Unreadable)),
            },
            Err(Refused::Setup(why)) => Err(why),
            Err(Refused::Statement(error)) => self.judge(&error, question.unsure),
            Err(Refused::Planned(error)) => {
                let judged = self.judge(&error, question.unsure);
                if judged.is_err() || !may_differ(text) || self.is_wrong(&asked, question).await? {
                    return judged;
                }
                Err(self.failed(&error))
            }
        }
    }

    /// Whether a query has an error before it is planned, which the client's session has too.
    async fn is_wrong(&mut self, asked: &Asked<'_>, question: &Question) -> Result<bool, Failed> {
        let Asked::Plain(query) = asked else { return Ok(false) };
        self.begin(question).await.map_err(|error| self.failed(&error))?;
        let name = self.new_name();
        let prepared = self.client.execute(&format!("PREPARE {name} AS {query}"), &[]).await;
        self.client.batch_execute("ROLLBACK").await.map_err(|_| Failed::Broken)?;
        if prepared.is_ok() {
            let gone = self.client.batch_execute(&format!("DEALLOCATE {name}")).await;
            gone.map_err(|_| Failed::Broken)?;
        }
        Ok(prepared.is_err())
    }

    fn new_name(&mut self) -> String {
        self.prepared += 1;
        escape_identifier(&format!("fedgate estimate {}", self.prepared)).trim().to_owned()
    }

    /// As the client's own session stands.
    async fn begin(&self, question: &Question) -> Result<(), tokio_postgres::Error> {
        let mut begin = String::from("BEGIN READ ONLY");
        // How long the client waits for anything says nothing about how long the planner may take.
        for (name, value) in question.settings.iter().filter(|(name, _)| !name.ends_with("_timeout")) {
            begin.push_str(&format!(
                "; SELECT pg_catalog.set_config({}, {}, true)",
                escape_literal(name),
                escape_literal(value)
            ));
        }
        self.client.batch_execute(&begin).await?;
        if let Some(path) = &question.path {
            // By the extended protocol, which takes one statement and no more.
            self.client.execute(&*String::from_utf8_lossy(path.text()), &[]).await?;
        }
        Ok(())
    }

    async fn ask(&mut self, asked: &Asked<'_>, question: &Question) -> Answered {
        let prepare = match asked {
            Asked::Plain(query) => {
                let json = self.json(&format!("EXPLAIN (FORMAT JSON) {query}")).await;
                return Answered { json: json.map_err(Refused::Planned), prepared: None };
            }
            Asked::Parameters(query) => {
                match self.type_names(question.types.as_deref().unwrap_or_default()).await {
                    Ok(types) => format!("{types} AS {query}"),
                    Err(why) => return Answered { json: Err(Refused::Setup(why)), prepared: None },
                }
            }
            Asked::Prepare(rest) => (*rest).to_owned(),
        };
        let name = self.new_name();
        // Or a NULL would be planned for as the value that it is. Servers before PostgreSQL 12 do not know how.
        if let Err(error) = self.client.batch_execute("SET LOCAL plan_cache_mode = force_generic_plan").await
        {
            return Answered { json: Err(Refused::Setup(self.failed(&error))), prepared: None };
        }
        if let Err(error) = self.client.execute(&format!("PREPARE {name} {prepare}"), &[]).await {
            return Answered { json: Err(Refused::Statement(error)), prepared: None };
        }
        let parameters = self.parameters(&name).await;
        let json = match parameters {
            Err(why) => Err(Refused::Setup(why)),
            Ok(0) => {
                self.json(&format!("EXPLAIN (FORMAT JSON) EXECUTE {name}")).await.map_err(Refused::Planned)
            }
            Ok(count) => {
                let nulls = vec!["NULL"; count].join(", ");
                let explain = format!("EXPLAIN (FORMAT JSON) EXECUTE {name} ({nulls})");
                self.json(&explain).await.map_err(Refused::Planned)
            }
        };
        Answered { json, prepared: Some(name) }
    }

    async fn json(&self, explain: &str) -> Result<String, tokio_postgres::Error> {
        let row = self.client.query_one(explain, &[]).await?;
        Ok(row.try_get::<_, Raw>(0)?.0)
    }

    /// The types of a Parse as PREPARE names them; those that the client left open stay open.
    async fn type_names(&self, types: &[u8]) -> Result<String, Failed> {
        let (_, oids) = types.split_at_checked(2).unwrap_or_default();
        let oids: Vec<u32> =
            oids.chunks_exact(4).filter_map(|oid| oid.try_into().ok().map(u32::from_be_bytes)).collect();
        if oids.is_empty() {
            return Ok(String::new());
        }
        let list: Vec<String> = oids.iter().map(u32::to_string).collect();
        let ask = format!(
            "SELECT CASE t.oid WHEN 0 THEN 'unknown' ELSE pg_catalog.format_type(t.oid, NULL) END \
             FROM pg_catalog.unnest('{{{}}}'::pg_catalog.oid[]) WITH ORDINALITY AS t (oid, at) ORDER BY t.at",
            list.join(",")
        );
        let rows = self.client.query(&ask, &[]).await.map_err(|error| self.failed(&error))?;
        let mut names = Vec::with_capacity(rows.len());
        for row in rows {
            let name: String = row.try_get(0).map_err(|_| Failed::No(NoEstimate::Unreadable))?;
            if name == "???" || name == "-" {
                return Err(Failed::No(NoEstimate::Said(
                    "a parameter has a type that is not known".to_owned(),
                )));
            }
            names.push(name);
        }
        Ok(format!("({})", names.join(", ")))
    }

    async fn parameters(&self, name: &str) -> Result<usize, Failed> {
        let unquoted = name.trim_matches('"');
        let ask = format!(
            "SELECT pg_catalog.cardinality(parameter_types) FROM pg_catalog.pg_prepared_statements WHERE name = {}",
            escape_literal(unquoted)
        );
        let row = self.client.query_one(&ask, &[]).await.map_err(|error| self.failed(&error))?;
        let count: i32 = row.try_get(0).map_err(|_| Failed::No(NoEstimate::Unreadable))?;
        usize::try_from(count).map_err(|_| Failed::No(NoEstimate::Unreadable))
    }

    /// An error that is not about the statement.
    fn failed(&self, error: &tokio_postgres::Error) -> Failed {
        match error.as_db_error() {
            None => Failed::Broken,
            Some(db) if db.code() == &tokio_postgres::error::SqlState::QUERY_CANCELED => {
                Failed::No(NoEstimate::Timeout(self.limit))
            }
            Some(db) => Failed::No(NoEstimate::Said(said(db))),
        }
    }

    /// Whether the source says the same to the statement itself.
    fn judge(&self, error: &tokio_postgres::Error, unsure: bool) -> Result<Option<Estimate>, Failed> {
        let code = error.code().map(tokio_postgres::error::SqlState::code).unwrap_or_default();
        match code.get(..2) {
            // A login of the client's own may have rights that the gateway's has not.
            _ if code == "42501" => {}
            // Names, types and syntax; and what a constant cannot mean, as long as it means the same to the client.
            Some("42" | "0A" | "3F") => return Ok(None),
            Some("22") if !unsure => return Ok(None),
            _ => {}
        }
        Err(self.failed(error))
    }
}

enum Asked<'a> {
    Plain(String),
    Parameters(&'a str),
    /// Types and query of a PREPARE.
    Prepare(&'a str),
}

struct Answered {
    json: Result<String, Refused>,
    /// What has to be deallocated.
    prepared: Option<String>,
}

enum Refused {
    /// It could not be asked as the client would ask.
    Setup(Failed),
    /// Before it was planned, as far as that is known.
    Statement(tokio_postgres::Error),
    /// As it was planned, or before.
    Planned(tokio_postgres::Error),
}

fn part(text: &[u8], range: std::ops::Range<usize>) -> Result<&str, Failed> {
    let part = text.get(range).and_then(|part| std::str::from_utf8(part).ok());
    part.ok_or(Failed::No(NoEstimate::Unreadable))
}

fn said(error: &tokio_postgres::error::DbError) -> String {
    let one_line: String =
        error.message().chars().map(|c| if c.is_control() { ' ' } else { c }).take(LONGEST_SAID).collect();
    format!("{one_line} ({}).", error.code().code())
}

/// A value of type json, as the text that it is.
struct Raw(String);

impl FromSql<'_> for Raw {
    fn from_sql(_: &Type, raw: &[u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(String::from_utf8(raw.to_vec())?))
    }

    fn accepts(of: &Type) -> bool {
        matches!(*of, Type::JSON | Type::TEXT)
    }
}
