//! What the device has done, for metrics and tests.

use crate::virtio::counter::Counter;
use std::fmt::Display;

/// Written by the worker, read by anybody.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub rx_frames: Counter,
    pub rx_bytes: Counter,
    pub rx_dropped: Counter,
    pub tx_frames: Counter,
    pub tx_bytes: Counter,
    pub tx_dropped: Counter,
    pub malformed: Counter,
    /// Events that the worker was woken for.
    #[cfg(test)]
    pub turns: Counter,
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
    /// Counts something that the log should know of.
    pub fn tell(counter: &Counter, device: &str, what: &str, why: &dyn Display) {
        counter.tell(1, |count| {
            tracing::warn!("{device}: {what}, {count} so far: {why}")
        });
    }

    pub fn metrics(&self) -> NetMetrics {
        NetMetrics {
            rx_frames: self.rx_frames.get(),
            rx_bytes: self.rx_bytes.get(),
            rx_dropped: self.rx_dropped.get(),
            tx_frames: self.tx_frames.get(),
            tx_bytes: self.tx_bytes.get(),
            tx_dropped: self.tx_dropped.get(),
            malformed: self.malformed.get(),
        }
    }
}
