//! Small files that are there whole or not at all.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// A description is small; a larger file in its place is none of ours.
const LARGEST: u64 = 1 << 20;

/// Why a description could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is damaged ({source}); remove the tenant with `fief rm -f`, or restore the file", path.display())]
    Damaged {
        path: PathBuf,
        source: serde_json::Error,
    },
}

/// For `map_err`: what was done with `path` when it failed.
pub fn failed<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> FileError + use<'a> {
    move |source| FileError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Replaces the file: readers see the old or the new content, also after a power cut.
///
/// # Errors
/// See [`FileError`].
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), FileError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    replace(path, value, File::sync_all)?;
    let written = File::open(directory).and_then(|directory| directory.sync_all());
    written.map_err(failed("write", path))
}

/// The same for what says nothing any more after a power cut, and may be damaged then: it waits for no disk.
///
/// # Errors
/// See [`FileError`].
pub fn write_fleeting_json(path: &Path, value: &impl Serialize) -> Result<(), FileError> {
    replace(path, value, |_| Ok(()))
}

fn replace(
    path: &Path,
    value: &impl Serialize,
    keep: impl FnOnce(&File) -> io::Result<()>,
) -> Result<(), FileError> {
    let text = serde_json::to_vec_pretty(value).map_err(|source| FileError::Damaged {
        path: path.to_owned(),
        source,
    })?;
    let directory = path.parent().unwrap_or(Path::new("."));
    let written = || {
        let mut file = tempfile::Builder::new()
            .prefix(".tmp-")
            .tempfile_in(directory)?;
        file.write_all(&text)?;
        keep(file.as_file())?;
        file.persist(path).map(drop).map_err(|error| error.error)
    };
    written().map_err(failed("write", path))
}

/// Reads a file if it is there.
///
/// # Errors
/// See [`FileError`].
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, FileError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed("open", path))?,
    };
    // Most are read at once.
    let mut text = Vec::with_capacity(2048);
    file.take(LARGEST)
        .read_to_end(&mut text)
        .map_err(failed("read", path))?;
    serde_json::from_slice(&text)
        .map(Some)
        .map_err(|source| FileError::Damaged {
            path: path.to_owned(),
            source,
        })
}

/// Removes a file or directory; nothing there is fine.
///
/// # Errors
/// See [`FileError`].
pub fn remove(path: &Path) -> Result<(), FileError> {
    let removed = match path.symlink_metadata() {
        Ok(data) if data.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        // Another fief may be removing the same leftovers.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", path)(error)),
        _ => Ok(()),
    }
}
