use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::spec::tests::spec;

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn store(&self) -> Store {
        Store::open(&self.directory.path().join("state")).unwrap()
    }

    /// What is in `tenants/`, half-made things too.
    fn entries(&self) -> Vec<String> {
        let read = fs::read_dir(self.directory.path().join("state/tenants")).unwrap();
        let mut names: Vec<_> = read
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn name(text: &str) -> TenantName {
    text.parse().unwrap()
}

fn make(store: &Store, text: &str, spec: &Spec) -> Tenant {
    store
        .draft(&name(text), spec)
        .unwrap()
        .publish()
        .unwrap()
        .tenant
}

fn state() -> State {
    // A process id that no Linux gives out (pid_max is at most 2^22).
    State {
        phase: Phase::Running,
        shim_pid: i32::MAX,
        monitor: None,
        started: 1,
        reboots: 0,
        restarts: 0,
    }
}

#[test]
fn only_its_owner_can_look_into_the_state_directory() {
    let place = Place::new();
    let store = place.store();
    let tenant = make(&store, "a", &spec());
    for path in [
        store.root(),
        &store.root().join("tenants"),
        tenant.directory(),
    ] {
        assert_eq!(
            fs::metadata(path).unwrap().permissions().mode() & 0o777,
            0o700,
            "{}",
            path.display()
        );
    }
}

#[test]
fn a_tenant_is_there_once_it_has_its_name_and_not_before() {
    let place = Place::new();
    let store = place.store();
    let draft = store.draft(&name("a"), &spec()).unwrap();
    assert!(store.tenants().unwrap().is_empty());
    assert!(matches!(
        store.tenant(&name("a")),
        Err(StoreError::NoTenant(_))
    ));
    draft.publish().unwrap();
    assert_eq!(store.tenant(&name("a")).unwrap().spec().unwrap(), spec());
    assert_eq!(store.tenants().unwrap()[0].status().0, Status::Created);
}

#[test]
fn a_draft_that_is_given_up_leaves_nothing() {
    let place = Place::new();
    let store = place.store();
    drop(store.draft(&name("a"), &spec()).unwrap());
    assert!(place.entries().is_empty());
}

#[test]
fn of_two_drafts_of_one_name_one_wins_and_the_other_is_told() {
    let place = Place::new();
    let store = place.store();
    let (one, two) = (
        store.draft(&name("a"), &spec()).unwrap(),
        store.draft(&name("a"), &spec()).unwrap(),
    );
    two.publish().unwrap();
    assert!(matches!(one.publish(), Err(StoreError::Taken(_))));
    assert!(matches!(
        store.draft(&name("a"), &spec()),
        Err(StoreError::Taken(_))
    ));
    assert_eq!(place.entries(), ["a"]);
}

#[test]
fn what_a_killed_fief_left_is_removed_by_the_next() {
    let place = Place::new();
    let tenants = place.store().root().join("tenants");
    // Killed before it locked, while it made the disk, and while it removed.
    for left in [".new-1", ".new-2", ".gone-1/a"] {
        fs::create_dir_all(tenants.join(left)).unwrap();
    }
    fs::write(tenants.join(".new-2/lock"), "").unwrap();
    fs::write(tenants.join(".new-2/disk.ext4"), "half").unwrap();
    place.store();
    assert!(place.entries().is_empty(), "{:?}", place.entries());
}

#[test]
fn a_draft_in_the_making_is_left_alone() {
    let place = Place::new();
    let draft = place.store().draft(&name("a"), &spec()).unwrap();
    let store = place.store();
    draft.publish().unwrap();
    assert_eq!(store.tenants().unwrap().len(), 1);
}

#[test]
fn a_tenant_whose_shim_was_killed_is_stopped_and_its_end_written_down() {
    let place = Place::new();
    let store = place.store();
    let tenant = make(&store, "a", &spec());
    // As a shim does; dropping the lock is what its death does.
    store.lock(&name("a")).unwrap().begin_run(&state()).unwrap();
    assert_eq!(tenant.status().0, Status::Running);
    place.store();
    assert_eq!(tenant.status().0, Status::Stopped);
    assert_eq!(tenant.exit().unwrap().unwrap().reason, Reason::Killed);
    assert!(!tenant.run_directory().exists());
}

#[test]
fn a_shim_that_was_killed_while_it_cleaned_up_has_told_the_true_end() {
    let place = Place::new();
    let store = place.store();
    let tenant = make(&store, "a", &spec());
    let locked = store.lock(&name("a")).unwrap();
    locked.begin_run(&state()).unwrap();
    locked.end_run(&Exit::now(Reason::Panic, None)).unwrap();
    locked.write_state(&state()).unwrap();
    drop(locked);
    place.store();
    assert_eq!(tenant.exit().unwrap().unwrap().reason, Reason::Panic);
    assert_eq!(tenant.status().0, Status::Stopped);
}

#[test]
fn a_tenant_to_be_removed_at_its_end_does_not_outlive_a_killed_shim() {
    let place = Place::new();
    let store = place.store();
    make(
        &store,
        "a",
        &Spec {
            remove: true,
            ..spec()
        },
    );
    place.store();
    assert!(place.entries().is_empty());
}

#[test]
fn who_holds_the_lock_is_not_disturbed() {
    let place = Place::new();
    let store = place.store();
    let locked = store
        .draft(
            &name("a"),
            &Spec {
                remove: true,
                ..spec()
            },
        )
        .unwrap()
        .publish()
        .unwrap();
    let running = State {
        shim_pid: std::process::id().cast_signed(),
        ..state()
    };
    locked.begin_run(&running).unwrap();
    let other = place.store();
    assert_eq!(other.running(&name("a")).unwrap().1, running);
    assert!(matches!(
        other.lock(&name("a")),
        Err(StoreError::Running(_))
    ));
    assert!(!other.wait_idle(&locked.tenant, Duration::ZERO).unwrap());
    drop(locked);
    other.lock(&name("a")).unwrap();
}

#[test]
fn a_lock_that_was_handed_on_is_held_until_its_last_holder_lets_go() {
    let place = Place::new();
    let store = place.store();
    let locked = store.draft(&name("a"), &spec()).unwrap().publish().unwrap();
    let shared = locked.share_lock().unwrap();
    let tenant = locked.let_go();
    assert!(tenant.try_lock().unwrap().is_none());
    drop(Locked::adopt(tenant.clone(), Held::adopt(shared)));
    assert!(tenant.try_lock().unwrap().is_some());
}

#[test]
fn a_removed_tenant_is_gone_for_those_who_waited_for_its_lock() {
    let place = Place::new();
    let store = place.store();
    let locked = store.draft(&name("a"), &spec()).unwrap().publish().unwrap();
    let tenant = locked.tenant.clone();
    locked.remove().unwrap();
    assert!(tenant.try_lock().unwrap().is_none());
    assert!(matches!(
        store.lock(&name("a")),
        Err(StoreError::NoTenant(_))
    ));
    assert!(place.entries().is_empty());
    // The name is free, and the new tenant is another.
    make(&store, "a", &spec());
}

#[test]
fn tenants_are_removed_while_other_commands_look_for_leftovers() {
    let place = Place::new();
    let store = place.store();
    std::thread::scope(|scope| {
        let removals = scope.spawn(|| {
            for _ in 0..100 {
                make(&store, "a", &spec());
                store.lock(&name("a")).unwrap().remove().unwrap();
            }
        });
        while !removals.is_finished() {
            place.store();
        }
    });
    assert!(place.entries().is_empty(), "{:?}", place.entries());
}

#[test]
fn a_spec_from_the_future_is_refused_and_a_damaged_one_named() {
    let place = Place::new();
    let store = place.store();
    let tenant = make(
        &store,
        "a",
        &Spec {
            version: 2,
            ..spec()
        },
    );
    assert!(matches!(
        tenant.spec(),
        Err(StoreError::Version { version: 2, .. })
    ));
    fs::write(tenant.directory().join("spec.json"), "{").unwrap();
    let error = store.tenant(&name("a")).unwrap().spec().unwrap_err();
    assert!(
        error.to_string().contains("spec.json is damaged"),
        "{error}"
    );
    // It is not thrown away by itself.
    place.store();
    assert_eq!(place.entries(), ["a"]);
}

#[test]
fn a_half_written_file_never_replaces_a_whole_one() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.json");
    file::write_json(&path, &state()).unwrap();
    struct Unwritable;
    impl serde::Serialize for Unwritable {
        fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
            Err(serde::ser::Error::custom("no"))
        }
    }
    file::write_json(&path, &Unwritable).unwrap_err();
    assert_eq!(file::read_json::<State>(&path).unwrap(), Some(state()));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn a_state_directory_that_cannot_be_is_named_with_the_way_out() {
    let error = Store::open(Path::new("/proc/no/state"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("/proc/no/state") && error.contains("--state-dir"),
        "{error}"
    );
}

#[test]
fn a_change_of_the_spec_that_fails_changes_nothing() {
    let place = Place::new();
    let tenant = make(&place.store(), "a", &spec());
    let refused = tenant.change_spec(|spec| {
        spec.cpus = 9;
        Err(StoreError::Busy("a".to_owned()))
    });
    assert!(matches!(refused, Err(StoreError::Busy(_))));
    assert_eq!(tenant.spec().unwrap(), spec());
    let changed = tenant.change_spec(|spec| {
        spec.cpus = 9;
        Ok::<(), StoreError>(())
    });
    assert_eq!(changed.unwrap().cpus, 9);
    assert_eq!(tenant.spec().unwrap().cpus, 9);
}

#[test]
fn a_tenant_between_two_runs_that_loses_its_shim_keeps_its_end() {
    let place = Place::new();
    let store = place.store();
    let tenant = make(&store, "a", &spec());
    let locked = store.lock(&name("a")).unwrap();
    let panic = Exit::now(Reason::Panic, None);
    locked.begin_run(&state()).unwrap();
    let paused = State {
        phase: Phase::Restarting,
        restarts: 1,
        ..state()
    };
    locked.pause_run(&panic, &paused).unwrap();
    assert_eq!(tenant.status().0, Status::Restarting);
    drop(locked);
    let store = place.store();
    let tenant = store.tenant(&name("a")).unwrap();
    assert_eq!(tenant.status().0, Status::Stopped);
    assert_eq!(tenant.exit().unwrap(), Some(panic));
}

#[test]
fn who_stopped_a_tenant_is_known_until_it_is_started() {
    let place = Place::new();
    let store = place.store();
    let tenant = make(&store, "a", &spec());
    assert_eq!(tenant.stopped_by().unwrap(), None);
    tenant.mark_stopped(StoppedBy::User).unwrap();
    tenant.mark_stopped(StoppedBy::Shutdown).unwrap();
    assert_eq!(tenant.stopped_by().unwrap(), Some(StoppedBy::Shutdown));
    store.lock(&name("a")).unwrap().forget_stop().unwrap();
    assert_eq!(tenant.stopped_by().unwrap(), None);
}
