//! The drives of a machine: they come, change and go while it runs.
//!
//! The guest must let go of a drive itself; when it does, a vCPU thread gets here through the hot-plug controller.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use fief_devices::GuestRam;
use fief_devices::doorbell::Doorbells;
use fief_devices::irq::MsiAllocator;
use fief_devices::limiter::Limits;
use fief_devices::pci::{HotPlug, PciError, PciRoot};
use fief_devices::virtio::VirtioDevice;
use fief_devices::virtio::block::{Block, BlockConfig, BlockError, EngineKind};
use fief_devices::virtio::pci::{Platform, TransportError, VirtioPci};

use super::Plugged;
use super::files::Files;
use crate::config::DriveConfig;

/// Why a drive could not be made, changed or released.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    #[error("cannot open drive {id} at {}: {source}", path.display())]
    Open {
        id: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error("drive {id} at {} cannot be used: {source}", path.display())]
    Block {
        id: String,
        path: PathBuf,
        source: BlockError,
    },
    #[error("the machine has no drive {0} any more")]
    Unknown(String),
    #[error(
        "drive {0} was there before the start, on the bus that stays as it is; only drives that are added to a running \
         machine can be released"
    )]
    Fixed(String),
    #[error(transparent)]
    Pci(#[from] PciError),
    #[error(transparent)]
    Transport(#[from] TransportError),
}

/// What puts a device model behind virtio over PCI.
pub struct Transport {
    pub memory: GuestRam,
    pub vectors: Arc<dyn MsiAllocator>,
    pub doorbells: Arc<dyn Doorbells>,
}

impl Transport {
    /// # Errors
    /// No vectors or descriptors are left.
    pub fn function(&self, model: Box<dyn VirtioDevice>) -> Result<Arc<VirtioPci>, TransportError> {
        let platform = Platform {
            memory: self.memory.clone(),
            interrupts: self.vectors.as_ref(),
            doorbells: Arc::clone(&self.doorbells),
        };
        VirtioPci::new(model, platform)
    }
}

/// A drive on the bus.
#[derive(Clone)]
struct Attached {
    config: DriveConfig,
    place: Place,
    function: Arc<VirtioPci>,
    /// Keeps other machines from the file.
    lock: Option<Arc<File>>,
}

/// Where a drive is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// On the bus that stays as it is.
    Fixed,
    /// In this slot of the hot-plug bus.
    Slot(u8),
}

/// The drives on the bus.
#[derive(Default)]
pub struct Table(Mutex<Vec<Attached>>);

