//! Tenants in containers: the same commands, on the host's kernel. Both runtimes of the emulated host are used.

use fief_tests::{in_host, run, run_with, waiting};

use super::{Tenant, json};

const CONTAINER: &str = "--isolation container --image busybox";

#[track_caller]
fn start(name: &str, more: &str) -> Tenant {
    Tenant::start(name, &format!("{CONTAINER} {more}"))
}

/// What containers leave in the kernel, or should not.
fn kernel() -> String {
    in_host(
        "losetup -a; ls /run/netns; ip -o link | sed 's/^[0-9]*: \\([^:]*\\).*/\\1/'; grep -c ' /mnt' /proc/mounts
         find /sys/fs/cgroup/fief -mindepth 1 -type d -name 'ct-*'; pgrep -f 'fief/agent --container' | wc -l",
    )
    .out
}

#[test]
fn a_command_runs_as_in_a_machine_but_on_the_hosts_kernel() {
    let release = in_host("uname -r").ok();
    for runtime in ["runc", "crun"] {
        let line = format!("run --rm {CONTAINER} --runtime {runtime} -- sh -c");
        let said = run_with(
            &line,
            "uname -r; id -u; hostname; cat /proc/self/uid_map; exit 7",
        );
        let words: Vec<String> = said.out.split_whitespace().map(str::to_owned).collect();
        assert_eq!(said.code, Some(7), "{}", said.err);
        assert_eq!(words[..2], [release.clone(), "0".to_owned()], "{runtime}");
        // Its root is nobody on the host.
        assert!(words[4].parse::<u32>().unwrap() >= 0x7000_0000, "{words:?}");
    }
    // The same flags, and another kernel.
    let machine = run("run --rm --kernel micro --image busybox -- uname -r").ok();
    assert_ne!(machine, release);
}

#[test]
fn files_stay_over_restarts_and_the_end_is_told_as_a_machines() {
    let tenant = start("ct-stays", "--net none");
    tenant.sh("echo kept > /root/file").ok();
    assert!(run("stop ct-stays").ok().contains("stopped"));
    run("start ct-stays").ok();
    assert_eq!(tenant.sh("cat /root/file").ok(), "kept");
    let before = tenant.listed()["monitor_pid"].clone();
    // Its own restart is none of its policy's.
    tenant.sh("reboot");
    waiting::until("it has started again", || {
        let listed = tenant.listed();
        (listed["status"] == "running" && listed["monitor_pid"] != before).then_some(())
    });
    assert_eq!(tenant.sh("cat /root/file").ok(), "kept");
    assert_eq!(tenant.listed()["restarts"], 0);
    tenant.sh("poweroff");
    assert_eq!(tenant.ended(), "poweroff");
    run("start ct-stays").ok();
    run("kill ct-stays").ok();
    assert_eq!(tenant.ended(), "killed");
    run("start ct-stays").ok();
    assert!(run("logs ct-stays").code == Some(0));
    // Nobody answers the button's signal better than the agent itself.
    let pid = tenant.listed()["monitor_pid"].clone();
    in_host(&format!("kill -PWR {pid}")).ok();
    assert_eq!(tenant.ended(), "poweroff");
}

#[test]
fn a_container_ends_with_its_shim_and_nothing_of_it_is_left() {
    let before = kernel();
    let tenant = start("ct-orphan", "--memory 64M");
    tenant.sh("echo kept > /root/file; sync").ok();
    assert_ne!(kernel(), before);
    let shim = tenant.listed()["shim_pid"].clone();
    in_host(&format!("kill -9 {shim}")).ok();
    assert_eq!(tenant.ended(), "killed");
    run("start ct-orphan").ok();
    assert_eq!(tenant.sh("cat /root/file").ok(), "kept");
    // The agent is process 1: without it nothing of the tenant goes on.
    let pid = tenant.listed()["monitor_pid"].clone();
    in_host(&format!("kill -9 {pid}")).ok();
    assert_eq!(tenant.ended(), "killed");
    drop(tenant);
    // Namespaces are cleaned up in the kernel's own time.
    waiting::until("nothing is left", || (kernel() == before).then_some(()));
}

