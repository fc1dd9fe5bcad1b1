//! The policy as OPA enforces it: cases, a bundle in a real OPA, and a second reading of what a document means.
//!
//! Invariant: what is wanted stands in the cases or comes from a reading that shares no code with the policy.

#[path = "policy/naive.rs"]
mod naive;
#[path = "policy/opa.rs"]
mod opa;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use fedgate::document::{Document, Policy};
use fedgate::policy::bundle::{Bundle, BundleError, Packing};
use fedgate::policy::{MaskKey, Settings, expression, library};
use naive::{Identity, Naive};
use serde_json::{Map, Value, json};

const WITH_TRINO: Packing<'static> = Packing { thin: true, signer: None };

fn here(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/policy").join(path)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(here(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn settings() -> Settings {
    Settings {
        admin_subjects: ["akko-admin", "half-admin", "veiled-admin"].map(Arc::from).into(),
        system_session_properties: ["query_max_memory".to_owned()].into(),
        mask_key: Some(MaskKey::new(b"key")),
        ..Settings::default()
    }
}

fn document() -> Document {
    Document::parse(read("document.json").as_bytes()).unwrap()
}

fn who(name: &str) -> Value {
    match name {
        "nobody" => json!({}),
        "admin" => json!({"user": "root", "groups": ["staff", "akko-admin"]}),
        "half admin" => json!({"user": "half", "groups": ["half-admin"]}),
        "veiled admin" => json!({"user": "veiled", "groups": ["veiled-admin"]}),
        "admin the analyst" => json!({"user": "ana", "groups": ["analyst", "akko-admin"]}),
        "analyst" => json!({"user": "ana", "groups": ["analyst"]}),
        "analyst by enabled roles" => json!({"user": "ana", "enabledRoles": ["analyst"]}),
        "analyst and orphan" => json!({"user": "ana", "groups": ["analyst", "orphan"]}),
        "bob the analyst" => json!({"user": "bob", "groups": ["analyst"]}),
        "intern" => json!({"user": "ivy", "groups": ["interns"]}),
        "regional" => json!({"user": "rita", "groups": ["regional"]}),
        "recent" => json!({"user": "rex", "groups": ["recent"]}),
        "regional and recent" => json!({"user": "rita", "groups": ["recent", "regional"]}),
        user => json!({"user": user.strip_prefix("user ").unwrap_or(user), "groups": []}),
    }
}

fn input(by: &str, action: Value) -> Value {
    json!({"context": {"identity": who(by), "softwareStack": {"trinoVersion": "476"}}, "action": action})
}

