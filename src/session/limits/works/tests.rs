//! A session's limits without a source: portions, days, paths.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::*;
use crate::guard::{Context, Mode, Step, judge};
use crate::ids::SourceName;
use crate::metrics::{LimitKind, Metrics};
use crate::sql::Limits;
use crate::sql::catalogue::Catalogue;

fn permit(sql: &str) -> (Permit, Effect) {
    let (catalogue, limits, source) =
        (Catalogue::stock(15).unwrap(), Limits::default(), SourceName::new("s"));
    let ctx = Context { catalogue: &catalogue, mode: Mode::ReadOnly, limits: &limits, source: &source };
    match judge(sql.as_bytes(), &ctx).steps.pop() {
        Some(Step::Admit(admitted)) => (admitted.permit, admitted.effect),
        other => panic!("{sql}: {other:?}"),
    }
}

fn source(limits: &str) -> Arc<config::Source> {
    let text = format!(
        "[gateway]\nlisten = [\"127.0.0.1:0\"]\n[gateway.auth]\nmethod = \"trust\"\n[[source]]\nname = \"s\"\n\
         hosts = [\"h\"]\ndatabase = \"s\"\nuser = \"u\"\naccess = [{{ users = [\"a\"] }}]\n[source.limits]\n{limits}\n"
    );
    let config = config::Config::parse(&text, std::path::Path::new(".")).unwrap();
    Arc::clone(config.sources.first().unwrap())
}

fn restraints(clock: fn() -> SystemTime) -> Arc<Restraints> {
    let metrics = Metrics::new().unwrap();
    Restraints::with_clock(metrics.limits(&SourceName::new("s")), clock)
}

fn works(restraints: &Arc<Restraints>, user: &str) -> Works {
    Works::new(Arc::clone(restraints), &ClientUser::new(user), Arc::from([]))
}

fn send(works: &mut Works, config: &Arc<config::Source>) -> Result<(), LimitKind> {
    works.admit(config, None).map_err(|limited| limited.kind)?;
    works.next(&Statement { config, end_user: None, permit: None, effect: None, portal: None });
    works.sent();
    works.dealt_with();
    Ok(())
}

/// Rows until a limit says no.
fn rows(works: &mut Works, most: usize) -> (usize, Option<LimitKind>) {
    for row in 0..most {
        if let Some((limited, _)) = works.row(10) {
            return (row, Some(limited.kind));
        }
    }
    (most, None)
}

fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400 + 43_200)
}

#[test]
fn a_day_is_shared_by_the_sessions_of_a_user_and_ends_at_midnight() {
    static NOW: AtomicU64 = AtomicU64::new(20_000 * 86_400 + 86_390);
    let restraints = restraints(|| SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.load(Ordering::Relaxed)));
    let config = source("day_rows = 100");
    let (mut one, mut two) = (works(&restraints, "a"), works(&restraints, "a"));
    send(&mut one, &config).unwrap();
    assert_eq!(rows(&mut one, 60), (60, None));
    one.answered(false, true);
    send(&mut two, &config).unwrap();
    assert_eq!(rows(&mut two, 60), (40, Some(LimitKind::DayRows)));
    two.answered(false, true);
    assert_eq!(send(&mut one, &config), Err(LimitKind::DayRows));
    assert_eq!(send(&mut works(&restraints, "b"), &config), Ok(()));
    NOW.store(20_001 * 86_400, Ordering::Relaxed);
    send(&mut one, &config).unwrap();
    assert_eq!(rows(&mut one, 200), (100, Some(LimitKind::DayRows)));
    // A new day begins amid an answer.
    NOW.store(20_002 * 86_400, Ordering::Relaxed);
    assert_eq!(rows(&mut one, 200), (100, Some(LimitKind::DayRows)));
}

#[test]
fn a_place_is_held_from_the_first_statement_to_the_last_answer_and_never_longer() {
    let restraints = restraints(noon);
    let config = source("statements = 1");
    let (mut one, mut two) = (works(&restraints, "a"), works(&restraints, "b"));
    send(&mut one, &config).unwrap();
    send(&mut one, &config).unwrap();
    assert_eq!(send(&mut two, &config), Err(LimitKind::Statements));
    one.answered(false, true);
    assert_eq!(send(&mut two, &config), Err(LimitKind::Statements));
    one.answered(true, true);
    assert_eq!(send(&mut two, &config), Ok(()));
    drop(two);
    // One that was let in, and then refused for another reason.
    one.admit(&config, None).unwrap();
    one.dealt_with();
    assert_eq!(restraints.ledger.at_work(), 0);
    // One that waits for what is before it.
    one.admit(&config, None).unwrap();
    one.admit(&config, None).unwrap();
    assert_eq!(restraints.ledger.at_work(), 1);
    drop(one);
    assert_eq!(restraints.ledger.at_work(), 0);
}

