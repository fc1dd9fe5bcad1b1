//! The relay between one client and its lease: messages of the client are judged, answers of the
//! source are passed on by walking their headers.
//!
//! Invariant: every message sent upstream has its place in the queue of expected answers, so that an
//! error of the gateway's own stands exactly where PostgreSQL would have put it, and rows are never
//! decoded. One task owns both sockets; nothing here waits anywhere but in [`Relay::poll_run`].

mod answers;
mod leave;
mod limits;
mod mapped;
mod requests;
mod shared;

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
use super::gate::{Doorway, Entry};
use super::judge::{Judge, Readiness};
use super::limits::Works;
use super::prepared::{Full, Leftover, Prepared, Remedy, Statements, Ticket};
use super::trail::Readings;
use crate::config::{self, Limits};
use crate::guard::{Admitted, Effect, Form, Mode, Permit, Step, judge_function_call};
use crate::ids::StatementClass;
use crate::metrics::SourceMetrics;
use crate::sqlstate::SqlState;
use crate::upstream::pool::statements::Text;
use crate::upstream::{Backend, CopyIn, Lease, Source};
use crate::wire::backend::{self, Status};
use crate::wire::frame::{self, HEADER};
use crate::wire::frontend::{self, Malformed, Target};
use crate::wire::{BufferPool, ClientError, ReadBuffer};

use mapped::{Named, NotNow};
pub use shared::SharedParts;
use shared::{Leased, Own, Shared};

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
/// After the first cancel of a statement that nobody waits for, how long until the next; twice as long each time.
const CANCEL_AGAIN: Duration = Duration::from_millis(50);
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
        /// Of which text, where clients share sessions.
        text: Option<Arc<Text>>,
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
    /// What clients share: the Parse of a text under the gateway's name for it, with its number. Without a ticket
    /// no client has asked for it, and none sees the answer.
    Mapped(Option<Ticket>, u64),
    /// The unnamed statement again, in a session that does not have it.
    QuietUnnamed,
    /// A text under the name that its client has for it, with its number.
    QuietAlias(Ticket),
    /// That name is to go.
    QuietAliasClose(Box<[u8]>),
    /// The client's Parse of a text that the session has already, sent without a name.
    Again(Ticket),
    /// The client's Parse under its own name, which SQL may have taken; with the text's number.
    UnderOwnName(Ticket, u64),
    /// A Parse under a name that is taken.
    Doomed,
    /// A Parse or Close that the source need not know of: the gateway answers it, in its place.
    Here(Box<Expect>),
    /// Of the gateway's own; the client sees nothing of it.
    Own(Own),
}

/// What a statement changes in what the session has prepared.
#[derive(Debug)]
enum Change {
    None,
    /// PREPARE, as if it were a Parse.
    Prepared(Ticket),
    /// DEALLOCATE, CLOSE or DISCARD ALL, and when it was sent.
    Dropped(Box<(Effect, u64)>),
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
    /// The verdict is worked out on another thread.
    Judging,
    /// There is no session at the source yet.
    Leasing,
    /// The source is paused.
    Paused,
    End(End),
}

/// What a relay is made of.
pub struct Parts<C> {
    pub client: C,
    /// What was read of it already.
    pub early: BytesMut,
    pub client_buffers: BufferPool,
    pub lease: Lease,
    /// The session that the client begins with; none, where it is taken when there is something to send.
    pub backend: Option<Box<Backend>>,
    /// Absent: the session is the client's own and ends with it.
    pub shared: Option<SharedParts>,
    pub source: Arc<Source>,
    pub judge: Judge,
    /// What the source takes of its clients at most.
    pub works: Box<Works>,
    pub limits: Limits,
    pub drain: watch::Receiver<Drain>,
    pub(super) doorway: Doorway,
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
    shared: Option<Box<Shared>>,
    source: Arc<Source>,
    /// How many bytes at the front of `lease.inbound` may go to the client as they lie.
    approved: usize,
    /// How many more bytes of the message under way pass unseen.
    passing: usize,
    /// How many more bytes of it are dropped.
    dropping: usize,
    /// The client has its error: nothing more of the answer under way is for it, up to ReadyForQuery.
    muted: bool,
    expects: VecDeque<Expect>,
    status: Status,
    /// Extended messages were sent since the last Sync: an implicit transaction may be open.
    pipeline: bool,
    skip: Skip,
    /// A Flush was sent so that [`Handled::Wait`] ends.
    flushed: bool,
    /// The source was asked for what it owes, since the client has more under way than it may.
    urged: bool,
    copy_in: Option<CopyIn>,
    leftover: Leftover,
    /// An error came since the last ReadyForQuery.
    failed: bool,
    /// Why a text could not be prepared under its client's name, until the Query has failed for which it was to be.
    alias_error: Option<bytes::Bytes>,
    statements: Statements,
    judge: Judge,
    works: Box<Works>,
    limits: Limits,
    drain: drain::Listener,
    doorway: Doorway,
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
    /// Absent unless admitted reads are told of.
    readings: Option<Box<Readings>>,
}

