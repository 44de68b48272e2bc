//! Flags about devices of this machine that a tenant has for itself.

use std::cell::LazyCell;

use fief_api::PciAddress;
use fief_host::pci::{Pci, Places};

use super::Result;
use crate::spec::{Device, GpuRequest, Spec};

/// What of these was said.
#[derive(Debug, Clone, PartialEq, Eq, Default, clap::Args)]
#[command(next_help_heading = "Devices of this machine")]
pub struct DeviceArgs {
    /// A GPU: for a machine its PCI address, as 01:00.0, with all functions of that device; for a container its name in the
    /// files of /etc/cdi and /var/run/cdi, as nvidia.com/gpu=0; may be given several times
    #[arg(long = "gpu", value_name = "ADDRESS|NAME")]
    gpus: Vec<GpuRequest>,
    /// Any PCI function, for a machine, by its address; may be given several times (`fief gpu list` shows what there is)
    #[arg(long = "device", value_name = "ADDRESS")]
    devices: Vec<PciAddress>,
    /// Take devices that cannot be reset even if another tenant had them before
    #[arg(long)]
    allow_no_reset: bool,
    /// Never give a machine's unused memory back to this machine, so that devices can be attached while it runs
    #[arg(long)]
    pin_memory: bool,
}

impl DeviceArgs {
    /// Adds what was said.
    ///
    /// # Errors
    /// There is no such function on this machine.
    pub fn apply(&self, spec: &mut Spec) -> Result<()> {
        spec.pin_memory |= self.pin_memory;
        let pci = LazyCell::new(|| Pci::read(&Places::default()));
        for gpu in &self.gpus {
            match gpu {
                GpuRequest::Named(gpu) => spec.gpus.push(gpu.clone()),
                GpuRequest::Function(address) => {
                    let device = whole_device(&pci, *address, self.allow_no_reset)?;
                    spec.devices.push(device);
                }
            }
        }
        for address in &self.devices {
            spec.devices
                .push(one_function(&pci, *address, self.allow_no_reset)?);
        }
        Ok(())
    }
}

/// The function at `address` with the others of its device.
///
/// # Errors
/// There is none on this machine.
pub fn whole_device(pci: &Pci, address: PciAddress, allow_no_reset: bool) -> Result<Device> {
    let function = pci.function(address)?;
    let all = pci.device(function).map(|function| function.address);
    Ok(Device {
        companions: all.filter(|other| *other != address).collect(),
        address,
        allow_no_reset,
    })
}

/// The function at `address` alone.
///
/// # Errors
/// There is none on this machine.
pub fn one_function(pci: &Pci, address: PciAddress, allow_no_reset: bool) -> Result<Device> {
    pci.function(address)?;
    Ok(Device {
        address,
        companions: Vec::new(),
        allow_no_reset,
    })
}
