//! What a file that should be an image is, and whether all of it is there.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::erofs;

/// ext4's superblock is at byte 1024 (kernel Documentation/filesystems/ext4/super.rst), erofs's too.
const SUPER_OFFSET: usize = erofs::SUPER_OFFSET as usize;
const EXT4_MAGIC: u16 = 0xef53;
const EXT4_FEATURE_64BIT: u32 = 0x80;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} cannot be read", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error(
        "{} is truncated: its file system has {expected} bytes, the file {found}; make or copy it again",
        path.display()
    )]
    Truncated {
        path: PathBuf,
        expected: u64,
        found: u64,
    },
    #[error("{} is neither an erofs nor an ext4 image", path.display())]
    NotAnImage { path: PathBuf },
}

/// How a root file system image is to be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageFormat {
    Erofs,
    Ext4,
}

impl ImageFormat {
    /// As `mount -t` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Erofs => "erofs",
            Self::Ext4 => "ext4",
        }
    }

    /// What the file is, by its superblock; an error if the file is shorter than the file system in it.
    pub fn of(path: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read {
            path: path.to_owned(),
            source,
        };
        let file = File::open(path).map_err(read)?;
        let found = file.metadata().map_err(read)?.len();
        let mut head = Vec::new();
        file.take(4096).read_to_end(&mut head).map_err(read)?;
        let (format, expected) = superblock(&head).ok_or_else(|| Error::NotAnImage {
            path: path.to_owned(),
        })?;
        if found < expected {
            return Err(Error::Truncated {
                path: path.to_owned(),
                expected,
                found,
            });
        }
        Ok(format)
    }
}

/// The format and the file system's size in bytes.
fn superblock(head: &[u8]) -> Option<(ImageFormat, u64)> {
    let word = |at: usize| {
        let bytes = head.get(SUPER_OFFSET + at..SUPER_OFFSET + at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    if word(0)? == erofs::MAGIC {
        let bits = u32::from(*head.get(SUPER_OFFSET + 12)?);
        let size = u64::from(word(36)?).checked_shl(bits)?;
        return Some((ImageFormat::Erofs, size));
    }
    // s_magic is at 56, s_blocks_count_lo at 4, s_log_block_size at 24, s_feature_incompat at 96, s_blocks_count_hi at 336.
    if word(56)? as u16 == EXT4_MAGIC {
        let high = if word(96)? & EXT4_FEATURE_64BIT != 0 {
            u64::from(word(336)?) << 32
        } else {
            0
        };
        let size = (high | u64::from(word(4)?)).checked_mul(1024u64.checked_shl(word(24)?)?)?;
        return Some((ImageFormat::Ext4, size));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk;
    use crate::tree::Tree;

    #[test]
    fn an_image_is_known_by_its_superblock_and_a_truncated_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let erofs = dir.path().join("e");
        let mut tree = Tree::default();
        tree.file("big", 0o644, vec![1; 100_000]).unwrap();
        erofs::write(&tree, File::create(&erofs).unwrap(), &|_| ()).unwrap();
        let ext4 = dir.path().join("x");
        disk::make(&ext4, 32 << 20).unwrap();
        for (path, format) in [(&erofs, ImageFormat::Erofs), (&ext4, ImageFormat::Ext4)] {
            assert_eq!(ImageFormat::of(path).unwrap(), format);
            let file = File::options().write(true).open(path).unwrap();
            file.set_len(file.metadata().unwrap().len() - 4096).unwrap();
            let message = ImageFormat::of(path).unwrap_err().to_string();
            assert!(message.contains("truncated"), "{message}");
        }
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(
            ImageFormat::of(file.path()),
            Err(Error::NotAnImage { .. })
        ));
        std::fs::write(file.path(), [0xff; 8192]).unwrap();
        assert!(matches!(
            ImageFormat::of(file.path()),
            Err(Error::NotAnImage { .. })
        ));
    }
}
