//! Interrupts, as a device sees them.

use std::io;
use std::sync::Arc;

/// A message-signalled interrupt: the write that a PCI function would make (PCI 3.0 §6.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct MsiMessage {
    /// Address of the write; on x86 0xFEE0_0000 and the destination (Intel SDM 3A §11.11.1).
    pub address: u64,
    /// Data of the write; on x86 the vector and the delivery mode (Intel SDM 3A §11.11.2).
    pub data: u32,
}

/// One MSI or MSI-X vector of a function.
pub trait MsiVector: Send + Sync {
    /// Sets where the vector goes; `None` masks it. Called on the control path only (table writes by the guest).
    ///
    /// # Errors
    /// The hypervisor refused the route.
    fn route(&self, message: Option<MsiMessage>) -> io::Result<()>;

    /// Raises the interrupt. Called from worker threads; takes no lock and never blocks.
    ///
    /// # Errors
    /// The eventfd could not be written.
    fn trigger(&self) -> io::Result<()>;
}

/// Hands out the vectors of a function.
pub trait MsiAllocator: Send + Sync {
    /// Returns `count` unrouted (masked) vectors.
    ///
    /// # Errors
    /// No interrupt numbers are left, or the hypervisor refused.
    fn allocate(&self, count: u16) -> io::Result<Vec<Arc<dyn MsiVector>>>;
}

/// A wired interrupt line. The tables say which kind it is.
pub trait InterruptLine: Send + Sync {
    /// Raises one edge of an edge-triggered line (serial port). Never blocks.
    ///
    /// # Errors
    /// The hypervisor refused.
    fn trigger(&self) -> io::Result<()>;

    /// Sets a level-triggered line (ACPI). Never blocks.
    ///
    /// # Errors
    /// The hypervisor refused.
    fn set(&self, active: bool) -> io::Result<()>;
}
