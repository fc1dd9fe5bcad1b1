//! `fedgate explain`: what the guard would say, without a server.
//!
//! Invariant: the answer is the guard's own verdict; nothing is judged here.

use std::borrow::Cow;
use std::collections::HashSet;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Write};

use serde::{Deserialize, Serialize};
use unicode_width::UnicodeWidthChar;

use crate::guard::{Context, Findings, FoundKind, Refusal, Step, Verdict, VerdictCache, found, judge};
use crate::ids::StatementClass;

/// What could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    #[error("cannot read or write: {0}")]
    Io(#[from] io::Error),
}

/// Was everything admitted? Exit code 0, 1 or 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Answer {
    Yes,
    No,
    /// Something could not be answered.
    Unknown,
}

/// Longest line of `--jsonl` input, in bytes: the longest statement, written with escapes.
const LONGEST_LINE: u64 = 16 << 20;
/// Bytes read, and written, at once.
const BUFFER: usize = 64 << 10;
/// Bytes of verdicts that are remembered between lines.
const CACHE_BYTES: usize = 16 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question<'a> {
    /// Given back as it is.
    #[serde(default)]
    id: serde_json::Value,
    #[serde(borrow)]
    sql: Cow<'a, str>,
    /// Of use where masks are known.
    #[serde(default)]
    #[expect(dead_code, reason = "accepted, so that the same lines serve where masks are known")]
    subject: Option<String>,
}

/// One line of `--jsonl` output.
#[derive(Serialize)]
struct Line<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<&'a serde_json::Value>,
    verdict: &'static str,
    class: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sqlstate: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hint: Option<&'a str>,
    /// One-based, in characters, as in an ErrorResponse.
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    functions: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tables: Option<Vec<String>>,
}

/// The names of one kind, each once, in the order of the text.
fn names(found: &Findings, kind: FoundKind) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let mut seen = HashSet::new();
    for found in found.names.iter().filter(|found| found.kind == kind && found.offset.is_some()) {
        let name = found.name.iter().map(|part| shown(part)).collect::<Vec<_>>().join(".");
        if seen.insert(name.clone()) {
            names.push(name);
        }
    }
    names
}

/// A name as it would be written.
fn shown(part: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    if part.bytes().all(plain) { part.to_owned() } else { format!("\"{}\"", part.replace('"', "\"\"")) }
}

/// The refusal of a verdict, or the class of its weightiest statement.
fn summary(verdict: &Verdict) -> Result<StatementClass, &Refusal> {
    let mut class = StatementClass::Empty;
    for step in &verdict.steps {
        match step {
            Step::Refuse(refusal) => return Err(refusal),
            Step::Admit(admitted) => {
                if weight(admitted.class) > weight(class) {
                    class = admitted.class;
                }
            }
        }
    }
    Ok(class)
}

fn weight(class: StatementClass) -> u8 {
    match class {
        StatementClass::Empty => 0,
        StatementClass::Session => 1,
        StatementClass::Transaction => 2,
        StatementClass::Read => 3,
        StatementClass::Write => 4,
    }
}

/// Which character of the text a byte is part of, one-based as in an ErrorResponse.
fn position(sql: &str, offset: usize) -> usize {
    sql.char_indices().take_while(|(at, _)| *at < offset).count() + 1
}

fn line<'a>(
    id: Option<&'a serde_json::Value>,
    sql: &str,
    summary: &'a Result<StatementClass, &'a Refusal>,
) -> Line<'a> {
    match summary {
        Ok(class) => Line {
            id,
            verdict: "admit",
            class: class.as_str(),
            sqlstate: None,
            message: None,
            detail: None,
            hint: None,
            position: None,
            functions: None,
            tables: None,
        },
        Err(refusal) => Line {
            id,
            verdict: "refuse",
            class: refusal.class.as_str(),
            sqlstate: Some(refusal.sqlstate.as_str()),
            message: Some(&refusal.message),
            detail: refusal.detail.as_deref(),
            hint: refusal.hint.as_deref(),
            position: refusal.offset.map(|offset| position(sql, offset)),
            functions: None,
            tables: None,
        },
    }
}

