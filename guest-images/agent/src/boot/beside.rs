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
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MntFlags, umount2};
use nix::unistd::{ForkResult, execve, fork, setsid};

use crate::log;
use crate::serve::INHERITED;

/// The agent's first argument when it runs beside an init.
pub const BESIDE_NAME: &[u8] = b"@fief-agent";

/// The argument before a container's settings.
pub const CONTAINER: &[u8] = b"--container";

/// Where an init may be, in the order of the kernel's own search.
const INITS: [&str; 4] = [
    "/sbin/init",
    "/etc/init",
    "/bin/init",
    "/lib/systemd/systemd",
];
const CGROUP: &str = "/sys/fs/cgroup/fief-agent";

/// Starts the agent's copy and becomes the image's init; returns only if that fails, with the reason. `container`: the
/// settings there, for the copy.
pub fn become_image_init(container: Option<&[&[u8]]>) -> String {
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
    if container.is_some() {
        // The program's own mount: at the end an init would try in vain to take away what still runs from it.
        let _ = umount2("/proc/self/exe", MntFlags::MNT_DETACH);
    }
    // SAFETY: the agent has one thread, so the child may do what it likes.
    match unsafe { fork() } {
        Ok(ForkResult::Child) => become_beside(container),
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
    if container.is_some() {
        // By this an init knows that the kernel is not its own (systemd.io, "The Container Interface").
        env.push(c"container=fief");
    }
    let Err(error) = execve(&path, &[&path], &env);
    format!("cannot run the image's {init}: {error}")
}

/// In the child.
fn become_beside(container: Option<&[&[u8]]>) -> ! {
    let _ = setsid();
    let own_group =
        fs::create_dir_all(CGROUP).and_then(|()| fs::write(format!("{CGROUP}/cgroup.procs"), "0"));
    // A container's host may have no cgroup2, or lend none.
    if let Err(error) = own_group
        && container.is_none()
    {
        log::error(format!("the agent has no cgroup of its own: {error}"));
    }
    let mut words = vec![BESIDE_NAME];
    if let Some(settings) = container {
        words.push(CONTAINER);
        words.extend(settings);
        // SAFETY: the listening socket is open, in PID 1's hands and so in this child's.
        let socket = unsafe { BorrowedFd::borrow_raw(INHERITED) };
        let _ = fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty()));
    }
    let words: Vec<CString> = words.into_iter().flat_map(CString::new).collect();
    let no_env: [&std::ffi::CStr; 0] = [];
    let Err(error) = execve(c"/proc/self/exe", &words, &no_env);
    log::error(format!("cannot run the agent beside the init: {error}"));
    // SAFETY: a forked child leaves without its parent's exit handlers.
    unsafe { libc::_exit(1) }
}
