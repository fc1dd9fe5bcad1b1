//! Configuration policies (`package adminconfig`): which capabilities are deployed for a workload, by which module, in
//! which cluster, with which storage account.
//!
//! Invariant: pure. Texts, descriptions, an input and a time go in, an outcome or an error comes out; the caller reads
//! the files and owns the clock. What cannot be understood is an error that names file and line, and is never skipped.

mod budget;
mod decision;
mod engine;
mod infrastructure;
mod lint;
mod plan;
mod resources;
mod restriction;
mod rewrite;
mod strategy;
mod yaml;

use std::fmt;
use std::sync::Arc;

pub use decision::{Capability, Decision, Deploy, Outcome, PolicyInfo};
pub use engine::{Limits, Policies, Raw, RawEntry, SourceFile};
pub use infrastructure::{
    Attribute, AttributeType, AttributeValue, Infrastructure, InfrastructureObject, Taxonomy,
};
pub use lint::{Remark, WorkloadFacts, lint};
pub use plan::{Landscape, MOST_STEPS, NoPlan, Plan, Request, RuledOut, Step, plan};
pub use resources::{Account, Cluster, Interface, Module, ModuleCapability, Resources};
pub use restriction::{Allowed, Restriction};
pub use strategy::{Direction, Goal, Strategy};
pub use yaml::too_deep;

/// A line of a file, as errors name it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    pub file: Arc<str>,
    /// From 1.
    pub line: u32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

/// What is wrong at a place of a text that people wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub at: Origin,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.message)
    }
}

/// Problems of one reading that are told.
const TOLD: usize = 1_000;

/// So many of them that somebody may still read them, and how many more there are.
fn told(mut problems: Vec<Problem>) -> Vec<Problem> {
    let more = problems.len().saturating_sub(TOLD);
    problems.truncate(TOLD);
    if let (Some(last), true) = (problems.last_mut(), more > 0) {
        last.message.push_str(&format!("; and {more} more problems"));
    }
    problems
}

/// Why there is no outcome.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A text that is no policy; one for each file that is wrong.
    #[error("{}", lines(.0))]
    Compile(Vec<Problem>),
    /// A rule that failed while it was evaluated.
    #[error("{}{message}", .at.as_ref().map(|at| format!("{at}: ")).unwrap_or_default())]
    Evaluation { at: Option<Origin>, message: String },
    /// More time, steps or output than an evaluation may take.
    #[error("{}{message}", .at.as_ref().map(|at| format!("{at}: ")).unwrap_or_default())]
    Limit { at: Option<Origin>, message: String },
    /// A rule that answered with what is no decision.
    #[error("{at}: rule {rule}: {message}")]
    Shape { at: Origin, rule: &'static str, message: String },
    /// Two policies of which one deploys what the other one does not.
    #[error(
        "the policies contradict each other about {capability}: {} ({}) deploys it and {} ({}) does not",
        .deploys.id, .deploys.at, .refuses.id, .refuses.at
    )]
    Conflict { capability: Capability, deploys: Arc<PolicyInfo>, refuses: Arc<PolicyInfo> },
}

impl Error {
    /// One word for it, as `--json` and the API say it.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Compile(_) => "compile",
            Error::Evaluation { .. } => "evaluation",
            Error::Limit { .. } => "limit",
            Error::Shape { .. } => "shape",
            Error::Conflict { .. } => "conflict",
        }
    }

    /// As an answer: `{"error": kind, …}`.
    pub fn to_json(&self) -> serde_json::Value {
        let mut answer = serde_json::json!({"error": self.kind(), "message": self.to_string()});
        let more = match self {
            Error::Conflict { capability, deploys, refuses } => serde_json::json!({
                "between": [deploys.id, refuses.id],
                "capability": capability.as_str(),
                "at": [deploys.at.to_string(), refuses.at.to_string()],
            }),
            Error::Shape { at, rule, .. } => {
                serde_json::json!({"file": *at.file, "line": at.line, "rule": rule})
            }
            Error::Compile(problems) => serde_json::json!({"problems": problems.iter().map(|problem| {
                serde_json::json!({"file": *problem.at.file, "line": problem.at.line, "message": problem.message})
            }).collect::<Vec<_>>()}),
            Error::Evaluation { .. } | Error::Limit { .. } => serde_json::json!({}),
        };
        if let (Some(answer), serde_json::Value::Object(more)) = (answer.as_object_mut(), more) {
            answer.extend(more);
        }
        answer
    }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}
