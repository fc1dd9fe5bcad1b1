//! Certificates, keys and secrets that a configuration names.
//!
//! Invariant: no message quotes what stands in a file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::raw::{Found, Reader, Section};
use crate::config::{SecretFile, ServerTls};

/// Longest certificate or key file, in bytes.
const PEM_LIMIT: u64 = 1 << 20;

/// A secret of one line; it is looked at once here, and read anew for each use.
pub(super) fn secret_file(
    section: &mut Section<'_, '_>,
    key: &'static str,
    base: &Path,
) -> Option<SecretFile> {
    let found = section.path_of_file(key, base)?;
    let file = SecretFile::new(found.value);
    let shown = file.path().display();
    match file.read() {
        Ok(secret) if secret.expose().is_empty() => {
            section.reader.problem(&found.place, format!("{shown} is empty"));
        }
        Ok(secret) if secret.expose().contains(['\0', '\n']) => {
            section.reader.problem(&found.place, format!("{shown} holds more than one line"));
        }
        Ok(_) => {}
        Err(error) => section.reader.problem(&found.place, format!("{shown} cannot be read: {error}")),
    }
    Some(file)
}

/// The files of a listener with TLS. `section` may have keys of its own beside them.
pub(super) fn server_tls(section: &mut Section<'_, '_>, base: &Path) -> Option<ServerTls> {
    let mut file = |key, what| {
        if !section.has(key) {
            section.missing(key, what);
        }
        section.path_of_file(key, base)
    };
    let certificate = file("certificate", "the PEM file of the certificate and its chain");
    let private_key = file("private_key", "the PEM file of the certificate's key");
    let chain = certificate.as_ref().and_then(|found| certificates(section.reader, found));
    let key = private_key.as_ref().and_then(|found| private_key_of(section.reader, found));
    if let (Some(chain), Some(key), Some(found)) = (chain, key, &private_key)
        && let Err(reason) = matching(chain, key)
    {
        section.reader.problem(&found.place, reason);
    }
    let client_ca = section.path_of_file("client_ca", base);
    if let Some(found) = &client_ca {
        certificates(section.reader, found);
    }
    Some(ServerTls {
        certificate: certificate?.value,
        private_key: private_key?.value,
        client_ca: client_ca.map(|found| found.value),
    })
}

/// A pipe would hang, and no PEM file is that long.
fn readable(path: &Path) -> Result<(), String> {
    let metadata = std::fs::metadata(path).map_err(|error| format!("cannot be read: {error}"))?;
    if !metadata.is_file() {
        return Err("is not a regular file".to_owned());
    }
    if metadata.len() > PEM_LIMIT {
        return Err("is longer than any certificate".to_owned());
    }
    Ok(())
}

pub(super) fn certificates(
    reader: &Reader<'_>,
    found: &Found<PathBuf>,
) -> Option<Vec<CertificateDer<'static>>> {
    let read = || {
        readable(&found.value)?;
        let list = CertificateDer::pem_file_iter(&found.value)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| format!("is not a PEM file: {}", pem_reason(&error)))?;
        if list.is_empty() { Err("holds no certificate in PEM".to_owned()) } else { Ok(list) }
    };
    noted(reader, found, read())
}

fn private_key_of(reader: &Reader<'_>, found: &Found<PathBuf>) -> Option<PrivateKeyDer<'static>> {
    let read = || {
        readable(&found.value)?;
        PrivateKeyDer::from_pem_file(&found.value)
            .map_err(|error| format!("holds no private key in PEM: {}", pem_reason(&error)))
    };
    noted(reader, found, read())
}

fn noted<T>(reader: &Reader<'_>, found: &Found<PathBuf>, read: Result<T, String>) -> Option<T> {
    match read {
        Ok(value) => Some(value),
        Err(reason) => {
            reader.problem(&found.place, format!("{} {reason}", found.value.display()));
            None
        }
    }
}

/// In words that never hold a line of the file, as the error's own may.
fn pem_reason(error: &rustls_pki_types::pem::Error) -> String {
    use rustls_pki_types::pem::Error;
    match error {
        Error::Io(error) => error.to_string(),
        Error::NoItemsFound => "there is none".to_owned(),
        _ => "it is damaged".to_owned(),
    }
}

/// Whether the key is the certificate's.
fn matching(chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<(), String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map(drop)
        .map_err(|error| format!("does not go with the certificate: {error}"))
}
