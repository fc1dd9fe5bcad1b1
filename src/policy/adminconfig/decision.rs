//! What policies decide, merged for each capability.
//!
//! Invariant: every decision counts or is an error; a policy of another set is the only one that is left out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::engine::{Limits, Policies, Raw, RawEntry};
use super::restriction::Restriction;
use super::strategy::Strategy;
use super::{Error, Origin};

/// What a module can be deployed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    Read,
    Write,
    Copy,
    Transform,
    Delete,
}

impl Capability {
    pub const ALL: [Capability; 5] =
        [Capability::Read, Capability::Write, Capability::Copy, Capability::Transform, Capability::Delete];

    pub fn as_str(self) -> &'static str {
        match self {
            Capability::Read => "read",
            Capability::Write => "write",
            Capability::Copy => "copy",
            Capability::Transform => "transform",
            Capability::Delete => "delete",
        }
    }

    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|capability| capability.as_str() == name)
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Whether a capability is to be deployed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Deploy {
    True,
    False,
    /// No policy says; deployed where the data's way needs it.
    #[default]
    Unknown,
}

impl Deploy {
    pub fn as_str(self) -> &'static str {
        match self {
            Deploy::True => "True",
            Deploy::False => "False",
            Deploy::Unknown => "Unknown",
        }
    }
}

/// The `policy` of a decision, and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyInfo {
    pub id: String,
    /// Empty: of every set.
    pub set: String,
    pub description: String,
    pub version: String,
    pub at: Origin,
}

/// Everything that was decided about one capability.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    pub deploy: Deploy,
    /// In the order of the files.
    pub policies: Vec<Arc<PolicyInfo>>,
    /// The first policy that says what `deploy` is; None for Unknown.
    pub decided_by: Option<Arc<PolicyInfo>>,
    pub modules: Vec<Restriction>,
    pub clusters: Vec<Restriction>,
    pub storage_accounts: Vec<Restriction>,
}

/// What is in force for one input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Capabilities that no policy speaks of are absent; all policies expired: empty.
    pub decisions: BTreeMap<Capability, Decision>,
    pub strategies: Vec<Strategy>,
    /// Policies of another set, which do not count.
    pub left_out: Vec<Arc<PolicyInfo>>,
}

impl Policies {
    /// Asks the policies and merges what they decide; the set is `input.workload.policySetID`.
    ///
    /// # Errors
    /// Any [`Error`] but [`Error::Compile`].
    pub fn decide(&self, input: &Value, now_ns: i64, limits: &Limits) -> Result<Outcome, Error> {
        let set = input.pointer("/workload/policySetID").and_then(Value::as_str).unwrap_or_default();
        Outcome::merge(&self.evaluate(input, now_ns, limits)?, set)
    }
}

impl Outcome {
    /// Merges answers for a workload of the set `set`; empty: of no set, for which all policies count.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Conflict`].
    pub fn merge(raw: &Raw, set: &str) -> Result<Self, Error> {
        let mut outcome = Outcome::default();
        for entry in &raw.config {
            let reader = Reader { entry, rule: "config" };
            let (capability, part) = reader.decision()?;
            let policy = &part.policy;
            if belongs_elsewhere(policy, set) {
                outcome.left_out.push(policy.clone());
                continue;
            }
            let decision = outcome.decisions.entry(capability).or_default();
            match (decision.deploy, part.deploy) {
                (_, Deploy::Unknown) => {}
                (Deploy::Unknown, said) => {
                    decision.deploy = said;
                    decision.decided_by = Some(policy.clone());
                }
                (Deploy::True, Deploy::True) | (Deploy::False, Deploy::False) => {}
                (before, _) => {
                    let other = decision.decided_by.clone().unwrap_or_else(|| policy.clone());
                    let (deploys, refuses) = if before == Deploy::True {
                        (other, policy.clone())
                    } else {
                        (policy.clone(), other)
                    };
                    return Err(Error::Conflict { capability, deploys, refuses });
                }
            }
            decision.policies.push(policy.clone());
            decision.modules.extend(part.modules);
            decision.clusters.extend(part.clusters);
            decision.storage_accounts.extend(part.storage_accounts);
        }
        for entry in &raw.optimize {
            let strategy = Reader { entry, rule: "optimize" }.strategy()?;
            if belongs_elsewhere(&strategy.policy, set) {
                outcome.left_out.push(strategy.policy.clone());
            } else {
                outcome.strategies.push(strategy);
            }
        }
        Ok(outcome)
    }

    /// The decision about a capability; of none, the one that says nothing.
    pub fn decision(&self, capability: Capability) -> Decision {
        self.decisions.get(&capability).cloned().unwrap_or_default()
    }

    /// The `decisions` of `fedgate policy eval --json`.
    pub fn to_json(&self) -> Value {
        let decisions: Map<String, Value> = self
            .decisions
            .iter()
            .map(|(capability, decision)| {
                let list = |restrictions: &[Restriction]| {
                    Value::Array(restrictions.iter().map(Restriction::to_json).collect())
                };
                let value = serde_json::json!({
                    "deploy": decision.deploy.as_str(),
                    "policies": decision.policies.iter().map(|policy| policy.id.as_str()).collect::<Vec<_>>(),
                    "restrictions": {
                        "modules": list(&decision.modules),
                        "clusters": list(&decision.clusters),
                        "storageaccounts": list(&decision.storage_accounts),
                    },
                });
                (capability.as_str().to_owned(), value)
            })
            .collect();
        Value::Object(decisions)
    }
}

