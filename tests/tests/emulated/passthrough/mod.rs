//! PCI passthrough, on an emulated host of its own: with an IOMMU, and with devices to pass.

mod binding;
mod dma;
mod drive;
mod graphics;
mod groups;
mod hot;
mod killed;
mod listing;
mod mapped;
mod owners;
mod reset;
mod serial;
mod tenant;

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::OnceLock;

use fief_tests::{Said, fief, state_directory, waiting};

/// An NVMe drive that nobody uses; can reset itself (FLR).
const SPARE_DRIVE: &str = "0000:00:10.0";
/// An NVMe drive that tests mount in the host.
const HOST_DRIVE: &str = "0000:00:11.0";
/// A display controller without VGA, with 256 MiB of memory behind a BAR: stands in for a GPU.
const GPU: &str = "0000:00:12.0";
/// 1 GiB of memory behind a BAR.
const LARGE: &str = "0000:00:13.0";
/// QEMU's teaching device, whose DMA reaches 28 bits. It cannot be reset.
const EDU: &str = "0000:00:14.0";
/// The same, whose DMA reaches everywhere.
const EDU_WIDE: &str = "0000:00:15.0";
/// A network card; is reset by power management.
const CARD: &str = "0000:00:16.0";
/// A serial port: INTx and ports, and the host's kernel has the driver built in.
const SERIAL: &str = "0000:00:17.0";
/// Another display controller, with a sound device beside it: two functions of one device, in one group.
const PAIR: [&str; 2] = ["0000:00:18.0", "0000:00:18.1"];
/// A bridge from PCI Express to PCI, which keeps nothing apart that is behind it.
const BRIDGE: &str = "0000:00:19.0";
/// A teaching device and a serial port behind that.
const SHARED: [&str; 2] = ["0000:01:01.0", "0000:01:02.0"];
/// An NVMe controller that can make two virtual functions (SR-IOV), which have the next addresses.
const MANY: &str = "0000:00:1a.0";

/// The devices, each at the address above; buses are numbered in the order of bridges.
const DEVICES: [&str; 15] = [
    "nvme,addr=10.0,serial=spare,drive=spare",
    "nvme,addr=11.0,serial=host,drive=host",
    "bochs-display,addr=12.0,vgamem=256M",
    "ivshmem-plain,addr=13.0,memdev=large",
    "edu,addr=14.0",
    "edu,addr=15.0,dma_mask=0xffffffffffffffff",
    "e1000e,addr=16.0,netdev=cable",
    "pci-serial,addr=17.0,chardev=line",
    "bochs-display,addr=18.0,vgamem=16M,multifunction=on",
    "intel-hda,addr=18.1",
    "nvme-subsys,id=many",
    "nvme,addr=1a.0,serial=many,subsys=many,sriov_max_vfs=2,sriov_vq_flexible=4,sriov_vi_flexible=2,max_ioqpairs=6,msix_qsize=5",
    "pcie-pci-bridge,addr=19.0,id=shared",
    "edu,bus=shared,addr=1.0",
    "pci-serial,bus=shared,addr=2.0,chardev=other-line",
];

/// What devices stand on, but for drives.
const BACKENDS: [[&str; 2]; 3] = [
    ["-object", "memory-backend-memfd,id=large,size=1G,share=on"],
    // A network with nothing in it but its router, which answers to pings.
    ["-netdev", "user,id=cable,restrict=on"],
    ["-chardev", "null,id=other-line"],
];

/// The drives, raw files of 64 MiB beside the host's own.
const DRIVES: [&str; 2] = ["spare", "host"];
const DRIVE_SIZE: u64 = 64 << 20;

/// Its state directory; `tests/run` stops it.
fn state() -> PathBuf {
    state_directory().join("passthrough")
}

/// The socket at the other end of the serial port.
fn line() -> PathBuf {
    state().join("line.sock")
}

/// Starts it, once for all tests: afresh, as an earlier run may have left drivers changed.
fn start() {
    static HOST: OnceLock<()> = OnceLock::new();
    HOST.get_or_init(|| {
        let state = state();
        fs::create_dir_all(&state).unwrap();
        let images = state.join("images");
        if !images.exists() {
            // The rig's own store: what it has need not be made again.
            std::os::unix::fs::symlink("../images", &images).unwrap();
        }
        said(&["host", "stop"]).ok();
        let mut words: Vec<String> = ["host", "start", "--iommu", "--memory", "3G"]
            .map(str::to_owned)
            .to_vec();
        let mut qemu = |word: &str| words.push(format!("--qemu-arg={word}"));
        for name in DRIVES {
            let path = state.join(format!("{name}.raw"));
            File::create(&path).unwrap().set_len(DRIVE_SIZE).unwrap();
            qemu("-drive");
            let path = path.display().to_string().replace(',', ",,");
            qemu(&format!("if=none,id={name},format=raw,file={path}"));
        }
        qemu("-chardev");
        let path = line().display().to_string().replace(',', ",,");
        qemu(&format!("socket,id=line,server=on,wait=off,path={path}"));
        for word in BACKENDS.iter().flatten() {
            qemu(word);
        }
        for device in DEVICES {
            words.extend(["--device".to_owned(), device.to_owned()]);
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        said(&words).ok();
        // What such a run noted of drivers is on the host's disk.
        said(&["host", "exec", "--", "rm", "-rf", "/var/lib/fief/pci"]).ok();
    });
}

fn said(words: &[&str]) -> Said {
    let mut command = fief(words);
    command.env("FIEF_STATE_DIR", state());
    waiting::output(command).into()
}

/// Runs `fief` with the words of `line` on that host.
fn run(line: &str) -> Said {
    start();
    let words: Vec<&str> = line.split_whitespace().collect();
    said(&words)
}

/// Runs a shell script as root in that host itself.
fn in_host(script: &str) -> Said {
    start();
    said(&["host", "exec", "--", "sh", "-c", script])
}

/// The entry of a function in `fief gpu list --all --json`.
#[track_caller]
fn listed(address: &str) -> serde_json::Value {
    let all = super::json(&run("gpu list --all --json").ok());
    let mut entries = all.as_array().unwrap().iter();
    let entry = entries.find(|entry| entry["address"] == address);
    entry
        .unwrap_or_else(|| panic!("{address} is not in {all}"))
        .clone()
}

/// The name of the driver that a function has, by the host's kernel.
#[track_caller]
fn driver(address: &str) -> String {
    let script =
        format!("basename \"$(readlink /sys/bus/pci/devices/{address}/driver || echo none)\"");
    in_host(&script).ok()
}

/// The block device of one of the drives, once the host's kernel has found it.
#[track_caller]
fn disk(address: &str) -> String {
    let script = format!("cd /sys/bus/pci/devices/{address}/nvme/nvme*/ && echo nvme*n1");
    waiting::until("the kernel finds the drive's namespace", || {
        let name = in_host(&script).out.trim().to_owned();
        (!name.is_empty() && !name.contains('*')).then(|| format!("/dev/{name}"))
    })
}
