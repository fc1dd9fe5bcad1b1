//! The policy document in a ConfigMap, on a real Kubernetes API server under the Role that `deploy/kubernetes` gives.
//!
//! Invariant: what a 403 or a 409 looks like is the server's own word; nothing here imitates it.

#[path = "support/kube.rs"]
mod apiserver;
#[path = "kube/house.rs"]
mod house;
mod support;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use apiserver::Kube;
use fedgate::config::{Config, DocumentPlace};
use fedgate::document::Document;
use fedgate::metrics::Metrics;
use fedgate::sync::lease::{Lease, Standing};
use fedgate::sync::publisher::{AnyPublisher, PublishError, Publisher, Version};
use fedgate::sync::reader::{FaultKind, Outlet, Reader};
use house::{House, KEY, NAME, collection, document, manifest, shared, sized, value};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_document_is_published_read_back_and_nothing_else_is_touched() {
    let house = House::on(shared().await).await;
    house
        .patch(json!({
            "metadata": { "labels": { "who": "people" }, "annotations": { "why": "because" } },
            "data": { "other.json": "{\"a\": 1}" }, "binaryData": { "blob": "AAEC" },
        }))
        .await;
    let before = house.get().await;
    let publisher = house.publisher();
    let read = publisher.read().await.unwrap();
    assert_eq!(value(&read.document), 0);
    assert_eq!(read.version.as_str(), before["metadata"]["resourceVersion"]);
    let version = publisher.publish(&read.version, &document(1)).await.unwrap();
    assert_ne!(version, read.version);
    let again = publisher.read().await.unwrap();
    assert_eq!((value(&again.document), &again.version), (1, &version));
    // The two kinds of version: of the writing, and of what it says.
    assert_eq!(Version::of_content(&again.document), Version::of_content(&document(1)));
    let mut after = house.get().await;
    assert_eq!(after["data"][KEY], document(1).to_text());
    for gone in ["/metadata/resourceVersion", "/metadata/managedFields"] {
        *after.pointer_mut(gone).unwrap() = before.pointer(gone).unwrap().clone();
    }
    after["data"][KEY] = before["data"][KEY].clone();
    assert_eq!(after, before);
}

#[tokio::test]
async fn another_writer_is_a_conflict_and_keeps_what_it_wrote() {
    let house = House::on(shared().await).await;
    let publisher = house.publisher();
    let read = publisher.read().await.unwrap();
    house.patch(json!({ "data": { KEY: document(7).to_text() } })).await;
    let error = publisher.publish(&read.version, &document(1)).await.unwrap_err();
    assert!(matches!(error, PublishError::Conflict), "{error}");
    assert_eq!(value(&publisher.read().await.unwrap().document), 7);
    // The server's own word on a patch that names the old writing, sent under the gateway's credentials.
    let patch = json!({ "metadata": { "resourceVersion": read.version.as_str() }, "data": { KEY: "lost" } });
    let (status, answer) = house.kube.call(&house.token, "PATCH", &house.path(NAME), Some(&patch)).await;
    assert_eq!((status, &answer["reason"]), (409, &json!("Conflict")), "{answer}");
}

#[tokio::test]
async fn no_writing_of_many_writers_is_lost() {
    let house = House::on(shared().await).await;
    const EACH: u64 = 8;
    let count = |publisher: AnyPublisher| async move {
        let mut conflicts = 0;
        for _ in 0..EACH {
            loop {
                let read = publisher.read().await.unwrap();
                match publisher.publish(&read.version, &document(value(&read.document) + 1)).await {
                    // Read back, another one's may be there already, on top of ours.
                    Ok(_) | Err(PublishError::Verify) => break,
                    Err(PublishError::Conflict) => conflicts += 1,
                    Err(error) => panic!("{error}"),
                }
            }
        }
        conflicts
    };
    // And one who writes beside it all the time, which is nobody's fault.
    let beside = async {
        for turn in 0..20 {
            house.patch(json!({ "metadata": { "annotations": { "turn": turn.to_string() } } })).await;
        }
    };
    let (a, b, c, ()) =
        tokio::join!(count(house.publisher()), count(house.publisher()), count(house.publisher()), beside);
    assert_eq!(value(&house.publisher().read().await.unwrap().document), EACH * 3);
    assert!(a + b + c > 0, "they never met, so this showed nothing");
}

