//! virtio 1.x devices. A device implements [`VirtioDevice`]; the one transport (virtio over PCI) does the rest.

pub mod balloon;
pub mod block;
mod chain;
mod counter;
pub mod entropy;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
pub mod net;
pub mod pci;
mod queue;
mod segments;
pub mod vsock;

use std::any::Any;
use std::sync::Arc;
use virtio_queue::Queue;
use vmm_sys_util::eventfd::EventFd;

use crate::GuestRam;

/// virtio device ids (virtio 1.3 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(u16)]
pub enum DeviceId {
    Net = 1,
    Block = 2,
    Entropy = 4,
    Balloon = 5,
    Vsock = 19,
}

/// How a device tells the driver that something happened. Cheap to clone through its `Arc`; used by worker threads.
pub trait VirtioInterrupt: Send + Sync {
    /// Used buffers were added to queue `index` and the driver wants to know (the caller has asked
    /// `Queue::needs_notification`).
    fn queue(&self, index: u16);

    /// The device configuration changed (virtio 1.3 §2.3).
    fn config(&self);

    /// The device can no longer trust `queue`: sets DEVICE_NEEDS_RESET (virtio 1.3 §2.1.2) and tells the driver.
    fn needs_reset(&self);
}

/// A queue that the driver has enabled, with its doorbell.
pub struct ActiveQueue {
    /// The queue's number in the device.
    pub index: u16,
    /// Validated by the transport: size, alignment, rings inside RAM. EVENT_IDX is set up if negotiated.
    pub queue: Queue,
    /// Written (by ioeventfd) when the driver kicks the queue.
    pub kick: EventFd,
}

/// What a device gets when the driver sets DRIVER_OK.
pub struct Activation {
    /// Guest RAM.
    pub memory: GuestRam,
    /// Features that both sides accepted, always with VIRTIO_F_VERSION_1.
    pub features: u64,
    /// The enabled queues, in order of their numbers. A driver may leave queues out.
    pub queues: Vec<ActiveQueue>,
    /// The way back to the driver.
    pub interrupt: Arc<dyn VirtioInterrupt>,
}

/// Why a device could not be activated. The transport sets DEVICE_NEEDS_RESET and logs it.
#[derive(Debug, thiserror::Error)]
pub enum ActivateError {
    /// The driver left out a queue that the device cannot work without.
    #[error("the driver enabled {got} of the queues, the device needs queue {missing}")]
    MissingQueue { got: usize, missing: u16 },
    /// A worker thread, eventfd or ring could not be made.
    #[error("cannot start the device's worker: {0}")]
    Worker(#[from] std::io::Error),
}

/// A virtio device model, independent of the transport.
///
/// Its methods run on vCPU threads or the control thread, one at a time (the transport holds a lock for the control
/// path). Queues belong to the device's worker threads from `activate` to `suspend`; nothing else touches them.
pub trait VirtioDevice: Send + Any {
    /// The device's type.
    fn id(&self) -> DeviceId;

    /// Maximum size of each queue, each a power of two; its length is the number of queues.
    fn queue_sizes(&self) -> &[u16];

    /// Features offered, without the transport's own (VERSION_1, EVENT_IDX, INDIRECT_DESC, RING_RESET are added by it).
    fn features(&self) -> u64;

    /// Reads from the device configuration. Bytes beyond its end read as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes to the device configuration; ignored where nothing is writable.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Starts serving the queues (workers are spawned here). Also used to go on after `suspend`.
    ///
    /// # Errors
    /// See [`ActivateError`]; the device is then as it was before.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops the workers, waits for every request in flight to be completed into its used ring, and gives the queues
    /// back with their progress. Does nothing and returns no queues when not active. Reset, pause and snapshot all
    /// start with this. After it the same device can be activated again.
    fn suspend(&mut self) -> Vec<ActiveQueue>;

    /// The driver has reset the device (called after `suspend`): drop whatever the driver had set up.
    fn reset(&mut self);

    /// The device's own state, for snapshots; taken while suspended. Restored through each device's `from_state`.
    fn state(&self) -> DeviceState;
}

/// State of a device model, one variant a device.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum DeviceState {
    Balloon(balloon::BalloonState),
    Block(block::BlockState),
    Entropy(entropy::EntropyState),
    Net(net::NetState),
    Vsock(vsock::VsockState),
    /// Of the devices that the transport's tests make up.
    #[cfg(test)]
    Test(u32),
}
