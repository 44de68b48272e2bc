//! virtio-vsock (virtio 1.3 §5.10): stream sockets between the guest and unix sockets of the host.
//!
//! The host side speaks as Firecracker's does. The device listens on a unix socket; a host program connects, sends
//! `CONNECT <port>\n` and gets `OK <host port>\n` once the guest has accepted. A guest that connects to port N of the host
//! (context id 2) reaches whoever listens on `<path>_N`.
//!
//! One worker thread serves the three queues and all sockets. Data goes between guest RAM and socket without a copy,
//! except what a host program does not take at once: up to 64 KiB a connection wait in a buffer.

mod connection;
mod counters;
mod credit;
mod handshake;
mod muxer;
mod outbound;
mod packet;
mod table;
mod unix;
mod worker;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::chain::Buffers;
use super::queue::WorkerQueue;
use super::segments::Segments;
use super::{ActivateError, Activation, ActiveQueue, DeviceId, DeviceState, VirtioDevice};
use crate::worker::{ThreadKind, Worker};
use counters::Counters;
pub use counters::VsockMetrics;
pub use credit::BUF_ALLOC;
pub use muxer::MAX_HANDSHAKES;
use muxer::Muxer;
#[cfg(feature = "mock")]
pub use packet::{HEADER_BYTES, HOST_CID, Header, TYPE_STREAM, op};
pub use table::MAX_CONNECTIONS;
use unix::Listener;
pub use unix::connect;
use worker::{ResetRequest, VsockHandler};

/// Entries of the rx, tx and event queues.
pub const QUEUE_SIZES: [u16; 3] = [256, 256, 64];

/// VIRTIO_VSOCK_F_STREAM (virtio 1.3 §5.10.3).
const F_STREAM: u64 = 1 << 0;

/// Longest path of a unix socket: `sun_path` holds 108 bytes with a terminating zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// What is added to the path for a guest's connection: `_` and a port of up to ten digits.
const PORT_SUFFIX_MAX: usize = 11;

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Context ids 0 to 2 are reserved, and so is the last (virtio 1.3 §5.10.4).
    #[error("the guest's context id is {0}; it must be between 3 and {max}", max = u32::MAX - 1)]
    GuestCid(u32),
    /// Where the socket should be is something else.
    #[error(
        "cannot listen for vsock connections at {}: something is there already; remove it if no other machine uses it, \
         or choose another path",
        path.display()
    )]
    Taken { path: PathBuf },
    /// The path leaves no room for a port.
    #[error(
        "the vsock path {} has {length} bytes; give it at most {max}, for a socket's path holds {SOCKET_PATH_MAX} and \
         {PORT_SUFFIX_MAX} of them are for ports",
        path.display(),
        max = SOCKET_PATH_MAX - PORT_SUFFIX_MAX
    )]
    PathLength { path: PathBuf, length: usize },
    /// The socket cannot be made there.
    #[error(
        "cannot listen for vsock connections at {}: {source}; does the directory exist, and may it be written to?",
        path.display()
    )]
    Listen { path: PathBuf, source: io::Error },
    /// Descriptors have run out.
    #[error("cannot make the timer and events of vsock: {0}")]
    Events(#[from] io::Error),
}

/// The device's state in a snapshot. Connections do not survive it: their other ends are not in it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VsockState {
    pub guest_cid: u32,
    /// Where it listens; guest connections to port N go to `<path>_N`.
    pub path: PathBuf,
}

/// How long the device waits for others.
#[derive(Debug, Clone, Copy)]
struct Timeouts {
    /// For the line of a host program.
    handshake: Duration,
    /// For the guest's answer to a connection.
    request: Duration,
    /// For the last step of a close: the guest's RST, or a host program that takes the last data; anew with every byte that
    /// it takes.
    linger: Duration,
}

impl Default for Timeouts {
    /// A person may type the handshake; a guest may be slow.
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(60),
            request: Duration::from_secs(10),
            linger: Duration::from_secs(30),
        }
    }
}

/// A virtio-vsock device.
pub struct Vsock {
    guest_cid: u32,
    path: PathBuf,
    /// While not active; `None` also after a worker could not be started and took it along.
    muxer: Option<Muxer>,
    worker: Option<Worker<VsockHandler>>,
    counters: Arc<Counters>,
    reset_request: Arc<ResetRequest>,
    reset_pending: bool,
}

/// Tells the guest that all its connections are gone; see [`Vsock::transport_resetter`].
#[derive(Debug, Clone)]
pub struct TransportResetter(Arc<ResetRequest>);

impl TransportResetter {
    /// Closes all connections and sends VIRTIO_VSOCK_EVENT_TRANSPORT_RESET (virtio 1.3 §5.10.6.7), at once or when the device
    /// is next served.
    pub fn reset(&self) {
        self.0.ask();
    }
}

impl Vsock {
    /// A device for the guest with context id `guest_cid` that listens at `path`; guest connections to port N go to
    /// `<path>_N`. The socket is removed when the device is dropped.
    ///
    /// # Errors
    /// See [`VsockError`]. Nothing that is at the path already is touched or followed.
    pub fn new(guest_cid: u32, path: &Path) -> Result<Self, VsockError> {
        check(guest_cid, path)?;
        let listener = Listener::bind(path)?;
        Self::build(guest_cid, path, listener, Timeouts::default())
    }

