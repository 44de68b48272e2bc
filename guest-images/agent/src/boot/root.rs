//! The tenant's root: a read-only image, a writable layer over it, and the change into it.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};

use super::wait_for;
use crate::grow;
use crate::log;
use crate::settings::Settings;

const LOWER: &str = "/fief/lower";
const DISK: &str = "/fief/disk";
const MERGED: &str = "/fief/root";
/// linux/magic.h
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);

/// The mounted root, for the end of the system.
#[derive(Debug, Default)]
pub struct Root {
    /// The writable disk's mount, which no path leads to any more.
    disk: Option<File>,
}

impl Root {
    /// Mounts what the settings name and changes into it. Without `fief.root` the initramfs stays the root.
    ///
    /// # Errors
    /// One line that says what is missing; the initramfs then still is the root.
    pub fn set_up(settings: &Settings) -> Result<Root, String> {
        let Some(image) = &settings.root else {
            return Ok(Root::default());
        };
        let image = find_drive(image)?;
        let kind = match &settings.root_type {
            Some(kind) => kind.clone(),
            None => file_system(&image)?.to_owned(),
        };
        mount_new(
            &image.to_string_lossy(),
            LOWER,
            &kind,
            MsFlags::MS_RDONLY,
            "",
        )?;
        let mut root = Root::default();
        match &settings.disk {
            Some(disk) => {
                let device = find_drive(disk)?;
                mount_new(
                    &device.to_string_lossy(),
                    DISK,
                    "ext4",
                    MsFlags::empty(),
                    "",
                )?;
                let mounted = File::open(DISK)
                    .map_err(|error| format!("cannot open the disk's root: {error}"))?;
                if let Err(error) = grow::to_device(&device, &mounted) {
                    // It is as large as it was.
                    log::error(format!("cannot grow the disk's file system: {error}"));
                }
                root.disk = Some(mounted);
            }
            None => mount_new("tmpfs", DISK, "tmpfs", MsFlags::empty(), "mode=0755")?,
        }
        for part in ["upper", "work"] {
            let path = Path::new(DISK).join(part);
            let made = fs::DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(&path);
            made.map_err(|error| format!("cannot make {part} on the disk: {error}; is it full?"))?;
        }
        let layers = format!("lowerdir={LOWER},upperdir={DISK}/upper,workdir={DISK}/work");
        mount_new("overlay", MERGED, "overlay", MsFlags::empty(), &layers)?;
        if let Some(modules) = &settings.modules_drive
            && let Err(error) = mount_modules(modules)
        {
            // Everything but loading modules on demand works without.
            log::error(format!("the kernel's modules are missing: {error}"));
        }
        change_into(Path::new(MERGED))?;
        Ok(root)
    }

    /// Writes everything out and makes the disk clean, after all processes have ended.
    pub fn make_read_only(&self) {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        // The overlay first: it then writes no more to the disk.
        let _ = mount(None::<&str>, "/", None::<&str>, flags, None::<&str>);
        if let Some(disk) = &self.disk {
            let path = format!("/proc/self/fd/{}", disk.as_raw_fd());
            if let Err(error) = mount(
                None::<&str>,
                path.as_str(),
                None::<&str>,
                flags,
                None::<&str>,
            ) {
                log::error(format!(
                    "cannot make the disk read-only: {error}; its journal will be replayed"
                ));
            }
        }
        nix::unistd::sync();
    }
}

/// Mounts a drive, read-only, by what its superblock says.
///
/// # Errors
/// One line that says what is missing.
pub fn mount_drive(id: &str, target: &str) -> Result<(), String> {
    let device = find_drive(id)?;
    let kind = file_system(&device)?;
    mount_new(
        &device.to_string_lossy(),
        target,
        kind,
        MsFlags::MS_RDONLY,
        "",
    )
}

/// Mounts the drive that holds the kernel's modules where modprobe looks for them.
fn mount_modules(id: &str) -> Result<(), String> {
    // `/lib` may be a link inside the image: its target is resolved against the image, not against the initramfs.
    let merged = Path::new(MERGED);
    let directory = if merged.join("usr/lib").is_dir() {
        merged.join("usr/lib/modules")
    } else {
        merged.join("lib/modules")
    };
    mount_drive(id, &directory.to_string_lossy())
}

