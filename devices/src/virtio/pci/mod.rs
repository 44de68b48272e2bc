//! virtio over PCI, modern only (virtio 1.3 §4.1): the one transport of all virtio devices.
//!
//! Registers are control path: they are behind one lock, which vCPU threads take. The data path never meets it: kicks are
//! eventfds, interrupts are atomics in [`Interrupter`](interrupt::Interrupter).

mod common;
mod interrupt;
mod layout;
mod lifecycle;
mod state;
mod status;

use std::any::Any;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use layout::{
    BAR_SIZE, COMMON_LENGTH, COMMON_OFFSET, DEVICE_LENGTH, DEVICE_OFFSET, ISR_OFFSET,
    NOTIFY_MULTIPLIER, NOTIFY_OFFSET, PBA_OFFSET, TABLE_OFFSET, VIRTIO_BAR,
};
pub use state::{QueueRegistersState, VirtioPciState};

use self::common::CommonConfig;
use self::interrupt::Interrupter;
use self::layout::{Capabilities, Region};
use super::{ActiveQueue, DeviceId, VirtioDevice, VirtioInterrupt};
use crate::GuestRam;
use crate::doorbell::Doorbells;
use crate::irq::MsiAllocator;
use crate::pci::{ConfigError, ConfigSpace, Msix, PciFunction};

/// Most queues of a device: their vectors and one for configuration changes fit the table's place in the BAR.
pub const MAX_QUEUES: usize = 64;

/// Most entries of a queue (virtio 1.3 §2.7).
const MAX_QUEUE_SIZE: u16 = 1 << 15;

/// What the transport needs of the machine.
pub struct Platform<'a> {
    /// Guest RAM.
    pub memory: GuestRam,
    /// Where MSI-X vectors come from.
    pub interrupts: &'a dyn MsiAllocator,
    /// Where doorbells are connected.
    pub doorbells: Arc<dyn Doorbells>,
}

