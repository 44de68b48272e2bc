//! The state directory: the registry of tenants.
//!
//! ```text
//! names.lock                    held while a name is given away
//! tenants/<name>/lock           held by whoever starts, runs, changes or removes the tenant: a shim holds it all its life
//!                spec.json      what the tenant asks for
//!                state.json     what its shim wrote down; true only while the lock is held
//!                exit.json      how the last run ended
//!                stopped.json   who asked for that, until somebody starts it again
//!                change.lock    held by who changes the spec
//!                disk.ext4      its disk, of a virtual machine (a container's: layer.ext4)
//!                ids.json       the user ids that a container's stand for
//!                moving/        what differs from its image, while it moves to the other isolation
//!                console.log    what its serial console printed (older part: console.log.1)
//!                monitor.log    what its monitor had to say
//!                monitor.lock   held by the monitor itself
//!                network.json   what its network is made of (see `network`)
//!                run/           sockets, while it runs
//! tenants/.new-*                being made; its lock is held by the maker
//! tenants/.gone-*               being removed
//! network.json, grants.json, grants.log     see `network`
//! images/, host/                see fief-images, fief-host
//! ```
//!
//! There is no daemon, and process ids are never trusted: who lives holds a lock, and locks die with their holders.
//! [`Store::open`] cleans up after everyone who was killed.

mod file;
mod leftovers;
mod lock;
mod record;
mod tenant;

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use file::FileError;
pub(crate) use file::{failed, read_json, remove, write_json};
pub use lock::{Held, MACHINE};
pub use record::{Exit, Phase, Pid, Reason, State, StoppedBy, now};
pub use tenant::{Locked, Status, Tenant};

use crate::network::{self, NetworkError};
use crate::spec::{Isolation, Spec, TenantName};

/// How long a command waits for another one that holds a tenant's lock without running it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two looks at a lock: flock(2) cannot wait for a limited time.
const POLL: Duration = Duration::from_millis(5);

/// What can go wrong with the state directory.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("there is no tenant '{0}'; `fief ps -a` lists those there are")]
    NoTenant(String),
    #[error(
        "the name '{0}' is taken; choose another with --name, or remove that tenant with `fief rm {0}`"
    )]
    Taken(String),
    #[error("tenant '{0}' is running; stop it first with `fief stop {0}`")]
    Running(String),
    #[error("tenant '{0}' is not running; start it with `fief start {0}`")]
    NotRunning(String),
    #[error("another fief has tenant '{0}' in hand; try again when it is done")]
    Busy(String),
    #[error(
        "tenant '{name}' was made by another fief (its spec has version {version}); use that one, or remove it with `fief rm -f {name}`"
    )]
    Version { name: String, version: u32 },
    #[error("cannot use the state directory {}: {source}; choose another with --state-dir", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error(
        "the monitor of tenant '{0}' outlived its shim and cannot be ended; end it by hand (`fuser {1}` finds it)"
    )]
    Orphan(String, String),
    #[error("the paths of the state directory are not valid UTF-8 ({}); choose another with --state-dir", .0.display())]
    NotText(PathBuf),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Network(#[from] NetworkError),
}

/// The state directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// A tenant that is being made. Dropped, it is as if it never was.
#[derive(Debug)]
pub struct Draft {
    store: Store,
    directory: leftovers::Unfinished,
    locked: Locked,
}

