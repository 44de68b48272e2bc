//! The configuration space that the guest sees of a function: which bytes are the function's own, and which are answered
//! here.

use fief_devices::pci::config::{self, register};
use fief_devices::pci::{BAR_COUNT, Bar, BarKind, ConfigError, ConfigSpace, Identity, ROM_BAR};

use super::capabilities::{
    self, CONVENTIONAL, Capabilities, EXTENDED, MsiPlace, MsixPlace, byte, dword, msi_control, word,
};
use crate::region::Region;
use crate::remote::RemoteFunction;

/// Header type: bits 6-0 tell the layout; bridges have another one.
const LAYOUT_MASK: u8 = 0x7F;
/// PMCSR: the power state.
const POWER_STATE: u8 = 0b11;

/// Why a function cannot be put before a guest.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    #[error("its configuration space cannot be read: {0}")]
    Read(std::io::Error),
    #[error("its configuration space has {0} bytes; a PCI function has 256 or 4096")]
    Size(u64),
    #[error(
        "it is no function that can be passed through (header type {0:#x}); bridges stay with the host"
    )]
    Bridge(u8),
    #[error("it answers as if it were not there (vendor {0:#06x}); is it powered on?")]
    Absent(u16),
    #[error(transparent)]
    Layout(#[from] ConfigError),
    #[error(
        "its MSI-X {what} is said to be at {offset:#x} of BAR {bar}, where there is no such room; the function is broken"
    )]
    Msix {
        what: &'static str,
        bar: u8,
        offset: u64,
    },
}

/// What the guest sees of a function at its reset, and who answers for which part of it.
#[derive(Debug, Clone)]
pub struct Configuration {
    pub space: ConfigSpace,
    /// By byte: answered here, from the space. The others are the function's.
    pub own: Vec<bool>,
    pub capabilities: Capabilities,
    /// The function has an INTx pin.
    pub pin: bool,
}

impl Configuration {
    /// Reads a function's configuration space and makes the guest's of it.
    ///
    /// # Errors
    /// See [`ConfigurationError`].
    pub fn of(remote: &dyn RemoteFunction) -> Result<Self, ConfigurationError> {
        let mut raw = read(remote)?;
        let vendor = word(&raw, register::VENDOR_ID.into());
        if matches!(vendor, 0 | 0xFFFF) {
            return Err(ConfigurationError::Absent(vendor));
        }
        let layout = byte(&raw, register::HEADER_TYPE.into()) & LAYOUT_MASK;
        if layout != 0 {
            return Err(ConfigurationError::Bridge(layout));
        }
        let bars = bars(remote, &raw);
        let capabilities =
            capabilities::conventional(raw.get_mut(..CONVENTIONAL).unwrap_or_default());
        let hidden = capabilities::extended(&mut raw);
        if let Some(msix) = &capabilities.msix {
            check_msix(remote, &bars, msix)?;
        }
        let mut space = ConfigSpace::new(identity(&raw));
        if raw.len() > CONVENTIONAL {
            space.extend();
        }
        // What the guest sees of the header besides the registers of the bus, and all capabilities.
        for (offset, value) in (0_u16..).zip(&raw) {
            if !is_bus_register(offset) {
                space.set(offset, &[*value]);
            }
        }
        for (index, bar) in bars {
            space.add_bar(index, bar)?;
        }
        let pin = remote.interrupts(crate::remote::Interrupt::Intx) > 0
            && byte(&raw, register::INTERRUPT_PIN.into()) != 0;
        // Every function has the pin A of its slot: each has a line of its own there.
        space.set(register::INTERRUPT_PIN, &[pin.into()]);
        let mut own = vec![false; raw.len()];
        mark(&mut own, 0, FIRST_CAPABILITY);
        // Whether its wired interrupt is pending only the function knows. Drivers that share a line ask for it, and take the
        // interrupt for another's without.
        if let Some(status) = own.get_mut(usize::from(register::STATUS)) {
            *status = false;
        }
        for range in hidden {
            mark(&mut own, range.start, range.len());
        }
        let mut configuration = Self {
            space,
            own,
            capabilities,
            pin,
        };
        configuration.take_over();
        Ok(configuration)
    }

