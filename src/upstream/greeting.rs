//! The server's messages from the StartupMessage to the first ReadyForQuery, read within bounds.
//!
//! Invariant: whatever a server sends, no more than [`MAX_MESSAGE`] bytes of one message,
//! [`MAX_BYTES`] in all and [`MAX_MESSAGES`] messages are read, and no wait outlasts the deadline.
//!
//! Decoded by hand: these are five small messages, and pgwire's decoders panic on an
//! Authentication message that is cut short.

use std::future::Future;
use std::io;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use crate::upstream::error::{Failure, ServerError, Stage};

/// Longest message, its length word included.
pub(super) const MAX_MESSAGE: usize = 64 * 1024;
/// All messages together.
pub(super) const MAX_BYTES: usize = 1024 * 1024;
pub(super) const MAX_MESSAGES: usize = 1000;
/// Of an error's text, in characters.
const MAX_ERROR_TEXT: usize = 500;
/// Type byte and length word.
const HEADER: usize = 5;

/// A connection whose session is not ready yet.
pub(super) struct Greeting<S> {
    stream: S,
    inbound: BytesMut,
    messages: usize,
    bytes: usize,
    pub(super) deadline: Instant,
    pub(super) stage: Stage,
    /// Whether the server has asked for proof.
    pub(super) asked: bool,
}

/// One message as it came.
pub(super) struct Message {
    /// With type byte and length word.
    pub(super) frame: Bytes,
}

impl Message {
    pub(super) fn kind(&self) -> u8 {
        self.frame.first().copied().unwrap_or_default()
    }

    pub(super) fn body(&self) -> Bytes {
        self.frame.slice(HEADER.min(self.frame.len())..)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Greeting<S> {
    pub(super) fn new(stream: S, deadline: Instant) -> Self {
        Self {
            stream,
            inbound: BytesMut::new(),
            messages: 0,
            bytes: 0,
            deadline,
            stage: Stage::Authentication,
            asked: false,
        }
    }

    /// One whose session is open; `inbound` was read already.
    pub(super) fn resumed(stream: S, inbound: BytesMut, deadline: Instant) -> Self {
        Self { inbound, stage: Stage::Starting, ..Self::new(stream, deadline) }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let Self { stream, deadline, stage, .. } = self;
        bounded(*deadline, *stage, async {
            stream.write_all(bytes).await?;
            stream.flush().await
        })
        .await
    }

    /// The next message that is neither a notice nor an error; an error ends the attempt.
    pub(super) async fn next(&mut self, notices: &mut Vec<Bytes>) -> Result<Message, Failure> {
        /// Notices that are kept for the client.
        const MAX_NOTICES: usize = 16;
        loop {
            let message = self.read().await?;
            match message.kind() {
                b'E' => return Err(Failure::Server(self.server_error(message))),
                b'N' if notices.len() < MAX_NOTICES => notices.push(message.frame),
                b'N' => {}
                _ => return Ok(message),
            }
        }
    }

    async fn read(&mut self) -> Result<Message, Failure> {
        while self.inbound.len() < HEADER {
            self.fill().await?;
        }
        let mut header = self.inbound.get(..HEADER).unwrap_or_default();
        let kind = header.get_u8();
        let length = usize::try_from(header.get_i32()).unwrap_or(0);
        if !matches!(kind, b'R' | b'E' | b'N' | b'S' | b'K' | b'Z' | b'v' | b'T' | b'D' | b'C') {
            return Err(Failure::Nonsense("a message of a type that has no place here"));
        }
        if length < 4 {
            return Err(Failure::Nonsense("a message shorter than its own length"));
        }
        if length > MAX_MESSAGE {
            return Err(Failure::Nonsense("a message that is too long"));
        }
        self.messages += 1;
        self.bytes += length + 1;
        if self.messages > MAX_MESSAGES || self.bytes > MAX_BYTES {
            return Err(Failure::Nonsense("more messages than a start can hold"));
        }
        while self.inbound.len() < length + 1 {
            self.fill().await?;
        }
        Ok(Message { frame: self.inbound.split_to(length + 1).freeze() })
    }

    async fn fill(&mut self) -> Result<(), Failure> {
        self.inbound.reserve(1024);
        let Self { stream, inbound, deadline, stage, .. } = self;
        match bounded(*deadline, *stage, stream.read_buf(inbound)).await? {
            0 => Err(Failure::Closed(self.stage)),
            _ => Ok(()),
        }
    }

    fn server_error(&self, message: Message) -> ServerError {
        let mut sqlstate = String::new();
        let mut text = String::new();
        let mut body = &message.body()[..];
        while let Some((&field, rest)) = body.split_first() {
            body = rest;
            if field == 0 {
                break;
            }
            let Some(value) = take_cstr(&mut body) else { break };
            match field {
                b'C' => sqlstate = one_line(value, 5),
                b'M' => text = one_line(value, MAX_ERROR_TEXT),
                _ => {}
            }
        }
        ServerError {
            sqlstate,
            message: text,
            stage: self.stage,
            asked: self.asked,
            frame: message.frame,
            relayed: false,
            about_setting: None,
        }
    }

    /// The stream, and what was read beyond the last message.
    pub(super) fn finish(self) -> (S, BytesMut) {
        let leftover = if self.inbound.is_empty() { BytesMut::new() } else { self.inbound };
        (self.stream, leftover)
    }
}

async fn bounded<T>(
    deadline: Instant,
    stage: Stage,
    io: impl Future<Output = io::Result<T>>,
) -> Result<T, Failure> {
    match timeout_at(deadline, io).await {
        Err(_) => Err(Failure::TimedOut(stage)),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Failure::Closed(stage)),
        Ok(Err(error)) => Err(Failure::Broken(stage, error)),
        Ok(Ok(value)) => Ok(value),
    }
}

/// Takes a string and the NUL that ends it.
pub(super) fn take_cstr<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = memchr::memchr(0, bytes)?;
    let (text, rest) = bytes.split_at(end);
    *bytes = rest.get(1..)?;
    Some(text)
}

/// ParameterStatus. What is not UTF-8 is shown with replacement characters.
pub(super) fn parameter_status(mut body: &[u8]) -> Option<(String, String)> {
    let name = take_cstr(&mut body)?;
    let value = take_cstr(&mut body)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    body.is_empty().then(|| (text(name), text(value)))
}

/// BackendKeyData: the process and its secret, four bytes in protocol 3.0 and up to 256 in 3.2.
pub(super) fn backend_key_data(body: &[u8]) -> Option<(i32, Bytes)> {
    let process = body.get(..4)?.try_into().ok().map(i32::from_be_bytes)?;
    // A copy: a slice would keep the whole read buffer alive as long as the session.
    let key = Bytes::copy_from_slice(body.get(4..)?);
    (4..=256).contains(&key.len()).then_some((process, key))
}

/// The first column of a DataRow.
pub(super) fn first_column(body: &[u8]) -> Option<String> {
    let columns = body.get(..2)?.try_into().ok().map(i16::from_be_bytes)?;
    let length = body.get(2..6)?.try_into().ok().map(i32::from_be_bytes)?;
    let value = body.get(6..)?.get(..usize::try_from(length).ok()?)?;
    (columns >= 1).then(|| String::from_utf8_lossy(value).into_owned())
}

/// For the log: bounded, and without what could forge a second line.
fn one_line(bytes: &[u8], limit: usize) -> String {
    String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { ' ' } else { c }).take(limit).collect()
}
