//! What the device has done, for metrics and tests.

use crate::virtio::counter::Counter;

/// Written by the worker, read by anybody.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub to_guest_bytes: Counter,
    pub from_guest_bytes: Counter,
    pub connections: Counter,
    pub refused: Counter,
    pub malformed: Counter,
    /// Events that the worker was woken for.
    #[cfg(test)]
    pub turns: Counter,
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
    /// Counts something malformed.
    pub fn malformed(&self, why: &dyn std::fmt::Display) {
        self.malformed.tell(1, |count| {
            tracing::warn!("the guest sent vsock something malformed, {count} so far: {why}");
        });
    }

    pub fn metrics(&self) -> VsockMetrics {
        VsockMetrics {
            to_guest_bytes: self.to_guest_bytes.get(),
            from_guest_bytes: self.from_guest_bytes.get(),
            connections: self.connections.get(),
            refused: self.refused.get(),
            malformed: self.malformed.get(),
        }
    }
}
