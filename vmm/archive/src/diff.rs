//! What of a tree differs from the image below it becomes a stream.
//!
//! The stream is a tar archive. What the format has no place for is in records of its pax headers: nanoseconds, extended
//! attributes, where the data of a sparse file is. Entries of kinds of our own tell what is missing, and where the end is.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::fs::{SeekFrom, lgetxattr, llistxattr, seek};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use crate::pack::{Out, header};
use crate::pax::{self, Time};
use crate::unpack::LONGEST_EXTENSION;
use crate::{Error, failed};

/// Kinds of entries of our own (the format leaves capital letters to everybody): something is not there any more; the end.
pub(crate) const REMOVED: u8 = b'R';
pub(crate) const END: u8 = b'E';

/// Extents of a file in one entry: their list stays a fraction of what may be read into memory.
const EXTENTS: usize = 1000;
/// A container has 65,536 ids.
const MOST_ID: u32 = 65_535;
/// How many things that cannot be moved are named.
const NAMED: usize = 5;
/// Linux's XATTR_LIST_MAX and XATTR_SIZE_MAX (include/uapi/linux/limits.h).
const ATTRIBUTE_MAX: usize = 64 << 10;

/// Writes what of `root` differs from `image`, which it was once the same as: what is new, what was changed since the image
/// was laid below (by its ctime, which nobody can set), and what is gone. Nothing else may change `root` meanwhile.
///
/// Owners, modes, times, extended attributes, hard links among what is written, and holes are kept. Sockets are left out and
/// told, one line each.
///
/// # Errors
/// [`Error::Unmovable`] with the names of device nodes, of what has `trusted.` attributes, and of what belongs to ids beyond
/// 65535. Something cannot be read, or `out` cannot be written.
pub fn diff(
    root: &Path,
    image: &Path,
    out: impl Write,
    tell: &mut dyn FnMut(String),
) -> Result<(), Error> {
    let mut differ = Differ {
        root,
        image,
        builder: Builder::new(Out { out, broken: false }),
        links: HashMap::new(),
        named: Vec::new(),
        unmovable: 0,
        tell,
    };
    let written = differ.whole();
    differ.builder.get_mut().broken = written.is_err();
    written?;
    let mut out = differ.builder.into_inner().map_err(Error::Write)?;
    out.flush().map_err(Error::Write)
}

/// Whether an attribute belongs to a file. Others are labels of a kernel's security policy.
pub(crate) fn is_carried(attribute: &[u8]) -> bool {
    attribute.starts_with(b"user.")
        || matches!(
            attribute,
            b"security.capability" | b"system.posix_acl_access" | b"system.posix_acl_default"
        )
}

struct Differ<'a, W: Write> {
    root: &'a Path,
    image: &'a Path,
    builder: Builder<Out<W>>,
    /// The first name of what has several, by device and number.
    links: HashMap<(u64, u64), PathBuf>,
    named: Vec<String>,
    unmovable: usize,
    tell: &'a mut dyn FnMut(String),
}

