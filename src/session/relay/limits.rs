//! The limits of the source, where the relay meets them: before a message goes upstream, and row by row.
//!
//! Invariant: what a limit refuses goes no further, in the place that PostgreSQL's own error would have; an answer that
//! is cut gives whole rows, one error and then nothing up to its ReadyForQuery.

use super::*;
use crate::ids::{EndUser, RefusalClass};
use crate::session::limits::{self, Cost, Limited, Statement};

/// What the limits say to a message.
pub(super) enum Allowed {
    Yes,
    /// What it would cost is not known yet; the message stays where it is.
    Later,
    No(ClientError),
}

impl<C: AsyncRead + AsyncWrite + Unpin> Relay<C> {
    /// Counts and logs what a limit refuses; what the client is told.
    fn limited(&mut self, limited: Limited, sql: &[u8]) -> ClientError {
        self.works.refused(&limited);
        self.judge.count_refusal(RefusalClass::Limit, &limited.error, sql);
        limited.error
    }

    pub(super) fn has_limits(&self) -> bool {
        self.judge.config().limits.hold_back()
    }

    /// The source with its limits, if it has any; a source without costs nothing here.
    fn limits_in_force(&self) -> Option<Arc<config::Source>> {
        let config = self.judge.config();
        config.limits.hold_back().then(|| Arc::clone(config))
    }

    /// Of a Query, before anything of it is sent.
    pub(super) fn allowed_query(&mut self, sql: &[u8], steps: &[Step]) -> Allowed {
        let Some(config) = self.limits_in_force() else { return Allowed::Yes };
        let admitted = || {
            steps.iter().filter_map(|step| match step {
                Step::Admit(admitted) => Some(admitted),
                Step::Refuse(_) => None,
            })
        };
        for admitted in admitted() {
            // What comes behind it in this text may look names up where this says.
            self.touches(admitted, false);
            if !is_planned(admitted) {
                continue;
            }
            match self.cost_of(&config, &admitted.permit, &admitted.effect) {
                Cost::Fine => {}
                Cost::Wait => return Allowed::Later,
                Cost::TooMuch(limited) => return Allowed::No(self.limited(limited, sql)),
            }
        }
        if !admitted().any(|admitted| works(admitted.class) && limits::works(admitted.permit.text())) {
            return Allowed::Yes;
        }
        let end_user = self.judge.end_user(sql);
        match self.works.admit(&config, end_user.as_ref()) {
            Ok(()) => Allowed::Yes,
            Err(limited) => Allowed::No(self.limited(limited, sql)),
        }
    }

    fn cost_of(&mut self, config: &Arc<config::Source>, permit: &Permit, effect: &Effect) -> Cost {
        let generation = self.judge.generation();
        match effect {
            // Its plan is made anew when names are looked up elsewhere than when it was prepared.
            Effect::Execute { name } if config.limits.cost.is_some() && self.works.path_is_changed() => {
                let Some(meanings) = self.statements.meanings(name.as_bytes()) else {
                    return self.works.unsure(config);
                };
                for prepared in meanings {
                    match self.works.cost(config, &prepared.permit, None, generation) {
                        Cost::Fine => {}
                        other => return other,
                    }
                }
                Cost::Fine
            }
            _ => self.works.cost(config, permit, None, generation),
        }
    }

    /// Of a Parse: what is prepared may be run any number of times, so what it would cost is asked now.
    pub(super) fn allowed_parse(&mut self, parse: &frontend::Parse<'_>, admitted: &Admitted) -> Allowed {
        let Some(config) = self.limits_in_force() else { return Allowed::Yes };
        if config.limits.cost.is_none() || !is_planned(admitted) {
            return Allowed::Yes;
        }
        let generation = self.judge.generation();
        match self.works.cost(&config, &admitted.permit, Some(parse.types), generation) {
            Cost::Fine => Allowed::Yes,
            Cost::Wait => Allowed::Later,
            Cost::TooMuch(limited) => Allowed::No(self.limited(limited, parse.sql)),
        }
    }

