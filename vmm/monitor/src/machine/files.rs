//! The one place where the monitor opens files by path, so that a jail can later hand in descriptors instead.

use std::ffi::CString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where tap devices are opened.
const TUN_DEVICE: &str = "/dev/net/tun";

/// The part of `struct ifreq` (netdevice(7)) that TUNSETIFF reads.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u64; 3],
}

/// Opens what a machine description names. Nothing else in the monitor opens a path.
#[derive(Debug, Default, Clone)]
pub struct Files {
    /// Device nodes that came as descriptors, by path.
    passed: Arc<Vec<(PathBuf, File)>>,
}

impl Files {
    pub fn new() -> Self {
        Self::default()
    }

    /// With device nodes that whoever started the monitor has opened for it.
    pub fn with_devices(passed: Vec<(PathBuf, File)>) -> Self {
        Self {
            passed: Arc::new(passed),
        }
    }

    /// Opens a regular file (kernel, initrd, image) for reading.
    ///
    /// # Errors
    /// The file cannot be opened, or is not a regular file.
    pub fn open_read(&self, path: &Path) -> io::Result<File> {
        // O_NONBLOCK: opening a FIFO would wait for its writer.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "it is not a regular file",
            ));
        }
        Ok(file)
    }

    /// Opens a disk image or block device.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open_disk(&self, path: &Path, read_only: bool, direct: bool) -> io::Result<File> {
        let flags = if direct { libc::O_DIRECT } else { 0 };
        OpenOptions::new()
            .read(true)
            .write(!read_only)
            .custom_flags(flags | libc::O_NONBLOCK)
            .open(path)
    }

    /// Takes a lock (flock(2)) on a disk image or block device, shared if it is only read, so that no two machines write
    /// to it. It is held until the result is dropped; none where the file system has no locks.
    ///
    /// # Errors
    /// Another machine has it, or the file cannot be opened.
    pub fn lock_disk(&self, path: &Path, read_only: bool) -> io::Result<Option<File>> {
        let file = self.open_disk(path, true, false)?;
        let taken = if read_only {
            file.try_lock_shared()
        } else {
            file.try_lock()
        };
        match taken {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Err(io::Error::new(
                io::ErrorKind::ResourceBusy,
                "another machine, or another drive of this one, has it and one of them writes to it; give it to one only, \
                 or read-only to all",
            )),
            Err(TryLockError::Error(error)) => {
                tracing::warn!("no lock on {}: {error}", path.display());
                Ok(None)
            }
        }
    }

    /// Opens a character device for reading and writing; one that was passed in is not opened again.
    ///
    /// # Errors
    /// The device cannot be opened.
    pub fn open_device(&self, path: &Path) -> io::Result<File> {
        let mut passed = self.passed.iter();
        if let Some((_, device)) = passed.find(|(passed, _)| passed == path) {
            return device.try_clone();
        }
        OpenOptions::new().read(true).write(true).open(path)
    }

    /// Connects to the unix socket at `path`, without waiting for whoever listens.
    ///
    /// # Errors
    /// Nobody listens there, or the listener has as many connections waiting as it wants.
    pub fn connect(&self, path: &Path) -> io::Result<UnixStream> {
        fief_devices::virtio::vsock::connect(path)
    }

    /// Attaches to the tap device `name` of the monitor's network namespace. Reads and writes do not block, and every frame
    /// has a virtio-net header.
    ///
    /// # Errors
    /// There is no such interface, it is no tap of one queue, is in use, or belongs to somebody else.
    pub fn open_tap(&self, name: &str) -> io::Result<File> {
        let explained = |why: &str| io::Error::other(format!("{why}; {}", tap_advice(name)));
        // Asked for one that does not exist, who may would be given a new one.
        let c_name = CString::new(name).map_err(|_| explained("its name is none"))?;
        // SAFETY: the pointer is to a string with its terminating zero.
        if unsafe { libc::if_nametoindex(c_name.as_ptr()) } == 0 {
            return Err(explained(
                "there is no such interface in this network namespace",
            ));
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(TUN_DEVICE)
            .map_err(|error| io::Error::new(error.kind(), format!("{TUN_DEVICE}: {error}")))?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let mut request = InterfaceRequest {
            name: [0; libc::IFNAMSIZ],
            flags: libc::c_short::try_from(flags).unwrap_or(0),
            rest: [0; 3],
        };
        for (place, byte) in request.name.iter_mut().zip(c_name.as_bytes()) {
            *place = *byte;
        }
        // SAFETY: TUNSETIFF reads and writes a struct ifreq, which is as large as `request`.
        let result = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        if result == 0 {
            return Ok(file);
        }
        let error = io::Error::last_os_error();
        Err(match error.raw_os_error() {
            Some(libc::EBUSY) => {
                io::Error::other("another process uses it; give each machine its own tap")
            }
            Some(libc::EPERM) => explained("it belongs to another user"),
            Some(libc::EINVAL) => explained("it is not a tap device, or one of several queues"),
            _ => error,
        })
    }

    /// Opens a file or named pipe that takes output; a file is made if it is not there and appended to if it is.
    ///
    /// # Errors
    /// The file cannot be made or opened.
    pub fn open_output(&self, path: &Path) -> io::Result<File> {
        // Read as well as write: opening a FIFO for writing alone fails while nobody reads it.
        OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
    }
}

/// How to make a tap that can be used.
fn tap_advice(name: &str) -> String {
    // SAFETY: geteuid has no preconditions and cannot fail.
    let user = unsafe { libc::geteuid() };
    format!("make it with `ip tuntap add dev {name} mode tap user {user}`")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_written_by_one_machine_or_read_by_many() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lock = |read_only| Files::new().lock_disk(file.path(), read_only);
        let writer = lock(false).unwrap();
        for read_only in [false, true] {
            let error = lock(read_only).unwrap_err();
            assert!(error.to_string().contains("another machine"), "{error}");
        }
        drop(writer);
        let readers = [lock(true).unwrap(), lock(true).unwrap()];
        assert!(lock(false).is_err());
        drop(readers);
        assert!(lock(false).unwrap().is_some());
    }
}
