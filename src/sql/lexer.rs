//! PostgreSQL's lexer (scan.l of versions 14 to 18, with `standard_conforming_strings` on).
//!
//! Invariant: whatever is accepted here, every version splits into the same tokens; what a version
//! would lex otherwise, or reject, is an error here. Tokens and comments never overlap.

use std::borrow::Cow;

use sqlparser::keywords::Keyword;

use super::Limits;
use super::keyword::{self, Category};

/// Identifiers and operators are cut or rejected at this length (`NAMEDATALEN` − 1).
const NAME_BYTES: usize = 63;

/// What a token that makes structure (a word, an operator, a bracket) weighs, beside a constant.
const STRUCTURE: usize = 4;

/// Signs of operators that may stand in one row, so that reading a row of them stays linear in its length.
const LONGEST_SIGNS: usize = 2 * NAME_BYTES;

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An unquoted identifier or key word, in lower case and cut to 63 bytes.
    Word(Category),
    /// A quoted identifier (`"…"`, `U&"…"`), decoded and cut to 63 bytes.
    Quoted,
    /// A string constant (`'…'`, `E'…'`, `U&'…'`, `$$…$$`), decoded.
    String,
    /// `N'…'`, decoded.
    National,
    /// `B'…'` and `X'…'`, without quotes.
    Bits,
    Number,
    /// `$1`; the text is the number.
    Parameter,
    Operator,
    LeftParen,
    RightParen,
    LeftBracket,
    RightBracket,
    Comma,
    Semicolon,
    Dot,
    /// `..`
    DotDot,
    Colon,
    /// `::`
    Cast,
    /// `:=`
    Assign,
    /// `=>`
    Arrow,
}

/// One token and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Token<'a> {
    pub kind: Kind,
    /// The meaning rather than the spelling: see [`Kind`].
    pub text: Cow<'a, str>,
    /// Byte offsets into the text.
    pub start: usize,
    pub end: usize,
    /// The parser's key word for an unquoted word.
    pub keyword: Keyword,
}

impl Token<'_> {
    /// Is this the unquoted word `word` (in lower case)?
    pub fn is(&self, word: &str) -> bool {
        matches!(self.kind, Kind::Word(_)) && self.text == word
    }

    pub fn is_operator(&self, symbol: &str) -> bool {
        self.kind == Kind::Operator && self.text == symbol
    }

    /// May this be the name of a table, column or alias (ColId)?
    pub fn is_column_name(&self) -> bool {
        match self.kind {
            Kind::Quoted => true,
            Kind::Word(category) => {
                matches!(category, Category::Plain | Category::Unreserved | Category::ColumnName)
            }
            _ => false,
        }
    }
}

/// A comment and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Comment {
    pub start: usize,
    pub end: usize,
    /// `/* … */` rather than `-- …`.
    pub block: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Item<'a> {
    Token(Token<'a>),
    Comment(Comment),
}