#[tokio::test]
async fn one_who_annotates_all_the_time_makes_no_publish_fail() {
    let house = House::on(shared().await).await;
    let publisher = house.publisher();
    let stop = CancellationToken::new();
    let annotate = async {
        let mut turn = 0;
        while !stop.is_cancelled() {
            house.patch(json!({ "metadata": { "annotations": { "turn": turn.to_string() } } })).await;
            turn += 1;
        }
        turn
    };
    let publish = async {
        let mut bumped = 0;
        for next in 1..=200 {
            let read = publisher.read().await.unwrap();
            match publisher.publish(&read.version, &document(next)).await {
                // The version is of what was read back, the annotation on top included.
                Ok(version) => bumped += usize::from(publisher.read().await.unwrap().version != version),
                Err(PublishError::Conflict) => {}
                Err(error) => panic!("{error}"),
            }
            if bumped >= 3 {
                break;
            }
        }
        stop.cancel();
    };
    let (turns, ()) = tokio::join!(annotate, publish);
    assert!(turns > 3, "only {turns} annotations were written");
}

#[tokio::test]
async fn the_role_allows_one_config_map_and_no_more() {
    let house = House::on(shared().await).await;
    house.make("another", json!({ "data": { KEY: document(0).to_text() } })).await;
    let all = format!("/api/v1/namespaces/{}/configmaps", house.namespace);
    let own = house.path(NAME);
    let one = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "new" } });
    let secrets = format!("/api/v1/namespaces/{}/secrets", house.namespace);
    for (method, path, body) in [
        ("GET", house.path("another"), None),
        ("PATCH", house.path("another"), Some(json!({ "data": {} }))),
        ("GET", all.clone(), None),
        ("GET", format!("{all}?watch=true"), None),
        ("GET", format!("{all}?watch=true&fieldSelector=metadata.name%3D{NAME}"), None),
        ("GET", format!("/api/v1/watch/namespaces/{}/configmaps/{NAME}", house.namespace), None),
        ("POST", all.clone(), Some(one)),
        ("DELETE", own.clone(), None),
        ("DELETE", all.clone(), None),
        ("GET", secrets, None),
        ("GET", "/api/v1/namespaces/default/configmaps/akko-opa-policy".to_owned(), None),
    ] {
        let (status, answer) = house.kube.call(&house.token, method, &path, body.as_ref()).await;
        assert_eq!((status, &answer["reason"]), (403, &json!("Forbidden")), "{method} {path}: {answer}");
    }
    for (method, body) in [("GET", None), ("PATCH", Some(json!({ "data": { "x": "y" } })))] {
        assert_eq!(house.kube.call(&house.token, method, &own, body.as_ref()).await.0, 200, "{method}");
    }
    let mut whole = house.get().await;
    whole["data"]["x"] = "z".into();
    assert_eq!(house.kube.call(&house.token, "PUT", &own, Some(&whole)).await.0, 200);
    // What whoever runs the gateway is told.
    let error = AnyPublisher::new(&house.place("another", KEY)).read().await.unwrap_err().to_string();
    for word in ["to get the ConfigMap", "another", "403", "get, patch and update", "resourceNames [another]"]
    {
        assert!(error.contains(word), "{error}");
    }
}

