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
