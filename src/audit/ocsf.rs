//! Events as lines of OCSF (<https://schema.ocsf.io>, 1.3).
//!
//! Invariant: a line is valid JSON, ends with a line feed, holds no other, and is shorter than
//! [`LINE_LIMIT`]; an event that is longer is several lines with one correlation uid.

use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::event::{
    Actor, Change, ChangeKind, Event, Lost, Outcome, PolicyRun, SYSTEM, Statements, Verdict, What,
};

/// `VictoriaLogs` skips lines from 256 KiB on, with status 200; what flattening adds has to fit, too.
pub const LINE_LIMIT: usize = 200 << 10;
const SCHEMA_VERSION: &str = "1.3.0";

/// Which class runs of the loop are: its readers ask for 3007, and published OCSF has a better fitting one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunClass {
    /// 3007, activity 99, as the first readers query it.
    DataAccessManagement,
    /// 3004 Entity Management, activity 3 Update.
    EntityManagement,
}

/// How events are written.
#[derive(Clone, Copy, Debug)]
pub struct Style {
    pub run_class: RunClass,
}

/// The lines of one event.
pub fn lines(event: &Event, style: Style) -> Vec<String> {
    match &event.what {
        What::PolicyRun(run) => policy_run(event, run, style),
        What::Statements(statements) => vec![line(&self::statements(event, statements))],
        What::Lost(lost) => vec![line(&self::lost(event, *lost))],
        What::Change(change) => vec![line(&self::change(event, change))],
    }
}

/// `metadata.uid` of one line of an event that is `parts` lines.
pub fn uid(event: &Event, part: usize, parts: usize) -> String {
    if parts <= 1 { event.id.to_string() } else { format!("{}-{part}", event.id) }
}

/// OCSF's triple of numbers, with `type_uid` as it is defined.
struct Class {
    category: u32,
    category_name: &'static str,
    class: u32,
    class_name: &'static str,
    activity: u32,
    activity_name: &'static str,
}

#[derive(Clone, Copy)]
enum Severity {
    Informational = 1,
    Low = 2,
    Medium = 3,
}

fn base(
    event: &Event,
    product: &str,
    class: &Class,
    severity: Severity,
    message: String,
) -> Map<String, Value> {
    let time = event.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let value = json!({
        // The sink's own fields: it would rename OCSF's if it were told to use them.
        "_time": humantime::format_rfc3339_millis(event.at).to_string(),
        "_msg": message,
        "time": millis,
        "message": message,
        "category_uid": class.category,
        "category_name": class.category_name,
        "class_uid": class.class,
        "class_name": class.class_name,
        "activity_id": class.activity,
        "activity_name": class.activity_name,
        "type_uid": class.class * 100 + class.activity,
        "severity_id": severity as u32,
        "metadata": {
            "version": SCHEMA_VERSION,
            "uid": &*event.id,
            "product": {"name": product, "vendor_name": "fedgate", "version": env!("CARGO_PKG_VERSION")},
        },
    });
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn user(actor: &Actor) -> Value {
    match actor {
        Actor::System => json!({"name": SYSTEM, "type_id": 3}),
        Actor::Admin { name, subject } => json!({"name": &**name, "uid": &**subject, "type_id": 2}),
    }
}

fn policy_run(event: &Event, run: &PolicyRun, style: Style) -> Vec<String> {
    let class = match style.run_class {
        RunClass::DataAccessManagement => Class {
            category: 3,
            category_name: "Identity & Access Management",
            class: 3007,
            class_name: "Data Access Management",
            activity: 99,
            activity_name: "policy-sync run",
        },
        RunClass::EntityManagement => Class {
            category: 3,
            category_name: "Identity & Access Management",
            class: 3004,
            class_name: "Entity Management",
            activity: 3,
            activity_name: "Update",
        },
    };
    let (status, severity, detail, message) = match &run.outcome {
        Outcome::Success => (1, Severity::Informational, None, "policy sync: done".to_owned()),
        Outcome::Failure { cause, message } => {
            (2, Severity::Medium, Some(&**cause), format!("policy sync: {message}"))
        }
        Outcome::Interrupted { published } => {
            let outcome = if *published { "its policy was published" } else { "nothing was published" };
            let status = if *published { 1 } else { 2 };
            (status, Severity::Low, Some("interrupted"), format!("policy sync: was interrupted; {outcome}"))
        }
    };
    let user = user(&run.actor);
    let head = |part: usize, parts: usize| {
        let mut map = base(event, "akko-policy-sync", &class, severity, message.clone());
        map.insert("status_id".into(), status.into());
        map.insert("status_detail".into(), detail.into());
        map.insert("actor".into(), json!({ "user": user }));
        map.insert("duration".into(), u64::try_from(run.duration.as_millis()).unwrap_or(u64::MAX).into());
        if style.run_class == RunClass::EntityManagement {
            map.insert("entity".into(), json!({"name": "policy document", "type": "Policy", "type_id": 99}));
        }
        map.insert(
            "unmapped".into(),
            json!({
                "target": "service:policy-sync",
                "tables_processed": run.tables_processed,
                "subjects_affected": run.subjects_affected,
                "publish_failures": run.publish_failures,
                "revision_before": run.before.as_deref(),
                "revision_after": run.after.as_deref(),
            }),
        );
        if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("correlation_uid".into(), (*event.id).into());
            metadata.insert("uid".into(), uid(event, part, parts).into());
            metadata.insert("sequence".into(), part.into());
        }
        map
    };
    let resources: Vec<Value> =
        run.subjects.iter().map(|subject| json!({"name": &**subject, "type": "subject"})).collect();
    // The head is the same size in each part, but for its number.
    let room = LINE_LIMIT.saturating_sub(line(&head(usize::MAX, usize::MAX)).len() + 64);
    let mut parts: Vec<Vec<Value>> = vec![Vec::new()];
    let mut used = 0;
    for resource in resources {
        let size = resource.to_string().len() + 1;
        if used + size > room && used > 0 {
            parts.push(Vec::new());
            used = 0;
        }
        used += size;
        if let Some(part) = parts.last_mut() {
            part.push(resource);
        }
    }
    let count = parts.len();
    let lines = parts.into_iter().enumerate().map(|(at, resources)| {
        let mut map = head(at, count);
        map.insert("resources".into(), Value::Array(resources));
        line(&map)
    });
    lines.collect()
}

