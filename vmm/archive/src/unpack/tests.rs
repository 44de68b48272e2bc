use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use nix::sys::stat::Mode;
use tar::{Builder, Header};

use super::*;
use crate::{Source, pack};

/// As what comes out of a tenant is treated.
const HOSTILE: Policy = Policy {
    set_id: false,
    hard_links: false,
    owners: false,
};
/// As what goes into one is.
const TRUSTED: Policy = Policy {
    set_id: true,
    hard_links: true,
    owners: false,
};

struct Place {
    directory: tempfile::TempDir,
}

impl Place {
    /// A directory `in` to unpack into, and a file beside it that nothing may touch.
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("in")).unwrap();
        fs::write(directory.path().join("outside"), "precious").unwrap();
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("in")
    }

    fn unpack(&self, stream: &[u8], policy: Policy) -> Result<Vec<String>, Error> {
        let mut told = Vec::new();
        let unpacked = unpack_stream(stream, &self.path(), policy, &mut |line| told.push(line));
        let outside = self.directory.path().join("outside");
        assert_eq!(fs::read_to_string(outside).unwrap(), "precious");
        assert_eq!(fs::read_dir(self.directory.path()).unwrap().count(), 2);
        let left = fs::read_dir(self.path()).unwrap();
        let unfinished = left
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name.to_string_lossy().starts_with(".fief-cp"));
        assert_eq!(unfinished.count(), 0);
        unpacked.map(|()| told)
    }
}

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_mtime(1_000_000_000);
    header
}

/// An archive whose names are written as they are: the crate itself would refuse most of these.
#[derive(Default)]
struct Stream(Vec<u8>);

impl Stream {
    fn with(mut self, mut header: Header, name: &str, link: &str, content: &[u8]) -> Self {
        let gnu = header.as_gnu_mut().unwrap();
        gnu.name[..name.len()].copy_from_slice(name.as_bytes());
        gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        let header = header(EntryType::Regular, content.len() as u64);
        self.with(header, name, "", content)
    }

    fn link(self, kind: EntryType, name: &str, to: &str) -> Self {
        self.with(header(kind, 0), name, to, b"")
    }