#[test]
fn limits_hold() {
    let tenant = start("ct-limits", "--net none --memory 64M --disk 32M --cpus 2");
    let eat = "x=$(head -c 150000000 /dev/zero | tr '\\0' a); echo alive";
    let said = tenant.sh(eat);
    assert!(!said.out.contains("alive"), "{}", said.out);
    let said = tenant.sh("dd if=/dev/zero of=/large bs=1M count=64");
    assert!(said.err.contains("No space left"), "{}", said.err);
    tenant
        .sh("rm /large; dd if=/dev/zero of=/small bs=1M count=8")
        .ok();
    let group = |file: &str| in_host(&format!("cat /sys/fs/cgroup/fief/ct-limits-*/{file}")).ok();
    assert_eq!(group("cpu.max"), "200000 100000");
    assert_eq!(group("tenant/memory.max"), (64 << 20).to_string());
    assert_eq!(group("tenant/pids.max"), "4096");
    let stats = json(&run("stats --no-stream --json ct-limits").ok());
    let inside = &stats["inside_memory_total_bytes"];
    assert_eq!(*inside, 64 << 20, "{stats}");
    // The limits are not the tenant's to change.
    assert_ne!(
        tenant.sh("echo max > /sys/fs/cgroup/memory.max").code,
        Some(0)
    );
    // Larger, with what is on it.
    run("set ct-limits --disk 128M --memory 512M").ok();
    run("restart ct-limits").ok();
    assert_eq!(tenant.sh(eat).ok(), "alive");
    tenant
        .sh("test -s /small && dd if=/dev/zero of=/large bs=1M count=64")
        .ok();
}

#[test]
fn neighbours_in_containers_and_machines_meet_by_a_grant_alone() {
    let container = start("ct-alice", "");
    let machine = Tenant::start("ct-bob", "--kernel micro --image busybox --memory 128M");
    let address = |tenant: &Tenant| -> String {
        let all = json(&run(&format!("inspect {}", tenant.0)).ok());
        all["network"]["address"].as_str().unwrap().to_owned()
    };
    let serve = "(while :; do echo hello | nc -l -p 5000; done) > /dev/null 2>&1 &";
    for (server, client) in [(&container, &machine), (&machine, &container)] {
        server.sh(serve).ok();
        let ask = format!("nc -w 3 {} 5000 < /dev/null", address(server));
        assert_ne!(client.sh(&ask).out.trim(), "hello");
        let both = format!("{} --to {} --port 5000", server.0, client.0);
        run(&format!("grant {both}")).ok();
        assert_eq!(client.sh(&ask).out.trim(), "hello");
        let by_name = format!("nc -w 3 {}.fief 5000 < /dev/null", server.0);
        assert_eq!(client.sh(&by_name).out.trim(), "hello");
        run(&format!("revoke {both}")).ok();
        assert_ne!(client.sh(&ask).out.trim(), "hello");
    }
    // A network is the tenant's over restarts.
    let before = address(&container);
    run("restart ct-alice").ok();
    assert_eq!(address(&container), before);
    assert!(container.sh("ip -4 addr show eth0").ok().contains(&before));
}

#[test]
fn the_images_own_init_is_process_1_and_shuts_down() {
    let tenant = Tenant::start(
        "ct-systemd",
        "--isolation container --image debian --init image --net none",
    );
    let state = waiting::until("systemd has started everything", || {
        let said = tenant.sh("systemctl is-system-running").out;
        ["running", "degraded"]
            .contains(&said.trim())
            .then(|| said.trim().to_owned())
    });
    assert_eq!(state, "running", "{}", tenant.sh("systemctl --failed").out);
    assert_eq!(tenant.sh("cat /proc/1/comm").ok(), "systemd");
    // As an ordinary user, to root, as on any server.
    let as_user = run("exec --user user ct-systemd -- sudo -n id -u");
    assert_eq!(as_user.ok(), "0");
    run("stop ct-systemd").ok();
    assert_eq!(tenant.ended(), "poweroff");
}

