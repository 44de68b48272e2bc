//! The payload rig: what a running monitor takes of its host's memory beside the guest's own.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use fief_tests::memory::Resident;
use fief_tests::{binary, checkout};

/// KiB of memory outside guest RAM, each page shared with others counted in its part (PSS), with the API, a drive, vsock,
/// entropy, a balloon and, where the rig may make a tap, a network interface.
const PSS_LIMIT: u64 = 3 << 10;
const GUEST_MIB: u64 = 64;
/// What the payload's driver expects.
const MAC: &str = "02:00:00:00:00:01";

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
    let root = nix::unistd::geteuid().is_root();
    let (words, interfaces) = if root {
        let interface =
            serde_json::json!({ "iface_id": "net0", "host_dev_name": "tap0", "guest_mac": MAC });
        // The last check waits for frames, with the driver at work.
        ("entropy net", vec![interface])
    } else {
        ("entropy hang", vec![])
    };
    let config = serde_json::json!({
        "boot-source": { "kernel_image_path": payload, "boot_args": words },
        "machine-config": { "vcpu_count": 1, "mem_size_mib": GUEST_MIB },
        "drives": [{
            "drive_id": "disk", "path_on_host": path("disk"), "is_root_device": false, "is_read_only": false,
            "io_engine": "Async",
        }],
        "network-interfaces": interfaces,
        "vsock": { "guest_cid": 42, "uds_path": path("vsock") },
        "entropy": {},
        "balloon": { "amount_mib": 0, "deflate_on_oom": true, "free_page_reporting": true, "stats_on_demand": true },
    });
    fs::write(path("config.json"), config.to_string()).unwrap();
    let mut command = Command::new(binary("fief-vmm"));
    if root {
        command = Command::new("unshare");
        let tap = "ip tuntap add dev tap0 mode tap && exec \"$@\"";
        command
            .args(["--net", "sh", "-c", tap, "sh"])
            .arg(binary("fief-vmm"));
    }
    let mut monitor = Monitor(
        command
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
    let last = if root { "READY" } else { "PASS entropy" };
    assert!(
        lines.any(|line| line == last),
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
