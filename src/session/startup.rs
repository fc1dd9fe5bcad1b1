//! From the first byte to a client that is known: TLS, the startup packet, authentication.
//!
//! Invariant: nothing is read past a packet before the packet is answered, so nothing that came in the
//! clear is ever taken for something that came through TLS.
//! Source: PostgreSQL 18, chapters 54.2.1, 54.2.3, 54.2.10.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::{BufMut, Bytes, BytesMut};
use rand::Rng;
use rand::distr::Alphanumeric;
use rustls_pki_types::CertificateDer;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::scram::{Exchange, ScramError};
use super::throttle::{Gate, Throttle};
use super::tls::Tls;
use crate::config::Users;
use crate::metrics::StartupFailure;
use crate::sqlstate::SqlState;
use crate::upstream::Conversation;
use crate::wire::startup::{self, CancelRequest, NEWEST, Opening, Startup, StartupError};
use crate::wire::{ClientError, backend, frame, frontend};

/// The first byte of a TLS record that opens a handshake: a client of PostgreSQL 17 or later that
/// does not ask first.
const TLS_HANDSHAKE: u8 = 0x16;
/// How often a client may ask for encryption before its startup packet, each way once.
const ENCRYPTION_REQUESTS: usize = 2;
/// Longest authentication message of a client.
const LONGEST_ANSWER: usize = 10_000;

/// Bytes of a client that is told goodbye that are still taken.
const MOST_UNREAD: usize = 64 * 1024;

/// Bytes of a client that waits that are read ahead; clients say nothing before they are let in.
const MOST_EARLY: usize = 1024;

/// A client's connection, encrypted or not.
pub enum ClientStream<S> {
    Plain(S),
    Tls(Box<TlsStream<Rewound<S>>>),
}

/// Why a connection did not become a session.
#[derive(Debug, Error)]
pub enum StartupEnd {
    /// Told to the client.
    #[error("{}", .1.message)]
    Refused(StartupFailure, ClientError),
    /// The client would not have heard it.
    #[error("{1}")]
    Broken(StartupFailure, String),
}

impl From<io::Error> for StartupEnd {
    fn from(error: io::Error) -> Self {
        StartupEnd::Broken(StartupFailure::Disconnected, error.to_string())
    }
}

fn refused(reason: StartupFailure, sqlstate: SqlState, message: impl Into<String>) -> StartupEnd {
    StartupEnd::Refused(reason, ClientError::fatal(sqlstate, message))
}

fn protocol(message: impl Into<String>) -> StartupEnd {
    refused(StartupFailure::Protocol, SqlState::PROTOCOL_VIOLATION, message)
}

/// What came of the first packets.
pub enum Greeted {
    Cancel(CancelRequest),
    Startup(Startup),
}

