//! One session at a source with what is known of its state, so that it can be handed from client to client.
//!
//! Invariant: what is said here of settings, statements and parameters is what the source has said last; a session
//! of which that is not certain is closed, not handed out.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::runtime;
use tokio::time::{Instant, timeout};

use super::Slot;
use super::statements::Had;
use crate::metrics::{SourceMetrics, UpstreamCounted, UpstreamState};
use crate::upstream::{CancelTarget, Opened, Pins, Stream};
use crate::wire::backend;
use crate::wire::frame::{self, HEADER};

/// Names and values, as the source writes them.
pub type Settings = Vec<(String, String)>;

/// What may come unasked while nobody has a session, at most.
const UNASKED: usize = 16 * 1024;

/// After so long without a client its socket is looked at before it is handed out: what came a moment ago the runtime
/// may not know of. It costs a system call.
const LOOKED_AT_AFTER: Duration = Duration::from_millis(10);

/// A session at a source: authenticated and pinned.
pub struct Backend {
    pub(in crate::upstream) stream: Stream,
    /// Bytes read past the first ReadyForQuery; normally none.
    pub(in crate::upstream) leftover: BytesMut,
    /// What the source reports of itself (ParameterStatus), as of now; `application_name` stands here for its place
    /// alone, without its value.
    pub parameters: Arc<Settings>,
    pub cancel: CancelTarget,
    pub pins: Pins,
    /// NoticeResponse messages of the start, each with type byte and length word.
    pub notices: Vec<Bytes>,
    /// What clients have prepared there, where sessions are shared.
    pub had: Had,
    /// What the last client has set, `application_name` not among it.
    pub settings: Arc<Settings>,
    pub application_name: String,
    /// The startup settings; absent: it is for one client alone and is closed behind it.
    pub(super) key: Option<Arc<Settings>>,
    pub(super) slot: Option<Slot>,
    pub(super) born: Instant,
    /// Since when nobody has it.
    pub(super) rests_since: Instant,
    /// The runtime that its socket wakes.
    pub(super) home: runtime::Id,
    counted: UpstreamCounted,
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("stream", &self.stream)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl Drop for Backend {
    /// Terminate, if there is room for it: the source need not wonder then.
    fn drop(&mut self) {
        let mut context = Context::from_waker(Waker::noop());
        let mut stream = Pin::new(&mut self.stream);
        if let Poll::Ready(Ok(_)) = stream.as_mut().poll_write(&mut context, &[b'X', 0, 0, 0, 4]) {
            let _ = stream.as_mut().poll_flush(&mut context);
        }
    }
}

impl Backend {
    /// A session that one client keeps to itself; `application_name` is what it was opened with.
    pub fn own(opened: Opened, application_name: String, metrics: &SourceMetrics) -> Self {
        let counted = metrics.upstream(UpstreamState::Leased);
        let mut parameters = opened.parameters;
        if let Some(name) = parameters.iter_mut().find(|(name, _)| name == "application_name") {
            name.1.clear();
        }
        Self {
            stream: opened.stream,
            leftover: opened.leftover,
            parameters: Arc::new(parameters),
            cancel: opened.cancel,
            pins: opened.pins,
            notices: opened.notices,
            had: Had::default(),
            settings: Arc::default(),
            application_name,
            key: None,
            slot: None,
            born: Instant::now(),
            rests_since: Instant::now(),
            home: runtime::Handle::current().id(),
            counted,
        }
    }

    /// It takes up this room as long as it lives.
    pub fn within(mut self, room: Option<Slot>) -> Self {
        self.slot = room;
        self
    }

    /// Takes over what the source has said of a parameter.
    pub fn reported(&mut self, name: &str, value: &str) {
        let known = self.parameters.iter().find(|(known, _)| known == name);
        if known.is_some_and(|(_, known)| known == value) {
            return;
        }
        let parameters = Arc::make_mut(&mut self.parameters);
        match parameters.iter_mut().find(|(known, _)| known == name) {
            Some(known) => value.clone_into(&mut known.1),
            None => parameters.push((name.to_owned(), value.to_owned())),
        }
    }

    pub(super) fn leased(&mut self) {
        self.counted.now(UpstreamState::Leased);
    }

    pub(super) fn rests(&mut self, now: Instant) {
        self.rests_since = now;
        self.counted.now(UpstreamState::Idle);
    }

    /// Moves the socket to the runtime that this is called on, so that it wakes nobody on another thread.
    ///
    /// # Errors
    /// Of the system; the session is then of no use.
    pub(super) fn move_here(mut self: Box<Self>) -> io::Result<Box<Self>> {
        let here = runtime::Handle::current().id();
        if self.home == here {
            return Ok(self);
        }
        if self.stream.moves() {
            // What a socket in between is does not matter: it is never read or written.
            let stream = std::mem::replace(&mut self.stream, Stream::Other(Box::new(tokio::io::empty())));
            self.stream = stream.registered_here()?;
            self.home = here;
        }
        Ok(self)
    }

    /// Takes in what came while nobody had it, without waiting; false: it is of no use any more.
    pub(super) fn settle(&mut self) -> bool {
        let mut context = Context::from_waker(Waker::noop());
        let mut unasked = std::mem::take(&mut self.leftover);
        loop {
            let mut bytes = [0; 512];
            let mut space = ReadBuf::new(&mut bytes);
            match Pin::new(&mut self.stream).poll_read(&mut context, &mut space) {
                Poll::Pending => break,
                Poll::Ready(Ok(())) if !space.filled().is_empty() && unasked.len() < UNASKED => {
                    unasked.extend_from_slice(space.filled());
                }
                Poll::Ready(_) => return false,
            }
        }
        if self.rests_since.elapsed() >= LOOKED_AT_AFTER && self.stream.has_unread() {
            return false;
        }
        self.heard(&unasked)
    }

    /// Messages that nobody asked for: parameters and notices are, anything else is not the state of a session
    /// that can be handed out.
    fn heard(&mut self, mut unasked: &[u8]) -> bool {
        while !unasked.is_empty() {
            let Ok(Some(header)) = frame::header(unasked, UNASKED) else { return false };
            let Some(body) = unasked.get(HEADER..header.size) else { return false };
            match header.kind {
                b'S' => match backend::parameter(body) {
                    Some((name, value)) if !self.pins.broken_by(name, value) => {
                        let (name, value) = (name.to_owned(), value.to_owned());
                        self.reported(&name, &value);
                    }
                    _ => return false,
                },
                b'N' | b'A' => {}
                _ => return false,
            }
            unasked = unasked.get(header.size..).unwrap_or_default();
        }
        true
    }

    /// Asks the source whether the session still stands, by a Sync; false: it does not, or not within `at_most`.
    pub(super) async fn answers(&mut self, at_most: Duration) -> bool {
        timeout(at_most, self.sync()).await.unwrap_or(false)
    }

    async fn sync(&mut self) -> bool {
        let mut message = BytesMut::with_capacity(HEADER);
        message.put_u8(b'S');
        message.put_u32(4);
        if self.stream.write_all(&message).await.is_err() || self.stream.flush().await.is_err() {
            return false;
        }
        let mut heard = BytesMut::new();
        loop {
            let ready = heard.len().checked_sub(HEADER + 1).and_then(|at| heard.get(at..));
            if let Some([b'Z', 0, 0, 0, 5, b'I']) = ready {
                let before = heard.len() - HEADER - 1;
                return self.heard(heard.get(..before).unwrap_or_default());
            }
            match self.stream.read_buf(&mut heard).await {
                Ok(1..) if heard.len() < UNASKED => {}
                _ => return false,
            }
        }
    }
}
