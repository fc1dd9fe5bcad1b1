//! The bundle that OPA loads: Rego, data and a manifest in a gzipped tar.
//!
//! Invariant: the same content gives the same bytes, so that the ETag changes when and only when an answer
//! could; a document that cannot be enforced gives no bundle. Roots are no wider than what is in them.
//! <https://www.openpolicyagent.org/docs/management-bundles>

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read as _, Write as _};

use bytes::Bytes;
use flate2::read::GzDecoder;
use flate2::{Compression, GzBuilder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::Settings;
use super::data::data;
use super::expression::{self, Finding};
use super::probe::Question;
use super::sign::Signer;
use crate::document::Policy;

/// The packages under `data.fedgate`.
pub const OURS: &[(&str, &str)] = &[
    ("fedgate/masks.rego", include_str!("trino/masks.rego")),
    ("fedgate/policy.rego", include_str!("trino/policy.rego")),
    ("fedgate/readonly.rego", include_str!("trino/readonly.rego")),
    ("fedgate/subject.rego", include_str!("trino/subject.rego")),
];
/// `package trino`, where Trino asks.
pub const THIN: (&str, &str) = ("trino/trino.rego", include_str!("trino/trino.rego"));

/// Bytes that a kept bundle may unpack to.
const UNPACKED_LIMIT: u64 = 1 << 30;
/// Questions that go with a bundle, at most.
const QUESTIONS: usize = 64;
const MANIFEST: &str = ".manifest";
const SIGNATURES: &str = ".signatures.json";

/// A bundle and what names it; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// The hash of everything that counts, in hexadecimal; OPA reports it as `active_revision`.
    pub revision: String,
    /// A strong ETag, quotes included.
    pub etag: String,
    pub bytes: Bytes,
    /// What can be asked of an OPA that enforces it; none for one that was kept.
    pub questions: Vec<Question>,
}

/// How a bundle is packed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Packing<'p> {
    /// Take `package trino` along.
    pub thin: bool,
    pub signer: Option<&'p Signer>,
}

/// Why there is no bundle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    #[error("the policy document holds expressions that Trino could not evaluate: {}", list(.0))]
    Expressions(Vec<Finding>),
    /// Roots are paths, so that a name with a slash would claim what is another's.
    #[error(
        "the source {0:?} has a name that cannot be a path of OPA's data: letters, digits, `_`, `.` and `-` can"
    )]
    SourceName(String),
    #[error("the bundle could not be packed: {0}")]
    Pack(String),
    #[error("the kept bundle is damaged: {0}")]
    Kept(String),
}

fn list(findings: &[Finding]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[derive(Serialize)]
struct Manifest<'m> {
    revision: &'m str,
    roots: &'m [String],
    rego_version: u8,
}

#[derive(Deserialize)]
struct KeptManifest {
    revision: String,
}

#[derive(Serialize)]
struct Marker {
    read_only: bool,
}

impl Bundle {
    /// Checks a document and packs it.
    ///
    /// # Errors
    /// An expression that Trino could not evaluate, a source whose name is no path, data that cannot be
    /// written as JSON, or a key that signs nothing.
    pub fn build(policy: &Policy, settings: &Settings, packing: Packing<'_>) -> Result<Self, BundleError> {
        let findings = expression::check(policy);
        if !findings.is_empty() {
            return Err(BundleError::Expressions(findings));
        }
        let mut roots = vec!["fedgate".to_owned()];
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (path, text) in OURS {
            files.insert((*path).to_owned(), text.as_bytes().to_vec());
        }
        if packing.thin {
            roots.push("trino".to_owned());
            files.insert(THIN.0.to_owned(), THIN.1.as_bytes().to_vec());
        }
        let data = data(policy, settings);
        files.insert("fedgate/policy/data.json".to_owned(), json(&data)?);
        let questions = data.questions(QUESTIONS);
        drop(data);
        for (name, source) in &policy.sources {
            if !is_path(name) {
                return Err(BundleError::SourceName(name.clone()));
            }
            let root = format!("akko/{name}");
            files.insert(format!("{root}/data.json"), json(&Marker { read_only: source.read_only })?);
            roots.push(root);
        }
        let revision = revision(&files);
        let manifest = json(&Manifest { revision: &revision, roots: &roots, rego_version: 1 })?;
        let all = || {
            let files = files.iter().map(|(path, content)| (path.as_str(), content.as_slice()));
            std::iter::once((MANIFEST, manifest.as_slice())).chain(files)
        };
        let signatures = packing.signer.map(|signer| signer.sign(all())).transpose()?;
        let signatures = signatures.iter().map(|content| (SIGNATURES, content.as_slice()));
        let bytes = pack(signatures.chain(all())).map_err(|error| BundleError::Pack(error.to_string()))?;
        Ok(Self { revision, etag: etag(&bytes), bytes: bytes.into(), questions })
    }

    /// A bundle that was kept, if it is still what it was.
    ///
    /// # Errors
    /// It is no bundle, or its content is not that of its revision.
    pub fn kept(bytes: Vec<u8>) -> Result<Self, BundleError> {
        let damaged = |error: std::io::Error| BundleError::Kept(error.to_string());
        let mut archive = tar::Archive::new(GzDecoder::new(bytes.as_slice()).take(UNPACKED_LIMIT));
        let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for entry in archive.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let path = entry.path().map_err(damaged)?.to_string_lossy().into_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).map_err(damaged)?;
            files.insert(path, content);
        }
        files.remove(SIGNATURES);
        let manifest =
            files.remove(MANIFEST).ok_or_else(|| BundleError::Kept("it has no manifest".to_owned()))?;
        let KeptManifest { revision: claimed } =
            serde_json::from_slice(&manifest).map_err(|error| BundleError::Kept(error.to_string()))?;
        if claimed != revision(&files) {
            return Err(BundleError::Kept("its files are not those of its revision".to_owned()));
        }
        Ok(Self { revision: claimed, etag: etag(&bytes), bytes: bytes.into(), questions: Vec::new() })
    }
}

fn is_path(name: &str) -> bool {
    !name.is_empty()
        && name != "."
        && name != ".."
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
}

fn json(value: &impl Serialize) -> Result<Vec<u8>, BundleError> {
    serde_json::to_vec(value).map_err(|error| BundleError::Pack(error.to_string()))
}

/// Lengths go in front, so that no two sets of files look alike.
fn revision(files: &BTreeMap<String, Vec<u8>>) -> String {
    let mut hash = Sha256::new();
    for (path, content) in files {
        for part in [path.as_bytes(), content] {
            hash.update(part.len().to_be_bytes());
            hash.update(part);
        }
    }
    hex(&hash.finalize())
}

/// The one that RFC 9110 calls strong: other bytes, another one.
fn etag(bytes: &[u8]) -> String {
    format!("\"{}\"", hex(&Sha256::digest(bytes)))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string has no way to fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn pack<'f>(files: impl Iterator<Item = (&'f str, &'f [u8])>) -> std::io::Result<Vec<u8>> {
    let gzip = GzBuilder::new().mtime(0).write(Vec::new(), Compression::default());
    let mut archive = tar::Builder::new(gzip);
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(u64::try_from(content.len()).map_err(std::io::Error::other)?);
        archive.append_data(&mut header, path, content)?;
    }
    let mut gzip = archive.into_inner()?;
    gzip.flush()?;
    gzip.finish()
}
