//! `[gateway]`: where clients come in, how they prove who they are, what they may make the gateway hold.
//!
//! Invariant: a section comes out only when no problem was noted in it.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use super::files::server_tls;
use super::{Context, DAY, Loader, SECOND, socket_address};
use crate::config::raw::{Found, Section};
use crate::config::users::Users;
use crate::config::{Auth, Gateway, GatewayTls, Limits, Scheduler};

impl Loader<'_> {
    pub(super) fn gateway(&self, mut section: Section<'_, '_>, context: &mut Context) -> Option<Gateway> {
        let listen = self.listen(&mut section);
        let max_clients = section.count("max_clients", 10_000, 1, 1_000_000);
        let max_clients_per_user = section
            .has("max_clients_per_user")
            .then(|| section.count("max_clients_per_user", max_clients, 1, 1_000_000));
        let drain_timeout = section.duration("drain_timeout", Duration::from_secs(30), Duration::ZERO, DAY);
        let startup_timeout = section.duration(
            "startup_timeout",
            Duration::from_secs(10),
            SECOND / 10,
            Duration::from_secs(600),
        );
        let write_timeout = section.duration("write_timeout", Duration::from_secs(600), SECOND / 10, DAY);
        let had_tls = section.has("tls");
        let tls = section.section("tls").and_then(|tls| self.gateway_tls(tls));
        // A section that is wrong in itself is reported once, not again by each rule that needs it.
        context.client_certificates = tls.as_ref().map_or(had_tls, |tls| tls.files.client_ca.is_some());
        let auth = match section.section("auth") {
            Some(auth) => self.auth(auth, &listen),
            None => {
                if !section.has("auth") {
                    section.missing("auth", "write [gateway.auth] with method = \"scram\" and users_file");
                }
                None
            }
        };
        context.relayed = auth == Some(Auth::Relay);
        let limits = section.section("limits").map(limits).unwrap_or_default();
        let scheduler = section
            .word(
                "scheduler",
                &[("per-core", Scheduler::PerCore), ("work-stealing", Scheduler::WorkStealing)],
            )
            .map_or(Scheduler::PerCore, |found| found.value);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let worker_threads = section.count("worker_threads", cores, 1, 1024);
        section.finish();
        Some(Gateway {
            listen: listen.into_iter().map(|found| found.value).collect(),
            max_clients,
            max_clients_per_user,
            drain_timeout,
            startup_timeout,
            write_timeout,
            tls,
            auth: auth?,
            limits,
            scheduler,
            worker_threads,
        })
    }

    fn listen(&self, section: &mut Section<'_, '_>) -> Vec<Found<SocketAddr>> {
        if !section.has("listen") {
            section.missing("listen", "write listen = [\"127.0.0.1:15432\"]");
        }
        let Some(texts) = section.texts("listen") else { return Vec::new() };
        if texts.value.is_empty() {
            section.problem("listen", "must name at least one address");
        }
        let mut seen = HashSet::new();
        texts
            .value
            .into_iter()
            .filter_map(|text| {
                let address = socket_address(section.reader, &text)?;
                // Port 0 asks for any free one, and may be asked for twice.
                if address.port() != 0 && !seen.insert(address) {
                    section.reader.problem(&text.place, "is listed twice");
                }
                Some(Found { value: address, place: text.place })
            })
            .collect()
    }

    fn gateway_tls(&self, mut section: Section<'_, '_>) -> Option<GatewayTls> {
        let files = server_tls(&mut section, self.base);
        let required = section.boolean_or("required", false);
        section.finish();
        Some(GatewayTls { files: files?, required })
    }

    fn auth(&self, mut section: Section<'_, '_>, listen: &[Found<SocketAddr>]) -> Option<Auth> {
        #[derive(Clone, Copy)]
        enum Method {
            Scram,
            Relay,
            Trust,
        }
        for key in ["jwks_file", "jwks_url", "issuer", "audience"] {
            section.unsupported(key);
        }
        if !section.has("method") {
            section.missing("method", "one of scram, relay, trust");
        }
        let method = section
            .word("method", &[("scram", Method::Scram), ("relay", Method::Relay), ("trust", Method::Trust)]);
        let users_file = section.path_of_file("users_file", self.base);
        let auth = match method.map(|found| found.value) {
            None => None,
            Some(Method::Scram) => match users_file {
                Some(found) => {
                    if let Err(error) = Users::load(&found.value) {
                        section.reader.problem(&found.place, format!("cannot be used: {error}"));
                    }
                    Some(Auth::Scram { users_file: found.value })
                }
                None => {
                    if !section.has("users_file") {
                        section.missing("users_file", "scram needs the file with the users' verifiers");
                    }
                    None
                }
            },
            Some(method @ (Method::Relay | Method::Trust)) => {
                if users_file.is_some() {
                    section.problem("users_file", "is only read with method = \"scram\"");
                }
                if matches!(method, Method::Trust) {
                    self.loopback_only("trust", listen, &section);
                    Some(Auth::Trust)
                } else {
                    Some(Auth::Relay)
                }
            }
        };
        section.finish();
        auth
    }

    /// Without authentication, only whoever is on this machine may come near.
    fn loopback_only(&self, what: &str, listen: &[Found<SocketAddr>], section: &Section<'_, '_>) {
        if self.host_network {
            section.problem(
                "method",
                format!("{what} lets everybody in, and with fedgate_host_network = true the node's loopback is not only ours"),
            );
        }
        for address in listen {
            if !address.value.ip().to_canonical().is_loopback() {
                section.reader.problem(
                    &address.place,
                    format!("{} is not a loopback address, and gateway.auth.method = \"{what}\" lets everybody in", address.value),
                );
            }
        }
    }
}

fn limits(mut section: Section<'_, '_>) -> Limits {
    let default = Limits::default();
    let statement = section.size("statement_bytes", default.statement_bytes, 1 << 10, 16 << 20);
    let message = section.size("message_bytes", default.message_bytes, 64 << 10, 1 << 30);
    if statement.value > message.value {
        section.reader.problem(&statement.place, "must not be more than message_bytes");
    }
    let statement_weight = section.count("statement_weight", default.statement_weight, 1_000, 1 << 20);
    // No more than the stack is sized for.
    let statement_depth = section.count("statement_depth", default.statement_depth, 10, 100);
    let prepared_statements = section.count("prepared_statements", default.prepared_statements, 1, 1_000_000);
    let pipeline = section.count("pipeline", default.pipeline, 1, 1_000_000);
    section.finish();
    Limits {
        statement_bytes: statement.value,
        statement_weight,
        statement_depth,
        message_bytes: message.value,
        prepared_statements,
        pipeline,
    }
}
