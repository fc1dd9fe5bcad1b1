//! What OPA says of itself: the body of its status reports.
//!
//! Invariant: pure. A body that is no report is an error, never an empty report; what is kept of one is short.
//! <https://www.openpolicyagent.org/docs/management-status>

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::document::OneLine;

/// What our bundle is called in OPA's configuration.
pub const BUNDLE: &str = "fedgate";
/// Longest text that is kept, in characters.
const TEXT: usize = 200;
/// Most labels that are kept.
const LABELS: usize = 16;

/// One report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// OPA's own, new with each start.
    pub id: Arc<str>,
    pub partition: Option<Arc<str>>,
    pub labels: BTreeMap<String, String>,
    /// Of the bundle that it enforces; `None`: of ours, none.
    pub revision: Option<Arc<str>>,
    /// When it took that into use, by its own clock.
    pub activated_at: Option<SystemTime>,
    /// Why it could not load a newer one.
    pub error: Option<Arc<str>>,
}

/// Why a body is no report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StatusError {
    #[error("the body is no status report of OPA: {0}")]
    Json(String),
    #[error("the report has no labels.id, which says whose it is")]
    NoId,
    #[error(
        "the report speaks of no bundle {BUNDLE:?}; that is what it has to be called in OPA's configuration"
    )]
    NoBundle,
}

#[derive(Deserialize)]
struct Body {
    labels: BTreeMap<String, String>,
    #[serde(default)]
    bundles: Option<BTreeMap<String, Map<String, Value>>>,
}

#[derive(Deserialize)]
struct Bundle {
    #[serde(default)]
    active_revision: Option<String>,
    #[serde(default)]
    last_successful_activation: Option<String>,
    #[serde(default)]
    code: Option<String>,
    #[serde(default)]
    message: Option<String>,
}

impl Report {
    /// # Errors
    /// It is none, or not about our bundle.
    pub fn parse(partition: Option<&str>, body: &[u8]) -> Result<Self, StatusError> {
        let json = |error: serde_json::Error| StatusError::Json(short(&error.to_string()));
        // Objects first: a list would do for a struct, too.
        let body: Map<String, Value> = serde_json::from_slice(body).map_err(json)?;
        let body: Body = serde_json::from_value(Value::Object(body)).map_err(json)?;
        let id = body.labels.get("id").filter(|id| !id.is_empty()).ok_or(StatusError::NoId)?;
        let bundle =
            body.bundles.and_then(|mut bundles| bundles.remove(BUNDLE)).ok_or(StatusError::NoBundle)?;
        let bundle: Bundle = serde_json::from_value(Value::Object(bundle)).map_err(json)?;
        let text = |text: &Option<String>| text.as_deref().filter(|text| !text.is_empty()).map(short);
        let error = match (text(&bundle.code), text(&bundle.message)) {
            (None, None) => None,
            (Some(one), None) | (None, Some(one)) => Some(one),
            (Some(code), Some(message)) => Some(short(&format!("{code}: {message}"))),
        };
        Ok(Self {
            id: short(id).into(),
            partition: partition.map(|partition| short(partition).into()),
            labels: body
                .labels
                .iter()
                .filter(|(name, _)| *name != "id")
                .take(LABELS)
                .map(|(name, value)| (short(name), short(value)))
                .collect(),
            // To the letter: a shortened revision would be another one, and is nobody's.
            revision: bundle.active_revision.as_deref().filter(|revision| !revision.is_empty()).map(
                |revision| {
                    if revision.chars().count() > TEXT { short(revision).into() } else { revision.into() }
                },
            ),
            activated_at: bundle
                .last_successful_activation
                .as_deref()
                .and_then(|time| humantime::parse_rfc3339(time).ok())
                // Go's zero time: never.
                .filter(|time| *time > SystemTime::UNIX_EPOCH),
            error: error.map(Into::into),
        })
    }
}

fn short(text: &str) -> String {
    OneLine(text).to_string().chars().take(TEXT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_opa_sends() {
        let body = br#"{"labels":{"app":"trino","id":"8d1f","version":"1.9.0"},
            "bundles":{"fedgate":{"name":"fedgate","active_revision":"abc","last_request":"2026-11-28T10:00:00.5Z",
              "last_successful_activation":"2026-11-28T10:00:00.25Z","last_successful_request":"2026-11-28T10:00:00.5Z","metrics":{"timer_x":1}},
             "other":{"name":"other","active_revision":"zzz"}},
            "plugins":{"bundle":{"state":"OK"},"discovery":{"state":"OK"}}}"#;
        let report = Report::parse(Some("prod"), body).unwrap();
        assert_eq!(
            (&*report.id, report.partition.as_deref(), report.revision.as_deref()),
            ("8d1f", Some("prod"), Some("abc"))
        );
        assert_eq!(
            humantime::format_rfc3339_millis(report.activated_at.unwrap()).to_string(),
            "2026-11-28T10:00:00.250Z"
        );
        assert_eq!(report.labels.keys().collect::<Vec<_>>(), ["app", "version"]);
        assert_eq!(report.error, None);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let body = br#"{"labels":{"id":"1"},"bundles":{"fedgate":{"name":"fedgate","last_successful_activation":"0001-01-01T00:00:00Z",
            "code":"bundle_error","message":"Bundle load failed\nreally","http_code":503}}}"#;
        let report = Report::parse(None, body).unwrap();
        assert_eq!((report.revision, report.activated_at), (None, None));
        assert_eq!(report.error.as_deref(), Some("bundle_error: Bundle load failed\\u{a}really"));
    }

    #[test]
    fn nonsense_is_no_report() {
        let cases: &[(&str, &str)] = &[
            ("", "no status report"),
            ("[]", "no status report"),
            ("{}", "no status report"),
            ("null", "no status report"),
            (r#"{"labels":{}}"#, "labels.id"),
            (r#"{"labels":{"id":""},"bundles":{}}"#, "labels.id"),
            (r#"{"labels":{"id":7},"bundles":{}}"#, "no status report"),
            (r#"{"labels":{"id":"1"}}"#, "no bundle"),
            (r#"{"labels":{"id":"1"},"bundles":null}"#, "no bundle"),
            (r#"{"labels":{"id":"1"},"bundles":{"other":{}}}"#, "no bundle"),
            (r#"{"labels":{"id":"1"},"bundles":{"fedgate":[]}}"#, "no status report"),
            (r#"{"labels":{"id":"1"},"bundles":{"fedgate":{"active_revision":{}}}}"#, "no status report"),
        ];
        for (body, want) in cases {
            let error = Report::parse(None, body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(want), "{body}: {error}");
        }
        let deep = format!(r#"{{"labels":{{"id":"1"}},"bundles":{}"#, "[".repeat(100_000));
        assert!(Report::parse(None, deep.as_bytes()).is_err());
        let long = format!(r#"{{"labels":{{"id":"{}"}},"bundles":{{"fedgate":{{}}}}}}"#, "x".repeat(100_000));
        assert_eq!(Report::parse(None, long.as_bytes()).unwrap().id.len(), TEXT);
    }
}
