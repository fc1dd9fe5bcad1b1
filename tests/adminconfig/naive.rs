//! A second reading of what the planner chooses: every way, one after the other, over descriptions as plain JSON.
//!
//! Invariant: it shares no code with the planner, and is right because it is slow.

use serde_json::{Value, json};

/// One module at work: module, entry, interface, cluster, account.
pub type Move = (String, usize, usize, String, Option<String>);

pub struct Instance {
    pub modules: Vec<Value>,
    pub clusters: Vec<Value>,
    pub accounts: Vec<Value>,
    /// As in infrastructure.json, all numeric with a scale from 0 to 10.
    pub attributes: Vec<Value>,
    /// Answers of `config`.
    pub decisions: Vec<Value>,
    /// Attribute, whether most is best, weight.
    pub goals: Vec<(String, bool, f64)>,
    pub usage: String,
    pub asset: (String, String),
    pub region: String,
    pub asked: Option<(String, String)>,
    pub actions: Vec<String>,
}

#[derive(Clone)]
struct At {
    interface: (String, String),
    left: Vec<String>,
    copied: bool,
    region: String,
}

fn fits(one: &(String, String), other: &(String, String)) -> bool {
    one.0 == other.0 && (one.1.is_empty() || other.1.is_empty() || one.1 == other.1)
}

fn interface(value: &Value) -> Option<(String, String)> {
    let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    value.is_object().then(|| (text("protocol"), text("dataformat")))
}

impl Instance {
    fn deploy(&self, capability: &str) -> &str {
        let said = self.decisions.iter().filter(|decision| decision["capability"] == capability);
        said.filter_map(|decision| decision["decision"]["deploy"].as_str()).next().unwrap_or("Unknown")
    }

    fn attribute(&self, object: &str, name: &str, instance: &Value) -> Option<f64> {
        let found = self.attributes.iter().find(|attribute| {
            attribute["object"] == object
                && attribute["attribute"] == name
                && (attribute["instance"] == *instance || attribute["arguments"] == *instance)
        })?;
        found["value"].as_str()?.parse().ok()
    }

    /// Whether all restrictions on `list` of a capability hold, for a resource of these properties.
    fn allowed(
        &self,
        capability: &str,
        list: &str,
        object: &str,
        name: &str,
        property: &dyn Fn(&str) -> Option<String>,
    ) -> bool {
        let decisions = self.decisions.iter().filter(|decision| decision["capability"] == capability);
        let restrictions =
            decisions.flat_map(|decision| decision["decision"]["restrictions"][list].as_array()).flatten();
        restrictions.into_iter().all(|restriction| {
            let key = restriction["property"].as_str().unwrap();
            let found = self
                .attribute(object, key, &json!(name))
                .map(|number| number.to_string())
                .or_else(|| property(key));
            let Some(found) = found else { return false };
            match restriction.get("range") {
                Some(range) => found.parse::<f64>().is_ok_and(|number| {
                    let least = range.get("min").and_then(Value::as_f64).filter(|bound| *bound != 0.0);
                    let most = range.get("max").and_then(Value::as_f64).filter(|bound| *bound != 0.0);
                    least.is_none_or(|least| number >= least) && most.is_none_or(|most| number <= most)
                }),
                None => restriction["values"].as_array().unwrap().iter().any(|value| value == &json!(found)),
            }
        })
    }

    fn price(&self, object: &str, instance: &Value) -> i128 {
        let mut sum = 0;
        for (name, most, weight) in &self.goals {
            let known = self
                .attributes
                .iter()
                .any(|attribute| attribute["object"] == object && attribute["attribute"] == name.as_str());
            if !known {
                continue;
            }
            let mut value = self.attribute(object, name, instance);
            if object == "inter-region" {
                let back = json!([instance[1], instance[0]]);
                value = value.or_else(|| self.attribute(object, name, &back));
                if value.is_none() && instance[0] == instance[1] {
                    continue;
                }
            }
            let part = match value {
                Some(value) if *most => (10.0 - value) * 100.0 / 10.0,
                Some(value) => value * 100.0 / 10.0,
                None => 100.0,
            };
            sum += (part * weight * 1e6).round() as i128;
        }
        sum
    }

    /// The cheapest way, then the shortest, then the first by name.
    pub fn best(&self, most_steps: usize) -> Option<(i128, Vec<Move>)> {
        let mut best: Option<(i128, usize, Vec<Move>)> = None;
        let begin = At {
            interface: self.asset.clone(),
            left: self.actions.clone(),
            copied: false,
            region: self.region.clone(),
        };
        self.walk(&begin, 0, &mut Vec::new(), most_steps, &mut best);
        best.map(|(cost, _, way)| (cost, way))
    }

