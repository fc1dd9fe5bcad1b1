//! Settings: a text as people write it, then validated types as the rooms use them.
//!
//! Invariant: what `types` holds was checked once, here; no room checks again, and each room gets its
//! own section. Plain data only: nothing here is a live object but [`UsersFile`], which rereads itself.

mod findings;
mod limits;
mod load;
mod quiet;
mod raw;
mod secret;
mod types;
mod users;

pub use findings::{Finding, Severity};
pub use limits::{Amount, BreakerLimits, CostLimit, SourceLimits};
pub use load::ConfigError;
pub use quiet::{QuietHours, Until, quiet_until};
pub use raw::Problem;
pub use secret::{Secret, SecretFile};
pub use types::{
    AccessRule, AuditSection, AuditSink, Auth, CatalogSection, Config, DocumentPlace, DocumentSection,
    Engine, Gateway, GatewayTls, Host, Http, HttpAuth, JwksPlace, JwtAuth, Limits, LogFormat, OpaSection,
    OpenMetadataSection, OtherCatalogs, PolicySection, PoolMode, PoolSection, ProbeSection, Scheduler,
    ServerTls, SigningAlgorithm, SigningSection, Source, SourceLogin, SourceTls, SyncSection, TargetSession,
    TlsMode, VictoriaLogsSink, Workload,
};
pub use users::{
    Look, Users, UsersError, UsersFile, Verifier, VerifierError, check_user_name, line as users_line,
    line_name as users_line_name,
};
