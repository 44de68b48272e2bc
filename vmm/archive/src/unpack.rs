//! A stream becomes a tree, below one directory.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use tar::{Archive, Entry, EntryType};

use crate::Error;
use crate::pax;
use crate::place::{Marks, Root, is_directory};
use crate::target::{Place, Target};

/// Longest name, or set of names, that is read into memory, in bytes: PATH_MAX is 4096, attributes may come with it.
pub(crate) const LONGEST_EXTENSION: u64 = 1 << 20;
/// How much after the end of an archive is read, so that its writer does not break: tar pads to records of 10 KiB.
const PADDING: u64 = 1 << 20;

/// How far a stream is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Set-id and sticky bits are kept; they are dropped otherwise.
    pub set_id: bool,
    /// Hard links are made; they are refused otherwise, as they could name what was there before.
    pub hard_links: bool,
    /// Things belong to whom the stream says; to whoever runs this otherwise.
    pub owners: bool,
}

/// Unpacks a stream of one file or one tree, as [`pack`](crate::pack()) makes it, to where docker's rules say.
///
/// Device nodes, FIFOs and sockets are never made; they are left out and told. An existing directory keeps its mode, its
/// owner and what else is in it.
///
/// # Errors
/// The stream is none, wants to leave its place, or something cannot be written. What was complete by then stays.
pub fn unpack(
    input: impl Read,
    target: &Target,
    policy: Policy,
    tell: &mut dyn FnMut(String),
) -> Result<(), Error> {
    let mut archive = Archive::new(input);
    let mut reader = Reader::new(&mut archive)?;
    let Some(mut first) = reader.next()? else {
        return Err(Error::Empty);
    };
    let [base] = &relative(&first.name)?[..] else {
        return Err(Error::Format("it begins in the midst of a tree".to_owned()));
    };
    let base = base.clone();
    let is_tree = first.kind == EntryType::Directory;
    let place = target.place(is_tree)?;
    let mut unpacker = match (place, is_tree) {
        (Place::Into(path), _) => Unpacker::new(Root::open(&path)?, policy, tell),
        (Place::Named { parent, name }, true) => {
            let parent = Root::open(&parent)?;
            let made = parent.directory(Path::new(&name))?;
            let root = parent.below(&name)?;
            let mut unpacker = Unpacker::new(root, policy, tell);
            if made {
                unpacker.open.push((PathBuf::new(), unpacker.marks(&first)));
            }
            unpacker
        }
        (Place::Named { parent, name }, false) => {
            let parent = Root::open(&parent)?;
            if is_directory(&parent, &name) == Some(true) {
                return Err(Error::IsDirectory(parent.path.join(name)));
            }
            let mut unpacker = Unpacker::new(parent, policy, tell);
            unpacker.make(Path::new(&name), &mut first)?;
            if reader.next()?.is_some() {
                return Err(Error::Format("a file is followed by something".to_owned()));
            }
            return Ok(());
        }
    };
    drop(first);
    while let Some(mut item) = reader.next()? {
        let parts = relative(&item.name)?;
        let below = match parts.split_first() {
            Some((first, rest)) if *first == base => rest,
            _ => return Err(Error::Outside(item.name.to_string_lossy().into_owned())),
        };
        let path: PathBuf = below.iter().collect();
        if !below.is_empty() {
            unpacker.make(&path, &mut item)?;
        }
    }
    unpacker.finish()?;
    drain(archive.into_inner())
}

/// Unpacks any tar stream into the existing directory `path`.
///
/// # Errors
/// As [`unpack`].
pub fn unpack_stream(
    input: impl Read,
    path: &Path,
    policy: Policy,
    tell: &mut dyn FnMut(String),
) -> Result<(), Error> {
    if !path.is_dir() {
        return Err(Error::NoDirectory(path.to_owned()));
    }
    let mut unpacker = Unpacker::new(Root::open(path)?, policy, tell);
    let mut archive = Archive::new(input);
    let mut reader = Reader::new(&mut archive)?;
    while let Some(mut item) = reader.next()? {
        let path: PathBuf = relative(&item.name)?.iter().collect();
        if !path.as_os_str().is_empty() {
            unpacker.make(&path, &mut item)?;
        }
    }
    unpacker.finish()?;
    drain(archive.into_inner())
}

