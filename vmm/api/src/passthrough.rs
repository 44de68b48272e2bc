//! Functions that are passed through.

use serde::{Deserialize, Serialize};

use crate::pci_address::PciAddress;

/// `/device-passthrough/{id}`: a PCI device of the host, or of another process, given to the guest. Exactly one of `sbdf` and
/// `socket` says which.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevicePassthrough {
    /// Letters, digits and underscores; the same as in the path.
    pub id: String,
    /// The host's function (segment, bus, device, function), as in `0000:01:00.0`; it is bound to vfio-pci.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sbdf: Option<PciAddress>,
    /// Ours: other functions of the same device, such as a GPU's audio, which share its slot in the guest and come and go
    /// with it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub companions: Vec<PciAddress>,
    /// Ours: the number of the IOMMU group, for a monitor that cannot see the host's sysfs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iommu_group: Option<u32>,
    /// Ours: socket of the process that the function lives in (vfio-user).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Ours: other functions of the guest reach this one's BARs by DMA.
    #[serde(default, skip_serializing_if = "is_false")]
    pub peer_access: bool,
    /// Ours: take a function that cannot be reset. What its last user left in it is then the guest's.
    #[serde(default, skip_serializing_if = "is_false")]
    pub allow_no_reset: bool,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl DevicePassthrough {
    /// A function of the host, everything else at its default.
    pub fn function(id: impl Into<String>, sbdf: PciAddress) -> Self {
        Self {
            id: id.into(),
            sbdf: Some(sbdf),
            companions: Vec::new(),
            iommu_group: None,
            socket: None,
            peer_access: false,
            allow_no_reset: false,
        }
    }

    /// A function of the process that serves `socket`.
    pub fn user(id: impl Into<String>, socket: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            sbdf: None,
            companions: Vec::new(),
            iommu_group: None,
            socket: Some(socket.into()),
            peer_access: false,
            allow_no_reset: false,
        }
    }
}
