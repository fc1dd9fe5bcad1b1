//! HTTP clients for the services that the gateway asks: audit sinks, catalogs.
//!
//! Invariant: every request has a time-out and every answer that is read a bound; no redirect is followed and no
//! proxy of the environment is used, so that a token goes where the configuration says and nowhere else.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// How long a connection may take; a request's own time-out counts from its beginning.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a connection is kept that nobody uses.
const IDLE: Duration = Duration::from_secs(60);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot read certificates of {}: {error}", path.display())]
    Unreadable { path: PathBuf, error: String },
    #[error("{} holds no certificate", path.display())]
    Empty { path: PathBuf },
    #[error("the system has no root certificates: {error}")]
    NoSystemRoots { error: String },
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    #[error("no HTTP client can be made: {0}")]
    Http(#[from] reqwest::Error),
}

/// Why the body of an answer was not read to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("the answer is longer than {0} bytes")]
    TooLong(usize),
    #[error("the answer was cut off: {}", told(.0))]
    Cut(#[from] reqwest::Error),
}

/// A client for the service at `url`. Over `https` it trusts the roots in `ca`, or the system's.
///
/// # Errors
/// There are no roots to trust, or what is there is none.
pub fn http(url: &str, ca: Option<&Path>, timeout: Duration) -> Result<reqwest::Client, ClientError> {
    let roots = if url.starts_with("https:") { roots(ca)? } else { RootCertStore::empty() };
    let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT.min(timeout))
        .timeout(timeout)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(2)
        .user_agent(concat!("fedgate/", env!("CARGO_PKG_VERSION")))
        .build()?;
    Ok(client)
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, ClientError> {
    let mut roots = RootCertStore::empty();
    let Some(path) = ca else {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            let error = system.errors.first().map_or_else(|| "none found".to_owned(), ToString::to_string);
            return Err(ClientError::NoSystemRoots { error });
        }
        return Ok(roots);
    };
    let unreadable = |error: String| ClientError::Unreadable { path: path.to_owned(), error };
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unreadable(error.to_string()))? {
        let certificate = certificate.map_err(|error| unreadable(error.to_string()))?;
        roots.add(certificate).map_err(|error| unreadable(error.to_string()))?;
    }
    if roots.is_empty() {
        return Err(ClientError::Empty { path: path.to_owned() });
    }
    Ok(roots)
}

/// The body of an answer, at most `limit` bytes of it.
///
/// # Errors
/// It is longer, or the connection ended before it did.
pub async fn body(mut response: reqwest::Response, limit: usize) -> Result<Bytes, BodyError> {
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Err(BodyError::TooLong(limit));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// An error with all its causes and without its address, which a log or an answer need not show.
pub fn told(error: &reqwest::Error) -> String {
    let mut text = if error.is_timeout() {
        "timed out".to_owned()
    } else if error.is_connect() {
        "cannot connect".to_owned()
    } else {
        "the request failed".to_owned()
    };
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&words(cause));
        source = cause.source();
    }
    text
}

/// What a cause says, but not the names of hosts that a certificate's error holds: status and answers show it.
fn words(cause: &(dyn std::error::Error + 'static)) -> String {
    let mut tls = cause.downcast_ref::<rustls::Error>();
    // An error of I/O shows what it wraps as its own words, and not as its source.
    let mut within = cause.downcast_ref::<std::io::Error>();
    while let Some(inner) = within.and_then(std::io::Error::get_ref) {
        tls = tls.or_else(|| inner.downcast_ref());
        within = inner.downcast_ref();
    }
    match tls {
        Some(rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "its certificate is for another name than the address has".to_owned(),
        _ => cause.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_trusted_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let second = Duration::from_secs(1);
        assert!(matches!(
            http("https://localhost", Some(&path), second),
            Err(ClientError::Unreadable { .. })
        ));
        std::fs::write(&path, "nothing\n").unwrap();
        assert!(matches!(http("https://localhost", Some(&path), second), Err(ClientError::Empty { .. })));
        // Without TLS nobody looks.
        assert!(http("http://localhost", Some(&path), second).is_ok());
    }

    #[tokio::test]
    async fn no_host_stands_in_what_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        let pair = rcgen::KeyPair::generate().unwrap();
        let own = rcgen::CertificateParams::new(vec!["inner.example".to_owned()]).unwrap();
        let own = own.self_signed(&pair).unwrap();
        std::fs::write(&ca, own.pem()).unwrap();
        let config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![own.der().clone()], pair.serialize_der().try_into().unwrap())
                .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let _ = acceptor.accept(stream).await;
            }
        });
        for (url, want) in [
            (format!("https://127.0.0.1:{port}"), "its certificate is for another name"),
            ("http://127.0.0.1:1".to_owned(), "refused"),
            ("http://inner.invalid".to_owned(), "cannot connect"),
        ] {
            let client = http(&url, Some(&ca), Duration::from_secs(10)).unwrap();
            let text = told(&client.get(&url).send().await.unwrap_err());
            assert!(text.contains(want), "{text}");
            assert!(
                !["127.0.0.1", "inner", &port.to_string()].iter().any(|host| text.contains(*host)),
                "{text}"
            );
        }
    }
}
