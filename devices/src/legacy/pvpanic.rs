//! pvpanic: a port where the guest's kernel reports that it panicked (QEMU's specification docs/specs/pvpanic).

use super::{EventSink, GuestEvent};
use crate::bus::BusDevice;

/// The kernel panicked.
pub const PANICKED: u8 = 1 << 0;
/// The kernel panicked and has a crash kernel.
pub const CRASH_LOADED: u8 = 1 << 1;

/// The one-port device; the ACPI tables name it QEMU0001.
pub struct Pvpanic {
    sink: EventSink,
}

impl Pvpanic {
    /// Reports panics to `sink`.
    pub fn new(sink: EventSink) -> Self {
        Self { sink }
    }
}

impl BusDevice for Pvpanic {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(supported) = data.first_mut() {
            *supported = PANICKED | CRASH_LOADED;
        }
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        let events = data.first().copied().unwrap_or(0);
        if events & CRASH_LOADED != 0 {
            (self.sink)(GuestEvent::CrashLoaded);
        } else if events & PANICKED != 0 {
            (self.sink)(GuestEvent::Panicked);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::tests::recorder;

    #[test]
    fn it_says_what_it_supports_and_reports_what_is_written() {
        let (sink, events) = recorder();
        let device = Pvpanic::new(sink);
        let mut data = [0];
        device.read(0, &mut data);
        assert_eq!(data, [PANICKED | CRASH_LOADED]);
        for value in [0, 4, 0xF8, PANICKED, CRASH_LOADED] {
            device.write(0, &[value]);
        }
        let expected = [GuestEvent::Panicked, GuestEvent::CrashLoaded];
        assert_eq!(*events.lock().unwrap(), expected);
    }
}
