//! A container's root: its image, read-only, and over it the tenant's own layer, both given to the tenant's ids.
//!
//! All of it is mounted in the mount namespace of one thread, which the runtime inherits: when the tenant's last process
//! has ended, the kernel takes the mounts and the loop devices away, whoever was killed.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::{OFlag, openat};
use nix::libc::{self, dev_t};
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, makedev, mkdirat, mknod};
use nix::unistd::{Gid, Uid, chown, setfsgid, setfsuid};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::SECBIT_NO_SETUID_FIXUP;
use super::cdi::Node;
use super::ids::IdRange;
use super::loop_device::{LoopDevice, device_of};
use super::namespaces::Namespaces;
use crate::process::elsewhere;

/// Every system has these directories (Filesystem Hierarchy Standard, 3.11, 3.12, 3.17), and everybody may look into them: the
/// runtime's second half runs with the tenant's ids, which may not pass the state directory.
const PLACES: [&str; 3] = ["/mnt", "/media", "/srv"];
/// Beside the root.
const IMAGE: &str = "image";
/// How long the mounts of a run before may take to be gone.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL_MS: u8 = 10;

/// Why a root cannot be mounted.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    #[error("cannot {what}: {source}")]
    Io { what: String, source: io::Error },
    #[error(
        "this kernel cannot give the files of {what} ({kind}) to a tenant's ids: {source}; containers need Linux 6.1 or \
         later, `--isolation vm` does not"
    )]
    IdMap {
        what: &'static str,
        kind: String,
        source: io::Error,
    },
    #[error(
        "a container's root needs one of the directories {} that holds neither fief, its runtime nor the state directory", PLACES.join(", ")
    )]
    NoPlace,
    #[error("it was told to stop before its disk could be mounted")]
    GivenUp,
    #[error(
        "the disk {} is still mounted by a run of this tenant that has not ended; try again when it has", .0.display()
    )]
    InUse(PathBuf),
}

fn failed(what: impl Into<String>) -> impl FnOnce(io::Error) -> RootError {
    let what = what.into();
    move |source| RootError::Io { what, source }
}

/// What a root is made of.
#[derive(Debug, Clone, Copy)]
pub struct Layers<'a> {
    /// Where they are mounted, see [`place`].
    pub place: &'static Path,
    pub image: &'a Path,
    /// `erofs` or `ext4`.
    pub image_format: &'a str,
    /// A file with an ext4 that nobody but this kernel has ever written.
    pub disk: &'a Path,
    pub ids: IdRange,
    /// Have the map of those.
    pub namespaces: &'a Namespaces,
    /// Readable when the root is not wanted any more.
    pub give_up: BorrowedFd<'a>,
}

/// A root that is mounted.
#[derive(Debug)]
pub struct Root {
    /// Where it is.
    pub path: PathBuf,
    /// The number of the block device that the tenant's own layer is on.
    pub disk: dev_t,
}

/// The place to mount a root at: one that hides none of the files that are needed afterwards.
///
/// # Errors
/// All places hold some of them.
pub fn place(needed: &[&Path]) -> Result<&'static Path, RootError> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let needed: Vec<_> = needed.iter().map(|path| real(path)).collect();
    let is_free = |place: &&Path| {
        let place = real(place);
        place.is_dir() && !needed.iter().any(|path| path.starts_with(&place))
    };
    let mut places = PLACES.iter().map(Path::new);
    places.find(is_free).ok_or(RootError::NoPlace)
}

/// Gives this thread a mount namespace of its own, which hears what is unmounted elsewhere and tells nobody what is done in
/// it.
///
/// # Errors
/// No permission.
pub fn own_mounts() -> io::Result<()> {
    let none = None::<&str>;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let flags = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    Ok(mount(none, "/", none, flags, none)?)
}

/// Mounts the root in a mount namespace that this thread gets for it.
///
/// # Errors
/// See [`RootError`].
pub fn mount_all(layers: Layers<'_>) -> Result<Root, RootError> {
    own_mounts().map_err(failed("make a mount namespace"))?;
    let place = layers.place;
    cover(place)?;
    let [lower, disk, root] = [IMAGE, "disk", "root"].map(|name| place.join(name));
    for path in [&lower, &disk, &root] {
        std::fs::create_dir(path).map_err(failed(format!("make {}", path.display())))?;
    }
    let image = mount_image(layers)?;
    give(layers.namespaces, &image, "the image", layers.image_format)?;
    put(&image, &lower)?;
    let (layer, device) = mount_disk(layers.disk, layers.give_up)?;
    give(layers.namespaces, &layer, "the tenant's disk", "ext4")?;
    put(&layer, &disk)?;
    overlay(&lower, &disk, &root, layers.ids)?;
    Ok(Root {
        path: root,
        disk: device,
    })
}

