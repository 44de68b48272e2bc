//! virtio-rng (virtio 1.3 §5.4): random bytes of the host's kernel for the guest's.
//!
//! One queue, served by the worker that all slow devices share. The bytes go straight into guest RAM.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use virtio_queue::{QueueOwnedT, QueueT};
use vmm_sys_util::epoll::EventSet;

use super::chain::Buffers;
use super::counter::Counter;
use super::segments::Segments;
use super::{
    ActivateError, Activation, ActiveQueue, DeviceId, DeviceState, VirtioDevice, VirtioInterrupt,
};
use crate::GuestRam;
use crate::limiter::{Limiter, Limits};
use crate::worker::{Handler, Interest, Place, SharedWorker};

/// Entries of the queue.
pub const QUEUE_SIZE: u16 = 64;

/// Most bytes that one request gets. A device may fill a buffer in part (virtio 1.3 §5.4.6).
pub const MAX_REQUEST_BYTES: usize = 64 << 10;

/// Requests served before the worker looks after its other devices.
const BUDGET: usize = 8;

/// The device's state in a snapshot. Random bytes are never repeated.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct EntropyState {
    /// The buckets of a restored device begin full.
    #[serde(default)]
    pub limits: Limits,
}

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
    bytes: Counter,
    malformed: Counter,
}

/// A virtio-rng device.
pub struct Entropy {
    worker: Arc<SharedWorker>,
    limits: Limits,
    /// Here while the queue is not served; `None` without limits too.
    limiter: Option<Limiter>,
    place: Option<Place<QueueHandler>>,
    counters: Arc<Counters>,
}

impl Entropy {
    /// A device that is served by `worker`. A request costs an operation, and its bytes.
    ///
    /// # Errors
    /// There are limits, and no descriptor is left for their timer.
    pub fn new(worker: Arc<SharedWorker>, limits: Limits) -> io::Result<Self> {
        let limited = limits != Limits::default();
        let limiter = limited.then(|| Limiter::new(limits, Instant::now()));
        Ok(Self {
            worker,
            limits,
            limiter: limiter.transpose()?,
            place: None,
            counters: Arc::default(),
        })
    }

    /// The device of a snapshot.
    ///
    /// # Errors
    /// See [`new`](Self::new).
    pub fn from_state(state: &EntropyState, worker: Arc<SharedWorker>) -> io::Result<Self> {
        Self::new(worker, state.limits)
    }

    /// What the device has done so far.
    pub fn metrics(&self) -> EntropyMetrics {
        EntropyMetrics {
            bytes: self.counters.bytes.get(),
            malformed: self.counters.malformed.get(),
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
            limiter: self.limiter.take(),
            counters: Arc::clone(&self.counters),
            broken: false,
        })?);
        Ok(())
    }

    fn suspend(&mut self) -> Vec<ActiveQueue> {
        let Some(handler) = self.place.take().and_then(Place::remove) else {
            return Vec::new();
        };
        self.limiter = handler.limiter;
        vec![handler.active]
    }

    fn reset(&mut self) {
        // The driver sets up nothing but the queue, and that went with `suspend`.
    }

    fn state(&self) -> DeviceState {
        DeviceState::Entropy(EntropyState {
            limits: self.limits,
        })
    }
}

/// Serves the queue.
struct QueueHandler {
    active: ActiveQueue,
    memory: GuestRam,
    interrupt: Arc<dyn VirtioInterrupt>,
    buffers: Buffers,
    segments: Segments,
    limiter: Option<Limiter>,
    counters: Arc<Counters>,
    /// The queue cannot be trusted any more; nothing is taken from it until reset.
    broken: bool,
}

/// How it went with the next request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Served,
    /// There is none.
    Nothing,
    /// It waits for tokens, in the avail ring.
    Throttled,
}

/// The queue cannot be trusted any more.
struct Broken(&'static str);

const RINGS: Broken = Broken("its rings are not in guest RAM");

impl QueueHandler {
    /// Serves some requests. True if there are more that may be served at once.
    fn serve(&mut self) -> Result<bool, Broken> {
        let memory = &self.memory;
        self.active
            .queue
            .disable_notification(memory)
            .map_err(|_| RINGS)?;
        let mut served = 0;
        let mut turn = Turn::Served;
        while served < BUDGET && turn == Turn::Served {
            turn = self.serve_one()?;
            served += usize::from(turn == Turn::Served);
        }
        let (memory, queue) = (&self.memory, &mut self.active.queue);
        if served > 0 && queue.needs_notification(memory).map_err(|_| RINGS)? {
            self.interrupt.queue(self.active.index);
        }
        if turn == Turn::Throttled {
            // The limiter's timer brings the worker back here; kicks need not.
            return Ok(false);
        }
        queue.enable_notification(memory).map_err(|_| RINGS)
    }

    /// Serves a request if there is one that may be.
    fn serve_one(&mut self) -> Result<Turn, Broken> {
        let (memory, queue) = (&self.memory, &mut self.active.queue);
        let available = queue
            .avail_idx(memory, Ordering::Acquire)
            .map_err(|_| RINGS)?;
        if available.0 == queue.next_avail() {
            return Ok(Turn::Nothing);
        }
        let mut chains = (queue.iter(memory)).map_err(|_| {
            Broken("its avail ring says that there are more requests than it has room for")
        })?;
        let chain = chains.next().ok_or(RINGS)?;
        let head = chain.head_index();
        let gathered = self.buffers.gather(chain, usize::from(QUEUE_SIZE));
        if gathered.is_ok() && !self.may_serve() {
            // Back into the ring, where a pause or a snapshot leaves it too.
            let queue = &mut self.active.queue;
            queue.set_next_avail(queue.next_avail().wrapping_sub(1));
            return Ok(Turn::Throttled);
        }
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
        Ok(Turn::Served)
    }

    /// Spends the tokens of the request in `self.buffers`; false if there are too few.
    fn may_serve(&mut self) -> bool {
        let Some(limiter) = &mut self.limiter else {
            return true;
        };
        let bytes = self.buffers.writable_bytes().min(MAX_REQUEST_BYTES as u64);
        limiter.take(bytes, Instant::now())
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
        self.counters.bytes.add(u64::from(filled));
        filled
    }

    fn malformed(&self, why: &str) {
        self.counters.malformed.tell(1, |count| {
            tracing::warn!("the guest sent virtio-rng a malformed request, {count} so far: {why}");
        });
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
        interest.add(kick, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        match &self.limiter {
            Some(limiter) => {
                interest.add(limiter.as_raw_fd(), EventSet::IN | EventSet::EDGE_TRIGGERED)
            }
            None => Ok(()),
        }
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
