//! The loop, from a tag to a published document.
//!
//! Invariant: whatever the catalog, the disk or another writer does, people's entries stay, and the document in
//! force is whole.

#[path = "sync/kit.rs"]
mod kit;

use std::time::Duration;

use fedgate::audit::event::{Actor, Outcome};
use fedgate::sync::catalog::{CatalogError, Hint};
use fedgate::sync::handle::{Ask, AskError, Cause, RunError};
use fedgate::sync::history::{Reason, State};
use fedgate::sync::lease::Standing;
use kit::{Bench, INTERVAL, analyst, ask, cause, customers, dry_run};
use serde_json::json;

fn refused(result: Result<fedgate::sync::handle::Report, AskError>) -> RunError {
    match result {
        Err(AskError::Run(error)) => error,
        other => panic!("was to be refused: {other:?}"),
    }
}

fn tagged() -> String {
    customers(&[("email", "PII.Sensitive"), ("phone", "")])
}

fn untagged() -> String {
    customers(&[("email", ""), ("phone", "")])
}

#[tokio::test(start_paused = true)]
async fn a_tag_becomes_a_mask_at_the_start_and_by_the_timer() {
    let bench = Bench::new(json!({"analyst": analyst(), "akko-admin": analyst()}), &untagged());
    let began = tokio::time::Instant::now();
    let running = bench.start();
    running.ended(|status| status.last_run.is_some()).await;
    assert_eq!(bench.masks("analyst"), [""; 0]);
    assert_eq!(bench.publishes(), 0, "a run that changes nothing publishes nothing");
    assert_eq!(bench.history().list(10), [], "and leaves no revision");

    bench.shelf.set(&tagged());
    let status = running.ended(|status| status.subjects_affected == 1).await;
    assert_eq!(bench.masks("analyst"), ["email sha256 auto-pii"]);
    assert_eq!(bench.masks("akko-admin"), [""; 0], "admin subjects are exempt");
    let (waited, tenth) = (began.elapsed(), INTERVAL / 10);
    assert!(waited >= INTERVAL - tenth && waited <= INTERVAL + tenth + Duration::from_secs(1), "{waited:?}");
    assert!(status.next_run.is_some_and(|next| Some(next) > status.last_run));
    assert_eq!((status.tables_processed, status.publish_failures, status.revision), (1, 0, Some(2)));

    // Nothing piles up, however long a run takes.
    let gate = bench.shelf.gate();
    tokio::time::sleep(INTERVAL * 10).await;
    assert_eq!(bench.shelf.whole_readings(), 3, "the third run is under way and no other one");
    gate.add_permits(1);
    running.ended(|status| !status.running).await;
    let runs = bench.book.runs();
    assert_eq!(runs.len(), 3, "one event for each run");
    assert!(runs.iter().all(|run| run.actor == Actor::System && run.outcome == Outcome::Success));
    assert_eq!(runs[1].subjects, ["analyst".into()]);
    assert!(runs[1].before.is_some() && runs[1].after.is_some() && runs[1].before != runs[1].after);
    running.stop().await;
    assert_eq!(bench.metric("akko_policy_sync_runs_total{outcome=\"success\"}"), 3.0);
    assert_eq!(bench.metric("akko_policy_sync_runs_total{outcome=\"failure\"}"), 0.0);
    assert_eq!(bench.metric("akko_policy_sync_tables_processed_total"), 3.0);
    assert_eq!(bench.metric("akko_policy_sync_subjects_affected_total"), 1.0);
    assert_eq!(bench.metric("akko_policy_sync_publish_failures_total"), 0.0);
    assert!(bench.metric("akko_policy_sync_last_run_timestamp_seconds") > 1e9);
}

