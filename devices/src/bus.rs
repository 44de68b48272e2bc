//! Address buses: from a port or guest-physical address to the device that answers there.

use std::sync::Arc;

/// A device that answers reads and writes on a port or memory range. Called by vCPU threads, several at once.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` (1–8) bytes at `offset` from the start of the device's range.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` (1–8 bytes) at `offset` from the start of the device's range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Devices by address range. Built before the machine runs; lookups then take no lock.
#[derive(Default)]
pub struct Bus {
    /// Sorted by start, not overlapping: (start, length, device).
    ranges: Vec<(u64, u64, Arc<dyn BusDevice>)>,
}
