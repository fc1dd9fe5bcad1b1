//! Configuration policies by hand: the files of a `[policy]` section read, one input asked, cases run, and a lint.
//!
//! Invariant: nothing is put in force here, and what is answered is what the same files would decide in a gateway.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::config::{Config, ConfigError, Finding, PolicySection, Severity, Workload};
use crate::policy::adminconfig::{
    self, Infrastructure, Interface, Landscape, Limits, NoPlan, Outcome, Plan, Policies, Problem, Request,
    Resources, SourceFile, Taxonomy, WorkloadFacts,
};

/// Longest file, in bytes; the rooms that read them have bounds of their own.
const FILE_LIMIT: u64 = 16 << 20;
/// When an answer that has not come is given up.
const GIVE_UP: std::time::Duration = std::time::Duration::from_secs(30);
/// Files of one folder.
const FOLDER_LIMIT: usize = 20_000;
/// The folders that a folder of policies may be divided in, in the order of the decisions.
const DIVISIONS: [&str; 3] = ["out-of-the-box", "extended", "custom"];

#[derive(Args)]
pub struct EvalArgs {
    #[command(flatten)]
    place: Place,
    /// The input document, in JSON or YAML.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// The time that policies see, such as 2026-06-01T00:00:00Z; default: now.
    #[arg(long, value_name = "RFC3339")]
    now: Option<String>,
    /// How the data is reached where it is: a protocol, and a format behind a colon where it has one.
    #[arg(long, value_name = "PROTOCOL[:FORMAT]", default_value = "postgres")]
    asset: String,
    /// What has to be done to the data on its way, such as RedactAction; once for each.
    #[arg(long = "action", value_name = "NAME")]
    actions: Vec<String>,
    /// Print the answer as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub struct TestArgs {
    #[command(flatten)]
    place: Place,
    /// Files of cases (YAML): note, input, want, and now, asset or actions where they matter.
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

/// Where policies and what they choose from are.
#[derive(Args)]
struct Place {
    /// A configuration (TOML) with [policy].
    #[arg(long, value_name = "FILE", required_unless_present = "policies", conflicts_with = "policies")]
    config: Option<PathBuf>,
    /// A folder of *.rego, or one with the folders out-of-the-box, extended and custom; once for each.
    #[arg(long, value_name = "DIR")]
    policies: Vec<PathBuf>,
    /// infrastructure.json, in either shape.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    infrastructure: Option<PathBuf>,
    /// What attributes and properties there may be (YAML).
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    taxonomy: Option<PathBuf>,
    /// Modules (YAML); without any, there is no plan in the answer.
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    modules: Vec<PathBuf>,
    /// Clusters (YAML).
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    clusters: Vec<PathBuf>,
    /// Storage accounts (YAML).
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    storage_accounts: Vec<PathBuf>,
}

impl Place {
    fn section(&self) -> Result<PolicySection, EvalError> {
        match &self.config {
            Some(path) => Config::load(path)?.policy.ok_or(EvalError::NotConfigured),
            None => Ok(PolicySection {
                folders: self.policies.clone(),
                infrastructure: self.infrastructure.clone(),
                taxonomy: self.taxonomy.clone(),
                modules: self.modules.clone(),
                clusters: self.clusters.clone(),
                storage_accounts: self.storage_accounts.clone(),
            }),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("[policy] is needed for this; see config/fedgate.toml")]
    NotConfigured,
    #[error("{}: {error}", path.display())]
    Read { path: PathBuf, error: std::io::Error },
    #[error("{}", lines(.0))]
    Files(Vec<Problem>),
    #[error("{}: {message}", path.display())]
    Document { path: PathBuf, message: String },
    #[error("{}: a step of the policies does not end for it", path.display())]
    Endless { path: PathBuf },
    #[error("--now: {0}")]
    Now(String),
    #[error("cannot write: {0}")]
    Write(#[from] std::io::Error),
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// Everything that a `[policy]` section names, read and understood; the policies may be wrong all the same.
pub struct Material {
    pub files: Vec<SourceFile>,
    pub policies: Result<Policies, adminconfig::Error>,
    pub resources: Resources,
    pub infrastructure: Infrastructure,
    pub taxonomy: Option<Taxonomy>,
}

impl Material {
    /// # Errors
    /// A file that cannot be read, or a description that is wrong.
    pub fn read(section: &PolicySection) -> Result<Self, EvalError> {
        let mut files = Vec::new();
        for folder in &section.folders {
            let divisions: Vec<PathBuf> =
                DIVISIONS.iter().map(|name| folder.join(name)).filter(|path| path.is_dir()).collect();
            for part in std::iter::once(folder).chain(&divisions) {
                rego_files(part, &mut files)?;
            }
        }
        let taxonomy = match &section.taxonomy {
            Some(path) => Some(Taxonomy::parse(&source_file(path)?).map_err(EvalError::Files)?),
            None => None,
        };
        let infrastructure = match &section.infrastructure {
            Some(path) => {
                Infrastructure::parse(&source_file(path)?, taxonomy.as_ref()).map_err(EvalError::Files)?
            }
            None => Infrastructure::default(),
        };
        let all =
            |paths: &[PathBuf]| paths.iter().map(|path| source_file(path)).collect::<Result<Vec<_>, _>>();
        let resources = Resources::parse(
            &all(&section.modules)?,
            &all(&section.clusters)?,
            &all(&section.storage_accounts)?,
        )
        .map_err(EvalError::Files)?;
        let policies = Policies::compile(&files);
        Ok(Self { files, policies, resources, infrastructure, taxonomy })
    }

    /// The answer about an input, as `fedgate policy eval --json` gives it.
    pub fn answer(&self, input: &Value, now_ns: i64) -> Value {
        let question = Question { input, now_ns, asset: Interface::new("postgres", ""), actions: &[] };
        match self.ask(&question) {
            Ok(asked) => asked.to_json(),
            Err(error) => error.to_json(),
        }
    }

    pub fn landscape(&self) -> Landscape<'_> {
        Landscape { resources: &self.resources, infrastructure: &self.infrastructure }
    }

    /// The answer about one input; `plan` is None where there are no modules to choose from.
    fn ask(&self, question: &Question<'_>) -> Result<Asked, adminconfig::Error> {
        let policies = self.policies.as_ref().map_err(Clone::clone)?;
        let outcome = policies.decide(question.input, question.now_ns, &Limits::default())?;
        let plan = (!self.resources.modules.is_empty()).then(|| {
            let request =
                Request::of_input(question.input, question.asset.clone(), question.actions.to_vec());
            adminconfig::plan(&request, &outcome, self.landscape())
        });
        Ok(Asked { outcome, plan })
    }
}

struct Question<'q> {
    input: &'q Value,
    now_ns: i64,
    asset: Interface,
    actions: &'q [String],
}

struct Asked {
    outcome: Outcome,
    plan: Option<Result<Plan, NoPlan>>,
}

impl Asked {
    fn to_json(&self) -> Value {
        let (plan, why) = match &self.plan {
            None => (Value::Null, Value::Null),
            Some(Ok(plan)) => (plan.to_json(), Value::Null),
            Some(Err(why)) => (Value::Null, why.to_json()),
        };
        let left_out: Vec<&str> = self.outcome.left_out.iter().map(|policy| policy.id.as_str()).collect();
        json!({"decisions": self.outcome.to_json(), "plan": plan, "why": why, "left_out": left_out})
    }

