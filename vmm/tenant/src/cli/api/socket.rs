//! The socket on the user's side.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, umask};

use crate::backend::through;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("{} exists already; remove it, or choose another path with --socket", .0.display())]
    Exists(PathBuf),
    #[error("cannot make the socket {}: {source}; choose another path with --socket", path.display())]
    Bind { path: PathBuf, source: io::Error },
}

/// A bound socket that only its user may connect to. Its path is removed when this is dropped.
#[derive(Debug)]
pub struct ApiSocket {
    pub listener: UnixListener,
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
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => SocketError::Exists(path.to_owned()),
            _ => SocketError::Bind {
                path: path.to_owned(),
                source,
            },
        };
        let path = std::path::absolute(path).map_err(failed)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        // A socket's name is limited to 107 bytes (unix(7)), a path is not.
        let directory = File::open(parent).map_err(failed)?;
        let before = umask(Mode::from_bits_truncate(0o177));
        let bound = UnixListener::bind(through(&directory, &name.to_string_lossy()));
        umask(before);
        let listener = bound.map_err(failed)?;
        // A client may be gone before it is accepted.
        listener.set_nonblocking(true).map_err(failed)?;
        let made = path.symlink_metadata().map_err(failed)?;
        Ok(Self {
            listener,
            made: (made.dev(), made.ino()),
            path,
        })
    }
}

impl Drop for ApiSocket {
    fn drop(&mut self) {
        let found = self.path.symlink_metadata();
        if found.is_ok_and(|found| (found.dev(), found.ino()) == self.made) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_socket_is_its_users_alone_and_goes_with_its_owner() {
        let directory = tempfile::tempdir().unwrap();
        // Longer than a socket's name may be.
        let deep = directory.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let path = deep.join("alice.sock");
        let socket = ApiSocket::bind(&path).unwrap();
        let mode = path.symlink_metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let parent = File::open(&deep).unwrap();
        UnixStream::connect(through(&parent, "alice.sock")).unwrap();
        assert!(matches!(
            ApiSocket::bind(&path),
            Err(SocketError::Exists(_))
        ));
        drop(socket);
        assert!(!path.exists());
        // Something else that has come to its place stays.
        let socket = ApiSocket::bind(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "another's").unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[test]
    fn a_place_that_is_none_is_refused_with_what_to_do() {
        let directory = tempfile::tempdir().unwrap();
        let nowhere = directory.path().join("none/alice.sock");
        let error = ApiSocket::bind(&nowhere).unwrap_err().to_string();
        assert!(error.contains("--socket"), "{error}");
    }
}
