//! A function that lives elsewhere, on the guest's PCI bus.
//!
//! Its registers in configuration space are the function's own but for what places it in this machine: BARs and command
//! register (kept by the bus), MSI and MSI-X, power state, and the capabilities that a guest is not to see. Where its BARs
//! are memory the guest reaches them without an exit, and its interrupts get to the guest without this process.

mod bars;
mod capabilities;
mod config;
mod interrupts;
mod vectors;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fief_devices::irq::{MsiAllocator, ResampledLine};
use fief_devices::pci::config::register;
use fief_devices::pci::{BAR_COUNT, Bar, BarKind, ConfigSpace, PciFunction, ROM_BAR};

use crate::mapping::MemorySlots;
use crate::region::Region;
use crate::remote::{DmaSpace, RemoteFunction};
use bars::MappedBar;
pub use config::ConfigurationError;
use config::{Configuration, command_of};
use interrupts::Interrupts;

/// PCI Express capability: device control, and its bit that resets the function (PCIe 5.0 §7.5.3.4).
const EXPRESS_CONTROL: u16 = 8;
const EXPRESS_RESET: u16 = 1 << 15;
/// Advanced Features capability: its control register, and the bit that resets the function (PCI AF ECN).
const ADVANCED_CONTROL: u16 = 4;
const ADVANCED_RESET: u16 = 1;

/// Why a function cannot be given to a guest.
#[derive(Debug, thiserror::Error)]
pub enum PassthroughError {
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    #[error("BAR {bar} cannot be mapped: {source}")]
    Map { bar: u8, source: io::Error },
    #[error("there are no interrupt vectors for it: {0}")]
    Interrupts(io::Error),
    #[error("it cannot be reset, so what its last user left would stay in it: {0}")]
    Reset(io::Error),
}

/// What a function needs of the machine.
pub struct Platform {
    pub slots: Arc<dyn MemorySlots>,
    pub vectors: Arc<dyn MsiAllocator>,
    /// The line of its INTx pin, if it is to have one.
    pub line: Option<Arc<dyn ResampledLine>>,
    /// Where other functions reach its BARs by DMA, if they may.
    pub peers: Option<Arc<dyn DmaSpace>>,
}

/// A function of the host's, or of another process, on the guest's bus.
pub struct Passthrough {
    /// How messages call it.
    name: String,
    // Fields are dropped in this order: nothing reaches the function any more when it is closed.
    bars: [Option<MappedBar>; BAR_COUNT as usize],
    interrupts: Interrupts,
    configuration: Configuration,
    remote: Arc<dyn RemoteFunction>,
    /// It failed before, and that was said.
    failed: AtomicBool,
}

impl Passthrough {
    /// Makes the guest's side of `remote`, which is as after a reset.
    ///
    /// # Errors
    /// See [`PassthroughError`].
    pub fn new(
        name: String,
        remote: Arc<dyn RemoteFunction>,
        platform: Platform,
    ) -> Result<Arc<Self>, PassthroughError> {
        let configuration = Configuration::of(remote.as_ref())?;
        let line = platform.line.filter(|_| configuration.pin);
        let interrupts = Interrupts::new(
            Arc::clone(&remote),
            &configuration.capabilities,
            platform.vectors.as_ref(),
            line,
        )
        .map_err(PassthroughError::Interrupts)?;
        let mut bars = [const { None }; BAR_COUNT as usize];
        for (index, place) in (0..).zip(&mut bars) {
            let is_memory = |bar: &Bar| matches!(bar.kind, BarKind::Memory32 | BarKind::Memory64);
            if !configuration
                .space
                .bar(index)
                .as_ref()
                .is_some_and(is_memory)
            {
                continue;
            }
            let mapped = MappedBar::new(
                remote.as_ref(),
                index,
                configuration.capabilities.msix.as_ref(),
                Arc::clone(&platform.slots),
                platform.peers.clone(),
            );
            *place = Some(mapped.map_err(|source| PassthroughError::Map { bar: index, source })?);
        }
        let function = Arc::new(Self {
            name,
            bars,
            interrupts,
            configuration,
            remote,
            failed: AtomicBool::new(false),
        });
        function.set_command(0);
        Ok(function)
    }

    /// The number of its wired interrupt line, if it has one.
    pub fn gsi(&self) -> Option<u32> {
        self.interrupts.gsi()
    }

    /// Its BARs and expansion ROM, for working out where they are to go.
    pub fn declared_bars(&self) -> impl Iterator<Item = Bar> {
        let space = &self.configuration.space;
        (0..=ROM_BAR).filter_map(|index| space.bar(index))
    }

    /// Says once that the function does not do what it should.
    fn check<T>(&self, what: &str, done: io::Result<T>) -> Option<T> {
        match done {
            Ok(value) => Some(value),
            Err(error) => {
                if !self.failed.swap(true, Ordering::Relaxed) {
                    tracing::warn!("{}: {what} failed: {error}; it reads as ones", self.name);
                }
                None
            }
        }
    }

    /// The guest's command register is `guest`: only what does not place the function gets to it.
    fn set_command(&self, guest: u16) {
        let command = command_of(guest).to_le_bytes();
        let done = self
            .remote
            .write(Region::Config, register::COMMAND.into(), &command);
        self.check("writing its command register", done);
    }

    fn reset_function(&self) {
        let done = self.remote.reset();
        self.check("resetting it", done);
    }

    /// The bit of the word at `offset` that resets the function, if the word has one.
    fn reset_bit(&self, offset: u16) -> Option<u16> {
        let capabilities = &self.configuration.capabilities;
        let express = capabilities.express.map(|at| at + EXPRESS_CONTROL);
        let advanced = capabilities.advanced.map(|at| at + ADVANCED_CONTROL);
        match offset & !1 {
            word if Some(word) == express => Some(EXPRESS_RESET),
            word if Some(word) == advanced => Some(ADVANCED_RESET),
            _ => None,
        }
    }

