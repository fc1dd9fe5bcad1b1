//! VictoriaLogs over HTTP (its `/insert/jsonline` and `/select/logsql/query`).
//!
//! Invariant: an event is called delivered only after all its lines were found there by their `metadata.uid`: an
//! answer of 200 says nothing, since lines that are bad, too long, too old or behind such ones are lost with it.
//!
//! Requests are not compressed: an encoding that a server does not know is one more way to lose them all with 200.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::super::ocsf::{self, Style};
use super::super::spool::Waiting;
use super::{Fault, Sink};
use crate::client::{self, ClientError};
use crate::metrics::AuditFailure;

/// What makes a stream: of few values, as VictoriaLogs asks for.
const STREAM_FIELDS: &str = "metadata.product.name,class_uid";
/// Of the ids in one query, in bytes; VictoriaLogs takes no query of more than 16 KiB.
const QUERY: usize = 6 << 10;
/// Longest answer that is read, in bytes.
const ANSWER: usize = 1 << 20;
/// Of an answer that says no, in bytes.
const EXCERPT: usize = 200;
/// Between two looks whether lines are there, at first and at most; they are found after about a second.
const FIRST_LOOK: Duration = Duration::from_millis(200);
const LAST_LOOK: Duration = Duration::from_secs(2);

/// Reads a bearer token as it is now.
#[derive(Clone)]
pub struct Token(Arc<dyn Fn() -> io::Result<String> + Send + Sync>);

impl Token {
    pub fn new(read: impl Fn() -> io::Result<String> + Send + Sync + 'static) -> Self {
        Self(Arc::new(read))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// How VictoriaLogs is reached.
#[derive(Clone, Debug)]
pub struct VictoriaLogsSettings {
    /// Without `/insert/jsonline`.
    pub url: String,
    /// The tenant.
    pub account_id: u32,
    pub project_id: u32,
    pub token: Option<Token>,
    /// Roots to trust; absent: the system's.
    pub ca: Option<PathBuf>,
    /// For a request, and for lines to be found after they were sent.
    pub timeout: Duration,
}

/// A client of VictoriaLogs.
pub struct VictoriaLogs {
    client: Client,
    insert: Url,
    select: Url,
    token: Option<Token>,
    tenant: HeaderMap,
    timeout: Duration,
    style: Style,
    /// What was sent last may be there, or be there soon.
    doubt: bool,
}

/// Why there is no sink.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("audit.url is not a URL")]
    Url,
}

impl VictoriaLogs {
    /// # Errors
    /// No client can be made, most likely since there are no roots to trust.
    pub fn new(settings: VictoriaLogsSettings, style: Style) -> Result<Self, SinkError> {
        let base = settings.url.trim_end_matches('/');
        let parse = |path: &str| Url::parse(&format!("{base}{path}")).map_err(|_| SinkError::Url);
        let mut insert = parse("/insert/jsonline")?;
        insert.query_pairs_mut().append_pair("_stream_fields", STREAM_FIELDS);
        let mut tenant = HeaderMap::new();
        tenant.insert("accountid", HeaderValue::from(settings.account_id));
        tenant.insert("projectid", HeaderValue::from(settings.project_id));
        Ok(Self {
            client: client::http(base, settings.ca.as_deref(), settings.timeout)?,
            insert,
            select: parse("/select/logsql/query")?,
            token: settings.token,
            tenant,
            timeout: settings.timeout,
            style,
            doubt: false,
        })
    }

