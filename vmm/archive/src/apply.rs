//! A stream of differences is applied to a tree that is as the image was.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmodat, mknodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, symlinkat, syncfs, unlinkat};
use rustix::fs::{XattrFlags, lremovexattr, lsetxattr};
use tar::{Archive, EntryType};

use crate::diff::{END, REMOVED, attributes, is_carried};
use crate::pax::{self, Time};
use crate::place::{Root, Unfinished};
use crate::unpack::{Item, Reader, drain, malformed, relative};
use crate::{Error, failed};

/// Most bytes of one thing's attributes: ext4 has room for less, and directories' are kept until all is in them.
const ATTRIBUTES: usize = 64 << 10;

/// How many files are written before it is made sure that they are on the disk.
const UNSETTLED: usize = 256;

/// Makes `root`, which is as the image is, what [`diff`](crate::diff()) has seen. In messages it is `shown`. All of it is on
/// the disk then.
///
/// # Errors
/// The stream is none or has no end, names what is not below `root`, or something cannot be written.
pub fn apply(input: impl Read, root: &Path, shown: &Path) -> Result<(), Error> {
    let mut archive = Archive::new(input);
    let mut reader = Reader::new(&mut archive)?;
    let mut applier = Applier {
        root: Root::open(root)?.shown_as(shown),
        top: File::open(root).map_err(failed("open", shown))?,
        open: Vec::new(),
        file: None,
        unsettled: Vec::new(),
    };
    loop {
        let Some(mut item) = reader.next()? else {
            return Err(Error::Format("it has no end".to_owned()));
        };
        if item.kind.as_byte() == END {
            break;
        }
        let path: PathBuf = relative(&item.name)?.iter().collect();
        applier.take(&path, &mut item)?;
    }
    applier.finish_file()?;
    applier.close_all_but(None)?;
    applier.settle()?;
    drain(archive.into_inner())
}

/// What a thing is to have besides its content.
#[derive(Debug, Clone)]
struct Looks {
    owner: (u32, u32),
    mode: u32,
    accessed: Time,
    modified: Time,
    attributes: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A file that may get more extents.
struct Open {
    file: File,
    path: PathBuf,
    unfinished: Unfinished,
    looks: Looks,
    size: u64,
    /// Where its last extent ended.
    end: u64,
}

struct Applier {
    root: Root,
    /// The same, to ask whether it is on the disk.
    top: File,
    /// Directories that get their looks when all is in them, each within the one before.
    open: Vec<(PathBuf, Looks)>,
    file: Option<Open>,
    /// Files that are written, and perhaps not on the disk.
    unsettled: Vec<(File, PathBuf)>,
}

impl Applier {
    fn take<R: Read>(&mut self, path: &Path, item: &mut Item<'_, R>) -> Result<(), Error> {
        if item.kind == EntryType::Continuous {
            return self.more(path, item);
        }
        self.finish_file()?;
        self.close_all_but(Some(path))?;
        let shown = self.root.shown(path);
        if path.as_os_str().is_empty() && item.kind != EntryType::Directory {
            return Err(Error::Outside(shown.display().to_string()));
        }
        match item.kind {
            EntryType::Directory => {
                let looks = looks(item)?;
                if !path.as_os_str().is_empty() {
                    self.root.directory(path)?;
                }
                // The same one again is not another one.
                self.open.pop_if(|(open, _)| open == path);
                self.open.push((path.to_owned(), looks));
                Ok(())
            }
            EntryType::Regular => self.file(path, item),
            EntryType::Link => {
                let target = relative(item.link.as_deref().unwrap_or_default())?;
                self.root
                    .hard_link(path, &target.iter().collect::<PathBuf>())
            }
            EntryType::Symlink => {
                let target = item.link.clone().filter(|target| !target.is_empty());
                let target = target
                    .ok_or_else(|| Error::Format(format!("{} leads nowhere", shown.display())))?;
                self.special(path, item, |parent, name| {
                    symlinkat(target.as_os_str(), parent, name)
                })
            }
            EntryType::Fifo => self.special(path, item, |parent, name| {
                mknodat(parent, name, SFlag::S_IFIFO, Mode::S_IRUSR, 0)
            }),
            kind if kind.as_byte() == REMOVED => self.remove(path),
            kind => Err(Error::Format(format!(
                "{} is of a kind that is not moved ({:?})",
                shown.display(),
                char::from(kind.as_byte())
            ))),
        }
    }

