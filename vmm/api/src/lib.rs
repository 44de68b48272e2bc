//! The monitor's control API: the types that travel as JSON over its unix socket, the routes, and a client.
//!
//! Names, defaults and status codes are Firecracker's, so that its clients work unchanged; `docs/api.md` lists what is
//! added and what differs. The OpenAPI document is [`OPENAPI`]; a test keeps it and this code in step.
//!
//! These are wire types: they can hold nonsense (zero vCPUs, a path that is not there). The monitor converts them into
//! types that cannot. Unknown fields are refused everywhere, so that a misspelt one is never silently ignored.

mod balloon;
mod client;
mod device;
mod instance;
mod limiter;
mod machine;
mod network;
mod passthrough;
mod pci_address;
mod routes;
mod whole;

pub use balloon::{Balloon, BalloonStats, BalloonStatsUpdate, BalloonUpdate};
pub use client::{Client, ClientError, DEFAULT_TIMEOUT};
pub use device::{
    CacheType, Drive, Entropy, IoEngine, PartialDrive, Serial, SerialDestination, Vsock,
};
pub use instance::{
    ActionType, Fault, InstanceActionInfo, InstanceInfo, InstanceState, Lifecycle, LogLevel,
    Logger, OnReboot, Version, Vm, VmState,
};
pub use limiter::{RateLimiter, TokenBucket};
pub use machine::{BootSource, HugePages, MachineConfiguration, MachineConfigurationUpdate};
pub use network::{NetworkInterface, PartialNetworkInterface};
pub use passthrough::DevicePassthrough;
pub use pci_address::{PciAddress, PciAddressError};
pub use routes::{Endpoint, Method, ROUTES, Route, RouteError};
pub use whole::FullVmConfiguration;

/// The OpenAPI document of this API.
pub const OPENAPI: &str = include_str!("../openapi.yaml");

/// The version of Firecracker whose API this one follows; `GET /version` gives it as `firecracker_version`.
pub const FIRECRACKER_VERSION: &str = "1.17.0";

/// Largest request body in bytes, unless the monitor is started with `--http-api-max-payload-size` (Firecracker's
/// default).
pub const DEFAULT_MAX_PAYLOAD: usize = 51_200;

#[cfg(test)]
mod tests;