    fn directory(self, name: &str) -> Self {
        self.with(header(EntryType::Directory, 0), name, "", b"")
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn packed(path: &Path) -> (Vec<u8>, Vec<String>) {
    let (mut stream, mut told) = (Vec::new(), Vec::new());
    let base = path.file_name().unwrap();
    pack(path, base, &mut stream, &mut |line| told.push(line)).unwrap();
    (stream, told)
}

fn target(path: PathBuf, source: &str) -> Target {
    Target {
        path,
        source: Source::of(Path::new(source), || None),
    }
}

#[test]
fn a_tree_comes_back_with_names_contents_modes_links_and_times() {
    let place = Place::new();
    let tree = place.directory.path().join("in/tree");
    let long = "n".repeat(200);
    let deep = tree.join(&long).join("d".repeat(150));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "deep").unwrap();
    fs::write(tree.join("empty"), "").unwrap();
    let big: Vec<u8> = (0..=255).cycle().take(3_000_000).collect();
    fs::write(tree.join("big"), &big).unwrap();
    symlink("/etc/passwd", tree.join("link")).unwrap();
    symlink("x".repeat(300), tree.join("long link")).unwrap();
    fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::create_dir(tree.join("closed")).unwrap();
    fs::write(tree.join("closed/file"), "x").unwrap();
    fs::set_permissions(tree.join("closed"), fs::Permissions::from_mode(0o500)).unwrap();
    nix::unistd::mkfifo(&tree.join("fifo"), Mode::S_IRWXU).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for name in ["empty", "closed"] {
        fs::File::open(tree.join(name))
            .unwrap()
            .set_modified(old)
            .unwrap();
    }
    let (stream, told) = packed(&tree);
    assert!(told.len() == 1 && told[0].contains("fifo"), "{told:?}");
    for (policy, mode) in [(HOSTILE, 0o711), (TRUSTED, 0o4711)] {
        let copy = place.directory.path().join(format!("in/copy-{mode:o}"));
        unpack(
            &stream[..],
            &target(copy.clone(), "tree"),
            policy,
            &mut |_| (),
        )
        .unwrap();
        assert_eq!(fs::read(copy.join("big")).unwrap(), big);
        assert_eq!(
            fs::read_to_string(copy.join(&long).join("d".repeat(150)).join("file")).unwrap(),
            "deep"
        );
        assert_eq!(
            fs::read_link(copy.join("link")).unwrap(),
            Path::new("/etc/passwd")
        );
        assert_eq!(
            fs::read_link(copy.join("long link"))
                .unwrap()
                .as_os_str()
                .len(),
            300
        );
        let mark = |name: &str| {
            let data = fs::metadata(copy.join(name)).unwrap();
            (data.mode() & 0o7777, data.mtime())
        };
        assert_eq!(mark("empty"), (mode, 1_000_000_000));
        assert_eq!(mark("closed"), (0o500, 1_000_000_000));
        assert!(!copy.join("fifo").exists());
    }
}

#[test]
fn names_that_lead_out_are_refused_and_nothing_is_written_there() {
    for name in ["../outside", "/outside", "a/../../outside", "a/..", ".."] {
        let place = Place::new();
        let stream = Stream::default().file(name, b"hostile").end();
        let refused = place.unpack(&stream, TRUSTED);
        assert!(
            matches!(refused, Err(Error::Outside(_))),
            "{name}: {refused:?}"
        );
    }
    let place = Place::new();
    let stream = Stream::default().file("./a//b/./c", b"fine").end();
    place.unpack(&stream, HOSTILE).unwrap();
    assert_eq!(fs::read(place.path().join("a/b/c")).unwrap(), b"fine");
}

#[test]
fn links_that_lead_out_are_made_and_never_followed() {
    let outside = Place::new();
    let absolute = outside.directory.path().to_str().unwrap().to_owned();
    for to in ["..", &absolute, "../in/.."] {
        let place = Place::new();
        let stream = Stream::default()
            .link(EntryType::Symlink, "way", to)
            .file("way/outside", b"hostile")
            .end();
        let refused = place.unpack(&stream, TRUSTED);
        assert!(
            matches!(refused, Err(Error::Outside(_))),
            "{to}: {refused:?}"
        );
        let stream = Stream::default()
            .link(EntryType::Symlink, "way", to)
            .directory("way")
            .end();
        assert!(matches!(
            place.unpack(&stream, TRUSTED),
            Err(Error::Outside(_))
        ));
    }
    // A link that was there before and leads out is no way either; what is behind a file's link stays.
    let place = Place::new();
    symlink("../outside", place.path().join("file")).unwrap();
    let stream = Stream::default().file("file", b"new").end();
    place.unpack(&stream, HOSTILE).unwrap();
    assert_eq!(fs::read(place.path().join("file")).unwrap(), b"new");
    // The control: one that stays beneath is followed.
    let place = Place::new();
    let stream = Stream::default()
        .directory("real")
        .link(EntryType::Symlink, "way", "real")
        .file("way/file", b"fine")
        .end();
    place.unpack(&stream, HOSTILE).unwrap();
    assert_eq!(fs::read(place.path().join("real/file")).unwrap(), b"fine");
}

#[test]
fn hard_links_are_refused_from_a_tenant_and_never_lead_out() {
    let stream = |to: &str| {
        Stream::default()
            .file("one", b"content")
            .link(EntryType::Link, "two", to)
            .end()
    };
    let place = Place::new();
    let refused = place.unpack(&stream("one"), HOSTILE);
    assert!(matches!(refused, Err(Error::HardLink(_))), "{refused:?}");
    let place = Place::new();
    place.unpack(&stream("one"), TRUSTED).unwrap();
    assert_eq!(fs::metadata(place.path().join("two")).unwrap().nlink(), 2);
    for to in ["../outside", "/outside"] {
        let refused = Place::new().unpack(&stream(to), TRUSTED);
        assert!(
            matches!(refused, Err(Error::Outside(_))),
            "{to}: {refused:?}"
        );
    }
}

#[test]
fn device_nodes_are_never_made_and_told() {
    let place = Place::new();
    let mut device = header(EntryType::Char, 0);
    device.set_device_major(1).unwrap();
    device.set_device_minor(3).unwrap();
    let stream = Stream::default()
        .with(device, "null", "", b"")
        .link(EntryType::Fifo, "fifo", "")
        .file("file", b"fine")
        .end();
    let told = place.unpack(&stream, TRUSTED).unwrap();
    assert_eq!(told.len(), 2);
    assert!(told[0].contains("null"), "{told:?}");
    let made: Vec<_> = fs::read_dir(place.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(made, ["file"]);
}

#[test]
fn huge_names_are_refused_without_being_read_and_long_ones_by_the_kernel() {
    for kind in [
        EntryType::GNULongName,
        EntryType::XHeader,
        EntryType::XGlobalHeader,
    ] {
        let mut endless = header(kind, u64::MAX >> 1);
        endless.set_size(1 << 50);
        let stream = Stream::default().with(endless, "x", "", b"").end();
        let refused = Place::new().unpack(&stream, TRUSTED);
        assert!(matches!(refused, Err(Error::Format(_))), "{refused:?}");
    }
    let mut builder = Builder::new(Vec::new());
    let name = format!("{}/x", "a".repeat(300));
    builder
        .append_data(&mut header(EntryType::Regular, 0), name, io::empty())
        .unwrap();
    let refused = Place::new().unpack(&builder.into_inner().unwrap(), TRUSTED);
    assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
}

#[test]
fn a_stream_that_is_cut_off_or_none_is_told_and_leaves_no_half_file() {
    let whole = Stream::default().file("file", &[7; 2000]).end();
    for length in [512, 700, 2000] {
        let place = Place::new();
        let cut = place.unpack(&whole[..length], TRUSTED);
        assert!(
            matches!(
                cut,
                Err(Error::Truncated(_) | Error::Read(_) | Error::Format(_))
            ),
            "{length}: {cut:?}"
        );
        assert!(!place.path().join("file").exists());
    }
    let none = Place::new().unpack(&[1; 2048], TRUSTED);
    assert!(matches!(none, Err(Error::Format(_))), "{none:?}");
    let empty = unpack(
        &[][..],
        &target(Place::new().path(), "x"),
        HOSTILE,
        &mut |_| (),
    );
    assert!(matches!(empty, Err(Error::Empty)), "{empty:?}");
}

#[test]
fn a_copy_of_one_thing_is_one_thing() {
    let copy = |place: &Place, stream: Vec<u8>| {
        let into = target(place.path(), "a");
        unpack(&stream[..], &into, HOSTILE, &mut |_| ())
    };
    let other = Stream::default().directory("a").file("b", b"").end();
    assert!(matches!(copy(&Place::new(), other), Err(Error::Outside(_))));
    let two = Stream::default().file("a", b"").file("a", b"").end();
    assert!(matches!(copy(&Place::new(), two), Err(Error::Format(_))));
    let midst = Stream::default().file("a/b", b"").end();
    assert!(matches!(copy(&Place::new(), midst), Err(Error::Format(_))));
    let place = Place::new();
    let tree = Stream::default().directory("x").file("x/b", b"fine").end();
    copy(&place, tree).unwrap();
    assert_eq!(fs::read(place.path().join("a/b")).unwrap(), b"fine");
}

#[test]
fn an_existing_directory_keeps_its_mode_and_a_file_does_not_replace_it() {
    let place = Place::new();
    let there = place.path().join("dir");
    fs::create_dir(&there).unwrap();
    fs::write(there.join("old"), "old").unwrap();
    fs::set_permissions(&there, fs::Permissions::from_mode(0o750)).unwrap();
    let stream = Stream::default()
        .directory("dir")
        .file("dir/new", b"new")
        .end();
    place.unpack(&stream, TRUSTED).unwrap();
    assert_eq!(fs::metadata(&there).unwrap().mode() & 0o7777, 0o750);
    assert_eq!(fs::read_dir(&there).unwrap().count(), 2);
    let stream = Stream::default().file("dir", b"").end();
    assert!(matches!(
        place.unpack(&stream, TRUSTED),
        Err(Error::IsDirectory(_))
    ));
}

#[test]
fn a_tree_that_cannot_be_read_to_its_end_gives_no_archive_that_looks_whole() {
    let place = Place::new();
    let mut stream = Vec::new();
    let missing = place.path().join("none");
    let packed = pack(&missing, OsStr::new("none"), &mut stream, &mut |_| ());
    assert!(matches!(packed, Err(Error::Io { .. })), "{packed:?}");
    assert_eq!(stream, b"");
}
