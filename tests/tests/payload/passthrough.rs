//! A function that lives in another process (vfio-user), on the guest's bus.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use fief_api::{Client, ClientError, DevicePassthrough};
use fief_tests::{binary, waiting};

use super::hot_plug::{Held, read_until};
use super::{Rig, Run};

/// How often a device comes and goes.
const ROUNDS: usize = 20;

/// A device process, killed when it is dropped.
struct Device(Child);

impl Device {
    /// Starts one for `rig`, with `options`, and puts it into the machine's configuration.
    fn start(rig: &mut Rig, options: &[&str]) -> Self {
        let socket = rig.path("device");
        let device = Self::at(&socket, options);
        rig.devices = serde_json::json!([{ "id": "dev0", "socket": socket }]);
        device
    }

    /// Starts one that listens at `socket`.
    fn at(socket: &Path, options: &[&str]) -> Self {
        let mut process = Command::new(binary("fief-test-device"))
            .arg("--socket")
            .arg(socket)
            .args(options)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Self(process)
    }

    /// Waits for its end.
    fn ended(&mut self) -> ExitStatus {
        waiting::until("the device process ends", || self.0.try_wait().unwrap())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `words` with a device.
fn run(words: &str, options: &[&str]) -> (Run, Device) {
    let mut rig = Rig::new();
    let device = Device::start(&mut rig, options);
    let run = rig.run(words, "Async");
    (run, device)
}

#[test]
fn a_device_of_another_process_has_memory_without_exits_and_dma_both_ways() {
    let (run, mut device) = run("passthrough", &[]);
    run.passed("passthrough");
    assert!(run.status.success(), "{}: {}", run.status, run.errors);
    assert!(!run.events.contains("device-gone"), "{}", run.events);
    // It ends with its machine.
    assert!(device.ended().success());
}

#[test]
fn its_interrupts_of_all_kinds_arrive_are_masked_and_are_pending() {
    let words = "passthrough-msix passthrough-msi passthrough-intx passthrough-msix";
    let (run, _device) = run(words, &[]);
    run.passed(words);
}

#[test]
fn a_table_in_two_pages_is_kept_from_the_guest_and_memory_around_it_is_not() {
    let words = "passthrough passthrough-msix";
    let (run, _device) = run(words, &["--table-offset", "12256"]);
    run.passed(words);
}

#[test]
fn the_guest_resets_it_and_uses_it_again() {
    let (run, _device) = run("passthrough-msix passthrough-reset passthrough", &[]);
    run.passed("passthrough-msix passthrough-reset passthrough");
}

#[test]
fn it_is_as_at_first_after_the_guest_has_reset_the_machine() {
    const RESETS: usize = 3;
    let mut rig = Rig::new();
    rig.on_reboot = "Restart";
    let _device = Device::start(&mut rig, &[]);
    let words = "passthrough passthrough-msix passthrough-msi block";
    let mut child = rig.start(words, "Async");
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut console = String::new();
    while console.matches("END reset\n").count() < RESETS {
        let length = out.read_line(&mut console).unwrap();
        assert_ne!(length, 0, "ended early: {console}");
    }
    child.kill().unwrap();
    out.read_to_string(&mut console).unwrap();
    let run = rig.finish(child, console);
    for word in words.split(' ') {
        let passed = run.console.matches(&format!("PASS {word}\n")).count();
        assert!(passed >= RESETS, "{word}: {}", run.console);
    }
    assert!(!run.console.contains("FAIL"), "{}", run.console);
}

/// The device is lost by `word` in the middle of an operation: the machine goes on with its other devices.
#[track_caller]
fn lost_by(word: &str) -> Device {
    let (run, device) = run(&format!("{word} entropy block pci"), &[]);
    run.passed(&format!("{word} entropy block pci"));
    assert!(run.status.success(), "{}: {}", run.status, run.errors);
    let told = run.events.matches("\"device-gone\"").count();
    assert_eq!(told, 1, "{}", run.events);
    assert!(run.events.contains("\"dev0\""), "{}", run.events);
    device
}

#[test]
fn a_device_process_that_dies_in_an_operation_takes_nothing_with_it() {
    let mut device = lost_by("passthrough-dies");
    assert_eq!(device.ended().code(), Some(9));
}

#[test]
fn a_device_process_that_hangs_in_an_operation_is_given_up() {
    let mut device = lost_by("passthrough-hangs");
    assert!(device.0.try_wait().unwrap().is_none(), "it hangs still");
}

#[test]
fn memory_that_a_guest_has_cannot_shrink() {
    let (run, _device) = run("passthrough-shrinks block", &[]);
    run.passed("passthrough-shrinks block");
    assert!(run.console.contains("SHRUNK 6: 3\nSHRUNK 5: 3\n"));
}

#[test]
fn a_machine_whose_memory_does_shrink_can_be_ended() {
    let mut rig = Rig::new();
    let _device = Device::start(&mut rig, &["--unsealable"]);
    let mut child = rig.start("passthrough-shrinks", "Async");
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut console = String::new();
    read_until(&mut out, &mut console, "SHRUNK 5: 1\n");
    // Its one processor is at the access now, or soon, and never gets further.
    let id = child.id().to_string();
    assert!(Command::new("kill").arg(id).status().unwrap().success());
    let run = rig.finish(child, console + &rest(&mut out));
    assert_eq!(run.status.code(), Some(128 + 15), "{}", run.errors);
    assert!(!run.console.contains("PASS"), "{}", run.console);
}

#[test]
fn events_that_a_device_process_makes_ones_to_wait_at_hold_nobody_up() {
    let (run, _device) = run("passthrough-waits block", &[]);
    run.passed("passthrough-waits block");
}

#[test]
fn a_machine_whose_device_process_is_not_there_is_refused() {
    let mut rig = Rig::new();
    let socket = rig.path("device");
    rig.devices = serde_json::json!([{ "id": "dev0", "socket": socket }]);
    rig.run("entry", "Sync").refused("dev0");
    // One that listens and never answers.
    let listener = UnixListener::bind(&socket).unwrap();
    let run = rig.run("entry", "Sync");
    run.refused("dev0");
    assert!(run.errors.contains("did not answer"), "{}", run.errors);
    drop(listener);
    std::fs::remove_file(&socket).unwrap();
    // One that listens no more.
    drop(Device::start(&mut rig, &[]));
    assert!(socket.exists());
    rig.run("entry", "Sync").refused("dev0");
}

#[test]
fn devices_come_to_a_running_machine_and_go_and_leave_nothing_behind() {
    let mut rig = Rig::new();
    rig.api = true;
    let _first = Device::start(&mut rig, &[]);
    rig.describe("passthrough-plugged passthrough block", "Async");
    let mut child = rig.spawn();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut console = String::new();
    let client = Client::new(rig.path("api"));
    waiting::until("the API answers", || client.describe_instance().ok());
    let mut held = Vec::new();
    for round in 0..ROUNDS {
        let (id, socket) = (format!("d{round}"), rig.path(&format!("plugged{round}")));
        let mut device = Device::at(&socket, &[]);
        let description = DevicePassthrough::user(&id, socket.to_str().unwrap());
        client.put_device(&description).unwrap();
        let again = client.put_device(&description);
        assert!(matches!(
            again,
            Err(ClientError::Refused { status: 400, .. })
        ));
        read_until(&mut out, &mut console, &format!("PLUGGED {round}\n"));
        client.delete_device(&id).unwrap();
        read_until(&mut out, &mut console, &format!("GONE {round}\n"));
        // The monitor has hung up, so it ends.
        assert!(device.ended().success());
        held.push(Held::by(child.id()));
    }
    // One whose process dies while it is there leaves as the others do.
    let socket = rig.path("dying");
    let device = Device::at(&socket, &[]);
    let description = DevicePassthrough::user("dying", socket.to_str().unwrap());
    client.put_device(&description).unwrap();
    read_until(&mut out, &mut console, &format!("PLUGGED {ROUNDS}\n"));
    drop(device);
    client.delete_device("dying").unwrap();
    read_until(&mut out, &mut console, &format!("GONE {ROUNDS}\n"));
    client.press_power_button().unwrap();
    let run = rig.finish(child, console + &rest(&mut out));
    run.passed("passthrough-plugged passthrough block");
    let released = run.events.matches("\"device-released\"").count();
    assert_eq!(released, ROUNDS + 1, "{}", run.events);
    // At a given moment a connection of ours may still be open there.
    let halves = held.split_at(ROUNDS / 2);
    assert_eq!(halves.0.iter().min(), halves.1.iter().min());
}

/// What is left to read.
fn rest(out: &mut impl Read) -> String {
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    rest
}

#[test]
fn a_machine_without_shared_memory_is_not_given_a_device_while_it_runs() {
    let mut rig = Rig::new();
    rig.api = true;
    rig.describe("hang", "Async");
    let child = rig.spawn();
    let client = Client::new(rig.path("api"));
    waiting::until("the API answers", || client.describe_instance().ok());
    let socket = rig.path("device");
    let _device = Device::at(&socket, &[]);
    let description = DevicePassthrough::user("late", socket.to_str().unwrap());
    let refused = client.put_device(&description).unwrap_err().to_string();
    assert!(refused.contains("before the start"), "{refused}");
    super::end(child);
}

/// How often threads of a process were woken, by name; processors of the guest left out.
fn wakes(pid: u32) -> Vec<(String, u64)> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let mut wakes: Vec<_> = threads
        .map(|thread| {
            let path = thread.unwrap().path();
            let status = std::fs::read_to_string(path.join("status")).unwrap();
            let field = |name: &str| {
                let line = status.lines().find(|line| line.starts_with(name)).unwrap();
                line.split_whitespace().nth(1).unwrap().to_owned()
            };
            let count = field("voluntary_ctxt_switches:").parse().unwrap();
            (field("Name:"), count)
        })
        .filter(|(name, _): &(String, u64)| !name.starts_with("vcpu"))
        .collect();
    wakes.sort();
    wakes
}

#[test]
fn no_thread_of_the_monitor_is_woken_by_an_interrupt() {
    // `interrupts` come between two looks at the threads; the guest then does nothing, and is ended.
    let count = |words: &str, interrupts: &str| {
        let mut rig = Rig::new();
        let _device = Device::start(&mut rig, &[]);
        let mut child = rig.start(&format!("{words} hang"), "Async");
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while line != format!("PASS {interrupts}\n") {
            line.clear();
            assert_ne!(out.read_line(&mut line).unwrap(), 0, "{words} ended early");
        }
        let wakes = wakes(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        wakes
    };
    let once = count("passthrough-msix", "passthrough-msix");
    // 400 more.
    let many = count("passthrough-msix passthrough-many", "passthrough-many");
    println!("woken: {once:?}, with 400 interrupts more {many:?}");
    assert!(once.len() > 1, "{once:?}");
    assert_eq!(once.len(), many.len());
    for ((name, few), (_, more)) in once.iter().zip(&many) {
        assert!(*more < few + 40, "{name}: {few}, then {more}");
    }
}

#[test]
fn a_device_node_that_is_passed_as_a_descriptor_is_not_opened() {
    // Descriptor 9 of the monitor is `node`, whatever its path is said to be.
    let run = |node: &str, said: &str| {
        let rig = Rig::new();
        rig.describe("entry", "Sync");
        let mut command = Command::new("sh");
        command.args(["-c", "exec 9<>\"$0\" && exec \"$@\"", node]);
        command.arg(binary("fief-vmm"));
        command.args(["--no-api", "--device-fd", said, "--config-file"]);
        let output = command.arg(rig.path("config.json")).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (
            output.status.code(),
            text(&output.stdout),
            text(&output.stderr),
        )
    };
    let (code, out, err) = run("/dev/kvm", "/dev/kvm=9");
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("PASS entry"), "{out}");
    // Something else in its place: the monitor takes that, and says what it is not.
    let (code, _, err) = run("/dev/null", "/dev/kvm=9");
    assert_eq!(code, Some(152), "{err}");
    assert!(err.contains("/dev/kvm is not KVM"), "{err}");
    // Other nodes are opened as ever.
    let (code, ..) = run("/dev/null", "/dev/vfio/vfio=9");
    assert_eq!(code, Some(0));
    for wrong in ["/dev/kvm=8", "/dev/kvm=1", "kvm=9", "/dev/kvm"] {
        let (code, _, err) = run("/dev/kvm", wrong);
        assert!(matches!(code, Some(1 | 153)), "{wrong}: {code:?} {err}");
        assert!(
            err.contains("descriptor") || err.contains("--device-fd"),
            "{wrong}: {err}"
        );
    }
}
