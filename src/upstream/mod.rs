//! The source's side: dial, authenticate, pin.
//!
//! Invariant: whoever gets a session from this room gets one that the source itself confirmed to be
//! pinned, and every wait on a source has an end.

mod auth;
mod client;
mod dial;
mod error;
mod greeting;
mod health;
mod pin;
mod session;
mod source;
mod stream;
mod tls;

pub use auth::{Conversation, RelayFit, relay_works};
pub use client::Replayed;
pub use error::{Failure, HostFailure, OpenError, ServerError, SourceError, Stage};
pub use pin::{Opening, Pins};
pub use source::{CancelTarget, ClientConnection, Opened, Source};
pub use stream::{Duplex, Stream};
//! (room)

pub mod catalogue;
