//! The file publisher on a real disk, with others who write to the same document.
//!
//! Invariant: whoever reads meanwhile sees a whole document, and no writer's change is lost.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fedgate::document::Document;
use fedgate::sync::publisher::{FilePublisher, PublishError, Publisher, Version};

fn text(value: usize) -> String {
    Document::parse(
        format!(r#"{{"version":1,"value":{value},"padding":"{}"}}"#, "x".repeat(value * 977 % 70_000))
            .as_bytes(),
    )
    .unwrap()
    .to_text()
}

fn value(document: &Document) -> usize {
    let json: serde_json::Value = serde_json::from_str(&document.to_text()).unwrap();
    usize::try_from(json["value"].as_u64().unwrap()).unwrap()
}

fn place(folder: &Path) -> PathBuf {
    let path = folder.join("policy.json");
    std::fs::write(&path, text(0)).unwrap();
    path
}

fn others_in(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "policy.json")
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_document_is_replaced_whole_and_as_it_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let publisher = FilePublisher::new(place(folder.path()));
    let read = publisher.read().await.unwrap();
    let next = Document::parse(text(1).as_bytes()).unwrap();
    let version = publisher.publish(&read.version, &next).await.unwrap();
    let again = publisher.read().await.unwrap();
    assert_eq!((value(&again.document), &again.version), (1, &version));
    // The old version is nobody's any longer.
    let error = publisher.publish(&read.version, &next).await.unwrap_err();
    assert!(matches!(error, PublishError::Conflict), "{error}");
    assert_eq!(others_in(folder.path()), [".policy.json.lock"], "nothing is left beside the document");
}

#[tokio::test]
async fn a_link_stays_and_permissions_do() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = place(folder.path());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
    let link = folder.path().join("link.json");
    std::os::unix::fs::symlink("policy.json", &link).unwrap();
    let publisher = FilePublisher::new(link.clone());
    let read = publisher.read().await.unwrap();
    publisher.publish(&read.version, &Document::parse(text(2).as_bytes()).unwrap()).await.unwrap();
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text(2));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
}

#[tokio::test]
async fn what_a_person_broke_is_reported_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    let path = place(folder.path());
    let publisher = FilePublisher::new(path.clone());
    let read = publisher.read().await.unwrap();
    std::fs::write(&path, "{\"version\": 1,").unwrap();
    assert!(matches!(publisher.read().await, Err(PublishError::Document(_))));
    let next = Document::parse(text(1).as_bytes()).unwrap();
    assert!(matches!(publisher.publish(&read.version, &next).await, Err(PublishError::Conflict)));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"version\": 1,");
    std::fs::remove_file(&path).unwrap();
    let error = publisher.read().await.unwrap_err().to_string();
    assert!(error.starts_with("the policy document cannot be read: No such file"), "{error}");
    std::fs::create_dir(&path).unwrap();
    assert!(publisher.read().await.unwrap_err().to_string().contains("not a regular file"));
}

#[tokio::test]
async fn what_a_crash_left_behind_is_no_hindrance() {
    let folder = tempfile::tempdir().unwrap();
    let path = place(folder.path());
    std::fs::write(folder.path().join(".policy.json.new"), "{\"half").unwrap();
    std::fs::write(folder.path().join(".policy.json.lock"), "").unwrap();
    let publisher = FilePublisher::new(path);
    let read = publisher.read().await.unwrap();
    publisher.publish(&read.version, &Document::parse(text(3).as_bytes()).unwrap()).await.unwrap();
    assert_eq!(value(&publisher.read().await.unwrap().document), 3);
    assert_eq!(others_in(folder.path()), [".policy.json.lock"]);
}

/// Each of several writers counts one up, again and again, while a reader looks.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_change_is_lost_and_no_half_is_seen() {
    const WRITERS: usize = 4;
    const EACH: usize = 10;
    let folder = tempfile::tempdir().unwrap();
    let publisher = FilePublisher::new(place(folder.path()));
    let done = Arc::new(AtomicBool::new(false));
    let reader = tokio::spawn({
        let (publisher, done) = (publisher.clone(), Arc::clone(&done));
        async move {
            let mut last = 0;
            while !done.load(Ordering::Relaxed) {
                let now = value(&publisher.read().await.expect("a whole document").document);
                assert!(now >= last, "{now} after {last}");
                last = now;
            }
        }
    });
    let writers = (0..WRITERS).map(|_| {
        let publisher = publisher.clone();
        tokio::spawn(async move {
            let mut written = 0;
            while written < EACH {
                let read = publisher.read().await.unwrap();
                let next = Document::parse(text(value(&read.document) + 1).as_bytes()).unwrap();
                match publisher.publish(&read.version, &next).await {
                    Ok(version) => {
                        assert_eq!(version, Version::of_text(next.to_text().as_bytes()));
                        written += 1;
                    }
                    Err(PublishError::Conflict | PublishError::Verify) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    reader.await.unwrap();
    assert_eq!(value(&publisher.read().await.unwrap().document), WRITERS * EACH);
}
