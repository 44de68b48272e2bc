//! What the host's side says to a balloon and hears from it, from any thread.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::pages::PAGE_SHIFT;
use super::statistics::Statistics;
use crate::virtio::VirtioInterrupt;
use crate::virtio::counter::Counter;

/// How far the balloon is, and what the guest last said of its memory.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BalloonReport {
    /// Pages of 4 KiB that the host wants.
    pub target_pages: u32,
    /// Pages of 4 KiB that the guest says it has given.
    pub actual_pages: u32,
    /// Empty until the guest has said something.
    pub statistics: Statistics,
}

/// What the device has done since it was made; reset and pause do not change it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BalloonMetrics {
    /// Bytes of RAM that the balloon took.
    pub inflated_bytes: u64,
    /// Bytes of RAM that the guest reported as free.
    pub reported_bytes: u64,
    /// Ranges of pages that the host would not take back.
    pub refused: u64,
    /// Requests, and page numbers in them, that no driver should send.
    pub malformed: u64,
}

/// Where a report is to go.
pub type Answer = Box<dyn FnOnce(BalloonReport) + Send>;

/// Speaks to a balloon, from any thread and as long as there is one.
#[derive(Clone)]
pub struct BalloonControl(pub(super) Arc<Shared>);

impl BalloonControl {
    /// Asks the guest for `mib` MiB of its memory, fewer or more than before. Its driver gives them as it can, and a guest
    /// without one learns of it when it has one.
    pub fn set_target(&self, mib: u32) {
        let pages = mib.saturating_mul(1 << (20 - PAGE_SHIFT));
        self.0.target.store(pages, Ordering::SeqCst);
        if let Some(interrupt) = &*lock(&self.0.interrupt) {
            interrupt.config();
        }
    }

    /// Asks the guest for statistics every `seconds`, beginning now; 0: no more.
    pub fn set_interval(&self, seconds: u16) {
        self.0.interval.store(seconds, Ordering::SeqCst);
        self.0.wake();
    }

    /// What is known.
    pub fn report(&self) -> BalloonReport {
        self.0.report()
    }

    /// Asks the guest for new statistics and passes them to `answer`, which is called at once if there is nobody to ask, on
    /// the device's worker when the guest answers, and never if it does not. The last call alone counts.
    pub fn refresh(&self, answer: Answer) {
        let mut waiting = lock(&self.0.waiting);
        if !waiting.served {
            drop(waiting);
            return answer(self.0.report());
        }
        waiting.answer = Some(answer);
        drop(waiting);
        self.0.wake();
    }

    /// What the device has done so far.
    pub fn metrics(&self) -> BalloonMetrics {
        self.0.counters.metrics()
    }
}

/// Who waits for new statistics.
#[derive(Default)]
struct Waiting {
    /// A worker serves the statistics queue.
    served: bool,
    answer: Option<Answer>,
}

/// What the device, its worker and its controls share.
pub(super) struct Shared {
    /// Pages that the host wants (num_pages in the configuration).
    pub target: AtomicU32,
    /// Pages that the driver says it has given.
    pub actual: AtomicU32,
    /// Seconds between statistics; 0: only when asked for.
    pub interval: AtomicU16,
    pub counters: Counters,
    statistics: Mutex<Statistics>,
    waiting: Mutex<Waiting>,
    /// The way to the driver, once it has been there.
    interrupt: Mutex<Option<Arc<dyn VirtioInterrupt>>>,
    wake: EventFd,
}

impl Shared {
    pub fn new(target: u32, interval: u16) -> io::Result<Self> {
        Ok(Self {
            target: AtomicU32::new(target),
            actual: AtomicU32::new(0),
            interval: AtomicU16::new(interval),
            counters: Counters::default(),
            statistics: Mutex::default(),
            waiting: Mutex::default(),
            interrupt: Mutex::default(),
            wake: EventFd::new(EFD_NONBLOCK)?,
        })
    }

    /// Becomes readable when the worker is to look at `interval` and at who waits.
    pub fn wake_fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// Makes [`wake_fd`](Self::wake_fd) quiet again.
    pub fn woken(&self) {
        // Nothing to read: nothing to make quiet.
        let _ = self.wake.read();
    }

    fn wake(&self) {
        // A full counter, the only way this fails, wakes as well.
        let _ = self.wake.write(1);
    }

    /// The driver can be told of changes from now on.
    pub fn connect(&self, interrupt: &Arc<dyn VirtioInterrupt>) {
        *lock(&self.interrupt) = Some(Arc::clone(interrupt));
    }

    /// Somebody serves the statistics queue, or nobody any more.
    pub fn serve_statistics(&self, served: bool) {
        let mut waiting = lock(&self.waiting);
        waiting.served = served;
        let left = waiting.answer.take_if(|_| !served);
        drop(waiting);
        if let Some(answer) = left {
            answer(self.report());
        }
    }

    /// Somebody waits for new statistics.
    pub fn is_awaited(&self) -> bool {
        lock(&self.waiting).answer.is_some()
    }

    /// The guest has said something.
    pub fn publish(&self, statistics: Statistics) {
        *lock(&self.statistics) = statistics;
        let answer = lock(&self.waiting).answer.take();
        if let Some(answer) = answer {
            answer(self.report());
        }
    }

    /// The driver is gone, and what it said with it.
    pub fn reset(&self) {
        self.actual.store(0, Ordering::SeqCst);
        *lock(&self.statistics) = Statistics::default();
        *lock(&self.interrupt) = None;
    }

    fn report(&self) -> BalloonReport {
        BalloonReport {
            target_pages: self.target.load(Ordering::SeqCst),
            actual_pages: self.actual.load(Ordering::SeqCst),
            statistics: *lock(&self.statistics),
        }
    }
}

/// Every lock here guards plain values, which a panic elsewhere leaves whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Written by the worker, read by anybody.
#[derive(Default)]
pub(super) struct Counters {
    pub inflated_bytes: Counter,
    pub reported_bytes: Counter,
    pub refused: Counter,
    pub malformed: Counter,
}

impl Counters {
    fn metrics(&self) -> BalloonMetrics {
        BalloonMetrics {
            inflated_bytes: self.inflated_bytes.get(),
            reported_bytes: self.reported_bytes.get(),
            refused: self.refused.get(),
            malformed: self.malformed.get(),
        }
    }
}
