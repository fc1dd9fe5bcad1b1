//! The owner of the spool when its disk fails.
//!
//! Invariant: no statement is neither kept nor counted.

use super::*;

fn note(fingerprint: u128) -> Note {
    Note {
        source: "s".into(),
        client_user: "u".into(),
        end_user: None,
        query: None,
        ruling: Ruling::Refused { class: "write", sqlstate: SqlState::READ_ONLY_SQL_TRANSACTION },
        fingerprint: fingerprint.to_le_bytes(),
        tables: Arc::from([]),
        rows: None,
    }
}

/// The database wants to be opened anew after an error of its disk; until that works nothing is forgotten that
/// there is room for, and the rest is counted.
#[tokio::test]
async fn a_disk_that_fails_is_told_and_tried_again() {
    let folder = tempfile::tempdir().unwrap();
    let metrics = crate::metrics::Metrics::new().unwrap().audit;
    let place = folder.path().join("spool");
    let bounds = Bounds { limit: 1 << 20, reserve: 1 << 16 };
    let (said, state) = watch::channel(State::default());
    let mut keeper = Keeper {
        settings: Settings { folder: place.clone(), bounds, window: LOOK_EVERY },
        spool: Some(Spool::in_folder(&place, bounds).unwrap()),
        kinds: HashMap::new(),
        due: None,
        unheard: Arc::default(),
        said,
        metrics: metrics.clone(),
    };
    let broken = || SpoolError::Storage(redb::Error::Io(io::Error::other("broken")));
    assert!(keeper.with(|_| Err::<(), _>(broken())).is_err());
    assert!(state.borrow().fault.as_ref().unwrap().contains("broken"));
    // Something else is in the spool's place now.
    std::fs::rename(&place, folder.path().join("away")).unwrap();
    std::fs::write(&place, "").unwrap();
    keeper.count(&mut (0..KINDS as u128 + 5).map(note).collect());
    assert!(keeper.write().is_err());
    assert_eq!((keeper.kinds.len(), metrics.lost_refusals.get()), (KINDS, 5));
    assert!(metrics.spool_failures.get() > 1 && state.borrow().fault.is_some());
    std::fs::remove_file(&place).unwrap();
    std::fs::rename(folder.path().join("away"), &place).unwrap();
    keeper.write().unwrap();
    assert_eq!((keeper.kinds.len(), state.borrow().fault.clone()), (0, None));
    // All kinds, and one event for the counts of the others.
    assert_eq!(state.borrow().fill.events, KINDS as u64 + 1);
}
