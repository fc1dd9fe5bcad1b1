//! Configuration policies: a warm evaluation, and a choice among many.
//!
//! Invariant: the same instances each time; `cargo test --benches` only asks whether it runs.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use fedgate::ids::{ClientUser, SourceName};
use fedgate::policy::adminconfig::{
    Infrastructure, Interface, Landscape, Limits, Outcome, Policies, Request, Resources, SourceFile, plan,
};
use fedgate::session::{Ruling, Rulings};
use serde_json::{Value, json};

// The gateway's own allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const POLICIES: usize = 1_000;
const MODULES: usize = 1_000;
const CLUSTERS: usize = 100;
const ACCOUNTS: usize = 20;

fn file(name: &str, text: String) -> SourceFile {
    SourceFile { name: Arc::from(name), text }
}

fn input() -> Value {
    json!({
        "workload": {"uuid": "w", "policySetID": "", "cluster": {"name": "c1", "metadata": {"region": "r1"}}, "properties": {"intent": "x"}},
        "request": {"datasetID": "d", "usage": "read", "dataset": {"name": "d", "geography": "r1", "tags": {}, "columns": []}},
    })
}

fn shipped() -> Vec<SourceFile> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/policies");
    ["out-of-the-box/capabilities.rego", "extended/placement.rego"]
        .map(|name| file(name, std::fs::read_to_string(root.join(name)).unwrap()))
        .into()
}

/// The third seed's text, where it is there, with everything that is no policy left out.
fn seed() -> Option<Vec<SourceFile>> {
    let folder = std::env::var_os("FEDGATE_SEEDS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/seeds"), Into::into);
    let entry = std::fs::read_dir(folder)
        .ok()?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("003_"))?;
    let text = std::fs::read_to_string(entry.path()).ok()?;
    let files: Vec<SourceFile> = text
        .split("\npackage adminconfig\n")
        .skip(1)
        .enumerate()
        .map(|(index, rest)| {
            let code: Vec<&str> = rest
                .lines()
                .take_while(|line| {
                    line.is_empty() || line.starts_with([' ', '#', '}']) || line.starts_with("config[")
                })
                .collect();
            file(&format!("seed-{index}.rego"), format!("package adminconfig\n{}\n", code.join("\n")))
        })
        .collect();
    Some(files)
}

fn many() -> (Policies, Resources, Infrastructure) {
    let rules: String = (0..POLICIES)
        .map(|policy| {
            let restriction = match policy % 3 {
                0 => format!("\"modules\": [{{\"property\": \"type\", \"values\": [\"service\", \"t{policy}\"]}}]"),
                1 => format!("\"modules\": [{{\"property\": \"module-load\", \"range\": {{\"max\": {}}}}}]", 50 + policy % 50),
                _ => format!("\"clusters\": [{{\"property\": \"cluster-load\", \"range\": {{\"max\": {}}}}}]", 50 + policy % 50),
            };
            format!(
                "config[{{\"capability\": \"read\", \"decision\": decision}}] {{\n  input.request.usage == \"read\"\n  decision := {{\"policy\": {{\"ID\": \"p{policy}\"}}, \"restrictions\": {{{restriction}}}}}\n}}\n"
            )
        })
        .collect();
    let optimize = "optimize[{\"policy\": {\"ID\": \"o\"}, \"strategy\": [{\"attribute\": \"module-load\", \"directive\": \"min\"}, {\"attribute\": \"cluster-load\", \"directive\": \"max\", \"weight\": \"0.5\"}]}] { true }\n";
    let policies =
        Policies::compile(&[file("p.rego", format!("package adminconfig\n{rules}{optimize}"))]).unwrap();
    let modules: String = (0..MODULES)
        .map(|module| {
            let (capability, ends) = match module % 2 {
                0 => ("read", "api: {protocol: flight}, supportedInterfaces: [{source: {protocol: postgres}}, {source: {protocol: s3}}]"),
                _ => ("copy", "supportedInterfaces: [{source: {protocol: postgres}, sink: {protocol: s3}}]"),
            };
            format!("---\nkind: FybrikModule\nmetadata: {{name: m{module:04}}}\nspec: {{type: service, capabilities: [{{capability: {capability}, scope: workload, {ends}, actions: [{{name: Redact}}]}}]}}\n")
        })
        .collect();
    let clusters: String = (0..CLUSTERS)
        .map(|cluster| format!("---\nname: c{cluster:03}\nmetadata: {{region: r{cluster}}}\n"))
        .collect();
    let accounts: String = (0..ACCOUNTS)
        .map(|account| {
            format!("---\nkind: FybrikStorageAccount\nmetadata: {{name: a{account}}}\nspec: {{type: s3, geography: r{account}}}\n")
        })
        .collect();
    let resources =
        Resources::parse(&[file("m", modules)], &[file("c", clusters)], &[file("a", accounts)]).unwrap();
    let load = |object: &str, attribute: &str, name: String, value: usize| json!({"attribute": attribute, "type": "numeric", "value": value.to_string(), "scale": {"min": 0, "max": 100}, "object": object, "instance": name});
    let attributes: Vec<Value> = (0..MODULES)
        .map(|module| load("module", "module-load", format!("m{module:04}"), module * 7 % 60))
        .chain(
            (0..CLUSTERS)
                .map(|cluster| load("cluster", "cluster-load", format!("c{cluster:03}"), cluster * 3 % 60)),
        )
        .collect();
    let infrastructure = Infrastructure::parse(&file("i", json!(attributes).to_string()), None).unwrap();
    (policies, resources, infrastructure)
}

