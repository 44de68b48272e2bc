//! Cleaning up after processes that were killed. Every command begins with this.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use rustix::process::Signal;

use super::file::{failed, remove};
use super::{Exit, FileError, Held, Locked, Reason, Store, StoreError, Tenant};
use crate::cgroup::Group;
use crate::network;
use crate::process::Process;

/// Prefix of a tenant's directory while it is made. No name begins with a dot.
pub(super) const NEW: &str = ".new-";
/// Prefix of what is being removed.
const GONE: &str = ".gone-";
/// How long a killed monitor may take to be gone.
const PATIENCE: Duration = Duration::from_secs(10);

/// A new directory that only its owner can look into.
pub(super) fn directory(prefix: &str, parent: &Path) -> io::Result<tempfile::TempDir> {
    let owner_only = fs::Permissions::from_mode(0o700);
    tempfile::Builder::new()
        .prefix(prefix)
        .permissions(owner_only)
        .tempdir_in(parent)
}

/// The directory of a tenant that is being made. Dropped, all that is the tenant's goes.
#[derive(Debug)]
pub(super) struct Unfinished(Option<tempfile::TempDir>);

impl Unfinished {
    pub(super) fn new(directory: tempfile::TempDir) -> Self {
        Self(Some(directory))
    }

    pub(super) fn path(&self) -> &Path {
        self.0
            .as_ref()
            .map_or(Path::new(""), tempfile::TempDir::path)
    }

    /// It is finished: it stays.
    pub(super) fn keep(mut self) {
        let _ = self.0.take().map(tempfile::TempDir::keep);
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(directory) = self.0.take() {
            // What cannot be removed is left as it is, for the next command.
            let _ = dismantle(&directory.keep());
        }
    }
}

/// Removes all that is a tenant's: its network, then its files, which tell of the network.
pub(super) fn dismantle(directory: &Path) -> Result<(), StoreError> {
    network::take_down(directory)?;
    Ok(remove(directory)?)
}

/// Renames a tenant's directory; false if something has that name.
///
/// # Errors
/// No permission, or its network cannot be locked.
pub(super) fn rename(from: &Path, to: &Path) -> Result<bool, StoreError> {
    let _still = network::hold_still(from)?;
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        Ok(()) => Ok(true),
        Err(nix::Error::EEXIST) => Ok(false),
        Err(error) => Err(failed("rename", from)(error.into()).into()),
    }
}

/// Gives a directory a name that every command takes for one to be removed; that name. It needs no space: to remove
/// things is what helps on a full disk.
///
/// # Errors
/// See [`rename`].
pub(super) fn discard(path: &Path) -> Result<PathBuf, StoreError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut number = 0_u64;
    loop {
        let gone = path.with_file_name(format!("{GONE}{name}.{number}"));
        if rename(path, &gone)? {
            return Ok(gone);
        }
        // Another fief has not removed its own yet.
        number += 1;
    }
}

impl Store {
    /// Looks at everything whose lock is free. What cannot be cleaned is left for the command that needs it, which says
    /// why.
    ///
    /// # Errors
    /// The directory cannot be read or locked.
    pub(super) fn reconcile(&self) -> io::Result<()> {
        for entry in fs::read_dir(self.tenants_directory())? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with(GONE) {
                let _ = dismantle(&entry.path());
            } else if name.starts_with(NEW) {
                let _ = self.remove_half_made(&entry.path());
            } else if let Ok(name) = name.parse() {
                let tenant = Tenant::new(name, entry.path());
                if needs_look(&tenant) {
                    self.look_at(&tenant);
                }
            }
        }
        Ok(())
    }

    /// Cleans up after a shim that was killed, or waits for the other command that is just doing so: until then the
    /// tenant would seem to run.
    fn look_at(&self, tenant: &Tenant) {
        match tenant.try_lock() {
            Ok(Some(locked)) => {
                let _ = self.clean_or_remove(locked);
            }
            Ok(None) if its_shim_is_gone(tenant) => {
                let _ = self.wait_idle(tenant, PATIENCE);
            }
            _ => {}
        }
    }

    fn remove_half_made(&self, path: &Path) -> Result<(), StoreError> {
        let _names = self.lock_names()?;
        let lock = path.join("lock");
        if path.is_dir()
            && Held::try_take(&lock)
                .map_err(failed("lock", &lock))?
                .is_some()
        {
            dismantle(path)?;
        }
        Ok(())
    }

    /// Finishes what a killed shim left undone, and removes the tenant if that is what its spec says.
    pub(super) fn clean_or_remove(&self, locked: Locked) -> Result<(), StoreError> {
        self.clean(&locked)?;
        // A spec that cannot be read is kept for a person to look at.
        if locked.tenant.spec().is_ok_and(|spec| spec.remove) {
            locked.remove()
        } else {
            Ok(())
        }
    }

    /// Finishes what a killed shim left undone.
    pub(super) fn clean(&self, locked: &Locked) -> Result<(), StoreError> {
        let tenant = &locked.tenant;
        end_orphan(tenant)?;
        // A spec that cannot be read is kept, with all that is there, for a person to look at.
        if tenant.spec().is_ok() {
            locked.end_move()?;
        }
        let left = tenant.state();
        if matches!(left, Ok(None))
            && !tenant.run_directory().exists()
            && !tenant.monitor_lock().exists()
        {
            return Ok(());
        }
        // A shim that was killed while it cleaned up has written down the true end already.
        if !matches!(left, Ok(None)) && !matches!(tenant.exit(), Ok(Some(_))) {
            let what = "its shim was killed".to_owned();
            return Ok(locked.end_run(&Exit::now(Reason::Killed, Some(what)))?);
        }
        Ok(locked.clear_run()?)
    }
}

/// Whether something about the tenant could be left over: most tenants need no lock to be tried.
fn needs_look(tenant: &Tenant) -> bool {
    !matches!(tenant.state(), Ok(None))
        || tenant.run_directory().exists()
        || tenant.monitor_lock().exists()
        || tenant.moving().exists()
        || tenant.spec().is_ok_and(|spec| spec.remove)
}

fn its_shim_is_gone(tenant: &Tenant) -> bool {
    matches!(tenant.state(), Ok(Some(state)) if !Process::lives(state.shim_pid))
}

/// Ends a monitor, or a container, whose shim was killed. (The kernel was asked to do so too, but does it in its own time.)
fn end_orphan(tenant: &Tenant) -> Result<(), StoreError> {
    let lock = tenant.monitor_lock();
    let state = tenant.state().ok().flatten();
    let has_lock = lock.exists() && !is_free(&lock)?;
    if state.is_none() && !has_lock {
        return Ok(());
    }
    let monitor = state.and_then(|state| state.monitor);
    if let Some(process) = monitor.and_then(Process::open_exactly) {
        process
            .signal(Signal::KILL)
            .map_err(failed("end the process that outlived its shim", &lock))?;
        process.wait(PATIENCE);
    }
    // A runtime, too, and what it had just begun to make.
    Group::of(tenant).end_processes();
    if !has_lock {
        return Ok(());
    }
    let deadline = std::time::Instant::now() + PATIENCE;
    while !is_free(&lock)? {
        if std::time::Instant::now() >= deadline {
            return Err(StoreError::Orphan(
                tenant.name.to_string(),
                lock.display().to_string(),
            ));
        }
        std::thread::sleep(super::POLL);
    }
    Ok(())
}

fn is_free(lock: &Path) -> Result<bool, FileError> {
    Ok(Held::try_take(lock)
        .map_err(failed("lock", lock))?
        .is_some())
}
