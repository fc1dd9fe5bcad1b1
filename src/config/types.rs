//! Validated settings.
//!
//! Invariant: every value here is usable as it stands.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tracing::level_filters::LevelFilter;

use crate::config::{SecretFile, SourceLimits};
use crate::ids::{ClientUser, SourceName};

#[derive(Clone, Debug)]
pub struct Config {
    pub gateway: Gateway,
    pub sources: Vec<Arc<Source>>,
    pub http: Option<Http>,
    /// Where the policy document is kept; absent: no scopes and no masks.
    pub document: Option<DocumentSection>,
    /// Absent: no bundle is served; `document` and `http` are there whenever it is.
    pub opa: Option<OpaSection>,
    /// The loop, also when it is off; `document` is there whenever it is on.
    pub sync: SyncSection,
    /// Absent: refusals are logged and counted, and nothing is kept.
    pub audit: Option<AuditSection>,
    /// Absent: no configuration policies.
    pub policy: Option<PolicySection>,
    /// Who clients are for policy; empty unless `policy` is there.
    pub workloads: Vec<Workload>,
    pub log: LogFormat,
    /// What is logged unless `RUST_LOG` says otherwise.
    pub log_level: LevelFilter,
}

/// `[gateway]`
#[derive(Clone, Debug)]
pub struct Gateway {
    pub listen: Vec<SocketAddr>,
    pub max_clients: usize,
    /// Sessions of one client user, over all sources; absent: as many as like.
    pub max_clients_per_user: Option<usize>,
    /// How long running statements may finish after SIGTERM.
    pub drain_timeout: Duration,
    /// From accept to ReadyForQuery.
    pub startup_timeout: Duration,
    /// How long a client that does not read may hold up its session before it is closed.
    pub write_timeout: Duration,
    pub tls: Option<GatewayTls>,
    pub auth: Auth,
    pub limits: Limits,
    pub scheduler: Scheduler,
    /// Threads that run sessions; at least one.
    pub worker_threads: usize,
}

/// How sessions are spread over threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheduler {
    /// One runtime a thread; a client and its upstream never leave it.
    PerCore,
    /// One runtime over all threads, which steal tasks from each other.
    WorkStealing,
}

/// What a listener with TLS goes by; PEM files, looked at when the configuration was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// With its chain.
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    /// Who may vouch for clients; absent: no certificate of theirs is asked for.
    pub client_ca: Option<PathBuf>,
}

impl ServerTls {
    /// Every file of it.
    pub fn all(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.certificate, &self.private_key].into_iter().chain(&self.client_ca)
    }
}

#[derive(Clone, Debug)]
pub struct GatewayTls {
    pub files: ServerTls,
    /// Refuse clients that do not ask for TLS.
    pub required: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    /// SCRAM-SHA-256(-PLUS) against verifiers of this file, or a client certificate whose common name is the user.
    Scram { users_file: PathBuf },
    /// The client's own login goes through to the source.
    Relay,
    /// Nobody is asked; loopback only.
    Trust,
}

/// Bounds on what one client may make the gateway hold.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest text that is judged, in bytes.
    pub statement_bytes: usize,
    /// What the tokens of one text may weigh: constants and commas one, all else four.
    pub statement_weight: usize,
    /// Brackets open at the same time in one text.
    pub statement_depth: usize,
    /// Longest message from a client, in bytes (Bind carries parameters).
    pub message_bytes: usize,
    /// Prepared statements and portals of one session.
    pub prepared_statements: usize,
    /// Messages sent upstream and not answered yet, of one session.
    pub pipeline: usize,
}

/// `[[source]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    pub name: SourceName,
    /// Tried in turn; never empty.
    pub hosts: Vec<Host>,
    pub database: String,
    /// The login for sessions, and for the gateway's own queries; sessions use the client's own with `relay`.
    pub login: SourceLogin,
    pub tls: SourceTls,
    pub read_only: bool,
    /// Empty unless `read_only = false`.
    pub writers: Vec<ClientUser>,
    pub trino_catalog: String,
    /// Where the data is, for configuration policies.
    pub geography: Option<String>,
    pub access: Vec<AccessRule>,
    pub engine: Option<Engine>,
    pub pool: PoolSection,
    /// Sessions of clients on this source; absent: as many as like.
    pub max_clients: Option<usize>,
    /// By the gateway's own clock; zero: none.
    pub statement_timeout: Duration,
    /// Pinned at the source; zero: none.
    pub idle_in_transaction_timeout: Duration,
    /// For one host: dial, TLS and authentication together.
    pub connect_timeout: Duration,
    /// How often the function catalogue is loaded again.
    pub catalogue_refresh: Duration,
    /// Which of the hosts sessions that only read are opened at.
    pub target_session: TargetSession,
    /// What clients may ask of it at most.
    pub limits: SourceLimits,
}

/// libpq's `target_session_attrs`. Each session of the gateway is read-only by its own pin, so that `read-write` and
/// `read-only` can mean nothing but primary and standby.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSession {
    Any,
    Primary,
    Standby,
    /// A standby, or the primary when none of the hosts is one.
    PreferStandby,
}

