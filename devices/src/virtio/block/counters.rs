//! What a queue has done, for metrics and tests.

use crate::virtio::counter::Counter;

/// Counters of one queue. Only its worker writes, anybody may read.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub read_bytes: Counter,
    pub written_bytes: Counter,
    pub completed: Counter,
    pub failed: Counter,
    pub malformed: Counter,
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
    /// Adds this queue's numbers to `sum`.
    pub fn add_to(&self, sum: &mut BlockMetrics) {
        let add = |total: &mut u64, counter: &Counter| {
            *total = total.wrapping_add(counter.get());
        };
        add(&mut sum.read_bytes, &self.read_bytes);
        add(&mut sum.written_bytes, &self.written_bytes);
        add(&mut sum.completed, &self.completed);
        add(&mut sum.failed, &self.failed);
        add(&mut sum.malformed, &self.malformed);
    }
}
