//! PostgreSQL's own parser as the judge of the guard.
//!
//! Invariant: nothing here asks the guard what a statement is; both are asked, and then compared.

pub mod judge;
pub mod report;
pub mod script;
pub mod suite;
