//! Which statement the tokens are: a front of our own, since a parser of many dialects merges and drops
//! key words that decide.
//!
//! Invariant: each form is recognised by all of its tokens; what is left over is an error.

use super::lexer::{Kind, Token};
use super::parse::{self, ParseError, Tree};
use super::tag;

/// One statement, as far as judging it takes.
#[derive(Clone, Debug)]
pub enum Statement<'t, 'a> {
    Query(Query<'t, 'a>),
    Explain {
        analyze: bool,
        inner: Box<Statement<'t, 'a>>,
    },
    Prepare {
        name: String,
        types: Option<Tree>,
        inner: Box<Statement<'t, 'a>>,
    },
    Execute {
        name: String,
        arguments: Option<Query<'t, 'a>>,
    },
    /// `None` is ALL.
    Deallocate {
        name: Option<String>,
    },
    /// DECLARE … CURSOR FOR
    Declare {
        name: String,
        /// WITH HOLD: it outlives its transaction.
        hold: bool,
        query: Query<'t, 'a>,
    },
    /// FETCH and MOVE: they go on with what a cursor was declared or a portal bound for.
    Fetch {
        name: String,
    },
    /// CLOSE; `None` is ALL.
    Close {
        name: Option<String>,
    },
    /// COPY … TO STDOUT
    CopyOut(Copied<'t, 'a>),
    Show,
    /// LOCK … IN ACCESS SHARE MODE
    LockAccessShare,
    Transaction(Transaction),
    Set {
        local: bool,
        name: String,
        value: SetValue,
        offset: usize,
    },
    SetCharacteristics {
        modes: Modes,
    },
    /// SET ROLE, SET SESSION AUTHORIZATION, and RESET of them: the parameter's name.
    Role {
        parameter: &'static str,
        offset: usize,
    },
    /// RESET and SET … TO DEFAULT; the name in lower case, `all` for RESET ALL.
    Reset {
        name: String,
        offset: usize,
    },
    /// DISCARD, UNLISTEN, SET CONSTRAINTS
    Session {
        deallocates: bool,
    },
    /// It changes something; the command tag.
    Write {
        tag: String,
        offset: usize,
    },
}

/// What COPY reads.
#[derive(Clone, Debug)]
pub enum Copied<'t, 'a> {
    Query(Query<'t, 'a>),
    Table { name: Vec<String>, offset: usize },
}

