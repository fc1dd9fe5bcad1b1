//! What integration tests share: a private PostgreSQL, the built gateway, certificates, sample data.
//!
//! Invariant: nothing outlives the test that asked for it, and nothing listens beyond loopback.
//!
//! ```ignore
//! mod support;
//! let source = support::Postgres::climscore(support::Options::default());
//! let gateway = support::Gateway::start(support::trusting(&source));
//! let client = gateway.connect("visitor", "", "climscore").await?;
//! ```

#![allow(dead_code, unused_imports, reason = "each test crate uses its own part of this")]
#![allow(
    clippy::disallowed_methods,
    reason = "a server that becomes ready and a process that ends send no event; they are asked every few milliseconds"
)]

pub mod certificates;
pub mod fault_proxy;
pub mod fingerprint;
pub mod gateway;
pub mod hostile;
pub mod log;
pub mod openmetadata;
pub mod postgres;

use std::path::PathBuf;

pub use certificates::{Authority, Pair};
pub use fault_proxy::{Cut, Dial, FaultProxy, Flow, Weather};
pub use fingerprint::Fingerprint;
pub use gateway::{Gateway, Setup, http_get, http_request, scram_verifier};
pub use log::{Logged, logged_statements};
pub use postgres::{
    CLIMSCORE_SQL, Options, Postgres, READER_PASSWORD, SUPERUSER, SUPERUSER_PASSWORD, ServerTls, blocking,
    find_bin,
};

/// The binary that cargo built for these tests; for an example, which cargo tells nothing, the one beside it.
pub fn fedgate() -> PathBuf {
    match option_env!("CARGO_BIN_EXE_fedgate") {
        Some(path) => PathBuf::from(path),
        None => {
            let own = std::env::current_exe().expect("the program's own path is known");
            own.ancestors().nth(2).expect("examples lie in a folder of the profile's").join("fedgate")
        }
    }
}

impl Gateway {
    /// Runs the built gateway with this configuration (TOML, or a [`Setup`] with files) and waits until it
    /// listens; panics with its log when it does not.
    pub fn start(setup: impl Into<Setup>) -> Self {
        Self::launch(&fedgate(), setup)
    }

    /// As `start`, with the log as the error.
    pub fn try_start(setup: impl Into<Setup>) -> Result<Self, String> {
        Self::try_launch(&fedgate(), setup)
    }
}

/// Schema, deterministic rows and the role `akko_readonly` (without a password) of the sample database.
pub fn climscore_sql() -> &'static str {
    CLIMSCORE_SQL
}

/// A gateway that asks nobody, in front of `source`'s database `climscore`, logging in as the superuser:
/// the hardest case for the guard, since only it stands in the way of a write.
pub fn trusting(source: &Postgres) -> Setup {
    let toml = format!(
        r#"
[gateway]
listen = ["127.0.0.1:0"]
drain_timeout = "5s"
[gateway.auth]
method = "trust"

[[source]]
name = "climscore"
hosts = ["{}"]
database = "climscore"
user = "{SUPERUSER}"
password_file = "{{dir}}/source-password"
tls = "disable"
access = [{{ users = ["visitor", "trino"], cidr = ["127.0.0.0/8"] }}]

[http]
listen = "127.0.0.1:0"
"#,
        source.address()
    );
    Setup::new(toml).file("source-password", SUPERUSER_PASSWORD)
}
