//! What becomes of a shared session when its client has gone: an open transaction is rolled back, what was left is
//! discarded, an answer under way is heard out or cancelled, and the session goes back to the pool.
//!
//! Invariant: a session goes back only when PostgreSQL has said that it is idle and nothing of the client is left in
//! it; whatever fails or takes too long ends the session instead.

use super::shared::Shared;
use super::*;
use crate::upstream::pool::UNNAMED;

/// For all of it together.
const LEAVING: Duration = Duration::from_secs(5);
/// How long, and for how many bytes, an answer is heard out before it is cancelled.
const PATIENCE: Duration = Duration::from_millis(20);
const HEARD_OUT: usize = 256 * 1024;

enum Heard {
    Out,
    /// It is longer than anybody wants to hear.
    TooMuch,
    Gone,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Relay<C> {
    /// Parts from the session; `lost`: it is of no use any more.
    pub(super) async fn leave(&mut self, shared: Box<Shared>, lost: bool) {
        if !self.lease.is_attached() {
            return;
        }
        // A cancel request that is under way would hit whoever has the session next.
        let sure = shared.release();
        // What the gateway was about to ask or to set in its own name has nobody any more who takes note of it.
        let unsettled = self.expects.iter().any(|expect| matches!(expect, Expect::Own(_)))
            || self.lease.backend().is_some_and(|backend| backend.had.awaits_answers());
        let leaves_something = unsettled || shared.leaves_something();
        let pool = Arc::clone(shared.pool());
        let unnamed = shared.is_session_mode();
        drop(shared);
        let kept = sure
            && !lost
            && self.copy_in.is_none()
            && tokio::time::timeout(LEAVING, self.clean(leaves_something, unnamed)).await.unwrap_or(false);
        if let Some(backend) = self.lease.detach()
            && kept
        {
            pool.give_back(backend);
        }
    }

    async fn clean(&mut self, leaves_something: bool, unnamed: bool) -> bool {
        let answers = self
            .expects
            .iter()
            .filter(|expect| matches!(expect, Expect::Query(_) | Expect::Sync | Expect::Own(_)));
        let mut readies = answers.count();
        if self.pipeline {
            self.lease.outbound.sync();
            readies += 1;
        }
        self.lease.inbound.consume(self.approved);
        self.approved = 0;
        self.passing += std::mem::take(&mut self.dropping);
        let heard = tokio::time::timeout(PATIENCE, self.hear(&mut readies, HEARD_OUT)).await;
        match heard.unwrap_or(Heard::TooMuch) {
            Heard::Out => {}
            Heard::Gone => return false,
            Heard::TooMuch => {
                let Some(target) = self.lease.backend().map(|backend| backend.cancel.clone()) else {
                    return false;
                };
                // One that comes before the statement has begun is lost. The caller's time ends this.
                let mut pause = CANCEL_AGAIN;
                loop {
                    if self.source.cancel(&target).await.is_err() {
                        return false;
                    }
                    let heard = self.hear(&mut readies, usize::MAX);
                    match tokio::time::timeout(pause, heard).await {
                        Ok(Heard::Out) => break,
                        Ok(_) => return false,
                        Err(_) => pause *= 2,
                    }
                }
            }
        }
        if self.status != Status::Idle {
            self.lease.outbound.query(&Permit::rollback());
            if !matches!(self.hear(&mut 1, usize::MAX).await, Heard::Out) || self.status != Status::Idle {
                return false;
            }
        }
        if leaves_something {
            self.failed = false;
            self.lease.outbound.query(&Permit::discard_all());
            if !matches!(self.hear(&mut 1, usize::MAX).await, Heard::Out) || self.failed {
                return false;
            }
            let Some(backend) = self.lease.backend_mut() else { return false };
            backend.had.clear();
            backend.settings = Arc::default();
            UNNAMED.clone_into(&mut backend.application_name);
        } else if unnamed {
            // So that the source's own views do not show a client that is not there.
            self.lease.outbound.query(&Permit::settings([], [], Some(UNNAMED)));
            if !matches!(self.hear(&mut 1, usize::MAX).await, Heard::Out) {
                return false;
            }
        }
        self.status == Status::Idle && self.lease.inbound.is_empty()
    }

    /// Hears until so many answers have come to their ReadyForQuery, or there were more than `most` bytes.
    async fn hear(&mut self, readies: &mut usize, most: usize) -> Heard {
        let mut bytes = 0;
        loop {
            if !self.skim(readies) {
                return Heard::Gone;
            }
            if *readies == 0 && self.passing == 0 {
                return Heard::Out;
            }
            if bytes > most {
                return Heard::TooMuch;
            }
            let read = std::future::poll_fn(|cx| {
                // What is not written yet is written as far as it goes, whether or not anything comes.
                if let Poll::Ready(Err(error)) = self.lease.poll_flush(cx) {
                    return Poll::Ready(Err(error));
                }
                self.lease.poll_fill(cx)
            });
            match read.await {
                Ok(count @ 1..) => bytes += count,
                Ok(0) | Err(_) => return Heard::Gone,
            }
        }
    }

    /// Goes over what has come; false: it is not what a session says that can be used again.
    fn skim(&mut self, readies: &mut usize) -> bool {
        loop {
            let data = self.lease.inbound.data();
            if self.passing > 0 {
                let count = self.passing.min(data.len());
                if count == 0 {
                    return true;
                }
                self.lease.inbound.consume(count);
                self.passing -= count;
                continue;
            }
            let header = match frame::header(data, LARGEST) {
                Ok(None) => {
                    self.lease.inbound.reserve(HEADER);
                    return true;
                }
                Ok(Some(header)) => header,
                Err(_) => return false,
            };
            let looked_into = matches!(header.kind, b'Z' | b'S' | b'E') && header.size <= INSPECTED;
            if !looked_into {
                self.passing = header.size;
                continue;
            }
            if data.len() < header.size {
                self.lease.inbound.reserve(header.size);
                return true;
            }
            if !self.skimmed(header.kind, header.size, readies) {
                return false;
            }
            self.lease.inbound.consume(header.size);
        }
    }

    fn skimmed(&mut self, kind: u8, size: usize, readies: &mut usize) -> bool {
        let body = self.body(size);
        match kind {
            b'Z' => {
                let Some(status) = body.first().copied().and_then(Status::from_byte) else { return false };
                self.status = status;
                match readies.checked_sub(1) {
                    Some(left) => *readies = left,
                    None => return false,
                }
                true
            }
            b'S' => {
                let Some((name, value)) = backend::parameter(body) else { return false };
                let (name, value) = (name.to_owned(), value.to_owned());
                self.lease.backend_mut().is_some_and(|backend| {
                    if name == "application_name" {
                        backend.application_name = value;
                        return true;
                    }
                    backend.reported(&name, &value);
                    !backend.pins.broken_by(&name, &value)
                })
            }
            _ => {
                let fatal = matches!(backend::error_field(body, b'V'), Some(b"FATAL" | b"PANIC"));
                self.failed = true;
                !fatal
            }
        }
    }
}