    fn text(&self) -> String {
        let mut page = String::new();
        // Writing to a String cannot fail.
        for (capability, decision) in &self.outcome.decisions {
            let _ = writeln!(page, "{capability}: deploy {}", decision.deploy.as_str());
            for policy in &decision.policies {
                let description = if policy.description.is_empty() {
                    String::new()
                } else {
                    format!(": {}", policy.description)
                };
                let _ = writeln!(page, "  {} ({}){description}", policy.id, policy.at);
            }
            for (what, restrictions) in [
                ("modules", &decision.modules),
                ("clusters", &decision.clusters),
                ("storage accounts", &decision.storage_accounts),
            ] {
                for restriction in restrictions {
                    let _ = writeln!(page, "  {what}: {restriction} ({})", restriction.policy.id);
                }
            }
        }
        if self.outcome.decisions.is_empty() {
            page.push_str("no policy decides anything\n");
        }
        for policy in &self.outcome.left_out {
            let _ = writeln!(page, "left out: {} is of the policy set {}", policy.id, policy.set);
        }
        match &self.plan {
            None => {}
            Some(Ok(plan)) => {
                for (index, step) in plan.steps.iter().enumerate() {
                    let _ = write!(
                        page,
                        "step {}: {} by {} in {}, from {} to {}",
                        index + 1,
                        step.capability,
                        step.module,
                        step.cluster,
                        step.source,
                        step.sink
                    );
                    if let Some(account) = &step.account {
                        let _ = write!(page, ", stored in {account}");
                    }
                    if !step.actions.is_empty() {
                        let _ = write!(page, ", doing {}", step.actions.join(", "));
                    }
                    page.push('\n');
                }
            }
            Some(Err(why)) => {
                let _ = writeln!(page, "no plan: {why}");
                for out in &why.ruled_out {
                    let _ = writeln!(page, "  {out}");
                }
            }
        }
        page
    }
}

fn rego_files(folder: &Path, files: &mut Vec<SourceFile>) -> Result<(), EvalError> {
    let failed = |error| EvalError::Read { path: folder.to_owned(), error };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // A mounted ConfigMap keeps its versions in folders whose names begin with two dots.
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.extension().is_some_and(|extension| extension == "rego") {
            paths.push(path);
        }
        if paths.len() > FOLDER_LIMIT {
            return Err(failed(std::io::Error::other(format!("holds more than {FOLDER_LIMIT} files"))));
        }
    }
    paths.sort();
    for path in paths {
        files.push(source_file(&path)?);
    }
    Ok(())
}

fn source_file(path: &Path) -> Result<SourceFile, EvalError> {
    let failed = |error| EvalError::Read { path: path.to_owned(), error };
    // Before it is opened: to open a pipe waits for who writes to it.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(std::io::Error::other("is no regular file")));
    }
    let file = File::open(path).map_err(failed)?;
    let mut text = String::new();
    let read = file.take(FILE_LIMIT + 1).read_to_string(&mut text).map_err(failed)?;
    if read as u64 > FILE_LIMIT {
        return Err(failed(std::io::Error::other(format!("is longer than {FILE_LIMIT} bytes"))));
    }
    Ok(SourceFile { name: Arc::from(path.display().to_string()), text })
}

