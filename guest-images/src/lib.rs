//! What a tenant boots from: kernels, read-only root file systems, initramfs images, empty disks.
//!
//! Everything made here lives in a content-addressed store below one directory. The whole interface is [`Images`]:
//!
//! ```text
//! Images::open(dir: &Path) -> Result<Images, Error>
//! // make it if it is missing, damaged or its inputs changed; < 50 ms when there is nothing to do
//! images.ensure_kernel(KernelKind, &dyn Progress) -> Result<Kernel, Error>
//! images.ensure_rootfs(name: &str, &dyn Progress) -> Result<RootImage, Error>
//! images.ensure_initramfs(&InitramfsSpec, &dyn Progress) -> Result<Initramfs, Error>
//! images.import_rootfs(name: &str, source: &Path, &dyn Progress) -> Result<RootImage, Error>   // directory, tar, image
//! // use what is there; never makes anything; error when missing (says how to make it) or truncated
//! images.kernel(KernelKind) -> Result<Kernel, Error>
//! images.rootfs(name: &str) -> Result<RootImage, Error>
//! images.list() -> Result<Vec<Listed>, Error>          images.remove(kind, name) -> Result<(), Error>
//! images.verify(&dyn Progress) -> Result<Vec<Damage>, Error>      // full hashes
//! // copying into another store (the emulated host's)
//! images.export(&[ArtifactId]) -> Result<Vec<ExportFile>, Error>  // relative path, size, sha256
//! images.copy_from(other: &Images, &[ArtifactId], &dyn Progress) -> Result<(), Error>
//! disk::make(path: &Path, bytes: u64) -> Result<(), Error>        // sparse file, empty ext4 in it
//! ```

pub mod progress;

use std::path::PathBuf;

pub use progress::{Progress, Silent, Unit};

/// Which kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KernelKind {
    /// The distribution's cloud kernel, with modules. The default for tenants and the emulated host.
    Debian,
    /// Our own configuration for tenants, no modules, built from the distribution's kernel source.
    Tuned,
    /// As small as boots: for measuring boot and for quick tests.
    Micro,
}

/// A kernel in the store. Paths stay valid while the artifact is in the store.
#[derive(Debug, Clone)]
pub struct Kernel {
    pub kind: KernelKind,
    pub artifact: ArtifactId,
    /// As in `uname -r`.
    pub release: String,
    pub bzimage: PathBuf,
    /// The uncompressed ELF inside `bzimage`: 64-bit and PVH entry.
    pub elf: PathBuf,
    /// A read-only erofs image whose root directory holds `<release>/`: to be mounted on `/lib/modules`. `None` for a
    /// kernel without modules.
    pub modules_image: Option<PathBuf>,
}

/// How a root file system image is to be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    Erofs,
    Ext4,
}

/// A read-only root file system in the store.
#[derive(Debug, Clone)]
pub struct RootImage {
    pub name: String,
    pub artifact: ArtifactId,
    pub path: PathBuf,
    pub format: ImageFormat,
    /// Bytes of the image file.
    pub size: u64,
    /// The image's own init (`/sbin/init`), if it has one that can be PID 1 (spec `init: image`).
    pub init: Option<String>,
}

/// What goes into an initramfs.
#[derive(Debug, Clone)]
pub struct InitramfsSpec {
    pub kernel: Kernel,
    /// A static binary, becomes `/init`.
    pub agent: PathBuf,
    /// Modules to load at boot, without their dependencies (added) and without built-in ones (left out).
    /// `modules::TENANT` and `modules::HOST` are lists that work.
    pub modules: Vec<String>,
    /// Put the busybox of this machine at /bin/busybox, with a link `sh`: for tests that have no root image.
    pub busybox: bool,
}

/// An initramfs in the store: an uncompressed cpio archive. In it: `/init`, `/dev/console`, `/dev/null`, empty
/// mount points, modules below `/lib/modules/<release>/`, and `/etc/fief/modules.load`: their absolute paths in load
/// order, one a line.
#[derive(Debug, Clone)]
pub struct Initramfs {
    pub artifact: ArtifactId,
    pub path: PathBuf,
}

/// SHA-256 over the list of an artifact's files (path, size and SHA-256 of each), in hex: the same files have the same id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ArtifactId(String);

/// One file of an artifact, for copying a store's part elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportFile {
    /// Below the store's directory, here and there.
    pub relative: PathBuf,
    pub size: u64,
    /// Hex.
    pub sha256: String,
}
