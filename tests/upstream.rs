//! Sessions at real and at broken sources: TLS, authentication, pins, fail-over, cancel.
//!
//! Invariant: what is shown here of PostgreSQL was shown by a PostgreSQL, not by a stand-in; stand-ins
//! play only what PostgreSQL does not do.

#[path = "upstream/stand_ins.rs"]
mod stand_ins;
mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, BytesMut};
use fedgate::config::{self, Host, SecretFile, SourceLogin, SourceTls, TargetSession, TlsMode};
use fedgate::guard::Mode;
use fedgate::ids::SourceName;
use fedgate::metrics::Metrics;
use fedgate::session::{CancelAt, Cancels, Muted, Released};
use fedgate::upstream::{Failure, OpenError, Opened, Opening, RelayFit, Source, Stage, Stream, relay_works};
use fedgate::wire::startup::{CancelRequest, NEWEST};
use postgres_protocol::message::frontend;
use stand_ins::{
    Broken, Person, Then, closed_port, frame, man_in_the_middle, old_greeting, standby_greeting,
};
use support::{Authority, Options, Postgres, SUPERUSER, SUPERUSER_PASSWORD, ServerTls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// White space, a quote, a backslash and letters beyond ASCII.
const PASSWORD: &str = "pä ss'w\\örd";
const METHODS: [&str; 4] = ["scram", "md5", "password", "trust"];
/// Long enough for any step on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder for secrets and certificates that goes with the test.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }
}

fn tcp(host: &str, port: u16) -> Host {
    Host::Tcp { host: host.to_owned(), port }
}

fn unix(postgres: &Postgres) -> Host {
    Host::Unix { path: postgres.socket_dir().join(format!(".s.PGSQL.{}", postgres.port())) }
}

/// The settings of a source, to be changed by the test.
fn settings(hosts: Vec<Host>, user: &str, password: Option<PathBuf>) -> config::Source {
    config::Source {
        name: SourceName::new("climscore"),
        hosts,
        database: "postgres".to_owned(),
        login: SourceLogin { user: user.to_owned(), password: password.map(SecretFile::new) },
        tls: SourceTls { mode: TlsMode::Disable, ca: None },
        read_only: true,
        writers: Vec::new(),
        geography: None,
        trino_catalog: "climscore".to_owned(),
        access: Vec::new(),
        engine: None,
        pool: config::PoolSection::default(),
        max_clients: None,
        statement_timeout: Duration::from_secs(600),
        idle_in_transaction_timeout: Duration::from_secs(300),
        connect_timeout: PATIENCE,
        catalogue_refresh: Duration::from_secs(300),
        target_session: TargetSession::Any,
        limits: config::SourceLimits::default(),
    }
}

fn source(settings: config::Source) -> Source {
    Source::new(Arc::new(settings)).unwrap()
}

fn with_tls(mut settings: config::Source, mode: TlsMode, ca: Option<&Path>) -> config::Source {
    settings.tls = SourceTls { mode, ca: ca.map(Path::to_owned) };
    settings
}

fn opening(mode: Mode) -> Opening {
    Opening { mode, application_name: "visitor at climscore".to_owned(), settings: Vec::new() }
}

fn reading() -> Opening {
    opening(Mode::ReadOnly)
}

fn failed(outcome: Result<Opened, OpenError>) -> OpenError {
    match outcome {
        Ok(_) => panic!("a session was opened"),
        Err(error) => error,
    }
}

fn last(error: &OpenError) -> &Failure {
    &error.failures().last().unwrap().failure
}

/// Sends a Query and returns the first column of each row, or the SQLSTATE of the first error.
async fn query(stream: &mut Stream, sql: &str) -> Result<Vec<String>, String> {
    let mut request = BytesMut::new();
    frontend::query(sql, &mut request).unwrap();
    stream.write_all(&request).await.unwrap();
    answer(stream).await
}

async fn answer(stream: &mut Stream) -> Result<Vec<String>, String> {
    let mut rows = Vec::new();
    let mut error = None;
    loop {
        let kind = stream.read_u8().await.unwrap();
        let length = stream.read_u32().await.unwrap() as usize;
        let mut body = vec![0; length - 4];
        stream.read_exact(&mut body).await.unwrap();
        match kind {
            b'D' => {
                let mut value = &body[2..];
                let length = value.get_i32() as usize;
                rows.push(String::from_utf8_lossy(&value[..length]).into_owned());
            }
            b'E' => {
                let text = String::from_utf8_lossy(&body).into_owned();
                let code = text.split('\0').find_map(|field| field.strip_prefix('C')).unwrap().to_owned();
                error.get_or_insert(code);
            }
            b'Z' => return error.map_or(Ok(rows), Err),
            _ => {}
        }
    }
}

async fn value(opened: &mut Opened, sql: &str) -> String {
    query(&mut opened.stream, sql).await.unwrap().remove(0)
}

fn server_tls(authority: &Authority, names: &[&str]) -> ServerTls {
    let pair = authority.server(names);
    ServerTls { certificate: pair.certificate, private_key: pair.private_key, client_ca: None }
}

