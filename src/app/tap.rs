//! `fedgate source pause | resume` and `fedgate clients`: a hand on the tap of a gateway that runs.
//!
//! Invariant: all of it is asked of the gateway's own API, which knows who may; no token stands on a command line, no
//! wait is without a bound.

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use reqwest::{Method, Url};
use serde_json::Value;

use crate::client;
use crate::config::{Config, ConfigError, SecretFile};

/// For one request; the API itself answers a wait of a minute and a half at most.
const REQUEST: Duration = Duration::from_secs(100);
/// How long one request waits for what is under way.
const PORTION: Duration = Duration::from_secs(60);
/// Longest answer.
const ANSWER: usize = 1 << 20;

#[derive(Args)]
pub struct SourceArgs {
    #[command(subcommand)]
    command: SourceCommand,
}

#[derive(Subcommand)]
enum SourceCommand {
    /// Let nothing new begin at a source; what is under way ends as it would.
    ///
    /// New clients and new statements wait, for 30 seconds at most. Transactions that are open go on to their end. The
    /// pause outlives a reload (SIGHUP) and ends with the gateway. Exit code 1: something is still under way.
    Pause {
        /// The source's name in the configuration.
        name: String,
        /// Wait until nothing is under way any more, at most so long ("90s", "10min").
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        wait: Option<Duration>,
        #[command(flatten)]
        gateway: Whom,
    },
    /// Let whoever waits for a paused source go on.
    Resume {
        /// The source's name in the configuration.
        name: String,
        #[command(flatten)]
        gateway: Whom,
    },
}

#[derive(Args)]
pub struct ClientsArgs {
    #[command(subcommand)]
    command: ClientsCommand,
}

#[derive(Subcommand)]
enum ClientsCommand {
    /// List the sessions of clients, the oldest first; a thousand at most.
    List {
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        gateway: Whom,
    },
    /// End one user's sessions, or one session, at once; what they run is cancelled at the source.
    ///
    /// They may come back unless the configuration or the users file keeps them out. Exit code 1: there were none.
    End {
        #[command(flatten)]
        filter: Filter,
        #[command(flatten)]
        gateway: Whom,
    },
}

#[derive(Args)]
struct Filter {
    /// The login at the gateway.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Only on this source.
    #[arg(long, value_name = "NAME")]
    source: Option<String>,
    /// The number that the list gives a session.
    #[arg(long, value_name = "N")]
    id: Option<u64>,
}

/// The gateway that is asked.
#[derive(Args)]
struct Whom {
    /// The configuration of the gateway, whose [http] section says where it is.
    #[arg(long, value_name = "FILE", required_unless_present = "url")]
    config: Option<PathBuf>,
    /// The HTTP side of the gateway, such as http://127.0.0.1:8080.
    #[arg(long, value_name = "URL", conflicts_with = "config")]
    url: Option<Url>,
    /// A file with a bearer token of an admin; not needed where http.auth is "none".
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Roots to trust for https; default: the system's.
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Answer as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum TapError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the configuration has no [http] section, so the gateway has no API")]
    NoHttp,
    #[error("{0} is not the address of an HTTP side; write http://host:port or https://host:port")]
    Url(Url),
    #[error("{}: {error}", path.display())]
    Token { path: PathBuf, error: std::io::Error },
    #[error("{}: what is in it cannot be a token", path.display())]
    TokenText { path: PathBuf },
    #[error(transparent)]
    Client(#[from] client::ClientError),
    #[error("the gateway at {url}: {told}")]
    Unreachable { url: Url, told: String },
    #[error("the gateway says {status}: {detail}")]
    Refused { status: u16, detail: String },
    #[error("the answer of {0} is not fedgate's")]
    Nonsense(Url),
    #[error("name a user or a session: --user NAME or --id N")]
    Everybody,
    #[error("cannot write the answer: {0}")]
    Write(#[from] std::io::Error),
}

/// What a command says by its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Yes,
    No,
}

impl Answer {
    pub fn exit_code(self) -> u8 {
        match self {
            Answer::Yes => 0,
            Answer::No => 1,
        }
    }