    /// As [`new`](Self::new), with a socket that is bound already (for a jail that cannot make its own) and that somebody
    /// else removes.
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn with_listener(
        guest_cid: u32,
        path: &Path,
        listener: UnixListener,
    ) -> Result<Self, VsockError> {
        check(guest_cid, path)?;
        let listener = Listener::adopt(listener)?;
        Self::build(guest_cid, path, listener, Timeouts::default())
    }

    /// The device of a snapshot, listening at its path. The guest is told of a transport reset as soon as it runs, for its
    /// connections are gone.
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn from_state(state: &VsockState) -> Result<Self, VsockError> {
        let mut device = Self::new(state.guest_cid, &state.path)?;
        device.reset_pending = true;
        Ok(device)
    }

    /// As [`from_state`](Self::from_state), with a socket that is bound already.
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn from_state_with_listener(
        state: &VsockState,
        listener: UnixListener,
    ) -> Result<Self, VsockError> {
        let mut device = Self::with_listener(state.guest_cid, &state.path, listener)?;
        device.reset_pending = true;
        Ok(device)
    }

    fn build(
        guest_cid: u32,
        path: &Path,
        listener: Listener,
        timeouts: Timeouts,
    ) -> Result<Self, VsockError> {
        let counters = Arc::<Counters>::default();
        let muxer = Muxer::new(
            u64::from(guest_cid),
            path,
            listener,
            timeouts,
            Arc::clone(&counters),
        )?;
        Ok(Self {
            guest_cid,
            path: path.to_owned(),
            muxer: Some(muxer),
            worker: None,
            counters,
            reset_request: Arc::new(ResetRequest::new()?),
            reset_pending: false,
        })
    }

    /// The means to reset the transport from another thread, while the device serves or while it does not.
    pub fn transport_resetter(&self) -> TransportResetter {
        TransportResetter(Arc::clone(&self.reset_request))
    }

    /// What the device has done so far.
    pub fn metrics(&self) -> VsockMetrics {
        self.counters.metrics()
    }
}

fn check(guest_cid: u32, path: &Path) -> Result<(), VsockError> {
    if !(3..u32::MAX).contains(&guest_cid) {
        return Err(VsockError::GuestCid(guest_cid));
    }
    let length = path.as_os_str().len();
    if length == 0 || length > SOCKET_PATH_MAX - PORT_SUFFIX_MAX {
        let path = path.to_owned();
        return Err(VsockError::PathLength { path, length });
    }
    Ok(())
}

impl VirtioDevice for Vsock {
    fn id(&self) -> DeviceId {
        DeviceId::Vsock
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        F_STREAM
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // virtio 1.3 §5.10.4: guest_cid.
        let config = u64::from(self.guest_cid).to_le_bytes();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = config.iter().skip(offset).chain(std::iter::repeat(&0));
        for (place, byte) in data.iter_mut().zip(bytes) {
            *place = *byte;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let got = activation.queues.len();
        let mut queues = [None, None, None];
        for queue in activation.queues {
            if let Some(place) = queues.get_mut(usize::from(queue.index)) {
                *place = Some(WorkerQueue::new(queue, "vsock"));
            }
        }
        let [rx, tx, event] = queues;
        let missing = |missing| ActivateError::MissingQueue { got, missing };
        let rx = rx.ok_or(missing(0))?;
        let tx = tx.ok_or(missing(1))?;
        let lost = || io::Error::other("its worker ended and took the host's side along");
        let muxer = self.muxer.take().ok_or_else(lost)?;
        let handler = VsockHandler {
            muxer,
            rx,
            tx,
            event,
            memory: activation.memory,
            interrupt: activation.interrupt,
            counters: Arc::clone(&self.counters),
            reset_request: Arc::clone(&self.reset_request),
            reset_pending: self.reset_pending,
            buffers: Buffers::default(),
            segments: Segments::default(),
        };
        self.worker = Some(Worker::spawn(ThreadKind::Vsock, "vsock", handler)?);
        Ok(())
    }

    fn suspend(&mut self) -> Vec<ActiveQueue> {
        let Some(handler) = self.worker.take().and_then(Worker::stop) else {
            return Vec::new();
        };
        self.muxer = Some(handler.muxer);
        self.reset_pending = handler.reset_pending;
        let queues = [Some(handler.rx), Some(handler.tx), handler.event];
        queues
            .into_iter()
            .flatten()
            .map(|queue| queue.active)
            .collect()
    }

    fn reset(&mut self) {
        if let Some(muxer) = &mut self.muxer {
            muxer.reset();
        }
        self.reset_pending = false;
        self.reset_request.withdraw();
    }

    fn state(&self) -> DeviceState {
        DeviceState::Vsock(VsockState {
            guest_cid: self.guest_cid,
            path: self.path.clone(),
        })
    }
}

#[cfg(test)]
mod tests;
