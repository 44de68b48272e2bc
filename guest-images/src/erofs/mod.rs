//! Writes a [`Tree`] as an uncompressed erofs image.
//!
//! Written here and not by `mkfs.erofs` because that one takes directories only (until 1.7): owners would need root and
//! an untrusted archive would have to be unpacked first. Uncompressed because under emulation decompressing costs more
//! than reading, and because every file's bytes then lie in one piece, which [`Extent`] tells.
//!
//! Layout after the kernel's `fs/erofs/erofs_fs.h` and Documentation/filesystems/erofs.rst: superblock at byte 1024,
//! inodes from byte 1152 on (`meta_blkaddr` 0, 32-byte slots, 64-byte extended inodes, extended attributes and small
//! contents right behind them), then the blocks of directories and files.

#[cfg(test)]
mod tests;

use std::io::{self, BufWriter, Write};

use crate::tree::{Content, IMAGE_TIME, Meta, Node, Tree};

/// Bytes of a block: `blkszbits` 12.
const BLOCK: u64 = 4096;
const BLOCK_BITS: u8 = 12;
/// `EROFS_SUPER_OFFSET`.
pub const SUPER_OFFSET: u64 = 1024;
/// `EROFS_SUPER_MAGIC_V1`.
pub const MAGIC: u32 = 0xe0f5_e1e2;
const SUPER_SIZE: u64 = 128;
/// An inode number counts slots of this size from `meta_blkaddr`.
const SLOT: u64 = 32;
const INODE_SIZE: u64 = 64;
/// `EROFS_FEATURE_COMPAT_MTIME`: the inode's time is the modification time.
const COMPAT_MTIME: u32 = 2;
/// `i_format`: extended inode, data layout FLAT_PLAIN (0) or FLAT_INLINE (2) from bit 1 on.
const FORMAT_PLAIN: u16 = 1;
const FORMAT_INLINE: u16 = 1 | 2 << 1;
/// Contents up to this size lie behind their inode; larger ones begin at a block.
const INLINE_MAX: u64 = 2048;
const DIRENT_SIZE: usize = 12;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the image would be larger than 16 TiB")]
    TooLarge,
    #[error("the extended attributes of a file do not fit a block")]
    Attributes,
    #[error("writing the image failed")]
    Write(#[from] io::Error),
}

/// Where a file's bytes are in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Index of the tree's node.
    pub node: usize,
    pub offset: u64,
    pub size: u64,
}

/// Where everything goes.
struct Plan {
    places: Vec<Place>,
    /// Index into `places`, by node; `None` for nodes that are not reached.
    by_node: Vec<Option<usize>>,
    parents: Vec<usize>,
    blocks: u64,
}

/// Where one node goes.
struct Place {
    node: usize,
    /// Byte offset of the inode.
    inode: u64,
    /// Bytes of extended attributes behind the inode.
    xattrs: Vec<u8>,
    size: u64,
    /// Byte offset of the contents: behind the inode or at a block.
    data: u64,
    inline: bool,
}

impl Place {
    fn nid(&self) -> u64 {
        self.inode / SLOT
    }
}

/// Writes the image, whose size is a whole number of blocks; `done` is told the bytes written so far. The places of all
/// regular files come back.
pub fn write(tree: &Tree, out: impl Write, done: &dyn Fn(u64)) -> Result<Vec<Extent>, Error> {
    let plan = plan(tree)?;
    let places = &plan.places;
    let mut out = Counted {
        out: BufWriter::with_capacity(1 << 20, out),
        at: 0,
        done,
    };
    out.pad_to(SUPER_OFFSET)?;
    out.write_all(&superblock(places, plan.blocks))?;
    let mut extents = Vec::new();
    for place in places {
        out.pad_to(place.inode)?;
        out.write_all(&inode(tree, place))?;
        out.write_all(&place.xattrs)?;
        if place.inline {
            contents(tree, place, &plan, &mut out)?;
        }
    }
    for place in places
        .iter()
        .filter(|place| !place.inline && place.size > 0)
    {
        out.pad_to(place.data)?;
        contents(tree, place, &plan, &mut out)?;
    }
    out.pad_to(plan.blocks * BLOCK)?;
    out.flush()?;
    for place in places {
        if matches!(tree.nodes()[place.node].content, Content::File(_)) {
            extents.push(Extent {
                node: place.node,
                offset: place.data,
                size: place.size,
            });
        }
    }
    Ok(extents)
}

/// About how many bytes the image will have: for asking whether there is room.
pub fn estimate(tree: &Tree) -> u64 {
    let size = |node: &Node| match &node.content {
        Content::File(data) => data.size() + BLOCK,
        _ => BLOCK / 2,
    };
    tree.nodes().iter().map(size).fold(0, u64::saturating_add)
}

