//! `fedgate policy`: what a gateway would serve to OPA and what configuration policies decide, without one.
//!
//! Invariant: nothing that is in force is changed, and what is written is what the gateway would serve.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::adminconfig::{self, EvalArgs, EvalError, TestArgs};
use super::enforcement::{MakeError, Recipe};
use crate::config::{Config, ConfigError, OpaSection, SigningAlgorithm};
use crate::policy::status::BUNDLE;
use crate::sync::disk;
use crate::sync::publisher::{AnyPublisher, PublishError, Publisher};

#[derive(Args)]
pub struct PolicyArgs {
    #[command(subcommand)]
    command: PolicyCommand,
}

#[derive(Subcommand)]
enum PolicyCommand {
    /// Ask configuration policies about one input: what they decide, and what would be deployed.
    ///
    /// Exit code 1 when they contradict each other, cannot be evaluated, or nothing fits.
    Eval(EvalArgs),
    /// Run cases of configuration policies: inputs, and what is wanted of the answers.
    Test(TestArgs),
    /// Make the bundle of the policy document, and say what an OPA has to be configured with.
    ///
    /// The lines for OPA go to standard output: one service, one token, bundle and status. Exit code 1 when the document
    /// cannot be enforced as it is; then nothing is written.
    Bundle {
        /// The configuration (TOML), with [document] and [opa].
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// Also write the bundle to this file, for an OPA that loads it by hand (opa run --bundle FILE).
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Where OPA reaches the gateway's HTTP side; default: http://fedgate:8080, or https with [http.tls].
        #[arg(long, value_name = "URL")]
        url: Option<String>,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("[opa] and [document] are needed for this; see config/fedgate.toml")]
    NotConfigured,
    #[error(transparent)]
    Document(#[from] PublishError),
    #[error("{0}")]
    Make(String),
    #[error("{}: {error}", path.display())]
    Write { path: PathBuf, error: std::io::Error },
    #[error(transparent)]
    Eval(#[from] EvalError),
    #[error("cannot start: {0}")]
    Start(#[from] std::io::Error),
}

/// What a command says by its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Done,
    /// The document cannot be enforced, or the policies decide nothing that can be.
    No,
}

impl Answer {
    pub fn exit_code(self) -> u8 {
        match self {
            Answer::Done => 0,
            Answer::No => 1,
        }
    }
}

/// # Errors
/// The question could not be answered.
pub fn run(arguments: &PolicyArgs, out: &mut impl Write) -> Result<Answer, PolicyError> {
    let of = |yes: bool| if yes { Answer::Done } else { Answer::No };
    match &arguments.command {
        PolicyCommand::Eval(arguments) => Ok(of(adminconfig::eval(arguments, out)?)),
        PolicyCommand::Test(arguments) => Ok(of(adminconfig::test(arguments, out)?)),
        PolicyCommand::Bundle { config, output, url } => {
            bundle(config, output.as_deref(), url.as_deref(), out)
        }
    }
}

fn bundle(
    path: &Path,
    output: Option<&Path>,
    url: Option<&str>,
    out: &mut impl Write,
) -> Result<Answer, PolicyError> {
    let config = Config::load(path)?;
    let (Some(recipe), Some(document)) = (Recipe::of(&config), &config.document) else {
        return Err(PolicyError::NotConfigured);
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let publisher = AnyPublisher::new(&document.place);
    let published = runtime.block_on(publisher.read())?;
    let bundle = match recipe.make(published.document.policy()) {
        Ok(bundle) => bundle,
        Err(MakeError::Bundle(error)) => {
            writeln!(out, "{error}")?;
            return Ok(Answer::No);
        }
        Err(error) => return Err(PolicyError::Make(error.to_string())),
    };
    if let Some(path) = output {
        // Whole or not at all, and for its owner alone: it may hold the key of keyed masks.
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        disk::replace(path, Path::new(&beside), &bundle.bytes, Some(Permissions::from_mode(0o600)))
            .map_err(|error| PolicyError::Write { path: path.to_owned(), error })?;
    }
    let tls = config.http.as_ref().is_some_and(|http| http.tls.is_some());
    let default = if tls { "https://fedgate:8080" } else { "http://fedgate:8080" };
    let url = url.unwrap_or(default);
    write!(out, "{}", opa_config(&recipe.opa, url, &bundle.revision))?;
    Ok(Answer::Done)
}

/// The lines of OPA's configuration. What is in `<…>` is for people to fill in.
fn opa_config(opa: &OpaSection, url: &str, revision: &str) -> String {
    let url = url.trim_end_matches('/');
    let credentials = if opa.token.is_some() {
        "      bearer:\n        token_path: /run/secrets/fedgate-opa-token\n"
    } else {
        "      client_tls:\n        cert: /run/secrets/opa.crt\n        private_key: /run/secrets/opa.key\n"
    };
    let signing = match &opa.signing {
        None => String::new(),
        Some(signing) => format!("    signing:\n      keyid: {}\n", signing.key_id),
    };
    let keys = match &opa.signing {
        None => String::new(),
        Some(signing) => {
            let (name, what) = match signing.algorithm {
                SigningAlgorithm::Hs256 => ("HS256", "the secret of opa.signing.key_file"),
                SigningAlgorithm::Rs256 => ("RS256", "the public key, in PEM"),
                SigningAlgorithm::Ps256 => ("PS256", "the public key, in PEM"),
                SigningAlgorithm::Es256 => ("ES256", "the public key, in PEM"),
            };
            format!("keys:\n  {}:\n    algorithm: {name}\n    key: <{what}>\n", signing.key_id)
        }
    };
    format!(
        "# For an OPA of its own (opa run --server --config-file FILE); the bundle is at revision\n# {revision}\n\
         services:\n  fedgate:\n    url: {url}/opa\n    credentials:\n{credentials}\
         bundles:\n  {BUNDLE}:\n    service: fedgate\n    resource: bundles/fedgate.tar.gz\n    persist: true\n\
         {signing}    polling:\n      long_polling_timeout_seconds: 30\n      min_delay_seconds: 1\n      max_delay_seconds: 5\n\
         persistence_directory: /var/lib/opa\n\
         status:\n  service: fedgate\n{keys}"
    )
}
