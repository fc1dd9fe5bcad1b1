//! A session at a source, handed out to one client at a time.
//!
//! Invariant: the stream is written through [`Outbound`] only, so what was not admitted cannot be sent.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{CancelTarget, Opened, Outbound, Pins, Stream};
use crate::wire::{BufferPool, ReadBuffer};

/// An open, authenticated and pinned session. It may move between clients, but not while one's
/// answer is under way.
pub struct Lease {
    stream: Stream,
    /// What the source has said and nobody has taken yet.
    pub inbound: ReadBuffer,
    pub outbound: Outbound,
    /// The source's own ParameterStatus values, as at the start of the session.
    pub parameters: Vec<(String, String)>,
    pub cancel: CancelTarget,
    /// What has to hold as long as the session lives.
    pub pins: Pins,
}

impl Lease {
    pub fn new(opened: Opened, buffers: BufferPool) -> Self {
        let mut inbound = ReadBuffer::new(buffers);
        inbound.fill_from(&opened.leftover);
        Self {
            stream: opened.stream,
            inbound,
            outbound: Outbound::default(),
            parameters: opened.parameters,
            cancel: opened.cancel,
            pins: opened.pins,
        }
    }

    /// Writes what is in [`Self::outbound`]; ready when all of it is written. Says how much was.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let mut total = 0;
        while !self.outbound.is_empty() {
            match Pin::new(&mut self.stream).poll_write(cx, self.outbound.bytes()) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => {
                    self.outbound.written(count);
                    total += count;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        // TLS keeps records of its own until they are flushed; for a socket this is nothing.
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        Poll::Ready(Ok(total))
    }

    /// Reads into [`Self::inbound`], which must have room; zero bytes mean that the source has gone.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let mut space = ReadBuf::new(self.inbound.space());
        ready!(Pin::new(&mut self.stream).poll_read(cx, &mut space))?;
        let count = space.filled().len();
        self.inbound.filled(count);
        Poll::Ready(Ok(count))
    }
}
