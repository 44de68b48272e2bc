//! What a tenant asks for. Written once, at creation, and read at every start.

mod device;
mod disk;
mod gpu;
mod limits;
mod name;
mod restart;
mod size;

use std::net::IpAddr;
use std::path::PathBuf;

use fief_agent_proto::{MAX_KEYS, is_public_key_line};
use fief_api::PciAddress;
use fief_images::store::ArtifactId;
use serde::{Deserialize, Serialize};

use crate::network::{Publish, resolver};

pub use device::{Device, GpuRequest, GpuRequestError, MAX_DEVICES};
pub use disk::{Disk, DiskName, DiskNameError, DiskSource, MAX_DISKS};
pub use gpu::{Gpu, GpuError};
pub use limits::{DEFAULT_WEIGHT, Limits};
pub use name::{NameError, TenantName};
pub use restart::{PolicyError, RestartPolicy};
pub use size::{Bytes, SizeError};

/// Version of the form on disk. A file of another version is refused, not guessed at.
pub const VERSION: u32 = 1;
/// Most vCPUs of a tenant: the monitor's limit.
pub const MAX_CPUS: u8 = 32;
/// Memory of a tenant that says nothing.
pub const DEFAULT_MEMORY: &str = "512M";
/// Disk of a tenant that says nothing. The file is sparse: it takes what is used.
pub const DEFAULT_DISK: &str = "10G";
/// Less memory than this boots no Linux of any kind.
const MIN_MEMORY: Bytes = Bytes::from_mib(32);
/// Size of one file of the console's log, of a tenant that says nothing.
pub const DEFAULT_LOG_SIZE: &str = "1M";
/// Files of the console's log, of a tenant that says nothing.
pub const DEFAULT_LOG_FILES: u8 = 2;
const MIN_LOG_SIZE: Bytes = Bytes(4 << 10);
/// Most bytes of variables: they travel in one frame with the command (docs/agent-protocol.md).
const MAX_ENV: usize = 16 << 10;

/// How much of the console is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogBounds {
    /// Largest size of one file.
    pub size: Bytes,
    /// How many files: the one that grows, and older ones.
    pub files: u8,
}

impl Default for LogBounds {
    fn default() -> Self {
        Self {
            size: Bytes::from_mib(1),
            files: DEFAULT_LOG_FILES,
        }
    }
}

/// Who is process 1 in a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// fief's agent: the quickest start.
    #[default]
    Agent,
    /// The image's own init (systemd, say); the agent runs beside it.
    Image,
}

/// Which backend runs the tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// A virtual machine with its own kernel.
    #[default]
    Vm,
    /// A container, on the host's kernel.
    Container,
}

/// Form of a kernel file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KernelFormat {
    /// Uncompressed: nothing to unpack at boot.
    #[default]
    Elf,
    /// The compressed kernel as distributions ship it.
    Bzimage,
}

/// Which kernel a tenant boots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KernelChoice {
    /// One of fief's own, by name.
    Named(String),
    /// A kernel file, with everything it needs built in.
    Path(PathBuf),
}

/// Which network a tenant has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Net {
    /// The way out by address translation, and no other.
    #[default]
    Nat,
    /// None; commands and shells work all the same.
    None,
}

/// What a tenant asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// [`VERSION`].
    pub version: u32,
    /// Name of the image.
    pub image: String,
    /// What the image was when the tenant was made: its disk fits over no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact: Option<ArtifactId>,
    pub kernel: KernelChoice,
    #[serde(default)]
    pub kernel_format: KernelFormat,
    /// vCPUs, 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// Bytes of memory.
    pub memory: Bytes,
    /// Size of the writable disk.
    pub disk: Bytes,
    /// Disks besides that, which come and go while it runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<Disk>,
    #[serde(default)]
    pub init: Init,
    #[serde(default)]
    pub isolation: Isolation,
    /// The OCI runtime of a container, by name or absolute path; none: the first installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// A container runs though this machine cannot enforce all of its limits.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub allow_unenforced: bool,
    /// GPUs and other devices of this machine for a container.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gpus: Vec<Gpu>,
    /// PCI devices of this machine for a virtual machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<Device>,
    /// A virtual machine gives no memory back while it runs.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pin_memory: bool,
    /// Host name inside; the tenant's name by default.
    pub hostname: String,
    /// Lines for the `authorized_keys` of the account that is named as the tenant (sshd(8)).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// There is that account, though its last key was taken away: it is kept without any.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keyless_account: bool,
    /// Whom commands run as unless they say; root by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Remove the tenant when it ends.
    #[serde(default)]
    pub remove: bool,
    #[serde(default)]
    pub net: Net,
    /// Ports of the host that lead to the tenant's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<Publish>,
    /// Name servers; the host's own if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<IpAddr>,
    /// Variables of every command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// Whether it is started again when it ends.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// Started by `fief start --all`, as at the host's boot.
    #[serde(default)]
    pub autostart: bool,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub log: LogBounds,
}

