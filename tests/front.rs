//! Properties of the front: what it hands the parser has every name that the original has.
//!
//! Invariant: the checks here are made from the original's tokens and the rewritten ones alone, apart
//! from those that the front makes itself.

use fedgate::sql::Limits;
use fedgate::sql::front::{self, Rewritten};
use fedgate::sql::keyword::Category;
use fedgate::sql::lexer::{self, Kind, Token};
use proptest::prelude::*;
use sqlparser::tokenizer::Token as Out;

/// Pieces that the rules of the front begin or end with, and names that no rule knows.
const PIECES: &[&str] = &[
    "SELECT",
    "VALUES",
    "TABLE",
    "WITH",
    "RECURSIVE",
    "FROM",
    "WHERE",
    "GROUP BY",
    "HAVING",
    "WINDOW",
    "ORDER BY",
    "LIMIT",
    "OFFSET",
    "FETCH FIRST",
    "ROWS ONLY",
    "ROWS",
    "WITH TIES",
    "UNION",
    "ALL",
    "DISTINCT",
    "ON",
    "USING",
    "JOIN",
    "LEFT",
    "NATURAL",
    "LATERAL",
    "ONLY",
    "ROWS FROM",
    "TABLESAMPLE",
    "REPEATABLE",
    "WITH ORDINALITY",
    "AS",
    "SEARCH DEPTH FIRST BY",
    "CYCLE",
    "SET",
    "TO",
    "DEFAULT",
    "OVER",
    "PARTITION BY",
    "RANGE",
    "BETWEEN",
    "AND",
    "PRECEDING",
    "EXCLUDE TIES",
    "FILTER",
    "WITHIN GROUP",
    "CUBE",
    "ROLLUP",
    "GROUPING SETS",
    "CASE",
    "WHEN",
    "THEN",
    "END",
    "NOT",
    "IN",
    "IS",
    "NULL",
    "JSON",
    "DOCUMENT",
    "NORMALIZED",
    "LIKE",
    "ANY",
    "ESCAPE",
    "SIMILAR TO",
    "COLLATE",
    "OPERATOR",
    "AT TIME ZONE",
    "AT LOCAL",
    "CAST",
    "TREAT",
    "EXTRACT",
    "OVERLAY",
    "PLACING",
    "POSITION",
    "SUBSTRING",
    "FOR",
    "TRIM",
    "LEADING",
    "NORMALIZE",
    "COLLATION FOR",
    "XMLELEMENT",
    "NAME",
    "XMLATTRIBUTES",
    "XMLFOREST",
    "XMLPARSE",
    "CONTENT",
    "XMLSERIALIZE",
    "XMLROOT",
    "VERSION",
    "XMLEXISTS",
    "PASSING",
    "BY REF",
    "XMLTABLE",
    "XMLNAMESPACES",
    "COLUMNS",
    "PATH",
    "JSON_OBJECT",
    "JSON_ARRAY",
    "JSON_VALUE",
    "JSON_TABLE",
    "NESTED PATH",
    "RETURNING",
    "FORMAT JSON",
    "ENCODING",
    "ON ERROR",
    "EMPTY",
    "WITH WRAPPER",
    "KEEP QUOTES",
    "VALUE",
    "ARRAY",
    "INTERVAL",
    "YEAR TO MONTH",
    "TIMESTAMP",
    "WITH TIME ZONE",
    "DOUBLE PRECISION",
    "BIT VARYING",
    "VARIADIC",
    "EXISTS",
    "ROW",
    "SETOF",
    "INTO",
    "FOR READ ONLY",
    "(",
    "(",
    "(",
    ")",
    ")",
    ")",
    "[",
    "]",
    ",",
    ",",
    ",",
    ".",
    ".",
    "*",
    "::",
    ":",
    ":=",
    "=>",
    "=",
    "<",
    "~~@",
    "-",
    "'s'",
    "'s'",
    "1",
    "1",
    "B'1'",
    "$1",
    "name",
    "visit",
    "visit",
    "\"Quoted\"",
    "mood",
    "s.visit",
    "s.mood",
    "t",
    "U&\"d!0061ta\" UESCAPE '!'",
];

