//! ACPI power registers of a hardware-reduced platform (ACPI 6.5 §3.11.1), as the monitor's tables describe them.
//!
//! Hardware-reduced, because Linux then touches no register of this block at boot (the fixed PM1 block costs it more than
//! a dozen exits), sets up no PIC and calibrates no PIT. The power button is an event of the Generic Event Device
//! (ACPI 6.5 §5.6.9), whose method reads [`EVENT`] once for each interrupt; hot-plug is another bit of it. Its interrupt is
//! level-triggered, so that none is lost while the guest does not listen yet.
//!
//! | port | register | width | meaning |
//! |---|---|---|---|
//! | [`SLEEP_CONTROL`] | FADT SLEEP_CONTROL_REG | 1 | SLP_EN with SLP_TYP [`SLEEP_TYPE_S5`] switches off; reads 0 |
//! | [`SLEEP_STATUS`] | FADT SLEEP_STATUS_REG | 1 | reads 0, writes ignored: nothing sleeps and wakes here |
//! | [`RESET`] | FADT RESET_REG | 1 | [`RESET_VALUE`] resets; reads 0 |
//! | [`EVENT`] | read by GED's `_EVT` | 1 | pending event bits, cleared by the read |

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{EventSink, GuestEvent, POWER_PORT};
use crate::bus::BusDevice;
use crate::irq::InterruptLine;

/// Port of the sleep control register.
pub const SLEEP_CONTROL: u64 = POWER_PORT;
/// Port of the sleep status register.
pub const SLEEP_STATUS: u64 = POWER_PORT + 1;
/// Port of the reset register.
pub const RESET: u64 = POWER_PORT + 2;
/// Port of the event register.
pub const EVENT: u64 = POWER_PORT + 3;

/// FADT RESET_VALUE.
pub const RESET_VALUE: u8 = 1;
/// SLP_TYP for S5: the first element of `\_S5`.
pub const SLEEP_TYPE_S5: u8 = 5;

/// [`EVENT`]: the power button was pressed; `_EVT` does `Notify (PWRB, 0x80)`.
pub const EVENT_POWER_BUTTON: u8 = 1 << 0;
/// [`EVENT`]: a PCI function comes or goes.
pub const EVENT_PCI_HOT_PLUG: u8 = 1 << 1;
/// [`EVENT`]: the VM generation id changed.
pub const EVENT_VM_GENERATION: u8 = 1 << 2;

/// Sleep control: SLP_TYP, bits 4–2 (ACPI 6.5 §4.8.3.7).
const SLP_TYP: u8 = 0b0001_1100;
/// Sleep control: SLP_EN.
const SLP_EN: u8 = 1 << 5;
/// Sleep control of a guest that switches off.
const SWITCH_OFF: u8 = SLP_EN | SLEEP_TYPE_S5 << 2;

/// The block of registers at [`POWER_PORT`].
pub struct Power {
    sink: EventSink,
    /// Active while events are pending: a guest that listens late, or was restored, finds it so.
    line: Arc<dyn InterruptLine>,
    /// Held while the line is set, so that the two never differ.
    pending: Mutex<u8>,
}

/// State for a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerState {
    /// Event bits that the guest has not read.
    pub pending: u8,
}

impl Power {
    /// Reports what the guest asks for to `sink` and events to the guest by `line`.
    pub fn new(sink: EventSink, line: Arc<dyn InterruptLine>) -> Self {
        Self::from_state(sink, line, PowerState { pending: 0 })
    }

    /// As it was saved. Call [`resume`](Self::resume) before the guest goes on.
    pub fn from_state(sink: EventSink, line: Arc<dyn InterruptLine>, state: PowerState) -> Self {
        Self {
            sink,
            line,
            pending: Mutex::new(state.pending),
        }
    }

    /// What a snapshot keeps.
    pub fn state(&self) -> PowerState {
        PowerState {
            pending: *self.lock(),
        }
    }

    /// Presses the power button.
    pub fn press_power_button(&self) {
        self.raise(EVENT_POWER_BUTTON);
    }

