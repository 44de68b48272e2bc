//! A validated description of a virtual machine. No serde here: API types are converted into these, and these cannot
//! hold an invalid machine.

mod network;
mod passthrough;

use std::path::PathBuf;

use fief_api::PciAddress;
use fief_devices::limiter::Limits;
pub use network::{InterfaceConfig, MAX_INTERFACES, insert_interface};
pub use passthrough::{MAX_DEVICES, PassthroughConfig, Source, insert_device};

/// Everything that a machine is built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    pub cpus: CpuConfig,
    pub memory: MemoryConfig,
    pub boot: BootConfig,
    /// In the order they were added; the root device first.
    pub drives: Vec<DriveConfig>,
    /// In the order they were added.
    pub interfaces: Vec<InterfaceConfig>,
    pub vsock: Option<VsockConfig>,
    /// virtio-rng with its limits, if there is one.
    pub entropy: Option<Limits>,
    pub balloon: Option<BalloonConfig>,
    /// In the order they were added.
    pub passthrough: Vec<PassthroughConfig>,
    pub serial: SerialConfig,
    pub on_reboot: OnReboot,
}

/// Number and arrangement of vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuConfig {
    count: u8,
    /// Two threads a core.
    smt: bool,
}

/// Largest number of vCPUs.
pub const MAX_VCPUS: u8 = 32;

/// Largest number of drives: `vda` to `vdz` and a function on bus 0 for each.
pub const MAX_DRIVES: usize = 26;

/// Context ids 0 to 2 are reserved, and so is the last (virtio 1.3 §5.10.4, VMADDR_CID_ANY).
const GUEST_CIDS: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;

/// Longest path of a unix socket: `sun_path` holds 108 bytes with a terminating zero (unix(7)).
const SOCKET_PATH_MAX: usize = 107;

/// What is added to the vsock path for a guest's connection: `_` and a port of up to ten digits.
const PORT_SUFFIX_MAX: usize = 11;

/// Why a description is not a machine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("vcpu_count is {0}; it must be between 1 and {MAX_VCPUS}")]
    VcpuCount(u64),
    #[error("vcpu_count is {0}; with smt it must be 1 or even")]
    OddSmt(u8),
    #[error("mem_size_mib is 0; give the guest at least 1 MiB")]
    NoMemory,
    #[error("mem_size_mib is {asked}, but the host has {total} MiB in all; ask for less")]
    MemoryBeyondHost { asked: u64, total: u64 },
    #[error("mem_size_mib is {0}; with huge_pages 2M it must be even")]
    OddHugePages(u64),
    #[error("the drive id '{0}' is not allowed; use 1 to 64 letters, digits and underscores")]
    DriveId(String),
    #[error("drive {id}: num_queues is {asked}; it must be between 1 and {MAX_VCPUS}")]
    Queues { id: String, asked: u64 },
    #[error(
        "drive {id} asks for {asked} queues, but the guest has {vcpus} vCPUs; one queue a vCPU is the most"
    )]
    QueuesBeyondVcpus { id: String, asked: u16, vcpus: u8 },
    #[error("drive {id}: partuuid '{partuuid}' is none; use letters, digits and dashes")]
    Partuuid { id: String, partuuid: String },
    #[error("drive {second} cannot be the root device: drive {first} is; only one can be")]
    TwoRootDevices { first: String, second: String },
    #[error("there are {MAX_DRIVES} drives already; remove one first")]
    TooManyDrives,
    #[error("the interface id '{0}' is not allowed; use 1 to 64 letters, digits and underscores")]
    InterfaceId(String),
    #[error(
        "host_dev_name '{0}' is no name of a network interface; use 1 to 15 characters, none of them a space, / or :"
    )]
    TapName(String),
    #[error(
        "guest_mac '{0}' is no address of an interface; give six hexadecimal bytes such as 02:00:00:00:00:01"
    )]
    Mac(String),
    #[error("mtu is {0}; it must be between 68 and 65535")]
    Mtu(u64),
    #[error("interface {second} cannot have the {what} of interface {first}; give it its own")]
    SameInterface {
        first: String,
        second: String,
        what: &'static str,
    },
    #[error("there are {MAX_INTERFACES} network interfaces already; no more are supported")]
    TooManyInterfaces,
    #[error("guest_cid is {0}; it must be between 3 and {max}", max = u32::MAX - 1)]
    GuestCid(u64),
    #[error(
        "amount_mib is {asked}, but the guest has {total} MiB in all; a balloon cannot be larger than its guest"
    )]
    BalloonBeyondMemory { asked: u64, total: u64 },
    #[error("stats_polling_interval_s is {0}; it must be at most {max}", max = u16::MAX)]
    StatisticsInterval(u64),
    #[error(
        "a balloon cannot take memory from a guest whose memory is pinned for a passed-through device; leave one of them \
         out"
    )]
    BalloonWithPinnedMemory,
    #[error("the device id '{0}' is not allowed; use 1 to 64 letters, digits and underscores")]
    DeviceId(String),
    #[error(
        "device {id}: companions must be other functions of the device that {first} is of, each named once; give another \
         device an id of its own"
    )]
    Companions { id: String, first: PciAddress },
    #[error("device {second} cannot have a function of device {first}; give each function once")]
    SameFunction { first: String, second: String },
    #[error("there are {MAX_DEVICES} passed-through devices already; remove one first")]
    TooManyDevices,
    #[error(
        "a device of another process needs memory that it can share, which huge_pages 2M is not; leave one of them out"
    )]
    SharedHugePages,
    #[error("{name} is empty; give a path")]
    EmptyPath { name: &'static str },
    #[error(
        "uds_path has {0} bytes; a socket's path holds {SOCKET_PATH_MAX} and {PORT_SUFFIX_MAX} of them are for ports"
    )]
    SocketPathLength(usize),
}

