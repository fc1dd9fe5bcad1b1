//! A real OPA for tests: the program, a server on a socket in a folder of its own, and bundles unpacked.
//!
//! Invariant: the server ends with its value, and nothing listens on the network.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The program, fetched when it is not there.
pub fn program() -> PathBuf {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/setup-opa");
    let output = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "scripts/setup-opa failed");
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().strip_prefix("FEDGATE_OPA=").unwrap().into()
}

/// Writes the files of a bundle into a folder.
pub fn unpack(bundle: &[u8], folder: &Path) {
    tar::Archive::new(flate2::read::GzDecoder::new(bundle)).unpack(folder).unwrap();
}

/// `opa run -s`.
pub struct Server {
    child: Child,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Server {
    /// With these arguments behind `run -s`.
    pub fn start(program: &Path, arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("opa.sock");
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = Command::new(program)
            .args(["run", "--server", "--disable-telemetry", "--log-level", "error", "--addr"])
            .arg(format!("unix://{}", socket.display()))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let server = Self { child, socket, _folder: folder };
        let patience = Instant::now() + Duration::from_secs(30);
        while server.request("GET", "/health?bundles", "").is_none_or(|(status, _)| status != 200) {
            assert!(
                Instant::now() < patience,
                "OPA is not ready: {}",
                std::fs::read_to_string(server._folder.path().join("log")).unwrap()
            );
            // A server that becomes ready sends no event.
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    fn request(&self, method: &str, path: &str, body: &str) -> Option<(u16, String)> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: opa\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    pub fn put(&self, path: &str, value: &str) {
        let (status, body) = self.request("PUT", &format!("/v1/data/{path}"), value).unwrap();
        assert!(status == 204 || status == 304, "{path}: {status} {body}");
    }

    /// What stands under `result`, if anything does.
    pub fn ask(&self, path: &str, input: &Value) -> Option<Value> {
        let body = serde_json::json!({"input": input}).to_string();
        let (status, answer) = self.request("POST", &format!("/v1/data/{path}"), &body).unwrap();
        assert_eq!(status, 200, "{path} {input}: {answer}");
        serde_json::from_str::<Value>(&answer).unwrap().get("result").cloned()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