/// Answers requests for encryption and reads the packet behind them.
///
/// The stream stays with the caller, who has to tell it what went wrong.
pub async fn greet<S: AsyncRead + AsyncWrite + Unpin>(
    slot: &mut Option<ClientStream<S>>,
    tls: Option<&Tls>,
) -> Result<Greeted, StartupEnd> {
    let mut asked = 0;
    loop {
        let stream = slot.as_mut().ok_or_else(|| broken("no stream"))?;
        let mut length = [0; 4];
        stream.read_exact(&mut length).await?;
        if length[0] == TLS_HANDSHAKE && asked == 0 && matches!(stream, ClientStream::Plain(_)) {
            let Some(tls) = tls else {
                // Not a word of PostgreSQL was spoken yet: nothing that could be said would be understood.
                return Err(StartupEnd::Broken(
                    StartupFailure::Tls,
                    "direct TLS, and TLS is not configured".into(),
                ));
            };
            handshake(slot, tls, length.to_vec(), true).await?;
            asked = ENCRYPTION_REQUESTS;
            continue;
        }
        let size = startup::body_length(length).map_err(startup_error)?;
        let mut body = vec![0; size];
        stream.read_exact(&mut body).await?;
        match startup::decode(&body).map_err(startup_error)? {
            Opening::Cancel(request) => return Ok(Greeted::Cancel(request)),
            Opening::Startup(startup) => {
                if tls.is_some_and(|tls| tls.required) && matches!(stream, ClientStream::Plain(_)) {
                    let end = refused(
                        StartupFailure::TlsRequired,
                        SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                        "connection requires TLS",
                    );
                    return Err(end);
                }
                return Ok(Greeted::Startup(startup));
            }
            Opening::SslRequest | Opening::GssEncRequest if asked >= ENCRYPTION_REQUESTS => {
                return Err(protocol("unsupported sequence of encryption requests"));
            }
            request @ (Opening::SslRequest | Opening::GssEncRequest) => {
                asked += 1;
                let wanted =
                    matches!(request, Opening::SslRequest) && matches!(stream, ClientStream::Plain(_));
                // Bytes that came before the answer came in the clear, whoever sent them.
                if stream.has_more()? {
                    return Err(protocol("received unencrypted data after encryption request"));
                }
                match tls.filter(|_| wanted) {
                    Some(tls) => {
                        stream.write_all(b"S").await?;
                        stream.flush().await?;
                        handshake(slot, tls, Vec::new(), false).await?;
                        asked = ENCRYPTION_REQUESTS;
                    }
                    None => {
                        stream.write_all(b"N").await?;
                        stream.flush().await?;
                    }
                }
            }
        }
    }
}

fn broken(what: &str) -> StartupEnd {
    StartupEnd::Broken(StartupFailure::Internal, what.to_owned())
}

fn startup_error(error: StartupError) -> StartupEnd {
    let sqlstate = match &error {
        StartupError::Version(_) => SqlState::FEATURE_NOT_SUPPORTED,
        StartupError::Encoding => SqlState::CHARACTER_NOT_IN_REPERTOIRE,
        _ => SqlState::PROTOCOL_VIOLATION,
    };
    refused(StartupFailure::Protocol, sqlstate, error.to_string())
}

async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    slot: &mut Option<ClientStream<S>>,
    tls: &Tls,
    read: Vec<u8>,
    direct: bool,
) -> Result<(), StartupEnd> {
    let Some(ClientStream::Plain(stream)) = slot.take() else {
        return Err(broken("TLS inside TLS"));
    };
    let failed =
        |error: io::Error| StartupEnd::Broken(StartupFailure::Tls, format!("TLS handshake failed: {error}"));
    let stream = tls.acceptor().accept(Rewound { read, stream }).await.map_err(failed)?;
    // RFC 7301 as PostgreSQL uses it: without it, direct TLS could be another protocol's.
    if direct && stream.get_ref().1.alpn_protocol() != Some(b"postgresql") {
        return Err(StartupEnd::Broken(StartupFailure::Tls, "direct TLS without ALPN \"postgresql\"".into()));
    }
    *slot = Some(ClientStream::Tls(Box::new(stream)));
    Ok(())
}

/// NegotiateProtocolVersion, when the client asks for more than there is.
pub fn negotiation(startup: &Startup, out: &mut BytesMut) {
    if startup.version > NEWEST || !startup.extensions.is_empty() {
        backend::negotiate_protocol_version(startup.version.min(NEWEST), &startup.extensions, out);
    }
}

/// What proves passwords.
pub struct Passwords<'a> {
    pub users: &'a Users,
    pub throttle: &'a Throttle,
}

