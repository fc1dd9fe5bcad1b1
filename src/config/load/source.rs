//! `[[source]]`: a database that clients may read, who may, and how the gateway gets there.
//!
//! Invariant: nobody may use a source without a rule, and an engine that vouches for others is bound to a place.

use std::collections::HashSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::files::{certificates, secret_file};
use super::limits::{limits, target_session};
use super::{Context, DAY, Loader, SECOND};
use crate::config::raw::{Found, Reader, Section, quoted};
use crate::config::users::check_user_name;
use crate::config::{
    AccessRule, Engine, Host, PoolMode, PoolSection, Source, SourceLogin, SourceTls, TlsMode,
};
use crate::ids::{ClientUser, SourceName};

/// PostgreSQL's own bound on a name (NAMEDATALEN - 1).
const NAME_LIMIT: usize = 63;
/// The longest path that a socket's address holds (`sun_path` less its NUL).
const SOCKET_PATH_LIMIT: usize = 107;
const POSTGRES_PORT: u16 = 5432;

impl Loader<'_> {
    pub(super) fn sources(&self, root: &mut Section<'_, '_>, context: Context) -> Vec<Arc<Source>> {
        if !root.has("source") {
            root.missing("source", "write a [[source]] for each database that clients may read");
        }
        let (mut names, mut catalogs) = (HashSet::new(), HashSet::new());
        let mut sources = Vec::new();
        for section in root.sections("source") {
            let (name_place, catalog_place) = (section.place_of("name"), section.place_of("trino_catalog"));
            let reader = section.reader;
            let Some(source) = self.source(section, context) else { continue };
            if !names.insert(source.name.clone()) {
                reader.problem(&name_place, format!("{} names two sources", quoted(source.name.as_str())));
            } else if !catalogs.insert(source.trino_catalog.clone()) {
                reader.problem(
                    &catalog_place,
                    format!("{} is the Trino catalog of two sources", quoted(&source.trino_catalog)),
                );
            }
            sources.push(Arc::new(source));
        }
        sources
    }

    fn source(&self, mut section: Section<'_, '_>, context: Context) -> Option<Source> {
        let name = required_name(&mut section, "name", "what clients ask for as their database");
        let hosts = hosts(&mut section);
        let database = required_name(&mut section, "database", "the database's name at the source");
        let user = required_name(&mut section, "user", "the gateway's login at the source");
        let password = secret_file(&mut section, "password_file", self.base);
        if section.has("password") {
            section.problem("password", "secrets do not stand in this file; write password_file");
        }
        let mode = section
            .word(
                "tls",
                &[
                    ("disable", TlsMode::Disable),
                    ("prefer", TlsMode::Prefer),
                    ("require", TlsMode::Require),
                    ("verify-ca", TlsMode::VerifyCa),
                    ("verify-full", TlsMode::VerifyFull),
                ],
            )
            .map_or(TlsMode::Prefer, |found| found.value);
        let ca = section.path_of_file("tls_ca", self.base);
        if let Some(found) = &ca {
            certificates(section.reader, found);
            if matches!(mode, TlsMode::Disable | TlsMode::Prefer) {
                section.problem("tls_ca", "is only looked at with tls = \"require\" or \"verify-…\"");
            }
        }
        let read_only = section.boolean_or("read_only", true);
        let writers = users(&mut section, "writers", 0);
        if read_only && !writers.is_empty() {
            section.problem("writers", "nobody can write to a source with read_only = true");
        }
        let trino_catalog = match section.has("trino_catalog") {
            true => required_name(&mut section, "trino_catalog", "what Trino calls the source"),
            false => name.clone(),
        };
        let geography = section.text("geography").map(|found| found.value);
        let access: Vec<_> =
            section.sections("access").into_iter().map(|rule| access(rule, context)).collect();
        let engine = section.section("engine").map(|engine| engine_section(engine, &access));
        let pool = pool(&mut section, context.relayed);
        let max_clients = section.has("max_clients").then(|| section.count("max_clients", 1, 1, 1_000_000));
        section.word("on_drift", &[("alarm", true), ("refuse", false)]).into_iter().for_each(|found| {
            if !found.value {
                section.reader.problem(&found.place, "\"refuse\" is not supported by this version");
            }
        });
        let target_session = target_session(&mut section);
        let limits = limits(&mut section, context.relayed);
        let limit = Duration::from_millis(i32::MAX as u64);
        let statement_timeout =
            section.duration("statement_timeout", Duration::from_secs(600), Duration::ZERO, limit);
        let idle_in_transaction_timeout =
            section.duration("idle_in_transaction_timeout", Duration::ZERO, Duration::ZERO, limit);
        let connect_timeout = section.duration(
            "connect_timeout",
            Duration::from_secs(5),
            SECOND / 10,
            Duration::from_secs(600),
        );
        let catalogue_refresh = section.duration("catalogue_refresh", Duration::from_secs(60), SECOND, DAY);
        section.finish();
        Some(Source {
            name: SourceName::new(name?),
            hosts,
            database: database?,
            login: SourceLogin { user: user?, password },
            tls: SourceTls { mode, ca: ca.map(|found| found.value) },
            read_only,
            writers,
            trino_catalog: trino_catalog?,
            geography,
            access: access.into_iter().map(|rule| rule.value).collect(),
            engine: match engine {
                Some(engine) => Some(engine?),
                None => None,
            },
            pool,
            max_clients,
            statement_timeout,
            idle_in_transaction_timeout,
            connect_timeout,
            catalogue_refresh,
            target_session,
            limits,
        })
    }
}

