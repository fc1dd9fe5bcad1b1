//! Changes texts: their tokens (taken apart crudely and by nobody's lexer but our own) and their letters.
//!
//! Invariant: the same random numbers make the same text, and what comes out is UTF-8 without NUL.

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;

/// Texts longer than this are cut, so that changes do not add up.
const LONGEST: usize = 4000;

/// What turns a read into something else, or makes two lexers disagree.
const HOT: &[&str] = &[
    ";",
    "; ",
    " INTO t2 ",
    " FOR UPDATE",
    " FOR SHARE OF t",
    "'",
    "\"",
    "$$",
    "$a$",
    "/*",
    "*/",
    "--",
    "-- \n",
    "\\",
    "\\'",
    "''",
    "E'",
    "e'\\'",
    "U&'",
    "U&\"",
    "UESCAPE '!'",
    "N'",
    "B'",
    "X'",
    "\r",
    "\n",
    "\u{c}",
    "\u{b}",
    "\t",
    "\u{a0}",
    "\u{feff}",
    "\u{85}",
    "é",
    "İ",
    "ß",
    "\u{1f600}",
    "nextval('s')",
    "log_visit(1)",
    "pg_sleep(1)",
    ".nextval",
    ".log_visit",
    "::regclass",
    "===>",
    "OPERATOR(public.===>)",
    "::audited",
    "audited '1'",
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
    "@",
    "#",
    "?",
    "!",
    "=",
    "+",
    "-",
    "/",
    "*",
    "<",
    ">",
    "~",
    "^",
    "&",
    "|",
    "%",
    "$1",
    "$",
    "1",
    "1.",
    ".5",
    "1e",
    "0x",
    "1_0",
    "DELETE FROM t",
    "INSERT INTO t VALUES (1)",
    "UPDATE t SET a = 1",
    "RETURNING *",
    "WITH d AS (DELETE FROM t RETURNING 1) ",
    "TABLE t",
    "VALUES (1)",
    "SELECT ",
    "FROM t ",
    "AS ",
    "CREATE TABLE t2 AS ",
    "EXPLAIN ",
    "ANALYZE ",
    "(ANALYZE) ",
    "EXECUTE s",
    "PREPARE s AS ",
    "DECLARE c CURSOR FOR ",
    "WITH HOLD ",
    "COPY t TO STDOUT",
    "TO PROGRAM 'x'",
    "COPY ",
    "BEGIN",
    "COMMIT",
    "READ WRITE",
    "SET ",
    "LOCAL ",
    "ROLE x",
    "DO $$x$$",
    "CALL log_visit(1)",
    "LATERAL ",
    "ROWS FROM (",
    "TABLESAMPLE touch(1)",
    "ORDER BY 1 USING <",
    "OVER (ORDER BY log_visit(1))",
    "FILTER (WHERE log_visit(1))",
    "LIMIT log_visit(1)",
    "UNION ",
    "ONLY ",
    "NOT ",
    "IS ",
    "COLLATE \"C\"",
    "user",
    "current_user",
    "interval",
    "left",
    "value",
    "\u{0}",
];

/// The pieces of a text: words, white space, quoted strings, single signs.
#[must_use]
pub fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let word = |letter: char| letter.is_alphanumeric() || letter == '_';
        let run = |fits: &dyn Fn(char) -> bool| rest.find(|letter| !fits(letter)).unwrap_or(rest.len());
        let length = match first {
            letter if word(letter) => run(&word),
            letter if letter.is_whitespace() => run(&char::is_whitespace),
            '\'' | '"' => match rest[1..].find(first) {
                Some(at) => at + 2,
                None => 1,
            },
            letter => letter.len_utf8(),
        };
        let (piece, after) = rest.split_at(length);
        pieces.push(piece);
        rest = after;
    }
    pieces
}

/// Changes a text, borrowing parts from the others.
pub fn change(text: &str, others: &[String], random: &mut StdRng) -> String {
    let mut text = text.to_owned();
    for _ in 0..[1, 1, 1, 2, 2, 3, 5][random.random_range(0..7)] {
        text = once(&text, others, random);
    }
    if text.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
        text.truncate(end);
    }
    // What holds NUL cannot be asked of PostgreSQL; that the guard refuses it is tested by itself.
    text.replace('\0', "\u{1}")
}

