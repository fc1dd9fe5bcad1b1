//! The shape of a query: its tokens with plain numbers left out, so that a point read with another key, or
//! the same read behind another comment, need not be parsed again.
//!
//! Invariant: two texts of one shape get the same verdict. The walk never looks at what a number is,
//! and nothing but a query that begins with SELECT, VALUES or WITH and does not touch `set_config` has a
//! shape; numbers that are not a few decimal digits stay in it.

use std::ops::Range;

use super::pieces;
use crate::sql::lexer::{self, Kind, Token};

/// Longest number that is left out: it fits an `integer`, so no parser's own bound is in question.
const DIGITS: usize = 9;

pub(super) struct Shape {
    pub bytes: Vec<u8>,
    /// Where the one statement stands in the text, without white space and comments around it.
    pub piece: Range<usize>,
}

/// The shape of `text`, if it has one and leaves something out.
pub(super) fn shape(text: &[u8], limits: &crate::sql::Limits) -> Option<Shape> {
    if !text.iter().any(u8::is_ascii_digit) {
        return None;
    }
    let text = lexer::utf8(text).ok()?;
    let tokens = lexer::tokens(text, limits).ok()?;
    let pieces = pieces(text, &tokens);
    let [piece] = pieces.as_slice() else { return None };
    let first = piece.tokens.first()?;
    if !["select", "values", "with"].iter().any(|word| first.is(word)) {
        return None;
    }
    let mut bytes = Vec::with_capacity(text.len() + 2 * tokens.len());
    let mut left_out = false;
    for token in piece.tokens {
        if token.text == "set_config" {
            return None;
        }
        bytes.push(tag(token));
        if is_plain_number(token) {
            left_out = true;
        } else {
            bytes.extend_from_slice(token.text.as_bytes());
        }
        // No text holds a NUL.
        bytes.push(0);
    }
    // A comment, most likely, which tells more than the tokens do.
    let around = first.start > 0 || piece.tokens.last().is_some_and(|last| last.end < piece.end);
    (left_out || around).then_some(Shape { bytes, piece: piece.start..piece.end })
}

fn is_plain_number(token: &Token<'_>) -> bool {
    token.kind == Kind::Number
        && token.text.len() <= DIGITS
        && token.text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Tells kinds apart; a word's category follows from the word.
fn tag(token: &Token<'_>) -> u8 {
    match token.kind {
        Kind::Word(_) => 1,
        Kind::Quoted => 2,
        Kind::String => 3,
        Kind::National => 4,
        Kind::Bits => 5,
        Kind::Number if is_plain_number(token) => 6,
        Kind::Number => 7,
        Kind::Parameter => 8,
        Kind::Operator => 9,
        Kind::LeftParen => 10,
        Kind::RightParen => 11,
        Kind::LeftBracket => 12,
        Kind::RightBracket => 13,
        Kind::Comma => 14,
        Kind::Semicolon => 15,
        Kind::Dot => 16,
        Kind::DotDot => 17,
        Kind::Colon => 18,
        Kind::Cast => 19,
        Kind::Assign => 20,
        Kind::Arrow => 21,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::Limits;

    fn same(one: &str, other: &str) -> bool {
        let shape = |text: &str| shape(text.as_bytes(), &Limits::default()).map(|shape| shape.bytes);
        shape(one).is_some() && shape(one) == shape(other)
    }

    #[test]
    fn numbers_make_no_difference_and_all_else_does() {
        assert!(same("SELECT a FROM t WHERE id = 1", "select a  from t where id=234 /* c */;"));
        assert!(same("/* 1 */ SELECT a FROM t", "SELECT a FROM t -- 22"));
        for other in [
            "SELECT b FROM t WHERE id = 1",
            "SELECT a FROM t WHERE id = '1'",
            "SELECT a FROM t WHERE id = 1.5",
            "SELECT a FROM t WHERE id = 12345678901",
            "SELECT a FROM t WHERE id = $1",
            "SELECT \"a\" FROM t WHERE id = 1",
            "SELECT a FROM t WHERE id = 1 LIMIT 1",
        ] {
            assert!(!same("SELECT a FROM t WHERE id = 1", other), "{other}");
        }
    }

    #[test]
    fn only_queries_have_one() {
        for text in [
            "EXPLAIN (ANALYZE 0) SELECT 1",
            "SET extra_float_digits = 3",
            "SELECT set_config('extra_float_digits', '1', false), 1",
            "SELECT 1; SELECT 2",
            "SELECT a",
            "BEGIN",
            "FETCH 10 FROM c",
            "",
        ] {
            assert!(shape(text.as_bytes(), &Limits::default()).is_none(), "{text}");
        }
    }
}
