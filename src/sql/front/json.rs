//! The functions of SQL/JSON.
//!
//! Invariant: every expression becomes an argument, every type a cast of NULL; labels and the names
//! of columns are recorded. What is asked for besides is told by key words alone.

use super::{Clause, Front, Result};
use crate::sql::lexer::Kind;

/// Words behind an operand that go on with the call.
const STOPS: &[&str] = &[
    "absent",
    "as",
    "columns",
    "default",
    "empty",
    "error",
    "false",
    "format",
    "keep",
    "null",
    "omit",
    "on",
    "order",
    "passing",
    "returning",
    "true",
    "unknown",
    "value",
    "with",
    "without",
];

impl<'t, 'a> Front<'t, 'a> {
    /// A call whose name is `word`, at the position. `false`: it is a call like any other.
    pub(super) fn json_call(&mut self, word: &str) -> Result<bool> {
        match word {
            "json_table" => {
                self.open()?;
                self.json_arguments(true)?;
                self.close()?;
            }
            "json" | "json_array" | "json_arrayagg" | "json_exists" | "json_object" | "json_objectagg"
            | "json_query" | "json_scalar" | "json_serialize" | "json_value" => {
                self.open()?;
                if word == "json_array" && self.is_query(self.at - 1) {
                    self.json_query()?;
                }
                self.json_arguments(false)?;
                self.close()?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The query of JSON_ARRAY, which has no brackets of its own.
    fn json_query(&mut self) -> Result<()> {
        self.put(sqlparser::tokenizer::Token::LParen);
        let outside = std::mem::replace(&mut self.clause, Clause::Start);
        let cases = std::mem::take(&mut self.cases);
        self.operand = false;
        if !self.is_one(self.at, &["select", "with", "table"]) {
            self.put_word("select", sqlparser::keywords::Keyword::SELECT);
            self.put_word("null", sqlparser::keywords::Keyword::NULL);
            self.put_word("union", sqlparser::keywords::Keyword::UNION);
        }
        loop {
            match self.kind(self.at) {
                None | Some(Kind::RightParen) => break,
                Some(_) if self.words(&["format", "json"]) || self.is(self.at, "returning") => break,
                Some(_) => self.step()?,
            }
        }
        self.clause = outside;
        self.cases = cases;
        self.put(sqlparser::tokenizer::Token::RParen);
        self.operand = true;
        Ok(())
    }

    /// What stands in the brackets. The operand at hand tells whether a comma is due.
    fn json_arguments(&mut self, table: bool) -> Result<()> {
        let mut first = !self.operand;
        loop {
            let Some(token) = self.peek() else { return self.error() };
            match token.kind {
                Kind::RightParen => return Ok(()),
                // `key : value`, `key VALUE value`, and the next argument.
                Kind::Colon | Kind::Comma if !first => self.at += 1,
                Kind::Word(_) if !first && self.is(self.at, "value") => self.at += 1,
                Kind::Word(_) if !first && self.drop_words(&["as"]) => {
                    self.record()?;
                    continue;
                }
                Kind::Word(_) if !first && self.drop_words(&["passing"]) => {}
                Kind::Word(_) if !first && self.is(self.at, "order") => {
                    // What is ordered by is one more argument.
                    self.at += 1;
                    self.expect_words(&["by"])?;
                    self.comma();
                    self.argument(&["asc", "desc", "nulls", "using", "null", "absent", "returning"])?;
                    self.sorting()?;
                    continue;
                }
                Kind::Word(_) if table && !first && self.is(self.at, "columns") => {
                    self.json_columns()?;
                    continue;
                }
                Kind::Word(_) if self.json_option(first)? => {
                    first = first && !self.operand;
                    continue;
                }
                _ if first => {}
                _ => return self.error(),
            }
            if !first {
                self.comma();
            }
            first = false;
            self.argument(STOPS)?;
        }
    }

    /// ASC, NULLS FIRST and the like, and more to sort by.
    fn sorting(&mut self) -> Result<()> {
        let _ = self.drop_sorting()?;
        while self.kind(self.at) == Some(Kind::Comma) {
            self.at += 1;
            self.comma();
            self.argument(&["asc", "desc", "nulls", "using", "null", "absent", "returning"])?;
            let _ = self.drop_sorting()?;
        }
        Ok(())
    }

    fn drop_sorting(&mut self) -> Result<bool> {
        let mut any = false;
        while self.is_one(self.at, &["asc", "desc", "nulls", "using"]) {
            any = true;
            // Taken over as key words they would be expected where no ORDER BY is.
            let out = self.out.len();
            let clause = std::mem::replace(&mut self.clause, Clause::Rest);
            self.operand = true;
            self.step()?;
            self.clause = clause;
            self.out.truncate(out);
            self.operand = true;
        }
        Ok(any)
    }

    /// A clause behind the arguments, or in their place. `false`: it is none.
    fn json_option(&mut self, first: bool) -> Result<bool> {
        if self.drop_words(&["null", "on", "null"]) || self.drop_words(&["absent", "on", "null"]) {
            return Ok(true);
        }
        if self.is(self.at, "returning") {
            self.at += 1;
            if !first {
                self.comma();
            }
            self.null_of_type()?;
            self.format();
            return Ok(true);
        }
        if first {
            return Ok(false);
        }
        if self.words(&["format", "json"]) {
            self.format();
            return Ok(true);
        }
        if self.unique_keys() {
            return Ok(true);
        }
        if self.is_one(self.at, &["with", "without"]) {
            self.at += 1;
            self.drop_one(&["conditional", "unconditional"]);
            self.drop_words(&["array"]);
            self.expect_words(&["wrapper"])?;
            return Ok(true);
        }
        if self.is_one(self.at, &["keep", "omit"]) {
            self.at += 1;
            self.expect_words(&["quotes"])?;
            self.drop_words(&["on", "scalar", "string"]);
            return Ok(true);
        }
        if self.drop_words(&["default"]) {
            self.comma();
            self.argument(&["on"])?;
        } else if self.drop_words(&["empty"]) {
            self.drop_one(&["array", "object"]);
        } else if !self.drop_one(&["error", "null", "true", "false", "unknown"]) {
            return Ok(false);
        }
        self.expect_words(&["on"])?;
        if self.drop_one(&["empty", "error"]) { Ok(true) } else { self.error() }
    }

    /// FORMAT JSON ENCODING UTF8
    fn format(&mut self) {
        if self.drop_words(&["format", "json"]) && self.drop_words(&["encoding"]) {
            let _ = self.record();
        }
    }

    /// WITH UNIQUE KEYS
    pub(super) fn unique_keys(&mut self) -> bool {
        let fits = self.drop_words(&["with", "unique"]) || self.drop_words(&["without", "unique"]);
        if fits {
            self.drop_words(&["keys"]);
        }
        fits
    }

    /// `COLUMNS (a int PATH '$.a', NESTED '$.b' COLUMNS (…))`
    fn json_columns(&mut self) -> Result<()> {
        self.expect_words(&["columns"])?;
        self.skip_open()?;
        loop {
            self.json_column()?;
            if !self.skip(Kind::Comma) {
                break;
            }
        }
        if !self.skip(Kind::RightParen) {
            return self.error();
        }
        self.operand = true;
        Ok(())
    }

    fn json_column(&mut self) -> Result<()> {
        let nested = self.is(self.at, "nested")
            && (self.kind(self.at + 1) == Some(Kind::String)
                || (self.is(self.at + 1, "path") && self.kind(self.at + 2) == Some(Kind::String)));
        if nested {
            self.at += 1;
            self.drop_words(&["path"]);
            self.at += 1;
            if self.drop_words(&["as"]) {
                self.record()?;
            }
            return self.json_columns();
        }
        self.record()?;
        if self.drop_words(&["for", "ordinality"]) {
            return Ok(());
        }
        self.comma();
        self.null_of_type()?;
        self.drop_words(&["exists"]);
        loop {
            if self.drop_words(&["path"]) {
                if !self.skip(Kind::String) {
                    return self.error();
                }
            } else if !self.json_option(false)? {
                return Ok(());
            }
        }
    }
}