/// Resources by shape, all of the source `climscore`.
fn shape(name: &str) -> Value {
    let table = |catalog: &str| json!({"table": {"catalogName": catalog, "schemaName": "public", "tableName": "customers"}});
    // As Trino 476 was seen to send it; `nested` is another version's way.
    let function = |catalog: &str, schema: &str, name: &str| json!({"function": {"catalogName": catalog, "schemaName": schema, "functionName": name}});
    let nested = |name: &str| json!({"function": {"catalogSchema": {"catalogName": "climscore", "schemaName": "system"}, "functionName": name}});
    let schema = json!({"schema": {"catalogName": "climscore", "schemaName": "public"}});
    match name {
        "none" => json!({}),
        "catalog" => json!({"resource": {"catalog": {"name": "climscore"}}}),
        "listed_catalog" => {
            json!({"filterResources": [{"catalog": {"name": "tpch"}}, {"catalog": {"name": "Climscore"}}]})
        }
        "listed_table" => json!({"filterResources": [table("tpch"), table("climscore")]}),
        "schema" => json!({"resource": schema}),
        "rename_schema" => {
            json!({"resource": schema, "targetResource": {"schema": {"catalogName": "climscore", "schemaName": "other"}}})
        }
        "table" => json!({"resource": table("climscore")}),
        "column" => {
            json!({"resource": {"column": {"catalogName": "climscore", "schemaName": "public", "tableName": "customers", "columnName": "id"}}})
        }
        "rename" => json!({"resource": table("climscore"), "targetResource": table("climscore")}),
        "rename_into" => json!({"resource": table("shop"), "targetResource": table("climscore")}),
        "rename_out" => json!({"resource": table("climscore"), "targetResource": table("shop")}),
        "function" => json!({"resource": function("climscore", "public", "f")}),
        "query" => json!({"resource": function("climscore", "system", "query")}),
        "nested_query" => json!({"resource": nested("query")}),
        "nested_execute" => json!({"resource": nested("execute")}),
        "execute" => json!({"resource": function("climscore", "system", "execute")}),
        "table_procedure" => {
            json!({"resource": {"table": table("climscore")["table"], "function": {"functionName": "optimize"}}})
        }
        "builtin" => json!({"resource": function("system", "builtin", "sha256")}),
        "plain_function" => json!({"resource": {"function": {"functionName": "sha256"}}}),
        "user" => json!({"resource": {"user": {"user": "ana"}}}),
        "systemSessionProperty" => {
            json!({"resource": {"systemSessionProperty": {"name": "query_max_memory"}}})
        }
        "catalogSessionProperty" => {
            json!({"resource": {"catalogSessionProperty": {"catalogName": "climscore", "propertyName": "x"}}})
        }
        other => panic!("no shape {other}"),
    }
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Operations {
    operations: Vec<String>,
    shapes: Vec<String>,
    allow: Vec<String>,
    deny: Vec<String>,
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Masked {
    note: String,
    who: String,
    column: String,
    #[serde(rename = "type")]
    column_type: Option<String>,
    mask: Option<String>,
}

#[derive(serde::Deserialize)]
struct Question {
    note: String,
    who: String,
    operation: String,
    resource: Option<Value>,
    target: Option<Value>,
    filter: Option<Value>,
    /// What is asked, and the answer.
    #[serde(flatten)]
    want: BTreeMap<String, Value>,
}

fn cases() -> Vec<Value> {
    let mut cases = Vec::new();
    let mut add = |note: String, ask: &str, input: Value, want: Value| {
        cases.push(json!({"note": note, "ask": ask, "input": input, "want": want}));
    };
    for line in serde_yaml_ng::from_str::<Vec<Operations>>(&read("operations.yaml")).unwrap() {
        for operation in &line.operations {
            for name in &line.shapes {
                for by in ["admin", "analyst", "loader", "stranger"] {
                    let mut action = shape(name);
                    action["operation"] = json!(operation);
                    for (ask, list) in [("allow", &line.allow), ("deny", &line.deny)] {
                        let want = list.iter().any(|name| name == by);
                        let note = format!("{operation} on {name} by {by}: {ask}");
                        add(note, ask, input(by, action.clone()), json!([want]));
                    }
                }
            }
        }
    }
    for case in serde_yaml_ng::from_str::<Vec<Masked>>(&read("masks.yaml")).unwrap() {
        let mut column = json!({"catalogName": "climscore", "schemaName": "public", "tableName": "customers", "columnName": case.column});
        if let Some(column_type) = case.column_type {
            column["columnType"] = json!(column_type);
        }
        let expression = case.mask.map(|mask| json!({"expression": mask}));
        let one = json!({"operation": "GetColumnMask", "resource": {"column": column}});
        let want: Vec<Value> = expression.iter().cloned().collect();
        add(format!("{}, alone", case.note), "columnMask", input(&case.who, one), json!(want));
        let other = json!({"column": {"catalogName": "climscore", "schemaName": "public", "tableName": "customers", "columnName": "id", "columnType": "bigint"}});
        let batch = json!({"operation": "GetColumnMask", "filterResources": [other, {"column": column}]});
        let want: Vec<Value> =
            expression.iter().map(|mask| json!({"index": 1, "viewExpression": mask})).collect();
        add(format!("{}, in a batch", case.note), "batchColumnMasks", input(&case.who, batch), json!([want]));
    }
    for case in serde_yaml_ng::from_str::<Vec<Question>>(&read("questions.yaml")).unwrap() {
        let mut action = json!({"operation": case.operation});
        let parts =
            [("resource", case.resource), ("targetResource", case.target), ("filterResources", case.filter)];
        for (key, part) in parts {
            if let Some(part) = part {
                action[key] = part;
            }
        }
        assert_eq!(case.want.len(), 1, "{}", case.note);
        for (ask, want) in &case.want {
            add(case.note.clone(), ask, input(&case.who, action.clone()), json!([want]));
        }
    }
    cases
}

#[test]
fn cases_pass_and_cover_every_line() {
    let opa = opa::program();
    let folder = tempfile::tempdir().unwrap();
    let bundle = Bundle::build(document().policy(), &settings(), WITH_TRINO).unwrap();
    opa::unpack(&bundle.bytes, folder.path());
    std::fs::remove_file(folder.path().join(".manifest")).unwrap();
    let cases = cases();
    assert!(cases.len() > 150, "{} cases", cases.len());
    std::fs::create_dir(folder.path().join("cases")).unwrap();
    std::fs::write(folder.path().join("cases/data.json"), json!(cases).to_string()).unwrap();
    std::fs::copy(here("cases_test.rego"), folder.path().join("cases_test.rego")).unwrap();

    let run = |arguments: &[&str]| {
        let output = Command::new(&opa).args(arguments).current_dir(folder.path()).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        (output.status.success(), format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
    };
    let (passed, text) = run(&["test", "--timeout", "300s", "."]);
    // What failed is printed; the trace of it all would bury that.
    let failed: Vec<_> = text.lines().filter(|line| line.contains(", wanted ")).collect();
    assert!(passed, "{failed:#?}\n{}", text.get(text.len().saturating_sub(2000)..).unwrap_or(&text));
    let (passed, text) = run(&["check", "--strict", "fedgate", "trino"]);
    assert!(passed, "{text}");
    let (_, text) = run(&["test", "--timeout", "300s", "--coverage", "."]);
    let report: Value = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}"));
    let files = report["files"].as_object().unwrap();
    for path in
        fedgate::policy::bundle::OURS.iter().chain([&fedgate::policy::bundle::THIN]).map(|(path, _)| path)
    {
        let lines = files.get(*path).unwrap_or_else(|| panic!("{path} is not in the report: {files:?}"));
        assert_eq!(lines["not_covered"], Value::Null, "{path}: lines that no case reaches");
    }
}

#[test]
fn a_bundle_is_one_that_opa_takes() {
    let bundle = Bundle::build(document().policy(), &settings(), WITH_TRINO).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fedgate.tar.gz");
    std::fs::write(&path, &bundle.bytes).unwrap();
    let server = opa::Server::start(&opa::program(), &["-b", path.to_str().unwrap()]);
    let bundles = server.ask("system/bundles", &json!({})).unwrap();
    let manifest = bundles.as_object().unwrap().values().next().unwrap()["manifest"].clone();
    assert_eq!(manifest["revision"], bundle.revision);
    assert_eq!(manifest["roots"], json!(["fedgate", "trino", "akko/climscore", "akko/sandbox", "akko/shop"]));
    assert_eq!(server.ask("akko", &json!({})).unwrap()["climscore"], json!({"read_only": true}));
    for case in cases().iter().filter(|case| case["ask"] == "columnMask") {
        let got = server.ask("trino/columnMask", &case["input"]);
        assert_eq!(got.as_ref(), case["want"].get(0), "{}", case["note"]);
    }
}

#[test]
fn equal_content_is_equal_bytes() {
    let build = |document: &Document, settings: &Settings, thin| {
        Bundle::build(document.policy(), settings, Packing { thin, signer: None }).unwrap()
    };
    let document = document();
    let first = build(&document, &settings(), true);
    assert_eq!(first, build(&Document::parse(document.to_text().as_bytes()).unwrap(), &settings(), true));
    assert!(first.etag.starts_with('"') && first.etag.ends_with('"') && first.etag.len() == 66);
    let mut other = settings();
    other.mask_key = Some(MaskKey::new(b"other"));
    for different in [build(&document, &settings(), false), build(&document, &other, true)] {
        assert_ne!(first.revision, different.revision);
        assert_ne!(first.etag, different.etag);
    }
    assert!(!format!("{:?}", settings()).contains("6B6579"), "a key is not shown");
}

#[test]
fn a_source_whose_name_is_no_path_makes_no_bundle() {
    for name in ["a/b", "..", "", "a b"] {
        let text = json!({"version": 1, "sources": {name: {"catalog": "c"}}}).to_string();
        let document = Document::parse(text.as_bytes()).unwrap();
        let result = Bundle::build(document.policy(), &Settings::default(), WITH_TRINO);
        assert_eq!(result, Err(BundleError::SourceName(name.to_owned())));
    }
}

#[test]
fn the_shipped_library_is_a_document_that_passes() {
    let text = json!({"version": 1, "mask_library": library::to_json()}).to_string();
    let document = Document::parse(text.as_bytes()).unwrap();
    assert_eq!(expression::check(document.policy()), vec![]);
    let names: Vec<_> = library::SHIPPED.iter().map(|mask| (mask.name, mask.strength)).collect();
    let wanted = [
        ("null", 100),
        ("redact", 80),
        ("hmac_sha256", 70),
        ("sha256", 60),
        ("md5", 50),
        ("partial_last4", 20),
        ("identity", 0),
    ];
    assert_eq!(names, wanted);
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Expression {
    mask: Option<String>,
    filter: Option<String>,
    wrong: Option<String>,
}

#[test]
fn expressions_that_trino_could_not_read_are_found() {
    use expression::Use;
    for case in serde_yaml_ng::from_str::<Vec<Expression>>(&read("expressions.yaml")).unwrap() {
        let (text, used_as) = match (case.mask, case.filter) {
            (Some(mask), None) => (mask, Use::Mask),
            (None, Some(filter)) => (filter, Use::Filter),
            _ => panic!("a case is a mask or a filter"),
        };
        let got = expression::one(&text, used_as).err().map(|(at, message)| format!("{at}: {message}"));
        match (&got, &case.wrong) {
            (None, None) => {}
            (Some(got), Some(wrong)) if got.starts_with(wrong) => {}
            _ => panic!("{text}: {got:?}, wanted {:?}", case.wrong),
        }
    }
    // Bounds, and no text makes it panic or hang.
    assert!(expression::one(&"(".repeat(10_000), Use::Mask).unwrap_err().1.contains("too deeply"));
    assert!(expression::one(&"CASE WHEN ".repeat(1_600), Use::Mask).unwrap_err().1.contains("too deeply"));
    assert!(expression::one(&"array(".repeat(2_000), Use::Filter).is_err());
    assert!(expression::one(&format!("CAST(1 AS {}", "array(".repeat(2_000)), Use::Filter).is_err());
    assert!(expression::one(&"'".repeat(20_000), Use::Mask).unwrap_err().1.contains("longer than"));
    let parts = [
        "{column}", "{", "}", "'", "\"", "(", ")", "CASE", "WHEN", "é", "x", "1", ".", "-", "[", ",", "\0",
        " ", "->",
    ];
    let mut dice = Dice(7);
    for _ in 0..20_000 {
        let text: String = (0..dice.below(12)).map(|_| parts[dice.below(parts.len())]).collect();
        let _ = expression::one(&text, Use::Mask);
        let _ = expression::one(&text, Use::Filter);
    }
}

#[test]
fn a_document_that_trino_could_not_evaluate_makes_no_bundle() {
    let text = json!({
        "version": 1,
        "mask_library": {"broken": {"trino": "sha256({column}", "strength": 60}, "open": {"trino": "{column}", "strength": 5},
            // The shipped text of that name.
            "identity": {"strength": 70}},
        "subjects": {"a": {"kind": "user", "row_filters": [
            {"catalog": "c", "schema": "s", "table": "t", "expression": {"trino": "true; DROP TABLE x"}}]}},
    });
    let document = Document::parse(text.to_string().as_bytes()).unwrap();
    let Err(BundleError::Expressions(findings)) = Bundle::build(document.policy(), &settings(), WITH_TRINO)
    else {
        panic!("it made a bundle");
    };
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert_eq!(
        lines,
        [
            "mask_library.broken.trino at byte 15: expected )",
            "mask_library.identity.trino at byte 0: the column itself hides nothing, but strength 70 would win over masks that do",
            "mask_library.open.trino at byte 0: the column itself hides nothing, but strength 5 would win over masks that do",
            "subjects.a.row_filters[0].expression.trino at byte 4: only one expression is allowed",
        ]
    );
}

/// Small numbers from a seed, the same everywhere.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % bound
    }

    fn one<'t>(&mut self, of: &[&'t str]) -> &'t str {
        of[self.below(of.len())]
    }
}

