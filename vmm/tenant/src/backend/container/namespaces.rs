//! A tenant's user namespace, its network namespace, which belongs to that, and mounts whose files belong to its ids (mount_setattr(2), `MOUNT_ATTR_IDMAP`): id 0 on the
//! disk is the first of the range outside, and is 0 again for the tenant.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid, pause, pipe2};

use super::SECBIT_NO_SETUID_FIXUP;
use super::ids::IdRange;

/// Linux, include/uapi/linux/mount.h.
#[repr(C)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    user_namespace: u64,
}
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

/// A user namespace with a tenant's map of ids, and a network namespace of it, before anybody is in them.
///
/// The first belongs to the tenant's root, not to the host's: what the kernel counts by the owner of a namespace (inotify instances
/// and watches, namespaces, locked memory, …: Linux, kernel/ucount.c) is counted for that tenant alone. Made by the host's
/// root, as OCI runtimes do, the limits of all tenants would be one, and that of the host's root, too.
#[derive(Debug)]
pub struct Namespaces {
    user: File,
    network: File,
}

impl Namespaces {
    /// # Errors
    /// Such namespaces are switched off, or no permission.
    pub fn new(ids: IdRange) -> io::Result<Self> {
        let (ready, tell) = pipe2(OFlag::O_CLOEXEC)?;
        let parent = getpid();
        // SAFETY: the child makes system calls only, which need no lock of another thread's: nix leaves the ids of all threads
        // to libc, so these are made without it.
        match unsafe { fork() }? {
            ForkResult::Child => {
                raise_limits();
                let made = become_owner(ids.first)
                    .and_then(|()| unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET));
                // It has this process's descriptors, the tenant's lock among them, and must not outlive it. (Other ids put an
                // end to what was bound before.)
                let bound = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
                if bound.is_err() || getppid() != parent {
                    // SAFETY: ends this process.
                    unsafe { libc::_exit(1) };
                }
                let errno = made.map_or_else(|errno| errno as i32, |()| 0);
                let _ = nix::unistd::write(&tell, &errno.to_ne_bytes());
                loop {
                    pause();
                }
            }
            ForkResult::Parent { child } => {
                drop(tell);
                let made = ready_map(ready.as_fd(), child, ids);
                let _ = kill(child, Signal::SIGKILL);
                let _ = waitpid(child, None);
                made
            }
        }
    }

    /// Where an interface is to be put.
    pub fn network(&self) -> &File {
        &self.network
    }

    /// Paths to both, user and network, for processes that may look at this one.
    pub fn paths(&self) -> [PathBuf; 2] {
        [&self.user, &self.network]
            .map(|one| PathBuf::from(format!("/proc/{}/fd/{}", getpid(), one.as_raw_fd())))
    }

    /// Gives the files of a mount that has no place yet to the range.
    ///
    /// # Errors
    /// The kernel cannot do so for this file system (EINVAL).
    pub fn give(&self, mount: impl AsFd) -> io::Result<()> {
        let attr = MountAttr {
            set: MOUNT_ATTR_IDMAP,
            clear: 0,
            propagation: 0,
            user_namespace: u64::from(self.user.as_raw_fd().cast_unsigned()),
        };
        // SAFETY: the descriptors are open, the path is a C string, `attr` is of the size given and lives through the call.
        let done = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                mount.as_fd().as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                &raw const attr,
                size_of::<MountAttr>(),
            )
        };
        Errno::result(done)?;
        Ok(())
    }
}

/// A user namespace takes its maker's limits of processes and locked memory for those of all that is in it
/// (Linux, kernel/user_namespace.c, create_user_ns), and these are the cgroup's to set. Without CAP_SYS_RESOURCE they stay.
fn raise_limits() {
    let none = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    for limit in [
        libc::RLIMIT_NPROC,
        libc::RLIMIT_MEMLOCK,
        libc::RLIMIT_SIGPENDING,
    ] {
        // SAFETY: `none` lives through the call.
        unsafe { libc::setrlimit(limit, &raw const none) };
    }
}

/// Changes this process's ids, without what it may do.
fn become_owner(id: u32) -> nix::Result<()> {
    // SAFETY: these take numbers only. Not by libc, which would change the ids of threads that a child does not have.
    unsafe {
        Errno::result(libc::prctl(
            libc::PR_SET_SECUREBITS,
            SECBIT_NO_SETUID_FIXUP,
            0,
            0,
            0,
        ))?;
        Errno::result(libc::syscall(libc::SYS_setresgid, id, id, id))?;
        Errno::result(libc::syscall(libc::SYS_setresuid, id, id, id))?;
    }
    Ok(())
}

fn ready_map(ready: impl AsFd, child: Pid, ids: IdRange) -> io::Result<Namespaces> {
    let mut errno = [0; 4];
    if nix::unistd::read(&ready, &mut errno)? != errno.len() {
        return Err(io::Error::other("the process that makes them was ended"));
    }
    match Errno::from_raw(i32::from_ne_bytes(errno)) {
        Errno::UnknownErrno => {}
        // setresuid(2): as root of a container, for instance.
        Errno::EINVAL => {
            let first = ids.first;
            return Err(io::Error::other(format!(
                "this machine has no id {first}; choose others with \"first_id\" in the state directory's containers.json"
            )));
        }
        Errno::ENOSPC => {
            return Err(io::Error::other(
                "there are too many; raise user.max_user_namespaces or user.max_net_namespaces (sysctl)",
            ));
        }
        errno => return Err(errno.into()),
    }
    let process = PathBuf::from("/proc").join(child.to_string());
    for file in ["uid_map", "gid_map"] {
        fs::write(process.join(file), ids.map())?;
    }
    Ok(Namespaces {
        user: File::open(process.join("ns/user"))?,
        network: File::open(process.join("ns/net"))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    // Linux, include/uapi/linux/nsfs.h: NS_GET_OWNER_UID.
    nix::ioctl_read_bad!(owner, 0xb704, libc::uid_t);

    #[test]
    fn a_user_namespace_belongs_to_the_tenants_first_id() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let ids = IdRange {
            first: 1_900_000_000,
            count: 65_536,
        };
        let made = Namespaces::new(ids).unwrap();
        let mut uid = 0;
        // SAFETY: the descriptor is open, `uid` lives through the call.
        unsafe { owner(made.user.as_raw_fd(), &raw mut uid) }.unwrap();
        assert_eq!(uid, ids.first);
        assert!(made.paths().iter().all(|path| path.exists()));
    }
}
