//! Locks that die with the processes that hold them (flock(2)).
//!
//! A lock belongs to the open file, not to the process: a descriptor handed to a child is the same lock. So a tenant's
//! lock goes from the `fief` that starts it to its shim without ever being free in between.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use super::file::{FileError, failed};

/// What is the machine's, not one state directory's: gone when it restarts, as the kernel's networks and mounts are.
pub const MACHINE: &str = "/run/fief";

/// An exclusive lock, held.
#[derive(Debug)]
pub struct Held(Option<File>);

impl Held {
    /// Takes the lock if it is free. The file is made where it is missing, its directory is not.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn try_take(path: &Path) -> io::Result<Option<Self>> {
        let file = open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Self(Some(file)))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Waits for the lock.
    ///
    /// # Errors
    /// The file cannot be opened, or waiting was interrupted.
    pub fn take(path: &Path) -> io::Result<Self> {
        let file = open(path)?;
        file.lock()?;
        Ok(Self(Some(file)))
    }

    /// Waits for a lock of the machine: state directories share its kernel.
    ///
    /// # Errors
    /// No permission.
    pub fn take_machines(name: &str) -> Result<Self, FileError> {
        let directory = Path::new(MACHINE);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed("make", directory))?;
        let path = directory.join(name);
        Self::take(&path).map_err(failed("lock", &path))
    }

    /// Takes over a lock that another process took and handed on.
    pub fn adopt(descriptor: OwnedFd) -> Self {
        Self(Some(File::from(descriptor)))
    }

    /// Whether the locked file is still the one at `path`: not if its directory was removed and made anew.
    pub fn is_at(&self, path: &Path) -> bool {
        use std::os::unix::fs::MetadataExt;
        let Some(Ok(mine)) = self.0.as_ref().map(File::metadata) else {
            return false;
        };
        std::fs::metadata(path)
            .is_ok_and(|there| (there.dev(), there.ino()) == (mine.dev(), mine.ino()))
    }

    /// The descriptor, for another process. The lock is free when the last copy of it is closed.
    pub fn hand_on(mut self) -> io::Result<OwnedFd> {
        let file = self.0.take().ok_or(io::ErrorKind::NotFound)?;
        Ok(file.into())
    }

    /// Another descriptor of the same lock.
    pub fn share(&self) -> io::Result<OwnedFd> {
        let file = self.0.as_ref().ok_or(io::ErrorKind::NotFound)?;
        Ok(file.try_clone()?.into())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A child that another thread is starting has a copy of the descriptor until its exec: closing ours would not
        // free the lock before that.
        if let Some(file) = &self.0 {
            let _ = file.unlock();
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
}