impl Passwords<'_> {
    /// SCRAM against the users file.
    pub async fn authenticate<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut ClientStream<S>,
        user: &str,
        address: IpAddr,
        end_point: Option<Vec<u8>>,
    ) -> Result<(), StartupEnd> {
        let known = self.users.get(user);
        // Made for everybody, so that making it tells nobody apart.
        let stand_in = self.users.stand_in(user);
        let verifier = known.cloned().unwrap_or(stand_in);
        let mut exchange = Exchange::new(verifier, known.is_none(), end_point);
        let mut out = BytesMut::new();
        backend::authentication_sasl(exchange.mechanisms(), &mut out);
        stream.write_all(&out).await?;
        stream.flush().await?;

        let first = read_answer(stream).await?;
        let (mechanism, data) =
            sasl_initial(&first).ok_or_else(|| protocol("malformed SASLInitialResponse"))?;
        let nonce: String = rand::rng().sample_iter(Alphanumeric).take(24).map(char::from).collect();
        let challenge = exchange.first(mechanism, data, &nonce).map_err(|error| scram_error(error, user))?;
        out.clear();
        backend::authentication_sasl_continue(challenge, &mut out);
        stream.write_all(&out).await?;
        stream.flush().await?;

        let last = read_answer(stream).await?;
        pass(self.throttle, address, user).await?;
        let proved = exchange.last(&last).map_err(|error| {
            if error == ScramError::Proof {
                self.throttle.failed(address, Instant::now());
            }
            scram_error(error, user)
        })?;
        out.clear();
        backend::authentication_sasl_final(proved, &mut out);
        stream.write_all(&out).await?;
        Ok(())
    }
}

/// Holds up whoever guesses; who is turned away cannot tell it from a wrong password.
async fn pass(throttle: &Throttle, address: IpAddr, user: &str) -> Result<(), StartupEnd> {
    match throttle.gate(address, Instant::now()) {
        Gate::Open => Ok(()),
        Gate::After(wait) => {
            tokio::time::sleep(wait).await;
            Ok(())
        }
        Gate::Closed => Err(refused(
            StartupFailure::Throttled,
            SqlState::INVALID_PASSWORD,
            format!("password authentication failed for user \"{user}\""),
        )),
    }
}

fn scram_error(error: ScramError, user: &str) -> StartupEnd {
    let (sqlstate, message) = match error {
        ScramError::Proof => {
            (SqlState::INVALID_PASSWORD, format!("password authentication failed for user \"{user}\""))
        }
        ScramError::Negotiation | ScramError::Binding => {
            (SqlState::INVALID_AUTHORIZATION_SPECIFICATION, error.to_string())
        }
        _ => (SqlState::PROTOCOL_VIOLATION, error.to_string()),
    };
    refused(StartupFailure::Authentication, sqlstate, message)
}

/// One `p` message; its body.
async fn read_answer<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut ClientStream<S>,
) -> Result<Bytes, StartupEnd> {
    let mut header = [0; frame::HEADER];
    stream.read_exact(&mut header).await?;
    let header = frame::header(&header, LONGEST_ANSWER)
        .ok()
        .flatten()
        .filter(|header| header.kind == b'p')
        .ok_or_else(|| protocol("expected an authentication response"))?;
    let mut body = vec![0; header.size - frame::HEADER];
    stream.read_exact(&mut body).await?;
    Ok(body.into())
}

/// Mechanism and initial response of a SASLInitialResponse body.
fn sasl_initial(body: &[u8]) -> Option<(&str, &[u8])> {
    let (mechanism, rest) = frontend::text(body).ok()?;
    let (length, data) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
    (length == data.len()).then_some(())?;
    Some((std::str::from_utf8(mechanism).ok()?, data))
}

