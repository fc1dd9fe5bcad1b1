//! A private Kubernetes API server with its etcd, as `scripts/setup-kube` gets them.
//!
//! Invariant: both end and their folder goes when the handle goes, and also when the process that holds it is killed:
//! small shells watch pipes that only that process holds open. Nothing listens beyond loopback.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use hyper::http::Request;
use kube::client::Body;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::Authority;

/// How long a server may take to be ready on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// How long one may take to go.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Of the user who may do everything.
const ADMIN: &str = "admin-of-the-tests";
/// Says which version is built.
const MODULE: &str = include_str!("kube/go.mod");
const SUMS: &[u8] = include_bytes!("kube/go.sum");

/// The program, or what to do to have it.
fn program(variable: &str, name: &str) -> Result<PathBuf, String> {
    let cache = std::env::var_os("FEDGATE_CACHE").map(PathBuf::from).or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        Some(base.or_else(home)?.join("fedgate"))
    });
    let mut looked = Vec::new();
    looked.extend(std::env::var_os(variable).map(PathBuf::from));
    looked.extend(cache.map(|cache| cache.join("kube").join(name)));
    if name == "etcd" {
        looked.extend(["/usr/bin/etcd", "/usr/local/bin/etcd"].map(PathBuf::from));
    }
    looked.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        format!(
            "{name} is in none of {looked:?}; run scripts/setup-kube, which gets it (minutes the first time)"
        )
    })
}

fn server_name() -> String {
    let version = MODULE.lines().find_map(|line| line.strip_prefix("require k8s.io/kubernetes v"));
    let hash: String = Sha256::digest(SUMS).iter().take(6).map(|byte| format!("{byte:02x}")).collect();
    format!("kube-apiserver-{}-{hash}", version.expect("go.mod requires kubernetes").trim())
}

/// A program and the shell that watches over it; closing the shell's standard input ends both.
struct Watched {
    shell: Child,
    lifeline: Option<ChildStdin>,
    log: PathBuf,
    exited: PathBuf,
}

/// Runs `$4…`, and kills it when standard input ends; `$3` says whether the folder goes then, too. Told a word before
/// that, it leaves the folder.
const WATCH: &str = r#"
folder=$1 name=$2 last=$3
shift 3
{
    "$@" </dev/null >>"$folder/$name.log" 2>&1 &
    echo $! >"$folder/$name.pid"
    wait $!
    : >"$folder/$name.exited"
} &
group=$!
# Kept, since the folder may go first.
until [ -s "$folder/$name.pid" ]; do sleep 0.05; done
pid=$(cat "$folder/$name.pid")
keep=
read -r keep
if [ ! -e "$folder/$name.exited" ]; then kill -KILL "$pid"; fi
wait "$group"
rm -f "$folder/$name.pid" "$folder/$name.exited"
if [ "$last" = last ] && [ -z "$keep" ]; then
    # The other program may be about to end, and write while it does.
    for attempt in 1 2 3 4 5 6 7 8 9 10; do
        rm -rf "$folder" && break
        sleep 0.2
    done
fi
"#;

impl Watched {
    fn start(folder: &Path, name: &str, program: &Path, arguments: &[String]) -> Self {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", WATCH, "watch"])
            .arg(folder)
            .arg(name)
            // The API server hangs on etcd and goes first.
            .arg(if name == "etcd" { "last" } else { "first" })
            .arg(program)
            .args(arguments)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C at the terminal is for the program that holds the handle, which then ends us.
            .process_group(0);
        let mut shell = shell.spawn().expect("a shell can be started");
        let lifeline = shell.stdin.take();
        let (log, exited) = (folder.join(format!("{name}.log")), folder.join(format!("{name}.exited")));
        Self { shell, lifeline, log, exited }
    }

