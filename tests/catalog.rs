//! The catalogs over real files and sockets: OpenMetadata's contract, and every fault of it.
//!
//! Invariant: what is not a whole picture is an error, and an error never holds the token.

mod support;

use std::path::Path;
use std::time::Duration;

use fedgate::config::{OpenMetadataSection, SecretFile};
use fedgate::sync::catalog::file::FileCatalog;
use fedgate::sync::catalog::openmetadata::OpenMetadata as Client;
use fedgate::sync::catalog::{Catalog, CatalogError, Hint, Picture};
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
        for column in &table.columns {
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
    let cases: Vec<(Fault, &str)> = vec![
        (Fault::LyingTotal, "speaks of"),
        (Fault::SamePage, "same page twice"),
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
        // On each page, since a list may change while it is read, and its last page counts.
        for _ in 0..3 {
            server.fault(fault.clone());
        }
        let error = client.read(before).await.expect_err(want);
        server.no_faults();
        assert!(matches!(error, CatalogError::NotWhole(_)), "{fault:?}: {error:?}");
        assert!(error.to_string().contains(want), "{fault:?}: {error}");
        assert!(!error.to_string().contains(&server.token()));
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
    server.fault(Fault::Hang);
    let error = client.read(0).await.unwrap_err();
    assert!(matches!(error, CatalogError::Unreachable(_)), "{error:?}");
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
    server.fault(Fault::Text("{}".into()));
    assert_eq!(client.refresh(&last, &hint(CUSTOMERS)).await.unwrap().tables.len(), 5);
    server.forget_requests();
    client.refresh(&last, &Hint::all()).await.unwrap();
    assert!(lists(&server) > 0);
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
    for (text, want) in [
        ("catalogs: {}", "no table at all where there were 1"),
        ("", "catalogs"),
        ("catalogs: [", "not valid YAML"),
        ("catalogs: {c: {s: {t: {col: 7}}}}", "catalogs.c.s.t.col"),
    ] {
        std::fs::write(&path, text).unwrap();
        let error = catalog.refresh(&picture, &Hint::all()).await.unwrap_err().to_string();
        assert!(error.contains(want), "{text}: {error}");
    }
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert!(matches!(catalog.read(0).await, Err(CatalogError::Unreachable(_))));
}
