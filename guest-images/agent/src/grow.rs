//! The disk's file system grows when its device has: at boot, and while it is mounted.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::boot::find_drive;

/// Where the superblock is on the device (Linux, Documentation/filesystems/ext4/super.rst).
const SUPERBLOCK: u64 = 1024;
const MAGIC: u16 = 0xef53;

// EXT4_IOC_RESIZE_FS (linux, fs/ext4/ext4.h): the new number of blocks.
nix::ioctl_write_ptr!(resize_file_system, b'f', 16, u64);
// BLKGETSIZE64 (linux/fs.h): the device's size in bytes; its number says size_t, which is u64 here.
nix::ioctl_read!(device_size, 0x12, 114, u64);

/// Grows the ext4 on `device`, mounted at `mounted`, to the device's size. True if there was anything to do.
///
/// # Errors
/// The device cannot be asked, or the kernel's.
pub fn to_device(device: &Path, mounted: &File) -> io::Result<bool> {
    let device = File::open(device)?;
    let mut bytes = 0;
    // SAFETY: the descriptor is open, and the kernel writes one u64 into `bytes`.
    unsafe { device_size(device.as_raw_fd(), &raw mut bytes) }?;
    let mut block = [0; 1024];
    device.read_exact_at(&mut block, SUPERBLOCK)?;
    let Some(blocks) = blocks_to_have(&block, bytes) else {
        return Ok(false);
    };
    // SAFETY: the descriptor is open, and the kernel reads one u64.
    unsafe { resize_file_system(mounted.as_raw_fd(), &raw const blocks) }?;
    Ok(true)
}

/// How many blocks a file system is to have that has fewer than its device of `bytes`.
fn blocks_to_have(superblock: &[u8; 1024], bytes: u64) -> Option<u64> {
    let word = |at: usize| {
        let bytes = superblock.get(at..at + 4)?.try_into().ok()?;
        Some(u64::from(u32::from_le_bytes(bytes)))
    };
    let magic = superblock.get(0x38..0x3a)?.try_into().ok()?;
    if u16::from_le_bytes(magic) != MAGIC {
        return None;
    }
    // s_log_block_size, s_blocks_count_lo and, with the feature 64BIT (0x80 of s_feature_incompat), _hi.
    let block_size = 1024_u64.checked_shl(u32::try_from(word(0x18)?).ok()?)?;
    let high = if word(0x60)? & 0x80 == 0 {
        0
    } else {
        word(0x150)?
    };
    let now = word(0x4)? | high << 32;
    let wanted = bytes / block_size;
    (wanted > now).then_some(wanted)
}

/// As a program in a running system: grows the file system of the drive `id`, to which no path leads any more.
///
/// # Errors
/// One line that says what failed.
pub fn running(id: &str) -> Result<(), String> {
    let device = find_drive(id)?;
    let failed = |what: &'static str| move |error: nix::Error| format!("{what}: {}", error.desc());
    // The same file system once more, where nobody else sees it; it goes with this process.
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("cannot have mounts of its own"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .map_err(failed("cannot have mounts of its own"))?;
    mount(
        Some(&device),
        "/run",
        Some("ext4"),
        MsFlags::empty(),
        None::<&str>,
    )
    .map_err(failed("cannot reach the disk's file system"))?;
    File::open("/run")
        .and_then(|mounted| to_device(&device, &mounted))
        .map(drop)
        .map_err(|error| format!("cannot grow the disk's file system: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(blocks: u64, log_block_size: u32, is_64_bit: bool) -> [u8; 1024] {
        let mut block = [0; 1024];
        let mut put =
            |at: usize, value: u32| block[at..at + 4].copy_from_slice(&value.to_le_bytes());
        put(0x4, (blocks & 0xffff_ffff) as u32);
        put(0x18, log_block_size);
        put(0x38, u32::from(MAGIC));
        put(0x60, if is_64_bit { 0x80 } else { 0 });
        put(0x150, (blocks >> 32) as u32);
        block
    }

    #[test]
    fn a_file_system_that_is_smaller_than_its_device_is_to_have_all_of_it() {
        let block = superblock(1000, 2, true);
        assert_eq!(blocks_to_have(&block, 1001 * 4096), Some(1001));
        assert_eq!(blocks_to_have(&block, 1000 * 4096 + 4095), None);
        assert_eq!(blocks_to_have(&block, 4096), None);
        let large = superblock(5 << 32, 2, true);
        assert_eq!(blocks_to_have(&large, 6 << 44), Some(6 << 32));
        assert_eq!(blocks_to_have(&large, 5 << 44), None);
    }

    #[test]
    fn what_is_no_ext4_is_left_alone() {
        assert_eq!(blocks_to_have(&[0; 1024], u64::MAX), None);
        assert_eq!(blocks_to_have(&superblock(1, 200, false), u64::MAX), None);
    }
}
