//! Fully qualified names as OpenMetadata writes them.
//!
//! Invariant: four parts or an error; a name is never cut at a dot of its own.

/// Why a text is no name of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FqnError {
    #[error("it has {0} parts where service, database, schema and table are four")]
    Parts(usize),
    #[error("a part is empty")]
    Empty,
    #[error("a quote is out of place")]
    Quote,
}

/// What OpenMetadata writes for letters that its names reserve.
const RESERVED: &[(&str, &str)] =
    &[("__reserved__colon__", "::"), ("__reserved__arrow__", ">"), ("__reserved__quote__", "\"")];

/// Service, database, schema and table. A part stands in quotes when it holds a dot or a quote, which is doubled then.
///
/// # Errors
/// It has not four parts, or a quote is out of place.
pub fn split(name: &str) -> Result<[String; 4], FqnError> {
    let mut parts = Vec::with_capacity(4);
    let mut rest = Some(name);
    while let Some(text) = rest {
        let (part, after) = match text.strip_prefix('"') {
            Some(text) => quoted_part(text)?,
            None => {
                let end = text.find('.').unwrap_or(text.len());
                let (part, after) = text.split_at_checked(end).unwrap_or((text, ""));
                if part.contains('"') {
                    return Err(FqnError::Quote);
                }
                (part.to_owned(), after)
            }
        };
        if part.is_empty() {
            return Err(FqnError::Empty);
        }
        parts.push(decoded(&part));
        rest = after.strip_prefix('.');
        if rest.is_none() && !after.is_empty() {
            return Err(FqnError::Quote);
        }
    }
    let count = parts.len();
    parts.try_into().map_err(|_| FqnError::Parts(count))
}

/// The part after its first quote, and what follows its last.
fn quoted_part(text: &str) -> Result<(String, &str), FqnError> {
    let mut part = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('"') {
        part.push_str(before);
        match after.strip_prefix('"') {
            Some(after) => {
                part.push('"');
                rest = after;
            }
            None => return Ok((part, after)),
        }
    }
    Err(FqnError::Quote)
}

/// A name without OpenMetadata's own spelling of reserved letters.
pub(super) fn decoded(name: &str) -> String {
    RESERVED.iter().fold(name.to_owned(), |name, (written, meant)| name.replace(written, meant))
}

/// A part as OpenMetadata writes it.
pub(super) fn quoted(part: &str) -> String {
    if part.contains(['.', '"']) { format!("\"{}\"", part.replace('"', "\"\"")) } else { part.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let cases: &[(&str, Result<[&str; 4], FqnError>)] = &[
            ("pg_lab.shop.public.customers", Ok(["pg_lab", "shop", "public", "customers"])),
            ("pg_lab.shop.public.\"a.dotted\"", Ok(["pg_lab", "shop", "public", "a.dotted"])),
            ("\"p.g\".shop.\"pu\"\"b\".with space", Ok(["p.g", "shop", "pu\"b", "with space"])),
            ("s.d.h.a__reserved__quote__b", Ok(["s", "d", "h", "a\"b"])),
            ("s.d.h.a__reserved__colon__b__reserved__arrow__", Ok(["s", "d", "h", "a::b>"])),
            ("s.d.h.\u{e9}t\u{e9}", Ok(["s", "d", "h", "\u{e9}t\u{e9}"])),
            ("s.d.h", Err(FqnError::Parts(3))),
            ("s.d.h.t.c", Err(FqnError::Parts(5))),
            ("", Err(FqnError::Empty)),
            ("s..h.t", Err(FqnError::Empty)),
            ("s.d.h.t.", Err(FqnError::Empty)),
            ("s.d.h.\"\"", Err(FqnError::Empty)),
            ("s.d.h.\"open", Err(FqnError::Quote)),
            ("s.d.h.\"a\"b", Err(FqnError::Quote)),
            ("s.d.h.a\"b\"", Err(FqnError::Quote)),
        ];
        for (name, want) in cases {
            let want = want.map(|parts| parts.map(str::to_owned));
            assert_eq!(split(name), want, "{name}");
            if let Ok(parts) = want {
                let again: Vec<String> = parts.iter().map(|part| quoted(part)).collect();
                assert_eq!(split(&again.join(".")), Ok(parts));
            }
        }
    }
}
