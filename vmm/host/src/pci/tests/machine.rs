//! A machine made of files, for the kernel's words about its devices.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use fief_api::PciAddress;

use crate::pci::places::target;
use crate::pci::{Obstacle, Passable, Pci, Places};

/// A machine in a directory: with an IOMMU that remaps interrupts, vfio-pci, and no function yet.
pub(in crate::pci) struct Machine {
    directory: tempfile::TempDir,
}

impl Machine {
    pub(in crate::pci) fn new() -> Self {
        let machine = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        machine.write("proc/interrupts", "  0:  110  IR-IO-APIC  2-edge  timer\n");
        machine.write("sys/bus/pci/drivers/vfio-pci/bind", "");
        fs::create_dir_all(machine.path("sys/bus/pci/devices")).unwrap();
        machine
    }

    pub(in crate::pci) fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    pub(in crate::pci) fn write(&self, path: &str, text: &str) {
        self.write_bytes(path, text.as_bytes());
    }

    pub(in crate::pci) fn write_bytes(&self, path: &str, bytes: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// Makes the link `path`, absolute within this machine.
    pub(in crate::pci) fn link(&self, path: &str, target: &str) {
        let (path, target) = (self.path(path), self.path(target));
        for directory in [path.parent().unwrap(), &target] {
            fs::create_dir_all(directory).unwrap();
        }
        let _ = fs::remove_file(&path);
        symlink(target, path).unwrap();
    }

    /// A function, below the bus or bridge `parent`. `id` is as in `10de:1eb8`.
    pub(in crate::pci) fn function(&self, address: &str, id: &str, class: u32) -> Made<'_> {
        let own = format!("sys/devices/pci0000:00/{address}");
        let (vendor, device) = id.split_once(':').unwrap();
        for (name, text) in [
            ("vendor", format!("0x{vendor}\n")),
            ("device", format!("0x{device}\n")),
            ("class", format!("0x{class:06x}\n")),
            ("resource", String::new()),
            ("driver_override", "(null)\n".to_owned()),
        ] {
            self.write(&format!("{own}/{name}"), &text);
        }
        let made = Made { machine: self, own };
        made.header(0);
        self.link(&format!("sys/bus/pci/devices/{address}"), &made.own);
        made
    }

    /// A device beneath a function, of a class.
    pub(in crate::pci) fn beneath(&self, function: &Made<'_>, class: &str, name: &str) -> String {
        let own = format!("{}/{class}/{name}", function.own);
        self.link(&format!("sys/class/{class}/{name}"), &own);
        own
    }

    /// Lets a process have a device node open.
    pub(in crate::pci) fn open(&self, process: u32, program: &str, node: &str) {
        self.write(&format!("proc/{process}/comm"), program);
        let file = self.path(&format!("proc/{process}/fd/7"));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        symlink(node, file).unwrap();
    }

    pub(in crate::pci) fn places(&self) -> Places {
        Places {
            sys: self.path("sys"),
            proc: self.path("proc"),
            dev: self.path("dev"),
            modules: self.path("lib/modules/6"),
            ids: vec![self.path("no.ids"), self.path("pci.ids")],
        }
    }

    pub(in crate::pci) fn read(&self) -> Pci {
        Pci::read(&self.places())
    }

    /// What is in the way of passing a function.
    #[track_caller]
    pub(in crate::pci) fn obstacles(&self, of: &str) -> Vec<Obstacle> {
        let pci = self.read();
        pci.obstacles(pci.function(address(of)).unwrap())
    }

    /// The only obstacle of a function, in words.
    #[track_caller]
    pub(in crate::pci) fn obstacle(&self, of: &str) -> String {
        match self.obstacles(of).as_slice() {
            [one] => one.to_string(),
            several => panic!("{several:?}"),
        }
    }

    #[track_caller]
    pub(in crate::pci) fn passable(&self, of: &str) -> Passable {
        let pci = self.read();
        pci.passable(pci.function(address(of)).unwrap())
    }
}

/// A function that was made.
pub(in crate::pci) struct Made<'a> {
    machine: &'a Machine,
    pub(in crate::pci) own: String,
}

impl Made<'_> {
    pub(in crate::pci) fn group(self, number: u32) -> Self {
        let group = format!("sys/kernel/iommu_groups/{number}");
        self.machine
            .link(&format!("{}/iommu_group", self.own), &group);
        self
    }

    pub(in crate::pci) fn driver(self, name: &str) -> Self {
        let driver = format!("sys/bus/pci/drivers/{name}");
        self.machine.link(&format!("{}/driver", self.own), &driver);
        self
    }

    pub(in crate::pci) fn file(self, name: &str, text: &str) -> Self {
        self.machine.write(&format!("{}/{name}", self.own), text);
        self
    }

    pub(in crate::pci) fn header(&self, header_type: u8) {
        let mut config = [0; 64];
        config[0x0e] = header_type;
        self.machine
            .write_bytes(&format!("{}/config", self.own), &config);
    }
}

pub(in crate::pci) fn address(text: &str) -> PciAddress {
    text.parse().unwrap()
}

/// The directory of a function, for what is done to it.
pub(in crate::pci) fn directory(machine: &Machine, address: PciAddress) -> PathBuf {
    fs::canonicalize(
        machine
            .path("sys/bus/pci/devices")
            .join(address.to_string()),
    )
    .unwrap()
}

/// Where a driver's directory is in the machine.
pub(in crate::pci) fn driver_of(directory: &Path) -> Option<String> {
    target(&directory.join("driver"))
}
