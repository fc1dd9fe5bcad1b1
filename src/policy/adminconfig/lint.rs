//! What is worth knowing about policies that compile: names that nothing has, and sets that nobody is of.
//!
//! Invariant: a remark is no error; what is remarked on is in force all the same.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::infrastructure::{InfrastructureObject as Object, Taxonomy};
use super::plan::{Landscape, has_property};
use super::{Limits, Origin, Outcome, Policies, SourceFile};

/// Where a workload's own properties stand in the input.
const PROPERTIES: &str = "input.workload.properties.";
const SET: &str = "\"policySetID\"";
const USAGES: [&str; 4] = ["read", "write", "copy", "delete"];

/// A workload as it is configured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkloadFacts {
    /// As messages shall name it.
    pub name: String,
    pub set: String,
    pub properties: BTreeMap<String, Value>,
    pub cluster: String,
}

impl WorkloadFacts {
    /// An input document for it: a dataset of no tags in the workload's own region.
    pub fn input(&self, usage: &str, region: &str) -> Value {
        let properties: Map<String, Value> =
            self.properties.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        json!({
            "workload": {
                "uuid": self.name, "policySetID": self.set,
                "cluster": {"name": self.cluster, "metadata": {"region": region}},
                "properties": properties,
            },
            "request": {
                "datasetID": "example", "usage": usage,
                "dataset": {"name": "example", "geography": region, "tags": {}, "columns": []},
            },
        })
    }
}

/// Something to look at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Remark {
    /// None: of the set as a whole.
    pub at: Option<Origin>,
    pub message: String,
}

/// Looks at policies beside what they speak of. Each workload is asked about once for each usage.
pub fn lint(
    files: &[SourceFile],
    policies: &Policies,
    workloads: &[WorkloadFacts],
    landscape: Landscape<'_>,
    taxonomy: Option<&Taxonomy>,
    now_ns: i64,
    limits: &Limits,
) -> Vec<Remark> {
    let mut remarks = BTreeSet::new();
    for file in files {
        texts(file, workloads, taxonomy, &mut remarks);
    }
    for workload in workloads {
        for (property, value) in &workload.properties {
            let Some(taxonomy) = taxonomy else { continue };
            match taxonomy.properties.get(property) {
                None => {
                    let message =
                        format!("{}: the property {property} is not in the taxonomy", workload.name);
                    remarks.insert(Remark { at: None, message });
                }
                Some(kind) if !kind.allows(value) => {
                    let message = format!(
                        "{}: the property {property} has a value that the taxonomy does not know",
                        workload.name
                    );
                    remarks.insert(Remark { at: None, message });
                }
                Some(_) => {}
            }
        }
        let cluster = landscape.resources.clusters.iter().find(|cluster| cluster.name == workload.cluster);
        if cluster.is_none() && !landscape.resources.clusters.is_empty() {
            let message = format!("{}: there is no cluster {}", workload.name, workload.cluster);
            remarks.insert(Remark { at: None, message });
        }
        let region = cluster.map_or("", |cluster| cluster.region.as_str());
        for usage in USAGES {
            match policies.decide(&workload.input(usage, region), now_ns, limits) {
                Ok(outcome) => answers(&outcome, landscape, taxonomy, &mut remarks),
                Err(error) => {
                    let message = format!("{}, usage {usage}: {error}", workload.name);
                    remarks.insert(Remark { at: None, message });
                }
            }
        }
    }
    remarks.into_iter().collect()
}

/// What a text names by itself.
fn texts(
    file: &SourceFile,
    workloads: &[WorkloadFacts],
    taxonomy: Option<&Taxonomy>,
    remarks: &mut BTreeSet<Remark>,
) {
    for (index, line) in file.text.lines().enumerate() {
        let code = line.split_once('#').map_or(line, |(code, _)| code);
        let at =
            || Some(Origin { file: file.name.clone(), line: u32::try_from(index + 1).unwrap_or(u32::MAX) });
        for rest in code.split(PROPERTIES).skip(1) {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            let name = rest.get(..end).unwrap_or(rest);
            let known = match taxonomy {
                Some(taxonomy) => taxonomy.properties.contains_key(name),
                None => {
                    workloads.is_empty()
                        || workloads.iter().any(|workload| workload.properties.contains_key(name))
                }
            };
            if !known {
                let whose = if taxonomy.is_some() { "the taxonomy has" } else { "any workload has" };
                let message = format!("asks for the property {name}, which is none that {whose}");
                remarks.insert(Remark { at: at(), message });
            }
        }
        for rest in code.split(SET).skip(1) {
            let Some(set) = rest
                .trim_start()
                .strip_prefix(':')
                .and_then(|rest| rest.trim_start().strip_prefix('"'))
                .and_then(|rest| rest.split('"').next())
            else {
                continue;
            };
            let reachable = set.is_empty()
                || workloads.is_empty()
                || workloads.iter().any(|workload| workload.set.is_empty() || workload.set == set);
            if !reachable {
                let message = format!("belongs to the policy set \"{set}\", which no workload is of");
                remarks.insert(Remark { at: at(), message });
            }
        }
    }
}

/// What decisions and strategies name.
fn answers(
    outcome: &Outcome,
    landscape: Landscape<'_>,
    taxonomy: Option<&Taxonomy>,
    remarks: &mut BTreeSet<Remark>,
) {
    for decision in outcome.decisions.values() {
        for (object, what, restrictions) in [
            (Object::Module, "module", &decision.modules),
            (Object::Cluster, "cluster", &decision.clusters),
            (Object::StorageAccount, "storage account", &decision.storage_accounts),
        ] {
            for restriction in restrictions {
                if has_property(landscape, object, &restriction.property) == Some(false) {
                    let message = format!(
                        "policy {} restricts {}, which no {what} has",
                        restriction.policy.id, restriction.property
                    );
                    remarks.insert(Remark { at: Some(restriction.policy.at.clone()), message });
                }
            }
        }
    }
    for strategy in &outcome.strategies {
        for goal in &strategy.goals {
            let id = &strategy.policy.id;
            let unknown = taxonomy.is_some_and(|taxonomy| !taxonomy.attributes.contains_key(&goal.attribute));
            let message = if unknown {
                format!("policy {id} optimises {}, which is not in the taxonomy", goal.attribute)
            } else if !landscape.infrastructure.knows(&goal.attribute) {
                format!("policy {id} optimises {}, which no resource has", goal.attribute)
            } else {
                continue;
            };
            remarks.insert(Remark { at: Some(strategy.policy.at.clone()), message });
        }
    }
}
