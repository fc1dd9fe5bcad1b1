//! Points in time as JSON shows them: RFC 3339, in UTC, `null` for none.
//!
//! Invariant: a time that is shown can be read back by whoever reads RFC 3339. For `#[serde(serialize_with = "…")]`.

use std::time::SystemTime;

use serde::Serializer;

/// To the second.
///
/// # Errors
/// Those of the serializer.
pub fn seconds<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_seconds(*time))
}

/// To the second, where there is one.
///
/// # Errors
/// Those of the serializer.
pub fn maybe_seconds<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => seconds(time, serializer),
        None => serializer.serialize_none(),
    }
}

/// To the millisecond.
///
/// # Errors
/// Those of the serializer.
pub fn millis<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*time))
}

/// To the millisecond, where there is one.
///
/// # Errors
/// Those of the serializer.
pub fn maybe_millis<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => millis(time, serializer),
        None => serializer.serialize_none(),
    }
}
