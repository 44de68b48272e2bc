//! A tenant's network namespace: a file that keeps it, where `ip netns` looks for such.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{NSFS_MAGIC, statfs};

use crate::process::elsewhere;

/// Where namespaces have names (ip-netns(8)).
pub const DIRECTORY: &str = "/run/netns";

/// The file of a namespace.
pub fn path(name: &str) -> PathBuf {
    Path::new(DIRECTORY).join(name)
}

/// Whether the namespace is there, rather than nothing or the file that a killed maker left.
pub fn exists(name: &str) -> bool {
    statfs(&path(name)).is_ok_and(|data| data.filesystem_type() == NSFS_MAGIC)
}

/// The namespace, for [`within`] and setns(2).
///
/// # Errors
/// It is not there.
pub fn open(name: &str) -> io::Result<File> {
    File::open(path(name))
}

/// Makes an empty namespace.
///
/// # Errors
/// No permission, or it is there already.
pub fn make(name: &str) -> io::Result<File> {
    prepare_directory()?;
    let path = path(name);
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o0)
        .open(&path)?;
    elsewhere(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        // Of this thread, which alone has changed over.
        bind(Path::new("/proc/thread-self/ns/net"), &path)
    })??;
    open(name)
}

/// Removes the name; the namespace is gone when nobody is in it. Nothing there is fine.
///
/// # Errors
/// No permission.
pub fn remove(name: &str) -> io::Result<()> {
    let path = path(name);
    match umount2(&path, MntFlags::MNT_DETACH) {
        // Not mounted, or not there.
        Err(nix::Error::EINVAL | nix::Error::ENOENT) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Names of namespaces that begin with `prefix`.
pub fn named(prefix: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(DIRECTORY) else {
        return Vec::new();
    };
    let names = entries.flatten().map(|entry| entry.file_name());
    names
        .filter_map(|name| name.to_str().map(str::to_owned))
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Does `work` in the namespace.
///
/// # Errors
/// No permission.
pub fn within<T: Send>(namespace: &File, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    let done = elsewhere(|| setns(namespace, CloneFlags::CLONE_NEWNET).map(|()| work()))?;
    Ok(done?)
}

/// A mount in the directory is seen, and its removal too, by every service with mounts of its own: as `ip netns` does it.
fn prepare_directory() -> io::Result<()> {
    let directory = Path::new(DIRECTORY);
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(directory)?;
    let share = MsFlags::MS_SHARED | MsFlags::MS_REC;
    let none: Option<&str> = None;
    match mount(none, directory, none, share, none) {
        // It is no mount yet.
        Err(nix::Error::EINVAL) => {
            bind(directory, directory)?;
            Ok(mount(none, directory, none, share, none)?)
        }
        other => Ok(other?),
    }
}

fn bind(from: &Path, to: &Path) -> nix::Result<()> {
    let none: Option<&str> = None;
    mount(
        Some(from),
        to,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )
}
