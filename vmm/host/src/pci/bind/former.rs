//! Which driver a function had before it was bound: one file a function in the state directory, `pci/ADDRESS.json`.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use fief_api::PciAddress;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::BindError;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Former {
    /// None: it had none.
    pub driver: Option<String>,
}

impl Former {
    /// What is known of a function; nothing if fief did not bind it, or the file is damaged.
    pub(super) fn read(state: &Path, address: PciAddress) -> Option<Self> {
        serde_json::from_slice(&fs::read(file(state, address)).ok()?)
            .ok()
            .filter(|former: &Self| former.driver.as_deref().is_none_or(is_plain))
    }

    pub(super) fn write(&self, state: &Path, address: PciAddress) -> Result<(), BindError> {
        let path = file(state, address);
        let written = (|| {
            let new = tempfile::NamedTempFile::new_in(directory(state))?;
            fs::write(new.path(), serde_json::to_vec(self)?)?;
            new.persist(&path)?;
            Ok(())
        })();
        written.map_err(|source| failed(address, &path, source))
    }

    pub(super) fn forget(state: &Path, address: PciAddress) -> Result<(), BindError> {
        let path = file(state, address);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed(address, &path, error))
            }
            _ => Ok(()),
        }
    }
}

/// Keeps other commands from changing drivers while what is returned lives. It does not wait: a driver may never let go.
pub(super) fn lock(state: &Path) -> Result<Flock<File>, BindError> {
    let path = directory(state);
    let failed = |source| BindError::Lock {
        path: path.display().to_string(),
        source,
    };
    let opened = fs::create_dir_all(&path).and_then(|()| File::open(&path));
    match Flock::lock(opened.map_err(failed)?, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, Errno::EWOULDBLOCK)) => Err(BindError::Busy),
        Err((_, error)) => Err(failed(error.into())),
    }
}

/// It becomes part of a path.
fn is_plain(driver: &str) -> bool {
    !driver.is_empty() && !driver.starts_with('.') && !driver.contains('/')
}

fn directory(state: &Path) -> PathBuf {
    state.join("pci")
}

fn file(state: &Path, address: PciAddress) -> PathBuf {
    directory(state).join(format!("{address}.json"))
}

fn failed(address: PciAddress, path: &Path, source: io::Error) -> BindError {
    BindError::State {
        address,
        path: path.display().to_string(),
        source,
    }
}