/// Answers each line `{"id":"7","sql":"…"}` with one line, in order. An empty line is passed over; one that
/// cannot be answered gets `"verdict":"error"` and the next one its turn.
///
/// Holds one line at a time and the verdicts of a bounded cache, however many lines come.
///
/// # Errors
/// What cannot be read or written. Whoever does not want to read on is no error.
pub fn jsonl(input: impl Read, output: impl Write, ctx: &Context<'_>) -> Result<Answer, ExplainError> {
    let mut input = BufReader::with_capacity(BUFFER, input);
    let mut output = BufWriter::with_capacity(BUFFER, output);
    let cache = VerdictCache::new(CACHE_BYTES);
    let mut answer = Answer::Yes;
    let mut buffer = Vec::new();
    for number in 1.. {
        // Whoever asks line by line waits for the answer.
        if memchr::memchr(b'\n', input.buffer()).is_none() {
            match output.flush() {
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(answer),
                flushed => flushed?,
            }
        }
        let Some(whole) = next_line(&mut input, &mut buffer)? else { break };
        if whole && buffer.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let answered = if whole {
            match serde_json::from_slice::<Question<'_>>(&buffer) {
                Ok(question) => {
                    let verdict = cache.judge(question.sql.as_bytes(), ctx, 0);
                    let summary = summary(&verdict);
                    if summary.is_err() {
                        answer = answer.max(Answer::No);
                    }
                    write_line(&mut output, &line(Some(&question.id), &question.sql, &summary))
                }
                Err(problem) => {
                    answer = Answer::Unknown;
                    let message = format!("the line is not a JSON object with \"sql\": {problem}");
                    write_line(&mut output, &Unanswered { verdict: "error", line: number, message })
                }
            }
        } else {
            answer = Answer::Unknown;
            let message = format!("the line is longer than {LONGEST_LINE} bytes");
            write_line(&mut output, &Unanswered { verdict: "error", line: number, message })
        };
        match answered {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(answer),
            written => written?,
        }
    }
    match output.flush() {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(answer),
    }
}

/// A line that has no verdict.
#[derive(Serialize)]
struct Unanswered {
    verdict: &'static str,
    /// One-based.
    line: usize,
    message: String,
}

fn write_line(mut output: impl Write, line: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut output, line).map_err(io::Error::from)?;
    output.write_all(b"\n")
}

/// Reads a line, its end included; `Some(false)`: it is longer than is read, and was passed over.
fn next_line(input: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<Option<bool>> {
    line.clear();
    let read = Read::take(&mut *input, LONGEST_LINE).read_until(b'\n', line)?;
    if read == 0 {
        return Ok(None);
    }
    if line.ends_with(b"\n") || (read as u64) < LONGEST_LINE {
        return Ok(Some(true));
    }
    line.clear();
    loop {
        let part = match input.fill_buf() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            part => part?,
        };
        match memchr::memchr(b'\n', part) {
            Some(end) => {
                input.consume(end + 1);
                return Ok(Some(false));
            }
            None if part.is_empty() => return Ok(Some(false)),
            None => {
                let length = part.len();
                input.consume(length);
            }
        }
    }
}

/// Answers for one text as one JSON object.
pub fn json(sql: &str, mut output: impl Write, ctx: &Context<'_>) -> Result<Answer, ExplainError> {
    let verdict = judge(sql.as_bytes(), ctx);
    let summary = summary(&verdict);
    let found = found(sql.as_bytes(), ctx.limits);
    let answer = Line {
        functions: Some(names(&found, FoundKind::Function)),
        tables: Some(names(&found, FoundKind::Relation)),
        ..line(None, sql, &summary)
    };
    write_line(&mut output, &answer)?;
    Ok(if summary.is_ok() { Answer::Yes } else { Answer::No })
}

/// Answers for one text, for people: one line a statement, and psql's way of pointing at what decided.
pub fn text(sql: &str, mut output: impl Write, ctx: &Context<'_>) -> Result<Answer, ExplainError> {
    let verdict = judge(sql.as_bytes(), ctx);
    if verdict.steps.is_empty() {
        writeln!(output, "admit: no statement")?;
    }
    for step in &verdict.steps {
        match step {
            Step::Admit(admitted) => {
                let text = String::from_utf8_lossy(admitted.permit.text());
                writeln!(output, "admit ({}): {}", admitted.class.as_str(), excerpt(&text))?;
            }
            Step::Refuse(refusal) => {
                writeln!(
                    output,
                    "refuse ({}, {}): {}",
                    refusal.class.as_str(),
                    refusal.sqlstate,
                    refusal.message
                )?;
                if let Some(offset) = refusal.offset {
                    point(sql, offset, &mut output)?;
                }
                if let Some(detail) = &refusal.detail {
                    writeln!(output, "DETAIL:  {detail}")?;
                }
                if let Some(hint) = &refusal.hint {
                    writeln!(output, "HINT:  {hint}")?;
                }
                write_names(sql, &mut output, ctx)?;
                return Ok(Answer::No);
            }
        }
    }
    write_names(sql, &mut output, ctx)?;
    Ok(Answer::Yes)
}

