use super::*;
use crate::tree::{Data, Meta};

/// Reads an image as the kernel does: every field from its place in the on-disk format.
struct Image(Vec<u8>);

struct Inode {
    mode: u16,
    size: usize,
    union: u32,
    uid: u32,
    gid: u32,
    mtime: u64,
    links: u32,
    xattrs: Vec<u8>,
    data: Vec<u8>,
}

impl Image {
    fn of(tree: &Tree) -> (Self, Vec<Extent>) {
        let mut bytes = Vec::new();
        let extents = write(tree, &mut bytes, &|_| ()).unwrap();
        let image = Self(bytes);
        assert_eq!(image.number(1024, 4), u64::from(MAGIC));
        assert_eq!(image.number(1024 + 36, 4) * 4096, image.0.len() as u64);
        (image, extents)
    }

    fn number(&self, at: usize, size: usize) -> u64 {
        self.0[at..at + size]
            .iter()
            .rev()
            .fold(0, |n, &b| n << 8 | u64::from(b))
    }

    fn inode(&self, nid: u64) -> Inode {
        let at = nid as usize * 32;
        let format = self.number(at, 2);
        assert_eq!(format & 1, 1, "extended");
        let count = self.number(at + 2, 2) as usize;
        let xattr_size = if count == 0 { 0 } else { 12 + (count - 1) * 4 };
        let size = self.number(at + 8, 8) as usize;
        let union = self.number(at + 16, 4) as u32;
        let start = match format >> 1 {
            0 => union as usize * 4096,
            2 => at + 64 + xattr_size,
            other => panic!("layout {other}"),
        };
        let data = if size == 0 {
            Vec::new()
        } else {
            self.0[start..start + size].to_vec()
        };
        if format >> 1 == 2 {
            assert_eq!(
                at / 4096,
                (start + size - 1) / 4096,
                "inode and tail are in one block"
            );
        }
        Inode {
            mode: self.number(at + 4, 2) as u16,
            size,
            union,
            uid: self.number(at + 24, 4) as u32,
            gid: self.number(at + 28, 4) as u32,
            mtime: self.number(at + 32, 8),
            links: self.number(at + 44, 4) as u32,
            xattrs: self.0[at + 64..at + 64 + xattr_size].to_vec(),
            data,
        }
    }

    /// (name, nid, type) of every entry of a directory, which must be in byte order.
    fn entries(&self, nid: u64) -> Vec<(Vec<u8>, u64, u8)> {
        let directory = self.inode(nid);
        assert_eq!(directory.mode & 0o170_000, 0o040_000);
        let mut found = Vec::new();
        for block in directory.data.chunks(4096) {
            let word = |at: usize| usize::from(u16::from_le_bytes([block[at], block[at + 1]]));
            let count = word(8) / 12;
            for n in 0..count {
                let start = word(n * 12 + 8);
                let end = if n + 1 < count {
                    word((n + 1) * 12 + 8)
                } else {
                    block.len()
                };
                let name: Vec<u8> = block[start..end]
                    .iter()
                    .copied()
                    .take_while(|&b| b != 0)
                    .collect();
                let nid = u64::from_le_bytes(block[n * 12..n * 12 + 8].try_into().unwrap());
                found.push((name, nid, block[n * 12 + 10]));
            }
        }
        assert!(found.is_sorted_by(|a, b| a.0 < b.0), "names are sorted");
        found
    }

    fn find(&self, path: &str) -> Inode {
        let mut nid = self.number(1024 + 14, 2);
        for part in path.split('/').filter(|part| !part.is_empty()) {
            nid = self
                .entries(nid)
                .into_iter()
                .find(|(name, ..)| name == part.as_bytes())
                .unwrap()
                .1;
        }
        self.inode(nid)
    }
}

#[test]
fn files_of_every_size_are_read_back_and_extents_say_where_they_are() {
    let mut tree = Tree::default();
    let sizes = [0, 1, 31, 2047, 2048, 2049, 4095, 4096, 4097, 100_000];
    let content = |size: usize| (0..size).map(|n| (n * 7 + size) as u8).collect::<Vec<_>>();
    for size in sizes {
        tree.file(&format!("d/{size}"), 0o640, content(size))
            .unwrap();
    }
    let (image, extents) = Image::of(&tree);
    for size in sizes {
        let inode = image.find(&format!("d/{size}"));
        assert_eq!((inode.mode, inode.size, inode.links), (0o100_640, size, 1));
        assert!(inode.data == content(size), "{size}");
        let node = tree.index(&format!("d/{size}")).unwrap();
        let extent = extents.iter().find(|extent| extent.node == node).unwrap();
        let start = extent.offset as usize;
        assert!(size == 0 || image.0[start..start + size] == content(size));
    }
}