/// A server with one login for each method; TLS when `tls` is given.
fn server_of_all_methods(tls: Option<ServerTls>) -> Postgres {
    let mut options = Options::default();
    for method in METHODS {
        let name = if method == "scram" { "scram-sha-256" } else { method };
        options = options
            .hba(format!("local all login_{method} {name}"))
            .hba(format!("host all login_{method} 127.0.0.1/32 {name}"));
    }
    if let Some(tls) = tls {
        options = options.tls(tls);
    }
    let postgres = Postgres::start(options);
    let password = PASSWORD.replace('\'', "''");
    for method in METHODS {
        let kind = if method == "md5" { "md5" } else { "scram-sha-256" };
        postgres.execute(
            "postgres",
            &format!(
                "SET password_encryption = '{kind}'; CREATE ROLE login_{method} LOGIN PASSWORD '{password}'"
            ),
        );
    }
    postgres
}

#[tokio::test]
async fn every_method_on_every_transport_in_every_tls_mode() {
    let folder = Folder::new();
    let authority = Authority::new("authority of the test");
    let ca = folder.file("ca.pem", authority.certificate());
    let password = folder.file("password", &format!("{PASSWORD}\n"));
    for server_has_tls in [true, false] {
        let tls = server_has_tls.then(|| server_tls(&authority, &["localhost"]));
        let postgres = server_of_all_methods(tls);
        for method in METHODS {
            for host in [tcp("localhost", postgres.port()), unix(&postgres)] {
                for mode in [
                    TlsMode::Disable,
                    TlsMode::Prefer,
                    TlsMode::Require,
                    TlsMode::VerifyCa,
                    TlsMode::VerifyFull,
                ] {
                    let what = format!("{method} {host:?} {mode:?}, server has TLS: {server_has_tls}");
                    let over_tcp = matches!(host, Host::Tcp { .. });
                    let user = format!("login_{method}");
                    let settings = settings(vec![host.clone()], &user, Some(password.clone()));
                    let source = source(with_tls(settings, mode, Some(&ca)));
                    let outcome = source.open(&reading()).await;
                    let asks = !matches!(mode, TlsMode::Disable | TlsMode::Prefer);
                    if over_tcp && asks && !server_has_tls {
                        assert!(matches!(last(&failed(outcome)), Failure::TlsDeclined), "{what}");
                        continue;
                    }
                    let mut opened = outcome.unwrap_or_else(|error| panic!("{what}: {error}"));
                    let encrypted = over_tcp && server_has_tls && mode != TlsMode::Disable;
                    assert_eq!(matches!(opened.stream, Stream::Tls(_)), encrypted, "{what}");
                    assert_eq!(matches!(opened.stream, Stream::Unix(_)), !over_tcp, "{what}");
                    assert!(opened.leftover.is_empty());
                    let sql = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
                    assert_eq!(value(&mut opened, sql).await, if encrypted { "t" } else { "f" }, "{what}");
                    let sql = "SELECT session_user || ' ' || current_setting('application_name')";
                    assert_eq!(value(&mut opened, sql).await, format!("{user} visitor at climscore"));
                    let pid = value(&mut opened, "SELECT pg_backend_pid()").await;
                    assert_eq!(pid, opened.cancel.process_id().to_string());
                }
            }
        }
    }
}

#[tokio::test]
async fn tls_modes_verify_what_they_say() {
    let folder = Folder::new();
    let authority = Authority::new("authority of the test");
    let stranger = Authority::new("authority of somebody else");
    let ca = folder.file("ca.pem", authority.certificate());
    let other = folder.file("other.pem", stranger.certificate());
    let both = folder.file("both.pem", &format!("{}{}", stranger.certificate(), authority.certificate()));
    let password = folder.file("password", SUPERUSER_PASSWORD);
    let postgres = Postgres::start(Options::default().tls(server_tls(&authority, &["localhost"])));
    for (host, mode, ca, opens) in [
        ("localhost", TlsMode::VerifyFull, Some(&ca), true),
        ("localhost", TlsMode::VerifyFull, Some(&both), true),
        ("127.0.0.1", TlsMode::VerifyFull, Some(&ca), false),
        ("localhost", TlsMode::VerifyFull, Some(&other), false),
        ("127.0.0.1", TlsMode::VerifyCa, Some(&ca), true),
        ("127.0.0.1", TlsMode::VerifyCa, Some(&other), false),
        ("127.0.0.1", TlsMode::Require, None, true),
        // As in libpq, `require` with roots checks the chain.
        ("127.0.0.1", TlsMode::Require, Some(&ca), true),
        ("127.0.0.1", TlsMode::Require, Some(&other), false),
        ("127.0.0.1", TlsMode::Prefer, Some(&other), true),
    ] {
        let settings = settings(vec![tcp(host, postgres.port())], SUPERUSER, Some(password.clone()));
        let source = source(with_tls(settings, mode, ca.map(PathBuf::as_path)));
        let what = format!("{host} {mode:?} {ca:?}");
        match source.open(&reading()).await {
            Ok(opened) => {
                assert!(opens, "{what}");
                assert!(matches!(opened.stream, Stream::Tls(_)), "{what}");
            }
            Err(error) => {
                assert!(!opens && matches!(last(&error), Failure::Tls(_)), "{what}: {error}");
                let detail = error.client_error().detail.unwrap();
                assert!(detail.contains("TLS failed"), "{detail}");
            }
        }
    }
}

