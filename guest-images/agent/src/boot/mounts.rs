//! File systems the kernel provides.

use std::fs;
use std::os::fd::IntoRawFd;
use std::os::unix::fs::symlink;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};

use crate::log;

const NO_PROGRAMS: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// `/proc`, `/sys` and `/dev` of the initramfs, and PID 1's descriptors 0, 1 and 2 on the console.
pub fn mount_kernel_file_systems() {
    mount_at("proc", "/proc", "proc", NO_PROGRAMS, "");
    mount_at("sysfs", "/sys", "sysfs", NO_PROGRAMS, "");
    mount_at(
        "devtmpfs",
        "/dev",
        "devtmpfs",
        MsFlags::MS_NOSUID,
        "mode=0755",
    );
    let open = |path| {
        nix::fcntl::open(
            path,
            OFlag::O_RDWR | OFlag::O_NOCTTY,
            nix::sys::stat::Mode::empty(),
        )
    };
    if let Ok(console) = open("/dev/console").or_else(|_| open("/dev/null")) {
        let console = console.into_raw_fd();
        for number in 0..3 {
            // SAFETY: only replaces the standard descriptors; nothing in this process owns them.
            unsafe { libc::dup2(console, number) };
        }
        if console > 2 {
            // SAFETY: just opened and not used any more.
            unsafe { libc::close(console) };
        }
    }
}

/// What both kinds of init find mounted: systemd leaves alone what is there.
pub fn mount_common() {
    mount_at(
        "devpts",
        "/dev/pts",
        "devpts",
        MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        "gid=5,mode=620,ptmxmode=666",
    );
    mount_at(
        "tmpfs",
        "/dev/shm",
        "tmpfs",
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        "mode=1777",
    );
    mount_at(
        "tmpfs",
        "/run",
        "tmpfs",
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        "mode=0755",
    );
    mount_at("cgroup2", "/sys/fs/cgroup", "cgroup2", NO_PROGRAMS, "");
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("fd/0", "/dev/stdin"),
        ("fd/1", "/dev/stdout"),
        ("fd/2", "/dev/stderr"),
    ];
    for (target, link) in links {
        // devtmpfs does not make them; an initramfs that does is fine too.
        let _ = symlink(target, link);
    }
}

/// What an init would still have done.
pub fn prepare_without_init() {
    mount_at(
        "tmpfs",
        "/tmp",
        "tmpfs",
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        "mode=1777",
    );
    for directory in ["/run/lock", "/run/user"] {
        let _ = fs::create_dir(directory);
    }
    // Containers in the tenant need the controllers; one the kernel lacks must not keep the others away.
    for controller in ["cpu", "cpuset", "io", "memory", "pids"] {
        let _ = fs::write(
            "/sys/fs/cgroup/cgroup.subtree_control",
            format!("+{controller}"),
        );
    }
    // Then ctrl-alt-del is a signal for PID 1 instead of an immediate reset. A container has none and is refused.
    let _ = nix::sys::reboot::set_cad_enabled(false);
}

fn mount_at(source: &str, target: &str, kind: &str, flags: MsFlags, data: &str) {
    let _ = fs::create_dir_all(target);
    match mount(Some(source), target, Some(kind), flags, Some(data)) {
        // Mounted already, by the kernel (devtmpfs) or an earlier step.
        Ok(()) | Err(Errno::EBUSY) => {}
        Err(error) => log::error(format!("cannot mount {target}: {error}")),
    }
}
