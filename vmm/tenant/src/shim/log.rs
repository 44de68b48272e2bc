//! A log that cannot fill the disk: a guest may print without end.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A log in two files, `<path>` and the older `<path>.1`, each of a limited size: the newest output is kept.
#[derive(Debug)]
pub struct BoundedLog {
    path: PathBuf,
    file: File,
    /// Bytes in `file`.
    written: u64,
    /// Largest size of one file, in bytes.
    limit: u64,
}

impl BoundedLog {
    /// Opens the log and goes on where it ends.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = open(path)?;
        let written = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            written,
            limit,
        })
    }

    /// Adds `bytes`.
    ///
    /// # Errors
    /// No space. What was written stays.
    pub fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            if self.written >= self.limit {
                self.rotate()?;
            }
            let room = usize::try_from(self.limit - self.written).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.file.write_all(now)?;
            self.written += now.len() as u64;
            bytes = later;
        }
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        fs::rename(&self.path, older(&self.path))?;
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

/// Where the older part of a log is.
pub fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(path: &Path) -> Vec<u8> {
        let mut all = fs::read(older(path)).unwrap_or_default();
        all.extend(fs::read(path).unwrap());
        all
    }

    #[test]
    fn the_newest_output_is_kept_and_no_file_grows_beyond_its_limit() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let mut log = BoundedLog::open(&path, 100).unwrap();
        let all: Vec<u8> = (0..=255).cycle().take(1234).collect();
        for part in all.chunks(37) {
            log.write(part).unwrap();
        }
        let kept = content(&path);
        assert!(all.ends_with(&kept));
        assert!(kept.len() >= 100);
        assert!(fs::metadata(&path).unwrap().len() <= 100);
        assert!(fs::metadata(older(&path)).unwrap().len() <= 100);
    }

    #[test]
    fn one_write_larger_than_both_files_leaves_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let all: Vec<u8> = (0..=255).cycle().take(1050).collect();
        BoundedLog::open(&path, 100).unwrap().write(&all).unwrap();
        assert!(all.ends_with(&content(&path)));
    }

    #[test]
    fn a_log_that_is_opened_again_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        BoundedLog::open(&path, 100)
            .unwrap()
            .write(b"one ")
            .unwrap();
        BoundedLog::open(&path, 100).unwrap().write(b"two").unwrap();
        assert_eq!(content(&path), b"one two");
    }
}
