//! `fief-vmm` on this machine's own /dev/kvm with the bare-metal guest of `tests/payloads`, which drives the devices with
//! the drivers of `virtio-drivers`; needs `make build payloads`. Prints a figure a line.
//!
//! A figure is taken between two lines of the guest, which it prints before and after its work. The guest polls for
//! completions, so its vCPU never rests; the host's CPU time is that of the monitor's other threads, which serve the devices.
#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Where the build puts binaries, below the checkout and below the payload's folder.
const RELEASE: &str = "target/x86_64-unknown-linux-gnu/release";

/// NAME=PATH of another monitor, which is measured too.
const PEER: &str = "FIEF_BENCH_PEER";

/// Its name, and its program.
type Monitor = (String, PathBuf);

/// Sectors of the payload's disk.
const SECTORS: u64 = 2048;

/// Bytes of each of the payload's three measurements of vsock.
const STREAM: usize = 64 << 20;

fn main() -> ExitCode {
    if File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        eprintln!("payload benchmarks left out: this user cannot open /dev/kvm");
        return ExitCode::SUCCESS;
    }
    let own = ("fief".to_owned(), checkout().join(RELEASE).join("fief-vmm"));
    let peer = std::env::var(PEER).ok();
    let peer = peer.map(|peer| {
        peer.split_once('=')
            .map(|(name, path)| (name.to_owned(), path.into()))
    });
    if peer == Some(None) {
        eprintln!(
            "{PEER} is to be NAME=PATH of a monitor that takes Firecracker's configuration file"
        );
        return ExitCode::FAILURE;
    }
    let monitors: Vec<_> = [Some(own), peer.flatten()].into_iter().flatten().collect();
    let programs = monitors.iter().map(|(_, program)| program);
    for binary in programs.chain([&payload()]) {
        if !binary.exists() {
            eprintln!(
                "{} is missing: run `make build payloads` first",
                binary.display()
            );
            return ExitCode::FAILURE;
        }
    }
    let is_root = nix::unistd::geteuid().is_root();
    if is_root {
        tap();
    } else {
        eprintln!("net left out: only root may make a tap device");
    }
    for monitor in &monitors {
        measure(monitor, is_root);
    }
    ExitCode::SUCCESS
}

/// All groups with one monitor.
fn measure(monitor: &Monitor, with_net: bool) {
    for (engine, group) in [("Async", "block, io_uring"), ("Sync", "block, sync")] {
        Machine::new("bench-block", engine).run(monitor, group);
    }
    let sockets = Machine::new("bench-vsock", "Sync");
    let listener = UnixListener::bind(sockets.path("vsock_52")).unwrap();
    // It ends with this process, should the machine never connect.
    std::thread::spawn(move || serve(listener.accept().unwrap().0));
    sockets.run(monitor, "vsock");
    if with_net {
        let mut interface = Machine::new("bench-net", "Sync");
        interface.config["network-interfaces"] = json!([
            { "iface_id": "net0", "host_dev_name": "tap0", "guest_mac": "02:00:00:00:00:01" }
        ]);
        interface.run(monitor, "net");
    }
}

fn checkout() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

fn payload() -> PathBuf {
    checkout()
        .join("tests/payloads")
        .join(RELEASE)
        .join("fief-payload")
}

/// The host program of the guest's vsock connection: reads what two measurements send, then sends itself once told to.
fn serve(mut guest: UnixStream) {
    let mut buffer = vec![0; 1 << 16];
    let mut left = 2 * STREAM;
    while left > 0 {
        let most = buffer.len().min(left);
        let count = guest.read(&mut buffer[..most]).unwrap();
        assert!(count > 0, "the guest ended its connection early");
        assert!(
            buffer[..count].iter().all(|&byte| byte == 0x5A),
            "other bytes come"
        );
        left -= count;
    }
    guest.read_exact(&mut buffer[..4]).unwrap();
    assert_eq!(&buffer[..4], b"send");
    for _ in 0..STREAM >> 16 {
        guest.write_all(&[0xA5; 1 << 16]).unwrap();
    }
}

