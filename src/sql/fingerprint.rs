//! What a statement looks like without its literals: which statements are alike.
//!
//! Invariant: no literal's text, no comment and no white space has any part in it, and neither has anything behind
//! what the lexer cannot read; whatever a literal is changed to, as a literal, the fingerprint stays.

use sha2::{Digest, Sha256};

use super::keyword::Category;
use super::lexer::{self, Item, Kind, Lexer, Token};

/// Of a longer text only its beginning counts, so that no thread that relays is held up: it has to be read on it.
const LONGEST: usize = 64 << 10;
/// Pieces of such a beginning, lists of constants counted once: up to where most long texts begin to list values.
const BEGINNING: usize = 16;

/// 128 bits of SHA-256 over [`normalised`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 16]);

/// One part of a statement as it counts.
#[derive(Debug, PartialEq)]
enum Piece<'a> {
    Constant,
    Comma,
    Open,
    Close,
    Word(Token<'a>),
    Other(Token<'a>),
    /// What is behind this is left out.
    Rest,
}

/// The fingerprint of a text as it came, whether it can be read or not.
pub fn fingerprint(text: &[u8]) -> Fingerprint {
    let mut hash = Sha256::new();
    write(&pieces(text), |part| hash.update(part.as_bytes()));
    let digest: [u8; 32] = hash.finalize().into();
    let mut half = [0; 16];
    for (to, from) in half.iter_mut().zip(digest) {
        *to = from;
    }
    Fingerprint(half)
}

/// The text that is hashed: words in lower case, one space between all, `?` for constants and lists of them, `…` for
/// what is left out.
pub fn normalised(text: &[u8]) -> String {
    let mut whole = String::new();
    write(&pieces(text), |part| whole.push_str(part));
    whole
}

fn write(pieces: &[Piece<'_>], mut out: impl FnMut(&str)) {
    for (at, piece) in pieces.iter().enumerate() {
        if at > 0 {
            out(" ");
        }
        match piece {
            Piece::Constant => out("?"),
            Piece::Comma => out(","),
            Piece::Open => out("("),
            Piece::Close => out(")"),
            Piece::Word(token) => out(&token.text),
            Piece::Other(token) if token.kind == Kind::Quoted => {
                out("\"");
                // As it was spelled, so that no name looks like two.
                for part in token.text.split_inclusive('"') {
                    out(part);
                    if part.ends_with('"') {
                        out("\"");
                    }
                }
                out("\"");
            }
            Piece::Other(token) => out(&token.text),
            Piece::Rest => out("…"),
        }
    }
}

fn pieces(text: &[u8]) -> Vec<Piece<'_>> {
    let Ok(text) = lexer::utf8(text) else { return vec![Piece::Rest] };
    let most = if text.len() > LONGEST { BEGINNING } else { usize::MAX };
    let mut pieces = Vec::with_capacity((text.len() / 5).min(256));
    let mut lexer = Lexer::new(text);
    loop {
        let token = match lexer.next_item() {
            Ok(Some(Item::Token(token))) => token,
            Ok(Some(Item::Comment(_))) => continue,
            Ok(None) => return pieces,
            Err(_) => {
                pieces.push(Piece::Rest);
                return pieces;
            }
        };
        if pieces.len() >= most || token.start >= LONGEST {
            pieces.push(Piece::Rest);
            return pieces;
        }
        match token.kind {
            Kind::String | Kind::National | Kind::Bits | Kind::Number | Kind::Parameter => {
                constant(&mut pieces)
            }
            Kind::Word(_) if is_constant(&token, &pieces) => constant(&mut pieces),
            Kind::Word(_) => pieces.push(Piece::Word(token)),
            Kind::Comma => pieces.push(Piece::Comma),
            Kind::LeftParen => pieces.push(Piece::Open),
            Kind::RightParen => close(&mut pieces),
            _ => pieces.push(Piece::Other(token)),
        }
    }
}

/// NULL, TRUE and FALSE, where they are values and no part of a test such as IS NOT NULL.
fn is_constant(token: &Token<'_>, before: &[Piece<'_>]) -> bool {
    let word = |back: usize, word: &str| {
        let at = before.len().checked_sub(back);
        matches!(at.and_then(|at| before.get(at)), Some(Piece::Word(token)) if token.text == word)
    };
    match token.text.as_ref() {
        "true" | "false" => !(word(1, "is") || word(1, "not") && word(2, "is")),
        "null" => !word(1, "is") && !word(1, "not"),
        _ => false,
    }
}

