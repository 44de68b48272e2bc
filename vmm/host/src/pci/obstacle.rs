//! Why a function cannot be given to a tenant.

use fief_api::PciAddress;
use serde::Serialize;

/// One reason; a function may have several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Obstacle {
    /// No IOMMU group.
    #[error(
        "this machine has no IOMMU in use, which confines a device to its tenant's memory; switch it on in the firmware (VT-d, \
         AMD-Vi), and for Intel boot with intel_iommu=on"
    )]
    NoIommu,
    /// The IOMMU does not check interrupts.
    #[error(
        "the IOMMU does not remap interrupts, so a tenant could send the host any; switch it on in the firmware (x2APIC, \
         interrupt remapping), or, trusting all tenants with a device, load vfio_iommu_type1 with allow_unsafe_interrupts=1"
    )]
    NoInterruptRemapping,
    /// It connects buses, or belongs to the chipset.
    #[error("it is a bridge, which belongs to the host; pass what is behind it")]
    Bridge,
    /// Neither loaded nor to be loaded.
    #[error(
        "this machine's kernel has no vfio-pci; install its modules (Debian: linux-image-amd64), or a kernel with CONFIG_VFIO_PCI"
    )]
    NoVfio,
    /// The host shows its console on it.
    #[error(
        "the host's console is on it ({console}); take it away with `echo 0 > /sys/class/vtconsole/{console}/bind`, or have the \
         firmware choose another display"
    )]
    Console { console: String },
    /// A serial line of the host's console.
    #[error(
        "the host's console is on its serial line {line}; boot without console={line} to give it away"
    )]
    SerialConsole { line: String },
    /// A disk that the host uses.
    #[error("the host uses its disk {disk}: {user}; {remedy}")]
    Disk {
        disk: String,
        user: String,
        remedy: String,
    },
    /// An interface that the host is reached by.
    #[error(
        "the host's default route is by its interface {interface}; give the host another way out first"
    )]
    DefaultRoute { interface: String },
    /// Processes that have it open. Taking it from them waits for them, perhaps for ever.
    #[error("it is open in {}; stop it first", processes.join(", "))]
    Open { processes: Vec<String> },
    /// Its virtual functions would go with its driver.
    #[error(
        "it has {count} virtual functions, which go when its driver does; pass those, or take them away: \
         `echo 0 > /sys/bus/pci/devices/{address}/sriov_numvfs`"
    )]
    VirtualFunctions { address: PciAddress, count: u32 },
    /// Others in its IOMMU group have drivers of the host.
    #[error(
        "no IOMMU keeps it apart from {} in its group {group}, which the host's drivers have; bind them, too: `fief gpu bind {}`",
        mates.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "), together.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    )]
    GroupShared {
        group: u32,
        mates: Vec<Mate>,
        /// All that are to be bound at once.
        together: Vec<PciAddress>,
    },
}

impl Obstacle {
    /// Whether binding more functions removes it.
    pub fn is_cured_by_binding(&self) -> bool {
        matches!(self, Self::GroupShared { .. })
    }
}

/// Another function of an IOMMU group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{address} ({name}; driver {driver})")]
pub struct Mate {
    pub address: PciAddress,
    pub name: String,
    pub driver: String,
}
