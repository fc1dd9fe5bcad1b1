//! The functions of SQL/XML.
//!
//! Invariant: every expression becomes an argument, every type a cast of NULL; labels and the names
//! of elements and columns are recorded.

use sqlparser::keywords::Keyword;

use super::{Clause, Front, Result};
use crate::sql::lexer::Kind;

impl<'t, 'a> Front<'t, 'a> {
    /// A call whose name is `word`, at the position. `false`: it is a call like any other.
    pub(super) fn xml_call(&mut self, word: &str) -> Result<bool> {
        match word {
            "xmlelement" => {
                self.open()?;
                self.expect_words(&["name"])?;
                self.record()?;
                if self.skip(Kind::Comma) {
                    if self.drop_words(&["xmlattributes"]) {
                        self.labelled()?;
                        self.rest_of_list(&[])?;
                    } else {
                        self.argument(&[])?;
                        self.rest_of_list(&[])?;
                    }
                }
            }
            "xmlforest" => {
                self.plain_name()?;
                self.labelled()?;
                return Ok(true);
            }
            "xmlpi" => {
                self.open()?;
                self.expect_words(&["name"])?;
                self.record()?;
                if self.skip(Kind::Comma) {
                    self.argument(&[])?;
                }
            }
            "xmlparse" => {
                // The parser has a syntax of its own for that name.
                self.put_word("xmlconcat", Keyword::NoKeyword);
                self.at += 1;
                self.expect(Kind::LeftParen)?;
                if !self.drop_one(&["document", "content"]) {
                    return self.error();
                }
                self.argument(&["preserve", "strip"])?;
                if self.drop_one(&["preserve", "strip"]) {
                    self.expect_words(&["whitespace"])?;
                }
            }
            "xmlroot" => {
                self.open()?;
                self.argument(&[])?;
                if self.kind(self.at) != Some(Kind::Comma) {
                    return self.error();
                }
                self.at += 1;
                self.expect_words(&["version"])?;
                if !self.drop_words(&["no", "value"]) {
                    self.comma();
                    self.argument(&[])?;
                }
                if self.skip(Kind::Comma) {
                    self.expect_words(&["standalone"])?;
                    if !self.drop_words(&["no", "value"]) && !self.drop_one(&["yes", "no"]) {
                        return self.error();
                    }
                }
            }
            "xmlserialize" => {
                self.open()?;
                if !self.drop_one(&["document", "content"]) {
                    return self.error();
                }
                self.argument(&["as"])?;
                self.expect_words(&["as"])?;
                self.comma();
                self.null_of_type()?;
                self.drop_words(&["no"]);
                self.drop_words(&["indent"]);
            }
            "xmlexists" => {
                self.open()?;
                self.argument(&["passing"])?;
                self.passing_xml()?;
            }
            "xmltable" => {
                self.open()?;
                if self.drop_words(&["xmlnamespaces"]) {
                    self.labelled()?;
                    if !self.skip(Kind::Comma) {
                        return self.error();
                    }
                    self.comma();
                }
                self.argument(&["passing"])?;
                self.passing_xml()?;
                self.expect_words(&["columns"])?;
                loop {
                    self.xml_column()?;
                    if !self.skip(Kind::Comma) {
                        break;
                    }
                }
            }
            _ => return Ok(false),
        }
        self.close()?;
        Ok(true)
    }

    /// The name and the bracket behind it.
    pub(super) fn open(&mut self) -> Result<()> {
        self.plain_name()?;
        self.expect(Kind::LeftParen)?;
        self.operand = false;
        Ok(())
    }

    /// `(a AS b, c, DEFAULT d)`
    fn labelled(&mut self) -> Result<()> {
        self.expect(Kind::LeftParen)?;
        loop {
            self.drop_words(&["default"]);
            self.argument(&["as"])?;
            if self.drop_words(&["as"]) {
                self.record()?;
            }
            if self.kind(self.at) != Some(Kind::Comma) {
                return self.close();
            }
            self.expect(Kind::Comma)?;
        }
    }

    /// `PASSING BY REF a BY REF`
    fn passing_xml(&mut self) -> Result<()> {
        self.expect_words(&["passing"])?;
        let _ = self.drop_words(&["by", "ref"]) || self.drop_words(&["by", "value"]);
        self.comma();
        self.argument(&["by", "columns"])?;
        let _ = self.drop_words(&["by", "ref"]) || self.drop_words(&["by", "value"]);
        Ok(())
    }

    /// `a int PATH 'x' DEFAULT 1 NOT NULL`, `b FOR ORDINALITY`
    fn xml_column(&mut self) -> Result<()> {
        self.record()?;
        if self.drop_words(&["for", "ordinality"]) {
            return Ok(());
        }
        self.comma();
        self.null_of_type()?;
        loop {
            if self.drop_words(&["not", "null"]) || self.drop_words(&["null"]) {
                continue;
            }
            if !self.drop_one(&["path", "default"]) {
                return Ok(());
            }
            self.comma();
            let outside = std::mem::replace(&mut self.clause, Clause::Plain);
            self.argument(&["path", "default", "not", "null"])?;
            self.clause = outside;
        }
    }
}
