//! Makes SQL out of a grammar, in every spelling that PostgreSQL's lexer knows.
//!
//! Invariant: the same random numbers make the same text.

use std::collections::HashMap;

use rand::Rng;
use rand::rngs::StdRng;

/// The statements of PostgreSQL.
pub const POSTGRES: &str = include_str!("../postgres.grammar");

/// Rules that may be entered inside each other before only the shortest ways are taken.
const DEPTH: usize = 14;
/// Parts of a text, after which only the shortest ways are taken.
const PARTS: usize = 160;

/// A part of a way.
#[derive(Clone, Debug)]
enum Part {
    Rule(usize),
    Keyword(String),
    Literal(String),
    Identifier(String),
    Made(Made),
    Optional(Vec<Part>),
    /// None to two.
    Several(Box<Part>),
    /// One to three, commas between.
    List(Box<Part>),
}

#[derive(Clone, Copy, Debug)]
enum Made {
    String,
    Number,
    Operator,
    Parameter,
}

#[derive(Clone, Debug)]
struct Way {
    weight: u32,
    parts: Vec<Part>,
    /// How many rules lie inside each other in its shortest form.
    depth: usize,
}

/// A grammar, read and checked.
#[derive(Clone, Debug)]
pub struct Grammar {
    rules: Vec<Vec<Way>>,
    names: HashMap<String, usize>,
}

impl Grammar {
    /// Reads a grammar; its form is told at the head of `postgres.grammar`.
    ///
    /// # Errors
    /// The line that is wrong, and why.
    pub fn parse(text: &str) -> Result<Self, String> {
        let lines = || {
            text.lines()
                .enumerate()
                .map(|(at, line)| (at + 1, line))
                .filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'))
        };
        let mut names = HashMap::new();
        for (at, line) in lines().filter(|(_, line)| !line.starts_with(' ')) {
            let name = line.strip_suffix(':').ok_or_else(|| format!("line {at}: no rule's name"))?;
            if names.insert(name.to_owned(), names.len()).is_some() {
                return Err(format!("line {at}: {name} is there twice"));
            }
        }
        let mut grammar = Self { rules: vec![Vec::new(); names.len()], names };
        let mut rule = None;
        for (at, line) in lines() {
            if let Some(name) = line.strip_suffix(':').filter(|_| !line.starts_with(' ')) {
                rule = grammar.names.get(name).copied();
                continue;
            }
            let way = grammar.way(line).map_err(|why| format!("line {at}: {why}"))?;
            let rule = rule.ok_or_else(|| format!("line {at}: before the first rule"))?;
            grammar.rules[rule].push(way);
        }
        grammar.measure()?;
        Ok(grammar)
    }

    fn way(&self, line: &str) -> Result<Way, String> {
        let mut words: Vec<String> = Vec::new();
        let mut letters = line.trim().chars().peekable();
        while let Some(letter) = letters.next() {
            match letter {
                ' ' => {}
                // A bracket that groups, not one in quotes.
                '[' | ']' => words.push(letter.to_string()),
                '\'' => {
                    let mut word = String::from("'");
                    word.extend(letters.by_ref().take_while(|letter| *letter != '\''));
                    words.push(word);
                }
                letter => {
                    let mut word = String::from(letter);
                    while let Some(next) = letters.next_if(|next| !" []'".contains(*next)) {
                        word.push(next);
                    }
                    words.push(word);
                }
            }
        }
        let mut words = words.into_iter().peekable();
        let weight = words.peek().and_then(|word| word.parse().ok());
        if weight.is_some() {
            words.next();
        }
        let mut open = vec![Vec::new()];
        for word in words {
            let part = match word.as_str() {
                "[" => {
                    open.push(Vec::new());
                    continue;
                }
                "]" => Part::Optional(open.pop().unwrap_or_default()),
                word => self.part(word)?,
            };
            open.last_mut().ok_or("too many ]")?.push(part);
        }
        match open.pop() {
            Some(parts) if open.is_empty() => {
                Ok(Way { weight: weight.unwrap_or(1), parts, depth: usize::MAX })
            }
            _ => Err("a [ is not closed".to_owned()),
        }
    }

