//! Health, metrics and the API.
//!
//! Invariant: this room sees handles and receivers only: all that it can do to a source or a session is to
//! pause the one and to tell the other to go, and nothing it answers names a host, a login at a source or a
//! secret.

mod api;
mod brisk;
mod deployments;
mod jwks;
mod jwt;
mod loop_view;
mod masks;
mod opa;
mod origin;
mod peer;
mod problem;
mod readiness;
mod server;
mod tap;

pub use api::{description, no_bundle, no_loop, open_door};
pub use deployments::{Asker, DeploymentView, DeploymentsView, PolicyFault, no_policies};
pub use jwks::{Key, KeyError, Keys};
pub use jwt::{Door, Issuer};
pub use loop_view::{SyncView, config_view, report_json};
pub use opa::{BundleFault, OpaView, ProbeResult, ProofBook, Served};
pub use peer::acceptor;
pub use readiness::{Readiness, Reason};
pub use server::{Parts, router, serve};
pub use tap::{TapView, no_tap};
