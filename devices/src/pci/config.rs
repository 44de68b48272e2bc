//! Configuration space of a function: bytes, what the guest may write of them, BARs and the capability list.

use super::bar::{BAR_COUNT, Bar, BarKind, PLACES, ROM_BAR, Window};

/// Offsets in a type 0 header (PCI 3.0 §6.1).
pub mod register {
    pub const VENDOR_ID: u16 = 0x00;
    pub const DEVICE_ID: u16 = 0x02;
    pub const COMMAND: u16 = 0x04;
    pub const STATUS: u16 = 0x06;
    pub const REVISION: u16 = 0x08;
    pub const CLASS: u16 = 0x09;
    pub const HEADER_TYPE: u16 = 0x0E;
    pub const BAR0: u16 = 0x10;
    pub const SUBSYSTEM_VENDOR: u16 = 0x2C;
    pub const SUBSYSTEM: u16 = 0x2E;
    pub const ROM: u16 = 0x30;
    pub const CAPABILITIES: u16 = 0x34;
    pub const INTERRUPT_LINE: u16 = 0x3C;
    pub const INTERRUPT_PIN: u16 = 0x3D;
}

/// Command register: respond to I/O accesses.
pub const COMMAND_IO: u16 = 1 << 0;
/// Command register: respond to memory accesses.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command register: may master the bus.
pub const COMMAND_MASTER: u16 = 1 << 2;
/// Command register: no INTx.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;

/// Header type: the device has more than one function.
pub const HEADER_MULTI_FUNCTION: u8 = 1 << 7;

/// Expansion ROM register: respond to accesses.
const ROM_ENABLE: u32 = 1;

/// Status register: there is a capability list.
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Bytes of a conventional configuration space; what lies beyond reads as ones.
const CONVENTIONAL: usize = 256;
/// Bytes of an extended configuration space (PCIe 5.0 §7.2.2).
const EXTENDED: usize = 4096;
/// Where the header ends and capabilities begin.
const FIRST_CAPABILITY: u16 = 0x40;

/// Why a config space cannot be built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The list of capabilities does not fit into 256 bytes.
    #[error("a capability of {length} bytes does not fit at {at:#x}; the space ends at 0x100")]
    CapabilitiesFull { at: u16, length: usize },
    /// A BAR's size is no power of two or out of range for its kind, or its registers are taken.
    #[error(
        "BAR {index} ({bar:?}) is not possible; check its size and the registers before and after it"
    )]
    Bar { index: u8, bar: Bar },
}

/// What a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    pub vendor: u16,
    pub device: u16,
    /// Base class, subclass and programming interface, from the upper byte down.
    pub class: u32,
    pub revision: u8,
    pub subsystem_vendor: u16,
    pub subsystem: u16,
}

/// The configuration space of one function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigSpace {
    bytes: Vec<u8>,
    /// Ones where the guest may write.
    writable: Vec<u8>,
    bars: [Option<Bar>; PLACES],
    /// Where the pointer to the next capability goes.
    capability_link: u16,
    next_capability: u16,
}

impl ConfigSpace {
    /// A conventional type 0 header without BARs, capabilities or interrupt pin.
    pub fn new(identity: Identity) -> Self {
        let mut space = Self {
            bytes: vec![0; CONVENTIONAL],
            writable: vec![0; CONVENTIONAL],
            bars: [None; PLACES],
            capability_link: register::CAPABILITIES,
            next_capability: FIRST_CAPABILITY,
        };
        space.set(register::VENDOR_ID, &identity.vendor.to_le_bytes());
        space.set(register::DEVICE_ID, &identity.device.to_le_bytes());
        let [interface, subclass, base, _] = identity.class.to_le_bytes();
        space.set(register::REVISION, &[identity.revision]);
        space.set(register::CLASS, &[interface, subclass, base]);
        let subsystem_vendor = identity.subsystem_vendor.to_le_bytes();
        space.set(register::SUBSYSTEM_VENDOR, &subsystem_vendor);
        space.set(register::SUBSYSTEM, &identity.subsystem.to_le_bytes());
        space.allow(
            register::COMMAND,
            &(COMMAND_MASTER | COMMAND_INTX_DISABLE).to_le_bytes(),
        );
        space.allow(register::INTERRUPT_LINE, &[0xFF]);
        space
    }

