//! A file tree in memory: what an image holds before it is written as erofs or cpio.
//!
//! Nothing is unpacked to a disk on the way. So no root is needed to keep owners, and a hostile archive has nothing to
//! escape into: a path is only a key here. Large files stay where they are (in the tar, in the directory) until
//! they are copied into the image.

pub mod directory;
pub mod tarball;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

/// Longest name in a directory, as Linux has it.
const NAME_MAX: usize = 255;
/// Longest symbolic link target (PATH_MAX less the terminator).
const TARGET_MAX: usize = 4095;
/// Deepest path: more than any real system has, few enough to walk.
const DEPTH_MAX: usize = 128;
/// Most files, directories and links in one tree.
const NODES_MAX: usize = 4_000_000;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the path `{0}` leads out of the image")]
    Escape(String),
    #[error("the path `{0}` has a name or a depth that no file system takes")]
    Unusable(String),
    #[error("`{path}` lies below `{parent}`, which is not a directory")]
    NotDirectory { path: String, parent: String },
    #[error("the hard link `{path}` names `{target}`, which is not a file of the image")]
    Link { path: String, target: String },
    #[error("`{path}` is sparse: pack it again without `--sparse`")]
    Sparse { path: String },
    #[error("more than {NODES_MAX} files")]
    TooMany,
    #[error("the archive is damaged or no tar")]
    Archive(#[source] io::Error),
    #[error("reading {} failed", path.display())]
    Read { path: PathBuf, source: io::Error },
}

/// Owner, permissions and the like.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky: 0o7777 at most.
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since 1970.
    pub mtime: u64,
    /// Full names (`security.capability`), in order.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Meta {
    /// Owned by root, as old as an image is.
    pub fn root(mode: u16) -> Self {
        Self {
            mode,
            mtime: IMAGE_TIME,
            ..Self::default()
        }
    }
}

/// 2026-01-01: the time that everything made here has, so that the same inputs give the same bytes.
pub const IMAGE_TIME: u64 = 1_767_225_600;

/// A file's bytes, or where they are.
#[derive(Debug, Clone)]
pub enum Data {
    Bytes(Arc<[u8]>),
    /// A part of an open file.
    Range {
        file: Arc<File>,
        offset: u64,
        size: u64,
    },
    /// A file below a directory; opened when it is read, and only if it is still a file of this size.
    Below {
        root: Arc<File>,
        path: PathBuf,
        size: u64,
    },
}

impl Data {
    pub fn size(&self) -> u64 {
        match self {
            Data::Bytes(bytes) => bytes.len() as u64,
            Data::Range { size, .. } | Data::Below { size, .. } => *size,
        }
    }

    /// Exactly `size()` bytes, or an error.
    pub fn copy_to(&self, out: &mut dyn io::Write) -> io::Result<()> {
        match self {
            Data::Bytes(bytes) => out.write_all(bytes),
            Data::Range { file, offset, size } => copy_range(file, *offset, *size, out),
            Data::Below { root, path, size } => {
                copy_range(&directory::open_below(root, path)?, 0, *size, out)
            }
        }
    }
}

fn copy_range(file: &File, mut offset: u64, size: u64, out: &mut dyn io::Write) -> io::Result<()> {
    let end = offset.saturating_add(size);
    let mut buffer = vec![0; 128 << 10];
    while offset < end {
        let want = buffer
            .len()
            .min(usize::try_from(end - offset).unwrap_or(usize::MAX));
        let n = file.read_at(&mut buffer[..want], offset)?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        out.write_all(&buffer[..n])?;
        offset += n as u64;
    }
    Ok(())
}

/// What a node is.
#[derive(Debug, Clone)]
pub enum Content {
    Directory(BTreeMap<Vec<u8>, usize>),
    File(Data),
    Symlink(Vec<u8>),
    Character { major: u32, minor: u32 },
    Fifo,
}

/// A file, directory or link.
#[derive(Debug, Clone)]
pub struct Node {
    pub meta: Meta,
    pub content: Content,
    /// Names that refer to it; 0 when it was removed or replaced.
    pub links: u32,
}

