//! Tenants that start by themselves: after an end, by their restart policy; after the host's, as autostart tenants.

use std::sync::Mutex;

use fief_tests::waiting::until;
use fief_tests::{Said, binary, checkout, fief, in_host, run, waiting};

use super::Tenant;
use super::backend::Backend;

/// An end that nobody asked for: a kernel crash from inside, which Debian's kernel tells of, or the end of a container's
/// process 1, by the host.
fn crash(backend: Backend, tenant: &Tenant) {
    match backend {
        Backend::Machine => {
            tenant.sh("echo c > /proc/sysrq-trigger");
        }
        Backend::Container => {
            in_host(&format!("kill -9 {}", tenant.listed()["monitor_pid"])).ok();
        }
    }
}

fn restarts(tenant: &Tenant) -> u64 {
    tenant.listed()["restarts"].as_u64().unwrap_or(0)
}

both!(a_tenant_that_crashes_is_started_again_as_often_as_its_policy_says);
fn a_tenant_that_crashes_is_started_again_as_often_as_its_policy_says(backend: Backend) {
    let tenant = backend.start("phoenix", "--image busybox --restart on-failure:1");
    tenant.sh("echo kept > /root/file; sync").ok();
    let first = tenant.boot().unwrap();
    crash(backend, &tenant);
    let second = until("it runs again", || tenant.boot().filter(|id| *id != first));
    assert_eq!(restarts(&tenant), 1);
    assert_eq!(tenant.sh("cat /root/file").ok(), "kept");
    assert_ne!(second, first);
    crash(backend, &tenant);
    // No more: it stays as it ended, and the count with it.
    assert_eq!(tenant.ended(), backend.either("panic", "killed"));
    assert_eq!(restarts(&tenant), 1);
    let inspected = super::json(&run("inspect phoenix").ok());
    assert_eq!(inspected["spec"]["restart"], "on-failure:1");
}

both!(what_somebody_stops_stays_stopped_whatever_its_policy);
fn what_somebody_stops_stays_stopped_whatever_its_policy(backend: Backend) {
    let tenant = backend.start("stopper", "--kernel micro --image busybox --restart always");
    // The control: it does start again after an end that nobody asked for.
    let first = tenant.boot().unwrap();
    tenant.sh("poweroff; sleep 60");
    until("it runs again", || tenant.boot().filter(|id| *id != first));
    run("stop stopper").ok();
    assert_eq!(tenant.listed()["status"], "stopped");
    run("start stopper").ok();
    run("kill stopper").ok();
    assert_eq!(tenant.ended(), "killed");
    assert_eq!(tenant.listed()["status"], "stopped");
    // One that cannot live is waited for longer and longer; it can be stopped in a pause.
    run("start stopper").ok();
    in_host(
        r#"last=
         for round in 1 2 3 4; do
             while ! pid=$(fief inspect stopper | tr -d '\n' | sed -n 's/.*"monitor_pid": *\([0-9]*\).*/\1/p') || test -z "$pid" -o "$pid" = "$last"; do :; done
             kill -9 $pid; last=$pid; while kill -0 $pid 2>/dev/null; do :; done
         done"#,
    )
    .ok();
    run("stop stopper").ok();
    assert_eq!(tenant.listed()["status"], "stopped");
    assert!(restarts(&tenant) >= 3, "{}", tenant.listed());
}

#[test]
fn policies_that_contradict_are_refused() {
    for (line, words) in [
        (
            "run -d --rm --restart always --name never --kernel micro --image busybox",
            ["--rm", "always"],
        ),
        (
            "run -d --rm --autostart --name never --kernel micro --image busybox",
            ["--rm", "--autostart"],
        ),
        (
            "run --restart always --name never --kernel micro --image busybox -- true",
            ["--restart always", "-d"],
        ),
        (
            "create never --restart forever --image busybox",
            ["forever", "unless-stopped"],
        ),
        ("start", ["NAME", "not provided"]),
        ("start --all never", ["--all", "cannot be used"]),
    ] {
        let said = run(line).fails(125);
        for word in words {
            assert!(said.contains(word), "no '{word}' in: {said}");
        }
    }
    assert!(
        run("inspect never")
            .fails(125)
            .contains("no tenant 'never'")
    );
}

/// An emulated host of this module's own: it is stopped and killed.
struct Host(std::path::PathBuf);

static HOST: Mutex<()> = Mutex::new(());