impl<W: Write> Differ<'_, W> {
    fn whole(&mut self) -> Result<(), Error> {
        self.entry(Path::new(""), true)?;
        if self.unmovable > 0 {
            let mut all = self.named.join(", ");
            if self.unmovable > self.named.len() {
                all.push_str(&format!(" and {} more", self.unmovable - self.named.len()));
            }
            return Err(Error::Unmovable(all));
        }
        let mut end = Header::new_gnu();
        end.set_entry_type(EntryType::new(END));
        end.set_size(0);
        self.append(end, io::empty())
    }

    fn refuse(&mut self, name: &Path, why: &str) {
        self.unmovable += 1;
        if self.named.len() < NAMED {
            let name = Path::new("/").join(name);
            let name = name.to_string_lossy().escape_debug().to_string();
            self.named.push(format!("{name} ({why})"));
        }
    }

    /// What is at `name`, and all below it. `imaged`: the directory that it is in is in the image, too.
    fn entry(&mut self, name: &Path, imaged: bool) -> Result<(), Error> {
        let path = self.root.join(name);
        let data = fs::symlink_metadata(&path).map_err(failed("read", &path))?;
        let original = if imaged {
            found(&self.image.join(name))?
        } else {
            None
        };
        if let Some(original) = &original {
            // Below a directory that was not changed, nothing was: it would be a directory of the upper layer.
            if is_same(&data, original) {
                return Ok(());
            }
            if data.is_dir() != original.is_dir() || data.file_type().is_socket() {
                self.removal(name)?;
            }
        }
        let kind = data.file_type();
        if kind.is_block_device() || kind.is_char_device() {
            self.refuse(name, "a device node");
            return Ok(());
        }
        if kind.is_socket() {
            let name = Path::new("/").join(name);
            let name = name.to_string_lossy().escape_debug().to_string();
            (self.tell)(format!(
                "left out {name}: a socket that nobody listens at any more"
            ));
            return Ok(());
        }
        if data.uid() > MOST_ID || data.gid() > MOST_ID {
            self.refuse(name, &format!("belongs to an id above {MOST_ID}"));
            return Ok(());
        }
        if kind.is_dir() {
            return self.directory(
                name,
                &data,
                original.is_some_and(|original| original.is_dir()),
            );
        }
        if data.nlink() > 1 {
            let first = self.links.get(&(data.dev(), data.ino())).cloned();
            if let Some(first) = first {
                let mut records = named(name);
                pax::push(&mut records, b"linkpath", first.as_os_str().as_bytes());
                return self.write(EntryType::Link, &data, &records, io::empty(), 0);
            }
            self.links.insert((data.dev(), data.ino()), name.to_owned());
        }
        let Some(mut records) = self.records(name, &data)? else {
            return Ok(());
        };
        if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(failed("read", &path))?;
            pax::push(&mut records, b"linkpath", target.as_os_str().as_bytes());
            self.write(EntryType::Symlink, &data, &records, io::empty(), 0)
        } else if kind.is_fifo() {
            self.write(EntryType::Fifo, &data, &records, io::empty(), 0)
        } else {
            self.file(name, records)
        }
    }

    fn directory(&mut self, name: &Path, data: &Metadata, imaged: bool) -> Result<(), Error> {
        if let Some(records) = self.records(name, data)? {
            self.write(EntryType::Directory, data, &records, io::empty(), 0)?;
        }
        if imaged {
            for child in names(&self.image.join(name))? {
                let child = name.join(child);
                if found(&self.root.join(&child))?.is_none() {
                    self.removal(&child)?;
                }
            }
        }
        for child in names(&self.root.join(name))? {
            self.entry(&name.join(child), imaged)?;
        }
        Ok(())
    }

    fn removal(&mut self, name: &Path) -> Result<(), Error> {
        let mut entry = Header::new_gnu();
        entry.set_entry_type(EntryType::new(REMOVED));
        entry.set_size(0);
        self.extend(&named(name))?;
        self.append(entry, io::empty())
    }

    fn file(&mut self, name: &Path, mut records: Vec<u8>) -> Result<(), Error> {
        let path = self.root.join(name);
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .map_err(failed("read", &path))?;
        let data = file.metadata().map_err(failed("read", &path))?;
        if !data.is_file() {
            return Err(Error::Special(path));
        }
        pax::push(
            &mut records,
            pax::SIZE.as_bytes(),
            data.len().to_string().as_bytes(),
        );
        let mut kind = EntryType::Regular;
        let mut at = 0;
        loop {
            let extents = extents(&file, &mut at, data.len()).map_err(failed("read", &path))?;
            if extents.is_empty() && kind == EntryType::Continuous {
                return Ok(());
            }
            let list: Vec<_> = extents
                .iter()
                .map(|(offset, length)| format!("{offset}:{length}"))
                .collect();
            pax::push(
                &mut records,
                pax::EXTENTS.as_bytes(),
                list.join(",").as_bytes(),
            );
            let size = extents.iter().map(|(_, length)| length).sum();
            let mut content = Content {
                file: &file,
                extents: extents.into_iter(),
                now: (0, 0),
                failed: None,
            };
            let written = self.write(kind, &data, &records, &mut content, size);
            if let Some(error) = content.failed {
                return Err(failed("read", path)(error));
            }
            written?;
            kind = EntryType::Continuous;
            records = named(name);
        }
    }

    /// What there is to say of every kind of thing; none, and it is refused, if that cannot be said.
    fn records(&mut self, name: &Path, data: &Metadata) -> Result<Option<Vec<u8>>, Error> {
        let mut records = named(name);
        for (key, seconds, nanoseconds) in [
            ("mtime", data.mtime(), data.mtime_nsec()),
            ("atime", data.atime(), data.atime_nsec()),
        ] {
            let time = Time {
                seconds,
                nanoseconds: u32::try_from(nanoseconds).unwrap_or(0),
            };
            pax::push(&mut records, key.as_bytes(), time.text().as_bytes());
        }
        let path = self.root.join(name);
        for attribute in attributes(&path).map_err(failed("read the attributes of", &path))? {
            if is_carried(&attribute) {
                let value = value(&path, &attribute);
                let value = value.map_err(failed("read the attributes of", &path))?;
                pax::push(
                    &mut records,
                    &[pax::ATTRIBUTE.as_bytes(), &attribute].concat(),
                    &value,
                );
            } else if !attribute.starts_with(b"security.") {
                let attribute = String::from_utf8_lossy(&attribute);
                let why = format!("has the attribute {}", attribute.escape_debug());
                self.refuse(name, &why);
                return Ok(None);
            }
        }
        if records.len() as u64 > LONGEST_EXTENSION / 2 {
            self.refuse(name, "has attributes that are too large");
            return Ok(None);
        }
        Ok(Some(records))
    }

    fn write(
        &mut self,
        kind: EntryType,
        data: &Metadata,
        records: &[u8],
        content: impl Read,
        size: u64,
    ) -> Result<(), Error> {
        self.extend(records)?;
        self.append(header(kind, data, size), content)
    }

    fn extend(&mut self, records: &[u8]) -> Result<(), Error> {
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_size(records.len() as u64);
        self.append(header, records)
    }

    fn append(&mut self, mut header: Header, content: impl Read) -> Result<(), Error> {
        // It will not be used: what cannot be moved is still looked for.
        if self.unmovable > 0 {
            return Ok(());
        }
        header.set_cksum();
        self.builder.append(&header, content).map_err(Error::Write)
    }
}