pub(crate) fn drain(input: impl Read) -> Result<(), Error> {
    io::copy(&mut input.take(PADDING), &mut io::sink())
        .map(drop)
        .map_err(Error::Read)
}

/// The parts of a name, none of which leads up or to the root.
pub(crate) fn relative(name: &OsStr) -> Result<Vec<OsString>, Error> {
    let outside = || Error::Outside(name.to_string_lossy().into_owned());
    let bytes = name.as_bytes();
    if bytes.starts_with(b"/") || bytes.contains(&0) {
        return Err(outside());
    }
    let mut parts = Vec::new();
    for part in bytes.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(outside()),
            part => parts.push(OsStr::from_bytes(part).to_owned()),
        }
    }
    Ok(parts)
}

/// One thing in a stream, with its whole name.
pub(crate) struct Item<'a, R: Read> {
    pub entry: Entry<'a, R>,
    pub kind: EntryType,
    pub name: OsString,
    pub link: Option<OsString>,
    mtime: u64,
    pub owner: (u32, u32),
    /// Records of the pax format, for whoever knows more of them.
    pub records: Vec<u8>,
}

/// What entries of their own say about the next one.
#[derive(Default)]
struct Extension {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    mtime: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: Option<u64>,
    /// Of the pax format, as they are.
    records: Vec<u8>,
}

pub(crate) struct Reader<'a, R: Read> {
    entries: tar::Entries<'a, R>,
}

impl<'a, R: Read> Reader<'a, R> {
    pub fn new(archive: &'a mut Archive<R>) -> Result<Self, Error> {
        // Raw: the crate would read names of any length into memory.
        let entries = archive.entries().map_err(Error::Read)?.raw(true);
        Ok(Self { entries })
    }

    pub fn next(&mut self) -> Result<Option<Item<'a, R>>, Error> {
        let mut extension = Extension::default();
        for entry in self.entries.by_ref() {
            let mut entry = entry.map_err(malformed)?;
            match entry.header().entry_type() {
                EntryType::GNULongName => extension.name = Some(long_name(&mut entry)?),
                EntryType::GNULongLink => extension.link = Some(long_name(&mut entry)?),
                EntryType::XHeader => {
                    extension.records = content(&mut entry)?;
                    extension.take()?;
                }
                EntryType::XGlobalHeader => drop(content(&mut entry)?),
                _ => return Item::new(entry, extension).map(Some),
            }
        }
        Ok(None)
    }
}

/// The crate tells a damaged header and a broken reader apart by nothing but the kind.
pub(crate) fn malformed(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::Other | io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
            Error::Format(error.to_string())
        }
        _ => Error::Read(error),
    }
}

fn content<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<u8>, Error> {
    let size = entry.header().entry_size().map_err(malformed)?;
    if size > LONGEST_EXTENSION {
        return Err(Error::Format(format!("a name of {size} bytes")));
    }
    let mut bytes = Vec::new();
    entry
        .take(LONGEST_EXTENSION)
        .read_to_end(&mut bytes)
        .map_err(Error::Read)?;
    if bytes.len() as u64 == size {
        Ok(bytes)
    } else {
        Err(Error::Format("it ends in the midst of a name".to_owned()))
    }
}

fn long_name<R: Read>(entry: &mut Entry<'_, R>) -> Result<Vec<u8>, Error> {
    let mut name = content(entry)?;
    // It ends with a NUL.
    if let Some(end) = name.iter().position(|byte| *byte == 0) {
        name.truncate(end);
    }
    Ok(name)
}

impl Extension {
    fn take(&mut self) -> Result<(), Error> {
        for record in pax::records(&self.records) {
            let (key, value) = record?;
            let text = std::str::from_utf8(value).unwrap_or_default();
            match key {
                b"path" => self.name = Some(value.to_owned()),
                b"linkpath" => self.link = Some(value.to_owned()),
                // With a fraction, which is dropped.
                b"mtime" => {
                    self.mtime = text.split('.').next().and_then(|whole| whole.parse().ok())
                }
                b"uid" => self.uid = text.parse().ok(),
                b"gid" => self.gid = text.parse().ok(),
                b"size" => self.size = text.parse().ok(),
                _ => {}
            }
        }
        Ok(())
    }
}

