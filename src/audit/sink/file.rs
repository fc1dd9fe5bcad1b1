//! A file of lines, which `logrotate` may move away.
//!
//! Invariant: what is called delivered was synced, in whole lines. A line that a crash has torn is taken away again
//! before the next one is written: its event was not called delivered and is written anew.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::super::ocsf::{self, LINE_LIMIT, Style};
use super::super::spool::Waiting;
use super::{Fault, Sink};
use crate::metrics::AuditFailure;

/// How far back a torn line may reach.
const TORN: u64 = 2 * LINE_LIMIT as u64;

/// Appends to a file.
pub struct FileSink {
    path: PathBuf,
    style: Style,
    open: Option<File>,
}

impl FileSink {
    pub fn new(path: PathBuf, style: Style) -> Self {
        Self { path, style, open: None }
    }
}

impl FileSink {
    /// Whether lines could be appended there, as far as that can be told without making or changing the file.
    ///
    /// # Errors
    /// Why not.
    pub fn check(path: &Path) -> Result<(), Fault> {
        let fault = |error: io::Error| {
            Fault::new(AuditFailure::Disk, format!("cannot append to {}: {error}", path.display()))
        };
        match OpenOptions::new().read(true).append(true).open(path) {
            Ok(file) if file.metadata().map_err(fault)?.is_file() => Ok(()),
            Ok(_) => Err(fault(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let folder = path.parent().unwrap_or(Path::new("."));
                match std::fs::metadata(if folder.as_os_str().is_empty() { Path::new(".") } else { folder }) {
                    Ok(there) if there.is_dir() => Ok(()),
                    Ok(_) => Err(fault(io::ErrorKind::NotADirectory.into())),
                    Err(error) => Err(fault(error)),
                }
            }
            Err(error) => Err(fault(error)),
        }
    }
}

impl Sink for FileSink {
    async fn deliver(&mut self, events: &[Waiting]) -> Result<Vec<u64>, Fault> {
        let mut text = String::new();
        for waiting in events {
            for line in ocsf::lines(&waiting.event, self.style) {
                text.push_str(&line);
            }
        }
        self.off_thread(move |path, open| {
            let mut file = current(path, open)?;
            append(&mut file, text.as_bytes())?;
            Ok(file)
        })
        .await?;
        Ok(events.iter().map(|waiting| waiting.number).collect())
    }

    async fn probe(&mut self) -> Result<(), Fault> {
        Self::check(&self.path)
    }
}

impl FileSink {
    /// Works on the file on a thread that may block; what fails is opened anew the next time.
    async fn off_thread(
        &mut self,
        work: impl FnOnce(&Path, Option<File>) -> io::Result<File> + Send + 'static,
    ) -> Result<(), Fault> {
        let (path, open) = (self.path.clone(), self.open.take());
        let done = tokio::task::spawn_blocking(move || work(&path, open)).await;
        let done = done.map_err(io::Error::other).and_then(|done| done);
        let fault = |error| {
            Fault::new(AuditFailure::Disk, format!("cannot append to {}: {error}", self.path.display()))
        };
        self.open = Some(done.map_err(fault)?);
        Ok(())
    }
}

/// The file of this name, as it is now: not one that was moved away since.
fn current(path: &Path, open: Option<File>) -> io::Result<File> {
    if let Some(file) = open {
        let (ours, there) = (file.metadata()?, std::fs::metadata(path));
        if there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino())) {
            return Ok(file);
        }
    }
    let is_new = !path.exists();
    let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o640).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    mend(&mut file)?;
    if is_new {
        // The name has to last, too.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
    }
    Ok(file)
}

/// All of it and on the disk, or nothing of it.
fn append(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let before = file.metadata()?.len();
    let written = file.write_all(bytes).and_then(|()| file.sync_data());
    if written.is_err() {
        // Should this fail, too, then the next opening mends it.
        let _ = file.set_len(before);
    }
    written
}

/// Takes a line away that has no end. One that is longer than any of ours is not ours, and is ended instead.
fn mend(file: &mut File) -> io::Result<()> {
    let length = file.metadata()?.len();
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(length.saturating_sub(TORN)))?;
    Read::by_ref(file).take(TORN).read_to_end(&mut tail)?;
    if tail.is_empty() || tail.ends_with(b"\n") {
        return Ok(());
    }
    match memchr::memrchr(b'\n', &tail) {
        Some(end) => file.set_len(length - (tail.len() - end - 1) as u64)?,
        None if (tail.len() as u64) < TORN => file.set_len(0)?,
        None => file.write_all(b"\n")?,
    }
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mended(text: &[u8]) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        std::fs::write(&path, text).unwrap();
        drop(current(&path, None).unwrap());
        std::fs::read(&path).unwrap()
    }

    #[test]
    fn a_torn_line_is_taken_away_and_whole_ones_stay() {
        assert_eq!(mended(b""), b"");
        assert_eq!(mended(b"{}\n{}\n"), b"{}\n{}\n");
        assert_eq!(mended(b"{}\n{\"a\": \"hal"), b"{}\n");
        assert_eq!(mended(b"{\"a\""), b"");
        // Not ours: nothing is taken from it.
        let foreign = vec![b'x'; TORN as usize + 1];
        assert_eq!(mended(&foreign), [&foreign[..], b"\n"].concat());
    }

    #[test]
    fn what_was_moved_away_is_written_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.jsonl");
        let mut file = current(&path, None).unwrap();
        append(&mut file, b"1\n").unwrap();
        let mut file = current(&path, Some(file)).unwrap();
        append(&mut file, b"2\n").unwrap();
        std::fs::rename(&path, folder.path().join("audit.jsonl.1")).unwrap();
        let mut file = current(&path, Some(file)).unwrap();
        append(&mut file, b"3\n").unwrap();
        std::fs::remove_file(&path).unwrap();
        let mut file = current(&path, Some(file)).unwrap();
        append(&mut file, b"4\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"4\n");
        assert_eq!(std::fs::read(folder.path().join("audit.jsonl.1")).unwrap(), b"1\n2\n");
    }

    #[test]
    fn a_device_or_a_folder_is_no_audit_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(current(folder.path(), None).is_err());
        assert!(current(Path::new("/dev/null"), None).is_err());
    }
}
