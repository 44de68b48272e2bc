//! The payload rig: `fief-vmm` on this machine's own /dev/kvm with a bare-metal guest that drives our devices through
//! the independent drivers of the crate `virtio-drivers`.
#![allow(clippy::unwrap_used)]

#[path = "payload/hot_plug.rs"]
mod hot_plug;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;

use fief_tests::{binary, checkout, waiting};
use tempfile::TempDir;

#[path = "payload/balloon.rs"]
mod balloon;
#[path = "payload/network.rs"]
mod network;
#[path = "payload/passthrough.rs"]
mod passthrough;

/// Sectors of the writable disk.
const SECTORS: u64 = 2048;

/// A machine to run the payload in.
struct Rig {
    directory: TempDir,
    vcpus: u8,
    on_reboot: &'static str,
    memory_mib: u64,
    huge_pages: &'static str,
    /// Interfaces, as the API has them.
    interfaces: serde_json::Value,
    /// Devices that are passed through, as the API has them.
    devices: serde_json::Value,
    /// The API is served, at `api`.
    api: bool,
}

/// What came out of a run.
struct Run {
    status: ExitStatus,
    console: String,
    errors: String,
    events: String,
}

impl Run {
    /// The machine was not started, for a reason told in one line that names `word`.
    #[track_caller]
    fn refused(&self, word: &str) {
        let errors = &self.errors;
        assert_eq!(self.status.code(), Some(152), "{errors}");
        assert_eq!(errors.trim().lines().count(), 1, "{errors}");
        assert!(errors.contains(word), "{errors}");
    }

    /// Every check named in `words` passed and none failed.
    #[track_caller]
    fn passed(&self, words: &str) {
        for word in words.split(' ') {
            assert!(
                self.console.contains(&format!("PASS {word}\n")),
                "{word}: {}",
                self.console
            );
        }
        assert!(!self.console.contains("FAIL"), "{}", self.console);
    }
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut disk = fs::File::create(directory.path().join("disk")).unwrap();
        for sector in 0..SECTORS {
            let mut bytes = [0; 512];
            bytes[..8].copy_from_slice(&sector.to_le_bytes());
            disk.write_all(&bytes).unwrap();
        }
        fs::copy(
            directory.path().join("disk"),
            directory.path().join("read_only"),
        )
        .unwrap();
        Self {
            directory,
            vcpus: 1,
            on_reboot: "Exit",
            memory_mib: 64,
            huge_pages: "Transparent",
            interfaces: serde_json::json!([]),
            devices: serde_json::json!([]),
            api: false,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self, words: &str, engine: &str) -> Child {
        self.describe(words, engine);
        self.spawn()
    }

    /// Writes the configuration file.
    fn describe(&self, words: &str, engine: &str) {
        let kernel =
            checkout().join("tests/payloads/target/x86_64-unknown-linux-gnu/release/fief-payload");
        assert!(
            kernel.exists(),
            "the payload is missing: run `make payloads` first"
        );
        let drive = |id: &str, read_only: bool| {
            serde_json::json!({
                "drive_id": id, "path_on_host": self.path(id), "is_root_device": false, "is_read_only": read_only,
                "io_engine": engine, "cache_type": "Writeback",
            })
        };
        let config = serde_json::json!({
            "boot-source": { "kernel_image_path": kernel, "boot_args": words },
            "machine-config": {
                "vcpu_count": self.vcpus, "mem_size_mib": self.memory_mib, "huge_pages": self.huge_pages,
            },
            "drives": [drive("disk", false), drive("read_only", true)],
            "network-interfaces": self.interfaces,
            "device-passthrough": self.devices,
            "vsock": { "guest_cid": 42, "uds_path": self.path("vsock") },
            "entropy": {},
            "lifecycle": { "on_reboot": self.on_reboot },
        });
        fs::write(self.path("config.json"), config.to_string()).unwrap();
    }

