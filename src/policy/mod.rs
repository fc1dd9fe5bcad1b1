//! The policy document as what Trino's OPA enforces: masks, row filters, scopes and the write guard; and the proof that
//! OPA does. Beside it, the configuration policies.
//!
//! Invariant: pure. A document and settings go in, the same bytes come out, and a document that could not be
//! enforced makes no bundle at all, so that the one before stays in force. Nothing here performs I/O.

pub mod adminconfig;
pub mod bundle;
pub mod data;
pub mod deploy;
pub mod expression;
pub mod library;
pub mod probe;
pub mod proof;
mod scopes;
pub mod sign;
pub mod status;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

/// What the operator configured.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Subjects of the document that see everything; exactly these names.
    pub admin_subjects: BTreeSet<Arc<str>>,
    /// What is allowed in catalogs that are no source of the document.
    pub other_catalogs: OtherCatalogs,
    /// System session properties of Trino that anybody may set.
    pub system_session_properties: BTreeSet<String>,
    /// What `{key}` stands for in masks; without it, a mask that names it shows NULL.
    pub mask_key: Option<MaskKey>,
}

/// Catalogs that the document knows nothing of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OtherCatalogs {
    /// Not visible.
    #[default]
    Deny,
    /// Anybody may read them.
    Read,
    /// Anybody may do anything; for customers whose other catalogs are nobody's business here.
    Allow,
}

impl OtherCatalogs {
    pub fn as_str(self) -> &'static str {
        match self {
            OtherCatalogs::Deny => "deny",
            OtherCatalogs::Read => "read",
            OtherCatalogs::Allow => "allow",
        }
    }
}

/// The key of keyed masks, in hexadecimal; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct MaskKey(String);

impl MaskKey {
    pub fn new(key: &[u8]) -> Self {
        use std::fmt::Write;
        let mut text = String::with_capacity(key.len() * 2);
        for byte in key {
            // Writing to a string has no way to fail.
            let _ = write!(text, "{byte:02X}");
        }
        Self(text)
    }

    pub(crate) fn hex(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for MaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MaskKey(…)")
    }
}
