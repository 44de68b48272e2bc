//! The registers of MSI-X as the guest sees them: message control and the table.

use super::{CONTROL_ENABLE, CONTROL_MASK_ALL, ENTRY_MASKED, ENTRY_SIZE};
use crate::irq::MsiMessage;

/// Message control and the table's entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    control: u16,
    entries: Vec<Entry>,
}

/// An entry of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    pub message: MsiMessage,
    pub masked: bool,
}

impl Entry {
    const AT_RESET: Self = Self {
        message: MsiMessage {
            address: 0,
            data: 0,
        },
        masked: true,
    };

    fn bytes(self) -> [u8; ENTRY_SIZE as usize] {
        let [a, b, c, d, e, f, g, h] = self.message.address.to_le_bytes();
        let [i, j, k, l] = self.message.data.to_le_bytes();
        let [m, n, o, p] = u32::from(self.masked).to_le_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    fn from_bytes(bytes: [u8; ENTRY_SIZE as usize]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        Self {
            message: MsiMessage {
                address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
                data: u32::from_le_bytes([i, j, k, l]),
            },
            masked: u32::from_le_bytes([m, n, o, p]) & ENTRY_MASKED != 0,
        }
    }
}

impl Table {
    /// `count` vectors, all masked, MSI-X off.
    pub fn new(count: u16) -> Self {
        Self {
            control: 0,
            entries: vec![Entry::AT_RESET; usize::from(count)],
        }
    }

    /// Message control: the enable and the function mask bit.
    pub fn control(&self) -> u16 {
        self.control
    }

    /// Whether the guest has turned MSI-X on.
    pub fn enabled(&self) -> bool {
        self.control & CONTROL_ENABLE != 0
    }

    /// Takes over what the guest wrote to message control; whether that changed anything.
    pub fn set_control(&mut self, control: u16) -> bool {
        let control = control & (CONTROL_ENABLE | CONTROL_MASK_ALL);
        let before = std::mem::replace(&mut self.control, control);
        before != control
    }

    /// The entries, by vector.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Puts `entry` in the place of vector `index`, if there is such a one.
    pub fn set_entry(&mut self, index: usize, entry: Entry) {
        if let Some(place) = self.entries.get_mut(index) {
            *place = entry;
        }
    }

    /// Where vector `index` goes, if it may go anywhere now.
    pub fn deliverable(&self, index: usize) -> Option<MsiMessage> {
        let open = self.control & (CONTROL_ENABLE | CONTROL_MASK_ALL) == CONTROL_ENABLE;
        let entry = self.entries.get(index)?;
        (open && !entry.masked).then_some(entry.message)
    }

    /// Reads the table; ones outside of it.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xFF);
        let Some((index, within)) = locate(offset) else {
            return;
        };
        let Some(entry) = self.entries.get(index) else {
            return;
        };
        let bytes = entry.bytes();
        if let Some(source) = bytes.get(within..).and_then(|rest| rest.get(..data.len())) {
            data.copy_from_slice(source);
        }
    }

    /// Writes the table and gives the vector that was written. Only aligned accesses of four or eight bytes do anything
    /// (PCI 3.0 §6.8.2).
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<usize> {
        let (index, within) = locate(offset)?;
        let aligned = matches!(data.len(), 4 | 8) && within.is_multiple_of(data.len());
        let entry = self.entries.get_mut(index).filter(|_| aligned)?;
        let mut bytes = entry.bytes();
        bytes
            .get_mut(within..within.checked_add(data.len())?)?
            .copy_from_slice(data);
        *entry = Entry::from_bytes(bytes);
        Some(index)
    }

    /// Off and every vector masked, as after power-on.
    pub fn reset(&mut self) {
        self.control = 0;
        self.entries.fill(Entry::AT_RESET);
    }
}

/// Reads the pending bits, of which `pending` gives one a vector; ones outside of them.
pub fn read_pending(pending: impl Iterator<Item = bool>, offset: u64, data: &mut [u8]) {
    data.fill(0xFF);
    let Ok(from) = usize::try_from(offset) else {
        return;
    };
    let pending: Vec<bool> = pending.collect();
    let bits: Vec<u8> = pending
        .chunks(64)
        .flat_map(|chunk| {
            let bit = |(n, set): (u32, &bool)| u64::from(*set) << n;
            let word: u64 = (0..).zip(chunk).map(bit).sum();
            word.to_le_bytes()
        })
        .collect();
    let source = bits.get(from..).and_then(|rest| rest.get(..data.len()));
    if let Some(source) = source {
        data.copy_from_slice(source);
    }
}

/// Index of the entry at `offset` of the table, and the place in it.
fn locate(offset: u64) -> Option<(usize, usize)> {
    let offset = usize::try_from(offset).ok()?;
    let size = usize::from(ENTRY_SIZE);
    Some((offset / size, offset % size))
}
