//! Real Trino under real OPA with our bundle, straight at the source: what OPA answers is what Trino shows.
//!
//! Invariant: what a masked column ought to show is what PostgreSQL makes of the same mask's own text.

use fedgate::document::Document;
use fedgate::policy::bundle::{Bundle, Packing};
use fedgate::policy::{MaskKey, Settings, library};
use serde_json::{Map, Value, json};

use super::kit::{Endpoint, Program, Transcript, part, run};
use super::support::{Options, Postgres, SUPERUSER, SUPERUSER_PASSWORD};

/// Column, its type in PostgreSQL, and the type to which masks cast there; none where Trino sees no text.
const COLUMNS: &[(&str, &str, Option<&str>)] = &[
    ("c_varchar", "varchar", Some("varchar")),
    ("c_varchar3", "varchar(3)", Some("varchar(3)")),
    ("c_varchar10", "varchar(10)", Some("varchar(10)")),
    ("c_varchar200", "varchar(200)", Some("varchar(200)")),
    ("c_text", "text", Some("text")),
    ("c_char5", "char(5)", Some("char(5)")),
    ("c_char80", "char(80)", Some("char(80)")),
    ("Mixed", "text", Some("text")),
    ("say \"hi\"", "text", Some("text")),
    ("c_mood", "mood", Some("text")),
    ("c_bool", "boolean", None),
    ("c_small", "smallint", None),
    ("c_int", "integer", None),
    ("c_big", "bigint", None),
    ("c_real", "real", None),
    ("c_double", "double precision", None),
    ("c_numeric", "numeric(10,2)", None),
    ("c_wide", "numeric(38,0)", None),
    ("c_date", "date", None),
    ("c_time", "time(3)", None),
    ("c_timestamp", "timestamp(3)", None),
    ("c_timestamp6", "timestamp(6)", None),
    ("c_timestamptz", "timestamptz", None),
    ("c_uuid", "uuid", None),
    ("c_json", "json", None),
    ("c_jsonb", "jsonb", None),
    ("c_bytes", "bytea", None),
    ("c_array", "integer[]", None),
    ("c_names", "varchar(10)[]", None),
];

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn tables() -> String {
    let columns: Vec<String> =
        COLUMNS.iter().map(|(name, kind, _)| format!("{} {kind}", quoted(name))).collect();
    let row = |id: u32, text: &str| {
        let values: Vec<String> = COLUMNS
            .iter()
            .map(|(_, kind, masked)| match *kind {
                "varchar(3)" => format!("left('{text}', 3)"),
                "varchar(10)" => format!("left('{text}', 10)"),
                "char(5)" => format!("left('{text}', 5)"),
                "mood" => "'so so'".to_owned(),
                _ if masked.is_some() => format!("'{text}'"),
                "boolean" => "true".to_owned(),
                "date" => "'2024-02-29'".to_owned(),
                "time(3)" => "'12:34:56.789'".to_owned(),
                kind if kind.starts_with("timestamp") => "'2024-02-29 12:34:56.789'".to_owned(),
                "uuid" => "'12151fd2-7586-11e9-8f9e-2a86e4085a59'".to_owned(),
                "json" | "jsonb" => "'{\"a\": 1}'".to_owned(),
                "bytea" => "'\\xABCD'".to_owned(),
                "integer[]" => "'{1,2}'".to_owned(),
                "varchar(10)[]" => "'{a,b}'".to_owned(),
                _ => "12".to_owned(),
            })
            .collect();
        format!("INSERT INTO kinds VALUES ({id}, {});", values.join(", "))
    };
    let texts = [
        "",
        "abc",
        "12345678",
        "123456789",
        "ana@example.com",
        "Größe ß 漢字 😀 ünïcödé",
        "it''s \"so\"",
        "ends  ",
    ];
    let rows: Vec<String> = texts.iter().zip(2..).map(|(text, id)| row(id, text)).collect();
    format!(
        "CREATE TYPE mood AS ENUM ('so so'); CREATE TABLE kinds (id integer, {}); INSERT INTO kinds (id) VALUES (1); {} \
         CREATE TABLE filtered AS SELECT g AS id, g % 10 AS region FROM generate_series(1, 100) g; \
         CREATE TABLE hidden AS SELECT 1 AS id",
        columns.join(", "),
        rows.join("\n")
    )
}

fn document() -> Document {
    let place = |table: &str| json!({"catalog": "climscore", "schema": "public", "table": table});
    let scopes = json!([place("kinds"), place("filtered")]);
    let mut subjects = Map::new();
    for mask in library::SHIPPED {
        let masks: Vec<Value> = COLUMNS
            .iter()
            .map(|(column, ..)| {
                let mut entry = place("kinds");
                entry["column"] = json!(column);
                entry["mask"] = json!(mask.name);
                entry
            })
            .collect();
        let mut filter = place("filtered");
        filter["expression"] = json!({"trino": "region = 7"});
        subjects.insert(
            format!("m_{}", mask.name),
            json!({"kind": "user", "scopes": scopes, "masks": masks, "row_filters": [filter]}),
        );
    }
    subjects.insert(
        "admin".to_owned(),
        json!({"kind": "user", "scopes": [{"catalog": "*", "schema": "*", "table": "*"}]}),
    );
    let text = json!({
        "version": 1, "mask_library": library::to_json(), "sources": {"climscore": {"catalog": "climscore"}},
        "subjects": subjects,
    });
    Document::parse(text.to_string().as_bytes()).unwrap()
}

fn opa() -> String {
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/setup-opa");
    let output = std::process::Command::new(script).stderr(std::process::Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "scripts/setup-opa failed");
    String::from_utf8(output.stdout).unwrap().trim().replace("FEDGATE_OPA=", "")
}

