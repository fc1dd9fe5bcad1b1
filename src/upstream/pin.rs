//! The settings that every session at a source stands on.
//!
//! Invariant: a session is handed out only after the server itself said that each pin holds.
//!
//! The pins travel in the StartupMessage, as `options=-c …`. There they outrank what the database,
//! the role or the server's configuration say, and they are what `RESET ALL` and `DISCARD ALL`
//! return to; a SET after the start would be undone by both. The client's own startup settings
//! come after the `options` in the server's eyes and would win, so none of them may name a pin.
//!
//! `client_encoding` is UTF-8 whatever the database is encoded in: the server converts, and no
//! conversion yields an ASCII byte for a character that is none, so what was judged is what is
//! read. An SQL_ASCII server does not convert at all: it reads the judged bytes as they are, all of
//! its syntax is ASCII, and bytes above 127 are letters to it; so such a server is accepted, and
//! what it returns may be no UTF-8, as without a gateway.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use postgres_protocol::message::frontend;

use crate::config;
use crate::guard::Mode;
use crate::upstream::error::Failure;

/// PostgreSQL closes the connection on a longer StartupMessage (`MAX_STARTUP_PACKET_LENGTH`).
const MAX_STARTUP_BYTES: usize = 10_000;
/// `statement_timeout` and its like are a count of milliseconds in an `int`.
const MAX_MILLISECONDS: u128 = i32::MAX as u128;
/// The gateway's own queries at a source take no longer.
const OWN_STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// What a session is opened for.
#[derive(Clone, Debug)]
pub struct Opening {
    pub mode: Mode,
    /// Says at the source who is behind the session.
    pub application_name: String,
    /// The client's startup settings, already judged. What names a pin or `application_name` is not sent.
    pub settings: Vec<(String, String)>,
}

/// The pins of one session, as `(setting, value)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pins {
    mode: Mode,
}

impl Pins {
    pub fn new(mode: Mode) -> Self {
        Self { mode }
    }

    /// The settings that must hold for the whole life of the session.
    pub fn all(self) -> [(&'static str, &'static str); 3] {
        let read_only = match self.mode {
            Mode::ReadOnly => "on",
            Mode::ReadWrite => "off",
        };
        [
            ("default_transaction_read_only", read_only),
            ("standard_conforming_strings", "on"),
            ("client_encoding", "UTF8"),
        ]
    }

    /// The value that `setting` must have, where it is pinned.
    pub fn wanted(self, setting: &str) -> Option<&'static str> {
        self.all().into_iter().find(|(name, _)| name.eq_ignore_ascii_case(setting)).map(|(_, value)| value)
    }

    /// Whether a ParameterStatus says that a pin came loose; such a session is to be closed.
    pub fn broken_by(self, setting: &str, value: &str) -> bool {
        self.wanted(setting).is_some_and(|wanted| wanted != value)
    }

    /// The pins that the server did not report, or the first that does not hold.
    pub(super) fn check(
        self,
        reported: &[(String, String)],
    ) -> Result<Vec<(&'static str, &'static str)>, Failure> {
        let mut silent = Vec::new();
        for (setting, wanted) in self.all() {
            match reported.iter().find(|(name, _)| name == setting) {
                Some((_, found)) if found == wanted => {}
                Some((_, found)) => {
                    return Err(Failure::Pin { setting, wanted, found: Some(found.clone()) });
                }
                None => silent.push((setting, wanted)),
            }
        }
        Ok(silent)
    }
}

