//! OpenMetadata as its clients see it: a server for tests that keeps to the contract, faults on demand.
//!
//! Invariant: whatever it answers when no fault was asked for is held to OpenMetadata's own JSON Schemas
//! (`scripts/setup-clients openmetadata`), so that it cannot drift into fiction.
//!
//! ```ignore
//! let catalog = OpenMetadata::start();                         // one good token: catalog.token()
//! catalog.put("pg.shop.public.customers", &["id", "email"]);
//! catalog.tag("pg.shop.public.customers", "email", "PII.Sensitive", "Confirmed");
//! catalog.fault(Fault::Status(503, None));                     // the next answer to a request for tables
//! catalog.always(Fault::LostPage);                             // from now on, until no_faults()
//! let (signature, body) = catalog.event("pg.shop.public.customers", "secret");
//! ```

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::Mac;
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// What goes wrong with one answer to a request for tables.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status, with a `Retry-After` perhaps.
    Status(u16, Option<String>),
    /// The connection ends in the middle of the body.
    Cut,
    /// Half of the body, and nothing after it until the server ends.
    Hang,
    /// `paging.total` is more than there is.
    LyingTotal,
    /// The same page again, with the same cursor.
    SamePage,
    /// The tables of the first page in the place of this one's; cursors and totals are right.
    LostPage,
    /// The tables of a page from the last to the first, which is as good as any other order.
    Reordered,
    /// This cursor after the page.
    Cursor(String),
    /// The body comes byte by byte, slower than anybody waits for.
    Trickle,
    /// This status, type and text, as something that stands before the server says it.
    Proxy(u16, &'static str, &'static str),
    /// No tables, and a total of none.
    Empty,
    /// A proxy's login page.
    Html,
    /// The list says that one entity is broken.
    Errors,
    /// A body that is longer than anybody wants.
    Huge,
    /// A redirect to somewhere else.
    Redirect(String),
    /// This text as the body, with status 200 and the type of JSON.
    Text(String),
}

struct Table {
    name: String,
    columns: Vec<Column>,
    deleted: bool,
    /// In milliseconds since 1970: when it, or a label in it, was changed last.
    updated_at: u64,
    /// Held to the schemas; absurd names are not.
    lawful: bool,
}

struct Column {
    name: String,
    labels: Vec<(String, String, String)>,
    children: Vec<String>,
}

#[derive(Default)]
struct Store {
    tables: Vec<Table>,
    disabled: Vec<String>,
    token: String,
    faults: VecDeque<Fault>,
    /// When no other fault waits.
    always: Option<Fault>,
    /// Path and query of each request, and whether it brought a good token.
    requests: Vec<(String, bool)>,
    /// What was answered and is not lawful.
    unlawful: Vec<String>,
}

/// A running server; it ends with its handle.
pub struct OpenMetadata {
    address: SocketAddr,
    store: Arc<Mutex<Store>>,
    law: Arc<Law>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl OpenMetadata {
    pub fn start() -> Self {
        let store = Arc::new(Mutex::new(Store { token: "good.bot.token".to_owned(), ..Store::default() }));
        let law = Arc::new(Law::read());
        let (stop, stopped) = oneshot::channel::<()>();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let (served, held) = (Arc::clone(&store), Arc::clone(&law));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let app = axum::Router::new().fallback(move |request: Request| {
                    answer(Arc::clone(&served), Arc::clone(&held), request)
                });
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = serve(listener, app) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, store, law, stop: Some(stop), thread: Some(thread) }
    }

