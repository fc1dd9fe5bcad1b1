//! The issuer's keys (RFC 7517), from a file or an address.
//!
//! Invariant: a key that was never seen in a whole set is no key; a set that cannot be read leaves the last one in
//! force for as long as [`KEEP`] and no longer. However many tokens name keys that are not there, and however many
//! of those who brought them go away, the issuer is asked once in [`PAUSE`].

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;
use tokio::time::Instant;

use crate::client;
use crate::config::JwksPlace;

/// Longest set, in bytes.
const LIMIT: usize = 1 << 20;
/// For one request to the issuer, its answer included.
const TIMEOUT: Duration = Duration::from_secs(5);
/// At least this long between two requests.
const PAUSE: Duration = Duration::from_secs(10);
/// After this long the issuer is asked again, whether a key is missing or not.
const REFRESH: Duration = Duration::from_secs(300);
/// For this long the last set is good when no newer one can be had.
const KEEP: Duration = Duration::from_secs(24 * 3600);

/// Why there is no key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The issuer has other keys.
    #[error("the issuer has no such key")]
    Unknown,
    /// The key of this name is meant for something else.
    #[error("its key is for another algorithm")]
    Unsuited,
    #[error("the issuer's keys cannot be had: {0}")]
    NoKeys(String),
}

/// A key of the issuer.
#[derive(Clone)]
pub struct Key {
    pub jwk: Jwk,
    pub(super) decoding: DecodingKey,
}

/// The keys of one issuer.
pub struct Keys(Arc<Inner>);

struct Inner {
    place: Place,
    /// std Mutex: never held across an await.
    state: Mutex<State>,
    /// Held by whoever asks the issuer, so that one does.
    asking: Arc<tokio::sync::Mutex<()>>,
}

enum Place {
    File(PathBuf),
    Url { client: reqwest::Client, url: String },
}

#[derive(Default)]
struct State {
    set: Option<Arc<Set>>,
    /// When `set` was read.
    read: Option<Instant>,
    /// How the file looked then.
    stamp: Option<Stamp>,
    /// When and at what it was last tried, whatever came of it.
    tried: Option<(Instant, Option<Stamp>)>,
    /// Why that failed, if it did.
    error: Option<String>,
}

impl State {
    fn kept(&self) -> Option<Arc<Set>> {
        self.set.clone().filter(|_| self.read.is_some_and(|read| read.elapsed() < KEEP))
    }
}

impl Keys {
    /// # Errors
    /// No client can be made for the address.
    pub fn new(place: &JwksPlace) -> Result<Self, client::ClientError> {
        let place = match place {
            JwksPlace::File(path) => Place::File(path.clone()),
            JwksPlace::Url(url) => Place::Url { client: client::http(url, None, TIMEOUT)?, url: url.clone() },
        };
        Ok(Self(Arc::new(Inner { place, state: Mutex::default(), asking: Arc::default() })))
    }

    /// The key of this name for this algorithm; without a name the only one there is for it.
    ///
    /// # Errors
    /// There is no such key, or no keys at all.
    pub async fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<Key, KeyError> {
        let inner = &self.0;
        let current = |set: Option<Arc<Set>>| match set?.pick(kid, algorithm) {
            // It may be new.
            Err(KeyError::Unknown) => None,
            found => Some(found),
        };
        if let Some(found) = current(inner.fresh()) {
            return found;
        }
        let asking = match Arc::clone(&inner.asking).try_lock_owned() {
            Ok(asking) => asking,
            Err(_) => {
                // Somebody asks at this moment. For an issuer that did not answer the last time nobody waits whose
                // key is known: it would be taken after the wait, too.
                if let Some(found) = current(inner.in_trouble()) {
                    return found;
                }
                Arc::clone(&inner.asking).lock_owned().await
            }
        };
        // Whoever asked before may have found it.
        if let Some(found) = current(inner.fresh()) {
            return found;
        }
        if inner.is_due() {
            // In a task of its own, which whoever has it done and goes away does not undo: nothing would come of the
            // asking, and the next one might ask again at once.
            let inner = Arc::clone(inner);
            let asked = tokio::spawn(async move {
                inner.ask().await;
                drop(asking);
            });
            let _ = asked.await;
        } else {
            drop(asking);
        }
        let state = inner.state();
        match state.kept() {
            Some(set) => set.pick(kid, algorithm),
            None => Err(KeyError::NoKeys(state.error.clone().unwrap_or_default())),
        }
    }
}

impl Inner {
    /// The set, if it need not be asked for anew.
    fn fresh(&self) -> Option<Arc<Set>> {
        let state = self.state();
        let current = match &self.place {
            Place::File(path) => state.stamp.is_some() && state.stamp == stamp(path),
            Place::Url { .. } => state.read.is_some_and(|read| read.elapsed() < REFRESH),
        };
        state.set.clone().filter(|_| current)
    }

    /// The last set, if there was no newer one to be had.
    fn in_trouble(&self) -> Option<Arc<Set>> {
        let state = self.state();
        state.kept().filter(|_| state.error.is_some())
    }

