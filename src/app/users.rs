//! `fedgate users`: SCRAM verifiers for the users file.
//!
//! Invariant: a password comes from a prompt or standard input and never from the command line,
//! and never leaves this file but as a verifier; a users file is replaced whole or not at all.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use crate::config::{Users, UsersError, Verifier, check_user_name, users_line, users_line_name};

/// Longest password, in bytes.
const PASSWORD_LIMIT: u64 = 4096;
const SALT_LENGTH: usize = 16;

#[derive(Debug, Args)]
pub struct UsersArgs {
    #[command(subcommand)]
    command: UsersCommand,
}

#[derive(Debug, Subcommand)]
enum UsersCommand {
    /// Put a user into a users file, or give them a new password.
    ///
    /// The password is asked for twice, or is the first line of standard input.
    Add {
        /// The login at the gateway.
        name: String,
        /// The users file; made when it is not there.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        rounds: Rounds,
    },
    /// Print the line of a users file for a user.
    ///
    /// The password is asked for twice, or is the first line of standard input.
    Verifier {
        /// The login at the gateway.
        name: String,
        #[command(flatten)]
        rounds: Rounds,
    },
}

#[derive(Debug, Args)]
struct Rounds {
    /// Rounds of PBKDF2: each login's work for the client, and for whoever guesses passwords after a theft of the file.
    ///
    /// Fewer than 4096 make logins cheaper for clients that open a connection for every query; only for long random
    /// passwords. PgJDBC 42.5.5 refuses fewer ("iteration must be >= 4096"). PgJDBC 42.7.8, psql, psycopg 2 and 3, asyncpg,
    /// ADBC and ConnectorX take any number.
    #[arg(
        long = "rounds",
        alias = "iterations",
        default_value_t = 4096,
        value_parser = clap::value_parser!(u32).range(1..=10_000_000)
    )]
    iterations: u32,
}

/// Why there is no verifier, or no users file.
#[derive(Debug, thiserror::Error)]
pub enum UsersCommandError {
    #[error("{0}")]
    Name(String),
    #[error("the password cannot be read: {0}")]
    Input(#[source] io::Error),
    #[error("the password {0}")]
    Password(&'static str),
    #[error("{0}; it is left as it is")]
    Users(#[from] UsersError),
    #[error("{}: {error}", path.display())]
    File { path: PathBuf, error: io::Error },
    #[error("{}: somebody else is writing it; try again", path.display())]
    Busy { path: PathBuf },
    #[error("{}: its owner cannot be kept ({error}); run this as its owner", path.display())]
    Owner { path: PathBuf, error: io::Error },
}

/// Does what `fedgate users` was asked; a result goes to `out`.
pub fn run(args: &UsersArgs, out: &mut impl Write) -> Result<(), UsersCommandError> {
    let (name, rounds) = match &args.command {
        UsersCommand::Add { name, rounds, .. } | UsersCommand::Verifier { name, rounds } => (name, rounds),
    };
    check_user_name(name).map_err(UsersCommandError::Name)?;
    let password = password(name)?;
    let salt: [u8; SALT_LENGTH] = rand::random();
    let verifier = Verifier::derive(&password, &salt, rounds.iterations);
    match &args.command {
        UsersCommand::Verifier { .. } => {
            writeln!(out, "{}", users_line(name, &verifier)).map_err(UsersCommandError::Input)
        }
        UsersCommand::Add { file, .. } => put(file, name, &verifier),
    }
}

fn password(name: &str) -> Result<String, UsersCommandError> {
    let input = UsersCommandError::Input;
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return check_password(read_line(stdin.lock()).map_err(input)?);
    }
    let first = rpassword::prompt_password(format!("Password for {name}: ")).map_err(input)?;
    let first = check_password(first)?;
    let second = rpassword::prompt_password("Once more: ").map_err(input)?;
    if first == second { Ok(first) } else { Err(UsersCommandError::Password("was not the same twice")) }
}

/// The first line, without its end.
fn read_line(input: impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    input.take(PASSWORD_LIMIT + 2).read_until(b'\n', &mut line)?;
    if line.last() == Some(&b'\n') {
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
    }
    // The error of String::from_utf8 would carry the password.
    String::from_utf8(line).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "not UTF-8 text"))
}

fn check_password(password: String) -> Result<String, UsersCommandError> {
    let refuse = |reason| Err(UsersCommandError::Password(reason));
    if password.is_empty() {
        refuse("must not be empty")
    } else if password.len() as u64 > PASSWORD_LIMIT {
        refuse("must not be longer than 4096 bytes")
    } else if password.contains('\0') {
        refuse("must not hold a NUL character")
    } else {
        Ok(password)
    }
}

