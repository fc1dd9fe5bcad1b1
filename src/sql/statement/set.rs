//! SET and RESET, in all their forms.
//!
//! Invariant: what is set is told by its name in lower case and by its value as the server keeps it.

use super::cursor::Cursor;
use super::{Result, SetValue, Statement, Transaction, modes, transaction_modes};
use crate::sql::lexer::{Kind, Token};
use crate::sql::parse::ParseError;

pub(super) fn set<'t, 'a>(mut cursor: Cursor<'t, 'a>, first: &Token<'_>) -> Result<Statement<'t, 'a>> {
    if cursor.accept("constraints") {
        // When a check runs, never what.
        if !cursor.accept("all") {
            cursor.qualified_name()?;
            while cursor.accept_kind(Kind::Comma) {
                cursor.qualified_name()?;
            }
        }
        if !cursor.accept("deferred") {
            cursor.expect("immediate")?;
        }
        cursor.expect_end()?;
        return Ok(Statement::Session { deallocates: false });
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

pub(super) fn set_time_zone<'t, 'a>(
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
pub(super) fn parameter_name(cursor: &mut Cursor<'_, '_>) -> Result<String> {
    let mut name = cursor.name()?.to_ascii_lowercase();
    while cursor.accept_kind(Kind::Dot) {
        name.push('.');
        name.push_str(&cursor.name()?.to_ascii_lowercase());
    }
    Ok(name)
}

/// One value of SET: a word, a string, or a number with its sign.
pub(super) fn set_item(cursor: &mut Cursor<'_, '_>) -> Result<String> {
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

pub(super) fn reset<'t, 'a>(cursor: &mut Cursor<'t, 'a>) -> Result<Statement<'t, 'a>> {
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
