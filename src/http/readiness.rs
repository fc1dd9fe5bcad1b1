//! Whether clients should be sent here.
//!
//! Invariant: a gateway that can serve at least one source is ready; what is down behind it is
//! said all the same.
//!
//! One source that is down must not take the gateway out of service for the clients of all the
//! others, who would then lose what works; its own clients get 57P03 and are told why. When no
//! source can be reached, nobody can be served here, and another replica may do better. A source
//! that nobody has asked yet counts as reachable: with sessions opened on demand, a gateway that
//! waited for the first client before it let any client in would wait for ever.

use serde::Serialize;

use crate::status::{GatewayStatus, Phase, Reach};

/// The answer of `/readyz`.
#[derive(Debug, Serialize)]
pub struct Readiness {
    pub ready: bool,
    /// What is wrong; may be there when `ready` is true, but never missing when it is not.
    pub reasons: Vec<Reason>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// Absent: the gateway itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    pub reason: &'static str,
}

impl Readiness {
    pub fn of(status: &GatewayStatus) -> Self {
        let mut reasons = Vec::new();
        match status.phase {
            Phase::Starting => reasons.push(Reason { source: None, reason: "starting" }),
            Phase::Draining => reasons.push(Reason { source: None, reason: "draining" }),
            Phase::Ready => {}
        }
        let mut down = 0;
        for source in &status.sources {
            if let Reach::Down { fault, .. } = &source.reach {
                down += 1;
                reasons.push(Reason { source: Some(source.name.clone()), reason: fault.as_str() });
            }
        }
        let some_source = status.sources.is_empty() || down < status.sources.len();
        Self { ready: status.phase == Phase::Ready && some_source, reasons }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::SourceName;
    use crate::status::{Fault, Status};

    #[test]
    fn one_source_is_enough_and_none_is_not() {
        let status = Status::new();
        let ready = || Readiness::of(&status.subscribe().borrow()).ready;
        let reporters = ["a", "b"].map(|name| status.source(&SourceName::new(name), true));
        assert!(!ready(), "starting");
        status.set_phase(Phase::Ready);
        assert!(ready());
        reporters[0].down(Fault::Timeout, "");
        assert!(ready());
        let reasons = Readiness::of(&status.subscribe().borrow()).reasons;
        assert_eq!(reasons, [Reason { source: Some("a".into()), reason: "does not answer in time" }]);
        reporters[1].down(Fault::Unreachable, "");
        assert!(!ready());
        reporters[0].up("17.2");
        assert!(ready());
        status.set_phase(Phase::Draining);
        assert!(!ready());
    }
}
