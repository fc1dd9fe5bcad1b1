//! The binary: nothing but the way into [`fedgate::app`].

use std::process::ExitCode;

fn main() -> ExitCode {
    fedgate::app::main()
}
