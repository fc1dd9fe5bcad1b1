//! A text in, for each statement of it a permit or a refusal out.
//!
//! Invariant: a [`Permit`] is made in this room only, and only for text that was judged here; what
//! is not known to be harmless is refused. Nothing here performs I/O.

mod permit;
mod refusal;
mod verdict;

pub use permit::Permit;
pub use refusal::Refusal;
pub use verdict::{Admitted, Effect, Form, Mode, Step, Verdict};