/// `pool` of a source
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSection {
    pub mode: PoolMode,
    /// Sessions at the source at most, those being opened and those of writers among them.
    pub size: usize,
    /// Of them, how many are kept open although no client has them.
    pub min_idle: usize,
    /// How long a client waits for a session.
    pub wait: Duration,
    /// After which a session is not handed out again; zero: never.
    pub lifetime: Duration,
    /// After which one that nobody had is closed, down to `min_idle`; zero: never.
    pub idle_timeout: Duration,
}

/// How long a client has its session at the source, in PgBouncer's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// As long as it is connected.
    Session,
    /// As long as its transaction lasts.
    Transaction,
}

impl Default for PoolSection {
    fn default() -> Self {
        Self {
            mode: PoolMode::Session,
            size: 20,
            min_idle: 2,
            wait: Duration::from_secs(30),
            lifetime: Duration::from_secs(3600),
            idle_timeout: Duration::from_secs(600),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    Tcp {
        host: String,
        port: u16,
    },
    /// The socket file itself, such as `/run/postgresql/.s.PGSQL.5432`.
    Unix {
        path: PathBuf,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceLogin {
    pub user: String,
    pub password: Option<SecretFile>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTls {
    pub mode: TlsMode,
    /// Roots to trust; absent: the system's.
    pub ca: Option<PathBuf>,
}

/// libpq's `sslmode`, less `allow`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

/// Who may use a source, from where. Nobody may unless a rule says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRule {
    pub users: Vec<ClientUser>,
    /// Empty: from anywhere.
    pub cidr: Vec<IpNet>,
    /// Only with a client certificate whose common name is the user.
    pub certificate: bool,
}

/// Query engines that vouch for their end users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Engine {
    pub users: Vec<ClientUser>,
    /// The configured `query.comment-format`, with `$QUERY_ID` and `$USER`.
    pub comment: String,
}

/// `[http]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Http {
    pub listen: SocketAddr,
    pub auth: HttpAuth,
    /// TLS and nothing else; absent: plain HTTP.
    pub tls: Option<ServerTls>,
}

/// Whom the API believes. Health and metrics are everybody's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HttpAuth {
    /// Everybody may do everything; loopback only.
    None,
    Jwt(JwtAuth),
}

/// Bearer tokens (RFC 7519) of one issuer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtAuth {
    pub keys: JwksPlace,
    /// `iss`, to the letter.
    pub issuer: String,
    /// Has to be among the token's `aud`.
    pub audience: String,
    /// Who carries it may change things: in `roles`, `groups` or Keycloak's `realm_access.roles`.
    pub admin_role: String,
}

/// Where the issuer's keys (RFC 7517) are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JwksPlace {
    File(PathBuf),
    Url(String),
}

/// `[document]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DocumentSection {
    pub place: DocumentPlace,
    /// How often it is read.
    pub look_every: Duration,
    /// The key of keyed masks; absent: they show nothing.
    pub mask_key: Option<SecretFile>,
}

/// `[opa]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpaSection {
    /// What OPA has to show; absent: a client certificate.
    pub token: Option<SecretFile>,
    /// Common names of client certificates that count as an OPA's.
    pub certificates: Vec<String>,
    /// The file of the last good bundle.
    pub store: PathBuf,
    /// Is `package trino` ours?
    pub package_trino: bool,
    pub other_catalogs: OtherCatalogs,
    /// System session properties of Trino that anybody may set.
    pub system_session_properties: Vec<String>,
    /// So many OPAs have to enforce a bundle before it counts as enforced.
    pub instances: usize,
    pub silent_after: Duration,
    pub forget_after: Duration,
    pub signing: Option<SigningSection>,
    pub probe: Option<ProbeSection>,
}

/// What is allowed in catalogs that the policy document does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OtherCatalogs {
    Deny,
    Read,
    Allow,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningSection {
    pub algorithm: SigningAlgorithm,
    pub key: SecretFile,
    /// What OPA's configuration calls the key that verifies.
    pub key_id: String,
}

/// RFC 7518, section 3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SigningAlgorithm {
    Hs256,
    Rs256,
    Ps256,
    Es256,
}

/// OPAs that are asked what they enforce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeSection {
    /// Without `/v1/data`.
    pub urls: Vec<String>,
    pub every: Duration,
    /// A bearer token, if they ask for one.
    pub token: Option<SecretFile>,
    /// Roots to trust; absent: the system's.
    pub ca: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DocumentPlace {
    File {
        path: PathBuf,
    },
    ConfigMap {
        namespace: String,
        name: String,
        /// The entry of `data` that holds the document.
        key: String,
        /// Absent: the pod's own service account.
        kubeconfig: Option<PathBuf>,
        /// Of a Lease in the same namespace that spares replicas double work; absent: none is asked for.
        lease: Option<String>,
    },
}

