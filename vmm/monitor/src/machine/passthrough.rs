//! The devices of the host, or of other processes, that the machine has: they are there from the start, or come and go.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use fief_devices::irq::MsiAllocator;
use fief_devices::pci::{HotPlug, PciError, PciFunction, PciRoot};
use fief_devices::worker::{Place as Watching, SharedWorker};
use fief_vfio::kernel::{Container, Host, KernelError, KernelFunction};
use fief_vfio::user::{UserError, UserFunction};
use fief_vfio::watch::{Notice, Watch};
use fief_vfio::{
    DmaMemory, DmaSpace, Interrupt, MemorySlots, Passthrough, PassthroughError, Platform, Region,
    RemoteFunction,
};
use kvm_ioctls::VmFd;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use super::Plugged;
use super::control::Control;
use super::files::Files;
use crate::boot::layout;
use crate::config::{PassthroughConfig, Source};
use crate::kvm::groups::KvmGroups;
use crate::kvm::irq::GsiTable;
use crate::kvm::memory::{GuestMemory, Pin};

/// Why a device could not be given to the machine, or released.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    #[error("device {id}: {source}")]
    Host { id: String, source: KernelError },
    #[error("device {id}: cannot connect to {}: {source}; is its process running?", path.display())]
    Connect {
        id: String,
        path: PathBuf,
        source: io::Error,
    },
    #[error("device {id}: {source}")]
    Process { id: String, source: UserError },
    #[error(
        "device {0} lives in another process, which cannot share the memory of a machine that was started without such a \
         device; configure one before the start"
    )]
    Unshared(String),
    #[error("device {id} cannot have the guest's memory: {source}")]
    Share { id: String, source: io::Error },
    #[error(
        "device {id}: {function} cannot be reset, so what its last user left would stay in it; take it all the same with \
         allow_no_reset (of fief: --allow-no-reset)"
    )]
    NoReset { id: String, function: String },
    #[error("device {id}: {function} was not reset: {source}")]
    Reset {
        id: String,
        function: String,
        source: io::Error,
    },
    #[error("device {id} cannot be put before the guest: {source}")]
    Function {
        id: String,
        source: PassthroughError,
    },
    #[error("device {id} cannot be watched: {source}")]
    Watch { id: String, source: io::Error },
    #[error("the machine has no device {0} any more")]
    Unknown(String),
    #[error(
        "device {0} was there before the start, on the bus that stays as it is; only devices that are added to a running \
         machine can be released"
    )]
    Fixed(String),
    #[error(transparent)]
    Pci(#[from] PciError),
}

/// Opens devices for one machine.
pub struct Opener {
    files: Files,
    memory: Arc<GuestMemory>,
    groups: Arc<KvmGroups>,
    /// All functions of the host share it; with the last of them it goes, and the memory is no longer pinned.
    container: Mutex<Weak<Container>>,
}

/// A device that was opened and reset.
pub struct Opened {
    id: String,
    functions: Vec<Function>,
    /// Where other functions reach its BARs by DMA, if they may.
    peers: Option<Arc<dyn DmaSpace>>,
}

/// One function of it, and how messages call it.
struct Function {
    name: String,
    remote: Arc<dyn RemoteFunction>,
}

impl Opened {
    /// Bytes of its memory BARs.
    pub fn memory(&self) -> u64 {
        let sizes = self
            .functions
            .iter()
            .flat_map(|function| (0..6).map(|bar| function.remote.region(Region::Bar(bar)).size));
        sizes.fold(0, u64::saturating_add)
    }

    /// Whether a function of it has a wired interrupt.
    pub fn is_wired(&self) -> bool {
        let wired = |f: &Function| f.remote.interrupts(Interrupt::Intx) > 0;
        self.functions.iter().any(wired)
    }
}

impl Opener {
    pub fn new(files: &Files, memory: &Arc<GuestMemory>, vm: &Arc<VmFd>) -> Self {
        Self {
            files: files.clone(),
            memory: Arc::clone(memory),
            groups: Arc::new(KvmGroups::new(Arc::clone(vm))),
            container: Mutex::new(Weak::new()),
        }
    }

