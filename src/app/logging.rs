//! Where log lines go: to standard error, as text or JSON.
//!
//! Invariant: an event is one line, whatever its fields hold, so that nobody can write a line of
//! their own into the log; and a line that cannot be written is no failure of whatever it tells of.

use std::io::{self, IsTerminal, Write};

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use super::log_writer::LogWriter;
use crate::config::LogFormat;

/// Why nothing can be logged.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    #[error("RUST_LOG: {0}")]
    Filter(#[from] ParseError),
    #[error("RUST_LOG is not UTF-8 text")]
    Encoding,
    #[error("{0}")]
    Twice(#[from] TryInitError),
    #[error("no thread for the log: {0}")]
    Thread(#[from] io::Error),
}

/// Sends the events of the process to standard error from now on; once.
///
/// `RUST_LOG` counts before `level`.
pub fn start(format: LogFormat, level: LevelFilter) -> Result<(), LoggingError> {
    begin(format, level, io::stderr)
}

/// As [`start`], written by a thread of its own, which ends when what is given back goes.
pub fn start_apart(format: LogFormat, level: LevelFilter) -> Result<LogWriter, LoggingError> {
    let writer = LogWriter::start(io::stderr())?;
    begin(format, level, writer.lines())?;
    Ok(writer)
}

fn begin<W>(format: LogFormat, level: LevelFilter, writer: W) -> Result<(), LoggingError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let directives = match std::env::var("RUST_LOG") {
        Ok(directives) => directives,
        Err(std::env::VarError::NotPresent) => String::new(),
        Err(std::env::VarError::NotUnicode(_)) => return Err(LoggingError::Encoding),
    };
    let filter = EnvFilter::builder().with_default_directive(level.into()).parse(directives)?;
    let colour = io::stderr().is_terminal();
    match format {
        LogFormat::Text => text(filter, colour, writer).try_init()?,
        LogFormat::Json => json(filter, writer).try_init()?,
    }
    Ok(())
}

fn text<W>(filter: EnvFilter, colour: bool, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colour)
        .with_target(false)
        // It would be told to the same standard error, and a failure there is a panic.
        .log_internal_errors(false)
        .with_writer(OneLine { inner: writer, colour })
        .finish()
}

fn json<W>(filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // A line of JSON needs no help: JSON has no raw control characters.
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .log_internal_errors(false)
        .with_writer(writer)
        .finish()
}

/// Makes an event one line. tracing-subscriber writes each event by one call.
struct OneLine<W> {
    inner: W,
    colour: bool,
}

impl<'a, W: MakeWriter<'a>> MakeWriter<'a> for OneLine<W> {
    type Writer = OneLineWriter<W::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        OneLineWriter { inner: self.inner.make_writer(), colour: self.colour }
    }
}

struct OneLineWriter<W> {
    inner: W,
    colour: bool,
}

impl<W: Write> Write for OneLineWriter<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let line = event.strip_suffix(b"\n").unwrap_or(event);
        if line.iter().all(|byte| byte.is_ascii() && !byte.is_ascii_control()) {
            self.inner.write_all(event)?;
        } else {
            let mut escaped = escape(&String::from_utf8_lossy(line), self.colour);
            if line.len() < event.len() {
                escaped.push('\n');
            }
            self.inner.write_all(escaped.as_bytes())?;
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Without control characters; with `colour`, the sequences that colour text stay.
fn escape(line: &str, colour: bool) -> String {
    let mut escaped = String::with_capacity(line.len() + 16);
    let mut rest = line;
    while let Some(next) = rest.chars().next() {
        let length = match colour_length(rest) {
            Some(length) if colour => length,
            _ if next.is_control() => {
                escaped.extend(next.escape_default());
                rest = rest.get(next.len_utf8()..).unwrap_or_default();
                continue;
            }
            _ => next.len_utf8(),
        };
        let (kept, after) = rest.split_at_checked(length).unwrap_or((rest, ""));
        escaped.push_str(kept);
        rest = after;
    }
    escaped
}

/// How long a sequence that selects colours (ECMA-48, SGR) at the start of `text` is.
fn colour_length(text: &str) -> Option<usize> {
    let parameters = text.strip_prefix("\x1b[")?;
    let end = parameters.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    parameters.get(end..)?.starts_with('m').then_some("\x1b[".len() + end + 1)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(subscriber: impl Subscriber + Send + Sync + 'static, sink: &Sink) -> String {
        tracing::subscriber::with_default(subscriber, || {
            let user = "eve\n2026-11-23T00:00:00Z  INFO all is well\u{1b}[2K\u{9b}2K";
            tracing::warn!(user = %user, tag = ?user, "refused {user}");
            tracing::debug!("not asked for");
        });
        String::from_utf8(sink.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn a_field_cannot_start_a_line_or_send_a_terminal_commands() {
        for colour in [false, true] {
            let sink = Sink::default();
            let writer = sink.clone();
            let log = logged(text(EnvFilter::new("info"), colour, move || writer.clone()), &sink);
            assert_eq!(log.lines().count(), 1, "{log}");
            assert!(log.ends_with('\n') && !log.contains("\u{1b}[2K") && !log.contains('\u{9b}'), "{log:?}");
            assert_eq!(log.contains("\u{1b}["), colour);
        }
    }

    #[test]
    fn json_lines_are_json() {
        let sink = Sink::default();
        let writer = sink.clone();
        let log = logged(json(EnvFilter::new("info"), move || writer.clone()), &sink);
        assert_eq!(log.lines().count(), 1, "{log}");
        let line: serde_json::Value = serde_json::from_str(&log).unwrap();
        assert_eq!(line["level"], "WARN");
        assert!(line["user"].as_str().unwrap().starts_with("eve\n"));
    }
}
