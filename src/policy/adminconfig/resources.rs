//! Modules, clusters and storage accounts as their descriptions say them: FybrikModule, FybrikStorageAccount and cluster
//! metadata, in YAML.
//!
//! Invariant: a name stands for one resource; each knows its file and line.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::decision::{Capability, shown};
use super::engine::SourceFile;
use super::yaml::{Document, documents};
use super::{Origin, Problem, told};

/// How data is reached: a protocol, and a format where one is said.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Interface {
    pub protocol: String,
    /// Empty: any.
    pub dataformat: String,
}

impl Interface {
    pub fn new(protocol: &str, dataformat: &str) -> Self {
        Self { protocol: protocol.to_owned(), dataformat: dataformat.to_owned() }
    }

    /// Whether data that is offered this way can be taken that way.
    pub fn fits(&self, other: &Interface) -> bool {
        self.protocol == other.protocol
            && (self.dataformat.is_empty()
                || other.dataformat.is_empty()
                || self.dataformat == other.dataformat)
    }
}

impl std::fmt::Display for Interface {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.protocol)?;
        if !self.dataformat.is_empty() {
            write!(f, " ({})", self.dataformat)?;
        }
        Ok(())
    }
}

/// One entry of a module's `capabilities`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleCapability {
    pub capability: Capability,
    /// `workload`, `asset` or `cluster`; empty when it is not said.
    pub scope: String,
    /// How a workload reaches what it offers.
    pub api: Option<Interface>,
    /// From where to where; either side may be open.
    pub interfaces: Vec<(Option<Interface>, Option<Interface>)>,
    /// What it can do to data on its way, such as masking.
    pub actions: Vec<String>,
    /// The entry as it stands, for dotted paths.
    pub description: Value,
}

/// A module.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    pub name: String,
    pub capabilities: Vec<ModuleCapability>,
    /// Its `spec`, for dotted paths.
    pub spec: Value,
    /// The whole of it.
    pub description: Value,
    pub at: Origin,
}

/// A cluster: `name`, `metadata.region`, `metadata.zone` and what else is said.
#[derive(Clone, Debug, PartialEq)]
pub struct Cluster {
    pub name: String,
    pub region: String,
    pub description: Value,
    pub at: Origin,
}

/// A storage account.
#[derive(Clone, Debug, PartialEq)]
pub struct Account {
    pub name: String,
    /// The protocol by which it is reached.
    pub protocol: String,
    pub region: String,
    /// Its `spec`, for dotted paths.
    pub spec: Value,
    /// The whole of it.
    pub description: Value,
    pub at: Origin,
}

/// Everything that may be chosen from, each list by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    pub modules: Vec<Module>,
    pub clusters: Vec<Cluster>,
    pub accounts: Vec<Account>,
}

impl Resources {
    /// Reads the files of each kind; a file may hold several documents, or a list of kind `List`.
    ///
    /// # Errors
    /// Everything that is wrong, with file and line.
    pub fn parse(
        modules: &[SourceFile],
        clusters: &[SourceFile],
        accounts: &[SourceFile],
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let modules = each(modules, &mut problems, module);
        let clusters = each(clusters, &mut problems, cluster);
        let accounts = each(accounts, &mut problems, account);
        let resources = Self {
            modules: unique(modules, "modules", |module| (&module.name, &module.at), &mut problems),
            clusters: unique(clusters, "clusters", |cluster| (&cluster.name, &cluster.at), &mut problems),
            accounts: unique(
                accounts,
                "storage accounts",
                |account| (&account.name, &account.at),
                &mut problems,
            ),
        };
        if problems.is_empty() { Ok(resources) } else { Err(told(problems)) }
    }
}

type Read<T> = fn(&Document<'_>, &Value) -> Result<T, Problem>;

fn each<T>(files: &[SourceFile], problems: &mut Vec<Problem>, read: Read<T>) -> Vec<T> {
    let mut found = Vec::new();
    for file in files {
        for document in documents(file, problems) {
            let items: Vec<&Value> = match document.value.get("items").and_then(Value::as_array) {
                Some(items) => items.iter().collect(),
                None => match &document.value {
                    Value::Array(items) => items.iter().collect(),
                    value => vec![value],
                },
            };
            for item in items {
                match read(&document, item) {
                    Ok(resource) => found.push(resource),
                    Err(problem) => problems.push(problem),
                }
            }
        }
    }
    found
}

fn unique<T>(
    list: Vec<T>,
    what: &str,
    key: fn(&T) -> (&String, &Origin),
    problems: &mut Vec<Problem>,
) -> Vec<T> {
    let mut by_name: BTreeMap<String, T> = BTreeMap::new();
    for resource in list {
        let (name, at) = key(&resource);
        if let Some(before) = by_name.get(name) {
            let message =
                format!("two {what} are named {}; the other one is at {}", shown(name), key(before).1);
            problems.push(Problem { at: at.clone(), message });
        } else {
            by_name.insert(name.clone(), resource);
        }
    }
    by_name.into_values().collect()
}

/// A text at a path, absent or of another kind: None.
fn text_at<'v>(value: &'v Value, path: &[&str]) -> Option<&'v str> {
    path.iter().try_fold(value, |value, key| value.get(key))?.as_str()
}

