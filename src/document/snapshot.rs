//! The policy document that is in force, as the rest of the process sees it.
//!
//! Invariant: a snapshot is never changed; another document is another snapshot.

use std::time::SystemTime;

use super::Document;

/// A valid document, as it was read.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub document: Document,
    /// The hash of what the document says, wherever it is kept; the history of the loop calls it by the same.
    pub version: Box<str>,
    /// When this document was first seen.
    pub read_at: SystemTime,
}
