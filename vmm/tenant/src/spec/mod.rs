//! What a tenant asks for. Written once, at creation, and read at every start.

mod name;
mod size;

use std::net::IpAddr;
use std::path::PathBuf;

use fief_images::store::ArtifactId;
use serde::{Deserialize, Serialize};

use crate::network::{Publish, resolver};

pub use name::{NameError, TenantName};
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// A virtual machine with its own kernel.
    #[default]
    Vm,
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
    #[serde(default)]
    pub init: Init,
    #[serde(default)]
    pub isolation: Isolation,
    /// Host name inside; the tenant's name by default.
    pub hostname: String,
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
        // It travels on the kernel's command line.
        if let Some(user) = self.user.as_ref().filter(|user| !is_word(user)) {
            return Err(SpecError::User(user.clone()));
        }
        self.check_network()
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
