//! Messages of a server: the ones that the gateway writes, and the fields that it reads.
//!
//! Invariant: what is read comes from the source and is bounded by its frame; what is written is whole.
//! Source: PostgreSQL 18, chapters 54.7 and 54.8.

use bytes::{BufMut, Bytes, BytesMut};
use pgwire::messages::Message;
use pgwire::messages::response::{ReadyForQuery, TransactionStatus};
use pgwire::messages::startup::{
    Authentication, BackendKeyData, NegotiateProtocolVersion, ParameterStatus, SecretKey,
};

use super::startup::Version;

/// The transaction status that ReadyForQuery reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    Idle,
    InTransaction,
    Failed,
}

impl Status {
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Status::Idle),
            b'T' => Some(Status::InTransaction),
            b'E' => Some(Status::Failed),
            _ => None,
        }
    }
}

fn put(message: &impl Message, out: &mut BytesMut) {
    // Encoding fails only for a secret key outside 4 to 256 bytes, which no caller makes; nothing is
    // written in that case, and a client that misses a message ends at its own time-out.
    let _ = message.encode(out);
}

pub fn ready_for_query(status: Status, out: &mut BytesMut) {
    let status = match status {
        Status::Idle => TransactionStatus::Idle,
        Status::InTransaction => TransactionStatus::Transaction,
        Status::Failed => TransactionStatus::Error,
    };
    put(&ReadyForQuery::new(status), out);
}

pub fn authentication_ok(out: &mut BytesMut) {
    put(&Authentication::Ok, out);
}

pub fn authentication_sasl(mechanisms: &[&str], out: &mut BytesMut) {
    put(&Authentication::SASL(mechanisms.iter().map(|&name| name.to_owned()).collect()), out);
}

pub fn authentication_sasl_continue(data: String, out: &mut BytesMut) {
    put(&Authentication::SASLContinue(Bytes::from(data)), out);
}

pub fn authentication_sasl_final(data: String, out: &mut BytesMut) {
    put(&Authentication::SASLFinal(Bytes::from(data)), out);
}

pub fn parameter_status(name: &str, value: &str, out: &mut BytesMut) {
    put(&ParameterStatus::new(name.to_owned(), value.to_owned()), out);
}

pub fn backend_key_data(pid: u32, secret: &[u8], out: &mut BytesMut) {
    let secret = SecretKey::Bytes(Bytes::copy_from_slice(secret));
    put(&BackendKeyData::new(pid as i32, secret), out);
}

/// Sent when a client asks for a newer minor version, or for extensions that are not known.
pub fn negotiate_protocol_version(newest: Version, unsupported: &[String], out: &mut BytesMut) {
    put(&NegotiateProtocolVersion::new(newest.number() as i32, unsupported.to_vec()), out);
}

pub fn empty_message(kind: u8, out: &mut BytesMut) {
    out.put_u8(kind);
    out.put_u32(4);
}

/// The value of one field (such as `C`, the SQLSTATE) of an ErrorResponse or NoticeResponse body.
pub fn error_field(body: &[u8], wanted: u8) -> Option<&[u8]> {
    let mut rest = body;
    loop {
        let (&kind, behind) = rest.split_first()?;
        if kind == 0 {
            return None;
        }
        let (value, behind) = super::frontend::text(behind).ok()?;
        if kind == wanted {
            return Some(value);
        }
        rest = behind;
    }
}

/// An ErrorResponse with the fields of `body`, its position (`P`) moved by `characters`; `None` when it
/// has no position.
pub fn with_position_shifted(body: &[u8], characters: u32) -> Option<BytesMut> {
    let position = std::str::from_utf8(error_field(body, b'P')?).ok()?.parse::<u32>().ok()?;
    let position = position.checked_add(characters)?.to_string();
    let mut fields = BytesMut::with_capacity(body.len() + 16);
    let mut rest = body;
    while let Some((&kind, behind)) = rest.split_first()
        && kind != 0
    {
        let (value, behind) = super::frontend::text(behind).ok()?;
        fields.put_u8(kind);
        fields.put_slice(if kind == b'P' { position.as_bytes() } else { value });
        fields.put_u8(0);
        rest = behind;
    }
    fields.put_u8(0);
    let mut out = BytesMut::with_capacity(fields.len() + 5);
    out.put_u8(b'E');
    out.put_u32(u32::try_from(fields.len()).ok()?.checked_add(4)?);
    out.put_slice(&fields);
    Some(out)
}

/// Name and value of a ParameterStatus body.
pub fn parameter(body: &[u8]) -> Option<(&str, &str)> {
    let (name, rest) = super::frontend::text(body).ok()?;
    let (value, _) = super::frontend::text(rest).ok()?;
    Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sqlstate::SqlState;
    use crate::wire::ClientError;

    #[test]
    fn an_error_is_read_back_as_written() {
        let mut out = BytesMut::new();
        ClientError::error(
            SqlState::READ_ONLY_SQL_TRANSACTION,
            "cannot execute INSERT in a read-only transaction",
        )
        .detail("d")
        .position(Some(3))
        .encode(&mut out);
        assert_eq!(u32::from_be_bytes([out[1], out[2], out[3], out[4]]) as usize, out.len() - 1);
        let body = &out[5..];
        assert_eq!(error_field(body, b'C'), Some(&b"25006"[..]));
        assert_eq!(error_field(body, b'D'), Some(&b"d"[..]));
        assert_eq!(error_field(body, b'P'), Some(&b"3"[..]));
        assert_eq!(error_field(body, b'H'), None);
        assert_eq!(error_field(b"Cx", b'C'), None, "a field without its end");
    }

    #[test]
    fn what_pgwire_writes_is_whole() {
        let mut out = BytesMut::new();
        backend_key_data(7, &[1; 32], &mut out);
        ready_for_query(Status::Failed, &mut out);
        negotiate_protocol_version(Version { major: 3, minor: 2 }, &["_pq_.x".into()], &mut out);
        let first = crate::wire::frame::header(&out, 1000).unwrap().unwrap();
        assert_eq!((first.kind, first.size), (b'K', 5 + 4 + 32));
        let second = crate::wire::frame::header(&out[first.size..], 1000).unwrap().unwrap();
        assert_eq!(&out[first.size..first.size + second.size], b"Z\0\0\0\x05E");
    }
}
