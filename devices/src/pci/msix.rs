//! MSI-X: the capability, the table and the pending bits (PCI 3.0 §6.8.2).
//!
//! A vector's mask, as its trigger sees it, is one atomic, so that worker threads take no lock. Routes are given to the
//! hypervisor only when a vector becomes deliverable with a message that it does not have yet, because each costs a
//! system call; masking a vector keeps its route.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::capability;
use super::config::{ConfigError, ConfigSpace};
use crate::irq::{MsiAllocator, MsiMessage, MsiVector};

mod table;

pub use table::{Entry, Table, read_pending};

/// Bytes of a table entry.
pub const ENTRY_SIZE: u16 = 16;

/// Most vectors of a function (PCI 3.0 §6.8.2.3: 11 bits, less one).
pub const MAX_VECTORS: u16 = 2048;

/// Message control: MSI-X is on.
pub const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
pub const CONTROL_MASK_ALL: u16 = 1 << 14;
/// Offset of message control in the capability.
pub const CONTROL_OFFSET: u16 = 2;
/// Vector control: masked.
const ENTRY_MASKED: u32 = 1;

/// The MSI-X vectors of a function.
pub struct Msix {
    vectors: Vec<Vector>,
    /// Copy of the table's enable bit for threads that take no lock.
    enabled: AtomicBool,
    registers: Mutex<Registers>,
}

struct Vector {
    line: Arc<dyn MsiVector>,
    /// Not deliverable now: masked in whatever way, or without a route.
    masked: AtomicBool,
    pending: AtomicBool,
}

struct Registers {
    table: Table,
    /// What the hypervisor was last given, by vector.
    routed: Vec<Option<MsiMessage>>,
}

/// State of MSI-X for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    /// Message control: enable and function mask bits.
    pub control: u16,
    pub entries: Vec<MsixEntryState>,
}

/// A table entry and its pending bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixEntryState {
    pub message: MsiMessage,
    pub masked: bool,
    pub pending: bool,
}

