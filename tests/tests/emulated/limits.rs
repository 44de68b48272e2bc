//! A tenant's limits are real: its monitor sits in a cgroup, and nothing of that is left.

use fief_tests::{in_host, run};

use super::Tenant;

fn group(tenant: &str, file: &str) -> String {
    in_host(&format!("cat /sys/fs/cgroup/fief/{tenant}-*/{file}")).ok()
}

fn keyed(text: &str, key: &str) -> u64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{key} ")));
    line.unwrap_or_else(|| panic!("no {key} in {text}"))
        .parse()
        .unwrap()
}

#[test]
fn a_monitor_is_in_its_tenants_cgroup_with_all_its_threads_and_leaves_none_behind() {
    let tenant = Tenant::start(
        "grouped",
        "--kernel micro --image busybox --cpus 2 --memory 128M",
    );
    let entry = tenant.listed();
    let members = group("grouped", "cgroup.procs");
    let mut members: Vec<&str> = members.lines().collect();
    members.sort_unstable();
    let mut expected = [
        entry["shim_pid"].to_string(),
        entry["monitor_pid"].to_string(),
    ];
    expected.sort_unstable();
    assert_eq!(members, expected);
    let threads = in_host(&format!(
        "cat /proc/{}/task/*/cgroup | sort -u",
        entry["monitor_pid"]
    ));
    let threads = threads.ok();
    assert!(
        threads.starts_with("0::/fief/grouped-") && threads.lines().count() == 1,
        "{threads}"
    );
    assert_eq!(group("grouped", "cpu.max"), "200000 100000");
    // 128 MiB, and what docs/tenants.md says the monitor may have.
    assert_eq!(
        group("grouped", "memory.max"),
        ((128 + 64 + 4) << 20).to_string()
    );
    let left = || in_host("ls -d /sys/fs/cgroup/fief/grouped-*").code;
    assert_eq!(left(), Some(0));
    run("stop grouped").ok();
    assert_ne!(left(), Some(0));
    // A killed shim has its group removed by the next command.
    run("start grouped").ok();
    in_host(&format!("kill -9 {}", tenant.listed()["shim_pid"])).ok();
    assert_eq!(tenant.ended(), "killed");
    assert_ne!(left(), Some(0));
}

#[test]
fn a_tenant_that_computes_without_end_is_held_to_its_processors() {
    // The emulated host has one processor; to see a limit at work it must be less than that.
    let tenant = Tenant::start("busy", "--kernel micro --image busybox --memory 128M");
    in_host("echo 20000 100000 > $(echo /sys/fs/cgroup/fief/busy-*)/cpu.max").ok();
    let before = group("busy", "cpu.stat");
    tenant
        .sh("i=0; while test $i -lt 100000; do i=$((i + 1)); done")
        .ok();
    let after = group("busy", "cpu.stat");
    let more = |key| keyed(&after, key) - keyed(&before, key);
    assert!(more("nr_throttled") > 0, "{after}");
    // Of every period at most a fifth, and what a period's end comes too late by.
    let (periods, used) = (more("nr_periods"), more("usage_usec"));
    assert!(
        used <= (periods + 1) * 30_000,
        "{used} µs in {periods} periods"
    );
}

#[test]
fn a_monitor_that_needs_more_memory_than_its_limit_is_ended_and_that_is_told() {
    let tenant = Tenant::start("hungry", "--kernel micro --image busybox --memory 256M");
    let fill = "head -c 150000000 /dev/zero | tail -c 150000000 | wc -c";
    // The control: it has that much.
    assert_eq!(tenant.sh(fill).ok(), "150000000");
    run("restart hungry").ok();
    in_host("echo 100M > $(echo /sys/fs/cgroup/fief/hungry-*)/memory.max").ok();
    tenant.sh(fill);
    assert_eq!(tenant.ended(), "killed");
    let detail = tenant.listed()["exit"]["detail"].to_string();
    assert!(detail.contains("memory limit"), "{detail}");
}

#[test]
fn an_ordinary_user_runs_tenants_without_limits_and_is_told_once() {
    // Makes the images present inside.
    run("run --rm --name warm-user --kernel micro --image busybox -- true").ok();
    in_host(
        "set -e; umount -l /run/nolimit 2>/dev/null || true; mkdir -p /run/nolimit
         mount -t tmpfs nolimit /run/nolimit; mkdir -p /run/nolimit/state/images/artifacts
         cd /var/lib/fief/images; cp -a locks refs tmp /run/nolimit/state/images
         for one in artifacts/*; do
             if test $(du -sm $one | cut -f1) -lt 30; then cp -a $one /run/nolimit/state/images/artifacts; fi
         done
         mkdir /run/nolimit/dev; chown -R 65534:65534 /run/nolimit",
    )
    .ok();
    // One who may open /dev/kvm, in a /dev of the test's making.
    let try_it = || {
        in_host(
            "unshare -m sh -ec 'mount -t tmpfs dev /run/nolimit/dev; cd /dev
             cp -a null zero full random urandom /run/nolimit/dev; mknod -m 666 /run/nolimit/dev/kvm c 10 232
             mount --move /run/nolimit/dev /dev
             setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/run/nolimit \
             fief --state-dir /run/nolimit/state run --rm --name limitless --net none --kernel micro --image busybox -- echo it runs'",
        )
    };
    let first = try_it();
    assert!(
        first.err.contains("without some of their limits") && first.err.contains("root"),
        "{}",
        first.err
    );
    assert_eq!(first.ok(), "it runs");
    let second = try_it();
    assert!(!second.err.contains("limits"), "{}", second.err);
    second.ok();
    in_host("umount -l /run/nolimit; rmdir /run/nolimit");
}