/// Where the image is that [`mount_all`]'s root was laid over.
pub fn image(root: &Path) -> PathBuf {
    root.with_file_name(IMAGE)
}

/// Makes device nodes that belong to the tenant beside its root, for the runtime to bind: the host's own are its root's. In
/// the order of `nodes`.
///
/// # Errors
/// No permission to make devices.
pub fn device_nodes(place: &Path, nodes: &[Node], ids: IdRange) -> Result<Vec<PathBuf>, RootError> {
    if nodes.is_empty() {
        return Ok(Vec::new());
    }
    let directory = place.join("devices");
    let making = || "make the tenant's device nodes".to_owned();
    std::fs::create_dir(&directory).map_err(failed(making()))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    let data = Some("size=64k,mode=0755");
    mount(Some("fief"), &directory, Some("tmpfs"), flags, data)
        .map_err(|error| failed(making())(error.into()))?;
    let make = |(number, node): (usize, &Node)| {
        let path = directory.join(number.to_string());
        let mode = Mode::from_bits_truncate(node.mode);
        mknod(&path, SFlag::S_IFCHR, mode, makedev(node.major, node.minor))?;
        let (uid, gid) = (ids.first + node.uid, ids.first + node.gid);
        chown(&path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        // Whatever this process's umask is.
        fchmodat(rustix::fs::CWD, &path, mode, FchmodatFlags::FollowSymlink)?;
        Ok(path)
    };
    let made: nix::Result<_> = nodes.iter().enumerate().map(make).collect();
    made.map_err(|error| failed(making())(error.into()))
}

/// Puts an empty file system over `place`, for directories to mount on. The calling thread has mounts of its own.
///
/// # Errors
/// No permission.
pub fn cover(place: &Path) -> Result<(), RootError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some("fief"),
        place,
        Some("tmpfs"),
        flags,
        Some("size=64k,mode=0755"),
    )
    .map_err(|error| failed(format!("mount a tmpfs on {}", place.display()))(error.into()))
}

fn mount_image(layers: Layers<'_>) -> Result<OwnedFd, RootError> {
    let mounting = || format!("mount the image {}", layers.image.display());
    // As a file if the kernel can: erofs since Linux 6.12.
    if layers.image_format == "erofs" {
        match new_mount("erofs", layers.image, true) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTBLK) => {}
            other => return other.map_err(failed(mounting())),
        }
    }
    let device = File::open(layers.image)
        .and_then(|file| LoopDevice::of(&file))
        .map_err(failed("make a loop device of the image"))?;
    new_mount(layers.image_format, device.path(), true).map_err(failed(mounting()))
}

/// The layer with its two directories, which must be made before its ids are mapped: this process has none of those. And the
/// number of its device.
fn mount_disk(path: &Path, give_up: BorrowedFd<'_>) -> Result<(OwnedFd, dev_t), RootError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .map_err(failed(format!("open the tenant's disk {}", path.display())))?;
    let deadline = Instant::now() + PATIENCE;
    let in_use = || {
        let device = device_of(&file).map_err(failed("look at the loop devices"))?;
        Ok::<_, RootError>(device.is_some())
    };
    while in_use()? {
        // In a moment, or at once if nobody wants it any more.
        let given_up = poll(&mut [PollFd::new(give_up, PollFlags::POLLIN)], POLL_MS);
        if given_up.is_ok_and(|count| count > 0) {
            return Err(RootError::GivenUp);
        }
        if Instant::now() >= deadline {
            return Err(RootError::InUse(path.to_owned()));
        }
    }
    let device =
        LoopDevice::of(&file).map_err(failed("make a loop device of the tenant's disk"))?;
    let number = (device.number()).map_err(failed("look at the tenant's loop device"))?;
    let mounted = new_mount("ext4", device.path(), false).map_err(failed(format!(
        "mount the tenant's disk {}",
        path.display()
    )))?;
    grow(&file, &mounted).map_err(failed("let the tenant's disk grow"))?;
    for name in ["upper", "work"] {
        let mode = Mode::from_bits_truncate(0o755);
        let made = match mkdirat(&mounted, name, mode) {
            // Whatever this process's umask is: the upper directory is the tenant's root.
            Ok(()) => fchmodat(&mounted, name, mode, FchmodatFlags::FollowSymlink),
            Err(nix::Error::EEXIST) => Ok(()),
            Err(error) => Err(error),
        };
        made.map_err(|error| failed(format!("make '{name}' on the tenant's disk"))(error.into()))?;
    }
    Ok((mounted, number))
}

