//! Health, metrics and the API.
//!
//! Invariant: this room sees handles and receivers only: nothing here can reach a source or a
//! session, and nothing it answers names a host, a login at a source or a secret.

mod problem;
mod readiness;
mod server;

pub use readiness::{Readiness, Reason};
pub use server::{Parts, router, serve};
