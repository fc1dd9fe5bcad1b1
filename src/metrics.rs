//! Metric handles, on a registry of their own.
//!
//! Invariant: labels never carry SQL, users or anything unbounded.
