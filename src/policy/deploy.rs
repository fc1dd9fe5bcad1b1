//! What the configuration policies deploy for each workload on each source, and where masks are made.
//!
//! Invariant: pure. A read is deployed when a policy says so and a way is found for it, and never for want of a policy;
//! who may have to see masks is told from the document, in doubt everybody.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::adminconfig::{
    Capability, Deploy, Error, Infrastructure, Interface, Landscape, Limits, Plan, Policies, Request,
    Resources, plan,
};
use crate::document::{Pattern, Policy, SubjectKind};

/// What is done to columns, and to rows, as modules call it (`actions` of their capabilities).
pub const MASK_ACTION: &str = "RedactAction";
pub const FILTER_ACTION: &str = "FilterAction";
/// Columns of a dataset that policies are shown; those with tags come first.
const COLUMNS: usize = 10_000;
/// Longest reason, in characters.
const REASON: usize = 500;

/// A source as policies see it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dataset {
    pub source: String,
    /// Where it is; empty: not known.
    pub geography: String,
    /// Tags of its columns, without their columns.
    pub tags: BTreeSet<String>,
    /// `schema.table.column` and its tags.
    pub columns: Vec<(String, Vec<String>)>,
    pub veil: Veil,
}

/// Who sees masks or row filters in a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Veil {
    /// Nobody: nothing is masked there.
    None,
    /// Everybody but these end users.
    AllBut { clear: BTreeSet<Box<str>>, masks: bool, filters: bool },
    /// Nobody knows yet.
    #[default]
    Unknown,
}

/// Who a client is for policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Workload {
    /// As messages shall name it.
    pub name: String,
    pub set: String,
    pub cluster: String,
    pub properties: Map<String, Value>,
    /// How it takes data; None: whatever there is.
    pub interface: Option<Interface>,
}

/// All that decides beside the workload and the dataset.
pub struct Rules<'r> {
    pub policies: &'r Policies,
    pub resources: &'r Resources,
    pub infrastructure: &'r Infrastructure,
    /// The modules that stand for the gateway and for the engine.
    pub gateway: &'r str,
    pub engine: &'r str,
    pub limits: Limits,
}

/// Where masks are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// There is nothing to mask.
    None,
    Gateway,
    Engine,
    /// No admissible place does it.
    Nowhere,
}

/// What is decided for one workload on one source.
#[derive(Clone, Debug, PartialEq)]
pub struct Deployment {
    /// Are reads deployed?
    pub read: bool,
    pub transform: Place,
    /// Why not, or by which policies, for people.
    pub reason: String,
    /// The policies that decided about reads, by ID.
    pub policies: Vec<String>,
    pub plan: Option<Plan>,
    /// The policies gave no answer, for this reason.
    pub fault: Option<Error>,
}

impl Place {
    pub fn as_str(self) -> &'static str {
        match self {
            Place::None => "none",
            Place::Gateway => "gateway",
            Place::Engine => "engine",
            Place::Nowhere => "nowhere",
        }
    }
}

/// The input document of the policies.
pub fn input(workload: &Workload, dataset: &Dataset, region: &str) -> Value {
    let mut columns: Vec<&(String, Vec<String>)> = dataset.columns.iter().collect();
    columns.sort_by_key(|(name, tags)| (tags.is_empty(), name.as_str()));
    columns.truncate(COLUMNS);
    let columns: Vec<Value> =
        columns.into_iter().map(|(name, tags)| json!({"name": name, "tags": tags_of(tags.iter())})).collect();
    let mut metadata =
        json!({"name": dataset.source, "tags": tags_of(dataset.tags.iter()), "columns": columns});
    if let (false, Some(metadata)) = (dataset.geography.is_empty(), metadata.as_object_mut()) {
        metadata.insert("geography".to_owned(), json!(dataset.geography));
    }
    let mut request = json!({"datasetID": dataset.source, "usage": "read", "dataset": metadata});
    if let (Some(interface), Some(request)) = (&workload.interface, request.as_object_mut()) {
        request.insert(
            "interface".to_owned(),
            json!({"protocol": interface.protocol, "dataformat": interface.dataformat}),
        );
    }
    json!({
        "workload": {
            "uuid": workload.name, "policySetID": workload.set,
            "cluster": {"name": workload.cluster, "metadata": {"region": region}},
            "properties": workload.properties,
        },
        "request": request,
    })
}

