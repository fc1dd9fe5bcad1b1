//! The PII loop: what a catalog classifies becomes masks in the policy document.
//!
//! Invariant: only entries that the loop itself made are ever changed, and a picture that is not whole
//! changes nothing.

pub mod catalog;
mod cycle;
mod decide;
pub mod disk;
pub mod handle;
pub mod history;
mod kubernetes;
pub mod lease;
pub mod planner;
pub mod publisher;
pub mod reader;
mod run;
mod trail;

pub use cycle::{Clock, Parts};
pub use run::{Loop, Schedule};
pub use trail::Trail;
