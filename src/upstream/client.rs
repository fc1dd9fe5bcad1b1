//! A tokio-postgres client over a session that was opened here.
//!
//! Invariant: the gateway's own queries run on sessions that were dialled, authenticated and pinned
//! exactly as the clients' are: tokio-postgres gets its start played back and never starts itself.
//!
//! Its own start would read without bounds, knows no channel binding over a stream that already
//! speaks TLS, and checks no pins.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::upstream::source::Opened;
use crate::upstream::stream::Stream;

/// A pinned session whose start is told once more.
#[derive(Debug)]
pub struct Replayed {
    stream: Stream,
    /// What tokio-postgres reads first.
    replay: Bytes,
    /// Of the StartupMessage, which must not go out: its length word as far as it came, or what is
    /// still to come of it.
    startup: Startup,
}

#[derive(Debug)]
enum Startup {
    Length { seen: u32, value: u32 },
    Rest(u32),
    Over,
}

impl Replayed {
    pub(super) fn new(opened: Opened) -> Self {
        let mut replay = BytesMut::new();
        frame(&mut replay, b'R', &0i32.to_be_bytes());
        for (name, value) in &opened.parameters {
            let body = [name.as_bytes(), &[0], value.as_bytes(), &[0]].concat();
            frame(&mut replay, b'S', &body);
        }
        frame(&mut replay, b'K', &[0; 8]);
        frame(&mut replay, b'Z', b"I");
        replay.extend_from_slice(&opened.leftover);
        Self {
            stream: opened.stream,
            replay: replay.freeze(),
            startup: Startup::Length { seen: 0, value: 0 },
        }
    }

    /// How many of `bytes` are still the StartupMessage.
    fn swallow(&mut self, bytes: &[u8]) -> usize {
        let mut taken = 0;
        for byte in bytes {
            self.startup = match self.startup {
                Startup::Length { seen, value } => {
                    let value = value << 8 | u32::from(*byte);
                    match seen {
                        3 if value > 4 => Startup::Rest(value - 4),
                        3 => Startup::Over,
                        _ => Startup::Length { seen: seen + 1, value },
                    }
                }
                Startup::Rest(1) => Startup::Over,
                Startup::Rest(left) => Startup::Rest(left - 1),
                Startup::Over => break,
            };
            taken += 1;
        }
        taken
    }
}

/// Bodies are bounded by what was read at the start, far below what a length word holds.
fn frame(out: &mut BytesMut, kind: u8, body: &[u8]) {
    out.put_u8(kind);
    out.put_u32(u32::try_from(body.len() + 4).unwrap_or(u32::MAX));
    out.put_slice(body);
}

impl AsyncRead for Replayed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.replay.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let length = self.replay.len().min(buf.remaining());
        let part = self.replay.split_to(length);
        buf.put_slice(part.chunk());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.swallow(buf) {
            0 => Pin::new(&mut self.stream).poll_write(cx, buf),
            taken => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