    fn special<R: Read>(
        &self,
        path: &Path,
        item: &Item<'_, R>,
        make: impl FnOnce(BorrowedFd<'_>, &OsStr) -> nix::Result<()>,
    ) -> Result<(), Error> {
        let shown = || self.root.shown(path);
        let looks = looks(item)?;
        let unfinished = self.root.unfinished(path)?;
        make(unfinished.parent.as_fd(), unfinished.name()).map_err(failed("make", shown()))?;
        let is_link = item.kind == EntryType::Symlink;
        dress(
            unfinished.parent.as_fd(),
            unfinished.name(),
            &looks,
            is_link,
        )
        .map_err(failed("change", shown()))?;
        unfinished.put(path, shown)
    }

    fn file<R: Read>(&mut self, path: &Path, item: &mut Item<'_, R>) -> Result<(), Error> {
        let shown = || self.root.shown(path);
        let size = record(item, pax::SIZE)?.and_then(|size| size.parse().ok());
        let size =
            size.ok_or_else(|| Error::Format(format!("{} has no size", shown().display())))?;
        let looks = looks(item)?;
        let unfinished = self.root.unfinished(path)?;
        let flags =
            OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        let file = openat(&unfinished.parent, unfinished.name(), flags, mode);
        let file = File::from(file.map_err(failed("make", shown()))?);
        file.set_len(size).map_err(failed("write", shown()))?;
        self.file = Some(Open {
            file,
            path: path.to_owned(),
            unfinished,
            looks,
            size,
            end: 0,
        });
        self.more(path, item)
    }

    fn more<R: Read>(&mut self, path: &Path, item: &mut Item<'_, R>) -> Result<(), Error> {
        let shown = self.root.shown(path);
        let wrong = || Error::Format(format!("the extents of {} make no sense", shown.display()));
        let open = self.file.as_mut().filter(|open| open.path == path);
        let open = open.ok_or_else(wrong)?;
        let list = record(item, pax::EXTENTS)?.unwrap_or_default();
        let mut size = item.entry.header().entry_size().map_err(malformed)?;
        let mut buffer = vec![0; 128 << 10];
        for extent in list.split(',').filter(|extent| !extent.is_empty()) {
            let (at, length) = extent.split_once(':').ok_or_else(wrong)?;
            let mut at: u64 = at.parse().map_err(|_| wrong())?;
            let length: u64 = length.parse().map_err(|_| wrong())?;
            let end = at.checked_add(length).filter(|end| *end <= open.size);
            let end = end.filter(|_| at >= open.end).ok_or_else(wrong)?;
            size = size.checked_sub(length).ok_or_else(wrong)?;
            while at < end {
                let most = usize::try_from(end - at)
                    .unwrap_or(usize::MAX)
                    .min(buffer.len());
                let count = match item.entry.read(&mut buffer[..most]) {
                    Ok(0) => return Err(Error::Truncated(shown)),
                    Ok(count) => count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) => return Err(Error::Read(error)),
                };
                open.file
                    .write_all_at(&buffer[..count], at)
                    .map_err(failed("write", &shown))?;
                at += count as u64;
            }
            open.end = end;
        }
        if size == 0 { Ok(()) } else { Err(wrong()) }
    }

    fn finish_file(&mut self) -> Result<(), Error> {
        let Some(open) = self.file.take() else {
            return Ok(());
        };
        let shown = || self.root.shown(&open.path);
        dress(
            open.unfinished.parent.as_fd(),
            open.unfinished.name(),
            &open.looks,
            false,
        )
        .map_err(failed("change", shown()))?;
        open.unfinished.put(&open.path, shown)?;
        self.unsettled.push((open.file, open.path));
        if self.unsettled.len() < UNSETTLED {
            return Ok(());
        }
        self.settle()
    }

