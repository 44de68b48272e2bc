//! Text files that are read, changed and put in place as a whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Gid, Uid, fchown};

use crate::text;

/// Why a file is not as it should be.
#[derive(Debug)]
pub struct Failure(String);

impl Failure {
    pub fn new(text: impl Into<String>) -> Failure {
        Failure(text.into())
    }

    /// What the system said about a path.
    pub fn at(path: &Path) -> impl Fn(io::Error) -> Failure {
        move |error| Failure(format!("cannot write {}: {error}", path.display()))
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The lock of shadow's and glibc's programs on the accounts (lckpwdf(3)); free when the file is closed.
///
/// # Errors
/// The file system's.
pub fn lock(etc: &Path) -> Result<File, Failure> {
    let path = etc.join(".pwd.lock");
    let failed = Failure::at(&path);
    fs::create_dir_all(etc).map_err(&failed)?;
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(&failed)?;
    let whole = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    // Waits; the child's alarm bounds it.
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_SETLKW(&whole))
        .map_err(|error| failed(error.into()))?;
    Ok(file)
}

/// Makes a file what `change` makes of its text; a missing file has none, and gets `mode`. Owner and mode of one that is
/// there stay. A link is not followed, and readers see the old text or the new.
///
/// # Errors
/// It is no regular file, or the file system's.
pub fn update(path: &Path, mode: u32, change: impl FnOnce(&str) -> String) -> Result<(), Failure> {
    let failed = Failure::at(path);
    let found = read(path).map_err(&failed)?;
    let text = found.as_ref().map_or("", |(_, text)| text);
    let new = change(text);
    if new == text {
        return Ok(());
    }
    let unfinished = unfinished(path);
    let _ = fs::remove_file(&unfinished);
    let written = OpenOptions::new()
        .write(true)
        // Neither follows a link nor takes what is there.
        .create_new(true)
        .mode(0o600)
        .open(&unfinished)
        .and_then(|mut file| {
            file.write_all(new.as_bytes())?;
            dress(&file, found.as_ref().map(|(file, _)| file), mode)?;
            fs::rename(&unfinished, path)
        });
    written.map_err(|error| {
        let _ = fs::remove_file(&unfinished);
        failed(error)
    })
}

/// The text of a file; none if there is no such file.
///
/// # Errors
/// It is no regular file, not text, too long, or the file system's.
fn read(path: &Path) -> io::Result<Option<(File, String)>> {
    let file = match text::open(path, libc::O_NOFOLLOW) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let text = text::read_from(&file)?;
    Ok(Some((file, text)))
}

/// Gives a file the owner and mode of the one that it replaces.
fn dress(file: &File, old: Option<&File>, mode: u32) -> io::Result<()> {
    let old = old.map(File::metadata).transpose()?;
    if let Some(old) = &old {
        let same = file.metadata()?;
        if (same.uid(), same.gid()) != (old.uid(), old.gid()) {
            fchown(
                file,
                Some(Uid::from_raw(old.uid())),
                Some(Gid::from_raw(old.gid())),
            )?;
        }
    }
    let mode = old.map_or(mode, |old| old.mode());
    Ok(fchmod(file, Mode::from_bits_truncate(mode & 0o7777))?)
}

fn unfinished(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.fief"))
}
