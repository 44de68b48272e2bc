//! What giving devices to tenants needs of this machine (docs/gpu.md).

use super::{Check, Health};
use crate::pci::{Pci, Places, Vfio};

/// Never more than a warning: tenants run without devices.
pub fn check() -> Check {
    of(&Pci::read(&Places::default()))
}

fn of(pci: &Pci) -> Check {
    let name = "passthrough";
    let bad = |found, remedy| Check::bad(name, Health::Warning, found, remedy);
    if !pci.has_iommu() {
        return bad(
            "no IOMMU in use",
            "to give tenants PCI devices, switch it on in the firmware (VT-d, AMD-Vi), and for Intel boot with intel_iommu=on",
        );
    }
    if !pci.interrupts_are_safe() {
        return bad(
            "an IOMMU without interrupt remapping",
            "to give tenants PCI devices, switch it on in the firmware (x2APIC, interrupt remapping)",
        );
    }
    match pci.vfio() {
        Vfio::Missing => bad(
            "an IOMMU, but this kernel has no vfio-pci",
            "to give tenants PCI devices, install the kernel's modules (Debian: linux-image-amd64)",
        ),
        Vfio::Loaded | Vfio::Loadable => Check::ok(
            name,
            "IOMMU, interrupt remapping, vfio-pci; `fief gpu list` shows what can be given",
        ),
    }
}