    /// Answers for the capabilities that the function's own registers must not be used of.
    fn take_over(&mut self) {
        let Capabilities {
            msi, msix, power, ..
        } = self.capabilities;
        if let Some(msi) = msi {
            self.take_over_msi(&msi);
        }
        if let Some(MsixPlace { at, .. }) = msix {
            mark(&mut self.own, at.into(), 12);
            let writable =
                fief_devices::pci::msix::CONTROL_ENABLE | fief_devices::pci::msix::CONTROL_MASK_ALL;
            let mut control = [0; 2];
            self.space.read(at + 2, &mut control);
            let cleared = u16::from_le_bytes(control) & !writable;
            self.space.set(at + 2, &cleared.to_le_bytes());
            self.space.allow(at + 2, &writable.to_le_bytes());
        }
        if let Some(at) = power {
            // A function that sleeps answers nowhere, and an access to a BAR that is mapped would end the machine. So the
            // guest's power states are for the guest only; it begins awake, without power events.
            mark(&mut self.own, at.into(), 8);
            self.space.set(at + 4, &[0; 2]);
            self.space.allow(at + 4, &[POWER_STATE]);
        }
        // Links that were closed or led around something hidden are told from here.
        self.own_links();
    }

    fn take_over_msi(&mut self, msi: &MsiPlace) {
        mark(&mut self.own, msi.at.into(), msi.length().into());
        let mut control = [0; 2];
        self.space.read(msi.at + 2, &mut control);
        let enabled = msi_control::COUNT_MASK << msi_control::ENABLED_SHIFT;
        let writable = msi_control::ENABLE | enabled;
        let cleared = u16::from_le_bytes(control) & !writable;
        self.space.set(msi.at + 2, &cleared.to_le_bytes());
        self.space.allow(msi.at + 2, &writable.to_le_bytes());
        let length = usize::from(msi.length()).saturating_sub(4);
        let zeroes = vec![0; length];
        self.space.set(msi.at + 4, &zeroes);
        self.space.allow(msi.at + 4, &0xFFFF_FFFC_u32.to_le_bytes());
        if msi.wide {
            self.space.allow(msi.at + 8, &[0xFF; 4]);
        }
        self.space.allow(msi.data(), &[0xFF; 2]);
        if let Some(mask) = msi.mask() {
            let vectors = u32::MAX
                .checked_shr(32 - u32::from(msi.vectors))
                .unwrap_or(0);
            self.space.allow(mask, &vectors.to_le_bytes());
        }
    }

    /// The ids and links of all capabilities that are left.
    fn own_links(&mut self) {
        let mut at = usize::from(self.byte(register::CAPABILITIES));
        while (FIRST_CAPABILITY..CONVENTIONAL).contains(&at) {
            mark(&mut self.own, at, 2);
            at = usize::from(self.byte(u16::try_from(at + 1).unwrap_or(0)));
        }
        let mut at = CONVENTIONAL;
        while at >= CONVENTIONAL && at < self.own.len() {
            mark(&mut self.own, at, 4);
            let header = self.space.dword(u16::try_from(at).unwrap_or(0));
            at = usize::try_from(header >> 20 & 0xFFC).unwrap_or(0);
        }
    }

    fn byte(&self, offset: u16) -> u8 {
        let mut byte = [0];
        self.space.read(offset, &mut byte);
        let [byte] = byte;
        byte
    }

    /// Whether the byte at `offset` is answered here.
    pub fn is_own(&self, offset: u16) -> bool {
        self.own.get(usize::from(offset)).copied().unwrap_or(true)
    }
}

/// Where capabilities begin.
const FIRST_CAPABILITY: usize = 0x40;