    /// Opens a device and resets it.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn open(&self, config: &PassthroughConfig) -> Result<Opened, AttachError> {
        let id = || config.id.clone();
        raise_descriptor_limit();
        let (functions, space) = match &config.source {
            Source::Host { functions, group } => {
                let failed = |source| AttachError::Host { id: id(), source };
                let container = self.container().map_err(failed)?;
                let open = |address: &fief_api::PciAddress| {
                    let name = address.to_string();
                    let remote = KernelFunction::open(&container, &name, &config.id, *group)?;
                    Ok(Function { name, remote })
                };
                let functions: Result<Vec<_>, _> = functions.iter().map(open).collect();
                let functions = functions.map_err(failed)?;
                for function in &functions {
                    reset(config, function)?;
                }
                (functions, container as Arc<dyn DmaSpace>)
            }
            Source::Process { socket } => {
                let remote = Arc::new(self.connect(config, socket)?);
                let function = Function {
                    name: format!("the device at {}", socket.display()),
                    remote: Arc::clone(&remote) as _,
                };
                // A process that was just started need not have a reset.
                if remote.can_reset() {
                    reset(config, &function)?;
                }
                (vec![function], remote as Arc<dyn DmaSpace>)
            }
        };
        Ok(Opened {
            id: config.id.clone(),
            functions,
            peers: config.peer_access.then_some(space),
        })
    }

    /// The container, with the guest's memory pinned as soon as there is a function in it.
    fn container(&self) -> Result<Arc<Container>, KernelError> {
        let mut container = self
            .container
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(container) = container.upgrade() {
            return Ok(container);
        }
        let host = MachineHost {
            files: self.files.clone(),
            groups: Arc::clone(&self.groups),
            _pin: self.memory.pin(),
        };
        let new = Container::new(Arc::new(host), self.memory.ram().clone())?;
        *container = Arc::downgrade(&new);
        Ok(new)
    }

    /// Connects to a device process and lets it have the guest's memory.
    fn connect(
        &self,
        config: &PassthroughConfig,
        socket: &Path,
    ) -> Result<UserFunction, AttachError> {
        let id = || config.id.clone();
        let shared = self.memory.shared_file();
        let file = shared.ok_or_else(|| AttachError::Unshared(id()))?;
        let stream = self
            .files
            .connect(socket)
            .map_err(|source| AttachError::Connect {
                id: id(),
                path: socket.to_owned(),
                source,
            })?;
        let remote = UserFunction::connect(stream)
            .map_err(|source| AttachError::Process { id: id(), source })?;
        let mut offset = 0_u64;
        for region in self.memory.ram().iter() {
            let memory = DmaMemory {
                address: region.as_ptr(),
                size: region.len(),
                file: Some((file, offset)),
            };
            // SAFETY: the process maps the file, which lives as long as one of its mappings; only the guest's data is in it.
            unsafe { DmaSpace::map(&remote, region.start_addr().0, memory) }
                .map_err(|source| AttachError::Share { id: id(), source })?;
            offset = offset.saturating_add(region.len());
        }
        Ok(remote)
    }
}

/// What its last user left in a function is not for the next one.
fn reset(config: &PassthroughConfig, function: &Function) -> Result<(), AttachError> {
    let (id, name) = (config.id.clone(), function.name.clone());
    let done = match function.remote.can_reset() {
        true => function
            .remote
            .reset()
            .map_err(|source| AttachError::Reset {
                id,
                function: name,
                source,
            }),
        false => Err(AttachError::NoReset { id, function: name }),
    };
    match done {
        Err(error) if config.allow_no_reset => {
            tracing::warn!(
                "device {}: {} is used as its last user left it, without a reset",
                config.id,
                function.name
            );
            tracing::debug!("{error}");
            Ok(())
        }
        done => done,
    }
}

/// Every vector of a function is a descriptor, of which it can have 2048.
fn raise_descriptor_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls are given a structure to write or read.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            // If it cannot be raised, a function with few vectors works all the same.
            let _ = libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

/// What VFIO needs of the machine.
struct MachineHost {
    files: Files,
    groups: Arc<KvmGroups>,
    _pin: Pin,
}

impl Host for MachineHost {
    fn open(&self, path: &Path) -> io::Result<File> {
        self.files.open_device(path)
    }

    fn add_group(&self, group: &File) -> io::Result<()> {
        self.groups.add(group)
    }

    fn remove_group(&self, group: &File) {
        self.groups.remove(group);
    }
}

/// A device on the bus.
struct Attached {
    id: String,
    /// Its slot on the hot-plug bus; none on the bus that stays as it is.
    slot: Option<u8>,
    functions: Vec<Arc<Passthrough>>,
    _watching: Vec<Watching<Watch>>,
}

/// The devices on the bus, and those that the guest has let go of and that are still to be closed.
#[derive(Default)]
pub struct Table {
    attached: Mutex<Vec<Attached>>,
    left: Mutex<Vec<Attached>>,
}

impl Table {
    /// The guest let go of what was in `slot` of the hot-plug bus: gives its id if it was a passed-through device. It is
    /// closed later, as that takes time which a vCPU does not have.
    pub fn ejected(&self, slot: u8) -> Option<String> {
        let mut attached = lock(&self.attached);
        let place = attached.iter().position(|device| device.slot == Some(slot));
        let device = place.map(|place| attached.remove(place))?;
        let id = device.id.clone();
        lock(&self.left).push(device);
        Some(id)
    }
}

/// What a device needs of the machine.
pub struct Parts {
    pub opener: Opener,
    pub gsis: Arc<GsiTable>,
    pub slots: Arc<dyn MemorySlots>,
    pub hot_plug: Arc<HotPlug>,
    pub worker: Arc<SharedWorker>,
    pub control: Arc<Control>,
    pub table: Arc<Table>,
}

/// The passed-through devices of a machine.
pub struct Passthroughs {
    parts: Parts,
    vectors: Arc<dyn MsiAllocator>,
}

