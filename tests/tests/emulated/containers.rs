//! What is a container's alone. What it has in common with a machine is tested with both elsewhere (`both!`).

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
fn the_agent_of_a_container_takes_the_signal_that_stands_for_a_power_button() {
    let tenant = start("ct-pressed", "--net none");
    in_host(&format!("kill -PWR {}", tenant.listed()["monitor_pid"])).ok();
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
    let tenant = start("ct-plain", "--net none");
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
