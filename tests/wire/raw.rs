//! A client that speaks the protocol message by message, and the notation of its messages.
//!
//! Invariant: nothing is sent that the notation does not say, and no wait is without an end.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use bytes::BufMut;
use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use postgres_protocol::message::frontend;
use sha2::Digest;

/// How long one answer may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Longer values are compared and shown by length and digest.
const SHOWN: usize = 200;

/// One message of a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub kind: u8,
    pub body: Vec<u8>,
}

pub struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    pub pid: u32,
    pub secret: Vec<u8>,
}

/// Whom to connect as.
#[derive(Clone, Debug)]
pub struct Whom {
    pub address: SocketAddr,
    pub user: String,
    pub password: String,
    pub database: String,
    pub parameters: Vec<(String, String)>,
}

impl Whom {
    pub fn new(address: SocketAddr, user: &str, password: &str, database: &str) -> Self {
        Self {
            address,
            user: user.to_owned(),
            password: password.to_owned(),
            database: database.to_owned(),
            parameters: Vec::new(),
        }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.parameters.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Connects; what came from AuthenticationOk to ReadyForQuery.
    pub fn connect(&self) -> (Raw, Vec<Message>) {
        self.try_connect().unwrap_or_else(|error| panic!("no session: {}", error.full()))
    }

    /// As `connect`, with the server's error when it does not let us in.
    pub fn try_connect(&self) -> Result<(Raw, Vec<Message>), Message> {
        let stream = TcpStream::connect(self.address).expect("the server accepts");
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let mut raw = Raw { stream, buffer: Vec::new(), start: 0, pid: 0, secret: Vec::new() };
        let mut parameters = vec![("user", self.user.as_str()), ("database", self.database.as_str())];
        parameters.extend(self.parameters.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let mut startup = bytes::BytesMut::new();
        frontend::startup_message(parameters, &mut startup).unwrap();
        raw.write(&startup);
        let mut greeting = Vec::new();
        let mut scram = None;
        loop {
            let message = raw.read().expect("the server lets us in");
            match (message.kind, message.body.get(..4)) {
                (b'R', Some([0, 0, 0, 10])) => {
                    let exchange = ScramSha256::new(self.password.as_bytes(), ChannelBinding::unsupported());
                    let mut out = bytes::BytesMut::new();
                    frontend::sasl_initial_response("SCRAM-SHA-256", exchange.message(), &mut out).unwrap();
                    raw.write(&out);
                    scram = Some(exchange);
                }
                (b'R', Some([0, 0, 0, 11])) => {
                    let exchange = scram.as_mut().unwrap();
                    exchange.update(&message.body[4..]).unwrap();
                    let mut out = bytes::BytesMut::new();
                    frontend::sasl_response(exchange.message(), &mut out).unwrap();
                    raw.write(&out);
                }
                (b'R', Some([0, 0, 0, 12])) => {}
                (b'K', _) => {
                    raw.pid = u32::from_be_bytes(message.body[..4].try_into().unwrap());
                    raw.secret = message.body[4..].to_vec();
                }
                (b'E', _) => return Err(message),
                (b'Z', _) => {
                    greeting.push(message);
                    return Ok((raw, greeting));
                }
                _ => greeting.push(message),
            }
        }
    }
}

impl Raw {
    pub fn write(&mut self, bytes: &[u8]) {
        // A server that has closed says so when it is read.
        let _ = self.stream.write_all(bytes);
    }

    /// Another handle of the same socket, for a thread that writes.
    pub fn writer(&self) -> TcpStream {
        self.stream.try_clone().unwrap()
    }

    pub fn shut_down(&self, how: Shutdown) {
        let _ = self.stream.shutdown(how);
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// The next message; `None` when the server has closed. Panics when nothing comes.
    pub fn read(&mut self) -> Option<Message> {
        self.try_read(PATIENCE).unwrap_or_else(|| panic!("the server does not answer within {PATIENCE:?}"))
    }

    /// As `read`; the outer `None` when nothing came in time.
    pub fn try_read(&mut self, patience: Duration) -> Option<Option<Message>> {
        let deadline = Instant::now() + patience;
        loop {
            let unread = &self.buffer[self.start..];
            if let Some((&[kind, a, b, c, d], rest)) = unread.split_first_chunk::<5>() {
                let size = u32::from_be_bytes([a, b, c, d]) as usize - 4;
                if rest.len() >= size {
                    let body = rest[..size].to_vec();
                    self.start += size + 5;
                    return Some(Some(Message { kind, body }));
                }
            }
            self.buffer.drain(..self.start);
            self.start = 0;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.stream.set_read_timeout(Some(left)).unwrap();
            let held = self.buffer.len();
            self.buffer.resize(held + 64 * 1024, 0);
            let read = self.stream.read(&mut self.buffer[held..]);
            self.buffer.truncate(held + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Some(None),
                Ok(_) => {}
                Err(error)
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                    ) => {}
                Err(_) => return Some(None),
            }
        }
    }

    /// Messages up to and with the `count`th of one of `kinds`, or to the end of the connection.
    pub fn read_until(&mut self, kinds: &[u8], count: usize) -> Vec<Message> {
        let mut seen = 0;
        let mut messages = Vec::new();
        while seen < count {
            let Some(message) = self.try_read(PATIENCE).unwrap_or_else(|| Some(Message::hangs())) else {
                break;
            };
            if message == Message::hangs() {
                messages.push(message);
                break;
            }
            seen += usize::from(kinds.contains(&message.kind));
            messages.push(message);
        }
        messages
    }

    /// Sends what the notation says and reads up to ReadyForQuery.
    pub fn ask(&mut self, notation: &str) -> Vec<Message> {
        self.write(&message(notation));
        self.read_until(b"Z", 1)
    }

    pub fn query(&mut self, sql: &str) -> Vec<String> {
        let mut body = sql.as_bytes().to_vec();
        body.push(0);
        self.write(&frame(b'Q', &body));
        self.read_until(b"Z", 1).iter().map(Message::brief).collect()
    }
}

impl Message {
    /// Stands for an answer that does not come.
    pub fn hangs() -> Self {
        Self { kind: b'.', body: b"hangs".to_vec() }
    }

    fn fields(&self) -> Vec<(u8, String)> {
        self.body
            .split(|&byte| byte == 0)
            .filter_map(|field| Some((*field.first()?, String::from_utf8_lossy(&field[1..]).into_owned())))
            .collect()
    }

    pub fn field(&self, wanted: u8) -> String {
        let found = self.fields().into_iter().find(|(kind, _)| *kind == wanted);
        found.map(|(_, value)| value).unwrap_or_default()
    }

    /// Error and notice: whether it ends the session, and its SQLSTATE.
    fn state(&self) -> String {
        let severity = self.field(b'V');
        let severity = if matches!(severity.as_str(), "FATAL" | "PANIC") { "FATAL " } else { "" };
        format!("{severity}{}", self.field(b'C'))
    }

    /// As `gateway:` of a case writes it.
    pub fn brief(&self) -> String {
        let kind = self.kind as char;
        let rest = match self.kind {
            b'T' => columns(&self.body).iter().map(|column| column.0.clone()).collect::<Vec<_>>().join(" "),
            b'E' | b'N' => self.state(),
            _ => return self.full(),
        };
        format!("{kind} {rest}").trim_end().to_owned()
    }

    /// All that is compared.
    pub fn full(&self) -> String {
        let kind = self.kind as char;
        let body = &self.body;
        let rest = match self.kind {
            b'T' => columns(body).iter().map(|(name, rest)| format!("{name}:{rest}")).collect(),
            b'D' => values(body),
            b'C' | b'Z' => vec![plain(body)],
            b'S' => vec![plain(body).replacen('\0', "=", 1)],
            b'E' | b'N' => {
                let state = self.state();
                // What cannot be read is told in other words.
                let message = match state.as_str() {
                    "42601" | "22021" | "08P01" => String::new(),
                    _ => self.field(b'M'),
                };
                vec![format!("{state} {message}")]
            }
            b'K' => vec![format!("{} bytes", body.len())],
            _ => vec![shown(body)],
        };
        format!("{kind} {}", rest.join(" ")).trim_end().to_owned()
    }
}

fn plain(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(bytes)).into_owned()
}

fn shown(bytes: &[u8]) -> String {
    if bytes.len() > SHOWN {
        let digest: String = sha2::Sha256::digest(bytes).iter().take(6).map(|b| format!("{b:02x}")).collect();
        return format!("{} bytes {digest}", bytes.len());
    }
    bytes.escape_ascii().to_string()
}

fn columns(mut body: &[u8]) -> Vec<(String, String)> {
    let mut columns = Vec::new();
    body = &body[2..];
    while let Some(end) = body.iter().position(|&byte| byte == 0) {
        let name = String::from_utf8_lossy(&body[..end]).into_owned();
        columns.push((name, body[end + 1..end + 19].iter().map(|b| format!("{b:02x}")).collect()));
        body = &body[end + 19..];
    }
    columns
}

fn values(mut body: &[u8]) -> Vec<String> {
    let mut values = Vec::new();
    body = &body[2..];
    while let Some((length, rest)) = body.split_first_chunk::<4>() {
        let length = i32::from_be_bytes(*length);
        if length < 0 {
            values.push("null".to_owned());
            body = rest;
        } else {
            let (value, rest) = rest.split_at(length as usize);
            values.push(shown(value));
            body = rest;
        }
    }
    values
}

pub fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.put_u32(body.len() as u32 + 4);
    out.put_slice(body);
    out
}

