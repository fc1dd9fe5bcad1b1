//! Tokens of a query to sqlparser's tree.
//!
//! Invariant: what is changed on the way (see [`normalise`]) changes neither which functions and types
//! a query uses nor which statement it is; the tree is for judging only and is never rendered.

use std::ops::ControlFlow;

use sqlparser::ast::Query;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Span, Token as Out, TokenWithSpan, Word};

use super::keyword::Category;
use super::lexer::{Kind, Token};

/// How deep sqlparser may recurse; a bracket takes two to three of these.
const RECURSION: usize = 250;

/// Room on the stack in bytes, measured with tests/guard_limits.rs and doubled; a build with debug
/// assertions has far larger frames.
mod room {
    const DEBUG: usize = if cfg!(debug_assertions) { 6 } else { 1 };

    /// One level of the parser's own recursion.
    pub const LEVEL: usize = DEBUG * (24 << 10);
    /// A join, whose conditions may come late: the parser recurses without counting.
    pub const JOIN: usize = DEBUG * (12 << 10);
    /// One level of a left-deep tree, walked and dropped.
    pub const TREE: usize = DEBUG * (2 << 10);
    /// All else.
    pub const BASE: usize = 256 << 10;
}

/// Why tokens are no query.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("{message}")]
    Syntax { message: String, offset: Option<usize> },
    #[error("statement is nested too deeply")]
    TooDeep,
}

impl ParseError {
    pub fn at(token: Option<&Token<'_>>) -> Self {
        let message = match token {
            None => "unexpected end of statement".to_owned(),
            Some(token) => match token.kind {
                Kind::String | Kind::National | Kind::Bits => "unexpected string".to_owned(),
                Kind::Number => "unexpected number".to_owned(),
                Kind::Parameter => "unexpected parameter".to_owned(),
                _ => format!("unexpected \"{}\"", token.text),
            },
        };
        Self::Syntax { message, offset: token.map(|token| token.start) }
    }
}

/// The name of a type that stands before a string, as in `date '2020-01-01'`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypedLiteral {
    pub name: Vec<String>,
    pub offset: usize,
}

/// A parsed query.
#[derive(Clone, Debug)]
pub struct Tree {
    pub query: Box<Query>,
    /// Types that [`normalise`] took out.
    pub typed_literals: Vec<TypedLiteral>,
}

