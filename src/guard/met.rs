//! What was met in a statement that only together is harmful: an operator and values that it takes, a
//! table with a domain and a way to make a value of it.
//!
//! Invariant: nothing is forgotten before [`Met::judge`]; in doubt a statement holds what it might.

use std::cell::{Cell, RefCell};

use crate::guard::Refusal;
use crate::sql::catalogue::Carried;
use crate::sql::keyword::Category;
use crate::sql::lexer::{Kind, Token};

#[derive(Default)]
pub(super) struct Met<'c> {
    /// Types without whose values some operators and casts cannot be meant, and whose values the statement
    /// may have.
    pub carries: Cell<Carried>,
    /// Such operators and casts, one for each set of types.
    later: RefCell<Vec<(Carried, Refusal)>>,
    /// A domain that reading does not make values of.
    pub domain: Cell<Option<&'c str>>,
    /// By which names tables with such columns are called.
    rows: RefCell<Vec<String>>,
    /// Where the first call stands that may make a value of an argument's type out of a constant.
    pub mixes: Cell<Option<usize>>,
}

impl Met<'_> {
    pub fn carry(&self, types: Carried) {
        self.carries.set(self.carries.get() | types);
    }

    pub fn later(&self, types: Carried, refusal: impl FnOnce() -> Refusal) {
        let mut later = self.later.borrow_mut();
        if !later.iter().any(|(known, _)| *known == types) {
            later.push((types, refusal()));
        }
    }

    /// A table with a domain's columns, by its own name.
    pub fn row(&self, name: &str) {
        self.rows.borrow_mut().push(name.to_owned());
    }

    /// How many such tables were met.
    pub fn rows(&self) -> usize {
        self.rows.borrow().len()
    }

    /// The last of them is called by an alias.
    pub fn alias(&self, alias: &str) {
        if let Some(last) = self.rows.borrow_mut().last_mut() {
            alias.clone_into(last);
        }
    }

    /// What the statement's parts say together; `tokens` are all of it.
    pub fn judge(&self, tokens: &[Token<'_>]) -> Result<(), Refusal> {
        let mut later = self.later.take().into_iter();
        if let Some((_, refusal)) = later.find(|(types, _)| types & self.carries.get() != 0) {
            return Err(refusal);
        }
        let Some(domain) = self.domain.get() else { return Ok(()) };
        let refusal = |what: &str, at: usize| {
            Refusal::denied("domain", domain.split(':').next().unwrap_or_default())
                .because(format!("{what} may make a value of {domain}"))
                .hint("If what its CHECK runs only reads, its owner can declare it STABLE.")
                .at(Some(at))
        };
        if let Some(at) = self.mixes.get() {
            return Err(refusal("This call", at));
        }
        if let Some(at) = array_of_columns(tokens) {
            return Err(refusal("This array", at));
        }
        if tokens.iter().any(may_be_a_row) {
            let rows = self.rows.borrow();
            for name in rows.iter() {
                let mentions = rows.iter().filter(|other| *other == name).count();
                if let Some(at) = whole_row(tokens, name, mentions) {
                    return Err(refusal("A comparison of this row", at));
                }
            }
        }
        Ok(())
    }
}

/// The first array constructor that holds more than constants.
fn array_of_columns(tokens: &[Token<'_>]) -> Option<usize> {
    let constant = |token: &Token<'_>| match token.kind {
        Kind::String | Kind::National | Kind::Bits | Kind::Number | Kind::Parameter => true,
        Kind::Comma | Kind::LeftBracket | Kind::RightBracket => true,
        Kind::Operator => matches!(token.text.as_ref(), "-" | "+"),
        Kind::Word(Category::Reserved) => matches!(token.text.as_ref(), "null" | "true" | "false" | "array"),
        _ => false,
    };
    let starts = |at: usize| tokens.get(at).is_some_and(|token| token.is("array"));
    (0..tokens.len()).filter(|at| starts(*at)).find_map(|at| {
        let mut depth = 0usize;
        for token in tokens.get(at + 1..).unwrap_or_default() {
            match token.kind {
                Kind::LeftBracket => depth += 1,
                Kind::RightBracket if depth == 1 => return None,
                Kind::RightBracket => depth = depth.saturating_sub(1),
                _ if depth > 0 && constant(token) => {}
                _ => break,
            }
        }
        tokens.get(at).map(|token| token.start)
    })
}

/// May this constant be read as a row?
fn may_be_a_row(token: &Token<'_>) -> bool {
    match token.kind {
        Kind::Parameter => true,
        Kind::String | Kind::National => token.text.trim_start().starts_with('('),
        _ => false,
    }
}

