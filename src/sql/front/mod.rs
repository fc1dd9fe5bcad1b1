//! PostgreSQL's syntax to what the parser's grammar has room for.
//!
//! Invariant: every name of the original that could be a function, a type, an operator's operand, a
//! relation or a sample method stands in the rewritten tokens, in order, or is recorded beside them;
//! what is left out are key words of a fixed grammar ([`DROPPED`]) and symbols that are judged as
//! tokens. [`Rewritten::lost`] holds this for each text, and a text for which it does not hold is an
//! error.
//!
//! The result is for judging only: it is never rendered and never sent. What matters in it is which
//! calls, types, tables and expressions there are, not how they are put together, so syntax that the
//! parser lacks becomes a call with the same operands: `overlay(a PLACING b FROM c)` becomes
//! `overlay(a, b, c)`. The functions that such syntax stands for are judged by the same name.
//!
//! It is one pass with two facts at hand: whether an operand ends before the position, which tells a
//! name from a key word as PostgreSQL's grammar does, and which clause the innermost brackets are in.

use sqlparser::keywords::Keyword;
use sqlparser::tokenizer::{Location, Span, Token as Out, TokenWithSpan, Word};

use super::keyword::Category;
use super::lexer::{Kind, Token};
use super::parse::ParseError;

mod call;
mod expression;
mod json;
mod query;
mod table;
mod types;
mod xml;

type Result<T> = std::result::Result<T, ParseError>;

/// A name that stands beside the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub parts: Vec<String>,
    /// Where it begins.
    pub offset: usize,
}

/// Names that were taken out of the tokens, each to be judged as what it is.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    pub types: Vec<Name>,
    pub functions: Vec<Name>,
}

/// What the parser is handed, and what it is not.
#[derive(Debug)]
pub struct Rewritten {
    pub tokens: Vec<TokenWithSpan>,
    pub beside: Beside,
    /// Where the names stand that are recorded, in order: those of [`Beside`], and those of columns,
    /// labels and collations, which run nothing.
    recorded: Vec<usize>,
}

/// Key words that may be left out. A function of such a name is judged with the tokens.
const DROPPED: &[&str] = &[
    "absent",
    "all",
    "any",
    "array",
    "as",
    "asc",
    "asymmetric",
    "at",
    "bigint",
    "bit",
    "boolean",
    "both",
    "breadth",
    "by",
    "char",
    "character",
    "collate",
    "collation",
    "columns",
    "conditional",
    "content",
    "cube",
    "current",
    "cycle",
    "day",
    "dec",
    "decimal",
    "default",
    "depth",
    "desc",
    "distinct",
    "document",
    "double",
    "empty",
    "encoding",
    "error",
    "escape",
    "exclude",
    "exists",
    "false",
    "fetch",
    "first",
    "float",
    "following",
    "for",
    "format",
    "from",
    "full",
    "group",
    "grouping",
    "hour",
    "ilike",
    "in",
    "indent",
    "int",
    "integer",
    "interval",
    "is",
    "isnull",
    "json",
    "keep",
    "key",
    "keys",
    "last",
    "leading",
    "like",
    "local",
    "minute",
    "month",
    "name",
    "national",
    "nchar",
    "nested",
    "next",
    "nfc",
    "nfd",
    "nfkc",
    "nfkd",
    "no",
    "normalized",
    "not",
    "notnull",
    "null",
    "nulls",
    "numeric",
    "object",
    "omit",
    "on",
    "only",
    "order",
    "operator",
    "ordinality",
    "others",
    "passing",
    "path",
    "placing",
    "precision",
    "preserve",
    "quotes",
    "read",
    "real",
    "ref",
    "repeatable",
    "returning",
    "rollup",
    "row",
    "rows",
    "scalar",
    "search",
    "second",
    "set",
    "setof",
    "sets",
    "similar",
    "smallint",
    "some",
    "standalone",
    "string",
    "strip",
    "symmetric",
    "system",
    "bernoulli",
    "table",
    "ties",
    "time",
    "timestamp",
    "to",
    "trailing",
    "treat",
    "trim",
    "true",
    "unconditional",
    "unique",
    "unknown",
    "using",
    "value",
    "values",
    "varchar",
    "variadic",
    "varying",
    "version",
    "whitespace",
    "with",
    "without",
    "wrapper",
    "xmlattributes",
    "xmlnamespaces",
    "xmlparse",
    "year",
    "yes",
    "zone",
];

