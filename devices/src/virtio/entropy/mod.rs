//! virtio-rng (virtio 1.3 §5.4): random bytes of the host's kernel for the guest's.
//!
//! One queue, served by the worker that all slow devices share. The bytes go straight into guest RAM.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_queue::{QueueOwnedT, QueueT};
use vmm_sys_util::epoll::EventSet;

use super::chain::Buffers;
use super::segments::Segments;
use super::{
    ActivateError, Activation, ActiveQueue, DeviceId, DeviceState, VirtioDevice, VirtioInterrupt,
};
use crate::GuestRam;
use crate::worker::{Handler, Interest, Place, SharedWorker};

/// Entries of the queue.
pub const QUEUE_SIZE: u16 = 64;

/// Most bytes that one request gets. A device may fill a buffer in part (virtio 1.3 §5.4.6).
pub const MAX_REQUEST_BYTES: usize = 64 << 10;

/// Requests served before the worker looks after its other devices.
const BUDGET: usize = 8;

/// The device's state in a snapshot: it has none of its own. Random bytes are never repeated.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct EntropyState {}

/// What the device has done since it was made.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct EntropyMetrics {
    /// Random bytes given to the guest.
    pub bytes: u64,
    /// Requests that no driver should send.
    pub malformed: u64,
}

#[derive(Default)]
struct Counters {
    bytes: AtomicU64,
    malformed: AtomicU64,
}

/// A virtio-rng device.
pub struct Entropy {
    worker: Arc<SharedWorker>,
    place: Option<Place<QueueHandler>>,
    counters: Arc<Counters>,
}

impl Entropy {
    /// A device that is served by `worker`.
    pub fn new(worker: Arc<SharedWorker>) -> Self {
        Self {
            worker,
            place: None,
            counters: Arc::default(),
        }
    }

    /// The device of a snapshot.
    pub fn from_state(_state: &EntropyState, worker: Arc<SharedWorker>) -> Self {
        Self::new(worker)
    }

    /// What the device has done so far.
    pub fn metrics(&self) -> EntropyMetrics {
        EntropyMetrics {
            bytes: self.counters.bytes.load(Ordering::Relaxed),
            malformed: self.counters.malformed.load(Ordering::Relaxed),
        }
    }
}

impl VirtioDevice for Entropy {
    fn id(&self) -> DeviceId {
        DeviceId::Entropy
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let got = activation.queues.len();
        let mut queues = activation.queues.into_iter();
        let active = queues
            .next()
            .ok_or(ActivateError::MissingQueue { got, missing: 0 })?;
        self.place = Some(self.worker.add(QueueHandler {
            active,
            memory: activation.memory,
            interrupt: activation.interrupt,
            buffers: Buffers::default(),
            segments: Segments::default(),
            counters: Arc::clone(&self.counters),
            broken: false,
        })?);
        Ok(())
    }

    fn suspend(&mut self) -> Vec<ActiveQueue> {
        let handler = self.place.take().and_then(Place::remove);
        handler.map(|handler| handler.active).into_iter().collect()
    }

    fn reset(&mut self) {
        // The driver sets up nothing but the queue, and that went with `suspend`.
    }

    fn state(&self) -> DeviceState {
        DeviceState::Entropy(EntropyState {})
    }
}

/// Serves the queue.
struct QueueHandler {
    active: ActiveQueue,
    memory: GuestRam,
    interrupt: Arc<dyn VirtioInterrupt>,
    buffers: Buffers,
    segments: Segments,
    counters: Arc<Counters>,
    /// The queue cannot be trusted any more; nothing is taken from it until reset.
    broken: bool,
}

