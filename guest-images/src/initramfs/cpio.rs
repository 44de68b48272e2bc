//! Writes a [`Tree`] as a cpio archive of the `newc` format, the one the kernel unpacks
//! (Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Write};

use crate::tree::{Content, Node, Tree};

/// Every header and content begins at a multiple of this many bytes.
const ALIGN: usize = 4;
const TRAILER: &[u8] = b"TRAILER!!!";

/// Writes the archive. Hard links become files of their own.
pub fn write(tree: &Tree, mut out: impl Write) -> io::Result<()> {
    let mut inode = 0;
    let mut stack = vec![(Vec::new(), 0)];
    while let Some((path, index)) = stack.pop() {
        if index != 0 {
            inode += 1;
            entry(&mut out, inode, &path, &tree.nodes()[index])?;
        }
        // Reversed: popped in order, and a directory before what is in it.
        let children: Vec<_> = tree
            .children(index)
            .map(|(name, child)| (join(&path, name), child))
            .collect();
        stack.extend(children.into_iter().rev());
    }
    header(&mut out, [0; 13], TRAILER)
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        name.to_vec()
    } else {
        [path, b"/", name].concat()
    }
}

fn entry(out: &mut impl Write, inode: u32, path: &[u8], node: &Node) -> io::Result<()> {
    let (type_bits, size, device, links) = match &node.content {
        Content::Directory(_) => (0o040_000, 0, (0, 0), 2),
        Content::File(data) => (0o100_000, data.size(), (0, 0), 1),
        Content::Symlink(target) => (0o120_000, target.len() as u64, (0, 0), 1),
        Content::Character { major, minor } => (0o020_000, 0, (*major, *minor), 1),
        Content::Fifo => (0o010_000, 0, (0, 0), 1),
    };
    let size = u32::try_from(size)
        .map_err(|_| io::Error::other("a file of an initramfs is larger than 4 GiB"))?;
    let meta = &node.meta;
    let mtime = u32::try_from(meta.mtime).unwrap_or(u32::MAX);
    // c_ino, c_mode, c_uid, c_gid, c_nlink, c_mtime, c_filesize, c_dev, c_rdev, c_namesize (set by `header`), c_check
    let mode = type_bits | u32::from(meta.mode);
    let fields = [
        inode, mode, meta.uid, meta.gid, links, mtime, size, 0, 0, device.0, device.1, 0, 0,
    ];
    header(out, fields, path)?;
    match &node.content {
        Content::File(data) => data.copy_to(out)?,
        Content::Symlink(target) => out.write_all(target)?,
        _ => {}
    }
    pad(out, size as usize)
}

fn header(out: &mut impl Write, mut fields: [u32; 13], name: &[u8]) -> io::Result<()> {
    let name_size = name.len() + 1;
    fields[11] = u32::try_from(name_size).map_err(io::Error::other)?;
    let mut bytes = b"070701".to_vec();
    for field in fields {
        write!(bytes, "{field:08x}")?;
    }
    bytes.extend(name);
    bytes.push(0);
    out.write_all(&bytes)?;
    pad(out, bytes.len())
}

fn pad(out: &mut impl Write, written: usize) -> io::Result<()> {
    out.write_all(&[0; ALIGN][..written.next_multiple_of(ALIGN) - written])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Path, mode, rdev, content.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    /// Every entry, parsed as the kernel does.
    fn parse(archive: &[u8]) -> Vec<Entry> {
        let mut at = 0;
        let mut entries = Vec::new();
        loop {
            assert_eq!(&archive[at..at + 6], b"070701");
            let field = |n: usize| {
                let text = std::str::from_utf8(&archive[at + 6 + n * 8..at + 14 + n * 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let name_end = at + 110 + field(11) as usize - 1;
            let name = String::from_utf8(archive[at + 110..name_end].to_vec()).unwrap();
            assert_eq!(archive[name_end], 0);
            let start = (name_end + 1).next_multiple_of(4);
            let end = start + field(6) as usize;
            if name == "TRAILER!!!" {
                assert_eq!(start, archive.len());
                return entries;
            }
            entries.push((
                name,
                field(1),
                (field(9), field(10)),
                archive[start..end].to_vec(),
            ));
            at = end.next_multiple_of(4);
        }
    }

    #[test]
    fn an_archive_read_back_has_every_file_below_its_directory() {
        let mut tree = Tree::default();
        tree.file("init", 0o755, *b"hello").unwrap();
        tree.file("lib/modules/a.ko", 0o644, vec![7; 4096]).unwrap();
        tree.file("lib/empty", 0o600, *b"").unwrap();
        tree.symlink("bin/sh", "busybox").unwrap();
        tree.character("dev/console", 0o600, 5, 1).unwrap();
        let mut archive = Vec::new();
        write(&tree, &mut archive).unwrap();
        let file =
            |name: &str, mode, content: &[u8]| (name.to_owned(), mode, (0, 0), content.to_vec());
        assert_eq!(
            parse(&archive),
            [
                file("bin", 0o40_755, b""),
                file("bin/sh", 0o120_777, b"busybox"),
                file("dev", 0o40_755, b""),
                ("dev/console".into(), 0o20_600, (5, 1), vec![]),
                file("init", 0o100_755, b"hello"),
                file("lib", 0o40_755, b""),
                file("lib/empty", 0o100_600, b""),
                file("lib/modules", 0o40_755, b""),
                file("lib/modules/a.ko", 0o100_644, &[7; 4096]),
            ]
        );
    }
}