/// The client's side of a login that the source judges.
pub struct Relayed<'a, S> {
    pub stream: &'a mut ClientStream<S>,
    pub throttle: &'a Throttle,
    pub address: IpAddr,
    pub user: &'a str,
    /// The client has answered; until the source says yes, that counts as a wrong password.
    pub answered: bool,
    /// What the client is to be told in place of what the source said.
    pub refused: Option<StartupEnd>,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Conversation for Relayed<'_, S> {
    async fn ask(&mut self, request: &[u8]) -> io::Result<Bytes> {
        self.tell(request).await?;
        self.stream.flush().await?;
        let answer = read_answer(self.stream).await;
        let passed = match answer {
            Ok(answer) if self.answered => Ok(answer),
            Ok(answer) => pass(self.throttle, self.address, self.user).await.map(|()| {
                // Ahead of the source's word, or many guesses at once would all be free.
                self.throttle.failed(self.address, Instant::now());
                self.answered = true;
                answer
            }),
            Err(end) => Err(end),
        };
        passed.map_err(|end| {
            let error = io::Error::other(end.to_string());
            self.refused = Some(end);
            error
        })
    }

    async fn tell(&mut self, message: &[u8]) -> io::Result<()> {
        let mut out = BytesMut::with_capacity(message.len() + frame::HEADER);
        out.put_u8(b'R');
        out.put_u32(message.len() as u32 + 4);
        out.put_slice(message);
        self.stream.write_all(&out).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> ClientStream<S> {
    pub fn is_tls(&self) -> bool {
        matches!(self, ClientStream::Tls(_))
    }

    /// The certificate that the client proved to hold, already verified.
    pub fn certificate(&self) -> Option<&CertificateDer<'static>> {
        match self {
            ClientStream::Plain(_) => None,
            ClientStream::Tls(stream) => stream.get_ref().1.peer_certificates()?.first(),
        }
    }

    /// Ends when the client has gone while it waits; what it says meanwhile is kept in `early`, up to a bound.
    pub async fn gone(&mut self, early: &mut BytesMut) -> StartupEnd {
        while early.len() < MOST_EARLY {
            early.reserve(256);
            // Cancelled, it has read nothing.
            match self.read_buf(early).await {
                Ok(0) => {
                    return StartupEnd::Broken(
                        StartupFailure::Disconnected,
                        "gone while it waited".to_owned(),
                    );
                }
                Ok(_) => {}
                Err(error) => return error.into(),
            }
        }
        // Who has said so much is not asked whether it is there.
        std::future::pending().await
    }

    /// Whether bytes are there that nobody asked for yet. One of them is lost, so only an error may follow.
    fn has_more(&mut self) -> io::Result<bool> {
        let mut byte = [0];
        let mut buffer = ReadBuf::new(&mut byte);
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(self).poll_read(&mut cx, &mut buffer) {
            Poll::Pending => Ok(false),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
            Poll::Ready(Ok(())) => Ok(true),
            Poll::Ready(Err(error)) => Err(error),
        }
    }

    /// Says goodbye with an error, as far as the client can hear it, and waits until it has closed.
    ///
    /// The caller bounds the wait.
    pub async fn refuse(&mut self, error: &ClientError) {
        let mut out = BytesMut::with_capacity(256);
        error.encode(&mut out);
        // It may have gone already; then nobody is there to be told.
        let _ = self.write_all(&out).await;
        let _ = self.shutdown().await;
        // Closing with bytes unread resets the connection, and the client may lose the error.
        let mut rest = [0; 1024];
        let mut left = MOST_UNREAD;
        while left > 0 {
            match self.read(&mut rest).await {
                Ok(0) | Err(_) => break,
                Ok(count) => left = left.saturating_sub(count),
            }
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for ClientStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ClientStream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            ClientStream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ClientStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            ClientStream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            ClientStream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ClientStream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            ClientStream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            ClientStream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            ClientStream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

/// A stream of which the first bytes were read already.
pub struct Rewound<S> {
    read: Vec<u8>,
    stream: S,
}

impl<S: AsyncRead + Unpin> AsyncRead for Rewound<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.read.is_empty() {
            return Pin::new(&mut this.stream).poll_read(cx, buf);
        }
        let count = this.read.len().min(buf.remaining());
        buf.put_slice(this.read.get(..count).unwrap_or_default());
        this.read.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Rewound<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