fn document<T: serde::de::DeserializeOwned>(path: &Path, text: &str) -> Result<T, EvalError> {
    let failed = |message: String| EvalError::Document { path: path.to_owned(), message };
    if let Some(line) = adminconfig::too_deep(text) {
        return Err(failed(format!("nests too deep at line {line}")));
    }
    serde_yaml_ng::from_str(text).map_err(|error| failed(error.to_string()))
}

/// No answer came; whatever works on it is left behind.
struct Endless;

/// Every step of an evaluation is looked at, and one that does not end cannot be.
fn in_time<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> Result<T, Endless> {
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || drop(tell.send(ask())));
    told.recv_timeout(GIVE_UP).map_err(|_| Endless)
}

/// Nanoseconds since 1970; or what is wrong with the text.
fn time(now: Option<&str>) -> Result<i64, String> {
    let now = match now {
        None => SystemTime::now(),
        Some(text) => humantime::parse_rfc3339(text).map_err(|error| error.to_string())?,
    };
    let since = now.duration_since(UNIX_EPOCH).map_err(|_| "is before 1970".to_owned())?;
    i64::try_from(since.as_nanos()).map_err(|_| "is after 2262".to_owned())
}

fn interface(text: &str) -> Interface {
    let (protocol, format) = text.split_once(':').unwrap_or((text, ""));
    Interface::new(protocol, format)
}

