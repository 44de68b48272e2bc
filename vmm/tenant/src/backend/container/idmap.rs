//! Mounts whose files belong to a tenant's range of ids (mount_setattr(2), `MOUNT_ATTR_IDMAP`): id 0 on the disk is the
//! first of the range outside, and is 0 again for the tenant, whose user namespace has the same map.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::libc;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid, pause, pipe2};

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

/// A user namespace with a tenant's map and nobody in it, for mounts.
#[derive(Debug)]
pub struct Map(File);

impl Map {
    /// # Errors
    /// User namespaces are switched off, or no permission.
    pub fn new(ids: IdRange) -> io::Result<Self> {
        let (ready, tell) = pipe2(OFlag::O_CLOEXEC)?;
        let parent = getpid();
        // SAFETY: the child calls nothing but prctl(2), getppid(2), unshare(2), write(2), pause(2) and _exit(2), which need no
        // lock of another thread's.
        match unsafe { fork() }? {
            ForkResult::Child => {
                // It has this process's descriptors, the tenant's lock among them, and must not outlive it.
                let bound = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
                if bound.is_err() || getppid() != parent {
                    // SAFETY: ends this process.
                    unsafe { libc::_exit(1) };
                }
                let made = unshare(CloneFlags::CLONE_NEWUSER);
                let _ = nix::unistd::write(&tell, &[u8::from(made.is_ok())]);
                loop {
                    pause();
                }
            }
            ForkResult::Parent { child } => {
                drop(tell);
                let map = ready_map(ready.as_fd(), child, ids);
                let _ = kill(child, Signal::SIGKILL);
                let _ = waitpid(child, None);
                map.map(Self)
            }
        }
    }

    /// Gives the files of a mount that has no place yet to the range.
    ///
    /// # Errors
    /// The kernel cannot do so for this file system (EINVAL).
    pub fn apply(&self, mount: impl AsFd) -> io::Result<()> {
        let attr = MountAttr {
            set: MOUNT_ATTR_IDMAP,
            clear: 0,
            propagation: 0,
            user_namespace: u64::from(self.0.as_raw_fd().cast_unsigned()),
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
        nix::errno::Errno::result(done)?;
        Ok(())
    }
}

fn ready_map(ready: impl AsFd, child: Pid, ids: IdRange) -> io::Result<File> {
    let mut made = [0];
    if nix::unistd::read(&ready, &mut made)? != 1 || made != [1] {
        return Err(io::Error::other(
            "this kernel makes no user namespace here (user.max_user_namespaces?)",
        ));
    }
    let process = Path::new("/proc").join(child.to_string());
    for file in ["uid_map", "gid_map"] {
        fs::write(process.join(file), ids.map())?;
    }
    File::open(process.join("ns/user"))
}
