//! `GET /api/v1/masks`: the masks of the policy document that is in force.
//!
//! Invariant: an answer is of one document, which it names, and of at most [`MASKS`] entries of it.

use std::collections::HashSet;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::{Deserialize, Serialize};

use super::api::{answer, problem};
use super::jwt::Need;
use super::server::{Parts, as_json};
use crate::document::{ColumnName, MaskEntry, Snapshot};

/// Most entries of one answer.
const MASKS: usize = 1000;

/// The query.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MasksQuery {
    /// Only those of this subject.
    subject: Option<String>,
    /// At most so many.
    limit: Option<usize>,
    /// Without the first so many.
    #[serde(default)]
    offset: usize,
}

#[derive(Serialize)]
struct Masks<'d> {
    /// As the status and the history call the document; another one than on the page before means: begin again.
    version: &'d str,
    total: usize,
    offset: usize,
    masks: Vec<MaskView<'d>>,
    /// The offset of the next page, if there is one.
    next: Option<usize>,
}

#[derive(Serialize)]
struct MaskView<'d> {
    subject: &'d str,
    catalog: &'d str,
    schema: &'d str,
    table: &'d str,
    column: &'d str,
    mask: &'d str,
    /// `auto-pii`: the loop's; `null`: people's.
    source: Option<&'d str>,
    /// An entry of people on the same column counts instead of it.
    shadowed: bool,
}

pub(super) async fn masks(
    State(parts): State<Parts>,
    headers: HeaderMap,
    query: Result<Query<MasksQuery>, QueryRejection>,
) -> Response {
    let listed = async {
        parts.door.enter(&headers, Need::Read, &parts.metrics.http).await?;
        let Query(query) = query.map_err(|_| {
            problem(StatusCode::BAD_REQUEST, "the query may hold subject=NAME, limit=N and offset=N")
        })?;
        // A copy of the handle, so that nothing is held while it is written out.
        let Some(snapshot) = parts.document.in_force().borrow().clone() else {
            return Err(match parts.document.status().borrow().fault {
                Some(_) => problem(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the policy document cannot be read, or is broken; the gateway's log says what is wrong",
                ),
                None => problem(
                    StatusCode::NOT_FOUND,
                    "no policy document is in force; [document] says where it is kept",
                ),
            });
        };
        Ok(as_json(&page(&snapshot, &query)))
    };
    answer(listed.await)
}

fn page<'d>(snapshot: &'d Snapshot, query: &MasksQuery) -> Masks<'d> {
    let subjects = &snapshot.document.policy().subjects;
    let wanted =
        || subjects.iter().filter(|(name, _)| query.subject.as_deref().is_none_or(|own| own == &***name));
    let total = wanted().map(|(_, subject)| subject.masks.len()).sum();
    let limit = query.limit.unwrap_or(MASKS).min(MASKS);
    let mut masks = Vec::new();
    let mut skip = query.offset;
    for (name, subject) in wanted() {
        let room = limit - masks.len();
        let entries = subject.masks.get(skip..).unwrap_or_default();
        skip = skip.saturating_sub(subject.masks.len());
        let shown = entries.get(..room.min(entries.len())).unwrap_or_default();
        if shown.is_empty() {
            continue;
        }
        let by_people: HashSet<ColumnName> =
            subject.masks.iter().filter(|entry| !entry.is_auto()).map(MaskEntry::column).collect();
        masks.extend(shown.iter().map(|entry| MaskView {
            subject: name,
            catalog: &entry.catalog,
            schema: &entry.schema,
            table: &entry.table,
            column: &entry.column,
            mask: &entry.mask,
            source: entry.source.as_deref(),
            shadowed: entry.is_auto() && by_people.contains(&entry.column()),
        }));
    }
    let end = query.offset.saturating_add(masks.len());
    let next = (end < total && !masks.is_empty()).then_some(end);
    Masks { version: &snapshot.version, total, offset: query.offset, masks, next }
}
