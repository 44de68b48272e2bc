//! Tenants are made, started, ended in every way there is, waited for and looked at.

use std::io::{BufRead, BufReader};

use fief_tests::{run, run_with, spawn, waiting};

use super::backend::Backend;
use super::{IMAGES, busybox_root, json};

both!(a_tenant_is_created_started_looked_at_killed_and_waited_for);
fn a_tenant_is_created_started_looked_at_killed_and_waited_for(backend: Backend) {
    let tenant = backend.create(
        "made",
        "--kernel micro --image busybox --cpus 2 --memory 200M",
    );
    assert_eq!(tenant.listed()["status"], "created");
    assert!(!run("ps").ok().contains("made"), "it does not run yet");
    assert!(
        run("exec made -- true")
            .fails(125)
            .contains("fief start made")
    );
    assert_eq!(run("start made").ok(), "made");
    assert!(run("ps").ok().contains("made"));
    let processors = backend.either("2".to_owned(), fief_tests::in_host("nproc").ok());
    assert_eq!(tenant.sh("nproc").ok(), processors);

    let inspected = json(&run("inspect made").ok());
    let listed = tenant.listed();
    for field in [
        "name",
        "status",
        "image",
        "cpus",
        "memory_bytes",
        "shim_pid",
        "monitor_pid",
    ] {
        assert_eq!(inspected[field], listed[field], "{field}");
        assert!(!listed[field].is_null(), "{field}");
    }
    assert_eq!(
        (&listed["cpus"], &listed["status"]),
        (&2.into(), &"running".into())
    );
    assert_eq!(listed["memory_bytes"], 200 << 20);
    assert_eq!(inspected["spec"]["hostname"], "made");
    assert_eq!(inspected["spec"]["kernel"]["named"], "micro");
    let monitor = format!("tr '\\0' ' ' < /proc/{}/cmdline", listed["monitor_pid"]);
    let words = backend.either("--id made", "/run/fief/agent --container");
    let said = fief_tests::in_host(&monitor).ok();
    assert!(said.contains(words), "{said}");

    let mut waiting = spawn("wait made");
    tenant.sh("sync").ok();
    assert!(waiting.try_wait().unwrap().is_none(), "it still runs");
    assert_eq!(run("kill made").ok(), "made: killed");
    let waited = waiting::end_of(waiting, "fief wait made");
    assert_eq!(String::from_utf8_lossy(&waited.stdout), "137\n");
    let exit = &tenant.listed()["exit"];
    assert_eq!(
        (&exit["reason"], &exit["code"]),
        (&"killed".into(), &137.into())
    );
    assert!(run("kill made").fails(125).contains("not running"));
}

both!(a_tenant_that_does_not_shut_down_in_time_is_ended_by_force);
fn a_tenant_that_does_not_shut_down_in_time_is_ended_by_force(backend: Backend) {
    let tenant = backend.start("stubborn", "--kernel micro --image busybox");
    // The agent gives programs longer than this stop does.
    tenant
        .sh("(trap '' TERM HUP; while :; do sleep 1; done) > /dev/null 2>&1 &")
        .ok();
    assert_eq!(
        run("stop -t 1 stubborn").ok(),
        "stubborn: ended by force (it did not shut down in time)"
    );
    assert_eq!(tenant.listed()["exit"]["reason"], "killed");
}

both!(a_tenant_whose_agent_is_gone_is_stopped_by_its_power_button);
fn a_tenant_whose_agent_is_gone_is_stopped_by_its_power_button(backend: Backend) {
    let _images = IMAGES.lock().unwrap_or_else(|lock| lock.into_inner());
    let directory = tempfile::tempdir().unwrap();
    let root = busybox_root(directory.path());
    // An init that knows nothing but the power button: a press of a key is an event of 24 bytes (linux/input.h); for a
    // container it is the signal that systemd takes for it, SIGRTMIN+4.
    let waits = backend.either(
        "head -c 24 /dev/input/event0 > /dev/null",
        "trap 'echo pressed > /pressed' 38; while ! test -e /pressed; do sleep 0.1; done",
    );
    let init = format!("#!/bin/sh\n{waits}\nsync\npoweroff -f\n");
    std::fs::create_dir(root.join("sbin")).unwrap();
    super::executable(&root.join("sbin/init"), &init);
    let image = root.display();
    let tenant = backend.start("button", &format!("--image {image} --init image"));
    assert_eq!(tenant.sh("cat /proc/1/comm").ok(), "init");
    tenant.sh("kill -9 $(pidof fief-agent)");
    assert_eq!(
        run("stop button").ok(),
        "button: stopped by its power button (its agent did not answer)"
    );
    assert_eq!(tenant.listed()["exit"]["reason"], "poweroff");
    let name = tenant.listed()["image"].as_str().unwrap().to_owned();
    drop(tenant);
    run(&format!("images rm {name}")).ok();
}

both!(logs_show_the_console_and_follow_it_until_the_end);
fn logs_show_the_console_and_follow_it_until_the_end(backend: Backend) {
    let _tenant = backend.start("talks", "--kernel micro --image busybox");
    let say = |what: &str| {
        run_with(
            "exec talks -- sh -c",
            &format!("echo {what} > /dev/console"),
        )
        .ok()
    };
    say("first-mark");
    let mut following = spawn("logs -f talks");
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    let mut until = |mark: &str| lines.by_ref().any(|line| line.unwrap().contains(mark));
    assert!(until("first-mark"));
    say("second-mark");
    assert!(until("second-mark"));
    run("stop talks").ok();
    assert!(!until("never-said"), "it ends with the tenant");
    assert!(waiting::end_of(following, "fief logs -f").status.success());
    let all = run("logs talks").ok();
    assert!(
        all.contains("first-mark") && all.contains("second-mark"),
        "{all}"
    );
    let tail = run("logs --tail 1 talks").ok();
    assert_eq!(Some(tail.as_str()), all.lines().last());
}