    fn part(&self, word: &str) -> Result<Part, String> {
        if let Some(literal) = word.strip_prefix('\'') {
            return Ok(Part::Literal(literal.to_owned()));
        }
        if let Some(name) = word.strip_prefix('~') {
            return Ok(Part::Identifier(name.to_owned()));
        }
        if let Some(inner) = word.strip_suffix("+,") {
            return Ok(Part::List(Box::new(self.part(inner)?)));
        }
        if let Some(inner) = word.strip_suffix('*') {
            return Ok(Part::Several(Box::new(self.part(inner)?)));
        }
        Ok(match word {
            "@string" => Part::Made(Made::String),
            "@number" => Part::Made(Made::Number),
            "@operator" => Part::Made(Made::Operator),
            "@parameter" => Part::Made(Made::Parameter),
            word if word.starts_with(|letter: char| letter.is_ascii_uppercase()) => {
                Part::Keyword(word.to_owned())
            }
            word => Part::Rule(*self.names.get(word).ok_or_else(|| format!("there is no rule {word}"))?),
        })
    }

    /// Finds how deep the shortest form of each way is, so that generating always ends.
    fn measure(&mut self) -> Result<(), String> {
        fn of(parts: &[Part], rules: &[usize]) -> usize {
            parts
                .iter()
                .map(|part| match part {
                    Part::Rule(rule) => rules[*rule].saturating_add(1),
                    Part::List(inner) => of(std::slice::from_ref(inner), rules),
                    Part::Keyword(_) | Part::Literal(_) | Part::Identifier(_) | Part::Made(_) => 0,
                    Part::Optional(_) | Part::Several(_) => 0,
                })
                .max()
                .unwrap_or(0)
        }
        let mut depths = vec![usize::MAX; self.rules.len()];
        for _ in 0..=self.rules.len() {
            for (rule, ways) in self.rules.iter_mut().enumerate() {
                for way in ways.iter_mut() {
                    way.depth = of(&way.parts, &depths);
                    depths[rule] = depths[rule].min(way.depth);
                }
            }
        }
        match self.names.iter().find(|(_, rule)| depths[**rule] == usize::MAX) {
            Some((name, _)) => Err(format!("the rule {name} has no end")),
            None => Ok(()),
        }
    }

    /// One text of `rule`.
    ///
    /// # Panics
    /// When there is no such rule.
    pub fn text(&self, rule: &str, random: &mut StdRng) -> String {
        let mut writer = Writer { text: String::new(), hostile: random.random_bool(0.35), random, parts: 0 };
        self.rule(self.names[rule], 0, &mut writer);
        writer.text
    }

    fn rule(&self, rule: usize, depth: usize, writer: &mut Writer<'_>) {
        let ways = &self.rules[rule];
        let shortest = ways.iter().map(|way| way.depth).min().unwrap_or(0);
        let tired = depth > DEPTH || writer.parts > PARTS;
        let fits = |way: &&Way| !tired || way.depth == shortest;
        let total: u32 = ways.iter().filter(fits).map(|way| way.weight).sum();
        let mut left = writer.random.random_range(0..total);
        for way in ways.iter().filter(fits) {
            if left < way.weight {
                self.parts(&way.parts, depth, tired, writer);
                return;
            }
            left -= way.weight;
        }
    }

