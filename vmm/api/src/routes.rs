//! Paths and methods.

use std::fmt;

/// An HTTP method that the API uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Put,
    Patch,
    Delete,
}

impl Method {
    /// As it stands in a request.
    pub fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    DescribeInstance,
    Version,
    GetMachineConfig,
    PutMachineConfig,
    PatchMachineConfig,
    PutBootSource,
    /// With the drive's id.
    PutDrive(String),
    /// With the drive's id.
    PatchDrive(String),
    /// With the drive's id.
    DeleteDrive(String),
    /// With the interface's id.
    PutNetworkInterface(String),
    /// With the interface's id.
    PatchNetworkInterface(String),
    /// With the device's id.
    GetDevice(String),
    /// With the device's id.
    PutDevice(String),
    /// With the device's id.
    DeleteDevice(String),
    PutVsock,
    PutEntropy,
    GetBalloon,
    PutBalloon,
    PatchBalloon,
    GetBalloonStatistics,
    PatchBalloonStatistics,
    PutSerial,
    PutLogger,
    PutLifecycle,
    PutActions,
    PatchVm,
    GetVmConfig,
}

/// A row of [`ROUTES`].
#[derive(Debug, Clone, Copy)]
pub struct Route {
    pub method: Method,
    /// As in the OpenAPI document.
    pub path: &'static str,
    /// Name of the body's type.
    pub request: Option<&'static str>,
    /// Name of the answer's type; `None` is 204 without a body.
    pub response: Option<&'static str>,
}

const fn get(path: &'static str, response: &'static str) -> Route {
    Route {
        method: Method::Get,
        path,
        request: None,
        response: Some(response),
    }
}

const fn change(method: Method, path: &'static str, request: &'static str) -> Route {
    Route {
        method,
        path,
        request: Some(request),
        response: None,
    }
}

const fn delete(path: &'static str) -> Route {
    Route {
        method: Method::Delete,
        path,
        request: None,
        response: None,
    }
}

/// Every route of the API.
pub const ROUTES: &[Route] = &[
    get("/", "InstanceInfo"),
    get("/version", "Version"),
    get("/machine-config", "MachineConfiguration"),
    change(Method::Put, "/machine-config", "MachineConfiguration"),
    change(
        Method::Patch,
        "/machine-config",
        "MachineConfigurationUpdate",
    ),
    change(Method::Put, "/boot-source", "BootSource"),
    change(Method::Put, "/drives/{drive_id}", "Drive"),
    change(Method::Patch, "/drives/{drive_id}", "PartialDrive"),
    delete("/drives/{drive_id}"),
    change(
        Method::Put,
        "/network-interfaces/{iface_id}",
        "NetworkInterface",
    ),
    change(
        Method::Patch,
        "/network-interfaces/{iface_id}",
        "PartialNetworkInterface",
    ),
    get("/device-passthrough/{id}", "DevicePassthrough"),
    change(Method::Put, "/device-passthrough/{id}", "DevicePassthrough"),
    delete("/device-passthrough/{id}"),
    change(Method::Put, "/vsock", "Vsock"),
    change(Method::Put, "/entropy", "Entropy"),
    get("/balloon", "Balloon"),
    change(Method::Put, "/balloon", "Balloon"),
    change(Method::Patch, "/balloon", "BalloonUpdate"),
    get("/balloon/statistics", "BalloonStats"),
    change(Method::Patch, "/balloon/statistics", "BalloonStatsUpdate"),
    change(Method::Put, "/serial", "Serial"),
    change(Method::Put, "/logger", "Logger"),
    change(Method::Put, "/lifecycle", "Lifecycle"),
    change(Method::Put, "/actions", "InstanceActionInfo"),
    change(Method::Patch, "/vm", "Vm"),
    get("/vm/config", "FullVmConfiguration"),
];

/// First parts of Firecracker's paths that this API does not have, or not all of.
const FIRECRACKER_ONLY: [&str; 7] = [
    "balloon",
    "cpu-config",
    "hotplug",
    "metrics",
    "mmds",
    "pmem",
    "snapshot",
];

/// Why there is no such endpoint. The status code is 400 for all of them, as in Firecracker.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum RouteError {
    #[error("{method} {path} is part of Firecracker's API that fief-vmm {} does not offer", env!("CARGO_PKG_VERSION"))]
    NotOffered { method: String, path: String },
    #[error("there is no {path} in this API; GET / and docs/api.md are places to begin")]
    NoPath { path: String },
    #[error("{path} does not take {method}; it takes {allowed}")]
    Method {
        method: String,
        path: String,
        allowed: String,
    },
    #[error("the path has no drive id: use /drives/ID")]
    NoDriveId,
    #[error("the path has no interface id: use /network-interfaces/ID")]
    NoInterfaceId,
    #[error("the path has no device id: use /device-passthrough/ID")]
    NoDeviceId,
}

/// Enough of a path for a message.
fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

