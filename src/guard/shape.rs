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
    /// Where the numbers stand that are left out.
    pub numbers: Vec<Range<usize>>,
}

/// A text of which other numbers make others of the same shape, found by comparing bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    text: Box<[u8]>,
    piece: Range<usize>,
    numbers: Box<[Range<usize>]>,
}

impl Template {
    /// Longest text that is kept for each session.
    const LONGEST: usize = 1024;
    const MOST_NUMBERS: usize = 16;

    /// Nothing where a number touches what could make a token of another kind out of other digits: `0` is a number in
    /// `1x`, and `0x` begins one.
    pub fn new(text: &[u8], shape: &Shape) -> Option<Self> {
        let stands_alone = |number: &Range<usize>| {
            let touches = |byte: Option<&u8>| {
                byte.is_some_and(|byte| {
                    byte.is_ascii_alphanumeric() || b"_.$".contains(byte) || !byte.is_ascii()
                })
            };
            let before = number.start.checked_sub(1).and_then(|before| text.get(before));
            !touches(before) && !touches(text.get(number.end))
        };
        let kept = text.len() <= Self::LONGEST
            && (1..=Self::MOST_NUMBERS).contains(&shape.numbers.len())
            && shape.numbers.iter().all(stands_alone);
        kept.then(|| Self {
            text: text.into(),
            piece: shape.piece.clone(),
            numbers: shape.numbers.as_slice().into(),
        })
    }

    /// Where the one statement stands in `text`, if that differs from this one in its numbers alone.
    pub fn matches(&self, text: &[u8]) -> Option<Range<usize>> {
        let (mut known, mut at) = (0, 0);
        for number in &self.numbers {
            let between = self.text.get(known..number.start)?;
            let rest = text.get(at..)?.strip_prefix(between)?;
            // One digit more shows that there are too many; what follows is compared and is none.
            let digits = rest.iter().take(DIGITS + 1).take_while(|byte| byte.is_ascii_digit()).count();
            if !(1..=DIGITS).contains(&digits) {
                return None;
            }
            at += between.len() + digits;
            known = number.end;
        }
        (text.get(at..)? == self.text.get(known..)?).then_some(())?;
        // No number stands before the statement or behind it.
        let end = text.len().checked_sub(self.text.len() - self.piece.end)?;
        Some(self.piece.start..end)
    }
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
    let mut numbers = Vec::new();
    for token in piece.tokens {
        if token.text == "set_config" {
            return None;
        }
        bytes.push(tag(token));
        if is_plain_number(token) {
            numbers.push(token.start..token.end);
        } else {
            bytes.extend_from_slice(token.text.as_bytes());
        }
        // No text holds a NUL.
        bytes.push(0);
    }
    // A comment, most likely, which tells more than the tokens do.
    let around = first.start > 0 || piece.tokens.last().is_some_and(|last| last.end < piece.end);
    (!numbers.is_empty() || around).then_some(Shape { bytes, piece: piece.start..piece.end, numbers })
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

    fn template(text: &str) -> Option<Template> {
        Template::new(text.as_bytes(), &shape(text.as_bytes(), &Limits::default())?)
    }

    #[test]
    fn a_template_matches_other_numbers_and_nothing_else() {
        let text = "/* 7 */ SELECT a FROM t WHERE id = 1 AND b<-22; ";
        let template = template(text).unwrap();
        for (other, piece) in [
            (text, text.trim_end_matches("; ")),
            (
                "/* 7 */ SELECT a FROM t WHERE id = 987654321 AND b<-0; ",
                "/* 7 */ SELECT a FROM t WHERE id = 987654321 AND b<-0",
            ),
        ] {
            assert_eq!(template.matches(other.as_bytes()).map(|range| &other[range]), Some(piece));
        }
        for other in [
            "/* 8 */ SELECT a FROM t WHERE id = 1 AND b<-22; ",
            "/* 7 */ SELECT a FROM t WHERE id = 1 AND b<-22;",
            "/* 7 */ SELECT a FROM t WHERE id = 1 AND b<-22; 1",
            "/* 7 */ SELECT a FROM t WHERE id = 1 AND b<-; ",
            "/* 7 */ SELECT a FROM t WHERE id = 1234567890 AND b<-22; ",
            "/* 7 */ SELECT a FROM t WHERE id = 1.5 AND b<-22; ",
            "/* 7 */ SELECT a FROM t WHERE id = 0x1 AND b<-22; ",
            "/* 7 */ SELECT a FROM t WHERE id = 1e5 AND b<-22; ",
            "/* 7 */ SELECT a FROM t WHERE id = 1_000 AND b<-22; ",
            "/* 7 */ select a FROM t WHERE id = 1 AND b<-22; ",
            "",
        ] {
            assert_eq!(template.matches(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn numbers_that_touch_a_word_make_no_template() {
        for text in ["SELECT 1x", "SELECT a1, 2b", "SELECT 1\u{e4}", "SELECT 1..2", "SELECT a FROM t /* 1 */"]
        {
            assert_eq!(template(text), None, "{text}");
        }
    }

    proptest::proptest! {
        /// What a template takes for its own has its shape, and the statement stands where the lexer sees it.
        #[test]
        fn what_a_template_matches_has_its_shape(
            parts in proptest::collection::vec("[a-c1-3 =<>(),;.'/*$_x-]{0,6}", 1..4),
            numbers in proptest::collection::vec("[0-9]{1,10}", 4),
            others in proptest::collection::vec("[0-9]{1,10}", 4),
        ) {
            let made = |numbers: &[String]| {
                parts.iter().zip(numbers).fold("SELECT ".to_owned(), |text, (part, number)| text + part + number)
            };
            let (one, other) = (made(&numbers), made(&others));
            let limits = Limits::default();
            if let Some(template) = template(&one)
                && let Some(piece) = template.matches(other.as_bytes())
            {
                let (first, second) = (shape(one.as_bytes(), &limits), shape(other.as_bytes(), &limits));
                let (first, second) = (first.unwrap(), second.unwrap());
                proptest::prop_assert_eq!(first.bytes, second.bytes);
                proptest::prop_assert_eq!(piece, second.piece);
            }
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
