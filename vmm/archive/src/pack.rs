//! A tree becomes a stream.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;
use tar::{Builder, EntryType, Header};

use crate::{Error, failed};

/// Writes `source` and all below it as a tar stream, under the name `base`. Links stay links; hard links become files
/// of their own. Device nodes, FIFOs and sockets are left out and told, one line each.
///
/// # Errors
/// Something cannot be read, or `out` cannot be written.
pub fn pack(
    source: &Path,
    base: &OsStr,
    out: impl Write,
    tell: &mut dyn FnMut(String),
) -> Result<(), Error> {
    let mut packer = Packer {
        builder: Builder::new(Out { out, broken: false }),
        tell,
    };
    let added = packer.add(source.to_owned(), PathBuf::from(base));
    packer.builder.get_mut().broken = added.is_err();
    added?;
    let mut out = packer.builder.into_inner().map_err(Error::Write)?;
    out.flush().map_err(Error::Write)
}

/// Takes nothing more of an archive that is not whole: the crate would put an end to it, as if it were.
pub(crate) struct Out<W> {
    pub out: W,
    pub broken: bool,
}

impl<W: Write> Write for Out<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

struct Packer<'a, W: Write> {
    builder: Builder<Out<W>>,
    tell: &'a mut dyn FnMut(String),
}

impl<W: Write> Packer<'_, W> {
    fn add(&mut self, path: PathBuf, name: PathBuf) -> Result<(), Error> {
        let data = fs::symlink_metadata(&path).map_err(failed("read", &path))?;
        let kind = data.file_type();
        if kind.is_dir() {
            self.directory(&path, &name, &data)
        } else if kind.is_file() {
            self.file(&path, &name)
        } else if kind.is_symlink() {
            let target = fs::read_link(&path).map_err(failed("read", &path))?;
            let mut header = header(EntryType::Symlink, &data, 0);
            self.builder
                .append_link(&mut header, &name, &target)
                .map_err(Error::Write)
        } else {
            let what = match kind {
                kind if kind.is_socket() => "a socket",
                kind if kind.is_fifo() => "a FIFO",
                _ => "a device node",
            };
            (self.tell)(format!("left out {}: it is {what}", path.display()));
            Ok(())
        }
    }

    fn directory(&mut self, path: &Path, name: &Path, data: &Metadata) -> Result<(), Error> {
        let mut header = header(EntryType::Directory, data, 0);
        let mut with_slash = name.as_os_str().to_owned();
        with_slash.push("/");
        self.builder
            .append_data(&mut header, with_slash, io::empty())
            .map_err(Error::Write)?;
        for entry in fs::read_dir(path).map_err(failed("read", path))? {
            let entry = entry.map_err(failed("read", path))?;
            self.add(entry.path(), name.join(entry.file_name()))?;
        }
        Ok(())
    }

    fn file(&mut self, path: &Path, name: &Path) -> Result<(), Error> {
        // It may have become something else since it was looked at: neither followed nor waited for.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .map_err(failed("read", path))?;
        let data = file.metadata().map_err(failed("read", path))?;
        if !data.is_file() {
            return Err(Error::Special(path.to_owned()));
        }
        let mut header = header(EntryType::Regular, &data, data.len());
        let mut content = Exactly {
            file,
            left: data.len(),
            missing: false,
            failed: None,
        };
        let written = self.builder.append_data(&mut header, name, &mut content);
        if let Some(error) = content.failed {
            return Err(failed("read", path)(error));
        }
        written.map_err(Error::Write)?;
        if content.missing {
            (self.tell)(format!(
                "{} became shorter while it was copied; its end is zeros",
                path.display()
            ));
        }
        Ok(())
    }
}

pub(crate) fn header(kind: EntryType, data: &Metadata, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(data.mode() & 0o7777);
    header.set_uid(u64::from(data.uid()));
    header.set_gid(u64::from(data.gid()));
    // Before 1970 the format has no number.
    header.set_mtime(u64::try_from(data.mtime()).unwrap_or(0));
    header.set_size(size);
    header
}

/// As many bytes of a file as were announced, whatever becomes of it meanwhile.
struct Exactly {
    file: File,
    left: u64,
    missing: bool,
    failed: Option<io::Error>,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        let part = &mut buffer[..most];
        if part.is_empty() {
            return Ok(0);
        }
        let count = match self.file.read(part) {
            Ok(0) => {
                self.missing = true;
                part.fill(0);
                part.len()
            }
            Ok(count) => count,
            Err(error) => {
                let told = io::Error::from(error.kind());
                if error.kind() != io::ErrorKind::Interrupted {
                    self.failed = Some(error);
                }
                return Err(told);
            }
        };
        self.left -= count as u64;
        Ok(count)
    }
}
