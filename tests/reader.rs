//! The `[document]` reader: hand edits count within moments, and nothing that is broken comes into force.
//!
//! Invariant: nothing here waits for a look to be due: readers are nudged, and what they tell is waited for.

mod support;

use std::path::{Path, PathBuf};
use std::time::Duration;

use fedgate::config::DocumentPlace;
use fedgate::document::{Document, Snapshot};
use fedgate::metrics::Metrics;
use fedgate::sync::history;
use fedgate::sync::publisher::{AnyPublisher, Publisher};
use fedgate::sync::reader::{DocumentHandle, DocumentStatus, FaultKind, Outlet, Reader};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(30);
/// No look but the first is due in a test.
const NEVER: Duration = Duration::from_secs(3600);

struct Running {
    folder: tempfile::TempDir,
    handle: DocumentHandle,
    metrics: Metrics,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

fn text(mask: &str) -> String {
    format!(
        r#"{{"version": 1, "mask_library": {{"{mask}": {{"strength": 60}}}}, "subjects": {{"analyst": {{"kind": "role", "masks": [
          {{"catalog": "c", "schema": "s", "table": "t", "column": "email", "mask": "{mask}"}}]}}}}}}"#
    )
}

impl Running {
    fn start(first: Option<&str>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        if let Some(text) = first {
            std::fs::write(folder.path().join("policy.json"), text).unwrap();
        }
        let (outlet, metrics, stop) = (Outlet::default(), Metrics::new().unwrap(), CancellationToken::new());
        let place = DocumentPlace::File { path: folder.path().join("policy.json") };
        let reader = Reader::new(
            AnyPublisher::new(&place),
            NEVER,
            outlet.clone(),
            metrics.document.clone(),
            stop.clone(),
        );
        Self { folder, handle: outlet.handle(), metrics, stop, task: tokio::spawn(reader.run()) }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("policy.json")
    }

    /// Writes and nudges.
    fn edit(&self, text: impl AsRef<[u8]>) {
        std::fs::write(self.path(), text).unwrap();
        self.handle.nudge();
    }

    async fn status(&self, is: impl FnMut(&DocumentStatus) -> bool) -> DocumentStatus {
        let mut status = self.handle.status();
        tokio::time::timeout(PATIENCE, status.wait_for(is)).await.expect("in time").unwrap().clone()
    }

    async fn in_force(&self, is: impl Fn(&Snapshot) -> bool) -> std::sync::Arc<Snapshot> {
        let mut in_force = self.handle.in_force();
        let waited = tokio::time::timeout(PATIENCE, in_force.wait_for(|now| now.as_deref().is_some_and(&is)));
        waited.await.expect("in time").unwrap().clone().unwrap()
    }

