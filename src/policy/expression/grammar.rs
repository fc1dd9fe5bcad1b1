//! The grammar of expressions, by descent.
//!
//! Invariant: reading is linear, depth is bounded, and every word that is not a name has its place here; a
//! reserved word elsewhere is an error.

use super::Use;
use super::lexer::{Kind, Token, Wrong};

/// Brackets, cases and lambdas within each other; Trino's own parser goes far deeper.
const DEPTH: usize = 64;

/// Trino's reserved words, and the ones that start what may not stand in an expression here.
const RESERVED: &[&str] = &[
    "alter",
    "and",
    "as",
    "between",
    "by",
    "call",
    "case",
    "cast",
    "constraint",
    "create",
    "cross",
    "cube",
    "current_catalog",
    "current_date",
    "current_path",
    "current_role",
    "current_schema",
    "current_time",
    "current_timestamp",
    "current_user",
    "deallocate",
    "delete",
    "describe",
    "distinct",
    "drop",
    "else",
    "end",
    "escape",
    "except",
    "execute",
    "exists",
    "extract",
    "false",
    "filter",
    "for",
    "from",
    "full",
    "grant",
    "group",
    "grouping",
    "having",
    "in",
    "inner",
    "insert",
    "intersect",
    "into",
    "is",
    "join",
    "json_array",
    "json_exists",
    "json_object",
    "json_query",
    "json_table",
    "json_value",
    "lateral",
    "left",
    "like",
    "listagg",
    "localtime",
    "localtimestamp",
    "merge",
    "natural",
    "normalize",
    "not",
    "null",
    "on",
    "or",
    "order",
    "outer",
    "over",
    "prepare",
    "recursive",
    "revoke",
    "right",
    "rollup",
    "select",
    "skip",
    "table",
    "then",
    "trim",
    "true",
    "uescape",
    "union",
    "unnest",
    "update",
    "using",
    "values",
    "when",
    "where",
    "with",
    "within",
];

/// Functions that read more than their arguments, or make a query fail or wait.
const FORBIDDEN: &[&str] = &["query", "execute"];

type Read = Result<(), Wrong>;

/// Reads tokens as one expression and nothing behind it.
pub(super) fn expression(tokens: &[Token<'_>], end: usize, used_as: Use) -> Read {
    let mut reader = Reader { tokens, at: 0, end, depth: 0, used_as, lambda: Vec::new() };
    reader.any()?;
    match reader.peek() {
        None => Ok(()),
        Some(_) => reader.wrong("the expression ends here, and more follows"),
    }
}

struct Reader<'t> {
    tokens: &'t [Token<'t>],
    at: usize,
    end: usize,
    depth: usize,
    used_as: Use,
    /// Names that lambdas have brought.
    lambda: Vec<&'t str>,
}

impl<'t> Reader<'t> {
    fn peek(&self) -> Option<&'t Token<'t>> {
        self.tokens.get(self.at)
    }

    fn ahead(&self, by: usize, word: &str) -> bool {
        self.tokens.get(self.at + by).is_some_and(|token| token.is(word))
    }

    fn wrong<T>(&self, message: &str) -> Result<T, Wrong> {
        Err((self.peek().map_or(self.end, |token| token.start), message.to_owned()))
    }

    /// Takes a word or sign if it is next.
    fn take(&mut self, word: &str) -> bool {
        let is_next = self.ahead(0, word);
        self.at += usize::from(is_next);
        is_next
    }

    fn must(&mut self, word: &str) -> Read {
        if self.take(word) { Ok(()) } else { self.wrong(&format!("expected {word}")) }
    }

    fn kind(&mut self, kind: Kind) -> Option<&'t Token<'t>> {
        let token = self.peek().filter(|token| token.kind == kind)?;
        self.at += 1;
        Some(token)
    }

    fn deeper(&mut self, read: impl FnOnce(&mut Self) -> Read) -> Read {
        if self.depth >= DEPTH {
            return self.wrong("nests too deeply");
        }
        self.depth += 1;
        let done = read(self);
        self.depth -= 1;
        done
    }

