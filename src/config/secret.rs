//! Secrets live in files and are read anew each time they are needed.
//!
//! Invariant: a [`Secret`] is never printed: its Debug is redacted and it has no Display.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Longest secret, in bytes.
const LIMIT: u64 = 64 << 10;

/// A secret's value.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: String) -> Self {
        Self(value)
    }

    /// The value itself; the caller must not log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where a secret is kept; one trailing newline of the file does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SecretFile(PathBuf);

impl SecretFile {
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Reads the file as it is now, so that a rotated secret counts at the next use.
    ///
    /// Only a regular file of at most 64 KiB of UTF-8 is read: a pipe would hang. No error quotes it.
    pub fn read(&self) -> io::Result<Secret> {
        let bad = |reason: &'static str| io::Error::new(io::ErrorKind::InvalidData, reason);
        if !std::fs::metadata(&self.0)?.is_file() {
            return Err(bad("not a regular file"));
        }
        let mut bytes = Vec::new();
        File::open(&self.0)?.take(LIMIT + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > LIMIT {
            return Err(bad("longer than 64 KiB"));
        }
        let mut text = String::from_utf8(bytes).map_err(|_| bad("not UTF-8"))?;
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        Ok(Secret(text))
    }
}
