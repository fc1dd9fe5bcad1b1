//! What a decision restricts: a property of a module, cluster or storage account to some values or to a range.
//!
//! Invariant: what is missing or of another kind does not satisfy a restriction.

use std::fmt;
use std::sync::Arc;

use serde_json::{Value, json};

use super::Error;
use super::decision::{PolicyInfo, Reader, kind, shown};
use super::infrastructure::AttributeValue;

/// What a property may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Allowed {
    Values(Vec<Value>),
    /// None: not bounded there.
    Range {
        min: Option<f64>,
        max: Option<f64>,
    },
}

/// One restriction, and the policy that sets it.
#[derive(Clone, Debug, PartialEq)]
pub struct Restriction {
    /// An infrastructure attribute, or a dotted path in a description.
    pub property: String,
    pub allowed: Allowed,
    pub policy: Arc<PolicyInfo>,
    /// As the policy gave it.
    pub given: Value,
}

/// Why a property does not satisfy a restriction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unmet {
    Missing,
    /// What it is instead.
    Differs(String),
    NotANumber(String),
}

impl fmt::Display for Unmet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unmet::Missing => f.write_str("it has none"),
            Unmet::Differs(found) => write!(f, "it is {found}"),
            Unmet::NotANumber(found) => write!(f, "it is {found}, which is no number"),
        }
    }
}

impl fmt::Display for Restriction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.allowed {
            Allowed::Values(values) => {
                let list: Vec<String> = values.iter().map(plain).collect();
                write!(f, "{} in [{}]", self.property, list.join(", "))
            }
            Allowed::Range { min: Some(min), max: Some(max) } => {
                write!(f, "{} from {min} to {max}", self.property)
            }
            Allowed::Range { min: Some(min), max: None } => write!(f, "{} at least {min}", self.property),
            Allowed::Range { min: None, max: Some(max) } => write!(f, "{} at most {max}", self.property),
            Allowed::Range { min: None, max: None } => write!(f, "{} any number", self.property),
        }
    }
}

impl Restriction {
    pub(super) fn read(
        reader: &Reader<'_>,
        value: &Value,
        list: &str,
        policy: &Arc<PolicyInfo>,
    ) -> Result<Self, Error> {
        let entry = reader.object(value, &format!("an entry of restrictions.{list}"))?;
        reader.only(entry, &["property", "values", "range"], "a restriction")?;
        let property = entry
            .get("property")
            .ok_or_else(|| reader.wrong(format!("an entry of restrictions.{list} has no property")))?;
        let property = reader.text(property, "property")?;
        if property.is_empty() {
            return Err(reader.wrong("property must not be empty"));
        }
        // With both, the range counts, as in the original; values are looked at all the same.
        let values = match entry.get("values") {
            None => None,
            Some(values) => {
                let values = reader.list(values, "values")?;
                if let Some(odd) = values.iter().find(|value| !scalar(value)) {
                    return Err(reader.wrong(format!(
                        "values of {} are texts, numbers or true and false, not {}",
                        shown(property),
                        kind(odd)
                    )));
                }
                Some(values.to_vec())
            }
        };
        let allowed = match (entry.get("range"), values) {
            (Some(range), _) => Self::range(reader, range, property)?,
            (None, Some(values)) => Allowed::Values(values),
            (None, None) => {
                return Err(reader
                    .wrong(format!("the restriction of {} has neither values nor range", shown(property))));
            }
        };
        Ok(Self { property: property.to_owned(), allowed, policy: policy.clone(), given: value.clone() })
    }

    fn range(reader: &Reader<'_>, value: &Value, property: &str) -> Result<Allowed, Error> {
        let range = reader.object(value, "range")?;
        reader.only(range, &["min", "max"], "range")?;
        let bound = |key: &str| -> Result<Option<f64>, Error> {
            let Some(value) = range.get(key) else { return Ok(None) };
            let number = number(value).ok_or_else(|| {
                reader.wrong(format!(
                    "range.{key} of {} must be a number, not {}",
                    shown(property),
                    plain(value)
                ))
            })?;
            // 0 is what the original's structure holds when a policy says nothing.
            Ok(Some(number).filter(|number| *number != 0.0))
        };
        let (min, max) = (bound("min")?, bound("max")?);
        if let (Some(min), Some(max)) = (min, max)
            && min > max
        {
            return Err(reader.wrong(format!(
                "the range of {} is upside down: min {min} is above max {max}",
                shown(property)
            )));
        }
        Ok(Allowed::Range { min, max })
    }

