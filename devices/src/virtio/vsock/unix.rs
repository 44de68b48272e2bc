//! Unix stream sockets that never block, and the listening one.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::VsockError;

/// Segments of one system call; what is in more goes with the next.
const MAX_VECTORS: usize = 32;

/// The socket that host programs connect to.
pub(super) struct Listener {
    socket: UnixListener,
    /// What to unlink in the end: a path and the inode that was made there.
    made: Option<(PathBuf, (u64, u64))>,
}

impl Listener {
    /// Makes the socket at `path`. Nothing there is replaced or followed, not even a dangling symbolic link (bind(2)).
    ///
    /// # Errors
    /// Something is there already, or the socket cannot be made.
    pub fn bind(path: &Path) -> Result<Self, VsockError> {
        let failed = |source: io::Error| {
            let path = path.to_owned();
            if source.kind() == io::ErrorKind::AddrInUse {
                VsockError::Taken { path }
            } else {
                VsockError::Listen { path, source }
            }
        };
        let socket = UnixListener::bind(path).map_err(failed)?;
        let mut listener = Self::adopt(socket).map_err(failed)?;
        let identity = identity(path).map_err(failed)?;
        listener.made = Some((path.to_owned(), identity));
        Ok(listener)
    }

    /// Uses a socket that somebody else has bound, and will unlink.
    ///
    /// # Errors
    /// The socket cannot be made non-blocking.
    pub fn adopt(socket: UnixListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, made: None })
    }

    /// The next connection; `None` if nobody waits.
    ///
    /// # Errors
    /// Descriptors or memory have run out.
    pub fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.socket.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(true)?;
                Ok(Some(stream))
            }
            Err(error) => match error.kind() {
                // The client may be gone already, and so may the one before.
                io::ErrorKind::WouldBlock
                | io::ErrorKind::Interrupted
                | io::ErrorKind::ConnectionAborted => Ok(None),
                _ => Err(error),
            },
        }
    }
}

impl AsRawFd for Listener {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let Some((path, made)) = self.made.take() else {
            return;
        };
        // Whoever has put something else there wants to keep it. unlink(2) does not follow symbolic links.
        if identity(&path).is_ok_and(|found| found == made)
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!("cannot remove the vsock socket {}: {error}", path.display());
        }
    }
}

/// Device and inode of the socket at `path`.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    if !found.file_type().is_socket() {
        return Err(io::Error::other("there is no socket any more"));
    }
    Ok((found.dev(), found.ino()))
}

/// Connects to the socket at `path` without waiting.
///
/// # Errors
/// Nobody listens there, the listener has as many connections waiting as it wants, or the path is too long.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    let path = path.as_os_str().as_bytes();
    // SAFETY: all zeroes are a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).map_err(io::Error::other)?;
    // The last byte stays zero; a path with a zero in it, or none, would name something else.
    if path.is_empty() || path.len() >= address.sun_path.len() || path.contains(&0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (place, byte) in address.sun_path.iter_mut().zip(path) {
        *place = libc::c_char::from_ne_bytes([*byte]);
    }
    let flags = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::socket(libc::AF_UNIX, flags, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is fresh and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: the address is a whole sockaddr_un.
    let result = unsafe { libc::connect(fd, (&raw const address).cast(), length) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket.into())
}

/// Sends bytes from the first `limit` of `vectors`. Returns how many the socket took, and whether that is all that it was
/// offered; otherwise it is full.
///
/// # Errors
/// The other end is gone.
///
/// # Safety
/// Each vector is memory that stays mapped; others may change it meanwhile.
pub(super) unsafe fn send(
    socket: &UnixStream,
    vectors: &[libc::iovec],
    limit: usize,
) -> io::Result<(usize, bool)> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    let (moved, offered) = transfer(vectors, limit, |message| {
        // SAFETY: the kernel only reads the vectors, which the caller vouches for.
        unsafe { libc::sendmsg(socket.as_raw_fd(), message, flags) }
    })?;
    let moved = moved.unwrap_or(0);
    Ok((moved, moved == offered))
}

/// What a socket had to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Received {
    /// This many bytes; `more` if there was no room for all of them.
    Bytes { count: usize, more: bool },
    /// Nothing now.
    Nothing,
    /// The end of the stream.
    End,
}

/// Receives into the first `limit` bytes, not 0, of `vectors`.
///
/// # Errors
/// The connection is broken.
///
/// # Safety
/// Each vector is memory that stays mapped and that the kernel may write to; others may change it meanwhile.
pub(super) unsafe fn receive(
    socket: &UnixStream,
    vectors: &[libc::iovec],
    limit: usize,
) -> io::Result<Received> {
    let (moved, offered) = transfer(vectors, limit, |message| {
        // SAFETY: the kernel writes to the vectors, which the caller vouches for.
        unsafe { libc::recvmsg(socket.as_raw_fd(), message, libc::MSG_DONTWAIT) }
    })?;
    Ok(match moved {
        None => Received::Nothing,
        Some(0) => Received::End,
        Some(count) => Received::Bytes {
            count,
            more: count == offered,
        },
    })
}

/// Passes the first `limit` bytes of `vectors` to a system call, as far as one call takes them. Returns what that moved,
/// `None` if it would have to wait, and how much it was offered.
fn transfer(
    vectors: &[libc::iovec],
    limit: usize,
    mut call: impl FnMut(&mut libc::msghdr) -> isize,
) -> io::Result<(Option<usize>, usize)> {
    let mut clipped = [libc::iovec {
        iov_base: std::ptr::null_mut(),
        iov_len: 0,
    }; MAX_VECTORS];
    let (mut count, mut offered) = (0, 0);
    for (place, vector) in clipped.iter_mut().zip(vectors) {
        if offered == limit {
            break;
        }
        let length = vector.iov_len.min(limit - offered);
        *place = libc::iovec {
            iov_base: vector.iov_base,
            iov_len: length,
        };
        offered += length;
        count += 1;
    }
    // SAFETY: all zeroes are a valid msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = clipped.as_mut_ptr();
    message.msg_iovlen = count;
    loop {
        if let Ok(moved) = usize::try_from(call(&mut message)) {
            return Ok((Some(moved), offered));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => return Ok((None, offered)),
            _ => return Err(error),
        }
    }
}

/// Looks at what `socket` has to read and leaves it there: how many bytes came into `buffer`, 0 at the end of the stream.
///
/// # Errors
/// Nothing is there yet (`WouldBlock`), or the connection is broken.
pub(super) fn peek(socket: &UnixStream, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the kernel writes at most the length of `buffer` to it.
        let count = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_PEEK | libc::MSG_DONTWAIT,
            )
        };
        if let Ok(count) = usize::try_from(count) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// True if both directions of `socket` are closed: the other end is gone, or each end has shut down its own.
pub(super) fn hung_up(socket: &UnixStream) -> bool {
    let mut poll = libc::pollfd {
        fd: socket.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: one pollfd, and no waiting.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    ready > 0 && poll.revents & (libc::POLLHUP | libc::POLLERR) != 0
}
