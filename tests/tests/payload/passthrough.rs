//! A function that lives in another process (vfio-user), on the guest's bus.

use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use fief_tests::{binary, waiting};

use super::{Rig, Run};

/// A device process, killed when it is dropped.
struct Device(Child);

impl Device {
    /// Starts one for `rig`, with `options`, and puts it into the machine's configuration.
    fn start(rig: &mut Rig, options: &[&str]) -> Self {
        let socket = Self::socket(rig);
        let mut process = Command::new(binary("fief-test-device"))
            .arg("--socket")
            .arg(&socket)
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
        rig.devices = serde_json::json!([{ "id": "dev0", "socket": socket }]);
        Self(process)
    }

    fn socket(rig: &Rig) -> PathBuf {
        rig.path("device")
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
    const ROUNDS: usize = 3;
    let mut rig = Rig::new();
    rig.on_reboot = "Restart";
    let _device = Device::start(&mut rig, &[]);
    let words = "passthrough passthrough-msix passthrough-msi block";
    let mut child = rig.start(words, "Async");
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut console = String::new();
    while console.matches("END reset\n").count() < ROUNDS {
        let length = out.read_line(&mut console).unwrap();
        assert_ne!(length, 0, "ended early: {console}");
    }
    child.kill().unwrap();
    out.read_to_string(&mut console).unwrap();
    let run = rig.finish(child, console);
    for word in words.split(' ') {
        let passed = run.console.matches(&format!("PASS {word}\n")).count();
        assert!(passed >= ROUNDS, "{word}: {}", run.console);
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
fn a_machine_whose_device_process_is_not_there_is_refused() {
    let mut rig = Rig::new();
    let socket = Device::socket(&rig);
    rig.devices = serde_json::json!([{ "id": "dev0", "socket": socket }]);
    rig.run("entry", "Sync").refused("dev0");
    // One that listens no more.
    drop(Device::start(&mut rig, &[]));
    assert!(socket.exists());
    rig.run("entry", "Sync").refused("dev0");
}
