//! The second half of the walk: a tag in the catalog becomes a mask in the policy document.
//!
//! Invariant: what is shown is read back from the document and the audit file themselves, never taken from the
//! answer of whoever wrote them.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::Walk;
use super::support::Gateway;

const SHARE: usize = 50;
/// Where the loop of the demo keeps its things, in the gateway's folder.
const DOCUMENT: &str = "policy.json";
const CATALOG: &str = "classifications.yaml";
const AUDIT: &str = "audit.jsonl";

/// What the gateway's configuration says of the loop.
pub const TOML: &str = r#"
[document]
kind = "file"
path = "{dir}/policy.json"

[audit]
kind = "file"
path = "{dir}/audit.jsonl"
spool = "{dir}/audit-spool"

[sync]
enabled = true
history = "{dir}/policy-history"

[sync.tag_to_mask]
"PII.Sensitive" = "sha256"

[sync.catalog]
kind = "file"
path = "{dir}/classifications.yaml"
"#;

/// The files that it speaks of.
pub fn files() -> [(&'static str, String); 2] {
    [(DOCUMENT, format!("{:#}\n", document())), (CATALOG, catalog(None))]
}

/// A document as people begin one, with a rule of their own.
fn document() -> Value {
    let scope = json!([{"catalog": "climscore", "schema": "public", "table": "*"}]);
    let by_hand = json!({"catalog": "climscore", "schema": "public", "table": "customers", "column": "phone",
        "mask": "partial_last4"});
    json!({
        "version": 1,
        "mask_library": {
            "sha256": {"trino": "CAST(to_hex(sha256(to_utf8({column}))) AS {type})", "strength": 60},
            "partial_last4": {
                "trino": "CAST(IF(length({column}) > 8, '****' || substr({column}, -4), '****') AS {type})",
                "strength": 50
            },
        },
        "sources": {"climscore": {"catalog": "climscore", "read_only": true}},
        "subjects": {
            "analyst": {"kind": "role", "scopes": scope, "masks": [by_hand]},
            "akko-admin": {"kind": "role", "scopes": scope},
        },
    })
}

/// The catalog, with the column tagged or not.
fn catalog(tag: Option<&str>) -> String {
    let email = tag.unwrap_or_default();
    format!(
        "catalogs:\n  climscore:\n    public:\n      customers:\n        email: {email}\n        phone:\n        name:\n"
    )
}

/// The loop, from a tag to a rollback.
pub struct Loop<'g> {
    gateway: &'g Gateway,
    folder: PathBuf,
}

impl<'g> Loop<'g> {
    pub fn new(gateway: &'g Gateway) -> Self {
        Self { gateway, folder: gateway.folder().to_owned() }
    }