    fn any(&mut self) -> Read {
        self.deeper(|reader| {
            reader.conjunct()?;
            while reader.take("and") || reader.take("or") {
                reader.conjunct()?;
            }
            Ok(())
        })
    }

    fn conjunct(&mut self) -> Read {
        while self.take("not") {}
        self.sum()?;
        self.predicate()
    }

    /// One predicate at most: Trino has no `a = b = c`.
    fn predicate(&mut self) -> Read {
        if ["=", "<>", "!=", "<", "<=", ">", ">="].into_iter().any(|sign| self.take(sign)) {
            return self.sum();
        }
        if self.take("is") {
            self.take("not");
            if self.take("null") {
                return Ok(());
            }
            self.must("distinct")?;
            self.must("from")?;
            return self.sum();
        }
        let negated = self.take("not");
        if self.take("between") {
            self.sum()?;
            self.must("and")?;
            return self.sum();
        }
        if self.take("like") {
            self.sum()?;
            return if self.take("escape") { self.sum() } else { Ok(()) };
        }
        if self.take("in") {
            self.must("(")?;
            return self.list(")");
        }
        if negated { self.wrong("expected BETWEEN, LIKE or IN") } else { Ok(()) }
    }

    fn sum(&mut self) -> Read {
        self.signed()?;
        while ["+", "-", "*", "/", "%", "||"].into_iter().any(|sign| self.take(sign)) {
            self.signed()?;
        }
        Ok(())
    }

    fn signed(&mut self) -> Read {
        // Two of them in a row would be a comment.
        if !self.take("-") {
            self.take("+");
        }
        self.operand()?;
        loop {
            if self.take("[") {
                self.any()?;
                self.must("]")?;
            } else if !(self.take_zone()?) {
                return Ok(());
            }
        }
    }

    /// `AT TIME ZONE 'UTC'`
    fn take_zone(&mut self) -> Result<bool, Wrong> {
        if !(self.ahead(0, "at") && self.ahead(1, "time") && self.ahead(2, "zone")) {
            return Ok(false);
        }
        self.at += 3;
        if self.kind(Kind::String).is_none() {
            return self.wrong("expected a time zone in quotes");
        }
        Ok(true)
    }

    /// One or more expressions and the bracket that ends them.
    fn list(&mut self, end: &str) -> Read {
        self.any()?;
        while self.take(",") {
            self.any()?;
        }
        self.must(end)
    }

    fn operand(&mut self) -> Read {
        let Some(token) = self.peek() else { return self.wrong("an expression is missing") };
        match token.kind {
            Kind::String | Kind::Bytes | Kind::Number => {
                self.at += 1;
                if token.kind == Kind::String { self.placeholder_in(token) } else { Ok(()) }
            }
            Kind::Placeholder => {
                if self.used_as == Use::Mask && token.text == "{column}" {
                    self.at += 1;
                    return Ok(());
                }
                self.wrong(match (self.used_as, token.text) {
                    (Use::Mask, "{type}") => "{type} may stand where a type does",
                    (Use::Mask, "{key}") => "{key} may stand in a string",
                    (Use::Mask, _) => "the placeholders are {column}, {type} and {key}",
                    (Use::Filter, _) => "a row filter has no placeholders",
                })
            }
            Kind::Sign if token.text == "(" => {
                self.at += 1;
                self.list(")")
            }
            Kind::Sign => self.wrong("an expression is missing"),
            Kind::Quoted => self.name(token),
            Kind::Word => self.word(token),
        }
    }

    /// A key is put into strings only, where its digits can mean nothing else.
    fn placeholder_in(&self, token: &Token<'_>) -> Read {
        for known in ["{column}", "{type}"] {
            if let Some(at) = token.text.find(known) {
                return Err((token.start + at, format!("{known} would be put into a string")));
            }
        }
        if self.used_as == Use::Filter && token.text.contains("{key}") {
            return Err((token.start, "a row filter has no placeholders".to_owned()));
        }
        Ok(())
    }

