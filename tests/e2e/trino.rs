//! A real Trino for one test, and a client of its statement protocol as any end user.
//!
//! Invariant: Trino ends with its value, and with the process that holds it, however that ends.
//! <https://trino.io/docs/current/develop/client-protocol.html>

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::kit::{folder, part};
use super::support::http_request;

/// For one query.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Trino {
    child: Child,
    lifeline: Option<ChildStdin>,
    address: SocketAddr,
}

/// What Trino says of a query that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// Such as `PERMISSION_DENIED`.
    pub name: String,
    pub message: String,
}

pub type Rows = Vec<Vec<Value>>;

/// A catalog that goes through the gateway on `port` to the source of this name, as the client `trino`.
pub fn catalog(name: &str, port: u16, password: &str) -> (String, String) {
    let text = format!(
        "connector.name=postgresql\nconnection-url=jdbc:postgresql://127.0.0.1:{port}/{name}\n\
         connection-user=trino\nconnection-password={password}\n\
         query.comment-format=fedgate query=$QUERY_ID user=$USER\n"
    );
    (format!("catalog/{name}.properties"), text)
}

/// The addresses of OPA that Trino asks; without the masks' one it never asks for masks.
pub fn access_control(opa: &SocketAddr, masks: bool) -> (String, String) {
    let mut text = format!(
        "access-control.name=opa\nopa.policy.uri=http://{opa}/v1/data/trino/allow\n\
         opa.policy.batched-uri=http://{opa}/v1/data/trino/batch\n\
         opa.policy.row-filters-uri=http://{opa}/v1/data/trino/rowFilters\n"
    );
    if masks {
        text.push_str(&format!(
            "opa.policy.batch-column-masking-uri=http://{opa}/v1/data/trino/batchColumnMasks\n"
        ));
    }
    ("access-control.properties".to_owned(), text)
}

impl Trino {
    /// Starts one with these files of configuration.
    pub fn start(files: impl IntoIterator<Item = (String, String)>) -> Self {
        let files = files.into_iter().map(|(name, text)| (name, Value::String(text)));
        // The usual catalog only where somebody wants it.
        let usual = ("catalog/climscore.properties".to_owned(), Value::Null);
        let files: serde_json::Map<String, Value> = std::iter::once(usual).chain(files).collect();
        let mut child = Command::new(part("python", "FEDGATE_PYTHON"))
            .arg("-B")
            .arg(folder().join("serve_trino.py"))
            .env("FEDGATE_TRINO_HOME", part("trino", "FEDGATE_TRINO_HOME"))
            .env("FEDGATE_TRINO_JDK", part("trino", "FEDGATE_TRINO_JDK"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lifeline = child.stdin.take().unwrap();
        writeln!(lifeline, "{}", json!({"environment": {}, "files": files})).unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("http://").and_then(|address| address.parse().ok());
        let address = address.unwrap_or_else(|| panic!("Trino did not start; what it said stands above"));
        Self { child, lifeline: Some(lifeline), address }
    }

    /// All rows of one statement.
    pub fn rows(&self, user: &str, sql: &str) -> Result<Rows, Failed> {
        let end = Instant::now() + PATIENCE;
        let (mut answer, mut rows) = (self.call(user, "POST", "/v1/statement", sql), Rows::new());
        loop {
            if let Some(error) = answer.get("error") {
                let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
                let failed = Failed { name: text("errorName"), message: text("message") };
                // A server that has just started may not have found itself yet: nothing has run then.
                if failed.name == "NO_NODES_AVAILABLE" && Instant::now() < end {
                    std::thread::sleep(Duration::from_millis(100));
                    (answer, rows) = (self.call(user, "POST", "/v1/statement", sql), Rows::new());
                    continue;
                }
                return Err(failed);
            }
            if let Some(data) = answer.get("data") {
                rows.extend(serde_json::from_value::<Rows>(data.clone()).unwrap());
            }
            let Some(next) = answer["nextUri"].as_str() else { return Ok(rows) };
            assert!(Instant::now() < end, "{sql} did not end within {PATIENCE:?}");
            let path = next.split_once("://").and_then(|(_, rest)| rest.find('/').map(|at| &rest[at..]));
            answer = self.call(user, "GET", path.unwrap(), "");
        }
    }

    fn call(&self, user: &str, method: &str, path: &str, body: &str) -> Value {
        let headers = [("X-Trino-User", user), ("X-Trino-Source", "e2e"), ("X-Trino-Time-Zone", "UTC")];
        loop {
            let (status, text) = http_request(self.address, method, path, &headers, body).unwrap();
            match status {
                200 => return serde_json::from_str(&text).unwrap(),
                // To be asked again, says the protocol.
                429 | 502 | 503 | 504 => std::thread::sleep(Duration::from_millis(100)),
                _ => panic!("{method} {path}: {status} {text}"),
            }
        }
    }
}

impl Drop for Trino {
    fn drop(&mut self) {
        self.lifeline.take();
        let _ = self.child.wait();
    }
}
