//! What `fief doctor` reports: the things that fief needs of this machine, each with what to do where it is missing.

mod network;
mod passthrough;

pub(crate) use network::is_known;

use std::env;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use serde::Serialize;

use crate::choice::{self, Decision, HostChoice, HostKind};
use crate::qemu::QEMU;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    Ok,
    /// Works, with a limit worth knowing.
    Warning,
    /// fief does not work here until this is mended.
    Missing,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    pub name: &'static str,
    pub health: Health,
    /// What was found.
    pub found: String,
    /// What to do about it, where something is to be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

impl Check {
    /// All is well.
    pub fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self {
            name,
            health: Health::Ok,
            found: found.into(),
            remedy: None,
        }
    }

    /// Something is to be done.
    pub fn bad(
        name: &'static str,
        health: Health,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            name,
            health,
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }
}

/// The whole report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// What `--host auto` chooses here, or what was asked for.
    pub host: Decision,
    pub checks: Vec<Check>,
}

impl Report {
    /// Nothing that fief needs is missing.
    pub fn healthy(&self) -> bool {
        self.checks
            .iter()
            .all(|check| check.health != Health::Missing)
    }
}

/// Free space below which building images is likely to fail, in bytes.
const ENOUGH_SPACE: u64 = 4 << 30;

/// Looks at this machine. `monitor` and `agent` are the binaries that fief starts; `state` is the state directory
/// (it need not exist yet).
pub fn examine(asked: HostChoice, monitor: &Path, agent: &Path, state: &Path) -> Report {
    let host = choice::choose(asked, monitor, None);
    let needed = |kind| {
        if host.kind == kind {
            Health::Missing
        } else {
            Health::Warning
        }
    };
    let mut checks = vec![binary("fief-vmm", monitor), binary("fief-agent", agent)];
    checks.push(kvm(needed(HostKind::Native)));
    checks.push(program(
        "emulator",
        QEMU,
        "qemu-system-x86",
        needed(HostKind::Emulated),
    ));
    checks.push(program(
        "image builder",
        "mmdebstrap",
        "mmdebstrap",
        Health::Warning,
    ));
    checks.push(program(
        "erofs tools",
        "mkfs.erofs",
        "erofs-utils",
        Health::Warning,
    ));
    checks.push(program(
        "ext4 tools",
        "mke2fs",
        "e2fsprogs",
        Health::Missing,
    ));
    checks.extend(network::checks(needed(HostKind::Native)));
    checks.push(passthrough::check());
    checks.push(space(state));
    checks.push(memory());
    Report { host, checks }
}

fn binary(name: &'static str, path: &Path) -> Check {
    match fs::metadata(path) {
        Ok(data) if data.is_file() && data.permissions().mode() & 0o111 != 0 => {
            Check::ok(name, path.display().to_string())
        }
        Ok(_) => Check::bad(
            name,
            Health::Missing,
            format!("{} is not an executable file", path.display()),
            "install fief again, or build it with `make`",
        ),
        Err(error) => Check::bad(
            name,
            Health::Missing,
            format!("{}: {error}", path.display()),
            "it belongs beside the fief binary: install fief again, or build it with `make`",
        ),
    }
}

fn kvm(absent: Health) -> Check {
    let device = "/dev/kvm";
    match OpenOptions::new().read(true).write(true).open(device) {
        Ok(_) => Check::ok("KVM", format!("{device} can be opened")),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Check::bad(
            "KVM",
            absent,
            format!("{device} is there, but this user may not open it"),
            "add the user to the group that owns it: `usermod -aG kvm USER`, then log in again",
        ),
        Err(error) => Check::bad(
            "KVM",
            absent,
            format!("{device}: {error}"),
            "switch virtualisation on in the firmware and load kvm_amd or kvm_intel; without it, tenants run in the \
             emulated host",
        ),
    }
}

fn program(name: &'static str, file: &str, package: &str, absent: Health) -> Check {
    match find_program(file) {
        Some(path) => Check::ok(name, path.display().to_string()),
        None => Check::bad(
            name,
            absent,
            format!("{file} is not on the PATH"),
            format!("install the package {package}: `apt-get install {package}`"),
        ),
    }
}

/// Finds an executable on the PATH, or where system administration tools are when the PATH of a plain user lacks them.
pub fn find_program(file: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(extra)
        .map(|directory| directory.join(file))
        .find(|candidate| {
            fs::metadata(candidate)
                .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
        })
}

fn space(state: &Path) -> Check {
    let name = "disk space";
    let existing = state
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    match statvfs(existing) {
        Ok(data) => {
            let free = data.blocks_available() * data.fragment_size();
            let found = format!(
                "{:.1} GiB free for {}",
                free as f64 / f64::from(1 << 30),
                state.display()
            );
            if free >= ENOUGH_SPACE {
                Check::ok(name, found)
            } else {
                Check::bad(
                    name,
                    Health::Warning,
                    found,
                    "images and tenants' disks need some GiB: free some space",
                )
            }
        }
        Err(error) => Check::bad(
            name,
            Health::Missing,
            format!("{}: {error}", existing.display()),
            "choose another place with --state-dir",
        ),
    }
}

fn memory() -> Check {
    let name = "memory";
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    match available_mib(&text) {
        Some(mib) if mib >= 1024 => Check::ok(name, format!("{mib} MiB available")),
        Some(mib) => Check::bad(
            name,
            Health::Warning,
            format!("{mib} MiB available"),
            "a Debian tenant wants 512 MiB; stop something or give tenants less with --memory",
        ),
        None => Check::bad(
            name,
            Health::Warning,
            "/proc/meminfo has no MemAvailable",
            "is /proc mounted?",
        ),
    }
}

fn available_mib(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_mib() {
        assert_eq!(
            available_mib("MemTotal: 9 kB\nMemAvailable:   2097152 kB\n"),
            Some(2048)
        );
        assert_eq!(available_mib("MemTotal: 9 kB\n"), None);
        assert_eq!(available_mib("MemAvailable: many kB\n"), None);
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let check = program(
            "emulator",
            "no-such-program",
            "some-package",
            Health::Missing,
        );
        assert_eq!(check.health, Health::Missing);
        assert!(
            check
                .remedy
                .is_some_and(|remedy| remedy.contains("apt-get install some-package"))
        );
        assert_eq!(
            program("shell", "sh", "dash", Health::Missing).health,
            Health::Ok
        );
    }

    #[test]
    fn a_file_that_cannot_be_run_is_no_binary() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(binary("fief-vmm", file.path()).health, Health::Missing);
        assert_eq!(binary("fief-vmm", Path::new("/bin/sh")).health, Health::Ok);
        assert_eq!(
            binary("fief-vmm", Path::new("/nowhere/fief-vmm")).health,
            Health::Missing
        );
    }

    #[test]
    fn a_report_is_healthy_unless_something_needed_is_missing() {
        let host = Decision {
            kind: HostKind::Native,
            why: String::new(),
        };
        let warning = Check::bad("x", Health::Warning, "", "");
        let missing = Check::bad("x", Health::Missing, "", "");
        assert!(
            Report {
                host: host.clone(),
                checks: vec![Check::ok("x", ""), warning]
            }
            .healthy()
        );
        assert!(
            !Report {
                host,
                checks: vec![missing]
            }
            .healthy()
        );
    }

    #[test]
    fn free_space_is_found_for_a_state_directory_that_is_not_there_yet() {
        let directory = tempfile::tempdir().unwrap();
        let check = space(&directory.path().join("not/yet"));
        assert_ne!(check.health, Health::Missing);
    }
}