impl Msix {
    /// `count` vectors, all masked, MSI-X off.
    ///
    /// # Errors
    /// `count` is 0 or above [`MAX_VECTORS`], or the allocator has none left.
    pub fn new(allocator: &dyn MsiAllocator, count: u16) -> io::Result<Self> {
        if !(1..=MAX_VECTORS).contains(&count) {
            let message = format!("{count} MSI-X vectors; a function has 1 to {MAX_VECTORS}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let lines = allocator.allocate(count)?;
        if lines.len() != usize::from(count) {
            return Err(io::Error::other(
                "the allocator gave another number of MSI vectors",
            ));
        }
        let vector = |line| Vector {
            line,
            masked: AtomicBool::new(true),
            pending: AtomicBool::new(false),
        };
        Ok(Self {
            registers: Mutex::new(Registers {
                table: Table::new(count),
                routed: vec![None; lines.len()],
            }),
            vectors: lines.into_iter().map(vector).collect(),
            enabled: AtomicBool::new(false),
        })
    }

    /// Number of vectors.
    pub fn count(&self) -> u16 {
        u16::try_from(self.vectors.len()).unwrap_or(MAX_VECTORS)
    }

    /// Adds the capability, with table and pending bits at these offsets (multiples of 8) of BAR `bar`; returns its offset.
    ///
    /// # Errors
    /// It does not fit.
    pub fn add_capability(
        &self,
        space: &mut ConfigSpace,
        bar: u8,
        table_offset: u32,
        pba_offset: u32,
    ) -> Result<u16, ConfigError> {
        let [size_low, size_high] = (self.count() - 1).to_le_bytes();
        let [t0, t1, t2, t3] = (table_offset | u32::from(bar)).to_le_bytes();
        let [p0, p1, p2, p3] = (pba_offset | u32::from(bar)).to_le_bytes();
        let body = [size_low, size_high, t0, t1, t2, t3, p0, p1, p2, p3];
        let writable = (CONTROL_ENABLE | CONTROL_MASK_ALL).to_le_bytes();
        space.add_capability(capability::MSIX, &body, &writable)
    }

    /// To be called after every config write: takes over message control from `space` if the access at `offset` may have
    /// changed it. `at` is the capability's offset.
    pub fn config_written(&self, space: &ConfigSpace, at: u16, offset: u16) {
        if offset & !3 != at {
            return;
        }
        let mut bytes = [0; 2];
        space.read(at + CONTROL_OFFSET, &mut bytes);
        let mut registers = self.lock();
        if !registers.table.set_control(u16::from_le_bytes(bytes)) {
            return;
        }
        let enabled = registers.table.enabled();
        self.enabled.store(enabled, Ordering::SeqCst);
        for (index, vector) in self.vectors.iter().enumerate() {
            update(vector, index, &mut registers);
            if !enabled {
                vector.pending.store(false, Ordering::SeqCst);
            }
        }
    }

    /// Whether the guest has turned MSI-X on.
    pub fn enabled(&self) -> bool {
        self.enabled.load(Ordering::SeqCst)
    }

    /// Raises vector `index`, or makes it pending if it is masked. Nothing happens while MSI-X is off or if there is no
    /// such vector. Takes no lock.
    pub fn trigger(&self, index: u16) {
        let Some(vector) = self
            .vectors
            .get(usize::from(index))
            .filter(|_| self.enabled())
        else {
            return;
        };
        if !vector.masked.load(Ordering::SeqCst) {
            return deliver(vector);
        }
        vector.pending.store(true, Ordering::SeqCst);
        // It may have been unmasked between the two: then whoever takes the pending bit delivers.
        if !vector.masked.load(Ordering::SeqCst) {
            deliver_pending(vector);
        }
    }

    /// Reads the table.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        self.lock().table.read(offset, data);
    }

    /// Writes the table. Only aligned accesses of four or eight bytes do anything (PCI 3.0 §6.8.2).
    pub fn table_write(&self, offset: u64, data: &[u8]) {
        let mut registers = self.lock();
        let written = registers.table.write(offset, data);
        let Some(index) = written else { return };
        if let Some(vector) = self.vectors.get(index) {
            update(vector, index, &mut registers);
        }
    }

    /// Reads the pending bits; they are read-only.
    pub fn pba_read(&self, offset: u64, data: &mut [u8]) {
        let pending = |vector: &Vector| vector.pending.load(Ordering::SeqCst);
        read_pending(self.vectors.iter().map(pending), offset, data);
    }

    /// Off, every vector masked and nothing pending, as after power-on.
    pub fn reset(&self) {
        let mut registers = self.lock();
        // The hypervisor keeps the routes, so those are not forgotten.
        registers.table.reset();
        self.enabled.store(false, Ordering::SeqCst);
        for vector in &self.vectors {
            vector.masked.store(true, Ordering::SeqCst);
            vector.pending.store(false, Ordering::SeqCst);
        }
    }

    /// What a snapshot keeps.
    pub fn state(&self) -> MsixState {
        let registers = self.lock();
        let pairs = self.vectors.iter().zip(registers.table.entries());
        let entries = pairs.map(|(vector, entry)| MsixEntryState {
            message: entry.message,
            masked: entry.masked,
            pending: vector.pending.load(Ordering::SeqCst),
        });
        MsixState {
            control: registers.table.control(),
            entries: entries.collect(),
        }
    }

    /// Takes over a saved state; pending vectors that are not masked are raised.
    ///
    /// # Errors
    /// The state has another number of vectors.
    pub fn restore(&self, state: &MsixState) -> io::Result<()> {
        if state.entries.len() != self.vectors.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the saved state has another number of MSI-X vectors; restore with the same devices",
            ));
        }
        let mut registers = self.lock();
        registers.table.set_control(state.control);
        self.enabled
            .store(registers.table.enabled(), Ordering::SeqCst);
        for (index, (vector, saved)) in self.vectors.iter().zip(&state.entries).enumerate() {
            let entry = Entry {
                message: saved.message,
                masked: saved.masked,
            };
            registers.table.set_entry(index, entry);
            vector.pending.store(saved.pending, Ordering::SeqCst);
            update(vector, index, &mut registers);
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes `vector` behave as its registers say; called with them locked.
fn update(vector: &Vector, index: usize, registers: &mut Registers) {
    let message = registers.table.deliverable(index);
    if let (Some(message), Some(routed)) = (message, registers.routed.get_mut(index))
        && *routed != Some(message)
    {
        match vector.line.route(Some(message)) {
            Ok(()) => *routed = Some(message),
            Err(error) => {
                tracing::error!("an MSI-X vector stays masked: cannot route it: {error}");
                vector.masked.store(true, Ordering::SeqCst);
                return;
            }
        }
    }
    vector.masked.store(message.is_none(), Ordering::SeqCst);
    if message.is_some() {
        deliver_pending(vector);
    }
}

fn deliver_pending(vector: &Vector) {
    if vector.pending.swap(false, Ordering::SeqCst) {
        deliver(vector);
    }
}

fn deliver(vector: &Vector) {
    if let Err(error) = vector.line.trigger() {
        tracing::error!("cannot raise an MSI-X vector: {error}");
    }
}

#[cfg(test)]
mod tests;
