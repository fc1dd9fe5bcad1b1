//! Queries: WITH, the select list, grouping, windows, limits.
//!
//! Invariant: a clause that holds an expression hands it on, whatever becomes of the clause.

use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::Token as Out;

use super::{Clause, Front, Result};
use crate::sql::lexer::{Kind, Token};

const UNITS: &[&str] = &["range", "rows", "groups"];

/// Words that begin a clause, behind an operand always.
const CLAUSES: &[&str] = &[
    "from",
    "where",
    "having",
    "group",
    "window",
    "order",
    "limit",
    "offset",
    "fetch",
    "for",
    "union",
    "intersect",
    "except",
];

impl<'t, 'a> Front<'t, 'a> {
    /// The word that begins a query.
    pub(super) fn query_start(&mut self, token: &Token<'_>) -> Result<()> {
        match token.text.as_ref() {
            "select" => {
                self.key();
                self.clause = Clause::Select;
                self.drop_words(&["all"]);
                if self.is(self.at, "distinct") {
                    self.key();
                    if self.is(self.at, "on") && self.kind(self.at + 1) == Some(Kind::LeftParen) {
                        self.key();
                        self.bracket(Clause::Plain)?;
                    }
                }
                self.operand = false;
                if self.ends_item(self.at) && self.kind(self.at) != Some(Kind::Comma) {
                    self.put_word("null", Keyword::NULL);
                    self.operand = true;
                }
                Ok(())
            }
            "values" => {
                self.key();
                self.clause = Clause::Rest;
                loop {
                    self.bracket(Clause::Plain)?;
                    if self.kind(self.at) != Some(Kind::Comma) {
                        return Ok(());
                    }
                    self.expect(Kind::Comma)?;
                }
            }
            // `TABLE t` is `SELECT * FROM t`.
            "table" => {
                self.put_word("select", Keyword::SELECT);
                self.put(Out::Mul);
                self.put_word("from", Keyword::FROM);
                self.at += 1;
                self.clause = Clause::From;
                self.operand = false;
                self.table_factor()
            }
            "with" => self.with(),
            _ => self.error(),
        }
    }

    /// Does an item of the select list end before `at`?
    pub(super) fn ends_item(&self, at: usize) -> bool {
        match self.kind(at) {
            None | Some(Kind::Comma | Kind::RightParen) => true,
            Some(Kind::Word(_)) => {
                self.is_one(
                    at,
                    &[
                        "from",
                        "into",
                        "where",
                        "group",
                        "having",
                        "window",
                        "order",
                        "limit",
                        "offset",
                        "fetch",
                        "for",
                        "union",
                        "intersect",
                        "except",
                        "returning",
                    ],
                ) || (self.is(at, "format") && self.is(at + 1, "json"))
            }
            Some(_) => false,
        }
    }

    fn with(&mut self) -> Result<()> {
        self.key();
        if self.is(self.at, "recursive") {
            self.key();
        }
        loop {
            self.column_name()?;
            if self.kind(self.at) == Some(Kind::LeftParen) {
                self.names()?;
            }
            if !self.is(self.at, "as") {
                return self.error();
            }
            self.key();
            if self.is(self.at, "not") {
                self.key();
            }
            if self.is(self.at, "materialized") {
                self.key();
            }
            self.bracket(Clause::Start)?;
            self.search()?;
            self.cycle()?;
            if self.kind(self.at) != Some(Kind::Comma) {
                break;
            }
            self.expect(Kind::Comma)?;
        }
        self.operand = false;
        Ok(())
    }

    /// Names in brackets.
    pub(super) fn names(&mut self) -> Result<()> {
        self.expect(Kind::LeftParen)?;
        loop {
            self.column_name()?;
            if self.kind(self.at) != Some(Kind::Comma) {
                break;
            }
            self.expect(Kind::Comma)?;
        }
        self.expect(Kind::RightParen)
    }

    fn recorded_names(&mut self) -> Result<()> {
        self.record()?;
        while self.skip(Kind::Comma) {
            self.record()?;
        }
        Ok(())
    }

    /// `SEARCH DEPTH FIRST BY a, b SET c`: names of columns.
    fn search(&mut self) -> Result<()> {
        if !self.drop_words(&["search", "depth", "first", "by"])
            && !self.drop_words(&["search", "breadth", "first", "by"])
        {
            return Ok(());
        }
        self.recorded_names()?;
        self.expect_words(&["set"])?;
        self.record()
    }

    /// `CYCLE a, b SET c TO 'x' DEFAULT 'y' USING d`: names of columns and constants.
    fn cycle(&mut self) -> Result<()> {
        if !self.drop_words(&["cycle"]) {
            return Ok(());
        }
        self.recorded_names()?;
        self.expect_words(&["set"])?;
        self.record()?;
        if self.drop_words(&["to"]) {
            self.cycle_mark()?;
            self.expect_words(&["default"])?;
            self.cycle_mark()?;
        }
        self.expect_words(&["using"])?;
        self.record()
    }

    /// A constant, with the type before it where there is one.
    fn cycle_mark(&mut self) -> Result<()> {
        let Some(token) = self.peek() else { return self.error() };
        match token.kind {
            Kind::String | Kind::Bits | Kind::Number => self.at += 1,
            Kind::Word(_) if self.drop_one(&["true", "false", "null"]) => {}
            Kind::Word(_) | Kind::Quoted => {
                // The string has nowhere to go, the type is recorded.
                let out = self.out.len();
                self.operand = false;
                if !self.typed_literal(token)? {
                    return self.error();
                }
                self.out.truncate(out);
            }
            _ => return self.error(),
        }
        Ok(())
    }

