//! The relay between one client and its lease: messages of the client are judged, answers of the
//! source are passed on by walking their headers.
//!
//! Invariant: every message sent upstream has its place in the queue of expected answers, so that an
//! error of the gateway's own stands exactly where PostgreSQL would have put it, and rows are never
//! decoded. One task owns both sockets; nothing here waits anywhere but in [`Relay::poll_run`].

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::Instant;

use super::clock::Timer;
use super::drain::{self, Drain};
use super::judge::Judge;
use super::prepared::{Full, Leftover, Prepared, Remedy, Statements, Ticket};
use crate::config::Limits;
use crate::guard::{Admitted, Effect, Form, Mode, Permit, Step, judge_function_call};
use crate::ids::StatementClass;
use crate::metrics::SourceMetrics;
use crate::sqlstate::SqlState;
use crate::upstream::{CopyIn, Lease, Source};
use crate::wire::backend::{self, Status};
use crate::wire::frame::{self, HEADER};
use crate::wire::frontend::{self, Malformed, Target};
use crate::wire::{BufferPool, ClientError, ReadBuffer};

/// Bytes for one side that may wait before no more is taken from the other side.
const BACKLOG: usize = 64 * 1024;
/// Longest message of the source that is looked into; longer ones pass by their header alone.
const INSPECTED: usize = 64 * 1024;
/// Longest message that PostgreSQL itself may send (`PQ_LARGE_MESSAGE_LIMIT`).
const LARGEST: usize = 0x3fff_ffff;
/// PostgreSQL's bound on messages that carry no text or data (`PQ_SMALL_MESSAGE_LIMIT`).
const SMALL: usize = 10_000;
/// After a time-out's cancel, how long the source may take to answer.
const CANCEL_GRACE: Duration = Duration::from_secs(5);
/// Bytes of a client that is told goodbye that are still taken.
const MOST_UNREAD: usize = 1024 * 1024;
/// How long a side that is told goodbye may take to hear it.
const GOODBYE: Duration = Duration::from_secs(2);

/// Why a relay ended.
#[derive(Debug)]
pub enum End {
    /// Terminate.
    Client,
    /// The client's connection broke or closed without Terminate.
    ClientGone,
    /// The source closed the session; what it said before was passed on.
    SourceGone(&'static str),
    /// The gateway ends it and says why.
    Fatal(ClientError),
}

/// What the source still has to answer, in the order of the messages that were sent.
#[derive(Debug)]
enum Expect {
    /// A simple Query: everything up to ReadyForQuery.
    Query(Change),
    Parse(Ticket),
    ParseUnnamed(u64),
    Bind {
        unnamed: bool,
    },
    /// RowDescription or NoData; a statement's ParameterDescription comes before it.
    Describe,
    Execute(Change),
    Close(Option<Ticket>),
    CloseUnnamed(u64),
    ClosePortal(Option<Ticket>),
    /// Answers to messages of the gateway's own, which the client never sees. A Parse of one of
    /// several statements knows how many characters stood before it in the client's text.
    QuietParse(u32),
    QuietBind,
    /// The client sees RowDescription, as of a simple Query, and never NoData.
    QuietDescribe,
    /// Its number, when it is of the unnamed statement.
    QuietClose(u64),
    Sync,
    /// [`crate::upstream::REFUSED`] in a refused statement's place.
    Refused(Box<Refused>),
}

/// What a statement changes in what the session has prepared.
#[derive(Debug)]
enum Change {
    None,
    /// PREPARE, as if it were a Parse.
    Prepared(Ticket),
    /// DEALLOCATE or DISCARD ALL, and when it was sent.
    Deallocated(Box<(Effect, u64)>),
}

#[derive(Debug)]
struct Refused {
    error: ClientError,
    /// PostgreSQL would say this in a failed block too; otherwise its own 25P02 comes first.
    always: bool,
}

/// Messages of the client that are passed over up to its next Sync, after an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Skip {
    No,
    /// The source knows nothing of it: the gateway answers Sync itself.
    Local,
    /// The source skips too and waits for the Sync.
    Upstream,
}

enum Handled {
    Done,
    /// Cannot be decided before the source has answered what is under way.
    Wait,
    End(End),
}

/// What a relay is made of.
pub struct Parts<C> {
    pub client: C,
    pub client_buffers: BufferPool,
    pub lease: Lease,
    pub source: Arc<Source>,
    pub judge: Judge,
    pub limits: Limits,
    pub drain: watch::Receiver<Drain>,
    pub timeouts: Timeouts,
    /// What stands before the client's own application_name at the source.
    pub name_prefix: String,
    pub metrics: SourceMetrics,
}

/// All zero means none.
#[derive(Clone, Copy, Debug)]
pub struct Timeouts {
    pub statement: Duration,
    pub idle_in_transaction: Duration,
    /// How long a client that does not read is waited for.
    pub write: Duration,
}

pub struct Relay<C> {
    client: C,
    client_in: ReadBuffer,
    /// Bytes that the gateway writes or has edited; they go before `approved`.
    client_out: BytesMut,
    lease: Lease,
    source: Arc<Source>,
    /// How many bytes at the front of `lease.inbound` may go to the client as they lie.
    approved: usize,
    /// How many more bytes of the message under way pass unseen.
    passing: usize,
    expects: VecDeque<Expect>,
    status: Status,
    /// Extended messages were sent since the last Sync: an implicit transaction may be open.
    pipeline: bool,
    skip: Skip,
    /// A Flush was sent so that [`Handled::Wait`] ends.
    flushed: bool,
    copy_in: Option<CopyIn>,
    leftover: Leftover,
    /// An error came since the last ReadyForQuery.
    failed: bool,
    statements: Statements,
    judge: Judge,
    limits: Limits,
    drain: drain::Listener,
    name_prefix: String,
    metrics: SourceMetrics,
    timeouts: Timeouts,
    timer: Timer,
    /// Since when the answer under way, or the idle transaction, lasts.
    since: Instant,
    /// Since when the client has not taken a byte of what is there for it.
    blocked: Option<Instant>,
    /// Bytes that the client has taken.
    written: u64,
    cancelling: Option<Cancelling>,
    /// Terminate went to the source; what it answers before it closes still goes to the client.
    closing: bool,
    /// The source has said itself why it ends the session.
    farewell: bool,
}

