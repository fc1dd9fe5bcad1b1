//! PostgreSQL's own parser as the judge of the guard.
//!
//! Invariant: nothing here asks the guard what a statement is; both are asked, and then compared.

pub mod differential;
pub mod generate;
pub mod judge;
pub mod mutate;
pub mod report;
pub mod script;
pub mod source;
pub mod suite;
