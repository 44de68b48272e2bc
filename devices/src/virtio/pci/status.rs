//! Device status bits (virtio 1.3 §2.1).

/// The guest has found the device, and knows how to drive it.
pub(super) const ACKNOWLEDGE: u8 = 1 << 0;
pub(super) const DRIVER: u8 = 1 << 1;
/// The driver is ready: the device may use the queues.
pub(super) const DRIVER_OK: u8 = 1 << 2;
/// The features are settled.
pub(super) const FEATURES_OK: u8 = 1 << 3;
/// The device must be reset before it can be used again.
pub(super) const NEEDS_RESET: u8 = 1 << 6;
/// The driver has given up.
pub(super) const FAILED: u8 = 1 << 7;
