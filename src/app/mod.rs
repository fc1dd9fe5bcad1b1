//! (room)

pub mod check;
mod grants;
pub mod logging;
pub mod users;
