//! Where clients come from.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use fief_agent_proto::AGENT_PORT;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::socket::{
    self, AddressFamily, Backlog, SockFlag, SockType, SockaddrLike, SockaddrStorage, VsockAddr,
    sockopt,
};
use nix::sys::termios;

/// Where a container's agent finds its socket: the first descriptor after the standard ones.
pub const INHERITED: RawFd = 3;

/// A socket clients connect to.
#[derive(Debug)]
pub enum Listener {
    Unix(UnixListener),
    Vsock(OwnedFd),
}

impl Listener {
    /// Listens on vsock port 1024 of this guest.
    ///
    /// # Errors
    /// The kernel's: no vsock device or module.
    pub fn vsock() -> io::Result<Listener> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket::socket(AddressFamily::Vsock, SockType::Stream, flags, None)?;
        socket::bind(
            fd.as_raw_fd(),
            &VsockAddr::new(libc::VMADDR_CID_ANY, AGENT_PORT),
        )?;
        socket::listen(&fd, Backlog::new(64)?)?;
        Ok(Listener::Vsock(fd))
    }

    /// Listens on a unix socket.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unix(path: &Path) -> io::Result<Listener> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Listener::Unix(listener))
    }

    /// Takes the unix socket that listens as descriptor [`INHERITED`]. To be called once, before anything else is opened;
    /// no program that is started gets it.
    ///
    /// # Errors
    /// There is no such descriptor, or it is something else.
    pub fn inherited() -> io::Result<Listener> {
        // SAFETY: only looked at until it is known to be what it should be. Nothing here has opened it.
        let found = unsafe { BorrowedFd::borrow_raw(INHERITED) };
        fcntl(found, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        let listens = socket::getsockopt(&found, sockopt::AcceptConn)?;
        let kind = socket::getsockopt(&found, sockopt::SockType)?;
        let address: SockaddrStorage = socket::getsockname(INHERITED)?;
        if !listens || kind != SockType::Stream || address.family() != Some(AddressFamily::Unix) {
            return Err(Errno::EINVAL.into());
        }
        // SAFETY: it is open, and from here on the listener's alone.
        let listener = UnixListener::from(unsafe { OwnedFd::from_raw_fd(INHERITED) });
        listener.set_nonblocking(true)?;
        Ok(Listener::Unix(listener))
    }

    /// The next client, as a non-blocking stream; None if there is none, or one that is not to be served.
    ///
    /// # Errors
    /// There may be one, and the kernel has nothing left for it (EMFILE, ENFILE, ENOMEM): it waits on.
    pub fn accept(&self) -> io::Result<Option<File>> {
        let accepted = match self {
            Listener::Unix(listener) => listener.accept().and_then(|(client, _)| {
                client.set_nonblocking(true)?;
                Ok(Some(File::from(OwnedFd::from(client))))
            }),
            Listener::Vsock(listener) => accept_from_host(listener),
        };
        accepted.or_else(|error| match error.kind() {
            // It gave up meanwhile (accept(2)).
            io::ErrorKind::WouldBlock
            | io::ErrorKind::Interrupted
            | io::ErrorKind::ConnectionAborted => Ok(None),
            _ => Err(error),
        })
    }
}

/// Serves the host alone. This guest's own users reach the port as well, wherever the kernel loops vsock back to them
/// (module vsock_loopback) or they act as the host of a machine of their own (/dev/vhost-vsock): they have other context
/// ids, which the kernel fills in. One who hangs up before the look is no client either.
fn accept_from_host(listener: &OwnedFd) -> io::Result<Option<File>> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let client = socket::accept4(listener.as_raw_fd(), flags)?;
    // SAFETY: accept4 returned a new descriptor that nothing else owns.
    let client = unsafe { OwnedFd::from_raw_fd(client) };
    let peer = socket::getpeername::<VsockAddr>(client.as_raw_fd());
    let from_host = peer.is_ok_and(|peer| peer.cid() == libc::VMADDR_CID_HOST);
    Ok(from_host.then(|| File::from(client)))
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Listener::Unix(listener) => listener.as_fd(),
            Listener::Vsock(fd) => fd.as_fd(),
        }
    }
}

/// Opens the virtio-serial port called `name`, or else the device `/dev/name` (a UART, set to raw mode).
///
/// # Errors
/// The kernel's; `NotFound` if there is neither.
pub fn open_serial(name: &str) -> io::Result<File> {
    let path = virtio_port(name).unwrap_or_else(|| Path::new("/dev").join(name));
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    let fd = nix::fcntl::open(&path, flags, nix::sys::stat::Mode::empty())?;
    if let Ok(mut settings) = termios::tcgetattr(&fd) {
        termios::cfmakeraw(&mut settings);
        termios::tcsetattr(&fd, termios::SetArg::TCSANOW, &settings)?;
    }
    // A virtio port sends SIGIO when the host side connects or hangs up; poll cannot wait for the former.
    let ask_for_signals = || -> nix::Result<()> {
        // SAFETY: F_SETOWN takes a process id.
        nix::errno::Errno::result(unsafe {
            libc::fcntl(fd.as_raw_fd(), libc::F_SETOWN, libc::getpid())
        })?;
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_ASYNC))?;
        Ok(())
    };
    // Without them the port is looked at from time to time.
    let _ = ask_for_signals();
    Ok(File::from(fd))
}

/// The port's device: its name is only in sysfs, where udev would look to make a link.
fn virtio_port(name: &str) -> Option<PathBuf> {
    std::fs::read_dir("/sys/class/virtio-ports")
        .ok()?
        .flatten()
        .find_map(|entry| {
            let found = std::fs::read_to_string(entry.path().join("name")).ok()?;
            (found.trim_end() == name).then(|| Path::new("/dev").join(entry.file_name()))
        })
}
