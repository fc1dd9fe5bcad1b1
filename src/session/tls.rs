//! The gateway's own certificate, and those of its clients.
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

use crate::config::GatewayTls;
use crate::upstream::server_end_point;

#[derive(Debug, Error)]
pub enum TlsError {
    #[error("gateway.tls.{key} = \"{file}\": {reason}")]
    File { key: &'static str, file: String, reason: String },
    #[error("gateway.tls: the certificate and the private key do not go together: {0}")]
    Pair(rustls::Error),
}

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
        let certificates = certificates("certificate", &config.certificate)?;
        let key = read("private_key", &config.private_key)?;
        let key = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|error| file("private_key", &config.private_key, error))?;
        let end_point = certificates.first().and_then(server_end_point);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Pair)?;
        let builder = match &config.client_ca {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for certificate in self::certificates("client_ca", path)? {
                    roots.add(certificate).map_err(|error| file("client_ca", path, error))?;
                }
                // A client without a certificate may still prove itself by a password.
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                    .allow_unauthenticated()
                    .build()
                    .map_err(|error| file("client_ca", path, error))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut server = builder.with_single_cert(certificates, key).map_err(TlsError::Pair)?;
        server.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(Self { acceptor: TlsAcceptor::from(Arc::new(server)), end_point, required: config.required })
    }

    pub fn acceptor(&self) -> &TlsAcceptor {
        &self.acceptor
    }
}

fn file(key: &'static str, path: &Path, reason: impl std::fmt::Display) -> TlsError {
    TlsError::File { key, file: path.display().to_string(), reason: reason.to_string() }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| file(key, path, error))
}

fn certificates(key: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read(key, path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|error| file(key, path, error))?;
    if certificates.is_empty() {
        return Err(file(key, path, "no certificate in it"));
    }
    Ok(certificates)
}

/// The common name of a certificate's subject, which is who the client is (PostgreSQL's `cert` method).
///
/// `None` as well where there is more than one: which of them counts would be a guess.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let mut names = parsed.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    // As PostgreSQL: a NUL inside would end the name early for whoever reads it as a C string.
    (names.next().is_none() && !name.contains('\0')).then_some(name)
}