    /// Whether any of the values that a property has is allowed.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn check(&self, found: &Found<'_>) -> Result<(), Unmet> {
        match found {
            Found::Attribute(value) => self.check_attribute(value),
            Found::Property(values) => {
                if values.is_empty() {
                    return Err(Unmet::Missing);
                }
                let mut reason = Unmet::Missing;
                for value in values {
                    match self.check_value(value) {
                        Ok(()) => return Ok(()),
                        Err(unmet) => reason = unmet,
                    }
                }
                Err(reason)
            }
        }
    }

    fn check_attribute(&self, value: &AttributeValue) -> Result<(), Unmet> {
        match (value, &self.allowed) {
            (AttributeValue::Numeric(number), Allowed::Range { min, max }) => within(*number, *min, *max),
            (AttributeValue::Numeric(number), Allowed::Values(values)) => {
                let allowed = values.iter().any(|value| self::number(value) == Some(*number));
                if allowed { Ok(()) } else { Err(Unmet::Differs(number.to_string())) }
            }
            (other, Allowed::Range { .. }) => Err(Unmet::NotANumber(other.to_string())),
            (AttributeValue::Text(text), Allowed::Values(values)) => {
                let allowed = values.iter().any(|value| plain(value) == *text);
                if allowed { Ok(()) } else { Err(Unmet::Differs(text.clone())) }
            }
            (AttributeValue::Boolean(truth), Allowed::Values(values)) => {
                let allowed = values.iter().any(|value| plain(value) == truth.to_string());
                if allowed { Ok(()) } else { Err(Unmet::Differs(truth.to_string())) }
            }
        }
    }

    fn check_value(&self, value: &Value) -> Result<(), Unmet> {
        match &self.allowed {
            Allowed::Range { min, max } => match number(value) {
                Some(number) => within(number, *min, *max),
                None => Err(Unmet::NotANumber(plain(value))),
            },
            Allowed::Values(values) => {
                let allowed = values.iter().any(|allowed| match (allowed, value) {
                    (Value::Number(_), Value::Number(_)) => number(allowed) == number(value),
                    _ => plain(allowed) == plain(value),
                });
                if allowed { Ok(()) } else { Err(Unmet::Differs(plain(value))) }
            }
        }
    }

    /// As the policy gave it, and whose it is.
    pub fn to_json(&self) -> Value {
        let mut value = self.given.clone();
        if let Some(object) = value.as_object_mut() {
            object.insert("policy".to_owned(), json!(self.policy.id));
        }
        value
    }
}

/// What a resource has under a property.
pub(super) enum Found<'v> {
    Attribute(&'v AttributeValue),
    /// Several for a list; none when it is missing.
    Property(Vec<&'v Value>),
}

fn within(number: f64, min: Option<f64>, max: Option<f64>) -> Result<(), Unmet> {
    let fits = min.is_none_or(|min| number >= min) && max.is_none_or(|max| number <= max);
    if fits { Ok(()) } else { Err(Unmet::Differs(number.to_string())) }
}

fn scalar(value: &Value) -> bool {
    matches!(value, Value::String(_) | Value::Number(_) | Value::Bool(_))
}

/// A number, or a text that is one.
pub(super) fn number(value: &Value) -> Option<f64> {
    let number = match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse::<f64>().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    };
    number.filter(|number| number.is_finite())
}

/// A scalar as text, without quotes; a container in short.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.chars().take(200).collect(),
        Value::Number(number) => number.to_string(),
        Value::Bool(truth) => truth.to_string(),
        other => kind(other).to_owned(),
    }
}

/// The scalars at a dotted path; a list on the way counts with each of its items.
pub(super) fn lookup<'v>(value: &'v Value, path: &str, found: &mut Vec<&'v Value>) {
    match value {
        Value::Array(items) => items.iter().for_each(|item| lookup(item, path, found)),
        Value::Object(fields) if !path.is_empty() => {
            // A key may hold dots itself, as labels do.
            if let Some(value) = fields.get(path) {
                lookup(value, "", found);
                return;
            }
            for (at, _) in path.match_indices('.') {
                let (Some(key), Some(rest)) = (path.get(..at), path.get(at + 1..)) else { continue };
                if let Some(value) = fields.get(key) {
                    lookup(value, rest, found);
                    return;
                }
            }
        }
        Value::String(_) | Value::Number(_) | Value::Bool(_) if path.is_empty() => found.push(value),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => {}
    }
}