impl Rewritten {
    /// Where the names stand that were taken out and recorded, in order.
    pub fn recorded(&self) -> &[usize] {
        &self.recorded
    }

    /// The first name of `tokens` that stands neither in the result nor among what is recorded.
    pub fn lost<'t, 'a>(&self, tokens: &'t [Token<'a>]) -> Option<&'t Token<'a>> {
        let start =
            |token: &TokenWithSpan| usize::try_from(token.span.start.column).unwrap_or(0).saturating_sub(1);
        let mut out = self.tokens.iter().peekable();
        let mut recorded = self.recorded.iter().peekable();
        tokens.iter().find(|token| {
            if !matches!(token.kind, Kind::Word(_) | Kind::Quoted) {
                return false;
            }
            while out.peek().is_some_and(|out| start(out) < token.start) {
                out.next();
            }
            // Several tokens may stand for one; the iterator itself stays before them.
            let here = out
                .clone()
                .take_while(|out| start(out) == token.start)
                .any(|out| matches!(&out.token, Out::Word(word) if word.value == token.text));
            while recorded.peek().is_some_and(|offset| **offset < token.start) {
                recorded.next();
            }
            let kept = here
                || recorded.peek() == Some(&&token.start)
                || (matches!(token.kind, Kind::Word(category) if category != Category::Plain)
                    && DROPPED.contains(&token.text.as_ref()));
            !kept
        })
    }
}

/// Which part of a statement the innermost brackets, or the statement itself, are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clause {
    /// A query begins here, or goes on after a set operation.
    Start,
    /// The select list.
    Select,
    /// Tables and joins.
    From,
    /// The condition of a join.
    On,
    Group,
    /// The rest of a query: conditions, order, limits.
    Rest,
    /// Expressions in brackets that are no query.
    Plain,
    Subscript,
}

impl Clause {
    fn of_query(self) -> bool {
        match self {
            Self::Start | Self::Select | Self::From | Self::On | Self::Group | Self::Rest => true,
            Self::Plain | Self::Subscript => false,
        }
    }
}

/// Rewrites the tokens of one query.
pub fn rewrite(tokens: &[Token<'_>]) -> Result<Rewritten> {
    let mut front = Front {
        tokens,
        at: 0,
        out: Vec::with_capacity(tokens.len() + 8),
        beside: Beside::default(),
        recorded: Vec::new(),
        operand: false,
        clause: Clause::Start,
        cases: 0,
        partners: partners(tokens),
    };
    while front.at < tokens.len() {
        front.step()?;
    }
    let rewritten = Rewritten { tokens: front.out, beside: front.beside, recorded: front.recorded };
    match rewritten.lost(tokens) {
        None => Ok(rewritten),
        lost => Err(ParseError::at(lost)),
    }
}

struct Front<'t, 'a> {
    tokens: &'t [Token<'a>],
    at: usize,
    out: Vec<TokenWithSpan>,
    beside: Beside,
    recorded: Vec<usize>,
    /// Does an operand end just before the position, so that a word here is an infix or a label?
    operand: bool,
    clause: Clause,
    /// How many CASE are open in these brackets.
    cases: usize,
    partners: Vec<usize>,
}

impl<'t, 'a> Front<'t, 'a> {
    fn get(&self, at: usize) -> Option<&'t Token<'a>> {
        self.tokens.get(at)
    }

    fn peek(&self) -> Option<&'t Token<'a>> {
        self.tokens.get(self.at)
    }

    fn is(&self, at: usize, word: &str) -> bool {
        self.get(at).is_some_and(|token| token.is(word))
    }

    fn is_one(&self, at: usize, words: &[&str]) -> bool {
        self.get(at)
            .is_some_and(|token| matches!(token.kind, Kind::Word(_)) && words.contains(&token.text.as_ref()))
    }

    fn kind(&self, at: usize) -> Option<Kind> {
        self.get(at).map(|token| token.kind)
    }

