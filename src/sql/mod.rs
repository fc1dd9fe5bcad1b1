//! Text to tree: the only place that lexes and parses. Nothing here performs I/O.
//!
//! Invariant: there is one truth of what is a comment, a string or an identifier, [`lexer`]; the
//! parser is handed its tokens and never sees the text.

pub mod catalogue;
pub mod comment;
pub mod fingerprint;
pub mod front;
pub mod keyword;
pub mod known;
pub mod lexer;
pub mod parse;
pub mod statement;
pub mod tag;

/// How large a text may be before it is refused unread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one text.
    pub bytes: usize,
    /// Tokens of one text.
    pub tokens: usize,
    /// What the tokens of one text may weigh: constants and commas one, all else four. Structure is what
    /// takes time to parse, and a long list of constants must pass. docs/performance.md has what a default
    /// takes.
    pub weight: usize,
    /// Brackets open at the same time.
    pub depth: usize,
    /// Tokens of one bracket level between two commas: what makes left-deep trees deep.
    pub run: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 1 << 20, tokens: 48 << 10, weight: 48 << 10, depth: 100, run: 20_000 }
    }
}
