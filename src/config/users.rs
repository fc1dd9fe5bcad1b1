//! The users file: who may log in, and the SCRAM verifier that proves it.
//!
//! Invariant: a plain password, or a hash that can be used in its place (md5), is never taken up;
//! a bad file never replaces a good one; nothing of a verifier is ever printed.

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

/// Longest users file, in bytes.
const FILE_LIMIT: u64 = 16 << 20;
/// Most users of one file.
const USERS_LIMIT: usize = 100_000;
/// Most rounds; they are the client's work, and nobody's client does more than this in its patience.
const ITERATIONS_LIMIT: u32 = 10_000_000;
/// What PostgreSQL itself uses unless told otherwise (`scram_iterations`).
const USUAL_ITERATIONS: u32 = 4096;
const SALT_LIMIT: usize = 1024;
/// Bytes; PostgreSQL's own.
const USUAL_SALT: usize = 16;
/// How often a users file is looked at, at most.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What proves knowledge of a password without holding it (RFC 5803, and `pg_authid.rolpassword`).
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    pub iterations: u32,
    pub salt: Vec<u8>,
    /// H(ClientKey)
    pub stored_key: [u8; 32],
    pub server_key: [u8; 32],
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(…)")
    }
}

/// Why a text is no verifier. Never quotes the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifierError {
    #[error("there is no password")]
    Empty,
    #[error(
        "this is an md5 hash, which is as good as the password itself; write a SCRAM-SHA-256 verifier, as `fedgate users verifier` prints it"
    )]
    Md5,
    #[error(
        "this is not a SCRAM-SHA-256 verifier, and a plain password must not stand here; `fedgate users verifier` makes one"
    )]
    Plain,
    #[error("the verifier is damaged: {0}")]
    Damaged(&'static str),
}

impl Verifier {
    /// Reads `SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`.
    pub fn parse(text: &str) -> Result<Self, VerifierError> {
        use VerifierError::Damaged;
        if text.is_empty() {
            return Err(VerifierError::Empty);
        }
        let Some(rest) = text.strip_prefix("SCRAM-SHA-256$") else {
            let md5 = text.strip_prefix("md5");
            return Err(match md5 {
                Some(hex) if hex.len() == 32 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                    VerifierError::Md5
                }
                _ => VerifierError::Plain,
            });
        };
        let (head, keys) = rest.split_once('$').ok_or(Damaged("its keys are missing"))?;
        let (iterations, salt) = head.split_once(':').ok_or(Damaged("its salt is missing"))?;
        let (stored, server) = keys.split_once(':').ok_or(Damaged("one of its keys is missing"))?;
        let iterations = iterations
            .parse()
            .ok()
            .filter(|count| (1..=ITERATIONS_LIMIT).contains(count))
            .ok_or(Damaged("its number of iterations is out of range"))?;
        let salt = BASE64
            .decode(salt)
            .ok()
            .filter(|salt| (1..=SALT_LIMIT).contains(&salt.len()))
            .ok_or(Damaged("its salt is not usable"))?;
        let key = |text: &str| BASE64.decode(text).ok().and_then(|key| <[u8; 32]>::try_from(key).ok());
        Ok(Self {
            iterations,
            salt,
            stored_key: key(stored).ok_or(Damaged("its stored key is not 32 bytes in base64"))?,
            server_key: key(server).ok_or(Damaged("its server key is not 32 bytes in base64"))?,
        })
    }

    /// Works a verifier out of a password (RFC 5802, section 3).
    ///
    /// As PostgreSQL does, a password that SASLprep (RFC 4013) does not allow is taken as it is.
    pub fn derive(password: &str, salt: &[u8], iterations: u32) -> Self {
        let prepared = stringprep::saslprep(password);
        let password = prepared.as_deref().unwrap_or(password);
        let mut salted = [0; 32];
        pbkdf2::pbkdf2_hmac::<Sha256>(password.as_bytes(), salt, iterations, &mut salted);
        let client_key = hmac_sha256(&salted, b"Client Key");
        Self {
            iterations,
            salt: salt.to_vec(),
            stored_key: Sha256::digest(client_key).into(),
            server_key: hmac_sha256(&salted, b"Server Key"),
        }
    }

    /// The text that [`Verifier::parse`] reads; as secret as the file it goes into.
    pub fn to_text(&self) -> String {
        format!(
            "SCRAM-SHA-256${}:{}${}:{}",
            self.iterations,
            BASE64.encode(&self.salt),
            BASE64.encode(self.stored_key),
            BASE64.encode(self.server_key)
        )
    }
}

fn hmac_sha256(key: &[u8; 32], message: &[u8]) -> [u8; 32] {
    let mut block = [0; 64];
    block[..32].copy_from_slice(key);
    let mut mac = Hmac::<Sha256>::new(&block.into());
    mac.update(message);
    mac.finalize().into_bytes().into()
}