    /// Do these words stand at the position?
    fn words(&self, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(ahead, word)| self.is(self.at + ahead, word))
    }

    fn error<T>(&self) -> Result<T> {
        Err(ParseError::at(self.peek()))
    }

    /// Leaves these key words out, if they stand here.
    fn drop_words(&mut self, words: &[&str]) -> bool {
        let fits = self.words(words);
        if fits {
            self.at += words.len();
        }
        fits
    }

    /// Leaves one of these key words out, if one stands here.
    fn drop_one(&mut self, words: &[&str]) -> bool {
        let fits = self.is_one(self.at, words);
        self.at += usize::from(fits);
        fits
    }

    fn expect_words(&mut self, words: &[&str]) -> Result<()> {
        if self.drop_words(words) { Ok(()) } else { self.error() }
    }

    fn skip(&mut self, kind: Kind) -> bool {
        let fits = self.kind(self.at) == Some(kind);
        self.at += usize::from(fits);
        fits
    }

    /// Takes a bracket or comma over as it is.
    fn expect(&mut self, kind: Kind) -> Result<()> {
        let Some(token) = self.peek().filter(|token| token.kind == kind) else { return self.error() };
        let out = match kind {
            Kind::LeftParen => Out::LParen,
            Kind::RightParen => Out::RParen,
            Kind::LeftBracket => Out::LBracket,
            Kind::RightBracket => Out::RBracket,
            _ => Out::Comma,
        };
        self.push(out, token);
        self.at += 1;
        Ok(())
    }

    fn push(&mut self, token: Out, source: &Token<'_>) {
        let location = |offset: usize| Location { line: 1, column: offset as u64 + 1 };
        self.out.push(TokenWithSpan::new(
            token,
            Span { start: location(source.start), end: location(source.end) },
        ));
    }

    /// Puts a token where the position is.
    fn put(&mut self, token: Out) {
        if let Some(source) = self.peek().or(self.tokens.last()) {
            self.push(token, source);
        }
    }

    fn put_word(&mut self, word: &str, keyword: Keyword) {
        self.put(Out::Word(Word { value: word.to_owned(), quote_style: None, keyword }));
    }

    /// Takes the key word at the position over.
    fn key(&mut self) {
        if let Some(token) = self.peek() {
            self.push(
                Out::Word(Word {
                    value: token.text.clone().into_owned(),
                    quote_style: None,
                    keyword: token.keyword,
                }),
                token,
            );
            self.at += 1;
        }
    }

    /// Takes the word at the position over as a name that may be a function's.
    fn plain_name(&mut self) -> Result<()> {
        match self.peek() {
            Some(token) if matches!(token.kind, Kind::Word(_) | Kind::Quoted) => {
                let quote_style = (token.kind == Kind::Quoted).then_some('"');
                let value = token.text.clone().into_owned();
                self.push(Out::Word(Word { value, quote_style, keyword: Keyword::NoKeyword }), token);
                self.at += 1;
                Ok(())
            }
            _ => self.error(),
        }
    }

    /// Takes the word at the position over as a name that is no function's, whatever word it is.
    fn label(&mut self) -> Result<()> {
        match self.peek() {
            Some(token) if matches!(token.kind, Kind::Word(_) | Kind::Quoted) => {
                let value = token.text.clone().into_owned();
                self.push(
                    Out::Word(Word { value, quote_style: Some('"'), keyword: Keyword::NoKeyword }),
                    token,
                );
                self.at += 1;
                Ok(())
            }
            _ => self.error(),
        }
    }

    /// A name as ColId allows it.
    fn column_name(&mut self) -> Result<()> {
        if self.peek().is_some_and(Token::is_column_name) { self.label() } else { self.error() }
    }

    /// Records a name that runs nothing, and leaves it out.
    fn record(&mut self) -> Result<()> {
        match self.peek() {
            Some(token) if matches!(token.kind, Kind::Word(_) | Kind::Quoted) => {
                self.recorded.push(token.start);
                self.at += 1;
                Ok(())
            }
            _ => self.error(),
        }
    }

    /// Where the dotted name that begins at `from` ends.
    fn name_end(&self, from: usize) -> usize {
        let mut next = from + 1;
        while self.kind(next) == Some(Kind::Dot)
            && matches!(self.kind(next + 1), Some(Kind::Word(_) | Kind::Quoted))
        {
            next += 2;
        }
        next
    }

    /// The dotted name in these tokens.
    fn name_of(&self, from: usize, to: usize) -> Name {
        let tokens = self.tokens.get(from..to).unwrap_or_default();
        let parts = tokens.iter().step_by(2).map(|token| token.text.clone().into_owned()).collect();
        Name { parts, offset: tokens.first().map_or(0, |token| token.start) }
    }

    /// Records the dotted name at the position, which ends before `to`.
    fn take_name(&mut self, to: usize) -> Name {
        let name = self.name_of(self.at, to);
        let tokens = self.tokens.get(self.at..to).unwrap_or_default();
        self.recorded.extend(tokens.iter().step_by(2).map(|token| token.start));
        self.at = to;
        name
    }

    /// An operator that makes two expressions one.
    fn glue(&mut self) {
        self.put(Out::StringConcat);
        self.operand = false;
    }

    fn comma(&mut self) {
        self.put(Out::Comma);
        self.operand = false;
    }

    /// What is in the brackets at the position.
    fn bracket(&mut self, inside: Clause) -> Result<()> {
        self.expect(Kind::LeftParen)?;
        self.inside(inside)?;
        self.expect(Kind::RightParen)?;
        self.operand = true;
        Ok(())
    }

    /// Everything up to the bracket that closes.
    fn inside(&mut self, clause: Clause) -> Result<()> {
        let outside = std::mem::replace(&mut self.clause, clause);
        let cases = std::mem::take(&mut self.cases);
        self.operand = false;
        loop {
            match self.kind(self.at) {
                None => return self.error(),
                Some(Kind::RightParen | Kind::RightBracket) => break,
                Some(_) => self.step()?,
            }
        }
        self.clause = outside;
        self.cases = cases;
        Ok(())
    }

    /// One expression, up to a comma, a bracket that closes, or one of `stops` behind an operand.
    fn argument(&mut self, stops: &[&str]) -> Result<()> {
        let outside = std::mem::replace(&mut self.clause, Clause::Plain);
        let cases = std::mem::take(&mut self.cases);
        self.operand = false;
        loop {
            match self.kind(self.at) {
                None | Some(Kind::RightParen | Kind::RightBracket | Kind::Comma) => break,
                Some(Kind::Colon) if self.operand => break,
                Some(Kind::Word(_)) if self.operand && self.cases == 0 && self.is_one(self.at, stops) => {
                    break;
                }
                Some(_) => self.step()?,
            }
        }
        self.clause = outside;
        self.cases = cases;
        if self.operand { Ok(()) } else { self.error() }
    }

    /// Does a query stand in the bracket at `open`, rather than an expression or a joined table?
    fn is_query(&self, open: usize) -> bool {
        let first = open + 1;
        if self.is_one(first, &["select", "with", "table"]) {
            return true;
        }
        if self.is(first, "values") {
            return self.kind(first + 1) == Some(Kind::LeftParen);
        }
        if self.kind(first) != Some(Kind::LeftParen) || !self.is_query(first) {
            return false;
        }
        let Some(close) = self.partner(first) else { return false };
        self.kind(close + 1) == Some(Kind::RightParen)
            || self.is_one(
                close + 1,
                &["union", "intersect", "except", "order", "limit", "offset", "fetch", "for"],
            )
    }

    /// The bracket that closes the one at `open`.
    fn partner(&self, open: usize) -> Option<usize> {
        self.partners.get(open).copied().filter(|close| *close > open)
    }
}

/// For each bracket that opens, where it is closed; nothing where no two open next to each other, since
/// then nobody asks.
fn partners(tokens: &[Token<'_>]) -> Vec<usize> {
    let open = |kind| matches!(kind, Kind::LeftParen | Kind::LeftBracket);
    if !tokens.windows(2).any(|pair| pair.iter().all(|token| open(token.kind))) {
        return Vec::new();
    }
    let mut partners = vec![0; tokens.len()];
    let mut opened = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token.kind {
            kind if open(kind) => opened.push(at),
            Kind::RightParen | Kind::RightBracket => {
                if let Some(partner) = opened.pop().and_then(|open| partners.get_mut(open)) {
                    *partner = at;
                }
            }
            _ => {}
        }
    }
    partners
}