impl CpuConfig {
    /// # Errors
    /// `count` is 0 or above [`MAX_VCPUS`], or odd (and not 1) with `smt`.
    pub fn new(count: u64, smt: bool) -> Result<Self, ConfigError> {
        let valid = u8::try_from(count)
            .ok()
            .filter(|n| (1..=MAX_VCPUS).contains(n));
        let count = valid.ok_or(ConfigError::VcpuCount(count))?;
        if smt && count > 1 && count % 2 == 1 {
            return Err(ConfigError::OddSmt(count));
        }
        Ok(Self { count, smt })
    }

    pub fn count(self) -> u8 {
        self.count
    }

    pub fn smt(self) -> bool {
        self.smt
    }
}

/// Size of guest RAM and what is behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryConfig {
    /// MiB, at least 1.
    pub size_mib: u64,
    pub backing: MemoryBacking,
}

impl MemoryConfig {
    /// `host_mib` is the size of the host's memory.
    ///
    /// # Errors
    /// `size_mib` is 0, more than the host has, or no multiple of the page size of `backing`.
    pub fn new(size_mib: u64, backing: MemoryBacking, host_mib: u64) -> Result<Self, ConfigError> {
        if size_mib == 0 {
            return Err(ConfigError::NoMemory);
        }
        if size_mib > host_mib {
            return Err(ConfigError::MemoryBeyondHost {
                asked: size_mib,
                total: host_mib,
            });
        }
        if backing == MemoryBacking::HugeTlb && size_mib % 2 == 1 {
            return Err(ConfigError::OddHugePages(size_mib));
        }
        Ok(Self { size_mib, backing })
    }
}

/// What is behind guest RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemoryBacking {
    /// Private anonymous memory; `huge` asks for transparent huge pages (MADV_HUGEPAGE).
    Anonymous { huge: bool },
    /// A memfd, mapped shared, so that a device process can map it too.
    Memfd,
    /// A private (copy-on-write) mapping of a file: restore from a snapshot.
    File(PathBuf),
    /// hugetlbfs pages of 2 MiB.
    HugeTlb,
}

/// What the guest starts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootConfig {
    /// 64-bit ELF (Linux or PVH entry) or bzImage.
    pub kernel: PathBuf,
    pub initrd: Option<PathBuf>,
    /// Kernel command line, without what the monitor adds.
    pub args: String,
}

/// A virtio-blk device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriveConfig {
    pub id: String,
    pub path: PathBuf,
    pub read_only: bool,
    pub root_device: bool,
    pub partuuid: Option<String>,
    /// Offer flush to the guest (API: cache_type Writeback) or ignore it (Unsafe).
    pub writeback: bool,
    /// io_uring (Async) or plain reads and writes in the worker (Sync).
    pub io_uring: bool,
    /// Open with O_DIRECT.
    pub direct: bool,
    /// Number of request queues, 1 to the number of vCPUs.
    pub queues: u16,
    pub limits: Limits,
}

/// Whether `id` can be that of a drive or interface.
fn is_id(id: &str) -> bool {
    let letter = |c: char| c == '_' || c.is_alphanumeric();
    (1..=64).contains(&id.chars().count()) && id.chars().all(letter)
}

/// Enough of a name for a message.
fn shortened(text: &str) -> String {
    text.chars().take(64).collect()
}

impl DriveConfig {
    /// # Errors
    /// The id, the partition id or the number of queues is none, or the path is empty.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !is_id(&self.id) {
            return Err(ConfigError::DriveId(shortened(&self.id)));
        }
        if self.path.as_os_str().is_empty() {
            return Err(ConfigError::EmptyPath {
                name: "path_on_host",
            });
        }
        if let Some(partuuid) = &self.partuuid {
            // It becomes part of the kernel command line.
            let fine = |c: char| c == '-' || c.is_ascii_alphanumeric();
            if partuuid.is_empty() || partuuid.len() > 64 || !partuuid.chars().all(fine) {
                return Err(ConfigError::Partuuid {
                    id: self.id.clone(),
                    partuuid: shortened(partuuid),
                });
            }
        }
        Ok(())
    }

    /// # Errors
    /// The drive has more queues than the guest has vCPUs.
    pub fn check_queues(&self, vcpus: u8) -> Result<(), ConfigError> {
        if self.queues > u16::from(vcpus) {
            return Err(ConfigError::QueuesBeyondVcpus {
                id: self.id.clone(),
                asked: self.queues,
                vcpus,
            });
        }
        Ok(())
    }

    /// Reads a number of queues.
    ///
    /// # Errors
    /// It is 0 or more than the largest number of vCPUs.
    pub fn queues(id: &str, asked: u64) -> Result<u16, ConfigError> {
        let valid = u16::try_from(asked)
            .ok()
            .filter(|n| (1..=u16::from(MAX_VCPUS)).contains(n));
        valid.ok_or_else(|| ConfigError::Queues {
            id: shortened(id),
            asked,
        })
    }
}