fn evaluation(criterion: &mut Criterion) {
    let input = input();
    let mut sets = vec![("ours", shipped())];
    sets.extend(seed().map(|files| ("the seed's", files)));
    for (name, files) in sets {
        let policies = Policies::compile(&files).unwrap();
        criterion.bench_function(&format!("evaluate and merge, {name}"), |bench| {
            bench.iter(|| {
                black_box(policies.decide(black_box(&input), 1_650_000_000_000_000_000, &Limits::default()))
            });
        });
        criterion.bench_function(&format!("compile, {name}"), |bench| {
            bench.iter(|| black_box(Policies::compile(black_box(&files)).unwrap()));
        });
    }
}

fn choice(criterion: &mut Criterion) {
    let (policies, resources, infrastructure) = many();
    let limits = Limits { deadline: std::time::Duration::from_secs(10), ..Limits::default() };
    let landscape = Landscape { resources: &resources, infrastructure: &infrastructure };
    let request = Request::of_input(&input(), Interface::new("postgres", ""), vec!["Redact".to_owned()]);
    let outcome: Outcome = policies.decide(&input(), 0, &limits).unwrap();
    plan(&request, &outcome, landscape).unwrap();
    let mut group = criterion.benchmark_group("1,000 policies, 1,000 modules, 100 clusters");
    group.sample_size(10);
    group.bench_function("evaluate", |bench| {
        bench.iter(|| black_box(policies.decide(&input(), 0, &limits).unwrap()))
    });
    group.bench_function("plan", |bench| {
        bench.iter(|| black_box(plan(&request, &outcome, landscape).unwrap()))
    });
    let nothing = Request { workload: Some(Interface::new("none", "")), ..request.clone() };
    group.bench_function("explain why nothing fits", |bench| {
        bench.iter(|| black_box(plan(&nothing, &outcome, landscape).unwrap_err()));
    });
    group.finish();
}

/// What a new connection asks, and a session after each change.
fn lookup(criterion: &mut Criterion) {
    let (sources, users) = (100, 100);
    let decided = (0..sources).flat_map(|source| {
        (0..users).map(move |user| {
            let but = Arc::new(["root".into()].into());
            let name = SourceName::new(format!("source-{source}"));
            (name, ClientUser::new(format!("user-{user}")), Ruling::Veiled { but })
        })
    });
    let rulings = Rulings::new(decided);
    let (source, user) = (SourceName::new("source-42"), ClientUser::new("user-42"));
    criterion.bench_function("a decision that is there, of 10,000", |bench| {
        bench.iter(|| black_box(rulings.of(black_box(&source), black_box(&user))));
    });
}

criterion_group!(benches, evaluation, choice, lookup);
criterion_main!(benches);
