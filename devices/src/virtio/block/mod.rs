//! virtio-blk (virtio 1.3 §5.2): a raw file or a block device as the guest's disk.
//!
//! Each queue has a worker thread ([`queue`]) that owns the queue and an [`engine`] for the file. A request goes
//! chain → [`Buffers`](super::chain::Buffers) → [`request::Request`] → [`flight::Flight`] → operations of the engine →
//! status and used ring. Its data is read and written by the kernel straight in guest RAM.

mod backing;
mod bounce;
mod config_space;
mod counters;
mod engine;
mod flight;
mod queue;
mod request;

use std::fs::File;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

pub use backing::BackingError;
pub use config_space::Geometry;
pub use counters::BlockMetrics;

use backing::Backing;
use config_space::feature;
use counters::Counters;
use engine::{Engine, SyncEngine, UringEngine};
use queue::{Parts, QueueWorker};
use request::{ID_BYTES, Limits};

use super::{
    ActivateError, Activation, ActiveQueue, DeviceId, DeviceState, VirtioDevice, VirtioInterrupt,
};
use crate::GuestRam;
use crate::limiter::{self, Limiter};
use crate::worker::{ThreadKind, Worker};

/// Entries of each queue.
pub const QUEUE_SIZE: u16 = 256;

/// Most request queues of a drive, one for each vCPU of the largest machine.
pub const MAX_QUEUES: u16 = 32;

/// How the file is read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// io_uring; plain system calls, with a warning, where the host has none.
    IoUring,
    /// Plain system calls in the worker thread.
    Sync,
}

/// What a drive is made of besides its file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockConfig {
    /// The drive's name. Its first 20 bytes are the serial number that the guest sees.
    pub id: String,
    pub read_only: bool,
    /// Offer flush. Without it the guest's data is durable when the host feels like it.
    pub writeback: bool,
    pub engine: EngineKind,
    /// Number of request queues, 1 to [`MAX_QUEUES`].
    pub queues: u16,
    /// What all queues together may do. A request costs an operation, and a read or write its bytes.
    pub limits: limiter::Limits,
}

/// Why a drive could not be made, changed or restored.
#[derive(Debug, thiserror::Error)]
pub enum BlockError {
    #[error("{queues} queues were asked for; a drive has 1 to {MAX_QUEUES}")]
    Queues { queues: u16 },
    #[error(transparent)]
    Backing(#[from] BackingError),
    #[error("cannot prepare I/O on the drive's file: {0}")]
    Engine(#[source] io::Error),
    #[error(
        "the snapshot's drive {id} has {expected} sectors, this file has {found}; give the file of the snapshot"
    )]
    Resized {
        id: String,
        expected: u64,
        found: u64,
    },
    #[error(
        "the snapshot's drive {id} wants {expected}-byte blocks, O_DIRECT on this file {found}; open it without"
    )]
    BlockSize {
        id: String,
        expected: u32,
        found: u32,
    },
    #[error(
        "no descriptor for the timer of the drive's rate limits: {0}; raise the limit of open files"
    )]
    Limiter(#[source] io::Error),
    #[error("the drive cannot go on: {0}")]
    Activate(#[from] ActivateError),
}

/// A drive's state in a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct BlockState {
    pub id: String,
    pub read_only: bool,
    pub writeback: bool,
    pub geometry: Geometry,
    /// The buckets of a restored drive begin full.
    #[serde(default)]
    pub limits: limiter::Limits,
}

/// One queue's share of the device.
struct Lane {
    /// Here while the queue is not served; made with the device, before any seccomp filter.
    engine: Option<Box<dyn Engine>>,
    worker: Option<Worker<QueueWorker>>,
    counters: Arc<Counters>,
}

/// What is needed to go on after the file was replaced.
struct Active {
    memory: GuestRam,
    features: u64,
    interrupt: Arc<dyn VirtioInterrupt>,
}

/// A virtio-blk device.
pub struct Block {
    config: BlockConfig,
    backing: Backing,
    geometry: Geometry,
    queue_sizes: Vec<u16>,
    lanes: Vec<Lane>,
    /// Made with the first limit.
    limiter: Option<Arc<Mutex<Limiter>>>,
    active: Option<Active>,
}

