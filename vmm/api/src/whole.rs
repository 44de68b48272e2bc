//! A whole machine in one document.

use serde::{Deserialize, Serialize};

use crate::balloon::Balloon;
use crate::device::{Drive, Entropy, Serial, Vsock};
use crate::instance::{Lifecycle, Logger};
use crate::machine::{BootSource, MachineConfiguration};
use crate::network::NetworkInterface;
use crate::passthrough::DevicePassthrough;

/// `GET /vm/config`, and the format of `--config-file`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FullVmConfiguration {
    #[serde(
        rename = "boot-source",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub boot_source: Option<BootSource>,
    #[serde(default)]
    pub drives: Vec<Drive>,
    #[serde(
        rename = "device-passthrough",
        default,
        skip_serializing_if = "Vec::is_empty"
    )]
    pub device_passthrough: Vec<DevicePassthrough>,
    /// Ours, in answers only: ids of the drives that the guest was asked to release and has not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub releasing: Vec<String>,
    /// Ours, in answers only: the same of passed-through devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub releasing_devices: Vec<String>,
    #[serde(
        rename = "machine-config",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub machine_config: Option<MachineConfiguration>,
    #[serde(rename = "network-interfaces", default)]
    pub network_interfaces: Vec<NetworkInterface>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entropy: Option<Entropy>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balloon: Option<Balloon>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logger: Option<Logger>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<Serial>,
    /// Ours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lifecycle: Option<Lifecycle>,
}

impl FullVmConfiguration {
    /// Reads a description. Here, where its many types are read by one piece of code that is made for size.
    ///
    /// # Errors
    /// It is none.
    pub fn from_json(text: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(text)
    }
}
