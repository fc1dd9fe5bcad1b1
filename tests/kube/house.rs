//! A namespace of a test: what `deploy/kubernetes` puts there, a ConfigMap with a document, and a gateway's credentials.
//!
//! Invariant: no test sees another one's namespace, though they share a server.

use std::path::PathBuf;

use fedgate::config::DocumentPlace;
use fedgate::document::Document;
use fedgate::sync::publisher::AnyPublisher;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::apiserver::Kube;

pub const NAME: &str = "akko-opa-policy";
pub const KEY: &str = "policy.json";

/// One server for all tests that leave it running; each has a namespace of its own. It goes with this process.
pub async fn shared() -> &'static Kube {
    static SHARED: OnceCell<Kube> = OnceCell::const_new();
    SHARED.get_or_init(Kube::start).await
}

/// A namespace with what `deploy/kubernetes` puts there, and a gateway's credentials.
pub struct House<'k> {
    pub kube: &'k Kube,
    pub namespace: String,
    pub token: String,
    pub folder: tempfile::TempDir,
}

/// The objects of a manifest.
pub fn manifest(name: &str, namespace: &str) -> Vec<Value> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_yaml_ng::Deserializer::from_str(&text)
        .map(|document| {
            let mut object = Value::deserialize(document).unwrap();
            object["metadata"]["namespace"] = namespace.into();
            for subject in object.get_mut("subjects").and_then(Value::as_array_mut).into_iter().flatten() {
                assert_eq!(
                    subject["namespace"], "akko",
                    "{name} names the namespace that kustomization.yaml does"
                );
                subject["namespace"] = namespace.into();
            }
            object
        })
        .collect()
}

/// Where objects of this kind are made.
pub fn collection(object: &Value, namespace: &str) -> String {
    let (version, kind) = (object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
    let prefix = if version == "v1" { "/api/v1".to_owned() } else { format!("/apis/{version}") };
    let plural = match kind {
        "NetworkPolicy" => "networkpolicies".to_owned(),
        kind => format!("{}s", kind.to_lowercase()),
    };
    format!("{prefix}/namespaces/{namespace}/{plural}")
}

pub fn document(value: u64) -> Document {
    Document::parse(
        format!(r#"{{"version":1,"value":{value},"mask_library":{{"sha256":{{"strength":60}}}}}}"#)
            .as_bytes(),
    )
    .unwrap()
}

pub fn value(document: &Document) -> u64 {
    serde_json::from_str::<Value>(&document.to_text()).unwrap()["value"].as_u64().unwrap()
}

/// A document whose text has this many bytes.
pub fn sized(bytes: usize) -> Document {
    let of = |padding: usize| {
        Document::parse(format!(r#"{{"version":1,"padding":"{}"}}"#, "x".repeat(padding)).as_bytes()).unwrap()
    };
    let rest = bytes - of(0).to_text().len();
    let document = of(rest);
    assert_eq!(document.to_text().len(), bytes);
    document
}

impl<'k> House<'k> {
    pub async fn on(kube: &'k Kube) -> Self {
        let namespace = kube.namespace().await;
        for object in manifest("role.yaml", &namespace) {
            kube.admin("POST", &collection(&object, &namespace), Some(&object)).await;
        }
        let token = kube.token(&namespace, "fedgate").await;
        let house = Self { kube, namespace, token, folder: tempfile::tempdir().unwrap() };
        house.write_kubeconfig(&house.token);
        house.make(NAME, json!({ "data": { KEY: document(0).to_text(), "other": "stays" } })).await;
        house
    }

    pub fn write_kubeconfig(&self, token: &str) {
        std::fs::write(self.kubeconfig(), self.kube.kubeconfig(token)).unwrap();
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    pub fn path(&self, name: &str) -> String {
        format!("/api/v1/namespaces/{}/configmaps/{name}", self.namespace)
    }

    pub async fn make(&self, name: &str, mut object: Value) {
        object["metadata"]["name"] = name.into();
        let path = format!("/api/v1/namespaces/{}/configmaps", self.namespace);
        self.kube.admin("POST", &path, Some(&object)).await;
    }

    pub async fn get(&self) -> Value {
        self.kube.admin("GET", &self.path(NAME), None).await
    }

    pub async fn patch(&self, patch: Value) -> Value {
        self.kube.admin("PATCH", &self.path(NAME), Some(&patch)).await
    }

    pub fn place(&self, name: &str, key: &str) -> DocumentPlace {
        DocumentPlace::ConfigMap {
            namespace: self.namespace.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            kubeconfig: Some(self.kubeconfig()),
            lease: Some("fedgate-sync".to_owned()),
        }
    }

    pub fn publisher(&self) -> AnyPublisher {
        AnyPublisher::new(&self.place(NAME, KEY))
    }
}
