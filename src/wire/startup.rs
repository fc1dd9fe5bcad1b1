//! The packets that open a connection, which have a length but no type byte.
//!
//! Invariant: a startup packet is read to its last byte or not at all; keys come once.
//! Source: PostgreSQL 18, chapters 54.2.1 "Start-up", 54.2.10 "SSL", 54.2.8 "Canceling Requests".
//!
//! Decoded here and not by pgwire: its decoder folds duplicate keys together, and a duplicate is an
//! attack on whoever reads the other one.

use thiserror::Error;

/// PostgreSQL's own bound on a startup packet (`MAX_STARTUP_PACKET_LENGTH`).
pub const MAX_STARTUP: usize = 10_000;

/// The newest protocol that the gateway speaks, as major and minor.
pub const NEWEST: Version = Version { major: 3, minor: 2 };

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u16,
    pub minor: u16,
}

impl Version {
    pub fn number(self) -> u32 {
        (u32::from(self.major) << 16) | u32::from(self.minor)
    }
}

/// What a client opened its connection with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening {
    SslRequest,
    GssEncRequest,
    Cancel(CancelRequest),
    Startup(Startup),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CancelRequest {
    pub pid: u32,
    /// 4 bytes, or up to 256 with protocol 3.2.
    pub secret: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup {
    pub version: Version,
    /// In the client's order; no key twice.
    pub parameters: Vec<(String, String)>,
    /// Keys that begin with `_pq_.`, which ask for protocol extensions.
    pub extensions: Vec<String>,
}

impl Startup {
    pub fn get(&self, key: &str) -> Option<&str> {
        self.parameters.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug, Error, PartialEq, Eq)]
pub enum StartupError {
    #[error("invalid length of startup packet")]
    Length,
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
    #[error("unsupported frontend protocol {}.{}: server supports 3.0 to 3.2", .0.major, .0.minor)]
    Version(Version),
    #[error("startup packet names parameter \"{0}\" twice")]
    Duplicate(String),
    #[error("invalid byte sequence for encoding \"UTF8\" in startup packet")]
    Encoding,
    #[error("invalid length of query cancel packet")]
    CancelLength,
}

/// Holds the length word of an opening packet against its bounds; returns the bytes that follow it.
pub fn body_length(length: [u8; 4]) -> Result<usize, StartupError> {
    let length = u32::from_be_bytes(length) as usize;
    if (8..=MAX_STARTUP).contains(&length) { Ok(length - 4) } else { Err(StartupError::Length) }
}

/// Reads the body (all after the length word) of an opening packet.
pub fn decode(body: &[u8]) -> Result<Opening, StartupError> {
    let (code, rest) = body.split_first_chunk::<4>().ok_or(StartupError::Length)?;
    let code = u32::from_be_bytes(*code);
    match code {
        80_877_103 if rest.is_empty() => Ok(Opening::SslRequest),
        80_877_104 if rest.is_empty() => Ok(Opening::GssEncRequest),
        80_877_103 | 80_877_104 => Err(StartupError::Length),
        80_877_102 => {
            let (pid, secret) = rest.split_first_chunk::<4>().ok_or(StartupError::CancelLength)?;
            if !(4..=256).contains(&secret.len()) {
                return Err(StartupError::CancelLength);
            }
            Ok(Opening::Cancel(CancelRequest { pid: u32::from_be_bytes(*pid), secret: secret.to_vec() }))
        }
        _ => {
            let version = Version { major: (code >> 16) as u16, minor: code as u16 };
            if version.major != NEWEST.major {
                return Err(StartupError::Version(version));
            }
            parameters(version, rest).map(Opening::Startup)
        }
    }
}

fn parameters(version: Version, mut rest: &[u8]) -> Result<Startup, StartupError> {
    let mut startup = Startup { version, parameters: Vec::new(), extensions: Vec::new() };
    loop {
        let (key, behind) = text(rest)?;
        if key.is_empty() {
            return if behind.is_empty() { Ok(startup) } else { Err(StartupError::Layout) };
        }
        let (value, behind) = text(behind)?;
        rest = behind;
        if startup.get(key).is_some() || startup.extensions.iter().any(|name| name == key) {
            return Err(StartupError::Duplicate(key.to_owned()));
        }
        if key.starts_with("_pq_.") {
            startup.extensions.push(key.to_owned());
        } else {
            startup.parameters.push((key.to_owned(), value.to_owned()));
        }
    }
}

fn text(bytes: &[u8]) -> Result<(&str, &[u8]), StartupError> {
    let (text, rest) = super::frontend::text(bytes).map_err(|_| StartupError::Layout)?;
    Ok((std::str::from_utf8(text).map_err(|_| StartupError::Encoding)?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn startup(minor: u8, body: &[u8]) -> Vec<u8> {
        [&[0, 3, 0, minor], body].concat()
    }

    #[test]
    fn openings() {
        assert_eq!(decode(&80_877_103u32.to_be_bytes()), Ok(Opening::SslRequest));
        assert_eq!(decode(&80_877_104u32.to_be_bytes()), Ok(Opening::GssEncRequest));
        let cancel = [&80_877_102u32.to_be_bytes()[..], &7u32.to_be_bytes(), b"abcd"].concat();
        assert_eq!(decode(&cancel), Ok(Opening::Cancel(CancelRequest { pid: 7, secret: b"abcd".to_vec() })));
        let Ok(Opening::Startup(read)) = decode(&startup(2, b"user\0a\0_pq_.x\0\0database\0d\0\0")) else {
            panic!("a startup packet");
        };
        assert_eq!(read.get("user"), Some("a"));
        assert_eq!(read.get("database"), Some("d"));
        assert_eq!(read.extensions, ["_pq_.x"]);
        assert_eq!(read.version, NEWEST);
    }

    #[test]
    fn bad_openings() {
        let long_ssl = [&80_877_103u32.to_be_bytes()[..], b"x"].concat();
        let long_key = [&80_877_102u32.to_be_bytes()[..], &[0; 4], &[0; 257]].concat();
        let cases: &[(&str, Vec<u8>, StartupError)] = &[
            ("nothing", vec![], StartupError::Length),
            ("bytes behind SSLRequest", long_ssl, StartupError::Length),
            ("a cancel key over 256 bytes", long_key, StartupError::CancelLength),
            ("no terminator", startup(0, b"user\0a\0"), StartupError::Layout),
            ("bytes behind the terminator", startup(0, b"user\0a\0\0x"), StartupError::Layout),
            ("a key without a value", startup(0, b"user\0"), StartupError::Layout),
            (
                "the same key twice",
                startup(0, b"user\0a\0user\0b\0\0"),
                StartupError::Duplicate("user".into()),
            ),
            ("not UTF-8", startup(0, b"user\0\xff\0\0"), StartupError::Encoding),
            ("protocol 2", vec![0, 2, 0, 0], StartupError::Version(Version { major: 2, minor: 0 })),
        ];
        for (note, body, want) in cases {
            assert_eq!(decode(body).as_ref(), Err(want), "{note}");
        }
        for length in [0u32, 7, 10_001, u32::MAX] {
            assert_eq!(body_length(length.to_be_bytes()), Err(StartupError::Length));
        }
        assert_eq!(body_length(8u32.to_be_bytes()), Ok(4));
    }
}
