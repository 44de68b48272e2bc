//! Backends: code that runs a spec. The shim drives one without knowing which.

pub mod container;
mod events;
pub mod vm;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Child;

use fief_api::ClientError;
use serde::{Deserialize, Serialize};

pub use events::parse as parse_event;

use crate::store::Reason;

/// The files a tenant boots from, found by the `fief` that starts it.
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
    /// What happens, as lines for [`Backend::interpret`]. It has no end: the process has.
    pub events: File,
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
    #[error("{0}")]
    Ended(String),
}

/// For `map_err`: what was tried.
fn failed(what: &'static str) -> impl FnOnce(io::Error) -> BackendError {
    move |source| BackendError::Io { what, source }
}

/// Runs one tenant.
pub trait Backend {
    /// Starts its process. The tenant does not run yet.
    ///
    /// # Errors
    /// See [`BackendError`].
    fn spawn(&mut self) -> Result<Spawned, BackendError>;

    /// Describes the tenant to the process and lets it run.
    ///
    /// # Errors
    /// See [`BackendError`].
    fn boot(&mut self, process: &mut Child) -> Result<(), BackendError>;

    /// Asks the tenant to shut down, without its agent.
    ///
    /// # Errors
    /// The backend does not answer.
    fn press_power_button(&self) -> Result<(), BackendError>;

    /// Reads one line of the event stream; none if it is of no concern here.
    fn interpret(&self, line: &str) -> Option<Event>;
}
