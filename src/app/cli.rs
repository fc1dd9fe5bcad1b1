//! The command line.
//!
//! Invariant: results go to standard output, diagnostics to standard error; exit codes are 0 for yes,
//! 1 for no, 2 for could not be answered.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing::level_filters::LevelFilter;

use super::check::{self, CheckArgs};
use super::explain_args::{self, ExplainArgs};
use super::policy::{self, PolicyArgs};
use super::sync::{self, SyncArgs};
use super::tap::{self, ClientsArgs, SourceArgs};
use super::users::{self, UsersArgs};
use super::{logging, run};
use crate::config::{Config, LogFormat};

/// The question could not be answered.
const UNANSWERED: u8 = 2;

/// A PostgreSQL gateway that sends only reads on.
#[derive(Parser)]
#[command(name = "fedgate", version, about, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the gateway and its HTTP side until SIGTERM; SIGHUP reloads the configuration.
    Run {
        /// The configuration (TOML).
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Say whether a configuration can be used, and what is worth knowing about it.
    Check(CheckArgs),
    /// Say whether a statement would be admitted, and why not.
    Explain(ExplainArgs),
    /// The PII loop by hand: what it would do, one run, its history and a rollback.
    Sync(SyncArgs),
    /// The policy that Trino's OPA enforces.
    Policy(PolicyArgs),
    /// Pause and resume a source of a gateway that runs.
    Source(SourceArgs),
    /// The sessions of a gateway that runs: list them, end one user's at once.
    Clients(ClientsArgs),
    /// Make SCRAM verifiers for the users file.
    Users(UsersArgs),
}

/// Runs the command that the arguments name.
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match arguments.command {
        Command::Run { config: path } => {
            let config = match Config::load(&path) {
                Ok(config) => config,
                Err(error) => return unanswered(&error),
            };
            let log = match logging::start_apart(config.log, config.log_level) {
                Ok(log) => log,
                Err(error) => return unanswered(&error),
            };
            for finding in check::findings(&config) {
                let source = finding.source.as_deref().unwrap_or_default();
                tracing::warn!(source, key = finding.key, "{}", finding.message);
            }
            let outcome = run::run(&path, config, &log);
            // What was logged stands before what is said here.
            drop(log);
            match outcome {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => unanswered(&error),
            }
        }
        Command::Check(arguments) => {
            if let Err(error) = logging::start(LogFormat::Text, LevelFilter::WARN) {
                return unanswered(&error);
            }
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => return unanswered(&error),
            };
            let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
            match runtime.block_on(check::run(&arguments, &mut out, &mut err)) {
                Ok(answer) => ExitCode::from(answer.exit_code()),
                Err(error) => unanswered(&error),
            }
        }
        Command::Explain(arguments) => {
            match explain_args::run(&arguments, std::io::stdin().lock(), std::io::stdout()) {
                Ok(answer) => ExitCode::from(answer.exit_code()),
                Err(error) => unanswered(&error),
            }
        }
        Command::Sync(arguments) => {
            if let Err(error) = logging::start(LogFormat::Text, LevelFilter::WARN) {
                return unanswered(&error);
            }
            match sync::run(&arguments, &mut std::io::stdout()) {
                Ok(answer) => ExitCode::from(answer.exit_code()),
                Err(error) => unanswered(&error),
            }
        }
        Command::Policy(arguments) => {
            if let Err(error) = logging::start(LogFormat::Text, LevelFilter::WARN) {
                return unanswered(&error);
            }
            match policy::run(&arguments, &mut std::io::stdout()) {
                Ok(answer) => ExitCode::from(answer.exit_code()),
                Err(error) => unanswered(&error),
            }
        }
        Command::Source(arguments) => asked(async |out| tap::source(&arguments, out).await),
        Command::Clients(arguments) => asked(async |out| tap::clients(&arguments, out).await),
        Command::Users(arguments) => match users::run(&arguments, &mut std::io::stdout()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => unanswered(&error),
        },
    }
}

/// What is asked of a gateway that runs.
fn asked(ask: impl AsyncFnOnce(&mut std::io::Stdout) -> Result<tap::Answer, tap::TapError>) -> ExitCode {
    if let Err(error) = logging::start(LogFormat::Text, LevelFilter::WARN) {
        return unanswered(&error);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return unanswered(&error),
    };
    match runtime.block_on(ask(&mut std::io::stdout())) {
        Ok(answer) => ExitCode::from(answer.exit_code()),
        Err(error) => unanswered(&error),
    }
}

fn unanswered(error: &dyn std::error::Error) -> ExitCode {
    // There is no log yet, or no longer; and nobody to tell when standard error is closed.
    let _ = writeln!(std::io::stderr(), "fedgate: {error}");
    ExitCode::from(UNANSWERED)
}