/// Gives every node its place, in the order of `Tree::walk`: the root first, whose number must fit 16 bits.
fn plan(tree: &Tree) -> Result<Plan, Error> {
    let mut by_node = vec![None; tree.nodes().len()];
    let mut places = Vec::new();
    let mut at = SUPER_OFFSET + SUPER_SIZE;
    for node in tree.walk() {
        let xattrs = inline_xattrs(&tree.nodes()[node].meta)?;
        let size = content_size(tree, node);
        let head = INODE_SIZE + xattrs.len() as u64;
        let inline = size > 0 && size <= INLINE_MAX && head + size <= BLOCK;
        let whole = if inline { head + size } else { head };
        // What begins in a block must end in it: the kernel reads inode, attributes and tail from one block.
        if at % BLOCK + whole > BLOCK {
            at = at.next_multiple_of(BLOCK);
        }
        by_node[node] = Some(places.len());
        places.push(Place {
            node,
            inode: at,
            xattrs,
            size,
            data: at + head,
            inline,
        });
        at = (at + whole).next_multiple_of(SLOT);
    }
    let mut block = at.next_multiple_of(BLOCK);
    for place in places.iter_mut().filter(|place| !place.inline) {
        place.data = block;
        block = block
            .checked_add(place.size)
            .and_then(|n| n.checked_next_multiple_of(BLOCK))
            .ok_or(Error::TooLarge)?;
    }
    let blocks = block / BLOCK;
    if u32::try_from(blocks).is_err() {
        return Err(Error::TooLarge);
    }
    Ok(Plan {
        places,
        by_node,
        parents: parents(tree),
        blocks,
    })
}

fn content_size(tree: &Tree, node: usize) -> u64 {
    match &tree.nodes()[node].content {
        Content::Directory(_) => {
            let blocks = directory_blocks(tree, node);
            let full = blocks.len().saturating_sub(1) as u64 * BLOCK;
            let last = blocks.last().map_or(0, |block| {
                block.iter().map(|name| DIRENT_SIZE + name.len()).sum()
            });
            full + last as u64
        }
        Content::File(data) => data.size(),
        Content::Symlink(target) => target.len() as u64,
        Content::Character { .. } | Content::Fifo => 0,
    }
}

/// The names of a directory with `.` and `..`, in byte order, cut into blocks.
fn directory_blocks(tree: &Tree, node: usize) -> Vec<Vec<&[u8]>> {
    let mut names: Vec<&[u8]> = tree.children(node).map(|(name, _)| name).collect();
    names.extend([b".".as_slice(), b"..".as_slice()]);
    names.sort_unstable();
    let mut blocks = vec![Vec::new()];
    let mut used = 0;
    for name in names {
        let needed = DIRENT_SIZE + name.len();
        if used + needed > BLOCK as usize {
            blocks.push(Vec::new());
            used = 0;
        }
        used += needed;
        if let Some(block) = blocks.last_mut() {
            block.push(name);
        }
    }
    blocks
}

fn superblock(places: &[Place], blocks: u64) -> Vec<u8> {
    let mut sb = vec![0; SUPER_SIZE as usize];
    let mut put = |at: usize, bytes: &[u8]| sb[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &MAGIC.to_le_bytes());
    put(8, &COMPAT_MTIME.to_le_bytes());
    put(12, &[BLOCK_BITS]);
    // root_nid: the root is the first inode, in slot 36.
    put(14, &((SUPER_OFFSET + SUPER_SIZE) / SLOT).to_le_bytes()[..2]);
    put(16, &(places.len() as u64).to_le_bytes());
    put(24, &IMAGE_TIME.to_le_bytes());
    put(36, &blocks.to_le_bytes()[..4]);
    sb
}

fn inode(tree: &Tree, place: &Place) -> Vec<u8> {
    let node = &tree.nodes()[place.node];
    let (type_bits, union, links) = match &node.content {
        Content::Directory(_) => (0o040_000, None, 2 + subdirectories(tree, place.node)),
        Content::File(_) => (0o100_000, None, node.links),
        Content::Symlink(_) => (0o120_000, None, node.links),
        Content::Character { major, minor } => {
            (0o020_000, Some(device_number(*major, *minor)), node.links)
        }
        Content::Fifo => (0o010_000, Some(0), node.links),
    };
    let block = if place.inline || place.size == 0 {
        u64::from(u32::MAX)
    } else {
        place.data / BLOCK
    };
    let mut inode = Vec::with_capacity(INODE_SIZE as usize);
    let format = if place.inline {
        FORMAT_INLINE
    } else {
        FORMAT_PLAIN
    };
    inode.extend(format.to_le_bytes());
    inode.extend(xattr_count(&place.xattrs).to_le_bytes());
    inode.extend((type_bits | node.meta.mode).to_le_bytes());
    inode.extend([0; 2]);
    inode.extend(place.size.to_le_bytes());
    inode.extend(union.map_or((block as u32).to_le_bytes(), u32::to_le_bytes));
    inode.extend((place.nid() as u32).to_le_bytes());
    inode.extend(node.meta.uid.to_le_bytes());
    inode.extend(node.meta.gid.to_le_bytes());
    inode.extend(node.meta.mtime.to_le_bytes());
    inode.extend(0u32.to_le_bytes());
    inode.extend(links.to_le_bytes());
    inode.resize(INODE_SIZE as usize, 0);
    inode
}

