//! Command tags of statements that change something, by their first words.
//!
//! Invariant: a tag decides the text of a refusal only; nothing is admitted because of it.

use super::lexer::{Item, Kind, Lexer, Token, utf8};

/// Kinds of objects of two and more words, before the one-word rule applies.
const OBJECTS: &[&[&str]] = &[
    &["access", "method"],
    &["default", "privileges"],
    &["event", "trigger"],
    &["foreign", "data", "wrapper"],
    &["foreign", "table"],
    &["large", "object"],
    &["materialized", "view"],
    &["operator", "class"],
    &["operator", "family"],
    &["text", "search", "configuration"],
    &["text", "search", "dictionary"],
    &["text", "search", "parser"],
    &["text", "search", "template"],
    &["user", "mapping"],
];

/// Words between CREATE and the kind of object.
const MODIFIERS: &[&str] = &[
    "or",
    "replace",
    "global",
    "local",
    "temp",
    "temporary",
    "unlogged",
    "unique",
    "recursive",
    "trusted",
    "procedural",
    "constraint",
];

fn word<'t>(tokens: &'t [Token<'_>], at: usize) -> Option<&'t str> {
    tokens.get(at).filter(|token| matches!(token.kind, Kind::Word(_))).map(|token| token.text.as_ref())
}

/// Whether the first statement of a text begins a transaction block.
pub fn begins_block(text: &[u8]) -> bool {
    let Ok(text) = utf8(text) else { return false };
    let mut lexer = Lexer::new(text);
    loop {
        match lexer.next_item() {
            Ok(Some(Item::Comment(_))) => {}
            Ok(Some(Item::Token(token))) if token.text == ";" => {}
            Ok(Some(Item::Token(token))) => {
                return matches!(token.kind, Kind::Word(_))
                    && matches!(token.text.as_ref(), "begin" | "start");
            }
            Ok(None) | Err(_) => return false,
        }
    }
}

/// The tag of a command that is no query (`CreateCommandTag` of PostgreSQL), if its first words tell.
pub fn of_command(tokens: &[Token<'_>]) -> Option<String> {
    let first = word(tokens, 0)?;
    let second = word(tokens, 1).unwrap_or_default();
    let fixed = match first {
        "insert" => "INSERT",
        "update" => "UPDATE",
        "delete" => "DELETE",
        "merge" => "MERGE",
        "truncate" => "TRUNCATE TABLE",
        "comment" => "COMMENT",
        "security" => "SECURITY LABEL",
        "grant" => "GRANT",
        "revoke" => "REVOKE",
        "call" => "CALL",
        "do" => "DO",
        "vacuum" => "VACUUM",
        "analyze" | "analyse" => "ANALYZE",
        "cluster" => "CLUSTER",
        "reindex" => "REINDEX",
        "checkpoint" => "CHECKPOINT",
        "load" => "LOAD",
        "refresh" => "REFRESH MATERIALIZED VIEW",
        "reassign" => "REASSIGN OWNED",
        "notify" => "NOTIFY",
        "listen" => "LISTEN",
        "repack" => "REPACK",
        "import" if second == "foreign" => "IMPORT FOREIGN SCHEMA",
        "drop" if second == "owned" => "DROP OWNED",
        "alter" if second == "system" => "ALTER SYSTEM",
        "create" | "alter" | "drop" => return object(tokens, first),
        _ => return None,
    };
    Some(fixed.to_owned())
}

fn object(tokens: &[Token<'_>], first: &str) -> Option<String> {
    let mut at = 1;
    if first == "create" {
        while word(tokens, at).is_some_and(|word| MODIFIERS.contains(&word)) {
            at += 1;
        }
    }
    let kind = word(tokens, at)?;
    let kind = match OBJECTS.iter().find(|words| {
        words.iter().enumerate().all(|(ahead, expected)| word(tokens, at + ahead) == Some(expected))
    }) {
        Some(words) => words.join(" "),
        None => match kind {
            "user" | "group" => "role".to_owned(),
            "aggregate" | "cast" | "collation" | "conversion" | "database" | "domain" | "extension"
            | "function" | "index" | "language" | "operator" | "policy" | "procedure" | "publication"
            | "role" | "routine" | "rule" | "schema" | "sequence" | "server" | "statistics"
            | "subscription" | "table" | "tablespace" | "transform" | "trigger" | "type" | "view" => {
                kind.to_owned()
            }
            _ => return None,
        },
    };
    let table_as = first == "create" && kind == "table" && created_by_query(tokens);
    let suffix = if table_as { " AS" } else { "" };
    Some(format!("{} {}{suffix}", first, kind).to_ascii_uppercase())
}

/// `CREATE TABLE … AS` a query: an AS outside all brackets.
fn created_by_query(tokens: &[Token<'_>]) -> bool {
    let mut depth = 0usize;
    for token in tokens {
        match token.kind {
            Kind::LeftParen => depth += 1,
            Kind::RightParen => depth = depth.saturating_sub(1),
            Kind::Word(_) if depth == 0 && token.is("as") => return true,
            _ => {}
        }
    }
    false
}

/// What makes a text that begins as a query write something: SELECT INTO, a data-modifying WITH, a row
/// lock. Tells the tag and where it stands.
///
/// Told by tokens alone, so that it holds whatever a parser makes of them. INTO and FOR are reserved:
/// outside a label they mean this and nothing else.
pub fn of_query(tokens: &[Token<'_>]) -> Option<(String, usize)> {
    for (at, token) in tokens.iter().enumerate() {
        if !matches!(token.kind, Kind::Word(_)) {
            continue;
        }
        let before = at.checked_sub(1).and_then(|at| tokens.get(at));
        let label = before.is_some_and(|token| token.is("as") || token.kind == Kind::Dot);
        let tag = match token.text.as_ref() {
            "into" if !label => "SELECT INTO",
            "for" if !label => match word(tokens, at + 1) {
                Some("update") => "SELECT FOR UPDATE",
                Some("share") => "SELECT FOR SHARE",
                Some("no") if word(tokens, at + 2) == Some("key") => "SELECT FOR NO KEY UPDATE",
                Some("key") if word(tokens, at + 2) == Some("share") => "SELECT FOR KEY SHARE",
                _ => continue,
            },
            "insert" | "update" | "delete" | "merge"
                if before.is_some_and(|token| matches!(token.kind, Kind::LeftParen | Kind::RightParen))
                    && starts_modification(tokens, at) =>
            {
                return Some((token.text.to_ascii_uppercase(), token.start));
            }
            _ => continue,
        };
        return Some((tag.to_owned(), token.start));
    }
    None
}

/// Do these words go on as a data-modifying statement, rather than as the name of something?
fn starts_modification(tokens: &[Token<'_>], at: usize) -> bool {
    let next = tokens.get(at + 1);
    match word(tokens, at) {
        Some("insert" | "merge") => next.is_some_and(|token| token.is("into")),
        Some("delete") => next.is_some_and(|token| token.is("from")),
        _ => next.is_some_and(|token| token.is("only") || token.is_column_name()),
    }
}