/// A word of the notation.
#[derive(Clone, Debug, PartialEq)]
enum Word {
    Text(Vec<u8>),
    List(Vec<Option<Vec<u8>>>),
}

/// The bytes of one message:
///
/// `Q "sql"`, `P name "sql" [oids]`, `B portal statement [parameters] [their formats] [result formats]`,
/// `D S name`, `D P name`, `E portal limit`, `C S name`, `C P name`, `H`, `S`, `X`, `F oid [arguments]`,
/// `d "data"`, `c`, `f "why"`, `raw "bytes"`, and `frame K "body"` for a body that the others cannot make.
/// Names may be bare; strings know `\n \t \\ \" \0 \xNN`; a value is a string, or null.
pub fn message(notation: &str) -> Vec<u8> {
    let words = words(notation);
    let text = |at: usize| match words.get(at) {
        Some(Word::Text(text)) => text.clone(),
        None => Vec::new(),
        Some(Word::List(_)) => panic!("a text is wanted as word {at} of {notation}"),
    };
    let list = |at: usize| match words.get(at) {
        Some(Word::List(list)) => list.clone(),
        None => Vec::new(),
        Some(Word::Text(_)) => panic!("a list is wanted as word {at} of {notation}"),
    };
    let number = |text: &[u8]| -> i64 { String::from_utf8_lossy(text).parse().expect(notation) };
    let numbers =
        |at: usize| -> Vec<i64> { list(at).iter().map(|item| number(item.as_ref().unwrap())).collect() };
    let mut body = Vec::new();
    let string = |body: &mut Vec<u8>, text: &[u8]| {
        body.put_slice(text);
        body.put_u8(0);
    };
    let value = |body: &mut Vec<u8>, value: &Option<Vec<u8>>| match value {
        None => body.put_i32(-1),
        Some(value) => {
            body.put_u32(value.len() as u32);
            body.put_slice(value);
        }
    };
    let kind = text(0);
    match kind.as_slice() {
        b"Q" | b"f" => string(&mut body, &text(1)),
        b"d" => body = text(1),
        b"P" => {
            string(&mut body, &text(1));
            string(&mut body, &text(2));
            body.put_u16(numbers(3).len() as u16);
            numbers(3).iter().for_each(|oid| body.put_u32(*oid as u32));
        }
        b"B" => {
            string(&mut body, &text(1));
            string(&mut body, &text(2));
            body.put_u16(numbers(4).len() as u16);
            numbers(4).iter().for_each(|format| body.put_u16(*format as u16));
            body.put_u16(list(3).len() as u16);
            list(3).iter().for_each(|item| value(&mut body, item));
            body.put_u16(numbers(5).len() as u16);
            numbers(5).iter().for_each(|format| body.put_u16(*format as u16));
        }
        b"D" | b"C" => {
            body.put_slice(&text(1));
            string(&mut body, &text(2));
        }
        b"E" => {
            string(&mut body, &text(1));
            body.put_i32(if words.len() > 2 { number(&text(2)) as i32 } else { 0 });
        }
        b"H" | b"S" | b"X" | b"c" => {}
        b"F" => {
            body.put_u32(number(&text(1)) as u32);
            body.put_u16(0);
            body.put_u16(list(2).len() as u16);
            list(2).iter().for_each(|item| value(&mut body, item));
            body.put_u16(0);
        }
        b"raw" => return text(1),
        b"frame" => return frame(text(1)[0], &text(2)),
        _ => panic!("no such message: {notation}"),
    }
    frame(kind[0], &body)
}

