//! Statements that carry a query, and those that name a cursor.
//!
//! Invariant: what is carried is recognised as a statement of its own, to its last token.

use super::cursor::Cursor;
use super::{Copied, Query, Result, Statement, inner, starts_query};
use crate::sql::keyword::Category;
use crate::sql::lexer::{Kind, Token};
use crate::sql::parse::{self, ParseError};

pub(super) fn explain<'t, 'a>(mut cursor: Cursor<'t, 'a>) -> Result<Statement<'t, 'a>> {
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
pub(super) fn explain_option(option: &[Token<'_>]) -> Result<bool> {
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

pub(super) fn prepare<'t, 'a>(mut cursor: Cursor<'t, 'a>, first: &Token<'_>) -> Result<Statement<'t, 'a>> {
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

pub(super) fn execute<'t, 'a>(cursor: &mut Cursor<'t, 'a>) -> Result<Statement<'t, 'a>> {
    let name = cursor.name()?;
    let mut arguments = None;
    if cursor.accept_kind(Kind::LeftParen) {
        let tokens = cursor.bracketed()?;
        arguments = Some(Query { tokens, tree: parse::expressions(tokens)? });
    }
    Ok(Statement::Execute { name, arguments })
}

pub(super) fn declare<'t, 'a>(mut cursor: Cursor<'t, 'a>) -> Result<Statement<'t, 'a>> {
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

pub(super) fn copy<'t, 'a>(mut cursor: Cursor<'t, 'a>, first: &Token<'_>) -> Result<Statement<'t, 'a>> {
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
    copy_options(&mut cursor)?;
    cursor.expect_end()?;
    Ok(Statement::CopyOut(copied))
}

/// The options of COPY: names and constants, none of which can name a file or call anything.
fn copy_options(cursor: &mut Cursor<'_, '_>) -> Result<()> {
    if cursor.accept_all(&["using", "delimiters"]) || cursor.accept("delimiters") {
        string(cursor)?;
    }
    cursor.accept("with");
    if cursor.accept_kind(Kind::LeftParen) {
        return copy_list(cursor);
    }
    while cursor.peek().is_some() {
        if cursor.accept("delimiter")
            || cursor.accept("null")
            || cursor.accept("quote")
            || cursor.accept("escape")
        {
            cursor.accept("as");
            string(cursor)?;
        } else if cursor.accept("encoding") {
            string(cursor)?;
        } else if cursor.accept_all(&["force", "quote"])
            || cursor.accept_all(&["force", "not", "null"])
            || cursor.accept_all(&["force", "null"])
        {
            if !cursor.accept_operator("*") {
                cursor.name()?;
                while cursor.accept_kind(Kind::Comma) {
                    cursor.name()?;
                }
            }
        } else if !["binary", "freeze", "csv", "header"].iter().any(|word| cursor.accept(word)) {
            return cursor.error();
        }
    }
    Ok(())
}

/// Options in brackets, each a name and what it is set to.
fn copy_list(cursor: &mut Cursor<'_, '_>) -> Result<()> {
    loop {
        if !cursor.peek().is_some_and(|token| matches!(token.kind, Kind::Word(_) | Kind::Quoted)) {
            return cursor.error();
        }
        cursor.at += 1;
        if cursor.accept_kind(Kind::LeftParen) {
            loop {
                copy_value(cursor)?;
                if !cursor.accept_kind(Kind::Comma) {
                    break;
                }
            }
            if !cursor.accept_kind(Kind::RightParen) {
                return cursor.error();
            }
        } else if cursor.peek().is_some_and(|token| !matches!(token.kind, Kind::Comma | Kind::RightParen))
            && !cursor.accept_operator("*")
        {
            copy_value(cursor)?;
        }
        if cursor.accept_kind(Kind::RightParen) {
            return Ok(());
        }
        if !cursor.accept_kind(Kind::Comma) {
            return cursor.error();
        }
    }
}

fn copy_value(cursor: &mut Cursor<'_, '_>) -> Result<()> {
    let Some(token) = cursor.peek() else { return cursor.error() };
    let fits = match token.kind {
        Kind::Word(Category::Reserved) => {
            ["true", "false", "on", "default"].iter().any(|word| token.is(word))
        }
        Kind::Word(_) | Kind::Quoted | Kind::String => true,
        _ => return signed(cursor),
    };
    if !fits {
        return cursor.error();
    }
    cursor.at += 1;
    Ok(())
}

fn string(cursor: &mut Cursor<'_, '_>) -> Result<()> {
    if cursor.accept_kind(Kind::String) { Ok(()) } else { cursor.error() }
}

/// FETCH and MOVE: a direction, a number and a cursor's name, nothing that could run.
pub(super) fn fetch<'t, 'a>(mut cursor: Cursor<'t, 'a>) -> Result<Statement<'t, 'a>> {
    // Each of the words may be the cursor's name, too.
    if cursor.ahead(1).is_some() {
        let plain = ["next", "prior", "first", "last", "all"].iter().any(|word| cursor.accept(word));
        if plain {
            // A direction that takes no number.
        } else if cursor.accept("absolute") || cursor.accept("relative") {
            signed(&mut cursor)?;
        } else if cursor.accept("forward") || cursor.accept("backward") {
            if cursor.ahead(1).is_some() && !cursor.accept("all") && !cursor.is("from") && !cursor.is("in") {
                signed(&mut cursor)?;
            }
        } else if cursor.peek().is_some_and(|token| token.kind != Kind::Quoted)
            && !cursor.is("from")
            && !cursor.is("in")
        {
            signed(&mut cursor)?;
        }
        let _ = cursor.accept("from") || cursor.accept("in");
    }
    let name = cursor.name()?;
    cursor.expect_end()?;
    Ok(Statement::Fetch { name })
}

fn signed(cursor: &mut Cursor<'_, '_>) -> Result<()> {
    let _ = cursor.accept_operator("-") || cursor.accept_operator("+");
    if cursor.accept_kind(Kind::Number) { Ok(()) } else { cursor.error() }
}
