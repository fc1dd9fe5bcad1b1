//! FROM: tables, functions as tables, aliases, samples and joins.
//!
//! Invariant: a table's name is handed on as a table's, a function's as a function's.

use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::Token as Out;

use super::expression::{JOINS, is_value};
use super::{Clause, Front, Name, Result};
use crate::sql::keyword::Category;
use crate::sql::lexer::{Kind, Token};

impl<'t, 'a> Front<'t, 'a> {
    /// One table, or what stands for one, without its alias.
    pub(super) fn table_factor(&mut self) -> Result<()> {
        if self.is(self.at, "lateral") {
            self.key();
        }
        let Some(token) = self.peek() else { return self.error() };
        if token.kind == Kind::LeftParen {
            let inside = if self.is_query(self.at) { Clause::Start } else { Clause::From };
            self.bracket(inside)?;
            return self.alias();
        }
        if self.words(&["rows", "from"]) && self.kind(self.at + 2) == Some(Kind::LeftParen) {
            self.rows_from()?;
        } else if self.drop_words(&["only"]) {
            let bracket = self.skip(Kind::LeftParen);
            self.table_name()?;
            if bracket && !self.skip(Kind::RightParen) {
                return self.error();
            }
        } else if self.is_expression(token) {
            self.put(Out::LParen);
            self.put_word("select", Keyword::SELECT);
            self.function()?;
            self.put(Out::RParen);
        } else {
            self.table_name()?;
            if self.kind(self.at) == Some(Kind::LeftParen) {
                self.bracket(Clause::Plain)?;
            } else if self.peek().is_some_and(|token| token.is_operator("*")) {
                // `t *` is `t` with its descendants.
                self.at += 1;
            }
        }
        self.drop_words(&["with", "ordinality"]);
        self.operand = true;
        self.alias()
    }

    /// Is it a function in PostgreSQL's own syntax, which the parser does not take for a table?
    fn is_expression(&self, token: &Token<'_>) -> bool {
        let open = self.kind(self.at + 1) == Some(Kind::LeftParen);
        match token.kind {
            Kind::Word(Category::Reserved) => (open && token.is("cast")) || is_value(&token.text),
            Kind::Word(Category::ColumnName) => open,
            Kind::Word(Category::TypeFunction) => {
                token.is("current_schema") || (token.is("collation") && self.is(self.at + 1, "for"))
            }
            _ => false,
        }
    }

    /// One call, as an expression.
    fn function(&mut self) -> Result<()> {
        let outside = std::mem::replace(&mut self.clause, Clause::Plain);
        self.operand = false;
        self.step()?;
        // `current_time(3)`
        if self.kind(self.at) == Some(Kind::LeftParen) {
            self.bracket(Clause::Plain)?;
        }
        self.clause = outside;
        Ok(())
    }

    fn table_name(&mut self) -> Result<()> {
        let named = self
            .peek()
            .is_some_and(|token| token.is_column_name() || token.kind == Kind::Word(Category::TypeFunction));
        if !named {
            return self.error();
        }
        let end = self.name_end(self.at);
        self.plain_name()?;
        while self.at < end {
            self.put(Out::Period);
            self.at += 1;
            self.plain_name()?;
        }
        Ok(())
    }

    /// `ROWS FROM (f(), g() AS (a int))` calls its functions: `(SELECT f(), g(), NULL::int)`.
    fn rows_from(&mut self) -> Result<()> {
        self.at += 2;
        self.expect(Kind::LeftParen)?;
        self.put_word("select", Keyword::SELECT);
        loop {
            self.function()?;
            if self.drop_words(&["as"]) {
                self.skip_open()?;
                loop {
                    self.record()?;
                    self.comma();
                    self.null_of_type()?;
                    self.collation();
                    if !self.skip(Kind::Comma) {
                        break;
                    }
                }
                if !self.skip(Kind::RightParen) {
                    return self.error();
                }
            }
            if self.kind(self.at) != Some(Kind::Comma) {
                break;
            }
            self.expect(Kind::Comma)?;
        }
        self.expect(Kind::RightParen)
    }

    pub(super) fn skip_open(&mut self) -> Result<()> {
        if self.skip(Kind::LeftParen) { Ok(()) } else { self.error() }
    }

    fn collation(&mut self) {
        if self.drop_words(&["collate"]) && self.peek().is_some_and(Token::is_column_name) {
            self.take_name(self.name_end(self.at));
        }
    }

    /// The alias of a table and the names, or the definitions, of its columns; then its sample.
    fn alias(&mut self) -> Result<()> {
        self.operand = true;
        let explicit = self.is(self.at, "as");
        if explicit {
            self.key();
        }
        let named = self.peek().is_some_and(Token::is_column_name) && !self.words(&["format", "json"]);
        if named {
            if !explicit {
                self.put_word("as", Keyword::AS);
            }
            self.label()?;
        } else if explicit && self.kind(self.at) == Some(Kind::LeftParen) {
            // `AS (a int)`
            self.put_word("_", Keyword::NoKeyword);
        } else if explicit {
            return self.error();
        }
        if (named || explicit) && self.kind(self.at) == Some(Kind::LeftParen) {
            self.expect(Kind::LeftParen)?;
            loop {
                self.column_name()?;
                if !matches!(self.kind(self.at), Some(Kind::Comma | Kind::RightParen)) {
                    self.r#type()?;
                    self.collation();
                }
                if self.kind(self.at) != Some(Kind::Comma) {
                    break;
                }
                self.expect(Kind::Comma)?;
            }
            self.expect(Kind::RightParen)?;
        }
        if self.is(self.at, "tablesample") { self.sample() } else { Ok(()) }
    }

    /// `TABLESAMPLE method (expressions) REPEATABLE (expression)`: the method is a function.
    fn sample(&mut self) -> Result<()> {
        self.key();
        let Some(token) = self.peek() else { return self.error() };
        if !matches!(token.kind, Kind::Word(_) | Kind::Quoted) {
            return self.error();
        }
        let name: Name = self.take_name(self.name_end(self.at));
        self.beside.functions.push(name);
        self.put_word("bernoulli", Keyword::BERNOULLI);
        self.put(Out::LParen);
        self.expect(Kind::LeftParen)?;
        self.inside(Clause::Plain)?;
        if self.kind(self.at) != Some(Kind::RightParen) {
            return self.error();
        }
        self.at += 1;
        if self.drop_words(&["repeatable"]) {
            self.comma();
            self.bracket(Clause::Plain)?;
        }
        self.put(Out::RParen);
        self.put(Out::RParen);
        self.operand = true;
        Ok(())
    }

    /// A word behind a table.
    pub(super) fn join_word(&mut self, token: &Token<'_>) -> Result<()> {
        match token.text.as_ref() {
            "join" => {
                self.key();
                self.operand = false;
            }
            "on" => {
                self.key();
                self.operand = false;
                self.clause = Clause::On;
            }
            "using" => {
                self.key();
                self.names()?;
                // Another name for the joined columns.
                if self.drop_words(&["as"]) {
                    self.record()?;
                }
            }
            word if JOINS.contains(&word) => self.key(),
            _ => return self.error(),
        }
        Ok(())
    }
}
