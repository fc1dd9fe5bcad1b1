//! A plan as people read it.
//!
//! Invariant: what lets somebody see more stands first.

use std::fmt;

use crate::document::OneLine;

use super::{Change, Edit, Plan, Shadowed, Unplanned, Why};

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Tag(tag) => write!(f, "tagged {}", OneLine(tag)),
            Why::TagGone => f.write_str("no tag of the map is on the column any longer"),
            Why::ColumnGone => f.write_str("the column is no longer in the catalog"),
            Why::TableGone => f.write_str("the table is no longer in the catalog"),
            Why::OutOfScope => f.write_str("the table is no longer in the subject's scopes"),
            Why::Exempt => f.write_str("the subject is an admin subject"),
            Why::Manual => f.write_str("an entry made by hand stands there now"),
            Why::Rollback(revision) => write!(f, "as it was in revision {revision}"),
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (subject, column, why) = (OneLine(&self.subject), &self.column, &self.why);
        match &self.edit {
            Edit::Add { mask } => write!(f, "+ {subject}: {column} {mask} ({why})"),
            Edit::Replace { from, to } => write!(f, "~ {subject}: {column} {from} -> {to} ({why})"),
            Edit::Remove { mask } => write!(f, "- {subject}: {column} {mask} ({why})"),
        }
    }
}

impl fmt::Display for Shadowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { column, automatic, manual, weaker, .. } = self;
        let (subject, tag) = (OneLine(&self.subject), OneLine(&self.tag));
        write!(f, "= {subject}: {column} {manual} by hand, where {tag} asks for {automatic}")?;
        if *weaker { f.write_str(", which shows less") } else { Ok(()) }
    }
}

impl fmt::Display for Unplanned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tag = OneLine(self.tag());
        match self {
            Unplanned::MissingMask { mask, columns, .. } => write!(
                f,
                "! {tag}: mask_library has no mask {mask:?}, so {columns} column(s) stay as they are; add it there, or \
                 change the tag's line in [sync.tag_to_mask]"
            ),
            Unplanned::Unnameable { columns, .. } => write!(
                f,
                "! {tag}: {columns} column(s) have a name that the policy document cannot hold (empty, longer than 1024 \
                 bytes, or with a NUL), in themselves or in their table; they stay unmasked until they are renamed"
            ),
            Unplanned::Suggested { column, .. } => {
                write!(f, "? {column}: {tag} is suggested and waits for somebody to confirm it")
            }
            Unplanned::Disabled { columns, .. } => {
                write!(f, "? {tag}: its classification is disabled; {columns} column(s) carry it")
            }
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let missing =
            |line: &&Unplanned| matches!(line, Unplanned::MissingMask { .. } | Unplanned::Unnameable { .. });
        let section = |f: &mut fmt::Formatter<'_>, title: &str, lines: &[&dyn fmt::Display]| {
            if lines.is_empty() {
                return Ok(());
            }
            writeln!(f, "{title} ({}):", lines.len())?;
            lines.iter().try_for_each(|line| writeln!(f, "  {line}"))
        };
        let changes = |loosens: bool| -> Vec<&dyn fmt::Display> {
            let these = self.changes.iter().filter(|change| change.loosens == loosens);
            these.map(|change| change as &dyn fmt::Display).collect()
        };
        let unplanned = |of_missing: bool| -> Vec<&dyn fmt::Display> {
            let these = self.unplanned.iter().filter(|line| missing(line) == of_missing);
            these.map(|line| line as &dyn fmt::Display).collect()
        };
        let shadowed: Vec<&dyn fmt::Display> =
            self.shadowed.iter().map(|line| line as &dyn fmt::Display).collect();
        section(f, "UNMASKS", &changes(true))?;
        section(f, "cannot be planned", &unplanned(true))?;
        section(f, "changes that show no more", &changes(false))?;
        section(f, "left to entries made by hand", &shadowed)?;
        section(f, "not enforced", &unplanned(false))?;
        let Self { tables, before, after, .. } = self;
        let unmasked = self.changes.iter().filter(|change| change.loosens).count();
        let changed = self.changes.len();
        writeln!(
            f,
            "{tables} table(s) read; automatic masks: {before} before, {after} after; {changed} change(s), {unmasked} of \
             them unmask"
        )
    }
}