#[tokio::test]
async fn prefer_goes_on_without_tls_where_the_server_wants_none() {
    let folder = Folder::new();
    let authority = Authority::new("authority of the test");
    let password = folder.file("password", SUPERUSER_PASSWORD);
    let options = Options::default()
        .hba("hostssl all all 127.0.0.1/32 reject")
        .tls(server_tls(&authority, &["localhost"]));
    let postgres = Postgres::start(options);
    let hosts = vec![tcp("127.0.0.1", postgres.port())];
    let prefer = with_tls(settings(hosts.clone(), SUPERUSER, Some(password.clone())), TlsMode::Prefer, None);
    let opened = source(prefer).open(&reading()).await.unwrap();
    assert!(matches!(opened.stream, Stream::Tcp(_)));
    let require = with_tls(settings(hosts, SUPERUSER, Some(password)), TlsMode::Require, None);
    let error = failed(source(require).open(&reading()).await);
    assert!(matches!(last(&error), Failure::Server(server) if server.sqlstate == "28000"), "{error}");
}

#[tokio::test]
async fn a_self_signed_certificate_can_be_trusted_by_itself() {
    let folder = Folder::new();
    let password = folder.file("password", SUPERUSER_PASSWORD);
    let self_signed = |last_year: i32| {
        let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.not_after = rcgen::date_time_ymd(last_year, 1, 1);
        let key = rcgen::KeyPair::generate().unwrap();
        (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
    };
    for (last_year, host, mode, opens) in [
        (4000, "localhost", TlsMode::VerifyFull, true),
        (4000, "127.0.0.1", TlsMode::VerifyFull, false),
        (4000, "127.0.0.1", TlsMode::VerifyCa, true),
        (2000, "localhost", TlsMode::VerifyCa, false),
    ] {
        let (certificate, private_key) = self_signed(last_year);
        let ca = folder.file("ca.pem", &certificate);
        let tls = ServerTls { certificate, private_key, client_ca: None };
        let postgres = Postgres::start(Options::default().tls(tls));
        let settings = settings(vec![tcp(host, postgres.port())], SUPERUSER, Some(password.clone()));
        let outcome = source(with_tls(settings, mode, Some(&ca))).open(&reading()).await;
        assert_eq!(outcome.is_ok(), opens, "{last_year} {host} {mode:?} {outcome:?}");
        if let Err(error) = outcome {
            assert!(matches!(last(&error), Failure::Tls(_)), "{error}");
        }
    }
}

#[tokio::test]
async fn scram_is_bound_to_the_servers_certificate() {
    let folder = Folder::new();
    let authority = Authority::new("authority of the test");
    let password = folder.file("password", PASSWORD);
    let postgres = server_of_all_methods(Some(server_tls(&authority, &["localhost"])));
    let middle = man_in_the_middle(&postgres, authority.server(&["localhost"])).await;
    let open = async |user: &str| {
        let settings = settings(vec![tcp("127.0.0.1", middle.port())], user, Some(password.clone()));
        source(with_tls(settings, TlsMode::Require, None)).open(&reading()).await
    };
    // Without verification the middle man can pass on an md5 login, and does so here.
    assert!(open("login_md5").await.is_ok());
    let error = failed(open("login_scram").await);
    // "SCRAM channel binding check failed"
    assert!(matches!(last(&error), Failure::Server(server) if server.sqlstate.starts_with("28")), "{error}");
    assert!(error.to_string().contains("channel binding"), "{error}");
}

#[tokio::test]
async fn pins_outrank_role_and_database_and_outlive_resets() {
    let folder = Folder::new();
    let password = folder.file("password", SUPERUSER_PASSWORD);
    let postgres = Postgres::start(Options::default().setting("standard_conforming_strings", "off"));
    postgres.execute(
        "postgres",
        "ALTER ROLE postgres SET default_transaction_read_only = off;
         ALTER ROLE postgres SET client_encoding = 'LATIN1';
         ALTER ROLE postgres SET statement_timeout = '7s';
         ALTER DATABASE postgres SET standard_conforming_strings = off;
         ALTER DATABASE postgres SET idle_in_transaction_session_timeout = '7s';
         CREATE TABLE kept (n int)",
    );
    let source = source(settings(vec![tcp("127.0.0.1", postgres.port())], SUPERUSER, Some(password)));
    let mut opening = reading();
    opening.settings = vec![
        ("DateStyle".to_owned(), "German, DMY".to_owned()),
        ("search_path".to_owned(), r#""a b\", "c d""#.to_owned()),
        // What would loosen a pin is not sent, however it is spelt.
        ("DEFAULT_transaction_READ_only".to_owned(), "off".to_owned()),
        ("standard_conforming_strings".to_owned(), "off".to_owned()),
        ("Client_Encoding".to_owned(), "SJIS".to_owned()),
        ("application_name".to_owned(), "somebody else".to_owned()),
    ];
    let mut opened = source.open(&opening).await.unwrap();
    let reported = |name: &str| {
        opened.parameters.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())
    };
    assert_eq!(reported("default_transaction_read_only").as_deref(), Some("on"));
    assert_eq!(reported("client_encoding").as_deref(), Some("UTF8"));
    assert_eq!(reported("DateStyle").as_deref(), Some("German, DMY"));
    let pinned = [
        ("default_transaction_read_only", "on"),
        ("transaction_read_only", "on"),
        ("standard_conforming_strings", "on"),
        ("client_encoding", "UTF8"),
        ("statement_timeout", "10min"),
        ("idle_in_transaction_session_timeout", "5min"),
        ("application_name", "visitor at climscore"),
        ("DateStyle", "German, DMY"),
        ("search_path", r#""a b\", "c d""#),
    ];
    for undo in [
        "SELECT 1",
        "SET default_transaction_read_only = off; SET standard_conforming_strings = off; SET client_encoding = LATIN1; SET statement_timeout = 0; SET application_name = ''; RESET ALL",
        "RESET ALL",
        "DISCARD ALL",
        "SET SESSION AUTHORIZATION DEFAULT",
        "SET default_transaction_read_only = off; SET client_encoding = LATIN1; RESET default_transaction_read_only; RESET client_encoding",
    ] {
        query(&mut opened.stream, undo).await.unwrap();
        for (setting, wanted) in pinned {
            assert_eq!(
                value(&mut opened, &format!("SHOW {setting}")).await,
                wanted,
                "{setting} after {undo}"
            );
        }
    }
    let outcome = query(&mut opened.stream, "INSERT INTO public.kept VALUES (1)").await;
    assert_eq!(outcome.unwrap_err(), "25006");

    // A writer's session is pinned too, to the other value.
    postgres.execute("postgres", "ALTER ROLE postgres SET default_transaction_read_only = on");
    let mut opened = source.open(&self::opening(Mode::ReadWrite)).await.unwrap();
    query(&mut opened.stream, "INSERT INTO public.kept VALUES (1)").await.unwrap();
    query(&mut opened.stream, "RESET ALL").await.unwrap();
    query(&mut opened.stream, "INSERT INTO public.kept VALUES (2)").await.unwrap();
    assert!(opened.pins.broken_by("default_transaction_read_only", "on"));
}

#[tokio::test]
async fn the_clients_own_settings_pass_or_are_told_back() {
    let folder = Folder::new();
    let password = folder.file("password", SUPERUSER_PASSWORD);
    let postgres = Postgres::start(Options::default());
    let source = source(settings(vec![unix(&postgres)], SUPERUSER, Some(password)));
    let with = |name: &str, value: &str| Opening {
        settings: vec![(name.to_owned(), value.to_owned())],
        ..reading()
    };
    let mut opened = source.open(&with("statement_timeout", "1234")).await.unwrap();
    assert_eq!(value(&mut opened, "SHOW statement_timeout").await, "1234ms");
    for (name, text, sqlstate) in [
        ("TimeZone", "Mars/Olympus", "22023"),
        ("no_such_setting", "1", "42704"),
        ("work_mem", "lots", "22023"),
    ] {
        let error = failed(source.open(&with(name, text)).await).client_error();
        assert_eq!(error.sqlstate.as_str(), sqlstate, "{error:?}");
        assert!(error.message.contains(name), "{error:?}");
    }
    for (name, text) in [
        ("replication", "database"),
        ("options", "-c a=b"),
        ("USER", "x"),
        ("_pq_.x", "1"),
        ("a\0b", "c"),
        ("", ""),
    ] {
        let error = failed(source.open(&with(name, text)).await);
        assert!(matches!(last(&error), Failure::Setting(_)), "{error}");
    }
    let error = failed(source.open(&with("search_path", &"x".repeat(20_000))).await);
    assert!(matches!(last(&error), Failure::Setting(_)), "{error}");
}

#[tokio::test]
async fn databases_of_other_encodings_are_read_as_utf8() {
    let folder = Folder::new();
    let password = folder.file("password", SUPERUSER_PASSWORD);
    let postgres = Postgres::start(Options::default());
    for encoding in ["LATIN1", "SQL_ASCII"] {
        postgres.execute(
            "postgres",
            &format!("CREATE DATABASE {encoding} TEMPLATE template0 ENCODING '{encoding}'"),
        );
        let mut settings = settings(vec![unix(&postgres)], SUPERUSER, Some(password.clone()));
        settings.database = encoding.to_lowercase();
        let mut opened = source(settings).open(&reading()).await.unwrap();
        assert_eq!(value(&mut opened, "SHOW server_encoding").await, encoding);
        assert_eq!(value(&mut opened, "SHOW client_encoding").await, "UTF8");
        assert_eq!(value(&mut opened, "SELECT 'é'").await, "é");
    }
}

#[tokio::test]
async fn a_source_with_dead_hosts_is_served_by_the_living_one() {
    let folder = Folder::new();
    let password = folder.file("password", SUPERUSER_PASSWORD);
    let postgres = Postgres::start(Options::default());
    let busy = frame(b'E', b"SFATAL\0VFATAL\0C53300\0Msorry, too many clients already\0\0");
    let waking = frame(b'E', b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0");
    let broken = [
        Broken::start(b"HTTP/1.1 400 Bad Request\r\n\r\n", Then::Hold).await,
        Broken::start(b"", Then::Close).await,
        Broken::start(b"R\0\0", Then::Reset).await,
        Broken::start(b"R\x7f\xff\xff\xff\0\0\0\0", Then::Hold).await,
        Broken::start(b"S\0\0\0\x01", Then::Hold).await,
        Broken::start(&busy, Then::Close).await,
        Broken::start(&waking, Then::Close).await,
    ];
    let mut hosts = vec![
        tcp("127.0.0.1", closed_port().await),
        tcp("no-such-host.invalid", 5432),
        Host::Unix { path: folder.0.path().join(".s.PGSQL.1") },
    ];
    hosts.extend(broken.iter().map(Broken::host));
    hosts.push(tcp("127.0.0.1", postgres.port()));
    let source = source(settings(hosts, SUPERUSER, Some(password)));
    for _ in 0..3 {
        source.open(&reading()).await.unwrap();
    }
    // They failed lately: they come last, and so are not asked again.
    for server in &broken {
        assert_eq!(server.accepted(), 1);
    }
}

#[tokio::test]
async fn what_is_not_the_hosts_fault_does_not_fail_over() {
    let folder = Folder::new();
    let wrong = folder.file("password", "wrong");
    let postgres = Postgres::start(Options::default());
    let second = Broken::start(b"", Then::Close).await;
    let hosts = vec![tcp("127.0.0.1", postgres.port()), second.host()];
    let error =
        failed(source(settings(hosts.clone(), SUPERUSER, Some(wrong.clone()))).open(&reading()).await);
    assert!(matches!(last(&error), Failure::Server(server) if server.sqlstate == "28P01"), "{error}");

    let mut no_database = settings(hosts.clone(), SUPERUSER, Some(folder.file("right", SUPERUSER_PASSWORD)));
    no_database.database = "nowhere".to_owned();
    let error = failed(source(no_database).open(&reading()).await);
    assert!(matches!(last(&error), Failure::Server(server) if server.sqlstate == "3D000"), "{error}");

    let missing = folder.0.path().join("missing");
    let error = failed(source(settings(hosts.clone(), SUPERUSER, Some(missing))).open(&reading()).await);
    assert!(matches!(last(&error), Failure::PasswordFile { .. }), "{error}");
    assert!(error.to_string().contains("missing"), "{error}");
    let client = format!("{:?}", error.client_error());
    assert!(client.contains("no password for it") && !client.contains("missing"), "{client}");

    // A folder cannot be read as a file, by root neither.
    let folder_path = folder.0.path().to_owned();
    let error = failed(source(settings(hosts.clone(), SUPERUSER, Some(folder_path))).open(&reading()).await);
    assert!(matches!(last(&error), Failure::PasswordFile { .. }), "{error}");

    let error = failed(source(settings(hosts.clone(), SUPERUSER, None)).open(&reading()).await);
    assert!(matches!(last(&error), Failure::NoPassword), "{error}");
    assert_eq!(second.accepted(), 0);

    // Rotated: the next session reads the new one.
    let source = source(settings(hosts, SUPERUSER, Some(wrong)));
    assert!(source.open(&reading()).await.is_err());
    folder.file("password", SUPERUSER_PASSWORD);
    assert!(source.open(&reading()).await.is_ok());
}

#[tokio::test]
async fn a_source_without_a_living_host_says_so_in_time() {
    let silent = Broken::start(b"", Then::Hold).await;
    let closed = closed_port().await;
    for mode in [TlsMode::Disable, TlsMode::Prefer, TlsMode::VerifyFull] {
        let mut settings = settings(vec![tcp("127.0.0.1", closed), silent.host()], "secret_user", None);
        settings.connect_timeout = Duration::from_millis(300);
        if mode != TlsMode::Disable {
            let folder = Folder::new();
            let ca = folder.file("ca.pem", Authority::new("authority").certificate());
            settings = with_tls(settings, mode, Some(&ca));
            let began = Instant::now();
            let error = failed(source(settings).open(&reading()).await);
            assert!(matches!(last(&error), Failure::TimedOut(Stage::Tls)), "{error}");
            assert!(began.elapsed() < PATIENCE);
            continue;
        }
        let source = source(settings);
        let error = failed(source.open(&reading()).await);
        assert_eq!(error.failures().len(), 2);
        assert!(matches!(error.failures()[0].failure, Failure::Connect(_)), "{error}");
        assert!(matches!(last(&error), Failure::TimedOut(Stage::Authentication)), "{error}");
        let log = error.to_string();
        assert!(
            log.contains(&format!("127.0.0.1:{closed}")) && log.contains(&silent.port.to_string()),
            "{log}"
        );
        let client = error.client_error();
        assert_eq!(client.sqlstate.as_str(), "57P03");
        assert_eq!(client.message, "source \"climscore\" is not available");
        let detail = client.detail.unwrap();
        assert!(detail.contains("connection refused") && detail.contains("timed out"), "{detail}");
        assert!(!detail.contains("127.0.0.1") && !detail.contains("secret_user"), "{detail}");
        assert!(source.client().await.is_err());
    }
}

#[tokio::test]
async fn a_broken_answer_to_the_tls_request_ends_the_attempt() {
    let folder = Folder::new();
    let ca = folder.file("ca.pem", Authority::new("authority").certificate());
    let error_before_tls = frame(b'E', b"SFATAL\0VFATAL\0C28000\0Mtrust me\0\0");
    for (bytes, then) in [
        (&b"X"[..], Then::Hold),
        (&error_before_tls[..], Then::Hold),
        (b"", Then::Close),
        (b"", Then::Reset),
        // Bytes smuggled behind the S are taken for TLS, and are none.
        (b"SR\0\0\0\x08\0\0\0\0", Then::Hold),
        (b"S", Then::Close),
    ] {
        let server = Broken::start(bytes, then).await;
        let settings = settings(vec![server.host()], "anyone", None);
        let error = failed(source(with_tls(settings, TlsMode::VerifyCa, Some(&ca))).open(&reading()).await);
        let expected = matches!(
            last(&error),
            Failure::Nonsense(_)
                | Failure::Closed(Stage::Tls)
                | Failure::Broken(Stage::Tls, _)
                | Failure::Tls(_)
        );
        assert!(expected, "{error}");
        assert!(!error.to_string().contains("trust me"), "{error}");
    }
}

#[tokio::test]
async fn a_writer_is_led_past_a_standby() {
    let folder = Folder::new();
    let password = folder.file("password", SUPERUSER_PASSWORD);
    let postgres = Postgres::start(Options::default());
    let standby = Broken::start(&standby_greeting(), Then::Hold).await;
    let hosts = vec![standby.host(), tcp("127.0.0.1", postgres.port())];
    let source_of = |hosts| source(settings(hosts, SUPERUSER, Some(password.clone())));
    let opened = source_of(hosts).open(&opening(Mode::ReadWrite)).await.unwrap();
    assert!(opened.parameters.contains(&("in_hot_standby".to_owned(), "off".to_owned())));
    assert_eq!(standby.accepted(), 1);
    // Where there is nothing but a standby, it is better than nothing.
    let opened = source_of(vec![standby.host()]).open(&opening(Mode::ReadWrite)).await.unwrap();
    assert!(opened.parameters.contains(&("in_hot_standby".to_owned(), "on".to_owned())));
    // A reader's pin does not hold there, so it gets no session.
    let error = failed(source_of(vec![standby.host()]).open(&reading()).await);
    assert!(matches!(last(&error), Failure::Pin { .. }), "{error}");
}

#[tokio::test]
async fn old_servers_are_asked_whether_they_are_standbys() {
    let old_primary = Broken::start(&old_greeting(false), Then::Hold).await;
    let old_standby = Broken::start(&old_greeting(true), Then::Hold).await;
    let source_of = |hosts: &[&Broken], target_session| {
        let hosts = hosts.iter().map(|host| host.host()).collect();
        source(config::Source { target_session, ..settings(hosts, SUPERUSER, None) })
    };
    let both = [&old_primary, &old_standby];
    let wants_standby = source_of(&both, TargetSession::Standby);
    for _ in 0..3 {
        let opened = wants_standby.open(&reading()).await.unwrap();
        assert!(opened.leftover.is_empty(), "the answer was taken");
    }
    // Who was not wanted once is tried last from then on.
    assert_eq!((old_primary.accepted(), old_standby.accepted()), (1, 3));
    source_of(&both, TargetSession::Primary).open(&reading()).await.unwrap();
    assert_eq!((old_primary.accepted(), old_standby.accepted()), (2, 3));
    source_of(&both, TargetSession::PreferStandby).open(&reading()).await.unwrap();
    assert_eq!((old_primary.accepted(), old_standby.accepted()), (3, 4));
    source_of(&[&old_primary], TargetSession::PreferStandby).open(&reading()).await.unwrap();
    let error = failed(source_of(&[&old_primary], TargetSession::Standby).open(&reading()).await);
    assert!(matches!(last(&error), Failure::Unwanted("primary")), "{error}");
    let client = error.client_error();
    assert_eq!(client.sqlstate.as_str(), "57P03");
    assert!(client.detail.unwrap().contains("it is no standby"));
}

#[tokio::test]
async fn a_full_source_is_told_in_general_words() {
    let folder = Folder::new();
    let password = folder.file("password", "secret");
    let postgres = Postgres::start(Options::default());
    postgres.execute("postgres", "CREATE ROLE crowded LOGIN PASSWORD 'secret' CONNECTION LIMIT 1");
    let source = source(settings(vec![tcp("127.0.0.1", postgres.port())], "crowded", Some(password)));
    let _first = source.open(&reading()).await.unwrap();
    let error = failed(source.open(&reading()).await);
    let client = error.client_error();
    assert_eq!(client.sqlstate.as_str(), "57P03");
    let detail = client.detail.unwrap();
    assert!(detail.contains("too many connections at the source") && !detail.contains("crowded"), "{detail}");
}

#[tokio::test]
async fn a_cancel_request_reaches_the_session() {
    let folder = Folder::new();
    let authority = Authority::new("authority of the test");
    let password = folder.file("password", SUPERUSER_PASSWORD);
    let ca = folder.file("ca.pem", authority.certificate());
    let postgres = Postgres::start(Options::default().tls(server_tls(&authority, &["localhost"])));
    for (host, mode) in [
        (tcp("localhost", postgres.port()), TlsMode::Disable),
        (tcp("localhost", postgres.port()), TlsMode::VerifyFull),
        (unix(&postgres), TlsMode::Prefer),
    ] {
        let settings = settings(vec![host], SUPERUSER, Some(password.clone()));
        let source = source(with_tls(settings, mode, Some(&ca)));
        let mut opened = source.open(&reading()).await.unwrap();
        let mut other = source.open(&reading()).await.unwrap();
        let mut request = BytesMut::new();
        frontend::query("SELECT pg_sleep(600)", &mut request).unwrap();
        opened.stream.write_all(&request).await.unwrap();
        // A request that comes before the statement runs cancels nothing, so it is repeated.
        let target = opened.cancel.clone();
        let cancelling = async {
            loop {
                source.cancel(&target).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let outcome = tokio::time::timeout(PATIENCE, async {
            tokio::select! {
                outcome = answer(&mut opened.stream) => outcome,
                () = cancelling => unreachable!(),
            }
        });
        assert_eq!(outcome.await.unwrap().unwrap_err(), "57014", "{mode:?}");
        assert_eq!(value(&mut other, "SELECT 1").await, "1");
        assert!(!format!("{target:?}").contains("key"));
    }
}

/// Passes connections on; those behind the first wait until they are let through, or for ever.
async fn narrow(to: u16) -> (u16, Arc<tokio::sync::Semaphore>, tokio::sync::mpsc::Receiver<()>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let open = Arc::new(tokio::sync::Semaphore::new(1));
    let (came, comes) = tokio::sync::mpsc::channel(64);
    let door = Arc::clone(&open);
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (door, came) = (Arc::clone(&door), came.clone());
            tokio::spawn(async move {
                let _ = came.send(()).await;
                let Ok(permit) = door.acquire().await else { return };
                permit.forget();
                let mut server = tokio::net::TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (port, open, comes)
}

/// A pool hands a session of the source on; the first client's cancel, on its way just then, must not hit what the
/// second one runs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancel_on_its_way_is_waited_for_before_a_lease_changes_hands() {
    const SLOW: &str = "SELECT count(*) FROM generate_series(1, 1000000000000)";
    let folder = Folder::new();
    let password = folder.file("password", SUPERUSER_PASSWORD);
    let postgres = Postgres::start(Options::default());
    let (port, door, mut comes) = narrow(postgres.port()).await;
    let source = Arc::new(source(settings(vec![tcp("127.0.0.1", port)], SUPERUSER, Some(password))));
    let mut opened = source.open(&reading()).await.unwrap();
    comes.recv().await.unwrap();
    let at = Arc::new(CancelAt { source, target: opened.cancel.clone() });
    let cancels = Arc::<Cancels>::default();
    let metrics = Arc::new(Metrics::new().unwrap());
    let forward = |registration: &fedgate::session::Registration| {
        let request = CancelRequest { pid: registration.pid, secret: registration.secret().to_vec() };
        let (cancels, metrics) = (Arc::clone(&cancels), Arc::clone(&metrics));
        tokio::spawn(async move { cancels.forward(&request, ([127, 0, 0, 1], 1).into(), &metrics).await })
    };

    for _ in 0..20 {
        let (one, two) = (cancels.register(NEWEST), cancels.register(NEWEST));
        one.lease(Arc::clone(&at), Muted::No);
        let mut request = BytesMut::new();
        frontend::query(SLOW, &mut request).unwrap();
        opened.stream.write_all(&request).await.unwrap();
        let active =
            format!("SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = '{SLOW}'");
        let began = Instant::now();
        while tokio::task::block_in_place(|| postgres.value("postgres", &active)) != Some("1".to_owned()) {
            assert!(began.elapsed() < PATIENCE, "the statement never runs");
        }
        let cancel = forward(&one);
        comes.recv().await.unwrap();
        let Released::Wait(landing) = one.release() else {
            panic!("given back as if no cancel were on its way")
        };
        let mut landing = Box::pin(landing.clean());
        assert!(futures_util::FutureExt::now_or_never(landing.as_mut()).is_none());
        // The key leads nowhere any more, so nobody adds another one.
        forward(&one).await.unwrap();
        door.add_permits(1);
        assert!(landing.await, "the source has dealt with it");
        cancel.await.unwrap();
        assert_eq!(answer(&mut opened.stream).await.unwrap_err(), "57014");
        two.lease(Arc::clone(&at), Muted::No);
        for _ in 0..10 {
            assert_eq!(value(&mut opened, "SELECT 1").await, "1");
        }
        assert!(matches!(two.release(), Released::Clean));
    }

    // One that is given up may still arrive: then the session must not go to anybody else.
    let one = cancels.register(NEWEST);
    one.lease(Arc::clone(&at), Muted::No);
    let cancel = forward(&one);
    comes.recv().await.unwrap();
    let Released::Wait(landing) = one.release() else { panic!("given back as if no cancel were on its way") };
    cancel.abort();
    assert!(!landing.clean().await);
    one.lease(Arc::clone(&at), Muted::No);
    let cancel = forward(&one);
    comes.recv().await.unwrap();
    cancel.abort();
    let _ = cancel.await;
    assert!(matches!(one.release(), Released::Spoilt));
    let page = metrics.render();
    assert!(page.contains("fedgate_cancel_requests_total{outcome=\"idle\"} 20"), "{page}");
}

#[tokio::test]
async fn the_gateways_own_queries_run_on_pinned_sessions() {
    let folder = Folder::new();
    let authority = Authority::new("authority of the test");
    let password = folder.file("password", PASSWORD);
    let postgres = server_of_all_methods(Some(server_tls(&authority, &["localhost"])));
    for method in METHODS {
        for (host, mode) in [
            (tcp("localhost", postgres.port()), TlsMode::Disable),
            (tcp("localhost", postgres.port()), TlsMode::Require),
            (unix(&postgres), TlsMode::Disable),
        ] {
            let settings = settings(vec![host], &format!("login_{method}"), Some(password.clone()));
            let source = source(with_tls(settings, mode, None));
            let (client, connection) = source.client().await.unwrap();
            assert_eq!(connection.parameter("default_transaction_read_only"), Some("on"));
            let driver = tokio::spawn(connection);
            let row = client
                .query_one(
                    "SELECT current_setting('statement_timeout'), current_setting('application_name'), $1::text",
                    &[&"é"],
                )
                .await
                .unwrap();
            assert_eq!((row.get(0), row.get(1), row.get(2)), ("1min", "fedgate own queries", "é"));
            let error = client.batch_execute("CREATE TABLE public.t ()").await.unwrap_err();
            assert_eq!(error.code().map(|code| code.code()), Some("25006"));
            drop(client);
            driver.await.unwrap().unwrap();
        }
    }
}

#[tokio::test]
async fn the_clients_own_login_is_passed_through() {
    let authority = Authority::new("authority of the test");
    let postgres = server_of_all_methods(Some(server_tls(&authority, &["localhost"])));
    let users = ["login_scram", "login_md5", "login_password", "login_trust"];
    for mode in [TlsMode::Disable, TlsMode::Require] {
        let settings = settings(vec![tcp("127.0.0.1", postgres.port())], "nobody", None);
        let source = source(with_tls(settings, mode, None));
        for user in users {
            let mut person = Person::new(user, PASSWORD, false);
            let mut opened = source.open_relayed(&reading(), user, &mut person).await.unwrap();
            assert_eq!(value(&mut opened, "SELECT session_user").await, user);
            assert_eq!(value(&mut opened, "SHOW default_transaction_read_only").await, "on");
            assert_eq!(person.proved, user == "login_scram");

            if user != "login_trust" {
                let mut person = Person::new(user, "wrong", false);
                let error = failed(source.open_relayed(&reading(), user, &mut person).await);
                let relayed = String::from_utf8_lossy(error.relayed().unwrap()).into_owned();
                assert!(relayed.starts_with('E') && relayed.contains("C28P01"), "{relayed}");
                assert!(relayed.contains(user), "{relayed}");
            }
        }
        // A client on TLS that could bind takes the missing offer for what the source knows it is not.
        let mut person = Person::new("login_scram", PASSWORD, true);
        let outcome = source.open_relayed(&reading(), "login_scram", &mut person).await;
        assert_eq!(outcome.is_ok(), mode == TlsMode::Disable);
    }
}

#[tokio::test]
async fn whether_relay_can_work_is_known_beforehand() {
    let folder = Folder::new();
    let tcp = settings(vec![tcp("127.0.0.1", 5432)], "nobody", None);
    let socket = Host::Unix { path: folder.0.path().join(".s.PGSQL.5432") };
    let unix = settings(vec![socket], "nobody", None);
    for (client_tls, settings, mode, fit) in [
        (false, &tcp, TlsMode::VerifyFull, RelayFit::Works),
        (true, &tcp, TlsMode::Disable, RelayFit::Works),
        (true, &tcp, TlsMode::Prefer, RelayFit::UnlessSourceOffersTls),
        (true, &tcp, TlsMode::Require, RelayFit::OnlyWithoutChannelBinding),
        (true, &tcp, TlsMode::VerifyFull, RelayFit::OnlyWithoutChannelBinding),
        (true, &unix, TlsMode::VerifyFull, RelayFit::Works),
    ] {
        assert_eq!(relay_works(client_tls, &with_tls(settings.clone(), mode, None)), fit);
    }
}

#[test]
fn certificates_that_cannot_be_used_are_named() {
    let folder = Folder::new();
    let empty = folder.file("empty.pem", "");
    let key = folder.file("key.pem", &Authority::new("a").server(&["localhost"]).private_key);
    let torn = folder.file("torn.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n");
    let false_one =
        folder.file("false.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let missing = folder.0.path().join("missing.pem");
    for path in [&empty, &key, &torn, &false_one, &missing] {
        let settings = settings(vec![tcp("localhost", 5432)], "nobody", None);
        let error = Source::new(Arc::new(with_tls(settings, TlsMode::VerifyCa, Some(path)))).unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("source \"climscore\": tls_ca: "), "{text}");
        assert!(text.contains(&path.display().to_string()), "{text}");
    }
    let settings = settings(vec![tcp("no name", 5432)], "nobody", None);
    let error = Source::new(Arc::new(with_tls(settings, TlsMode::Require, None))).unwrap_err();
    assert!(error.to_string().contains("hosts: \"no name\""), "{error}");
}

/// Sessions may live on any thread.
#[test]
fn opening_is_send() {
    fn is_send<T: Send>(_: T) {}
    let source = source(settings(vec![tcp("localhost", 5432)], "nobody", None));
    let opening = reading();
    let mut person = Person::new("a", "b", false);
    is_send(source.open(&opening));
    is_send(source.open_relayed(&opening, "a", &mut person));
    is_send(source.client());
}
