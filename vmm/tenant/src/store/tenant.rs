//! One tenant's directory.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::file::{FileError, failed, read_json, remove, write_fleeting_json, write_json};
use super::lock::Held;
use super::record::{Exit, Phase, State, StoppedBy};
use super::{StoreError, leftovers};
use crate::cgroup::Group;
use crate::devices::Registry;
use crate::network;
use crate::spec::{DiskName, Isolation, Spec, TenantName, VERSION};
use crate::terminal::say;

/// How a tenant is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Made, never started.
    Created,
    Starting,
    Running,
    /// It ended, and is about to be started again.
    Restarting,
    /// It ran and ended.
    Stopped,
    /// Its files make no sense.
    Damaged,
}

/// A tenant that was there when it was looked for.
#[derive(Debug, Clone)]
pub struct Tenant {
    pub name: TenantName,
    directory: PathBuf,
}

impl Tenant {
    pub(super) fn new(name: TenantName, directory: PathBuf) -> Self {
        Self { name, directory }
    }

    /// The tenant in a directory that the caller knows to be one.
    pub fn open(directory: &Path, name: TenantName) -> Self {
        Self::new(name, directory.to_owned())
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The file with what it writes. A virtual machine writes to its file system's blocks as it likes, so that no kernel of a
    /// host may ever mount that; a container's was written by none but the host's kernel. So these are two files.
    pub fn disk(&self, isolation: Isolation) -> PathBuf {
        self.directory.join(match isolation {
            Isolation::Vm => "disk.ext4",
            Isolation::Container => "layer.ext4",
        })
    }

    /// A disk that was made by its size, besides its own.
    pub fn extra_disk(&self, name: &DiskName) -> PathBuf {
        self.directory.join(format!("disk-{name}.img"))
    }

    /// What it takes to move it to the other isolation, while that goes on.
    pub fn moving(&self) -> PathBuf {
        self.directory.join("moving")
    }

    /// What the serial console printed, newest part.
    pub fn console(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    /// What the monitor had to say.
    pub fn monitor_log(&self) -> PathBuf {
        self.directory.join("monitor.log")
    }

    /// Sockets, while it runs.
    pub fn run_directory(&self) -> PathBuf {
        self.directory.join("run")
    }

    pub(super) fn lock_file(&self) -> PathBuf {
        self.directory.join("lock")
    }

    /// Held by the monitor itself, so that one whose shim was killed is noticed.
    pub fn monitor_lock(&self) -> PathBuf {
        self.directory.join("monitor.lock")
    }

    fn spec_file(&self) -> PathBuf {
        self.directory.join("spec.json")
    }

    fn state_file(&self) -> PathBuf {
        self.directory.join("state.json")
    }

    fn exit_file(&self) -> PathBuf {
        self.directory.join("exit.json")
    }

    fn stopped_file(&self) -> PathBuf {
        self.directory.join("stopped.json")
    }

    /// Held by who changes the spec.
    fn change_lock(&self) -> PathBuf {
        self.directory.join("change.lock")
    }

    /// # Errors
    /// It is damaged, of another version, or cannot be read.
    pub fn spec(&self) -> Result<Spec, StoreError> {
        let spec: Option<Spec> = read_json(&self.spec_file())?;
        match spec {
            None => Err(StoreError::NoTenant(self.name.to_string())),
            Some(spec) if spec.version != VERSION => Err(StoreError::Version {
                name: self.name.to_string(),
                version: spec.version,
            }),
            Some(spec) => Ok(spec),
        }
    }

    pub(super) fn write_spec(&self, spec: &Spec) -> Result<(), FileError> {
        write_json(&self.spec_file(), spec)
    }

    /// Changes the spec, whether the tenant runs or not: `change` is given it as it is, alone, and what it makes of it
    /// is written if it succeeds.
    ///
    /// # Errors
    /// The spec cannot be read or written, or `change`'s own.
    pub fn change_spec<E: From<StoreError>>(
        &self,
        change: impl FnOnce(&mut Spec) -> Result<(), E>,
    ) -> Result<Spec, E> {
        let lock = self.change_lock();
        let _alone = Held::take(&lock)
            .map_err(failed("lock", &lock))
            .map_err(StoreError::from)?;
        let mut spec = self.spec()?;
        change(&mut spec)?;
        self.write_spec(&spec).map_err(StoreError::from)?;
        Ok(spec)
    }

    /// Writes down that somebody asks for its end: its policy then does not start it again.
    ///
    /// # Errors
    /// No space, or no permission.
    pub fn mark_stopped(&self, by: StoppedBy) -> Result<(), FileError> {
        write_json(&self.stopped_file(), &by)
    }

    /// Who asked for its end since it was started.
    ///
    /// # Errors
    /// It is damaged or cannot be read.
    pub fn stopped_by(&self) -> Result<Option<StoppedBy>, FileError> {
        read_json(&self.stopped_file())
    }

    /// Whether it runs, as far as can be seen.
    pub fn runs(&self) -> bool {
        matches!(self.state(), Ok(Some(_)))
    }

    /// What its shim wrote down; true only while the lock is held.
    ///
    /// # Errors
    /// It is damaged or cannot be read.
    pub fn state(&self) -> Result<Option<State>, FileError> {
        read_json(&self.state_file())
    }

    /// How its last run ended.
    ///
    /// # Errors
    /// It is damaged or cannot be read.
    pub fn exit(&self) -> Result<Option<Exit>, FileError> {
        read_json(&self.exit_file())
    }

    /// Takes the lock if nobody has it; also none when the tenant is gone.
    pub(super) fn try_lock(&self) -> Result<Option<Locked>, FileError> {
        let file = self.lock_file();
        let held = match Held::try_take(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed("lock", &file))?,
        };
        Ok(held.filter(|held| held.is_at(&file)).map(|lock| Locked {
            tenant: self.clone(),
            lock,
        }))
    }

    /// How it is. Takes no lock for longer than a glance.
    pub fn status(&self) -> (Status, Option<State>) {
        let state = self.state();
        if !self.spec_file().exists() {
            return (Status::Damaged, None);
        }
        match state {
            Err(_) => (Status::Damaged, None),
            // Reconciled before it was looked at: a state that is left is a shim's that lives.
            Ok(Some(state)) => {
                let status = match state.phase {
                    Phase::Starting => Status::Starting,
                    Phase::Running => Status::Running,
                    Phase::Restarting => Status::Restarting,
                };
                (status, Some(state))
            }
            Ok(None) if self.exit_file().exists() => (Status::Stopped, None),
            Ok(None) => (Status::Created, None),
        }
    }
}

/// A tenant whose lock this process holds: nobody else starts, runs, changes or removes it.
#[derive(Debug)]
pub struct Locked {
    pub tenant: Tenant,
    pub(super) lock: Held,
}

impl Locked {
    /// Takes over a tenant whose lock was handed on by the process that took it.
    pub fn adopt(tenant: Tenant, lock: Held) -> Self {
        Self { tenant, lock }
    }

