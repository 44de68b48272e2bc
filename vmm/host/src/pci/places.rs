//! Where the kernel tells of its devices, and how these files are read: of bounded length, and nothing in them is taken for granted.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// More than any file of sysfs or procfs has that is read here; modules.dep and pci.ids have 2 MiB.
const LIMIT: u64 = 16 << 20;

/// The directories that a machine is read from. Tests make their own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Places {
    /// `/sys`
    pub sys: PathBuf,
    /// `/proc`
    pub proc: PathBuf,
    /// `/dev`
    pub dev: PathBuf,
    /// The modules of the running kernel: `/lib/modules/RELEASE`
    pub modules: PathBuf,
    /// Where `pci.ids` may be, best first.
    pub ids: Vec<PathBuf>,
}

impl Default for Places {
    /// Those of this machine.
    fn default() -> Self {
        let release = text(Path::new("/proc/sys/kernel/osrelease")).unwrap_or_default();
        Self {
            sys: "/sys".into(),
            proc: "/proc".into(),
            dev: "/dev".into(),
            modules: Path::new("/lib/modules").join(release),
            ids: [
                // pciutils updates the first; Debian and Arch have the second and third, Fedora the third.
                "/var/lib/pciutils/pci.ids",
                "/usr/share/misc/pci.ids",
                "/usr/share/hwdata/pci.ids",
            ]
            .map(PathBuf::from)
            .to_vec(),
        }
    }
}

impl Places {
    /// The directory of all PCI functions.
    pub fn functions(&self) -> PathBuf {
        self.sys.join("bus/pci/devices")
    }

    /// The directory of a driver of PCI functions; there while it is loaded.
    pub fn driver(&self, name: &str) -> PathBuf {
        self.sys.join("bus/pci/drivers").join(name)
    }

    /// Members of a class of devices (`block`, `net`, `drm`) by name, with the directory of each.
    pub(super) fn class(&self, class: &str) -> Vec<(String, PathBuf)> {
        entries(&self.sys.join("class").join(class))
            .into_iter()
            .filter_map(|path| Some((name(&path)?, fs::canonicalize(path).ok()?)))
            .collect()
    }
}

/// A file's text without white space at its ends; none if it cannot be read or has nothing.
pub(super) fn text(path: &Path) -> Option<String> {
    let text = String::from_utf8_lossy(&bytes(path).ok()?)
        .trim()
        .to_owned();
    (!text.is_empty()).then_some(text)
}

/// A file's text as it is; nothing if it cannot be read.
pub(super) fn lines(path: &Path) -> String {
    String::from_utf8_lossy(&bytes(path).unwrap_or_default()).into_owned()
}

pub(super) fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    File::open(path)?.take(LIMIT).read_to_end(&mut content)?;
    Ok(content)
}

/// A number such as `0x10de`.
pub(super) fn hexadecimal(path: &Path) -> Option<u32> {
    u32::from_str_radix(text(path)?.strip_prefix("0x")?, 16).ok()
}

/// A number such as `12`.
pub(super) fn decimal(path: &Path) -> Option<u32> {
    text(path)?.parse().ok()
}

/// The last part of what a link leads to: a driver's name, a group's number.
pub(super) fn target(link: &Path) -> Option<String> {
    name(&fs::read_link(link).ok()?)
}

/// What is in a directory, in order; nothing if it cannot be read.
pub(super) fn entries(directory: &Path) -> Vec<PathBuf> {
    let mut all: Vec<_> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    all.sort();
    all
}

/// The last part of a path.
pub(super) fn name(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}
