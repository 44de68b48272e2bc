//! PCI devices of the host that a tenant's machine has for itself.

use std::str::FromStr;

use fief_api::PciAddress;
use serde::{Deserialize, Serialize};

use super::Gpu;

/// Most devices of a tenant: the monitor's limit.
pub const MAX_DEVICES: usize = 16;

/// A function of the host, and those of the same device that go with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    pub address: PciAddress,
    /// Other functions of the device, such as a GPU's audio.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub companions: Vec<PciAddress>,
    /// The tenant gets it even if it cannot be reset and another one had it before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_no_reset: bool,
}

impl Device {
    /// How the monitor calls it.
    pub fn id(&self) -> String {
        let address = self.address.to_string();
        format!("pci_{}", address.replace([':', '.'], "_"))
    }

    /// All of its functions.
    pub fn functions(&self) -> impl Iterator<Item = PciAddress> {
        std::iter::once(self.address).chain(self.companions.iter().copied())
    }

    /// Whether a function of this one is one of `other`.
    pub fn shares(&self, other: &Self) -> bool {
        self.functions().any(|f| other.functions().any(|o| o == f))
    }
}

/// What `--gpu` names: a PCI function for a virtual machine, or a CDI device for a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GpuRequest {
    Function(PciAddress),
    Named(Gpu),
}

/// A word that is neither.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "'{0}' is no GPU; give a virtual machine its PCI address, as 01:00.0 (`fief gpu list` shows them), and a container its CDI \
     name, as nvidia.com/gpu=0"
)]
pub struct GpuRequestError(String);

impl FromStr for GpuRequest {
    type Err = GpuRequestError;

    fn from_str(text: &str) -> Result<Self, GpuRequestError> {
        let function = text.parse().ok().map(Self::Function);
        let named = || text.parse().ok().map(Self::Named);
        function
            .or_else(named)
            .ok_or_else(|| GpuRequestError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_named_by_its_address_or_by_its_cdi_name() {
        let parse = |text: &str| text.parse::<GpuRequest>();
        let address = "0000:01:00.0".parse().unwrap();
        assert_eq!(parse("01:00.0"), Ok(GpuRequest::Function(address)));
        let named = "nvidia.com/gpu=0".parse().unwrap();
        assert_eq!(parse("nvidia.com/gpu=0"), Ok(GpuRequest::Named(named)));
        for wrong in ["", "0", "01:00", "gpu=0", "/dev/dri/card0"] {
            let said = parse(wrong).unwrap_err().to_string();
            assert!(
                said.contains("01:00.0") && said.contains("nvidia.com/gpu=0"),
                "{said}"
            );
        }
    }

    #[test]
    fn the_monitor_can_have_its_name() {
        let device = Device {
            address: "0a:1f.7".parse().unwrap(),
            companions: Vec::new(),
            allow_no_reset: false,
        };
        assert_eq!(device.id(), "pci_0000_0a_1f_7");
    }
}
