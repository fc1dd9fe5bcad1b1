//! A real OPA that fetches its bundle from a gateway and reports to it.
//!
//! Invariant: the process ends with its value.

#![allow(dead_code, reason = "each test crate uses its own part of this")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::support::http_request;

pub struct Opa {
    child: Child,
    address: String,
    folder: tempfile::TempDir,
}

/// The program, fetched when it is not there.
pub fn program() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/setup-opa");
    let output = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "scripts/setup-opa failed");
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().strip_prefix("FEDGATE_OPA=").unwrap().into()
}

impl Opa {
    /// Asks this gateway with the token in that file; `more` goes into its configuration.
    pub fn start(token: &Path, gateway: &str, name: &str, more: &str) -> Self {
        Self::listening(token, gateway, name, more, "127.0.0.1:0")
    }

    pub fn listening(token: &Path, gateway: &str, name: &str, more: &str, address: &str) -> Self {
        let signing = if more.contains("keys:") { "\n    signing:\n      keyid: fedgate" } else { "" };
        let config = format!(
            "labels:\n  app: {name}\nservices:\n  fedgate:\n    url: http://{gateway}/opa\n    credentials:\n      bearer:\n        token_path: {}\n\
             bundles:\n  fedgate:\n    service: fedgate\n    resource: bundles/fedgate.tar.gz{signing}\n    polling:\n      \
             long_polling_timeout_seconds: 5\n      min_delay_seconds: 1\n      max_delay_seconds: 2\n\
             status:\n  service: fedgate\n  partition_name: {name}\n{more}",
            token.display()
        );
        Self::run(Some(&config), address)
    }

    /// With this configuration as it stands.
    pub fn configured(config: &str) -> Self {
        Self::run(Some(config), "127.0.0.1:0")
    }

    /// One that knows nothing.
    pub fn without_bundle(address: &str) -> Self {
        Self::run(None, address)
    }

    fn run(config: Option<&str>, address: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let mut command = Command::new(program());
        command.args(["run", "--server", "--disable-telemetry", "--log-format", "json", "--addr", address]);
        if let Some(config) = config {
            let file = folder.path().join("opa.yaml");
            std::fs::write(&file, config).unwrap();
            command.arg("--config-file").arg(file);
        }
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut opa = Self { child, address: address.to_owned(), folder };
        let began = Instant::now();
        while !opa.ready() {
            assert!(began.elapsed() < Duration::from_secs(40), "OPA does not start: {}", opa.log());
            std::thread::sleep(Duration::from_millis(10));
        }
        opa
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// A port that the kernel picked is in its log.
    fn ready(&mut self) -> bool {
        if self.address.ends_with(":0") {
            let pid = self.child.id();
            let Some(port) = listening(pid) else { return false };
            self.address = format!("127.0.0.1:{port}");
        }
        self.request("GET", "/health", "").is_some_and(|(status, _)| status == 200)
    }

    /// Has it a bundle?
    pub fn loaded(&self) -> bool {
        self.request("GET", "/health?bundles", "").is_some_and(|(status, _)| status == 200)
    }

    fn request(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let headers = [("Content-Type", "application/json")];
        http_request(self.address.parse().unwrap(), method, path, &headers, body).ok()
    }

    /// The mask that Trino would be told for `climscore.public.customers.email`.
    pub fn mask(&self, user: &str) -> Option<String> {
        let input = json!({"input": {
            "context": {"identity": {"user": user, "groups": []}, "softwareStack": {"trinoVersion": "476"}},
            "action": {"operation": "GetColumnMask", "filterResources": [{"column": {
                "catalogName": "climscore", "schemaName": "public", "tableName": "customers",
                "columnName": "email", "columnType": "varchar",
            }}]},
        }});
        let (status, answer) =
            self.request("POST", "/v1/data/trino/batchColumnMasks", &input.to_string()).unwrap();
        assert_eq!(status, 200, "{answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        Some(answer.pointer("/result/0/viewExpression/expression")?.as_str()?.to_owned())
    }

    /// SIGSTOP: it answers nobody and asks nobody.
    pub fn stop(&self) {
        self.signal("STOP");
    }

    pub fn go_on(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.child.id().to_string()).status();
        assert!(status.unwrap().success());
    }
}

impl Drop for Opa {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The port on which a process listens, from `/proc`.
fn listening(pid: u32) -> Option<u16> {
    let mut sockets = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten() {
        if let Ok(target) = std::fs::read_link(entry.path())
            && let Some(inode) =
                target.to_str().and_then(|text| text.strip_prefix("socket:[")?.strip_suffix(']'))
        {
            sockets.push(inode.to_owned());
        }
    }
    for table in ["tcp", "tcp6"] {
        let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")) else { continue };
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            // 0A: it listens.
            let [_, local, _, "0A", ..] = fields.as_slice() else { continue };
            if fields.get(9).is_some_and(|inode| sockets.iter().any(|own| own == inode)) {
                return u16::from_str_radix(local.rsplit(':').next()?, 16).ok();
            }
        }
    }
    None
}
