//! TLS towards a source: what each mode trusts, and what SCRAM binds to.
//!
//! Invariant: whatever the mode, the handshake's own signature is checked, so that the peer holds
//! the key of the certificate that it showed; and only the `verify-…` modes say whose that is.
//!
//! The modes are libpq's: `prefer` and `require` trust any certificate, except that `require` with
//! `tls_ca` checks the chain as `verify-ca` does. `verify-full` looks for the host's name in the
//! subject alternative names only, never in the common name (RFC 9525). A certificate that stands in
//! `tls_ca` itself is trusted as it is: PostgreSQL's documentation shows how to make a self-signed
//! one, which is formally an authority, and webpki takes no authority for a server.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_parser::oid_registry::{
    OID_HASH_SHA1, OID_NIST_HASH_SHA256, OID_NIST_HASH_SHA384, OID_NIST_HASH_SHA512, OID_PKCS1_SHA1WITHRSA,
    OID_PKCS1_SHA256WITHRSA, OID_PKCS1_SHA384WITHRSA, OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA256,
    OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ECDSA_WITH_SHA512,
};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::signature_algorithm::SignatureAlgorithm;

use crate::config::{SourceTls, TlsMode};
use crate::ids::SourceName;
use crate::upstream::error::SourceError;

/// The protocol's name in ALPN (PostgreSQL 17; protocol chapter 54.2.9).
const ALPN: &[u8] = b"postgresql";

/// The client side of TLS for one source; nothing where TLS is never used.
pub(super) fn client_config(
    name: &SourceName,
    tls: &SourceTls,
) -> Result<Option<Arc<ClientConfig>>, SourceError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let (trusted, check_name) = match (tls.mode, &tls.ca) {
        (TlsMode::Disable, _) => return Ok(None),
        (TlsMode::Prefer, _) | (TlsMode::Require, None) => (None, false),
        (TlsMode::Require | TlsMode::VerifyCa, _) => (Some(trusted(name, tls)?), false),
        (TlsMode::VerifyFull, _) => (Some(trusted(name, tls)?), true),
    };
    let algorithms = provider.signature_verification_algorithms;
    let verifier = Arc::new(Verifier { trusted, check_name, algorithms });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| SourceError::Tls { name: name.clone(), error })?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    // PostgreSQL resumes no sessions (it turns tickets and its session cache off); a cache here would only grow.
    config.resumption = Resumption::disabled();
    Ok(Some(Arc::new(config)))
}

/// What a chain may end in.
#[derive(Debug)]
struct Trusted {
    roots: RootCertStore,
    /// The certificates of `tls_ca` as they are.
    given: Vec<CertificateDer<'static>>,
}

fn trusted(name: &SourceName, tls: &SourceTls) -> Result<Trusted, SourceError> {
    let mut roots = RootCertStore::empty();
    let mut given = Vec::new();
    let Some(path) = &tls.ca else {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            let error =
                system.errors.first().map_or_else(|| "none found".to_owned(), |error| error.to_string());
            return Err(SourceError::NoSystemRoots { name: name.clone(), error });
        }
        return Ok(Trusted { roots, given });
    };
    let unreadable = |error: rustls_pki_types::pem::Error| SourceError::CaUnreadable {
        name: name.clone(),
        path: path.clone(),
        error: error.to_string(),
    };
    for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
        let certificate = certificate.map_err(unreadable)?;
        roots.add(certificate.clone()).map_err(|error| SourceError::CaInvalid {
            name: name.clone(),
            path: path.clone(),
            error,
        })?;
        given.push(certificate);
    }
    if given.is_empty() {
        return Err(SourceError::CaEmpty { name: name.clone(), path: path.clone() });
    }
    Ok(Trusted { roots, given })
}

/// Checks the handshake's signature; the chain where something is trusted; the name where asked.
#[derive(Debug)]
struct Verifier {
    trusted: Option<Trusted>,
    check_name: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(trusted) = &self.trusted else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        if trusted.given.iter().any(|given| given.as_ref() == end_entity.as_ref()) {
            check_validity(end_entity, now)?;
        } else {
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                &trusted.roots,
                intermediates,
                now,
                self.algorithms.all,
            )?;
        }
        if self.check_name {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn check_validity(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    if now < validity.not_before.timestamp() {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > validity.not_after.timestamp() {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// The `tls-server-end-point` channel binding of a certificate (RFC 5929, section 4.1): its hash, by
/// the hash function of its own signature, SHA-256 in place of MD5 and SHA-1. Nothing for
/// signatures without one such hash function (Ed25519), for which it is not defined.
pub fn server_end_point(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let algorithm = &parsed.signature_algorithm;
    let mut oid = algorithm.algorithm.clone();
    if let Ok(SignatureAlgorithm::RSASSA_PSS(parameters)) = SignatureAlgorithm::try_from(algorithm) {
        oid = parameters.hash_algorithm_oid().to_owned();
    }
    let sha256 = [
        OID_PKCS1_SHA1WITHRSA,
        OID_HASH_SHA1,
        OID_PKCS1_SHA256WITHRSA,
        OID_SIG_ECDSA_WITH_SHA256,
        OID_NIST_HASH_SHA256,
    ];
    let sha384 = [OID_PKCS1_SHA384WITHRSA, OID_SIG_ECDSA_WITH_SHA384, OID_NIST_HASH_SHA384];
    let sha512 = [OID_PKCS1_SHA512WITHRSA, OID_SIG_ECDSA_WITH_SHA512, OID_NIST_HASH_SHA512];
    if sha256.contains(&oid) {
        Some(Sha256::digest(certificate).to_vec())
    } else if sha384.contains(&oid) {
        Some(Sha384::digest(certificate).to_vec())
    } else if sha512.contains(&oid) {
        Some(Sha512::digest(certificate).to_vec())
    } else {
        None
    }
}