/// Puts a user's line in the place of their old one, or at the end.
fn put(path: &Path, name: &str, verifier: &Verifier) -> Result<(), UsersCommandError> {
    // Through a symbolic link, so that what it points to is replaced and not the link.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let failed = |error| UsersCommandError::File { path: path.to_owned(), error };
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // The folder is locked and not the file, which will be another one afterwards.
    let lock = File::open(folder).map_err(failed)?;
    lock.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => UsersCommandError::Busy { path: path.to_owned() },
        TryLockError::Error(error) => failed(error),
    })?;
    let old = match fs::metadata(path) {
        Ok(metadata) => {
            // A file that the gateway could not read is not made longer.
            Users::load(path)?;
            Some((metadata, fs::read_to_string(path).map_err(failed)?))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    let text = replaced(old.as_ref().map_or("", |(_, text)| text), name, &users_line(name, verifier));

    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(path.file_name().unwrap_or_default());
    hidden.push(format!(".{}.new", std::process::id()));
    let new = folder.join(hidden);
    let written = write_new(&new, &text, old.map(|(metadata, _)| metadata)).map_err(|error| match error {
        WriteError::Owner(error) => UsersCommandError::Owner { path: path.to_owned(), error },
        WriteError::Io(error) => failed(error),
    });
    let renamed = written.and_then(|()| fs::rename(&new, path).map_err(failed));
    if renamed.is_err() {
        // Nothing more can be done about it than what the error says already.
        let _ = fs::remove_file(&new);
    }
    renamed?;
    lock.sync_all().map_err(failed)
}

enum WriteError {
    Owner(io::Error),
    Io(io::Error),
}

impl From<io::Error> for WriteError {
    fn from(error: io::Error) -> Self {
        WriteError::Io(error)
    }
}

/// Writes a file that looks like the `old` one to the system, down to the disk.
fn write_new(path: &Path, text: &str, old: Option<fs::Metadata>) -> Result<(), WriteError> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    if let Some(old) = old {
        let new = file.metadata()?;
        if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
            std::os::unix::fs::fchown(&file, Some(old.uid()), Some(old.gid())).map_err(WriteError::Owner)?;
        }
        file.set_permissions(Permissions::from_mode(old.mode() & 0o777))?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    Ok(())
}

fn replaced(text: &str, name: &str, line: &str) -> String {
    let mut out = String::with_capacity(text.len() + line.len() + 1);
    let mut placed = false;
    for old in text.lines() {
        if users_line_name(old.trim()).as_deref() == Some(name) {
            out.push_str(line);
            placed = true;
        } else {
            out.push_str(old);
        }
        out.push('\n');
    }
    if !placed {
        out.push_str(line);
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verifier(password: &str) -> Verifier {
        Verifier::derive(password, b"salt", 1)
    }

    #[test]
    fn a_user_is_added_and_replaced_and_the_rest_of_the_file_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.txt");
        put(&path, "a", &verifier("one")).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, format!("; mine\n{}", fs::read_to_string(&path).unwrap())).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        put(&path, "o\"b", &verifier("two")).unwrap();
        put(&path, "a", &verifier("three")).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("; mine\n\"a\" "), "{text}");
        let users = Users::load(&path).unwrap();
        assert_eq!((users.len(), users.get("a")), (2, Some(&verifier("three"))));
        assert_eq!(users.get("o\"b"), Some(&verifier("two")));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_link_is_followed_and_a_bad_file_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("users.txt"), folder.path().join("link"));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        fs::write(&path, "").unwrap();
        put(&link, "a", &verifier("one")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(Users::load(&path).unwrap().len(), 1);
        fs::write(&path, "\"a\" \"hunter2\"\n").unwrap();
        let error = put(&path, "b", &verifier("one")).unwrap_err().to_string();
        assert!(error.contains("line 1") && !error.contains("hunter2"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "\"a\" \"hunter2\"\n");
    }

    #[test]
    fn two_writers_do_not_meet() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users.txt");
        let lock = File::open(folder.path()).unwrap();
        lock.lock().unwrap();
        assert!(matches!(put(&path, "a", &verifier("x")), Err(UsersCommandError::Busy { .. })));
    }

    #[test]
    fn a_password_is_one_bounded_line() {
        let read = |text: &[u8]| read_line(text).map(check_password);
        assert!(matches!(read(b"secret\r\nmore\n"), Ok(Ok(password)) if password == "secret"));
        assert!(matches!(read(b"secret"), Ok(Ok(_))));
        assert!(matches!(read(b"\n"), Ok(Err(UsersCommandError::Password(_)))));
        assert!(matches!(read(b"a\0b\n"), Ok(Err(UsersCommandError::Password(_)))));
        assert!(matches!(read(&[b'x'; 5000]), Ok(Err(UsersCommandError::Password(_)))));
        assert!(read(&[0xff, b'\n']).is_err());
    }
}
