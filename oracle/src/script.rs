//! Reads SQL scripts as psql does: statements up to their `;`, backslash commands, variables, data of COPY.
//!
//! Invariant: every byte of a script goes into exactly one item, or was skipped by an `\if`.

use std::collections::HashMap;

/// What comes next in a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    Statement(Statement),
    /// A backslash command that ends no statement: its name without the backslash, and what follows it.
    Command {
        line: usize,
        name: String,
        arguments: Vec<String>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statement {
    /// The line it starts on, counted from 1.
    pub line: usize,
    /// Without the `;` that ends it.
    pub text: String,
    /// `\gset` and its kin with their arguments, when one of them ended it.
    pub sent_by: Option<(String, Vec<String>)>,
}

/// A script and how far it was read.
#[derive(Debug)]
pub struct Script {
    text: Vec<char>,
    at: usize,
    line: usize,
    variables: HashMap<String, String>,
    /// For each `\if` that is open: whether it is in force, and whether a branch of it was already.
    branches: Vec<(bool, bool)>,
}

/// What ends a statement beside `;`.
const SENDERS: &[&str] = &[
    "g",
    "gx",
    "gset",
    "gexec",
    "gdesc",
    "crosstabview",
    "watch",
    "bind",
    "bind_named",
    "parse",
    "sendpipeline",
];

impl Script {
    #[must_use]
    pub fn new(text: &str, variables: HashMap<String, String>) -> Self {
        Self { text: text.chars().collect(), at: 0, line: 1, variables, branches: Vec::new() }
    }

    pub fn set(&mut self, name: &str, value: String) {
        self.variables.insert(name.to_owned(), value);
    }

    /// The lines up to `\.`, for a COPY FROM STDIN that was just read.
    pub fn data(&mut self) -> String {
        self.rest_of_line();
        let mut data = String::new();
        while self.at < self.text.len() {
            let line = self.rest_of_line();
            if line == "\\." {
                break;
            }
            data.push_str(&line);
            data.push('\n');
        }
        data
    }

    /// Do lines up to `\.` follow? A COPY that is meant to fail has none, and psql would go on with what stands there.
    #[must_use]
    pub fn has_data(&self) -> bool {
        let mut lines = self.text.get(self.at..).unwrap_or_default().split(|letter| *letter == '\n').skip(1);
        loop {
            let Some(line) = lines.next() else { return false };
            let line: String = line.iter().collect::<String>().to_ascii_lowercase();
            if line == "\\." {
                return true;
            }
            if line.contains("from stdin") {
                return false;
            }
        }
    }

    /// The next statement or command that no `\if` skips.
    pub fn next_item(&mut self) -> Option<Item> {
        loop {
            let item = self.read()?;
            if self.branches.iter().all(|(active, _)| *active) {
                return Some(item);
            }
        }
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.text.get(self.at + ahead).copied()
    }

    fn take(&mut self) -> Option<char> {
        let letter = self.peek(0)?;
        self.at += 1;
        self.line += usize::from(letter == '\n');
        Some(letter)
    }

    fn rest_of_line(&mut self) -> String {
        let mut line = String::new();
        while let Some(letter) = self.take() {
            if letter == '\n' {
                break;
            }
            line.push(letter);
        }
        line
    }

    fn read(&mut self) -> Option<Item> {
        let mut reading = Reading { line: self.line, ..Reading::default() };
        while let Some(letter) = self.peek(0) {
            if reading.text.is_empty() {
                if letter.is_ascii_whitespace() {
                    self.take();
                    continue;
                }
                reading.line = self.line;
            }
            match letter {
                '-' if self.peek(1) == Some('-') => {
                    self.rest_of_line();
                    if !reading.text.is_empty() {
                        reading.text.push('\n');
                    }
                }
                '/' if self.peek(1) == Some('*') => self.comment(&mut reading.text),
                '\'' => {
                    let escapes = reading.word_before().eq_ignore_ascii_case("e");
                    self.quoted('\'', escapes, &mut reading.text);
                }
                '"' => self.quoted('"', false, &mut reading.text),
                '$' if reading.word_before().is_empty() => self.dollar(&mut reading.text),
                ':' => self.variable(&mut reading.text),
                '\\' => {
                    if let Some(item) = self.backslash(&mut reading) {
                        return Some(item);
                    }
                }
                ';' if reading.ends_here() => {
                    self.take();
                    if !reading.text.is_empty() {
                        return Some(Item::Statement(reading.into_statement(None)));
                    }
                }
                letter if letter.is_alphabetic() || letter == '_' => {
                    let word = self.word();
                    reading.word(&word);
                    reading.text.push_str(&word);
                }
                letter => {
                    match letter {
                        '(' => reading.brackets += 1,
                        ')' => reading.brackets = reading.brackets.saturating_sub(1),
                        _ => {}
                    }
                    self.take();
                    reading.text.push(letter);
                }
            }
        }
        // psql sends what is left at the end of a file, too.
        (!reading.text.trim().is_empty()).then(|| Item::Statement(reading.into_statement(None)))
    }

    fn word(&mut self) -> String {
        let mut word = String::new();
        while let Some(letter) =
            self.peek(0).filter(|letter| letter.is_alphanumeric() || "_$".contains(*letter))
        {
            self.take();
            word.push(letter);
        }
        word
    }

    fn comment(&mut self, text: &mut String) {
        let keep = !text.is_empty();
        let mut depth = 0usize;
        while let Some(letter) = self.take() {
            if keep {
                text.push(letter);
            }
            let next = match (letter, self.peek(0)) {
                ('/', Some('*')) => {
                    depth += 1;
                    '*'
                }
                ('*', Some('/')) => {
                    depth -= 1;
                    '/'
                }
                _ => continue,
            };
            self.take();
            if keep {
                text.push(next);
            }
            if depth == 0 {
                break;
            }
        }
    }

    fn quoted(&mut self, quote: char, escapes: bool, text: &mut String) {
        text.extend(self.take());
        while let Some(letter) = self.take() {
            text.push(letter);
            if letter == quote {
                break;
            }
            if letter == '\\' && escapes {
                text.extend(self.take());
            }
        }
    }

    fn dollar(&mut self, text: &mut String) {
        let mut tag = String::from("$");
        let mut ahead = 1;
        while let Some(letter) = self.peek(ahead).filter(|letter| {
            letter.is_alphanumeric() && (ahead > 1 || !letter.is_numeric()) || *letter == '_'
        }) {
            tag.push(letter);
            ahead += 1;
        }
        tag.push('$');
        if self.peek(ahead) != Some('$') {
            text.extend(self.take());
            return;
        }
        let tag: Vec<char> = tag.chars().collect();
        let body = self.at + tag.len();
        let end = (body..self.text.len()).find(|&at| self.text[at..].starts_with(&tag));
        let end = end.map_or(self.text.len(), |end| end + tag.len());
        while self.at < end {
            text.extend(self.take());
        }
    }

    /// `:name`, `:'name'`, `:"name"`, `:{?name}`, when the variable is known; else the colon alone.
    fn variable(&mut self, text: &mut String) {
        let rest = &self.text[self.at + 1..];
        let name = |rest: &[char]| -> String {
            rest.iter().take_while(|letter| letter.is_alphanumeric() || **letter == '_').collect()
        };
        let (form, name) = match rest.first() {
            Some(':') => {
                text.push_str("::");
                self.at += 2;
                return;
            }
            Some('{') if rest.get(1) == Some(&'?') => ('{', name(&rest[2..])),
            Some(quote @ ('\'' | '"')) => (*quote, name(&rest[1..])),
            _ => (' ', name(rest)),
        };
        let length = name.chars().count();
        let closed = |at: usize, with: char| rest.get(at) == Some(&with);
        let (replacement, taken) = match (form, self.variables.get(&name)) {
            ('{', known) if closed(2 + length, '}') => {
                (if known.is_some() { "TRUE" } else { "FALSE" }.to_owned(), length + 4)
            }
            ('\'', Some(value)) if closed(1 + length, '\'') => {
                (format!("'{}'", value.replace('\'', "''")), length + 3)
            }
            ('"', Some(value)) if closed(1 + length, '"') => {
                (format!("\"{}\"", value.replace('"', "\"\"")), length + 3)
            }
            (' ', Some(value)) => (value.clone(), length + 1),
            _ => (":".to_owned(), 1),
        };
        text.push_str(&replacement);
        self.at += taken;
    }

    fn backslash(&mut self, reading: &mut Reading) -> Option<Item> {
        let line = self.line;
        self.take();
        match self.peek(0) {
            Some(letter @ (';' | ':')) => {
                self.take();
                reading.text.push(letter);
                return None;
            }
            Some('\\') => {
                self.take();
                return None;
            }
            _ => {}
        }
        let mut name = String::new();
        while let Some(letter) =
            self.peek(0).filter(|letter| !letter.is_ascii_whitespace() && *letter != '\\')
        {
            self.take();
            name.push(letter);
        }
        let arguments = self.arguments();
        match name.as_str() {
            "if" => {
                let holds = arguments.first().is_some_and(|value| truth(value));
                self.branches.push((holds, holds));
                None
            }
            "elif" => {
                let holds = arguments.first().is_some_and(|value| truth(value));
                if let Some((active, done)) = self.branches.last_mut() {
                    *active = holds && !*done;
                    *done |= holds;
                }
                None
            }
            "else" => {
                if let Some((active, done)) = self.branches.last_mut() {
                    *active = !*done;
                    *done = true;
                }
                None
            }
            "endif" => {
                self.branches.pop();
                None
            }
            "r" | "reset" => {
                *reading = Reading { line, ..Reading::default() };
                None
            }
            name if SENDERS.contains(&name) && !reading.text.trim().is_empty() => {
                let taken = std::mem::take(reading);
                Some(Item::Statement(taken.into_statement(Some((name.to_owned(), arguments)))))
            }
            // A command in the middle of a statement would be done at once; what was read stays.
            _ if !reading.text.trim().is_empty() => None,
            _ => Some(Item::Command { line, name, arguments }),
        }
    }

    /// What follows a backslash command on its line, with quotes taken off and variables put in.
    fn arguments(&mut self) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut current: Option<String> = None;
        while let Some(letter) = self.peek(0).filter(|letter| *letter != '\n') {
            match letter {
                ' ' | '\t' | '\r' => {
                    self.take();
                    arguments.extend(current.take());
                }
                '\\' if self.peek(1) == Some('\\') => {
                    self.at += 2;
                    break;
                }
                ':' => {
                    let mut text = current.take().unwrap_or_default();
                    self.variable(&mut text);
                    // Quoted in the script, bare as an argument: that is how psql reads `:'x'` here.
                    current = Some(text);
                }
                '\'' => {
                    let text = current.get_or_insert_default();
                    self.at += 1;
                    while let Some(letter) = self.peek(0).filter(|letter| *letter != '\n') {
                        self.at += 1;
                        match (letter, self.peek(0)) {
                            ('\'', Some('\'')) => {
                                self.at += 1;
                                text.push('\'');
                            }
                            ('\'', _) => break,
                            ('\\', Some(escaped)) => {
                                self.at += 1;
                                text.push(match escaped {
                                    'n' => '\n',
                                    't' => '\t',
                                    'r' => '\r',
                                    other => other,
                                });
                            }
                            (letter, _) => text.push(letter),
                        }
                    }
                }
                letter => {
                    self.at += 1;
                    current.get_or_insert_default().push(letter);
                }
            }
        }
        arguments.extend(current);
        arguments
    }
}