impl Passthroughs {
    pub fn new(parts: Parts) -> Self {
        Self {
            vectors: parts.gsis.msi_allocator(),
            parts,
        }
    }

    /// Puts a device on `bus`, where it stays, before the machine starts.
    ///
    /// # Errors
    /// See [`AttachError`].
    pub fn insert(&self, device: Opened, bus: &PciRoot) -> Result<(), AttachError> {
        let slot = bus.free_slot()?;
        self.attach(device, slot, None, |functions| {
            bus.add_device(slot, functions)
        })
    }

    /// Adds a device to the running machine and tells the guest.
    ///
    /// # Errors
    /// See [`AttachError`]; nothing is left behind.
    pub fn add(&self, config: &PassthroughConfig) -> Result<(), AttachError> {
        let device = self.parts.opener.open(config)?;
        let bus = &self.parts.hot_plug;
        let slot = bus.free_slot()?;
        self.attach(device, slot, Some(slot), |functions| {
            bus.add_device(slot, functions)
        })
    }

    fn attach(
        &self,
        device: Opened,
        number: u8,
        slot: Option<u8>,
        plug: impl FnOnce(Vec<(u8, Arc<dyn PciFunction>)>) -> Result<(), PciError>,
    ) -> Result<(), AttachError> {
        let Opened {
            id,
            functions,
            peers,
        } = device;
        let watching: Result<Vec<_>, _> = functions
            .iter()
            .map(|function| self.watch(&id, &function.remote))
            .collect();
        let watching = watching.map_err(|source| AttachError::Watch {
            id: id.clone(),
            source,
        })?;
        let on_bus = functions.into_iter().map(|Function { name, remote }| {
            let platform = Platform {
                slots: Arc::clone(&self.parts.slots),
                vectors: Arc::clone(&self.vectors),
                line: Some(self.parts.gsis.resampled_line(layout::slot_gsi(number))),
                peers: peers.clone(),
            };
            Passthrough::new(name, remote, platform)
        });
        let on_bus: Result<Vec<_>, _> = on_bus.collect();
        let functions = on_bus.map_err(|source| AttachError::Function {
            id: id.clone(),
            source,
        })?;
        let as_device = functions
            .iter()
            .map(|function| Arc::clone(function) as Arc<dyn PciFunction>);
        plug((0..).zip(as_device).collect())?;
        // No guest can have ejected it yet: it was not asked.
        lock(&self.parts.table.attached).push(Attached {
            id,
            slot,
            functions,
            _watching: watching,
        });
        Ok(())
    }

    fn watch(&self, id: &str, remote: &Arc<dyn RemoteFunction>) -> io::Result<Watching<Watch>> {
        let (control, id) = (Arc::clone(&self.parts.control), id.to_owned());
        let on_notice = Box::new(move |notice| {
            match notice {
                Notice::Error => tracing::error!("the host saw an error of device {id}"),
                Notice::Requested => tracing::warn!("the host wants device {id} back"),
                Notice::Gone => tracing::error!("the process of device {id} is gone"),
            }
            control.noticed(id.clone(), notice);
        });
        self.parts
            .worker
            .add(Watch::new(Arc::clone(remote), on_notice)?)
    }

    /// Asks the guest to release a device. It is gone when the guest says so, or at the next reset.
    ///
    /// # Errors
    /// There is no such device (any more), or it stays.
    pub fn ask_release(&self, id: &str) -> Result<(), AttachError> {
        let slot = {
            let attached = lock(&self.parts.table.attached);
            let device = attached.iter().find(|device| device.id == id);
            device.map(|device| device.slot)
        };
        match slot {
            None => Err(AttachError::Unknown(id.to_owned())),
            Some(None) => Err(AttachError::Fixed(id.to_owned())),
            Some(Some(slot)) if self.parts.hot_plug.ask_release(slot) => Ok(()),
            // The guest let go of it just now.
            Some(Some(_)) => Err(AttachError::Unknown(id.to_owned())),
        }
    }

    /// Closes the devices that the guest has let go of.
    pub fn close_left(&self) {
        let left = std::mem::take(&mut *lock(&self.parts.table.left));
        drop(left);
    }

    /// What is on the bus.
    pub fn status(&self) -> Vec<Plugged> {
        let attached = lock(&self.parts.table.attached);
        let devices: Vec<_> = attached.iter().map(|d| (d.id.clone(), d.slot)).collect();
        // An ejection takes the table's lock under that of the controller.
        drop(attached);
        let status = |(id, slot): (String, Option<u8>)| Plugged {
            leaving: slot.is_some_and(|slot| self.parts.hot_plug.is_asked(slot)),
            id,
        };
        devices.into_iter().map(status).collect()
    }

    /// The machine has ended: what it left in the devices is not for the next one.
    pub fn finish(&self) {
        let attached = std::mem::take(&mut *lock(&self.parts.table.attached));
        for function in attached.iter().flat_map(|device| &device.functions) {
            function.reset();
        }
        drop(attached);
        self.close_left();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