/// Why a text has no tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("invalid byte sequence for encoding \"UTF8\"")]
    Encoding,
    #[error("{0}")]
    Syntax(&'static str),
    #[error("{0}")]
    Limit(&'static str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct LexError {
    pub problem: Problem,
    /// Byte offset of what is wrong.
    pub offset: usize,
}

type Result<T> = std::result::Result<T, LexError>;

fn syntax<T>(offset: usize, what: &'static str) -> Result<T> {
    Err(LexError { problem: Problem::Syntax(what), offset })
}

/// The text as UTF-8 without NUL, or where it stops being that.
pub fn utf8(text: &[u8]) -> Result<&str> {
    if let Some(offset) = memchr::memchr(0, text) {
        return Err(LexError { problem: Problem::Encoding, offset });
    }
    std::str::from_utf8(text)
        .map_err(|error| LexError { problem: Problem::Encoding, offset: error.valid_up_to() })
}

/// All tokens of `text`, comments left out, within `limits`.
pub fn tokens<'a>(text: &'a str, limits: &Limits) -> Result<Vec<Token<'a>>> {
    let limit = |offset, what| Err(LexError { problem: Problem::Limit(what), offset });
    if text.len() > limits.bytes {
        return limit(0, "statement is too long");
    }
    let mut tokens: Vec<Token<'a>> = Vec::with_capacity((text.len() / 5).clamp(8, 4096));
    let mut runs: Vec<usize> = vec![0];
    let mut weight = 0;
    let mut lexer = Lexer::new(text);
    while let Some(item) = lexer.next_item()? {
        let Item::Token(token) = item else { continue };
        if tokens.len() >= limits.tokens {
            return limit(token.start, "statement has too many tokens");
        }
        weight += match token.kind {
            Kind::String | Kind::National | Kind::Bits | Kind::Number | Kind::Parameter | Kind::Comma => 1,
            _ => STRUCTURE,
        };
        if weight > limits.weight {
            return limit(token.start, "statement is too complex");
        }
        match token.kind {
            Kind::LeftParen | Kind::LeftBracket => {
                if runs.len() > limits.depth {
                    return limit(token.start, "statement is nested too deeply");
                }
                if let Some(run) = runs.last_mut() {
                    *run += 1;
                }
                runs.push(0);
            }
            Kind::RightParen | Kind::RightBracket => {
                if runs.len() > 1 {
                    runs.pop();
                }
            }
            Kind::Comma | Kind::Semicolon => {
                if let Some(run) = runs.last_mut() {
                    *run = 0;
                }
            }
            _ => {
                if let Some(run) = runs.last_mut() {
                    *run += 1;
                    if *run > limits.run {
                        return limit(token.start, "statement is too complex");
                    }
                }
            }
        }
        if token.is("uescape")
            && tokens.last().is_some_and(|last| {
                matches!(text.as_bytes().get(last.start), Some(b'u' | b'U'))
                    && text.as_bytes().get(last.start + 1) == Some(&b'&')
                    && matches!(last.kind, Kind::String | Kind::Quoted)
            })
        {
            return syntax(token.start, "UESCAPE behind a comment is not supported");
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// Reads tokens and comments one after the other.
pub struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0c | 0x0b)
}

fn is_newline(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r')
}