/// The gateway's own CancelRequest. As long as it is on its way nothing more is sent: it would hit that.
struct Cancelling {
    request: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    until: Instant,
    /// In the place of the source's own words when it has ended the statement.
    why: Box<ClientError>,
    /// The statement has ended before that; others of the pipeline may run.
    missed: bool,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Relay<C> {
    pub fn new(mut parts: Parts<C>) -> Self {
        let backend = parts.backend.take();
        let mut relay = Self::without_session(parts);
        match backend {
            // It was taken to have what the client is told at its start.
            Some(backend) if relay.is_mapped() => relay.returned(backend),
            Some(backend) => relay.attach(backend),
            None => {}
        }
        relay
    }

    fn without_session(parts: Parts<C>) -> Self {
        let statements = Statements::new(&parts.limits);
        let mut client_in = ReadBuffer::new(parts.client_buffers);
        client_in.fill_from(&parts.early);
        let readings = parts.judge.voice_for_reads().map(|voice| Box::new(Readings::new(voice.clone())));
        Self {
            client: parts.client,
            client_in,
            client_out: BytesMut::new(),
            lease: parts.lease,
            shared: parts.shared.map(|parts| Box::new(Shared::new(parts))),
            source: parts.source,
            approved: 0,
            passing: 0,
            dropping: 0,
            muted: false,
            expects: VecDeque::new(),
            status: Status::Idle,
            pipeline: false,
            skip: Skip::No,
            flushed: false,
            urged: false,
            copy_in: None,
            leftover: Leftover::default(),
            failed: false,
            alias_error: None,
            statements,
            judge: parts.judge,
            works: parts.works,
            limits: parts.limits,
            drain: drain::Listener::new(parts.drain),
            doorway: parts.doorway,
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
            readings,
        }
    }

    /// Relays until one side ends it; then says goodbye to both as far as they can hear it.
    pub async fn run(mut self: Box<Self>) -> End {
        let end = std::future::poll_fn(|cx| self.poll_run(cx)).await;
        // Apart, so that no session holds the room for its end as long as it lasts.
        Box::pin(self.say_goodbye(end)).await
    }

    async fn say_goodbye(&mut self, end: End) -> End {
        let busy = !self.expects.is_empty();
        let last_word = match &end {
            // One last word: the source's own clock may have been as fast.
            _ if self.farewell => None,
            End::Fatal(error) => Some(error.clone()),
            End::SourceGone(_) => Some(source_gone()),
            End::Client | End::ClientGone => None,
        };
        let bounded = GOODBYE;
        if !matches!(end, End::ClientGone) {
            // The client may have stopped reading: then it does not hear why.
            let _ = tokio::time::timeout(bounded, self.speak(&end, last_word)).await;
            let _ = tokio::time::timeout(
                bounded,
                std::future::poll_fn(|cx| Pin::new(&mut self.client).poll_shutdown(cx)),
            )
            .await;
        }
        let lost = matches!(end, End::SourceGone(_));
        if lost
            && busy
            && !self.farewell
            && let Some(backend) = self.lease.backend()
        {
            // The network may have lost it, and a server at work does not notice before it has something to say.
            let _ = tokio::time::timeout(CANCEL_GRACE, self.source.cancel(&backend.cancel)).await;
        }
        match self.shared.take() {
            Some(shared) => self.leave(shared, lost).await,
            None if lost || (self.closing && matches!(end, End::Client)) => {}
            None => self.end_session(busy).await,
        }
        if matches!(end, End::Fatal(_) | End::SourceGone(_)) {
            let _ = tokio::time::timeout(bounded, self.hear_out()).await;
        }
        end
    }

    /// Gives the client what is there for it, and the last word.
    async fn speak(&mut self, end: &End, last_word: Option<ClientError>) {
        if let End::Fatal(_) = end {
            std::future::poll_fn(|cx| self.poll_rest(cx)).await;
        }
        if let Some(error) = last_word
            && self.passing == 0
        {
            self.edit(|out| error.encode(out));
        }
        let _ = std::future::poll_fn(|cx| self.poll_write_client(cx)).await;
    }

    /// The rest of the message that is on its way to the client, which hears nothing else amid one: in an answer of many
    /// rows there nearly always is one.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let unseen = self.lease.inbound.data().len().saturating_sub(self.approved);
            let count = self.passing.min(unseen);
            self.approved += count;
            self.passing -= count;
            if self.passing == 0 {
                return Poll::Ready(());
            }
            let written = self.poll_write_client(cx);
            if self.lease.inbound.space().is_empty() && written.is_pending() {
                return Poll::Pending;
            }
            if matches!(written, Poll::Ready(Err(_))) || !matches!(ready!(self.lease.poll_fill(cx)), Ok(1..))
            {
                return Poll::Ready(());
            }
        }
    }

    /// Says goodbye to a source whose session is this client's own.
    async fn end_session(&mut self, busy: bool) {
        self.lease.outbound.terminate();
        if busy {
            let _ = tokio::time::timeout(CANCEL_GRACE, self.stop_source()).await;
        } else {
            let flush = std::future::poll_fn(|cx| self.lease.poll_flush(cx));
            let _ = tokio::time::timeout(GOODBYE, flush).await;
        }
    }

    /// Nobody waits for the answer any more: the source is spared the work. Ends when it has closed; the caller bounds it.
    ///
    /// A cancel that arrives before the statement has begun is lost, and each ends only one of several statements: then
    /// the source would go on for nobody, so it is told again until it has read Terminate.
    async fn stop_source(&mut self) {
        let mut pause = CANCEL_AGAIN;
        loop {
            let Some(backend) = self.lease.backend() else { return };
            if self.source.cancel(&backend.cancel).await.is_err() {
                // It hears nobody.
                return;
            }
            let closed = std::future::poll_fn(|cx| self.poll_source_closed(cx));
            if tokio::time::timeout(pause, closed).await.is_ok() {
                return;
            }
            pause *= 2;
        }
    }

    /// Throws away what the source still says: as long as it waits for room it hears no cancel.
    fn poll_source_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Poll::Ready(Err(_)) = self.lease.poll_flush(cx) {
            return Poll::Ready(());
        }
        loop {
            let unread = self.lease.inbound.data().len();
            self.lease.inbound.consume(unread);
            if let Ok(0) | Err(_) = ready!(self.lease.poll_fill(cx)) {
                return Poll::Ready(());
            }
        }
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
            // Also when nothing more may be sent on: its buffer has an end, and that it has gone is seen by reading alone.
            // Whoever is not asked now does not wake us.
            let asks_client = self.hears_client() && !self.client_in.space().is_empty();
            if asks_client {
                match self.poll_read_client(cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(End::ClientGone),
                    Poll::Ready(Ok(_)) => progress = true,
                    Poll::Pending => {}
                }
            }
            progress |= self.judge.poll_long(cx);
            loop {
                if let Err(end) = self.take_client_messages() {
                    return Poll::Ready(end);
                }
                // The message that waits for a session goes before that could be given back again.
                if !self.poll_lease(cx) {
                    break;
                }
                progress = true;
            }
            progress |= self.works.poll(cx);
            match self.lease.poll_flush(cx) {
                // Messages may have waited for the room.
                Poll::Ready(Ok(count)) => progress |= count > 0,
                Poll::Ready(Err(_)) => return self.poll_source_gone(cx, "connection lost while writing"),
                Poll::Pending => {}
            }
            let asks_source = self.lease.is_attached() && !self.lease.inbound.space().is_empty();
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
            if self.at_rest() {
                self.doorway.leave();
            }
            // Before the client has taken the answer: another one may wait for the session.
            progress |= self.poll_part(cx);
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
            progress |= self.doorway.poll(cx);
            // Room that was made since: by moving what lies in a buffer to its front, or by an answer.
            progress |= !asks_client && self.hears_client() && !self.client_in.space().is_empty();
            progress |= !asks_source && self.lease.is_attached() && !self.lease.inbound.space().is_empty();
            if self.closing && self.shared.is_some() && self.at_rest() && self.all_said() {
                return Poll::Ready(End::Client);
            }
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

    /// Whether the client has been given all that there is for it.
    fn all_said(&self) -> bool {
        self.client_out.is_empty() && self.approved == 0
    }

    // ---- the client's bytes -------------------------------------------------------------------

    fn hears_client(&self) -> bool {
        // A writer's last statement runs to its end, as it would without a gateway; nobody needs a
        // reader's when the reader is gone.
        !self.closing || self.judge.mode() == Mode::ReadOnly
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

    // ---- time ----------------------------------------------------------------------------------

    fn poll_cancelling(&mut self, cx: &mut Context<'_>) {
        if let Some(cancelling) = &mut self.cancelling
            && let Some(request) = &mut cancelling.request
            && request.as_mut().poll(cx).is_ready()
        {
            cancelling.request = None;
            if self.expects.is_empty() || cancelling.missed {
                // The answer was faster.
                self.cancelling = None;
            }
        }
    }

    fn poll_clock(&mut self, cx: &mut Context<'_>) -> Option<End> {
        loop {
            let all_said = self.all_said();
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
        if let Some(cancelling) = &self.cancelling {
            let error = ClientError { severity: crate::wire::Severity::Fatal, ..(*cancelling.why).clone() };
            return Some(End::Fatal(error));
        }
        self.cancel(statement_timeout());
        None
    }
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
