//! A tree from a directory of this machine.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use super::tarball::Skipped;
use super::{Content, Data, Error, Meta, Tree};

/// Reads the directory's index; files are opened when the image is written.
///
/// Root keeps owners as they are. For anybody else their own files become root's, as they would on a system of their
/// own; and hard links stay links.
pub fn read(path: &Path) -> Result<(Tree, Skipped), Error> {
    let root = File::open(path).map_err(|source| Error::Read {
        path: path.to_owned(),
        source,
    })?;
    let me = nix::unistd::geteuid();
    let mut walk = Walk {
        top: path.to_owned(),
        root: Arc::new(root),
        own: if me.is_root() {
            None
        } else {
            Some(me.as_raw())
        },
        tree: Tree::default(),
        links: HashMap::new(),
        skipped: Skipped::default(),
    };
    walk.directory(Path::new(""))?;
    Ok((walk.tree, walk.skipped))
}

/// Opens a file below `root` and follows no link on the way: what was a file when the index was made may be a link to
/// anywhere now.
pub fn open_below(root: &File, path: &Path) -> io::Result<File> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let file = File::from(openat2(root, path, how)?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is no file any more"))
    }
}

struct Walk {
    top: PathBuf,
    root: Arc<File>,
    /// The user id that becomes root's.
    own: Option<u32>,
    tree: Tree,
    /// Paths of files with several names, by device and inode.
    links: HashMap<(u64, u64), PathBuf>,
    skipped: Skipped,
}

impl Walk {
    fn directory(&mut self, below: &Path) -> Result<(), Error> {
        let path = self.top.join(below);
        let failed = |source| Error::Read {
            path: path.clone(),
            source,
        };
        let meta = path.symlink_metadata().map_err(failed)?;
        if !below.as_os_str().is_empty() && !meta.is_dir() {
            return Err(failed(io::Error::other("it is no directory any more")));
        }
        // The top may be named through a link; its own attributes count then.
        let meta = if meta.is_dir() {
            meta
        } else {
            path.metadata().map_err(failed)?
        };
        let content = Content::Directory(Default::default());
        self.tree
            .insert(below.as_os_str().as_bytes(), self.meta(&meta), content)?;
        let mut names: Vec<_> = fs::read_dir(&path)
            .and_then(|dir| dir.map(|e| e.map(|e| e.file_name())).collect())
            .map_err(failed)?;
        names.sort();
        for name in names {
            self.entry(&below.join(name))?;
        }
        Ok(())
    }

    fn entry(&mut self, below: &Path) -> Result<(), Error> {
        let path = self.top.join(below);
        let meta = path.symlink_metadata().map_err(|source| Error::Read {
            path: path.clone(),
            source,
        })?;
        let kind = meta.file_type();
        let name = below.as_os_str().as_bytes();
        let content = if kind.is_dir() {
            return self.directory(below);
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(|source| Error::Read {
                path: path.clone(),
                source,
            })?;
            Content::Symlink(target.as_os_str().as_bytes().to_vec())
        } else if kind.is_file() {
            if meta.nlink() > 1 {
                if let Some(first) = self.links.get(&(meta.dev(), meta.ino())) {
                    return self.tree.hard_link(name, first.as_os_str().as_bytes());
                }
                self.links
                    .insert((meta.dev(), meta.ino()), below.to_owned());
            }
            Content::File(Data::Below {
                root: self.root.clone(),
                path: below.to_owned(),
                size: meta.len(),
            })
        } else if kind.is_fifo() {
            Content::Fifo
        } else {
            self.skipped.devices += 1;
            return Ok(());
        };
        self.tree
            .insert(name, self.meta(&meta), content)
            .map(|_| ())
    }

    fn meta(&self, meta: &fs::Metadata) -> Meta {
        let owned = |id: u32, own: u32| {
            if self.own.is_some() && id == own {
                0
            } else {
                id
            }
        };
        let group = nix::unistd::getegid().as_raw();
        Meta {
            mode: (meta.mode() & 0o7777) as u16,
            uid: owned(meta.uid(), self.own.unwrap_or(0)),
            gid: owned(meta.gid(), group),
            mtime: u64::try_from(meta.mtime()).unwrap_or(0),
            // Capabilities and ACLs of a directory on this machine are about this machine's users.
            xattrs: Default::default(),
        }
    }
}
