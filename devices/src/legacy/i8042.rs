//! The keyboard controller, as far as Linux uses it to reset a PC (`reboot=k`).

use super::{EventSink, GuestEvent};
use crate::bus::BusDevice;

/// Pulses the reset line of the CPU (command 0xFE pulses output port bit 0).
const COMMAND_RESET: u8 = 0xFE;

/// "Output buffer full" for ever and "input buffer full" never: a driver that looks for a controller reads the data port
/// (nothing there: ones) until it gives up, after 17 reads in Linux; one that waits to send the reset command does not
/// wait at all.
const STATUS: u8 = 0xFD;

/// Port 0x64 of a keyboard controller without a keyboard.
pub struct I8042 {
    sink: EventSink,
}

impl I8042 {
    /// Reports resets to `sink`.
    pub fn new(sink: EventSink) -> Self {
        Self { sink }
    }
}

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xFF);
        if let Some(status) = data.first_mut() {
            *status = STATUS;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [COMMAND_RESET] {
            (self.sink)(GuestEvent::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::tests::recorder;

    #[test]
    fn only_the_reset_command_resets() {
        let (sink, events) = recorder();
        let device = I8042::new(sink);
        for command in 0..0xFE {
            device.write(0, &[command]);
        }
        device.write(0, &[0xFE, 0]);
        assert!(events.lock().unwrap().is_empty());
        device.write(0, &[0xFE]);
        assert_eq!(*events.lock().unwrap(), [GuestEvent::Reset]);
    }

    #[test]
    fn the_status_says_ready_for_a_command_and_never_lets_a_probe_finish() {
        let (sink, _) = recorder();
        let mut data = [0];
        I8042::new(sink).read(0, &mut data);
        assert_eq!(data[0] & 0b11, 0b01);
    }
}