    fn word(&mut self, token: &'t Token<'t>) -> Read {
        if ["null", "true", "false"].into_iter().any(|word| self.take(word)) {
            return Ok(());
        }
        if ["current_user", "current_date", "current_timestamp"].into_iter().any(|word| self.take(word)) {
            return Ok(());
        }
        if token.is("cast") || token.is("try_cast") {
            self.at += 1;
            self.must("(")?;
            self.any()?;
            self.must("as")?;
            self.type_name()?;
            return self.must(")");
        }
        if self.take("case") {
            return self.deeper(Self::case);
        }
        if token.is("extract") {
            self.at += 1;
            self.must("(")?;
            if self.kind(Kind::Word).is_none() {
                return self.wrong("expected a field such as YEAR");
            }
            self.must("from")?;
            self.any()?;
            return self.must(")");
        }
        if token.is("array") && self.ahead(1, "[") {
            self.at += 2;
            return if self.take("]") { Ok(()) } else { self.list("]") };
        }
        let literal = self.tokens.get(self.at + 1).is_some_and(|next| next.kind == Kind::String);
        if literal
            && ["date", "time", "timestamp", "decimal", "interval"].into_iter().any(|word| token.is(word))
        {
            self.at += 2;
            if token.is("interval") && self.kind(Kind::Word).is_none() {
                return self.wrong("expected a unit such as DAY");
            }
            return Ok(());
        }
        if RESERVED.iter().any(|word| token.is(word)) {
            return self.wrong(&format!("{} may not stand here", token.text));
        }
        self.name(token)
    }

    fn case(&mut self) -> Read {
        if !self.ahead(0, "when") {
            self.any()?;
        }
        self.must("when")?;
        loop {
            self.any()?;
            self.must("then")?;
            self.any()?;
            if !self.take("when") {
                break;
            }
        }
        if self.take("else") {
            self.any()?;
        }
        self.must("end")
    }

    /// A column, a call or a lambda's parameter.
    fn name(&mut self, token: &'t Token<'t>) -> Read {
        self.at += 1;
        if self.ahead(0, "->") {
            self.at += 1;
            self.lambda.push(token.text);
            let done = self.any();
            self.lambda.pop();
            return done;
        }
        if self.take("(") {
            if token.kind != Kind::Word || FORBIDDEN.iter().any(|name| token.is(name)) {
                return Err((token.start, "no function may be called so".to_owned()));
            }
            return if self.take(")") { Ok(()) } else { self.list(")") };
        }
        // A column of the same table beside the masked one would be shown in its place.
        let bound = self.lambda.iter().any(|name| name.eq_ignore_ascii_case(token.text));
        if self.used_as == Use::Mask && !bound {
            return Err((
                token.start,
                format!("{} is no function; a mask knows its own column only, as {{column}}", token.text),
            ));
        }
        while self.take(".") {
            if self.kind(Kind::Word).is_none() && self.kind(Kind::Quoted).is_none() {
                return self.wrong("expected a name behind the dot");
            }
        }
        Ok(())
    }

    /// `varchar(10)`, `timestamp(3) with time zone`, `array(varchar)`, or the column's own.
    fn type_name(&mut self) -> Read {
        if let Some(token) = self.kind(Kind::Placeholder) {
            if self.used_as == Use::Mask && token.text == "{type}" {
                return Ok(());
            }
            self.at -= 1;
            return self.wrong("expected a type");
        }
        self.deeper(|reader| {
            let Some(first) = reader.kind(Kind::Word) else { return reader.wrong("expected a type") };
            if RESERVED.iter().any(|word| first.is(word)) {
                return Err((first.start, "expected a type".to_owned()));
            }
            if first.is("double") {
                reader.take("precision");
            }
            if reader.take("(") {
                loop {
                    if reader.kind(Kind::Number).is_none() {
                        reader.type_name()?;
                    }
                    if !reader.take(",") {
                        break;
                    }
                }
                reader.must(")")?;
            }
            if (first.is("time") || first.is("timestamp")) && reader.take("with") {
                reader.must("time")?;
                reader.must("zone")?;
            }
            Ok(())
        })
    }
}
