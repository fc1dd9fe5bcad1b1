//! Errors as `application/problem+json` (RFC 9457).
//!
//! Invariant: every answer that is no success has this form.

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

/// One error.
#[derive(Debug, Serialize)]
pub struct Problem<T: Serialize = ()> {
    /// No page explains any of them further, so it is the RFC's `about:blank`.
    r#type: &'static str,
    title: &'static str,
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    #[serde(flatten)]
    more: Option<T>,
}

impl Problem {
    pub fn new(status: StatusCode) -> Self {
        Problem::with(status, None, None)
    }

    pub fn detail(status: StatusCode, detail: &str) -> Self {
        Problem::with(status, Some(detail.to_owned()), None)
    }
}

impl<T: Serialize> Problem<T> {
    pub fn with(status: StatusCode, detail: Option<String>, more: Option<T>) -> Self {
        let title = status.canonical_reason().unwrap_or("Error");
        Self { r#type: "about:blank", title, status: status.as_u16(), detail, more }
    }
}

impl<T: Serialize> IntoResponse for Problem<T> {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        (status, [json("application/problem+json")], body).into_response()
    }
}

pub(super) fn json(kind: &'static str) -> (HeaderName, HeaderValue) {
    (header::CONTENT_TYPE, HeaderValue::from_static(kind))
}