/// A query: its tokens and its tree.
#[derive(Clone, Debug)]
pub struct Query<'t, 'a> {
    pub tokens: &'t [Token<'a>],
    pub tree: Tree,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transaction {
    /// BEGIN, START TRANSACTION, SET TRANSACTION
    Modes(Modes),
    /// COMMIT, ROLLBACK, savepoints
    Other,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Modes {
    /// Byte offset of `READ WRITE`, if it is asked for.
    pub read_write: Option<usize>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetValue {
    /// The value as PostgreSQL would keep it: the items, joined by a comma.
    Text(String),
    /// FROM CURRENT
    Current,
}

type Result<T> = std::result::Result<T, ParseError>;

/// Walks over tokens; every `accept` moves on only when it fits.
struct Cursor<'t, 'a> {
    tokens: &'t [Token<'a>],
    at: usize,
}

impl<'t, 'a> Cursor<'t, 'a> {
    fn peek(&self) -> Option<&'t Token<'a>> {
        self.tokens.get(self.at)
    }

    fn ahead(&self, ahead: usize) -> Option<&'t Token<'a>> {
        self.tokens.get(self.at + ahead)
    }

    fn is(&self, word: &str) -> bool {
        self.peek().is_some_and(|token| token.is(word))
    }

    fn accept(&mut self, word: &str) -> bool {
        let fits = self.is(word);
        self.at += usize::from(fits);
        fits
    }

    /// Accepts all of `words` or nothing.
    fn accept_all(&mut self, words: &[&str]) -> bool {
        let fits = words
            .iter()
            .enumerate()
            .all(|(ahead, word)| self.ahead(ahead).is_some_and(|token| token.is(word)));
        if fits {
            self.at += words.len();
        }
        fits
    }

    fn accept_kind(&mut self, kind: Kind) -> bool {
        let fits = self.peek().is_some_and(|token| token.kind == kind);
        self.at += usize::from(fits);
        fits
    }

    fn accept_operator(&mut self, symbol: &str) -> bool {
        let fits = self.peek().is_some_and(|token| token.is_operator(symbol));
        self.at += usize::from(fits);
        fits
    }

    fn error<T>(&self) -> Result<T> {
        Err(ParseError::at(self.peek()))
    }

    fn expect(&mut self, word: &str) -> Result<()> {
        if self.accept(word) { Ok(()) } else { self.error() }
    }

    fn expect_end(&self) -> Result<()> {
        if self.at == self.tokens.len() { Ok(()) } else { self.error() }
    }

    fn name(&mut self) -> Result<String> {
        match self.peek() {
            Some(token) if token.is_column_name() => {
                self.at += 1;
                Ok(token.text.clone().into_owned())
            }
            _ => self.error(),
        }
    }

    /// `a.b.c`
    fn qualified_name(&mut self) -> Result<Vec<String>> {
        let mut name = vec![self.name()?];
        while self.accept_kind(Kind::Dot) {
            match self.peek() {
                Some(token) if matches!(token.kind, Kind::Word(_) | Kind::Quoted) => {
                    name.push(token.text.clone().into_owned());
                    self.at += 1;
                }
                _ => return self.error(),
            }
        }
        Ok(name)
    }

    fn rest(&self) -> &'t [Token<'a>] {
        self.tokens.get(self.at..).unwrap_or_default()
    }

    /// The tokens between the bracket before the position and its partner; the position is then
    /// behind the partner.
    fn bracketed(&mut self) -> Result<&'t [Token<'a>]> {
        let from = self.at;
        let mut depth = 1usize;
        while let Some(token) = self.peek() {
            self.at += 1;
            match token.kind {
                Kind::LeftParen | Kind::LeftBracket => depth += 1,
                Kind::RightParen | Kind::RightBracket => {
                    depth -= 1;
                    if depth == 0 {
                        return Ok(self.tokens.get(from..self.at - 1).unwrap_or_default());
                    }
                }
                _ => {}
            }
        }
        self.error()
    }
}

fn query<'t, 'a>(tokens: &'t [Token<'a>]) -> Result<Query<'t, 'a>> {
    Ok(Query { tokens, tree: parse::query(tokens)? })
}

fn starts_query(token: &Token<'_>) -> bool {
    token.kind == Kind::LeftParen || ["select", "values", "table", "with"].iter().any(|word| token.is(word))
}

/// A query, or what writes: the only statements that stand inside others.
fn inner<'t, 'a>(tokens: &'t [Token<'a>]) -> Result<Statement<'t, 'a>> {
    let Some(first) = tokens.first() else { return Err(ParseError::at(None)) };
    if starts_query(first) {
        return Ok(match tag::of_query(tokens) {
            Some((tag, offset)) => Statement::Write { tag, offset },
            None => Statement::Query(query(tokens)?),
        });
    }
    match tag::of_command(tokens) {
        Some(tag) => Ok(Statement::Write { tag, offset: first.start }),
        None => Err(ParseError::at(Some(first))),
    }
}