/// Lets the file system fill its file, which may have been made larger since.
fn grow(file: &File, mounted: &OwnedFd) -> io::Result<()> {
    let mut superblock = [0; 1024];
    file.read_exact_at(&mut superblock, SUPERBLOCK)?;
    let word = |at: usize| -> u64 {
        let bytes = superblock[at..at + 4].try_into().unwrap_or_default();
        u32::from_le_bytes(bytes).into()
    };
    // s_blocks_count_lo and _hi (Linux, Documentation/filesystems/ext4/super.rst).
    let has = word(0x4) | word(0x150) << 32;
    let blocks = file.metadata()?.len() / BLOCK;
    if blocks <= has {
        return Ok(());
    }
    // The mount's own descriptor is a place, not a file (O_PATH).
    let top = openat(
        mounted,
        ".",
        OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    // SAFETY: the descriptor is open, `blocks` lives through the call.
    unsafe { resize(top.as_raw_fd(), &raw const blocks) }?;
    Ok(())
}

/// A mount without a place. Devices on it are none.
fn new_mount(kind: &str, source: &Path, read_only: bool) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", source)?;
    if read_only {
        fsconfig_set_flag(context.as_fd(), "ro")?;
    }
    fsconfig_create(context.as_fd())?;
    let mut flags = MountAttrFlags::MOUNT_ATTR_NODEV;
    flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, read_only);
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        flags,
    )?)
}

fn give(
    namespaces: &Namespaces,
    mounted: &OwnedFd,
    what: &'static str,
    kind: &str,
) -> Result<(), RootError> {
    namespaces.give(mounted).map_err(|source| RootError::IdMap {
        what,
        kind: kind.to_owned(),
        source,
    })
}

fn put(mounted: &OwnedFd, place: &Path) -> Result<(), RootError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(mounted, "", rustix::fs::CWD, place, flags)
        .map_err(|error| failed(format!("put a mount at {}", place.display()))(error.into()))
}

/// The overlay's own work on its upper layer is done with the ids of whoever mounts it, and these must be in the layer's
/// map: so a thread does it whose ids for files are the tenant's root's.
fn overlay(lower: &Path, disk: &Path, root: &Path, ids: IdRange) -> Result<(), RootError> {
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.display(),
        disk.join("upper").display(),
        disk.join("work").display()
    );
    let work = || -> io::Result<()> {
        // SAFETY: takes numbers only. The capabilities stay though the ids change: the overlay needs them all its life.
        let kept = unsafe { libc::prctl(libc::PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP, 0, 0, 0) };
        nix::errno::Errno::result(kept)?;
        setfsgid(Gid::from_raw(ids.first));
        setfsuid(Uid::from_raw(ids.first));
        let flags = MsFlags::MS_NODEV;
        mount(
            Some("fief"),
            root,
            Some("overlay"),
            flags,
            Some(options.as_str()),
        )?;
        Ok(())
    };
    let mounted = elsewhere(work).and_then(std::convert::identity);
    mounted.map_err(failed("lay the tenant's disk over its image (overlay)"))
}

/// What fief makes disks with, and where their superblock is, in bytes.
const BLOCK: u64 = 4096;
const SUPERBLOCK: u64 = 1024;
// Linux, include/uapi/linux/ext4.h: EXT4_IOC_RESIZE_FS.
nix::ioctl_write_ptr!(resize, b'f', 16, u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_that_cannot_be_given_to_other_ids_is_told_by_its_kind() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let ids = IdRange {
            first: 1_900_000_000,
            count: 65_536,
        };
        let namespaces = Namespaces::new(ids).unwrap();
        let try_with = |kind: &str| {
            let mounted = new_mount(kind, Path::new("fief"), false).unwrap();
            give(&namespaces, &mounted, "the image", kind)
        };
        // The control: the kernel can, of a tmpfs (since Linux 6.3).
        try_with("tmpfs").unwrap();
        let error = try_with("ramfs").unwrap_err();
        let RootError::IdMap { source, .. } = &error else {
            panic!("{error}");
        };
        assert_eq!(source.raw_os_error(), Some(libc::EINVAL));
        let words = error.to_string();
        for word in ["the image (ramfs)", "Linux 6.1", "--isolation vm"] {
            assert!(words.contains(word), "{words}");
        }
    }

    #[test]
    fn a_root_hides_nothing_that_is_needed() {
        let found = |needed: &[&str]| {
            let needed: Vec<_> = needed.iter().map(Path::new).collect();
            place(&needed).map(|place| place.to_str().unwrap_or_default())
        };
        assert_eq!(found(&["/var/lib/x", "/usr/bin/crun"]).unwrap(), "/mnt");
        assert_ne!(found(&["/mnt/large/state"]).unwrap(), "/mnt");
        let error = found(&["/mnt/a", "/media/b", "/srv/c"]).unwrap_err();
        assert!(error.to_string().contains("/mnt, /media, /srv"), "{error}");
    }
}