#[test]
fn a_directory_of_many_blocks_lists_every_name_in_order_with_its_type() {
    let mut tree = Tree::default();
    for n in 0..3000 {
        tree.file(&format!("many/file-with-a-long-name-{n}"), 0o644, *b"")
            .unwrap();
    }
    // Before `.` and between `.` and `..` in byte order.
    tree.file("many/+first", 0o644, *b"").unwrap();
    tree.directory("many/.-dir", 0o700).unwrap();
    let (image, _) = Image::of(&tree);
    let root = image.number(1024 + 14, 2);
    let many = image
        .entries(root)
        .into_iter()
        .find(|(name, ..)| name == b"many")
        .unwrap()
        .1;
    let entries = image.entries(many);
    assert_eq!(entries.len(), 3004);
    let of = |name: &[u8]| {
        entries
            .iter()
            .find(|(found, ..)| found == name)
            .unwrap()
            .clone()
    };
    assert_eq!((of(b".").1, of(b"..").1), (many, root));
    assert_eq!((of(b".-dir").2, of(b"+first").2), (2, 1));
    assert_eq!(image.inode(many).links, 3);
    assert_eq!(image.inode(root).links, 3);
}

#[test]
fn links_devices_owners_and_times_are_kept() {
    let mut tree = Tree::default();
    let meta = Meta {
        mode: 0o4755,
        uid: 70_000,
        gid: 1000,
        mtime: 5,
        ..Default::default()
    };
    tree.insert(b"a", meta, Content::File(Data::Bytes((*b"x").into())))
        .unwrap();
    tree.hard_link(b"b", b"a").unwrap();
    tree.symlink("s", "over/there").unwrap();
    tree.character("tty", 0o620, 4, 300).unwrap();
    let (image, _) = Image::of(&tree);
    let file = image.find("b");
    assert_eq!(
        (file.mode, file.uid, file.gid, file.mtime, file.links),
        (0o104_755, 70_000, 1000, 5, 2)
    );
    assert_eq!(image.find("s").data, b"over/there");
    // Minor 300 is 0x12c: its low byte below, the rest above the major number.
    assert_eq!(image.find("tty").union, 0x2c | 4 << 8 | 0x100 << 12);
}

#[test]
fn extended_attributes_are_stored_behind_the_inode_with_their_prefix_as_a_number() {
    let mut tree = Tree::default();
    let capability = vec![1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let xattrs = [
        (b"security.capability".to_vec(), capability.clone()),
        (b"user.k".to_vec(), b"v".to_vec()),
    ]
    .into();
    let meta = Meta {
        mode: 0o755,
        xattrs,
        ..Default::default()
    };
    tree.insert(
        b"ping",
        meta,
        Content::File(Data::Bytes(vec![9; 3000].into())),
    )
    .unwrap();
    let (image, _) = Image::of(&tree);
    let inode = image.find("ping");
    assert_eq!(inode.data, [9; 3000]);
    let body = [
        [0; 12].as_slice(),
        &[10, 6, 20, 0],
        b"capability",
        &capability,
        &[0, 0],
        &[1, 1, 1, 0],
        b"kv",
        &[0, 0],
    ]
    .concat();
    assert_eq!(inode.xattrs, body);
}

#[test]
fn the_same_tree_gives_the_same_bytes() {
    let make = || {
        let mut tree = Tree::default();
        tree.file("z", 0o644, vec![1; 9000]).unwrap();
        tree.file("a", 0o644, vec![2; 10]).unwrap();
        Image::of(&tree).0.0
    };
    assert!(make() == make());
}

#[test]
fn attributes_too_large_for_a_block_and_a_file_that_shrank_are_errors() {
    let mut tree = Tree::default();
    let xattrs = [(b"user.big".to_vec(), vec![0; 5000])].into();
    tree.insert(
        b"a",
        Meta {
            xattrs,
            ..Default::default()
        },
        Content::Fifo,
    )
    .unwrap();
    assert!(matches!(
        write(&tree, Vec::new(), &|_| ()),
        Err(Error::Attributes)
    ));
    let file = tempfile::tempfile().unwrap();
    file.set_len(10).unwrap();
    let mut tree = Tree::default();
    let data = Data::Range {
        file: file.into(),
        offset: 0,
        size: 5000,
    };
    tree.insert(b"a", Meta::default(), Content::File(data))
        .unwrap();
    assert!(matches!(
        write(&tree, Vec::new(), &|_| ()),
        Err(Error::Write(_))
    ));
}
