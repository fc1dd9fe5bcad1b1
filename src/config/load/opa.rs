//! `[opa]`: the bundle for Trino's OPA, who may fetch it, and what proves that it is enforced.
//!
//! Invariant: whoever fetches the policy or reports on it has shown a token or a certificate; forged reports would be
//! forged proof.

use std::time::Duration;

use super::files::{certificates, secret_file};
use super::{DAY, Loader, SECOND};
use crate::config::raw::{Found, Section};
use crate::config::{OpaSection, OtherCatalogs, ProbeSection, SigningAlgorithm, SigningSection};

/// OPAs that are asked what they enforce.
const PROBES: usize = 64;

/// What the section has to know of others.
#[derive(Clone, Copy)]
pub(super) struct Beside {
    pub(super) document: bool,
    pub(super) http: bool,
    pub(super) client_certificates: bool,
}

impl Loader<'_> {
    pub(super) fn opa(&self, mut section: Section<'_, '_>, beside: Beside) -> Option<OpaSection> {
        let (has_token, has_certificates) = (section.has("token_file"), section.has("certificates"));
        let token = secret_file(&mut section, "token_file", self.base);
        let certificates = names(&mut section, "certificates");
        if !has_token && !has_certificates {
            section.missing("token_file", "the file with the bearer token that OPA shows, or certificates");
        }
        if !beside.document {
            section.problem(
                "token_file",
                "the bundle is made of the policy document, and there is no [document]",
            );
        }
        if !beside.http {
            section.problem("token_file", "the bundle is served under /opa/, and there is no [http]");
        }
        if has_certificates && !beside.client_certificates {
            section.problem("certificates", "can never be met: [http.tls] names no client_ca");
        }
        let store = match section.path_of_file("store", self.base) {
            Some(found) => found.value,
            None => self.base.join("opa-bundle.tar.gz"),
        };
        let package_trino = section.boolean_or("package_trino", true);
        let other_catalogs = section
            .word(
                "other_catalogs",
                &[
                    ("deny", OtherCatalogs::Deny),
                    ("read", OtherCatalogs::Read),
                    ("allow", OtherCatalogs::Allow),
                ],
            )
            .map_or(OtherCatalogs::Deny, |found| found.value);
        let system_session_properties = names(&mut section, "system_session_properties");
        let instances = section.count("instances", 1, 1, 256);
        let silent_after = section.duration("silent_after", SECOND * 120, SECOND, DAY);
        let forget_after = section.duration("forget_after", SECOND * 600, Duration::ZERO, DAY * 30);
        let had_signing = section.has("signing");
        let signing = section.section("signing").map(|section| self.signing(section));
        let had_probe = section.has("probe");
        let probe = section.section("probe").map(|section| self.probe(section));
        section.finish();
        Some(OpaSection {
            token,
            certificates,
            store,
            package_trino,
            other_catalogs,
            system_session_properties,
            instances,
            silent_after,
            forget_after,
            signing: if had_signing { Some(signing??) } else { None },
            probe: if had_probe { Some(probe??) } else { None },
        })
    }

    fn signing(&self, mut section: Section<'_, '_>) -> Option<SigningSection> {
        for (key, what) in [
            ("algorithm", "one of HS256, RS256, PS256, ES256"),
            ("key_file", "the file with the key that signs"),
        ] {
            if !section.has(key) {
                section.missing(key, what);
            }
        }
        let algorithm = section.word(
            "algorithm",
            &[
                ("HS256", SigningAlgorithm::Hs256),
                ("RS256", SigningAlgorithm::Rs256),
                ("PS256", SigningAlgorithm::Ps256),
                ("ES256", SigningAlgorithm::Es256),
            ],
        );
        let key = key_file(&mut section, self.base);
        let key_id = match section.has("key_id") {
            true => section.text("key_id")?.value,
            false => "fedgate".to_owned(),
        };
        // It stands in OPA's configuration and in the signature as it is.
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if key_id.is_empty() || !key_id.bytes().all(plain) {
            section.problem("key_id", "must be letters, digits, -, _ and . only");
        }
        section.finish();
        Some(SigningSection { algorithm: algorithm?.value, key: key?, key_id })
    }

    fn probe(&self, mut section: Section<'_, '_>) -> Option<ProbeSection> {
        if !section.has("urls") {
            section.missing("urls", "where the OPAs listen, such as [\"http://opa:8181\"]");
        }
        let mut urls = Vec::new();
        for found in section.texts("urls").map(|found| found.value).unwrap_or_default() {
            match reqwest::Url::parse(&found.value) {
                Ok(url) if matches!(url.scheme(), "http" | "https") && url.username().is_empty() => {
                    urls.push(found.value.trim_end_matches('/').to_owned());
                }
                _ => section.reader.problem(
                    &found.place,
                    "must be a URL with http:// or https://, without user or password",
                ),
            }
        }
        if urls.len() > PROBES {
            section.problem("urls", format!("must not be more than {PROBES}"));
        }
        let every = section.duration("every", SECOND * 30, SECOND, DAY);
        let token = secret_file(&mut section, "token_file", self.base);
        let ca = section.path_of_file("tls_ca", self.base);
        if let Some(found) = &ca {
            certificates(section.reader, found);
        }
        section.finish();
        Some(ProbeSection { urls, every, token, ca: ca.map(|found| found.value) })
    }
}

fn names(section: &mut Section<'_, '_>, key: &'static str) -> Vec<String> {
    let found: Vec<Found<String>> = section.texts(key).map(|found| found.value).unwrap_or_default();
    for name in &found {
        if name.value.is_empty() {
            section.reader.problem(&name.place, "must not be empty");
        }
    }
    found.into_iter().map(|name| name.value).collect()
}

/// A key of several lines, unlike a token.
fn key_file(section: &mut Section<'_, '_>, base: &std::path::Path) -> Option<crate::config::SecretFile> {
    let found = section.path_of_file("key_file", base)?;
    let file = crate::config::SecretFile::new(found.value);
    match file.read() {
        Ok(key) if key.expose().is_empty() => {
            section.reader.problem(&found.place, format!("{} is empty", file.path().display()));
        }
        Ok(_) => {}
        Err(error) => {
            section
                .reader
                .problem(&found.place, format!("{} cannot be read: {error}", file.path().display()));
        }
    }
    Some(file)
}