/// Runs `work`, which parses, walks and drops these tokens, on a stack that suffices for it.
///
/// Long chains of operators make trees as deep as the chain is long, and the parser recurses for
/// brackets, prefixes and joins. The pages of a grown stack are touched only as far as they are used.
pub fn with_stack<R>(tokens: &[Token<'_>], work: impl FnOnce() -> R) -> R {
    let (mut depth, mut deepest, mut prefixes, mut joins) = (0usize, 0, 0usize, 0usize);
    let mut before = None;
    for token in tokens {
        match token.kind {
            Kind::LeftParen | Kind::LeftBracket => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            Kind::RightParen | Kind::RightBracket => depth = depth.saturating_sub(1),
            Kind::Operator if matches!(before, Some(Kind::Operator | Kind::Word(_))) => prefixes += 1,
            Kind::Word(_) => match token.text.as_ref() {
                "join" => joins += 1,
                "not" | "case" | "interval" | "between" => prefixes += 1,
                _ => {}
            },
            _ => {}
        }
        before = Some(token.kind);
    }
    let levels = (3 * deepest + prefixes).min(RECURSION);
    // A level of a tree takes at least two tokens, an operator and an operand.
    let need = room::BASE + levels * room::LEVEL + joins * room::JOIN + tokens.len() / 2 * room::TREE;
    stacker::maybe_grow(need, need + room::BASE, work)
}

/// Parses the tokens of one query, all of them.
pub fn query(tokens: &[Token<'_>]) -> Result<Tree, ParseError> {
    // sqlparser would take the second for an alias.
    let constant =
        |kind| matches!(kind, Kind::String | Kind::National | Kind::Bits | Kind::Number | Kind::Parameter);
    for pair in tokens.windows(2) {
        if let [left, right] = pair
            && constant(left.kind)
            && constant(right.kind)
        {
            return Err(ParseError::at(Some(right)));
        }
    }
    let (normal, typed_literals) = normalise(tokens);
    let dialect = PostgreSqlDialect {};
    let mut parser = Parser::new(&dialect).with_recursion_limit(RECURSION).with_tokens_with_locations(normal);
    let unexpected = |span: Span| {
        let offset = usize::try_from(span.start.column).unwrap_or(0).checked_sub(1);
        ParseError::at(offset.and_then(|offset| tokens.iter().find(|token| token.start >= offset)))
    };
    match parser.parse_query() {
        Ok(query) => {
            let rest = parser.peek_token_ref();
            match rest.token {
                Out::EOF => Ok(Tree { query, typed_literals }),
                _ => Err(unexpected(rest.span)),
            }
        }
        Err(ParserError::RecursionLimitExceeded) => Err(ParseError::TooDeep),
        Err(ParserError::ParserError(message) | ParserError::TokenizerError(message)) => {
            let column = message
                .rsplit_once("Column: ")
                .and_then(|(_, column)| column.parse().ok())
                .filter(|column: &u64| *column > 0);
            match column {
                Some(column) => Err(unexpected(Span {
                    start: Location { line: 1, column },
                    end: Location { line: 1, column },
                })),
                None => Err(ParseError::at(None)),
            }
        }
    }
}

/// The tokens as sqlparser is to see them.
///
/// It lacks some of PostgreSQL's syntax that cannot run anything: that is left out or put in a form it
/// knows. Operators are judged as tokens, so here only their being operators counts.
fn normalise(tokens: &[Token<'_>]) -> (Vec<TokenWithSpan>, Vec<TypedLiteral>) {
    let mut normal =
        Normal { tokens, out: Vec::with_capacity(tokens.len() + 8), typed: Vec::new(), operand: false };
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        at = normal.step(token, at);
    }
    (normal.out, normal.typed)
}

struct Normal<'t, 'a> {
    tokens: &'t [Token<'a>],
    out: Vec<TokenWithSpan>,
    typed: Vec<TypedLiteral>,
    /// Does an operand end just before the position, so that an operator here is infix?
    operand: bool,
}

impl Normal<'_, '_> {
    fn get(&self, at: usize) -> Option<&Token<'_>> {
        self.tokens.get(at)
    }

    fn is(&self, at: usize, word: &str) -> bool {
        self.get(at).is_some_and(|token| token.is(word))
    }

    fn kind(&self, at: usize) -> Option<Kind> {
        self.get(at).map(|token| token.kind)
    }

    fn push(&mut self, token: Out, source: &Token<'_>) {
        let location = |offset: usize| Location { line: 1, column: offset as u64 + 1 };
        self.out.push(TokenWithSpan::new(
            token,
            Span { start: location(source.start), end: location(source.end) },
        ));
    }

    fn word(&mut self, word: &str, keyword: Keyword, source: &Token<'_>) {
        self.push(Out::Word(Word { value: word.to_owned(), quote_style: None, keyword }), source);
    }

    /// Takes the token at `at`, and those after it that belong to the same rule; the next position.
    fn step(&mut self, token: &Token<'_>, at: usize) -> usize {
        let label = at > 0 && (self.is(at - 1, "as") || self.kind(at - 1) == Some(Kind::Dot));
        match token.kind {
            Kind::Word(category) => {
                if let ControlFlow::Break(next) = self.special_word(token, category, at, label) {
                    return next;
                }
                let behind_dot = at > 0 && self.kind(at - 1) == Some(Kind::Dot);
                let keyword = if behind_dot { Keyword::NoKeyword } else { token.keyword };
                self.operand = label
                    || !matches!(category, Category::Reserved | Category::TypeFunction)
                    || ends_operand(&token.text);
                self.word(&token.text, keyword, token);
            }
            Kind::Quoted => {
                if let Some(next) = self.typed_literal(at) {
                    return next;
                }
                self.operand = true;
                self.push(
                    Out::Word(Word {
                        value: token.text.clone().into_owned(),
                        quote_style: Some('"'),
                        keyword: Keyword::NoKeyword,
                    }),
                    token,
                );
            }
            Kind::String | Kind::National => {
                self.operand = true;
                self.push(Out::SingleQuotedString(token.text.clone().into_owned()), token);
            }
            Kind::Bits => {
                self.operand = true;
                self.push(Out::HexStringLiteral(String::new()), token);
            }
            Kind::Number => {
                self.operand = true;
                self.push(Out::Number(token.text.clone().into_owned(), false), token);
            }
            Kind::Parameter => {
                self.operand = true;
                self.push(Out::Placeholder(format!("${}", token.text)), token);
            }
            Kind::Operator => {
                // sqlparser reads `ANY (VALUES …)` as a call; `IN (VALUES …)` it reads.
                if self.operand
                    && ["any", "all", "some"].iter().any(|word| self.is(at + 1, word))
                    && self.kind(at + 2) == Some(Kind::LeftParen)
                    && self.is(at + 3, "values")
                {
                    self.operand = false;
                    self.word("in", Keyword::IN, token);
                    return at + 2;
                }
                self.operator(token, at + 1);
            }
            Kind::LeftParen => {
                self.operand = false;
                self.push(Out::LParen, token);
            }
            Kind::LeftBracket => {
                self.operand = false;
                self.push(Out::LBracket, token);
            }
            Kind::RightParen | Kind::RightBracket => {
                let closing = if token.kind == Kind::RightParen { Out::RParen } else { Out::RBracket };
                self.operand = true;
                self.push(closing, token);
                // `(f()).*` runs what `(f())` runs.
                if self.kind(at + 1) == Some(Kind::Dot)
                    && self.get(at + 2).is_some_and(|star| star.is_operator("*"))
                {
                    return at + 3;
                }
            }
            Kind::Comma => {
                self.operand = false;
                self.push(Out::Comma, token);
            }
            Kind::Semicolon => self.push(Out::SemiColon, token),
            Kind::Dot => {
                self.operand = false;
                self.push(Out::Period, token);
            }
            Kind::DotDot => {
                self.push(Out::Period, token);
                self.push(Out::Period, token);
            }
            Kind::Colon => {
                self.operand = false;
                self.push(Out::Colon, token);
            }
            Kind::Cast => {
                self.operand = false;
                self.push(Out::DoubleColon, token);
            }
            // Both name an argument.
            Kind::Assign | Kind::Arrow => {
                self.operand = false;
                self.push(Out::RArrow, token);
            }
        }
        at + 1
    }

    fn special_word(
        &mut self,
        token: &Token<'_>,
        category: Category,
        at: usize,
        label: bool,
    ) -> ControlFlow<usize> {
        if label && self.kind(at - 1) == Some(Kind::Dot) {
            return ControlFlow::Continue(());
        }
        // A schema may be called by words that no type is called by.
        let named = match category {
            Category::Plain | Category::Unreserved => true,
            Category::ColumnName => self.kind(at + 1) == Some(Kind::Dot),
            Category::TypeFunction | Category::Reserved => false,
        };
        // `ORDER BY day RANGE '1 week' PRECEDING`, rather than `range '(1,2)'`
        let before = at.wrapping_sub(1);
        let frame = ["rows", "range", "groups"].iter().any(|word| token.is(word))
            && (self.operand || self.is(before, "asc") || self.is(before, "desc"));
        if named
            && !frame
            && (!token.is("zone") || !self.is(before, "time"))
            // `COLUMNS a int PATH 'x'`, rather than `path '(1,2)'`
            && (!self.operand || !CLAUSES.contains(&token.text.as_ref()))
            && let Some(next) = self.typed_literal(at)
        {
            return ControlFlow::Break(next);
        }
        if label {
            return ControlFlow::Continue(());
        }
        match token.text.as_ref() {
            // A collation compares; it calls nothing that a schema defines.
            "collate" => {
                let mut next = at + 1;
                if !matches!(self.kind(next), Some(Kind::Word(_) | Kind::Quoted)) {
                    return ControlFlow::Continue(());
                }
                next += 1;
                while self.kind(next) == Some(Kind::Dot)
                    && matches!(self.kind(next + 1), Some(Kind::Word(_) | Kind::Quoted))
                {
                    next += 2;
                }
                self.operand = true;
                ControlFlow::Break(next)
            }
            "collation" if self.is(at + 1, "for") && self.kind(at + 2) == Some(Kind::LeftParen) => {
                self.operand = false;
                self.word("pg_collation_for", Keyword::NoKeyword, token);
                ControlFlow::Break(at + 2)
            }
            "bernoulli" if at > 0 && self.is(at - 1, "tablesample") => {
                self.word("bernoulli", Keyword::BERNOULLI, token);
                ControlFlow::Break(at + 1)
            }
            "path" if self.operand && self.kind(at + 1) == Some(Kind::String) => {
                self.operand = false;
                self.word("path", Keyword::PATH, token);
                ControlFlow::Break(at + 1)
            }
            "isnull" if self.operand => {
                self.word("is", Keyword::IS, token);
                self.word("null", Keyword::NULL, token);
                ControlFlow::Break(at + 1)
            }
            "variadic" | "symmetric" | "asymmetric" => {
                self.operand = false;
                ControlFlow::Break(at + 1)
            }
            // `FROM ONLY t`; but `FETCH FIRST 1 ROW ONLY`.
            "only" if !(at > 0 && (self.is(at - 1, "row") || self.is(at - 1, "rows"))) => {
                ControlFlow::Break(at + 1)
            }
            // `TABLE t` is `SELECT * FROM t`.
            "table" => {
                self.word("select", Keyword::SELECT, token);
                self.push(Out::Mul, token);
                self.word("from", Keyword::FROM, token);
                ControlFlow::Break(at + 1)
            }
            // The exclusion of a window frame holds no expression.
            "exclude" if self.operand || self.is(at.wrapping_sub(1), "row") => {
                let frame =
                    at > 0 && ["preceding", "following", "row"].iter().any(|word| self.is(at - 1, word));
                let length = if !frame {
                    0
                } else if self.is(at + 1, "group") || self.is(at + 1, "ties") {
                    2
                } else if (self.is(at + 1, "current") && self.is(at + 2, "row"))
                    || (self.is(at + 1, "no") && self.is(at + 2, "others"))
                {
                    3
                } else {
                    0
                };
                if length == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(at + length) }
            }
            "operator" if self.kind(at + 1) == Some(Kind::LeftParen) => {
                let mut next = at + 2;
                while matches!(self.kind(next), Some(Kind::Word(_) | Kind::Quoted))
                    && self.kind(next + 1) == Some(Kind::Dot)
                {
                    next += 2;
                }
                if self.kind(next) == Some(Kind::Operator) && self.kind(next + 1) == Some(Kind::RightParen) {
                    self.infix(token, "@@@", next + 2);
                    return ControlFlow::Break(next + 2);
                }
                ControlFlow::Continue(())
            }
            _ => ControlFlow::Continue(()),
        }
    }

    /// `name 'string'` is a cast; the name is noted and left out, the string remains.
    fn typed_literal(&mut self, at: usize) -> Option<usize> {
        if at > 0 && (self.kind(at - 1) == Some(Kind::Dot) || self.is(at - 1, "as")) {
            return None;
        }
        let first = self.get(at)?;
        let mut name = vec![first.text.clone().into_owned()];
        let offset = first.start;
        let mut next = at + 1;
        while self.kind(next) == Some(Kind::Dot)
            && matches!(self.kind(next + 1), Some(Kind::Word(_) | Kind::Quoted))
        {
            name.push(self.get(next + 1)?.text.clone().into_owned());
            next += 2;
        }
        if self.kind(next) != Some(Kind::String) {
            return None;
        }
        self.typed.push(TypedLiteral { name, offset });
        Some(next)
    }

    fn operator(&mut self, token: &Token<'_>, next: usize) {
        match token.text.as_ref() {
            "*" => {
                let multiply = self.operand;
                self.push(Out::Mul, token);
                // `count(*)`, `t.*`, `SELECT *`: the star is the operand.
                self.operand = !multiply;
            }
            symbol => {
                let symbol = symbol.to_owned();
                self.infix(token, &symbol, next);
            }
        }
    }

    /// An operator whose right operand begins at `next`.
    fn infix(&mut self, token: &Token<'_>, symbol: &str, next: usize) {
        let out = if !self.operand {
            match symbol {
                "+" => Out::Plus,
                "-" => Out::Minus,
                _ => Out::Tilde,
            }
        } else if ["any", "all", "some"].iter().any(|word| self.is(next, word)) {
            Out::Eq
        } else {
            match symbol {
                "+" => Out::Plus,
                "-" => Out::Minus,
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
    }
}

/// Words that may stand between an operand and a string, and then are no type's name.
const CLAUSES: &[&str] = &["escape", "passing", "path", "value"];

/// Reserved words that end an operand.
fn ends_operand(word: &str) -> bool {
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
            | "current_schema"
            | "current_time"
            | "current_timestamp"
            | "current_user"
            | "localtime"
            | "localtimestamp"
            | "session_user"
            | "system_user"
            | "default"
            | "left"
            | "right"
            | "isnull"
            | "notnull"
    )
}

