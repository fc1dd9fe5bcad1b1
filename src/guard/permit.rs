//! The proof that a text was judged and admitted.
//!
//! Invariant: only `guard` can make one, and it holds the very bytes that were judged.

use bytes::Bytes;

/// The proof of an admitted statement, without which nothing is sent upstream.
#[derive(Clone, Debug)]
pub struct Permit {
    text: Bytes,
}

impl Permit {
    pub(super) fn new(text: Bytes) -> Self {
        Self { text }
    }

    /// A text without any statement: it draws EmptyQueryResponse and nothing else.
    pub fn empty() -> Self {
        Self { text: Bytes::new() }
    }

    /// The bytes that were judged: valid UTF-8, no NUL.
    pub fn text(&self) -> &[u8] {
        &self.text
    }
}