fn tokens(text: &str) -> Option<Vec<Token<'_>>> {
    lexer::tokens(text, &Limits::default()).ok()
}

fn start(out: &sqlparser::tokenizer::TokenWithSpan) -> usize {
    usize::try_from(out.span.start.column).unwrap() - 1
}

/// Checks what the front made of `tokens`.
fn check(text: &str, tokens: &[Token<'_>], rewritten: &Rewritten) {
    assert!(
        rewritten.tokens.windows(2).all(|pair| start(&pair[0]) <= start(&pair[1])),
        "out of order: {text}"
    );
    for (at, token) in tokens.iter().enumerate() {
        let free = match token.kind {
            Kind::Quoted => true,
            Kind::Word(category) => category == Category::Plain,
            _ => continue,
        };
        let out = rewritten.tokens.iter().position(|out| {
            start(out) == token.start && matches!(&out.token, Out::Word(word) if word.value == token.text)
        });
        let recorded = rewritten.recorded().contains(&token.start);
        // A name that is no key word is never lost, and never there twice.
        assert!(!free || out.is_some() != recorded, "{} of {text}", token.text);
        // What stands before a bracket is called there, too, unless it is a type, which is recorded or
        // stands behind what only a type stands behind.
        let called = tokens.get(at + 1).is_some_and(|next| next.kind == Kind::LeftParen);
        if let (true, true, Some(out)) = (free, called, out) {
            let mut before = out;
            while before >= 2 && rewritten.tokens[before - 1].token == Out::Period {
                before -= 2;
            }
            let r#type = before.checked_sub(1).is_some_and(|before| match &rewritten.tokens[before].token {
                Out::DoubleColon => true,
                Out::Word(word) => word.value == "as" || word.quote_style.is_some(),
                _ => false,
            });
            let call = rewritten.tokens.get(out + 1).is_some_and(|next| next.token == Out::LParen);
            assert!(call || r#type, "{} is no call any more in {text}", token.text);
        }
    }
}

#[test]
fn the_cases_keep_their_names() {
    #[derive(serde::Deserialize)]
    struct Case {
        sql: String,
    }
    let mut rewritten = 0;
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guard")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let cases: Vec<Case> = serde_yaml_ng::from_str(&text).unwrap();
        for case in cases {
            let Some(tokens) = tokens(&case.sql) else { continue };
            if let Ok(done) = front::rewrite(&tokens) {
                rewritten += 1;
                check(&case.sql, &tokens, &done);
            }
        }
    }
    assert!(rewritten > 1_000, "{rewritten}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_pieces_keep_their_names(
        pieces in prop::collection::vec(prop::sample::select(PIECES), 1..24),
        select in any::<bool>(),
    ) {
        let text = format!("{}{}", if select { "SELECT " } else { "" }, pieces.join(" "));
        if let Some(tokens) = tokens(&text)
            && let Ok(done) = front::rewrite(&tokens)
        {
            check(&text, &tokens, &done);
        }
    }
}

/// A harmless statement with a word more, less or twice is as whole.
#[test]
fn cases_that_are_changed_keep_their_names() {
    #[derive(serde::Deserialize)]
    struct Case {
        sql: String,
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/guard/syntax.yaml");
    let cases: Vec<Case> = serde_yaml_ng::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let mut rewritten = 0;
    for case in cases {
        let Some(all) = tokens(&case.sql) else { continue };
        for at in 0..all.len() {
            let mut fewer = all.clone();
            fewer.remove(at);
            let mut swapped = all.clone();
            swapped.swap(at, (at + 1) % all.len());
            for mut changed in [fewer, swapped] {
                // Each token keeps a place of its own, in order.
                for (at, token) in changed.iter_mut().enumerate() {
                    (token.start, token.end) = (2 * at, 2 * at + 1);
                }
                if let Ok(done) = front::rewrite(&changed) {
                    rewritten += 1;
                    check(&case.sql, &changed, &done);
                }
            }
        }
    }
    assert!(rewritten > 1_000, "{rewritten}");
}
