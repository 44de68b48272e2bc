//! A queue as the worker uses it.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::GuestRam;
use crate::virtio::chain::{Buffers, ChainError};
use crate::virtio::{ActiveQueue, VirtioInterrupt};

/// The queue cannot be trusted any more.
#[derive(Debug, Clone, Copy)]
pub(super) struct Broken(&'static str);

/// The transport has checked the rings, so this is not seen in practice.
const RINGS: Broken = Broken("its rings are not in guest RAM");

/// VIRTQ_AVAIL_F_NO_INTERRUPT (virtio 1.3 §2.7.6).
const NO_INTERRUPT: u16 = 1;

/// What the avail ring had.
pub(super) enum Taken {
    Nothing,
    /// A chain that could not be followed, and the reason; it is returned already.
    Malformed(String),
    /// A chain with this head.
    Chain(u16),
}

/// The head of a chain, and whether it could be followed to its end.
pub(super) type Gathered = (u16, Result<(), ChainError>);

/// The device's end of a queue.
pub(super) struct WorkerQueue {
    pub active: ActiveQueue,
    /// The device's name, for the log.
    device: Box<str>,
    /// The used index when the driver was last told, or need not be.
    told: u16,
    /// Nothing is taken from it until reset.
    broken: bool,
}

impl WorkerQueue {
    pub fn new(active: ActiveQueue, device: &str) -> Self {
        Self {
            device: device.into(),
            told: active.queue.next_used(),
            active,
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

    /// Takes the next chain, gathers it into `buffers`, and returns it if it is malformed.
    pub fn take(&mut self, memory: &GuestRam, buffers: &mut Buffers) -> Result<Taken, Broken> {
        Ok(match self.next(memory, buffers)? {
            None => Taken::Nothing,
            Some((head, Ok(()))) => Taken::Chain(head),
            Some((head, Err(error))) => {
                self.give_back(memory, head, 0)?;
                Taken::Malformed(error.to_string())
            }
        })
    }

    /// Takes the next chain and gathers it into `buffers`. One that cannot be followed is still to be returned.
    pub fn next(
        &mut self,
        memory: &GuestRam,
        buffers: &mut Buffers,
    ) -> Result<Option<Gathered>, Broken> {
        let queue = &mut self.active.queue;
        let available = queue
            .avail_idx(memory, Ordering::Acquire)
            .map_err(|_| RINGS)?;
        if available.0 == queue.next_avail() {
            return Ok(None);
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
        Ok(Some((head, buffers.gather(chain, limit))))
    }

    /// Undoes the last `count` calls that took a chain, none of which was returned.
    pub fn put_back(&mut self, count: u16) {
        let queue = &mut self.active.queue;
        queue.set_next_avail(queue.next_avail().wrapping_sub(count));
    }

    /// Chains that the driver has offered and not got back.
    pub fn in_hand(&self, memory: &GuestRam) -> Result<u16, Broken> {
        let queue = &self.active.queue;
        let available = queue.avail_idx(memory, Ordering::Acquire);
        Ok((available.map_err(|_| RINGS)?.0).wrapping_sub(queue.next_used()))
    }

    /// Returns a chain with `length` bytes written.
    pub fn give_back(&mut self, memory: &GuestRam, head: u16, length: u32) -> Result<(), Broken> {
        let added = self.active.queue.add_used(memory, head, length);
        added.map_err(|_| RINGS)
    }

    /// Returns chains together: the driver sees all of them or none.
    pub fn give_back_all(
        &mut self,
        memory: &GuestRam,
        chains: &[(u16, u32)],
    ) -> Result<(), Broken> {
        let Some((&(head, length), others)) = chains.split_last() else {
            return Ok(());
        };
        let queue = &mut self.active.queue;
        for &(head, length) in others {
            let next = queue.next_used();
            let place = u64::from(next.checked_rem(queue.size()).unwrap_or(0));
            // virtio 1.3 §2.7.8: flags and index, then entries of 8 bytes. The transport has checked that they are in RAM.
            let at = queue.used_ring().wrapping_add(4 + 8 * place);
            let element = (u64::from(length) << 32 | u64::from(head)).to_le();
            memory
                .write_obj(element, GuestAddress(at))
                .map_err(|_| RINGS)?;
            queue.set_next_used(next.wrapping_add(1));
        }
        self.give_back(memory, head, length)
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
        let used = self.active.queue.next_used();
        let told = std::mem::replace(&mut self.told, used);
        if told == used {
            return;
        }
        match self.wants_interrupt(memory, told) {
            Ok(true) => interrupt.queue(self.active.index),
            Ok(false) => {}
            Err(broken) => self.give_up(broken, interrupt),
        }
    }

    /// Whether the driver wants to know of the used entries from `told` on (virtio 1.3 §2.7.7.2). virtio-queue does not know
    /// of those that [`give_back_all`](Self::give_back_all) adds.
    fn wants_interrupt(&self, memory: &GuestRam, told: u16) -> Result<bool, Broken> {
        // The entries are there before the driver's wish is read.
        fence(Ordering::SeqCst);
        let queue = &self.active.queue;
        let avail = queue.avail_ring();
        let read = |offset: u64| {
            let field = memory.read_obj::<u16>(GuestAddress(avail.wrapping_add(offset)));
            field.map(u16::from_le).map_err(|_| RINGS)
        };
        if !queue.event_idx_enabled() {
            return Ok(read(0)? & NO_INTERRUPT == 0);
        }
        let event = read(4 + 2 * u64::from(queue.size()))?;
        let used = queue.next_used();
        Ok(used.wrapping_sub(event).wrapping_sub(1) < used.wrapping_sub(told))
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