/// The users of one file.
#[derive(Clone, Debug)]
pub struct Users {
    by_name: HashMap<String, Verifier>,
    /// Rounds and length of the salt of each, in the order of names.
    shapes: Vec<(u32, usize)>,
    /// Of all verifiers; changes with the file and with nothing else.
    secret: [u8; 32],
}

/// Why a users file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    #[error("{path}: {error}", path = path.display())]
    Read { path: PathBuf, error: io::Error },
    #[error("{path}: longer than {limit} bytes", path = path.display(), limit = FILE_LIMIT)]
    TooLong { path: PathBuf },
    #[error("{path}: not UTF-8", path = path.display())]
    Encoding { path: PathBuf },
    #[error("{path}, line {line}: {reason}", path = path.display())]
    Line { path: PathBuf, line: usize, reason: String },
}

impl Default for Users {
    fn default() -> Self {
        Self::new(HashMap::new())
    }
}

impl Users {
    fn new(by_name: HashMap<String, Verifier>) -> Self {
        let mut known: Vec<(&String, &Verifier)> = by_name.iter().collect();
        known.sort_by_key(|(name, _)| *name);
        let mut hash = Sha256::new();
        for (name, verifier) in &known {
            for part in [name.as_bytes(), &verifier.salt, &verifier.stored_key, &verifier.server_key] {
                hash.update((part.len() as u64).to_be_bytes());
                hash.update(part);
            }
        }
        let shapes = known.iter().map(|(_, verifier)| (verifier.iterations, verifier.salt.len())).collect();
        Self { shapes, secret: hash.finalize().into(), by_name }
    }

    /// Reads `path` whole; bounded.
    pub fn load(path: &Path) -> Result<Self, UsersError> {
        let read = |error| UsersError::Read { path: path.to_owned(), error };
        if !std::fs::metadata(path).map_err(read)?.is_file() {
            // A pipe would hang.
            return Err(read(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let mut bytes = Vec::new();
        File::open(path).map_err(read)?.take(FILE_LIMIT + 1).read_to_end(&mut bytes).map_err(read)?;
        if bytes.len() as u64 > FILE_LIMIT {
            return Err(UsersError::TooLong { path: path.to_owned() });
        }
        let text = String::from_utf8(bytes).map_err(|_| UsersError::Encoding { path: path.to_owned() })?;
        Self::parse(&text).map_err(|(line, reason)| UsersError::Line { path: path.to_owned(), line, reason })
    }

    /// Reads lines `"name" "SCRAM-SHA-256$…"`, a quote within quotes doubled; lines that are empty
    /// or start with `;` or `#` do not count. An error is a line number and a reason.
    pub fn parse(text: &str) -> Result<Self, (usize, String)> {
        let mut users: HashMap<String, Verifier> = HashMap::new();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let line = line.trim();
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            let (name, verifier) = parse_line(line).map_err(|reason| (number, reason))?;
            if users.len() >= USERS_LIMIT {
                return Err((number, format!("there are more than {USERS_LIMIT} users")));
            }
            if users.contains_key(&name) {
                return Err((number, "this user was named on an earlier line".to_owned()));
            }
            users.insert(name, verifier);
        }
        Ok(Self::new(users))
    }

    pub fn get(&self, name: &str) -> Option<&Verifier> {
        self.by_name.get(name)
    }

    /// What stands in for the verifier of a user who is not there; no password fits it.
    ///
    /// As a real one it is the same each time for the same name, after a restart and at another
    /// gateway with the same file too, and as many of them have some number of rounds as of the
    /// real ones. Nobody can work it out who does not know the whole file.
    pub fn stand_in(&self, user: &str) -> Verifier {
        let seed = hmac_sha256(&self.secret, user.as_bytes());
        let number = seed.iter().fold(0usize, |number, byte| number.rotate_left(8) ^ usize::from(*byte));
        let shape = number.checked_rem(self.shapes.len()).and_then(|at| self.shapes.get(at));
        let (iterations, salt_length) = *shape.unwrap_or(&(USUAL_ITERATIONS, USUAL_SALT));
        let mut salt = Vec::with_capacity(salt_length + 32);
        for block in 0..salt_length.div_ceil(32) as u64 {
            salt.extend_from_slice(&hmac_sha256(&seed, &block.to_be_bytes()));
        }
        salt.truncate(salt_length);
        Verifier {
            iterations,
            salt,
            stored_key: hmac_sha256(&seed, b"stored key"),
            server_key: hmac_sha256(&seed, b"server key"),
        }
    }

    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }
}

/// The name on a line of a users file, the line trimmed.
pub fn line_name(line: &str) -> Option<String> {
    quoted_field(line).map(|(name, _)| name)
}

/// A line of a users file.
pub fn line(name: &str, verifier: &Verifier) -> String {
    format!("\"{}\" \"{}\"", name.replace('"', "\"\""), verifier.to_text())
}

fn parse_line(line: &str) -> Result<(String, Verifier), String> {
    let (name, rest) =
        quoted_field(line).ok_or("the line does not start with a name in double quotes".to_owned())?;
    check_user_name(&name)?;
    let (text, rest) =
        quoted_field(rest.trim_start()).ok_or("no verifier in double quotes follows the name".to_owned())?;
    if !rest.trim().is_empty() {
        return Err("something follows the verifier".to_owned());
    }
    Ok((name, Verifier::parse(&text).map_err(|error| error.to_string())?))
}

/// A field in double quotes, and what follows it.
fn quoted_field(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut field = String::new();
    loop {
        let (before, after) = rest.split_once('"')?;
        field.push_str(before);
        match after.strip_prefix('"') {
            Some(after) => {
                field.push('"');
                rest = after;
            }
            None => return Some((field, after)),
        }
    }
}

/// What PostgreSQL can hold as a role's name, and a log line can show.
pub fn check_user_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        Err("a user's name must not be empty".to_owned())
    } else if name.len() > 63 {
        Err("a user's name must not be longer than 63 bytes".to_owned())
    } else if name.chars().any(char::is_control) {
        Err("a user's name must not hold control characters".to_owned())
    } else {
        Ok(())
    }
}

