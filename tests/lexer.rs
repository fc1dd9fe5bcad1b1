//! Properties of the lexer, over any text.
//!
//! Invariant: no text makes it panic, and what it makes of a text covers all of it.

use fedgate::guard::{Context, Form, Mode, Step, judge};
use fedgate::ids::SourceName;
use fedgate::sql::Limits;
use fedgate::sql::catalogue::Catalogue;
use fedgate::sql::comment::{CommentFormat, end_user};
use fedgate::sql::lexer::{self, Item, Kind, Lexer};
use proptest::prelude::*;

const SPACES: [char; 6] = [' ', '\t', '\n', '\r', '\u{b}', '\u{c}'];

/// Pieces that lexers disagree about, put together at random.
fn tricky() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "SELECT",
        "select",
        "a",
        "é",
        "1",
        "1.",
        ".5",
        "1e",
        "0x1f",
        "1_0",
        "$1",
        "$$",
        "$a$",
        "$",
        "'",
        "''",
        "'a'",
        "E'",
        "E'\\'",
        "e'\\\\'",
        "U&'",
        "u&\"",
        "N'",
        "X'1f'",
        "B'01'",
        "\"",
        "\"\"",
        "\"a\"",
        "\\",
        ";",
        "(",
        ")",
        "[",
        "]",
        ",",
        ".",
        "..",
        ":",
        "::",
        ":=",
        "=>",
        "+",
        "-",
        "--",
        "--\n",
        "/*",
        "*/",
        "*",
        "/",
        "<",
        ">",
        "=",
        "!=",
        "<>",
        "@-",
        "~*",
        "?",
        "|",
        "\n",
        "\r",
        " ",
        "\t",
        "\u{b}",
        "\u{c}",
        "\u{a0}",
        "FROM",
        "INTO",
        "FOR UPDATE",
        "nextval",
        "nextval(",
        "INSERT",
        "AS",
        "COLLATE",
        "TABLE",
        "OPERATOR(",
        "UESCAPE",
        "IS",
        "NOT",
        "NULL",
        "CASE",
        "WHEN",
        "END",
        "date",
        "interval",
        "set_config",
        "SET",
        "COPY",
        "TO STDOUT",
        "EXPLAIN",
        "PREPARE",
        "p",
        "VALUES",
        "WITH",
        "UNION",
        "JOIN",
        "ON",
        "x",
    ]);
    prop::collection::vec((piece, prop::bool::ANY), 0..40).prop_map(|pieces| {
        pieces.iter().map(|(piece, space)| format!("{piece}{}", if *space { " " } else { "" })).collect()
    })
}

fn covers(text: &str) -> Result<(), TestCaseError> {
    let mut lexer = Lexer::new(text);
    let mut end = 0;
    while let Ok(Some(item)) = lexer.next_item() {
        let (start, stop) = match &item {
            Item::Token(token) => (token.start, token.end),
            Item::Comment(comment) => (comment.start, comment.end),
        };
        prop_assert!(end <= start && start < stop && stop <= text.len());
        let between = &text[end..start];
        let spaces = between.chars().all(|space| SPACES.contains(&space));
        prop_assert!(spaces, "{:?} was passed over", between);
        prop_assert!(text.is_char_boundary(start) && text.is_char_boundary(stop));
        if let Item::Token(token) = &item {
            match token.kind {
                Kind::Word(_) => {
                    prop_assert_eq!(&token.text, &text[start..stop].to_ascii_lowercase()[..token.text.len()])
                }
                Kind::Quoted => prop_assert!(token.text.len() <= 63),
                _ => {}
            }
        }
        end = stop;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tokens_cover_any_text(text in any::<String>()) {
        covers(&text)?;
    }

    #[test]
    fn tokens_cover_tricky_texts(text in tricky()) {
        covers(&text)?;
    }

    #[test]
    fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let format = CommentFormat::parse("fedgate query=$QUERY_ID user=$USER").unwrap();
        let _ = end_user(&bytes, &format);
        if let Ok(text) = lexer::utf8(&bytes) {
            covers(text)?;
        }
    }

    /// A string, however it is spelled, is one token; nothing in it is ever a statement.
    #[test]
    fn strings_hold_what_is_put_into_them(body in "[ -#%-~é\n]{0,40}") {
        let tag = "q_";
        for (sql, expected) in [
            (format!("'{}'", body.replace('\'', "''")), body.clone()),
            (format!("E'{}'", body.replace('\\', "\\\\").replace('\'', "\\'")), body.clone()),
            (format!("U&'{}'", body.replace('\\', "\\\\").replace('\'', "''")), body.clone()),
            (format!("${tag}${body}${tag}$"), body.clone()),
        ] {
            let tokens = lexer::tokens(&sql, &Limits::default()).unwrap();
            prop_assert_eq!(tokens.len(), 1, "{}", &sql);
            prop_assert_eq!(&tokens[0].text, &expected, "{}", &sql);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The permits of a text are parts of it in their order, and `Whole` is said only without `;`.
    #[test]
    fn permits_are_parts_of_the_text(text in tricky()) {
        let catalogue = Catalogue::default();
        let (limits, source) = (Limits::default(), SourceName::new("s"));
        let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
        let verdict = judge(text.as_bytes(), &ctx);
        let mut end = 0;
        for (at, step) in verdict.steps.iter().enumerate() {
            match step {
                Step::Admit(admitted) => {
                    let permit = admitted.permit.text();
                    prop_assert!(admitted.offset >= end);
                    end = admitted.offset + permit.len();
                    prop_assert_eq!(&text.as_bytes()[admitted.offset..end], permit);
                    prop_assert!(verdict.form == Form::Apart || !permit.contains(&b';'));
                }
                Step::Refuse(_) => prop_assert_eq!(at + 1, verdict.steps.len()),
            }
        }
        if verdict.form == Form::Whole {
            prop_assert!(verdict.steps.len() <= 1);
            let inner = text.trim_end_matches(SPACES);
            let inner = inner.strip_suffix(';').unwrap_or(inner);
            prop_assert!(!inner.contains(';'));
        }
    }
}