/// What PostgreSQL makes of a mask, by row.
fn wanted(source: &Postgres, mask: &library::Shipped, column: &str, kind: &str) -> Vec<Value> {
    let padded = |pad: u8| -> String {
        let mut key = [0_u8; 64];
        key[..3].copy_from_slice(b"key");
        key.iter().map(|byte| format!("{:02X}", byte ^ pad)).collect()
    };
    let text = mask
        .postgres
        .replace("{ipad}", &padded(0x36))
        .replace("{opad}", &padded(0x5C))
        .replace("{column}", &quoted(column))
        .replace("{type}", kind);
    let sql =
        format!("SELECT json_agg(masked ORDER BY id) FROM (SELECT id, {text} AS masked FROM kinds) made");
    serde_json::from_str(&source.value("climscore", &sql).unwrap()).unwrap()
}

/// Padding of char(n) is no part of its value.
fn trimmed(value: &Value, kind: &str) -> Value {
    match value.as_str() {
        Some(text) if kind.starts_with("char") => json!(text.trim_end_matches(' ')),
        _ => value.clone(),
    }
}

#[test]
#[ignore = "starts Trino; run it with: make e2e"]
fn opa_alone_masks_and_filters() {
    let source = Postgres::climscore(Options::default());
    source.execute("climscore", &tables());
    let before = source.fingerprint();
    let settings = Settings {
        admin_subjects: ["admin".into()].into(),
        mask_key: Some(MaskKey::new(b"key")),
        ..Settings::default()
    };
    let folder = tempfile::tempdir().unwrap();
    let bundle = folder.path().join("fedgate.tar.gz");
    std::fs::write(
        &bundle,
        Bundle::build(document().policy(), &settings, Packing { thin: true, signer: None }).unwrap().bytes,
    )
    .unwrap();
    let users: Vec<String> = library::SHIPPED.iter().map(|mask| format!("m_{}", mask.name)).collect();
    let endpoint =
        Endpoint { host: "127.0.0.1", port: source.port(), user: SUPERUSER, password: SUPERUSER_PASSWORD };
    let more = [
        ("FEDGATE_TRINO_HOME", part("trino", "FEDGATE_TRINO_HOME")),
        ("FEDGATE_TRINO_JDK", part("trino", "FEDGATE_TRINO_JDK")),
        ("FEDGATE_OPA", opa()),
        ("FEDGATE_BUNDLE", bundle.display().to_string()),
        ("FEDGATE_USERS", users.join(",")),
    ];
    let transcript = run(&Program::Python("run_trino_masks.py"), "direct", endpoint, &more);
    masks(&transcript, &source);
    for step in transcript.0.iter().filter(|step| step.name == "type") {
        assert!(step.record.get("value").is_some(), "{}: {}", step.text("type"), step.record);
    }
    let said = |name: &str, user: &str| {
        let found = transcript.0.iter().find(|step| step.name == name && step.text("user") == user).unwrap();
        // Trino's own word stands in the output when an assertion below fails.
        eprintln!("e2e: {}", found.record);
        found.record.get("value").or_else(|| found.record.get("error")).unwrap().clone()
    };
    let denied = json!("PERMISSION_DENIED");
    assert_eq!(said("raw", "admin"), json!([[1]]));
    assert_eq!(said("raw", "m_sha256"), denied);
    assert_eq!(said("raw", "stranger"), denied);
    assert_eq!(said("rows", "admin"), json!([[100]]));
    assert_eq!(said("rows", "m_sha256"), json!([[10]]));
    assert_eq!(said("rows", "stranger"), denied);
    assert_eq!(said("tables", "m_sha256"), json!([["filtered"], ["kinds"]]));
    assert!(said("tables", "admin").to_string().contains("hidden"));
    assert_eq!(said("tables", "stranger"), denied);
    let changed = source.fingerprint().difference(&before);
    assert!(changed.is_empty(), "the source changed: {changed:?}");
}

fn masks(transcript: &Transcript, source: &Postgres) {
    let columns = &transcript.0.iter().find(|step| step.name == "columns").unwrap().record["value"];
    let (mut columns_seen, mut faults) = (0, Vec::new());
    for mask in library::SHIPPED {
        let user = format!("m_{}", mask.name);
        for (column, kind, text) in COLUMNS {
            let folded = column.to_lowercase();
            let Some(step) = transcript.0.iter().find(|step| {
                step.name == "masked" && step.text("user") == user && step.text("column") == folded
            }) else {
                faults.push(format!("{column}: Trino does not show it: {columns}"));
                continue;
            };
            columns_seen += 1;
            let Some(got) = step.record.get("value").and_then(Value::as_array) else {
                faults.push(format!("{} of {column} {kind}: {}", mask.name, step.text("error")));
                continue;
            };
            let (got, want): (Vec<Value>, Vec<Value>) = match text {
                Some(cast) => (
                    got.iter().map(|value| trimmed(value, kind)).collect(),
                    wanted(source, mask, column, cast).iter().map(|value| trimmed(value, kind)).collect(),
                ),
                // All but `identity` is NULL of the column's type.
                None if mask.name != "identity" => (got.clone(), vec![Value::Null; got.len()]),
                None => (got.iter().map(|value| json!(value.is_null())).collect(), {
                    let mut shown = vec![json!(false); got.len()];
                    shown[0] = json!(true);
                    shown
                }),
            };
            if got != want {
                faults.push(format!(
                    "{} of {column} {kind}:\n  {}\n  {}",
                    mask.name,
                    json!(got),
                    json!(want)
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    eprintln!("e2e: {columns_seen} masked columns as PostgreSQL masks them");
}