/// The block device whose serial number is `id`, or whose path below `/dev` that is; waits for it.
///
/// # Errors
/// One line that says which drives there are.
pub fn find_drive(id: &str) -> Result<PathBuf, String> {
    if id.starts_with("/dev/") {
        let device = PathBuf::from(id);
        let there = || device.exists().then(|| device.clone());
        return wait_for(there).ok_or_else(|| format!("there is no drive {id}"));
    }
    let look = || {
        fs::read_dir("/sys/block")
            .ok()?
            .flatten()
            .find_map(|entry| {
                // virtio-blk has it beside the disk, NVMe at its controller.
                let has_it = |file: &str| {
                    fs::read_to_string(entry.path().join(file))
                        .is_ok_and(|serial| serial.trim() == id)
                };
                let device = Path::new("/dev").join(entry.file_name());
                (["serial", "device/serial"].into_iter().any(has_it) && device.exists())
                    .then_some(device)
            })
    };
    wait_for(look).ok_or_else(|| {
        let there: Vec<String> = fs::read_dir("/sys/block")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        let there = if there.is_empty() {
            "none; is the virtio_blk module there?".into()
        } else {
            there.join(" ")
        };
        format!("no drive has the serial number '{id}' (drives: {there})")
    })
}

/// erofs (`EROFS_SUPER_MAGIC_V1` at 1024) or ext4 (`EXT4_SUPER_MAGIC` at 1024 + 0x38), by the superblock.
fn file_system(device: &Path) -> Result<&'static str, String> {
    let mut block = [0; 64];
    File::open(device)
        .and_then(|file| file.read_exact_at(&mut block, 1024))
        .map_err(|error| {
            format!("cannot read the image's superblock: {error}; the image may be truncated")
        })?;
    kind_of(&block)
        .ok_or_else(|| "the image holds neither erofs nor ext4; make it again".to_owned())
}

fn kind_of(superblock: &[u8; 64]) -> Option<&'static str> {
    if superblock.starts_with(&0xe0f5_e1e2u32.to_le_bytes()) {
        Some("erofs")
    } else if superblock[0x38..].starts_with(&0xef53u16.to_le_bytes()) {
        Some("ext4")
    } else {
        None
    }
}

fn mount_new(
    source: &str,
    target: &str,
    kind: &str,
    flags: MsFlags,
    data: &str,
) -> Result<(), String> {
    fs::create_dir_all(target).map_err(|error| format!("cannot make {target}: {error}"))?;
    mount(Some(source), target, Some(kind), flags, Some(data)).map_err(|error| {
        let hint = match error {
            nix::Error::ENODEV => {
                "; the kernel has no such file system, is its module in the initramfs?"
            }
            nix::Error::EUCLEAN | nix::Error::EINVAL => "; the file system may be damaged",
            _ => "",
        };
        format!("cannot mount {source} as {kind}: {}{hint}", error.desc())
    })
}

/// Moves the kernel's file systems along, empties the initramfs and makes `new` the root.
fn change_into(new: &Path) -> Result<(), String> {
    for name in ["dev", "proc", "sys"] {
        let target = new.join(name);
        let moved = fs::create_dir_all(&target).is_ok()
            && mount(
                Some(&Path::new("/").join(name)),
                &target,
                None::<&str>,
                MsFlags::MS_MOVE,
                None::<&str>,
            )
            .is_ok();
        if !moved {
            return Err(format!(
                "cannot move /{name} into the image; it must be a directory there"
            ));
        }
    }
    for name in ["run", "tmp", "etc", "root"] {
        let _ = fs::create_dir_all(new.join(name));
    }
    let old = File::open("/").map_err(|error| format!("cannot open the initramfs: {error}"))?;
    let change = || -> nix::Result<()> {
        nix::unistd::chdir(new)?;
        mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)?;
        nix::unistd::chroot(".")?;
        nix::unistd::chdir("/")
    };
    change().map_err(|error| format!("cannot change into the image: {error}"))?;
    empty(&old);
    Ok(())
}

/// Deletes what the initramfs holds: it is memory that nobody can reach any more.
fn empty(old: &File) {
    let path = PathBuf::from(format!("/proc/self/fd/{}", old.as_raw_fd()));
    let in_memory = |kind: FsType| kind == RAMFS_MAGIC || kind == TMPFS_MAGIC;
    let (Ok(kind), Ok(found)) = (statfs(&path), old.metadata()) else {
        return;
    };
    // Anything else is not an initramfs, and somebody's data.
    if in_memory(kind.filesystem_type()) {
        empty_below(&path, found.dev());
    }
}

fn empty_below(directory: &Path, device: u64) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let Ok(found) = path.symlink_metadata() else {
            continue;
        };
        // What is mounted there is not the initramfs.
        if found.dev() != device {
            continue;
        }
        if found.is_dir() {
            empty_below(&path, device);
            let _ = fs::remove_dir(&path);
        } else {
            let _ = fs::remove_file(&path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::kind_of;

    #[test]
    fn the_superblock_tells_the_file_system() {
        let mut block = [0; 64];
        assert_eq!(kind_of(&block), None);
        block[0x38..0x3a].copy_from_slice(&[0x53, 0xef]);
        assert_eq!(kind_of(&block), Some("ext4"));
        block[..4].copy_from_slice(&[0xe2, 0xe1, 0xf5, 0xe0]);
        assert_eq!(kind_of(&block), Some("erofs"));
    }
}
