use std::io::{Seek, Write};
use std::path::Path;

use super::tarball::Skipped;
use super::*;

/// A tar with headers as they are given: the library's own builder refuses what a hostile one holds.
struct Archive(Vec<u8>);

impl Archive {
    fn entry(mut self, path: &str, kind: u8, link: &str, content: &[u8]) -> Self {
        let mut header = [0u8; 512];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000001");
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..263].copy_from_slice(b"ustar\0");
        header[263..265].copy_from_slice(b"00");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.0.extend(header);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn read(mut self) -> Result<(Tree, Skipped), Error> {
        self.0.extend([0; 1024]);
        self.read_as_is()
    }

    fn read_as_is(self) -> Result<(Tree, Skipped), Error> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&self.0).unwrap();
        file.rewind().unwrap();
        tarball::read(file, Path::new("test.tar"))
    }
}

fn archive() -> Archive {
    Archive(Vec::new())
}

#[test]
fn a_tar_becomes_a_tree_with_owners_links_and_contents() {
    let (tree, skipped) = archive()
        .entry("./", b'5', "", b"")
        .entry("./etc/", b'5', "", b"")
        .entry("./etc/motd", b'0', "", b"hello")
        .entry("./bin", b'2', "usr/bin", b"")
        .entry("./etc/same", b'1', "./etc/motd", b"")
        .read()
        .unwrap();
    assert_eq!(tree.contents("/etc/motd", 100).unwrap(), b"hello");
    assert_eq!(tree.index("etc/same"), tree.index("etc/motd"));
    assert_eq!(tree.find("etc/motd").unwrap().links, 2);
    assert!(
        matches!(&tree.find("bin").unwrap().content, Content::Symlink(target) if target == b"usr/bin")
    );
    assert_eq!(skipped, Skipped::default());
}

#[test]
fn a_path_that_climbs_out_is_refused_and_an_absolute_one_stays_inside() {
    for path in ["../etc/passwd", "a/../../b", "a/..", "/../x"] {
        let result = archive().entry(path, b'0', "", b"x").read();
        assert!(matches!(result, Err(Error::Escape(_))), "{path}");
    }
    let (tree, _) = archive()
        .entry("/etc/passwd", b'0', "", b"inside")
        .read()
        .unwrap();
    assert_eq!(tree.contents("etc/passwd", 100).unwrap(), b"inside");
}

#[test]
fn nothing_is_written_through_a_link_of_the_archive() {
    let result = archive()
        .entry("a", b'2', "/etc", b"")
        .entry("a/passwd", b'0', "", b"x")
        .read();
    assert!(matches!(result, Err(Error::NotDirectory { .. })));
    // A file in place of a link replaces the link.
    let (tree, _) = archive()
        .entry("a", b'2', "/etc/passwd", b"")
        .entry("a", b'0', "", b"mine")
        .read()
        .unwrap();
    assert_eq!(tree.contents("a", 100).unwrap(), b"mine");
}

#[test]
fn hard_links_reach_only_files_of_the_archive() {
    for target in ["/etc/passwd", "nowhere", "dir"] {
        let result = archive()
            .entry("dir", b'5', "", b"")
            .entry("a", b'1', target, b"")
            .read();
        assert!(matches!(result, Err(Error::Link { .. })), "{target}");
    }
    assert!(matches!(
        archive().entry("a", b'1', "../x", b"").read(),
        Err(Error::Escape(_))
    ));
}

#[test]
fn device_nodes_are_left_out_and_counted() {
    let (tree, skipped) = archive()
        .entry("dev/sda", b'4', "", b"")
        .entry("dev/mem", b'3', "", b"")
        .read()
        .unwrap();
    assert!(tree.find("dev/sda").is_none() && tree.find("dev/mem").is_none());
    assert_eq!(skipped.devices, 2);
}

#[test]
fn attributes_that_overlayfs_would_obey_are_left_out() {
    let record = |key: &str, value: &str| {
        let rest = format!(" SCHILY.xattr.{key}={value}\n");
        let mut length = rest.len() + 1;
        while length != rest.len() + length.to_string().len() {
            length += 1;
        }
        format!("{length}{rest}")
    };
    let pax = record("trusted.overlay.opaque", "y") + &record("user.note", "kept");
    let (tree, skipped) = archive()
        .entry("pax", b'x', "", pax.as_bytes())
        .entry("a", b'0', "", b"x")
        .read()
        .unwrap();
    let xattrs = &tree.find("a").unwrap().meta.xattrs;
    assert_eq!(xattrs.len(), 1);
    assert_eq!(xattrs[b"user.note".as_slice()], b"kept");
    assert_eq!(skipped.xattrs, 1);
}

#[test]
fn a_truncated_tar_and_what_is_no_tar_are_errors() {
    let mut cut = archive().entry("a", b'0', "", &[1; 5000]);
    cut.0.truncate(2048);
    assert!(matches!(cut.read_as_is(), Err(Error::Archive(_))));
    assert!(Archive(vec![0x55; 4096]).read_as_is().is_err());
}

#[test]
fn names_and_links_beyond_what_file_systems_take_are_refused() {
    let mut tree = Tree::default();
    assert!(matches!(
        tree.file(&"n".repeat(256), 0o644, *b""),
        Err(Error::Unusable(_))
    ));
    assert!(matches!(
        tree.file(&"d/".repeat(200), 0o644, *b""),
        Err(Error::Unusable(_))
    ));
    assert!(matches!(
        tree.file("a\0b", 0o644, *b""),
        Err(Error::Unusable(_))
    ));
    assert!(matches!(tree.symlink("l", ""), Err(Error::Unusable(_))));
    assert!(matches!(
        tree.symlink("l", &"t".repeat(4096)),
        Err(Error::Unusable(_))
    ));
    assert!(matches!(
        tree.file("/", 0o644, *b""),
        Err(Error::Unusable(_))
    ));
}

#[test]
fn a_directory_is_read_with_links_as_links_and_without_devices_or_sockets() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("sub")).unwrap();
    std::fs::write(dir.path().join("sub/file"), "content").unwrap();
    std::fs::hard_link(dir.path().join("sub/file"), dir.path().join("again")).unwrap();
    std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).unwrap();
    let (tree, skipped) = directory::read(dir.path()).unwrap();
    assert_eq!(tree.contents("sub/file", 100).unwrap(), b"content");
    assert_eq!(tree.index("again"), tree.index("sub/file"));
    assert!(
        matches!(&tree.find("link").unwrap().content, Content::Symlink(target) if target == b"/etc")
    );
    assert!(tree.find("link/passwd").is_none());
    assert_eq!((tree.find("socket").is_none(), skipped.devices), (true, 1));
}

#[test]
fn a_file_that_became_a_link_is_not_followed_when_the_image_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    std::fs::write(&path, "content").unwrap();
    let (tree, _) = directory::read(dir.path()).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
    let Content::File(data) = &tree.find("file").unwrap().content else {
        panic!("no file")
    };
    assert!(data.copy_to(&mut Vec::new()).is_err());
}

#[test]
fn a_removed_name_is_gone_with_all_below_it() {
    let mut tree = Tree::default();
    tree.file("a/b/c", 0o644, *b"x").unwrap();
    tree.file("a/d", 0o644, *b"y").unwrap();
    tree.remove("a/b").unwrap();
    tree.remove("no/such").unwrap();
    assert!(tree.find("a/b/c").is_none());
    assert_eq!(tree.walk().len(), 3);
}
