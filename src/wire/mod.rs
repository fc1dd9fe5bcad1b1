//! Bytes to frames and back, frames to typed messages. Nothing here performs I/O.
//!
//! Invariant: no length that a peer claims is believed before it was held against a bound.

pub mod backend;
mod buffer;
mod error;
pub mod frame;
pub mod frontend;
pub mod startup;

pub use buffer::{BufferPool, ReadBuffer};
pub use error::{ClientError, Severity};
