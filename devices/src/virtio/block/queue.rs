//! A queue's worker: takes requests from the avail ring, starts them, puts them into the used ring.
//!
//! What a kick costs here: `epoll_wait`, one `io_uring_enter` for all requests found, one eventfd write for the interrupt if
//! the driver wants it; and one more `epoll_wait` where the data was not in the page cache. The kick's eventfd is watched
//! edge-triggered and never read; completions are seen by polling the ring itself, so they need no eventfd.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::EventSet;

use super::QUEUE_SIZE;
use super::backing::Alignment;
use super::bounce::BouncePool;
use super::counters::Counters;
use super::engine::Engine;
use super::flight::{Flight, Next, Transfer, Work};
use super::request::{ID_BYTES, Limits, Refused, Request, Status};
use crate::GuestRam;
use crate::limiter::Limiter;
use crate::virtio::chain::Buffers;
use crate::virtio::segments::Segments;
use crate::virtio::{ActiveQueue, VirtioInterrupt};
use crate::worker::{Handler, Interest};

/// Requests handed to the kernel at once: it starts on the first while the worker looks at the next.
const ROUND: usize = 32;

/// Segment lists kept for later requests, and the longest of them: 64 KiB a queue at most.
const SPARE_LISTS: usize = 64;
const SPARE_SEGMENTS: usize = 64;

/// What a queue's worker is made of.
pub(super) struct Parts {
    /// First, so that it is dropped, and with it every operation over, before the memory that they use.
    pub engine: Box<dyn Engine>,
    pub active: ActiveQueue,
    pub memory: GuestRam,
    pub interrupt: Arc<dyn VirtioInterrupt>,
    pub limits: Limits,
    pub id: [u8; ID_BYTES],
    pub direct: Option<Alignment>,
    pub durable_writes: bool,
    /// Of all queues of the drive together; `None` if nothing is limited. Its lock is held for arithmetic only.
    pub limiter: Option<Arc<Mutex<Limiter>>>,
    pub counters: Arc<Counters>,
}

/// Serves one queue.
pub(super) struct QueueWorker {
    /// Before `flights`, for the same reason as `engine` before `memory`.
    parts: Parts,
    /// Requests in flight by the index of their head: a head can be in flight once.
    flights: Vec<Option<Flight>>,
    in_flight: usize,
    /// Heads of requests that wait for a bounce buffer.
    waiting: VecDeque<u16>,
    bounces: BouncePool,
    buffers: Buffers,
    spare: Vec<Segments>,
    /// Used entries were added since the driver was last told.
    untold: bool,
    /// The next request waits for tokens. It is still in the avail ring.
    throttled: bool,
    /// The queue cannot be trusted any more; nothing is taken from it until reset.
    broken: bool,
}

