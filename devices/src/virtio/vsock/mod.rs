//! virtio-vsock (virtio 1.3 §5.10): streams between programs on the host and in the guest, over unix sockets on the host
//! as Firecracker has them.
//!
//! A program on the host connects to the device's socket, says `CONNECT <port>\n`, and reads `OK <its port>\n` once the
//! guest has accepted. A program in the guest that connects to port N of the host (context id 2) reaches the one that
//! listens on `<socket>_N`.

mod connection;
mod packet;
mod table;
mod worker;

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vmm_sys_util::timerfd::TimerFd;

use super::chain::Buffers;
use super::segments::Segments;
use super::{ActivateError, Activation, ActiveQueue, DeviceId, DeviceState, VirtioDevice};
use crate::worker::ThreadKind;
use table::Table;

/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 256;

const RX_QUEUE: u16 = 0;
const TX_QUEUE: u16 = 1;
const EVENT_QUEUE: u16 = 2;
const QUEUE_SIZES: [u16; 3] = [QUEUE_SIZE; 3];

/// The first context id that a guest may have; those below are reserved (virtio 1.3 §5.10.4).
pub const FIRST_GUEST_CID: u32 = 3;

/// Longest path of a unix socket, without its terminating zero (unix(7)).
const LONGEST_PATH: usize = 107;

/// Why the device could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// The context id is one of the reserved ones.
    #[error(
        "the guest's context id is {0}; ids below {FIRST_GUEST_CID} are reserved, choose a higher one"
    )]
    Cid(u32),
    /// Something is at the socket's place already.
    #[error("{} exists already: another machine may use it; remove it if none does", .0.display())]
    Exists(PathBuf),
    /// The socket's path does not fit a socket address.
    #[error("the socket path {} is longer than {LONGEST_PATH} bytes; choose a shorter one", .0.display())]
    TooLong(PathBuf),
    /// The socket could not be made.
    #[error("cannot make the socket {}: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
}

/// The device's state in a snapshot. Connections are not part of it: the guest is told that they are gone.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VsockState {
    pub guest_cid: u32,
    pub path: PathBuf,
}

/// A virtio-vsock device.
pub struct Vsock {
    guest_cid: u32,
    path: PathBuf,
    stage: Stage,
    malformed: Arc<AtomicU64>,
    transport_reset: bool,
}

enum Stage {
    Idle(Box<Table>),
    Active(crate::worker::Worker<worker::Worker>),
    /// The worker was lost; the device serves nothing any more.
    Lost,
}

impl Vsock {
    /// A device for the guest with context id `guest_cid`, listening on a new socket at `path`.
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn new(guest_cid: u32, path: &Path) -> Result<Self, VsockError> {
        if path.as_os_str().len() > LONGEST_PATH {
            return Err(VsockError::TooLong(path.to_owned()));
        }
        // bind(2) never follows a symbolic link at the end of the path, nor replaces what is there.
        let listener = UnixListener::bind(path).map_err(|source| {
            if source.kind() == io::ErrorKind::AddrInUse {
                VsockError::Exists(path.to_owned())
            } else {
                VsockError::Socket {
                    path: path.to_owned(),
                    source,
                }
            }
        })?;
        Self::with_listener(guest_cid, path, listener)
    }

    /// As [`new`](Self::new), over a socket that is already bound to `path` (a jailed monitor cannot make its own).
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn with_listener(
        guest_cid: u32,
        path: &Path,
        listener: UnixListener,
    ) -> Result<Self, VsockError> {
        if guest_cid < FIRST_GUEST_CID || guest_cid == u32::MAX {
            let _ = std::fs::remove_file(path);
            return Err(VsockError::Cid(guest_cid));
        }
        let table = Table::new(guest_cid, path.to_owned(), listener).map_err(|source| {
            VsockError::Socket {
                path: path.to_owned(),
                source,
            }
        })?;
        Ok(Self {
            guest_cid,
            path: path.to_owned(),
            stage: Stage::Idle(Box::new(table)),
            malformed: Arc::default(),
            transport_reset: false,
        })
    }

    /// The device of a snapshot. Its guest is told that all connections are gone.
    ///
    /// # Errors
    /// See [`VsockError`].
    pub fn from_state(state: &VsockState) -> Result<Self, VsockError> {
        let mut device = Self::new(state.guest_cid, &state.path)?;
        device.transport_reset = true;
        Ok(device)
    }

    /// Packets so far that no driver should send.
    pub fn malformed(&self) -> u64 {
        self.malformed.load(Ordering::Relaxed)
    }
}

impl Drop for Vsock {
    fn drop(&mut self) {
        self.suspend();
        if let Err(error) = std::fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(
                "cannot remove the vsock socket {}: {error}",
                self.path.display()
            );
        }
    }
}

/// Takes queue `index` out of those that the driver has enabled.
fn take(queues: &mut Vec<ActiveQueue>, index: u16) -> Result<ActiveQueue, ActivateError> {
    let got = queues.len();
    let place = queues.iter().position(|queue| queue.index == index);
    let place = place.ok_or(ActivateError::MissingQueue {
        got,
        missing: index,
    })?;
    Ok(queues.swap_remove(place))
}

impl VirtioDevice for Vsock {
    fn id(&self) -> DeviceId {
        DeviceId::Vsock
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        // Without VIRTIO_VSOCK_F_STREAM and _SEQPACKET there are streams only (virtio 1.3 §5.10.3).
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // The only field is the guest's context id, 64 bits (virtio 1.3 §5.10.4).
        let config = u64::from(self.guest_cid).to_le_bytes();
        for (index, byte) in (offset..).zip(data) {
            let value = usize::try_from(index)
                .ok()
                .and_then(|index| config.get(index));
            *byte = value.copied().unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let mut queues = activation.queues;
        let rx = take(&mut queues, RX_QUEUE)?;
        let tx = take(&mut queues, TX_QUEUE)?;
        let event = take(&mut queues, EVENT_QUEUE)?;
        let timer = TimerFd::new().map_err(io::Error::from)?;
        let Stage::Idle(table) = std::mem::replace(&mut self.stage, Stage::Lost) else {
            return Err(
                io::Error::other("the device is active already, or has lost its worker").into(),
            );
        };
        let worker = worker::Worker {
            table: *table,
            rx,
            tx,
            event,
            memory: activation.memory,
            interrupt: activation.interrupt,
            malformed: Arc::clone(&self.malformed),
            transport_reset: self.transport_reset,
            timer,
            timer_runs: false,
            buffers: Buffers::default(),
            segments: Segments::default(),
            scratch: Vec::new(),
            broken: false,
        };
        self.stage = Stage::Active(crate::worker::Worker::spawn(
            ThreadKind::Vsock,
            "vsock",
            worker,
        )?);
        Ok(())
    }

    fn suspend(&mut self) -> Vec<ActiveQueue> {
        let worker = match std::mem::replace(&mut self.stage, Stage::Lost) {
            Stage::Active(worker) => worker.stop(),
            other => {
                self.stage = other;
                return Vec::new();
            }
        };
        let Some(worker) = worker else {
            tracing::error!("the worker of virtio-vsock was lost");
            return Vec::new();
        };
        self.transport_reset = worker.transport_reset;
        self.stage = Stage::Idle(Box::new(worker.table));
        vec![worker.rx, worker.tx, worker.event]
    }

    fn reset(&mut self) {
        if let Stage::Idle(table) = &mut self.stage {
            table.clear();
        }
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
