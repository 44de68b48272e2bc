//! The cgroup of a running tenant: its shim and its monitor with all its threads are in it, from the monitor's first
//! instruction on, because the shim enters it before it starts the monitor.
//!
//! In every hierarchy of the machine that has a controller of ours: `fief/<tenant's name>-<hash of its directory>`.

mod mounts;
mod settings;
mod usage;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use mounts::{CONTROLLERS, Controller, Hierarchy, Version, hierarchies, mounts};
pub use settings::{Setting, Settings};
pub use usage::Usage;

use crate::store::Tenant;

/// All of fief's groups are in this one.
const PARENT: &str = "fief";
/// How long a process that was killed may keep its group.
const PATIENCE: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(5);

/// What [`Group::make`] could not limit, in one sentence.
pub fn unlimited(missing: &[String]) -> String {
    format!(
        "tenants run here without some of their limits ({}); run fief as root, on a kernel with the cgroup controllers \
         cpu, memory, io and pids, to have them enforced",
        missing.join("; ")
    )
}

/// One directory of a tenant's group.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Part {
    hierarchy: Hierarchy,
    path: PathBuf,
}

/// A tenant's group, whether it is there or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group(Vec<Part>);

/// Where a process was before it entered a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(Vec<PathBuf>);

impl Group {
    /// The group of `tenant` on this machine.
    pub fn of(tenant: &Tenant) -> Self {
        let directory = tenant.directory().as_os_str().as_encoded_bytes();
        let hash = fief_images::store::hash_bytes(directory);
        let id = format!("{}-{}", tenant.name, hash.get(..12).unwrap_or(&hash));
        Self::within(hierarchies().unwrap_or_default(), &id)
    }

    fn within(hierarchies: Vec<Hierarchy>, id: &str) -> Self {
        let part = |hierarchy: Hierarchy| Part {
            path: hierarchy.mount.join(PARENT).join(id),
            hierarchy,
        };
        Self(hierarchies.into_iter().map(part).collect())
    }

    /// Makes it, or finds it there, and sets its limits. What could not be limited, one clause each; a machine without
    /// cgroups, or one where this user may make none, limits nothing.
    pub fn make(&self, settings: &Settings) -> Vec<String> {
        let mut missing = Vec::new();
        for controller in CONTROLLERS {
            let Some(part) = self.part(controller) else {
                missing.push(format!("no {} controller", controller.name()));
                continue;
            };
            let made = part.make(controller);
            if let Err(error) = made.and_then(|()| part.set(controller, settings)) {
                missing.push(format!("{}: {error}", controller.name()));
            }
        }
        for part in self
            .0
            .iter()
            .filter(|part| part.hierarchy.controllers.is_empty())
        {
            // The accounting of version 1. Without it, /proc is asked.
            let _ = fs::create_dir_all(&part.path);
        }
        missing
    }

    /// Changes the shares of a group that is there; what could not be changed, one clause each.
    pub fn set_weights(&self, settings: &Settings) -> Vec<String> {
        let mut missing = Vec::new();
        for controller in [Controller::Cpu, Controller::Io] {
            let changed = match self.part(controller) {
                Some(part) if part.path.exists() => {
                    part.write(&settings.weight(controller, part.hierarchy.version))
                }
                _ => Ok(()),
            };
            if let Err(error) = changed {
                missing.push(format!("{}: {error}", controller.name()));
            }
        }
        missing
    }

    fn part(&self, controller: Controller) -> Option<&Part> {
        self.0
            .iter()
            .find(|part| part.hierarchy.controllers.contains(&controller))
    }

    fn there(&self) -> impl Iterator<Item = &Part> {
        self.0.iter().filter(|part| part.path.exists())
    }

    /// Moves this process in; where it was.
    ///
    /// # Errors
    /// No permission, or the group has a limit of processes already reached.
    pub fn enter(&self) -> io::Result<Origin> {
        let now = fs::read_to_string("/proc/self/cgroup")?;
        let mut origin = Vec::new();
        for part in self.there() {
            origin.push(part.hierarchy.current(&now));
            move_here(&part.path)?;
        }
        Ok(Origin(origin))
    }

    /// Removes it. A process in it that is just ending gets a moment.
    ///
    /// # Errors
    /// Somebody is in it.
    pub fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        for part in self.there() {
            loop {
                match fs::remove_dir(&part.path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                    Err(error)
                        if error.kind() == io::ErrorKind::ResourceBusy
                            && Instant::now() < deadline =>
                    {
                        std::thread::sleep(POLL);
                    }
                    other => break other?,
                }
            }
        }
        Ok(())
    }

    /// How many processes in it the kernel ended because they needed more memory than the limit.
    pub fn out_of_memory(&self) -> u64 {
        let Some(part) = self.part(Controller::Memory) else {
            return 0;
        };
        let file = match part.hierarchy.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        };
        usage::keyed(&part.path.join(file), "oom_kill").unwrap_or(0)
    }

    /// What it uses; none of what is not counted here.
    pub fn usage(&self) -> Usage {
        Usage::of(self)
    }
}

impl Origin {
    /// Moves this process back, or, if that group is gone, to the root: a group with a process in it cannot be removed.
    pub fn go_back(self) {
        for path in self.0 {
            let mut groups = path
                .ancestors()
                .take_while(|path| path.join("cgroup.procs").exists());
            let _ = groups.any(|path| move_here(path).is_ok());
        }
    }
}

impl Hierarchy {
    /// The group of a process, from its /proc/…/cgroup (cgroups(7)).
    fn current(&self, text: &str) -> PathBuf {
        let line = text.lines().find_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let mut controllers = controllers.split(',');
            let ours = match self.version {
                Version::V2 => controllers.eq([""]),
                Version::V1 => controllers.any(|name| self.has_v1(name)),
            };
            ours.then_some(path)
        });
        let path = line.unwrap_or("/").trim_start_matches('/');
        self.mount.join(path)
    }
}

impl Part {
    fn make(&self, controller: Controller) -> io::Result<()> {
        let parent = self.hierarchy.mount.join(PARENT);
        fs::create_dir_all(&parent).map_err(at(&parent))?;
        if self.hierarchy.version == Version::V2 {
            for group in [&self.hierarchy.mount, &parent] {
                let file = group.join("cgroup.subtree_control");
                let on = fs::read_to_string(&file).unwrap_or_default();
                if !on.split_whitespace().any(|word| word == controller.name()) {
                    write(&file, &format!("+{}", controller.name()))?;
                }
            }
        }
        fs::create_dir_all(&self.path).map_err(at(&self.path))
    }

    fn set(&self, controller: Controller, settings: &Settings) -> io::Result<()> {
        settings
            .of_controller(controller, self.hierarchy.version)
            .iter()
            .try_for_each(|setting| self.write(setting))
    }

    fn write(&self, setting: &Setting) -> io::Result<()> {
        let mut last = Ok(());
        for name in setting.files {
            last = write(&self.path.join(name), &setting.value);
            if last.is_ok() {
                break;
            }
        }
        // What nobody asked for is the kernel's default anyway.
        if setting.asked { last } else { Ok(()) }
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> io::Error + use<> {
    let path = path.display().to_string();
    move |error| io::Error::new(error.kind(), format!("{path}: {error}"))
}

fn write(file: &Path, value: &str) -> io::Result<()> {
    // Not created: a file that the kernel does not have there is an error.
    let opened = OpenOptions::new().write(true).open(file);
    opened
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(at(file))
}

fn move_here(group: &Path) -> io::Result<()> {
    write(&group.join("cgroup.procs"), "0")
}

#[cfg(test)]
mod tests;
