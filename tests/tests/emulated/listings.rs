//! What fief tells about the machine, the emulated host and the images, for people and for programs.

use fief_tests::{in_host, run, state_directory};

use super::{IMAGES, Tenant, busybox_root, json};

#[test]
fn doctor_tells_what_this_machine_and_the_emulated_host_can_do() {
    let text = run("doctor").ok();
    assert!(
        text.contains("emulated: asked for with --host emulated"),
        "{text}"
    );
    for check in ["fief-vmm", "KVM", "emulator", "disk space", "memory"] {
        assert!(text.contains(check), "no {check} in: {text}");
    }
    let report = json(&run("doctor --json").ok());
    assert_eq!(report["host"]["kind"], "emulated");
    let checks = report["checks"].as_array().unwrap();
    assert!(
        checks.iter().all(|check| check["health"] != "missing"),
        "{report}"
    );
    // Inside, where tenants run, the question is answered by a measurement of the KVM there.
    let inside = json(&in_host("fief --host native doctor --json").out);
    assert_eq!(inside["host"]["kind"], "native");
    let kvm = inside["checks"]
        .as_array()
        .unwrap()
        .iter()
        .find(|check| check["name"] == "KVM");
    assert_eq!(kvm.unwrap()["health"], "ok", "{inside}");
}

/// What `fief doctor`, in the emulated host with `hidden` mounted over something, says of a runtime: health, and all words.
fn runtime_by_doctor(hidden: &str, name: &str) -> (String, String) {
    // Mounts of its own: what hides a runtime is gone with the command.
    let script = format!("unshare -m sh -ec '{hidden} fief --host native doctor --json'");
    let report = json(&in_host(&script).ok());
    let checks = report["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["name"] == name);
    let check = check.unwrap_or_else(|| panic!("no {name} in {report}"));
    let words = ["found", "remedy"].map(|key| check[key].as_str().unwrap_or_default());
    (
        check["health"].as_str().unwrap().to_owned(),
        words.join("; "),
    )
}

#[test]
fn doctor_tries_each_oci_runtime_and_leaves_nothing_of_it() {
    for name in ["crun", "runc"] {
        let (health, words) = runtime_by_doctor("", name);
        assert_eq!(health, "ok", "{words}");
        assert!(
            words.contains(&format!("makes containers here ({name} 1.")),
            "{words}"
        );
    }
    // The brackets keep the search from finding itself.
    let left = "find /sys/fs/cgroup /tmp /run -name 'fief-tri[a]l-*'; ps ax | grep 'fief-tri[a]l-' || true";
    assert_eq!(in_host(left).ok(), "");
    in_host("mkdir /tmp/fief-trial-x").ok();
    assert_eq!(in_host(left).ok(), "/tmp/fief-trial-x");
    in_host("rmdir /tmp/fief-trial-x").ok();
}

#[test]
fn doctor_blames_no_runtime_for_a_directory_for_temporary_files_that_is_roots_alone() {
    // As pam_tmpdir makes them.
    let closed = "mkdir -p /tmp/closed/in; chmod 700 /tmp/closed; export TMPDIR=/tmp/closed/in;";
    for name in ["crun", "runc"] {
        let (health, words) = runtime_by_doctor(closed, name);
        assert_eq!(health, "ok", "{words}");
        assert!(words.contains("makes containers here"), "{words}");
    }
    // It was the one used, and is left empty.
    assert_eq!(
        in_host("find /tmp/closed -mindepth 1; rm -r /tmp/closed").ok(),
        "/tmp/closed/in"
    );
}

#[test]
fn doctor_says_how_to_install_a_runtime_and_in_its_own_words_why_one_is_broken() {
    let hide = |name: &str| format!("mount --bind /dev/null $(command -v {name});");
    let both = hide("crun") + &hide("runc");
    for name in ["crun", "runc"] {
        let (health, words) = runtime_by_doctor(&both, name);
        assert_eq!(health, "warning", "{words}");
        assert!(
            words.contains(&format!("apt-get install {name}")),
            "{words}"
        );
    }
    // One is enough.
    let (health, words) = runtime_by_doctor(&hide("runc"), "runc");
    assert_eq!(health, "ok", "{words}");
    assert!(words.contains("not installed"), "{words}");

    let broken = "printf \"#!/bin/sh\\necho out of luck >&2; exit 1\\n\" > /tmp/broken-runc; \
                  chmod 755 /tmp/broken-runc; mount --bind /tmp/broken-runc $(command -v runc);";
    let (health, words) = runtime_by_doctor(broken, "runc");
    assert_eq!(health, "warning", "{words}");
    assert!(words.contains("does not work here: out of luck"), "{words}");
    let (health, words) = runtime_by_doctor(broken, "crun");
    assert_eq!(health, "ok", "{words}");
    in_host("rm /tmp/broken-runc").ok();
}

#[test]
fn host_status_tells_with_what_the_emulated_host_runs() {
    fief_tests::host();
    let status = json(&run("host status --json").ok());
    assert_eq!(status["running"], true);
    assert!(status["hardware"]["cpus"].as_u64().unwrap() >= 1);
    assert!(status["disk_bytes"].as_u64().unwrap() > 0);
    let pid = status["pid"].as_u64().unwrap();
    let keeper = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(
        keeper.contains("keep") && keeper.contains(state_directory().to_str().unwrap()),
        "{keeper}"
    );
    let text = run("host status").ok();
    assert!(
        text.starts_with(&format!("running (process {pid})")),
        "{text}"
    );
    assert!(std::path::Path::new(status["console"].as_str().unwrap()).is_file());
}

#[test]
fn images_are_imported_listed_used_and_removed() {
    let _images = IMAGES.lock().unwrap_or_else(|lock| lock.into_inner());
    let directory = tempfile::tempdir().unwrap();
    let root = busybox_root(directory.path());
    run("images rm -f listed");
    assert!(run("images rm listed").fails(125).contains("'listed'"));
    let said = run(&format!("images import listed {}", root.display())).ok();
    assert!(said.starts_with("listed: erofs "), "{said}");
    let all = json(&run("images --json").ok());
    let entry = |name: &str| {
        all.as_array()
            .unwrap()
            .iter()
            .find(|entry| entry["name"] == name)
            .cloned()
    };
    let listed = entry("listed").unwrap();
    assert_eq!(listed["kind"], "image");
    assert!(listed["size_bytes"].as_u64().unwrap() > 0);
    assert_eq!(listed["artifact"].as_str().unwrap().len(), 64);
    assert_eq!(entry("micro").unwrap()["kind"], "kernel");
    let text = run("images").ok();
    let line = text.lines().find(|line| line.contains("listed")).unwrap();
    assert!(
        line.contains(&listed["artifact"].as_str().unwrap()[..12]),
        "{line}"
    );
    assert_eq!(run("images list").ok(), text);

    let tenant = Tenant::create("listing", "--image listed");
    assert_eq!(tenant.listed()["image"], "listed");
    drop(tenant);
    assert_eq!(run("images rm listed").ok(), "listed");
    assert!(!run("images").ok().contains("listed"));
}