    fn parts(&self, parts: &[Part], depth: usize, tired: bool, writer: &mut Writer<'_>) {
        for part in parts {
            match part {
                Part::Rule(rule) => self.rule(*rule, depth + 1, writer),
                Part::Keyword(word) => writer.keyword(word),
                Part::Literal(text) => writer.put(text),
                Part::Identifier(name) => writer.identifier(name),
                Part::Made(made) => writer.made(*made),
                Part::Optional(parts) => {
                    if !tired && writer.random.random_bool(0.4) {
                        self.parts(parts, depth, tired, writer);
                    }
                }
                Part::Several(part) => {
                    for _ in 0..if tired { 0 } else { writer.random.random_range(0..3) } {
                        self.parts(std::slice::from_ref(part), depth, tired, writer);
                    }
                }
                Part::List(part) => {
                    let many = if tired { 1 } else { [1, 1, 1, 2, 2, 3][writer.random.random_range(0..6)] };
                    for at in 0..many {
                        if at > 0 {
                            writer.put(",");
                        }
                        self.parts(std::slice::from_ref(part), depth, tired, writer);
                    }
                }
            }
        }
    }
}

/// What may stand between two tokens, or pretends to.
const GAPS: &[&str] = &[
    " ",
    " ",
    " ",
    " ",
    " ",
    " ",
    "",
    "",
    "\n",
    "\t",
    "\r",
    "\u{b}",
    "\u{c}",
    "\r\n",
    "/**/",
    "/* ; */",
    "/*/**/*/",
    "/*--*/",
    "--\n",
    "-- ; '\n",
    "--\r",
    "-- \"\r\n",
    "/* ' */",
    "/*/*;*/ $$ */",
    " /*\n*/ ",
    "  ",
    "\u{a0}",
    "\u{feff}",
    "\u{2028}",
];

const STRINGS: &[&str] = &[
    "'a'",
    "'a'",
    "'a'",
    "''",
    "'it''s'",
    "'a\\'",
    "E'a\\'b'",
    "E'\\\\'",
    "e'\\n\\x41\\101'",
    "E'\\u0041'",
    "E'\\U00000041'",
    "E'\\ud83d\\ude00'",
    "$$a$$",
    "$$;$$",
    "$a$;$b$;$a$",
    "$a$'$a$",
    "$_$ $$ $_$",
    "$é$ ' $é$",
    "U&'\\0041'",
    "U&'\\+000041'",
    "U&'d!0061' UESCAPE '!'",
    "u&'\\\\'",
    "'a'\n'b'",
    "'a' -- c\n 'b'",
    "'a'\r'b'",
    "'a' /* c */ 'b'",
    "'a' 'b'",
    "N'x'",
    "B'01'",
    "X'1F'",
    "b''",
    "x'é'",
    "'{}'",
    "'1'",
    "'nextval'",
    "'select 1; drop table t'",
    "'on'",
    "'2020-01-01'",
    "'utf8'",
    "E'a'\n'\\'b'",
    "'é\u{a0}'",
    "'--'",
    "'/*'",
    "'$$'",
    "'\"'",
    "E'\\'; delete from t; --'",
    "'\n'",
    "'\r\n'",
    "e''''",
];

const NUMBERS: &[&str] = &[
    "1",
    "1",
    "1",
    "0",
    "42",
    "1.5",
    ".5",
    "1.",
    "1e10",
    "1e",
    "1.e1",
    "1e+1",
    "1E-",
    "0x1F",
    "0X1f",
    "0o17",
    "0b101",
    "1_000",
    "1__0",
    "100_",
    "0xG",
    "0x",
    "0b2",
    "1a",
    "1_a",
    "99999999999999999999999",
    "1..2",
    "1.5.5",
    "1.e",
    "0x1F_F",
    "007",
    "1.5e1_0",
];

const OPERATORS: &[&str] = &[
    "+", "-", "*", "/", "%", "^", "<", ">", "=", "||", "->", "->>", "#>", "@>", "<@", "~", "!~", "~*",
    "!~~*", "&&", "|", "&", "#", "<<", ">>", "<->", "<=>", "!!", "@@", "?|", "?", "?&", "@-", "+@", "*~",
    "<+", "||/", "|/", "^@", "- -", "-+", "=>", ":=", "===>", "====>", "<--", "+-", "*/", "/*", "~-", "!=-",
    "<>-", "@/", "=+", "..",
];

