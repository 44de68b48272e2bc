//! Why a function of the host cannot be had.

use std::fmt;
use std::io;
use std::ops::Range;

/// Why a function of the host cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("'{0}' is no PCI address; write domain, bus, device and function, as in 0000:01:00.0")]
    Address(String),
    #[error("cannot open {path}: {source}; {}", open_advice(source))]
    Open { path: String, source: io::Error },
    #[error(
        "there is no function {0} on this host; `fief gpu list --all` shows those that are there"
    )]
    Absent(String),
    #[error(
        "{0} is in no IOMMU group; switch the IOMMU on in the firmware, and in the kernel with intel_iommu=on or amd_iommu=on"
    )]
    NoGroup(String),
    #[error("the host's VFIO speaks version {0}; a kernel of version 5.10 or newer is needed")]
    Version(i32),
    #[error("the host's VFIO has no IOMMU of type 1 v2; load the kernel module vfio_iommu_type1")]
    NoType1,
    #[error(
        "IOMMU group {group} cannot be given to a guest as long as {} too; bind that to vfio-pci as well \
         (`fief gpu bind`)",
        Members(others)
    )]
    NotViable { group: u32, others: Vec<Member> },
    #[error(
        "IOMMU group {group} is in use by another process; a function belongs to one guest at a time"
    )]
    Busy { group: u32 },
    #[error(
        "the host's IOMMU does not remap interrupts, so a guest could raise any interrupt of the host with its device; \
         switch interrupt remapping on in the firmware, or accept that with allow_unsafe_interrupts=1 for the kernel module \
         vfio_iommu_type1"
    )]
    NoInterruptRemapping,
    #[error("the host's VFIO refused to {what}: {source}")]
    Refused {
        what: &'static str,
        source: io::Error,
    },
    #[error(
        "the guest has memory at {:#x}-{:#x}, which the host's IOMMU keeps for itself; give the guest less memory",
        range.start, range.end
    )]
    Reserved { range: Range<u64> },
    #[error(
        "{mib} MiB of the guest's memory cannot be pinned: {source}; free memory, or raise the limit of locked memory \
         (`ulimit -l`, LimitMEMLOCK=)"
    )]
    Pin { mib: u64, source: io::Error },
    #[error("{0} is not bound to vfio-pci; bind it with `fief gpu bind {0}`")]
    NotBound(String),
    #[error("{0} is no PCI device for VFIO")]
    NotPci(String),
}

fn open_advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "load the kernel module vfio-pci and bind the function to it",
        io::ErrorKind::PermissionDenied => "run as root, or let its owner be the monitor's user",
        _ => "is it in use by another process?",
    }
}

/// Another function of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub address: String,
    /// The driver that has it.
    pub driver: String,
}

struct Members<'a>(&'a [Member]);

impl fmt::Display for Members<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("another of its functions has a driver of the host");
        }
        for (n, Member { address, driver }) in self.0.iter().enumerate() {
            let and = if n == 0 { "" } else { " and " };
            write!(f, "{and}{driver} has {address}")?;
        }
        Ok(())
    }
}
