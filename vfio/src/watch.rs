//! What a function tells besides its interrupts.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use fief_devices::irq::drain;
use fief_devices::worker::{Handler, Interest};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::remote::{Interrupt, RemoteFunction};

/// Something that happened to a function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The host saw an uncorrectable error of it (PCIe AER).
    Error,
    /// The host wants it back.
    Requested,
    /// The process that it lives in is gone.
    Gone,
}

/// Called at each notice, from the worker's thread.
pub type OnNotice = Box<dyn Fn(Notice) + Send>;

/// Watches one function.
pub struct Watch {
    remote: Arc<dyn RemoteFunction>,
    events: Vec<(Notice, EventFd)>,
    on_notice: OnNotice,
}

impl Watch {
    /// Lets the function tell what it can.
    ///
    /// # Errors
    /// No descriptor is left, or the function refused.
    pub fn new(remote: Arc<dyn RemoteFunction>, on_notice: OnNotice) -> io::Result<Self> {
        let mut events = Vec::new();
        for (kind, notice) in [
            (Interrupt::Error, Notice::Error),
            (Interrupt::Request, Notice::Requested),
        ] {
            if remote.interrupts(kind) > 0 {
                let event = EventFd::new(EFD_NONBLOCK)?;
                remote.enable(kind, &[&event])?;
                events.push((notice, event));
            }
        }
        Ok(Self {
            remote,
            events,
            on_notice,
        })
    }
}

impl Handler for Watch {
    fn register(&mut self, interest: &Interest<'_>) -> io::Result<()> {
        for (_, event) in &self.events {
            interest.add(event.as_raw_fd(), EventSet::IN)?;
        }
        match self.remote.lifeline() {
            // Only its end: what it says is for whoever asked.
            Some(lifeline) => interest.add(lifeline.as_raw_fd(), EventSet::READ_HANG_UP),
            None => Ok(()),
        }
    }

    fn ready(&mut self, fd: RawFd, _events: EventSet, interest: &Interest<'_>) {
        let event = self
            .events
            .iter()
            .find(|(_, event)| event.as_raw_fd() == fd);
        if let Some((notice, event)) = event {
            drain(event);
            return (self.on_notice)(*notice);
        }
        // It stays ready for ever.
        if let Err(error) = interest.remove(fd) {
            tracing::error!("cannot stop watching a device process: {error}");
        }
        (self.on_notice)(Notice::Gone);
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for kind in [Interrupt::Error, Interrupt::Request] {
            if self.remote.interrupts(kind) > 0 {
                // One that is gone tells nothing any more.
                let _ = self.remote.disable(kind);
            }
        }
    }
}
