//! What OpenMetadata pushes: that something has changed.
//!
//! Invariant: pure. An event is a reason to look again and never a fact: nothing that it says but names gets out.

use hmac::{Hmac, Mac};
use serde::Deserialize;
use sha2::Sha256;

use crate::sync::catalog::Hint;

/// Longest body that is looked at, in bytes.
pub const BODY_LIMIT: usize = 1 << 20;
/// Longest name that is worth asking for, in bytes: OpenMetadata's own bound is 3072.
const NAME_LIMIT: usize = 4096;

/// Kinds of entities that no mask depends on, however often they change.
const IRRELEVANT: &[&str] = &[
    "aiApplication",
    "apiCollection",
    "apiEndpoint",
    "apiService",
    "app",
    "appMarketPlaceDefinition",
    "bot",
    "chart",
    "container",
    "dashboard",
    "dashboardDataModel",
    "dashboardService",
    "dataContract",
    "dataInsightChart",
    "dataInsightCustomChart",
    "dataProduct",
    "directory",
    "docStore",
    "document",
    "domain",
    "driveService",
    "eventsubscription",
    "file",
    "ingestionPipeline",
    "kpi",
    "llmModel",
    "messagingService",
    "metadataService",
    "metric",
    "mlmodel",
    "mlmodelService",
    "notificationTemplate",
    "page",
    "persona",
    "pipeline",
    "pipelineService",
    "policy",
    "query",
    "report",
    "role",
    "searchIndex",
    "searchService",
    "securityService",
    "spreadsheet",
    "storageService",
    "storedProcedure",
    "suggestion",
    "team",
    "testCase",
    "testCaseResolutionStatus",
    "testCaseResult",
    "testConnectionDefinition",
    "testDefinition",
    "testSuite",
    "THREAD",
    "topic",
    "type",
    "user",
    "webhook",
    "workflow",
    "workflowDefinition",
    "workflowInstance",
    "workflowInstanceState",
    "worksheet",
];

/// Why a body is no event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    #[error("the body is no event, no list of events and no object with data: {0}")]
    Shape(String),
}

/// Is `header` (`X-OM-Signature: sha256=…`) the HMAC of `body` under `key`? In constant time.
///
/// Never, when the key is empty, as a file is that is being written: everybody knows that key.
pub fn verify(key: &[u8], header: &[u8], body: &[u8]) -> bool {
    if key.is_empty() {
        return false;
    }
    let Some(digest) = header.strip_prefix(b"sha256=").and_then(unhex) else { return false };
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(key) else { return false };
    mac.update(body);
    mac.verify_slice(&digest).is_ok()
}

fn unhex(text: &[u8]) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.chunks(2)) {
        let pair =
            std::str::from_utf8(pair).ok().filter(|pair| pair.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(bytes)
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Body {
    Many(Vec<Event>),
    Wrapped { data: Vec<Event> },
    One(Event),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    entity_type: String,
    #[serde(default)]
    entity_fully_qualified_name: Option<String>,
}

/// What a body of one event, a list of them or `{"data": […]}` gives reason to look at; nothing, when it is about
/// what no mask depends on.
///
/// # Errors
/// It is none of the three.
pub fn hint(body: &[u8]) -> Result<Hint, EventError> {
    let body: Body = serde_json::from_slice(body).map_err(|error| EventError::Shape(error.to_string()))?;
    let events = match body {
        Body::Many(events) | Body::Wrapped { data: events } => events,
        Body::One(event) => vec![event],
    };
    let mut hint = Hint::default();
    for event in events {
        match event.entity_type.as_str() {
            "table" => match event.entity_fully_qualified_name {
                Some(name) if !name.is_empty() && name.len() <= NAME_LIMIT => {
                    hint.add(Hint { tables: [name.into()].into(), whole: false });
                }
                _ => hint.add(Hint::all()),
            },
            // No mask depends on these. What is not known, such as a kind of a later version, may matter.
            kind if IRRELEVANT.contains(&kind) => {}
            _ => hint.add(Hint::all()),
        }
    }
    Ok(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_shapes() {
        let event = |kind: &str, name: &str| {
            format!(
                r#"{{"id":"1","eventType":"entityUpdated","entityType":"{kind}","entityFullyQualifiedName":"{name}","entity":{{"x":1.5}}}}"#
            )
        };
        let one = event("table", "pg.shop.public.customers");
        let two = event("table", "pg.shop.public.orders");
        let cases: &[(String, Option<(&[&str], bool)>)] = &[
            (one.clone(), Some((&["pg.shop.public.customers"], false))),
            (
                format!("[{one},{two},{one}]"),
                Some((&["pg.shop.public.customers", "pg.shop.public.orders"], false)),
            ),
            (format!(r#"{{"data":[{two}]}}"#), Some((&["pg.shop.public.orders"], false))),
            (event("tag", "PII.Sensitive"), Some((&[], true))),
            (format!("[{one},{}]", event("classification", "PII")), Some((&[], true))),
            (r#"{"entityType":"table"}"#.to_owned(), Some((&[], true))),
            (event("table", &"x".repeat(10_000)), Some((&[], true))),
            (event("user", "somebody"), Some((&[], false))),
            (event("columnOfALaterVersion", "pg.shop.public.customers.email"), Some((&[], true))),
            ("[]".to_owned(), Some((&[], false))),
            ("{}".to_owned(), None),
            ("7".to_owned(), None),
            ("".to_owned(), None),
            (r#"{"data":{}}"#.to_owned(), None),
            ("[".repeat(100_000), None),
            (r#"{"entityType":["table"]}"#.to_owned(), None),
        ];
        for (body, want) in cases {
            let found = hint(body.as_bytes()).ok();
            let want = want.map(|(tables, whole)| Hint {
                tables: tables.iter().map(|name| (*name).into()).collect(),
                whole,
            });
            assert_eq!(found, want, "{}", body.chars().take(200).collect::<String>());
        }
    }

    #[test]
    fn signatures() {
        // RFC 4231, test case 2.
        let (key, body) = (b"Jefe".as_slice(), b"what do ya want for nothing?".as_slice());
        let digest = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843";
        let good = format!("sha256={digest}");
        assert!(verify(key, good.as_bytes(), body));
        assert!(verify(key, format!("sha256={}", digest.to_uppercase()).as_bytes(), body));
        let short = &good[..good.len() - 1];
        for bad in [
            digest,
            short,
            "",
            "sha256=",
            &format!("{good}0"),
            &good.replace('5', "6"),
            "sha1=5bdc",
            &format!(" {good}"),
            &good.replace("5b", "+b"),
        ] {
            assert!(!verify(key, bad.as_bytes(), body), "{bad}");
        }
        assert!(!verify(b"other", good.as_bytes(), body));
        // `openssl dgst -sha256 -hmac ''` of nothing.
        let empty = "b613679a0814d9ec772f95d778c35fc5ff1697c493715653c6c712144292c5ad";
        assert!(!verify(b"", format!("sha256={empty}").as_bytes(), b""), "an empty key is none");
        assert!(!verify(key, good.as_bytes(), b"something else"));
    }
}
