//! A file as a block device (loop(4)), for as long as something is mounted from it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::libc::{self, dev_t};

/// How often another process may take the device that was free a moment ago.
const TRIES: u32 = 64;

// Linux, include/uapi/linux/loop.h.
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;
nix::ioctl_none_bad!(get_free, 0x4C82);
nix::ioctl_write_ptr_bad!(configure, 0x4C0A, Config);
nix::ioctl_read_bad!(get_status, 0x4C05, Info);

/// `struct loop_info64`.
#[repr(C)]
struct Info {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    info: Info,
    reserved: [u64; 8],
}

/// A device that exists while this or a mount of it does.
#[derive(Debug)]
pub struct LoopDevice {
    /// Kept open: one that nobody uses is taken down.
    device: File,
    path: PathBuf,
}

impl LoopDevice {
    /// Makes one of `file`, to be read and written.
    ///
    /// # Errors
    /// No permission, no loop devices in this kernel, or none is free.
    pub fn of(file: &File) -> io::Result<Self> {
        let control = open(Path::new("/dev/loop-control"))?;
        // Without the host's page cache where the file's own file system can do so: the mounted one has a cache.
        for flags in [AUTOCLEAR | DIRECT_IO, AUTOCLEAR] {
            for _ in 0..TRIES {
                // SAFETY: the descriptor is open, and this request has no argument.
                let number = unsafe { get_free(control.as_raw_fd()) }?;
                let path = PathBuf::from(format!("/dev/loop{number}"));
                let device = open(&path)?;
                // SAFETY: both are integers and bytes, for which zeroes are values.
                let mut config: Config = unsafe { std::mem::zeroed() };
                config.fd = file.as_raw_fd().cast_unsigned();
                config.info.flags = flags;
                // SAFETY: the descriptors are open, `config` lives through the call.
                match unsafe { configure(device.as_raw_fd(), &raw const config) } {
                    Ok(_) => {
                        return Ok(Self { device, path });
                    }
                    Err(Errno::EBUSY) => {}
                    Err(Errno::EINVAL) if flags & DIRECT_IO != 0 => break,
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Err(io::Error::other("no loop device is free"))
    }

    /// Its node.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its number.
    ///
    /// # Errors
    /// The kernel's own.
    pub fn number(&self) -> io::Result<dev_t> {
        Ok(self.device.metadata()?.rdev())
    }
}

/// The number of the loop device that is made of this file, if one is: what is mounted from it may not be mounted a second
/// time.
///
/// # Errors
/// A device that is there cannot be looked at: what it is made of is not known.
pub fn device_of(file: &File) -> io::Result<Option<dev_t>> {
    let wanted = file.metadata()?;
    for entry in fs::read_dir("/sys/block")? {
        let name = entry?.file_name();
        let is_bound = Path::new("/sys/block").join(&name).join("loop").exists();
        if !name.as_encoded_bytes().starts_with(b"loop") || !is_bound {
            continue;
        }
        let device = match File::open(Path::new("/dev").join(&name)) {
            Ok(device) => device,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        // SAFETY: an Info is integers and bytes, for which zeroes are values.
        let mut info: Info = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open, `info` lives through the call.
        match unsafe { get_status(device.as_raw_fd(), &raw mut info) } {
            Ok(_) if info.inode == wanted.ino() && info.device == wanted.dev() => {
                return Ok(Some(device.metadata()?.rdev()));
            }
            Ok(_) => {}
            Err(errno) if is_gone(&errno.into()) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(None)
}

/// Whether a device was taken down since it was listed.
fn is_gone(error: &io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
        || matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV))
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open(path)
}
