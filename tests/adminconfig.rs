//! Configuration policies: regorus beside a real OPA, merge, restrictions and the choice.
//!
//! Invariant: what is wanted stands in `tests/adminconfig/*.yaml`, comes from a real OPA, or from a second reading that
//! shares no code with the planner. The third seed's texts are read where its folder is there, and stand nowhere here.

#[path = "adminconfig/naive.rs"]
mod naive;
#[allow(dead_code, reason = "tests of bundles use the rest")]
#[path = "policy/opa.rs"]
mod opa;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fedgate::policy::adminconfig::{
    Infrastructure, Interface, Landscape, Limits, MOST_STEPS, Origin, Outcome, Policies, Raw, RawEntry,
    Request, Resources, SourceFile, Taxonomy, plan,
};
use serde::Deserialize;
use serde_json::{Value, json};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn file(name: &str, text: &str) -> SourceFile {
    SourceFile { name: Arc::from(name), text: text.to_owned() }
}

/// The `*.rego` files below a folder of ours.
fn ours(folders: &[&str]) -> Vec<SourceFile> {
    let mut files = Vec::new();
    for folder in folders {
        for entry in std::fs::read_dir(root().join("config/policies").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "rego") {
                let name = path.strip_prefix(root()).unwrap().display().to_string();
                files.push(file(&name, &std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    files.sort_by(|one, other| one.name.cmp(&other.name));
    files
}

/// The policies of the third seed as they stand: whole files, then single rules without a package. None where the seed
/// is not there.
fn seed() -> Option<(Vec<SourceFile>, Vec<SourceFile>)> {
    let near = root().join("../shared/seeds");
    let folder = match std::env::var_os("FEDGATE_SEEDS") {
        Some(folder) => PathBuf::from(folder),
        None => near,
    };
    let entry = std::fs::read_dir(&folder)
        .ok()?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("003_"))?;
    let text = std::fs::read_to_string(entry.path()).unwrap();
    // Code is what looks like it: from a package, a rule or its comment to the first line that is neither.
    let code = |line: &str| {
        line.is_empty()
            || line.starts_with([' ', '#', '}'])
            || line.starts_with("config[")
            || line.starts_with("package ")
    };
    let (mut files, mut rules) = (Vec::new(), Vec::new());
    let mut block = String::new();
    for line in text.lines().chain(["end of text"]) {
        let begins = line.starts_with("package ") || line.starts_with("config[{");
        if !block.is_empty() && code(line) || block.is_empty() && begins && !line.contains("where") {
            block.push_str(line);
            block.push('\n');
        } else if !block.is_empty() {
            let whole = std::mem::take(&mut block);
            if whole.starts_with("package ") {
                files.push(file(&format!("seed-{}.rego", files.len()), &whole));
            } else if whole.contains('}') && whole.contains("input") {
                rules.push(file(
                    &format!("rule-{}.rego", rules.len()),
                    &format!("package adminconfig\n{whole}"),
                ));
            }
        }
    }
    Some((files, rules))
}

fn now_ns() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_nanos()).unwrap()
}

/// The numbers of a generator that is the same each time.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }

    fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len())]
    }
}

/// An input document, with parts left out at times, since what is undefined is where readings differ.
fn input(dice: &mut Dice) -> Value {
    let names = ["", "north", "south", "xenon", "x"];
    let mut input = json!({
        "workload": {
            "uuid": "w", "policySetID": dice.one(&["", "1", "2"]),
            "cluster": {"name": dice.one(&names), "metadata": {"region": dice.one(&names)}},
            "properties": {"intent": dice.one(&["Fraud Detection", "Marketing", "x"]), "stage": dice.one(&names)},
        },
        "request": {
            "datasetID": "d", "usage": dice.one(&["read", "write", "copy", "delete", "other"]),
            "dataset": {
                "name": dice.one(&names), "geography": dice.one(&names), "owner": "o",
                "tags": {"PII": dice.roll(2) == 0, "count": dice.roll(5)},
                "columns": (0..dice.roll(4)).map(|column| json!({"name": format!("c{column}"), "tags": {"PII": dice.roll(2) == 0}})).collect::<Vec<_>>(),
            },
        },
    });
    for (holder, key) in [
        ("/workload", "properties"),
        ("/workload/properties", "stage"),
        ("/workload/cluster", "metadata"),
        ("/workload", "policySetID"),
        ("/request", "usage"),
        ("/request", "dataset"),
        ("/request/dataset", "geography"),
        ("/request/dataset", "tags"),
        ("/request/dataset", "columns"),
        ("/request/dataset", "name"),
    ] {
        if dice.roll(6) == 0
            && let Some(holder) = input.pointer_mut(holder)
        {
            holder.as_object_mut().unwrap().remove(key);
        }
    }
    input
}

fn sorted(values: impl IntoIterator<Item = Value>) -> BTreeSet<String> {
    // Numbers and keys in one spelling, whatever spelled them.
    fn plain(value: &Value) -> String {
        match value {
            Value::Object(fields) => {
                let sorted: BTreeMap<_, _> = fields.iter().map(|(key, value)| (key, plain(value))).collect();
                format!("{sorted:?}")
            }
            Value::Array(items) => format!("{:?}", items.iter().map(plain).collect::<Vec<_>>()),
            Value::Number(number) => format!("{}", number.as_f64().unwrap()),
            other => other.to_string(),
        }
    }
    values.into_iter().map(|value| plain(&value)).collect()
}