const PARAMETERS: &[&str] = &["$1", "$1", "$2", "$0", "$1a", "$99999999999", "$1_", "$", "$1$2"];

struct Writer<'r> {
    text: String,
    hostile: bool,
    random: &'r mut StdRng,
    parts: usize,
}

impl Writer<'_> {
    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.random.random_range(0..of.len())]
    }

    fn put(&mut self, text: &str) {
        if !self.text.is_empty() {
            let gap = if self.hostile { self.pick(GAPS) } else { " " };
            self.text.push_str(gap);
        }
        self.text.push_str(text);
        self.parts += 1;
    }

    fn case(&mut self, word: &str) -> String {
        match self.random.random_range(0..3) {
            0 => word.to_ascii_lowercase(),
            1 => word.to_ascii_uppercase(),
            _ if !self.hostile => word.to_ascii_lowercase(),
            _ => word
                .chars()
                .map(|letter| {
                    if self.random.random_bool(0.5) {
                        letter.to_ascii_uppercase()
                    } else {
                        letter.to_ascii_lowercase()
                    }
                })
                .collect(),
        }
    }

    fn keyword(&mut self, word: &str) {
        let word = self.case(word);
        self.put(&word);
    }

    fn identifier(&mut self, name: &str) {
        let way = self.random.random_range(0..if self.hostile { 16 } else { 40 });
        let spelt = match way {
            0 | 1 => format!("\"{name}\""),
            2 => format!("U&\"{}\"", escaped(name, '\\', self.random)),
            3 => format!("U&\"{}\" UESCAPE '!'", escaped(name, '!', self.random)),
            4 => format!("\"{}\"", name.to_uppercase()),
            5 => format!("u&\"{name}\""),
            6 => format!("\"{name}\"\"\""),
            7 => format!("{name}$"),
            8 => format!("{name}{}", "x".repeat(70)),
            9 => format!("{name}é"),
            _ => self.case(name),
        };
        self.put(&spelt);
    }

    fn made(&mut self, made: Made) {
        let text = self.pick(match made {
            Made::String => STRINGS,
            Made::Number => NUMBERS,
            Made::Operator => OPERATORS,
            Made::Parameter => PARAMETERS,
        });
        // In plain texts the plain forms are wanted more often.
        let text = match (self.hostile || self.random.random_bool(0.4), made) {
            (true, _) => text,
            (false, Made::String) => "'a'",
            (false, Made::Number) => "1",
            (false, Made::Operator) => "+",
            (false, Made::Parameter) => "$1",
        };
        self.put(text);
    }
}

/// The name with some of its letters as escapes of four or six digits.
fn escaped(name: &str, escape: char, random: &mut StdRng) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        match random.random_range(0..4) {
            0 => text.push_str(&format!("{escape}{:04x}", u32::from(letter))),
            1 => text.push_str(&format!("{escape}+{:06X}", u32::from(letter))),
            _ => text.push(letter),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_seed_makes_a_text() {
        let grammar = Grammar::parse(POSTGRES).unwrap();
        let texts = |seed| {
            let mut random = StdRng::seed_from_u64(seed);
            (0..50).map(|_| grammar.text("text", &mut random)).collect::<Vec<_>>()
        };
        assert_eq!(texts(1), texts(1));
        assert_ne!(texts(1), texts(2));
    }

    #[test]
    fn grammars_that_are_wrong_say_where() {
        for (text, why) in [
            ("a:\n  b\n", "line 2: there is no rule b"),
            ("a:\n  [ A\n", "line 2: a [ is not closed"),
            ("a:\n  a\n", "the rule a has no end"),
            ("a:\n  A\na:\n  A\n", "line 3: a is there twice"),
        ] {
            assert_eq!(Grammar::parse(text).unwrap_err(), why);
        }
    }
}
