//! The QEMU command line of an emulated host: a q35 PC in pure emulation with AMD-V and nested paging.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What an emulated host is made of.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Hardware {
    /// RAM in MiB.
    pub memory_mib: u64,
    /// Processors. With more than one, the machine's kernel was seen to die ("Oops: int3" in
    /// KVM); code patching under emulation on several threads is suspected.
    pub cpus: u8,
    /// Count instructions: 1 instruction = 1 ns of the machine's time, repeatable runs.
    pub icount: bool,
    /// An IOMMU with interrupt remapping (VFIO needs it).
    pub iommu: bool,
    /// Extra `-device` arguments, as QEMU takes them.
    pub devices: Vec<String>,
    /// Extra raw disk images, attached as virtio-blk with the given serial.
    pub disks: Vec<Disk>,
    /// Further arguments of QEMU's, as it takes them: what extra devices stand on, such as `-object` and its value.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// Added to the kernel command line.
    pub kernel_args: Vec<String>,
}

impl Default for Hardware {
    fn default() -> Self {
        Self {
            memory_mib: 4096,
            cpus: 1,
            icount: false,
            iommu: false,
            devices: Vec::new(),
            disks: Vec::new(),
            arguments: Vec::new(),
            kernel_args: Vec::new(),
        }
    }
}

/// A raw disk image.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Disk {
    /// Serial number, up to 20 bytes: how the machine finds it.
    pub serial: String,
    pub path: PathBuf,
    pub read_only: bool,
}

/// Files of one emulated host's boot.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Boot {
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// Read-only root file system.
    pub root: PathBuf,
    /// Writable ext4 disk over it.
    pub disk: PathBuf,
    /// Read-only image of the kernel's modules.
    pub modules: Option<PathBuf>,
}

/// Sockets and logs of a running emulated host, all in one directory.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Endpoints {
    /// The virtio-serial port of the agent, as QEMU's socket.
    pub agent: PathBuf,
    /// Serial console output.
    pub console: PathBuf,
}

impl Endpoints {
    /// The endpoints in `directory`.
    pub fn in_directory(directory: &Path) -> Self {
        Self {
            agent: directory.join("serial.sock"),
            console: directory.join("console.log"),
        }
    }
}

/// The program that emulates; from Debian's package qemu-system-x86.
pub const QEMU: &str = "qemu-system-x86_64";

/// QEMU splits option values at commas; a comma in a value is written twice.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

/// Arguments of [`QEMU`] for the machine.
pub fn arguments(hardware: &Hardware, boot: &Boot, endpoints: &Endpoints) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |option: &str, value: String| {
        arguments.push(option.into());
        arguments.push(value.into());
    };
    add("-M", "q35".to_owned());
    if hardware.icount {
        add("-accel", "tcg,thread=single".to_owned());
        add("-icount", "shift=0,sleep=off".to_owned());
    } else {
        add("-accel", "tcg,thread=multi,tb-size=512".to_owned());
    }
    add("-smp", hardware.cpus.to_string());
    add("-cpu", "EPYC,+svm,+npt".to_owned());
    add("-m", hardware.memory_mib.to_string());
    if hardware.iommu {
        add(
            "-device",
            "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on,aw-bits=48".to_owned(),
        );
    }
    add("-kernel", boot.kernel.display().to_string());
    add("-initrd", boot.initramfs.display().to_string());
    add("-append", command_line(hardware));
    add(
        "-chardev",
        format!("file,id=console,path={}", escaped(&endpoints.console)),
    );
    add("-serial", "chardev:console".to_owned());
    add(
        "-chardev",
        format!(
            "socket,id=agent,path={},server=on,wait=off",
            escaped(&endpoints.agent)
        ),
    );
    add("-device", "virtio-serial-pci".to_owned());
    add(
        "-device",
        "virtserialport,chardev=agent,name=fief.agent".to_owned(),
    );
    add("-device", "virtio-rng-pci".to_owned());
    let own = [
        Disk {
            serial: "image".to_owned(),
            path: boot.root.clone(),
            read_only: true,
        },
        Disk {
            serial: "disk".to_owned(),
            path: boot.disk.clone(),
            read_only: false,
        },
    ];
    let modules = boot.modules.as_ref().map(|path| Disk {
        serial: "modules".to_owned(),
        path: path.clone(),
        read_only: true,
    });
    for (index, disk) in own
        .iter()
        .chain(&modules)
        .chain(&hardware.disks)
        .enumerate()
    {
        let path = escaped(&disk.path);
        let read_only = if disk.read_only { "on" } else { "off" };
        add(
            "-drive",
            format!(
                "if=none,id=d{index},format=raw,discard=unmap,readonly={read_only},file={path}"
            ),
        );
        add(
            "-device",
            format!("virtio-blk-pci,drive=d{index},serial={}", disk.serial),
        );
    }
    for device in &hardware.devices {
        add("-device", device.clone());
    }
    for flag in ["-nodefaults", "-nographic", "-no-reboot"] {
        arguments.push(flag.into());
    }
    arguments.extend(hardware.arguments.iter().map(OsString::from));
    arguments
}

