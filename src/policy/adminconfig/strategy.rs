//! What `optimize` asks for: attributes that are to be as low or as high as can be, each with a weight.
//!
//! Invariant: all strategies and all goals count, `min` and `max` alike.

use std::sync::Arc;

use serde_json::Value;

use super::Error;
use super::decision::{PolicyInfo, Reader, shown};

/// Which way is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Min,
    Max,
}

/// One attribute to optimise.
#[derive(Clone, Debug, PartialEq)]
pub struct Goal {
    pub attribute: String,
    pub direction: Direction,
    /// Above 0; 1 when the policy says none.
    pub weight: f64,
}

/// The goals of one policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Strategy {
    pub policy: Arc<PolicyInfo>,
    pub goals: Vec<Goal>,
}

impl Reader<'_> {
    pub(super) fn strategy(&self) -> Result<Strategy, Error> {
        let entry = self.object(&self.entry.value, "a strategy")?;
        self.only(entry, &["policy", "strategy"], "a strategy")?;
        let policy = self.policy(entry)?;
        let goals = entry.get("strategy").ok_or_else(|| self.wrong("there is no strategy in it"))?;
        let goals = self.list(goals, "strategy")?;
        let goals = goals.iter().map(|goal| self.goal(goal)).collect::<Result<_, _>>()?;
        Ok(Strategy { policy, goals })
    }

    fn goal(&self, value: &Value) -> Result<Goal, Error> {
        let goal = self.object(value, "a goal")?;
        self.only(goal, &["attribute", "directive", "weight"], "a goal")?;
        let text = |key: &str| match goal.get(key) {
            Some(value) => self.text(value, key),
            None => Err(self.wrong(format!("a goal has no {key}"))),
        };
        let direction = match text("directive")? {
            "min" => Direction::Min,
            "max" => Direction::Max,
            other => return Err(self.wrong(format!("directive is min or max, not {}", shown(other)))),
        };
        let weight = match goal.get("weight") {
            None => Some(1.0),
            Some(Value::Number(number)) => number.as_f64(),
            Some(Value::String(text)) => text.trim().parse::<f64>().ok(),
            Some(_) => None,
        };
        let weight = weight
            .filter(|weight| weight.is_finite() && (1e-6..=1e6).contains(weight))
            .ok_or_else(|| self.wrong("weight must be a number between 0.000001 and 1000000"))?;
        Ok(Goal { attribute: text("attribute")?.to_owned(), direction, weight })
    }
}