/// Why a spec cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SpecError {
    #[error("--cpus {0} is not possible; give 1 to {MAX_CPUS}")]
    Cpus(u64),
    #[error(
        "--memory {0} is too little for a Linux; give at least {MIN_MEMORY}, better {DEFAULT_MEMORY}"
    )]
    LittleMemory(Bytes),
    #[error("--memory {asked} is more than the {total} this machine has; give less")]
    MuchMemory { asked: Bytes, total: Bytes },
    #[error("the host name '{0}' is none; use letters, digits and '-', at most 63 of them")]
    Hostname(String),
    #[error("{0} keys for ssh are more than the {MAX_KEYS} that a tenant can have; leave some out")]
    ManyKeys(usize),
    #[error("the tenant's key {0} for ssh is no public key; make the tenant anew with --ssh-key")]
    Key(usize),
    #[error("the user '{0}' is none; give a name, name:group, uid or uid:gid")]
    User(String),
    #[error("{0} is of no use without a network; leave it out, or leave out --net none")]
    WithoutNetwork(&'static str),
    #[error(
        "--publish {0} and --publish {1} are the same port of this machine; give different ones"
    )]
    SamePort(Publish, Publish),
    #[error(
        "--dns {0} is out of a tenant's reach; give an address beyond this machine and its links"
    )]
    Dns(IpAddr),
    #[error("{flag} {weight} is not possible; give 1 to 10000, where {DEFAULT_WEIGHT} is usual")]
    Weight { flag: &'static str, weight: u16 },
    #[error(
        "--rm and --restart {0} contradict each other: a tenant is removed when it ends or started again; leave one out"
    )]
    RemovedAndRestarted(RestartPolicy),
    #[error(
        "--rm and --autostart contradict each other: a tenant that is removed cannot be started; leave one out"
    )]
    RemovedAndAutostarted,
    #[error("'{0}' cannot be a variable's name; use no '=' and no NUL character in it")]
    Variable(String),
    #[error(
        "the variables take {0} bytes, more than the {MAX_ENV} that a command can be given; pass some in a file"
    )]
    MuchEnv(usize),
    #[error(
        "--gpu {0} is a device for a container; give a machine the GPU's PCI address (`fief gpu list`), or add --isolation \
         container"
    )]
    GpuForMachine(Gpu),
    #[error(
        "the PCI device {0} is for a machine, as a container shares the host's drivers; name a container's GPU as its files \
         in /etc/cdi do (--gpu nvidia.com/gpu=0), or leave --isolation container out"
    )]
    DeviceForContainer(PciAddress),
    #[error("the PCI device {0} is given twice; leave one out")]
    SameDevice(PciAddress),
    #[error("{0} devices are more than the {MAX_DEVICES} that a tenant can have; leave some out")]
    ManyDevices(usize),
    #[error("--gpu {0} is given twice; leave one out")]
    SameGpu(Gpu),
    #[error("--log-size {0} is too little; give at least {MIN_LOG_SIZE}")]
    LittleLog(Bytes),
    #[error("--log-files 0 is not possible; give 1 to 255")]
    NoLog,
}

