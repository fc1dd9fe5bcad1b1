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

    /// `SET application_name`, with the gateway's prefix before the client's own name.
    ///
    /// Sent in the place of a client's own SET, which was judged; the text is the gateway's but for
    /// one string constant. Relies on `standard_conforming_strings`, which is pinned.
    pub fn application_name(prefix: &str, name: &str) -> Self {
        let separator = if name.is_empty() { "" } else { " " };
        let value = format!("{prefix}{separator}{name}").replace('\'', "''").replace('\0', "");
        Self { text: Bytes::from(format!("SET application_name = '{value}'")) }
    }

    /// The bytes that were judged: valid UTF-8, no NUL.
    pub fn text(&self) -> &[u8] {
        &self.text
    }
}