/// What the text names, if anything.
fn write_names(sql: &str, output: &mut impl Write, ctx: &Context<'_>) -> io::Result<()> {
    const MOST: usize = 20;
    let found = found(sql.as_bytes(), ctx.limits);
    for (label, kind) in [("functions", FoundKind::Function), ("tables", FoundKind::Relation)] {
        let mut names = names(&found, kind);
        let more = names.len().saturating_sub(MOST);
        names.truncate(MOST);
        if !names.is_empty() {
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            writeln!(output, "{label}: {}{more}", names.join(", "))?;
        }
    }
    Ok(())
}

/// The first words of a statement, on one line.
fn excerpt(text: &str) -> String {
    const CHARACTERS: usize = 72;
    let mut line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(CHARACTERS) {
        line.truncate(end);
        line.push('…');
    }
    line
}

/// `LINE 1: …` and a caret below what the offset points at, as libpq's `reportErrorPosition` cuts and
/// counts: at most 60 columns, tabs as one, wide characters as two, `\r\n` as one line's end.
fn point(sql: &str, offset: usize, output: &mut impl Write) -> io::Result<()> {
    const DISPLAY: usize = 60;
    const RIGHT: usize = 10;
    let wanted = position(sql, offset) - 1;
    let (mut number, mut begin, mut before) = (1, 0, None);
    let mut characters = Vec::new();
    let mut columns = Vec::new();
    let mut column = 0;
    for (at, letter) in sql.chars().enumerate() {
        if matches!(letter, '\r' | '\n') {
            if at >= wanted {
                break;
            }
            if letter == '\r' || before != Some('\r') {
                number += 1;
            }
            begin = at + 1;
        }
        before = Some(letter);
        // Nothing of a text moves the terminal's cursor.
        characters.push(if letter.is_control() { ' ' } else { letter });
        columns.push(column);
        column += letter.width().unwrap_or(1).max(1);
    }
    let mut end = characters.len();
    columns.push(column);
    let column = |at: usize| columns.get(at).copied().unwrap_or_default();
    let (mut left, mut right) = ("", "");
    if column(end) - column(begin) > DISPLAY {
        if column(begin) + DISPLAY < column(wanted) + RIGHT {
            while column(wanted) + RIGHT < column(end) {
                end -= 1;
                right = "...";
            }
            while column(end) - column(begin) > DISPLAY {
                begin += 1;
                left = "...";
            }
        } else {
            while column(end) - column(begin) > DISPLAY {
                end -= 1;
            }
            right = "...";
        }
    }
    let shown: String = characters.get(begin..end).unwrap_or_default().iter().collect();
    let prefix = format!("LINE {number}: {left}");
    writeln!(output, "{prefix}{shown}{right}")?;
    let indent = prefix.len() + column(wanted.max(begin)) - column(begin);
    writeln!(output, "{}^", " ".repeat(indent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::Mode;
    use crate::ids::SourceName;
    use crate::sql::Limits;
    use crate::sql::catalogue::Catalogue;

    fn with_context<R>(ask: impl FnOnce(&Context<'_>) -> R) -> R {
        let catalogue = Catalogue::stock(15).unwrap();
        let (limits, source) = (Limits::default(), SourceName::new("climscore"));
        ask(&Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source })
    }

    #[test]
    fn lines_are_answered_in_order() {
        let input = "{\"id\":\"7\",\"sql\":\"SELECT 1\"}\n\n{\"id\":8,\"sql\":\"SELECT 'é'; DROP TABLE x\",\"subject\":\"bob\"}\n";
        let mut output = Vec::new();
        let answer = with_context(|ctx| jsonl(input.as_bytes(), &mut output, ctx)).unwrap();
        assert_eq!(answer, Answer::No);
        let output = String::from_utf8(output).unwrap();
        let mut lines = output.lines();
        assert_eq!(lines.next(), Some("{\"id\":\"7\",\"verdict\":\"admit\",\"class\":\"read\"}"));
        let second: serde_json::Value = serde_json::from_str(lines.next().unwrap()).unwrap();
        assert_eq!(second["id"], 8);
        assert_eq!(second["verdict"], "refuse");
        assert_eq!(second["class"], "write");
        assert_eq!(second["sqlstate"], "25006");
        assert_eq!(second["message"], "cannot execute DROP TABLE in a read-only transaction");
        assert!(second["detail"].as_str().unwrap().contains("climscore"));
        assert_eq!(second["position"], 13);
        assert_eq!(lines.next(), None);
    }

    #[test]
    fn a_line_that_is_no_question_is_answered_as_such_and_the_next_one_has_its_turn() {
        let long = format!("{{\"sql\":\"{}\"}}", "x".repeat(LONGEST_LINE as usize));
        let input = format!("{{\"sql\":\"SELECT 1\"}}\n{{}}\n\u{1}\n{long}\n{{\"id\":5,\"sql\":\"\"}}");
        let mut output = Vec::new();
        let answer = with_context(|ctx| jsonl(input.as_bytes(), &mut output, ctx)).unwrap();
        assert_eq!((answer, answer.exit_code()), (Answer::Unknown, 2));
        let output = String::from_utf8(output).unwrap();
        let lines: Vec<serde_json::Value> =
            output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let verdicts: Vec<&str> = lines.iter().map(|line| line["verdict"].as_str().unwrap()).collect();
        assert_eq!(verdicts, ["admit", "error", "error", "error", "admit"]);
        assert_eq!(lines[1]["line"], 2);
        assert!(lines[3]["message"].as_str().unwrap().contains("longer than"));
        assert_eq!(lines[4]["class"], "empty");
    }

    #[test]
    fn a_reader_that_has_had_enough_is_no_error() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let input = "{\"sql\":\"DROP TABLE t\"}\n".repeat(10_000);
        let answer = with_context(|ctx| jsonl(input.as_bytes(), Closed, ctx)).unwrap();
        assert_eq!(answer, Answer::No);
    }

    /// The caret by libpq's own rules.
    #[test]
    fn the_caret_stands_where_psql_puts_it() {
        let pointed = |sql: &str, at: &str| {
            let mut output = Vec::new();
            point(sql, sql.find(at).unwrap(), &mut output).unwrap();
            String::from_utf8(output).unwrap()
        };
        assert_eq!(pointed("SELECT x", "x"), "LINE 1: SELECT x\n               ^\n");
        assert_eq!(pointed("SELECT\n\t'日本', x\nFROM t", "x"), "LINE 2:  '日本', x\n                 ^\n");
        assert_eq!(pointed("a\r\nb\rc", "c"), "LINE 3: c\n        ^\n");
        let long = format!("SELECT {}x{}", "a, ".repeat(30), ", b".repeat(30));
        assert_eq!(
            pointed(&long, "x"),
            "LINE 1: ..., a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, a, x, b, b, b...\n                                                             ^\n"
        );
        let right = format!("SELECT x{}", ", b".repeat(30));
        assert_eq!(
            pointed(&right, "x"),
            "LINE 1: SELECT x, b, b, b, b, b, b, b, b, b, b, b, b, b, b, b, b, b,...\n               ^\n"
        );
    }

    #[test]
    fn people_are_shown_where() {
        let mut output = Vec::new();
        let answer =
            with_context(|ctx| text("SELECT 1;\nSELECT a,\tnextval('s')", &mut output, ctx)).unwrap();
        assert_eq!(answer, Answer::No);
        let output = String::from_utf8(output).unwrap();
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!(lines[0], "admit (read): SELECT 1");
        assert_eq!(lines[1], "refuse (function, 42501): permission denied for function nextval");
        assert_eq!(lines[2], "LINE 2: SELECT a, nextval('s')");
        assert_eq!(lines[3], "                  ^");
        assert!(lines[4].starts_with("DETAIL:  "));
    }

    #[test]
    fn an_offset_beyond_the_text_points_at_its_end() {
        let mut output = Vec::new();
        let answer = with_context(|ctx| text("SELECT (", &mut output, ctx)).unwrap();
        assert_eq!(answer, Answer::No);
    }
}
