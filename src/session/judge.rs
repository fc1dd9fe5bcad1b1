//! The guard as one session sees it: verdicts under the snapshot in force, counted and logged.
//!
//! Invariant: each text is judged under the newest snapshot, and every refusal leaves one line in the
//! log and one count in the metrics, with who was refused and never with what they sent.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::{Notify, watch};

use crate::config;
use crate::guard::{Admitted, Context, Mode, Refusal, Step, Verdict, VerdictCache, judge_parameter_types};
use crate::ids::{ClientUser, EndUser, RefusalClass, StatementClass};
use crate::metrics::SourceMetrics;
use crate::sql::catalogue::Catalogue;
use crate::sql::comment::{self, CommentFormat};
use crate::sql::lexer;
use crate::sqlstate::SqlState;
use crate::wire::ClientError;

/// What verdicts on one source depend on; replaced whole, never edited.
pub struct Snapshot {
    pub config: Arc<config::Source>,
    pub catalogue: Arc<Catalogue>,
    pub limits: crate::sql::Limits,
    /// How the engine's comment names its end users.
    pub comment: Option<CommentFormat>,
    /// Another number for every snapshot that any verdict could differ under.
    pub generation: u64,
}

/// Who is judged.
#[derive(Clone, Debug)]
pub struct Who {
    pub user: ClientUser,
    pub address: SocketAddr,
    /// Proved by a certificate of this name.
    pub certified: bool,
}

pub struct Judge {
    who: Who,
    snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    snapshot: Arc<Snapshot>,
    /// Generation of the snapshot that the session began with.
    began: u64,
    cache: Arc<VerdictCache>,
    metrics: SourceMetrics,
    /// Asks for a newer catalogue, when a function was not known.
    stale: Arc<Notify>,
    /// The source, or this user's access to it, is gone.
    revoked: bool,
}

impl Judge {
    pub fn new(
        who: Who,
        snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
        snapshot: Arc<Snapshot>,
        cache: Arc<VerdictCache>,
        metrics: SourceMetrics,
        stale: Arc<Notify>,
    ) -> Self {
        let began = snapshot.generation;
        Self { who, snapshots, snapshot, began, cache, metrics, stale, revoked: false }
    }

    pub fn mode(&self) -> Mode {
        if self.snapshot.config.is_writer(&self.who.user) { Mode::ReadWrite } else { Mode::ReadOnly }
    }

    pub fn generation(&self) -> u64 {
        self.snapshot.generation
    }

    /// Whether the policy is another one than when the session began.
    pub fn has_changed(&mut self) -> bool {
        self.refresh();
        self.snapshot.generation != self.began
    }

    fn refresh(&mut self) {
        match self.snapshots.has_changed() {
            Ok(false) => {}
            Ok(true) => {
                let newest = self.snapshots.borrow_and_update().clone();
                if let Some(snapshot) = newest {
                    let address = self.who.address.ip().to_canonical();
                    self.revoked |= !snapshot.config.allows(&self.who.user, address, self.who.certified);
                    self.snapshot = snapshot;
                }
            }
            // Nobody keeps this source any more: it is no longer configured.
            Err(_) => self.revoked = true,
        }
    }

    /// Whether a reload has taken the source, or the access to it, from this client: the session must end.
    pub fn is_revoked(&self) -> bool {
        self.revoked
    }

    pub fn verdict(&mut self, sql: &[u8]) -> Arc<Verdict> {
        self.refresh();
        let snapshot = &self.snapshot;
        let context = Context {
            catalogue: &snapshot.catalogue,
            mode: self.mode(),
            limits: &snapshot.limits,
            source: &snapshot.config.name,
        };
        if let Some(verdict) = self.cache.known(sql, &context, snapshot.generation) {
            self.metrics.verdicts.cached.inc();
            return verdict;
        }
        let began = std::time::Instant::now();
        let verdict = self.cache.judge(sql, &context, snapshot.generation);
        self.metrics.verdicts.judged.inc();
        self.metrics.verdicts.seconds.observe(began.elapsed().as_secs_f64());
        self.metrics.verdicts.bytes.set(i64::try_from(self.cache.bytes()).unwrap_or(i64::MAX));
        verdict
    }

