//! The catalogs over real files and sockets: OpenMetadata's contract, and every fault of it.
//!
//! Invariant: what is not a whole picture is an error, and an error never holds the token.

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fedgate::config::{OpenMetadataSection, SecretFile};
use fedgate::sync::catalog::file::FileCatalog;
use fedgate::sync::catalog::openmetadata::OpenMetadata as Client;
use fedgate::sync::catalog::{Catalog, CatalogError, Hint, Picture};
use support::certificates::{Authority, Pair};
use support::openmetadata::{Fault, OpenMetadata};

const CUSTOMERS: &str = "pg_lab.shop.public.customers";

fn section(server: &OpenMetadata, folder: &Path) -> OpenMetadataSection {
    let token = folder.join("token");
    std::fs::write(&token, format!("{}\n", server.token())).unwrap();
    OpenMetadataSection {
        base_url: server.url(),
        token: SecretFile::new(token),
        ca: None,
        services: [("pg_lab".to_owned(), "climscore".to_owned())].into(),
        glossaries: false,
        page_size: 2,
        timeout: Duration::from_secs(5),
        retries: 2,
    }
}

/// Five tables of ours in three pages, and one of nobody's.
fn server() -> OpenMetadata {
    let server = OpenMetadata::start();
    server.put(CUSTOMERS, &["id", "email", "address"]);
    for at in 0..4 {
        server.put(&format!("pg_lab.shop.public.t{at}"), &["id"]);
    }
    server.put("elsewhere.shop.public.secrets", &["id"]);
    server.tag(CUSTOMERS, "email", "PII.Sensitive", "Confirmed");
    server.nest(CUSTOMERS, "address", "street");
    server
}

fn tagged(picture: &Picture) -> Vec<String> {
    let mut found = Vec::new();
    for table in &picture.tables {
        for column in table.columns.iter() {
            for label in column.all_labels() {
                found.push(format!("{}.{}.{} {:?}", table.name, column.name, label.tag, label.state));
            }
        }
    }
    found
}

#[tokio::test]
async fn pages_make_a_picture() {
    let (server, folder) = (server(), tempfile::tempdir().unwrap());
    server.tag("pg_lab.shop.public.t0", "id", "PII.Sensitive", "Suggested");
    server.disable("PCI");
    server.delete("pg_lab.shop.public.t3");
    let client = Client::new(section(&server, folder.path())).unwrap();
    assert_eq!(client.version().await.unwrap(), "1.4.0");
    let picture = client.read(0).await.unwrap();
    assert_eq!(picture.tables.len(), 4);
    assert_eq!(
        tagged(&picture),
        [
            "customers.email.PII.Sensitive Confirmed",
            "customers.address.PII.Sensitive Confirmed",
            "t0.id.PII.Sensitive Suggested"
        ]
    );
    assert!(picture.disabled.contains("PCI") && !picture.disabled.contains("PII"));
    let lists = server.requests().into_iter().filter(|path| path.starts_with("/api/v1/tables?")).count();
    assert_eq!(lists, 3, "{:?}", server.requests());
}

