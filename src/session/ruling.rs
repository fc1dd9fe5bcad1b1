//! What the configuration policies have decided about reads, as sessions obey it.
//!
//! Invariant: without policies nothing is decided and nobody is refused for it; with them whoever nobody has decided
//! about is refused, and so is whoever may have to see masks that nothing on the way makes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::ids::{ClientUser, SourceName};
use crate::sqlstate::SqlState;
use crate::wire::ClientError;

/// Decisions for every client user and source; replaced whole, never edited.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rulings {
    /// `None`: there are no policies.
    table: Option<HashMap<SourceName, HashMap<ClientUser, Ruling>>>,
    /// Why whoever is not in the table is refused; `None`: nobody has decided about them.
    otherwise: Option<Arc<Why>>,
}

/// What is decided for one client user on one source; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ruling {
    /// Reads are deployed, and masks are made where they have to be.
    Open,
    /// Reads are deployed, and masks would have to be made where nothing makes them: only these end users, who see no
    /// masks, may read.
    Veiled {
        but: Arc<BTreeSet<Box<str>>>,
    },
    Refused(Arc<Why>),
}

/// Why reads are not deployed, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Why {
    /// Such as `policy "read-location" (Deploy read in the workload cluster)`.
    pub reason: Box<str>,
}

impl Rulings {
    /// Under policies, which decide about these and about nobody else.
    pub fn new(decided: impl IntoIterator<Item = (SourceName, ClientUser, Ruling)>) -> Self {
        let mut table: HashMap<SourceName, HashMap<ClientUser, Ruling>> = HashMap::new();
        for (source, user, ruling) in decided {
            table.entry(source).or_default().insert(user, ruling);
        }
        Self { table: Some(table), otherwise: None }
    }

    /// Under policies that have not decided anything: everybody is refused.
    pub fn undecided(reason: &str) -> Self {
        Self { table: Some(HashMap::new()), otherwise: Some(Arc::new(Why { reason: reason.into() })) }
    }

    /// Whatever is refused by either is refused; for the time in which either may count.
    pub fn stricter(&self, other: &Self) -> Self {
        let Some(table) = &self.table else { return other.clone() };
        let Some(others) = &other.table else { return self.clone() };
        let mut both =
            Self { table: None, otherwise: self.otherwise.clone().or_else(|| other.otherwise.clone()) };
        let mut merged: HashMap<SourceName, HashMap<ClientUser, Ruling>> = HashMap::new();
        // Who is in one of them only is refused by the other.
        for (source, users) in table {
            for (user, ruling) in users {
                let Some(against) = others.get(source).and_then(|users| users.get(user)) else { continue };
                merged.entry(source.clone()).or_default().insert(user.clone(), ruling.stricter(against));
            }
        }
        both.table = Some(merged);
        both
    }

    /// What is decided for somebody.
    pub fn of(&self, source: &SourceName, user: &ClientUser) -> Ruling {
        let Some(table) = &self.table else { return Ruling::Open };
        if let Some(ruling) = table.get(source).and_then(|users| users.get(user)) {
            return ruling.clone();
        }
        let nobody = || {
            let reason =
                "no [[workload]] names this user, so no configuration policy deploys reads for it".into();
            Arc::new(Why { reason })
        };
        Ruling::Refused(self.otherwise.clone().unwrap_or_else(nobody))
    }
}

impl Ruling {
    fn stricter(&self, other: &Self) -> Self {
        match (self, other) {
            (Ruling::Refused(_), _) | (_, Ruling::Open) => self.clone(),
            (_, Ruling::Refused(_)) | (Ruling::Open, _) => other.clone(),
            (Ruling::Veiled { but }, Ruling::Veiled { but: too }) => {
                Ruling::Veiled { but: Arc::new(but.intersection(too).cloned().collect()) }
            }
        }
    }