/// The gateway's own CancelRequest. As long as it is on its way nothing more is sent: it would hit that.
struct Cancelling {
    request: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    until: Instant,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Relay<C> {
    pub fn new(parts: Parts<C>) -> Self {
        let statements = Statements::new(&parts.limits);
        Self {
            client: parts.client,
            client_in: ReadBuffer::new(parts.client_buffers),
            client_out: BytesMut::new(),
            lease: parts.lease,
            source: parts.source,
            approved: 0,
            passing: 0,
            expects: VecDeque::new(),
            status: Status::Idle,
            pipeline: false,
            skip: Skip::No,
            flushed: false,
            copy_in: None,
            leftover: Leftover::default(),
            failed: false,
            statements,
            judge: parts.judge,
            limits: parts.limits,
            drain: drain::Listener::new(parts.drain),
            name_prefix: parts.name_prefix,
            metrics: parts.metrics,
            timeouts: parts.timeouts,
            timer: Timer::default(),
            since: Instant::now(),
            blocked: None,
            written: 0,
            cancelling: None,
            closing: false,
            farewell: false,
        }
    }

    /// Relays until one side ends it; then says goodbye to both as far as they can hear it.
    pub async fn run(mut self) -> End {
        let end = std::future::poll_fn(|cx| self.poll_run(cx)).await;
        let busy = !self.expects.is_empty();
        let last_word = match &end {
            End::Fatal(error) => Some(error.clone()),
            End::SourceGone(_) if !self.farewell => Some(source_gone()),
            End::SourceGone(_) | End::Client | End::ClientGone => None,
        };
        if let Some(error) = last_word
            && self.passing == 0
        {
            self.edit(|out| error.encode(out));
        }
        let bounded = GOODBYE;
        if !matches!(end, End::ClientGone) {
            // The client may have stopped reading: then it does not hear why.
            let _ =
                tokio::time::timeout(bounded, std::future::poll_fn(|cx| self.poll_write_client(cx))).await;
            let _ = tokio::time::timeout(
                bounded,
                std::future::poll_fn(|cx| Pin::new(&mut self.client).poll_shutdown(cx)),
            )
            .await;
        }
        let source_closed = matches!(end, End::SourceGone(_)) || (self.closing && matches!(end, End::Client));
        if !source_closed {
            if busy {
                // Nobody waits for the answer any more: spare the source the work.
                let _ = tokio::time::timeout(CANCEL_GRACE, self.source.cancel(&self.lease.cancel)).await;
            }
            self.lease.outbound.terminate();
            let _ = tokio::time::timeout(bounded, std::future::poll_fn(|cx| self.lease.poll_flush(cx))).await;
        }
        if matches!(end, End::Fatal(_)) {
            let _ = tokio::time::timeout(bounded, self.hear_out()).await;
        }
        end
    }

    /// Takes what the client still sends: closing with bytes unread resets the connection, and it may
    /// lose the error.
    async fn hear_out(&mut self) {
        let mut rest = [0; 1024];
        let mut left = MOST_UNREAD;
        while left > 0 {
            let mut space = ReadBuf::new(&mut rest);
            let read = std::future::poll_fn(|cx| Pin::new(&mut self.client).poll_read(cx, &mut space)).await;
            if read.is_err() || space.filled().is_empty() {
                return;
            }
            left = left.saturating_sub(space.filled().len());
        }
    }

    fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            let mut progress = false;

            self.poll_cancelling(cx);
            // Whoever is not asked now does not wake us.
            let asks_client = self.wants_client() && !self.client_in.space().is_empty();
            if asks_client {
                match self.poll_read_client(cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(End::ClientGone),
                    Poll::Ready(Ok(_)) => progress = true,
                    Poll::Pending => {}
                }
            }
            if let Err(end) = self.take_client_messages() {
                return Poll::Ready(end);
            }
            match self.lease.poll_flush(cx) {
                // Messages may have waited for the room.
                Poll::Ready(Ok(count)) => progress |= count > 0,
                Poll::Ready(Err(_)) => return self.poll_source_gone(cx, "connection lost while writing"),
                Poll::Pending => {}
            }
            let asks_source = !self.lease.inbound.space().is_empty();
            if asks_source {
                match self.lease.poll_fill(cx) {
                    Poll::Ready(Ok(0)) => return self.poll_source_gone(cx, "closed by the source"),
                    Poll::Ready(Err(_)) => return self.poll_source_gone(cx, "connection lost"),
                    Poll::Ready(Ok(_)) => progress = true,
                    Poll::Pending => {}
                }
            }
            if let Err(end) = self.walk_answers() {
                return Poll::Ready(end);
            }
            let written = self.written;
            match self.poll_write_client(cx) {
                Poll::Ready(Ok(())) => self.blocked = None,
                Poll::Ready(Err(_)) => return Poll::Ready(End::ClientGone),
                Poll::Pending => {
                    self.blocked.get_or_insert_with(Instant::now);
                }
            }
            progress |= self.written > written;
            if let Some(end) = self.poll_clock(cx) {
                return Poll::Ready(end);
            }
            // Room that was made since: by moving what lies in a buffer to its front, or by an answer.
            progress |= !asks_client && self.wants_client() && !self.client_in.space().is_empty();
            progress |= !asks_source && !self.lease.inbound.space().is_empty();
            if !progress {
                self.client_in.release();
                self.lease.inbound.release();
                return Poll::Pending;
            }
        }
    }

    /// The source has gone: what it said before goes to the client first.
    fn poll_source_gone(&mut self, cx: &mut Context<'_>, why: &'static str) -> Poll<End> {
        loop {
            if let Err(end) = self.walk_answers() {
                return Poll::Ready(end);
            }
            if let Poll::Ready(Err(_)) = self.poll_write_client(cx) {
                return Poll::Ready(End::ClientGone);
            }
            // A source that does not read any more may have said why.
            if self.lease.inbound.space().is_empty()
                || !matches!(self.lease.poll_fill(cx), Poll::Ready(Ok(1..)))
            {
                break;
            }
        }
        if self.closing {
            return Poll::Ready(End::Client);
        }
        Poll::Ready(End::SourceGone(why))
    }

    // ---- the client's bytes -------------------------------------------------------------------

    fn wants_client(&self) -> bool {
        if self.closing {
            // A writer's last statement runs to its end, as it would without a gateway; nobody needs a
            // reader's when the reader is gone.
            return self.judge.mode() == Mode::ReadOnly;
        }
        self.lease.outbound.len() < BACKLOG
            && self.client_out.len() < BACKLOG
            && self.expects.len() < self.limits.pipeline
            && !self.flushed
    }

    fn poll_read_client(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<usize>> {
        let space = self.client_in.space();
        if space.is_empty() {
            // Full of whole messages that wait for their turn.
            return Poll::Pending;
        }
        let mut space = ReadBuf::new(space);
        ready!(Pin::new(&mut self.client).poll_read(cx, &mut space))?;
        let count = space.filled().len();
        self.client_in.filled(count);
        self.metrics.bytes_from_client.inc_by(count as u64);
        Poll::Ready(Ok(count))
    }

    fn poll_write_client(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        loop {
            if !self.client_out.is_empty() && self.approved > 0 && self.approved < 4096 {
                // One write for an edited message and the few bytes behind it.
                self.settle_approved();
            }
            let bytes = if self.client_out.is_empty() {
                self.lease.inbound.data().get(..self.approved).unwrap_or_default()
            } else {
                &self.client_out[..]
            };
            if bytes.is_empty() {
                break;
            }
            let count = ready!(Pin::new(&mut self.client).poll_write(cx, bytes))?;
            if count == 0 {
                return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
            }
            if self.client_out.is_empty() {
                self.lease.inbound.consume(count);
                self.approved -= count;
            } else {
                self.client_out.advance(count);
                if self.client_out.is_empty() {
                    self.client_out = BytesMut::new();
                }
            }
            self.blocked = None;
            self.written += count as u64;
            self.metrics.bytes_to_client.inc_by(count as u64);
        }
        Pin::new(&mut self.client).poll_flush(cx)
    }

    fn take_client_messages(&mut self) -> Result<(), End> {
        if self.closing {
            // Nothing counts behind Terminate.
            self.client_in.consume(self.client_in.data().len());
            return Ok(());
        }
        if self.cancelling.as_ref().is_some_and(|cancelling| cancelling.request.is_some()) {
            return Ok(());
        }
        while self.lease.outbound.len() < BACKLOG
            && self.client_out.len() < BACKLOG
            && self.expects.len() < self.limits.pipeline
            && !self.closing
        {
            if let Some(kind) = self.client_in.data().first()
                && !is_known(*kind)
            {
                // Before its length: nothing is known of that either.
                return Err(protocol(format!("invalid frontend message type {kind}")));
            }
            let limit = self.limits.message_bytes;
            let header = match frame::header(self.client_in.data(), limit) {
                Ok(None) => {
                    self.client_in.reserve(HEADER);
                    return Ok(());
                }
                Ok(Some(header)) => header,
                Err(error) => return Err(protocol(error.to_string())),
            };
            if !known(header.kind) {
                // At once: its length means nothing, and what it announces may never come.
                return Err(protocol(format!("invalid frontend message type {}", header.kind)));
            }
            if header.size > longest(header.kind, limit) {
                return Err(protocol(format!(
                    "invalid message length in message of type {:#04x}",
                    header.kind
                )));
            }
            if self.client_in.data().len() < header.size {
                self.client_in.reserve(header.size);
                return Ok(());
            }
            // Taken out while it is handled, so that the handlers may borrow the session.
            let client_in = self.client_in.take();
            let body = client_in.data().get(HEADER..header.size).unwrap_or_default();
            let handled = match self.handle(header.kind, body) {
                Ok(handled) => handled,
                Err(Malformed) => self.refuse_malformed(header.kind),
            };
            self.client_in = client_in;
            if self.judge.is_revoked() {
                return Err(End::Fatal(shutdown()));
            }
            match handled {
                Handled::Done => {
                    self.flushed = false;
                    self.client_in.consume(header.size);
                }
                Handled::Wait => {
                    if !self.flushed {
                        self.flushed = true;
                        self.lease.outbound.flush();
                    }
                    return Ok(());
                }
                Handled::End(end) => return Err(end),
            }
        }
        Ok(())
    }

    fn handle(&mut self, kind: u8, body: &[u8]) -> Result<Handled, Malformed> {
        if self.copy_in.is_some() && self.handle_copy_in(kind, body) {
            return Ok(Handled::Done);
        }
        match kind {
            b'X' if self.expects.is_empty() => return Ok(Handled::End(End::Client)),
            b'X' => {
                self.lease.outbound.terminate();
                self.closing = true;
                return Ok(Handled::Done);
            }
            b'S' => {
                self.handle_sync();
                return Ok(Handled::Done);
            }
            // A writer need not wait for CopyInResponse before it sends what it copies.
            b'd' | b'c' | b'f' if self.may_copy_in() => return Ok(Handled::Wait),
            b'd' | b'c' | b'f' => return Ok(Handled::Done), // stray: PostgreSQL passes over them too
            _ => {}
        }
        if self.skip != Skip::No {
            return Ok(Handled::Done);
        }
        match kind {
            b'Q' => self.handle_query(frontend::query(body)?),
            b'F' => {
                if self.may_be_passed_over() {
                    return Ok(Handled::Wait);
                }
                match judge_function_call(body) {
                    Ok(permit) => {
                        self.judge.count_admitted(StatementClass::Read);
                        self.lease.outbound.function_call(&permit);
                        self.expect(Expect::Query(Change::None));
                        self.end_pipeline();
                        Ok(Handled::Done)
                    }
                    Err(refusal) => {
                        let error = self.judge.refused(b"", &refusal);
                        Ok(self.refuse_query(OWN_NAME, error, false))
                    }
                }
            }
            b'P' => self.handle_parse(frontend::parse(body)?),
            b'B' => self.handle_bind(frontend::bind(body)?, body),
            b'D' => {
                let target = frontend::target(body)?;
                if let Target::Portal(b"") = target
                    && let Some(handled) = self.missing_unnamed_portal()
                {
                    return Ok(handled);
                }
                if matches!(target, Target::Statement(b"")) && !self.drop_leftover() {
                    return Ok(Handled::Wait);
                }
                self.lease.outbound.describe(target);
                self.expect_extended(Expect::Describe);
                Ok(Handled::Done)
            }
            b'E' => self.handle_execute(frontend::execute(body)?, body),
            b'C' => {
                let target = frontend::target(body)?;
                let closing = match target {
                    Target::Statement(b"") => {
                        Expect::CloseUnnamed(self.leftover.replaced(self.statements.segment()))
                    }
                    Target::Statement(name) => Expect::Close(self.statements.closing(name)),
                    Target::Portal(name) => Expect::ClosePortal(self.statements.closing_portal(name)),
                };
                self.lease.outbound.close(target);
                self.expect_extended(closing);
                Ok(Handled::Done)
            }
            _ => {
                self.lease.outbound.flush();
                Ok(Handled::Done)
            }
        }
    }

    fn expect(&mut self, expect: Expect) {
        if self.expects.is_empty() {
            self.since = Instant::now();
        }
        self.expects.push_back(expect);
    }

    fn expect_extended(&mut self, expect: Expect) {
        self.pipeline = true;
        self.expect(expect);
    }

    /// A Sync was sent: what comes next does not hang on what came before.
    fn end_pipeline(&mut self) {
        self.pipeline = false;
        self.statements.new_segment();
    }

    /// A Query, or what stands for one, was sent.
    fn end_query(&mut self) {
        self.pipeline = false;
        self.statements.new_query();
    }

    /// Nothing is under way, not even half a notice, no block and no implicit transaction is open.
    fn at_rest(&self) -> bool {
        self.expects.is_empty() && !self.pipeline && self.status == Status::Idle && self.passing == 0
    }

    /// Whether the source passes over what is sent now if anything before it fails.
    fn may_be_passed_over(&self) -> bool {
        let since_sync = self.expects.iter().rev().take_while(|expect| !matches!(expect, Expect::Sync));
        since_sync.into_iter().any(|expect| !matches!(expect, Expect::Query(_)))
    }

    /// Whether a statement under way may turn out to copy from the client.
    fn may_copy_in(&self) -> bool {
        self.skip == Skip::No
            && self.judge.mode() == Mode::ReadWrite
            && self.expects.iter().any(|expect| matches!(expect, Expect::Query(_) | Expect::Execute(_)))
    }

    fn handle_sync(&mut self) {
        match std::mem::replace(&mut self.skip, Skip::No) {
            Skip::Local if self.passing == 0 => {
                self.edit(|out| backend::ready_for_query(Status::Idle, out));
            }
            Skip::Local | Skip::No | Skip::Upstream => {
                self.lease.outbound.sync();
                self.expect(Expect::Sync);
                self.end_pipeline();
            }
        }
    }

    fn handle_query(&mut self, sql: &[u8]) -> Result<Handled, Malformed> {
        let verdict = self.judge.verdict(sql);
        let admitted = verdict.steps.iter().all(|step| matches!(step, Step::Admit(_)));
        if verdict.steps.is_empty() {
            self.judge.count_empty();
            self.lease.outbound.query(&Permit::empty());
            self.expect(Expect::Query(Change::None));
            self.end_pipeline();
            return Ok(Handled::Done);
        }
        if let [Step::Admit(admitted)] = &verdict.steps[..]
            && verdict.form == Form::Whole
            && self.may_go_on(admitted)
        {
            self.judge.count_admitted(admitted.class);
            let change = self.change(admitted);
            match self.renamed(admitted) {
                Some(permit) => self.lease.outbound.query(&permit),
                None => self.lease.outbound.query(&admitted.permit),
            }
            self.expect(Expect::Query(change));
            self.end_query();
            return Ok(Handled::Done);
        }
        if self.may_be_passed_over() {
            // The Sync behind what stands for this Query would end the passing over too early.
            return Ok(Handled::Wait);
        }
        if !admitted && let [Step::Refuse(refusal)] = &verdict.steps[..] {
            let always = refusal.stands_in_failed_block();
            let error = self.judge.refused(sql, refusal);
            return Ok(self.refuse_query(b"", error, always));
        }
        let several = verdict.steps.len() > 1;
        let (mut counted, mut characters) = (0, 0);
        for step in &verdict.steps {
            let admitted = match step {
                Step::Admit(admitted) => admitted,
                Step::Refuse(refusal) => {
                    let always = refusal.stands_in_failed_block();
                    let error = self.judge.refused(sql, refusal);
                    self.refuse_here(b"", error, always);
                    break;
                }
            };
            if several && self.judge.is_copy_in(admitted) {
                // The source would take the statements behind it for what is to be copied.
                let error = ClientError::error(
                    SqlState::FEATURE_NOT_SUPPORTED,
                    "COPY FROM STDIN must stand alone in its query",
                );
                self.refuse_here(b"", error, false);
                break;
            }
            if !self.may_go_on(admitted) {
                let error = self.judge.outdated();
                self.refuse_here(b"", error, false);
                break;
            }
            self.judge.count_admitted(admitted.class);
            let change = self.change(admitted);
            match self.renamed(admitted) {
                Some(permit) => self.lease.outbound.run(&permit),
                None => self.lease.outbound.run(&admitted.permit),
            }
            let between = sql.get(counted..admitted.offset).unwrap_or_default();
            characters += between.iter().filter(|byte| !matches!(byte, 0x80..=0xbf)).count();
            counted = admitted.offset;
            self.expect(Expect::QuietParse(u32::try_from(characters).unwrap_or_default()));
            self.expect(Expect::QuietBind);
            self.expect(Expect::QuietDescribe);
            self.expect(Expect::Execute(change));
        }
        // A Query leaves neither an unnamed portal nor an unnamed statement behind.
        self.lease.outbound.close(Target::Portal(b""));
        self.expect(Expect::QuietClose(0));
        self.leftover.left();
        self.lease.outbound.sync();
        self.expect(Expect::Sync);
        self.end_query();
        Ok(Handled::Done)
    }

    /// What stands for a refused statement, in its place.
    fn refuse_here(&mut self, name: &[u8], error: ClientError, always: bool) {
        self.lease.outbound.refused(name);
        self.expect(Expect::Refused(Box::new(Refused { error, always })));
    }

    /// An error in the place of a whole Query or FunctionCall; the caller knows that the source does not
    /// pass over it.
    fn refuse_query(&mut self, name: &[u8], error: ClientError, always: bool) -> Handled {
        if self.at_rest() {
            if name.is_empty() {
                self.leftover.left();
            }
            self.edit(|out| {
                error.encode(out);
                backend::ready_for_query(Status::Idle, out);
            });
            return Handled::Done;
        }
        if name.is_empty() {
            self.leftover.gone();
        }
        self.refuse_here(name, error, always);
        self.lease.outbound.sync();
        self.expect(Expect::Sync);
        self.end_query();
        Handled::Done
    }

    /// PostgreSQL's answer to a body that does not hold what its type promises; it goes on behind it.
    fn refuse_malformed(&mut self, kind: u8) -> Handled {
        let error = ClientError::error(SqlState::PROTOCOL_VIOLATION, "invalid message format");
        match kind {
            b'Q' | b'F' if self.may_be_passed_over() => Handled::Wait,
            b'Q' | b'F' => self.refuse_query(OWN_NAME, error, true),
            _ => self.refuse_extended(OWN_NAME, error, true),
        }
    }

    /// An error in the place of one extended message; everything up to Sync is passed over.
    fn refuse_extended(&mut self, name: &[u8], error: ClientError, always: bool) -> Handled {
        if self.at_rest() {
            if name.is_empty() {
                self.leftover.left();
            }
            self.skip = Skip::Local;
            self.edit(|out| error.encode(out));
        } else {
            // The name is the client's, and nothing of it reaches the source; only whether there is one
            // matters to the unnamed statement.
            self.refuse_here(if name.is_empty() { name } else { OWN_NAME }, error, always);
            self.pipeline = true;
            self.skip = Skip::Upstream;
        }
        Handled::Done
    }

    fn handle_parse(&mut self, parse: frontend::Parse<'_>) -> Result<Handled, Malformed> {
        let verdict = self.judge.verdict(parse.sql);
        let admitted = match &verdict.steps[..] {
            [] => None,
            [Step::Admit(admitted)] => Some(admitted),
            [.., Step::Refuse(refusal)] => {
                let always = refusal.stands_in_failed_block();
                let error = self.judge.refused(parse.sql, refusal);
                return Ok(self.refuse_extended(parse.name, error, always));
            }
            [..] => {
                let error = ClientError::error(
                    SqlState::SYNTAX_ERROR,
                    "cannot insert multiple commands into a prepared statement",
                );
                return Ok(self.refuse_extended(parse.name, error, true));
            }
        };
        if let Err(refusal) = self.judge.parameter_types(parse.types) {
            let error = self.judge.refused(parse.sql, &refusal);
            return Ok(self.refuse_extended(parse.name, error, false));
        }
        let generation = self.judge.generation();
        let prepared = match admitted {
            None => Prepared { permit: Permit::empty(), generation, effect: Effect::None },
            Some(admitted) if self.may_go_on(admitted) => {
                let permit = self.renamed(admitted).unwrap_or_else(|| admitted.permit.clone());
                Prepared { permit, generation, effect: admitted.effect.clone() }
            }
            Some(_) => return Ok(self.refuse_extended(parse.name, self.judge.outdated(), false)),
        };
        let permit = prepared.permit.clone();
        let ticket = match self.statements.parse(parse.name, prepared) {
            Ok(ticket) => ticket,
            Err(full) => return Ok(self.full(parse.name, full)),
        };
        match admitted {
            None => self.judge.count_empty(),
            Some(admitted) => {
                self.judge.count_admitted(admitted.class);
                // Its name may come to be with any Execute from now on.
                let _ = self.change(admitted);
            }
        }
        self.lease.outbound.parse(parse.name, &permit, parse.types);
        let expect = match ticket {
            Some(ticket) => Expect::Parse(ticket),
            None => Expect::ParseUnnamed(self.leftover.replaced(self.statements.segment())),
        };
        self.expect_extended(expect);
        Ok(Handled::Done)
    }

    /// No room for a statement or portal: what is under way may make some.
    fn full(&mut self, name: &[u8], full: Full) -> Handled {
        let error = match full {
            Full::Now if !self.expects.is_empty() => return Handled::Wait,
            Full::Now => ClientError::error(
                SqlState::CONFIGURATION_LIMIT_EXCEEDED,
                "too many prepared statements of one name in this session",
            ),
            Full::Always(error) => error,
        };
        self.refuse_extended(name, error, false)
    }

    fn handle_bind(&mut self, bind: frontend::Bind<'_>, body: &[u8]) -> Result<Handled, Malformed> {
        if bind.statement.is_empty() && !self.drop_leftover() {
            return Ok(Handled::Wait);
        }
        let unnamed = match self.statements.bind(bind.statement, bind.portal, &mut self.judge) {
            Ok(unnamed) => unnamed,
            Err(full) => return Ok(self.full(OWN_NAME, full)),
        };
        self.lease.outbound.bind(body);
        self.expect_extended(Expect::Bind { unnamed });
        Ok(Handled::Done)
    }

    fn handle_execute(&mut self, portal: &[u8], body: &[u8]) -> Result<Handled, Malformed> {
        if portal.is_empty()
            && let Some(handled) = self.missing_unnamed_portal()
        {
            return Ok(handled);
        }
        let change = match self.statements.execute(portal, &mut self.judge) {
            Ok(Some(effect @ (Effect::Deallocate { .. } | Effect::DeallocateAll))) => {
                Change::Deallocated(Box::new((effect.clone(), self.statements.now())))
            }
            Ok(_) => Change::None,
            Err(error) => return Ok(self.refuse_extended(OWN_NAME, error, false)),
        };
        self.lease.outbound.execute(body);
        self.expect_extended(Expect::Execute(change));
        Ok(Handled::Done)
    }

    /// PostgreSQL's answer when there is no unnamed portal; nothing when there is one.
    fn missing_unnamed_portal(&mut self) -> Option<Handled> {
        match self.statements.has_unnamed_portal() {
            Ok(true) => None,
            Err(_) if !self.expects.is_empty() => Some(Handled::Wait),
            Ok(false) | Err(_) => {
                let error = ClientError::error(SqlState::INVALID_CURSOR_NAME, "portal \"\" does not exist");
                Some(self.refuse_extended(OWN_NAME, error, true))
            }
        }
    }

    /// Before a message that names the unnamed statement; false: not yet.
    fn drop_leftover(&mut self) -> bool {
        let segment = self.statements.segment();
        match self.leftover.remedy(segment) {
            Remedy::None => true,
            Remedy::Wait => self.expects.is_empty(),
            Remedy::Close => {
                self.lease.outbound.close(Target::Statement(b""));
                let number = self.leftover.replaced(segment);
                self.expect_extended(Expect::QuietClose(number));
                true
            }
        }
    }

    /// Whether what a statement goes on with, a prepared statement or a cursor, may still run under the
    /// policy of now.
    fn may_go_on(&mut self, admitted: &Admitted) -> bool {
        if self.judge.resumes_writing(admitted) {
            return false;
        }
        match &admitted.effect {
            Effect::Execute { name } => {
                self.statements.still_admitted(name.as_bytes(), &mut self.judge).is_ok()
            }
            _ => true,
        }
    }

    fn change(&mut self, admitted: &Admitted) -> Change {
        match &admitted.effect {
            Effect::None | Effect::Execute { .. } | Effect::ApplicationName { .. } => Change::None,
            Effect::Prepare { name } => {
                let prepared = Prepared {
                    permit: admitted.permit.clone(),
                    generation: self.judge.generation(),
                    effect: Effect::None,
                };
                self.statements.prepare(name.as_bytes(), prepared).map_or(Change::None, Change::Prepared)
            }
            effect @ (Effect::Deallocate { .. } | Effect::DeallocateAll) => {
                Change::Deallocated(Box::new((effect.clone(), self.statements.now())))
            }
        }
    }

    fn changed(&mut self, change: Change, succeeded: bool) {
        match change {
            Change::None => {}
            Change::Prepared(ticket) => self.statements.parsed(Some(&ticket), succeeded),
            Change::Deallocated(dropped) if succeeded => self.statements.deallocated(&dropped.0, dropped.1),
            Change::Deallocated(_) => {}
        }
    }

    /// SET application_name keeps the gateway's prefix, so that the source's own views say who it is.
    fn renamed(&self, admitted: &Admitted) -> Option<Permit> {
        match &admitted.effect {
            Effect::ApplicationName { value } => Some(Permit::application_name(&self.name_prefix, value)),
            _ => None,
        }
    }

    /// Messages during COPY … FROM STDIN of a writer; false: not one of them.
    fn handle_copy_in(&mut self, kind: u8, body: &[u8]) -> bool {
        match kind {
            b'd' => {
                if let Some(copy_in) = &self.copy_in {
                    self.lease.outbound.copy_data(copy_in, body);
                }
            }
            b'c' => {
                if let Some(copy_in) = self.copy_in.take() {
                    self.lease.outbound.copy_done(copy_in);
                }
            }
            b'f' => {
                if let Some(copy_in) = self.copy_in.take() {
                    self.lease.outbound.copy_fail(copy_in, body);
                }
            }
            b'H' | b'S' => {} // the source passes over both while it copies
            _ => return false,
        }
        true
    }

    // ---- the source's answers ------------------------------------------------------------------

    /// Puts bytes of the gateway's own behind what is approved so far.
    fn edit(&mut self, write: impl FnOnce(&mut BytesMut)) {
        self.settle_approved();
        write(&mut self.client_out);
    }

    fn settle_approved(&mut self) {
        if self.approved > 0 {
            let approved = self.lease.inbound.data().get(..self.approved).unwrap_or_default();
            self.client_out.extend_from_slice(approved);
            self.lease.inbound.consume(self.approved);
            self.approved = 0;
        }
    }

    fn walk_answers(&mut self) -> Result<(), End> {
        while self.client_out.len() < BACKLOG {
            let unseen = self.lease.inbound.data().get(self.approved..).unwrap_or_default();
            if self.passing > 0 {
                let count = self.passing.min(unseen.len());
                if count == 0 {
                    return Ok(());
                }
                self.approved += count;
                self.passing -= count;
                continue;
            }
            let header = match frame::header(unseen, LARGEST) {
                Ok(None) => {
                    self.make_room(HEADER);
                    return Ok(());
                }
                Ok(Some(header)) => header,
                Err(_) => return Err(End::SourceGone("sent an invalid message length")),
            };
            match header.kind {
                // Rows and copy data: the bulk of all traffic.
                b'D' | b'd' => self.passing = header.size,
                b'A' | b'N' | b'T' | b't' | b'H' | b'V' => {
                    if header.kind == b'T' {
                        self.answered_describe();
                    }
                    self.passing = header.size;
                }
                _ if header.size > INSPECTED => {
                    if header.kind != b'E' {
                        return Err(End::SourceGone("sent an oversized message"));
                    }
                    // Too long to look into: an error all the same.
                    self.answered_error();
                    self.passing = header.size;
                }
                kind => {
                    if unseen.len() < header.size {
                        self.make_room(header.size);
                        return Ok(());
                    }
                    self.answer(kind, header.size)?;
                }
            }
        }
        Ok(())
    }

    /// Room for a message of `size` bytes behind what is approved.
    fn make_room(&mut self, size: usize) {
        self.lease.inbound.reserve(self.approved + size);
    }

    fn pass(&mut self, size: usize) {
        self.approved += size;
    }

    fn hide(&mut self, size: usize) {
        self.settle_approved();
        self.lease.inbound.consume(size);
    }

    fn answered_describe(&mut self) {
        if matches!(self.expects.front(), Some(Expect::Describe | Expect::QuietDescribe)) {
            self.expects.pop_front();
        }
    }

    /// One whole message of the source, of a kind that moves the queue.
    fn answer(&mut self, kind: u8, size: usize) -> Result<(), End> {
        let unexpected = Err(End::SourceGone("answered what nobody asked"));
        match (kind, self.expects.front()) {
            (b'S', _) => return self.parameter_changed(size),
            (b'Z', Some(Expect::Query(_) | Expect::Sync)) => return self.ready_for_query(size),
            (b'E', _) => return self.error(size),
            (b'1', Some(Expect::Parse(_) | Expect::ParseUnnamed(_)))
            | (b'2', Some(Expect::Bind { .. }))
            | (b'3', Some(Expect::Close(_) | Expect::CloseUnnamed(_) | Expect::ClosePortal(_)))
            | (b'n', Some(Expect::Describe)) => {
                self.answered(true);
                self.pass(size);
            }
            (b'1', Some(Expect::QuietParse(_)))
            | (b'2', Some(Expect::QuietBind))
            | (b'3', Some(Expect::QuietClose(_)))
            | (b'n', Some(Expect::QuietDescribe)) => {
                self.answered(true);
                self.hide(size);
            }
            (b's', Some(Expect::Execute(_))) => {
                self.expects.pop_front();
                self.since = Instant::now();
                self.pass(size);
            }
            (b'C' | b'I', Some(Expect::Execute(_))) => {
                self.answered(true);
                self.since = Instant::now();
                self.pass(size);
            }
            (b'C' | b'I', Some(Expect::Query(_))) => {
                self.since = Instant::now();
                self.pass(size);
            }
            (b'c', Some(Expect::Query(_) | Expect::Execute(_))) => self.pass(size),
            (b'G', Some(Expect::Query(_) | Expect::Execute(_))) => {
                let writes = self.judge.mode() == Mode::ReadWrite;
                let Some(copy_in) = CopyIn::begun(writes) else {
                    return Err(End::SourceGone("began a COPY FROM STDIN that nobody admitted"));
                };
                // The source passes over a Sync that it reads while it copies.
                while matches!(self.expects.get(1), Some(Expect::Sync)) {
                    self.expects.remove(1);
                }
                self.copy_in = Some(copy_in);
                self.pass(size);
            }
            (_, Some(Expect::Refused(_))) => {
                return Err(End::SourceGone("accepted the text that stands for a refused statement"));
            }
            _ => return unexpected,
        }
        Ok(())
    }

    fn ready_for_query(&mut self, size: usize) -> Result<(), End> {
        let body = self.body(size);
        let Some(status) = body.first().copied().and_then(Status::from_byte) else {
            return Err(End::SourceGone("reported an unknown transaction status"));
        };
        self.answered(!self.failed);
        self.failed = false;
        self.status = status;
        self.since = Instant::now();
        self.copy_in = None;
        let settled = self.expects.is_empty();
        if settled && self.cancelling.as_ref().is_some_and(|cancelling| cancelling.request.is_none()) {
            self.cancelling = None;
        }
        if status == Status::Idle {
            self.statements.transaction_ended(settled);
        }
        self.pass(size);
        Ok(())
    }

    /// What was expected first has its answer, or never will.
    fn answered(&mut self, succeeded: bool) {
        match self.expects.pop_front() {
            Some(Expect::Query(change) | Expect::Execute(change)) => self.changed(change, succeeded),
            Some(Expect::Parse(ticket)) => self.statements.parsed(Some(&ticket), succeeded),
            Some(Expect::ParseUnnamed(number)) => {
                self.statements.parsed(None, succeeded);
                self.leftover.answered(number, succeeded);
            }
            Some(Expect::CloseUnnamed(number) | Expect::QuietClose(number)) => {
                self.leftover.answered(number, succeeded);
            }
            Some(Expect::Bind { unnamed: true }) => self.statements.bound(succeeded),
            Some(Expect::Close(Some(ticket))) if succeeded => self.statements.closed(&ticket),
            Some(Expect::ClosePortal(Some(ticket))) if succeeded => self.statements.portal_closed(&ticket),
            _ => {}
        }
    }

    fn body(&self, size: usize) -> &[u8] {
        self.lease.inbound.data().get(self.approved + HEADER..self.approved + size).unwrap_or_default()
    }

    fn error(&mut self, size: usize) -> Result<(), End> {
        self.failed = true;
        self.copy_in = None;
        let body = self.body(size);
        let sqlstate = backend::error_field(body, b'C').unwrap_or_default();
        let is = |state: SqlState| sqlstate == state.as_str().as_bytes();
        let fatal = matches!(backend::error_field(body, b'V'), Some(b"FATAL" | b"PANIC"));
        let replaced = match self.expects.front() {
            // What stands for the refused statement names a type that does not exist. Any other error,
            // such as that of a cancel or of the source's own end, is not about it.
            Some(Expect::Refused(refused))
                if is(SqlState::UNDEFINED_OBJECT)
                    || (refused.always && is(SqlState::IN_FAILED_SQL_TRANSACTION)) =>
            {
                Some(refused.error.clone())
            }
            _ if self.cancelling.is_some() && is(SqlState::QUERY_CANCELED) => Some(statement_timeout()),
            _ => None,
        };
        self.farewell |= fatal;
        match (replaced, self.expects.front()) {
            (Some(error), _) => {
                self.hide(size);
                self.edit(|out| error.encode(out));
            }
            (None, Some(Expect::QuietParse(1..))) => self.shift_position(size),
            (None, _) => self.pass(size),
        }
        self.answered_error();
        Ok(())
    }

    /// Passes an error on; its position counts in the client's own text of several statements.
    fn shift_position(&mut self, size: usize) {
        let before = match self.expects.front() {
            Some(Expect::QuietParse(before)) => *before,
            _ => 0,
        };
        let Some(shifted) = backend::with_position_shifted(self.body(size), before) else {
            return self.pass(size);
        };
        self.hide(size);
        self.edit(|out| out.extend_from_slice(&shifted));
    }

    /// After an error in an extended message the source passes over everything up to Sync.
    fn answered_error(&mut self) {
        self.failed = true;
        self.copy_in = None;
        match self.expects.front() {
            None | Some(Expect::Query(_) | Expect::Sync) => {}
            Some(_) => {
                while !matches!(self.expects.front(), None | Some(Expect::Sync)) {
                    self.answered(false);
                }
                if self.expects.is_empty() && self.skip == Skip::No {
                    self.skip = Skip::Upstream;
                    self.pipeline = true;
                }
            }
        }
    }

    /// The pins must hold as long as the session lives; anything else passes on.
    fn parameter_changed(&mut self, size: usize) -> Result<(), End> {
        let Some((name, value)) = backend::parameter(self.body(size)) else {
            return Err(End::SourceGone("sent a parameter that cannot be read"));
        };
        // A writer may bind its own hands.
        let stricter = name == "default_transaction_read_only" && value == "on";
        if self.lease.pins.broken_by(name, value) && !stricter {
            return Err(End::SourceGone("changed a setting that the gateway pins"));
        }
        if name == "application_name" {
            let shown =
                value.strip_prefix(self.name_prefix.as_str()).unwrap_or(value).trim_start().to_owned();
            self.hide(size);
            self.edit(|out| backend::parameter_status("application_name", &shown, out));
        } else {
            self.pass(size);
        }
        Ok(())
    }

    // ---- time ----------------------------------------------------------------------------------

    fn poll_cancelling(&mut self, cx: &mut Context<'_>) {
        if let Some(cancelling) = &mut self.cancelling
            && let Some(request) = &mut cancelling.request
            && request.as_mut().poll(cx).is_ready()
        {
            cancelling.request = None;
            if self.expects.is_empty() {
                // The answer was faster.
                self.cancelling = None;
            }
        }
    }

    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Option<End> {
        loop {
            let all_said = self.client_out.is_empty() && self.approved == 0;
            let ends = match self.drain.poll(cx) {
                Drain::Not => false,
                Drain::AtRest => self.at_rest() && self.skip == Skip::No && all_said,
                Drain::Now => true,
            };
            if ends {
                return Some(End::Fatal(shutdown()));
            }
            if !self.timer.poll(cx, self.deadline()) {
                return None;
            }
            if let Some(end) = self.expired() {
                return Some(end);
            }
            self.poll_cancelling(cx);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let after = |since: Instant, limit: Duration| (!limit.is_zero()).then(|| since + limit);
        let busy = !self.expects.is_empty();
        let answer = match &self.cancelling {
            Some(cancelling) if busy => Some(cancelling.until),
            _ if busy => after(self.since, self.timeouts.statement),
            _ if self.status != Status::Idle || self.pipeline => {
                after(self.since, self.timeouts.idle_in_transaction)
            }
            _ => None,
        };
        let write = self.blocked.and_then(|since| after(since, self.timeouts.write));
        [answer, write].into_iter().flatten().min()
    }

    fn expired(&mut self) -> Option<End> {
        let now = Instant::now();
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return None;
        }
        if self
            .blocked
            .is_some_and(|since| !self.timeouts.write.is_zero() && now >= since + self.timeouts.write)
        {
            return Some(End::ClientGone);
        }
        if self.expects.is_empty() {
            let error = ClientError::fatal(
                SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                "terminating connection due to idle-in-transaction timeout",
            );
            return Some(End::Fatal(error));
        }
        if self.cancelling.is_some() {
            let error = ClientError { severity: crate::wire::Severity::Fatal, ..statement_timeout() };
            return Some(End::Fatal(error));
        }
        let source = Arc::clone(&self.source);
        let target = self.lease.cancel.clone();
        let request = Box::pin(async move {
            // The grace period ends the session when the cancel does not arrive.
            let _ = source.cancel(&target).await;
        });
        self.cancelling = Some(Cancelling { request: Some(request), until: now + CANCEL_GRACE });
        None
    }
}

