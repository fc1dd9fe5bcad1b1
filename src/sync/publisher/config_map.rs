//! The policy document as an entry of a ConfigMap.
//!
//! Invariant: a patch names the writing of the ConfigMap that was read, and this one entry; the server refuses it when
//! anybody has written meanwhile, and everything else in the ConfigMap stays. Verbs: get and patch.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::{Fetched, PublishError, Published, Publisher, Version};
use crate::document::Document;
use crate::sync::kubernetes::{CallError, Cluster, Object};

/// What Kubernetes takes, over the values of all entries.
const LIMIT: usize = 1 << 20;

/// A document in a ConfigMap, by its namespace, name and key. Whoever sees `what` in an error finds the object by it.
#[derive(Clone, Debug)]
pub struct ConfigMapPublisher {
    cluster: Cluster,
    object: Object,
    /// `namespace/name`
    what: Box<str>,
    key: Box<str>,
}

/// A ConfigMap as it was read.
struct Read {
    /// The entry.
    text: String,
    version: Version,
    /// Bytes of all other entries.
    others: usize,
}

impl ConfigMapPublisher {
    /// Without `kubeconfig` the pod's own service account is used. Asks nothing yet.
    pub fn new(namespace: &str, name: &str, key: &str, kubeconfig: Option<PathBuf>) -> Self {
        Self {
            cluster: Cluster::new(kubeconfig),
            object: Object::config_map(namespace, name),
            what: format!("{namespace}/{name}").into(),
            key: key.into(),
        }
    }

    /// What stands in the entry, valid or not.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn fetch(&self) -> Result<Fetched, PublishError> {
        let read = self.entry(&self.cluster.get(&self.object).await?)?;
        Ok(Fetched { text: read.text.into_bytes(), version: read.version })
    }

    fn entry(&self, object: &Value) -> Result<Read, PublishError> {
        let version = object
            .pointer("/metadata/resourceVersion")
            .and_then(Value::as_str)
            // Without one a patch would count for whatever is there.
            .filter(|version| !version.is_empty())
            .ok_or_else(|| CallError::Answer("it has no metadata.resourceVersion".into()))?;
        let entries = |part: &str| object.get(part).and_then(Value::as_object).into_iter().flatten();
        let mut text = None;
        let mut others = 0_usize;
        for (key, value) in entries("data") {
            let value = value.as_str().unwrap_or_default();
            if *key == *self.key {
                text = Some(value.to_owned());
            } else {
                others = others.saturating_add(value.len());
            }
        }
        for (_, value) in entries("binaryData") {
            let bytes = value.as_str().and_then(|value| STANDARD.decode(value).ok());
            others = others.saturating_add(bytes.map_or(0, |bytes| bytes.len()));
        }
        let text =
            text.ok_or_else(|| PublishError::NoKey { what: self.what.clone(), key: self.key.clone() })?;
        Ok(Read { text, version: Version(version.into()), others })
    }

    async fn read_entry(&self) -> Result<Read, PublishError> {
        self.entry(&self.cluster.get(&self.object).await?)
    }
}

impl Publisher for ConfigMapPublisher {
    async fn read(&self) -> Result<Published, PublishError> {
        self.fetch().await?.parse()
    }

    async fn publish(&self, expected: &Version, document: &Document) -> Result<Version, PublishError> {
        let text = document.to_text();
        // The server's own limit is over all entries, and its answer would not say which of them is to blame.
        let before = self.read_entry().await?;
        if before.version != *expected {
            return Err(PublishError::Conflict);
        }
        let size = before.others.saturating_add(text.len());
        if size > LIMIT {
            return Err(PublishError::TooLarge { what: self.what.clone(), size, limit: LIMIT });
        }
        let patch = json!({
            "metadata": { "resourceVersion": expected.as_str() },
            "data": { &*self.key: text },
        });
        let sent = match self.cluster.merge(&self.object, &patch).await {
            Ok(object) => Ok(object),
            Err(CallError::Conflict { .. }) => return Err(PublishError::Conflict),
            Err(error) if error.is_doubtful() => Err(error),
            Err(error) => return Err(error.into()),
        };
        match (sent, self.read_entry().await) {
            // Somebody may have written beside it meanwhile: what counts is that the document is ours.
            (_, Ok(now)) if now.text == text => Ok(now.version),
            (Ok(_), Ok(_)) => Err(PublishError::Verify),
            // The server has said what it holds; that it cannot be asked again does not undo it.
            (Ok(object), Err(error)) => match self.entry(&object) {
                Ok(answered) if answered.text == text => {
                    tracing::warn!(%error, "the policy document was published, and could not be read again");
                    Ok(answered.version)
                }
                _ => Err(error),
            },
            (Err(error), _) => Err(error.into()),
        }
    }
}
