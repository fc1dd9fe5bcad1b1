//! Files that are there whole or not at all.
//!
//! Invariant: whoever reads a file that was written here sees the old one or the new one, also after a crash.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::path::Path;

/// Writes `bytes` into a file beside `path`, named `beside`, and gives it the name `path` once it is on the disk.
///
/// # Errors
/// The disk's; `path` is then what it was.
pub fn replace(path: &Path, beside: &Path, bytes: &[u8], permissions: Option<Permissions>) -> io::Result<()> {
    let mut file = File::create(beside)?;
    if let Some(permissions) = permissions {
        file.set_permissions(permissions)?;
    }
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(beside, path)?;
    // The name, too, has to be on the disk.
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