    /// `data` without the bits that reset the function, and whether there was one.
    fn without_reset(&self, offset: u16, data: &[u8]) -> (Vec<u8>, bool) {
        let mut asked = false;
        let bytes = (offset..).zip(data).map(|(offset, value)| {
            let bits = self.reset_bit(offset).unwrap_or(0).to_le_bytes();
            let [low, high] = bits;
            let bit = if offset.is_multiple_of(2) { low } else { high };
            asked |= value & bit != 0;
            value & !bit
        });
        let bytes = bytes.collect();
        (bytes, asked)
    }

    /// Hands on what was written to bytes that are the function's own.
    fn forward(&self, offset: u16, data: &[u8]) {
        let own = |offset: &u16| self.configuration.is_own(*offset);
        let mut start = 0;
        while start < data.len() {
            let at = offset.saturating_add(u16::try_from(start).unwrap_or(u16::MAX));
            let rest = data.len() - start;
            let run = (at..).take(rest).take_while(|at| !own(at)).count();
            if let Some(piece) = data
                .get(start..start + run)
                .filter(|piece| !piece.is_empty())
            {
                let done = self.remote.write(Region::Config, at.into(), piece);
                self.check("writing its configuration", done);
            }
            start += run.max(1);
        }
    }

    /// Bytes of MSI and MSI-X that the function gets to see too, after its interrupts were enabled: one in another process
    /// may look at them. (The host's kernel answers for those registers itself.)
    fn is_told(&self, offset: u16) -> bool {
        let capabilities = &self.configuration.capabilities;
        let within = |at: u16, length: u16| (at + 2..at.saturating_add(length)).contains(&offset);
        capabilities
            .msi
            .is_some_and(|msi| within(msi.at, msi.length()))
            || capabilities.msix.is_some_and(|msix| within(msix.at, 4))
    }
}

impl PciFunction for Passthrough {
    fn config_space(&self) -> ConfigSpace {
        self.configuration.space.clone()
    }

    fn config_read(&self, _space: &ConfigSpace, offset: u16, data: &mut [u8]) {
        if let Some(pending) = self.interrupts.msi_pending(offset) {
            let bytes = pending.to_le_bytes();
            let from = usize::from(offset % 4);
            if let Some(part) = bytes.get(from..from + data.len()) {
                data.copy_from_slice(part);
            }
            return;
        }
        let own = |offset: u16| self.configuration.is_own(offset);
        if (offset..).zip(data.iter()).all(|(offset, _)| own(offset)) {
            return;
        }
        let mut bytes = [0xFF; 4];
        let Some(bytes) = bytes.get_mut(..data.len()) else {
            return;
        };
        let done = self.remote.read(Region::Config, offset.into(), bytes);
        if self.check("reading its configuration", done).is_none() {
            bytes.fill(0xFF);
        }
        for ((offset, place), byte) in (offset..).zip(data).zip(bytes) {
            if !own(offset) {
                *place = *byte;
            }
        }
    }

    fn config_write(&self, space: &ConfigSpace, offset: u16, data: &[u8]) {
        if offset & !3 == register::COMMAND {
            // A guest that begins with it. Not before: the machine's interrupt controllers are reset after its functions.
            self.interrupts.start();
            return self.set_command(space.command());
        }
        self.interrupts.config_written(space, offset);
        if self.is_told(offset) {
            let done = self.remote.write(Region::Config, offset.into(), data);
            self.check("writing its configuration", done);
            return;
        }
        let (data, reset) = self.without_reset(offset, data);
        self.forward(offset, &data);
        if reset {
            self.reset_function();
            self.set_command(space.command());
        }
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        let msix = self.configuration.capabilities.msix;
        let table = msix.and_then(|msix| msix.table.within(bar, offset));
        let pending = msix.and_then(|msix| msix.pending.within(bar, offset));
        if let Some(offset) = table {
            return self.interrupts.table_read(offset, data);
        }
        if let Some(offset) = pending {
            return self.interrupts.pending_read(offset, data);
        }
        let region = region_of(bar);
        let inside = self.remote.region(region).holds(offset, data.len());
        let done = inside.then(|| self.remote.read(region, offset, data));
        // A ROM can be smaller than its BAR.
        if done
            .and_then(|done| self.check("reading a BAR", done))
            .is_none()
        {
            data.fill(0xFF);
        }
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        let msix = self.configuration.capabilities.msix;
        if let Some(offset) = msix.and_then(|msix| msix.table.within(bar, offset)) {
            return self.interrupts.table_write(offset, data);
        }
        if msix
            .and_then(|msix| msix.pending.within(bar, offset))
            .is_some()
            || bar == ROM_BAR
        {
            return;
        }
        let region = region_of(bar);
        if self.remote.region(region).holds(offset, data.len()) {
            let done = self.remote.write(region, offset, data);
            self.check("writing a BAR", done);
        }
    }

    fn bar_moved(&self, bar: u8, address: Option<u64>) {
        if let Some(Some(mapped)) = self.bars.get(usize::from(bar)) {
            mapped.moved(address);
        }
    }

    fn reset(&self) {
        self.interrupts.reset();
        // First: it must not write into memory that the next guest has, reset or not.
        self.set_command(0);
        if self.remote.can_reset() {
            self.reset_function();
            self.set_command(0);
        }
    }
}

/// The region of a BAR or the expansion ROM.
fn region_of(bar: u8) -> Region {
    match bar {
        ROM_BAR => Region::Rom,
        bar => Region::Bar(bar),
    }
}

#[cfg(test)]
mod tests;
