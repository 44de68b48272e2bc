use super::*;
use crate::spec::tests::spec;
use crate::spec::{Bytes, Limits, Spec};

/// A hierarchy of plain files: what is written is what a kernel would be told.
fn played(directory: &Path, version: Version, controllers: &[Controller]) -> Hierarchy {
    Hierarchy {
        version,
        mount: directory.to_owned(),
        controllers: controllers.to_vec(),
        accounts_cpu: version == Version::V2,
    }
}

fn file(path: &Path) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, "").unwrap();
}

#[test]
fn version_2_gets_its_controllers_down_to_the_group_and_its_limits() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let mine = root.join("fief/a-1");
    for name in ["cgroup.subtree_control", "fief/cgroup.subtree_control"] {
        file(&root.join(name));
    }
    for name in [
        "cpu.max",
        "cpu.weight",
        "memory.max",
        "pids.max",
        "cgroup.max.depth",
        "cgroup.max.descendants",
    ] {
        file(&mine.join(name));
    }
    let group = Group::within(vec![played(root, Version::V2, &CONTROLLERS)], "a-1");
    let wanted = Spec { cpus: 2, ..spec() };
    // The io controller's weight is not there, and nobody asked for it.
    assert_eq!(group.make(&Settings::of(&wanted)), Vec::<String>::new());
    let read = |path: PathBuf| fs::read_to_string(path).unwrap();
    // A kernel takes one controller after the other; of a plain file, the last one is the beginning.
    assert!(read(root.join("cgroup.subtree_control")).starts_with("+pids"));
    assert!(read(root.join("fief/cgroup.subtree_control")).starts_with("+pids"));
    assert_eq!(read(mine.join("cpu.max")), "200000 100000");
    assert_eq!(read(mine.join("memory.max")), (592 << 20).to_string());
    let nested = NESTED.map(|(name, _)| read(mine.join(name)));
    assert_eq!(nested, ["12", "1024"]);
    fs::remove_file(mine.join("cgroup.max.depth")).unwrap();
    let missing = group.make(&Settings::of(&wanted));
    assert!(missing[0].starts_with("nested groups: "), "{missing:?}");
    let mut asked = wanted;
    asked.limits.io_weight = Some(7);
    let missing = group.set_weights(&Settings::of(&asked));
    assert!(
        missing.len() == 1 && missing[0].starts_with("io: "),
        "{missing:?}"
    );
    asked.limits = crate::spec::Limits {
        cpu_weight: Some(300),
        ..Default::default()
    };
    assert_eq!(
        group.set_weights(&Settings::of(&asked)),
        Vec::<String>::new()
    );
    assert_eq!(read(mine.join("cpu.weight")), "300");
}

#[test]
fn what_the_machine_lacks_is_told_by_its_name_and_the_rest_is_limited() {
    let directory = tempfile::tempdir().unwrap();
    let mine = directory.path().join("fief/a-1");
    file(&mine.join("memory.limit_in_bytes"));
    let memory = played(directory.path(), Version::V1, &[Controller::Memory]);
    let group = Group::within(vec![memory], "a-1");
    let missing = group.make(&Settings::of(&spec())).join("; ");
    assert_eq!(
        missing,
        "no cpu controller; no io controller; no pids controller"
    );
    let limit = fs::read_to_string(mine.join("memory.limit_in_bytes")).unwrap();
    assert_eq!(limit, (592 << 20).to_string());
}

#[test]
fn a_containers_group_has_a_name_wherever_there_are_cgroups_and_limits_where_they_are_handed_down()
{
    let directory = tempfile::tempdir().unwrap();
    let mine = directory.path().join("fief/a-1");
    let group = Group::within(
        vec![played(directory.path(), Version::V2, &CONTROLLERS)],
        "a-1",
    );
    assert_eq!(group.controllers(), []);
    file(&mine.join("cgroup.controllers"));
    fs::write(mine.join("cgroup.controllers"), "cpu pids\n").unwrap();
    assert_eq!(group.controllers(), [Controller::Cpu, Controller::Pids]);
    let path = "/fief/a-1/tenant".to_owned();
    assert_eq!(group.of_container(), Some((path.clone(), Version::V2)));
    let old = played(directory.path(), Version::V1, &[Controller::Cpu]);
    let group = Group::within(vec![old], "a-1");
    assert_eq!(group.controllers(), [Controller::Cpu]);
    assert_eq!(group.of_container(), Some((path.clone(), Version::V1)));
    let bare = Group {
        first: Some(Version::V1),
        ..Group::within(Vec::new(), "a-1")
    };
    assert_eq!(bare.of_container(), Some((path, Version::V1)));
    assert_eq!(Group::within(Vec::new(), "a-1").of_container(), None);
}

#[test]
fn a_group_that_may_not_be_made_says_where() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("fief"), "in the way").unwrap();
    let all = played(directory.path(), Version::V1, &CONTROLLERS);
    let missing = Group::within(vec![all], "a-1").make(&Settings::of(&spec()));
    assert_eq!(missing.len(), 4);
    assert!(missing[0].contains("fief"), "{missing:?}");
}

#[test]
fn the_group_of_a_process_is_found_in_its_hierarchy() {
    let text = "8:pids:/\n4:memory:/of/mine\n3:cpu,cpuacct:/x\n0::/unified/one\n";
    let at = |version, controllers: &[Controller]| {
        played(Path::new("/m"), version, controllers).current(text)
    };
    assert_eq!(
        at(Version::V1, &[Controller::Memory]),
        Path::new("/m/of/mine")
    );
    assert_eq!(at(Version::V1, &[Controller::Cpu]), Path::new("/m/x"));
    assert_eq!(at(Version::V1, &[Controller::Io]), Path::new("/m"));
    assert_eq!(
        at(Version::V2, &[Controller::Io]),
        Path::new("/m/unified/one")
    );
}

