//! Expressions: what a token is where it stands, and what becomes of operators.
//!
//! Invariant: each step takes at least one token, and a bracket with all that is in it.

use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::Token as Out;

use super::{Clause, Front, Result};
use crate::sql::keyword::Category;
use crate::sql::lexer::{Kind, Token};

const QUANTIFIERS: &[&str] = &["any", "all", "some"];

impl<'t, 'a> Front<'t, 'a> {
    /// Takes the token at the position, and those after it that belong to the same rule.
    pub(super) fn step(&mut self) -> Result<()> {
        let Some(token) = self.peek() else { return self.error() };
        if self.clause == Clause::From && !self.operand && token.kind != Kind::Comma {
            return self.table_factor();
        }
        match token.kind {
            Kind::Word(category) => self.word(token, category),
            Kind::Quoted if !self.operand => self.name(token),
            Kind::Quoted => self.after_operand(token),
            Kind::String | Kind::National => {
                self.constant(token, Out::SingleQuotedString(token.text.clone().into_owned()))
            }
            Kind::Bits => self.constant(token, Out::HexStringLiteral(String::new())),
            Kind::Number => self.constant(token, Out::Number(token.text.clone().into_owned(), false)),
            // Which one it is makes no difference to a judgement.
            Kind::Parameter => self.constant(token, Out::Placeholder(String::new())),
            Kind::Operator => {
                self.at += 1;
                self.operator(token, &token.text)
            }
            Kind::LeftParen => self.parenthesis(),
            Kind::LeftBracket if self.operand => self.subscript(),
            Kind::LeftBracket => {
                self.expect(Kind::LeftBracket)?;
                self.inside(Clause::Plain)?;
                self.expect(Kind::RightBracket)?;
                self.operand = true;
                Ok(())
            }
            Kind::RightParen | Kind::RightBracket | Kind::Semicolon | Kind::DotDot => self.error(),
            Kind::Comma => {
                self.expect(Kind::Comma)?;
                self.operand = false;
                if self.clause == Clause::On {
                    self.clause = Clause::From;
                }
                Ok(())
            }
            Kind::Dot => self.field(token),
            Kind::Colon => {
                // A slice, either of whose bounds may be missing.
                if self.clause != Clause::Subscript {
                    return self.error();
                }
                self.at += 1;
                if self.operand && self.kind(self.at) != Some(Kind::RightBracket) {
                    self.comma();
                }
                Ok(())
            }
            Kind::Cast => {
                self.push(Out::DoubleColon, token);
                self.at += 1;
                self.r#type()?;
                self.operand = true;
                Ok(())
            }
            // Both name an argument.
            Kind::Assign | Kind::Arrow => {
                self.operand = false;
                self.push(Out::RArrow, token);
                self.at += 1;
                Ok(())
            }
        }
    }

    /// `[1]`, `[1:2]`, `[:]`: of a slice the bounds are listed.
    fn subscript(&mut self) -> Result<()> {
        self.expect(Kind::LeftBracket)?;
        let index = self.kind(self.at + 1) == Some(Kind::RightBracket);
        let brackets = !index || self.kind(self.at) == Some(Kind::Colon);
        if brackets {
            self.put(Out::LParen);
        }
        let open = self.out.len();
        self.inside(Clause::Subscript)?;
        if self.out.len() == open {
            self.put_word("null", Keyword::NULL);
        }
        if brackets {
            self.put(Out::RParen);
        }
        self.expect(Kind::RightBracket)?;
        self.operand = true;
        Ok(())
    }

    fn constant(&mut self, token: &Token<'_>, out: Out) -> Result<()> {
        if self.operand {
            return self.error();
        }
        self.push(out, token);
        self.at += 1;
        self.operand = true;
        Ok(())
    }

    /// `.b`, `.*` behind an operand.
    fn field(&mut self, token: &Token<'_>) -> Result<()> {
        let star = self.get(self.at + 1).is_some_and(|star| star.is_operator("*"));
        if star && !(self.dotted() && self.ends_item(self.at + 2)) {
            // `(f()).*` runs what `(f())` runs.
            self.at += 2;
            return Ok(());
        }
        self.push(Out::Period, token);
        self.at += 1;
        if star {
            self.put(Out::Mul);
            self.at += 1;
        } else {
            self.plain_name()?;
        }
        self.operand = true;
        Ok(())
    }

    /// Is what ends before the position a name of names, rather than a field of something in brackets?
    fn dotted(&self) -> bool {
        let name = |at| matches!(self.kind(at), Some(Kind::Word(_) | Kind::Quoted));
        let mut first = self.at.saturating_sub(1);
        while first >= 2 && name(first) && self.kind(first - 1) == Some(Kind::Dot) {
            first -= 2;
        }
        name(first)
    }

