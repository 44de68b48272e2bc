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

/// Bytes of a table entry.
pub const ENTRY_SIZE: u16 = 16;

/// Most vectors of a function (PCI 3.0 §6.8.2.3: 11 bits, less one).
pub const MAX_VECTORS: u16 = 2048;

/// Message control: MSI-X is on.
const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const CONTROL_MASK_ALL: u16 = 1 << 14;
/// Offset of message control in the capability.
const CONTROL_OFFSET: u16 = 2;
/// Vector control: masked.
const ENTRY_MASKED: u32 = 1;

/// The MSI-X vectors of a function.
pub struct Msix {
    vectors: Vec<Vector>,
    /// Copy of [`Registers::control`]'s enable bit for threads that take no lock.
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
    control: u16,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Entry {
    message: MsiMessage,
    masked: bool,
    /// What the hypervisor was last given.
    routed: Option<MsiMessage>,
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
        let masked = Entry {
            message: MsiMessage {
                address: 0,
                data: 0,
            },
            masked: true,
            routed: None,
        };
        let vector = |line| Vector {
            line,
            masked: AtomicBool::new(true),
            pending: AtomicBool::new(false),
        };
        Ok(Self {
            registers: Mutex::new(Registers {
                control: 0,
                entries: vec![masked; lines.len()],
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
        let control = u16::from_le_bytes(bytes) & (CONTROL_ENABLE | CONTROL_MASK_ALL);
        let mut registers = self.lock();
        if registers.control == control {
            return;
        }
        registers.control = control;
        let enabled = control & CONTROL_ENABLE != 0;
        self.enabled.store(enabled, Ordering::SeqCst);
        for (vector, entry) in self.vectors.iter().zip(&mut registers.entries) {
            update(vector, entry, control);
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
        data.fill(0xFF);
        let Some((index, within)) = locate(offset) else {
            return;
        };
        let registers = self.lock();
        let Some(entry) = registers.entries.get(index) else {
            return;
        };
        let bytes = entry_bytes(entry);
        if let Some(source) = bytes.get(within..).and_then(|rest| rest.get(..data.len())) {
            data.copy_from_slice(source);
        }
    }

    /// Writes the table. Only aligned accesses of four or eight bytes do anything (PCI 3.0 §6.8.2).
    pub fn table_write(&self, offset: u64, data: &[u8]) {
        let Some((index, within)) = locate(offset) else {
            return;
        };
        let aligned = matches!(data.len(), 4 | 8) && within % data.len() == 0;
        let mut registers = self.lock();
        let control = registers.control;
        let vector = self.vectors.get(index);
        let entry = registers.entries.get_mut(index);
        let (Some(vector), Some(entry), true) = (vector, entry, aligned) else {
            return;
        };
        let mut bytes = entry_bytes(entry);
        let Some(target) = bytes.get_mut(within..within + data.len()) else {
            return;
        };
        target.copy_from_slice(data);
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
        entry.message = MsiMessage {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            data: u32::from_le_bytes([i, j, k, l]),
        };
        entry.masked = u32::from_le_bytes([m, n, o, p]) & ENTRY_MASKED != 0;
        update(vector, entry, control);
    }

    /// Reads the pending bits; they are read-only.
    pub fn pba_read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xFF);
        let Ok(from) = usize::try_from(offset) else {
            return;
        };
        let bits: Vec<u8> = self
            .vectors
            .chunks(64)
            .flat_map(|chunk| {
                let pending =
                    |(n, v): (u32, &Vector)| u64::from(v.pending.load(Ordering::SeqCst)) << n;
                let word: u64 = (0..).zip(chunk).map(pending).sum();
                word.to_le_bytes()
            })
            .collect();
        let source = bits.get(from..).and_then(|rest| rest.get(..data.len()));
        if let Some(source) = source {
            data.copy_from_slice(source);
        }
    }

    /// Off, every vector masked and nothing pending, as after power-on.
    pub fn reset(&self) {
        let mut registers = self.lock();
        registers.control = 0;
        self.enabled.store(false, Ordering::SeqCst);
        for (vector, entry) in self.vectors.iter().zip(&mut registers.entries) {
            // The hypervisor keeps the route, so that is not forgotten.
            entry.message = MsiMessage {
                address: 0,
                data: 0,
            };
            entry.masked = true;
            vector.masked.store(true, Ordering::SeqCst);
            vector.pending.store(false, Ordering::SeqCst);
        }
    }

    /// What a snapshot keeps.
    pub fn state(&self) -> MsixState {
        let registers = self.lock();
        let pairs = self.vectors.iter().zip(&registers.entries);
        let entries = pairs.map(|(vector, entry)| MsixEntryState {
            message: entry.message,
            masked: entry.masked,
            pending: vector.pending.load(Ordering::SeqCst),
        });
        MsixState {
            control: registers.control,
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
        registers.control = state.control & (CONTROL_ENABLE | CONTROL_MASK_ALL);
        let control = registers.control;
        self.enabled
            .store(control & CONTROL_ENABLE != 0, Ordering::SeqCst);
        let places = self.vectors.iter().zip(&mut registers.entries);
        for ((vector, entry), saved) in places.zip(&state.entries) {
            entry.message = saved.message;
            entry.masked = saved.masked;
            vector.pending.store(saved.pending, Ordering::SeqCst);
            update(vector, entry, control);
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
fn update(vector: &Vector, entry: &mut Entry, control: u16) {
    let wanted = control & (CONTROL_ENABLE | CONTROL_MASK_ALL) == CONTROL_ENABLE && !entry.masked;
    if wanted && entry.routed != Some(entry.message) {
        match vector.line.route(Some(entry.message)) {
            Ok(()) => entry.routed = Some(entry.message),
            Err(error) => {
                tracing::error!("an MSI-X vector stays masked: cannot route it: {error}");
                vector.masked.store(true, Ordering::SeqCst);
                return;
            }
        }
    }
    vector.masked.store(!wanted, Ordering::SeqCst);
    if wanted {
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

/// Index of the entry at `offset` of the table, and the place in it.
fn locate(offset: u64) -> Option<(usize, usize)> {
    let offset = usize::try_from(offset).ok()?;
    let size = usize::from(ENTRY_SIZE);
    Some((offset / size, offset % size))
}

fn entry_bytes(entry: &Entry) -> [u8; ENTRY_SIZE as usize] {
    let [a, b, c, d, e, f, g, h] = entry.message.address.to_le_bytes();
    let [i, j, k, l] = entry.message.data.to_le_bytes();
    let [m, n, o, p] = u32::from(entry.masked).to_le_bytes();
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

#[cfg(test)]
mod tests;
