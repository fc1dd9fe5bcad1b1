//! A client that sends what it is told, byte by byte, and keeps all that it receives.
//!
//! Invariant: no wait is without an end, and a reset connection is told from a closed one.

// Each test program uses its own part of this.
#![allow(dead_code, reason = "each test crate uses its own part of this")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

#[allow(unused_imports, reason = "each test crate uses its own part of this")]
pub use crate::support::certificates::{client_tls, client_tls_of};

/// Long enough for any step on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub const V3_0: u32 = 3 << 16;
pub const V3_2: u32 = (3 << 16) | 2;

pub fn opening(code: u32, rest: &[u8]) -> Vec<u8> {
    let length = 8 + u32::try_from(rest.len()).unwrap();
    [&length.to_be_bytes()[..], &code.to_be_bytes(), rest].concat()
}

pub fn ssl_request() -> Vec<u8> {
    opening(80_877_103, b"")
}

pub fn gss_request() -> Vec<u8> {
    opening(80_877_104, b"")
}

pub fn cancel_request(pid: u32, secret: &[u8]) -> Vec<u8> {
    opening(80_877_102, &[&pid.to_be_bytes()[..], secret].concat())
}

pub fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in parameters {
        body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
    }
    body.push(0);
    opening(version, &body)
}

pub fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = 4 + u32::try_from(body.len()).unwrap();
    [&[kind][..], &length.to_be_bytes(), body].concat()
}

pub fn query(sql: &str) -> Vec<u8> {
    frame(b'Q', format!("{sql}\0").as_bytes())
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: u8,
    pub body: Vec<u8>,
}

impl Message {
    /// A field of an ErrorResponse.
    pub fn field(&self, kind: u8) -> Option<String> {
        self.body
            .split(|byte| *byte == 0)
            .find(|field| field.first() == Some(&kind))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
    }
}

/// An ErrorResponse, as a test looks at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    pub severity: String,
    pub sqlstate: String,
    pub message: String,
    pub detail: String,
}

/// What a session begins with.
#[derive(Clone, Debug, Default)]
pub struct Begun {
    pub parameters: Vec<(String, String)>,
    pub pid: u32,
    pub secret: Vec<u8>,
    /// Body of NegotiateProtocolVersion.
    pub negotiated: Option<Vec<u8>>,
    /// Type bytes of all messages.
    pub kinds: String,
}

impl Begun {
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Stream {
    fn io(&mut self) -> &mut dyn ReadWrite {
        match self {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream,
        }
    }
}

trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

pub struct Raw {
    stream: Stream,
    /// Everything, TLS taken off.
    pub received: Vec<u8>,
    /// The connection was reset, not closed.
    pub reset: bool,
    /// Hash of the server's certificate, on TLS.
    end_point: Option<Vec<u8>>,
}

impl Raw {
    pub fn connect(to: SocketAddr) -> Self {
        Self::connect_from(Ipv4Addr::LOCALHOST, to)
    }

    /// From an address of loopback's own network.
    pub fn connect_from(from: Ipv4Addr, to: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        if from != Ipv4Addr::LOCALHOST {
            socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        }
        socket.connect(&to.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream: Stream::Plain(stream), received: Vec::new(), reset: false, end_point: None }
    }

    pub fn socket(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => stream.get_ref(),
        }
    }

    /// What is sent after the other side has closed does not matter.
    pub fn send(&mut self, bytes: &[u8]) -> &mut Self {
        let io = self.stream.io();
        let _ = io.write_all(bytes).and_then(|()| io.flush());
        self
    }