fn constant(pieces: &mut Vec<Piece<'_>>) {
    // A sign before a number, and not between two values.
    while let [rest @ .., Piece::Other(sign)] = pieces.as_slice()
        && matches!(sign.text.as_ref(), "-" | "+")
        && sign.kind == Kind::Operator
        && !ends_value(rest.last())
    {
        pieces.pop();
    }
    if let [.., Piece::Constant, Piece::Comma] = pieces.as_slice() {
        pieces.pop();
    } else {
        pieces.push(Piece::Constant);
    }
}

/// May this be the end of a value, so that a sign behind it stands between two?
fn ends_value(piece: Option<&Piece<'_>>) -> bool {
    match piece {
        None | Some(Piece::Comma | Piece::Open | Piece::Rest) => false,
        Some(Piece::Constant | Piece::Close) => true,
        Some(Piece::Word(token)) => match token.kind {
            Kind::Word(Category::Reserved) => {
                let text = token.text.as_ref();
                matches!(text, "end" | "null" | "true" | "false" | "user" | "default")
                    || text.starts_with("current_")
                    || text.starts_with("session_")
                    || text.starts_with("local")
            }
            // Words that are free to be names and mostly are something else.
            _ => !matches!(token.text.as_ref(), "between" | "values" | "by" | "set" | "escape"),
        },
        Some(Piece::Other(token)) => {
            matches!(token.kind, Kind::Quoted | Kind::RightBracket)
        }
    }
}