fn pool(section: &mut Section<'_, '_>, relayed: bool) -> PoolSection {
    let default = PoolSection::default();
    let Some(mut pool) = section.section("pool") else { return default };
    let modes = [("session", PoolMode::Session), ("transaction", PoolMode::Transaction)];
    let mode = pool.word("mode", &modes);
    if let Some(found) = &mode
        && found.value == PoolMode::Transaction
        && relayed
    {
        pool.reader.problem(
            &found.place,
            "cannot be \"transaction\" with gateway.auth.method = \"relay\": each client has a login of its own",
        );
    }
    let size = pool.count("size", default.size, 1, 10_000);
    let min_idle = pool.count("min_idle", default.min_idle.min(size), 0, 10_000);
    if min_idle > size {
        pool.problem("min_idle", "must not be more than size");
    }
    let day = Duration::from_secs(24 * 3600);
    let section = PoolSection {
        mode: mode.map_or(default.mode, |found| found.value),
        size,
        min_idle,
        wait: pool.duration("wait", default.wait, SECOND / 100, Duration::from_secs(3600)),
        lifetime: pool.duration("lifetime", default.lifetime, Duration::ZERO, 30 * day),
        idle_timeout: pool.duration("idle_timeout", default.idle_timeout, Duration::ZERO, 30 * day),
    };
    pool.finish();
    section
}

fn access(mut section: Section<'_, '_>, context: Context) -> Found<AccessRule> {
    if !section.has("users") {
        section.missing("users", "the client users that this rule lets in");
    }
    let users = users(&mut section, "users", 1);
    let cidr = section.texts("cidr").map(|texts| networks(section.reader, texts)).unwrap_or_default();
    let certificate = section.boolean_or("certificate", false);
    if certificate && !context.client_certificates {
        section.problem("certificate", "can never be met: [gateway.tls] names no client_ca");
    }
    let place = section.place.clone();
    section.finish();
    Found { value: AccessRule { users, cidr, certificate }, place }
}