fn named(name: &Path) -> Vec<u8> {
    let name = name.as_os_str().as_bytes();
    let mut records = Vec::new();
    pax::push(
        &mut records,
        b"path",
        if name.is_empty() { b"." } else { name },
    );
    records
}

fn found(path: &Path) -> Result<Option<Metadata>, Error> {
    match fs::symlink_metadata(path) {
        Ok(data) => Ok(Some(data)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

fn names(path: &Path) -> Result<Vec<OsString>, Error> {
    let entries = fs::read_dir(path).map_err(failed("read", path))?;
    let names: io::Result<_> = entries.map(|entry| Ok(entry?.file_name())).collect();
    names.map_err(failed("read", path))
}

/// What an overlay shows of its lower layer is what that has; what was ever changed is in the upper layer, with a ctime of
/// its own.
fn is_same(one: &Metadata, other: &Metadata) -> bool {
    let looks = |data: &Metadata| {
        (
            (data.mode(), data.uid(), data.gid(), data.rdev()),
            (data.mtime(), data.mtime_nsec()),
            (data.ctime(), data.ctime_nsec()),
            // A directory's means something else in each file system.
            if data.is_dir() { 0 } else { data.size() },
        )
    };
    looks(one) == looks(other)
}

pub(crate) fn attributes(path: &Path) -> io::Result<Vec<Vec<u8>>> {
    let mut list = vec![0; ATTRIBUTE_MAX];
    let length = match llistxattr(path, &mut list[..]) {
        Err(Errno::NOTSUP) => 0,
        other => other?,
    };
    let names = list[..length].split(|byte| *byte == 0);
    Ok(names
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect())
}

fn value(path: &Path, attribute: &[u8]) -> io::Result<Vec<u8>> {
    let mut value = vec![0; ATTRIBUTE_MAX];
    let length = lgetxattr(path, attribute, &mut value[..])?;
    value.truncate(length);
    Ok(value)
}

/// The next extents with data, from `at` on, which then is behind them.
fn extents(file: &File, at: &mut u64, size: u64) -> io::Result<Vec<(u64, u64)>> {
    let mut extents = Vec::new();
    while *at < size && extents.len() < EXTENTS {
        let data = match seek(file, SeekFrom::Data(*at)) {
            Err(Errno::NXIO) => size,
            other => other?,
        };
        if data >= size {
            *at = size;
            break;
        }
        let end = seek(file, SeekFrom::Hole(data))?.min(size);
        extents.push((data, end - data));
        *at = end;
    }
    Ok(extents)
}

/// The extents of a file, one behind the other.
struct Content<'a> {
    file: &'a File,
    extents: std::vec::IntoIter<(u64, u64)>,
    /// The rest of the extent that is being read.
    now: (u64, u64),
    failed: Option<io::Error>,
}

impl Read for Content<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.now.1 == 0 {
            match self.extents.next() {
                Some(next) => self.now = next,
                None => return Ok(0),
            }
        }
        let (offset, left) = self.now;
        let most = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = match self.file.read_at(&mut buffer[..most], offset) {
            Ok(0) if most > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            other => other,
        };
        match read {
            Ok(count) => {
                self.now = (offset + count as u64, left - count as u64);
                Ok(count)
            }
            Err(error) => {
                let told = io::Error::from(error.kind());
                if error.kind() != io::ErrorKind::Interrupted {
                    self.failed = Some(error);
                }
                Err(told)
            }
        }
    }
}