    /// The word that begins the next clause of a query. `false`: it begins none.
    pub(super) fn clause_word(&mut self, token: &Token<'_>) -> Result<bool> {
        // To the parser it would be a column's name, and what it reads from an alias.
        if !self.operand && CLAUSES.contains(&token.text.as_ref()) {
            return self.error();
        }
        match token.text.as_ref() {
            "from" => {
                self.key();
                self.clause = Clause::From;
            }
            "where" | "having" => {
                self.key();
                self.clause = Clause::Rest;
            }
            "group" => {
                self.key();
                if !self.is(self.at, "by") {
                    return self.error();
                }
                self.key();
                self.drop_one(&["distinct", "all"]);
                self.clause = Clause::Group;
            }
            "window" => {
                self.key();
                self.clause = Clause::Rest;
                self.windows()?;
                return Ok(true);
            }
            "order" => {
                self.key();
                if !self.is(self.at, "by") {
                    return self.error();
                }
                self.key();
                self.clause = Clause::Rest;
            }
            "limit" => {
                self.key();
                self.clause = Clause::Rest;
                if self.is(self.at, "all") {
                    self.put_word("null", Keyword::NULL);
                    self.at += 1;
                    self.operand = true;
                    return Ok(true);
                }
            }
            "offset" => {
                self.key();
                self.clause = Clause::Rest;
            }
            "fetch" => {
                self.clause = Clause::Rest;
                self.fetch()?;
                return Ok(true);
            }
            "for" => {
                self.clause = Clause::Rest;
                // The others are told by the tokens.
                self.expect_words(&["for", "read", "only"])?;
                return Ok(true);
            }
            "union" | "intersect" | "except" => {
                self.key();
                if self.is_one(self.at, &["all", "distinct"]) {
                    self.key();
                }
                self.clause = Clause::Start;
            }
            _ => return Ok(false),
        }
        self.operand = false;
        Ok(true)
    }

    /// `FETCH FIRST 2 ROWS ONLY` is a limit.
    fn fetch(&mut self) -> Result<()> {
        self.at += 1;
        if !self.drop_one(&["first", "next"]) {
            return self.error();
        }
        if !self.is_one(self.at, &["row", "rows"]) {
            self.put_word("limit", Keyword::LIMIT);
            self.argument(&["row", "rows"])?;
        }
        self.operand = true;
        if !self.drop_one(&["row", "rows"])
            || !(self.drop_words(&["only"]) || self.drop_words(&["with", "ties"]))
        {
            return self.error();
        }
        Ok(())
    }

    fn windows(&mut self) -> Result<()> {
        loop {
            self.column_name()?;
            if !self.is(self.at, "as") {
                return self.error();
            }
            self.key();
            self.window()?;
            if self.kind(self.at) != Some(Kind::Comma) {
                return Ok(());
            }
            self.expect(Kind::Comma)?;
        }
    }

    /// `OVER w`, `OVER (…)`
    pub(super) fn over(&mut self) -> Result<()> {
        self.key();
        if self.kind(self.at) == Some(Kind::LeftParen) {
            self.window()?;
        } else {
            self.column_name()?;
        }
        self.operand = true;
        Ok(())
    }

    fn window(&mut self) -> Result<()> {
        self.expect(Kind::LeftParen)?;
        let outside = std::mem::replace(&mut self.clause, Clause::Plain);
        let cases = std::mem::take(&mut self.cases);
        if self.peek().is_some_and(Token::is_column_name)
            && !self.is_one(self.at, UNITS)
            && !self.words(&["partition", "by"])
        {
            self.column_name()?;
        }
        self.operand = true;
        loop {
            let Some(token) = self.peek() else { return self.error() };
            match token.kind {
                Kind::RightParen => break,
                Kind::Word(_)
                    if self.operand && (self.words(&["partition", "by"]) || self.words(&["order", "by"])) =>
                {
                    self.key();
                    self.key();
                    self.operand = false;
                }
                Kind::Word(_) if self.operand && self.is_one(self.at, UNITS) => {
                    self.frame()?;
                    break;
                }
                _ => self.step()?,
            }
        }
        self.expect(Kind::RightParen)?;
        self.clause = outside;
        self.cases = cases;
        self.operand = true;
        Ok(())
    }

    fn frame(&mut self) -> Result<()> {
        self.key();
        if self.is(self.at, "between") {
            self.key();
            self.bound()?;
            if !self.is(self.at, "and") {
                return self.error();
            }
            self.key();
        }
        self.bound()?;
        // What is excluded holds no expression.
        if self.drop_words(&["exclude"]) {
            let fits = self.drop_words(&["current", "row"])
                || self.drop_words(&["no", "others"])
                || self.drop_one(&["group", "ties"]);
            if !fits {
                return self.error();
            }
        }
        Ok(())
    }

    fn bound(&mut self) -> Result<()> {
        if self.words(&["current", "row"]) {
            self.key();
            self.key();
            return Ok(());
        }
        if self.is(self.at, "unbounded") && self.is_one(self.at + 1, &["preceding", "following"]) {
            self.key();
        } else {
            // In brackets it is an expression to the parser, too.
            self.put(Out::LParen);
            self.argument(&["preceding", "following"])?;
            self.put(Out::RParen);
        }
        if !self.is_one(self.at, &["preceding", "following"]) {
            return self.error();
        }
        self.key();
        Ok(())
    }
}
