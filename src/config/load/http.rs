//! `[http]`: where the API listens and whom it believes.
//!
//! Invariant: an API that asks nobody who they are listens on a loopback that is ours alone.

use super::files::server_tls;
use super::{Loader, base_url, socket_address};
use crate::config::raw::Section;
use crate::config::{Http, HttpAuth, JwksPlace, JwtAuth, ServerTls};

impl Loader<'_> {
    pub(super) fn http(&self, mut section: Section<'_, '_>) -> Option<Http> {
        if !section.has("listen") {
            section.missing("listen", "write listen = \"127.0.0.1:8080\"");
        }
        let text = section.text("listen");
        let listen = text.as_ref().and_then(|text| socket_address(section.reader, text));
        let auth = if section.is_table("auth") {
            section.section("auth").and_then(|section| self.jwt(section)).map(HttpAuth::Jwt)
        } else {
            section.word("auth", &[("none", ())]);
            Some(HttpAuth::None)
        };
        if let (Some(address), Some(text), Some(HttpAuth::None)) = (listen, &text, &auth) {
            if !address.ip().to_canonical().is_loopback() {
                section.reader.problem(
                    &text.place,
                    format!(
                        "{address} is not a loopback address, and HTTP without auth asks nobody who they are; write \
                         auth = {{ jwks_file or jwks_url, issuer, audience }}"
                    ),
                );
            }
            if self.host_network {
                section.reader.problem(
                    &text.place,
                    "HTTP without auth asks nobody who they are, and with fedgate_host_network = true the node's \
                     loopback is not only ours",
                );
            }
        }
        let had_tls = section.has("tls");
        let tls = section.section("tls").and_then(|section| self.http_tls(section));
        section.finish();
        if had_tls && tls.is_none() {
            return None;
        }
        Some(Http { listen: listen?, auth: auth?, tls })
    }

    fn http_tls(&self, mut section: Section<'_, '_>) -> Option<ServerTls> {
        let files = server_tls(&mut section, self.base);
        section.finish();
        files
    }

    fn jwt(&self, mut section: Section<'_, '_>) -> Option<JwtAuth> {
        let file = section.path_of_file("jwks_file", self.base);
        let url = section.has("jwks_url").then(|| base_url(&mut section, "jwks_url", "")).flatten();
        let keys = match (file, url) {
            (Some(_), Some(_)) => {
                section.problem("jwks_url", "stands beside jwks_file; one of them says where the keys are");
                None
            }
            (Some(file), None) => Some(JwksPlace::File(file.value)),
            (None, Some(url)) => self.trusted(&mut section, url).map(JwksPlace::Url),
            (None, None) => {
                if !section.has("jwks_file") && !section.has("jwks_url") {
                    section.missing("jwks_url", "the address of the issuer's keys, or jwks_file");
                }
                None
            }
        };
        let mut name = |key: &'static str, what: &str| {
            if !section.has(key) {
                section.missing(key, what);
            }
            let found = section.text(key)?;
            if found.value.is_empty() {
                section.reader.problem(&found.place, "must not be empty");
                return None;
            }
            Some(found.value)
        };
        let issuer = name("issuer", "the `iss` of the tokens that count");
        let audience = name("audience", "the `aud` that this gateway answers to");
        let admin_role = match section.has("admin_role") {
            true => name_of_role(&mut section),
            false => Some("akko-admin".to_owned()),
        };
        section.finish();
        Some(JwtAuth { keys: keys?, issuer: issuer?, audience: audience?, admin_role: admin_role? })
    }

    /// Whoever can put other keys in the place of the issuer's can make himself an admin.
    fn trusted(&self, section: &mut Section<'_, '_>, url: String) -> Option<String> {
        let parsed = reqwest::Url::parse(&url).ok()?;
        let host = parsed.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let loopback = host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback());
        if parsed.scheme() == "https" || (loopback && !self.host_network) {
            return Some(url);
        }
        section.problem(
            "jwks_url",
            "comes without TLS from another host, where keys can be exchanged on the way; write https:// (SSL_CERT_FILE \
             names roots other than the system's), or have the keys in jwks_file",
        );
        None
    }
}

fn name_of_role(section: &mut Section<'_, '_>) -> Option<String> {
    let found = section.text("admin_role")?;
    if found.value.is_empty() {
        section.reader.problem(&found.place, "must not be empty: everybody would be an admin");
        return None;
    }
    Some(found.value)
}
