//! What of a plan is done now, and what waits: for its time, for an admin's word, for a rollback to end.
//!
//! Invariant: pure. Nothing here makes a plan show more than it did, and taking something out of it never hides it: what
//! waits stays in the report.

use std::collections::BTreeSet;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::handle::{Cause, RunError};
use super::history::{self, Memory};
use super::planner::safety::Held;
use super::planner::{Change, Edit, Plan, Unplanned, Why};
use crate::document::{AutoMasks, Document};

/// A plan, and what of it is to be done now.
pub(super) struct Decided {
    pub whole: Plan,
    pub now: Plan,
    pub waiting: Vec<Change>,
    pub held: Vec<Held>,
    pub id: Arc<str>,
    /// The loop's memory once this is done.
    pub memory: Memory,
}

impl Decided {
    pub fn nothing(tables: usize, memory: &Memory) -> Self {
        Self {
            whole: Plan { tables, ..Plan::default() },
            now: Plan::default(),
            waiting: Vec::new(),
            held: Vec::new(),
            id: plan_id(&Plan::default()),
            memory: memory.clone(),
        }
    }

    /// Takes out of what is done now the changes that `which` names.
    pub fn wait(&mut self, which: impl Fn(&Change) -> bool) {
        let (waiting, now) = std::mem::take(&mut self.now.changes).into_iter().partition(which);
        self.now.changes = now;
        let waiting: Vec<Change> = waiting;
        for change in &waiting {
            match change.edit {
                Edit::Add { .. } => self.now.after = self.now.after.saturating_sub(1),
                Edit::Remove { .. } => self.now.after += 1,
                Edit::Replace { .. } => {}
            }
        }
        self.waiting.extend(waiting);
    }
}

/// The loop's entries of `revision`, as changes to `before`.
pub(super) fn backwards(number: u64, revision: &Document, before: &Document) -> Result<Plan, RunError> {
    let then = history::auto_masks(revision);
    let now = history::auto_masks(before);
    let library = &before.policy().mask_library;
    let strength = |mask: &str| library.get(mask).map_or(0, |mask| mask.strength);
    let none = AutoMasks::new();
    let mut plan = Plan { before: now.values().map(AutoMasks::len).sum(), ..Plan::default() };
    for subject in before.policy().subjects.keys() {
        let (then, now) = (then.get(subject).unwrap_or(&none), now.get(subject).unwrap_or(&none));
        let columns: BTreeSet<_> = then.keys().chain(now.keys()).collect();
        for column in columns {
            let (edit, loosens) = match (then.get(column), now.get(column)) {
                (Some(then), Some(now)) if then == now => continue,
                (Some(to), Some(from)) => (
                    Edit::Replace { from: Arc::clone(from), to: Arc::clone(to) },
                    strength(to) < strength(from),
                ),
                (Some(mask), None) => (Edit::Add { mask: Arc::clone(mask) }, false),
                (None, Some(mask)) => (Edit::Remove { mask: Arc::clone(mask) }, true),
                (None, None) => continue,
            };
            if let Edit::Add { mask } | Edit::Replace { to: mask, .. } = &edit
                && !library.contains_key(&**mask)
            {
                return Err(RunError::new(
                    Cause::MissingMask,
                    format!(
                        "revision {number} masks {column} with {mask:?}, which mask_library no longer has; add it there first"
                    ),
                ));
            }
            plan.changes.push(Change {
                subject: Arc::clone(subject),
                column: column.clone(),
                edit,
                why: Why::Rollback(number),
                loosens,
            });
        }
    }
    let count = |of: fn(&Edit) -> bool| plan.changes.iter().filter(|change| of(&change.edit)).count();
    let (more, less) =
        (count(|edit| matches!(edit, Edit::Add { .. })), count(|edit| matches!(edit, Edit::Remove { .. })));
    plan.after = (plan.before + more).saturating_sub(less);
    Ok(plan)
}

/// Names a plan by its changes.
pub(super) fn plan_id(plan: &Plan) -> Arc<str> {
    let mut hash = Sha256::new();
    for change in &plan.changes {
        hash.update(change.to_string().as_bytes());
        hash.update(b"\n");
    }
    hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect::<String>().into()
}

/// Columns with a mask of the loop, for anybody.
pub(super) fn masked_columns(document: &Document) -> usize {
    let masks = document.policy().subjects.values().flat_map(|subject| &subject.masks);
    masks.filter(|entry| entry.is_auto()).map(|entry| entry.column()).collect::<BTreeSet<_>>().len()
}

/// Tables of them.
pub(super) fn masked_tables(document: &Document) -> usize {
    let masks = history::auto_masks(document);
    let columns = masks.values().flat_map(AutoMasks::keys);
    columns.map(|column| (&column.catalog, &column.schema, &column.table)).collect::<BTreeSet<_>>().len()
}

pub(super) fn subjects(plan: &Plan) -> BTreeSet<Arc<str>> {
    plan.changes.iter().map(|change| Arc::clone(&change.subject)).collect()
}

/// What a plan could not do, although the rest of it was done.
pub(super) fn flaw(plan: &Plan) -> Option<RunError> {
    let mut cause = None;
    let mut lines = Vec::new();
    for unplanned in &plan.unplanned {
        let of_this = match unplanned {
            Unplanned::MissingMask { .. } => Cause::MissingMask,
            Unplanned::Unnameable { .. } => Cause::Document,
            Unplanned::Suggested { .. } | Unplanned::Disabled { .. } => continue,
        };
        // The first one names the run; the message has them all.
        cause.get_or_insert(of_this);
        lines.push(unplanned.to_string().trim_start_matches("! ").to_owned());
    }
    Some(RunError::new(cause?, lines.join("; ")))
}
