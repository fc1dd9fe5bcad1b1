//! The PII loop: what a catalog classifies becomes masks in the policy document.
//!
//! Invariant: only entries that the loop itself made are ever changed, and a picture that is not whole
//! changes nothing.

pub mod catalog;
pub mod handle;
pub mod planner;
pub mod publisher;
