//! virtio-net (virtio 1.3 §5.1): a network interface whose other end is a tap device of the host.
//!
//! One pair of queues, served by one worker thread ([`worker`]). Frames go between the tap and guest RAM without a copy
//! here; checksums and segmentation are left to who knows how, told by the header before each frame. Which frames a guest
//! may send (its MAC and IP addresses) is for the host's filter to judge, not for the device: it passes on all of them.

mod counters;
mod offload;
mod tap;
mod window;
mod worker;

use std::io;
use std::sync::Arc;
use std::time::Instant;

pub use counters::NetMetrics;
pub use tap::{Tap, TapError};

use counters::Counters;
use offload::feature;
use worker::{NetHandler, Rules, Rx, Tx};

use super::queue::WorkerQueue;
use super::{
    ActivateError, Activation, ActiveQueue, DeviceId, DeviceState, VirtioDevice, VirtioInterrupt,
};
use crate::GuestRam;
use crate::limiter::{Limiter, Limits};
use crate::worker::{ThreadKind, Worker};

/// Entries of the rx and the tx queue.
pub const QUEUE_SIZES: [u16; 2] = [256, 256];

/// VIRTIO_NET_S_LINK_UP (virtio 1.3 §5.1.4).
const LINK_UP: u16 = 1;

/// What an interface is made of besides its tap; also its state in a snapshot, with the features that were offered.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NetConfig {
    /// The interface's name, for the log.
    pub id: String,
    /// The guest's address; without it the driver makes one up.
    pub mac: Option<[u8; 6]>,
    /// Largest packet without the Ethernet header, 68 to 65535 bytes; without it the driver decides.
    pub mtu: Option<u16>,
    /// Limits of what the guest receives.
    pub rx_limits: Limits,
    /// Limits of what the guest sends.
    pub tx_limits: Limits,
}

/// An interface's state in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NetState {
    pub config: NetConfig,
    /// Offered feature bits.
    pub features: u64,
}

/// Why an interface could not be made, changed or restored.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("the MTU is {0}; it must be between 68 and 65535")]
    Mtu(u16),
    #[error("cannot make the timers of the rate limits: {0}")]
    Timer(#[from] io::Error),
    #[error(
        "the snapshot's interface {id} segments UDP, this host's tap devices do not; restore it on Linux 6.2 or newer"
    )]
    Segmentation { id: String },
    #[error("the interface works no longer: {0}")]
    Activate(#[from] ActivateError),
}

/// What is needed to go on after the limits were changed.
struct Active {
    memory: GuestRam,
    features: u64,
    interrupt: Arc<dyn VirtioInterrupt>,
}

/// A virtio-net device.
pub struct Net {
    config: NetConfig,
    tap: Arc<Tap>,
    features: u64,
    /// What the tap was told last (TUN_F_*).
    offloads: libc::c_uint,
    /// Of rx and tx, while not active; `None` also after a worker could not be started and took them along.
    limiters: Option<(Limiter, Limiter)>,
    worker: Option<Worker<NetHandler>>,
    active: Option<Active>,
    counters: Arc<Counters>,
}

impl Net {
    /// An interface at `tap`.
    ///
    /// # Errors
    /// See [`NetError`].
    pub fn new(tap: Tap, config: NetConfig) -> Result<Self, NetError> {
        if let Some(mtu) = config.mtu.filter(|&mtu| mtu < 68) {
            return Err(NetError::Mtu(mtu));
        }
        let mut features = feature::ALWAYS;
        let mut offer = |bits, condition| {
            if condition {
                features |= bits;
            }
        };
        offer(feature::UDP, tap.udp());
        offer(feature::MAC, config.mac.is_some());
        offer(feature::MTU, config.mtu.is_some());
        Ok(Self {
            limiters: Some(make_limiters(&config)?),
            config,
            tap: Arc::new(tap),
            features,
            offloads: 0,
            worker: None,
            active: None,
            counters: Arc::default(),
        })
    }

    /// The interface of a snapshot, at another tap. Its limits begin with full buckets.
    ///
    /// # Errors
    /// The tap can do less than the snapshot's, or see [`NetError`].
    pub fn from_state(state: NetState, tap: Tap) -> Result<Self, NetError> {
        if state.features & feature::UDP != 0 && !tap.udp() {
            return Err(NetError::Segmentation {
                id: state.config.id,
            });
        }
        let mut net = Self::new(tap, state.config)?;
        // What was not offered does not come up under a driver that runs.
        net.features = state.features;
        Ok(net)
    }

