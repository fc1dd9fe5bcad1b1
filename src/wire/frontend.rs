//! Messages of a client, read where they lie.
//!
//! Invariant: a view borrows from the frame, and a body that does not hold what its type promises is
//! an error, never a guess. Source: PostgreSQL 18, chapter 54.7.

use thiserror::Error;

#[derive(Debug, Error, PartialEq, Eq)]
#[error("invalid message format")]
pub struct Malformed;

/// Splits a NUL-terminated string off the front.
pub fn text(bytes: &[u8]) -> Result<(&[u8], &[u8]), Malformed> {
    let end = memchr::memchr(0, bytes).ok_or(Malformed)?;
    let (text, rest) = bytes.split_at(end);
    Ok((text, rest.get(1..).unwrap_or_default()))
}

/// The text of a Query: the whole body, with nothing behind its NUL.
pub fn query(body: &[u8]) -> Result<&[u8], Malformed> {
    match text(body)? {
        (sql, []) => Ok(sql),
        _ => Err(Malformed),
    }
}

/// Parse: a statement's name, its text, and the parameter types (count and OIDs as they lie).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parse<'a> {
    pub name: &'a [u8],
    pub sql: &'a [u8],
    pub types: &'a [u8],
}

pub fn parse(body: &[u8]) -> Result<Parse<'_>, Malformed> {
    let (name, rest) = text(body)?;
    let (sql, types) = text(rest)?;
    let (count, oids) = types.split_first_chunk::<2>().ok_or(Malformed)?;
    if oids.len() != usize::from(u16::from_be_bytes(*count)) * 4 {
        return Err(Malformed);
    }
    Ok(Parse { name, sql, types })
}

/// Bind: the portal it makes and the statement it takes; parameters are not looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bind<'a> {
    pub portal: &'a [u8],
    pub statement: &'a [u8],
    /// Formats and parameters as they lie.
    pub rest: &'a [u8],
}

pub fn bind(body: &[u8]) -> Result<Bind<'_>, Malformed> {
    let (portal, rest) = text(body)?;
    let (statement, rest) = text(rest)?;
    Ok(Bind { portal, statement, rest })
}

/// What Describe and Close speak of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target<'a> {
    Statement(&'a [u8]),
    Portal(&'a [u8]),
}

pub fn target(body: &[u8]) -> Result<Target<'_>, Malformed> {
    let (&kind, rest) = body.split_first().ok_or(Malformed)?;
    let (name, behind) = text(rest)?;
    match (kind, behind) {
        (b'S', []) => Ok(Target::Statement(name)),
        (b'P', []) => Ok(Target::Portal(name)),
        _ => Err(Malformed),
    }
}

/// Execute: the portal; the row limit goes on as it lies.
pub fn execute(body: &[u8]) -> Result<&[u8], Malformed> {
    let (portal, limit) = text(body)?;
    if limit.len() == 4 { Ok(portal) } else { Err(Malformed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_take_what_they_promise_and_nothing_else() {
        assert_eq!(query(b"SELECT 1\0"), Ok(&b"SELECT 1"[..]));
        assert_eq!(query(b"SELECT 1"), Err(Malformed));
        assert_eq!(query(b"SELECT 1\0; DROP TABLE t\0"), Err(Malformed));
        assert_eq!(query(b""), Err(Malformed));
        assert!(parse(b"s\0SELECT $1\0\0\x01\0\0\0\x14").is_ok());
        assert_eq!(parse(b"s\0SELECT $1\0\0\x02\0\0\0\x14"), Err(Malformed));
        assert_eq!(parse(b"s\0SELECT $1\0"), Err(Malformed));
        assert_eq!(bind(b"p\0s\0rest"), Ok(Bind { portal: b"p", statement: b"s", rest: b"rest" }));
        assert_eq!(bind(b"p\0s"), Err(Malformed));
        assert_eq!(target(b"Sa\0"), Ok(Target::Statement(b"a")));
        assert_eq!(target(b"P\0"), Ok(Target::Portal(b"")));
        assert_eq!(target(b"Xa\0"), Err(Malformed));
        assert_eq!(target(b"Sa\0b"), Err(Malformed));
        assert_eq!(execute(b"p\0\0\0\0\0"), Ok(&b"p"[..]));
        assert_eq!(execute(b"p\0\0"), Err(Malformed));
    }
}