#[test]
fn groups_below_are_told_from_those_with_a_longer_name() {
    let text = "8:pids:/fief/a-1/shim\n0::/fief/a-12\n";
    assert!(is_within(text, "/fief/a-1"));
    assert!(is_within(text, "/fief/a-12"));
    assert!(!is_within(text, "/fief/a"));
    assert!(!is_within("0::/\n", "/fief/a-1"));
}

#[test]
fn a_group_goes_where_it_can_and_what_is_in_the_way_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    let both = [&one, &two].map(|mount| played(mount, Version::V1, &[]));
    let group = Group::within(both.to_vec(), "a-1");
    fs::create_dir_all(one.join("fief/a-1/deep/er")).unwrap();
    // A file is nothing that a kernel has there, and keeps the directory.
    file(&one.join("fief/a-1/deep/file"));
    fs::create_dir_all(two.join("fief/a-1/deep/er")).unwrap();
    group.remove().unwrap_err();
    assert!(one.join("fief/a-1/deep").exists() && !one.join("fief/a-1/deep/er").exists());
    assert!(!two.join("fief/a-1").exists());
}

#[test]
fn numbers_are_read_from_the_files_of_both_versions() {
    let directory = tempfile::tempdir().unwrap();
    let mine = directory.path().join("fief/a-1");
    for (name, text) in [
        ("cpu.stat", "usage_usec 1500\nuser_usec 1000\n"),
        ("memory.current", "1000\n"),
        ("memory.stat", "anon 3\ninactive_file 400\n"),
        ("memory.max", "max\n"),
        ("memory.events", "oom 2\noom_kill 1\n"),
        ("pids.current", "9\n"),
    ] {
        file(&mine.join(name));
        fs::write(mine.join(name), text).unwrap();
    }
    let group = Group::within(
        vec![played(directory.path(), Version::V2, &CONTROLLERS)],
        "a-1",
    );
    let usage = group.usage();
    assert_eq!(
        (
            usage.cpu_ns,
            usage.memory,
            usage.memory_limit,
            usage.threads
        ),
        (Some(1_500_000), Some(600), None, Some(9))
    );
    assert_eq!(group.out_of_memory(), 1);
    assert_eq!(Group::within(Vec::new(), "a").usage(), Usage::default());
}

#[test]
fn a_containers_own_group_counts_where_groups_do_not_count_for_those_above() {
    let directory = tempfile::tempdir().unwrap();
    let mine = directory.path().join("fief/a-1");
    for (name, text) in [
        ("memory.oom_control", "oom_kill_disable 0\noom_kill 1\n"),
        ("tenant/memory.oom_control", "under_oom 0\noom_kill 2\n"),
    ] {
        file(&mine.join(name));
        fs::write(mine.join(name), text).unwrap();
    }
    let played = played(directory.path(), Version::V1, &CONTROLLERS);
    assert_eq!(Group::within(vec![played], "a-1").out_of_memory(), 3);
}

#[test]
fn a_containers_disk_is_limited_where_its_processes_are_and_freed_again() {
    let device = nix::libc::makedev(7, 3);
    let limits = Limits {
        disk_rate: Some(Bytes::from_mib(1)),
        ..Limits::default()
    };
    const V1: [&str; 4] = ["read_bps", "write_bps", "read_iops", "write_iops"];
    let v2_names = ["io.max".to_owned()];
    let v1_names = V1.map(|one| format!("blkio.throttle.{one}_device"));
    let cases: [(_, _, &[String], &[&str], _); 2] = [
        (
            Version::V2,
            "fief/a-1",
            &v2_names,
            &["7:3 rbps=1048576 wbps=1048576 riops=max wiops=max"],
            "7:3 rbps=max wbps=max riops=max wiops=max",
        ),
        (
            Version::V1,
            "fief/a-1/tenant",
            &v1_names,
            &["7:3 1048576", "7:3 1048576", "7:3 0", "7:3 0"],
            "7:3 0",
        ),
    ];
    for (version, place, names, limited, free) in cases {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join(place);
        let hierarchy = played(directory.path(), version, &[Controller::Io]);
        let group = Group::within(vec![hierarchy], "a-1");
        // Nothing is made for a tenant that does not run.
        let error = group.limit_disk(device, &limits).unwrap_err();
        assert!(error.to_string().contains("No such file"), "{error}");
        assert!(!place.exists());
        // A kernel without throttling.
        fs::create_dir_all(&place).unwrap();
        let error = group.limit_disk(device, &limits).unwrap_err();
        assert!(
            error.to_string().contains("CONFIG_BLK_DEV_THROTTLING"),
            "{error}"
        );
        group.limit_disk(device, &Limits::default()).unwrap();
        for name in names {
            file(&place.join(name));
        }
        group.limit_disk(device, &limits).unwrap();
        let read = |name: &String| fs::read_to_string(place.join(name)).unwrap();
        assert_eq!(names.iter().map(read).collect::<Vec<_>>(), limited);
        group.limit_disk(device, &Limits::default()).unwrap();
        // Of a plain file, what is written last is the beginning.
        for name in names {
            assert!(read(name).starts_with(free), "{name}: {}", read(name));
        }
    }
    let none = Group::within(Vec::new(), "a-1");
    let error = none.limit_disk(device, &limits).unwrap_err();
    assert!(error.to_string().contains("no io controller"), "{error}");
}