const CATALOGS: &[&str] = &["one", "two", "three"];
const SCHEMAS: &[&str] = &["public", "Private", "pg_catalog"];
const TABLES: &[&str] = &["customers", "Communes"];
const COLUMNS: &[&str] = &["id", "Email", "say \"hi\""];
const MASKS: &[&str] = &["null", "sha256", "md5", "also50", "identity"];
const NAMES: &[&str] = &["ana", "bob", "analyst", "interns", "admin", "other"];

fn made(dice: &mut Dice) -> Value {
    let pattern = |dice: &mut Dice, names: &[&str]| match dice.below(4) {
        0 => "*".to_owned(),
        1 => format!("{}*", dice.one(names).split_at(dice.below(3)).0),
        _ => dice.one(names).to_owned(),
    };
    let mut subjects = Map::new();
    for name in NAMES {
        if dice.below(4) == 0 {
            continue;
        }
        let scopes: Vec<_> = (0..dice.below(3))
            .map(|_| {
                json!({"catalog": pattern(dice, CATALOGS), "schema": pattern(dice, SCHEMAS), "table": pattern(dice, TABLES)})
            })
            .collect();
        let mut seen = BTreeSet::new();
        let mut masks = Vec::new();
        let few = if dice.below(3) == 0 { 0 } else { dice.below(14) };
        for _ in 0..few {
            let at = [dice.one(CATALOGS), dice.one(SCHEMAS), dice.one(TABLES), dice.one(COLUMNS)];
            let automatic = dice.below(2) == 0;
            if seen.insert((at, automatic)) {
                let mut entry = json!({"catalog": at[0], "schema": at[1], "table": at[2], "column": at[3], "mask": dice.one(MASKS)});
                if automatic {
                    entry["source"] = json!("auto-pii");
                }
                masks.push(entry);
            }
        }
        let filters = if dice.below(2) == 0 { 0 } else { dice.below(3) };
        let row_filters: Vec<_> = (0..filters)
            .map(|_| {
                let expression = match dice.below(3) {
                    0 => json!({"postgres": "true"}),
                    number => json!({"trino": format!("id = {number}")}),
                };
                json!({"catalog": dice.one(CATALOGS), "schema": dice.one(SCHEMAS), "table": dice.one(TABLES), "expression": expression})
            })
            .collect();
        let kind = dice.one(&["user", "role", "group"]);
        subjects.insert(
            (*name).to_owned(),
            json!({"kind": kind, "scopes": scopes, "masks": masks, "row_filters": row_filters}),
        );
    }
    let mut sources = Map::new();
    for name in ["s1", "s2", "s3"] {
        let list: Vec<_> = NAMES.iter().filter(|_| dice.below(5) == 0).collect();
        sources.insert(
            name.to_owned(),
            json!({"catalog": dice.one(&["one", "Two"]), "read_only": dice.below(3) > 0, "write_allow_list": list}),
        );
    }
    let library = json!({
        "null": {"strength": 100}, "sha256": {"strength": 60}, "md5": {"strength": 50}, "identity": {"trino": " {column} ", "strength": 0},
        "also50": {"trino": "CAST(reverse({column}) AS {type})", "strength": 50},
    });
    json!({"version": 1, "mask_library": library, "sources": sources, "subjects": subjects})
}

