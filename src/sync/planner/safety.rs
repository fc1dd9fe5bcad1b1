//! Unmasking is the dangerous direction: what may wait, and what has to.
//!
//! Invariant: nothing here makes a plan show more than it did, and masks that are to be added never wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Change, Edit, Plan, Why};
use crate::document::ColumnName;

/// Since when the catalog no longer asks for a mask that is still there, by subject and column.
pub type MissingSince = BTreeMap<(Arc<str>, ColumnName), SystemTime>;

/// A change that waits for its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub change: Change,
    /// `None`: there is no such time, so for ever.
    pub until: Option<SystemTime>,
}

/// Takes out of a plan what the catalog has asked for since less than `hold`; what it held before and does
/// not ask for now is forgotten.
///
/// Only the catalog's word waits. What people did in the document or in the configuration counts at once.
pub fn hold_back(plan: &mut Plan, since: &mut MissingSince, now: SystemTime, hold: Duration) -> Vec<Held> {
    let mut held = Vec::new();
    let mut still = MissingSince::new();
    plan.changes.retain(|change| {
        let of_the_catalog = match change.why {
            Why::Tag(_) | Why::TagGone | Why::ColumnGone | Why::TableGone => true,
            Why::OutOfScope | Why::Exempt | Why::Manual | Why::Rollback(_) => false,
        };
        if !change.loosens || !of_the_catalog {
            return true;
        }
        let key = (Arc::clone(&change.subject), change.column.clone());
        // A clock that was put back holds for longer, never for less.
        let first = since.get(&key).copied().unwrap_or(now);
        still.insert(key, first);
        let until = first.checked_add(hold);
        if until.is_none_or(|until| until > now) {
            held.push(Held { change: change.clone(), until });
            return false;
        }
        true
    });
    let kept = held.iter().filter(|held| matches!(held.change.edit, Edit::Remove { .. })).count();
    plan.after += kept;
    *since = still;
    held
}

/// How much of what is masked a plan would show more of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unmasking {
    /// Columns that somebody would see more of.
    pub columns: usize,
    /// Columns with a mask of the loop, for anybody, before.
    pub of: usize,
}

impl Unmasking {
    /// Counts columns, not entries: one column is one decision of a steward, however many subjects there are.
    pub fn of(plan: &Plan, masked_columns: usize) -> Self {
        let columns: BTreeSet<&ColumnName> =
            plan.changes.iter().filter(|change| change.loosens).map(|change| &change.column).collect();
        Self { columns: columns.len(), of: masked_columns }
    }

    /// Is this more than `share` (0 to 1) of all? One column may always go: of four it would be a quarter.
    pub fn exceeds(self, share: f64) -> bool {
        // Counts of columns are far below what a double holds exactly.
        #[allow(clippy::cast_precision_loss, reason = "see above")]
        let allowed = (self.of as f64 * share).max(1.0);
        #[allow(clippy::cast_precision_loss, reason = "see above")]
        let columns = self.columns as f64;
        columns > allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(column: &str, loosens: bool, why: Why) -> Change {
        let [catalog, schema, table, column] = ["c", "s", "t", column].map(Arc::from);
        let edit =
            if loosens { Edit::Remove { mask: "null".into() } } else { Edit::Add { mask: "null".into() } };
        let column = ColumnName { catalog, schema, table, column };
        Change { subject: "analyst".into(), column, edit, why, loosens }
    }

    #[test]
    fn what_the_catalog_takes_away_waits_its_time() {
        let hold = Duration::from_secs(100);
        let at = |second| SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        let plan = || Plan {
            changes: vec![
                change("new", false, Why::Tag("T".into())),
                change("untagged", true, Why::TagGone),
                change("by_hand", true, Why::Manual),
            ],
            before: 2,
            after: 1,
            ..Plan::default()
        };
        let mut since = MissingSince::new();
        // When, which columns change, how many entries are left.
        let cases: &[(u64, &[&str], usize)] = &[
            (1000, &["new", "by_hand"], 2),
            (1099, &["new", "by_hand"], 2),
            (900, &["new", "by_hand"], 2),
            (1100, &["new", "untagged", "by_hand"], 1),
        ];
        for (second, columns, after) in cases {
            let mut plan = plan();
            let held = hold_back(&mut plan, &mut since, at(*second), hold);
            let found: Vec<&str> = plan.changes.iter().map(|change| &*change.column.column).collect();
            assert_eq!((found.as_slice(), plan.after), (*columns, *after), "at {second}");
            assert!(held.iter().all(|held| held.until == Some(at(1100))));
        }
        // Tagged again meanwhile: the time begins anew.
        hold_back(&mut Plan::default(), &mut since, at(1101), hold);
        assert_eq!(hold_back(&mut plan(), &mut since, at(1102), hold).len(), 1);
        // Held for ever, and not at all.
        let mut forever = plan();
        let held = hold_back(&mut forever, &mut MissingSince::new(), at(0), Duration::MAX);
        assert_eq!((held[0].until, forever.changes.len(), forever.after), (None, 2, 2));
        let mut at_once = plan();
        assert!(hold_back(&mut at_once, &mut MissingSince::new(), at(0), Duration::ZERO).is_empty());
        assert_eq!(at_once.changes.len(), 3);
    }

    #[test]
    fn mass_removal() {
        // Columns, of how many, share, too many?
        let cases = [
            (0, 0, 0.0, false),
            (1, 1, 0.0, false),
            (2, 2, 0.2, true),
            (2, 10, 0.2, false),
            (3, 10, 0.2, true),
            (10, 10, 1.0, false),
            (2, 0, 1.0, true),
        ];
        for (columns, of, share, want) in cases {
            assert_eq!(Unmasking { columns, of }.exceeds(share), want, "{columns} of {of} at {share}");
        }
        let twice = Plan {
            changes: vec![
                change("a", true, Why::TagGone),
                change("a", true, Why::TagGone),
                change("b", false, Why::TagGone),
            ],
            ..Plan::default()
        };
        assert_eq!(Unmasking::of(&twice, 5), Unmasking { columns: 1, of: 5 });
    }
}
