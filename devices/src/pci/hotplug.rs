//! ACPI PCI hot-plug: how a running guest learns that a function came or is to go, and how it lets go of one.
//!
//! A controller of our own, in the style of those that Linux's acpiphp knows: it drives whatever the AML says
//! (`boot/acpi.rs` in the monitor). The event [`EVENT_PCI_HOT_PLUG`] of the Generic Event Device makes that AML read
//! [`UP`] and [`DOWN`] and notify the slots in them: "device check" (1) and "ejection request" (3, ACPI 6.5 §5.6.6). A
//! slot's `_EJ0` writes [`EJECT`].
//!
//! | port | register | access | meaning |
//! |---|---|---|---|
//! | [`UP`] | slots with a new function | read | a bit a slot, cleared by the read |
//! | [`DOWN`] | slots to be released | read | a bit a slot, cleared by the read |
//! | [`EJECT`] | slots that the guest lets go | write | takes the functions off the bus, see below |
//!
//! All are 32 bits wide; an access of another width or at another port reads zeroes and does nothing. A write to
//! [`EJECT`] counts only for slots whose release was asked for: a guest cannot lose a device that its host wants it to
//! have. A guest that never ejects keeps the function, and only its own slot stays taken.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{PciError, PciFunction, PciRoot, SLOTS};
use crate::bus::BusDevice;
use crate::legacy::Power;
use crate::legacy::power::EVENT_PCI_HOT_PLUG;

/// First port of the controller.
pub const HOT_PLUG_PORT: u64 = 0x610;
/// Number of ports from [`HOT_PLUG_PORT`].
pub const HOT_PLUG_PORT_COUNT: u64 = 12;

/// Port of the register of slots with a new function.
pub const UP: u64 = HOT_PLUG_PORT;
/// Port of the register of slots that are to be released.
pub const DOWN: u64 = HOT_PLUG_PORT + 4;
/// Port of the register that ejects.
pub const EJECT: u64 = HOT_PLUG_PORT + 8;

/// Called when a slot's function has left the bus. It runs under the controller's lock: it must not call back into it.
pub type OnEjected = Box<dyn Fn(u8) + Send + Sync>;

/// The slots that something is going on with, a bit each.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotPlugState {
    /// A function came, and the guest has not read it.
    pub up: u32,
    /// The function is to go, and the guest has not read it.
    pub down: u32,
    /// The guest was asked to release the function, and has not.
    pub asked: u32,
}

/// The controller.
pub struct HotPlug {
    bus: Arc<PciRoot>,
    power: Arc<Power>,
    on_ejected: OnEjected,
    /// Held while functions come and go, so that a slot is never mistaken for its next function.
    slots: Mutex<HotPlugState>,
}

impl HotPlug {
    /// A controller for `bus` that reports by `power`'s event device.
    pub fn new(bus: Arc<PciRoot>, power: Arc<Power>, on_ejected: OnEjected) -> Self {
        Self {
            bus,
            power,
            on_ejected,
            slots: Mutex::default(),
        }
    }

    /// Puts a device of one function into a free slot of the running machine, tells the guest, and returns the slot.
    ///
    /// # Errors
    /// No slot or no room for a BAR is left.
    pub fn add(&self, function: Arc<dyn PciFunction>) -> Result<u8, PciError> {
        let slots = self.lock();
        let slot = self.bus.add(function)?;
        self.tell(slots, slot);
        Ok(slot)
    }

    /// Puts a device with these functions, by number, into `slot` of the running machine, and tells the guest.
    ///
    /// # Errors
    /// See [`PciRoot::add_device`].
    pub fn add_device(
        &self,
        slot: u8,
        functions: Vec<(u8, Arc<dyn PciFunction>)>,
    ) -> Result<(), PciError> {
        let slots = self.lock();
        self.bus.add_device(slot, functions)?;
        self.tell(slots, slot);
        Ok(())
    }

    /// A device came to `slot`.
    fn tell(&self, mut slots: MutexGuard<'_, HotPlugState>, slot: u8) {
        slots.up |= bit(slot);
        slots.down &= !bit(slot);
        slots.asked &= !bit(slot);
        drop(slots);
        self.power.raise(EVENT_PCI_HOT_PLUG);
    }

    /// The lowest free slot.
    ///
    /// # Errors
    /// All are taken.
    pub fn free_slot(&self) -> Result<u8, PciError> {
        self.bus.free_slot()
    }

    /// Asks the guest to release `slot`, once more if it was asked before. False if the slot is empty.
    pub fn ask_release(&self, slot: u8) -> bool {
        let mut slots = self.lock();
        if !self.bus.is_taken(slot) {
            return false;
        }
        slots.down |= bit(slot);
        slots.asked |= bit(slot);
        drop(slots);
        self.power.raise(EVENT_PCI_HOT_PLUG);
        true
    }

    /// Whether the guest was asked to release `slot` and has not.
    pub fn is_asked(&self, slot: u8) -> bool {
        self.lock().asked & bit(slot) != 0
    }

    /// The machine is reset, and the new guest knows nothing of what the old one was told: it finds what came on the bus,
    /// and what was to go is gone. Call before the bus is reset.
    pub fn reset(&self) {
        let mut slots = self.lock();
        let asked = slots.asked;
        self.eject(&mut slots, asked);
        *slots = HotPlugState::default();
    }

    /// What a snapshot keeps.
    pub fn state(&self) -> HotPlugState {
        *self.lock()
    }

    /// Takes over a saved state, after the bus was restored. The event device repeats its own pending events.
    pub fn restore(&self, state: HotPlugState) {
        *self.lock() = state;
    }

    fn eject(&self, slots: &mut HotPlugState, mask: u32) {
        let mask = mask & slots.asked;
        for slot in (0..SLOTS).filter(|&slot| mask & bit(slot) != 0) {
            slots.up &= !bit(slot);
            slots.down &= !bit(slot);
            slots.asked &= !bit(slot);
            if self.bus.remove(slot) {
                (self.on_ejected)(slot);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HotPlugState> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bit of a slot; none for a slot that does not exist.
fn bit(slot: u8) -> u32 {
    1_u32.checked_shl(u32::from(slot)).unwrap_or(0)
}

impl BusDevice for HotPlug {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut value = [0; 4];
        if data.len() == value.len() {
            let mut slots = self.lock();
            let bits = match HOT_PLUG_PORT.wrapping_add(offset) {
                UP => std::mem::take(&mut slots.up),
                DOWN => std::mem::take(&mut slots.down),
                _ => 0,
            };
            value = bits.to_le_bytes();
        }
        data.fill(0);
        for (place, byte) in data.iter_mut().zip(value) {
            *place = byte;
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (EJECT, Ok(value)) = (
            HOT_PLUG_PORT.wrapping_add(offset),
            <[u8; 4]>::try_from(data),
        ) {
            self.eject(&mut self.lock(), u32::from_le_bytes(value));
        }
    }
}

#[cfg(test)]
mod tests;