    pub fn walk(&self, walk: &mut Walk) -> Result<(), String> {
        walk.screen.headline("A tag becomes a mask (the PII loop, with a file as its catalog)");
        walk.screen.paragraph(
            "classifications.yaml is the catalog, policy.json what OPA and Trino enforce. Somebody has masked \
             customers.phone by hand; that rule is nobody's but theirs.",
        );
        let by_hand = self.masks("analyst")?;
        let step = "before: the analyst's masks";
        walk.row_at(by_hand == ["phone partial_last4"], SHARE, step, &by_hand.join(", "));

        self.tag(Some("PII.Sensitive"))?;
        let plan = self.sync("?dry_run=true")?;
        let line = line_of(&plan, "+ analyst");
        let step = "email is tagged PII.Sensitive; a dry run says";
        walk.row_at(line.contains("customers.email sha256"), SHARE, step, &line);
        let unchanged = self.masks("analyst")?;
        walk.row_at(unchanged == by_hand, SHARE, "and has changed nothing", &unchanged.join(", "));

        self.sync("")?;
        let masks = self.masks("analyst")?;
        let both = masks == ["phone partial_last4", "email sha256 (auto-pii)"];
        walk.row_at(both, SHARE, "POST /api/v1/sync", &masks.join(", "));
        let admin = self.masks("akko-admin")?;
        walk.row_at(admin.is_empty(), SHARE, "the admin, who is exempt", "no mask");
        let published = self.revision()?;

        self.tag(None)?;
        let plan = self.sync("?dry_run=true")?;
        let line = line_of(&plan, "- analyst");
        let first = text_of(&plan).starts_with("UNMASKS");
        walk.row_at(
            first && line.contains("customers.email"),
            SHARE,
            "the tag goes; a dry run says first",
            &line,
        );
        self.sync("")?;
        let masks = self.masks("analyst")?;
        walk.row_at(masks == by_hand, SHARE, "POST /api/v1/sync", &masks.join(", "));

        let (status, answer) =
            self.gateway.post("/api/v1/sync/rollback", &json!({ "revision": published }).to_string());
        let masks = self.masks("analyst")?;
        let step = format!("that was a mistake: rollback to revision {published}");
        let right = if status == 200 { masks.join(", ") } else { answer };
        walk.row_at(masks == ["phone partial_last4", "email sha256 (auto-pii)"], SHARE, &step, &right);

        let events = self.events()?;
        let runs = events.iter().filter(|event| event["class_uid"] == 3007).count();
        let step = "audit.jsonl: events of class 3007";
        walk.row_at(runs >= 3, SHARE, step, &format!("{runs}, one for each run"));
        Ok(())
    }

    fn read(&self, name: &str) -> Result<String, String> {
        fs::read_to_string(self.folder.join(name)).map_err(|error| format!("{name}: {error}"))
    }

    fn tag(&self, tag: Option<&str>) -> Result<(), String> {
        fs::write(self.folder.join(CATALOG), catalog(tag)).map_err(|error| format!("{CATALOG}: {error}"))
    }

    fn sync(&self, query: &str) -> Result<Value, String> {
        let (status, body) = self.gateway.post(&format!("/api/v1/sync{query}"), "");
        if status != 200 {
            return Err(format!("POST /api/v1/sync{query}: {status} {body}"));
        }
        serde_json::from_str(&body).map_err(|error| format!("POST /api/v1/sync{query}: {error}"))
    }

    fn revision(&self) -> Result<u64, String> {
        let (_, body) = self.gateway.get("/api/v1/status");
        let status: Value = serde_json::from_str(&body).map_err(|error| format!("status: {error}"))?;
        status["revision"].as_u64().ok_or_else(|| format!("the status names no revision: {body}"))
    }

    /// `column mask (source)` of each entry that a subject has in the document.
    fn masks(&self, subject: &str) -> Result<Vec<String>, String> {
        let document: Value =
            serde_json::from_str(&self.read(DOCUMENT)?).map_err(|error| format!("{DOCUMENT}: {error}"))?;
        let entries = document["subjects"][subject]["masks"].as_array().cloned().unwrap_or_default();
        let word = |entry: &Value, key: &str| entry[key].as_str().unwrap_or("?").to_owned();
        let line = |entry: &Value| {
            let source = entry.get("source").and_then(Value::as_str);
            let source = source.map(|source| format!(" ({source})")).unwrap_or_default();
            format!("{} {}{source}", word(entry, "column"), word(entry, "mask"))
        };
        Ok(entries.iter().map(line).collect())
    }

    /// The events that have been delivered; waits for the first ones.
    fn events(&self) -> Result<Vec<Value>, String> {
        let read = || -> Vec<Value> {
            let text = self.read(AUDIT).unwrap_or_default();
            text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
        };
        let deadline = std::time::Instant::now() + super::PATIENCE;
        loop {
            let events = read();
            if events.len() >= 3 || std::time::Instant::now() > deadline {
                return Ok(events);
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}

fn text_of(report: &Value) -> &str {
    report["text"].as_str().unwrap_or_default()
}

fn line_of(report: &Value, start: &str) -> String {
    let found = text_of(report).lines().map(str::trim).find(|line| line.starts_with(start));
    found.unwrap_or("no such line").to_owned()
}
