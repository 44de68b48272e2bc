use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;

use rustix::fs::lgetxattr;
use tar::{Builder, Header};

use super::*;
use crate::diff;

fn shell(directory: &Path, script: &str) {
    let status = Command::new("sh")
        .args(["-ec", script])
        .current_dir(directory)
        .status();
    assert!(status.unwrap().success());
}

/// An image, a tree that was the same once, and one that is the same still: files are the very same until they are changed.
struct Trees(tempfile::TempDir);

impl Trees {
    fn new(image: &str, change: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        shell(directory.path(), "mkdir image");
        shell(&directory.path().join("image"), image);
        shell(directory.path(), "cp -al image root; cp -a image new");
        shell(&directory.path().join("root"), change);
        Self(directory)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn diff(&self) -> Result<(Vec<u8>, Vec<String>), Error> {
        let (mut stream, mut told) = (Vec::new(), Vec::new());
        let tell = &mut |line| told.push(line);
        diff(&self.at("root"), &self.at("image"), &mut stream, tell)?;
        Ok((stream, told))
    }

    fn apply(&self, stream: &[u8]) -> Result<(), Error> {
        apply(stream, &self.at("new"), Path::new("/"))
    }
}

/// Everything that is to be the same.
fn manifest(path: &Path, below: &Path, lines: &mut Vec<String>) {
    let data = fs::symlink_metadata(path).unwrap();
    let content = if data.is_file() {
        Some(fs::read(path).unwrap())
    } else {
        None
    };
    let name = path.strip_prefix(below).unwrap();
    let target = fs::read_link(path).ok();
    let mut names = attributes(path).unwrap();
    names.sort();
    let values: Vec<_> = names
        .iter()
        .map(|name| {
            let mut value = vec![0; 4096];
            let length = lgetxattr(path, name.as_slice(), &mut value[..]).unwrap();
            (name, value[..length].to_vec())
        })
        .collect();
    lines.push(format!(
        "{:?} {:o} {}:{} {}.{} {} {target:?} {values:?} {content:?}",
        name,
        data.mode(),
        data.uid(),
        data.gid(),
        data.mtime(),
        data.mtime_nsec(),
        // Elsewhere the image's own names count, too.
        if name.starts_with("new") && !data.is_dir() {
            data.nlink()
        } else {
            0
        },
    ));
    if data.is_dir() {
        let entries = fs::read_dir(path).unwrap();
        let mut children: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
        children.sort();
        children
            .iter()
            .for_each(|child| manifest(child, below, lines));
    }
}

fn lines(path: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    manifest(path, path, &mut lines);
    lines
}

/// POSIX ACLs as the kernel has them (include/uapi/linux/posix_acl_xattr.h): tag, permissions, id.
fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

#[test]
fn everything_that_differs_arrives_and_nothing_else_is_sent() {
    let image = "mkdir -p same gone/deep becomes-file was/dir; echo same > same/file; echo x > gone/deep/file
        echo x > becomes-dir; echo old > changed; ln changed its-other-name; ln -s changed link; echo x > removed";
    let change = "rm -r gone becomes-file removed was/dir becomes-dir link
        mkdir becomes-dir new; echo in > becomes-dir/in; echo file > becomes-file; ln -s elsewhere link
        cp changed c; echo new >> c; mv c changed
        echo set > new/set-uid; chown 1000:1001 new/set-uid; chmod 6755 new/set-uid
        echo one > new/one; ln new/one new/two; mkfifo -m 640 new/fifo; chown -h 7:8 link
        touch -d '1901-12-13 00:00:00.5 UTC' new/old; touch -d '2100-01-01 00:00:00.123456789 UTC' new/one
        chmod 1777 was; chmod 700 new";
    let trees = Trees::new(image, change);
    let root = trees.at("root");
    let odd = std::ffi::OsString::from_vec(b"odd\nname\xff".to_vec());
    fs::write(root.join("new").join(&odd), "odd").unwrap();
    let set = |name: &str, attribute: &str, value: &[u8]| {
        lsetxattr(root.join(name), attribute, value, XattrFlags::empty()).unwrap();
    };
    set("new/old", "user.odd", b"a\nb\0c");
    // CAP_NET_RAW, effective (include/uapi/linux/capability.h, VFS_CAP_REVISION_2).
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    set("new/one", "security.capability", &capability);
    let none = u32::MAX;
    let permissions = list(&[
        (1, 6, none),
        (2, 7, 1000),
        (4, 4, none),
        (16, 7, none),
        (32, 0, none),
    ]);
    set("new/one", "system.posix_acl_access", &permissions);
    set("new", "system.posix_acl_default", &permissions);
    // Made below a default list, and then freed of what it gave: it arrives without.
    fs::create_dir(root.join("new/plain")).unwrap();
    for attribute in ["system.posix_acl_access", "system.posix_acl_default"] {
        lremovexattr(root.join("new/plain"), attribute).unwrap();
    }
    let (stream, told) = trees.diff().unwrap();
    assert!(told.is_empty(), "{told:?}");
    trees.apply(&stream).unwrap();
    assert_eq!(lines(&trees.at("new")), lines(&root));
    // The control: these files are the image's own still.
    let text = String::from_utf8_lossy(&stream).into_owned();
    assert!(text.contains("path=becomes-file\n") && !text.contains("path=same/file\n"));
    assert_eq!(
        fs::metadata(trees.at("new/new/one")).unwrap().ino(),
        fs::metadata(trees.at("new/new/two")).unwrap().ino()
    );
}

#[test]
fn holes_stay_holes_however_many_there_are() {
    let trees = Trees::new("true", "true");
    let path = trees.at("root/sparse");
    let file = File::create(&path).unwrap();
    // More extents than one entry has room for, and a hole at the end.
    for number in 0..1500u64 {
        file.write_all_at(b"data", number * (64 << 10)).unwrap();
    }
    file.set_len(1 << 40).unwrap();
    drop(file);
    let (stream, _) = trees.diff().unwrap();
    assert!(stream.len() < 16 << 20, "{}", stream.len());
    trees.apply(&stream).unwrap();
    let (was, is) = (
        fs::metadata(&path).unwrap(),
        fs::metadata(trees.at("new/sparse")).unwrap(),
    );
    assert_eq!((was.len(), was.blocks()), (is.len(), is.blocks()));
    let copy = File::open(trees.at("new/sparse")).unwrap();
    for number in [0, 999, 1000, 1499] {
        let mut data = [0; 5];
        copy.read_exact_at(&mut data, number * (64 << 10)).unwrap();
        assert_eq!(&data, b"data\0");
    }
}

#[test]
fn what_cannot_be_moved_is_named_and_without_it_the_rest_is_moved() {
    let change = "for n in 1 2 3 4 5 6; do mknod \"null$n\" c 1 3; done; echo x > labelled; echo x > far; chown 70000 far";
    let trees = Trees::new("mknod own c 1 5", change);
    let root = trees.at("root");
    lsetxattr(
        root.join("labelled"),
        "trusted.x",
        b"y",
        XattrFlags::empty(),
    )
    .unwrap();
    let error = trees.diff().unwrap_err().to_string();
    assert!(
        error.contains("/null") && error.contains("and 3 more") && !error.contains("/own"),
        "{error}"
    );
    shell(&root, "rm null*");
    let error = trees.diff().unwrap_err().to_string();
    assert!(
        error.contains("/labelled (has the attribute trusted.x)"),
        "{error}"
    );
    assert!(
        error.contains("/far (belongs to an id above 65535)"),
        "{error}"
    );
    lremovexattr(root.join("labelled"), "trusted.x").unwrap();
    chown(root.join("far"), Some(65_535), None).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    let (stream, told) = trees.diff().unwrap();
    assert!(
        matches!(&told[..], [one] if one.contains("/socket")),
        "{told:?}"
    );
    drop(listener);
    fs::remove_file(root.join("socket")).unwrap();
    trees.apply(&stream).unwrap();
    assert!(trees.at("new/labelled").exists() && trees.at("new/own").exists());
}

/// Kind, records, content.
type Entry<'a> = (u8, &'a [(&'a str, &'a str)], &'a [u8]);

fn stream(entries: &[Entry<'_>], end: bool) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    let mut add = |kind: u8, content: &[u8]| {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content).unwrap();
    };
    for (kind, records, content) in entries {
        let mut bytes = Vec::new();
        let times = [("mtime", "1.5"), ("atime", "1.5")];
        for (key, value) in times.iter().chain(*records) {
            pax::push(&mut bytes, key.as_bytes(), value.as_bytes());
        }
        add(b'x', &bytes);
        add(*kind, content);
    }
    if end {
        add(END, b"");
    }
    builder.into_inner().unwrap()
}

#[test]
fn a_stream_that_makes_no_sense_or_leads_out_is_refused() {
    let trees = Trees::new("mkdir dir; ln -s ../.. out", "true");
    fs::write(trees.at("precious"), "x").unwrap();
    let file = [
        ("path", "dir/file"),
        ("FIEF.size", "4"),
        ("FIEF.extents", "0:2,3:1"),
    ];
    let good: Entry<'_> = (b'0', &file, b"abc");
    trees.apply(&stream(&[good], true)).unwrap();
    assert_eq!(fs::read(trees.at("new/dir/file")).unwrap(), b"ab\0c");
    assert_eq!(
        fs::metadata(trees.at("new/dir/file"))
            .unwrap()
            .permissions()
            .mode()
            & 0o7777,
        0o644
    );
    let large = "x".repeat(70_000);
    let bad: [Entry<'_>; 19] = [
        (b'R', &[("path", "../precious")], b""),
        (b'R', &[("path", "out/precious")], b""),
        (b'R', &[("path", ".")], b""),
        (b'5', &[("path", "/dir")], b""),
        (b'5', &[("path", "out")], b""),
        (
            b'1',
            &[("path", "dir/link"), ("linkpath", "../precious")],
            b"",
        ),
        (
            b'1',
            &[("path", "dir/link"), ("linkpath", "out/precious")],
            b"",
        ),
        (b'2', &[("path", "dir/link")], b""),
        (b'3', &[("path", "dir/null")], b""),
        (b'0', &[("path", "dir/x")], b"abc"),
        (
            b'0',
            &[
                ("path", "dir/x"),
                ("FIEF.size", "2"),
                ("FIEF.extents", "0:3"),
            ],
            b"abc",
        ),
        (
            b'0',
            &[
                ("path", "dir/x"),
                ("FIEF.size", "9"),
                ("FIEF.extents", "0:4"),
            ],
            b"abc",
        ),
        (
            b'0',
            &[
                ("path", "dir/x"),
                ("FIEF.size", "9"),
                ("FIEF.extents", "0:2"),
            ],
            b"abc",
        ),
        (
            b'0',
            &[
                ("path", "dir/x"),
                ("FIEF.size", "9"),
                ("FIEF.extents", "4:2,3:1"),
            ],
            b"abc",
        ),
        (
            b'0',
            &[
                ("path", "dir/x"),
                ("FIEF.size", "9"),
                ("FIEF.extents", "18446744073709551615:3"),
            ],
            b"abc",
        ),
        (
            b'7',
            &[("path", "dir/file"), ("FIEF.extents", "0:3")],
            b"abc",
        ),
        (
            b'5',
            &[("path", "dir"), ("SCHILY.xattr.trusted.x", "y")],
            b"",
        ),
        (
            b'5',
            &[("path", "dir"), ("SCHILY.xattr.user.x", &large)],
            b"",
        ),
        (b'5', &[("path", "dir"), ("mtime", "soon")], b""),
    ];
    for (number, entry) in bad.into_iter().enumerate() {
        let error = trees.apply(&stream(&[entry], true));
        assert!(error.is_err(), "{number}");
        assert_eq!(fs::read(trees.at("precious")).unwrap(), b"x", "{number}");
        let left = fs::read_dir(trees.at("new/dir")).unwrap();
        assert_eq!(left.count(), 1, "{number}");
    }
    // A stream that broke off, between two entries or in one, is not taken for a whole one.
    assert!(matches!(
        trees.apply(&stream(&[good], false)),
        Err(Error::Format(_))
    ));
    let whole = stream(&[good], true);
    for length in 0..whole.len() - 1024 {
        if length % 97 == 0 {
            assert!(
                trees.apply(&whole[..length]).is_err() || length > whole.len() - 1536,
                "{length}"
            );
        }
    }
}
