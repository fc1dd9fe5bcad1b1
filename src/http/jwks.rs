//! The issuer's keys (RFC 7517), from a file or an address.
//!
//! Invariant: a key that was never seen in a whole set is no key; a set that cannot be read leaves the last one in
//! force for as long as [`KEEP`] and no longer. However many tokens name keys that are not there, the issuer is asked
//! once in [`PAUSE`].

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use jsonwebtoken::jwk::{Jwk, JwkSet};
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
    #[error("the issuer has no key of that name")]
    Unknown,
    #[error("the issuer's keys cannot be had: {0}")]
    NoKeys(String),
}

/// The keys of one issuer.
pub struct Keys {
    place: Place,
    /// std Mutex: never held across an await.
    state: Mutex<State>,
    /// Held by whoever asks the issuer, so that one does.
    asking: tokio::sync::Mutex<()>,
}

enum Place {
    File(PathBuf),
    Url { client: reqwest::Client, url: String },
}

#[derive(Default)]
struct State {
    set: Option<Arc<JwkSet>>,
    /// When `set` was read.
    read: Option<Instant>,
    /// When it was last tried.
    tried: Option<Instant>,
    /// How the file looked then.
    stamp: Option<(u64, SystemTime)>,
    error: String,
}

impl Keys {
    /// # Errors
    /// No client can be made for the address.
    pub fn new(place: &JwksPlace) -> Result<Self, client::ClientError> {
        let place = match place {
            JwksPlace::File(path) => Place::File(path.clone()),
            JwksPlace::Url(url) => Place::Url { client: client::http(url, None, TIMEOUT)?, url: url.clone() },
        };
        Ok(Self { place, state: Mutex::default(), asking: tokio::sync::Mutex::default() })
    }

    /// The key of this name; without a name the only one there is.
    ///
    /// # Errors
    /// There is no such key, or no keys at all.
    pub async fn find(&self, kid: Option<&str>) -> Result<Jwk, KeyError> {
        if let Some(key) = self.fresh().and_then(|set| pick(&set, kid)) {
            return Ok(key);
        }
        let _asking = self.asking.lock().await;
        // Whoever asked before may have found it.
        if let Some(key) = self.fresh().and_then(|set| pick(&set, kid)) {
            return Ok(key);
        }
        self.ask().await;
        let state = self.state();
        let kept = state.read.is_some_and(|read| read.elapsed() < KEEP);
        match state.set.as_ref().filter(|_| kept) {
            Some(set) => pick(set, kid).ok_or(KeyError::Unknown),
            None => Err(KeyError::NoKeys(state.error.clone())),
        }
    }

    /// The set, if it need not be asked for anew.
    fn fresh(&self) -> Option<Arc<JwkSet>> {
        let state = self.state();
        let current = match &self.place {
            Place::File(path) => state.stamp.is_some() && state.stamp == stamp(path),
            Place::Url { .. } => state.read.is_some_and(|read| read.elapsed() < REFRESH),
        };
        state.set.clone().filter(|_| current)
    }

    async fn ask(&self) {
        if matches!(self.place, Place::Url { .. })
            && self.state().tried.is_some_and(|tried| tried.elapsed() < PAUSE)
        {
            return;
        }
        let (read, stamp) = match &self.place {
            Place::File(path) => {
                let stamp = stamp(path);
                (read(path.clone()).await, stamp)
            }
            Place::Url { client, url } => (fetch(client, url).await, None),
        };
        let now = Instant::now();
        let mut state = self.state();
        state.tried = Some(now);
        match read {
            Ok(set) => {
                state.set = Some(Arc::new(set));
                state.read = Some(now);
                state.stamp = stamp;
            }
            Err(error) => {
                tracing::warn!(error, "the issuer's keys cannot be read");
                state.error = error;
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pick(set: &JwkSet, kid: Option<&str>) -> Option<Jwk> {
    match (kid, set.keys.as_slice()) {
        (Some(kid), _) => set.find(kid).cloned(),
        (None, [only]) => Some(only.clone()),
        (None, _) => None,
    }
}

fn stamp(path: &PathBuf) -> Option<(u64, SystemTime)> {
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.len(), metadata.modified().ok()?))
}

async fn read(path: PathBuf) -> Result<JwkSet, String> {
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
    parse(&bytes.map_err(|error| format!("{shown}: {error}"))?).map_err(|error| format!("{shown}: {error}"))
}

async fn fetch(client: &reqwest::Client, url: &str) -> Result<JwkSet, String> {
    let answer = client.get(url).send().await.map_err(|error| client::told(&error))?;
    if answer.status() != reqwest::StatusCode::OK {
        return Err(format!("the issuer answers {}", answer.status().as_u16()));
    }
    let body = client::body(answer, LIMIT).await.map_err(|error| error.to_string())?;
    parse(&body)
}

fn parse(bytes: &[u8]) -> Result<JwkSet, String> {
    if bytes.len() > LIMIT {
        return Err(format!("it is longer than {LIMIT} bytes"));
    }
    serde_json::from_slice(bytes).map_err(|error| format!("it is no set of keys: {error}"))
}