/// Recognises the statement that `tokens`, without any `;` outside brackets, are.
pub fn parse<'t, 'a>(tokens: &'t [Token<'a>]) -> Result<Statement<'t, 'a>> {
    let mut cursor = Cursor { tokens, at: 0 };
    let Some(first) = cursor.peek() else { return cursor.error() };
    if starts_query(first) {
        return inner(tokens);
    }
    if !matches!(first.kind, Kind::Word(_)) {
        return cursor.error();
    }
    cursor.at = 1;
    let statement = match first.text.as_ref() {
        "explain" => return explain(cursor),
        "prepare" => return prepare(cursor, first),
        "execute" => execute(&mut cursor)?,
        "deallocate" => {
            if cursor.tokens.len() > 2 {
                cursor.accept("prepare");
            }
            let all = cursor.accept("all");
            let name = if all { None } else { Some(cursor.name()?) };
            Statement::Deallocate { name }
        }
        "declare" => return declare(cursor),
        "fetch" | "move" => return fetch(cursor),
        "close" => {
            let all = cursor.accept("all");
            Statement::Close { name: if all { None } else { Some(cursor.name()?) } }
        }
        "copy" => return copy(cursor, first),
        "show" => {
            show(&mut cursor)?;
            Statement::Show
        }
        "lock" => return lock(cursor, first),
        "begin" => {
            let _ = cursor.accept("work") || cursor.accept("transaction");
            Statement::Transaction(Transaction::Modes(modes(&mut cursor)?))
        }
        "start" => {
            cursor.expect("transaction")?;
            Statement::Transaction(Transaction::Modes(modes(&mut cursor)?))
        }
        "commit" | "end" | "rollback" | "abort" => {
            if cursor.accept("prepared") {
                let tag = format!("{} PREPARED", first.text.to_ascii_uppercase());
                return Ok(Statement::Write { tag, offset: first.start });
            }
            let _ = cursor.accept("work") || cursor.accept("transaction");
            if first.is("rollback") && cursor.accept("to") {
                if cursor.rest().len() > 1 {
                    cursor.accept("savepoint");
                }
                cursor.name()?;
            } else if cursor.accept("and") {
                cursor.accept("no");
                cursor.expect("chain")?;
            }
            Statement::Transaction(Transaction::Other)
        }
        "savepoint" => {
            cursor.name()?;
            Statement::Transaction(Transaction::Other)
        }
        "release" => {
            if cursor.rest().len() > 1 {
                cursor.accept("savepoint");
            }
            cursor.name()?;
            Statement::Transaction(Transaction::Other)
        }
        "set" => return set(cursor, first),
        "reset" => reset(&mut cursor)?,
        "discard" => {
            let all = cursor.accept("all");
            if !all && !["plans", "sequences", "temp", "temporary"].iter().any(|word| cursor.accept(word)) {
                return cursor.error();
            }
            Statement::Session { deallocates: all }
        }
        "unlisten" => {
            if !cursor.accept_operator("*") {
                cursor.name()?;
            }
            Statement::Session { deallocates: false }
        }
        _ => return inner(tokens),
    };
    cursor.expect_end()?;
    Ok(statement)
}

fn explain<'t, 'a>(mut cursor: Cursor<'t, 'a>) -> Result<Statement<'t, 'a>> {
    let mut analyze = false;
    let options = cursor.peek().is_some_and(|token| token.kind == Kind::LeftParen)
        && cursor.ahead(1).is_some_and(|token| !starts_query(token));
    if options {
        cursor.at += 1;
        let inside = cursor.bracketed()?;
        for option in inside.split(|token| token.kind == Kind::Comma) {
            analyze |= explain_option(option)?;
        }
    } else {
        analyze = cursor.accept("analyze") || cursor.accept("analyse");
        cursor.accept("verbose");
    }
    let rest = cursor.rest();
    let explained = if cursor.accept("execute") {
        let statement = execute(&mut cursor)?;
        cursor.expect_end()?;
        statement
    } else if cursor.accept("declare") {
        declare(cursor)?
    } else {
        inner(rest)?
    };
    Ok(Statement::Explain { analyze, inner: Box::new(explained) })
}

