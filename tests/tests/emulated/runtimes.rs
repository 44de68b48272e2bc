//! OCI runtimes that hang or die, and what a container may make many of: nothing of it stays on the host.

use fief_tests::{Said, in_host, run, spawn, waiting};

use super::Tenant;

const CONTAINER: &str = "--isolation container --image busybox --net none";

/// What is in the kernel for tenants of this name.
fn left_of(name: &str) -> String {
    in_host(&format!(
        "find /sys/fs/cgroup/fief -mindepth 1 -maxdepth 1 -name '{name}-*'; losetup -a | grep /{name}/
         pgrep -f 'fief shim {name}$'; pgrep -f 'hostname={name}$'; grep -c ' /mnt' /proc/mounts"
    ))
    .out
}

/// A runtime that is a script of the emulated host. `$does` is the first of its words that is a command.
fn runtime(name: &str, script: &str) -> String {
    let path = format!("/var/lib/fief-{name}");
    let head = "#!/bin/sh\nfor does; do case $does in run|delete) break; esac; done";
    in_host(&format!(
        "printf '%s\\n' '{head}' '{script}' > {path}; chmod +x {path}"
    ))
    .ok();
    path
}

#[test]
fn a_runtime_that_hangs_does_not_keep_its_tenant_from_being_killed() {
    let hangs = "[ $does != run ] || sleep 86400; exec runc \"$@\"";
    let path = runtime("hangs", hangs);
    let name = "rt-hangs";
    let tenant = Tenant::create(name, &format!("{CONTAINER} --runtime {path}"));
    let started = spawn(&format!("start {name}"));
    waiting::until("the runtime hangs", || {
        (in_host("pgrep -f 'sleep 8640[0]'").code == Some(0)).then_some(())
    });
    run(&format!("kill {name}")).ok();
    let said = waiting::end_of(started, "a start that was given up");
    let words = String::from_utf8_lossy(&said.stderr);
    assert_eq!(said.status.code(), Some(125), "{words}");
    assert!(words.contains("told to stop"), "{words}");
    assert_ne!(in_host("pgrep -f 'sleep 8640[0]'").code, Some(0));
    waiting::until("nothing is left", || {
        (left_of(name).trim() == "0").then_some(())
    });
    // The same tenant, with a runtime that works.
    runtime("hangs", "exec runc \"$@\"");
    run(&format!("start {name}")).ok();
    tenant.sh("true").ok();
    in_host("rm /var/lib/fief-hangs").ok();
}

#[test]
fn a_runtime_that_is_killed_half_way_leaves_nothing() {
    let path = runtime("dies", "exec runc \"$@\"");
    let tenant = Tenant::create("rt-killed", &format!("{CONTAINER} --runtime {path}"));
    // After its work; while it works, at moments that are as they come.
    let deaths = [
        "runc \"$@\"; kill -9 $$",
        "runc \"$@\" & sleep 0.02; kill -9 $!; wait $!",
        "runc \"$@\" & sleep 0.1; kill -9 $!; wait $!",
    ];
    for death in deaths {
        runtime(
            "dies",
            &format!("[ $does != run ] || {{ {death}; exit; }}; exec runc \"$@\""),
        );
        let said = run("start rt-killed");
        if said.code != Some(0) {
            assert!(
                said.err.contains("cannot make the container"),
                "{}",
                said.err
            );
        }
        run("kill rt-killed");
        waiting::until("nothing is left", || {
            (left_of("rt-killed").trim() == "0").then_some(())
        });
    }
    runtime("dies", "exec runc \"$@\"");
    run("start rt-killed").ok();
    tenant.sh("true").ok();
    in_host("rm /var/lib/fief-dies").ok();
}

