//! One PCI function, as sysfs tells of it.

use std::path::{Path, PathBuf};

use fief_api::PciAddress;
use serde::{Serialize, Serializer};

use super::bar::{self, Bar};
use super::names::{self, Names};
use super::places::{bytes, decimal, entries, hexadecimal, lines, name, target, text};

/// Offset of the header type in configuration space, and its bit that tells of several functions (PCI 3.0 §6.2.1).
const HEADER_TYPE: usize = 0x0e;
const MULTIFUNCTION: u8 = 0x80;

/// Base classes (PCI Code and ID Assignment 1.15 §1).
const DISPLAY: u32 = 0x03;
const BRIDGE: u32 = 0x06;

/// What kind of device a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Display controllers of any kind: VGA, 3D.
    Gpu,
    /// Bridges between buses, and what the chipset has of the same class. They stay with the host.
    Bridge,
    Other,
}

/// A PCI function of this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Function {
    pub address: PciAddress,
    #[serde(serialize_with = "four_digits")]
    pub vendor: u16,
    #[serde(serialize_with = "four_digits")]
    pub device: u16,
    #[serde(serialize_with = "four_digits")]
    pub subsystem_vendor: u16,
    #[serde(serialize_with = "four_digits")]
    pub subsystem_device: u16,
    /// Base class, subclass and programming interface, 8 bits each.
    #[serde(serialize_with = "six_digits")]
    pub class: u32,
    /// As pci.ids has it.
    pub vendor_name: Option<String>,
    /// As pci.ids has it.
    pub device_name: Option<String>,
    pub kind: Kind,
    /// Number of its IOMMU group, where there is an IOMMU.
    pub group: Option<u32>,
    /// The driver that it is bound to.
    pub driver: Option<String>,
    /// Ways to reset it alone, the kernel's favourite first: `flr`, `pm`, `bus` and so on
    /// (Documentation/ABI/testing/sysfs-bus-pci, `reset_method`).
    pub resets: Vec<String>,
    pub bars: Vec<Bar>,
    /// Bytes of its expansion ROM.
    pub rom: Option<u64>,
    /// Layout of its configuration space: 0 for devices, 1 for bridges to PCI, 2 to CardBus. None if it cannot be read.
    pub header_type: Option<u8>,
    /// The firmware's display was on it.
    pub boot_vga: bool,
    pub numa_node: Option<u32>,
    /// The physical function, of an SR-IOV virtual function.
    pub virtual_of: Option<PciAddress>,
    /// SR-IOV virtual functions that it has now.
    pub virtual_functions: u32,
    /// Its device of VFIO (`vfio0`): bound to vfio-pci, or to a driver that speaks VFIO itself.
    pub vfio: Option<String>,
    /// `/dev/vfio/GROUP`, where it is there.
    pub vfio_group: Option<PathBuf>,
    /// Where it is in the tree of devices: what is beneath belongs to it.
    #[serde(skip)]
    pub(super) path: PathBuf,
}

impl Function {
    /// Reads the function whose directory (in `bus/pci/devices`) this is; none if it went away, or is none.
    pub(super) fn read(directory: &Path, dev: &Path, names: &Names) -> Option<Self> {
        let address: PciAddress = name(directory)?.parse().ok()?;
        let path = std::fs::canonicalize(directory).ok()?;
        let file = |name: &str| path.join(name);
        let id = |name: &str| hexadecimal(&file(name)).and_then(|id| u16::try_from(id).ok());
        let (vendor, device) = (id("vendor")?, id("device")?);
        let class = hexadecimal(&file("class"))?;
        let (vendor_name, device_name) = names.find(vendor, device);
        let (bars, rom) = bar::parse(&lines(&file("resource")));
        let header_type = bytes(&file("config"))
            .ok()
            .and_then(|config| Some(config.get(HEADER_TYPE)? & !MULTIFUNCTION));
        let group = group(&path);
        let vfio_group = group
            .map(|group| dev.join("vfio").join(group.to_string()))
            .filter(|node| node.exists());
        Some(Self {
            address,
            vendor,
            device,
            subsystem_vendor: id("subsystem_vendor").unwrap_or(0),
            subsystem_device: id("subsystem_device").unwrap_or(0),
            class,
            vendor_name,
            device_name,
            kind: kind(class, header_type),
            group,
            driver: target(&file("driver")),
            resets: text(&file("reset_method"))
                .unwrap_or_default()
                .split_ascii_whitespace()
                .map(str::to_owned)
                .collect(),
            bars,
            rom,
            header_type,
            boot_vga: decimal(&file("boot_vga")) == Some(1),
            // -1 says that it is near to none.
            numa_node: decimal(&file("numa_node")),
            virtual_of: target(&file("physfn")).and_then(|name| name.parse().ok()),
            virtual_functions: decimal(&file("sriov_numvfs")).unwrap_or(0),
            vfio: entries(&file("vfio-dev"))
                .first()
                .and_then(|path| name(path)),
            vfio_group,
            path,
        })
    }

    /// What to call it: as pci.ids does, or by number and class.
    pub fn name(&self) -> String {
        let class = names::class(self.class);
        match (&self.vendor_name, &self.device_name) {
            (_, Some(device)) => device.clone(),
            (Some(vendor), None) => format!("{vendor} {class}"),
            (None, None) => format!("{:04x}:{:04x} {class}", self.vendor, self.device),
        }
    }

    /// Whether a driver has it that speaks VFIO: vfio-pci, or one of its vendor's.
    pub fn is_bound(&self) -> bool {
        self.vfio.is_some() || self.driver.as_deref() == Some(super::VFIO_PCI)
    }

    /// Whether `path` is of something beneath it: a disk, an interface.
    pub(super) fn has(&self, path: &Path) -> bool {
        path != self.path && path.starts_with(&self.path)
    }
}

fn kind(class: u32, header_type: Option<u8>) -> Kind {
    match class >> 16 {
        _ if header_type.is_some_and(|header| header != 0) => Kind::Bridge,
        BRIDGE => Kind::Bridge,
        DISPLAY => Kind::Gpu,
        _ => Kind::Other,
    }
}

/// The number of its IOMMU group. VFIO's "no-IOMMU mode" makes groups that keep nothing apart, which do not count.
fn group(path: &Path) -> Option<u32> {
    let link = path.join("iommu_group");
    let number = target(&link)?.parse().ok()?;
    (text(&link.join("name")).as_deref() != Some("vfio-noiommu")).then_some(number)
}

// Numbers are written as lspci(8) and pci.ids write them. serde gives references.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn four_digits<S: Serializer>(number: &u16, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{number:04x}"))
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn six_digits<S: Serializer>(number: &u32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format!("{number:06x}"))
}
