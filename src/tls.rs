//! TLS of the gateway's own listeners: what they show of themselves, and whose certificates they take.
//!
//! Invariant: what rustls takes for verified is all that is trusted of a client's certificate.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::ServerTls;

/// Why a listener has no TLS; `section` is the one of the configuration above `tls`.
#[derive(Debug, Error)]
pub enum TlsError {
    #[error("{section}.tls.{key} = \"{file}\": {reason}")]
    File { section: &'static str, key: &'static str, file: String, reason: String },
    #[error("{section}.tls: the certificate and the private key do not go together: {error}")]
    Pair { section: &'static str, error: rustls::Error },
}

/// The server's side of TLS for one listener.
pub struct Server {
    pub acceptor: TlsAcceptor,
    /// Its own certificate, the first of the chain.
    pub certificate: Option<CertificateDer<'static>>,
}

impl Server {
    /// Reads the files of `[section.tls]`; `protocol` is what is spoken inside, by its name in ALPN.
    ///
    /// # Errors
    /// Names the key and the file that cannot be used.
    pub fn load(section: &'static str, files: &ServerTls, protocol: &[u8]) -> Result<Self, TlsError> {
        let place = |key, path| Place { section, key, path };
        let certificates = place("certificate", &files.certificate).certificates()?;
        let key = place("private_key", &files.private_key);
        let key = PrivateKeyDer::from_pem_slice(&key.read()?).map_err(|error| key.error(error))?;
        let certificate = certificates.first().cloned();
        let pair = |error| TlsError::Pair { section, error };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(pair)?;
        let builder = match &files.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let place = place("client_ca", path);
                let mut roots = RootCertStore::empty();
                for certificate in place.certificates()? {
                    roots.add(certificate).map_err(|error| place.error(error))?;
                }
                // A client without a certificate may still prove itself by a password or a token.
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| place.error(error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut server = builder.with_single_cert(certificates, key).map_err(pair)?;
        server.alpn_protocols = vec![protocol.to_vec()];
        // Stateless: what a client may come back with is the client's to keep. The ticketer makes a key of its own, and
        // a new one every six hours; those of another certificate or another client_ca are another ticketer's.
        server.ticketer = rustls::crypto::ring::Ticketer::new().map_err(pair)?;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(server)), certificate })
    }
}

/// A file, and the key that names it.
struct Place<'p> {
    section: &'static str,
    key: &'static str,
    path: &'p Path,
}

impl Place<'_> {
    fn error(&self, reason: impl std::fmt::Display) -> TlsError {
        TlsError::File {
            section: self.section,
            key: self.key,
            file: self.path.display().to_string(),
            reason: reason.to_string(),
        }
    }

    fn read(&self) -> Result<Vec<u8>, TlsError> {
        fs::read(self.path).map_err(|error| self.error(error))
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&self.read()?)
            .collect::<Result<_, _>>()
            .map_err(|error| self.error(error))?;
        if certificates.is_empty() {
            return Err(self.error("no certificate in it"));
        }
        Ok(certificates)
    }
}

/// The common name of a certificate's subject, which is who the client is (PostgreSQL's `cert` method).
///
/// `None` as well where there is more than one: which of them counts would be a guess; and outside the time for which it
/// was issued, since a TLS session that is resumed shows it again and nobody verifies it then.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    if !parsed.validity().is_valid() {
        return None;
    }
    let mut names = parsed.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    // As PostgreSQL: a NUL inside would end the name early for whoever reads it as a C string.
    (names.next().is_none() && !name.contains('\0')).then_some(name)
}