/// The queue cannot be trusted any more.
struct Broken(&'static str);

impl QueueWorker {
    pub fn new(parts: Parts) -> Self {
        let size = usize::from(parts.active.queue.size());
        Self {
            parts,
            flights: std::iter::repeat_with(|| None).take(size).collect(),
            in_flight: 0,
            waiting: VecDeque::new(),
            bounces: BouncePool::default(),
            buffers: Buffers::default(),
            spare: Vec::new(),
            untold: false,
            throttled: false,
            broken: false,
        }
    }

    /// The queue with its progress, and the engine. Nothing is in flight once [`Handler::finish`] was called.
    pub fn into_parts(self) -> (ActiveQueue, Box<dyn Engine>) {
        (self.parts.active, self.parts.engine)
    }

    /// Serves until there is nothing to do, but no longer than a queue full of requests takes: stopping must not wait for
    /// a guest that never stops.
    fn serve(&mut self) {
        let again = self.rounds().unwrap_or_else(|Broken(why)| {
            self.give_up(why);
            false
        });
        self.tell();
        if again {
            // Back to the epoll loop, and from there to here.
            if let Err(error) = self.parts.active.kick.write(1) {
                tracing::error!("cannot wake the worker of a block queue: {error}");
            }
        }
    }

    /// True if there is more to do at once.
    fn rounds(&mut self) -> Result<bool, Broken> {
        let busy = self.pump()?;
        if self.broken {
            return Ok(busy);
        }
        let rounds = self.flights.len().div_ceil(ROUND);
        for _ in 0..rounds {
            let memory = &self.parts.memory;
            let queue = &mut self.parts.active.queue;
            queue.disable_notification(memory).map_err(|_| RINGS)?;
            self.take(ROUND)?;
            let busy = self.pump()?;
            self.tell();
            if self.throttled {
                // The limiter's timer brings the worker back here; kicks need not.
                return Ok(busy);
            }
            if self.in_flight == self.flights.len() {
                // A completion brings the worker back here; then it looks for more.
                return Ok(busy);
            }
            let queue = &mut self.parts.active.queue;
            if !queue
                .enable_notification(&self.parts.memory)
                .map_err(|_| RINGS)?
            {
                return Ok(busy);
            }
        }
        Ok(true)
    }

    /// Takes up to `most` requests from the avail ring, fewer if one must wait for tokens.
    fn take(&mut self, most: usize) -> Result<(), Broken> {
        self.throttled = false;
        for _ in 0..most {
            let memory = &self.parts.memory;
            let queue = &mut self.parts.active.queue;
            let available = queue
                .avail_idx(memory, Ordering::Acquire)
                .map_err(|_| RINGS)?;
            if available.0 == queue.next_avail() || self.in_flight >= self.flights.len() {
                return Ok(());
            }
            let mut chains = (queue.iter(memory)).map_err(|_| {
                Broken("its avail ring says that there are more requests than it has room for")
            })?;
            let chain = chains.next().ok_or(RINGS)?;
            let head = chain.head_index();
            let Some(flight) = self.flights.get(usize::from(head)) else {
                return Err(Broken(
                    "its avail ring names a descriptor that the queue does not have",
                ));
            };
            if flight.is_some() {
                self.malformed("its first descriptor belongs to a request in flight");
                self.add_used(head, 0)?;
                continue;
            }
            if let Err(error) = self.buffers.gather(chain, usize::from(QUEUE_SIZE)) {
                self.malformed(&error.to_string());
                self.add_used(head, 0)?;
                continue;
            }
            let Some(status_at) = self.buffers.take_status(&self.parts.memory) else {
                self.malformed("it has no byte for the status");
                self.add_used(head, 0)?;
                continue;
            };
            let (memory, limits) = (&self.parts.memory, &self.parts.limits);
            let request = Request::parse(&mut self.buffers, memory, limits);
            if request
                .as_ref()
                .is_ok_and(|request| !self.may_begin(request))
            {
                // Back into the ring, where a pause or a snapshot leaves it too.
                let queue = &mut self.parts.active.queue;
                queue.set_next_avail(queue.next_avail().wrapping_sub(1));
                self.throttled = true;
                return Ok(());
            }
            self.begin(head, status_at, request)?;
        }
        Ok(())
    }

    /// Spends the tokens of a request; false if there are too few. Requests that are refused anyway cost none.
    fn may_begin(&self, request: &Request) -> bool {
        let Some(limiter) = &self.parts.limiter else {
            return true;
        };
        let bytes = match request {
            Request::Read { length, .. } | Request::Write { length, .. } => *length,
            Request::Flush | Request::GetId | Request::Ranges(_) => 0,
        };
        let mut limiter = limiter.lock().unwrap_or_else(PoisonError::into_inner);
        limiter.take(bytes, Instant::now())
    }

    /// Begins a request whose data is in `self.buffers`.
    fn begin(
        &mut self,
        head: u16,
        status_at: GuestAddress,
        request: Result<Request, Refused>,
    ) -> Result<(), Broken> {
        match request.and_then(|request| self.work(request)) {
            Ok(Some(work)) => {
                if let Some(place) = self.flights.get_mut(usize::from(head)) {
                    *place = Some(Flight { status_at, work });
                    self.in_flight += 1;
                }
                self.operate(head)
            }
            Ok(None) => {
                self.parts.counters.completed.add(1);
                self.end(head, status_at, Status::Ok, ID_BYTES as u64)
            }
            Err(Refused { status, malformed }) => {
                if malformed {
                    self.malformed("its header, data or range is invalid");
                }
                self.end(head, status_at, status, 0)
            }
        }
    }

    /// What there is to do for a request whose data is in `self.buffers`; `None` if it is done.
    fn work(&mut self, request: Request) -> Result<Option<Work>, Refused> {
        let memory = &self.parts.memory;
        let (write, offset, length) = match request {
            Request::Read { offset, length } => (false, offset, length),
            Request::Write { offset, length } => (true, offset, length),
            Request::Flush => return Ok(Some(Work::Flush)),
            Request::Ranges(ranges) => return Ok(Some(Work::Ranges(ranges))),
            Request::GetId => {
                self.buffers.write(memory, &self.parts.id)?;
                return Ok(None);
            }
        };
        let mut segments = self.spare.pop().unwrap_or_default();
        if write {
            self.buffers.readable_segments(memory, &mut segments)?;
        } else {
            self.buffers.writable_segments(memory, &mut segments)?;
        }
        Ok(Some(Work::Transfer(Transfer {
            write,
            durable: write && self.parts.durable_writes,
            bounced: Transfer::needs_bounce(&segments, self.parts.direct),
            segments,
            offset,
            left: length,
            total: length,
            bounce: None,
        })))
    }

    /// Starts the next operation of a request in flight, or lets it wait for a bounce buffer.
    fn operate(&mut self, head: u16) -> Result<(), Broken> {
        let Some(flight) = self
            .flights
            .get_mut(usize::from(head))
            .and_then(Option::as_mut)
        else {
            return Ok(());
        };
        if let (true, Work::Transfer(transfer)) = (flight.wants_bounce(), &mut flight.work) {
            match self.bounces.lend() {
                Ok(Some(bounce)) => transfer.bounce = Some(bounce),
                Ok(None) => {
                    self.waiting.push_back(head);
                    return Ok(());
                }
                Err(error) => return self.done(head, Status::IoErr, 0, Some(&error)),
            }
        }
        let engine = &mut self.parts.engine;
        // SAFETY: the segments are in guest RAM, which `self.parts.memory` keeps mapped, or in a bounce buffer that the
        // flight owns; the flight with its list of segments stays in `self.flights` until the completion has been fetched,
        // and both `finish` and the engine's drop wait for that.
        flight.operate(|operation| unsafe { engine.start(head, operation) });
        Ok(())
    }

    /// Submits what was started and puts what is complete into the used ring. True if the kernel is to be asked again.
    fn pump(&mut self) -> Result<bool, Broken> {
        loop {
            let busy = self.parts.engine.submit();
            let mut any = false;
            while let Some(completion) = self.parts.engine.next() {
                any = true;
                let head = completion.tag;
                let Some(flight) = self
                    .flights
                    .get_mut(usize::from(head))
                    .and_then(Option::as_mut)
                else {
                    continue;
                };
                match flight.completed(&completion.result) {
                    Next::More => self.operate(head)?,
                    Next::Done { status, written } => {
                        self.done(head, status, written, completion.result.as_ref().err())?;
                    }
                }
            }
            if !any {
                return Ok(busy);
            }
        }
    }

    /// Ends a request in flight and starts one that waits for its bounce buffer.
    fn done(
        &mut self,
        head: u16,
        status: Status,
        written: u64,
        error: Option<&io::Error>,
    ) -> Result<(), Broken> {
        let Some(flight) = self
            .flights
            .get_mut(usize::from(head))
            .and_then(Option::take)
        else {
            return Ok(());
        };
        self.in_flight = self.in_flight.saturating_sub(1);
        self.account(&flight.work, status, error);
        if let Work::Transfer(mut transfer) = flight.work {
            let bounce = transfer.bounce.take();
            if transfer.segments.capacity() <= SPARE_SEGMENTS && self.spare.len() < SPARE_LISTS {
                transfer.segments.clear();
                self.spare.push(transfer.segments);
            }
            if let Some(bounce) = bounce {
                self.bounces.give_back(bounce);
                if let Some(next) = self.waiting.pop_front() {
                    self.operate(next)?;
                }
            }
        }
        self.end(head, flight.status_at, status, written)
    }

    fn account(&self, work: &Work, status: Status, error: Option<&io::Error>) {
        let counters = &self.parts.counters;
        if status == Status::Ok {
            counters.completed.add(1);
            if let Work::Transfer(transfer) = work {
                let bytes = if transfer.write {
                    &counters.written_bytes
                } else {
                    &counters.read_bytes
                };
                bytes.add(transfer.total);
            }
            return;
        }
        counters.failed.tell(1, |count| {
            let why =
                error.map_or_else(|| "the file is too short".to_owned(), io::Error::to_string);
            tracing::warn!(
                "a request to drive {} failed, {count} so far: {why}",
                self.name()
            );
        });
    }

    /// Writes the status and returns the chain to the driver.
    fn end(
        &mut self,
        head: u16,
        status_at: GuestAddress,
        status: Status,
        written: u64,
    ) -> Result<(), Broken> {
        (self.parts.memory)
            .write_obj(status as u8, status_at)
            .map_err(|_| Broken("a status byte left guest RAM"))?;
        let length = u32::try_from(written.saturating_add(1)).unwrap_or(u32::MAX);
        self.add_used(head, length)
    }

    fn add_used(&mut self, head: u16, length: u32) -> Result<(), Broken> {
        let queue = &mut self.parts.active.queue;
        queue
            .add_used(&self.parts.memory, head, length)
            .map_err(|_| RINGS)?;
        self.untold = true;
        Ok(())
    }

    /// Interrupts the driver if there is news and it wants to know.
    fn tell(&mut self) {
        if !std::mem::take(&mut self.untold) {
            return;
        }
        let active = &mut self.parts.active;
        match active.queue.needs_notification(&self.parts.memory) {
            Ok(true) => self.parts.interrupt.queue(active.index),
            Ok(false) => {}
            Err(_) => self.give_up(RINGS.0),
        }
    }

    fn malformed(&self, why: &str) {
        self.parts.counters.malformed.tell(1, |count| {
            let name = self.name();
            tracing::warn!(
                "the guest sent drive {name} a malformed request, {count} so far: {why}"
            );
        });
    }

    fn give_up(&mut self, why: &str) {
        if !std::mem::replace(&mut self.broken, true) {
            let (name, index) = (self.name(), self.parts.active.index);
            tracing::warn!("queue {index} of drive {name} waits for a reset: {why}");
            self.parts.interrupt.needs_reset();
        }
    }

    fn name(&self) -> String {
        let id = &self.parts.id;
        String::from_utf8_lossy(id)
            .trim_end_matches('\0')
            .to_owned()
    }
}

/// The transport has checked the rings, so this is not seen in practice.
const RINGS: Broken = Broken("its rings are not in guest RAM");

impl Handler for QueueWorker {
    fn register(&mut self, interest: &Interest<'_>) -> io::Result<()> {
        // A kick from before the worker was there, or before a snapshot, may be lost: look once in any case.
        self.parts.active.kick.write(1)?;
        let kick = self.parts.active.kick.as_raw_fd();
        interest.add(kick, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        if let Some(limiter) = &self.parts.limiter {
            let timer = limiter.lock().unwrap_or_else(PoisonError::into_inner);
            interest.add(timer.as_raw_fd(), EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        }
        match self.parts.engine.descriptor() {
            Some(descriptor) => interest.add(descriptor, EventSet::IN),
            None => Ok(()),
        }
    }

    fn ready(&mut self, _fd: RawFd, _events: EventSet, _interest: &Interest<'_>) {
        self.serve();
    }

    fn finish(&mut self) {
        while self.in_flight > 0 {
            self.parts.engine.wait();
            if let Err(Broken(why)) = self.pump() {
                self.give_up(why);
            }
        }
        self.tell();
    }
}