/// None only after a problem was noted.
fn engine_section(mut section: Section<'_, '_>, access: &[Found<AccessRule>]) -> Option<Engine> {
    if !section.has("users") {
        section.missing("users", "the client users that are query engines");
    }
    let users = users(&mut section, "users", 1);
    for user in &users {
        let mut rules = access.iter().filter(|rule| rule.value.users.contains(user)).peekable();
        if rules.peek().is_none() {
            section.problem("users", format!("no access rule lets {} in", quoted(user.as_str())));
        }
        for rule in rules.filter(|rule| !is_bound(&rule.value)) {
            section.reader.problem(
                &rule.place,
                format!(
                    "{} is a query engine and can name anyone as its end user: the rule needs cidr or certificate = true",
                    quoted(user.as_str())
                ),
            );
        }
    }
    if !section.has("comment") {
        section.missing(
            "comment",
            "the engine's query.comment-format, such as \"fedgate query=$QUERY_ID user=$USER\"",
        );
    }
    let comment = section.text("comment");
    if let Some(found) = &comment
        && let Err(reason) = check_comment(&found.value)
    {
        section.reader.problem(&found.place, reason);
    }
    if let Some(found) = section.word("masks", &[("engine", true), ("gateway", false)])
        && !found.value
    {
        section.reader.problem(&found.place, "\"gateway\" is not supported by this version");
    }
    section.finish();
    Some(Engine { users, comment: comment?.value })
}

/// Everywhere is no place.
fn is_bound(rule: &AccessRule) -> bool {
    rule.certificate || (!rule.cidr.is_empty() && rule.cidr.iter().all(|net| net.prefix_len() > 0))
}

/// A name may hold any character, so it is read up to the end of the comment and has to stand there.
fn check_comment(format: &str) -> Result<(), String> {
    if format.contains("*/") || format.contains("/*") {
        return Err("must not hold /* or */, which Trino puts around it".to_owned());
    }
    if format.chars().any(char::is_control) {
        return Err("must not hold control characters".to_owned());
    }
    let Some(rest) = format.strip_suffix("$USER") else {
        return Err("must end in $USER".to_owned());
    };
    let rest = rest.replacen("$QUERY_ID", "", 1);
    if rest.contains('$') {
        return Err("may hold $QUERY_ID once, $USER once at its end, and no other $".to_owned());
    }
    if rest.trim().is_empty() {
        return Err("must hold words of its own, to tell it from other comments".to_owned());
    }
    Ok(())
}

fn users(section: &mut Section<'_, '_>, key: &'static str, least: usize) -> Vec<ClientUser> {
    let Some(texts) = section.texts(key) else { return Vec::new() };
    if texts.value.len() < least {
        section.problem(key, "must name at least one user");
    }
    let user = |text: Found<String>| match check_user_name(&text.value) {
        Ok(()) => Some(ClientUser::new(text.value)),
        Err(reason) => {
            section.reader.problem(&text.place, reason);
            None
        }
    };
    texts.value.into_iter().filter_map(user).collect()
}

fn networks(reader: &Reader<'_>, texts: Found<Vec<Found<String>>>) -> Vec<IpNet> {
    texts
        .value
        .into_iter()
        .filter_map(|text| {
            let network = text.value.parse::<IpNet>().ok();
            let network = network.or_else(|| text.value.parse::<IpAddr>().ok().map(IpNet::from));
            if network.is_none() {
                reader.problem(
                    &text.place,
                    format!("{} is not a network; write one such as \"10.1.0.0/16\"", quoted(&text.value)),
                );
            }
            network
        })
        .collect()
}

fn required_name(section: &mut Section<'_, '_>, key: &'static str, what: &str) -> Option<String> {
    if !section.has(key) {
        section.missing(key, what);
    }
    let found = section.text(key)?;
    let reason = if found.value.is_empty() {
        "must not be empty"
    } else if found.value.len() > NAME_LIMIT {
        "must not be longer than 63 bytes"
    } else if found.value.chars().any(char::is_control) {
        "must not hold control characters"
    } else {
        return Some(found.value);
    };
    section.reader.problem(&found.place, reason);
    None
}

fn hosts(section: &mut Section<'_, '_>) -> Vec<Host> {
    if !section.has("hosts") {
        section.missing("hosts", "write hosts = [\"127.0.0.1:5432\"]");
    }
    let Some(texts) = section.texts("hosts") else { return Vec::new() };
    if texts.value.is_empty() {
        section.problem("hosts", "must name at least one host");
    }
    let mut hosts: Vec<Host> = Vec::new();
    for text in texts.value {
        match parse_host(&text.value) {
            Ok(host) if hosts.contains(&host) => section.reader.problem(&text.place, "is listed twice"),
            Ok(host) => hosts.push(host),
            Err(reason) => section.reader.problem(&text.place, reason),
        }
    }
    hosts
}

