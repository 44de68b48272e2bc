//! A virtual machine: built from a [`VmConfig`], run, paused, restarted in place, ended.

mod build;
mod control;
mod devices;
mod drives;
pub mod files;
mod kick;
mod passthrough;
mod vcpus;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use fief_devices::limiter::Limits;
use fief_devices::virtio::balloon::BalloonControl;

use crate::boot::BootError;
use crate::config::{DriveConfig, PassthroughConfig, VmConfig};
use crate::kvm::KvmError;
use crate::kvm::memory::MemoryError;
use control::Control;
use devices::Devices;
pub use drives::DriveError;
pub use fief_vfio::watch::Notice;
use files::Files;
pub use passthrough::AttachError;

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExitReason {
    /// The guest powered off through ACPI.
    PowerOff,
    /// The guest asked for a reset (ACPI reset register, i8042) and the machine does not restart in place.
    Reboot,
    /// The guest reported a kernel panic through pvpanic.
    Panic,
    /// A vCPU shut down after a triple fault.
    TripleFault,
    /// The control side ended it.
    Stopped,
    /// KVM or the monitor failed.
    Failed(String),
}

/// Why a machine could not be built, started or paused.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error(transparent)]
    Kvm(#[from] KvmError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error("cannot start a vCPU thread: {0}; is there a limit on threads or memory?")]
    Thread(std::io::Error),
    #[error(transparent)]
    Device(#[from] devices::DeviceError),
    #[error(transparent)]
    Drive(#[from] DriveError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error("the machine has ended")]
    Ended,
}

/// What happens to a machine without its owner's doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest asked for a reset and the machine starts again in place. Its vCPUs are let run after this.
    Restarted,
    /// The guest let go of something, as it was asked to.
    Released(Released),
    /// Something happened to the passed-through device with this id.
    Noticed(String, Notice),
    /// The machine ended. This comes once.
    Ended(ExitReason),
}

/// A drive or a passed-through device on the bus, as the control side sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugged {
    pub id: String,
    /// The guest was asked to release it, and has not.
    pub leaving: bool,
}

/// All that is on the bus and can have come while the machine ran.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllPlugged {
    pub drives: Vec<Plugged>,
    pub devices: Vec<Plugged>,
}

/// What a guest let go of, by id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Released {
    /// It is gone.
    Drive(String),
    /// It is closed by [`Machine::close_left`].
    Device(String),
}

/// Called at each event, from the thread that it happens on. It must not call back into the machine, and is not to wait:
/// pass the event on to the thread that owns the machine, and drop or [`stop`](Machine::stop) it there.
pub type OnEvent = Box<dyn Fn(Event) + Send + Sync>;

/// A machine that has been built. Its vCPUs stand still until [`resume`](Self::resume).
pub struct Machine {
    control: Arc<Control>,
    devices: Arc<Devices>,
    threads: Vec<JoinHandle<()>>,
}

impl Machine {
    /// Builds the machine with its vCPU threads standing still. Nothing is left behind on error.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn build(
        config: &VmConfig,
        files: &Files,
        on_event: OnEvent,
    ) -> Result<Self, MachineError> {
        build::build(config, files, on_event)
    }

    /// Lets the vCPUs run: first start, and after a pause.
    ///
    /// # Errors
    /// The machine has ended.
    pub fn resume(&self) -> Result<(), MachineError> {
        self.devices.resume()?;
        self.control.resume()
    }

    /// Stops vCPUs and devices at a point where the machine could go on; returns when they stand still.
    ///
    /// # Errors
    /// The machine has ended.
    pub fn pause(&self) -> Result<(), MachineError> {
        self.control.pause()?;
        self.devices.pause();
        Ok(())
    }

    /// Other limits for a network interface, from now on; paused or not.
    ///
    /// # Errors
    /// There is no such interface, or it cannot go on.
    pub fn limit_interface(&self, id: &str, rx: Limits, tx: Limits) -> Result<(), MachineError> {
        Ok(self.devices.limit_interface(id, rx, tx)?)
    }

    /// Presses the ACPI power button (API action SendCtrlAltDel does this too).
    pub fn press_power_button(&self) {
        self.devices.press_power_button();
    }

    /// Adds a drive while the machine runs or is paused.
    ///
    /// # Errors
    /// The drive cannot be made, or the bus is full; nothing is left behind.
    pub fn add_drive(&self, config: &DriveConfig) -> Result<(), MachineError> {
        Ok(self.devices.drives().add(config)?)
    }

    /// Asks the guest to release a drive; [`Event::Released`] tells when it has. A guest need not: the drive then stays
    /// until the machine is reset or ends.
    ///
    /// # Errors
    /// There is no such drive.
    pub fn release_drive(&self, id: &str) -> Result<(), MachineError> {
        Ok(self.devices.drives().ask_release(id)?)
    }

    /// Puts the file at `path` behind a drive; if it is the same, its size is read again. Requests in flight end on the
    /// file that was there.
    ///
    /// # Errors
    /// There is no such drive, or the file cannot be one; the drive then goes on as it was.
    pub fn replace_drive_file(&self, id: &str, path: &Path) -> Result<(), MachineError> {
        Ok(self.devices.drives().replace_file(id, path)?)
    }

    /// Sets the limits of a drive.
    ///
    /// # Errors
    /// There is no such drive, or no descriptor is left.
    pub fn limit_drive(&self, id: &str, limits: Limits) -> Result<(), MachineError> {
        Ok(self.devices.drives().set_limits(id, limits)?)
    }

    /// The drives and passed-through devices that the machine has.
    pub fn plugged(&self) -> AllPlugged {
        AllPlugged {
            drives: self.devices.drives().status(),
            devices: self.devices.passthrough().status(),
        }
    }

    /// Gives a device of the host, or of another process, to the machine while it runs or is paused.
    ///
    /// # Errors
    /// The device cannot be had, or the bus is full; nothing is left behind.
    pub fn add_device(&self, config: &PassthroughConfig) -> Result<(), MachineError> {
        Ok(self.devices.passthrough().add(config)?)
    }

    /// Asks the guest to release a passed-through device; [`Released::Device`] tells when it has.
    ///
    /// # Errors
    /// There is no such device, or it stays.
    pub fn release_device(&self, id: &str) -> Result<(), MachineError> {
        Ok(self.devices.passthrough().ask_release(id)?)
    }

    /// Closes the passed-through devices that the guest has let go of.
    pub fn close_left(&self) {
        self.devices.passthrough().close_left();
    }

    /// A way to speak to its balloon, if it has one.
    pub fn balloon(&self) -> Option<BalloonControl> {
        self.devices.balloon()
    }

    /// Ends the machine: vCPU threads and workers are joined. Dropping it does the same.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.control.end(ExitReason::Stopped);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a vCPU thread panicked");
            }
        }
        self.devices.finish();
    }
}
