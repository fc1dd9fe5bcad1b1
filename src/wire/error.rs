//! Errors that may be shown to a client, and nothing else may.
//!
//! Invariant: a [`ClientError`] is written for the client who reads it; no upstream host, user or
//! secret is ever put into one. Errors of dependencies do not convert into it.

use bytes::{BufMut, BytesMut};

use crate::sqlstate::SqlState;

/// How far an error reaches (`S` and `V` fields of ErrorResponse).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed; the session goes on.
    Error,
    /// The session ends.
    Fatal,
}

/// An error in PostgreSQL's own style: lower-case message, then DETAIL and HINT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientError {
    pub severity: Severity,
    pub sqlstate: SqlState,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// One-based, in characters of the client's text (`P` field).
    pub position: Option<u32>,
}

impl ClientError {
    pub fn error(sqlstate: SqlState, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, sqlstate, message.into())
    }

    pub fn fatal(sqlstate: SqlState, message: impl Into<String>) -> Self {
        Self::new(Severity::Fatal, sqlstate, message.into())
    }

    fn new(severity: Severity, sqlstate: SqlState, message: String) -> Self {
        Self { severity, sqlstate, message, detail: None, hint: None, position: None }
    }

    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn position(mut self, position: Option<u32>) -> Self {
        self.position = position;
        self
    }

    /// Appends the ErrorResponse (protocol chapter 54.7) to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        let severity: &str = match self.severity {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
        };
        out.put_u8(b'E');
        let start = out.len();
        out.put_u32(0);
        let mut field = |kind: u8, value: &str| {
            out.put_u8(kind);
            // A NUL would end the field early and let the rest be read as further fields.
            out.extend(value.bytes().map(|b| if b == 0 { b' ' } else { b }));
            out.put_u8(0);
        };
        field(b'S', severity);
        field(b'V', severity);
        field(b'C', self.sqlstate.as_str());
        field(b'M', &self.message);
        if let Some(detail) = &self.detail {
            field(b'D', detail);
        }
        if let Some(hint) = &self.hint {
            field(b'H', hint);
        }
        if let Some(position) = self.position {
            field(b'P', &position.to_string());
        }
        out.put_u8(0);
        let length = (out.len() - start) as u32;
        if let Some(word) = out.get_mut(start..start + 4) {
            word.copy_from_slice(&length.to_be_bytes());
        }
    }
}
