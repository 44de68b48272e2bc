//! The cgroup of a running tenant: its shim and its monitor with all its threads are in it, from the monitor's first
//! instruction on, because the shim enters it before it starts the monitor.
//!
//! In every hierarchy of the machine that has a controller of ours: `fief/<tenant's name>-<hash of its directory>`.

mod mounts;
mod settings;
mod usage;
mod writeback;

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use mounts::{CONTROLLERS, Controller, Hierarchy, Version, hierarchies, mounts};
pub use settings::{CONTAINER_PROCESSES, Setting, Settings};
pub use usage::Usage;

use nix::libc::dev_t;
use nix::sys::signal::Signal;

use crate::spec::{Isolation, Limits};
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
pub struct Group {
    id: String,
    parts: Vec<Part>,
    /// Of the first hierarchy that is mounted, whatever its controllers.
    first: Option<Version>,
}

/// A container's shim is in this group below its tenant's, and the container in the other: version 2 has processes only in
/// groups without groups below ("no internal processes", cgroup-v2.rst).
const SHIM: &str = "shim";
const CONTAINER: &str = "tenant";

/// How deep and how many groups may be nested in a tenant's: systemd in a container makes some, and a container in it. What
/// is deeper could not be removed by its path, as every name may have 255 bytes (PATH_MAX).
const NESTED: [(&str, &str); 2] = [
    ("cgroup.max.depth", "12"),
    ("cgroup.max.descendants", "1024"),
];

/// Where a process was before it entered a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(Vec<PathBuf>);

impl Group {
    /// The group of `tenant` on this machine.
    pub fn of(tenant: &Tenant) -> Self {
        let directory = tenant.directory().as_os_str().as_encoded_bytes();
        let hash = fief_images::store::hash_bytes(directory);
        let id = format!("{}-{}", tenant.name, hash.get(..12).unwrap_or(&hash));
        let first = mounts().unwrap_or_default().into_iter().next();
        Self {
            first: first.map(|(version, _)| version),
            ..Self::within(hierarchies().unwrap_or_default(), &id)
        }
    }

    /// A group beside those of tenants, for what is to be compared with them.
    pub fn named(id: &str) -> Self {
        Self::within(hierarchies().unwrap_or_default(), id)
    }

    /// The group that all groups of fief are in. What it used goes on to count when one of those is removed.
    pub fn all() -> Self {
        Self::named("")
    }

    fn within(hierarchies: Vec<Hierarchy>, id: &str) -> Self {
        let part = |hierarchy: Hierarchy| Part {
            path: hierarchy.mount.join(PARENT).join(id),
            hierarchy,
        };
        Self {
            id: id.to_owned(),
            parts: hierarchies.into_iter().map(part).collect(),
            first: None,
        }
    }

    /// The group of a container's processes, from the root of every hierarchy, and the version of the one that it can see, with
    /// the memory controller if there is that; none on a machine without cgroups.
    pub fn of_container(&self) -> Option<(String, Version)> {
        let part = self.part(Controller::Memory).or(self.parts.first());
        let version = part.map(|part| part.hierarchy.version).or(self.first)?;
        Some((format!("/{PARENT}/{}/{CONTAINER}", self.id), version))
    }