    fn of(yes: bool) -> Self {
        if yes { Answer::Yes } else { Answer::No }
    }
}

/// Runs `fedgate source …`; results go to `out`.
///
/// # Errors
/// It could not be answered.
pub async fn source(arguments: &SourceArgs, out: &mut impl Write) -> Result<Answer, TapError> {
    match &arguments.command {
        SourceCommand::Pause { name, wait, gateway } => {
            let api = Api::of(gateway)?;
            let began = Instant::now();
            let wait = wait.unwrap_or_default();
            let answer = loop {
                let left = wait.saturating_sub(began.elapsed());
                let portion = format!("{}ms", left.min(PORTION).as_millis());
                let path = ["sources", name, "pause"];
                let answer = api.ask(Method::POST, &path, &[("wait", portion)]).await?;
                let over = began.elapsed() >= wait;
                if over
                    || number(&answer, "under_way", &api.url)? == 0
                    || field(&answer, "paused_since").is_null()
                {
                    break answer;
                }
            };
            let under_way = number(&answer, "under_way", &api.url)?;
            let paused = !field(&answer, "paused_since").is_null();
            if gateway.json {
                writeln!(out, "{answer}")?;
            } else if paused {
                writeln!(
                    out,
                    "{name} is paused; {under_way} under way, {} waiting",
                    number(&answer, "waiting", &api.url)?
                )?;
                unaudited(&answer, out)?;
            } else {
                writeln!(out, "{name} was resumed by somebody else")?;
            }
            Ok(Answer::of(paused && under_way == 0))
        }
        SourceCommand::Resume { name, gateway } => {
            let api = Api::of(gateway)?;
            let answer = api.ask(Method::POST, &["sources", name, "resume"], &[]).await?;
            if gateway.json {
                writeln!(out, "{answer}")?;
            } else {
                writeln!(out, "{name} is open")?;
            }
            Ok(Answer::Yes)
        }
    }
}

/// Runs `fedgate clients …`; results go to `out`.
///
/// # Errors
/// It could not be answered.
pub async fn clients(arguments: &ClientsArgs, out: &mut impl Write) -> Result<Answer, TapError> {
    match &arguments.command {
        ClientsCommand::List { filter, gateway } => {
            let api = Api::of(gateway)?;
            let answer = api.ask(Method::GET, &["clients"], &filter.query()).await?;
            if gateway.json {
                writeln!(out, "{answer}")?;
                return Ok(Answer::Yes);
            }
            let listed =
                field(&answer, "clients").as_array().ok_or_else(|| TapError::Nonsense(api.url.clone()))?;
            for client in listed {
                let text = |key: &str| field(client, key).as_str().unwrap_or_default().to_owned();
                writeln!(
                    out,
                    "{:>8}  {}  {:<21}  {}  {}",
                    field(client, "id"),
                    text("since"),
                    text("address"),
                    text("source"),
                    text("user")
                )?;
            }
            let total = number(&answer, "total", &api.url)?;
            if total > listed.len() as u64 {
                writeln!(out, "{} of {total} sessions", listed.len())?;
            }
            Ok(Answer::Yes)
        }
        ClientsCommand::End { filter, gateway } => {
            if filter.user.is_none() && filter.id.is_none() {
                return Err(TapError::Everybody);
            }
            let api = Api::of(gateway)?;
            let answer = api.ask(Method::DELETE, &["clients"], &filter.query()).await?;
            let ended = number(&answer, "ended", &api.url)?;
            if gateway.json {
                writeln!(out, "{answer}")?;
            } else {
                writeln!(out, "{ended} session(s) told to end")?;
                unaudited(&answer, out)?;
            }
            Ok(Answer::of(ended > 0))
        }
    }
}

/// Nobody should find out later that it stands nowhere.
fn unaudited(answer: &Value, out: &mut impl Write) -> Result<(), TapError> {
    if field(answer, "audited") == &Value::Bool(false) {
        writeln!(out, "no audit trail has it: there is none, or the gateway's log says why")?;
    }
    Ok(())
}

fn field<'v>(answer: &'v Value, key: &str) -> &'v Value {
    answer.get(key).unwrap_or(&Value::Null)
}

fn number(answer: &Value, key: &str, url: &Url) -> Result<u64, TapError> {
    field(answer, key).as_u64().ok_or_else(|| TapError::Nonsense(url.clone()))
}

impl Filter {
    fn query(&self) -> Vec<(&'static str, String)> {
        let texts = [("user", &self.user), ("source", &self.source)];
        let texts = texts.into_iter().filter_map(|(key, value)| Some((key, value.clone()?)));
        texts.chain(self.id.map(|id| ("id", id.to_string()))).collect()
    }
}

struct Api {
    client: reqwest::Client,
    url: Url,
    token: Option<String>,
}

impl Api {
    fn of(gateway: &Whom) -> Result<Self, TapError> {
        let url = match (&gateway.url, &gateway.config) {
            (Some(url), _) => url.clone(),
            (None, Some(path)) => {
                let http = Config::load(path)?.http.ok_or(TapError::NoHttp)?;
                // Whoever listens everywhere listens here.
                let mut address = http.listen;
                match address.ip() {
                    IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
                    IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
                    _ => {}
                }
                let scheme = if http.tls.is_some() { "https" } else { "http" };
                Url::parse(&format!("{scheme}://{address}")).map_err(|_| TapError::NoHttp)?
            }
            (None, None) => return Err(TapError::NoHttp),
        };
        if !matches!(url.scheme(), "http" | "https") || url.cannot_be_a_base() {
            return Err(TapError::Url(url));
        }
        let token = match &gateway.token_file {
            None => None,
            Some(path) => {
                let file = SecretFile::new(path.clone());
                let token = file.read().map_err(|error| TapError::Token { path: path.clone(), error })?;
                let token = token.expose().trim().to_owned();
                if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
                    return Err(TapError::TokenText { path: path.clone() });
                }
                Some(token)
            }
        };
        let client = client::http(url.as_str(), gateway.tls_ca.as_deref(), REQUEST)?;
        Ok(Self { client, url, token })
    }

    async fn ask(&self, method: Method, path: &[&str], query: &[(&str, String)]) -> Result<Value, TapError> {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["api", "v1"]).extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let mut request = self.client.request(method, url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let failed = |told: String| TapError::Unreachable { url: self.url.clone(), told };
        let answer = request.send().await.map_err(|error| failed(client::told(&error)))?;
        let status = answer.status();
        let body = client::body(answer, ANSWER).await.map_err(|error| failed(error.to_string()))?;
        let body: Option<Value> = serde_json::from_slice(&body).ok();
        if status.is_success() {
            return body.ok_or_else(|| TapError::Nonsense(self.url.clone()));
        }
        let detail = body.as_ref().and_then(|body| field(body, "detail").as_str());
        let detail = detail.unwrap_or("it does not say why").chars().filter(|c| !c.is_control()).collect();
        Err(TapError::Refused { status: status.as_u16(), detail })
    }
}