/// Parses the arguments of EXECUTE as `SELECT arguments`.
pub fn expressions(tokens: &[Token<'_>]) -> Result<Tree, ParseError> {
    let mut all = Vec::with_capacity(tokens.len() + 1);
    all.push(made(Kind::Word(Category::Reserved), "select", tokens));
    all.extend_from_slice(tokens);
    query(&all)
}

/// Parses a list of type names as `SELECT NULL::a, NULL::b`.
pub fn types(tokens: &[Token<'_>]) -> Result<Tree, ParseError> {
    let mut all = vec![made(Kind::Word(Category::Reserved), "select", tokens)];
    let mut depth = 0usize;
    let mut first = true;
    for token in tokens {
        if first {
            all.push(made(Kind::Word(Category::Reserved), "null", tokens));
            all.push(made(Kind::Cast, "::", tokens));
        }
        match token.kind {
            Kind::LeftParen | Kind::LeftBracket => depth += 1,
            Kind::RightParen | Kind::RightBracket => depth = depth.saturating_sub(1),
            _ => {}
        }
        first = token.kind == Kind::Comma && depth == 0;
        all.push(token.clone());
    }
    query(&all)
}

fn made<'a>(kind: Kind, text: &'static str, before: &[Token<'_>]) -> Token<'a> {
    let start = before.first().map_or(0, |token| token.start);
    let keyword = match text {
        "select" => Keyword::SELECT,
        "null" => Keyword::NULL,
        _ => Keyword::NoKeyword,
    };
    Token { kind, text: text.into(), start, end: start, keyword }
}
