//! `fedgate explain`: what the guard would say, without a server.
//!
//! Invariant: the answer is the guard's own verdict; nothing is judged here.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::guard::{Context, Refusal, Step, Verdict, judge};
use crate::ids::StatementClass;

/// What could not be answered.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    #[error("line {number} is not a JSON object with \"sql\": {problem}")]
    Line { number: usize, problem: serde_json::Error },
    #[error("cannot read or write: {0}")]
    Io(#[from] io::Error),
}

/// Was everything admitted? Exit code 0 or 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Yes,
    No,
}

/// Longest line of `--jsonl` input, in bytes: the longest statement, written with escapes.
const LONGEST_LINE: u64 = 16 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    /// Given back as it is.
    #[serde(default)]
    id: serde_json::Value,
    sql: String,
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

/// Where a byte of the text stands: one-based character, line and column, all of them in characters.
fn place(sql: &str, offset: usize) -> (usize, usize, usize) {
    let mut end = offset.min(sql.len());
    while !sql.is_char_boundary(end) {
        end -= 1;
    }
    let before = sql.get(..end).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before.get(line_start..).unwrap_or_default().chars().count() + 1;
    (before.chars().count() + 1, before.matches('\n').count() + 1, column)
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
        },
        Err(refusal) => Line {
            id,
            verdict: "refuse",
            class: refusal.class.as_str(),
            sqlstate: Some(refusal.sqlstate.as_str()),
            message: Some(&refusal.message),
            detail: refusal.detail.as_deref(),
            hint: refusal.hint.as_deref(),
            position: refusal.offset.map(|offset| place(sql, offset).0),
        },
    }
}

/// Answers each line `{"id":"7","sql":"…"}` with one line, in order. An empty line is passed over.
pub fn jsonl(
    mut input: impl BufRead,
    mut output: impl Write,
    ctx: &Context<'_>,
) -> Result<Answer, ExplainError> {
    let mut answer = Answer::Yes;
    let mut buffer = Vec::new();
    for number in 1.. {
        buffer.clear();
        let read = io::Read::take(&mut input, LONGEST_LINE).read_until(b'\n', &mut buffer)?;
        if read == 0 {
            break;
        }
        if buffer.iter().all(u8::is_ascii_whitespace) {
            continue;
        }
        let question: Question =
            serde_json::from_slice(&buffer).map_err(|problem| ExplainError::Line { number, problem })?;
        let verdict = judge(question.sql.as_bytes(), ctx);
        let summary = summary(&verdict);
        if summary.is_err() {
            answer = Answer::No;
        }
        serde_json::to_writer(&mut output, &line(Some(&question.id), &question.sql, &summary))
            .map_err(io::Error::from)?;
        output.write_all(b"\n")?;
        // Whoever asks line by line waits for the answer.
        output.flush()?;
    }
    Ok(answer)
}

/// Answers for one text as one JSON object.
pub fn json(sql: &str, mut output: impl Write, ctx: &Context<'_>) -> Result<Answer, ExplainError> {
    let verdict = judge(sql.as_bytes(), ctx);
    let summary = summary(&verdict);
    serde_json::to_writer(&mut output, &line(None, sql, &summary)).map_err(io::Error::from)?;
    output.write_all(b"\n")?;
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
                return Ok(Answer::No);
            }
        }
    }
    Ok(Answer::Yes)
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

/// `LINE 1: …` and a caret below what the offset points at.
fn point(sql: &str, offset: usize, output: &mut impl Write) -> io::Result<()> {
    const AROUND: usize = 60;
    let (_, number, column) = place(sql, offset);
    let Some(line) = sql.split('\n').nth(number - 1) else { return Ok(()) };
    let clean: Vec<char> =
        line.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect();
    let start = (column - 1).saturating_sub(AROUND);
    let end = (column - 1 + AROUND).min(clean.len());
    let shown: String = clean.get(start..end).unwrap_or_default().iter().collect();
    let (left, right) = (if start > 0 { "…" } else { "" }, if end < clean.len() { "…" } else { "" });
    let prefix = format!("LINE {number}: {left}");
    writeln!(output, "{prefix}{shown}{right}")?;
    let indent = prefix.chars().count() + column - 1 - start;
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
    fn a_line_that_is_no_question_is_an_error_with_its_number() {
        let error = with_context(|ctx| jsonl("{\"sql\":\"SELECT 1\"}\n{}\n".as_bytes(), Vec::new(), ctx))
            .unwrap_err();
        assert!(error.to_string().starts_with("line 2 is not"), "{error}");
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