/// Adds `drive`, or puts it in the place of the one with its id. The root device comes first.
///
/// # Errors
/// It is a second root device, or there are too many.
pub fn insert_drive(drives: &mut Vec<DriveConfig>, drive: DriveConfig) -> Result<(), ConfigError> {
    drive.check()?;
    let other_root = drives
        .iter()
        .find(|other| other.root_device && other.id != drive.id);
    if let (true, Some(other)) = (drive.root_device, other_root) {
        return Err(ConfigError::TwoRootDevices {
            first: other.id.clone(),
            second: drive.id,
        });
    }
    let is_full = drives.len() >= MAX_DRIVES;
    match drives.iter_mut().find(|other| other.id == drive.id) {
        Some(other) => *other = drive,
        None if is_full => return Err(ConfigError::TooManyDrives),
        None => drives.push(drive),
    }
    // Stable: the others keep their order.
    drives.sort_by_key(|drive| !drive.root_device);
    Ok(())
}

impl VmConfig {
    /// What can only be judged of the whole.
    ///
    /// # Errors
    /// A drive asks for more queues than the guest has vCPUs, the balloon for more memory than there is, or for any that is
    /// pinned.
    pub fn check(&self) -> Result<(), ConfigError> {
        if let Some(balloon) = &self.balloon {
            balloon.check(self.memory.size_mib)?;
            if self.passthrough.iter().any(PassthroughConfig::pins_memory) {
                return Err(ConfigError::BalloonWithPinnedMemory);
            }
        }
        let mut drives = self.drives.iter();
        drives.try_for_each(|drive| drive.check_queues(self.cpus.count()))
    }
}

/// A virtio-vsock device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockConfig {
    /// Guest context id, at least 3.
    pub guest_cid: u32,
    /// Listening socket made by the monitor; guest connections to port N go to `<path>_N`.
    pub uds_path: PathBuf,
}

impl VsockConfig {
    /// # Errors
    /// The context id is reserved, or the path leaves no room for a port.
    pub fn new(guest_cid: u64, uds_path: PathBuf) -> Result<Self, ConfigError> {
        let cid = u32::try_from(guest_cid)
            .ok()
            .filter(|cid| GUEST_CIDS.contains(cid));
        let guest_cid = cid.ok_or(ConfigError::GuestCid(guest_cid))?;
        let length = uds_path.as_os_str().len();
        if length == 0 {
            return Err(ConfigError::EmptyPath { name: "uds_path" });
        }
        if length > SOCKET_PATH_MAX - PORT_SUFFIX_MAX {
            return Err(ConfigError::SocketPathLength(length));
        }
        Ok(Self {
            guest_cid,
            uds_path,
        })
    }
}

/// A virtio-balloon device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BalloonConfig {
    /// MiB that the guest is to give; at most what it has.
    pub target_mib: u32,
    pub deflate_on_oom: bool,
    /// Free page reporting.
    pub reporting: bool,
    /// The guest is asked for statistics.
    pub statistics: bool,
    /// Seconds between them; 0: when somebody asks.
    pub interval_s: u16,
}

impl BalloonConfig {
    /// Reads an amount of MiB for a guest of `memory_mib` MiB.
    ///
    /// # Errors
    /// It is more than that.
    pub fn target(asked: u64, memory_mib: u64) -> Result<u32, ConfigError> {
        let target = u32::try_from(asked).ok().filter(|_| asked <= memory_mib);
        target.ok_or(ConfigError::BalloonBeyondMemory {
            asked,
            total: memory_mib,
        })
    }

    /// Reads a number of seconds.
    ///
    /// # Errors
    /// It is too large.
    pub fn interval(asked: u64) -> Result<u16, ConfigError> {
        u16::try_from(asked).map_err(|_| ConfigError::StatisticsInterval(asked))
    }

    /// # Errors
    /// The guest of `memory_mib` MiB is smaller than its balloon.
    pub fn check(&self, memory_mib: u64) -> Result<(), ConfigError> {
        Self::target(u64::from(self.target_mib), memory_mib).map(drop)
    }
}

/// Where the serial console goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialConfig {
    /// Output to the monitor's stdout, input from its stdin when that is a terminal or a pipe.
    Stdio,
    /// Output to a file or named pipe, no input.
    File(PathBuf),
    /// A new pseudo-terminal; its name is logged.
    Pty,
}

/// What a guest reset does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReboot {
    /// The process ends with exit code 0, as Firecracker's does.
    Exit,
    /// The machine starts again in place.
    Restart,
}

#[cfg(test)]
mod tests;