/// The registers that the bus keeps: command, BARs, expansion ROM.
fn is_bus_register(offset: u16) -> bool {
    let bars = register::BAR0..register::BAR0 + 4 * u16::from(BAR_COUNT);
    [register::COMMAND, register::COMMAND + 1].contains(&offset)
        || bars.contains(&offset)
        || (register::ROM..register::ROM + 4).contains(&offset)
        || offset == register::INTERRUPT_LINE
}

fn mark(own: &mut [bool], start: usize, length: usize) {
    let places = own.iter_mut().skip(start).take(length);
    places.for_each(|place| *place = true);
}

fn read(remote: &dyn RemoteFunction) -> Result<Vec<u8>, ConfigurationError> {
    let size = remote.region(Region::Config).size;
    let size = match usize::try_from(size) {
        Ok(size) if size >= EXTENDED => EXTENDED,
        Ok(size) if size >= CONVENTIONAL => CONVENTIONAL,
        _ => return Err(ConfigurationError::Size(size)),
    };
    let mut raw = vec![0; size];
    let read = remote.read(Region::Config, 0, &mut raw);
    read.map_err(ConfigurationError::Read)?;
    Ok(raw)
}

fn identity(raw: &[u8]) -> Identity {
    let class = |at| u32::from(byte(raw, at));
    let at = usize::from(register::CLASS);
    Identity {
        vendor: word(raw, register::VENDOR_ID.into()),
        device: word(raw, register::DEVICE_ID.into()),
        class: class(at) | class(at + 1) << 8 | class(at + 2) << 16,
        revision: byte(raw, register::REVISION.into()),
        subsystem_vendor: word(raw, register::SUBSYSTEM_VENDOR.into()),
        subsystem: word(raw, register::SUBSYSTEM.into()),
    }
}

/// The BARs and the expansion ROM, by index: sizes from the regions, kinds from the registers.
fn bars(remote: &dyn RemoteFunction, raw: &[u8]) -> Vec<(u8, Bar)> {
    let mut bars = Vec::new();
    let mut index = 0;
    while index < BAR_COUNT {
        let low = dword(raw, usize::from(register::BAR0) + 4 * usize::from(index));
        let kind = match low & 0b111 {
            bits if bits & 1 != 0 => BarKind::Io,
            0b100 => BarKind::Memory64,
            _ => BarKind::Memory32,
        };
        let size = remote.region(Region::Bar(index)).size;
        if size > 0 {
            bars.push((
                index,
                Bar {
                    kind,
                    size,
                    prefetchable: kind != BarKind::Io && low & 0b1000 != 0,
                },
            ));
        }
        index += if kind == BarKind::Memory64 { 2 } else { 1 };
    }
    let rom = remote.region(Region::Rom).size;
    if let Some(size) = rom.checked_next_power_of_two().filter(|_| rom > 0) {
        let rom = Bar {
            kind: BarKind::Rom,
            size: size.max(2048),
            prefetchable: false,
        };
        bars.push((ROM_BAR, rom));
    }
    bars
}

/// Table and pending bits lie in memory BARs that have the room.
fn check_msix(
    remote: &dyn RemoteFunction,
    bars: &[(u8, Bar)],
    msix: &MsixPlace,
) -> Result<(), ConfigurationError> {
    for (what, place) in [("table", msix.table), ("pending bits", msix.pending)] {
        let memory = bars.iter().any(|(index, bar)| {
            *index == place.bar && !matches!(bar.kind, BarKind::Io | BarKind::Rom)
        });
        let region = remote.region(Region::Bar(place.bar.min(BAR_COUNT - 1)));
        let length = usize::try_from(place.length).unwrap_or(usize::MAX);
        if !memory || !region.holds(place.offset, length) {
            return Err(ConfigurationError::Msix {
                what,
                bar: place.bar,
                offset: place.offset,
            });
        }
    }
    Ok(())
}

/// The command register that the function itself has when the guest's is `guest`. Its BARs always answer in the host, where
/// they are mapped from: whether they answer in the guest is decided there.
pub fn command_of(guest: u16) -> u16 {
    guest | config::COMMAND_IO | config::COMMAND_MEMORY
}

#[cfg(test)]
mod tests;
