//! Serves the queues of a balloon, on the worker of the slow devices.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use vm_memory::GuestAddress;
use vmm_sys_util::epoll::EventSet;

use super::control::Shared;
use super::pages::{PAGE_SHIFT, PAGE_SIZE, Pages};
use super::statistics::Statistics;
use crate::GuestRam;
use crate::ram::ReleasePages;
use crate::timer::Timer;
use crate::virtio::chain::Buffers;
use crate::virtio::queue::{Broken, Taken, WorkerQueue};
use crate::virtio::{ActiveQueue, VirtioInterrupt};
use crate::worker::{Handler, Interest};

/// Most page numbers in a request. Linux and FreeBSD send 256, Windows up to a page full, which are these.
pub(super) const MAX_PFNS: u64 = 1024;

/// Requests of a queue that are served before the worker looks after its other devices. Each can cost [`MAX_PFNS`] calls.
const BUDGET: usize = 2;

/// What a queue is for (virtio 1.3 §5.5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Inflate,
    Deflate,
    Statistics,
    Reporting,
}

/// The worker's side of the device.
pub(super) struct BalloonHandler {
    queues: Vec<(Role, WorkerQueue)>,
    server: Server,
    /// Goes off when new statistics are due; there with the statistics queue.
    timer: Option<Timer>,
}

impl BalloonHandler {
    /// # Errors
    /// The timer cannot be made.
    pub fn new(
        queues: Vec<(Role, ActiveQueue)>,
        memory: GuestRam,
        interrupt: Arc<dyn VirtioInterrupt>,
        release: Arc<dyn ReleasePages>,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        let has_statistics = queues.iter().any(|(role, _)| *role == Role::Statistics);
        let timer = has_statistics.then(Timer::new).transpose()?;
        let queues = queues
            .into_iter()
            .map(|(role, queue)| (role, WorkerQueue::new(queue, "virtio-balloon")));
        Ok(Self {
            queues: queues.collect(),
            server: Server {
                memory,
                interrupt,
                release,
                shared,
                buffers: Buffers::default(),
                pages: Pages::default(),
                held: None,
            },
            timer,
        })
    }

    /// The queues, with nothing of them in hand.
    pub fn into_queues(mut self) -> Vec<ActiveQueue> {
        self.ask_for_statistics();
        self.queues.into_iter().map(|(_, q)| q.active).collect()
    }

    /// Gives the driver its statistics buffer back, which makes it send new ones.
    fn ask_for_statistics(&mut self) {
        let mut queues = self.queues.iter_mut();
        if let Some((_, queue)) = queues.find(|(role, _)| *role == Role::Statistics) {
            self.server.ask_for_statistics(queue);
        }
    }

    /// Sets the timer anew, from now on.
    fn set_timer(&mut self) {
        let seconds = u64::from(self.server.shared.interval.load(Ordering::SeqCst));
        if let Some(timer) = &mut self.timer {
            let next = (seconds > 0).then(|| Instant::now() + Duration::from_secs(seconds));
            timer.set(next);
        }
    }
}

impl Handler for BalloonHandler {
    fn register(&mut self, interest: &Interest<'_>) -> io::Result<()> {
        for (_, queue) in &self.queues {
            // A kick from before the handler was there, or before a snapshot, may be lost: look once in any case.
            queue.again();
            interest.add(queue.kick(), EventSet::IN | EventSet::EDGE_TRIGGERED)?;
        }
        if let Some(timer) = &self.timer {
            interest.add(timer.as_raw_fd(), EventSet::IN)?;
            interest.add(self.server.shared.wake_fd(), EventSet::IN)?;
        }
        self.set_timer();
        Ok(())
    }

    fn ready(&mut self, fd: RawFd, _events: EventSet, _interest: &Interest<'_>) {
        let timed_out = self.timer.as_ref().is_some_and(|t| t.as_raw_fd() == fd);
        if timed_out || fd == self.server.shared.wake_fd() {
            self.server.shared.woken();
            self.set_timer();
            if self.server.wants_statistics() {
                self.ask_for_statistics();
            }
            return;
        }
        let mut queues = self.queues.iter_mut();
        if let Some((role, queue)) = queues.find(|(_, queue)| queue.kick() == fd) {
            self.server.serve(*role, queue);
        }
    }
}

/// What serving a queue needs besides the queue.
struct Server {
    memory: GuestRam,
    interrupt: Arc<dyn VirtioInterrupt>,
    release: Arc<dyn ReleasePages>,
    shared: Arc<Shared>,
    buffers: Buffers,
    pages: Pages,
    /// The statistics buffer that the driver has offered: it gets it back when new ones are wanted (virtio 1.3 §5.5.6.3).
    held: Option<u16>,
}

impl Server {
    fn serve(&mut self, role: Role, queue: &mut WorkerQueue) {
        if queue.is_broken() {
            return;
        }
        match self.serve_some(role, queue) {
            Ok(true) => queue.again(),
            Ok(false) => {}
            Err(broken) => queue.give_up(broken, &self.interrupt),
        }
        queue.tell(&self.memory, &self.interrupt);
    }

