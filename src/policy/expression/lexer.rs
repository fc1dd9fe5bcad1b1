//! Trino's tokens, as far as expressions here may use them.
//!
//! Invariant: no text is read that another engine or another version would split otherwise: prefixed strings,
//! dollar quotes, backquotes and comments are errors.

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Word,
    Quoted,
    String,
    /// `X'…'`
    Bytes,
    Number,
    /// `{column}`
    Placeholder,
    /// An operator, a bracket, a comma or a dot.
    Sign,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Token<'t> {
    pub(super) kind: Kind,
    /// As it is written.
    pub(super) text: &'t str,
    pub(super) start: usize,
}

impl Token<'_> {
    pub(super) fn is(&self, word: &str) -> bool {
        match self.kind {
            Kind::Word => self.text.eq_ignore_ascii_case(word),
            Kind::Sign => self.text == word,
            _ => false,
        }
    }
}

/// Where, and what.
pub(super) type Wrong = (usize, String);

const PAIRS: &[&str] = &["<=", ">=", "<>", "!=", "||", "->"];
const SINGLE: &str = "+-*/%=<>(),.[]";

pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, Wrong> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let start = text.len() - rest.len();
        let wrong = |message: &str| Err((start, message.to_owned()));
        if rest.starts_with("--") || rest.starts_with("/*") {
            return wrong("comments are not allowed");
        }
        let (kind, length) = match first {
            ';' => return wrong("only one expression is allowed"),
            '\0' => return wrong("holds a NUL"),
            '\'' => match quoted(rest, '\'') {
                Some(length) => (Kind::String, length),
                None => return wrong("the string does not end"),
            },
            '"' => match quoted(rest, '"') {
                Some(2) => return wrong("the name is empty"),
                Some(length) => (Kind::Quoted, length),
                None => return wrong("the quoted name does not end"),
            },
            '{' => match rest.find('}') {
                Some(at) => (Kind::Placeholder, at + 1),
                None => return wrong("the placeholder does not end"),
            },
            letter if letter.is_ascii_alphabetic() || letter == '_' => {
                let length = run(rest, |letter| letter.is_ascii_alphanumeric() || letter == '_');
                let (word, behind) = rest.split_at_checked(length).unwrap_or((rest, ""));
                match behind.chars().next() {
                    Some('\'') if word.eq_ignore_ascii_case("x") => match quoted(behind, '\'') {
                        Some(more) => {
                            let digits = behind.get(1..more - 1).unwrap_or_default();
                            if digits.len() % 2 == 1 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                                return wrong("X'…' holds pairs of hexadecimal digits");
                            }
                            (Kind::Bytes, length + more)
                        }
                        None => return wrong("the string does not end"),
                    },
                    Some('\'' | '"' | '&' | '$' | '@') => {
                        return wrong(
                            "a word stands right before a quote or a sign that may change its meaning",
                        );
                    }
                    _ => (Kind::Word, length),
                }
            }
            digit if digit.is_ascii_digit() => match number(rest) {
                Some(length) => (Kind::Number, length),
                None => return wrong("is no number"),
            },
            _ => match PAIRS.iter().find(|pair| rest.starts_with(**pair)) {
                Some(_) => (Kind::Sign, 2),
                None if SINGLE.contains(first) => (Kind::Sign, 1),
                None => return Err((start, format!("{first:?} is not allowed"))),
            },
        };
        let (token, behind) = rest.split_at_checked(length).unwrap_or((rest, ""));
        tokens.push(Token { kind, text: token, start });
        rest = behind.trim_start();
    }
    Ok(tokens)
}

fn run(text: &str, is_part: impl Fn(char) -> bool) -> usize {
    text.find(|letter| !is_part(letter)).unwrap_or(text.len())
}

/// The length of a quoted text at the beginning, quotes included; doubled ones do not end it.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut letters = text.char_indices().skip(1).peekable();
    while let Some((at, letter)) = letters.next() {
        if letter == '\0' {
            return None;
        }
        if letter == quote && letters.next_if(|(_, next)| *next == quote).is_none() {
            return Some(at + 1);
        }
    }
    None
}

/// `1`, `1.5`, `1e3`, `1.5E-3`; followed by nothing that would make a word of it.
fn number(text: &str) -> Option<usize> {
    let digits = |from: usize| run(text.get(from..).unwrap_or_default(), |letter| letter.is_ascii_digit());
    let at = |place: usize| text.as_bytes().get(place).copied();
    let mut length = digits(0);
    if at(length) == Some(b'.') {
        length += 1 + digits(length + 1);
    }
    if matches!(at(length), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(at(length + 1), Some(b'+' | b'-')));
        let exponent = digits(length + 1 + sign);
        if exponent == 0 {
            return None;
        }
        length += 1 + sign + exponent;
    }
    let behind = text.get(length..).and_then(|behind| behind.chars().next());
    let ends =
        behind.is_none_or(|letter| !letter.is_alphanumeric() && !matches!(letter, '_' | '.' | '\'' | '"'));
    ends.then_some(length)
}
