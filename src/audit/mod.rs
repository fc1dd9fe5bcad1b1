//! What was done and refused, for those who have to believe it.
//!
//! Invariant: an event is data until it is written as OCSF; it never holds a literal of a statement, a
//! secret, or a host of a source.

pub mod deliver;
pub mod event;
pub mod journal;
pub mod ocsf;
pub mod sink;
pub mod spool;