    /// Makes the space 4096 bytes long, for a PCI Express function with extended capabilities.
    pub fn extend(&mut self) {
        self.bytes.resize(EXTENDED, 0);
        self.writable.resize(EXTENDED, 0);
    }

    /// Declares BAR `index`, or the expansion ROM as [`ROM_BAR`]. Its address is 0 until the root places it.
    ///
    /// # Errors
    /// The size does not go with the kind, or the registers are taken or do not exist.
    pub fn add_bar(&mut self, index: u8, bar: Bar) -> Result<(), ConfigError> {
        let error = ConfigError::Bar { index, bar };
        let wide = bar.kind == BarKind::Memory64;
        let before = index.checked_sub(1).and_then(|i| self.bar(i));
        let taken_before = before.is_some_and(|b| b.kind == BarKind::Memory64);
        let last = index.saturating_add(u8::from(wide));
        let taken_after = wide && self.bar(last).is_some();
        let slot = self.bars.get_mut(usize::from(index)).ok_or(error)?;
        let is_rom = bar.kind == BarKind::Rom;
        let exists = if is_rom {
            index == ROM_BAR
        } else {
            last < BAR_COUNT
        };
        if !bar.is_valid() || !exists || taken_before || taken_after || slot.is_some() {
            return Err(error);
        }
        *slot = Some(bar);
        let at = bar_register(index);
        let [mask_low, mask_high] = halves(!(bar.size - 1) & !bar.flag_mask());
        self.set(at, &bar.type_bits().to_le_bytes());
        self.allow(at, &mask_low.to_le_bytes());
        if wide {
            self.allow(at + 4, &mask_high.to_le_bytes());
        }
        if is_rom {
            self.allow(at, &ROM_ENABLE.to_le_bytes());
        }
        let enable = match bar.kind {
            BarKind::Io => COMMAND_IO,
            BarKind::Memory32 | BarKind::Memory64 | BarKind::Rom => COMMAND_MEMORY,
        };
        self.allow(register::COMMAND, &enable.to_le_bytes());
        Ok(())
    }

    /// Appends a capability (id `id`; `body` follows the id and the next pointer) and returns its offset. Ones in
    /// `writable`, which may be shorter than `body`, are bits that the guest may write.
    ///
    /// # Errors
    /// It does not fit.
    pub fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<u16, ConfigError> {
        let at = self.next_capability;
        let full = ConfigError::CapabilitiesFull {
            at,
            length: body.len() + 2,
        };
        let end = usize::from(at) + 2 + body.len();
        let pointer = u8::try_from(at).map_err(|_| full)?;
        // Capabilities are dword-aligned (PCI 3.0 §6.7).
        let next = u16::try_from(end.next_multiple_of(4)).map_err(|_| full)?;
        if end > CONVENTIONAL {
            return Err(full);
        }
        self.set(self.capability_link, &[pointer]);
        self.set(register::STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.set(at, &[id, 0]);
        self.set(at + 2, body);
        self.allow(at + 2, writable);
        self.capability_link = at + 1;
        self.next_capability = next;
        Ok(at)
    }

    /// Number of bytes: 256 or 4096.
    pub fn size(&self) -> usize {
        self.bytes.len()
    }

    /// Reads at `offset`; ones beyond the end.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        let from = usize::from(offset);
        match self.bytes.get(from..from + data.len()) {
            Some(bytes) => data.copy_from_slice(bytes),
            None => data.fill(0xFF),
        }
    }