    fn spawn(&self) -> Child {
        let mut command = Command::new(binary("fief-vmm"));
        if self.api {
            command.arg("--api-sock").arg(self.path("api"));
        } else {
            command.arg("--no-api");
        }
        command.arg("--config-file").arg(self.path("config.json"));
        command
            .arg("--log-path")
            .arg(self.path("log"))
            .arg("--event-path")
            .arg(self.path("events"));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn finish(&self, mut child: Child, mut console: String) -> Run {
        if let Some(mut out) = child.stdout.take() {
            out.read_to_string(&mut console).unwrap();
        }
        let output = waiting::end_of(child, "fief-vmm with a payload");
        let events = fs::read_to_string(self.path("events")).unwrap_or_default();
        Run {
            status: output.status,
            console,
            errors: String::from_utf8_lossy(&output.stderr).into_owned(),
            events,
        }
    }

    fn run(&self, words: &str, engine: &str) -> Run {
        let child = self.start(words, engine);
        self.finish(child, String::new())
    }
}

#[test]
fn a_kernel_starts_in_the_state_the_boot_protocol_promises() {
    let run = Rig::new().run("entry", "Sync");
    run.passed("entry");
    assert!(run.status.success(), "{}", run.status);
}

#[test]
fn the_pci_bus_is_the_same_through_memory_and_ports() {
    Rig::new().run("pci", "Sync").passed("pci");
}

#[test]
fn entropy_and_its_interrupts_arrive() {
    Rig::new()
        .run("entropy interrupt", "Sync")
        .passed("entropy interrupt");
}

#[test]
fn a_disk_reads_writes_and_refuses_with_the_synchronous_engine() {
    disk_with("Sync");
}

#[test]
fn a_disk_reads_writes_and_refuses_with_io_uring() {
    disk_with("Async");
}

#[track_caller]
fn disk_with(engine: &str) {
    let rig = Rig::new();
    let untouched = fs::read(rig.path("read_only")).unwrap();
    rig.run("block read-only", engine).passed("block read-only");
    let disk = fs::read(rig.path("disk")).unwrap();
    assert_eq!(
        disk.len() as u64,
        SECTORS * 512,
        "the disk changed its size"
    );
    assert!(
        disk[2045 * 512..].iter().all(|&byte| byte == 0xA5),
        "what the guest wrote is not in the file"
    );
    assert_eq!(
        disk[..2045 * 512],
        untouched[..2045 * 512],
        "the guest's writes went elsewhere too"
    );
    assert_eq!(
        fs::read(rig.path("read_only")).unwrap(),
        untouched,
        "the read-only disk changed"
    );
}

#[test]
fn vsock_connects_both_ways_and_echoes() {
    let rig = Rig::new();
    let listener = UnixListener::bind(rig.path("vsock_52")).unwrap();
    let mut child = rig.start("vsock", "Sync");
    let out = child.stdout.take().unwrap();
    let (lines, console) = mpsc::channel();
    let waker = rig.path("vsock_52");
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(out).lines() {
            let _ = lines.send(line.unwrap() + "\n");
        }
        // A machine that ended early must not leave the test waiting for a connection.
        let _ = UnixStream::connect(waker);
    });
    let (mut greeted, _) = listener.accept().unwrap();
    let mut greeting = String::new();
    greeted.read_to_string(&mut greeting).unwrap();
    assert_eq!(greeting, "greetings from the payload");
    let mut said = String::new();
    while !said.contains("LISTENING") {
        said += &console
            .recv()
            .unwrap_or_else(|_| panic!("ended early: {said}"));
    }
    echo(&rig.path("vsock"));
    said.extend(console.iter());
    reader.join().unwrap();
    rig.finish(child, said).passed("vsock");
}

