//! A tree from a tar archive, which may come from anywhere.

use std::fs::File;
use std::io::{BufReader, Seek};
use std::path::Path;
use std::sync::Arc;

use tar::{Archive, Entry, EntryType};

use super::{Content, Data, Error, Meta, Tree};

/// What was left out of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Skipped {
    /// Device nodes and sockets: an image has no business with them, the tenant's kernel makes its own.
    pub devices: u64,
    /// Attributes other than `user.*`, `security.capability` and POSIX ACLs. `trusted.*` would be obeyed by overlayfs.
    pub xattrs: u64,
}

/// Reads the archive's index; file contents stay in `file`, which must be a regular file.
pub fn read(file: File, path: &Path) -> Result<(Tree, Skipped), Error> {
    let in_file = |source| Error::Read {
        path: path.to_owned(),
        source,
    };
    let length = file.metadata().map_err(in_file)?.len();
    let file = Arc::new(file);
    let mut reader = BufReader::with_capacity(64 << 10, file.try_clone().map_err(in_file)?);
    reader.rewind().map_err(in_file)?;
    let mut archive = Archive::new(reader);
    let (mut tree, mut skipped) = (Tree::default(), Skipped::default());
    for entry in archive.entries_with_seek().map_err(Error::Archive)? {
        let mut entry = entry.map_err(Error::Archive)?;
        add(&mut tree, &mut entry, &file, length, &mut skipped)?;
    }
    Ok((tree, skipped))
}

fn add<R: std::io::Read>(
    tree: &mut Tree,
    entry: &mut Entry<'_, R>,
    file: &Arc<File>,
    length: u64,
    skipped: &mut Skipped,
) -> Result<(), Error> {
    let path = entry.path_bytes().into_owned();
    let kind = entry.header().entry_type();
    let content = match kind {
        EntryType::Regular | EntryType::Continuous => {
            let (offset, size) = (entry.raw_file_position(), entry.size());
            if offset.checked_add(size).is_none_or(|end| end > length) {
                return Err(Error::Archive(std::io::ErrorKind::UnexpectedEof.into()));
            }
            Content::File(Data::Range {
                file: file.clone(),
                offset,
                size,
            })
        }
        EntryType::Directory => Content::Directory(Default::default()),
        EntryType::Symlink => Content::Symlink(target(entry)),
        EntryType::Link => return tree.hard_link(&path, &target(entry)),
        EntryType::Fifo => Content::Fifo,
        EntryType::GNUSparse => {
            return Err(Error::Sparse {
                path: super::show(&path),
            });
        }
        EntryType::Char | EntryType::Block => {
            skipped.devices += 1;
            return Ok(());
        }
        // Global headers and types of other systems hold nothing that an image shows.
        _ => return Ok(()),
    };
    let meta = meta(entry, skipped)?;
    tree.insert(&path, meta, content).map(|_| ())
}

fn target<R: std::io::Read>(entry: &Entry<'_, R>) -> Vec<u8> {
    entry
        .link_name_bytes()
        .map(|name| name.into_owned())
        .unwrap_or_default()
}

fn meta<R: std::io::Read>(entry: &mut Entry<'_, R>, skipped: &mut Skipped) -> Result<Meta, Error> {
    let header = entry.header();
    let number = |value: std::io::Result<u64>| {
        value
            .and_then(|n| u32::try_from(n).map_err(std::io::Error::other))
            .map_err(Error::Archive)
    };
    let mut meta = Meta {
        mode: (header.mode().map_err(Error::Archive)? & 0o7777) as u16,
        uid: number(header.uid())?,
        gid: number(header.gid())?,
        // Times before 1970 come as huge numbers; they are clamped with the others.
        mtime: header.mtime().unwrap_or(0),
        xattrs: Default::default(),
    };
    for extension in entry
        .pax_extensions()
        .map_err(Error::Archive)?
        .into_iter()
        .flatten()
    {
        let extension = extension.map_err(Error::Archive)?;
        let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.") else {
            continue;
        };
        if is_kept_xattr(name) && name.len() <= 255 && extension.value_bytes().len() < 2048 {
            meta.xattrs
                .insert(name.to_vec(), extension.value_bytes().to_vec());
        } else {
            skipped.xattrs += 1;
        }
    }
    Ok(meta)
}

/// Attributes that an image may bring along.
pub fn is_kept_xattr(name: &[u8]) -> bool {
    let exact: [&[u8]; 3] = [
        b"security.capability",
        b"system.posix_acl_access",
        b"system.posix_acl_default",
    ];
    name.starts_with(b"user.") || exact.contains(&name)
}
