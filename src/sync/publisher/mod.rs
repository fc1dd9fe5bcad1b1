//! Where the policy document is kept, and how a new one takes its place.
//!
//! Invariant: a document is replaced whole and only as long as it is the one that was read; whatever
//! fails leaves the old one.

mod config_map;
mod file;

use std::fmt;
use std::future::Future;

use sha2::{Digest, Sha256};

pub use config_map::ConfigMapPublisher;
pub use file::FilePublisher;

use super::kubernetes::CallError;
use crate::config::DocumentPlace;
use crate::document::{Document, DocumentError};

/// Which writing of a document this is: a file's contents as a hash, a `ConfigMap`'s `resourceVersion`.
///
/// It is for [`Publisher::publish`] alone, which replaces that writing and no other. It changes with things that are
/// not the document (a label on the `ConfigMap`), and it differs from place to place. What tells whether the document
/// in force says what somebody meant to publish is [`Version::of_content`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Version(Box<str>);

impl Version {
    /// The version of a text that has no other.
    pub fn of_text(text: &[u8]) -> Self {
        let hash = Sha256::digest(text);
        Self(hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>().into())
    }

    /// What a document says, as a hash: the same in every place and for every layout of its text.
    pub fn of_content(document: &Document) -> Self {
        Self::of_text(document.to_text().as_bytes())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A document as it was read.
#[derive(Clone, Debug)]
pub struct Published {
    pub document: Document,
    pub version: Version,
}

/// What stands in a document's place, whatever it is.
#[derive(Clone, Debug)]
pub struct Fetched {
    pub text: Vec<u8>,
    pub version: Version,
}

impl Fetched {
    fn parse(self) -> Result<Published, PublishError> {
        Ok(Published { document: Document::parse(&self.text)?, version: self.version })
    }
}

/// Why a document could not be read or replaced.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("the policy document cannot be {doing}: {error}")]
    Io { doing: &'static str, error: std::io::Error },
    /// Somebody broke it by hand: it is reported, and nobody writes over it.
    #[error(transparent)]
    Document(#[from] DocumentError),
    /// Read again, plan again, publish again.
    #[error("somebody else changed the policy document meanwhile")]
    Conflict,
    #[error("the policy document is not what was written a moment ago; somebody else writes to it")]
    Verify,
    /// Nothing was sent, and the old document stays.
    #[error(
        "the ConfigMap {what} would hold {size} bytes, and Kubernetes takes {limit}: mask fewer columns or whole schemas, \
         or keep the document in a file"
    )]
    TooLarge { what: Box<str>, size: usize, limit: usize },
    #[error(
        "the ConfigMap {what} has no entry {key:?} in its data: put the policy document there, or name another in [document] key"
    )]
    NoKey { what: Box<str>, key: Box<str> },
    #[error(transparent)]
    Kubernetes(#[from] CallError),
}

/// A place for one document.
pub trait Publisher {
    /// The document that is in force.
    ///
    /// # Errors
    /// It cannot be read, or is none.
    fn read(&self) -> impl Future<Output = Result<Published, PublishError>> + Send;

    /// Puts `document` in the place of the one that was read as `expected`, and reads it back.
    ///
    /// # Errors
    /// [`PublishError::Conflict`] when another one is there; or it cannot be written.
    fn publish(
        &self,
        expected: &Version,
        document: &Document,
    ) -> impl Future<Output = Result<Version, PublishError>> + Send;
}

/// The place that the configuration names.
#[derive(Clone, Debug)]
pub enum AnyPublisher {
    File(FilePublisher),
    ConfigMap(ConfigMapPublisher),
}

impl AnyPublisher {
    /// Opens and asks nothing yet: a place that cannot be reached is told when it is read.
    pub fn new(place: &DocumentPlace) -> Self {
        match place {
            DocumentPlace::File { path } => Self::File(FilePublisher::new(path.clone())),
            DocumentPlace::ConfigMap { namespace, name, key, kubeconfig, lease: _ } => {
                Self::ConfigMap(ConfigMapPublisher::new(namespace, name, key, kubeconfig.clone()))
            }
        }
    }

    /// What stands there, valid or not.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn fetch(&self) -> Result<Fetched, PublishError> {
        match self {
            Self::File(publisher) => publisher.fetch().await,
            Self::ConfigMap(publisher) => publisher.fetch().await,
        }
    }
}

impl Publisher for AnyPublisher {
    async fn read(&self) -> Result<Published, PublishError> {
        match self {
            Self::File(publisher) => publisher.read().await,
            Self::ConfigMap(publisher) => publisher.read().await,
        }
    }

    async fn publish(&self, expected: &Version, document: &Document) -> Result<Version, PublishError> {
        match self {
            Self::File(publisher) => publisher.publish(expected, document).await,
            Self::ConfigMap(publisher) => publisher.publish(expected, document).await,
        }
    }
}
