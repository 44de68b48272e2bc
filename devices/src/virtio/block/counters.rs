//! What a queue has done, for metrics and tests.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counters of one queue. Only its worker writes, anybody may read.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub read_bytes: AtomicU64,
    pub written_bytes: AtomicU64,
    pub completed: AtomicU64,
    pub failed: AtomicU64,
    pub malformed: AtomicU64,
}

/// What the drive has done since it was made; reset and pause do not change it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BlockMetrics {
    /// Bytes that guest reads asked for and got.
    pub read_bytes: u64,
    /// Bytes that guest writes asked for and got.
    pub written_bytes: u64,
    /// Requests that ended well, of all kinds.
    pub completed: u64,
    /// Well-formed requests that the host could not carry out.
    pub failed: u64,
    /// Requests that no driver should send.
    pub malformed: u64,
}

impl Counters {
    /// Adds 1 to a counter and returns its new value.
    pub fn count(counter: &AtomicU64) -> u64 {
        counter.fetch_add(1, Ordering::Relaxed).wrapping_add(1)
    }

    /// Adds this queue's numbers to `sum`.
    pub fn add_to(&self, sum: &mut BlockMetrics) {
        let add = |total: &mut u64, counter: &AtomicU64| {
            *total = total.wrapping_add(counter.load(Ordering::Relaxed));
        };
        add(&mut sum.read_bytes, &self.read_bytes);
        add(&mut sum.written_bytes, &self.written_bytes);
        add(&mut sum.completed, &self.completed);
        add(&mut sum.failed, &self.failed);
        add(&mut sum.malformed, &self.malformed);
    }
}

/// True for the 1st, 2nd, 4th, 8th … event: a hostile guest writes at most 64 lines into the log.
pub(super) fn worth_a_line(count: u64) -> bool {
    count.is_power_of_two()
}
