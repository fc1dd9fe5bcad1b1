//! Which statement the tokens are: a front of our own, since a parser of many dialects merges and drops
//! key words that decide.
//!
//! Invariant: each form is recognised by all of its tokens; what is left over is an error.

use crate::sql::lexer::{Kind, Token};
use crate::sql::parse::{self, ParseError, Tree};
use crate::sql::tag;

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

mod carry;
mod cursor;
mod set;

use carry::{copy, declare, execute, explain, fetch, prepare};
use cursor::Cursor;
use set::{reset, set};

type Result<T> = std::result::Result<T, ParseError>;

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

fn transaction_modes<'t, 'a>(mut cursor: Cursor<'t, 'a>) -> Result<Statement<'t, 'a>> {
    if cursor.peek().is_none() {
        return cursor.error();
    }
    Ok(Statement::Transaction(Transaction::Modes(modes(&mut cursor)?)))
}
