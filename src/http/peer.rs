//! Who is at the other end of a connection, as far as TLS has shown it.
//!
//! Invariant: a name is here only when rustls has verified the certificate that bears it.

use std::sync::Arc;

/// The common name of the client's certificate; an extension of each request.
#[derive(Clone, Debug, Default)]
pub(super) struct PeerName(pub Option<Arc<str>>);
