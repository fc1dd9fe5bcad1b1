//! The end user whom a query engine names in a comment behind each statement.
//!
//! Invariant: only a block comment that is the very last token of the text, and the only one of the
//! configured shape, names anybody; whoever writes SQL inside the statement can name no one.

use super::lexer::{self, Item, Lexer};
use crate::ids::EndUser;

/// The shape of the comment, as the engine is configured to render it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommentFormat {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Literal(String),
    User,
    Query,
    /// `$SOURCE`, `$TRACE_TOKEN`: rendered, but of no use here.
    Ignored,
}

/// Why a text is no comment format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("the format must name $USER exactly once, as its last part")]
    User,
    #[error("the format must begin with a word of its own, so that no other comment looks like it")]
    Prefix,
    #[error("the format may name $QUERY_ID, $USER, $SOURCE and $TRACE_TOKEN, each once, parted by text")]
    Variables,
    #[error("the format may not hold comment signs or line ends")]
    Sign,
}

impl CommentFormat {
    /// Parses a Trino `query.comment-format` such as `fedgate query=$QUERY_ID user=$USER`.
    pub fn parse(format: &str) -> Result<Self, FormatError> {
        if ["*/", "/*", "\n", "\r"].iter().any(|sign| format.contains(sign)) {
            return Err(FormatError::Sign);
        }
        let mut parts: Vec<Part> = Vec::new();
        let mut rest = format;
        while let Some(dollar) = rest.find('$') {
            let (literal, variable) = rest.split_at(dollar);
            if !literal.is_empty() {
                parts.push(Part::Literal(literal.to_owned()));
            } else if !parts.is_empty() {
                return Err(FormatError::Variables);
            }
            let known = [
                ("$QUERY_ID", Part::Query),
                ("$USER", Part::User),
                ("$SOURCE", Part::Ignored),
                ("$TRACE_TOKEN", Part::Ignored),
            ];
            let (part, after) = known
                .into_iter()
                .find_map(|(name, part)| variable.strip_prefix(name).map(|after| (part, after)))
                .ok_or(FormatError::Variables)?;
            if part != Part::Ignored && parts.contains(&part) {
                return Err(FormatError::Variables);
            }
            parts.push(part);
            rest = after;
        }
        if !rest.is_empty() || parts.last() != Some(&Part::User) {
            return Err(FormatError::User);
        }
        match parts.first() {
            Some(Part::Literal(literal)) if literal.trim().len() >= 3 => Ok(Self { parts }),
            _ => Err(FormatError::Prefix),
        }
    }

    fn prefix(&self) -> &str {
        match self.parts.first() {
            Some(Part::Literal(literal)) => literal.trim(),
            _ => "",
        }
    }

    /// Could this comment be meant as one of this shape?
    fn resembles(&self, comment: &str) -> bool {
        comment.contains(self.prefix())
    }

    fn read(&self, comment: &str) -> Option<EndUser> {
        let mut rest = comment;
        let (mut user, mut query) = ("", "");
        let mut parts = self.parts.iter().peekable();
        while let Some(part) = parts.next() {
            if let Part::Literal(literal) = part {
                rest = rest.strip_prefix(literal.as_str())?;
                continue;
            }
            let end = match parts.peek() {
                Some(Part::Literal(literal)) => rest.find(literal.as_str())?,
                _ => rest.len(),
            };
            let (value, after) = rest.split_at(end);
            rest = after;
            match part {
                Part::User => user = value,
                Part::Query => {
                    // A query id is letters, digits and underscores; a space in it would be a forgery.
                    if !value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
                        return None;
                    }
                    query = value;
                }
                Part::Ignored => {
                    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
                    if !value.bytes().all(plain) {
                        return None;
                    }
                }
                Part::Literal(_) => {}
            }
        }
        let bounded = !user.is_empty() && user.len() <= 256 && query.len() <= 128;
        let clean = !user.chars().any(char::is_control) && user.trim() == user;
        (bounded && clean).then(|| EndUser { user: user.into(), query: query.into() })
    }
}

/// The end user of a statement that came over the login of an engine user.
///
/// `None` when the text names none in the way that can be trusted: nobody is known then.
pub fn end_user(text: &[u8], format: &CommentFormat) -> Option<EndUser> {
    let text = lexer::utf8(text).ok()?;
    let mut lexer = Lexer::new(text);
    let mut last: Option<lexer::Comment> = None;
    let mut alike = 0usize;
    loop {
        match lexer.next_item().ok()? {
            None => break,
            Some(Item::Token(_)) => last = None,
            Some(Item::Comment(comment)) => {
                last = Some(comment);
                if format.resembles(text.get(comment.start..comment.end)?) {
                    alike += 1;
                }
            }
        }
    }
    let last = last.filter(|comment| comment.block)?;
    // Nothing at all may follow it, and nobody else may have written one like it.
    if last.end != text.len() || alike != 1 {
        return None;
    }
    let body = text.get(last.start + 2..last.end - 2)?;
    if body.contains("/*") || body.contains("*/") {
        return None;
    }
    format.read(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(text: &str) -> Option<(String, String)> {
        let format = CommentFormat::parse("fedgate query=$QUERY_ID user=$USER").unwrap();
        end_user(text.as_bytes(), &format).map(|end| (end.user.into(), end.query.into()))
    }

    #[test]
    fn the_engine_names_its_user() {
        assert_eq!(
            named("SELECT 1 /*fedgate query=20261123_002213_00000_v3s6c user=alice*/"),
            Some(("alice".to_owned(), "20261123_002213_00000_v3s6c".to_owned()))
        );
        assert_eq!(named("SELECT 1 /*fedgate query=q user=al@x.org*/").unwrap().0, "al@x.org");
        assert_eq!(named("SELECT 1 /*fedgate query=q user=a b user=c*/").unwrap().0, "a b user=c");
    }

    #[test]
    fn nobody_else_names_anyone() {
        for text in [
            "SELECT 1",
            "SELECT 1 -- fedgate query=q user=root",
            "SELECT '/*fedgate query=q user=root*/'",
            "SELECT 1 /*fedgate query=q user=root*/ ",
            "SELECT 1 /*fedgate query=q user=root*/;",
            "SELECT 1 /*fedgate query=q user=root*/ -- /*fedgate query=q user=m*/",
            "SELECT 1 /*fedgate query=q user=root*/ /*fedgate query=q user=m*/",
            "SELECT 1 /* /*fedgate query=q user=root*/ */",
            "SELECT 1 /*fedgate query=q user=bob*/ /*x*/",
            "SELECT 1 /*fedgate query=q user=*/",
            "SELECT 1 /*fedgate query=q x user=root*/",
            "SELECT 1 /* fedgate query=q user=root*/",
            "SELECT 1 /*fedgate query=q user=root",
            "SELECT $$ /*fedgate query=q user=root*/",
        ] {
            assert_eq!(named(text), None, "{text}");
        }
    }

    #[test]
    fn formats_that_could_be_forged_are_errors() {
        assert!(CommentFormat::parse("trino user=$USER query=$QUERY_ID").is_err());
        assert_eq!(CommentFormat::parse("$USER"), Err(FormatError::Prefix));
        assert_eq!(CommentFormat::parse("fedgate query=$QUERY_ID"), Err(FormatError::User));
        assert_eq!(CommentFormat::parse("fedgate $QUERY_ID$USER"), Err(FormatError::Variables));
        assert_eq!(CommentFormat::parse("fedgate */ $USER"), Err(FormatError::Sign));
        assert!(CommentFormat::parse("fedgate source=$SOURCE query=$QUERY_ID user=$USER").is_ok());
    }
}