/// Where the table that is called `name`, `mentions` times in FROM, stands for its row.
fn whole_row(tokens: &[Token<'_>], name: &str, mentions: usize) -> Option<usize> {
    let kind = |at: Option<usize>| at.and_then(|at| tokens.get(at)).map(|token| token.kind);
    let mut bare = 0;
    for (at, token) in tokens.iter().enumerate() {
        if !matches!(token.kind, Kind::Word(_) | Kind::Quoted) || token.text != name {
            continue;
        }
        if kind(Some(at + 1)) != Some(Kind::Dot) {
            bare += 1;
            if bare > mentions {
                return Some(token.start);
            }
        } else if tokens.get(at + 2).is_some_and(|star| star.text == "*") && !is_select_item(tokens, at) {
            return Some(token.start);
        }
    }
    None
}

/// Is `name.*` with its name at `at` an item of a SELECT list, where it stands for its columns?
fn is_select_item(tokens: &[Token<'_>], at: usize) -> bool {
    // `schema.name.*`
    let mut first = at;
    while first >= 2 && tokens.get(first - 1).is_some_and(|dot| dot.kind == Kind::Dot) {
        first -= 2;
    }
    let before = first.checked_sub(1).and_then(|at| tokens.get(at)).is_some_and(|token| {
        token.kind == Kind::Comma || ["select", "distinct", "all"].iter().any(|word| token.is(word))
    });
    const ENDS: &[&str] =
        &["from", "union", "except", "intersect", "order", "limit", "offset", "fetch", "where", "group"];
    let after = tokens.get(at + 3).is_none_or(|token| match token.kind {
        Kind::Comma | Kind::RightParen => true,
        _ => ENDS.iter().any(|word| token.is(word)),
    });
    let mut closed = 0usize;
    let opened = tokens.get(..first).unwrap_or_default().iter().enumerate().rev().find(|(_, token)| {
        match token.kind {
            Kind::RightParen => closed += 1,
            Kind::LeftParen if closed == 0 => return true,
            Kind::LeftParen => closed -= 1,
            _ => {}
        }
        false
    });
    let query = opened.is_none_or(|(bracket, _)| {
        tokens.get(bracket + 1).is_some_and(|token| token.is("select") || token.is("with"))
    });
    before && after && query
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::Limits;
    use crate::sql::lexer;

    fn on<T>(sql: &str, judge: impl FnOnce(&[Token<'_>]) -> T) -> T {
        judge(&lexer::tokens(sql, &Limits::default()).unwrap())
    }

    #[test]
    fn arrays_of_constants_are_none_of_columns() {
        for (sql, of_columns) in [
            ("SELECT ARRAY[1, -2, NULL, 'x', $1]", false),
            ("SELECT ARRAY[[1], ARRAY[2]]", false),
            ("SELECT ARRAY[d]", true),
            ("SELECT ARRAY[1, (d)]", true),
            ("SELECT ARRAY(SELECT d FROM td)", true),
            ("SELECT ARRAY[1], ARRAY[d]", true),
            ("SELECT a[1] FROM t", false),
        ] {
            assert_eq!(on(sql, |tokens| array_of_columns(tokens).is_some()), of_columns, "{sql}");
        }
    }

    #[test]
    fn a_tables_name_is_its_row_where_it_stands_for_a_value() {
        for (sql, name, row) in [
            ("SELECT td.id FROM td", "td", false),
            ("SELECT td.* FROM td", "td", false),
            ("SELECT 1, public.td.* FROM public.td", "td", false),
            ("SELECT a.id FROM td AS a", "a", false),
            ("SELECT * FROM (SELECT a.*, 1 FROM td a) x", "a", false),
            ("SELECT td FROM td", "td", true),
            ("SELECT public.td FROM public.td", "td", true),
            ("SELECT 1 FROM td a WHERE a = '(1)'", "a", true),
            ("SELECT td.* = '(1)' FROM td", "td", true),
            ("SELECT '(1)' = td.* FROM td", "td", true),
            ("SELECT (td.*) = '(1)' FROM td", "td", true),
            ("SELECT coalesce(td.*, '(1)') FROM td", "td", true),
            ("SELECT coalesce(1, td.*) FROM td", "td", true),
            ("SELECT (td).d FROM td", "td", true),
        ] {
            assert_eq!(on(sql, |tokens| whole_row(tokens, name, 1).is_some()), row, "{sql}");
        }
    }
}
