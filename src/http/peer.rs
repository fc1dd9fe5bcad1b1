//! The other end of a connection: the handshake with it, and who it proves to be.
//!
//! Invariant: a peer has a name only by a certificate that the handshake has verified.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::config::ServerTls;
use crate::tls::{Server, TlsError, common_name};

/// From accept to a connection that is encrypted.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads the files of `[http.tls]`.
///
/// # Errors
/// Names the key and the file that cannot be used.
pub fn acceptor(files: &ServerTls) -> Result<TlsAcceptor, TlsError> {
    Ok(Server::load("http", files, b"http/1.1")?.acceptor)
}

/// The common name of the client's certificate; each request carries it as an extension. `None` without TLS, without a
/// certificate, and for one whose name is empty or not clear.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PeerName(pub(super) Option<Arc<str>>);

/// Agrees on TLS with whoever has connected.
///
/// # Errors
/// The client speaks no TLS, shows a certificate of nobody we know, goes away, or takes too long.
pub(super) async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    acceptor: &TlsAcceptor,
    stream: S,
) -> io::Result<(TlsStream<S>, PeerName)> {
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let name = certificate.and_then(common_name).filter(|name| !name.is_empty());
    Ok((stream, PeerName(name.map(Arc::from))))
}