impl<'a, R: Read> Item<'a, R> {
    fn new(entry: Entry<'a, R>, extension: Extension) -> Result<Self, Error> {
        let header = entry.header();
        let size = header.entry_size().map_err(malformed)?;
        if extension.size.is_some_and(|told| told != size) {
            let why = "a file of 8 GiB or more in the pax format; make it with `tar --format=gnu`";
            return Err(Error::Format(why.to_owned()));
        }
        let id = |told: Option<u32>, header: io::Result<u64>| {
            let header = || header.ok().and_then(|id| u32::try_from(id).ok());
            told.or_else(header).unwrap_or(0)
        };
        let owner = (
            id(extension.uid, header.uid()),
            id(extension.gid, header.gid()),
        );
        let name = extension
            .name
            .unwrap_or_else(|| entry.path_bytes().into_owned());
        let link = extension
            .link
            .or_else(|| entry.link_name_bytes().map(|link| link.into_owned()));
        Ok(Self {
            kind: header.entry_type(),
            name: OsString::from_vec(name),
            link: link.map(OsString::from_vec),
            mtime: extension.mtime.or(header.mtime().ok()).unwrap_or(0),
            owner,
            records: extension.records,
            entry,
        })
    }
}

struct Unpacker<'a> {
    root: Root,
    policy: Policy,
    tell: &'a mut dyn FnMut(String),
    /// Directories that were made and get their marks when all is in them, each within the one before.
    open: Vec<(PathBuf, Marks)>,
}

impl<'a> Unpacker<'a> {
    fn new(root: Root, policy: Policy, tell: &'a mut dyn FnMut(String)) -> Self {
        Self {
            root,
            policy,
            tell,
            open: Vec::new(),
        }
    }

    fn marks<R: Read>(&self, item: &Item<'_, R>) -> Marks {
        let usual = if item.kind == EntryType::Directory {
            0o755
        } else {
            0o644
        };
        let mode = item.entry.header().mode().unwrap_or(usual);
        Marks {
            mode: mode & if self.policy.set_id { 0o7777 } else { 0o777 },
            mtime: item.mtime,
            owner: self.policy.owners.then_some(item.owner),
        }
    }

    /// Makes one thing at `path`, which has only plain parts.
    fn make<R: Read>(&mut self, path: &Path, item: &mut Item<'_, R>) -> Result<(), Error> {
        self.close_all_but(path)?;
        let marks = self.marks(item);
        let shown = self.root.path.join(path);
        match item.kind {
            EntryType::Directory => {
                if self.root.directory(path)? {
                    self.open.push((path.to_owned(), marks));
                }
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous => {
                let size = item.entry.header().entry_size().map_err(malformed)?;
                self.root.file(path, marks, &mut item.entry, size)
            }
            EntryType::Symlink => {
                let target = item.link.as_deref().filter(|link| !link.is_empty());
                let target = target
                    .ok_or_else(|| Error::Format(format!("{} leads nowhere", shown.display())))?;
                self.root.symlink(path, Path::new(target), marks)
            }
            EntryType::Link if !self.policy.hard_links => Err(Error::HardLink(shown)),
            EntryType::Link => {
                let target: PathBuf = relative(item.link.as_deref().unwrap_or_default())?
                    .iter()
                    .collect();
                self.root.hard_link(path, &target)
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                (self.tell)(format!(
                    "left out {}: device nodes and FIFOs are not copied",
                    shown.display()
                ));
                Ok(())
            }
            other => Err(Error::Format(format!(
                "{} is of a kind that is not copied ({:?})",
                shown.display(),
                char::from(other.as_byte())
            ))),
        }
    }

    /// Gives their marks to directories that `path` is not in.
    fn close_all_but(&mut self, path: &Path) -> Result<(), Error> {
        while let Some((directory, marks)) = self
            .open
            .pop_if(|(directory, _)| !path.starts_with(directory))
        {
            self.root.finish_directory(&directory, marks)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Error> {
        while let Some((directory, marks)) = self.open.pop() {
            self.root.finish_directory(&directory, marks)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
