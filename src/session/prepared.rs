//! What a session has prepared, so that a statement runs under the policy of now and not of then.
//!
//! Invariant: a name stands for every text that it may mean at the source, whichever of the messages
//! under way succeed; when the policy has changed since, all of them must be admitted again.

use std::collections::HashMap;

use super::judge::Judge;
use crate::config::Limits;
use crate::guard::{Effect, Permit};
use crate::sqlstate::SqlState;
use crate::wire::ClientError;

/// Texts that one name may mean at the same time; more than two take a client that errs on purpose.
const MEANINGS: usize = 8;
/// Bytes of prepared texts that one session may make the gateway keep, in longest statements.
const LONGEST_STATEMENTS: usize = 16;

/// An admitted text, and when it was admitted.
#[derive(Clone, Debug)]
pub(super) struct Prepared {
    pub(super) permit: Permit,
    pub(super) generation: u64,
}

#[derive(Debug, Default)]
struct Slot {
    meanings: Vec<Prepared>,
    /// Counts the texts given to this name, so that a late CloseComplete does not take a newer one.
    epoch: u64,
}

#[derive(Debug)]
pub(super) struct Statements {
    unnamed: Option<Prepared>,
    named: HashMap<Box<[u8]>, Slot>,
    unnamed_portal: Vec<Prepared>,
    portals: HashMap<Box<[u8]>, Vec<Prepared>>,
    bytes: usize,
    most: usize,
    most_bytes: usize,
}

impl Statements {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            unnamed: None,
            named: HashMap::new(),
            unnamed_portal: Vec::new(),
            portals: HashMap::new(),
            bytes: 0,
            most: limits.prepared_statements,
            most_bytes: limits.statement_bytes.saturating_mul(LONGEST_STATEMENTS),
        }
    }

    /// A Parse or SQL PREPARE under way.
    pub(super) fn parse(&mut self, name: &[u8], prepared: Prepared) -> Result<(), ClientError> {
        if name.is_empty() {
            self.unnamed = Some(prepared);
            return Ok(());
        }
        let size = prepared.permit.text().len() + name.len();
        let known = self.named.contains_key(name);
        if (!known && self.named.len() >= self.most) || self.bytes + size > self.most_bytes {
            return Err(too_many());
        }
        let slot = self.named.entry(name.into()).or_default();
        if slot.meanings.iter().any(|other| other.permit.text() == prepared.permit.text()) {
            slot.epoch += 1;
            return Ok(());
        }
        if slot.meanings.len() >= MEANINGS {
            return Err(too_many());
        }
        slot.epoch += 1;
        slot.meanings.push(prepared);
        self.bytes += size;
        Ok(())
    }

    /// A Close under way; the answer goes to [`Self::closed`].
    pub(super) fn closing(&self, name: &[u8]) -> Option<Box<(Box<[u8]>, u64)>> {
        let slot = self.named.get(name)?;
        Some(Box::new((name.into(), slot.epoch)))
    }

    pub(super) fn closed(&mut self, name: &[u8], epoch: u64) {
        if self.named.get(name).is_some_and(|slot| slot.epoch == epoch) {
            self.forget(name);
        }
    }

    fn forget(&mut self, name: &[u8]) {
        if let Some(slot) = self.named.remove(name) {
            let size: usize = slot.meanings.iter().map(|one| one.permit.text().len() + name.len()).sum();
            self.bytes = self.bytes.saturating_sub(size);
        }
    }

    /// A DEALLOCATE or DISCARD ALL that succeeded.
    pub(super) fn deallocated(&mut self, effect: &Effect) {
        match effect {
            Effect::Deallocate { name } => self.forget(name.as_bytes()),
            Effect::DeallocateAll => {
                self.named.clear();
                self.bytes = 0;
            }
            Effect::None
            | Effect::Prepare { .. }
            | Effect::Execute { .. }
            | Effect::ApplicationName { .. } => {}
        }
    }

    /// A Bind: the portal will mean whatever the statement means, as long as that is still admitted.
    pub(super) fn bind(
        &mut self,
        statement: &[u8],
        portal: &[u8],
        judge: &mut Judge,
    ) -> Result<(), ClientError> {
        self.still_admitted(statement, judge)?;
        let meanings: Vec<Prepared> = if statement.is_empty() {
            self.unnamed.iter().cloned().collect()
        } else {
            self.named.get(statement).map(|slot| slot.meanings.clone()).unwrap_or_default()
        };
        if portal.is_empty() {
            self.unnamed_portal = meanings;
            return Ok(());
        }
        if !self.portals.contains_key(portal) && self.portals.len() >= self.most {
            return Err(too_many());
        }
        // A portal of this name that is still open makes the source refuse the Bind and stays what it is.
        let known = self.portals.entry(portal.into()).or_default();
        if known.len() + meanings.len() > MEANINGS {
            return Err(too_many());
        }
        known.extend(meanings);
        Ok(())
    }

    /// An Execute of a portal.
    pub(super) fn execute(&self, portal: &[u8], judge: &mut Judge) -> Result<(), ClientError> {
        if !judge.has_changed() {
            return Ok(());
        }
        let meanings = if portal.is_empty() {
            Some(&self.unnamed_portal).filter(|meanings| !meanings.is_empty())
        } else {
            self.portals.get(portal)
        };
        admit_again(meanings.map(Vec::as_slice), judge)
    }

    /// A Bind or EXECUTE of a statement.
    pub(super) fn still_admitted(&self, statement: &[u8], judge: &mut Judge) -> Result<(), ClientError> {
        if !judge.has_changed() {
            return Ok(());
        }
        let meanings = if statement.is_empty() {
            self.unnamed.as_ref().map(std::slice::from_ref)
        } else {
            self.named.get(statement).map(|slot| slot.meanings.as_slice())
        };
        admit_again(meanings, judge)
    }

    /// Portals do not outlive their transaction; `settled`: no Bind is under way either.
    pub(super) fn transaction_ended(&mut self, settled: bool) {
        if settled && !self.portals.is_empty() {
            self.portals.clear();
        }
    }
}

/// `None`: nobody knows what the name means; then it cannot be judged under the new policy.
fn admit_again(meanings: Option<&[Prepared]>, judge: &mut Judge) -> Result<(), ClientError> {
    let Some(meanings) = meanings else {
        return Err(judge.outdated());
    };
    for prepared in meanings {
        if prepared.generation != judge.generation() {
            judge.again(prepared.permit.text())?;
        }
    }
    Ok(())
}

fn too_many() -> ClientError {
    ClientError::error(
        SqlState::CONFIGURATION_LIMIT_EXCEEDED,
        "too many prepared statements or portals in this session",
    )
    .hint("Close those that are not needed any more, or use DEALLOCATE ALL.")
}
