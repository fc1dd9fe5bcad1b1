//! The numbers of the HTTP side: who was turned away, and what the catalog pushed.
//!
//! Invariant: they stand on the page from the start, with or without an HTTP side.

use prometheus::{IntCounter, IntCounterVec, Opts, Registry};

use super::{ByLabel, Label, register};

label! {
    /// Why the API did not believe somebody.
    HttpRefusal {
        /// No token, or no bearer token.
        Missing = "missing",
        /// A token that is none, or whose signature, issuer, audience or time is wrong.
        Token = "token",
        /// A good token without the admin's role.
        Role = "role",
        /// A page of a browser, or a request to another name, where nobody is asked who they are.
        Origin = "origin",
        /// The issuer's keys could not be had.
        Keys = "keys",
    }
}

label! {
    /// What became of a push of the catalog.
    Push {
        /// The loop was told.
        Taken = "taken",
        /// It is about nothing that masks depend on.
        Irrelevant = "irrelevant",
        /// Its signature is missing or wrong.
        Signature = "signature",
        /// Its body is no event.
        Shape = "shape",
        /// Its body is too long.
        TooLong = "too_long",
        /// Too many of them came at once; the catalog sends it again.
        Busy = "busy",
        /// The loop's queue was full; its timer will see what was missed.
        Missed = "missed",
    }
}

/// The handles of the HTTP side; cheap to clone.
#[derive(Clone)]
pub struct HttpMetrics {
    refusals: ByLabel<HttpRefusal, IntCounter>,
    pushes: ByLabel<Push, IntCounter>,
}

impl HttpMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = |name: &str, help: &str, label: &str| {
            register(registry, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let refusals =
            counters("fedgate_http_refusals_total", "Requests to the API that were not believed.", "reason")?;
        let pushes = counters("fedgate_catalog_pushes_total", "Pushes of the catalog.", "outcome")?;
        Ok(Self {
            refusals: ByLabel::new(|reason| refusals.with_label_values(&[reason])),
            pushes: ByLabel::new(|outcome| pushes.with_label_values(&[outcome])),
        })
    }

    pub fn refused(&self, why: HttpRefusal) {
        self.refusals.inc(why);
    }

    pub fn pushed(&self, outcome: Push) {
        self.pushes.inc(outcome);
    }
}

impl std::fmt::Debug for HttpMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HttpMetrics")
    }
}
