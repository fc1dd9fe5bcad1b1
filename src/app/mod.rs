//! The composition root: arguments, exit codes, and the wiring of all rooms.
//!
//! Invariant: only this room knows every other one.

mod cli;
mod run;
mod sources;
mod workers;

pub use cli::main;