    /// Its last words, if it has ended by itself.
    fn ended(&self) -> Option<String> {
        self.exited.exists().then(|| {
            let log = fs::read(&self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            log.lines().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
        })
    }

    /// Kills it; the folder stays.
    fn kill(mut self) {
        if let Some(mut lifeline) = self.lifeline.take() {
            let _ = std::io::Write::write_all(&mut lifeline, b"keep\n");
        }
        self.wait();
    }

    fn wait(&mut self) {
        let deadline = Instant::now() + STOP_TIMEOUT;
        while let Ok(None) = self.shell.try_wait() {
            if Instant::now() > deadline {
                eprintln!("{} does not go", self.log.display());
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.lifeline.take();
        self.wait();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    listener.local_addr().expect("it has an address").port()
}

/// A running API server.
pub struct Kube {
    folder: PathBuf,
    port: u16,
    etcd_port: u16,
    server: Option<Watched>,
    _etcd: Watched,
}

impl Kube {
    /// Panics with the servers' own words when they do not start, and with what to run when they are not there.
    pub async fn start() -> Self {
        let (apiserver, etcd) =
            match (program("FEDGATE_KUBE_APISERVER", &server_name()), program("FEDGATE_ETCD", "etcd")) {
                (Ok(apiserver), Ok(etcd)) => (apiserver, etcd),
                (Err(error), _) | (_, Err(error)) => panic!("{error}"),
            };
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("fedgate-kube-{}-{number}", std::process::id()));
        fs::create_dir(&folder).expect("the folder is new");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).expect("it is ours");
        let authority = Authority::new("kube of the tests");
        let pair = authority.server(&["127.0.0.1", "localhost"]);
        let accounts = rcgen::KeyPair::generate().expect("a key is made");
        for (name, text) in [
            ("ca.crt", authority.certificate().to_owned()),
            ("server.crt", pair.certificate),
            ("server.key", pair.private_key),
            ("accounts.key", accounts.serialize_pem()),
            ("accounts.pub", accounts.public_key_pem()),
            ("tokens.csv", format!("{ADMIN},admin,1,system:masters\n")),
        ] {
            fs::write(folder.join(name), text).expect("the folder can be written");
        }
        // Between asking the kernel for a port and using it, somebody else may take it.
        for _ in 0..10 {
            let etcd_port = free_port();
            let Some(started) = Self::etcd(&folder, &etcd, etcd_port) else { continue };
            let mut kube = Self { folder: folder.clone(), port: 0, etcd_port, server: None, _etcd: started };
            for _ in 0..10 {
                if kube.serve(&apiserver, free_port()).await {
                    return kube;
                }
            }
            break;
        }
        panic!("the Kubernetes API server did not start");
    }

    fn etcd(folder: &Path, etcd: &Path, port: u16) -> Option<Watched> {
        let (client, peer) =
            (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
        let arguments = [
            format!("--data-dir={}", folder.join("etcd").display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--logger=zap".to_owned(),
            "--log-level=warn".to_owned(),
        ];
        let started = Watched::start(folder, "etcd", etcd, &arguments);
        let deadline = Instant::now() + START_TIMEOUT;
        while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(words) = started.ended() {
                assert!(words.contains("address already in use"), "etcd did not start:\n{words}");
                started.kill();
                return None;
            }
            assert!(Instant::now() < deadline, "etcd does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(started)
    }

    /// False when somebody else has the port.
    async fn serve(&mut self, apiserver: &Path, port: u16) -> bool {
        let path = |name: &str| self.folder.join(name).display().to_string();
        let arguments = [
            format!("--etcd-servers=http://127.0.0.1:{}", self.etcd_port),
            "--bind-address=127.0.0.1".to_owned(),
            "--advertise-address=127.0.0.1".to_owned(),
            format!("--secure-port={port}"),
            format!("--tls-cert-file={}", path("server.crt")),
            format!("--tls-private-key-file={}", path("server.key")),
            format!("--client-ca-file={}", path("ca.crt")),
            format!("--token-auth-file={}", path("tokens.csv")),
            "--service-account-issuer=https://kube.example".to_owned(),
            format!("--service-account-key-file={}", path("accounts.pub")),
            format!("--service-account-signing-key-file={}", path("accounts.key")),
            "--authorization-mode=RBAC".to_owned(),
            "--anonymous-auth=false".to_owned(),
            "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
            "--disable-admission-plugins=ServiceAccount".to_owned(),
            "--endpoint-reconciler-type=none".to_owned(),
            format!("--cert-dir={}", path("certificates")),
        ];
        let started = Watched::start(&self.folder, "apiserver", apiserver, &arguments);
        self.port = port;
        let deadline = Instant::now() + START_TIMEOUT;
        let client = self.client(ADMIN).await;
        loop {
            if let Ok((200, _)) = answer(&client, "GET", "/readyz", None).await {
                self.server = Some(started);
                return true;
            }
            if let Some(words) = started.ended() {
                assert!(words.contains("address already in use"), "kube-apiserver did not start:\n{words}");
                started.kill();
                return false;
            }
            assert!(Instant::now() < deadline, "kube-apiserver is not ready");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Kills the API server, as a crash would; what it holds is etcd's and stays.
    pub fn kill_server(&mut self) {
        self.server.take().expect("it runs").kill();
    }

    /// Starts it again on its old port.
    pub async fn restart_server(&mut self) {
        let apiserver = program("FEDGATE_KUBE_APISERVER", &server_name()).expect("it was there");
        assert!(self.serve(&apiserver, self.port).await, "its port is still free");
    }

    /// As an operator's file would say it.
    pub fn kubeconfig(&self, token: &str) -> String {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "k", "cluster": {
                "server": format!("https://127.0.0.1:{}", self.port),
                "certificate-authority": self.folder.join("ca.crt") } }],
            "users": [{ "name": "u", "user": { "token": token } }],
            "contexts": [{ "name": "c", "context": { "cluster": "k", "user": "u" } }],
        })
        .to_string()
    }

    async fn client(&self, token: &str) -> kube::Client {
        let kubeconfig = kube::config::Kubeconfig::from_yaml(&self.kubeconfig(token)).expect("it is one");
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default())
            .await
            .expect("it can be used");
        config.default_retry = false;
        kube::Client::try_from(config).expect("a client is made")
    }

    /// One call under a token, as plain HTTP: status and answer.
    pub async fn call(&self, token: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        answer(&self.client(token).await, method, path, body).await.expect("the API server answers")
    }

    /// One call of the user who may do everything, which has to go well.
    pub async fn admin(&self, method: &str, path: &str, body: Option<&Value>) -> Value {
        let (status, answer) = self.call(ADMIN, method, path, body).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// A new namespace, which nobody else uses.
    pub async fn namespace(&self) -> String {
        let body =
            json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "generateName": "test-" } });
        let made = self.admin("POST", "/api/v1/namespaces", Some(&body)).await;
        made["metadata"]["name"].as_str().expect("it has a name").to_owned()
    }

    /// A token of a service account, as a pod would have it.
    pub async fn token(&self, namespace: &str, account: &str) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let body = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {} });
        let made = self.admin("POST", &path, Some(&body)).await;
        made["status"]["token"].as_str().expect("it has one").to_owned()
    }
}

async fn answer(
    client: &kube::Client,
    method: &str,
    path: &str,
    body: Option<&Value>,
) -> Result<(u16, Value), kube::Error> {
    let kind = match method {
        "PATCH" => "application/merge-patch+json",
        _ => "application/json",
    };
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind)
        .body(Body::from(body.map(|body| body.to_string().into_bytes()).unwrap_or_default()))
        .expect("it is a request");
    let answer = client.send(request).await?;
    let status = answer.status().as_u16();
    let bytes = answer.into_body().collect_bytes().await?;
    let value = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    Ok((status, value))
}