/// A users file that is read anew when it changes.
///
/// The mutex is held while the file is read and never across an await; in between, a look costs
/// one comparison of times, and once a second one stat.
#[derive(Debug)]
pub struct UsersFile {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    users: Arc<Users>,
    seen: Option<Stamp>,
    next_look: Instant,
}

/// What tells one state of a file from another.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    length: u64,
    modified: Option<SystemTime>,
    inode: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self { length: metadata.len(), modified: metadata.modified().ok(), inode: metadata.ino() }
    }
}

/// What a look at the file showed.
#[derive(Debug)]
pub enum Look {
    Unchanged,
    /// The file changed and counts from now on.
    Reloaded,
    /// The file changed, or is gone, and cannot be used; the users before it stay. Said once for each state of the file.
    Bad(UsersError),
}

impl UsersFile {
    /// Fails when the file cannot be used: there is no earlier one to fall back on.
    pub fn open(path: PathBuf, now: Instant) -> Result<Self, UsersError> {
        // The stamp is taken first: a change in between is then seen at the next look.
        let seen = std::fs::metadata(&path).ok().as_ref().map(Stamp::of);
        let users = Arc::new(Users::load(&path)?);
        Ok(Self { path, state: Mutex::new(State { users, seen, next_look: now + LOOK_EVERY }) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The users as of `now`, at most a second old, and whether there is something to report.
    pub fn current(&self, now: Instant) -> (Arc<Users>, Look) {
        // A panic while it was held left it whole: its fields are only ever replaced.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if now < state.next_look {
            return (state.users.clone(), Look::Unchanged);
        }
        state.next_look = now + LOOK_EVERY;
        let seen = std::fs::metadata(&self.path).ok().as_ref().map(Stamp::of);
        if seen == state.seen {
            return (state.users.clone(), Look::Unchanged);
        }
        state.seen = seen;
        match Users::load(&self.path) {
            Ok(users) => {
                state.users = Arc::new(users);
                (state.users.clone(), Look::Reloaded)
            }
            Err(error) => (state.users.clone(), Look::Bad(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_7677_comes_out() {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let verifier = Verifier::derive("pencil", &salt, 4096);
        // RFC 7677 gives proof and signature; these follow from its keys.
        let auth_message = b"n=user,r=rOprNGfwEbeRWgbNEkqO,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096,c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let signature = hmac_sha256(&verifier.server_key, auth_message);
        assert_eq!(BASE64.encode(signature), "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        let proof = BASE64.decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=").unwrap();
        let client_signature = hmac_sha256(&verifier.stored_key, auth_message);
        let client_key: Vec<u8> = proof.iter().zip(client_signature).map(|(a, b)| a ^ b).collect();
        assert_eq!(<[u8; 32]>::from(Sha256::digest(client_key)), verifier.stored_key);
        assert_eq!(Verifier::parse(&verifier.to_text()), Ok(verifier));
    }

    #[test]
    fn who_is_not_there_looks_like_those_who_are() {
        let text: String = (0..40u8)
            .map(|number| {
                let (rounds, salt) = if number < 10 { (3, 12) } else { (2, 40) };
                line(&format!("u{number}"), &Verifier::derive("x", &[number; 40][..salt], rounds)) + "\n"
            })
            .collect();
        let (one, other) = (Users::parse(&text).unwrap(), Users::parse(&text).unwrap());
        let mut fewer = 0;
        for number in 0..400 {
            let name = format!("nobody{number}");
            let verifier = one.stand_in(&name);
            assert_eq!(verifier, other.stand_in(&name), "at another gateway");
            assert!([(3, 12), (2, 40)].contains(&(verifier.iterations, verifier.salt.len())));
            fewer += usize::from(verifier.iterations == 3);
        }
        assert!((50..150).contains(&fewer), "{fewer} of 400, as 10 of 40");
        assert_ne!(one.stand_in("a").salt, one.stand_in("b").salt);
        assert_ne!(one.stand_in("a").salt, Users::default().stand_in("a").salt);
        assert_eq!(Users::default().stand_in("a").iterations, USUAL_ITERATIONS);
    }

    #[test]
    fn saslprep_is_applied_and_what_it_forbids_is_taken_as_it_is() {
        let verifier = |password| Verifier::derive(password, b"salt", 1);
        // U+2168 is nine in Roman numerals; U+00AD, the soft hyphen, counts for nothing.
        assert_eq!(verifier("\u{2168}"), verifier("IX"));
        assert_eq!(verifier("I\u{ad}X"), verifier("IX"));
        assert_ne!(verifier("a\u{7}b"), verifier("ab"));
    }

    #[test]
    fn names_may_hold_quotes_and_other_lines_may_hold_nothing() {
        let verifier = Verifier::derive("x", b"salt", 1);
        let text = format!("; comment\n\n# another\n  {}  \n", line("o\"b", &verifier));
        let users = Users::parse(&text).unwrap();
        assert_eq!(users.get("o\"b"), Some(&verifier));
        assert_eq!(users.len(), 1);
        assert!(!format!("{users:?}").contains(&BASE64.encode(verifier.stored_key)));
    }

    #[test]
    fn what_is_no_verifier_is_refused_with_its_line_and_without_its_text() {
        let good = line("a", &Verifier::derive("x", b"salt", 1));
        for (bad, want) in [
            (r#""b" "hunter2""#, "plain password"),
            (r#""b" "md5aabbccddeeff00112233445566778899""#, "md5"),
            (r#""b" """#, "no password"),
            (r#""b" "SCRAM-SHA-256$0:c2FsdA==$a:b""#, "iterations"),
            (r#""b" "SCRAM-SHA-256$99999999999:c2FsdA==$a:b""#, "iterations"),
            (r#""b" "SCRAM-SHA-256$4096:$a:b""#, "salt"),
            (r#""b" "SCRAM-SHA-256$4096:c2FsdA==$aGk=:aGk=""#, "stored key"),
            (r#""b" "SCRAM-SHA-256$4096:c2FsdA==""#, "keys are missing"),
            (r#""b""#, "no verifier"),
            (r#""b"#, "does not start with a name"),
            (r#"b "x""#, "does not start with a name"),
            (r#""" "x""#, "must not be empty"),
            (&format!("{good} extra").replacen("\"a\"", "\"b\"", 1), "something follows"),
            (&good, "earlier line"),
        ] {
            let (line, reason) = Users::parse(&format!("{good}\n{bad}\n")).unwrap_err();
            assert_eq!(line, 2, "{bad}");
            assert!(reason.contains(want), "{bad}: {reason}");
            assert!(!reason.contains("hunter2"));
        }
    }

    #[test]
    fn a_changed_file_counts_within_a_second_and_a_bad_one_is_reported_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.txt");
        let verifier = Verifier::derive("x", b"salt", 1);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        std::fs::write(&path, line("a", &verifier)).unwrap();
        let file = UsersFile::open(path.clone(), start).unwrap();
        std::fs::write(&path, format!("{}\n{}\n", line("a", &verifier), line("b", &verifier))).unwrap();
        let (users, look) = file.current(start);
        assert!(users.get("b").is_none() && matches!(look, Look::Unchanged));
        let (users, look) = file.current(at(1));
        assert!(users.get("b").is_some() && matches!(look, Look::Reloaded));
        std::fs::write(&path, "\"a\" \"plain\"\n").unwrap();
        let (users, look) = file.current(at(2));
        assert!(users.get("b").is_some() && matches!(look, Look::Bad(UsersError::Line { line: 1, .. })));
        assert!(matches!(file.current(at(3)).1, Look::Unchanged));
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(file.current(at(4)).1, Look::Bad(UsersError::Read { .. })));
        let (users, look) = file.current(at(5));
        assert!(users.get("b").is_some() && matches!(look, Look::Unchanged));
        std::fs::write(&path, line("c", &verifier)).unwrap();
        let (users, look) = file.current(at(6));
        assert!(users.get("b").is_none() && users.get("c").is_some() && matches!(look, Look::Reloaded));
    }
}
