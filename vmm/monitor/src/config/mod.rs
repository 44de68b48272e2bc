//! A validated description of a virtual machine. No serde here: API types are converted into these, and these cannot
//! hold an invalid machine.

use std::path::PathBuf;

/// Everything that a machine is built from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmConfig {
    pub cpus: CpuConfig,
    pub memory: MemoryConfig,
    pub boot: BootConfig,
    /// In the order they were added; the root device first.
    pub drives: Vec<DriveConfig>,
    pub vsock: Option<VsockConfig>,
    /// virtio-rng present.
    pub entropy: bool,
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
}

/// A virtio-vsock device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VsockConfig {
    /// Guest context id, at least 3.
    pub guest_cid: u32,
    /// Listening socket made by the monitor; guest connections to port N go to `<path>_N`.
    pub uds_path: PathBuf,
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