/// `name:port`, `[v6]:port`, `/folder/.s.PGSQL.5432`, `/folder:port`; the port may be left out.
fn parse_host(text: &str) -> Result<Host, String> {
    if text.starts_with('/') {
        return parse_socket(text);
    }
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or(format!("{} lacks its ]", quoted(text)))?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(format!("{} is not an IPv6 address", quoted(host)));
            }
            match port {
                "" => (host, None),
                port => {
                    (host, Some(port.strip_prefix(':').ok_or(format!("{} is not a host", quoted(text)))?))
                }
            }
        }
        None if text.matches(':').count() > 1 => {
            return Err(format!(
                "{} has several colons; write an IPv6 address as \"[::1]:5432\"",
                quoted(text)
            ));
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    if host.is_empty() || host.len() > 253 || !host.chars().all(named) {
        return Err(format!(
            "{} is not a host; write \"name:5432\", \"[::1]:5432\" or \"/folder:5432\"",
            quoted(text)
        ));
    }
    Ok(Host::Tcp { host: host.to_owned(), port: port.map_or(Ok(POSTGRES_PORT), parse_port)? })
}

fn parse_socket(text: &str) -> Result<Host, String> {
    let is_socket = text.rsplit('/').next().is_some_and(|file| file.starts_with(".s.PGSQL."));
    let path = if is_socket {
        PathBuf::from(text)
    } else {
        let (folder, port) = match text.rsplit_once(':') {
            Some((folder, port)) => (folder, parse_port(port)?),
            None => (text, POSTGRES_PORT),
        };
        Path::new(folder).join(format!(".s.PGSQL.{port}"))
    };
    if path.as_os_str().len() > SOCKET_PATH_LIMIT || text.contains('\0') {
        return Err(format!("a socket's path must not be longer than {SOCKET_PATH_LIMIT} bytes"));
    }
    Ok(Host::Unix { path })
}

fn parse_port(text: &str) -> Result<u16, String> {
    // u16's own parser takes "+5432".
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|port| digits && *port > 0)
        .ok_or(format!("{} is not a port; it is between 1 and 65535", quoted(text)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_in_each_form() {
        let tcp = |host: &str, port| Ok(Host::Tcp { host: host.into(), port });
        let unix = |path: &str| Ok(Host::Unix { path: path.into() });
        for (text, want) in [
            ("db.example:6432", tcp("db.example", 6432)),
            ("127.0.0.1", tcp("127.0.0.1", 5432)),
            ("[::1]:5433", tcp("::1", 5433)),
            ("[::1]", tcp("::1", 5432)),
            ("/run/postgresql", unix("/run/postgresql/.s.PGSQL.5432")),
            ("/run/postgresql:6432", unix("/run/postgresql/.s.PGSQL.6432")),
            ("/run/postgresql/.s.PGSQL.5433", unix("/run/postgresql/.s.PGSQL.5433")),
        ] {
            assert_eq!(parse_host(text), want, "{text}");
            let host = parse_host(text).unwrap();
            assert_eq!(parse_host(&host.to_string()), Ok(host));
        }
        for text in [
            "",
            ":5432",
            "db:",
            "db:0",
            "db:+5",
            "db:65536",
            "::1",
            "[::1",
            "[x]:1",
            "[::1]5432",
            "a b:1",
            "u@h:1",
            "/x:y",
        ] {
            assert!(parse_host(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_engines_comment_ends_in_the_user() {
        for good in ["fedgate query=$QUERY_ID user=$USER", "who=$USER", "q $QUERY_ID:$USER"] {
            assert_eq!(check_comment(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "$USER",
            "$QUERY_ID $USER",
            "user=$USER query=$QUERY_ID",
            "u=$USER,$USER",
            "s=$SOURCE u=$USER",
            "a */ u=$USER",
            "a\nu=$USER",
            "fedgate",
        ] {
            assert!(check_comment(bad).is_err(), "{bad}");
        }
    }
}
