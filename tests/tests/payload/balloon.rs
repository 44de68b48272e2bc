//! Memory that a guest gives back leaves the monitor, and comes back empty.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Command, Stdio};

use fief_tests::memory::Resident;
use fief_tests::{binary, checkout};

/// MiB of guest RAM, and of what the payload gives back (tests/payloads/src/checks/balloon.rs).
const GUEST_MIB: u64 = 64;
const GIVEN_MIB: u64 = 16;
/// KiB that may come or go beside: page tables of the payload, the serial port, KVM.
const SLACK: u64 = 256;

struct Monitor {
    child: Child,
    console: BufReader<ChildStdout>,
    client: fief_api::Client,
    _directory: tempfile::TempDir,
}

impl Monitor {
    fn start(huge_pages: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let payload =
            checkout().join("tests/payloads/target/x86_64-unknown-linux-gnu/release/fief-payload");
        let config = serde_json::json!({
            "boot-source": { "kernel_image_path": payload, "boot_args": "balloon" },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": GUEST_MIB, "huge_pages": huge_pages },
            "balloon": {
                "amount_mib": 0, "deflate_on_oom": true, "free_page_reporting": true, "stats_on_demand": true,
            },
        });
        fs::write(path("config.json"), config.to_string()).unwrap();
        let mut command = Command::new(binary("fief-vmm"));
        command.arg("--api-sock").arg(path("api.sock"));
        command.arg("--config-file").arg(path("config.json"));
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        Self {
            console: BufReader::new(child.stdout.take().unwrap()),
            client: fief_api::Client::new(path("api.sock")),
            child,
            _directory: directory,
        }
    }

    /// Waits until the payload says that it has come so far; KiB of guest RAM that are in the host's memory then.
    #[track_caller]
    fn resident_when(&mut self, word: &str) -> u64 {
        let mut line = String::new();
        let length = self.console.read_line(&mut line).unwrap();
        assert_ne!(length, 0, "the payload ended before {word}");
        assert_eq!(line.trim_end(), word);
        let smaps = format!("/proc/{}/smaps", self.child.id());
        Resident::read(&fs::read_to_string(smaps).unwrap(), GUEST_MIB).guest
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// KiB are as many less as the payload gave back.
#[track_caller]
fn assert_given(before: u64, after: u64) {
    let given = before.saturating_sub(after);
    assert!(
        given.abs_diff(GIVEN_MIB << 10) <= SLACK,
        "{before} KiB became {after} KiB: {given} KiB were given back"
    );
}

#[track_caller]
fn gives_memory_back_with(huge_pages: &str) {
    let mut monitor = Monitor::start(huge_pages);
    let filled = monitor.resident_when("FILLED");
    // Each question reaches the guest: it counts its answers.
    let answers = || monitor.client.balloon_statistics().unwrap().total_memory;
    let (first, second) = (answers().unwrap(), answers().unwrap());
    assert!(first < second, "{first}, then {second}");
    monitor.client.patch_balloon(GIVEN_MIB).unwrap();
    let inflated = monitor.resident_when("INFLATED");
    assert_given(filled, inflated);
    let statistics = monitor.client.balloon_statistics().unwrap();
    assert_eq!(
        (statistics.target_mib, statistics.actual_mib),
        (GIVEN_MIB, GIVEN_MIB)
    );
    monitor.client.patch_balloon(0).unwrap();
    let refilled = monitor.resident_when("REFILLED");
    monitor.client.patch_balloon(GIVEN_MIB).unwrap();
    let reported = monitor.resident_when("REPORTED");
    assert_given(refilled, reported);
    monitor.client.patch_balloon(0).unwrap();
    let mut rest = String::new();
    monitor.console.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("PASS balloon\n"), "{rest}");
    assert!(monitor.child.wait().unwrap().success());
    drop(monitor);
}

#[test]
fn memory_that_the_guest_gives_back_leaves_the_monitor_and_comes_back_as_zeros() {
    gives_memory_back_with("None");
}

#[test]
fn huge_pages_that_the_guest_gives_back_leave_the_monitor_too() {
    gives_memory_back_with("Transparent");
}