/// As the original has them: an object of what is true.
fn tags_of<'t>(tags: impl Iterator<Item = &'t String>) -> Value {
    Value::Object(tags.map(|tag| (tag.clone(), Value::Bool(true))).collect())
}

/// Nothing is decided, for want of an answer.
pub fn undecided(message: &str) -> Deployment {
    Deployment {
        read: false,
        transform: Place::None,
        reason: message.chars().take(REASON).collect(),
        policies: Vec::new(),
        plan: None,
        fault: Some(Error::Limit { at: None, message: message.to_owned() }),
    }
}

/// Decides.
pub fn deploy(rules: &Rules<'_>, workload: &Workload, dataset: &Dataset, now_ns: i64) -> Deployment {
    let region = rules
        .resources
        .clusters
        .iter()
        .find(|cluster| cluster.name == workload.cluster)
        .map_or("", |cluster| cluster.region.as_str());
    let input = input(workload, dataset, region);
    let refused = |reason: String, policies: Vec<String>| Deployment {
        read: false,
        transform: Place::None,
        reason: reason.chars().take(REASON).collect(),
        policies,
        plan: None,
        fault: None,
    };
    let outcome = match rules.policies.decide(&input, now_ns, &rules.limits) {
        Ok(outcome) => outcome,
        Err(error) => {
            let reason = format!("the configuration policies give no answer: {error}");
            return Deployment { fault: Some(error), ..refused(reason, Vec::new()) };
        }
    };
    let read = outcome.decision(Capability::Read);
    let named: Vec<String> = read.policies.iter().map(|policy| policy.id.clone()).collect();
    let by = read.decided_by.as_ref().map(|policy| match policy.description.is_empty() {
        true => format!("policy \"{}\"", policy.id),
        false => format!("policy \"{}\" ({})", policy.id, policy.description),
    });
    match (read.deploy, by) {
        (Deploy::False, by) => {
            let by = by.unwrap_or_else(|| "a policy".to_owned());
            return refused(format!("{by} does not deploy reads"), named);
        }
        (Deploy::Unknown, _) => {
            return refused("no policy that is in force deploys reads".to_owned(), named);
        }
        (Deploy::True, _) => {}
    }
    let landscape = Landscape { resources: rules.resources, infrastructure: rules.infrastructure };
    let way = |actions: &[&str]| {
        let actions = actions.iter().map(|action| (*action).to_owned()).collect();
        let request = Request::of_input(&input, Interface::new("postgres", ""), actions);
        plan(&request, &outcome, landscape)
    };
    let by = |named: &[String]| format!("deployed by {}", named.join(", "));
    let actions: Vec<&str> = match &dataset.veil {
        Veil::None => Vec::new(),
        Veil::AllBut { masks, filters, .. } => [(*masks, MASK_ACTION), (*filters, FILTER_ACTION)]
            .iter()
            .filter(|(there, _)| *there)
            .map(|(_, name)| *name)
            .collect(),
        Veil::Unknown => vec![MASK_ACTION, FILTER_ACTION],
    };
    let transformed = way(&actions);
    match transformed {
        Ok(found) => {
            let transform = place(&found, rules, actions.is_empty());
            Deployment {
                read: true,
                transform,
                reason: by(&named),
                policies: named,
                plan: Some(found),
                fault: None,
            }
        }
        Err(why) if actions.is_empty() => refused(why.to_string(), named),
        // Reads have a way and masks have none.
        Err(_) => match way(&[]) {
            Ok(found) => Deployment {
                read: true,
                transform: Place::Nowhere,
                reason: by(&named),
                policies: named,
                plan: Some(found),
                fault: None,
            },
            Err(why) => refused(why.to_string(), named),
        },
    }
}

