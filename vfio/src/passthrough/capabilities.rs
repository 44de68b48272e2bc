//! The capabilities of a function: what the guest may see of them, and where those are that this crate answers for.

use fief_devices::pci::capability;
use fief_devices::pci::msix::ENTRY_SIZE;

/// Bytes of a conventional configuration space, after which the extended one begins.
pub const CONVENTIONAL: usize = 256;
/// Bytes of an extended configuration space (PCIe 5.0 §7.2.2).
pub const EXTENDED: usize = 4096;

/// Where the list of capabilities begins.
const LIST: usize = 0x34;
/// Status register and its bit for the list.
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
/// A capability cannot begin in the header.
const FIRST: usize = 0x40;
/// An extended capability's header with no id (PCIe 5.0 §7.9.28: the null capability).
const ID_MASK: u32 = 0xFFFF;
const VERSION_MASK: u32 = 0xF_0000;

/// Extended capabilities that the guest does not get to see: what is shared between functions of the host or changes how the
/// function is decoded there. ARI (PCIe 5.0 §7.8.7), SR-IOV (§9.3.3), Resizable BAR (§7.8.6) and that of virtual functions.
const ARI: u16 = 0x0E;
const SR_IOV: u16 = 0x10;
const RESIZABLE_BAR: u16 = 0x15;
const VF_RESIZABLE_BAR: u16 = 0x24;

/// Bytes of the extended capability `id` at `at`, if it is one to hide.
fn hidden_length(config: &[u8], at: usize, id: u16) -> Option<usize> {
    match id {
        ARI => Some(8),
        SR_IOV => Some(0x40),
        RESIZABLE_BAR | VF_RESIZABLE_BAR => {
            // The first BAR's control register says how many there are.
            let bars = dword(config, at + 8) >> 5 & 7;
            Some(4 + 8 * usize::try_from(bars).unwrap_or(0))
        }
        _ => None,
    }
}

/// MSI (PCI 3.0 §6.8.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiPlace {
    pub at: u16,
    /// Addresses have 64 bits.
    pub wide: bool,
    /// Vectors can be masked one by one.
    pub maskable: bool,
    /// Vectors that it can have; a power of two up to 32.
    pub vectors: u16,
}

/// Bits of MSI's message control.
pub mod msi_control {
    pub const ENABLE: u16 = 1;
    /// Vectors that the function can have, as a power of two.
    pub const CAPABLE_SHIFT: u16 = 1;
    /// Vectors that it may use, as a power of two.
    pub const ENABLED_SHIFT: u16 = 4;
    pub const COUNT_MASK: u16 = 7;
    pub const WIDE: u16 = 1 << 7;
    pub const MASKABLE: u16 = 1 << 8;
}

impl MsiPlace {
    /// Where the message's data is.
    pub fn data(&self) -> u16 {
        self.at + if self.wide { 12 } else { 8 }
    }

    /// Where the mask bits are, if there are any; the pending bits follow.
    pub fn mask(&self) -> Option<u16> {
        self.maskable.then(|| self.data() + 4)
    }

    /// Bytes of the capability.
    pub fn length(&self) -> u16 {
        let end = self.mask().map_or(self.data() + 2, |mask| mask + 8);
        end - self.at
    }
}

/// A place in a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InBar {
    pub bar: u8,
    pub offset: u64,
    /// Bytes.
    pub length: u64,
}

impl InBar {
    /// The offset within, if `offset` of BAR `bar` is inside.
    pub fn within(&self, bar: u8, offset: u64) -> Option<u64> {
        let within = offset.checked_sub(self.offset)?;
        (bar == self.bar && within < self.length).then_some(within)
    }
}

/// MSI-X (PCI 3.0 §6.8.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsixPlace {
    pub at: u16,
    pub vectors: u16,
    pub table: InBar,
    pub pending: InBar,
}

/// The capabilities that need more than being handed on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    pub msi: Option<MsiPlace>,
    pub msix: Option<MsixPlace>,
    pub power: Option<u16>,
    pub express: Option<u16>,
    /// Advanced Features, which conventional functions have their function-level reset in.
    pub advanced: Option<u16>,
}

/// Looks through the conventional capabilities in `config` and hides what comes after a broken link. Whatever is in there,
/// the list that is left leads through different places to an end.
pub fn conventional(config: &mut [u8]) -> Capabilities {
    let mut found = Capabilities::default();
    let mut link = LIST;
    let mut seen = [false; CONVENTIONAL];
    if byte(config, STATUS) & STATUS_CAPABILITIES == 0 {
        set(config, LIST, &[0]);
        return found;
    }
    loop {
        // The two lowest bits are reserved (PCI 3.0 §6.7).
        let at = usize::from(byte(config, link) & !3);
        let new = seen
            .get_mut(at)
            .is_some_and(|seen| !std::mem::replace(seen, true));
        if at < FIRST || !new {
            set(config, link, &[0]);
            return found;
        }
        set(config, link, &[u8::try_from(at).unwrap_or(0)]);
        note(config, at, &mut found);
        link = at + 1;
    }
}

