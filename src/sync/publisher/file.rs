//! The policy document as a file.
//!
//! Invariant: at its name there is always a whole document, the old one or the new one: it is written
//! beside it, synced, and renamed. Writers of this kind keep out of each other's way by a lock file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{Fetched, PublishError, Published, Publisher, Version};
use crate::document::{DOCUMENT_LIMIT, Document};
use crate::sync::disk;

/// A document in a file; the folder has to be writable for publishing, and for reading need not be.
#[derive(Clone, Debug)]
pub struct FilePublisher {
    path: PathBuf,
}

impl FilePublisher {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What stands in the file, valid or not.
    ///
    /// # Errors
    /// It cannot be read.
    pub async fn fetch(&self) -> Result<Fetched, PublishError> {
        self.blocking(fetch).await
    }

    /// Runs `work`, which waits for the disk, where nobody else waits for it.
    async fn blocking<R: Send + 'static>(
        &self,
        work: impl FnOnce(&Path) -> Result<R, PublishError> + Send + 'static,
    ) -> Result<R, PublishError> {
        let path = self.path.clone();
        match tokio::task::spawn_blocking(move || work(&path)).await {
            Ok(result) => result,
            Err(error) => Err(PublishError::Io { doing: "worked on", error: io::Error::other(error) }),
        }
    }
}

impl Publisher for FilePublisher {
    async fn read(&self) -> Result<Published, PublishError> {
        self.blocking(|path| fetch(path)?.parse()).await
    }

    async fn publish(&self, expected: &Version, document: &Document) -> Result<Version, PublishError> {
        let (expected, text) = (expected.clone(), document.to_text());
        self.blocking(move |path| replace(path, &expected, text.as_bytes())).await
    }
}

fn failed(doing: &'static str) -> impl Fn(io::Error) -> PublishError {
    move |error| PublishError::Io { doing, error }
}

fn fetch(path: &Path) -> Result<Fetched, PublishError> {
    let text = text(path)?;
    Ok(Fetched { version: Version::of_text(&text), text })
}

/// Only a regular file is read: a pipe would hang.
fn text(path: &Path) -> Result<Vec<u8>, PublishError> {
    let failed = failed("read");
    if !fs::metadata(path).map_err(&failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidData, "it is not a regular file")));
    }
    let mut text = Vec::new();
    let limit = DOCUMENT_LIMIT as u64 + 1;
    File::open(path).and_then(|file| file.take(limit).read_to_end(&mut text)).map_err(&failed)?;
    Ok(text)
}

/// A file of ours beside the document.
fn beside(path: &Path, ending: &str) -> Result<PathBuf, PublishError> {
    let name = path.file_name().ok_or_else(|| {
        failed("written")(io::Error::new(io::ErrorKind::InvalidInput, "its path names no file"))
    })?;
    let mut own = std::ffi::OsString::from(".");
    own.push(name);
    own.push(ending);
    Ok(path.with_file_name(own))
}

fn replace(path: &Path, expected: &Version, new: &[u8]) -> Result<Version, PublishError> {
    let failed = failed("written");
    // A link stays one: what it leads to is replaced.
    let path = fs::canonicalize(path).map_err(&failed)?;
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(beside(&path, ".lock")?)
        .map_err(&failed)?;
    // Whoever holds it is about to change the document, which would be a conflict in a moment anyway.
    match lock.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => return Err(PublishError::Conflict),
        Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
    }
    if Version::of_text(&text(&path)?) != *expected {
        return Err(PublishError::Conflict);
    }
    let permissions = fs::metadata(&path).map_err(&failed)?.permissions();
    // One name for all times: what a crash left behind is written over.
    let beside = beside(&path, ".new")?;
    disk::replace(&path, &beside, new, Some(permissions)).map_err(&failed)?;
    if text(&path)? != new {
        return Err(PublishError::Verify);
    }
    Ok(Version::of_text(new))
}
