//! Which OPA enforces which bundle, and since when: what proves that a change has reached the engine.
//!
//! Invariant: pure, and the clock is the caller's. An OPA counts as enforcing a bundle by its own report of it and by
//! nothing else; one that fails, lags or has fallen silent keeps the bundle unproved. What is kept is bounded.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::status::Report;
use crate::timestamp;

/// OPAs that are known at the same time.
pub const INSTANCES: usize = 256;
/// Publications that are remembered.
const PUBLICATIONS: usize = 64;

/// When an instance counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// So many OPAs at least have to enforce a bundle before it counts as enforced.
    pub instances: usize,
    /// From an OPA's last report to when it counts as silent.
    pub silent_after: Duration,
    /// From there on nobody waits for it any longer.
    pub forget_after: Duration,
}

/// A bundle that was published, and what became of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Publication {
    /// The bundle's, which OPA reports as `active_revision`.
    pub revision: Arc<str>,
    /// Of the policy document that it was made of.
    pub document: Arc<str>,
    /// When the catalog said what led to it, by the catalog's own clock; `None`: people changed the document, or it is
    /// what was in force at the start.
    #[serde(serialize_with = "timestamp::maybe_millis")]
    pub changed_at: Option<SystemTime>,
    /// When the document was read.
    #[serde(serialize_with = "timestamp::millis")]
    pub read_at: SystemTime,
    #[serde(serialize_with = "timestamp::millis")]
    pub published_at: SystemTime,
    /// When the last of the OPAs reported it, or a later one.
    #[serde(serialize_with = "timestamp::maybe_millis")]
    pub enforced_at: Option<SystemTime>,
    /// From the change to there, in seconds.
    pub lag_seconds: Option<f64>,
}

/// What an OPA does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It enforces the bundle that is served.
    Current,
    /// It enforces another one, or none.
    Lagging,
    /// It reports that it cannot load bundles.
    Failing,
    /// It has not reported for long.
    Silent,
}

/// One OPA, as the API shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Instance {
    pub id: Arc<str>,
    /// The part of the status address behind `/opa/status/`.
    pub partition: Option<Arc<str>>,
    pub labels: BTreeMap<String, String>,
    pub state: State,
    pub revision: Option<Arc<str>>,
    /// When it first reported that revision, by our clock.
    #[serde(serialize_with = "timestamp::maybe_millis")]
    pub since: Option<SystemTime>,
    /// When it took it into use, by its own.
    #[serde(serialize_with = "timestamp::maybe_millis")]
    pub activated_at: Option<SystemTime>,
    #[serde(serialize_with = "timestamp::millis")]
    pub last_report: SystemTime,
    pub error: Option<Arc<str>>,
}

/// How things stand.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    /// Is the newest bundle enforced by every OPA that is known, and by as many as there have to be?
    pub enforced: bool,
    /// How many there have to be.
    pub expected: usize,
    pub instances: Vec<Instance>,
    /// The newest first.
    pub publications: Vec<Publication>,
}

/// A publication that is proved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proved {
    pub revision: Arc<str>,
    pub document: Arc<str>,
    /// From the change to the report of the last OPA.
    pub lag: Duration,
}

/// Counts for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub current: usize,
    pub lagging: usize,
    pub failing: usize,
    pub silent: usize,
}

/// Why a report was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    #[error(
        "{INSTANCES} OPAs report already; whoever restarts one over and over should give it a label of its own"
    )]
    TooMany,
}

#[derive(Debug)]
struct Known {
    report: Report,
    since: Option<SystemTime>,
    last_report: SystemTime,
    /// [`Proof::turn`] when it came.
    turn: u64,
}

/// The books.
#[derive(Debug)]
pub struct Proof {
    rules: Rules,
    /// The revision that is served, and how often it was another one.
    serving: Option<Arc<str>>,
    turn: u64,
    instances: BTreeMap<(Arc<str>, Option<Arc<str>>), Known>,
    /// The newest last.
    publications: VecDeque<Publication>,
    /// What was proved and is not told yet; the oldest are forgotten.
    proved: VecDeque<Proved>,
}

impl Proof {
    pub fn new(rules: Rules) -> Self {
        Self {
            rules,
            serving: None,
            turn: 0,
            instances: BTreeMap::new(),
            publications: VecDeque::new(),
            proved: VecDeque::new(),
        }
    }

