//! The command line.
//!
//! Invariant: results go to standard output, diagnostics to standard error; exit codes are 0 for yes,
//! 1 for no, 2 for could not be answered.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use super::run;
use crate::config::Config;

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
            tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
            match run::run(&path, config) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => unanswered(&error),
            }
        }
    }
}

fn unanswered(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("fedgate: {error}");
    ExitCode::from(UNANSWERED)
}
