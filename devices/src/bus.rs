//! Address buses: from a port or guest-physical address to the device that answers there.

use std::sync::Arc;

/// A device that answers reads and writes on a port or memory range. Called by vCPU threads, several at once.
pub trait BusDevice: Send + Sync {
    /// Reads `data.len()` (1–8) bytes at `offset` from the start of the device's range.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Writes `data` (1–8 bytes) at `offset` from the start of the device's range.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Why a device could not be put on a bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range has no bytes.
    #[error("the range at {start:#x} is empty; give it at least one byte")]
    Empty { start: u64 },
    /// The range ends beyond 2^64.
    #[error(
        "the range of {length:#x} bytes at {start:#x} ends beyond the address space; move or shorten it"
    )]
    BeyondAddressSpace { start: u64, length: u64 },
    /// Another device answers in the range.
    #[error(
        "the range of {length:#x} bytes at {start:#x} overlaps the one of {other_length:#x} bytes at \
         {other_start:#x}; move one of them"
    )]
    Overlap {
        start: u64,
        length: u64,
        other_start: u64,
        other_length: u64,
    },
}

struct Range {
    start: u64,
    length: u64,
    device: Arc<dyn BusDevice>,
}

/// Devices by address range. Built before the machine runs and then shared immutably, so lookups take no lock.
#[derive(Default)]
pub struct Bus {
    /// Sorted by start, not overlapping.
    ranges: Vec<Range>,
}

impl Bus {
    /// An empty bus: every read gives all ones.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes `device` answer at the `length` bytes (or ports) from `start`.
    ///
    /// # Errors
    /// The range is empty, ends beyond the address space, or overlaps another one.
    pub fn insert(
        &mut self,
        start: u64,
        length: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let last = length.checked_sub(1).ok_or(BusError::Empty { start })?;
        let last = start
            .checked_add(last)
            .ok_or(BusError::BeyondAddressSpace { start, length })?;
        let overlapping = self
            .ranges
            .iter()
            .find(|r| r.start <= last && start - r.start.min(start) < r.length);
        if let Some(other) = overlapping {
            return Err(BusError::Overlap {
                start,
                length,
                other_start: other.start,
                other_length: other.length,
            });
        }
        let position = self.ranges.partition_point(|r| r.start < start);
        self.ranges.insert(
            position,
            Range {
                start,
                length,
                device,
            },
        );
        Ok(())
    }

    /// Reads at `address`. Where no device answers for all of `data` the bytes are ones, as on a bus that nobody drives.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xFF),
        }
    }

    /// Writes at `address`; ignored where no device answers for all of `data`.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    /// The device that answers for all `size` bytes at `address`, and the offset in its range.
    fn find(&self, address: u64, size: usize) -> Option<(&dyn BusDevice, u64)> {
        let after = self.ranges.partition_point(|r| r.start <= address);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        let offset = address - range.start;
        let room = range.length.checked_sub(offset)?;
        let size = u64::try_from(size).ok()?;
        (1..=8).contains(&size).then_some(())?;
        (size <= room).then_some((range.device.as_ref(), offset))
    }
}

#[cfg(test)]
mod tests;
