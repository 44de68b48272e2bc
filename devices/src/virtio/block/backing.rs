//! The file behind a drive: its size, and what can be done with it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;

use vmm_sys_util::ioctl::ioctl_with_mut_ref;

/// Bytes of a sector, the unit of the protocol whatever the device's block size (virtio 1.3 §5.2.4).
pub(super) const SECTOR: u64 = 512;

/// `BLKGETSIZE64` (linux/fs.h): bytes of a block device.
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

/// `BLKSSZGET` (linux/fs.h): logical block size in bytes.
const BLKSSZGET: libc::c_ulong = 0x1268;

/// Why a file cannot be a drive.
#[derive(Debug, thiserror::Error)]
pub enum BackingError {
    #[error(
        "cannot find out the size of the drive's file: {0}; it must be a regular file or a block device"
    )]
    Size(#[source] io::Error),
    #[error("the drive's file is neither a regular file nor a block device; give one of these")]
    Kind,
    #[error(
        "the drive's file has {bytes} bytes, less than one block of {block}; give a larger one"
    )]
    TooSmall { bytes: u64, block: u64 },
    #[error("cannot find out the flags of the drive's file: {0}")]
    Flags(#[source] io::Error),
    #[error(
        "the drive is writable, but its file was opened read-only; open it for writing or make the drive read-only"
    )]
    ReadOnlyFile,
}

/// What O_DIRECT asks of memory and offsets, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alignment {
    pub memory: usize,
    pub offset: u64,
}

/// An open file and what was found out about it.
pub(super) struct Backing {
    pub file: File,
    /// Size in sectors of 512 bytes.
    pub sectors: u64,
    /// `None` without O_DIRECT.
    pub direct: Option<Alignment>,
    /// Ranges can be freed.
    pub punch: bool,
}

impl Backing {
    /// Looks at an open file. Bytes after the last whole block are left out, with a warning.
    ///
    /// # Errors
    /// See [`BackingError`].
    pub fn new(file: File, read_only: bool) -> Result<Self, BackingError> {
        let metadata = file.metadata().map_err(BackingError::Size)?;
        let block_device = metadata.file_type().is_block_device();
        if !block_device && !metadata.file_type().is_file() {
            return Err(BackingError::Kind);
        }
        // SAFETY: no memory is involved.
        let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
        if flags < 0 {
            return Err(BackingError::Flags(io::Error::last_os_error()));
        }
        if !read_only && flags & libc::O_ACCMODE != libc::O_RDWR {
            return Err(BackingError::ReadOnlyFile);
        }
        let bytes = if block_device {
            block_device_bytes(&file).map_err(BackingError::Size)?
        } else {
            metadata.len()
        };
        let direct = (flags & libc::O_DIRECT != 0).then(|| direct_alignment(&file, block_device));
        let block = direct.map_or(SECTOR, |alignment| alignment.offset);
        let rest = bytes.checked_rem(block).unwrap_or(0);
        if bytes == rest {
            return Err(BackingError::TooSmall { bytes, block });
        }
        if rest != 0 {
            tracing::warn!(
                "the drive's file has {bytes} bytes; the last {rest} make no whole block and are left out"
            );
        }
        Ok(Self {
            sectors: (bytes - rest) / SECTOR,
            direct,
            punch: !read_only && (block_device || punches(&file, bytes)),
            file,
        })
    }
}

fn block_device_bytes(file: &File) -> io::Result<u64> {
    let mut bytes = 0_u64;
    // SAFETY: BLKGETSIZE64 writes one u64.
    let result = unsafe { ioctl_with_mut_ref(file, BLKGETSIZE64, &mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(bytes)
}

/// Whether the file system can free ranges: asked behind the end of the file, where there is nothing to lose.
fn punches(file: &File, bytes: u64) -> bool {
    let Some(offset) = bytes
        .checked_next_multiple_of(4096)
        .and_then(|o| i64::try_from(o).ok())
    else {
        return false;
    };
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no memory is involved.
    unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, 4096) == 0 }
}

/// What the kernel says O_DIRECT needs (statx, Linux 6.1), or what is enough for nearly every file.
fn direct_alignment(file: &File, block_device: bool) -> Alignment {
    // SAFETY: statx is plain data; all zeroes is a value of it.
    let mut status: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a C string, and `status` is writable memory of the right type.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            &raw mut status,
        )
    };
    let known = result == 0
        && status.stx_mask & libc::STATX_DIOALIGN != 0
        && status.stx_dio_offset_align != 0;
    if known {
        return Alignment {
            memory: (status.stx_dio_mem_align as usize).max(1),
            offset: u64::from(status.stx_dio_offset_align).max(SECTOR),
        };
    }
    let mut block = 512_i32;
    if block_device {
        // SAFETY: BLKSSZGET writes one int.
        let result = unsafe { ioctl_with_mut_ref(file, BLKSSZGET, &mut block) };
        if result < 0 {
            tracing::warn!(
                "cannot ask the drive for its block size: {}",
                io::Error::last_os_error()
            );
        }
    }
    Alignment {
        memory: 4096,
        offset: u64::try_from(block).unwrap_or(SECTOR).max(SECTOR),
    }
}
