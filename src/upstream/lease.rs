//! The session at a source that a client has now, if it has one.
//!
//! Invariant: the stream is written through [`Outbound`] only, so what was not admitted cannot be sent; without a
//! session nothing is read or written.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Backend, Outbound};
use crate::wire::{BufferPool, ReadBuffer};

/// A client's place at a source: what is under way both ways, and the session while there is one.
pub struct Lease {
    backend: Option<Box<Backend>>,
    /// What the source has said and nobody has taken yet. It stays when the session goes.
    pub inbound: ReadBuffer,
    pub outbound: Outbound,
}

impl Lease {
    /// Without a session.
    pub fn new(buffers: BufferPool) -> Self {
        Self { backend: None, inbound: ReadBuffer::new(buffers), outbound: Outbound::default() }
    }

    pub fn backend(&self) -> Option<&Backend> {
        self.backend.as_deref()
    }

    pub fn backend_mut(&mut self) -> Option<&mut Backend> {
        self.backend.as_deref_mut()
    }

    pub fn is_attached(&self) -> bool {
        self.backend.is_some()
    }

    pub fn attach(&mut self, mut backend: Box<Backend>) {
        self.inbound.fill_from(&std::mem::take(&mut backend.leftover));
        self.backend = Some(backend);
    }

    pub fn detach(&mut self) -> Option<Box<Backend>> {
        self.backend.take()
    }

    /// Writes what is in [`Self::outbound`]; ready when all of it is written. Says how much was.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let Some(backend) = &mut self.backend else { return Poll::Ready(Ok(0)) };
        let mut total = 0;
        while !self.outbound.is_empty() {
            match Pin::new(&mut backend.stream).poll_write(cx, self.outbound.bytes()) {
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
        ready!(Pin::new(&mut backend.stream).poll_flush(cx))?;
        Poll::Ready(Ok(total))
    }

    /// Reads into [`Self::inbound`], which must have room; zero bytes mean that the source has gone. Without a
    /// session nothing comes.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let Some(backend) = &mut self.backend else { return Poll::Pending };
        let mut space = ReadBuf::new(self.inbound.space());
        ready!(Pin::new(&mut backend.stream).poll_read(cx, &mut space))?;
        let count = space.filled().len();
        self.inbound.filled(count);
        Poll::Ready(Ok(count))
    }
}
