//! Where a request comes from, as far as it says so.
//!
//! Invariant: what a page in a browser sends across sites is told from what a program of this machine sends.
//!
//! An API on loopback that asks nobody who they are is open to every program of the machine, and that is meant. A
//! browser is one of them, which runs the programs of others: a page of anywhere may post to any address (and need not
//! read the answer to have changed something), and a name that its owner lets point to 127.0.0.1 makes it read the
//! answers, too. A browser names the page's origin with what it posts, and the host that it believes it speaks to with
//! everything.

use std::net::IpAddr;

use axum::http::{HeaderMap, header};

/// Does this come from a program of this machine, rather than from a page that a browser got elsewhere? With `tls` this
/// port speaks nothing else, so that no page of its own has the other scheme.
pub(super) fn is_local(headers: &HeaderMap, tls: bool) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        // HTTP/1.0, which no browser speaks.
        (None, _) => None,
        (Some(host), None) => match host.to_str() {
            Ok(host) if is_loopback(host) => Some(host),
            _ => return false,
        },
        (Some(_), Some(_)) => return false,
    };
    let scheme = if tls { "https://" } else { "http://" };
    let own = headers.get_all(header::ORIGIN).iter().all(|origin| {
        let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix(scheme));
        origin.is_some_and(|origin| host == Some(origin))
    });
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    own && matches!(site, None | Some(b"same-origin" | b"none"))
}

/// `127.0.0.1:8080`, `[::1]`, `localhost`
fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if port.is_empty() || port.starts_with(':') => address,
        Some(_) => return false,
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    match name.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => name.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_this_machine_and_pages_of_others() {
        let cases: &[(&[(&str, &str)], bool)] = &[
            (&[], true),
            (&[("host", "127.0.0.1:8080")], true),
            (&[("host", "localhost")], true),
            (&[("host", "LOCALHOST:8080")], true),
            (&[("host", "[::1]:8080")], true),
            (&[("host", "127.1.2.3")], true),
            (&[("host", "127.0.0.1:8080"), ("origin", "http://127.0.0.1:8080")], true),
            (&[("host", "127.0.0.1:8080"), ("sec-fetch-site", "none")], true),
            // A name that points here.
            (&[("host", "evil.example:8080")], false),
            (&[("host", "evil.example:8080"), ("origin", "http://evil.example:8080")], false),
            (&[("host", "localhost.evil.example")], false),
            (&[("host", "127.0.0.1.evil.example")], false),
            (&[("host", "[::1].evil.example")], false),
            (&[("host", "10.0.0.1")], false),
            (&[("host", "")], false),
            (&[("host", "localhost"), ("host", "evil.example")], false),
            // A page of elsewhere.
            (&[("host", "127.0.0.1:8080"), ("origin", "https://evil.example")], false),
            (&[("host", "127.0.0.1:8080"), ("origin", "null")], false),
            (&[("host", "127.0.0.1:8080"), ("origin", "http://127.0.0.1:3000")], false),
            (&[("host", "127.0.0.1:8080"), ("origin", "https://127.0.0.1:8080")], false),
            (&[("origin", "http://127.0.0.1:8080")], false),
            (&[("host", "127.0.0.1:8080"), ("sec-fetch-site", "cross-site")], false),
            (&[("host", "127.0.0.1:8080"), ("sec-fetch-site", "same-site")], false),
        ];
        for (given, want) in cases {
            let mut headers = HeaderMap::new();
            for (name, value) in *given {
                headers.append(*name, value.parse().unwrap());
            }
            assert_eq!(is_local(&headers, false), *want, "{given:?}");
        }
    }

    #[test]
    fn a_page_of_our_own_has_the_scheme_of_the_port() {
        for (origin, tls, want) in [
            ("http://localhost:8080", false, true),
            ("https://localhost:8080", true, true),
            ("http://localhost:8080", true, false),
            ("https://localhost:8080", false, false),
            ("https://localhost:8081", true, false),
            ("https://evil.example:8080", true, false),
            ("null", true, false),
        ] {
            let mut headers = HeaderMap::new();
            headers.append("host", "localhost:8080".parse().unwrap());
            headers.append("origin", origin.parse().unwrap());
            assert_eq!(is_local(&headers, tls), want, "{origin} {tls}");
        }
    }
}
