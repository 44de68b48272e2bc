//! The PCI bus: the same through memory and through ports, and quiet where nothing is.

use virtio_drivers::transport::pci::bus::{Cam, ConfigurationAccess, DeviceFunction, MmioCam};

use crate::pci::{ECAM, root};
use crate::{Failure, port};

/// Configuration access by ports (PCI 3.0 §3.2.2.3.2).
const ADDRESS: u16 = 0xCF8;
const DATA: u16 = 0xCFC;

fn by_port(function: DeviceFunction, offset: u8) -> u32 {
    let address = 1 << 31 | u32::from(function.device) << 11 | u32::from(function.function) << 8;
    port::write32(ADDRESS, address | u32::from(offset));
    port::read32(DATA)
}

/// Checks every slot of bus 0.
pub fn check() -> Result<(), Failure> {
    // SAFETY: only reads, from the configuration space of bus 0.
    let memory = unsafe { MmioCam::new(ECAM as *mut u8, Cam::Ecam) };
    let mut present = 0;
    for device in 0..32 {
        let function = DeviceFunction {
            bus: 0,
            device,
            function: 0,
        };
        for offset in [0, 4, 8, 0x10, 0x2C, 0x34] {
            let (a, b) = (
                memory.read_word(function, offset),
                by_port(function, offset),
            );
            if a != b {
                return Err(alloc::format!(
                    "device {device} offset {offset:#x}: {a:#x} by memory, {b:#x} by port"
                ));
            }
        }
        let id = memory.read_word(function, 0);
        present += u32::from(id != u32::MAX);
    }
    let listed = root().enumerate_bus(0).count();
    if listed as u32 != present || present < 2 {
        return Err(alloc::format!(
            "{listed} devices enumerated, {present} answer"
        ));
    }
    Ok(())
}