fn is_ident_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_ident_part(byte: u8) -> bool {
    is_ident_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

fn is_operator_byte(byte: u8) -> bool {
    matches!(
        byte,
        b'~' | b'!'
            | b'@'
            | b'#'
            | b'^'
            | b'&'
            | b'|'
            | b'`'
            | b'?'
            | b'+'
            | b'-'
            | b'*'
            | b'/'
            | b'%'
            | b'<'
            | b'>'
            | b'='
    )
}

/// Cuts a name to [`NAME_BYTES`] at a character boundary, as `truncate_identifier` does.
fn cut(name: Cow<'_, str>) -> Cow<'_, str> {
    if name.len() <= NAME_BYTES {
        return name;
    }
    let mut end = NAME_BYTES;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    match name {
        Cow::Borrowed(name) => Cow::Borrowed(name.get(..end).unwrap_or_default()),
        Cow::Owned(mut name) => {
            name.truncate(end);
            Cow::Owned(name)
        }
    }
}

impl<'a> Lexer<'a> {
    pub fn new(text: &'a str) -> Self {
        Self { text, bytes: text.as_bytes(), at: 0 }
    }

    fn peek(&self, ahead: usize) -> Option<u8> {
        self.bytes.get(self.at + ahead).copied()
    }

    fn slice(&self, start: usize, end: usize) -> &'a str {
        self.text.get(start..end).unwrap_or_default()
    }

    fn token(&self, kind: Kind, text: Cow<'a, str>, start: usize) -> Result<Option<Item<'a>>> {
        Ok(Some(Item::Token(Token { kind, text, start, end: self.at, keyword: Keyword::NoKeyword })))
    }

    fn symbol(&mut self, kind: Kind, bytes: usize) -> Result<Option<Item<'a>>> {
        let start = self.at;
        self.at += bytes;
        self.token(kind, Cow::Borrowed(self.slice(start, self.at)), start)
    }

    /// The next token or comment; `None` at the end of the text.
    pub fn next_item(&mut self) -> Result<Option<Item<'a>>> {
        self.skip_space();
        let start = self.at;
        let Some(byte) = self.peek(0) else { return Ok(None) };
        match byte {
            b'-' if self.peek(1) == Some(b'-') => {
                while self.peek(0).is_some_and(|byte| !is_newline(byte)) {
                    self.at += 1;
                }
                Ok(Some(Item::Comment(Comment { start, end: self.at, block: false })))
            }
            b'/' if self.peek(1) == Some(b'*') => self.block_comment(),
            b'\'' => {
                self.at += 1;
                self.plain_string(Kind::String, start)
            }
            b'"' => {
                self.at += 1;
                let name = self.quoted_name(start)?;
                self.name(name, start)
            }
            b'e' | b'E' if self.peek(1) == Some(b'\'') => {
                self.at += 2;
                self.escape_string(start)
            }
            b'n' | b'N' if self.peek(1) == Some(b'\'') => {
                self.at += 2;
                self.plain_string(Kind::National, start)
            }
            b'b' | b'B' | b'x' | b'X' if self.peek(1) == Some(b'\'') => {
                self.at += 2;
                let text = self.quoted_body()?;
                let hex = matches!(byte, b'x' | b'X');
                let valid = |digit: u8| {
                    if hex { digit.is_ascii_hexdigit() } else { matches!(digit, b'0' | b'1') }
                };
                if !text.bytes().all(valid) {
                    return syntax(start, "invalid digit in a bit string");
                }
                self.token(Kind::Bits, text, start)
            }
            b'u' | b'U' if self.peek(1) == Some(b'&') && self.peek(2) == Some(b'\'') => {
                self.at += 3;
                let body = self.quoted_body()?;
                let escape = self.unicode_escape()?;
                let text = decode_unicode(&body, escape, start)?;
                self.token(Kind::String, Cow::Owned(text), start)
            }
            b'u' | b'U' if self.peek(1) == Some(b'&') && self.peek(2) == Some(b'"') => {
                self.at += 3;
                let body = self.quoted_name(start)?;
                if body.is_empty() {
                    return syntax(start, "zero-length delimited identifier");
                }
                let escape = self.unicode_escape()?;
                let name = decode_unicode(&body, escape, start)?;
                self.name(Cow::Owned(name), start)
            }
            b'$' => self.dollar(),
            b'0'..=b'9' => self.number(),
            b'.' if self.peek(1).is_some_and(|byte| byte.is_ascii_digit()) => self.number(),
            b'.' if self.peek(1) == Some(b'.') => self.symbol(Kind::DotDot, 2),
            b'.' => self.symbol(Kind::Dot, 1),
            b':' if self.peek(1) == Some(b':') => self.symbol(Kind::Cast, 2),
            b':' if self.peek(1) == Some(b'=') => self.symbol(Kind::Assign, 2),
            b':' => self.symbol(Kind::Colon, 1),
            b'(' => self.symbol(Kind::LeftParen, 1),
            b')' => self.symbol(Kind::RightParen, 1),
            b'[' => self.symbol(Kind::LeftBracket, 1),
            b']' => self.symbol(Kind::RightBracket, 1),
            b',' => self.symbol(Kind::Comma, 1),
            b';' => self.symbol(Kind::Semicolon, 1),
            _ if is_operator_byte(byte) => self.operator(),
            _ if is_ident_start(byte) => {
                while self.peek(0).is_some_and(is_ident_part) {
                    self.at += 1;
                }
                let spelled = self.slice(start, self.at);
                let name = if spelled.bytes().any(|byte| byte.is_ascii_uppercase()) {
                    Cow::Owned(spelled.to_ascii_lowercase())
                } else {
                    Cow::Borrowed(spelled)
                };
                let name = cut(name);
                let (category, keyword) = keyword::lookup(&name);
                let kind = Kind::Word(category);
                Ok(Some(Item::Token(Token { kind, text: name, start, end: self.at, keyword })))
            }
            _ => syntax(start, "unexpected character"),
        }
    }

    fn name(&self, name: Cow<'a, str>, start: usize) -> Result<Option<Item<'a>>> {
        if name.is_empty() {
            return syntax(start, "zero-length delimited identifier");
        }
        self.token(Kind::Quoted, cut(name), start)
    }

    /// `UESCAPE '!'` behind a `U&'…'`: it belongs to that token. The escape character.
    ///
    /// With a comment between, it is left to [`tokens`], which refuses it.
    fn unicode_escape(&mut self) -> Result<char> {
        const WORD: &str = "uescape";
        let mut ahead = Lexer { text: self.text, bytes: self.bytes, at: self.at };
        ahead.skip_space();
        let word = ahead.slice(ahead.at, ahead.at + WORD.len());
        if !word.eq_ignore_ascii_case(WORD) || ahead.peek(WORD.len()).is_some_and(is_ident_part) {
            return Ok('\\');
        }
        let start = ahead.at;
        ahead.at += WORD.len();
        ahead.skip_space();
        // Any string constant but another `U&'…'`.
        if !matches!(
            (ahead.peek(0), ahead.peek(1)),
            (Some(b'\'' | b'$'), _) | (Some(b'e' | b'E'), Some(b'\''))
        ) {
            return syntax(start, "UESCAPE must be followed by a simple string literal");
        }
        let Some(Item::Token(Token { kind: Kind::String, text, .. })) = ahead.next_item()? else {
            return syntax(start, "UESCAPE must be followed by a simple string literal");
        };
        let [escape] = text.as_bytes() else { return syntax(start, "invalid Unicode escape character") };
        if escape.is_ascii_hexdigit() || matches!(escape, b'+' | b'\'' | b'"') || is_space(*escape) {
            return syntax(start, "invalid Unicode escape character");
        }
        self.at = ahead.at;
        Ok(char::from(*escape))
    }

    fn skip_space(&mut self) {
        while self.peek(0).is_some_and(is_space) {
            self.at += 1;
        }
    }

    fn block_comment(&mut self) -> Result<Option<Item<'a>>> {
        let start = self.at;
        let mut depth = 0usize;
        loop {
            match (self.peek(0), self.peek(1)) {
                (Some(b'/'), Some(b'*')) => {
                    depth += 1;
                    self.at += 2;
                }
                (Some(b'*'), Some(b'/')) => {
                    depth -= 1;
                    self.at += 2;
                    if depth == 0 {
                        return Ok(Some(Item::Comment(Comment { start, end: self.at, block: true })));
                    }
                }
                (Some(_), _) => self.at += 1,
                (None, _) => return syntax(start, "unterminated /* comment"),
            }
        }
    }

    /// After a closing quote: does white space with a line end and another quote follow, so that the
    /// string goes on? Then the position is behind that quote (`quotecontinue`).
    fn continues(&mut self) -> bool {
        let mut at = self.at;
        let byte = |at: usize| self.bytes.get(at).copied();
        let comment = |mut at: usize| {
            while byte(at).is_some_and(|byte| !is_newline(byte)) {
                at += 1;
            }
            at
        };
        loop {
            match byte(at) {
                Some(b'\n' | b'\r') => break,
                Some(space) if is_space(space) => at += 1,
                Some(b'-') if byte(at + 1) == Some(b'-') => at = comment(at),
                _ => return false,
            }
        }
        loop {
            match byte(at) {
                Some(space) if is_space(space) => at += 1,
                Some(b'-') if byte(at + 1) == Some(b'-') => {
                    at = comment(at);
                    if byte(at).is_none() {
                        return false;
                    }
                }
                Some(b'\'') => {
                    self.at = at + 1;
                    return true;
                }
                _ => return false,
            }
        }
    }

    /// The body of a `'…'` without escapes, from behind its opening quote.
    fn quoted_body(&mut self) -> Result<Cow<'a, str>> {
        let opened = self.at.saturating_sub(1);
        let mut segment = self.at;
        let mut body: Option<String> = None;
        loop {
            let Some(quote) = self.bytes.get(self.at..).and_then(|rest| memchr::memchr(b'\'', rest)) else {
                return syntax(opened, "unterminated quoted string");
            };
            self.at += quote;
            if self.peek(1) == Some(b'\'') {
                self.at += 1;
                body.get_or_insert_default().push_str(self.slice(segment, self.at));
                self.at += 1;
                segment = self.at;
                continue;
            }
            let rest = self.slice(segment, self.at);
            self.at += 1;
            if self.continues() {
                body.get_or_insert_default().push_str(rest);
                segment = self.at;
                continue;
            }
            return Ok(match body {
                None => Cow::Borrowed(rest),
                Some(mut body) => {
                    body.push_str(rest);
                    Cow::Owned(body)
                }
            });
        }
    }

    fn plain_string(&mut self, kind: Kind, start: usize) -> Result<Option<Item<'a>>> {
        let text = self.quoted_body()?;
        self.token(kind, text, start)
    }

    /// The body of a `"…"`, from behind its opening quote.
    fn quoted_name(&mut self, start: usize) -> Result<Cow<'a, str>> {
        let mut segment = self.at;
        let mut body: Option<String> = None;
        loop {
            let Some(quote) = self.bytes.get(self.at..).and_then(|rest| memchr::memchr(b'"', rest)) else {
                return syntax(start, "unterminated quoted identifier");
            };
            self.at += quote;
            let doubled = self.peek(1) == Some(b'"');
            let rest = self.slice(segment, self.at + usize::from(doubled));
            self.at += 1 + usize::from(doubled);
            segment = self.at;
            match (&mut body, doubled) {
                (None, false) => return Ok(Cow::Borrowed(rest)),
                (Some(body), false) => {
                    body.push_str(rest);
                    return Ok(Cow::Owned(std::mem::take(body)));
                }
                (body, true) => body.get_or_insert_default().push_str(rest),
            }
        }
    }

    fn escape_string(&mut self, start: usize) -> Result<Option<Item<'a>>> {
        let mut body: Vec<u8> = Vec::new();
        loop {
            match self.peek(0) {
                None => return syntax(start, "unterminated quoted string"),
                Some(b'\'') => {
                    self.at += 1;
                    if self.peek(0) == Some(b'\'') {
                        body.push(b'\'');
                        self.at += 1;
                    } else if !self.continues() {
                        break;
                    }
                }
                Some(b'\\') => {
                    self.at += 1;
                    self.escape(&mut body)?;
                }
                Some(byte) => {
                    body.push(byte);
                    self.at += 1;
                }
            }
        }
        match String::from_utf8(body) {
            Ok(body) if !body.contains('\0') => self.token(Kind::String, Cow::Owned(body), start),
            _ => Err(LexError { problem: Problem::Encoding, offset: start }),
        }
    }

    /// One escape of an `E'…'`, from behind its backslash.
    fn escape(&mut self, body: &mut Vec<u8>) -> Result<()> {
        let at = self.at;
        let Some(byte) = self.peek(0) else { return syntax(at, "unterminated quoted string") };
        self.at += 1;
        match byte {
            b'b' => body.push(0x08),
            b'f' => body.push(0x0c),
            b'n' => body.push(b'\n'),
            b'r' => body.push(b'\r'),
            b't' => body.push(b'\t'),
            b'v' => body.push(0x0b),
            b'0'..=b'7' => {
                let mut value = u32::from(byte - b'0');
                for _ in 0..2 {
                    match self.peek(0) {
                        Some(digit @ b'0'..=b'7') => {
                            value = value * 8 + u32::from(digit - b'0');
                            self.at += 1;
                        }
                        _ => break,
                    }
                }
                body.push((value & 0xff) as u8);
            }
            b'x' if self.peek(0).is_some_and(|digit| digit.is_ascii_hexdigit()) => {
                let mut value = 0;
                for _ in 0..2 {
                    let Some(digit) = self.peek(0).and_then(|digit| char::from(digit).to_digit(16)) else {
                        break;
                    };
                    value = value * 16 + digit;
                    self.at += 1;
                }
                body.push((value & 0xff) as u8);
            }
            b'u' | b'U' => {
                let Some(code) = self.unicode(byte) else { return syntax(at, "invalid Unicode escape") };
                let letter = if (0xd800..=0xdbff).contains(&code) {
                    // The second half has to follow at once.
                    let second = match (self.peek(0), self.peek(1)) {
                        (Some(b'\\'), Some(byte @ (b'u' | b'U'))) => {
                            self.at += 2;
                            self.unicode(byte)
                        }
                        _ => None,
                    };
                    second.and_then(|second| surrogates(code, second))
                } else {
                    char::from_u32(code).filter(|letter| *letter != '\0')
                };
                let Some(letter) = letter else { return syntax(at, "invalid Unicode escape") };
                body.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes());
            }
            other => body.push(other),
        }
        Ok(())
    }

    /// The digits behind `\u` or `\U`.
    fn unicode(&mut self, letter: u8) -> Option<u32> {
        let digits = if letter == b'u' { 4 } else { 8 };
        let code = self.bytes.get(self.at..self.at + digits).and_then(hexadecimal)?;
        self.at += digits;
        Some(code)
    }

    fn dollar(&mut self) -> Result<Option<Item<'a>>> {
        let start = self.at;
        let mut end = start + 1;
        let byte = |at: usize| self.bytes.get(at).copied();
        if byte(end).is_some_and(|digit| digit.is_ascii_digit()) {
            while byte(end).is_some_and(|digit| digit.is_ascii_digit()) {
                end += 1;
            }
            if byte(end).is_some_and(is_ident_start) || end - start > 6 {
                return syntax(start, "trailing junk after parameter");
            }
            self.at = end;
            return self.token(Kind::Parameter, Cow::Borrowed(self.slice(start + 1, end)), start);
        }
        if byte(end).is_some_and(is_ident_start) {
            while byte(end).is_some_and(|byte| is_ident_part(byte) && byte != b'$') {
                end += 1;
            }
        }
        if byte(end) != Some(b'$') {
            return syntax(start, "unexpected character");
        }
        let body = end + 1;
        let delimiter = self.bytes.get(start..body).unwrap_or_default();
        let rest = self.bytes.get(body..).unwrap_or_default();
        let Some(length) = memchr::memmem::find(rest, delimiter) else {
            return syntax(start, "unterminated dollar-quoted string");
        };
        self.at = body + length + delimiter.len();
        self.token(Kind::String, Cow::Borrowed(self.slice(body, body + length)), start)
    }

    fn digits(&mut self, valid: fn(&u8) -> bool) -> bool {
        let from = self.at;
        loop {
            if self.peek(0).as_ref().is_some_and(valid) {
                self.at += 1;
            } else if self.at > from && self.peek(0) == Some(b'_') && self.peek(1).as_ref().is_some_and(valid)
            {
                self.at += 2;
            } else {
                return self.at > from;
            }
        }
    }

    fn number(&mut self) -> Result<Option<Item<'a>>> {
        const JUNK: &str = "trailing junk after numeric literal";
        let start = self.at;
        let radix: Option<fn(&u8) -> bool> = match (self.peek(0), self.peek(1)) {
            (Some(b'0'), Some(b'x' | b'X')) => Some(u8::is_ascii_hexdigit),
            (Some(b'0'), Some(b'o' | b'O')) => Some(|digit| matches!(digit, b'0'..=b'7')),
            (Some(b'0'), Some(b'b' | b'B')) => Some(|digit| matches!(digit, b'0' | b'1')),
            _ => None,
        };
        if let Some(valid) = radix {
            self.at += 2;
            if self.peek(0) == Some(b'_') {
                self.at += 1;
            }
            if !self.digits(valid) {
                return syntax(start, JUNK);
            }
        } else {
            self.digits(u8::is_ascii_digit);
            // `1..2` is a number and two dots, in every version.
            if self.peek(0) == Some(b'.') && self.peek(1) != Some(b'.') {
                self.at += 1;
                self.digits(u8::is_ascii_digit);
            }
            if matches!(self.peek(0), Some(b'e' | b'E')) {
                self.at += 1;
                if matches!(self.peek(0), Some(b'+' | b'-')) {
                    self.at += 1;
                }
                if !self.digits(u8::is_ascii_digit) {
                    return syntax(start, JUNK);
                }
            }
        }
        // Versions before 15 end the number here and begin a name.
        if self.peek(0).is_some_and(|byte| is_ident_start(byte) || byte.is_ascii_digit()) {
            return syntax(start, JUNK);
        }
        self.token(Kind::Number, Cow::Borrowed(self.slice(start, self.at)), start)
    }

    fn operator(&mut self) -> Result<Option<Item<'a>>> {
        let start = self.at;
        let mut end = start;
        while let Some(byte) = self.bytes.get(end).copied() {
            let next = self.bytes.get(end + 1).copied();
            if !is_operator_byte(byte)
                || (byte == b'/' && next == Some(b'*'))
                || (byte == b'-' && next == Some(b'-'))
            {
                break;
            }
            end += 1;
            // Signs at the end are given back one by one and read again.
            if end - start > LONGEST_SIGNS {
                return Err(LexError { problem: Problem::Limit("operator too long"), offset: start });
            }
        }
        let spelled = self.bytes.get(start..end).unwrap_or_default();
        let trailing = |end: usize| matches!(self.bytes.get(end - 1), Some(b'+' | b'-'));
        if spelled.len() > 1 && trailing(end) {
            let keeps = |byte: &u8| {
                matches!(byte, b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'%')
            };
            if !spelled.iter().take(spelled.len() - 1).any(keeps) {
                while end - start > 1 && trailing(end) {
                    end -= 1;
                }
            }
        }
        if end - start > NAME_BYTES {
            return syntax(start, "operator too long");
        }
        self.at = end;
        match self.slice(start, end) {
            "=>" => self.token(Kind::Arrow, Cow::Borrowed("=>"), start),
            "!=" => self.token(Kind::Operator, Cow::Borrowed("<>"), start),
            symbol => self.token(Kind::Operator, Cow::Borrowed(symbol), start),
        }
    }
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    digits
        .iter()
        .try_fold(0u32, |value, digit| Some(value.checked_mul(16)? + char::from(*digit).to_digit(16)?))
}