/// Sends 256 KiB through the payload's echo server and compares.
#[track_caller]
fn echo(path: &Path) {
    let mut socket = UnixStream::connect(path).unwrap();
    socket.write_all(b"CONNECT 1234\n").unwrap();
    let mut reader = BufReader::new(socket.try_clone().unwrap());
    let mut answer = String::new();
    reader.read_line(&mut answer).unwrap();
    assert!(answer.starts_with("OK "), "{answer}");
    let sent: Vec<u8> = (0..256 << 10_u32)
        .map(|index: u32| (index.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let expected = sent.clone();
    let mut writer = socket.try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let mut back = vec![0; expected.len()];
    reader.read_exact(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == expected, "other bytes came back");
    socket.shutdown(std::net::Shutdown::Both).unwrap();
}

#[test]
fn every_way_to_end_is_reported_as_what_it_was() {
    for (word, reason) in [
        ("poweroff", "poweroff"),
        ("reset", "reboot"),
        ("panic", "panic"),
        ("triple-fault", "triple-fault"),
    ] {
        let run = Rig::new().run(word, "Sync");
        assert!(
            run.console.contains(&format!("END {word}")),
            "{}",
            run.console
        );
        assert!(
            run.events.contains(&format!("\"{reason}\"")),
            "{word}: {}",
            run.events
        );
        // Firecracker's users expect exit code 0 of a guest that resets.
        if matches!(word, "poweroff" | "reset") {
            assert!(run.status.success(), "{word}: {}", run.status);
        }
    }
}

#[test]
fn a_guest_that_resets_starts_again_in_place_and_finds_devices_that_serve_it() {
    const ROUNDS: usize = 3;
    let mut rig = Rig::new();
    (rig.vcpus, rig.on_reboot) = (2, "Restart");
    let words = "entry pci entropy interrupt block read-only";
    let mut child = rig.start(words, "Async");
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut console = String::new();
    while console.matches("END reset\n").count() < ROUNDS {
        let length = out.read_line(&mut console).unwrap();
        assert_ne!(length, 0, "ended early: {console}");
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").arg(id).status().unwrap().success());
    let run = rig.finish(child, console);
    for word in words.split(' ') {
        let passed = run.console.matches(&format!("PASS {word}\n")).count();
        assert_eq!(passed, ROUNDS, "{word}: {}", run.console);
    }
    assert!(!run.console.contains("FAIL"), "{}", run.console);
    // SIGTERM.
    assert_eq!(run.status.code(), Some(128 + 15));
    let events: Vec<&str> = run.events.lines().collect();
    let (first, rest) = events.split_first().unwrap();
    let (last, between) = rest.split_last().unwrap();
    assert!(
        first.contains("started") && last.contains("stopped"),
        "{events:?}"
    );
    assert!(between.len() >= ROUNDS - 1, "{events:?}");
    assert!(
        between.iter().all(|line| *line == r#"{"event":"reboot"}"#),
        "{events:?}"
    );
}

#[test]
fn other_processors_wait_until_they_are_started() {
    let mut rig = Rig::new();
    rig.vcpus = 4;
    rig.run("entry pci block", "Async")
        .passed("entry pci block");
}

/// The host's pool of 2 MiB pages (Documentation/admin-guide/mm/hugetlbpage.rst).
fn pool(figure: &str) -> u64 {
    let path = format!("/sys/kernel/mm/hugepages/hugepages-2048kB/{figure}");
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

/// More huge pages than before, until it is dropped.
struct MorePages(u64);

impl MorePages {
    const FILE: &str = "/proc/sys/vm/nr_hugepages";

    fn ask_for(more: u64) -> Self {
        let before = pool("nr_hugepages");
        fs::write(Self::FILE, (before + more).to_string()).unwrap();
        assert_eq!(
            pool("nr_hugepages"),
            before + more,
            "this machine has no memory for them"
        );
        Self(before)
    }
}

impl Drop for MorePages {
    fn drop(&mut self) {
        fs::write(Self::FILE, self.0.to_string()).unwrap();
    }
}

#[test]
fn a_guest_runs_on_huge_pages_if_the_host_has_them_and_is_refused_before_it_runs_if_not() {
    let mut rig = Rig::new();
    rig.huge_pages = "2M";
    rig.memory_mib = pool("free_hugepages") * 2 + 64;
    let refused = rig.run("entry", "Sync");
    refused.refused("vm.nr_hugepages");
    assert_eq!(refused.console, "");
    // Only root may ask the host for pages: where the rig runs as another user, the refusal is all there is to see.
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let _pages = MorePages::ask_for(32);
    rig.memory_mib = 64;
    let run = rig.run("entry block", "Async");
    run.passed("entry block");
    assert!(run.status.success(), "{}: {}", run.status, run.errors);
}

#[test]
fn unknown_fields_are_refused_by_the_api_and_in_a_configuration_file() {
    let rig = Rig::new();
    let socket = rig.path("api");
    let child = Command::new(binary("fief-vmm"))
        .arg("--api-sock")
        .arg(&socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let put = |path: &str, body: &str| {
        let connect = || UnixStream::connect(&socket).ok();
        let mut stream = waiting::until("the API socket is there", connect);
        let length = body.len();
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}"
        );
        write!(stream, "{head}\r\n\r\n{body}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let good = r#"{"vcpu_count": 1, "mem_size_mib": 64}"#;
    let bad = good.replace('}', r#", "vcpus": 2}"#);
    let refused = put("/machine-config", &bad);
    assert!(refused.starts_with("HTTP/1.1 400"), "{refused}");
    assert!(
        refused.contains("fault_message") && refused.contains("vcpus"),
        "{refused}"
    );
    assert!(put("/machine-config", good).starts_with("HTTP/1.1 204"));
    end(child);

    let run = rig.run("entry", "Sync");
    run.passed("entry");
    let config = fs::read_to_string(rig.path("config.json")).unwrap();
    let config = config.replacen('{', r#"{"no-such-section": {}, "#, 1);
    fs::write(rig.path("config.json"), config).unwrap();
    let refused = rig.finish(rig.spawn(), String::new());
    refused.refused("no-such-section");
}

/// Ends a monitor that would serve for ever.
fn end(mut monitor: Child) {
    monitor.kill().unwrap();
    monitor.wait().unwrap();
}

#[test]
fn the_binaries_are_as_small_as_promised() {
    for (name, most) in [("fief-vmm", 4 << 20), ("fief-agent", 2 << 20)] {
        let size = fs::metadata(binary(name)).unwrap().len();
        assert!(size <= most, "{name} has {size} bytes, more than {most}");
    }
}