    /// `(`: a query, or expressions.
    pub(super) fn parenthesis(&mut self) -> Result<()> {
        if self.clause == Clause::Start && !self.operand {
            return self.bracket(Clause::Start);
        }
        if self.operand || !self.is_query(self.at) {
            // The empty grouping set
            if self.clause == Clause::Group && self.kind(self.at + 1) == Some(Kind::RightParen) {
                self.expect(Kind::LeftParen)?;
                self.put_word("null", Keyword::NULL);
                self.expect(Kind::RightParen)?;
                self.operand = true;
                return Ok(());
            }
            return self.bracket(Clause::Plain);
        }
        self.subquery()
    }

    /// A query in brackets as an expression, of which the parser knows only those that begin with
    /// SELECT and WITH.
    pub(super) fn subquery(&mut self) -> Result<()> {
        self.expect(Kind::LeftParen)?;
        if !self.is_one(self.at, &["select", "with", "table"]) {
            self.put_word("select", Keyword::SELECT);
            self.put_word("null", Keyword::NULL);
            self.put_word("union", Keyword::UNION);
        }
        self.inside(Clause::Start)?;
        self.expect(Kind::RightParen)?;
        self.operand = true;
        Ok(())
    }

    /// A name where an operand is due: a column, a call, or a type before its string.
    fn name(&mut self, token: &Token<'_>) -> Result<()> {
        if self.typed_literal(token)? {
            return Ok(());
        }
        let from = self.at;
        let end = self.name_end(from);
        let call = self.kind(end) == Some(Kind::LeftParen);
        if call && end == from + 1 && self.special_call(token)? {
            return Ok(());
        }
        self.plain_name()?;
        while self.at < end {
            self.put(Out::Period);
            self.at += 1;
            self.plain_name()?;
        }
        self.operand = true;
        if call {
            self.bracket(Clause::Plain)?;
            // `type(1) 'string'`
            if self.kind(self.at) == Some(Kind::String) {
                let name = self.name_of(from, end);
                self.beside.types.push(name);
                self.glue();
            }
        }
        Ok(())
    }

    /// Is what comes the first word of an item of a list?
    fn begins_item(&self) -> bool {
        let Some(before) = self.at.checked_sub(1) else { return false };
        matches!(self.kind(before), Some(Kind::Comma | Kind::LeftParen))
            || self.is_one(before, &["by", "distinct", "all"])
    }

    fn word(&mut self, token: &Token<'_>, category: Category) -> Result<()> {
        if self.clause == Clause::Start && !self.operand {
            return self.query_start(token);
        }
        if category == Category::Reserved {
            if self.clause.of_query() && self.clause_word(token)? {
                return Ok(());
            }
            return if self.operand { self.after_operand(token) } else { self.reserved(token) };
        }
        if self.operand {
            return self.after_operand(token);
        }
        if self.clause == Clause::Group && self.begins_item() {
            // `CUBE (a, b)`: the brackets are a list like any other. Elsewhere it is a function of that name.
            if self.kind(self.at + 1) == Some(Kind::LeftParen) && self.drop_one(&["cube", "rollup"]) {
                return self.bracket(Clause::Plain);
            }
            if self.drop_words(&["grouping", "sets"]) {
                return self.bracket(Clause::Group);
            }
        }
        if token.is("operator") && self.named_operator()? {
            return Ok(());
        }
        if self.words(&["collation", "for"]) {
            return self.collation_for();
        }
        self.name(token)
    }

    /// A reserved word where an operand is due.
    fn reserved(&mut self, token: &Token<'_>) -> Result<()> {
        match token.text.as_ref() {
            "cast" => return self.cast(),
            // Casts and functions alike take what it says.
            "variadic" | "symmetric" | "asymmetric" => {
                self.at += 1;
                return Ok(());
            }
            "case" => self.cases += 1,
            "end" => self.cases = self.cases.saturating_sub(1),
            "order" => {
                self.key();
                if !self.is(self.at, "by") {
                    return self.error();
                }
            }
            "array" if self.kind(self.at + 1) == Some(Kind::LeftParen) => {
                self.key();
                if !self.is_query(self.at) {
                    return self.error();
                }
                return self.subquery();
            }
            _ => {}
        }
        self.operand = is_value(&token.text);
        self.key();
        Ok(())
    }