/// The queue cannot be trusted any more.
struct Broken(&'static str);

const RINGS: Broken = Broken("its rings are not in guest RAM");

impl QueueHandler {
    /// Serves some requests. True if there are more.
    fn serve(&mut self) -> Result<bool, Broken> {
        let memory = &self.memory;
        self.active
            .queue
            .disable_notification(memory)
            .map_err(|_| RINGS)?;
        let mut served = 0;
        while served < BUDGET && self.serve_one()? {
            served += 1;
        }
        let (memory, queue) = (&self.memory, &mut self.active.queue);
        if served > 0 && queue.needs_notification(memory).map_err(|_| RINGS)? {
            self.interrupt.queue(self.active.index);
        }
        queue.enable_notification(memory).map_err(|_| RINGS)
    }

    /// Serves a request; false if there is none.
    fn serve_one(&mut self) -> Result<bool, Broken> {
        let (memory, queue) = (&self.memory, &mut self.active.queue);
        let available = queue
            .avail_idx(memory, Ordering::Acquire)
            .map_err(|_| RINGS)?;
        if available.0 == queue.next_avail() {
            return Ok(false);
        }
        let mut chains = (queue.iter(memory)).map_err(|_| {
            Broken("its avail ring says that there are more requests than it has room for")
        })?;
        let chain = chains.next().ok_or(RINGS)?;
        let head = chain.head_index();
        let gathered = self.buffers.gather(chain, usize::from(QUEUE_SIZE));
        let length = match gathered {
            Ok(()) => self.fill(),
            Err(error) => {
                self.malformed(&error.to_string());
                0
            }
        };
        let queue = &mut self.active.queue;
        // A head that the queue does not have cannot be returned.
        let added = queue.add_used(&self.memory, head, length);
        added.map_err(|_| {
            Broken("its avail ring names a descriptor that the queue does not have")
        })?;
        Ok(true)
    }

    /// Fills the buffers of a request with random bytes and returns how many there are.
    fn fill(&mut self) -> u32 {
        if self.buffers.readable_bytes() > 0 || self.buffers.writable_bytes() == 0 {
            self.malformed("it has bytes to read, or none to write");
            return 0;
        }
        self.segments.clear();
        let resolved = self
            .buffers
            .writable_segments(&self.memory, &mut self.segments);
        if resolved.is_err() {
            self.malformed("its buffer is not in guest RAM");
            return 0;
        }
        let filled = randomize(self.segments.remaining());
        self.counters
            .bytes
            .fetch_add(u64::from(filled), Ordering::Relaxed);
        filled
    }

    fn malformed(&self, why: &str) {
        let count = self
            .counters
            .malformed
            .fetch_add(1, Ordering::Relaxed)
            .wrapping_add(1);
        // The 1st, 2nd, 4th, 8th …: the guest cannot fill the log.
        if count.is_power_of_two() {
            tracing::warn!("the guest sent virtio-rng a malformed request, {count} so far: {why}");
        }
    }

    fn again(&self) {
        if let Err(error) = self.active.kick.write(1) {
            tracing::error!("cannot wake the worker of virtio-rng: {error}");
        }
    }
}

/// Writes random bytes to the first [`MAX_REQUEST_BYTES`] of `segments`; returns how many.
fn randomize(segments: &[libc::iovec]) -> u32 {
    let mut left = MAX_REQUEST_BYTES;
    let mut filled = 0_u32;
    for segment in segments {
        let length = segment.iov_len.min(left);
        // SAFETY: the segment is guest RAM that the caller keeps mapped; the guest may change it meanwhile, and nothing
        // here looks at it.
        let count = unsafe { libc::getrandom(segment.iov_base, length, 0) };
        let Some(count) = u32::try_from(count).ok().filter(|&count| count > 0) else {
            // Interrupted by a signal, or the end of what one request gets.
            return filled;
        };
        filled = filled.saturating_add(count);
        left = left.saturating_sub(count as usize);
        if (count as usize) < segment.iov_len {
            return filled;
        }
    }
    filled
}

impl Handler for QueueHandler {
    fn register(&mut self, interest: &Interest<'_>) -> io::Result<()> {
        // A kick from before the handler was there, or before a snapshot, may be lost: look once in any case.
        self.active.kick.write(1)?;
        let kick = self.active.kick.as_raw_fd();
        interest.add(kick, EventSet::IN | EventSet::EDGE_TRIGGERED)
    }

    fn ready(&mut self, _fd: RawFd, _events: EventSet, _interest: &Interest<'_>) {
        if self.broken {
            return;
        }
        match self.serve() {
            Ok(true) => self.again(),
            Ok(false) => {}
            Err(Broken(why)) => {
                self.broken = true;
                tracing::warn!("virtio-rng waits for a reset: {why}");
                self.interrupt.needs_reset();
            }
        }
    }
}

#[cfg(test)]
mod tests;