#[test]
fn processes_are_limited_and_there_are_as_many_as_are_told() {
    let tenant = Tenant::start("rt-pids", &format!("{CONTAINER} --memory 512M"));
    let group = "/sys/fs/cgroup/fief/rt-pids-*";
    let file = |name: &str| in_host(&format!("cat {group}/{name}")).ok();
    assert_eq!(file("tenant/pids.max"), "4096");
    // The shim has its own part.
    assert_eq!(file("pids.max"), "5120");
    let fork =
        |count: u32| format!("i=0; while [ $i -lt {count} ]; do sleep 3000 & i=$((i+1)); done");
    tenant.sh(&fork(1100)).ok();
    assert!(file("tenant/pids.current").parse::<u32>().unwrap() > 1100);
    // As if the limit were that of a smaller container: to reach the whole takes long here.
    in_host(&format!(
        "for file in {group}/tenant/pids.max; do echo 1150 > $file; done"
    ))
    .ok();
    let said = tenant.sh(&fork(200));
    assert!(said.err.contains("fork"), "{said:?}");
    let current = file("tenant/pids.current").parse::<u32>().unwrap();
    // The shell that could not go on has ended.
    assert!((1140..=1150).contains(&current), "{current}");
    // Full as it is, it can be ended.
    run("kill rt-pids").ok();
}

/// A place whose cgroups have every controller but memory, as in a container that was handed down no more, and a state
/// directory there.
struct Lacking;

impl Lacking {
    const GROUP: &str = "/sys/fs/cgroup/rt-lacking";

    fn new() -> Self {
        let group = Self::GROUP;
        in_host(&format!(
            "set -e; mkdir -p -m 700 /var/lib/fief-lacking; ln -sfn /var/lib/fief/images /var/lib/fief-lacking/images
             mkdir -p {group}/top/self; echo '+cpu +io +pids +memory' > /sys/fs/cgroup/cgroup.subtree_control
             echo '+cpu +io +pids' > {group}/cgroup.subtree_control; echo 0 > {group}/top/cgroup.procs
             unshare -C -m sh -ec 'umount /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup; echo 0 > /sys/fs/cgroup/self/cgroup.procs
                 exec sleep 86401' > /dev/null 2>&1 & echo $! > /var/lib/fief-lacking/holder"
        ))
        .ok();
        waiting::until("the place is there", || {
            let members = in_host(&format!("cat {group}/top/self/cgroup.procs"));
            (!members.out.is_empty()).then_some(())
        });
        Self
    }

    fn run(&self, command: &str) -> Said {
        in_host(&format!(
            "echo 0 > {}/top/self/cgroup.procs; exec nsenter -t $(cat /var/lib/fief-lacking/holder) -m -C \
             fief --host native --state-dir /var/lib/fief-lacking {command}",
            Self::GROUP
        ))
    }
}

impl Drop for Lacking {
    fn drop(&mut self) {
        in_host(&format!(
            "kill -9 $(cat /var/lib/fief-lacking/holder); sleep 0.2; rm -r /var/lib/fief-lacking
             find {} -depth -type d -exec rmdir {{}} ';'",
            Self::GROUP
        ));
    }
}

#[test]
fn a_limit_that_cannot_be_enforced_is_refused_or_left_out_and_the_container_has_its_group() {
    let place = Lacking::new();
    for runtime in ["crun", "runc"] {
        let options = format!("{CONTAINER} --runtime {runtime}");
        let error = place.run(&format!("run --rm {options} -- true")).fails(125);
        assert!(
            error.contains("no memory controller") && error.contains("--allow-unenforced"),
            "{error}"
        );
        let options = format!("{options} --allow-unenforced");
        place.run(&format!("run -d --name rt-free {options}")).ok();
        let inspected = super::json(&place.run("ps --json").ok())[0].clone();
        let group = format!("{}/top/fief/rt-free-*", Lacking::GROUP);
        let file = |name: &str| in_host(&format!("cat {group}/{name}")).ok();
        assert_eq!(
            file("tenant/cgroup.procs"),
            inspected["monitor_pid"].to_string()
        );
        assert_eq!(file("tenant/pids.max"), "4096");
        // One that is found by its group alone.
        in_host(&format!(
            "sh -c 'echo 0 > $(echo {group})/tenant/cgroup.procs; exec sleep 86402' > /dev/null 2>&1 &"
        ))
        .ok();
        waiting::until("it is in the group", || {
            (file("tenant/cgroup.procs").lines().count() == 2).then_some(())
        });
        in_host(&format!("kill -9 {}", inspected["shim_pid"])).ok();
        place.run("rm -f rt-free").ok();
        waiting::until("nothing is left", || {
            let groups = in_host(&format!("ls -d {group}")).code == Some(0);
            (!groups && in_host("pgrep -f 'sleep 8640[2]'").code != Some(0)).then_some(())
        });
    }
}