    fn fill(&mut self, buffer: &mut [u8]) -> bool {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.stream.io().read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    panic!(
                        "nothing came for {PATIENCE:?}; so far {:?}",
                        String::from_utf8_lossy(&self.received)
                    )
                }
                Err(error) => {
                    self.reset |= error.kind() == ErrorKind::ConnectionReset;
                    break;
                }
            }
        }
        self.received.extend_from_slice(&buffer[..filled]);
        filled == buffer.len()
    }

    /// A byte without a frame, as the answer to SSLRequest; `None` at the end.
    pub fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        self.fill(&mut byte).then_some(byte[0])
    }

    /// The next message; `None` at the end.
    pub fn message(&mut self) -> Option<Message> {
        let mut header = [0; 5];
        if !self.fill(&mut header) {
            return None;
        }
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        assert!((4..=1 << 24).contains(&length), "a message of {length} bytes: {header:?}");
        let mut body = vec![0; length - 4];
        assert!(self.fill(&mut body), "a message that is cut short");
        Some(Message { kind: header[0], body })
    }

    /// Reads to the end of the connection, which is orderly.
    pub fn end(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.message() {
            messages.push(message);
        }
        assert!(!self.reset, "the connection was reset; before that: {messages:?}");
        messages
    }

    /// The one FATAL error that the connection ends with.
    pub fn refused(&mut self) -> Refused {
        let messages = self.end();
        let last = messages.last().unwrap_or_else(|| panic!("closed without a word"));
        assert_eq!(last.kind, b'E', "{messages:?}");
        let field = |kind| last.field(kind).unwrap_or_default();
        Refused { severity: field(b'S'), sqlstate: field(b'C'), message: field(b'M'), detail: field(b'D') }
    }

    /// Up to ReadyForQuery, from a gateway that asks for no password.
    pub fn ready(&mut self) -> Begun {
        let mut begun = Begun::default();
        self.ready_into(&mut begun);
        begun
    }

    fn ready_into(&mut self, begun: &mut Begun) {
        loop {
            let message = self.message().expect("the session begins");
            begun.kinds.push(message.kind.into());
            match message.kind {
                b'S' => {
                    let mut parts = message.body.split(|byte| *byte == 0);
                    let mut text = || String::from_utf8(parts.next().unwrap().to_vec()).unwrap();
                    begun.parameters.push((text(), text()));
                }
                b'K' => {
                    begun.pid = u32::from_be_bytes(message.body[..4].try_into().unwrap());
                    begun.secret = message.body[4..].to_vec();
                }
                b'v' => begun.negotiated = Some(message.body),
                b'Z' => return,
                b'R' => assert_eq!(message.body, [0; 4], "AuthenticationOk"),
                b'N' => {}
                _ => panic!("{message:?} {:?}", message.field(b'M')),
            }
        }
    }

    /// Answers the request for SCRAM; `Err`: the refusal, and how many messages came before it.
    pub fn scram(&mut self, password: &str, binding: Binding) -> Result<Begun, (Refused, usize)> {
        let mut before = 0;
        let mut exchange = ScramSha256::new(password.as_bytes(), binding.of(self));
        loop {
            let message = self.message().expect("an answer");
            if message.kind == b'E' {
                let field = |kind| message.field(kind).unwrap_or_default();
                let refused = Refused {
                    severity: field(b'S'),
                    sqlstate: field(b'C'),
                    message: field(b'M'),
                    detail: field(b'D'),
                };
                assert_eq!(self.end(), [], "nothing comes after the refusal");
                return Err((refused, before));
            }
            before += 1;
            assert_eq!(message.kind, b'R', "{message:?}");
            let (code, data) = message.body.split_at(4);
            match code[3] {
                10 => {
                    let mut body = format!("{}\0", binding.mechanism()).into_bytes();
                    body.extend_from_slice(&(exchange.message().len() as u32).to_be_bytes());
                    body.extend_from_slice(exchange.message());
                    self.send(&frame(b'p', &body));
                }
                11 => {
                    exchange.update(data).unwrap();
                    let last = exchange.message().to_vec();
                    self.send(&frame(b'p', &last));
                }
                12 => exchange.finish(data).unwrap(),
                0 => {
                    let mut begun = Begun::default();
                    self.ready_into(&mut begun);
                    return Ok(begun);
                }
                other => panic!("authentication request {other}"),
            }
        }
    }

    /// Runs a simple query: the first column of each row, or the error.
    pub fn ask(&mut self, sql: &str) -> Result<Vec<String>, String> {
        self.send(&query(sql));
        self.answer()
    }

    pub fn answer(&mut self) -> Result<Vec<String>, String> {
        let mut rows = Vec::new();
        let mut error = None;
        loop {
            let message = self.message().unwrap_or_else(|| panic!("the session ended: {error:?}"));
            match message.kind {
                b'D' => {
                    let length = u32::from_be_bytes(message.body[2..6].try_into().unwrap()) as usize;
                    rows.push(String::from_utf8_lossy(&message.body[6..6 + length]).into_owned());
                }
                b'E' => error = message.field(b'C'),
                b'Z' => return error.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    /// TLS from here on; `Err`: the handshake failed.
    pub fn tls(self, config: &Arc<ClientConfig>) -> Result<Self, String> {
        let Stream::Plain(mut tcp) = self.stream else { panic!("TLS inside TLS") };
        let name = ServerName::try_from("localhost").unwrap();
        let mut connection = ClientConnection::new(Arc::clone(config), name).unwrap();
        while connection.is_handshaking() {
            connection.complete_io(&mut tcp).map_err(|error| error.to_string())?;
        }
        let certificate = connection.peer_certificates().unwrap().first().unwrap();
        let end_point = fedgate::upstream::server_end_point(certificate);
        let stream = Stream::Tls(Box::new(StreamOwned::new(connection, tcp)));
        Ok(Self { stream, end_point, received: self.received, reset: false })
    }

    /// SSLRequest, `S`, and the handshake.
    pub fn ask_for_tls(mut self, config: &Arc<ClientConfig>) -> Result<Self, String> {
        self.send(&ssl_request());
        assert_eq!(self.byte(), Some(b'S'));
        self.tls(config)
    }

    /// How TLS was agreed on.
    pub fn handshake_kind(&self) -> Option<rustls::HandshakeKind> {
        match &self.stream {
            Stream::Plain(_) => None,
            Stream::Tls(stream) => stream.conn.handshake_kind(),
        }
    }

    /// Hash of the server's certificate, on TLS.
    pub fn end_point(&self) -> Option<&[u8]> {
        self.end_point.as_deref()
    }

    pub fn alpn(&self) -> Option<Vec<u8>> {
        match &self.stream {
            Stream::Plain(_) => None,
            Stream::Tls(stream) => stream.conn.alpn_protocol().map(<[u8]>::to_vec),
        }
    }
}

/// What a client does about channel binding.
#[derive(Clone, Copy, Debug)]
pub enum Binding {
    /// It cannot.
    Unsupported,
    /// It could and was not offered it (`y`).
    Unrequested,
    /// SCRAM-SHA-256-PLUS.
    EndPoint,
    /// As `EndPoint`, to another certificate, as with a man in the middle.
    Wrong,
}

impl Binding {
    fn of(self, raw: &Raw) -> ChannelBinding {
        match self {
            Binding::Unsupported => ChannelBinding::unsupported(),
            Binding::Unrequested => ChannelBinding::unrequested(),
            Binding::EndPoint => ChannelBinding::tls_server_end_point(raw.end_point.clone().unwrap()),
            Binding::Wrong => ChannelBinding::tls_server_end_point(vec![7; 32]),
        }
    }

    fn mechanism(self) -> &'static str {
        match self {
            Binding::Unsupported | Binding::Unrequested => "SCRAM-SHA-256",
            Binding::EndPoint | Binding::Wrong => "SCRAM-SHA-256-PLUS",
        }
    }
}