impl Block {
    /// A drive on `file`, which is opened for writing unless the drive is read-only, and with O_DIRECT if that is wanted.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn new(file: File, config: BlockConfig) -> Result<Self, BlockError> {
        let queues = config.queues;
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(BlockError::Queues { queues });
        }
        let backing = Backing::new(file, config.read_only)?;
        let geometry = Geometry::new(&backing, config.read_only, config.writeback, queues);
        let lanes = (0..queues)
            .map(|_| {
                Ok(Lane {
                    engine: Some(make_engine(&backing.file, &config)?),
                    worker: None,
                    counters: Arc::default(),
                })
            })
            .collect::<io::Result<_>>()
            .map_err(BlockError::Engine)?;
        Ok(Self {
            queue_sizes: vec![QUEUE_SIZE; usize::from(queues)],
            limiter: make_limiter(config.limits)?,
            config,
            backing,
            geometry,
            lanes,
            active: None,
        })
    }

    /// The drive of a snapshot, on a file with what its file had in it.
    ///
    /// # Errors
    /// The file does not fit the state, or see [`BlockError`].
    pub fn from_state(
        state: BlockState,
        file: File,
        engine: EngineKind,
    ) -> Result<Self, BlockError> {
        let config = BlockConfig {
            id: state.id,
            read_only: state.read_only,
            writeback: state.writeback,
            engine,
            queues: state.geometry.queues,
            limits: state.limits,
        };
        let mut block = Self::new(file, config)?;
        let (found, expected) = (&block.geometry, state.geometry);
        if found.sectors != expected.sectors {
            return Err(BlockError::Resized {
                id: block.config.id.clone(),
                expected: expected.sectors,
                found: found.sectors,
            });
        }
        if found.block_size > expected.block_size {
            return Err(BlockError::BlockSize {
                id: block.config.id.clone(),
                expected: expected.block_size,
                found: found.block_size,
            });
        }
        // What was offered stays offered: a file system that cannot free ranges answers UNSUPP.
        block.geometry = expected;
        Ok(block)
    }

    /// Puts another file behind the drive, of any size. Requests in flight end on the old file; the features stay as they
    /// were offered. The transport is to tell the driver that the configuration changed.
    ///
    /// # Errors
    /// The file cannot be a drive; the old one then stays.
    pub fn replace_file(&mut self, file: File) -> Result<(), BlockError> {
        let backing = Backing::new(file, self.config.read_only)?;
        let queues = self.stop_workers();
        let mut result = self.exchange(&backing.file);
        if result.is_ok() {
            let fresh = Geometry::new(
                &backing,
                self.config.read_only,
                self.config.writeback,
                self.config.queues,
            );
            self.geometry.sectors = fresh.sectors;
            self.geometry.block_size = fresh.block_size;
            self.backing = backing;
        } else if let Err(error) =
            self.exchange(&self.backing.file.try_clone().map_err(BlockError::Engine)?)
        {
            result = Err(error);
        }
        self.go_on(queues)?;
        result.map_err(BlockError::Engine)
    }

    /// Other limits from now on, for requests that wait too. Tokens that were spent stay spent.
    ///
    /// # Errors
    /// No descriptor is left for the timer of the first limit, or no worker can be started again.
    pub fn set_limits(&mut self, limits: limiter::Limits) -> Result<(), BlockError> {
        if let Some(limiter) = &self.limiter {
            let mut limiter = limiter.lock().unwrap_or_else(PoisonError::into_inner);
            limiter.set(limits, Instant::now());
        } else if let Some(limiter) = make_limiter(limits)? {
            let queues = self.stop_workers();
            self.limiter = Some(limiter);
            self.go_on(queues)?;
        }
        self.config.limits = limits;
        Ok(())
    }

    /// Serves `queues` again, if the device is active.
    fn go_on(&mut self, queues: Vec<ActiveQueue>) -> Result<(), ActivateError> {
        let Some(active) = self.active.take() else {
            return Ok(());
        };
        self.activate(Activation {
            memory: active.memory,
            features: active.features,
            queues,
            interrupt: active.interrupt,
        })
    }

    fn exchange(&mut self, file: &File) -> io::Result<()> {
        let mut engines = self
            .lanes
            .iter_mut()
            .filter_map(|lane| lane.engine.as_mut());
        engines.try_for_each(|engine| engine.replace(file))
    }

    /// What the drive has done so far.
    pub fn metrics(&self) -> BlockMetrics {
        let mut sum = BlockMetrics::default();
        for lane in &self.lanes {
            lane.counters.add_to(&mut sum);
        }
        sum
    }

    /// The serial number: the id's first 20 bytes, the rest zero.
    fn serial(&self) -> [u8; ID_BYTES] {
        let mut serial = [0; ID_BYTES];
        for (target, source) in serial.iter_mut().zip(self.config.id.bytes()) {
            *target = source;
        }
        serial
    }

    fn limits(&self, features: u64) -> Limits {
        let accepted = |bit| features & self.geometry.features & bit != 0;
        Limits {
            sectors: self.geometry.sectors,
            read_only: self.config.read_only,
            flush: accepted(feature::FLUSH),
            discard: accepted(feature::DISCARD),
            write_zeroes: accepted(feature::WRITE_ZEROES),
        }
    }

    fn spawn(&mut self, active: ActiveQueue, common: &Active) -> Result<(), ActivateError> {
        let index = active.index;
        let limits = self.limits(common.features);
        let id = self.serial();
        let (file, direct) = (&self.backing.file, self.backing.direct);
        // virtio 1.3 §5.2.5.1: a driver without FLUSH gets a cache that is written through.
        let durable_writes = self.config.writeback && !limits.flush;
        let lane = (self.lanes.get_mut(usize::from(index)))
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let engine = match lane.engine.take() {
            Some(engine) => engine,
            // It was lost with a worker that could not be started. A new ring could not be made in the jail.
            None => Box::new(SyncEngine::new(file)?),
        };
        let worker = QueueWorker::new(Parts {
            engine,
            active,
            memory: common.memory.clone(),
            interrupt: Arc::clone(&common.interrupt),
            limits,
            id,
            direct,
            durable_writes,
            limiter: self.limiter.clone(),
            counters: Arc::clone(&lane.counters),
        });
        let name = format!("blk{index}-{}", self.config.id.replace('\0', "?"));
        lane.worker = Some(Worker::spawn(ThreadKind::Block, &name, worker)?);
        Ok(())
    }

    fn stop_workers(&mut self) -> Vec<ActiveQueue> {
        let mut queues = Vec::new();
        for lane in &mut self.lanes {
            let Some(worker) = lane.worker.take() else {
                continue;
            };
            if let Some(worker) = worker.stop() {
                let (queue, engine) = worker.into_parts();
                lane.engine = Some(engine);
                queues.push(queue);
            }
        }
        queues
    }
}

