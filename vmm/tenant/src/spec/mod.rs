//! What a tenant asks for. Written once, at creation, and read at every start.

mod name;
mod size;

use std::path::PathBuf;

use fief_agent_proto::{MAX_KEYS, is_public_key_line};
use fief_images::store::ArtifactId;
use serde::{Deserialize, Serialize};

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
    /// Lines for the `authorized_keys` of the account that is named as the tenant (sshd(8)).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ssh_keys: Vec<String>,
    /// Whom commands run as unless they say; root by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Remove the tenant when it ends.
    #[serde(default)]
    pub remove: bool,
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
        match &self.user {
            Some(user) if !is_word(user) => Err(SpecError::User(user.clone())),
            _ => Ok(()),
        }
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