/// Notes the capability at `at` if it is one that matters and is the first of its kind.
fn note(config: &[u8], at: usize, found: &mut Capabilities) {
    let Ok(place) = u16::try_from(at) else { return };
    match byte(config, at) {
        capability::MSI => {
            found.msi.get_or_insert(msi(config, at, place));
        }
        capability::MSIX => {
            found.msix.get_or_insert(msix(config, at, place));
        }
        capability::POWER_MANAGEMENT => {
            found.power.get_or_insert(place);
        }
        capability::PCI_EXPRESS => {
            found.express.get_or_insert(place);
        }
        capability::ADVANCED_FEATURES => {
            found.advanced.get_or_insert(place);
        }
        _ => {}
    }
}

fn msi(config: &[u8], at: usize, place: u16) -> MsiPlace {
    let control = word(config, at + 2);
    // Values above 5 are reserved.
    let exponent = (control >> msi_control::CAPABLE_SHIFT & msi_control::COUNT_MASK).min(5);
    MsiPlace {
        at: place,
        wide: control & msi_control::WIDE != 0,
        maskable: control & msi_control::MASKABLE != 0,
        vectors: 1 << exponent,
    }
}

fn msix(config: &[u8], at: usize, place: u16) -> MsixPlace {
    // 11 bits, less one.
    let vectors = (word(config, at + 2) & 0x7FF) + 1;
    let in_bar = |register: u32, length: u64| InBar {
        bar: u8::try_from(register & 7).unwrap_or(0),
        offset: u64::from(register & !7),
        length,
    };
    MsixPlace {
        at: place,
        vectors,
        table: in_bar(
            dword(config, at + 4),
            u64::from(vectors) * u64::from(ENTRY_SIZE),
        ),
        pending: in_bar(dword(config, at + 8), u64::from(vectors.div_ceil(64)) * 8),
    }
}

/// Takes out of the extended capabilities in `config` those that the guest is not to see; gives where they were. Whatever is
/// in there, the list that is left leads to an end.
pub fn extended(config: &mut [u8]) -> Vec<std::ops::Range<usize>> {
    let mut hidden = Vec::new();
    let mut seen = vec![false; config.len()];
    let mut previous: Option<usize> = None;
    let mut at = CONVENTIONAL;
    loop {
        let new = seen
            .get_mut(at)
            .is_some_and(|seen| !std::mem::replace(seen, true));
        if !new || at < CONVENTIONAL || at + 4 > config.len() {
            if let Some(previous) = previous {
                link_extended(config, previous, 0);
            }
            return hidden;
        }
        let header = dword(config, at);
        let next = usize::try_from(header >> 20 & 0xFFC).unwrap_or(0);
        let id = u16::try_from(header & ID_MASK).unwrap_or(0);
        match hidden_length(config, at, id) {
            None => previous = Some(at),
            Some(length) => {
                let end = at.saturating_add(length).min(config.len());
                hidden.push(at..end);
                config.get_mut(at..end).unwrap_or_default().fill(0);
                match previous {
                    Some(previous) => link_extended(config, previous, next),
                    // The first one's place is fixed: it stays, as one that means nothing.
                    None => {
                        previous = Some(at);
                        link_extended(config, at, next);
                    }
                }
            }
        }
        if next == 0 {
            return hidden;
        }
        at = next;
    }
}

fn link_extended(config: &mut [u8], at: usize, next: usize) {
    let kept = dword(config, at) & (ID_MASK | VERSION_MASK);
    let next = u32::try_from(next).unwrap_or(0) << 20;
    set(config, at, &(kept | next).to_le_bytes());
}

/// The byte at `at`; 0 beyond the end.
pub fn byte(config: &[u8], at: usize) -> u8 {
    config.get(at).copied().unwrap_or(0)
}

pub fn word(config: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([byte(config, at), byte(config, at + 1)])
}

pub fn dword(config: &[u8], at: usize) -> u32 {
    u32::from(word(config, at)) | u32::from(word(config, at + 2)) << 16
}

fn set(config: &mut [u8], at: usize, value: &[u8]) {
    let places = config.iter_mut().skip(at);
    places.zip(value).for_each(|(place, byte)| *place = *byte);
}

#[cfg(test)]
mod tests;