    /// The controllers that limit groups in it, once it is made.
    pub fn controllers(&self) -> Vec<Controller> {
        let all = CONTROLLERS.into_iter();
        all.filter(|one| self.part(*one).is_some_and(|part| part.has(*one)))
            .collect()
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
        for part in &self.parts {
            if part.hierarchy.controllers.is_empty() {
                // The accounting of version 1. Without it, /proc is asked.
                let _ = fs::create_dir_all(&part.path);
            }
            if part.hierarchy.version == Version::V2 && part.path.exists() {
                let mut bounds = NESTED.iter();
                let bound = bounds.try_for_each(|(file, most)| write(&part.path.join(file), most));
                missing.extend(bound.err().map(|error| format!("nested groups: {error}")));
            }
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

    /// Limits what passes between a container and its disk, the block device with this number; without rates, nothing does.
    ///
    /// # Errors
    /// No permission, no io controller, or one that cannot limit it; the group is not there.
    pub fn limit_disk(&self, device: dev_t, limits: &Limits) -> io::Result<()> {
        if limits.of_disk().is_empty() {
            return self.free_disk();
        }
        let part = self.part(Controller::Io);
        let part = part.ok_or_else(|| io::Error::other("this machine has no io controller"))?;
        let group = part.throttled();
        if part.path.exists() {
            make_group(&group)?;
        }
        for (file, value) in settings::disk_rates(device, limits, part.hierarchy.version) {
            let file = group.join(file);
            if group.exists() && !file.exists() {
                return Err(io::Error::other(
                    "this kernel cannot throttle disks (CONFIG_BLK_DEV_THROTTLING)",
                ));
            }
            write(&file, &value)?;
        }
        // Version 1 throttles nothing that waits: it is the kernel's own then.
        if part.hierarchy.version == Version::V2 {
            writeback::limit(&settings::number(device), limits);
        }
        Ok(())
    }

    /// Whether there is a controller for that.
    pub fn has_io(&self) -> bool {
        self.part(Controller::Io).is_some()
    }

    /// Takes the limits of a container's disk away.
    ///
    /// # Errors
    /// No permission.
    pub fn free_disk(&self) -> io::Result<()> {
        let Some(part) = self.part(Controller::Io) else {
            return Ok(());
        };
        for (file, none) in settings::no_disk_rates(part.hierarchy.version) {
            let file = part.throttled().join(file);
            // Each line is about one device, whose number is first. Where nothing is limited, there may not even be a file.
            for line in fs::read_to_string(&file).unwrap_or_default().lines() {
                let device = line.split(' ').next().unwrap_or_default();
                if part.hierarchy.version == Version::V2 {
                    writeback::free(device);
                }
                write(&file, &format!("{device} {none}"))?;
            }
        }
        Ok(())
    }

    fn part(&self, controller: Controller) -> Option<&Part> {
        self.parts
            .iter()
            .find(|part| part.hierarchy.controllers.contains(&controller))
    }

    fn there(&self) -> impl Iterator<Item = &Part> {
        self.parts.iter().filter(|part| part.path.exists())
    }

    /// Moves this process in; where it was.
    ///
    /// # Errors
    /// No permission, or the group has a limit of processes already reached.
    pub fn enter(&self, isolation: Isolation) -> io::Result<Origin> {
        let now = fs::read_to_string("/proc/self/cgroup")?;
        let mut origin = Vec::new();
        for part in self.there() {
            origin.push(part.hierarchy.current(&now));
            match isolation {
                Isolation::Vm => move_here(&part.path)?,
                Isolation::Container => {
                    let path = part.path.join(SHIM);
                    make_group(&path)?;
                    move_here(&path)?;
                }
            }
        }
        Ok(Origin(origin))
    }

    /// Removes it with all groups below, also where it cannot in one hierarchy. A process in it that is just ending gets a
    /// moment.
    ///
    /// # Errors
    /// Somebody is in it.
    pub fn remove(&self) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let removed = self.everywhere().map(|path| remove_tree(&path, deadline));
        removed.fold(Ok(()), io::Result::and)
    }

    /// Ends all processes in it and below: those that a killed shim left. Nothing, if this process is one of them.
    pub fn end_processes(&self) {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        if !is_within(&own, &format!("/{PARENT}/{}", self.id)) {
            let _ = self.free_disk();
            self.everywhere().for_each(|path| kill(&path));
        }
    }

    /// The processes in it and below, now.
    pub fn processes(&self) -> Vec<i32> {
        let part = self.part(Controller::Memory).or(self.parts.first());
        let mut found = Vec::new();
        let mut groups: Vec<PathBuf> = part.map(|part| part.path.clone()).into_iter().collect();
        while let Some(group) = groups.pop() {
            found.extend(members(&group));
            groups.extend(below(&group));
        }
        found
    }

    /// Ends all processes of a container, not its shim. The last one has ended when what they had written is on the disk, for
    /// which there is no limit any more.
    pub fn end_container(&self) {
        let _ = self.free_disk();
        for path in self.everywhere() {
            kill(&path.join(CONTAINER));
        }
    }

    /// Its directories, in hierarchies of any controllers: an OCI runtime makes groups in all of them.
    fn everywhere(&self) -> impl Iterator<Item = PathBuf> {
        let ours = self.parts.iter().map(|part| part.path.clone());
        let others = mounts().unwrap_or_default().into_iter();
        let others = others.map(|(_, mount)| mount.join(PARENT).join(&self.id));
        let mut all: Vec<_> = ours.chain(others).filter(|path| path.exists()).collect();
        all.sort();
        all.dedup();
        all.into_iter()
    }

    /// How many processes in it the kernel ended, since it was made, because they needed more memory than the limit.
    pub fn out_of_memory(&self) -> u64 {
        let Some(part) = self.part(Controller::Memory) else {
            return 0;
        };
        let (file, groups) = match part.hierarchy.version {
            // Each group for itself.
            Version::V1 => (
                "memory.oom_control",
                vec![part.path.clone(), part.path.join(CONTAINER)],
            ),
            Version::V2 => ("memory.events", vec![part.path.clone()]),
        };
        let counted = |group: &PathBuf| usage::keyed(&group.join(file), "oom_kill");
        groups.iter().filter_map(counted).sum()
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
        make_group(&parent)?;
        // Also where it can limit nothing: what is in it is found by it.
        make_group(&self.path)?;
        if self.hierarchy.version == Version::V2 {
            for group in [&self.hierarchy.mount, &parent] {
                let file = group.join("cgroup.subtree_control");
                let on = fs::read_to_string(&file).unwrap_or_default();
                if !on.split_whitespace().any(|word| word == controller.name()) {
                    write(&file, &format!("+{}", controller.name()))?;
                }
            }
        }
        Ok(())
    }

    /// Whether a group that is there has this controller of its hierarchy: of version 2, its parents hand it down or not.
    fn has(&self, controller: Controller) -> bool {
        match self.hierarchy.version {
            Version::V1 => self.path.exists(),
            Version::V2 => fs::read_to_string(self.path.join("cgroup.controllers"))
                .unwrap_or_default()
                .split_whitespace()
                .any(|word| word == controller.name()),
        }
    }

    /// Where a container's disk is limited. Limits of version 1 are for the processes of one group, not for those of groups
    /// below (Linux, block/blk-throttle.c, throtl_pd_init); a container cannot make any there.
    fn throttled(&self) -> PathBuf {
        match self.hierarchy.version {
            Version::V1 => self.path.join(CONTAINER),
            Version::V2 => self.path.clone(),
        }
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

/// Makes a directory that all may look into, as the kernel's own are, whatever this process's umask is: a container's root
/// is somebody else, and its view of its group is looked up with its rights (Linux, fs/kernfs/mount.c).
fn make_group(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    fs::create_dir_all(path)
        .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
        .map_err(at(path))
}

/// Whether a process with this /proc/…/cgroup is in `group`, or below.
fn is_within(text: &str, group: &str) -> bool {
    let mut paths = text.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    paths.any(|path| Path::new(path).starts_with(group))
}

/// Groups below a group, with no descriptor open: they may be many, and deep.
fn below(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn remove_tree(group: &Path, deadline: Instant) -> io::Result<()> {
    for group in below(group) {
        remove_tree(&group, deadline)?;
    }
    loop {
        match fs::remove_dir(group) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                std::thread::sleep(POLL);
            }
            other => return other,
        }
    }
}

/// Ends all processes of a group and below: at once where the kernel can (version 2, since Linux 5.14), so that none can
/// make another meanwhile.
fn kill(group: &Path) {
    if write(&group.join("cgroup.kill"), "1").is_err() {
        kill_tree(group);
    }
}

/// The processes of one group.
fn members(group: &Path) -> Vec<i32> {
    let processes = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    processes
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect()
}

fn kill_tree(group: &Path) {
    for group in below(group) {
        kill_tree(&group);
    }
    for process in members(group) {
        // 0 is a process of another pid namespace, whom this one cannot name.
        if process > 0 {
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), Signal::SIGKILL);
        }
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
