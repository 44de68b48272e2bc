//! A log that cannot fill the disk: a guest may print without end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::spec::LogBounds;

/// A log in several files, `<path>` and the older `<path>.1`, `<path>.2` and so on, each of a limited size: the newest
/// output is kept.
#[derive(Debug)]
pub struct BoundedLog {
    path: PathBuf,
    file: File,
    /// Bytes in `file`.
    written: u64,
    bounds: LogBounds,
}

impl BoundedLog {
    /// Opens the log and goes on where it ends. Older files that are too many now are removed.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path, bounds: LogBounds) -> io::Result<Self> {
        for number in bounds.files.. {
            match fs::remove_file(older(path, number)) {
                Ok(()) if number < u8::MAX => {}
                _ => break,
            }
        }
        let file = open(path)?;
        let written = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            written,
            bounds,
        })
    }

    /// Adds `bytes`.
    ///
    /// # Errors
    /// No space. What was written stays.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.written >= self.bounds.size.0 {
                self.rotate()?;
            }
            let room = usize::try_from(self.bounds.size.0 - self.written).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.file.write_all(now)?;
            self.written += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        // The oldest first: it is what is replaced.
        for number in (1..self.bounds.files).rev() {
            let from = older(&self.path, number - 1);
            match fs::rename(from, older(&self.path, number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        if self.bounds.files == 1 {
            fs::remove_file(&self.path)?;
        }
        self.file = open(&self.path)?;
        self.written = 0;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// Where an older part of a log is; 0 is the part that grows.
pub fn older(path: &Path, number: u8) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// The parts of a log, newest first, open. What is renamed meanwhile is in it once.
///
/// # Errors
/// One of them cannot be opened.
pub fn parts(path: &Path) -> io::Result<Vec<File>> {
    let mut parts: Vec<(Identity, File)> = Vec::new();
    for number in 0..=u8::MAX {
        match File::open(older(path, number)) {
            // Between a rename and the making of the new file there is no newest one.
            Err(error) if error.kind() == io::ErrorKind::NotFound && number == 0 => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            opened => {
                let file = opened?;
                let identity = identity(&file)?;
                if parts.iter().all(|(known, _)| *known != identity) {
                    parts.push((identity, file));
                }
            }
        }
    }
    Ok(parts.into_iter().map(|(_, file)| file).collect())
}

/// Device and inode.
pub type Identity = (u64, u64);

/// What tells a file from others, whatever its name is by now.
///
/// # Errors
/// The file cannot be asked.
pub fn identity(file: &File) -> io::Result<Identity> {
    let data = file.metadata()?;
    Ok((data.dev(), data.ino()))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::spec::Bytes;

    fn bounds(size: u64, files: u8) -> LogBounds {
        LogBounds {
            size: Bytes(size),
            files,
        }
    }

    fn content(path: &Path) -> Vec<u8> {
        let mut all = Vec::new();
        for mut part in parts(path).unwrap().into_iter().rev() {
            part.read_to_end(&mut all).unwrap();
        }
        all
    }

    #[test]
    fn the_newest_output_is_kept_and_no_file_grows_beyond_its_limit() {
        for files in [1, 2, 3, 5] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("log");
            let mut log = BoundedLog::open(&path, bounds(100, files)).unwrap();
            let all: Vec<u8> = (0..=255).cycle().take(1234).collect();
            for part in all.chunks(37) {
                log.write(part).unwrap();
            }
            let kept = content(&path);
            assert!(all.ends_with(&kept));
            assert!(kept.len() >= 100 * (usize::from(files) - 1));
            let sizes: Vec<u64> = fs::read_dir(directory.path())
                .unwrap()
                .map(|entry| entry.unwrap().metadata().unwrap().len())
                .collect();
            assert_eq!(sizes.len(), usize::from(files));
            assert!(sizes.iter().all(|size| *size <= 100), "{sizes:?}");
        }
    }

    #[test]
    fn one_write_larger_than_all_files_leaves_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let all: Vec<u8> = (0..=255).cycle().take(1050).collect();
        let mut log = BoundedLog::open(&path, bounds(100, 3)).unwrap();
        log.write(&all).unwrap();
        assert!(all.ends_with(&content(&path)));
    }

    #[test]
    fn a_log_that_is_opened_again_goes_on_with_as_many_files_as_it_may_have_now() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = BoundedLog::open(&path, bounds(4, 4)).unwrap();
        log.write(b"one two three four").unwrap();
        assert_eq!(content(&path), b"two three four");
        let mut log = BoundedLog::open(&path, bounds(100, 2)).unwrap();
        log.write(b" five").unwrap();
        assert_eq!(content(&path), b"e four five");
    }
}