fn belongs_elsewhere(policy: &PolicyInfo, set: &str) -> bool {
    !policy.set.is_empty() && !set.is_empty() && policy.set != set
}

/// One decision, before it is merged.
struct Part {
    policy: Arc<PolicyInfo>,
    deploy: Deploy,
    modules: Vec<Restriction>,
    clusters: Vec<Restriction>,
    storage_accounts: Vec<Restriction>,
}

/// Reads an answer strictly: what is missing, unknown or of another kind is an error with the rule's place.
pub(super) struct Reader<'e> {
    pub entry: &'e RawEntry,
    pub rule: &'static str,
}

impl Reader<'_> {
    pub fn wrong(&self, message: impl Into<String>) -> Error {
        Error::Shape { at: self.entry.at.clone(), rule: self.rule, message: message.into() }
    }

    pub fn object<'v>(&self, value: &'v Value, what: &str) -> Result<&'v Map<String, Value>, Error> {
        value.as_object().ok_or_else(|| self.wrong(format!("{what} must be an object, not {}", kind(value))))
    }

    pub fn list<'v>(&self, value: &'v Value, what: &str) -> Result<&'v [Value], Error> {
        value
            .as_array()
            .map(Vec::as_slice)
            .ok_or_else(|| self.wrong(format!("{what} must be a list, not {}", kind(value))))
    }

    pub fn text<'v>(&self, value: &'v Value, what: &str) -> Result<&'v str, Error> {
        value.as_str().ok_or_else(|| self.wrong(format!("{what} must be a text, not {}", kind(value))))
    }

    pub fn only(&self, object: &Map<String, Value>, known: &[&str], what: &str) -> Result<(), Error> {
        match object.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(self.wrong(format!(
                "{what} has the unknown key {}; known are {}",
                shown(key),
                known.join(", ")
            ))),
        }
    }

    fn decision(&self) -> Result<(Capability, Part), Error> {
        let entry = self.object(&self.entry.value, "an answer")?;
        self.only(entry, &["capability", "decision"], "an answer")?;
        let capability = entry.get("capability").ok_or_else(|| self.wrong("the answer has no capability"))?;
        let name = self.text(capability, "capability")?;
        let capability = Capability::of(name).ok_or_else(|| {
            let known = Capability::ALL.map(Capability::as_str).join(", ");
            self.wrong(format!("the capability {} is not one of {known}", shown(name)))
        })?;
        let decision = entry.get("decision").ok_or_else(|| self.wrong("the answer has no decision"))?;
        let decision = self.object(decision, "decision")?;
        self.only(decision, &["policy", "deploy", "restrictions"], "decision")?;
        let policy = self.policy(decision)?;
        let deploy = match decision.get("deploy") {
            None => Deploy::Unknown,
            Some(Value::String(text)) => match text.as_str() {
                "True" => Deploy::True,
                "False" => Deploy::False,
                "Unknown" => Deploy::Unknown,
                other => {
                    return Err(self.wrong(format!("deploy is \"True\" or \"False\", not {}", shown(other))));
                }
            },
            Some(Value::Bool(value)) => {
                let text = if *value { "True" } else { "False" };
                return Err(self.wrong(format!("deploy is a text: write \"{text}\", not {value}")));
            }
            Some(other) => {
                return Err(self.wrong(format!("deploy is \"True\" or \"False\", not {}", kind(other))));
            }
        };
        let (mut modules, mut clusters, mut storage_accounts) = (Vec::new(), Vec::new(), Vec::new());
        if let Some(restrictions) = decision.get("restrictions") {
            let restrictions = self.object(restrictions, "restrictions")?;
            self.only(restrictions, &["modules", "clusters", "storageaccounts"], "restrictions")?;
            for (key, list) in [
                ("modules", &mut modules),
                ("clusters", &mut clusters),
                ("storageaccounts", &mut storage_accounts),
            ] {
                if let Some(value) = restrictions.get(key) {
                    for item in self.list(value, key)? {
                        list.push(Restriction::read(self, item, key, &policy)?);
                    }
                }
            }
        }
        Ok((capability, Part { policy, deploy, modules, clusters, storage_accounts }))
    }

    pub fn policy(&self, holder: &Map<String, Value>) -> Result<Arc<PolicyInfo>, Error> {
        let policy = holder.get("policy").ok_or_else(|| self.wrong("the decision names no policy"))?;
        let policy = self.object(policy, "policy")?;
        self.only(policy, &["ID", "policySetID", "description", "version"], "policy")?;
        let of = |key: &str| -> Result<String, Error> {
            policy.get(key).map_or(Ok(String::new()), |value| {
                self.text(value, &format!("policy.{key}")).map(str::to_owned)
            })
        };
        let id = of("ID")?;
        if id.is_empty() {
            return Err(self.wrong("the policy has no ID"));
        }
        Ok(Arc::new(PolicyInfo {
            id,
            set: of("policySetID")?,
            description: of("description")?,
            version: of("version")?,
            at: self.entry.at.clone(),
        }))
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// Quoted, on one line and of bounded length.
pub(super) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        short.push('…');
    }
    format!("\"{short}\"")
}
