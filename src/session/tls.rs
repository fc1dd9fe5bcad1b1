//! TLS for PostgreSQL's clients.
//!
//! Invariant: what SCRAM binds to is the certificate that the listener shows.

use tokio_rustls::TlsAcceptor;

use crate::config::GatewayTls;
use crate::tls::{Server, TlsError};
use crate::upstream::server_end_point;

/// TLS for clients.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
    /// Hash of the certificate for channel binding (RFC 5929, section 4.1); `None`: it has none.
    pub end_point: Option<Vec<u8>>,
    pub required: bool,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// Names the key and the file that cannot be used.
    pub fn load(config: &GatewayTls) -> Result<Self, TlsError> {
        let Server { acceptor, certificate } = Server::load("gateway", &config.files, b"postgresql")?;
        let end_point = certificate.as_ref().and_then(server_end_point);
        Ok(Self { acceptor, end_point, required: config.required })
    }

    pub fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }
}