impl Store {
    /// Opens the state directory, makes it where it is missing, and cleans up after processes that were killed.
    ///
    /// # Errors
    /// See [`StoreError`]. A tenant that cannot be cleaned up is no error here, but where it is used.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let unusable = |source| StoreError::Directory {
            path: root.to_owned(),
            source,
        };
        // Sockets and the monitor's API speak JSON: a path that is no text could not be told to the monitor.
        let root = std::path::absolute(root).map_err(unusable)?;
        if root.to_str().is_none() {
            return Err(StoreError::NotText(root));
        }
        let unusable = |source| StoreError::Directory {
            path: root.clone(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root.join("tenants"))
            .map_err(unusable)?;
        let store = Self { root: root.clone() };
        store.reconcile().map_err(unusable)?;
        Ok(store)
    }

    /// Where everything is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where images are.
    pub fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    fn tenants_directory(&self) -> PathBuf {
        self.root.join("tenants")
    }

    fn lock_names(&self) -> Result<Held, FileError> {
        let path = self.root.join("names.lock");
        Held::take(&path).map_err(failed("lock", &path))
    }

    fn at(&self, name: &TenantName) -> Tenant {
        Tenant::new(name.clone(), self.tenants_directory().join(name.as_str()))
    }

    /// All tenants, by name.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn tenants(&self) -> Result<Vec<Tenant>, StoreError> {
        let directory = self.tenants_directory();
        let mut tenants = Vec::new();
        for entry in fs::read_dir(&directory).map_err(failed("read", &directory))? {
            let entry = entry.map_err(failed("read", &directory))?;
            if let Some(name) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            {
                tenants.push(Tenant::new(name, entry.path()));
            }
        }
        tenants.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(tenants)
    }

    /// The tenant of that name.
    ///
    /// # Errors
    /// [`StoreError::NoTenant`].
    pub fn tenant(&self, name: &TenantName) -> Result<Tenant, StoreError> {
        let tenant = self.at(name);
        if tenant.directory().is_dir() {
            Ok(tenant)
        } else {
            Err(StoreError::NoTenant(name.to_string()))
        }
    }

    /// A tenant that runs, and what its shim wrote down.
    ///
    /// # Errors
    /// [`StoreError::NoTenant`], [`StoreError::NotRunning`].
    pub fn running(&self, name: &TenantName) -> Result<(Tenant, State), StoreError> {
        let tenant = self.tenant(name)?;
        match tenant.state()? {
            Some(state) => Ok((tenant, state)),
            None => Err(StoreError::NotRunning(name.to_string())),
        }
    }

    /// Locks a tenant that does not run, waiting for a command that is just changing it.
    ///
    /// # Errors
    /// [`StoreError::NoTenant`], [`StoreError::Running`], [`StoreError::Busy`].
    pub fn lock(&self, name: &TenantName) -> Result<Locked, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tenant = self.tenant(name)?;
            if let Some(locked) = tenant.try_lock()? {
                self.clean(&locked)?;
                return Ok(locked);
            }
            // A state whose shim is dead is about to be cleaned by whoever has the lock now.
            let lives = |state: &State| crate::process::Process::lives(state.shim_pid);
            if tenant
                .state()
                .ok()
                .flatten()
                .is_some_and(|state| lives(&state))
            {
                return Err(StoreError::Running(name.to_string()));
            }
            if Instant::now() >= deadline {
                return Err(StoreError::Busy(name.to_string()));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Waits until nobody runs or changes the tenant, at most `patience`; true if so, or if it is gone.
    ///
    /// # Errors
    /// The lock cannot be tried.
    pub fn wait_idle(&self, tenant: &Tenant, patience: Duration) -> Result<bool, StoreError> {
        let deadline = Instant::now() + patience;
        loop {
            match tenant.try_lock()? {
                Some(locked) => {
                    self.clean_or_remove(locked)?;
                    return Ok(true);
                }
                None if !tenant.directory().is_dir() => return Ok(true),
                None if Instant::now() >= deadline => return Ok(false),
                None => std::thread::sleep(POLL),
            }
        }
    }

    /// Begins to make a tenant: its directory, not yet under its name, with its spec in it.
    ///
    /// # Errors
    /// [`StoreError::Taken`], or the files cannot be written.
    pub fn draft(&self, name: &TenantName, spec: &Spec) -> Result<Draft, StoreError> {
        let parent = self.tenants_directory();
        // Nobody looks for leftovers between the making of the directory and its locking.
        let names = self.lock_names()?;
        if self.at(name).directory().exists() {
            return Err(StoreError::Taken(name.to_string()));
        }
        let made = leftovers::directory(leftovers::NEW, &parent);
        let directory = made.map_err(failed("make a directory in", &parent))?;
        let directory = leftovers::Unfinished::new(directory);
        let tenant = Tenant::new(name.clone(), directory.path().to_owned());
        let Some(locked) = tenant.try_lock()? else {
            return Err(StoreError::Busy(name.to_string()));
        };
        drop(names);
        tenant.write_spec(spec)?;
        Ok(Draft {
            store: self.clone(),
            directory,
            locked,
        })
    }
}

impl Draft {
    /// Where the disk is to be made.
    pub fn disk(&self, isolation: Isolation) -> PathBuf {
        self.locked.tenant.disk(isolation)
    }

    /// Makes its network.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub fn make_network(&self, spec: &Spec) -> Result<(), NetworkError> {
        network::make(self.directory.path(), spec).map(drop)
    }

    /// Gives the tenant its name. It stays locked.
    ///
    /// # Errors
    /// [`StoreError::Taken`] if another fief was quicker.
    pub fn publish(self) -> Result<Locked, StoreError> {
        let Draft {
            store,
            directory,
            locked,
        } = self;
        let name = locked.tenant.name.clone();
        let _names = store.lock_names()?;
        let target = store.at(&name);
        if !leftovers::rename(directory.path(), target.directory())? {
            return Err(StoreError::Taken(name.to_string()));
        }
        directory.keep();
        let parent = store.tenants_directory();
        fs::File::open(&parent)
            .and_then(|parent| parent.sync_all())
            .map_err(failed("sync", &parent))?;
        Ok(Locked {
            tenant: target,
            lock: locked.lock,
        })
    }
}

#[cfg(test)]
mod tests;
