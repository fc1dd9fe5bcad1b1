//! A stand-in for VictoriaLogs that keeps to what 1.52 was seen to do, and to what else may go wrong on the way.
//!
//! Invariant: like the real one it answers 200 whatever becomes of lines behind the first, and tells only by a query
//! what it has; what it has taken is found after a while and never forgotten.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, RawQuery, State};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::post;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

/// Lines from this length on are skipped.
pub const LINE: usize = 256 << 10;
/// Lines of more fields are dropped.
pub const FIELDS: usize = 1000;
/// Longer queries are refused.
const QUERY: usize = 16 << 10;

/// What happens to the next request of its kind.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Nothing is taken.
    Status(u16, Option<u64>),
    /// Taken, and the answer is cut off.
    CutOff,
    /// Taken after this time, which is longer than anybody waits.
    Slow(Duration),
    /// 200, and nothing was taken.
    Lose,
}

#[derive(Clone, Debug)]
pub enum QueryFault {
    Status(u16),
    /// Says that nothing is there.
    Deny,
    /// Half an answer.
    CutOff,
    /// Lines that are no JSON, ids that nobody asked for, and the right ones in another order.
    Noise,
}

#[derive(Default)]
pub struct Stand {
    pub insert_faults: VecDeque<Fault>,
    pub query_faults: VecDeque<QueryFault>,
    /// With this id in a line, the whole request is answered with 400.
    pub refused: Option<String>,
    /// With this id in a line, that line and all behind it are lost with 200.
    pub poison: Option<String>,
    /// Time until what was taken is found.
    pub delay: Duration,
    /// The bearer token that it asks for.
    pub token: Option<String>,
    /// Tenant, line and when it is found; in the order of arrival.
    lines: Vec<((u32, u32), Value, Instant)>,
    pub inserts: usize,
    pub queries: usize,
    /// Requests with a Content-Encoding.
    pub encoded: usize,
    /// The most lines that were found wanting, by reason.
    pub too_long: usize,
    pub too_wide: usize,
}

/// The server, for as long as this lives.
pub struct VictoriaLogs {
    pub address: SocketAddr,
    stand: Arc<Mutex<Stand>>,
    changes: watch::Sender<u64>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
struct Shared {
    stand: Arc<Mutex<Stand>>,
    changes: watch::Sender<u64>,
}

impl Drop for VictoriaLogs {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl VictoriaLogs {
    pub async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::on(listener, Stand::default())
    }