/// The tree; node 0 is its root directory.
#[derive(Debug, Clone)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Default for Tree {
    fn default() -> Self {
        let root = Node {
            meta: Meta::root(0o755),
            content: Content::Directory(BTreeMap::new()),
            links: 1,
        };
        Self { nodes: vec![root] }
    }
}

impl Tree {
    /// All nodes; their index is what directories hold.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Names in a directory, in byte order; empty if `index` is none.
    pub fn children(&self, index: usize) -> impl Iterator<Item = (&[u8], usize)> {
        let entries = match &self.nodes[index].content {
            Content::Directory(entries) => Some(entries),
            _ => None,
        };
        entries
            .into_iter()
            .flatten()
            .map(|(name, &child)| (name.as_slice(), child))
    }

    pub fn find(&self, path: &str) -> Option<&Node> {
        self.nodes.get(self.index(path)?)
    }

    /// The index of the node at `path`.
    pub fn index(&self, path: &str) -> Option<usize> {
        let parts = split(path.as_bytes()).ok()?;
        let mut at = 0;
        for part in parts {
            match &self.nodes[at].content {
                Content::Directory(entries) => at = *entries.get(&part)?,
                _ => return None,
            }
        }
        Some(at)
    }

    pub fn directory(&mut self, path: &str, mode: u16) -> Result<(), Error> {
        self.insert(
            path.as_bytes(),
            Meta::root(mode),
            Content::Directory(BTreeMap::new()),
        )
        .map(|_| ())
    }