fn command_line(hardware: &Hardware) -> String {
    let mut line = "console=ttyS0 quiet panic=-1 fief.root=image fief.disk=disk fief.init=agent \
                    fief.modulesdrive=modules \
                    fief.agent=serial:fief.agent fief.hostname=fief-host"
        .to_owned();
    if hardware.iommu {
        line.push_str(" intel_iommu=on");
    }
    for argument in &hardware.kernel_args {
        line.push(' ');
        line.push_str(argument);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot() -> Boot {
        Boot {
            kernel: "k".into(),
            initramfs: "i".into(),
            root: "a,b".into(),
            disk: "d".into(),
            modules: None,
        }
    }

    fn text(hardware: &Hardware) -> String {
        let arguments = arguments(
            hardware,
            &boot(),
            &Endpoints::in_directory(Path::new("run")),
        );
        arguments
            .iter()
            .map(|a| a.to_string_lossy().into_owned())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn icount_runs_on_one_processor_and_one_thread() {
        let line = text(&Hardware {
            icount: true,
            cpus: 1,
            ..Hardware::default()
        });
        assert!(line.contains("-icount shift=0,sleep=off -smp 1 "), "{line}");
        assert!(line.contains("thread=single"), "{line}");
    }

    #[test]
    fn commas_in_paths_do_not_end_an_option() {
        assert!(text(&Hardware::default()).contains("readonly=on,file=a,,b "));
    }

    #[test]
    fn disks_keep_their_serials_and_order() {
        let extra = Disk {
            serial: "bin".into(),
            path: "x".into(),
            read_only: true,
        };
        let line = text(&Hardware {
            disks: vec![extra],
            ..Hardware::default()
        });
        let places: Vec<_> = ["serial=image", "serial=disk", "serial=bin"]
            .iter()
            .map(|s| line.find(s))
            .collect();
        assert!(
            places.iter().all(Option::is_some) && places.is_sorted(),
            "{line}"
        );
    }

    #[test]
    fn further_arguments_reach_qemu_as_they_are() {
        let given = ["-object", "memory-backend-ram,id=m,size=1G"];
        let hardware = Hardware {
            arguments: given.map(str::to_owned).to_vec(),
            ..Hardware::default()
        };
        assert!(text(&hardware).ends_with(&given.join(" ")));
    }

    #[test]
    fn an_iommu_is_there_only_when_asked_for() {
        assert!(!text(&Hardware::default()).contains("iommu"));
        let line = text(&Hardware {
            iommu: true,
            ..Hardware::default()
        });
        assert!(
            line.contains("intel-iommu,intremap=on") && line.contains("intel_iommu=on"),
            "{line}"
        );
    }
}