    /// The lock, for the process that will hold it from now on.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn share_lock(&self) -> io::Result<std::os::fd::OwnedFd> {
        self.lock.share()
    }

    /// This process lets go; a process that the lock was shared with keeps it.
    pub fn let_go(self) -> Tenant {
        // Not dropped as `Held`, which would free the lock for all who share it.
        drop(self.lock.hand_on());
        self.tenant
    }

    /// Nobody asks for it after a power cut: the lock is free then, and what is left is cleaned.
    ///
    /// # Errors
    /// No space, or no permission.
    pub fn write_state(&self, state: &State) -> Result<(), FileError> {
        write_fleeting_json(&self.tenant.state_file(), state)
    }

    /// Somebody starts it: that it was stopped before does not count any more.
    ///
    /// # Errors
    /// No permission.
    pub fn forget_stop(&self) -> Result<(), FileError> {
        remove(&self.tenant.stopped_file())
    }

    /// Writes down how a run ended after which there will be another, and removes what it left.
    ///
    /// # Errors
    /// No space, or no permission.
    pub fn pause_run(&self, exit: &Exit, state: &State) -> Result<(), FileError> {
        write_json(&self.tenant.exit_file(), exit)?;
        self.write_state(state)?;
        remove(&self.tenant.run_directory())?;
        remove(&self.tenant.monitor_lock())
    }

    /// Begins to move the tenant: until [`Locked::end_move`], the disk of the isolation that its spec does not name is only
    /// being made.
    ///
    /// # Errors
    /// No space, or no permission.
    pub fn begin_move(&self) -> Result<(), FileError> {
        let moving = self.tenant.moving();
        DirBuilder::new()
            .mode(0o700)
            .create(&moving)
            .map_err(failed("make", &moving))
    }

    /// Ends a move, wherever it was: the tenant has the disk of the isolation that its spec names, and no other.
    ///
    /// # Errors
    /// No permission, or the spec cannot be read.
    pub fn end_move(&self) -> Result<(), StoreError> {
        let moving = self.tenant.moving();
        if moving.exists() {
            let other = match self.tenant.spec()?.isolation {
                Isolation::Vm => Isolation::Container,
                Isolation::Container => Isolation::Vm,
            };
            remove(&self.tenant.disk(other))?;
            remove(&moving)?;
        }
        Ok(())
    }

    /// Makes ready for a new run: no trace of the last one but its logs.
    ///
    /// # Errors
    /// No space, or no permission.
    pub fn begin_run(&self, state: &State) -> Result<(), FileError> {
        remove(&self.tenant.exit_file())?;
        let run = self.tenant.run_directory();
        remove(&run)?;
        self.write_state(state)?;
        DirBuilder::new()
            .mode(0o700)
            .create(&run)
            .map_err(failed("make", &run))
    }

    /// Writes down how the run ended and removes what it left. A crash in the midst is finished by the next command.
    ///
    /// # Errors
    /// No space, or no permission.
    pub fn end_run(&self, exit: &Exit) -> Result<(), FileError> {
        write_json(&self.tenant.exit_file(), exit)?;
        self.clear_run()
    }

    pub(super) fn clear_run(&self) -> Result<(), FileError> {
        // Somebody in it who is not fief's is no reason to keep the rest.
        let _ = Group::of(&self.tenant).remove();
        remove(&self.tenant.run_directory())?;
        remove(&self.tenant.monitor_lock())?;
        remove(&self.tenant.state_file())
    }

    /// Removes the tenant: its name is free at once, its files soon after.
    ///
    /// # Errors
    /// No permission.
    pub fn remove(self) -> Result<(), StoreError> {
        let directory = &self.tenant.directory;
        // Whoever gets the name next has no part in what was granted to this one.
        let could_reach = network::forget_grants(&self.tenant)?;
        if Registry::is_used()
            && let Err(error) = Registry::open().and_then(|registry| registry.forget(&self.tenant))
        {
            say(&format!(
                "fief: who had the devices of '{}' cannot be noted: {error}",
                self.tenant.name
            ));
        }
        let _ = Group::of(&self.tenant).remove();
        let gone = leftovers::discard(directory)?;
        leftovers::dismantle(&gone)?;
        for name in could_reach {
            let other = Tenant::new(name.clone(), directory.with_file_name(name.as_str()));
            // One that does not hear it has a name that leads nowhere, until it boots.
            let _ = crate::provide::renew(&other);
        }
        Ok(())
    }
}
