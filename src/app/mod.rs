//! The composition root: arguments, exit codes, and the wiring of all rooms.
//!
//! Invariant: only this room knows every other one.

mod adminconfig;
mod audit;
mod behind;
pub mod check;
mod cli;
mod deployments;
mod document;
mod enforcement;
pub mod explain;
mod explain_args;
mod grants;
mod log_writer;
pub mod logging;
mod policy;
mod policy_loop;
mod run;
mod sources;
mod sync;
mod tap;
pub mod users;
mod workers;

pub use cli::main;