/// Why a device could not be put behind the transport, paused, resumed or restored.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The device model asks for an impossible set of queues.
    #[error(
        "a device with {0} queues; the transport serves 1 to {MAX_QUEUES}, each with a power of two of entries"
    )]
    Queues(usize),
    /// MSI-X vectors or eventfds could not be had.
    #[error("no interrupt vectors or eventfds for the device: {0}; raise the limit of open files")]
    Resources(#[from] io::Error),
    /// The configuration space has no room.
    #[error("the device's configuration space cannot be built: {0}")]
    Config(#[from] ConfigError),
    /// The state was asked for while the device's workers run.
    #[error("the device is running; pause it first")]
    Running,
    /// A saved state does not go with the device or the machine.
    #[error(
        "the saved state does not fit the device: {0}; restore with the devices and memory it was saved with"
    )]
    BadState(&'static str),
    /// The device could not go on.
    #[error("the device cannot be resumed: {0}")]
    Resume(#[from] super::ActivateError),
}

/// A virtio device as a PCI function.
pub struct VirtioPci {
    id: DeviceId,
    msix: Arc<Msix>,
    interrupt: Arc<Interrupter>,
    /// One for each queue. Their other ends go to the device at activation.
    kicks: Vec<EventFd>,
    space: ConfigSpace,
    capabilities: Capabilities,
    control: Mutex<Control>,
}

/// What the control path owns.
struct Control {
    device: Box<dyn VirtioDevice>,
    memory: GuestRam,
    doorbells: Arc<dyn Doorbells>,
    /// Features of device and transport.
    offered: u64,
    common: CommonConfig,
    phase: Phase,
    /// Where the BAR answers.
    bar: Option<u64>,
    /// The doorbells that are connected: address and queue.
    connected: Vec<(u64, usize)>,
}

/// Who has the queues.
enum Phase {
    /// Nobody: the driver has not set DRIVER_OK, or the device could not be activated.
    Idle,
    /// The device's workers.
    Active,
    /// The transport, between pause and resume.
    Paused(Vec<ActiveQueue>),
}

impl VirtioPci {
    /// Puts `device` behind the transport, as after reset.
    ///
    /// # Errors
    /// The device's queues are impossible, or vectors or eventfds cannot be had.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        platform: Platform<'_>,
    ) -> Result<Arc<Self>, TransportError> {
        Ok(Arc::new(Self::build(device, platform)?))
    }

    fn build(
        device: Box<dyn VirtioDevice>,
        platform: Platform<'_>,
    ) -> Result<Self, TransportError> {
        let sizes = device.queue_sizes();
        let count = sizes.len();
        let possible = |size: &u16| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE;
        if !(1..=MAX_QUEUES).contains(&count) || !sizes.iter().all(possible) {
            return Err(TransportError::Queues(count));
        }
        let vectors = u16::try_from(count + 1).map_err(|_| TransportError::Queues(count))?;
        let msix = Arc::new(Msix::new(platform.interrupts, vectors)?);
        let kicks: io::Result<Vec<_>> = (0..count).map(|_| EventFd::new(EFD_NONBLOCK)).collect();
        let (space, capabilities) = layout::build(device.id(), &msix)?;
        let common = CommonConfig::new(sizes);
        let offered = device.features() | layout::TRANSPORT_FEATURES;
        Ok(Self {
            id: device.id(),
            interrupt: Arc::new(Interrupter::new(Arc::clone(&msix), count)),
            msix,
            kicks: kicks?,
            space,
            capabilities,
            control: Mutex::new(Control {
                device,
                memory: platform.memory,
                doorbells: platform.doorbells,
                offered,
                common,
                phase: Phase::Idle,
                bar: None,
                connected: Vec::new(),
            }),
        })
    }

    /// The device's type.
    pub fn id(&self) -> DeviceId {
        self.id
    }

    /// Calls `ask` with the device model, under the control path's lock.
    pub fn with_device<R>(&self, ask: impl FnOnce(&mut dyn VirtioDevice) -> R) -> R {
        ask(self.lock().device.as_mut())
    }

    /// Calls `change` with the device model if that is a `D`, under the control path's lock; `None` if it is something
    /// else. What changes its configuration is to be followed by [`config_changed`](Self::config_changed).
    pub fn with_model<D: VirtioDevice, R>(&self, change: impl FnOnce(&mut D) -> R) -> Option<R> {
        let mut control = self.lock();
        let model: &mut dyn Any = control.device.as_mut();
        model.downcast_mut().map(change)
    }

    /// Tells the driver, if there is one, that the device's configuration changed (virtio 1.3 §2.3).
    pub fn config_changed(&self) {
        if self.interrupt.status() & status::DRIVER_OK != 0 {
            self.interrupt.config();
        } else {
            // One that is still reading it starts over.
            let generation = self.interrupt.generation();
            self.interrupt.set_generation(generation.wrapping_add(1));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PciFunction for VirtioPci {
    fn config_space(&self) -> ConfigSpace {
        self.space.clone()
    }

    fn config_read(&self, space: &ConfigSpace, offset: u16, data: &mut [u8]) {
        let Some((at, window)) = self.capabilities.cfg_access(space, offset) else {
            return;
        };
        let mut value = [0; 4];
        if let Some(part) = value.get_mut(..window) {
            self.bar_read(VIRTIO_BAR, at, part);
        }
        let start = usize::from(offset % 4);
        if let Some(source) = value.get(start..start + data.len()) {
            data.copy_from_slice(source);
        }
    }

    fn config_write(&self, space: &ConfigSpace, offset: u16, data: &[u8]) {
        self.msix
            .config_written(space, self.capabilities.msix, offset);
        if let Some((at, window)) = self.capabilities.cfg_access(space, offset)
            && offset.is_multiple_of(4)
            && let Some(part) = data.get(..window)
        {
            self.bar_write(VIRTIO_BAR, at, part);
        }
    }

    fn bar_read(&self, _bar: u8, offset: u64, data: &mut [u8]) {
        match layout::locate(offset, data.len()) {
            Some((Region::Common, at)) => self.read_common(at, data),
            Some((Region::Isr, _)) => {
                data.fill(0);
                if let Some(status) = data.first_mut() {
                    *status = self.interrupt.take_isr();
                }
            }
            Some((Region::Device, at)) => {
                data.fill(0);
                self.lock().device.read_config(at, data);
            }
            Some((Region::Table, at)) => self.msix.table_read(at, data),
            Some((Region::Pba, at)) => self.msix.pba_read(at, data),
            Some((Region::Notify, _)) => data.fill(0),
            None => data.fill(0xFF),
        }
    }

    fn bar_write(&self, _bar: u8, offset: u64, data: &[u8]) {
        match layout::locate(offset, data.len()) {
            Some((Region::Common, at)) => self.write_common(at, data),
            Some((Region::Device, at)) => self.lock().device.write_config(at, data),
            Some((Region::Table, at)) => self.msix.table_write(at, data),
            Some((Region::Notify, at)) => self.kick(at),
            Some((Region::Isr | Region::Pba, _)) | None => {}
        }
    }

    fn bar_moved(&self, _bar: u8, address: Option<u64>) {
        let mut control = self.lock();
        control.bar = address;
        self.connect_doorbells(&mut control);
    }

    fn reset(&self) {
        self.reset_device(&mut self.lock());
        self.msix.reset();
        self.interrupt.set_generation(0);
    }
}

impl VirtioPci {
    /// A kick that came as an access, because its doorbell is not connected. Takes no lock.
    fn kick(&self, offset: u64) {
        let multiplier = u64::from(NOTIFY_MULTIPLIER);
        let index = usize::try_from(offset / multiplier).ok();
        let kick = index
            .filter(|_| offset.is_multiple_of(multiplier))
            .and_then(|i| self.kicks.get(i));
        // A full counter (the only way this fails) means that the device is being told anyway.
        let _ = kick.map(|kick| kick.write(1));
    }
}

#[cfg(test)]
mod tests;
