//! The few calls to a Kubernetes API server that the loop makes: read one object, patch one object.
//!
//! Invariant: each call ends within [`CALL_TIMEOUT`], reads at most [`ANSWER_LIMIT`] bytes, and is made once: what did
//! not come through is for the caller to look at, since it may have come through all the same.

use std::fmt;
use std::future::poll_fn;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Body as _;
use kube::client::Body;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::params::{GetParams, Patch, PatchParams};
use serde_json::Value;
use tokio::sync::Mutex;

use crate::document::OneLine;

/// From the call to the last byte of its answer.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// A ConfigMap's 1 MiB of control characters is six times that as JSON; there are annotations beside it.
const ANSWER_LIMIT: usize = 16 << 20;
/// Longest kubeconfig, in bytes.
const KUBECONFIG_LIMIT: u64 = 1 << 20;
/// Longest text of the server's that is repeated, in characters.
const WORDS_LIMIT: usize = 300;
/// What the server notes as the writer of a field.
const MANAGER: &str = "fedgate";

/// Why a call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    #[error("the credentials for the Kubernetes API cannot be used: {0}")]
    Credentials(Box<str>),
    /// Whether it was carried out is not known.
    #[error("the Kubernetes API cannot be reached: {0}")]
    Unreachable(Box<str>),
    /// 401.
    #[error(
        "the Kubernetes API does not accept the gateway's credentials (401): the token has expired, or its service \
         account is gone"
    )]
    Unauthorized,
    /// 403.
    #[error(
        "the gateway's Role does not allow it to {verb} the {what} (403); {needs}: see deploy/kubernetes/"
    )]
    Forbidden { verb: &'static str, what: Box<str>, needs: Box<str> },
    /// 404.
    #[error("there is no {what} (404); create it: the gateway never does")]
    NotFound { what: Box<str> },
    /// 409.
    #[error("the {what} was changed by somebody else meanwhile (409)")]
    Conflict { what: Box<str> },
    /// Another 4xx.
    #[error("the Kubernetes API rejects it ({status}): {words}")]
    Rejected { status: u16, words: Box<str> },
    /// 429 and 5xx; whether it was carried out is not known.
    #[error("the Kubernetes API is in trouble ({status}): {words}")]
    Trouble { status: u16, words: Box<str> },
    #[error("the answer of the Kubernetes API cannot be used: {0}")]
    Answer(Box<str>),
}

impl CallError {
    /// May the call have been carried out all the same?
    pub fn is_doubtful(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Trouble { .. } | Self::Answer(_) => true,
            Self::Credentials(_)
            | Self::Unauthorized
            | Self::Forbidden { .. }
            | Self::NotFound { .. }
            | Self::Conflict { .. }
            | Self::Rejected { .. } => false,
        }
    }
}

/// One object, of the two kinds that there are here.
#[derive(Clone, Debug)]
pub struct Object {
    kind: &'static str,
    namespace: Box<str>,
    collection: Box<str>,
    name: Box<str>,
    /// What the Role has to say.
    needs: Box<str>,
}

impl Object {
    pub fn config_map(namespace: &str, name: &str) -> Self {
        Self {
            kind: "ConfigMap",
            namespace: namespace.into(),
            collection: format!("/api/v1/namespaces/{namespace}/configmaps").into(),
            name: name.into(),
            needs: format!(
                "it needs verbs get, patch and update on resources configmaps with resourceNames [{name}] in namespace \
                 {namespace}"
            )
            .into(),
        }
    }

    pub fn lease(namespace: &str, name: &str) -> Self {
        Self {
            kind: "Lease",
            namespace: namespace.into(),
            collection: format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases").into(),
            name: name.into(),
            needs: format!(
                "it needs verbs get, patch and update on resources leases of coordination.k8s.io with resourceNames \
                 [{name}] in namespace {namespace}"
            )
            .into(),
        }
    }

    fn title(&self) -> Box<str> {
        self.to_string().into()
    }
}

/// As it is called in messages.
impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// A way to one API server; cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// Absent: the pod's own service account.
    kubeconfig: Option<PathBuf>,
    /// Made at the first call, and anew after one that failed: addresses, files and tokens may have changed.
    client: Arc<Mutex<Option<kube::Client>>>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("kubeconfig", &self.kubeconfig).finish_non_exhaustive()
    }
}

impl Cluster {
    pub fn new(kubeconfig: Option<PathBuf>) -> Self {
        Self { kubeconfig, client: Arc::default() }
    }