    pub fn set_rules(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// From here on this is served; what is known of it comes with [`Proof::published`]. What OPAs reported before says
    /// nothing of it, even where it is the same revision: they may have had another one in between.
    pub fn serves(&mut self, revision: &Arc<str>) {
        if self.serving.as_ref() != Some(revision) {
            self.serving = Some(Arc::clone(revision));
            self.turn += 1;
        }
    }

    /// A bundle is to be had, since its `published_at`. The times that earlier ones and this one took, of those that are
    /// proved now: an OPA may have reported it before it came into the books.
    pub fn published(&mut self, publication: Publication, now: SystemTime) -> Vec<Duration> {
        if self.publications.back().is_some_and(|newest| newest.revision == publication.revision) {
            return Vec::new();
        }
        self.serves(&publication.revision);
        while self.publications.len() >= PUBLICATIONS {
            self.publications.pop_front();
        }
        self.publications.push_back(publication);
        self.settle(now)
    }

    /// An OPA has reported. The times that bundles took which are proved by it.
    ///
    /// # Errors
    /// There are too many of them.
    pub fn reported(&mut self, report: Report, now: SystemTime) -> Result<Vec<Duration>, NotTaken> {
        self.forget(now);
        let key = (Arc::clone(&report.id), report.partition.clone());
        let before = self.instances.get(&key);
        if before.is_none() && self.instances.len() >= INSTANCES {
            return Err(NotTaken::TooMany);
        }
        let same = before.filter(|before| before.report.revision == report.revision);
        let since = match same {
            Some(before) => before.since,
            None => report.revision.is_some().then_some(now),
        };
        self.instances.insert(key, Known { report, since, last_report: now, turn: self.turn });
        Ok(self.settle(now))
    }

    /// Time has passed. What is proved by it: that nobody waits any longer for who has long been silent.
    pub fn tick(&mut self, now: SystemTime) -> Vec<Duration> {
        self.forget(now);
        self.settle(now)
    }

    /// What was proved since this was asked last.
    pub fn take_proved(&mut self) -> Vec<Proved> {
        self.proved.drain(..).collect()
    }

    /// Is the newest bundle enforced by all?
    pub fn enforced(&self, now: SystemTime) -> bool {
        let counts = self.counts(now);
        self.newest().is_some_and(|newest| self.serving.as_ref() == Some(&newest.revision))
            && counts.current >= self.rules.instances.max(1)
            && counts == Counts { current: counts.current, ..Counts::default() }
    }

    pub fn counts(&self, now: SystemTime) -> Counts {
        let mut counts = Counts::default();
        for known in self.instances.values() {
            match self.state(known, now) {
                State::Current => counts.current += 1,
                State::Lagging => counts.lagging += 1,
                State::Failing => counts.failing += 1,
                State::Silent => counts.silent += 1,
            }
        }
        counts
    }

    /// Since when the oldest change waits that is not proved yet.
    pub fn waiting_since(&self) -> Option<SystemTime> {
        self.publications.iter().find(|publication| publication.enforced_at.is_none()).map(base)
    }

    pub fn standing(&self, now: SystemTime) -> Standing {
        let shown = |known: &Known| Instance {
            id: Arc::clone(&known.report.id),
            partition: known.report.partition.clone(),
            labels: known.report.labels.clone(),
            state: self.state(known, now),
            revision: known.report.revision.clone(),
            since: known.since,
            activated_at: known.report.activated_at,
            last_report: known.last_report,
            error: known.report.error.clone(),
        };
        Standing {
            enforced: self.enforced(now),
            expected: self.rules.instances,
            instances: self.instances.values().map(shown).collect(),
            publications: self.publications.iter().rev().cloned().collect(),
        }
    }

    fn newest(&self) -> Option<&Publication> {
        self.publications.back()
    }

    fn state(&self, known: &Known, now: SystemTime) -> State {
        if since(known.last_report, now) > self.rules.silent_after {
            State::Silent
        } else if known.report.error.is_some() {
            State::Failing
        } else if known.report.revision.is_some()
            && known.report.revision == self.serving
            && known.turn == self.turn
        {
            State::Current
        } else {
            State::Lagging
        }
    }

    fn forget(&mut self, now: SystemTime) {
        let patience = self.rules.silent_after + self.rules.forget_after;
        self.instances.retain(|_, known| {
            // Where the clock was set back, silence counts from then.
            known.last_report = known.last_report.min(now);
            since(known.last_report, now) <= patience
        });
    }

    /// Whatever was published before what everybody enforces is enforced or taken back by then.
    fn settle(&mut self, now: SystemTime) -> Vec<Duration> {
        if !self.enforced(now) {
            return Vec::new();
        }
        let mut lags = Vec::new();
        for publication in
            self.publications.iter_mut().filter(|publication| publication.enforced_at.is_none())
        {
            let lag = since(base(publication), now);
            publication.enforced_at = Some(now);
            publication.lag_seconds = Some(lag.as_secs_f64());
            lags.push(lag);
            if self.proved.len() >= PUBLICATIONS {
                self.proved.pop_front();
            }
            self.proved.push_back(Proved {
                revision: Arc::clone(&publication.revision),
                document: Arc::clone(&publication.document),
                lag,
            });
        }
        lags
    }
}

/// Where the time of a publication begins.
fn base(publication: &Publication) -> SystemTime {
    publication.changed_at.unwrap_or(publication.read_at)
}

/// Nothing, when a clock was set back.
fn since(then: SystemTime, now: SystemTime) -> Duration {
    now.duration_since(then).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000 + seconds)
    }

    fn proof(instances: usize) -> Proof {
        Proof::new(Rules {
            instances,
            silent_after: Duration::from_secs(60),
            forget_after: Duration::from_secs(600),
        })
    }

    fn publication(revision: &str, changed: Option<u64>, published: u64) -> Publication {
        Publication {
            revision: revision.into(),
            document: format!("of {revision}").into(),
            changed_at: changed.map(at),
            read_at: at(published),
            published_at: at(published),
            enforced_at: None,
            lag_seconds: None,
        }
    }

    fn report(id: &str, revision: Option<&str>, error: Option<&str>) -> Report {
        Report {
            id: id.into(),
            partition: None,
            labels: BTreeMap::new(),
            revision: revision.map(Into::into),
            activated_at: None,
            error: error.map(Into::into),
        }
    }

    fn seconds(list: &[u64]) -> Vec<Duration> {
        list.iter().copied().map(Duration::from_secs).collect()
    }

    #[test]
    fn the_last_of_all_proves_it() {
        let mut proof = proof(2);
        assert_eq!(proof.published(publication("a", Some(0), 1), at(1)), seconds(&[]));
        assert_eq!(proof.reported(report("one", Some("a"), None), at(2)), Ok(seconds(&[])));
        assert!(!proof.enforced(at(2)), "two are expected");
        assert_eq!(proof.reported(report("two", None, None), at(3)), Ok(seconds(&[])));
        assert_eq!(proof.reported(report("two", Some("a"), None), at(4)), Ok(seconds(&[4])));
        assert!(proof.enforced(at(4)));
        assert_eq!(proof.reported(report("two", Some("a"), None), at(5)), Ok(seconds(&[])), "said once");
        let proved = proof.take_proved();
        assert_eq!(
            proved.iter().map(|one| (&*one.revision, one.lag)).collect::<Vec<_>>(),
            [("a", seconds(&[4])[0])]
        );
        assert_eq!(proof.take_proved(), []);
        let standing = proof.standing(at(5));
        assert_eq!(standing.publications[0].lag_seconds, Some(4.0));
        assert_eq!(
            standing.instances.iter().map(|one| one.since).collect::<Vec<_>>(),
            [Some(at(2)), Some(at(4))]
        );
    }

    #[test]
    fn what_an_opa_reports_before_it_is_in_the_books_is_not_proved_before_the_report() {
        let mut proof = proof(1);
        proof.serves(&"a".into());
        assert_eq!(proof.reported(report("one", Some("a"), None), at(4)), Ok(seconds(&[])));
        assert_eq!(proof.published(publication("a", Some(0), 1), at(5)), seconds(&[5]));
        assert_eq!(proof.standing(at(5)).publications[0].enforced_at, Some(at(5)));
        // From the moment that another one can be had, this one proves nothing.
        proof.serves(&"b".into());
        assert!(!proof.enforced(at(5)));
        assert_eq!(proof.counts(at(5)), Counts { lagging: 1, ..Counts::default() });
    }

    #[test]
    fn what_comes_back_is_proved_by_a_report_after_it() {
        let mut proof = proof(1);
        proof.published(publication("a", None, 0), at(0));
        proof.reported(report("one", Some("a"), None), at(1)).unwrap();
        assert!(proof.enforced(at(1)));
        proof.published(publication("b", None, 2), at(2));
        // It may have taken b, and not have told so yet.
        assert_eq!(proof.published(publication("a", None, 3), at(3)), seconds(&[]));
        assert!(!proof.enforced(at(3)));
        assert_eq!(proof.reported(report("one", Some("b"), None), at(4)), Ok(seconds(&[])));
        assert_eq!(proof.reported(report("one", Some("a"), None), at(5)), Ok(seconds(&[3, 2])));
        assert!(proof.enforced(at(5)));
        // The same again is no other bundle.
        proof.serves(&"a".into());
        assert!(proof.enforced(at(5)));
    }

    #[test]
    fn two_on_different_revisions_prove_nothing() {
        let mut proof = proof(1);
        proof.published(publication("a", None, 0), at(0));
        proof.reported(report("one", Some("a"), None), at(0)).unwrap();
        proof.published(publication("b", Some(10), 11), at(11));
        assert_eq!(proof.waiting_since(), Some(at(10)));
        proof.reported(report("two", Some("a"), None), at(12)).unwrap();
        proof.reported(report("one", Some("b"), None), at(12)).unwrap();
        assert!(!proof.enforced(at(12)));
        assert_eq!(proof.counts(at(12)), Counts { current: 1, lagging: 1, ..Counts::default() });
        // What is superseded before everybody has it is proved with what came after it.
        proof.published(publication("c", Some(13), 14), at(14));
        proof.reported(report("one", Some("c"), None), at(15)).unwrap();
        assert_eq!(proof.reported(report("two", Some("c"), None), at(20)), Ok(seconds(&[10, 7])));
        assert_eq!(proof.waiting_since(), None);
    }

    #[test]
    fn who_fails_or_is_silent_is_no_proof_until_forgotten() {
        let mut proof = proof(1);
        proof.published(publication("a", None, 0), at(0));
        proof.reported(report("one", Some("a"), None), at(1)).unwrap();
        proof.reported(report("two", Some("a"), Some("bundle_error")), at(1)).unwrap();
        assert!(!proof.enforced(at(1)));
        for second in (10..=650).step_by(10) {
            proof.reported(report("one", Some("a"), None), at(second)).unwrap();
            assert!(!proof.enforced(at(second)), "{second}");
        }
        assert_eq!(proof.counts(at(650)).silent, 1);
        proof.reported(report("one", Some("a"), None), at(670)).unwrap();
        assert!(proof.enforced(at(670)));
        // Nobody is left: nothing is proved.
        assert!(!proof.enforced(at(740)));
        proof.tick(at(2000));
        assert!(proof.standing(at(2000)).instances.is_empty());
    }

    #[test]
    fn the_books_are_bounded() {
        let mut proof = proof(1);
        for number in 0..1000 {
            proof.published(publication(&number.to_string(), None, number), at(number));
        }
        assert_eq!(proof.standing(at(0)).publications.len(), PUBLICATIONS);
        for number in 0..INSTANCES {
            proof.reported(report(&number.to_string(), None, None), at(0)).unwrap();
        }
        assert_eq!(proof.reported(report("more", None, None), at(1)), Err(NotTaken::TooMany));
        assert_eq!(proof.reported(report("0", None, None), at(1)), Ok(Vec::new()));
        assert!(proof.reported(report("more", None, None), at(1000)).is_ok(), "those are forgotten");
    }

    #[test]
    fn a_clock_that_was_set_back_harms_nobody() {
        let mut proof = proof(1);
        proof.published(publication("a", Some(100), 90), at(90));
        assert_eq!(proof.reported(report("one", Some("a"), None), at(80)), Ok(seconds(&[0])));
        assert!(proof.enforced(at(10)));
        // Nor does it hide that an OPA has gone.
        proof.tick(at(10));
        proof.tick(at(71));
        assert_eq!(proof.counts(at(71)), Counts { silent: 1, ..Counts::default() });
    }
}
