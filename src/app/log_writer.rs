//! The thread that writes the log, so that a full disk, or a reader that takes nothing, holds up no session.
//!
//! Invariant: to hand over a line neither waits for a write nor fails; what waits is bounded, and each line that was not
//! written is counted, and told in the log once there is room again.

use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus::IntCounter;
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that wait to be written; what comes beyond is lost.
const WAITING: usize = 1 << 20;
/// At the end, how long what waits may take to be written.
const FLUSH: Duration = Duration::from_secs(2);

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Lines that found no room since the writer looked last.
    refused: u64,
    /// Lines that were ever lost.
    lost: u64,
    counter: Option<IntCounter>,
    closed: bool,
    ended: bool,
}

impl State {
    fn lose(&mut self, lines: u64) {
        self.lost += lines;
        if let Some(counter) = &self.counter {
            counter.inc_by(lines);
        }
    }
}

#[derive(Default)]
struct Shared {
    // std Mutex: never held across an await, nor while anything is written.
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where lines are handed over.
#[derive(Clone)]
pub struct Lines(Arc<Shared>);

/// The thread; when this goes, it writes what waits and ends.
pub struct LogWriter(Lines);

impl LogWriter {
    /// Begins to write to `out`.
    ///
    /// # Errors
    /// There can be no further thread.
    pub fn start(out: impl Write + Send + 'static) -> io::Result<Self> {
        let shared = Arc::<Shared>::default();
        let lines = Lines(Arc::clone(&shared));
        std::thread::Builder::new().name("log".to_owned()).spawn(move || {
            write_out(&shared, out);
            shared.lock().ended = true;
            shared.changed.notify_all();
        })?;
        Ok(Self(lines))
    }

    pub fn lines(&self) -> Lines {
        self.0.clone()
    }

    /// Counts lost lines here, those of before included.
    pub fn count_lost(&self, counter: IntCounter) {
        let mut state = self.0.0.lock();
        counter.inc_by(state.lost);
        state.counter = Some(counter);
    }
}

impl Drop for LogWriter {
    fn drop(&mut self) {
        let Lines(shared) = &self.0;
        shared.lock().closed = true;
        shared.changed.notify_all();
        // Whoever takes nothing now will not take it later.
        let _ = shared.changed.wait_timeout_while(shared.lock(), FLUSH, |state| !state.ended);
    }
}

/// One event on its way.
pub struct Line<'a>(&'a Shared);

impl Write for Line<'_> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        if state.waiting.len() + event.len() > WAITING {
            state.refused += 1;
            state.lose(1);
        } else {
            state.waiting.extend_from_slice(event);
            self.0.changed.notify_all();
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line(&self.0)
    }
}

fn write_out(shared: &Shared, mut out: impl Write) {
    let mut taken = Vec::new();
    let mut untold = 0;
    // The last line that came through did so in part.
    let mut torn = false;
    loop {
        taken.clear();
        {
            let state = shared.lock();
            let idle = |state: &mut State| state.waiting.is_empty() && !state.closed;
            let mut state = shared.changed.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
            if state.waiting.is_empty() {
                return;
            }
            std::mem::swap(&mut state.waiting, &mut taken);
            untold += std::mem::take(&mut state.refused);
        }
        let mut written = 0;
        let done = (|| {
            if torn {
                write_part(&mut out, b"\n", &mut 0)?;
                torn = false;
            }
            write_part(&mut out, &taken, &mut written)?;
            out.flush()
        })();
        if done.is_err() {
            let (through, left) = taken.split_at_checked(written).unwrap_or_default();
            torn |= through.last().is_some_and(|last| *last != b'\n');
            let lost = left.iter().filter(|byte| **byte == b'\n').count() as u64;
            untold += lost;
            shared.lock().lose(lost);
        } else if untold > 0 {
            tracing::warn!(
                lines = std::mem::take(&mut untold),
                "log lines were lost: they could not be written"
            );
        }
    }
}

/// As `write_all`, and says how far it came.
fn write_part(out: &mut impl Write, bytes: &[u8], written: &mut usize) -> io::Result<()> {
    while let Some(rest) = bytes.get(*written..).filter(|rest| !rest.is_empty()) {
        match out.write(rest) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => *written += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// A disk: each write waits for the word how many bytes fit, and says what it took.
    struct Disk {
        room: Receiver<usize>,
        took: SyncSender<String>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = self.room.recv().unwrap_or(usize::MAX).min(bytes.len());
            if room == 0 {
                self.took.send(String::new()).unwrap();
                return Err(ErrorKind::StorageFull.into());
            }
            self.took.send(String::from_utf8_lossy(&bytes[..room]).into_owned()).unwrap();
            Ok(room)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn disk() -> (LogWriter, SyncSender<usize>, Receiver<String>) {
        let (give, room) = sync_channel(100);
        let (took, taken) = sync_channel(100);
        (LogWriter::start(Disk { room, took }).unwrap(), give, taken)
    }

    fn hand_over(writer: &LogWriter, line: &str) {
        writer.lines().make_writer().write_all(line.as_bytes()).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_counted_and_the_next_line_begins_anew() {
        let (writer, room, taken) = disk();
        hand_over(&writer, "one\n");
        room.send(2).unwrap();
        assert_eq!(taken.recv().unwrap(), "on");
        room.send(0).unwrap();
        assert_eq!(taken.recv().unwrap(), "");
        hand_over(&writer, "two\n");
        room.send(100).unwrap();
        assert_eq!(taken.recv().unwrap(), "\n");
        room.send(100).unwrap();
        assert_eq!(taken.recv().unwrap(), "two\n");
        let counter = IntCounter::new("lost", "lost").unwrap();
        writer.count_lost(counter.clone());
        assert_eq!(counter.get(), 1);
    }

    #[test]
    fn who_takes_nothing_holds_nobody_up_and_what_waits_is_bounded() {
        let (writer, room, taken) = disk();
        let counter = IntCounter::new("lost", "lost").unwrap();
        writer.count_lost(counter.clone());
        let line = format!("{}\n", "x".repeat(1023));
        // One that is being written, at the most, and a megabyte that waits.
        for _ in 0..3000 {
            hand_over(&writer, &line);
        }
        assert!((950..=1976).contains(&counter.get()), "{} lines lost", counter.get());
        drop(room);
        let mut bytes = 0;
        while bytes < WAITING {
            bytes += taken.recv().unwrap().len();
        }
        // All that was handed over in time is written before the end.
        hand_over(&writer, "the end\n");
        drop(writer);
        let rest: Vec<String> = taken.iter().collect();
        assert!(rest.last().is_some_and(|last| last.ends_with("the end\n")), "{rest:?}");
    }
}
