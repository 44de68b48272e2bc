//! virtio-balloon (virtio 1.3 §5.5): the guest gives memory that it does not need back to the host.
//!
//! Three ways: the host asks for an amount (inflate, deflate), the guest reports free pages by itself (reporting), and it
//! takes back what it gave when it runs out (deflate on OOM). Besides, it says how it uses its memory (statistics). All
//! queues are served by the worker that the slow devices share.

mod control;
mod pages;
mod statistics;
mod worker;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

pub use control::{Answer, BalloonControl, BalloonMetrics, BalloonReport};
pub use statistics::Statistics;

use self::control::Shared;
use self::worker::{BalloonHandler, Role};
use super::{ActivateError, Activation, ActiveQueue, DeviceId, DeviceState, VirtioDevice};
use crate::ram::ReleasePages;
use crate::worker::{Place, SharedWorker};

/// Entries of each queue. Linux reports up to 32 ranges of free pages at a time.
pub const QUEUE_SIZE: u16 = 64;

/// There is a statistics queue (virtio 1.3 §5.5.3).
const F_STATS_VQ: u32 = 1;
/// The driver may deflate the balloon when the guest runs out of memory.
const F_DEFLATE_ON_OOM: u32 = 2;
/// There is a queue for reports of free pages.
const F_PAGE_REPORTING: u32 = 5;

/// Offset and size of `actual` in the configuration, behind `num_pages` (virtio 1.3 §5.5.4).
const ACTUAL: std::ops::Range<usize> = 4..8;

/// What a balloon offers its guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BalloonConfig {
    /// The driver may take pages back by itself rather than let the guest run out of memory.
    pub deflate_on_oom: bool,
    /// The guest says how it uses its memory.
    pub statistics: bool,
    /// The guest reports pages that it does not use.
    pub reporting: bool,
}

impl BalloonConfig {
    fn features(self) -> u64 {
        let bit = |offered, bit: u32| u64::from(offered) << bit;
        bit(self.statistics, F_STATS_VQ)
            | bit(self.deflate_on_oom, F_DEFLATE_ON_OOM)
            | bit(self.reporting, F_PAGE_REPORTING)
    }
}

/// The device's state in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BalloonState {
    pub config: BalloonConfig,
    /// Pages of 4 KiB that the host wants.
    pub target_pages: u32,
    /// Pages of 4 KiB that the driver says it has given.
    pub actual_pages: u32,
    /// Seconds between statistics.
    pub interval: u16,
}

/// A virtio-balloon device.
pub struct Balloon {
    config: BalloonConfig,
    queue_sizes: Vec<u16>,
    release: Arc<dyn ReleasePages>,
    worker: Arc<SharedWorker>,
    place: Option<Place<BalloonHandler>>,
    shared: Arc<Shared>,
}

impl Balloon {
    /// An empty balloon that nobody wants anything of yet. Pages of guest RAM go to `release`; `worker` serves it.
    ///
    /// # Errors
    /// No eventfd could be made.
    pub fn new(
        config: BalloonConfig,
        release: Arc<dyn ReleasePages>,
        worker: Arc<SharedWorker>,
    ) -> io::Result<Self> {
        let state = BalloonState {
            config,
            target_pages: 0,
            actual_pages: 0,
            interval: 0,
        };
        Self::from_state(&state, release, worker)
    }

    /// The device of a snapshot.
    ///
    /// # Errors
    /// No eventfd could be made.
    pub fn from_state(
        state: &BalloonState,
        release: Arc<dyn ReleasePages>,
        worker: Arc<SharedWorker>,
    ) -> io::Result<Self> {
        let shared = Shared::new(state.target_pages, state.interval)?;
        shared.actual.store(state.actual_pages, Ordering::SeqCst);
        let count = roles(state.config.features()).count();
        Ok(Self {
            config: state.config,
            queue_sizes: vec![QUEUE_SIZE; count],
            release,
            worker,
            place: None,
            shared: Arc::new(shared),
        })
    }

    /// A way to speak to the balloon while the transport has it.
    pub fn control(&self) -> BalloonControl {
        BalloonControl(Arc::clone(&self.shared))
    }

    fn target(&self) -> u32 {
        self.shared.target.load(Ordering::SeqCst)
    }

    fn actual(&self) -> u32 {
        self.shared.actual.load(Ordering::SeqCst)
    }

    /// `num_pages` and `actual` (virtio 1.3 §5.5.4).
    fn configuration(&self) -> [u8; 8] {
        let both = u64::from(self.actual()) << 32 | u64::from(self.target());
        both.to_le_bytes()
    }
}

/// The queues of a device with `features`, by number. Linux and QEMU leave no number out where a queue is missing, and so
/// neither does anybody else, whatever virtio 1.3 §5.5.2 says.
fn roles(features: u64) -> impl Iterator<Item = Role> {
    let has = |bit: u32| features & 1 << bit != 0;
    let fixed = [Role::Inflate, Role::Deflate].into_iter();
    let statistics = has(F_STATS_VQ).then_some(Role::Statistics);
    let reporting = has(F_PAGE_REPORTING).then_some(Role::Reporting);
    fixed.chain(statistics).chain(reporting)
}

impl VirtioDevice for Balloon {
    fn id(&self) -> DeviceId {
        DeviceId::Balloon
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.config.features()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let configuration = self.configuration();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = configuration.get(offset..).unwrap_or(&[]);
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(rest) {
            *byte = *value;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let mut configuration = self.configuration();
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let mut places = configuration.iter_mut().enumerate();
        for (value, (at, byte)) in data.iter().zip(places.by_ref().skip(offset)) {
            if ACTUAL.contains(&at) {
                *byte = *value;
            }
        }
        let [_, _, _, _, actual @ ..] = configuration;
        let actual = u32::from_le_bytes(actual);
        self.shared.actual.store(actual, Ordering::SeqCst);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let got = activation.queues.len();
        let all: Vec<Role> = roles(activation.features).collect();
        let role = |queue: &ActiveQueue| all.get(usize::from(queue.index)).copied();
        let queues: Vec<_> = activation
            .queues
            .into_iter()
            .filter_map(|queue| Some((role(&queue)?, queue)))
            .collect();
        let has = |wanted| queues.iter().any(|(role, _)| *role == wanted);
        for (missing, role) in [(0, Role::Inflate), (1, Role::Deflate)] {
            if !has(role) {
                return Err(ActivateError::MissingQueue { got, missing });
            }
        }
        let has_statistics = has(Role::Statistics);
        let handler = BalloonHandler::new(
            queues,
            activation.memory,
            Arc::clone(&activation.interrupt),
            Arc::clone(&self.release),
            Arc::clone(&self.shared),
        )?;
        self.place = Some(self.worker.add(handler)?);
        self.shared.serve_statistics(has_statistics);
        self.shared.connect(&activation.interrupt);
        // A change that the driver was told of just before a snapshot is told again.
        if self.target() != self.actual() {
            activation.interrupt.config();
        }
        Ok(())
    }

    fn suspend(&mut self) -> Vec<ActiveQueue> {
        self.shared.serve_statistics(false);
        let handler = self.place.take().and_then(Place::remove);
        handler.map_or_else(Vec::new, BalloonHandler::into_queues)
    }

    fn reset(&mut self) {
        self.shared.reset();
    }

    fn state(&self) -> DeviceState {
        DeviceState::Balloon(BalloonState {
            config: self.config,
            target_pages: self.target(),
            actual_pages: self.actual(),
            interval: self.shared.interval.load(Ordering::SeqCst),
        })
    }
}

#[cfg(test)]
mod tests;
