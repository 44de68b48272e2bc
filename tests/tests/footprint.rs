//! The payload rig: what a running monitor takes of its host's memory beside the guest's own.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use fief_tests::memory::Resident;
use fief_tests::{binary, checkout};

/// KiB of memory outside guest RAM, each page shared with others counted in its part (PSS), with the API, a drive, vsock,
/// entropy and a balloon.
const PSS_LIMIT: u64 = 3 << 10;
const GUEST_MIB: u64 = 64;

struct Monitor(Child);

impl Drop for Monitor {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn a_monitor_takes_at_most_3_mib_beside_its_guests_memory() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    fs::write(path("disk"), vec![0; 1 << 20]).unwrap();
    let payload =
        checkout().join("tests/payloads/target/x86_64-unknown-linux-gnu/release/fief-payload");
    let config = serde_json::json!({
        "boot-source": { "kernel_image_path": payload, "boot_args": "entropy hang" },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": GUEST_MIB },
        "drives": [{
            "drive_id": "disk", "path_on_host": path("disk"), "is_root_device": false, "is_read_only": false,
            "io_engine": "Async",
        }],
        "vsock": { "guest_cid": 42, "uds_path": path("vsock") },
        "entropy": {},
        "balloon": { "amount_mib": 0, "deflate_on_oom": true, "free_page_reporting": true, "stats_on_demand": true },
    });
    fs::write(path("config.json"), config.to_string()).unwrap();
    let mut monitor = Monitor(
        Command::new(binary("fief-vmm"))
            .arg("--api-sock")
            .arg(path("api.sock"))
            .arg("--config-file")
            .arg(path("config.json"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap(),
    );
    let console = BufReader::new(monitor.0.stdout.take().unwrap());
    let mut lines = console.lines().map(Result::unwrap);
    assert!(
        lines.any(|line| line == "PASS entropy"),
        "the payload did not come so far"
    );
    // With a client served, what the API needs has been loaded.
    let client = fief_api::Client::new(path("api.sock"));
    assert!(client.describe_instance().is_ok());
    let maps = fs::read_to_string(format!("/proc/{}/smaps", monitor.0.id())).unwrap();
    let Resident { own, guest } = Resident::read(&maps, GUEST_MIB);
    println!("PSS outside guest RAM: {own} KiB");
    assert!(guest > 0, "{maps}");
    assert!(own <= PSS_LIMIT, "{own} KiB, more than {PSS_LIMIT}: {maps}");
}
