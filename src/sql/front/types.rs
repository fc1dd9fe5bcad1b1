//! Names of types, in all the forms that PostgreSQL has for them.
//!
//! Invariant: a type's name is handed on as one dotted name, or recorded; lengths, precisions, array
//! bounds and SETOF are left out, since no function is named by them.

use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Token as Out, Word};

use super::{Front, Name, Result};
use crate::sql::keyword::Category;
use crate::sql::lexer::{Kind, Token};

/// A type's name as it was found.
pub(super) enum Found {
    /// A key word's: the name that PostgreSQL looks up for it, and where it stood.
    Fixed(&'static str, usize),
    /// A name from one token to before another.
    Named(usize, usize),
}

/// Words that begin a type of their own and are no function's name.
const WORDS: &[&str] = &[
    "bigint",
    "bit",
    "boolean",
    "char",
    "character",
    "dec",
    "decimal",
    "float",
    "int",
    "integer",
    "interval",
    "national",
    "nchar",
    "numeric",
    "real",
    "smallint",
    "time",
    "timestamp",
    "varchar",
];

const FIELDS: &[&str] = &["year", "month", "day", "hour", "minute", "second"];

impl<'t, 'a> Front<'t, 'a> {
    /// Takes over the type at the position.
    pub(super) fn r#type(&mut self) -> Result<()> {
        let start = self.at;
        match self.find_type(true)? {
            Found::Fixed(name, at) => {
                if let Some(source) = self.get(at) {
                    let word =
                        Word { value: name.to_owned(), quote_style: None, keyword: Keyword::NoKeyword };
                    self.push(Out::Word(word), source);
                }
            }
            Found::Named(from, to) => {
                let end = std::mem::replace(&mut self.at, from);
                debug_assert!(start <= from);
                // Names among the modifiers are recorded behind those of the type: they are so here.
                while self.at < to {
                    if self.kind(self.at) == Some(Kind::Dot) {
                        self.put(Out::Period);
                        self.at += 1;
                    } else {
                        self.plain_name()?;
                    }
                }
                self.at = end;
            }
        }
        Ok(())
    }

    /// `NULL::type`, where a clause names a type and no value of it.
    pub(super) fn null_of_type(&mut self) -> Result<()> {
        self.put_word("null", Keyword::NULL);
        self.put(Out::DoubleColon);
        self.r#type()?;
        self.operand = true;
        Ok(())
    }

    /// `type 'string'` at the position: the type is recorded and the string remains. `false`: it is
    /// something else, and nothing has happened.
    pub(super) fn typed_literal(&mut self, token: &Token<'_>) -> Result<bool> {
        let word = matches!(token.kind, Kind::Word(_))
            && WORDS.contains(&token.text.as_ref())
            && self.kind(self.at + 1) != Some(Kind::Dot);
        if !word && !self.words(&["double", "precision"]) {
            let end = self.name_end(self.at);
            if self.kind(end) != Some(Kind::String) {
                return Ok(false);
            }
            let name = self.take_name(end);
            self.beside.types.push(name);
            self.step()?;
            return Ok(true);
        }
        let (at, recorded) = (self.at, self.recorded.len());
        let interval = token.is("interval");
        let found = if interval {
            // Fields and a precision stand behind the string, or a precision alone before it.
            self.at += 1;
            self.modifiers().map(|()| Found::Fixed("interval", at))
        } else {
            self.find_type(false)
        };
        match found {
            Ok(Found::Fixed(name, _)) if self.kind(self.at) == Some(Kind::String) => {
                self.beside.types.push(Name { parts: vec![name.to_owned()], offset: token.start });
                self.step()?;
                if interval {
                    self.fields()?;
                }
                Ok(true)
            }
            _ => {
                self.at = at;
                self.recorded.truncate(recorded);
                Ok(false)
            }
        }
    }