/// `None` if nothing is limited: a drive without limits pays nothing for them.
fn make_limiter(limits: limiter::Limits) -> Result<Option<Arc<Mutex<Limiter>>>, BlockError> {
    if limits == limiter::Limits::default() {
        return Ok(None);
    }
    let limiter = Limiter::new(limits, Instant::now()).map_err(BlockError::Limiter)?;
    Ok(Some(Arc::new(Mutex::new(limiter))))
}

fn make_engine(file: &File, config: &BlockConfig) -> io::Result<Box<dyn Engine>> {
    if config.engine == EngineKind::IoUring {
        match UringEngine::new(file, QUEUE_SIZE) {
            Ok(engine) => return Ok(Box::new(engine)),
            Err(error) => tracing::warn!(
                "drive {} does without io_uring, its I/O blocks its worker: {error}",
                config.id
            ),
        }
    }
    Ok(Box::new(SyncEngine::new(file)?))
}

impl VirtioDevice for Block {
    fn id(&self) -> DeviceId {
        DeviceId::Block
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.geometry.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.geometry.read(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let common = Active {
            memory: activation.memory,
            features: activation.features,
            interrupt: activation.interrupt,
        };
        if activation.queues.is_empty() {
            return Err(ActivateError::MissingQueue { got: 0, missing: 0 });
        }
        for queue in activation.queues {
            if let Err(error) = self.spawn(queue, &common) {
                self.stop_workers();
                return Err(error);
            }
        }
        self.active = Some(common);
        Ok(())
    }

    fn suspend(&mut self) -> Vec<ActiveQueue> {
        self.active = None;
        self.stop_workers()
    }

    fn reset(&mut self) {
        // The driver sets up nothing but queues, and those went with `suspend`.
    }

    fn state(&self) -> DeviceState {
        DeviceState::Block(BlockState {
            id: self.config.id.clone(),
            read_only: self.config.read_only,
            writeback: self.config.writeback,
            geometry: self.geometry.clone(),
            limits: self.config.limits,
        })
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.stop_workers();
    }
}

#[cfg(test)]
mod tests;
