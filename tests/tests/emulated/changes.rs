//! `fief set` and `fief restart`: what a tenant asks for, changed while it runs and while it does not.

use fief_tests::{in_host, run};

use super::Tenant;
use super::backend::Backend;

/// A file of the tenant's cgroup in the emulated host.
fn group(tenant: &str, file: &str) -> String {
    in_host(&format!("cat /sys/fs/cgroup/fief/{tenant}-*/{file}")).ok()
}

both!(processors_and_memory_change_with_a_restart_and_the_disk_grows_with_its_data);
fn processors_and_memory_change_with_a_restart_and_the_disk_grows_with_its_data(backend: Backend) {
    let tenant = backend.start(
        "grows",
        "--kernel micro --image busybox --disk 64M --memory 128M",
    );
    tenant.sh("echo kept > /root/file; sync").ok();
    let size = || -> u64 {
        let size = tenant.sh("df -m / | tail -n 1 | awk '{ print $2 }'").ok();
        size.parse().unwrap()
    };
    // What /proc/meminfo of a container tells is the host's; its group has the limit.
    let memory = || -> u64 {
        let script = backend.either(
            "sed -n 's/MemTotal: *\\([0-9]*\\) kB/\\1/p' /proc/meminfo",
            "echo $(($(cat /sys/fs/cgroup/memory.max) / 1024))",
        );
        tenant.sh(script).ok().parse::<u64>().unwrap() / 1024
    };
    let processors = |given: u32| backend.either(given.to_string(), in_host("nproc").ok());
    assert!(size() < 64 && memory() <= 128);
    let said = run("set grows --cpus 2 --memory 256M --disk 3G");
    assert!(said.err.contains("next start"), "{}", said.err);
    said.ok();
    assert_eq!(tenant.sh("nproc").ok(), processors(1));
    run("restart grows").ok();
    assert_eq!(tenant.sh("nproc").ok(), processors(2));
    assert_eq!(tenant.sh("cat /root/file").ok(), "kept");
    assert!(size() > 2800, "{}", size());
    assert!((200..=256).contains(&memory()), "{}", memory());
    assert_eq!(group("grows", "cpu.max"), "200000 100000");
    // It can be filled beyond what it was.
    tenant
        .sh("head -c 100000000 /dev/zero > /root/large; sync")
        .ok();
    run("stop grows").ok();
    run("restart grows").ok();
    assert_eq!(tenant.sh("cat /root/file").ok(), "kept");
}

both!(variables_and_weights_take_effect_at_once);
fn variables_and_weights_take_effect_at_once(backend: Backend) {
    let tenant = backend.start(
        "tuned",
        "--kernel micro --image busybox -e A=1 --cpu-weight 50",
    );
    assert_eq!(group("tuned", "cpu.weight"), "50");
    assert_eq!(tenant.sh("echo $A:$B").ok(), "1:");
    run("set tuned --env A= --env B=two --cpu-weight 300 --io-weight 70").ok();
    assert_eq!(tenant.sh("echo $A:$B").ok(), ":two");
    let said = fief_tests::run_with("exec -e B=3 tuned -- sh -c", "echo $B");
    assert_eq!(said.ok(), "3");
    assert_eq!(group("tuned", "cpu.weight"), "300");
    assert_eq!(group("tuned", "io.weight"), "default 70");
}

both!(a_change_that_cannot_be_is_refused_and_changes_nothing);
fn a_change_that_cannot_be_is_refused_and_changes_nothing(backend: Backend) {
    let _tenant = backend.create("unchanged", "--kernel micro --image busybox --disk 1G");
    let before = run("inspect unchanged").ok();
    for (change, words) in [
        ("", &["nothing to set"][..]),
        ("--disk 512M", &["512 MiB", "1 GiB", "cannot shrink"]),
        ("--disk 900T", &["16 TiB"]),
        ("--memory 1M", &["--memory 1 MiB", "at least"]),
        ("--memory 900G", &["--memory 900 GiB", "give less"]),
        ("--cpus 0", &["--cpus 0", "1 to 32"]),
        ("--cpus 999", &["--cpus 999", "1 to 32"]),
        ("--cpu-weight 0", &["--cpu-weight 0", "1 to 10000"]),
        ("--restart sometimes", &["sometimes", "unless-stopped"]),
        ("--memory 256M --cpus 0", &["--cpus 0"]),
        ("-e =x", &["=x", "NAME=VALUE"]),
        ("--log-size 1", &["--log-size", "at least"]),
    ] {
        let said = run(&format!("set unchanged {change}")).fails(125);
        assert_eq!(said.lines().count(), 1, "{said}");
        for word in words {
            assert!(said.contains(word), "no '{word}' in: {said}");
        }
        assert_eq!(run("inspect unchanged").ok(), before, "{change}");
    }
    let said = run("set nobody-there --cpus 1").fails(125);
    assert!(said.contains("no tenant 'nobody-there'"), "{said}");
    // The control.
    run("set unchanged --cpus 2").ok();
    assert_ne!(run("inspect unchanged").ok(), before);
}

both!(several_tenants_restart_also_one_that_is_stopped_and_one_that_does_not_listen);
fn several_tenants_restart_also_one_that_is_stopped_and_one_that_does_not_listen(backend: Backend) {
    let polite = backend.start("polite", "--kernel micro --image busybox");
    let _stopped = backend.create("lazy", "--kernel micro --image busybox");
    polite.sh("touch /root/mark; sync").ok();
    let before = polite.boot().unwrap();
    assert_eq!(run("restart polite lazy").ok(), "polite\nlazy");
    assert_ne!(polite.boot().unwrap(), before);
    polite.sh("test -f /root/mark").ok();
    run("exec lazy -- true").ok();
    let before = polite.boot().unwrap();
    // No time to shut down at all: by force.
    run("restart -t 0 polite").ok();
    assert_ne!(polite.boot().unwrap(), before);
    let said = run("restart nobody-there").fails(125);
    assert!(said.contains("no tenant 'nobody-there'"), "{said}");
    let brief = backend.start("brief", "--rm --kernel micro --image busybox");
    let said = run("restart brief").fails(125);
    assert!(said.contains("--rm"), "{said}");
    brief.sh("true").ok();
}

#[test]
fn a_disk_grows_and_rates_change_while_the_tenant_runs() {
    let tenant = Tenant::start(
        "alive",
        "--kernel micro --image busybox --disk 64M --disk-rate 50M --net-rate 50M",
    );
    let drive = || -> serde_json::Value {
        let config = super::json(&run("api alive GET /vm/config").ok());
        let drives = config["drives"].as_array().unwrap().clone();
        let disk = drives.into_iter().find(|drive| drive["drive_id"] == "disk");
        disk.unwrap()["rate_limiter"]["bandwidth"]["size"].clone()
    };
    assert_eq!(drive(), 50 << 20);
    let boot = tenant.sh("cat /proc/sys/kernel/random/boot_id").ok();
    let said = run("set alive --disk 3G --disk-rate 60M --net-rate 0");
    assert_eq!(said.err, "");
    said.ok();
    assert_eq!(drive(), 60 << 20);
    let size = tenant.sh("df -m / | tail -n 1 | awk '{ print $2 }'").ok();
    assert!(size.parse::<u64>().unwrap() > 2800, "{size}");
    // It can be filled beyond what it was, and nothing restarted.
    tenant
        .sh("head -c 100000000 /dev/zero > /root/large; sync")
        .ok();
    assert_eq!(tenant.sh("cat /proc/sys/kernel/random/boot_id").ok(), boot);
}