    /// What `base_url` has to be.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn token(&self) -> String {
        self.store().token.clone()
    }

    /// From now on only this token is good.
    pub fn accept(&self, token: &str) {
        self.store().token = token.to_owned();
    }

    /// A table with columns without labels, in the place of one of that name.
    pub fn put(&self, name: &str, columns: &[&str]) {
        self.insert(name, columns, true);
    }

    /// As [`OpenMetadata::put`], with names that no real server would take.
    pub fn put_absurd(&self, name: &str, columns: &[&str]) {
        self.insert(name, columns, false);
    }

    fn insert(&self, name: &str, columns: &[&str], lawful: bool) {
        let column =
            |name: &&str| Column { name: (*name).to_owned(), labels: Vec::new(), children: Vec::new() };
        let columns = columns.iter().map(column).collect();
        let mut store = self.store();
        store.tables.retain(|table| table.name != name);
        store.tables.push(Table {
            name: name.to_owned(),
            columns,
            deleted: false,
            updated_at: now(),
            lawful,
        });
    }

    /// A label on a column; `state` is Suggested or Confirmed.
    pub fn tag(&self, table: &str, column: &str, tag: &str, state: &str) {
        self.column(table, column, |column| {
            column.labels.push((tag.to_owned(), "Classification".to_owned(), state.to_owned()));
        });
    }

    pub fn untag(&self, table: &str, column: &str) {
        self.column(table, column, |column| column.labels.clear());
    }

    /// A column inside of a column, tagged.
    pub fn nest(&self, table: &str, column: &str, child: &str) {
        self.column(table, column, |column| column.children.push(child.to_owned()));
    }

    fn column(&self, table: &str, column: &str, change: impl FnOnce(&mut Column)) {
        let mut store = self.store();
        let table = store.tables.iter_mut().find(|known| known.name == table).expect("the table is there");
        table.updated_at = now();
        change(table.columns.iter_mut().find(|known| known.name == column).expect("the column is there"));
    }

    /// Soft deletion, as the server does it by default.
    pub fn delete(&self, table: &str) {
        let mut store = self.store();
        store.tables.iter_mut().find(|known| known.name == table).expect("the table is there").deleted = true;
    }

    pub fn disable(&self, classification: &str) {
        self.store().disabled.push(classification.to_owned());
    }

    /// Faults of the next answers to requests for tables, in turn.
    pub fn fault(&self, fault: Fault) {
        self.store().faults.push_back(fault);
    }

    /// A fault of every answer to a request for tables.
    pub fn always(&self, fault: Fault) {
        self.store().always = Some(fault);
    }

    pub fn no_faults(&self) {
        let mut store = self.store();
        store.faults.clear();
        store.always = None;
    }

    /// Path and query of each request so far.
    pub fn requests(&self) -> Vec<String> {
        self.store().requests.iter().map(|(path, _)| path.clone()).collect()
    }

    pub fn forget_requests(&self) {
        self.store().requests.clear();
    }

    /// What a subscription sends when this table was changed: `X-OM-Signature`, and the body.
    pub fn event(&self, table: &str, secret: &str) -> (String, String) {
        let event = json!({
            "id": "0b1c7f5e-0d8a-4b35-9c8f-6b1f0e6d2a11", "eventType": "entityUpdated", "entityType": "table",
            "entityId": "5f2b1c7e-0d8a-4b35-9c8f-6b1f0e6d2a11", "entityFullyQualifiedName": table,
            "previousVersion": 0.1, "currentVersion": 0.2, "userName": "admin", "timestamp": 1_700_000_000_000_u64,
        });
        self.law.hold("type/changeEvent.json", &event).unwrap();
        let body = event.to_string();
        let mut mac = hmac::Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
        mac.update(body.as_bytes());
        let digest: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        (format!("sha256={digest}"), body)
    }

    fn store(&self) -> std::sync::MutexGuard<'_, Store> {
        self.store.lock().unwrap()
    }
}

impl Drop for OpenMetadata {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let unlawful = std::mem::take(&mut self.store.lock().unwrap().unlawful);
        if !std::thread::panicking() {
            assert!(unlawful.is_empty(), "answers that OpenMetadata would not give: {unlawful:#?}");
        }
    }
}