    /// Serves some requests. True if there are more.
    fn serve_some(&mut self, role: Role, queue: &mut WorkerQueue) -> Result<bool, Broken> {
        queue.disable_kicks(&self.memory)?;
        for _ in 0..BUDGET {
            match queue.take(&self.memory, &mut self.buffers)? {
                Taken::Nothing => break,
                Taken::Malformed(why) => self.malformed(1, &why),
                Taken::Chain(head) => {
                    if let Some(done) = self.serve_one(role, head) {
                        queue.give_back(&self.memory, done, 0)?;
                    }
                }
            }
        }
        queue.enable_kicks(&self.memory)
    }

    /// Serves the request that was gathered; returns the head of one that is to be given back.
    fn serve_one(&mut self, role: Role, head: u16) -> Option<u16> {
        match role {
            Role::Inflate => self.inflate(),
            // Its pages are the guest's again as soon as it touches them.
            Role::Deflate => {}
            Role::Reporting => self.report(),
            Role::Statistics => return self.keep_statistics(head),
        }
        Some(head)
    }

    /// Takes the pages whose numbers the request holds.
    fn inflate(&mut self) {
        let bytes = self.buffers.readable_bytes();
        if self.buffers.writable_bytes() > 0 || !bytes.is_multiple_of(4) || bytes == 0 {
            return self.malformed(1, "its page numbers are no readable array of 32 bits each");
        }
        if bytes / 4 > MAX_PFNS {
            return self.malformed(1, "it has more page numbers than a page holds");
        }
        self.pages.clear();
        let mut strange = 0;
        while self.buffers.readable_bytes() > 0 {
            let Ok(number) = self.buffers.take_readable(&self.memory) else {
                return self.malformed(1, "its page numbers are not in guest RAM");
            };
            let start = GuestAddress(u64::from(u32::from_le_bytes(number)) << PAGE_SHIFT);
            strange += u64::from(!self.pages.add(&self.memory, start, PAGE_SIZE));
        }
        if strange > 0 {
            self.malformed(strange, "it has numbers of pages that are not in guest RAM");
        }
        let taken = self.release_pages();
        self.shared.counters.inflated_bytes.add(taken);
    }

    /// Takes the ranges of free pages that the request describes (virtio 1.3 §5.5.6.7).
    fn report(&mut self) {
        self.pages.clear();
        let is_empty = self.buffers.writable_bytes() == 0;
        let mut strange = u64::from(is_empty || self.buffers.readable_bytes() > 0);
        for (start, length) in self.buffers.writable_pieces() {
            let added = self.pages.add(&self.memory, start, u64::from(length));
            strange += u64::from(!added);
        }
        if strange > 0 {
            // Whoever gets one range wrong is not to be trusted with the others.
            return self.malformed(strange, "its ranges are not whole pages of guest RAM");
        }
        let taken = self.release_pages();
        self.shared.counters.reported_bytes.add(taken);
    }

    /// Gives the pages back to the host; how many bytes it took.
    fn release_pages(&mut self) -> u64 {
        let mut taken = 0_u64;
        for (start, length) in self.pages.merged() {
            match self.release.release(start, length) {
                Ok(()) => taken = taken.saturating_add(length),
                Err(error) => self.shared.counters.refused.tell(1, |count| {
                    tracing::warn!(
                        "the host did not take memory back from the balloon, {count} times so far: {error}"
                    );
                }),
            }
        }
        taken
    }

    /// Reads what the guest says and keeps its buffer; returns one that is to be given back.
    fn keep_statistics(&mut self, head: u16) -> Option<u16> {
        match Statistics::read(&mut self.buffers, &self.memory) {
            Ok(statistics) => self.shared.publish(statistics),
            Err(_) => self.malformed(1, "its statistics are not in guest RAM"),
        }
        // A driver has one buffer; what it offers beyond that comes back at once.
        self.held.replace(head)
    }

    /// Somebody waits for them, or they are due.
    fn wants_statistics(&self) -> bool {
        self.shared.interval.load(Ordering::SeqCst) > 0 || self.shared.is_awaited()
    }

    fn ask_for_statistics(&mut self, queue: &mut WorkerQueue) {
        // Without a buffer the driver has been asked already, or was never there.
        let Some(head) = self.held.take() else {
            return;
        };
        if queue.is_broken() {
            return;
        }
        if let Err(broken) = queue.give_back(&self.memory, head, 0) {
            queue.give_up(broken, &self.interrupt);
        }
        queue.tell(&self.memory, &self.interrupt);
    }

    fn malformed(&self, times: u64, why: &str) {
        self.shared.counters.malformed.tell(times, |count| {
            tracing::warn!(
                "the guest sent virtio-balloon a malformed request, {count} so far: {why}"
            );
        });
    }
}