#[test]
fn portions_add_up_and_a_name_that_is_given_anew_begins_anew() {
    let restraints = restraints(noon);
    let config = source("answer_rows = 10");
    let mut works = works(&restraints, "a");
    let fetch = |works: &mut Works, effect: Option<&Effect>, portal: Option<&[u8]>| {
        works.next(&Statement { config: &config, end_user: None, permit: None, effect, portal });
        works.sent();
        let given = rows(works, 6);
        works.answered(portal.is_some(), true);
        given
    };
    let cut = Some(LimitKind::AnswerRows);
    assert_eq!(fetch(&mut works, None, Some(b"p")), (6, None));
    assert_eq!(fetch(&mut works, None, Some(b"q")), (6, None));
    assert_eq!(fetch(&mut works, None, Some(b"p")), (4, cut));
    works.anew(b"p");
    assert_eq!(fetch(&mut works, None, Some(b"p")), (6, None));
    works.ready(true, false, true);
    assert_eq!(fetch(&mut works, None, Some(b"p")), (6, None));
    // Cursors, of which one outlives its transaction.
    for (declare, outlives) in
        [("DECLARE c CURSOR FOR SELECT 1", false), ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", true)]
    {
        let (permit_of, effect) = permit(declare);
        works.touches(&permit_of, &effect, true);
        works.sent();
        works.answered(false, true);
        let (_, effect) = permit("FETCH 6 FROM c");
        assert_eq!(fetch(&mut works, Some(&effect), None), (6, None));
        works.ready(true, false, true);
        assert_eq!(fetch(&mut works, Some(&effect), None), if outlives { (4, cut) } else { (6, None) });
        // What only might have made it anew, or failed to, did not.
        let (close, close_effect) = permit("CLOSE c");
        works.touches(&close, &close_effect, false);
        works.dealt_with();
        for (permit_of, effect) in [(&permit_of, permit(declare).1), (&close, close_effect)] {
            works.touches(permit_of, &effect, true);
            works.sent();
            works.answered(false, false);
        }
        assert_eq!(fetch(&mut works, Some(&effect), None), if outlives { (0, cut) } else { (4, cut) });
    }
    // As many names as anybody likes take no more memory than there is room for.
    for number in 0..2 * MOST_CURSORS {
        fetch(&mut works, None, Some(number.to_string().as_bytes()));
    }
    assert!(works.portions.len() <= MOST_CURSORS + 1);
}

#[test]
fn where_names_are_looked_up_is_certain_or_every_way_it_may_be() {
    let mut paths = Paths::default();
    let set = |text: &str| Some(permit(text).0);
    let may = |paths: &Paths| -> Vec<String> {
        let texts = paths.may().into_iter().map(|path| match path {
            Some(path) => String::from_utf8_lossy(path.text()).into_owned(),
            None => "start".to_owned(),
        });
        texts.collect()
    };
    let run = |paths: &mut Paths, path: Option<Permit>, certain: bool| {
        paths.set(path, certain);
        paths.executed = paths.executed.saturating_add(1);
    };
    assert_eq!(may(&paths), ["start"]);
    run(&mut paths, set("SET search_path = a"), true);
    assert_eq!(may(&paths), ["start", "SET search_path = a"]);
    paths.ready(true, false, true);
    assert_eq!(may(&paths), ["SET search_path = a"]);
    // It failed; it was not alone; it was in a block; more is under way.
    for (failed, others, idle, settled) in
        [(true, 0, true, true), (false, 1, true, true), (false, 0, false, true), (false, 0, true, false)]
    {
        let mut paths = Paths::default();
        run(&mut paths, set("SET search_path = b"), true);
        paths.executed += others;
        paths.ready(idle, failed, settled);
        assert_eq!(may(&paths), ["start", "SET search_path = b"], "{failed} {others} {idle} {settled}");
    }
    // A ROLLBACK that ends the block.
    let mut paths = Paths { block: true, ..Paths::default() };
    run(&mut paths, set("SET search_path = b"), true);
    paths.ready(true, false, true);
    assert_eq!(may(&paths).len(), 2);
    for number in 0..20 {
        run(&mut paths, set(&format!("SET search_path = c{number}")), false);
    }
    assert!(paths.lost && paths.may.len() == MOST_PATHS);
    paths.ready(true, false, true);
    assert!(paths.lost);
    run(&mut paths, None, true);
    paths.ready(true, false, true);
    assert!(!paths.lost);
    assert_eq!(may(&paths), ["start"]);
}