fn statements(event: &Event, statements: &Statements) -> Map<String, Value> {
    let class = Class {
        category: 6,
        category_name: "Application Activity",
        class: 6005,
        class_name: "Datastore Activity",
        activity: 4,
        activity_name: "Query",
    };
    let (status, severity, class_of_statement, sqlstate, message) = match &statements.verdict {
        Verdict::Admitted { class } => (1, Severity::Informational, class, None, "admitted"),
        Verdict::Refused { class, sqlstate } => (2, Severity::Medium, class, Some(&**sqlstate), "refused"),
    };
    let message = format!(
        "{} statement(s) of class {class_of_statement} {message} on {}",
        statements.count, statements.source
    );
    let mut map = base(event, "fedgate", &class, severity, message);
    map.insert("status_id".into(), status.into());
    map.insert("status_code".into(), sqlstate.into());
    // 1 Allowed, 2 Blocked.
    map.insert("disposition_id".into(), status.into());
    map.insert("count".into(), statements.count.into());
    // Behind an engine the account says who vouches for the name.
    let user = match &statements.end_user {
        Some(end_user) => json!({"name": &**end_user, "account": {"name": &*statements.client_user}}),
        None => json!({"name": &*statements.client_user}),
    };
    map.insert("actor".into(), json!({ "user": user }));
    map.insert("database".into(), json!({"name": &*statements.source, "type_id": 1}));
    let mut tables: Vec<&str> = Vec::new();
    let mut size = 0;
    for table in &statements.tables {
        size += table.len() + 8;
        if size > LINE_LIMIT / 4 {
            break;
        }
        tables.push(table);
    }
    map.insert(
        "unmapped".into(),
        json!({
            "class": &**class_of_statement,
            "fingerprint": &*statements.fingerprint,
            "query_id": statements.query.as_deref(),
            "rows": statements.rows,
            "tables": tables,
            "tables_left_out": statements.tables.len() - tables.len(),
        }),
    );
    map
}

fn change(event: &Event, change: &Change) -> Map<String, Value> {
    let class = Class {
        category: 3,
        category_name: "Identity & Access Management",
        class: 3004,
        class_name: "Entity Management",
        activity: 3,
        activity_name: "Update",
    };
    let severity = if change.good { Severity::Informational } else { Severity::Medium };
    let mut map = base(event, "fedgate", &class, severity, change.message.to_string());
    let kind = match change.kind {
        ChangeKind::Deployment => "Deployment",
        ChangeKind::Enforcement => "Policy bundle",
        ChangeKind::Tap => "Source",
        ChangeKind::Sessions => "Sessions",
    };
    map.insert("status_id".into(), if change.good { 1 } else { 2 }.into());
    map.insert("actor".into(), json!({"user": user(&change.actor)}));
    map.insert("entity".into(), json!({"name": &*change.target, "type": kind, "type_id": 99}));
    let facts: Map<String, Value> =
        change.facts.iter().map(|(name, value)| (name.to_string(), (**value).into())).collect();
    map.insert("unmapped".into(), Value::Object(facts));
    map
}

fn lost(event: &Event, lost: Lost) -> Map<String, Value> {
    let class = Class {
        category: 6,
        category_name: "Application Activity",
        class: 6005,
        class_name: "Datastore Activity",
        activity: 4,
        activity_name: "Query",
    };
    let message = format!(
        "{} refusal(s) and {} read(s) were counted and not kept: there was no room for them",
        lost.refusals, lost.reads
    );
    let mut map = base(event, "fedgate", &class, Severity::Medium, message);
    map.insert("count".into(), lost.refusals.saturating_add(lost.reads).into());
    map.insert("unmapped".into(), json!({"refusals_lost": lost.refusals, "reads_lost": lost.reads}));
    map
}

fn line(map: &Map<String, Value>) -> String {
    // A map of JSON values has no way to fail, and serde_json escapes line feeds.
    let mut text = serde_json::to_string(map).unwrap_or_default();
    text.push('\n');
    text
}
