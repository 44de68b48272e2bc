//! The image's own init as PID 1, with the agent beside it.
//!
//! The agent's copy starts before the init does, from the initramfs's program file, which nobody can reach or change
//! any more. Three things keep it out of the init's way:
//! - its own cgroup, because systemd at its start collects what is in the root cgroup;
//! - its own session, so that no terminal's hang-up reaches it;
//! - a first argument that begins with `@`: systemd's rule for programs that serve until the very end, so that its
//!   final killing leaves the agent alone (systemd.io, "Storage Daemons for the Root File System").
//!
//! Commands it runs have none of these marks and end with the system.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::unistd::{ForkResult, execve, fork, setsid};

use crate::{container, log};

/// The agent's first argument when it runs beside an init.
pub const BESIDE_NAME: &[u8] = b"@fief-agent";

/// Where an init may be, in the order of the kernel's own search.
const INITS: [&str; 4] = [
    "/sbin/init",
    "/etc/init",
    "/bin/init",
    "/lib/systemd/systemd",
];
const CGROUP: &str = "/sys/fs/cgroup/fief-agent";

/// Starts the agent's copy and becomes the image's init; returns only if that fails, with the reason.
/// In a container the copy is given `settings`, as it cannot read them from the kernel's command line.
pub fn become_image_init(settings: Option<&str>) -> String {
    let executable = |path: &&&str| {
        Path::new(path)
            .metadata()
            .is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let Some(init) = INITS.iter().find(executable) else {
        return format!(
            "the image has no init ({}); use fief.init=agent",
            INITS.join(", ")
        );
    };
    // SAFETY: the agent has one thread, so the child may do what it likes.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => become_beside(settings),
        Ok(ForkResult::Parent { .. }) => {}
        Err(error) => return format!("cannot start the agent beside the image's init: {error}"),
    }
    let Ok(path) = CString::new(*init) else {
        return "the init's path has a NUL".to_owned();
    };
    // What the kernel gives the first program.
    let mut env = vec![
        c"HOME=/",
        c"TERM=linux",
        c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    ];
    if settings.is_some() {
        // How an init is told that devices and clocks are not its own (systemd.io, "The Container Interface").
        env.push(c"container=fief");
        // The socket is the copy's.
        // SAFETY: takes numbers only.
        unsafe { libc::fcntl(container::LISTENER, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    let Err(error) = execve(&path, &[&path], &env);
    format!("cannot run the image's {init}: {error}")
}

/// In the child.
fn become_beside(settings: Option<&str>) -> ! {
    let _ = setsid();
    let has_groups = Path::new("/sys/fs/cgroup/cgroup.procs").exists();
    let own_group =
        fs::create_dir_all(CGROUP).and_then(|()| fs::write(format!("{CGROUP}/cgroup.procs"), "0"));
    if let Err(error) = own_group
        && has_groups
    {
        log::error(format!("the agent has no cgroup of its own: {error}"));
    }
    let name = CString::new(BESIDE_NAME).unwrap_or_default();
    let mut arguments = vec![name];
    arguments.extend(settings.and_then(|line| CString::new(line).ok()));
    let no_env: [&std::ffi::CStr; 0] = [];
    let Err(error) = execve(c"/proc/self/exe", &arguments, &no_env);
    log::error(format!("cannot run the agent beside the init: {error}"));
    // SAFETY: a forked child leaves without its parent's exit handlers.
    unsafe { libc::_exit(1) }
}
