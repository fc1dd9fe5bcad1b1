//! What the API may see of the loop, and how it shows it.
//!
//! Invariant: nothing here names a host, a secret or a token; what is long is cut and says so.

use std::time::SystemTime;

use serde::Serialize;
use serde_json::{Value, json};

use super::deployments::PolicyStatus;
use crate::config::{CatalogSection, DocumentPlace, SecretFile, SyncSection};
use crate::sync::handle::{Report, SyncHandle, SyncStatus};
use crate::sync::history::{History, Revision};
use crate::sync::planner::{Change, Edit};
use crate::sync::reader::{DocumentStatus, FaultKind};

/// Changes of one report that are shown one by one.
const CHANGES: usize = 1000;
/// Lines of a plan as people read it.
const LINES: usize = 2000;

/// A loop that is on.
#[derive(Clone)]
pub struct SyncView {
    pub handle: SyncHandle,
    pub history: History,
    /// What its configuration is, as [`config_view`] shows it.
    pub config: Value,
    /// The key of the catalog's pushes.
    pub webhook_secret: Option<SecretFile>,
}

/// A loop's configuration without hosts and secrets.
pub fn config_view(sync: &SyncSection, place: Option<&DocumentPlace>) -> Value {
    let catalog = match &sync.catalog {
        None => Value::Null,
        Some(CatalogSection::File { .. }) => json!({"kind": "file"}),
        Some(CatalogSection::OpenMetadata(section)) => json!({
            "kind": "openmetadata",
            "services": section.services,
            "glossaries": section.glossaries,
        }),
    };
    let document = match place {
        None => Value::Null,
        Some(DocumentPlace::File { .. }) => json!({"kind": "file"}),
        Some(DocumentPlace::ConfigMap { namespace, name, key, .. }) => {
            json!({"kind": "config-map", "namespace": namespace, "name": name, "key": key})
        }
    };
    json!({
        "enabled": sync.enabled,
        "interval_seconds": sync.interval.as_secs_f64(),
        "tag_to_mask": sync.tag_to_mask,
        "admin_subjects": sync.admin_subjects,
        "enforce_suggested": sync.enforce_suggested,
        "max_removal": sync.max_removal,
        "removal_delay_seconds": sync.removal_delay.as_secs_f64(),
        "webhook": sync.webhook_secret.is_some(),
        "catalog": catalog,
        "document": document,
    })
}

/// A report as the API answers it, for whoever else wants it so.
pub fn report_json(report: &Report) -> Value {
    serde_json::to_value(ReportView::from(report)).unwrap_or_default()
}

/// A report as the API answers it.
#[derive(Serialize)]
pub(super) struct ReportView {
    dry_run: bool,
    began: String,
    /// In seconds.
    duration: f64,
    tables_processed: u64,
    subjects_affected: u64,
    publish_failures: u64,
    plan_id: String,
    revision: Option<u64>,
    /// Changes that wait for an admin's word, and those that wait for `removal_delay`.
    waiting: usize,
    held: usize,
    /// The plan as people read it, what unmasks first.
    text: String,
    changes: Vec<Value>,
    changes_total: usize,
}

impl From<&Report> for ReportView {
    fn from(report: &Report) -> Self {
        let plan = report.plan.to_string();
        let lines = plan.lines().count();
        let text = if lines > LINES {
            let shown: Vec<&str> = plan.lines().take(LINES).collect();
            format!("{}\n… and {} more lines\n", shown.join("\n"), lines - LINES)
        } else {
            plan
        };
        // What unmasks first, as in the text.
        let (loosening, others): (Vec<&Change>, Vec<&Change>) =
            report.plan.changes.iter().partition(|change| change.loosens);
        Self {
            dry_run: report.dry_run,
            began: humantime::format_rfc3339_millis(report.began).to_string(),
            duration: report.duration.as_secs_f64(),
            tables_processed: report.tables_processed,
            subjects_affected: report.subjects_affected,
            publish_failures: report.publish_failures,
            plan_id: report.plan_id.to_string(),
            revision: report.revision,
            waiting: report.waiting.len(),
            held: report.held.len(),
            text,
            changes: loosening.into_iter().chain(others).take(CHANGES).map(change).collect(),
            changes_total: report.plan.changes.len(),
        }
    }
}

fn change(change: &Change) -> Value {
    let column = &change.column;
    let (edit, from, to) = match &change.edit {
        Edit::Add { mask } => ("add", None, Some(mask)),
        Edit::Replace { from, to } => ("replace", Some(from), Some(to)),
        Edit::Remove { mask } => ("remove", Some(mask), None),
    };
    json!({
        "subject": &*change.subject,
        "catalog": &*column.catalog, "schema": &*column.schema, "table": &*column.table, "column": &*column.column,
        "edit": edit, "from": from.map(|mask| &**mask), "to": to.map(|mask| &**mask),
        "unmasks": change.loosens, "why": change.why.to_string(),
    })
}

/// How loop and document stand, and what is shut.
#[derive(Serialize)]
pub(super) struct StatusView {
    #[serde(flatten)]
    pub sync: SyncStatus,
    pub document: Option<DocumentView>,
    /// How the configuration policies stand; `null`: there are none.
    pub policy: Option<PolicyStatus>,
    /// The sources that an administrator has paused.
    pub sources_paused: Vec<String>,
}

/// How the policy document stands, without the place where it is kept.
#[derive(Serialize)]
pub(super) struct DocumentView {
    /// Of what is in force; `None`: nothing is.
    version: Option<Box<str>>,
    /// When that came into force.
    since: Option<String>,
    /// When its place was last found in order.
    last_success: Option<String>,
    /// `broken` or `unreadable`: what is there now does not count.
    fault: Option<FaultKind>,
    fault_since: Option<String>,
}

impl DocumentView {
    /// `None`: no document is configured, or nobody has looked yet.
    pub fn of(status: &DocumentStatus) -> Option<Self> {
        if *status == DocumentStatus::default() {
            return None;
        }
        let text = |time: SystemTime| humantime::format_rfc3339_seconds(time).to_string();
        Some(Self {
            version: status.version.clone(),
            since: status.since.map(text),
            last_success: status.last_success.map(text),
            fault: status.fault.as_ref().map(|fault| fault.kind),
            fault_since: status.fault.as_ref().map(|fault| text(fault.since)),
        })
    }
}

/// A revision as the API lists it.
#[derive(Serialize)]
pub(super) struct RevisionView {
    revision: u64,
    state: crate::sync::history::State,
    reason: crate::sync::history::Reason,
    at: String,
    actor: String,
    run: Option<String>,
    content: String,
    summary: Vec<String>,
}

impl From<Revision> for RevisionView {
    fn from(found: Revision) -> Self {
        let at: SystemTime = found.at;
        Self {
            revision: found.number,
            state: found.state,
            reason: found.reason,
            at: humantime::format_rfc3339_millis(at).to_string(),
            actor: found.actor.to_string(),
            run: found.run.map(|run| run.to_string()),
            content: found.content.to_string(),
            summary: found.summary,
        }
    }
}