    /// A word behind an operand: an infix, a suffix, the next clause or a label.
    fn after_operand(&mut self, token: &Token<'_>) -> Result<()> {
        let word = if token.kind == Kind::Quoted { "" } else { token.text.as_ref() };
        let open = self.kind(self.at + 1) == Some(Kind::LeftParen);
        // `SELECT t COLLATE FROM g`: any infix may be a label, and is one where its operand cannot begin.
        if self.clause == Clause::Select && self.cases == 0 && self.is_bare_label(token) {
            self.put_word("as", Keyword::AS);
            return self.label();
        }
        match word {
            "in" => return self.in_list(),
            "and" | "or" | "between" | "when" | "then" | "else" | "overlaps" | "filter" | "having" => {}
            "not" => {
                // The word behind it is an infix, too.
                if self.is_one(self.at + 1, &["like", "ilike"]) && self.is_one(self.at + 2, QUANTIFIERS) {
                    self.at += 1;
                } else {
                    self.key();
                }
                return Ok(());
            }
            "like" | "ilike" if self.is_one(self.at + 1, QUANTIFIERS) => {
                self.put(Out::Eq);
                self.at += 1;
                self.operand = false;
                return Ok(());
            }
            "like" | "ilike" => {}
            "similar" if self.is(self.at + 1, "to") => self.key(),
            "escape" => {
                self.glue();
                self.at += 1;
                return Ok(());
            }
            "end" if self.cases > 0 => {
                self.cases -= 1;
                self.key();
                return Ok(());
            }
            "is" => return self.predicate(),
            "isnull" | "notnull" => {
                self.at += 1;
                return Ok(());
            }
            "at" if self.is(self.at + 1, "local") => {
                self.beside
                    .functions
                    .push(super::Name { parts: vec!["timezone".to_owned()], offset: token.start });
                self.at += 2;
                return Ok(());
            }
            "at" if self.words(&["at", "time", "zone"]) => {
                self.key();
                self.key();
            }
            "collate" => {
                self.at += 1;
                if !self.peek().is_some_and(Token::is_column_name) {
                    return self.error();
                }
                // A collation compares; it calls nothing that a schema defines.
                self.take_name(self.name_end(self.at));
                return Ok(());
            }
            "operator" if open && self.named_operator()? => return Ok(()),
            "using" if !matches!(self.clause, Clause::From | Clause::On) => return self.sort_operator(),
            "over" => return self.over(),
            "within" if self.is(self.at + 1, "group") => {
                self.key();
                self.key();
                return self.bracket(Clause::Plain);
            }
            "order" => {
                self.key();
                if !self.is(self.at, "by") {
                    return self.error();
                }
            }
            "asc" | "desc" if self.clause != Clause::Select => {
                self.key();
                return Ok(());
            }
            "nulls" if self.is_one(self.at + 1, &["first", "last"]) => {
                self.key();
                self.key();
                return Ok(());
            }
            _ => return self.other_word(token),
        }
        self.key();
        self.operand = false;
        Ok(())
    }

    /// `IN (…)`
    fn in_list(&mut self) -> Result<()> {
        self.key();
        self.operand = false;
        let nested =
            self.kind(self.at) == Some(Kind::LeftParen) && self.kind(self.at + 1) == Some(Kind::LeftParen);
        if !nested || self.is_query(self.at) {
            return Ok(());
        }
        // What begins with a query in brackets would be a query to the parser.
        self.expect(Kind::LeftParen)?;
        self.put_word("null", Keyword::NULL);
        self.comma();
        self.inside(Clause::Plain)?;
        self.expect(Kind::RightParen)?;
        self.operand = true;
        Ok(())
    }

    /// What a clause makes of a word that no expression knows.
    fn other_word(&mut self, token: &Token<'_>) -> Result<()> {
        match self.clause {
            Clause::Select => {
                if token.is("as") {
                    self.key();
                    return self.label();
                }
                self.error()
            }
            Clause::From => self.join_word(token),
            Clause::On if JOINS.contains(&token.text.as_ref()) || token.is("on") || token.is("using") => {
                self.clause = Clause::From;
                self.join_word(token)
            }
            // `OFFSET 1 ROWS`
            Clause::Rest if token.is("row") || token.is("rows") => {
                self.at += 1;
                Ok(())
            }
            Clause::Start | Clause::On | Clause::Group | Clause::Rest | Clause::Plain | Clause::Subscript => {
                self.error()
            }
        }
    }

    /// Is this a label without AS, at the end of an item of the select list?
    fn is_bare_label(&self, token: &Token<'_>) -> bool {
        let word = match token.kind {
            Kind::Quoted => true,
            Kind::Word(_) => !LABELS_AFTER_AS.contains(&token.text.as_ref()),
            _ => false,
        };
        word && self.ends_item(self.at + 1)
    }

    /// `IS …`: of these only DISTINCT FROM has a second operand.
    fn predicate(&mut self) -> Result<()> {
        self.at += 1;
        self.drop_words(&["not"]);
        if self.words(&["distinct", "from"]) {
            self.put(Out::Eq);
            self.at += 2;
            self.operand = false;
            return Ok(());
        }
        if self.drop_one(&["null", "true", "false", "unknown", "document", "normalized"]) {
            return Ok(());
        }
        if self.is_one(self.at, &["nfc", "nfd", "nfkc", "nfkd"]) && self.is(self.at + 1, "normalized") {
            self.at += 2;
            return Ok(());
        }
        self.expect_words(&["json"])?;
        self.drop_one(&["value", "scalar", "array", "object"]);
        self.unique_keys();
        Ok(())
    }

