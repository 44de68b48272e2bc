//! Interrupts, as a device sees them.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

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

/// A vector that others than the monitor raise, by writes to its event: the host's kernel for a function that is passed
/// through, or the process that a function lives in. While the vector is connected no thread of the monitor has a part in
/// it; while it is not, the event keeps what comes.
pub trait ExternalVector: Send + Sync {
    /// Each write to it raises the interrupt, or makes it pending.
    fn event(&self) -> &EventFd;

    /// Lets the event raise `message` from now on; what is pending is raised at once. Connecting again changes the message.
    ///
    /// # Errors
    /// The hypervisor refused; what comes then stays pending.
    fn connect(&self, message: MsiMessage) -> io::Result<()>;

    /// From now on what comes stays pending.
    ///
    /// # Errors
    /// The hypervisor refused; the vector is then as it was.
    fn disconnect(&self) -> io::Result<()>;

    /// Whether something came that was not raised.
    fn is_pending(&self) -> bool;

    /// Forgets what is pending.
    fn clear(&self);
}

/// Hands out the vectors of a function.
pub trait MsiAllocator: Send + Sync {
    /// Returns `count` unrouted (masked) vectors.
    ///
    /// # Errors
    /// No interrupt numbers are left, or the hypervisor refused.
    fn allocate(&self, count: u16) -> io::Result<Vec<Arc<dyn MsiVector>>>;

    /// Returns `count` vectors for others to raise, not connected.
    ///
    /// # Errors
    /// See [`allocate`](Self::allocate).
    fn allocate_external(&self, count: u16) -> io::Result<Vec<Arc<dyn ExternalVector>>>;
}

/// A level-triggered line that others than the monitor raise (INTx of a function that is passed through): a write to
/// `trigger` raises it, and when the guest has served it (end of interrupt) the line falls and `resample` is written, upon
/// which the other side raises it again if it has to.
pub trait ResampledLine: Send + Sync {
    /// Number of the line: the guest's global system interrupt.
    fn gsi(&self) -> u32;

    /// Connects both events.
    ///
    /// # Errors
    /// The hypervisor refused.
    fn connect(&self, trigger: &EventFd, resample: &EventFd) -> io::Result<()>;

    /// Undoes [`connect`](Self::connect); the line is low afterwards.
    ///
    /// # Errors
    /// There was no such connection.
    fn disconnect(&self, trigger: &EventFd, resample: &EventFd) -> io::Result<()>;
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

/// Forgets what came to an event that another process has as well. A plain read is not for that: the process can make the
/// event one to wait at (`O_NONBLOCK` is of the open file, which both have), and this one would then wait for ever.
pub fn drain(event: &EventFd) {
    let mut count = [0_u8; 8];
    let vector = libc::iovec {
        iov_base: count.as_mut_ptr().cast(),
        iov_len: count.len(),
    };
    // SAFETY: one vector, of memory that is there and that nothing else uses. Of an event the offset says nothing.
    let read = unsafe { libc::preadv2(event.as_raw_fd(), &vector, 1, -1, libc::RWF_NOWAIT) };
    if read < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::WouldBlock {
            tracing::error!("an interrupt may come that was to be forgotten: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_others_made_one_to_wait_at_is_drained_without_waiting() {
        // Without EFD_NONBLOCK, as after the other side's fcntl.
        let event = EventFd::new(0).unwrap();
        drain(&event);
        event.write(3).unwrap();
        drain(&event);
        event.write(4).unwrap();
        assert_eq!(event.read().unwrap(), 4);
    }
}