    /// Makes sure that what was written is on the disk. The file system as a whole tells of its own blocks only, an overlay does
    /// not even know of its files'; but then each file has nothing left to do but to tell.
    fn settle(&mut self) -> Result<(), Error> {
        let top = self.root.shown(Path::new(""));
        syncfs(&self.top).map_err(failed("write", top))?;
        for (file, path) in self.unsettled.drain(..) {
            file.sync_data()
                .map_err(failed("write", self.root.shown(&path)))?;
        }
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), Error> {
        let parent = self.root.parent(path)?;
        let name = path.file_name().unwrap_or_default();
        let removed = match unlinkat(&parent, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(Errno::EISDIR) => fs::remove_dir_all(at(parent.as_fd(), name)),
            Err(error) => Err(error.into()),
        };
        removed.map_err(failed("remove", self.root.shown(path)))
    }

    /// Gives their looks to directories that `path` is not in.
    fn close_all_but(&mut self, path: Option<&Path>) -> Result<(), Error> {
        while let Some((directory, looks)) = self
            .open
            .pop_if(|(open, _)| path.is_none_or(|path| !path.starts_with(open)))
        {
            let shown = self.root.shown(&directory);
            let entered = self.root.enter(&directory);
            let entered = entered.map_err(failed("enter", &shown))?;
            dress(entered.as_fd(), OsStr::new("."), &looks, false)
                .map_err(failed("change", &shown))?;
        }
        Ok(())
    }
}

/// A path to something in an open directory, for calls that take no descriptor.
fn at(parent: BorrowedFd<'_>, name: &OsStr) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name)
}

fn dress(parent: BorrowedFd<'_>, name: &OsStr, looks: &Looks, is_link: bool) -> io::Result<()> {
    let (uid, gid) = looks.owner;
    let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
    // First: it takes set-id bits and capabilities away.
    fchownat(parent, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let path = at(parent, name);
    // What the image has, or a directory's default list has given.
    for had in attributes(&path)? {
        if is_carried(&had) && !looks.attributes.iter().any(|(wanted, _)| *wanted == had) {
            lremovexattr(&path, had)?;
        }
    }
    for (attribute, value) in &looks.attributes {
        lsetxattr(&path, attribute.as_slice(), value, XattrFlags::empty())
            .map_err(|error| not_kept(error.into(), attribute))?;
    }
    if !is_link {
        let mode = Mode::from_bits_truncate(looks.mode);
        fchmodat(parent, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    let time = |time: Time| TimeSpec::new(time.seconds, time.nanoseconds.into());
    let (accessed, modified) = (time(looks.accessed), time(looks.modified));
    Ok(utimensat(
        parent,
        name,
        &accessed,
        &modified,
        UtimensatFlags::NoFollowSymlink,
    )?)
}

/// What the kernel says of an attribute that it does not know, with its name. (fief's kernel `micro` has neither file
/// capabilities nor ACLs.)
fn not_kept(error: io::Error, attribute: &[u8]) -> io::Error {
    if error.kind() != io::ErrorKind::Unsupported {
        return error;
    }
    let attribute = OsStr::from_bytes(attribute).display();
    let words = format!("the kernel here keeps no attributes such as {attribute}");
    io::Error::new(error.kind(), words)
}

fn looks<R: Read>(item: &Item<'_, R>) -> Result<Looks, Error> {
    let time = |key: &str| -> Result<Time, Error> {
        let text = record(item, key)?.unwrap_or_default();
        Time::parse(&text).ok_or_else(|| Error::Format(format!("'{text}' is no time")))
    };
    let mut attributes = Vec::new();
    let mut size = 0;
    for each in pax::records(&item.records) {
        let (key, value) = each?;
        if let Some(attribute) = key.strip_prefix(pax::ATTRIBUTE.as_bytes()) {
            size += attribute.len() + value.len();
            if !is_carried(attribute) || size > ATTRIBUTES {
                let attribute = OsStr::from_bytes(attribute).display().to_string();
                return Err(Error::Format(format!(
                    "the attribute {attribute} is not moved"
                )));
            }
            attributes.push((attribute.to_vec(), value.to_vec()));
        }
    }
    Ok(Looks {
        owner: item.owner,
        mode: item.entry.header().mode().map_err(malformed)? & 0o7777,
        accessed: time("atime")?,
        modified: time("mtime")?,
        attributes,
    })
}

/// The last record of that key.
fn record<R: Read>(item: &Item<'_, R>, wanted: &str) -> Result<Option<String>, Error> {
    let mut found = None;
    for record in pax::records(&item.records) {
        let (key, value) = record?;
        if key == wanted.as_bytes() {
            found = Some(String::from_utf8_lossy(value).into_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