fn name_of(document: &Document<'_>, value: &Value, kind: &str) -> Result<String, Problem> {
    let name = text_at(value, &["metadata", "name"]).unwrap_or_default();
    if name.is_empty() {
        return Err(document.problem("kind", kind, format!("a {kind} has no metadata.name")));
    }
    if let Some(said) = text_at(value, &["kind"])
        && said != kind
    {
        return Err(document.problem("kind", said, format!("{} is a {said}, not a {kind}", shown(name))));
    }
    Ok(name.to_owned())
}

fn module(document: &Document<'_>, value: &Value) -> Result<Module, Problem> {
    let name = name_of(document, value, "FybrikModule")?;
    let wrong = |message: String| document.problem("name", &name, format!("module {name}: {message}"));
    let spec =
        value.get("spec").filter(|spec| spec.is_object()).ok_or_else(|| wrong("has no spec".into()))?;
    let entries = match spec.get("capabilities") {
        Some(Value::Array(entries)) => entries.as_slice(),
        _ => return Err(wrong("spec.capabilities must be a list".into())),
    };
    let mut capabilities = Vec::with_capacity(entries.len());
    for entry in entries {
        let said = text_at(entry, &["capability"])
            .ok_or_else(|| wrong("an entry of spec.capabilities has no capability".into()))?;
        let capability = Capability::of(said)
            .ok_or_else(|| wrong(format!("capability {} is not one that there is", shown(said))))?;
        let mut interfaces = Vec::new();
        for pair in list(entry, "supportedInterfaces").map_err(&wrong)? {
            let side = |key: &str| pair.get(key).map(interface).transpose();
            interfaces.push((side("source").map_err(&wrong)?, side("sink").map_err(&wrong)?));
        }
        let mut actions = Vec::new();
        for action in list(entry, "actions").map_err(&wrong)? {
            let action = action.as_str().or_else(|| text_at(action, &["name"]));
            actions.push(action.ok_or_else(|| wrong("an action has no name".into()))?.to_owned());
        }
        capabilities.push(ModuleCapability {
            capability,
            scope: text_at(entry, &["scope"]).unwrap_or_default().to_owned(),
            api: entry.get("api").map(interface).transpose().map_err(&wrong)?,
            interfaces,
            actions,
            description: entry.clone(),
        });
    }
    Ok(Module {
        capabilities,
        spec: spec.clone(),
        description: value.clone(),
        at: document.at("name", &name),
        name,
    })
}

fn list<'v>(value: &'v Value, key: &str) -> Result<&'v [Value], String> {
    match value.get(key) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(items)) => Ok(items),
        Some(_) => Err(format!("{key} must be a list")),
    }
}

/// `{protocol, dataformat?}`, or `{connection: {name}, dataFormat?}` as later releases say it.
fn interface(value: &Value) -> Result<Interface, String> {
    let protocol =
        text_at(value, &["protocol"]).or_else(|| text_at(value, &["connection", "name"])).unwrap_or_default();
    if protocol.is_empty() {
        return Err("an interface has no protocol".to_owned());
    }
    let format = text_at(value, &["dataformat"]).or_else(|| text_at(value, &["dataFormat"]));
    Ok(Interface::new(protocol, format.unwrap_or_default()))
}

fn cluster(document: &Document<'_>, value: &Value) -> Result<Cluster, Problem> {
    // As a policy sees it, or as the ConfigMap `cluster-metadata` says it.
    let from_map = value.get("data").filter(|data| data.is_object());
    let (name, region, description) = match from_map {
        Some(data) => {
            let name = text_at(data, &["ClusterName"]).unwrap_or_default();
            let region = text_at(data, &["Region"]).unwrap_or_default();
            let zone = text_at(data, &["Zone"]).unwrap_or_default();
            let mut metadata = json!({"region": region});
            if !zone.is_empty()
                && let Some(metadata) = metadata.as_object_mut()
            {
                metadata.insert("zone".to_owned(), json!(zone));
            }
            (name, region, json!({"name": name, "metadata": metadata}))
        }
        None => {
            let name = text_at(value, &["name"]).unwrap_or_default();
            (name, text_at(value, &["metadata", "region"]).unwrap_or_default(), value.clone())
        }
    };
    let key = if from_map.is_some() { "ClusterName" } else { "name" };
    if name.is_empty() {
        return Err(document.problem(key, "", format!("a cluster has no {key}")));
    }
    Ok(Cluster { at: document.at(key, name), name: name.to_owned(), region: region.to_owned(), description })
}

fn account(document: &Document<'_>, value: &Value) -> Result<Account, Problem> {
    let name = name_of(document, value, "FybrikStorageAccount")?;
    let spec = value
        .get("spec")
        .filter(|spec| spec.is_object())
        .ok_or_else(|| document.problem("name", &name, format!("storage account {name}: has no spec")))?;
    // The first releases knew S3 alone and did not say so.
    let protocol = text_at(spec, &["type"]).unwrap_or("s3").to_owned();
    let region = ["geography", "region"].iter().find_map(|key| text_at(spec, &[key])).unwrap_or_default();
    Ok(Account {
        protocol,
        region: region.to_owned(),
        spec: spec.clone(),
        description: value.clone(),
        at: document.at("name", &name),
        name,
    })
}