/// Asks OPA and regorus the same, and counts how many decisions there were.
fn agree(files: &[SourceFile], inputs: usize, seed: u64) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = vec!["--v0-compatible".to_owned()];
    for (index, file) in files.iter().enumerate() {
        let path = folder.path().join(format!("{index}.rego"));
        std::fs::write(&path, &file.text).unwrap();
        arguments.push(path.display().to_string());
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let server = opa::Server::start(&opa::program(), &arguments);
    let policies = Policies::compile(files).unwrap();
    let mut dice = Dice(seed);
    let mut decisions = 0;
    for _ in 0..inputs {
        let input = input(&mut dice);
        let theirs = server.ask("adminconfig", &input).unwrap_or_else(|| json!({}));
        let raw = policies.evaluate(&input, now_ns(), &patient()).unwrap();
        for (rule, ours) in [("config", raw.config), ("optimize", raw.optimize)] {
            let theirs = theirs.get(rule).and_then(Value::as_array).cloned().unwrap_or_default();
            let ours = sorted(ours.into_iter().map(|entry| entry.value));
            decisions += ours.len();
            assert_eq!(ours, sorted(theirs), "{rule} of {input}\nregorus left, OPA right");
        }
    }
    decisions
}

/// As many steps as ever, and as much time as a busy machine needs.
fn patient() -> Limits {
    Limits { deadline: Duration::from_secs(60), ..Limits::default() }
}

#[test]
fn regorus_and_opa_agree_on_our_policies() {
    assert!(agree(&ours(&["out-of-the-box", "extended", "custom", "examples"]), 300, 1) > 500);
}

/// Undefined references under `not`, errors of built-ins, v0 beside v1, and what else readings differ in.
#[test]
fn regorus_and_opa_agree_where_readings_differ() {
    let traps: BTreeMap<String, String> = serde_yaml_ng::from_str(
        &std::fs::read_to_string(root().join("tests/adminconfig/traps.yaml")).unwrap(),
    )
    .unwrap();
    let files: Vec<SourceFile> = traps.iter().map(|(name, text)| file(name, text)).collect();
    assert!(agree(&files, 400, 2) > 2_000);
}

#[test]
fn regorus_and_opa_agree_on_the_seed() {
    let Some((files, rules)) = seed() else {
        eprintln!("the third seed is not there");
        return;
    };
    assert_eq!((files.len(), rules.len()), (3, 2), "{files:#?} {rules:#?}");
    assert!(agree(&files, 300, 3) > 500);
    assert!(agree(&rules, 100, 4) > 10);
}

