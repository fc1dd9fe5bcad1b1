//! What of an admitted text the planner can be asked about, and which texts change where names are looked up.
//!
//! Invariant: pure; every text that runs a query gives that query, and one that is not known is asked about as it is:
//! the source then says that it cannot be explained.

use sha2::{Digest, Sha256};

use crate::sql::lexer::{self, Item, Kind, Lexer, Token};

/// What a text has for the planner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    /// Nothing that has a plan of its own.
    Nothing,
    /// This part of the text is a query.
    Query(Query),
    /// PREPARE: the part behind the name, with the types and the query.
    Prepare(std::ops::Range<usize>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Query {
    pub(super) range: std::ops::Range<usize>,
    /// It names parameters.
    pub(super) parameters: bool,
}

/// Longer texts are not taken apart on the thread that relays.
const LONG: usize = 8 << 10;

/// Whether there is anything to ask about an admitted text, by its first word; `true` where more than that is needed.
pub(super) fn may_be_asked(text: &[u8]) -> bool {
    let Ok(text) = lexer::utf8(text) else { return true };
    let mut lexer = Lexer::new(text);
    loop {
        match lexer.next_item() {
            Ok(Some(Item::Comment(_))) => {}
            Ok(Some(Item::Token(token))) if token.kind == Kind::Semicolon => {}
            Ok(Some(Item::Token(token))) => return !WITHOUT.iter().any(|word| token.is(word)),
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

/// First words of what has no plan: what was asked about when it got its name, and what moves transactions and settings.
const WITHOUT: [&str; 17] = [
    "execute",
    "fetch",
    "move",
    "close",
    "deallocate",
    "show",
    "begin",
    "start",
    "commit",
    "end",
    "rollback",
    "abort",
    "savepoint",
    "release",
    "set",
    "reset",
    "discard",
];

/// What there is to ask about an admitted text.
pub(super) fn subject(text: &[u8]) -> Subject {
    match tokens(text) {
        Some(tokens) => of(&tokens, text.len()),
        // It was admitted, so this does not happen; then the source says what it is.
        None => Subject::Query(Query { range: 0..text.len(), parameters: false }),
    }
}

fn tokens(text: &[u8]) -> Option<Vec<Token<'_>>> {
    let mut lexer = Lexer::new(lexer::utf8(text).ok()?);
    let mut tokens = Vec::new();
    while let Some(item) = lexer.next_item().ok()? {
        if let Item::Token(token) = item
            && token.kind != Kind::Semicolon
        {
            tokens.push(token);
        }
    }
    Some(tokens)
}

fn of(tokens: &[Token<'_>], end: usize) -> Subject {
    let Some(first) = tokens.first() else { return Subject::Nothing };
    let word = match first.kind {
        Kind::Word(_) => &*first.text,
        _ => "",
    };
    match word {
        word if WITHOUT.contains(&word) => Subject::Nothing,
        "declare" => match tokens.iter().position(|token| token.is("for")) {
            Some(at) => query(tokens.get(at + 1..).unwrap_or_default(), end),
            None => Subject::Nothing,
        },
        "prepare" => match tokens.get(2) {
            Some(behind) => Subject::Prepare(behind.start..end),
            None => Subject::Nothing,
        },
        "copy" => copy(tokens, end),
        "explain" => explain(tokens, end),
        _ => query(tokens, end),
    }
}

fn query(tokens: &[Token<'_>], end: usize) -> Subject {
    match tokens {
        [] => Subject::Nothing,
        [first, ..] => {
            let parameters = tokens.iter().any(|token| token.kind == Kind::Parameter);
            Subject::Query(Query {
                range: first.start..tokens.last().map_or(end, |last| last.end),
                parameters,
            })
        }
    }
}

/// `COPY (query) TO …`. A COPY of a table reads it once from end to end, as `TABLE t` does.
fn copy(tokens: &[Token<'_>], end: usize) -> Subject {
    let Some(second) = tokens.get(1) else { return Subject::Nothing };
    if second.kind == Kind::LeftParen {
        let mut depth = 0_usize;
        for (at, token) in tokens.iter().enumerate().skip(1) {
            match token.kind {
                Kind::LeftParen => depth += 1,
                Kind::RightParen if depth == 1 => return query(tokens.get(2..at).unwrap_or_default(), end),
                Kind::RightParen => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        return Subject::Nothing;
    }
    let skipped = match (tokens.get(1), tokens.get(2)) {
        (Some(one), Some(two)) if one.is("binary") && two.kind != Kind::Dot && !two.is("to") => 2,
        _ => 1,
    };
    let name: Vec<&Token<'_>> = tokens
        .iter()
        .skip(skipped)
        .take_while(|token| token.kind != Kind::LeftParen && !token.is("to") && !token.is("from"))
        .collect();
    match (name.first(), name.last()) {
        (Some(first), Some(last)) => {
            Subject::Query(Query { range: first.start..last.end, parameters: false })
        }
        _ => Subject::Nothing,
    }
}

/// EXPLAIN runs what it explains when it analyzes.
fn explain(tokens: &[Token<'_>], end: usize) -> Subject {
    let mut analyzes = false;
    let mut at = 1;
    let option = |token: &Token<'_>| token.is("analyze") || token.is("analyse");
    if tokens.get(1).is_some_and(|token| token.kind == Kind::LeftParen)
        && tokens
            .get(2)
            .is_some_and(|token| !["select", "with", "values", "table"].iter().any(|w| token.is(w)))
        && tokens.get(2).is_some_and(|token| token.kind != Kind::LeftParen)
    {
        while let Some(token) = tokens.get(at) {
            at += 1;
            analyzes |= option(token) || token.text == "analyze";
            if token.kind == Kind::RightParen {
                break;
            }
        }
    } else {
        while let Some(token) = tokens.get(at).filter(|token| option(token) || token.is("verbose")) {
            analyzes |= option(token);
            at += 1;
        }
    }
    if analyzes { of(tokens.get(at..).unwrap_or_default(), end) } else { Subject::Nothing }
}

/// Whether a COPY names a table, so that its range is a name and no query.
pub(super) fn is_table_of_copy(text: &[u8]) -> bool {
    tokens(text).is_some_and(|tokens| {
        tokens.first().is_some_and(|token| token.is("copy"))
            && tokens.get(1).is_some_and(|token| token.kind != Kind::LeftParen)
    })
}

/// What a statement does to the session, as far as estimates and limits hang on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Touch {
    Nothing,
    /// BEGIN, COMMIT and their like: what was set may be undone.
    Transaction,
    /// Sets search_path for the session, or for a transaction (`local`).
    Path {
        local: bool,
    },
    /// search_path is what it was at the start of the session.
    ResetPath,
    /// `SELECT set_config('search_path', …)` and nothing else, which can be asked with as it is.
    PathByCall,
    /// Sets search_path in a way that nobody can follow.
    PathLost,
    /// Sets what a plan hangs on.
    Planner,
    /// Sets something else that what a constant means may hang on.
    Setting,
}

/// What a statement, admitted as one of the class session or transaction, touches.
pub(super) fn touch(text: &[u8]) -> Touch {
    let Some(tokens) = tokens(text) else { return Touch::PathLost };
    if let Some(touch) = by_call(&tokens) {
        return touch;
    }
    let mut words = tokens.iter();
    let Some(first) = words.next() else { return Touch::Nothing };
    let second = words.next();
    let is = |token: Option<&Token<'_>>, word: &str| token.is_some_and(|token| token.is(word));
    match &*first.text {
        "begin" | "start" | "commit" | "end" | "rollback" | "abort" | "savepoint" | "release" => {
            Touch::Transaction
        }
        "reset" | "discard" => match second {
            Some(token) if token.text == "search_path" || token.is("all") => Touch::ResetPath,
            _ => Touch::Nothing,
        },
        "set" => {
            let local = is(second, "local");
            let scoped = local || is(second, "session");
            let name = if scoped { words.next() } else { second };
            let default = tokens.last().is_some_and(|last| last.is("default"));
            match name {
                Some(token) if token.is("characteristics") || token.is("transaction") => Touch::Nothing,
                Some(token) if token.text == "application_name" => Touch::Nothing,
                Some(token) if is_of_the_planner(&token.text) => Touch::Planner,
                Some(token) if token.text == "search_path" && default => Touch::ResetPath,
                Some(token) if token.text == "search_path" || token.is("schema") => Touch::Path { local },
                _ => Touch::Setting,
            }
        }
        _ => Touch::Nothing,
    }
}

/// What calls of `set_config` in a text touch; the guard admits them with constants only.
fn by_call(tokens: &[Token<'_>]) -> Option<Touch> {
    let is_name = |token: &Token<'_>| matches!(token.kind, Kind::Word(_) | Kind::Quoted);
    if !tokens.iter().any(|token| is_name(token) && token.text == "set_config") {
        return None;
    }
    let constants = || tokens.iter().filter(|token| !is_name(token));
    if constants().any(|token| is_of_the_planner(&token.text.to_ascii_lowercase())) {
        return Some(Touch::Planner);
    }
    if !constants().any(|token| token.text.eq_ignore_ascii_case("search_path")) {
        return Some(Touch::Setting);
    }
    let call = match tokens {
        [select, schema, dot, call @ ..]
            if select.is("select") && schema.is("pg_catalog") && dot.kind == Kind::Dot =>
        {
            call
        }
        [select, call @ ..] if select.is("select") => call,
        _ => return Some(Touch::PathLost),
    };
    let kinds: Vec<_> = call.iter().skip(1).map(|token| token.kind).collect();
    Some(match kinds.as_slice() {
        [
            Kind::LeftParen,
            Kind::String,
            Kind::Comma,
            Kind::String,
            Kind::Comma,
            Kind::Word(_),
            Kind::RightParen,
        ] if call.first().is_some_and(|token| token.is("set_config")) => Touch::PathByCall,
        _ => Touch::PathLost,
    })
}

/// Whether an estimate is one in other units when this was set at the start of a session.
pub(super) fn is_of_the_costs(setting: &str) -> bool {
    setting.ends_with("_cost") || matches!(setting, "effective_cache_size" | "recursive_worktable_factor")
}

/// Whether another plan may be made, or one be weighed otherwise, when this is set.
fn is_of_the_planner(setting: &str) -> bool {
    ["enable_", "geqo", "min_parallel_"].iter().any(|family| setting.starts_with(family))
        || is_of_the_costs(setting)
        || matches!(
            setting,
            "constraint_exclusion"
                | "cursor_tuple_fraction"
                | "from_collapse_limit"
                | "hash_mem_multiplier"
                | "join_collapse_limit"
                | "max_parallel_workers_per_gather"
                | "parallel_leader_participation"
                | "work_mem"
        )
}

/// Whether the planner may work something out in one session and fail in another: it calls what is STABLE to guess
/// how many rows there are.
pub(super) fn may_differ(text: &[u8]) -> bool {
    let Some(tokens) = tokens(text) else { return true };
    let calls = tokens.windows(2).any(|pair| {
        let [name, behind] = pair else { return false };
        behind.kind == Kind::LeftParen
            && matches!(name.kind, Kind::Word(_) | Kind::Quoted)
            && !["all", "and", "any", "as", "by", "exists", "from", "in", "not", "on", "or", "select"]
                .iter()
                .chain(&["using", "values", "where"])
                .any(|word| name.is(word))
    });
    let speaks = |token: &Token<'_>| {
        matches!(token.kind, Kind::Word(_))
            && (["current_", "local", "session_", "system_"].iter().any(|word| token.text.starts_with(word))
                || token.text == "user")
    };
    calls || tokens.iter().any(speaks)
}

/// Whether a text takes part in what is counted and bounded; what only moves transactions, settings and names does
/// not, so that it always gets through.
pub(in crate::session) fn works(text: &[u8]) -> bool {
    let Ok(text) = lexer::utf8(text) else { return true };
    let mut lexer = Lexer::new(text);
    loop {
        match lexer.next_item() {
            Ok(Some(Item::Comment(_))) => {}
            Ok(Some(Item::Token(token))) if token.kind == Kind::Semicolon => {}
            Ok(Some(Item::Token(token))) => {
                let moves = [
                    "begin",
                    "start",
                    "commit",
                    "end",
                    "rollback",
                    "abort",
                    "savepoint",
                    "release",
                    "set",
                    "reset",
                    "discard",
                    "deallocate",
                    "close",
                    "prepare",
                    "declare",
                    "show",
                    "listen",
                    "unlisten",
                ];
                return !moves.iter().any(|word| token.is(word));
            }
            Ok(None) => return false,
            Err(_) => return true,
        }
    }
}

/// What an estimate is remembered by: everything that the planner was asked with.
pub(super) type Key = [u8; 32];

/// The key of a question; a long text counts as it is. Comments do not count, since an engine puts another one behind each statement, but for those
/// that an extension may read as a hint.
pub(super) fn key(
    text: &[u8],
    types: &[u8],
    path: Option<&[u8]>,
    settings: &[u8; 32],
    generation: u64,
) -> Key {
    let mut hash = Sha256::new();
    let mut part = |bytes: &[u8]| {
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(&generation.to_be_bytes());
    part(settings);
    part(types);
    part(path.unwrap_or_default());
    match lexer::utf8(text) {
        Ok(whole) if whole.len() < LONG => {
            let mut lexer = Lexer::new(whole);
            loop {
                match lexer.next_item() {
                    Ok(Some(Item::Token(token))) => {
                        part(text.get(token.start..token.end).unwrap_or_default())
                    }
                    Ok(Some(Item::Comment(comment))) => {
                        let comment = text.get(comment.start..comment.end).unwrap_or_default();
                        if comment.starts_with(b"/*+") || comment.starts_with(b"--+") {
                            part(comment);
                        }
                    }
                    Ok(None) => break,
                    Err(_) => {
                        part(text);
                        break;
                    }
                }
            }
        }
        Ok(_) | Err(_) => part(text),
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str) -> String {
        match subject(text.as_bytes()) {
            Subject::Nothing => "-".to_owned(),
            Subject::Query(query) => {
                format!("{}{}", if query.parameters { "$ " } else { "" }, &text[query.range])
            }
            Subject::Prepare(range) => format!("prepare {}", &text[range]),
        }
    }

    #[test]
    fn each_text_that_runs_a_query_gives_it() {
        for (text, wanted) in [
            ("SELECT 1", "SELECT 1"),
            ("/* a */ SELECT 1; -- b", "SELECT 1"),
            ("(SELECT 1) UNION SELECT $1", "$ (SELECT 1) UNION SELECT $1"),
            ("WITH a AS (SELECT 1) TABLE a", "WITH a AS (SELECT 1) TABLE a"),
            ("VALUES (1)", "VALUES (1)"),
            ("DECLARE c CURSOR FOR SELECT 1", "SELECT 1"),
            ("declare \"for\" no scroll cursor with hold for select $1", "$ select $1"),
            ("COPY (SELECT (1) FROM t) TO STDOUT", "SELECT (1) FROM t"),
            ("COPY s.\"T\" (a, b) TO STDOUT", "s.\"T\""),
            ("copy binary t to stdout", "t"),
            ("COPY binary TO STDOUT", "binary"),
            ("EXPLAIN SELECT 1", "-"),
            ("EXPLAIN (VERBOSE) SELECT 1", "-"),
            ("EXPLAIN ANALYZE SELECT 1", "SELECT 1"),
            ("EXPLAIN ANALYZE VERBOSE SELECT 1", "SELECT 1"),
            ("EXPLAIN (VERBOSE, ANALYZE true, FORMAT json) SELECT 1", "SELECT 1"),
            ("EXPLAIN (\"analyze\") SELECT 1", "SELECT 1"),
            ("EXPLAIN (SELECT 1)", "-"),
            ("EXPLAIN ANALYZE (SELECT 1)", "(SELECT 1)"),
            ("EXPLAIN ANALYZE DECLARE c CURSOR FOR SELECT 2", "SELECT 2"),
            ("EXPLAIN ANALYZE EXECUTE p(1)", "-"),
            ("PREPARE p AS SELECT 1", "prepare AS SELECT 1"),
            ("PREPARE \"P\" (int, text) AS SELECT $1", "prepare (int, text) AS SELECT $1"),
            ("EXECUTE p(1)", "-"),
            ("FETCH 5 FROM c", "-"),
            ("SHOW search_path", "-"),
            ("BEGIN", "-"),
            ("", "-"),
            ("LOCK t", "LOCK t"),
        ] {
            assert_eq!(asked(text), wanted, "{text}");
            assert!(wanted == "-" || may_be_asked(text.as_bytes()), "{text}");
        }
        assert!(!may_be_asked(b"-- a\nSHOW x") && !may_be_asked(b""));
        assert!(is_table_of_copy(b"COPY t TO STDOUT") && !is_table_of_copy(b"COPY (TABLE t) TO STDOUT"));
    }

    #[test]
    fn what_a_setting_touches_is_known() {
        let local = |local| Touch::Path { local };
        for (text, wanted) in [
            ("SET search_path = a, b", local(false)),
            ("SET SESSION \"search_path\" TO a", local(false)),
            ("set local SEARCH_PATH to a", local(true)),
            ("SET SCHEMA 'a'", local(false)),
            ("SET LOCAL SCHEMA 'a'", local(true)),
            ("SET search_path TO DEFAULT", Touch::ResetPath),
            ("RESET search_path", Touch::ResetPath),
            ("RESET ALL", Touch::ResetPath),
            ("DISCARD ALL", Touch::ResetPath),
            ("RESET DateStyle", Touch::Nothing),
            ("DISCARD PLANS", Touch::Nothing),
            ("SET enable_nestloop = off", Touch::Planner),
            ("SET LOCAL work_mem = '64kB'", Touch::Planner),
            ("SELECT set_config('Enable_Sort', 'off', false)", Touch::Planner),
            ("SELECT set_config('search_path', '', false)", Touch::PathByCall),
            ("SELECT pg_catalog.set_config(E'search\\x5fpath', 'a', true);", Touch::PathByCall),
            ("SELECT 1, set_config('search_path', '', false)", Touch::PathLost),
            ("PREPARE p AS SELECT set_config('search_path', '', false)", Touch::PathLost),
            ("SELECT set_config('TimeZone', 'UTC', false)", Touch::Setting),
            ("SET application_name = 'set_config'", Touch::Nothing),
            ("SET DateStyle = German", Touch::Setting),
            ("SET TIME ZONE 'UTC'", Touch::Setting),
            ("SET application_name = 'a'", Touch::Nothing),
            ("SET TRANSACTION READ ONLY", Touch::Nothing),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Touch::Nothing),
            ("BEGIN", Touch::Transaction),
            ("ROLLBACK TO a", Touch::Transaction),
            ("DEALLOCATE a", Touch::Nothing),
            ("", Touch::Nothing),
        ] {
            assert_eq!(touch(text.as_bytes()), wanted, "{text}");
        }
    }

    #[test]
    fn what_a_planner_may_see_otherwise_is_known() {
        for text in ["SELECT 1/0", "SELECT * FROM a WHERE (b = 1) AND (c IN (1, 'x'))", "TABLE a"] {
            assert!(!may_differ(text.as_bytes()), "{text}");
        }
        for text in
            ["SELECT f(1)", "SELECT \"in\"(1)", "SELECT 1 / length(current_user)", "SELECT CURRENT_DATE"]
        {
            assert!(may_differ(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn what_moves_a_transaction_is_never_in_the_way() {
        for text in [
            "COMMIT",
            "/* x */ rollback",
            "SET a = 1",
            "CLOSE c",
            "",
            "; -- nothing",
            "DECLARE c CURSOR FOR TABLE t",
        ] {
            assert!(!works(text.as_bytes()), "{text}");
        }
        for text in ["SELECT 1", "(TABLE t)", "FETCH c", "EXECUTE p", "COPY t TO STDOUT", "\"begin\""] {
            assert!(works(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn an_estimate_is_remembered_by_all_that_it_was_asked_with() {
        let of = |text: &str| key(text.as_bytes(), b"", None, &[0; 32], 1);
        let one = of("SELECT  1 /* fedgate query=1 user=ann */");
        assert_eq!(one, of("SELECT 1 -- other"));
        assert_ne!(one, of("SELECT 2"));
        assert_ne!(one, of("SELECT 1 /*+ SeqScan(t) */"));
        assert_ne!(of("SELECT 'a' 'b'"), of("SELECT 'a'' ''b'"));
        let others = [
            key(b"SELECT 1", b"\0\x01\0\0\0\x17", None, &[0; 32], 1),
            key(b"SELECT 1", b"", Some(b"SET search_path = a"), &[0; 32], 1),
            key(b"SELECT 1", b"", None, &[1; 32], 1),
            key(b"SELECT 1", b"", None, &[0; 32], 2),
        ];
        for other in others {
            assert_ne!(other, one);
        }
    }
}
