//! The numbers of the configuration policies.
//!
//! Invariant: they stand on the page from the start, with or without `[policy]`, and are all zero without it.

use prometheus::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::{ByLabel, Label, Outcome, register};

label! {
    /// What policies decide about reads of a source by a workload.
    DeploymentState {
        Deployed = "deployed",
        Refused = "refused",
        /// Deployed, and masks would have to be made where nothing makes them: those who have masks are refused.
        Veiled = "veiled",
    }
}

/// The handles; cheap to clone.
#[derive(Clone)]
pub struct PolicyMetrics {
    /// `fedgate_config_policies_fault`
    pub fault: IntGauge,
    reloads: ByLabel<Outcome, IntCounter>,
    deployments: ByLabel<DeploymentState, IntGauge>,
}

impl PolicyMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let reloads = register(
            registry,
            IntCounterVec::new(
                Opts::new(
                    "fedgate_config_policies_reloads_total",
                    "Readings of changed configuration policies.",
                ),
                &["outcome"],
            ),
        )?;
        let deployments = register(
            registry,
            IntGaugeVec::new(
                Opts::new(
                    "fedgate_deployments",
                    "Pairs of a source and a workload, by what policies decide about reads.",
                ),
                &["state"],
            ),
        )?;
        Ok(Self {
            fault: register(
                registry,
                IntGauge::new(
                    "fedgate_config_policies_fault",
                    "1 when the configuration policies cannot be taken as they are now, or give no answer for somebody.",
                ),
            )?,
            reloads: ByLabel::new(|outcome| reloads.with_label_values(&[outcome])),
            deployments: ByLabel::new(|state| deployments.with_label_values(&[state])),
        })
    }

    pub fn reloaded(&self, outcome: Outcome) {
        self.reloads.inc(outcome);
    }

    pub fn deployed(&self, deployed: usize, refused: usize, veiled: usize) {
        let counts = [
            (DeploymentState::Deployed, deployed),
            (DeploymentState::Refused, refused),
            (DeploymentState::Veiled, veiled),
        ];
        for (state, count) in counts {
            if let Some(gauge) = self.deployments.get(state) {
                gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
            }
        }
    }
}

impl std::fmt::Debug for PolicyMetrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PolicyMetrics")
    }
}
