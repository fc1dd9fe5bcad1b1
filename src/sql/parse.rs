//! Tokens of a query to sqlparser's tree.
//!
//! Invariant: what the [`front`] changes on the way changes neither which functions and types
//! a query uses nor which statement it is; the tree is for judging only and is never rendered.

use sqlparser::ast::Query;
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};
use sqlparser::tokenizer::{Location, Span, Token as Out};

use super::front::{self, Beside, Rewritten};
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

/// A parsed query.
#[derive(Clone, Debug)]
pub struct Tree {
    pub query: Box<Query>,
    /// Names that the front took out.
    pub beside: Beside,
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
    let Rewritten { tokens: normal, beside, .. } = front::rewrite(tokens)?;
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
                Out::EOF => Ok(Tree { query, beside }),
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