    /// Judges the parameter types of a Parse, count and OIDs as they lie.
    pub fn parameter_types(&self, types: &[u8]) -> Result<(), Refusal> {
        let snapshot = &self.snapshot;
        let context = Context {
            catalogue: &snapshot.catalogue,
            mode: self.mode(),
            limits: &snapshot.limits,
            source: &snapshot.config.name,
        };
        judge_parameter_types(types, &context)
    }

    /// Judges a prepared text and its parameters' types again.
    pub fn again(&mut self, sql: &[u8], types: &[u8]) -> Result<(), ClientError> {
        let verdict = self.verdict(sql);
        if let Some(Step::Refuse(refusal)) = verdict.steps.last() {
            return Err(self.refused(sql, refusal));
        }
        self.parameter_types(types).map_err(|refusal| self.refused(sql, &refusal))
    }

    /// Whether a writer's statement is COPY … FROM.
    pub fn is_copy_in(&self, admitted: &Admitted) -> bool {
        admitted.class == StatementClass::Write && self.begins_with(admitted, &["copy"])
    }

    fn begins_with(&self, admitted: &Admitted, words: &[&str]) -> bool {
        let tokens = lexer::utf8(admitted.permit.text()).and_then(|text| {
            Ok(lexer::tokens(text, &self.snapshot.limits)?
                .first()
                .map(|token| words.iter().any(|word| token.is(word))))
        });
        // What cannot be told may be one.
        !matches!(tokens, Ok(Some(false)))
    }

    pub fn count_admitted(&self, class: StatementClass) {
        self.metrics.admitted(class);
    }

    pub fn count_empty(&self) {
        self.metrics.admitted(StatementClass::Empty);
    }

    /// Counts and logs a refusal; what the client is told of it.
    pub fn refused(&self, sql: &[u8], refusal: &Refusal) -> ClientError {
        if refusal.class == RefusalClass::Function {
            self.stale.notify_one();
        }
        let position = refusal.offset.and_then(|offset| {
            let before = std::str::from_utf8(sql.get(..offset)?).ok()?;
            u32::try_from(before.chars().count() + 1).ok()
        });
        let error = ClientError::error(refusal.sqlstate(), refusal.client_message());
        let error = ClientError { detail: refusal.detail.clone(), hint: refusal.hint.clone(), ..error };
        let error = error.position(position);
        self.count_refusal(refusal.class, &error, self.end_user(sql));
        error
    }

    /// One line and one count for something that was not sent on.
    fn count_refusal(&self, class: RefusalClass, error: &ClientError, end_user: Option<EndUser>) {
        self.metrics.refused(class);
        let (end_user, query) = match &end_user {
            Some(end_user) => (Some(&*end_user.user), Some(&*end_user.query)),
            None => (None, None),
        };
        tracing::warn!(
            source = %self.snapshot.config.name,
            user = %self.who.user,
            address = %self.who.address,
            end_user,
            query,
            class = class.as_str(),
            sqlstate = error.sqlstate.as_str(),
            reason = error.message,
            "refused"
        );
    }

    /// The end user whom an engine user's comment names.
    fn end_user(&self, sql: &[u8]) -> Option<EndUser> {
        if !self.snapshot.config.is_engine(&self.who.user) {
            return None;
        }
        comment::end_user(sql, self.snapshot.comment.as_ref()?)
    }

    /// For a name of which nobody knows what it stands for, after the policy has changed.
    pub fn outdated(&self) -> ClientError {
        let error = ClientError::error(
            SqlState::INSUFFICIENT_PRIVILEGE,
            "permission denied for a statement or cursor that was prepared under an older policy",
        )
        .hint("Prepare the statement or declare the cursor again, or reconnect.");
        self.count_refusal(RefusalClass::Unverified, &error, None);
        error
    }
}
