//! A queue as the worker uses it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use virtio_queue::{QueueOwnedT, QueueT};

use crate::GuestRam;
use crate::virtio::chain::Buffers;
use crate::virtio::{ActiveQueue, VirtioInterrupt};

/// The queue cannot be trusted any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Broken(&'static str);

/// The transport has checked the rings, so this is not seen in practice.
const RINGS: Broken = Broken("its rings are not in guest RAM");

/// What the avail ring had.
pub(super) enum Taken {
    Nothing,
    /// A chain that could not be followed, and the reason; it is returned already.
    Malformed(String),
    /// A chain with this head.
    Chain(u16),
}

/// The device's end of a queue.
pub(super) struct WorkerQueue {
    pub active: ActiveQueue,
    /// The device's name, for the log.
    device: Box<str>,
    /// Used entries were added since the driver was last told.
    untold: bool,
    /// Nothing is taken from it until reset.
    broken: bool,
}

impl WorkerQueue {
    pub fn new(active: ActiveQueue, device: &str) -> Self {
        Self {
            active,
            device: device.into(),
            untold: false,
            broken: false,
        }
    }

    pub fn kick(&self) -> RawFd {
        self.active.kick.as_raw_fd()
    }

    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// Makes the worker come back to this queue.
    pub fn again(&self) {
        if let Err(error) = self.active.kick.write(1) {
            tracing::error!("cannot wake the worker of {}: {error}", self.device);
        }
    }

    /// Takes the next chain and gathers it into `buffers`.
    pub fn take(&mut self, memory: &GuestRam, buffers: &mut Buffers) -> Result<Taken, Broken> {
        let queue = &mut self.active.queue;
        let available = queue
            .avail_idx(memory, Ordering::Acquire)
            .map_err(|_| RINGS)?;
        if available.0 == queue.next_avail() {
            return Ok(Taken::Nothing);
        }
        let limit = usize::from(queue.size());
        let mut chains = (queue.iter(memory)).map_err(|_| {
            Broken("its avail ring says that there are more requests than it has room for")
        })?;
        let chain = chains.next().ok_or(RINGS)?;
        let head = chain.head_index();
        if usize::from(head) >= limit {
            return Err(Broken(
                "its avail ring names a descriptor that the queue does not have",
            ));
        }
        match buffers.gather(chain, limit) {
            Ok(()) => Ok(Taken::Chain(head)),
            Err(error) => {
                self.give_back(memory, head, 0)?;
                Ok(Taken::Malformed(error.to_string()))
            }
        }
    }

    /// Undoes the last [`take`](Self::take).
    pub fn put_back(&mut self) {
        self.active.queue.go_to_previous_position();
    }

    /// Returns a chain with `length` bytes written.
    pub fn give_back(&mut self, memory: &GuestRam, head: u16, length: u32) -> Result<(), Broken> {
        let added = self.active.queue.add_used(memory, head, length);
        self.untold = true;
        added.map_err(|_| RINGS)
    }

    /// Asks the driver for kicks; true if there are chains already.
    pub fn enable_kicks(&mut self, memory: &GuestRam) -> Result<bool, Broken> {
        let queue = &mut self.active.queue;
        queue.enable_notification(memory).map_err(|_| RINGS)
    }

    /// Tells the driver that kicks are not needed.
    pub fn disable_kicks(&mut self, memory: &GuestRam) -> Result<(), Broken> {
        let queue = &mut self.active.queue;
        queue.disable_notification(memory).map_err(|_| RINGS)
    }

    /// Interrupts the driver if there is news and it wants to know.
    pub fn tell(&mut self, memory: &GuestRam, interrupt: &Arc<dyn VirtioInterrupt>) {
        if !std::mem::take(&mut self.untold) {
            return;
        }
        match self.active.queue.needs_notification(memory) {
            Ok(true) => interrupt.queue(self.active.index),
            Ok(false) => {}
            Err(_) => self.give_up(RINGS, interrupt),
        }
    }

    /// Serves the queue no more.
    pub fn give_up(&mut self, Broken(why): Broken, interrupt: &Arc<dyn VirtioInterrupt>) {
        if !std::mem::replace(&mut self.broken, true) {
            let (index, device) = (self.active.index, &self.device);
            tracing::warn!("queue {index} of {device} waits for a reset: {why}");
            interrupt.needs_reset();
        }
    }
}