/// The StartupMessage (protocol 3.0) that pins a session.
///
/// Time-outs are the second wall behind the gateway's own clock. They are not pins: any client may
/// SET them, so one that asks for its own at the start gets it.
pub(super) fn startup_message(
    source: &config::Source,
    user: &str,
    opening: &Opening,
    own_queries: bool,
) -> Result<Bytes, Failure> {
    let pins = Pins::new(opening.mode);
    // What is short enough for clients need not be for reading a large catalog, without which no client is let in.
    let (statement_timeout, idle_in_transaction_timeout) = match own_queries {
        true => (OWN_STATEMENT_TIMEOUT, Duration::ZERO),
        false => (source.statement_timeout, source.idle_in_transaction_timeout),
    };
    let mut options = String::new();
    let mut option = |name: &str, value: &str| {
        if !options.is_empty() {
            options.push(' ');
        }
        options.push_str("-c ");
        push_escaped(&mut options, name);
        options.push('=');
        push_escaped(&mut options, value);
    };
    for (name, value) in pins.all() {
        option(name, value);
    }
    for (name, limit) in [
        ("statement_timeout", statement_timeout),
        ("idle_in_transaction_session_timeout", idle_in_transaction_timeout),
    ] {
        if !limit.is_zero() {
            option(name, &milliseconds(limit));
        }
    }
    let application_name: String =
        opening.application_name.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut parameters = vec![
        ("user", user),
        ("database", source.database.as_str()),
        ("client_encoding", "UTF8"),
        ("options", options.as_str()),
        ("application_name", application_name.as_str()),
    ];
    for (name, value) in &opening.settings {
        if pins.wanted(name).is_some() || name.eq_ignore_ascii_case("application_name") {
            continue;
        }
        let reserved = ["user", "database", "options", "replication"];
        if name.is_empty()
            || reserved.iter().any(|word| name.eq_ignore_ascii_case(word))
            || name.starts_with("_pq_.")
            || name.contains('\0')
            || value.contains('\0')
        {
            return Err(Failure::Setting(name.clone()));
        }
        parameters.push((name, value));
    }
    let mut message = BytesMut::new();
    frontend::startup_message(parameters, &mut message)
        .map_err(|_| Failure::Setting("user or database".to_owned()))?;
    if message.len() > MAX_STARTUP_BYTES {
        return Err(Failure::Setting(format!("{} bytes of them", message.len())));
    }
    Ok(message.freeze())
}

/// Whole milliseconds, never rounded down to 0, which would mean no limit.
fn milliseconds(limit: Duration) -> String {
    limit.as_nanos().div_ceil(1_000_000).clamp(1, MAX_MILLISECONDS).to_string()
}

/// As `pg_split_opts` undoes it: a backslash makes the next character plain, white space separates.
fn push_escaped(out: &mut String, text: &str) {
    for c in text.chars() {
        if c.is_ascii_whitespace() || c == '\x0b' || c == '\\' {
            out.push('\\');
        }
        out.push(c);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_escaped() {
        let mut out = String::new();
        push_escaped(&mut out, "a b\\c\td\x0be");
        assert_eq!(out, "a\\ b\\\\c\\\td\\\x0be");
    }

    #[test]
    fn limits_never_round_down_to_none() {
        assert_eq!(milliseconds(Duration::from_micros(3)), "1");
        assert_eq!(milliseconds(Duration::from_micros(1500)), "2");
        assert_eq!(milliseconds(Duration::from_secs(600)), "600000");
        assert_eq!(milliseconds(Duration::MAX), "2147483647");
    }

    #[test]
    fn a_loose_pin_is_seen() {
        let pins = Pins::new(Mode::ReadOnly);
        assert!(pins.broken_by("default_transaction_read_only", "off"));
        assert!(!pins.broken_by("default_transaction_read_only", "on"));
        assert!(!pins.broken_by("TimeZone", "off"));
        assert!(Pins::new(Mode::ReadWrite).broken_by("default_transaction_read_only", "on"));
        let reported = vec![
            ("client_encoding".to_owned(), "UTF8".to_owned()),
            ("standard_conforming_strings".to_owned(), "on".to_owned()),
        ];
        assert_eq!(pins.check(&reported).ok(), Some(vec![("default_transaction_read_only", "on")]));
        let reported = vec![("client_encoding".to_owned(), "SJIS".to_owned())];
        assert!(matches!(pins.check(&reported), Err(Failure::Pin { setting: "client_encoding", .. })));
    }
}
