//! Devices of a machine.

use serde::{Deserialize, Serialize};

use crate::limiter::{RateLimiter, TokenBucket};

/// What a guest's flush does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum CacheType {
    /// Flushes are not offered: data may be lost when the host stops.
    #[default]
    Unsafe,
    /// Flushes reach the disk.
    Writeback,
}

/// How the host reads and writes a drive's file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum IoEngine {
    /// One request after another.
    #[default]
    Sync,
    /// Many at once, by io_uring.
    Async,
}

/// Firecracker takes (and prints) `null` for these fields.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn one() -> u64 {
    1
}

fn is_one(queues: &u64) -> bool {
    *queues == 1
}

fn is_false(value: &bool) -> bool {
    !value
}

/// `/drives/{drive_id}`: a virtio-blk device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drive {
    /// Letters, digits and underscores; the same as in the path.
    pub drive_id: String,
    /// File or block device behind the drive. Required, as `socket` is not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<String>,
    /// The guest boots from this drive; one drive at most.
    pub is_root_device: bool,
    /// Partition to boot from, of the root device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partuuid: Option<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub is_read_only: bool,
    #[serde(default)]
    pub cache_type: CacheType,
    #[serde(default, deserialize_with = "null_is_default")]
    pub io_engine: IoEngine,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
    /// Socket of a vhost-user-blk process. Not supported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<String>,
    /// Ours: bypass the host's page cache (O_DIRECT).
    #[serde(default, skip_serializing_if = "is_false")]
    pub direct_io: bool,
    /// Ours: request queues, 1 to the number of vCPUs.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub num_queues: u64,
}

impl Drive {
    /// A writable drive on the file `path`, everything else at its default.
    pub fn new(id: impl Into<String>, path: impl Into<String>) -> Self {
        Self {
            drive_id: id.into(),
            path_on_host: Some(path.into()),
            is_root_device: false,
            partuuid: None,
            is_read_only: false,
            cache_type: CacheType::default(),
            io_engine: IoEngine::default(),
            rate_limiter: None,
            socket: None,
            direct_io: false,
            num_queues: 1,
        }
    }
}

/// `PATCH /drives/{drive_id}`: what is left out stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PartialDrive {
    pub drive_id: String,
    /// The file to put behind the drive; the one that is there has its size read again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_on_host: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// `/vsock`: a virtio-vsock device whose host side is unix sockets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vsock {
    /// Context id of the guest, at least 3.
    pub guest_cid: u64,
    /// Socket that the monitor makes. A client sends `CONNECT <port>\n`; a guest's connection to port N goes to the
    /// socket `<uds_path>_N`.
    pub uds_path: String,
    /// Ignored; Firecracker deprecated it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsock_id: Option<String>,
}

/// `/entropy`: a virtio-rng device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entropy {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<RateLimiter>,
}

/// Where serial output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SerialDestination {
    /// The monitor's standard output, with input from its standard input.
    Stdio,
    /// `serial_out_path`, without input.
    File,
    /// A new pseudo-terminal, whose name is logged.
    Pty,
}

/// `/serial`: the serial console.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Serial {
    /// File or named pipe that takes the output.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial_out_path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limiter: Option<TokenBucket>,
    /// Ours. Left out, it is `File` with a `serial_out_path` and `Stdio` without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destination: Option<SerialDestination>,
}