    /// Other limits from now on, for a running interface too. What was spent stays spent.
    ///
    /// # Errors
    /// The worker could not be started again.
    pub fn set_limits(&mut self, rx: Limits, tx: Limits) -> Result<(), NetError> {
        let queues = self.stop_worker();
        (self.config.rx_limits, self.config.tx_limits) = (rx, tx);
        if let Some((rx_limiter, tx_limiter)) = &mut self.limiters {
            let now = Instant::now();
            rx_limiter.set(rx, now);
            tx_limiter.set(tx, now);
        }
        if let Some(active) = self.active.take() {
            self.activate(Activation {
                memory: active.memory,
                features: active.features,
                queues,
                interrupt: active.interrupt,
            })?;
        }
        Ok(())
    }

    /// The interface's name.
    pub fn name(&self) -> &str {
        &self.config.id
    }

    /// What the interface has done so far.
    pub fn metrics(&self) -> NetMetrics {
        self.counters.metrics()
    }

    fn stop_worker(&mut self) -> Vec<ActiveQueue> {
        let Some(handler) = self.worker.take().and_then(Worker::stop) else {
            return Vec::new();
        };
        self.limiters = Some((handler.rx.limiter, handler.tx.limiter));
        vec![handler.rx.queue.active, handler.tx.queue.active]
    }

    /// The device configuration, `struct virtio_net_config` up to the MTU.
    fn config_bytes(&self) -> [u8; 12] {
        let fields: [&[u8]; 4] = [
            &self.config.mac.unwrap_or_default(),
            &LINK_UP.to_le_bytes(),
            &1_u16.to_le_bytes(), // max_virtqueue_pairs
            &self.config.mtu.unwrap_or_default().to_le_bytes(),
        ];
        let mut bytes = [0; 12];
        for (target, source) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *target = *source;
        }
        bytes
    }
}

fn make_limiters(config: &NetConfig) -> io::Result<(Limiter, Limiter)> {
    let now = Instant::now();
    let limiter = |limits| Limiter::new(limits, now);
    Ok((limiter(config.rx_limits)?, limiter(config.tx_limits)?))
}

impl VirtioDevice for Net {
    fn id(&self) -> DeviceId {
        DeviceId::Net
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config_bytes();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = config.iter().skip(offset).chain(std::iter::repeat(&0));
        for (place, byte) in data.iter_mut().zip(bytes) {
            *place = *byte;
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let got = activation.queues.len();
        let mut queues = [None, None];
        for queue in activation.queues {
            if let Some(place) = queues.get_mut(usize::from(queue.index)) {
                *place = Some(WorkerQueue::new(queue, &self.config.id));
            }
        }
        let [rx, tx] = queues;
        let missing = |missing| ActivateError::MissingQueue { got, missing };
        let rx = rx.ok_or(missing(0))?;
        let tx = tx.ok_or(missing(1))?;
        let features = activation.features & self.features;
        let offloads = offload::tap_offloads(features);
        if offloads != self.offloads {
            self.tap.set_offloads(offloads)?;
            self.offloads = offloads;
        }
        let (rx_limiter, tx_limiter) = match self.limiters.take() {
            Some(limiters) => limiters,
            None => make_limiters(&self.config)?,
        };
        let active = Active {
            memory: activation.memory.clone(),
            features: activation.features,
            interrupt: Arc::clone(&activation.interrupt),
        };
        let handler = NetHandler {
            name: self.config.id.as_str().into(),
            tap: Arc::clone(&self.tap),
            rx: Rx::new(rx, rx_limiter),
            tx: Tx::new(tx, tx_limiter),
            memory: activation.memory,
            interrupt: activation.interrupt,
            rules: Rules::new(features, self.config.mtu),
            counters: Arc::clone(&self.counters),
            watched: None,
        };
        let name = format!("net-{}", self.config.id.replace('\0', "?"));
        self.worker = Some(Worker::spawn(ThreadKind::Net, &name, handler)?);
        self.active = Some(active);
        Ok(())
    }

    fn suspend(&mut self) -> Vec<ActiveQueue> {
        self.active = None;
        self.stop_worker()
    }

    fn reset(&mut self) {
        // The driver sets up nothing but the queues, and those went with `suspend`. What the tap may give is for the next
        // driver to say.
    }

    fn state(&self) -> DeviceState {
        DeviceState::Net(NetState {
            config: self.config.clone(),
            features: self.features,
        })
    }
}

#[cfg(test)]
mod tests;
