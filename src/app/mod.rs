//! (room)

pub mod explain;
