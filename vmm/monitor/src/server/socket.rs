//! The socket that clients connect to.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Why there is no API socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error(
        "the API socket {} exists already: another monitor uses it or one left it behind; remove it, or choose another \
         path with --api-sock",
        .0.display()
    )]
    Exists(PathBuf),
    #[error("cannot make the API socket {}; choose another path with --api-sock, or none with --no-api", path.display())]
    Bind { path: PathBuf, source: io::Error },
}

/// A bound socket that only the monitor's own user may connect to. Its path is removed when this is dropped.
#[derive(Debug)]
pub struct ApiSocket {
    listener: UnixListener,
    path: PathBuf,
    /// Device and inode of what was made, so that nothing else is removed.
    made: (u64, u64),
}

impl ApiSocket {
    /// Makes the socket, with mode 0600. To be called while the process has one thread: the mode is set by umask.
    ///
    /// # Errors
    /// Something is at `path`, or it cannot be made there.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        // SAFETY: umask only changes the process's file mode mask, and always succeeds.
        let before = unsafe { libc::umask(0o177) };
        let bound = UnixListener::bind(path);
        // SAFETY: as above.
        unsafe { libc::umask(before) };
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => SocketError::Exists(path.to_owned()),
            _ => SocketError::Bind {
                path: path.to_owned(),
                source,
            },
        };
        let listener = bound.map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let made = path.symlink_metadata().map_err(failed)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            made: (made.dev(), made.ino()),
        })
    }

    /// Its listener, for the runtime that this is called in.
    ///
    /// # Errors
    /// No descriptor is left, or the runtime refuses.
    pub fn listener(&self) -> io::Result<tokio::net::UnixListener> {
        tokio::net::UnixListener::from_std(self.listener.try_clone()?)
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        let is_ours = self
            .path
            .symlink_metadata()
            .is_ok_and(|meta| (meta.dev(), meta.ino()) == self.made);
        if is_ours {
            // It may have been removed in between; nothing is lost then.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