/// `[sync]`
#[derive(Clone, Debug, PartialEq)]
pub struct SyncSection {
    pub enabled: bool,
    /// From the end of one periodic run to the next, give or take a tenth.
    pub interval: Duration,
    /// Never masked by the loop; exactly these names.
    pub admin_subjects: Vec<String>,
    pub tag_to_mask: std::collections::BTreeMap<String, String>,
    /// Enforce labels that nobody confirmed.
    pub enforce_suggested: bool,
    /// The share of masked columns (0 to 1) that a run may unmask without an admin's word.
    pub max_removal: f64,
    /// How long a mask stays after its tag has gone.
    pub removal_delay: Duration,
    /// The key of the catalog's push; absent: pushes are not taken.
    pub webhook_secret: Option<SecretFile>,
    /// How long pushes are gathered before one run for all of them.
    pub webhook_debounce: Duration,
    /// The folder in which published revisions are kept.
    pub history: PathBuf,
    /// How many of them.
    pub history_limit: usize,
    /// There whenever the loop is on.
    pub catalog: Option<CatalogSection>,
}

/// `[sync.catalog]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CatalogSection {
    File { path: PathBuf },
    OpenMetadata(OpenMetadataSection),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenMetadataSection {
    /// Without `/api` and without a slash at its end.
    pub base_url: String,
    /// The bot's JWT, read anew for each cycle.
    pub token: SecretFile,
    /// Roots to trust; absent: the system's.
    pub ca: Option<PathBuf>,
    /// `service` or `service.database`, quoted as OpenMetadata does, to what the policy document calls the catalog.
    pub services: std::collections::BTreeMap<String, String>,
    /// Do the terms of glossaries count as tags, too?
    pub glossaries: bool,
    /// Tables asked for at once.
    pub page_size: usize,
    /// For one request, its answer included.
    pub timeout: Duration,
    /// How often a request is tried again after a 5xx, a 429 or no answer.
    pub retries: usize,
}

/// `[audit]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditSection {
    pub sink: AuditSink,
    /// The folder of what is not delivered yet.
    pub spool: PathBuf,
    /// What the spool may hold, in bytes, and the part of it that is for policy events alone.
    pub spool_limit: u64,
    pub spool_reserve: u64,
    /// Admitted reads, too.
    pub reads: bool,
    /// Runs of the loop as OCSF class 3004 rather than 3007.
    pub entity_management: bool,
    /// Statements that are alike within this time are one event with a count.
    pub window: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuditSink {
    /// Lines are appended; `logrotate` may move the file away.
    File {
        path: PathBuf,
    },
    VictoriaLogs(VictoriaLogsSink),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VictoriaLogsSink {
    /// Without `/insert/jsonline`.
    pub url: String,
    pub account_id: u32,
    pub project_id: u32,
    /// A bearer token, if the way there asks for one.
    pub token: Option<SecretFile>,
    /// Roots to trust; absent: the system's.
    pub ca: Option<PathBuf>,
    pub timeout: Duration,
}

/// `[policy]`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicySection {
    /// Folders of `*.rego`, in the order in which decisions are listed: out-of-the-box, extended, custom.
    pub folders: Vec<PathBuf>,
    /// `infrastructure.json`, in either of its shapes.
    pub infrastructure: Option<PathBuf>,
    /// What attributes and properties there may be; absent: any.
    pub taxonomy: Option<PathBuf>,
    /// Descriptions in the style of FybrikModule.
    pub modules: Vec<PathBuf>,
    pub clusters: Vec<PathBuf>,
    /// Descriptions in the style of FybrikStorageAccount.
    pub storage_accounts: Vec<PathBuf>,
}

/// `[[workload]]`
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Each of them is of one workload only; never empty.
    pub users: Vec<ClientUser>,
    /// Where it runs.
    pub cluster: String,
    /// Texts, numbers, true and false.
    pub properties: std::collections::BTreeMap<String, serde_json::Value>,
    /// Empty: of no set, for which all policies count.
    pub policy_set_id: String,
    /// How it takes data: a protocol, and a format or an empty text; None: whatever there is.
    pub interface: Option<(String, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            statement_bytes: 1 << 20,
            statement_weight: 48 << 10,
            statement_depth: 100,
            message_bytes: 64 << 20,
            prepared_statements: 4096,
            pipeline: 4096,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Host::Tcp { host, port } => write!(f, "{host}:{port}"),
            Host::Unix { path } => write!(f, "{}", path.display()),
        }
    }
}

impl Config {
    pub fn source(&self, name: &str) -> Option<&Arc<Source>> {
        self.sources.iter().find(|source| source.name.as_str() == name)
    }
}

impl Source {
    /// Whether `user`, at `address`, with or without a certificate of that name, may use this source.
    pub fn allows(&self, user: &ClientUser, address: IpAddr, certified: bool) -> bool {
        // On a socket for both families an IPv4 client shows as ::ffff:a.b.c.d.
        let address = address.to_canonical();
        self.access.iter().any(|rule| {
            rule.users.contains(user)
                && (certified || !rule.certificate)
                && (rule.cidr.is_empty() || rule.cidr.iter().any(|net| net.contains(&address)))
        })
    }

    pub fn is_writer(&self, user: &ClientUser) -> bool {
        !self.read_only && self.writers.contains(user)
    }

    pub fn is_engine(&self, user: &ClientUser) -> bool {
        self.engine.as_ref().is_some_and(|engine| engine.users.contains(user))
    }
}
