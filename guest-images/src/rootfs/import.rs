//! Images from elsewhere. Nothing in them is trusted.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::path::Path;

use super::format::{self, ImageFormat};
use super::{Error, FORMAT, IMAGE, Properties, add_mount_points, pack};
use crate::progress::{Progress, Unit};
use crate::space;
use crate::store::{Work, hash_bytes, hash_file};
use crate::tree::{Tree, directory, tarball};

/// An unpacked tar may be this many times as large as the packed one and this much more; beyond, it is a bomb.
const RATIO_MAX: u64 = 200;
const SMALL: u64 = 64 << 20;

/// The content of a file; a directory's content may have changed each time.
pub fn request(source: &Path) -> Result<String, Error> {
    if source.is_dir() {
        let now = std::time::SystemTime::now();
        return Ok(hash_bytes(
            format!("{} {now:?} {}", source.display(), std::process::id()).as_bytes(),
        ));
    }
    Ok(hash_file(source, &|_| ())?.1)
}

pub fn make(work: &Work, source: &Path, progress: &dyn Progress) -> Result<Properties, Error> {
    progress.begin(&format!("reading {}", source.display()), Unit::Bytes, None);
    let (mut tree, skipped) = if source.is_dir() {
        directory::read(source)?
    } else {
        match ImageFormat::of(source) {
            Ok(format) => return copy_image(work, source, format, progress),
            Err(format::Error::NotAnImage { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        let tar = uncompressed(work, source)?;
        tarball::read(tar, source)?
    };
    progress.end();
    if is_empty(&tree) {
        return Err(Error::Empty {
            path: source.to_owned(),
        });
    }
    add_mount_points(&mut tree)?;
    pack(work, &mut tree, skipped, progress)
}

fn is_empty(tree: &Tree) -> bool {
    !tree
        .nodes()
        .iter()
        .any(|node| matches!(node.content, crate::tree::Content::File(_)))
}

fn copy_image(
    work: &Work,
    source: &Path,
    format: ImageFormat,
    progress: &dyn Progress,
) -> Result<Properties, Error> {
    let size = source.metadata().map_err(io("reading", source))?.len();
    space::require(&work.out, "the image", size)?;
    fs::copy(source, work.out.join(IMAGE)).map_err(io("copying", source))?;
    progress.end();
    // Once more, of the copy: the source may have changed since.
    ImageFormat::of(&work.out.join(IMAGE))?;
    Ok(Properties::from([(
        FORMAT.to_owned(),
        format.name().to_owned(),
    )]))
}

/// The tar itself, or a file with it unpacked.
fn uncompressed(work: &Work, source: &Path) -> Result<File, Error> {
    let mut file = File::open(source).map_err(io("opening", source))?;
    let mut magic = [0; 6];
    let n = file.read(&mut magic).map_err(io("reading", source))?;
    file.rewind().map_err(io("reading", source))?;
    let packed = file.metadata().map_err(io("reading", source))?.len();
    let free = space_for(work, packed)?;
    let damaged = |e: io::Error| Error::Io {
        what: "unpacking",
        path: source.to_owned(),
        source: e,
    };
    let mut out =
        tempfile::tempfile_in(&work.scratch).map_err(io("making a file in", &work.scratch))?;
    let mut limited = Limited {
        out: &mut out,
        left: free,
    };
    match &magic[..n] {
        [0x1f, 0x8b, ..] => {
            io::copy(&mut flate2::read::MultiGzDecoder::new(file), &mut limited).map(drop)
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(file)
                .map_err(|e| damaged(io::Error::other(e)))?;
            io::copy(&mut { decoder }, &mut limited).map(drop)
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0] => {
            lzma_rs::xz_decompress(&mut io::BufReader::new(file), &mut limited)
                .map_err(io::Error::other)
        }
        _ => return Ok(file),
    }
    .map_err(damaged)?;
    Ok(out)
}

/// How large the unpacked tar may become: half of what is free at most, the other half is the image's.
fn space_for(work: &Work, packed: u64) -> Result<u64, Error> {
    space::require(
        &work.scratch,
        "unpacking the archive",
        packed.saturating_mul(2),
    )?;
    let stat = nix::sys::statvfs::statvfs(&work.scratch).map_err(|e| Error::Io {
        what: "asking for free space of",
        path: work.scratch.clone(),
        source: e.into(),
    })?;
    let half = stat.blocks_available().saturating_mul(stat.fragment_size()) / 2;
    Ok(half.min(packed.saturating_mul(RATIO_MAX).saturating_add(SMALL)))
}

struct Limited<'a> {
    out: &'a mut File,
    left: u64,
}

impl io::Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or_else(|| {
            io::Error::other("it grows beyond the free space or any real archive")
        })?;
        self.out.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn io<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + use<'a> {
    move |source| Error::Io {
        what,
        path: path.to_owned(),
        source,
    }
}
