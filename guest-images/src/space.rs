//! Is there room for what is about to be written?

use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "not enough space in {}: {what} needs {needed_mib} MiB, {free_mib} MiB are free; free some or choose another directory",
        path.display()
    )]
    Full {
        path: PathBuf,
        what: String,
        needed_mib: u64,
        free_mib: u64,
    },
    #[error("cannot tell the free space of {}", path.display())]
    Stat { path: PathBuf, source: nix::Error },
}

/// Fails if fewer than `bytes` are free for this user on the file system of `path`, which must exist.
pub fn require(path: &Path, what: &str, bytes: u64) -> Result<(), Error> {
    let stat = nix::sys::statvfs::statvfs(path).map_err(|source| Error::Stat {
        path: path.to_owned(),
        source,
    })?;
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    if free >= bytes {
        return Ok(());
    }
    let (needed_mib, free_mib) = (bytes.div_ceil(1 << 20), free >> 20);
    Err(Error::Full {
        path: path.to_owned(),
        what: what.to_owned(),
        needed_mib,
        free_mib,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_the_disk_has_is_refused_and_both_figures_are_named() {
        let message = require(Path::new("/"), "a kernel", u64::MAX)
            .unwrap_err()
            .to_string();
        assert!(
            message.contains("a kernel needs 17592186044416 MiB"),
            "{message}"
        );
        require(Path::new("/"), "nothing", 0).unwrap();
    }
}