    pub fn file(
        &mut self,
        path: &str,
        mode: u16,
        bytes: impl Into<Arc<[u8]>>,
    ) -> Result<(), Error> {
        self.insert(
            path.as_bytes(),
            Meta::root(mode),
            Content::File(Data::Bytes(bytes.into())),
        )
        .map(|_| ())
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> Result<(), Error> {
        self.insert(
            path.as_bytes(),
            Meta::root(0o777),
            Content::Symlink(target.into()),
        )
        .map(|_| ())
    }

    pub fn character(
        &mut self,
        path: &str,
        mode: u16,
        major: u32,
        minor: u32,
    ) -> Result<(), Error> {
        self.insert(
            path.as_bytes(),
            Meta::root(mode),
            Content::Character { major, minor },
        )
        .map(|_| ())
    }

    /// Puts a node at `path`, in place of what was there; directories on the way are made. A directory put where one is
    /// keeps its entries.
    pub fn insert(&mut self, path: &[u8], meta: Meta, content: Content) -> Result<usize, Error> {
        if matches!(&content, Content::Symlink(target) if target.is_empty() || target.len() > TARGET_MAX)
        {
            return Err(Error::Unusable(show(path)));
        }
        let parts = split(path)?;
        let Some((name, above)) = parts.split_last() else {
            // The root itself: only its attributes can change.
            if matches!(content, Content::Directory(_)) {
                self.nodes[0].meta = meta;
                return Ok(0);
            }
            return Err(Error::Unusable(show(path)));
        };
        let parent = self.descend(above, path)?;
        if let (Some(existing), Content::Directory(_)) = (self.entry(parent, name), &content)
            && matches!(self.nodes[existing].content, Content::Directory(_))
        {
            self.nodes[existing].meta = meta;
            return Ok(existing);
        }
        let index = self.add(Node {
            meta,
            content,
            links: 1,
        })?;
        self.attach(parent, name, index);
        Ok(index)
    }

    /// Makes `path` another name of the file at `target`.
    pub fn hard_link(&mut self, path: &[u8], target: &[u8]) -> Result<(), Error> {
        let bad = || Error::Link {
            path: show(path),
            target: show(target),
        };
        let mut at = 0;
        for part in split(target)? {
            at = self.entry(at, &part).ok_or_else(bad)?;
        }
        if matches!(self.nodes[at].content, Content::Directory(_)) {
            return Err(bad());
        }
        let parts = split(path)?;
        let (name, above) = parts.split_last().ok_or_else(bad)?;
        let parent = self.descend(above, path)?;
        if self.entry(parent, name) != Some(at) {
            self.nodes[at].links += 1;
            self.attach(parent, name, at);
        }
        Ok(())
    }

    /// Takes `path` and what is below it out of the tree; nothing there is fine.
    pub fn remove(&mut self, path: &str) -> Result<(), Error> {
        let parts = split(path.as_bytes())?;
        let Some((name, above)) = parts.split_last() else {
            return Ok(());
        };
        let mut at = 0;
        for part in above {
            match self.entry(at, part) {
                Some(next) => at = next,
                None => return Ok(()),
            }
        }
        if let Content::Directory(entries) = &mut self.nodes[at].content
            && let Some(index) = entries.remove(name)
        {
            self.release(index);
        }
        Ok(())
    }

    /// Everything belongs to root.
    pub fn own_by_root(&mut self) {
        for node in &mut self.nodes {
            (node.meta.uid, node.meta.gid) = (0, 0);
        }
    }

    /// The bytes of the regular file at `path`, if there is one of at most `max` bytes.
    pub fn contents(&self, path: &str, max: u64) -> Option<Vec<u8>> {
        match &self.find(path)?.content {
            Content::File(data) if data.size() <= max => {
                let mut bytes = Vec::new();
                data.copy_to(&mut bytes).ok()?;
                Some(bytes)
            }
            _ => None,
        }
    }

    /// No node is younger than [`IMAGE_TIME`]: the clock of the day something was made does not get into images.
    pub fn clamp_times(&mut self) {
        for node in &mut self.nodes {
            node.meta.mtime = node.meta.mtime.min(IMAGE_TIME);
        }
    }

    /// Directories that can be reached, root first; then everything else in them.
    pub fn walk(&self) -> Vec<usize> {
        let mut order = vec![0];
        let mut seen = vec![false; self.nodes.len()];
        seen[0] = true;
        let mut next = 0;
        while let Some(&index) = order.get(next) {
            next += 1;
            for (_, child) in self.children(index) {
                if !std::mem::replace(&mut seen[child], true) {
                    order.push(child);
                }
            }
        }
        order
    }

    fn descend(&mut self, parts: &[Vec<u8>], whole: &[u8]) -> Result<usize, Error> {
        let mut at = 0;
        for (depth, part) in parts.iter().enumerate() {
            at = match self.entry(at, part) {
                Some(next) => next,
                None => {
                    let made = Node {
                        meta: Meta::root(0o755),
                        content: Content::Directory(BTreeMap::new()),
                        links: 1,
                    };
                    let made = self.add(made)?;
                    self.attach(at, part, made);
                    made
                }
            };
            if !matches!(self.nodes[at].content, Content::Directory(_)) {
                let parent = parts[..=depth].join(&b'/');
                return Err(Error::NotDirectory {
                    path: show(whole),
                    parent: show(&parent),
                });
            }
        }
        Ok(at)
    }

    fn entry(&self, directory: usize, name: &[u8]) -> Option<usize> {
        match &self.nodes[directory].content {
            Content::Directory(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    fn add(&mut self, node: Node) -> Result<usize, Error> {
        if self.nodes.len() >= NODES_MAX {
            return Err(Error::TooMany);
        }
        self.nodes.push(node);
        Ok(self.nodes.len() - 1)
    }

    fn attach(&mut self, directory: usize, name: &[u8], index: usize) {
        if let Content::Directory(entries) = &mut self.nodes[directory].content
            && let Some(replaced) = entries.insert(name.to_vec(), index)
        {
            self.release(replaced);
        }
    }

    fn release(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.links = node.links.saturating_sub(1);
    }
}

/// The parts of a path. A leading `/` means the image's root; `.` means nothing; `..` is refused.
fn split(path: &[u8]) -> Result<Vec<Vec<u8>>, Error> {
    let mut parts = Vec::new();
    for part in path.split(|&c| c == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err(Error::Escape(show(path))),
            _ if part.len() > NAME_MAX || part.contains(&0) => {
                return Err(Error::Unusable(show(path)));
            }
            _ => parts.push(part.to_vec()),
        }
    }
    if parts.len() > DEPTH_MAX {
        return Err(Error::Unusable(show(path)));
    }
    Ok(parts)
}

/// For messages: bounded, and without control characters that would reach a terminal.
fn show(path: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(path).chars().take(200).collect();
    text.escape_debug().to_string()
}
