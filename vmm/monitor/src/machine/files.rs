//! The one place where the monitor opens files by path, so that a jail can later hand in descriptors instead.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use std::os::unix::fs::OpenOptionsExt;

/// Opens what a machine description names. Nothing else in the monitor opens a path.
#[derive(Debug, Default, Clone)]
pub struct Files {}

impl Files {
    pub fn new() -> Self {
        Self::default()
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

    /// Opens a character device for reading and writing.
    ///
    /// # Errors
    /// The device cannot be opened.
    pub fn open_device(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(path)
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
