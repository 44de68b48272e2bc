//! The container's console: a terminal whose other end the runtime sends over a socket (OCI runtimes' `--console-socket`).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// The runtime has sent it before it ended, so nobody waits for this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest name of a terminal that comes along.
const NAME: usize = 4096;

/// The end that was sent, and the container's own, to be kept: as long as somebody has that open, the other has no end. (An init
/// has its console open at times only, and a terminal without anybody would be readable all the time.)
///
/// # Errors
/// The runtime has sent none.
pub fn receive(listener: &UnixListener) -> io::Result<(OwnedFd, OwnedFd)> {
    listener.set_nonblocking(true)?;
    let (stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut name = [0; NAME];
    let mut parts = [IoSliceMut::new(&mut name)];
    let mut room = nix::cmsg_space!([i32; 4]);
    let message = recvmsg::<()>(
        stream.as_raw_fd(),
        &mut parts,
        Some(&mut room),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut received = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control {
            // SAFETY: the kernel has just made them for this process, and nobody else knows of them.
            received.extend(
                descriptors
                    .into_iter()
                    .map(|one| unsafe { OwnedFd::from_raw_fd(one) }),
            );
        }
    }
    let console = received
        .pop()
        .ok_or_else(|| io::Error::other("the runtime sent no terminal"))?;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: takes a descriptor that is open, and flags.
    let peer = unsafe { libc::ioctl(console.as_raw_fd(), libc::TIOCGPTPEER, flags) };
    let peer = nix::errno::Errno::result(peer)?;
    // SAFETY: the kernel has just made it, for this alone.
    Ok((console, unsafe { OwnedFd::from_raw_fd(peer) }))
}