#[test]
fn groups_inside_are_bounded_and_go_with_the_tenant() {
    let tenant = Tenant::start("rt-groups", CONTAINER);
    let name = "x".repeat(255);
    let deep = format!(
        "cd /sys/fs/cgroup; i=0; while [ $i -lt 40 ] && mkdir {name}; do cd {name}; i=$((i+1)); done; echo $i"
    );
    let depth: u32 = tenant.sh(&deep).out.trim().parse().unwrap();
    assert!((8..12).contains(&depth), "{depth}");
    let many =
        "cd /sys/fs/cgroup; i=0; while [ $i -lt 2000 ] && mkdir g$i; do i=$((i+1)); done; echo $i";
    let count: u32 = tenant.sh(many).out.trim().parse().unwrap();
    assert!((900..1024).contains(&count), "{count}");
    // Not its own to change: the file is above what it sees.
    assert_ne!(
        tenant
            .sh("echo max > /sys/fs/cgroup/../cgroup.max.depth")
            .code,
        Some(0)
    );
    drop(tenant);
    waiting::until("nothing is left", || {
        (left_of("rt-groups").trim() == "0").then_some(())
    });
}

#[test]
fn what_the_kernel_counts_by_user_is_counted_for_each_tenant_alone() {
    let options = CONTAINER.replace("busybox", "debian");
    let one = Tenant::start("rt-counts", &options);
    let other = Tenant::start("rt-counts-b", &options);
    // inotify_init1 is 294 on x86-64.
    let take = "perl -e '$| = 1; $n = 0; $n++ while syscall(294, 0) >= 0; print \"$n\\n\"; sleep $ARGV[0]'";
    let all: u32 = one
        .sh(&format!(
            "({take} 1000 > /tmp/taken &) ; until grep . /tmp/taken; do sleep 1; done"
        ))
        .out
        .trim()
        .parse()
        .unwrap();
    assert!(all >= 100, "{all}");
    // All that there are: another program of it gets none, its neighbour and the host's root theirs.
    assert_eq!(one.sh(&format!("{take} 0")).ok(), "0");
    let others: u32 = other.sh(&format!("{take} 0")).ok().parse().unwrap();
    assert!(others >= 100, "{others}");
    in_host("perl -e 'exit(syscall(294, 0) < 0)'").ok();
}

#[test]
fn what_the_caller_has_set_for_herself_is_not_set_for_her_containers() {
    for runtime in ["crun", "runc"] {
        // runc would wait for a word of the container to its service manager.
        let run = "NOTIFY_SOCKET=/run/nobody LISTEN_FDS=3 fief --host native run --rm --isolation container";
        in_host(&format!(
            "{run} --image busybox --net none --runtime {runtime} -- true"
        ))
        .ok();
    }
    let tenant = Tenant::create("rt-caller", CONTAINER);
    in_host("bash -c 'ulimit -u 200; fief --host native start rt-caller'").ok();
    tenant
        .sh("i=0; while [ $i -lt 400 ]; do sleep 3000 & i=$((i+1)); done")
        .ok();
}
