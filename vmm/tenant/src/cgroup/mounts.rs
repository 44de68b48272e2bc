//! Where this machine has its cgroup controllers: in version 2's one hierarchy, in version 1's many, or some in each
//! ("hybrid"). Linux, Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/cgroups.rst.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A controller that limits tenants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Controller {
    Cpu,
    Memory,
    Io,
    Pids,
}

pub const CONTROLLERS: [Controller; 4] = [
    Controller::Cpu,
    Controller::Memory,
    Controller::Io,
    Controller::Pids,
];

impl Controller {
    /// Its name in version 2, also for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Memory => "memory",
            Self::Io => "io",
            Self::Pids => "pids",
        }
    }

    fn v1_name(self) -> &'static str {
        match self {
            Self::Io => "blkio",
            other => other.name(),
        }
    }
}

/// One of the two forms that a hierarchy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// Where one hierarchy is mounted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    pub version: Version,
    pub mount: PathBuf,
    pub controllers: Vec<Controller>,
    /// Version 1's processor accounting is a controller of its own.
    pub accounts_cpu: bool,
}

impl Hierarchy {
    /// Whether a name of /proc/…/cgroup, or of version 1's mount options, is one of this hierarchy.
    pub fn has_v1(&self, name: &str) -> bool {
        (self.accounts_cpu && name == "cpuacct")
            || self.controllers.iter().any(|one| one.v1_name() == name)
    }
}

/// The hierarchies of this machine that have controllers of ours.
///
/// # Errors
/// /proc is not mounted.
pub fn hierarchies() -> io::Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(parse(&mounts, &|root| {
        fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default()
    }))
}

/// Where cgroups of any kind are mounted, for this thread, in the order of the mounts.
///
/// # Errors
/// /proc is not mounted.
pub fn mounts() -> io::Result<Vec<(Version, PathBuf)>> {
    let text = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let mounts = text.lines().filter_map(mounted);
    Ok(mounts.map(|(version, mount, _)| (version, mount)).collect())
}

/// A cgroup mount of mountinfo, and its options.
fn mounted(line: &str) -> Option<(Version, PathBuf, &str)> {
    let (before, after) = line.split_once(" - ")?;
    let mount = before.split(' ').nth(4).map(unescape)?;
    let mut after = after.split(' ');
    let version = match after.next()? {
        "cgroup" => Version::V1,
        "cgroup2" => Version::V2,
        _ => return None,
    };
    Some((version, mount, after.nth(1).unwrap_or_default()))
}

/// Reads /proc/self/mountinfo (proc_pid_mountinfo(5)); `available` tells the content of version 2's `cgroup.controllers`.
fn parse(mountinfo: &str, available: &dyn Fn(&Path) -> String) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for (version, mount, options) in mountinfo.lines().filter_map(mounted) {
        let hierarchy = match version {
            Version::V1 => v1(mount, options),
            Version::V2 => v2(mount, &available),
        };
        // A second mount of the same hierarchy, such as a container's, adds nothing.
        let known = |controller: &Controller| {
            found
                .iter()
                .any(|other| other.controllers.contains(controller))
        };
        let useful = hierarchy.accounts_cpu && !found.iter().any(|other| other.accounts_cpu)
            || hierarchy.controllers.iter().any(|one| !known(one));
        if useful {
            found.push(hierarchy);
        }
    }
    found
}

fn v1(mount: PathBuf, options: &str) -> Hierarchy {
    let has = |name: &str| options.split(',').any(|option| option == name);
    Hierarchy {
        version: Version::V1,
        mount,
        controllers: CONTROLLERS
            .into_iter()
            .filter(|controller| has(controller.v1_name()))
            .collect(),
        accounts_cpu: has("cpuacct"),
    }
}

fn v2(mount: PathBuf, available: &dyn Fn(&Path) -> String) -> Hierarchy {
    let text = available(&mount);
    let controllers: Vec<_> = CONTROLLERS
        .into_iter()
        .filter(|controller| {
            text.split_whitespace()
                .any(|word| word == controller.name())
        })
        .collect();
    Hierarchy {
        version: Version::V2,
        mount,
        accounts_cpu: controllers.contains(&Controller::Cpu),
        controllers,
    }
}

/// Spaces, tabs, line ends and backslashes are octal there.
fn unescape(text: &str) -> PathBuf {
    let mut plain = text.to_owned();
    for (octal, character) in [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ] {
        plain = plain.replace(octal, character);
    }
    PathBuf::from(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn controllers(hierarchies: &[Hierarchy]) -> Vec<(Version, &str, &[Controller])> {
        hierarchies
            .iter()
            .map(|one| {
                (
                    one.version,
                    one.mount.to_str().unwrap(),
                    &one.controllers[..],
                )
            })
            .collect()
    }

    #[test]
    fn one_hierarchy_of_version_2_has_what_it_says() {
        let text = "29 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n\
                    30 23 0:27 / /sys rw - sysfs sysfs rw\n";
        let found = parse(text, &|_| "cpuset cpu memory pids\n".to_owned());
        let expected = [Controller::Cpu, Controller::Memory, Controller::Pids];
        assert_eq!(
            controllers(&found),
            [(Version::V2, "/sys/fs/cgroup", &expected[..])]
        );
        assert!(found[0].accounts_cpu);
    }

    #[test]
    fn of_a_hybrid_machine_the_hierarchies_with_controllers_are_taken() {
        let text = "\
            32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
            33 31 0:30 / /sys/fs/cgroup/cpuacct rw - cgroup cgroup rw,cpuacct\n\
            34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
            35 31 0:32 / /sys/fs/cgroup/my\\040memory rw - cgroup cgroup rw,memory\n\
            38 31 0:35 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = parse(text, &|_| String::new());
        assert_eq!(
            controllers(&found),
            [
                (Version::V1, "/sys/fs/cgroup/cpu", &[Controller::Cpu][..]),
                (Version::V1, "/sys/fs/cgroup/cpuacct", &[]),
                (
                    Version::V1,
                    "/sys/fs/cgroup/my memory",
                    &[Controller::Memory]
                ),
                (Version::V1, "/sys/fs/cgroup/blkio", &[Controller::Io]),
            ]
        );
    }

    #[test]
    fn a_second_mount_of_the_same_and_a_line_that_is_none_are_passed_over() {
        let text = "\
            1 1 0:1 / /a rw - cgroup cgroup rw,cpu,cpuacct\n\
            2 1 0:1 / /b rw - cgroup cgroup rw,cpu,cpuacct\n\
            nothing\n";
        let found = parse(text, &|_| String::new());
        assert_eq!(
            controllers(&found),
            [(Version::V1, "/a", &[Controller::Cpu][..])]
        );
    }
}
