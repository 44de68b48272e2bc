//! As process 1 of a container: the same system, on a kernel and under limits that are the host's.
//!
//! The settings come as arguments, not from the kernel's command line, which is the host's; clients come by a listening
//! socket that is handed over as a descriptor, to which no path leads in the container.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use fief_agent_proto::ShutdownAction;
use nix::sys::prctl;
use nix::sys::signal::Signal;

/// Where the listening socket is: the first descriptor after the standard ones.
pub const LISTENER: RawFd = 3;
/// Exit code that stands for a restart where reboot(2) is refused: that of a process ended by the signal that the kernel
/// would have sent, SIGHUP.
const RESTART: i32 = 128 + 1;

static HERE: AtomicBool = AtomicBool::new(false);

/// Whether this agent is in a container.
pub fn is_here() -> bool {
    HERE.load(Ordering::Relaxed)
}

/// This agent is in a container, and ends when its parent, the shim, does.
pub fn enter() {
    HERE.store(true, Ordering::Relaxed);
    // Refused by no kernel; the shim's successor ends what outlived it.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
}

/// Writes out what the tenant's file systems hold: sync(2) would write out all of the host's.
pub fn sync() {
    if let Ok(root) = File::open("/") {
        // SAFETY: takes a descriptor that is open.
        unsafe { libc::syncfs(root.as_raw_fd()) };
    }
}

/// Bytes of memory that the container may have, and that it has left; none outside of one, or without a limit. What /proc
/// says is the whole machine's, given as total and available.
pub fn memory((total, available): (u64, u64)) -> Option<(u64, u64)> {
    if !is_here() {
        return None;
    }
    in_group(Path::new("/sys/fs/cgroup"), total).map(|(limit, left)| (limit, left.min(available)))
}

/// Limit, and what is left of it, by the files of either version of cgroups; none if the limit is above `total`.
fn in_group(root: &Path, total: u64) -> Option<(u64, u64)> {
    let versions = [
        (
            "memory.max",
            "memory.current",
            "memory.stat",
            "inactive_file ",
        ),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file ",
        ),
    ];
    versions.iter().find_map(|(limit, used, stat, cache)| {
        let read = |name: &str| fs::read_to_string(root.join(name)).ok();
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let limit = number(limit).filter(|limit| *limit < total)?;
        let stat = read(stat).unwrap_or_default();
        let cache = stat.lines().find_map(|line| line.strip_prefix(cache));
        // Pages of files that nobody has used lately go as soon as memory is short.
        let cache = cache.and_then(|value| value.parse().ok()).unwrap_or(0);
        let used = number(used)?.saturating_sub(cache);
        Some((limit, limit.saturating_sub(used)))
    })
}

/// Ends process 1, and all others with it.
pub fn exit(action: ShutdownAction) -> ! {
    std::process::exit(match action {
        ShutdownAction::Poweroff => 0,
        ShutdownAction::Reboot => RESTART,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_what_the_group_has_in_either_version() {
        let group = tempfile::tempdir().unwrap();
        let root = group.path();
        assert_eq!(in_group(root, 1000), None);
        fs::create_dir(root.join("memory")).unwrap();
        for (file, text) in [
            ("memory/memory.limit_in_bytes", "500\n"),
            ("memory/memory.usage_in_bytes", "200\n"),
            (
                "memory/memory.stat",
                "inactive_file 1\ntotal_inactive_file 50\n",
            ),
        ] {
            fs::write(root.join(file), text).unwrap();
        }
        assert_eq!(in_group(root, 1000), Some((500, 350)));
        // No limit is a very large number there, and a word in version 2.
        assert_eq!(in_group(root, 500), None);
        for (file, text) in [
            ("memory.max", "400\n"),
            ("memory.current", "500\n"),
            ("memory.stat", "anon 3\ninactive_file 20\n"),
        ] {
            fs::write(root.join(file), text).unwrap();
        }
        assert_eq!(in_group(root, 1000), Some((400, 0)));
        fs::write(root.join("memory.max"), "max\n").unwrap();
        assert_eq!(in_group(root, 1000), Some((500, 350)));
    }
}