async fn serve(listener: tokio::net::TcpListener, app: axum::Router) {
    use hyper_util::rt::TokioIo;
    use hyper_util::service::TowerToHyperService;
    while let Ok((stream, _)) = listener.accept().await {
        let service = TowerToHyperService::new(app.clone());
        tokio::spawn(async move {
            let http = hyper::server::conn::http1::Builder::new();
            let _ = http.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

/// OpenMetadata's schemas.
struct Law {
    folder: PathBuf,
    /// By name. To read one takes longer than to answer, and what is measured is not this server.
    read: Mutex<HashMap<String, Arc<jsonschema::Validator>>>,
}

struct Folder(PathBuf);

impl jsonschema::Retrieve for Folder {
    fn retrieve(
        &self,
        uri: &jsonschema::Uri<String>,
    ) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        let path = uri.as_str().strip_prefix("https://open-metadata.org/schema/").ok_or("another place")?;
        Ok(serde_json::from_slice(&std::fs::read(self.0.join(path))?)?)
    }
}

impl Law {
    fn read() -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/setup-clients");
        let run = Command::new(&script).arg("openmetadata").stderr(Stdio::inherit()).output().unwrap();
        assert!(run.status.success(), "scripts/setup-clients openmetadata failed; what it said stands above");
        let text = String::from_utf8(run.stdout).unwrap();
        let folder = text.lines().find_map(|line| line.strip_prefix("FEDGATE_OPENMETADATA_SPEC="));
        Self { folder: folder.expect("the script prints the folder").into(), read: Mutex::default() }
    }

    fn hold(&self, schema: &str, value: &Value) -> Result<(), String> {
        let validator = self.validator(schema)?;
        validator.validate(value).map_err(|error| format!("{error} in {value}"))
    }

    fn validator(&self, name: &str) -> Result<Arc<jsonschema::Validator>, String> {
        let mut read = self.read.lock().unwrap();
        if let Some(known) = read.get(name) {
            return Ok(Arc::clone(known));
        }
        let schema = json!({"$ref": format!("https://open-metadata.org/schema/{name}")});
        let validator = jsonschema::options()
            .with_draft(jsonschema::Draft::Draft7)
            .with_retriever(Folder(self.folder.clone()))
            .build(&schema)
            .map_err(|error| error.to_string())?;
        let validator = Arc::new(validator);
        read.insert(name.to_owned(), Arc::clone(&validator));
        Ok(validator)
    }
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    now.as_millis().try_into().unwrap()
}

fn error(status: u16, message: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    as_json(status, &json!({"code": status.as_u16(), "message": message}))
}

fn as_json(status: StatusCode, value: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

async fn answer(store: Arc<Mutex<Store>>, law: Arc<Law>, request: Request) -> Response {
    respond(&mut store.lock().unwrap(), &law, &request)
}

/// The parts of a request's query; a parameter that is there twice counts once, the first.
fn parameter(query: &str, name: &str) -> Option<String> {
    let found = query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))?;
    Some(decoded(found))
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let (pair, after) = rest.split_at(2);
                bytes.push(u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
                rest = after;
            }
            byte => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).unwrap()
}