fn truth(value: &str) -> bool {
    matches!(value.to_ascii_lowercase().as_str(), "true" | "t" | "on" | "1" | "yes" | "y")
}

/// A statement while it is read.
#[derive(Debug, Default)]
struct Reading {
    line: usize,
    text: String,
    brackets: usize,
    /// The first words, in lower case.
    words: Vec<String>,
    /// Open `BEGIN ATOMIC` and `CASE` in the body of a function.
    bodies: usize,
}

impl Reading {
    fn ends_here(&self) -> bool {
        self.brackets == 0 && self.bodies == 0
    }

    fn word(&mut self, word: &str) {
        let word = word.to_ascii_lowercase();
        if self.words.len() < 4 {
            self.words.push(word);
            return;
        }
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        let makes_function = matches!(
            words.as_slice(),
            ["create", "function" | "procedure", ..] | ["create", "or", "replace", "function" | "procedure"]
        );
        if makes_function && self.brackets == 0 {
            match word.as_str() {
                "begin" => self.bodies += 1,
                "case" if self.bodies > 0 => self.bodies += 1,
                "end" => self.bodies = self.bodies.saturating_sub(1),
                _ => {}
            }
        }
    }

    /// The letters directly before: of `E'…'`, or of a name that a `$` belongs to.
    fn word_before(&self) -> &str {
        let end = self.text.len();
        let start = self
            .text
            .char_indices()
            .rev()
            .take_while(|(_, letter)| letter.is_alphanumeric() || "_$".contains(*letter))
            .last()
            .map_or(end, |(at, _)| at);
        &self.text[start..]
    }

