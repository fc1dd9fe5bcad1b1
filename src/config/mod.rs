//! Settings: raw shapes as people write them, then validated types as the rooms use them.
//!
//! Invariant: what `types` holds was checked once, here; no room checks again, and each room gets its
//! own section. Plain data only: nothing here is a live object.

mod secret;
mod types;

pub use secret::{Secret, SecretFile};
pub use types::{
    AccessRule, Auth, Config, Engine, Gateway, GatewayTls, Host, Http, Limits, LogFormat, Scheduler, Source,
    SourceLogin, SourceTls, TlsMode,
};
