//! (room)

pub mod catalogue;