    async fn post(&self, url: &Url, kind: &'static str, body: String) -> Result<Response, Fault> {
        let mut request = self
            .client
            .post(url.clone())
            .headers(self.tenant.clone())
            .header(CONTENT_TYPE, HeaderValue::from_static(kind))
            .body(body);
        if let Some(token) = &self.token {
            let token = (token.0)().map_err(|error| {
                Fault::new(AuditFailure::Rejected, format!("audit.token_file cannot be read: {error}"))
            })?;
            request = request.bearer_auth(token.trim());
        }
        let response = request.send().await.map_err(|error| {
            Fault::new(AuditFailure::Unreachable, format!("VictoriaLogs: {}", client::told(&error)))
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(denied(response).await)
    }

    async fn send(&self, lines: String) -> Result<(), Fault> {
        // With a form's type it would read the body as more parameters.
        let response = self.post(&self.insert, "application/stream+json", lines).await?;
        // Only a whole answer says that it was all read.
        let read = client::body(response, ANSWER).await;
        read.map(drop)
            .map_err(|error| Fault::new(AuditFailure::Unreachable, format!("VictoriaLogs: {error}")))
    }

    /// Which of these are there.
    async fn find(&self, uids: &[&str], since: SystemTime, until: SystemTime) -> Result<Vec<String>, Fault> {
        let list: Vec<String> = uids.iter().map(|uid| Value::from(*uid).to_string()).collect();
        let second = Duration::from_secs(1);
        let query = format!(
            "_time:[{},{}] \"metadata.uid\":in({}) | fields \"metadata.uid\"",
            humantime::format_rfc3339_millis(since.checked_sub(second).unwrap_or(since)),
            humantime::format_rfc3339_millis(until + second),
            list.join(","),
        );
        // Twice as many as asked for: what arrived twice is told twice.
        let limit = (4 * uids.len()).to_string();
        let mut form = self.select.clone();
        form.query_pairs_mut().clear().append_pair("query", &query).append_pair("limit", &limit);
        let body = form.query().unwrap_or_default().to_owned();
        let response = self.post(&self.select, "application/x-www-form-urlencoded", body).await?;
        let body = client::body(response, ANSWER)
            .await
            .map_err(|error| Fault::new(AuditFailure::Unreachable, format!("VictoriaLogs: {error}")))?;
        let lines = body.split(|byte| *byte == b'\n').filter_map(|line| {
            let line: Value = serde_json::from_slice(line).ok()?;
            Some(line.get("metadata.uid")?.as_str()?.to_owned())
        });
        Ok(lines.collect())
    }

    /// Looks once for what was not found yet.
    async fn look(&self, sent: &mut Sent) -> Result<(), Fault> {
        let mut missing: Vec<String> = sent.owners.keys().cloned().collect();
        missing.sort_unstable();
        let mut rest = missing.as_slice();
        while !rest.is_empty() {
            let mut size = 0;
            let fits = rest.iter().take_while(|uid| {
                size += 2 * uid.len() + 8;
                size <= QUERY
            });
            let (now, later) = rest.split_at(fits.count().max(1));
            rest = later;
            let now: Vec<&str> = now.iter().map(String::as_str).collect();
            for uid in self.find(&now, sent.since, sent.until).await? {
                sent.found(&uid);
            }
        }
        Ok(())
    }
}

/// Lines that were sent and not found yet.
struct Sent {
    /// The event of each line, by its place among the events.
    owners: HashMap<String, usize>,
    /// How many lines of each event are missing.
    missing: Vec<usize>,
    since: SystemTime,
    until: SystemTime,
}

impl Sent {
    fn found(&mut self, uid: &str) {
        // Whatever else is told was not asked for.
        if let Some(owner) = self.owners.remove(uid)
            && let Some(missing) = self.missing.get_mut(owner)
        {
            *missing = missing.saturating_sub(1);
        }
    }

    fn delivered(&self, events: &[Waiting]) -> Vec<u64> {
        let whole = events.iter().zip(&self.missing).filter(|(_, missing)| **missing == 0);
        whole.map(|(waiting, _)| waiting.number).collect()
    }
}

impl Sink for VictoriaLogs {
    async fn deliver(&mut self, events: &[Waiting]) -> Result<Vec<u64>, Fault> {
        let mut text = String::new();
        let times = || events.iter().map(|waiting| waiting.event.at);
        let mut sent = Sent {
            owners: HashMap::new(),
            missing: Vec::with_capacity(events.len()),
            since: times().min().unwrap_or(SystemTime::UNIX_EPOCH),
            until: times().max().unwrap_or(SystemTime::UNIX_EPOCH),
        };
        for (place, waiting) in events.iter().enumerate() {
            let lines = ocsf::lines(&waiting.event, self.style);
            sent.missing.push(lines.len());
            for (part, line) in lines.iter().enumerate() {
                sent.owners.insert(ocsf::uid(&waiting.event, part, lines.len()), place);
                text.push_str(line);
            }
        }
        if std::mem::replace(&mut self.doubt, true) {
            // An answer that was lost, or lines that were found too late: they need not be sent again.
            self.look(&mut sent).await?;
            let delivered = sent.delivered(events);
            if !delivered.is_empty() {
                self.doubt = delivered.len() < events.len();
                return Ok(delivered);
            }
        }
        if let Err(fault) = self.send(text).await {
            // What was refused as a whole is not there.
            self.doubt = !matches!(fault.reason, AuditFailure::Busy | AuditFailure::Rejected);
            return Err(fault);
        }
        let until = Instant::now() + self.timeout;
        let mut pause = FIRST_LOOK;
        let mut looked = Ok(());
        while !sent.owners.is_empty() && Instant::now() + pause < until {
            sleep(pause).await;
            pause = (pause * 2).min(LAST_LOOK);
            looked = self.look(&mut sent).await;
        }
        self.doubt = !sent.owners.is_empty();
        let delivered = sent.delivered(events);
        match looked {
            Err(fault) if delivered.is_empty() => Err(fault),
            _ => Ok(delivered),
        }
    }

    async fn probe(&mut self) -> Result<(), Fault> {
        let now = SystemTime::now();
        self.find(&["fedgate check"], now, now).await.map(drop)
    }
}

/// What an answer other than 2xx means.
async fn denied(response: Response) -> Fault {
    let status = response.status();
    let wait = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(Duration::from_secs);
    let reason = match status {
        StatusCode::TOO_MANY_REQUESTS => AuditFailure::Busy,
        _ if status.is_server_error() => AuditFailure::Server,
        _ => AuditFailure::Rejected,
    };
    let body = client::body(response, ANSWER).await.unwrap_or_default();
    let said: String =
        String::from_utf8_lossy(&body).chars().filter(|char| !char.is_control()).take(EXCERPT).collect();
    Fault { reason, message: format!("VictoriaLogs answered {status}: {said}"), wait }
}