/// A network namespace for this thread and what it starts, with `tap0` in it.
fn tap() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    for words in ["tuntap add dev tap0 mode tap", "link set dev tap0 up"] {
        let status = Command::new("ip").args(words.split(' ')).status();
        assert!(status.expect("ip is installed").success(), "ip {words}");
    }
}

/// A machine whose payload does one thing.
struct Machine {
    directory: TempDir,
    config: Value,
}

impl Machine {
    fn new(word: &str, engine: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let sector = |number: u64| [&number.to_le_bytes()[..], &[0; 504]].concat();
        let disk: Vec<u8> = (0..SECTORS).flat_map(sector).collect();
        fs::write(path("disk"), disk).unwrap();
        let config = json!({
            "boot-source": { "kernel_image_path": payload(), "boot_args": word },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 64 },
            "drives": [{
                "drive_id": "disk", "path_on_host": path("disk"), "is_root_device": false,
                "is_read_only": false, "io_engine": engine,
            }],
            "vsock": { "guest_cid": 42, "uds_path": path("vsock") },
        });
        Self { directory, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs it to its end and prints what it measured.
    fn run(&self, (name, program): &Monitor, group: &str) {
        let group = &format!("{name}: {group}");
        fs::write(self.path("config.json"), self.config.to_string()).unwrap();
        let mut monitor = Command::new(program)
            .arg("--no-api")
            .arg("--config-file")
            .arg(self.path("config.json"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(monitor.stdout.take().unwrap()).lines();
        let mut begun = None;
        // Nanoseconds of one tick of the guest's counter.
        let mut tick = 0.0;
        let mut passed = false;
        for line in lines {
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["BEGIN", _] => begun = Some((Instant::now(), workers(&monitor))),
                ["DONE", name, _, operations, _, bytes, _, ticks] => {
                    let (start, before) = begun.take().expect("BEGIN comes before DONE");
                    let took = start.elapsed();
                    tick = took.as_secs_f64() * 1e9 / number(ticks);
                    let cpu = workers(&monitor).saturating_sub(before);
                    tell(group, name, number(operations), number(bytes), took, cpu);
                }
                ["TICKS", name, _, median, _, late] => {
                    let microseconds = |ticks| number(ticks) * tick / 1000.0;
                    let (median, late) = (microseconds(median), microseconds(late));
                    println!("{group}/{name}: median {median:.1} µs, 99th percentile {late:.1} µs");
                }
                ["PASS", _] => passed = true,
                _ => {}
            }
            assert!(!line.starts_with("FAIL"), "{line}");
        }
        assert!(
            monitor.wait().unwrap().success() && passed,
            "{group} did not end well"
        );
    }
}

fn number(word: &str) -> f64 {
    word.parse().expect("the payload prints numbers")
}

fn tell(group: &str, name: &str, operations: f64, bytes: f64, took: Duration, cpu: Duration) {
    let seconds = took.as_secs_f64();
    println!(
        "{group}/{name}: {:.0}/s, {:.1} MB/s, host CPU {:.2} µs each",
        operations / seconds,
        bytes / seconds / 1e6,
        cpu.as_secs_f64() * 1e6 / operations
    );
}

/// CPU time so far of the monitor's threads that are no vCPUs (proc_pid_schedstat: nanoseconds on a CPU come first).
fn workers(monitor: &Child) -> Duration {
    let threads = fs::read_dir(format!("/proc/{}/task", monitor.id())).unwrap();
    let time = |thread: PathBuf| {
        // One that has ended since it was listed is left out.
        let name = fs::read_to_string(thread.join("comm")).ok()?;
        let times = fs::read_to_string(thread.join("schedstat")).ok()?;
        let on_cpu = times.split(' ').next()?.parse().ok()?;
        (!name.contains("vcpu")).then_some(Duration::from_nanos(on_cpu))
    };
    let times = threads.filter_map(|entry| time(entry.ok()?.path()));
    times.sum()
}