    /// Goes over a type. With `arrays`, its bounds belong to it.
    fn find_type(&mut self, arrays: bool) -> Result<Found> {
        self.drop_words(&["setof"]);
        let at = self.at;
        let Some(token) = self.peek() else { return self.error() };
        let word = match token.kind {
            Kind::Word(_) => token.text.as_ref(),
            _ => "",
        };
        let fixed = match word {
            "int" | "integer" => Some("int4"),
            "smallint" => Some("int2"),
            "bigint" => Some("int8"),
            "real" => Some("float4"),
            "float" => Some("float8"),
            "double" if self.is(at + 1, "precision") => {
                self.at += 1;
                Some("float8")
            }
            "decimal" | "dec" | "numeric" => Some("numeric"),
            "boolean" => Some("bool"),
            "bit" if self.is(at + 1, "varying") => {
                self.at += 1;
                Some("varbit")
            }
            "bit" => Some("bit"),
            "varchar" => Some("varchar"),
            "national" if self.is_one(at + 1, &["character", "char"]) => {
                self.at += 1;
                Some(self.character())
            }
            "character" | "char" | "nchar" => Some(self.character()),
            "time" | "timestamp" => {
                self.at += 1;
                self.modifiers()?;
                let zone = self.drop_words(&["with", "time", "zone"]);
                if !zone {
                    self.drop_words(&["without", "time", "zone"]);
                }
                // What follows is the same for all.
                self.at -= 1;
                Some(match (word, zone) {
                    ("time", false) => "time",
                    ("time", true) => "timetz",
                    (_, false) => "timestamp",
                    (_, true) => "timestamptz",
                })
            }
            "interval" => {
                self.at += 1;
                self.fields()?;
                self.at -= 1;
                Some("interval")
            }
            _ => None,
        };
        let found = match fixed {
            Some(name) => {
                self.at += 1;
                Found::Fixed(name, at)
            }
            None => {
                let name = match token.kind {
                    Kind::Quoted => true,
                    Kind::Word(Category::Plain | Category::Unreserved | Category::TypeFunction) => true,
                    Kind::Word(Category::ColumnName) => token.is("json"),
                    _ => false,
                };
                if !name {
                    return self.error();
                }
                self.at = self.name_end(at);
                Found::Named(at, self.at)
            }
        };
        // The recorded names are in order only when those of the type come first.
        self.modifiers()?;
        if arrays {
            self.bounds()?;
        }
        Ok(found)
    }

    /// `character`, `char varying` and the like, whose last word remains.
    fn character(&mut self) -> &'static str {
        if self.is(self.at + 1, "varying") {
            self.at += 1;
            "varchar"
        } else {
            "bpchar"
        }
    }

    /// `(10, 2)`, `(Point, 4326)`: PostgreSQL takes constants and plain names.
    fn modifiers(&mut self) -> Result<()> {
        if !self.skip(Kind::LeftParen) {
            return Ok(());
        }
        loop {
            match self.kind(self.at) {
                Some(Kind::Word(_) | Kind::Quoted) if self.kind(self.at + 1) != Some(Kind::LeftParen) => {
                    self.record()?;
                }
                Some(Kind::Number | Kind::String) => self.at += 1,
                Some(Kind::Operator)
                    if self.peek().is_some_and(|sign| matches!(sign.text.as_ref(), "+" | "-")) =>
                {
                    self.at += 1;
                    if !self.skip(Kind::Number) {
                        return self.error();
                    }
                }
                _ => return self.error(),
            }
            // One thing alone: a name before a string would be a type, whose input runs.
            if self.skip(Kind::Comma) {
                continue;
            }
            return if self.skip(Kind::RightParen) { Ok(()) } else { self.error() };
        }
    }

    /// `[3][]`, `ARRAY[3]`, `ARRAY`
    fn bounds(&mut self) -> Result<()> {
        self.drop_words(&["array"]);
        while self.kind(self.at) == Some(Kind::LeftBracket) {
            self.at += 1;
            self.skip(Kind::Number);
            if !self.skip(Kind::RightBracket) {
                return self.error();
            }
        }
        Ok(())
    }

    /// `DAY TO SECOND (2)`, or a precision alone.
    fn fields(&mut self) -> Result<()> {
        if !self.is_one(self.at, FIELDS) {
            return self.modifiers();
        }
        self.drop_one(FIELDS);
        self.modifiers()?;
        if self.is(self.at, "to") && self.is_one(self.at + 1, FIELDS) {
            self.at += 2;
            self.modifiers()?;
        }
        Ok(())
    }
}