/// What a mask does to a column `"c"` of type varchar.
fn written(mask: &str, column: &str) -> Option<Value> {
    let column = format!("\"{}\"", column.replace('"', "\"\""));
    let text = match mask {
        "identity" => return None,
        "null" => "CAST(NULL AS varchar)".to_owned(),
        "sha256" => format!("CAST(to_hex(sha256(to_utf8({column}))) AS varchar)"),
        "md5" => format!("CAST(to_hex(md5(to_utf8({column}))) AS varchar)"),
        _ => format!("CAST(reverse({column}) AS varchar)"),
    };
    Some(json!(text))
}

fn file(folder: &Path, path: &str) -> String {
    std::fs::read_to_string(folder.join(path)).unwrap()
}

#[test]
fn opa_answers_as_the_document_means() {
    let settings = Settings { admin_subjects: ["admin".into()].into(), ..Settings::default() };
    let folder = tempfile::tempdir().unwrap();
    let empty = Bundle::build(&Policy::default(), &settings, WITH_TRINO).unwrap();
    opa::unpack(&empty.bytes, folder.path());
    let (ours, thin) = (folder.path().join("fedgate"), folder.path().join("trino"));
    std::fs::remove_dir_all(ours.join("policy")).unwrap();
    let server = opa::Server::start(&opa::program(), &[ours.to_str().unwrap(), thin.to_str().unwrap()]);
    let documents: u64 =
        std::env::var("FEDGATE_POLICY_DOCUMENTS").ok().map_or(60, |count| count.parse().unwrap());
    let (mut inputs, mut masked, mut refused) = (0, 0, 0);
    for seed in 1..=documents {
        let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let document = Document::parse(made(&mut dice).to_string().as_bytes()).unwrap();
        let bundle = Bundle::build(document.policy(), &settings, WITH_TRINO).unwrap();
        let folder = tempfile::tempdir().unwrap();
        opa::unpack(&bundle.bytes, folder.path());
        server.put("fedgate/policy", &file(folder.path(), "fedgate/policy/data.json"));
        for source in document.policy().sources.keys() {
            server.put(&format!("akko/{source}"), &file(folder.path(), &format!("akko/{source}/data.json")));
        }
        let naive = Naive { policy: document.policy(), admins: &settings.admin_subjects };
        for _ in 0..12 {
            let groups: Vec<String> =
                NAMES.iter().filter(|_| dice.below(3) == 0).map(|name| (*name).to_owned()).collect();
            let identity = Identity { user: dice.one(NAMES).to_owned(), groups };
            let said = json!({"user": identity.user, "groups": identity.groups});
            let names = [CATALOGS, SCHEMAS, TABLES].map(|names| dice.one(names).to_lowercase());
            let table = names.each_ref().map(String::as_str);
            let resource = json!({"catalogName": table[0], "schemaName": table[1], "tableName": table[2]});
            let ask = |path: &str, action: Value| {
                server.ask(path, &json!({"context": {"identity": said}, "action": action}))
            };
            let context = || format!("seed {seed}, {said}, {table:?}, {}", document.to_text());

            let columns: Vec<Value> = COLUMNS
                .iter()
                .map(|column| {
                    let mut of = resource.clone();
                    of["columnName"] = json!(column.to_lowercase());
                    of["columnType"] = json!("varchar");
                    json!({"column": of})
                })
                .collect();
            let want: Vec<Value> = COLUMNS
                .iter()
                .enumerate()
                .filter_map(|(index, column)| {
                    let column = column.to_lowercase();
                    let [catalog, schema, name] = table;
                    let mask = naive.mask(&identity, [catalog, schema, name, &column])?;
                    let expression = written(mask, &column)?;
                    Some(json!({"index": index, "viewExpression": {"expression": expression}}))
                })
                .collect();
            masked += want.len();
            let got = ask(
                "trino/batchColumnMasks",
                json!({"operation": "GetColumnMask", "filterResources": columns}),
            );
            assert_eq!(got, Some(json!(want)), "masks: {}", context());

            let want: Vec<Value> =
                naive.filters(&identity, table).into_iter().map(|text| json!({"expression": text})).collect();
            let got = ask(
                "trino/rowFilters",
                json!({"operation": "GetRowFilters", "resource": {"table": resource}}),
            );
            assert_eq!(got, Some(json!(want)), "filters: {}", context());

            let got = ask(
                "trino/allow",
                json!({"operation": "SelectFromColumns", "resource": {"table": resource}}),
            );
            assert_eq!(got, Some(json!(naive.reads(&identity, table))), "reads: {}", context());

            let want = naive.guards(&identity, table[0]);
            refused += usize::from(want);
            let got = ask(
                "fedgate/readonly/deny",
                json!({"operation": "DropTable", "resource": {"table": resource}}),
            );
            assert_eq!(got, Some(json!(want)), "guard: {}", context());

            let query = json!({"catalogName": table[0], "schemaName": "system", "functionName": "query"});
            let want = naive.veils(&identity, table[0]);
            let raw = ask(
                "fedgate/readonly/deny",
                json!({"operation": "CreateViewWithExecuteFunction", "resource": {"function": query}}),
            );
            assert_eq!(raw, Some(json!(want)), "raw: {}", context());
            inputs += 5;
        }
    }
    println!("{documents} documents, {inputs} questions, {masked} masked columns, {refused} refused writes");
    assert!(inputs > 300 && masked > 100 && refused > 20, "{inputs} {masked} {refused}");
}
