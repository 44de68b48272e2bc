//! `--gpu`: devices of the host for containers, by files of the Container Device Interface. The device is one that every
//! machine has, in the place of a GPU.

use fief_tests::{in_host, run, run_with};

use super::{Tenant, json};

/// Describes `fief.test/gpu=…` in the emulated host: 0 is the device of endless zeros, 1 wants a hook.
pub fn describe() {
    let text = r#"{"cdiVersion": "0.6.0", "kind": "fief.test/gpu",
        "containerEdits": {
            "env": ["GPU_KIND=test"],
            "mounts": [{"hostPath": "/etc/hostname", "containerPath": "/opt/driver/host", "options": ["ro"]}]},
        "devices": [
            {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/zero", "fileMode": 432, "gid": 44}]}},
            {"name": "1", "containerEdits": {"hooks": [{"hookName": "createContainer", "path": "/bin/touch", "args": ["touch", "/root/hooked"]}]}}]}"#;
    in_host(&format!(
        "mkdir -p /etc/cdi; cat > /etc/cdi/fief-test.json <<'EOT'\n{text}\nEOT"
    ))
    .ok();
}

#[test]
fn a_container_has_the_device_that_it_was_given_and_its_neighbour_has_not() {
    describe();
    let line = |runtime: &str, more: &str| {
        format!(
            "run --rm --isolation container --image debian --net none --runtime {runtime} {more} -- sh -c"
        )
    };
    let host = in_host("cat /etc/hostname").ok();
    let script = "stat -c '%t:%T %a %u %g' /dev/gpu0; head -c 3 /dev/gpu0 | wc -c; echo $GPU_KIND; cat /opt/driver/host";
    for runtime in ["crun", "runc"] {
        let given = line(runtime, "--gpu fief.test/gpu=0");
        let said = run_with(&given, script).ok();
        let expected = format!("1:5 660 0 44\n3\ntest\n{host}");
        assert_eq!(said, expected, "{runtime}");
        // It is its root's; its users are in no group of it, and the mount is read-only.
        for refused in [
            "su user -c 'head -c 1 /dev/gpu0'",
            "echo x > /opt/driver/host",
            // Another device stays out of reach, whatever is mounted: the name of one is not the right to use it.
            "mknod /root/mem c 1 1",
        ] {
            assert_ne!(run_with(&given, refused).code, Some(0), "{refused}");
        }
        let without = run_with(&line(runtime, ""), "head -c 3 /dev/gpu0");
        assert_ne!(without.code, Some(0));
        assert!(without.err.contains("No such file"), "{}", without.err);
    }
    let tenant = Tenant::start(
        "gpu-kept",
        "--isolation container --image busybox --net none --gpu fief.test/gpu=0",
    );
    assert_eq!(tenant.sh("echo $GPU_KIND; test -c /dev/gpu0").ok(), "test");
    let spec = json(&run("inspect gpu-kept").ok());
    assert!(spec.to_string().contains("fief.test/gpu=0"), "{spec}");
    run("restart gpu-kept").ok();
    tenant.sh("test -c /dev/gpu0").ok();
}

#[test]
fn a_device_that_cannot_be_given_is_told_and_no_hook_runs() {
    describe();
    let refused = |more: &str, words: &[&str]| {
        let said = run(&format!(
            "run --rm --image busybox --net none {more} -- true"
        ))
        .fails(125);
        for word in words {
            assert!(said.contains(word), "{more}: {said}");
        }
    };
    let container = "--isolation container --gpu fief.test/gpu";
    refused(&format!("{container}=1"), &["hook", "/bin/touch"]);
    in_host("test ! -e /root/hooked").ok();
    refused(&format!("{container}=7"), &["fief.test/gpu=0", "/etc/cdi"]);
    refused("--gpu fief.test/gpu=0", &["--gpu", "--isolation container"]);
    let twice = format!("{container}=0 --gpu fief.test/gpu=0");
    refused(&twice, &["twice"]);
    let said = run("run --rm --gpu 0 -- true");
    assert_ne!(said.code, Some(0));
    assert!(said.err.contains("nvidia.com/gpu=0"), "{}", said.err);
}