fn close(pieces: &mut Vec<Piece<'_>>) {
    use Piece::{Close, Comma, Constant, Open};
    // Rows of constants behind one of them are no news.
    if let [.., Open, Constant, Close, Comma, Open, Constant] = pieces.as_slice() {
        pieces.truncate(pieces.len() - 3);
    } else {
        pieces.push(Close);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn statements_without_their_literals() {
        for (text, want) in [
            ("SELECT * FROM t WHERE id = 17", "select * from t where id = ?"),
            ("select *  from T where ID=$1 -- x", "select * from t where id = ?"),
            ("SELECT /* 'a' */ E'x\\'y', N'n', B'01', X'ff', U&'\\0041', $$d$$, $q$e$q$, 1.5e-3", "select ?"),
            (
                "SELECT * FROM t WHERE a IN (1, 2, -3) AND b IN ('x')",
                "select * from t where a in ( ? ) and b in ( ? )",
            ),
            ("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, NULL)", "insert into t values ( ? )"),
            (
                "INSERT INTO t VALUES (1, lower('A')), (2, 'b')",
                "insert into t values ( ? , lower ( ? ) ) , ( ? )",
            ),
            (
                "SELECT a - 5, -5, a * -5, (-5), f(a)-5, 2 - -5",
                "select a - ? , a * ? , ( ? ) , f ( a ) - ? - ?",
            ),
            (
                "SELECT a IS NULL, b IS NOT NULL, c IS TRUE, d = true, NULL",
                "select a is null , b is not null , c is true , d = ?",
            ),
            ("SELECT \"Col\"\"umn\" FROM \"T\"", "select \"Col\"\"umn\" from \"T\""),
            ("SELECT DATE '2026-01-01', '1'::int, ARRAY[1,2]", "select date ? :: int , array [ ? ]"),
            ("SELECT a FROM t WHERE b = 'not ended", "select a from t where b = …"),
            ("", ""),
        ] {
            assert_eq!(normalised(text.as_bytes()), want, "{text}");
        }
        assert_eq!(normalised(b"SELECT '\xff'"), "…");
        let list =
            |count: usize| format!("INSERT INTO t (a, b) VALUES {}(1, 'x')", "(12, 'yz'), ".repeat(count));
        assert_eq!(normalised(list(9).as_bytes()), "insert into t ( a , b ) values ( ? )");
        let [long, longer] = [7_000, 70_000].map(|count| normalised(list(count).as_bytes()));
        assert_eq!((&*long, &long), ("insert into t ( a , b ) values ( ? ) , ( ? , …", &longer));
        let many = format!("SELECT {}1", "a+".repeat(LONGEST));
        assert_eq!(normalised(many.as_bytes()), format!("select {}a …", "a + ".repeat(7)));
    }

    #[test]
    fn what_differs_by_more_than_literals_differs() {
        let of = |text: &str| fingerprint(text.as_bytes());
        assert_eq!(of("SELECT 1"), of("select  'x' /* y */"));
        assert_ne!(of("SELECT a"), of("SELECT b"));
        assert_ne!(of("SELECT \"a b\""), of("SELECT \"a\" \"b\""));
        assert_ne!(of("SELECT a"), of("SELECT \"a\""));
        assert_ne!(of("DELETE FROM t"), of("DELETE FROM t WHERE id = 1"));
    }

    /// A literal of any kind, around a text that stands nowhere else.
    fn literal() -> impl Strategy<Value = String> {
        let text = "[a-z0-9 ,()?-]{0,12}";
        prop_oneof![
            text.prop_map(|text| format!("'SECRET{text}'")),
            text.prop_map(|text| format!("E'SECRET\\'{text}'")),
            text.prop_map(|text| format!("$x$SECRET'{text}$x$")),
            text.prop_map(|text| format!("U&'SECRET{text}'")),
            text.prop_map(|text| format!("N'SECRET''{text}'")),
            "[0-9]{1,12}".prop_map(|digits| format!("987654{digits}")),
            "[0-9]{1,6}".prop_map(|digits| format!("-987654{digits}.25e7")),
            "[0-9a-f]{0,8}".prop_map(|digits| format!("X'987654{digits}'")),
            (1..999u32).prop_map(|number| format!("${number}")),
            Just("NULL".to_owned()),
            Just("true".to_owned()),
        ]
    }

    const SHAPES: &[&str] = &[
        "SELECT a FROM t WHERE b = @ AND c IN (@, @, @) ORDER BY d LIMIT @",
        "UPDATE t SET a = @, b = @ WHERE c BETWEEN @ AND @",
        "INSERT INTO t (a, b) VALUES (@, @), (@, @)",
        "DELETE FROM t WHERE a = ANY (ARRAY[@, @]) OR f(@, g(@)) > @",
        "SELECT CASE WHEN a = @ THEN @ ELSE @ END, @ FROM t",
        "CALL system.execute(query => @)",
        "SET a TO @",
    ];

    fn filled(shape: &str, literals: &[String], space: &str) -> String {
        let mut literals = literals.iter().cycle();
        let mut text = String::new();
        for part in shape.split_inclusive('@') {
            match part.strip_suffix('@') {
                Some(before) => {
                    text.push_str(before);
                    text.push_str(literals.next().unwrap());
                    text.push_str(space);
                }
                None => text.push_str(part),
            }
        }
        text
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn changing_literals_changes_nothing_and_none_is_hashed(
            shape in prop::sample::select(SHAPES),
            one in prop::collection::vec(literal(), 12),
            other in prop::collection::vec(literal(), 12),
            space in prop::sample::select(&[" ", "\n", " /* 987654 SECRET */ ", " -- SECRET\n"][..]),
        ) {
            let (one, other) = (filled(shape, &one, " "), filled(shape, &other, space));
            prop_assert_eq!(normalised(one.as_bytes()), normalised(other.as_bytes()), "{} / {}", one, other);
            prop_assert_eq!(fingerprint(one.as_bytes()), fingerprint(other.as_bytes()));
            let hashed = normalised(other.as_bytes()).to_lowercase();
            prop_assert!(!hashed.contains("secret") && !hashed.contains("987654"), "{}", hashed);
        }

        /// Whatever is sent: no panic, and no string's text.
        #[test]
        fn anything_at_all(text in prop::collection::vec(any::<u8>(), 0..200), sql in "[ -~]{0,80}") {
            fingerprint(&text);
            let with = format!("{sql} 'SECRET'");
            let hashed = normalised(with.as_bytes());
            // Unless the quotes before it make it something else.
            prop_assert!(!hashed.contains("SECRET") || sql.contains('"') || sql.contains('\'') || sql.contains('$'));
        }
    }
}