/// What root of a machine can do, and what of it root of a container must not.
const HARMS: [(&str, &str); 6] = [
    (
        "a device of the host's disk",
        "rm -f /root/disk; mknod /root/disk b 254 0 && head -c 1 /root/disk > /dev/null && rm /root/disk",
    ),
    (
        "a kernel module",
        "modprobe dummy || insmod $(find /lib/modules -name 'dummy.ko*' 2>/dev/null | head -n 1)",
    ),
    ("the kernel's log", "dmesg | grep -q ."),
    ("the clock", "date -s \"$(date '+%Y-%m-%d %H:%M:%S')\""),
    (
        "a setting of all",
        "cat /proc/sys/kernel/panic > /tmp/panic && cat /tmp/panic > /proc/sys/kernel/panic",
    ),
    (
        "the host's limits",
        "mkdir /sys/fs/cgroup/fief-test-harm && rmdir /sys/fs/cgroup/fief-test-harm && test -e /sys/fs/cgroup/fief",
    ),
];

#[test]
fn roots_attempts_on_the_host_are_refused_inside_and_work_on_the_host() {
    let tenant = Tenant::start(
        "ct-hostile",
        "--isolation container --image debian --net none",
    );
    let shim = tenant.listed()["shim_pid"].to_string();
    let its_shim = ("a process of the host", format!("kill -0 {shim}"));
    let harms = HARMS.map(|(what, script)| (what, script.to_owned()));
    for (what, script) in harms.iter().chain([&its_shim]) {
        let control = in_host(script);
        assert_eq!(
            control.code,
            Some(0),
            "on the host, {what}: {}",
            control.err
        );
        let said = tenant.sh(script);
        assert_ne!(said.code, Some(0), "inside, {what}: {}", said.out);
    }
    // What is masked takes every word, and does nothing.
    let keys = "echo h > /proc/sysrq-trigger";
    let done = || in_host("dmesg | grep -c 'sysrq: HELP'").out;
    let before = done();
    tenant.sh(keys);
    assert_eq!(done(), before);
    in_host(keys).ok();
    assert_ne!(done(), before);
}

#[test]
fn what_a_container_cannot_have_is_told() {
    let line = |more: &str| format!("run --rm {CONTAINER} --net none {more} -- true");
    let refused = |line: &str, words: &[&str]| {
        let said = run(line).fails(125);
        for word in words {
            assert!(said.contains(word), "{line}: {said}");
        }
    };
    refused(
        &line("--runtime youki"),
        &["youki", "apt-get install", "--runtime"],
    );
    refused(&line("--runtime /bin/false"), &["doctor"]);
    refused(
        &line("--disk-rate 1M"),
        &["--disk-rate", "--allow-unenforced"],
    );
    run(&line("--disk-rate 1M --allow-unenforced")).ok();
    let tenant = start("ct-plain", "--net none");
    refused(
        "set ct-plain --disk-ops 5",
        &["--disk-ops", "--allow-unenforced"],
    );
    refused("disk add ct-plain 1G", &["container", "fief cp"]);
    refused("api ct-plain GET /", &["container"]);
    tenant.sh("true").ok();
    // No ids are left for a second one.
    let state = "--state-dir /var/lib/fief-ids";
    in_host("mkdir -p -m 700 /var/lib/fief-ids; echo '{\"ranges\": 1, \"first_id\": 1800000000}' > /var/lib/fief-ids/containers.json
             ln -sfn /var/lib/fief/images /var/lib/fief-ids/images")
    .ok();
    let inside = |command: &str| in_host(&format!("fief --host native {state} {command}"));
    inside("run -d --name ct-first --isolation container --image busybox --net none").ok();
    let said = inside("run --rm --isolation container --image busybox --net none -- true");
    assert!(
        said.err.contains("containers.json") && said.code != Some(0),
        "{}",
        said.err
    );
    inside("rm -f ct-first").ok();
    inside("run --rm --isolation container --image busybox --net none -- true").ok();
    in_host("rm -rf /var/lib/fief-ids").ok();
}