    fn walk(
        &self,
        at: &At,
        cost: i128,
        way: &mut Vec<Move>,
        most_steps: usize,
        best: &mut Option<(i128, usize, Vec<Move>)>,
    ) {
        if way.len() == most_steps {
            return;
        }
        for module in &self.modules {
            let name = module["metadata"]["name"].as_str().unwrap();
            for (entry, capability) in module["spec"]["capabilities"].as_array().unwrap().iter().enumerate() {
                let kind = capability["capability"].as_str().unwrap();
                let serves = match self.usage.as_str() {
                    "read" => ["read", "copy", "transform"].contains(&kind),
                    "copy" => ["copy", "transform"].contains(&kind),
                    other => kind == other,
                };
                if !serves || self.deploy(kind) == "False" {
                    continue;
                }
                let property = |key: &str| match key.strip_prefix("capabilities.") {
                    Some(below) => capability[below].as_str().map(str::to_owned),
                    None => module["spec"][key].as_str().map(str::to_owned),
                };
                if !self.allowed(kind, "modules", "fybrikmodule", name, &property) {
                    continue;
                }
                let able: Vec<String> = at
                    .left
                    .iter()
                    .filter(|action| {
                        capability["actions"].as_array().unwrap().iter().any(|a| a["name"] == action.as_str())
                    })
                    .cloned()
                    .collect();
                for (pair, ends) in capability["supportedInterfaces"].as_array().unwrap().iter().enumerate() {
                    let Some(source) = interface(&ends["source"]) else { continue };
                    if !fits(&source, &at.interface) {
                        continue;
                    }
                    let sink = interface(&ends["sink"]);
                    let output = match kind {
                        "read" => interface(&capability["api"]).or(sink),
                        "copy" => sink,
                        "transform" => Some(sink.unwrap_or_else(|| at.interface.clone())),
                        _ => Some(at.interface.clone()),
                    };
                    let Some(output) = output else { continue };
                    // Any part of what it is able to do.
                    for part in 0..(1u32 << able.len()) {
                        let done: Vec<&String> = able
                            .iter()
                            .enumerate()
                            .filter(|(bit, _)| part & (1 << bit) != 0)
                            .map(|(_, a)| a)
                            .collect();
                        let transforms = !done.is_empty() || kind == "transform";
                        if transforms
                            && (self.deploy("transform") == "False"
                                || !self.allowed("transform", "modules", "fybrikmodule", name, &property))
                        {
                            continue;
                        }
                        for cluster in &self.clusters {
                            let cluster_name = cluster["name"].as_str().unwrap();
                            let property = |key: &str| match key {
                                "name" => Some(cluster_name.to_owned()),
                                "metadata.region" => {
                                    cluster["metadata"]["region"].as_str().map(str::to_owned)
                                }
                                _ => None,
                            };
                            if !self.allowed(kind, "clusters", "cluster", cluster_name, &property)
                                || transforms
                                    && !self.allowed(
                                        "transform",
                                        "clusters",
                                        "cluster",
                                        cluster_name,
                                        &property,
                                    )
                            {
                                continue;
                            }
                            let region = cluster["metadata"]["region"].as_str().unwrap().to_owned();
                            let here = cost
                                + self.price("fybrikmodule", &json!(name))
                                + self.price("cluster", &json!(cluster_name))
                                + self.price("inter-region", &json!([at.region, region]));
                            let mut next = At {
                                interface: output.clone(),
                                left: at
                                    .left
                                    .iter()
                                    .filter(|action| !done.contains(action))
                                    .cloned()
                                    .collect(),
                                copied: at.copied || kind == "copy",
                                region: region.clone(),
                            };
                            if kind != "copy" {
                                way.push((name.to_owned(), entry, pair, cluster_name.to_owned(), None));
                                self.arrive(kind, &next, here, way, most_steps, best);
                                way.pop();
                                continue;
                            }
                            for account in &self.accounts {
                                let account_name = account["metadata"]["name"].as_str().unwrap();
                                let spec = &account["spec"];
                                let property = |key: &str| spec[key].as_str().map(str::to_owned);
                                if spec["type"] != output.0.as_str()
                                    || !self.allowed(
                                        kind,
                                        "storageaccounts",
                                        "fybrikstorageaccount",
                                        account_name,
                                        &property,
                                    )
                                {
                                    continue;
                                }
                                next.region = spec["geography"].as_str().unwrap().to_owned();
                                let there = here
                                    + self.price("fybrikstorageaccount", &json!(account_name))
                                    + self.price("inter-region", &json!([region, next.region]));
                                way.push((
                                    name.to_owned(),
                                    entry,
                                    pair,
                                    cluster_name.to_owned(),
                                    Some(account_name.to_owned()),
                                ));
                                self.arrive(kind, &next, there, way, most_steps, best);
                                way.pop();
                            }
                        }
                    }
                }
            }
        }
    }

    fn arrive(
        &self,
        kind: &str,
        at: &At,
        cost: i128,
        way: &mut Vec<Move>,
        most_steps: usize,
        best: &mut Option<(i128, usize, Vec<Move>)>,
    ) {
        let copied = at.copied || (self.usage != "copy" && self.deploy("copy") != "True");
        let asked =
            self.usage != "read" || self.asked.as_ref().is_none_or(|asked| fits(&at.interface, asked));
        if kind == self.usage && at.left.is_empty() && copied && asked {
            let found = (cost, way.len(), way.clone());
            if best.as_ref().is_none_or(|best| found < *best) {
                *best = Some(found);
            }
        }
        if kind == "copy" || kind == "transform" {
            self.walk(at, cost, way, most_steps, best);
        }
    }
}
