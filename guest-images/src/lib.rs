//! What a tenant boots from: kernels, read-only root file systems, initramfs images, empty disks.
//!
//! Everything made here lives in a content-addressed store below one directory; [`Images`] is the way in. `ensure_*` makes
//! what is missing and is quick when there is nothing to do; the plain names use what is there and never make anything.
//! Long work reports to a [`Progress`]; nothing is printed. `docs/guest-images.md` has the pictures.

pub mod disk;
mod erofs;
mod images;
pub mod initramfs;
pub mod kernel;
pub mod progress;
pub mod rootfs;
pub mod space;
pub mod store;
pub mod tool;
mod tree;

pub use images::{Error, Images, Listed};
pub use initramfs::{Initramfs, InitramfsSpec};
pub use kernel::{Kernel, KernelKind, modules};
pub use progress::{Progress, Silent, Unit};
pub use rootfs::RootImage;
pub use rootfs::format::ImageFormat;
pub use store::{ArtifactId, ExportFile, Kind};
