//! Functions that PostgreSQL's grammar has a syntax of their own for.
//!
//! Invariant: all operands are handed on as arguments of a call by the name that PostgreSQL looks up,
//! or by the syntax's own name where it looks up none.

use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::Token as Out;

use super::{Clause, Front, Name, Result};
use crate::sql::lexer::{Kind, Token};

impl<'t, 'a> Front<'t, 'a> {
    /// A call whose name is the word at the position. `false`: it is a call like any other.
    pub(super) fn special_call(&mut self, token: &Token<'_>) -> Result<bool> {
        if token.kind == Kind::Quoted {
            return Ok(false);
        }
        match token.text.as_ref() {
            "exists" => {
                self.key();
                if !self.is_query(self.at) {
                    return self.error();
                }
                self.subquery()?;
            }
            "extract" => {
                self.plain_name()?;
                self.expect(Kind::LeftParen)?;
                // The field is a word that is no name.
                match self.kind(self.at) {
                    Some(Kind::Word(_) | Kind::Quoted) => self.label()?,
                    _ => self.argument(&["from"])?,
                }
                self.separated(&["from"])?;
                self.close()?;
            }
            "overlay" => self.listed(&["placing", "from", "for"])?,
            "substring" => self.listed(&["from", "for", "similar", "escape"])?,
            "position" => self.listed(&["in"])?,
            "normalize" => {
                self.plain_name()?;
                self.expect(Kind::LeftParen)?;
                self.argument(&[])?;
                if self.kind(self.at) == Some(Kind::Comma)
                    && self.is_one(self.at + 1, &["nfc", "nfd", "nfkc", "nfkd"])
                {
                    self.at += 2;
                }
                self.rest_of_list(&[])?;
                self.close()?;
            }
            "trim" => self.trim()?,
            "treat" => self.treat()?,
            "collation" => return Ok(false),
            word if word.starts_with("xml") => return self.xml_call(word),
            word if word.starts_with("json") => return self.json_call(word),
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(super) fn close(&mut self) -> Result<()> {
        self.expect(Kind::RightParen)?;
        self.operand = true;
        Ok(())
    }

    /// Puts a comma for one of these key words.
    fn separated(&mut self, words: &[&str]) -> Result<()> {
        if !self.is_one(self.at, words) && self.kind(self.at) != Some(Kind::Comma) {
            return self.error();
        }
        self.rest_of_list(words)
    }

    /// Expressions up to the bracket that closes, each begun by a comma or by one of these key words.
    pub(super) fn rest_of_list(&mut self, words: &[&str]) -> Result<()> {
        loop {
            if self.kind(self.at) == Some(Kind::RightParen) {
                return Ok(());
            }
            let fits = self.is_one(self.at, words) || self.kind(self.at) == Some(Kind::Comma);
            if !fits {
                return self.error();
            }
            self.comma();
            self.at += 1;
            self.argument(words)?;
        }
    }

    /// `name(a WORD b WORD c)` as `name(a, b, c)`.
    fn listed(&mut self, words: &[&str]) -> Result<()> {
        self.plain_name()?;
        self.expect(Kind::LeftParen)?;
        if self.kind(self.at) != Some(Kind::RightParen) {
            self.argument(words)?;
            self.rest_of_list(words)?;
        }
        self.close()
    }

    /// `trim(LEADING 'x' FROM a)`, which is `ltrim(a, 'x')`.
    fn trim(&mut self) -> Result<()> {
        let name = if self.is(self.at + 2, "leading") {
            "ltrim"
        } else if self.is(self.at + 2, "trailing") {
            "rtrim"
        } else {
            "btrim"
        };
        self.put_word(name, Keyword::NoKeyword);
        self.at += 1;
        self.expect(Kind::LeftParen)?;
        self.drop_one(&["leading", "trailing", "both"]);
        self.drop_words(&["from"]);
        self.argument(&["from"])?;
        self.rest_of_list(&["from"])?;
        self.close()
    }

    /// CAST (a AS type)
    pub(super) fn cast(&mut self) -> Result<()> {
        self.key();
        self.cast_body()
    }

    fn cast_body(&mut self) -> Result<()> {
        self.expect(Kind::LeftParen)?;
        self.argument(&["as"])?;
        if !self.is(self.at, "as") {
            return self.error();
        }
        self.key();
        self.r#type()?;
        self.close()
    }

    /// TREAT (a AS type) calls PostgreSQL's own function of the type's name.
    fn treat(&mut self) -> Result<()> {
        let offset = self.peek().map_or(0, |token| token.start);
        self.put_word("cast", Keyword::CAST);
        self.at += 1;
        let from = self.out.len();
        self.cast_body()?;
        let last = self.out.get(from..).and_then(|out| {
            out.iter().rev().find_map(|out| match &out.token {
                Out::Word(word) => Some(word.value.clone()),
                _ => None,
            })
        });
        let Some(last) = last else { return self.error() };
        self.beside.functions.push(Name { parts: vec!["pg_catalog".to_owned(), last], offset });
        Ok(())
    }

    /// COLLATION FOR (a)
    pub(super) fn collation_for(&mut self) -> Result<()> {
        self.put_word("pg_collation_for", Keyword::NoKeyword);
        self.at += 2;
        self.bracket(Clause::Plain)
    }
}
