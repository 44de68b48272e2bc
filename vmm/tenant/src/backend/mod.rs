//! Backends: code that runs a spec. The shim drives one without knowing which.

pub mod container;
mod events;
pub mod vm;

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use fief_api::ClientError;
use serde::{Deserialize, Serialize};

pub use events::parse as parse_event;

use crate::devices::DeviceError;
use crate::network::{Record, resolver};
use crate::process::Child;
use crate::spec::{Init, Spec};
use crate::store::{Reason, Tenant};

/// The files a tenant is started from, found by the `fief` that starts it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Files {
    Vm(BootFiles),
    Container(ContainerFiles),
}

/// What a container is started from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerFiles {
    /// The `fief-agent` binary: its process 1.
    pub agent: PathBuf,
    /// The read-only root file system.
    pub image: PathBuf,
    /// How it is mounted: `erofs` or `ext4`.
    pub image_format: String,
    /// The OCI runtime, by name or absolute path; none: the first installed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// The image can be seen beside the root that is laid over it: the tenant is about to move.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub shows_image: bool,
}

/// What a virtual machine boots from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootFiles {
    /// The `fief-vmm` binary.
    pub monitor: PathBuf,
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    /// The read-only root file system.
    pub image: PathBuf,
    /// How it is mounted: `erofs` or `ext4`.
    pub image_format: String,
    /// The kernel's modules, where it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<PathBuf>,
}

/// What a running backend is watched by.
#[derive(Debug)]
pub struct Spawned {
    pub child: Child,
    /// What the tenant prints on its console.
    pub console: OwnedFd,
    /// What the backend has to say itself, for people.
    pub messages: OwnedFd,
    /// What happens, as lines for [`Backend::interpret`], if it is told so. It has no end: the process has.
    pub events: Option<File>,
    /// Limits that were asked for, which this machine cannot enforce and the spec lets go, one clause each.
    pub unlimited: Vec<String>,
}

/// Something a backend reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest restarted in place.
    Rebooted,
    /// The guest ended.
    Ended(Reason, Option<String>),
}

/// Why a backend could not run a tenant.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    #[error("cannot start the monitor {}: {source}; install fief again, or set FIEF_VMM", path.display())]
    Spawn { path: PathBuf, source: io::Error },
    #[error("{what}: {source}")]
    Io {
        what: &'static str,
        source: io::Error,
    },
    #[error(transparent)]
    Api(#[from] ClientError),
    #[error(transparent)]
    Device(#[from] DeviceError),
    #[error(transparent)]
    Container(#[from] container::ContainerError),
    #[error("{0}")]
    Ended(String),
}

/// For `map_err`: what was tried.
fn failed(what: &'static str) -> impl FnOnce(io::Error) -> BackendError {
    move |source| BackendError::Io { what, source }
}

/// Runs one tenant.
pub trait Backend {
    /// Starts its process.
    ///
    /// # Errors
    /// See [`BackendError`].
    fn spawn(&mut self) -> Result<Spawned, BackendError>;

    /// Describes the tenant to the process and lets it run, if it does not run since it was started.
    ///
    /// # Errors
    /// See [`BackendError`].
    fn boot(&mut self, _process: &mut Child) -> Result<(), BackendError> {
        Ok(())
    }

    /// Asks the tenant to shut down, without its agent.
    ///
    /// # Errors
    /// The backend does not answer.
    fn press_power_button(&self) -> Result<(), BackendError>;

    /// Reads one line of the event stream; none if it is of no concern here.
    fn interpret(&self, _line: &str) -> Option<Event> {
        None
    }

    /// What the end of the process says about the end of the tenant, where no event did; none if it says nothing.
    fn meaning(&self, _status: ExitStatus) -> Option<(Reason, Option<String>)> {
        None
    }

    /// Takes away what would hold up the end of its process, which is about to be killed.
    fn hurry(&self) {}

    /// What its process is, for people.
    fn process(&self) -> &'static str {
        "its monitor"
    }

    /// Removes what the process left.
    fn clear(&mut self) {}
}

/// Names of sockets in the run directory. A backend starts there and uses them as they are: a unix socket's name is limited
/// to 107 bytes (unix(7)), a state directory's is not.
pub const VSOCK_SOCKET: &str = "vsock.sock";
/// See [`VSOCK_SOCKET`]. A container's agent listens on it itself.
pub const AGENT_SOCKET: &str = "agent.sock";

/// A path to `name` in an open directory that is short however long the directory's own path is.
pub fn through(directory: &File, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))
}

/// A socket in a tenant's run directory, and the open directory that its path goes through.
///
/// # Errors
/// The tenant does not run.
pub fn socket(tenant: &Tenant, name: &str) -> io::Result<(File, PathBuf)> {
    let directory = File::open(tenant.run_directory())?;
    let path = through(&directory, name);
    Ok((directory, path))
}

fn text(path: &Path) -> String {
    // The store refuses state directories that are no text; other paths come from the command line, which is text.
    path.to_string_lossy().into_owned()
}

/// What the agent is told whatever it runs in (docs/agent-protocol.md), a word each. Every value was checked to be one.
fn agent_words(spec: &Spec, network: Option<&Record>) -> Vec<String> {
    let init = match spec.init {
        Init::Agent => "agent",
        Init::Image => "image",
    };
    let mut words = vec![
        format!("fief.init={init}"),
        format!("fief.hostname={}", spec.hostname),
    ];
    words.extend(spec.user.iter().map(|user| format!("fief.user={user}")));
    if let Some(network) = network {
        words.extend(network_words(network, spec));
    }
    words
}

/// What the agent is told about the network (docs/networking.md).
fn network_words(network: &Record, spec: &Spec) -> Vec<String> {
    let mut words = vec![
        format!("fief.mac={}", network.mac()),
        format!("fief.address={}/32", network.address),
        format!("fief.gateway={}", network.gateway()),
        format!("fief.mtu={}", network.mtu),
    ];
    if let Some(v6) = network.v6 {
        words.push(format!("fief.address6={}/128", v6.address));
        words.push(format!("fief.gateway6={}", v6.gateway));
    }
    let servers = resolver::upstreams(&spec.dns, network.v6.is_some());
    if !servers.is_empty() {
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        words.push(format!("fief.dns={}", servers.join(",")));
    }
    words
}
