//! Empty writable disks for tenants.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::tool::{self, Tool};

const MKE2FS: Tool = Tool {
    program: "mke2fs",
    package: "e2fsprogs",
};
/// Smaller than this a journal does not fit, and nobody wants it.
const SIZE_MIN: u64 = 16 << 20;
/// ext4's limit with 4 KiB blocks is larger; a sparse file of more than this is a slip of the keyboard.
const SIZE_MAX: u64 = 16 << 40;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("a disk of {0} bytes is not possible: choose 16 MiB to 16 TiB")]
    Size(u64),
    #[error("the disk has {now} bytes and cannot shrink to {asked}; give at least what it has")]
    Shrink { asked: u64, now: u64 },
    #[error("making the disk {} failed", path.display())]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error(transparent)]
    Tool(#[from] tool::Error),
}

/// Makes a sparse file of `bytes` at `path` with an empty ext4 in it: a few hundred KiB are used at first, tables are
/// initialised lazily by the guest. The path must be free; nothing is left there on failure.
pub fn make(path: &Path, bytes: u64) -> Result<(), Error> {
    if !(SIZE_MIN..=SIZE_MAX).contains(&bytes) {
        return Err(Error::Size(bytes));
    }
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    if path.symlink_metadata().is_ok() {
        return Err(io(std::io::ErrorKind::AlreadyExists.into()));
    }
    let dir = path
        .parent()
        .filter(|dir| !dir.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let file = tempfile::Builder::new()
        .prefix(".disk-")
        .tempfile_in(dir)
        .map_err(io)?;
    file.as_file().set_len(bytes & !4095).map_err(io)?;
    let options = ["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "1", "-E"];
    let extended = "lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0";
    let arguments = options
        .iter()
        .map(std::ffi::OsStr::new)
        .chain([extended.as_ref(), file.path().as_os_str()]);
    MKE2FS.output(arguments)?;
    file.as_file().sync_all().map_err(io)?;
    file.persist_noclobber(path).map_err(|e| io(e.error))?;
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(io)
}

/// Makes room at the end of a disk: its file grows, still sparse; the file system in it is the guest's to grow.
pub fn grow(path: &Path, bytes: u64) -> Result<(), Error> {
    if !(SIZE_MIN..=SIZE_MAX).contains(&bytes) {
        return Err(Error::Size(bytes));
    }
    let io = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::options().write(true).open(path).map_err(io)?;
    let now = file.metadata().map_err(io)?.len();
    let asked = bytes & !4095;
    if asked < now {
        return Err(Error::Shrink { asked, now });
    }
    file.set_len(asked).map_err(io)?;
    file.sync_all().map_err(io)
}

/// Bytes that the disk's file takes on the host's disk.
pub fn used(path: &Path) -> std::io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    Ok(fs::metadata(path)?.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_disk_is_as_large_as_asked_and_takes_almost_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        make(&path, 10 << 30).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 10 << 30);
        assert!(used(&path).unwrap() < 8 << 20);
    }

    #[test]
    fn a_disk_grows_and_does_not_shrink() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        make(&path, SIZE_MIN).unwrap();
        grow(&path, 1 << 30).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 1 << 30);
        assert!(used(&path).unwrap() < 8 << 20);
        grow(&path, 1 << 30).unwrap();
        assert!(matches!(
            grow(&path, SIZE_MIN),
            Err(Error::Shrink { asked: SIZE_MIN, now }) if now == 1 << 30
        ));
        assert!(matches!(grow(&path, SIZE_MAX + 1), Err(Error::Size(_))));
        assert_eq!(path.metadata().unwrap().len(), 1 << 30);
        assert!(matches!(
            grow(&dir.path().join("none"), 1 << 30),
            Err(Error::Io { .. })
        ));
    }

    #[test]
    fn a_size_that_is_none_or_a_path_that_is_taken_is_refused_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        for size in [0, 1, SIZE_MIN - 1, u64::MAX] {
            assert!(matches!(make(&path, size), Err(Error::Size(_))));
        }
        fs::write(&path, "precious").unwrap();
        assert!(matches!(make(&path, SIZE_MIN), Err(Error::Io { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
