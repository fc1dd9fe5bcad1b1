//! Where the policy document is kept, and how a new one takes its place.
//!
//! Invariant: a document is replaced whole and only as long as it is the one that was read; whatever
//! fails leaves the old one.

mod file;

use std::fmt;
use std::future::Future;

use sha2::{Digest, Sha256};

pub use file::FilePublisher;

use crate::document::{Document, DocumentError};

/// Which writing of a document this is: a file's contents as a hash, a `ConfigMap`'s `resourceVersion`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Version(Box<str>);

impl Version {
    /// The version of a text that has no other.
    pub fn of_text(text: &[u8]) -> Self {
        let hash = Sha256::digest(text);
        Self(hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect::<String>().into())
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