impl Spec {
    /// Checks what its types cannot. `total_memory` is what the machine has.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn check(&self, total_memory: Bytes) -> Result<(), SpecError> {
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return Err(SpecError::Cpus(u64::from(self.cpus)));
        }
        if self.memory < MIN_MEMORY {
            return Err(SpecError::LittleMemory(self.memory));
        }
        if self.memory > total_memory {
            return Err(SpecError::MuchMemory {
                asked: self.memory,
                total: total_memory,
            });
        }
        if !is_hostname(&self.hostname) {
            return Err(SpecError::Hostname(self.hostname.clone()));
        }
        self.check_keys()?;
        // It travels on the kernel's command line.
        if let Some(user) = self.user.as_ref().filter(|user| !is_word(user)) {
            return Err(SpecError::User(user.clone()));
        }
        self.limits.check()?;
        self.check_container()?;
        self.check_devices()?;
        self.check_end()?;
        self.check_env()?;
        self.check_network()?;
        if self.log.files == 0 {
            return Err(SpecError::NoLog);
        }
        if self.log.size < MIN_LOG_SIZE {
            return Err(SpecError::LittleLog(self.log.size));
        }
        Ok(())
    }

    /// The same tenant when it is started for its files alone: nothing of its own runs in it, and nobody gives it anything.
    pub fn quiet(self) -> Self {
        Self {
            init: Init::Agent,
            user: None,
            ssh_keys: Vec::new(),
            keyless_account: false,
            disks: Vec::new(),
            gpus: Vec::new(),
            devices: Vec::new(),
            net: Net::None,
            publish: Vec::new(),
            dns: Vec::new(),
            env: Vec::new(),
            restart: RestartPolicy::No,
            remove: false,
            ..self
        }
    }

    /// Whether the tenant has the account that is named as it.
    pub fn has_account(&self) -> bool {
        !self.ssh_keys.is_empty() || self.keyless_account
    }

    fn check_container(&self) -> Result<(), SpecError> {
        for (at, gpu) in self.gpus.iter().enumerate() {
            if self.isolation == Isolation::Vm {
                return Err(SpecError::GpuForMachine(gpu.clone()));
            }
            if self.gpus[..at].contains(gpu) {
                return Err(SpecError::SameGpu(gpu.clone()));
            }
        }
        Ok(())
    }

    /// Whether all of a machine's memory stays where it is: a device reaches it by itself.
    pub fn keeps_memory(&self) -> bool {
        self.pin_memory || !self.devices.is_empty()
    }

    fn check_devices(&self) -> Result<(), SpecError> {
        if self.devices.len() > MAX_DEVICES {
            return Err(SpecError::ManyDevices(self.devices.len()));
        }
        for (at, device) in self.devices.iter().enumerate() {
            if self.isolation == Isolation::Container {
                return Err(SpecError::DeviceForContainer(device.address));
            }
            if self.devices[..at].iter().any(|other| other.shares(device)) {
                return Err(SpecError::SameDevice(device.address));
            }
        }
        Ok(())
    }

    fn check_end(&self) -> Result<(), SpecError> {
        if self.remove && self.restart != RestartPolicy::No {
            return Err(SpecError::RemovedAndRestarted(self.restart));
        }
        if self.remove && self.autostart {
            return Err(SpecError::RemovedAndAutostarted);
        }
        Ok(())
    }

    fn check_env(&self) -> Result<(), SpecError> {
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(SpecError::Variable(name.clone()));
            }
        }
        let size = self
            .env
            .iter()
            .map(|(name, value)| name.len() + value.len() + 2);
        match size.sum() {
            ..=MAX_ENV => Ok(()),
            size => Err(SpecError::MuchEnv(size)),
        }
    }

    fn check_network(&self) -> Result<(), SpecError> {
        if self.net == Net::None {
            return match (self.publish.is_empty(), self.dns.is_empty()) {
                (false, _) => Err(SpecError::WithoutNetwork("--publish")),
                (_, false) => Err(SpecError::WithoutNetwork("--dns")),
                _ => Ok(()),
            };
        }
        for (at, port) in self.publish.iter().enumerate() {
            if let Some(same) = self.publish[..at].iter().find(|other| other.collides(port)) {
                return Err(SpecError::SamePort(*same, *port));
            }
        }
        let beyond = self
            .dns
            .iter()
            .find(|server| !resolver::is_reachable(**server));
        beyond.map_or(Ok(()), |server| Err(SpecError::Dns(*server)))
    }

    fn check_keys(&self) -> Result<(), SpecError> {
        if self.ssh_keys.len() > MAX_KEYS {
            return Err(SpecError::ManyKeys(self.ssh_keys.len()));
        }
        let bad = self
            .ssh_keys
            .iter()
            .position(|key| !is_public_key_line(key));
        bad.map_or(Ok(()), |index| Err(SpecError::Key(index + 1)))
    }
}

fn is_hostname(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(good)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

fn is_word(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-:$".contains(&byte);
    (1..=96).contains(&text.len()) && text.bytes().all(good)
}

#[cfg(test)]
pub(crate) mod tests;
