//! `infrastructure.json` in both of its shapes, and the taxonomy that says what attributes there may be.
//!
//! Invariant: a value has the type that it declares, and an attribute of one resource is said once.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::engine::SourceFile;
use super::restriction::number;
use super::yaml::documents;
use super::{Origin, Problem, told};

/// What an attribute belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum InfrastructureObject {
    Module,
    StorageAccount,
    Cluster,
    /// Between two regions, in either direction unless both are given.
    InterRegion,
}

impl InfrastructureObject {
    fn of(name: &str) -> Option<Self> {
        match name {
            "fybrikmodule" | "module" => Some(Self::Module),
            "fybrikstorageaccount" | "storageaccount" => Some(Self::StorageAccount),
            "cluster" => Some(Self::Cluster),
            "inter-region" => Some(Self::InterRegion),
            _ => None,
        }
    }
}

/// The type of an attribute's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttributeType {
    Numeric,
    String,
    Boolean,
}

impl AttributeType {
    pub fn as_str(self) -> &'static str {
        match self {
            AttributeType::Numeric => "numeric",
            AttributeType::String => "string",
            AttributeType::Boolean => "boolean",
        }
    }
}

/// A value, of the type that was declared.
#[derive(Clone, Debug, PartialEq)]
pub enum AttributeValue {
    Numeric(f64),
    Text(String),
    Boolean(bool),
}

impl fmt::Display for AttributeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AttributeValue::Numeric(number) => number.fmt(f),
            AttributeValue::Text(text) => f.write_str(text),
            AttributeValue::Boolean(truth) => truth.fmt(f),
        }
    }
}

/// An attribute of one resource, or of a pair of regions.
#[derive(Clone, Debug, PartialEq)]
pub struct Attribute {
    pub name: String,
    pub object: InfrastructureObject,
    /// The resource's name; two regions for `inter-region`.
    pub instance: Vec<String>,
    pub value: AttributeValue,
    pub units: String,
    pub scale: Option<(f64, f64)>,
    pub at: Origin,
}

/// All attributes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Infrastructure {
    /// By object, name and instance.
    attributes: BTreeMap<InfrastructureObject, BTreeMap<String, BTreeMap<Vec<String>, Attribute>>>,
}

