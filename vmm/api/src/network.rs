//! Network interfaces of a machine.

use serde::{Deserialize, Serialize};

use crate::limiter::RateLimiter;

/// `/network-interfaces/{iface_id}`: a virtio-net device at a tap of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkInterface {
    /// Letters, digits and underscores; the same as in the path.
    pub iface_id: String,
    /// Name of the tap device, in the monitor's network namespace.
    pub host_dev_name: String,
    /// The guest's address, six hexadecimal bytes with colons. Left out, the guest makes one up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mac: Option<String>,
    /// Largest packet in bytes, 68 to 65535. Left out, the guest decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u64>,
    /// Limits of what the guest receives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    /// Limits of what the guest sends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}

impl NetworkInterface {
    /// An interface at the tap `host_dev_name`, everything else left to its default.
    pub fn new(id: impl Into<String>, host_dev_name: impl Into<String>) -> Self {
        Self {
            iface_id: id.into(),
            host_dev_name: host_dev_name.into(),
            guest_mac: None,
            mtu: None,
            rx_rate_limiter: None,
            tx_rate_limiter: None,
        }
    }
}

/// `PATCH /network-interfaces/{iface_id}`: other limits for a running machine. A bucket that is left out stays as it is; one
/// of size 0 takes its limit away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartialNetworkInterface {
    pub iface_id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rx_rate_limiter: Option<RateLimiter>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tx_rate_limiter: Option<RateLimiter>,
}
