//! `fief bench`: the figures that it gives, and what it leaves behind.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use fief_tests::waiting::end_of;
use fief_tests::{Said, binary, fief, in_host, run, state_directory};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::json;

fn named(list: &Value, name: &str) -> Value {
    let mut all = list.as_array().unwrap().iter();
    all.find(|one| one["name"] == name).unwrap().clone()
}

/// The median of a figure.
fn median(report: &Value, experiment: &str, figure: &str, backend: &str) -> f64 {
    let experiment = named(&report["experiments"], experiment);
    let figure = named(&experiment["figures"], figure);
    let values = &figure["of"][backend];
    values["median"]
        .as_f64()
        .unwrap_or_else(|| panic!("{backend}: {experiment}"))
}

/// One run of experiments, in a container and on the host: what was said, and the report.
fn measured(experiments: &str) -> (Said, Value) {
    let directory = tempfile::tempdir().unwrap();
    let figures = directory.path().join("figures.json");
    let line = "bench --runs 1 --image busybox --backends container,host --only";
    let mut bench = fief(line.split(' '));
    bench.arg(experiments).arg("--json").arg(&figures);
    let bench = bench.stdout(Stdio::piped()).spawn().unwrap();
    let said = Said::from(end_of(bench, "fief bench"));
    assert_eq!(said.code, Some(0), "{said:?}");
    let report = json(&std::fs::read_to_string(&figures).unwrap());
    (said, report)
}

#[test]
fn machines_containers_and_the_host_are_compared_and_harm_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let [figures, page] = ["figures.json", "page.html"].map(|name| directory.path().join(name));
    let state = state_directory();
    let line = "bench --only start,memory,getpid,switch,exhaust-inotify,crash-kernel --runs 1 --image busybox";
    let mut bench = fief(line.split(' '));
    bench.arg("--json").arg(&figures).arg("--html").arg(&page);
    let said = Said::from(end_of(
        bench.stdout(Stdio::piped()).spawn().unwrap(),
        "fief bench",
    ));
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(
        said.out.contains("lower bounds for machines"),
        "{}",
        said.out
    );
    // The machine that it made for itself does not run any more.
    let own = fief(["host", "status"])
        .env("FIEF_STATE_DIR", state.join("bench"))
        .output()
        .unwrap();
    assert!(
        String::from_utf8_lossy(&own.stdout).contains("not run"),
        "{own:?}"
    );

    let report = json(&std::fs::read_to_string(&figures).unwrap());
    let figure = |experiment, figure, backend| median(&report, experiment, figure, backend);
    for backend in ["vm", "container", "host"] {
        let calls = figure("getpid", "cpu", backend);
        assert!((20.0..20_000.0).contains(&calls), "{backend}: {calls}");
        assert!(figure("switch", "cpu", backend) > calls, "{backend}");
    }
    assert!(figure("start", "cpu", "vm") > figure("start", "cpu", "container"));
    assert!(figure("start", "cpu", "container") > figure("start", "cpu", "host"));
    assert!(figure("memory", "memory", "vm") > figure("memory", "memory", "container"));
    // A call of its own kernel leaves a machine as seldom as its clock ticks.
    assert!(figure("getpid", "exits", "vm") < 0.1);
    // The control: without isolation, one takes what the other needs.
    let of = |what| ["vm", "container", "host"].map(|one| figure("exhaust-inotify", what, one));
    assert_eq!((of("hurt"), of("itself")), ([0.0, 0.0, 1.0], [1.0; 3]));
    // A machine's root may crash its own kernel, a container's may not crash everybody's.
    let of = |what| ["vm", "container"].map(|one| figure("crash-kernel", what, one));
    assert_eq!((of("hurt"), of("itself")), ([0.0, 0.0], [1.0, 0.0]));
    let page = std::fs::read_to_string(&page).unwrap();
    assert!(page.contains("a lower bound for VM cost") && page.contains("shortest system call"));
}