    /// Two full looks: the first may have begun before what is to be seen was there.
    async fn looks(&self) {
        for _ in 0..2 {
            let before = self.reads();
            self.handle.nudge();
            let looked = async {
                while self.reads() == before {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, looked).await.expect("in time");
        }
    }

    fn reads(&self) -> u64 {
        ["ok", "broken", "unreadable"]
            .iter()
            .map(|outcome| self.count(&format!("fedgate_document_reads_total{{outcome=\"{outcome}\"}}")))
            .sum()
    }

    fn count(&self, line: &str) -> u64 {
        let page = self.metrics.render();
        let value = page.lines().find_map(|other| other.strip_prefix(line)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("{line} is not on the page")).parse().unwrap()
    }
}

fn has(mask: &str) -> impl Fn(&Snapshot) -> bool {
    move |snapshot| snapshot.document.policy().mask_library.contains_key(mask)
}

#[tokio::test]
async fn an_edit_comes_into_force_and_goes_by_what_it_says() {
    let running = Running::start(Some(&text("sha256")));
    let first = running.in_force(has("sha256")).await;
    let document = Document::parse(text("sha256").as_bytes()).unwrap();
    assert_eq!(*first.version, *history::content(&document.to_text()), "as the history of the loop calls it");
    running.edit(text("redact"));
    let second = running.in_force(has("redact")).await;
    assert_ne!(first.version, second.version);
    // Another layout says the same.
    running.edit(second.document.to_text());
    running.looks().await;
    assert!(std::sync::Arc::ptr_eq(&second, &running.in_force(has("redact")).await));
    let status = running.status(|_| true).await;
    assert_eq!((status.version.as_deref(), status.fault), (Some(&*second.version), None));
    assert_eq!(status.since, Some(second.read_at));
    assert_eq!(running.count("fedgate_document_changes_total"), 2);
    running.stop.cancel();
    running.task.await.unwrap();
}

#[tokio::test]
async fn what_somebody_broke_is_told_once_and_the_last_good_one_stays() {
    let running = Running::start(Some(&text("sha256")));
    let good = running.in_force(has("sha256")).await;
    let too_long = {
        let mut text = text("sha256").into_bytes();
        text.resize(fedgate::document::DOCUMENT_LIMIT + 1, b' ');
        text
    };
    let unknown_mask = text("sha256").replace(r#""mask": "sha256""#, r#""mask": "none""#);
    let broken: [(&[u8], &str); 5] = [
        (b"{\"version\": 1,", "not valid JSON"),
        (b"", "not valid JSON"),
        (unknown_mask.as_bytes(), "subjects.analyst.masks[0].mask"),
        (b"{\"version\": 2}", "version"),
        (&too_long, "longer than"),
    ];
    for (text, word) in broken {
        running.edit(text);
        let status = running
            .status(|status| status.fault.as_ref().is_some_and(|fault| fault.message.contains(word)))
            .await;
        assert_eq!(status.fault.as_ref().unwrap().kind, FaultKind::Broken);
        assert_eq!(status.version.as_deref(), Some(&*good.version));
        assert_eq!(running.count("fedgate_document_fault"), 1);
        assert!(running.in_force(|_| true).await.version == good.version, "{word}");
    }
    // The same fault again wakes nobody.
    let mut status = running.handle.status();
    status.mark_unchanged();
    running.looks().await;
    assert!(!status.has_changed().unwrap());
    // The same good document again, which is not new.
    running.edit(text("sha256"));
    running.status(|status| status.fault.is_none()).await;
    assert_eq!(running.count("fedgate_document_fault"), 0);
    assert_eq!(running.count("fedgate_document_changes_total"), 1);
    // A file that is gone, and back with the same bytes.
    std::fs::remove_file(running.path()).unwrap();
    running.handle.nudge();
    let status = running.status(|status| status.fault.is_some()).await;
    assert_eq!(status.fault.unwrap().kind, FaultKind::Unreadable);
    running.edit(text("sha256"));
    running.status(|status| status.fault.is_none()).await;
    assert!(std::sync::Arc::ptr_eq(&good, &running.in_force(|_| true).await));
}

#[tokio::test]
async fn a_document_that_is_not_there_yet_is_waited_for() {
    let running = Running::start(None);
    let status = running.status(|status| status.fault.is_some()).await;
    assert_eq!((status.version, status.last_success), (None, None));
    assert!(running.handle.in_force().borrow().is_none());
    running.edit(text("sha256"));
    running.in_force(has("sha256")).await;
    let json = serde_json::to_value(running.status(|status| status.fault.is_none()).await).unwrap();
    assert!(json["since"].as_str().unwrap().ends_with('Z') && json["fault"].is_null(), "{json}");
}

#[tokio::test]
async fn what_the_loop_publishes_counts_at_once() {
    let running = Running::start(Some(&text("sha256")));
    running.in_force(has("sha256")).await;
    let publisher = AnyPublisher::new(&DocumentPlace::File { path: running.path() });
    let read = publisher.read().await.unwrap();
    let next = Document::parse(text("redact").as_bytes()).unwrap();
    publisher.publish(&read.version, &next).await.unwrap();
    running.handle.nudge();
    let now = running.in_force(has("redact")).await;
    assert_eq!(*now.version, *history::content(&next.to_text()));
}

fn setup(document: &str) -> support::Setup {
    support::Setup::new(format!(
        "[gateway]\nlisten = [\"127.0.0.1:0\"]\n[gateway.auth]\nmethod = \"trust\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [[source]]\nname = \"s\"\nhosts = [\"127.0.0.1:1\"]\ndatabase = \"s\"\nuser = \"u\"\npassword_file = \"p\"\n\
         access = [{{ users = [\"visitor\"] }}]\n{document}"
    ))
    .file("p", "x")
    .file("one.json", text("sha256"))
    .file("two.json", text("redact"))
}

fn file(name: &str) -> String {
    format!("[document]\nkind = \"file\"\npath = \"{name}\"\nlook_every = \"100ms\"\n")
}

#[test]
fn the_gateway_reads_the_document_from_its_start_to_its_end() {
    let gateway = support::Gateway::start(setup(&file("one.json")));
    gateway.wait_for_line_after(0, "a policy document is in force");
    let mark = gateway.log_mark();
    std::fs::write(gateway.folder().join("one.json"), "{").unwrap();
    gateway.wait_for_line_after(mark, "what is in force stays");
    let mark = gateway.log_mark();
    std::fs::write(gateway.folder().join("one.json"), text("md5")).unwrap();
    gateway.wait_for_line_after(mark, "a policy document is in force");
    gateway.wait_for_line_after(mark, "in order again");
    // A reload of the same section changes nothing, one of another place does.
    let mark = gateway.log_mark();
    gateway.signal("HUP");
    gateway.wait_for_line_after(mark, "configuration reloaded");
    let configuration = gateway.config_file();
    replace(&configuration, "one.json", "two.json");
    gateway.signal("HUP");
    gateway.wait_for_line_after(mark, "a policy document is in force");
    let (_, page) = gateway.get("/metrics");
    assert!(page.contains("fedgate_document_changes_total 3\n"), "{page}");
    let mark = gateway.log_mark();
    replace(&configuration, &file("two.json"), "");
    gateway.signal("HUP");
    gateway.wait_for_line_after(mark, "no policy document is configured any longer");
}

fn replace(path: &Path, what: &str, with: &str) {
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains(what), "{text}");
    std::fs::write(path, text.replace(what, with)).unwrap();
}