/// Where a plan has columns masked. Several places: the one that cannot do it yet counts.
fn place(plan: &Plan, rules: &Rules<'_>, nothing: bool) -> Place {
    if nothing {
        return Place::None;
    }
    let mut place = Place::Nowhere;
    for step in plan.transforming() {
        place = match &step.module {
            module if module == rules.gateway => return Place::Gateway,
            module if module == rules.engine => Place::Engine,
            _ => return Place::Nowhere,
        };
    }
    place
}

/// Who sees masks in a catalog of the document.
pub fn veil(policy: &Policy, admins: &BTreeSet<String>, catalog: &str) -> Veil {
    let folded = catalog.to_lowercase();
    let here = |name: &str| name.to_lowercase() == folded;
    let hides = |mask: &str| policy.mask_library.get(mask).is_none_or(|mask| mask.strength > 0);
    let (mut masks, mut filters) = (false, false);
    for subject in policy.subjects.values() {
        masks |= subject.masks.iter().any(|entry| here(&entry.catalog) && hides(&entry.mask));
        filters |= subject.row_filters.iter().any(|filter| here(&filter.catalog));
    }
    if !masks && !filters {
        return Veil::None;
    }
    let all = |pattern: &Pattern| matches!(pattern, Pattern::Prefix(start) if start.is_empty());
    let clear = policy.subjects.iter().filter(|(name, subject)| {
        subject.kind == SubjectKind::User
            && admins.contains(&***name)
            && subject.scopes.iter().any(|scope| {
                (scope.catalog.matches(catalog) || scope.catalog.matches(&folded))
                    && all(&scope.schema)
                    && all(&scope.table)
            })
            && !subject.masks.iter().any(|entry| here(&entry.catalog) && hides(&entry.mask))
            && !subject.row_filters.iter().any(|filter| here(&filter.catalog))
    });
    Veil::AllBut { clear: clear.map(|(name, _)| (**name).into()).collect(), masks, filters }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::document::Document;

    fn document(subjects: Value) -> Document {
        let json = json!({
            "version": 1,
            "mask_library": {"sha256": {"strength": 60}, "identity": {"strength": 0}},
            "subjects": subjects,
        });
        Document::parse(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn who_sees_masks_is_told_in_doubt_everybody() {
        let scope = |schema: &str| json!([{"catalog": "c", "schema": schema, "table": "*"}]);
        let masked =
            |mask: &str| json!([{"catalog": "C", "schema": "s", "table": "t", "column": "x", "mask": mask}]);
        let admins: BTreeSet<String> = ["root", "half", "role", "own"].map(str::to_owned).into();
        let of = |subjects: Value| veil(document(subjects).policy(), &admins, "c");
        assert_eq!(of(json!({})), Veil::None);
        assert_eq!(
            of(json!({"a": {"kind": "user", "scopes": scope("*"), "masks": masked("identity")}})),
            Veil::None
        );
        let all = of(json!({
            "a": {"kind": "role", "scopes": scope("*"), "masks": masked("sha256")},
            "root": {"kind": "user", "scopes": scope("*")},
            "half": {"kind": "user", "scopes": scope("s")},
            "role": {"kind": "role", "scopes": scope("*")},
            "own": {"kind": "user", "scopes": scope("*"), "masks": masked("sha256")},
            "nobody": {"kind": "user", "scopes": scope("*")},
        }));
        assert_eq!(all, Veil::AllBut { clear: ["root".into()].into(), masks: true, filters: false });
        let filter = json!([{"catalog": "c", "schema": "s", "table": "t", "expression": {"trino": "true"}}]);
        let rows = of(json!({"a": {"kind": "user", "scopes": scope("*"), "row_filters": filter}}));
        assert_eq!(rows, Veil::AllBut { clear: BTreeSet::new(), masks: false, filters: true });
    }
}
