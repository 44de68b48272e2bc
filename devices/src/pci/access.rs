//! The two ways to configuration space: ECAM in memory, and the ports of configuration mechanism #1.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::place::Place;
use super::root::Slots;
use crate::bus::BusDevice;

/// ECAM of one bus (PCIe 5.0 §7.2.2): offset bits 19–15 device, 14–12 function, 11–0 register.
pub(super) struct Ecam(pub(super) Arc<Slots>);

impl BusDevice for Ecam {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match decode(offset) {
            Some((place, register)) => self.0.read(place, register, data),
            None => data.fill(0xFF),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((place, register)) = decode(offset) {
            self.0.write(place, register, data);
        }
    }
}

/// Place and register of an ECAM offset.
fn decode(offset: u64) -> Option<(Place, u16)> {
    let place = Place::from_byte(u8::try_from(offset >> 12).ok()?);
    let register = u16::try_from(offset & 0xFFF).ok()?;
    Some((place, register))
}

/// CONFIG_ADDRESS and CONFIG_DATA (PCI 3.0 §3.2.2.3.2).
pub(super) struct ConfigPorts {
    /// By bus number.
    pub(super) buses: Vec<Arc<Slots>>,
    pub(super) address: Arc<AtomicU32>,
}

/// CONFIG_ADDRESS: accesses to CONFIG_DATA go to configuration space.
const ENABLE: u32 = 1 << 31;
/// CONFIG_ADDRESS: the bits that hold something.
const ADDRESS_MASK: u32 = ENABLE | 0x00FF_FFFC;

impl ConfigPorts {
    /// Bus, place and register that `offset` (4–7) of the port range leads to.
    fn target(&self, offset: u64) -> Option<(&Slots, Place, u16)> {
        let address = self.address.load(Ordering::Acquire);
        let [register, device_function, bus, _] = address.to_le_bytes();
        let byte = u16::try_from(offset.checked_sub(4)?).ok()?;
        let enabled = address & ENABLE != 0;
        let bus = self.buses.get(usize::from(bus)).filter(|_| enabled)?;
        let place = Place::from_byte(device_function);
        Some((bus, place, u16::from(register) + byte))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let within = data.len() <= 4;
        match (offset, self.target(offset)) {
            (0, _) if data.len() == 4 => {
                data.copy_from_slice(&self.address.load(Ordering::Acquire).to_le_bytes());
            }
            (_, Some((bus, place, register))) if within => bus.read(place, register, data),
            _ => data.fill(0xFF),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // CONFIG_ADDRESS takes dwords only; narrower writes are for other devices at these ports.
        if let (0, Ok(value)) = (offset, <[u8; 4]>::try_from(data)) {
            let address = u32::from_le_bytes(value) & ADDRESS_MASK;
            self.address.store(address, Ordering::Release);
        } else if let (Some((bus, place, register)), true) = (self.target(offset), data.len() <= 4)
        {
            bus.write(place, register, data);
        }
    }
}