    fn into_statement(self, sent_by: Option<(String, Vec<String>)>) -> Statement {
        Statement { line: self.line, text: self.text.trim_end().to_owned(), sent_by }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(text: &str) -> Vec<String> {
        let mut script = Script::new(text, HashMap::from([("x".to_owned(), "a'b".to_owned())]));
        let mut items = Vec::new();
        while let Some(item) = script.next_item() {
            items.push(match item {
                Item::Statement(Statement { line, text, sent_by: None }) => format!("{line}: {text}"),
                Item::Statement(Statement { line, text, sent_by: Some((name, _)) }) => {
                    format!("{line}: {text} \\{name}")
                }
                Item::Command { name, arguments, .. } => format!("\\{name} {}", arguments.join("|")),
            });
        }
        items
    }

    #[test]
    fn statements_end_where_psql_ends_them() {
        assert_eq!(items("-- c ;\n\nselect 1;select 2\n;"), ["3: select 1", "3: select 2"]);
        assert_eq!(
            items("select ';', E'\\';', \";\", $$;$$, $a$;$$;$a$;"),
            ["1: select ';', E'\\';', \";\", $$;$$, $a$;$$;$a$"]
        );
        assert_eq!(
            items("create rule r as do (delete from t; select 1);"),
            ["1: create rule r as do (delete from t; select 1)"]
        );
        let body =
            "create function f() returns int begin atomic select 1; select case when true then 1 end; end";
        assert_eq!(items(&format!("{body};select 2;")), [format!("1: {body}"), "1: select 2".to_owned()]);
        assert_eq!(items("begin;select 1;end;"), ["1: begin", "1: select 1", "1: end"]);
        assert_eq!(items("select 1\\; select 2;"), ["1: select 1; select 2"]);
        assert_eq!(items("select /* ; /* ; */ ; */ 1;"), ["1: select /* ; /* ; */ ; */ 1"]);
    }

    #[test]
    fn commands_and_variables() {
        assert_eq!(
            items("\\set y 'p q' r\nselect 1 as a \\gset p_\nselect :x, :'x', :y::text, a::x;"),
            ["\\set y|p q|r", "2: select 1 as a \\gset", "3: select a'b, 'a''b', :y::text, a::x",]
        );
        assert_eq!(
            items("\\if :{?x}\nselect 1;\n\\else\nselect 2;\n\\endif\nselect 3;"),
            ["2: select 1", "6: select 3"]
        );
        assert_eq!(
            items("\\if false\nselect 1;\n\\elif true\nselect 2;\n\\else\nselect 3;\n\\endif"),
            ["4: select 2"]
        );
    }

    #[test]
    fn data_of_copy() {
        let mut script = Script::new("copy t from stdin;\n1\t;\n\\.\nselect 1;", HashMap::new());
        assert!(matches!(script.next_item(), Some(Item::Statement(_))));
        assert_eq!(script.data(), "1\t;\n");
        assert!(matches!(script.next_item(), Some(Item::Statement(Statement { line: 4, .. }))));
    }
}