/// What attributes and properties there may be.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Taxonomy {
    pub attributes: BTreeMap<String, AttributeKind>,
    /// Of workloads; an empty list of values: any.
    pub properties: BTreeMap<String, PropertyKind>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttributeKind {
    #[serde(rename = "type")]
    pub value_type: AttributeType,
    /// Any of them; empty: none are said.
    #[serde(default)]
    pub units: Vec<String>,
    #[serde(default)]
    pub description: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PropertyKind {
    #[serde(rename = "type")]
    pub value_type: AttributeType,
    /// Any of them; empty: all.
    #[serde(default)]
    pub values: Vec<Value>,
    #[serde(default)]
    pub description: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTaxonomy {
    #[serde(default)]
    attributes: BTreeMap<String, AttributeKind>,
    #[serde(default)]
    properties: BTreeMap<String, PropertyKind>,
}

impl Taxonomy {
    /// Reads YAML (or JSON, which YAML holds).
    ///
    /// # Errors
    /// What is wrong with it, with lines.
    pub fn parse(file: &SourceFile) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let mut taxonomy = Taxonomy::default();
        for document in documents(file, &mut problems) {
            match RawTaxonomy::deserialize(&document.value) {
                Ok(raw) => {
                    taxonomy.attributes.extend(raw.attributes);
                    taxonomy.properties.extend(raw.properties);
                }
                Err(error) => problems.push(document.problem("", "", error.to_string())),
            }
        }
        if problems.is_empty() { Ok(taxonomy) } else { Err(problems) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile<'t> {
    #[serde(borrow, default)]
    metrics: Vec<&'t RawValue>,
    #[serde(borrow, default)]
    infrastructure: Vec<&'t RawValue>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScale {
    min: Value,
    max: Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetric {
    name: String,
    #[serde(default, rename = "description")]
    _description: String,
    #[serde(rename = "type")]
    value_type: AttributeType,
    #[serde(default)]
    units: String,
    scale: Option<RawScale>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAttribute {
    attribute: String,
    #[serde(default, rename = "description")]
    _description: String,
    #[serde(rename = "metricName")]
    metric: Option<String>,
    value: Value,
    #[serde(rename = "type")]
    value_type: Option<AttributeType>,
    units: Option<String>,
    scale: Option<RawScale>,
    object: String,
    instance: Option<String>,
    arguments: Option<Vec<String>>,
}

impl Infrastructure {
    /// Reads the JSON of either shape; with a taxonomy, every attribute has to be in it.
    ///
    /// # Errors
    /// Everything that is wrong with it, with lines.
    pub fn parse(file: &SourceFile, taxonomy: Option<&Taxonomy>) -> Result<Self, Vec<Problem>> {
        let text = file.text.as_str();
        let problem = |line: usize, message: String| Problem {
            at: Origin { file: file.name.clone(), line: u32::try_from(line).unwrap_or(u32::MAX) },
            message,
        };
        let raw = match text.trim_start().starts_with('[') {
            true => serde_json::from_str::<Vec<&RawValue>>(text)
                .map(|infrastructure| RawFile { metrics: Vec::new(), infrastructure }),
            false => serde_json::from_str::<RawFile<'_>>(text),
        };
        let raw = raw.map_err(|error| vec![problem(error.line(), json_message(&error))])?;
        // Where an entry stands is where its text stands in the file's.
        let ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
        let line_of = |entry: &RawValue, within: usize| {
            let offset = (entry.get().as_ptr() as usize).saturating_sub(text.as_ptr() as usize);
            ends.partition_point(|end| *end < offset) + 1 + within
        };
        let mut problems = Vec::new();
        let mut metrics: BTreeMap<String, RawMetric> = BTreeMap::new();
        for entry in raw.metrics {
            match serde_json::from_str::<RawMetric>(entry.get()) {
                Ok(metric) => {
                    if let Some(before) = metrics.insert(metric.name.clone(), metric) {
                        problems.push(problem(
                            line_of(entry, 0),
                            format!("the metric {} is said twice", before.name),
                        ));
                    }
                }
                Err(error) => problems
                    .push(problem(line_of(entry, error.line().saturating_sub(1)), json_message(&error))),
            }
        }
        let mut infrastructure = Infrastructure::default();
        for entry in raw.infrastructure {
            let attribute = match serde_json::from_str::<RawAttribute>(entry.get()) {
                Ok(attribute) => attribute,
                Err(error) => {
                    problems
                        .push(problem(line_of(entry, error.line().saturating_sub(1)), json_message(&error)));
                    continue;
                }
            };
            let (line, name) = (line_of(entry, 0), attribute.attribute.clone());
            let at = Origin { file: file.name.clone(), line: u32::try_from(line).unwrap_or(u32::MAX) };
            let checked = validated(attribute, &metrics, at).and_then(|attribute| match taxonomy {
                Some(taxonomy) => taxonomy.allows(&attribute).map(|()| attribute),
                None => Ok(attribute),
            });
            let added = checked.and_then(|attribute| infrastructure.add(attribute));
            if let Err(message) = added {
                problems.push(problem(line, format!("attribute {name}: {message}")));
            }
        }
        if problems.is_empty() { Ok(infrastructure) } else { Err(told(problems)) }
    }

    fn add(&mut self, attribute: Attribute) -> Result<(), String> {
        let of_name =
            self.attributes.entry(attribute.object).or_default().entry(attribute.name.clone()).or_default();
        if let Some(before) = of_name.get(&attribute.instance) {
            return Err(format!(
                "is said twice for {}, first at {}",
                attribute.instance.join(", "),
                before.at
            ));
        }
        of_name.insert(attribute.instance.clone(), attribute);
        Ok(())
    }

    /// All attributes of an object kind by this name.
    pub(super) fn named(
        &self,
        object: InfrastructureObject,
        name: &str,
    ) -> Option<&BTreeMap<Vec<String>, Attribute>> {
        self.attributes.get(&object)?.get(name)
    }

    /// The attribute of one resource.
    pub fn of(&self, object: InfrastructureObject, name: &str, instance: &str) -> Option<&Attribute> {
        self.named(object, name)?.get([instance.to_owned()].as_slice())
    }

    /// The attribute of a pair of regions; the other direction stands in for one that is not said.
    pub fn between(&self, name: &str, from: &str, to: &str) -> Option<&Attribute> {
        let named = self.named(InfrastructureObject::InterRegion, name)?;
        let key = |one: &str, other: &str| [one.to_owned(), other.to_owned()];
        named.get(key(from, to).as_slice()).or_else(|| named.get(key(to, from).as_slice()))
    }

    /// Every attribute, in a fixed order.
    pub fn all(&self) -> impl Iterator<Item = &Attribute> {
        self.attributes.values().flat_map(|names| names.values().flat_map(BTreeMap::values))
    }

    /// Whether any resource has an attribute of this name.
    pub fn knows(&self, name: &str) -> bool {
        self.attributes.values().any(|names| names.contains_key(name))
    }
}

impl PropertyKind {
    /// Whether a workload's property may have this value.
    pub(super) fn allows(&self, value: &Value) -> bool {
        let fits = match self.value_type {
            AttributeType::Numeric => number(value).is_some(),
            AttributeType::String => value.is_string(),
            AttributeType::Boolean => value.is_boolean(),
        };
        fits && (self.values.is_empty() || self.values.contains(value))
    }
}

impl Taxonomy {
    fn allows(&self, attribute: &Attribute) -> Result<(), String> {
        let Some(known) = self.attributes.get(&attribute.name) else {
            return Err("is not in the taxonomy".to_owned());
        };
        let is = match attribute.value {
            AttributeValue::Numeric(_) => AttributeType::Numeric,
            AttributeValue::Text(_) => AttributeType::String,
            AttributeValue::Boolean(_) => AttributeType::Boolean,
        };
        if is != known.value_type {
            return Err(format!("is {}, and the taxonomy says {}", is.as_str(), known.value_type.as_str()));
        }
        if !known.units.is_empty() && !known.units.contains(&attribute.units) {
            return Err(format!(
                "has the units \"{}\", and the taxonomy knows {}",
                attribute.units,
                known.units.join(", ")
            ));
        }
        Ok(())
    }
}

fn validated(
    raw: RawAttribute,
    metrics: &BTreeMap<String, RawMetric>,
    at: Origin,
) -> Result<Attribute, String> {
    let object = InfrastructureObject::of(&raw.object).ok_or_else(|| {
        format!(
            "object {} is not one of fybrikmodule, fybrikstorageaccount, cluster, inter-region",
            raw.object
        )
    })?;
    let metric = match &raw.metric {
        None => None,
        Some(name) => Some(metrics.get(name).ok_or_else(|| format!("there is no metric {name}"))?),
    };
    let value_type = match (raw.value_type, metric) {
        (Some(said), Some(metric)) if said != metric.value_type => {
            return Err(format!("is {}, and its metric says {}", said.as_str(), metric.value_type.as_str()));
        }
        (Some(said), _) => said,
        (None, Some(metric)) => metric.value_type,
        (None, None) => return Err("has no type and no metricName".to_owned()),
    };
    let text = match &raw.value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        _ => return Err("value must be a text, a number or true and false".to_owned()),
    };
    let value = match value_type {
        AttributeType::Numeric => AttributeValue::Numeric(
            text.trim()
                .parse::<f64>()
                .ok()
                .filter(|number| number.is_finite())
                .ok_or_else(|| format!("is numeric, and its value \"{text}\" is no number"))?,
        ),
        AttributeType::String => AttributeValue::Text(text),
        AttributeType::Boolean => match text.as_str() {
            "true" => AttributeValue::Boolean(true),
            "false" => AttributeValue::Boolean(false),
            other => return Err(format!("is boolean, and its value \"{other}\" is neither true nor false")),
        },
    };
    let scale = match raw.scale.as_ref().or_else(|| metric.and_then(|metric| metric.scale.as_ref())) {
        None => None,
        Some(scale) => match (number(&scale.min), number(&scale.max)) {
            (Some(min), Some(max)) if min <= max => Some((min, max)),
            (Some(min), Some(max)) => {
                return Err(format!("its scale is upside down: min {min} is above max {max}"));
            }
            _ => return Err("min and max of a scale must be numbers".to_owned()),
        },
    };
    let instance = match (object, raw.instance, raw.arguments) {
        (InfrastructureObject::InterRegion, None, Some(regions)) if regions.len() == 2 => regions,
        (InfrastructureObject::InterRegion, _, _) => {
            return Err("inter-region needs arguments with two regions".to_owned());
        }
        (_, Some(instance), None) if !instance.is_empty() => vec![instance],
        _ => return Err("needs instance, the resource's name".to_owned()),
    };
    let units = raw.units.or_else(|| metric.map(|metric| metric.units.clone())).unwrap_or_default();
    Ok(Attribute { name: raw.attribute, object, instance, value, units, scale, at })
}

fn json_message(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}
