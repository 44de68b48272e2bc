//! What the device has done, for metrics and tests.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};

/// Written by the worker, read by anybody.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub rx_frames: AtomicU64,
    pub rx_bytes: AtomicU64,
    pub rx_dropped: AtomicU64,
    pub tx_frames: AtomicU64,
    pub tx_bytes: AtomicU64,
    pub tx_dropped: AtomicU64,
    pub malformed: AtomicU64,
    /// Events that the worker was woken for.
    #[cfg(test)]
    pub turns: AtomicU64,
}

/// What the device has done since it was made; reset and pause do not change it. Bytes are those of frames, without the
/// virtio-net header.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct NetMetrics {
    /// To the guest.
    pub rx_frames: u64,
    pub rx_bytes: u64,
    /// Frames that the guest's buffers, or the driver's choice of features, have no room for.
    pub rx_dropped: u64,
    /// From the guest.
    pub tx_frames: u64,
    pub tx_bytes: u64,
    /// Frames that the tap did not take: it is down or gone, or their header is false.
    pub tx_dropped: u64,
    /// Descriptor chains that no driver should send.
    pub malformed: u64,
}

impl Counters {
    /// Adds to a counter and returns its new value.
    pub fn add(counter: &AtomicU64, count: u64) -> u64 {
        counter
            .fetch_add(count, Ordering::Relaxed)
            .wrapping_add(count)
    }

    /// Counts something, and logs the 1st, 2nd, 4th, 8th …: the guest cannot fill the log.
    pub fn tell(counter: &AtomicU64, device: &str, what: &str, why: &dyn Display) {
        let count = Self::add(counter, 1);
        if count.is_power_of_two() {
            tracing::warn!("{device}: {what}, {count} so far: {why}");
        }
    }

    pub fn metrics(&self) -> NetMetrics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NetMetrics {
            rx_frames: get(&self.rx_frames),
            rx_bytes: get(&self.rx_bytes),
            rx_dropped: get(&self.rx_dropped),
            tx_frames: get(&self.tx_frames),
            tx_bytes: get(&self.tx_bytes),
            tx_dropped: get(&self.tx_dropped),
            malformed: get(&self.malformed),
        }
    }
}
