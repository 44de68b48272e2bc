//! Real shims and real processes around a monitor without a machine: how tenants end, and what is left when something is
//! killed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use fief::backend::{BootFiles, Files};
use fief::shim::{Attached, Order, StartError, older, start};
use fief::spec::{
    Init, Isolation, KernelChoice, KernelFormat, Limits, LogBounds, RestartPolicy, Spec,
    TenantName, VERSION,
};
use fief::store::{
    Exit, Locked, Phase, Reason, State, Status, StoppedBy, Store, StoreError, Tenant,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// Longer than anything here takes on the slowest machine.
const LONG: Duration = Duration::from_secs(120);

fn fake_monitor() -> PathBuf {
    // target/<triple>/<profile>/deps/shim-… → target/<triple>/<profile>/examples/fake-monitor
    let profile = std::env::current_exe()
        .unwrap()
        .parent()
        .unwrap()
        .parent()
        .unwrap()
        .to_owned();
    let path = profile.join("examples/fake-monitor");
    assert!(
        path.exists(),
        "{} is missing: `cargo test -p fief` builds it",
        path.display()
    );
    path
}

struct Rig {
    directory: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn store(&self) -> Store {
        Store::open(&self.directory.path().join("state")).unwrap()
    }

    fn draft(&self, remove: bool, script: &str) -> (Locked, Order) {
        let name: TenantName = "a".parse().unwrap();
        let spec = Spec {
            version: VERSION,
            image: "none".to_owned(),
            artifact: None,
            kernel: KernelChoice::Named("debian".to_owned()),
            kernel_format: KernelFormat::Elf,
            cpus: 1,
            memory: "64M".parse().unwrap(),
            disk: "16M".parse().unwrap(),
            disks: Vec::new(),
            init: Init::Agent,
            isolation: Isolation::Vm,
            runtime: None,
            allow_unenforced: false,
            gpus: Vec::new(),
            devices: Vec::new(),
            pin_memory: false,
            hostname: "a".to_owned(),
            ssh_keys: Vec::new(),
            keyless_account: false,
            user: None,
            remove,
            net: fief::spec::Net::None,
            publish: vec![],
            dns: vec![],
            env: Vec::new(),
            restart: RestartPolicy::No,
            autostart: false,
            limits: Limits::default(),
            log: LogBounds::default(),
        };
        let kernel = self.directory.path().join("kernel");
        fs::write(&kernel, script).unwrap();
        let locked = self.store().draft(&name, &spec).unwrap().publish().unwrap();
        let order = Order {
            name,
            directory: locked.tenant.directory().to_str().unwrap().to_owned(),
            files: Files::Vm(BootFiles {
                monitor: fake_monitor(),
                kernel,
                initramfs: "initramfs".into(),
                image: "image".into(),
                image_format: "erofs".to_owned(),
                modules: None,
            }),
            attached: false,
            command: None,
            quiet: None,
        };
        (locked, order)
    }

    fn start(&self, remove: bool, script: &str) -> (Tenant, Attached) {
        let (locked, order) = self.draft(remove, script);
        self.start_drafted(locked, &order)
    }

    fn start_drafted(&self, locked: Locked, order: &Order) -> (Tenant, Attached) {
        start(Path::new(env!("CARGO_BIN_EXE_fief")), locked, order)
            .map_err(|(_, error)| error)
            .unwrap()
    }

    fn start_fails(&self, script: &str) -> (Locked, StartError) {
        let (locked, order) = self.draft(false, script);
        start(Path::new(env!("CARGO_BIN_EXE_fief")), locked, &order).unwrap_err()
    }

    /// Starts it and waits for its end.
    fn run(&self, script: &str) -> Exit {
        let (tenant, _) = self.start(false, script);
        assert!(self.store().wait_idle(&tenant, LONG).unwrap());
        assert_eq!(tenant.status().0, Status::Stopped);
        assert!(!tenant.run_directory().exists());
        tenant.exit().unwrap().unwrap()
    }

    fn state(&self) -> State {
        self.store().running(&"a".parse().unwrap()).unwrap().1
    }
}

/// Sends a signal to a process and waits until it is gone.
fn end(pid: i32) {
    let pid = Pid::from_raw(pid).unwrap();
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    await_end(&process);
}

fn await_end(process: &impl AsFd) {
    let mut fds = [PollFd::new(process.as_fd(), PollFlags::POLLIN)];
    assert_eq!(
        poll(&mut fds, PollTimeout::try_from(LONG).unwrap()),
        Ok(1),
        "a process did not end"
    );
}

/// Looks until something is so that nothing announces.
fn until(mut look: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + LONG;
    while !look() {
        assert!(std::time::Instant::now() < deadline, "it never came");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_tenant_runs_until_it_powers_off_and_its_console_is_kept() {
    let rig = Rig::new();
    assert_eq!(rig.run("poweroff").reason, Reason::Poweroff);
    let console = fs::read_to_string(rig.store().tenants().unwrap()[0].console()).unwrap();
    assert_eq!(console, "hello from the console\n");
}

#[test]
fn panics_and_triple_faults_are_told_apart() {
    assert_eq!(Rig::new().run("panic").reason, Reason::Panic);
    assert_eq!(Rig::new().run("triple-fault").reason, Reason::TripleFault);
}

#[test]
fn reboots_in_place_are_counted_while_the_tenant_runs_on() {
    let rig = Rig::new();
    let (_tenant, _attached) = rig.start(false, "reboot");
    while rig.state().reboots < 2 {
        std::thread::yield_now();
    }
    let state = rig.state();
    assert_eq!((state.phase, state.reboots), (Phase::Running, 2));
    end(state.monitor.unwrap().pid);
}

#[test]
fn a_console_that_floods_cannot_fill_the_disk_and_keeps_its_end() {
    let rig = Rig::new();
    rig.run("flood");
    let path = rig.store().tenants().unwrap()[0].console();
    let newest = fs::read(&path).unwrap();
    assert!(newest.ends_with(b"the last line\n"));
    assert!(newest.len() <= 1 << 20);
    assert_eq!(fs::metadata(older(&path, 1)).unwrap().len(), 1 << 20);
}

#[test]
fn a_policy_starts_a_tenant_again_as_often_as_it_says() {
    let rig = Rig::new();
    let (locked, order) = rig.draft(false, "panic");
    let tenant = locked.tenant.clone();
    let changed = tenant.change_spec(|spec| {
        spec.restart = RestartPolicy::OnFailure(Some(2));
        Ok::<(), StoreError>(())
    });
    changed.unwrap();
    rig.start_drafted(locked, &order);
    assert!(rig.store().wait_idle(&tenant, LONG).unwrap());
    let exit = tenant.exit().unwrap().unwrap();
    assert_eq!((exit.reason, exit.restarts), (Reason::Panic, 2));
    let console = fs::read_to_string(tenant.console()).unwrap();
    assert_eq!(console.matches("hello from the console").count(), 3);
}

#[test]
fn a_tenant_that_somebody_stopped_is_not_started_again() {
    let rig = Rig::new();
    let (locked, order) = rig.draft(false, "sleep");
    let tenant = locked.tenant.clone();
    let changed = tenant.change_spec(|spec| {
        spec.restart = RestartPolicy::Always;
        Ok::<(), StoreError>(())
    });
    changed.unwrap();
    rig.start_drafted(locked, &order);
    tenant.mark_stopped(StoppedBy::User).unwrap();
    end(rig.state().monitor.unwrap().pid);
    assert!(rig.store().wait_idle(&tenant, LONG).unwrap());
    let exit = tenant.exit().unwrap().unwrap();
    assert_eq!((exit.reason, exit.restarts), (Reason::Killed, 0));
    // Without that it is: the control.
    let locked = rig.store().lock(&tenant.name).unwrap();
    locked.forget_stop().unwrap();
    rig.start_drafted(locked, &order);
    end(rig.state().monitor.unwrap().pid);
    until(|| rig.state().restarts == 1 && rig.state().phase == Phase::Running);
    let shim = rig.state().shim_pid;
    kill_process(Pid::from_raw(shim).unwrap(), Signal::TERM).unwrap();
    assert!(rig.store().wait_idle(&tenant, LONG).unwrap());
    assert_eq!(tenant.exit().unwrap().unwrap().restarts, 1);
}

#[test]
fn a_monitor_that_refuses_is_quoted_and_nothing_runs() {
    let rig = Rig::new();
    let (locked, error) = rig.start_fails("refuse");
    assert!(
        error
            .to_string()
            .contains("the kernel is none; give another"),
        "{error}"
    );
    assert_eq!(locked.tenant.state().unwrap(), None);
    assert!(!locked.tenant.run_directory().exists());
    // The lock came back: the tenant can be removed as if it never was.
    locked.remove().unwrap();
    assert!(rig.store().tenants().unwrap().is_empty());
}

#[test]
fn a_monitor_that_dies_leaves_its_last_words() {
    let rig = Rig::new();
    let (locked, error) = rig.start_fails("die");
    assert!(
        error
            .to_string()
            .contains("cannot open /dev/kvm: no such device"),
        "{error}"
    );
    assert_eq!(
        locked.tenant.exit().unwrap().unwrap().reason,
        Reason::Failed
    );
}

#[test]
fn a_monitor_that_is_missing_is_named() {
    let rig = Rig::new();
    let (locked, mut order) = rig.draft(false, "");
    let Files::Vm(files) = &mut order.files else {
        unreachable!("an order of this test is for a monitor");
    };
    files.monitor = "/no/such/fief-vmm".into();
    let (_, error) = start(Path::new(env!("CARGO_BIN_EXE_fief")), locked, &order).unwrap_err();
    assert!(error.to_string().contains("/no/such/fief-vmm"), "{error}");
}

#[test]
fn a_running_tenant_is_nobody_elses() {
    let rig = Rig::new();
    let (tenant, _) = rig.start(false, "");
    let state = rig.state();
    assert_eq!(state.phase, Phase::Running);
    assert!(matches!(
        rig.store().lock(&tenant.name),
        Err(StoreError::Running(_))
    ));
    assert!(!rig.store().wait_idle(&tenant, Duration::ZERO).unwrap());
    end(state.monitor.unwrap().pid);
    assert!(rig.store().wait_idle(&tenant, LONG).unwrap());
    rig.store().lock(&tenant.name).unwrap();
}

#[test]
fn a_killed_monitor_is_reported() {
    let rig = Rig::new();
    let (tenant, _) = rig.start(false, "");
    end(rig.state().monitor.unwrap().pid);
    assert!(rig.store().wait_idle(&tenant, LONG).unwrap());
    let exit = tenant.exit().unwrap().unwrap();
    assert_eq!((exit.reason, exit.code), (Reason::Killed, 137));
}

#[test]
fn fief_wait_returns_when_the_tenant_has_ended_and_prints_its_code() {
    let rig = Rig::new();
    rig.start(false, "");
    let fief = |words: &[&str]| {
        let mut fief = Command::new(env!("CARGO_BIN_EXE_fief"));
        fief.args(words).stdout(Stdio::piped());
        fief.env("FIEF_STATE_DIR", rig.directory.path().join("state"));
        fief.env("FIEF_HOST", "native");
        fief.spawn().unwrap()
    };
    let waiting = fief(&["wait", "a", "a"]);
    assert!(fief(&["kill", "a"]).wait().unwrap().success());
    let said = waiting.wait_with_output().unwrap();
    assert!(said.status.success());
    assert_eq!(said.stdout, b"137\n137\n");
    // One that has ended already is not waited for.
    assert_eq!(
        fief(&["wait", "a"]).wait_with_output().unwrap().stdout,
        b"137\n"
    );
}

#[test]
fn a_killed_shim_takes_its_monitor_along_and_the_next_fief_cleans_up() {
    let rig = Rig::new();
    let (tenant, _) = rig.start(false, "");
    let state = rig.state();
    let monitor = pidfd_open(
        Pid::from_raw(state.monitor.unwrap().pid).unwrap(),
        PidfdFlags::empty(),
    )
    .unwrap();
    end(state.shim_pid);
    await_end(&monitor);
    assert!(matches!(
        rig.store().running(&tenant.name),
        Err(StoreError::NotRunning(_))
    ));
    assert_eq!(tenant.exit().unwrap().unwrap().reason, Reason::Killed);
    assert!(!tenant.run_directory().exists());
}

#[test]
fn a_monitor_that_outlives_its_shim_is_ended_before_anything_else_happens() {
    let rig = Rig::new();
    let (tenant, _) = rig.start(false, "stubborn");
    let state = rig.state();
    let monitor = pidfd_open(
        Pid::from_raw(state.monitor.unwrap().pid).unwrap(),
        PidfdFlags::empty(),
    )
    .unwrap();
    end(state.shim_pid);
    // Whoever wants the tenant now must not get it while the old monitor has its disk.
    rig.store().lock(&tenant.name).unwrap();
    await_end(&monitor);
}

#[test]
fn a_tenant_to_be_removed_is_gone_when_it_ends_however_it_ends() {
    for script in ["poweroff", "panic"] {
        let rig = Rig::new();
        let (tenant, _) = rig.start(true, script);
        assert!(rig.store().wait_idle(&tenant, LONG).unwrap());
        assert!(rig.store().tenants().unwrap().is_empty(), "{script}");
    }
    let rig = Rig::new();
    rig.start(true, "");
    end(rig.state().shim_pid);
    assert!(rig.store().tenants().unwrap().is_empty(), "a killed shim");
}

#[test]
fn a_tenant_ends_with_the_fief_it_is_attached_to() {
    let rig = Rig::new();
    let (locked, order) = rig.draft(true, "");
    let order = Order {
        attached: true,
        ..order
    };
    let fief = Path::new(env!("CARGO_BIN_EXE_fief"));
    let (tenant, attached) = start(fief, locked, &order)
        .map_err(|(_, error)| error)
        .unwrap();
    // What the death of the attached fief does to its socket.
    drop(attached);
    assert!(rig.store().wait_idle(&tenant, LONG).unwrap());
    assert!(rig.store().tenants().unwrap().is_empty());
}

#[test]
fn an_attached_fief_hears_how_the_tenant_ended() {
    let rig = Rig::new();
    let (locked, order) = rig.draft(true, "");
    let order = Order {
        attached: true,
        ..order
    };
    let fief = Path::new(env!("CARGO_BIN_EXE_fief"));
    let (_, attached) = start(fief, locked, &order)
        .map_err(|(_, error)| error)
        .unwrap();
    attached.kill();
    assert_eq!(attached.wait().unwrap().reason, Reason::Killed);
    assert!(
        rig.store().tenants().unwrap().is_empty(),
        "when the end is heard, all is cleaned up"
    );
}

#[test]
fn a_state_directory_with_a_long_path_works() {
    let mut rig = Rig::new();
    let long = rig.directory.path().join("d".repeat(120));
    fs::create_dir(&long).unwrap();
    let inner = tempfile::tempdir_in(long).unwrap();
    let outer = std::mem::replace(&mut rig.directory, inner);
    assert_eq!(rig.run("poweroff").reason, Reason::Poweroff);
    drop(rig);
    drop(outer);
}

#[test]
fn the_monitors_api_is_a_request_or_a_socket_of_the_users() {
    let rig = Rig::new();
    let (_tenant, _attached) = rig.start(false, "run on");
    let api = |words: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fief"));
        command.arg("api").args(words);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
            .env("FIEF_STATE_DIR", rig.directory.path().join("state"))
            .env("FIEF_HOST", "native");
        command
    };
    let asked = api(&["a", "get", "/"]).output().unwrap();
    assert!(asked.status.success());
    let answer: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap();
    assert_eq!(answer["app_name"], "fake");
    let done = api(&["a", "PUT", "/vm", "{}"]).output().unwrap();
    assert!(done.status.success() && done.stdout.is_empty());

    let path = rig.directory.path().join("user.sock");
    let mut relay = api(&["a", "--socket", path.to_str().unwrap()])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(relay.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), path.to_str().unwrap());
    let client = fief_api::Client::new(&path);
    for _ in 0..20 {
        assert_eq!(client.describe_instance().unwrap().app_name, "fake");
    }
    // A client that is silent, and one that goes, hold nobody up.
    let silent = UnixStream::connect(&path).unwrap();
    drop(UnixStream::connect(&path).unwrap());
    drop(silent);
    client.describe_instance().unwrap();
    let pid = Pid::from_raw(relay.id().cast_signed()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
    assert_eq!(relay.wait().unwrap().code(), Some(130));
    assert!(!path.exists());
    end(rig.state().monitor.unwrap().pid);
}

#[test]
fn a_monitor_that_refuses_is_told_by_its_answer_and_the_exit_code() {
    let rig = Rig::new();
    let (_tenant, _attached) = rig.start(false, "run on");
    let mut command = Command::new(env!("CARGO_BIN_EXE_fief"));
    command
        .args(["api", "a", "GET", "/refused"])
        .env("FIEF_STATE_DIR", rig.directory.path().join("state"))
        .env("FIEF_HOST", "native");
    let refused = command.output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&refused.stdout),
        "{\"fault_message\":\"no such path\"}\n"
    );
    end(rig.state().monitor.unwrap().pid);
}