/// Checks one option of `EXPLAIN (…)`; does it say ANALYZE?
///
/// Only what clearly says no is a no, and one yes suffices although PostgreSQL takes the last.
fn explain_option(option: &[Token<'_>]) -> Result<bool> {
    let (Some(name), value) = (option.first(), option.get(1..).unwrap_or_default()) else {
        return Err(ParseError::at(None));
    };
    let known = [
        "analyze",
        "analyse",
        "verbose",
        "costs",
        "buffers",
        "settings",
        "wal",
        "timing",
        "summary",
        "format",
        "generic_plan",
        "serialize",
        "memory",
    ];
    if !matches!(name.kind, Kind::Word(_) | Kind::Quoted) || !known.contains(&name.text.as_ref()) {
        return Err(ParseError::at(Some(name)));
    }
    if let Some(second) = value.get(1) {
        return Err(ParseError::at(Some(second)));
    }
    let no = match value.first() {
        None => false,
        Some(value) => match value.kind {
            Kind::Word(_) | Kind::Quoted | Kind::String | Kind::Number => {
                ["false", "off", "0"].iter().any(|no| value.text.eq_ignore_ascii_case(no))
            }
            _ => return Err(ParseError::at(Some(value))),
        },
    };
    Ok(matches!(name.text.as_ref(), "analyze" | "analyse") && !no)
}

fn prepare<'t, 'a>(mut cursor: Cursor<'t, 'a>, first: &Token<'_>) -> Result<Statement<'t, 'a>> {
    if cursor.is("transaction") && cursor.ahead(1).is_some_and(|token| token.kind == Kind::String) {
        return Ok(Statement::Write { tag: "PREPARE TRANSACTION".to_owned(), offset: first.start });
    }
    let name = cursor.name()?;
    let mut types = None;
    if cursor.accept_kind(Kind::LeftParen) {
        types = Some(parse::types(cursor.bracketed()?)?);
    }
    cursor.expect("as")?;
    Ok(Statement::Prepare { name, types, inner: Box::new(inner(cursor.rest())?) })
}

fn execute<'t, 'a>(cursor: &mut Cursor<'t, 'a>) -> Result<Statement<'t, 'a>> {
    let name = cursor.name()?;
    let mut arguments = None;
    if cursor.accept_kind(Kind::LeftParen) {
        let tokens = cursor.bracketed()?;
        arguments = Some(Query { tokens, tree: parse::expressions(tokens)? });
    }
    Ok(Statement::Execute { name, arguments })
}

fn declare<'t, 'a>(mut cursor: Cursor<'t, 'a>) -> Result<Statement<'t, 'a>> {
    let name = cursor.name()?;
    while ["binary", "asensitive", "insensitive", "scroll"].iter().any(|word| cursor.accept(word))
        || cursor.accept_all(&["no", "scroll"])
    {}
    cursor.expect("cursor")?;
    let hold = cursor.accept_all(&["with", "hold"]);
    let _ = hold || cursor.accept_all(&["without", "hold"]);
    cursor.expect("for")?;
    match inner(cursor.rest())? {
        Statement::Query(query) => Ok(Statement::Declare { name, hold, query }),
        write @ Statement::Write { .. } => Ok(write),
        _ => cursor.error(),
    }
}

/// FETCH and MOVE: words, a number and a name, nothing that could run.
fn fetch<'t, 'a>(mut cursor: Cursor<'t, 'a>) -> Result<Statement<'t, 'a>> {
    let directions = ["next", "prior", "first", "last", "absolute", "relative", "forward", "backward", "all"];
    // The last token is the cursor's name, whatever it is called.
    while cursor.rest().len() > 1 {
        let fits = directions.iter().any(|word| cursor.accept(word))
            || cursor.accept("from")
            || cursor.accept("in")
            || cursor.accept_operator("-")
            || cursor.accept_operator("+")
            || cursor.accept_kind(Kind::Number);
        if !fits {
            return cursor.error();
        }
    }
    let name = cursor.name()?;
    cursor.expect_end()?;
    Ok(Statement::Fetch { name })
}

fn copy<'t, 'a>(mut cursor: Cursor<'t, 'a>, first: &Token<'_>) -> Result<Statement<'t, 'a>> {
    let write = |tag: &str| Ok(Statement::Write { tag: tag.to_owned(), offset: first.start });
    let copied;
    if cursor.accept_kind(Kind::LeftParen) {
        match inner(cursor.bracketed()?)? {
            Statement::Query(query) => copied = Copied::Query(query),
            write @ Statement::Write { .. } => return Ok(write),
            _ => return cursor.error(),
        }
    } else {
        if cursor.ahead(1).is_some_and(|token| token.is_column_name()) {
            cursor.accept("binary");
        }
        let offset = cursor.peek().map_or(0, |token| token.start);
        copied = Copied::Table { name: cursor.qualified_name()?, offset };
        if cursor.accept_kind(Kind::LeftParen) {
            let columns = cursor.bracketed()?;
            if let Some(token) =
                columns.iter().find(|token| token.kind != Kind::Comma && !token.is_column_name())
            {
                return Err(ParseError::at(Some(token)));
            }
        }
        if cursor.is("from") {
            return write("COPY FROM");
        }
    }
    cursor.expect("to")?;
    if !cursor.accept("stdout") {
        return write("COPY TO");
    }
    // Options are names and constants; none of them can name a file or call anything.
    for token in cursor.rest() {
        let fits = match token.kind {
            Kind::Word(_)
            | Kind::Quoted
            | Kind::String
            | Kind::Number
            | Kind::LeftParen
            | Kind::RightParen
            | Kind::Comma => true,
            Kind::Operator => token.text == "*",
            _ => false,
        };
        if !fits || ["where", "select", "program", "from"].iter().any(|word| token.is(word)) {
            return Err(ParseError::at(Some(token)));
        }
    }
    Ok(Statement::CopyOut(copied))
}

fn show(cursor: &mut Cursor<'_, '_>) -> Result<()> {
    if cursor.accept("all")
        || cursor.accept_all(&["time", "zone"])
        || cursor.accept_all(&["transaction", "isolation", "level"])
        || cursor.accept_all(&["session", "authorization"])
    {
        return Ok(());
    }
    cursor.qualified_name()?;
    Ok(())
}

fn lock<'t, 'a>(mut cursor: Cursor<'t, 'a>, first: &Token<'_>) -> Result<Statement<'t, 'a>> {
    cursor.accept("table");
    loop {
        cursor.accept("only");
        let bracket = cursor.accept_kind(Kind::LeftParen);
        cursor.qualified_name()?;
        if bracket && !cursor.accept_kind(Kind::RightParen) {
            return cursor.error();
        }
        cursor.accept_operator("*");
        if !cursor.accept_kind(Kind::Comma) {
            break;
        }
    }
    if !cursor.accept_all(&["in", "access", "share", "mode"]) {
        return Ok(Statement::Write { tag: "LOCK TABLE".to_owned(), offset: first.start });
    }
    cursor.accept("nowait");
    cursor.expect_end()?;
    Ok(Statement::LockAccessShare)
}

/// Transaction modes, with or without commas, up to the end.
fn modes(cursor: &mut Cursor<'_, '_>) -> Result<Modes> {
    let mut modes = Modes::default();
    while let Some(token) = cursor.peek() {
        if cursor.accept_all(&["isolation", "level"]) {
            let fits = cursor.accept("serializable")
                || cursor.accept_all(&["repeatable", "read"])
                || cursor.accept_all(&["read", "committed"])
                || cursor.accept_all(&["read", "uncommitted"]);
            if !fits {
                return cursor.error();
            }
        } else if cursor.accept_all(&["read", "write"]) {
            modes.read_write = Some(token.start);
        } else if !(cursor.accept_all(&["read", "only"])
            || cursor.accept("deferrable")
            || cursor.accept_all(&["not", "deferrable"]))
        {
            return cursor.error();
        }
        if cursor.accept_kind(Kind::Comma) && cursor.peek().is_none() {
            return cursor.error();
        }
    }
    Ok(modes)
}

fn set<'t, 'a>(mut cursor: Cursor<'t, 'a>, first: &Token<'_>) -> Result<Statement<'t, 'a>> {
    if cursor.accept("constraints") {
        // Names, ALL, DEFERRED, IMMEDIATE: when a check runs, never what.
        return match cursor
            .rest()
            .iter()
            .find(|token| !matches!(token.kind, Kind::Word(_) | Kind::Quoted | Kind::Dot | Kind::Comma))
        {
            Some(token) => Err(ParseError::at(Some(token))),
            None => Ok(Statement::Session { deallocates: false }),
        };
    }
    if cursor.is("transaction") {
        cursor.at += 1;
        if cursor.accept("snapshot") {
            if !cursor.accept_kind(Kind::String) {
                return cursor.error();
            }
            cursor.expect_end()?;
            return Ok(Statement::Transaction(Transaction::Other));
        }
        return transaction_modes(cursor);
    }
    if cursor.accept_all(&["session", "characteristics", "as", "transaction"]) {
        if cursor.peek().is_none() {
            return cursor.error();
        }
        let modes = modes(&mut cursor)?;
        return Ok(Statement::SetCharacteristics { modes });
    }
    if cursor.is("session") && cursor.ahead(1).is_some_and(|token| token.is("authorization")) {
        return Ok(Statement::Role { parameter: "session_authorization", offset: first.start });
    }
    let scoped = cursor
        .ahead(1)
        .is_some_and(|token| !matches!(token.kind, Kind::Dot) && !token.is("to") && !token.is_operator("="));
    let local = scoped && cursor.accept("local");
    if scoped && !local {
        cursor.accept("session");
    }
    if local && cursor.accept("transaction") {
        return transaction_modes(cursor);
    }
    let Some(target) = cursor.peek() else { return cursor.error() };
    let offset = target.start;
    if cursor.accept_all(&["session", "authorization"]) {
        return Ok(Statement::Role { parameter: "session_authorization", offset });
    }
    if cursor.is("role") && cursor.ahead(1).is_some_and(|token| !token.is("to") && !token.is_operator("=")) {
        return Ok(Statement::Role { parameter: "role", offset });
    }
    if cursor.accept_all(&["time", "zone"]) {
        return set_time_zone(cursor, local, offset);
    }
    if cursor.is("names") && cursor.ahead(1).is_none_or(|token| !token.is("to") && token.text != "=") {
        cursor.at += 1;
        let value = match cursor.peek() {
            None => None,
            Some(token) if token.is("default") => {
                cursor.at += 1;
                None
            }
            Some(token) if token.kind == Kind::String => {
                cursor.at += 1;
                Some(token.text.clone().into_owned())
            }
            Some(_) => return cursor.error(),
        };
        cursor.expect_end()?;
        let name = "client_encoding".to_owned();
        return Ok(match value {
            None => Statement::Reset { name, offset },
            Some(value) => Statement::Set { local, name, value: SetValue::Text(value), offset },
        });
    }
    if cursor.is("schema") && cursor.ahead(1).is_some_and(|token| token.kind == Kind::String) {
        cursor.at += 1;
        let value = cursor.peek().map(|token| token.text.clone().into_owned()).unwrap_or_default();
        cursor.at += 1;
        cursor.expect_end()?;
        let name = "search_path".to_owned();
        return Ok(Statement::Set { local, name, value: SetValue::Text(value), offset });
    }
    if cursor.accept_all(&["xml", "option"]) {
        let Some(value) = cursor.peek().filter(|token| token.is("document") || token.is("content")) else {
            return cursor.error();
        };
        cursor.at += 1;
        cursor.expect_end()?;
        let value = SetValue::Text(value.text.clone().into_owned());
        return Ok(Statement::Set { local, name: "xmloption".to_owned(), value, offset });
    }
    let name = parameter_name(&mut cursor)?;
    if cursor.accept_all(&["from", "current"]) {
        cursor.expect_end()?;
        return Ok(Statement::Set { local, name, value: SetValue::Current, offset });
    }
    if !cursor.accept("to") && !cursor.accept_operator("=") {
        return cursor.error();
    }
    if cursor.is("default") {
        cursor.at += 1;
        cursor.expect_end()?;
        return Ok(Statement::Reset { name, offset });
    }
    let mut items = Vec::new();
    loop {
        items.push(set_item(&mut cursor)?);
        if !cursor.accept_kind(Kind::Comma) {
            break;
        }
    }
    cursor.expect_end()?;
    Ok(Statement::Set { local, name, value: SetValue::Text(items.join(", ")), offset })
}

fn transaction_modes<'t, 'a>(mut cursor: Cursor<'t, 'a>) -> Result<Statement<'t, 'a>> {
    if cursor.peek().is_none() {
        return cursor.error();
    }
    Ok(Statement::Transaction(Transaction::Modes(modes(&mut cursor)?)))
}

fn set_time_zone<'t, 'a>(
    mut cursor: Cursor<'t, 'a>,
    local: bool,
    offset: usize,
) -> Result<Statement<'t, 'a>> {
    let name = "timezone".to_owned();
    if cursor.accept("local") || cursor.accept("default") {
        cursor.expect_end()?;
        return Ok(Statement::Reset { name, offset });
    }
    // `INTERVAL '1' HOUR TO MINUTE`: words, brackets and constants.
    let interval = cursor.accept("interval");
    let value = set_item(&mut cursor)?;
    if interval {
        for token in cursor.rest() {
            let fits =
                matches!(token.kind, Kind::Word(_) | Kind::LeftParen | Kind::RightParen | Kind::Number);
            if !fits {
                return Err(ParseError::at(Some(token)));
            }
        }
    } else {
        cursor.expect_end()?;
    }
    Ok(Statement::Set { local, name, value: SetValue::Text(value), offset })
}

/// `name` or `class.name`, in lower case as parameters are.
fn parameter_name(cursor: &mut Cursor<'_, '_>) -> Result<String> {
    let mut name = cursor.name()?.to_ascii_lowercase();
    while cursor.accept_kind(Kind::Dot) {
        name.push('.');
        name.push_str(&cursor.name()?.to_ascii_lowercase());
    }
    Ok(name)
}

/// One value of SET: a word, a string, or a number with its sign.
fn set_item(cursor: &mut Cursor<'_, '_>) -> Result<String> {
    let sign = if cursor.accept_operator("-") {
        "-"
    } else {
        cursor.accept_operator("+");
        ""
    };
    let Some(token) = cursor.peek() else { return cursor.error() };
    let fits = match token.kind {
        Kind::Number => true,
        Kind::Word(_) | Kind::Quoted | Kind::String => sign.is_empty(),
        _ => false,
    };
    if !fits || token.is("default") {
        return cursor.error();
    }
    cursor.at += 1;
    Ok(format!("{sign}{}", token.text))
}

fn reset<'t, 'a>(cursor: &mut Cursor<'t, 'a>) -> Result<Statement<'t, 'a>> {
    let offset = cursor.peek().map_or(0, |token| token.start);
    if cursor.accept_all(&["session", "authorization"]) {
        return Ok(Statement::Role { parameter: "session_authorization", offset });
    }
    if cursor.is("role") && cursor.rest().len() == 1 {
        cursor.at += 1;
        return Ok(Statement::Role { parameter: "role", offset });
    }
    let name = if cursor.accept("all") {
        "all".to_owned()
    } else if cursor.accept_all(&["time", "zone"]) {
        "timezone".to_owned()
    } else if cursor.accept_all(&["transaction", "isolation", "level"]) {
        "transaction_isolation".to_owned()
    } else {
        parameter_name(cursor)?
    };
    Ok(Statement::Reset { name, offset })
}
