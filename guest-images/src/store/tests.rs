use std::cell::Cell;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

use super::*;
use crate::progress::Silent;

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn make(store: &Store, name: &str, request: &str, content: &str) -> Artifact {
    store
        .ensure(Kind::Rootfs, name, request, &Silent, |work| {
            fs::write(work.out.join("file"), content).unwrap();
            Ok::<_, Error>(Properties::from([("key".into(), "value".into())]))
        })
        .unwrap()
}

/// As `make`, of something that must be there already.
fn take(store: &Store, name: &str, request: &str) -> Artifact {
    store
        .ensure::<Error>(Kind::Rootfs, name, request, &Silent, |_| {
            panic!("it is made again")
        })
        .unwrap()
}

fn file(artifact: &Artifact) -> PathBuf {
    artifact.path("file").unwrap()
}

fn entries(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[test]
fn an_artifact_is_made_once_and_again_only_for_another_request() {
    let (_dir, store) = store();
    let first = make(&store, "a", "1", "one");
    assert_eq!(take(&store, "a", "1").id(), first.id());
    let second = make(&store, "a", "2", "two");
    assert_ne!(second.id(), first.id());
    assert_eq!(fs::read_to_string(file(&second)).unwrap(), "two");
    assert_eq!(second.property("key"), Some("value"));
}

#[test]
fn the_same_content_has_the_same_id_in_every_store() {
    let ((_a, one), (_b, other)) = (store(), store());
    assert_eq!(
        make(&one, "a", "1", "same").id(),
        make(&other, "b", "2", "same").id()
    );
}

#[test]
fn a_failed_maker_leaves_nothing() {
    let (dir, store) = store();
    let failed = store.ensure(Kind::Rootfs, "a", "1", &Silent, |work| {
        fs::write(work.out.join("file"), "half").unwrap();
        Err::<Properties, _>(Error::NoArtifact("on purpose".into()))
    });
    assert!(failed.is_err());
    assert!(store.find(Kind::Rootfs, "a").unwrap().is_none());
    assert_eq!(
        (
            entries(&dir.path().join("tmp")),
            entries(&dir.path().join("artifacts"))
        ),
        (0, 0)
    );
}

#[test]
fn what_a_killed_maker_left_is_not_taken_for_an_artifact_and_is_removed() {
    let (dir, store) = store();
    let (mut reader, mut writer) = std::io::pipe().unwrap();
    // SAFETY: the child only works on files until it is killed; it never returns into the test harness.
    let child = match unsafe { fork() }.unwrap() {
        ForkResult::Child => {
            let _ = store.ensure(Kind::Rootfs, "a", "1", &Silent, |work| {
                fs::write(work.out.join("file"), "half").unwrap();
                writer.write_all(b"x").unwrap();
                loop {
                    nix::unistd::pause();
                }
                #[allow(unreachable_code)]
                Ok::<_, Error>(Properties::new())
            });
            std::process::exit(1)
        }
        ForkResult::Parent { child } => child,
    };
    drop(writer);
    std::io::Read::read_exact(&mut reader, &mut [0]).unwrap();
    assert_eq!(entries(&dir.path().join("tmp")), 1);
    // While it lives, its work is its own.
    Store::open(dir.path()).unwrap();
    assert_eq!(entries(&dir.path().join("tmp")), 1);
    kill(child, Signal::SIGKILL).unwrap();
    waitpid(child, None).unwrap();
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(entries(&dir.path().join("tmp")), 0);
    assert!(store.find(Kind::Rootfs, "a").unwrap().is_none());
    assert_eq!(
        fs::read_to_string(file(&make(&store, "a", "1", "whole"))).unwrap(),
        "whole"
    );
}

#[test]
fn of_two_makers_at_once_one_makes_and_the_other_takes_it() {
    let (dir, store) = store();
    let made = std::sync::atomic::AtomicUsize::new(0);
    let barrier = std::sync::Barrier::new(4);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                // Each with a store of its own, as in processes of their own: flock is per open file.
                let store = Store::open(dir.path()).unwrap();
                barrier.wait();
                let artifact = store.ensure(Kind::Rootfs, "a", "1", &Silent, |work| {
                    made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    fs::write(work.out.join("file"), vec![b'x'; 1 << 20]).unwrap();
                    Ok::<_, Error>(Properties::new())
                });
                assert_eq!(artifact.unwrap().size(), 1 << 20);
            });
        }
    });
    assert_eq!(made.into_inner(), 1);
    assert_eq!(entries(&store.root().join("artifacts")), 1);
}

#[test]
fn a_truncated_file_is_an_error_at_use_and_is_cured_by_ensure() {
    let (_dir, store) = store();
    let path = file(&make(&store, "a", "1", "content"));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(3)
        .unwrap();
    let message = store.find(Kind::Rootfs, "a").unwrap_err().to_string();
    assert!(
        message.contains("3 bytes where 7 belong") && message.contains("fief setup"),
        "{message}"
    );
    assert_eq!(
        store.names(Kind::Rootfs).unwrap()[0]
            .1
            .as_ref()
            .unwrap_err()
            .to_string(),
        message
    );
    make(&store, "a", "1", "content");
    assert_eq!(fs::read_to_string(path).unwrap(), "content");
}

#[test]
fn verification_finds_a_byte_that_was_changed() {
    let (_dir, store) = store();
    make(&store, "good", "1", "other");
    let path = file(&make(&store, "bad", "1", "content"));
    assert!(store.verify(&Silent).unwrap().is_empty());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, "cOntent").unwrap();
    let damage = store.verify(&Silent).unwrap();
    assert_eq!(damage.len(), 1);
    assert_eq!(damage[0].name, "bad");
    // Made again, the changed one is not mistaken for a good one.
    make(&store, "other", "1", "content");
    assert_eq!(fs::read_to_string(&path).unwrap(), "content");
}

