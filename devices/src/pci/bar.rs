//! Base address registers (PCI 3.0 §6.2.5.1).

use serde::{Deserialize, Serialize};

/// Number of BARs of a type 0 header.
pub const BAR_COUNT: u8 = 6;

/// The expansion ROM's base address register, counted as one more BAR (PCI 3.0 §6.2.5.2).
pub const ROM_BAR: u8 = BAR_COUNT;

/// Everything that is placed like a BAR: the BARs and the expansion ROM.
pub(super) const PLACES: usize = BAR_COUNT as usize + 1;

/// What a BAR decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BarKind {
    Io,
    Memory32,
    /// Takes two registers.
    Memory64,
    /// Memory that answers only if the lowest bit of its register is set too; of [`ROM_BAR`] alone.
    Rom,
}

/// A BAR as a function declares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    pub kind: BarKind,
    /// Bytes; a power of two, at least 16 for memory, 4 for I/O and 2048 for the expansion ROM.
    pub size: u64,
    /// Reads have no side effects. Linux puts a BAR without it only into windows that are not prefetchable.
    pub prefetchable: bool,
}

/// One of the address windows behind the host bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Window {
    Io,
    Mmio32,
    Mmio64,
}

/// Memory BARs below this size are placed below 4 GiB even if they are 64-bit ones: a guest needs no page tables above
/// RAM to reach them.
const SMALL: u64 = 1 << 20;

impl Bar {
    /// A 64-bit memory BAR that is not prefetchable.
    ///
    /// Linux sizes it with one config access less than a 32-bit one and the unused register after it.
    pub fn memory64(size: u64) -> Self {
        Self {
            kind: BarKind::Memory64,
            size,
            prefetchable: false,
        }
    }

    /// The window that the root puts the BAR in.
    pub(super) fn home(self) -> Window {
        match self.kind {
            BarKind::Io => Window::Io,
            BarKind::Memory64 if self.size >= SMALL => Window::Mmio64,
            BarKind::Memory32 | BarKind::Memory64 | BarKind::Rom => Window::Mmio32,
        }
    }

    /// Whether size and kind go together.
    pub(super) fn is_valid(self) -> bool {
        let (least, most) = match self.kind {
            BarKind::Io => (4, 256),
            BarKind::Memory32 => (16, 1 << 31),
            BarKind::Memory64 => (16, 1 << 62),
            // Bits 10-1 of its register are not of the address.
            BarKind::Rom => (2048, 1 << 31),
        };
        self.size.is_power_of_two() && (least..=most).contains(&self.size)
    }

    /// The read-only type bits of the (low) register.
    pub(super) fn type_bits(self) -> u32 {
        let memory = match self.kind {
            BarKind::Io => return 0b01,
            BarKind::Rom => return 0,
            BarKind::Memory32 => 0b000,
            BarKind::Memory64 => 0b100,
        };
        memory | u32::from(self.prefetchable) << 3
    }

    /// The bits that do not belong to the address.
    pub(super) fn flag_mask(self) -> u64 {
        match self.kind {
            BarKind::Io => 0b11,
            BarKind::Memory32 | BarKind::Memory64 => 0b1111,
            BarKind::Rom => 0x7FF,
        }
    }
}
