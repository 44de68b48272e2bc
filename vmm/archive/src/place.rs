//! Making things below one directory, and never elsewhere: names are resolved by the kernel with `openat2` and
//! RESOLVE_BENEATH (openat2(2)), so that no link and no `..` leads out, not even one that changes meanwhile.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat, openat2, renameat};
use nix::sys::stat::{
    FchmodatFlags, Mode, UtimensatFlags, fchmod, fchmodat, fstatat, mkdirat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};

use crate::{Error, failed};

/// Makes names of unfinished things unique within this process.
static COUNTER: AtomicU32 = AtomicU32::new(0);

/// Of directories that the stream does not name but needs.
const PARENT_MODE: u32 = 0o755;

/// What a thing is to have besides its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Marks {
    pub mode: u32,
    /// Seconds since 1970.
    pub mtime: u64,
    /// None: whoever makes it.
    pub owner: Option<(u32, u32)>,
}

/// The directory that everything is made below.
#[derive(Debug)]
pub(crate) struct Root {
    directory: OwnedFd,
    /// For messages.
    pub path: PathBuf,
}

impl Root {
    /// An existing directory, whose path is trusted.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self {
            directory: open(path, flags, Mode::empty()).map_err(failed("open", path))?,
            path: path.to_owned(),
        })
    }

    /// The same, by another name in messages.
    pub fn shown_as(self, path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            ..self
        }
    }

    pub fn shown(&self, relative: &Path) -> PathBuf {
        self.path.join(relative)
    }

    /// The directory at `relative`, an empty path being the root itself.
    pub fn enter(&self, relative: &Path) -> nix::Result<OwnedFd> {
        let relative = if relative.as_os_str().is_empty() {
            Path::new(".")
        } else {
            relative
        };
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&self.directory, relative, how)
    }

    /// The directory that `relative` is in, made where it is missing.
    pub fn parent(&self, relative: &Path) -> Result<OwnedFd, Error> {
        let parent = relative.parent().unwrap_or(Path::new(""));
        match self.enter(parent) {
            Err(Errno::ENOENT) => {}
            Err(Errno::EXDEV | Errno::ELOOP) => {
                return Err(Error::Outside(self.shown(parent).display().to_string()));
            }
            entered => return entered.map_err(failed("enter", self.shown(parent))),
        }
        let above = self.parent(parent)?;
        let name = parent.file_name().unwrap_or_default();
        match mkdirat(&above, name, Mode::from_bits_truncate(PARENT_MODE)) {
            Ok(()) | Err(Errno::EEXIST) => {}
            Err(error) => return Err(failed("make", self.shown(parent))(error)),
        }
        self.enter(parent)
            .map_err(failed("enter", self.shown(parent)))
    }

    /// Makes a directory that only its owner can use until [`Root::finish_directory`]; false if it was there before.
    pub fn directory(&self, relative: &Path) -> Result<bool, Error> {
        let parent = self.parent(relative)?;
        let name = relative.file_name().unwrap_or_default();
        match mkdirat(&parent, name, Mode::S_IRWXU) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => match self.enter(relative) {
                Ok(_) => Ok(false),
                Err(Errno::EXDEV | Errno::ELOOP) => {
                    Err(Error::Outside(self.shown(relative).display().to_string()))
                }
                Err(_) => Err(Error::NotDirectory(self.shown(relative))),
            },
            Err(error) => Err(failed("make", self.shown(relative))(error)),
        }
    }

    /// Gives a directory its marks, once everything is in it.
    pub fn finish_directory(&self, relative: &Path, marks: Marks) -> Result<(), Error> {
        let shown = || self.shown(relative);
        let directory = self.enter(relative).map_err(failed("enter", shown()))?;
        // Opened for its path alone, it can be changed only by one.
        let dot = OsStr::new(".");
        let changed = || -> nix::Result<()> {
            chown(directory.as_fd(), dot, marks.owner)?;
            set_time(directory.as_fd(), dot, marks.mtime)?;
            // Last, as it may take away the permission to come here.
            let mode = Mode::from_bits_truncate(marks.mode);
            fchmodat(&directory, dot, mode, FchmodatFlags::FollowSymlink)
        };
        changed().map_err(failed("change", shown()))
    }

    /// Makes a file that appears complete or not at all.
    pub fn file(
        &self,
        relative: &Path,
        marks: Marks,
        content: &mut dyn Read,
        size: u64,
    ) -> Result<(), Error> {
        let unfinished = self.unfinished(relative)?;
        let flags =
            OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let shown = || self.shown(relative);
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = openat(&unfinished.parent, unfinished.name.as_c_str(), flags, mode);
        let mut file = File::from(file.map_err(failed("make", shown()))?);
        copy(content, &mut file, size, &shown)?;
        let name = unfinished.name();
        let marked = || -> nix::Result<()> {
            chown(unfinished.parent.as_fd(), name, marks.owner)?;
            // After the owner, whose change clears the set-id bits.
            fchmod(&file, Mode::from_bits_truncate(marks.mode))?;
            set_time(unfinished.parent.as_fd(), name, marks.mtime)
        };
        marked().map_err(failed("change", shown()))?;
        unfinished.put(relative, shown)
    }

    /// Makes a symbolic link, wherever it may lead.
    pub fn symlink(&self, relative: &Path, target: &Path, marks: Marks) -> Result<(), Error> {
        let unfinished = self.unfinished(relative)?;
        let shown = || self.shown(relative);
        let name = unfinished.name();
        let made = || -> nix::Result<()> {
            symlinkat(target, &unfinished.parent, name)?;
            chown(unfinished.parent.as_fd(), name, marks.owner)?;
            set_time(unfinished.parent.as_fd(), name, marks.mtime)
        };
        made().map_err(failed("make", shown()))?;
        unfinished.put(relative, shown)
    }

    /// Makes another name for something below this root.
    pub fn hard_link(&self, relative: &Path, target: &Path) -> Result<(), Error> {
        let there = self.parent(target)?;
        let unfinished = self.unfinished(relative)?;
        let shown = || self.shown(relative);
        let linked = linkat(
            &there,
            target.file_name().unwrap_or_default(),
            &unfinished.parent,
            unfinished.name.as_c_str(),
            LinkatFlags::empty(),
        );
        linked.map_err(failed("link", shown()))?;
        unfinished.put(relative, shown)
    }

    pub fn unfinished(&self, relative: &Path) -> Result<Unfinished, Error> {
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!(".fief-cp-{}-{number}", std::process::id());
        Ok(Unfinished {
            parent: self.parent(relative)?,
            // Made of digits: there is no NUL in it.
            name: CString::new(name).unwrap_or_default(),
        })
    }
}

