//! Doorbells: guest writes that wake a worker thread without the vCPU thread doing anything (KVM: ioeventfd).

use std::io;
use vmm_sys_util::eventfd::EventFd;

/// Connects guest-physical addresses to eventfds.
pub trait Doorbells: Send + Sync {
    /// From now on every guest write of any width to the guest-physical `address` adds 1 to `event` and causes no exit.
    ///
    /// # Errors
    /// The hypervisor refused, for example because the address is taken.
    fn connect(&self, address: u64, event: &EventFd) -> io::Result<()>;

    /// Undoes [`connect`](Self::connect) with the same arguments.
    ///
    /// # Errors
    /// There was no such connection.
    fn disconnect(&self, address: u64, event: &EventFd) -> io::Result<()>;
}
