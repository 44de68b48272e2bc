//! File trees as tar streams, for copying between a tenant and its host: the agent packs and unpacks on its side, `fief
//! cp` on the other.
//!
//! What comes out of a tenant is hostile: [`unpack`](unpack::unpack) never leaves the directory that it unpacks into,
//! whatever names and links the stream has, never makes a device node, and holds no more than one name in memory.
//!
//! A tenant that moves between machine and container takes along what differs from its image: [`diff`](diff()) writes that
//! as a stream of our own kind, inside the old one, and [`apply`](apply()) reads it, inside the new one.

mod apply;
mod diff;
pub mod pack;
mod pax;
mod place;
pub mod target;
pub mod unpack;

pub use apply::apply;
pub use diff::diff;
pub use pack::pack;
pub use target::{Source, Target};
pub use unpack::{Policy, unpack, unpack_stream};

use std::io;
use std::path::PathBuf;

/// Why a tree could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the stream cannot be read: {0}")]
    Read(io::Error),
    #[error("the stream cannot be written: {0}")]
    Write(io::Error),
    #[error("the stream is no tar archive, or damaged: {0}")]
    Format(String),
    #[error("the stream ends in the midst of {}", .0.display())]
    Truncated(PathBuf),
    #[error("the stream is empty; there was nothing to copy")]
    Empty,
    #[error(
        "the stream names {0}, which is outside of what it is to fill; nothing of that is written"
    )]
    Outside(String),
    #[error("{} is a hard link in the stream, and those are not taken from a tenant", .0.display())]
    HardLink(PathBuf),
    #[error("{} is a directory and cannot be replaced by a file; remove it first", .0.display())]
    IsDirectory(PathBuf),
    #[error("{} is no directory, and a directory cannot be copied there; choose another name", .0.display())]
    NotDirectory(PathBuf),
    #[error("there is no directory {}; make it first", .0.display())]
    NoDirectory(PathBuf),
    #[error("these cannot be moved: {0}; remove them in the tenant, then try again")]
    Unmovable(String),
    #[error("{} is neither a file nor a directory; choose another name", .0.display())]
    Special(PathBuf),
}

/// For `map_err`: what was done with `path` when it failed.
pub(crate) fn failed<E: Into<io::Error>>(
    what: &'static str,
    path: impl Into<PathBuf>,
) -> impl FnOnce(E) -> Error {
    let path = path.into();
    move |source| Error::Io {
        what,
        path,
        source: source.into(),
    }
}