    fn on(listener: tokio::net::TcpListener, stand: Stand) -> Self {
        let address = listener.local_addr().unwrap();
        let stand = Arc::new(Mutex::new(stand));
        let changes = watch::Sender::new(0);
        let shared = Shared { stand: Arc::clone(&stand), changes: changes.clone() };
        let router = Router::new()
            .route("/insert/jsonline", post(insert))
            .route("/select/logsql/query", post(query))
            .layer(DefaultBodyLimit::max(64 << 20))
            .with_state(shared);
        let server = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self { address, stand, changes, server }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn stand(&self) -> MutexGuard<'_, Stand> {
        self.stand.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lines of this tenant, as they arrived, with those that arrived twice.
    pub fn lines_of(&self, tenant: (u32, u32)) -> Vec<Value> {
        let stand = self.stand();
        stand.lines.iter().filter(|line| line.0 == tenant).map(|line| line.1.clone()).collect()
    }

    pub fn lines(&self) -> Vec<Value> {
        self.lines_of((0, 0))
    }

    /// Ids in the order of their first arrival.
    pub fn uids(&self) -> Vec<String> {
        let mut uids: Vec<String> = Vec::new();
        for line in self.lines() {
            let uid = uid(&line);
            if !uids.contains(&uid) {
                uids.push(uid);
            }
        }
        uids
    }

    /// Waits until something that requests change is so.
    pub async fn until(&self, what: &str, mut reached: impl FnMut(&Self) -> bool) {
        let mut changes = self.changes.subscribe();
        let waited = tokio::time::timeout(Duration::from_secs(60), async {
            while !reached(self) {
                changes.changed().await.unwrap();
            }
        });
        assert!(waited.await.is_ok(), "never: {what}");
    }
}

pub fn uid(line: &Value) -> String {
    line["metadata"]["uid"].as_str().unwrap_or_default().to_owned()
}

fn plain(status: u16, body: impl Into<Body>) -> Response<Body> {
    Response::builder().status(StatusCode::from_u16(status).unwrap()).body(body.into()).unwrap()
}

fn cut_off(status: u16, begun: &str) -> Response<Body> {
    let parts = vec![Ok(Bytes::from(begun.to_owned())), Err(std::io::Error::other("cut off"))];
    plain(status, Body::from_stream(futures_util::stream::iter(parts)))
}

/// Status and text of an answer that says no.
type Denied = (u16, &'static str);

/// Tenant, or the answer to what says who asks.
fn tenant(stand: &Stand, headers: &HeaderMap) -> Result<(u32, u32), Denied> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(token) = &stand.token
        && text("authorization") != Some(&format!("Bearer {token}"))
    {
        return Err((401, "who are you?"));
    }
    let number = |name| text(name).map_or(Ok(0), str::parse::<u32>);
    match (number("accountid"), number("projectid")) {
        (Ok(account), Ok(project)) => Ok((account, project)),
        _ => Err((400, "cannot parse tenant")),
    }
}

/// Fields as they are flattened.
fn fields(value: &Value) -> usize {
    match value {
        Value::Object(map) => map.values().map(fields).sum(),
        _ => 1,
    }
}

/// A line that would be kept.
fn read(line: &[u8]) -> Option<Value> {
    let line: Value = serde_json::from_slice(line).ok()?;
    line.as_object()?;
    humantime::parse_rfc3339(line.get("_time")?.as_str()?).ok()?;
    Some(line)
}

async fn insert(
    State(shared): State<Shared>,
    RawQuery(arguments): RawQuery,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response<Body>, Infallible> {
    let fault = {
        let mut stand = shared.stand.lock().unwrap_or_else(PoisonError::into_inner);
        stand.inserts += 1;
        stand.insert_faults.pop_front()
    };
    if let Some(Fault::Slow(time)) = &fault {
        sleep(*time).await;
    }
    let answer = {
        let mut stand = shared.stand.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = take(&mut stand, arguments.as_deref().unwrap_or_default(), &headers, &body, &fault);
        match (fault, taken) {
            (Some(Fault::Status(status, wait)), _) => {
                let mut answer = plain(status, "not now");
                if let Some(wait) = wait {
                    answer.headers_mut().insert("retry-after", wait.into());
                }
                answer
            }
            (Some(Fault::CutOff), Ok(())) => cut_off(200, "x"),
            (_, Ok(())) => plain(200, ""),
            (_, Err((status, text))) => plain(status, text),
        }
    };
    shared.changes.send_modify(|count| *count += 1);
    Ok(answer)
}

fn take(
    stand: &mut Stand,
    arguments: &str,
    headers: &HeaderMap,
    body: &[u8],
    fault: &Option<Fault>,
) -> Result<(), Denied> {
    let tenant = tenant(stand, headers)?;
    if matches!(fault, Some(Fault::Status(..) | Fault::Lose)) {
        return Ok(());
    }
    if headers.contains_key("content-encoding") {
        // Of those that it does not know it says nothing either.
        stand.encoded += 1;
        return Ok(());
    }
    let kind = headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert_ne!(kind, "application/x-www-form-urlencoded", "the body would be read as parameters");
    assert_eq!(argument(arguments, "_stream_fields").unwrap(), "metadata.product.name,class_uid");
    let text = String::from_utf8_lossy(body);
    if stand.refused.as_ref().is_some_and(|uid| text.contains(uid.as_str())) {
        return Err((400, "cannot process this"));
    }
    let found = Instant::now() + stand.delay;
    let mut skip = false;
    for (at, line) in text.split_terminator('\n').enumerate() {
        if stand.poison.as_ref().is_some_and(|uid| line.contains(uid.as_str())) {
            return Ok(());
        }
        if line.len() >= LINE {
            // The one behind it goes, too.
            stand.too_long += 1;
            skip = true;
            continue;
        }
        if std::mem::take(&mut skip) {
            continue;
        }
        let Some(line) = read(line.as_bytes()) else {
            if at == 0 {
                return Err((400, "cannot read the first line"));
            }
            continue;
        };
        if fields(&line) > FIELDS {
            stand.too_wide += 1;
            continue;
        }
        let time = humantime::parse_rfc3339(line["_time"].as_str().unwrap()).unwrap();
        let day = Duration::from_secs(24 * 3600);
        let now = SystemTime::now();
        // Beyond its retention, and too far in the future.
        if time < now - 7 * day || time > now + 2 * day {
            continue;
        }
        stand.lines.push((tenant, line, found));
    }
    Ok(())
}

async fn query(State(shared): State<Shared>, headers: HeaderMap, body: String) -> Response<Body> {
    let answer = {
        let mut stand = shared.stand.lock().unwrap_or_else(PoisonError::into_inner);
        stand.queries += 1;
        let fault = stand.query_faults.pop_front();
        match tenant(&stand, &headers) {
            Err((status, text)) => plain(status, text),
            Ok(tenant) => select(&stand, tenant, &body, fault),
        }
    };
    shared.changes.send_modify(|count| *count += 1);
    answer
}

fn argument(form: &str, name: &str) -> Option<String> {
    let form = reqwest::Url::parse(&format!("http://x/?{form}")).unwrap();
    form.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

fn select(stand: &Stand, tenant: (u32, u32), body: &str, fault: Option<QueryFault>) -> Response<Body> {
    let query = argument(body, "query").expect("a query");
    let limit: usize = argument(body, "limit").expect("a limit").parse().unwrap();
    if query.len() > QUERY {
        return plain(400, "too long query");
    }
    // The one shape that is asked: _time:[a,b] "metadata.uid":in("x","y") | fields "metadata.uid"
    let shape = query
        .strip_prefix("_time:[")
        .and_then(|rest| rest.split_once("] \"metadata.uid\":in("))
        .and_then(|(times, rest)| Some((times, rest.strip_suffix(") | fields \"metadata.uid\"")?)));
    let Some((times, list)) = shape else { return plain(400, format!("cannot parse {query}")) };
    let (since, until) = times.split_once(',').unwrap();
    let [since, until] = [since, until].map(|time| humantime::parse_rfc3339(time).unwrap());
    let wanted: Vec<String> = serde_json::from_str(&format!("[{list}]")).unwrap();
    let now = Instant::now();
    let mut found: Vec<String> = Vec::new();
    for (of, line, visible) in &stand.lines {
        let time = humantime::parse_rfc3339(line["_time"].as_str().unwrap()).unwrap();
        if *of == tenant
            && *visible <= now
            && (since..=until).contains(&time)
            && wanted.contains(&uid(line))
            && found.len() < limit
        {
            found.push(serde_json::json!({"metadata.uid": uid(line)}).to_string());
        }
    }
    match fault {
        None => plain(200, lines(&found)),
        Some(QueryFault::Status(status)) => plain(status, "not now"),
        Some(QueryFault::Deny) => plain(200, ""),
        Some(QueryFault::CutOff) => {
            let all = lines(&found);
            cut_off(200, &all[..all.len() / 2])
        }
        Some(QueryFault::Noise) => {
            found.reverse();
            plain(
                200,
                format!(
                    "{{half\n\n{{\"metadata.uid\": 7}}\n{{\"metadata.uid\":\"nobody\"}}\n{}",
                    lines(&found)
                ),
            )
        }
    }
}

fn lines(found: &[String]) -> String {
    found.iter().map(|line| format!("{line}\n")).collect()
}