/// The two halves of a surrogate pair as one character.
fn surrogates(first: u32, second: u32) -> Option<char> {
    match (first, second) {
        (0xd800..=0xdbff, 0xdc00..=0xdfff) => {
            char::from_u32(0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00))
        }
        _ => None,
    }
}

/// Decodes the body of `U&'…'` or `U&"…"` (`str_udeescape` of parser.c).
fn decode_unicode(body: &str, escape: char, start: usize) -> Result<String> {
    let mut decoded = String::with_capacity(body.len());
    let mut rest = body;
    // The first half of a pair, whose second has to follow at once.
    let mut half = None;
    while let Some(at) = rest.find(escape) {
        decoded.push_str(rest.get(..at).unwrap_or_default());
        rest = rest.get(at + 1..).unwrap_or_default();
        if half.is_some() && at > 0 {
            return syntax(start, "invalid Unicode surrogate pair");
        }
        if let Some(after) = rest.strip_prefix(escape) {
            if half.is_some() {
                return syntax(start, "invalid Unicode surrogate pair");
            }
            decoded.push(escape);
            rest = after;
            continue;
        }
        let (skip, digits) = if rest.starts_with('+') { (1, 6) } else { (0, 4) };
        let Some(code) = rest.as_bytes().get(skip..skip + digits).and_then(hexadecimal) else {
            return syntax(start, "invalid Unicode escape");
        };
        rest = rest.get(skip + digits..).unwrap_or_default();
        let letter = match (half.take(), code) {
            (Some(first), second) => surrogates(first, second),
            (None, 0xd800..=0xdbff) => {
                half = Some(code);
                continue;
            }
            (None, 0) => None,
            (None, code) => char::from_u32(code),
        };
        let Some(letter) = letter else { return syntax(start, "invalid Unicode escape") };
        decoded.push(letter);
    }
    if half.is_some() {
        return syntax(start, "invalid Unicode surrogate pair");
    }
    decoded.push_str(rest);
    Ok(decoded)
}
