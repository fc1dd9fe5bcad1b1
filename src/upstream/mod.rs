//! The source's side: dial, authenticate, pin, lease.
//!
//! Invariant: whoever gets a session from this room gets one that the source itself confirmed to be
//! pinned, every wait on a source has an end, and nothing is sent there without a permit.

mod attrs;
mod auth;
pub mod catalogue;
mod client;
mod dial;
mod error;
mod greeting;
mod health;
mod lease;
mod outbound;
mod pin;
pub mod pool;
mod session;
mod source;
mod stream;
mod tls;

pub use auth::{Conversation, RelayFit, relay_works};
pub use client::Replayed;
pub use error::{Failure, HostFailure, OpenError, ServerError, SourceError, Stage};
pub use lease::Lease;
pub use outbound::{CopyIn, Outbound, REFUSED};
pub use pin::{Opening, Pins};
pub use pool::{Backend, Pool, PoolError, Settings};
pub use source::{CancelTarget, ClientConnection, Opened, Source};
pub use stream::{Duplex, Stream};
pub use tls::server_end_point;