#[tokio::test]
async fn a_role_that_only_reads_reads_and_says_what_publishing_needs() {
    let house = House::on(shared().await).await;
    let role =
        format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles/fedgate-policy", house.namespace);
    let rules = json!({ "rules": [{ "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NAME], "verbs": ["get"] }] });
    house.kube.admin("PATCH", &role, Some(&rules)).await;
    let publisher = house.publisher();
    // The server takes the change up a moment later.
    let error = tokio::time::timeout(PATIENCE, async {
        for next in 1.. {
            let read = publisher.read().await.unwrap();
            if let Err(error) = publisher.publish(&read.version, &document(next)).await {
                return error;
            }
        }
        unreachable!()
    })
    .await
    .expect("in time");
    let error = error.to_string();
    assert!(error.contains("to patch the ConfigMap") && error.contains("verbs get, patch"), "{error}");
}

#[tokio::test]
async fn credentials_that_do_not_count_are_told_and_taken_up_once_they_do() {
    let house = House::on(shared().await).await;
    let publisher = house.publisher();
    let fails = async |word: &str| {
        let error = publisher.read().await.unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    house.write_kubeconfig("nobody's");
    fails("401").await;
    std::fs::write(house.kubeconfig(), "{").unwrap();
    fails("kubeconfig").await;
    std::fs::remove_file(house.kubeconfig()).unwrap();
    fails("kubeconfig").await;
    let program = house.kube.kubeconfig("x").replace(
        r#"{"token":"x"}"#,
        r#"{"exec":{"apiVersion":"client.authentication.k8s.io/v1","command":"/bin/false","interactiveMode":"Never"}}"#,
    );
    assert!(program.contains("/bin/false"), "{program}");
    std::fs::write(house.kubeconfig(), program).unwrap();
    fails("another program").await;
    house.write_kubeconfig(&house.token);
    assert_eq!(value(&publisher.read().await.unwrap().document), 0);
    // And one that expires while a client is at hand.
    house.write_kubeconfig("nobody's");
    assert_eq!(value(&publisher.read().await.unwrap().document), 0, "the token in hand still counts");
}

#[tokio::test]
async fn what_is_not_there_or_cannot_be_changed_is_named() {
    let house = House::on(shared().await).await;
    let fails = async |place: DocumentPlace, words: &[&str]| {
        let error = AnyPublisher::new(&place).read().await.unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{error}");
        }
    };
    fails(house.place(NAME, "missing.json"), &[NAME, "\"missing.json\""]).await;
    fails(house.place(NAME, "other"), &["not valid JSON"]).await;
    let path = house.path(NAME);
    house.patch(json!({ "immutable": true })).await;
    let publisher = house.publisher();
    let read = publisher.read().await.unwrap();
    let error = publisher.publish(&read.version, &document(1)).await.unwrap_err().to_string();
    assert!(error.contains("422") && error.contains("immutable"), "{error}");
    house.kube.admin("DELETE", &path, None).await;
    fails(house.place(NAME, KEY), &["there is no ConfigMap", NAME, "404"]).await;
    let error = publisher.publish(&read.version, &document(1)).await.unwrap_err().to_string();
    assert!(error.contains("404"), "{error}");
    assert_eq!(house.kube.call(&house.token, "GET", &path, None).await.0, 404, "nobody made it anew");
}

#[tokio::test]
async fn over_a_mebibyte_in_all_entries_nothing_is_sent() {
    let house = House::on(shared().await).await;
    house.patch(json!({ "data": { "other": "o".repeat(1000) }, "binaryData": { "blob": "AAEC" } })).await;
    let publisher = house.publisher();
    let most = (1 << 20) - 1003;
    let read = publisher.read().await.unwrap();
    let error = publisher.publish(&read.version, &sized(most + 1)).await.unwrap_err();
    assert!(matches!(error, PublishError::TooLarge { size: 1_048_577, .. }), "{error}");
    assert_eq!(publisher.read().await.unwrap().version, read.version, "the old one stays");
    // One byte less is what the server takes, so that nobody is refused for nothing.
    publisher.publish(&read.version, &sized(most)).await.unwrap();
    let patch = json!({ "data": { "one": "x" } });
    let (status, answer) = house.kube.call(&house.token, "PATCH", &house.path(NAME), Some(&patch)).await;
    assert_eq!(status, 422, "{answer}");
}

#[tokio::test]
async fn an_edit_of_the_config_map_comes_into_force_by_get_alone() {
    let house = House::on(shared().await).await;
    let role =
        format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}/roles/fedgate-policy", house.namespace);
    let rules = json!({ "rules": [{ "apiGroups": [""], "resources": ["configmaps"], "resourceNames": [NAME], "verbs": ["get"] }] });
    house.kube.admin("PATCH", &role, Some(&rules)).await;
    let (outlet, metrics, stop) = (Outlet::default(), Metrics::new().unwrap(), CancellationToken::new());
    let handle = outlet.handle();
    let reader = Reader::new(
        house.publisher(),
        Duration::from_millis(50),
        outlet,
        metrics.document.clone(),
        stop.clone(),
    );
    let task = tokio::spawn(reader.run());
    let mut in_force = handle.in_force();
    let mut waits = async |next: u64| {
        let is = |now: &Option<Arc<fedgate::document::Snapshot>>| {
            now.as_ref().is_some_and(|snapshot| value(&snapshot.document) == next)
        };
        tokio::time::timeout(PATIENCE, in_force.wait_for(is))
            .await
            .expect("in time")
            .unwrap()
            .clone()
            .unwrap()
    };
    waits(0).await;
    house.patch(json!({ "data": { KEY: document(1).to_text() } })).await;
    let one = waits(1).await;
    let mut status = handle.status();
    house.patch(json!({ "data": { KEY: "{\"version\":" } })).await;
    let fault = status.wait_for(|status| status.fault.is_some());
    let fault = tokio::time::timeout(PATIENCE, fault).await.expect("in time").unwrap().fault.clone().unwrap();
    assert_eq!(fault.kind, FaultKind::Broken);
    assert!(Arc::ptr_eq(&one, &waits(1).await));
    house.patch(json!({ "data": { KEY: document(2).to_text() } })).await;
    waits(2).await;
    assert!(
        status.borrow().fault.is_none() || status.wait_for(|status| status.fault.is_none()).await.is_ok()
    );
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_server_that_is_killed_is_told_and_what_was_in_force_is_there_afterwards() {
    let mut kube = Kube::start().await;
    let house = House::on(&kube).await;
    let (publisher, folder) = (house.publisher(), house.folder);
    let read = publisher.read().await.unwrap();
    let (outlet, metrics, stop) = (Outlet::default(), Metrics::new().unwrap(), CancellationToken::new());
    let handle = outlet.handle();
    let every = Duration::from_millis(50);
    let reader = Reader::new(publisher.clone(), every, outlet, metrics.document.clone(), stop.clone());
    let task = tokio::spawn(reader.run());
    let mut status = handle.status();
    let mut until = async |fault: bool| {
        let is = status.wait_for(|status| status.version.is_some() && status.fault.is_some() == fault);
        tokio::time::timeout(PATIENCE, is).await.expect("in time").unwrap().clone()
    };
    until(false).await;
    kube.kill_server();
    let error = publisher.publish(&read.version, &document(1)).await.unwrap_err().to_string();
    assert!(error.contains("cannot be reached"), "{error}");
    let told = until(true).await;
    assert_eq!(told.fault.unwrap().kind, FaultKind::Unreadable);
    assert!(handle.in_force().borrow().is_some());
    kube.restart_server().await;
    until(false).await;
    let again = publisher.read().await.unwrap();
    assert_eq!((value(&again.document), &again.version), (0, &read.version));
    publisher.publish(&again.version, &document(1)).await.unwrap();
    stop.cancel();
    task.await.unwrap();
    drop(folder);
}

#[tokio::test]
async fn of_two_replicas_one_holds_the_lease_and_the_other_follows() {
    let house = House::on(shared().await).await;
    let lease = |me: &str| {
        Lease::of(&house.place(NAME, KEY), me).expect("one is configured").every(Duration::from_millis(50))
    };
    let run = |lease: Lease| {
        let (standing, stop) = (lease.standing(), CancellationToken::new());
        let task = tokio::spawn(lease.run(stop.clone()));
        (standing, stop, task)
    };
    async fn until(
        standing: &mut tokio::sync::watch::Receiver<Standing>,
        is: impl Fn(&Standing) -> bool,
    ) -> Standing {
        tokio::time::timeout(PATIENCE, standing.wait_for(is)).await.expect("in time").unwrap().clone()
    }
    // Neither the object nor the right: everybody goes on.
    let (early, stop, task) = run(lease("early"));
    stop.cancel();
    task.await.unwrap();
    assert!(!early.borrow().is_spared());

    for object in manifest("lease.yaml", &house.namespace) {
        house.kube.admin("POST", &collection(&object, &house.namespace), Some(&object)).await;
    }
    let (mut one, stop_one, task_one) = run(lease("one"));
    until(&mut one, |standing| *standing == Standing::Holding).await;
    let (mut two, stop_two, task_two) = run(lease("two"));
    let other = until(&mut two, Standing::is_spared).await;
    assert_eq!(other, Standing::Other { holder: "one".into() });
    // Given back at the end, so that the next one need not wait.
    stop_one.cancel();
    task_one.await.unwrap();
    until(&mut two, |standing| *standing == Standing::Holding).await;
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases/fedgate-sync", house.namespace);
    let held = house.kube.admin("GET", &path, None).await;
    assert_eq!(held["spec"]["holderIdentity"], "two");
    assert!(held["spec"]["leaseTransitions"].as_u64() >= Some(2), "{held}");
    stop_two.cancel();
    task_two.await.unwrap();
    // One who has died without a word: it is waited for as long as it asked, and no longer.
    let gone = json!({ "spec": { "holderIdentity": "gone", "leaseDurationSeconds": 1 } });
    house.kube.admin("PATCH", &path, Some(&gone)).await;
    let (mut three, stop, task) = run(lease("three"));
    until(&mut three, Standing::is_spared).await;
    until(&mut three, |standing| *standing == Standing::Holding).await;
    // Its object is gone: go on without.
    house.kube.admin("DELETE", &path, None).await;
    until(&mut three, |standing| *standing == Standing::Unknown).await;
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn check_reads_it_when_it_may_ask() {
    let house = House::on(shared().await).await;
    let folder = house.folder.path();
    std::fs::write(folder.join("p"), "x").unwrap();
    let toml = format!(
        "[gateway]\nlisten = [\"127.0.0.1:0\"]\n[gateway.auth]\nmethod = \"trust\"\n[[source]]\nname = \"s\"\nhosts = [\"127.0.0.1:1\"]\n\
         database = \"s\"\nuser = \"u\"\npassword_file = \"p\"\naccess = [{{ users = [\"visitor\"] }}]\n[document]\nkind = \"config-map\"\n\
         namespace = \"{}\"\nname = \"{NAME}\"\nkubeconfig = \"kubeconfig\"\n",
        house.namespace
    );
    std::fs::write(folder.join("fedgate.toml"), toml).unwrap();
    let check = || {
        let arguments = ["check", "--live", "--config", "fedgate.toml"];
        let output = std::process::Command::new(support::fedgate())
            .args(arguments)
            .current_dir(folder)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let said = check();
    assert!(
        said.contains(&format!("{KEY} of the ConfigMap {}/{NAME}, 0 subjects, 0 masks", house.namespace)),
        "{said}"
    );
    house.patch(json!({ "data": { KEY: "{}" } })).await;
    let said = check();
    assert!(said.contains("problem: document: policy document is not valid at version"), "{said}");
}

#[tokio::test]
async fn the_manifests_are_what_a_cluster_takes() {
    let kube = shared().await;
    let namespace = kube.namespace().await;
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("deploy/kubernetes");
    let kustomization = std::fs::read_to_string(folder.join("kustomization.yaml")).unwrap();
    let mut kinds = Vec::new();
    for entry in std::fs::read_dir(&folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if name == "kustomization.yaml" {
            continue;
        }
        assert!(kustomization.contains(&format!("- {name}")), "kustomization.yaml does not name {name}");
        for object in manifest(&name, &namespace) {
            // Nothing is made; an unknown field is an error.
            let path = format!("{}?dryRun=All&fieldValidation=Strict", collection(&object, &namespace));
            let made = kube.admin("POST", &path, Some(&object)).await;
            kinds.push(made["kind"].as_str().unwrap().to_owned());
            if let Some(toml) = object.pointer("/data/fedgate.toml").and_then(Value::as_str) {
                loads(toml);
            }
            if let Some(text) = object.pointer("/data/policy.json").and_then(Value::as_str) {
                Document::parse(text.as_bytes()).unwrap();
            }
            if object["kind"] == "StatefulSet" {
                let pod = &made["spec"]["template"]["spec"];
                let grace = pod["terminationGracePeriodSeconds"].as_u64().unwrap();
                assert!(grace >= 45, "drain_timeout is 30 s, and what follows takes some, too");
                assert_eq!(pod["containers"][0]["securityContext"]["readOnlyRootFilesystem"], true);
            }
        }
    }
    kinds.sort();
    assert_eq!(
        kinds,
        [
            "ConfigMap",
            "ConfigMap",
            "Lease",
            "NetworkPolicy",
            "Role",
            "Role",
            "RoleBinding",
            "RoleBinding",
            "Service",
            "ServiceAccount",
            "StatefulSet"
        ]
    );
}

/// The configuration of the manifest can be used, once its secrets are there.
fn loads(toml: &str) {
    let folder = tempfile::tempdir().unwrap();
    let secrets = folder.path().join("secrets");
    std::fs::create_dir(&secrets).unwrap();
    for name in ["climscore.password", "openmetadata.jwt", "opa.token"] {
        std::fs::write(secrets.join(name), "secret\n").unwrap();
    }
    std::fs::write(secrets.join("jwks.json"), "{\"keys\": []}").unwrap();
    std::fs::write(secrets.join("users.txt"), "").unwrap();
    let path = folder.path().join("fedgate.toml");
    std::fs::write(&path, toml.replace("\"/secrets/", &format!("\"{}/", secrets.display()))).unwrap();
    let config = Config::load(&path).unwrap_or_else(|error| panic!("{error}"));
    assert!(config.sync.enabled && config.document.is_some());
}

#[tokio::test]
async fn a_tag_becomes_a_mask_in_the_config_map_and_comes_into_force_at_once() {
    let house = House::on(shared().await).await;
    for object in manifest("lease.yaml", &house.namespace) {
        house.kube.admin("POST", &collection(&object, &house.namespace), Some(&object)).await;
    }
    let policy = json!({
        "version": 1, "mask_library": { "sha256": { "strength": 60 } },
        "subjects": { "analyst": { "kind": "role", "scopes": [{ "catalog": "c", "schema": "public", "table": "*" }] } },
    });
    house.patch(json!({ "data": { KEY: policy.to_string() } })).await;
    let toml = format!(
        "[gateway]\nlisten = [\"127.0.0.1:0\"]\n[gateway.auth]\nmethod = \"trust\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [[source]]\nname = \"s\"\nhosts = [\"127.0.0.1:1\"]\ndatabase = \"s\"\nuser = \"u\"\npassword_file = \"p\"\n\
         access = [{{ users = [\"visitor\"] }}]\n\
         [document]\nkind = \"config-map\"\nnamespace = \"{}\"\nname = \"{NAME}\"\nkubeconfig = \"kubeconfig\"\n\
         lease = \"fedgate-sync\"\nlook_every = \"10min\"\n\
         [sync]\nenabled = true\n[sync.tag_to_mask]\n\"PII.Sensitive\" = \"sha256\"\n\
         [sync.catalog]\nkind = \"file\"\npath = \"catalog.yaml\"\n\
         [audit]\nkind = \"file\"\npath = \"audit.jsonl\"\nspool = \"spool\"\n",
        house.namespace
    );
    let setup = support::Setup::new(toml)
        .file("p", "x")
        .file("kubeconfig", house.kube.kubeconfig(&house.token))
        .file(
            "catalog.yaml",
            "catalogs:\n  c:\n    public:\n      customers:\n        email: PII.Sensitive\n",
        );
    // It starts a program and waits for it, which is for a thread of its own.
    let gateway = tokio::task::spawn_blocking(|| support::Gateway::start(setup)).await.unwrap();
    let watch = tokio::task::spawn_blocking(move || {
        gateway.wait_for_line("policy sync ran");
        gateway.wait_for_line("masks=1");
        gateway.wait_for_line("this replica plans");
        gateway
    });
    let gateway = watch.await.unwrap();
    let written: Value = serde_json::from_str(house.get().await["data"][KEY].as_str().unwrap()).unwrap();
    assert_eq!(
        written.pointer("/subjects/analyst/masks/0"),
        Some(&json!({
            "catalog": "c", "schema": "public", "table": "customers", "column": "email", "mask": "sha256", "source": "auto-pii"
        }))
    );
    let log = tokio::task::spawn_blocking(|| gateway.stop()).await.unwrap();
    assert!(!log.contains("policy sync failed"), "{log}");
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases/fedgate-sync", house.namespace);
    let lease = house.kube.admin("GET", &lease, None).await;
    assert_eq!(lease["spec"]["holderIdentity"], "", "given back: {lease}");
}