impl Endpoint {
    /// The endpoint at `path` for `method` (as it stands in the request). A query is not part of `path`.
    ///
    /// # Errors
    /// No such path, or it does not take the method.
    pub fn find(method: &str, path: &str) -> Result<Self, RouteError> {
        let parts: Vec<&str> = path
            .split('/')
            .filter(|part| !part.is_empty())
            .take(4)
            .collect();
        let found = match (method, parts.as_slice()) {
            ("GET", []) => Self::DescribeInstance,
            ("GET", ["version"]) => Self::Version,
            ("GET", ["machine-config"]) => Self::GetMachineConfig,
            ("PUT", ["machine-config"]) => Self::PutMachineConfig,
            ("PATCH", ["machine-config"]) => Self::PatchMachineConfig,
            ("PUT", ["boot-source"]) => Self::PutBootSource,
            ("PUT", ["drives", id]) => Self::PutDrive((*id).to_owned()),
            ("PATCH", ["drives", id]) => Self::PatchDrive((*id).to_owned()),
            ("DELETE", ["drives", id]) => Self::DeleteDrive((*id).to_owned()),
            ("PUT" | "PATCH" | "DELETE", ["drives"]) => return Err(RouteError::NoDriveId),
            ("PUT", ["network-interfaces", id]) => Self::PutNetworkInterface((*id).to_owned()),
            ("PATCH", ["network-interfaces", id]) => Self::PatchNetworkInterface((*id).to_owned()),
            ("PUT" | "PATCH", ["network-interfaces"]) => return Err(RouteError::NoInterfaceId),
            ("GET", ["device-passthrough", id]) => Self::GetDevice((*id).to_owned()),
            ("PUT", ["device-passthrough", id]) => Self::PutDevice((*id).to_owned()),
            ("DELETE", ["device-passthrough", id]) => Self::DeleteDevice((*id).to_owned()),
            ("GET" | "PUT" | "DELETE", ["device-passthrough"]) => {
                return Err(RouteError::NoDeviceId);
            }
            ("PUT", ["vsock"]) => Self::PutVsock,
            ("PUT", ["entropy"]) => Self::PutEntropy,
            ("GET", ["balloon"]) => Self::GetBalloon,
            ("PUT", ["balloon"]) => Self::PutBalloon,
            ("PATCH", ["balloon"]) => Self::PatchBalloon,
            ("GET", ["balloon", "statistics"]) => Self::GetBalloonStatistics,
            ("PATCH", ["balloon", "statistics"]) => Self::PatchBalloonStatistics,
            ("PUT", ["serial"]) => Self::PutSerial,
            ("PUT", ["logger"]) => Self::PutLogger,
            ("PUT", ["lifecycle"]) => Self::PutLifecycle,
            ("PUT", ["actions"]) => Self::PutActions,
            ("PATCH", ["vm"]) => Self::PatchVm,
            ("GET", ["vm", "config"]) => Self::GetVmConfig,
            _ => return Err(Self::why_not(method, path, &parts)),
        };
        Ok(found)
    }

    fn why_not(method: &str, path: &str, parts: &[&str]) -> RouteError {
        let (method, path) = (shortened(method), shortened(path));
        let is_here = |route: &&Route| {
            let template = route.path.split('/').filter(|part| !part.is_empty());
            template.clone().count() == parts.len()
                && template
                    .zip(parts)
                    .all(|(t, part)| t.starts_with('{') || t == *part)
        };
        let allowed: Vec<&str> = ROUTES
            .iter()
            .filter(is_here)
            .map(|route| route.method.name())
            .collect();
        if !allowed.is_empty() {
            let allowed = allowed.join(", ");
            return RouteError::Method {
                method,
                path,
                allowed,
            };
        }
        match parts.first() {
            Some(first) if FIRECRACKER_ONLY.contains(first) => {
                RouteError::NotOffered { method, path }
            }
            _ => RouteError::NoPath { path },
        }
    }

    /// Its method and path.
    pub fn request_line(&self) -> (Method, String) {
        let (method, path) = match self {
            Self::DescribeInstance => (Method::Get, "/"),
            Self::Version => (Method::Get, "/version"),
            Self::GetMachineConfig => (Method::Get, "/machine-config"),
            Self::PutMachineConfig => (Method::Put, "/machine-config"),
            Self::PatchMachineConfig => (Method::Patch, "/machine-config"),
            Self::PutBootSource => (Method::Put, "/boot-source"),
            Self::PutDrive(id) => return (Method::Put, format!("/drives/{id}")),
            Self::PatchDrive(id) => return (Method::Patch, format!("/drives/{id}")),
            Self::DeleteDrive(id) => return (Method::Delete, format!("/drives/{id}")),
            Self::PutNetworkInterface(id) => {
                return (Method::Put, format!("/network-interfaces/{id}"));
            }
            Self::PatchNetworkInterface(id) => {
                return (Method::Patch, format!("/network-interfaces/{id}"));
            }
            Self::GetDevice(id) => return (Method::Get, format!("/device-passthrough/{id}")),
            Self::PutDevice(id) => return (Method::Put, format!("/device-passthrough/{id}")),
            Self::DeleteDevice(id) => return (Method::Delete, format!("/device-passthrough/{id}")),
            Self::PutVsock => (Method::Put, "/vsock"),
            Self::PutEntropy => (Method::Put, "/entropy"),
            Self::GetBalloon => (Method::Get, "/balloon"),
            Self::PutBalloon => (Method::Put, "/balloon"),
            Self::PatchBalloon => (Method::Patch, "/balloon"),
            Self::GetBalloonStatistics => (Method::Get, "/balloon/statistics"),
            Self::PatchBalloonStatistics => (Method::Patch, "/balloon/statistics"),
            Self::PutSerial => (Method::Put, "/serial"),
            Self::PutLogger => (Method::Put, "/logger"),
            Self::PutLifecycle => (Method::Put, "/lifecycle"),
            Self::PutActions => (Method::Put, "/actions"),
            Self::PatchVm => (Method::Patch, "/vm"),
            Self::GetVmConfig => (Method::Get, "/vm/config"),
        };
        (method, path.to_owned())
    }
}
