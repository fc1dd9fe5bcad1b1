//! A position among the tokens of a statement.
//!
//! Invariant: every `accept` moves on only when it fits; nothing is skipped.

use super::Result;
use crate::sql::lexer::{Kind, Token};
use crate::sql::parse::ParseError;

/// Walks over tokens; every `accept` moves on only when it fits.
pub(super) struct Cursor<'t, 'a> {
    pub(super) tokens: &'t [Token<'a>],
    pub(super) at: usize,
}

impl<'t, 'a> Cursor<'t, 'a> {
    pub(super) fn peek(&self) -> Option<&'t Token<'a>> {
        self.tokens.get(self.at)
    }

    pub(super) fn ahead(&self, ahead: usize) -> Option<&'t Token<'a>> {
        self.tokens.get(self.at + ahead)
    }

    pub(super) fn is(&self, word: &str) -> bool {
        self.peek().is_some_and(|token| token.is(word))
    }

    pub(super) fn accept(&mut self, word: &str) -> bool {
        let fits = self.is(word);
        self.at += usize::from(fits);
        fits
    }

    /// Accepts all of `words` or nothing.
    pub(super) fn accept_all(&mut self, words: &[&str]) -> bool {
        let fits = words
            .iter()
            .enumerate()
            .all(|(ahead, word)| self.ahead(ahead).is_some_and(|token| token.is(word)));
        if fits {
            self.at += words.len();
        }
        fits
    }

    pub(super) fn accept_kind(&mut self, kind: Kind) -> bool {
        let fits = self.peek().is_some_and(|token| token.kind == kind);
        self.at += usize::from(fits);
        fits
    }

    pub(super) fn accept_operator(&mut self, symbol: &str) -> bool {
        let fits = self.peek().is_some_and(|token| token.is_operator(symbol));
        self.at += usize::from(fits);
        fits
    }

    pub(super) fn error<T>(&self) -> Result<T> {
        Err(ParseError::at(self.peek()))
    }

    pub(super) fn expect(&mut self, word: &str) -> Result<()> {
        if self.accept(word) { Ok(()) } else { self.error() }
    }

    pub(super) fn expect_end(&self) -> Result<()> {
        if self.at == self.tokens.len() { Ok(()) } else { self.error() }
    }

    pub(super) fn name(&mut self) -> Result<String> {
        match self.peek() {
            Some(token) if token.is_column_name() => {
                self.at += 1;
                Ok(token.text.clone().into_owned())
            }
            _ => self.error(),
        }
    }

    /// `a.b.c`
    pub(super) fn qualified_name(&mut self) -> Result<Vec<String>> {
        let mut name = vec![self.name()?];
        while self.accept_kind(Kind::Dot) {
            match self.peek() {
                Some(token) if matches!(token.kind, Kind::Word(_) | Kind::Quoted) => {
                    name.push(token.text.clone().into_owned());
                    self.at += 1;
                }
                _ => return self.error(),
            }
        }
        Ok(name)
    }

    pub(super) fn rest(&self) -> &'t [Token<'a>] {
        self.tokens.get(self.at..).unwrap_or_default()
    }

    /// The tokens between the bracket before the position and its partner; the position is then
    /// behind the partner.
    pub(super) fn bracketed(&mut self) -> Result<&'t [Token<'a>]> {
        let from = self.at;
        let mut depth = 1usize;
        while let Some(token) = self.peek() {
            self.at += 1;
            match token.kind {
                Kind::LeftParen | Kind::LeftBracket => depth += 1,
                Kind::RightParen | Kind::RightBracket => {
                    depth -= 1;
                    if depth == 0 {
                        return Ok(self.tokens.get(from..self.at - 1).unwrap_or_default());
                    }
                }
                _ => {}
            }
        }
        self.error()
    }
}
