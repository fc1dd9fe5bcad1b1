//! The proof that a text was judged and admitted.
//!
//! Invariant: only `guard` can make one, and it holds the very bytes that were judged.

use bytes::Bytes;

/// The proof of an admitted statement, without which nothing is sent upstream.
#[derive(Clone, Debug)]
pub struct Permit {
    text: Bytes,
}

impl Permit {
    pub(super) fn new(text: Bytes) -> Self {
        Self { text }
    }

    /// A text without any statement: it draws EmptyQueryResponse and nothing else.
    pub fn empty() -> Self {
        Self { text: Bytes::new() }
    }

    /// `SET application_name`, with the gateway's prefix before the client's own name.
    ///
    /// Sent in the place of a client's own SET, which was judged; the text is the gateway's but for
    /// one string constant. Relies on `standard_conforming_strings`, which is pinned.
    pub fn application_name(prefix: &str, name: &str) -> Self {
        let separator = if name.is_empty() { "" } else { " " };
        let value = constant(&format!("{prefix}{separator}{name}"));
        Self { text: Bytes::from(format!("SET application_name = {value}")) }
    }

    /// Brings a session that clients share into the state that the next one left: settings to take back, settings to
    /// make, and the name to go by.
    ///
    /// Names and values are those that the source itself has told of a client's session, which was judged as it
    /// came to them; the rest is the gateway's own text.
    pub fn settings<'s>(
        reset: impl IntoIterator<Item = &'s str>,
        set: impl IntoIterator<Item = (&'s str, &'s str)>,
        application_name: Option<&str>,
    ) -> Self {
        let mut text = String::new();
        for name in reset {
            let name: Vec<String> =
                name.split('.').map(|part| format!("\"{}\"", part.replace('"', "\"\""))).collect();
            text.push_str(&format!("RESET {};", name.join(".")));
        }
        for (at, (name, value)) in set.into_iter().enumerate() {
            text.push_str(if at == 0 { "SELECT " } else { "," });
            text.push_str(&format!("pg_catalog.set_config({},{},false)", constant(name), constant(value)));
        }
        if !text.is_empty() && !text.ends_with(';') {
            text.push(';');
        }
        if let Some(name) = application_name {
            text.push_str(&format!("SET application_name={}", constant(name)));
        }
        Self { text: Bytes::from(text) }
    }

    /// What a client has left in its session: its settings (`s`), statements that SQL prepared (`p`), cursors that
    /// are still open (`c`). Three columns: which of them, its name, its value.
    pub fn state() -> Self {
        Self {
            text: Bytes::from_static(
                b"SELECT 's',name,pg_catalog.current_setting(name) FROM pg_catalog.pg_settings \
                  WHERE source OPERATOR(pg_catalog.=) 'session' \
                  UNION ALL SELECT 's',n,pg_catalog.current_setting(n,true) FROM (VALUES \
                  ('hnsw.ef_search'),('ivfflat.probes'),('pg_trgm.similarity_threshold'),\
                  ('pg_trgm.strict_word_similarity_threshold'),('pg_trgm.word_similarity_threshold')) AS v(n) \
                  WHERE pg_catalog.current_setting(n,true) OPERATOR(pg_catalog.<>) '' AND NOT EXISTS \
                  (SELECT FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.=) n) \
                  UNION ALL SELECT 'p',name,'' FROM pg_catalog.pg_prepared_statements WHERE from_sql \
                  UNION ALL SELECT 'c',name,'' FROM pg_catalog.pg_cursors",
            ),
        }
    }

    /// Ends the transaction that a client has left open.
    pub fn rollback() -> Self {
        Self { text: Bytes::from_static(b"ROLLBACK") }
    }

    /// Ends all that a client has left in its session.
    pub fn discard_all() -> Self {
        Self { text: Bytes::from_static(b"DISCARD ALL") }
    }

    /// The bytes that were judged: valid UTF-8, no NUL.
    pub fn text(&self) -> &[u8] {
        &self.text
    }
}

/// A string constant. Relies on `standard_conforming_strings`, which is pinned; no text holds a NUL.
fn constant(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''").replace('\0', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_quoted() {
        let text = |permit: Permit| String::from_utf8(permit.text().to_vec()).unwrap();
        let none = || std::iter::empty::<(&str, &str)>();
        assert_eq!(text(Permit::settings([], none(), Some("a'b"))), "SET application_name='a''b'");
        assert_eq!(
            text(Permit::settings(["hnsw.ef_search", "x\"y"], [("TimeZone", "it's"), ("a", "b")], None)),
            "RESET \"hnsw\".\"ef_search\";RESET \"x\"\"y\";\
             SELECT pg_catalog.set_config('TimeZone','it''s',false),pg_catalog.set_config('a','b',false);"
        );
    }
}
