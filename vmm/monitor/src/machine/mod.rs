//! A virtual machine: built from a [`VmConfig`], run, paused, restarted in place, ended.

mod build;
mod control;
mod devices;
mod drives;
pub mod files;
mod kick;
mod vcpus;

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use fief_devices::limiter::Limits;
use fief_devices::virtio::balloon::BalloonControl;

use crate::boot::BootError;
use crate::config::{DriveConfig, VmConfig};
use crate::kvm::KvmError;
use crate::kvm::memory::MemoryError;
use control::Control;
use devices::Devices;
pub use drives::{DriveError, DriveStatus};
use files::Files;

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
    #[error("the machine has ended")]
    Ended,
}

/// What happens to a machine without its owner's doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest asked for a reset and the machine starts again in place. Its vCPUs are let run after this.
    Restarted,
    /// The guest let go of the drive with this id, as it was asked to; the drive is gone.
    Released(String),
    /// The machine ended. This comes once.
    Ended(ExitReason),
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

    /// The drives that the machine has.
    pub fn drives(&self) -> Vec<DriveStatus> {
        self.devices.drives().status()
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