    /// Writes at `offset` what the masks let through.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let places = self.bytes.iter_mut().zip(&self.writable);
        for ((byte, mask), value) in places.skip(usize::from(offset)).zip(data) {
            *byte = *byte & !mask | value & mask;
        }
    }

    /// The little-endian dword at `offset`; ones beyond the end.
    pub fn dword(&self, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// The command register.
    pub fn command(&self) -> u16 {
        let mut bytes = [0; 2];
        self.read(register::COMMAND, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// The declaration of BAR `index`.
    pub fn bar(&self, index: u8) -> Option<Bar> {
        self.bars.get(usize::from(index)).copied().flatten()
    }

    /// The address that BAR `index` holds, whether or not it is decoded.
    pub fn bar_address(&self, index: u8) -> Option<u64> {
        let bar = self.bar(index)?;
        let low = u64::from(self.dword(bar_register(index)));
        let high = match bar.kind {
            BarKind::Memory64 => u64::from(self.dword(bar_register(index) + 4)),
            BarKind::Io | BarKind::Memory32 | BarKind::Rom => 0,
        };
        Some((high << 32 | low) & !bar.flag_mask())
    }

    /// Puts `address` into BAR `index`, as firmware would.
    pub(super) fn place_bar(&mut self, index: u8, address: u64) {
        let Some(bar) = self.bar(index) else { return };
        let [low, high] = halves(address);
        self.write(bar_register(index), &low.to_le_bytes());
        if bar.kind == BarKind::Memory64 {
            self.write(bar_register(index) + 4, &high.to_le_bytes());
        }
    }

    /// The address space that BAR `index` answers in at present, and where.
    pub(super) fn decoded(&self, index: u8) -> Option<(BarSpace, u64)> {
        let bar = self.bar(index)?;
        let (space, enable) = match bar.kind {
            BarKind::Io => (BarSpace::Io, COMMAND_IO),
            BarKind::Memory32 | BarKind::Memory64 | BarKind::Rom => {
                (BarSpace::Memory, COMMAND_MEMORY)
            }
        };
        let address = self.bar_address(index)?;
        let answers = bar.kind != BarKind::Rom || self.dword(register::ROM) & ROM_ENABLE != 0;
        (answers && self.command() & enable != 0).then_some((space, address))
    }

    /// The bytes, for a snapshot.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Whether `bytes` could be a state of this space: same length, same in everything that cannot be written.
    pub(super) fn fits(&self, bytes: &[u8]) -> bool {
        let places = self.bytes.iter().zip(&self.writable).zip(bytes);
        bytes.len() == self.bytes.len()
            && places
                .into_iter()
                .all(|((own, mask), b)| (own ^ b) & !mask == 0)
    }

    /// Writes `value` whether or not the guest may.
    pub fn set(&mut self, offset: u16, value: &[u8]) {
        let places = self.bytes.iter_mut().skip(usize::from(offset));
        places.zip(value).for_each(|(byte, v)| *byte = *v);
    }

    /// Lets the guest write the ones of `mask`, in addition to what it may already.
    pub fn allow(&mut self, offset: u16, mask: &[u8]) {
        let places = self.writable.iter_mut().skip(usize::from(offset));
        places.zip(mask).for_each(|(byte, m)| *byte |= *m);
    }
}

/// I/O ports or memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BarSpace {
    Io,
    Memory,
}

impl BarSpace {
    pub(super) fn windows(self) -> &'static [Window] {
        match self {
            Self::Io => &[Window::Io],
            Self::Memory => &[Window::Mmio32, Window::Mmio64],
        }
    }
}

/// Offset of the (low) register of BAR `index`, or of the expansion ROM's.
fn bar_register(index: u8) -> u16 {
    match index {
        ROM_BAR => register::ROM,
        _ => register::BAR0 + 4 * u16::from(index),
    }
}

/// Low and high dword.
fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [
        u32::from_le_bytes([a, b, c, d]),
        u32::from_le_bytes([e, f, g, h]),
    ]
}

#[cfg(test)]
mod tests;
