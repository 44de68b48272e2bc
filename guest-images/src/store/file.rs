//! File operations that the store's promises rest on.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::Error;

/// Descriptions and refs are small; a larger file in their place is not one of ours.
const READ_MAX: u64 = 16 << 20;

/// For `map_err`: `what` was done with `path` when it failed.
pub fn io<'a>(
    what: &'static str,
    path: &'a Path,
) -> impl FnOnce(std::io::Error) -> Error + use<'a> {
    move |source| Error::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

pub fn create_dir(path: &Path) -> Result<(), Error> {
    fs::create_dir_all(path).map_err(io("making the directory", path))
}

pub fn read(path: &Path) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io("opening", path))?;
    file.take(READ_MAX)
        .read_to_end(&mut bytes)
        .map_err(io("reading", path))?;
    Ok(bytes)
}

/// The file is either as before or has all of `bytes`, also after a power cut.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut temporary = tempfile::Builder::new()
        .prefix(".new-")
        .tempfile_in(dir)
        .map_err(io("making a file in", dir))?;
    temporary.write_all(bytes).map_err(io("writing", path))?;
    temporary
        .as_file()
        .sync_all()
        .map_err(io("writing", path))?;
    temporary.persist(path).map_err(|e| Error::Io {
        what: "renaming",
        path: path.to_owned(),
        source: e.error,
    })?;
    sync(dir)
}

pub fn sync(path: &Path) -> Result<(), Error> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(io("syncing", path))
}

/// Brings every file and directory below `dir` to the disk.
pub fn sync_tree(dir: &Path) -> Result<(), Error> {
    for entry in fs::read_dir(dir).map_err(io("reading", dir))? {
        let entry = entry.map_err(io("reading", dir))?;
        let path = entry.path();
        if entry.file_type().map_err(io("reading", &path))?.is_dir() {
            sync_tree(&path)?;
        } else {
            sync(&path)?;
        }
    }
    sync(dir)
}

/// Removes a file, or a directory with all that is in it; nothing there is fine.
pub fn remove_any(path: &Path) -> Result<(), Error> {
    let meta = match path.symlink_metadata() {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(io("removing", path))?,
    };
    let removed = if meta.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match removed {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(io("removing", path)),
    }
}

/// SHA-256 in hex.
pub fn hash_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Size and SHA-256 in hex; `done` is told the bytes read so far.
pub fn hash_file(path: &Path, done: &dyn Fn(u64)) -> Result<(u64, String), Error> {
    let mut file = File::open(path).map_err(io("opening", path))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    let mut total = 0;
    loop {
        let n = file.read(&mut buffer).map_err(io("reading", path))?;
        if n == 0 {
            return Ok((total, hex(&hasher.finalize())));
        }
        hasher.update(&buffer[..n]);
        total += n as u64;
        done(total);
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
