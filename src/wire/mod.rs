//! Bytes to frames and back. Nothing here performs I/O.

mod error;

pub use error::{ClientError, Severity};
