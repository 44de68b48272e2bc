//! `fief set --isolation`, inside: the agent as a program that tells what of the root differs from its image, or makes that
//! so in another tenant's root. The stream is on its standard streams.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use fief_archive::Error;
use rustix::mount::{OpenTreeFlags, open_tree};

use crate::{boot, copy};

/// Where a container's image is bound (docs/containers.md), and a machine's is mounted here.
const IMAGE: &str = "/run/fief/image";
/// The drive with a machine's image.
const DRIVE: &str = "image";

/// Writes what differs to stdout.
pub fn diff() -> Result<(), String> {
    if !Path::new(IMAGE).exists() {
        boot::mount_drive(DRIVE, IMAGE)?;
    }
    let root = Bare::root()?;
    let out = io::BufWriter::with_capacity(64 << 10, io::stdout().lock());
    fief_archive::diff(&root.path(), Path::new(IMAGE), out, &mut copy::tell)
        .map_err(|error| error.to_string())
}

/// Reads that from stdin.
pub fn apply() -> Result<(), String> {
    let root = Bare::root()?;
    let stdin = io::stdin().lock();
    fief_archive::apply(stdin, &root.path(), Path::new("/"))
        .map_err(|error| format!("{error}{}", advice(&error)))
}

fn advice(error: &Error) -> &'static str {
    let Error::Io { source, .. } = error else {
        return "";
    };
    if source.raw_os_error() == Some(libc::EIO) {
        return "; is the host's disk full? Free some space, then try again";
    }
    match source.kind() {
        io::ErrorKind::StorageFull => "; give it a larger disk with --disk",
        // A tenant's kernel is chosen when it is created.
        io::ErrorKind::Unsupported => {
            "; remove it in the tenant, or copy the files to one that is created with --kernel debian (`fief cp`)"
        }
        _ => "",
    }
}

/// The root alone, without what is mounted in it: an init of the image may have put files below (in `/tmp`, say).
struct Bare(OwnedFd);

impl Bare {
    fn root() -> Result<Self, String> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        open_tree(rustix::fs::CWD, "/", flags)
            .map(Self)
            .map_err(|error| format!("cannot see the root without its mounts: {error}"))
    }

    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.0.as_raw_fd()))
    }
}