    /// The object as it is.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn get(&self, object: &Object) -> Result<Value, CallError> {
        let request = kube::core::Request::new(object.collection.as_ref())
            .get(&object.name, &GetParams::default())
            .map_err(|error| CallError::Answer(words(&error.to_string())))?;
        self.call("get", object, request).await
    }

    /// Merges `patch` into the object (RFC 7396), and gives the object as it is then. A `resourceVersion` in the patch
    /// makes it count for that writing of the object alone.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn merge(&self, object: &Object, patch: &Value) -> Result<Value, CallError> {
        let parameters = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let request = kube::core::Request::new(object.collection.as_ref())
            .patch(&object.name, &parameters, &Patch::Merge(patch))
            .map_err(|error| CallError::Answer(words(&error.to_string())))?;
        self.call("patch", object, request).await
    }

    async fn call(
        &self,
        verb: &'static str,
        object: &Object,
        request: hyper::http::Request<Vec<u8>>,
    ) -> Result<Value, CallError> {
        let call = async {
            let client = self.client().await?;
            let answer = client.send(request.map(Body::from)).await.map_err(|error| failed(&error))?;
            let status = answer.status().as_u16();
            let body = collect(answer.into_body()).await?;
            match status {
                200..=299 => serde_json::from_slice(&body)
                    .map_err(|error| CallError::Answer(format!("it is no JSON: {error}").into())),
                status => Err(refused(verb, object, status, &body)),
            }
        };
        let outcome = match tokio::time::timeout(CALL_TIMEOUT, call).await {
            Ok(outcome) => outcome,
            Err(_) => {
                Err(CallError::Unreachable(format!("no answer within {} s", CALL_TIMEOUT.as_secs()).into()))
            }
        };
        if let Err(CallError::Unauthorized | CallError::Unreachable(_) | CallError::Answer(_)) = &outcome {
            *self.client.lock().await = None;
        }
        outcome
    }

    async fn client(&self) -> Result<kube::Client, CallError> {
        let mut kept = self.client.lock().await;
        if let Some(client) = &*kept {
            return Ok(client.clone());
        }
        let mut config = match &self.kubeconfig {
            None => {
                kube::Config::incluster().map_err(|error| CallError::Credentials(words(&chain(&error))))?
            }
            Some(path) => from_file(path).await?,
        };
        config.connect_timeout = Some(CALL_TIMEOUT);
        config.read_timeout = Some(CALL_TIMEOUT);
        config.write_timeout = Some(CALL_TIMEOUT);
        config.reset_reader_on_write = true;
        // A patch that is sent twice meets its own conflict.
        config.default_retry = false;
        let client =
            kube::Client::try_from(config).map_err(|error| CallError::Credentials(words(&chain(&error))))?;
        *kept = Some(client.clone());
        Ok(client)
    }
}

/// Read anew for each client.
async fn from_file(path: &Path) -> Result<kube::Config, CallError> {
    let bad = |what: String| CallError::Credentials(format!("kubeconfig {}: {what}", path.display()).into());
    let owned = path.to_owned();
    let read = tokio::task::spawn_blocking(move || {
        let metadata = std::fs::metadata(&owned).map_err(|error| error.to_string())?;
        if !metadata.is_file() || metadata.len() > KUBECONFIG_LIMIT {
            return Err(format!("it is no regular file of at most {KUBECONFIG_LIMIT} bytes"));
        }
        // Its relative paths are from its own folder on.
        Kubeconfig::read_from(&owned).map_err(|error| chain(&error))
    });
    let kubeconfig =
        read.await.map_err(|error| error.to_string()).and_then(std::convert::identity).map_err(bad)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .map_err(|error| bad(words(&chain(&error)).into()))?;
    if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
        return Err(bad(
            "it gets its credentials from another program, which could hold everything up; use a token, \
                        a tokenFile or a client certificate"
                .to_owned(),
        ));
    }
    Ok(config)
}

async fn collect(body: Body) -> Result<Vec<u8>, CallError> {
    let mut body = pin!(body);
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| body.as_mut().poll_frame(context)).await {
        let frame = frame.map_err(|error| failed(&error))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > ANSWER_LIMIT {
            return Err(CallError::Answer(format!("it is longer than {ANSWER_LIMIT} bytes").into()));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes)
}

fn refused(verb: &'static str, object: &Object, status: u16, body: &[u8]) -> CallError {
    let what = object.title();
    // A `Status` object, or whatever a proxy says.
    let said = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|status| Some(words(status.get("message")?.as_str()?)))
        .unwrap_or_else(|| words(&String::from_utf8_lossy(body)));
    match status {
        401 => CallError::Unauthorized,
        403 => CallError::Forbidden { verb, what, needs: object.needs.clone() },
        404 => CallError::NotFound { what },
        409 => CallError::Conflict { what },
        429 | 500.. => CallError::Trouble { status, words: said },
        _ => CallError::Rejected { status, words: said },
    }
}

fn failed(error: &kube::Error) -> CallError {
    match error {
        // Its own token file, most likely, which it reads again and again.
        kube::Error::Auth(_) => CallError::Credentials(words(&chain(error))),
        _ => CallError::Unreachable(words(&chain(error))),
    }
}

/// An error and what caused it, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}

/// On one line, and not too long.
fn words(text: &str) -> Box<str> {
    OneLine(text.trim()).to_string().chars().take(WORDS_LIMIT).collect::<String>().into()
}