#[tokio::test(start_paused = true)]
async fn pushes_are_gathered_into_one_run_that_reads_what_they_name() {
    let bench = Bench::new(json!({"analyst": analyst()}), &untagged());
    let running = bench.start();
    running.ended(|status| status.last_run.is_some()).await;
    bench.shelf.set(&tagged());
    let began = tokio::time::Instant::now();
    for at in 0..5 {
        let hint = Hint { tables: [format!("pg.shop.public.t{at}").into()].into(), whole: false };
        running.handle.push(hint).unwrap();
    }
    running.ended(|status| status.subjects_affected == 1).await;
    assert!(began.elapsed() <= Duration::from_millis(150), "{:?}", began.elapsed());
    let hints = bench.shelf.hints();
    assert_eq!((hints.len(), hints[0].tables.len(), hints[0].whole), (1, 5, false));
    assert_eq!(bench.masks("analyst"), ["email sha256 auto-pii"]);

    // Too many names at once: everything.
    for at in 0..60 {
        let names = [format!("pg.shop.public.a{at}").into(), format!("pg.shop.public.b{at}").into()];
        running.handle.push(Hint { tables: names.into(), whole: false }).unwrap();
    }
    let mut status = running.handle.status();
    status.borrow_and_update();
    while bench.shelf.hints().len() < 2 {
        status.changed().await.unwrap();
    }
    assert!(bench.shelf.hints()[1].whole && bench.shelf.hints()[1].tables.is_empty());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_for_during_a_run_is_one_more_run_after_it() {
    let bench = Bench::new(json!({"analyst": analyst()}), &untagged());
    let gate = bench.shelf.gate();
    let running = bench.start();
    running.ended(|status| status.running).await;
    // The first run is under way and has not read anything yet.
    bench.shelf.set(&tagged());
    let asked: Vec<_> = (0..3)
        .map(|_| {
            let handle = running.handle.clone();
            tokio::spawn(async move { handle.run(ask("steward")).await })
        })
        .collect();
    tokio::task::yield_now().await;
    running.handle.push(Hint::all()).unwrap();
    running.handle.signal().unwrap();
    gate.add_permits(10);
    for asked in asked {
        let report = asked.await.unwrap().unwrap();
        assert!(!report.dry_run);
    }
    assert_eq!(bench.shelf.whole_readings(), 2, "one for the timer, one for all that came during it");
    assert_eq!(bench.shelf.hints(), []);
    let actors: Vec<Actor> = bench.book.runs().into_iter().map(|run| run.actor).collect();
    let admin = Actor::Admin { name: "steward".into(), subject: "sub-of-steward".into() };
    assert_eq!(actors, [Actor::System, admin]);
    running.stop().await;
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_says_all() {
    let bench = Bench::new(json!({"analyst": analyst()}), &tagged());
    let gate = bench.shelf.gate();
    let running = bench.start();
    running.ended(|status| status.running).await;
    bench.shelf.fail(CatalogError::Unreachable("not yet".into()));
    gate.add_permits(10);
    running.ended(|status| status.last_run.is_some()).await;
    let before = bench.json();
    let report = running.handle.run(dry_run()).await.unwrap();
    assert!(report.dry_run && report.revision.is_none());
    assert!(report.plan.to_string().contains("+ analyst: climscore.public.customers.email sha256"));
    assert_eq!(bench.json(), before);
    assert_eq!(bench.history().list(1), []);
    assert_eq!(bench.book.runs().len(), 1, "of the run before");
    let again = running.handle.run(dry_run()).await.unwrap();
    assert_eq!(again.plan_id, report.plan_id, "the same changes have the same name");
    running.stop().await;
}

#[tokio::test]
async fn six_masks_and_the_missing_one() {
    let columns = [
        ("a", "PII.Sensitive"),
        ("b", "PII.NonSensitive"),
        ("c", "PCI.PAN"),
        ("d", "Compliance.HealthRecord"),
        ("e", "PII.Weak"),
        ("f", "PII.Hidden"),
        ("g", "PII.Lost"),
    ];
    let mut bench = Bench::new(json!({"analyst": analyst()}), &customers(&columns));
    bench.rules.tag_to_mask.insert("PII.Lost".into(), "no_such_mask".into());
    let running = bench.start();
    let status = running.ended(|status| status.last_run.is_some()).await;
    let want = ["a sha256", "b identity", "c partial_last4", "d null", "e md5", "f redact"];
    assert_eq!(bench.masks("analyst"), want.map(|mask| format!("{mask} auto-pii")));
    // The others are carried out, and the run says loudly what it could not do.
    assert_eq!((status.cause, status.publish_failures), (Some(Cause::MissingMask), 1));
    let message = status.message.unwrap();
    assert!(message.contains("no_such_mask") && message.contains("PII.Lost"), "{message}");
    assert_eq!(cause(&bench.book.runs()[0]), Some("missing_mask"));
    assert_eq!(bench.metric("fedgate_sync_failures_total{cause=\"missing_mask\"}"), 1.0);
    assert_eq!(bench.metric("akko_policy_sync_publish_failures_total"), 1.0);
    running.stop().await;
}

#[tokio::test]
async fn scopes_are_honoured_and_people_s_entries_untouched() {
    let by_hand = json!({"catalog": "climscore", "schema": "public", "table": "customers", "column": "phone",
        "mask": "partial_last4", "x-why": {"ticket": 12.50}});
    let mut subject = analyst();
    subject["masks"] = json!([by_hand]);
    let elsewhere =
        json!({"kind": "group", "scopes": [{"catalog": "climscore", "schema": "other", "table": "*"}]});
    let catalog = customers(&[("email", "PII.Sensitive"), ("phone", "PII.Sensitive")]);
    let bench = Bench::new(json!({"analyst": subject, "elsewhere": elsewhere}), &catalog);
    let running = bench.start();
    let report = running.sync().await.unwrap();
    assert_eq!(report.plan.shadowed.len(), 1, "the plan says that somebody's entry stands there");
    assert_eq!(bench.masks("analyst"), ["phone partial_last4", "email sha256 auto-pii"]);
    assert_eq!(bench.masks("elsewhere"), [""; 0]);
    assert_eq!(bench.json()["subjects"]["analyst"]["masks"][0], by_hand);
    assert_eq!(bench.json()["x-owner"].to_string(), "1.50", "spelling and all");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_conflict_is_planned_anew_and_too_many_are_a_failure() {
    let bench = Bench::new(json!({"analyst": analyst()}), &tagged());
    bench.crowd(3);
    let running = bench.start();
    let status = running.ended(|status| status.last_run.is_some()).await;
    assert_eq!((status.cause, bench.publishes()), (None, 4));
    assert_eq!(bench.masks("analyst"), ["email sha256 auto-pii"]);
    assert_eq!(bench.json()["edited"], 1, "what the others wrote is there, too");
    assert_eq!(bench.book.runs().len(), 1, "one event for the run, however often it was planned");

    bench.shelf.set(&untagged());
    bench.crowd(1000);
    let error = refused(running.sync().await);
    assert_eq!(error.cause, Cause::Conflict);
    assert_eq!(bench.masks("analyst"), ["email sha256 auto-pii"]);
    assert_eq!(cause(&bench.book.runs()[1]), Some("conflict"));
    assert_eq!(bench.book.open_intents(), 0);
    assert_eq!(bench.metric("akko_policy_sync_publish_failures_total"), 1.0);
    bench.crowd(0);
    running.sync().await.unwrap();
    assert_eq!(bench.masks("analyst"), [""; 0]);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn turns_of_the_timer_are_left_to_the_holder_of_the_lease_and_nothing_else_is() {
    let bench = Bench::new(json!({"analyst": analyst()}), &untagged());
    let other = || Standing::Other { holder: "other".into() };
    let (lease, standing) = tokio::sync::watch::channel(other());
    let began = tokio::time::Instant::now();
    let running = bench.start_beside(standing);
    // A holder that gets nothing done is not waited for: the third turn is taken.
    running.ended(|status| status.last_run.is_some()).await;
    assert!(began.elapsed() >= INTERVAL * 9 / 10 * 2, "{:?}", began.elapsed());
    // What reaches this replica alone is served by it.
    bench.shelf.set(&tagged());
    running.handle.signal().unwrap();
    running.ended(|status| status.subjects_affected == 1).await;
    let readings = bench.shelf.whole_readings();
    tokio::time::sleep(INTERVAL * 3 / 2).await;
    assert_eq!(bench.shelf.whole_readings(), readings, "the timer's turn was left to the other");
    // The other has gone, and nobody knows what it got done.
    bench.shelf.set(&untagged());
    let began = tokio::time::Instant::now();
    lease.send_replace(Standing::Unknown);
    lease.send_replace(Standing::Holding);
    running.ended(|_| bench.masks("analyst").is_empty()).await;
    assert!(began.elapsed() < INTERVAL / 10, "{:?}", began.elapsed());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn whatever_the_catalog_does_the_masks_in_force_stay() {
    let bench = Bench::new(json!({"analyst": analyst()}), &tagged());
    let running = bench.start();
    running.ended(|status| status.last_run.is_some()).await;
    let before = bench.json();
    let cases = [
        (CatalogError::Unauthorized("Expired token!".into()), Cause::JwtExpired),
        (CatalogError::Unreachable("connection refused".into()), Cause::CatalogUnreachable),
        (CatalogError::NotWhole("cut off".into()), Cause::CatalogUnreachable),
    ];
    for (error, want) in cases {
        bench.shelf.fail(error.clone());
        let found = refused(running.sync().await);
        assert_eq!(found.cause, want, "{error}");
        let status = running.handle.status().borrow().clone();
        assert_eq!((status.cause, status.publish_failures), (Some(want), 1));
        assert_eq!(status.message.as_deref(), Some(&*error.to_string()));
        assert_eq!(cause(bench.book.runs().last().unwrap()), Some(want.as_str()));
    }
    assert_eq!(bench.metric("fedgate_sync_failures_in_a_row"), 3.0);
    // A defect ends its run and nothing else.
    bench.shelf.panic_once();
    assert_eq!(refused(running.sync().await).cause, Cause::Internal);
    assert_eq!(bench.json(), before);
    // After a failure the timer comes sooner, and later each time.
    bench.shelf.fail(CatalogError::Unreachable("still".into()));
    let began = tokio::time::Instant::now();
    running.ended(|status| status.failures_in_a_row == 0).await;
    assert!(began.elapsed() < INTERVAL, "{:?}", began.elapsed());
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_catalog_that_is_empty_after_a_restart_is_none() {
    let bench = Bench::new(json!({"analyst": analyst()}), &tagged());
    let running = bench.start();
    running.ended(|status| status.last_run.is_some()).await;
    running.stop().await;
    let before = bench.json();
    // The catalog was set up anew, say, and the process has no picture of what was there.
    bench.shelf.set("catalogs: {}");
    let running = bench.start();
    let status = running.ended(|status| status.last_run.is_some()).await;
    assert_eq!(status.cause, Some(Cause::CatalogUnreachable));
    assert!(status.message.unwrap().contains("where there were 1"));
    assert_eq!(bench.json(), before);
    // Without masks there is nothing to lose.
    let empty = Bench::new(json!({"analyst": analyst()}), "catalogs: {}");
    let other = empty.start();
    assert_eq!(other.ended(|status| status.last_run.is_some()).await.cause, None);
    other.stop().await;
    running.stop().await;
}

#[tokio::test]
async fn a_broken_document_is_reported_and_never_written_over() {
    let bench = Bench::new(json!({"analyst": analyst()}), &tagged());
    for broken in ["{\"version\": 1,", "[]", "{\"version\": 2}", ""] {
        std::fs::write(bench.path(), broken).unwrap();
        let running = bench.start();
        let status = running.ended(|status| status.last_run.is_some()).await;
        assert_eq!(status.cause, Some(Cause::Document), "{broken}");
        assert_eq!(std::fs::read_to_string(bench.path()).unwrap(), broken);
        running.stop().await;
    }
}

#[tokio::test]
async fn a_mask_that_trino_cannot_parse_is_found_before_anything_is_published() {
    let bench = Bench::new(json!({"analyst": analyst()}), &tagged());
    bench.edit(|json| json["mask_library"]["sha256"]["trino"] = json!("to_hex(sha256({column})"));
    let before = bench.json();
    let running = bench.start();
    let status = running.ended(|status| status.last_run.is_some()).await;
    assert_eq!(status.cause, Some(Cause::Document));
    let message = status.message.unwrap();
    assert!(message.contains("mask_library.sha256.trino at byte 23"), "{message}");
    assert_eq!((bench.json(), bench.publishes()), (before, 0));
    bench.edit(|json| json["mask_library"]["sha256"]["trino"] = json!("to_hex(sha256({column}))"));
    assert_eq!(running.handle.run(ask("admin")).await.unwrap().subjects_affected, 1);
    running.stop().await;
}

fn many(tag: &str) -> String {
    let columns: Vec<String> = (0..10).map(|at| format!("c{at}")).collect();
    customers(&columns.iter().map(|name| (name.as_str(), tag)).collect::<Vec<_>>())
}

#[tokio::test]
async fn mass_removal_waits_for_an_admin_who_has_seen_it() {
    let mut bench = Bench::new(json!({"analyst": analyst()}), &many("PII.Sensitive"));
    bench.max_removal = 0.2;
    let running = bench.start();
    running.ended(|status| status.last_run.is_some()).await;
    assert_eq!(bench.masks("analyst").len(), 10);

    // What masks goes on, what unmasks waits.
    let mut catalog = many("");
    catalog.push_str("        new: PII.Sensitive\n");
    bench.shelf.set(&catalog);
    let report = running.sync().await.unwrap();
    assert_eq!((report.waiting.len(), report.plan.changes.len()), (10, 11));
    assert!(report.waiting.iter().all(|change| change.loosens));
    assert_eq!(bench.masks("analyst").len(), 11);
    let status = running.handle.status().borrow().clone();
    assert_eq!(status.waiting, 10);
    assert_eq!(bench.metric("fedgate_sync_waiting"), 10.0);

    // An old word is no word.
    let old = Ask { approve: Some(report.plan_id), ..ask("admin") };
    assert_eq!(refused(running.handle.run(old).await).cause, Cause::Refused);
    assert_eq!(bench.masks("analyst").len(), 11);
    let shown = running.handle.run(dry_run()).await.unwrap();
    let report = running.handle.run(Ask { approve: Some(shown.plan_id), ..ask("admin") }).await.unwrap();
    assert_eq!((report.waiting.len(), bench.masks("analyst").len()), (0, 1));
    assert_eq!(running.handle.status().borrow().waiting, 0);
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_tag_that_went_is_held_back_for_a_time_across_restarts() {
    let mut bench = Bench::new(json!({"analyst": analyst()}), &tagged());
    bench.removal_delay = Duration::from_secs(3600);
    let running = bench.start();
    running.ended(|status| status.last_run.is_some()).await;
    bench.shelf.set(&untagged());
    let report = running.sync().await.unwrap();
    assert_eq!((report.held.len(), report.revision), (1, None));
    assert_eq!(running.handle.status().borrow().held, 1);
    running.stop().await;

    tokio::time::sleep(Duration::from_secs(3000)).await;
    let running = bench.start();
    running.sync().await.unwrap();
    assert_eq!(bench.masks("analyst"), ["email sha256 auto-pii"], "not yet");
    tokio::time::sleep(Duration::from_secs(700)).await;
    running.sync().await.unwrap();
    assert_eq!(bench.masks("analyst"), [""; 0], "counted from the first time");
    running.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_rollback_is_a_revision_and_holds_until_an_admin_s_run() {
    let bench = Bench::new(json!({"analyst": analyst()}), &tagged());
    let running = bench.start();
    running.ended(|status| status.last_run.is_some()).await;
    bench.shelf.set(&customers(&[("email", ""), ("phone", "PII.Sensitive")]));
    running.sync().await.unwrap();
    let numbers = |bench: &Bench| -> Vec<(u64, Reason, State)> {
        bench.history().list(10).into_iter().map(|found| (found.number, found.reason, found.state)).collect()
    };
    let published = State::Published;
    assert_eq!(
        numbers(&bench),
        [(3, Reason::Sync, published), (2, Reason::Sync, published), (1, Reason::Found, published)]
    );

    // People have changed something since: that stays.
    bench.edit(|json| {
        json["subjects"]["analyst"]["masks"].as_array_mut().unwrap().push(json!(
        {"catalog": "climscore", "schema": "public", "table": "customers", "column": "iban", "mask": "null"}
    ))
    });
    let actor = Actor::Admin { name: "admin".into(), subject: "s".into() };
    let report = running.handle.rollback(2, actor.clone()).await.unwrap();
    assert_eq!(report.revision, Some(5), "the hand edit was found and kept as 4");
    assert_eq!(bench.masks("analyst"), ["iban null", "email sha256 auto-pii"]);
    assert!(
        report.plan.to_string().starts_with("UNMASKS (1):\n  - analyst: climscore.public.customers.phone")
    );
    let last = bench.book.runs().pop().unwrap();
    assert_eq!((last.actor, last.outcome), (actor.clone(), Outcome::Success));

    // The timer leaves it, also after a restart; an admin's run does not.
    tokio::time::sleep(INTERVAL * 2).await;
    assert_eq!(bench.masks("analyst"), ["iban null", "email sha256 auto-pii"]);
    running.stop().await;
    let running = bench.start();
    let status = running.ended(|status| status.last_run.is_some()).await;
    assert_eq!((status.rolled_back_to, status.waiting), (Some(2), 2));
    assert_eq!(bench.metric("fedgate_sync_rolled_back"), 1.0);
    assert_eq!(bench.masks("analyst"), ["iban null", "email sha256 auto-pii"]);
    running.sync().await.unwrap();
    assert_eq!(bench.masks("analyst"), ["iban null", "phone sha256 auto-pii"]);
    assert_eq!(running.handle.status().borrow().rolled_back_to, None);

    // Back to before the loop, and to what is not there.
    running.handle.rollback(1, actor.clone()).await.unwrap();
    assert_eq!(bench.masks("analyst"), ["iban null"]);
    let error = refused(running.handle.rollback(99, actor.clone()).await);
    assert_eq!(
        (error.cause, &*error.message),
        (Cause::Refused, "there is no revision 99 in the policy history")
    );
    // A mask that the library has no more.
    bench.edit(|json| {
        json["mask_library"].as_object_mut().unwrap().remove("sha256");
    });
    let error = refused(running.handle.rollback(2, actor).await);
    assert_eq!(error.cause, Cause::MissingMask);
    running.stop().await;
}

#[tokio::test]
async fn a_trail_that_is_full_lets_masks_through_and_no_unmasking() {
    let bench = Bench::new(json!({"analyst": analyst()}), &tagged());
    let running = bench.start();
    running.ended(|status| status.last_run.is_some()).await;
    bench.book.fill_up();
    bench.shelf.set(&customers(&[("email", ""), ("phone", "PII.Sensitive")]));
    let report = running.sync().await.unwrap();
    assert_eq!(bench.masks("analyst"), ["email sha256 auto-pii", "phone sha256 auto-pii"]);
    assert_eq!((report.waiting.len(), report.publish_failures), (1, 1));
    let revision = bench.history().list(1).remove(0);
    assert_eq!(
        revision.summary,
        ["+ analyst: climscore.public.customers.phone sha256 (tagged PII.Sensitive)"]
    );
    let status = running.handle.status().borrow().clone();
    assert_eq!(status.cause, Some(Cause::Audit));
    assert_eq!(bench.metric("fedgate_sync_unrecorded_total"), 1.0);
    // With nothing but an unmasking to do, nothing is done.
    assert_eq!(refused(running.sync().await).cause, Cause::Audit);
    assert_eq!(bench.masks("analyst").len(), 2);
    running.stop().await;
}

#[tokio::test]
async fn the_history_forgets_the_oldest() {
    let mut bench = Bench::new(json!({"analyst": analyst()}), &tagged());
    bench.history_limit = 3;
    let running = bench.start();
    for round in 0..4 {
        bench.shelf.set(&if round % 2 == 0 { untagged() } else { tagged() });
        running.sync().await.unwrap();
    }
    running.stop().await;
    let kept: Vec<u64> = bench.history().list(10).into_iter().map(|revision| revision.number).collect();
    assert_eq!(kept.len(), 3);
    let files = std::fs::read_dir(bench.folder.path().join("history")).unwrap().count();
    assert!(files <= 4, "{files} files, with the loop's memory");
    // What is broken is named, and no other one is taken for it.
    let newest = bench.folder.path().join(format!("history/{:08}.json", kept[0]));
    std::fs::write(&newest, "{").unwrap();
    let error = fedgate::sync::history::History::open(&bench.folder.path().join("history"), 3).unwrap_err();
    assert!(error.to_string().contains(&newest.display().to_string()), "{error}");
}

#[tokio::test]
async fn a_queue_that_is_full_says_so() {
    let bench = Bench::new(json!({"analyst": analyst()}), &tagged());
    let _gate = bench.shelf.gate();
    let running = bench.start();
    running.ended(|status| status.running).await;
    let taken = (0..1000).take_while(|_| running.handle.signal().is_ok()).count();
    assert_eq!(taken, fedgate::sync::handle::QUEUE);
    assert!(matches!(running.sync().await, Err(AskError::NotTaken(_))));
    running.crash().await;
}

#[tokio::test]
async fn names_that_no_document_can_hold_are_told_and_break_nothing() {
    let columns = [("email", "PII.Sensitive"), ("\"a\\0b\"", "PII.Sensitive")];
    let bench = Bench::new(json!({"analyst": analyst()}), &customers(&columns));
    let running = bench.start();
    for _ in 0..2 {
        let report = running.sync().await.unwrap();
        assert_eq!(report.publish_failures, 1);
        let status = running.handle.status().borrow().clone();
        assert_eq!(status.cause, Some(Cause::Document));
        assert!(status.message.as_ref().unwrap().contains("1 column(s) have a name"), "{status:?}");
        assert_eq!(bench.masks("analyst"), ["email sha256 auto-pii"]);
    }
    running.stop().await;
}
