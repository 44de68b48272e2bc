//! A tenant's limits are real: its monitor sits in a cgroup, and nothing of that is left.

use fief_tests::{in_host, run};

use super::Tenant;
use super::backend::Backend;

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

both!(a_monitor_is_in_its_tenants_cgroup_with_all_its_threads_and_leaves_none_behind);
fn a_monitor_is_in_its_tenants_cgroup_with_all_its_threads_and_leaves_none_behind(
    backend: Backend,
) {
    let tenant = backend.start(
        "grouped",
        "--kernel micro --image busybox --cpus 2 --memory 128M",
    );
    let entry = tenant.listed();
    // A container's processes are in a group of their own, beside that of its shim.
    let members = group("grouped", backend.either("cgroup.procs", "*/cgroup.procs"));
    let mut members: Vec<&str> = members.split_whitespace().collect();
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
    let file = backend.either("memory.max", "tenant/memory.max");
    let expected: u64 = backend.either(128 + 64 + 4, 128) << 20;
    assert_eq!(group("grouped", file), expected.to_string());
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

both!(a_tenant_gets_no_more_memory_and_disk_than_it_was_given_until_it_is_given_more);
fn a_tenant_gets_no_more_memory_and_disk_than_it_was_given_until_it_is_given_more(
    backend: Backend,
) {
    let options = "--kernel micro --image busybox --net none --memory 128M --disk 32M";
    let tenant = backend.start("meagre", options);
    let eat = "dd if=/dev/zero of=/dev/null bs=150M count=1";
    assert_ne!(tenant.sh(eat).code, Some(0));
    let fill = "dd if=/dev/zero of=/large bs=1M count=64";
    let said = tenant.sh(fill);
    assert!(said.err.contains("No space left"), "{}", said.err);
    let small = "rm /large; dd if=/dev/zero of=/small bs=1M count=8";
    tenant.sh(small).ok();
    // Nor can root inside change what holds it.
    let more = "echo max > /sys/fs/cgroup/memory.max || echo max > /sys/fs/cgroup/../memory.max";
    assert_ne!(tenant.sh(more).code, Some(0));
    run("set meagre --disk 128M --memory 512M").ok();
    run("restart meagre").ok();
    tenant.sh(eat).ok();
    tenant.sh(&format!("test -s /small && {fill}")).ok();
}

both!(a_tenant_that_computes_without_end_is_held_to_its_processors);
fn a_tenant_that_computes_without_end_is_held_to_its_processors(backend: Backend) {
    // The emulated host has one processor; to see a limit at work it must be less than that.
    let tenant = backend.start("busy", "--kernel micro --image busybox --memory 128M");
    in_host("echo 20000 100000 > $(echo /sys/fs/cgroup/fief/busy-*)/cpu.max").ok();
    let before = group("busy", "cpu.stat");
    tenant
        .sh("f() { i=0; while test $i -lt 50000; do i=$((i + 1)); done; }; f & f & wait")
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

// A container's programs have its memory, not a monitor.
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

both!(an_ordinary_user_runs_tenants_without_limits_and_is_told_once);
fn an_ordinary_user_runs_tenants_without_limits_and_is_told_once(backend: Backend) {
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
        in_host(&format!(
            "unshare -m sh -ec 'mount -t tmpfs dev /run/nolimit/dev; cd /dev
             cp -a null zero full random urandom /run/nolimit/dev; mknod -m 666 /run/nolimit/dev/kvm c 10 232
             mount --move /run/nolimit/dev /dev
             setpriv --reuid 65534 --regid 65534 --clear-groups env HOME=/run/nolimit \
             fief --state-dir /run/nolimit/state run --rm {backend} --name limitless --net none --kernel micro --image busybox -- echo it runs'"
        ))
    };
    if backend == Backend::Container {
        // It takes the host's root to make one.
        let error = try_it().fails(125);
        assert!(error.contains("root"), "{error}");
        in_host("umount -l /run/nolimit; rmdir /run/nolimit");
        return;
    }
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