/// Ours decide what the seed's decide, under the same names.
#[test]
fn our_policies_are_equal_in_effect_to_the_seeds() {
    let Some((files, _)) = seed() else {
        eprintln!("the third seed is not there");
        return;
    };
    let theirs = Policies::compile(&files[..2]).unwrap();
    let ours = Policies::compile(&ours(&["out-of-the-box", "extended"])).unwrap();
    let mut dice = Dice(5);
    let decided = |policies: &Policies, input: &Value| {
        let raw = policies.evaluate(input, 0, &patient()).unwrap();
        sorted(raw.config.into_iter().map(|entry| {
            let mut value = entry.value;
            value["decision"]["policy"].as_object_mut().unwrap().remove("description");
            value
        }))
    };
    for _ in 0..400 {
        let input = input(&mut dice);
        assert_eq!(decided(&ours, &input), decided(&theirs, &input), "{input}");
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    note: String,
    files: Option<BTreeMap<String, String>>,
    /// Lines of one file, behind its package.
    rules: Option<String>,
    #[serde(default)]
    input: Value,
    #[serde(default)]
    set: String,
    now: Option<String>,
    /// Of the interpreter; so many that the clock ends it otherwise.
    steps: Option<u64>,
    want: Option<Value>,
    error: Option<String>,
    #[serde(default)]
    says: Vec<String>,
}

fn cases<T: serde::de::DeserializeOwned>(name: &str) -> Vec<T> {
    let path = root().join("tests/adminconfig").join(name);
    serde_yaml_ng::from_str(&std::fs::read_to_string(path).unwrap())
        .unwrap_or_else(|error| panic!("{name}: {error}"))
}

#[test]
fn decisions_are_merged_and_wrong_ones_are_errors() {
    let cases: Vec<Case> = cases("decisions.yaml");
    assert!(cases.len() > 50);
    let mut failures = Vec::new();
    for case in cases {
        let files: Vec<SourceFile> = match (case.files, case.rules) {
            (Some(files), None) => files.iter().map(|(name, text)| file(name, text)).collect(),
            (None, Some(rules)) => vec![file("p.rego", &format!("package adminconfig\n{rules}"))],
            _ => panic!("{}: either files or rules", case.note),
        };
        let now = case.now.map_or(0, |now| {
            let now = humantime::parse_rfc3339(&now).unwrap().duration_since(std::time::UNIX_EPOCH).unwrap();
            i64::try_from(now.as_nanos()).unwrap()
        });
        let (deadline, steps) = match case.steps {
            Some(steps) => (Duration::from_secs(60), steps),
            None => (Duration::from_secs(1), u64::MAX),
        };
        let limits = Limits { deadline, steps, entries: 1_000, ..Limits::default() };
        let mut input = if case.input.is_null() { json!({}) } else { case.input };
        input["workload"] = json!({"policySetID": case.set});
        let started = Instant::now();
        let got = Policies::compile(&files).and_then(|policies| policies.decide(&input, now, &limits));
        assert!(started.elapsed() < Duration::from_secs(20), "{}: {:?}", case.note, started.elapsed());
        match (got, case.want, case.error) {
            (Ok(outcome), Some(want), None) => {
                if sorted([outcome.to_json()]) != sorted([want.clone()]) {
                    failures.push(format!("{}: got {}, want {want}", case.note, outcome.to_json()));
                }
            }
            (Err(error), None, Some(kind)) => {
                let text = error.to_string();
                if error.kind() != kind || !case.says.iter().all(|part| text.contains(part)) {
                    failures.push(format!(
                        "{}: {} {text}; want {kind} {:?}",
                        case.note,
                        error.kind(),
                        case.says
                    ));
                }
                assert_eq!(error.to_json()["error"], json!(error.kind()));
            }
            (got, _, _) => failures.push(format!("{}: {got:?}", case.note)),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn a_conflict_as_json_names_both() {
    let rule = |id: &str, deploy: &str| {
        format!(
            "config[{{\"capability\": \"read\", \"decision\": {{\"policy\": {{\"ID\": \"{id}\"}}, \"deploy\": \"{deploy}\"}}}}] {{ true }}\n"
        )
    };
    let text = format!("package adminconfig\n{}{}", rule("one", "False"), rule("two", "True"));
    let policies = Policies::compile(&[file("p.rego", &text)]).unwrap();
    let error = policies.decide(&json!({}), 0, &patient()).unwrap_err();
    let answer = error.to_json();
    assert_eq!((&answer["error"], &answer["between"]), (&json!("conflict"), &json!(["two", "one"])));
    assert_eq!(answer["at"], json!(["p.rego:3", "p.rego:2"]));
}

/// Texts that would nest without end, and sets of a size that nobody writes by hand.
#[test]
fn size_and_depth_are_bounded() {
    let package = "package adminconfig\n";
    let error = |text: String| Policies::compile(&[file("p.rego", &text)]).unwrap_err().to_string();
    for (open, close) in [("[", "]"), ("(", ")"), ("{1: ", "}")] {
        let text =
            format!("{package}config[x] {{ x := {}1{} }}", open.repeat(100_000), close.repeat(100_000));
        assert!(error(text).contains("p.rego:2: is nested more than"));
    }
    assert!(
        error(format!("{package}config[x] {{ x := {}1 }}", "1 + ".repeat(100_000))).contains("operators")
    );
    assert!(error(format!("{package}config[x] {{ {}true }}", "not ".repeat(100_000))).contains("operators"));
    let deep = format!("{package}config[x] {{ x := {}1 }}", "1 + ".repeat(1_900));
    Policies::compile(&[file("p.rego", &deep)]).unwrap();
    assert!(error(format!("{package}#{}", " ".repeat(2 << 20))).contains("longer than"));
    // One rule asks the next: long chains are refused, shorter ones are followed.
    let chain = |length: usize| {
        let rules: String = (0..length).map(|rule| format!("r{rule} {{ r{} }}\n", rule + 1)).collect();
        let end = format!("r{length} {{ input.yes }}\n");
        format!(
            "{package}{rules}{end}config[{{\"capability\": \"read\", \"decision\": {{\"policy\": {{\"ID\": \"a\"}}}}}}] {{ r0 }}"
        )
    };
    assert!(error(chain(3_000)).contains("deep"));
    let policies = Policies::compile(&[file("p.rego", &chain(1_500))]).unwrap();
    let limits = Limits { deadline: Duration::from_secs(20), ..Limits::default() };
    assert_eq!(policies.decide(&json!({"yes": true}), 0, &limits).unwrap().decisions.len(), 1);
}

#[test]
fn ten_thousand_policies_are_compiled_and_asked() {
    let files: Vec<SourceFile> = (0..100)
        .map(|part| {
            let rules: String = (0..100)
                .map(|rule| {
                    format!(
                        "config[{{\"capability\": \"read\", \"decision\": decision}}] {{\n  input.request.usage == \"read\"\n  decision := {{\"policy\": {{\"ID\": \"p-{part}-{rule}\"}}, \"restrictions\": {{\"modules\": [{{\"property\": \"type\", \"values\": [\"service\"]}}]}}}}\n}}\n"
                    )
                })
                .collect();
            file(&format!("{part:03}.rego"), &format!("package adminconfig\n{rules}"))
        })
        .collect();
    let policies = Policies::compile(&files).unwrap();
    assert_eq!(policies.len(), 10_000);
    let limits = Limits { deadline: Duration::from_secs(60), ..Limits::default() };
    let outcome = policies.decide(&json!({"request": {"usage": "read"}}), 0, &limits).unwrap();
    let decision = outcome.decision(fedgate::policy::adminconfig::Capability::Read);
    assert_eq!(decision.policies.len(), 10_000);
    assert_eq!(decision.policies[9_999].id, "p-99-99");
    assert_eq!(decision.policies[9_999].at.to_string(), "099.rego:398");
}

/// A small instance, with every choice left to the dice.
fn instance(dice: &mut Dice) -> naive::Instance {
    let (protocols, formats) = (["p", "q", "s3"], ["", "f", "g"]);
    let (regions, kinds) = (["north", "south"], ["read", "copy", "transform", "read"]);
    let names = ["m1", "m2", "m3", "m4"];
    let one = |dice: &mut Dice| json!({"protocol": dice.one(&protocols), "dataformat": dice.one(&formats)});
    let modules = (0..1 + dice.roll(4))
        .map(|module| {
            let capabilities: Vec<Value> = (0..1 + dice.roll(2))
                .map(|_| {
                    let pairs: Vec<Value> = (0..1 + dice.roll(2))
                        .map(|_| {
                            if dice.roll(5) == 0 {
                                json!({"source": one(dice)})
                            } else {
                                json!({"source": one(dice), "sink": one(dice)})
                            }
                        })
                        .collect();
                    let actions: Vec<Value> = ["x", "y"]
                        .iter()
                        .filter(|_| dice.roll(2) == 0)
                        .map(|name| json!({"name": name}))
                        .collect();
                    let mut capability = json!({
                        "capability": dice.one(&kinds), "scope": dice.one(&["workload", "asset"]),
                        "supportedInterfaces": pairs, "actions": actions,
                    });
                    if dice.roll(2) == 0 {
                        capability["api"] = one(dice);
                    }
                    capability
                })
                .collect();
            json!({"kind": "FybrikModule", "metadata": {"name": names[module]},
                "spec": {"type": dice.one(&["service", "job"]), "capabilities": capabilities}})
        })
        .collect();
    let clusters: Vec<Value> = (0..1 + dice.roll(3))
        .map(|cluster| json!({"name": format!("c{cluster}"), "metadata": {"region": dice.one(&regions)}}))
        .collect();
    let accounts: Vec<Value> = (0..dice.roll(3))
        .map(|account| {
            json!({"kind": "FybrikStorageAccount", "metadata": {"name": format!("a{account}")},
                "spec": {"type": dice.one(&protocols), "geography": dice.one(&regions)}})
        })
        .collect();
    let mut attributes = Vec::new();
    for (object, instances) in [
        ("fybrikmodule", vec!["m1", "m2", "m3", "m4"]),
        ("cluster", vec!["c0", "c1", "c2"]),
        ("fybrikstorageaccount", vec!["a0", "a1"]),
    ] {
        for instance in instances {
            for name in ["cost", "load"] {
                if dice.roll(3) > 0 {
                    attributes.push(
                        json!({"attribute": name, "type": "numeric", "value": dice.roll(11).to_string(),
                        "scale": {"min": 0, "max": 10}, "object": object, "instance": instance}),
                    );
                }
            }
        }
    }
    if dice.roll(2) == 0 {
        attributes.push(json!({"attribute": "cost", "type": "numeric", "value": dice.roll(11).to_string(),
            "scale": {"min": 0, "max": 10}, "object": "inter-region", "arguments": ["north", "south"]}));
    }
    let mut decisions = Vec::new();
    for capability in ["read", "copy", "transform"] {
        let restriction = |dice: &mut Dice, texts: &[(&str, &[&str])]| -> Vec<Value> {
            if dice.roll(3) > 0 {
                return vec![];
            }
            if dice.roll(3) == 0 {
                return vec![
                    json!({"property": "load", "range": {"min": dice.roll(3), "max": 4 + dice.roll(7)}}),
                ];
            }
            let (property, values) = dice.one(texts);
            vec![json!({"property": property, "values": [dice.one(values)]})]
        };
        let modules: &[(&str, &[&str])] =
            &[("type", &["service", "job"]), ("capabilities.scope", &["workload", "asset"])];
        let clusters: &[(&str, &[&str])] =
            &[("name", &["c0", "c1"]), ("metadata.region", &["north", "south"])];
        let accounts: &[(&str, &[&str])] = &[("geography", &["north", "south"]), ("nothing", &["x"])];
        let mut decision = json!({"policy": {"ID": capability}, "restrictions": {
            "modules": restriction(dice, modules), "clusters": restriction(dice, clusters),
            "storageaccounts": restriction(dice, accounts)}});
        match dice.roll(8) {
            0 if capability != "read" => decision["deploy"] = json!("False"),
            1 | 2 => decision["deploy"] = json!("True"),
            _ => {}
        }
        decisions.push(json!({"capability": capability, "decision": decision}));
    }
    let goals = (0..dice.roll(3))
        .map(|_| {
            ((*dice.one(&["cost", "load"])).to_owned(), dice.roll(2) == 0, [0.5, 1.0, 3.0][dice.roll(3)])
        })
        .collect();
    let pick = |dice: &mut Dice| ((*dice.one(&protocols)).to_owned(), (*dice.one(&formats)).to_owned());
    naive::Instance {
        modules,
        clusters,
        accounts,
        attributes,
        decisions,
        goals,
        usage: (*dice.one(&["read", "read", "copy"])).to_owned(),
        asset: pick(dice),
        region: (*dice.one(&regions)).to_owned(),
        asked: (dice.roll(2) == 0).then(|| pick(dice)),
        actions: ["x", "y"].iter().filter(|_| dice.roll(3) == 0).map(|name| (*name).to_owned()).collect(),
    }
}

fn documents(name: &str, values: &[Value]) -> Vec<SourceFile> {
    let text = values.iter().map(|value| format!("---\n{}", serde_yaml_ng::to_string(value).unwrap()));
    vec![file(name, &text.collect::<String>())]
}

/// An exhaustive search agrees, in cost and in what is chosen.
#[test]
fn the_planner_finds_what_an_exhaustive_search_finds() {
    let mut dice = Dice(7);
    let (mut found, mut none, mut longest) = (0, 0, 0);
    for round in 0..6_000 {
        let small = instance(&mut dice);
        let resources = Resources::parse(
            &documents("modules.yaml", &small.modules),
            &documents("clusters.yaml", &small.clusters),
            &documents("accounts.yaml", &small.accounts),
        )
        .unwrap();
        let infrastructure = Infrastructure::parse(
            &file("i.json", &json!({"infrastructure": small.attributes}).to_string()),
            None,
        )
        .unwrap();
        let at = |line| Origin { file: "p.rego".into(), line };
        let goals: Vec<Value> = small
            .goals
            .iter()
            .map(|(name, most, weight)| json!({"attribute": name, "directive": if *most { "max" } else { "min" }, "weight": weight}))
            .collect();
        let raw = Raw {
            config: small
                .decisions
                .iter()
                .map(|value| RawEntry { value: value.clone(), at: at(1) })
                .collect(),
            optimize: vec![RawEntry { value: json!({"policy": {"ID": "o"}, "strategy": goals}), at: at(2) }],
        };
        let outcome = Outcome::merge(&raw, "").unwrap();
        let request = Request {
            dataset: "d".to_owned(),
            usage: small.usage.clone(),
            asset: Interface::new(&small.asset.0, &small.asset.1),
            region: small.region.clone(),
            workload: small.asked.as_ref().map(|asked| Interface::new(&asked.0, &asked.1)),
            actions: small.actions.clone(),
        };
        let landscape = Landscape { resources: &resources, infrastructure: &infrastructure };
        let got = plan(&request, &outcome, landscape);
        // What is refused before anything is chosen is not for the search to say.
        let refused = small.usage == "copy" && small.decisions[0]["decision"]["deploy"] == "True"
            || !small.actions.is_empty() && small.decisions[2]["decision"]["deploy"] == "False";
        match (got, small.best(MOST_STEPS)) {
            (Ok(plan), Some((cost, way))) => {
                found += 1;
                longest = longest.max(way.len());
                assert_eq!(plan.cost, cost, "{round}: {plan:?} {way:?}");
                let steps: Vec<(String, usize, String, Option<String>)> = plan
                    .steps
                    .into_iter()
                    .map(|step| (step.module, step.entry, step.cluster, step.account))
                    .collect();
                let way: Vec<_> = way
                    .into_iter()
                    .map(|(module, entry, _, cluster, account)| (module, entry, cluster, account))
                    .collect();
                assert_eq!(steps, way, "{round}");
            }
            (Err(why), None) => {
                none += 1;
                assert!(!why.message.is_empty());
            }
            (Err(_), Some(_)) if refused => {}
            (got, want) => panic!("{round}: {got:?}, and the search found {want:?}"),
        }
    }
    assert!(found > 500 && none > 500 && longest == MOST_STEPS, "{found} {none} {longest}");
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PlanCase {
    note: String,
    /// Folders below config/policies; default: out-of-the-box and extended.
    policies: Option<Vec<String>>,
    /// Answers of `config` beside those.
    #[serde(default)]
    decisions: Vec<Value>,
    asset: String,
    usage: Option<String>,
    geography: Option<String>,
    interface: Option<Value>,
    #[serde(default)]
    actions: Vec<String>,
    modules: Option<Vec<String>>,
    /// What is wanted of each step, and no other steps.
    plan: Option<Vec<Value>>,
    #[serde(default)]
    says: Vec<String>,
}

fn example(name: &str) -> SourceFile {
    let path = root().join("config/policies/examples").join(name);
    file(name, &std::fs::read_to_string(path).unwrap())
}

#[test]
fn plans_are_what_the_cases_say() {
    let taxonomy = Taxonomy::parse(&example("taxonomy.yaml")).unwrap();
    let infrastructure = Infrastructure::parse(&example("infrastructure.json"), Some(&taxonomy)).unwrap();
    let mut failures = Vec::new();
    for case in cases::<PlanCase>("plans.yaml") {
        let modules = case.modules.map_or_else(
            || vec![example("modules.yaml")],
            |texts| texts.iter().map(|text| file("modules", text)).collect(),
        );
        let resources =
            Resources::parse(&modules, &[example("clusters.yaml")], &[example("storage-accounts.yaml")])
                .unwrap();
        let folders = case.policies.unwrap_or_else(|| vec!["out-of-the-box".into(), "extended".into()]);
        let folders: Vec<&str> = folders.iter().map(String::as_str).collect();
        let geography = case.geography.as_deref().unwrap_or("north");
        let mut input = json!({
            "workload": {"uuid": "w", "cluster": {"name": "cluster-north", "metadata": {"region": "north"}}, "properties": {}},
            "request": {"datasetID": "data", "usage": case.usage.as_deref().unwrap_or("read"), "dataset": {"geography": geography}},
        });
        if let Some(interface) = case.interface {
            input["request"]["interface"] = interface;
        }
        let policies = Policies::compile(&ours(&folders)).unwrap();
        let mut raw = policies.evaluate(&input, now_ns(), &patient()).unwrap();
        let at = Origin { file: "p".into(), line: 1 };
        raw.config.extend(case.decisions.into_iter().map(|value| RawEntry { value, at: at.clone() }));
        let outcome = Outcome::merge(&raw, "").unwrap();
        let request = Request::of_input(&input, Interface::new(&case.asset, ""), case.actions);
        let landscape = Landscape { resources: &resources, infrastructure: &infrastructure };
        match (plan(&request, &outcome, landscape), case.plan) {
            (Ok(plan), Some(want)) => {
                let got = plan.to_json();
                let steps = got["steps"].as_array().unwrap();
                let same = steps.len() == want.len()
                    && steps.iter().zip(&want).all(|(step, want)| {
                        want.as_object().unwrap().iter().all(|(key, value)| &step[key] == value)
                    });
                if !same {
                    failures.push(format!("{}: got {got}", case.note));
                }
            }
            (Err(why), None) => {
                let all: Vec<String> = why.ruled_out.iter().map(ToString::to_string).collect();
                let text = format!("{why}\n{}", all.join("\n"));
                if let Some(part) = case.says.iter().find(|part| !text.contains(*part)) {
                    failures.push(format!("{}: no {part} in\n{text}", case.note));
                }
            }
            (got, want) => failures.push(format!("{}: {got:?}, want {want:?}", case.note)),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileCase {
    note: String,
    kind: String,
    text: String,
    says: Vec<String>,
}

#[test]
fn wrong_files_are_named_with_their_lines() {
    let taxonomy = Taxonomy::parse(&example("taxonomy.yaml")).unwrap();
    let mut failures = Vec::new();
    for case in cases::<FileCase>("files.yaml") {
        let files = [file("f", &case.text)];
        let result = match case.kind.as_str() {
            "modules" => Resources::parse(&files, &[], &[]).map(drop),
            "clusters" => Resources::parse(&[], &files, &[]).map(drop),
            "accounts" => Resources::parse(&[], &[], &files).map(drop),
            "infrastructure" => Infrastructure::parse(&files[0], Some(&taxonomy)).map(drop),
            "taxonomy" => Taxonomy::parse(&files[0]).map(drop),
            other => panic!("{other}"),
        };
        let text = match result {
            Ok(()) => "accepted".to_owned(),
            Err(problems) => problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"),
        };
        if let Some(part) = case.says.iter().find(|part| !text.contains(*part)) {
            failures.push(format!("{}: no {part} in {text}", case.note));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Where each stands is known without going through the whole text for each.
#[test]
fn files_of_very_many_entries_are_read_in_time() {
    const MANY: usize = 20_000;
    let clusters: String =
        (0..MANY).map(|number| format!("- name: c{number}\n  metadata: {{region: north}}\n")).collect();
    let started = Instant::now();
    let resources = Resources::parse(&[], &[file("c", &clusters)], &[]).unwrap();
    assert_eq!(resources.clusters.iter().find(|one| one.name == "c9999").unwrap().at.to_string(), "c:19999");
    let attribute = |number: usize| {
        format!(
            r#"{{"attribute": "load", "type": "numeric", "value": "1", "object": "cluster", "instance": "c{number}"}}"#
        )
    };
    let list: Vec<String> = (0..MANY).map(attribute).collect();
    Infrastructure::parse(&file("i", &format!("[{}]", list.join(",\n"))), None).unwrap();
    let wrong: Vec<String> = (0..MANY).map(|_| attribute(7)).collect();
    let problems = Infrastructure::parse(&file("i", &format!("[{}]", wrong.join(",\n"))), None).unwrap_err();
    assert_eq!((problems.len(), problems[0].at.to_string()), (1_000, "i:2".to_owned()));
    assert!(problems[999].message.ends_with("; and 18999 more problems"), "{}", problems[999]);
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

/// Modules that lead from any format to any other, so that chains may go round in circles, in clusters of as many regions.
#[test]
fn chains_that_may_lead_anywhere_are_planned_in_time() {
    let modules: String = (0..300)
        .map(|number| {
            let (capability, ends) = match number % 2 {
                0 => ("transform", format!("source: {{protocol: p}}, sink: {{protocol: p, dataformat: f{number}}}")),
                _ => ("read", format!("source: {{protocol: p, dataformat: f{}}}", number - 1)),
            };
            format!(
                "---\nkind: FybrikModule\nmetadata: {{name: m{number:03}}}\nspec: {{capabilities: [{{capability: {capability}, api: {{protocol: q}}, supportedInterfaces: [{{{ends}}}], actions: [{{name: A{}}}]}}]}}\n",
                number / 2 % 20
            )
        })
        .collect();
    let clusters: String = (0..100)
        .map(|number| format!("---\nname: c{number:02}\nmetadata: {{region: r{number}}}\n"))
        .collect();
    let resources = Resources::parse(&[file("m", &modules)], &[file("c", &clusters)], &[]).unwrap();
    let infrastructure = Infrastructure::default();
    let landscape = Landscape { resources: &resources, infrastructure: &infrastructure };
    let started = Instant::now();
    let planned = |actions: &[&str]| {
        let request = Request {
            dataset: "d".into(),
            usage: "read".into(),
            asset: Interface::new("p", "g"),
            actions: actions.iter().map(|action| (*action).to_owned()).collect(),
            ..Request::default()
        };
        plan(&request, &Outcome::default(), landscape).map(|plan| {
            plan.steps.iter().map(|step| format!("{} {}", step.module, step.cluster)).collect::<Vec<_>>()
        })
    };
    assert_eq!(planned(&[]).unwrap(), ["m000 c00", "m001 c00"]);
    assert_eq!(planned(&["A1", "A2"]).unwrap(), ["m002 c00", "m004 c00", "m005 c00"]);
    assert!(planned(&["A1", "A2", "A3", "A4"]).unwrap_err().message.contains("no way of at most 3 modules"));
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

fn fedgate(folder: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_fedgate"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Every command of the page is run where a reader would run it, and answers what the page shows.
#[test]
fn the_page_shows_what_the_commands_answer() {
    let page = std::fs::read_to_string(root().join("docs/configuration-policies.md")).unwrap();
    let mut commands = 0;
    for block in page.split("```console\n").skip(1).filter_map(|rest| rest.split("```").next()) {
        for part in block.split("$ ").skip(1) {
            // A line that ends in a backslash goes on in the next one.
            let whole = part.replace("\\\n", " ");
            let (command, shown) = whole.split_once('\n').unwrap();
            let mut words = command.split_whitespace();
            assert_eq!(words.next(), Some("fedgate"), "{command}");
            let (_, out, err) = fedgate(root(), &words.collect::<Vec<_>>());
            assert_eq!(format!("{out}{err}"), shown, "{command}");
            commands += 1;
        }
    }
    assert!(commands >= 4);
}

#[test]
fn eval_answers_as_scripts_expect() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    std::fs::create_dir(folder.path().join("p")).unwrap();
    write(
        "input.json",
        r#"{"workload": {"policySetID": ""}, "request": {"datasetID": "d", "usage": "read"}}"#,
    );
    let ask = |rules: &str, more: &[&str]| {
        write("p/p.rego", &format!("package adminconfig\n{rules}\n"));
        let mut arguments = vec!["policy", "eval", "--policies", "p", "--input", "input.json", "--json"];
        arguments.extend(more);
        let (code, out, err) = fedgate(folder.path(), &arguments);
        (code, serde_json::from_str::<Value>(&out).unwrap_or_else(|_| json!({"stderr": err})))
    };
    let rule = |id: &str, deploy: &str| {
        format!(
            r#"config[{{"capability": "read", "decision": {{"policy": {{"ID": "{id}"}}, "deploy": "{deploy}"}}}}] {{ time.now_ns() > 0 }}"#
        )
    };
    let (code, answer) = ask(&rule("one", "True"), &[]);
    assert_eq!(code, Some(0));
    assert_eq!(
        answer,
        json!({
            "decisions": {"read": {"deploy": "True", "policies": ["one"], "restrictions": {"modules": [], "clusters": [], "storageaccounts": []}}},
            "plan": null, "why": null, "left_out": [],
        })
    );
    let (code, answer) = ask(&format!("{}\n{}", rule("one", "True"), rule("two", "False")), &[]);
    assert_eq!(
        (code, &answer["error"], &answer["between"]),
        (Some(1), &json!("conflict"), &json!(["one", "two"]))
    );
    let (code, answer) = ask("config[1] { true }", &[]);
    assert_eq!((code, &answer["error"], &answer["line"]), (Some(1), &json!("shape"), &json!(2)));
    let (code, answer) = ask("config[", &[]);
    assert_eq!(
        (code, &answer["error"], &answer["problems"][0]["line"]),
        (Some(1), &json!("compile"), &json!(3))
    );
    // The clock is the one that is given.
    let (code, answer) = ask(&rule("one", "True"), &["--now", "1970-01-01T00:00:00Z"]);
    assert_eq!((code, &answer["decisions"]), (Some(0), &json!({})));
    for wrong in [["--now", "tomorrow"], ["--input", "nowhere"], ["--modules", "nowhere"], ["--modules", "p"]]
    {
        write("p/p.rego", "package adminconfig\n");
        let mut arguments = vec!["policy", "eval", "--policies", "p"];
        if wrong[0] != "--input" {
            arguments.extend(["--input", "input.json"]);
        }
        arguments.extend(wrong);
        assert_eq!(fedgate(folder.path(), &arguments).0, Some(2), "{wrong:?}");
    }
    // What is not what it should be is named, whatever it is.
    std::fs::write(folder.path().join("bytes"), [0xff, 0xfe, 0, 7]).unwrap();
    write("long", &"x".repeat((16 << 20) + 1));
    write("deep", &"[".repeat(10_000));
    write("folded", &(0..1_000).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect::<String>());
    write("list", "- a text\n");
    write("map", "note: x\n");
    write("none", "[]\n");
    write("late", "- {note: too late, input: {}, want: {}, now: 9999-12-31T23:59:59Z}\n");
    assert!(std::process::Command::new("mkfifo").arg(folder.path().join("pipe")).status().unwrap().success());
    let p = ["--policies", "p"];
    for (command, file, says) in [
        ("test", "nowhere", "fedgate: nowhere: No such file"),
        ("test", ".", "fedgate: .: is no regular file"),
        ("test", "pipe", "fedgate: pipe: is no regular file"),
        ("test", "/dev/zero", "fedgate: /dev/zero: is no regular file"),
        ("test", "bytes", "fedgate: bytes: stream did not contain valid UTF-8"),
        ("test", "long", "fedgate: long: is longer than"),
        ("test", "deep", "fedgate: deep: nests too deep at line 1"),
        ("test", "folded", "fedgate: folded: "),
        ("test", "list", "fedgate: list: .[0]: invalid type: string \"a text\""),
        ("test", "map", "fedgate: map: invalid type: map, expected a sequence"),
        ("test", "none", "fedgate: none: there are no cases in it"),
        ("test", "/dev/null", "fedgate: /dev/null: is no regular file"),
        ("test", "late", "fedgate: late: too late: now: is after 2262"),
        ("eval", "pipe", "fedgate: pipe: is no regular file"),
        ("eval", "bytes", "fedgate: bytes: stream did not contain valid UTF-8"),
        ("eval", "folded", "fedgate: folded: recursion limit exceeded"),
        ("eval", "list", "fedgate: list: an input document is an object"),
    ] {
        let option = if command == "eval" { vec!["--input", file] } else { vec![file] };
        let (code, out, err) =
            fedgate(folder.path(), &[&["policy", command][..], &p[..], &option[..]].concat());
        assert!(code == Some(2) && out.is_empty() && err.starts_with(says), "{command} {file}: {out}{err}");
    }
    for (now, says) in [
        ("9999-12-31T23:59:59Z", "--now: is after 2262"),
        ("1969-12-31T23:59:59Z", "--now: "),
        ("2026-02-30T00:00:00Z", "--now: "),
        ("", "--now: "),
    ] {
        let arguments = ["policy", "eval", "--policies", "p", "--input", "input.json", "--now", now];
        let (code, _, err) = fedgate(folder.path(), &arguments);
        assert!(code == Some(2) && err.contains(says), "{now}: {err}");
    }
    // A pipe among the policies is not waited for either.
    std::fs::rename(folder.path().join("pipe"), folder.path().join("p/pipe.rego")).unwrap();
    let arguments = ["policy", "eval", "--policies", "p", "--input", "input.json"];
    let (code, _, err) = fedgate(folder.path(), &arguments);
    assert!(code == Some(2) && err.contains("p/pipe.rego: is no regular file"), "{err}");
    std::fs::remove_file(folder.path().join("p/pipe.rego")).unwrap();
    write(
        "cases.yaml",
        "- {note: wrong, input: {}, want: {decisions: {read: {deploy: \"True\"}}}}\n- {note: right, input: {}, want: {decisions: {read: null}}}\n",
    );
    let (code, out, _) = fedgate(folder.path(), &["policy", "test", "--policies", "p", "cases.yaml"]);
    assert_eq!(code, Some(1));
    assert_eq!(
        out,
        "cases.yaml: wrong: /decisions/read is null, wanted {\"deploy\":\"True\"}\npassed: 1, failed: 1\n"
    );
}

/// `fedgate check` compiles the policies of a configuration and remarks on names that nothing has.
#[test]
fn check_compiles_and_lints() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    std::fs::create_dir(folder.path().join("custom")).unwrap();
    write("password", "x\n");
    write("users.txt", "");
    for name in ["modules.yaml", "clusters.yaml", "taxonomy.yaml"] {
        write(name, &example(name).text);
    }
    write(
        "fedgate.toml",
        "[gateway]\nlisten = [\"127.0.0.1:0\"]\n[gateway.auth]\nmethod = \"trust\"\n[[source]]\nname = \"s\"\nhosts = [\"127.0.0.1:5432\"]\ndatabase = \"s\"\nuser = \"r\"\naccess = [{ users = [\"analyst\"] }]\n\
         [policy]\nfolders = [\"custom\"]\nmodules = [\"modules.yaml\"]\nclusters = [\"clusters.yaml\"]\ntaxonomy = \"taxonomy.yaml\"\n\
         [[workload]]\nusers = [\"analyst\"]\ncluster = \"cluster-north\"\nproperties = { intent = \"Fishing\", mood = \"good\" }\npolicySetID = \"1\"\n",
    );
    write(
        "custom/p.rego",
        r#"package adminconfig
config[{"capability": "read", "decision": {"policy": {"ID": "a"}, "restrictions": {"modules": [{"property": "tpye", "values": ["x"]}]}}}] { true }
config[{"capability": "read", "decision": {"policy": {"ID": "b", "policySetID": "2"}}}] { input.workload.properties.stages == "x" }
optimize[{"policy": {"ID": "c"}, "strategy": [{"attribute": "charm", "directive": "max"}]}] { true }
"#,
    );
    let (code, out, err) = fedgate(folder.path(), &["check", "--config", "fedgate.toml"]);
    for part in [
        "custom/p.rego:2: policy a restricts tpye, which no module has",
        "custom/p.rego:3: asks for the property stages, which is none that the taxonomy has",
        "custom/p.rego:3: belongs to the policy set \"2\", which no workload is of",
        "custom/p.rego:4: policy c optimises charm, which is not in the taxonomy",
        "workload of analyst: the property intent has a value that the taxonomy does not know",
        "workload of analyst: the property mood is not in the taxonomy",
    ] {
        assert!(out.contains(part), "no {part} in {out}{err}");
    }
    assert_eq!(code, Some(0), "{out}{err}");
    write("custom/p.rego", "package adminconfig\nconfig[");
    let (code, out, err) = fedgate(folder.path(), &["check", "--config", "fedgate.toml"]);
    assert!(
        code == Some(1) && out.contains("problem: policy: ") && out.contains("custom/p.rego:2: "),
        "{out}{err}"
    );
}
