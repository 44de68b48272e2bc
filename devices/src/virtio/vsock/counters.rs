//! What the device has done, for metrics and tests.

use std::sync::atomic::{AtomicU64, Ordering};

/// Written by the worker, read by anybody.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub to_guest_bytes: AtomicU64,
    pub from_guest_bytes: AtomicU64,
    pub connections: AtomicU64,
    pub refused: AtomicU64,
    pub malformed: AtomicU64,
    /// Events that the worker was woken for.
    #[cfg(test)]
    pub turns: AtomicU64,
}

/// What the device has done since it was made; reset and pause do not change it.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct VsockMetrics {
    /// Bytes of streams that were put into the guest's buffers.
    pub to_guest_bytes: u64,
    /// Bytes of streams that were taken from the guest.
    pub from_guest_bytes: u64,
    /// Connections that were begun, in both directions.
    pub connections: u64,
    /// Connections of either side that were refused by the device: nobody listens, too many, no handshake.
    pub refused: u64,
    /// Descriptor chains and packets that no driver should send.
    pub malformed: u64,
}

impl Counters {
    /// Adds to a counter and returns its new value.
    pub fn add(counter: &AtomicU64, count: u64) -> u64 {
        counter
            .fetch_add(count, Ordering::Relaxed)
            .wrapping_add(count)
    }

    /// Counts something malformed, and logs the 1st, 2nd, 4th, 8th …: the guest cannot fill the log.
    pub fn malformed(&self, why: &dyn std::fmt::Display) {
        let count = Self::add(&self.malformed, 1);
        if count.is_power_of_two() {
            tracing::warn!("the guest sent vsock something malformed, {count} so far: {why}");
        }
    }

    pub fn metrics(&self) -> VsockMetrics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        VsockMetrics {
            to_guest_bytes: get(&self.to_guest_bytes),
            from_guest_bytes: get(&self.from_guest_bytes),
            connections: get(&self.connections),
            refused: get(&self.refused),
            malformed: get(&self.malformed),
        }
    }
}
