//! The smallest root file system: busybox and its names. For tests and quick looks.

use std::fs;
use std::path::PathBuf;

use super::{Error, add_mount_points, pack};
use crate::kernel::apt;
use crate::progress::Progress;
use crate::store::{Properties, Work, hash_bytes};
use crate::tool::Tool;
use crate::tree::{Content, Meta, Tree};

pub const BUSYBOX: Tool = Tool {
    program: "busybox",
    package: "busybox-static",
};

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/home/user:/bin/sh\n\
    nobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\ntty:x:5:\nuser:x:1000:\nnogroup:x:65534:\n";
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n";

pub fn request() -> String {
    let installed = BUSYBOX.find().ok().and_then(|path| fs::read(path).ok());
    format!(
        "{PASSWD}{GROUP}{HOSTS}{}",
        installed
            .map(|bytes| hash_bytes(&bytes))
            .unwrap_or_default()
    )
}

pub fn make(work: &Work, progress: &dyn Progress) -> Result<Properties, Error> {
    let (path, bytes) = binary(work, progress)?;
    let applets = BUSYBOX.output_of(&path, ["--list-full"])?;
    let mut tree = Tree::default();
    tree.file("bin/busybox", 0o755, bytes)?;
    for applet in applets
        .lines()
        .filter(|line| !line.is_empty() && *line != "bin/busybox")
    {
        tree.symlink(applet, "/bin/busybox")?;
    }
    for (path, text) in [
        ("etc/passwd", PASSWD),
        ("etc/group", GROUP),
        ("etc/hosts", HOSTS),
        ("etc/hostname", "localhost\n"),
    ] {
        tree.file(path, 0o644, text.as_bytes())?;
    }
    for (path, mode) in [
        ("root", 0o700),
        ("var/tmp", 0o1777),
        ("var/log", 0o755),
        ("mnt", 0o755),
        ("lib/modules", 0o755),
    ] {
        tree.directory(path, mode)?;
    }
    let home = Meta {
        uid: 1000,
        gid: 1000,
        ..Meta::root(0o755)
    };
    tree.insert(b"home/user", home, Content::Directory(Default::default()))?;
    add_mount_points(&mut tree)?;
    pack(work, &mut tree, Default::default(), progress)
}

/// The machine's own if it is static, else the package's.
fn binary(work: &Work, progress: &dyn Progress) -> Result<(PathBuf, Vec<u8>), Error> {
    if let Ok(found) = static_busybox() {
        return Ok(found);
    }
    let package = apt::first_known(&["busybox-static"], progress)?;
    let deb = apt::download(&package, &work.scratch, progress)?;
    let dir = work.scratch.join("package");
    apt::unpack(&deb, &dir)?;
    let found = ["bin/busybox", "usr/bin/busybox"]
        .map(|path| dir.join(path))
        .into_iter()
        .find(|path| path.is_file());
    let path = found.unwrap_or_else(|| dir.join("bin/busybox"));
    let bytes = fs::read(&path).map_err(|source| Error::Io {
        what: "reading",
        path: path.clone(),
        source,
    })?;
    Ok((path, bytes))
}

/// The machine's busybox, which must be static: what needs a loader does not run in an initramfs.
pub fn static_busybox() -> Result<(PathBuf, Vec<u8>), Error> {
    let path = BUSYBOX.find()?;
    let bytes = fs::read(&path).map_err(|source| Error::Io {
        what: "reading",
        path: path.clone(),
        source,
    })?;
    if is_static(&bytes) {
        Ok((path, bytes))
    } else {
        Err(Error::DynamicBusybox { path })
    }
}

/// An ELF file without an interpreter (program header type PT_INTERP, 3; ELF-64 layout).
fn is_static(elf: &[u8]) -> bool {
    let number = |at: usize, size: usize| -> Option<usize> {
        let bytes = elf.get(at..at.checked_add(size)?)?;
        bytes.iter().rev().try_fold(0usize, |n, &b| {
            n.checked_mul(256)?.checked_add(usize::from(b))
        })
    };
    let headers = || -> Option<bool> {
        let (offset, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        for index in 0..count {
            if number(offset.checked_add(index * size)?, 4)? == 3 {
                return Some(false);
            }
        }
        Some(true)
    };
    elf.starts_with(b"\x7fELF\x02") && headers() == Some(true)
}
