//! What goes upstream: every text asks for a permit.
//!
//! Invariant: nothing but this file writes messages to a source once its session is open, and no
//! method here takes a text that was not judged.

use bytes::{Buf, BufMut, BytesMut};

use crate::guard::{FunctionPermit, Permit};
use crate::wire::frontend::Target;

/// Sent in the place of a refused statement where PostgreSQL has to know that something failed: in
/// a transaction block or a pipeline.
///
/// It parses and cannot be analysed, so it runs nothing, fails a healthy block as any error does,
/// and in a failed block draws 25P02 as any statement does. The source's log then shows this text and
/// nothing of the refused one.
pub const REFUSED: &str = "SELECT NULL::pg_catalog.\"fedgate refused a statement\"";

/// Bytes for the source that are not written yet.
#[derive(Debug, Default)]
pub struct Outbound {
    bytes: BytesMut,
}

impl Outbound {
    fn message(&mut self, kind: u8, parts: &[&[u8]]) {
        let size: usize = parts.iter().map(|part| part.len()).sum();
        self.bytes.reserve(size + 5);
        self.bytes.put_u8(kind);
        self.bytes.put_u32(size as u32 + 4);
        for part in parts {
            self.bytes.put_slice(part);
        }
    }

    /// A simple Query. Only for a permit whose verdict says that the text may go whole.
    pub fn query(&mut self, permit: &Permit) {
        self.message(b'Q', &[permit.text(), b"\0"]);
    }

    /// FunctionCall: one that reads a large object.
    pub fn function_call(&mut self, permit: &FunctionPermit) {
        self.message(b'F', &[permit.body()]);
    }

    /// Parse, with the parameter types (count and OIDs) as the client sent them.
    pub fn parse(&mut self, name: &[u8], permit: &Permit, types: &[u8]) {
        self.message(b'P', &[name, b"\0", permit.text(), b"\0", types]);
    }

    /// One statement of a Query with several: Parse, Bind, Describe and Execute of the unnamed
    /// statement and portal, in text format, without a row limit.
    pub fn run(&mut self, permit: &Permit) {
        self.parse(b"", permit, &[0, 0]);
        self.message(b'B', &[&[0; 8]]);
        self.message(b'D', &[b"P\0"]);
        self.message(b'E', &[&[0; 5]]);
    }

    /// Parse of [`REFUSED`], under the name that the refused Parse gave.
    pub fn refused(&mut self, name: &[u8]) {
        self.message(b'P', &[name, b"\0", REFUSED.as_bytes(), b"\0", &[0, 0]]);
    }

    /// Bind names a statement, and only a permit could have made it.
    pub fn bind(&mut self, body: &[u8]) {
        self.message(b'B', &[body]);
    }

    /// Bind to a statement under the name that the gateway gave it; `rest` is what stands behind the client's own.
    pub fn bind_to(&mut self, portal: &[u8], statement: &[u8], rest: &[u8]) {
        self.message(b'B', &[portal, b"\0", statement, b"\0", rest]);
    }

    pub fn describe(&mut self, target: Target<'_>) {
        self.target(b'D', target);
    }

    pub fn close(&mut self, target: Target<'_>) {
        self.target(b'C', target);
    }

    fn target(&mut self, kind: u8, target: Target<'_>) {
        match target {
            Target::Statement(name) => self.message(kind, &[b"S", name, b"\0"]),
            Target::Portal(name) => self.message(kind, &[b"P", name, b"\0"]),
        }
    }

    /// Execute names a portal, and only a permit could have made its statement.
    pub fn execute(&mut self, body: &[u8]) {
        self.message(b'E', &[body]);
    }

    pub fn sync(&mut self) {
        self.message(b'S', &[]);
    }

    pub fn flush(&mut self) {
        self.message(b'H', &[]);
    }

    pub fn terminate(&mut self) {
        self.message(b'X', &[]);
    }

    /// A piece of COPY … FROM STDIN, which only a writer's permit can have begun.
    pub fn copy_data(&mut self, _begun_by: &CopyIn, body: &[u8]) {
        self.message(b'd', &[body]);
    }

    pub fn copy_done(&mut self, _begun_by: CopyIn) {
        self.message(b'c', &[]);
    }

    pub fn copy_fail(&mut self, _begun_by: CopyIn, body: &[u8]) {
        self.message(b'f', &[body]);
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn written(&mut self, count: usize) {
        self.bytes.advance(count);
        if self.bytes.is_empty() {
            // An idle session holds no memory: advance() has used the capacity up anyway.
            self.bytes = BytesMut::new();
        }
    }
}

/// That the source has answered CopyInResponse to a statement of a writer.
#[derive(Debug)]
pub struct CopyIn(());

impl CopyIn {
    /// `writes`: whether the session's verdicts are given in read-write mode.
    pub fn begun(writes: bool) -> Option<Self> {
        writes.then_some(Self(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame;

    #[test]
    fn messages_are_whole_and_in_order() {
        let mut out = Outbound::default();
        out.run(&Permit::empty());
        out.refused(b"s1");
        out.describe(Target::Statement(b"x"));
        out.close(Target::Portal(b""));
        out.sync();
        let mut rest = out.bytes();
        let mut kinds = Vec::new();
        while let Some(header) = frame::header(rest, 1000).unwrap() {
            kinds.push(header.kind);
            rest = &rest[header.size..];
        }
        assert_eq!(kinds, b"PBDEPDCS");
        assert!(rest.is_empty());
        out.written(out.len());
        assert!(out.is_empty());
    }
}
