//! Text files of the tenant. Its root may have put anything in their place; nothing of that holds up the agent, which has one
//! thread, or takes all of its memory.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Longer files are somebody's own idea of such a file, in bytes.
pub const LONGEST: u64 = 4 << 20;

/// A FIFO must not hold up anybody, and no terminal become the agent's.
const FLAGS: libc::c_int = libc::O_NONBLOCK | libc::O_NOCTTY;

/// Opens a regular file to read it; `flags` are more of open(2)'s.
///
/// # Errors
/// It is something else, or the file system's.
pub fn open(path: &Path, flags: libc::c_int) -> io::Result<File> {
    let mut options = OpenOptions::new();
    regular(options.read(true).custom_flags(FLAGS | flags).open(path)?)
}

/// The text of a file; of one that is not there, none.
///
/// # Errors
/// It is no regular file, not text, longer than [`LONGEST`], or the file system's.
pub fn read(path: &Path) -> io::Result<String> {
    match open(path, 0) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        other => read_from(&other?),
    }
}

/// The same of an open file.
///
/// # Errors
/// As [`read`].
pub fn read_from(file: &File) -> io::Result<String> {
    let mut text = String::new();
    file.take(LONGEST + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LONGEST {
        return Err(io::Error::other("it is longer than such a file can be"));
    }
    Ok(text)
}

/// Makes `text` a file's whole content, in place.
///
/// # Errors
/// It is no regular file, or the file system's.
pub fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    regular(options.custom_flags(FLAGS).open(path)?)?.write_all(text.as_bytes())
}

fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::other("it is no regular file"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifo_a_directory_and_what_is_too_long_are_no_texts() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        // The control: through a link, too.
        write(&path("plain"), "words").unwrap();
        std::os::unix::fs::symlink("plain", path("link")).unwrap();
        assert_eq!(read(&path("link")).unwrap(), "words");
        assert_eq!(read(&path("missing")).unwrap(), "");
        nix::unistd::mkfifo(&path("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for name in ["fifo", "."] {
            read(&path(name)).unwrap_err();
            write(&path(name), "words").unwrap_err();
        }
        let long = File::create(path("long")).unwrap();
        long.set_len(LONGEST).unwrap();
        assert_eq!(read(&path("long")).unwrap().len() as u64, LONGEST);
        long.set_len(LONGEST + 1).unwrap();
        read(&path("long")).unwrap_err();
    }
}