/// Asks once. True: there are decisions, and a plan where one was asked for.
///
/// # Errors
/// The question could not be answered.
pub fn eval(arguments: &EvalArgs, out: &mut impl Write) -> Result<bool, EvalError> {
    let material = Material::read(&arguments.place.section()?)?;
    let now_ns = time(arguments.now.as_deref()).map_err(EvalError::Now)?;
    let file = source_file(&arguments.input)?;
    let input: Value = document(&arguments.input, &file.text)?;
    if !input.is_object() {
        let message = "an input document is an object".to_owned();
        return Err(EvalError::Document { path: arguments.input.clone(), message });
    }
    let (asset, actions) = (interface(&arguments.asset), arguments.actions.clone());
    let answer = in_time(move || material.ask(&Question { input: &input, now_ns, asset, actions: &actions }))
        .map_err(|Endless| EvalError::Endless { path: arguments.input.clone() })?;
    if arguments.json {
        let answer = match &answer {
            Ok(asked) => asked.to_json(),
            Err(error) => error.to_json(),
        };
        writeln!(out, "{answer}")?;
    } else {
        match &answer {
            Ok(asked) => write!(out, "{}", asked.text())?,
            Err(error) => writeln!(out, "{}: {error}", error.kind())?,
        }
    }
    Ok(matches!(answer, Ok(asked) if !matches!(asked.plan, Some(Err(_)))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    note: String,
    input: Value,
    now: Option<String>,
    asset: Option<String>,
    #[serde(default)]
    actions: Vec<String>,
    /// A part of what `eval --json` answers; null: that is not in it.
    want: Value,
}

/// Runs cases. True: all of them passed.
///
/// # Errors
/// They could not be run.
pub fn test(arguments: &TestArgs, out: &mut impl Write) -> Result<bool, EvalError> {
    let material = Arc::new(Material::read(&arguments.place.section()?)?);
    let (mut passed, mut failed) = (0usize, 0usize);
    for path in &arguments.files {
        let file = source_file(path)?;
        let cases: Vec<Case> = document(path, &file.text)?;
        // Whoever runs cases wants to know that there are some.
        if cases.is_empty() {
            let message = "there are no cases in it".to_owned();
            return Err(EvalError::Document { path: path.clone(), message });
        }
        for Case { note, input, now, asset, actions, want } in cases {
            let now_ns = time(now.as_deref()).map_err(|message| EvalError::Document {
                path: path.clone(),
                message: format!("{note}: now: {message}"),
            })?;
            let asset = interface(asset.as_deref().unwrap_or("postgres"));
            let material = Arc::clone(&material);
            let answer = in_time(move || {
                match material.ask(&Question { input: &input, now_ns, asset, actions: &actions }) {
                    Ok(asked) => asked.to_json(),
                    Err(error) => error.to_json(),
                }
            })
            .map_err(|Endless| EvalError::Endless { path: path.clone() })?;
            match difference(&want, &answer, "") {
                None => passed += 1,
                Some(difference) => {
                    failed += 1;
                    writeln!(out, "{}: {}: {difference}", path.display(), note)?;
                }
            }
        }
    }
    writeln!(out, "passed: {passed}, failed: {failed}")?;
    Ok(failed == 0)
}

/// The first place where what is wanted is not in what there is.
fn difference(want: &Value, got: &Value, at: &str) -> Option<String> {
    match (want, got) {
        (Value::Object(want), Value::Object(got)) => want.iter().find_map(|(key, want)| {
            difference(want, got.get(key).unwrap_or(&Value::Null), &format!("{at}/{key}"))
        }),
        (Value::Array(want), Value::Array(got)) if want.len() == got.len() => want
            .iter()
            .zip(got)
            .enumerate()
            .find_map(|(index, (want, got))| difference(want, got, &format!("{at}/{index}"))),
        (Value::Number(want), Value::Number(got)) if want.as_f64() == got.as_f64() => None,
        (want, got) if want == got => None,
        (want, got) => Some(format!("{at} is {got}, wanted {want}")),
    }
}

/// Workloads as a lint asks about them.
fn facts(workloads: &[Workload]) -> Vec<WorkloadFacts> {
    workloads
        .iter()
        .map(|workload| WorkloadFacts {
            name: format!("workload of {}", workload.users.first().map_or("nobody", |user| user.as_str())),
            set: workload.policy_set_id.clone(),
            properties: workload.properties.clone(),
            cluster: workload.cluster.clone(),
        })
        .collect()
}

/// What `fedgate check` says about the `[policy]` section; nothing without one.
pub fn findings(config: &Config) -> Vec<Finding> {
    let Some(section) = &config.policy else { return Vec::new() };
    let finding =
        |severity, message: String| Finding { severity, source: None, key: "policy".to_owned(), message };
    let material = match Material::read(section) {
        Ok(material) => material,
        Err(error) => {
            return error
                .to_string()
                .lines()
                .map(|line| finding(Severity::Problem, line.to_owned()))
                .collect();
        }
    };
    let policies = match &material.policies {
        Ok(policies) => policies,
        Err(error) => {
            return error
                .to_string()
                .lines()
                .map(|line| finding(Severity::Problem, line.to_owned()))
                .collect();
        }
    };
    let remarks = adminconfig::lint(
        &material.files,
        policies,
        &facts(&config.workloads),
        material.landscape(),
        material.taxonomy.as_ref(),
        time(None).unwrap_or_default(),
        &Limits::default(),
    );
    remarks
        .into_iter()
        .map(|remark| {
            let at = remark.at.map(|at| format!("{at}: ")).unwrap_or_default();
            finding(Severity::Warning, format!("{at}{}", remark.message))
        })
        .collect()
}

/// The line about policies among the gateway's facts.
pub fn fact(config: &Config) -> Option<String> {
    let section = config.policy.as_ref()?;
    let folders: Vec<String> = section.folders.iter().map(|folder| folder.display().to_string()).collect();
    Some(format!("configuration policies: {}, {} workloads", folders.join(", then "), config.workloads.len()))
}