    /// Of an Execute.
    pub(super) fn allowed_execute(&mut self, portal: &[u8]) -> Allowed {
        // Nothing was judged for this message: a reload may not be known yet.
        self.judge.refresh();
        let Some(config) = self.limits_in_force() else { return Allowed::Yes };
        let meanings = self.statements.portal_meanings(portal).unwrap_or_default();
        let permit = meanings.last().map(|prepared| prepared.permit.clone());
        let sql = permit.as_ref().map(Permit::text).unwrap_or_default();
        if config.limits.cost.is_some() && self.works.path_is_changed() {
            let generation = self.judge.generation();
            for prepared in &meanings {
                let cost = match &prepared.effect {
                    effect @ Effect::Execute { .. } => self.cost_of(&config, &prepared.permit, effect),
                    _ => self.works.cost(&config, &prepared.permit, Some(&prepared.types), generation),
                };
                match cost {
                    Cost::Fine => {}
                    Cost::Wait => return Allowed::Later,
                    Cost::TooMuch(limited) => return Allowed::No(self.limited(limited, sql)),
                }
            }
        }
        // One that nobody knows counts.
        let counts =
            meanings.is_empty() || meanings.iter().any(|prepared| limits::works(prepared.permit.text()));
        if !counts {
            if let [only] = meanings.as_slice() {
                self.works.touches(&only.permit, &only.effect, true);
            }
            return Allowed::Yes;
        }
        let end_user = self.judge.end_user(sql);
        if let Err(limited) = self.works.admit(&config, end_user.as_ref()) {
            return Allowed::No(self.limited(limited, sql));
        }
        let effect = match meanings.as_slice() {
            [only] => Some(&only.effect),
            _ => None,
        };
        self.works.next(&Statement {
            config: &config,
            end_user: end_user.as_ref(),
            permit: permit.as_ref(),
            effect,
            portal: Some(portal),
        });
        Allowed::Yes
    }

    /// Of a FunctionCall.
    pub(super) fn allowed_call(&mut self) -> Allowed {
        // Nothing was judged for this message: a reload may not be known yet.
        self.judge.refresh();
        let Some(config) = self.limits_in_force() else { return Allowed::Yes };
        if let Err(limited) = self.works.admit(&config, None) {
            return Allowed::No(self.limited(limited, b""));
        }
        let statement =
            Statement { config: &config, end_user: None, permit: None, effect: None, portal: None };
        self.works.next(&statement);
        Allowed::Yes
    }

    /// One admitted statement of a Query is sent next.
    pub(super) fn next_within_limits(&mut self, sql: &[u8], admitted: &Admitted) {
        self.touches(admitted, true);
        let Some(config) = self.limits_in_force() else { return };
        if !works(admitted.class) || !limits::works(admitted.permit.text()) {
            return;
        }
        let end_user: Option<EndUser> = self.judge.end_user(sql);
        self.works.next(&Statement {
            config: &config,
            end_user: end_user.as_ref(),
            permit: Some(&admitted.permit),
            effect: Some(&admitted.effect),
            portal: None,
        });
    }

    /// What limits and estimates hang on may change with this statement; `sent`: now, else whenever it is executed.
    pub(super) fn touches(&mut self, admitted: &Admitted, sent: bool) {
        let cursor = matches!(admitted.effect, Effect::Declare { .. } | Effect::Close { .. });
        if admitted.class == StatementClass::Session || cursor || admitted.sets {
            self.works.touches(&admitted.permit, &admitted.effect, sent);
        }
    }

    /// A row, or what counts as one, comes next; true: it must not be passed on, and nothing behind it.
    pub(super) fn cuts(&mut self, size: usize) -> bool {
        if self.muted {
            return true;
        }
        let Some((limited, permit)) = self.works.row(size) else { return false };
        let sql = permit.as_ref().map(Permit::text).unwrap_or_default();
        let error = self.limited(limited, sql);
        self.edit(|out| error.encode(out));
        self.muted = true;
        self.failed = true;
        if matches!(self.expects.front(), Some(Expect::Execute(_)))
            && !self.expects.iter().any(|expect| matches!(expect, Expect::Sync))
            && self.skip == Skip::No
        {
            // As after an error of the source's own: the client is not heard up to its Sync.
            self.skip = Skip::Upstream;
            self.pipeline = true;
        }
        if self.cancelling.is_none() {
            self.cancel(error);
        }
        true
    }

    /// Asks the source to end what it does, and remembers in which words the client is told.
    pub(super) fn cancel(&mut self, why: ClientError) {
        let source = Arc::clone(&self.source);
        let Some(target) = self.lease.backend().map(|backend| backend.cancel.clone()) else { return };
        let request = Box::pin(async move {
            // The grace period ends the session when the cancel does not arrive.
            let _ = source.cancel(&target).await;
        });
        self.cancelling = Some(Cancelling {
            request: Some(request),
            until: Instant::now() + CANCEL_GRACE,
            why: Box::new(why),
            missed: false,
        });
    }
}

/// What its planner is asked about: reads, and what is prepared to be run later. A writer's writes are not.
fn is_planned(admitted: &Admitted) -> bool {
    match admitted.class {
        StatementClass::Read => true,
        StatementClass::Session => matches!(admitted.effect, Effect::Prepare { .. }),
        StatementClass::Write | StatementClass::Transaction | StatementClass::Empty => false,
    }
}

/// What moves transactions and settings always gets through.
fn works(class: StatementClass) -> bool {
    match class {
        StatementClass::Read | StatementClass::Write => true,
        StatementClass::Transaction | StatementClass::Session | StatementClass::Empty => false,
    }
}