fn words(notation: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut rest = notation.trim();
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let mut items = Vec::new();
            let mut inner = inner.trim_start_matches([' ', ',']);
            while !inner.starts_with(']') {
                let (item, quoted, behind) = word(inner);
                items.push(if !quoted && item == b"null" { None } else { Some(item) });
                inner = behind.trim_start_matches([' ', ',']);
                assert!(!inner.is_empty(), "a list without its end: {notation}");
            }
            words.push(Word::List(items));
            rest = inner[1..].trim_start();
        } else {
            let (item, _, behind) = word(rest);
            words.push(Word::Text(item));
            rest = behind.trim_start();
        }
    }
    words
}

/// One word, whether it was quoted, and what stands behind it.
fn word(text: &str) -> (Vec<u8>, bool, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ',', ']']).unwrap_or(text.len());
        return (text.as_bytes()[..end].to_vec(), false, &text[end..]);
    };
    let mut out = Vec::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return (out, true, &quoted[at + 1..]),
            '\\' => match letters.next().map(|(_, letter)| letter) {
                Some('n') => out.push(b'\n'),
                Some('t') => out.push(b'\t'),
                Some('0') => out.push(0),
                Some('x') => {
                    let mut digit =
                        || letters.next().and_then(|(_, digit)| digit.to_digit(16)).unwrap() as u8;
                    out.push(digit() * 16 + digit());
                }
                Some(other) => out.extend(other.to_string().bytes()),
                None => break,
            },
            other => out.extend(other.to_string().bytes()),
        }
    }
    panic!("a string without its end: {text}");
}

#[test]
fn the_notation_says_each_byte() {
    assert_eq!(message(r#"Q "a\"\x01""#), b"Q\0\0\0\x08a\"\x01\0");
    assert_eq!(message(r#"P s "x" [23]"#), b"P\0\0\0\x0es\0x\0\0\x01\0\0\0\x17");
    assert_eq!(
        message(r#"B "" s ["1", null] [] [1]"#),
        *b"B\0\0\0\x18\0s\0\0\0\0\x02\0\0\0\x011\xff\xff\xff\xff\0\x01\0\x01"
    );
    assert_eq!(message("E p 2"), b"E\0\0\0\x0ap\0\0\0\0\x02");
    assert_eq!(message("D S s"), b"D\0\0\0\x07Ss\0");
    assert_eq!(message("S"), b"S\0\0\0\x04");
}