impl Host {
    fn new() -> Self {
        let state = fief_tests::state_directory().with_file_name("test-state-keeping");
        std::fs::create_dir_all(&state).unwrap();
        let images = state.join("images");
        if !images.exists() {
            std::os::unix::fs::symlink(fief_tests::state_directory().join("images"), images)
                .unwrap();
        }
        let host = Self(state);
        host.run("host stop").ok();
        let _ = std::fs::remove_dir_all(host.0.join("host"));
        host.run("host start --memory 2G").ok();
        host
    }

    fn run(&self, line: &str) -> Said {
        let mut command = fief(line.split_whitespace());
        command.env("FIEF_STATE_DIR", &self.0);
        waiting::output(command).into()
    }

    fn listed(&self) -> std::collections::BTreeMap<String, String> {
        let all = super::json(&self.run("ps -a --json").ok());
        let entry = |entry: &serde_json::Value| {
            let text = |key: &str| entry[key].as_str().unwrap().to_owned();
            (text("name"), text("status"))
        };
        all.as_array().unwrap().iter().map(entry).collect()
    }

    fn await_running(&self, names: &[&str]) {
        for name in names {
            let said = self.run(&format!("exec {name} -- cat /root/file"));
            assert_eq!(said.ok(), *name);
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.run("host stop");
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

both!(after_the_hosts_end_those_run_again_that_are_to_with_their_data);
fn after_the_hosts_end_those_run_again_that_are_to_with_their_data(backend: Backend) {
    let _alone = HOST.lock().unwrap_or_else(|lock| lock.into_inner());
    let host = Host::new();
    let tenants = [
        ("auto", "--autostart"),
        ("always", "--restart always"),
        ("unless", "--restart unless-stopped"),
        ("halted", "--restart unless-stopped"),
        ("plain", ""),
    ];
    for (name, options) in tenants {
        host.run(&format!(
            "run -d --name {name} {backend} --kernel micro --image busybox --memory 96M {options}"
        ))
        .ok();
        // Not synced: the shut-down of the host is to save it.
        let words = ["exec", name, "--", "sh", "-c", "echo $0 > /root/file", name];
        let mut command = fief(words);
        command.env("FIEF_STATE_DIR", &host.0);
        Said::from(waiting::output(command)).ok();
    }
    host.run(&format!(
        "create fresh {backend} --kernel micro --image busybox --memory 96M --restart always"
    ))
    .ok();
    host.run("stop halted").ok();
    let expected = [
        ("always", "running"),
        ("auto", "running"),
        ("fresh", "created"),
        ("halted", "stopped"),
        ("plain", "stopped"),
        ("unless", "running"),
    ];
    let expected = expected.map(|(name, status)| (name.to_owned(), status.to_owned()));
    for end in ["host stop", "kill QEMU"] {
        if end == "host stop" {
            host.run(end).ok();
        } else {
            // What a power cut leaves.
            for name in ["auto", "always", "unless"] {
                host.run(&format!("exec {name} -- sync")).ok();
            }
            let status = super::json(&host.run("host status --json").ok());
            let keeper = i32::try_from(status["pid"].as_i64().unwrap()).unwrap();
            let keeper = nix::unistd::Pid::from_raw(keeper);
            nix::sys::signal::kill(keeper, nix::sys::signal::Signal::SIGKILL).unwrap();
            until("it is gone", || {
                let status = super::json(&host.run("host status --json").ok());
                (status["running"] == false).then_some(())
            });
        }
        host.run("host start --memory 2G").ok();
        host.await_running(&["auto", "always", "unless"]);
        assert_eq!(host.listed(), expected.clone().into(), "after {end}");
    }
}

#[test]
fn the_unit_for_systemd_is_one() {
    let tenant = Tenant::start("units", "--image debian");
    let unit = checkout().join("packaging/fief.service");
    let unit = unit.to_str().unwrap();
    run(&format!("cp {unit} units:/etc/systemd/system/fief.service")).ok();
    let verify = || tenant.sh("systemd-analyze verify fief.service 2>&1");
    // The control: what is wrong is told.
    assert!(verify().out.contains("/usr/local/bin/fief"));
    let program = binary("fief");
    run(&format!(
        "cp {} units:/usr/local/bin/fief",
        program.display()
    ))
    .ok();
    assert_eq!(verify().ok(), "");
    tenant
        .sh("fief setup --systemd && systemd-analyze verify fief.service && test -s /etc/systemd/system/fief.service")
        .ok();
}