impl Table {
    /// The guest let go of what was in `slot` of the hot-plug bus: gives its id if it was a drive, which is gone then.
    pub fn ejected(&self, slot: u8) -> Option<String> {
        let mut attached = self.lock();
        let place = attached
            .iter()
            .position(|drive| drive.place == Place::Slot(slot));
        place.map(|place| attached.remove(place).config.id)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Attached>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds, changes and releases drives.
pub struct Drives {
    files: Files,
    transport: Transport,
    hot_plug: Arc<HotPlug>,
    table: Arc<Table>,
}

impl Drives {
    /// Those in `table`, which is empty yet; `hot_plug` is for those that come later.
    pub fn new(
        files: &Files,
        transport: Transport,
        hot_plug: Arc<HotPlug>,
        table: Arc<Table>,
    ) -> Self {
        Self {
            files: files.clone(),
            transport,
            hot_plug,
            table,
        }
    }

    pub fn transport(&self) -> &Transport {
        &self.transport
    }

    /// Puts a drive on `bus`, where it stays, before the machine starts.
    ///
    /// # Errors
    /// See [`DriveError`].
    pub fn insert(&self, config: &DriveConfig, bus: &PciRoot) -> Result<(), DriveError> {
        self.attach(config, |function| bus.add(function).map(|_| Place::Fixed))
    }

    /// Adds a drive to the running machine and tells the guest.
    ///
    /// # Errors
    /// See [`DriveError`]; nothing is left behind.
    pub fn add(&self, config: &DriveConfig) -> Result<(), DriveError> {
        self.attach(config, |function| {
            self.hot_plug.add(function).map(Place::Slot)
        })
    }

    fn attach(
        &self,
        config: &DriveConfig,
        plug: impl FnOnce(Arc<VirtioPci>) -> Result<Place, PciError>,
    ) -> Result<(), DriveError> {
        let held = self.lock(config)?;
        let model = block(config, &self.files)?;
        let function = self.transport.function(Box::new(model))?;
        let place = plug(Arc::clone(&function))?;
        // No guest can have ejected it yet: it was not asked.
        self.table.lock().push(Attached {
            config: config.clone(),
            place,
            function,
            lock: held,
        });
        Ok(())
    }

    /// Asks the guest to release a drive. It is gone when the guest says so, or at the next reset.
    ///
    /// # Errors
    /// There is no such drive (any more), or it stays.
    pub fn ask_release(&self, id: &str) -> Result<(), DriveError> {
        match self.find(id)?.place {
            Place::Fixed => Err(DriveError::Fixed(id.to_owned())),
            Place::Slot(slot) if self.hot_plug.ask_release(slot) => Ok(()),
            // The guest let go of it just now.
            Place::Slot(_) => Err(DriveError::Unknown(id.to_owned())),
        }
    }

    /// Puts the file at `path` behind a drive, which may be the one that is there: its size is read again.
    ///
    /// # Errors
    /// See [`DriveError`]; the drive then goes on as it was.
    pub fn replace_file(&self, id: &str, path: &Path) -> Result<(), DriveError> {
        let mut drive = self.find(id)?;
        drive.config.path = path.to_owned();
        let file = open(&drive.config, &self.files)?;
        if !drive.lock.as_deref().is_some_and(|lock| same(lock, &file)) {
            drive.lock = self.lock(&drive.config)?;
        }
        drive.change(|block| block.replace_file(file))?;
        drive.function.config_changed();
        if let Some(place) = self.table.lock().iter_mut().find(|d| d.config.id == id) {
            place.config.path = drive.config.path;
            place.lock = drive.lock;
        }
        Ok(())
    }

    fn lock(&self, drive: &DriveConfig) -> Result<Option<Arc<File>>, DriveError> {
        let lock = self.files.lock_disk(&drive.path, drive.read_only);
        let lock = lock.map_err(|source| DriveError::Open {
            id: drive.id.clone(),
            path: drive.path.clone(),
            source,
        })?;
        Ok(lock.map(Arc::new))
    }

    /// Sets the limits of a drive.
    ///
    /// # Errors
    /// See [`DriveError`].
    pub fn set_limits(&self, id: &str, limits: Limits) -> Result<(), DriveError> {
        self.find(id)?.change(|block| block.set_limits(limits))
    }

    /// What is on the bus, in the order of the guest.
    pub fn status(&self) -> Vec<Plugged> {
        let drives = self.table.lock().clone();
        let status = |drive: Attached| Plugged {
            leaving: match drive.place {
                Place::Fixed => false,
                Place::Slot(slot) => self.hot_plug.is_asked(slot),
            },
            id: drive.config.id,
        };
        drives.into_iter().map(status).collect()
    }

    /// The functions of all drives.
    pub fn functions(&self) -> Vec<Arc<VirtioPci>> {
        let table = self.table.lock();
        table.iter().map(|d| Arc::clone(&d.function)).collect()
    }

    /// A drive. The table is not locked while anything is done with it: an ejection takes its lock under that of the
    /// controller.
    fn find(&self, id: &str) -> Result<Attached, DriveError> {
        let table = self.table.lock();
        let drive = table.iter().find(|drive| drive.config.id == id).cloned();
        drive.ok_or_else(|| DriveError::Unknown(id.to_owned()))
    }
}

impl Attached {
    /// Changes the device model.
    fn change(
        &self,
        change: impl FnOnce(&mut Block) -> Result<(), BlockError>,
    ) -> Result<(), DriveError> {
        let DriveConfig { id, path, .. } = &self.config;
        match self.function.with_model(change) {
            Some(done) => done.map_err(|source| DriveError::Block {
                id: id.clone(),
                path: path.clone(),
                source,
            }),
            None => Err(DriveError::Unknown(id.clone())),
        }
    }
}

/// Whether two descriptors are of one file.
fn same(one: &File, other: &File) -> bool {
    match (one.metadata(), other.metadata()) {
        (Ok(one), Ok(other)) => (one.dev(), one.ino()) == (other.dev(), other.ino()),
        _ => false,
    }
}

fn open(drive: &DriveConfig, files: &Files) -> Result<File, DriveError> {
    files
        .open_disk(&drive.path, drive.read_only, drive.direct)
        .map_err(|source| DriveError::Open {
            id: drive.id.clone(),
            path: drive.path.clone(),
            source,
        })
}

fn block(drive: &DriveConfig, files: &Files) -> Result<Block, DriveError> {
    let file = open(drive, files)?;
    let engine = if drive.io_uring {
        EngineKind::IoUring
    } else {
        EngineKind::Sync
    };
    let config = BlockConfig {
        id: drive.id.clone(),
        read_only: drive.read_only,
        writeback: drive.writeback,
        engine,
        queues: drive.queues,
        limits: drive.limits,
    };
    Block::new(file, config).map_err(|source| DriveError::Block {
        id: drive.id.clone(),
        path: drive.path.clone(),
        source,
    })
}