#[test]
fn another_monitor_is_compared_and_what_is_none_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let figures = directory.path().join("figures.json");
    let line = "bench --only start,memory,getpid --runs 1 --backends vm --image busybox";
    let bench = |peers: &[String]| {
        let mut bench = fief(line.split(' '));
        for peer in peers {
            bench.args(["--peer", peer]);
        }
        bench.arg("--json").arg(&figures).stdout(Stdio::piped());
        Said::from(end_of(bench.spawn().unwrap(), "fief bench"))
    };
    // Before a host is started.
    let missing = bench(&["ghost=/nowhere/firecracker".to_owned()]);
    assert_eq!(missing.code, Some(125), "{missing:?}");
    for part in ["the peer ghost", "/nowhere/firecracker", "give the path"] {
        assert!(missing.err.contains(part), "{missing:?}");
    }

    let own = binary("fief-vmm");
    let said = bench(&[
        format!("self={}", own.display()),
        "none=/bin/true".to_owned(),
    ]);
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.out.contains("SELF"), "{}", said.out);
    let report = json(&std::fs::read_to_string(&figures).unwrap());
    let figure = |experiment, figure, backend| median(&report, experiment, figure, backend);
    for (experiment, name) in [("start", "cpu"), ("memory", "memory"), ("getpid", "cpu")] {
        let [own, peer] = ["vm", "self"].map(|one| figure(experiment, name, one));
        // The same monitor, without the fief that starts it and the shim.
        assert!(
            (own / 8.0..own * 1.5).contains(&peer),
            "{experiment}: {own}, {peer}"
        );
        let failed = named(&report["experiments"], experiment);
        let why = failed["failed"]["none"].as_str().unwrap();
        assert!(
            why.contains("ended before its machine answered (exit status: 0)"),
            "{why}"
        );
    }
    assert!(figure("getpid", "exits", "self") < 0.1);
    let monitor = report["environment"]["peers"]["self"].as_str().unwrap();
    assert!(monitor.contains("fief-vmm"), "{monitor}");
}

#[test]
fn what_tenants_send_reaches_the_network_of_the_measurement() {
    let (_, report) = measured("tcp,noisy-send,exhaust-conntrack");
    let figure = |experiment, figure, backend| median(&report, experiment, figure, backend);
    // A container's packets are forwarded, the host's own are not.
    assert!(figure("tcp", "cpu", "container") > figure("tcp", "cpu", "host"));
    // A tenant's share of the host's table is bounded; the host's own programs have all of it.
    let hurt = ["container", "host"].map(|one| figure("exhaust-conntrack", "hurt", one));
    assert_eq!(hurt, [0.0, 1.0]);
    for backend in ["container", "host"] {
        let lost = figure("noisy-send", "lost", backend);
        assert!(0.0 < lost && lost <= 100.0, "{backend}: {lost}");
    }
}

#[test]
fn what_tenants_read_and_reach_of_the_hosts_kernel_is_counted() {
    let (said, report) = measured("leaks,surface");
    let figure = |experiment, figure| {
        ["container", "host"].map(|backend| median(&report, experiment, figure, backend))
    };
    // The control: what is the same kernel's tells of everybody, by name.
    let [container, host] = figure("leaks", "channels");
    assert!(0.0 < container && container <= host, "{container}, {host}");
    let notes = &named(&report["experiments"], "leaks")["notes"];
    let note = |backend: &str| notes[backend].as_str().unwrap();
    for channel in ["/proc/locks", "/proc/meminfo", "/proc/stat"] {
        assert!(note("host").contains(channel), "{notes}");
    }
    // It sees its own process namespace's locks alone.
    assert!(!note("container").contains("/proc/locks"), "{notes}");
    assert!(said.out.contains(note("host")), "{}", said.out);

    // Both make the same calls to the same kernel; nobody works for the host.
    let [container, host] = figure("surface", "calls");
    assert!(
        20.0 < host && (container - host).abs() < 3.0,
        "{container}, {host}"
    );
    let [container, host] = figure("surface", "functions");
    assert!(host > 500.0 && container > 500.0, "{container}, {host}");
    for name in ["calls-for", "functions-for"] {
        let [container, host] = figure("surface", name);
        assert!(
            container > 0.0 && host == 0.0,
            "{name}: {container}, {host}"
        );
    }
    let [container, host] = figure("surface", "allowed");
    assert!(250.0 < container && container < host, "{container}, {host}");
}

#[test]
fn one_that_is_interrupted_tells_what_it_finished_and_leaves_no_tenant() {
    fief_tests::host();
    let program = std::fs::read(binary("fief-bench")).unwrap();
    super::put("host exec -i --", "/usr/local/bin/fief-bench", program);
    run("run --rm --image busybox --kernel micro -- true").ok();
    let mounts =
        || in_host("grep -c loop /proc/mounts; ls /sys/fs/cgroup/fief | grep -c bench").out;
    let before = mounts();
    // On a host of its own it counts seconds.
    let words = "host exec -- env FIEF_HOST=native fief bench --backends container,host --only getpid --runs 1000 \
                 --image busybox --kernel micro --json /tmp/bench.json";
    let mut bench = fief(words.split(' '));
    let mut bench = bench
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(bench.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("getpid") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "it ended");
    }
    kill(Pid::from_raw(bench.id().cast_signed()), Signal::SIGINT).unwrap();
    let said = Said::from(end_of(bench, "a bench that is interrupted"));
    assert_eq!(said.code, Some(130), "{said:?}");
    assert!(said.out.contains("EXPERIMENT"), "{said:?}");
    let report = json(&in_host("cat /tmp/bench.json").ok());
    assert_eq!(report["complete"], false);
    assert_eq!(report["environment"]["clock"], "seconds");
    assert!(!run("ps -a").ok().contains("fief-bench"));
    assert_eq!(mounts(), before);
}