fn once(text: &str, others: &[String], random: &mut StdRng) -> String {
    let mut pieces: Vec<&str> = pieces(text);
    let count = pieces.len();
    let place = |random: &mut StdRng| random.random_range(0..=count);
    let other = others.choose(random).map(String::as_str).unwrap_or_default();
    match random.random_range(0..12) {
        0 | 1 if count > 0 => {
            let from = random.random_range(0..count);
            let to = (from + [1, 1, 2, 3, 8][random.random_range(0..5)]).min(count);
            pieces.drain(from..to);
        }
        2 if count > 0 => {
            let from = random.random_range(0..count);
            let to = (from + random.random_range(1..6)).min(count);
            let copied = pieces[from..to].to_vec();
            let at = place(random);
            pieces.splice(at..at, copied);
        }
        3 if count > 1 => {
            let (one, two) = (random.random_range(0..count), random.random_range(0..count));
            pieces.swap(one, two);
        }
        4 | 5 => {
            let theirs = self::pieces(other);
            let from = random.random_range(0..=theirs.len());
            let to = (from + random.random_range(0..12)).min(theirs.len());
            let at = place(random);
            let until = (at + random.random_range(0..4)).min(count);
            pieces.splice(at..until, theirs[from..to].to_vec());
        }
        6..=8 => {
            let at = place(random);
            pieces.insert(at, HOT.choose(random).copied().unwrap_or_default());
        }
        9 if count > 0 => {
            let at = random.random_range(0..count);
            pieces[at] = HOT.choose(random).copied().unwrap_or_default();
        }
        _ => return letters(text, random),
    }
    pieces.concat()
}

/// Changes single letters.
fn letters(text: &str, random: &mut StdRng) -> String {
    let mut letters: Vec<char> = text.chars().collect();
    let any = match random.random_range(0..4) {
        0 => char::from_u32(random.random_range(1..0x11_0000)).unwrap_or('\u{fffd}'),
        1 => char::from(random.random_range(1..0x20u8)),
        _ => char::from(random.random_range(0x20..0x7fu8)),
    };
    let at = random.random_range(0..=letters.len());
    match random.random_range(0..3) {
        0 => letters.insert(at, any),
        1 if at < letters.len() => letters[at] = any,
        _ if at < letters.len() => {
            letters.remove(at);
        }
        _ => {}
    }
    letters.into_iter().collect()
}

/// The smallest text that still `fails`: pieces are taken out, many and then few, then letters.
pub fn shrink(text: &str, fails: impl Fn(&str) -> bool) -> String {
    let mut text = text.to_owned();
    loop {
        let before = text.len();
        let by_pieces = |text: &str| pieces(text).into_iter().map(str::to_owned).collect::<Vec<_>>();
        let by_letters = |text: &str| text.chars().map(|letter| letter.to_string()).collect::<Vec<_>>();
        for take_apart in [&by_pieces as &dyn Fn(&str) -> Vec<String>, &by_letters] {
            let mut size = take_apart(&text).len() / 2;
            while size > 0 {
                let mut at = 0;
                loop {
                    let parts = take_apart(&text);
                    if at >= parts.len() {
                        break;
                    }
                    let to = (at + size).min(parts.len());
                    let without = format!("{}{}", parts[..at].concat(), parts[to..].concat());
                    if fails(&without) {
                        text = without;
                    } else {
                        at += size;
                    }
                }
                size /= 2;
            }
        }
        if text.len() >= before {
            return text;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn pieces_make_the_text() {
        for text in ["SELECT 'a;b', \"c\"\n -- é\u{a0}$1", "'", "", "a'b\"c"] {
            assert_eq!(pieces(text).concat(), text);
        }
        assert_eq!(pieces("a.b 'c d'"), ["a", ".", "b", " ", "'c d'"]);
    }

    #[test]
    fn changes_repeat_with_their_seed() {
        let others = ["TABLE t".to_owned()];
        let changed = |seed| change("SELECT 1 FROM t", &others, &mut StdRng::seed_from_u64(seed));
        assert!((0..100).all(|seed| changed(seed) == changed(seed) && !changed(seed).contains('\0')));
        assert!((0..100).any(|seed| changed(seed) != changed(seed + 1)));
    }

    #[test]
    fn shrinking_keeps_what_matters() {
        let text = "SELECT a, b FROM t WHERE log_visit(1) AND c = 'x' ORDER BY 1";
        assert_eq!(shrink(text, |text| text.contains("log_visit(1)")), "log_visit(1)");
        assert_eq!(shrink("abc", |_| true), "");
    }
}
