//! Signatures of bundles.
//!
//! Invariant: what is signed is the hash of every other file, as OPA computes it; a key is never shown.
//! <https://www.openpolicyagent.org/docs/management-bundles#signing>

use std::fmt;
use std::io::Write;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::bundle::{BundleError, hex};

/// Signs bundles with one key.
#[derive(Clone)]
pub struct Signer {
    algorithm: Algorithm,
    key: EncodingKey,
    /// What OPA's configuration calls the key that verifies.
    key_id: String,
}

/// How bundles are signed (RFC 7518, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signing {
    /// A secret that OPA has, too.
    Hs256,
    /// A private key in PEM.
    Rs256,
    Ps256,
    Es256,
}

impl Signing {
    pub fn as_str(self) -> &'static str {
        match self {
            Signing::Hs256 => "HS256",
            Signing::Rs256 => "RS256",
            Signing::Ps256 => "PS256",
            Signing::Es256 => "ES256",
        }
    }
}

/// A key that signs nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("holds no private key for {algorithm} in PEM")]
pub struct KeyError {
    algorithm: &'static str,
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({}, …)", self.key_id)
    }
}

#[derive(Serialize)]
struct Claims<'c> {
    files: Vec<Signed<'c>>,
    keyid: &'c str,
}

#[derive(Serialize)]
struct Signed<'c> {
    name: &'c str,
    hash: String,
    algorithm: &'static str,
}

#[derive(Serialize)]
struct Signatures {
    signatures: [String; 1],
}

impl Signer {
    /// # Errors
    /// The key is none of that kind.
    pub fn new(signing: Signing, key: &[u8], key_id: &str) -> Result<Self, KeyError> {
        let (algorithm, read) = match signing {
            Signing::Hs256 => (Algorithm::HS256, Ok(EncodingKey::from_secret(key))),
            Signing::Rs256 => (Algorithm::RS256, EncodingKey::from_rsa_pem(key)),
            Signing::Ps256 => (Algorithm::PS256, EncodingKey::from_rsa_pem(key)),
            Signing::Es256 => (Algorithm::ES256, EncodingKey::from_ec_pem(key)),
        };
        let key = read.map_err(|_| KeyError { algorithm: signing.as_str() })?;
        Ok(Self { algorithm, key, key_id: key_id.to_owned() })
    }

    /// `.signatures.json` over these files.
    ///
    /// # Errors
    /// A file that ends in `.json` holds none, or the key signs nothing.
    pub(super) fn sign<'f>(
        &self,
        files: impl Iterator<Item = (&'f str, &'f [u8])>,
    ) -> Result<Vec<u8>, BundleError> {
        let signed = files.map(|(name, content)| {
            Ok(Signed { name, hash: file_hash(name, content)?, algorithm: "SHA-256" })
        });
        let claims = Claims { files: signed.collect::<Result<_, BundleError>>()?, keyid: &self.key_id };
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.key_id.clone());
        let token = encode(&header, &claims, &self.key)
            .map_err(|error| BundleError::Pack(format!("it could not be signed: {error}")))?;
        serde_json::to_vec(&Signatures { signatures: [token] })
            .map_err(|error| BundleError::Pack(error.to_string()))
    }
}

/// Of what a JSON file says, since it is read before it is looked at; of the bytes of any other.
fn file_hash(name: &str, content: &[u8]) -> Result<String, BundleError> {
    let mut hash = Sha256::new();
    if name.ends_with(".json") || name == ".manifest" {
        let value: Value =
            serde_json::from_slice(content).map_err(|error| BundleError::Pack(error.to_string()))?;
        walk(&value, &mut hash).map_err(|error| BundleError::Pack(error.to_string()))?;
    } else {
        hash.update(content);
    }
    Ok(hex(&hash.finalize()))
}

/// As deep as our own data.
fn walk(value: &Value, hash: &mut Sha256) -> std::io::Result<()> {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(name, _)| *name);
            hash.write_all(b"{")?;
            for (position, (name, value)) in fields.into_iter().enumerate() {
                if position > 0 {
                    hash.write_all(b",")?;
                }
                text(name, hash)?;
                hash.write_all(b":")?;
                walk(value, hash)?;
            }
            hash.write_all(b"}")
        }
        Value::Array(items) => {
            hash.write_all(b"[")?;
            for (position, item) in items.iter().enumerate() {
                if position > 0 {
                    hash.write_all(b",")?;
                }
                walk(item, hash)?;
            }
            hash.write_all(b"]")
        }
        Value::String(string) => text(string, hash),
        Value::Null | Value::Bool(_) | Value::Number(_) => hash.write_all(&serde_json::to_vec(value)?),
    }
}

/// Go writes the separators of lines and paragraphs as escapes, whatever it is told.
fn text(text: &str, hash: &mut Sha256) -> std::io::Result<()> {
    let mut json = serde_json::to_string(text)?;
    if json.contains(['\u{2028}', '\u{2029}']) {
        json = json.replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029");
    }
    hash.write_all(json.as_bytes())
}