fn subdirectories(tree: &Tree, node: usize) -> u32 {
    let is_dir =
        |&(_, child): &(&[u8], usize)| matches!(tree.nodes()[child].content, Content::Directory(_));
    u32::try_from(tree.children(node).filter(is_dir).count()).unwrap_or(u32::MAX - 2)
}

/// The kernel's `new_encode_dev`.
fn device_number(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

fn contents(tree: &Tree, place: &Place, plan: &Plan, out: &mut impl Write) -> Result<(), Error> {
    match &tree.nodes()[place.node].content {
        Content::Directory(_) => out.write_all(&directory(tree, place.node, plan))?,
        Content::File(data) => data.copy_to(out)?,
        Content::Symlink(target) => out.write_all(target)?,
        Content::Character { .. } | Content::Fifo => {}
    }
    Ok(())
}

/// `erofs_dirent`s (inode number, offset of the name, file type), then the names; block by block.
fn directory(tree: &Tree, node: usize, plan: &Plan) -> Vec<u8> {
    let nid = |node: usize| plan.by_node[node].map_or(0, |at| plan.places[at].nid());
    let children: std::collections::HashMap<&[u8], usize> = tree.children(node).collect();
    let blocks = directory_blocks(tree, node);
    let last = blocks.len() - 1;
    let mut bytes = Vec::new();
    for (number, names) in blocks.iter().enumerate() {
        let start = bytes.len();
        let mut name_at = names.len() * DIRENT_SIZE;
        for name in names {
            let child = match *name {
                b"." => node,
                b".." => plan.parents[node],
                other => children[other],
            };
            bytes.extend(nid(child).to_le_bytes());
            bytes.extend((name_at as u16).to_le_bytes());
            bytes.extend([file_type(&tree.nodes()[child].content), 0]);
            name_at += name.len();
        }
        names.iter().for_each(|name| bytes.extend(*name));
        if number < last {
            bytes.resize(start + BLOCK as usize, 0);
        }
    }
    bytes
}

/// The directory that has each node; the root is its own.
fn parents(tree: &Tree) -> Vec<usize> {
    let mut parents = vec![0; tree.nodes().len()];
    for at in tree.walk() {
        for (_, child) in tree.children(at) {
            parents[child] = at;
        }
    }
    parents
}

/// `EROFS_FT_*`, which are the kernel's `FT_*`.
fn file_type(content: &Content) -> u8 {
    match content {
        Content::File(_) => 1,
        Content::Directory(_) => 2,
        Content::Character { .. } => 3,
        Content::Fifo => 5,
        Content::Symlink(_) => 7,
    }
}

/// `erofs_xattr_ibody_header` (12 bytes, no shared attributes), then entries aligned to 4 bytes.
fn inline_xattrs(meta: &Meta) -> Result<Vec<u8>, Error> {
    if meta.xattrs.is_empty() {
        return Ok(Vec::new());
    }
    let mut body = vec![0; 12];
    for (name, value) in &meta.xattrs {
        let (index, name) = xattr_prefix(name);
        let name_len = u8::try_from(name.len()).map_err(|_| Error::Attributes)?;
        let value_len = u16::try_from(value.len()).map_err(|_| Error::Attributes)?;
        body.extend([name_len, index]);
        body.extend(value_len.to_le_bytes());
        body.extend(name);
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    }
    if body.len() as u64 + INODE_SIZE > BLOCK {
        Err(Error::Attributes)
    } else {
        Ok(body)
    }
}

/// `EROFS_XATTR_INDEX_*`: the prefix is a number, the rest is stored.
fn xattr_prefix(name: &[u8]) -> (u8, &[u8]) {
    match name {
        b"system.posix_acl_access" => (2, b""),
        b"system.posix_acl_default" => (3, b""),
        _ => {
            let prefixes: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
            let found = prefixes
                .iter()
                .find_map(|&(index, prefix)| Some((index, name.strip_prefix(prefix)?)));
            found.unwrap_or((0, name))
        }
    }
}

/// `i_xattr_icount`: 1 for the header, 1 for every 4 bytes behind it.
fn xattr_count(body: &[u8]) -> u16 {
    if body.is_empty() {
        0
    } else {
        (1 + (body.len() - 12) / 4) as u16
    }
}

/// Knows how far the output is.
struct Counted<'a, W: Write> {
    out: BufWriter<W>,
    at: u64,
    done: &'a dyn Fn(u64),
}

impl<W: Write> Counted<'_, W> {
    fn pad_to(&mut self, offset: u64) -> io::Result<()> {
        let zeros = [0; BLOCK as usize];
        while self.at < offset {
            let n = usize::try_from(offset - self.at)
                .unwrap_or(zeros.len())
                .min(zeros.len());
            self.write_all(&zeros[..n])?;
        }
        Ok(())
    }
}

impl<W: Write> Write for Counted<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.at += n as u64;
        (self.done)(self.at);
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