    /// Reports the event bits `events` to the guest.
    pub fn raise(&self, events: u8) {
        let mut pending = self.lock();
        *pending |= events;
        self.set_line(*pending);
    }

    /// Forgets pending events: the machine is reset.
    pub fn reset(&self) {
        self.take();
    }

    /// Sets the interrupt line again as it was when the state was saved.
    pub fn resume(&self) {
        self.raise(0);
    }

    fn take(&self) -> u8 {
        let mut pending = self.lock();
        let events = std::mem::take(&mut *pending);
        if events != 0 {
            self.set_line(0);
        }
        events
    }

    fn set_line(&self, pending: u8) {
        if let Err(error) = self.line.set(pending != 0) {
            tracing::error!("cannot set the ACPI event interrupt: {error}");
        }
    }

    fn lock(&self) -> MutexGuard<'_, u8> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for Power {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match (POWER_PORT.wrapping_add(offset), data) {
            (EVENT, [value]) => *value = self.take(),
            (_, data) => data.fill(0),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (POWER_PORT.wrapping_add(offset), data) {
            (SLEEP_CONTROL, [value]) if value & (SLP_EN | SLP_TYP) == SWITCH_OFF => {
                (self.sink)(GuestEvent::PowerOff)
            }
            (RESET, [RESET_VALUE]) => (self.sink)(GuestEvent::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::tests::{Line, recorder};

    #[test]
    fn only_s5_with_sleep_enable_switches_off_and_only_the_reset_value_resets() {
        let (sink, events) = recorder();
        let power = Power::new(sink, Arc::new(Line::default()));
        for value in (0..=u8::MAX).filter(|v| v & 0b0011_1100 != 0b0011_0100) {
            power.write(0, &[value]);
        }
        for value in (0..=u8::MAX).filter(|&v| v != RESET_VALUE) {
            power.write(2, &[value]);
        }
        for (offset, data) in [(0, &[0x34, 0][..]), (1, &[0x34]), (2, &[1, 0]), (3, &[1])] {
            power.write(offset, data);
        }
        assert!(events.lock().unwrap().is_empty());
        power.write(0, &[0x34]);
        power.write(2, &[1]);
        let expected = [GuestEvent::PowerOff, GuestEvent::Reset];
        assert_eq!(*events.lock().unwrap(), expected);
    }

    #[test]
    fn the_power_button_is_active_until_it_is_seen_in_the_event_register() {
        let line = Arc::new(Line::default());
        let power = Power::new(recorder().0, line.clone());
        power.press_power_button();
        assert!(line.is_active());
        let mut data = [0xAA; 8];
        power.read(0, &mut data);
        assert_eq!(data, [0; 8], "an access of another width takes no event");
        assert!(line.is_active());
        let mut event = [0];
        power.read(3, &mut event);
        assert_eq!(event, [EVENT_POWER_BUTTON]);
        assert!(!line.is_active());
        power.read(3, &mut event);
        assert_eq!(event, [0]);
        // One that comes before another was read is not lost, nor is the line's level.
        power.press_power_button();
        power.raise(EVENT_PCI_HOT_PLUG);
        power.read(3, &mut event);
        assert_eq!(event, [EVENT_POWER_BUTTON | EVENT_PCI_HOT_PLUG]);
        assert!(!line.is_active());
    }

    #[test]
    fn a_pending_event_survives_a_snapshot_and_is_raised_again() {
        let power = Power::new(recorder().0, Arc::new(Line::default()));
        power.press_power_button();
        let line = Arc::new(Line::default());
        let restored = Power::from_state(recorder().0, line.clone(), power.state());
        assert_eq!(restored.state(), power.state());
        restored.resume();
        assert!(line.is_active());
        let mut event = [0];
        restored.read(3, &mut event);
        assert_eq!(event, [EVENT_POWER_BUTTON]);
        restored.resume();
        assert!(!line.is_active());
        restored.press_power_button();
        restored.reset();
        assert!(!line.is_active());
        assert_eq!(restored.state(), PowerState { pending: 0 });
    }
}