    /// What the client is told at its start, if it may not begin.
    ///
    /// `engine`: it vouches for end users, who are told apart by statement.
    pub(super) fn at_start(&self, source: &SourceName, engine: bool) -> Option<ClientError> {
        let why = match self {
            Ruling::Open => return None,
            Ruling::Veiled { .. } if engine => return None,
            Ruling::Veiled { .. } => VEILED,
            Ruling::Refused(why) => &why.reason,
        };
        let message = format!("permission denied for database \"{source}\"");
        let error = ClientError::fatal(SqlState::INSUFFICIENT_PRIVILEGE, message)
            .detail(format!("Reads are not deployed for this workload: {why}."))
            .hint("Ask whoever keeps the configuration policies.");
        Some(error)
    }

    /// Must a session end that is under way?
    pub(super) fn ends(&self, engine: bool) -> bool {
        match self {
            Ruling::Open => false,
            Ruling::Veiled { .. } => !engine,
            Ruling::Refused(_) => true,
        }
    }

    /// May this end user read?
    pub(super) fn lets_read(&self, end_user: Option<&str>) -> bool {
        match self {
            Ruling::Open => true,
            Ruling::Veiled { but } => end_user.is_some_and(|end_user| but.contains(end_user)),
            Ruling::Refused(_) => false,
        }
    }
}

/// Why somebody is refused where masks cannot be made.
pub(super) const VEILED: &str =
    "the policies put the masking of columns where nothing can do it yet, and this user has masks";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_nobody_has_decided_about_is_refused() {
        let (source, user) = (SourceName::new("s"), ClientUser::new("trino"));
        assert_eq!(Rulings::default().of(&source, &user), Ruling::Open);
        let rulings = Rulings::new([(source.clone(), user.clone(), Ruling::Open)]);
        assert_eq!(rulings.of(&source, &user), Ruling::Open);
        for (source, user) in [("s", "other"), ("other", "trino")] {
            let ruling = rulings.of(&SourceName::new(source), &ClientUser::new(user));
            assert!(matches!(ruling, Ruling::Refused(_)), "{source} {user}");
            assert!(ruling.ends(true) && !ruling.lets_read(Some("anybody")));
            assert!(ruling.at_start(&SourceName::new(source), true).is_some());
        }
    }

    #[test]
    fn of_two_rulings_the_stricter_one_counts() {
        let why = |reason: &str| Ruling::Refused(Arc::new(Why { reason: reason.into() }));
        let veiled = |names: &[&str]| Ruling::Veiled {
            but: Arc::new(names.iter().map(|name| Box::from(*name)).collect()),
        };
        let all = [Ruling::Open, veiled(&["a", "b"]), veiled(&["b", "c"]), why("x")];
        let want = [0, 1, 2, 3, 1, 1, 4, 3, 2, 4, 2, 3, 3, 3, 3, 3];
        let outcomes = [all.as_slice(), &[veiled(&["b"])]].concat();
        for (index, want) in want.into_iter().enumerate() {
            assert_eq!(all[index / 4].stricter(&all[index % 4]), outcomes[want], "{index}");
        }
        let (s, t, u) = (SourceName::new("s"), SourceName::new("t"), ClientUser::new("u"));
        let one = Rulings::new([(s.clone(), u.clone(), Ruling::Open), (t.clone(), u.clone(), Ruling::Open)]);
        let other = Rulings::new([(s.clone(), u.clone(), veiled(&["a"]))]);
        for both in [one.stricter(&other), other.stricter(&one)] {
            assert_eq!(both.of(&s, &u), veiled(&["a"]));
            assert!(both.of(&t, &u).ends(true), "one of them has not decided");
        }
        assert!(one.stricter(&Rulings::undecided("not yet")).of(&s, &u).ends(true));
        assert_eq!(one.stricter(&Rulings::default()), one);
    }

    #[test]
    fn behind_a_veil_only_those_read_who_see_no_masks() {
        let ruling = Ruling::Veiled { but: Arc::new(["root".into()].into()) };
        let source = SourceName::new("s");
        assert!(ruling.lets_read(Some("root")));
        assert!(!ruling.lets_read(Some("alice")) && !ruling.lets_read(None));
        // Who says nothing of end users is nobody who is known to see none.
        assert!(ruling.at_start(&source, false).is_some() && ruling.ends(false));
        assert!(ruling.at_start(&source, true).is_none() && !ruling.ends(true));
    }
}