    fn is_due(&self) -> bool {
        let Some((at, seen)) = self.state().tried else { return true };
        // A file that has changed is looked at whenever it was looked at last.
        let changed = matches!(&self.place, Place::File(path) if stamp(path) != seen);
        changed || at.elapsed() >= PAUSE
    }

    async fn ask(&self) {
        let (read, stamp) = match &self.place {
            Place::File(path) => {
                let stamp = stamp(path);
                (read(path.clone()).await, stamp)
            }
            Place::Url { client, url } => (fetch(client, url).await, None),
        };
        let now = Instant::now();
        let mut state = self.state();
        state.tried = Some((now, stamp));
        match read {
            Ok(set) => {
                state.set = Some(Arc::new(set));
                state.read = Some(now);
                state.stamp = stamp;
                state.error = None;
            }
            Err(error) => {
                tracing::warn!(error, "the issuer's keys cannot be read");
                state.error = Some(error);
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The keys that can verify something.
struct Set(Vec<Key>);

impl Set {
    fn pick(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<Key, KeyError> {
        let named = |key: &&Key| kid.is_none_or(|kid| key.jwk.common.key_id.as_deref() == Some(kid));
        let mut suited = self.0.iter().filter(named).filter(|key| goes_with(&key.jwk, algorithm));
        match (suited.next(), kid.is_some() || suited.next().is_none()) {
            (Some(key), true) => Ok(key.clone()),
            // A token without a name must leave no choice.
            (Some(_), false) => Err(KeyError::Unknown),
            (None, _) if kid.is_some() && self.0.iter().any(|key| named(&key)) => Err(KeyError::Unsuited),
            (None, _) => Err(KeyError::Unknown),
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Raw {
            keys: Vec<Value>,
        }

        if bytes.len() > LIMIT {
            return Err(format!("it is longer than {LIMIT} bytes"));
        }
        let raw: Raw =
            serde_json::from_slice(bytes).map_err(|error| format!("it is no set of keys: {error}"))?;
        // RFC 7517, section 5: keys of a kind that is not known are passed over, and make no other key worse.
        let usable = raw.keys.into_iter().filter_map(|key| {
            let jwk: Jwk = serde_json::from_value(key).ok()?;
            let decoding = DecodingKey::from_jwk(&jwk).ok()?;
            Some(Key { jwk, decoding })
        });
        Ok(Self(usable.collect()))
    }
}

/// The key decides what it may be used for, and a token cannot ask it for more.
fn goes_with(key: &Jwk, algorithm: Algorithm) -> bool {
    let kind = match &key.algorithm {
        AlgorithmParameters::RSA(_) => matches!(
            algorithm,
            Algorithm::RS256
                | Algorithm::RS384
                | Algorithm::RS512
                | Algorithm::PS256
                | Algorithm::PS384
                | Algorithm::PS512
        ),
        AlgorithmParameters::EllipticCurve(parameters) => match parameters.curve {
            EllipticCurve::P256 => algorithm == Algorithm::ES256,
            EllipticCurve::P384 => algorithm == Algorithm::ES384,
            _ => false,
        },
        AlgorithmParameters::OctetKeyPair(_) => algorithm == Algorithm::EdDSA,
        _ => false,
    };
    let common = &key.common;
    let usage = matches!(common.public_key_use, None | Some(PublicKeyUse::Signature))
        && common.key_operations.as_ref().is_none_or(|uses| uses.contains(&KeyOperations::Verify));
    let named = common
        .key_algorithm
        .is_none_or(|named| Algorithm::try_from(named).is_ok_and(|named| named == algorithm));
    kind && usage && named
}

/// Tells one state of a file from another: a file that is renamed into its place within a tick of the clock, as long
/// as the one before, has another number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    number: u64,
    length: u64,
    changed: (i64, i64),
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = std::fs::metadata(path).ok()?;
    Some(Stamp {
        device: metadata.dev(),
        number: metadata.ino(),
        length: metadata.len(),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

async fn read(path: PathBuf) -> Result<Set, String> {
    use std::io::Read;
    let shown = path.display().to_string();
    let read = move || {
        // A pipe would hang.
        if !std::fs::metadata(&path)?.is_file() {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        let mut bytes = Vec::new();
        std::fs::File::open(&path)?.take(LIMIT as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = tokio::task::spawn_blocking(read).await;
    let bytes = bytes.unwrap_or_else(|error| Err(std::io::Error::other(error)));
    let read = bytes.map_err(|error| error.to_string()).and_then(|bytes| Set::parse(&bytes));
    read.map_err(|error| format!("{shown}: {error}"))
}

async fn fetch(client: &reqwest::Client, url: &str) -> Result<Set, String> {
    let answer = client.get(url).send().await.map_err(|error| client::told(&error))?;
    if answer.status() != reqwest::StatusCode::OK {
        return Err(format!("the issuer answers {}", answer.status().as_u16()));
    }
    let body = client::body(answer, LIMIT).await.map_err(|error| error.to_string())?;
    Set::parse(&body)
}
