//! Which functions, tables, types and operators a text names: the walk of a verdict, taking notes
//! instead of judging.
//!
//! Invariant: what is noted of a query is what the walk of a verdict would look up, by the same code in
//! the same places; nothing is judged here and nothing noted here admits anything.

use std::cell::{Cell, RefCell};

use super::met::Met;
use super::names::Names;
use super::walk::Walk;
use super::{Judge, Piece, pieces};
use crate::guard::Mode;
use crate::sql::catalogue::Catalogue;
use crate::sql::keyword::Category;
use crate::sql::lexer::{self, Kind, Token};
use crate::sql::{Limits, parse, statement};

/// What a name stands for where it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum FoundKind {
    /// A call; also one that syntax implies (`a AT TIME ZONE b`), which has no offset.
    Function,
    /// A table, view or function's name in FROM; the name of a WITH query looks the same.
    Relation,
    /// Of a cast, a column definition or before a constant.
    Type,
    Operator,
    /// `a.b`: a column, or a call or cast in attribute notation.
    Attribute,
}

impl FoundKind {
    pub fn as_str(self) -> &'static str {
        match self {
            FoundKind::Function => "function",
            FoundKind::Relation => "table",
            FoundKind::Type => "type",
            FoundKind::Operator => "operator",
            FoundKind::Attribute => "attribute",
        }
    }
}

/// One name, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    pub kind: FoundKind,
    /// As PostgreSQL would look it up, `[database.][schema.]name`: folded, decoded, cut.
    pub name: Vec<String>,
    /// Byte offset into the text, of the last part of the name (in COPY the first); `None` where syntax implies the name.
    pub offset: Option<usize>,
}

/// What a text names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// In the order in which the walk meets them.
    pub names: Vec<Found>,
    /// Every statement was walked to its end. Otherwise there may be more names than these, and those of
    /// what writes are told by key words and brackets alone.
    pub complete: bool,
}

/// Where a walk takes its notes.
pub(super) type Notes = RefCell<Vec<Found>>;

/// Names that `text` holds, statement by statement. A text that cannot be lexed within `limits` holds none.
pub fn found(text: &[u8], limits: &Limits) -> Findings {
    let notes = Notes::default();
    let mut complete = true;
    let lexed = lexer::utf8(text).and_then(|text| Ok((text, lexer::tokens(text, limits)?)));
    let Ok((text, tokens)) = lexed else { return Findings::default() };
    for Piece { tokens, .. } in pieces(text, &tokens) {
        let whole = parse::with_stack(tokens, || of_statement(tokens, &notes));
        if !whole {
            by_words(tokens, &notes);
        }
        complete &= whole;
    }
    Findings { names: notes.into_inner(), complete }
}

