//! The walk over message headers: one type byte, a four-byte length that counts itself, a body.
//!
//! Invariant: a header is five bytes and nothing of a body is looked at here.
//! Source: PostgreSQL 18, chapter 54.7 "Message Formats".

use thiserror::Error;

/// Bytes of a message header: type and length.
pub const HEADER: usize = 5;

/// The type byte and the whole size, header included, of one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: u8,
    pub size: usize,
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum FrameError {
    #[error("invalid message length {length} in message of type {kind:#04x}")]
    Length { kind: u8, length: i32 },
}

/// Reads the header at the front of `bytes`; `None` when fewer than [`HEADER`] bytes are there.
///
/// `limit` bounds the whole size. A length below four, negative or over the limit is an error.
#[inline]
pub fn header(bytes: &[u8], limit: usize) -> Result<Option<Header>, FrameError> {
    let Some((&[kind, a, b, c, d], _)) = bytes.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let length = i32::from_be_bytes([a, b, c, d]);
    match usize::try_from(length) {
        Ok(size) if size >= 4 && size < limit => Ok(Some(Header { kind, size: size + 1 })),
        _ => Err(FrameError::Length { kind, length }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_their_bounds() {
        let cases: &[(&str, &[u8], Result<Option<Header>, ()>)] = &[
            ("nothing", b"", Ok(None)),
            ("four bytes", b"Q\0\0\0", Ok(None)),
            ("an empty body", b"S\0\0\0\x04", Ok(Some(Header { kind: b'S', size: 5 }))),
            ("a body", b"Q\0\0\0\x09", Ok(Some(Header { kind: b'Q', size: 10 }))),
            ("shorter than itself", b"Q\0\0\0\x03", Err(())),
            ("zero", b"Q\0\0\0\0", Err(())),
            ("negative", b"Q\xff\xff\xff\xff", Err(())),
            ("wraps when one is added", b"Q\x7f\xff\xff\xff", Err(())),
            ("at the limit", b"Q\0\0\0\x63", Ok(Some(Header { kind: b'Q', size: 100 }))),
            ("over the limit", b"Q\0\0\0\x64", Err(())),
        ];
        for (note, bytes, want) in cases {
            assert_eq!(header(bytes, 100).map_err(|_| ()), *want, "{note}");
        }
    }
}