fn respond(store: &mut Store, law: &Law, request: &Request) -> Response {
    let token = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let good = token == Some(&format!("Bearer {}", store.token));
    store.requests.push((request.uri().to_string(), good));
    match token {
        None => return error(401, "Not Authorized! Token not present"),
        Some(_) if !good => return error(401, "Expired token!"),
        Some(_) => {}
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    let path = request.uri().path().to_owned();
    if path == "/api/v1/system/version" {
        return as_json(StatusCode::OK, &json!({"version": "1.4.0", "revision": "0", "timestamp": 1}));
    }
    if path == "/api/v1/classifications" {
        return classifications(store, law);
    }
    let fault = store.faults.pop_front().or_else(|| store.always.clone());
    let body = match path.strip_prefix("/api/v1/tables/name/") {
        Some(name) => match single(store, law, &decoded(name), &query) {
            Ok(body) => body,
            Err(response) => return *response,
        },
        None if path == "/api/v1/tables" => match page(store, law, &query, fault.as_ref()) {
            Ok(body) => body,
            Err(response) => return *response,
        },
        None => return error(404, "HTTP 404 Not Found"),
    };
    match fault {
        None
        | Some(
            Fault::LyingTotal
            | Fault::SamePage
            | Fault::LostPage
            | Fault::Reordered
            | Fault::Cursor(_)
            | Fault::Empty
            | Fault::Errors,
        ) => as_json(StatusCode::OK, &body),
        Some(Fault::Trickle) => trickle(&body),
        Some(Fault::Proxy(status, kind, text)) => {
            (StatusCode::from_u16(status).unwrap(), [(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Some(Fault::Status(status, after)) => {
            let mut response = error(status, "a fault, for a test");
            if let Some(after) = after {
                response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_str(&after).unwrap());
            }
            response
        }
        Some(Fault::Cut) => half(&body, false),
        Some(Fault::Hang) => half(&body, true),
        Some(Fault::Html) => {
            ([(header::CONTENT_TYPE, "text/html")], "<html><form>Log in</form></html>").into_response()
        }
        Some(Fault::Huge) => {
            ([(header::CONTENT_TYPE, "application/json")], Body::from(vec![b' '; 70 << 20])).into_response()
        }
        Some(Fault::Redirect(to)) => {
            (StatusCode::FOUND, [(header::LOCATION, HeaderValue::from_str(&to).unwrap())]).into_response()
        }
        Some(Fault::Text(text)) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
    }
}

/// Half of a body, and then an end that is none, or nothing.
fn half(body: &Value, hangs: bool) -> Response {
    let text = body.to_string();
    let first: bytes::Bytes = text.as_bytes()[..text.len() / 2].to_vec().into();
    let rest = futures_util::stream::once(async move {
        if hangs {
            std::future::pending::<()>().await;
        }
        Err::<bytes::Bytes, std::io::Error>(std::io::ErrorKind::ConnectionReset.into())
    });
    let stream = futures_util::stream::iter([Ok(first)]);
    let body = Body::from_stream(futures_util::StreamExt::chain(stream, rest));
    ([(header::CONTENT_TYPE, "application/json"), (header::CONTENT_LENGTH, &text.len().to_string())], body)
        .into_response()
}

fn trickle(body: &Value) -> Response {
    let bytes = body.to_string().into_bytes().into_iter();
    let stream = futures_util::stream::unfold(bytes, async |mut bytes| {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let byte = bytes.next()?;
        Some((Ok::<_, std::io::Error>(bytes::Bytes::from(vec![byte])), bytes))
    });
    ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(stream)).into_response()
}

fn classifications(store: &mut Store, law: &Law) -> Response {
    let known = ["PII", "PCI"];
    let entity = |name: &str| {
        json!({"id": "6f1d2c3b-0d8a-4b35-9c8f-6b1f0e6d2a11", "name": name, "description": "for a test",
               "disabled": store.disabled.iter().any(|disabled| disabled == name), "deleted": false})
    };
    let data: Vec<Value> = known.iter().map(|name| entity(name)).collect();
    let unlawful: Vec<String> = data
        .iter()
        .filter_map(|entity| law.hold("entity/classification/classification.json", entity).err())
        .collect();
    store.unlawful.extend(unlawful);
    as_json(StatusCode::OK, &json!({"data": data, "paging": {"total": known.len()}}))
}

/// The fields that a query asks for; only what stands in its first `fields` counts.
fn fields(query: &str) -> (bool, bool) {
    let asked = parameter(query, "fields").unwrap_or_default();
    let has = |name: &str| asked.split(',').any(|field| field == name);
    (has("columns"), has("tags"))
}

fn entity(store: &mut Store, law: &Law, at: usize, query: &str) -> Value {
    let (columns, tags) = fields(query);
    let Some(table) = store.tables.get(at) else { return Value::Null };
    let labels = |labels: &[(String, String, String)]| -> Value {
        let label = |(tag, source, state): &(String, String, String)| json!({"tagFQN": tag, "source": source, "labelType": "Manual", "state": state});
        labels.iter().map(label).collect()
    };
    let column = |column: &Column| {
        let mut value = json!({"name": column.name, "dataType": "STRUCT"});
        let child = |name: &String| {
            let tagged = [("PII.Sensitive".to_owned(), "Classification".to_owned(), "Confirmed".to_owned())];
            let mut value = json!({"name": name, "dataType": "VARCHAR"});
            if tags {
                value["tags"] = labels(&tagged);
            }
            value
        };
        value["children"] = column.children.iter().map(child).collect();
        // Without the word, the key is left out altogether.
        if tags {
            value["tags"] = labels(&column.labels);
        }
        value
    };
    let mut value = json!({
        "id": format!("5f2b1c7e-0d8a-4b35-9c8f-{at:012x}"),
        "name": table.name.rsplit('.').next(),
        "fullyQualifiedName": table.name,
        "tableType": "Regular", "serviceType": "Postgres", "version": 0.1, "updatedBy": "admin",
        "updatedAt": table.updated_at, "deleted": table.deleted,
    });
    if columns {
        value["columns"] = table.columns.iter().map(column).collect();
    }
    if columns
        && table.lawful
        && let Err(error) = law.hold("entity/data/table.json", &value)
    {
        store.unlawful.push(error);
    }
    value
}

fn single(store: &mut Store, law: &Law, name: &str, query: &str) -> Result<Value, Box<Response>> {
    let found = store.tables.iter().position(|table| table.name == name && !table.deleted);
    match found {
        Some(at) => Ok(entity(store, law, at, query)),
        None => Err(Box::new(error(404, &format!("table instance for {name} not found")))),
    }
}

fn page(store: &mut Store, law: &Law, query: &str, fault: Option<&Fault>) -> Result<Value, Box<Response>> {
    let wrong = |status, message: &str| Box::new(error(status, message));
    let limit: usize = match parameter(query, "limit").map_or(Ok(10), |limit| limit.parse()) {
        Ok(limit) if limit <= 1000 => limit,
        _ => return Err(wrong(400, "query param limit must be less than or equal to 1000")),
    };
    let include = parameter(query, "include").unwrap_or_else(|| "non-deleted".to_owned());
    let shown: Vec<usize> = (0..store.tables.len())
        .filter(|at| match include.as_str() {
            "all" => true,
            "deleted" => store.tables[*at].deleted,
            _ => !store.tables[*at].deleted,
        })
        .collect();
    let from = match parameter(query, "after") {
        None => 0,
        Some(cursor) => {
            let number = STANDARD.decode(&cursor).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            match number.and_then(|number| number.strip_prefix("after table ")?.parse::<usize>().ok()) {
                Some(number) => number,
                // As the real one does for a cursor that is none.
                None => {
                    let body = json!({"responseMessage": "Last unit does not have enough valid bits"});
                    return Err(Box::new(as_json(StatusCode::INTERNAL_SERVER_ERROR, &body)));
                }
            }
        }
    };
    if matches!(fault, Some(Fault::Empty)) {
        return Ok(json!({"data": [], "paging": {"total": 0}}));
    }
    let cursor = |at: usize| STANDARD.encode(format!("after table {at}"));
    let mut these: Vec<usize> = shown.iter().skip(from).take(limit).copied().collect();
    let mut paging = json!({ "total": shown.len() });
    if from > 0 {
        paging["before"] = cursor(from.saturating_sub(limit)).into();
    }
    if from + these.len() < shown.len() {
        paging["after"] = cursor(from + these.len()).into();
    }
    match fault {
        Some(Fault::LostPage) => these = shown.iter().take(these.len()).copied().collect(),
        Some(Fault::Reordered) => these.reverse(),
        _ => {}
    }
    let data: Vec<Value> = these.into_iter().map(|at| entity(store, law, at, query)).collect();
    match fault {
        Some(Fault::LyingTotal) => paging["total"] = (shown.len() + 1).into(),
        Some(Fault::SamePage) => paging["after"] = cursor(from).into(),
        Some(Fault::Cursor(cursor)) => paging["after"] = cursor.clone().into(),
        _ => {}
    }
    if let Err(error) = law.hold("type/paging.json", &paging) {
        store.unlawful.push(error);
    }
    let mut body = json!({"data": data, "paging": paging});
    if matches!(fault, Some(Fault::Errors)) {
        body["errors"] = json!([{"message": "one entity is broken"}]);
    }
    Ok(body)
}