#[tokio::test]
async fn what_is_not_whole_is_no_picture() {
    let (server, folder) = (server(), tempfile::tempdir().unwrap());
    let client = Client::new(section(&server, folder.path())).unwrap();
    let before = client.read(0).await.unwrap().tables.len();
    let deep = format!("{}{}", "[".repeat(5000), "]".repeat(5000));
    let long = "x".repeat(100_000);
    let text = |text: &str| Fault::Text(text.to_owned());
    let cases: Vec<(Fault, &str)> = vec![
        (Fault::LyingTotal, "speaks of"),
        (Fault::SamePage, "twice"),
        (Fault::LostPage, "twice, so it may have left another table out"),
        (Fault::Cursor(long.clone()), "cursor is longer than"),
        (Fault::Cursor("garbage".into()), "Last unit does not have enough valid bits"),
        (text(r#"{"data":[],"paging":{"total":0,"after":"a"}}"#), "a page with nothing on it"),
        (text(&format!(r#"{{"data":[],"paging":{{"total":"{long}\n"}}}}"#)), "paging.total: invalid type"),
        (
            text(&format!(r#"{{"data":[{{"fullyQualifiedName":"pg_lab.{long}"}}],"paging":{{"total":1}}}}"#)),
            "cannot be read",
        ),
        (text("{\"data\":[],\"data\":[],\"paging\":{\"total\":0}}"), "duplicate field"),
        (text("{\"data\":[],\"paging\":{\"total\":0}} {}"), "trailing characters"),
        (Fault::Proxy(200, "text/plain", "{}"), "not JSON"),
        (Fault::Proxy(404, "text/html", "<h1>default backend</h1>"), "has no /api/v1/tables"),
        (Fault::Proxy(418, "application/json", "{\"message\":[1]}"), "answers 418: no message"),
        (
            Fault::Proxy(403, "application/json", "{\"message\":\"not you, good.bot.token\\nx\"}"),
            "not you, (token)",
        ),
        (Fault::Empty, "no table at all where there were"),
        (Fault::Html, "not JSON"),
        (Fault::Errors, "reports 1 errors"),
        (Fault::Huge, "longer than"),
        (Fault::Redirect("http://127.0.0.1:1/".into()), "redirect"),
        (Fault::Text(String::new()), "not what it should be"),
        (Fault::Text("{\"data\":[],\"paging\":".into()), "not what it should be"),
        (Fault::Text(deep), "not what it should be"),
        (Fault::Status(400, None), "answers 400"),
        (Fault::Status(403, None), "answers 403"),
    ];
    for (fault, want) in cases {
        // However often it is asked.
        server.always(fault.clone());
        let error = client.read(before).await.expect_err(want);
        server.no_faults();
        let said = error.to_string();
        let fault: String = format!("{fault:?}").chars().take(100).collect();
        assert!(
            matches!(&error, CatalogError::NotWhole(_))
                || matches!(&error, CatalogError::Unreachable(why) if why.contains("answers 500")),
            "{fault}: {error:?}"
        );
        assert!(said.contains(want), "{fault}: {error}");
        assert!(
            !said.contains(&server.token()) && !said.contains('\n') && said.len() < 600,
            "{fault}: {error}"
        );
    }
    // Somebody wrote while it was read; and an order is as good as another.
    for fault in [Fault::LyingTotal, Fault::SamePage, Fault::LostPage, Fault::Reordered] {
        // Not the first page, which is the first page in any case.
        server.fault(Fault::Reordered);
        server.fault(fault.clone());
        assert_eq!(client.read(before).await.unwrap().tables.len(), before, "{fault:?}");
    }
    // Asked for once more each, and then it is whole again.
    for fault in [
        Fault::Status(503, None),
        Fault::Status(500, Some("0".into())),
        Fault::Status(429, Some("0".into())),
        Fault::Status(429, Some("Wed, 21 Oct 2015 07:28:00 GMT".into())),
        Fault::Cut,
    ] {
        server.fault(fault.clone());
        assert_eq!(client.read(before).await.unwrap().tables.len(), before, "{fault:?}");
    }
    // And when it goes on, there is an end.
    for _ in 0..3 {
        server.fault(Fault::Status(503, Some("0".into())));
    }
    let error = client.read(before).await.unwrap_err();
    assert!(matches!(&error, CatalogError::Unreachable(why) if why.contains("503")), "{error:?}");
    assert_eq!(client.read(before).await.unwrap().tables.len(), before);
}

#[tokio::test]
async fn a_server_that_says_nothing_more_is_left() {
    let (server, folder) = (server(), tempfile::tempdir().unwrap());
    let section = OpenMetadataSection {
        timeout: Duration::from_millis(300),
        retries: 0,
        ..section(&server, folder.path())
    };
    let client = Client::new(section).unwrap();
    for fault in [Fault::Hang, Fault::Trickle] {
        server.fault(fault.clone());
        let error = client.read(0).await.unwrap_err();
        assert!(matches!(error, CatalogError::Unreachable(_)), "{fault:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_token_is_read_anew_and_asked_about_once() {
    let (server, folder) = (server(), tempfile::tempdir().unwrap());
    let client = Client::new(section(&server, folder.path())).unwrap();
    client.read(0).await.unwrap();
    server.accept("another.bot.token");
    server.forget_requests();
    let error = client.read(5).await.unwrap_err();
    assert!(matches!(&error, CatalogError::Unauthorized(why) if why == "Expired token!"), "{error:?}");
    assert_eq!(server.requests().len(), 1, "nothing is tried again");
    std::fs::write(folder.path().join("token"), "another.bot.token").unwrap();
    assert_eq!(client.read(5).await.unwrap().tables.len(), 5);
    for bad in ["", "two\nlines", "\u{7}"] {
        std::fs::write(folder.path().join("token"), bad).unwrap();
        let error = client.read(5).await.unwrap_err();
        assert!(matches!(error, CatalogError::Unauthorized(_)), "{bad:?}: {error:?}");
    }
    std::fs::remove_file(folder.path().join("token")).unwrap();
    assert!(matches!(client.read(5).await, Err(CatalogError::Unauthorized(_))));
}

#[tokio::test]
async fn a_token_goes_nowhere_else() {
    let (server, elsewhere, folder) = (server(), OpenMetadata::start(), tempfile::tempdir().unwrap());
    let client = Client::new(section(&server, folder.path())).unwrap();
    for path in ["/api/v1/tables", ""] {
        server.always(Fault::Redirect(format!("{}{path}", elsewhere.url())));
        let error = client.read(5).await.unwrap_err().to_string();
        assert!(error.contains("answers 302, a redirect, which is not followed"), "{error}");
    }
    assert_eq!(elsewhere.requests(), [""; 0]);
}

/// The server behind a certificate: what comes over TLS is passed on as it is.
async fn behind_tls(server: &OpenMetadata, pair: &Pair) -> (String, tokio::task::JoinHandle<()>) {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(pair.private_key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let behind = server.url().trim_start_matches("http://").to_owned();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // Who does not trust it ends the handshake.
            let Ok(mut front) = acceptor.accept(stream).await else { continue };
            let Ok(mut back) = tokio::net::TcpStream::connect(&behind).await else { continue };
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut front, &mut back).await.ok() });
        }
    });
    (format!("https://{address}"), task)
}

#[tokio::test]
async fn only_a_trusted_certificate_gets_the_token() {
    let (server, folder) = (server(), tempfile::tempdir().unwrap());
    let (good, other) = (Authority::new("good"), Authority::new("other"));
    let ca = folder.path().join("ca.pem");
    std::fs::write(&ca, good.certificate()).unwrap();
    let cases = [
        (good.server(&["127.0.0.1"]), Some(ca.clone()), true),
        (good.server(&["elsewhere.example"]), Some(ca.clone()), false),
        (other.server(&["127.0.0.1"]), Some(ca), false),
        // The system does not know it either.
        (good.server(&["127.0.0.1"]), None, false),
    ];
    for (at, (pair, ca, trusted)) in cases.into_iter().enumerate() {
        let (base_url, task) = behind_tls(&server, &pair).await;
        let section = OpenMetadataSection { base_url, ca, retries: 0, ..section(&server, folder.path()) };
        server.forget_requests();
        // A machine without roots of its own has no client at all, which is as good.
        let Ok(client) = Client::new(section) else {
            assert!(!trusted, "case {at}");
            continue;
        };
        match client.read(0).await {
            Ok(picture) => assert_eq!((picture.tables.len(), trusted), (5, true), "case {at}"),
            Err(error) => {
                assert!(!trusted, "case {at}: {error}");
                assert!(matches!(error, CatalogError::Unreachable(_)), "case {at}: {error:?}");
                assert_eq!(server.requests(), [""; 0], "case {at}");
            }
        }
        task.abort();
    }
}

#[tokio::test]
async fn nobody_there() {
    let folder = tempfile::tempdir().unwrap();
    let server = OpenMetadata::start();
    let section = OpenMetadataSection { retries: 1, ..section(&server, folder.path()) };
    drop(server);
    let error = Client::new(section).unwrap().read(0).await.unwrap_err();
    assert!(matches!(&error, CatalogError::Unreachable(why) if why.contains("cannot connect")), "{error:?}");
}

#[tokio::test]
async fn a_hint_reads_what_it_names() {
    let (server, folder) = (server(), tempfile::tempdir().unwrap());
    let client = Client::new(section(&server, folder.path())).unwrap();
    let last = client.read(0).await.unwrap();
    let hint = |name: &str| Hint { tables: [name.into()].into(), whole: false };
    let lists = |server: &OpenMetadata| {
        server.requests().iter().filter(|path| path.starts_with("/api/v1/tables?")).count()
    };

    server.tag("pg_lab.shop.public.t1", "id", "PII.Sensitive", "Confirmed");
    server.forget_requests();
    let picture = client.refresh(&last, &hint("pg_lab.shop.public.t1")).await.unwrap();
    assert!(tagged(&picture).contains(&"t1.id.PII.Sensitive Confirmed".to_owned()));
    assert_eq!((picture.tables.len(), server.requests().len()), (5, 1), "one request and no more");

    // New, deleted, of somebody else, and one that never was.
    server.put("pg_lab.shop.public.new", &["id"]);
    assert_eq!(client.refresh(&last, &hint("pg_lab.shop.public.new")).await.unwrap().tables.len(), 6);
    server.delete("pg_lab.shop.public.t2");
    assert_eq!(client.refresh(&last, &hint("pg_lab.shop.public.t2")).await.unwrap().tables.len(), 4);
    assert_eq!(client.refresh(&last, &hint("elsewhere.shop.public.secrets")).await.unwrap().tables.len(), 5);
    assert_eq!(client.refresh(&last, &hint("pg_lab.shop.public.none")).await.unwrap().tables.len(), 5);
    assert_eq!(lists(&server), 0);
    // Names that are none, and answers that are odd, are a reason to read everything.
    server.forget_requests();
    assert_eq!(client.refresh(&last, &hint("pg_lab.../../x")).await.unwrap().tables.len(), 5);
    assert!(lists(&server) > 0);
    for odd in [
        Fault::Text("{}".into()),
        Fault::Text(one_of_another_name()),
        Fault::Html,
        // Whoever stands before the server does not know that a table is gone, whatever it is that is not found.
        Fault::Proxy(404, "text/html", "<h1>default backend</h1>"),
        Fault::Proxy(404, "application/json", "{\"message\":\"no Route matched with those values\"}"),
        Fault::Proxy(404, "application/json", "{\"code\":404,\"message\":\"HTTP 404 Not Found\"}"),
        // As servers do that take no such name in an address.
        Fault::Proxy(400, "text/html", "<h1>Ambiguous URI path separator</h1>"),
        Fault::Proxy(414, "text/html", "<h1>URI Too Long</h1>"),
    ] {
        server.forget_requests();
        server.fault(odd.clone());
        let picture = client.refresh(&last, &hint(CUSTOMERS)).await.unwrap();
        assert_eq!(tagged(&picture)[0], "customers.email.PII.Sensitive Confirmed", "{odd:?}");
        assert!(lists(&server) > 0, "{odd:?}");
    }
    server.forget_requests();
    client.refresh(&last, &Hint::all()).await.unwrap();
    assert!(lists(&server) > 0);
}

fn one_of_another_name() -> String {
    r#"{"fullyQualifiedName":"pg_lab.shop.public.t0","columns":[]}"#.to_owned()
}

#[tokio::test]
async fn services_that_nobody_named() {
    let (server, folder) = (server(), tempfile::tempdir().unwrap());
    // A name that cannot be read is the trouble of its own service.
    server.put_absurd("pg_labels.odd\"name", &["id"]);
    let client = Client::new(section(&server, folder.path())).unwrap();
    assert_eq!(client.read(0).await.unwrap().tables.len(), 5);
    // The service has another name now, perhaps: no reason to unmask everything.
    let renamed = OpenMetadataSection {
        services: [("pg_lab2".to_owned(), "climscore".to_owned())].into(),
        ..section(&server, folder.path())
    };
    let client = Client::new(renamed).unwrap();
    let error = client.read(5).await.unwrap_err().to_string();
    assert!(error.contains("none of OpenMetadata's 7 tables is of a service"), "{error}");
    assert!(client.read(0).await.unwrap().tables.is_empty());
}

#[tokio::test]
async fn names_are_what_they_are() {
    let (server, folder) = (OpenMetadata::start(), tempfile::tempdir().unwrap());
    let long = "x".repeat(1000);
    let names = ["\"a.dotted\"", "with space", "\u{e9}t\u{e9}", "\"../..%2fetc\"", "a?b#c&d", "100%", &long];
    for name in names {
        server.put_absurd(&format!("pg_lab.shop.public.{name}"), &["../x", "a\"b", "", "\u{202e}"]);
    }
    let client = Client::new(section(&server, folder.path())).unwrap();
    let picture = client.read(0).await.unwrap();
    let read: Vec<&str> = picture.tables.iter().map(|table| &*table.name).collect();
    let meant: Vec<&str> = names.iter().map(|name| name.trim_matches('"')).collect();
    assert_eq!(read, meant);
    // Each of them can be asked for by its name.
    for name in names {
        let hint = Hint { tables: [format!("pg_lab.shop.public.{name}").into()].into(), whole: false };
        server.forget_requests();
        let again = client.refresh(&picture, &hint).await.unwrap();
        assert_eq!(again.tables.len(), names.len(), "{name}");
        assert_eq!(server.requests().len(), 1, "{name}: {:?}", server.requests());
    }
}

#[tokio::test]
async fn a_file_is_a_catalog_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("classifications.yaml");
    let catalog = FileCatalog::new(path.clone());
    assert!(matches!(catalog.read(0).await, Err(CatalogError::Unreachable(_))));
    std::fs::write(&path, "catalogs: {climscore: {public: {customers: {email: PII.Sensitive}}}}").unwrap();
    let picture = catalog.read(0).await.unwrap();
    assert_eq!(tagged(&picture), ["customers.email.PII.Sensitive Confirmed"]);
    let bomb: String = (1..30)
        .map(|at| {
            let twice = if at == 1 { "x".to_owned() } else { format!("[*a{0}, *a{0}]", at - 1) };
            format!("a{at}: &a{at} {twice}\n")
        })
        .collect();
    let deep = format!("catalogs: {}", "[".repeat(100_000));
    let long = format!("catalogs: {{\"{}\\n\": 7}}", "x".repeat(1000));
    for (text, want) in [
        (bomb.as_str(), "not valid YAML"),
        (&deep, "opens more than 100 brackets"),
        (&long, "must be a mapping"),
        ("catalogs: {c: {s: {t: {}}}}\ncatalogs: {}", "duplicate"),
        ("catalogs: {}", "no table at all where there were 1"),
        ("", "catalogs"),
        ("catalogs: [", "not valid YAML"),
        ("catalogs: {c: {s: {t: {col: 7}}}}", "catalogs.c.s.t.col"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = catalog.refresh(&picture, &Hint::all()).await.unwrap_err().to_string();
        let text: String = text.chars().take(100).collect();
        assert!(error.contains(want), "{text}: {error}");
        assert!(error.len() < 1000 && !error.contains('\n'), "{text}: {error}");
    }
    std::fs::write(&path, "# nothing\n".repeat(2 << 20)).unwrap();
    assert!(catalog.read(1).await.unwrap_err().to_string().contains("longer than"));
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(catalog.read(0).await, Err(CatalogError::Unreachable(_))));
}