    /// `OPERATOR(schema.op)`. `false`: it is a name like another.
    fn named_operator(&mut self) -> Result<bool> {
        let Some(token) = self.peek() else { return Ok(false) };
        if self.kind(self.at + 1) != Some(Kind::LeftParen) {
            return Ok(false);
        }
        let end = self.operator_end(self.at + 2);
        if self.kind(end) != Some(Kind::Operator) || self.kind(end + 1) != Some(Kind::RightParen) {
            return Ok(false);
        }
        self.at += 2;
        self.record_schema(end)?;
        self.at = end + 2;
        self.infix(token, "@@@")?;
        Ok(true)
    }

    /// Where the operator stands whose schema may begin at `at`.
    fn operator_end(&self, mut at: usize) -> usize {
        while matches!(self.kind(at), Some(Kind::Word(_) | Kind::Quoted))
            && self.kind(at + 1) == Some(Kind::Dot)
        {
            at += 2;
        }
        at
    }

    fn record_schema(&mut self, end: usize) -> Result<()> {
        while self.at < end {
            self.record()?;
            self.skip(Kind::Dot);
        }
        Ok(())
    }

    /// `ORDER BY a USING <`: the operator was judged with the tokens.
    fn sort_operator(&mut self) -> Result<()> {
        self.at += 1;
        if self.drop_words(&["operator"]) {
            if !self.skip(Kind::LeftParen) {
                return self.error();
            }
            let end = self.operator_end(self.at);
            self.record_schema(end)?;
            if !self.skip(Kind::Operator) || !self.skip(Kind::RightParen) {
                return self.error();
            }
            return Ok(());
        }
        if self.skip(Kind::Operator) { Ok(()) } else { self.error() }
    }

    fn operator(&mut self, token: &Token<'_>, symbol: &str) -> Result<()> {
        if symbol == "*" && !self.operand {
            // `count(*)`, `SELECT *`: the star is the operand.
            self.push(Out::Mul, token);
            self.operand = true;
            Ok(())
        } else {
            self.infix(token, symbol)
        }
    }

    /// An operator whose right operand begins at the position. Which one it is was judged with the
    /// tokens; here only its being one counts.
    fn infix(&mut self, token: &Token<'_>, symbol: &str) -> Result<()> {
        let out = if !self.operand {
            match symbol {
                "+" => Out::Plus,
                "-" => Out::Minus,
                // Those of the grammar itself stand between operands only.
                "/" | "%" | "^" | "<" | ">" | "=" | "<=" | ">=" | "<>" => return self.error(),
                _ => Out::Tilde,
            }
        } else if self.is_one(self.at, QUANTIFIERS) {
            Out::Eq
        } else {
            match symbol {
                "+" => Out::Plus,
                "-" => Out::Minus,
                "*" => Out::Mul,
                "/" => Out::Div,
                "%" => Out::Mod,
                "^" => Out::Caret,
                "<" => Out::Lt,
                ">" => Out::Gt,
                "=" => Out::Eq,
                "<=" => Out::LtEq,
                ">=" => Out::GtEq,
                "<>" => Out::Neq,
                "||" => Out::StringConcat,
                other => Out::CustomBinaryOperator(other.to_owned()),
            }
        };
        self.operand = false;
        self.push(out, token);
        Ok(())
    }
}

/// Key words that are labels behind AS only, in all versions (`AS_LABEL` of `kwlist.h`).
const LABELS_AFTER_AS: &[&str] = &[
    "array",
    "as",
    "char",
    "character",
    "create",
    "day",
    "except",
    "fetch",
    "filter",
    "for",
    "from",
    "grant",
    "group",
    "having",
    "hour",
    "intersect",
    "into",
    "isnull",
    "limit",
    "minute",
    "month",
    "notnull",
    "offset",
    "on",
    "order",
    "over",
    "overlaps",
    "precision",
    "returning",
    "second",
    "to",
    "union",
    "varying",
    "where",
    "window",
    "with",
    "within",
    "without",
    "year",
];

/// Words that go on with a join, behind a table or a condition.
pub(super) const JOINS: &[&str] = &["cross", "full", "inner", "join", "left", "natural", "outer", "right"];

/// Reserved words that are operands.
pub(super) fn is_value(word: &str) -> bool {
    matches!(
        word,
        "end"
            | "null"
            | "true"
            | "false"
            | "user"
            | "current_catalog"
            | "current_date"
            | "current_role"
            | "current_time"
            | "current_timestamp"
            | "current_user"
            | "localtime"
            | "localtimestamp"
            | "session_user"
            | "system_user"
            | "default"
    )
}