/// A thing under another name. Dropped, it is removed.
pub(crate) struct Unfinished {
    pub parent: OwnedFd,
    name: CString,
}

impl Unfinished {
    pub fn name(&self) -> &OsStr {
        OsStr::from_bytes(self.name.as_bytes())
    }

    pub fn put(self, relative: &Path, shown: impl Fn() -> PathBuf) -> Result<(), Error> {
        let name = relative.file_name().unwrap_or_default();
        let moved = renameat(&self.parent, self.name.as_c_str(), &self.parent, name);
        match moved {
            Err(Errno::EISDIR) => Err(Error::IsDirectory(shown())),
            other => other.map_err(failed("make", shown())),
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        // Mostly it has its name by now. (Two names of one file are left as they are by rename(2).)
        let _ = unlinkat(
            &self.parent,
            self.name.as_c_str(),
            UnlinkatFlags::NoRemoveDir,
        );
    }
}

/// Copies exactly `size` bytes.
fn copy(
    content: &mut dyn Read,
    file: &mut File,
    size: u64,
    shown: &impl Fn() -> PathBuf,
) -> Result<(), Error> {
    let mut buffer = vec![0; 128 << 10];
    let mut left = size;
    while left > 0 {
        let most = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let count = match content.read(&mut buffer[..most]) {
            Ok(0) => return Err(Error::Truncated(shown())),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::Read(error)),
        };
        io::Write::write_all(file, &buffer[..count]).map_err(failed("write", shown()))?;
        left -= count as u64;
    }
    Ok(())
}

fn chown(parent: BorrowedFd<'_>, name: &OsStr, owner: Option<(u32, u32)>) -> nix::Result<()> {
    let Some((uid, gid)) = owner else {
        return Ok(());
    };
    fchownat(
        parent,
        name,
        Some(Uid::from_raw(uid)),
        Some(Gid::from_raw(gid)),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
}

fn set_time(parent: BorrowedFd<'_>, name: &OsStr, mtime: u64) -> nix::Result<()> {
    let time = TimeSpec::new(i64::try_from(mtime).unwrap_or(i64::MAX), 0);
    utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)
}

/// Whether there is a directory of that name, not a link to one.
pub(crate) fn is_directory(root: &Root, name: &OsStr) -> Option<bool> {
    let found = fstatat(&root.directory, name, AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
    Some(found.st_mode & nix::libc::S_IFMT == nix::libc::S_IFDIR)
}

impl Root {
    /// The directory `name` in this one, not through a link.
    pub fn below(&self, name: &OsStr) -> Result<Self, Error> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        let path = self.path.join(name);
        let directory =
            openat(&self.directory, name, flags, Mode::empty()).map_err(failed("open", &path))?;
        Ok(Self { directory, path })
    }
}