/// Walks one statement; was it walked to its end?
fn of_statement(tokens: &[Token<'_>], notes: &Notes) -> bool {
    let Ok(statement) = statement::parse(tokens) else { return false };
    let before = notes.borrow().len();
    let judge = Judge {
        walk: Walk {
            names: Names {
                catalogue: &Catalogue::default(),
                met: &Met::default(),
                notes: Some(notes),
                judging: RefCell::default(),
            },
            set_config: Cell::new(0),
            with: Cell::new(false),
        },
        mode: Mode::ReadOnly,
    };
    let whole = match &statement {
        // LOCK names tables that no walk looks at.
        statement::Statement::LockAccessShare | statement::Statement::Write { .. } => false,
        // A setting that is refused names nothing else.
        statement::Statement::Set { .. } | statement::Statement::Reset { .. } => true,
        statement => judge.statement(statement).is_ok(),
    };
    if !whole {
        notes.borrow_mut().truncate(before);
    }
    whole
}

/// Words that a table's name follows, and those that may stand between.
const BEFORE_TABLES: &[&str] =
    &["from", "join", "into", "update", "table", "only", "copy", "using", "truncate", "lock", "merge"];

/// May the name at `at` be a table's, by the words before it?
fn names_table(tokens: &[Token<'_>], at: usize, depth: usize) -> bool {
    let before = |back: usize| at.checked_sub(back).and_then(|at| tokens.get(at));
    let is = |back: usize, word: &str| before(back).is_some_and(|token| token.is(word));
    let first = |word: &str| tokens.first().is_some_and(|token| token.is(word));
    match before(1) {
        // `ONLY (t)`
        Some(token) if token.kind == Kind::LeftParen => is(2, "only"),
        // `LOCK a, b`
        Some(token) if token.kind == Kind::Comma => depth == 0 && (first("lock") || first("truncate")),
        // `COPY BINARY t`
        Some(token) if token.is("binary") => at == 2 && first("copy"),
        // `COPY t FROM STDIN`: a file, a program or the client.
        Some(token) if token.is("from") && first("copy") => depth > 0,
        Some(token) if token.is("from") => !is(2, "distinct"),
        Some(word) => BEFORE_TABLES.iter().any(|known| word.is(known)),
        None => false,
    }
}

/// Names before brackets, and names behind the words that tables follow.
fn by_words(tokens: &[Token<'_>], notes: &Notes) {
    let is_name = |token: &Token<'_>| match token.kind {
        Kind::Quoted => true,
        Kind::Word(category) => category != Category::Reserved,
        _ => false,
    };
    let kind = |at: usize| tokens.get(at).map(|token| token.kind);
    let (mut at, mut depth) = (0, 0usize);
    while let Some(token) = tokens.get(at) {
        let from = at;
        at += 1;
        match token.kind {
            Kind::LeftParen => depth += 1,
            Kind::RightParen => depth = depth.saturating_sub(1),
            _ => {}
        }
        if !is_name(token) {
            continue;
        }
        let mut last = token;
        let mut name = vec![token.text.clone().into_owned()];
        while kind(at) == Some(Kind::Dot) {
            let Some(part) =
                tokens.get(at + 1).filter(|part| matches!(part.kind, Kind::Word(_) | Kind::Quoted))
            else {
                break;
            };
            name.push(part.text.clone().into_owned());
            last = part;
            at += 2;
        }
        // `COPY BINARY t` and a table that is called binary: the word is one if a name follows.
        let binary = from == 1
            && token.is("binary")
            && tokens.first().is_some_and(|first| first.is("copy"))
            && tokens.get(at).is_some_and(Token::is_column_name);
        let table =
            !binary && names_table(tokens, from, depth) && !BEFORE_TABLES.iter().any(|known| token.is(known));
        let call = kind(at) == Some(Kind::LeftParen)
            && !matches!(last.kind, Kind::Word(Category::ColumnName | Category::TypeFunction));
        let kind = match (table, call) {
            (true, _) => FoundKind::Relation,
            (false, true) => FoundKind::Function,
            (false, false) => continue,
        };
        notes.borrow_mut().push(Found { kind, name, offset: Some(last.start) });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(sql: &str) -> Vec<(FoundKind, String, Option<&str>)> {
        found(sql.as_bytes(), &Limits::default())
            .names
            .into_iter()
            .map(|found| {
                let at = found.offset.and_then(|offset| sql.get(offset..)).map(|rest| {
                    rest.split(|letter: char| !letter.is_alphanumeric() && letter != '_' && letter != '"')
                        .next()
                        .unwrap_or_default()
                });
                (found.kind, found.name.join("."), at)
            })
            .collect()
    }

    #[test]
    fn names_of_a_query_with_their_places() {
        use FoundKind::{Attribute, Function, Relation, Type};
        let sql = "SELECT pg_catalog.lower(c.Name)::Text, (SELECT count(*) FROM \"Ort\") \
                   FROM public.communes c, generate_series(1, 2) g WHERE date '2020-01-01' < now()";
        let all = names(sql);
        for expected in [
            (Function, "pg_catalog.lower".to_owned(), Some("lower")),
            (Attribute, "name".to_owned(), Some("Name")),
            (Type, "text".to_owned(), Some("Text")),
            (Function, "count".to_owned(), Some("count")),
            (Relation, "Ort".to_owned(), Some("\"Ort\"")),
            (Relation, "public.communes".to_owned(), Some("communes")),
            (Function, "generate_series".to_owned(), Some("generate_series")),
            (Type, "date".to_owned(), Some("date")),
            (Function, "now".to_owned(), Some("now")),
        ] {
            assert!(all.contains(&expected), "{expected:?} in {all:?}");
        }
        assert!(found(sql.as_bytes(), &Limits::default()).complete);
    }

    #[test]
    fn what_is_refused_is_named_too() {
        use FoundKind::{Function, Relation};
        assert!(names("SELECT nextval('s'), pg_sleep(1)").contains(&(
            Function,
            "pg_sleep".to_owned(),
            Some("pg_sleep")
        )));
        assert!(names("SELECT set_config('role', upper('x'), false)").contains(&(
            Function,
            "set_config".to_owned(),
            Some("set_config")
        )));
        let written = found(b"INSERT INTO a.b (c) SELECT f(1) FROM d", &Limits::default());
        assert!(!written.complete);
        let written: Vec<_> = written.names.iter().map(|found| (found.kind, found.name.join("."))).collect();
        assert_eq!(
            written,
            [(Relation, "a.b".to_owned()), (Function, "f".to_owned()), (Relation, "d".to_owned())]
        );
        assert_eq!(names("COPY public.t TO STDOUT"), [(Relation, "public.t".to_owned(), Some("public"))]);
    }

    #[test]
    fn tables_of_what_no_walk_looks_at() {
        let tables = |sql: &str| -> Vec<String> {
            let of_tables = |found: Found| (found.kind == FoundKind::Relation).then(|| found.name.join("."));
            found(sql.as_bytes(), &Limits::default()).names.into_iter().filter_map(of_tables).collect()
        };
        for (sql, expected) in [
            ("LOCK TABLE a, s.b, ONLY c, ONLY (d) IN ACCESS SHARE MODE", &["a", "s.b", "c", "d"][..]),
            ("LOCK a, b", &["a", "b"]),
            ("TRUNCATE a, ONLY b CASCADE", &["a", "b"]),
            ("COPY BINARY t TO STDOUT", &["t"]),
            ("COPY binary TO STDOUT", &["binary"]),
            ("COPY BINARY t FROM STDIN", &["t"]),
            ("COPY binary FROM STDIN", &["binary"]),
            ("COPY s.t (a, b) FROM STDIN WHERE a > 1", &["s.t"]),
            ("COPY t FROM PROGRAM 'x'", &["t"]),
            ("COPY (DELETE FROM t RETURNING a) TO STDOUT", &["t"]),
            ("UPDATE t SET a = 1 WHERE a IS DISTINCT FROM b", &["t"]),
        ] {
            assert_eq!(tables(sql), expected, "{sql}");
        }
    }

    #[test]
    fn the_method_of_a_sample_is_a_function() {
        for sql in [
            "SELECT * FROM t TABLESAMPLE rows_of (1)",
            "INSERT INTO a SELECT * FROM t TABLESAMPLE rows_of (1)",
        ] {
            let method = (FoundKind::Function, "rows_of".to_owned(), Some("rows_of"));
            assert!(names(sql).contains(&method), "{sql}");
        }
    }

    #[test]
    fn several_statements_and_none() {
        assert_eq!(names("SELECT f(); SELECT g()").len(), 2);
        assert_eq!(found(b"", &Limits::default()), Findings { names: vec![], complete: true });
        assert_eq!(found(b"'", &Limits::default()), Findings::default());
        assert_eq!(found(b"SELECT \xff", &Limits::default()), Findings::default());
    }
}
