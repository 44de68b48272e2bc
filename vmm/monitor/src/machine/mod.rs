//! A virtual machine: built from a [`VmConfig`](crate::config::VmConfig), run, paused, ended.

use crate::config::VmConfig;

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

/// A machine that has been built. Its vCPUs stand still until [`resume`](Self::resume).
pub struct Machine {}

/// Why a machine could not be built, started or paused.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// Stands in until the machine is built.
    #[error("not built yet")]
    NotBuilt,
}

impl Machine {
    /// Builds the machine with its vCPU threads standing still. Nothing is left behind on error.
    ///
    /// # Errors
    /// See [`MachineError`].
    pub fn build(
        _config: &VmConfig,
        _on_exit: Box<dyn Fn(ExitReason) + Send + Sync>,
    ) -> Result<Self, MachineError> {
        Err(MachineError::NotBuilt)
    }

    /// Lets the vCPUs run: first start, and after a pause.
    ///
    /// # Errors
    /// A vCPU thread is gone.
    pub fn resume(&self) -> Result<(), MachineError> {
        Ok(())
    }

    /// Stops vCPUs and devices at a point where the machine could go on.
    ///
    /// # Errors
    /// A vCPU thread is gone.
    pub fn pause(&self) -> Result<(), MachineError> {
        Ok(())
    }

    /// Presses the ACPI power button (API action SendCtrlAltDel does this too).
    pub fn press_power_button(&self) {}

    /// Ends the machine: vCPU threads and workers are joined.
    pub fn stop(self) {}
}