#[test]
fn a_changed_description_a_missing_file_and_a_link_in_its_place_are_damage() {
    let (dir, store) = store();
    let artifact = make(&store, "a", "1", "content");
    let path = file(&artifact);
    fs::remove_file(&path).unwrap();
    assert!(
        store
            .find(Kind::Rootfs, "a")
            .unwrap_err()
            .to_string()
            .contains("missing")
    );
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    assert!(
        store
            .find(Kind::Rootfs, "a")
            .unwrap_err()
            .to_string()
            .contains("no file")
    );
    let description = dir
        .path()
        .join("artifacts")
        .join(artifact.id().as_str())
        .join("artifact.json");
    fs::set_permissions(&description, fs::Permissions::from_mode(0o644)).unwrap();
    let text = fs::read_to_string(&description)
        .unwrap()
        .replace("value", "VALUE");
    fs::write(&description, text).unwrap();
    assert!(
        store
            .find(Kind::Rootfs, "a")
            .unwrap_err()
            .to_string()
            .contains("description was changed")
    );
    make(&store, "a", "1", "content");
    store
        .find(Kind::Rootfs, "a")
        .unwrap()
        .unwrap()
        .verify(&|_| ())
        .unwrap();
}

#[test]
fn names_that_are_paths_are_refused() {
    let (_dir, store) = store();
    for name in [
        "",
        "..",
        ".",
        "a/b",
        "../a",
        ".hidden",
        "-a",
        "A",
        "a b",
        "a\0",
        "ä",
        &"a".repeat(65),
    ] {
        assert!(
            matches!(store.find(Kind::Rootfs, name), Err(Error::Name(_))),
            "{name:?}"
        );
        assert!(
            matches!(store.remove(Kind::Rootfs, name, &[]), Err(Error::Name(_))),
            "{name:?}"
        );
    }
    check_name("debian-12.5_x").unwrap();
}

#[test]
fn removing_a_name_keeps_files_that_another_name_has() {
    let (_dir, store) = store();
    let path = file(&make(&store, "a", "1", "same"));
    make(&store, "b", "1", "same");
    store.remove(Kind::Rootfs, "a", &[]).unwrap();
    assert!(path.exists());
    store.remove(Kind::Rootfs, "b", &[]).unwrap();
    assert!(!path.exists());
    assert!(matches!(
        store.remove(Kind::Rootfs, "b", &[]),
        Err(Error::Missing { .. })
    ));
}

#[test]
fn an_artifact_that_is_kept_outlives_its_name_and_is_found_without_it() {
    let (_dir, store) = store();
    let old = make(&store, "a", "1", "old");
    let new = make(&store, "a", "2", "new");
    let other = make(&store, "b", "1", "other");
    let found = |artifact: &Artifact| store.artifact(artifact.id()).unwrap().is_some();
    store
        .remove(Kind::Rootfs, "b", std::slice::from_ref(old.id()))
        .unwrap();
    assert!(found(&old) && found(&new) && !found(&other));
    store
        .remove(Kind::Rootfs, "a", std::slice::from_ref(new.id()))
        .unwrap();
    assert!(!found(&old) && found(&new));
    assert_eq!(store.prune(&[]).unwrap(), 1);
    assert!(!found(&new));
}

#[test]
fn an_export_copied_file_by_file_is_accepted_and_a_damaged_copy_is_not() {
    let ((from, one), (to, other)) = (store(), store());
    let artifact = make(&one, "a", "1", "content");
    let names = [(Kind::Rootfs, "a")];
    let copy = || {
        for file in one.export(&names).unwrap() {
            let target = to.path().join(&file.relative);
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            let bytes = fs::read(from.path().join(&file.relative)).unwrap();
            assert_eq!(
                (bytes.len() as u64, hash_bytes(&bytes)),
                (file.size, file.sha256)
            );
            let _ = fs::remove_file(&target);
            fs::write(target, bytes).unwrap();
        }
    };
    copy();
    other.accept(&names, &Silent).unwrap();
    assert_eq!(take(&other, "a", "1").id(), artifact.id());
    let target = file(&take(&other, "a", "1"));
    fs::write(&target, "cOntent").unwrap();
    assert!(other.accept(&names, &Silent).is_err());
    assert!(other.find(Kind::Rootfs, "a").unwrap().is_none());
}

#[test]
fn importing_from_a_store_that_was_tampered_with_fails_and_takes_nothing() {
    let ((_a, one), (_b, other)) = (store(), store());
    let path = file(&make(&one, "a", "1", "content"));
    let imported = other.import(&one, Kind::Rootfs, "a", &Silent).unwrap();
    assert_eq!(fs::read_to_string(file(&imported)).unwrap(), "content");
    other.remove(Kind::Rootfs, "a", &[]).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, "cOntent").unwrap();
    assert!(other.import(&one, Kind::Rootfs, "a", &Silent).is_err());
    assert!(other.find(Kind::Rootfs, "a").unwrap().is_none());
}

#[test]
fn a_maker_with_a_name_that_begins_like_anothers_leaves_the_others_work_alone() {
    let (_dir, store) = store();
    let checked = Cell::new(false);
    store
        .ensure(Kind::Rootfs, "a.b", "1", &Silent, |work| {
            fs::write(work.out.join("file"), "outer").unwrap();
            make(&store, "a", "1", "inner");
            checked.set(work.out.join("file").exists());
            Ok::<_, Error>(Properties::new())
        })
        .unwrap();
    assert!(checked.get());
}