/// A name for a Parse of the gateway's own, which never succeeds and so never exists.
const OWN_NAME: &[u8] = b"fedgate refused a statement";

fn known(kind: u8) -> bool {
    b"QPBDECFHSXdcf".contains(&kind)
}

fn longest(kind: u8, limit: usize) -> usize {
    match kind {
        b'D' | b'C' | b'E' | b'H' | b'S' | b'X' | b'c' => SMALL.min(limit),
        _ => limit,
    }
}

/// The messages that PostgreSQL takes from a client whose session is open.
fn is_known(kind: u8) -> bool {
    matches!(kind, b'Q' | b'F' | b'X' | b'P' | b'B' | b'C' | b'D' | b'E' | b'H' | b'S' | b'd' | b'c' | b'f')
}

fn source_gone() -> ClientError {
    ClientError::fatal(SqlState::CONNECTION_FAILURE, "the connection to the source was lost")
        .hint("Connect again; what was under way may have to be repeated.")
}

fn protocol(message: String) -> End {
    End::Fatal(ClientError::fatal(SqlState::PROTOCOL_VIOLATION, message))
}

fn statement_timeout() -> ClientError {
    ClientError::error(SqlState::QUERY_CANCELED, "canceling statement due to statement timeout")
}

fn shutdown() -> ClientError {
    ClientError::fatal(SqlState::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
}
